//! What a mapping depends on over time: rules that somebody takes away, flows that are older than the rules, refusals.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod ports;
mod support;

use std::net::{SocketAddr, UdpSocket};

use ports::{Mapped, ask_tcp, ask_udp_by, chain_of, mapping, port_config, serve_tcp, serve_udp};
use serde_json::{Value, json};
use support::{Attachment, Namespace, merge};

fn one_port(net: &Mapped, changes: Value) -> Value {
    let mut config = port_config(net, json!({"runtimeConfig": {"portMappings": [mapping(8080, 80, "tcp")]}}));
    merge(&mut config, changes);
    config
}

#[test]
fn check_fails_when_any_rule_is_gone() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"backend": "nftables"}));
    net.portmap("ADD", &config).result();
    for (family, rules) in [("ip", 3 + 2 + 2), ("ip6", 2 + 2 + 2)] {
        let whole = net.node.home.sh("nft", &["-a", "list", "table", family, "cni_hostport"]);
        let mut chain = String::new();
        let mut seen = 0;
        for line in whole.lines() {
            if let Some(name) = line.trim().strip_prefix("chain ") {
                chain = name.split(' ').next().unwrap().to_owned();
                continue;
            }
            let Some((rule, handle)) = line.trim().split_once(" # handle ") else { continue };
            if rule.starts_with("table") || rule == "jump hostip_hostports" {
                continue;
            }
            seen += 1;
            net.node.home.sh("nft", &["delete", "rule", family, "cni_hostport", &chain, "handle", handle]);
            let answer = net.portmap("CHECK", &config);
            assert!(!answer.success, "{family} {chain} {rule}");
            assert!(answer.error().1.contains("chain"), "{rule}: {answer:?}");
            // What leads there is put back by the next ADD, of whichever container.
            if rule.contains("jump") {
                let other = Attachment::new("other", &net.pod);
                net.node.call(&net.node.ours(), "portmap", "ADD", &other, &config).result();
                net.node.call(&net.node.ours(), "portmap", "DEL", &other, &config).silent();
            } else {
                net.node.home.sh("nft", &["add", "rule", family, "cni_hostport", &chain, rule]);
            }
            net.portmap("CHECK", &config).silent();
        }
        assert_eq!(seen + 1, rules, "{whole}");
    }

    let config = one_port(&net, json!({"backend": "iptables", "name": "second"}));
    net.portmap("ADD", &config).result();
    for program in ["iptables", "ip6tables"] {
        let listed = net.node.home.sh(program, &["-t", "nat", "-S"]);
        let rules: Vec<&str> = listed.lines().filter(|line| line.starts_with("-A")).collect();
        assert!(rules.len() >= 8, "{listed}");
        for rule in rules {
            let alter = |line: &str| {
                net.node.home.sh("sh", &["-c", &format!("{program} -t nat {line}")]);
            };
            alter(&rule.replacen("-A", "-D", 1));
            let answer = net.portmap("CHECK", &config);
            assert!(!answer.success, "{program} {rule}");
            assert!(answer.error().1.contains("has no rule"), "{rule}: {answer:?}");
            alter(rule);
            net.portmap("CHECK", &config).silent();
        }
    }
    let (_, message) = net.portmap("CHECK", &one_port(&net, json!({"prevResult": null}))).error();
    assert_eq!(message, "Required prevResult missing");
}

/// A neighbour keeps sending from one port while the container comes and goes.
fn flows_follow_the_rules(backend: &str) {
    let net = Mapped::new();
    serve_udp(&net.pod, 5353);
    let config = port_config(
        &net,
        json!({"backend": backend, "runtimeConfig": {"portMappings": [
            mapping(5300, 5353, "udp"), mapping(5301, 5353, "udp"),
        ]}}),
    );
    for to in ["192.0.2.1:5300", "[2001:db8::1]:5300"] {
        let to: SocketAddr = to.parse().unwrap();
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let sender = net.client.ns.run(|| UdpSocket::bind(any)).unwrap().unwrap();
        // Something on the node answers the port, so that the flow is tracked without translation. A flow that nobody tracks needs
        // a rule with a memory.
        if net.node.home.sh("nft", &["list", "tables"]).is_empty() {
            let watch =
                "table inet watch { chain c { type filter hook prerouting priority 0; ct state new; }; }";
            net.node.home.sh("nft", &[watch]);
        }
        let on_node = net.node.home.ns.run(|| UdpSocket::bind((to.ip(), to.port()))).unwrap().unwrap();
        sender.send_to(b"early", to).unwrap();
        on_node.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        on_node.recv_from(&mut [0; 16]).unwrap();

        net.portmap("ADD", &config).result();
        assert!(ask_udp_by(&sender, to).is_some(), "{backend} {to}: the older flow takes the new rules");

        // After DEL the same flow reaches the node again, not the container.
        on_node.set_nonblocking(true).unwrap();
        net.portmap("DEL", &config).silent();
        assert_eq!(ask_udp_by(&sender, to), None, "{backend} {to}: the flow forgets the container");
        assert!(on_node.recv_from(&mut [0; 16]).is_ok(), "{backend} {to}");
    }
}

#[test]
fn udp_flows_follow_the_nftables_rules() {
    flows_follow_the_rules("nftables");
}

#[test]
fn udp_flows_follow_the_iptables_rules() {
    flows_follow_the_rules("iptables");
}

#[test]
fn conditions_decide_who_is_led_to_the_container() {
    for (backend, excluded) in [
        ("nftables", json!(["ip", "saddr", "!=", "192.0.2.2"])),
        ("iptables", json!(["!", "-s", "192.0.2.2"])),
    ] {
        let net = Mapped::new();
        serve_tcp(&net.pod, 80);
        // No backend: the words tell which one is meant.
        let config = one_port(&net, json!({"conditionsV4": excluded}));
        net.portmap("ADD", &config).result();
        assert_eq!(ask_tcp(&net.client, "192.0.2.1:8080"), None, "{backend}");
        assert!(ask_tcp(&net.client, "[2001:db8::1]:8080").is_some(), "{backend}");
        assert!(ask_tcp(&net.node.home, "192.0.2.1:8080").is_some(), "{backend}");
        assert_eq!(net.rules().iter().any(|rule| rule.contains("CNI-DN-")), backend == "iptables");
        net.portmap("CHECK", &config).silent();
        net.portmap("DEL", &config).silent();
        net.assert_no_rules();
        let other = if backend == "nftables" { "iptables" } else { "nftables" };
        let mixed = one_port(&net, json!({"backend": other, "conditionsV4": config["conditionsV4"]}));
        assert_eq!(
            net.portmap("ADD", &mixed).error().1,
            format!(
                "failed to parse config: {other} backend was requested but configuration contains {backend}-specific options [conditionsV4]"
            )
        );
    }
    let net = Mapped::new();
    let unknown = one_port(&net, json!({"conditionsV4": ["meta", "skuid", "0"]}));
    let (code, message) = net.portmap("ADD", &unknown).error();
    assert!(code == 999 && message.contains("`conditionsV4`") && message.contains("skuid"), "{message}");
    net.assert_no_rules();
}

#[test]
fn a_chain_of_somebody_elses_can_set_the_mark() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"externalSetMarkChain": "THEIR-MARK"}));
    let (_, message) = net.portmap("ADD", &config).error();
    assert!(message.contains("iptables"), "the chain must be there: {message}");
    net.assert_no_rules();
    for program in ["iptables", "ip6tables"] {
        net.node.home.sh(program, &["-t", "nat", "-N", "THEIR-MARK"]);
    }
    net.portmap("ADD", &config).result();
    let listed = net.node.home.sh("iptables", &["-t", "nat", "-S"]);
    assert!(listed.contains("-j THEIR-MARK") && !listed.contains("CNI-HOSTPORT-SETMARK"), "{listed}");
    net.portmap("CHECK", &config).silent();
    net.portmap("DEL", &config).silent();
    net.assert_no_rules();
}

#[test]
fn the_backend_is_iptables_where_that_works() {
    let net = Mapped::new();
    let config = one_port(&net, json!({}));
    net.portmap("ADD", &config).result();
    assert!(net.rules().iter().any(|rule| rule.contains(&chain_of("cbr0", "c1"))));
    net.portmap("DEL", &config).silent();
    net.assert_no_rules();
    let without = |command: &str| {
        let text = config.to_string();
        let environment = [("PATH", "/nowhere")];
        let attachment = net.attachment();
        net.node.call_with(&net.node.ours(), "portmap", command, &attachment, &text, &environment)
    };
    without("ADD").result();
    assert!(net.rules().iter().any(|rule| rule.contains("dnat to")));
    without("CHECK").silent();
    without("DEL").silent();
    net.assert_no_rules();
}

#[test]
fn the_older_iptables_is_spoken_to_where_the_host_has_chosen_it() {
    let net = Mapped::new();
    let programs = net.node.root.path().join("legacy");
    std::fs::create_dir(&programs).unwrap();
    for program in
        ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"]
    {
        std::os::unix::fs::symlink("/usr/sbin/xtables-legacy-multi", programs.join(program)).unwrap();
    }
    let path = programs.to_str().unwrap();
    let usable = std::path::Path::new("/proc/net/ip_tables_names").exists();
    let config = one_port(&net, json!({"backend": "iptables"}));
    let call = |command: &str| {
        let attachment = net.attachment();
        let environment = [("PATH", path)];
        net.node.call_with(
            &net.node.ours(),
            "portmap",
            command,
            &attachment,
            &config.to_string(),
            &environment,
        )
    };
    if !usable {
        // A kernel without it: said clearly, and nothing is left behind.
        assert!(call("ADD").error().1.contains("iptables"));
        net.assert_no_rules();
        return;
    }
    serve_tcp(&net.pod, 80);
    call("ADD").result();
    assert!(ask_tcp(&net.client, "192.0.2.1:8080").is_some());
    call("CHECK").silent();
    call("DEL").silent();
    let listed = net.node.home.sh(&format!("{path}/iptables"), &["-t", "nat", "-S"]);
    assert!(!listed.contains("CNI-DN-"), "{listed}");
}

#[test]
fn status_tells_whether_the_backend_is_there() {
    let net = Mapped::new();
    let status = |backend: &str, path: &str| {
        let config = json!({"cniVersion": "1.1.0", "name": "n", "type": "portmap", "backend": backend});
        let environment = [("PATH", path)];
        let attachment = net.attachment();
        net.node.call_with(
            &net.node.ours(),
            "portmap",
            "STATUS",
            &attachment,
            &config.to_string(),
            &environment,
        )
    };
    status("nftables", "/nowhere").silent();
    status("iptables", "/usr/sbin").silent();
    let (code, message) = status("iptables", "/nowhere").error();
    assert!(code == 50 && message.contains("install iptables"), "{message}");
    assert_eq!(status("x", "/nowhere").error(), (999, "unrecognized backend \"x\"".to_owned()));
}

#[test]
fn refusals_leave_nothing_behind() {
    let net = Mapped::new();
    let refused = |changes: Value| net.portmap("ADD", &one_port(&net, changes)).error().1;
    assert_eq!(refused(json!({"prevResult": null})), "must be called as chained plugin");
    assert_eq!(
        refused(json!({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}})),
        "failed to parse config: Invalid container port number: 0"
    );
    assert_eq!(
        refused(json!({"markMasqBit": 1, "externalSetMarkChain": "X"})),
        "failed to parse config: Cannot specify externalSetMarkChain and markMasqBit"
    );
    // The second family's rules cannot be made, so the first one's go.
    let message = refused(json!({"backend": "iptables", "conditionsV6": ["--no-such-option"]}));
    assert!(message.contains("no-such-option"), "{message}");
    net.assert_no_rules();
    // Nothing of the container's is there, no result, no namespace.
    let config = json!({"cniVersion": "1.0.0", "name": "n", "type": "portmap"});
    let gone = Attachment { container: "never", ifname: "eth0", netns: String::new() };
    net.node.call(&net.node.ours(), "portmap", "DEL", &gone, &config).silent();
    let empty = Namespace::new("empty");
    drop(empty);
}
