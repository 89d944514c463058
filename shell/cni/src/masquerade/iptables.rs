//! The iptables backend: a container's chain in `nat` and the jumps to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use loden_cni_protocol::ValidAttachments;
use loden_cni_protocol::masquerade::iptables::{
    POSTROUTING, chain, desired, is_chain, owners as owners_in, removal, stale,
};
use loden_firewall::iptables::Table;
use loden_iptables::{Error, Family, Iptables, Result, Variant};

/// Makes the chain, its rules and the jumps to it, in the families that the addresses are of.
pub(super) fn add(network: &str, container_id: &str, addresses: &[IpNet]) -> Result<()> {
    let chain = chain(network, container_id);
    for family in Family::ALL {
        let own: Vec<IpNet> = addresses
            .iter()
            .copied()
            .filter(|address| Family::of(address.addr().is_ipv4()) == family)
            .collect();
        if own.is_empty() {
            continue;
        }
        let mut tables = Iptables::find(family)?.ok_or(Error::NoProgram { program: family.program() })?;
        tables.edit(Table::Nat, &[&chain, POSTROUTING], |observed| {
            desired(observed, network, container_id, &own)
        })?;
    }
    Ok(())
}

/// Takes the chain away, wherever it may be.
pub(crate) fn remove(network: &str, container_id: &str) -> Result<()> {
    let chain = chain(network, container_id);
    each_place(|place| {
        // nf_tables keeps a chain that is led to, so without the chain there is nothing; the base chain may be long.
        if place.variant() == Variant::Nft && !place.observe(Table::Nat, &[&chain])?.has_chain(&chain) {
            return Ok(());
        }
        place
            .edit(Table::Nat, &[&chain, POSTROUTING], |observed| removal(observed, network, container_id))
            .map(|_| ())
    })
}

/// The containers that have a chain, by network and ID, with their addresses.
pub(crate) fn owners() -> Result<BTreeMap<(String, String), BTreeSet<IpAddr>>> {
    let is_wanted = |name: &str| name == POSTROUTING;
    let mut all: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    each_place(|place| {
        place
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

/// Takes away the chains of containers that have no valid attachment.
pub(super) fn gc(network: &str, valid: &ValidAttachments) -> Result<()> {
    let is_wanted = |name: &str| name == POSTROUTING || is_chain(name);
    each_place(|place| {
        place.edit_matching(Table::Nat, is_wanted, |observed| stale(observed, network, valid)).map(|_| ())
    })
}

/// Does the same in every place, also if one fails; the first failure counts.
fn each_place(mut work: impl FnMut(&mut Iptables) -> Result<()>) -> Result<()> {
    let mut outcome = Ok(());
    for family in Family::ALL {
        let places = Iptables::for_removal(family);
        let done = places.and_then(|mut places| places.iter_mut().try_for_each(&mut work));
        outcome = outcome.and(done);
    }
    outcome
}
