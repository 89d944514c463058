//! rtnetlink against the running kernel, in namespaces of the tests' own. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use loden_netlink::*;

fn namespace() -> NetNs {
    NetNs::anonymous().expect("kernel tests make network namespaces: run them as root")
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

fn shell(netns: &NetNs, line: &str) -> String {
    let run = || {
        let out = std::process::Command::new("sh").arg("-c").arg(line).output().unwrap();
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    netns.run(run).unwrap()
}

#[test]
fn veth_pair_spans_namespaces_and_joins_a_bridge() {
    let (host, pod) = (namespace(), namespace());
    let mut rt = RouteSocket::open_in(&host).unwrap();
    let mut bridge = NewLink::new("cni0", NewLinkKind::Bridge(BridgeConfig::default()));
    bridge.mtu = Some(1450);
    bridge.up = true;
    bridge.alias = Some("loden gateway 10.244.1.1/24".to_owned());
    let bridge = rt.create_link(&bridge).unwrap();
    assert_eq!(bridge.alias.as_deref(), Some("loden gateway 10.244.1.1/24"));
    assert_eq!(bridge.kind, LinkKind::Bridge(BridgeConfig::default()));
    assert!(bridge.up);

    let mac: MacAddress = "0a:58:0a:f4:01:02".parse().unwrap();
    let peer =
        VethPeer { name: "eth0".to_owned(), mtu: Some(1450), address: Some(mac), netns: Some(pod.clone()) };
    let mut near = NewLink::new("veth1", NewLinkKind::Veth(peer));
    near.mtu = Some(1450);
    near.up = true;
    near.master = Some(bridge.index);
    let near = rt.create_link(&near).unwrap();
    rt.apply(&Change::SetBridgePort {
        index: near.index,
        hairpin: Some(true),
        isolated: Some(true),
        learning: None,
    })
    .unwrap();
    let near = rt.link_by_index(near.index).unwrap().unwrap();
    assert_eq!((near.master, near.mtu, near.up), (Some(bridge.index), 1450, true));
    let port = near.port.unwrap();
    assert!(port.hairpin && port.isolated && port.learning);

    let mut inside = RouteSocket::open_in(&pod).unwrap();
    let eth0 = inside.link_by_name("eth0").unwrap().unwrap();
    assert_eq!((eth0.address, eth0.mtu), (Some(mac), 1450));
    assert_eq!(eth0.lower, Some(near.index));
    inside
        .apply_all(&[
            Change::SetLink { index: eth0.index, settings: LinkSettings::up() },
            Change::AddAddress(Address::new(eth0.index, net("10.244.1.2/24"))),
            Change::AddRoute(Route::new(net("0.0.0.0/0")).via(ip("10.244.1.1")).dev(eth0.index)),
        ])
        .unwrap();
    assert!(shell(&pod, "ip route").contains("default via 10.244.1.1 dev eth0"));
    assert_eq!(
        inside.addresses(Some(eth0.index)).unwrap().iter().filter(|a| a.net == net("10.244.1.2/24")).count(),
        1
    );

    rt.delete_link(near.index).unwrap();
    assert_eq!(inside.link_by_name("eth0").unwrap(), None);
    assert!(rt.delete_link(near.index).unwrap_err().is_not_found());
}

#[test]
fn routes_and_rules_come_back_as_they_went_in() {
    let netns = namespace();
    let mut rt = RouteSocket::open_in(&netns).unwrap();
    let mut link =
        NewLink::new("a", NewLinkKind::Veth(VethPeer { name: "b".to_owned(), ..VethPeer::default() }));
    link.up = true;
    let link = rt.create_link(&link).unwrap().index;
    let far = rt.link_by_name("b").unwrap().unwrap().index;
    rt.set_link(far, LinkSettings::up()).unwrap();
    rt.add_address(Address::new(link, net("10.0.0.1/24"))).unwrap();
    rt.add_address(Address { flags: address_flags::NODAD, ..Address::new(link, net("fd00::1/64")) }).unwrap();

    let mut blackhole = Route::new(net("10.9.0.0/16")).by(77).in_table(1000);
    blackhole.kind = RouteKind::Blackhole;
    let mut multi = Route::new(net("10.7.0.0/16")).by(77);
    multi.hops = ["10.0.0.8", "10.0.0.9"]
        .map(|hop| Hop { link, next_hop: Some(ip(hop)), weight: 1, onlink: false })
        .to_vec();
    let mut six = Route::new(net("fd01::/64")).via(ip("fd00::2")).dev(link).by(77);
    six.metric = Some(1024);
    let mut with_mtu = Route::new(net("10.8.0.0/16")).via(ip("10.0.0.2")).dev(link).by(77).onlink();
    with_mtu.mtu = Some(1400);
    with_mtu.advmss = Some(1360);
    with_mtu.source = Some(ip("10.0.0.1"));
    let wanted = [with_mtu, blackhole, multi, six];
    for route in &wanted {
        rt.add_route(route.clone()).unwrap();
    }
    let filter = RouteFilter { protocol: Some(77), ..RouteFilter::default() };
    let mut seen = rt.routes(IpFamily::V4, filter).unwrap();
    seen.extend(rt.routes(IpFamily::V6, filter).unwrap());
    for route in &wanted {
        assert!(seen.contains(route), "{route:?} is not among {seen:#?}");
    }
    assert_eq!(seen.len(), wanted.len());
    assert_eq!(rt.routes(IpFamily::V4, RouteFilter { table: Some(4711), ..filter }).unwrap(), []);
    assert_eq!(rt.routes(IpFamily::V4, RouteFilter { table: Some(1000), ..filter }).unwrap().len(), 1);
    assert_eq!(rt.route_to(ip("10.8.1.1")).unwrap().next_hop, Some(ip("10.0.0.2")));
    for route in wanted {
        rt.delete_route(route).unwrap();
    }
    assert_eq!(rt.routes(IpFamily::V4, filter).unwrap(), []);

    let rule = Rule {
        priority: Some(100),
        source: Some(net("10.1.0.0/16")),
        input_link: Some("a".to_owned()),
        mark: Some((0x10, 0xff)),
        ..Rule::lookup(IpFamily::V4, 1000)
    };
    rt.add_rule(rule.clone()).unwrap();
    assert!(rt.add_rule(rule.clone()).unwrap_err().is_already_there());
    assert!(rt.rules(IpFamily::V4).unwrap().contains(&rule));
    rt.delete_rule(rule.clone()).unwrap();
    assert!(!rt.rules(IpFamily::V4).unwrap().contains(&rule));
}

#[test]
fn vxlan_neighbour_and_fdb_round_trip() {
    let netns = namespace();
    let mut rt = RouteSocket::open_in(&netns).unwrap();
    let config =
        VxlanConfig { vni: 1, local: Some(ip("192.0.2.1")), port: Some(8472), ..VxlanConfig::default() };
    let mut link = NewLink::new("flannel.1", NewLinkKind::Vxlan(config.clone()));
    link.up = true;
    let link = rt.create_link(&link).unwrap();
    assert_eq!(link.kind, LinkKind::Vxlan(config));
    let mac: MacAddress = "02:00:00:00:00:09".parse().unwrap();
    let neighbour = Neighbour::permanent(link.index, ip("10.244.2.0"), mac);
    let entry = FdbEntry::tunnel(link.index, mac, ip("192.0.2.2"));
    rt.apply_all(&[Change::ReplaceNeighbour(neighbour.clone()), Change::ReplaceFdb(entry.clone())]).unwrap();
    assert_eq!(rt.neighbours(IpFamily::V4, Some(link.index)).unwrap(), std::slice::from_ref(&neighbour));
    assert_eq!(rt.fdb(Some(link.index)).unwrap(), std::slice::from_ref(&entry));
    let moved = FdbEntry { destination: Some(ip("192.0.2.3")), ..entry };
    rt.apply(&Change::ReplaceFdb(moved.clone())).unwrap();
    assert_eq!(rt.fdb(Some(link.index)).unwrap(), std::slice::from_ref(&moved));
    rt.apply_all(&[Change::DeleteNeighbour(neighbour), Change::DeleteFdb(moved)]).unwrap();
    assert_eq!(rt.neighbours(IpFamily::V4, Some(link.index)).unwrap(), []);
    assert_eq!(rt.fdb(Some(link.index)).unwrap(), []);
}

#[test]
fn the_kernels_own_words_reach_the_error() {
    let netns = namespace();
    let mut rt = RouteSocket::open_in(&netns).unwrap();
    let error = rt.add_route(Route::new(net("10.1.0.0/16")).via(ip("192.0.2.1"))).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("cannot add route 10.1.0.0/16 via 192.0.2.1: "), "{text}");
    assert!(text.contains("the kernel says: "), "{text}");
    let error =
        rt.create_link(&NewLink::new("x", NewLinkKind::Other("no-such-kind".to_owned()))).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::MissingFeature { .. }), "{text}");
    assert!(text.contains("modprobe no-such-kind"), "{text}");
}

#[test]
fn named_namespaces_are_those_of_iproute2() {
    let name = format!("loden-test-{}", std::process::id());
    let netns = NetNs::create_named(&name).expect("kernel tests make network namespaces: run them as root");
    assert!(NetNs::create_named(&name).unwrap_err().errno() == Some(17));
    let by_ip = std::process::Command::new("ip")
        .args(["netns", "exec", &name, "ip", "-br", "link"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&by_ip.stdout).starts_with("lo"), "{by_ip:?}");
    assert_ne!(netns.identity().unwrap(), NetNs::current().unwrap().identity().unwrap());
    sysctl::write_in(&netns, "net/ipv4/ip_forward", "1").unwrap();
    assert_eq!(sysctl::read_in(&netns, "net.ipv4.ip_forward").unwrap().as_deref(), Some("1"));
    assert_eq!(sysctl::read_in(&netns, "net.ipv4.no_such_thing").unwrap(), None);
    assert!(sysctl::write_in(&netns, "net.ipv4.no_such_thing", "1").unwrap_err().is_not_found());
    NetNs::delete_named(&name).unwrap();
    NetNs::delete_named(&name).unwrap();
    assert!(NetNs::open_named(&name).unwrap_err().is_not_found());
    assert!(NetNs::open("/etc/hostname").is_err());
}

#[test]
fn a_link_can_be_made_in_another_namespace() {
    let (here, there) = (namespace(), namespace());
    let mut rt = RouteSocket::open_in(&here).unwrap();
    let peer = VethPeer { name: "near".to_owned(), ..VethPeer::default() };
    let mut pair = NewLink::new("far", NewLinkKind::Veth(peer));
    pair.netns = Some(there.clone());
    pair.alias = Some("made from afar".to_owned());
    let far = rt.create_link(&pair).unwrap();
    assert_eq!(far.alias.as_deref(), Some("made from afar"));
    assert_eq!(RouteSocket::open_in(&there).unwrap().link_by_name("far").unwrap().unwrap().index, far.index);
    assert!(rt.link_by_name("near").unwrap().is_some(), "the peer stays with the socket that asked");
    assert!(rt.link_by_name("far").unwrap().is_none());
}
