//! `ptp`, compared with the Go plugin of Debian on the same kernel, and seen with real packets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, merge, plain, wait_until, with_result};

fn config(node: &Node, changes: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "p2p", "type": "ptp", "mtu": 1400, "ipMasq": false,
        "ipam": {
            "type": "host-local", "dataDir": node.path("state/networks"),
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    merge(&mut config, changes);
    config
}

fn variants(node: &Node) -> Vec<(&'static str, Value)> {
    let ipv4 = json!([[{"subnet": "10.244.1.0/24"}]]);
    vec![
        ("dual stack", config(node, json!({}))),
        ("one family", config(node, json!({"ipam": {"ranges": ipv4, "routes": [{"dst": "0.0.0.0/0"}]}}))),
        ("old version", config(node, json!({"cniVersion": "0.4.0"}))),
        ("oldest version", config(node, json!({"cniVersion": "0.2.0"}))),
        // The release of Debian knows no other backend.
        ("masquerade", config(node, json!({"ipMasq": true, "ipMasqBackend": "iptables"}))),
        (
            "without routes",
            config(node, json!({"mtu": null, "ipam": {"routes": null}, "dns": {"domain": "d"}})),
        ),
    ]
}

/// Addresses and routes of a link, without what depends on the plugin: names, and that ours need no detection of duplicates.
fn picture(namespace: &Namespace, link: &str) -> Value {
    // A link is told of its carrier a moment after it has one.
    wait_until(|| namespace.ip_json(&["link", "show", "dev", link])[0]["operstate"] == "UP");
    let shown = namespace.ip_json(&["addr", "show", "dev", link]);
    let mut addresses: Vec<Value> = shown[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["scope"] != "link")
        .map(|one| {
            json!([one["local"], one["prefixlen"], one["broadcast"], one["scope"], one["label"] == link])
        })
        .collect();
    addresses.sort_by_key(Value::to_string);
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        let all = namespace.ip_json(&[family, "route", "show", "table", "all", "dev", link]);
        for route in all.as_array().unwrap() {
            let dst = route["dst"].as_str().unwrap();
            if dst.starts_with("fe80") || dst == "ff00::/8" || dst == "multicast ff00::/8" {
                continue;
            }
            // Of the kernel's own routes to this machine only that they are there; the anycast ones come with forwarding.
            if route["table"] == "local" && route["type"] != "local" {
                continue;
            }
            routes.push(json!([
                dst,
                route["gateway"],
                route["protocol"],
                route["scope"],
                route["prefsrc"],
                route["metric"],
                route["table"],
                route["type"],
            ]));
        }
    }
    routes.sort_by_key(Value::to_string);
    let shown = &namespace.ip_json(&["link", "show", "dev", link])[0];
    json!({"mtu": shown["mtu"], "flags": shown["flags"], "addresses": addresses, "routes": routes})
}

fn port(result: &Value, node: &Node) -> String {
    let listed = result["interfaces"][0]["name"].as_str().map(str::to_owned);
    let found = || node.home.link_names().into_iter().find(|name| name.starts_with("veth"));
    listed.or_else(found).expect("the pair has an end on the host")
}

#[test]
fn kernel_state_and_result_are_those_of_the_go_plugin() {
    let (one, two) = (Node::new(), Node::new());
    for ((name, ours), (_, theirs)) in variants(&one).into_iter().zip(variants(&two)) {
        let pods = (Namespace::new("pod"), Namespace::new("pod"));
        let attachments = (Attachment::new("c1", &pods.0), Attachment::new("c1", &pods.1));
        let mine = one.call(&one.ours(), "ptp", "ADD", &attachments.0, &ours).result();
        // Usable at once, before the Go plugin has even begun to wait.
        let shown = pods.0.ip_json(&["addr", "show", "dev", "eth0"]);
        assert!(
            shown[0]["addr_info"]
                .as_array()
                .unwrap()
                .iter()
                .all(|one| one["scope"] == "link" || one["tentative"].is_null())
        );
        let go = two.call(GO, "ptp", "ADD", &attachments.1, &theirs).result();
        let text = plain(&go).to_string().replace(&pods.1.path(), &pods.0.path());
        assert_eq!(plain(&mine), serde_json::from_str::<Value>(&text).unwrap(), "{name}");
        assert_eq!(picture(&pods.0, "eth0"), picture(&pods.1, "eth0"), "{name}: in the container");
        let ports = (port(&mine, &one), port(&go, &two));
        // The Go plugin leaves its address on the host behind while it is still being checked for duplicates.
        let go_host = || picture(&two.home, &ports.1);
        wait_until(|| picture(&one.home, &ports.0) == go_host());
        assert_eq!(picture(&one.home, &ports.0), go_host(), "{name}: on the host");
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            assert_eq!(one.home.sysctl(key), two.home.sysctl(key), "{name}: {key}");
        }
        one.call(&one.ours(), "ptp", "DEL", &attachments.0, &ours).silent();
        two.call(GO, "ptp", "DEL", &attachments.1, &theirs).silent();
        one.assert_clean();
        for node in [&one, &two] {
            std::fs::remove_dir_all(node.path("state")).unwrap();
        }
    }
}

#[test]
fn every_pairing_with_the_go_plugin_leaves_nothing() {
    let node = Node::new();
    let ours = node.ours();
    for (adds, checks, deletes) in [
        (ours.as_str(), ours.as_str(), ours.as_str()),
        (ours.as_str(), GO, GO),
        (GO, ours.as_str(), ours.as_str()),
    ] {
        for (name, config) in variants(&node) {
            let pod = Namespace::new("pod");
            let attachment = Attachment::new("c1", &pod);
            let result = node.call(adds, "ptp", "ADD", &attachment, &config).result();
            let config = with_result(&config, &result);
            if name != "oldest version" {
                node.call(checks, "ptp", "CHECK", &attachment, &config).silent();
            }
            node.call(deletes, "ptp", "DEL", &attachment, &config).silent();
            node.call(deletes, "ptp", "DEL", &attachment, &config).silent();
            node.assert_clean();
            assert_eq!(pod.link_names().len(), 1, "{name}: links left in the container");
        }
    }
}

#[test]
fn packets_go_by_the_host() {
    let node = Node::new();
    let config = config(&node, json!({"ipMasq": true}));
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let mut results = Vec::new();
    for (container, pod) in ["c1", "c2"].into_iter().zip(&pods) {
        results
            .push(node.call(&node.ours(), "ptp", "ADD", &Attachment::new(container, pod), &config).result());
    }
    // A machine beyond the node that knows nothing of the containers: only masqueraded packets come back.
    let outside = Namespace::new("outside");
    node.home
        .sh("ip", &["link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", &outside.name]);
    for (namespace, four, six) in
        [(&node.home, "192.0.2.1/24", "2001:db8::1/64"), (&outside, "192.0.2.2/24", "2001:db8::2/64")]
    {
        namespace.sh("ip", &["addr", "add", four, "dev", "up0"]);
        namespace.sh("ip", &["addr", "add", six, "dev", "up0", "nodad"]);
        namespace.sh("ip", &["link", "set", "up0", "up"]);
    }
    for target in
        ["10.244.1.1", "fd00:10:244:1::1", "10.244.1.3", "fd00:10:244:1::3", "192.0.2.2", "2001:db8::2"]
    {
        pods[0].sh("ping", &["-n", "-c", "1", "-W", "5", target]);
    }
    for (number, pod) in pods.iter().enumerate() {
        let attachment = Attachment::new(["c1", "c2"][number], pod);
        node.call(&node.ours(), "ptp", "CHECK", &attachment, &with_result(&config, &results[number]))
            .silent();
    }
    node.home.sh("ip", &["link", "delete", "up0"]);
    // A namespace that is gone takes its links along, but not its rules nor its address.
    let [first, second] = pods;
    let gone = Attachment::new("c1", &first);
    drop(first);
    for _ in 0..2 {
        node.call(&node.ours(), "ptp", "DEL", &gone, &config).silent();
    }
    assert_eq!(node.home.sh("nft", &["list", "ruleset"]).matches("masquerade comment").count(), 2);
    node.call(&node.ours(), "ptp", "DEL", &Attachment::new("c2", &second), &config).silent();
    node.assert_clean();
}

#[test]
fn check_notices_a_lost_route_and_a_lost_pair() {
    let node = Node::new();
    let config = config(&node, json!({}));
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let result = node.call(&node.ours(), "ptp", "ADD", &attachment, &config).result();
    let config = with_result(&config, &result);
    let check = || node.call(&node.ours(), "ptp", "CHECK", &attachment, &config);
    check().silent();
    pod.sh("ip", &["route", "delete", "10.244.1.0/24"]);
    assert_eq!(check().error().1, "there is no route to 10.244.1.0/24 by link eth0 any more");
    pod.sh("ip", &["route", "add", "10.244.1.0/24", "via", "10.244.1.1"]);
    check().silent();
    node.home.sh("ip", &["link", "delete", result["interfaces"][0]["name"].as_str().unwrap()]);
    assert!(check().error().1.starts_with("link eth0 does not exist any more"));
}

#[test]
fn duplicates_are_waited_for_where_asked() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node, json!({"enabledad": true}));
    node.call(&node.ours(), "ptp", "ADD", &Attachment::new("c1", &pod), &config).result();
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    let shown = pod.ip_json(&["-6", "addr", "show", "dev", "eth0"]);
    for one in shown[0]["addr_info"].as_array().unwrap() {
        assert!(one["tentative"].is_null() && one["nodad"].is_null(), "{shown}");
    }
}

#[test]
fn a_failed_attempt_takes_back_all() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let add = |config: &Value| node.call(&node.ours(), "ptp", "ADD", &attachment, config).error().1;
    // No plugin for addresses, none that is found, and one that has none left.
    assert_eq!(add(&config(&node, json!({"ipam": null}))), "no plugin name provided");
    assert!(
        add(&config(&node, json!({"ipam": {"type": "absent"}})))
            .starts_with("failed to find plugin \"absent\"")
    );
    let full = json!([[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.1", "rangeEnd": "10.244.1.1"}]]);
    assert!(add(&config(&node, json!({"ipam": {"ranges": full}}))).contains("no IP addresses available"));
    // A route that the kernel refuses, last of all.
    let stray = json!([{"dst": "10.9.0.0/16", "gw": "192.168.77.1"}]);
    let text = add(&config(&node, json!({"ipMasq": true, "ipam": {"routes": stray}})));
    assert!(text.starts_with("failed to configure \"eth0\": cannot append route 10.9.0.0/16"), "{text}");
    node.assert_clean();
    assert_eq!(pod.link_names().len(), 1);
    // A second ADD leaves the first whole.
    let good = config(&node, json!({}));
    node.call(&node.ours(), "ptp", "ADD", &attachment, &good).result();
    let before = (node.residue(), picture(&pod, "eth0"));
    assert!(!add(&good).is_empty());
    assert_eq!((node.residue(), picture(&pod, "eth0")), before);
    node.call(&node.ours(), "ptp", "DEL", &attachment, &good).silent();
    node.assert_clean();
}

#[test]
fn a_collection_takes_the_dead_and_status_asks_the_address_plugin() {
    let node = Node::new();
    let mut config = config(&node, json!({"cniVersion": "1.1.0", "ipMasq": true}));
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    for (container, pod) in ["c1", "c2"].into_iter().zip(&pods) {
        node.call(&node.ours(), "ptp", "ADD", &Attachment::new(container, pod), &config).result();
    }
    let nobody = Attachment { container: "", ifname: "", netns: String::new() };
    node.call(&node.ours(), "ptp", "STATUS", &nobody, &config).silent();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    for _ in 0..2 {
        node.call(&node.ours(), "ptp", "GC", &nobody, &config).silent();
        assert_eq!((pods[0].link_names().len(), pods[1].link_names().len()), (2, 1));
        assert_eq!(node.home.sh("nft", &["list", "ruleset"]).matches("masquerade comment").count(), 2);
    }
    pods[0].sh("ping", &["-n", "-c", "1", "-W", "5", "10.244.1.1"]);
    config["cni.dev/valid-attachments"] = json!([]);
    node.call(&node.ours(), "ptp", "GC", &nobody, &config).silent();
    node.assert_clean();
}
