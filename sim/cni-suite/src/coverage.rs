//! The table of (plugin, configuration key, command) and the cases that cover each cell.
//!
//! Which keys there are, and which commands read them, is data of its own (`keys.yaml`, written from the description of the reference
//! plugins). A cell is filled by cases that name the key among what they cover *and* run the command with the key present; or, where the
//! command does not read the key, by the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::Value;

use crate::Failure;
use crate::case::{Case, Step};

const KEYS: &str = include_str!("../keys.yaml");
const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"];
const HEAD: &str = "\
# What the CNI suite covers

Every configuration key of every plugin, by command: the numbers are those of the cases below each table, which lie in
`sim/cni-suite/cases/<plugin>/`; the letters are reasons why a command does not read a key. *Since* is the release of the reference plugins
from which on a case holds: those up to 1.1.1 run on Debian's Go plugins as well, `loden` marks what Loden does deliberately otherwise.
Written by `cargo xtask cni-coverage`.
";

/// The table, and what is wrong with it.
#[derive(Debug, Clone)]
pub struct Table {
    /// As Markdown.
    pub text: String,
    /// Cells that no case covers and that have no reason to be empty: `plugin key COMMAND`.
    pub empty: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugin {
    plugin: String,
    /// By command, why it does not read a key that does not name it.
    otherwise: BTreeMap<String, String>,
    keys: Vec<Key>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    key: String,
    /// The commands that read it, between spaces.
    read: String,
    /// By command, why it does not read this one, if the plugin's reason does not fit.
    #[serde(default)]
    because: BTreeMap<String, String>,
}

/// The cases that cover a key, by command: numbers in the plugin's list.
type Cells<'a> = BTreeMap<(&'a str, &'static str), BTreeSet<usize>>;

/// Makes the table.
///
/// # Errors
/// When the list of keys cannot be read, or a case claims to cover what it does not touch or what is no key.
pub fn table(cases: &[Case]) -> Result<Table, Failure> {
    let plugins: Vec<Plugin> =
        serde_saphyr::from_str(KEYS).map_err(|error| Failure::new(format!("keys.yaml: {error}")))?;
    let mut table = Table { text: HEAD.to_owned(), empty: Vec::new() };
    for plugin in &plugins {
        let own: Vec<&Case> = cases.iter().filter(|case| case.plugin == plugin.plugin).collect();
        let mut cells = cells(&own)?;
        let implied = plugin.keys.iter().map(|key| key.key.as_str());
        for key in implied.filter(|key| *key == "CNI_COMMAND" || key.starts_with("cniVersion=")) {
            imply(&own, key, &mut cells);
        }
        for (key, _) in cells.keys() {
            if !plugin.keys.iter().any(|known| known.key == *key) {
                return Err(Failure::new(format!("{} has no key {key:?} in keys.yaml", plugin.plugin)));
            }
        }
        draw(plugin, &own, &cells, &mut table);
    }
    let strays: Vec<String> = cases
        .iter()
        .filter(|case| !plugins.iter().any(|plugin| plugin.plugin == case.plugin))
        .map(Case::title)
        .collect();
    if !strays.is_empty() {
        return Err(Failure::new(format!(
            "these cases are of no plugin in keys.yaml: {}",
            strays.join("; ")
        )));
    }
    Ok(table)
}

/// A command, and a version of the configuration, is covered by every case that has it.
fn imply<'a>(cases: &[&Case], key: &'a str, cells: &mut Cells<'a>) {
    for (n, case) in cases.iter().enumerate() {
        for (at, step) in case.steps.iter().enumerate() {
            if let Some((command, _)) = step.call()
                && step.plugin.as_ref().is_none_or(|name| *name == case.plugin)
                && present(case, at, step, key)
            {
                cells.entry((key, command)).or_default().insert(n + 1);
            }
        }
    }
}

fn cells<'a>(cases: &[&'a Case]) -> Result<Cells<'a>, Failure> {
    let mut cells = Cells::new();
    for (n, case) in cases.iter().enumerate() {
        for key in &case.covers {
            let mut touched = false;
            for (at, step) in case.steps.iter().enumerate() {
                let Some((command, _)) = step.call() else { continue };
                if step.plugin.as_ref().is_none_or(|name| *name == case.plugin)
                    && present(case, at, step, key)
                {
                    touched = true;
                    cells.entry((key, command)).or_default().insert(n + 1);
                }
            }
            if !touched {
                return Err(Failure::new(format!(
                    "{} says that it covers {key}, but no step has it",
                    case.title()
                )));
            }
        }
    }
    Ok(cells)
}

/// Whether the key is in what the plugin is given at this step.
fn present(case: &Case, at: usize, step: &Step, key: &str) -> bool {
    let (command, _) = step.call().unzip();
    let command = command.unwrap_or_default();
    if let Some((name, value)) = key.split_once('=') {
        let config = step.configuration(case);
        return match config.get(name).and_then(Value::as_str) {
            Some(found) => found == value,
            None => value.is_empty(),
        };
    }
    if let Some(name) = key.strip_prefix("CNI_ARGS ") {
        let value = step.env.get("CNI_ARGS").and_then(Option::as_ref);
        return value.is_some_and(|text| text.split(';').any(|pair| pair.starts_with(&format!("{name}="))));
    }
    if key.starts_with("CNI_") {
        let always = match key {
            "CNI_COMMAND" | "CNI_PATH" => true,
            "CNI_CONTAINERID" | "CNI_NETNS" | "CNI_IFNAME" => matches!(command, "ADD" | "DEL" | "CHECK"),
            _ => false,
        };
        return always || step.env.contains_key(key);
    }
    let added_before = case.steps.get(..at).unwrap_or_default().iter().any(|step| step.add.is_some());
    if key == "prevResult" && step.prev.as_deref() != Some("none") {
        let libcni = matches!(command, "CHECK" | "DEL") && added_before;
        if libcni || step.prev.as_deref() == Some("last") {
            return true;
        }
    }
    let path: Vec<&str> = key.split('.').collect();
    // Taking a key away is a way to test it.
    if has(&step.with, &path) || has(&case.with, &path) {
        return true;
    }
    let config = match &step.stdin {
        Some(text) => serde_json::from_str(text).unwrap_or(Value::Null),
        None => step.configuration(case),
    };
    has(&config, &path)
}

/// Whether a path leads somewhere, through every entry of a list, in any case of letters.
fn has(value: &Value, path: &[&str]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    match value {
        Value::Array(list) => list.iter().any(|item| has(item, path)),
        Value::Object(map) => {
            // A key may have dots in it itself: `cni.dev/valid-attachments`.
            let whole = path.join(".");
            map.contains_key(&whole)
                || map.iter().any(|(key, item)| key.eq_ignore_ascii_case(first) && has(item, rest))
        }
        _ => false,
    }
}

fn draw(plugin: &Plugin, cases: &[&Case], cells: &Cells<'_>, table: &mut Table) {
    let mut reasons: Vec<&str> = Vec::new();
    let _ = write!(table.text, "\n## {}\n\n| key | {} |\n", plugin.plugin, COMMANDS.join(" | "));
    let _ = writeln!(table.text, "|---|{}", "---|".repeat(COMMANDS.len()));
    for key in &plugin.keys {
        let mut row = format!("| `{}` |", key.key);
        for command in COMMANDS {
            let numbers = cells.get(&(key.key.as_str(), command));
            let mut words: Vec<String> = numbers.into_iter().flatten().map(ToString::to_string).collect();
            let read = key.read.split_whitespace().any(|word| word == command);
            let reason = key.because.get(command).or_else(|| plugin.otherwise.get(command));
            if let Some(reason) = reason.filter(|_| !read) {
                let at = reasons.iter().position(|known| known == reason).unwrap_or_else(|| {
                    reasons.push(reason);
                    reasons.len() - 1
                });
                words.push(letter(at));
            }
            if words.is_empty() {
                table.empty.push(format!("{} {} {command}", plugin.plugin, key.key));
            }
            let _ = write!(row, " {} |", shorten(&words));
        }
        let _ = writeln!(table.text, "{row}");
    }
    if !reasons.is_empty() {
        let _ = writeln!(table.text);
    }
    for (at, reason) in reasons.iter().enumerate() {
        let _ = writeln!(table.text, "- {}: {reason}", letter(at));
    }
    let _ = writeln!(table.text, "\n| | case | file | since |\n|---|---|---|---|");
    for (n, case) in cases.iter().enumerate() {
        let name = case.case.replace('|', "\\|");
        let since = if case.is_pairing() { "with Go's" } else { &case.since };
        let _ = writeln!(table.text, "| {} | {name} | {} | {since} |", n + 1, case.file);
    }
}

/// A, B, C, …
fn letter(at: usize) -> String {
    u8::try_from(at).map_or_else(|_| at.to_string(), |at| char::from(b'A' + at % 26).to_string())
}

/// A cell that names a dozen cases tells no more than one that names six.
fn shorten(words: &[String]) -> String {
    const SHOWN: usize = 8;
    match words.get(..SHOWN) {
        Some(shown) if words.len() > SHOWN => format!("{}, +{}", shown.join(", "), words.len() - SHOWN),
        _ => words.join(", "),
    }
}
