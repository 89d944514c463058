//! From what should be and what is to the steps in between.
//!
//! A plan is a value: it can be printed, checked and executed step by step without a further choice. The invariant: a step that deletes names an entry that
//! is ours, or one that the decision table calls conflicting. Everything else in a table belongs to somebody else.

#[cfg(test)]
mod decisions;
mod diff;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use crate::mark::Mark;
use crate::model::{
    EntryRef, EntryType, InstanceId, NewEntry, NextHop, RouteEntry, VpcRouteTableId, is_ipv6,
};
pub use diff::diff;

/// What a plan must respect besides the nodes.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Our mark.
    pub mark: Mark,
    /// The cluster's pod CIDRs: nothing outside is ever touched.
    pub cluster: Vec<IpNet>,
    /// The tables to serve.
    pub tables: Vec<VpcRouteTableId>,
    /// Custom entries that a table takes, where that is known.
    pub limits: BTreeMap<VpcRouteTableId, usize>,
    /// Unmarked entries that we own since they were equal to what we wanted.
    pub adopted: Arc<BTreeSet<EntryKey>>,
    /// What must not be attempted just now: it failed, or is under way.
    pub on_hold: BTreeSet<Place>,
    /// Tables that get nothing new; entries of ours whose nodes are gone are collected from them.
    pub kept: Vec<VpcRouteTableId>,
    /// Tables that take no IPv6 entries: none is wanted there.
    pub left_out: BTreeSet<VpcRouteTableId>,
    /// Where an entry must not be pointed elsewhere in place; `None`: nowhere may it.
    pub replace: Option<BTreeSet<Place>>,
    /// Nodes that pods wait for: of the entries that there is room for, theirs come first.
    pub urgent: Arc<BTreeSet<String>>,
}

impl Policy {
    /// The policy for `tables`, with nothing known that would hold anything up.
    #[must_use]
    pub fn new(mark: Mark, cluster: Vec<IpNet>, tables: Vec<VpcRouteTableId>) -> Self {
        Self {
            mark,
            cluster,
            tables,
            limits: BTreeMap::new(),
            adopted: Arc::default(),
            on_hold: BTreeSet::new(),
            kept: Vec::new(),
            left_out: BTreeSet::new(),
            replace: Some(BTreeSet::new()),
            urgent: Arc::default(),
        }
    }

    /// Whether the table takes no entries for such a destination.
    #[must_use]
    pub fn leaves_out(&self, table: &VpcRouteTableId, destination: IpNet) -> bool {
        is_ipv6(destination) && self.left_out.contains(table)
    }
}

/// A destination in a table.
pub type Place = (VpcRouteTableId, IpNet);

/// The most entries of one table that are pointed elsewhere in place, which goes one by one. More are replaced in batches.
pub const REPOINT_LIMIT: usize = 10;

/// One entry of one table, by what it does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKey {
    /// The table.
    pub table: VpcRouteTableId,
    /// The destination.
    pub destination: IpNet,
    /// The instance it points to.
    pub instance: InstanceId,
}

impl EntryKey {
    /// The key of an entry with one instance as next hop.
    #[must_use]
    pub fn of(entry: &RouteEntry) -> Option<Self> {
        let instance = entry.instance()?;
        Some(Self { table: entry.table.clone(), destination: entry.destination, instance })
    }
}

/// How an entry conflicts with a live node's pod CIDR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// It equals the pod CIDR and points elsewhere.
    PointsElsewhere,
    /// It lies strictly inside the pod CIDR, wherever it points.
    MoreSpecific,
}

/// One change of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Remove an entry, whoever made it, since it takes packets away from a live node.
    RemoveConflict {
        /// The entry.
        entry: RouteEntry,
        /// How it conflicts.
        conflict: Conflict,
        /// The node that suffers.
        node: String,
        /// The node's pod CIDR.
        pod_cidr: IpNet,
        /// The node's instance.
        instance: InstanceId,
    },
    /// Remove an entry of ours whose node is gone.
    Collect {
        /// The entry.
        entry: RouteEntry,
    },
    /// Let an entry of ours point to the instance that its node runs on now. Packets go to the old one until they go to the new one.
    Repoint {
        /// The entry.
        entry: RouteEntry,
        /// What it becomes.
        to: NewEntry,
        /// The node.
        node: String,
    },
    /// Create a node's entry.
    Create {
        /// The entry.
        entry: NewEntry,
        /// The node.
        node: String,
    },
}

impl Step {
    /// The table that it changes.
    #[must_use]
    pub fn table(&self) -> &VpcRouteTableId {
        match self {
            Self::RemoveConflict { entry, .. } | Self::Collect { entry } | Self::Repoint { entry, .. } => {
                &entry.table
            }
            Self::Create { entry, .. } => &entry.table,
        }
    }

    /// The destination that it changes.
    #[must_use]
    pub fn destination(&self) -> IpNet {
        match self {
            Self::RemoveConflict { entry, .. } | Self::Collect { entry } | Self::Repoint { entry, .. } => {
                entry.destination
            }
            Self::Create { entry, .. } => entry.destination,
        }
    }

    /// The entry to delete, for a step that deletes.
    #[must_use]
    pub fn removes(&self) -> Option<&RouteEntry> {
        match self {
            Self::RemoveConflict { entry, .. } | Self::Collect { entry } => Some(entry),
            Self::Create { .. } | Self::Repoint { .. } => None,
        }
    }
}

/// Names an entry for deletion.
#[must_use]
pub fn entry_ref(entry: &RouteEntry) -> EntryRef {
    EntryRef {
        table: entry.table.clone(),
        id: entry.id.clone(),
        destination: entry.destination,
        next_hop: entry
            .next_hops
            .first()
            .cloned()
            .unwrap_or(NextHop { kind: String::new(), id: String::new() }),
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveConflict { entry, conflict, node, pod_cidr, instance } => {
                let why = match conflict {
                    Conflict::PointsElsewhere => {
                        format!("it is the pod CIDR of node {node}, which is {instance}")
                    }
                    Conflict::MoreSpecific => format!("it lies inside pod CIDR {pod_cidr} of node {node}"),
                };
                write!(f, "{} - {} via {}  # conflict: {why}", entry.table, entry.destination, entry.via())
            }
            Self::Collect { entry } => {
                write!(
                    f,
                    "{} - {} via {}  # ours, and no node has it",
                    entry.table,
                    entry.destination,
                    entry.via()
                )
            }
            Self::Repoint { entry, to, node } => write!(
                f,
                "{} ~ {} via {} -> {}  # node {node}",
                entry.table,
                entry.destination,
                entry.via(),
                to.instance
            ),
            Self::Create { entry, node } => {
                write!(f, "{} + {} via {}  # node {node}", entry.table, entry.destination, entry.instance)
            }
        }
    }
}

/// A node whose entry has no room in a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The table.
    pub table: VpcRouteTableId,
    /// The node.
    pub node: String,
    /// The node's entry.
    pub destination: IpNet,
    /// Custom entries that the table takes.
    pub limit: usize,
    /// Custom entries in it.
    pub count: usize,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "route table {} is full: it holds {} custom route entries of a quota of {}, so entry {} of node {} waits; raise the quota vpc_quota_route_entrys_num or remove entries",
            self.table, self.count, self.limit, self.destination, self.node
        )
    }
}

/// An entry that takes packets away from a node, and that stays for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstruction {
    /// The entry.
    pub entry: RouteEntry,
    /// The node that suffers.
    pub node: String,
    /// The node's pod CIDR.
    pub pod_cidr: IpNet,
    /// Why it is still there.
    pub stays: Stays,
}

/// Why an entry in the way of a node is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    /// It is not ours to remove.
    Foreign,
    /// It is to go, and may not go yet.
    Deferred,
}

impl Obstruction {
    /// It takes the whole pod CIDR, so the node cannot have its entry.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.entry.destination == self.pod_cidr
    }
}

impl fmt::Display for Obstruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, node, pod_cidr, stays } = self;
        let (kind, remedy) = match (stays, &entry.kind) {
            (Stays::Deferred, _) => (
                "",
                "there are many like it, so it waits to be removed; look whether another cluster or route controller uses these pod CIDRs",
            ),
            (Stays::Foreign, kind) => (
                match kind {
                    EntryType::Custom => "custom ",
                    EntryType::System => "system ",
                    EntryType::Dynamic(kind) => &format!("{kind} "),
                },
                "it points to no single instance, so it is left in place: remove it by hand if nothing needs it",
            ),
        };
        write!(
            f,
            "{kind}route entry {} via {} in route table {} takes packets for pod CIDR {pod_cidr} of node {node}; {remedy}",
            entry.destination,
            entry.via(),
            entry.table,
        )
    }
}

/// A removal that [`diff()`] asks leave for: whether it is right is decided, whether it may be now is not.
#[derive(Debug, Clone, Copy)]
pub enum Removal<'a> {
    /// An entry of ours without a node.
    Stale(&'a RouteEntry),
    /// An entry in the way of a live node, to be deleted or changed in place.
    Conflict(&'a RouteEntry),
}

/// The way from observed to desired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, in an order in which each is possible.
    pub steps: Vec<Step>,
    /// Who has to wait for room.
    pub waiting: Vec<Waiting>,
    /// What stands in the way.
    pub obstructions: Vec<Obstruction>,
    /// What is in the way and goes later.
    pub deferred: Vec<Obstruction>,
    /// Entries equal to what is wanted that carry no mark: they are ours from now on.
    pub adopt: Vec<EntryKey>,
    /// Entries of ours without a node, whether or not they are collected in this plan.
    pub stale: Vec<RouteEntry>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for wait in &self.waiting {
            writeln!(f, "{} ! {wait}", wait.table)?;
        }
        for obstruction in &self.obstructions {
            writeln!(f, "{} ! {obstruction}", obstruction.entry.table)?;
        }
        for deferred in &self.deferred {
            writeln!(f, "{} ! {deferred}", deferred.entry.table)?;
        }
        Ok(())
    }
}
