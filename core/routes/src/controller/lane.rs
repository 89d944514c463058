//! The one lane on which all calls to the VPC's route tables go, one after the other.
//!
//! It owns the picture of the tables. The invariant: an entry is in the picture only as a listing or a read-back showed it. What was asked for and not yet
//! seen is an open expectation; while one is young nothing else is changed, since the API would refuse it.

mod answers;
mod planning;
mod refusals;
mod tables;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use loden_reconcile::{Backoff, Moment};

use super::pace::Pace;
use super::{Call, CallId, Controller, Deadline, Why};
use crate::desired::Desired;
use crate::model::RouteTable;
use crate::model::{InstanceId, VSwitchId, VpcRouteTableId, is_ipv6};
use crate::observed::Observed;
use crate::plan::{EntryKey, Obstruction, Place, Step, Waiting, entry_ref};
use crate::port::{FILTER_LIMIT, Failure, FailureClass};
use crate::tables::Served;

/// An expectation younger than this holds up further changes of the VPC.
const PATIENCE: Duration = Duration::from_secs(15);
/// Something accepted that does not show for this long was lost.
const LOST: Duration = Duration::from_secs(10);
/// The shortest and the longest pause between two read-backs of the same entries.
const READ_BACK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// When nodes change, the list of tables is read again if it is older than this: whoever moves vSwitches to another table tells nobody.
const TABLES_AGE: Duration = Duration::from_secs(30);

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
    /// Present, where another next hop was: a read that lags still shows that one.
    Repointed,
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
    Ipv6,
    Quota,
    Tables,
    /// The list of tables, to see whether vSwitches moved.
    Glance,
    Entries(VpcRouteTableId),
    ReadBack(VpcRouteTableId, Vec<IpNet>),
    Change(Vec<Step>),
}

#[derive(Debug)]
pub(super) struct Lane {
    flight: Option<(CallId, Flight)>,
    pause_until: Moment,
    failures: u32,
    pub(super) trouble: Option<Failure>,
    pub(super) pace: Pace,
    pub(super) audit_due: Moment,
    pub(super) tables_due: bool,
    /// The list of tables is to be read again, when nothing more urgent is to do.
    glance_due: bool,
    tables_seen: Moment,
    /// When everything is listed a second time.
    second_look: SecondLook,
    pub(super) ipv6_due: bool,
    pub(super) quota_due: bool,
    /// The cluster's pod CIDRs of the families that the VPC routes.
    pub(super) ranges: Vec<IpNet>,
    /// What the API said each table takes.
    pub(super) quota_read: Option<usize>,
    /// Tables that take no IPv6 entries.
    left_out: BTreeSet<VpcRouteTableId>,
    /// Where an entry cannot be changed in place; `None`: nowhere, for want of a permission.
    replace: Option<BTreeSet<Place>>,
    /// Every table of the VPC, as last listed.
    all_tables: Vec<RouteTable>,
    listing_due: BTreeSet<VpcRouteTableId>,
    pub(super) served: Option<Served>,
    pub(super) views: Observed,
    open: BTreeMap<Place, Open>,
    settle_time: Duration,
    full: BTreeMap<VpcRouteTableId, Full>,
    pub(super) blocked: BTreeMap<Place, Blocked>,
    /// Entries of a batch that was refused as a whole: each is tried by itself, so that one bad entry does not hold up the others.
    alone: BTreeSet<Place>,
    adopted: Arc<BTreeSet<EntryKey>>,
    /// Where nodes that were seen leaving had their entries.
    pub(super) departed: BTreeSet<(IpNet, InstanceId)>,
    stale_since: BTreeMap<EntryKey, Moment>,
    removals: window::Removals,
    pub(super) desired: Desired,
    /// The nodes or the ranges are no longer those that `desired` was derived from.
    desired_due: bool,
    pub(super) waiting: BTreeMap<Place, Waiting>,
    pub(super) obstructions: BTreeMap<Place, Obstruction>,
    /// What is in the way of a node, by its pod CIDR, and waits to be removed.
    pub(super) deferred: BTreeMap<Place, Obstruction>,
    /// Conflicting entries in the last plan, by table.
    pub(super) conflicting: BTreeMap<VpcRouteTableId, usize>,
    /// Nodes that pods wait for.
    pub(super) urgent: Arc<BTreeSet<String>>,
    /// Something changed that may call for a step.
    pub(super) look: bool,
    look_at: Option<(Moment, Why)>,
    burst_until: Moment,
    /// Collections have waited for a batch of creations that was not full, and go before the next: nodes that keep joining one by one would put them off
    /// for ever.
    collect_next: bool,
}

/// The second listing after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SecondLook {
    /// The first is not complete yet.
    Unset,
    Due(Moment),
    Done,
}

impl Lane {
    pub(super) fn new(ranges: &[IpNet]) -> Self {
        Self {
            flight: None,
            pause_until: Moment::ZERO,
            failures: 0,
            trouble: None,
            pace: Pace::default(),
            audit_due: Moment::ZERO,
            tables_due: true,
            glance_due: false,
            tables_seen: Moment::ZERO,
            second_look: SecondLook::Unset,
            ipv6_due: false,
            quota_due: false,
            ranges: ranges.to_vec(),
            quota_read: None,
            left_out: BTreeSet::new(),
            replace: Some(BTreeSet::new()),
            all_tables: Vec::new(),
            listing_due: BTreeSet::new(),
            served: None,
            views: Observed::new(),
            open: BTreeMap::new(),
            settle_time: Duration::ZERO,
            full: BTreeMap::new(),
            blocked: BTreeMap::new(),
            alone: BTreeSet::new(),
            adopted: Arc::default(),
            departed: BTreeSet::new(),
            stale_since: BTreeMap::new(),
            removals: window::Removals::default(),
            desired: Desired::default(),
            desired_due: true,
            waiting: BTreeMap::new(),
            obstructions: BTreeMap::new(),
            deferred: BTreeMap::new(),
            conflicting: BTreeMap::new(),
            urgent: Arc::default(),
            look: true,
            look_at: None,
            burst_until: Moment::ZERO,
            collect_next: false,
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
            && !self.glance_due
            && !self.ipv6_due
            && self.listing_due.is_empty()
    }

    /// What nodes call for changed.
    pub(super) fn nodes_changed(&mut self, now: Moment, aggregation: Duration) {
        self.desired_due = true;
        self.glance_due |= self.served.is_some() && self.tables_seen + TABLES_AGE <= now;
        self.wake(now, aggregation);
    }

    /// The list of tables may be out of date.
    pub(super) fn glance(&mut self) {
        self.glance_due = true;
    }

    /// Something changed that calls for a plan. While the lane is at rest the first change waits a moment for others of the same burst.
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

    /// Whether the table takes no entries for such a destination.
    pub(super) fn leaves_out(&self, table: &VpcRouteTableId, destination: IpNet) -> bool {
        is_ipv6(destination) && self.left_out.contains(table)
    }

    /// Whether the table's entries are looked at.
    fn lists(&self, table: &VpcRouteTableId) -> bool {
        self.served.as_ref().is_some_and(|served| served.listed().any(|listed| listed == table))
    }

    pub(super) fn is_adopted(&self, key: &EntryKey) -> bool {
        self.adopted.contains(key)
    }

    /// Entries whose creation or deletion is not yet seen to have ended, or that were refused.
    pub(super) fn queued(&self) -> usize {
        self.open.len() + self.blocked.len()
    }

    /// Whether one of the VPC's tables, as last listed, is the vSwitch's.
    pub(super) fn knows(&self, vswitch: &VSwitchId) -> bool {
        self.all_tables.iter().any(|table| table.vswitches.contains(vswitch))
    }
}

impl Controller {
    pub(super) fn next_route_call(&mut self, now: Moment, deadline: &mut Deadline) -> Option<(CallId, Call)> {
        deadline.at(self.lane.audit_due, Why::Audit);
        self.look_twice(now, deadline);
        if self.lane.flight.is_some() {
            return None;
        }
        if self.lane.pause_until > now {
            deadline.at(self.lane.pause_until, Why::Pause);
            return None;
        }
        if self.lane.pace.next() > now {
            deadline.at(self.lane.pace.next(), Why::Pace);
            return None;
        }
        let (flight, call) = self.choose_route_call(now, deadline)?;
        self.lane.pace.called(now);
        let id = self.new_call();
        self.lane.flight = Some((id, flight));
        Some((id, call))
    }

    fn choose_route_call(&mut self, now: Moment, deadline: &mut Deadline) -> Option<(Flight, Call)> {
        if self.lane.ipv6_due {
            return Some((Flight::Ipv6, Call::HasIpv6));
        }
        if self.lane.tables_due {
            return Some((Flight::Tables, Call::ListTables));
        }
        if let Some(table) = self.lane.listing_due.first().cloned() {
            return Some((Flight::Entries(table.clone()), Call::ListEntries(table)));
        }
        if self.lane.quota_due {
            return Some((Flight::Quota, Call::Quota));
        }
        if let Some(read_back) = self.due_read_back(now) {
            return Some(read_back);
        }
        if let Some(next) = self.lane.open.values().map(|open| open.next).min() {
            deadline.at(next, Why::Settling);
        }
        if !self.nodes_complete {
            return None;
        }
        if self.lane.open.values().any(|open| now.saturating_sub(open.since) < PATIENCE) {
            return self.due_glance();
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
                Some(Step::Repoint { entry, to, .. }) => {
                    Call::Repoint(entry_ref(entry), Box::new(to.clone()))
                }
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
        self.due_glance()
    }

    /// What was under way when a controller starts, or did not show yet when it first looked, would otherwise be seen at the next audit.
    fn look_twice(&mut self, now: Moment, deadline: &mut Deadline) {
        let SecondLook::Due(due) = self.lane.second_look else { return };
        if due > now {
            deadline.at(due, Why::SecondLook);
            return;
        }
        self.lane.second_look = SecondLook::Done;
        let listed = self.lane.served.iter().flat_map(Served::listed).cloned();
        self.lane.listing_due.extend(listed);
    }

    /// Reads the list of tables again while there is nothing more urgent to do.
    fn due_glance(&mut self) -> Option<(Flight, Call)> {
        std::mem::take(&mut self.lane.glance_due).then_some((Flight::Glance, Call::ListTables))
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
}

fn created(step: &Step) -> Option<&crate::model::NewEntry> {
    match step {
        Step::Create { entry, .. } => Some(entry),
        Step::RemoveConflict { .. } | Step::Collect { .. } | Step::Repoint { .. } => None,
    }
}
