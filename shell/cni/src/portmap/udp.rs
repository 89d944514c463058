//! UDP flows that go on by rules that are gone, or that came too late for them.
//!
//! Best effort throughout, as with the Go plugin: the rules are what was asked for, and a node may track no connections at all.

use std::net::IpAddr;

use loden_cni_protocol::portmap::{Container, PortMapping};
use loden_firewall::{Action, L4, Match, Rule};
use loden_netlink::IpFamily;
use loden_netlink::conntrack::{ConntrackSocket, UdpFlow};

/// Forgets flows to mapped ports that are answered by another than the container, so that their next packets take the new rules.
pub(super) fn forget_older(mappings: &[PortMapping], container: &Container) {
    forget(mappings, container, |flow, address| flow.answered_by != address);
}

/// Forgets flows that the container answered, so that their next packets are not sent to whoever gets its address.
pub(super) fn forget_container(mappings: &[PortMapping], container: &Container) {
    forget(mappings, container, |flow, address| flow.answered_by == address);
}

/// The same for the containers that these nftables rules led to.
pub(super) fn forget_removed(rules: &[Rule]) {
    for rule in rules {
        let Action::DestinationNat { addr, port: Some(container_port) } = rule.action else { continue };
        let host_port = rule.matches.iter().find_map(|m| match m {
            Match::DestinationPort { proto: L4::Udp, port } => Some(*port),
            _ => None,
        });
        let Some(host_port) = host_port else { continue };
        let mapping = PortMapping { host_port, container_port, protocol: "udp".to_owned(), host_ip: None };
        let mut container = Container::default();
        match addr {
            IpAddr::V4(addr) => container.v4 = Some(addr.into()),
            IpAddr::V6(addr) => container.v6 = Some(addr.into()),
        }
        forget_container(&[mapping], &container);
    }
}

fn forget(mappings: &[PortMapping], container: &Container, is_stale: impl Fn(&UdpFlow, IpAddr) -> bool) {
    let mappings: Vec<&PortMapping> =
        mappings.iter().filter(|mapping| mapping.protocol == "udp" || mapping.protocol == "17").collect();
    if mappings.is_empty() {
        return;
    }
    let Ok(mut socket) = ConntrackSocket::open() else { return };
    for address in container.addresses().map(|net| net.addr()) {
        let ports: Vec<u16> = mappings
            .iter()
            .filter(|mapping| mapping.is_for(address.is_ipv4()))
            .map(|mapping| mapping.host_port)
            .collect();
        let Ok(mut flows) = socket.udp_flows_to(IpFamily::of(address), &ports) else { continue };
        flows.retain(|flow| {
            let is_mapped = |mapping: &&PortMapping| {
                mapping.host_port == flow.port
                    && mapping.only_at().is_none_or(|only| only == flow.destination)
            };
            is_stale(flow, address) && mappings.iter().any(is_mapped)
        });
        let _ = socket.forget(&flows);
    }
}
