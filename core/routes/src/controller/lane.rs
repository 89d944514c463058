//! The one lane on which all calls to the VPC's route tables go, one after the other.
//!
//! It owns the picture of the tables. The invariant: an entry is in the picture only as a listing or a read-back showed it. What was asked for and not yet
//! seen is an open expectation; while one is young nothing else is changed, since the API would refuse it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ipnet::IpNet;
use loden_reconcile::{Backoff, Moment, mix};

use super::notices::{About, Severity};
use super::{Answer, Call, CallId, Controller, Deadline, MIN_COLLECTED, Why};
use crate::check::check;
use crate::desired::{Desired, Unserved, desired};
use crate::model::{EntryStatus, EntryType, InstanceId, RouteEntry, VpcRouteTableId};
use crate::observed::Observed;
use crate::plan::{Conflict, EntryKey, Obstruction, Plan, Policy, Step, Waiting, diff, entry_ref};
use crate::port::{BATCH_LIMIT, BatchAnswer, FILTER_LIMIT, Failure, FailureClass, Refusal};
use crate::tables::Served;

/// An expectation younger than this holds up further changes of the VPC.
const PATIENCE: Duration = Duration::from_secs(15);
/// Something accepted that does not show for this long was lost.
const LOST: Duration = Duration::from_secs(10);
/// The shortest and the longest pause between two read-backs of the same entries.
const READ_BACK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Collections are counted over this long.
const COLLECTION_WINDOW: Duration = Duration::from_secs(60);

const BUSY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
const THROTTLED: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
const SERVER: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
const DENIED: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(300));
const OTHER: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(120));
const PROBE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
const DUPLICATE: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(60));

/// How long to leave the cloud alone after `failure`, the `failures`-th in a row.
pub(super) fn pause(failure: &Failure, failures: u32, jitter: u64) -> Duration {
    let backoff = match failure.class {
        FailureClass::Busy => BUSY,
        FailureClass::Throttled => THROTTLED,
        FailureClass::Server => SERVER,
        FailureClass::Denied | FailureClass::StaleCredentials => DENIED,
        FailureClass::Quota | FailureClass::Duplicate | FailureClass::NotFound | FailureClass::Invalid => {
            OTHER
        }
    };
    failure.retry_after.unwrap_or_else(|| backoff.delay(failures, jitter))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Present,
    Absent,
    /// Somebody's change is under way: wait for how it ends.
    Stable,
}

#[derive(Debug)]
struct Open {
    expect: Expect,
    instance: Option<InstanceId>,
    entry_id: String,
    since: Moment,
    next: Moment,
}

#[derive(Debug)]
struct Full {
    limit: usize,
    /// The picture was older than the refusal: take the number from the next listing.
    recount: bool,
    failures: u32,
    probe_due: Moment,
}

#[derive(Debug)]
pub(super) struct Blocked {
    failures: u32,
    until: Moment,
    pub(super) failure: Failure,
}

#[derive(Debug)]
enum Flight {
    Tables,
    Entries(VpcRouteTableId),
    ReadBack(VpcRouteTableId, Vec<IpNet>),
    Change(Vec<Step>),
}

type Place = (VpcRouteTableId, IpNet);

#[derive(Debug)]
pub(super) struct Lane {
    flight: Option<(CallId, Flight)>,
    pause_until: Moment,
    failures: u32,
    pub(super) trouble: Option<Failure>,
    pub(super) audit_due: Moment,
    pub(super) tables_due: bool,
    listing_due: BTreeSet<VpcRouteTableId>,
    pub(super) served: Option<Served>,
    pub(super) views: Observed,
    open: BTreeMap<Place, Open>,
    settle_time: Duration,
    full: BTreeMap<VpcRouteTableId, Full>,
    pub(super) blocked: BTreeMap<Place, Blocked>,
    /// Entries of a batch that was refused as a whole: each is tried by itself, so that one bad entry does not hold up the others.
    alone: BTreeSet<Place>,
    adopted: BTreeSet<EntryKey>,
    /// Where nodes that were seen leaving had their entries.
    pub(super) departed: BTreeSet<(IpNet, InstanceId)>,
    stale_since: BTreeMap<EntryKey, Moment>,
    collected: VecDeque<Moment>,
    pub(super) desired: Desired,
    pub(super) waiting: BTreeMap<(VpcRouteTableId, String), Waiting>,
    pub(super) obstructions: BTreeMap<Place, Obstruction>,
    /// Something changed that may call for a step.
    pub(super) look: bool,
    look_at: Option<(Moment, Why)>,
    burst_until: Moment,
}

impl Lane {
    pub(super) fn new() -> Self {
        Self {
            flight: None,
            pause_until: Moment::ZERO,
            failures: 0,
            trouble: None,
            audit_due: Moment::ZERO,
            tables_due: true,
            listing_due: BTreeSet::new(),
            served: None,
            views: Observed::new(),
            open: BTreeMap::new(),
            settle_time: Duration::ZERO,
            full: BTreeMap::new(),
            blocked: BTreeMap::new(),
            alone: BTreeSet::new(),
            adopted: BTreeSet::new(),
            departed: BTreeSet::new(),
            stale_since: BTreeMap::new(),
            collected: VecDeque::new(),
            desired: Desired::default(),
            waiting: BTreeMap::new(),
            obstructions: BTreeMap::new(),
            look: true,
            look_at: None,
            burst_until: Moment::ZERO,
        }
    }

    pub(super) fn in_flight(&self) -> bool {
        self.flight.is_some()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.flight.is_none()
            && self.open.is_empty()
            && !self.look
            && !self.tables_due
            && self.listing_due.is_empty()
    }

    /// Something about the nodes changed. While the lane is at rest the first change waits a moment for others of the same burst.
    pub(super) fn wake(&mut self, now: Moment, aggregation: Duration) {
        if !self.look {
            self.burst_until = now + aggregation;
        }
        self.look = true;
    }

    /// Whether the picture shows that packets for `destination` go to `instance`, and nothing is under way that could change it.
    pub(super) fn carries(&self, table: &VpcRouteTableId, destination: IpNet, instance: &InstanceId) -> bool {
        let place = (table.clone(), destination);
        let leaving = match &self.flight {
            Some((_, Flight::Change(steps))) => {
                steps.iter().any(|step| step.destination() == destination && step.table() == table)
            }
            _ => false,
        };
        !leaving
            && !self.open.contains_key(&place)
            && self.views.get(table).is_some_and(|view| view.carries(destination, instance))
    }

    fn serves(&self, table: &VpcRouteTableId) -> bool {
        self.served.as_ref().is_some_and(|served| served.tables.contains(table))
    }
}

impl Controller {
    pub(super) fn next_route_call(&mut self, now: Moment, deadline: &mut Deadline) -> Option<(CallId, Call)> {
        deadline.at(self.lane.audit_due, Why::Audit);
        if self.lane.flight.is_some() {
            return None;
        }
        if self.lane.pause_until > now {
            deadline.at(self.lane.pause_until, Why::Pause);
            return None;
        }
        let (flight, call) = self.choose_route_call(now, deadline)?;
        let id = self.new_call();
        self.lane.flight = Some((id, flight));
        Some((id, call))
    }

    fn choose_route_call(&mut self, now: Moment, deadline: &mut Deadline) -> Option<(Flight, Call)> {
        if self.lane.tables_due {
            return Some((Flight::Tables, Call::ListTables));
        }
        if let Some(table) = self.lane.listing_due.first().cloned() {
            return Some((Flight::Entries(table.clone()), Call::ListEntries(table)));
        }
        if let Some(read_back) = self.due_read_back(now) {
            return Some(read_back);
        }
        if let Some(next) = self.lane.open.values().map(|open| open.next).min() {
            deadline.at(next, Why::Settling);
        }
        if !self.nodes_complete
            || self.lane.open.values().any(|open| now.saturating_sub(open.since) < PATIENCE)
        {
            return None;
        }
        if self.lane.look_at.is_some_and(|(due, _)| due <= now) {
            self.lane.look = true;
        }
        if self.lane.look && self.lane.burst_until > now {
            deadline.at(self.lane.burst_until, Why::Burst);
            return None;
        }
        if self.lane.look
            && let Some(steps) = self.next_batch(now)
        {
            let call = match steps.first() {
                Some(Step::Create { .. }) => {
                    Call::Create(steps.iter().filter_map(created).cloned().collect())
                }
                _ => Call::Delete(steps.iter().filter_map(Step::removes).map(entry_ref).collect()),
            };
            return Some((Flight::Change(steps), call));
        }
        if let Some((due, why)) = self.lane.look_at {
            deadline.at(due, why);
        }
        None
    }

    /// Read-backs that are due, of one table.
    fn due_read_back(&self, now: Moment) -> Option<(Flight, Call)> {
        let mut due = self.lane.open.iter().filter(|(_, open)| open.next <= now);
        let ((table, first), _) = due.next()?;
        let others =
            due.take_while(|((other, _), _)| other == table).map(|((_, destination), _)| *destination);
        let destinations: Vec<IpNet> = std::iter::once(*first).chain(others).take(FILTER_LIMIT).collect();
        Some((
            Flight::ReadBack(table.clone(), destinations.clone()),
            Call::ReadBack(table.clone(), destinations),
        ))
    }

    /// Plans anew, and takes the first steps that one call can carry. `None`: there is nothing to do now, and `look_at` says when there may be.
    fn next_batch(&mut self, now: Moment) -> Option<Vec<Step>> {
        let policy = self.policy(now);
        let plan = self.plan(now, &policy);
        let allowance = self.collect_allowance(now);
        if let Err(violations) = check(&plan, &self.lane.desired, &policy, allowance) {
            for violation in violations {
                self.notices.stand(About::Controller, "UnsafePlan", &violation.step.clone(), || {
                    violation.to_string()
                });
            }
            self.lane.look = false;
            self.lane.look_at = None;
            return None;
        }
        let steps = self.first_batch(&plan);
        if steps.is_empty() {
            self.lane.look = false;
            self.lane.look_at = self.next_look(now, &plan);
            return None;
        }
        Some(steps)
    }

    fn policy(&self, now: Moment) -> Policy {
        let mut limits: BTreeMap<VpcRouteTableId, usize> = BTreeMap::new();
        if let (Some(quota), Some(served)) = (self.settings.quota, &self.lane.served) {
            limits.extend(served.tables.iter().map(|table| (table.clone(), quota)));
        }
        for (table, full) in &self.lane.full {
            let count = self.lane.views.get(table).map_or(0, |view| view.custom_count());
            // A probe is one more than there is room for.
            let limit = if full.probe_due <= now { full.limit.max(count + 1) } else { full.limit };
            limits.insert(table.clone(), limit);
        }
        let blocked =
            self.lane.blocked.iter().filter(|(_, blocked)| blocked.until > now).map(|(place, _)| place);
        Policy {
            mark: self.mark.clone(),
            cluster: self.settings.pod_cidrs.clone(),
            tables: self.lane.served.as_ref().map(|served| served.tables.clone()).unwrap_or_default(),
            limits,
            adopted: self.lane.adopted.clone(),
            on_hold: blocked.chain(self.lane.open.keys()).cloned().collect(),
        }
    }

    fn plan(&mut self, now: Moment, policy: &Policy) -> Plan {
        let views = &self.lane.views;
        let installed = |destination, instance: &InstanceId| {
            views.values().any(|view| view.good(destination, instance).is_some())
        };
        self.lane.desired =
            desired(self.nodes.values().map(|state| &state.node), &self.settings.pod_cidrs, installed);
        let mut allowance = self.collect_allowance(now);
        let (departed, stale_since, grace) =
            (&self.lane.departed, &self.lane.stale_since, self.settings.stale_grace);
        let plan = diff(&self.lane.desired, &self.lane.views, policy, |entry| {
            let Some(key) = EntryKey::of(entry) else { return false };
            let seen_leaving = departed.contains(&(key.destination, key.instance.clone()));
            let ripe = seen_leaving || stale_since.get(&key).is_some_and(|since| *since + grace <= now);
            let go = ripe && allowance > 0;
            allowance -= usize::from(go);
            go
        });
        self.note_plan(now, &plan);
        plan
    }

    /// Remembers what a plan says beyond its steps, and tells people of it.
    fn note_plan(&mut self, now: Moment, plan: &Plan) {
        self.lane.adopted.extend(plan.adopt.iter().cloned());
        let stale: BTreeSet<EntryKey> = plan.stale.iter().filter_map(EntryKey::of).collect();
        self.lane.stale_since.retain(|key, _| stale.contains(key));
        for key in stale {
            self.lane.stale_since.entry(key).or_insert(now);
        }

        let mut waiting: BTreeMap<_, _> =
            plan.waiting.iter().map(|wait| ((wait.table.clone(), wait.node.clone()), wait.clone())).collect();
        for ((table, node), wait) in &self.lane.waiting {
            // A probe for one more entry than there is room for: until it succeeds its node waits like the others.
            if self.lane.full.contains_key(table)
                && plan
                    .steps
                    .iter()
                    .any(|step| step.table() == table && step.destination() == wait.destination)
            {
                waiting.insert((table.clone(), node.clone()), wait.clone());
            }
        }
        for wait in waiting.values_mut() {
            if let Some(full) = self.lane.full.get(&wait.table) {
                wait.limit = full.limit;
            }
        }
        let obstructions: BTreeMap<_, _> = plan
            .obstructions
            .iter()
            .map(|found| ((found.entry.table.clone(), found.pod_cidr), found.clone()))
            .collect();
        let mut touched: BTreeSet<String> = self.lane.desired.unserved.keys().cloned().collect();
        touched.extend(self.lane.waiting.keys().chain(waiting.keys()).map(|(_, node)| node.clone()));
        touched.extend(
            self.lane.obstructions.values().chain(obstructions.values()).map(|found| found.node.clone()),
        );
        self.lane.waiting = waiting;
        self.lane.obstructions = obstructions;
        self.dirty(now, touched);
        self.tell_plan();
    }

    fn tell_plan(&mut self) {
        let lane = &self.lane;
        for ((table, node), wait) in &lane.waiting {
            let about = About::Node(node.clone());
            self.notices.stand(about, "RouteQuotaExceeded", table.as_str(), || wait.to_string());
            self.notices.stand(About::Controller, "RouteQuotaExceeded", table.as_str(), || {
                let nodes: Vec<&str> =
                    lane.waiting.keys().filter(|(other, _)| other == table).map(|(_, node)| node.as_str()).collect();
                let shown = nodes.iter().take(10).copied().collect::<Vec<_>>().join(", ");
                let more = if nodes.len() > 10 { ", …" } else { "" };
                format!(
                    "route table {table} holds {} of {} custom route entries, and {} nodes wait for room ({shown}{more}); raise the quota vpc_quota_route_entrys_num or remove entries",
                    wait.count,
                    wait.limit,
                    nodes.len()
                )
            });
        }
        let waiting = &lane.waiting;
        self.notices.keep("RouteQuotaExceeded", |about, table| match about {
            About::Controller => waiting.keys().any(|(other, _)| other.as_str() == table),
            About::Node(node) => waiting.contains_key(&(table.into(), node.clone())),
        });
        for ((table, pod_cidr), found) in &lane.obstructions {
            let key = format!("{table} {pod_cidr}");
            self.notices.stand(About::Node(found.node.clone()), "RouteBlocked", &key, || found.to_string());
        }
        let blocked: BTreeSet<String> =
            lane.obstructions.keys().map(|(table, pod_cidr)| format!("{table} {pod_cidr}")).collect();
        self.notices.keep("RouteBlocked", |_, key| blocked.contains(key));

        // A node without pod CIDR or provider ID is on its way: its condition says so, and nobody needs to be woken.
        let told = |unserved: &Unserved| !matches!(unserved, Unserved::NoPodCidr | Unserved::ProviderId(_));
        for (node, unserved) in lane.desired.unserved.iter().filter(|(_, unserved)| told(unserved)) {
            self.notices.stand(About::Node(node.clone()), unserved.reason(), "", || unserved.to_string());
        }
        for reason in ["InvalidPodCIDR", "PodCIDROutsideCluster", "PodCIDRCollision"] {
            let unserved = &lane.desired.unserved;
            self.notices.keep(reason, |about, _| match about {
                About::Node(node) => unserved.get(node).is_some_and(|unserved| unserved.reason() == reason),
                About::Controller => false,
            });
        }
    }

    /// How many entries may be collected now: a share of the nodes within each window, so that a list of nodes that is wrong does not empty the
    /// tables.
    fn collect_allowance(&self, now: Moment) -> usize {
        let bound = (self.nodes.len() * self.settings.collect_percent / 100).max(MIN_COLLECTED);
        let recent = self.lane.collected.iter().filter(|at| **at + COLLECTION_WINDOW > now).count();
        bound.saturating_sub(recent)
    }

    fn first_batch(&self, plan: &Plan) -> Vec<Step> {
        let Some(first) = plan.steps.first() else { return Vec::new() };
        let place = |step: &Step| (step.table().clone(), step.destination());
        if self.lane.alone.contains(&place(first)) {
            return vec![first.clone()];
        }
        let kind = std::mem::discriminant(first);
        plan.steps
            .iter()
            .take_while(|step| std::mem::discriminant(*step) == kind && step.table() == first.table())
            .filter(|step| !self.lane.alone.contains(&place(step)))
            .take(BATCH_LIMIT)
            .cloned()
            .collect()
    }

    fn next_look(&mut self, now: Moment, plan: &Plan) -> Option<(Moment, Why)> {
        let mut deadline = Deadline::default();
        for blocked in self.lane.blocked.values().filter(|blocked| blocked.until > now) {
            deadline.at(blocked.until, Why::Retry);
        }
        for (table, full) in &self.lane.full {
            if plan.waiting.iter().any(|wait| wait.table == *table) {
                deadline.at(full.probe_due, Why::QuotaProbe);
            }
        }
        let mut deferred = 0;
        for key in plan.stale.iter().filter_map(EntryKey::of) {
            let ripe_at = match self.lane.stale_since.get(&key) {
                _ if self.lane.departed.contains(&(key.destination, key.instance.clone())) => now,
                Some(since) => *since + self.settings.stale_grace,
                None => now,
            };
            if ripe_at > now {
                deadline.at(ripe_at, Why::Grace);
            } else {
                deferred += 1;
            }
        }
        if deferred > 0
            && let Some(oldest) = self.lane.collected.front()
        {
            deadline.at((*oldest + COLLECTION_WINDOW).max(now + READ_BACK.0), Why::Grace);
            self.notices.stand(About::Controller, "CollectionBounded", "", || {
                format!(
                    "{deferred} route entries of departed nodes wait: no more than a share of the nodes' entries is removed within a minute; look whether the list of nodes is right"
                )
            });
        } else {
            self.notices.over(&About::Controller, "CollectionBounded", "");
        }
        deadline.0
    }

    pub(super) fn lane_answered(&mut self, now: Moment, id: CallId, answer: Answer) {
        let Some((_, flight)) = self.lane.flight.take_if(|(flight, _)| *flight == id) else { return };
        match (flight, answer) {
            (Flight::Tables, Answer::Tables(Ok(tables))) => {
                self.tables_listed(now, &tables);
            }
            (Flight::Entries(table), Answer::Entries(Ok(listing))) => {
                self.route_success();
                self.listed(now, &table, listing);
            }
            (Flight::ReadBack(table, destinations), Answer::Entries(Ok(listing))) => {
                self.route_success();
                if let Some(view) = self.lane.views.get_mut(&table) {
                    view.replace(&destinations, listing);
                }
                self.settle(now, &table, &destinations);
                self.slow_down(now, &table);
                self.dirty_destinations(now, &destinations);
            }
            (Flight::Change(steps), Answer::Batch(Ok(answer))) => {
                self.route_success();
                self.changed(now, steps, &answer);
            }
            (Flight::Change(steps), Answer::Batch(Err(failure))) => self.change_failed(now, &steps, &failure),
            (Flight::Entries(table), Answer::Entries(Err(failure)))
                if failure.class == FailureClass::NotFound =>
            {
                // The table went away: look at the list of tables again.
                self.lane.listing_due.remove(&table);
                self.lane.tables_due = true;
                self.route_failure(now, &failure);
            }
            (
                _,
                Answer::Tables(Err(failure)) | Answer::Entries(Err(failure)) | Answer::Batch(Err(failure)),
            ) => {
                self.route_failure(now, &failure);
            }
            (_, _) => {
                let failure = Failure::transport("the call was answered by another call's answer");
                self.route_failure(now, &failure);
            }
        }
    }

    fn route_success(&mut self) {
        self.lane.failures = 0;
        self.lane.trouble = None;
        self.notices.over(&About::Controller, "CloudAccessDenied", "vpc");
        self.notices.over(&About::Controller, "SyncRouteFailed", "");
    }

    fn route_failure(&mut self, now: Moment, failure: &Failure) {
        self.lane.failures = self.lane.failures.saturating_add(1);
        self.lane.pause_until = now + pause(failure, self.lane.failures, mix(self.next_call));
        self.lane.trouble = Some(failure.clone());
        match failure.class {
            FailureClass::Denied | FailureClass::StaleCredentials => {
                self.notices.stand(About::Controller, "CloudAccessDenied", "vpc", || {
                    format!("the VPC API refuses the controller's credentials: {failure}; route entries stay as they are until that is mended")
                });
            }
            _ if self.lane.failures >= 5 => {
                let failures = self.lane.failures;
                self.notices.stand(About::Controller, "SyncRouteFailed", "", || {
                    format!("{failures} calls to the VPC API failed one after the other, the last with {failure}; still trying")
                });
            }
            _ => {}
        }
    }

    fn tables_listed(&mut self, now: Moment, tables: &[crate::model::RouteTable]) {
        self.lane.tables_due = false;
        let served = match Served::choose(tables, &self.settings.tables, &self.settings.vpc) {
            Ok(served) => served,
            Err(error) => {
                self.lane.tables_due = true;
                let failure = Failure::api(404, "InvalidVpc.NotFound", &error.to_string(), "", None);
                self.route_failure(now, &failure);
                return;
            }
        };
        self.route_success();
        if served.is_complete() {
            self.notices.over(&About::Controller, "MultipleRouteTables", "");
        } else {
            let (vpc, count) = (&self.settings.vpc, tables.iter().filter(|table| !table.gateway).count());
            self.notices.stand(About::Controller, "MultipleRouteTables", "", || {
                format!(
                    "multiple route tables found by vpc id[{vpc}], length(tables)={count}: nodes whose vSwitch uses a table that is not served stay unavailable; {}",
                    served.remedy()
                )
            });
        }
        for table in &served.unusable {
            self.notices.stand(About::Controller, "RouteTableNotFound", table.as_str(), || {
                format!("route table {table} is configured, but the VPC has no such table that takes entries; correct --route-table-ids")
            });
        }
        self.notices.keep("RouteTableNotFound", |_, table| served.unusable.contains(&table.into()));
        self.lane.views.retain(|table, _| served.tables.contains(table));
        self.lane.open.retain(|(table, _), _| served.tables.contains(table));
        self.lane.full.retain(|table, _| served.tables.contains(table));
        self.lane.listing_due = served.tables.iter().cloned().collect();
        self.lane.served = Some(served);
    }

    fn listed(&mut self, now: Moment, table: &VpcRouteTableId, listing: Vec<RouteEntry>) {
        self.lane.listing_due.remove(table);
        if !self.lane.serves(table) {
            return;
        }
        let view = crate::observed::TableView::new(listing);
        let cluster = &self.settings.pod_cidrs;
        let unsettled = view.iter().filter(|entry| {
            entry.kind == EntryType::Custom
                && entry.status != EntryStatus::Available
                && cluster.iter().any(|range| loden_addr::contains(*range, entry.destination))
        });
        for entry in unsettled {
            self.lane.open.entry((table.clone(), entry.destination)).or_insert_with(|| Open {
                expect: Expect::Stable,
                instance: None,
                entry_id: entry.id.clone(),
                since: now,
                next: now + READ_BACK.0,
            });
        }
        if let Some(full) = self.lane.full.get_mut(table)
            && std::mem::take(&mut full.recount)
        {
            full.limit = view.custom_count();
        }
        self.lane.views.insert(table.clone(), view);
        self.forget_absent();
        let open: Vec<IpNet> = self
            .lane
            .open
            .keys()
            .filter(|(of, _)| of == table)
            .map(|(_, destination)| *destination)
            .collect();
        self.settle(now, table, &open);
        self.lane.look = true;
        self.all_dirty(now);
    }

    /// Drops what is remembered of entries that no table has and that nobody is creating.
    fn forget_absent(&mut self) {
        let (views, open) = (&self.lane.views, &self.lane.open);
        let coming = |destination: IpNet| open.keys().any(|(_, other)| *other == destination);
        self.lane.departed.retain(|(destination, instance)| {
            views.values().any(|view| view.good(*destination, instance).is_some()) || coming(*destination)
        });
        self.lane.adopted.retain(|key| {
            views.get(&key.table).is_some_and(|view| view.good(key.destination, &key.instance).is_some())
        });
    }

    /// Closes the expectations that what was just read fulfils or refutes.
    fn settle(&mut self, now: Moment, table: &VpcRouteTableId, destinations: &[IpNet]) {
        let Some(view) = self.lane.views.get(table) else { return };
        for destination in destinations {
            let place = (table.clone(), *destination);
            let Some(open) = self.lane.open.get_mut(&place) else { continue };
            let age = now.saturating_sub(open.since);
            let entries = view.at(*destination);
            let moving = entries
                .iter()
                .any(|entry| entry.kind == EntryType::Custom && entry.status != EntryStatus::Available);
            let done = match open.expect {
                Expect::Present => {
                    let good =
                        open.instance.as_ref().is_some_and(|instance| view.carries(*destination, instance));
                    if good {
                        // Read-backs of later entries begin when this one was there.
                        self.lane.settle_time = age;
                    }
                    good || (!moving && (!entries.is_empty() || age > LOST))
                }
                Expect::Absent => {
                    !entries.iter().any(|entry| entry.id == open.entry_id) || (!moving && age > LOST)
                }
                Expect::Stable => !moving,
            };
            if done {
                self.lane.open.remove(&place);
                self.lane.look = true;
            } else {
                open.next = now + (age * 3 / 20).clamp(READ_BACK.0, READ_BACK.1);
            }
        }
    }

    /// When some of a batch are not there yet, the others of the same age are not either: they wait as long.
    fn slow_down(&mut self, now: Moment, table: &VpcRouteTableId) {
        let waiting: BTreeMap<Moment, Moment> = self
            .lane
            .open
            .iter()
            .filter(|((of, _), open)| of == table && open.next > now)
            .map(|(_, open)| (open.since, open.next))
            .collect();
        for ((of, _), open) in &mut self.lane.open {
            if of == table
                && let Some(next) = waiting.get(&open.since)
            {
                open.next = open.next.max(*next);
            }
        }
    }

    fn dirty_destinations(&mut self, now: Moment, destinations: &[IpNet]) {
        let names: Vec<String> = destinations
            .iter()
            .filter_map(|destination| self.lane.desired.entries.get(destination))
            .map(|wanted| wanted.node.clone())
            .collect();
        self.dirty(now, names);
    }

    /// A batch was answered item by item.
    fn changed(&mut self, now: Moment, steps: Vec<Step>, answer: &BatchAnswer) {
        let first_look = now + self.lane.settle_time * 9 / 10;
        let mut slow: Option<Failure> = None;
        let (refused, accepted): (Vec<_>, Vec<_>) = steps
            .into_iter()
            .map(|step| (answer.refused.iter().find(|refusal| names(refusal, &step)), step))
            .partition(|(refusal, _)| refusal.is_some());
        for (_, step) in accepted {
            let place = (step.table().clone(), step.destination());
            self.lane.blocked.remove(&place);
            self.lane.alone.remove(&place);
            let (expect, instance) = match &step {
                Step::Create { entry, .. } => (Expect::Present, Some(entry.instance.clone())),
                Step::RemoveConflict { .. } | Step::Collect { .. } => (Expect::Absent, None),
            };
            if expect == Expect::Present && refused.is_empty() {
                self.lane.full.remove(&place.0);
            }
            let entry_id = step.removes().map(|entry| entry.id.clone()).unwrap_or_default();
            self.lane.open.insert(place, Open { expect, instance, entry_id, since: now, next: first_look });
            self.tell_removed(now, &step);
        }
        let accepted = self.lane.open.values().filter(|open| open.expect == Expect::Present).count();
        for (refusal, step) in refused {
            let Some(failure) = refusal.map(|refusal| refusal.failure.clone()) else { continue };
            let class = failure.class;
            self.refused(now, &step, &failure, accepted);
            if matches!(
                class,
                FailureClass::Busy
                    | FailureClass::Throttled
                    | FailureClass::Server
                    | FailureClass::Denied
                    | FailureClass::StaleCredentials
            ) {
                slow = Some(failure);
            }
        }
        if let Some(failure) = slow {
            self.route_failure(now, &failure);
        }
    }

    fn tell_removed(&mut self, now: Moment, step: &Step) {
        match step {
            Step::RemoveConflict { entry, conflict, node, pod_cidr, instance } => {
                let why = match conflict {
                    Conflict::PointsElsewhere => {
                        format!("it is this node's pod CIDR and pointed away from {instance}")
                    }
                    Conflict::MoreSpecific => format!("it lies inside this node's pod CIDR {pod_cidr}"),
                };
                self.notices.tell(
                    About::Node(node.clone()),
                    Severity::Warning,
                    "ConflictingRouteRemoved",
                    format!(
                        "removed route entry {} via {} ({}) from route table {}: {why}",
                        entry.destination,
                        entry.via(),
                        entry.id,
                        entry.table
                    ),
                );
            }
            Step::Collect { entry } => {
                self.lane.collected.push_back(now);
                while self.lane.collected.front().is_some_and(|at| *at + COLLECTION_WINDOW <= now) {
                    self.lane.collected.pop_front();
                }
                if let Some(key) = EntryKey::of(entry) {
                    self.lane.departed.remove(&(key.destination, key.instance.clone()));
                    self.lane.adopted.remove(&key);
                }
                self.notices.tell(
                    About::Controller,
                    Severity::Normal,
                    "StaleRouteRemoved",
                    format!(
                        "removed route entry {} via {} from route table {}: it is this cluster's, and no node has it any more",
                        entry.destination,
                        entry.via(),
                        entry.table
                    ),
                );
            }
            Step::Create { .. } => {}
        }
    }

    /// One item was refused.
    fn refused(&mut self, now: Moment, step: &Step, failure: &Failure, accepted: usize) {
        let place = (step.table().clone(), step.destination());
        let jitter = mix(self.next_call) ^ u64::from(step.destination().prefix_len());
        match failure.class {
            FailureClass::Quota => self.table_full(now, step.table(), accepted),
            FailureClass::Busy
            | FailureClass::Throttled
            | FailureClass::Server
            | FailureClass::Denied
            | FailureClass::StaleCredentials => {}
            FailureClass::NotFound if step.removes().is_some() => {
                // Somebody was faster. See that it is so.
                let open = Open {
                    expect: Expect::Stable,
                    instance: None,
                    entry_id: String::new(),
                    since: now,
                    next: now,
                };
                self.lane.open.insert(place, open);
            }
            FailureClass::Duplicate | FailureClass::NotFound | FailureClass::Invalid => {
                let backoff = if failure.class == FailureClass::Duplicate { DUPLICATE } else { OTHER };
                if failure.class == FailureClass::Duplicate {
                    self.lane.listing_due.insert(place.0.clone());
                }
                let blocked = self.lane.blocked.entry(place.clone()).or_insert_with(|| Blocked {
                    failures: 0,
                    until: now,
                    failure: failure.clone(),
                });
                blocked.failures = blocked.failures.saturating_add(1);
                blocked.until = now + backoff.delay(blocked.failures, jitter);
                blocked.failure = failure.clone();
                self.lane.alone.remove(&place);
                self.tell_refused(now, step, failure);
            }
        }
    }

    fn tell_refused(&mut self, now: Moment, step: &Step, failure: &Failure) {
        let failures =
            self.lane.blocked.get(&(step.table().clone(), step.destination())).map_or(0, |b| b.failures);
        let node = match step {
            Step::Create { node, .. } | Step::RemoveConflict { node, .. } => Some(node.clone()),
            Step::Collect { .. } => None,
        };
        self.dirty(now, node.clone());
        // The first duplicate is settled by looking at the table again; a person hears of what stays.
        let due = if failure.class == FailureClass::Duplicate { 3 } else { 1 };
        if failures == due {
            let about = node.map_or(About::Controller, About::Node);
            let (table, verb) =
                (step.table(), if step.removes().is_some() { "deleting" } else { "creating" });
            self.notices.tell(
                about,
                Severity::Warning,
                if step.removes().is_some() { "DeleteRouteFailed" } else { "CreateRouteFailed" },
                format!("Error {verb} route entry {} in {table}: {failure}", step.destination()),
            );
        }
    }

    fn table_full(&mut self, now: Moment, table: &VpcRouteTableId, accepted: usize) {
        let count = self.lane.views.get(table).map_or(0, |view| view.custom_count()) + accepted;
        let jitter = mix(self.next_call);
        match self.lane.full.get_mut(table) {
            None => {
                self.lane.full.insert(
                    table.clone(),
                    Full {
                        limit: count,
                        recount: true,
                        failures: 1,
                        probe_due: now + PROBE.delay(1, jitter),
                    },
                );
                self.lane.listing_due.insert(table.clone());
            }
            // Several refusals of one batch are one.
            Some(full) if full.probe_due > now => {}
            Some(full) => {
                full.failures = full.failures.saturating_add(1);
                full.probe_due = now + PROBE.delay(full.failures, jitter);
                full.limit = count;
            }
        }
    }

    /// A batch was refused as a whole, or its fate is unknown.
    fn change_failed(&mut self, now: Moment, steps: &[Step], failure: &Failure) {
        match failure.class {
            FailureClass::Quota => {
                if let Some(first) = steps.first() {
                    self.table_full(now, first.table(), 0);
                }
                if steps.len() > 1 {
                    // Some of them may fit.
                    self.lane
                        .alone
                        .extend(steps.iter().map(|step| (step.table().clone(), step.destination())));
                }
                return;
            }
            FailureClass::Invalid | FailureClass::NotFound | FailureClass::Duplicate => {
                if let [only] = steps {
                    self.refused(now, only, failure, 0);
                } else {
                    self.lane
                        .alone
                        .extend(steps.iter().map(|step| (step.table().clone(), step.destination())));
                }
                return;
            }
            FailureClass::Server => {
                // It may have been carried out: nothing is claimed of these entries before they were seen again.
                self.lane.listing_due.extend(steps.first().map(|step| step.table().clone()));
                for step in steps {
                    self.lane.open.entry((step.table().clone(), step.destination())).or_insert(Open {
                        expect: Expect::Stable,
                        instance: None,
                        entry_id: String::new(),
                        since: now,
                        next: now,
                    });
                }
            }
            FailureClass::Busy
            | FailureClass::Throttled
            | FailureClass::Denied
            | FailureClass::StaleCredentials => {}
        }
        self.route_failure(now, failure);
    }
}

fn created(step: &Step) -> Option<&crate::model::NewEntry> {
    match step {
        Step::Create { entry, .. } => Some(entry),
        Step::RemoveConflict { .. } | Step::Collect { .. } => None,
    }
}

/// Whether a refusal is about a step. Answers name items by entry ID, or by destination and next hop.
fn names(refusal: &Refusal, step: &Step) -> bool {
    if let Some(entry) = step.removes()
        && !refusal.entry_id.is_empty()
    {
        return entry.id == refusal.entry_id;
    }
    refusal.destination == Some(step.destination())
}
