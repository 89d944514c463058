//! What the daemon is asked to do, and what follows from it together with a lease.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use loden_firewall::flannel::Masquerade;
use loden_lease::{AnnotationKeys, BackendData, LeaseAttributes, NetConf, PublicIp, SubnetEnv, gateway_of};
use loden_node::external::{External, Wanted};
use loden_node::{BackendKind, Fabric, Mac, Network, Oneself, OwnEnd, Tunnel, VxlanSettings};

use crate::Error;

/// Which networks outside the cluster see pods' own addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VpcCidrs {
    /// What the metadata service says.
    Auto,
    /// These, possibly none.
    Fixed(Vec<IpNet>),
}

/// What the daemon is asked to do. It does not change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's networks.
    pub conf: NetConf,
    /// How peers' subnets are reached.
    pub backend: BackendKind,
    /// The tunnel's settings; with backend vxlan only.
    pub vxlan: Option<VxlanSettings>,
    /// Our Node object's name.
    pub node_name: String,
    /// How our annotations are called.
    pub annotation_keys: AnnotationKeys,
    /// Which external interface and public addresses are asked for. Which families it must have follows from `conf`.
    pub external: Wanted,
    /// How to masquerade; `None` for not at all.
    pub masquerade: Option<Masquerade>,
    /// Accept forwarded pod traffic explicitly.
    pub forward_rules: bool,
    /// Drop what is sent to an unused address of the own subnet.
    pub blackhole: bool,
    /// Networks outside the cluster that see pods' own addresses.
    pub vpc_cidrs: VpcCidrs,
    /// Where the CNI plugin looks for its subnet.
    pub subnet_file: PathBuf,
    /// Mark the node's network available once it is, as flannel does.
    pub set_network_unavailable: bool,
}

impl Settings {
    /// The cluster's networks of the families that are on.
    pub(crate) fn networks(&self) -> Vec<IpNet> {
        let v4 = self.conf.network.filter(|_| self.conf.enable_ipv4).map(IpNet::V4);
        let v6 = self.conf.ipv6_network.filter(|_| self.conf.enable_ipv6).map(IpNet::V6);
        v4.into_iter().chain(v6).collect()
    }

    /// The external interface to look for.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted { ipv4: self.conf.enable_ipv4, ipv6: self.conf.enable_ipv6, ..self.external.clone() }
    }

    /// The node's network, once `subnets` are ours.
    pub(crate) fn network(
        &self,
        subnets: &[IpNet],
        standpoint: &Standpoint,
        exempt: Option<Vec<IpNet>>,
        previous: &[IpNet],
        fabric: Fabric,
    ) -> Network {
        Network {
            networks: self.networks(),
            subnets: subnets.to_vec(),
            masquerade: self.masquerade,
            exempt,
            forward_rules: self.forward_rules,
            blackhole: self.blackhole,
            previous_networks: previous.to_vec(),
            external_link: Some(standpoint.external.link.clone()),
            fabric,
            node: self.node_name.clone(),
            mac: Some(standpoint.mac),
        }
    }

    /// The subnet file's content, once `subnets` are ours.
    pub(crate) fn subnet_env(&self, subnets: &[IpNet], external: &External) -> SubnetEnv {
        SubnetEnv {
            networks: self.networks(),
            subnets: subnets.iter().copied().map(gateway_of).collect(),
            mtu: self.outer_mtu(external).saturating_sub(self.backend.overhead()),
            ip_masq: self.masquerade.is_some(),
        }
    }

    /// The largest packet that leaves by the external interface.
    fn outer_mtu(&self, external: &External) -> u32 {
        let asked = self.vxlan.as_ref().and_then(|vxlan| vxlan.mtu);
        asked.map_or(external.mtu, |mtu| mtu.min(external.mtu))
    }

    /// Whether this node leads its traffic to the peers itself, and so must know them.
    #[must_use]
    pub fn has_peers(&self) -> bool {
        matches!(self.backend, BackendKind::HostGw | BackendKind::Vxlan)
    }

    /// What peers must fit; `None` with backends that know no peers.
    pub(crate) fn oneself(&self, subnets: &[IpNet], standpoint: &Standpoint) -> Option<Oneself> {
        let subnet = subnets.iter().find_map(|subnet| match subnet {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        });
        Some(Oneself {
            lease_type: self.backend.lease_type(),
            network: self.conf.network.filter(|_| self.has_peers())?,
            subnet: subnet?,
            public_ip: standpoint.external.public_ipv4?,
            tunnel: self.vxlan.as_ref().map(|vxlan| OwnEnd {
                vni: vxlan.vni,
                mac: standpoint.mac,
                direct: vxlan.direct_routing,
            }),
        })
    }

    /// Our end of the tunnel, with backends that have one.
    pub(crate) fn tunnel(&self, oneself: &Oneself, standpoint: &Standpoint) -> Option<Tunnel> {
        let vxlan = self.vxlan.as_ref()?;
        Some(Tunnel {
            vni: vxlan.vni,
            port: vxlan.port,
            parent: standpoint.external.link.clone(),
            local: standpoint.local?,
            mac: standpoint.mac,
            outer_mtu: self.outer_mtu(&standpoint.external),
            address: oneself.subnet.network(),
            learning: vxlan.learning,
            gbp: vxlan.gbp,
        })
    }

    /// What peers are told.
    pub(crate) fn attributes(&self, standpoint: &Standpoint) -> LeaseAttributes {
        let external = &standpoint.external;
        LeaseAttributes {
            public_ip: PublicIp { ipv4: external.public_ipv4, ipv6: external.public_ipv6 },
            backend_type: self.backend.lease_type().to_owned(),
            backend_data: self.vxlan.as_ref().map_or(BackendData::None, |vxlan| BackendData::Vxlan {
                vni: vxlan.vni,
                vtep_mac: standpoint.mac.to_string(),
            }),
            ..LeaseAttributes::default()
        }
    }
}

/// Where this node stands towards its peers. Chosen once: peers are told of it, so it does not wander.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standpoint {
    pub(crate) external: External,
    /// What outer packets have as their source: the public IP where it is an address of the external interface.
    pub(crate) local: Option<Ipv4Addr>,
    /// Our MAC address on the tunnel, whether or not there is one.
    pub(crate) mac: Mac,
}

impl Standpoint {
    /// `addresses` are those of the external interface, `published` is our MAC address as of an earlier run.
    pub(crate) fn new(
        settings: &Settings,
        external: External,
        addresses: &[IpNet],
        published: Option<Mac>,
    ) -> Result<Self, Error> {
        let public_is_own = |public: &Ipv4Addr| addresses.iter().any(|net| net.addr() == IpAddr::V4(*public));
        let local = external.public_ipv4.filter(public_is_own);
        if settings.backend == BackendKind::HostGw && local.is_none() {
            return Err(Error::PublicIpElsewhere {
                public_ip: external.public_ipv4.map(|ip| ip.to_string()).unwrap_or_default(),
                link: external.link,
            });
        }
        let vni = settings.vxlan.as_ref().map_or(0, |vxlan| vxlan.vni);
        Ok(Self {
            local: local.or(external.ipv4),
            mac: published
                .filter(|mac: &Mac| mac.is_unicast())
                .unwrap_or_else(|| Mac::of_node(&settings.node_name, vni)),
            external,
        })
    }
}
