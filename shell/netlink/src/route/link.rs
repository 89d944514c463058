//! Links: what they are, how they are made and changed.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::str::FromStr;

use super::{AF_BRIDGE, AF_UNSPEC, Change, RouteSocket};
use crate::socket::parsed;
use crate::wire::{Attr, F_CREATE, F_EXCL, Message, attrs, attrs_after, find};
use crate::{Error, NetNs, Result};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_LINK_NETNSID: u16 = 37;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;

const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_VLAN_FILTERING: u16 = 7;

const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_RSC: u16 = 12;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;

const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFF_LOWER_UP: u32 = 0x1_0000;
/// Leave the statistics out of answers: they are most of the bytes and never asked for.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// A link-layer (Ethernet) address. Prints as `02:42:ac:11:00:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no Ethernet address of six hexadecimal octets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no link-layer address such as 02:42:ac:11:00:02")]
pub struct ParseMacError(String);

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseMacError> {
        let bad = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}

/// A link as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Name, unique in its namespace.
    pub name: String,
    /// What made it, with what matters of its settings.
    pub kind: LinkKind,
    /// Maximum transmission unit in bytes.
    pub mtu: u32,
    /// Ethernet address; `None` for links that have none.
    pub address: Option<MacAddress>,
    /// Administratively up.
    pub up: bool,
    /// Has a carrier.
    pub lower_up: bool,
    /// Operational state.
    pub oper_state: OperState,
    /// Index of the bridge (or other master) it is a port of.
    pub master: Option<u32>,
    /// Index of the link below, or of a veth's peer; valid in the peer's namespace if `peer_netns_id` is set.
    pub lower: Option<u32>,
    /// The kernel's ID for the namespace `lower` lives in, if another.
    pub peer_netns_id: Option<i32>,
    /// Free text kept with the link.
    pub alias: Option<String>,
    /// Takes in frames for anybody, because somebody set the flag.
    pub promiscuous: bool,
    /// Its settings as a port, if its master is a bridge.
    pub port: Option<BridgePort>,
}

/// What made a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkKind {
    /// A hardware device or the loopback.
    Device,
    /// A bridge.
    Bridge(BridgeConfig),
    /// One end of a pair.
    Veth,
    /// A VXLAN tunnel endpoint.
    Vxlan(VxlanConfig),
    /// Any other virtual link, by the kernel's name for its kind.
    Other(String),
}

/// Settings of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BridgeConfig {
    /// Frames are sorted by VLAN.
    pub vlan_filtering: bool,
}

/// Settings of a VXLAN link. What is not listed is left at the kernel's default when made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VxlanConfig {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// Index of the link packets leave by.
    pub lower: Option<u32>,
    /// Source address of tunnel packets.
    pub local: Option<IpAddr>,
    /// Multicast group or default remote.
    pub group: Option<IpAddr>,
    /// UDP port; `None` at creation is the kernel's own default (8472).
    pub port: Option<u16>,
    /// Learn remote addresses from traffic.
    pub learning: bool,
    /// Carry group policy in the header.
    pub gbp: bool,
}

/// A port's settings on its bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BridgePort {
    /// Frames may leave by the port they came in.
    pub hairpin: bool,
    /// Isolated ports do not reach each other.
    pub isolated: bool,
    /// Source addresses are learnt.
    pub learning: bool,
    /// Spanning tree state: 0 disabled, 1 listening, 2 learning, 3 forwarding, 4 blocking.
    pub state: u8,
}

/// Operational state (RFC 2863) as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperState {
    /// Drivers that do not say.
    Unknown,
    /// Some part is missing.
    NotPresent,
    /// No carrier, or administratively down.
    Down,
    /// A link below is down.
    LowerLayerDown,
    /// In a test mode.
    Testing,
    /// Waiting for something outside, such as authentication.
    Dormant,
    /// Passing packets.
    Up,
}

impl fmt::Display for OperState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::NotPresent => "not-present",
            Self::Down => "down",
            Self::LowerLayerDown => "lower-layer-down",
            Self::Testing => "testing",
            Self::Dormant => "dormant",
            Self::Up => "up",
        })
    }
}

/// A link to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLink {
    /// At most 15 bytes.
    pub name: String,
    /// What to make.
    pub kind: NewLinkKind,
    /// `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// `None` for a random one.
    pub address: Option<MacAddress>,
    /// Up from the start.
    pub up: bool,
    /// Index of the bridge it becomes a port of.
    pub master: Option<u32>,
    /// Free text kept with the link.
    pub alias: Option<String>,
    /// Where it is made, if not in the socket's namespace.
    pub netns: Option<NetNs>,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NewLinkKind {
    /// A pair; the other end is made in its own place at once, but down: the kernel refuses to take it up before
    /// the pair is complete.
    Veth(VethPeer),
    /// A bridge.
    Bridge(BridgeConfig),
    /// A VXLAN tunnel endpoint.
    Vxlan(VxlanConfig),
    /// A kind that needs no settings, by the kernel's name (`dummy`, `ifb`).
    Other(String),
}

impl NewLinkKind {
    /// The kernel's name for the kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Veth(_) => "veth",
            Self::Bridge(_) => "bridge",
            Self::Vxlan(_) => "vxlan",
            Self::Other(kind) => kind,
        }
    }
}

/// The other end of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VethPeer {
    /// At most 15 bytes.
    pub name: String,
    /// `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// `None` for a random one.
    pub address: Option<MacAddress>,
    /// Where it is made, if not in the socket's namespace.
    pub netns: Option<NetNs>,
}

impl NewLink {
    /// A link with the kernel's defaults, down.
    pub fn new(name: impl Into<String>, kind: NewLinkKind) -> Self {
        Self {
            name: name.into(),
            kind,
            mtu: None,
            address: None,
            up: false,
            master: None,
            alias: None,
            netns: None,
        }
    }
}

/// What to change about a link; `None` leaves a thing as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LinkSettings {
    /// Administratively up or down.
    pub up: Option<bool>,
    /// A new name.
    pub name: Option<String>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub address: Option<MacAddress>,
    /// Index of the new master; 0 for none.
    pub master: Option<u32>,
    /// Free text; empty removes it.
    pub alias: Option<String>,
    /// Take in frames for anybody.
    pub promiscuous: Option<bool>,
    /// Move it to another namespace.
    pub netns: Option<NetNs>,
}

impl LinkSettings {
    /// Just up.
    pub fn up() -> Self {
        Self { up: Some(true), ..Self::default() }
    }
}

fn header(family: u8, index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&mask.to_ne_bytes());
    fixed
}

fn flag_if(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

fn basics(m: &mut Message, name: &str, mtu: Option<u32>, mac: Option<MacAddress>, netns: Option<&NetNs>) {
    m.text(IFLA_IFNAME, name);
    if let Some(mtu) = mtu {
        m.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = mac {
        m.bytes(IFLA_ADDRESS, &mac.0);
    }
    if let Some(netns) = netns {
        m.u32(IFLA_NET_NS_FD, raw(netns));
    }
}

fn raw(netns: &NetNs) -> u32 {
    u32::try_from(netns.as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

pub(super) fn create(link: &NewLink) -> Message {
    let flags = flag_if(link.up, IFF_UP);
    let mut m = Message::new(RTM_NEWLINK, F_CREATE | F_EXCL, &header(AF_UNSPEC, 0, flags, flags));
    basics(&mut m, &link.name, link.mtu, link.address, link.netns.as_ref());
    if let Some(master) = link.master {
        m.u32(IFLA_MASTER, master);
    }
    m.nest(IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, link.kind.name());
        match &link.kind {
            NewLinkKind::Veth(peer) => m.nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.fixed(&header(AF_UNSPEC, 0, 0, 0));
                    basics(m, &peer.name, peer.mtu, peer.address, peer.netns.as_ref());
                });
            }),
            NewLinkKind::Bridge(config) => m.nest(IFLA_INFO_DATA, |m| {
                if config.vlan_filtering {
                    m.u8(IFLA_BR_VLAN_FILTERING, 1);
                }
            }),
            NewLinkKind::Vxlan(config) => m.nest(IFLA_INFO_DATA, |m| vxlan_data(m, config)),
            NewLinkKind::Other(_) => {}
        }
    });
    if matches!(link.kind, NewLinkKind::Vxlan(_)) {
        // Peers that made the device the same way find no queue on it.
        m.u32(IFLA_TXQLEN, 0);
    }
    m
}

fn vxlan_data(m: &mut Message, config: &VxlanConfig) {
    m.u32(IFLA_VXLAN_ID, config.vni);
    if let Some(lower) = config.lower {
        m.u32(IFLA_VXLAN_LINK, lower);
    }
    if let Some(local) = config.local {
        m.ip(if local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 }, local);
    }
    if let Some(group) = config.group {
        m.ip(if group.is_ipv4() { IFLA_VXLAN_GROUP } else { IFLA_VXLAN_GROUP6 }, group);
    }
    m.u8(IFLA_VXLAN_TTL, 0);
    m.u8(IFLA_VXLAN_LEARNING, u8::from(config.learning));
    for off in [IFLA_VXLAN_PROXY, IFLA_VXLAN_RSC, IFLA_VXLAN_L2MISS, IFLA_VXLAN_L3MISS] {
        m.u8(off, 0);
    }
    if let Some(port) = config.port {
        m.bytes(IFLA_VXLAN_PORT, &port.to_be_bytes());
    }
    if config.gbp {
        m.bytes(IFLA_VXLAN_GBP, &[]);
    }
}

pub(super) fn set(index: u32, settings: &LinkSettings) -> Message {
    let mut flags = 0;
    let mut mask = 0;
    for (wanted, flag) in [(settings.up, IFF_UP), (settings.promiscuous, IFF_PROMISC)] {
        if let Some(on) = wanted {
            flags |= flag_if(on, flag);
            mask |= flag;
        }
    }
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_UNSPEC, index, flags, mask));
    if let Some(name) = &settings.name {
        m.text(IFLA_IFNAME, name);
    }
    if let Some(mtu) = settings.mtu {
        m.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = settings.address {
        m.bytes(IFLA_ADDRESS, &mac.0);
    }
    if let Some(master) = settings.master {
        m.u32(IFLA_MASTER, master);
    }
    if let Some(alias) = &settings.alias {
        m.bytes(IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(netns) = &settings.netns {
        m.u32(IFLA_NET_NS_FD, raw(netns));
    }
    m
}

/// An alias cannot be given at creation; it is set by name right after.
fn set_alias(name: &str, alias: &str) -> Message {
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_UNSPEC, 0, 0, 0));
    m.text(IFLA_IFNAME, name);
    m.bytes(IFLA_IFALIAS, alias.as_bytes());
    m
}

pub(super) fn set_port(
    index: u32,
    hairpin: Option<bool>,
    isolated: Option<bool>,
    learning: Option<bool>,
) -> Message {
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_BRIDGE, index, 0, 0));
    m.nest(IFLA_PROTINFO, |m| {
        for (wanted, attr) in
            [(hairpin, IFLA_BRPORT_MODE), (isolated, IFLA_BRPORT_ISOLATED), (learning, IFLA_BRPORT_LEARNING)]
        {
            if let Some(on) = wanted {
                m.u8(attr, u8::from(on));
            }
        }
    });
    m
}

pub(super) fn delete(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &header(AF_UNSPEC, index, 0, 0))
}

fn get(index: u32, name: Option<&str>) -> Message {
    let mut m = Message::new(RTM_GETLINK, 0, &header(AF_UNSPEC, index, 0, 0));
    if let Some(name) = name {
        m.text(IFLA_IFNAME, name);
    }
    m.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    m
}

fn read(payload: &[u8]) -> Option<Link> {
    let index = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let flags = payload.get(8..12)?.try_into().ok().map(u32::from_ne_bytes)?;
    let mut link = Link {
        index,
        name: String::new(),
        kind: LinkKind::Device,
        mtu: 0,
        address: None,
        up: flags & IFF_UP != 0,
        lower_up: flags & IFF_LOWER_UP != 0,
        oper_state: OperState::Unknown,
        master: None,
        lower: None,
        peer_netns_id: None,
        alias: None,
        promiscuous: flags & IFF_PROMISC != 0,
        port: None,
    };
    for attr in attrs_after(payload, 16) {
        match attr.kind {
            IFLA_IFNAME => link.name = attr.text(),
            IFLA_MTU => link.mtu = attr.u32()?,
            IFLA_ADDRESS => link.address = attr.value.try_into().ok().map(MacAddress),
            IFLA_OPERSTATE => link.oper_state = oper_state(attr.u8()?),
            IFLA_MASTER => link.master = attr.u32(),
            IFLA_LINK => link.lower = attr.u32().filter(|i| *i != 0),
            IFLA_LINK_NETNSID => link.peer_netns_id = attr.i32(),
            IFLA_IFALIAS => link.alias = Some(attr.text()).filter(|a| !a.is_empty()),
            IFLA_PROMISCUITY => link.promiscuous |= flags & IFF_PROMISC != 0,
            IFLA_LINKINFO => (link.kind, link.port) = link_info(attr),
            _ => {}
        }
    }
    Some(link)
}

fn oper_state(number: u8) -> OperState {
    match number {
        1 => OperState::NotPresent,
        2 => OperState::Down,
        3 => OperState::LowerLayerDown,
        4 => OperState::Testing,
        5 => OperState::Dormant,
        6 => OperState::Up,
        _ => OperState::Unknown,
    }
}

fn link_info(info: Attr<'_>) -> (LinkKind, Option<BridgePort>) {
    let data = find(info.value, IFLA_INFO_DATA).map_or(&[][..], |a| a.value);
    let kind = match find(info.value, IFLA_INFO_KIND).map(|a| a.text()).as_deref() {
        None => LinkKind::Device,
        Some("bridge") => LinkKind::Bridge(BridgeConfig {
            vlan_filtering: find(data, IFLA_BR_VLAN_FILTERING).and_then(|a| a.u8()).unwrap_or(0) != 0,
        }),
        Some("veth") => LinkKind::Veth,
        Some("vxlan") => LinkKind::Vxlan(read_vxlan(data)),
        Some(other) => LinkKind::Other(other.to_owned()),
    };
    let is_port = find(info.value, IFLA_INFO_SLAVE_KIND).is_some_and(|a| a.text() == "bridge");
    let port = is_port.then(|| {
        let data = find(info.value, IFLA_INFO_SLAVE_DATA).map_or(&[][..], |a| a.value);
        let byte = |kind| find(data, kind).and_then(|a| a.u8()).unwrap_or(0);
        BridgePort {
            hairpin: byte(IFLA_BRPORT_MODE) != 0,
            isolated: byte(IFLA_BRPORT_ISOLATED) != 0,
            learning: byte(IFLA_BRPORT_LEARNING) != 0,
            state: byte(IFLA_BRPORT_STATE),
        }
    });
    (kind, port)
}

fn read_vxlan(data: &[u8]) -> VxlanConfig {
    let mut config = VxlanConfig::default();
    for attr in attrs(data) {
        match attr.kind {
            IFLA_VXLAN_ID => config.vni = attr.u32().unwrap_or(0),
            IFLA_VXLAN_LINK => config.lower = attr.u32().filter(|i| *i != 0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => config.local = attr.ip(),
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => config.group = attr.ip(),
            IFLA_VXLAN_PORT => config.port = attr.be16(),
            IFLA_VXLAN_LEARNING => config.learning = attr.u8().unwrap_or(0) != 0,
            IFLA_VXLAN_GBP => config.gbp = true,
            _ => {}
        }
    }
    config
}

impl RouteSocket {
    /// All links of the namespace.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.list("list links", &get(0, None), RTM_NEWLINK, read)
    }

    /// The link with this name, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>> {
        self.find_link(&format!("look up link {name}"), &get(0, Some(name)))
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>> {
        self.find_link(&format!("look up link {index}"), &get(index, None))
    }

    fn find_link(&mut self, operation: &str, request: &Message) -> Result<Option<Link>> {
        match self.socket.one(operation, request) {
            Ok(replies) => Ok(parsed(&replies, RTM_NEWLINK, read).into_iter().next()),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes a link and returns it as the kernel shows it, in one round trip. For a pair this is the near end.
    /// One made in another namespace (`netns`) is looked up there; `master` means a link of that namespace.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is left behind then.
    pub fn create_link(&mut self, link: &NewLink) -> Result<Link> {
        let change = Change::CreateLink(link.clone());
        if let Some(netns) = &link.netns {
            self.apply(&change)?;
            return Self::open_in(netns)?.dress_link(link, &change);
        }
        let mut requests = vec![create(link)];
        if let Some(alias) = &link.alias {
            requests.push(set_alias(&link.name, alias));
        }
        requests.push(get(0, Some(&link.name)));
        let answers = self.socket.exchange(&change.to_string(), &requests)?;
        let mut made = None;
        let mut failed = None;
        for (i, answer) in answers.into_iter().enumerate() {
            match answer.outcome {
                Some(Ok(())) => made = parsed(&answer.replies, RTM_NEWLINK, read).into_iter().next().or(made),
                Some(Err(refusal)) if i == 0 => return Err(change.explain(refusal)),
                Some(Err(refusal)) => {
                    failed.get_or_insert(Error::Refused { operation: change.to_string(), refusal });
                }
                None => {
                    failed.get_or_insert(Error::NoAnswer { operation: change.to_string() });
                }
            }
        }
        match (made, failed) {
            (Some(link), None) => Ok(link),
            (Some(link), Some(error)) => {
                self.apply(&Change::DeleteLink { index: link.index, name: link.name })?;
                Err(error)
            }
            (None, error) => Err(error.unwrap_or(Error::NoAnswer { operation: change.to_string() })),
        }
    }

    /// What creation leaves to do for a link that was made here from another namespace.
    fn dress_link(&mut self, link: &NewLink, change: &Change) -> Result<Link> {
        let found = self.link_by_name(&link.name)?;
        let mut made = found.ok_or_else(|| Error::NoAnswer { operation: change.to_string() })?;
        if let Some(alias) = &link.alias {
            let settings = LinkSettings { alias: Some(alias.clone()), ..LinkSettings::default() };
            if let Err(error) = self.set_link(made.index, settings) {
                self.delete_link(made.index)?;
                return Err(error);
            }
            made.alias = link.alias.clone();
        }
        Ok(made)
    }

    /// Changes a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_link(&mut self, index: u32, settings: LinkSettings) -> Result<()> {
        self.apply(&Change::SetLink { index, settings })
    }

    /// Deletes a link, and with a veth its peer.
    ///
    /// # Errors
    /// When the kernel refuses; [`Error::is_not_found`] when it is gone already.
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        self.apply(&Change::DeleteLink { index, name: String::new() })
    }
}
