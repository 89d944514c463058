//! The objects a node's network is made of, and what names each of them.
//!
//! A [`Key`] is what the kernel itself tells two objects apart by, so that there is never more than one object per key
//! in one network namespace. Links are named by name, not by index: an index does not survive a re-creation.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use loden_firewall::{SharedChain, Table, TableName};

/// A link-layer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A text that is no link-layer address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no link-layer address such as 02:42:ac:11:00:02")]
pub struct ParseMacError(String);

impl FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let broken = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let digits = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(digits).ok_or_else(broken)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| broken())?;
        }
        if parts.next().is_some() { Err(broken()) } else { Ok(Self(octets)) }
    }
}

impl Mac {
    /// The address a node's tunnel device has when none was handed down: always the same for a node and a network
    /// identifier, so that a node that forgot everything comes back as its peers know it. Locally administered, unicast.
    #[must_use]
    pub fn of_node(node: &str, vni: u32) -> Self {
        // FNV-1a, then mixed so that names that differ in their last digit differ in every octet.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in vni.to_be_bytes().into_iter().chain(node.bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let [a, b, c, d, e, g, ..] = (hash ^ (hash >> 31)).to_be_bytes();
        Self([(a & 0xfe) | 0x02, b, c, d, e, g])
    }

    /// Whether it names one station.
    #[must_use]
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

/// What names an object within one network namespace. The order is the order of dependence: what comes later may need
/// what comes earlier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A link by name.
    Link(String),
    /// A sysctl by its path below `/proc/sys`, for example `net/ipv4/ip_forward`.
    Sysctl(String),
    /// An nf_tables table.
    Table(TableName),
    /// A chain in a table of many.
    Chain {
        /// The table.
        table: TableName,
        /// The chain's name.
        chain: String,
    },
    /// An address on a link, with its prefix length.
    Address {
        /// The link's name.
        link: String,
        /// The address and its prefix length; host bits matter.
        address: IpNet,
    },
    /// A neighbour entry (ARP or NDP).
    Neighbour {
        /// The link's name.
        link: String,
        /// The neighbour's address.
        address: IpAddr,
    },
    /// An FDB entry of a VXLAN link.
    Fdb {
        /// The link's name.
        link: String,
        /// The MAC address behind the remote VTEP.
        mac: Mac,
    },
    /// A route.
    Route {
        /// Routing table number ([`crate::MAIN_TABLE`] is 254).
        table: u32,
        /// Destination, host bits cleared.
        destination: IpNet,
        /// Priority; the smaller wins. IPv6 routes without one have 1024.
        metric: u32,
    },
}

/// A link.
///
/// In a desired link, `None` means "as it comes"; an observed link has every value it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// Link-layer address.
    pub mac: Option<Mac>,
    /// Free text (`ip link set … alias`).
    pub alias: Option<String>,
    /// Administratively up.
    pub up: bool,
}

/// What a link is. But for a tunnel's learning, what is in here cannot be changed on a living link: it is created anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A VXLAN tunnel device.
    Vxlan(Vxlan),
    /// Anything else, by the kernel's kind name (`veth`, `wireguard`, `tun`), empty for hardware. Only observed.
    Other(String),
}

/// A VXLAN device's settings.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// Source address of the outer packets.
    pub local: Option<IpAddr>,
    /// The link the outer packets leave by.
    pub parent: Option<String>,
    /// Where frames for unknown addresses go. Ours have none.
    pub group: Option<IpAddr>,
    /// Whether it learns MAC addresses from traffic. The one setting that changes on a living link.
    pub learning: bool,
    /// Whether it carries group policy marks.
    pub gbp: bool,
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link's name.
    pub link: String,
    /// The address with its prefix length.
    pub address: IpNet,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Routing table number.
    pub table: u32,
    /// Destination, host bits cleared.
    pub destination: IpNet,
    /// Priority; an IPv6 route always has one (the kernel turns 0 into 1024).
    pub metric: u32,
    /// Who installed it; ours say [`crate::ROUTE_PROTOCOL`].
    pub protocol: u8,
    /// What happens to a packet.
    pub kind: RouteKind,
    /// Next hop.
    pub via: Option<IpAddr>,
    /// The link packets leave by; absent for blackholes.
    pub link: Option<String>,
    /// Take the next hop as reachable on the link without looking.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends to the next hop or onto the link.
    Unicast,
    /// Drops silently.
    Blackhole,
    /// Several next hops. Only observed.
    Multipath,
    /// Another kind by its kernel number. Only observed.
    Other(u8),
}

/// A permanent neighbour entry. Entries the kernel learnt by itself are not objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The link's name.
    pub link: String,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// A permanent FDB entry of a VXLAN link (`self`). Learnt entries and the all-zero default are not objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    /// The link's name.
    pub link: String,
    /// The MAC address behind the remote VTEP.
    pub mac: Mac,
    /// The remote VTEP.
    pub destination: IpAddr,
}

/// A kernel setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below `/proc/sys`, for example `net/ipv4/ip_forward`.
    pub path: String,
    /// Its value without the line end.
    pub value: String,
}

impl Sysctl {
    /// The link a per-link setting belongs to (`net/ipv6/conf/flannel.1/accept_ra`).
    #[must_use]
    pub fn link(path: &str) -> Option<&str> {
        let mut parts = path.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("net"), Some("ipv4" | "ipv6"), Some("conf" | "neigh"), Some(link)) => {
                Some(link).filter(|link| !matches!(*link, "all" | "default"))
            }
            _ => None,
        }
    }
}

/// One object of a node's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A link.
    Link(Link),
    /// A sysctl.
    Sysctl(Sysctl),
    /// An nf_tables table with everything in it.
    Table(Table),
    /// A chain that iptables made for Go's flanneld, in a table of many. Only observed and deleted.
    Chain(SharedChain),
    /// An address on a link.
    Address(Address),
    /// A neighbour entry.
    Neighbour(Neighbour),
    /// An FDB entry.
    Fdb(FdbEntry),
    /// A route.
    Route(Route),
}

impl Object {
    /// What names it.
    #[must_use]
    pub fn key(&self) -> Key {
        match self {
            Self::Link(link) => Key::Link(link.name.clone()),
            Self::Sysctl(sysctl) => Key::Sysctl(sysctl.path.clone()),
            Self::Table(table) => Key::Table(table.key()),
            Self::Chain(chain) => Key::Chain { table: chain.table().clone(), chain: chain.name().to_owned() },
            Self::Address(a) => Key::Address { link: a.link.clone(), address: a.address },
            Self::Neighbour(n) => Key::Neighbour { link: n.link.clone(), address: n.address },
            Self::Fdb(entry) => Key::Fdb { link: entry.link.clone(), mac: entry.mac },
            Self::Route(r) => Key::Route { table: r.table, destination: r.destination, metric: r.metric },
        }
    }

    /// The link it lives on, if it lives on one.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        match self {
            Self::Address(a) => Some(&a.link),
            Self::Neighbour(n) => Some(&n.link),
            Self::Fdb(entry) => Some(&entry.link),
            Self::Route(r) => r.link.as_deref(),
            Self::Sysctl(sysctl) => Sysctl::link(&sysctl.path),
            Self::Link(Link { kind: LinkKind::Vxlan(vxlan), .. }) => vxlan.parent.as_deref(),
            Self::Link(_) | Self::Table(_) | Self::Chain(_) => None,
        }
    }

    /// Whether this observed object is what the desired one asks for.
    #[must_use]
    pub fn satisfies(&self, desired: &Self) -> bool {
        match (self, desired) {
            (Self::Link(have), Self::Link(want)) => have.is_kind_of(want) && have.has_settings_of(want),
            (have, want) => have == want,
        }
    }
}

impl Link {
    /// Whether the parts that cannot change on a living link agree.
    #[must_use]
    pub fn is_kind_of(&self, want: &Self) -> bool {
        match (&self.kind, &want.kind) {
            (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => {
                Vxlan { learning: want.learning, ..have.clone() } == *want
            }
            (have, want) => have == want,
        }
    }

    fn has_settings_of(&self, want: &Self) -> bool {
        let agrees = |have: bool, wanted: bool| !wanted || have;
        self.kind == want.kind
            && self.up == want.up
            && agrees(self.mtu == want.mtu, want.mtu.is_some())
            && agrees(self.mac == want.mac, want.mac.is_some())
            && agrees(self.alias == want.alias, want.alias.is_some())
    }
}

/// A set of objects, one per key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objects(BTreeMap<Key, Object>);

impl Objects {
    /// Puts an object in, returning the one of the same key that was there.
    pub fn insert(&mut self, object: Object) -> Option<Object> {
        self.0.insert(object.key(), object)
    }

    /// Takes an object out.
    pub fn remove(&mut self, key: &Key) -> Option<Object> {
        self.0.remove(key)
    }

    /// The object of this key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.0.get(key)
    }

    /// The link of this name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&Link> {
        match self.0.get(&Key::Link(name.to_owned())) {
            Some(Object::Link(link)) => Some(link),
            _ => None,
        }
    }

    /// The addresses on a link.
    pub fn addresses_on(&self, link: &str) -> impl Iterator<Item = IpNet> {
        let first = Key::Address { link: link.to_owned(), address: IpNet::V4(Ipv4Net::default()) };
        self.0.range(first..).map_while(move |(key, _)| match key {
            Key::Address { link: on, address } if on == link => Some(*address),
            _ => None,
        })
    }

    /// All objects, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Object> {
        self.0.values()
    }

    /// All keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// Keeps only the objects for which this holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&Object) -> bool) {
        self.0.retain(|_, object| keep(object));
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Object> for Objects {
    fn from_iter<I: IntoIterator<Item = Object>>(objects: I) -> Self {
        let mut all = Self::default();
        all.extend(objects);
        all
    }
}

impl Extend<Object> for Objects {
    fn extend<I: IntoIterator<Item = Object>>(&mut self, objects: I) {
        for object in objects {
            self.insert(object);
        }
    }
}
