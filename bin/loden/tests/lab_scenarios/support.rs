//! One lab per test, driven by the real `loden`, gone when the test is over however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Generous: a condition that comes late on a busy machine is no failure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

static NEXT: AtomicU32 = AtomicU32::new(1);

pub(crate) struct Lab {
    pub(crate) name: String,
}

impl Lab {
    /// A name of its own; nothing is started.
    pub(crate) fn named() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "lab tests make network namespaces and must run as root"
        );
        let siblings = Path::new(env!("CARGO_BIN_EXE_loden")).parent().unwrap();
        for program in ["flanneld", "loden-cni", "loden-controller"] {
            assert!(
                siblings.join(program).is_file(),
                "{program} is not built; run `cargo build --workspace --bins` (or `cargo xtask test lab`) first"
            );
        }
        Self { name: format!("t{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)) }
    }

    /// A running lab.
    pub(crate) fn up(arguments: &[&str]) -> Self {
        let lab = Self::named();
        let output = lab.loden(&[&["up"], arguments].concat());
        assert!(output.status.success(), "lab up {arguments:?}: {}", text(&output));
        lab
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden"));
        command.args(["lab", "--name", &self.name]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs `loden lab …` to its end.
    pub(crate) fn loden(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs `loden lab … -o json`, which must succeed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.loden(&[&["-o", "json"], arguments].concat());
        assert!(output.status.success(), "lab {arguments:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Runs all checks; every row must have passed or had nothing to try.
    pub(crate) fn assert_green(&self) {
        let output = self.loden(&["check", "-o", "json"]);
        assert!(output.status.success(), "lab check: {}", text(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(
            report["rows"].as_array().unwrap().iter().any(|row| row["verdict"] == "passed"),
            "{report:#}"
        );
    }

    /// Destinations and next hops of the custom entries of the system table.
    pub(crate) fn entries(&self) -> BTreeSet<(String, String)> {
        let table = self.json(&["route", "list"]);
        let entries = table["entries"].as_array().unwrap().iter();
        entries
            .filter(|entry| entry["custom"] == true)
            .map(|entry| (string(&entry["destination"]), string(&entry["nextHop"])))
            .collect()
    }

    /// IDs of the system table's custom entries by destination: an entry that was deleted and made again has another.
    pub(crate) fn entry_ids(&self) -> BTreeMap<String, String> {
        let table = self.json(&["route", "list"]);
        let entries = table["entries"].as_array().unwrap().iter();
        entries
            .filter(|entry| entry["custom"] == true)
            .map(|entry| (string(&entry["destination"]), string(&entry["id"])))
            .collect()
    }

    /// Destinations and next hops of the custom entries of a table that packets follow.
    pub(crate) fn entries_of(&self, table: &str) -> BTreeSet<(String, String)> {
        let tables = self.json(&["table", "list"]);
        let table = tables.as_array().unwrap().iter().find(|each| each["id"] == table).unwrap().clone();
        let entries = table["entries"].as_array().unwrap().iter();
        entries
            .filter(|entry| entry["custom"] == true && entry["status"] == "Available")
            .map(|entry| (string(&entry["destination"]), string(&entry["nextHop"])))
            .collect()
    }

    /// What a table should have: every node's subnet, by its instance.
    pub(crate) fn desired(&self) -> BTreeSet<(String, String)> {
        let status = self.status();
        let nodes = status["nodes"].as_array().unwrap().iter();
        nodes.map(|node| (string(&node["subnet"]), string(&node["instance"]["id"]))).collect()
    }

    /// A node as the status tells of it.
    pub(crate) fn node(&self, name: &str) -> Value {
        let status = self.status();
        let nodes = status["nodes"].as_array().unwrap();
        nodes
            .iter()
            .find(|node| node["instance"]["name"] == name)
            .unwrap_or_else(|| panic!("no {name}"))
            .clone()
    }

    /// A pod's address.
    pub(crate) fn address_of(&self, pod: &str) -> String {
        string(&self.pod(pod)["address"])
    }

    /// A pod as the status tells of it.
    pub(crate) fn pod(&self, name: &str) -> Value {
        let status = self.status();
        let pods = status["pods"].as_array().unwrap();
        pods.iter().find(|pod| pod["name"] == name).unwrap_or_else(|| panic!("no {name}")).clone()
    }

    /// How often the cloud was asked for a change, by action.
    pub(crate) fn writes(&self) -> BTreeMap<String, u64> {
        let counted = self.json(&["calls"]);
        let counted = counted.as_object().unwrap().iter();
        let mut calls: BTreeMap<String, u64> =
            counted.map(|(action, each)| (action.clone(), each["calls"].as_u64().unwrap())).collect();
        calls.retain(|action, _| {
            !action.starts_with("Describe") && !action.starts_with("List") && !action.starts_with("Get")
        });
        calls
    }

    /// Waits until the controller has listed the system table twice more: it has then seen all that was there when this was called.
    pub(crate) fn wait_audit(&self) {
        let listings = || self.json(&["calls"])["DescribeRouteEntryList"]["calls"].as_u64().unwrap_or(0);
        let before = listings();
        wait_until("two more listings", listings, |count| *count >= before + 2);
    }

    /// Waits until an event of that reason was told whose message has these words.
    pub(crate) fn wait_event(&self, reason: &str, words: &[&str]) {
        let told = |events: &Vec<(String, String)>| {
            let fits = |message: &str| words.iter().all(|word| message.contains(word));
            events.iter().any(|(found, message)| found == reason && fits(message))
        };
        wait_until(&format!("event {reason} with {words:?}"), || self.events(), told);
    }

    /// Reasons and messages of the cluster's events.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let events = self.json(&["events"]);
        events
            .as_array()
            .unwrap()
            .iter()
            .map(|event| (string(&event["reason"]), string(&event["message"])))
            .collect()
    }

    /// Everything of this lab that is on the machine.
    pub(crate) fn remains(&self) -> Vec<String> {
        let mut found = Vec::new();
        let prefix = format!("loden-{}-", self.name);
        if let Ok(entries) = std::fs::read_dir("/run/netns") {
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            found.extend(
                names.filter(|name| name.starts_with(&prefix)).map(|name| format!("namespace {name}")),
            );
        }
        let directory = format!("/run/loden/labs/{}", self.name);
        if Path::new(&directory).exists() {
            found.push(directory);
        }
        found.extend(self.processes().into_iter().map(|pid| format!("process {pid}")));
        found
    }

    /// Living processes that carry the lab's name in their environment or on their command line.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mark = format!("LODEN_LAB_MEMBER={}", self.name);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let marked = read("environ").split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes());
            if marked && !String::from_utf8_lossy(&read("stat")).contains(") Z ") {
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let output = self.loden(&["down"]);
        if !output.status.success() && !std::thread::panicking() {
            panic!("lab down: {}", text(&output));
        }
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// Looks until the condition holds; otherwise fails and says what was found last.
pub(crate) fn wait_until<T: std::fmt::Debug>(
    what: &str,
    look: impl Fn() -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    let begun = Instant::now();
    loop {
        let found = look();
        if holds(&found) {
            return found;
        }
        assert!(begun.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}: {found:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
