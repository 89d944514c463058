//! Rules as `iptables` speaks of them, for the tables that it shares with kube-proxy, the Go plugins and operators.
//!
//! A [`Rule`] is its row of words, in the order and spelling in which `iptables-save` prints them, so that a rule that was wanted and
//! the same rule as read back are equal. A [`Change`] edits one chain; a row of changes is the input of one `iptables-restore --noflush`
//! ([`restore_input`]). [`Observed`] holds the chains that were looked at, and says which changes are needed.
//!
//! Invariant: a change names single rules or a chain of ours, never a table, and a chain that exists is never declared again:
//! `--noflush` empties every chain that its input declares.

mod observed;
mod rule;
mod save;

use std::fmt;

pub use observed::{Found, Observed, Place};
pub use rule::{Invalid, Rule};
pub use save::{Malformed, parse_save};

/// A table of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Address translation.
    Nat,
    /// Accepting and dropping.
    Filter,
}

impl Table {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// Whether it comes with this chain.
    pub fn has_builtin(self, chain: &str) -> bool {
        let own: &[&str] = match self {
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
            Self::Filter => &["INPUT", "FORWARD", "OUTPUT"],
        };
        own.contains(&chain)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One edit of a table. Prints as the line that `iptables-restore` reads for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Make a chain; refused by iptables when there is one.
    NewChain(String),
    /// Put a rule before all others of the chain.
    Insert {
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Put a rule behind all others of the chain.
    Append {
        /// The chain.
        chain: String,
        /// The rule.
        rule: Rule,
    },
    /// Delete one rule that was found.
    Delete {
        /// The chain.
        chain: String,
        /// The rule, with its handle where there are handles.
        found: Found,
    },
    /// Delete every rule of a chain of ours.
    Flush(String),
    /// Delete an empty chain of ours that nothing leads to.
    DeleteChain(String),
}

impl Change {
    /// The chain that it edits.
    pub fn chain(&self) -> &str {
        match self {
            Self::NewChain(chain)
            | Self::Insert { chain, .. }
            | Self::Append { chain, .. }
            | Self::Delete { chain, .. }
            | Self::Flush(chain)
            | Self::DeleteChain(chain) => chain,
        }
    }

    /// Whether it only takes away.
    pub fn is_removal(&self) -> bool {
        matches!(self, Self::Delete { .. } | Self::Flush(_) | Self::DeleteChain(_))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewChain(chain) => write!(f, "-N {chain}"),
            Self::Insert { chain, rule } => write!(f, "-I {chain} 1 {rule}"),
            Self::Append { chain, rule } => write!(f, "-A {chain} {rule}"),
            Self::Delete { chain, found } => write!(f, "-D {chain} {}", found.rule),
            Self::Flush(chain) => write!(f, "-F {chain}"),
            Self::DeleteChain(chain) => write!(f, "-X {chain}"),
        }
    }
}

/// The input for `iptables-restore --noflush` that makes these changes, all or none.
///
/// # Errors
/// A word or a name that iptables would not read back as it is.
pub fn restore_input(table: Table, changes: &[Change]) -> Result<String, Invalid> {
    let mut input = format!("*{table}\n");
    for change in changes {
        rule::check_chain(change.chain())?;
        match change {
            Change::Insert { rule, .. } | Change::Append { rule, .. } => rule.check()?,
            Change::Delete { found, .. } => found.rule.check()?,
            Change::NewChain(_) | Change::Flush(_) | Change::DeleteChain(_) => {}
        }
        input.push_str(&change.to_string());
        input.push('\n');
    }
    input.push_str("COMMIT\n");
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_changes_is_one_input() {
        let rule =
            Rule::new(["-s", "10.1.0.5/32", "-m", "comment", "--comment", r#"name: "n""#, "-j", "CNI-a"]);
        let found = Found { rule: Rule::new(["-j", "DROP"]), handle: None, is_whole: true };
        let changes = [
            Change::NewChain("CNI-a".to_owned()),
            Change::Insert { chain: "FORWARD".to_owned(), rule: rule.clone() },
            Change::Append { chain: "POSTROUTING".to_owned(), rule },
            Change::Delete { chain: "FORWARD".to_owned(), found },
            Change::Flush("CNI-b".to_owned()),
            Change::DeleteChain("CNI-b".to_owned()),
        ];
        let expected = r#"*nat
-N CNI-a
-I FORWARD 1 -s 10.1.0.5/32 -m comment --comment "name: \"n\"" -j CNI-a
-A POSTROUTING -s 10.1.0.5/32 -m comment --comment "name: \"n\"" -j CNI-a
-D FORWARD -j DROP
-F CNI-b
-X CNI-b
COMMIT
"#;
        assert_eq!(restore_input(Table::Nat, &changes).unwrap(), expected);
    }

    #[test]
    fn nothing_can_break_out_of_its_line() {
        for word in ["a\nCOMMIT", "a\0b", ""] {
            let rule = Rule::new(["-m", "comment", "--comment", word, "-j", "DROP"]);
            let change = Change::Append { chain: "FORWARD".to_owned(), rule };
            assert!(restore_input(Table::Filter, &[change]).is_err(), "{word:?}");
        }
        for chain in ["", "a b", "-x", "a\nb", &"x".repeat(29), "!a"] {
            let change = Change::NewChain(chain.to_owned());
            assert!(restore_input(Table::Filter, &[change]).is_err(), "{chain:?}");
        }
    }
}
