//! The container's side: its addresses and routes. Everything here runs in the container's namespace.

use std::time::{Duration, Instant};

use loden_cni_protocol::error::Error;
use loden_cni_protocol::link::next_hop_of;
use loden_cni_protocol::{CniResult, Route};
use loden_netlink::{
    Address, Change, IpFamily, Link, LinkSettings, OperState, RouteSocket, address_flags, protocol, sysctl,
    table,
};

use super::kernel;

/// How long IPv6 addresses may take to become usable.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// Brings the container's end up.
pub(crate) fn bring_up(socket: &mut RouteSocket, link: &Link) -> Result<(), Error> {
    socket.set_link(link.index, LinkSettings::up()).map_err(kernel)
}

/// What the container's end is to become.
#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    /// Its addresses.
    pub(crate) addresses: Vec<Address>,
    /// What its routes need first, once it is up.
    pub(crate) paths: Vec<Change>,
    /// Look for duplicates of the IPv6 addresses, and wait for the outcome.
    pub(crate) duplicate_detection: bool,
    /// Where its routes are.
    pub(crate) result: &'a CniResult,
}

/// Gives the link its addresses, brings it up and sets its routes.
pub(crate) fn configure(socket: &mut RouteSocket, link: &Link, wanted: Wanted<'_>) -> Result<(), Error> {
    let Wanted { addresses, paths, duplicate_detection, result } = wanted;
    let name = &link.name;
    let has_ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    set_parameters(name, duplicate_detection, has_ipv6)?;
    let mut changes: Vec<Change> = addresses.into_iter().map(Change::AddAddress).collect();
    changes.push(Change::SetLink { index: link.index, settings: LinkSettings::up() });
    // Without a next hop nothing of the container's leaves by an IPv6 address, and nobody waits for it.
    let has_ipv6_gateway = result.ips.iter().any(|ip| ip.gateway.is_some_and(|gateway| gateway.is_ipv6()));
    if duplicate_detection && has_ipv6_gateway {
        apply(socket, name, &changes)?;
        settle(socket, link)?;
        changes.clear();
    }
    changes.extend(paths);
    for route in &result.routes {
        changes.push(Change::AppendRoute(kernel_route(link.index, route, result)?));
    }
    apply(socket, name, &changes)
}

fn apply(socket: &mut RouteSocket, name: &str, changes: &[Change]) -> Result<(), Error> {
    if changes.is_empty() {
        return Ok(());
    }
    socket
        .apply_all(changes)
        .map_err(|error| Error::internal(format!("failed to configure {name:?}: {}", kernel(error))))
}

/// Kernel parameters of the container's link. Those that only make things smoother are not worth failing for.
fn set_parameters(name: &str, duplicate_detection: bool, has_ipv6: bool) -> Result<(), Error> {
    let ipv6 = format!("net/ipv6/conf/{name}");
    if duplicate_detection {
        let _ = sysctl::write(&format!("{ipv6}/enhanced_dad"), "1");
    }
    let _ = sysctl::write(&format!("{ipv6}/accept_dad"), if duplicate_detection { "1" } else { "0" });
    // The kernel announces the addresses as the link comes up.
    let _ = sysctl::write(&format!("net/ipv4/conf/{name}/arp_notify"), "1");
    if has_ipv6 {
        for link in ["lo", name] {
            let key = format!("net/ipv6/conf/{link}/disable_ipv6");
            if sysctl::read(&key).ok().flatten().is_some_and(|value| value != "0") {
                sysctl::write(&key, "0").map_err(|error| {
                    Error::internal(format!(
                        "failed to enable IPv6 for interface {link:?}: {}",
                        kernel(error)
                    ))
                })?;
            }
        }
        sysctl::write(&format!("{ipv6}/keep_addr_on_down"), "1").map_err(kernel)?;
    }
    Ok(())
}

/// Waits until no IPv6 address of the link is being checked for duplicates.
fn settle(socket: &mut RouteSocket, link: &Link) -> Result<(), Error> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let addresses = socket.addresses_of_family(Some(link.index), Some(IpFamily::V6)).map_err(kernel)?;
        let with = |flag| addresses.iter().find(|address| address.flags & flag != 0);
        if let Some(duplicate) = with(address_flags::DADFAILED) {
            return Err(Error::internal(format!(
                "link {:?}: address {} is in use elsewhere",
                link.name, duplicate.net
            )));
        }
        if with(address_flags::TENTATIVE).is_none() {
            return Ok(());
        }
        if started.elapsed() >= SETTLE_PATIENCE {
            let up = socket
                .link_by_index(link.index)
                .map_err(kernel)?
                .is_some_and(|link| link.oper_state == OperState::Up);
            // Without a carrier nothing can be checked, and nothing can be a duplicate either.
            return if up {
                Err(Error::internal(format!(
                    "link {:?} still has tentative addresses after {SETTLE_PATIENCE:?}",
                    link.name
                )))
            } else {
                Ok(())
            };
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The route as the Go library adds it, and with the metrics that it forgets.
fn kernel_route(link: u32, route: &Route, result: &CniResult) -> Result<loden_netlink::Route, Error> {
    let out_of_range = |key: &str, value: i64| {
        Error::internal(format!("route to {}: {key} {value} is out of range", route.dst))
    };
    let number = |key: &str, value: i64| u32::try_from(value).map_err(|_| out_of_range(key, value));
    let mut wanted = loden_netlink::Route::new(route.dst).by(protocol::BOOT);
    wanted.link = Some(link);
    wanted.next_hop = next_hop_of(route, result);
    for (key, value, place) in [
        ("priority", route.priority, &mut wanted.metric),
        ("mtu", route.mtu, &mut wanted.mtu),
        ("advmss", route.advmss, &mut wanted.advmss),
    ] {
        if value != 0 {
            *place = Some(number(key, value)?);
        }
    }
    wanted.table = route.table.map_or(Ok(table::MAIN), |value| number("table", value))?;
    if let Some(scope) = route.scope {
        wanted.scope = u8::try_from(scope).map_err(|_| out_of_range("scope", scope))?;
    }
    Ok(wanted)
}
