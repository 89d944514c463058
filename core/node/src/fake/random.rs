//! Random scenarios, the same ones for the same seed.
//!
//! The domains are tiny (two tunnels, two bridges, a handful of addresses) so that plans collide: objects are replaced,
//! links are created anew under living routes, keys are reused. Everything in here can be made by a real kernel with
//! VXLAN, bridges and nf_tables in a fresh network namespace.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden_firewall::flannel::{self, Masquerade};

use crate::{
    Address, BOOT_PROTOCOL, Desired, FLANNEL_TABLES, FdbEntry, Link, LinkKind, MAIN_TABLE, Mac, Neighbour,
    Object, Objects, Observed, Plan, ROUTE_PROTOCOL, Route, RouteKind, Scope, Vxlan, diff,
};

/// A source of scenarios (splitmix64).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Scenarios of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number below `n`, which must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).checked_rem(n).unwrap_or(0)
    }

    fn small(&mut self, n: u8) -> u8 {
        u8::try_from(self.below(u64::from(n))).unwrap_or(0)
    }

    /// True `n` times out of ten.
    fn often(&mut self, n: u64) -> bool {
        self.below(10) < n
    }

    /// The scope every scenario uses.
    #[must_use]
    pub fn scope() -> Scope {
        Scope {
            networks: vec![v4(10, 244, 0, 0, 16), v6(0, 0, 48)],
            legacy_link: None,
            sysctls: [ACCEPT_RA.to_owned()].into(),
            tunnel: None,
            node: String::new(),
            // All that the tunnels here can have.
            macs: (0..2).flat_map(|vni| [0, 1].map(|end| Mac([2, 0, 0, vni + 1, 0, end]))).collect(),
        }
    }

    /// A desired network in which every object can be had.
    pub fn desired(&mut self) -> Desired {
        let mut objects = Objects::default();
        let tunnels = [("flannel.1", 1), ("flannel.2", 2)];
        for (name, vni) in tunnels {
            if self.often(8) {
                let link = self.tunnel(name, vni);
                let up = link.up;
                objects.insert(Object::Link(link));
                self.inhabit(&mut objects, name, up, vni);
            }
        }
        for (family, name) in FLANNEL_TABLES {
            if self.often(7) {
                objects.insert(Object::Table(self.table(family, name)));
            }
        }
        if self.often(4) {
            let subnet = v4(10, 244, self.small(3), 0, 24);
            objects.insert(Object::Route(blackhole(subnet)));
        }
        let value = if self.often(5) { "1" } else { "0" };
        objects.insert(Object::Sysctl(crate::Sysctl { path: ACCEPT_RA.to_owned(), value: value.to_owned() }));
        Desired { scope: Self::scope(), objects, dispensable: BTreeSet::new() }
    }

    /// Objects that belong to somebody else and can be made in a fresh namespace: bridges with addresses and routes, routes of other
    /// protocols, and a tunnel that another flannel has just begun to make.
    pub fn foreign(&mut self) -> Objects {
        let mut objects = Objects::default();
        if self.often(5) {
            let mac = Some(Mac([2, 0, 0, 0, 8, 9]));
            objects.insert(Object::Link(Link { mac, up: false, ..self.tunnel("flannel.9", 9) }));
        }
        for (i, name) in ["br0", "br1"].into_iter().enumerate() {
            if !self.often(7) {
                continue;
            }
            let third = u8::try_from(i).unwrap_or(0);
            objects.insert(Object::Link(Link {
                name: name.to_owned(),
                kind: LinkKind::Bridge,
                mtu: Some(1500),
                mac: Some(Mac([2, 0, 0, 0, 9, third])),
                alias: self.often(5).then(|| "somebody's".to_owned()),
                up: true,
            }));
            objects.insert(Object::Address(Address {
                link: name.to_owned(),
                address: v4(192, 168, third, 1, 24),
            }));
            if self.often(6) {
                objects.insert(Object::Route(Route {
                    protocol: if self.often(5) { BOOT_PROTOCOL } else { 4 },
                    ..through(v4(10, 99, third, 0, 24), name, None)
                }));
            }
        }
        objects
    }

    /// A plan of at least `steps` steps from what is observed to some desired network, with that network.
    pub fn plan(&mut self, observed: &Observed, steps: usize) -> (Desired, Plan) {
        loop {
            let mut desired = self.desired();
            self.lead_directly(&mut desired.objects, observed);
            let plan = diff(&desired, observed);
            if plan.steps.len() >= steps {
                return (desired, plan);
            }
        }
    }

    /// Routes by next hops on the network of somebody's bridge, where there is one.
    fn lead_directly(&mut self, objects: &mut Objects, observed: &Observed) {
        for (third, name) in [(0, "br0"), (1, "br1")] {
            let has_network =
                observed.objects.addresses_on(name).any(|net| net == v4(192, 168, third, 1, 24));
            for peer in 0..3 {
                if has_network && self.often(5) {
                    let via = IpAddr::V4(Ipv4Addr::new(192, 168, third, 2 + self.small(2)));
                    let route = through(v4(10, 244, 110 + peer, 0, 24), name, Some(via));
                    objects.insert(Object::Route(Route { onlink: false, ..route }));
                }
            }
        }
    }

    fn tunnel(&mut self, name: &str, vni: u32) -> Link {
        let number = u8::try_from(vni).unwrap_or(0);
        Link {
            name: name.to_owned(),
            kind: LinkKind::Vxlan(Vxlan {
                vni,
                port: 8472,
                local: Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + self.small(2)))),
                parent: None,
                group: None,
                learning: self.often(3),
                gbp: false,
            }),
            mtu: Some(if self.often(7) { 1450 } else { 1400 }),
            mac: Some(Mac([2, 0, 0, number, 0, self.small(2)])),
            alias: self.often(3).then(|| format!("tunnel {}", self.small(2))),
            up: self.often(9),
        }
    }

    /// Addresses, neighbours, FDB entries and routes on a tunnel. Addresses are `/32` and `/128`, as flannel's are, so that none is
    /// secondary to another.
    fn inhabit(&mut self, objects: &mut Objects, link: &str, up: bool, vni: u32) {
        let number = u8::try_from(vni).unwrap_or(0);
        for i in 0..2 {
            if self.often(6) {
                objects.insert(Object::Address(Address {
                    link: link.to_owned(),
                    address: v4(10, 244, number, i, 32),
                }));
            }
        }
        // Taking a link down removes its IPv6 addresses and everything that looks them up; only wish for them on a link that is up.
        if !up {
            return;
        }
        if self.often(5) {
            objects.insert(Object::Address(Address {
                link: link.to_owned(),
                address: v6(number.into(), 1, 128),
            }));
        }
        for peer in 0..3 {
            let mac = Mac([2, 0, 0, 0, 7, self.small(3)]);
            if self.often(6) {
                let address = IpAddr::V4(Ipv4Addr::new(10, 244, 100 + peer, 0));
                objects.insert(Object::Neighbour(Neighbour { link: link.to_owned(), address, mac }));
            }
            if self.often(6) {
                let destination = IpAddr::V4(Ipv4Addr::new(172, 31, 0, 1 + self.small(3)));
                objects.insert(Object::Fdb(FdbEntry { link: link.to_owned(), mac, destination }));
            }
            if self.often(6) {
                let via = IpAddr::V4(Ipv4Addr::new(10, 244, 100 + peer, self.small(2)));
                objects.insert(Object::Route(through(v4(10, 244, 100 + peer, 0, 24), link, Some(via))));
            }
            if self.often(3) {
                objects.insert(Object::Route(through(v6(u16::from(peer) + 100, 0, 64), link, None)));
            }
        }
    }

    fn table(&mut self, family: loden_firewall::Family, name: &str) -> loden_firewall::Table {
        let is_v4 = family == loden_firewall::Family::Ip;
        let third = self.small(3);
        let (network, subnet) = if is_v4 {
            (v4(10, 244, 0, 0, 16), v4(10, 244, third, 0, 24))
        } else {
            (v6(0, 0, 48), v6(third.into(), 0, 64))
        };
        let rules = flannel::Rules {
            network,
            subnet,
            exempt: if is_v4 && self.often(5) { vec![v4(192, 168, 0, 0, 16)] } else { Vec::new() },
            masquerade: self.often(8).then(|| Masquerade { fully_random: self.often(5) }),
            forward: self.often(7),
        };
        flannel::table(family, name, self.often(9).then_some(&rules))
    }
}

/// A setting whose change has no effect on anything else.
const ACCEPT_RA: &str = "net/ipv6/conf/default/accept_ra";

fn v4(a: u8, b: u8, c: u8, d: u8, len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(Ipv4Addr::new(a, b, c, d), len).unwrap_or_default())
}

fn v6(subnet: u16, host: u16, len: u8) -> IpNet {
    IpNet::V6(
        Ipv6Net::new(Ipv6Addr::new(0xfd00, 0x10, 0x244, subnet, 0, 0, 0, host), len).unwrap_or_default(),
    )
}

fn blackhole(destination: IpNet) -> Route {
    Route { kind: RouteKind::Blackhole, link: None, ..through(destination, "", None) }
}

fn through(destination: IpNet, link: &str, via: Option<IpAddr>) -> Route {
    Route {
        table: MAIN_TABLE,
        destination,
        metric: if matches!(destination, IpNet::V6(_)) { 1024 } else { 0 },
        protocol: ROUTE_PROTOCOL,
        kind: RouteKind::Unicast,
        via,
        link: Some(link.to_owned()),
        onlink: via.is_some(),
        source: None,
    }
}
