//! From what should be and what is to the steps in between.
//!
//! A plan is a value: it can be printed, checked and executed step by step without a further choice. The invariant: a step that deletes names an entry that
//! is ours, or one that the decision table calls conflicting. Everything else in a table belongs to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::desired::Desired;
use crate::mark::{Mark, Owner};
use crate::model::{
    EntryRef, EntryStatus, EntryType, InstanceId, NewEntry, NextHop, RouteEntry, VpcRouteTableId,
};
use crate::observed::Observed;

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
    pub adopted: BTreeSet<EntryKey>,
    /// What must not be attempted just now: it failed, or is under way.
    pub on_hold: BTreeSet<(VpcRouteTableId, IpNet)>,
}

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
            Self::RemoveConflict { entry, .. } | Self::Collect { entry } => &entry.table,
            Self::Create { entry, .. } => &entry.table,
        }
    }

    /// The destination that it changes.
    #[must_use]
    pub fn destination(&self) -> IpNet {
        match self {
            Self::RemoveConflict { entry, .. } | Self::Collect { entry } => entry.destination,
            Self::Create { entry, .. } => entry.destination,
        }
    }

    /// The entry to delete, for a step that deletes.
    #[must_use]
    pub fn removes(&self) -> Option<&RouteEntry> {
        match self {
            Self::RemoveConflict { entry, .. } | Self::Collect { entry } => Some(entry),
            Self::Create { .. } => None,
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

/// An entry that takes packets away from a node and that we may not remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstruction {
    /// The entry.
    pub entry: RouteEntry,
    /// The node that suffers.
    pub node: String,
    /// The node's pod CIDR.
    pub pod_cidr: IpNet,
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
        let kind = match &self.entry.kind {
            EntryType::Custom => "custom",
            EntryType::System => "system",
            EntryType::Dynamic(kind) => kind,
        };
        write!(
            f,
            "{kind} route entry {} via {} in route table {} takes packets for pod CIDR {} of node {}; it points to no single instance, so it is left in place: remove it by hand if nothing needs it",
            self.entry.destination,
            self.entry.via(),
            self.entry.table,
            self.pod_cidr,
            self.node
        )
    }
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
        Ok(())
    }
}

/// What lies between desired and observed. Tables that were not observed get no steps: nothing is known of them. `collect` decides which of our
/// entries without a node may go now.
#[must_use]
pub fn diff(
    desired: &Desired,
    observed: &Observed,
    policy: &Policy,
    mut collect: impl FnMut(&RouteEntry) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    for table in &policy.tables {
        if let Some(view) = observed.get(table) {
            TableDiff { desired, policy, table, view }.into_plan(&mut plan, &mut collect);
        }
    }
    plan
}

struct TableDiff<'a> {
    desired: &'a Desired,
    policy: &'a Policy,
    table: &'a VpcRouteTableId,
    view: &'a crate::observed::TableView,
}

impl TableDiff<'_> {
    fn into_plan(self, plan: &mut Plan, collect: &mut impl FnMut(&RouteEntry) -> bool) {
        let mut conflicts: BTreeMap<IpNet, Step> = BTreeMap::new();
        let mut missing: Vec<(i64, &str, IpNet, &InstanceId)> = Vec::new();

        for (destination, wanted) in &self.desired.entries {
            let mut free = true;
            for entry in self.view.at(*destination) {
                free = false;
                if entry.instance().as_ref() == Some(&wanted.instance) {
                    if self.policy.mark.owner(entry) != Owner::Ours
                        && let Some(key) =
                            EntryKey::of(entry).filter(|key| !self.policy.adopted.contains(key))
                    {
                        plan.adopt.push(key);
                    }
                } else {
                    let conflict = self.judge(entry, *destination, wanted, Conflict::PointsElsewhere, plan);
                    free |= conflict.is_some();
                    conflicts.extend(conflict.map(|step| (entry.destination, step)));
                }
            }
            for entry in self.view.strictly_inside(*destination) {
                let conflict = self.judge(entry, *destination, wanted, Conflict::MoreSpecific, plan);
                conflicts.extend(conflict.map(|step| (entry.destination, step)));
            }
            if free && wanted.create && !self.on_hold(*destination) {
                missing.push((wanted.created, &wanted.node, *destination, &wanted.instance));
            }
        }

        let mut collected = Vec::new();
        for entry in self
            .view
            .iter()
            .filter(|entry| self.is_stale(entry) && !conflicts.contains_key(&entry.destination))
        {
            plan.stale.push(entry.clone());
            if entry.status == EntryStatus::Available && !self.on_hold(entry.destination) && collect(entry) {
                collected.push(Step::Collect { entry: entry.clone() });
            }
        }

        missing.sort();
        let count = self.view.custom_count();
        let limit = self.policy.limits.get(self.table).copied();
        let leaving = conflicts.len() + collected.len();
        let room = limit.map_or(usize::MAX, |limit| (limit + leaving).saturating_sub(count));
        let creates: Vec<Step> = missing
            .iter()
            .take(room)
            .map(|(_, node, destination, instance)| Step::Create {
                entry: self.policy.mark.entry(self.table, *destination, instance, node),
                node: (*node).to_owned(),
            })
            .collect();
        plan.waiting.extend(missing.iter().skip(room).map(|(_, node, destination, _)| Waiting {
            table: self.table.clone(),
            node: (*node).to_owned(),
            destination: *destination,
            limit: limit.unwrap_or(count),
            count,
        }));

        plan.steps.extend(conflicts.into_values());
        // Collection makes room: it goes first when room is what creation needs, and last when it would only keep nodes waiting.
        let needs_room = limit.is_some_and(|limit| count + creates.len() > limit);
        if needs_room {
            plan.steps.extend(collected);
            plan.steps.extend(creates);
        } else {
            plan.steps.extend(creates);
            plan.steps.extend(collected);
        }
    }

    /// The decision table's verdict on a foreign-looking entry at or inside a live node's pod CIDR: a step when it is a conflict, a report when it
    /// stands in the way and is not ours to remove.
    fn judge(
        &self,
        entry: &RouteEntry,
        pod_cidr: IpNet,
        wanted: &crate::desired::Wanted,
        conflict: Conflict,
        plan: &mut Plan,
    ) -> Option<Step> {
        match entry.instance() {
            None => {
                plan.obstructions.push(Obstruction {
                    entry: entry.clone(),
                    node: wanted.node.clone(),
                    pod_cidr,
                });
                None
            }
            // A live node's own entry, of a node that collides with this one: taking it away would cut that node off.
            Some(instance) if self.desired.keeps(entry.destination, &instance) => None,
            Some(_) if entry.status == EntryStatus::Deleting || self.on_hold(entry.destination) => None,
            Some(_) => Some(Step::RemoveConflict {
                entry: entry.clone(),
                conflict,
                node: wanted.node.clone(),
                pod_cidr,
                instance: wanted.instance.clone(),
            }),
        }
    }

    fn on_hold(&self, destination: IpNet) -> bool {
        self.policy.on_hold.contains(&(self.table.clone(), destination))
    }

    fn is_stale(&self, entry: &RouteEntry) -> bool {
        stale(self.desired, self.policy, entry)
    }
}

/// Whether an entry is ours and belongs to no node any more.
pub(crate) fn stale(desired: &Desired, policy: &Policy, entry: &RouteEntry) -> bool {
    let Some(key) = EntryKey::of(entry) else { return false };
    let ours = policy.mark.owner(entry) == Owner::Ours
        || (policy.mark.owner(entry) == Owner::Unmarked && policy.adopted.contains(&key));
    ours && entry.status != EntryStatus::Deleting
        && policy.cluster.iter().any(|range| loden_addr::contains(*range, entry.destination))
        && !desired.live.contains_key(&entry.destination)
        && !desired.left_alone.contains_key(&entry.destination)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::desired;
    use crate::mark::ClusterId;
    use crate::model::Node;
    use crate::observed::TableView;
    use crate::testing::{TABLE, entry, net, node};

    pub(crate) fn policy() -> Policy {
        Policy {
            mark: Mark::new(ClusterId::parse("c1").unwrap()),
            cluster: vec![net("172.20.0.0/16")],
            tables: vec![TABLE.into()],
            limits: BTreeMap::new(),
            adopted: BTreeSet::new(),
            on_hold: BTreeSet::new(),
        }
    }

    fn marked(mut entry: RouteEntry) -> RouteEntry {
        entry.name = "loden-c1".to_owned();
        entry
    }

    fn observed(entries: Vec<RouteEntry>) -> Observed {
        BTreeMap::from([(TABLE.into(), TableView::new(entries))])
    }

    fn two() -> Vec<Node> {
        vec![node("a", "172.20.1.0/24"), node("b", "172.20.2.0/24")]
    }

    fn planned(nodes: &[Node], entries: Vec<RouteEntry>, policy: &Policy) -> Plan {
        let observed = observed(entries);
        let view = &observed[&TABLE.into()];
        let desired = desired(nodes, &policy.cluster, |d, i| view.good(d, i).is_some());
        diff(&desired, &observed, policy, |_| true)
    }

    fn lines(plan: &Plan) -> Vec<String> {
        plan.to_string().lines().map(str::to_owned).collect()
    }

    /// Both nodes have their entries; what does one more entry lead to?
    fn verdict(extra: RouteEntry) -> Vec<String> {
        let mut entries = vec![marked(entry("172.20.1.0/24", "i-a")), marked(entry("172.20.2.0/24", "i-b"))];
        entries.retain(|known| known.destination != extra.destination);
        entries.push(extra);
        lines(&planned(&two(), entries, &policy()))
    }

    fn with_hops(destination: &str, hops: &[(&str, &str)]) -> RouteEntry {
        let hop = |(kind, id): &(&str, &str)| NextHop { kind: (*kind).to_owned(), id: (*id).to_owned() };
        RouteEntry { next_hops: hops.iter().map(hop).collect(), ..entry(destination, "i-x") }
    }

    const RECREATE_A: &str = "vtb-1 + 172.20.1.0/24 via i-a  # node a";

    #[test]
    fn its_own_entry_is_kept() {
        assert!(verdict(entry("172.20.1.0/24", "i-a")).is_empty(), "unmarked but equal: adopted");
        let mut spelt = node("a", "172.20.1.0/24");
        spelt.provider_id = "alicloud://cn-hangzhou.i-a".to_owned();
        assert!(lines(&planned(&[spelt], vec![entry("172.20.1.0/24", "i-a")], &policy())).is_empty());
    }

    #[test]
    fn equal_to_a_live_nodes_and_elsewhere_is_removed_and_replaced() {
        assert_eq!(
            verdict(entry("172.20.1.0/24", "i-b")),
            [
                "vtb-1 - 172.20.1.0/24 via i-b  # conflict: it is the pod CIDR of node a, which is i-a",
                RECREATE_A
            ]
        );
        assert_eq!(
            verdict(entry("172.20.1.0/24", "i-gone")),
            [
                "vtb-1 - 172.20.1.0/24 via i-gone  # conflict: it is the pod CIDR of node a, which is i-a",
                RECREATE_A
            ]
        );
    }

    #[test]
    fn strictly_inside_a_live_nodes_is_removed_wherever_it_points() {
        for (destination, instance) in [("172.20.1.128/25", "i-a"), ("172.20.1.5/32", "i-x")] {
            assert_eq!(
                verdict(entry(destination, instance)),
                [format!(
                    "vtb-1 - {destination} via {instance}  # conflict: it lies inside pod CIDR 172.20.1.0/24 of node a"
                )]
            );
        }
    }

    #[test]
    fn what_takes_nothing_from_a_live_node_is_kept() {
        for (destination, instance) in [
            ("172.20.0.0/22", "i-x"),
            ("172.20.0.0/16", "i-x"),
            ("172.20.9.0/24", "i-gone"),
            ("0.0.0.0/0", "i-nat"),
            ("10.9.0.0/24", "i-x"),
        ] {
            assert!(verdict(entry(destination, instance)).is_empty(), "{destination}");
        }
    }

    #[test]
    fn stale_is_ours_only_by_mark_or_adoption() {
        assert_eq!(
            verdict(marked(entry("172.20.9.0/24", "i-gone"))),
            ["vtb-1 - 172.20.9.0/24 via i-gone  # ours, and no node has it"]
        );
        let mut other = entry("172.20.9.0/24", "i-gone");
        other.name = "loden-c2".to_owned();
        assert!(verdict(other).is_empty(), "another cluster's");
        assert!(verdict(marked(entry("10.9.0.0/24", "i-gone"))).is_empty(), "outside the cluster's pod CIDR");
        let mut adopting = policy();
        let key = EntryKey::of(&entry("172.20.9.0/24", "i-gone")).unwrap();
        adopting.adopted.insert(key);
        assert_eq!(planned(&[], vec![entry("172.20.9.0/24", "i-gone")], &adopting).steps.len(), 1);
    }

    /// Upstream does not see these and marks the node available; here the node waits and a person is told.
    #[test]
    fn entries_to_no_single_instance_are_reported_and_never_removed() {
        for extra in [
            with_hops("172.20.1.0/24", &[("NetworkInterface", "eni-1")]),
            with_hops("172.20.1.0/24", &[("Instance", "i-a"), ("Instance", "i-b")]),
            RouteEntry { kind: EntryType::Dynamic("CEN".to_owned()), ..entry("172.20.1.0/24", "i-a") },
            RouteEntry { kind: EntryType::System, ..entry("172.20.1.0/24", "i-a") },
        ] {
            let plan = planned(&two(), vec![marked(entry("172.20.2.0/24", "i-b")), extra.clone()], &policy());
            assert!(plan.steps.is_empty(), "{:?}", plan.steps);
            assert_eq!(plan.obstructions.len(), 1);
            assert!(plan.obstructions[0].whole());
            assert!(plan.obstructions[0].to_string().contains(&extra.via()));
        }
        let inside = planned(&two(), vec![with_hops("172.20.1.7/32", &[("HaVip", "havip-1")])], &policy());
        assert!(!inside.obstructions[0].whole());
        assert_eq!(inside.steps.len(), 2, "the nodes' own entries are created all the same");
    }

    #[test]
    fn an_entry_of_a_live_node_that_collides_is_no_conflict() {
        let nodes = [node("wide", "172.20.1.0/24"), node("narrow", "172.20.1.0/25")];
        let entries = vec![entry("172.20.1.0/24", "i-wide"), entry("172.20.1.0/25", "i-narrow")];
        assert!(planned(&nodes, entries, &policy()).steps.is_empty());
    }

    #[test]
    fn entries_of_excluded_nodes_are_left_alone() {
        let mut excluded = node("x", "172.20.5.0/24");
        excluded.excluded = true;
        assert!(
            planned(&[excluded], vec![marked(entry("172.20.5.0/24", "i-x"))], &policy()).steps.is_empty()
        );
    }

    #[test]
    fn the_oldest_nodes_get_the_room_that_there_is() {
        let mut nodes: Vec<Node> =
            (0..8).map(|i| node(&format!("n{i}"), &format!("172.20.{i}.0/24"))).collect();
        for (age, node) in nodes.iter_mut().enumerate() {
            node.created = 100 - i64::try_from(age).unwrap();
        }
        let mut policy = policy();
        policy.limits.insert(TABLE.into(), 5);
        let foreign = entry("10.0.0.0/8", "i-vpn");
        let plan = planned(&nodes, vec![foreign], &policy);
        let created: Vec<IpNet> = plan.steps.iter().map(Step::destination).collect();
        assert_eq!(created, ["172.20.7.0/24", "172.20.6.0/24", "172.20.5.0/24", "172.20.4.0/24"].map(net));
        let waiting: Vec<&str> = plan.waiting.iter().map(|w| w.node.as_str()).collect();
        assert_eq!(waiting, ["n3", "n2", "n1", "n0"]);
        assert_eq!((plan.waiting[0].limit, plan.waiting[0].count), (5, 1));
    }

    #[test]
    fn collection_goes_first_only_when_room_is_needed() {
        let mut policy = policy();
        let entries = vec![marked(entry("172.20.9.0/24", "i-gone"))];
        let relaxed = planned(&[node("a", "172.20.1.0/24")], entries.clone(), &policy);
        assert!(matches!(relaxed.steps.as_slice(), [Step::Create { .. }, Step::Collect { .. }]));
        policy.limits.insert(TABLE.into(), 1);
        let tight = planned(&[node("a", "172.20.1.0/24")], entries, &policy);
        assert!(matches!(tight.steps.as_slice(), [Step::Collect { .. }, Step::Create { .. }]));
    }

    #[test]
    fn what_is_on_hold_is_not_planned() {
        let mut policy = policy();
        policy.on_hold.insert((TABLE.into(), net("172.20.1.0/24")));
        assert_eq!(lines(&planned(&two(), Vec::new(), &policy)), ["vtb-1 + 172.20.2.0/24 via i-b  # node b"]);
    }

    #[test]
    fn a_table_that_was_not_listed_gets_no_steps() {
        let policy = policy();
        let desired = desired(&two(), &policy.cluster, |_, _| false);
        assert_eq!(diff(&desired, &Observed::new(), &policy, |_| true), Plan::default());
    }
}
