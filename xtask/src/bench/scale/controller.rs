//! The controller that is measured, while it runs: what its log says and when, and what the kernel says it uses.

use super::super::process::{Running, cpu, memory};
use anyhow::{Context, Result, bail};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the log told so far.
#[derive(Debug, Default)]
struct Told {
    /// Nodes that were told that their network is available, each time it was, and when.
    available: Vec<(String, Instant)>,
    /// When it began to lead.
    leading: Option<Instant>,
    calls: Calls,
    last: Vec<String>,
}

/// Reads of the route table, which the cloud counts as one action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    pub(crate) listings: u32,
    pub(crate) read_backs: u32,
}

/// Lines kept for whoever has to find out why a run failed.
const LAST: usize = 20;

/// One process of it. Ends with the value, by SIGKILL.
pub(crate) struct Controller {
    process: Running,
    reader: Option<JoinHandle<()>>,
    told: Arc<Mutex<Told>>,
    begun: Instant,
}

/// What a process used, as the kernel counts it. Memory in kilobytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) resident: u64,
    pub(crate) own: u64,
    pub(crate) peak: u64,
}

impl Controller {
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let begun = Instant::now();
        let child = command.stderr(Stdio::piped()).spawn().context("cannot start loden-controller")?;
        let mut process = Running(child);
        let log = process.0.stderr.take().context("loden-controller has no log")?;
        let told = Arc::new(Mutex::new(Told::default()));
        let to = Arc::clone(&told);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(log).lines() {
                let Ok(line) = line else { break };
                let now = Instant::now();
                to.lock().unwrap_or_else(PoisonError::into_inner).take(now, line);
            }
        });
        Ok(Self { process, reader: Some(reader), told, begun })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    /// When it began to lead, if it does.
    pub(crate) fn leading(&self) -> Option<Instant> {
        self.told().leading
    }

    /// How often a node was told that its network is available.
    pub(crate) fn available_count(&self) -> usize {
        self.told().available.len()
    }

    /// The nodes that were told that their network is available, and when.
    pub(crate) fn available(&self) -> Vec<(String, Instant)> {
        self.told().available.clone()
    }

    pub(crate) fn calls(&self) -> Calls {
        self.told().calls
    }

    /// # Errors
    /// It has ended.
    pub(crate) fn used(&self) -> Result<Used> {
        let process = self.process.0.id();
        Ok(Used {
            cpu: cpu(process)?,
            resident: memory(process, "VmRSS:")?,
            own: memory(process, "RssAnon:")?,
            peak: memory(process, "VmHWM:")?,
        })
    }

    /// # Errors
    /// It has ended; with what it said last.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.process.0.try_wait().context("cannot look at loden-controller")? {
            bail!("loden-controller ended with {status}: {}", self.last_words());
        }
        Ok(())
    }

    pub(crate) fn last_words(&self) -> String {
        self.told().last.join("\n")
    }

    /// Ends it without a chance to do anything about it, and waits for the last of its log.
    ///
    /// # Errors
    /// It cannot be ended.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.process.0.kill().and_then(|()| self.process.0.wait()).context("cannot end loden-controller")?;
        if let Some(reader) = self.reader.take() {
            let _a_reader_does_not_panic = reader.join();
        }
        Ok(())
    }
}

impl Told {
    fn take(&mut self, now: Instant, line: String) {
        if line.contains("NetworkUnavailable written") {
            if line.contains(" unavailable=false")
                && let Some(node) = value(&line, "node")
            {
                self.available.push((node.to_owned(), now));
            }
        } else if line.contains("listing route entries") {
            self.calls.listings += 1;
        } else if line.contains("reading route entries back") {
            self.calls.read_backs += 1;
        } else if line.contains(" leading identity=") {
            self.leading.get_or_insert(now);
        } else if !line.contains("creating route entry") {
            if self.last.len() >= LAST {
                self.last.remove(0);
            }
            self.last.push(line);
        }
    }
}

/// A field of a log line.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_understood() {
        let mut told = Told::default();
        let now = Instant::now();
        for line in [
            "2026-01-01T00:00:00Z  INFO leading identity=a_1",
            "2026-01-01T00:00:00Z  INFO NetworkUnavailable written node=n1 unavailable=true reason=NoRouteCreated",
            "2026-01-01T00:00:00Z  INFO NetworkUnavailable written node=n1 unavailable=false reason=RouteCreated",
            "2026-01-01T00:00:00Z DEBUG listing route entries table=vtb-b",
            "2026-01-01T00:00:00Z DEBUG reading route entries back table=vtb-b entries=20",
            "2026-01-01T00:00:00Z  WARN something else",
        ] {
            told.take(now, line.to_owned());
        }
        assert_eq!(told.available, [("n1".to_owned(), now)]);
        assert_eq!((told.leading, told.calls), (Some(now), Calls { listings: 1, read_backs: 1 }));
        assert_eq!(told.last, ["2026-01-01T00:00:00Z  WARN something else"]);
    }
}
