//! A chain of ours in a table that many write to.
//!
//! iptables keeps everybody's chains in a few tables (`nat`, `filter`), kube-proxy's thousands of rules among them. Such a
//! table is never written as a whole: what is ours in it is found by its chain's name and taken away rule by rule. If a rule
//! were named by anything but its handle, a neighbour's could go with it.

use std::fmt;

use crate::{Action, Change, Listed, Match, Rule, TableName};

/// A chain in a shared table with the rules of a base chain that lead to it, as found.
///
/// Prints as the nft commands that take it away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedChain {
    table: TableName,
    name: String,
    from: String,
    jumps: Vec<u64>,
    /// Rules of other chains lead there too. They are not ours to take, and while they are there the kernel keeps the chain.
    is_held: bool,
}

impl SharedChain {
    /// Finds the chain `name` and the rules of the chain `from` that lead to it. `None` when there is nothing to take
    /// away: no such chain, or an empty one that others hold.
    pub fn find(listed: &Listed, name: &str, from: &str) -> Option<Self> {
        let chain = listed.table.chains.get(name)?;
        let handles = listed.handles.get(from).map_or(&[][..], Vec::as_slice);
        let rules = listed.table.chains.get(from).map_or(&[][..], |chain| chain.rules.as_slice());
        let jumps: Vec<u64> = rules
            .iter()
            .zip(handles)
            .filter(|(rule, _)| leads_to(rule, name))
            .map(|(_, handle)| *handle)
            .collect();
        let is_held = listed
            .table
            .chains
            .iter()
            .filter(|(other, _)| *other != from && *other != name)
            .any(|(_, other)| other.rules.iter().any(|rule| leads_to(rule, name)));
        if is_held && jumps.is_empty() && chain.rules.is_empty() {
            return None;
        }
        Some(Self { table: listed.table.key(), name: name.to_owned(), from: from.to_owned(), jumps, is_held })
    }

    /// The table it is in.
    pub fn table(&self) -> &TableName {
        &self.table
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The edits that take it away and touch nothing else. A chain that others hold is emptied and stays.
    pub fn removal(&self) -> Vec<Change> {
        let (table, chain) = (&self.table, &self.name);
        let mut all: Vec<Change> = self
            .jumps
            .iter()
            .map(|handle| Change::DeleteRule {
                table: table.clone(),
                chain: self.from.clone(),
                handle: *handle,
            })
            .collect();
        all.push(Change::FlushChain { table: table.clone(), chain: chain.clone() });
        if !self.is_held {
            all.push(Change::DeleteChain { table: table.clone(), chain: chain.clone() });
        }
        all
    }
}

impl fmt::Display for SharedChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, change) in self.removal().iter().enumerate() {
            write!(f, "{}nft {change}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// Whether the rule jumps or goes to the chain. iptables puts expressions into its rules that this vocabulary has no words
/// for; what such a rule leads to is the last thing its text says.
fn leads_to(rule: &Rule, chain: &str) -> bool {
    let verdict = |word: &str, text: &str| {
        let rest = text.strip_suffix(chain).and_then(|rest| rest.strip_suffix(' '));
        rest.is_some_and(|rest| rest == word || rest.ends_with(&format!(" {word}")))
    };
    match &rule.action {
        Action::Jump(to) | Action::Goto(to) => to == chain,
        Action::Opaque => rule.matches.iter().any(
            |part| matches!(part, Match::Opaque(text) if verdict("jump", text) || verdict("goto", text)),
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::SharedChain;
    use crate::{Action, Chain, Family, Listed, Match, Rule, Table};

    fn jump(to: &str) -> Rule {
        Rule::new([], Action::Jump(to.to_owned()))
    }

    fn opaque(text: &str) -> Rule {
        Rule::new([Match::Opaque(text.to_owned())], Action::Opaque)
    }

    fn listed(base: Vec<Rule>, own: Vec<Rule>, other: Vec<Rule>) -> Listed {
        let handles = |first: u64, rules: &[Rule]| (first..).take(rules.len()).collect::<Vec<_>>();
        let handles = BTreeMap::from([
            ("POSTROUTING".to_owned(), handles(10, &base)),
            ("FLANNEL-POSTRTG".to_owned(), handles(20, &own)),
            ("KUBE-POSTROUTING".to_owned(), handles(30, &other)),
        ]);
        let table = Table::new(Family::Ip, "nat")
            .with_chain("POSTROUTING", Chain::regular(base))
            .with_chain("FLANNEL-POSTRTG", Chain::regular(own))
            .with_chain("KUBE-POSTROUTING", Chain::regular(other));
        Listed { table, handles }
    }

    fn found(listed: &Listed) -> Option<SharedChain> {
        SharedChain::find(listed, "FLANNEL-POSTRTG", "POSTROUTING")
    }

    #[test]
    fn the_chain_goes_with_every_way_to_it_and_nothing_else() {
        let base = vec![
            jump("KUBE-POSTROUTING"),
            opaque("match counter jump FLANNEL-POSTRTG"),
            opaque("match jump NOT-FLANNEL-POSTRTG"),
            opaque("jump FLANNEL-POSTRTG match"),
            jump("FLANNEL-POSTRTG"),
            opaque("goto FLANNEL-POSTRTG"),
            Rule::new([], Action::Masquerade { fully_random: false }),
        ];
        let chain = found(&listed(base, vec![Rule::new([], Action::Return)], Vec::new())).unwrap();
        assert_eq!(
            chain.to_string(),
            "nft delete rule ip nat POSTROUTING handle 11\n\
             nft delete rule ip nat POSTROUTING handle 14\n\
             nft delete rule ip nat POSTROUTING handle 15\n\
             nft flush chain ip nat FLANNEL-POSTRTG\n\
             nft delete chain ip nat FLANNEL-POSTRTG"
        );
    }

    #[test]
    fn a_chain_that_others_lead_to_is_emptied_once() {
        let others = || vec![jump("FLANNEL-POSTRTG")];
        let chain = found(&listed(others(), vec![Rule::new([], Action::Return)], others())).unwrap();
        assert_eq!(
            chain.to_string(),
            "nft delete rule ip nat POSTROUTING handle 10\nnft flush chain ip nat FLANNEL-POSTRTG"
        );
        assert_eq!(found(&listed(Vec::new(), Vec::new(), others())), None);
        assert!(found(&listed(Vec::new(), Vec::new(), Vec::new())).is_some());
    }
}
