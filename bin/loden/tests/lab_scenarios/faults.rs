//! The cloud has trouble; when it is over, everything is as it should be.

use std::collections::BTreeSet;
use std::process::{Child, Stdio};

use crate::support::{Lab, string, text, wait_until};

/// More calls than any of these tests makes; what is left tells how many were hit.
const MANY: &str = "100000";

/// What is put between `fault add` and the count, one kind of trouble after the other.
const TROUBLES: [&[&str]; 4] =
    [&["throttled"], &["throttled", "--retry-after", "1"], &["error"], &["slow", "--delay", "700"]];
const LOSSES: [&[&str]; 4] =
    [&["lose-call"], &["lose-answer"], &["stale"], &["partial", "--destination", "172.20.0.0/26"]];

#[test]
fn refused_and_slow_calls_only_delay() {
    live_through(&TROUBLES);
}

#[test]
fn lost_calls_stale_lists_and_half_done_batches_only_delay() {
    live_through(&LOSSES);
}

/// Under each trouble a node joins while an entry is taken away by hand, and then the node leaves. Nobody restarts anything.
fn live_through(troubles: &[&[&str]]) {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    let controller = lab.status()["clusters"][0]["controller"].clone();
    let first = string(&lab.status()["nodes"][0]["subnet"]);
    assert_eq!(first, "172.20.0.0/26", "the destination that `partial` names");
    for trouble in troubles {
        begin(&lab, trouble);
        lab.json(&["route", "remove", &first]);
        let joining = start(&lab, &["node", "add", "node-3"]);
        end(&lab, trouble, joining);
        wait_until("every node available", || unavailable(&lab), BTreeSet::is_empty);
        wait_until(
            "the desired entries",
            || (lab.entries(), desired(&lab)),
            |(found, wanted)| found == wanted,
        );

        begin(&lab, trouble);
        let leaving = start(&lab, &["node", "remove", "node-3"]);
        // Nobody makes a batch for one entry that goes.
        if trouble[0] == "partial" {
            lab.json(&["fault", "clear"]);
            finish(leaving, trouble);
        } else {
            end(&lab, trouble, leaving);
        }
        wait_until(
            "the desired entries",
            || (lab.entries(), desired(&lab)),
            |(found, wanted)| found == wanted,
        );
    }
    assert_eq!(lab.status()["clusters"][0]["controller"], controller, "no restart may be needed");
    lab.assert_green();
}

fn begin(lab: &Lab, trouble: &[&str]) {
    lab.json(&[&["fault", "add"], trouble, &["--times", MANY]].concat());
}

/// Waits until the trouble was felt several times, ends it, and sees that what was begun under it comes to its end.
fn end(lab: &Lab, trouble: &[&str], begun: Child) {
    let left = || lab.json(&["fault", "list"])[0]["times"].as_u64().unwrap();
    let all: u64 = MANY.parse().unwrap();
    wait_until(&format!("calls hit by {trouble:?}"), left, |left| *left + 3 <= all);
    lab.json(&["fault", "clear"]);
    finish(begun, trouble);
}

fn start(lab: &Lab, arguments: &[&str]) -> Child {
    lab.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn finish(begun: Child, trouble: &[&str]) {
    let output = begun.wait_with_output().unwrap();
    assert!(output.status.success(), "under {trouble:?}: {}", text(&output));
}

/// Nodes that are not available, with the reason.
fn unavailable(lab: &Lab) -> BTreeSet<String> {
    let status = lab.status();
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes
        .filter(|node| node["networkUnavailable"]["status"] != "False")
        .map(|node| format!("{}: {}", node["instance"]["name"], node["networkUnavailable"]["message"]))
        .collect()
}

/// Every node's subnet, by its instance.
fn desired(lab: &Lab) -> BTreeSet<(String, String)> {
    let status = lab.status();
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes.map(|node| (string(&node["subnet"]), string(&node["instance"]["id"]))).collect()
}
