//! What a lab is made of at one moment, as `loden lab status -o json` prints it and as checks and pictures read it.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::names::LabName;
use crate::spec::Inputs;

/// The whole lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The lab's name.
    pub lab: LabName,
    /// What it was asked to be.
    pub inputs: Inputs,
    /// Where its files are.
    pub directory: String,
    /// The VPC.
    pub vpc: Vpc,
    /// Cloud and cluster services in 100.64.0.0/10.
    pub services: Services,
    /// The way out of the VPC.
    pub internet: Internet,
    /// Instances that are no Kubernetes nodes.
    pub instances: Vec<Instance>,
    /// Kubernetes nodes.
    pub nodes: Vec<Node>,
    /// Pods.
    pub pods: Vec<Pod>,
    /// Route tables of the VPC, the system table first.
    pub route_tables: Vec<RouteTable>,
    /// Stand-in services of the cluster, installed on every node.
    pub cluster_services: Vec<ClusterService>,
    /// The Kubernetes clusters, one unless a second one was asked for.
    pub clusters: Vec<KubeCluster>,
}

impl Status {
    /// The system route table.
    #[must_use]
    pub fn system_table(&self) -> Option<&RouteTable> {
        self.route_tables.iter().find(|table| table.system)
    }

    /// The node or other instance of that name.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<&Instance> {
        self.nodes
            .iter()
            .map(|node| &node.instance)
            .chain(&self.instances)
            .find(|instance| instance.name == name)
    }
}

/// A Kubernetes cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeCluster {
    /// Its name, by which its controller marks route entries.
    pub name: String,
    /// The range that is cut into its nodes' subnets.
    pub pod_cidr: Ipv4Net,
    /// Where its members reach its API.
    pub kube_api: String,
    /// A kubeconfig for whoever is outside of the lab, on this machine.
    pub kubeconfig: String,
    /// Number of the last write to its API.
    pub revision: u64,
    /// Its controller's process.
    pub controller: Process,
}

/// The VPC and its vSwitches.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vpc {
    /// `vpc-…`
    pub id: String,
    /// Its primary CIDR.
    pub cidr: Ipv4Net,
    /// Its vSwitches.
    pub vswitches: Vec<VSwitch>,
}

/// One vSwitch.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VSwitch {
    /// `vsw-…`
    pub id: String,
    /// Its CIDR.
    pub cidr: Ipv4Net,
    /// Its gateway: the third address from the end, as the vendor reserves it.
    pub gateway: Ipv4Addr,
    /// The route table it is associated with.
    pub route_table: String,
}

/// Where the emulated cloud answers inside the lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The instance metadata service.
    pub metadata: String,
    /// VPC and ECS API.
    pub cloud_api: String,
}

/// The NAT gateway and the host behind it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Internet {
    /// The NAT gateway's address in the VPC.
    pub nat: Ipv4Addr,
    /// The elastic IP address it translates to.
    pub elastic_ip: Ipv4Addr,
    /// A host on the internet.
    pub host: Ipv4Addr,
}

/// One instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Its name, which is also its port's name on the vRouter and a part of its namespace's.
    pub name: String,
    /// `i-…`
    pub id: String,
    /// Primary private address of its ENI.
    pub address: Ipv4Addr,
    /// The vSwitch it is in.
    pub vswitch: String,
    /// Its network namespace.
    pub namespace: String,
    /// Whether its ENI's source/destination check is on.
    pub source_dest_check: bool,
}

/// One Kubernetes node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// The instance it runs on; node and instance have the same name.
    pub instance: Instance,
    /// Name of the cluster it belongs to.
    pub cluster: String,
    /// `spec.podCIDR`, once node IPAM has given one.
    pub subnet: Option<Ipv4Net>,
    /// Condition `NetworkUnavailable`.
    pub network_unavailable: Option<Condition>,
    /// Its flanneld.
    pub flanneld: Process,
    /// Whether `lab node crash` was done to it.
    pub crashed: bool,
}

impl Node {
    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.instance.name
    }

    /// Whether the cluster may place pods here: it has a subnet, and its routes are there.
    #[must_use]
    pub fn available(&self) -> bool {
        self.subnet.is_some()
            && self.network_unavailable.as_ref().is_some_and(|condition| condition.status == "False")
    }
}

/// A node condition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Word for machines.
    pub reason: String,
    /// Sentence for people.
    pub message: String,
}

/// A process of the lab.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its process ID while it runs.
    pub pid: Option<u32>,
    /// How often it was started again after it ended by itself.
    pub restarts: u32,
    /// Its log file.
    pub log: String,
}

/// One pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its network namespace.
    pub namespace: String,
}

/// One VPC route table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteTable {
    /// `vtb-…`
    pub id: String,
    /// Whether it is the VPC's system table.
    pub system: bool,
    /// How many custom entries it may hold.
    pub quota: u32,
    /// Its entries.
    pub entries: Vec<RouteEntry>,
}

/// One entry of a VPC route table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteEntry {
    /// `rte-…`, never given twice.
    pub id: String,
    /// Destination.
    pub destination: Ipv4Net,
    /// Next hop type as the API spells it (`Instance`, `NatGateway`, `local`, …).
    pub next_hop_type: String,
    /// Next hop ID; empty for local entries.
    pub next_hop: String,
    /// `Pending`, `Available`, `Modifying` or `Deleting`.
    pub status: String,
    /// Whether it counts towards the quota: not a system entry.
    pub custom: bool,
    /// Its name.
    pub name: String,
}

/// A service address that every node translates to one pod.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterService {
    /// Its address in the service CIDR.
    pub address: Ipv4Addr,
    /// The pod behind it.
    pub backend: String,
    /// The pod's address.
    pub backend_address: Ipv4Addr,
}
