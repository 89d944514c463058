//! Which route entries there should be, and which nodes get none and why.
//!
//! The invariant: no two live nodes are wanted for overlapping destinations. Were they, every round would take the entry from one and give it to the
//! other, and both would lose packets.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use loden_aliyun::ProviderIdError;

use crate::model::{InstanceId, Node, Readiness, is_ipv6};
use crate::observed::span;

/// What one destination should point to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The node whose pod CIDR it is.
    pub node: String,
    /// The node's instance.
    pub instance: InstanceId,
    /// `metadata.creationTimestamp`: older nodes go first when not all can.
    pub created: i64,
    /// An entry that is missing is created. Off for a node that is being deleted or whose kubelet is silent: it keeps what it has.
    pub create: bool,
}

/// The entries that there should be, the same in every served table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// What each destination should point to.
    pub entries: BTreeMap<IpNet, Wanted>,
    /// The nodes that get no entry, and why. Nodes that are none of our business are not among them.
    pub unserved: BTreeMap<String, Unserved>,
    /// Pod CIDRs of nodes that are taken out of cloud control: nothing there is touched.
    pub left_alone: BTreeMap<IpNet, String>,
    /// Every destination and instance that belong to a live node, those that collide included: such an entry is never a conflict.
    pub live: BTreeMap<IpNet, Vec<InstanceId>>,
}

impl Desired {
    /// Whether an entry with this destination and instance is some live node's own, which must not be taken away: the one that is wanted there, or that
    /// of a node whose pod CIDR lies inside or around another's. Of two nodes with one and the same pod CIDR only one can have it.
    #[must_use]
    pub fn keeps(&self, destination: IpNet, instance: &InstanceId) -> bool {
        match self.entries.get(&destination) {
            Some(wanted) => wanted.instance == *instance,
            None => self.live.get(&destination).is_some_and(|live| live.contains(instance)),
        }
    }
}

/// Why a node gets no route entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unserved {
    /// Its provider ID is absent or says nothing of use.
    ProviderId(ProviderIdError),
    /// It has no pod CIDR of a family that the cluster routes, yet.
    NoPodCidr,
    /// One of its pod CIDRs cannot be read.
    MalformedPodCidr(String),
    /// Its pod CIDR is not in the cluster's.
    OutsideCluster {
        /// The node's.
        pod_cidr: IpNet,
        /// The cluster's.
        cluster: Vec<IpNet>,
    },
    /// Another live node has the same addresses.
    Collision {
        /// The node's pod CIDR.
        pod_cidr: IpNet,
        /// The other node.
        with: String,
        /// The other node's pod CIDR.
        other: IpNet,
    },
}

impl Unserved {
    /// The reason in one word, as a node condition takes it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ProviderId(_) => "NoProviderID",
            Self::NoPodCidr => "NoPodCIDR",
            Self::MalformedPodCidr(_) => "InvalidPodCIDR",
            Self::OutsideCluster { .. } => "PodCIDROutsideCluster",
            Self::Collision { .. } => "PodCIDRCollision",
        }
    }
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProviderId(error) => {
                write!(f, "no route entry: {error}; start kubelet with --provider-id=<region>.<instance>")
            }
            Self::NoPodCidr => f.write_str("no route entry: the node has no pod CIDR yet"),
            Self::MalformedPodCidr(text) => write!(f, "no route entry: pod CIDR {text:?} is not a network"),
            Self::OutsideCluster { pod_cidr, cluster } => {
                let cluster: Vec<String> = cluster.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "no route entry: pod CIDR {pod_cidr} lies outside the cluster's {}; re-create the node, or correct --cluster-cidr",
                    cluster.join(", ")
                )
            }
            Self::Collision { pod_cidr, with, other } => write!(
                f,
                "no route entry: pod CIDR {pod_cidr} overlaps {other} of node {with}; drain and re-create one of the two nodes"
            ),
        }
    }
}

/// Whether the controller has anything to say about a node at all: not when it carries an exclude label or is a hybrid machine.
#[must_use]
pub fn concerns(node: &Node) -> bool {
    !node.excluded && !matches!(node.instance(), Err(ProviderIdError::Hybrid(_)))
}

/// Derives the entries from the nodes. `installed` says whether an entry for a destination to an instance is there already: of two nodes that collide
/// the one that packets reach today stays, otherwise the older one.
pub fn desired<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    cluster: &[IpNet],
    installed: impl Fn(IpNet, &InstanceId) -> bool,
) -> Desired {
    let mut desired = Desired::default();
    let mut candidates: Vec<(bool, i64, &str, IpNet, InstanceId, bool)> = Vec::new();
    for node in nodes {
        if !concerns(node) {
            desired.left_alone.extend(node.destinations().into_iter().map(|net| (net, node.name.clone())));
            continue;
        }
        match candidate(node, cluster) {
            Err(unserved) => {
                desired.unserved.insert(node.name.clone(), unserved);
            }
            Ok(Candidate { instance, destinations, problem }) => {
                for destination in node.destinations() {
                    let live = desired.live.entry(destination).or_insert_with(|| Vec::with_capacity(1));
                    live.push(instance.clone());
                }
                if let Some(problem) = problem {
                    desired.unserved.insert(node.name.clone(), problem);
                }
                let create = !node.deleting && node.readiness != Readiness::Unknown;
                for destination in destinations {
                    let newcomer = !installed(destination, &instance);
                    candidates.push((
                        newcomer,
                        node.created,
                        &node.name,
                        destination,
                        instance.clone(),
                        create,
                    ));
                }
            }
        }
    }
    candidates.sort();
    let mut taken: BTreeMap<(bool, u128), (u128, IpNet)> = BTreeMap::new();
    for (_, created, name, destination, instance, create) in candidates {
        let family = is_ipv6(destination);
        let (first, last) = span(destination);
        let before = taken.range(..=(family, first)).next_back();
        let after = taken.range((family, first)..=(family, last)).next();
        let rival = [before, after]
            .into_iter()
            .flatten()
            .find(|((kind, start), (end, _))| *kind == family && *start <= last && *end >= first)
            .map(|(_, (_, net))| *net);
        let with = rival.and_then(|net| desired.entries.get(&net).map(|wanted| (net, wanted.node.clone())));
        if let Some((other, with)) = with {
            desired
                .unserved
                .insert(name.to_owned(), Unserved::Collision { pod_cidr: destination, with, other });
            continue;
        }
        taken.insert((family, first), (last, destination));
        desired.entries.insert(destination, Wanted { node: name.to_owned(), instance, created, create });
    }
    desired
}

/// The entries that a node by itself calls for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) instance: InstanceId,
    /// Its pod CIDRs in the cluster's, one of each family at most.
    pub(crate) destinations: Vec<IpNet>,
    /// What keeps another pod CIDR of the node from having an entry.
    pub(crate) problem: Option<Unserved>,
}

/// The entries that a node by itself calls for, in the families of `cluster`.
pub(crate) fn candidate(node: &Node, cluster: &[IpNet]) -> Result<Candidate, Unserved> {
    let instance = node.instance().map_err(Unserved::ProviderId)?;
    let mut problem = node.malformed_pod_cidr().map(|text| Unserved::MalformedPodCidr(text.to_owned()));
    let mut destinations = Vec::with_capacity(2);
    for pod_cidr in node.destinations() {
        let ranges: Vec<IpNet> =
            cluster.iter().copied().filter(|range| is_ipv6(*range) == is_ipv6(pod_cidr)).collect();
        if ranges.iter().any(|range| loden_addr::contains(*range, pod_cidr)) {
            destinations.push(pod_cidr);
        } else if !ranges.is_empty() {
            problem = problem.or(Some(Unserved::OutsideCluster { pod_cidr, cluster: ranges }));
        }
    }
    if destinations.is_empty() && problem.is_none() {
        problem = Some(Unserved::NoPodCidr);
    }
    Ok(Candidate { instance, destinations, problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{net, node};

    const CLUSTER: &str = "172.20.0.0/16";

    fn nothing_installed(_: IpNet, _: &InstanceId) -> bool {
        false
    }

    #[test]
    fn one_entry_per_node_whatever_the_spelling() {
        let mut b = node("b", "172.20.2.0/24");
        b.provider_id = "alicloud://cn-hangzhou.i-b".to_owned();
        let desired = desired(&[node("a", "172.20.1.0/24"), b], &[net(CLUSTER)], nothing_installed);
        let flat: Vec<_> =
            desired.entries.iter().map(|(d, w)| format!("{d} {} {}", w.node, w.instance)).collect();
        assert_eq!(flat, ["172.20.1.0/24 a i-a", "172.20.2.0/24 b i-b"]);
        assert!(desired.unserved.is_empty());
    }

    #[test]
    fn nodes_that_cannot_be_served_say_why() {
        let mut nodes =
            vec![node("cidrless", ""), node("outside", "10.0.0.0/24"), node("odd", "172.20.0.0/99")];
        let mut idless = node("idless", "172.20.4.0/24");
        idless.provider_id = String::new();
        nodes.push(idless);
        let desired = desired(&nodes, &[net(CLUSTER)], nothing_installed);
        let reasons: Vec<_> = desired.unserved.iter().map(|(n, u)| (n.as_str(), u.reason())).collect();
        assert_eq!(
            reasons,
            [
                ("cidrless", "NoPodCIDR"),
                ("idless", "NoProviderID"),
                ("odd", "InvalidPodCIDR"),
                ("outside", "PodCIDROutsideCluster")
            ]
        );
        assert!(
            desired.unserved["outside"]
                .to_string()
                .contains("10.0.0.0/24 lies outside the cluster's 172.20.0.0/16")
        );
    }

    #[test]
    fn excluded_and_hybrid_nodes_are_left_alone() {
        let mut excluded = node("excluded", "172.20.1.0/24");
        excluded.excluded = true;
        let mut hybrid = node("hybrid", "172.20.2.0/24");
        hybrid.provider_id = "ack-hybrid://x.y".to_owned();
        let desired = desired(&[excluded, hybrid], &[net(CLUSTER)], nothing_installed);
        assert!(desired.entries.is_empty() && desired.unserved.is_empty());
        assert_eq!(desired.left_alone.len(), 2);
    }

    #[test]
    fn a_silent_or_leaving_node_keeps_but_gets_nothing_new() {
        let mut silent = node("silent", "172.20.1.0/24");
        silent.readiness = Readiness::Unknown;
        let mut leaving = node("leaving", "172.20.2.0/24");
        leaving.deleting = true;
        let mut unready = node("unready", "172.20.3.0/24");
        unready.readiness = Readiness::NotReady;
        let desired = desired(&[silent, leaving, unready], &[net(CLUSTER)], nothing_installed);
        let create: Vec<bool> = desired.entries.values().map(|wanted| wanted.create).collect();
        assert_eq!(create, [false, false, true]);
    }

    #[test]
    fn of_colliding_nodes_the_one_with_an_entry_stays_else_the_older() {
        let (mut old, mut young) = (node("old", "172.20.1.0/24"), node("young", "172.20.1.0/25"));
        old.created = 1;
        young.created = 2;
        let nodes = [old, young];
        let by_age = desired(&nodes, &[net(CLUSTER)], nothing_installed);
        assert_eq!(by_age.unserved.keys().collect::<Vec<_>>(), ["young"]);
        let by_entry = desired(&nodes, &[net(CLUSTER)], |_, instance| instance.as_str() == "i-young");
        assert_eq!(by_entry.unserved.keys().collect::<Vec<_>>(), ["old"]);
        assert!(
            by_entry.unserved["old"]
                .to_string()
                .contains("172.20.1.0/24 overlaps 172.20.1.0/25 of node young")
        );
    }
}
