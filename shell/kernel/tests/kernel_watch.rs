//! Waking up and healing, in namespaces of the tests' own. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::process::Command;
use std::time::{Duration, Instant};

use loden_firewall::flannel::Masquerade;
use loden_kernel::{Kernel, Watch};
use loden_netlink::NetNs;
use loden_netlink::monitor::Subject;
use loden_node::{Network, settle};

fn namespace() -> NetNs {
    NetNs::anonymous().expect("kernel tests make network namespaces: run them as root")
}

fn sh(netns: &NetNs, line: &str) {
    let out = netns.run(|| Command::new("sh").args(["-c", line]).output().unwrap()).unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

fn network() -> Network {
    Network {
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()],
        subnets: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
        masquerade: Some(Masquerade { fully_random: true }),
        exempt: Some(vec!["192.168.0.0/16".parse().unwrap()]),
        forward_rules: true,
        blackhole: true,
        ..Network::default()
    }
}

/// Waits until the watch has told of every subject; a single wake-up may tell of several.
fn woken(watch: &mut Watch, kernel: &Kernel, wanted: &[Subject]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard = std::collections::BTreeSet::new();
    while !wanted.iter().all(|subject| heard.contains(subject)) {
        assert!(Instant::now() < deadline, "waited for {wanted:?}, heard {heard:?}");
        heard.extend(watch.wait(kernel, Duration::from_millis(500)).unwrap());
    }
}

/// New links and addresses settle for a while (duplicate detection, router solicitation); waits that out.
fn quiet(watch: &mut Watch, kernel: &Kernel) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !watch.wait(kernel, Duration::from_secs(2)).unwrap().is_empty() {
        assert!(Instant::now() < deadline, "the namespace never comes to rest");
    }
}

fn heal(kernel: &mut Kernel, network: &Network) -> Vec<String> {
    let round = settle(kernel, &network.scope(), |observed| network.desired(observed)).unwrap();
    assert!(round.is_right(), "{round:?}");
    round.applied.iter().map(|step| step.to_string().lines().next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn whatever_is_taken_away_wakes_us_and_comes_back() {
    let netns = namespace();
    sh(
        &netns,
        "ip link set lo up; ip link add cni0 type bridge; ip link set cni0 up alias 'loden gateway 10.244.1.1/24 fd00:10:244:1::1/64'",
    );
    let network = network();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let mut watch = kernel.watch().unwrap();
    assert!(!heal(&mut kernel, &network).is_empty());
    quiet(&mut watch, &kernel);
    assert_eq!(heal(&mut kernel, &network), Vec::<String>::new(), "what is right is not touched");
    assert!(watch.changes(&kernel).unwrap().is_empty(), "observing wakes nobody");

    for (tampering, subject, healed) in [
        ("nft delete table ip flannel-ipv4", Subject::NfTables, "nft add table ip flannel-ipv4"),
        ("nft flush chain ip6 flannel-ipv6 forward", Subject::NfTables, "nft"),
        ("ip addr del 10.244.1.1/24 dev cni0", Subject::Address, "ip addr add 10.244.1.1/24"),
        ("ip -6 addr del fd00:10:244:1::1/64 dev cni0", Subject::Address, "ip addr add fd00:10:244:1::1/64"),
        ("ip route del blackhole 10.244.1.0/24", Subject::Route, "ip route add blackhole 10.244.1.0/24"),
        ("echo 0 > /proc/sys/net/ipv4/ip_forward", Subject::Netconf, "sysctl -w net.ipv4.ip_forward=1"),
        (
            "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding",
            Subject::Netconf,
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
    ] {
        sh(&netns, tampering);
        woken(&mut watch, &kernel, &[subject]);
        let steps = heal(&mut kernel, &network);
        let common = |step: &String| step.starts_with(healed.split_whitespace().next().unwrap());
        assert!(!steps.is_empty() && steps.iter().all(common), "{tampering}: {steps:?}");
        assert!(
            steps
                .iter()
                .any(|step| step.replace("address", "addr").contains(healed.rsplit(' ').next().unwrap())),
            "{tampering}: {steps:?}"
        );
        watch.changes(&kernel).unwrap();
    }
}

#[test]
fn foreign_objects_survive() {
    let netns = namespace();
    sh(
        &netns,
        "ip link set lo up; ip link add br0 type bridge; ip link set br0 up; ip addr add 10.244.77.1/24 dev br0; \
         ip route add 10.244.78.0/24 via 10.244.77.9; ip route add blackhole 10.244.79.0/24 proto static; \
         nft add table ip mine; nft add chain ip mine c; nft add rule ip mine c drop; \
         ip route add 10.244.80.0/24 via 10.244.77.9 proto 77",
    );
    let network = network();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let steps = heal(&mut kernel, &network);
    assert!(
        steps.iter().any(|s| s.contains("del") && s.contains("10.244.80.0/24")),
        "ours and stale: {steps:?}"
    );
    sh(
        &netns,
        "ip route show 10.244.78.0/24 | grep -q . && ip route show 10.244.79.0/24 | grep -q . && ip addr show dev br0 | grep -q 10.244.77.1 && nft list chain ip mine c | grep -q drop",
    );
    sh(&netns, "! ip route show 10.244.80.0/24 | grep -q .");
}

#[test]
fn a_refused_step_says_which_and_why() {
    let netns = namespace();
    let mut kernel = Kernel::open_in(&netns).unwrap();
    let setting = loden_node::Sysctl { path: "net/ipv4/no_such_thing".to_owned(), value: "1".to_owned() };
    let step = loden_node::Step::Add(loden_node::Object::Sysctl(setting));
    let text = kernel.apply(&step).unwrap_err().to_string();
    assert!(text.contains("sysctl -w net.ipv4.no_such_thing=1") && text.contains("No such file"), "{text}");
    let address =
        loden_node::Address { link: "nowhere0".to_owned(), address: "10.0.0.1/24".parse().unwrap() };
    let step = loden_node::Step::Add(loden_node::Object::Address(address.clone()));
    let text = kernel.apply(&step).unwrap_err().to_string();
    assert!(text.contains("link nowhere0 does not exist"), "{text}");
    let step = loden_node::Step::Delete(loden_node::Object::Address(address));
    assert!(kernel.apply(&step).is_ok(), "what is gone is as good as deleted");
}
