//! CHECK: is what ADD said still so?

use loden_cni_protocol::bridge::BridgeConfig;
use loden_cni_protocol::error::Error;
use loden_cni_protocol::{CniResult, Command};
use loden_netlink::{Link, LinkKind, NetNs, RouteSocket};

use super::{find_ipam, host};
use crate::call::Call;
use crate::netns;
use crate::pair::check::{check_mac, listed};
use crate::pair::{self, kernel};

pub(crate) fn check(call: &Call) -> Result<(), Error> {
    let config = BridgeConfig::parse(&call.config, &call.environment.args)?;
    let sandbox = netns::open(&call.environment.netns)?;
    if let Some(ipam) = find_ipam(&config, call)? {
        ipam.run(&call.with_command(Command::Check), &NetNs::current().map_err(kernel)?)?;
    }
    let previous = pair::check::previous(call)?;
    let mut host = RouteSocket::open().map_err(kernel)?;
    let bridge = check_bridge(&mut host, &config, &previous)?;
    let near = pair::check::container(call, &sandbox, &previous)?;
    let port = pair::check::port(&mut host, &near, &previous)?;
    if port.master != Some(bridge.index) {
        return Err(Error::internal(format!("link {} is no port of bridge {}", port.name, bridge.name)));
    }
    Ok(())
}

fn check_bridge(host: &mut RouteSocket, config: &BridgeConfig, previous: &CniResult) -> Result<Link, Error> {
    let name = &config.bridge;
    let (_, listed) = listed(previous, name, "")
        .next()
        .ok_or_else(|| Error::internal(format!("bridge {name} is not among the interfaces of prevResult")))?;
    let bridge = host
        .link_by_name(name)
        .map_err(kernel)?
        .ok_or_else(|| Error::internal(format!("bridge {name} does not exist any more")))?;
    if !matches!(bridge.kind, LinkKind::Bridge(_)) {
        return Err(Error::internal(format!("link {name} is not a bridge")));
    }
    check_mac(&bridge, listed)?;
    if bridge.promiscuous != config.promiscuous {
        return Err(Error::internal(format!(
            "bridge {name}: promiscuous mode is {}, configured is {}",
            bridge.promiscuous, config.promiscuous
        )));
    }
    host::check_vlans(&bridge, config)?;
    Ok(bridge)
}
