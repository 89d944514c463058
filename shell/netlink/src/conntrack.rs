//! Tracked connections: find UDP flows by where they were first sent, and forget them.
//!
//! A UDP flow stays tracked as long as its packets keep coming, with the translation that was decided for its first one. After
//! the rules for a port have changed, such a flow goes on to where the port led before; forgetting it makes the next packet
//! a first one again. Forgetting a flow that is right costs one packet's way through the rules, and may change the port
//! that the node speaks from.
//!
//! The wire format is `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use crate::socket::{NetlinkSocket, parsed};
use crate::wire::{Attr, Message, attrs_after, find};
use crate::{Error, IpFamily, NetNs, Result};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const CT_GET: u16 = CT_NEW + 1;
const CT_DELETE: u16 = CT_NEW + 2;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
/// Compare the transport protocol, and the destination port.
const FILTER_PROTOCOL: u32 = 1 << 3;
const FILTER_DESTINATION_PORT: u32 = 1 << 5;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

const UDP: u8 = 17;
/// `struct nfgenmsg`
const HEADER: usize = 4;

/// A tracked UDP flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpFlow {
    /// Where its first packet was sent.
    pub destination: IpAddr,
    /// To which port.
    pub port: u16,
    /// Where answers come from: after destination translation another address than [`UdpFlow::destination`].
    pub answered_by: IpAddr,
    family: u8,
    /// What names it to the kernel.
    tuple: Vec<u8>,
    id: Vec<u8>,
    zone: Option<Vec<u8>>,
}

/// A conversation about tracked connections in one network namespace.
#[derive(Debug)]
pub struct ConntrackSocket {
    socket: NetlinkSocket,
}

impl ConntrackSocket {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(libc::NETLINK_NETFILTER, "netfilter", None)? })
    }

    /// Opens a socket in another namespace; the caller stays where it is.
    ///
    /// # Errors
    /// As [`ConntrackSocket::open`], or when the namespace cannot be entered.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(libc::NETLINK_NETFILTER, "netfilter", Some(netns))? })
    }

    /// The UDP flows of one family that were first sent to one of these ports.
    ///
    /// # Errors
    /// When the listing is not complete, or the kernel has no connection tracking.
    pub fn udp_flows_to(&mut self, family: IpFamily, ports: &[u16]) -> Result<Vec<UdpFlow>> {
        if ports.is_empty() {
            return Ok(Vec::new());
        }
        let operation = "list tracked UDP flows";
        // The kernel compares with one port at most. One that is older than this filter lists everything.
        let only_port = match ports {
            [port] => Some(*port),
            _ => None,
        };
        let mut request = Message::new(CT_GET, 0, &[number(family), 0, 0, 0]);
        request.nest(CTA_TUPLE_ORIG, |m| {
            m.nest(CTA_TUPLE_PROTO, |m| {
                m.u8(CTA_PROTO_NUM, UDP);
                if let Some(port) = only_port {
                    m.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
                }
            });
        });
        request.nest(CTA_FILTER, |m| {
            let port = if only_port.is_some() { FILTER_DESTINATION_PORT } else { 0 };
            m.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTOCOL | port);
            m.u32(CTA_FILTER_REPLY_FLAGS, 0);
        });
        let replies = match self.socket.dump(operation, &request) {
            // A kernel that knows the attribute but not these flags; what it lists unfiltered is looked through below.
            Err(e) if matches!(e.errno(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                self.socket.dump(operation, &Message::new(CT_GET, 0, &[number(family), 0, 0, 0]))?
            }
            outcome => outcome?,
        };
        let flows = parsed(&replies, CT_NEW, flow);
        Ok(flows
            .into_iter()
            .filter(|flow| flow.family == number(family) && ports.contains(&flow.port))
            .collect())
    }

    /// Forgets flows; one that has ended meanwhile is fine.
    ///
    /// # Errors
    /// The first that the kernel refuses to forget, after all were tried.
    pub fn forget(&mut self, flows: &[UdpFlow]) -> Result<()> {
        let operation = "forget tracked UDP flows";
        let requests: Vec<Message> = flows
            .iter()
            .map(|flow| {
                let mut request = Message::new(CT_DELETE, 0, &[flow.family, 0, 0, 0]);
                request.nest(CTA_TUPLE_ORIG, |m| m.fixed(&flow.tuple));
                // A new flow may have taken the place of the one that was listed.
                request.bytes(CTA_ID, &flow.id);
                if let Some(zone) = &flow.zone {
                    request.bytes(CTA_ZONE, zone);
                }
                request
            })
            .collect();
        let mut first = Ok(());
        for answer in self.socket.exchange(operation, &requests)? {
            if let Some(Err(refusal)) = answer.outcome
                && refusal.errno != libc::ENOENT
                && first.is_ok()
            {
                first = Err(Error::Refused { operation: operation.to_owned(), refusal });
            }
        }
        first
    }
}

fn number(family: IpFamily) -> u8 {
    // AF_INET and AF_INET6.
    match family {
        IpFamily::V4 => 2,
        IpFamily::V6 => 10,
    }
}

/// `None` for what is not a UDP flow.
fn flow(payload: &[u8]) -> Option<UdpFlow> {
    let (mut original, mut reply, mut id, mut zone) = (None, None, None, None);
    for attr in attrs_after(payload, HEADER) {
        match attr.kind {
            CTA_TUPLE_ORIG => original = Some(attr),
            CTA_TUPLE_REPLY => reply = Some(attr),
            CTA_ID => id = Some(attr.value.to_vec()),
            CTA_ZONE => zone = Some(attr.value.to_vec()),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let protocol = find(original.value, CTA_TUPLE_PROTO)?;
    if find(protocol.value, CTA_PROTO_NUM)?.u8()? != UDP {
        return None;
    }
    Some(UdpFlow {
        destination: address(original, [CTA_IP_V4_DST, CTA_IP_V6_DST])?,
        port: find(protocol.value, CTA_PROTO_DST_PORT)?.be16()?,
        answered_by: address(reply, [CTA_IP_V4_SRC, CTA_IP_V6_SRC])?,
        family: *payload.first()?,
        tuple: original.value.to_vec(),
        id: id?,
        zone,
    })
}

fn address(tuple: Attr<'_>, kinds: [u16; 2]) -> Option<IpAddr> {
    let ip = find(tuple.value, CTA_TUPLE_IP)?;
    kinds.iter().find_map(|kind| find(ip.value, *kind)?.ip())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::HEADER as MESSAGE_HEADER;

    fn listed(protocol: u8) -> Vec<u8> {
        let mut m = Message::new(CT_NEW, 0, &[2, 0, 0, 0]);
        let tuple = |m: &mut Message, source: [u8; 4], destination: [u8; 4], ports: [u16; 2]| {
            m.nest(CTA_TUPLE_IP, |m| {
                m.bytes(CTA_IP_V4_SRC, &source);
                m.bytes(CTA_IP_V4_DST, &destination);
            });
            m.nest(CTA_TUPLE_PROTO, |m| {
                m.u8(CTA_PROTO_NUM, protocol);
                m.bytes(2, &ports[0].to_be_bytes());
                m.bytes(CTA_PROTO_DST_PORT, &ports[1].to_be_bytes());
            });
        };
        m.nest(CTA_TUPLE_ORIG, |m| tuple(m, [10, 0, 0, 1], [10, 0, 0, 2], [4000, 53]));
        m.nest(CTA_TUPLE_REPLY, |m| tuple(m, [10, 244, 0, 5], [10, 0, 0, 1], [5353, 4000]));
        m.be32(CTA_ID, 7);
        m.finish(1).split_off(MESSAGE_HEADER)
    }

    #[test]
    fn a_flow_says_where_it_was_sent_and_who_answers() {
        let flow = flow(&listed(UDP)).unwrap();
        assert_eq!(flow.destination, IpAddr::from([10, 0, 0, 2]));
        assert_eq!((flow.port, flow.answered_by), (53, IpAddr::from([10, 244, 0, 5])));
        assert_eq!(super::flow(&listed(6)), None, "not UDP");
    }

    proptest! {
        #[test]
        fn whatever_is_read_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = listed(UDP);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let cut = cut.index(bytes.len());
            let _ = (flow(&bytes), flow(&bytes[..cut]));
        }
    }
}
