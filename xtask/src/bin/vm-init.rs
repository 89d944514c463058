//! The first program inside the virtual machine of `cargo xtask vm-test`: mounts what programs expect, loads modules, runs tests, powers off.
//!
//! It follows `/vm/plan`, a line each: `module <file>`, `set <name> <value>`, `run <name> <seconds> <arguments…>` (the program is
//! `/vm/<name>`). What it has to say goes to the second serial line: its own lines begin with `@ `, those of tests with `| `. A failure is a line
//! `@ error …`, never a stop: the machine powers off in every case, since nobody is there to look.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount};
use rustix::system::RebootCommand;

/// Where the report goes; the first serial line is the kernel's console.
const REPORT: &str = "/dev/ttyS1";
const PLAN: &str = "/vm/plan";

fn main() {
    // Outside, powering off would be somebody's machine.
    if std::process::id() != 1 {
        let _ = writeln!(std::io::stderr(), "this is for the virtual machine of `cargo xtask vm-test`");
        std::process::exit(2);
    }
    if let Err(error) = life() {
        let _ = writeln!(std::io::stderr(), "vm-init: {error:#}");
    }
    rustix::fs::sync();
    // If even this fails the kernel panics when its first program ends, which powers off as well.
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
}

fn life() -> Result<()> {
    for (kind, target) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    let report =
        OpenOptions::new().write(true).open(REPORT).with_context(|| format!("cannot open {REPORT}"))?;
    let mut init = Init { report, environment: Vec::new() };
    if let Err(error) = init.follow() {
        init.say(&format!("@ error {error:#}"));
    }
    init.say("@ done");
    // What is still in the line's buffer would be lost with the power.
    rustix::termios::tcdrain(&init.report).with_context(|| format!("cannot drain {REPORT}"))
}

struct Init {
    report: File,
    environment: Vec<(String, String)>,
}

impl Init {
    fn say(&mut self, line: &str) {
        let _ = writeln!(self.report, "{line}");
    }

    fn follow(&mut self) -> Result<()> {
        let plan = fs::read_to_string(PLAN).with_context(|| format!("cannot read {PLAN}"))?;
        for line in plan.lines() {
            let outcome = match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["module", file] => load(file),
                ["set", name, value] => {
                    self.environment.push((name.to_owned(), value.to_owned()));
                    Ok(())
                }
                ["run", name, seconds, ref arguments @ ..] => self.run(name, seconds, arguments),
                _ => Err(anyhow::anyhow!("{PLAN} has a line that is none: {line}")),
            };
            if let Err(error) = outcome {
                self.say(&format!("@ error {error:#}"));
            }
        }
        Ok(())
    }

    fn run(&mut self, name: &str, seconds: &str, arguments: &[&str]) -> Result<()> {
        let limit = Duration::from_secs(seconds.parse().with_context(|| format!("{seconds} is no time"))?);
        self.say(&format!("@ start {name}"));
        let started = Instant::now();
        let (read, write) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = Command::new(format!("/vm/{name}"));
        command.args(arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(write.try_clone().context("cannot copy a pipe")?).stderr(write);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        // It holds the pipe's end for writing, which must close with the program.
        drop(command);
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(read).split(b'\n').map_while(Result::ok) {
                if tell.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
            }
        });
        let how = self.wait(child, &lines, started + limit)?;
        self.say(&format!("| {name} took {:.1} s", started.elapsed().as_secs_f64()));
        self.say(&format!("@ end {name} {how}"));
        Ok(())
    }

    /// Passes lines on until the program has ended and all its lines are out, or its time is over.
    fn wait(
        &mut self,
        mut child: Child,
        lines: &mpsc::Receiver<String>,
        deadline: Instant,
    ) -> Result<String> {
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.say(&format!("| {line}")),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    child.kill().context("cannot end a test that takes too long")?;
                    child.wait().context("cannot wait for a test that was ended")?;
                    return Ok("took too long and was ended".to_owned());
                }
            }
        }
        let status = child.wait().context("cannot wait for a test")?;
        Ok(if status.success() { "passed".to_owned() } else { format!("failed: {status}") })
    }
}

fn load(file: &str) -> Result<()> {
    let module = fs::read(file).with_context(|| format!("cannot read {file}"))?;
    let no_parameters = CString::default();
    match rustix::system::init_module(&module, &no_parameters) {
        Ok(()) => Ok(()),
        Err(error) => bail!("cannot load {file}: {error}"),
    }
}
