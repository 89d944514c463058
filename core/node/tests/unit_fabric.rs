//! What leads to the peers, over random peers in a small world where addresses, names and MAC addresses collide.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a broken scenario must say where it broke")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use loden_lease::{AttributesError, BackendData, LeaseAttributes, PublicIp};
use loden_node::fake::Kernel;
use loden_node::{
    Address, BOOT_PROTOCOL, Claim, Fabric, FdbEntry, Flaw, Key, Link, LinkKind, Mac, Neighbour, Network,
    Object, Objects, Oneself, OwnEnd, Peer, Plan, ROUTE_PROTOCOL, Route, RouteKind, Step, Sysctl, Tunnel,
    Vxlan, Way, admit, check, diff,
};
use proptest::prelude::*;

const OWN_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xee]);

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn oneself(lease_type: &'static str, direct: bool) -> Oneself {
    Oneself {
        lease_type,
        network: net("10.244.0.0/16"),
        subnet: net("10.244.1.0/24"),
        public_ip: Ipv4Addr::new(192, 168, 0, 5),
        tunnel: (lease_type == "vxlan").then_some(OwnEnd { vni: 1, mac: OWN_MAC, direct }),
    }
}

fn tunnel() -> Tunnel {
    Tunnel {
        vni: 1,
        port: 8472,
        parent: "eth0".to_owned(),
        local: Ipv4Addr::new(192, 168, 0, 5),
        mac: OWN_MAC,
        outer_mtu: 1500,
        address: Ipv4Addr::new(10, 244, 1, 0),
        learning: false,
        gbp: false,
    }
}

fn network(fabric: Fabric) -> Network {
    Network {
        networks: vec![IpNet::V4(net("10.244.0.0/16"))],
        subnets: vec![IpNet::V4(net("10.244.1.0/24"))],
        external_link: Some("eth0".to_owned()),
        fabric,
        ..Network::default()
    }
}

fn link(name: &str, kind: LinkKind) -> Object {
    let mac = Some(Mac([2, 0, 0, 0, 9, 9]));
    Object::Link(Link { name: name.to_owned(), kind, mtu: Some(1500), mac, alias: None, up: true })
}

fn sysctl(path: &str, value: &str) -> Object {
    Object::Sysctl(Sysctl { path: path.to_owned(), value: value.to_owned() })
}

fn address(link: &str, address: &str) -> Object {
    Object::Address(Address { link: link.to_owned(), address: address.parse().unwrap() })
}

fn route(destination: &str, protocol: u8, link: &str, via: Option<&str>, onlink: bool) -> Object {
    Object::Route(Route {
        table: 254,
        destination: destination.parse().unwrap(),
        metric: 0,
        protocol,
        kind: RouteKind::Unicast,
        via: via.map(|via| via.parse().unwrap()),
        link: Some(link.to_owned()),
        onlink,
        source: None,
    })
}

/// `eth0` 192.168.0.5/24 with a default route, forwarding on.
fn machine() -> Objects {
    Objects::from_iter([
        link("eth0", LinkKind::Bridge),
        address("eth0", "192.168.0.5/24"),
        route("0.0.0.0/0", 16, "eth0", Some("192.168.0.1"), false),
        sysctl("net/ipv4/ip_forward", "1"),
        sysctl("net/ipv6/conf/default/accept_ra", "1"),
    ])
}

fn planned(network: &Network, kernel: &Kernel) -> Plan {
    let observed = kernel.observe(&network.scope());
    let desired = network.desired(&observed);
    let plan = diff(&desired, &observed);
    check(&plan, &desired, &observed).unwrap_or_else(|error| panic!("{error}\n{plan}"));
    plan
}

/// The plan without the nf_tables rules, which are not this file's.
fn shown(plan: &Plan) -> String {
    plan.to_string()
        .lines()
        .filter(|line| !line.starts_with("nft "))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn settle(network: &Network, kernel: &mut Kernel) -> Plan {
    let plan = planned(network, kernel);
    for step in &plan.steps {
        kernel.apply(step).unwrap_or_else(|error| panic!("`{step}`: {error}, in\n{plan}"));
    }
    assert_eq!(planned(network, kernel).steps, [], "one plan suffices");
    plan
}

fn peer(number: u8, public_ip: [u8; 4], way: Way) -> Peer {
    let subnet = Ipv4Net::new(Ipv4Addr::new(10, 244, number, 0), 24).unwrap();
    Peer { node: format!("n{number}"), subnet, public_ip: public_ip.into(), way }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

#[test]
fn vxlan_on_a_fresh_node_is_planned_in_full() {
    let peers = vec![
        peer(2, [192, 168, 7, 2], Way::Tunnel(mac(2))),
        peer(3, [192, 168, 0, 3], Way::DirectOrTunnel(mac(3))),
        peer(4, [192, 168, 7, 4], Way::DirectOrTunnel(mac(4))),
    ];
    let network = network(Fabric { tunnel: Some(tunnel()), peers });
    let mut kernel = Kernel::with(machine());
    insta::assert_snapshot!(shown(&settle(&network, &mut kernel)), @r"
    ip link add flannel.1 address 02:00:00:00:00:ee mtu 1450 type vxlan id 1 local 192.168.0.5 dev eth0 dstport 8472 nolearning
    ip link set flannel.1 up
    sysctl -w net.ipv6.conf.flannel/1.accept_ra=0
    ip address add 10.244.1.0/32 dev flannel.1
    ip neighbour replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
    ip neighbour replace 10.244.4.0 lladdr 02:00:00:00:00:04 dev flannel.1 nud permanent
    bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.168.7.2 self permanent
    bridge fdb replace 02:00:00:00:00:04 dev flannel.1 dst 192.168.7.4 self permanent
    ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 77 onlink
    ip route add 10.244.3.0/24 via 192.168.0.3 dev eth0 proto 77
    ip route add 10.244.4.0/24 via 10.244.4.0 dev flannel.1 proto 77 onlink
    ");
}

#[test]
fn host_gw_routes_to_neighbours_and_names_the_others() {
    let peers = vec![peer(2, [192, 168, 0, 2], Way::Direct), peer(3, [192, 168, 7, 3], Way::Direct)];
    let network = network(Fabric { tunnel: None, peers });
    let mut kernel = Kernel::with(machine());
    let plan = settle(&network, &mut kernel);
    assert_eq!(shown(&plan), "ip route add 10.244.2.0/24 via 192.168.0.2 dev eth0 proto 77\n");
    assert!(plan.blocked.is_empty(), "a peer out of reach does not hold up the others");
    let unreached = network.fabric.unreached(&kernel.observe(&network.scope()));
    let texts: Vec<String> = unreached.iter().map(|u| format!("{}: {u}", u.node)).collect();
    insta::assert_snapshot!(texts.join("\n"), @"n3: its public IP 192.168.7.3 is on no layer 2 of this node, so that 10.244.3.0/24 cannot be routed to it; put the nodes on one, or use backend vxlan");
    // A router to the peer is no layer 2, an explicit route on the link is.
    kernel.put(route("192.168.7.3/32", 4, "eth0", None, false)).unwrap();
    assert_eq!(
        shown(&planned(&network, &kernel)),
        "ip route add 10.244.3.0/24 via 192.168.7.3 dev eth0 proto 77\n"
    );
    kernel.put(route("192.168.7.3/32", 4, "eth0", Some("192.168.0.1"), false)).unwrap();
    assert_eq!(shown(&planned(&network, &kernel)), "");
}

#[test]
fn what_gos_flanneld_left_is_adopted_or_goes_and_strangers_stay() {
    let peers = vec![peer(2, [192, 168, 7, 2], Way::Tunnel(mac(2)))];
    let mut network = network(Fabric { tunnel: Some(tunnel()), peers });
    network.previous_networks = network.networks.clone();
    let device = LinkKind::Vxlan(Vxlan {
        vni: 1,
        port: 8472,
        local: Some("192.168.0.5".parse().unwrap()),
        parent: Some("eth0".to_owned()),
        learning: true,
        ..Vxlan::default()
    });
    let permanent = |address: &str, last| {
        Object::Neighbour(Neighbour {
            link: "flannel.1".to_owned(),
            address: address.parse().unwrap(),
            mac: mac(last),
        })
    };
    let fdb = |last, destination: &str| {
        Object::Fdb(FdbEntry {
            link: "flannel.1".to_owned(),
            mac: mac(last),
            destination: destination.parse().unwrap(),
        })
    };
    let mut objects = machine();
    objects.extend([
        link("flannel.1", device),
        sysctl("net/ipv6/conf/flannel.1/accept_ra", "0"),
        address("flannel.1", "10.244.1.0/32"),
        address("flannel.1", "10.244.9.0/32"),
        address("flannel.1", "172.31.0.1/24"),
        permanent("10.244.2.0", 2),
        permanent("10.244.8.0", 8),
        fdb(2, "192.168.7.99"),
        fdb(8, "192.168.7.8"),
        route("10.244.2.0/24", BOOT_PROTOCOL, "flannel.1", Some("10.244.2.0"), true),
        route("10.244.8.0/24", BOOT_PROTOCOL, "flannel.1", Some("10.244.8.0"), true),
        route("10.244.7.0/24", BOOT_PROTOCOL, "eth0", Some("192.168.0.7"), false),
        route("10.99.0.0/24", BOOT_PROTOCOL, "eth0", Some("192.168.0.7"), false),
        route("10.244.200.0/24", 4, "eth0", Some("192.168.0.7"), false),
    ]);
    let mut kernel = Kernel::with(objects);
    insta::assert_snapshot!(shown(&settle(&network, &mut kernel)), @r"
    ip link set flannel.1 mtu 1450 address 02:00:00:00:00:ee type vxlan nolearning
    ip neighbour replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent
    bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.168.7.2 self permanent
    ip route replace 10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 77 onlink
    ip route delete 10.244.8.0/24 via 10.244.8.0 dev flannel.1 proto 3 onlink
    ip route delete 10.244.7.0/24 via 192.168.0.7 dev eth0 proto 3
    bridge fdb delete 02:00:00:00:00:08 dev flannel.1 dst 192.168.7.8 self
    ip address delete 10.244.9.0/32 dev flannel.1
    ");
    assert!(kernel.objects().iter().any(|o| *o == address("flannel.1", "172.31.0.1/24")));
    // Without the subnet file's word, a route by the external interface is anybody's.
    network.previous_networks.clear();
    let stray = route("10.244.7.0/24", BOOT_PROTOCOL, "eth0", Some("192.168.0.7"), false);
    kernel.put(stray.clone()).unwrap();
    settle(&network, &mut kernel);
    assert!(kernel.objects().get(&stray.key()).is_some());
}

#[test]
fn a_device_is_made_anew_only_when_it_must() {
    let network = network(Fabric {
        tunnel: Some(tunnel()),
        peers: vec![peer(2, [192, 168, 7, 2], Way::Tunnel(mac(2)))],
    });
    let mut settled = Kernel::with(machine());
    settle(&network, &mut settled);
    let device = settled.objects().link("flannel.1").unwrap().clone();
    let vxlan = |change: &dyn Fn(&mut Vxlan)| {
        let LinkKind::Vxlan(mut vxlan) = device.kind.clone() else { panic!("a tunnel") };
        change(&mut vxlan);
        Link { kind: LinkKind::Vxlan(vxlan), ..device.clone() }
    };
    let mut cases: Vec<(Link, bool)> = vec![
        (Link { mtu: Some(1400), ..device.clone() }, false),
        (Link { mac: Some(mac(7)), ..device.clone() }, false),
        (Link { up: false, ..device.clone() }, false),
        (vxlan(&|v| v.learning = true), false),
        (vxlan(&|v| v.port = 4789), true),
        (vxlan(&|v| v.gbp = true), true),
        (vxlan(&|v| v.parent = None), true),
        (vxlan(&|v| v.local = None), true),
        (vxlan(&|v| v.group = Some("239.1.1.1".parse().unwrap())), true),
    ];
    for (tampered, anew) in cases.drain(..) {
        let mut objects = settled.objects().clone();
        objects.insert(Object::Link(tampered.clone()));
        let mut kernel = Kernel::with(objects);
        let plan = settle(&network, &mut kernel);
        let deletes = plan.steps.iter().any(|step| matches!(step, Step::Delete(Object::Link(_))));
        assert_eq!(deletes, anew, "{tampered:?}\n{plan}");
        assert_eq!(kernel.objects(), settled.objects(), "{tampered:?}");
    }
}

#[test]
fn when_the_external_interface_goes_everything_returns_with_it() {
    let peers = vec![
        peer(2, [192, 168, 7, 2], Way::Tunnel(mac(2))),
        peer(3, [192, 168, 0, 3], Way::DirectOrTunnel(mac(3))),
    ];
    let network = network(Fabric { tunnel: Some(tunnel()), peers });
    let mut kernel = Kernel::with(machine());
    settle(&network, &mut kernel);
    let before = kernel.objects().clone();
    assert!(kernel.remove(&Key::Link("eth0".to_owned())));
    let plan = planned(&network, &kernel);
    assert!(plan.steps.is_empty() && !plan.blocked.is_empty(), "{plan}");
    for object in machine().iter() {
        if kernel.objects().get(&object.key()).is_none() {
            kernel.put(object.clone()).unwrap();
        }
    }
    settle(&network, &mut kernel);
    assert_eq!(*kernel.objects(), before);
}

#[test]
fn a_narrow_link_below_makes_a_narrow_tunnel() {
    let network = network(Fabric { tunnel: Some(tunnel()), peers: Vec::new() });
    let mut objects = machine();
    objects.insert(Object::Link(Link { mtu: Some(1300), ..objects.link("eth0").unwrap().clone() }));
    let plan = shown(&settle(&network, &mut Kernel::with(objects)));
    assert!(plan.contains("mtu 1250"), "{plan}");
    assert!(!plan.contains("accept_ra"), "no IPv6 below 1280 bytes: {plan}");
}

// --- who is a peer ---

fn claim(node: &str, since: u8, subnet: &str, ip: [u8; 4], mac: &str) -> Claim {
    Claim {
        node: node.to_owned(),
        since: Some(format!("2026-01-{since:02}T00:00:00Z")),
        pod_cidrs: vec![subnet.parse().unwrap()],
        lease: Ok(LeaseAttributes {
            public_ip: PublicIp { ipv4: Some(ip.into()), ipv6: None },
            backend_type: "vxlan".to_owned(),
            backend_data: BackendData::Vxlan { vni: 1, vtep_mac: mac.to_owned() },
            backend_v6_data: BackendData::None,
        }),
    }
}

#[test]
fn each_false_word_is_refused_by_name() {
    let good = || claim("n2", 2, "10.244.2.0/24", [192, 168, 0, 2], "02:00:00:00:00:02");
    let lease = |change: &dyn Fn(&mut LeaseAttributes)| {
        let mut claim = good();
        change(claim.lease.as_mut().unwrap());
        claim
    };
    let subnet = |text: &str| Claim { pod_cidrs: vec![text.parse().unwrap()], ..good() };
    let ip = |a, b, c, d| lease(&|l| l.public_ip.ipv4 = Some(Ipv4Addr::new(a, b, c, d)));
    let data =
        |vni, mac: &str| lease(&|l| l.backend_data = BackendData::Vxlan { vni, vtep_mac: mac.to_owned() });
    let unreadable = AttributesError { field: "public-ip", cause: "\"x\" is not an address".to_owned() };
    let cases = [
        (Claim { lease: Err(unreadable), ..good() }, "is not an address"),
        (lease(&|l| l.backend_type = "host-gw".to_owned()), "its backend is \"host-gw\" and ours \"vxlan\""),
        (lease(&|l| l.backend_type = String::new()), "its backend is \"\""),
        (Claim { pod_cidrs: Vec::new(), ..good() }, "no IPv4 pod CIDR"),
        (subnet("fd00::/64"), "no IPv4 pod CIDR"),
        (subnet("10.245.2.0/24"), "outside Network 10.244.0.0/16"),
        (subnet("10.0.0.0/8"), "outside Network"),
        (subnet("10.244.1.0/24"), "overlaps ours, 10.244.1.0/24"),
        (subnet("10.244.0.0/16"), "overlaps ours"),
        (subnet("10.244.1.128/25"), "overlaps ours"),
        (lease(&|l| l.public_ip.ipv4 = None), "publishes no IPv4 address"),
        (ip(127, 0, 0, 1), "127.0.0.1 is no address of a single machine"),
        (ip(224, 0, 0, 1), "no address of a single machine"),
        (ip(255, 255, 255, 255), "no address of a single machine"),
        (ip(192, 168, 0, 5), "192.168.0.5 is ours"),
        (ip(10, 244, 2, 1), "lies in the pod subnet 10.244.2.0/24"),
        (ip(10, 244, 1, 1), "lies in the pod subnet 10.244.1.0/24"),
        (lease(&|l| l.backend_data = BackendData::None), "no tunnel MAC address"),
        (data(2, "02:00:00:00:00:02"), "its VNI is 2 and ours 1"),
        (data(1, "02:00:00:00:00"), "is no link-layer address"),
        (data(1, "+2:00:00:00:00:02"), "is no link-layer address"),
        (data(1, ""), "is no link-layer address"),
        (data(1, "01:00:5e:00:00:02"), "is no unicast address"),
        (data(1, "ff:ff:ff:ff:ff:ff"), "is no unicast address"),
        (data(1, "00:00:00:00:00:00"), "is no unicast address"),
        (data(1, "02:00:00:00:00:EE"), "02:00:00:00:00:ee is ours"),
    ];
    for (claim, word) in cases {
        let admission = admit(&oneself("vxlan", false), [&claim]);
        assert_eq!(admission.peers, [], "{claim:?}");
        let [(node, flaw)] = admission.flaws.as_slice() else { panic!("{claim:?}: {:?}", admission.flaws) };
        assert!(node == "n2" && flaw.to_string().contains(word), "{flaw} / {word}");
    }
    let admission = admit(&oneself("vxlan", false), [&good(), &data(0, "02:00:00:00:00:03")]);
    assert_eq!(admission.peers[0], peer(2, [192, 168, 0, 2], Way::Tunnel(mac(2))));
    assert_eq!(admit(&oneself("vxlan", true), [&good()]).peers[0].way, Way::DirectOrTunnel(mac(2)));
    let mut plain = lease(&|l| l.backend_type = "host-gw".to_owned());
    plain.lease.as_mut().unwrap().backend_data = BackendData::None;
    assert_eq!(admit(&oneself("host-gw", false), [&plain]).peers[0].way, Way::Direct);
}

#[test]
fn of_two_that_claim_the_same_the_older_is_believed() {
    let old = claim("z", 1, "10.244.2.0/24", [192, 168, 0, 2], "02:00:00:00:00:02");
    for (young, word) in [
        (
            claim("a", 2, "10.244.2.0/24", [192, 168, 0, 3], "02:00:00:00:00:03"),
            "overlaps that of the older node z",
        ),
        (
            claim("a", 2, "10.244.2.64/26", [192, 168, 0, 3], "02:00:00:00:00:03"),
            "overlaps that of the older node z",
        ),
        (
            claim("a", 2, "10.244.2.0/23", [192, 168, 0, 3], "02:00:00:00:00:03"),
            "overlaps that of the older node z",
        ),
        (
            claim("a", 2, "10.244.3.0/24", [192, 168, 0, 3], "02:00:00:00:00:02"),
            "is that of the older node z",
        ),
    ] {
        let admission = admit(&oneself("vxlan", false), [&young, &old]);
        assert_eq!(admission.peers.iter().map(|p| p.node.as_str()).collect::<Vec<_>>(), ["z"]);
        assert!(admission.flaws[0].1.to_string().contains(word), "{}", admission.flaws[0].1);
    }
    // The same address is reported, but nobody loses by it: a false word about it harms only who says it.
    let young = claim("a", 2, "10.244.3.0/24", [192, 168, 0, 2], "02:00:00:00:00:03");
    let admission = admit(&oneself("vxlan", false), [&young, &old]);
    assert_eq!(admission.peers.len(), 2);
    assert!(
        matches!(&admission.flaws[..], [(node, Flaw::SharedPublicIp { with, .. })] if node == "a" && with == "z")
    );
}

#[test]
fn tunnel_addresses_of_nodes_are_steady_and_differ() {
    assert_eq!(Mac::of_node("node-1", 1), Mac::of_node("node-1", 1));
    let all: BTreeSet<Mac> = (0..20_000).map(|i| Mac::of_node(&format!("node-{i}"), 1)).collect();
    assert_eq!(all.len(), 20_000);
    assert!(all.iter().all(|mac| mac.is_unicast() && mac.0[0] & 2 == 2));
    assert_ne!(Mac::of_node("node-1", 1), Mac::of_node("node-1", 2));
}

prop_compose! {
    fn any_claim()(
        node in 0_u8..9, since in 1_u8..4, third in 0_u8..6, length in prop::sample::select(vec![15_u8, 16, 22, 23, 24, 24, 24, 25]),
        subnet_net in prop::sample::select(vec![244_u8, 244, 244, 245]), ip in 1_u8..8, far in any::<bool>(), last in 0_u8..8, vni in 0_u32..3,
        kind in 0_u8..12,
    ) -> Claim {
        let subnet = IpNet::V4(Ipv4Net::new(Ipv4Addr::new(10, subnet_net, third, 0), length).unwrap());
        let mac = if kind == 0 { "01:00:00:00:00:01".to_owned() } else { mac(last).to_string() };
        let mut claim = claim(&format!("n{node}"), since, &subnet.to_string(), [192, 168, if far { 7 } else { 0 }, ip], &mac);
        let lease = claim.lease.as_mut().unwrap();
        match kind {
            1 => lease.backend_data = BackendData::None,
            2 => lease.backend_type = "udp".to_owned(),
            3 => lease.backend_data = BackendData::Vxlan { vni, vtep_mac: mac },
            _ => {}
        }
        claim
    }
}

fn any_claims() -> impl Strategy<Value = Vec<Claim>> {
    // Node names are unique in a cluster.
    prop::collection::vec(any_claim(), 0..12).prop_map(|claims| {
        let by_name: BTreeMap<String, Claim> = claims.into_iter().map(|c| (c.node.clone(), c)).collect();
        by_name.into_values().collect()
    })
}

fn fabric(claims: &[Claim], direct: bool) -> Fabric {
    Fabric { tunnel: Some(tunnel()), peers: admit(&oneself("vxlan", direct), claims).peers }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn admitted_peers_never_collide(claims in any_claims(), direct: bool, turn in 0_usize..12) {
        let oneself = oneself("vxlan", direct);
        let admission = admit(&oneself, &claims);
        for (i, one) in admission.peers.iter().enumerate() {
            prop_assert!(oneself.network.contains(&one.subnet));
            prop_assert!(!one.subnet.contains(&oneself.subnet) && !oneself.subnet.contains(&one.subnet));
            prop_assert_ne!(one.public_ip, oneself.public_ip);
            for other in &admission.peers[..i] {
                prop_assert!(!one.subnet.contains(&other.subnet) && !other.subnet.contains(&one.subnet));
                prop_assert_ne!(one.way, other.way, "a shared MAC address");
            }
        }
        // Everybody is a peer or has a flaw, and the order of the claims does not matter.
        let named: BTreeSet<&str> = admission.peers.iter().map(|p| p.node.as_str())
            .chain(admission.flaws.iter().map(|(node, _)| node.as_str())).collect();
        prop_assert_eq!(named.len(), claims.len());
        let mut turned = claims.clone();
        turned.rotate_left(turn.min(claims.len()));
        turned.reverse();
        prop_assert_eq!(admit(&oneself, &turned), admission);
    }

    #[test]
    fn any_change_of_peers_is_reached_in_one_plan(first in any_claims(), second in any_claims(), direct: bool, cut in 0_usize..30) {
        let (before, after) = (network(fabric(&first, direct)), network(fabric(&second, direct)));
        let mut kernel = Kernel::with(machine());
        settle(&before, &mut kernel);
        // Somebody removes some of it, and an earlier daemon was stopped in the middle of its work.
        let keys: Vec<Key> = kernel.objects().keys().filter(|k| matches!(k, Key::Neighbour { .. } | Key::Fdb { .. } | Key::Route { .. })).cloned().collect();
        for key in keys.iter().skip(cut % 3).step_by(3) {
            if machine().get(key).is_none() {
                kernel.remove(key);
            }
        }
        for step in planned(&after, &kernel).steps.iter().take(cut) {
            kernel.apply(step).unwrap();
        }
        settle(&after, &mut kernel);
        let mut fresh = Kernel::with(machine());
        settle(&after, &mut fresh);
        prop_assert_eq!(kernel.objects(), fresh.objects(), "where one comes from leaves no trace");
    }

    #[test]
    fn a_change_of_one_peer_touches_only_its_objects(claims in any_claims(), direct: bool, which in 0_usize..12, ip in 100_u8..200) {
        let before = network(fabric(&claims, direct));
        let mut kernel = Kernel::with(machine());
        settle(&before, &mut kernel);
        let mut after = before.clone();
        let count = after.fabric.peers.len();
        prop_assume!(count > 0);
        let changed = &mut after.fabric.peers[which % count];
        changed.public_ip = Ipv4Addr::new(192, 168, 7, ip);
        let (subnet, way) = (changed.subnet, changed.way);
        let plan = settle(&after, &mut kernel);
        prop_assert!(plan.steps.len() <= 3, "{}", plan);
        for step in &plan.steps {
            let its = match step.key() {
                Key::Route { destination, .. } => destination == IpNet::V4(subnet),
                Key::Neighbour { address, .. } => address == subnet.network(),
                Key::Fdb { mac, .. } => matches!(way, Way::Tunnel(its) | Way::DirectOrTunnel(its) if its == mac),
                _ => false,
            };
            prop_assert!(its, "`{step}` is not about the peer");
        }
        // And its going takes just what it had.
        let gone = after.fabric.peers.remove(which % count);
        let plan = settle(&after, &mut kernel);
        prop_assert!(plan.steps.iter().all(|step| matches!(step, Step::Delete(_))) && plan.steps.len() <= 3, "{} of {:?}", plan, gone);
    }

    #[test]
    fn marks_of_ours_are_on_all_of_it(claims in any_claims(), direct: bool) {
        let network = network(fabric(&claims, direct));
        let mut kernel = Kernel::with(machine());
        settle(&network, &mut kernel);
        for object in kernel.objects().iter() {
            if let Object::Route(route) = object && route.destination.prefix_len() > 0 {
                prop_assert_eq!(route.protocol, ROUTE_PROTOCOL);
            }
        }
        // Without peers and tunnel nothing of it remains.
        settle(&self::network(Fabric::default()), &mut kernel);
        let left: Vec<&Object> = kernel.objects().iter().filter(|o| !matches!(o, Object::Table(_)) && machine().get(&o.key()).is_none()).collect();
        prop_assert!(left.is_empty(), "{:?}", left);
    }
}
