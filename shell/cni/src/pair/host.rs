//! The host's side, as far as plugins with a pair have it in common.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use loden_cni_protocol::error::Error;
use loden_netlink::{Address, Link, RouteSocket, address_flags, sysctl};

use super::kernel;

/// Router advertisements must not configure the host through its containers. Hosts without IPv6 have nothing to set.
pub(crate) fn quieten(links: &[&str]) {
    for link in links {
        let _ = sysctl::write(&format!("net/ipv6/conf/{link}/accept_ra"), "0");
    }
}

/// An address with the broadcast address that the Go plugins set.
pub(crate) fn address(index: u32, net: IpNet) -> Address {
    let broadcast: Option<Ipv4Addr> = match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(net.broadcast()),
        _ => None,
    };
    Address { broadcast, ..Address::new(index, net) }
}

/// An IPv6 address can be used at once unless the detection of duplicates was asked for: on a link that holds nobody but this host's
/// containers nobody else gives addresses, and the first packets would wait for about a second.
pub(crate) fn usable(address: Address, detects: bool) -> Address {
    let nodad = if detects || address.net.addr().is_ipv4() { 0 } else { address_flags::NODAD };
    Address { flags: address.flags | nodad, ..address }
}

/// Makes the node forward packets of the families of these addresses.
pub(crate) fn forward(addresses: &[IpNet]) -> Result<(), Error> {
    for (is_ipv4, key) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
        let wanted = addresses.iter().any(|net| matches!(net.addr(), IpAddr::V4(_)) == is_ipv4);
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
pub(crate) fn look_up(socket: &mut RouteSocket, index: u32, name: &str) -> Result<Link, Error> {
    socket
        .link_by_index(index)
        .map_err(kernel)?
        .ok_or_else(|| Error::internal(format!("link {name} vanished while the container was attached")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_addresses_are_those_of_the_go_library() {
        let broadcast = |text: &str| address(1, text.parse().unwrap()).broadcast;
        assert_eq!(broadcast("10.1.0.5/24"), "10.1.0.255".parse().ok());
        assert_eq!(broadcast("10.1.0.5/31"), None);
        assert_eq!(broadcast("fd00::1/64"), None);
    }
}
