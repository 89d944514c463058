//! The difference between two tables as edits, and the words in which an edit is printed.

use std::collections::BTreeMap;
use std::fmt;

use crate::text::BaseText;
use crate::{Base, Chain, Family, Rule, Table};

/// What names a table: unique per network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Which packets it sees.
    pub family: Family,
    /// Unique within the family.
    pub name: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A table as read from the kernel: its value, and the handle of every rule so that single rules can be named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The value.
    pub table: Table,
    /// Per chain, the kernel's handle of each rule, in the order of [`Chain::rules`].
    pub handles: BTreeMap<String, Vec<u64>>,
}

/// One edit inside a transaction. Prints as the nft command that does the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Create the table, or wake it up if it is dormant; an existing table keeps its comment.
    AddTable {
        /// Which table.
        table: TableName,
        /// Set at creation only.
        comment: Option<String>,
    },
    /// Delete the table and all it holds. It must exist.
    DeleteTable(TableName),
    /// Create the chain, or set the policy of an existing one.
    AddChain {
        /// In which table.
        table: TableName,
        /// Its name.
        chain: String,
        /// Where it is hooked in.
        base: Option<Base>,
        /// Set at creation only.
        comment: Option<String>,
    },
    /// Delete every rule of the chain.
    FlushChain {
        /// In which table.
        table: TableName,
        /// Its name.
        chain: String,
    },
    /// Delete the chain. It must be empty and nothing may jump to it by then.
    DeleteChain {
        /// In which table.
        table: TableName,
        /// Its name.
        chain: String,
    },
    /// Put a rule into a chain: before the rule with handle `before`, or at the end.
    AddRule {
        /// In which table.
        table: TableName,
        /// In which chain.
        chain: String,
        /// The kernel's handle of the rule that shall follow, `None` for the end.
        before: Option<u64>,
        /// The rule.
        rule: Rule,
    },
    /// Delete one rule.
    DeleteRule {
        /// In which table.
        table: TableName,
        /// In which chain.
        chain: String,
        /// The kernel's handle of the rule.
        handle: u64,
    },
}

impl Change {
    /// The table the edit belongs to.
    pub fn table(&self) -> &TableName {
        match self {
            Self::AddTable { table, .. }
            | Self::DeleteTable(table)
            | Self::AddChain { table, .. }
            | Self::FlushChain { table, .. }
            | Self::DeleteChain { table, .. }
            | Self::AddRule { table, .. }
            | Self::DeleteRule { table, .. } => table,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { table, comment: None } => write!(f, "add table {table}"),
            Self::AddTable { table, comment: Some(comment) } => {
                write!(f, "add table {table} {{ comment \"{comment}\"; }}")
            }
            Self::DeleteTable(table) => write!(f, "delete table {table}"),
            Self::AddChain { table, chain, base, comment } => {
                write!(f, "add chain {table} {chain}")?;
                if base.is_none() && comment.is_none() {
                    return Ok(());
                }
                f.write_str(" {")?;
                if let Some(base) = base {
                    write!(f, " {}", BaseText { base, family: table.family })?;
                }
                if let Some(comment) = comment {
                    write!(f, " comment \"{comment}\";")?;
                }
                f.write_str(" }")
            }
            Self::FlushChain { table, chain } => write!(f, "flush chain {table} {chain}"),
            Self::DeleteChain { table, chain } => write!(f, "delete chain {table} {chain}"),
            Self::AddRule { table, chain, before: None, rule } => {
                write!(f, "add rule {table} {chain} {}", rule.text(table.family))
            }
            Self::AddRule { table, chain, before: Some(handle), rule } => {
                write!(f, "insert rule {table} {chain} handle {handle} {}", rule.text(table.family))
            }
            Self::DeleteRule { table, chain, handle } => {
                write!(f, "delete rule {table} {chain} handle {handle}")
            }
        }
    }
}

/// The edits that turn the observed table into the desired one, to be applied as one transaction; empty when they
/// are equal already. Rules that are right and in the right order are left alone, counters included.
///
/// What cannot be edited in place (a comment of the table or of a chain, the hook of a chain) is replaced by writing the
/// whole table anew in the same transaction, so no packet meets a table that is half there.
pub fn changes(observed: Option<&Listed>, desired: &Table) -> Vec<Change> {
    let Some(observed) = observed else { return creation(desired) };
    if observed.table == *desired {
        return Vec::new();
    }
    if needs_replacement(&observed.table, desired) {
        let mut all = vec![Change::DeleteTable(desired.key())];
        all.extend(creation(desired));
        return all;
    }
    edits(observed, desired)
}

fn needs_replacement(observed: &Table, desired: &Table) -> bool {
    observed.key() != desired.key()
        || observed.comment != desired.comment
        || desired.dormant
        || desired.chains.iter().any(|(name, want)| {
            observed.chains.get(name).is_some_and(|have| {
                have.comment != want.comment
                    || match (&have.base, &want.base) {
                        (Some(have), Some(want)) => Base { policy: want.policy, ..*have } != *want,
                        (have, want) => have != want,
                    }
            })
        })
}

fn creation(desired: &Table) -> Vec<Change> {
    let table = desired.key();
    let mut all = vec![Change::AddTable { table: table.clone(), comment: desired.comment.clone() }];
    for (name, chain) in &desired.chains {
        all.push(add_chain(&table, name, chain));
    }
    for (name, chain) in &desired.chains {
        all.extend(chain.rules.iter().map(|rule| add_rule(&table, name, None, rule)));
    }
    all
}

fn add_chain(table: &TableName, name: &str, chain: &Chain) -> Change {
    Change::AddChain {
        table: table.clone(),
        chain: name.to_owned(),
        base: chain.base,
        comment: chain.comment.clone(),
    }
}

fn add_rule(table: &TableName, chain: &str, before: Option<u64>, rule: &Rule) -> Change {
    Change::AddRule { table: table.clone(), chain: chain.to_owned(), before, rule: rule.clone() }
}

/// Order matters to the kernel: chains exist before rules jump to them, and go after the last jump went.
fn edits(observed: &Listed, desired: &Table) -> Vec<Change> {
    let table = desired.key();
    let mut all = Vec::new();
    if observed.table.dormant {
        all.push(Change::AddTable { table: table.clone(), comment: desired.comment.clone() });
    }
    for (name, want) in &desired.chains {
        if observed.table.chains.get(name).is_none_or(|have| have.base != want.base) {
            all.push(add_chain(&table, name, want));
        }
    }
    let empty = Chain::default();
    for (name, want) in &desired.chains {
        let have = observed.table.chains.get(name).unwrap_or(&empty);
        let handles = observed.handles.get(name).map_or(&[][..], Vec::as_slice);
        rule_edits(&mut all, &table, name, &have.rules, handles, &want.rules);
    }
    let surplus = || observed.table.chains.keys().filter(|name| !desired.chains.contains_key(*name));
    all.extend(surplus().map(|chain| Change::FlushChain { table: table.clone(), chain: chain.clone() }));
    all.extend(surplus().map(|chain| Change::DeleteChain { table: table.clone(), chain: chain.clone() }));
    all
}

/// Above this many differing rules on either side the middle is rewritten instead of searching for the longest
/// common row, whose cost is the product of both.
const SEARCH_LIMIT: usize = 512;

fn rule_edits(
    all: &mut Vec<Change>,
    table: &TableName,
    chain: &str,
    have: &[Rule],
    handles: &[u64],
    want: &[Rule],
) {
    let front = have.iter().zip(want).take_while(|(h, w)| h == w).count();
    let (have, handles) = (have.get(front..).unwrap_or(&[]), handles.get(front..).unwrap_or(&[]));
    let want = want.get(front..).unwrap_or(&[]);
    let back = have.iter().rev().zip(want.iter().rev()).take_while(|(h, w)| h == w).count();
    let after = handles.get(have.len() - back).copied();
    let have = have.get(..have.len() - back).unwrap_or(&[]);
    let want = want.get(..want.len() - back).unwrap_or(&[]);
    let kept = if have.len() > SEARCH_LIMIT || want.len() > SEARCH_LIMIT {
        Vec::new()
    } else {
        longest_common(have, want)
    };

    let mut anchors = kept.iter().copied().peekable();
    let mut next = 0;
    for (i, handle) in handles.iter().take(have.len()).enumerate() {
        if let Some((_, w)) = anchors.next_if(|(h, _)| *h == i) {
            let missing = want.get(next..w).unwrap_or(&[]);
            all.extend(missing.iter().map(|rule| add_rule(table, chain, Some(*handle), rule)));
            next = w + 1;
        } else {
            all.push(Change::DeleteRule { table: table.clone(), chain: chain.to_owned(), handle: *handle });
        }
    }
    all.extend(want.get(next..).unwrap_or(&[]).iter().map(|rule| add_rule(table, chain, after, rule)));
}

/// Index pairs of a longest row of rules that both sides have in this order.
fn longest_common(have: &[Rule], want: &[Rule]) -> Vec<(usize, usize)> {
    let width = want.len() + 1;
    let mut length = vec![0_u16; (have.len() + 1) * width];
    let at = |length: &[u16], h: usize, w: usize| length.get(h * width + w).copied().unwrap_or(0);
    for (h, a) in have.iter().enumerate().rev() {
        for (w, b) in want.iter().enumerate().rev() {
            let best = if a == b {
                at(&length, h + 1, w + 1) + 1
            } else {
                at(&length, h + 1, w).max(at(&length, h, w + 1))
            };
            if let Some(cell) = length.get_mut(h * width + w) {
                *cell = best;
            }
        }
    }
    let (mut h, mut w, mut pairs) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (have.get(h), want.get(w)) {
        if a == b {
            pairs.push((h, w));
            h += 1;
            w += 1;
        } else if at(&length, h + 1, w) >= at(&length, h, w + 1) {
            h += 1;
        } else {
            w += 1;
        }
    }
    pairs
}
