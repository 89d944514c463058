//! Masquerade rules of single containers, in the nf_tables table that the Go plugins share.
//!
//! Owns the rules whose comment starts with the attachment's hash, nothing else in the table: others' rules may come and go between reading
//! and writing, so every edit names single rules and a lost race is run again.

use ipnet::IpNet;
use loden_cni_protocol::error::Error;
use loden_cni_protocol::masquerade::{
    CHECKS, POSTROUTING, comment, instance_hash, iptables_chain, rule, table,
};
use loden_firewall::{Chain, Change, Family, Listed, Rule, SharedChain, Table, TableName};
use loden_netlink::nft::{NftSocket, handles_where};

/// How often an edit is begun again because a rule it names was deleted meanwhile.
const ATTEMPTS: u32 = 8;

fn failed(verb: &str, error: loden_netlink::Error) -> Error {
    Error::internal(format!("could not {verb} masquerade rules: {}", Error::from_chain(&error).message))
}

/// Makes what the addresses send to other networks leave with the node's address.
pub(crate) fn add(network: &str, ifname: &str, container_id: &str, addresses: &[IpNet]) -> Result<(), Error> {
    let hash = instance_hash(network, ifname, container_id);
    let comment = comment(network, ifname, container_id);
    let mut socket = NftSocket::open().map_err(|error| failed("add", error))?;
    let layout = table();
    edit(&mut socket, "add", &layout.key(), |listed| {
        let mut changes = missing_layout(&layout, listed);
        changes.extend(removals(&layout.key(), listed, &hash));
        changes.extend(addresses.iter().map(|address| add_rule(&layout, CHECKS, rule(*address, &comment))));
        changes
    })
}

/// Takes the attachment's rules away. Nothing to take away is fine. What the iptables backend of a Go plugin made goes as well, where
/// iptables keeps its rules in nf_tables.
pub(crate) fn remove(network: &str, ifname: &str, container_id: &str) -> Result<(), Error> {
    let mut socket = NftSocket::open().map_err(|error| failed("remove", error))?;
    let hash = instance_hash(network, ifname, container_id);
    let name = table().key();
    edit(&mut socket, "remove", &name, |listed| removals(&name, listed, &hash))?;
    let chain = iptables_chain(network, container_id);
    for family in [Family::Ip, Family::Ip6] {
        let name = TableName { family, name: "nat".to_owned() };
        // That table may hold all of a node's services; it is read only if there is something to remove.
        if socket.has_chain(&name, &chain).map_err(|error| failed("remove", error))? {
            edit(&mut socket, "remove", &name, |listed| iptables_removals(listed, &chain))?;
        }
    }
    Ok(())
}

fn edit(
    socket: &mut NftSocket,
    verb: &str,
    name: &TableName,
    plan: impl Fn(Option<&Listed>) -> Vec<Change>,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let listed = socket.table(name).map_err(|error| failed(verb, error))?;
        let changes = plan(listed.as_ref());
        if changes.is_empty() {
            return Ok(());
        }
        match socket.apply(&changes) {
            Err(error) if error.is_not_found() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome.map_err(|error| failed(verb, error)),
        }
    }
}

/// The table and its chains where they are not as they must be. The base chain is refilled rather than added to, so that two containers
/// that both find the table missing do not write it twice.
fn missing_layout(layout: &Table, listed: Option<&Listed>) -> Vec<Change> {
    let name = layout.key();
    let present = |chain: &str| listed.and_then(|listed| listed.table.chains.get(chain));
    let mut changes = Vec::new();
    if listed.is_none_or(|listed| listed.table.dormant) {
        changes.push(Change::AddTable { table: name.clone(), comment: layout.comment.clone() });
    }
    let add_chain = |chain: &str, wanted: &Chain| Change::AddChain {
        table: name.clone(),
        chain: chain.to_owned(),
        base: wanted.base,
        comment: wanted.comment.clone(),
    };
    // The chain that is jumped to comes first.
    for chain in [CHECKS, POSTROUTING] {
        let Some(wanted) = layout.chains.get(chain) else { continue };
        if present(chain).is_none() {
            changes.push(add_chain(chain, wanted));
        }
        if chain == POSTROUTING && present(chain).is_none_or(|present| present.rules != wanted.rules) {
            changes.push(Change::FlushChain { table: name.clone(), chain: chain.to_owned() });
            changes.extend(wanted.rules.iter().map(|rule| add_rule(layout, chain, rule.clone())));
        }
    }
    changes
}

fn add_rule(layout: &Table, chain: &str, rule: Rule) -> Change {
    Change::AddRule { table: layout.key(), chain: chain.to_owned(), before: None, rule }
}

fn removals(name: &TableName, listed: Option<&Listed>, hash: &str) -> Vec<Change> {
    let ours = |rule: &Rule| rule.comment.as_deref().is_some_and(|comment| comment.starts_with(hash));
    listed
        .into_iter()
        .flat_map(|listed| handles_where(listed, CHECKS, ours))
        .map(|handle| Change::DeleteRule { table: name.clone(), chain: CHECKS.to_owned(), handle })
        .collect()
}

/// The chain of a Go plugin's iptables backend with the jumps to it.
fn iptables_removals(listed: Option<&Listed>, chain: &str) -> Vec<Change> {
    let found = listed.and_then(|listed| SharedChain::find(listed, chain, "POSTROUTING"));
    found.map(|chain| chain.removal()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn listed(own: &str, other: &str) -> Listed {
        let mut table = table();
        let checks = table.chains.get_mut(CHECKS).unwrap();
        for comment in [other, own, own] {
            checks.rules.push(rule("10.1.0.5/24".parse().unwrap(), comment));
        }
        let handles = [(CHECKS.to_owned(), vec![7, 8, 9]), (POSTROUTING.to_owned(), vec![1, 2, 3])];
        Listed { table, handles: BTreeMap::from(handles) }
    }

    #[test]
    fn only_the_attachments_rules_go() {
        let listed = listed("aa-bb, net: n", "aa-cc, net: n");
        let changes = removals(&table().key(), Some(&listed), "aa-bb");
        let handles: Vec<u64> = changes
            .iter()
            .map(|change| match change {
                Change::DeleteRule { handle, .. } => *handle,
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(handles, [8, 9]);
        assert!(removals(&table().key(), None, "aa-bb").is_empty());
    }

    #[test]
    fn a_layout_that_is_right_is_not_touched() {
        assert!(missing_layout(&table(), Some(&listed("a", "b"))).is_empty());
        let mut broken = listed("a", "b");
        broken.table.chains.get_mut(POSTROUTING).unwrap().rules.pop();
        let changes = missing_layout(&table(), Some(&broken));
        assert!(matches!(changes.first(), Some(Change::FlushChain { .. })), "{changes:?}");
        assert_eq!(missing_layout(&table(), None).len(), 7);
    }
}
