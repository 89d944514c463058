//! Neighbours (IP to link-layer address) and forwarding entries (link-layer address to port or tunnel endpoint).

use std::fmt;
use std::net::IpAddr;

use super::{AF_BRIDGE, IpFamily, MacAddress, RouteSocket};
use crate::Result;
use crate::wire::{F_APPEND, F_CREATE, F_REPLACE, Message, attrs_after};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_VLAN: u16 = 5;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_IFINDEX: u16 = 8;
const NDA_MASTER: u16 = 9;

const RTN_UNICAST: u8 = 1;

/// Bits of a neighbour's state.
pub mod neighbour_state {
    /// Known and recently confirmed.
    pub const REACHABLE: u16 = 0x02;
    /// Known, to be confirmed when next used.
    pub const STALE: u16 = 0x04;
    /// Asked for, no answer.
    pub const FAILED: u16 = 0x20;
    /// The link needs no resolution.
    pub const NOARP: u16 = 0x40;
    /// Entered by hand; never forgotten.
    pub const PERMANENT: u16 = 0x80;
}

/// Bits of an entry's flags.
pub mod neighbour_flags {
    /// It belongs to the link itself (VXLAN), not to its bridge.
    pub const SELF: u8 = 0x02;
    /// It belongs to the bridge the link is a port of.
    pub const MASTER: u8 = 0x04;
    /// Learnt by a program.
    pub const EXT_LEARNED: u8 = 0x10;
}

/// A neighbour on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub index: u32,
    /// Its IP address.
    pub addr: IpAddr,
    /// Its link-layer address, if known.
    pub mac: Option<MacAddress>,
    /// See [`neighbour_state`].
    pub state: u16,
    /// See [`neighbour_flags`].
    pub flags: u8,
}

impl Neighbour {
    /// A permanent entry.
    pub fn permanent(index: u32, addr: IpAddr, mac: MacAddress) -> Self {
        Self { index, addr, mac: Some(mac), state: neighbour_state::PERMANENT, flags: 0 }
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on link {}", self.addr, self.index)
    }
}

/// A forwarding entry of a bridge or VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdbEntry {
    /// The port or tunnel link.
    pub index: u32,
    /// Frames to this address.
    pub mac: MacAddress,
    /// VXLAN: the tunnel endpoint behind which it lives.
    pub destination: Option<IpAddr>,
    /// VXLAN: another UDP port than the link's.
    pub port: Option<u16>,
    /// VXLAN: another network identifier than the link's.
    pub vni: Option<u32>,
    /// Bridge: the VLAN it belongs to.
    pub vlan: Option<u16>,
    /// Bridge: index of the bridge.
    pub master: Option<u32>,
    /// See [`neighbour_state`].
    pub state: u16,
    /// See [`neighbour_flags`].
    pub flags: u8,
}

impl FdbEntry {
    /// A permanent entry of a VXLAN link.
    pub fn tunnel(index: u32, mac: MacAddress, destination: IpAddr) -> Self {
        Self {
            index,
            mac,
            destination: Some(destination),
            port: None,
            vni: None,
            vlan: None,
            master: None,
            state: neighbour_state::PERMANENT,
            flags: neighbour_flags::SELF,
        }
    }
}

impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on link {}", self.mac, self.index)?;
        match self.destination {
            Some(destination) => write!(f, " dst {destination}"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FdbVerb {
    Append,
    Replace,
    Delete,
}

fn header(family: u8, index: u32, state: u16, flags: u8, kind: u8) -> [u8; 12] {
    let [a, b, c, d] = index.to_ne_bytes();
    let [s, t] = state.to_ne_bytes();
    [family, 0, 0, 0, a, b, c, d, s, t, flags, kind]
}

pub(super) fn write(neighbour: &Neighbour, replace: bool) -> Message {
    let (kind, flags) = if replace { (RTM_NEWNEIGH, F_CREATE | F_REPLACE) } else { (RTM_DELNEIGH, 0) };
    let family = IpFamily::of(neighbour.addr).number();
    let fixed = header(family, neighbour.index, neighbour.state, neighbour.flags, RTN_UNICAST);
    let mut m = Message::new(kind, flags, &fixed);
    m.ip(NDA_DST, neighbour.addr);
    if replace && let Some(mac) = neighbour.mac {
        m.bytes(NDA_LLADDR, &mac.0);
    }
    m
}

pub(super) fn write_fdb(entry: &FdbEntry, verb: FdbVerb) -> Message {
    let (kind, flags) = match verb {
        FdbVerb::Append => (RTM_NEWNEIGH, F_CREATE | F_APPEND),
        FdbVerb::Replace => (RTM_NEWNEIGH, F_CREATE | F_REPLACE),
        FdbVerb::Delete => (RTM_DELNEIGH, 0),
    };
    let mut m = Message::new(kind, flags, &header(AF_BRIDGE, entry.index, entry.state, entry.flags, 0));
    m.bytes(NDA_LLADDR, &entry.mac.0);
    if let Some(destination) = entry.destination {
        m.ip(NDA_DST, destination);
    }
    if let Some(port) = entry.port {
        m.bytes(NDA_PORT, &port.to_be_bytes());
    }
    if let Some(vni) = entry.vni {
        m.u32(NDA_VNI, vni);
    }
    if let Some(vlan) = entry.vlan {
        m.bytes(NDA_VLAN, &vlan.to_ne_bytes());
    }
    m
}

struct Common {
    family: u8,
    index: u32,
    state: u16,
    flags: u8,
}

fn common(payload: &[u8]) -> Option<Common> {
    Some(Common {
        family: *payload.first()?,
        index: payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?,
        state: payload.get(8..10)?.try_into().ok().map(u16::from_ne_bytes)?,
        flags: *payload.get(10)?,
    })
}

pub(super) fn read(payload: &[u8]) -> Option<Neighbour> {
    let Common { family, index, state, flags } = common(payload)?;
    if family == AF_BRIDGE {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for attr in attrs_after(payload, 12) {
        match attr.kind {
            NDA_DST => addr = attr.ip(),
            NDA_LLADDR => mac = attr.value.try_into().ok().map(MacAddress),
            _ => {}
        }
    }
    Some(Neighbour { index, addr: addr?, mac, state, flags })
}

pub(super) fn read_fdb(payload: &[u8]) -> Option<FdbEntry> {
    let Common { family, index, state, flags } = common(payload)?;
    if family != AF_BRIDGE {
        return None;
    }
    let mut mac = None;
    let mut entry = FdbEntry {
        index,
        mac: MacAddress([0; 6]),
        destination: None,
        port: None,
        vni: None,
        vlan: None,
        master: None,
        state,
        flags,
    };
    for attr in attrs_after(payload, 12) {
        match attr.kind {
            NDA_LLADDR => mac = attr.value.try_into().ok().map(MacAddress),
            NDA_DST => entry.destination = attr.ip(),
            NDA_PORT => entry.port = attr.be16(),
            NDA_VNI => entry.vni = attr.u32(),
            NDA_VLAN => entry.vlan = attr.u16(),
            NDA_MASTER => entry.master = attr.u32(),
            _ => {}
        }
    }
    entry.mac = mac?;
    Some(entry)
}

impl RouteSocket {
    /// The neighbours of one family, of every link or of one.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn neighbours(&mut self, family: IpFamily, index: Option<u32>) -> Result<Vec<Neighbour>> {
        let mut request = Message::new(RTM_GETNEIGH, 0, &header(family.number(), 0, 0, 0, 0));
        if let Some(index) = index {
            request.u32(NDA_IFINDEX, index);
        }
        let mut all = self.list("list neighbours", &request, RTM_NEWNEIGH, read)?;
        all.retain(|n| index.is_none_or(|i| n.index == i));
        Ok(all)
    }

    /// The forwarding entries of every bridge port and VXLAN link, or of one link.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn fdb(&mut self, index: Option<u32>) -> Result<Vec<FdbEntry>> {
        let mut request = Message::new(RTM_GETNEIGH, 0, &header(AF_BRIDGE, 0, 0, 0, 0));
        if let Some(index) = index {
            request.u32(NDA_IFINDEX, index);
        }
        let mut all = self.list("list FDB entries", &request, RTM_NEWNEIGH, read_fdb)?;
        all.retain(|e| index.is_none_or(|i| e.index == i));
        Ok(all)
    }
}
