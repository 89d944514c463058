//! Single chains and rules, for tables that are too large to be read on a pod's way.
//!
//! Others' rules in such a table are counted in thousands. Chains are looked up by name, and of a chain's rules only those
//! are read whole whose comment is asked for.

use loden_firewall::{Base, Rule, TableName};

use super::uapi::*;
use super::{NftSocket, decode, encode};
use crate::wire::Message;
use crate::{Error, Result};

/// A rule as listed, with the handle by which it can be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRule {
    /// Unique within its table.
    pub handle: u64,
    /// What it says.
    pub rule: Rule,
}

/// A chain as found by name, without its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundChain {
    /// There is none, or no such table.
    Absent,
    /// Reached by jumps only.
    Regular,
    /// Hooked into the packet path like this.
    Hooked(Base),
    /// Hooked in a way this vocabulary has no words for.
    Foreign,
}

impl NftSocket {
    /// Looks chains up by name, in one round trip; the answers are in the order of the questions.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn find_chains(&mut self, wanted: &[(&TableName, &str)]) -> Result<Vec<FoundChain>> {
        let operation = match wanted {
            [] => return Ok(Vec::new()),
            [(table, chain)] => format!("look up chain {table} {chain}"),
            [(table, chain), ..] => {
                format!("look up chain {table} {chain} and {} more", wanted.len() - 1)
            }
        };
        let requests: Vec<Message> = wanted
            .iter()
            .map(|(table, chain)| {
                let mut request = Message::new(GETCHAIN, 0, &encode::header(encode::family(table.family), 0));
                request.text(NFTA_CHAIN_TABLE, &table.name);
                request.text(NFTA_CHAIN_NAME, chain);
                request
            })
            .collect();
        let answers = self.socket.exchange(&operation, &requests)?;
        answers
            .into_iter()
            .map(|answer| match answer.outcome {
                Some(Err(refusal)) if refusal.errno == libc::ENOENT => Ok(FoundChain::Absent),
                Some(Err(refusal)) => Err(Error::Refused { operation: operation.clone(), refusal }),
                _ => {
                    let row = answer.replies.iter().find_map(|reply| decode::chain(&reply.payload));
                    let row = row.ok_or_else(|| Error::malformed(operation.clone(), "a chain is missing"))?;
                    Ok(match row.base {
                        Ok(None) => FoundChain::Regular,
                        Ok(Some(base)) => FoundChain::Hooked(base),
                        Err(_) => FoundChain::Foreign,
                    })
                }
            })
            .collect()
    }

    /// The rules of one chain whose comment is wanted, in order, from a complete listing. A chain that is not there has
    /// none.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn rules_where(
        &mut self,
        table: &TableName,
        chain: &str,
        wanted: impl Fn(Option<&str>) -> bool,
    ) -> Result<Vec<ListedRule>> {
        let operation = format!("list the rules of chain {table} {chain}");
        let mut request = Message::new(GETRULE, 0, &encode::header(encode::family(table.family), 0));
        request.text(NFTA_RULE_TABLE, &table.name);
        request.text(NFTA_RULE_CHAIN, chain);
        let replies = match self.socket.dump(&operation, &request) {
            Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(Vec::new()),
            outcome => outcome?,
        };
        Ok(replies
            .iter()
            .filter(|reply| reply.kind == NEWRULE && wanted(decode::rule_comment(&reply.payload).as_deref()))
            .filter_map(|reply| decode::rule(&reply.payload, table))
            // A kernel that cannot filter by chain lists the whole table.
            .filter(|row| row.chain == chain)
            .map(|row| ListedRule { handle: row.handle, rule: row.rule })
            .collect())
    }
}
