//! A picture shows what a tool of the kernel's changed, and nothing when nothing changed.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test bed that does not work is a failed test"
)]

use std::net::UdpSocket;
use std::process::Command;

use loden_netlink::NetNs;
use loden_residue::{Section, Snapshot};

struct Node {
    ns: NetNs,
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let ns = NetNs::anonymous().expect("kernel tests need root and network namespaces: run them as root");
        Self { ns, directory: tempfile::tempdir().unwrap() }
    }

    fn picture(&self) -> Snapshot {
        Snapshot::of(&self.ns, &[self.directory.path()]).unwrap()
    }

    fn sh(&self, line: &str) {
        let status = self.ns.run(|| Command::new("sh").args(["-ec", line]).status()).unwrap().unwrap();
        assert!(status.success(), "{line}");
    }

    /// What is new after `doing`, which `undoing` takes back without a trace.
    fn change(&self, doing: &str, undoing: &str) -> Vec<(Section, String)> {
        let before = self.picture();
        self.sh(doing);
        let came = before.diff(&self.picture());
        assert!(!came.is_empty(), "{doing}");
        self.sh(undoing);
        let left = before.diff(&self.picture());
        assert!(left.is_empty(), "after `{undoing}`:\n{left}");
        came.came().to_vec()
    }
}

#[test]
fn every_kind_of_thing_shows_and_goes() {
    let node = Node::new();
    node.sh(
        "ip link set lo up; ip link add br0 type bridge; ip addr add 10.1.0.1/24 dev br0; ip link set br0 up",
    );
    let cases = [
        (Section::Links, "ip link add v0 type veth peer name v1", "ip link del v0", "v0 veth mtu 1500"),
        (
            Section::Links,
            "ip link set br0 promisc on",
            "ip link set br0 promisc off",
            "br0 bridge mtu 1500 UP PROMISC",
        ),
        (Section::Links, "ip link set br0 alias mine", "ip link set br0 alias ''", "alias \"mine\""),
        (
            Section::Addresses,
            "ip addr add 10.2.0.1/24 dev br0",
            "ip addr del 10.2.0.1/24 dev br0",
            "br0 10.2.0.1/24",
        ),
        (
            Section::Routes,
            "ip route add 10.3.0.0/24 dev br0 table 7",
            "ip route flush table 7",
            "10.3.0.0/24 dev br0 table 7",
        ),
        (
            Section::Routes,
            "ip -6 route add blackhole 2001:db8::/64",
            "ip -6 route del blackhole 2001:db8::/64",
            "2001:db8::/64",
        ),
        (Section::PolicyRules, "ip rule add fwmark 7 table 7", "ip rule del fwmark 7 table 7", "fwmark 0x7"),
        (Section::Nft, "nft add table inet t", "nft delete table inet t", "table inet t"),
        (
            Section::Queues,
            "tc qdisc add dev br0 root tbf rate 1mbit burst 10k latency 25ms",
            "tc qdisc del dev br0 root",
            "br0 tbf",
        ),
    ];
    for (section, doing, undoing, line) in cases {
        let came = node.change(doing, undoing);
        assert!(
            came.iter().any(|(found, text)| *found == section && text.contains(line)),
            "{doing} shows as {came:?}"
        );
    }
}

#[test]
fn rules_of_both_iptables_show() {
    let node = Node::new();
    for program in ["iptables-nft", "ip6tables-legacy"] {
        let rule =
            |verb: &str| format!("{program} -t nat -{verb} OUTPUT -m comment --comment mine -j ACCEPT");
        node.sh(&format!("{}; {}", rule("A"), rule("D")));
        let came = node.change(&rule("A"), &rule("D"));
        let line = format!("{program}-save nat: -A OUTPUT -m comment --comment mine -j ACCEPT");
        assert!(came.contains(&(Section::Iptables, line)), "{came:?}");
    }
}

#[test]
fn files_show_with_mode_and_content_but_not_the_address_given_last() {
    let node = Node::new();
    let file = |name: &str| node.directory.path().join(name).display().to_string();
    let came = node.change(
        &format!("printf 'c1\\r\\neth0' > {}", file("10.0.0.2")),
        &format!("rm {}", file("10.0.0.2")),
    );
    assert!(came[0].1.contains("10.0.0.2 0644 8 bytes \"c1\\r\\neth0\""), "{came:?}");
    node.sh(&format!("echo 1 > {}", file("last_reserved_ip.0")));
    let before = node.picture();
    node.sh(&format!("echo 2 > {}", file("last_reserved_ip.0")));
    assert!(before.diff(&node.picture()).is_empty());
}

#[test]
fn a_flow_shows_without_its_timers() {
    let node = Node::new();
    node.sh("ip link set lo up; nft add table ip t; nft add chain ip t c '{ type filter hook output priority 0; }'; nft add rule ip t c ct state new accept");
    let before = node.picture();
    let send = || UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9");
    node.ns.run(send).unwrap().unwrap();
    let came = before.diff(&node.picture());
    assert_eq!(came.came().len(), 1, "{came}");
    assert!(came.came()[0].1.contains("ipv4 udp src=127.0.0.1 dst=127.0.0.1"), "{came}");
}
