//! The iptables backend, in the `nat` tables that the Go plugin, kube-proxy and operators share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use loden_cni_protocol::ValidAttachments;
use loden_cni_protocol::error::Error;
use loden_cni_protocol::portmap::PortmapConfig;
use loden_cni_protocol::portmap::iptables::{
    DNAT, OLD_SNAT, OWN_PREFIX, addition, dnat_chain, entries_can_stay_unread, looked_at, old_snat_chain,
};
use loden_cni_protocol::portmap::listed::{Stale, owners as owners_in};
use loden_firewall::iptables::{Change, Table};
use loden_iptables::{Family, Iptables, Variant};

fn failed(what: &str, error: &loden_iptables::Error) -> Error {
    Error::internal(format!("{what}: {}", Error::from_chain(error).message))
}

fn find(address: IpNet) -> Result<Iptables, Error> {
    let family = Family::of(address.addr().is_ipv4());
    let missing = || loden_iptables::Error::NoProgram { program: family.program() };
    Iptables::find(family)
        .and_then(|found| found.ok_or_else(missing))
        .map_err(|error| failed("failed to open iptables", &error))
}

/// Whether the host has an iptables that works.
pub(super) fn is_available() -> bool {
    matches!(Iptables::find(Family::V4), Ok(Some(_)))
}

/// Says what keeps ADD from working.
pub(super) fn status() -> Result<(), Error> {
    match Iptables::find(Family::V4) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(failed(
            "failed to open iptables",
            &loden_iptables::Error::NoProgram { program: Family::V4.program() },
        )),
        Err(error) => Err(failed("failed to open iptables", &error)),
    }
}

/// Adds a container's rules, to both families or to none.
pub(super) fn add(config: &PortmapConfig, container_id: &str) -> Result<(), Error> {
    for address in config.container.addresses() {
        if let Err(error) = add_one(config, address, container_id) {
            let undone = remove(&config.network, container_id);
            return Err(
                error.and_cleanup(&undone.err().map(|e| e.to_string()).into_iter().collect::<Vec<_>>())
            );
        }
    }
    Ok(())
}

fn add_one(config: &PortmapConfig, address: IpNet, container_id: &str) -> Result<(), Error> {
    let fail =
        |error: loden_iptables::Error| failed("unable to set up iptables rules for port mappings", &error);
    let mut iptables = find(address)?;
    let own = dnat_chain(&config.network, container_id);
    // Where single chains can be read. Elsewhere everything is read at once, by a program.
    let reads_entries = iptables.variant() == Variant::Legacy || {
        let observed = iptables.observe(Table::Nat, &looked_at(config, &own, false)).map_err(fail)?;
        !entries_can_stay_unread(&observed, &own)
    };
    iptables
        .edit(Table::Nat, &looked_at(config, &own, reads_entries), |observed| {
            addition(config, address, container_id, observed, reads_entries)
        })
        .map(|_| ())
        .map_err(fail)
}

/// Removes a container's rules wherever they can be.
pub(crate) fn remove(network: &str, container_id: &str) -> Result<(), Error> {
    let (own, old) = (dnat_chain(network, container_id), old_snat_chain(network, container_id));
    each_place(|iptables| {
        let is_there = iptables.variant() == Variant::Legacy || {
            let observed = iptables.observe(Table::Nat, &[&own, &old])?;
            // Nothing leads to a chain that is not there.
            observed.has_chain(&own) || observed.has_chain(&old)
        };
        if !is_there {
            return Ok(());
        }
        iptables
            .edit(Table::Nat, &[&own, &old, DNAT, OLD_SNAT], |observed| {
                let mut changes = observed.without_chain(&own, &[DNAT]);
                changes.extend(observed.without_chain(&old, &[OLD_SNAT]));
                in_order(changes)
            })
            .map(|_| ())
    })
}

/// Removes the rules of the network's containers that are not in the list.
pub(super) fn collect_garbage(network: &str, valid: &ValidAttachments) -> Result<(), Error> {
    let stale = Stale::new(network, valid);
    each_place(|iptables| {
        let chains = stale.chains(&iptables.observe(Table::Nat, &[DNAT])?);
        if chains.is_empty() {
            return Ok(());
        }
        let looked_at: Vec<&str> = chains.iter().map(String::as_str).chain([DNAT]).collect();
        iptables
            .edit(Table::Nat, &looked_at, |observed| {
                in_order(chains.iter().flat_map(|chain| observed.without_chain(chain, &[DNAT])).collect())
            })
            .map(|_| ())
    })
}

/// The containers that have a chain, by network and ID, with their addresses.
pub(crate) fn owners() -> Result<BTreeMap<(String, String), BTreeSet<IpAddr>>, Error> {
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    each_place(|iptables| {
        let is_wanted = |name: &str| name == DNAT || name.starts_with(OWN_PREFIX);
        iptables
            .edit_matching(Table::Nat, is_wanted, |observed| {
                for (owner, addresses) in owners_in(observed) {
                    all.entry(owner).or_default().extend(addresses);
                }
                Vec::new()
            })
            .map(|_| ())
    })?;
    Ok(all)
}

/// Rules first, then chains: a chain goes after the last way to it.
fn in_order(mut changes: Vec<Change>) -> Vec<Change> {
    changes.sort_by_key(|change| match change {
        Change::Delete { .. } => 0,
        Change::DeleteChain(_) => 2,
        _ => 1,
    });
    changes
}

/// Does something in every place where iptables' rules can be, even if one fails.
fn each_place(mut act: impl FnMut(&mut Iptables) -> Result<(), loden_iptables::Error>) -> Result<(), Error> {
    let mut failures = Vec::new();
    for family in Family::ALL {
        let version = if family == Family::V4 { 4 } else { 6 };
        match Iptables::for_removal(family) {
            Ok(places) => {
                for mut place in places {
                    if let Err(error) = act(&mut place) {
                        failures.push(failed(&format!("could not teardown ipv{version} dnat"), &error));
                    }
                }
            }
            Err(error) => failures.push(failed(&format!("could not look for ipv{version} dnat"), &error)),
        }
    }
    super::together(failures)
}

/// Whether everything that [`add`] made is there.
pub(super) fn check(config: &PortmapConfig, container_id: &str) -> Result<(), Error> {
    let own = dnat_chain(&config.network, container_id);
    for address in config.container.addresses() {
        let observed = find(address)?
            .observe(Table::Nat, &looked_at(config, &own, true))
            .map_err(|error| failed("could not check iptables rules", &error))?;
        loden_cni_protocol::portmap::iptables::check(config, address, container_id, &observed)?;
    }
    Ok(())
}
