//! What each node is told: its `NetworkUnavailable` condition.
//!
//! The invariant: a node is called available only when every served table shows its entry in force with its own instance as next hop. Pods that are placed
//! on a node without one cannot be reached by anybody.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ipnet::IpNet;
use loden_reconcile::{Backoff, Moment, Queue};

use super::instances::Check;
use super::notices::{About, Notices};
use super::{Action, Controller, Deadline, Why};
use crate::desired::{Candidate, Unserved, candidate, concerns};
use crate::model::{InstanceId, NetworkUnavailable, Node, VpcRouteTableId};

/// Writes under way at once. The others wait as names, and what a node is told is decided when its turn comes: of a thousand nodes that join together
/// most have their route by then, and are told so at once.
const WRITES: usize = 16;

/// How often another writer may change a condition back before people are told.
const CONTESTED: u32 = 3;
/// After this long without such a change the fight is over. Longer than the longest pause between two repairs in one.
const QUIET: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Conditions {
    pub(super) queue: Queue<String>,
    /// What is being written. The watch may show it before the write is reported.
    in_flight: BTreeMap<String, NetworkUnavailable>,
    written: BTreeMap<String, Written>,
}

/// What is known of a node that was written.
#[derive(Debug)]
struct Written {
    /// What was written, until the node is seen with it. From then on it is what the node carries, and another value is somebody else's.
    unseen: Option<Box<NetworkUnavailable>>,
    contested: Contest,
}

/// How often another writer changed the condition back, without a long time between, and when it last did.
#[derive(Debug, Clone, Copy, Default)]
struct Contest {
    changes: u32,
    last: Moment,
}

impl Conditions {
    pub(super) fn new() -> Self {
        Self {
            queue: Queue::new(Backoff::new(Duration::from_millis(200), Duration::from_secs(60))),
            in_flight: BTreeMap::new(),
            written: BTreeMap::new(),
        }
    }

    pub(super) fn forget(&mut self, node: &str) {
        self.queue.remove(&node.to_owned());
        self.in_flight.remove(node);
        self.written.remove(node);
    }

    /// Compares what a node carries with what was written and what it carried `before`, and finds out whether another writer is at work.
    pub(super) fn observed(
        &mut self,
        now: Moment,
        node: &Node,
        before: Option<&NetworkUnavailable>,
        notices: &mut Notices,
    ) {
        let mut due = now;
        if let (Some(written), Some(carried)) = (self.written.get_mut(&node.name), &node.network_unavailable)
        {
            if written.contested.changes > 0 && written.contested.last + QUIET <= now {
                written.contested = Contest::default();
                notices.over(&About::Node(node.name.clone()), "ConditionContested", "");
            }
            if written.unseen.as_deref().or(before) == Some(carried) {
                written.unseen = None;
            } else if written.unseen.is_none() && self.in_flight.get(&node.name) != Some(carried) {
                written.unseen = before.cloned().map(Box::new);
                let changes = written.contested.changes.saturating_add(1);
                written.contested = Contest { changes, last: now };
                if changes >= CONTESTED {
                    notices.stand(About::Node(node.name.clone()), "ConditionContested", "", || {
                        format!(
                            "something else keeps changing this node's NetworkUnavailable condition (now {:?}, {:?}); with cloud routes it belongs to this controller alone: run flanneld with --set-node-network-unavailable=false, and no second route controller",
                            carried.reason, carried.message
                        )
                    });
                    due = now + Duration::from_secs(u64::from(changes.min(60)));
                }
            }
        }
        self.queue.add_at(node.name.clone(), due);
    }
}

impl Controller {
    /// Puts the writes that are due into the outbox.
    pub(super) fn next_conditions(&mut self, now: Moment, deadline: &mut Deadline) {
        while self.conditions.in_flight.len() < WRITES
            && let Some(name) = self.conditions.queue.pop(now)
        {
            if self.conditions.in_flight.contains_key(&name) {
                continue;
            }
            let Some(state) = self.nodes.get(&name) else { continue };
            let Some(wanted) = self.verdict(&state.node) else { continue };
            if is_told(&state.node, &wanted) {
                continue;
            }
            let uid = state.node.uid.clone();
            self.conditions.in_flight.insert(name.clone(), wanted.clone());
            self.outbox.push_back(Action::Condition { node: name, uid, wanted });
        }
        // With all writes under way the next one's end is what is waited for.
        if self.conditions.in_flight.len() < WRITES
            && let Some(due) = self.conditions.queue.next_due()
        {
            deadline.at(due, Why::Retry);
        }
    }

    pub(super) fn condition_written(
        &mut self,
        now: Moment,
        name: &str,
        result: Result<NetworkUnavailable, String>,
    ) {
        self.conditions.in_flight.remove(name);
        let Some(state) = self.nodes.get_mut(name) else { return };
        match result {
            Ok(value) => {
                self.conditions.queue.succeeded(&name.to_owned());
                if !value.unavailable
                    && let Some(since) = state.waits_since.take()
                {
                    self.routed.push((name.to_owned(), now.saturating_sub(since)));
                }
                let contested =
                    self.conditions.written.get(name).map(|written| written.contested).unwrap_or_default();
                // The watch may have shown it already, before the write was reported.
                let seen = state.node.network_unavailable.as_ref() == Some(&value);
                let unseen = (!seen).then(|| Box::new(value.clone()));
                state.node.network_unavailable = Some(value);
                self.conditions.written.insert(name.to_owned(), Written { unseen, contested });
                self.conditions.queue.add(name.to_owned(), now);
            }
            Err(error) => {
                self.conditions.queue.failed(name.to_owned(), now, name.len() as u64);
                let failures = self.conditions.queue.failures(&name.to_owned());
                if failures == 5 {
                    self.notices.tell(
                        About::Controller,
                        super::Severity::Warning,
                        "ConditionWriteFailed",
                        format!("cannot write the NetworkUnavailable condition of node {name}: {error}"),
                    );
                }
            }
        }
    }

    /// What the node should be told; `None` when there is nothing to say, or not enough is known to say something else than it carries.
    pub(super) fn verdict(&self, node: &Node) -> Option<NetworkUnavailable> {
        if !concerns(node) || node.deleting {
            return None;
        }
        let Candidate { instance, destinations, problem } = match candidate(node, self.ranges()) {
            Ok(found) => found,
            Err(unserved) => return Some(unavailable(unserved.reason(), unserved.to_string())),
        };
        if let Some(problem) = problem {
            return Some(unavailable(problem.reason(), problem.to_string()));
        }
        if let Some(unserved @ Unserved::Collision { pod_cidr, .. }) =
            self.lane.desired.unserved.get(&node.name)
            && destinations.contains(pod_cidr)
        {
            return Some(unavailable(unserved.reason(), unserved.to_string()));
        }
        let all = Entries { destinations: &destinations, instance: &instance };
        let Some(served) = self.lane.served.as_ref().filter(|_| self.has_observed()) else {
            let unseen = || unavailable("NoRouteCreated", all.missing("any route table"));
            return node.network_unavailable.is_none().then(unseen);
        };
        if let Some(table) = served.unusable.first() {
            return Some(unavailable(
                "RouteTableNotFound",
                format!(
                    "route table {table} is configured, but VPC {} has no such table that takes entries; correct --route-table-ids",
                    self.settings.vpc
                ),
            ));
        }
        for table in &served.tables {
            if let Some(problem) =
                destinations.iter().find_map(|net| self.problem_in_table(table, *net, &instance))
            {
                return Some(problem);
            }
        }
        let vswitch = self.instances.vswitch(&instance);
        if vswitch.is_none() && self.needs_vswitches() {
            let message = || {
                format!(
                    "which route table instance {instance} routes by is not yet known; ecs:DescribeInstances tells its vSwitch"
                )
            };
            return (!available(node)).then(|| unavailable("InstanceUnknown", message()));
        }
        if let Some(table) = vswitch.and_then(|vswitch| served.unserved.get(vswitch)) {
            return Some(unavailable(
                "RouteTableNotServed",
                format!(
                    "instance {instance} is in a vSwitch that routes by table {table}, which is not served, so its pods cannot reach other nodes; {}",
                    served.remedy()
                ),
            ));
        }
        if self.settings.source_dest_check_off {
            match self.instances.check(&instance) {
                Check::Off => {}
                // Nothing is known against a node that was found in order before.
                Check::Unknown if available(node) => return None,
                Check::Unknown | Check::On => {
                    return Some(unavailable(
                        "SourceDestCheckOn",
                        format!(
                            "the source/destination check of {instance}'s primary network interface is not known to be off; with it on, packets of pods are dropped"
                        ),
                    ));
                }
            }
        }
        let tables: Vec<String> = served
            .tables
            .iter()
            .map(|table| {
                let partly = destinations.iter().any(|net| self.lane.leaves_out(table, *net));
                if partly { format!("{table} (which takes IPv4 only)") } else { table.to_string() }
            })
            .collect();
        Some(NetworkUnavailable {
            unavailable: false,
            reason: "RouteCreated".to_owned(),
            message: format!("{all} is Available in {}", tables.join(", ")),
        })
    }

    fn problem_in_table(
        &self,
        table: &VpcRouteTableId,
        destination: IpNet,
        instance: &InstanceId,
    ) -> Option<NetworkUnavailable> {
        if self.lane.carries(table, destination, instance) || self.lane.leaves_out(table, destination) {
            return None;
        }
        let place = (table.clone(), destination);
        if let Some(obstruction) = self.lane.obstructions.get(&place).filter(|found| found.whole()) {
            return Some(unavailable("RouteBlocked", obstruction.to_string()));
        }
        if let Some(deferred) = self.lane.deferred.get(&place).filter(|found| found.whole()) {
            return Some(unavailable("RouteConflict", deferred.to_string()));
        }
        if let Some(waiting) = self.lane.waiting.get(&place) {
            return Some(unavailable("RouteQuotaExceeded", waiting.to_string()));
        }
        let entry = Entries { destinations: &[destination], instance };
        if let Some(blocked) = self.lane.blocked.get(&place) {
            return Some(unavailable(
                "RouteRefused",
                format!("{entry} was refused in route table {table}: {}", blocked.failure),
            ));
        }
        Some(unavailable("NoRouteCreated", entry.missing(&format!("route table {table}"))))
    }
}

/// A node's entries, as people are told of them.
struct Entries<'a> {
    destinations: &'a [IpNet],
    instance: &'a InstanceId,
}

impl Entries<'_> {
    fn missing(&self, place: &str) -> String {
        format!("{self} is not yet known to be Available in {place}")
    }
}

impl fmt::Display for Entries<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nets: Vec<String> = self.destinations.iter().map(ToString::to_string).collect();
        write!(f, "route entry {} via {}", nets.join(" and "), self.instance)
    }
}

fn unavailable(reason: &str, message: String) -> NetworkUnavailable {
    NetworkUnavailable { unavailable: true, reason: reason.to_owned(), message }
}

fn available(node: &Node) -> bool {
    node.network_unavailable.as_ref().is_some_and(|condition| !condition.unavailable)
}

/// Whether the node carries what it should be told. Another controller's words for "available" are good enough.
fn is_told(node: &Node, wanted: &NetworkUnavailable) -> bool {
    node.network_unavailable.as_ref().is_some_and(|carried| {
        carried == wanted || (!carried.unavailable && !wanted.unavailable && carried.reason == wanted.reason)
    })
}
