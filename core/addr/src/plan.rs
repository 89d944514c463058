//! What a cluster of given address ranges can be: how many nodes and pods, and which limit binds.
//!
//! It owns the rules that the five parameters of cluster creation (VPC, vSwitches, pods per node, pod CIDR, service CIDR) must keep with each other.
//! The invariant: a plan that is returned can be built. Pod and service CIDR can never be changed afterwards, so a plan that should have been
//! refused costs a new cluster.

use std::fmt;

use ipnet::IpNet;
use serde::Serialize;

use crate::rules::{self, BrokenRule};

/// Custom route entries that one route table takes unless the quota was raised (`vpc_quota_route_entrys_num`).
pub const DEFAULT_ROUTE_QUOTA: u32 = 200;

/// The numbers of pods per node that the node masks /24 to /28 give.
pub const PODS_PER_NODE: [u32; 5] = [16, 32, 64, 128, 256];

/// The parameters of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInputs {
    /// The VPC's own ranges: the primary one, then any secondary ones.
    pub vpc_cidrs: Vec<IpNet>,
    /// The vSwitches that nodes are put in.
    pub vswitches: Vec<IpNet>,
    /// Addresses per node: 16, 32, 64, 128 or 256.
    pub pods_per_node: u32,
    /// The range that is cut into one subnet per node.
    pub pod_cidr: IpNet,
    /// The range of service addresses; exists only inside the cluster.
    pub service_cidr: IpNet,
    /// Custom route entries that the table takes.
    pub route_quota: u32,
    /// Custom route entries that the table already has, made by others.
    pub existing_entries: u32,
    /// The account may build VPCs from public ranges (`ack.white_list/supportVPCWithPublicIPRanges`).
    pub public_vpc_ranges: bool,
}

/// What binds the number of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The pod CIDR has no more subnets.
    PodCidr,
    /// The route table takes no more entries.
    RouteQuota,
}

/// What a cluster can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterPlan {
    /// The VPC's ranges.
    pub vpc_cidrs: Vec<IpNet>,
    /// The nodes' vSwitches.
    pub vswitches: Vec<IpNet>,
    /// The pod CIDR.
    pub pod_cidr: IpNet,
    /// The service CIDR.
    pub service_cidr: IpNet,
    /// The mask of a node's subnet.
    pub node_mask: u8,
    /// Subnets that the pod CIDR has.
    pub nodes_by_cidr: u64,
    /// Nodes that the route table has room for: quota less what others hold.
    pub nodes_by_quota: u64,
    /// Nodes possible: the smaller of the two.
    pub nodes: u64,
    /// Which of the two it is; the pod CIDR when they are equal, since a quota can be raised and a pod CIDR cannot.
    pub limit: Limit,
    /// Addresses in a node's subnet.
    pub addresses_per_node: u32,
    /// Addresses that pods of one node can have: without the subnet's network and broadcast address and the bridge's gateway address.
    pub usable_pod_addresses_per_node: u32,
    /// kubelet's `maxPods`: with it the scheduler never places a pod for which the node has no address.
    pub max_pods: u32,
    /// Pods possible in the whole cluster.
    pub pods: u64,
    /// Addresses for services, the first (network) one excepted.
    pub services: u64,
    /// Custom route entries that the table takes.
    pub route_quota: u32,
    /// Custom route entries of others in it.
    pub existing_entries: u32,
    /// The first and the last node's subnet.
    pub first_node_subnet: IpNet,
    /// The last possible node's subnet, the quota permitting.
    pub last_node_subnet: IpNet,
    /// What is allowed, but should be known.
    pub notes: Vec<String>,
}

/// Checks the parameters against every rule, and says what the cluster can be.
///
/// # Errors
/// Every broken rule, each with the pair that breaks it.
pub fn plan(inputs: &ClusterInputs) -> Result<ClusterPlan, Vec<BrokenRule>> {
    let broken = rules::broken(inputs);
    if !broken.is_empty() {
        return Err(broken);
    }
    let shape = rules::node_mask(inputs.pods_per_node)
        .and_then(|mask| crate::Subnets::new(inputs.pod_cidr, mask).ok())
        .and_then(|subnets| {
            Some((subnets, subnets.nth(0)?, subnets.nth(subnets.count().saturating_sub(1))?))
        });
    let Some((subnets, first_node_subnet, last_node_subnet)) = shape else {
        return Err(vec![rules::no_node_fits(inputs)]);
    };

    let nodes_by_cidr = u64::try_from(subnets.count()).unwrap_or(u64::MAX);
    let nodes_by_quota = u64::from(inputs.route_quota.saturating_sub(inputs.existing_entries));
    let nodes = nodes_by_cidr.min(nodes_by_quota);
    let usable = usable_addresses(inputs.pods_per_node);
    let service_bits = u32::from(inputs.service_cidr.max_prefix_len() - inputs.service_cidr.prefix_len());

    let mut notes = Vec::new();
    for vpc in inputs.vpc_cidrs.iter().filter(|vpc| crate::overlap(**vpc, inputs.service_cidr)) {
        notes.push(format!(
            "service CIDR {} overlaps VPC CIDR {vpc}: machines in the shared part cannot be reached from pods, and a vSwitch there would not be allowed",
            inputs.service_cidr
        ));
    }
    if nodes_by_quota < nodes_by_cidr {
        notes.push(format!(
            "the pod CIDR has room for {nodes_by_cidr} nodes, the route table for {nodes_by_quota}: raise the quota vpc_quota_route_entrys_num to use all of it"
        ));
    }

    Ok(ClusterPlan {
        vpc_cidrs: inputs.vpc_cidrs.clone(),
        vswitches: inputs.vswitches.clone(),
        pod_cidr: inputs.pod_cidr,
        service_cidr: inputs.service_cidr,
        node_mask: subnets.prefix(),
        nodes_by_cidr,
        nodes_by_quota,
        nodes,
        limit: if nodes_by_quota < nodes_by_cidr { Limit::RouteQuota } else { Limit::PodCidr },
        addresses_per_node: inputs.pods_per_node,
        usable_pod_addresses_per_node: usable,
        max_pods: usable,
        pods: nodes.saturating_mul(u64::from(usable)),
        services: 1u64.checked_shl(service_bits).unwrap_or(u64::MAX).saturating_sub(1),
        route_quota: inputs.route_quota,
        existing_entries: inputs.existing_entries,
        first_node_subnet,
        last_node_subnet,
        notes,
    })
}

/// Addresses of a node's subnet that pods can have: host-local gives neither the network nor the broadcast address, and the bridge takes one as
/// the pods' gateway.
#[must_use]
pub fn usable_addresses(addresses: u32) -> u32 {
    addresses.saturating_sub(3)
}

impl fmt::Display for ClusterPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let mut line = |name: &str, value: &str| writeln!(f, "{name:<28}{value}");
        line("VPC", &list(&self.vpc_cidrs))?;
        line("vSwitches", &list(&self.vswitches))?;
        line("pod CIDR", &format!("{}  (one /{} per node)", self.pod_cidr, self.node_mask))?;
        line("service CIDR", &format!("{}  ({} services)", self.service_cidr, self.services))?;
        line(
            "nodes",
            &match self.limit {
                Limit::PodCidr => format!(
                    "{}  (the pod CIDR is the limit; the route table has room for {})",
                    self.nodes, self.nodes_by_quota
                ),
                Limit::RouteQuota => format!(
                    "{}  (the route quota is the limit; the pod CIDR has room for {})",
                    self.nodes, self.nodes_by_cidr
                ),
            },
        )?;
        line(
            "pod addresses per node",
            &format!(
                "{}  (of {}: network, broadcast and gateway address are not for pods)",
                self.usable_pod_addresses_per_node, self.addresses_per_node
            ),
        )?;
        line("kubelet maxPods", &self.max_pods.to_string())?;
        line("pods in the cluster", &self.pods.to_string())?;
        line("node subnets", &format!("{} to {}", self.first_node_subnet, self.last_node_subnet))?;
        line(
            "route entries",
            &format!("1 per node; quota {}, held by others {}", self.route_quota, self.existing_entries),
        )?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
