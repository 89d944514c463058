//! The desired network of the `alloc` backend, as a person would read it.

#![expect(clippy::unwrap_used, reason = "the literals of a test parse")]

use loden_firewall::flannel::Masquerade;
use loden_lease::gateway_mark;
use loden_node::fake::Kernel;
use loden_node::{
    Address, BOOT_PROTOCOL, Desired, Fabric, Link, LinkKind, Mac, Network, Object, Objects, Plan,
    ROUTE_PROTOCOL, Reason, Route, RouteKind, Sysctl, Vxlan, check, diff,
};

fn network() -> Network {
    Network {
        networks: vec!["172.20.0.0/16".parse().unwrap()],
        subnets: vec!["172.20.1.0/24".parse().unwrap()],
        masquerade: Some(Masquerade { fully_random: true }),
        exempt: Some(vec!["192.168.0.0/16".parse().unwrap()]),
        forward_rules: true,
        blackhole: false,
        previous_networks: Vec::new(),
        external_link: Some("eth0".to_owned()),
        fabric: Fabric::default(),
        ..Network::default()
    }
}

fn sysctl(value: &str) -> Object {
    Object::Sysctl(Sysctl { path: "net/ipv4/ip_forward".to_owned(), value: value.to_owned() })
}

fn link(name: &str, kind: LinkKind, alias: Option<String>) -> Object {
    let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
    Object::Link(Link { name: name.to_owned(), kind, mtu: Some(1500), mac, alias, up: true })
}

fn vxlan(vni: u32) -> LinkKind {
    LinkKind::Vxlan(Vxlan {
        vni,
        port: 8472,
        local: None,
        parent: None,
        group: None,
        learning: false,
        gbp: false,
    })
}

fn address(link: &str, address: &str) -> Object {
    Object::Address(Address { link: link.to_owned(), address: address.parse().unwrap() })
}

fn route(destination: &str, protocol: u8, link: &str, via: Option<&str>) -> Object {
    Object::Route(Route {
        table: 254,
        destination: destination.parse().unwrap(),
        metric: 0,
        protocol,
        kind: RouteKind::Unicast,
        via: via.map(|via| via.parse().unwrap()),
        link: Some(link.to_owned()),
        onlink: false,
        source: None,
    })
}

fn planned(network: &Network, kernel: &Kernel) -> (Desired, Plan) {
    let observed = kernel.observe(&network.scope());
    let desired = network.desired(&observed);
    let plan = diff(&desired, &observed);
    check(&plan, &desired, &observed).unwrap();
    (desired, plan)
}

#[test]
fn a_fresh_node_is_planned_in_full() {
    let kernel = Kernel::with(Objects::from_iter([sysctl("0")]));
    let (_, plan) = planned(&network(), &kernel);
    insta::assert_snapshot!(plan.to_string(), @r#"
    sysctl -w net.ipv4.ip_forward=1
    nft add table ip flannel-ipv4 { comment "rules for flannel-ipv4"; }
    nft add chain ip flannel-ipv4 forward { type filter hook forward priority filter; policy accept; comment "chain to accept flannel traffic"; }
    nft add chain ip flannel-ipv4 postrtg { type nat hook postrouting priority srcnat; policy accept; comment "chain to manage traffic masquerading by flannel"; }
    nft add rule ip flannel-ipv4 forward ip saddr 172.20.0.0/16 accept
    nft add rule ip flannel-ipv4 forward ip daddr 172.20.0.0/16 accept
    nft add rule ip flannel-ipv4 postrtg meta mark 0x00004000 return
    nft add rule ip flannel-ipv4 postrtg ip saddr 172.20.1.0/24 ip daddr 172.20.0.0/16 return
    nft add rule ip flannel-ipv4 postrtg ip saddr 172.20.0.0/16 ip daddr 172.20.1.0/24 return
    nft add rule ip flannel-ipv4 postrtg ip saddr != 172.20.1.0/24 ip daddr 172.20.0.0/16 return
    nft add rule ip flannel-ipv4 postrtg ip saddr 172.20.0.0/16 ip daddr 192.168.0.0/16 return
    nft add rule ip flannel-ipv4 postrtg ip saddr 172.20.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
    nft add rule ip flannel-ipv4 postrtg ip saddr != 172.20.0.0/16 ip daddr 172.20.0.0/16 masquerade fully-random
    nft add table ip6 flannel-ipv6 { comment "rules for flannel-ipv6"; }
    "#);
}

#[test]
fn leftovers_of_an_earlier_backend_go_and_strangers_stay() {
    let strangers = [
        link("eth0", LinkKind::Other(String::new()), None),
        address("eth0", "192.168.0.5/24"),
        link("flannel.7", vxlan(7), None),
        address("flannel.7", "10.99.1.0/32"),
        link("flannel.9", LinkKind::Bridge, None),
        route("10.1.0.0/16", BOOT_PROTOCOL, "eth0", Some("192.168.0.1")),
        route("172.20.9.0/24", BOOT_PROTOCOL, "eth0", Some("192.168.0.9")),
    ];
    let ours = [
        link("flannel.1", vxlan(1), None),
        address("flannel.1", "172.20.1.0/32"),
        route("172.20.2.0/24", BOOT_PROTOCOL, "flannel.1", Some("172.20.2.0")),
        route("172.21.3.0/24", ROUTE_PROTOCOL, "eth0", Some("192.168.0.3")),
    ];
    let (settled, _) = planned(&network(), &Kernel::default());
    let mut objects: Objects = strangers.into_iter().chain(ours).collect();
    objects.extend(settled.objects.iter().cloned());
    let (_, plan) = planned(&network(), &Kernel::with(objects.clone()));
    insta::assert_snapshot!(plan.to_string(), @r"
    ip route delete 172.21.3.0/24 via 192.168.0.3 dev eth0 proto 77
    ip link delete flannel.1
    ");
    // Once the previous subnet file named this network, Go's routes by the external interface are leftovers too.
    let network = Network { previous_networks: network().networks, ..network() };
    let (_, plan) = planned(&network, &Kernel::with(objects));
    assert!(
        plan.to_string().contains("ip route delete 172.20.9.0/24 via 192.168.0.9 dev eth0 proto 3"),
        "{plan}"
    );
    assert!(!plan.to_string().contains("10.1.0.0/16"), "{plan}");
}

#[test]
fn a_tunnel_without_addresses_is_told_by_its_mac_address() {
    let tunnel = |vni: u32, mac: Mac| {
        let Object::Link(link) = link(&format!("flannel.{vni}"), vxlan(vni), None) else { unreachable!() };
        Object::Link(Link { mac: Some(mac), ..link })
    };
    let published = Mac([2, 0, 0, 0, 0, 5]);
    let network = Network { node: "node-1".to_owned(), mac: Some(published), ..network() };
    let (mut objects, _) = planned(&network, &Kernel::default());
    objects.objects.extend([
        tunnel(1, published),
        tunnel(2, Mac::of_node("node-1", 2)),
        // What others are making: any MAC address, that of another node, that of another tunnel of this one; and what can never be told.
        tunnel(3, Mac([2, 0, 0, 0, 0, 3])),
        tunnel(4, Mac::of_node("node-2", 4)),
        tunnel(5, Mac::of_node("node-1", 1)),
        link("flannel.ipip", LinkKind::Other("ipip".to_owned()), None),
    ]);
    let (_, plan) = planned(&network, &Kernel::with(objects.objects));
    insta::assert_snapshot!(plan.to_string(), @r"
    ip link delete flannel.2
    ip link delete flannel.1
    ");
}

#[test]
fn the_gateway_address_of_our_bridges_is_kept() {
    let alias = |text: &str| gateway_mark(&[text.parse().unwrap()]);
    let kernel = Kernel::with(Objects::from_iter([
        link("cni0", LinkKind::Bridge, Some(alias("172.20.1.1/24"))),
        link("cni1", LinkKind::Bridge, Some(alias("172.30.1.1/24"))),
        link("docker0", LinkKind::Bridge, Some("172.20.1.1/24".to_owned())),
        link("veth0", LinkKind::Other("veth".to_owned()), Some(alias("172.20.1.1/24"))),
    ]));
    let (_, plan) = planned(&network(), &kernel);
    let addresses: Vec<String> =
        plan.steps.iter().map(ToString::to_string).filter(|s| s.starts_with("ip address")).collect();
    assert_eq!(addresses, ["ip address add 172.20.1.1/24 dev cni0"]);
}

#[test]
fn a_strangers_route_under_our_key_blocks_and_is_named() {
    let network = Network { blackhole: true, ..network() };
    let (desired, _) = planned(&network, &Kernel::default());
    let mut theirs = desired.objects.iter().find(|o| matches!(o, Object::Route(_))).cloned().unwrap();
    if let Object::Route(route) = &mut theirs {
        route.protocol = 4;
    }
    let (_, plan) = planned(&network, &Kernel::with(Objects::from_iter([theirs])));
    assert!(matches!(plan.blocked[0].reason, Reason::Foreign(_)));
    insta::assert_snapshot!(
        plan.blocked[0],
        @"`ip route add blackhole 172.20.1.0/24 proto 77 metric 65535` is blocked by somebody else's object (`ip route add blackhole 172.20.1.0/24 proto 4 metric 65535`), which is left alone; remove it by hand if it is stale"
    );
}

#[test]
fn a_tampered_table_is_mended_chain_by_chain() {
    let (desired, _) = planned(&network(), &Kernel::default());
    let mut objects = desired.objects.clone();
    let mut table = desired.objects.iter().find_map(|o| match o {
        Object::Table(table) if !table.chains.is_empty() => Some(table.clone()),
        _ => None,
    });
    let table = table.as_mut().unwrap();
    table.chains.get_mut("forward").unwrap().rules.pop();
    table.chains.insert("mine".to_owned(), loden_firewall::Chain::default());
    objects.insert(Object::Table(table.clone()));
    let (_, plan) = planned(&network(), &Kernel::with(objects));
    insta::assert_snapshot!(plan.to_string(), @r"
    nft flush chain ip flannel-ipv4 forward
    nft add rule ip flannel-ipv4 forward ip saddr 172.20.0.0/16 accept
    nft add rule ip flannel-ipv4 forward ip daddr 172.20.0.0/16 accept
    nft delete chain ip flannel-ipv4 mine
    ");
}

#[test]
fn exempt_networks_stay_while_they_are_not_known() {
    let known = network();
    let (settled, _) = planned(&known, &Kernel::default());
    let kernel = Kernel::with(settled.objects);
    let (_, plan) = planned(&Network { exempt: None, ..known.clone() }, &kernel);
    assert!(plan.is_empty(), "{plan}");
    let (_, plan) = planned(&Network { exempt: Some(Vec::new()), ..known }, &kernel);
    assert!(!plan.is_empty());
}
