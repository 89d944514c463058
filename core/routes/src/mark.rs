//! The ownership mark: how a route entry says which cluster it belongs to.
//!
//! The mark is written with the entry, in its name and again in its description, and carries the cluster's ID. The invariant: an entry is only ever taken
//! for ours when it says so. Err on one side and entries of departed nodes fill the quota; err on the other and another
//! cluster loses its routes.

use std::fmt;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::model::{InstanceId, NewEntry, RouteEntry, VpcId, VpcRouteTableId};

/// `Description` takes at most this many characters.
const DESCRIPTION_LIMIT: usize = 256;

/// The ID of a cluster, as it appears in marks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClusterId(String);

/// A text that cannot be a cluster ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be a cluster ID: it becomes part of route entries' names, so it takes 1 to 63 letters, digits, '-', '_' and '.'"
)]
pub struct InvalidClusterId(pub String);

impl ClusterId {
    /// Reads an ID that somebody chose.
    ///
    /// # Errors
    /// It is empty, longer than 63 characters, or has others than letters, digits, `-`, `_` and `.`.
    pub fn parse(text: &str) -> Result<Self, InvalidClusterId> {
        let fits = (1..=63).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if fits { Ok(Self(text.to_owned())) } else { Err(InvalidClusterId(text.to_owned())) }
    }

    /// The ID of a cluster that was given none. Two clusters in one VPC never share a pod CIDR, so VPC and pod CIDRs together name one; the same
    /// comes out after every restart.
    #[must_use]
    pub fn derived(vpc: &VpcId, pod_cidrs: &[IpNet]) -> Self {
        let mut hash = Sha256::new();
        hash.update(vpc.as_str());
        for net in pod_cidrs {
            hash.update(format!(" {net}"));
        }
        let digest: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("auto-{digest}"))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a route entry says it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This cluster.
    Ours,
    /// Another cluster that Loden serves.
    OtherCluster(String),
    /// Nobody that we know.
    Unmarked,
}

/// The mark of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    cluster: ClusterId,
}

const NAME_PREFIX: &str = "loden-";
const DESCRIPTION_PREFIX: &str = "loden route, cluster ";

impl Mark {
    /// The mark of `cluster`.
    #[must_use]
    pub fn new(cluster: ClusterId) -> Self {
        Self { cluster }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// `RouteEntryName` of every entry of the cluster.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{NAME_PREFIX}{}", self.cluster)
    }

    /// `Description` of a node's entry.
    #[must_use]
    pub fn description(&self, node: &str) -> String {
        let text = format!("{DESCRIPTION_PREFIX}{}, node {node}", self.cluster);
        text.chars().take(DESCRIPTION_LIMIT).collect()
    }

    /// A marked entry.
    #[must_use]
    pub fn entry(
        &self,
        table: &VpcRouteTableId,
        destination: IpNet,
        instance: &InstanceId,
        node: &str,
    ) -> NewEntry {
        NewEntry {
            table: table.clone(),
            destination,
            instance: instance.clone(),
            name: self.name(),
            description: self.description(node),
        }
    }

    /// Reads an entry's mark. Either half is enough, so that an entry whose name somebody tidied up is still known.
    #[must_use]
    pub fn owner(&self, entry: &RouteEntry) -> Owner {
        let cluster =
            entry.description.strip_prefix(DESCRIPTION_PREFIX).and_then(|rest| rest.split_once(", node "));
        let cluster = cluster.map(|(cluster, _)| cluster).or_else(|| entry.name.strip_prefix(NAME_PREFIX));
        match cluster {
            Some(cluster) if cluster == self.cluster.0 => Owner::Ours,
            Some(other) if !other.is_empty() => Owner::OtherCluster(other.to_owned()),
            _ => Owner::Unmarked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::entry;

    #[test]
    fn what_is_written_is_recognised_by_either_half() {
        let mark = Mark::new(ClusterId::parse("c1").unwrap());
        let new = mark.entry(&"vtb-1".into(), "172.20.1.0/24".parse().unwrap(), &"i-a".into(), "node-a");
        assert_eq!(new.name, "loden-c1");
        assert_eq!(new.description, "loden route, cluster c1, node node-a");
        let mut listed = entry("172.20.1.0/24", "i-a");
        assert_eq!(mark.owner(&listed), Owner::Unmarked);
        listed.name = new.name;
        assert_eq!(mark.owner(&listed), Owner::Ours);
        listed.name = "tidy".to_owned();
        listed.description = new.description;
        assert_eq!(mark.owner(&listed), Owner::Ours);
    }

    #[test]
    fn a_longer_id_is_another_cluster() {
        let mark = Mark::new(ClusterId::parse("c1").unwrap());
        let mut listed = entry("172.20.1.0/24", "i-a");
        listed.name = "loden-c10".to_owned();
        assert_eq!(mark.owner(&listed), Owner::OtherCluster("c10".to_owned()));
    }

    #[test]
    fn long_node_names_fit() {
        let mark = Mark::new(ClusterId::parse(&"c".repeat(63)).unwrap());
        assert!(mark.description(&"n".repeat(253)).chars().count() <= 256);
        assert!(mark.name().len() <= 128);
    }

    #[test]
    fn derived_ids_differ_by_vpc_and_by_pod_cidr_and_are_valid() {
        let cidrs: Vec<IpNet> = vec!["172.20.0.0/16".parse().unwrap()];
        let one = ClusterId::derived(&"vpc-1".into(), &cidrs);
        assert_eq!(one, ClusterId::derived(&"vpc-1".into(), &cidrs));
        assert_ne!(one, ClusterId::derived(&"vpc-2".into(), &cidrs));
        assert_ne!(one, ClusterId::derived(&"vpc-1".into(), &["172.21.0.0/16".parse().unwrap()]));
        assert!(ClusterId::parse(&one.to_string()).is_ok());
        for bad in ["", "a b", &"x".repeat(64), "a/b"] {
            assert!(ClusterId::parse(bad).is_err(), "{bad}");
        }
    }
}
