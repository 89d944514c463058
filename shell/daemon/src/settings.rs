//! What the daemon is asked to do, and what follows from it together with a lease.

use std::path::PathBuf;

use ipnet::IpNet;
use loden_firewall::flannel::Masquerade;
use loden_lease::{AnnotationKeys, LeaseAttributes, NetConf, PublicIp, SubnetEnv, gateway_of};
use loden_node::external::{External, Wanted};
use loden_node::{BackendKind, Fabric, Network};

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
        external: &External,
        exempt: Option<Vec<IpNet>>,
        previous: &[IpNet],
    ) -> Network {
        Network {
            networks: self.networks(),
            subnets: subnets.to_vec(),
            masquerade: self.masquerade,
            exempt,
            forward_rules: self.forward_rules,
            blackhole: self.blackhole,
            previous_networks: previous.to_vec(),
            external_link: Some(external.link.clone()),
            fabric: Fabric::default(),
        }
    }

    /// The subnet file's content, once `subnets` are ours.
    pub(crate) fn subnet_env(&self, subnets: &[IpNet], external: &External) -> SubnetEnv {
        SubnetEnv {
            networks: self.networks(),
            subnets: subnets.iter().copied().map(gateway_of).collect(),
            mtu: external.mtu.saturating_sub(self.backend.overhead()),
            ip_masq: self.masquerade.is_some(),
        }
    }

    /// What peers are told.
    pub(crate) fn attributes(&self, external: &External) -> LeaseAttributes {
        LeaseAttributes {
            public_ip: PublicIp { ipv4: external.public_ipv4, ipv6: external.public_ipv6 },
            backend_type: self.backend.lease_type().to_owned(),
            ..LeaseAttributes::default()
        }
    }
}
