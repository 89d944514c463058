//! Whether a desired table can be written at all, told before anything is sent to the kernel.

use ipnet::IpNet;
use thiserror::Error;

use crate::{Action, ChainKind, Family, Hook, Match, Rule, Table};

/// The longest comment nft writes or reads, in bytes.
pub const MAX_COMMENT: usize = 128;
/// The longest note beside a comment, in bytes: both fit into the 256 bytes of user data that a rule has.
pub const MAX_NOTE: usize = 64;
/// The longest name of a table or chain, in bytes (`NFT_NAME_MAXLEN` without the final NUL).
pub const MAX_NAME: usize = 255;

/// Why a table cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Invalid {
    /// A name that nft could not read back.
    #[error(
        "{what} {name:?}: the name must be 1 to {MAX_NAME} characters, letters, digits, '_', '-', '.' or '/', and start with a letter or '_'"
    )]
    Name {
        /// `table` or `chain`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A comment that nft could not read back.
    #[error(
        "comment {comment:?} on {what}: it must be at most {MAX_COMMENT} bytes without quotes, NUL or line breaks"
    )]
    Comment {
        /// What carries it.
        what: String,
        /// The comment.
        comment: String,
    },
    /// A rule that makes no sense in this table.
    #[error("rule `{rule}` in chain {chain} of table {table}: {reason}")]
    Rule {
        /// Family and name of the table.
        table: String,
        /// The chain.
        chain: String,
        /// The rule as nft would print it.
        rule: String,
        /// What is wrong.
        reason: String,
    },
    /// A base chain the kernel refuses.
    #[error("chain {chain} of table {table}: {reason}")]
    Base {
        /// Family and name of the table.
        table: String,
        /// The chain.
        chain: String,
        /// What is wrong.
        reason: &'static str,
    },
}

impl Table {
    /// Says the first thing that makes this table impossible to write.
    pub fn check(&self) -> Result<(), Invalid> {
        check_name("table", &self.name)?;
        check_comment(|| format!("table {}", self.key()), self.comment.as_deref())?;
        for (name, chain) in &self.chains {
            check_name("chain", name)?;
            check_comment(|| format!("chain {name} of table {}", self.key()), chain.comment.as_deref())?;
            if let Some(base) = &chain.base {
                let reason = match (base.kind, base.hook) {
                    (ChainKind::Nat, Hook::Forward) => Some("a nat chain cannot hook forward"),
                    (ChainKind::Route, hook) if hook != Hook::Output => {
                        Some("a route chain can only hook output")
                    }
                    (ChainKind::Nat | ChainKind::Route, _) if self.family == Family::Bridge => {
                        Some("a bridge table can only hold filter chains")
                    }
                    _ => None,
                };
                if let Some(reason) = reason {
                    return Err(Invalid::Base { table: self.key().to_string(), chain: name.clone(), reason });
                }
            }
            for rule in &chain.rules {
                check_comment(|| format!("a rule of chain {name}"), rule.comment.as_deref())?;
                self.check_rule(rule).map_err(|reason| Invalid::Rule {
                    table: self.key().to_string(),
                    chain: name.clone(),
                    rule: rule.text(self.family).to_string(),
                    reason,
                })?;
            }
        }
        Ok(())
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), String> {
        rule.check(self.family)?;
        match &rule.action {
            Action::Jump(to) | Action::Goto(to) => match self.chains.get(to) {
                None => Err(format!("there is no chain {to} in this table")),
                Some(chain) if chain.base.is_some() => {
                    Err(format!("chain {to} is hooked, it cannot be called"))
                }
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

impl Rule {
    /// Says what makes this rule impossible in a table of `family`, leaving aside what it jumps to.
    pub fn check(&self, family: Family) -> Result<(), String> {
        if let Some(note) = &self.note
            && (note.len() > MAX_NOTE || note.contains('\0'))
        {
            return Err(format!("the note {note:?} must be at most {MAX_NOTE} bytes without NUL"));
        }
        let fits = |v4: bool| match family {
            Family::Ip => v4,
            Family::Ip6 => !v4,
            Family::Inet | Family::Bridge => true,
        };
        // These two would read back as another value than was written, and be written again for ever.
        for pair in self.matches.windows(2) {
            if let [
                Match::L4 { proto },
                Match::SourcePort { proto: again, .. } | Match::DestinationPort { proto: again, .. },
            ] = pair
                && proto == again
            {
                return Err(format!("the test for {proto} is part of the port's, leave it out"));
            }
        }
        for m in &self.matches {
            match m {
                Match::Source { net, .. } | Match::Destination { net, .. } if net.trunc() != *net => {
                    return Err(format!("{net} has bits set beyond its prefix"));
                }
                Match::Source { net, .. } | Match::Destination { net, .. }
                    if !fits(matches!(net, IpNet::V4(_))) =>
                {
                    return Err(format!("{net} is of another address family than the table"));
                }
                Match::SourcePort { proto, .. } | Match::DestinationPort { proto, .. }
                    if !proto.has_ports() =>
                {
                    return Err(format!("{proto} has no ports"));
                }
                Match::Mark { value, mask } if value & !mask != 0 => {
                    return Err("the mark's value has bits outside its mask, it can never match".to_owned());
                }
                Match::InputLink(name)
                | Match::NotInputLink(name)
                | Match::OutputLink(name)
                | Match::NotOutputLink(name)
                    if name.is_empty()
                        || name == "*"
                        || name.len() > 15
                        || name.contains(['"', '\0', '/', ' ']) =>
                {
                    return Err(format!("{name:?} is no link name"));
                }
                Match::CtState(bits) if bits & !0x4f != 0 || *bits == 0 => {
                    return Err(format!("{bits:#x} is no set of connection states"));
                }
                Match::Opaque(what) => return Err(format!("{what} was observed and cannot be written")),
                _ => {}
            }
        }
        match &self.action {
            Action::DestinationNat { addr, .. } | Action::SourceNat { addr, .. } if !fits(addr.is_ipv4()) => {
                Err(format!("{addr} is of another address family than the table"))
            }
            Action::SetMark { value, mask } if value & !mask != 0 || *mask == 0 => {
                Err("the mark's value has bits outside its mask".to_owned())
            }
            Action::Opaque => Err("it was observed and cannot be written".to_owned()),
            _ => Ok(()),
        }
    }
}

fn check_name(what: &'static str, name: &str) -> Result<(), Invalid> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '\\'));
    if starts && rest && name.len() <= MAX_NAME {
        Ok(())
    } else {
        Err(Invalid::Name { what, name: name.to_owned() })
    }
}

fn check_comment(what: impl FnOnce() -> String, comment: Option<&str>) -> Result<(), Invalid> {
    match comment {
        Some(c) if c.len() > MAX_COMMENT || c.contains(['"', '\0', '\n']) => {
            Err(Invalid::Comment { what: what(), comment: c.to_owned() })
        }
        _ => Ok(()),
    }
}
