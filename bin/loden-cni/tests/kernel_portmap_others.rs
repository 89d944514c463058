//! Mapped ports beside others': the Go plugin's on the same node, other networks' of the same container, thousands of other containers'.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod ports;
mod support;

use std::fmt::Write as _;
use std::process::Command;

use ports::{Mapped, ask_tcp, chain_of, mapping, port_config, serve_tcp};
use serde_json::{Value, json};
use support::{Attachment, merge};

fn one_port(net: &Mapped, changes: Value) -> Value {
    let mut config = port_config(net, json!({"runtimeConfig": {"portMappings": [mapping(8080, 80, "tcp")]}}));
    merge(&mut config, changes);
    config
}

/// Feeds a program of the node.
fn feed(net: &Mapped, program: &str, args: &[&str], text: &str) {
    let file = net.node.write("fed", text);
    let command = format!("{program} {} < {file}", args.join(" "));
    net.node.home.sh("sh", &["-c", &command]);
}

#[test]
fn what_one_plugin_adds_the_other_checks_and_deletes() {
    let net = Mapped::new();
    serve_tcp(&net.pod, 80);
    let ports: Vec<Value> = (1..=17).map(|n| mapping(8000 + n, 80, "tcp")).collect();
    let mappings = [ports, vec![mapping(53, 53, "udp"), mapping(99, 99, "sctp")]].concat();
    for version in ["0.4.0", "1.0.0"] {
        // masqAll is younger than Debian's release.
        for keys in [json!({}), json!({"snat": false}), json!({"markMasqBit": 3})] {
            let mut config = port_config(&net, json!({"cniVersion": version, "backend": "iptables"}));
            if version == "0.4.0" {
                let converted = json!({"ips": [
                    {"version": "4", "address": format!("{}/24", net.address)},
                    {"version": "6", "address": "fd00:244:1::2/64"},
                ]});
                config["prevResult"] = converted;
            }
            merge(&mut config, keys);
            config["runtimeConfig"] = json!({"portMappings": mappings});
            let listing = || {
                let list = |program| net.node.home.sh(program, &["-t", "nat", "-S"]);
                [list("iptables"), list("ip6tables")]
            };
            net.go_portmap("ADD", &config).result();
            assert!(ask_tcp(&net.client, "192.0.2.1:8017").is_some());
            let by_go = listing();
            net.portmap("CHECK", &config).silent();
            net.portmap("ADD", &config).result();
            assert_eq!(listing(), by_go, "what the Go plugin made is right already");
            net.portmap("DEL", &config).silent();
            net.assert_no_rules();

            net.portmap("ADD", &config).result();
            assert!(ask_tcp(&net.client, "192.0.2.1:8017").is_some());
            assert_eq!(listing(), by_go, "the order and the text of every rule");
            // Debian's release looks for IPv4 rules in both families and so finds fault with its own work as well; the listing is the check.
            net.go_portmap("DEL", &config).silent();
            net.assert_no_rules();
        }
    }
}

#[test]
fn both_plugins_work_on_one_nodes_chains() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"backend": "iptables"}));
    let call = |go: bool, command: &str, container: &str| {
        let path = if go { support::GO.to_owned() } else { net.node.ours() };
        net.node.call(&path, "portmap", command, &Attachment::new(container, &net.pod), &config)
    };
    let containers: Vec<String> = (0..16).map(|n| format!("c{n}")).collect();
    // The Go plugin looks for what is shared and adds it in two steps, so two of a node's very first containers may both add it. Later
    // ones find it.
    call(false, "ADD", "first").result();
    for command in ["ADD", "DEL"] {
        std::thread::scope(|scope| {
            for (n, container) in containers.iter().enumerate() {
                scope.spawn(move || {
                    let answer = call((n % 4 == 0) == (command == "ADD"), command, container);
                    assert!(answer.success, "{command} {container}: {answer:?}");
                });
            }
        });
        if command == "ADD" {
            let listed = net.node.home.sh("iptables", &["-t", "nat", "-S"]);
            for container in &containers {
                let chain = chain_of("cbr0", container);
                assert_eq!(listed.matches(&format!("-j {chain}")).count(), 1, "{container}: {listed}");
                assert_eq!(listed.matches(&format!("-A {chain} ")).count(), 3, "{container}: {listed}");
            }
            assert_eq!(listed.matches("-j CNI-HOSTPORT-DNAT").count(), 2, "{listed}");
        }
    }
    call(false, "DEL", "first").silent();
    net.assert_no_rules();
}

#[test]
fn sixteen_containers_at_once_share_the_nftables_chains() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"backend": "nftables"}));
    let containers: Vec<String> = (0..16).map(|n| format!("c{n}")).collect();
    for command in ["ADD", "CHECK", "DEL"] {
        std::thread::scope(|scope| {
            for container in &containers {
                let (net, config) = (&net, &config);
                scope.spawn(move || {
                    let attachment = Attachment::new(container, &net.pod);
                    let answer = net.node.call(&net.node.ours(), "portmap", command, &attachment, config);
                    assert!(answer.success, "{command} {container}: {answer:?}");
                });
            }
        });
        if command == "ADD" {
            let listed = net.node.home.sh("nft", &["list", "table", "ip", "cni_hostport"]);
            assert_eq!(listed.matches("dnat to").count(), 16, "{listed}");
            assert_eq!(listed.matches("jump hostports_all").count(), 2, "{listed}");
            assert_eq!(listed.matches("jump hostip_hostports").count(), 1, "{listed}");
        }
    }
    net.assert_no_rules();
}

/// The table as other releases of the Go plugin leave it, with one container of their own.
fn go_table(net: &Mapped, container: &str, with_all: bool) -> String {
    let pod = &net.address;
    let jumps = if with_all {
        "fib daddr type local jump hostports_all"
    } else {
        "jump hostip_hostports\n  fib daddr type local jump hostports"
    };
    let all =
        if with_all { "chain hostports_all {\n  jump hostip_hostports\n  jump hostports\n }" } else { "" };
    format!(
        "table ip cni_hostport {{
 comment \"CNI portmap plugin\"
 chain hostports {{
  tcp dport 8080 dnat to {pod}:80 comment \"{container}\"
 }}
 chain hostip_hostports {{
  ip daddr 192.0.2.1 tcp dport 8081 dnat to {pod}:80 comment \"{container}\"
 }}
 {all}
 chain prerouting {{
  type nat hook prerouting priority dstnat; policy accept;
  {jumps}
 }}
 chain output {{
  type nat hook output priority -100; policy accept;
  {jumps}
 }}
 chain masquerading {{
  type nat hook postrouting priority srcnat; policy accept;
  ip saddr {pod} ip daddr {pod} masquerade comment \"{container}\"
  ip saddr 127.0.0.1 ip daddr {pod} masquerade comment \"{container}\"
 }}
}}
"
    )
}

#[test]
fn rules_of_older_go_releases_are_checked_deleted_and_led_to() {
    for with_all in [true, false] {
        let net = Mapped::new();
        serve_tcp(&net.pod, 80);
        feed(&net, "nft", &["-f", "-"], &go_table(&net, "c1", with_all));
        let config = one_port(&net, json!({"backend": "nftables"}));
        let by_go = one_port(
            &net,
            json!({"backend": "nftables", "prevResult": {"ips": [{"address": format!("{}/24", net.address)}]},
            "runtimeConfig": {"portMappings": [
                mapping(8080, 80, "tcp"),
                {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
            ]}}),
        );
        net.portmap("CHECK", &by_go).silent();
        // Another container of ours brings the layout up to date, and theirs stays reachable.
        let other = Attachment::new("c2", &net.pod);
        let mut second = config.clone();
        second["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(9090);
        net.node.call(&net.node.ours(), "portmap", "ADD", &other, &second).result();
        for port in ["8080", "8081", "9090"] {
            assert!(ask_tcp(&net.client, &format!("192.0.2.1:{port}")).is_some(), "{port}");
        }
        net.portmap("CHECK", &by_go).silent();
        net.portmap("DEL", &by_go).silent();
        assert_eq!(net.rules().iter().filter(|rule| rule.contains("\"c1\"")).count(), 0);
        assert_eq!(ask_tcp(&net.client, "192.0.2.1:8080"), None);
        net.node.call(&net.node.ours(), "portmap", "CHECK", &other, &second).silent();
        net.node.call(&net.node.ours(), "portmap", "DEL", &other, &second).silent();
        net.assert_no_rules();
    }
}

#[test]
fn a_containers_other_networks_keep_their_rules() {
    for backend in ["nftables", "iptables"] {
        let net = Mapped::new();
        let first = one_port(&net, json!({"backend": backend}));
        let second = one_port(
            &net,
            json!({"backend": backend, "name": "second", "prevResult": {"ips": [{"address": "10.99.0.7/24"}]}}),
        );
        net.portmap("ADD", &first).result();
        let alone = net.rules();
        net.portmap("ADD", &second).result();
        assert!(net.rules().len() > alone.len());
        // As a runtime does after a failed ADD: without a result.
        let mut forgotten = second.clone();
        merge(&mut forgotten, json!({"prevResult": null}));
        net.portmap("DEL", &forgotten).silent();
        assert_eq!(net.rules(), alone, "{backend}");
        // Without anything but the container's name.
        let mut forgotten = first.clone();
        merge(&mut forgotten, json!({"prevResult": null, "runtimeConfig": null}));
        net.portmap("DEL", &forgotten).silent();
        net.assert_no_rules();
    }
}

#[test]
fn another_backend_than_that_of_add_deletes_as_well() {
    let net = Mapped::new();
    for (added, deleted) in [("nftables", "iptables"), ("iptables", "nftables")] {
        net.portmap("ADD", &one_port(&net, json!({"backend": added}))).result();
        assert!(!net.rules().is_empty());
        net.portmap("DEL", &one_port(&net, json!({"backend": deleted}))).silent();
        net.assert_no_rules();
    }
}

#[test]
fn chains_of_before_0_7_go_with_the_container() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"backend": "iptables"}));
    let old = chain_of("cbr0", "c1").replace("CNI-DN-", "CNI-SN-");
    net.portmap("ADD", &config).result();
    let text = format!(
        "*nat\n:CNI-HOSTPORT-SNAT - [0:0]\n:{old} - [0:0]\n-A POSTROUTING -j CNI-HOSTPORT-SNAT\n\
         -A CNI-HOSTPORT-SNAT -j {old}\n-A {old} -s 127.0.0.1 -d {} -p tcp --dport 80 -j MASQUERADE\nCOMMIT\n",
        net.address
    );
    feed(&net, "iptables-restore", &["--noflush"], &text);
    net.portmap("DEL", &config).silent();
    net.assert_no_rules();
}

#[test]
fn gc_takes_what_names_the_network_and_nothing_else() {
    for backend in ["nftables", "iptables"] {
        let net = Mapped::new();
        let call = |command: &str, container: &str, config: &Value| {
            net.node.call(&net.node.ours(), "portmap", command, &Attachment::new(container, &net.pod), config)
        };
        let v1 = |changes: Value| {
            let mut config = one_port(&net, json!({"cniVersion": "1.1.0", "backend": backend}));
            merge(&mut config, changes);
            config
        };
        call("ADD", "stays", &v1(json!({}))).result();
        call("ADD", "goes", &v1(json!({}))).result();
        call("ADD", "goes", &v1(json!({"name": "second"}))).result();
        if backend == "nftables" {
            // Of the Go plugin: its network cannot be told.
            feed(&net, "nft", &["-f", "-"], &go_table(&net, "unknown", true));
        }
        let marks = |container: &str, network: &str| match backend {
            "iptables" => chain_of(network, container),
            _ => format!("\"{container}\""),
        };
        let count = |mark: &str| net.rules().iter().filter(|rule| rule.contains(mark)).count();
        let per_container = count(&marks("stays", "cbr0"));
        assert!(per_container > 0);

        let mut list = v1(json!({"prevResult": null, "runtimeConfig": null}));
        assert!(call("GC", "x", &list).error().1.contains("nothing was removed"));
        list["cni.dev/valid-attachments"] = json!([{"containerID": "stays", "ifname": "eth0"}]);
        call("GC", "x", &list).silent();
        assert_eq!(count(&marks("stays", "cbr0")), per_container);
        assert_eq!(count(&marks("goes", "second")), per_container, "another network's: {:#?}", net.rules());
        if backend == "iptables" {
            assert_eq!(count(&marks("goes", "cbr0")), 0);
        } else {
            assert!(count(&marks("unknown", "")) > 0);
        }
        list["name"] = json!("second");
        list["cni.dev/valid-attachments"] = json!([]);
        call("GC", "x", &list).silent();
        assert_eq!(count(&marks("goes", "second")), 0);
        list["name"] = json!("cbr0");
        call("GC", "x", &list).silent();
        assert_eq!(count(&marks("stays", "cbr0")), 0);
    }
}

/// What a plugin and everything it started said to the kernel, by strace.
fn traced(net: &Mapped, command: &str, container: &str, config: &Value) -> String {
    let trace = net.node.path("trace");
    let program = format!("{}/portmap", net.node.ours());
    let file = net.node.write("config", &config.to_string());
    let calls = "trace=execve,sendto,recvfrom,recvmsg";
    let output = net.node.home.ns.run(|| {
        Command::new("sh")
            .args(["-c", &format!("exec strace -f -v -o {trace} -e {calls} {program} < {file}")])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", net.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", net.node.ours())
            .output()
    });
    let output = output.unwrap().expect("strace is needed");
    assert!(output.status.success(), "{output:?}");
    std::fs::read_to_string(&trace).unwrap()
}

/// Bytes that came from the kernel over sockets.
fn received(trace: &str) -> u64 {
    let lines = trace.lines().filter(|line| line.contains("recvfrom(") || line.contains("recvmsg("));
    let sum = lines.filter_map(|line| line.rsplit_once("= ")?.1.parse::<u64>().ok()).sum();
    assert!(sum > 0, "{trace}");
    sum
}

/// Programs that ran, the plugin included.
fn programs(trace: &str) -> usize {
    trace.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0")).count()
}

#[test]
fn one_transaction_adds_only_what_is_missing_and_none_deletes_nothing() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"backend": "nftables"}));
    let count = |trace: &str, word: &str| trace.matches(word).count();
    let first = traced(&net, "ADD", "first", &config);
    assert_eq!(count(&first, "NFNL_MSG_BATCH_BEGIN"), 1, "both families, one transaction: {first}");
    assert!(count(&first, "NFT_MSG_NEWCHAIN") >= 12, "{first}");
    let later = traced(&net, "ADD", "later", &config);
    assert_eq!(count(&later, "NFNL_MSG_BATCH_BEGIN"), 1, "{later}");
    assert_eq!(count(&later, "NFT_MSG_DELRULE"), 0, "what is right is not written again: {later}");
    let sent: String = later.lines().filter(|line| line.contains("sendto(")).collect();
    assert_eq!(count(&sent, "NFT_MSG_NEWCHAIN"), 0, "{sent}");
    // Two mappings of IPv4 and IPv6, two masqueraded sources of IPv4, one of IPv6.
    assert_eq!(count(&sent, "NFT_MSG_NEWRULE"), 5, "{sent}");

    let nothing = traced(&net, "DEL", "never-seen", &config);
    assert_eq!(count(&nothing, "NFNL_MSG_BATCH_BEGIN"), 0, "{nothing}");
    let gone = traced(&net, "DEL", "first", &config);
    assert_eq!(count(&gone, "NFNL_MSG_BATCH_BEGIN"), 1, "{gone}");
    for trace in [first, later, nothing, gone] {
        assert_eq!(programs(&trace), 1, "{trace}");
    }
    let without = one_port(&net, json!({"runtimeConfig": null}));
    assert_eq!(count(&traced(&net, "ADD", "none", &without), "sendto("), 0);

    let config = one_port(&net, json!({"backend": "iptables"}));
    assert_eq!(programs(&traced(&net, "ADD", "first", &config)), 1 + 2, "one per family");
    assert_eq!(programs(&traced(&net, "ADD", "later", &config)), 1 + 2);
    assert_eq!(programs(&traced(&net, "CHECK", "later", &config)), 1);
    assert_eq!(programs(&traced(&net, "DEL", "later", &config)), 1);
}

#[test]
fn an_add_reads_as_much_beside_two_thousand_containers_as_beside_none() {
    let net = Mapped::new();
    let config = one_port(&net, json!({"backend": "nftables"}));
    net.portmap("ADD", &config).result();
    let few = received(&traced(&net, "ADD", "few", &config));
    let mut others = String::new();
    for n in 0..2000 {
        let pod = format!("10.{}.{}.9", 100 + n / 250, n % 250);
        let port = 10_000 + n;
        let _ = writeln!(
            others,
            "add rule ip cni_hostport hostports tcp dport {port} dnat to {pod}:80 comment \"other-{n}\"\n\
             add rule ip cni_hostport masquerading ip saddr {pod} ip daddr {pod} masquerade comment \"other-{n}\"\n\
             add rule ip cni_hostport masquerading ip saddr 127.0.0.1 ip daddr {pod} masquerade comment \"other-{n}\""
        );
    }
    feed(&net, "nft", &["-f", "-"], &others);
    let many = received(&traced(&net, "ADD", "many", &config));
    assert_eq!(many, few);
    net.portmap("CHECK", &config).silent();
    for container in ["few", "many", "c1"] {
        let attachment = Attachment::new(container, &net.pod);
        net.node.call(&net.node.ours(), "portmap", "DEL", &attachment, &config).silent();
    }
    assert_eq!(net.rules().len(), 6000);
}
