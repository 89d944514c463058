//! Routing rules: which table a packet's route is looked up in.

use std::fmt;

use ipnet::IpNet;

use super::{AF_INET, Change, IpFamily, RouteSocket, family_of, net_of};
use crate::Result;
use crate::wire::{F_CREATE, F_EXCL, Message, attrs_after};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PROTOCOL: u16 = 21;

const FIB_RULE_INVERT: u32 = 2;

/// What a matching rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleAction {
    /// Look the route up in the rule's table.
    Lookup,
    /// Drop silently.
    Blackhole,
    /// Drop and tell the sender that the host cannot be reached.
    Unreachable,
    /// Drop and tell the sender that it is forbidden.
    Prohibit,
    /// Another, by the kernel's number.
    Other(u8),
}

impl RuleAction {
    fn number(self) -> u8 {
        match self {
            Self::Lookup => 1,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibit => 8,
            Self::Other(number) => number,
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Lookup,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            other => Self::Other(other),
        }
    }
}

/// A routing rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// IPv4 or IPv6.
    pub family: IpFamily,
    /// Smaller is tried earlier; `None` at creation lets the kernel choose.
    pub priority: Option<u32>,
    /// Packets from here; `None` is anywhere.
    pub source: Option<IpNet>,
    /// Packets to here; `None` is anywhere.
    pub destination: Option<IpNet>,
    /// Packets that came in by this link.
    pub input_link: Option<String>,
    /// Packets of sockets bound to this link.
    pub output_link: Option<String>,
    /// Packets with this mark, under the mask.
    pub mark: Option<(u32, u32)>,
    /// Match what does not match.
    pub inverted: bool,
    /// What to do.
    pub action: RuleAction,
    /// The table to look in.
    pub table: u32,
    /// Ignore routes with a prefix of at most this length.
    pub suppress_prefix: Option<u32>,
    /// Who installed it; 0 is nobody in particular.
    pub protocol: u8,
}

impl Rule {
    /// A rule that sends every packet of a family to a table.
    pub fn lookup(family: IpFamily, table: u32) -> Self {
        Self {
            family,
            priority: None,
            source: None,
            destination: None,
            input_link: None,
            output_link: None,
            mark: None,
            inverted: false,
            action: RuleAction::Lookup,
            table,
            suppress_prefix: None,
            protocol: 0,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(priority) = self.priority {
            write!(f, "{priority}: ")?;
        }
        if self.inverted {
            f.write_str("not ")?;
        }
        match &self.source {
            Some(source) => write!(f, "from {source}")?,
            None => f.write_str("from all")?,
        }
        if let Some(destination) = &self.destination {
            write!(f, " to {destination}")?;
        }
        if let Some(link) = &self.input_link {
            write!(f, " iif {link}")?;
        }
        if let Some(link) = &self.output_link {
            write!(f, " oif {link}")?;
        }
        if let Some((value, mask)) = self.mark {
            write!(f, " fwmark {value:#x}/{mask:#x}")?;
        }
        match self.action {
            RuleAction::Lookup => write!(f, " lookup {}", self.table),
            RuleAction::Blackhole => f.write_str(" blackhole"),
            RuleAction::Unreachable => f.write_str(" unreachable"),
            RuleAction::Prohibit => f.write_str(" prohibit"),
            RuleAction::Other(number) => write!(f, " action {number}"),
        }
    }
}

pub(super) fn write(rule: &Rule, add: bool) -> Message {
    let prefix = |net: &Option<IpNet>| net.as_ref().map_or(0, IpNet::prefix_len);
    let table = u8::try_from(rule.table).unwrap_or(0);
    let [a, b, c, d] = (if rule.inverted { FIB_RULE_INVERT } else { 0 }).to_ne_bytes();
    let fixed = [
        rule.family.number(),
        prefix(&rule.destination),
        prefix(&rule.source),
        0,
        table,
        0,
        0,
        rule.action.number(),
        a,
        b,
        c,
        d,
    ];
    let (kind, flags) = if add { (RTM_NEWRULE, F_CREATE | F_EXCL) } else { (RTM_DELRULE, 0) };
    let mut m = Message::new(kind, flags, &fixed);
    for (attr, net) in [(FRA_DST, &rule.destination), (FRA_SRC, &rule.source)] {
        if let Some(net) = net {
            debug_assert_eq!(family_of(net), rule.family.number());
            m.ip(attr, net.network());
        }
    }
    if let Some(priority) = rule.priority {
        m.u32(FRA_PRIORITY, priority);
    }
    if let Some(link) = &rule.input_link {
        m.text(FRA_IIFNAME, link);
    }
    if let Some(link) = &rule.output_link {
        m.text(FRA_OIFNAME, link);
    }
    if let Some((value, mask)) = rule.mark {
        m.u32(FRA_FWMARK, value);
        m.u32(FRA_FWMASK, mask);
    }
    if rule.action == RuleAction::Lookup {
        m.u32(FRA_TABLE, rule.table);
    }
    if let Some(len) = rule.suppress_prefix {
        m.u32(FRA_SUPPRESS_PREFIXLEN, len);
    }
    if rule.protocol != 0 {
        m.u8(FRA_PROTOCOL, rule.protocol);
    }
    m
}

pub(super) fn read(payload: &[u8]) -> Option<Rule> {
    let byte = |at: usize| payload.get(at).copied();
    let family = byte(0)?;
    let (destination_len, source_len) = (byte(1)?, byte(2)?);
    let flags = payload.get(8..12)?.try_into().ok().map(u32::from_ne_bytes)?;
    let mut rule = Rule {
        action: RuleAction::from_number(byte(7)?),
        inverted: flags & FIB_RULE_INVERT != 0,
        // The kernel leaves out the priority of the rule that comes first.
        priority: Some(0),
        ..Rule::lookup(if family == AF_INET { IpFamily::V4 } else { IpFamily::V6 }, u32::from(byte(4)?))
    };
    let (mut mark, mut mask) = (None, None);
    for attr in attrs_after(payload, 12) {
        match attr.kind {
            FRA_DST => rule.destination = net_of(family, attr.ip(), destination_len),
            FRA_SRC => rule.source = net_of(family, attr.ip(), source_len),
            FRA_IIFNAME => rule.input_link = Some(attr.text()),
            FRA_OIFNAME => rule.output_link = Some(attr.text()),
            FRA_PRIORITY => rule.priority = attr.u32(),
            FRA_FWMARK => mark = attr.u32(),
            FRA_FWMASK => mask = attr.u32(),
            FRA_TABLE => rule.table = attr.u32()?,
            FRA_SUPPRESS_PREFIXLEN => rule.suppress_prefix = attr.u32().filter(|len| *len != u32::MAX),
            FRA_PROTOCOL => rule.protocol = attr.u8()?,
            _ => {}
        }
    }
    rule.mark = mark.map(|mark| (mark, mask.unwrap_or(u32::MAX)));
    Some(rule)
}

impl RouteSocket {
    /// The routing rules of one family.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn rules(&mut self, family: IpFamily) -> Result<Vec<Rule>> {
        let mut fixed = [0; 12];
        fixed[0] = family.number();
        self.list("list routing rules", &Message::new(RTM_GETRULE, 0, &fixed), RTM_NEWRULE, read)
    }

    /// Adds a routing rule.
    ///
    /// # Errors
    /// When the kernel refuses; [`crate::Error::is_already_there`] when an equal one exists.
    pub fn add_rule(&mut self, rule: Rule) -> Result<()> {
        self.apply(&Change::AddRule(rule))
    }

    /// Deletes a routing rule.
    ///
    /// # Errors
    /// When the kernel refuses; [`crate::Error::is_not_found`] when it is gone already.
    pub fn delete_rule(&mut self, rule: Rule) -> Result<()> {
        self.apply(&Change::DeleteRule(rule))
    }
}
