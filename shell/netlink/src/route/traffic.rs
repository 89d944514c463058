//! Traffic control: the queueing disciplines that shape what a link sends, and the filter that turns what it receives into something
//! that can be shaped.
//!
//! A link shapes only what it sends. What it receives goes, by an ingress discipline and a filter that matches everything, to an `ifb`
//! link, which sends it on as its own. Formats: `linux/pkt_sched.h`, `linux/pkt_cls.h`, `linux/tc_act/tc_mirred.h`.

use std::fmt;

use super::{AF_UNSPEC, RouteSocket};
use crate::Result;
use crate::wire::{Attr, F_CREATE, F_EXCL, Message, attrs, attrs_after, find, read_u32};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;

/// Length of `struct tcmsg`.
const TCMSG: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
/// `struct tc_tbf_qopt`: two rates of 12 bytes, limit, buffer, MTU.
const TBF_PARMS: usize = 36;
const TBF_RATE_AT: usize = 8;
const TBF_LIMIT_AT: usize = 24;
const TBF_BUFFER_AT: usize = 28;

const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;

const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_EGRESS_REDIR: u32 = 1;
const TC_ACT_STOLEN: u32 = 4;

const ETH_P_ALL: u16 = 3;
const FIRST_PRIORITY: u32 = 1;

/// Where a discipline hangs and what it is called.
pub mod qdisc_handle {
    /// Parent of the discipline that everything a link sends passes.
    pub const ROOT: u32 = 0xffff_ffff;
    /// Parent of the discipline that everything a link receives passes.
    pub const INGRESS_PARENT: u32 = 0xffff_fff1;
    /// The one handle an ingress discipline can have, `ffff:`.
    pub const INGRESS: u32 = 0xffff_0000;
    /// `1:`, by custom a link's own discipline.
    pub const FIRST: u32 = 0x0001_0000;
}

/// A token bucket: sends at a steady rate after a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait for tokens; more are dropped.
    pub limit: u32,
    /// The bucket's size as the time it takes to send it at `rate`, in the scheduler's ticks of 64 ns.
    pub buffer: u32,
}

/// A queueing discipline on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of the link.
    pub link: u32,
    /// Its own handle; see [`qdisc_handle`].
    pub handle: u32,
    /// The handle it hangs on.
    pub parent: u32,
    /// What it does.
    pub kind: QdiscKind,
}

/// What a queueing discipline does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QdiscKind {
    /// `tbf`
    TokenBucket(TokenBucket),
    /// `ingress`: takes filters for what the link receives.
    Ingress,
    /// Any other, by the kernel's name; it can be listed and deleted, not made.
    Other(String),
}

impl QdiscKind {
    /// The kernel's name for the kind.
    pub fn name(&self) -> &str {
        match self {
            Self::TokenBucket(_) => "tbf",
            Self::Ingress => "ingress",
            Self::Other(name) => name,
        }
    }
}

impl Qdisc {
    /// A token bucket for everything the link sends.
    pub fn token_bucket(link: u32, bucket: TokenBucket) -> Self {
        Self {
            link,
            handle: qdisc_handle::FIRST,
            parent: qdisc_handle::ROOT,
            kind: QdiscKind::TokenBucket(bucket),
        }
    }

    /// The discipline that filters of what the link receives hang on.
    pub fn ingress(link: u32) -> Self {
        Self {
            link,
            handle: qdisc_handle::INGRESS,
            parent: qdisc_handle::INGRESS_PARENT,
            kind: QdiscKind::Ingress,
        }
    }
}

impl fmt::Display for Qdisc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "qdisc {} {:x}: on link {}", self.kind.name(), self.handle >> 16, self.link)?;
        if let QdiscKind::TokenBucket(bucket) = &self.kind {
            write!(
                f,
                " rate {} bytes/s limit {} bytes buffer {} ticks",
                bucket.rate, bucket.limit, bucket.buffer
            )?;
        }
        Ok(())
    }
}

impl RouteSocket {
    /// The queueing disciplines of one link.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn qdiscs(&mut self, link: u32) -> Result<Vec<Qdisc>> {
        // The kernel has no listing of one link.
        let request = Message::new(RTM_GETQDISC, 0, &tcmsg(0, 0, 0, 0));
        let all = self.list("list queueing disciplines", &request, RTM_NEWQDISC, read)?;
        Ok(all.into_iter().filter(|qdisc| qdisc.link == link).collect())
    }
}

fn tcmsg(link: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut fixed = [0; TCMSG];
    fixed[0] = AF_UNSPEC;
    fixed[4..8].copy_from_slice(&link.to_ne_bytes());
    fixed[8..12].copy_from_slice(&handle.to_ne_bytes());
    fixed[12..16].copy_from_slice(&parent.to_ne_bytes());
    fixed[16..20].copy_from_slice(&info.to_ne_bytes());
    fixed
}

pub(super) fn add(qdisc: &Qdisc) -> Message {
    let mut m =
        Message::new(RTM_NEWQDISC, F_CREATE | F_EXCL, &tcmsg(qdisc.link, qdisc.handle, qdisc.parent, 0));
    m.text(TCA_KIND, qdisc.kind.name());
    if let QdiscKind::TokenBucket(bucket) = &qdisc.kind {
        m.nest(TCA_OPTIONS, |m| {
            let mut parms = [0; TBF_PARMS];
            // A rate of more than 32 bits stands in an attribute of its own.
            let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
            for (at, value) in
                [(TBF_RATE_AT, rate), (TBF_LIMIT_AT, bucket.limit), (TBF_BUFFER_AT, bucket.buffer)]
            {
                if let Some(slot) = parms.get_mut(at..at + 4) {
                    slot.copy_from_slice(&value.to_ne_bytes());
                }
            }
            m.bytes(TCA_TBF_PARMS, &parms);
            if bucket.rate > u64::from(u32::MAX) {
                m.bytes(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
            }
        });
    }
    m
}

pub(super) fn delete(qdisc: &Qdisc) -> Message {
    Message::new(RTM_DELQDISC, 0, &tcmsg(qdisc.link, qdisc.handle, qdisc.parent, 0))
}

/// Everything that `from` receives leaves by `to`: a filter that matches every protocol and every packet.
pub(super) fn redirect(from: u32, to: u32) -> Message {
    let info = FIRST_PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    let mut m = Message::new(RTM_NEWTFILTER, F_CREATE | F_EXCL, &tcmsg(from, 0, qdisc_handle::INGRESS, info));
    m.text(TCA_KIND, "u32");
    m.nest(TCA_OPTIONS, |m| {
        // struct tc_u32_sel with one struct tc_u32_key: zero bits are compared, so all packets match.
        let mut selector = [0; 32];
        selector[0] = TC_U32_TERMINAL;
        selector[2] = 1;
        m.bytes(TCA_U32_SEL, &selector);
        m.u32(TCA_U32_CLASSID, qdisc_handle::FIRST | 1);
        m.nest(TCA_U32_ACT, |m| {
            m.nest(1, |m| {
                m.text(TCA_ACT_KIND, "mirred");
                m.nest(TCA_ACT_OPTIONS, |m| {
                    // struct tc_mirred: index, capabilities, what becomes of the packet, two counters, direction, link.
                    let words = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
                    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                    m.bytes(TCA_MIRRED_PARMS, &bytes);
                });
            });
        });
    });
    m
}

pub(super) fn read(payload: &[u8]) -> Option<Qdisc> {
    let (link, handle, parent) = (read_u32(payload, 4)?, read_u32(payload, 8)?, read_u32(payload, 12)?);
    let (mut name, mut options) = (String::new(), None);
    for attr in attrs_after(payload, TCMSG) {
        match attr.kind {
            TCA_KIND => name = attr.text(),
            TCA_OPTIONS => options = Some(attr),
            _ => {}
        }
    }
    let kind = match name.as_str() {
        "ingress" => QdiscKind::Ingress,
        "tbf" => options.and_then(read_bucket).map_or(QdiscKind::Other(name), QdiscKind::TokenBucket),
        _ => QdiscKind::Other(name),
    };
    Some(Qdisc { link, handle, parent, kind })
}

fn read_bucket(options: Attr<'_>) -> Option<TokenBucket> {
    let parms = find(options.value, TCA_TBF_PARMS)?.value;
    let wide = attrs(options.value).find(|attr| attr.kind == TCA_TBF_RATE64);
    let wide = wide.and_then(|attr| attr.value.get(..8)?.try_into().ok().map(u64::from_ne_bytes));
    Some(TokenBucket {
        rate: wide.or_else(|| read_u32(parms, TBF_RATE_AT).map(u64::from))?,
        limit: read_u32(parms, TBF_LIMIT_AT)?,
        buffer: read_u32(parms, TBF_BUFFER_AT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let bucket = |rate| TokenBucket { rate, limit: 41_250, buffer: 1_562_500 };
        for qdisc in [
            Qdisc::token_bucket(7, bucket(125_000)),
            Qdisc::token_bucket(7, bucket(5 << 32)),
            Qdisc::ingress(9),
        ] {
            let bytes = add(&qdisc).finish(1);
            assert_eq!(read(&bytes[16..]), Some(qdisc));
        }
    }

    #[test]
    fn errors_name_the_discipline() {
        let bucket = TokenBucket { rate: 1, limit: 2, buffer: 3 };
        assert_eq!(
            Qdisc::token_bucket(7, bucket).to_string(),
            "qdisc tbf 1: on link 7 rate 1 bytes/s limit 2 bytes buffer 3 ticks"
        );
        assert_eq!(Qdisc::ingress(9).to_string(), "qdisc ingress ffff: on link 9");
    }
}
