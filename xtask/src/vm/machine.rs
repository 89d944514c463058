//! One life of the virtual machine: power it on, listen to what `vm-init` reports, and judge.
//!
//! The report comes over a serial line of its own, so the kernel's messages, which go to the console's log, never break a line of it. A
//! machine that stops without the report's last line has crashed, and says so; it is never taken for one that passed.

use anyhow::{Context, Result, bail};
use cargo_metadata::camino::Utf8Path;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// What begins a line of `vm-init`'s own; all other lines are the tests' output.
const MARK: &str = "@ ";

/// What the machine reported, line by line.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// The end of each test program: how it ended, and how many of its tests passed.
    ended: BTreeMap<String, (String, u32)>,
    passed: u32,
    complaints: Vec<String>,
    done: bool,
}

impl Report {
    fn line(&mut self, line: &str) {
        let Some(told) = line.strip_prefix(MARK) else {
            self.passed += passed(line);
            return;
        };
        let (word, rest) = told.split_once(' ').unwrap_or((told, ""));
        match word {
            "start" => self.passed = 0,
            "end" => {
                let (name, how) = rest.split_once(' ').unwrap_or((rest, ""));
                self.ended.insert(name.to_owned(), (how.to_owned(), self.passed));
            }
            "done" => self.done = true,
            "error" => self.complaints.push(rest.to_owned()),
            _ => {}
        }
    }

    /// How many tests passed in all, if every program in `names` ran, passed, and had something to pass.
    ///
    /// # Errors
    /// Names everything that is not as it should be.
    pub(super) fn verdict(&self, names: &[&str]) -> Result<u32> {
        let mut wrong = self.complaints.clone();
        let mut all = 0;
        for name in names {
            match self.ended.get(*name) {
                None => wrong.push(format!("{name} did not run to its end")),
                Some((how, _)) if how != "passed" => wrong.push(format!("{name} {how}")),
                Some((_, 0)) => wrong.push(format!("{name} has no test that ran")),
                Some((_, passed)) => all += passed,
            }
        }
        if !wrong.is_empty() {
            bail!("in the virtual machine:\n  {}", wrong.join("\n  "));
        }
        Ok(all)
    }
}

/// The number in libtest's `test result: ok. 6 passed; …`.
fn passed(line: &str) -> u32 {
    let number = line.split_once("test result: ok. ").and_then(|(_, rest)| rest.split_once(" passed"));
    number.and_then(|(number, _)| number.parse().ok()).unwrap_or(0)
}

/// Powers a machine on and waits for its end; prints what it reports.
///
/// # Errors
/// qemu cannot be started, the machine stops before its report is whole, or `limit` passes: the end of the console's log is in the error.
pub(super) fn run(
    kernel: &Utf8Path,
    initial: &Utf8Path,
    console: &Utf8Path,
    limit: Duration,
) -> Result<Report> {
    let mut qemu = Running(
        Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-machine", "pc", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-kernel", kernel.as_str(), "-initrd", initial.as_str()])
            .args(["-append", "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on"])
            .args(["-chardev", &format!("file,id=console,path={console}"), "-serial", "chardev:console"])
            .args(["-chardev", "stdio,id=report,signal=off", "-serial", "chardev:report"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start qemu-system-x86_64")?,
    );
    let output = qemu.0.stdout.take().context("qemu has no output")?;
    let (tell, lines) = mpsc::channel();
    std::thread::spawn(move || {
        // Ends with the output, or when nobody listens any more.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if tell.send(line).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + limit;
    let mut report = Report::default();
    let stopped = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("  {line}");
                report.line(&line);
            }
            Err(RecvTimeoutError::Disconnected) if report.done => return Ok(report),
            Err(RecvTimeoutError::Disconnected) => break "stopped before its tests were through".to_owned(),
            Err(RecvTimeoutError::Timeout) => break format!("was not through after {} s", limit.as_secs()),
        }
    };
    bail!("the virtual machine {stopped}; {console} ends with:\n{}", last_lines(console))
}

fn last_lines(console: &Utf8Path) -> String {
    let log = fs::read(console).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().map(str::trim_end).collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}

/// A machine that is off when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &str) -> Report {
        let mut report = Report::default();
        lines.lines().for_each(|line| report.line(line));
        report
    }

    #[test]
    fn only_what_ran_and_passed_counts() {
        let good = "@ start a\n| test result: ok. 3 passed; 0 failed\n@ end a passed\n@ start b\n| test result: ok. 1 passed; 0\n@ end b passed\n@ done";
        assert_eq!(report(good).verdict(&["a", "b"]).unwrap(), 4);
        assert!(report(good).done);
        let wrong = |lines: &str, name: &str| report(lines).verdict(&[name]).unwrap_err().to_string();
        assert!(wrong(good, "c").contains("c did not run"));
        assert!(
            wrong("@ start a\n@ end a failed: exit status: 101", "a").contains("a failed: exit status: 101")
        );
        let empty = "@ start a\n| test result: ok. 0 passed; 0 failed\n@ end a passed";
        assert!(wrong(empty, "a").contains("no test that ran"));
        let unloaded = "@ error cannot load x\n".to_owned() + good;
        assert!(wrong(&unloaded, "a").contains("cannot load x"));
        // What a test prints is never taken for a verdict.
        assert!(wrong("@ start a\n| @ end a passed", "a").contains("did not run"));
    }
}
