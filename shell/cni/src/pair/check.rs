//! CHECK of what every plugin with a pair says alike: the container's end, its addresses and its routes.

use loden_cni_protocol::error::Error;
use loden_cni_protocol::link::next_hop_of;
use loden_cni_protocol::{CniResult, Interface};
use loden_netlink::{IpFamily, Link, LinkKind, NetNs, RouteFilter, RouteSocket, table};

use super::{kernel, mac_of};
use crate::call::Call;

/// What ADD said; CHECK cannot do without it.
pub(crate) fn previous(call: &Call) -> Result<CniResult, Error> {
    let missing = || Error::internal("required prevResult missing: CHECK compares with it");
    call.config.previous()?.ok_or_else(missing)
}

/// Checks the container's side and returns its end of the pair.
pub(crate) fn container(call: &Call, sandbox: &NetNs, previous: &CniResult) -> Result<Link, Error> {
    let mut inside = RouteSocket::open_in(sandbox).map_err(kernel)?;
    let (number, link) = check_container(&mut inside, call, previous)?;
    check_addresses(&mut inside, &link, number, previous)?;
    check_routes(&mut inside, &link, previous)?;
    Ok(link)
}

/// The interfaces of this name and place in the result, with their numbers.
pub(crate) fn listed<'a>(
    previous: &'a CniResult,
    name: &'a str,
    sandbox: &'a str,
) -> impl Iterator<Item = (usize, &'a Interface)> {
    previous
        .interfaces
        .iter()
        .enumerate()
        .filter(move |(_, interface)| interface.name == name && interface.sandbox == sandbox)
}

/// The link has the hardware address that the result gives it.
pub(crate) fn check_mac(link: &Link, listed: &Interface) -> Result<(), Error> {
    if listed.mac.is_empty() || listed.mac.eq_ignore_ascii_case(&mac_of(link)) {
        return Ok(());
    }
    Err(Error::internal(format!(
        "link {} has address {}, not {} as ADD said",
        link.name,
        mac_of(link),
        listed.mac
    )))
}

fn check_container(
    inside: &mut RouteSocket,
    call: &Call,
    previous: &CniResult,
) -> Result<(usize, Link), Error> {
    let (name, sandbox) = (&call.environment.ifname, &call.environment.netns);
    let (number, listed) = listed(previous, name, sandbox).next().ok_or_else(|| {
        Error::internal(format!("link {name} in {sandbox} is not among the interfaces of prevResult"))
    })?;
    let link = inside
        .link_by_name(name)
        .map_err(kernel)?
        .ok_or_else(|| Error::internal(format!("link {name} does not exist any more in {sandbox}")))?;
    if link.kind != LinkKind::Veth {
        return Err(Error::internal(format!("link {name} in {sandbox} is not a veth")));
    }
    check_mac(&link, listed)?;
    Ok((number, link))
}

/// The host's end of the pair, which ADD must have listed.
pub(crate) fn port(host: &mut RouteSocket, near: &Link, previous: &CniResult) -> Result<Link, Error> {
    let port = match near.lower {
        Some(index) => host.link_by_index(index).map_err(kernel)?,
        None => None,
    };
    let port =
        port.ok_or_else(|| Error::internal(format!("the host's end of link {} does not exist", near.name)))?;
    let (_, listed) = listed(previous, &port.name, "").next().ok_or_else(|| {
        Error::internal(format!("link {} is not among the interfaces of prevResult", port.name))
    })?;
    check_mac(&port, listed)?;
    Ok(port)
}

fn check_addresses(
    inside: &mut RouteSocket,
    link: &Link,
    number: usize,
    previous: &CniResult,
) -> Result<(), Error> {
    let present = inside.addresses(Some(link.index)).map_err(kernel)?;
    for ip in &previous.ips {
        let elsewhere = ip.interface.is_some_and(|interface| usize::try_from(interface) != Ok(number));
        if elsewhere {
            continue;
        }
        if !present.iter().any(|address| address.net == ip.address) {
            return Err(Error::internal(format!(
                "link {} does not have address {} any more",
                link.name, ip.address
            )));
        }
        let network = ip.address.trunc();
        let routes = routes_of(inside, link, network.addr().is_ipv4())?;
        if !routes.iter().any(|route| route.destination == network) {
            return Err(Error::internal(format!(
                "there is no route to {network} by link {} any more",
                link.name
            )));
        }
    }
    Ok(())
}

fn check_routes(inside: &mut RouteSocket, link: &Link, previous: &CniResult) -> Result<(), Error> {
    for route in &previous.routes {
        let wanted_table = route.table.and_then(|table| u32::try_from(table).ok()).unwrap_or(table::MAIN);
        let next_hop = next_hop_of(route, previous).filter(|_| route.dst.prefix_len() > 0);
        let found = routes_of(inside, link, route.dst.addr().is_ipv4())?.into_iter().any(|present| {
            present.destination == route.dst.trunc()
                && present.table == wanted_table
                && next_hop.is_none_or(|next_hop| present.next_hop == Some(next_hop))
        });
        if !found {
            let via = next_hop.map(|next_hop| format!(" via {next_hop}")).unwrap_or_default();
            return Err(Error::internal(format!("there is no route to {}{via} any more", route.dst)));
        }
    }
    Ok(())
}

fn routes_of(
    inside: &mut RouteSocket,
    link: &Link,
    is_ipv4: bool,
) -> Result<Vec<loden_netlink::Route>, Error> {
    let family = if is_ipv4 { IpFamily::V4 } else { IpFamily::V6 };
    inside.routes(family, RouteFilter { link: Some(link.index), ..RouteFilter::default() }).map_err(kernel)
}
