//! How values print: the text of `nft list table` (nft 1.0.6), which `nft -f` reads back.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    Action, Base, Chain, ChainKind, Family, Hook, L4, Match, Policy, Rule, Table, ct_state, priority,
};

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {} {{", self.family, self.name)?;
        if self.dormant {
            writeln!(f, "\tflags dormant")?;
        }
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        for (i, (name, chain)) in self.chains.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write_chain(f, self.family, name, chain)?;
        }
        write!(f, "}}")
    }
}

fn write_chain(f: &mut fmt::Formatter<'_>, family: Family, name: &str, chain: &Chain) -> fmt::Result {
    writeln!(f, "\tchain {name} {{")?;
    if let Some(comment) = &chain.comment {
        writeln!(f, "\t\tcomment \"{comment}\"")?;
    }
    if let Some(base) = &chain.base {
        writeln!(f, "\t\t{}", BaseText { base, family })?;
    }
    for rule in &chain.rules {
        writeln!(f, "\t\t{}", rule.text(family))?;
    }
    writeln!(f, "\t}}")
}

/// A base chain's header line in the words of one family: bridges name priorities differently.
pub(crate) struct BaseText<'a> {
    pub(crate) base: &'a Base,
    pub(crate) family: Family,
}

impl fmt::Display for BaseText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { kind, hook, policy, .. } = self.base;
        write!(f, "type {kind} hook {hook} priority ")?;
        write_priority(f, self.family, *hook, self.base.priority)?;
        write!(f, "; policy {policy};")
    }
}

/// nft writes a priority by name when it lies within ten of a named one that exists at that hook.
fn write_priority(f: &mut fmt::Formatter<'_>, family: Family, hook: Hook, value: i32) -> fmt::Result {
    let named: &[(&str, i32)] = match (family, hook) {
        (Family::Bridge, Hook::Prerouting) => &[("dstnat", -300), ("filter", -200)],
        (Family::Bridge, Hook::Postrouting) => &[("filter", -200), ("srcnat", 300)],
        (Family::Bridge, Hook::Output) => &[("filter", -200), ("out", 100)],
        (Family::Bridge, _) => &[("filter", -200)],
        (_, Hook::Prerouting) => &[
            ("raw", priority::RAW),
            ("mangle", priority::MANGLE),
            ("dstnat", priority::DSTNAT),
            ("filter", priority::FILTER),
            ("security", priority::SECURITY),
        ],
        (_, Hook::Postrouting) => &[
            ("raw", priority::RAW),
            ("mangle", priority::MANGLE),
            ("filter", priority::FILTER),
            ("security", priority::SECURITY),
            ("srcnat", priority::SRCNAT),
        ],
        _ => &[
            ("raw", priority::RAW),
            ("mangle", priority::MANGLE),
            ("filter", priority::FILTER),
            ("security", priority::SECURITY),
        ],
    };
    match named
        .iter()
        .map(|(name, base)| (name, i64::from(value) - i64::from(*base)))
        .find(|(_, d)| d.abs() <= 10)
    {
        Some((name, 0)) => write!(f, "{name}"),
        Some((name, above)) if above > 0 => write!(f, "{name} + {above}"),
        Some((name, below)) => write!(f, "{name} - {}", -below),
        None => write!(f, "{value}"),
    }
}

impl fmt::Display for ChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "accept",
            Self::Drop => "drop",
        })
    }
}

impl fmt::Display for L4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Icmp => "icmp",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp6 => "ipv6-icmp",
            Self::Sctp => "sctp",
        })
    }
}

impl Rule {
    /// The rule's line in a table of this family.
    pub fn text(&self, family: Family) -> RuleText<'_> {
        RuleText { rule: self, family }
    }
}

/// Prints as the one line that `nft list` shows for a rule; made by [`Rule::text`].
#[derive(Debug, Clone, Copy)]
pub struct RuleText<'a> {
    rule: &'a Rule,
    family: Family,
}

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for m in &self.rule.matches {
            write!(f, "{gap}{m}")?;
            gap = " ";
        }
        if !matches!(self.rule.action, Action::Continue | Action::Opaque) {
            f.write_str(gap)?;
            gap = " ";
            write_action(f, self.family, &self.rule.action)?;
        }
        if let Some(comment) = &self.rule.comment {
            write!(f, "{gap}comment \"{comment}\"")?;
        }
        Ok(())
    }
}

/// An address or prefix: a whole-length prefix prints as the bare address.
struct NetText<'a>(&'a IpNet);

impl fmt::Display for NetText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            write!(f, "{}", self.0.addr())
        } else {
            write!(f, "{}", self.0.trunc())
        }
    }
}

fn write_addr(f: &mut fmt::Formatter<'_>, end: &str, net: &IpNet, negated: bool) -> fmt::Result {
    let ip = if matches!(net, IpNet::V4(_)) { "ip" } else { "ip6" };
    write!(f, "{ip} {end} {}{}", if negated { "!= " } else { "" }, NetText(net))
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source { net, negated } => write_addr(f, "saddr", net, *negated),
            Self::Destination { net, negated } => write_addr(f, "daddr", net, *negated),
            Self::Mark { value, mask: u32::MAX } => write!(f, "meta mark {value:#010x}"),
            Self::Mark { value, mask } => write!(f, "meta mark & {mask:#010x} == {value:#010x}"),
            Self::InputLink(name) => write!(f, "iifname \"{name}\""),
            Self::NotInputLink(name) => write!(f, "iifname != \"{name}\""),
            Self::OutputLink(name) => write!(f, "oifname \"{name}\""),
            Self::NotOutputLink(name) => write!(f, "oifname != \"{name}\""),
            Self::L4 { proto } => write!(f, "meta l4proto {proto}"),
            Self::SourcePort { proto, port } => write!(f, "{proto} sport {port}"),
            Self::DestinationPort { proto, port } => write!(f, "{proto} dport {port}"),
            Self::DestinationLocal => f.write_str("fib daddr type local"),
            Self::EtherSource([a, b, c, d, e, g]) => {
                write!(f, "ether saddr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Self::CtState(bits) => write_ct_state(f, *bits),
            Self::Counter => f.write_str("counter packets 0 bytes 0"),
            Self::Opaque(what) => write!(f, "<{what}>"),
        }
    }
}

fn write_ct_state(f: &mut fmt::Formatter<'_>, bits: u32) -> fmt::Result {
    f.write_str("ct state ")?;
    let names = [
        ("invalid", ct_state::INVALID),
        ("established", ct_state::ESTABLISHED),
        ("related", ct_state::RELATED),
        ("new", ct_state::NEW),
        ("untracked", ct_state::UNTRACKED),
    ];
    let mut gap = "";
    for (name, bit) in names {
        if bits & bit != 0 {
            write!(f, "{gap}{name}")?;
            gap = ",";
        }
    }
    Ok(())
}

fn write_action(f: &mut fmt::Formatter<'_>, family: Family, action: &Action) -> fmt::Result {
    match action {
        Action::Accept => f.write_str("accept"),
        Action::Drop => f.write_str("drop"),
        Action::Return => f.write_str("return"),
        Action::Jump(chain) => write!(f, "jump {chain}"),
        Action::Goto(chain) => write!(f, "goto {chain}"),
        Action::Masquerade { fully_random: false } => f.write_str("masquerade"),
        Action::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
        Action::DestinationNat { addr, port } => write_nat(f, family, "dnat", *addr, *port),
        Action::SourceNat { addr, port } => write_nat(f, family, "snat", *addr, *port),
        Action::SetMark { value, mask: u32::MAX } => write!(f, "meta mark set {value:#010x}"),
        Action::SetMark { value, mask } if value == mask => {
            write!(f, "meta mark set meta mark | {value:#010x}")
        }
        Action::SetMark { value: 0, mask } => write!(f, "meta mark set meta mark & {:#010x}", !mask),
        Action::SetMark { value, mask } => {
            write!(f, "meta mark set meta mark & {:#010x} | {value:#010x}", !mask)
        }
        Action::Continue | Action::Opaque => Ok(()),
    }
}

fn write_nat(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    word: &str,
    addr: IpAddr,
    port: Option<u16>,
) -> fmt::Result {
    write!(f, "{word} ")?;
    if family == Family::Inet {
        f.write_str(if addr.is_ipv4() { "ip " } else { "ip6 " })?;
    }
    match (addr, port) {
        (addr, None) => write!(f, "to {addr}"),
        (IpAddr::V4(addr), Some(port)) => write!(f, "to {addr}:{port}"),
        (IpAddr::V6(addr), Some(port)) => write!(f, "to [{addr}]:{port}"),
    }
}
