//! Nodes and pods come and go.

use crate::support::{Lab, string, text, wait_until};

#[test]
fn a_node_joins_and_leaves() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    let joined = lab.json(&["node", "add"]);
    assert_eq!(joined["name"], "node-3");
    println!(
        "route entry available {} ms after the node object, node usable after {} ms",
        joined["entryMs"].as_u64().unwrap(),
        joined["usableMs"].as_u64().unwrap()
    );
    let pod = lab.json(&["pod", "add", "--node", "node-3"]);
    let address = address_of(&lab, &string(&pod["name"]));
    let ping = lab.loden(&["pod", "exec", "pod-1", "--", "ping", "-c", "3", "-W", "5", &address]);
    assert!(ping.status.success(), "{}", text(&ping));
    lab.assert_green();
    assert!(lab.entries().iter().any(|(_, hop)| hop == "i-node-3"));

    let left = lab.json(&["node", "remove", "node-3"]);
    println!("route entry gone {} ms after the node object", left["entryMs"].as_u64().unwrap());
    assert!(!lab.entries().iter().any(|(_, hop)| hop == "i-node-3"));
    assert_eq!(lab.status()["nodes"].as_array().unwrap().len(), 2);
    lab.assert_green();
}

#[test]
fn a_crashed_node_keeps_its_entry_and_goes_with_its_object() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    lab.json(&["node", "crash", "node-2"]);
    let address = address_of(&lab, "pod-2");
    let ping = lab.loden(&["pod", "exec", "pod-1", "--", "ping", "-c", "1", "-W", "1", &address]);
    assert!(!ping.status.success(), "a crashed node must not answer: {}", text(&ping));
    assert!(lab.entries().iter().any(|(_, hop)| hop == "i-node-2"));
    lab.json(&["node", "remove", "node-2"]);
    assert!(!lab.entries().iter().any(|(_, hop)| hop == "i-node-2"));
    lab.assert_green();
}

#[test]
fn pods_come_and_go_and_their_addresses_come_back() {
    let lab = Lab::up(&["--nodes", "1", "--pods", "1", "--pods-per-node", "16"]);
    // 16 addresses less network, broadcast and gateway: 13 for pods, one of which is taken.
    let mut names: Vec<String> = (0..12).map(|_| string(&lab.json(&["pod", "add"])["name"])).collect();
    let full = lab.loden(&["pod", "add"]);
    assert!(
        !full.status.success() && text(&full).contains("no IP addresses available in range set"),
        "{}",
        text(&full)
    );
    let freed = names.pop().unwrap();
    let address = address_of(&lab, &freed);
    lab.json(&["pod", "remove", &freed]);
    let again = string(&lab.json(&["pod", "add"])["name"]);
    assert_eq!(address_of(&lab, &again), address);
    lab.assert_green();
}

#[test]
fn a_command_in_a_pod_sees_only_the_pod() {
    let lab = Lab::up(&["--nodes", "1", "--pods", "1"]);
    let output = lab.loden(&["pod", "exec", "pod-1", "--", "ip", "-o", "-4", "address"]);
    let said = text(&output);
    assert!(
        output.status.success() && said.contains(&address_of(&lab, "pod-1")) && !said.contains("192.168."),
        "{said}"
    );
    let output = lab.loden(&["pod", "exec", "pod-1", "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    let output = lab.loden(&["pod", "exec", "pod-9", "--", "true"]);
    assert!(!output.status.success() && text(&output).contains("pod-1"), "{}", text(&output));
}

#[test]
fn the_vpc_refuses_what_the_real_one_refuses() {
    let lab = Lab::up(&["--nodes", "1", "--pods", "1"]);
    let plain =
        lab.status()["instances"].as_array().unwrap().iter().find(|i| i["name"] == "ecs-1").cloned().unwrap();
    assert_eq!(plain["sourceDestCheck"], true);
    let inside = |what: &str, arguments: &[&str]| {
        let namespace = format!("loden-{}-{what}", lab.name);
        let all = [&["netns", "exec", &namespace][..], arguments].concat();
        std::process::Command::new("ip").args(all).output().unwrap()
    };
    // Somebody behind the plain instance: reachable neither by a route that only the node has (the vRouter has its own tables) …
    let output = inside("ecs-1", &["ip", "address", "add", "172.19.0.1/32", "dev", "lo"]);
    assert!(output.status.success(), "{}", text(&output));
    let hop = string(&plain["address"]);
    let output =
        inside("node-1", &["ip", "route", "add", "172.19.0.0/24", "via", &hop, "dev", "eth0", "onlink"]);
    assert!(output.status.success(), "{}", text(&output));
    let ping = || inside("node-1", &["ping", "-c", "1", "-W", "1", "172.19.0.1"]);
    assert!(!ping().status.success(), "the vRouter must not follow a node's own routes");
    // … nor by an entry, while the instance's source/destination check is on.
    lab.json(&["route", "add", "172.19.0.0/24", "ecs-1"]);
    let vrouter = || text(&inside("vrouter", &["ip", "route", "show", "table", "all"]));
    wait_until("the entry in the vRouter", vrouter, |routes| routes.contains("172.19.0.0/24"));
    assert!(!ping().status.success(), "the source/destination check must drop what is not the instance's");
    // The node's is off, which is what lets pods' packets pass at all.
    assert_eq!(lab.status()["nodes"][0]["instance"]["sourceDestCheck"], false);
}

fn address_of(lab: &Lab, pod: &str) -> String {
    let status = lab.status();
    let pods = status["pods"].as_array().unwrap();
    string(&pods.iter().find(|candidate| candidate["name"] == pod).unwrap()["address"])
}
