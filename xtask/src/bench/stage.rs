//! Where the measuring happens: network namespaces and a directory in memory, gone when the value is dropped.

use super::statistics::{Sample, Ticks};
use crate::command::run;
use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A named network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// `what` names it among those of this process.
    pub(crate) fn new(what: &str) -> Result<Self> {
        let name = format!("lbench-{}-{what}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        Ok(Self { name })
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs work on a thread inside, and whatever that starts.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("cannot open {}", self.path()))?;
        let inside = || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter {}", self.path()))?;
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// `ip` inside, its arguments as one line; must succeed.
    pub(crate) fn ip(&self, line: &str) -> Result<String> {
        let output = Command::new("ip").args(["-n", &self.name]).args(line.split_whitespace()).output()?;
        ensure!(
            output.status.success(),
            "ip -n {} {line}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _reported_by_ip = run("ip", &["netns", "delete", &self.name]);
    }
}

/// A directory in memory, so that no disk is measured.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: Utf8PathBuf,
}

impl Directory {
    pub(crate) fn new() -> Result<Self> {
        let path = Utf8PathBuf::from(format!("/dev/shm/loden-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {path}"))?;
        Ok(Self { path })
    }

    /// Writes a file and answers its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<Utf8PathBuf> {
        let path = self.path.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {path}"))?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _in_memory_only = std::fs::remove_dir_all(&self.path);
    }
}

/// A program to be timed, the same at every run but for what the run adds.
pub(crate) fn program(path: &Utf8Path) -> Command {
    let mut command = Command::new(path);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Runs a program to its end; answers the time from before its start until its end is known, the processor time of everything it
/// started and waited for, and what it printed. Nothing else may be started from this process meanwhile.
///
/// # Errors
/// It cannot be started or fails.
pub(crate) fn timed(command: &mut Command, stdin: Option<&Utf8Path>) -> Result<(Sample, String)> {
    let input = match stdin {
        Some(path) => File::open(path).with_context(|| format!("cannot open {path}"))?.into(),
        None => Stdio::null(),
    };
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let before = cpu_of_children()?;
    let begun = Instant::now();
    let output = command
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("cannot start {command:?}"))?;
    let wall = begun.elapsed();
    let cpu = cpu_of_children()?.saturating_sub(before);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed: {told} {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok((Sample { wall, cpu, inside: super::statistics::inside(&told) }, told))
}

/// Runs a program to its end under `strace` and answers how many programs were started, itself included.
///
/// # Errors
/// It cannot be started or fails.
pub(crate) fn counted(command: &Command, stdin: Option<&Utf8Path>) -> Result<usize> {
    let told = traced(command, stdin, &["-f", "-qq", "-e", "trace=execve"])?;
    Ok(told.lines().filter(|line| line.contains("execve") && line.trim_end().ends_with("= 0")).count())
}

/// Runs a program to its end under `strace` with these options; answers what `strace` says.
///
/// # Errors
/// It cannot be started or fails.
pub(crate) fn traced(command: &Command, stdin: Option<&Utf8Path>, options: &[&str]) -> Result<String> {
    let log = Utf8PathBuf::from(format!("/dev/shm/loden-bench-{}.strace", std::process::id()));
    let mut traced = program(Utf8Path::new("/usr/bin/strace"));
    traced.args(options).arg("-o").arg(&log).arg(command.get_program()).args(command.get_args());
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let outcome = timed(&mut traced, stdin);
    let told = std::fs::read_to_string(&log).with_context(|| format!("cannot read {log}"));
    let _in_memory_only = std::fs::remove_file(&log);
    outcome?;
    told
}

/// User and system time of all children so far that have ended, and of theirs.
pub(crate) fn cpu_of_children() -> Result<Duration> {
    let usage: Usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("cannot read the children's times")?;
    let micros = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_usec()));
    Ok(Duration::from_micros(micros.iter().map(|part| part.unsigned_abs()).sum()))
}

/// The machine's clock ticks so far.
pub(crate) fn ticks() -> Result<Ticks> {
    let stat = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    Ticks::parse(&stat).context("/proc/stat does not look as expected")
}
