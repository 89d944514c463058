//! Packets that prove something: an echo server inside one namespace, ICMP, UDP and TCP clients inside another.
//!
//! A probe passes only when the answer carries the very bytes that were sent *and* the far end saw the expected source address; a
//! translated source or a mangled payload is a failure, not a success with a remark. Sockets are made inside the namespace and then used from
//! ordinary threads, since a socket stays in the namespace it was made in.
//!
//! Message: 64 bytes of header (magic, length of the whole message, the peer's address as the far end saw it, filled in by the
//! server), then a pattern that depends on the position, so that fragments put together in the wrong order are noticed.

use std::io::{ErrorKind, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use loden_netlink::netns::NetNs;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType};

use crate::error::{Context, Error, Result};

/// Port of the echo servers (`echo` of RFC 862, beyond the privileged ones).
pub const ECHO_PORT: u16 = 7007;

/// Payload sizes of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// Fits one packet at any usual MTU.
    Small,
    /// 64 KiB of TCP stream; for ICMP and UDP the largest datagram that IPv4 can carry, 65,507 bytes: with its header of 8 bytes it travels in
    /// 45 fragments where the MTU is 1500 (1480 bytes in each), and in 47 where VXLAN leaves 1450 (1424, as offsets count in eights).
    Large,
}

/// Bytes of a small probe.
const SMALL: usize = 120;
/// Bytes of a large TCP probe.
const LARGE_STREAM: usize = 64 * 1024;
/// Largest payload of a UDP datagram or ICMP echo over IPv4: 65,535 less 20 bytes of IP and 8 of UDP or ICMP header.
const LARGE_DATAGRAM: usize = 65_507;
const HEADER: usize = 64;
const MAGIC: &[u8; 4] = b"LODN";
const POLL: Duration = Duration::from_millis(100);

/// The three protocols every probe is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// Echo request and reply.
    Icmp,
    /// One datagram each way.
    Udp,
    /// One connection, the message each way.
    Tcp,
}

impl Protocol {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 3] = [Self::Icmp, Self::Udp, Self::Tcp];

    /// The usual name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Icmp => "ICMP",
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }
}

/// What a successful probe learned.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Source address as the far end saw it; ICMP cannot tell (the kernel answers it), so it is absent there.
    pub seen_as: Option<Ipv4Addr>,
    /// From the first byte sent to the last byte received, connection set-up included.
    pub took: Duration,
}

/// An echo server for UDP and TCP in one namespace; stops when dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl EchoServer {
    /// Listens on `address` inside `namespace`.
    ///
    /// # Errors
    /// The namespace or the sockets could not be opened.
    pub fn start(namespace: &NetNs, address: Ipv4Addr, port: u16) -> Result<Self> {
        let at = SocketAddrV4::new(address, port);
        let (udp, tcp) = namespace
            .run(|| -> std::io::Result<(UdpSocket, TcpListener)> {
                Ok((UdpSocket::bind(at)?, TcpListener::bind(at)?))
            })
            .during(|| format!("enter the namespace of {address}"))?
            .during(|| format!("listen on {at}"))?;
        udp.set_read_timeout(Some(POLL)).during(|| format!("prepare the socket on {at}"))?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&udp, 4 << 20)
            .during(|| format!("prepare the socket on {at}"))?;
        tcp.set_nonblocking(true).during(|| format!("prepare the socket on {at}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let threads = vec![
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || serve_udp(&udp, &stop)
            }),
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || serve_tcp(&tcp, &stop)
            }),
        ];
        Ok(Self { stop, threads })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server thread that panicked shows as probes without an answer.
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0_u8; LARGE_STREAM];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let Some(message) = buffer.get_mut(..length) else { continue };
        stamp(message, peer);
        let _ = socket.send_to(message, peer);
    }
}

fn serve_tcp(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    let mut connections = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, peer)) => connections.push(std::thread::spawn(move || {
                let _ = answer_stream(stream, peer);
            })),
            Err(_) => {
                // Also the way to notice `stop`: wake up regularly while nobody connects.
                let mut polled = [rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN)];
                let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                let _ = rustix::event::poll(&mut polled, Some(&timeout));
            }
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn answer_stream(mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut header = [0_u8; HEADER];
    stream.read_exact(&mut header)?;
    let length = declared_length(&header).ok_or(ErrorKind::InvalidData)?;
    let mut message = vec![0_u8; length];
    let (head, body) = message.split_at_mut(HEADER);
    head.copy_from_slice(&header);
    stream.read_exact(body)?;
    stamp(&mut message, peer);
    stream.write_all(&message)
}

/// Sends one probe from `namespace` to `target` and verifies the answer.
///
/// `source` binds the client to one address (a pod has one; a node has several); `None` leaves the choice to the routes.
///
/// # Errors
/// Says what was wrong with the answer, or that there was none within `patience`.
pub fn probe(
    namespace: &NetNs,
    source: Option<Ipv4Addr>,
    target: SocketAddrV4,
    protocol: Protocol,
    size: Size,
    patience: Duration,
) -> Result<Answer> {
    let action = || format!("send {} bytes of {} to {target}", bytes(protocol, size), protocol.name());
    match protocol {
        Protocol::Icmp => {
            let socket = namespace
                .run(|| {
                    rustix::net::socket(
                        AddressFamily::INET,
                        SocketType::RAW,
                        Some(rustix::net::ipproto::ICMP),
                    )
                })
                .during(action)?
                .during(action)?;
            echo_request(&socket, source, *target.ip(), bytes(protocol, size), patience).during(action)
        }
        Protocol::Udp => {
            let local = SocketAddrV4::new(source.unwrap_or(Ipv4Addr::UNSPECIFIED), 0);
            let socket = namespace.run(|| UdpSocket::bind(local)).during(action)?.during(action)?;
            datagram(&socket, target, bytes(protocol, size), patience).during(action)
        }
        Protocol::Tcp => {
            // std has no bind-then-connect; a pod's only address is its source anyway.
            let begun = Instant::now();
            let stream = namespace
                .run(|| TcpStream::connect_timeout(&SocketAddr::V4(target), patience))
                .during(action)?
                .during(action)?;
            stream_exchange(stream, bytes(protocol, size), patience, begun).during(action)
        }
    }
}

/// Bytes that a probe of this protocol and size carries.
#[must_use]
pub fn bytes(protocol: Protocol, size: Size) -> usize {
    match (size, protocol) {
        (Size::Small, _) => SMALL,
        (Size::Large, Protocol::Tcp) => LARGE_STREAM,
        (Size::Large, _) => LARGE_DATAGRAM,
    }
}

fn stream_exchange(
    mut stream: TcpStream,
    length: usize,
    patience: Duration,
    begun: Instant,
) -> std::io::Result<Answer> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    let sent = message(length);
    // The server answers only after it has read everything, so writing first cannot block both sides.
    stream.write_all(&sent)?;
    let mut answer = vec![0_u8; length];
    stream.read_exact(&mut answer)?;
    let took = begun.elapsed();
    Ok(Answer { seen_as: Some(verify(&sent, &answer)?), took })
}

fn datagram(
    socket: &UdpSocket,
    target: SocketAddrV4,
    length: usize,
    patience: Duration,
) -> std::io::Result<Answer> {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 1 << 20)?;
    rustix::net::sockopt::set_socket_send_buffer_size(socket, 1 << 20)?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(target)?;
    let sent = message(length);
    let begun = Instant::now();
    socket.send(&sent)?;
    let mut answer = vec![0_u8; LARGE_STREAM];
    let received = socket.recv(&mut answer)?;
    let took = begun.elapsed();
    answer.truncate(received);
    Ok(Answer { seen_as: Some(verify(&sent, &answer)?), took })
}

/// Identifiers of echo requests, so that parallel probes in one namespace keep to their own replies.
static NEXT_IDENTIFIER: AtomicU16 = AtomicU16::new(1);

fn echo_request(
    socket: &std::os::fd::OwnedFd,
    source: Option<Ipv4Addr>,
    target: Ipv4Addr,
    length: usize,
    patience: Duration,
) -> std::io::Result<Answer> {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, 1 << 20)?;
    rustix::net::sockopt::set_socket_send_buffer_size(socket, 1 << 20)?;
    if let Some(source) = source {
        rustix::net::bind(socket, &SocketAddrV4::new(source, 0))?;
    }
    let identifier = NEXT_IDENTIFIER.fetch_add(1, Ordering::Relaxed);
    let mut packet = vec![8, 0, 0, 0];
    packet.extend_from_slice(&identifier.to_be_bytes());
    packet.extend_from_slice(&1_u16.to_be_bytes());
    packet.extend_from_slice(&message(length));
    let sum = internet_checksum(&packet).to_be_bytes();
    if let Some(field) = packet.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    let begun = Instant::now();
    rustix::net::sendto(socket, &packet, SendFlags::empty(), &SocketAddrV4::new(target, 0))?;
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); LARGE_STREAM];
    loop {
        let left = patience.checked_sub(begun.elapsed()).ok_or(ErrorKind::TimedOut)?;
        rustix::net::sockopt::set_socket_timeout(
            socket,
            rustix::net::sockopt::Timeout::Recv,
            Some(left.max(Duration::from_millis(1))),
        )?;
        let ((datagram, _), _, _) = rustix::net::recvfrom(socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        // A raw IPv4 socket delivers the IP header too, and every echo reply of the namespace.
        let header = datagram.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
        let from = datagram.get(12..16).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from);
        let Some(reply) = datagram.get(header..) else { continue };
        if reply.first() != Some(&0) || reply.get(4..6) != Some(&identifier.to_be_bytes()) {
            continue;
        }
        let took = begun.elapsed();
        if from != Some(target) {
            return Err(std::io::Error::new(
                ErrorKind::InvalidData,
                format!("the echo reply came from {from:?} and not from {target}"),
            ));
        }
        if reply.get(8..) != packet.get(8..) {
            return Err(std::io::Error::new(
                ErrorKind::InvalidData,
                "the echo reply does not carry the bytes that were sent",
            ));
        }
        return Ok(Answer { seen_as: None, took });
    }
}

/// The checksum of RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let word =
            u16::from_be_bytes([pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)]);
        sum += u32::from(word);
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(folded & 0xffff).unwrap_or(0)
}

fn message(length: usize) -> Vec<u8> {
    let mut message = vec![0_u8; HEADER.max(length)];
    for (at, byte) in message.iter_mut().enumerate().skip(HEADER) {
        *byte = pattern(at);
    }
    let declared = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    if let Some(head) = message.get_mut(..8) {
        let (magic, size) = head.split_at_mut(4);
        magic.copy_from_slice(MAGIC);
        size.copy_from_slice(&declared);
    }
    message
}

/// Differs between neighbouring bytes and between fragments (251 is prime, so no power of two is a period).
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or(0)
}

fn declared_length(header: &[u8]) -> Option<usize> {
    let length =
        header.get(4..8).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(u32::from_be_bytes)?;
    let length = usize::try_from(length).ok()?;
    (header.get(..4) == Some(MAGIC) && (HEADER..=LARGE_STREAM).contains(&length)).then_some(length)
}

/// Writes the peer's address into the header of a message, for its sender to read.
fn stamp(message: &mut [u8], peer: SocketAddr) {
    if let (IpAddr::V4(ip), Some(field)) = (peer.ip(), message.get_mut(8..12)) {
        field.copy_from_slice(&ip.octets());
    }
}

fn verify(sent: &[u8], answer: &[u8]) -> std::io::Result<Ipv4Addr> {
    if answer.len() != sent.len() {
        let text = format!("the answer has {} bytes, {} were sent", answer.len(), sent.len());
        return Err(std::io::Error::new(ErrorKind::InvalidData, text));
    }
    if answer.get(HEADER..) != sent.get(HEADER..) || answer.get(..8) != sent.get(..8) {
        return Err(std::io::Error::new(
            ErrorKind::InvalidData,
            "the answer does not carry the bytes that were sent",
        ));
    }
    let seen =
        answer.get(8..12).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).ok_or(ErrorKind::InvalidData)?;
    Ok(Ipv4Addr::from(seen))
}

/// A probe whose far end must have seen `expected` as its source.
///
/// # Errors
/// As [`probe`], and when another source address was seen.
pub fn probe_seen_as(
    namespace: &NetNs,
    expected: Ipv4Addr,
    target: SocketAddrV4,
    protocol: Protocol,
    size: Size,
    patience: Duration,
) -> Result<Answer> {
    let answer = probe(namespace, None, target, protocol, size, patience)?;
    match answer.seen_as {
        Some(seen) if seen != expected => Err(Error::Refused(format!(
            "{} to {target} arrived with source {seen} instead of {expected}: something translated the address on its way",
            protocol.name()
        ))),
        _ => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_rfc_1071() {
        // The example of RFC 1071, section 3: the sum is ddf2, the checksum its complement.
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        let mut odd = vec![0x45, 0x00, 0x01];
        let sum = internet_checksum(&odd);
        odd.push(0);
        assert_eq!(internet_checksum(&odd), sum);
    }

    #[test]
    fn a_changed_byte_or_length_is_noticed() {
        let sent = message(SMALL);
        let mut answer = sent.clone();
        stamp(&mut answer, "10.0.0.7:99".parse().unwrap());
        assert_eq!(verify(&sent, &answer).unwrap(), Ipv4Addr::new(10, 0, 0, 7));
        answer[SMALL - 1] ^= 1;
        assert!(verify(&sent, &answer).is_err());
        assert!(verify(&sent, &sent[..SMALL - 1]).is_err());
    }

    #[test]
    fn the_largest_datagram_is_the_largest_and_is_cut_as_described() {
        assert_eq!(LARGE_DATAGRAM + 8 + 20, usize::from(u16::MAX));
        let fragments = |mtu: usize| (LARGE_DATAGRAM + 8).div_ceil((mtu - 20) / 8 * 8);
        assert_eq!((fragments(1500), fragments(1450)), (45, 47));
    }

    #[test]
    fn a_foreign_header_is_no_message() {
        assert_eq!(declared_length(&message(LARGE_STREAM)), Some(LARGE_STREAM));
        assert_eq!(declared_length(b"GET / HTTP/1.1\r\n"), None);
        assert_eq!(declared_length(b"LODN\xff\xff\xff\xff"), None);
        assert_eq!(declared_length(b"LO"), None);
    }
}
