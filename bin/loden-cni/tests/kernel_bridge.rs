//! What `bridge` promises about packets, about taking back and about cleaning up, seen with real packets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use loden_cni_protocol::mark::Marks;
use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, wait_until, with_result};

/// Attaches pods `c1`, `c2`, … to the bridge.
fn attached(node: &Node, config: &Value, count: usize) -> (Vec<Namespace>, Vec<Value>) {
    let pods: Vec<Namespace> = (0..count).map(|_| Namespace::new("pod")).collect();
    let results = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            let container = format!("c{}", number + 1);
            node.call(&node.ours(), "bridge", "ADD", &Attachment::new(&container, pod), config).result()
        })
        .collect();
    (pods, results)
}

fn ruleset(node: &Node) -> String {
    node.home.sh("nft", &["list", "ruleset"])
}

fn gc_config(config: &Value, keep: &[(&str, &str)]) -> Value {
    let list: Vec<Value> =
        keep.iter().map(|(container, ifname)| json!({"containerID": container, "ifname": ifname})).collect();
    let mut config = config.clone();
    config["cniVersion"] = json!("1.1.0");
    config["cni.dev/valid-attachments"] = json!(list);
    config
}

const NOBODY: Attachment<'static> = Attachment { container: "", ifname: "", netns: String::new() };

#[test]
fn frames_with_another_source_address_are_dropped() {
    let node = Node::new();
    let config = node.bridge_config(json!({"macspoofchk": true}));
    let (mut pods, results) = attached(&node, &config, 2);
    assert!(pods[0].reaches("10.244.1.3"));
    let text = ruleset(&node);
    let (port, mac) = (&results[0]["interfaces"][1]["name"], &results[0]["interfaces"][2]["mac"]);
    for line in [
        "table bridge nat {".to_owned(),
        "type filter hook prerouting priority dstnat; policy accept;".to_owned(),
        format!("iifname {port} jump cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\""),
        "jump cni-br-iface-c1-eth0-mac comment \"macspoofchk-c1-eth0\"".to_owned(),
        format!("ether saddr {} return comment \"macspoofchk-c1-eth0\"", mac.as_str().unwrap()),
        "drop comment \"macspoofchk-c1-eth0\"".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }

    pods[0].sh("ip", &["link", "set", "eth0", "address", "02:00:00:00:00:66"]);
    pods[0].sh("ip", &["neigh", "flush", "dev", "eth0"]);
    assert!(!pods[0].reaches("10.244.1.3"), "a borrowed address passed");
    pods[0].sh("ip", &["link", "set", "eth0", "address", mac.as_str().unwrap()]);
    assert!(pods[0].reaches("10.244.1.3"));

    // A container that is gone leaves no namespace to look into.
    let gone = Attachment::new("c2", &pods[1]);
    drop(pods.pop());
    for _ in 0..2 {
        node.call(&node.ours(), "bridge", "DEL", &gone, &config).silent();
        let text = ruleset(&node);
        assert!(text.contains("macspoofchk-c1-eth0") && !text.contains("c2-eth0"), "{text}");
    }
    node.call(&node.ours(), "bridge", "DEL", &Attachment::new("c1", &pods[0]), &config).silent();
    assert!(ruleset(&node).contains("chain PREROUTING") && !ruleset(&node).contains("cni-br-iface"));
    node.assert_clean();
}

#[test]
fn the_spoof_check_goes_with_the_container_in_every_pairing() {
    let node = Node::new();
    let config = node.bridge_config(json!({"macspoofchk": true}));
    let ours = node.ours();
    let parts = || ruleset(&node).matches("macspoofchk-c1-eth0").count();
    for (adds, deletes) in
        [(GO, ours.as_str()), (ours.as_str(), GO), (GO, GO), (ours.as_str(), ours.as_str())]
    {
        let pod = Namespace::new("pod");
        let attachment = Attachment::new("c1", &pod);
        let result = node.call(adds, "bridge", "ADD", &attachment, &config).result();
        assert_eq!(parts(), 4, "{adds}");
        node.call(deletes, "bridge", "DEL", &attachment, &with_result(&config, &result)).silent();
        assert!(!ruleset(&node).contains("cni-br-iface"), "{adds} {deletes}\n{}", ruleset(&node));
        node.assert_clean();
    }
}

#[test]
fn a_policy_of_the_administrators_stays() {
    let node = Node::new();
    let chain = "add table bridge nat; add chain bridge nat PREROUTING { type filter hook prerouting priority -300; policy drop; }";
    node.home.sh("nft", &[chain]);
    let config = node.bridge_config(json!({"macspoofchk": true}));
    let (_pods, _) = attached(&node, &config, 1);
    assert!(ruleset(&node).contains("policy drop"), "{}", ruleset(&node));
}

#[test]
fn isolated_ports_see_the_gateway_and_not_each_other() {
    let node = Node::new();
    let (pods, _) = attached(&node, &node.bridge_config(json!({"portIsolation": true})), 2);
    assert!(pods[0].reaches("10.244.1.1") && pods[1].reaches("10.244.1.1"));
    assert!(!pods[0].reaches("10.244.1.3"));
    let node = Node::new();
    let (pods, _) = attached(&node, &node.bridge_config(json!({})), 2);
    assert!(pods[0].reaches("10.244.1.3"), "without isolation they do");
}

#[test]
fn a_hairpin_port_sends_back_what_came_in_by_it() {
    for (hairpin, wanted) in [(true, true), (false, false)] {
        let node = Node::new();
        let (pods, _) = attached(&node, &node.bridge_config(json!({"hairpinMode": hairpin})), 1);
        // Two stations behind one port that reach each other by the bridge only.
        let stations = [Namespace::new("one"), Namespace::new("two")];
        for (station, address) in stations.iter().zip(["10.244.1.101/24", "10.244.1.102/24"]) {
            pods[0]
                .sh("ip", &["link", "add", "link", "eth0", "name", "st0", "type", "macvlan", "mode", "vepa"]);
            pods[0].sh("ip", &["link", "set", "st0", "netns", &station.name]);
            station.sh("ip", &["addr", "add", address, "dev", "st0"]);
            station.sh("ip", &["link", "set", "st0", "up"]);
        }
        assert_eq!(stations[0].reaches("10.244.1.102"), wanted, "hairpin {hairpin}");
    }
}

#[test]
fn duplicate_ipv6_addresses_are_found_where_asked() {
    let node = Node::new();
    let ranges = json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]);
    let config = |asked: bool| node.bridge_config(json!({"enabledad": asked, "ipam": {"ranges": ranges}}));
    let (pods, _) = attached(&node, &config(false), 1);
    let gateway = node.home.ip_json(&["-6", "addr", "show", "dev", "cni0", "scope", "global"]);
    assert_eq!(gateway[0]["addr_info"][0]["local"], "fd00:10:244:1::1");
    assert!(gateway[0]["addr_info"][0]["tentative"].is_null(), "it answers the first packet: {gateway}");
    pods[0].sh("ip", &["addr", "add", "fd00:10:244:1::66/64", "dev", "eth0", "nodad"]);
    let add = |asked: bool, container: &str, pod: &Namespace| {
        let attachment = Attachment::new(container, pod);
        let mut config = config(asked);
        config["args"] = json!({"cni": {"ips": ["fd00:10:244:1::66"]}});
        node.call(&node.ours(), "bridge", "ADD", &attachment, &config)
    };
    let before = (node.residue(), node.home.link_names());
    let pod = Namespace::new("pod");
    let (_, text) = add(true, "c2", &pod).error();
    assert_eq!(text, "link \"eth0\": address fd00:10:244:1::66/64 is in use elsewhere");
    assert_eq!((node.residue(), node.home.link_names()), before, "taken back");
    assert_eq!(pod.link_names().len(), 1);

    add(false, "c2", &pod).result();
    let flags = pod.ip_json(&["-6", "addr", "show", "dev", "eth0", "scope", "global"]);
    assert!(flags[0]["addr_info"][0]["tentative"].is_null(), "usable at once: {flags}");
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/keep_addr_on_down"), "1");

    let third = Namespace::new("pod");
    let attachment = Attachment::new("c3", &third);
    node.call(&node.ours(), "bridge", "ADD", &attachment, &config(true)).result();
    let flags = third.ip_json(&["-6", "addr", "show", "dev", "eth0", "scope", "global"]);
    assert!(flags[0]["addr_info"][0]["tentative"].is_null(), "waited for: {flags}");
    assert_eq!(third.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    assert_eq!(third.sysctl("net/ipv6/conf/eth0/enhanced_dad"), "1");
}

#[test]
fn conflicting_addresses_of_the_bridge_are_replaced_by_force_only() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    node.home.sh("ip", &["link", "add", "cni0", "type", "bridge"]);
    for address in ["192.0.2.1/24", "fd00:10:244::1/56", "fd00:99::1/64"] {
        node.home.sh("ip", &["addr", "add", address, "dev", "cni0"]);
    }
    let dual = |force: bool, ranges: Value| {
        node.bridge_config(json!({"forceAddress": force, "ipam": {"ranges": ranges, "routes": null}}))
    };
    let (four, six) = (json!([{"subnet": "10.244.1.0/24"}]), json!([{"subnet": "fd00:10:244:1::/64"}]));
    for (ranges, address) in [(json!([four]), "10.244.1.1/24"), (json!([six]), "fd00:10:244:1::1/64")] {
        let (_, text) = node.call(&node.ours(), "bridge", "ADD", &attachment, &dual(false, ranges)).error();
        assert_eq!(text, format!("\"cni0\" already has an IP address different from {address}"));
        node.assert_clean();
    }
    node.call(&node.ours(), "bridge", "ADD", &attachment, &dual(true, json!([four, six]))).result();
    let shown = node.home.ip_json(&["addr", "show", "cni0"]);
    let all = shown[0]["addr_info"].as_array().unwrap().iter();
    let global = all.filter(|one| one["scope"] == "global");
    let mut locals: Vec<_> = global.map(|one| one["local"].as_str().unwrap()).collect();
    locals.sort_unstable();
    assert_eq!(
        locals,
        ["10.244.1.1", "fd00:10:244:1::1", "fd00:99::1"],
        "the one that overlaps nothing stays"
    );
}

#[test]
fn routes_carry_everything_the_result_says() {
    let node = Node::new();
    let config = node.bridge_config(json!({"isDefaultGateway": false, "ipam": {"routes": [
        {"dst": "10.8.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 50},
        {"dst": "10.9.0.0/16", "gw": "10.244.1.9", "table": 77},
        {"dst": "10.10.0.0/16", "gw": "10.244.1.1", "scope": 0},
    ]}}));
    let (pods, results) = attached(&node, &config, 1);
    let route = |dst: &str| pods[0].ip_json(&["route", "show", "table", "all", dst])[0].clone();
    let first = route("10.8.0.0/16");
    assert_eq!((&first["metric"], &first["gateway"]), (&json!(50), &json!("10.244.1.1")));
    assert_eq!(first["metrics"], json!([{"mtu": 1300, "advmss": 1200}]));
    assert_eq!(route("10.9.0.0/16")["table"], "77");
    assert_eq!(route("10.10.0.0/16")["gateway"], "10.244.1.1");
    assert_eq!(
        results[0]["routes"][0],
        json!({"dst": "10.8.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 50})
    );
    let attachment = Attachment::new("c1", &pods[0]);
    node.call(&node.ours(), "bridge", "CHECK", &attachment, &with_result(&config, &results[0])).silent();
}

#[test]
fn a_result_that_cannot_be_said_costs_nothing() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = node.bridge_config(json!({
        "cniVersion": "0.2.0", "ipam": null, "isGateway": false, "isDefaultGateway": false,
    }));
    let (_, text) = node.call(&node.ours(), "bridge", "ADD", &Attachment::new("c1", &pod), &config).error();
    assert!(text.starts_with("cannot convert: no valid IP addresses"), "{text}");
    assert_eq!((node.home.link_names().len(), pod.link_names().len()), (1, 1), "not even a bridge");
}

#[test]
fn a_failed_attempt_takes_back_all_and_tells_what_it_could_not() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let config = node.bridge_config(json!({"macspoofchk": true, "ipMasq": true}));
    // A link that cannot come up: found last of all, when everything is there.
    node.home.sh("ip", &["link", "add", "cni0", "type", "bridge"]);
    node.home.sh("ip", &["addr", "add", "192.0.2.1/24", "dev", "cni0"]);
    let (_, text) = node.call(&node.ours(), "bridge", "ADD", &attachment, &config).error();
    assert_eq!(text, "\"cni0\" already has an IP address different from 10.244.1.1/24");
    node.assert_clean();
    assert!(!ruleset(&node).contains("cni-br-iface"), "{}", ruleset(&node));
    assert_eq!(pod.link_names().len(), 1);

    // An address plugin that gives and does not take.
    fs::create_dir(node.path("first")).unwrap();
    let script = "#!/bin/sh\ncase $CNI_COMMAND in ADD) echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.244.1.7/24\"}]}';; *) echo '{\"code\":121,\"msg\":\"stuck\"}'; exit 1;; esac\n";
    fs::write(node.path("first/host-local"), script).unwrap();
    fs::set_permissions(node.path("first/host-local"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", node.path("first"), node.ours());
    let program = format!("{}/bridge", node.ours());
    fs::hard_link(program, node.path("first/bridge")).unwrap();
    let (_, text) = node.call(&path, "bridge", "ADD", &attachment, &config).error();
    assert_eq!(
        text,
        "\"cni0\" already has an IP address different from 10.244.1.1/24; undoing the failed command left something behind: stuck"
    );
    assert_eq!(pod.link_names().len(), 1);
    let left: Vec<_> = node.home.link_names().into_iter().filter(|name| name.starts_with("veth")).collect();
    assert_eq!(left, Vec::<String>::new());

    // One whose answer nobody can read is told to take back what it gave.
    let log = node.path("log");
    let script =
        format!("#!/bin/sh\necho $CNI_COMMAND >> {log}\n[ $CNI_COMMAND = DEL ] || echo 10.244.1.7\n");
    fs::write(node.path("first/host-local"), script).unwrap();
    let (_, text) = node.call(&path, "bridge", "ADD", &attachment, &config).error();
    assert!(text.starts_with("plugin printed a result that is not valid JSON"), "{text}");
    assert_eq!(fs::read_to_string(log).unwrap(), "ADD\nDEL\n");
    assert_eq!(pod.link_names().len(), 1);
}

#[test]
fn a_detach_without_the_namespace_finds_the_pair() {
    let node = Node::new();
    let config = node.bridge_config(json!({"ipMasq": true}));
    let (pods, results) = attached(&node, &config, 2);
    let port = |number: usize| results[number]["interfaces"][1]["name"].as_str().unwrap().to_owned();
    assert_eq!(
        port(0),
        Marks { network: "cbr0", ifname: "eth0", container_id: "c1" }.port_name(),
        "the name can be recomputed"
    );
    let blind = Attachment { netns: String::new(), ..Attachment::new("c1", &pods[0]) };
    for _ in 0..2 {
        node.call(&node.ours(), "bridge", "DEL", &blind, &config).silent();
        assert_eq!(pods[0].link_names().len(), 1, "the namespace is alive, its link is not");
        assert!(node.home.link_names().contains(&port(1)), "the neighbour's stays");
    }
    // A link that somebody renamed inside.
    pods[1].sh("ip", &["link", "set", "eth0", "down"]);
    pods[1].sh("ip", &["link", "set", "eth0", "name", "lan0"]);
    node.call(&node.ours(), "bridge", "DEL", &Attachment::new("c2", &pods[1]), &config).silent();
    node.assert_clean();
}

#[test]
fn half_a_pair_and_a_name_in_use_are_no_obstacle() {
    let node = Node::new();
    let config = node.bridge_config(json!({}));
    let pod = Namespace::new("pod");
    let name = Marks { network: "cbr0", ifname: "eth0", container_id: "c1" }.port_name();
    let make = || {
        let words = ["link", "add", &name, "type", "veth", "peer", "name", "eth9", "netns", &pod.name];
        node.home.sh("ip", &words);
    };
    // As an ADD leaves it that was killed right after it made the pair, in a container nobody can name any more.
    make();
    let blind = Attachment { netns: String::new(), ..Attachment::new("c1", &pod) };
    node.call(&node.ours(), "bridge", "DEL", &blind, &config).silent();
    node.assert_clean();
    // The last container's pair is still there: the new one gets another name, and goes alone.
    make();
    node.home.sh("ip", &["link", "set", &name, "up"]);
    let attachment = Attachment::new("c1", &pod);
    let result = node.call(&node.ours(), "bridge", "ADD", &attachment, &config).result();
    assert_ne!(result["interfaces"][1]["name"], name.as_str());
    node.call(&node.ours(), "bridge", "DEL", &attachment, &config).silent();
    assert!(node.home.link_names().contains(&name), "a stranger's link by the same name is not ours to take");
}

#[test]
fn a_collection_takes_the_dead_of_its_network_only() {
    let node = Node::new();
    let ipam = |subnet: &str| json!({"ranges": [[{"subnet": subnet}]], "routes": null});
    let one = node.bridge_config(json!({"macspoofchk": true, "ipMasq": true}));
    let two = node.bridge_config(json!({
        "name": "other", "bridge": "cni1", "macspoofchk": true, "ipMasq": true, "ipam": ipam("10.244.2.0/24"),
    }));
    let (pods, _) = attached(&node, &one, 3);
    let other = Namespace::new("pod");
    node.call(&node.ours(), "bridge", "ADD", &Attachment::new("c9", &other), &two).result();
    let go = Namespace::new("pod");
    node.call(GO, "bridge", "ADD", &Attachment::new("c8", &go), &one).result();
    // One is unknown to the runtime while its namespace lives; another by this interface only.
    let keep = gc_config(&one, &[("c1", "eth0"), ("c2", "net1")]);
    for _ in 0..2 {
        node.call(&node.ours(), "bridge", "GC", &NOBODY, &keep).silent();
        assert_eq!(
            [pods[0].link_names().len(), pods[1].link_names().len(), pods[2].link_names().len()],
            [2, 1, 1]
        );
        let text = ruleset(&node);
        for (container, wanted) in [("c1", 4), ("c2", 0), ("c3", 0), ("c9", 4), ("c8", 4)] {
            let found = text.matches(&format!("macspoofchk-{container}-eth0")).count();
            assert_eq!(found, wanted, "{container}\n{text}");
        }
        assert!(text.contains("if: eth0, id: c1\"") && text.contains("if: eth0, id: c9\""), "{text}");
        assert!(!text.contains("if: eth0, id: c2\"") && !text.contains("if: eth0, id: c3\""), "{text}");
    }
    assert_eq!((other.link_names().len(), go.link_names().len()), (2, 2));
    assert!(pods[0].reaches("10.244.1.1") && other.reaches("10.244.2.1"));
    let addresses: Vec<_> =
        node.residue().into_iter().filter(|path| !path.contains("/.loden-index/")).collect();
    let of = |network: &str| addresses.iter().filter(|path| path.contains(network)).count();
    assert_eq!((of("/cbr0/"), of("/other/")), (1, 1), "addresses: {addresses:?}");

    let (code, text) = node
        .call(&node.ours(), "bridge", "GC", &NOBODY, &node.bridge_config(json!({"cniVersion": "1.1.0"})))
        .error();
    assert_eq!(code, 7, "{text}");
    assert_eq!(pods[0].link_names().len(), 2, "no list is not an empty one");
}

#[test]
fn status_says_what_is_in_the_way() {
    let node = Node::new();
    let config = node.bridge_config(json!({"cniVersion": "1.1.0"}));
    let status = |config: &Value| node.call(&node.ours(), "bridge", "STATUS", &NOBODY, config);
    status(&config).silent();
    node.home.sh("ip", &["link", "add", "cni0", "type", "veth", "peer", "name", "far0"]);
    let (code, text) = status(&config).error();
    assert_eq!(code, 50);
    assert!(text.starts_with("\"cni0\" already exists but is not a bridge"), "{text}");
    node.home.sh("ip", &["link", "delete", "cni0"]);
    node.home.sh("ip", &["link", "add", "cni0", "type", "bridge"]);
    status(&config).silent();
    let mut vlan = config;
    vlan["vlan"] = json!(7);
    let (code, text) = status(&vlan).error();
    assert_eq!(code, 50);
    assert!(text.starts_with("bridge cni0 does not filter by VLAN"), "{text}");
    assert!(wait_until(|| node.home.link_names().contains("cni0")), "looking changes nothing");
}
