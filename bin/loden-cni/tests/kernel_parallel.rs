//! Many containers at once, as when a node boots.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::collections::BTreeSet;
use std::thread;

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().to_owned()
}

#[test]
fn thirty_two_containers_at_once() {
    let node = Node::new();
    let config = node.flannel_config(SUBNET_ENV);
    let pods: Vec<(String, Namespace)> =
        (0..32).map(|number| (format!("c{number}"), Namespace::new("pod"))).collect();
    let all = |command: &str| -> Vec<support::Answer> {
        thread::scope(|scope| {
            let running: Vec<_> = pods
                .iter()
                .map(|(id, pod)| {
                    let (node, config) = (&node, &config);
                    scope.spawn(move || {
                        node.call(&node.ours(), "flannel", command, &Attachment::new(id, pod), config)
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let results: Vec<Value> = all("ADD").iter().map(support::Answer::result).collect();
    let addresses: BTreeSet<String> = results.iter().map(address).collect();
    assert_eq!(addresses.len(), 32, "an address was given twice");
    let expected: BTreeSet<String> = (2..34).map(|host| format!("10.244.1.{host}/24")).collect();
    assert_eq!(addresses, expected, "an address was lost");
    let macs: BTreeSet<&str> =
        results.iter().map(|result| result["interfaces"][0]["mac"].as_str().unwrap()).collect();
    assert_eq!(macs.len(), 1, "the bridge's address changed");
    let rules = node.home.sh("nft", &["list", "ruleset"]);
    assert_eq!(rules.matches("masquerade comment").count(), 32);
    assert_eq!(rules.matches("goto masq_checks").count(), 1);
    for (id, pod) in &pods {
        let result = &results[id[1..].parse::<usize>().unwrap()];
        node.call(
            &node.ours(),
            "flannel",
            "CHECK",
            &Attachment::new(id, pod),
            &support::with_result(&config, result),
        )
        .silent();
    }
    for answer in all("DEL") {
        answer.silent();
    }
    node.assert_clean();
}

#[test]
fn both_kinds_of_host_local_share_a_directory() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.bridge_config(json!({"ipam": {"ranges": [[{"subnet": "10.244.1.0/27"}]]}}));
    let ids: Vec<String> = (0..29).map(|number| format!("c{number}")).collect();
    let ours = node.ours();
    let path_of = |number: usize| if number.is_multiple_of(2) { GO } else { ours.as_str() };
    for round in 0..4 {
        let answers: Vec<support::Answer> = thread::scope(|scope| {
            let running: Vec<_> = ids
                .iter()
                .enumerate()
                .map(|(number, id)| {
                    let (node, config, path) = (&node, &config, path_of(number + round));
                    let attachment = Attachment::new(id, &pod);
                    scope.spawn(move || node.call(path, "host-local", "ADD", &attachment, config))
                })
                .collect();
            running.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let addresses: BTreeSet<String> = answers.iter().map(|answer| address(&answer.result())).collect();
        assert_eq!(addresses.len(), 29, "round {round}: every address of the range, each once");
        let full = node.call(path_of(round), "host-local", "ADD", &Attachment::new("more", &pod), &config);
        assert!(full.error().1.contains("no IP addresses available"), "round {round}");
        // Each is released by the other kind.
        thread::scope(|scope| {
            for (number, id) in ids.iter().enumerate() {
                let (node, config, path) = (&node, &config, path_of(number + round + 1));
                let attachment = Attachment::new(id, &pod);
                scope.spawn(move || node.call(path, "host-local", "DEL", &attachment, config).silent());
            }
        });
        assert_eq!(node.residue(), Vec::<String>::new(), "round {round}");
    }
}

#[test]
fn what_a_crash_left_is_used_again() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.bridge_config(json!({"ipam": {"ranges": [[{"subnet": "10.244.1.0/30"}]]}}));
    let directory = node.path("state/networks/cbr0");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(format!("{directory}/10.244.1.2"), "").unwrap();
    std::fs::write(format!("{directory}/.loden-new"), "c0\r\neth0").unwrap();
    std::fs::write(format!("{directory}/last_reserved_ip.0"), "").unwrap();
    let attachment = Attachment::new("c1", &pod);
    let result = node.call(&node.ours(), "host-local", "ADD", &attachment, &config).result();
    assert_eq!(address(&result), "10.244.1.2/30");
    node.call(&node.ours(), "host-local", "DEL", &attachment, &config).silent();
    assert_eq!(node.residue(), Vec::<String>::new());
}
