//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{AF_INET, AF_INET6, Change, IpFamily, RouteSocket, family_of, net_of};
use crate::socket::parsed;
use crate::wire::{Attr, F_APPEND, F_CREATE, F_EXCL, F_REPLACE, Message, attrs, attrs_after, read_u16};
use crate::{Error, Result};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_NH_ID: u16 = 30;

const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

const RTNH_F_ONLINK: u32 = 4;
const RTM_F_CLONED: u32 = 0x200;
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;

/// Numbers of the routing tables that have names.
pub mod table {
    /// The table looked at when no rule says otherwise.
    pub const MAIN: u32 = 254;
    /// Addresses of this machine; the kernel keeps it.
    pub const LOCAL: u32 = 255;
}

/// Who installed a route.
pub mod protocol {
    /// The kernel, for an address of a link.
    pub const KERNEL: u8 = 2;
    /// Set up at boot; what many programs send for want of a number of their own.
    pub const BOOT: u8 = 3;
    /// An administrator.
    pub const STATIC: u8 = 4;
}

/// How far away a destination is.
pub mod scope {
    /// Beyond a next hop.
    pub const UNIVERSE: u8 = 0;
    /// On the link itself.
    pub const LINK: u8 = 253;
    /// This machine.
    pub const HOST: u8 = 254;
    /// No destination.
    pub const NOWHERE: u8 = 255;
}

/// What happens to a packet that takes a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// It is sent on.
    Unicast,
    /// It is delivered here.
    Local,
    /// It is silently dropped.
    Blackhole,
    /// It is dropped and the sender told that the host cannot be reached.
    Unreachable,
    /// It is dropped and the sender told that it is forbidden.
    Prohibit,
    /// The search goes on in the next rule.
    Throw,
    /// Another, by the kernel's number.
    Other(u8),
}

impl RouteKind {
    /// The kernel's number for the kind (`RTN_…`).
    pub fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibit => 8,
            Self::Throw => 9,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            9 => Self::Throw,
            other => Self::Other(other),
        }
    }
}

/// A route of a kernel routing table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where packets want to go; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: IpNet,
    /// Number of the routing table.
    pub table: u32,
    /// Who installed it.
    pub protocol: u8,
    /// What happens to the packet.
    pub kind: RouteKind,
    /// IPv4: only packets with this type of service; 0 is any. Two routes that differ in it live side by side.
    pub tos: u8,
    /// How far away the destination is.
    pub scope: u8,
    /// Address of the next hop.
    pub next_hop: Option<IpAddr>,
    /// Index of the link the packet leaves by.
    pub link: Option<u32>,
    /// The next hop is on the link although no address of ours says so.
    pub onlink: bool,
    /// Source address of packets made here.
    pub source: Option<IpAddr>,
    /// Smaller wins; `None` is 0 for IPv4 and 1024 for IPv6.
    pub metric: Option<u32>,
    /// MTU towards the destination.
    pub mtu: Option<u32>,
    /// TCP segment size that is advertised towards the destination, in bytes.
    pub advmss: Option<u32>,
    /// Several next hops sharing the traffic; then `next_hop` and `link` are empty.
    pub hops: Vec<Hop>,
    /// It refers to a next-hop object of the kernel's instead of naming one.
    pub next_hop_object: Option<u32>,
}

/// One of several next hops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Index of the link the packet leaves by.
    pub link: u32,
    /// Address of the next hop.
    pub next_hop: Option<IpAddr>,
    /// Share of the traffic, at least 1.
    pub weight: u16,
    /// As [`Route::onlink`].
    pub onlink: bool,
}

impl Route {
    /// A unicast route of the main table, by administrator's hand, without next hop or link yet.
    pub fn new(destination: IpNet) -> Self {
        Self {
            destination: destination.trunc(),
            table: table::MAIN,
            protocol: protocol::STATIC,
            kind: RouteKind::Unicast,
            tos: 0,
            scope: scope::UNIVERSE,
            next_hop: None,
            link: None,
            onlink: false,
            source: None,
            metric: None,
            mtu: None,
            advmss: None,
            hops: Vec::new(),
            next_hop_object: None,
        }
    }

    /// The same route through a next hop.
    #[must_use]
    pub fn via(mut self, next_hop: IpAddr) -> Self {
        self.next_hop = Some(next_hop);
        self.scope = scope::UNIVERSE;
        self
    }

    /// The same route out of a link. Without a next hop an IPv4 destination is taken to be on the link.
    #[must_use]
    pub fn dev(mut self, index: u32) -> Self {
        self.link = Some(index);
        if self.next_hop.is_none() && matches!(self.destination, IpNet::V4(_)) {
            self.scope = scope::LINK;
        }
        self
    }

    /// The same route with the next hop taken to be on the link.
    #[must_use]
    pub fn onlink(mut self) -> Self {
        self.onlink = true;
        self
    }

    /// The same route in another table.
    #[must_use]
    pub fn in_table(mut self, table: u32) -> Self {
        self.table = table;
        self
    }

    /// The same route marked with another protocol number.
    #[must_use]
    pub fn by(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
            RouteKind::Prohibit => f.write_str("prohibit ")?,
            RouteKind::Throw => f.write_str("throw ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
        }
        write!(f, "{}", self.destination)?;
        if let Some(next_hop) = self.next_hop {
            write!(f, " via {next_hop}")?;
        }
        if let Some(link) = self.link {
            write!(f, " link {link}")?;
        }
        if self.table != table::MAIN {
            write!(f, " table {}", self.table)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
pub(super) enum Verb {
    Add,
    Append,
    Replace,
    Delete,
}

struct Header {
    family: u8,
    prefix: u8,
    tos: u8,
    table: u32,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

impl Header {
    fn bytes(&self) -> [u8; 12] {
        // Table numbers beyond a byte travel in an attribute only.
        let table = u8::try_from(self.table).unwrap_or(0);
        let [a, b, c, d] = self.flags.to_ne_bytes();
        [self.family, self.prefix, 0, self.tos, table, self.protocol, self.scope, self.kind, a, b, c, d]
    }
}

pub(super) fn write(route: &Route, verb: Verb) -> Message {
    let (kind, flags) = match verb {
        Verb::Add => (RTM_NEWROUTE, F_CREATE | F_EXCL),
        Verb::Append => (RTM_NEWROUTE, F_CREATE | F_APPEND),
        Verb::Replace => (RTM_NEWROUTE, F_CREATE | F_REPLACE),
        Verb::Delete => (RTM_DELROUTE, 0),
    };
    let header = Header {
        family: family_of(&route.destination),
        prefix: route.destination.prefix_len(),
        tos: route.tos,
        table: route.table,
        protocol: route.protocol,
        scope: route.scope,
        kind: route.kind.number(),
        flags: if route.onlink { RTNH_F_ONLINK } else { 0 },
    };
    let mut m = Message::new(kind, flags, &header.bytes());
    if route.destination.prefix_len() > 0 {
        m.ip(RTA_DST, route.destination.network());
    }
    m.u32(RTA_TABLE, route.table);
    if let Some(next_hop) = route.next_hop {
        gateway(&mut m, header.family, next_hop);
    }
    if let Some(link) = route.link {
        m.u32(RTA_OIF, link);
    }
    if let Some(source) = route.source {
        m.ip(RTA_PREFSRC, source);
    }
    if let Some(metric) = route.metric {
        m.u32(RTA_PRIORITY, metric);
    }
    if route.mtu.is_some() || route.advmss.is_some() {
        m.nest(RTA_METRICS, |m| {
            for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)] {
                if let Some(value) = value {
                    m.u32(kind, value);
                }
            }
        });
    }
    if let Some(id) = route.next_hop_object {
        m.u32(RTA_NH_ID, id);
    }
    if !route.hops.is_empty() {
        m.nest(RTA_MULTIPATH, |m| {
            for hop in &route.hops {
                write_hop(m, header.family, hop);
            }
        });
    }
    m
}

/// An IPv4 route through an IPv6 next hop needs an attribute of its own.
fn gateway(m: &mut Message, family: u8, next_hop: IpAddr) {
    match (family, next_hop) {
        (AF_INET, IpAddr::V6(addr)) => {
            let mut value = u16::from(AF_INET6).to_ne_bytes().to_vec();
            value.extend_from_slice(&addr.octets());
            m.bytes(RTA_VIA, &value);
        }
        _ => m.ip(RTA_GATEWAY, next_hop),
    }
}

/// A `struct rtnexthop` is 8 bytes (length, flags, weight - 1, link) followed by attributes.
fn write_hop(m: &mut Message, family: u8, hop: &Hop) {
    let mut inner = Message::new(0, 0, &[]);
    if let Some(next_hop) = hop.next_hop {
        gateway(&mut inner, family, next_hop);
    }
    let attributes = inner.finish(0).split_off(crate::wire::HEADER);
    let len = u16::try_from(attributes.len() + 8).unwrap_or(u16::MAX);
    let weight = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
    let mut value = len.to_ne_bytes().to_vec();
    value.push(if hop.onlink { 4 } else { 0 });
    value.push(weight);
    value.extend_from_slice(&hop.link.to_ne_bytes());
    value.extend(attributes);
    m.fixed(&value);
}

fn read_gateway(attr: Attr<'_>) -> Option<IpAddr> {
    match attr.kind {
        RTA_GATEWAY => attr.ip(),
        RTA_VIA => Attr { kind: attr.kind, value: attr.value.get(2..)? }.ip(),
        _ => None,
    }
}

pub(super) fn read(payload: &[u8]) -> Option<Route> {
    let byte = |at: usize| payload.get(at).copied();
    let family = byte(0)?;
    let prefix = byte(1)?;
    let flags = payload.get(8..12)?.try_into().ok().map(u32::from_ne_bytes)?;
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let mut destination = None;
    let mut route = Route {
        tos: byte(3)?,
        table: u32::from(byte(4)?),
        protocol: byte(5)?,
        scope: byte(6)?,
        kind: RouteKind::from_number(byte(7)?),
        onlink: flags & RTNH_F_ONLINK != 0,
        ..Route::new(net_of(family, None, 0)?)
    };
    for attr in attrs_after(payload, 12) {
        match attr.kind {
            RTA_DST => destination = attr.ip(),
            RTA_TABLE => route.table = attr.u32()?,
            RTA_OIF => route.link = attr.u32(),
            RTA_GATEWAY | RTA_VIA => route.next_hop = read_gateway(attr),
            RTA_PREFSRC => route.source = attr.ip(),
            RTA_PRIORITY => route.metric = attr.u32(),
            RTA_NH_ID => route.next_hop_object = attr.u32(),
            RTA_METRICS => {
                let metric = |kind| attrs(attr.value).find(|a| a.kind == kind).and_then(|a| a.u32());
                (route.mtu, route.advmss) = (metric(RTAX_MTU), metric(RTAX_ADVMSS));
            }
            RTA_MULTIPATH => route.hops = read_hops(attr.value),
            _ => {}
        }
    }
    route.destination = net_of(family, destination, prefix)?;
    Some(route)
}

fn read_hops(mut bytes: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let (Some(len), Some(link)) = (read_u16(bytes, 0), crate::wire::read_u32(bytes, 4)) {
        let len = usize::from(len).max(8);
        let attributes = bytes.get(8..len).unwrap_or(&[]);
        hops.push(Hop {
            link,
            next_hop: attrs(attributes).find_map(read_gateway),
            weight: u16::from(bytes.get(3).copied().unwrap_or(0)) + 1,
            onlink: bytes.get(2).is_some_and(|f| f & 4 != 0),
        });
        bytes = bytes.get((len + 3) & !3..).unwrap_or(&[]);
    }
    hops
}

/// What to list of the routing tables; `None` does not narrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteFilter {
    /// Of one table.
    pub table: Option<u32>,
    /// With one protocol number.
    pub protocol: Option<u8>,
    /// Leaving by one link.
    pub link: Option<u32>,
}

impl RouteFilter {
    fn admits(&self, route: &Route) -> bool {
        self.table.is_none_or(|t| route.table == t)
            && self.protocol.is_none_or(|p| route.protocol == p)
            && self.link.is_none_or(|l| route.link == Some(l) || route.hops.iter().any(|hop| hop.link == l))
    }
}

impl RouteSocket {
    /// The routes of one family that the filter admits.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn routes(&mut self, family: IpFamily, filter: RouteFilter) -> Result<Vec<Route>> {
        let header = Header {
            family: family.number(),
            prefix: 0,
            tos: 0,
            table: 0,
            protocol: filter.protocol.unwrap_or(0),
            scope: 0,
            kind: 0,
            flags: 0,
        };
        let mut request = Message::new(RTM_GETROUTE, 0, &header.bytes());
        if let Some(table) = filter.table {
            request.u32(RTA_TABLE, table);
        }
        if let Some(link) = filter.link {
            request.u32(RTA_OIF, link);
        }
        let mut routes = match self.list("list routes", &request, RTM_NEWROUTE, read) {
            Ok(routes) => routes,
            // The kernel's way to say that the table, or the link, named in the filter does not exist.
            Err(e)
                if (filter.table.is_some() && e.errno() == Some(libc::ENOENT))
                    || (filter.link.is_some() && e.errno() == Some(libc::ENODEV)) =>
            {
                Vec::new()
            }
            Err(e) => return Err(e),
        };
        routes.retain(|route| filter.admits(route));
        Ok(routes)
    }

    /// The route a packet from this machine to `destination` would take now.
    ///
    /// # Errors
    /// When there is none ([`Error::errno`] is `ENETUNREACH`) or the kernel cannot say.
    pub fn route_to(&mut self, destination: IpAddr) -> Result<Route> {
        let header = Header {
            family: IpFamily::of(destination).number(),
            prefix: if destination.is_ipv4() { 32 } else { 128 },
            tos: 0,
            table: 0,
            protocol: 0,
            scope: 0,
            kind: 0,
            flags: RTM_F_LOOKUP_TABLE,
        };
        let mut request = Message::new(RTM_GETROUTE, 0, &header.bytes());
        request.ip(RTA_DST, destination);
        let operation = format!("find the route to {destination}");
        let replies = self.socket.one(&operation, &request)?;
        parsed(&replies, RTM_NEWROUTE, read_any)
            .into_iter()
            .next()
            .ok_or_else(|| Error::malformed(operation, "there is no route in it"))
    }

    /// Adds a route.
    ///
    /// # Errors
    /// When the kernel refuses; [`Error::is_already_there`] when an equal one exists.
    pub fn add_route(&mut self, route: Route) -> Result<()> {
        self.apply(&Change::AddRoute(route))
    }

    /// Adds a route or overwrites the one with the same destination, metric and table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn replace_route(&mut self, route: Route) -> Result<()> {
        self.apply(&Change::ReplaceRoute(route))
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// When the kernel refuses; [`Error::is_not_found`] when it is gone already.
    pub fn delete_route(&mut self, route: Route) -> Result<()> {
        self.apply(&Change::DeleteRoute(route))
    }
}

/// The answer to a lookup is marked as a copy; a copy in a listing is cache and passed over.
pub(super) fn read_any(payload: &[u8]) -> Option<Route> {
    let mut payload = payload.to_vec();
    let flags = payload.get_mut(8..12)?;
    let cleared = u32::from_ne_bytes((&*flags).try_into().ok()?) & !RTM_F_CLONED;
    flags.copy_from_slice(&cleared.to_ne_bytes());
    read(&payload)
}
