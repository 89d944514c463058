//! What really is on the wire: a packet socket in the vRouter's namespace, read while probes run, summed up as flows.
//!
//! The socket hears every port of the vRouter, each forwarded packet once coming in and once going out. A flow is the outer header only: if
//! anything were encapsulated, the tunnel's addresses, protocol or port would be what is found here. A lost packet is not noticed, a tunnel's packet
//! among thousands is: checks need many of the same kind to pass through.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use loden_netlink::netns::NetNs;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SocketType};

use crate::error::{Context, Error, Result};

/// `ETH_P_ALL` in network byte order, as the packet socket wants its protocol.
const EVERY_PROTOCOL: u32 = (0x0003_u16).to_be() as u32;

/// Where Linux, and hence flannel, sends VXLAN packets to.
const VXLAN_PORT: u16 = 8472;

/// One kind of packet by its outermost headers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Flow {
    /// An IPv4 packet.
    Ipv4 {
        /// Source address.
        source: Ipv4Addr,
        /// Destination address.
        destination: Ipv4Addr,
        /// IP protocol number.
        protocol: u8,
        /// The lower of both ports for UDP and TCP, which names the service; 0 otherwise.
        port: u16,
        /// A fragment that is not the first. Its addresses cannot be relied upon: the kernel writes fragments' headers in place when it
        /// cuts a datagram again further on, also into the copy that waits here to be read.
        later_fragment: bool,
    },
    /// An IPv4 packet inside a VXLAN packet to UDP port 8472.
    Vxlan {
        /// Outer source address.
        source: Ipv4Addr,
        /// Outer destination address.
        destination: Ipv4Addr,
        /// VXLAN network identifier.
        vni: u32,
        /// Source address of the packet inside.
        inner_source: Ipv4Addr,
        /// Destination address of the packet inside.
        inner_destination: Ipv4Addr,
    },
    /// Any other Ethernet protocol, by its number.
    Other(u16),
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4 { source, destination, protocol, port, .. } => match protocol {
                1 => write!(f, "{source} > {destination} ICMP"),
                6 => write!(f, "{source} > {destination} TCP port {port}"),
                17 => write!(f, "{source} > {destination} UDP port {port}"),
                other => write!(f, "{source} > {destination} IP protocol {other}"),
            },
            Self::Vxlan { source, destination, vni, inner_source, inner_destination } => write!(
                f,
                "{source} > {destination} UDP port 8472, VXLAN {vni} with {inner_source} > {inner_destination}"
            ),
            Self::Other(ethertype) => write!(f, "Ethernet protocol 0x{ethertype:04x}"),
        }
    }
}

/// Packets seen, by flow.
pub type Flows = BTreeMap<Flow, u64>;

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: Option<JoinHandle<Flows>>,
}

impl Capture {
    /// Begins to listen to all links of `namespace`.
    ///
    /// # Errors
    /// The packet socket could not be made.
    pub fn start(namespace: &NetNs) -> Result<Self> {
        let action = || "capture packets on the vRouter".to_owned();
        let protocol = NonZeroU32::new(EVERY_PROTOCOL).map(rustix::net::Protocol::from_raw);
        let socket = namespace
            .run(|| rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, protocol))
            .during(action)?
            .during(action)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).during(action)?;
        let stop = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || read_flows(&socket, &stop)
        });
        Ok(Self { stop, reader: Some(reader) })
    }

    /// Ends the capture and returns what was seen.
    ///
    /// # Errors
    /// The reader failed.
    pub fn finish(mut self) -> Result<Flows> {
        self.stop.store(true, Ordering::Relaxed);
        let reader =
            self.reader.take().ok_or_else(|| Error::Refused("the capture is over already".to_owned()))?;
        reader.join().map_err(|_| Error::Refused("the capture's reader failed".to_owned()))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn read_flows(socket: &OwnedFd, stop: &AtomicBool) -> Flows {
    let mut flows = Flows::new();
    let mut frame = [0_u8; 96];
    loop {
        // What is already in the socket's buffer counts: stop only once it is empty.
        match rustix::net::recv(socket, &mut frame, RecvFlags::DONTWAIT) {
            Ok((length, _)) => {
                if let Some(flow) = frame.get(..length.min(frame.len())).and_then(parse) {
                    *flows.entry(flow).or_default() += 1;
                }
            }
            Err(_) if stop.load(Ordering::Relaxed) => return flows,
            Err(_) => {
                let mut polled = [PollFd::new(socket, PollFlags::IN)];
                let _ = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
            }
        }
    }
}

/// Reads the outermost headers of an Ethernet frame; `None` for one too short to have any.
fn parse(frame: &[u8]) -> Option<Flow> {
    let ethertype = be16(frame, 12)?;
    if ethertype != 0x0800 {
        return Some(Flow::Other(ethertype));
    }
    let packet = frame.get(14..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let protocol = *packet.get(9)?;
    let (source, destination) = (address(packet, 12)?, address(packet, 16)?);
    let first_fragment = be16(packet, 6)? & 0x1fff == 0;
    let port = match protocol {
        6 | 17 if first_fragment => be16(packet, header)?.min(be16(packet, header + 2)?),
        _ => 0,
    };
    if protocol == 17
        && first_fragment
        && be16(packet, header + 2) == Some(VXLAN_PORT)
        && let Some((vni, inner_source, inner_destination)) = packet.get(header + 8..).and_then(inside_vxlan)
    {
        return Some(Flow::Vxlan { source, destination, vni, inner_source, inner_destination });
    }
    let later_fragment = !first_fragment;
    Some(Flow::Ipv4 { source, destination, protocol, port, later_fragment })
}

/// The identifier of a VXLAN header (RFC 7348, section 5) and the addresses of the IPv4 packet in the frame behind it.
fn inside_vxlan(payload: &[u8]) -> Option<(u32, Ipv4Addr, Ipv4Addr)> {
    let identifier_is_valid = payload.first()? & 0x08 != 0;
    let vni =
        payload.get(4..8).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(u32::from_be_bytes)? >> 8;
    let frame = payload.get(8..)?;
    let packet = frame.get(14..)?;
    (identifier_is_valid && be16(frame, 12)? == 0x0800).then_some((
        vni,
        address(packet, 12)?,
        address(packet, 16)?,
    ))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// An IPv4 packet, for tests.
#[cfg(test)]
pub(crate) fn flow(source: [u8; 4], destination: [u8; 4], protocol: u8, port: u16) -> Flow {
    Flow::Ipv4 {
        source: source.into(),
        destination: destination.into(),
        protocol,
        port,
        later_fragment: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, fragment: u16, ports: [u16; 2]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&[0x08, 0x00, 0x45, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&fragment.to_be_bytes());
        frame.extend_from_slice(&[64, protocol, 0, 0, 172, 20, 0, 2, 172, 20, 1, 2]);
        for port in ports {
            frame.extend_from_slice(&port.to_be_bytes());
        }
        frame
    }

    #[test]
    fn outer_headers_name_the_flow() {
        let flow = parse(&ipv4(17, 0, [50000, 8472])).unwrap();
        assert_eq!(flow.to_string(), "172.20.0.2 > 172.20.1.2 UDP port 8472");
        assert_eq!(parse(&ipv4(1, 0, [8, 0])).unwrap().to_string(), "172.20.0.2 > 172.20.1.2 ICMP");
        assert_eq!(parse(&ipv4(4, 0, [0, 0])).unwrap().to_string(), "172.20.0.2 > 172.20.1.2 IP protocol 4");
    }

    #[test]
    fn the_packet_inside_vxlan_is_looked_at() {
        let mut frame = ipv4(17, 0, [50000, 8472]);
        // UDP length and checksum, VXLAN header with VNI 1.
        frame.extend_from_slice(&[0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, 1, 0]);
        frame.extend_from_slice(&ipv4(1, 0, [8, 0]));
        let flow = parse(&frame).unwrap().to_string();
        assert_eq!(flow, "172.20.0.2 > 172.20.1.2 UDP port 8472, VXLAN 1 with 172.20.0.2 > 172.20.1.2");
        // Without the flag that says so, there is no identifier; what remains is UDP.
        frame[42] = 0;
        assert_eq!(parse(&frame).unwrap().to_string(), "172.20.0.2 > 172.20.1.2 UDP port 8472");
    }

    #[test]
    fn a_later_fragment_has_no_ports_and_a_short_frame_no_flow() {
        assert_eq!(
            parse(&ipv4(17, 185, [0x2118, 0x2118])),
            Some(Flow::Ipv4 {
                source: [172, 20, 0, 2].into(),
                destination: [172, 20, 1, 2].into(),
                protocol: 17,
                port: 0,
                later_fragment: true
            })
        );
        assert_eq!(parse(&[0; 13]), None);
        assert_eq!(parse(&ipv4(6, 0, [1, 2])[..20]), None);
    }
}
