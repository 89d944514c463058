//! Node IPAM of a whole cluster: several pod CIDRs, of one family or of both.
//!
//! The invariant: a node gets one subnet of each family at once, or none at all. `spec.podCIDRs` is written once in a node's life, so a node that was given
//! one family alone would be without the other for ever.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::ipam::{Adoption, Exhausted, Irregularity, NodeIpam, Occupancy};
use crate::subnets::{DivisionError, overlap};

/// One pod CIDR, and how it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodRange {
    /// The pod CIDR.
    pub pod_cidr: IpNet,
    /// The mask of a node's subnet.
    pub node_mask: u8,
}

/// The subnets of a cluster's pod CIDRs and who holds them.
#[derive(Debug, Clone)]
pub struct ClusterIpam {
    /// By family, in the order in which nodes list theirs. Ranges of one family are used up one after the other.
    families: Vec<Vec<NodeIpam>>,
}

impl ClusterIpam {
    /// Starts with every subnet free but those that overlap `reserved` (the service CIDRs).
    ///
    /// # Errors
    /// A mask does not divide its pod CIDR.
    pub fn new(ranges: &[PodRange], reserved: &[IpNet]) -> Result<Self, DivisionError> {
        let mut families: Vec<Vec<NodeIpam>> = Vec::new();
        for range in ranges {
            let pool = NodeIpam::new(range.pod_cidr, range.node_mask, reserved.to_vec())?;
            let same = |family: &&mut Vec<NodeIpam>| {
                family.first().is_some_and(|first| first.is_ipv6() == pool.is_ipv6())
            };
            match families.iter_mut().find(same) {
                Some(family) => family.push(pool),
                None => families.push(vec![pool]),
            }
        }
        Ok(Self { families })
    }

    /// Takes note of the subnets that a node already has, and says what a person has to know of them. Families that the cluster does not give out are
    /// not looked at.
    pub fn adopt(&mut self, node: &str, subnets: &[IpNet]) -> Vec<Irregularity> {
        let mut found = Vec::new();
        for family in &mut self.families {
            let own = |subnet: &&IpNet| {
                family.first().is_some_and(|pool| pool.is_ipv6() == matches!(subnet, IpNet::V6(_)))
            };
            let subnet = subnets.iter().find(own).copied();
            let touched = subnet
                .and_then(|subnet| family.iter().position(|pool| overlap(pool.network(), subnet.trunc())));
            for (index, pool) in family.iter_mut().enumerate() {
                match subnet {
                    Some(subnet) if index == touched.unwrap_or(0) => {
                        if let Adoption::Irregular(irregularity) = pool.adopt(node, subnet) {
                            found.push(irregularity);
                        }
                    }
                    _ => {
                        pool.release(node);
                    }
                }
            }
        }
        found
    }

    /// The node's subnets, one of each family: those that it holds, else the lowest free ones. When a family has none left, nothing is held.
    ///
    /// # Errors
    /// A family has no subnet left.
    pub fn assign(&mut self, node: &str) -> Result<Vec<IpNet>, Exhausted> {
        let mut given = Vec::with_capacity(self.families.len());
        let mut refused = None;
        for family in &mut self.families {
            let held = family.iter().find_map(|pool| pool.held_by(node));
            if let Some(subnet) = held {
                given.push(subnet);
                continue;
            }
            let mut answer = None;
            for pool in family {
                match pool.assign(node) {
                    Ok(subnet) => {
                        answer = Some(subnet);
                        break;
                    }
                    Err(exhausted) => refused = Some(exhausted),
                }
            }
            match answer {
                Some(subnet) => {
                    refused = None;
                    given.push(subnet);
                }
                None => break,
            }
        }
        match refused {
            None => Ok(given),
            Some(exhausted) => {
                self.release(node);
                Err(exhausted)
            }
        }
    }

    /// How far each pod CIDR is used up.
    pub fn occupancy(&self) -> impl Iterator<Item = Occupancy> {
        self.families.iter().flatten().map(NodeIpam::occupancy)
    }

    /// Frees the subnets of a node that is gone, and says which they were.
    pub fn release(&mut self, node: &str) -> BTreeSet<IpNet> {
        self.families.iter_mut().flatten().filter_map(|pool| pool.release(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ipam(ranges: &[(&str, u8)], reserved: &[&str]) -> ClusterIpam {
        let ranges: Vec<PodRange> = ranges
            .iter()
            .map(|(pod_cidr, node_mask)| PodRange { pod_cidr: net(pod_cidr), node_mask: *node_mask })
            .collect();
        let reserved: Vec<IpNet> = reserved.iter().map(|text| net(text)).collect();
        ClusterIpam::new(&ranges, &reserved).unwrap()
    }

    fn given(ipam: &mut ClusterIpam, node: &str) -> Vec<String> {
        ipam.assign(node).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_node_gets_both_families_at_once_in_the_clusters_order() {
        let mut ipam = ipam(&[("fd00:20::/56", 64), ("172.20.0.0/16", 24)], &["fd00:20::/64"]);
        assert_eq!(given(&mut ipam, "a"), ["fd00:20:0:1::/64", "172.20.0.0/24"]);
        assert_eq!(given(&mut ipam, "b"), ["fd00:20:0:2::/64", "172.20.1.0/24"]);
        assert_eq!(given(&mut ipam, "a"), ["fd00:20:0:1::/64", "172.20.0.0/24"]);
        assert_eq!(ipam.release("a").len(), 2);
        assert_eq!(given(&mut ipam, "c"), ["fd00:20:0:1::/64", "172.20.0.0/24"]);
    }

    #[test]
    fn a_node_gets_nothing_when_one_family_has_nothing_left() {
        let mut ipam = ipam(&[("172.20.0.0/16", 24), ("fd00:20::/63", 64)], &[]);
        given(&mut ipam, "a");
        given(&mut ipam, "b");
        let exhausted = ipam.assign("c").unwrap_err();
        assert_eq!(exhausted.pool, net("fd00:20::/63"));
        assert!(ipam.release("c").is_empty());
        ipam.release("a");
        assert_eq!(given(&mut ipam, "c"), ["172.20.0.0/24", "fd00:20::/64"]);
    }

    #[test]
    fn ranges_of_a_family_are_used_up_one_after_the_other() {
        let mut ipam = ipam(&[("172.20.0.0/23", 24), ("172.30.0.0/24", 25)], &[]);
        let all: Vec<String> = ["a", "b", "c", "d"].iter().flat_map(|node| given(&mut ipam, node)).collect();
        assert_eq!(all, ["172.20.0.0/24", "172.20.1.0/24", "172.30.0.0/25", "172.30.0.128/25"]);
        assert!(ipam.assign("e").is_err());
        ipam.release("b");
        assert_eq!(given(&mut ipam, "e"), ["172.20.1.0/24"]);
    }

    #[test]
    fn what_nodes_have_is_adopted_in_whatever_range_it_lies() {
        let mut ipam = ipam(&[("172.20.0.0/23", 24), ("172.30.0.0/24", 25), ("fd00:20::/56", 64)], &[]);
        assert!(ipam.adopt("a", &[net("fd00:20::/64"), net("172.30.0.0/25")]).is_empty());
        let outside = ipam.adopt("b", &[net("10.0.0.0/24")]);
        assert!(matches!(outside.as_slice(), [Irregularity::Outside { .. }]), "{outside:?}");
        let collision = ipam.adopt("c", &[net("172.30.0.0/25")]);
        assert!(matches!(collision.as_slice(), [Irregularity::Collision { .. }]), "{collision:?}");
        assert_eq!(given(&mut ipam, "d"), ["172.20.0.0/24", "fd00:20:0:1::/64"]);
        assert!(ipam.adopt("d", &[net("172.20.1.0/24"), net("fd00:20:0:9::/64")]).is_empty());
        assert_eq!(given(&mut ipam, "e"), ["172.20.0.0/24", "fd00:20:0:1::/64"]);
    }
}
