//! `static`, beside Debian's Go plugin: the same answers to the same calls.

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

fn config(changes: Value) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": "n", "type": "any", "ipam": {"type": "static"}});
    support::merge(&mut config, changes);
    config
}

const TWO: &str = r#"[{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:01ff::1/64", "gateway": "3ffe:ffff:0::1"}]"#;

fn calls() -> Vec<(&'static str, Value)> {
    let two: Value = serde_json::from_str(TWO).unwrap();
    vec![
        ("", config(json!({"ipam": {"addresses": two}}))),
        (
            "",
            config(
                json!({"cniVersion": "0.2.0", "ipam": {"addresses": two, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}]}}),
            ),
        ),
        (
            "",
            config(
                json!({"cniVersion": "0.4.0", "ipam": {"addresses": two, "dns": {"nameservers": ["10.0.0.53"], "domain": "d", "search": ["s"], "options": ["o"]}}}),
            ),
        ),
        (
            "",
            config(
                json!({"ipam": {"ADDRESSES": [{"ADDRESS": "10.10.0.1/24"}], "Routes": [{"dst": "10.0.0.0/8", "gw": "10.10.0.9"}]}}),
            ),
        ),
        ("IP=10.11.0.1/24", config(json!({}))),
        (
            "IP=10.11.0.1/24, fd00::5/64;GATEWAY=10.11.0.254,fd00::1",
            config(json!({"ipam": {"addresses": two}})),
        ),
        ("IgnoreUnknown=1;K8S_POD_NAME=a;GATEWAY=10.10.0.77", config(json!({"ipam": {"addresses": two}}))),
        ("IP=10.11.0.1", config(json!({}))),
        ("IP=10.11.0.1/24;GATEWAY=x", config(json!({}))),
        ("FOO=1", config(json!({}))),
        ("FOO", config(json!({}))),
        ("IP=10.11.0.1/24", config(json!({"args": {"cni": {"ips": ["10.12.0.1/24", "fd00::9/64"]}}}))),
        (
            "",
            config(
                json!({"ipam": {"addresses": [{"address": "bad"}]}, "runtimeConfig": {"ips": ["10.13.0.1/24"]}, "args": {"cni": {"ips": ["10.12.0.1/24"]}}}),
            ),
        ),
        ("", config(json!({"runtimeConfig": {"ips": ["10.13.0.1"]}}))),
        ("", config(json!({"ipam": {"addresses": [{"address": "10.10.0.1"}]}}))),
        ("", config(json!({"ipam": {"addresses": [{}]}}))),
        ("", config(json!({"ipam": {"addresses": []}}))),
        ("", config(json!({"cniVersion": "0.2.0"}))),
        (
            "",
            config(
                json!({"cniVersion": "0.1.0", "ipam": {"addresses": [{"address": "10.0.0.1/8"}, {"address": "10.0.0.2/8"}]}}),
            ),
        ),
        (
            "",
            config(
                json!({"cniVersion": "0.3.0", "ipam": {"addresses": [{"address": "10.0.0.1/8"}, {"address": "10.0.0.2/8"}]}}),
            ),
        ),
        ("", config(json!({"ipam": null}))),
        ("IP=10.11.0.1/24", config(json!({"ipam": null}))),
    ]
}

#[test]
fn answers_are_those_of_the_go_plugin() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    for (args, config) in calls() {
        let call = |path: &str, command: &str, config: &Value| {
            node.call_with(path, "static", command, &attachment, &config.to_string(), &[("CNI_ARGS", args)])
        };
        let context = format!("{args} {config}");
        let (ours, theirs) = (call(&node.ours(), "ADD", &config), call(GO, "ADD", &config));
        assert_eq!(ours.success, theirs.success, "{context}: {ours:?} {theirs:?}");
        // Go's crashes on this one.
        if !theirs.stdout.starts_with('{') {
            assert_eq!(ours.error().0, 999);
            continue;
        }
        if !ours.success {
            assert_eq!(ours.error(), theirs.error(), "{context}");
            continue;
        }
        assert_eq!(plain(&ours.result()), plain(&theirs.result()), "{context}");
        call(&node.ours(), "DEL", &config).silent();
        if config["cniVersion"] != "1.0.0" && config["cniVersion"] != "0.4.0" {
            continue;
        }
        let result = ours.result();
        let mut moved = result.clone();
        for ip in moved["ips"].as_array_mut().into_iter().flatten() {
            ip["gateway"] =
                json!(if ip["address"].as_str().unwrap().contains(':') { "fd00::dead" } else { "10.99.0.1" });
        }
        for result in [result, moved, json!({"ips": []})] {
            let checked = with_result(&config, &result);
            let (ours, theirs) = (call(&node.ours(), "CHECK", &checked), call(GO, "CHECK", &checked));
            assert_eq!((ours.success, &ours.stdout), (theirs.success, &theirs.stdout), "{context}");
        }
        let (ours, theirs) = (call(&node.ours(), "CHECK", &config), call(GO, "CHECK", &config));
        assert_eq!(ours.error(), theirs.error(), "{context}");
    }
}

#[test]
fn detaching_asks_nothing_of_the_configuration() {
    let node = Node::new();
    let gone = Attachment { container: "c1", ifname: "eth0", netns: String::new() };
    for (command, config) in [
        ("DEL", config(json!({"ipam": 3}))),
        ("STATUS", config(json!({"cniVersion": "1.1.0"}))),
        ("GC", config(json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}))),
    ] {
        node.call(&node.ours(), "static", command, &gone, &config).silent();
    }
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[test]
fn a_bridge_gives_the_addresses_it_is_told() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let bridge = node.bridge_config(json!({"ipam": {
        "type": "static", "ranges": null, "dataDir": null,
        "addresses": [{"address": "10.244.1.77/24", "gateway": "10.244.1.1"}],
    }}));
    let result = node.call(&node.ours(), "bridge", "ADD", &attachment, &bridge).result();
    assert_eq!(result["ips"][0]["address"], "10.244.1.77/24");
    pod.sh("ping", &["-c", "1", "-W", "5", "10.244.1.1"]);
    node.call(&node.ours(), "bridge", "CHECK", &attachment, &with_result(&bridge, &result)).silent();
    node.call(&node.ours(), "bridge", "DEL", &attachment, &bridge).silent();
    node.assert_clean();
}
