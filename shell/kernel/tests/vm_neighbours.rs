//! A node's network among links of kinds that build machines' kernels lack, in the virtual machine of `cargo xtask vm-test`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use loden_kernel::Kernel;
use loden_netlink::NetNs;
use loden_node::{Network, settle};

/// Runs a line in the namespace; what it prints is the answer.
fn sh(netns: &NetNs, line: &str) -> String {
    let out = netns.run(|| Command::new("sh").args(["-c", line]).output().unwrap()).unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn tunnels_and_bridges_of_others_are_seen_and_left_alone() {
    assert!(
        std::env::var_os("LODEN_VM").is_some(),
        "this needs a kernel with every module, in a machine of its own: run `cargo xtask vm-test`"
    );
    let netns = NetNs::anonymous().unwrap();
    // Addresses and routes inside the pod network, where a careless plan would reach.
    sh(
        &netns,
        "ip link set lo up; ip link add d0 type dummy; ip addr add 192.0.2.1/24 dev d0; ip link set d0 up; \
         ip link add wg0 type wireguard; ip addr add 10.244.7.1/24 dev wg0; ip link set wg0 up; \
         ip link add tun0 type ipip local 192.0.2.1; ip addr add 10.244.8.1/32 dev tun0; ip link set tun0 up; \
         ip route add 10.244.9.0/24 via 192.0.2.9 dev tun0 onlink; \
         ip link add br0 type bridge vlan_filtering 1; ip link add p0 type dummy; ip link set p0 master br0 up; \
         bridge vlan add dev p0 vid 100; ip link set br0 up",
    );
    // What does not change by itself: no states, timers or addresses under duplicate detection.
    let shown = "ip -4 -o addr; ip -4 route show table all; bridge vlan show";
    let before = sh(&netns, shown);

    let network = Network {
        networks: vec!["10.244.0.0/16".parse().unwrap()],
        subnets: vec!["10.244.1.0/24".parse().unwrap()],
        forward_rules: true,
        ..Network::default()
    };
    let mut kernel = Kernel::open_in(&netns).unwrap();
    for expected in [true, false] {
        let round = settle(&mut kernel, &network.scope(), |observed| network.desired(observed)).unwrap();
        assert!(round.is_right(), "{round:?}");
        assert_eq!(!round.applied.is_empty(), expected, "{:?}", round.applied);
    }
    assert!(sh(&netns, "nft list table ip flannel-ipv4").contains("10.244.0.0/16 accept"));
    assert_eq!(sh(&netns, shown), before);
}
