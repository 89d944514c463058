//! What a case is, and how it is read.
//!
//! A file holds the plugin, the configuration that its cases start from, and the cases:
//!
//! ```yaml
//! plugin: host-local
//! config: {cniVersion: "1.0.0", name: net, type: host-local, ipam: {type: host-local, subnet: 10.1.2.0/24}}
//! cases:
//!   - case: the first free address is taken, and given back
//!     covers: [ipam.subnet]
//!     steps:
//!       - ADD: {result: {cniVersion: "1.0.0", ips: [{address: 10.1.2.2/24, gateway: 10.1.2.1}]}}
//!         files: {/var/lib/cni/networks/net/10.1.2.2: "c1\r\neth0"}
//!       - DEL: ok
//!         files: {/var/lib/cni/networks/net/10.1.2.2: absent}
//! ```
//!
//! `each` makes one case out of every row: `$key` stands for the row's value, wherever it occurs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Failure;

/// A release of the plugins; what a case's expectation holds since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// A release of the reference plugins.
    Go([u16; 3]),
    /// Loden's: all that the reference does, and what is deliberately different.
    Loden,
}

impl Release {
    /// `1.1.1` or `loden`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        if text == "loden" {
            return Ok(Self::Loden);
        }
        let numbers: Vec<u16> = text.split('.').filter_map(|part| part.parse().ok()).collect();
        <[u16; 3]>::try_from(numbers)
            .map(Self::Go)
            .map_err(|_| Failure::new(format!("{text:?} is no release: write `1.1.1` or `loden`")))
    }

    /// Whether the plugins print `"dns": {}` in results of every version, as they did before 1.2.0.
    pub(crate) fn always_prints_dns(self) -> bool {
        self < Self::Go([1, 2, 0])
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Go([major, minor, patch]) => write!(f, "{major}.{minor}.{patch}"),
            Self::Loden => write!(f, "loden"),
        }
    }
}

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    plugin: String,
    #[serde(default = "first_release")]
    since: String,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    given: Given,
    cases: Vec<Value>,
}

/// One case.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows, in words.
    pub case: String,
    /// The plugin that steps call unless they say otherwise.
    #[serde(default)]
    pub plugin: String,
    /// Since which release of the reference plugins the expectation holds.
    #[serde(default)]
    pub since: String,
    /// The configuration keys it covers (for each command that one of its steps runs with the key present).
    #[serde(default)]
    pub covers: Vec<String>,
    /// Changes to the file's configuration; `null` takes a key away.
    #[serde(default)]
    pub with: Value,
    /// The configuration: the file's with the changes.
    #[serde(default)]
    pub config: Value,
    /// The starting state.
    #[serde(default)]
    pub given: Given,
    /// What is done and what must come of it.
    pub steps: Vec<Step>,
    /// The file it stands in, with its folder and without its ending.
    #[serde(default)]
    pub file: String,
}

/// A starting state: commands for the shell, and files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Run on the node.
    #[serde(default)]
    pub host: Vec<String>,
    /// Run in the pod's network namespace.
    #[serde(default)]
    pub pod: Vec<String>,
    /// Files and their content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// Which variant of iptables the machine's `iptables` is: `nft` (Debian's choice) or `legacy`.
    #[serde(default)]
    pub iptables: Option<String>,
}

/// One call of a plugin, or none, and what is looked at afterwards.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// `CNI_COMMAND` ADD and what it must answer.
    #[serde(rename = "ADD", default, skip_serializing_if = "Option::is_none")]
    pub add: Option<Expect>,
    /// As `ADD`.
    #[serde(rename = "DEL", default, skip_serializing_if = "Option::is_none")]
    pub del: Option<Expect>,
    /// As `ADD`.
    #[serde(rename = "CHECK", default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Expect>,
    /// As `ADD`.
    #[serde(rename = "STATUS", default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Expect>,
    /// As `ADD`.
    #[serde(rename = "GC", default, skip_serializing_if = "Option::is_none")]
    pub gc: Option<Expect>,
    /// As `ADD`.
    #[serde(rename = "VERSION", default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Expect>,
    /// For older releases the step is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Another plugin than the case's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Whose plugin: `ours` (the directory under test) or `go` (the peer's). A case with such a step is a pairing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Changes to the case's configuration for this call.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub with: Value,
    /// Another configuration than the case's.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub config: Value,
    /// This very text as standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Variables of the environment; `null` unsets one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Option<String>>,
    /// The container's ID; `c1` unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The container's interface; `eth0` unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// The container's network namespace: `pod` (the default) or any other name, made when first used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// `last`: give this container's last result as `prevResult`; `none`: give none. Unless said, CHECK and DEL get it as from libcni, ADD
    /// does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev: Option<String>,
    /// Commands run on the node before the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<String>,
    /// Commands run in the pod before the call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_in_pod: Vec<String>,
    /// Commands for the shell on the node, and what they must print.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host: BTreeMap<String, Print>,
    /// The same in the pod's network namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub in_pod: BTreeMap<String, Print>,
    /// Files (or directories) and what they must hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileState>,
    /// Take a picture of the node under this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remember: Option<String>,
    /// The node must be as in the picture of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unchanged_since: Option<String>,
}

/// What a plugin must answer. `*` stands for anything in every text but `stdout`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Expect {
    /// `ok`: success; ADD prints a result of the configuration's version, the others print nothing.
    Word(String),
    /// Success, with this JSON on standard output.
    Result {
        /// The JSON; every key counts.
        result: Value,
    },
    /// Exit code 1 and an error object on standard output.
    Error {
        /// Its code.
        code: u64,
        /// Its message.
        msg: String,
        /// Its details, if they matter.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        details: Option<String>,
    },
    /// Success and these very texts.
    Text {
        /// Standard output to the byte.
        stdout: String,
        /// What standard error says, with `*`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stderr: Option<String>,
    },
}

/// What a command must print: spaces count as one, `*` stands for anything within a line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Print {
    /// This is somewhere in it.
    Has(String),
    /// All of these are.
    HasAll(Vec<String>),
    /// More exactly.
    Rules(PrintRules),
}

/// What a command must print, in detail.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrintRules {
    /// The whole of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is: Option<String>,
    /// Each of these occurs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub has: Vec<String>,
    /// None of these occurs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<String>,
    /// These occur in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<String>,
    /// A text and how often it occurs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub times: BTreeMap<String, usize>,
}

/// What a file must hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FileState {
    /// `absent`; `there`; or the content, to the byte.
    Text(String),
    /// In detail.
    Rules {
        /// The content, to the byte.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// The content as JSON.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        json: Option<Value>,
        /// The permissions, in octal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<String>,
    },
}

impl Case {
    /// What it is about, for people: `host-local (host-local/basic): the first free address`.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} ({}): {}", self.plugin, self.file, self.case)
    }

    /// Whether two directories of plugins take part.
    #[must_use]
    pub fn is_pairing(&self) -> bool {
        self.steps.iter().any(|step| step.by.is_some())
    }
}

impl Step {
    /// The command and what is expected of it, if the step calls a plugin.
    #[must_use]
    pub fn call(&self) -> Option<(&'static str, &Expect)> {
        let all = [
            ("ADD", &self.add),
            ("DEL", &self.del),
            ("CHECK", &self.check),
            ("STATUS", &self.status),
            ("GC", &self.gc),
            ("VERSION", &self.version),
        ];
        all.into_iter().find_map(|(command, expect)| Some((command, expect.as_ref()?)))
    }

    /// The configuration of this call.
    #[must_use]
    pub fn configuration(&self, case: &Case) -> Value {
        let mut config = if self.config.is_null() { case.config.clone() } else { self.config.clone() };
        merge(&mut config, &self.with);
        config
    }
}

/// Every case below `folder`, in the order of the files' names.
///
/// # Errors
/// Names the file that cannot be read or understood.
pub fn read_all(folder: &Path) -> Result<Vec<Case>, Failure> {
    let mut cases = Vec::new();
    for plugin in sorted(folder)?.into_iter().filter(|path| path.is_dir()) {
        for path in sorted(&plugin)? {
            let told = |what: String| Failure::new(format!("{}: {what}", path.display()));
            let text = fs::read_to_string(&path).map_err(|error| told(error.to_string()))?;
            let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            cases.extend(
                parse(&text, &format!("{}/{}", name(&plugin), name(&path))).map_err(|error| told(error.0))?,
            );
        }
    }
    Ok(cases)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| Failure::new(format!("cannot list {}: {error}", folder.display()));
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// The cases of one file.
fn parse(text: &str, place: &str) -> Result<Vec<Case>, Failure> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| Failure::new(error.to_string()))?;
    let mut cases = Vec::new();
    for mut raw in file.cases {
        let name = raw.get("case").and_then(Value::as_str).unwrap_or("(without a name)").to_owned();
        let told = |what: String| Failure::new(format!("case {name:?}: {what}"));
        let rows = match raw.as_object_mut().and_then(|map| map.remove("each")) {
            None => vec![Map::new()],
            Some(rows) => serde_json::from_value(rows).map_err(|error| told(error.to_string()))?,
        };
        for (n, row) in rows.iter().enumerate() {
            let mut case: Case =
                serde_json::from_value(fill(&raw, row)).map_err(|error| told(error.to_string()))?;
            if !row.is_empty() && name == case.case {
                let told =
                    |value: &&Value| !value.is_array() && !value.is_object() && plain(value).len() < 40;
                let values: Vec<String> = row.values().filter(told).map(plain).collect();
                case.case = format!("{name} (row {}: {})", n + 1, values.join(", "));
            }
            place.clone_into(&mut case.file);
            case.plugin = or(case.plugin, &file.plugin);
            case.since = or(case.since, &file.since);
            Release::parse(&case.since).map_err(|error| told(error.0))?;
            for since in case.steps.iter().filter_map(|step| step.since.as_ref()) {
                Release::parse(since).map_err(|error| told(error.0))?;
            }
            if case.config.is_null() {
                case.config = file.config.clone();
            }
            merge(&mut case.config, &case.with);
            case.given.host.splice(0..0, file.given.host.clone());
            case.given.pod.splice(0..0, file.given.pod.clone());
            for (path, content) in &file.given.files {
                case.given.files.entry(path.clone()).or_insert_with(|| content.clone());
            }
            if case.given.iptables.is_none() {
                case.given.iptables.clone_from(&file.given.iptables);
            }
            cases.push(case);
        }
    }
    Ok(cases)
}

fn or(text: String, other: &str) -> String {
    if text.is_empty() { other.to_owned() } else { text }
}

fn first_release() -> String {
    "1.1.1".to_owned()
}

/// `value` with `$key` replaced by the row's value; a text that is nothing else takes the value's own type.
pub(crate) fn fill(value: &Value, row: &Map<String, Value>) -> Value {
    match value {
        Value::String(text) => {
            if let Some(whole) = text.strip_prefix('$').and_then(|key| row.get(key)) {
                return whole.clone();
            }
            Value::String(fill_text(text, row))
        }
        Value::Array(list) => list.iter().map(|item| fill(item, row)).collect(),
        Value::Object(map) => map.iter().map(|(key, item)| (fill_text(key, row), fill(item, row))).collect(),
        other => other.clone(),
    }
}

/// Longer keys first, so that `$name` does not eat `$names`.
pub(crate) fn fill_text(text: &str, row: &Map<String, Value>) -> String {
    let mut keys: Vec<&String> = row.keys().collect();
    keys.sort_by_key(|key| std::cmp::Reverse(key.len()));
    let mut text = text.to_owned();
    for key in keys {
        if let Some(value) = row.get(key) {
            text = text.replace(&format!("${key}"), &plain(value));
        }
    }
    text
}

/// A value as it stands in a sentence.
pub(crate) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Puts the keys of `changes` into `config`; `null` takes one away.
pub(crate) fn merge(config: &mut Value, changes: &Value) {
    let Value::Object(changes) = changes else { return };
    if !config.is_object() {
        *config = Value::Object(Map::new());
    }
    let Some(map) = config.as_object_mut() else { return };
    for (key, value) in changes {
        match (map.get_mut(key), value) {
            (_, Value::Null) => {
                map.remove(key);
            }
            (Some(inner @ Value::Object(_)), Value::Object(_)) => merge(inner, value),
            _ => {
                map.insert(key.clone(), value.clone());
            }
        }
    }
}
