//! The peers of a VXLAN node as both programs make them: three objects each.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Name of the VXLAN device.
pub const DEVICE: &str = "flannel.1";
/// Its network identifier.
pub const VNI: u32 = 1;
/// Its UDP port.
pub const PORT: u16 = 8472;
/// Its MAC address.
pub const MAC: [u8; 6] = [0x0a, 0, 0, 0, 0, 1];
/// The cluster's network, out of which every peer has a /24.
pub const NETWORK: &str = "10.0.0.0/8";
/// The address of the device itself, before the first peer's.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
/// Routes, neighbours and FDB entries: one of each.
pub const OBJECTS_PER_PEER: usize = 3;

/// A node reached through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its pods.
    pub subnet: Ipv4Net,
    /// The address of its tunnel device: the next hop of the route and the neighbour's address.
    pub vtep: Ipv4Addr,
    /// The tunnel device's MAC address.
    pub mac: [u8; 6],
    /// The address packets are sent to.
    pub public_ip: Ipv4Addr,
}

/// The first `count` peers.
pub fn peers(count: u16) -> impl Iterator<Item = Peer> {
    (1..=count).map(|n| {
        let [high, low] = n.to_be_bytes();
        let vtep = Ipv4Addr::new(10, high, low, 0);
        Peer {
            subnet: Ipv4Net::new_assert(vtep, 24),
            vtep,
            mac: [0x0a, 0, 0, 1, high, low],
            public_ip: Ipv4Addr::new(192, 168, high, low),
        }
    })
}
