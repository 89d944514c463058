//! The words of a VPC's route tables, and of the nodes they serve.
//!
//! These types own no behaviour beyond reading and comparing. Two spellings of one thing must never be two values here: a provider ID is
//! normalised when it is parsed, a destination is a network without host bits. Were that not so, a node would never equal
//! its own route entry, and a controller that compares the two would delete and recreate it for ever.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use loden_aliyun::{ProviderId, ProviderIdError};
use serde::{Deserialize, Serialize};

/// The ID of a VPC (`vpc-…`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VpcId(Arc<str>);

/// The ID of a *cloud* route table (`vtb-…`); the kernel's table numbers are another type.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VpcRouteTableId(Arc<str>);

/// The ID of an ECS instance (`i-…`), without region and scheme.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstanceId(Arc<str>);

/// The ID of a vSwitch (`vsw-…`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VSwitchId(Arc<str>);

macro_rules! id_text {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl $name {
            /// The ID as the API spells it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
    )*};
}

id_text!(VpcId, VpcRouteTableId, InstanceId, VSwitchId);

/// What a node's `Ready` condition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Readiness {
    /// `Ready=True`.
    Ready,
    /// `Ready=False`: kubelet speaks, but is not satisfied.
    NotReady,
    /// `Ready=Unknown`: kubelet has been silent for too long.
    Unknown,
    /// There is no such condition yet.
    #[default]
    Absent,
}

/// A node's `NetworkUnavailable` condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUnavailable {
    /// `True` (pods must not be placed here) or `False`. `Unknown` counts as `True`.
    pub unavailable: bool,
    /// One word in CamelCase.
    pub reason: String,
    /// What a person can act on.
    pub message: String,
}

/// What the route controller needs to know of a Kubernetes node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`: a node that re-registers under its name is another node.
    pub uid: String,
    /// `metadata.creationTimestamp` in seconds since 1970; orders who gets an entry first when not all can.
    pub created: i64,
    /// `spec.providerID`, as it stands.
    pub provider_id: String,
    /// `spec.podCIDRs`, or `spec.podCIDR` alone, as they stand: a malformed one must be reported, not lost.
    pub pod_cidrs: Vec<String>,
    /// It carries a label that takes it out of cloud control (`service.alibabacloud.com/exclude-node` or
    /// `service.beta.kubernetes.io/exclude-node`, with any value).
    pub excluded: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// The `Ready` condition.
    pub readiness: Readiness,
    /// The `NetworkUnavailable` condition, if it is there.
    pub network_unavailable: Option<NetworkUnavailable>,
}

/// Labels that take a node out of cloud control, whatever their value.
pub const EXCLUDE_LABELS: [&str; 2] =
    ["service.alibabacloud.com/exclude-node", "service.beta.kubernetes.io/exclude-node"];

impl Node {
    /// The instance that the node runs on, the same whichever way `spec.providerID` is spelt.
    ///
    /// # Errors
    /// The provider ID names no ECS instance.
    pub fn instance(&self) -> Result<InstanceId, ProviderIdError> {
        self.provider_id.trim().parse::<ProviderId>().map(|id| InstanceId::from(id.instance))
    }

    /// The node's pod CIDRs without host bits, the first of each family: the destinations of its route entries. Texts that are no network
    /// are left out, see [`Node::malformed_pod_cidr`].
    #[must_use]
    pub fn destinations(&self) -> Vec<IpNet> {
        let mut found: Vec<IpNet> = Vec::with_capacity(2);
        for net in self.pod_cidrs.iter().filter_map(|text| text.trim().parse::<IpNet>().ok()) {
            if !found.iter().any(|known| is_ipv6(*known) == is_ipv6(net)) {
                found.push(net.trunc());
            }
        }
        found
    }

    /// The first pod CIDR that is no network.
    #[must_use]
    pub fn malformed_pod_cidr(&self) -> Option<&str> {
        self.pod_cidrs.iter().map(String::as_str).find(|text| text.trim().parse::<IpNet>().is_err())
    }
}

/// Whether a network is of IPv6.
#[must_use]
pub fn is_ipv6(net: IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

/// Whether a table is the VPC's own or one that somebody made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// `System`: made with the VPC, bound to every new vSwitch.
    System,
    /// `Custom`.
    Custom,
}

/// One route table as `DescribeRouteTableList` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteTable {
    /// Its ID.
    pub id: VpcRouteTableId,
    /// System or custom.
    pub kind: TableKind,
    /// `AssociateType` is `Gateway`: it steers what enters the VPC and takes no entries of users.
    pub gateway: bool,
    /// The vSwitches that route by it.
    pub vswitches: Vec<VSwitchId>,
}

/// `Status` of a route entry. The create and delete pages' `Creating` and `Created` read as `Pending` and `Available`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryStatus {
    /// Being created.
    Pending,
    /// In force.
    Available,
    /// Being changed.
    Modifying,
    /// Being removed.
    Deleting,
    /// Something this code does not know; treated as not in force and not settled.
    Other,
}

impl EntryStatus {
    /// Reads the API's word, in either of its two vocabularies.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "Pending" | "Creating" => Self::Pending,
            "Available" | "Created" => Self::Available,
            "Modifying" => Self::Modifying,
            "Deleting" => Self::Deleting,
            _ => Self::Other,
        }
    }
}

/// `Type` of a route entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryType {
    /// Made by a user or a controller; the only kind that one can delete.
    Custom,
    /// Made with a vSwitch or the VPC.
    System,
    /// Learned (`BGP`, `CEN`, `ECR`, …).
    Dynamic(String),
}

impl EntryType {
    /// Reads the API's word.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "Custom" => Self::Custom,
            "System" => Self::System,
            other => Self::Dynamic(other.to_owned()),
        }
    }
}

/// One next hop of a route entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NextHop {
    /// `NextHopType` as the API spells it (`Instance`, `NetworkInterface`, `HaVip`, `NatGateway`, `local`, …).
    pub kind: String,
    /// `NextHopId`; empty for local entries.
    pub id: String,
}

impl NextHop {
    /// An ECS instance as next hop.
    #[must_use]
    pub fn instance(id: &InstanceId) -> Self {
        Self { kind: "Instance".to_owned(), id: id.to_string() }
    }

    /// The instance, when it is one. The API's own spelling varies in case.
    #[must_use]
    pub fn as_instance(&self) -> Option<InstanceId> {
        self.kind.eq_ignore_ascii_case("instance").then(|| self.id.as_str().into())
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.eq_ignore_ascii_case("instance") {
            f.write_str(&self.id)
        } else if self.id.is_empty() {
            f.write_str(&self.kind)
        } else {
            write!(f, "{} {}", self.kind, self.id)
        }
    }
}

/// One row of a cloud route table, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The table it is in.
    pub table: VpcRouteTableId,
    /// `RouteEntryId`; system entries may have none (empty).
    pub id: String,
    /// The destination, without host bits.
    pub destination: IpNet,
    /// Its next hops; more than one is ECMP.
    pub next_hops: Vec<NextHop>,
    /// Its state.
    pub status: EntryStatus,
    /// Who may have made it.
    pub kind: EntryType,
    /// `RouteEntryName`.
    pub name: String,
    /// `Description`.
    pub description: String,
}

impl RouteEntry {
    /// The instance it points to, when it is a custom entry with exactly one next hop and that is an instance.
    #[must_use]
    pub fn instance(&self) -> Option<InstanceId> {
        match (&self.kind, self.next_hops.as_slice()) {
            (EntryType::Custom, [hop]) => hop.as_instance(),
            _ => None,
        }
    }

    /// The next hops in one text.
    #[must_use]
    pub fn via(&self) -> String {
        let hops: Vec<String> = self.next_hops.iter().map(ToString::to_string).collect();
        if hops.is_empty() { "nothing".to_owned() } else { hops.join(" + ") }
    }
}

/// An entry to create.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEntry {
    /// The table to write to.
    pub table: VpcRouteTableId,
    /// The destination.
    pub destination: IpNet,
    /// The instance to point to.
    pub instance: InstanceId,
    /// `RouteEntryName`: half of the ownership mark.
    pub name: String,
    /// `Description`: the other half, for people.
    pub description: String,
}

/// An entry to change or to delete. It is deleted by destination and next hop, so that one that points to a live node by now, under the same
/// ID, cannot be hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRef {
    /// The table it is in.
    pub table: VpcRouteTableId,
    /// `RouteEntryId`, or empty.
    pub id: String,
    /// The destination.
    pub destination: IpNet,
    /// The next hop it had when listed.
    pub next_hop: NextHop,
}

/// An ECS instance as the controller needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its ID.
    pub id: InstanceId,
    /// The vSwitch of its primary network interface.
    pub vswitch: VSwitchId,
    /// The ID of its primary network interface (`eni-…`).
    pub primary_eni: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_the_first_of_each_family_without_host_bits() {
        let node = |cidrs: &[&str]| Node {
            pod_cidrs: cidrs.iter().map(|s| (*s).to_owned()).collect(),
            ..Node::default()
        };
        let destinations = |cidrs: &[&str]| -> Vec<String> {
            node(cidrs).destinations().iter().map(ToString::to_string).collect()
        };
        assert_eq!(destinations(&["fd00::1/64", "172.20.1.9/24"]), ["fd00::/64", "172.20.1.0/24"]);
        assert_eq!(destinations(&["172.20.1.0/24", "172.20.2.0/24"]), ["172.20.1.0/24"]);
        assert!(destinations(&[]).is_empty());
        assert_eq!(destinations(&["172.20.1.0/33", "172.20.2.0/24"]), ["172.20.2.0/24"]);
        assert_eq!(node(&["172.20.2.0/24", "x"]).malformed_pod_cidr(), Some("x"));
    }
}
