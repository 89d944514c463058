//! The container's side: the pair, its addresses and routes. Everything here runs in the container's namespace.

use std::time::{Duration, Instant};

use loden_cni_protocol::bridge::{BridgeConfig, next_hop_of};
use loden_cni_protocol::error::Error;
use loden_cni_protocol::{CniResult, Route};
use loden_netlink::{
    Change, IpFamily, Link, LinkSettings, MacAddress, NetNs, NewLink, NewLinkKind, OperState, RouteSocket,
    VethPeer, address_flags, protocol, sysctl, table,
};

use super::{host, kernel};

/// How often another random name is tried for the host's end.
const NAME_ATTEMPTS: u32 = 10;
/// How long IPv6 addresses may take to become usable.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);

/// A pair that was made.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// The container's end.
    pub(super) near: Link,
    /// Index of the host's end.
    pub(super) port_index: u32,
    /// Name of the host's end.
    pub(super) port_name: String,
}

/// Makes the pair, its far end directly in `home`.
pub(super) fn create(
    socket: &mut RouteSocket,
    config: &BridgeConfig,
    ifname: &str,
    home: &NetNs,
) -> Result<Pair, Error> {
    let mtu = (config.mtu != 0).then_some(config.mtu);
    let mut attempts = 0;
    loop {
        attempts += 1;
        let port_name = random_name()?;
        let peer =
            VethPeer { name: port_name.clone(), mtu, netns: Some(home.clone()), ..VethPeer::default() };
        let pair = NewLink {
            mtu,
            address: config.mac.map(MacAddress),
            ..NewLink::new(ifname, NewLinkKind::Veth(peer))
        };
        match socket.create_link(&pair) {
            Ok(near) => {
                let port_index = near.lower.ok_or_else(|| {
                    Error::internal(format!(
                        "the kernel does not say which link is the other end of {ifname}"
                    ))
                })?;
                return Ok(Pair { near, port_index, port_name });
            }
            Err(error) if error.is_already_there() => {
                let taken = socket.link_by_name(ifname).map_err(kernel)?.is_some();
                if taken || attempts >= NAME_ATTEMPTS {
                    return Err(Error::internal(format!(
                        "container veth name ({ifname:?}) peer provided ({port_name:?}) already exists"
                    )));
                }
            }
            Err(error) => {
                return Err(Error::internal(format!("failed to make veth pair: {}", kernel(error))));
            }
        }
    }
}

fn random_name() -> Result<String, Error> {
    let mut bytes = [0; 4];
    host::random(&mut bytes)?;
    Ok(format!("veth{:08x}", u32::from_ne_bytes(bytes)))
}

pub(super) fn bring_up(socket: &mut RouteSocket, link: &Link) -> Result<(), Error> {
    socket.set_link(link.index, LinkSettings::up()).map_err(kernel)
}

/// Gives the link its addresses, brings it up and sets its routes.
pub(super) fn configure(
    socket: &mut RouteSocket,
    link: &Link,
    config: &BridgeConfig,
    result: &CniResult,
) -> Result<(), Error> {
    let name = &link.name;
    let has_ipv6 = result.ips.iter().any(|ip| ip.address.addr().is_ipv6());
    set_parameters(name, config, has_ipv6)?;
    let mut changes: Vec<Change> = Vec::new();
    for ip in &result.ips {
        changes.push(Change::AddAddress(host::address(link.index, ip.address)));
    }
    changes.push(Change::SetLink { index: link.index, settings: LinkSettings::up() });
    let must_settle = result.ips.iter().any(|ip| ip.gateway.is_some_and(|gateway| gateway.is_ipv6()));
    if must_settle {
        apply(socket, name, &changes)?;
        settle(socket, link)?;
        changes.clear();
    }
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
fn set_parameters(name: &str, config: &BridgeConfig, has_ipv6: bool) -> Result<(), Error> {
    let ipv6 = format!("net/ipv6/conf/{name}");
    if config.duplicate_detection {
        let _ = sysctl::write(&format!("{ipv6}/enhanced_dad"), "1");
    }
    let _ = sysctl::write(&format!("{ipv6}/accept_dad"), if config.duplicate_detection { "1" } else { "0" });
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

/// The route as the Go library adds it.
fn kernel_route(link: u32, route: &Route, result: &CniResult) -> Result<loden_netlink::Route, Error> {
    let out_of_range = |key: &str, value: i64| {
        Error::internal(format!("route to {}: {key} {value} is out of range", route.dst))
    };
    let number = |key: &str, value: i64| u32::try_from(value).map_err(|_| out_of_range(key, value));
    let mut wanted = loden_netlink::Route::new(route.dst).by(protocol::BOOT);
    wanted.link = Some(link);
    wanted.next_hop = next_hop_of(route, result);
    if route.priority != 0 {
        wanted.metric = Some(number("priority", route.priority)?);
    }
    wanted.table = route.table.map_or(Ok(table::MAIN), |value| number("table", value))?;
    if let Some(scope) = route.scope {
        wanted.scope = u8::try_from(scope).map_err(|_| out_of_range("scope", scope))?;
    }
    Ok(wanted)
}
