//! `bridge`: a pair of links between the container and a bridge on the host, with addresses from an address plugin.
//!
//! Owns the pair, the container's addresses and routes, the bridge's gateway address and the container's masquerade rules. The bridge
//! itself is made on demand and never removed: other containers may be on it. Two conversations with the kernel do the work, one on the
//! host and one inside the container's namespace, which is entered once.

mod check;
mod host;

use loden_cni_protocol::bridge::BridgeConfig;
use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::{CniResult, version};
use loden_netlink::nft::NftSocket;
use loden_netlink::{Link, LinkKind, RouteSocket};

use crate::call::Call;
use crate::delegate::Delegate;
use crate::pair::attempt::{Attempt, ask, detach, in_container, on_host, sweep};
use crate::pair::host::{address, forward, look_up, quieten};
use crate::pair::{self, Pair, Wanted, kernel, marks};
use crate::{Plugin, spoof};

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "bridge", versions: &version::SUPPORTED, add, del, check: check::check, status, gc };

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = BridgeConfig::parse(&call.config, &call.environment.args)?;
    let mut attempt = Attempt::new(call, find_ipam(&config, call)?)?;
    attach(&mut attempt, &config).map_err(|error| error.and_cleanup(&attempt.undo()))
}

fn find_ipam(config: &BridgeConfig, call: &Call) -> Result<Option<Delegate>, Error> {
    config.ipam.as_deref().map(|kind| Delegate::find(kind, &call.environment.path)).transpose()
}

fn attach(attempt: &mut Attempt<'_>, config: &BridgeConfig) -> Result<CniResult, Error> {
    let filter = config.spoof_check.then(NftSocket::open).transpose().map_err(kernel)?;
    let bridge = host::bridge(&mut attempt.host, config)?;
    let sandbox = attempt.sandbox.clone();
    let (pair, mut result) = sandbox.run(|| inside(attempt, config, &bridge, filter)).map_err(kernel)??;
    quieten(&[&bridge.name, &pair.port_name]);
    let vlan_gateway = give_gateway(&mut attempt.host, config, &bridge, &result)?;
    attempt.masquerade(&config.link, &result)?;
    let port = if config.link_disabled {
        look_up(&mut attempt.host, pair.port_index, &pair.port_name)?
    } else {
        host::wait_until_up(&mut attempt.host, pair.port_index, &pair.port_name)?
    };
    let bridge = look_up(&mut attempt.host, bridge.index, &bridge.name)?;
    result.interfaces = vec![on_host(&bridge), on_host(&port), in_container(attempt.call, &pair.near)];
    result.interfaces.extend(vlan_gateway.as_ref().map(on_host));
    config.link.complete(&mut result);
    Ok(result)
}

/// The part that runs in the container's namespace; the host's sockets keep talking to the host.
fn inside(
    attempt: &mut Attempt<'_>,
    config: &BridgeConfig,
    bridge: &Link,
    filter: Option<NftSocket>,
) -> Result<(Pair, CniResult), Error> {
    let mut inside = RouteSocket::open().map_err(kernel)?;
    let marks = marks(attempt.call);
    let pair = pair::create(&mut inside, attempt.call, config.link.mtu(), config.mac, &attempt.home)?;
    attempt.port = Some(pair.port_index);
    let port = host::NewPort {
        index: pair.port_index,
        alias: Some(marks.port_alias()),
        hairpin: config.hairpin,
        isolated: config.isolated,
        vlans: &config.vlans,
    };
    host::enslave(&mut attempt.host, bridge, port)?;
    if let Some(mut filter) = filter {
        let mac = pair.near.address.ok_or_else(|| {
            Error::internal(format!("the kernel gave {} no hardware address", pair.near.name))
        })?;
        attempt.has_filter = true;
        spoof::add(&mut filter, &marks, &pair.port_name, mac.0)?;
    }
    let Some(mut result) = attempt.addresses()? else {
        if !config.link_disabled {
            pair::bring_up(&mut inside, &pair.near)?;
        }
        return Ok((pair, CniResult::default()));
    };
    config.complete(&mut result);
    let wanted = Wanted {
        addresses: result.ips.iter().map(|ip| address(pair.near.index, ip.address)).collect(),
        paths: Vec::new(),
        duplicate_detection: config.link.duplicate_detection,
        result: &result,
    };
    pair::configure(&mut inside, &pair.near, wanted)?;
    Ok((pair, result))
}

/// Gives the bridge, or the link of the VLAN, the gateway addresses, and makes the node forward. Returns the link of the VLAN.
fn give_gateway(
    socket: &mut RouteSocket,
    config: &BridgeConfig,
    bridge: &Link,
    result: &CniResult,
) -> Result<Option<Link>, Error> {
    let gateways = config.gateway_addresses(result);
    if gateways.is_empty() {
        return Ok(None);
    }
    let vlan_gateway = config.vlan_gateway();
    let vlan_gateway =
        vlan_gateway.map(|name| host::vlan_gateway(socket, bridge, &name, &config.vlans)).transpose()?;
    let link = vlan_gateway.as_ref().unwrap_or(bridge);
    host::give_addresses(socket, link, &gateways, config)?;
    forward(&gateways)?;
    Ok(vlan_gateway)
}

fn del(call: &Call) -> Result<(), Error> {
    let config = BridgeConfig::parse_for_removal(&call.config, &call.environment.args)?;
    let ipam = find_ipam(&config, call)?;
    let outcome = detach(call, ipam.as_ref(), config.link.masquerade);
    let filter = if config.spoof_check { spoof::remove(&marks(call)) } else { Ok(()) };
    outcome.and(filter)
}

/// Ready when the bridge can be had and the address plugin is ready.
fn status(call: &Call) -> Result<(), Error> {
    let config = BridgeConfig::parse(&call.config, &call.environment.args)?;
    let not_available = |message: String| Error::new(code::NOT_AVAILABLE, message);
    let name = &config.bridge;
    let link = RouteSocket::open().and_then(|mut host| host.link_by_name(name)).map_err(kernel)?;
    if let Some(link) = &link {
        if !matches!(link.kind, LinkKind::Bridge(_)) {
            return Err(not_available(format!(
                "{name:?} already exists but is not a bridge; remove that link or choose another `bridge`"
            )));
        }
        host::check_vlans(link, &config).map_err(|error| not_available(error.message))?;
    }
    ask(find_ipam(&config, call)?.as_ref(), call)
}

fn gc(call: &Call) -> Result<(), Error> {
    let config = BridgeConfig::parse_for_removal(&call.config, &call.environment.args)?;
    sweep(call, find_ipam(&config, call))
}
