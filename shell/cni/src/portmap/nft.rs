//! The nftables backend, in the tables that the Go plugin shares.
//!
//! Containers by the thousand have rules in these tables, so ADD reads none of them: it looks chains up by name, compares the few rules
//! that lead to the containers', and appends. Everything one command changes is one transaction; what is right is not touched, since a rule
//! that is written again costs the kernel a grace period. Others edit the same tables: a rule is deleted by its handle only, and a lost race
//! is run again.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::portmap::PortmapConfig;
use loden_cni_protocol::portmap::nft::{
    HOSTIP_HOSTPORTS, HOSTPORTS, HOSTPORTS_ALL, MASQUERADING, OF_CONTAINERS, OUTPUT, OwnMark, PREROUTING,
    layout, rules, table_name,
};
use loden_firewall::{Action, Chain, Change, Rule, Table, TableName};
use loden_netlink::nft::{FoundChain, NftSocket};

/// How often an edit is begun again because others changed the same meanwhile.
const ATTEMPTS: u32 = 12;

fn failed(what: &str, error: loden_netlink::Error) -> Error {
    Error::internal(format!("{what}: {}", Error::from_chain(&error).message))
}

const ADD: &str = "unable to set up nftables rules for port mappings";
const DEL: &str = "error deleting nftables rules";

/// Adds a container's rules.
pub(super) fn add(config: &PortmapConfig, mark: &OwnMark) -> Result<(), Error> {
    let mut layouts = Vec::new();
    let mut own = Vec::new();
    for address in config.container.addresses() {
        let layout = layout(config, address.addr().is_ipv4())?;
        for (chain, rule) in rules(config, address, mark)? {
            own.push(append(&layout.key(), chain, rule));
        }
        layouts.push(layout);
    }
    let mut socket = NftSocket::open().map_err(|error| failed(ADD, error))?;
    let mut attempt = 1;
    loop {
        let mut changes = missing(&mut socket, &layouts).map_err(|error| failed(ADD, error))?;
        changes.extend(own.iter().cloned());
        match socket.apply(&changes) {
            // A table or chain that was there has been deleted.
            Err(error) if error.is_not_found() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome.map_err(|error| failed(ADD, error)),
        }
    }
}

fn append(table: &TableName, chain: &str, rule: Rule) -> Change {
    Change::AddRule { table: table.clone(), chain: chain.to_owned(), before: None, rule }
}

/// What is not there yet of the tables, apart from containers' rules.
fn missing(socket: &mut NftSocket, layouts: &[Table]) -> loden_netlink::Result<Vec<Change>> {
    let wanted: Vec<(TableName, &str, &Chain)> = layouts
        .iter()
        .flat_map(|table| table.chains.iter().map(|(name, chain)| (table.key(), name.as_str(), chain)))
        .collect();
    let names: Vec<(&TableName, &str)> = wanted.iter().map(|(table, name, _)| (table, *name)).collect();
    let found = socket.find_chains(&names)?;

    // A chain is jumped to only after it was made.
    let mut changes: Vec<Change> = layouts
        .iter()
        .map(|table| Change::AddTable { table: table.key(), comment: table.comment.clone() })
        .collect();
    let mut refilled = Vec::new();
    for ((table, name, chain), found) in wanted.iter().zip(found) {
        let is_there = match &chain.base {
            None => found == FoundChain::Regular,
            Some(base) => found == FoundChain::Hooked(*base),
        };
        if !is_there {
            changes.push(Change::AddChain {
                table: table.clone(),
                chain: (*name).to_owned(),
                base: chain.base,
                comment: None,
            });
        }
        if chain.rules.is_empty() || (is_there && has_exactly(socket, table, name, &chain.rules)?) {
            continue;
        }
        // Emptied rather than added to: two containers that both find it missing must not fill it twice.
        refilled.push(Change::FlushChain { table: table.clone(), chain: (*name).to_owned() });
        refilled.extend(chain.rules.iter().map(|rule| append(table, name, rule.clone())));
    }
    changes.extend(refilled);
    Ok(changes)
}

fn has_exactly(
    socket: &mut NftSocket,
    table: &TableName,
    chain: &str,
    wanted: &[Rule],
) -> loden_netlink::Result<bool> {
    let listed = socket.rules_where(table, chain, |_| true)?;
    Ok(listed.iter().map(|listed| &listed.rule).eq(wanted))
}

/// Removes the rules that `is_ours` picks among those with a comment that `wanted` picks, and says which they were. Nothing to remove is
/// fine, and so is a kernel without nf_tables.
pub(super) fn remove(
    wanted: impl Fn(&str) -> bool,
    is_ours: impl Fn(&Rule) -> bool,
) -> Result<Vec<Rule>, Error> {
    let mut socket = match NftSocket::open() {
        Err(loden_netlink::Error::MissingFeature { .. }) => return Ok(Vec::new()),
        socket => socket.map_err(|error| failed(DEL, error))?,
    };
    if !socket.is_supported().map_err(|error| failed(DEL, error))? {
        return Ok(Vec::new());
    }
    let mut attempt = 1;
    loop {
        let mut removed = Vec::new();
        let mut changes = Vec::new();
        for (table, chain) in containers_chains(&mut socket).map_err(|error| failed(DEL, error))? {
            let listed = socket
                .rules_where(&table, chain, |comment| comment.is_some_and(&wanted))
                .map_err(|error| failed(DEL, error))?;
            for listed in listed.into_iter().filter(|listed| is_ours(&listed.rule)) {
                changes.push(Change::DeleteRule {
                    table: table.clone(),
                    chain: chain.to_owned(),
                    handle: listed.handle,
                });
                removed.push(listed.rule);
            }
        }
        if changes.is_empty() {
            return Ok(removed);
        }
        match socket.apply(&changes) {
            Err(error) if error.is_not_found() && attempt < ATTEMPTS => attempt += 1,
            outcome => return outcome.map(|()| removed).map_err(|error| failed(DEL, error)),
        }
    }
}

/// The rules of single containers.
pub(crate) fn of_containers() -> Result<Vec<Rule>, Error> {
    let list = || -> loden_netlink::Result<Vec<Rule>> {
        let Some(mut socket) = NftSocket::open_if_supported()? else { return Ok(Vec::new()) };
        let mut rules = Vec::new();
        for (table, chain) in containers_chains(&mut socket)? {
            let listed = socket.rules_where(&table, chain, |comment| comment.is_some())?;
            rules.extend(listed.into_iter().map(|listed| listed.rule));
        }
        Ok(rules)
    };
    list().map_err(|error| failed("could not list nftables rules of port mappings", error))
}

/// The chains with containers' rules that there are.
fn containers_chains(socket: &mut NftSocket) -> loden_netlink::Result<Vec<(TableName, &'static str)>> {
    let all: Vec<(TableName, &str)> = [true, false]
        .into_iter()
        .flat_map(|v4| OF_CONTAINERS.into_iter().map(move |chain| (table_name(v4), chain)))
        .collect();
    let names: Vec<(&TableName, &str)> = all.iter().map(|(table, chain)| (table, *chain)).collect();
    let found = socket.find_chains(&names)?;
    Ok(all
        .into_iter()
        .zip(found)
        .filter(|(_, found)| *found != FoundChain::Absent)
        .map(|(chain, _)| chain)
        .collect())
}

/// Whether everything that [`add`] made is there. Rules that the Go plugin made count as well.
pub(super) fn check(config: &PortmapConfig, mark: &OwnMark) -> Result<(), Error> {
    let mut socket = NftSocket::open().map_err(|error| failed("could not check nftables rules", error))?;
    for address in config.container.addresses() {
        let table = table_name(address.addr().is_ipv4());
        let mut listed = |chain: &str, is_own: bool| -> Result<Vec<Rule>, Error> {
            let rules = socket
                .rules_where(&table, chain, |comment| !is_own || comment == Some(mark.comment()))
                .map_err(|error| failed("could not check nftables rules", error))?;
            Ok(rules.into_iter().map(|listed| listed.rule).collect())
        };
        let mut present = listed(HOSTPORTS, true)?;
        // Where Go releases before 1.9 put those with an address of the node.
        present.extend(listed(HOSTIP_HOSTPORTS, true)?);
        let masquerading = listed(MASQUERADING, true)?;
        for (chain, wanted) in rules(config, address, mark)? {
            let there = if chain == MASQUERADING { &masquerading } else { &present };
            let is_same = |rule: &&Rule| rule.matches == wanted.matches && rule.action == wanted.action;
            if there.iter().find(is_same).is_none() {
                return Err(Error::internal(format!(
                    "missing hostport rules in {chain:?} chain: table {table} has no `{}`",
                    wanted.text(table.family)
                )));
            }
        }
        let leads = |rules: &[Rule], to: &str| {
            rules.iter().any(|rule| matches!(&rule.action, Action::Jump(chain) if chain == to))
        };
        for from in [PREROUTING, OUTPUT] {
            let entries = listed(from, false)?;
            // Releases before 1.9 had no chain in between.
            let via_all = leads(&entries, HOSTPORTS_ALL) && leads(&listed(HOSTPORTS_ALL, false)?, HOSTPORTS);
            if !via_all && !leads(&entries, HOSTPORTS) {
                return Err(Error::internal(format!(
                    "nothing leads from chain {from:?} of table {table} to its chain {HOSTPORTS:?}"
                )));
            }
        }
    }
    Ok(())
}

/// Whether the kernel has nf_tables.
pub(super) fn is_available() -> Result<(), Error> {
    let supported = NftSocket::open().and_then(|mut socket| socket.is_supported());
    match supported.map_err(|error| failed("cannot use nf_tables", error))? {
        true => Ok(()),
        false => Err(Error::internal("the kernel has no nf_tables; load the module nf_tables")),
    }
}
