//! From what the kernel lists back to values: tables, chains, rules and what else is in a table. What a rule does is read in [`super::expressions`].

use loden_firewall::iptables::Found;
use loden_firewall::{Base, ChainKind, Family, Hook, Policy, Rule, TableName};

use super::expressions::{Reader, expressions_in};
use super::uapi::*;
use super::xtables;
use crate::wire::{attrs_after, find};

const HEADER: usize = 4;

pub(super) struct TableRow {
    pub(super) key: TableName,
    pub(super) comment: Option<String>,
    pub(super) dormant: bool,
}

pub(super) struct ChainRow {
    pub(super) table: TableName,
    pub(super) name: String,
    /// `Err` names a hook that has no word in the vocabulary.
    pub(super) base: Result<Option<Base>, String>,
    pub(super) comment: Option<String>,
}

pub(super) struct RuleRow {
    pub(super) chain: String,
    pub(super) handle: u64,
    pub(super) rule: Rule,
}

/// `None` for families Loden has no word for (arp, netdev).
fn family(payload: &[u8]) -> Option<Family> {
    match *payload.first()? {
        NFPROTO_IPV4 => Some(Family::Ip),
        NFPROTO_IPV6 => Some(Family::Ip6),
        NFPROTO_INET => Some(Family::Inet),
        NFPROTO_BRIDGE => Some(Family::Bridge),
        _ => None,
    }
}

pub(super) fn table(payload: &[u8]) -> Option<TableRow> {
    let family = family(payload)?;
    let (mut name, mut comment, mut flags) = (None, None, 0);
    for attr in attrs_after(payload, HEADER) {
        match attr.kind {
            NFTA_TABLE_NAME => name = Some(attr.text()),
            NFTA_TABLE_FLAGS => flags = attr.be32().unwrap_or(0),
            NFTA_TABLE_USERDATA => comment = record_in(attr.value, UDATA_COMMENT),
            _ => {}
        }
    }
    let key = TableName { family, name: name? };
    Some(TableRow { key, comment, dormant: flags & NFT_TABLE_F_DORMANT != 0 })
}

pub(super) fn chain(payload: &[u8]) -> Option<ChainRow> {
    let family = family(payload)?;
    let (mut table, mut name, mut comment, mut hook, mut kind, mut policy) =
        (None, None, None, None, None, 1);
    for attr in attrs_after(payload, HEADER) {
        match attr.kind {
            NFTA_CHAIN_TABLE => table = Some(attr.text()),
            NFTA_CHAIN_NAME => name = Some(attr.text()),
            NFTA_CHAIN_USERDATA => comment = record_in(attr.value, UDATA_COMMENT),
            NFTA_CHAIN_HOOK => hook = Some(attr.value),
            NFTA_CHAIN_TYPE => kind = Some(attr.text()),
            NFTA_CHAIN_POLICY => policy = attr.be32().unwrap_or(1),
            _ => {}
        }
    }
    let base = match hook {
        None => Ok(None),
        Some(hook) => base_of(hook, kind.as_deref().unwrap_or(""), policy).map(Some),
    };
    Some(ChainRow { table: TableName { family, name: table? }, name: name?, base, comment })
}

fn base_of(hook: &[u8], kind: &str, policy: u32) -> Result<Base, String> {
    let number = find(hook, NFTA_HOOK_HOOKNUM).and_then(|a| a.be32());
    let priority = find(hook, NFTA_HOOK_PRIORITY).and_then(|a| a.be32()).map_or(0, u32::cast_signed);
    Ok(Base {
        kind: match kind {
            "filter" => ChainKind::Filter,
            "nat" => ChainKind::Nat,
            "route" => ChainKind::Route,
            other => return Err(format!("chain type {other:?}")),
        },
        hook: match number {
            Some(0) => Hook::Prerouting,
            Some(1) => Hook::Input,
            Some(2) => Hook::Forward,
            Some(3) => Hook::Output,
            Some(4) => Hook::Postrouting,
            other => return Err(format!("hook {other:?}")),
        },
        priority,
        policy: if policy == 0 { Policy::Drop } else { Policy::Accept },
    })
}

/// The text of the first record of a kind in user data.
fn record_in(mut records: &[u8], wanted: u8) -> Option<String> {
    while let [kind, len, rest @ ..] = records {
        let value = rest.get(..usize::from(*len))?;
        if *kind == wanted {
            let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
            return Some(String::from_utf8_lossy(value.get(..end)?).into_owned());
        }
        records = rest.get(usize::from(*len)..)?;
    }
    None
}

/// `None` for a rule of another table.
pub(super) fn rule(payload: &[u8], of: &TableName) -> Option<RuleRow> {
    let family = family(payload)?;
    let (mut table, mut chain, mut handle, mut expressions, mut records) =
        (None, None, None, &[][..], &[][..]);
    for attr in attrs_after(payload, HEADER) {
        match attr.kind {
            NFTA_RULE_TABLE => table = Some(attr.text()),
            NFTA_RULE_CHAIN => chain = Some(attr.text()),
            NFTA_RULE_HANDLE => handle = attr.be64(),
            NFTA_RULE_EXPRESSIONS => expressions = attr.value,
            NFTA_RULE_USERDATA => records = attr.value,
            _ => {}
        }
    }
    if family != of.family || table.as_deref() != Some(&of.name) {
        return None;
    }
    let rule = Rule {
        comment: record_in(records, UDATA_COMMENT),
        note: record_in(records, UDATA_NOTE),
        ..Reader::new(family).rule(expressions)
    };
    Some(RuleRow { chain: chain?, handle: handle?, rule })
}

/// A rule of one chain in iptables' words. `None` for a rule of another chain.
pub(super) fn iptables_rule(payload: &[u8], of: &TableName, wanted: &str) -> Option<Found> {
    let family = family(payload)?;
    let (mut table, mut chain, mut handle, mut expressions) = (None, None, None, &[][..]);
    for attr in attrs_after(payload, HEADER) {
        match attr.kind {
            NFTA_RULE_TABLE => table = Some(attr.text()),
            NFTA_RULE_CHAIN => chain = Some(attr.text()),
            NFTA_RULE_HANDLE => handle = attr.be64(),
            NFTA_RULE_EXPRESSIONS => expressions = attr.value,
            _ => {}
        }
    }
    if family != of.family || table.as_deref() != Some(&of.name) || chain.as_deref() != Some(wanted) {
        return None;
    }
    let mut reader = Reader::with_extensions(family);
    let mut is_whole = true;
    for (name, data) in expressions_in(expressions) {
        // What is not understood does not hide what is: the rule may still be told by its comment or by where it leads.
        is_whole &= reader.action.is_none() & reader.expression(&name, data).is_some();
    }
    is_whole &= !reader.dangles();
    let extensions = reader.extensions.unwrap_or_default();
    let (rule, has_words) = xtables::words(family, &reader.matches, &extensions, reader.action.as_ref());
    Some(Found { rule, handle: Some(handle?), is_whole: is_whole && has_words })
}

/// The comment of a listed rule, without reading the rest of it.
pub(super) fn rule_comment(payload: &[u8]) -> Option<String> {
    let records = attrs_after(payload, HEADER).find(|attr| attr.kind == NFTA_RULE_USERDATA)?;
    record_in(records.value, UDATA_COMMENT)
}

/// The name of a set, an object or a flowtable of this table. A set without a name of its own is part of a rule.
pub(super) fn named(payload: &[u8], of: &TableName, is_set: bool) -> Option<String> {
    let family = family(payload)?;
    let (mut table, mut name, mut flags) = (None, None, 0);
    for attr in attrs_after(payload, HEADER) {
        match attr.kind {
            NFTA_NAMED_TABLE => table = Some(attr.text()),
            NFTA_NAMED_NAME => name = Some(attr.text()),
            NFTA_SET_FLAGS if is_set => flags = attr.be32().unwrap_or(0),
            _ => {}
        }
    }
    if family != of.family || table.as_deref() != Some(&of.name) || flags & NFT_SET_ANONYMOUS != 0 {
        return None;
    }
    name
}

pub(super) fn generation(payload: &[u8]) -> Option<u32> {
    attrs_after(payload, HEADER).find(|a| a.kind == NFTA_GEN_ID)?.be32()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use ipnet::IpNet;
    use loden_firewall::{Action, Change, L4, Match};
    use proptest::prelude::*;

    use super::*;
    use crate::nft::encode;
    use crate::wire::HEADER as MESSAGE_HEADER;

    fn of() -> TableName {
        TableName { family: Family::Inet, name: "t".to_owned() }
    }

    fn any_match() -> impl Strategy<Value = Match> {
        let v4 = (any::<u32>(), 0..=32_u8, any::<bool>()).prop_map(|(bits, len, negated)| {
            let net = IpNet::new(Ipv4Addr::from(bits).into(), len).unwrap().trunc();
            Match::Source { net, negated }
        });
        let v6 = (any::<u128>(), 0..=128_u8, any::<bool>()).prop_map(|(bits, len, negated)| {
            let net = IpNet::new(Ipv6Addr::from(bits).into(), len).unwrap().trunc();
            Match::Destination { net, negated }
        });
        prop_oneof![
            v4,
            v6,
            any::<u32>().prop_map(Match::mark),
            (any::<u32>(), 1..u32::MAX).prop_map(|(value, mask)| Match::Mark { value: value & mask, mask }),
            "[a-z]{1,15}".prop_map(Match::InputLink),
            "[a-z]{1,14}[*]".prop_map(Match::NotOutputLink),
            (1..16_u32).prop_map(Match::CtState),
            any::<u16>().prop_map(|port| Match::DestinationPort { proto: L4::Tcp, port }),
            Just(Match::L4 { proto: L4::Udp }),
            Just(Match::Counter),
            Just(Match::DestinationLocal),
            any::<[u8; 6]>().prop_map(Match::EtherSource),
        ]
    }

    /// What the kernel would list for a rule: the expressions as they were written, and a handle.
    fn listed(rule: &Rule) -> Vec<u8> {
        let change = Change::AddRule { table: of(), chain: "c".to_owned(), before: None, rule: rule.clone() };
        let mut message = encode::change(&change).message;
        message.be64(NFTA_RULE_HANDLE, 7);
        message.finish(1).split_off(MESSAGE_HEADER)
    }

    proptest! {
        #[test]
        fn a_rule_reads_back_as_it_was_written(
            matches in prop::collection::vec(any_match(), 0..5),
            fully_random in any::<bool>(),
            comment in prop::option::of("[a-z ]{1,40}"),
            note in prop::option::of("[a-z ]{1,64}"),
        ) {
            let families = matches.iter().filter_map(|m| match m {
                Match::Source { .. } => Some(4),
                Match::Destination { .. } => Some(6),
                _ => None,
            });
            let transports = matches.iter().filter_map(|m| match m {
                Match::DestinationPort { .. } => Some(6),
                Match::L4 { .. } => Some(17),
                _ => None,
            });
            // Packets of two protocols at once do not exist; the kernel would never match such a rule.
            prop_assume!(families.collect::<std::collections::BTreeSet<_>>().len() < 2);
            prop_assume!(transports.collect::<std::collections::BTreeSet<_>>().len() < 2);
            let written = Rule { matches, action: Action::Masquerade { fully_random }, comment, note };
            let row = rule(&listed(&written), &of()).unwrap();
            prop_assert_eq!(row.handle, 7);
            prop_assert_eq!(row.rule, written);
        }

        #[test]
        fn whatever_is_read_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..200), cut in any::<prop::sample::Index>(), mark in any::<u32>(),
        ) {
            let whole = listed(&Rule::new(vec![Match::mark(mark)], Action::Accept));
            let mut broken = whole.clone();
            let at = cut.index(broken.len());
            broken.truncate(at);
            broken.extend(&bytes);
            for payload in [&bytes, &broken] {
                let _ = (named(payload, &of(), true), rule_comment(payload), table(payload), chain(payload), generation(payload), rule(payload, &of()));
            }
            prop_assert!(rule(&whole, &of()).is_some());
        }
    }
}
