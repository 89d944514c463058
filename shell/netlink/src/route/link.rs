//! Links: what they are, how they are made and changed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use super::link_message::{RTM_NEWLINK, create, get, read, set_alias};
use super::{Change, RouteSocket};
use crate::socket::parsed;
use crate::wire::Message;
use crate::{Error, NetNs, Result};

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
    /// Takes in every multicast frame, because somebody set the flag.
    pub all_multicast: bool,
    /// How many packets may wait to be sent, for links with a queue of that kind.
    pub tx_queue_length: u32,
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
    /// An IPv4-in-IPv4 tunnel.
    Ipip(IpipConfig),
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

/// Settings of an IPv4-in-IPv4 tunnel. Two with the same settings cannot be in one namespace, and each namespace may have been born
/// with one that has none set (`tunl0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IpipConfig {
    /// Source address of tunnel packets; `None` for that of the way they take.
    pub local: Option<Ipv4Addr>,
    /// Where all packets go; `None` to send each to its route's next hop.
    pub remote: Option<Ipv4Addr>,
    /// Index of the link packets leave by.
    pub lower: Option<u32>,
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
    /// An IPv4-in-IPv4 tunnel.
    Ipip(IpipConfig),
    /// A kind that needs no settings, by the kernel's name (`dummy`, `ifb`, `wireguard`).
    Other(String),
}

impl NewLinkKind {
    /// The kernel's name for the kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Veth(_) => "veth",
            Self::Bridge(_) => "bridge",
            Self::Vxlan(_) => "vxlan",
            Self::Ipip(_) => "ipip",
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
    /// Take in every multicast frame.
    pub all_multicast: Option<bool>,
    /// How many packets may wait to be sent.
    pub tx_queue_length: Option<u32>,
    /// Move it to another namespace.
    pub netns: Option<NetNs>,
}

impl LinkSettings {
    /// Just up.
    pub fn up() -> Self {
        Self { up: Some(true), ..Self::default() }
    }
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
