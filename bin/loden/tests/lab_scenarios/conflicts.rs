//! The decision table in a VPC, with packets: what goes, what stays, and who notices. The table itself is `docs/route-decisions.md`.

use crate::pings::Pings;
use crate::support::{Lab, string, wait_until};

#[test]
fn each_row_of_the_decision_table_is_decided_and_no_bystander_loses_a_packet() {
    let lab = Lab::up(&["--nodes", "3", "--pods", "1"]);
    let subnet = string(&lab.node("node-1")["subnet"]);
    let (victim, other) = (lab.address_of("pod-1"), lab.address_of("pod-3"));
    let inside = subnet.replace("/26", "/28");
    let host = format!("{victim}/32");
    assert_ne!(subnet, inside);
    let bystander = Pings::start(&lab, "pod-2", &other);

    // Rows that are kept: wider than a node's, the whole pod CIDR, no node's, outside the pod CIDR.
    let foreign = ["172.20.0.0/20", "172.20.0.0/16", "172.20.9.0/26", "10.9.0.0/24"];
    let untouched = Pings::start(&lab, "pod-2", &victim);
    for destination in foreign {
        lab.json(&["route", "add", destination, "ecs-1"]);
    }
    lab.wait_audit();
    untouched.assert_none_lost();
    let ids_of_foreign = || {
        let ids = lab.entry_ids();
        foreign.map(|destination| ids.get(destination).cloned())
    };
    let before = ids_of_foreign();
    assert!(before.iter().all(Option::is_some), "{before:?}");

    // Rows that are removed: the node's own range to another node or to no node, and what lies inside it, even to the node itself.
    let right = (subnet.clone(), "i-node-1".to_owned());
    for (destination, hop) in
        [(&subnet, "node-2"), (&subnet, "ecs-1"), (&inside, "node-1"), (&inside, "node-3"), (&host, "ecs-1")]
    {
        let pings = Pings::start(&lab, "pod-2", &victim);
        lab.json(&["route", "add", destination, hop, "--replace"]);
        let wrong = (destination.clone(), format!("i-{hop}"));
        wait_until(
            &format!("{destination} via {hop} decided"),
            || lab.entries(),
            |entries| entries.contains(&right) && (wrong == right || !entries.contains(&wrong)),
        );
        lab.wait_event("ConflictingRouteRemoved", &[destination, &format!("i-{hop}")]);
        let loss = pings.stop();
        println!("{destination} via {hop}: {} ms without an answer", loss.longest_ms);
        if hop == "node-1" {
            assert_eq!(loss.lost, 0, "an entry that led to the node itself was taken away: {loss:?}");
        }
    }

    // Rows that are nobody's to remove: an interface, and several next hops. The node says so until somebody acts.
    for (hops, said) in
        [(&["ecs-1", "--interface"][..], "eni-ecs-1"), (&["node-2", "node-3"][..], "i-node-2")]
    {
        lab.json(&[&["route", "add", &subnet, "--replace"], hops].concat());
        let condition = wait_until(
            "the node's condition",
            || lab.node("node-1")["networkUnavailable"].clone(),
            |condition| condition["status"] == "True" && string(&condition["message"]).contains(said),
        );
        assert!(string(&condition["message"]).contains(&subnet), "{condition:#}");
        lab.wait_event("RouteBlocked", &[&subnet, said, "remove it by hand"]);
        lab.wait_audit();
        let kept = lab.json(&["route", "list"]);
        let kept = kept["entries"].as_array().unwrap().iter();
        let names: Vec<_> = kept
            .filter(|entry| entry["destination"] == *subnet)
            .map(|entry| &entry["name"])
            .cloned()
            .collect();
        assert_eq!(names, ["by-hand"], "left in place");
        lab.json(&["route", "remove", &subnet]);
        wait_until(
            "the node available again",
            || (lab.node("node-1")["networkUnavailable"]["status"].clone(), lab.entries()),
            |(status, entries)| status == "False" && entries.contains(&right),
        );
    }

    bystander.assert_none_lost();
    assert_eq!(ids_of_foreign(), before, "foreign entries are the very same");
    let mut wanted = lab.desired();
    wanted.extend(foreign.map(|destination| (destination.to_owned(), "i-ecs-1".to_owned())));
    assert_eq!(lab.entries(), wanted);
    for destination in foreign {
        lab.json(&["route", "remove", destination]);
    }
    lab.assert_green();
}
