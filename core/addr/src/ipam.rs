//! Node IPAM: which node has which subnet of the cluster's pod CIDR.
//!
//! It owns the answer for nodes without a `spec.podCIDR` and adopts what nodes already have. The invariant: two nodes never share an address,
//! and a node's subnet never moves while the node lives. Were it to move, running pods would keep addresses that the VPC
//! sends elsewhere; were it shared, two nodes would fight over one route entry.

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::subnets::{DivisionError, Subnets, overlap};

/// The subnets of one pod CIDR and who holds them.
#[derive(Debug, Clone)]
pub struct NodeIpam {
    pool: Subnets,
    reserved: Vec<IpNet>,
    held: BTreeMap<String, IpNet>,
    /// Spans of subnets in use: first index -> holder -> last index. Several holders at one first index come only from adoption.
    spans: BTreeMap<u128, BTreeMap<Holder, u128>>,
    /// How many spans cover more than one subnet: rare, and what makes searches start from the beginning.
    wide: usize,
    /// No subnet below this one is free, and no span that begins below it reaches it.
    free_from: u128,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Reserved(usize),
    Node(String),
}

/// What became of a subnet that a node already has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adoption {
    /// It is the node's.
    Adopted,
    /// The node keeps it, since a subnet never moves, but something is wrong that a person has to know.
    Irregular(Irregularity),
}

/// What is wrong with a subnet that a node came with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Irregularity {
    /// It is not in the pod CIDR.
    #[error("{subnet} lies outside the pod CIDR {pool}; drain and re-create the node")]
    Outside {
        /// The node's subnet.
        subnet: IpNet,
        /// The pod CIDR.
        pool: IpNet,
    },
    /// Its mask is another one than nodes of this cluster get.
    #[error("{subnet} has not the node mask /{mask} of this cluster")]
    OtherMask {
        /// The node's subnet.
        subnet: IpNet,
        /// The cluster's node mask.
        mask: u8,
    },
    /// It shares addresses with another node's.
    #[error("{subnet} overlaps {other}, which node {holder} holds; drain and re-create one of the two nodes")]
    Collision {
        /// The node's subnet.
        subnet: IpNet,
        /// The other node.
        holder: String,
        /// The other node's subnet.
        other: IpNet,
    },
    /// It shares addresses with a range that no node may have (the service CIDR).
    #[error("{subnet} overlaps the reserved range {reserved}; drain and re-create the node")]
    Reserved {
        /// The node's subnet.
        subnet: IpNet,
        /// The reserved range.
        reserved: IpNet,
    },
}

/// There is no subnet left for a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod CIDR {pool} has no free /{mask} left for node {node}: {held} nodes hold its {count} subnets; remove nodes, or build a cluster with a wider pod CIDR or fewer pods per node"
)]
pub struct Exhausted {
    /// The node that goes without.
    pub node: String,
    /// The pod CIDR.
    pub pool: IpNet,
    /// The node mask.
    pub mask: u8,
    /// Nodes that hold a subnet.
    pub held: usize,
    /// Subnets that there are.
    pub count: u128,
}

/// How far a pod CIDR is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// The pod CIDR.
    pub pod_cidr: IpNet,
    /// Nodes that hold a subnet of it.
    pub held: usize,
    /// Subnets that can still be given. Those that a reserved range or a node's subnet of another mask touches cannot.
    pub free: u128,
}

impl NodeIpam {
    /// Starts with every subnet of `pod_cidr` free but those that overlap `reserved` (the service CIDR).
    ///
    /// # Errors
    /// The mask does not divide the pod CIDR.
    pub fn new(pod_cidr: IpNet, mask: u8, reserved: Vec<IpNet>) -> Result<Self, DivisionError> {
        let pool = Subnets::new(pod_cidr, mask)?;
        let mut this =
            Self { pool, reserved, held: BTreeMap::new(), spans: BTreeMap::new(), wide: 0, free_from: 0 };
        for (number, net) in this.reserved.clone().into_iter().enumerate() {
            this.mark(Holder::Reserved(number), net);
        }
        Ok(this)
    }

    /// Takes note of a subnet that a node already has. A node that is known keeps what it had.
    pub fn adopt(&mut self, node: &str, subnet: IpNet) -> Adoption {
        let subnet = subnet.trunc();
        let known = self.held.get(node).copied();
        if known != Some(subnet) {
            self.release(node);
            self.held.insert(node.to_owned(), subnet);
            self.mark(Holder::Node(node.to_owned()), subnet);
        }
        match self.irregularity(node, subnet) {
            None => Adoption::Adopted,
            Some(irregularity) => Adoption::Irregular(irregularity),
        }
    }

    fn irregularity(&self, node: &str, subnet: IpNet) -> Option<Irregularity> {
        let Some((first, last)) = self.pool.touched_by(subnet) else {
            return Some(Irregularity::Outside { subnet, pool: self.pool.network() });
        };
        if !crate::subnets::contains(self.pool.network(), subnet) {
            return Some(Irregularity::Outside { subnet, pool: self.pool.network() });
        }
        if let Some(reserved) = self.reserved.iter().find(|net| overlap(**net, subnet)) {
            return Some(Irregularity::Reserved { subnet, reserved: *reserved });
        }
        let search_from = if self.wide == 0 { first } else { 0 };
        let neighbours = self.spans.range(search_from..=last);
        for (_, holders) in neighbours {
            for (holder, end) in holders {
                if *end < first {
                    continue;
                }
                if let Holder::Node(other) = holder
                    && other != node
                    && let Some(net) = self.held.get(other)
                    && overlap(*net, subnet)
                {
                    return Some(Irregularity::Collision { subnet, holder: other.clone(), other: *net });
                }
            }
        }
        (subnet.prefix_len() != self.pool.prefix())
            .then_some(Irregularity::OtherMask { subnet, mask: self.pool.prefix() })
    }

    /// The node's subnet: the one it holds, else the lowest free one. The choice depends on what is held and on nothing else, so that two
    /// replicas, or one before and after a restart, choose alike.
    ///
    /// # Errors
    /// No subnet is free.
    pub fn assign(&mut self, node: &str) -> Result<IpNet, Exhausted> {
        if let Some(subnet) = self.held.get(node) {
            return Ok(*subnet);
        }
        let mut candidate = self.free_from;
        for (start, holders) in self.spans.range(self.free_from..) {
            if *start > candidate {
                break;
            }
            let last = holders.values().copied().max().unwrap_or(*start);
            candidate = candidate.max(last.saturating_add(1));
        }
        let Some(subnet) = self.pool.nth(candidate) else {
            return Err(Exhausted {
                node: node.to_owned(),
                pool: self.pool.network(),
                mask: self.pool.prefix(),
                held: self.held.len(),
                count: self.pool.count(),
            });
        };
        self.held.insert(node.to_owned(), subnet);
        self.spans.entry(candidate).or_default().insert(Holder::Node(node.to_owned()), candidate);
        self.free_from = candidate.saturating_add(1);
        Ok(subnet)
    }

    /// Frees the subnet of a node that is gone, and says which it was.
    pub fn release(&mut self, node: &str) -> Option<IpNet> {
        let subnet = self.held.remove(node)?;
        if let Some((first, last)) = self.pool.touched_by(subnet) {
            if let Some(holders) = self.spans.get_mut(&first) {
                holders.remove(&Holder::Node(node.to_owned()));
                if holders.is_empty() {
                    self.spans.remove(&first);
                }
            }
            self.wide -= usize::from(first != last);
            // A wide span that begins lower may still cover what became free.
            self.free_from = if self.wide > 0 { 0 } else { self.free_from.min(first) };
        }
        Some(subnet)
    }

    /// How far the pod CIDR is used up. One pass over the subnets in use.
    #[must_use]
    pub fn occupancy(&self) -> Occupancy {
        let (mut used, mut next) = (0_u128, 0_u128);
        for (start, holders) in &self.spans {
            let end = holders.values().copied().max().unwrap_or(*start).saturating_add(1);
            used += end.saturating_sub(next.max(*start));
            next = next.max(end);
        }
        Occupancy {
            pod_cidr: self.pool.network(),
            held: self.held.len(),
            free: self.pool.count().saturating_sub(used),
        }
    }

    /// The pod CIDR.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.pool.network()
    }

    /// Whether the pod CIDR is of IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        matches!(self.pool.network(), IpNet::V6(_))
    }

    /// The subnet that a node holds.
    #[must_use]
    pub fn held_by(&self, node: &str) -> Option<IpNet> {
        self.held.get(node).copied()
    }

    /// Every node with its subnet.
    pub fn held(&self) -> impl Iterator<Item = (&str, IpNet)> {
        self.held.iter().map(|(node, subnet)| (node.as_str(), *subnet))
    }

    fn mark(&mut self, holder: Holder, net: IpNet) {
        if let Some((first, last)) = self.pool.touched_by(net) {
            self.spans.entry(first).or_default().insert(holder, last);
            if first != last {
                self.wide += 1;
                self.free_from = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ipam(pool: &str, mask: u8) -> NodeIpam {
        NodeIpam::new(net(pool), mask, Vec::new()).unwrap()
    }

    #[test]
    fn subnets_are_given_from_the_lowest_and_come_back() {
        let mut ipam = ipam("172.20.0.0/16", 24);
        assert_eq!(ipam.assign("a"), Ok(net("172.20.0.0/24")));
        assert_eq!(ipam.assign("b"), Ok(net("172.20.1.0/24")));
        assert_eq!(ipam.assign("c"), Ok(net("172.20.2.0/24")));
        assert_eq!(ipam.assign("b"), Ok(net("172.20.1.0/24")), "asking twice moves nothing");
        assert_eq!(ipam.release("b"), Some(net("172.20.1.0/24")));
        assert_eq!(ipam.release("b"), None);
        assert_eq!(ipam.assign("d"), Ok(net("172.20.1.0/24")));
        assert_eq!(ipam.assign("e"), Ok(net("172.20.3.0/24")));
    }

    #[test]
    fn what_nodes_have_is_adopted_and_avoided() {
        let mut ipam = ipam("172.20.0.0/16", 24);
        assert_eq!(ipam.adopt("old", net("172.20.0.0/24")), Adoption::Adopted);
        assert_eq!(ipam.assign("new"), Ok(net("172.20.1.0/24")));
        assert_eq!(ipam.assign("old"), Ok(net("172.20.0.0/24")));
    }

    #[test]
    fn a_subnet_of_another_mask_blocks_all_that_it_covers() {
        let mut ipam = ipam("172.20.0.0/16", 24);
        assert_eq!(ipam.assign("first"), Ok(net("172.20.0.0/24")));
        assert!(matches!(
            ipam.adopt("wide", net("172.20.0.0/22")),
            Adoption::Irregular(Irregularity::Collision { .. })
        ));
        assert!(matches!(
            ipam.adopt("narrow", net("172.20.4.64/26")),
            Adoption::Irregular(Irregularity::OtherMask { mask: 24, .. })
        ));
        assert_eq!(ipam.assign("next"), Ok(net("172.20.5.0/24")));
        ipam.release("wide");
        assert_eq!(ipam.assign("after"), Ok(net("172.20.1.0/24")));
    }

    #[test]
    fn what_is_free_can_be_given_and_no_more() {
        let reserved = vec![net("172.20.1.0/25")];
        let mut ipam = NodeIpam::new(net("172.20.0.0/21"), 24, reserved).unwrap();
        let free = |ipam: &NodeIpam| (ipam.occupancy().held, ipam.occupancy().free);
        assert_eq!(free(&ipam), (0, 7));
        ipam.adopt("wide", net("172.20.2.0/23"));
        ipam.adopt("inside", net("172.20.3.0/24"));
        ipam.adopt("elsewhere", net("10.0.0.0/24"));
        assert_eq!(free(&ipam), (3, 5));
        for node in ["a", "b", "c", "d", "e"] {
            ipam.assign(node).unwrap();
        }
        assert_eq!(free(&ipam), (8, 0));
        ipam.assign("f").unwrap_err();
        ipam.release("wide");
        assert_eq!(free(&ipam), (7, 1));
    }

    #[test]
    fn two_nodes_with_one_subnet_are_named() {
        let mut ipam = ipam("172.20.0.0/16", 24);
        ipam.adopt("a", net("172.20.7.0/24"));
        let Adoption::Irregular(found) = ipam.adopt("b", net("172.20.7.0/24")) else { panic!("not noticed") };
        assert_eq!(
            found.to_string(),
            "172.20.7.0/24 overlaps 172.20.7.0/24, which node a holds; drain and re-create one of the two nodes"
        );
        ipam.release("a");
        assert_eq!(ipam.adopt("b", net("172.20.7.0/24")), Adoption::Adopted);
    }

    #[test]
    fn a_subnet_outside_is_kept_and_named() {
        let mut ipam = ipam("172.20.0.0/16", 24);
        assert!(matches!(
            ipam.adopt("a", net("10.0.0.0/24")),
            Adoption::Irregular(Irregularity::Outside { .. })
        ));
        assert_eq!(ipam.assign("a"), Ok(net("10.0.0.0/24")), "a node's subnet never moves");
    }

    #[test]
    fn the_service_cidr_is_never_given() {
        let mut ipam =
            NodeIpam::new(net("172.20.0.0/22"), 24, vec![net("172.20.1.0/25"), net("10.0.0.0/16")]).unwrap();
        assert_eq!(ipam.assign("a"), Ok(net("172.20.0.0/24")));
        assert_eq!(ipam.assign("b"), Ok(net("172.20.2.0/24")));
        ipam.release("a");
        assert_eq!(ipam.assign("c"), Ok(net("172.20.0.0/24")));
        assert!(matches!(
            ipam.adopt("d", net("172.20.1.0/24")),
            Adoption::Irregular(Irregularity::Reserved { .. })
        ));
    }

    #[test]
    fn exhaustion_names_the_node_and_the_numbers() {
        let mut ipam = ipam("172.20.0.0/23", 24);
        ipam.assign("a").unwrap();
        ipam.assign("b").unwrap();
        let error = ipam.assign("c").unwrap_err();
        assert!(error.to_string().starts_with(
            "the pod CIDR 172.20.0.0/23 has no free /24 left for node c: 2 nodes hold its 2 subnets"
        ));
        ipam.release("a");
        assert_eq!(ipam.assign("c"), Ok(net("172.20.0.0/24")));
    }

    #[derive(Debug, Clone)]
    enum Move {
        Assign(u8),
        Adopt(u8, u8, u8),
        Release(u8),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        proptest::collection::vec(
            prop_oneof![
                3 => (0u8..10).prop_map(Move::Assign),
                1 => (0u8..10, 0u8..16, 26u8..=29).prop_map(|(n, i, mask)| Move::Adopt(n, i, mask)),
                1 => (0u8..10).prop_map(Move::Release),
            ],
            0..60,
        )
    }

    proptest! {
        #[test]
        fn assigned_subnets_are_free_lowest_and_stay(moves in moves()) {
            let pool = Subnets::new(net("10.0.0.0/24"), 28).unwrap();
            let mut ipam = ipam("10.0.0.0/24", 28);
            let mut model: BTreeMap<String, IpNet> = BTreeMap::new();
            for step in moves {
                match step {
                    Move::Assign(n) => {
                        let node = n.to_string();
                        let expected = model.get(&node).copied().or_else(|| {
                            pool.iter().find(|s| !model.values().any(|held| overlap(*held, *s)))
                        });
                        let got = ipam.assign(&node).ok();
                        prop_assert_eq!(got, expected);
                        if let Some(subnet) = got {
                            model.insert(node, subnet);
                        }
                    }
                    Move::Adopt(n, index, mask) => {
                        let node = n.to_string();
                        let subnet = IpNet::new(pool.nth(u128::from(index)).unwrap().network(), mask).unwrap().trunc();
                        let collides = model.iter().any(|(other, held)| *other != node && overlap(*held, subnet));
                        let adoption = ipam.adopt(&node, subnet);
                        prop_assert_eq!(
                            matches!(adoption, Adoption::Irregular(Irregularity::Collision { .. })), collides);
                        model.insert(node, subnet);
                    }
                    Move::Release(n) => {
                        prop_assert_eq!(ipam.release(&n.to_string()), model.remove(&n.to_string()));
                    }
                }
            }
        }
    }
}
