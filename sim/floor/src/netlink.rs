//! Netlink by hand: a growing buffer of messages, sent as they are, and the wait for the last one's answer.
//!
//! Only the last message of a batch asks for an answer. The kernel works a batch off in order and answers every failure, asked or not, so
//! the last answer without a failure before it says that all is done. Formats: `linux/netlink.h`.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::Error;

const HEADER: usize = 16;
const F_REQUEST: u16 = 1;
const F_ACK: u16 = 4;
const ERROR: u16 = 2;

/// Bits of a request that makes something.
pub mod flags {
    /// Overwrite what is there.
    pub const REPLACE: u16 = 0x100;
    /// Fail if it is there.
    pub const EXCL: u16 = 0x200;
    /// Make it if it is not there.
    pub const CREATE: u16 = 0x400;
    /// Put it at the end.
    pub const APPEND: u16 = 0x800;
}

/// Messages one after the other, as they go to the kernel.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    last: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a message; what is written from here on belongs to it.
    pub fn message(&mut self, kind: u16, flags: u16, fixed: &[u8]) -> &mut Self {
        self.close();
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | F_REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.raw(fixed)
    }

    /// Bytes that are no attribute.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// An attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// A number in the machine's order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// An IPv4 address.
    pub fn ip(&mut self, kind: u16, value: Ipv4Addr) -> &mut Self {
        self.attr(kind, &value.octets())
    }

    /// Text with its final NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.attr(kind, &[]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(slot) = self.bytes.get_mut(start..start + 2) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
        self
    }

    /// Asks for an answer to the message begun last.
    pub fn acknowledged(&mut self) -> &mut Self {
        if let Some(flags) = self.bytes.get_mut(self.last + 6) {
            *flags |= F_ACK.to_ne_bytes()[0];
        }
        self
    }

    /// Bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was begun.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn close(&mut self) {
        let len = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        if let Some(slot) = self.bytes.get_mut(self.last..self.last + 4) {
            slot.copy_from_slice(&len.to_ne_bytes());
        }
    }
}

/// A netlink socket of the calling thread's namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket for links, addresses, routes and neighbours: netlink's protocol 0.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn route() -> Result<Self, Error> {
        Self::open(None)
    }

    /// A socket for nf_tables.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn netfilter() -> Result<Self, Error> {
        Self::open(Some(NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> Result<Self, Error> {
        let made =
            rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        let fd = made.map_err(|e| Error::system("open a netlink socket", e))?;
        Ok(Self { fd, buffer: vec![0; 64 * 1024] })
    }

    /// Sends a batch and waits until the kernel has worked it off. Exactly one message of it must be
    /// [acknowledged](Batch::acknowledged).
    ///
    /// # Errors
    /// The first message the kernel refuses; others may have taken effect.
    pub fn run(&mut self, operation: &str, mut batch: Batch) -> Result<(), Error> {
        batch.close();
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.fd, &batch.bytes, SendFlags::empty(), &kernel)
            .map_err(|e| Error::system(operation, e))?;
        loop {
            let (len, _) = rustix::net::recv(&self.fd, &mut self.buffer, RecvFlags::empty())
                .map_err(|e| Error::system(operation, e))?;
            let mut rest = self.buffer.get(..len).unwrap_or_default();
            while let Some((kind, body)) = first(&mut rest) {
                if kind != ERROR {
                    continue;
                }
                match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
                    Some(0) => return Ok(()),
                    code => {
                        let errno = code.unwrap_or(0).saturating_neg();
                        return Err(Error::system(operation, std::io::Error::from_raw_os_error(errno)));
                    }
                }
            }
        }
    }
}

/// Takes the first message off: its type and what follows its header.
fn first<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let len = usize::try_from(u32::from_ne_bytes(*rest.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
    let body = rest.get(HEADER..len)?;
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_what_the_kernel_expects() {
        let mut batch = Batch::new();
        batch.message(16, flags::CREATE, &[0; 16]).text(3, "eth0");
        batch.message(20, 0, &[1, 2]).nest(18, |b| {
            b.u32(1, 7);
        });
        batch.acknowledged();
        batch.close();
        let mut rest = batch.bytes.as_slice();
        let (kind, body) = first(&mut rest).unwrap();
        assert_eq!((kind, body.len()), (16, 16 + 4 + 8));
        assert_eq!(&body[16..], b"\x09\0\x03\0eth0\0\0\0\0");
        assert_eq!(rest[6], 5, "the last message asks for an answer");
        let (kind, body) = first(&mut rest).unwrap();
        assert_eq!((kind, body), (20, &b"\x01\x02\0\0\x0c\0\x12\0\x08\0\x01\0\x07\0\0\0"[..]));
        assert!(first(&mut rest).is_none());
    }
}
