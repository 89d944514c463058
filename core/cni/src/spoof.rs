//! The filter that lets a container send only from its own hardware address: names and rules shared with the Go plugins.
//!
//! It lives in the bridge family's table `nat`, where ebtables keeps its chains as well, so nothing of it is anybody else's to flush. The Go
//! plugins find their rules by the comment and the chains by their names; both are theirs to the byte.

use loden_firewall::{Action, Base, ChainKind, Change, Family, Hook, Listed, Match, Rule, TableName};

use crate::link::MacAddress;
use crate::mark::Marks;
use crate::masquerade::Stale;

/// The base chain.
pub const PREROUTING: &str = "PREROUTING";
/// Before everything else that looks at frames, connection tracking included.
const PRIORITY: i32 = -300;
/// What containers' chains begin with.
pub const CHAIN_PREFIX: &str = "cni-br-iface-";
const MAC_SUFFIX: &str = "-mac";

/// The table.
pub fn table() -> TableName {
    TableName { family: Family::Bridge, name: "nat".to_owned() }
}

/// The names of one attachment's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoofCheck {
    /// The chain that the base chain jumps to for frames of the container.
    pub chain: String,
    /// The chain that judges their source address.
    pub mac_chain: String,
    /// The comment of every rule.
    pub comment: String,
}

impl SpoofCheck {
    /// The names for a container's interface.
    pub fn of(container_id: &str, ifname: &str) -> Self {
        let chain = format!("{CHAIN_PREFIX}{container_id}-{ifname}");
        Self {
            mac_chain: format!("{chain}{MAC_SUFFIX}"),
            chain,
            comment: format!("macspoofchk-{container_id}-{ifname}"),
        }
    }

    /// The base chain with its table.
    pub fn base() -> Vec<Change> {
        vec![
            Change::AddTable { table: table(), comment: None },
            Change::AddChain {
                table: table(),
                chain: PREROUTING.to_owned(),
                base: Some(Base::accepting(ChainKind::Filter, Hook::Prerouting, PRIORITY)),
                comment: None,
            },
        ]
    }

    /// The chains and rules for frames that come in by `port`. What an earlier attempt left in the chains goes; `marks` says in the
    /// chain's comment, which the Go plugins do not look at, which network this belongs to.
    pub fn additions(&self, port: &str, mac: MacAddress, marks: &Marks<'_>) -> Vec<Change> {
        let rule = |chain: &str, matches: Vec<Match>, action: Action| Change::AddRule {
            table: table(),
            chain: chain.to_owned(),
            before: None,
            rule: Rule::new(matches, action).with_comment(&self.comment),
        };
        let mut changes = Vec::new();
        for (chain, comment) in [(&self.mac_chain, None), (&self.chain, Some(marks.chain_comment()))] {
            changes.push(Change::AddChain { table: table(), chain: chain.clone(), base: None, comment });
            changes.push(Change::FlushChain { table: table(), chain: chain.clone() });
        }
        changes.push(rule(&self.mac_chain, vec![Match::EtherSource(mac)], Action::Return));
        changes.push(rule(&self.mac_chain, vec![], Action::Drop));
        changes.push(rule(&self.chain, vec![], Action::Jump(self.mac_chain.clone())));
        changes.push(rule(
            PREROUTING,
            vec![Match::InputLink(port.to_owned())],
            Action::Jump(self.chain.clone()),
        ));
        changes
    }

    /// What takes the chains and the rules that lead to them away, as far as they are there.
    pub fn removals(&self, listed: &Listed) -> Vec<Change> {
        let mut changes = Vec::new();
        let rules = listed.table.chains.get(PREROUTING).map_or(&[][..], |chain| chain.rules.as_slice());
        let handles = listed.handles.get(PREROUTING).map_or(&[][..], Vec::as_slice);
        for (rule, handle) in rules.iter().zip(handles) {
            let is_ours = rule.comment.as_ref() == Some(&self.comment)
                || matches!(&rule.action, Action::Jump(to) if *to == self.chain);
            if is_ours {
                changes.push(Change::DeleteRule {
                    table: table(),
                    chain: PREROUTING.to_owned(),
                    handle: *handle,
                });
            }
        }
        // The first jumps to the second, which cannot go while somebody jumps to it.
        for chain in [&self.chain, &self.mac_chain] {
            if listed.table.chains.contains_key(chain) {
                changes.push(Change::FlushChain { table: table(), chain: chain.clone() });
                changes.push(Change::DeleteChain { table: table(), chain: chain.clone() });
            }
        }
        changes
    }

    /// What a GC takes away: the parts whose chain says that it belongs to the network, without an attachment that must stay. A part that
    /// the Go plugin made does not say which network it belongs to, and stays.
    pub fn leftovers(listed: &Listed, stale: &Stale) -> Vec<Change> {
        let dead = listed.table.chains.iter().filter_map(|(name, chain)| {
            let comment = chain.comment.as_deref()?;
            let rest = name.strip_prefix(CHAIN_PREFIX).filter(|_| stale.has(comment))?;
            Some(Self {
                chain: name.clone(),
                mac_chain: format!("{name}{MAC_SUFFIX}"),
                comment: format!("macspoofchk-{rest}"),
            })
        });
        dead.flat_map(|part| part.removals(listed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use loden_firewall::{Chain, Table};

    use super::*;
    use crate::ValidAttachments;

    const MARKS: Marks<'_> = Marks { network: "n", ifname: "eth0", container_id: "c1" };

    /// The table as the kernel would list it after these changes.
    fn listed(changes: &[Change]) -> Listed {
        let mut table = Table::new(Family::Bridge, "nat");
        let mut handles: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let mut next = 10;
        for change in changes {
            match change {
                Change::AddChain { chain, base, comment, .. } => {
                    let made = Chain { base: *base, comment: comment.clone(), rules: Vec::new() };
                    table.chains.entry(chain.clone()).or_insert(made);
                }
                Change::AddRule { chain, rule, .. } => {
                    table.chains.get_mut(chain).unwrap().rules.push(rule.clone());
                    handles.entry(chain.clone()).or_default().push(next);
                    next += 1;
                }
                _ => {}
            }
        }
        Listed { table, handles }
    }

    fn text(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_and_rules_are_those_of_the_go_plugin() {
        let check = SpoofCheck::of("c1", "eth0");
        let lines = text(&check.additions("veth1", [2, 0, 0, 0, 0, 7], &MARKS));
        for wanted in [
            "add rule bridge nat cni-br-iface-c1-eth0-mac ether saddr 02:00:00:00:00:07 return comment \"macspoofchk-c1-eth0\"",
            "add rule bridge nat cni-br-iface-c1-eth0-mac drop comment \"macspoofchk-c1-eth0\"",
            "add rule bridge nat cni-br-iface-c1-eth0 jump cni-br-iface-c1-eth0-mac comment \"macspoofchk-c1-eth0\"",
            "add rule bridge nat PREROUTING iifname \"veth1\" jump cni-br-iface-c1-eth0 comment \"macspoofchk-c1-eth0\"",
        ] {
            assert!(lines.iter().any(|line| line == wanted), "{wanted}\n{lines:#?}");
        }
        let base = text(&SpoofCheck::base());
        assert!(
            base[1].contains("type filter hook prerouting priority dstnat"),
            "-300 in this family: {base:?}"
        );
    }

    #[test]
    fn a_removal_takes_one_attachments_part() {
        let other = SpoofCheck::of("c2", "eth0");
        let changes = [
            SpoofCheck::base(),
            SpoofCheck::of("c1", "eth0").additions("veth1", [2; 6], &MARKS),
            other.additions("veth2", [2; 6], &Marks { container_id: "c2", ..MARKS }),
        ]
        .concat();
        let listed = listed(&changes);
        let removals = text(&other.removals(&listed));
        assert_eq!(removals.len(), 5, "{removals:#?}");
        assert!(removals.iter().skip(1).all(|line| line.contains("c2")), "{removals:#?}");
        assert!(removals[0].contains("PREROUTING handle 17"), "{removals:#?}");
        assert!(SpoofCheck::of("c3", "eth0").removals(&listed).is_empty());
    }

    #[test]
    fn a_gc_spares_what_it_cannot_prove_to_be_dead() {
        let part = |id: &'static str, network: &'static str| {
            let marks = Marks { network, container_id: id, ..MARKS };
            SpoofCheck::of(id, "eth0").additions("veth1", [2; 6], &marks)
        };
        let mut changes = [SpoofCheck::base(), part("c1", "n"), part("c2", "m")].concat();
        // Go's chain has no comment.
        changes.extend(part("c3", "n").into_iter().map(|change| match change {
            Change::AddChain { table, chain, base, .. } => {
                Change::AddChain { table, chain, base, comment: None }
            }
            other => other,
        }));
        let listed = listed(&changes);
        let stale = Stale::of("n", &ValidAttachments::default());
        let removals = text(&SpoofCheck::leftovers(&listed, &stale));
        assert_eq!(removals.len(), 5, "{removals:#?}");
        assert!(removals.iter().skip(1).all(|line| line.contains("cni-br-iface-c1-eth0")), "{removals:#?}");
    }
}
