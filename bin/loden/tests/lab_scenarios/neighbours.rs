//! What else is in the VPC: a second route table, a second cluster.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::{Lab, string, text, wait_until};

#[test]
fn nodes_behind_a_second_route_table_wait_until_it_is_served() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1", "--custom-table", "192.168.1.0/24"]);
    let status = lab.status();
    let condition = |name: &str| {
        let status = lab.status();
        let nodes = status["nodes"].as_array().unwrap();
        let node = nodes.iter().find(|node| node["instance"]["name"] == name).unwrap();
        node["networkUnavailable"].clone()
    };
    let custom = format!("vtb-{}-custom", lab.name);
    let behind: Vec<String> =
        vec![in_vswitch(&status, "192.168.0.0/24"), in_vswitch(&status, "192.168.1.0/24")];
    let [first, second] = &behind[..] else { panic!("{behind:?}") };

    // The system table has both nodes' entries; the node that routes by the other table is not called available.
    let wanted = entries_of_nodes(&status);
    assert_eq!(wanted.len(), 2, "{status:#}");
    assert_eq!(entries_in(&status, &format!("vtb-{}", lab.name)), wanted);
    assert_eq!(entries_in(&status, &custom), BTreeSet::new());
    assert_eq!(condition(first)["status"], "False", "{status:#}");
    assert_eq!(condition(second)["status"], "True", "{status:#}");
    wait_until("the reason", || condition(second), |found| found["reason"] == "RouteTableNotServed");
    let refused = lab.loden(&["pod", "add", "--node", second]);
    assert!(!refused.status.success() && text(&refused).contains("takes no pods"), "{}", text(&refused));

    // The event tells what to configure; doing just that is all it takes.
    let events = wait_until(
        "the event about several tables",
        || lab.events(),
        |events| events.iter().any(|(reason, _)| reason == "MultipleRouteTables"),
    );
    let told = events.into_iter().find(|(reason, _)| reason == "MultipleRouteTables").unwrap().1;
    let option = told.split_whitespace().find(|word| word.starts_with("--route-table-ids=")).unwrap();
    assert!(option.contains(&custom), "{told}");
    lab.json(&["restart", "controller", option]);
    wait_until("the second node available", || condition(second), |found| found["status"] == "False");
    let status = lab.status();
    for table in [format!("vtb-{}", lab.name), custom] {
        assert_eq!(entries_in(&status, &table), wanted, "{table}");
    }
    let pod = lab.json(&["pod", "add", "--node", second]);
    assert_eq!(pod["name"], "pod-2");
    lab.assert_green();

    // A node that leaves goes from both.
    lab.json(&["node", "remove", second]);
    let status = lab.status();
    for table in status["routeTables"].as_array().unwrap() {
        assert_eq!(entries_in(&status, &string(&table["id"])), entries_of_nodes(&status), "{table:#}");
    }
}

#[test]
fn two_clusters_in_one_vpc_leave_each_other_alone() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1", "--second-cluster", "172.22.0.0/16"]);
    let status = lab.status();
    let all = entries_of_nodes(&status);
    assert_eq!(all.len(), 4, "{status:#}");
    assert_eq!(lab.entries(), all);
    let inside =
        |net: &str| lab.entries().into_iter().filter(|(at, _)| at.starts_with(net)).collect::<Vec<_>>();
    assert_eq!((inside("172.20.").len(), inside("172.22.").len()), (2, 2));
    lab.assert_green();

    // A node of each leaves, and both controllers start anew: the rows of those who stay are the very same rows.
    let before = rows(&status);
    lab.json(&["node", "remove", "node-2"]);
    lab.json(&["node", "remove", "c2-node-1"]);
    for cluster in ["1", "2"] {
        lab.json(&["restart", "controller", "--cluster", cluster]);
    }
    // Each new controller has looked at everything once it has given a new node its entry.
    lab.json(&["node", "add"]);
    lab.json(&["node", "add", "--cluster", "2"]);
    let status = lab.status();
    assert_eq!(lab.entries(), entries_of_nodes(&status));
    let stayed = |subnet: &&String| before.get(*subnet) == rows(&status).get(*subnet);
    assert_eq!(before.keys().filter(stayed).count(), 2, "{before:?} became {:?}", rows(&status));
    let told = || -> Vec<String> {
        let removals = lab.events().into_iter().filter(|(reason, _)| reason.ends_with("RouteRemoved"));
        removals.map(|(_, message)| message).collect()
    };
    let mut removed = wait_until("both removals told of", told, |removed| removed.len() >= 2);
    removed.sort();
    let [one, other] = &removed[..] else { panic!("two entries had to go: {removed:#?}") };
    assert!(one.contains(" via i-node-2 ") && other.contains(" via i-c2-node-1 "), "{removed:#?}");
    lab.json(&["pod", "add", "--node", "c2-node-1"]);
    lab.json(&["pod", "add", "--node", "node-2"]);
    lab.assert_green();
}

/// IDs of the system table's custom entries by destination: an entry that was deleted and made again has another.
fn rows(status: &Value) -> BTreeMap<String, String> {
    let custom = status["routeTables"][0]["entries"].as_array().unwrap().iter();
    custom
        .filter(|entry| entry["custom"] == true)
        .map(|entry| (string(&entry["destination"]), string(&entry["id"])))
        .collect()
}

/// The node whose instance is in the vSwitch of that range.
fn in_vswitch(status: &Value, range: &str) -> String {
    let vswitches = status["vpc"]["vswitches"].as_array().unwrap();
    let vswitch = vswitches.iter().find(|vswitch| vswitch["cidr"] == range).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["instance"]["vswitch"] == vswitch["id"]).unwrap();
    string(&node["instance"]["name"])
}

/// What a table should have: every node's subnet, by its instance.
fn entries_of_nodes(status: &Value) -> BTreeSet<(String, String)> {
    let nodes = status["nodes"].as_array().unwrap().iter();
    nodes.map(|node| (string(&node["subnet"]), string(&node["instance"]["id"]))).collect()
}

fn entries_in(status: &Value, table: &str) -> BTreeSet<(String, String)> {
    let tables = status["routeTables"].as_array().unwrap();
    let table = tables.iter().find(|candidate| candidate["id"] == table).unwrap();
    let custom = table["entries"].as_array().unwrap().iter().filter(|entry| entry["custom"] == true);
    custom.map(|entry| (string(&entry["destination"]), string(&entry["nextHop"]))).collect()
}
