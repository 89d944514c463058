//! `portmap`: ports of a container reachable through the node's addresses.
//!
//! Owns the container's rules in the firewall backend of the configuration. A chained plugin: the container's addresses come from the result
//! before it, which it passes on. The chains that lead to containers' rules are made on demand and stay. ADD writes to one backend; DEL and
//! GC look into both, since an upgrade or another configuration may have changed the choice in between.

pub(crate) mod iptables;
pub(crate) mod nft;
mod udp;

use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::portmap::nft::{OwnMark, Stale};
use loden_cni_protocol::portmap::{Backend, Container, PortmapConfig};
use loden_cni_protocol::{CniResult, ValidAttachments, version};
use loden_netlink::{RouteSocket, sysctl};

use crate::Plugin;
use crate::call::Call;

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "portmap", versions: &version::SUPPORTED, add, del, check, status, gc };

fn read(call: &Call) -> Result<PortmapConfig, Error> {
    PortmapConfig::parse(&call.config, &call.environment.ifname)
}

/// The same error after `what`.
fn after(what: &str, error: Error) -> Error {
    Error { message: format!("{what}: {}", error.message), ..error }
}

fn own_mark(call: &Call) -> OwnMark {
    let environment = &call.environment;
    OwnMark::new(&call.config.name, &environment.ifname, &environment.container_id)
}

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = read(call).map_err(|error| after("failed to parse config", error))?;
    let previous =
        config.previous.clone().ok_or_else(|| Error::internal("must be called as chained plugin"))?;
    if config.mappings.is_empty() {
        return Ok(previous);
    }
    let backend = config.backend(available)?;
    if config.container.is_empty() {
        return Ok(previous);
    }
    // Before the rules, so that there is nothing to take back if it fails: it is a property of the link and stays with it.
    if config.snat {
        route_localhost(&config.container)?;
    }
    match backend {
        Backend::Nftables => nft::add(&config, &own_mark(call))?,
        Backend::Iptables => iptables::add(&config, &call.environment.container_id)?,
    }
    udp::forget_older(&config.mappings, &config.container);
    Ok(previous)
}

/// Lets the node send what it says from 127.0.0.1 to the container, whose answers come back translated.
fn route_localhost(container: &Container) -> Result<(), Error> {
    let Some(address) = container.v4 else { return Ok(()) };
    let link = RouteSocket::open().and_then(|mut socket| {
        let route = socket.route_to(address.addr().into())?;
        route.link.map(|index| socket.link_by_index(index)).transpose()
    });
    // Without a route there is nothing to set; what the container is reached by may come later.
    let Ok(Some(Some(link))) = link else { return Ok(()) };
    let name = format!("net/ipv4/conf/{}/route_localnet", link.name);
    let failed =
        |error: loden_netlink::Error| after("unable to enable route_localnet", Error::from_chain(&error));
    if sysctl::read(&name).map_err(failed)?.as_deref() == Some("1") {
        return Ok(());
    }
    sysctl::write(&name, "1").map_err(failed)
}

/// What carries mappings out on this node when the configuration leaves it open: iptables where it works, as with the Go plugin.
fn available() -> Backend {
    if iptables::is_available() || nft::is_available().is_err() {
        Backend::Iptables
    } else {
        Backend::Nftables
    }
}

/// Takes every step even if one fails, so that one broken backend does not keep the other's rules. Without mappings in the configuration
/// rules are looked for as well: a runtime that no longer knows the ports must not leave them open.
fn del(call: &Call) -> Result<(), Error> {
    let environment = &call.environment;
    let config = PortmapConfig::parse_for_removal(&call.config, &environment.ifname)
        .map_err(|error| after("failed to parse config", error))?;
    let mark = own_mark(call);
    let removed =
        nft::remove(|comment| comment == mark.comment(), |rule| mark.is_on(rule, &config.container));
    let chains = iptables::remove(&call.config.name, &environment.container_id);
    udp::forget_container(&config.mappings, &config.container);
    together(removed.map(|_| ()).err().into_iter().chain(chains.err()).collect())
}

/// Takes away the nftables rules with this very comment and note.
pub(crate) fn remove_noted(container_id: &str, note: &str) -> Result<(), Error> {
    let removed = nft::remove(|comment| comment == container_id, |rule| rule.note.as_deref() == Some(note))?;
    udp::forget_removed(&removed);
    Ok(())
}

/// Several failures as one error.
fn together(failures: Vec<Error>) -> Result<(), Error> {
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(()) };
    let more: Vec<String> = failures.map(|error| error.to_string()).collect();
    if more.is_empty() {
        return Err(first);
    }
    let details: Vec<String> =
        Some(first.details.clone()).filter(|details| !details.is_empty()).into_iter().chain(more).collect();
    Err(first.with_details(details.join("; ")))
}

fn check(call: &Call) -> Result<(), Error> {
    let config = read(call)?;
    if config.previous.is_none() {
        return Err(Error::internal("Required prevResult missing"));
    }
    if config.mappings.is_empty() {
        return Ok(());
    }
    match config.backend(available)? {
        Backend::Nftables => nft::check(&config, &own_mark(call)),
        Backend::Iptables => iptables::check(&config, &call.environment.container_id),
    }
}

/// Ready when the configuration is usable and its backend is there.
fn status(call: &Call) -> Result<(), Error> {
    let backend = read(call)?.backend(available)?;
    let ready = match backend {
        Backend::Nftables => nft::is_available(),
        Backend::Iptables => iptables::status(),
    };
    ready.map_err(|error| Error { code: code::NOT_AVAILABLE, ..error })
}

/// Removes rules that say they belong to this network and to none of its valid attachments. What nftables rules of the Go plugin belong to
/// says nothing but their container's ID, which another network may know: they are left to their DEL.
fn gc(call: &Call) -> Result<(), Error> {
    let valid = ValidAttachments::of(&call.config)?;
    let network = &call.config.name;
    let stale = Stale::new(network, &valid);
    let removed = nft::remove(|_| true, |rule| stale.is(rule));
    let chains = iptables::collect_garbage(network, &valid);
    if let Ok(rules) = &removed {
        udp::forget_removed(rules);
    }
    together(removed.map(|_| ()).err().into_iter().chain(chains.err()).collect())
}
