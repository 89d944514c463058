//! What Go's flanneld leaves in iptables' tables goes; what others have in them does not move. The rules are made by the real
//! iptables. Needs root and Debian's iptables.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use loden_kernel::Kernel;
use loden_netlink::NetNs;
use loden_node::{Network, Step, plan, settle};

/// Runs a program of iptables' in the namespace, feeding it `input`; what it says.
fn iptables(netns: &NetNs, program: &str, input: &str) -> String {
    let run = || {
        let mut words = program.split_whitespace();
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the rules of these tests are made by Debian's iptables: install it");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{program}");
        String::from_utf8(out.stdout).unwrap()
    };
    netns.run(run).unwrap()
}

/// flannel's rules for one family: cluster network, subnet, all multicast addresses.
fn flannel(network: &str, subnet: &str, multicast: &str) -> String {
    let nat = "-m comment --comment \"flanneld masq\" -j";
    let filter = "-m comment --comment \"flanneld forward\" -j";
    format!(
        "*nat\n:FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING {nat} FLANNEL-POSTRTG\n\
         -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {nat} RETURN\n\
         -A FLANNEL-POSTRTG -s {subnet} -d {network} {nat} RETURN\n\
         -A FLANNEL-POSTRTG -s {network} -d {subnet} {nat} RETURN\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {subnet} {nat} RETURN\n\
         -A FLANNEL-POSTRTG -s {network} ! -d {multicast} {nat} MASQUERADE --random-fully\n\
         -A FLANNEL-POSTRTG ! -s {network} -d {network} {nat} MASQUERADE --random-fully\n\
         COMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n\
         -A FORWARD {filter} FLANNEL-FWD\n\
         -A FLANNEL-FWD -s {network} {filter} ACCEPT\n\
         -A FLANNEL-FWD -d {network} {filter} ACCEPT\n\
         COMMIT\n"
    )
}

/// Rules of kube-proxy's and an operator's kind around them.
const OTHERS: &str = "*nat\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n\
     -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
     -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
     -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
     -A KUBE-POSTROUTING -j MASQUERADE --random-fully\nCOMMIT\n\
     *filter\n:NOT-FLANNEL-FWD - [0:0]\n:FLANNEL-FWD-2 - [0:0]\n\
     -A FORWARD -m comment --comment \"flanneld forward\" -j NOT-FLANNEL-FWD\n\
     -A FORWARD -m comment --comment \"jump FLANNEL-FWD\" -j ACCEPT\n-A FORWARD -j FLANNEL-FWD-2\n\
     -A NOT-FLANNEL-FWD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";

/// What an operator sees of both tables, without counters and dates.
fn seen(netns: &NetNs) -> Vec<String> {
    ["iptables-nft", "ip6tables-nft"]
        .iter()
        .flat_map(|program| ["nat", "filter"].map(|table| format!("{program} -t {table} -S")))
        .map(|program| iptables(netns, &program, ""))
        .collect()
}

fn network() -> Network {
    Network {
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        subnets: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        exempt: Some(Vec::new()),
        ..Network::default()
    }
}

fn heal(kernel: &mut Kernel) -> Vec<Step> {
    let network = network();
    let round = settle(kernel, &network.scope(), |observed| network.desired(observed)).unwrap();
    assert!(round.is_right(), "{round:?}");
    round.applied
}

struct Stage {
    netns: NetNs,
    kernel: Kernel,
}

/// A namespace with everybody's rules, and the network right otherwise.
fn stage() -> Stage {
    let netns = NetNs::anonymous().expect("kernel tests make network namespaces: run them as root");
    iptables(&netns, "iptables-nft-restore --noflush", OTHERS);
    iptables(&netns, "ip6tables-nft-restore --noflush", OTHERS);
    let mut kernel = Kernel::open_in(&netns).unwrap();
    heal(&mut kernel);
    Stage { netns, kernel }
}

fn add_flannel(netns: &NetNs) {
    let v4 = flannel("10.244.0.0/16", "10.244.1.0/24", "224.0.0.0/4");
    let v6 = flannel("fd00:10:244::/48", "fd00:10:244:1::/64", "ff00::/8");
    iptables(netns, "iptables-nft-restore --noflush", &v4);
    iptables(netns, "ip6tables-nft-restore --noflush", &v6);
}

#[test]
fn the_iptables_rules_of_flannel_go_from_among_others() {
    let Stage { netns, mut kernel } = stage();
    let before = seen(&netns);
    assert!(before.iter().all(|text| !text.contains("FLANNEL-POSTRTG")), "{before:?}");
    add_flannel(&netns);
    // Rules of others may come to lie behind flannel's, too.
    iptables(
        &netns,
        "iptables-nft-restore --noflush",
        "*nat\n-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE\nCOMMIT\n",
    );
    let with = seen(&netns);
    assert!(with.iter().filter(|text| text.contains("FLANNEL-POSTRTG")).count() == 2, "{with:?}");

    let scope = network().scope();
    let text = plan(&mut kernel, &scope, |observed| network().desired(observed)).unwrap().to_string();
    let lines: Vec<&str> = text.lines().map(|line| line.split(" handle ").next().unwrap()).collect();
    for family in ["ip", "ip6"] {
        for line in [
            format!("nft delete rule {family} nat POSTROUTING"),
            format!("nft flush chain {family} nat FLANNEL-POSTRTG"),
            format!("nft delete chain {family} nat FLANNEL-POSTRTG"),
            format!("nft delete rule {family} filter FORWARD"),
            format!("nft flush chain {family} filter FLANNEL-FWD"),
            format!("nft delete chain {family} filter FLANNEL-FWD"),
        ] {
            assert_eq!(lines.iter().filter(|have| **have == line).count(), 1, "{line}:\n{text}");
        }
    }
    assert_eq!(lines.len(), 12, "{text}");

    assert_eq!(heal(&mut kernel).len(), 4);
    let late = "-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE\n";
    let mut after = seen(&netns);
    assert!(after[0].contains(late), "{after:?}");
    after[0] = after[0].replace(late, "");
    assert_eq!(after, before);
    assert_eq!(heal(&mut kernel), [], "once they are gone there is nothing to do");
}

#[test]
fn a_chain_that_somebody_else_jumps_to_is_emptied_and_stays() {
    let Stage { netns, mut kernel } = stage();
    add_flannel(&netns);
    let theirs = "*filter\n:MINE - [0:0]\n-A MINE -s 10.244.0.0/16 -j FLANNEL-FWD\nCOMMIT\n";
    iptables(&netns, "iptables-nft-restore --noflush", theirs);
    assert_eq!(heal(&mut kernel).len(), 4);
    let filter = iptables(&netns, "iptables-nft -t filter -S", "");
    assert!(filter.contains("-A MINE -s 10.244.0.0/16 -j FLANNEL-FWD\n"), "{filter}");
    assert!(
        !filter.contains("-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n"),
        "{filter}"
    );
    assert!(!filter.contains("-A FLANNEL-FWD "), "{filter}");
    assert_eq!(heal(&mut kernel), []);
}
