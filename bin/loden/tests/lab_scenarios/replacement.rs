//! Another instance takes a node's place.

use crate::pings::Pings;
use crate::support::{Lab, string, wait_until};

#[test]
fn a_node_on_another_instance_gets_its_packets_and_nobody_else_does() {
    let lab = Lab::up(&["--nodes", "3", "--pods", "1"]);
    let address = |pod: &str| lab.address_of(pod);
    let subnet = string(&lab.node("node-2")["subnet"]);
    let bystander = Pings::start(&lab, "pod-1", &address("pod-3"));

    // Replaced under the controller's eyes.
    let pings = Pings::start(&lab, "pod-1", &address("pod-2"));
    let replaced = lab.json(&["node", "replace", "node-2"]);
    println!("entry followed after {} ms", replaced["entryMs"]);
    let loss = pings.stop();
    println!("replaced at work: {} ms without an answer", loss.longest_ms);
    assert!(lab.entries().contains(&(subnet.clone(), "i-node-2-1".to_owned())), "{:?}", lab.entries());

    // Replaced while nobody looked: the entry is ours, so it is changed in place and is never away.
    lab.json(&["stop", "controller"]);
    let before = lab.entry_ids();
    lab.json(&["node", "replace", "node-2"]);
    assert!(lab.entries().contains(&(subnet.clone(), "i-node-2-1".to_owned())), "nobody changed it");
    lab.json(&["start", "controller"]);
    let new = (subnet.clone(), "i-node-2-2".to_owned());
    wait_until("the entry leading to the new instance", || lab.entries(), |entries| entries.contains(&new));
    assert_eq!(lab.entry_ids(), before, "the entries are the very same ones");
    lab.wait_event("RouteRepointed", &[&subnet, "i-node-2-1", "i-node-2-2"]);
    wait_until(
        "the node available",
        || lab.node("node-2")["networkUnavailable"]["status"].clone(),
        |status| status == "False",
    );
    Pings::start(&lab, "pod-1", &address("pod-2")).assert_none_lost();

    bystander.assert_none_lost();
    assert_eq!(lab.entries(), lab.desired());
    lab.assert_green();
}
