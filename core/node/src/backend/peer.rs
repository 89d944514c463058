//! Who is a peer, and what of a peer's word is believed.
//!
//! Every node describes itself in annotations that it may write as it likes, so nothing of them reaches the kernel unseen.
//! What must hold: an admitted peer's subnet lies in the network and overlaps neither ours nor another peer's, and no two
//! admitted peers share a tunnel MAC address. Were one admitted wrongly, a single misconfigured or hostile node
//! would draw another node's traffic to itself; were one refused wrongly, its pods would be cut off.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use loden_lease::{AttributesError, BackendData, LeaseAttributes};
use thiserror::Error;

use crate::object::{Mac, ParseMacError};

/// What another node says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The node's name.
    pub node: String,
    /// When the node was created, as text whose order is the order of time. Of two nodes that claim the same, the older
    /// one is believed.
    pub since: Option<String>,
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// What it publishes.
    pub lease: Result<LeaseAttributes, AttributesError>,
}

/// How a peer's subnet may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the peer's own address, on a layer 2 that we share.
    Direct,
    /// Through the tunnel, to this MAC address at the peer's end.
    Tunnel(Mac),
    /// By the peer's own address where it is on a layer 2 that we share, else through the tunnel.
    DirectOrTunnel(Mac),
}

/// A node whose subnet is to be reached from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's name.
    pub node: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// The address it is reached at.
    pub public_ip: Ipv4Addr,
    /// How.
    pub way: Way,
}

/// What this node is, as far as peers must fit it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oneself {
    /// The backend's name in leases.
    pub lease_type: &'static str,
    /// The cluster's network.
    pub network: Ipv4Net,
    /// Our subnet.
    pub subnet: Ipv4Net,
    /// The address peers reach us at.
    pub public_ip: Ipv4Addr,
    /// Our end of the tunnel, with backends that have one.
    pub tunnel: Option<OwnEnd>,
}

/// Our end of the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnEnd {
    /// The network identifier.
    pub vni: u32,
    /// Our MAC address.
    pub mac: Mac,
    /// Whether peers on a shared layer 2 are reached without the tunnel.
    pub direct: bool,
}

/// Why a node is no peer, or a doubtful one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Flaw {
    /// Its annotations cannot be read.
    #[error(transparent)]
    Attributes(#[from] AttributesError),
    /// It runs another backend.
    #[error(
        "its backend is {theirs:?} and ours {ours:?}; all nodes need the same Backend.Type, restart flanneld where it is old"
    )]
    Backend {
        /// What its lease says.
        theirs: String,
        /// What ours says.
        ours: &'static str,
    },
    /// It was given no subnet of the IPv4 network.
    #[error("it has no IPv4 pod CIDR")]
    NoSubnet,
    /// It does not say where it is.
    #[error("it publishes no IPv4 address")]
    NoPublicIp,
    /// It cannot be where it says.
    #[error(
        "its public IP {0} is no address of a single machine; correct its --public-ip or public-ip-overwrite"
    )]
    PublicIp(Ipv4Addr),
    /// It says it is here.
    #[error(
        "its public IP {0} is ours; it is the record of a machine that is gone (delete that Node), or one of us has a wrong --public-ip"
    )]
    OurPublicIp(Ipv4Addr),
    /// Its address lies within pods' addresses, so that the way to it would lead through itself.
    #[error(
        "its public IP {ip} lies in the pod subnet {subnet}; nodes need addresses outside the pod network"
    )]
    PublicIpInSubnet {
        /// Its address.
        ip: Ipv4Addr,
        /// The subnet, its own or ours.
        subnet: Ipv4Net,
    },
    /// Its subnet is not part of the network.
    #[error("its pod CIDR {subnet} lies outside Network {network}; give both the same cluster CIDR")]
    OutsideNetwork {
        /// Its subnet.
        subnet: Ipv4Net,
        /// The network.
        network: Ipv4Net,
    },
    /// Its subnet is, in part, ours.
    #[error(
        "its pod CIDR {theirs} overlaps ours, {ours}; two nodes were given the same addresses: remove and re-create one of the two Nodes"
    )]
    OurSubnet {
        /// Its subnet.
        theirs: Ipv4Net,
        /// Ours.
        ours: Ipv4Net,
    },
    /// Its subnet is, in part, that of another node, which has been there for longer.
    #[error(
        "its pod CIDR {subnet} overlaps that of the older node {with}; remove and re-create one of the two Nodes"
    )]
    SharedSubnet {
        /// Its subnet.
        subnet: Ipv4Net,
        /// The node that is believed.
        with: String,
    },
    /// It says nothing about its end of the tunnel.
    #[error("it publishes no tunnel MAC address")]
    NoMac,
    /// Its MAC address cannot be read.
    #[error("its tunnel MAC address: {0}")]
    MalformedMac(#[from] ParseMacError),
    /// Its MAC address names no single station.
    #[error("its tunnel MAC address {0} is no unicast address")]
    GroupMac(Mac),
    /// Its MAC address is ours.
    #[error(
        "its tunnel MAC address {0} is ours; remove the annotation backend-data of one of us and restart its flanneld"
    )]
    OurMac(Mac),
    /// Its MAC address is that of another node, which has been there for longer.
    #[error(
        "its tunnel MAC address {mac} is that of the older node {with}; remove its annotation backend-data and restart its flanneld"
    )]
    SharedMac {
        /// The address.
        mac: Mac,
        /// The node that is believed.
        with: String,
    },
    /// Its tunnel is another one.
    #[error(
        "its VNI is {theirs} and ours {ours}; all nodes need the same Backend.VNI, restart flanneld where it is old"
    )]
    Vni {
        /// Its identifier.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// It is reached at the address of another node; it stays a peer.
    #[error(
        "its public IP {ip} is that of node {with}, too; what is sent to one of the two arrives at the other (delete the Node that is gone)"
    )]
    SharedPublicIp {
        /// The address.
        ip: Ipv4Addr,
        /// The other node.
        with: String,
    },
}

impl Flaw {
    /// Whether it is a quarrel with this very node, which its operator should hear of.
    #[must_use]
    pub fn concerns_us(&self) -> bool {
        matches!(self, Self::OurPublicIp(_) | Self::OurSubnet { .. } | Self::OurMac(_))
    }
}

/// Who is a peer and who is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admission {
    /// The peers, in the order of their age.
    pub peers: Vec<Peer>,
    /// What is wrong with which node. All of these but [`Flaw::SharedPublicIp`] are no peers.
    pub flaws: Vec<(String, Flaw)>,
}

/// Decides who is a peer. The outcome does not depend on the order of the claims.
#[must_use]
pub fn admit<'a>(oneself: &Oneself, claims: impl IntoIterator<Item = &'a Claim>) -> Admission {
    let mut claims: Vec<&Claim> = claims.into_iter().collect();
    claims.sort_by_key(|claim| (claim.since.is_none(), claim.since.as_deref(), claim.node.as_str()));
    let mut gate = Gate::default();
    let mut admission = Admission::default();
    for claim in claims {
        match oneself.read(claim).and_then(|peer| gate.pass(&peer).map(|()| peer)) {
            Ok(peer) => {
                if let Some(with) = gate.shared_public_ip(&peer) {
                    let flaw = Flaw::SharedPublicIp { ip: peer.public_ip, with };
                    admission.flaws.push((peer.node.clone(), flaw));
                }
                admission.peers.push(peer);
            }
            Err(flaw) => admission.flaws.push((claim.node.clone(), flaw)),
        }
    }
    admission
}

impl Oneself {
    /// The peer a claim describes, as far as that can be judged from it alone.
    fn read(&self, claim: &Claim) -> Result<Peer, Flaw> {
        let lease = claim.lease.as_ref().map_err(Clone::clone)?;
        if lease.backend_type != self.lease_type {
            return Err(Flaw::Backend { theirs: lease.backend_type.clone(), ours: self.lease_type });
        }
        let subnet = claim.pod_cidrs.iter().find_map(|cidr| match cidr {
            IpNet::V4(net) => Some(net.trunc()),
            IpNet::V6(_) => None,
        });
        let subnet = subnet.ok_or(Flaw::NoSubnet)?;
        if !self.network.contains(&subnet) {
            return Err(Flaw::OutsideNetwork { subnet, network: self.network });
        }
        if subnet.contains(&self.subnet) || self.subnet.contains(&subnet) {
            return Err(Flaw::OurSubnet { theirs: subnet, ours: self.subnet });
        }
        let public_ip = self.public_ip(lease.public_ip.ipv4, subnet)?;
        let way = match self.tunnel {
            None => Way::Direct,
            Some(end) if end.direct => Way::DirectOrTunnel(end.mac_of(&lease.backend_data)?),
            Some(end) => Way::Tunnel(end.mac_of(&lease.backend_data)?),
        };
        Ok(Peer { node: claim.node.clone(), subnet, public_ip, way })
    }

    fn public_ip(&self, ip: Option<Ipv4Addr>, subnet: Ipv4Net) -> Result<Ipv4Addr, Flaw> {
        let ip = ip.ok_or(Flaw::NoPublicIp)?;
        // "This network", the loopback, groups and what is reserved above them.
        let [first, ..] = ip.octets();
        if first == 0 || first == 127 || first >= 224 {
            return Err(Flaw::PublicIp(ip));
        }
        if ip == self.public_ip {
            return Err(Flaw::OurPublicIp(ip));
        }
        match [subnet, self.subnet].into_iter().find(|subnet| subnet.contains(&ip)) {
            Some(subnet) => Err(Flaw::PublicIpInSubnet { ip, subnet }),
            None => Ok(ip),
        }
    }
}

impl OwnEnd {
    fn mac_of(&self, data: &BackendData) -> Result<Mac, Flaw> {
        let BackendData::Vxlan { vni, vtep_mac } = data else { return Err(Flaw::NoMac) };
        // 0 is the peer that does not tell.
        if *vni != 0 && *vni != self.vni {
            return Err(Flaw::Vni { theirs: *vni, ours: self.vni });
        }
        let mac: Mac = vtep_mac.parse()?;
        if !mac.is_unicast() {
            return Err(Flaw::GroupMac(mac));
        }
        if mac == self.mac { Err(Flaw::OurMac(mac)) } else { Ok(mac) }
    }
}

/// What has been given away already.
#[derive(Default)]
struct Gate {
    /// Owners of subnets by first address, with the last one. They do not overlap.
    subnets: BTreeMap<Ipv4Addr, (Ipv4Addr, String)>,
    macs: BTreeMap<Mac, String>,
    public_ips: BTreeMap<Ipv4Addr, String>,
}

impl Gate {
    fn pass(&mut self, peer: &Peer) -> Result<(), Flaw> {
        let (first, last) = (peer.subnet.network(), peer.subnet.broadcast());
        // Of those that begin before our end only the last can reach into us, since they do not overlap.
        if let Some((_, (end, owner))) = self.subnets.range(..=last).next_back()
            && *end >= first
        {
            return Err(Flaw::SharedSubnet { subnet: peer.subnet, with: owner.clone() });
        }
        if let Way::Tunnel(mac) | Way::DirectOrTunnel(mac) = peer.way {
            match self.macs.entry(mac) {
                Entry::Occupied(owner) => {
                    return Err(Flaw::SharedMac { mac, with: owner.get().clone() });
                }
                Entry::Vacant(free) => free.insert(peer.node.clone()),
            };
        }
        self.subnets.insert(first, (last, peer.node.clone()));
        Ok(())
    }

    fn shared_public_ip(&mut self, peer: &Peer) -> Option<String> {
        self.public_ips.insert(peer.public_ip, peer.node.clone())
    }
}
