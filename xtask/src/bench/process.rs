//! Other programs while they run: started and ended with a value, asked over HTTP, and looked at through the kernel's files.

use anyhow::{Context, Result, bail};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(120);

/// Ends with the value.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ended_already = self.0.wait();
    }
}

/// Status code and body of one request on a connection of its own.
pub(crate) fn request(to: &str, method: &str, path: &str, kind: &str, body: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.context("the server does not answer in HTTP")?, answer.into_owned()))
}

/// Waits until something is there; `told` says what is known when it never comes.
///
/// # Errors
/// It is not there in two minutes.
pub(crate) fn wait(what: &str, mut ready: impl FnMut() -> bool, told: impl Fn() -> String) -> Result<()> {
    let begun = Instant::now();
    while !ready() {
        if begun.elapsed() > DEADLINE {
            bail!("{what} is not there after {} s: {}", DEADLINE.as_secs(), told());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Processor time of a process's living threads, to the nanosecond.
pub(crate) fn cpu(process: u32) -> Result<Duration> {
    let mut all = Duration::ZERO;
    let tasks = format!("/proc/{process}/task");
    for task in std::fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))? {
        // A thread may end meanwhile; what it used is small and gone.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        all += parse_schedstat(&text).context("schedstat does not look as expected")?;
    }
    Ok(all)
}

fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

/// A line of `/proc/<pid>/status`, in kilobytes.
pub(crate) fn memory(process: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    parse_status(&text, key).with_context(|| format!("{path} has no {key}"))
}

fn parse_status(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// Kilobytes as MiB with one digit after the point.
pub(crate) fn mib(kb: u64) -> String {
    let tenths = kb.saturating_mul(10) / 1024;
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let status =
            "Name:\tflanneld\nVmHWM:\t   20480 kB\nVmRSS:\t   12288 kB\nRssAnon:\t    4096 kB\nThreads:\t3\n";
        assert_eq!(parse_status(status, "VmRSS:"), Some(12288));
        assert_eq!(parse_status(status, "VmSwap:"), None);
        assert_eq!(parse_status(status, "Threads:"), None);
        assert_eq!(parse_schedstat("1500000 20 3\n"), Some(Duration::from_micros(1500)));
        assert_eq!(parse_schedstat("\n"), None);
        let own = std::process::id();
        assert!(memory(own, "VmRSS:").unwrap() > 0 && cpu(own).unwrap() > Duration::ZERO);
    }
}
