//! `firewall`: lets the container's traffic through the host's own filter, and keeps bridges apart.
//!
//! Owns the rules of the container's addresses in iptables' table `filter`, or the addresses' places in a zone of firewalld. The chains,
//! the jumps between them and what keeps a bridge apart are shared by all containers and stay.
//!
//! Rules of addresses look the same whoever made them, because the Go plugin finds its own by their every word. So DEL needs the
//! addresses: from the result that the runtime hands on, else from the container while it lives. GC has no way to tell whose a rule is and
//! removes nothing; a runtime's GC detaches what it still knows of before.

mod bus;
mod firewalld;
mod iptables;

use std::net::IpAddr;

use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::firewall::{Backend, FirewallConfig, Ingress, VERSIONS};
use loden_cni_protocol::{CniResult, ValidAttachments};
use loden_netlink::RouteSocket;

use crate::call::Call;
use crate::{Plugin, netns};
use firewalld::Firewalld;

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "firewall", versions: &VERSIONS, add, del, check, status, gc };

fn missing_result() -> Error {
    Error::internal("missing prevResult from earlier plugin")
}

fn addresses_of(result: &CniResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

/// firewalld, where the configuration asks for it or it runs; `None` stands for iptables.
fn firewalld(backend: Backend) -> Result<Option<Firewalld>, Error> {
    match backend {
        Backend::Iptables => Ok(None),
        Backend::Firewalld => Firewalld::connect().map(Some),
        Backend::Either => Ok(Firewalld::connect_if_running()),
    }
}

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = FirewallConfig::parse(&call.config)?;
    let previous = call.config.previous()?.ok_or_else(missing_result)?;
    let bridge = config.bridge(&previous)?;
    let addresses = addresses_of(&previous);
    let done = match firewalld(config.backend)? {
        Some(mut daemon) => daemon
            .add(&config.zone, &addresses)
            .and_then(|()| iptables::keep_apart(&config, bridge, &addresses)),
        None => iptables::let_through(&config, bridge, &addresses),
    };
    if let Err(error) = done {
        let failures = withdraw(&config, &addresses);
        return Err(error.and_cleanup(&failures));
    }
    Ok(previous)
}

/// Takes the addresses away from wherever ADD may have put them, and says what could not be done.
fn withdraw(config: &FirewallConfig, addresses: &[IpAddr]) -> Vec<String> {
    let rules = iptables::remove(addresses);
    // With a daemon that does not run its zones are gone.
    let zone = match config.backend {
        Backend::Iptables => Ok(()),
        Backend::Firewalld | Backend::Either => Firewalld::connect_if_running()
            .map_or(Ok(()), |mut daemon| daemon.remove(&config.zone, addresses)),
    };
    [rules, zone].into_iter().filter_map(Result::err).map(|error| error.to_string()).collect()
}

fn del(call: &Call) -> Result<(), Error> {
    let config = FirewallConfig::parse_for_removal(&call.config)?;
    let addresses = match call.config.previous()? {
        Some(previous) => addresses_of(&previous),
        None => live_addresses(call)?,
    };
    if addresses.is_empty() {
        return Ok(());
    }
    match withdraw(&config, &addresses) {
        failures if failures.is_empty() => Ok(()),
        failures => Err(Error::internal(failures.join("; "))),
    }
}

/// The addresses that the container has, while it is there.
fn live_addresses(call: &Call) -> Result<Vec<IpAddr>, Error> {
    let environment = &call.environment;
    let Some(sandbox) = netns::open_if_present(&environment.netns)? else { return Ok(Vec::new()) };
    let kernel = |error: loden_netlink::Error| Error::from_chain(&error);
    let mut inside = RouteSocket::open_in(&sandbox).map_err(kernel)?;
    let Some(link) = inside.link_by_name(&environment.ifname).map_err(kernel)? else {
        return Ok(Vec::new());
    };
    let addresses = inside.addresses(Some(link.index)).map_err(kernel)?;
    let is_global = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    Ok(addresses.iter().map(|address| address.net.addr()).filter(is_global).collect())
}

fn check(call: &Call) -> Result<(), Error> {
    let config = FirewallConfig::parse(&call.config)?;
    let previous = call.config.previous()?.ok_or_else(missing_result)?;
    let addresses = addresses_of(&previous);
    match firewalld(config.backend)? {
        Some(mut daemon) => daemon.check(&config.zone, &addresses),
        None => iptables::check(&config, &addresses),
    }
}

/// Ready when there is something to make rules with.
fn status(call: &Call) -> Result<(), Error> {
    let config = FirewallConfig::parse(&call.config)?;
    let unavailable = |error: Error| Error::new(code::NOT_AVAILABLE, error.message);
    let daemon = firewalld(config.backend).map_err(unavailable)?;
    if daemon.is_none() || config.ingress != Ingress::Open {
        iptables::look_for_programs().map_err(unavailable)?;
    }
    Ok(())
}

/// Nothing that could be told to belong to the network: see the top of this module.
fn gc(call: &Call) -> Result<(), Error> {
    ValidAttachments::of(&call.config).map(|_| ())
}
