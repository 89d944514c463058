//! Ownership: which of the kernel's objects are ours.
//!
//! Marks are the route protocol number, the names of flannel's devices, tables and chains, and life on such a device. Two
//! legacy marks recognise what Go's flanneld left behind. Only an owned object can ever be deleted.

use std::collections::BTreeSet;

use ipnet::IpNet;
use loden_firewall::Family;

use crate::{
    BOOT_PROTOCOL, Key, Link, LinkKind, MAIN_TABLE, Mac, Object, Objects, ROUTE_PROTOCOL, RouteKind,
};

/// The nf_tables tables that are flannel's.
pub const FLANNEL_TABLES: [(Family, &str); 2] = [(Family::Ip, "flannel-ipv4"), (Family::Ip6, "flannel-ipv6")];

/// The chains that Go's flanneld makes in iptables' tables, each with the chain that leads to it. Their names are theirs alone, so
/// with nftables they are leftovers wherever they are.
pub const IPTABLES_CHAINS: [(&str, &str, &str); 2] =
    [("nat", "FLANNEL-POSTRTG", "POSTROUTING"), ("filter", "FLANNEL-FWD", "FORWARD")];

/// What belongs to this daemon and what it looks at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// The cluster's networks, and those of the previous run. A flannel device that carries an address outside all of
    /// them belongs to another flannel on the same machine.
    pub networks: Vec<IpNet>,
    /// The external interface, if the previous subnet file named one of our networks: then `proto boot` routes inside
    /// the network through it are what Go's flanneld left behind.
    pub legacy_link: Option<String>,
    /// The sysctls to read, as paths below `/proc/sys`.
    pub sysctls: BTreeSet<String>,
    /// The tunnel device that is wanted, if any.
    pub tunnel: Option<String>,
    /// This node's name, of which tunnel devices' MAC addresses are made ([`Mac::of_node`]).
    pub node: String,
    /// Further MAC addresses that only tunnel devices of this node have: the one it has published.
    pub macs: BTreeSet<Mac>,
}

impl Scope {
    /// Whether an observation includes this object. The rest of the machine is none of our business.
    #[must_use]
    pub fn looks_at(&self, object: &Object) -> bool {
        match object {
            Object::Link(_) => true,
            Object::Sysctl(sysctl) => self.sysctls.contains(&sysctl.path),
            Object::Table(table) => is_flannel_table(table.family, &table.name),
            Object::Chain(chain) => is_flannel_chain(&chain.table().name, chain.name()),
            Object::Address(address) => match address.address {
                IpNet::V4(_) => true,
                IpNet::V6(net) => !net.addr().is_unicast_link_local(),
            },
            Object::Neighbour(neighbour) => is_flannel_name(&neighbour.link),
            Object::Fdb(entry) => is_flannel_name(&entry.link),
            // Routes by the kernel itself (2) follow from addresses and links; they are effects, not objects.
            Object::Route(route) => {
                route.protocol == ROUTE_PROTOCOL || (route.table == MAIN_TABLE && route.protocol != 2)
            }
        }
    }

    /// Whether the observed object is ours, given everything else observed.
    #[must_use]
    pub fn owns(&self, all: &Objects, object: &Object) -> bool {
        match object {
            Object::Link(link) => {
                is_flannel_device(&link.name, &link.kind) && self.is_of_our_network(all, link)
            }
            Object::Sysctl(_) => false,
            Object::Table(table) => is_flannel_table(table.family, &table.name),
            Object::Chain(chain) => is_flannel_chain(&chain.table().name, chain.name()),
            Object::Address(address) => self.owns_link(all, &address.link) && self.contains(address.address),
            Object::Neighbour(neighbour) => self.owns_link(all, &neighbour.link),
            Object::Fdb(entry) => self.owns_link(all, &entry.link),
            Object::Route(route) => {
                route.protocol == ROUTE_PROTOCOL
                    || (route.protocol == BOOT_PROTOCOL
                        && route.table == MAIN_TABLE
                        && route.kind == RouteKind::Unicast
                        && self.contains(route.destination)
                        && route.link.as_ref().is_some_and(|link| {
                            self.owns_link(all, link)
                                || (self.legacy_link.as_ref() == Some(link) && route.via.is_some())
                        }))
            }
        }
    }

    fn owns_link(&self, all: &Objects, name: &str) -> bool {
        all.get(&Key::Link(name.to_owned())).is_some_and(|link| self.owns(all, link))
    }

    fn contains(&self, net: IpNet) -> bool {
        self.networks.iter().any(|network| network.contains(&net.trunc()) || network.contains(&net))
    }

    /// A device's addresses say whose it is. One without any is half made, by an earlier run or this very moment by another flannel on
    /// the machine: ours has from its first moment a MAC address of this node's, or the name of the one that is wanted. Any other stays:
    /// nothing goes through it, while to take it away from under another flannel cuts off that one's pods.
    fn is_of_our_network(&self, all: &Objects, link: &Link) -> bool {
        let mut addresses = all.addresses_on(&link.name).peekable();
        if addresses.peek().is_some() {
            return addresses.any(|address| self.contains(address));
        }
        let is_of_this_node = |mac: &Mac| {
            self.macs.contains(mac)
                || vni_of(&link.name).is_some_and(|vni| *mac == Mac::of_node(&self.node, vni))
        };
        self.tunnel.as_ref() == Some(&link.name) || link.mac.as_ref().is_some_and(is_of_this_node)
    }
}

fn is_flannel_table(family: Family, name: &str) -> bool {
    FLANNEL_TABLES.contains(&(family, name))
}

fn is_flannel_chain(table: &str, chain: &str) -> bool {
    IPTABLES_CHAINS.iter().any(|(of, name, _)| (*of, *name) == (table, chain))
}

/// Whether the name is one flannel gives to its devices.
fn is_flannel_name(name: &str) -> bool {
    matches!(name, "flannel.ipip" | "flannel-wg" | "flannel-wg-v6" | "flannel0") || vni_of(name).is_some()
}

fn vni_of(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("flannel.").or_else(|| name.strip_prefix("flannel-v6."))?;
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}

/// Name and kind must fit: a bridge that somebody called `flannel.1` is not ours.
fn is_flannel_device(name: &str, kind: &LinkKind) -> bool {
    match kind {
        LinkKind::Vxlan(vxlan) => vni_of(name) == Some(vxlan.vni),
        LinkKind::Other(kind) => matches!(
            (name, kind.as_str()),
            ("flannel.ipip", "ipip") | ("flannel-wg" | "flannel-wg-v6", "wireguard") | ("flannel0", "tun")
        ),
        LinkKind::Bridge => false,
    }
}
