//! The chains of one table that were looked at, and what has to change in them.

use std::collections::BTreeMap;

use super::{Change, Rule, Table};

/// A rule as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its words. Where it is not understood whole, those that are.
    pub rule: Rule,
    /// The kernel's handle, where rules have one (nf_tables).
    pub handle: Option<u64>,
    /// Whether the words say everything. A rule that is not understood whole equals none that is wanted.
    pub is_whole: bool,
}

impl Found {
    /// Whether this is the wanted rule.
    pub fn is(&self, wanted: &Rule) -> bool {
        self.is_whole && self.rule == *wanted
    }
}

/// Where in a chain a rule belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before the others when it is made. One that is there already stays where it is.
    First,
    /// Behind the others when it is made. One that is there already stays where it is.
    Last,
}

/// Some chains of one table with all of their rules, as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    table: Table,
    /// `None`: looked for and not there.
    chains: BTreeMap<String, Option<Vec<Found>>>,
    is_whole: bool,
}

impl Observed {
    /// Chains that were looked for one by one; `None` for those that do not exist.
    pub fn of(table: Table, chains: impl IntoIterator<Item = (String, Option<Vec<Found>>)>) -> Self {
        Self { table, chains: chains.into_iter().collect(), is_whole: false }
    }

    /// The whole table.
    pub fn whole(table: Table, chains: BTreeMap<String, Vec<Found>>) -> Self {
        let chains = chains.into_iter().map(|(name, rules)| (name, Some(rules))).collect();
        Self { table, chains, is_whole: true }
    }

    /// A table that nothing was ever written to: it has its own chains, and they are empty.
    pub fn untouched(table: Table) -> Self {
        Self::whole(table, BTreeMap::new())
    }

    /// The table.
    pub fn table(&self) -> Table {
        self.table
    }

    /// Whether there is such a chain. A table's own chains are always there: iptables makes them when it needs them.
    pub fn has_chain(&self, chain: &str) -> bool {
        self.table.has_builtin(chain) || self.chains.get(chain).is_some_and(Option::is_some)
    }

    /// The chain's rules in order; none for a chain that is not there.
    ///
    /// A chain that was not looked at has no rules here, so a plan has to name what it looks at.
    pub fn rules(&self, chain: &str) -> &[Found] {
        debug_assert!(self.is_whole || self.chains.contains_key(chain), "chain {chain} was not looked at");
        match self.chains.get(chain) {
            Some(Some(rules)) => rules,
            _ => &[],
        }
    }

    /// Every chain that was looked at and is there, by name.
    pub fn chains(&self) -> impl Iterator<Item = (&str, &[Found])> {
        self.chains.iter().filter_map(|(name, rules)| Some((name.as_str(), rules.as_deref()?)))
    }

    /// Whether the chain has this very rule.
    pub fn has_rule(&self, chain: &str, rule: &Rule) -> bool {
        self.rules(chain).iter().any(|found| found.is(rule))
    }

    /// Makes the chain unless it is there.
    pub fn with_chain(&self, chain: &str) -> Option<Change> {
        (!self.has_chain(chain)).then(|| Change::NewChain(chain.to_owned()))
    }

    /// Makes a chain of ours hold exactly these rules: nothing when it does, otherwise it is filled anew.
    pub fn with_content(&self, chain: &str, rules: &[Rule]) -> Vec<Change> {
        let present = self.rules(chain);
        let is_right = present.len() == rules.len() && present.iter().zip(rules).all(|(p, r)| p.is(r));
        if is_right && self.has_chain(chain) {
            return Vec::new();
        }
        let mut changes: Vec<Change> = self.with_chain(chain).into_iter().collect();
        if !present.is_empty() {
            changes.push(Change::Flush(chain.to_owned()));
        }
        changes
            .extend(rules.iter().map(|rule| Change::Append { chain: chain.to_owned(), rule: rule.clone() }));
        changes
    }

    /// Puts a rule into a chain that must have it once. Copies beyond the first go: two writers that both found it missing made them.
    pub fn with_rule(&self, chain: &str, rule: &Rule, place: Place) -> Vec<Change> {
        let mut copies = self.rules(chain).iter().filter(|found| found.is(rule));
        if copies.next().is_some() {
            return copies.map(|copy| delete(chain, copy)).collect();
        }
        let (chain, rule) = (chain.to_owned(), rule.clone());
        vec![match place {
            Place::First => Change::Insert { chain, rule },
            Place::Last => Change::Append { chain, rule },
        }]
    }

    /// Deletes the chain's rules that `is_unwanted` picks.
    pub fn without(&self, chain: &str, is_unwanted: impl Fn(&Found) -> bool) -> Vec<Change> {
        self.rules(chain)
            .iter()
            .filter(|found| is_unwanted(found))
            .map(|found| delete(chain, found))
            .collect()
    }

    /// Takes away a chain of ours with the rules of `from` that lead to it. Nothing when it is not there and nothing leads to it.
    pub fn without_chain(&self, chain: &str, from: &[&str]) -> Vec<Change> {
        let mut changes: Vec<Change> = from
            .iter()
            .flat_map(|from| self.without(from, |found| found.rule.target() == Some(chain)))
            .collect();
        if self.has_chain(chain) {
            if !self.rules(chain).is_empty() {
                changes.push(Change::Flush(chain.to_owned()));
            }
            changes.push(Change::DeleteChain(chain.to_owned()));
        }
        changes
    }
}

fn delete(chain: &str, found: &Found) -> Change {
    Change::Delete { chain: chain.to_owned(), found: found.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(target: &str) -> Rule {
        Rule::new(["-j", target])
    }

    fn found(handle: u64, target: &str) -> Found {
        Found { rule: rule(target), handle: Some(handle), is_whole: true }
    }

    fn observed(chains: &[(&str, Option<Vec<Found>>)]) -> Observed {
        Observed::of(Table::Nat, chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.clone())))
    }

    fn texts(changes: Vec<Change>) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_right_is_not_touched() {
        let observed = observed(&[
            ("CNI-a", Some(vec![found(1, "ACCEPT"), found(2, "DROP")])),
            ("POSTROUTING", Some(vec![found(3, "CNI-a"), found(4, "OTHER"), found(5, "CNI-a")])),
        ]);
        assert!(observed.with_content("CNI-a", &[rule("ACCEPT"), rule("DROP")]).is_empty());
        assert_eq!(texts(observed.with_content("CNI-a", &[rule("DROP")])), ["-F CNI-a", "-A CNI-a -j DROP"]);
        // The second copy goes, the first stays.
        let changes = observed.with_rule("POSTROUTING", &rule("CNI-a"), Place::Last);
        assert_eq!(changes, [delete("POSTROUTING", &found(5, "CNI-a"))]);
        assert!(observed.with_rule("POSTROUTING", &rule("OTHER"), Place::First).is_empty());
        assert_eq!(
            texts(observed.with_rule("POSTROUTING", &rule("NEW"), Place::First)),
            ["-I POSTROUTING 1 -j NEW"]
        );
        let mut unclear = found(6, "CNI-a");
        unclear.is_whole = false;
        assert!(!unclear.is(&rule("CNI-a")));
    }

    #[test]
    fn a_chain_goes_with_the_ways_to_it() {
        let observed = observed(&[
            ("CNI-a", Some(vec![found(1, "ACCEPT")])),
            ("CNI-b", None),
            ("POSTROUTING", Some(vec![found(3, "CNI-a"), found(4, "CNI-b")])),
        ]);
        assert_eq!(
            texts(observed.without_chain("CNI-a", &["POSTROUTING"])),
            ["-D POSTROUTING -j CNI-a", "-F CNI-a", "-X CNI-a"]
        );
        assert_eq!(texts(observed.without_chain("CNI-b", &["POSTROUTING"])), ["-D POSTROUTING -j CNI-b"]);
        assert_eq!(texts(observed.with_content("CNI-b", &[])), ["-N CNI-b"]);
    }
}
