//! IP addresses on links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{AF_UNSPEC, Change, IpFamily, RouteSocket, family_of};
use crate::Result;
use crate::wire::{F_CREATE, F_EXCL, F_REPLACE, Message, attrs_after};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// Bits of [`Address::flags`].
pub mod address_flags {
    /// IPv6: a temporary (privacy) address. IPv4: a secondary address.
    pub const SECONDARY: u32 = 0x01;
    /// Do not look for duplicates before using it.
    pub const NODAD: u32 = 0x02;
    /// A duplicate was found.
    pub const DADFAILED: u32 = 0x08;
    /// Not chosen as source for new connections.
    pub const DEPRECATED: u32 = 0x20;
    /// Not usable yet, duplicates are being looked for.
    pub const TENTATIVE: u32 = 0x40;
    /// Does not expire.
    pub const PERMANENT: u32 = 0x80;
    /// Brings no route for its prefix.
    pub const NOPREFIXROUTE: u32 = 0x200;
}

/// An address with its prefix length on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The link.
    pub index: u32,
    /// Address and prefix length; the host bits are the address.
    pub net: IpNet,
    /// The other end of a point-to-point address, if it differs.
    pub peer: Option<IpAddr>,
    /// IPv4 broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// How far the address is valid; see [`super::scope`].
    pub scope: u8,
    /// See [`address_flags`]. [`address_flags::PERMANENT`] is the kernel's to set.
    pub flags: u32,
    /// IPv4 label, usually the link's name.
    pub label: Option<String>,
}

impl Address {
    /// A global address without broadcast or flags.
    pub fn new(index: u32, net: IpNet) -> Self {
        Self { index, net, peer: None, broadcast: None, scope: 0, flags: 0, label: None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on link {}", self.net, self.index)
    }
}

#[derive(Clone, Copy)]
pub(super) enum Verb {
    Add,
    Replace,
    Delete,
}

fn header(family: u8, prefix: u8, scope: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, 0, scope, a, b, c, d]
}

pub(super) fn write(address: &Address, verb: Verb) -> Message {
    let (kind, flags) = match verb {
        Verb::Add => (RTM_NEWADDR, F_CREATE | F_EXCL),
        Verb::Replace => (RTM_NEWADDR, F_CREATE | F_REPLACE),
        Verb::Delete => (RTM_DELADDR, 0),
    };
    let fixed = header(family_of(&address.net), address.net.prefix_len(), address.scope, address.index);
    let mut m = Message::new(kind, flags, &fixed);
    m.ip(IFA_LOCAL, address.net.addr());
    m.ip(IFA_ADDRESS, address.peer.unwrap_or(address.net.addr()));
    if let Some(broadcast) = address.broadcast {
        m.bytes(IFA_BROADCAST, &broadcast.octets());
    }
    if let Some(label) = &address.label {
        m.text(IFA_LABEL, label);
    }
    if address.flags != 0 {
        m.u32(IFA_FLAGS, address.flags);
    }
    m
}

pub(super) fn read(payload: &[u8]) -> Option<Address> {
    let (prefix, flags, scope) = (*payload.get(1)?, *payload.get(2)?, *payload.get(3)?);
    let index = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let (mut local, mut remote, mut broadcast, mut label, mut all_flags) = (None, None, None, None, None);
    for attr in attrs_after(payload, 8) {
        match attr.kind {
            IFA_LOCAL => local = attr.ip(),
            IFA_ADDRESS => remote = attr.ip(),
            IFA_BROADCAST => {
                broadcast = match attr.ip() {
                    Some(IpAddr::V4(addr)) => Some(addr),
                    _ => None,
                }
            }
            IFA_LABEL => label = Some(attr.text()),
            IFA_FLAGS => all_flags = attr.u32(),
            _ => {}
        }
    }
    // IPv6 names its own address IFA_ADDRESS unless there is a peer.
    let own = local.or(remote)?;
    Some(Address {
        index,
        net: IpNet::new(own, prefix).ok()?,
        peer: remote.filter(|r| *r != own),
        broadcast,
        scope,
        flags: all_flags.unwrap_or(u32::from(flags)),
        label,
    })
}

impl RouteSocket {
    /// The addresses of every link, or of one.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn addresses(&mut self, index: Option<u32>) -> Result<Vec<Address>> {
        self.addresses_of_family(index, None)
    }

    /// As [`RouteSocket::addresses`], of one family.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn addresses_of_family(
        &mut self,
        index: Option<u32>,
        family: Option<IpFamily>,
    ) -> Result<Vec<Address>> {
        let number = family.map_or(AF_UNSPEC, IpFamily::number);
        let operation = match index {
            Some(index) => format!("list addresses of link {index}"),
            None => "list addresses".to_owned(),
        };
        let request = Message::new(RTM_GETADDR, 0, &header(number, 0, 0, index.unwrap_or(0)));
        match self.list(&operation, &request, RTM_NEWADDR, read) {
            Ok(mut all) => {
                all.retain(|a| index.is_none_or(|i| a.index == i));
                Ok(all)
            }
            // A link that is gone has no addresses; which of the two errors comes depends on the kernel's age.
            Err(e) if index.is_some() && e.errno() == Some(libc::ENODEV) => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }

    /// Adds an address.
    ///
    /// # Errors
    /// When the kernel refuses; [`crate::Error::is_already_there`] when the link has it.
    pub fn add_address(&mut self, address: Address) -> Result<()> {
        self.apply(&Change::AddAddress(address))
    }

    /// Deletes an address.
    ///
    /// # Errors
    /// When the kernel refuses; [`crate::Error::is_not_found`] when the link does not have it.
    pub fn delete_address(&mut self, address: Address) -> Result<()> {
        self.apply(&Change::DeleteAddress(address))
    }
}
