//! What the kernels of build machines often lack, in the virtual machine of `cargo xtask vm-test`: there nothing may be missing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Output};

use loden_firewall::{Action, Base, Chain, ChainKind, Family, Hook, Match, Rule, Table, TableName};
use loden_netlink::nft::NftSocket;
use loden_netlink::*;

fn namespace() -> NetNs {
    assert!(
        std::env::var_os("LODEN_VM").is_some(),
        "this needs a kernel with every module, in a machine of its own: run `cargo xtask vm-test`"
    );
    NetNs::anonymous().unwrap()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn run(netns: &NetNs, line: &str) -> Output {
    netns.run(|| Command::new("sh").args(["-c", line]).output().unwrap()).unwrap()
}

fn sh(netns: &NetNs, line: &str) -> String {
    let out = run(netns, line);
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Whether `from` gets an answer from `to`; one lost packet (an address still being resolved) is not yet a no.
fn reaches(from: &NetNs, to: &str) -> bool {
    run(from, &format!("ping -n -c 1 -w 3 {to}")).status.success()
}

/// A namespace with one end of a pair in it, up and addressed; the other end is in `hub` by the same name.
fn attached(hub: &NetNs, name: &str, address: &str) -> (NetNs, Link) {
    let netns = namespace();
    let peer = VethPeer { name: "eth0".to_owned(), netns: Some(netns.clone()), ..VethPeer::default() };
    let mut pair = NewLink::new(name, NewLinkKind::Veth(peer));
    pair.up = true;
    let near = RouteSocket::open_in(hub).unwrap().create_link(&pair).unwrap();
    let mut inside = RouteSocket::open_in(&netns).unwrap();
    let far = inside.link_by_name("eth0").unwrap().unwrap().index;
    inside.set_link(far, LinkSettings::up()).unwrap();
    inside.add_address(Address::new(far, net(address))).unwrap();
    (netns, near)
}

#[test]
fn links_of_every_kind_are_made_shown_and_deleted() {
    let netns = namespace();
    let mut rt = RouteSocket::open_in(&netns).unwrap();
    for kind in ["dummy", "wireguard"] {
        let mut link = NewLink::new("x", NewLinkKind::Other(kind.to_owned()));
        (link.mtu, link.up) = (Some(1400), true);
        let made = rt.create_link(&link).unwrap();
        assert_eq!((made.kind, made.mtu, made.up), (LinkKind::Other(kind.to_owned()), 1400, true));
        assert!(sh(&netns, "ip -d link show x").contains(kind));
        rt.add_address(Address::new(made.index, net("10.244.1.0/32"))).unwrap();
        rt.delete_link(made.index).unwrap();
        assert_eq!(rt.link_by_name("x").unwrap(), None);
    }
    let dummy = rt.create_link(&NewLink::new("d", NewLinkKind::Other("dummy".to_owned()))).unwrap();
    let config = IpipConfig {
        local: Some(Ipv4Addr::new(192, 0, 2, 1)),
        remote: Some(Ipv4Addr::new(192, 0, 2, 2)),
        lower: Some(dummy.index),
    };
    // As flannel makes its own: no remote, so each packet goes to its route's next hop.
    for config in [config, IpipConfig { remote: None, ..config }] {
        let made = rt.create_link(&NewLink::new("flannel.ipip", NewLinkKind::Ipip(config))).unwrap();
        assert_eq!(made.kind, LinkKind::Ipip(config));
        assert!(sh(&netns, "ip -d link show flannel.ipip").contains("local 192.0.2.1 dev d"));
        rt.delete_link(made.index).unwrap();
    }
}

#[test]
fn a_bridge_keeps_vlans_apart() {
    let hub = namespace();
    let mut rt = RouteSocket::open_in(&hub).unwrap();
    let mut bridge = NewLink::new("cni0", NewLinkKind::Bridge(BridgeConfig::default()));
    bridge.up = true;
    let bridge = rt.create_link(&bridge).unwrap().index;
    let (one, one_port) = attached(&hub, "one", "10.244.1.1/24");
    let (two, two_port) = attached(&hub, "two", "10.244.1.2/24");
    let ports = [one_port.index, two_port.index];
    for port in ports {
        rt.set_link(port, LinkSettings { master: Some(bridge), ..LinkSettings::default() }).unwrap();
    }
    assert!(reaches(&one, "10.244.1.2"));

    let config = BridgeConfig { vlan_filtering: true };
    rt.apply(&Change::SetBridge { index: bridge, config }).unwrap();
    assert_eq!(rt.link_by_index(bridge).unwrap().unwrap().kind, LinkKind::Bridge(config));
    // The kernel's own start: everything in VLAN 1.
    for port in ports {
        assert_eq!(rt.vlans(Some(port)).unwrap(), [PortVlan::access(port, 1)]);
    }
    assert_eq!(
        rt.vlans(Some(bridge)).unwrap(),
        [PortVlan { on_bridge: true, ..PortVlan::access(bridge, 1) }]
    );
    assert!(reaches(&one, "10.244.1.2"));

    let (ten, twenty) = (PortVlan::access(ports[0], 10), PortVlan::access(ports[1], 20));
    rt.apply_all(&[
        Change::AddPortVlan(ten),
        Change::DeletePortVlan(PortVlan::access(ports[0], 1)),
        Change::AddPortVlan(twenty),
        Change::DeletePortVlan(PortVlan::access(ports[1], 1)),
    ])
    .unwrap();
    assert_eq!(rt.vlans(Some(ports[0])).unwrap(), [ten]);
    assert!(sh(&hub, "bridge vlan show dev one").contains("10 PVID Egress Untagged"));
    assert!(!reaches(&one, "10.244.1.2"), "VLAN 10 hears VLAN 20");

    rt.apply_all(&[Change::AddPortVlan(PortVlan::access(ports[1], 10)), Change::DeletePortVlan(twenty)])
        .unwrap();
    assert!(reaches(&one, "10.244.1.2"), "one VLAN is not one network");
    assert!(reaches(&two, "10.244.1.1"));

    let trunk = PortVlan { on_bridge: true, ..PortVlan::tagged(bridge, 30) };
    rt.apply(&Change::AddPortVlan(trunk)).unwrap();
    assert!(rt.vlans(None).unwrap().contains(&trunk));
    rt.apply(&Change::DeletePortVlan(trunk)).unwrap();
    assert!(!rt.vlans(None).unwrap().contains(&trunk));
    let trunk = Change::AddPortVlans { index: ports[1], first: 2000, last: 2999 };
    rt.apply(&trunk).unwrap();
    let tagged = rt.vlans(Some(ports[1])).unwrap().into_iter().filter(|vlan| vlan.vlan >= 2000);
    assert!(tagged.eq((2000..3000).map(|vlan| PortVlan::tagged(ports[1], vlan))), "a range is all of it");
    let error = rt.apply(&Change::AddPortVlan(PortVlan::tagged(ports[0], 4095))).unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot add VLAN 4095 on link {}: ", ports[0])), "{error}");
}

#[test]
fn packets_cross_an_ipip_tunnel() {
    let here = namespace();
    let (there, near) = attached(&here, "eth0", "192.0.2.2/24");
    let mut rt = RouteSocket::open_in(&here).unwrap();
    rt.add_address(Address::new(near.index, net("192.0.2.1/24"))).unwrap();
    for (netns, local, own, remote, far) in [
        (&here, [192, 0, 2, 1], "10.244.1.0/32", "192.0.2.2", "10.244.2.0/24"),
        (&there, [192, 0, 2, 2], "10.244.2.0/32", "192.0.2.1", "10.244.1.0/24"),
    ] {
        let mut rt = RouteSocket::open_in(netns).unwrap();
        let config = IpipConfig { local: Some(Ipv4Addr::from(local)), ..IpipConfig::default() };
        let mut tunnel = NewLink::new("flannel.ipip", NewLinkKind::Ipip(config));
        tunnel.up = true;
        let tunnel = rt.create_link(&tunnel).unwrap().index;
        rt.add_address(Address::new(tunnel, net(own))).unwrap();
        let remote: IpAddr = remote.parse().unwrap();
        rt.add_route(Route::new(net(far)).via(remote).dev(tunnel).by(77).onlink()).unwrap();
    }
    assert!(reaches(&here, "10.244.2.0"));
    assert!(sh(&here, "ip -s link show flannel.ipip").contains("RX:"));
    let tunnel = rt.link_by_name("flannel.ipip").unwrap().unwrap().index;
    rt.delete_link(tunnel).unwrap();
    assert!(!reaches(&here, "10.244.2.0"), "the answer came by another way");
}

#[test]
fn packets_are_encrypted_with_esp() {
    let here = namespace();
    let (there, near) = attached(&here, "eth0", "192.0.2.2/24");
    RouteSocket::open_in(&here).unwrap().add_address(Address::new(near.index, net("192.0.2.1/24"))).unwrap();
    let key = "0x000102030405060708090a0b0c0d0e0f";
    for (netns, own, peer) in [(&here, "192.0.2.1", "192.0.2.2"), (&there, "192.0.2.2", "192.0.2.1")] {
        for (source, destination, spi, direction) in [(own, peer, 1, "out"), (peer, own, 2, "in")] {
            let spi = if netns == &here { spi } else { 3 - spi };
            sh(
                netns,
                &format!(
                    "ip xfrm state add src {source} dst {destination} proto esp spi {spi} mode transport \
                     auth-trunc 'hmac(sha256)' {key} 128 enc 'cbc(aes)' {key}"
                ),
            );
            sh(
                netns,
                &format!(
                    "ip xfrm policy add src {source} dst {destination} dir {direction} \
                     tmpl src {source} dst {destination} proto esp mode transport"
                ),
            );
        }
    }
    assert!(reaches(&here, "192.0.2.2"));
    let states = sh(&there, "ip -s xfrm state");
    assert!(states.contains("proto esp") && !states.contains("0(bytes), 0(packets)"), "{states}");
    sh(&there, "ip xfrm state flush");
    assert!(!reaches(&here, "192.0.2.2"), "without keys nothing may pass");
}

#[test]
fn a_table_with_a_flowtable_is_read_and_left_alone() {
    let netns = namespace();
    let _peer = attached(&netns, "eth0", "192.0.2.2/24");
    sh(
        &netns,
        "nft 'add table inet fast; add flowtable inet fast f { hook ingress priority 0; devices = { eth0 }; }; \
         add chain inet fast forward { type filter hook forward priority 0; }; \
         add rule inet fast forward ip protocol tcp flow add @f; add rule inet fast forward accept'",
    );
    let before = sh(&netns, "nft list table inet fast");
    let mut nft = NftSocket::open_in(&netns).unwrap();
    let key = TableName { family: Family::Inet, name: "fast".to_owned() };
    let seen = nft.table(&key).unwrap().unwrap().table;
    let opaque: Vec<_> = seen.chains["forward"].rules.iter().map(Rule::is_opaque).collect();
    assert_eq!(opaque, [true, false], "{seen}");

    let rule = Rule::new(vec![Match::source(net("10.244.0.0/16"))], Action::Accept);
    let base = Base::accepting(ChainKind::Filter, Hook::Forward, 0);
    let ours = Table::new(Family::Ip, "flannel-ipv4").with_chain("forward", Chain::hooked(base, vec![rule]));
    nft.set_table(&ours).unwrap();
    assert_eq!(nft.table(&ours.key()).unwrap().unwrap().table, ours);
    assert_eq!(sh(&netns, "nft list table inet fast"), before);
}
