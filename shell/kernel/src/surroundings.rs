//! What the choice of the external interface depends on, read from the kernel.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_netlink::{IpFamily, RouteFilter, RouteSocket};
use loden_node::MAIN_TABLE;
use loden_node::external::{Candidate, CandidateAddress, Surroundings};

/// Bits of an address' flags (`linux/if_addr.h`).
const TEMPORARY: u32 = 0x01;
const DEPRECATED: u32 = 0x20;
const PERMANENT: u32 = 0x80;

/// Reads links, addresses and default routes, and looks up the way to `can_reach` if one is given.
///
/// # Errors
/// When a listing is not complete. A destination without a route is no error; it is simply not reached.
pub(crate) fn surroundings(
    socket: &mut RouteSocket,
    can_reach: Option<IpAddr>,
) -> loden_netlink::Result<Surroundings> {
    let links = socket.links()?;
    let addresses = socket.addresses(None)?;
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let mut default_route = |family: IpFamily| -> loden_netlink::Result<Option<String>> {
        let filter = RouteFilter { table: Some(MAIN_TABLE), ..RouteFilter::default() };
        let routes = socket.routes(family, filter)?;
        let first = routes.iter().find(|route| route.destination.prefix_len() == 0);
        Ok(first
            .and_then(|route| route.link.or_else(|| route.hops.first().map(|hop| hop.link)))
            .and_then(name))
    };
    let default_v4 = default_route(IpFamily::V4)?;
    let default_v6 = default_route(IpFamily::V6)?;
    let reach = can_reach
        .and_then(|target| socket.route_to(target).ok())
        .and_then(|route| Some((name(route.link?)?, route.source)));
    let candidates = links
        .iter()
        .map(|link| Candidate {
            name: link.name.clone(),
            mtu: link.mtu,
            addresses: addresses
                .iter()
                .filter(|own| own.index == link.index)
                .map(|own| candidate(own.net, own.flags))
                .collect(),
        })
        .collect();
    Ok(Surroundings { candidates, default_v4, default_v6, reach })
}

fn candidate(net: IpNet, flags: u32) -> CandidateAddress {
    CandidateAddress {
        net,
        deprecated: flags & DEPRECATED != 0,
        permanent: flags & PERMANENT != 0,
        temporary: flags & TEMPORARY != 0 && net.addr().is_ipv6(),
    }
}
