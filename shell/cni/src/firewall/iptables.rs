//! The iptables backend, and what keeps bridges apart with either backend.

use std::net::IpAddr;

use loden_cni_protocol::error::Error;
use loden_cni_protocol::firewall::{FirewallConfig, ISOLATION_CHAINS, PRIVATE, keep_apart as apart, removal};
use loden_firewall::iptables::{Change, Observed, Table};
use loden_iptables::{Family, Iptables};

fn failed(error: loden_iptables::Error) -> Error {
    Error::internal(format!("could not edit the firewall's rules: {}", Error::from_chain(&error).message))
}

/// The tables of each family that has any of the addresses, with these. Only its own programs are needed.
fn families(addresses: &[IpAddr]) -> impl Iterator<Item = (Family, Vec<IpAddr>)> {
    Family::ALL.into_iter().filter_map(|family| {
        let own: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| Family::of(address.is_ipv4()) == family).collect();
        (!own.is_empty()).then_some((family, own))
    })
}

fn tables(family: Family) -> Result<Iptables, Error> {
    let found = Iptables::find(family).map_err(failed)?;
    found.ok_or_else(|| failed(loden_iptables::Error::NoProgram { program: family.program() }))
}

/// Lets the addresses' traffic through, and keeps the bridge apart where one is given, in one run of a program per family.
pub(super) fn let_through(
    config: &FirewallConfig,
    bridge: Option<&str>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    for (family, own) in families(addresses) {
        let mut chains = config.chains().to_vec();
        chains.extend(bridge.map_or(&[][..], |_| &ISOLATION_CHAINS));
        edit(family, &chains, |observed| {
            let mut changes = config.let_through(observed, &own);
            changes.extend(bridge.iter().flat_map(|bridge| apart(observed, bridge, config.ingress)));
            changes
        })?;
    }
    Ok(())
}

/// Keeps the bridge apart, in the families that the addresses are of.
pub(super) fn keep_apart(
    config: &FirewallConfig,
    bridge: Option<&str>,
    addresses: &[IpAddr],
) -> Result<(), Error> {
    let Some(bridge) = bridge else { return Ok(()) };
    for (family, _) in families(addresses) {
        edit(family, &ISOLATION_CHAINS, |observed| apart(observed, bridge, config.ingress))?;
    }
    Ok(())
}

fn edit(family: Family, chains: &[&str], plan: impl Fn(&Observed) -> Vec<Change>) -> Result<(), Error> {
    tables(family)?.edit(Table::Filter, chains, plan).map(|_| ()).map_err(failed)
}

/// Takes the addresses' rules away, wherever they may be.
pub(super) fn remove(addresses: &[IpAddr]) -> Result<(), Error> {
    let mut outcome = Ok(());
    for (family, own) in families(addresses) {
        let places = Iptables::for_removal(family);
        let done = places.and_then(|places| {
            places.into_iter().try_for_each(|mut place| {
                place.edit(Table::Filter, &[PRIVATE], |observed| removal(observed, &own)).map(|_| ())
            })
        });
        outcome = outcome.and(done);
    }
    outcome.map_err(failed)
}

/// Whether everything is there that lets the addresses' traffic through.
pub(super) fn check(config: &FirewallConfig, addresses: &[IpAddr]) -> Result<(), Error> {
    for (family, own) in families(addresses) {
        let observed = tables(family)?.observe(Table::Filter, &config.chains()).map_err(failed)?;
        config.check(&observed, &own)?;
    }
    Ok(())
}

/// Whether there are usable programs for any family; which of them will be needed is not known before there are addresses.
pub(super) fn look_for_programs() -> Result<(), Error> {
    tables(Family::V4).or_else(|error| tables(Family::V6).map_err(|_| error)).map(|_| ())
}
