//! Masquerade rules of single containers, in nf_tables or by the host's iptables.
//!
//! Owns the rules whose comment starts with the attachment's hash in the nf_tables table that the Go plugins share, and the container's
//! chain of iptables with the jumps to it; nothing else. Others' rules may come and go between reading and writing, so every edit names
//! single rules and a lost race is run again. Rules are made by one backend and taken away from both: the configuration may have changed
//! since, and a Go plugin may have chosen otherwise.

pub(crate) mod iptables;

use ipnet::IpNet;
use loden_cni_protocol::ValidAttachments;
use loden_cni_protocol::error::Error;
use loden_cni_protocol::masquerade::{
    Backend, CHECKS, POSTROUTING, Stale, comment, instance_hash, rule, table,
};
use loden_firewall::{Chain, Change, Listed, Rule, Table, TableName};
use loden_netlink::nft::{NftSocket, handles_where};

/// How often an edit is begun again because a rule it names was deleted meanwhile.
const ATTEMPTS: u32 = 8;

fn failed(verb: &str, error: &dyn std::error::Error) -> Error {
    Error::internal(format!("could not {verb} masquerade rules: {}", Error::from_chain(error).message))
}

/// A socket, where the kernel has nf_tables.
fn nf_tables(verb: &str) -> Result<Option<NftSocket>, Error> {
    NftSocket::open_if_supported().map_err(|error| failed(verb, &error))
}

/// Makes what the addresses send to other networks leave with the node's address. Without a `backend` it is nf_tables where the kernel has
/// it, which takes no program and no process.
pub(crate) fn add(
    backend: Option<Backend>,
    network: &str,
    ifname: &str,
    container_id: &str,
    addresses: &[IpNet],
) -> Result<(), Error> {
    let socket = match backend {
        Some(Backend::Iptables) => None,
        Some(Backend::Nftables) => Some(NftSocket::open().map_err(|error| failed("add", &error))?),
        None => nf_tables("add")?,
    };
    let Some(mut socket) = socket else {
        return iptables::add(network, container_id, addresses).map_err(|error| failed("add", &error));
    };
    let hash = instance_hash(network, ifname, container_id);
    let comment = comment(network, ifname, container_id);
    let layout = table();
    edit(&mut socket, "add", &layout.key(), |listed| {
        let mut changes = missing_layout(&layout, listed);
        changes.extend(removals(&layout.key(), listed, |comment| comment.starts_with(&hash)));
        changes.extend(addresses.iter().map(|address| add_rule(&layout, CHECKS, rule(*address, &comment))));
        changes
    })
}

/// Takes the attachment's rules away, whichever backend made them. Nothing to take away is fine.
pub(crate) fn remove(network: &str, ifname: &str, container_id: &str) -> Result<(), Error> {
    let hash = instance_hash(network, ifname, container_id);
    let own = remove_where("remove", |comment| comment.starts_with(&hash));
    // One broken backend must not keep the other's rules.
    let others = iptables::remove(network, container_id).map_err(|error| failed("remove", &error));
    own.and(others)
}

/// Takes away the rules of the network's attachments that are not valid any more, whichever backend made them.
pub(crate) fn gc(network: &str, valid: &ValidAttachments) -> Result<(), Error> {
    let stale = Stale::of(network, valid);
    let own = remove_where("collect", |comment| stale.has(comment));
    let others = iptables::gc(network, valid).map_err(|error| failed("collect", &error));
    own.and(others)
}

/// The rules of single containers in nf_tables, if there are any.
pub(crate) fn rules() -> Result<Vec<Rule>, Error> {
    let Some(mut socket) = nf_tables("list")? else { return Ok(Vec::new()) };
    let listed = socket.rules_where(&table().key(), CHECKS, |comment| comment.is_some());
    Ok(listed.map_err(|error| failed("list", &error))?.into_iter().map(|listed| listed.rule).collect())
}

/// Takes away the rules with this very comment.
pub(crate) fn remove_commented(wanted: &str) -> Result<(), Error> {
    remove_where("collect", |comment| comment == wanted)
}

fn remove_where(verb: &str, is_unwanted: impl Fn(&str) -> bool) -> Result<(), Error> {
    let Some(mut socket) = nf_tables(verb)? else { return Ok(()) };
    let name = table().key();
    edit(&mut socket, verb, &name, |listed| removals(&name, listed, &is_unwanted))
}

fn edit(
    socket: &mut NftSocket,
    verb: &str,
    name: &TableName,
    plan: impl Fn(Option<&Listed>) -> Vec<Change>,
) -> Result<(), Error> {
    let mut attempt = 1;
    loop {
        let listed = socket.table(name).map_err(|error| failed(verb, &error))?;
        let changes = plan(listed.as_ref());
        if changes.is_empty() {
            return Ok(());
        }
        match socket.apply(&changes) {
            Err(error) if error.is_not_found() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome.map_err(|error| failed(verb, &error)),
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

fn removals(name: &TableName, listed: Option<&Listed>, is_unwanted: impl Fn(&str) -> bool) -> Vec<Change> {
    let ours = |rule: &Rule| rule.comment.as_deref().is_some_and(&is_unwanted);
    listed
        .into_iter()
        .flat_map(|listed| handles_where(listed, CHECKS, ours))
        .map(|handle| Change::DeleteRule { table: name.clone(), chain: CHECKS.to_owned(), handle })
        .collect()
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
        let changes = removals(&table().key(), Some(&listed), |comment| comment.starts_with("aa-bb"));
        let handles: Vec<u64> = changes
            .iter()
            .map(|change| match change {
                Change::DeleteRule { handle, .. } => *handle,
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(handles, [8, 9]);
        assert!(removals(&table().key(), None, |_| true).is_empty());
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
