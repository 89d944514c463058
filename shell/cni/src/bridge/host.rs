//! The host's side: the bridge, its gateway address, and the port of the pair on it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use loden_cni_protocol::bridge::BridgeConfig;
use loden_cni_protocol::error::Error;
use loden_lease::{gateway_mark, parse_gateway_mark};
use loden_netlink::{
    Address, Change, IpFamily, Link, LinkKind, LinkSettings, MacAddress, NewLink, NewLinkKind, OperState,
    RouteSocket, sysctl,
};

use super::kernel;

/// How long the port may take to pass packets.
const PORT_PATIENCE: Duration = Duration::from_millis(2550);

/// The bridge, made if it is not there. One that is there keeps its MTU.
pub(super) fn bridge(socket: &mut RouteSocket, config: &BridgeConfig) -> Result<Link, Error> {
    let name = &config.bridge;
    let found = match socket.link_by_name(name).map_err(kernel)? {
        Some(link) => link,
        None => make_bridge(socket, config)?,
    };
    if !matches!(found.kind, LinkKind::Bridge(_)) {
        return Err(Error::internal(format!("{name:?} already exists but is not a bridge")));
    }
    let settings = LinkSettings {
        up: (!found.up).then_some(true),
        promiscuous: (config.promiscuous && !found.promiscuous).then_some(true),
        ..LinkSettings::default()
    };
    if settings != LinkSettings::default() {
        socket.set_link(found.index, settings).map_err(kernel)?;
    }
    Ok(found)
}

/// Makes the bridge with an address of its own choosing: without one it would take the lowest of its ports' addresses and change it as
/// ports come and go, and containers would lose their next hop each time.
fn make_bridge(socket: &mut RouteSocket, config: &BridgeConfig) -> Result<Link, Error> {
    let mut address = [0; 6];
    random(&mut address)?;
    let [first, ..] = &mut address;
    // Locally administered, not multicast.
    *first = (*first | 2) & !1;
    let new = NewLink {
        mtu: (config.mtu != 0).then_some(config.mtu),
        address: Some(MacAddress(address)),
        ..NewLink::new(&config.bridge, NewLinkKind::Bridge(loden_netlink::BridgeConfig::default()))
    };
    match socket.create_link(&new) {
        // Another container's ADD was faster.
        Err(error) if error.is_already_there() => socket
            .link_by_name(&config.bridge)
            .map_err(kernel)?
            .ok_or_else(|| Error::internal(format!("bridge {:?} vanished as it was made", config.bridge))),
        made => made.map_err(kernel),
    }
}

/// Fills `bytes` with random bytes from the kernel.
pub(super) fn random(bytes: &mut [u8]) -> Result<(), Error> {
    match rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(length) if length == bytes.len() => Ok(()),
        Ok(_) => Err(Error::internal("the kernel gave too few random bytes")),
        Err(error) => Err(Error::internal(format!("could not get random bytes: {error}"))),
    }
}

/// Puts the port on the bridge and brings it up.
pub(super) fn enslave(
    socket: &mut RouteSocket,
    port: u32,
    bridge: &Link,
    config: &BridgeConfig,
) -> Result<(), Error> {
    let settings = LinkSettings { up: Some(true), master: Some(bridge.index), ..LinkSettings::default() };
    socket
        .apply_all(&[
            Change::SetLink { index: port, settings },
            Change::SetBridgePort {
                index: port,
                hairpin: Some(config.hairpin),
                isolated: Some(config.isolated),
                learning: None,
            },
        ])
        .map_err(|error| {
            Error::internal(format!("failed to connect the port to bridge {}: {error}", bridge.name))
        })
}

/// Router advertisements must not configure the host through its containers. Hosts without IPv6 have nothing to set.
pub(super) fn quieten(links: &[&str]) {
    for link in links {
        let _ = sysctl::write(&format!("net/ipv6/conf/{link}/accept_ra"), "0");
    }
}

/// Gives the bridge its gateway addresses and marks it as ours to heal.
pub(super) fn give_addresses(
    socket: &mut RouteSocket,
    bridge: &Link,
    gateways: &[IpNet],
    force: bool,
) -> Result<(), Error> {
    let mut changes = Vec::new();
    for is_ipv4 in [true, false] {
        let wanted: Vec<IpNet> =
            gateways.iter().copied().filter(|net| net.addr().is_ipv4() == is_ipv4).collect();
        if wanted.is_empty() {
            continue;
        }
        let family = if is_ipv4 { IpFamily::V4 } else { IpFamily::V6 };
        let present = socket.addresses_of_family(Some(bridge.index), Some(family)).map_err(kernel)?;
        for gateway in wanted {
            if present.iter().any(|address| address.net == gateway) {
                continue;
            }
            for other in present.iter().filter(|other| conflicts(other.net, gateway)) {
                if !force {
                    return Err(Error::internal(format!(
                        "{:?} already has an IP address different from {gateway}",
                        bridge.name
                    )));
                }
                changes.push(Change::DeleteAddress(other.clone()));
            }
            changes.push(Change::AddAddress(address(bridge.index, gateway)));
        }
    }
    if !changes.is_empty() {
        // A bridge made by somebody else may still take its address from its ports.
        let pinned = look_up(socket, bridge.index, &bridge.name)?.address;
        changes.push(Change::SetLink {
            index: bridge.index,
            settings: LinkSettings { address: pinned, ..LinkSettings::default() },
        });
    }
    let mark = gateway_mark(gateways);
    let free =
        bridge.alias.as_deref().is_none_or(|alias| alias.is_empty() || parse_gateway_mark(alias).is_some());
    if free && bridge.alias.as_deref() != Some(mark.as_str()) {
        changes.push(Change::SetLink {
            index: bridge.index,
            settings: LinkSettings { alias: Some(mark), ..LinkSettings::default() },
        });
    }
    for outcome in socket.apply_each(&changes).map_err(kernel)? {
        match outcome {
            // Another container's ADD was faster, with the same addresses.
            Err(error) if error.is_already_there() || error.is_not_found() => {}
            other => other.map_err(|error| {
                Error::internal(format!("failed to set bridge {} addr: {error}", bridge.name))
            })?,
        }
    }
    Ok(())
}

/// One IPv4 address per bridge; several IPv6 ones as long as their networks do not overlap.
fn conflicts(present: IpNet, wanted: IpNet) -> bool {
    wanted.addr().is_ipv4() || present.contains(&wanted.addr()) || wanted.contains(&present.addr())
}

/// An address with the broadcast address that the Go plugins set.
pub(super) fn address(index: u32, net: IpNet) -> Address {
    let broadcast: Option<Ipv4Addr> = match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    };
    Address { broadcast, ..Address::new(index, net) }
}

/// Makes the node forward packets of the families given.
pub(super) fn forward(gateways: &[IpNet]) -> Result<(), Error> {
    for (is_ipv4, key) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        let wanted = gateways.iter().any(|net| matches!(net.addr(), IpAddr::V4(_)) == is_ipv4);
        if wanted && fs::read_to_string(format!("/proc/sys/{key}")).is_ok_and(|text| text.trim() == "1") {
            continue;
        }
        if wanted {
            sysctl::write(key, "1").map_err(|error| {
                Error::internal(format!("failed to enable forwarding: {}", kernel(error)))
            })?;
        }
    }
    Ok(())
}

/// The link as it is now.
pub(super) fn look_up(socket: &mut RouteSocket, index: u32, name: &str) -> Result<Link, Error> {
    socket
        .link_by_index(index)
        .map_err(kernel)?
        .ok_or_else(|| Error::internal(format!("link {name} vanished while the container was attached")))
}

/// Waits until the port passes packets.
pub(super) fn wait_until_up(socket: &mut RouteSocket, index: u32, name: &str) -> Result<Link, Error> {
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let port = look_up(socket, index, name)?;
        if port.oper_state == OperState::Up {
            return Ok(port);
        }
        if started.elapsed() >= PORT_PATIENCE {
            return Err(Error::internal(format!("bridge port in error state: {}", port.oper_state)));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_addresses_exclude_each_other() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        assert!(conflicts(net("10.1.0.1/24"), net("10.2.0.1/24")));
        assert!(!conflicts(net("fd00:1::1/64"), net("fd00:2::1/64")));
        assert!(conflicts(net("fd00::1/48"), net("fd00:0:0:2::1/64")));
        assert!(!conflicts(net("fe80::1/64"), net("fd00::1/64")));
    }

    #[test]
    fn broadcast_addresses_are_those_of_the_go_library() {
        let broadcast = |text: &str| address(1, text.parse().unwrap()).broadcast;
        assert_eq!(broadcast("10.1.0.5/24"), "10.1.0.255".parse().ok());
        assert_eq!(broadcast("10.1.0.5/31"), None);
        assert_eq!(broadcast("fd00::1/64"), None);
    }
}
