//! Node control as a state machine: events in, actions out, and the time at which to ask again.
//!
//! It owns what was last heard of instances, and which nodes wait to be looked at; the nodes themselves stay with whoever drives it and are read through
//! [`Nodes`] when their turn comes. What must hold: a taint goes only from a node that says all it should and that the route
//! controller has judged; a Node object is deleted only when complete answers said twice that its instance is gone and its kubelet is silent. If the
//! first broke, pods would start on a node that others cannot reach; if the second did, an outage of the API would empty the cluster.

mod calls;
mod exchange;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use loden_aliyun::ProviderId;
use loden_reconcile::{Backoff, Moment, Queue};
use loden_routes::controller::{About, Notice, Severity};
use loden_routes::model::{InstanceId, Readiness};

use crate::desired::desired;
use crate::model::{Instance, Node};
use crate::plan::{Gate, Plan, Step, diff};

pub use exchange::{Action, Call, Event, Nodes, Poll, Settings};

/// For more fresh nodes, so that one call asks for all of them.
const GATHER: Duration = Duration::from_millis(20);
/// Before a node that is in use is corrected: what changes often is written once, and fresh nodes go first.
const CORRECT_AFTER: Duration = Duration::from_secs(3);
/// Before the cloud is asked again about an instance that it said is gone.
const CONFIRM_AFTER: Duration = Duration::from_secs(5);
/// Complete answers without an instance that make it gone.
const CONFIRMED: u32 = 2;
/// After a write, until the watch has surely shown it.
const SHOWN_AFTER: Duration = Duration::from_secs(2);
/// Corrections of one node, none of which lasted for [`CONTEST`], until people are told that somebody else writes the same.
const CONTESTED: u32 = 3;
const CONTEST: Duration = Duration::from_secs(600);
/// Nodes that may be deleted within a minute: this share of all in percent, and never less than [`MIN_DELETED`].
const DELETE_PERCENT: usize = 20;
const MIN_DELETED: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// What was last heard of an instance.
#[derive(Debug)]
enum Heard {
    Here(Box<Instance>),
    /// So many complete answers in a row lacked it.
    Missing(u32),
}

/// What is kept of a node between two looks at it.
#[derive(Debug)]
struct Seen {
    uid: String,
    instance: Option<InstanceId>,
    silent: bool,
    /// A plan is being carried out.
    in_flight: bool,
    /// With that plan the node loses its taint.
    initializing: bool,
    /// Corrections that did not last.
    corrections: u32,
    corrected: Moment,
}

/// A call that is under way.
#[derive(Debug)]
enum Flight {
    Describe(Vec<InstanceId>),
    Find(Vec<(IpAddr, String)>),
}

/// What node control would do to a node, once everything that it waits for has happened; `instance` is what a complete answer said, `None` that there
/// is none.
///
/// # Errors
/// What keeps the node from being told of its instance, for people.
pub fn preview(node: &Node, instance: Option<&Instance>, dual_stack: bool) -> Result<Plan, String> {
    let unchanged = Plan { node: node.name.clone(), uid: node.uid.clone(), steps: Vec::new() };
    if !node.concerns() {
        return Ok(unchanged);
    }
    match (instance, node.provider()) {
        (Some(instance), _) => {
            let wants = desired(node, instance, dual_stack).map_err(|problem| problem.to_string())?;
            Ok(diff(node, &wants, Gate::Open))
        }
        (None, Ok(ProviderId { instance, .. })) if node.readiness == Readiness::Unknown => {
            let steps = vec![Step::Delete { instance: InstanceId::from(instance) }];
            Ok(Plan { steps, ..unchanged })
        }
        (None, Ok(ProviderId { instance, .. })) => Err(format!("the cloud knows no instance {instance}")),
        (None, Err(_)) if node.uninitialized => {
            Err("no instance, or not exactly one, has the node's address, so it keeps its taint".to_owned())
        }
        (None, Err(_)) => Ok(unchanged),
    }
}

/// Node control of one cluster.
#[derive(Debug)]
pub struct Controller {
    settings: Settings,
    nodes: BTreeMap<String, Seen>,
    /// The nodes on each instance: one, unless two nodes claim the same.
    on_instance: BTreeMap<InstanceId, Vec<String>>,
    heard: BTreeMap<InstanceId, Heard>,
    /// Instances that were found for nodes which name none yet.
    found: BTreeMap<String, InstanceId>,
    checks_off: BTreeSet<InstanceId>,
    look: Queue<String>,
    describe: Queue<InstanceId>,
    find: Queue<String>,
    flight: Option<(u64, Flight)>,
    next_call: u64,
    failures: u32,
    pause: Moment,
    audit_due: Moment,
    complete: bool,
    /// When nodes were deleted within the last minute.
    deleted: VecDeque<Moment>,
    notices: VecDeque<Notice>,
    standing: BTreeSet<(About, &'static str)>,
}

const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(120));

impl Controller {
    /// A controller that knows nothing yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            nodes: BTreeMap::new(),
            on_instance: BTreeMap::new(),
            heard: BTreeMap::new(),
            found: BTreeMap::new(),
            checks_off: BTreeSet::new(),
            look: Queue::new(RETRY),
            describe: Queue::new(RETRY),
            find: Queue::new(Backoff::new(Duration::from_secs(2), Duration::from_secs(120))),
            flight: None,
            next_call: 0,
            failures: 0,
            pause: Moment::ZERO,
            audit_due: Moment::ZERO,
            complete: false,
            deleted: VecDeque::new(),
            notices: VecDeque::new(),
            standing: BTreeSet::new(),
        }
    }

    /// Takes note of an event.
    pub fn on_event(&mut self, now: Moment, event: Event) {
        match event {
            Event::Node(node) => self.node_seen(now, &node),
            Event::NodeGone(name) => self.forget(&name),
            Event::NodesComplete => {
                self.complete = true;
                self.audit_due = now + self.settings.audit;
            }
            Event::Answered { id, result } => self.answered(now, id, result),
            Event::Applied { node, uid, result } => self.applied(now, &node, &uid, result),
            Event::Check { instance, off } => {
                let news = if off {
                    self.checks_off.insert(instance.clone())
                } else {
                    self.checks_off.remove(&instance)
                };
                if news && off {
                    self.look_at_nodes_of(now, &instance);
                }
            }
        }
    }

    /// What to do at `now`. Call it again after each action, and after each event.
    pub fn poll(&mut self, now: Moment, nodes: &impl Nodes) -> Poll {
        if !self.complete {
            return self
                .notices
                .pop_front()
                .map_or(Poll::Wait(None), |notice| Poll::Act(Action::Notice(notice)));
        }
        if self.audit_due <= now {
            self.audit_due = now + self.settings.audit;
            let all: Vec<InstanceId> = self.on_instance.keys().cloned().collect();
            all.into_iter().for_each(|instance| self.describe.add(instance, now));
        }
        if let Some(action) = self.next_call(now, nodes) {
            return Poll::Act(action);
        }
        while let Some(name) = self.look.pop(now) {
            if let Some(plan) = self.plan(now, &name, nodes) {
                return Poll::Act(Action::Apply(plan));
            }
        }
        if let Some(notice) = self.notices.pop_front() {
            return Poll::Act(Action::Notice(notice));
        }
        let call_due = [self.describe.next_due(), self.find.next_due()].into_iter().flatten().min();
        let call_due = call_due.filter(|_| self.flight.is_none()).map(|due| due.max(self.pause));
        Poll::Wait([call_due, self.look.next_due(), Some(self.audit_due)].into_iter().flatten().min())
    }

    /// Nodes and instances that wait to be looked at.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.look.len() + self.describe.len() + self.find.len()
    }

    fn node_seen(&mut self, now: Moment, node: &Node) {
        let name = &node.name;
        if !node.concerns() {
            self.forget(name);
            return;
        }
        if self.nodes.get(name).is_some_and(|seen| seen.uid != node.uid) {
            self.forget(name);
        }
        let instance = self.instance_of(node).or_else(|| self.found.get(name).cloned());
        let silent = node.readiness == Readiness::Unknown;
        let old = self.nodes.get(name);
        let fell_silent = silent && old.is_none_or(|seen| !seen.silent);
        let moved = old.is_none_or(|seen| seen.instance != instance);
        let (in_flight, initializing, corrections, corrected) = old
            .map_or((false, false, 0, Moment::ZERO), |seen| {
                (seen.in_flight, seen.initializing, seen.corrections, seen.corrected)
            });
        if moved {
            self.leave_instance(name);
        }
        let uninitialized = node.uninitialized;
        let due = now + if uninitialized { GATHER } else { CORRECT_AFTER };
        match &instance {
            Some(instance) => {
                if !node.provider_id.trim().is_empty() {
                    self.found.remove(name);
                }
                self.find.remove(name);
                note_node(&mut self.on_instance, instance, name);
                if !self.heard.contains_key(instance) {
                    self.describe.add_at(instance.clone(), due);
                } else if fell_silent {
                    self.describe.add(instance.clone(), now);
                }
            }
            None if uninitialized && node.provider_id.trim().is_empty() && !self.found.contains_key(name) => {
                self.find.add_at(name.clone(), due);
            }
            None => {}
        }
        let uid = node.uid.clone();
        let seen = Seen { uid, instance, silent, in_flight, initializing, corrections, corrected };
        self.nodes.insert(name.clone(), seen);
        self.look.add_at(name.clone(), if uninitialized { now } else { due });
    }

    /// The node's instance, when it is one that the cloud can be asked about here.
    fn instance_of(&mut self, node: &Node) -> Option<InstanceId> {
        match node.provider() {
            Ok(ProviderId { region, instance }) if region == self.settings.region => {
                self.over(&About::Node(node.name.clone()), "ProviderIDInvalid");
                Some(InstanceId::from(instance))
            }
            Ok(ProviderId { region, .. }) => {
                if node.uninitialized {
                    let here = self.settings.region.clone();
                    self.stand(About::Node(node.name.clone()), "ProviderIDInvalid", || {
                        format!("spec.providerID names region {region}, and this controller serves {here}: the node keeps its taint; correct kubelet's --provider-id or the controller's --region, and re-create the node")
                    });
                }
                None
            }
            Err(error) => {
                if node.uninitialized && !node.provider_id.trim().is_empty() {
                    self.stand(About::Node(node.name.clone()), "ProviderIDInvalid", || {
                        format!("{error}: the node keeps its taint; re-create it with kubelet's --provider-id=<region>.<instance>")
                    });
                }
                None
            }
        }
    }

    fn forget(&mut self, name: &str) {
        self.leave_instance(name);
        self.nodes.remove(name);
        self.found.remove(name);
        self.look.remove(&name.to_owned());
        self.find.remove(&name.to_owned());
        self.standing.retain(|(about, _)| !matches!(about, About::Node(node) if node == name));
    }

    fn leave_instance(&mut self, name: &str) {
        let Some(instance) = self.nodes.get(name).and_then(|seen| seen.instance.clone()) else { return };
        let Some(names) = self.on_instance.get_mut(&instance) else { return };
        names.retain(|other| other != name);
        if names.is_empty() {
            self.on_instance.remove(&instance);
            self.heard.remove(&instance);
            self.checks_off.remove(&instance);
            self.describe.remove(&instance);
        }
    }

    fn look_at_nodes_of(&mut self, now: Moment, instance: &InstanceId) {
        for name in self.on_instance.get(instance).cloned().unwrap_or_default() {
            self.look.add(name, now);
        }
    }

    fn applied(&mut self, now: Moment, name: &str, uid: &str, result: Result<(), String>) {
        let Some(seen) = self.nodes.get_mut(name).filter(|seen| seen.uid == uid) else { return };
        seen.in_flight = false;
        let initialized = std::mem::take(&mut seen.initializing).then(|| seen.instance.clone()).flatten();
        match result {
            Ok(()) => {
                if let Some(instance) = initialized {
                    self.notices.push_back(Notice {
                        about: About::Node(name.to_owned()),
                        severity: Severity::Normal,
                        reason: "NodeInitialized",
                        message: format!("addresses, labels and provider ID are those of instance {instance}; the node takes pods"),
                    });
                }
                self.look.succeeded(&name.to_owned());
                self.over(&About::Node(name.to_owned()), "NodeWriteFailed");
                self.look.add_at(name.to_owned(), now + SHOWN_AFTER);
            }
            Err(error) => {
                self.look.failed(name.to_owned(), now, name.len() as u64);
                if self.look.failures(&name.to_owned()) >= 5 {
                    self.stand(About::Node(name.to_owned()), "NodeWriteFailed", || {
                        format!("cannot write what the cloud says of the node: {error}")
                    });
                }
            }
        }
    }

    /// What is to be done about a node now.
    fn plan(&mut self, now: Moment, name: &str, nodes: &impl Nodes) -> Option<Plan> {
        let seen = self.nodes.get(name).filter(|seen| !seen.in_flight)?;
        let node = nodes.node(name).filter(|node| node.uid == seen.uid && node.concerns())?;
        let id = seen.instance.clone()?;
        let instance = match self.heard.get(&id)? {
            Heard::Here(instance) => instance.clone(),
            Heard::Missing(times) => {
                let times = *times;
                return self.plan_missing(now, &node, id, times);
            }
        };
        let about = || About::Node(name.to_owned());
        self.over(&about(), "InstanceNotFound");
        let wants = match desired(&node, &instance, self.settings.dual_stack) {
            Ok(wants) => wants,
            Err(problem) => {
                self.stand(about(), "NodeAddressProblem", || problem.to_string());
                return None;
            }
        };
        self.over(&about(), "NodeAddressProblem");
        let plan = diff(&node, &wants, self.gate(&node, &id));
        if plan.steps.is_empty() || (!node.uninitialized && self.is_contested(now, name)) {
            return None;
        }
        self.begin(name, plan.steps.contains(&Step::RemoveTaint));
        Some(plan)
    }

    fn begin(&mut self, name: &str, initializing: bool) {
        if let Some(seen) = self.nodes.get_mut(name) {
            (seen.in_flight, seen.initializing) = (true, initializing);
        }
    }

    fn gate(&self, node: &Node, instance: &InstanceId) -> Gate {
        let judged = !self.settings.routes || node.has_network_condition;
        let passed = !self.settings.source_dest_check_off || self.checks_off.contains(instance);
        if judged && passed { Gate::Open } else { Gate::Closed }
    }

    /// Counts a correction, and puts it off where corrections do not last: somebody else writes the same fields.
    fn is_contested(&mut self, now: Moment, name: &str) -> bool {
        let Some(seen) = self.nodes.get_mut(name) else { return false };
        let since = now.saturating_sub(seen.corrected);
        if seen.corrections > 0 && since >= CONTEST {
            seen.corrections = 0;
        }
        let rest = MINUTE * seen.corrections.saturating_sub(CONTESTED - 1).min(10);
        if seen.corrections >= CONTESTED && since < rest {
            let due = seen.corrected + rest;
            self.look.add_at(name.to_owned(), due);
            return true;
        }
        seen.corrections = seen.corrections.saturating_add(1);
        seen.corrected = now;
        if seen.corrections > CONTESTED {
            self.stand(About::Node(name.to_owned()), "NodeContested", || {
                "something else keeps changing the node's addresses or labels back; run kubelet with --cloud-provider=external, and no second node controller".to_owned()
            });
        }
        false
    }

    /// A node whose instance complete answers lacked.
    fn plan_missing(&mut self, now: Moment, node: &Node, id: InstanceId, times: u32) -> Option<Plan> {
        if times < CONFIRMED {
            self.describe.add_at(id, now + CONFIRM_AFTER);
            return None;
        }
        if node.readiness != Readiness::Unknown {
            let region = self.settings.region.clone();
            self.stand(About::Node(node.name.clone()), "InstanceNotFound", || {
                format!("the cloud knows no instance {id} in {region}, and yet kubelet speaks: is the account or region another, or the provider ID wrong?")
            });
            return None;
        }
        if !self.heard.values().any(|heard| matches!(heard, Heard::Here(_))) {
            // Credentials of another account look just like this.
            self.stand(About::Controller, "NoInstanceFound", || {
                "the cloud knows none of the nodes' instances, so no node is deleted; are region and account right?".to_owned()
            });
            return None;
        }
        self.over(&About::Controller, "NoInstanceFound");
        while self.deleted.front().is_some_and(|at| *at + MINUTE <= now) {
            self.deleted.pop_front();
        }
        let most = MIN_DELETED.max(self.nodes.len() * DELETE_PERCENT / 100);
        if self.deleted.len() >= most {
            let due = self.deleted.front().map_or(now, |at| *at) + MINUTE;
            self.look.add_at(node.name.clone(), due);
            return None;
        }
        self.deleted.push_back(now);
        self.notices.push_back(Notice {
            about: About::Node(node.name.clone()),
            severity: Severity::Normal,
            reason: "DeletingNode",
            message: format!("kubelet is silent and instance {id} is gone: the Node object is deleted"),
        });
        self.begin(&node.name, false);
        Some(Plan {
            node: node.name.clone(),
            uid: node.uid.clone(),
            steps: vec![Step::Delete { instance: id }],
        })
    }

    /// Tells of a state once, until it is over.
    fn stand(&mut self, about: About, reason: &'static str, message: impl FnOnce() -> String) {
        if self.standing.insert((about.clone(), reason)) {
            self.notices.push_back(Notice { about, severity: Severity::Warning, reason, message: message() });
        }
    }

    fn over(&mut self, about: &About, reason: &'static str) {
        if !self.standing.is_empty() {
            self.standing.remove(&(about.clone(), reason));
        }
    }
}

fn note_node(on_instance: &mut BTreeMap<InstanceId, Vec<String>>, instance: &InstanceId, name: &str) {
    let names = on_instance.entry(instance.clone()).or_insert_with(|| Vec::with_capacity(1));
    if !names.iter().any(|known| known == name) {
        names.push(name.to_owned());
    }
}

#[cfg(test)]
mod tests;
