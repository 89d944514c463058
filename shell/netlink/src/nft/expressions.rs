//! What a rule that the kernel lists does, in words.
//!
//! A rule is followed expression by expression: what a register holds, what it is compared with, what happens in the
//! end. The first expression without a word in the vocabulary makes the whole rule opaque, so a rule is either understood
//! completely or not at all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use loden_firewall::{Action, Family, L4, Match, Rule};

use super::uapi::*;
use super::xtables::Extension;
use crate::wire::{Attr, attrs, find};

/// Name and data of each expression.
pub(super) fn expressions_in(expressions: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    attrs(expressions).map(|element| {
        let name = find(element.value, NFTA_EXPR_NAME).map(|a| a.text()).unwrap_or_default();
        (name, find(element.value, NFTA_EXPR_DATA).map_or(&[][..], |a| a.value))
    })
}

/// What a register holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Meta(u32),
    Payload { base: u32, offset: u32, len: u32 },
    CtState,
    FibDestinationType,
    Value(Vec<u8>),
    Masked { of: Box<Held>, mask: Vec<u8>, xor: Vec<u8> },
}

/// `jump <chain>` or `goto <chain>` for an expression that is one: what an unreadable rule leads to is still worth knowing.
fn jump_in(name: &str, data: &[u8]) -> Option<String> {
    let verdict = (name == "immediate").then(|| find(data, NFTA_IMMEDIATE_DATA)).flatten()?;
    let verdict = find(verdict.value, NFTA_DATA_VERDICT)?;
    let code = find(verdict.value, NFTA_VERDICT_CODE)?.be32()?.cast_signed();
    let chain = find(verdict.value, NFTA_VERDICT_CHAIN)?.text();
    match code {
        NFT_JUMP => Some(format!("jump {chain}")),
        NFT_GOTO => Some(format!("goto {chain}")),
        _ => None,
    }
}

/// Follows a rule's expressions.
pub(super) struct Reader {
    family: Family,
    registers: BTreeMap<u32, Held>,
    pub(super) matches: Vec<Match>,
    pub(super) action: Option<Action>,
    /// The network protocol the rule has tested, and whether an address match has used that.
    network: Option<(u16, bool)>,
    /// The transport protocol the rule has tested, and the match it would be if no port match used it.
    transport: Option<(u8, usize)>,
    /// A test for Ethernet that a link-layer match has to use.
    ether: Option<bool>,
    /// iptables' extensions, each with the number of matches before it. `None` where nobody has words for them.
    pub(super) extensions: Option<Vec<(usize, Extension)>>,
}

impl Reader {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            registers: BTreeMap::new(),
            matches: Vec::new(),
            action: None,
            network: None,
            transport: None,
            ether: None,
            extensions: None,
        }
    }

    /// One that has words for iptables' extensions as well.
    pub(super) fn with_extensions(family: Family) -> Self {
        Self { extensions: Some(Vec::new()), ..Self::new(family) }
    }

    /// Whether something was tested that only has a meaning with what did not follow.
    pub(super) fn dangles(&self) -> bool {
        matches!(self.network, Some((_, false))) || self.ether == Some(false)
    }

    pub(super) fn rule(mut self, expressions: &[u8]) -> Rule {
        let mut names = Vec::new();
        let mut known = true;
        for (name, data) in expressions_in(expressions) {
            // Nothing may follow what ends a rule.
            known = known && self.action.is_none() && self.expression(&name, data).is_some();
            names.push(jump_in(&name, data).unwrap_or(name));
        }
        if known && !self.dangles() {
            Rule::new(self.matches, self.action.unwrap_or(Action::Continue))
        } else {
            Rule::new([Match::Opaque(names.join(" "))], Action::Opaque)
        }
    }

    /// `None` when the expression, or this use of it, has no word.
    pub(super) fn expression(&mut self, name: &str, data: &[u8]) -> Option<()> {
        let number = |kind: u16| find(data, kind).and_then(|a| a.be32());
        match name {
            "meta" => match (number(NFTA_META_DREG), number(NFTA_META_SREG)) {
                (Some(to), None) => self.hold(to, Held::Meta(number(NFTA_META_KEY)?)),
                (None, Some(from)) if number(NFTA_META_KEY)? == META_MARK => self.set_mark(from),
                _ => None,
            },
            "payload" => {
                let held = Held::Payload {
                    base: number(NFTA_PAYLOAD_BASE)?,
                    offset: number(NFTA_PAYLOAD_OFFSET)?,
                    len: number(NFTA_PAYLOAD_LEN)?,
                };
                self.hold(number(NFTA_PAYLOAD_DREG)?, held)
            }
            "ct" if number(NFTA_CT_KEY)? == CT_STATE => self.hold(number(NFTA_CT_DREG)?, Held::CtState),
            "fib" if number(NFTA_FIB_RESULT)? == FIB_ADDRTYPE && number(NFTA_FIB_FLAGS)? == FIB_DADDR => {
                self.hold(number(NFTA_FIB_DREG)?, Held::FibDestinationType)
            }
            "bitwise" if number(NFTA_BITWISE_OP).unwrap_or(0) == 0 => {
                let of = Box::new(self.registers.get(&number(NFTA_BITWISE_SREG)?)?.clone());
                let mask = value_in(find(data, NFTA_BITWISE_MASK)?)?;
                let xor = value_in(find(data, NFTA_BITWISE_XOR)?)?;
                self.hold(number(NFTA_BITWISE_DREG)?, Held::Masked { of, mask, xor })
            }
            "cmp" => {
                let held = self.registers.get(&number(NFTA_CMP_SREG)?)?.clone();
                let value = value_in(find(data, NFTA_CMP_DATA)?)?;
                match number(NFTA_CMP_OP)? {
                    NFT_CMP_EQ => self.compared(held, &value, false),
                    NFT_CMP_NEQ => self.compared(held, &value, true),
                    _ => None,
                }
            }
            "counter" => self.push(Match::Counter),
            "immediate" => self.immediate(number(NFTA_IMMEDIATE_DREG)?, find(data, NFTA_IMMEDIATE_DATA)?),
            "masq" => {
                if number(NFTA_MASQ_REG_PROTO_MIN).is_some() {
                    return None;
                }
                match number(NFTA_MASQ_FLAGS).unwrap_or(0) {
                    0 => self.end(Action::Masquerade { fully_random: false }),
                    NAT_RANGE_FULLY_RANDOM => self.end(Action::Masquerade { fully_random: true }),
                    _ => None,
                }
            }
            "nat" => self.nat(&number),
            "match" | "target" => self.extension(name == "target", data),
            _ => None,
        }
    }

    /// A match or target of iptables' own, kept as such by the kernel.
    fn extension(&mut self, is_target: bool, data: &[u8]) -> Option<()> {
        let name = find(data, NFTA_COMPAT_NAME)?.text();
        let revision = find(data, NFTA_COMPAT_REV)?.be32()?;
        let info = find(data, NFTA_COMPAT_INFO)?.value;
        let extension = Extension::read(self.family, is_target, &name, revision, info);
        let is_known = extension.is_whole;
        self.extensions.as_mut()?.push((self.matches.len(), extension));
        if is_target {
            self.action = Some(Action::Opaque);
        }
        is_known.then_some(())
    }

    fn hold(&mut self, register: u32, held: Held) -> Option<()> {
        self.registers.insert(register, held);
        Some(())
    }

    fn push(&mut self, m: Match) -> Option<()> {
        self.matches.push(m);
        Some(())
    }

    fn end(&mut self, action: Action) -> Option<()> {
        self.action = Some(action);
        Some(())
    }

    fn immediate(&mut self, register: u32, data: Attr<'_>) -> Option<()> {
        if register != REG_VERDICT {
            return self.hold(register, Held::Value(value_in(data)?));
        }
        let verdict = find(data.value, NFTA_DATA_VERDICT)?;
        let code = find(verdict.value, NFTA_VERDICT_CODE)?.be32()?.cast_signed();
        let chain = || find(verdict.value, NFTA_VERDICT_CHAIN).map(|a| a.text());
        self.end(match code {
            NF_ACCEPT => Action::Accept,
            NF_DROP => Action::Drop,
            NFT_RETURN => Action::Return,
            NFT_JUMP => Action::Jump(chain()?),
            NFT_GOTO => Action::Goto(chain()?),
            _ => return None,
        })
    }

    fn set_mark(&mut self, from: u32) -> Option<()> {
        let action = match self.registers.get(&from)? {
            Held::Value(value) => Action::SetMark { value: u32_of(value)?, mask: u32::MAX },
            Held::Masked { of, mask, xor } if **of == Held::Meta(META_MARK) => {
                let (mask, value) = (!u32_of(mask)?, u32_of(xor)?);
                if value & !mask != 0 || mask == u32::MAX {
                    return None;
                }
                Action::SetMark { value, mask }
            }
            _ => return None,
        };
        self.end(action)
    }

    fn nat(&mut self, number: &impl Fn(u16) -> Option<u32>) -> Option<()> {
        if number(NFTA_NAT_FLAGS).unwrap_or(0) & !NAT_RANGE_IMPLIED != 0 {
            return None;
        }
        let same = |min: u16, max: u16| match (number(min), number(max)) {
            (Some(min), Some(max)) if min == max => Some(Some(min)),
            (min, None) => Some(min),
            _ => None,
        };
        let held = |register: u32| match self.registers.get(&register) {
            Some(Held::Value(value)) => Some(value.clone()),
            _ => None,
        };
        let address = held(same(NFTA_NAT_REG_ADDR_MIN, NFTA_NAT_REG_ADDR_MAX)??)?;
        let v4 = number(NFTA_NAT_FAMILY)? == u32::from(NFPROTO_IPV4);
        let addr = ip_of(v4, &address, if v4 { 4 } else { 16 })?;
        let port = match same(NFTA_NAT_REG_PROTO_MIN, NFTA_NAT_REG_PROTO_MAX)? {
            None => None,
            Some(register) => Some(u16::from_be_bytes(held(register)?.get(..2)?.try_into().ok()?)),
        };
        match number(NFTA_NAT_TYPE)? {
            NAT_DNAT => self.end(Action::DestinationNat { addr, port }),
            NAT_SNAT => self.end(Action::SourceNat { addr, port }),
            _ => None,
        }
    }

    fn compared(&mut self, held: Held, value: &[u8], negated: bool) -> Option<()> {
        match held {
            Held::Meta(META_MARK) if !negated => {
                self.push(Match::Mark { value: u32_of(value)?, mask: u32::MAX })
            }
            Held::Meta(META_IIFNAME) => {
                let name = link_name(value)?;
                self.push(if negated { Match::NotInputLink(name) } else { Match::InputLink(name) })
            }
            Held::Meta(META_OIFNAME) => {
                let name = link_name(value)?;
                self.push(if negated { Match::NotOutputLink(name) } else { Match::OutputLink(name) })
            }
            Held::Meta(META_L4PROTO) if !negated => {
                let number = *value.first()?;
                self.transport = Some((number, self.matches.len()));
                self.push(Match::L4 { proto: L4::from_number(number)? })
            }
            Held::Meta(META_NFPROTO) if !negated && self.family == Family::Inet => {
                self.depend_on_network(match *value.first()? {
                    NFPROTO_IPV4 => ETH_P_IP,
                    NFPROTO_IPV6 => ETH_P_IPV6,
                    _ => return None,
                })
            }
            Held::Meta(META_PROTOCOL) if !negated && self.family == Family::Bridge => {
                self.depend_on_network(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
            }
            Held::Meta(META_IIFTYPE) if !negated && self.family != Family::Bridge => {
                let kind = u16::from_ne_bytes(value.get(..2)?.try_into().ok()?);
                self.ether.get_or_insert(false);
                (kind == ARPHRD_ETHER).then_some(())
            }
            Held::CtState => None,
            Held::FibDestinationType if !negated && u32_of(value)? == RTN_LOCAL => {
                self.push(Match::DestinationLocal)
            }
            Held::Payload { base: BASE_LINK, offset: 6, len: 6 } if !negated => {
                if self.family != Family::Bridge {
                    self.ether = self.ether.map(|_| true);
                    self.ether?;
                }
                self.push(Match::EtherSource(value.try_into().ok()?))
            }
            Held::Payload { base: BASE_TRANSPORT, offset, len: 2 } if !negated => self.port(offset, value),
            // nft joins neighbouring fields into one load: both ports, and both addresses of IPv4.
            Held::Payload { base: BASE_TRANSPORT, offset: 0, len: 4 } if !negated => {
                let (source, destination) = value.split_at_checked(2)?;
                self.port(0, source)?;
                self.port(2, destination)
            }
            Held::Payload { base: BASE_NETWORK, offset: 12, len: len @ 5..=8 } if !negated => {
                let (source, destination) = value.split_at_checked(4)?;
                self.address(12, 4, None, source, false)?;
                self.address(16, len - 4, None, destination, false)
            }
            Held::Payload { base: BASE_NETWORK, offset, len } => {
                self.address(offset, len, None, value, negated)
            }
            Held::Masked { of, mask, xor } if xor.iter().all(|b| *b == 0) => match *of {
                Held::Meta(META_MARK) if !negated => {
                    self.push(Match::Mark { value: u32_of(value)?, mask: u32_of(&mask)? })
                }
                Held::CtState if negated && value.iter().all(|b| *b == 0) => {
                    self.push(Match::CtState(u32_of(&mask)?))
                }
                Held::Payload { base: BASE_NETWORK, offset, len } => {
                    self.address(offset, len, Some(&mask), value, negated)
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn depend_on_network(&mut self, protocol: u16) -> Option<()> {
        match self.network {
            None => self.network = Some((protocol, false)),
            Some((known, _)) if known == protocol => {}
            Some(_) => return None,
        }
        Some(())
    }

    fn port(&mut self, offset: u32, value: &[u8]) -> Option<()> {
        let (number, at) = self.transport?;
        let proto = L4::from_number(number).filter(|p| p.has_ports())?;
        let port = u16::from_be_bytes(value.try_into().ok()?);
        // The test right before is part of this match; an earlier one stands for itself.
        if at + 1 == self.matches.len() && matches!(self.matches.last(), Some(Match::L4 { .. })) {
            self.matches.pop();
        }
        self.push(match offset {
            0 => Match::SourcePort { proto, port },
            2 => Match::DestinationPort { proto, port },
            _ => return None,
        })
    }

    fn address(
        &mut self,
        offset: u32,
        len: u32,
        mask: Option<&[u8]>,
        value: &[u8],
        negated: bool,
    ) -> Option<()> {
        let v4 = match self.family {
            Family::Ip => true,
            Family::Ip6 => false,
            Family::Inet | Family::Bridge => {
                let (protocol, used) = self.network.as_mut()?;
                *used = true;
                match *protocol {
                    ETH_P_IP => true,
                    ETH_P_IPV6 => false,
                    _ => return None,
                }
            }
        };
        let destination = match (v4, offset) {
            (true, 12) | (false, 8) => false,
            (true, 16) | (false, 24) => true,
            _ => return None,
        };
        let len = usize::try_from(len).ok()?;
        let prefix = match mask {
            None => u8::try_from(len * 8).ok()?,
            Some(mask) => prefix_of(mask)?,
        };
        let net = IpNet::new(ip_of(v4, value, len)?, prefix).ok()?;
        if net.trunc() != net {
            return None;
        }
        self.push(if destination {
            Match::Destination { net, negated }
        } else {
            Match::Source { net, negated }
        })
    }
}

fn value_in(attr: Attr<'_>) -> Option<Vec<u8>> {
    find(attr.value, NFTA_DATA_VALUE).map(|a| a.value.to_vec())
}

fn u32_of(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// The leading bytes of an address; the rest is zero.
fn ip_of(v4: bool, value: &[u8], len: usize) -> Option<IpAddr> {
    let value = value.get(..len)?;
    if v4 {
        let mut octets = [0; 4];
        octets.get_mut(..len)?.copy_from_slice(value);
        Some(IpAddr::V4(Ipv4Addr::from(octets)))
    } else {
        let mut octets = [0; 16];
        octets.get_mut(..len)?.copy_from_slice(value);
        Some(IpAddr::V6(Ipv6Addr::from(octets)))
    }
}

/// The length of a mask of leading ones.
fn prefix_of(mask: &[u8]) -> Option<u8> {
    let ones: u32 = mask.iter().map(|b| b.leading_ones()).sum();
    let set: u32 = mask.iter().map(|b| b.count_ones()).sum();
    let mut left = ones;
    let contiguous = mask.iter().all(|b| {
        let here = left.min(8);
        left -= here;
        b.count_ones() == here && b.leading_ones() == here
    });
    (contiguous && ones == set).then(|| u8::try_from(ones).ok()).flatten()
}

/// With its final NUL it names a link (nft compares all 16 bytes, iptables ends with the NUL), without it is a prefix.
fn link_name(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    let whole = value.len() == 16 || end + 1 == value.len();
    if !whole && end != value.len() {
        return None;
    }
    let mut name = String::from_utf8(value.get(..end)?.to_vec()).ok()?;
    if !whole {
        name.push('*');
    }
    Some(name)
}
