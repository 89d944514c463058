//! Networks that the VPC's route tables know nothing of.

use crate::support::{Lab, string, text};

#[test]
fn pods_reach_each_other_in_vxlan_without_route_entries() {
    let rows = checked(&["--backend", "vxlan"]);
    let vxlan = rows.iter().find(|(title, _)| title == "in VXLAN between nodes");
    assert_eq!(vxlan.unwrap().1, 6, "both directions of three pairs of nodes: {rows:?}");
}

#[test]
fn nodes_on_one_layer_2_route_to_each_other_and_encapsulate_nothing() {
    let rows = checked(&["--backend", "host-gw"]);
    assert!(rows.iter().any(|(title, _)| title == "nothing encapsulated"), "{rows:?}");
}

#[test]
fn a_backend_gets_no_network_on_which_it_cannot_work() {
    let lab = Lab::named();
    let refused = [
        (&["--backend", "host-gw", "--vswitch", "192.168.0.0/24,192.168.1.0/24"][..], "one vSwitch"),
        (&["--backend", "vxlan", "--custom-table", "192.168.1.0/24"], "backend vxlan"),
        (&["--backend", "udp"], "alloc, vxlan, host-gw"),
    ];
    for (arguments, word) in refused {
        let output = lab.loden(&[&["up"], arguments].concat());
        assert!(!output.status.success() && text(&output).contains(word), "{arguments:?}: {}", text(&output));
    }
}

/// Titles and counts of the checks of such a lab, all of them passed; a node that joins late belongs to it like the others.
fn checked(arguments: &[&str]) -> Vec<(String, u64)> {
    let lab = Lab::up(&[&["--nodes", "2", "--pods", "1"], arguments].concat());
    lab.json(&["node", "add"]);
    lab.json(&["pod", "add", "--node", "node-3"]);
    lab.json(&["pod", "add", "--node", "node-3"]);
    let report = lab.json(&["check"]);
    let rows = report["rows"].as_array().unwrap();
    for row in rows {
        assert_eq!(row["verdict"], "passed", "{row:#}");
    }
    assert!(rows.iter().any(|row| row["title"] == "no route entries needed"), "{report:#}");
    lab.json(&["node", "remove", "node-1"]);
    lab.assert_green();
    rows.iter().map(|row| (string(&row["title"]), row["passed"].as_u64().unwrap())).collect()
}
