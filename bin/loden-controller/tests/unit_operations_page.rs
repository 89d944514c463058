//! `docs/operations.md`, the alert rules and the dashboard, held against the code: nothing is told that is not explained, and nothing is asked for that is not told.

#![expect(clippy::unwrap_used, reason = "a test that cannot read what it compares must say where it failed")]

mod support;

use std::collections::BTreeSet;

use loden_cloud::CloudConfig;
use serde_json::Value;
use support::operations::{alerts, repository, rust_sources};

/// Words in CamelCase in the sources below that are no reason of an Event or a condition.
const NO_REASONS: &[&str] = &[
    // What backends are set up with.
    "DirectRouting",
    "IPv6Network",
    // Next-hop types of the API.
    "HaVip",
    "NetworkInterface",
    // Types of a node's addresses.
    "ExternalIP",
    "InternalIP",
    // Names of address families in sentences.
    "IPv4",
    "IPv6",
];

/// What becomes Events and conditions.
const TELLERS: &[&str] = &[
    "core/addr/src",
    "core/nodes/src",
    "core/routes/src",
    "shell/controller/src",
    "shell/daemon/src",
    "bin/loden-controller/src",
    "bin/flanneld/src",
];

fn page() -> String {
    std::fs::read_to_string(repository("docs/operations.md")).unwrap()
}

/// Whether a text looks like a reason: one word with capitals inside.
fn is_reason(text: &str) -> bool {
    text.len() >= 4
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
        && text.chars().filter(char::is_ascii_uppercase).count() >= 2
        && text.chars().any(|c| c.is_ascii_lowercase())
}

#[test]
fn every_reason_is_explained() {
    let page = page();
    let mut found = BTreeSet::new();
    for (path, code) in TELLERS.iter().flat_map(|place| rust_sources(place)) {
        for literal in code.split('"').skip(1).step_by(2).filter(|text| is_reason(text)) {
            found.insert((literal.to_owned(), path.clone()));
        }
    }
    assert!(found.len() > 30, "the search itself went wrong: {found:?}");
    let missing: Vec<_> = found
        .iter()
        .filter(|(reason, _)| {
            !NO_REASONS.contains(&reason.as_str()) && !page.contains(&format!("`{reason}`"))
        })
        .collect();
    assert!(missing.is_empty(), "docs/operations.md does not explain {missing:?}");
}

/// Every metric's name without the suffixes that its type adds, as it is registered.
fn registered() -> BTreeSet<String> {
    let of = |file: &str, prefix: &str| -> BTreeSet<String> {
        let (_, code) = rust_sources(file).remove(0);
        let after = code.split("registry.register(").skip(1);
        after.map(|rest| format!("{prefix}{}", rest.split('"').nth(1).unwrap())).collect()
    };
    let own = of("shell/controller/src/metrics.rs", "loden_");
    own.into_iter().chain(of("shell/controller/src/process.rs", "")).collect()
}

/// Names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_metric = |word: &&str| ["loden_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    text.split(|c| !word(c)).filter(is_metric).map(str::to_owned).collect()
}

fn base(name: &str) -> &str {
    let suffixes = ["_total", "_bucket", "_sum", "_count", "_info"];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

#[test]
fn metrics_are_explained_and_nothing_asks_for_others() {
    let registered = registered();
    assert!(registered.len() >= 16, "{registered:?}");
    let explained: BTreeSet<String> = named(&page()).iter().map(|name| base(name).to_owned()).collect();
    assert_eq!(explained, registered, "docs/operations.md and the metrics");
    let rules: Vec<String> =
        alerts().into_iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(repository("deploy/dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<String> = queries.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    assert!(rules.len() >= 10 && queries.len() >= 15);
    for query in rules.iter().chain(&queries) {
        let names = named(query);
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(registered.contains(base(&name)), "{name} in {query} is no metric of the controller");
        }
    }
}

#[test]
fn every_alert_has_a_runbook() {
    let page = page();
    for rule in alerts() {
        let name = rule["alert"].as_str().unwrap();
        let heading = format!("\n### {name}\n");
        let (_, text) = page.split_once(&heading).unwrap_or_else(|| panic!("no heading for {name}"));
        assert!(text.trim_start().len() > 80, "{name} has no runbook");
        let link = format!("docs/operations.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], link.as_str(), "{name}");
        assert!(rule["labels"]["severity"].is_string() && rule["annotations"]["summary"].is_string());
    }
}

#[test]
fn the_example_of_a_cloud_config_is_one() {
    let text = std::fs::read_to_string(repository("deploy/cloud-config.yaml")).unwrap();
    let map: Value = serde_saphyr::from_str(&text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloud-config.conf");
    std::fs::write(&file, map["data"]["cloud-config.conf"].as_str().expect("the file")).unwrap();
    let config = CloudConfig::read(&file).unwrap();
    assert_eq!((config.remarks.len(), config.route_table_ids.len()), (0, 2), "{config:?}");
}
