//! `loopback`: brings the container's `lo` up.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::{CniResult, Interface, IpConfig, version};
use loden_netlink::{Link, LinkSettings, NetNs, RouteSocket};

use crate::Plugin;
use crate::call::Call;
use crate::netns;

const LOOPBACK: &str = "lo";

fn open(netns: &NetNs) -> Result<(RouteSocket, Link), Error> {
    let mut socket = RouteSocket::open_in(netns).map_err(|error| Error::from_chain(&error))?;
    let link = socket.link_by_name(LOOPBACK).map_err(|error| Error::from_chain(&error))?;
    let link =
        link.ok_or_else(|| Error::internal(format!("no link {LOOPBACK} in {}", netns.path().display())))?;
    Ok((socket, link))
}

pub(crate) const PLUGIN: Plugin = Plugin {
    name: "loopback",
    versions: &version::SUPPORTED,
    add,
    del,
    check,
    status: |_| Ok(()),
    gc: |_| Ok(()),
};

fn add(call: &Call) -> Result<CniResult, Error> {
    let previous = call.config.previous()?;
    let sandbox = &call.environment.netns;
    let (mut socket, link) = open(&netns::open(sandbox)?)?;
    socket.set_link(link.index, LinkSettings::up()).map_err(|error| Error::from_chain(&error))?;
    let addresses = socket.addresses(Some(link.index)).map_err(|error| Error::from_chain(&error))?;
    if let Some(other) = addresses.iter().find(|address| !address.net.addr().is_loopback()) {
        return Err(Error::internal(format!(
            "loopback interface found with non-loopback address {:?}",
            other.net.to_string()
        )));
    }
    if let Some(previous) = previous {
        return Ok(previous);
    }
    let first = |is_ipv4: bool| {
        addresses.iter().map(|address| address.net).find(|net| net.addr().is_ipv4() == is_ipv4)
    };
    Ok(CniResult {
        interfaces: vec![Interface {
            name: LOOPBACK.to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: sandbox.clone(),
            ..Interface::default()
        }],
        ips: [first(true), first(false)]
            .into_iter()
            .flatten()
            .map(|address| IpConfig { interface: Some(0), address, gateway: None })
            .collect(),
        ..CniResult::default()
    })
}

fn del(call: &Call) -> Result<(), Error> {
    let Some(netns) = netns::open_if_present(&call.environment.netns)? else { return Ok(()) };
    let (mut socket, link) = open(&netns)?;
    let down = LinkSettings { up: Some(false), ..LinkSettings::default() };
    socket.set_link(link.index, down).map_err(|error| Error::from_chain(&error))
}

fn check(call: &Call) -> Result<(), Error> {
    let (_, link) = open(&netns::open(&call.environment.netns)?)?;
    if link.up { Ok(()) } else { Err(Error::internal(format!("link {LOOPBACK} is down"))) }
}
