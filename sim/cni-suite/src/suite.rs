//! The suite: every case in a process of its own, several at a time, and what came of it.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::case::{Case, Release};
use crate::play::Play;
use crate::room::Room;

/// The word that a program's command line begins with when it is to play one case.
pub const PLAY: &str = "play-one-case";
/// How long a case may take.
const SECONDS: &str = "120";

/// A directory of plugins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plugins {
    /// Where they lie.
    pub directory: PathBuf,
    /// Their release, as [`Release::parse`] reads it.
    pub release: String,
}

/// What one case came to.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The case's title.
    pub title: String,
    /// What was not as expected.
    pub trouble: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// What came of the cases.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Those that ran, in the order they were given in.
    pub verdicts: Vec<Verdict>,
    /// How many are about later releases or plugins that the directory lacks.
    pub elsewhere: usize,
}

impl Outcome {
    /// How many were not as expected.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.verdicts.iter().filter(|verdict| verdict.trouble.is_some()).count()
    }

    /// The troubles at length, and one line of counts for `whose` plugins.
    #[must_use]
    pub fn report(&self, whose: &str) -> String {
        let mut text = String::new();
        for verdict in &self.verdicts {
            if let Some(trouble) = &verdict.trouble {
                let _ = writeln!(text, "FAILED on {whose}: {}\n  {}\n", verdict.title, trouble.trim_end());
            }
        }
        let _ = write!(
            text,
            "{whose}: {} cases, {} failed; {} are about other releases or plugins",
            self.verdicts.len(),
            self.failed(),
            self.elsewhere
        );
        text
    }
}

/// What a playing process is told through its standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    case: Case,
    plugins: Plugins,
    peer: Option<Plugins>,
}

/// Whether the case is about these plugins: old enough, and there.
#[must_use]
pub fn applies(case: &Case, plugins: &Plugins) -> bool {
    let since = Release::parse(&case.since);
    let release = Release::parse(&plugins.release);
    matches!((since, release), (Ok(since), Ok(release)) if since <= release)
        && called(case).iter().all(|plugin| plugins.directory.join(plugin).exists())
}

/// The plugins that a case calls itself.
fn called(case: &Case) -> Vec<&str> {
    let plugin = |step: &'_ crate::case::Step| step.plugin.clone();
    let mut names: Vec<&str> = vec![&case.plugin];
    names.extend(
        case.steps.iter().filter(|step| plugin(step).is_some()).filter_map(|step| step.plugin.as_deref()),
    );
    names
}

/// Plays `cases` on `plugins`, each in a process of its own: this program, started again with [`PLAY`], which must then call [`play_one`].
///
/// # Errors
/// When the program cannot be started again.
pub fn run(cases: &[Case], plugins: &Plugins, peer: Option<&Plugins>) -> Result<Outcome, Failure> {
    let chosen: Vec<&Case> = cases
        .iter()
        .filter(|case| applies(case, plugins) && (!case.is_pairing() || peer.is_some()))
        .collect();
    let elsewhere = cases.iter().filter(|case| !case.is_pairing() || peer.is_some()).count() - chosen.len();
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(format!("cannot find this program again: {error}")))?;
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(Vec::new());
    let workers = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = chosen.get(n) else { return };
                    let started = Instant::now();
                    let trouble = play(&program, case, plugins, peer).err().map(|error| error.0);
                    let verdict = Verdict { title: case.title(), trouble, took: started.elapsed() };
                    if let Ok(mut all) = verdicts.lock() {
                        all.push((n, verdict));
                    }
                }
            });
        }
    });
    let mut verdicts = verdicts.into_inner().map_err(|_| Failure::new("a worker broke off"))?;
    verdicts.sort_by_key(|(n, _)| *n);
    Ok(Outcome { verdicts: verdicts.into_iter().map(|(_, verdict)| verdict).collect(), elsewhere })
}

fn play(program: &Path, case: &Case, plugins: &Plugins, peer: Option<&Plugins>) -> Result<(), Failure> {
    let order = Order { case: case.clone(), plugins: plugins.clone(), peer: peer.cloned() };
    let order = serde_json::to_vec(&order).map_err(|error| Failure::new(error.to_string()))?;
    let failed = |error| Failure::new(format!("cannot start a process for the case: {error}"));
    let mut child = Command::new("timeout")
        .args([SECONDS, "unshare", "--net", "--mount", "--"])
        .arg(program)
        .arg(PLAY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&order).map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(124) {
        let _ = write!(text, "the case was ended after {SECONDS} s");
    }
    if text.is_empty() {
        let _ = write!(text, "the process ended with {}", output.status);
    }
    Err(Failure(text))
}

/// Plays the one case that standard input tells of, in this process's namespaces.
///
/// # Errors
/// What was not as expected.
pub fn play_one() -> Result<(), Failure> {
    let mut text = Vec::new();
    std::io::stdin()
        .read_to_end(&mut text)
        .map_err(|error| Failure::new(format!("cannot read the case: {error}")))?;
    let order: Order = serde_json::from_slice(&text)
        .map_err(|error| Failure::new(format!("cannot understand the case: {error}")))?;
    let release = Release::parse(&order.plugins.release)?;
    let peer = order.peer.as_ref().map(|peer| peer.directory.as_path());
    let room = Room::enter(&order.plugins.directory, peer, order.case.given.iptables.as_deref())?;
    Play::new(&order.case, room, release).run()
}
