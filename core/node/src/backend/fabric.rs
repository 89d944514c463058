//! What leads to the peers: the tunnel device, and for each peer its route with what the route needs.
//!
//! A peer behind the tunnel has three objects, all named by its own facts: a neighbour (the base address of its subnet
//! stands for its end of the tunnel), an FDB entry (that end's MAC address is at the peer's public IP), and a route. A peer
//! on a shared layer 2 has just the route. So a change of one peer touches the objects of that peer alone.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{Around, Peer, Way};
use crate::{
    Address, FdbEntry, Key, Link, LinkKind, MAIN_TABLE, Mac, Neighbour, Object, Objects, Observed,
    ROUTE_PROTOCOL, Route, RouteKind, Sysctl, Vxlan,
};

/// Bytes VXLAN takes from each packet: outer IPv4, UDP, VXLAN and inner Ethernet header.
const OVERHEAD: u32 = 50;
/// Below this the kernel has no IPv6 on a link, nor its settings.
const IPV6_MIN_MTU: u32 = 1280;
/// There exactly where the kernel has IPv6. Looked at, never written.
const IPV6_DEFAULT: &str = "net/ipv6/conf/default/accept_ra";

/// This node's tunnel device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// The network identifier; the device is called `flannel.` and this.
    pub vni: u32,
    /// UDP port, ours and the peers'.
    pub port: u16,
    /// The link the outer packets leave by.
    pub parent: String,
    /// Source address of the outer packets.
    pub local: Ipv4Addr,
    /// Our MAC address on the tunnel.
    pub mac: Mac,
    /// Size of the largest outer packet, in bytes.
    pub outer_mtu: u32,
    /// Our end's address inside: the base address of our subnet.
    pub address: Ipv4Addr,
    /// Learn from traffic.
    pub learning: bool,
    /// Carry group policy marks.
    pub gbp: bool,
}

/// What leads from this node to its peers. Empty where the cloud's route tables do that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fabric {
    /// The tunnel device, with backends that have one.
    pub tunnel: Option<Tunnel>,
    /// The peers.
    pub peers: Vec<Peer>,
}

/// A peer that no way leads to at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreached {
    /// The node's name.
    pub node: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Where it says it is.
    pub public_ip: Ipv4Addr,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "its public IP {} is on no layer 2 of this node, so that {} cannot be routed to it; put the nodes on one, or use backend vxlan",
            self.public_ip, self.subnet
        )
    }
}

enum Reach<'a> {
    Direct(&'a str),
    Through(&'a Tunnel, Mac),
}

impl Fabric {
    /// The settings an observation must include for [`Fabric::objects`].
    pub(crate) fn sysctls(&self) -> Vec<String> {
        let device = self.tunnel.as_ref().map(|tunnel| tunnel.accept_ra());
        device.into_iter().chain(self.tunnel.is_some().then(|| IPV6_DEFAULT.to_owned())).collect()
    }

    /// Objects without which the fabric works, too.
    pub(crate) fn dispensable(&self) -> Option<Key> {
        self.tunnel.as_ref().map(|tunnel| Key::Sysctl(tunnel.accept_ra()))
    }

    /// Everything that must exist.
    pub(crate) fn objects(&self, observed: &Observed) -> Objects {
        let mut objects = Objects::default();
        if let Some(tunnel) = &self.tunnel {
            tunnel.put(&mut objects, observed);
        }
        let around = Around::new(&observed.objects);
        for peer in &self.peers {
            match self.reach(peer, &around) {
                Some(Reach::Direct(link)) => {
                    objects.insert(Object::Route(route(peer.subnet, peer.public_ip, link, false)));
                }
                Some(Reach::Through(tunnel, mac)) => tunnel.put_peer(&mut objects, peer, mac),
                None => {}
            }
        }
        objects
    }

    /// The peers that no way leads to.
    #[must_use]
    pub fn unreached(&self, observed: &Observed) -> Vec<Unreached> {
        let around = Around::new(&observed.objects);
        let out_of_reach = self.peers.iter().filter(|peer| self.reach(peer, &around).is_none());
        out_of_reach
            .map(|peer| Unreached { node: peer.node.clone(), subnet: peer.subnet, public_ip: peer.public_ip })
            .collect()
    }

    fn reach<'a>(&'a self, peer: &Peer, around: &Around<'a>) -> Option<Reach<'a>> {
        let direct = || around.link_to(IpAddr::V4(peer.public_ip)).map(Reach::Direct);
        let through = |mac| self.tunnel.as_ref().map(|tunnel| Reach::Through(tunnel, mac));
        match peer.way {
            Way::Direct => direct(),
            Way::Tunnel(mac) => through(mac),
            Way::DirectOrTunnel(mac) => direct().or_else(|| through(mac)),
        }
    }
}

impl Tunnel {
    /// The device's name.
    #[must_use]
    pub fn device(&self) -> String {
        format!("flannel.{}", self.vni)
    }

    fn accept_ra(&self) -> String {
        format!("net/ipv6/conf/{}/accept_ra", self.device())
    }

    fn put(&self, objects: &mut Objects, observed: &Observed) {
        // The kernel refuses a tunnel whose packets do not fit the link they leave by.
        let parent = observed.objects.link(&self.parent).and_then(|link| link.mtu);
        let mtu = parent.map_or(self.outer_mtu, |mtu| mtu.min(self.outer_mtu)).saturating_sub(OVERHEAD);
        objects.insert(Object::Link(Link {
            name: self.device(),
            kind: LinkKind::Vxlan(Vxlan {
                vni: self.vni,
                port: self.port,
                local: Some(IpAddr::V4(self.local)),
                parent: Some(self.parent.clone()),
                group: None,
                learning: self.learning,
                gbp: self.gbp,
            }),
            mtu: Some(mtu),
            mac: Some(self.mac),
            alias: None,
            up: true,
        }));
        let address = IpNet::from(IpAddr::V4(self.address));
        objects.insert(Object::Address(Address { link: self.device(), address }));
        // A router advertisement from a pod must not give the node a route.
        let has_ipv6 = observed.objects.get(&Key::Sysctl(IPV6_DEFAULT.to_owned())).is_some();
        if has_ipv6 && mtu >= IPV6_MIN_MTU {
            objects.insert(Object::Sysctl(Sysctl { path: self.accept_ra(), value: "0".to_owned() }));
        }
    }

    fn put_peer(&self, objects: &mut Objects, peer: &Peer, mac: Mac) {
        let link = self.device();
        let end = peer.subnet.network();
        objects.insert(Object::Neighbour(Neighbour { link: link.clone(), address: IpAddr::V4(end), mac }));
        let destination = IpAddr::V4(peer.public_ip);
        objects.insert(Object::Fdb(FdbEntry { link: link.clone(), mac, destination }));
        objects.insert(Object::Route(route(peer.subnet, end, &link, true)));
    }
}

fn route(subnet: Ipv4Net, via: Ipv4Addr, link: &str, onlink: bool) -> Route {
    Route {
        table: MAIN_TABLE,
        destination: IpNet::V4(subnet),
        metric: 0,
        protocol: ROUTE_PROTOCOL,
        kind: RouteKind::Unicast,
        via: Some(IpAddr::V4(via)),
        link: Some(link.to_owned()),
        onlink,
        source: None,
    }
}
