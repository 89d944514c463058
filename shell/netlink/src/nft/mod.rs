//! nf_tables over nfnetlink: read tables as values, change them in transactions.
//!
//! Invariants: a table is read whole, from one generation of the rule set, or not at all; a row of changes takes
//! effect as one transaction or has no effect. Were a table read across a change, a rule could be counted twice or missed, and
//! the plan made from it would delete somebody else's rule by a handle that has moved on.

mod decode;
mod encode;
mod expressions;
mod lookup;
mod uapi;
mod xtables;

use std::collections::BTreeMap;

use loden_firewall::iptables::Found;
use loden_firewall::{Chain, Match, Rule, Table};
pub use loden_firewall::{Change, Listed, TableName, changes};
pub use lookup::{FoundChain, ListedRule};

use self::uapi::*;
use crate::socket::{Assembly, NetlinkSocket, parsed};
use crate::wire::{F_ACK, F_REQUEST, Message};
use crate::{Error, NetNs, Refusal, Result};

/// How often a read or an edit is begun again because the rule set changed meanwhile.
const ATTEMPTS: u32 = 12;

/// A conversation with nf_tables in one network namespace.
#[derive(Debug)]
pub struct NftSocket {
    socket: NetlinkSocket,
}

impl NftSocket {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the system gives no socket, for instance because the kernel lacks nfnetlink.
    pub fn open() -> Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(libc::NETLINK_NETFILTER, "netfilter", None)? })
    }

    /// As [`NftSocket::open`]; `None` when this kernel has no nf_tables.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn open_if_supported() -> Result<Option<Self>> {
        match Self::open() {
            Ok(mut socket) => Ok(socket.is_supported()?.then_some(socket)),
            Err(e) if e.errno() == Some(libc::EPROTONOSUPPORT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens a socket in another namespace; the caller stays where it is.
    ///
    /// # Errors
    /// As [`NftSocket::open`], or when the namespace cannot be entered.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        Ok(Self { socket: NetlinkSocket::open(libc::NETLINK_NETFILTER, "netfilter", Some(netns))? })
    }

    /// The tables there are, of the families that have a word here.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn tables(&mut self) -> Result<Vec<TableName>> {
        let operation = "list nf_tables tables";
        let request = Message::new(GETTABLE, 0, &encode::header(0, 0));
        let replies = self.socket.dump(operation, &request).map_err(|e| lacking(operation, e))?;
        Ok(parsed(&replies, NEWTABLE, decode::table).into_iter().map(|row| row.key).collect())
    }

    /// Whether the table has this chain; cheaper than reading the table.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn has_chain(&mut self, table: &TableName, chain: &str) -> Result<bool> {
        let mut request = Message::new(GETCHAIN, 0, &encode::header(encode::family(table.family), 0));
        request.text(NFTA_CHAIN_TABLE, &table.name);
        request.text(NFTA_CHAIN_NAME, chain);
        match self.socket.one(&format!("look up chain {table} {chain}"), &request) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The rules of one chain of iptables', in its words, if the chain exists. Only this chain is read, whatever else is in the
    /// table.
    ///
    /// # Errors
    /// When it cannot be read whole.
    pub fn iptables_chain(&mut self, table: &TableName, chain: &str) -> Result<Option<Vec<Found>>> {
        if !self.has_chain(table, chain)? {
            return Ok(None);
        }
        let mut request = Message::new(GETRULE, 0, &encode::header(encode::family(table.family), 0));
        request.text(NFTA_RULE_TABLE, &table.name);
        request.text(NFTA_RULE_CHAIN, chain);
        match self.socket.dump(&format!("read chain {table} {chain}"), &request) {
            Ok(rules) => {
                Ok(Some(parsed(&rules, NEWRULE, |payload| decode::iptables_rule(payload, table, chain))))
            }
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The chains of one table by name. Empty when there is no such table.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn chain_names(&mut self, table: &TableName) -> Result<Vec<String>> {
        let request = Message::new(GETCHAIN, 0, &encode::header(encode::family(table.family), 0));
        let rows = self.socket.dump(&format!("list chains of table {table}"), &request)?;
        let rows = parsed(&rows, NEWCHAIN, decode::chain);
        Ok(rows.into_iter().filter(|row| row.table == *table).map(|row| row.name).collect())
    }

    /// Whether this kernel has nf_tables.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub fn is_supported(&mut self) -> Result<bool> {
        match self.generation("ask for nf_tables") {
            Ok(_) => Ok(true),
            Err(Error::MissingFeature { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// One table with the handles of its rules, if it exists.
    ///
    /// # Errors
    /// When it cannot be read whole.
    pub fn table(&mut self, name: &TableName) -> Result<Option<Listed>> {
        Ok(self.table_at_generation(name)?.0)
    }

    fn table_at_generation(&mut self, name: &TableName) -> Result<(Option<Listed>, u32)> {
        let operation = format!("read table {name}");
        let mut before = self.generation(&operation)?;
        for _ in 0..ATTEMPTS {
            let listed = self.read_table(&operation, name)?;
            let after = self.generation(&operation)?;
            if before == after {
                return Ok((listed, after));
            }
            before = after;
        }
        Err(Error::Interrupted { operation, attempts: ATTEMPTS })
    }

    fn generation(&mut self, operation: &str) -> Result<u32> {
        let replies = self
            .socket
            .one(operation, &Message::new(GETGEN, 0, &encode::header(0, 0)))
            .map_err(|e| lacking(operation, e))?;
        parsed(&replies, NEWGEN, decode::generation)
            .into_iter()
            .next()
            .ok_or_else(|| Error::malformed(operation, "it names no generation"))
    }

    fn read_table(&mut self, operation: &str, name: &TableName) -> Result<Option<Listed>> {
        let family = encode::family(name.family);
        let mut request = Message::new(GETTABLE, 0, &encode::header(family, 0));
        request.text(NFTA_TABLE_NAME, &name.name);
        let found = match self.socket.one(operation, &request) {
            Ok(replies) => parsed(&replies, NEWTABLE, decode::table).into_iter().find(|row| row.key == *name),
            Err(e) if e.errno() == Some(libc::ENOENT) => None,
            Err(e) => return Err(e),
        };
        let Some(row) = found else { return Ok(None) };
        let mut table = Table::new(name.family, name.name.clone());
        table.comment = row.comment;
        table.dormant = row.dormant;

        let chains = self.socket.dump(operation, &Message::new(GETCHAIN, 0, &encode::header(family, 0)))?;
        for row in parsed(&chains, NEWCHAIN, decode::chain).into_iter().filter(|row| row.table == *name) {
            let mut chain = Chain { base: None, comment: row.comment, rules: Vec::new() };
            match row.base {
                Ok(base) => chain.base = base,
                // Cannot be equal to anything desired, so the table will be written anew.
                Err(what) => {
                    chain.comment = Some(format!("<{what}>"));
                }
            }
            table.chains.insert(row.name, chain);
        }

        // Cannot be equal to anything desired either: no table of ours has any of these.
        for (get, new, what) in
            [(GETSET, NEWSET, "set"), (GETOBJ, NEWOBJ, "object"), (GETFLOWTABLE, NEWFLOWTABLE, "flowtable")]
        {
            let rows = self.socket.dump(operation, &Message::new(get, 0, &encode::header(family, 0)))?;
            let named = parsed(&rows, new, |payload| decode::named(payload, name, get == GETSET));
            if let Some(first) = named.first() {
                table.comment = Some(format!("<{what} {first}>"));
            }
        }

        let mut request = Message::new(GETRULE, 0, &encode::header(family, 0));
        request.text(NFTA_RULE_TABLE, &name.name);
        let rules = match self.socket.dump(operation, &request) {
            Ok(rules) => rules,
            Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut handles: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for row in parsed(&rules, NEWRULE, |payload| decode::rule(payload, name)) {
            // A rule without its chain was added after the chains were listed; the generation will tell.
            if let Some(chain) = table.chains.get_mut(&row.chain) {
                chain.rules.push(row.rule);
                handles.entry(row.chain).or_default().push(row.handle);
            }
        }
        Ok(Some(Listed { table, handles }))
    }

    /// Applies changes as one transaction: all of them, or none.
    ///
    /// # Errors
    /// The first change the kernel refused, with its explanation; nothing has changed then.
    pub fn apply(&mut self, changes: &[Change]) -> Result<()> {
        self.transact(changes, None)
    }

    /// Makes the table what `desired` says, touching nothing that is right already, and says what it took: nothing
    /// when it was right. Read and write are one: if the rule set changed between them, both happen again.
    ///
    /// # Errors
    /// When the table cannot be written, cannot be read whole, or the kernel refuses; nothing has changed then.
    pub fn set_table(&mut self, desired: &Table) -> Result<Vec<Change>> {
        desired.check()?;
        let name = desired.key();
        for _ in 0..ATTEMPTS {
            let (observed, generation) = self.table_at_generation(&name)?;
            let changes = changes(observed.as_ref(), desired);
            match self.transact(&changes, Some(generation)) {
                Err(e) if e.errno() == Some(libc::ERESTART) => {}
                Err(e) => return Err(e),
                Ok(()) => return Ok(changes),
            }
        }
        Err(Error::Interrupted { operation: format!("write table {name}"), attempts: ATTEMPTS })
    }

    /// Deletes a table and all it holds; says whether there was one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn delete_table(&mut self, name: &TableName) -> Result<bool> {
        match self.apply(&[Change::DeleteTable(name.clone())]) {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn transact(&mut self, changes: &[Change], generation: Option<u32>) -> Result<()> {
        let Some(last) = changes.len().checked_sub(1) else { return Ok(()) };
        for change in changes {
            if let Change::AddRule { table, chain, rule, .. } = change {
                rule.check(table.family).map_err(|reason| loden_firewall::Invalid::Rule {
                    table: table.to_string(),
                    chain: chain.clone(),
                    rule: rule.text(table.family).to_string(),
                    reason,
                })?;
            }
        }
        let operation = match changes {
            [only] => only.to_string(),
            [first, ..] => format!("change table {} ({} edits)", first.table(), changes.len()),
            [] => return Ok(()),
        };

        let mut begin =
            Message::new(NFNL_MSG_BATCH_BEGIN, F_REQUEST, &encode::header(0, NFNL_SUBSYS_NFTABLES));
        if let Some(generation) = generation {
            begin.be32(NFNL_BATCH_GENID, generation);
        }
        let end = Message::new(NFNL_MSG_BATCH_END, F_REQUEST, &encode::header(0, NFNL_SUBSYS_NFTABLES));
        let mut encoded: Vec<_> = changes.iter().map(encode::change).collect();
        for (i, one) in encoded.iter_mut().enumerate() {
            // One acknowledgement, on the last edit, speaks for the whole transaction.
            one.message.flags |= if i == last { F_REQUEST | F_ACK } else { F_REQUEST };
        }

        let mut bytes = Vec::new();
        let mut sequences = Vec::with_capacity(changes.len() + 2);
        let messages =
            std::iter::once(&begin).chain(encoded.iter().map(|e| &e.message)).chain(std::iter::once(&end));
        for message in messages {
            let sequence = self.socket.next_sequence();
            sequences.push(sequence);
            bytes.extend(message.finish(sequence));
        }
        if bytes.len() > 64 * 1024 {
            self.socket.widen_send(&operation, bytes.len().saturating_mul(2))?;
            self.socket.widen_receive(&operation, changes.len().saturating_mul(1024).max(256 * 1024))?;
        }
        self.socket.send(&operation, &bytes)?;

        // The kernel has worked through the batch and queued every answer by the time the send returns.
        let mut assembly = Assembly::new(sequences.into_iter());
        while self.socket.receive(&operation, libc::MSG_DONTWAIT)?.is_some() {
            assembly
                .feed(self.socket.datagram())
                .map_err(|detail| Error::malformed(operation.clone(), detail))?;
        }
        let outcomes: Vec<_> = assembly.answers.into_iter().map(|answer| answer.outcome).collect();
        for (i, outcome) in outcomes.iter().enumerate() {
            if let Some(Err(refusal)) = outcome {
                let at = i.checked_sub(1);
                let change = at.and_then(|at| changes.get(at));
                let spans = at.and_then(|at| encoded.get(at)).map_or(&[][..], |e| e.expressions.as_slice());
                return Err(explain(&operation, change, spans, refusal.clone()));
            }
        }
        match outcomes.get(last + 1) {
            Some(Some(Ok(()))) => Ok(()),
            _ => Err(Error::NoAnswer { operation }),
        }
    }
}

/// A kernel without nf_tables does not know the subsystem.
fn lacking(operation: &str, error: Error) -> Error {
    match error {
        Error::Refused { refusal, .. } if matches!(refusal.errno, libc::EINVAL | libc::EOPNOTSUPP) => {
            no_nf_tables(operation, refusal)
        }
        other => other,
    }
}

fn no_nf_tables(operation: &str, refusal: Refusal) -> Error {
    Error::MissingFeature {
        operation: operation.to_owned(),
        feature: "nf_tables".to_owned(),
        advice: "load the module nf_tables (modprobe nf_tables) or use a kernel with CONFIG_NF_TABLES"
            .to_owned(),
        refusal,
    }
}

/// Tells a refusal that means "this kernel cannot" from one that means "not like this".
fn explain(
    operation: &str,
    change: Option<&Change>,
    expressions: &[(usize, &'static str)],
    refusal: Refusal,
) -> Error {
    let Some(change) = change else {
        return match refusal.errno {
            libc::EOPNOTSUPP | libc::EINVAL => no_nf_tables(operation, refusal),
            _ => Error::Refused { operation: operation.to_owned(), refusal },
        };
    };
    let operation = change.to_string();
    if !matches!(refusal.errno, libc::ENOENT | libc::EOPNOTSUPP) {
        return Error::Refused { operation, refusal };
    }
    match change {
        Change::AddTable { table, .. } if refusal.errno == libc::EOPNOTSUPP => Error::MissingFeature {
            feature: format!("nf_tables for family {}", table.family),
            advice: "load the module nf_tables or use a kernel with that family configured".to_owned(),
            operation,
            refusal,
        },
        Change::AddChain { base: Some(base), .. } => {
            let kind = base.kind;
            let module = match kind {
                loden_firewall::ChainKind::Nat => "nft_chain_nat",
                _ => "nf_tables",
            };
            // ENOENT is also what a missing table says; the kernel then points at the table's name, first of all.
            if refusal.errno == libc::ENOENT && refusal.offset == Some(20) {
                return Error::Refused { operation, refusal };
            }
            Error::MissingFeature {
                operation,
                feature: format!("nf_tables chains of type {kind} here"),
                advice: format!("load the module {module} (modprobe {module}) or use a kernel that has it"),
                refusal,
            }
        }
        Change::AddRule { .. } => {
            let at = refusal.offset.and_then(|o| usize::try_from(o).ok());
            let pointed_at = at.and_then(|at| expressions.iter().rev().find(|(start, _)| *start <= at));
            // An expression in the wrong kind of chain is refused without a pointer.
            let suspect = || expressions.iter().find(|(_, n)| matches!(*n, "masq" | "nat" | "fib" | "ct"));
            let name = match refusal.errno {
                libc::EOPNOTSUPP => pointed_at.or_else(suspect),
                _ => pointed_at,
            };
            match name.map(|(_, name)| *name) {
                Some(name) if name != "immediate" => Error::MissingFeature {
                    operation,
                    feature: format!("nf_tables expression {name} in this place"),
                    advice: format!(
                        "load the module nft_{name} (modprobe nft_{name}), or check that the chain's hook allows it"
                    ),
                    refusal,
                },
                _ => Error::Refused { operation, refusal },
            }
        }
        _ => Error::Refused { operation, refusal },
    }
}

/// Handles of the rules of a listed chain that satisfy a predicate, in order.
pub fn handles_where<'a>(
    listed: &'a Listed,
    chain: &str,
    wanted: impl Fn(&Rule) -> bool + 'a,
) -> impl Iterator<Item = u64> + 'a {
    let rules = listed.table.chains.get(chain).map_or(&[][..], |c| c.rules.as_slice());
    let handles = listed.handles.get(chain).map_or(&[][..], Vec::as_slice);
    rules.iter().zip(handles).filter(move |(rule, _)| wanted(rule)).map(|(_, handle)| *handle)
}

/// Whether a rule has a given match; for finding rules by what they are about.
pub fn has_match(rule: &Rule, wanted: &Match) -> bool {
    rule.matches.contains(wanted)
}

#[cfg(test)]
mod tests {
    use loden_firewall::{Action, Base, ChainKind, Family, Hook};

    use super::*;

    fn refusal(errno: i32, offset: Option<u32>) -> Refusal {
        Refusal { errno, message: None, offset }
    }

    fn table() -> TableName {
        TableName { family: Family::Ip, name: "t".to_owned() }
    }

    fn masquerade() -> Change {
        Change::AddRule {
            table: table(),
            chain: "c".to_owned(),
            before: None,
            rule: Rule::new(vec![], Action::Masquerade { fully_random: true }),
        }
    }

    #[test]
    fn a_kernel_without_nf_tables_is_told_as_such() {
        for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
            let text = explain("change table ip t", None, &[], refusal(errno, None)).to_string();
            assert!(text.contains("has no nf_tables") && text.contains("modprobe nf_tables"), "{text}");
        }
        let listing = Error::Refused { operation: "x".to_owned(), refusal: refusal(libc::EINVAL, None) };
        assert!(matches!(lacking("list", listing), Error::MissingFeature { .. }));
    }

    #[test]
    fn a_missing_expression_or_chain_type_is_named_with_its_module() {
        let change = masquerade();
        let spans = encode::change(&change).expressions;
        let (start, name) = spans[0];
        assert_eq!(name, "masq");
        let at = u32::try_from(start).unwrap();
        let text = explain("x", Some(&change), &spans, refusal(libc::ENOENT, Some(at))).to_string();
        assert!(text.contains("nf_tables expression masq") && text.contains("modprobe nft_masq"), "{text}");

        let chain = Change::AddChain {
            table: table(),
            chain: "c".to_owned(),
            base: Some(Base::accepting(ChainKind::Nat, Hook::Postrouting, 100)),
            comment: None,
        };
        let text = explain("x", Some(&chain), &[], refusal(libc::ENOENT, Some(60))).to_string();
        assert!(text.contains("chains of type nat") && text.contains("modprobe nft_chain_nat"), "{text}");
    }

    #[test]
    fn a_missing_object_is_not_taken_for_a_missing_feature() {
        let change = masquerade();
        let spans = encode::change(&change).expressions;
        // The kernel points at the table's name, which comes before any expression.
        let error = explain("x", Some(&change), &spans, refusal(libc::ENOENT, Some(20)));
        assert!(error.is_not_found(), "{error}");
        let error = explain("x", Some(&Change::DeleteTable(table())), &[], refusal(libc::ENOENT, None));
        assert!(error.is_not_found(), "{error}");
        assert!(!explain("x", Some(&change), &spans, refusal(libc::ENOENT, Some(200))).is_not_found());
    }
}
