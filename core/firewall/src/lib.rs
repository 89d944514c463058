//! nf_tables rules as values.
//!
//! Owns the vocabulary in which Loden speaks of packet filtering and address translation: a [`Table`] holds
//! [`Chain`]s, a chain holds [`Rule`]s, a rule is a row of [`Match`]es and one [`Action`]. A value prints as the text
//! that `nft list table` shows for it, so a person can compare a plan with a machine, and `nft -f` accepts it.
//!
//! Two values are equal exactly when the kernel would treat packets alike and `nft` would list the same text. An
//! observed rule that this vocabulary cannot express is kept as [`Match::Opaque`]; no desired rule ever contains one,
//! so it is never mistaken for a rule of ours. If equality were too strict, a rule set would be written again for
//! ever; if it were too loose, a tampered rule would stay.
//!
//! [`changes`] compares two tables and names the smallest set of edits, which the kernel applies as one transaction.
//! [`iptables`] is the other language, for the tables that are shared with users of the `iptables` programs.

mod change;
mod check;
pub mod flannel;
pub mod iptables;
mod shared;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub use change::{Change, Listed, TableName, changes};
pub use check::{Invalid, MAX_COMMENT, MAX_NAME, MAX_NOTE};
pub use shared::SharedChain;
pub use text::RuleText;

/// The packets a table sees: the `table <family> <name>` word of nft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 only.
    Ip,
    /// IPv6 only.
    Ip6,
    /// IPv4 and IPv6 together.
    Inet,
    /// Ethernet frames crossing a bridge.
    Bridge,
}

/// One nf_tables table with everything in it that this vocabulary knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Unique within the family.
    pub name: String,
    /// Free text shown by `nft list`; fixed when the table is created.
    pub comment: Option<String>,
    /// A dormant table keeps its rules but applies none of them. Desired tables are awake (`false`).
    pub dormant: bool,
    /// Chains by name.
    pub chains: BTreeMap<String, Chain>,
}

impl Table {
    /// An awake table without comment or chains.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), comment: None, dormant: false, chains: BTreeMap::new() }
    }

    /// The same table with a comment.
    #[must_use]
    pub fn with_comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The same table with one more chain (or that chain replaced).
    #[must_use]
    pub fn with_chain(mut self, name: impl Into<String>, chain: Chain) -> Self {
        self.chains.insert(name.into(), chain);
        self
    }

    /// What names the table: family and name.
    pub fn key(&self) -> TableName {
        TableName { family: self.family, name: self.name.clone() }
    }
}

/// A chain: a base chain is hooked into the kernel's packet path, any other is reached by a jump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// Where it is hooked in; `None` for a chain reached by jumps only.
    pub base: Option<Base>,
    /// Free text shown by `nft list`; fixed when the chain is created.
    pub comment: Option<String>,
    /// Rules in the order the kernel tries them.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// A chain reached by jumps.
    pub fn regular(rules: Vec<Rule>) -> Self {
        Self { base: None, comment: None, rules }
    }

    /// A chain hooked into the packet path.
    pub fn hooked(base: Base, rules: Vec<Rule>) -> Self {
        Self { base: Some(base), comment: None, rules }
    }

    /// The same chain with a comment.
    #[must_use]
    pub fn with_comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// `type … hook … priority …; policy …;` of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// `filter`, `nat` or `route`.
    pub kind: ChainKind,
    /// Where on the packet's way.
    pub hook: Hook,
    /// Smaller runs earlier; see [`priority`] for the names nft gives to some numbers.
    pub priority: i32,
    /// What happens to a packet that no rule decided.
    pub policy: Policy,
}

impl Base {
    /// A base chain whose policy is accept.
    pub fn accepting(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority, policy: Policy::Accept }
    }
}

/// The priorities that have names in nft (for the ip, ip6 and inet families).
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// Where packets are marked.
    pub const MANGLE: i32 = -150;
    /// Where destinations are translated.
    pub const DSTNAT: i32 = -100;
    /// Where packets are accepted or dropped.
    pub const FILTER: i32 = 0;
    /// After filtering.
    pub const SECURITY: i32 = 50;
    /// Where sources are translated.
    pub const SRCNAT: i32 = 100;
}

/// The kind of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accepts or drops.
    Filter,
    /// Translates addresses; sees the first packet of a connection only.
    Nat,
    /// Re-routes locally produced packets.
    Route,
}

/// Where a base chain sits on the packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Every packet that arrived, before routing.
    Prerouting,
    /// Packets for this machine.
    Input,
    /// Packets passing through.
    Forward,
    /// Packets made on this machine.
    Output,
    /// Every packet that leaves, after routing.
    Postrouting,
}

/// What happens to a packet at the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It goes on.
    #[default]
    Accept,
    /// It is dropped.
    Drop,
}

/// One rule: if every match holds, the action happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Tried from left to right. An empty row matches every packet.
    pub matches: Vec<Match>,
    /// What to do with a matching packet.
    pub action: Action,
    /// Free text shown by `nft list`; at most [`MAX_COMMENT`] bytes.
    pub comment: Option<String>,
    /// Text kept beside the comment, which `nft` neither shows nor minds; at most [`MAX_NOTE`] bytes. For what a
    /// comment whose form others have fixed cannot say. It is gone once somebody writes the rule again from its text.
    pub note: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Self { matches: matches.into(), action, comment: None, note: None }
    }

    /// The same rule with a comment.
    #[must_use]
    pub fn with_comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The same rule with a note.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Whether it holds something this vocabulary cannot express, so that it can only have been observed.
    pub fn is_opaque(&self) -> bool {
        matches!(self.action, Action::Opaque) || self.matches.iter().any(|m| matches!(m, Match::Opaque(_)))
    }
}

/// A condition on a packet, or a statement that does not decide (a counter).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Match {
    /// `ip saddr` or `ip6 saddr`, by the family of `net`.
    Source {
        /// Without host bits.
        net: IpNet,
        /// Print and match `!=`.
        negated: bool,
    },
    /// `ip daddr` or `ip6 daddr`, by the family of `net`.
    Destination {
        /// Without host bits.
        net: IpNet,
        /// Print and match `!=`.
        negated: bool,
    },
    /// `meta mark`: the packet's mark AND `mask` equals `value`. A mask of all ones prints without one.
    Mark {
        /// Compared after masking.
        value: u32,
        /// `u32::MAX` compares the whole mark.
        mask: u32,
    },
    /// `iifname`: the packet came in by this link. A trailing `*` matches a prefix.
    InputLink(String),
    /// `iifname !=`.
    NotInputLink(String),
    /// `oifname`: the packet goes out by this link. A trailing `*` matches a prefix.
    OutputLink(String),
    /// `oifname !=`.
    NotOutputLink(String),
    /// `meta l4proto`.
    L4 {
        /// The transport protocol.
        proto: L4,
    },
    /// `tcp sport`, `udp sport`, ….
    SourcePort {
        /// One of the protocols that have ports.
        proto: L4,
        /// Host order.
        port: u16,
    },
    /// `tcp dport`, `udp dport`, ….
    DestinationPort {
        /// One of the protocols that have ports.
        proto: L4,
        /// Host order.
        port: u16,
    },
    /// `fib daddr type local`: the destination is an address of this machine.
    DestinationLocal,
    /// `ether saddr`: the frame's source address.
    EtherSource([u8; 6]),
    /// `ct state`: the connection is in one of these states (bits of [`ct_state`]).
    CtState(u32),
    /// `counter`: counts the packets that got this far. What it has counted is not part of the value; it prints
    /// as freshly made.
    Counter,
    /// Something observed that this vocabulary has no word for; the text names the expressions.
    Opaque(String),
}

impl Match {
    /// `saddr net`.
    pub fn source(net: IpNet) -> Self {
        Self::Source { net: net.trunc(), negated: false }
    }

    /// `saddr != net`.
    pub fn not_source(net: IpNet) -> Self {
        Self::Source { net: net.trunc(), negated: true }
    }

    /// `daddr net`.
    pub fn destination(net: IpNet) -> Self {
        Self::Destination { net: net.trunc(), negated: false }
    }

    /// `daddr != net`.
    pub fn not_destination(net: IpNet) -> Self {
        Self::Destination { net: net.trunc(), negated: true }
    }

    /// `meta mark value`, compared whole.
    pub fn mark(value: u32) -> Self {
        Self::Mark { value, mask: u32::MAX }
    }
}

/// Bits of [`Match::CtState`], as the kernel numbers them.
pub mod ct_state {
    /// Not a valid packet of any connection.
    pub const INVALID: u32 = 1;
    /// Belongs to a connection seen in both directions.
    pub const ESTABLISHED: u32 = 2;
    /// Starts a connection that belongs to another.
    pub const RELATED: u32 = 4;
    /// Starts a connection.
    pub const NEW: u32 = 8;
    /// Exempt from tracking.
    pub const UNTRACKED: u32 = 64;
}

/// A transport protocol by its IP protocol number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4 {
    /// 1.
    Icmp,
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 58.
    Icmp6,
    /// 132.
    Sctp,
}

impl L4 {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Icmp6 => 58,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this number, if it has a word here.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Icmp, Self::Tcp, Self::Udp, Self::Icmp6, Self::Sctp].into_iter().find(|p| p.number() == number)
    }

    /// Whether its header starts with a source and a destination port.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp | Self::Sctp)
    }
}

/// What a rule does with a packet that matched.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// The packet goes on past this hook's chain.
    Accept,
    /// The packet is discarded.
    Drop,
    /// Go back to the calling chain, or to the policy of a base chain.
    Return,
    /// Run another chain of this table and come back.
    Jump(String),
    /// Run another chain of this table instead of the rest of this one.
    Goto(String),
    /// Give the packet the address of the link it leaves by.
    Masquerade {
        /// Choose the port at random, so that parallel connections do not race for one.
        fully_random: bool,
    },
    /// Send the packet to another address, and port if one is given.
    DestinationNat {
        /// The new destination.
        addr: IpAddr,
        /// The new port; `None` keeps the old one.
        port: Option<u16>,
    },
    /// Make the packet come from another address, and port if one is given.
    SourceNat {
        /// The new source.
        addr: IpAddr,
        /// The new port; `None` lets the kernel choose.
        port: Option<u16>,
    },
    /// Write the bits of `value` selected by `mask` into the packet's mark and go on.
    SetMark {
        /// No bit outside `mask`.
        value: u32,
        /// `u32::MAX` replaces the whole mark.
        mask: u32,
    },
    /// No verdict: go on with the next rule.
    Continue,
    /// The action belongs to what [`Match::Opaque`] names in the same rule.
    Opaque,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        })
    }
}
