//! `ptp`: a pair of links between the container and the host, without a bridge.
//!
//! Owns the pair, the container's addresses and routes, the host's addresses and route on its end, and the container's masquerade rules.
//! Everything the container sends goes to the host's end, and the host routes to each container by its own address: containers share a
//! subnet without sharing a link. The host's side goes with the pair.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::ptp::{Path, PtpConfig};
use loden_cni_protocol::{CniResult, Command, version};
use loden_netlink::{
    Address, Change, LinkSettings, NetNs, Route, RouteSocket, address_flags, protocol, scope,
};

use crate::call::Call;
use crate::delegate::Delegate;
use crate::pair::attempt::{Attempt, ask, detach, in_container, on_host, sweep};
use crate::pair::host::{address, forward, look_up, quieten, usable};
use crate::pair::{self, Pair, Wanted, kernel, marks};
use crate::{Plugin, netns};

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "ptp", versions: &version::SUPPORTED, add, del, check, status, gc };

fn find_ipam(config: &PtpConfig, call: &Call) -> Result<Delegate, Error> {
    Delegate::find(&config.ipam, &call.environment.path)
}

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = PtpConfig::parse(&call.config)?;
    let mut attempt = Attempt::new(call, Some(find_ipam(&config, call)?))?;
    attach(&mut attempt, &config).map_err(|error| error.and_cleanup(&attempt.undo()))
}

fn attach(attempt: &mut Attempt<'_>, config: &PtpConfig) -> Result<CniResult, Error> {
    let mut result = attempt.addresses()?.unwrap_or_default();
    let paths = config.complete(&mut result)?;
    forward(&result.ips.iter().map(|ip| ip.address).collect::<Vec<_>>())?;
    let sandbox = attempt.sandbox.clone();
    let pair = sandbox.run(|| inside(attempt, config, &paths, &result)).map_err(kernel)??;
    quieten(&[&pair.port_name]);
    attempt.masquerade(&config.link, &result)?;
    let port = look_up(&mut attempt.host, pair.port_index, &pair.port_name)?;
    result.interfaces = vec![on_host(&port), in_container(attempt.call, &pair.near)];
    config.link.complete(&mut result);
    Ok(result)
}

/// The part that runs in the container's namespace; the host's socket keeps talking to the host.
fn inside(
    attempt: &mut Attempt<'_>,
    config: &PtpConfig,
    paths: &[Path],
    result: &CniResult,
) -> Result<Pair, Error> {
    let mut inside = RouteSocket::open().map_err(kernel)?;
    let pair = pair::create(&mut inside, attempt.call, config.link.mtu(), None, &attempt.home)?;
    attempt.port = Some(pair.port_index);
    let detects = config.link.duplicate_detection;
    let alias = Some(marks(attempt.call).port_alias());
    // The host's end first: with both up the container finds its next hop at once.
    attempt.host.apply_all(&host_side(pair.port_index, alias, paths, detects)).map_err(|error| {
        Error::internal(format!("failed to set up the host's end {}: {}", pair.port_name, kernel(error)))
    })?;
    let index = pair.near.index;
    let wanted = Wanted {
        addresses: paths.iter().map(|path| near_address(index, path, detects)).collect(),
        paths: paths.iter().flat_map(|path| near_routes(index, path)).collect(),
        duplicate_detection: detects,
        result,
    };
    pair::configure(&mut inside, &pair.near, wanted)?;
    Ok(pair)
}

/// The gateway's address alone and the way to the container's address, on the host's end.
fn host_side(index: u32, alias: Option<String>, paths: &[Path], detects: bool) -> Vec<Change> {
    let mut changes = vec![Change::SetLink {
        index,
        settings: LinkSettings { up: Some(true), alias, ..LinkSettings::default() },
    }];
    for path in paths {
        changes.push(Change::AddAddress(usable(address(index, path.gateway), detects)));
    }
    for path in paths {
        let mut route = Route::new(path.host).by(protocol::BOOT);
        (route.link, route.scope) = (Some(index), scope::HOST);
        changes.push(Change::AddRoute(route));
    }
    changes
}

/// The container's address. Its subnet is not on the link, so the kernel must not route to it by itself.
fn near_address(index: u32, path: &Path, detects: bool) -> Address {
    let near = usable(address(index, path.address), detects);
    Address { flags: near.flags | address_flags::NOPREFIXROUTE, ..near }
}

/// The gateway is on the link, and the rest of the subnet behind it.
fn near_routes(index: u32, path: &Path) -> [Change; 2] {
    let source = Some(path.address.addr());
    let mut gateway = Route::new(path.gateway).by(protocol::BOOT);
    (gateway.link, gateway.scope, gateway.source) = (Some(index), scope::LINK, source);
    let mut subnet = Route::new(path.address).by(protocol::BOOT);
    (subnet.link, subnet.next_hop, subnet.source) = (Some(index), Some(path.next_hop()), source);
    [Change::AddRoute(gateway), Change::AddRoute(subnet)]
}

fn del(call: &Call) -> Result<(), Error> {
    let config = PtpConfig::parse(&call.config)?;
    let ipam = find_ipam(&config, call)?;
    detach(call, Some(&ipam), config.link.masquerade)
}

fn check(call: &Call) -> Result<(), Error> {
    let config = PtpConfig::parse(&call.config)?;
    let sandbox = netns::open(&call.environment.netns)?;
    let home = NetNs::current().map_err(kernel)?;
    find_ipam(&config, call)?.run(&call.with_command(Command::Check), &home)?;
    let previous = pair::check::previous(call)?;
    let near = pair::check::container(call, &sandbox, &previous)?;
    let port = pair::check::port(&mut RouteSocket::open().map_err(kernel)?, &near, &previous)?;
    if port.up { Ok(()) } else { Err(Error::internal(format!("link {} is down", port.name))) }
}

fn status(call: &Call) -> Result<(), Error> {
    let config = PtpConfig::parse(&call.config)?;
    ask(Some(&find_ipam(&config, call)?), call)
}

fn gc(call: &Call) -> Result<(), Error> {
    let config = PtpConfig::parse(&call.config)?;
    sweep(call, find_ipam(&config, call).map(Some))
}
