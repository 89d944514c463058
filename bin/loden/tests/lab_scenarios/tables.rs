//! Route tables that come while the cluster runs.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::pings::Pings;
use crate::support::{Lab, string, wait_until};

const FIRST: &str = "192.168.0.0/24";
const SECOND: &str = "192.168.1.0/24";

#[test]
fn packets_go_on_when_a_nat_firewall_takes_vswitches_to_its_table() {
    let lab = Lab::up(&["--nodes", "3", "--pods", "1", "--route-table-ids", "discover"]);
    let system = format!("vtb-{}", lab.name);
    let inside = node_in(&lab, SECOND);
    let outside = node_in(&lab, FIRST);
    let pod_on = |node: &str| {
        let status = lab.status();
        let pods = status["pods"].as_array().unwrap();
        string(&pods.iter().find(|pod| pod["node"] == node).unwrap()["name"])
    };
    let (near, far) = (pod_on(&inside), pod_on(&outside));
    let pings = || {
        [Pings::start(&lab, &near, &lab.address_of(&far)), Pings::start(&lab, &far, &lab.address_of(&near))]
    };

    // A table with nothing of ours in it, and a vSwitch on it from one moment to the next. It is found and filled without a word from anybody; until
    // then packets that leave that vSwitch for pods have nowhere to go.
    let running = pings();
    lab.json(&["table", "add", "vtb-firewall"]);
    lab.json(&["table", "use", SECOND, "vtb-firewall"]);
    let complete = |tables: &[&str]| {
        let wanted = lab.desired();
        wait_until(
            &format!("all entries in {tables:?}"),
            || tables.iter().map(|table| lab.entries_of(table)).collect::<Vec<_>>(),
            |found| found.iter().all(|entries| *entries == wanted),
        )
    };
    complete(&[&system, "vtb-firewall"]);
    for pings in running {
        let loss = pings.stop();
        println!("found by discovery: {} ms without an answer", loss.longest_ms);
    }
    lab.wait_event("VSwitchMoved", &["vtb-firewall"]);
    wait_until("every node available", || unavailable(&lab), BTreeSet::is_empty);

    // Scaling out goes on: a new node is in both tables, the system table's vSwitches reach it too.
    lab.json(&["node", "add", "node-4"]);
    lab.json(&["pod", "add", "pod-4", "--node", "node-4"]);
    complete(&[&system, "vtb-firewall"]);
    for from in [&near, &far] {
        Pings::start(&lab, from, &lab.address_of("pod-4")).assert_none_lost();
    }

    // A table that is listed before a vSwitch uses it has every entry by then, and the move loses nothing.
    let running = pings();
    let controller = lab.status()["clusters"][0]["controller"].clone();
    lab.json(&["table", "add", "vtb-planned"]);
    lab.json(&["table", "serve", "vtb-firewall", "vtb-planned"]);
    complete(&[&system, "vtb-firewall", "vtb-planned"]);
    lab.json(&["table", "use", FIRST, "vtb-planned"]);
    // No vSwitch uses the system table any more; it is served all the same.
    lab.json(&["node", "remove", "node-4"]);
    complete(&[&system, "vtb-firewall", "vtb-planned"]);
    for pings in running {
        pings.assert_none_lost();
    }
    wait_until("every node available", || unavailable(&lab), BTreeSet::is_empty);
    lab.wait_event("CloudConfigReloaded", &["vtb-firewall,vtb-planned"]);
    assert_eq!(lab.status()["clusters"][0]["controller"], controller, "no restart may be needed");
    lab.assert_green();
}

/// The first node whose instance is in the vSwitch of that range.
fn node_in(lab: &Lab, range: &str) -> String {
    let status = lab.status();
    let vswitches = status["vpc"]["vswitches"].as_array().unwrap();
    let vswitch = vswitches.iter().find(|vswitch| vswitch["cidr"] == range).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    let within = |node: &&Value| node["instance"]["vswitch"] == vswitch["id"];
    string(&nodes.iter().find(within).unwrap()["instance"]["name"])
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
