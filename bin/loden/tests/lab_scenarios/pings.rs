//! Pings that run while something happens, and what of them was lost.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::support::{Lab, string, wait_until};

/// Milliseconds between two pings.
const INTERVAL: u32 = 20;

/// A pod that pings an address until it is told to stop.
pub(crate) struct Pings {
    what: String,
    child: Child,
    answered: Arc<Mutex<BTreeSet<u32>>>,
    reader: Option<JoinHandle<()>>,
}

/// What was lost between the first and the last answer.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) lost: u32,
    /// Milliseconds of the longest time without an answer.
    pub(crate) longest_ms: u32,
}

impl Pings {
    /// Begins, and waits for the first answers.
    pub(crate) fn start(lab: &Lab, pod: &str, target: &str) -> Self {
        let namespace = string(&lab.pod(pod)["namespace"]);
        let mut child = Command::new("ip")
            .args(["netns", "exec", &namespace, "ping", "-n", "-i", &format!("0.{INTERVAL:03}"), target])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let answered = Arc::new(Mutex::new(BTreeSet::new()));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let heard = Arc::clone(&answered);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| line.contains("bytes from")) {
                let word = line.split_whitespace().find_map(|word| word.strip_prefix("icmp_seq="));
                heard.lock().unwrap().extend(word.and_then(|number| number.parse::<u32>().ok()));
            }
        });
        let pings = Self { what: format!("{pod} to {target}"), child, answered, reader: Some(reader) };
        pings.wait_answers(3);
        pings
    }

    /// Waits until so many more pings were answered.
    pub(crate) fn wait_answers(&self, more: usize) {
        let count = || self.answered.lock().unwrap().len();
        let before = count();
        wait_until(&format!("answers to pings of {}", self.what), count, |count| *count >= before + more);
    }

    /// Stops once answers come.
    pub(crate) fn stop(mut self) -> Loss {
        self.wait_answers(5);
        self.interrupt();
        let answered = self.answered.lock().unwrap();
        let (first, last) = (*answered.first().unwrap(), *answered.last().unwrap());
        let gaps = answered.iter().zip(answered.iter().skip(1)).map(|(one, next)| next - one - 1);
        let loss = Loss {
            lost: last - first + 1 - u32::try_from(answered.len()).unwrap(),
            longest_ms: gaps.max().unwrap_or(0) * INTERVAL,
        };
        println!("{}: {loss:?}", self.what);
        loss
    }

    /// Stops; nothing may be lost.
    pub(crate) fn assert_none_lost(self) {
        let what = self.what.clone();
        let loss = self.stop();
        assert_eq!(loss.lost, 0, "{what}: {loss:?}");
    }

    fn interrupt(&mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // It may have ended with its namespace.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        self.child.wait().unwrap();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

impl Drop for Pings {
    fn drop(&mut self) {
        if self.reader.is_some() {
            self.interrupt();
        }
    }
}
