//! Links, addresses, routes, rules, neighbours, FDB entries, bridge VLANs and traffic control over rtnetlink.
//!
//! [`RouteSocket`] lists them (complete or an error) and applies [`Change`]s, singly or several in one round trip.
//! Everything carries the interface index the kernel gave the link; names are looked up once by the caller.

mod address;
mod change;
mod link;
mod link_message;
mod neighbour;
mod path;
mod rule;
mod traffic;
mod vlan;

use std::net::IpAddr;

use ipnet::IpNet;

pub use address::{Address, address_flags};
pub use change::Change;
pub use link::{
    BridgeConfig, BridgePort, IpipConfig, Link, LinkKind, LinkSettings, MacAddress, NewLink, NewLinkKind,
    OperState, ParseMacError, VethPeer, VxlanConfig,
};
pub use neighbour::{FdbEntry, Neighbour, neighbour_flags, neighbour_state};
pub use path::{Hop, Route, RouteFilter, RouteKind, protocol, scope, table};
pub use rule::{Rule, RuleAction};
pub use traffic::{Qdisc, QdiscKind, TokenBucket, qdisc_handle};
pub use vlan::PortVlan;

use crate::socket::{NetlinkSocket, parsed};
use crate::wire::Message;
use crate::{Error, NetNs, Result};

pub(crate) const AF_UNSPEC: u8 = 0;
pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_BRIDGE: u8 = 7;
pub(crate) const AF_INET6: u8 = 10;

/// IPv4 or IPv6, where a listing can be narrowed to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => AF_INET,
            Self::V6 => AF_INET6,
        }
    }
}

pub(crate) fn family_of(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => AF_INET,
        IpNet::V6(_) => AF_INET6,
    }
}

/// A prefix from a message that leaves out all-zero addresses.
pub(crate) fn net_of(family: u8, addr: Option<IpAddr>, prefix: u8) -> Option<IpNet> {
    let addr = addr.or(match family {
        AF_INET => Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        AF_INET6 => Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)),
        _ => None,
    })?;
    IpNet::new(addr, prefix).ok()
}

/// A conversation with rtnetlink in one network namespace.
#[derive(Debug)]
pub struct RouteSocket {
    pub(crate) socket: NetlinkSocket,
}

impl RouteSocket {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(libc::NETLINK_ROUTE, "rtnetlink", None)? })
    }

    /// Opens a socket in another namespace; the caller stays where it is.
    ///
    /// # Errors
    /// When the namespace cannot be entered or the system gives no socket.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(libc::NETLINK_ROUTE, "rtnetlink", Some(netns))? })
    }

    /// Applies one change.
    ///
    /// # Errors
    /// When the kernel refuses it; see [`Error::is_not_found`] and [`Error::is_already_there`].
    pub fn apply(&mut self, change: &Change) -> Result<()> {
        self.apply_all(std::slice::from_ref(change))
    }

    /// Applies changes in order in one round trip. They are no transaction: the kernel does not stop at a failure, so
    /// later changes may have taken effect when an earlier one is reported.
    ///
    /// # Errors
    /// The first refusal.
    pub fn apply_all(&mut self, changes: &[Change]) -> Result<()> {
        for outcome in self.apply_each(changes)? {
            outcome?;
        }
        Ok(())
    }

    /// As [`RouteSocket::apply_all`], with the outcome of every change.
    ///
    /// # Errors
    /// When the conversation itself fails; what the kernel thinks of a change is in its outcome.
    pub fn apply_each(&mut self, changes: &[Change]) -> Result<Vec<Result<()>>> {
        let messages: Vec<Message> = changes.iter().map(Change::message).collect();
        let operation = match changes {
            [only] => only.to_string(),
            _ => "apply changes".to_owned(),
        };
        let answers = self.socket.exchange(&operation, &messages)?;
        Ok(changes
            .iter()
            .zip(answers)
            .map(|(change, answer)| match answer.outcome {
                Some(Ok(())) => Ok(()),
                Some(Err(refusal)) => Err(change.explain(refusal)),
                None => Err(Error::NoAnswer { operation: change.to_string() }),
            })
            .collect())
    }

    pub(crate) fn list<T>(
        &mut self,
        operation: &str,
        request: &Message,
        reply: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let replies = self.socket.dump(operation, request)?;
        Ok(parsed(&replies, reply, read))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header followed by attributes with the kinds the readers look at, their lengths sometimes wrong.
    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let attr = (0..48_u16, prop::collection::vec(any::<u8>(), 0..24), prop::bool::weighted(0.1))
            .prop_map(|(kind, value, wrong)| {
                let len = u16::try_from(value.len() + 4).unwrap() + if wrong { 9 } else { 0 };
                let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
                bytes.extend(value);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                bytes
            });
        let header = (prop::sample::select(vec![AF_INET, AF_INET6, AF_BRIDGE, 0]), any::<[u8; 15]>());
        (header, prop::collection::vec(attr, 0..8)).prop_map(|((family, rest), attrs)| {
            let mut bytes = vec![family];
            bytes.extend(rest);
            bytes.extend(attrs.concat());
            bytes
        })
    }

    proptest! {
        #[test]
        fn no_reader_panics_whatever_it_is_given(
            payload in prop_oneof![payload(), prop::collection::vec(any::<u8>(), 0..64)],
        ) {
            let sane = link_message::read(&payload).is_none_or(|link| link.name.len() <= payload.len());
            let _ = (address::read(&payload), path::read(&payload), path::read_any(&payload));
            let _ = (rule::read(&payload), neighbour::read(&payload), neighbour::read_fdb(&payload));
            let _ = (vlan::read(&payload), traffic::read(&payload));
            prop_assert!(sane);
        }
    }
}
