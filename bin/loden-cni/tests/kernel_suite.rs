//! The plugins held against the cases of `loden-cni-suite`; Debian's Go plugins against those that hold for their release; and both
//! against each other, where one takes up what the other left.
//!
//! Without the test harness, because every case runs in a process of its own, which is this program started again. Words on the command
//! line choose cases by their titles.

#![expect(clippy::print_stdout, reason = "a test says what came of it")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use loden_cni_suite::suite::{self, Outcome, Plugins};
use loden_cni_suite::{case, cases};

/// Where Debian keeps the Go plugins, and which release they are.
const GO: (&str, &str) = ("/usr/lib/cni", "1.1.1");

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let outcome = if words.first().is_some_and(|word| word == suite::PLAY) {
        suite::play_one().map(|()| true).map_err(Into::into)
    } else {
        judge(&words)
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn judge(words: &[String]) -> Result<bool, Box<dyn Error>> {
    let started = Instant::now();
    let directory = tempfile::tempdir()?;
    install(directory.path())?;
    let ours = Plugins { directory: directory.path().to_owned(), release: "loden".to_owned() };
    let go = Plugins { directory: PathBuf::from(GO.0), release: GO.1.to_owned() };
    if !go.directory.join("bridge").exists() {
        return Err(format!("{}/bridge is missing: apt-get install containernetworking-plugins", GO.0).into());
    }
    let mut cases = case::read_all(cases())?;
    cases.retain(|case| words.is_empty() || words.iter().any(|word| case.title().contains(word.as_str())));
    let (pairings, cases): (Vec<_>, Vec<_>) = cases.into_iter().partition(case::Case::is_pairing);
    let all = [
        ("loden-cni", suite::run(&cases, &ours, None)?),
        ("Debian's Go plugins 1.1.1", suite::run(&cases, &go, None)?),
        ("loden-cni and Debian's Go plugins in turns", suite::run(&pairings, &ours, Some(&go))?),
    ];
    let mut failed = 0;
    for (whose, outcome) in &all {
        println!("{}", outcome.report(whose));
        failed += outcome.failed();
    }
    slowest(&all);
    println!("{} s in all", started.elapsed().as_secs());
    Ok(failed == 0)
}

fn slowest(all: &[(&str, Outcome)]) {
    let mut verdicts: Vec<_> = all
        .iter()
        .flat_map(|(whose, outcome)| outcome.verdicts.iter().map(move |v| (v.took, whose, &v.title)))
        .collect();
    verdicts.sort();
    for (took, whose, title) in verdicts.iter().rev().take(3) {
        println!("  {:.1} s  {title} ({whose})", took.as_secs_f64());
    }
}

/// The binary under every name it answers to.
fn install(directory: &Path) -> Result<(), Box<dyn Error>> {
    let binary = directory.join("loden-cni");
    fs::copy(env!("CARGO_BIN_EXE_loden-cni"), &binary)?;
    for name in loden_cni_plugins::names() {
        fs::hard_link(&binary, directory.join(name))?;
    }
    Ok(())
}
