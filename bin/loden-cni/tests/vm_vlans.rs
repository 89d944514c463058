//! `bridge` with VLANs, in the virtual machine of `cargo xtask vm-test`: the kernels of build machines often cannot filter by VLAN.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, with_result};

fn node() -> Node {
    assert!(
        std::env::var_os("LODEN_VM").is_some(),
        "this needs a kernel that filters by VLAN, in a machine of its own: run `cargo xtask vm-test`"
    );
    Node::new()
}

/// A dual-stack network without a gateway, with changes.
fn flat(node: &Node, changes: Value) -> Value {
    let mut config = node.bridge_config(json!({
        "isGateway": false, "isDefaultGateway": false,
        "ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]], "routes": null},
    }));
    support::merge(&mut config, changes);
    config
}

fn attach(node: &Node, container: &str, config: &Value) -> (Namespace, Value) {
    let pod = Namespace::new("pod");
    let result = node.call(&node.ours(), "bridge", "ADD", &Attachment::new(container, &pod), config).result();
    (pod, result)
}

fn detach(node: &Node, container: &str, pod: &Namespace, config: &Value) {
    node.call(&node.ours(), "bridge", "DEL", &Attachment::new(container, pod), config).silent();
}

/// The VLANs of the port of an attachment, as `bridge` shows them.
fn vlans(node: &Node, result: &Value) -> Vec<(u64, String)> {
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    let shown: Value =
        serde_json::from_str(&node.home.sh("bridge", &["-j", "vlan", "show", "dev", port])).unwrap();
    let list = shown[0]["vlans"].as_array().cloned().unwrap_or_default();
    list.iter()
        .flat_map(|one| {
            let (first, flags) = (one["vlan"].as_u64().unwrap(), one["flags"].clone());
            let last = one["vlanEnd"].as_u64().unwrap_or(first);
            (first..=last).map(move |id| (id, flags.to_string()))
        })
        .collect()
}

const ACCESS: &str = "[\"PVID\",\"Egress Untagged\"]";

#[test]
fn containers_reach_those_of_their_vlan_only() {
    let node = node();
    let (ten, twenty) = (flat(&node, json!({"vlan": 10})), flat(&node, json!({"vlan": 20})));
    let (one, result) = attach(&node, "c1", &ten);
    let (two, _) = attach(&node, "c2", &ten);
    let (other, _) = attach(&node, "c3", &twenty);
    assert_eq!(vlans(&node, &result), [(10, ACCESS.to_owned())]);
    for (same, different) in [("10.244.1.3", "10.244.1.4"), ("fd00:10:244:1::3", "fd00:10:244:1::4")] {
        assert!(one.reaches(same), "{same} is in the same VLAN");
        assert!(!one.reaches(different), "{different} is in another VLAN");
    }
    let attachment = Attachment::new("c1", &one);
    node.call(&node.ours(), "bridge", "CHECK", &attachment, &with_result(&ten, &result)).silent();

    // What CHECK and STATUS say when somebody opens the VLANs to each other.
    node.home.sh("ip", &["link", "set", "cni0", "type", "bridge", "vlan_filtering", "0"]);
    assert!(one.reaches("10.244.1.4"));
    let text = node.call(&node.ours(), "bridge", "CHECK", &attachment, &with_result(&ten, &result)).error().1;
    assert!(text.starts_with("bridge cni0 does not filter by VLAN"), "{text}");
    for (container, pod, config) in [("c1", &one, &ten), ("c2", &two, &ten), ("c3", &other, &twenty)] {
        detach(&node, container, pod, config);
    }
    assert_eq!(node.residue(), Vec::<String>::new());
    let left = node.home.link_names();
    assert!(!left.iter().any(|name| name.starts_with("veth")), "{left:?}");
}

/// Whether packets get there in the end: a gateway's IPv6 address answers when the kernel has looked for duplicates of it.
fn gets_to(pod: &Namespace, to: &str) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        if pod.reaches(to) {
            return true;
        }
    }
    false
}

#[test]
fn each_vlan_has_a_gateway_of_its_own() {
    let node = node();
    let network = |vlan: u16| {
        node.bridge_config(json!({
            "name": format!("v{vlan}"), "vlan": vlan, "hairpinMode": false,
            "ipam": {"routes": null, "ranges": [
                [{"subnet": format!("10.244.{vlan}.0/24")}], [{"subnet": format!("fd00:10:244:{vlan}::/64")}],
            ]},
        }))
    };
    let (ten, twenty) = (network(10), network(20));
    let (one, result) = attach(&node, "c1", &ten);
    assert_eq!(result["interfaces"][3]["name"], "cni0.10");
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
    let bridge = node.home.ip_json(&["-4", "addr", "show", "cni0"]);
    assert!(
        bridge[0]["addr_info"].as_array().is_none_or(Vec::is_empty),
        "the bridge itself is in no VLAN: {bridge}"
    );
    let (other, _) = attach(&node, "c2", &twenty);
    for gateway in ["10.244.10.1", "fd00:10:244:10::1"] {
        assert!(gets_to(&one, gateway), "{gateway}");
    }
    assert!(gets_to(&other, "10.244.20.1"));
    // Both are of this node, which routes between them.
    assert!(gets_to(&one, "10.244.20.2") && gets_to(&one, "fd00:10:244:20::2"));

    // As an ADD leaves it that was killed before the gateway's port was on the bridge.
    let far = node.home.ip_json(&["link", "show", "cni0.10"])[0]["link"].as_str().unwrap().to_owned();
    node.home.sh("ip", &["link", "set", &far, "down"]);
    node.home.sh("ip", &["link", "set", &far, "nomaster"]);
    assert!(!one.reaches("10.244.10.1"));
    let (two, _) = attach(&node, "c3", &ten);
    assert!(gets_to(&one, "10.244.10.1") && gets_to(&two, "10.244.10.1") && gets_to(&two, "10.244.10.2"));
    let attachment = Attachment::new("c1", &one);
    node.call(&node.ours(), "bridge", "CHECK", &attachment, &with_result(&ten, &result)).silent();
    for (container, pod, config) in [("c1", &one, &ten), ("c2", &other, &twenty), ("c3", &two, &ten)] {
        detach(&node, container, pod, config);
    }
    assert_eq!(node.residue(), Vec::<String>::new());
    // The gateways stay, as the bridge does: other containers may use them.
    let left = node.home.link_names();
    assert_eq!(left.iter().filter(|name| name.starts_with("cni0")).count(), 3, "{left:?}");
    assert_eq!(left.iter().filter(|name| name.starts_with("veth")).count(), 2, "{left:?}");
}

#[test]
fn a_trunk_carries_its_vlans_with_their_tags() {
    let node = node();
    let trunk = flat(&node, json!({"ipam": null, "vlanTrunk": [{"minID": 10, "maxID": 12}, {"id": 30}]}));
    let (router, result) = attach(&node, "c1", &trunk);
    let mut wanted: Vec<(u64, String)> = vec![(1, ACCESS.to_owned())];
    wanted.extend([10, 11, 12, 30].map(|id| (id, "null".to_owned())));
    assert_eq!(vlans(&node, &result), wanted);
    let (ten, twenty) = (flat(&node, json!({"vlan": 10})), flat(&node, json!({"vlan": 20})));
    let (_one, _) = attach(&node, "c2", &ten);
    let (_other, _) = attach(&node, "c3", &twenty);
    for (vlan, host, reachable) in [("10", "10.244.1.2", true), ("20", "10.244.1.3", false)] {
        router.sh("ip", &["link", "add", "link", "eth0", "name", "tag0", "type", "vlan", "id", vlan]);
        router.sh("ip", &["addr", "add", "10.244.1.200/24", "dev", "tag0"]);
        router.sh("ip", &["addr", "add", "fd00:10:244:1::200/64", "dev", "tag0", "nodad"]);
        router.sh("ip", &["link", "set", "tag0", "up"]);
        assert_eq!(router.reaches(host), reachable, "VLAN {vlan}");
        let host = host.replace("10.244.1.", "fd00:10:244:1::");
        assert_eq!(router.reaches(&host), reachable, "VLAN {vlan}");
        router.sh("ip", &["link", "delete", "tag0"]);
    }
    let attachment = Attachment::new("c1", &router);
    node.call(&node.ours(), "bridge", "CHECK", &attachment, &with_result(&trunk, &result)).silent();
    detach(&node, "c1", &router, &trunk);
}

#[test]
fn a_port_is_in_the_vlans_that_gos_plugin_puts_it_in() {
    // The release of Debian always kept the VLAN that the bridge gave.
    let (one, two) = (node(), node());
    let config = |node: &Node, keep: bool| {
        node.bridge_config(json!({"vlan": 10, "preserveDefaultVlan": keep, "hairpinMode": false}))
    };
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let go = two.call(GO, "bridge", "ADD", &attachment, &config(&two, true)).result();
    let (kept, ours) = attach(&one, "c1", &config(&one, true));
    assert_eq!(vlans(&one, &ours), vlans(&two, &go));
    assert!(vlans(&one, &ours).contains(&(10, ACCESS.to_owned())));
    assert_eq!(ours["interfaces"][3]["name"], "cni0.10");
    assert!(kept.reaches("10.244.1.1") && pod.reaches("10.244.1.1"));
    // Each takes away what the other made.
    two.call(&two.ours(), "bridge", "DEL", &attachment, &with_result(&config(&two, true), &go)).silent();
    one.call(GO, "bridge", "DEL", &Attachment::new("c1", &kept), &with_result(&config(&one, true), &ours))
        .silent();
    assert_eq!((one.residue(), two.residue()), (Vec::new(), Vec::new()));
    let (_gone, ours) = attach(&one, "c2", &config(&one, false));
    assert_eq!(vlans(&one, &ours), [(10, ACCESS.to_owned())], "the default");
}
