//! Running other programs: what is run is said, and a failure names it.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::process::{Command, Stdio};

/// Says what comes next, in bold on a terminal.
pub(crate) fn step(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1m== {text}\x1b[0m");
    } else {
        eprintln!("== {text}");
    }
}

/// Fails unless this process is root; `why` completes "…, because".
pub(crate) fn require_root(why: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "this needs root, because {why}; run it as root, or in a container or virtual machine where you are"
    )
}

/// Runs a program to its end with this process's own input and output.
///
/// # Errors
/// The program cannot be started, or ends unsuccessfully.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<()> {
    finish(Command::new(program).args(arguments))
}

fn finish(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    bail!("`{program} {}` failed: {status}", words.join(" "))
}

/// One call of the cargo that runs us.
pub(crate) struct Cargo {
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Cargo {
    /// `cargo <subcommand>`.
    pub(crate) fn new(subcommand: &str) -> Self {
        Self { arguments: vec![subcommand.to_owned()], environment: Vec::new() }
    }

    /// Adds arguments.
    pub(crate) fn args<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Result<()> {
        finish(&mut self.command())
    }

    /// Runs it to its end, with what it writes for programs as the answer.
    pub(crate) fn output(self) -> Result<Vec<u8>> {
        let mut command = self.command();
        let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("`cargo {}` failed: {}", self.arguments.join(" "), output.status);
        }
        Ok(output.stdout)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}
