//! Tracked flows and single chains against the running kernel, in namespaces of the tests' own. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, UdpSocket};

use loden_firewall::*;
use loden_netlink::conntrack::ConntrackSocket;
use loden_netlink::nft::{FoundChain, NftSocket};
use loden_netlink::{IpFamily, LinkSettings, NetNs, RouteSocket};

/// A namespace that tracks what passes its loopback, and sends what is for port 1000 to port 2000.
fn tracking() -> NetNs {
    let netns = NetNs::anonymous().expect("kernel tests make network namespaces: run them as root");
    let mut links = RouteSocket::open_in(&netns).unwrap();
    let lo = links.link_by_name("lo").unwrap().unwrap();
    links.set_link(lo.index, LinkSettings::up()).unwrap();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    for (family, addr) in [(Family::Ip, "127.0.0.9"), (Family::Ip6, "::1")] {
        let to = Action::DestinationNat { addr: addr.parse().unwrap(), port: Some(2000) };
        let rule = Rule::new([Match::DestinationPort { proto: L4::Udp, port: 1000 }], to);
        let base = Base::accepting(ChainKind::Nat, Hook::Output, priority::DSTNAT);
        let chain = Chain::hooked(base, vec![rule.with_comment("c").with_note("n")]);
        socket.set_table(&Table::new(family, "t").with_chain("out", chain)).unwrap();
    }
    netns
}

#[test]
fn flows_are_found_by_where_they_were_sent_and_forgotten_one_by_one() {
    let netns = tracking();
    let mut socket = ConntrackSocket::open_in(&netns).unwrap();
    for (family, local, answers) in [(IpFamily::V4, "127.0.0.1", "127.0.0.9"), (IpFamily::V6, "::1", "::1")] {
        let local: IpAddr = local.parse().unwrap();
        let senders: Vec<UdpSocket> =
            (0..3).map(|_| netns.run(|| UdpSocket::bind((local, 0))).unwrap().unwrap()).collect();
        for sender in &senders {
            for port in [1000, 1001, 1002] {
                // Nobody listens; the flow is tracked all the same.
                let _ = sender.send_to(b"x", (local, port));
            }
        }
        let one = socket.udp_flows_to(family, &[1000]).unwrap();
        assert_eq!(one.len(), 3, "{one:?}");
        for flow in &one {
            assert_eq!((flow.destination, flow.port), (local, 1000));
            assert_eq!(flow.answered_by, answers.parse::<IpAddr>().unwrap());
        }
        assert_eq!(socket.udp_flows_to(family, &[1000, 1002]).unwrap().len(), 6);
        assert_eq!(socket.udp_flows_to(family, &[9]).unwrap(), []);
        assert_eq!(socket.udp_flows_to(family, &[]).unwrap(), []);
        socket.forget(&one).unwrap();
        socket.forget(&one).unwrap();
        assert_eq!(socket.udp_flows_to(family, &[1000]).unwrap(), []);
        assert_eq!(socket.udp_flows_to(family, &[1001, 1002]).unwrap().len(), 6, "the others stay");
    }
}

#[test]
fn single_chains_are_found_and_read_with_what_nft_does_not_show() {
    let netns = tracking();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    let table = TableName { family: Family::Ip, name: "t".to_owned() };
    let nowhere = TableName { family: Family::Ip, name: "nowhere".to_owned() };
    let base = Base::accepting(ChainKind::Nat, Hook::Output, priority::DSTNAT);
    let found = socket.find_chains(&[(&table, "out"), (&table, "none"), (&nowhere, "out")]).unwrap();
    assert_eq!(found, [FoundChain::Hooked(base), FoundChain::Absent, FoundChain::Absent]);
    let rules = socket.rules_where(&table, "out", |comment| comment == Some("c")).unwrap();
    assert_eq!(rules.len(), 1);
    assert!(rules.iter().all(|listed| listed.rule.note.as_deref() == Some("n")), "{rules:?}");
    assert_eq!(socket.rules_where(&table, "out", |comment| comment != Some("c")).unwrap(), []);
    assert_eq!(socket.rules_where(&nowhere, "out", |_| true).unwrap(), []);
}
