//! Netlink's framing: messages, attributes, and reading them back.
//!
//! One codec serves rtnetlink and nf_tables. A reader takes only the attributes it knows and passes over the rest, so a
//! newer kernel or a link kind of somebody else's never makes a listing fail. Attribute values are read by length; a
//! value that is too short reads as absent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const HEADER: usize = 16;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLMSG_OVERRUN: u16 = 4;

pub(crate) const F_REQUEST: u16 = 0x1;
pub(crate) const F_ACK: u16 = 0x4;
pub(crate) const F_DUMP_INTR: u16 = 0x10;
pub(crate) const F_REPLACE: u16 = 0x100;
pub(crate) const F_EXCL: u16 = 0x200;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
pub(crate) const F_DUMP: u16 = 0x300;
/// On answers: the request is not repeated in full after an error code.
pub(crate) const F_CAPPED: u16 = 0x100;
/// On answers: attributes follow the error code.
pub(crate) const F_ACK_TLVS: u16 = 0x200;

const NLMSGERR_ATTR_MSG: u16 = 1;
const NLMSGERR_ATTR_OFFS: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;

fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// A message under construction, header included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    bytes: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.resize(HEADER, 0);
        bytes.extend_from_slice(fixed);
        bytes.resize(align(bytes.len()), 0);
        Self { kind, flags, bytes }
    }

    /// Bytes so far, from the header: the unit of the kernel's error offsets.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes inside an attribute that are not attributes themselves (a nested fixed header).
    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.get(..usize::from(len) - 4).unwrap_or(value));
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// Network byte order: what nf_tables uses throughout.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Text with its final NUL.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    pub(crate) fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(addr) => self.bytes(kind, &addr.octets()),
            IpAddr::V6(addr) => self.bytes(kind, &addr.octets()),
        }
    }

    /// An attribute that holds attributes. One that outgrows the 64 KiB an attribute can have is cut off by the
    /// kernel's own length check; nothing this crate nests comes near it.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        let head = [len.to_ne_bytes(), (kind | NLA_F_NESTED).to_ne_bytes()].concat();
        if let Some(slot) = self.bytes.get_mut(start..start + 4) {
            slot.copy_from_slice(&head);
        }
    }

    /// The finished message, ready to send.
    pub(crate) fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let head = [
            &len.to_ne_bytes()[..],
            &self.kind.to_ne_bytes(),
            &self.flags.to_ne_bytes(),
            &sequence.to_ne_bytes(),
            &[0; 4],
        ]
        .concat();
        if let Some(slot) = bytes.get_mut(..HEADER) {
            slot.copy_from_slice(&head);
        }
        bytes
    }
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram; the last item is an error if the framing breaks.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<Received<'_>, String>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let whole = datagram;
        let Some(len) = read_u32(whole, 0).map(|l| l as usize).filter(|l| (HEADER..=whole.len()).contains(l))
        else {
            datagram = &[];
            return Some(Err(format!("a message's length does not fit the {} bytes that came", whole.len())));
        };
        datagram = whole.get(align(len)..).unwrap_or(&[]);
        Some(Ok(Received {
            kind: read_u16(whole, 4).unwrap_or(0),
            flags: read_u16(whole, 6).unwrap_or(0),
            sequence: read_u32(whole, 8).unwrap_or(0),
            payload: whole.get(HEADER..len).unwrap_or(&[]),
        }))
    })
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// One attribute read back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attr<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

/// The attributes in `bytes`; reading stops at the first that does not fit.
pub(crate) fn attrs(mut bytes: &[u8]) -> impl Iterator<Item = Attr<'_>> {
    std::iter::from_fn(move || {
        let len = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(align(len)..).unwrap_or(&[]);
        Some(Attr { kind, value })
    })
}

/// The attributes after a fixed header of `fixed` bytes.
pub(crate) fn attrs_after(payload: &[u8], fixed: usize) -> impl Iterator<Item = Attr<'_>> {
    attrs(payload.get(align(fixed)..).unwrap_or(&[]))
}

/// The first attribute of a kind.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<Attr<'_>> {
    attrs(bytes).find(|a| a.kind == kind)
}

impl Attr<'_> {
    pub(crate) fn u8(&self) -> Option<u8> {
        self.value.first().copied()
    }

    pub(crate) fn u16(&self) -> Option<u16> {
        read_u16(self.value, 0)
    }

    pub(crate) fn u32(&self) -> Option<u32> {
        read_u32(self.value, 0)
    }

    pub(crate) fn i32(&self) -> Option<i32> {
        self.value.get(..4)?.try_into().ok().map(i32::from_ne_bytes)
    }

    pub(crate) fn be16(&self) -> Option<u16> {
        self.value.get(..2)?.try_into().ok().map(u16::from_be_bytes)
    }

    pub(crate) fn be32(&self) -> Option<u32> {
        self.value.get(..4)?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn be64(&self) -> Option<u64> {
        self.value.get(..8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// Text up to the first NUL.
    pub(crate) fn text(&self) -> String {
        let end = self.value.iter().position(|b| *b == 0).unwrap_or(self.value.len());
        String::from_utf8_lossy(self.value.get(..end).unwrap_or(self.value)).into_owned()
    }

    pub(crate) fn ip(&self) -> Option<IpAddr> {
        if let Ok(octets) = <[u8; 4]>::try_from(self.value) {
            return Some(IpAddr::V4(Ipv4Addr::from(octets)));
        }
        <[u8; 16]>::try_from(self.value).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
    }
}

/// The outcome an `NLMSG_ERROR` or `NLMSG_DONE` carries: `Ok` for an acknowledgement.
pub(crate) fn outcome(received: &Received<'_>) -> Result<(), crate::Refusal> {
    let code = received.payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code >= 0 {
        return Ok(());
    }
    let skip = match received.kind {
        NLMSG_DONE => 4,
        _ if received.flags & F_CAPPED != 0 => 4 + HEADER,
        _ => 4 + align(read_u32(received.payload, 4).map_or(HEADER, |len| len as usize)),
    };
    let mut refusal = crate::Refusal { errno: code.saturating_neg(), message: None, offset: None };
    if received.flags & F_ACK_TLVS != 0 {
        for attr in attrs(received.payload.get(skip..).unwrap_or(&[])) {
            match attr.kind {
                NLMSGERR_ATTR_MSG => refusal.message = Some(attr.text()),
                NLMSGERR_ATTR_OFFS => refusal.offset = attr.u32(),
                _ => {}
            }
        }
    }
    Err(refusal)
}
