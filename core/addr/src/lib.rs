//! Address planning: how a pod CIDR is cut into node subnets, and which cluster plans can work.
//!
//! [`Subnets`] divides a network by a mask; [`plan`] says what a cluster of given ranges can be, or which rules it breaks; [`NodeIpam`] gives each node
//! its subnet of one pod CIDR, and [`ClusterIpam`] one of each family. All of it is arithmetic on arguments.

mod cluster;
mod ipam;
mod plan;
mod rules;
mod subnets;

pub use cluster::{ClusterIpam, PodRange};
pub use ipam::{Adoption, Exhausted, Irregularity, NodeIpam, Occupancy};
pub use plan::{
    ClusterInputs, ClusterPlan, DEFAULT_ROUTE_QUOTA, Limit, PODS_PER_NODE, plan, usable_addresses,
};
pub use rules::{BrokenRule, CLOUD_SERVICES, Rule, node_mask};
pub use subnets::{DivisionError, Subnets, contains, overlap, strictly_inside};
