//! The route controller as a state machine: events in, actions out, and the time at which to ask again.
//!
//! It owns what was last seen of the nodes and of the tables, and decides when to list, read back, create and delete. Two rules carry it. One change
//! of a VPC at a time: the API refuses a second one, and two writers would undo each other. What a node is told follows from what was read
//! back, never from what was asked for. Whoever drives it feeds every event as it comes, performs every action, and reports how each went; nothing else
//! keeps time or state.

mod conditions;
mod figures;
mod instances;
mod lane;
mod notices;
mod pace;
#[cfg(test)]
mod simulation;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use loden_reconcile::Moment;

use crate::desired::concerns;
use crate::mark::{ClusterId, Mark};
use crate::model::{
    EntryRef, Instance, InstanceId, NetworkUnavailable, NewEntry, Node, RouteEntry, RouteTable, VpcId,
    VpcRouteTableId, is_ipv6,
};
use crate::port::{BatchAnswer, Failure};
use crate::tables::TableChoice;

pub use figures::{Figures, TableFigures};
pub use notices::{About, Notice, Severity};

/// What the controller is to do; fixed while it runs but for [`Event::Tables`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// The VPC.
    pub vpc: VpcId,
    /// Whose entries are ours.
    pub cluster: ClusterId,
    /// The cluster's pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
    /// The tables to serve.
    pub tables: TableChoice,
    /// Custom entries that a table takes, where somebody said so; otherwise read from the API, or learned when it refuses one.
    pub quota: Option<usize>,
    /// Ask the API for the quota.
    pub read_quota: bool,
    /// How often everything is listed though nothing happened.
    pub audit: Duration,
    /// How long after the first complete listing everything is listed once more: that one may have lagged, and a call of the controller before may have
    /// arrived after it.
    pub second_look: Duration,
    /// How long an entry of ours must have been without a node, when the node was not seen leaving, before it is collected.
    pub stale_grace: Duration,
    /// Entries of departed nodes that may be collected within a minute: this share of the nodes in percent, and never less than [`MIN_REMOVED`]. 100:
    /// as many as there are.
    pub collect_percent: usize,
    /// Entries in the way of live nodes that may be removed from a table within a minute, in the same terms. What a node that was seen leaving had is not
    /// counted.
    pub conflict_percent: usize,
    /// How long to wait for more nodes before the first change of a burst.
    pub aggregation: Duration,
    /// Switch the source/destination check off on nodes' primary network interfaces, and call no node available before.
    pub source_dest_check_off: bool,
}

/// Entries that may be removed within a minute however few nodes there are.
pub const MIN_REMOVED: usize = 10;

impl Settings {
    /// The usual settings for a VPC and its cluster.
    #[must_use]
    pub fn new(vpc: VpcId, cluster: ClusterId, pod_cidrs: Vec<IpNet>) -> Self {
        Self {
            vpc,
            cluster,
            pod_cidrs,
            tables: TableChoice::default(),
            quota: None,
            read_quota: false,
            audit: Duration::from_secs(300),
            second_look: Duration::from_secs(20),
            stale_grace: Duration::from_secs(60),
            collect_percent: 20,
            conflict_percent: 20,
            aggregation: Duration::from_millis(20),
            source_dest_check_off: true,
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node is there, or is no longer as it was.
    Node(Box<Node>),
    /// A node is gone.
    NodeGone(String),
    /// Every node that there is has been told by now. Before that nothing is changed: a node not yet told of would look gone.
    NodesComplete,
    /// A cloud call ended.
    Answered {
        /// The call.
        id: CallId,
        /// How it ended.
        answer: Answer,
    },
    /// The write of a node's condition ended.
    ConditionWritten {
        /// The node.
        node: String,
        /// What was written, or why not.
        result: Result<NetworkUnavailable, String>,
    },
    /// The choice of tables was changed.
    Tables(TableChoice),
    /// The nodes that pods wait for: placed there, and not running for want of a network.
    PodsWait(BTreeSet<String>),
    /// Somebody wants everything listed now.
    LookAgain,
}

/// Tells the answers of calls apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A call to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`crate::port::ReadRouteTables::has_ipv6`].
    HasIpv6,
    /// [`crate::port::ReadRouteTables::quota`].
    Quota,
    /// [`crate::port::ReadRouteTables::list_tables`].
    ListTables,
    /// [`crate::port::ReadRouteTables::list_entries`].
    ListEntries(VpcRouteTableId),
    /// [`crate::port::ReadRouteTables::read_back`].
    ReadBack(VpcRouteTableId, Vec<IpNet>),
    /// [`crate::port::WriteRouteTables::create_batch`].
    Create(Vec<NewEntry>),
    /// [`crate::port::WriteRouteTables::delete_batch`].
    Delete(Vec<EntryRef>),
    /// [`crate::port::WriteRouteTables::repoint`].
    Repoint(EntryRef, Box<NewEntry>),
    /// [`crate::port::ReadRouteTables::describe_instances`].
    DescribeInstances(Vec<InstanceId>),
    /// [`crate::port::ReadRouteTables::source_dest_check_on`].
    ReadSourceDestChecks(Vec<String>),
    /// [`crate::port::WriteRouteTables::source_dest_check_off`].
    SourceDestCheckOff(String),
}

impl Call {
    /// Whether it changes anything.
    #[must_use]
    pub fn writes(&self) -> bool {
        matches!(self, Self::Create(_) | Self::Delete(_) | Self::Repoint(..) | Self::SourceDestCheckOff(_))
    }
}

/// How a call ended.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Of [`Call::HasIpv6`].
    Ipv6(Result<bool, Failure>),
    /// Of [`Call::Quota`].
    Quota(Result<Option<usize>, Failure>),
    /// Of [`Call::ListTables`].
    Tables(Result<Vec<RouteTable>, Failure>),
    /// Of [`Call::ListEntries`] and [`Call::ReadBack`].
    Entries(Result<Vec<RouteEntry>, Failure>),
    /// Of [`Call::Create`] and [`Call::Delete`]; of [`Call::Repoint`] with nothing refused.
    Batch(Result<BatchAnswer, Failure>),
    /// Of [`Call::DescribeInstances`].
    Instances(Result<Vec<Instance>, Failure>),
    /// Of [`Call::ReadSourceDestChecks`].
    ChecksOn(Result<Vec<String>, Failure>),
    /// Of [`Call::SourceDestCheckOff`].
    CheckOff(Result<(), Failure>),
}

/// Something to do. Actions do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Call the cloud, then tell [`Event::Answered`].
    Cloud {
        /// To be told with the answer.
        id: CallId,
        /// The call.
        call: Call,
    },
    /// Write a node's `NetworkUnavailable` condition, then tell [`Event::ConditionWritten`].
    Condition {
        /// The node.
        node: String,
        /// Its UID, so that a node that took over the name is not told what was meant for another.
        uid: String,
        /// The condition.
        wanted: NetworkUnavailable,
    },
    /// Tell people.
    Notice(Notice),
}

/// What [`Controller::poll`] wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poll {
    /// Do this, and poll again.
    Act(Action),
    /// Nothing to do before `until`, unless an event comes.
    Wait {
        /// When to poll again; `None`: only after an event.
        until: Option<Moment>,
        /// What is waited for.
        why: Why,
    },
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The complete list of nodes.
    Nodes,
    /// An answer of the cloud.
    Answer,
    /// The end of a pause after a failure.
    Pause,
    /// The next call that the API's limit leaves room for.
    Pace,
    /// More nodes of the same burst.
    Burst,
    /// Entries whose creation or deletion is under way.
    Settling,
    /// The next try of a node, instance or condition that failed.
    Retry,
    /// The next try whether a full table has room again.
    QuotaProbe,
    /// The end of a grace period before entries are collected, or of the minute in which no more may be removed.
    Grace,
    /// The second listing after the start.
    SecondLook,
    /// The next audit.
    Audit,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nodes => "waiting for the list of nodes",
            Self::Answer => "waiting for the cloud's answer",
            Self::Pause => "pausing after a failure",
            Self::Pace => "holding calls back after the API said that they are too many",
            Self::Burst => "waiting for more nodes of this burst",
            Self::Settling => "waiting for route entries to settle",
            Self::Retry => "waiting to try again what failed",
            Self::QuotaProbe => "waiting to see whether the quota was raised",
            Self::Grace => "waiting before more entries are removed",
            Self::SecondLook => "waiting to list everything a second time after the start",
            Self::Audit => "idle until the next audit",
        })
    }
}

/// The earliest thing to wait for.
#[derive(Debug, Clone, Copy, Default)]
struct Deadline(Option<(Moment, Why)>);

impl Deadline {
    fn at(&mut self, until: Moment, why: Why) {
        if self.0.is_none_or(|(earliest, _)| until < earliest) {
            self.0 = Some((until, why));
        }
    }
}

#[derive(Debug)]
struct NodeState {
    node: Node,
    /// When it was first told of, until it was first called available.
    waits_since: Option<Moment>,
}

/// The route controller of one VPC and one cluster.
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    mark: Mark,
    nodes: BTreeMap<String, NodeState>,
    /// The nodes on each instance: one, unless two nodes claim the same.
    on_instance: BTreeMap<InstanceId, Vec<String>>,
    nodes_complete: bool,
    next_call: u64,
    lane: lane::Lane,
    instances: instances::Instances,
    conditions: conditions::Conditions,
    notices: notices::Notices,
    outbox: VecDeque<Action>,
    /// Nodes that were called available for the first time, and how long that took.
    routed: Vec<(String, Duration)>,
    /// Instances of which something new is known about the source/destination check, and whether it is off.
    checks: Vec<(InstanceId, bool)>,
}

impl Controller {
    /// A controller that knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            mark: Mark::new(settings.cluster.clone()),
            nodes: BTreeMap::new(),
            on_instance: BTreeMap::new(),
            nodes_complete: false,
            next_call: 0,
            lane: lane::Lane::new(&settings.pod_cidrs),
            instances: instances::Instances::new(),
            conditions: conditions::Conditions::new(),
            notices: notices::Notices::default(),
            outbox: VecDeque::new(),
            routed: Vec::new(),
            checks: Vec::new(),
            settings,
        }
    }

    /// The VPC whose tables it keeps.
    #[must_use]
    pub fn vpc(&self) -> &VpcId {
        &self.settings.vpc
    }

    /// Takes note of an event.
    pub fn on_event(&mut self, now: Moment, event: Event) {
        match event {
            Event::Node(node) => self.node_seen(now, *node),
            Event::NodeGone(name) => self.node_gone(now, &name),
            Event::NodesComplete => {
                self.nodes_complete = true;
                self.lane.look = true;
            }
            Event::Answered { id, answer } => {
                if !self.instances_answered(now, id, &answer) {
                    self.lane_answered(now, id, answer);
                }
            }
            Event::ConditionWritten { node, result } => self.condition_written(now, &node, result),
            Event::Tables(choice) => {
                self.settings.tables = choice;
                self.lane.tables_due = true;
            }
            Event::PodsWait(nodes) => self.lane.urgent = Arc::new(nodes),
            Event::LookAgain => self.lane.audit_due = Moment::ZERO,
        }
    }

    /// What to do at `now`. Call it again after each action, and after each event.
    pub fn poll(&mut self, now: Moment) -> Poll {
        let mut deadline = Deadline::default();
        if self.lane.audit_due <= now {
            self.begin_audit(now);
        }
        if let Some(call) = self.next_route_call(now, &mut deadline) {
            return self.act(call);
        }
        if let Some(call) = self.next_instance_call(now, &mut deadline) {
            return self.act(call);
        }
        self.next_conditions(now, &mut deadline);
        if let Some(action) = self.outbox.pop_front() {
            return Poll::Act(action);
        }
        if let Some(notice) = self.notices.next() {
            return Poll::Act(Action::Notice(notice));
        }
        match deadline.0 {
            Some((until, why)) => Poll::Wait { until: Some(until), why },
            None if !self.nodes_complete && !self.lane.in_flight() => {
                Poll::Wait { until: None, why: Why::Nodes }
            }
            None => Poll::Wait { until: None, why: Why::Answer },
        }
    }

    fn act(&self, (id, call): (CallId, Call)) -> Poll {
        Poll::Act(Action::Cloud { id, call })
    }

    fn new_call(&mut self) -> CallId {
        self.next_call += 1;
        CallId(self.next_call)
    }

    fn begin_audit(&mut self, now: Moment) {
        self.lane.audit_due = now + self.settings.audit;
        self.lane.tables_due = true;
        self.lane.ipv6_due = self.settings.pod_cidrs.iter().any(|net| is_ipv6(*net));
        self.lane.quota_due = self.settings.read_quota && self.settings.quota.is_none();
        if self.settings.source_dest_check_off {
            self.instances.audit(now);
        }
    }

    fn node_seen(&mut self, now: Moment, node: Node) {
        let name = node.name.clone();
        let old = self.nodes.get(&name).map(|state| &state.node);
        let same_route = old.is_some_and(|old| route_equal(old, &node));
        if !same_route {
            let kept = places_of(&node);
            let departed = old.map(places_of).unwrap_or_default();
            self.lane.departed.extend(departed.into_iter().filter(|place| !kept.contains(place)));
            self.lane.nodes_changed(now, self.settings.aggregation);
        }
        if old.is_some_and(|old| old.uid != node.uid) {
            self.conditions.forget(&name);
            self.notices.forget_node(&name);
        }
        if !same_route {
            let on = |node: &Node| node.instance().ok().filter(|_| concerns(node));
            let (before, after) = (self.nodes.get(&name).and_then(|state| on(&state.node)), on(&node));
            // What is known of an instance is not forgotten because its node changes otherwise: the API may not be there to tell it again.
            if before != after {
                self.leave_instance(&name);
            }
            if let Some(instance) = after {
                self.instances.want(now, &instance);
                let names = self.on_instance.entry(instance).or_insert_with(|| Vec::with_capacity(1));
                names.push(name.clone());
            }
        }
        let before = self.nodes.get(&name).and_then(|state| state.node.network_unavailable.as_ref());
        self.conditions.observed(now, &node, before, &mut self.notices);
        let told = node.network_unavailable.as_ref().is_some_and(|condition| !condition.unavailable);
        let waits_since = match self.nodes.get(&name) {
            Some(state) if state.node.uid == node.uid => state.waits_since,
            // What was there when the list of nodes was read has waited for longer than anybody here knows.
            _ => (self.nodes_complete && !told).then_some(now),
        };
        self.nodes.insert(name, NodeState { node, waits_since });
    }

    fn node_gone(&mut self, now: Moment, name: &str) {
        self.leave_instance(name);
        let Some(state) = self.nodes.remove(name) else { return };
        self.lane.departed.extend(places_of(&state.node));
        self.lane.nodes_changed(now, self.settings.aggregation);
        self.conditions.forget(name);
        self.notices.forget_node(name);
    }

    fn leave_instance(&mut self, name: &str) {
        let Some(Ok(instance)) = self.nodes.get(name).map(|state| state.node.instance()) else { return };
        let Some(names) = self.on_instance.get_mut(&instance) else { return };
        names.retain(|other| other != name);
        if names.is_empty() {
            self.on_instance.remove(&instance);
            self.instances.forget(&instance);
        }
    }

    /// Whether every node that was told of has been looked at, nothing is under way, and nothing waits but the audit.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.nodes_complete && self.lane.is_settled() && self.outbox.is_empty()
    }

    /// The cloud's failure that holds everything up at present.
    #[must_use]
    pub fn trouble(&self) -> Option<&Failure> {
        self.lane.trouble.as_ref().or(self.instances.trouble.as_ref())
    }

    /// The cluster's pod CIDRs of the families that the VPC routes.
    fn ranges(&self) -> &[IpNet] {
        &self.lane.ranges
    }

    /// Whether tables and entries have been listed completely at least once.
    #[must_use]
    pub fn has_observed(&self) -> bool {
        self.lane
            .served
            .as_ref()
            .is_some_and(|served| served.listed().all(|table| self.lane.views.contains_key(table)))
    }

    fn dirty(&mut self, now: Moment, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.conditions.queue.add(name, now);
        }
    }

    fn all_dirty(&mut self, now: Moment) {
        let names: BTreeSet<String> = self.nodes.keys().cloned().collect();
        self.dirty(now, names);
    }
}

/// Whether two states of a node lead to the same route entry.
fn route_equal(old: &Node, new: &Node) -> bool {
    old.uid == new.uid
        && old.provider_id == new.provider_id
        && old.pod_cidrs == new.pod_cidrs
        && old.excluded == new.excluded
        && old.deleting == new.deleting
        && old.readiness == new.readiness
}

/// What a node's entries lead from and to.
fn places_of(node: &Node) -> Vec<(IpNet, InstanceId)> {
    match node.instance() {
        Ok(instance) if concerns(node) => {
            node.destinations().into_iter().map(|net| (net, instance.clone())).collect()
        }
        _ => Vec::new(),
    }
}
