//! Attaching, checking and detaching, compared with the Go plugins of Debian on the same kernel.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, plain, with_result};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DUAL_SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/56\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

/// Configurations that the Go plugins of Debian know as well.
fn variants(node: &Node) -> Vec<(&'static str, Value)> {
    vec![
        ("as flannel", node.bridge_config(json!({}))),
        ("old version", node.bridge_config(json!({"cniVersion": "0.4.0"}))),
        ("oldest version", node.bridge_config(json!({"cniVersion": null}))),
        (
            "dual stack",
            node.bridge_config(json!({"ipam": {
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
                "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:10:244::/56"}],
            }})),
        ),
        ("no gateway", node.bridge_config(json!({"isGateway": false, "isDefaultGateway": false}))),
        ("gateway without default route", node.bridge_config(json!({"isDefaultGateway": false}))),
        ("promiscuous", node.bridge_config(json!({"hairpinMode": false, "promiscMode": true}))),
        ("kernel's MTU", node.bridge_config(json!({"mtu": null}))),
        ("keys in capitals", node.bridge_config(json!({"mtu": null, "MTU": 1400, "HAIRPINMODE": false}))),
        (
            "routes with next hops",
            node.bridge_config(json!({"ipam": {"routes": [
                {"dst": "0.0.0.0/0", "gw": "10.244.1.9"}, {"dst": "192.168.5.0/24"}, {"dst": "192.168.6.0/24", "gw": "10.244.1.3"},
            ]}})),
        ),
        ("gateway elsewhere", node.bridge_config(json!({"ipam": {"ranges": [[{"subnet": "10.244.1.0/24", "gateway": "10.244.1.254", "rangeStart": "10.244.1.100"}]]}}))),
        ("link of layer two", node.bridge_config(json!({"ipam": null, "isGateway": false, "isDefaultGateway": false}))),
        ("name resolution", node.bridge_config(json!({"dns": {"nameservers": ["10.0.0.53"], "search": ["a.b"]}}))),
    ]
}

#[test]
fn kernel_state_and_result_are_those_of_the_go_plugins() {
    let (one, two) = (Node::new(), Node::new());
    for ((name, ours), (_, theirs)) in variants(&one).into_iter().zip(variants(&two)) {
        // Fresh nodes each time, so that every bridge is made by the plugin under test.
        let (one, two) = (
            Node { home: Namespace::new("node"), ..Node::new() },
            Node { home: Namespace::new("node"), ..Node::new() },
        );
        let pods = (Namespace::new("pod"), Namespace::new("pod"));
        let ours = retarget(&ours, &one);
        let theirs = retarget(&theirs, &two);
        let mine = one.call(&one.ours(), "bridge", "ADD", &Attachment::new("c1", &pods.0), &ours).result();
        let go = two.call(GO, "bridge", "ADD", &Attachment::new("c1", &pods.1), &theirs).result();
        let mut expected = plain(&go);
        rename_sandbox(&mut expected, &pods.0);
        assert_eq!(plain(&mine), expected, "{name}");
        assert_eq!(one.picture(&pods.0), two.picture(&pods.1), "{name}");
    }
}

fn retarget(config: &Value, node: &Node) -> Value {
    let mut config = config.clone();
    if config["ipam"].is_object() {
        config["ipam"]["dataDir"] = json!(node.path("state/networks"));
    }
    config
}

fn rename_sandbox(result: &mut Value, pod: &Namespace) {
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        if interface["sandbox"].as_str().is_some_and(|path| !path.is_empty()) {
            interface["sandbox"] = json!(pod.path());
        }
    }
}

#[test]
fn every_pairing_with_the_go_plugins_leaves_nothing() {
    let node = Node::new();
    let ours = node.ours();
    for (adds, checks, deletes) in [
        (GO, GO, GO),
        (ours.as_str(), ours.as_str(), ours.as_str()),
        (ours.as_str(), GO, GO),
        (GO, ours.as_str(), ours.as_str()),
        (ours.as_str(), GO, ours.as_str()),
        (GO, ours.as_str(), GO),
    ] {
        for (name, config) in variants(&node) {
            let pod = Namespace::new("pod");
            let attachment = Attachment::new("c1", &pod);
            let result = node.call(adds, "bridge", "ADD", &attachment, &config).result();
            let config = with_result(&config, &result);
            // CHECK is younger than the oldest version; Go's asks for an address plugin even where ADD did not.
            if name != "oldest version" && (name != "link of layer two" || checks == ours) {
                let config = if checks == GO { without_plain_routes(&config) } else { config.clone() };
                node.call(checks, "bridge", "CHECK", &attachment, &config).silent();
            }
            node.call(deletes, "bridge", "DEL", &attachment, &config).silent();
            node.assert_clean();
            assert_eq!(pod.link_names().len(), 1, "{name}: links left in the container");
            node.call(deletes, "bridge", "DEL", &attachment, &config).silent();
            node.home.sh("ip", &["link", "delete", "cni0"]);
        }
    }
}

/// Debian's Go plugin looks for a route without a next hop where it added one with the gateway, so it fails its own work.
fn without_plain_routes(config: &Value) -> Value {
    let mut config = config.clone();
    if let Some(routes) = config["prevResult"]["routes"].as_array_mut() {
        routes.retain(|route| route["gw"].is_string());
    }
    config
}

#[test]
fn flannel_attaches_and_the_packets_cross() {
    let node = Node::new();
    for (env, target) in [(SUBNET_ENV, "10.244.1.3"), (DUAL_SUBNET_ENV, "fd00:10:244:1::3")] {
        let config = node.flannel_config(env);
        let pods = [Namespace::new("pod"), Namespace::new("pod")];
        let mut results = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let attachment = Attachment::new(["c1", "c2"][number], pod);
            let answer = node.call(&node.ours(), "flannel", "ADD", &attachment, &config);
            assert_eq!(answer.stderr, "", "nothing to say on success");
            results.push(answer.result());
        }
        let kept = std::fs::read_to_string(node.path("state/flannel/c1")).unwrap();
        let expected = format!(
            r#"{{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{{"dataDir":"{}","ranges":[[{{"subnet":"10.244.1.0/24"}}]"#,
            node.path("state/networks")
        );
        assert!(kept.starts_with(&expected), "{kept}");
        pods[0].sh("ping", &["-c", "1", "-W", "5", target]);
        pods[1].sh("ping", &["-c", "1", "-W", "5", "10.244.1.1"]);
        let alias = node.home.ip_json(&["link", "show", "cni0"])[0]["ifalias"].as_str().unwrap().to_owned();
        assert!(alias.starts_with("loden gateway 10.244.1.1/24"), "{alias}");
        for (number, pod) in pods.iter().enumerate() {
            let attachment = Attachment::new(["c1", "c2"][number], pod);
            let config = with_result(&config, &results[number]);
            node.call(&node.ours(), "flannel", "CHECK", &attachment, &config).silent();
            node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
            node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
        }
        node.assert_clean();
        node.home.sh("ip", &["link", "delete", "cni0"]);
        std::fs::remove_dir_all(node.path("state")).unwrap();
    }
}

#[test]
fn the_kept_configuration_serves_the_go_plugins() {
    // Go's flannel passes the kept bytes to the delegate on DEL; so does ours for what Go's flannel kept.
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let config = node.flannel_config(SUBNET_ENV);
    node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    let kept = std::fs::read_to_string(node.path("state/flannel/c1")).unwrap();
    node.call_with(GO, "bridge", "DEL", &attachment, &kept, &[]).silent();
    assert_eq!(node.residue(), [node.path("state/flannel/c1")]);
    node.call_with(GO, "bridge", "ADD", &attachment, &kept, &[]).result();
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    node.assert_clean();
}

#[test]
fn check_notices_every_deviation() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let config = node.flannel_config(SUBNET_ENV);
    let result = node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    let config = with_result(&config, &result);
    let check = || node.call(&node.ours(), "flannel", "CHECK", &attachment, &config);
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    check().silent();

    pod.sh("ip", &["route", "del", "10.244.0.0/16"]);
    assert_eq!(check().error().1, "there is no route to 10.244.0.0/16 via 10.244.1.1 any more");
    pod.sh("ip", &["route", "add", "10.244.0.0/16", "via", "10.244.1.1"]);
    check().silent();

    node.home.sh("ip", &["link", "set", port, "nomaster"]);
    assert_eq!(check().error().1, format!("link {port} is no port of bridge cni0"));
    node.home.sh("ip", &["link", "set", port, "master", "cni0"]);

    node.home.sh("ip", &["link", "set", "cni0", "promisc", "on"]);
    assert!(check().error().1.contains("promiscuous mode is true, configured is false"));
    node.home.sh("ip", &["link", "set", "cni0", "promisc", "off"]);
    check().silent();

    pod.sh("ip", &["link", "set", "eth0", "address", "02:00:00:00:00:01"]);
    assert!(check().error().1.contains("eth0 has address 02:00:00:00:00:01"));
    pod.sh("ip", &["link", "set", "eth0", "address", result["interfaces"][2]["mac"].as_str().unwrap()]);
    check().silent();

    pod.sh("ip", &["addr", "flush", "dev", "eth0"]);
    assert_eq!(check().error().1, "link eth0 does not have address 10.244.1.2/24 any more");

    let reservation = node.path("state/networks/cbr0/10.244.1.2");
    std::fs::rename(&reservation, node.path("aside")).unwrap();
    assert_eq!(check().error().1, "host-local: Failed to find address added by container c1");
    std::fs::rename(node.path("aside"), &reservation).unwrap();

    pod.sh("ip", &["link", "delete", "eth0"]);
    assert!(check().error().1.contains("link eth0 does not exist any more"));
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    assert!(check().error().1.contains("is not attached by flannel"));
    node.assert_clean();
}

#[test]
fn masquerade_rules_come_and_go_with_the_container() {
    let node = Node::new();
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let config = node.flannel_config(&DUAL_SUBNET_ENV.replace("IPMASQ=true", "IPMASQ=false"));
    let rules = || node.home.sh("nft", &["list", "ruleset"]);
    for (container, pod) in ["c1", "c2"].into_iter().zip(&pods) {
        node.call(&node.ours(), "flannel", "ADD", &Attachment::new(container, pod), &config).result();
    }
    let text = rules();
    for line in [
        "table inet cni_plugins_masquerade {",
        "comment \"Masquerading for plugins from github.com/containernetworking/plugins\"",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip daddr 224.0.0.0/4 return",
        "ip6 daddr ff00::/8 return",
        "goto masq_checks",
        "ip saddr 10.244.1.2 ip daddr != 10.244.1.0/24 masquerade comment \"",
        "ip6 saddr fd00:10:244:1::3 ip6 daddr != fd00:10:244:1::/64 masquerade comment \"",
        ", net: cbr0, if: eth0, id: c2\"",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert_eq!(text.matches("goto masq_checks").count(), 1);
    assert_eq!(text.matches("masquerade comment").count(), 4);
    // A namespace that is gone takes its links along, but not its rules.
    let [gone, stays] = pods;
    let attachment = Attachment::new("c1", &gone);
    drop(gone);
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    assert_eq!(rules().matches("masquerade comment").count(), 2);
    node.call(&node.ours(), "flannel", "DEL", &Attachment::new("c2", &stays), &config).silent();
    node.assert_clean();
}

#[test]
fn masquerade_rules_of_the_go_plugins_iptables_backend_go_with_the_container() {
    let node = Node::new();
    let pods = [Namespace::new("pod"), Namespace::new("pod")];
    let config = node.bridge_config(json!({"ipMasq": true, "ipam": {
        "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
    }}));
    let chains = || node.home.sh("nft", &["list", "ruleset"]).matches("chain CNI-").count();
    for (container, pod) in ["c1", "c2"].into_iter().zip(&pods) {
        node.call(GO, "bridge", "ADD", &Attachment::new(container, pod), &config).result();
    }
    assert_eq!(chains(), 4, "one chain per container and family");
    node.call(&node.ours(), "bridge", "DEL", &Attachment::new("c1", &pods[0]), &config).silent();
    assert_eq!(chains(), 2, "the other container's stay");
    node.call(&node.ours(), "bridge", "DEL", &Attachment::new("c2", &pods[1]), &config).silent();
    node.assert_clean();
}

#[test]
fn bridge_keys_without_a_counterpart_in_debians_plugins() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let mut config = node.bridge_config(json!({
        "portIsolation": true, "enabledad": true, "runtimeConfig": {"mac": "02:00:00:00:00:07"}, "ipMasqBackend": "iptables",
    }));
    let result = node.call(&node.ours(), "bridge", "ADD", &attachment, &config).result();
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:07");
    let picture = node.picture(&pod);
    assert_eq!(picture["ports"][0]["isolated"], true);
    assert_eq!(picture["sysctls"]["accept_dad"], "1");
    node.call(&node.ours(), "bridge", "DEL", &attachment, &config).silent();

    support::merge(
        &mut config,
        json!({"disableContainerInterface": true, "ipam": null, "isGateway": false, "isDefaultGateway": false}),
    );
    node.call(&node.ours(), "bridge", "ADD", &attachment, &config).result();
    assert_eq!(pod.ip_json(&["link", "show", "eth0"])[0]["operstate"], "DOWN");
    node.call(&node.ours(), "bridge", "DEL", &attachment, &config).silent();
    node.assert_clean();
}

#[test]
fn a_bridge_with_another_address_is_refused_or_forced() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    node.home.sh("ip", &["link", "add", "cni0", "type", "bridge"]);
    node.home.sh("ip", &["addr", "add", "10.9.0.1/24", "dev", "cni0"]);
    let mut config = node.bridge_config(json!({}));
    let answer = node.call(&node.ours(), "bridge", "ADD", &attachment, &config);
    assert_eq!(answer.error().1, "\"cni0\" already has an IP address different from 10.244.1.1/24");
    node.assert_clean();
    config["forceAddress"] = json!(true);
    node.call(&node.ours(), "bridge", "ADD", &attachment, &config).result();
    let addresses = node.picture(&pod)["bridge"]["addresses"].clone();
    assert_eq!(addresses.as_array().unwrap().len(), 1);
    assert_eq!(addresses[0]["local"], "10.244.1.1");
    node.call(&node.ours(), "bridge", "DEL", &attachment, &config).silent();

    node.home.sh("ip", &["link", "delete", "cni0"]);
    node.home.sh("ip", &["link", "add", "cni0", "type", "veth", "peer", "name", "other"]);
    let answer = node.call(&node.ours(), "bridge", "ADD", &attachment, &config);
    assert_eq!(answer.error().1, "\"cni0\" already exists but is not a bridge");
}

#[test]
fn a_foreign_alias_of_the_bridge_stays() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    node.home.sh("ip", &["link", "add", "cni0", "type", "bridge"]);
    node.home.sh("ip", &["link", "set", "cni0", "alias", "do not touch"]);
    let config = node.bridge_config(json!({}));
    node.call(&node.ours(), "bridge", "ADD", &Attachment::new("c1", &pod), &config).result();
    assert_eq!(node.home.ip_json(&["link", "show", "cni0"])[0]["ifalias"], "do not touch");
}

#[test]
fn loopback_comes_up_and_goes_down() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment { ifname: "lo", ..Attachment::new("c1", &pod) };
    let config = |version: &str| json!({"cniVersion": version, "name": "cni-loopback", "type": "loopback"});
    let result = node.call(&node.ours(), "loopback", "ADD", &attachment, &config("1.0.0")).result();
    let mut go = node.call(GO, "loopback", "ADD", &attachment, &config("1.0.0")).result();
    go.as_object_mut().unwrap().remove("dns");
    assert_eq!(result, go);
    for version in ["0.4.0", "1.1.0"] {
        node.call(&node.ours(), "loopback", "CHECK", &attachment, &with_result(&config(version), &json!({})))
            .silent();
    }
    let old = node.call(&node.ours(), "loopback", "ADD", &attachment, &config("0.3.1")).result();
    assert_eq!(old["ips"][0]["version"], "4", "the shape is that of its version");
    node.call(&node.ours(), "loopback", "DEL", &attachment, &config("1.0.0")).silent();
    assert!(
        node.call(&node.ours(), "loopback", "CHECK", &attachment, &config("1.0.0"))
            .error()
            .1
            .contains("is down")
    );
    let gone = Attachment { netns: "/run/netns/absent".to_owned(), ..attachment.clone() };
    node.call(&node.ours(), "loopback", "DEL", &gone, &config("1.0.0")).silent();
    let (code, text) = node.call(&node.ours(), "loopback", "ADD", &gone, &config("1.0.0")).error();
    assert_eq!(code, 999);
    assert!(text.contains("failed to Statfs \"/run/netns/absent\": no such file or directory"), "{text}");
    pod.sh("ip", &["addr", "add", "10.1.1.1/32", "dev", "lo"]);
    let answer = node.call(&node.ours(), "loopback", "ADD", &attachment, &config("1.0.0"));
    assert_eq!(answer.error().1, "loopback interface found with non-loopback address \"10.1.1.1/32\"");
}
