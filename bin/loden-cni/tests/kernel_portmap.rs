//! Mapped ports with real packets, in both firewall backends, and the rules as people and the Go plugin see them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod ports;
mod support;

use ports::{Mapped, ask_tcp, ask_udp, mapping, port_config, serve_tcp, serve_udp};
use serde_json::json;

const BACKENDS: [&str; 2] = ["nftables", "iptables"];

/// From everywhere a mapping is meant to be reached from, and by whose address the container sees it.
fn reach_everywhere(backend: &str) {
    let net = Mapped::new();
    serve_tcp(&net.pod, 80);
    serve_udp(&net.pod, 5353);
    let config = port_config(
        &net,
        json!({"backend": backend, "runtimeConfig": {"portMappings": [
            mapping(8080, 80, "tcp"), mapping(5300, 5353, "udp"), mapping(9999, 99, "sctp"),
            {"hostPort": 8081, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
            {"hostPort": 8082, "containerPort": 80, "protocol": "tcp", "hostIP": "2001:db8::1"},
        ]}}),
    );
    let result = net.portmap("ADD", &config).result();
    assert_eq!(result["ips"], config["prevResult"]["ips"], "the result is passed on");

    // From another machine, seen as itself.
    assert_eq!(ask_tcp(&net.client, "192.0.2.1:8080"), Some("192.0.2.2".to_owned()));
    assert_eq!(ask_udp(&net.client, "192.0.2.1:5300"), Some("192.0.2.2".to_owned()));
    assert_eq!(ask_tcp(&net.client, "[2001:db8::1]:8080"), Some("2001:db8::2".to_owned()));
    assert_eq!(ask_udp(&net.client, "[2001:db8::1]:5300"), Some("2001:db8::2".to_owned()));
    // From the node, by its own address and by localhost.
    assert_eq!(ask_tcp(&net.node.home, "192.0.2.1:8080"), Some("192.0.2.1".to_owned()));
    assert_eq!(ask_tcp(&net.node.home, "127.0.0.1:8080"), Some("10.244.1.1".to_owned()));
    assert_eq!(ask_udp(&net.node.home, "127.0.0.1:5300"), Some("10.244.1.1".to_owned()));
    assert_eq!(ask_tcp(&net.node.home, "[2001:db8::1]:8080"), Some("2001:db8::1".to_owned()));
    // From the container to itself, seen as the node: an answer to itself would not come back the same way.
    assert_eq!(ask_tcp(&net.pod, "192.0.2.1:8080"), Some("10.244.1.1".to_owned()));
    assert_eq!(ask_tcp(&net.pod, "[2001:db8::1]:8080"), Some("fd00:244:1::1".to_owned()));
    // One address of the node only.
    assert_eq!(ask_tcp(&net.client, "192.0.2.1:8081"), Some("192.0.2.2".to_owned()));
    assert_eq!(ask_tcp(&net.client, "192.0.2.9:8081"), None);
    assert_eq!(ask_tcp(&net.client, "192.0.2.9:8080"), Some("192.0.2.2".to_owned()));
    assert_eq!(ask_tcp(&net.client, "[2001:db8::1]:8082"), Some("2001:db8::2".to_owned()));
    assert_eq!(ask_tcp(&net.client, "192.0.2.1:8082"), None);
    // What is not the node's address is nobody's port.
    assert_eq!(ask_tcp(&net.client, "10.244.1.77:8080"), None);

    net.portmap("CHECK", &config).silent();
    net.portmap("DEL", &config).silent();
    net.assert_no_rules();
    assert_eq!(ask_tcp(&net.client, "192.0.2.1:8080"), None);
    net.portmap("DEL", &config).silent();
}

#[test]
fn nftables_mappings_are_reached_from_everywhere() {
    reach_everywhere("nftables");
}

#[test]
fn iptables_mappings_are_reached_from_everywhere() {
    reach_everywhere("iptables");
}

#[test]
fn nft_lists_what_the_reference_shows() {
    let net = Mapped::new();
    let config = port_config(
        &net,
        json!({"backend": "nftables", "runtimeConfig": {"portMappings": [
            mapping(8080, 80, "tcp"),
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
            {"hostPort": 99, "containerPort": 9, "protocol": "sctp", "hostIP": "::"},
        ]}}),
    );
    net.portmap("ADD", &config).result();
    let pod = &net.address;
    assert_eq!(
        net.node.home.sh("nft", &["list", "table", "ip", "cni_hostport"]),
        format!(
            r#"table ip cni_hostport {{
	comment "CNI portmap plugin"
	chain hostip_hostports {{
	}}

	chain hostports {{
		tcp dport 8080 dnat to {pod}:80 comment "c1"
		ip daddr 192.0.2.1 udp dport 53 dnat to {pod}:5353 comment "c1"
	}}

	chain hostports_all {{
		jump hostip_hostports
		jump hostports
	}}

	chain masquerading {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {pod} ip daddr {pod} masquerade comment "c1"
		ip saddr 127.0.0.1 ip daddr {pod} masquerade comment "c1"
	}}

	chain output {{
		type nat hook output priority -100; policy accept;
		fib daddr type local jump hostports_all
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump hostports_all
	}}
}}
"#
        )
    );
    let v6 = net.node.home.sh("nft", &["list", "table", "ip6", "cni_hostport"]);
    assert!(v6.contains("\t\tsctp dport 99 dnat to [fd00:244:1::2]:9 comment \"c1\"\n"), "{v6}");
    assert!(v6.contains("\t\tip6 saddr fd00:244:1::2 ip6 daddr fd00:244:1::2 masquerade comment \"c1\"\n"));
    assert_eq!(net.node.home.sysctl("net/ipv4/conf/cni0/route_localnet"), "1");
}

#[test]
fn iptables_lists_what_the_reference_shows() {
    let net = Mapped::new();
    let config = port_config(
        &net,
        json!({"backend": "iptables", "conditionsV4": ["!", "-s", "198.51.100.0/24"],
        "runtimeConfig": {"portMappings": [
            mapping(8080, 80, "tcp"), mapping(8081, 81, "tcp"),
            {"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "192.0.2.1"},
        ]}}),
    );
    net.portmap("ADD", &config).result();
    let pod = &net.address;
    // sha512("cbr0c1"), cut to 21 hexadecimal digits.
    let own = ports::chain_of("cbr0", "c1");
    let comment = r#"-m comment --comment "dnat name: \"cbr0\" id: \"c1\"""#;
    let expected = format!(
        r#"-P PREROUTING ACCEPT
-P INPUT ACCEPT
-P OUTPUT ACCEPT
-P POSTROUTING ACCEPT
-N {own}
-N CNI-HOSTPORT-DNAT
-N CNI-HOSTPORT-MASQ
-N CNI-HOSTPORT-SETMARK
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-A {own} -s 10.244.1.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A {own} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A {own} -p tcp -m tcp --dport 8080 -j DNAT --to-destination {pod}:80
-A {own} -s 10.244.1.0/24 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A {own} -s 127.0.0.1/32 -p tcp -m tcp --dport 8081 -j CNI-HOSTPORT-SETMARK
-A {own} -p tcp -m tcp --dport 8081 -j DNAT --to-destination {pod}:81
-A {own} -s 10.244.1.0/24 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK
-A {own} -s 127.0.0.1/32 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK
-A {own} -d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination {pod}:5353
-A CNI-HOSTPORT-DNAT ! -s 198.51.100.0/24 -p tcp {comment} -m multiport --dports 8080,8081 -j {own}
-A CNI-HOSTPORT-DNAT ! -s 198.51.100.0/24 -p udp {comment} -m multiport --dports 53 -j {own}
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
"#
    );
    let sorted = |text: &str| {
        let mut chains: Vec<String> =
            text.lines().filter(|line| line.starts_with("-N")).map(str::to_owned).collect();
        chains.sort();
        let rules = text.lines().filter(|line| line.starts_with("-A"));
        let mut by_chain: Vec<(String, String)> =
            rules.map(|line| (line.split(' ').nth(1).unwrap().to_owned(), line.to_owned())).collect();
        by_chain.sort_by(|a, b| a.0.cmp(&b.0));
        (chains, by_chain)
    };
    let listed = net.node.home.sh("iptables", &["-t", "nat", "-S"]);
    assert_eq!(sorted(&listed), sorted(&expected), "{listed}");
    net.portmap("CHECK", &config).silent();
    // A second ADD finds everything right and changes nothing.
    net.portmap("ADD", &config).result();
    assert_eq!(net.node.home.sh("iptables", &["-t", "nat", "-S"]), listed);
}

#[test]
fn without_host_ports_nothing_is_touched() {
    let net = Mapped::new();
    for backend in BACKENDS {
        let config = port_config(&net, json!({"backend": backend}));
        net.portmap("ADD", &config).result();
        net.portmap("CHECK", &config).silent();
        net.portmap("DEL", &config).silent();
    }
    assert!(!net.node.home.sh("nft", &["list", "tables"]).contains("hostport"));
    assert_eq!(net.node.home.sysctl("net/ipv4/conf/cni0/route_localnet"), "0");
}
