//! `loden-cni-suite`: hold a directory of CNI plugins against the cases, or write the table of what the cases cover.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line speaks to people")]

use std::process::ExitCode;

use loden_cni_suite::suite::{self, Plugins};
use loden_cni_suite::{Failure, case, cases, coverage};

const USAGE: &str = "\
loden-cni-suite <directory> <release> [<word>...]
    Hold the plugins in the directory against every case that holds since the release (`1.1.1`, `loden`) or
    before, and whose title has one of the words in it. Needs root.
loden-cni-suite pair <directory> <peer's directory> [<word>...]
    Play the cases in which two directories of plugins take turns.
loden-cni-suite coverage
    Print the table of what the cases cover.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loden-cni-suite: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<bool, Failure> {
    match words {
        [suite::PLAY] => suite::play_one().map(|()| true),
        ["coverage"] => {
            let table = coverage::table(&case::read_all(cases())?)?;
            print!("{}", table.text);
            Ok(true)
        }
        ["pair", directory, peer, filter @ ..] => {
            let plugins = |directory: &str, release: &str| Plugins {
                directory: directory.into(),
                release: release.to_owned(),
            };
            play(&plugins(directory, "loden"), Some(&plugins(peer, "1.1.1")), filter)
        }
        [directory, release, filter @ ..] => {
            play(&Plugins { directory: (*directory).into(), release: (*release).to_owned() }, None, filter)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(false)
        }
    }
}

fn play(plugins: &Plugins, peer: Option<&Plugins>, filter: &[&str]) -> Result<bool, Failure> {
    let mut chosen = case::read_all(cases())?;
    chosen.retain(|case| filter.is_empty() || filter.iter().any(|word| case.title().contains(word)));
    chosen.retain(|case| case.is_pairing() == peer.is_some());
    let outcome = suite::run(&chosen, plugins, peer)?;
    println!("{}", outcome.report(&plugins.directory.display().to_string()));
    let mut slowest: Vec<_> = outcome.verdicts.iter().map(|v| (v.took, v.title.as_str())).collect();
    slowest.sort();
    for (took, title) in slowest.iter().rev().take(3) {
        println!("  {:.2} s  {title}", took.as_secs_f64());
    }
    Ok(outcome.failed() == 0 && !outcome.verdicts.is_empty())
}
