//! The host's side: the bridge, its gateway address, and the port of the pair on it.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use loden_cni_protocol::bridge::BridgeConfig;
use loden_cni_protocol::error::Error;
use loden_cni_protocol::vlan::PortVlans;
use loden_lease::{gateway_mark, parse_gateway_mark};
use loden_netlink::{
    Change, IpFamily, Link, LinkKind, LinkSettings, MacAddress, NewLink, NewLinkKind, OperState, PortVlan,
    RouteSocket, VethPeer,
};

use crate::pair::host::{address, look_up, quieten, usable};
use crate::pair::{kernel, random, random_name};

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
    let kind = loden_netlink::BridgeConfig { vlan_filtering: !config.vlans.is_empty() };
    let new = NewLink {
        mtu: config.link.mtu(),
        address: Some(MacAddress(address)),
        ..NewLink::new(&config.bridge, NewLinkKind::Bridge(kind))
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

/// How a link becomes a port of the bridge.
#[derive(Clone, Debug)]
pub(super) struct NewPort<'a> {
    pub(super) index: u32,
    /// What to note on it.
    pub(super) alias: Option<String>,
    pub(super) hairpin: bool,
    pub(super) isolated: bool,
    pub(super) vlans: &'a PortVlans,
}

/// Puts the port on the bridge and into its VLANs, and brings it up.
pub(super) fn enslave(socket: &mut RouteSocket, bridge: &Link, port: NewPort<'_>) -> Result<(), Error> {
    let NewPort { index, alias, hairpin, isolated, vlans } = port;
    let settings =
        LinkSettings { up: Some(true), master: Some(bridge.index), alias, ..LinkSettings::default() };
    let mut changes = vec![
        Change::SetLink { index, settings },
        Change::SetBridgePort { index, hairpin: Some(hairpin), isolated: Some(isolated), learning: None },
    ];
    let failed = |error: &dyn std::fmt::Display| {
        Error::internal(format!("failed to connect the port to bridge {}: {error}", bridge.name))
    };
    if !vlans.is_empty() {
        // Only a port is in the VLAN that the bridge gives it.
        socket.apply_all(&changes).map_err(|error| failed(&error))?;
        changes = vlan_changes(index, &socket.vlans(Some(index)).map_err(kernel)?, vlans);
    }
    socket.apply_all(&changes).map_err(|error| failed(&error))
}

/// What makes a port that is in the VLANs `present` one of `vlans`. It leaves the old ones first: their frames must not pass meanwhile.
fn vlan_changes(index: u32, present: &[PortVlan], vlans: &PortVlans) -> Vec<Change> {
    let untagged = vlans.untagged().map(|id| PortVlan::access(index, id));
    let strangers = present.iter().filter(|vlan| !vlans.keeps_default && !vlans.has(vlan.vlan));
    let mut changes: Vec<Change> = strangers.map(|vlan| Change::DeletePortVlan(*vlan)).collect();
    changes.extend(untagged.filter(|vlan| !present.contains(vlan)).map(Change::AddPortVlan));
    for (first, last) in vlans.tagged_apart() {
        changes.push(if first == last {
            Change::AddPortVlan(PortVlan::tagged(index, first))
        } else {
            Change::AddPortVlans { index, first, last }
        });
    }
    changes
}

/// The link that carries the VLAN's gateway address: one end of a pair whose other end is a port of the bridge in that VLAN. Made on
/// demand and never removed, like the bridge.
pub(super) fn vlan_gateway(
    socket: &mut RouteSocket,
    bridge: &Link,
    name: &str,
    vlans: &PortVlans,
) -> Result<Link, Error> {
    let found = match socket.link_by_name(name).map_err(kernel)? {
        Some(link) => link,
        None => make_vlan_gateway(socket, bridge, name)?,
    };
    let far = match found.lower {
        Some(index) if found.kind == LinkKind::Veth => socket.link_by_index(index).map_err(kernel)?,
        _ => None,
    };
    let far = far.ok_or_else(|| {
        Error::internal(format!("{name:?} already exists but is not the gateway link of its VLAN"))
    })?;
    // Whoever made it may have been killed before it was whole.
    if far.master != Some(bridge.index) || !far.up || !found.up {
        let port = NewPort {
            index: far.index,
            alias: None,
            hairpin: false,
            isolated: false,
            vlans: &vlans.access_only(),
        };
        enslave(socket, bridge, port)?;
        socket.set_link(found.index, LinkSettings::up()).map_err(kernel)?;
        quieten(&[name, &far.name]);
    }
    Ok(found)
}

fn make_vlan_gateway(socket: &mut RouteSocket, bridge: &Link, name: &str) -> Result<Link, Error> {
    let mtu = Some(bridge.mtu);
    let peer = VethPeer { name: random_name()?, mtu, ..VethPeer::default() };
    match socket.create_link(&NewLink { mtu, ..NewLink::new(name, NewLinkKind::Veth(peer)) }) {
        // Another container's ADD was faster.
        Err(error) if error.is_already_there() => socket
            .link_by_name(name)
            .map_err(kernel)?
            .ok_or_else(|| Error::internal(format!("link {name:?} vanished as it was made"))),
        made => made.map_err(|error| {
            Error::internal(format!("failed to create vlan gateway {name:?}: {}", kernel(error)))
        }),
    }
}

/// A bridge that was there before keeps its settings; one that does not look at VLANs lets them all through to each other.
pub(super) fn check_vlans(bridge: &Link, config: &BridgeConfig) -> Result<(), Error> {
    let filters = matches!(&bridge.kind, LinkKind::Bridge(kind) if kind.vlan_filtering);
    if config.vlans.is_empty() || filters {
        return Ok(());
    }
    Err(Error::internal(format!(
        "bridge {0} does not filter by VLAN, so its VLANs reach each other; turn it on (ip link set {0} type bridge vlan_filtering 1), or remove the bridge while no container is on it",
        bridge.name
    )))
}

/// Gives the bridge, or the link of its VLAN, its gateway addresses and marks it as ours to heal.
pub(super) fn give_addresses(
    socket: &mut RouteSocket,
    bridge: &Link,
    gateways: &[IpNet],
    config: &BridgeConfig,
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
                if !config.force_address {
                    return Err(Error::internal(format!(
                        "{:?} already has an IP address different from {gateway}",
                        bridge.name
                    )));
                }
                changes.push(Change::DeleteAddress(other.clone()));
            }
            let detects = config.link.duplicate_detection;
            changes.push(Change::AddAddress(usable(address(bridge.index, gateway), detects)));
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
}
