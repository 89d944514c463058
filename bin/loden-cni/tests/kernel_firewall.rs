//! `firewall` by the programs of iptables, both variants: the rules of Debian's Go plugin, in every pairing with it, and the packets.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use support::host::Host;
use support::{Attachment, GO, Namespace, merge, wait_until};

/// The configuration with a result of both families, as a runtime hands it on.
fn config(changes: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "firewall", "backend": "iptables",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.244.1.5/24", "interface": 2}, {"address": "fd00:10:244:1::5/64", "interface": 2}],
        },
    });
    merge(&mut config, changes);
    config
}

const NOWHERE: &str = "/run/netns/there-is-no-such-namespace";

fn attachment(container: &str) -> Attachment<'_> {
    Attachment { container, ifname: "eth0", netns: NOWHERE.to_owned() }
}

/// The rules of single addresses; the chains and what joins them stay.
fn address_rules(host: &Host) -> Vec<String> {
    host.rules("filter").into_iter().filter(|rule| rule.ends_with("-j ACCEPT")).collect()
}

/// Without comments, which differ from version to version of the Go plugin.
fn bare(rules: Vec<String>) -> Vec<String> {
    let cut = |rule: String| match rule.split_once(" -m comment --comment \"") {
        Some((before, rest)) => format!("{before}{}", rest.split_once('"').unwrap().1),
        None => rule,
    };
    rules.into_iter().map(cut).collect()
}

#[test]
fn the_rules_are_those_of_the_go_plugin_in_every_pairing() {
    for variant in ["nft", "legacy"] {
        for changes in [
            json!({}),
            json!({"ingressPolicy": "same-bridge"}),
            json!({"iptablesAdminChainName": "OPERATOR", "ingressPolicy": "open", "cniVersion": "0.4.0", "prevResult": {"cniVersion": "0.4.0"}}),
        ] {
            let mut expected: Option<Vec<String>> = None;
            let config = config(changes.clone());
            for (adds, deletes) in [(false, false), (true, true), (true, false), (false, true)] {
                // Fresh each time, so that the shared chains are made by the plugin under test.
                let host = Host::new(variant);
                let ours = host.node.ours();
                let path = |is_ours: bool| if is_ours { ours.as_str() } else { GO };
                let call = |is_ours, command, config: &Value| {
                    host.call(path(is_ours), "firewall", command, &attachment("c1"), config)
                };
                let result = call(adds, "ADD", &config).result();
                let addresses = |result: &Value| -> Vec<Value> {
                    result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].clone()).collect()
                };
                assert_eq!(addresses(&result), addresses(&config["prevResult"]));
                let rules = host.rules("filter");
                let isolates = changes["ingressPolicy"] == "same-bridge";
                let shown = if isolates { bare(rules.clone()) } else { rules.clone() };
                assert_eq!(
                    shown,
                    *expected.get_or_insert_with(|| shown.clone()),
                    "{variant} {changes} ours: {adds}"
                );
                // Both again, by both: nothing is there twice. Comments of different versions make Go's isolation rules different ones.
                call(true, "ADD", &config).result();
                if !isolates {
                    call(false, "ADD", &config).result();
                    call(false, "CHECK", &config).silent();
                }
                assert_eq!(host.rules("filter"), rules, "{variant} {changes} ours: {adds}");
                call(true, "CHECK", &config).silent();
                call(deletes, "DEL", &config).silent();
                assert!(address_rules(&host).is_empty(), "{variant} {:#?}", host.rules("filter"));
                call(deletes, "DEL", &config).silent();
                let (code, message) = call(true, "CHECK", &config).error();
                assert_eq!(code, 999);
                assert!(
                    message.starts_with(
                        "expected rule [-d 10.244.1.5/32 -m conntrack --ctstate RELATED,ESTABLISHED"
                    ),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn refusals() {
    let host = Host::new("nft");
    let ours = host.node.ours();
    let add = |config: &Value| host.call(&ours, "firewall", "ADD", &attachment("c1"), config).error();
    assert_eq!(add(&config(json!({"prevResult": null}))).1, "missing prevResult from earlier plugin");
    let (code, message) = add(&config(json!({"cniVersion": "0.3.1"})));
    assert_eq!(code, 1);
    assert!(message.contains(r#"plugin supports ["0.4.0" "1.0.0" "1.1.0"]"#), "{message}");
    assert_eq!(
        add(&config(json!({"ingressPolicy": "same-bridge", "prevResult": {"interfaces": null}}))).1,
        r#"interface needs to be set for ingress policy "same-bridge", make sure to chain "firewall" plugin with "bridge""#
    );
    assert_eq!(add(&config(json!({"ingressPolicy": "shut"}))).1, r#"unknown ingress policy: "shut""#);
    let (_, message) = add(&config(json!({"iptablesAdminChainName": "x\nCOMMIT"})));
    assert!(message.contains("cannot be a chain's name"), "{message}");
    assert!(host.rules("filter").is_empty(), "{:#?}", host.rules("filter"));
}

/// A node without IPv6 has no use for `ip6tables`; a container without IPv6 does not either.
#[test]
fn only_the_programs_of_the_containers_families_are_needed() {
    let host = Host::new("nft");
    let ours = host.node.ours();
    for suffix in ["", "-restore", "-save"] {
        fs::remove_file(host.node.path(&format!("sbin/ip6tables{suffix}"))).unwrap();
    }
    let call = |command: &str, config: &Value| {
        let path = host.node.path("sbin");
        let environment = [("PATH", path.as_str())];
        let text = config.to_string();
        host.node.call_with(&ours, "firewall", command, &attachment("c1"), &text, &environment)
    };
    let v4 = config(json!({"prevResult": {"ips": [{"address": "10.244.1.5/24", "interface": 2}]}}));
    call("ADD", &v4).result();
    call("CHECK", &v4).silent();
    call("DEL", &v4).silent();
    let (_, message) = call("ADD", &config(json!({}))).error();
    assert!(message.contains("no usable ip6tables in PATH"), "{message}");
    // What was done for the other family is taken back.
    let rules = host.program("iptables", &["-S", "CNI-FORWARD"], "");
    assert!(!rules.contains("10.244.1.5"), "{rules}");
    call("DEL", &config(json!({}))).silent();
}

#[test]
fn rules_go_without_a_result_while_the_container_lives() {
    for variant in ["nft", "legacy"] {
        let host = Host::new(variant);
        let ours = host.node.ours();
        let pod = Namespace::new("pod");
        let attachment = Attachment::new("c1", &pod);
        let bridge = host.node.bridge_config(json!({"ipam": {
            "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
        }}));
        let result = host.call(&ours, "bridge", "ADD", &attachment, &bridge).result();
        let config = config(json!({"prevResult": result}));
        host.call(&ours, "firewall", "ADD", &attachment, &config).result();
        assert_eq!(address_rules(&host).len(), 4);
        let mut config = config.clone();
        config.as_object_mut().unwrap().remove("prevResult");
        host.call(&ours, "firewall", "DEL", &attachment, &config).silent();
        assert!(address_rules(&host).is_empty(), "{variant} {:#?}", host.rules("filter"));
        // Without the container nobody knows the addresses.
        let mut gone = attachment.clone();
        gone.netns = NOWHERE.to_owned();
        host.call(&ours, "firewall", "DEL", &gone, &config).silent();
        gone.netns = String::new();
        host.call(&ours, "firewall", "DEL", &gone, &config).silent();
        host.call(&ours, "bridge", "DEL", &attachment, &bridge).silent();
    }
}

#[test]
fn eight_at_once_beside_two_thousand_chains() {
    for variant in ["nft", "legacy"] {
        let host = Host::new(variant);
        let mut others = String::from("*filter\n");
        for number in 0..2000 {
            writeln!(others, ":OTHER-{number} - [0:0]").unwrap();
        }
        for number in 0..2000 {
            writeln!(others, "-A OTHER-{number} -d 192.0.2.1/32 -j DROP").unwrap();
            writeln!(others, "-A INPUT -s 192.0.2.1/32 -j OTHER-{number}").unwrap();
        }
        others.push_str("COMMIT\n");
        host.program("iptables-restore", &["--noflush"], &others);
        let ours = host.node.ours();
        let before = host.rules("filter");
        let all = |command: &'static str| {
            thread::scope(|scope| {
                let running: Vec<_> = (0..8)
                    .map(|number| {
                        let (host, ours) = (&host, &ours);
                        scope.spawn(move || {
                            let ips = json!([{"address": format!("10.244.1.{}/24", number + 10)}]);
                            let config = config(json!({"prevResult": {"ips": ips}}));
                            host.call(ours, "firewall", command, &attachment("c1"), &config)
                        })
                    })
                    .collect();
                for thread in running {
                    let answer = thread.join().unwrap();
                    assert!(answer.success, "{variant} {command}: {answer:?}");
                }
            });
        };
        all("ADD");
        assert_eq!(address_rules(&host).len(), 16, "{variant}");
        all("DEL");
        let mut after = host.rules("filter");
        after.retain(|rule| !rule.contains("CNI-"));
        assert_eq!(after, before, "{variant}");
    }
}

/// A node whose own filter forwards nothing, with a container on each of two bridges.
struct Crossing {
    host: Host,
    pods: Vec<(Namespace, Value)>,
    policy: &'static str,
}

impl Crossing {
    fn new(variant: &'static str, policy: &'static str) -> Self {
        let host = Host::new(variant);
        host.program("iptables", &["-P", "FORWARD", "DROP"], "");
        Self { host, pods: Vec::new(), policy }
    }

    /// A container in the bridge of this number; its address.
    fn attach(&mut self, bridge: u8, with_firewall: bool) -> String {
        let pod = Namespace::new("pod");
        let ours = self.host.node.ours();
        let id = format!("c{}", self.pods.len());
        let attachment = Attachment::new(&id, &pod);
        let plan = self.host.node.bridge_config(json!({
            "name": format!("net{bridge}"), "bridge": format!("cni{bridge}"),
            "ipam": {"ranges": [[{"subnet": format!("10.244.{bridge}.0/24")}]], "routes": null},
        }));
        let result = self.host.call(&ours, "bridge", "ADD", &attachment, &plan).result();
        let firewall = config(json!({"prevResult": result, "ingressPolicy": self.policy}));
        if with_firewall {
            self.host.call(&ours, "firewall", "ADD", &attachment, &firewall).result();
        }
        self.pods.push((pod, firewall));
        let address = result["ips"][0]["address"].as_str().unwrap();
        address.split_once('/').unwrap().0.to_owned()
    }

    fn reaches(&self, from: usize, to: &str) -> bool {
        let run = || Command::new("ping").args(["-c", "1", "-W", "1", to]).output();
        self.pods[from].0.ns.run(run).unwrap().expect("apt-get install iputils-ping").status.success()
    }
}

#[test]
fn packets_pass_where_they_are_let_and_bridges_are_kept_apart() {
    for variant in ["nft", "legacy"] {
        let mut without = Crossing::new(variant, "open");
        without.attach(1, false);
        let other = without.attach(2, false);
        assert!(!without.reaches(0, &other), "the node's own filter lets everything through");

        let mut open = Crossing::new(variant, "open");
        open.attach(1, true);
        let other = open.attach(2, true);
        assert!(wait_until(|| open.reaches(0, &other)), "{variant}: open and still dropped");
        // What an operator says comes first.
        open.host.program("iptables", &["-A", "CNI-ADMIN", "-j", "DROP"], "");
        assert!(!open.reaches(0, &other), "{variant}: the operator's chain is not asked first");

        let mut apart = Crossing::new(variant, "same-bridge");
        apart.attach(1, true);
        let other = apart.attach(2, true);
        let sibling = apart.attach(1, true);
        assert!(wait_until(|| apart.reaches(0, &sibling)), "{variant}: the own bridge is closed");
        assert!(!apart.reaches(0, &other), "{variant}: the bridges are not kept apart");
        // Somebody flushed the filter; the next container brings everything back, in the right order.
        apart.host.program("iptables", &["-F", "FORWARD"], "");
        apart.attach(3, true);
        assert!(!apart.reaches(0, &other), "{variant}: not kept apart after a flush");
    }
}
