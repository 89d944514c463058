//! The processes of a lab: the production binaries, each in its namespace, with a log file, started again when they end by themselves.
//!
//! As a kubelet does for pods with `restartPolicy: Always`. A process that is stopped on purpose stays stopped. Every one carries the lab's name in its
//! environment, by which [`crate::teardown`] finds it when the supervisor is gone.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loden_netlink::netns::NetNs;
use rustix::process::{Pid, Signal};

use crate::error::{Context, Error, Result};
use crate::names::{LabName, MEMBER_VARIABLE};
use crate::status::Process;

/// A process that was asked to end has this long before it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// A process that ended by itself is started again after this long.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// The production binaries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Programs {
    /// The node daemon.
    pub flanneld: PathBuf,
    /// The CNI plugins.
    pub cni: PathBuf,
    /// The controller.
    pub controller: PathBuf,
    /// The command line itself: it is its own supervisor.
    pub loden: PathBuf,
}

impl Programs {
    /// Finds them next to the running `loden`.
    ///
    /// # Errors
    /// Names every one that is missing and how to build it.
    pub fn beside(loden: &Path) -> Result<Self> {
        let directory = loden.parent().unwrap_or(Path::new("."));
        let programs = Self {
            flanneld: directory.join("flanneld"),
            cni: directory.join("loden-cni"),
            controller: directory.join("loden-controller"),
            loden: loden.to_owned(),
        };
        let all = [&programs.flanneld, &programs.cni, &programs.controller];
        let missing: Vec<&str> =
            all.iter().filter(|path| !path.is_file()).filter_map(|path| path.file_name()?.to_str()).collect();
        if missing.is_empty() {
            return Ok(programs);
        }
        Err(Error::Refused(format!(
            "the lab runs the production binaries, and {} is not in {}; build them all with `cargo build -p flanneld -p loden-cni -p loden-controller -p loden`",
            missing.join(", "),
            directory.display()
        )))
    }
}

/// How to start one process.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Variables beyond those inherited.
    pub environment: BTreeMap<String, String>,
    /// Where it runs.
    pub namespace: NetNs,
    /// Where its output goes, appended.
    pub log: PathBuf,
}

/// One process under supervision.
#[derive(Debug)]
pub struct Supervised {
    recipe: Recipe,
    lab: LabName,
    child: Option<Child>,
    ended: Option<Instant>,
    restarts: u32,
    wanted: bool,
}

impl Supervised {
    /// Starts it.
    ///
    /// # Errors
    /// The log or the executable cannot be opened.
    pub fn start(lab: &LabName, recipe: Recipe) -> Result<Self> {
        let mut process =
            Self { recipe, lab: lab.clone(), child: None, ended: None, restarts: 0, wanted: true };
        process.spawn()?;
        Ok(process)
    }

    fn spawn(&mut self) -> Result<()> {
        let Recipe { program, arguments, environment, namespace, log } = &self.recipe;
        let output =
            OpenOptions::new().create(true).append(true).open(log).map_err(|e| Error::io("open", log, e))?;
        let errors = output.try_clone().map_err(|e| Error::io("open", log, e))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .envs(environment)
            .env(MEMBER_VARIABLE, self.lab.as_str())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        // A child is born into the namespace of the thread that starts it.
        let child = namespace
            .run(|| command.spawn())
            .during(|| format!("enter the namespace of {}", program.display()))?
            .during(|| format!("start {}", program.display()))?;
        self.child = Some(child);
        self.ended = None;
        self.wanted = true;
        Ok(())
    }

    /// Looks after it: notices its end, starts it again a while later.
    pub fn tend(&mut self) {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            tracing::warn!(program = %self.recipe.program.display(), %status, log = %self.recipe.log.display(), "a process of the lab ended");
            self.child = None;
            self.ended = Some(Instant::now());
        }
        if self.wanted
            && self.child.is_none()
            && self.ended.is_none_or(|ended| ended.elapsed() >= RESTART_AFTER)
        {
            self.restarts += 1;
            if let Err(error) = self.spawn() {
                tracing::error!(%error, "a process of the lab could not be started again");
                self.ended = Some(Instant::now());
            }
        }
    }

    /// Ends it, politely first.
    pub fn stop(&mut self) {
        self.wanted = false;
        let Some(mut child) = self.child.take() else { return };
        signal(&child, Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < GRACE {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.end(child);
    }

    /// Ends it at once, as a power cut would.
    pub fn kill(&mut self) {
        self.wanted = false;
        if let Some(child) = self.child.take() {
            self.end(child);
        }
    }

    fn end(&self, mut child: Child) {
        signal(&child, Signal::KILL);
        if let Err(error) = child.wait() {
            tracing::warn!(%error, program = %self.recipe.program.display(), "a killed process could not be waited for");
        }
    }

    /// Starts it again after [`Supervised::stop`] or [`Supervised::kill`].
    ///
    /// # Errors
    /// It could not be started.
    pub fn resume(&mut self) -> Result<()> {
        if self.child.is_none() { self.spawn() } else { Ok(()) }
    }

    /// Whether it is meant to run: it was not stopped on purpose.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// The recipe it is started by.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Kills it and starts it again at once.
    ///
    /// # Errors
    /// It could not be started.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.restarts += 1;
        self.spawn()
    }

    /// Kills it and starts it again at once, from now on by another recipe.
    ///
    /// # Errors
    /// It could not be started.
    pub fn restart_as(&mut self, recipe: Recipe) -> Result<()> {
        self.recipe = recipe;
        self.restart()
    }

    /// As a status shows it.
    #[must_use]
    pub fn status(&self) -> Process {
        Process {
            pid: self.child.as_ref().map(Child::id),
            restarts: self.restarts,
            log: self.recipe.log.display().to_string(),
        }
    }

    /// The last lines of its log, for an error that must say why.
    #[must_use]
    pub fn last_words(&self) -> String {
        last_lines(&self.recipe.log, 5)
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // Not waited for yet, so the number is still this process; gone already is what was wanted.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The last `count` lines of a log, or why there are none.
#[must_use]
pub fn last_lines(log: &Path, count: usize) -> String {
    match std::fs::read_to_string(log) {
        Ok(text) if text.trim().is_empty() => format!("{} is empty", log.display()),
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(count)..).unwrap_or_default();
            format!("{} ends with:\n  {}", log.display(), last.join("\n  "))
        }
        Err(error) => format!("{} cannot be read: {error}", log.display()),
    }
}
