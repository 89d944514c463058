//! Playing a case: its steps, one after the other, until one is not as expected.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use loden_residue::{Section, Snapshot};
use serde_json::{Map, Value, json};

use crate::Failure;
use crate::case::{self, Case, Expect, FileState, Print, PrintRules, Release, Step};
use crate::matching;
use crate::room::{PATH, PEER, PLUGINS, Room};

/// What a picture of the node holds besides its network.
const DIRECTORIES: [&str; 3] = ["/var/lib/cni", "/run/cni", "/run/flannel"];

/// Where a played case stands.
#[derive(Debug)]
pub(crate) struct Play<'a> {
    case: &'a Case,
    room: Room,
    release: Release,
    /// By container and interface.
    results: BTreeMap<(String, String), Value>,
    pictures: BTreeMap<String, Snapshot>,
    /// `$veth`, `$ifb`, `$mac`: what is random in the last result.
    names: Map<String, Value>,
}

impl<'a> Play<'a> {
    pub(crate) fn new(case: &'a Case, room: Room, release: Release) -> Self {
        Self { case, room, release, results: BTreeMap::new(), pictures: BTreeMap::new(), names: Map::new() }
    }

    /// Plays the case to its end.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        self.room.pod("pod")?;
        for (path, content) in &self.case.given.files {
            write(path, content)?;
        }
        for line in &self.case.given.host {
            self.room.shell(None, line)?;
        }
        for line in &self.case.given.pod {
            self.room.shell(Some("pod"), line)?;
        }
        for (n, step) in self.case.steps.iter().enumerate() {
            if step
                .since
                .as_deref()
                .map(Release::parse)
                .transpose()?
                .is_some_and(|since| since > self.release)
            {
                continue;
            }
            self.step(step).map_err(|error| {
                let command = step.call().map_or("look", |(command, _)| command);
                Failure::new(format!("step {} ({command}): {error}", n + 1))
            })?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Failure> {
        let pod = step.pod.as_deref().unwrap_or("pod");
        for (place, lines) in [(None, &step.first), (Some(pod), &step.first_in_pod)] {
            for line in lines {
                self.room.shell(place, &case::fill_text(line, &self.names))?;
            }
        }
        if let Some((command, expect)) = step.call() {
            let config = self.configuration(step, command);
            let output = self.call(step, command, &config)?;
            self.judge(step, command, expect, &config, &output).map_err(|error| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
                Failure::new(format!(
                    "{error}\n  config: {config}\n  exit: {}\n  stdout: {}\n  stderr: {}",
                    output.status,
                    text(&output.stdout),
                    text(&output.stderr)
                ))
            })?;
        }
        for (place, prints) in [(None, &step.host), (Some(pod), &step.in_pod)] {
            for (line, print) in prints {
                self.look(place, line, print)?;
            }
        }
        for (path, state) in &step.files {
            file(path, state)?;
        }
        self.compare(step)
    }

    fn compare(&mut self, step: &Step) -> Result<(), Failure> {
        if let Some(name) = &step.remember {
            self.pictures.insert(name.clone(), picture()?);
        }
        if let Some(name) = &step.unchanged_since {
            let before = self
                .pictures
                .get(name)
                .ok_or_else(|| Failure::new(format!("no picture is called {name:?}")))?;
            // A link that is deleted with its namespace goes a little later.
            let mut after = picture()?;
            for _ in 0..40 {
                if before.diff(&after).is_empty() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
                after = picture()?;
            }
            let difference = before.diff(&after);
            if !difference.is_empty() {
                return Err(Failure::new(format!("the node is not as it was at {name:?}:\n{difference}")));
            }
        }
        Ok(())
    }

    fn key(step: &Step) -> (String, String) {
        let or = |text: &Option<String>, other: &str| text.clone().unwrap_or_else(|| other.to_owned());
        (or(&step.container, "c1"), or(&step.ifname, "eth0"))
    }

    /// The configuration with `prevResult` as libcni gives it.
    fn configuration(&self, step: &Step, command: &str) -> Value {
        let mut config = case::fill(&step.configuration(self.case), &self.names);
        let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or("0.1.0");
        let libcni = command == "CHECK"
            || (command == "DEL" && !matches!(version, "" | "0.1.0" | "0.2.0" | "0.3.0" | "0.3.1"));
        let wanted = match step.prev.as_deref() {
            Some("last") => true,
            Some(_) => false,
            None => libcni && config.get("prevResult").is_none(),
        };
        if wanted
            && let Some(result) = self.results.get(&Self::key(step))
            && let Some(map) = config.as_object_mut()
        {
            map.insert("prevResult".to_owned(), result.clone());
        }
        config
    }

    fn call(&self, step: &Step, command: &str, config: &Value) -> Result<Output, Failure> {
        let directory = if step.by.as_deref() == Some("go") { PEER } else { PLUGINS };
        let plugin = step.plugin.as_deref().unwrap_or(&self.case.plugin);
        let program = Path::new(directory).join(plugin);
        let (container, ifname) = Self::key(step);
        let mut words = Command::new(&program);
        words.env_clear().env("PATH", PATH).env("CNI_COMMAND", command).env("CNI_PATH", directory);
        if matches!(command, "ADD" | "DEL" | "CHECK") {
            let netns = self.room.pod(step.pod.as_deref().unwrap_or("pod"))?;
            words.env("CNI_CONTAINERID", container).env("CNI_IFNAME", ifname).env("CNI_NETNS", netns);
        }
        for (name, value) in &step.env {
            match value {
                Some(value) => words.env(name, value.replace("$PLUGINS", directory)),
                None => words.env_remove(name),
            };
        }
        let failed = |error| Failure::new(format!("cannot run {}: {error}", program.display()));
        let mut child = words
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let text = step.stdin.clone().unwrap_or_else(|| config.to_string());
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that refuses its environment does not read its configuration.
            let _ = stdin.write_all(text.as_bytes());
        }
        child.wait_with_output().map_err(failed)
    }

    fn judge(
        &mut self,
        step: &Step,
        command: &str,
        expect: &Expect,
        config: &Value,
        output: &Output,
    ) -> Result<(), Failure> {
        let stdout =
            std::str::from_utf8(&output.stdout).map_err(|_| Failure::new("standard output is not UTF-8"))?;
        let code = output.status.code();
        let wanted = i32::from(matches!(expect, Expect::Error { .. }));
        if code != Some(wanted) {
            return Err(Failure::new(format!("exit code {wanted} was expected")));
        }
        let read = || {
            serde_json::from_str::<Value>(stdout)
                .map_err(|error| Failure::new(format!("standard output is not JSON: {error}")))
        };
        let mut told = Vec::new();
        match expect {
            Expect::Word(word) if word == "ok" => {
                if command == "ADD" {
                    let result = read()?;
                    let version = config.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
                    let version = if version.is_empty() { "0.1.0" } else { version };
                    if result.get("cniVersion") != Some(&json!(version)) {
                        told.push(format!("the result's version is not {version}"));
                    }
                } else if command == "VERSION" {
                    read()?;
                } else if !stdout.is_empty() {
                    told.push("nothing was expected on standard output".to_owned());
                }
            }
            Expect::Word(word) => return Err(Failure::new(format!("{word:?} is no expectation; `ok` is"))),
            Expect::Result { result } => {
                matching::json(&case::fill(result, &self.names), &self.comparable(read()?), "", &mut told);
            }
            Expect::Error { code, msg, details } => {
                let error = read()?;
                let text = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
                let msg = case::fill_text(msg, &self.names);
                if error.get("code") != Some(&json!(code)) || !matching::glob(&msg, text("msg")) {
                    told.push(format!("expected error {code} {msg:?}"));
                }
                if let Some(details) = details
                    && !matching::glob(details, text("details"))
                {
                    told.push(format!("expected details {details:?}"));
                }
            }
            Expect::Text { stdout: wanted, stderr } => {
                if wanted != stdout {
                    told.push(format!("expected on standard output: {wanted:?}"));
                }
                let found = String::from_utf8_lossy(&output.stderr);
                if let Some(stderr) = stderr
                    && !matching::glob(stderr, &found)
                {
                    told.push(format!("expected on standard error: {stderr:?}"));
                }
            }
        }
        if !told.is_empty() {
            return Err(Failure::new(told.join("\n")));
        }
        let result = !matches!(expect, Expect::Text { .. });
        if result && command == "ADD" && code == Some(0) {
            self.keep(step, read()?);
        }
        Ok(())
    }

    /// A result as its own version prints it: old releases have an empty `dns` in all of them.
    fn comparable(&self, mut result: Value) -> Value {
        let new = result.get("cniVersion").and_then(Value::as_str).is_some_and(|version| version >= "1.");
        if new
            && self.release.always_prints_dns()
            && result.get("dns") == Some(&json!({}))
            && let Some(map) = result.as_object_mut()
        {
            map.remove("dns");
        }
        result
    }

    fn keep(&mut self, step: &Step, result: Value) {
        let interfaces = result.get("interfaces").and_then(Value::as_array);
        for interface in interfaces.into_iter().flatten() {
            let text = |key: &str| interface.get(key).and_then(Value::as_str).unwrap_or_default();
            if !text("sandbox").is_empty() {
                self.names.insert("mac".to_owned(), json!(text("mac")));
            } else if text("name").starts_with("veth") {
                self.names.insert("veth".to_owned(), json!(text("name")));
            } else if text("name").starts_with("bwp") {
                self.names.insert("ifb".to_owned(), json!(text("name")));
            }
        }
        self.results.insert(Self::key(step), result);
    }

    fn look(&self, place: Option<&str>, line: &str, print: &Print) -> Result<(), Failure> {
        let line = case::fill_text(line, &self.names);
        let text = self.room.shell(place, &line)?;
        let rules = match print {
            Print::Has(text) => PrintRules { has: vec![text.clone()], ..none() },
            Print::HasAll(texts) => PrintRules { has: texts.clone(), ..none() },
            Print::Rules(rules) => rules.clone(),
        };
        let rules = serde_json::to_value(&rules).map(|value| case::fill(&value, &self.names));
        let rules = rules.and_then(serde_json::from_value::<PrintRules>);
        let rules = rules.map_err(|error| Failure::new(error.to_string()))?;
        let told = matching::print(&rules, &text);
        if told.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("`{line}`: {}\n  it printed:\n{}", told.join("; "), text.trim_end())))
    }
}

fn none() -> PrintRules {
    PrintRules { is: None, has: Vec::new(), lacks: Vec::new(), order: Vec::new(), times: BTreeMap::new() }
}

fn picture() -> Result<Snapshot, Failure> {
    let snapshot = Snapshot::here(&DIRECTORIES).map_err(|error| Failure::new(error.to_string()))?;
    // Neighbour discovery and membership of multicast groups are not the plugins' doing.
    let by_itself =
        |line: &str| line.contains("icmpv6") || line.contains("dst=224.") || line.contains("dst=ff0");
    Ok(snapshot.without(Section::Connections, by_itself))
}

fn write(path: &str, content: &str) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("cannot write {path}: {error}"));
    if let Some(parent) = Path::new(path).parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::write(path, content).map_err(failed)
}

fn file(path: &str, state: &FileState) -> Result<(), Failure> {
    let found = fs::read(path);
    let read = || -> Result<String, Failure> {
        match fs::read(path) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => Err(Failure::new(format!("{path} cannot be read: {error}"))),
        }
    };
    let is = |text: &str| -> Result<(), Failure> {
        let found = read()?;
        if found == text {
            return Ok(());
        }
        Err(Failure::new(format!("{path} holds {found:?}, expected {text:?}")))
    };
    match state {
        FileState::Text(word) if word == "absent" => {
            if fs::symlink_metadata(path).is_ok() {
                let content = found.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                return Err(Failure::new(format!("{path} must not be there; it holds {content:?}")));
            }
        }
        FileState::Text(word) if word == "there" => {
            fs::symlink_metadata(path)
                .map_err(|error| Failure::new(format!("{path} must be there: {error}")))?;
        }
        FileState::Text(text) => is(text)?,
        FileState::Rules { text, json, mode } => {
            if let Some(text) = text {
                is(text)?;
            }
            if let Some(wanted) = json {
                let found = serde_json::from_str(&read()?)
                    .map_err(|error| Failure::new(format!("{path} is not JSON: {error}")))?;
                let mut told = Vec::new();
                matching::json(wanted, &found, "", &mut told);
                if !told.is_empty() {
                    return Err(Failure::new(format!("{path}: {}", told.join("; "))));
                }
            }
            if let Some(mode) = mode {
                let metadata = fs::metadata(path)
                    .map_err(|error| Failure::new(format!("{path} must be there: {error}")))?;
                let found = format!("{:04o}", metadata.permissions().mode() & 0o7777);
                if *mode != found {
                    return Err(Failure::new(format!("{path} has mode {found}, expected {mode}")));
                }
            }
        }
    }
    Ok(())
}
