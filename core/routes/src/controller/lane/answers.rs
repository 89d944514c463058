//! What answers change: the picture of the tables, open expectations, pauses, and what people are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use loden_reconcile::{Moment, mix};

use super::super::notices::{About, Severity};
use super::super::{Answer, CallId, Controller};
use super::{Expect, Flight, LOST, Open, READ_BACK, SecondLook, pause};
use crate::model::{EntryStatus, EntryType, RouteEntry, VpcRouteTableId};
use crate::plan::{Conflict, EntryKey, Step};
use crate::port::{BatchAnswer, Failure, FailureClass, Refusal};

impl Controller {
    pub(in crate::controller) fn lane_answered(&mut self, now: Moment, id: CallId, answer: Answer) {
        let Some((_, flight)) = self.lane.flight.take_if(|(flight, _)| *flight == id) else { return };
        match (flight, answer) {
            (Flight::Ipv6, Answer::Ipv6(Ok(there))) => {
                self.route_success();
                self.ipv6_known(now, there);
            }
            (Flight::Quota, Answer::Quota(answer)) => self.quota_told(answer),
            (Flight::Tables, Answer::Tables(Ok(tables))) => {
                self.tables_listed(now, &tables);
            }
            (Flight::Glance, Answer::Tables(Ok(tables))) => self.glanced(now, &tables),
            (Flight::Glance, Answer::Tables(Err(failure))) => {
                self.lane.glance_due = true;
                self.route_failure(now, &failure);
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
                Answer::Ipv6(Err(failure))
                | Answer::Tables(Err(failure))
                | Answer::Entries(Err(failure))
                | Answer::Batch(Err(failure)),
            ) => {
                self.route_failure(now, &failure);
            }
            (_, _) => {
                let failure = Failure::transport("the call was answered by another call's answer");
                self.route_failure(now, &failure);
            }
        }
    }

    pub(super) fn route_success(&mut self) {
        self.lane.failures = 0;
        self.lane.trouble = None;
        self.lane.pace.succeeded();
        self.notices.over(&About::Controller, "CloudAccessDenied", "vpc");
        self.notices.over(&About::Controller, "SyncRouteFailed", "");
    }

    pub(super) fn route_failure(&mut self, now: Moment, failure: &Failure) {
        self.lane.failures = self.lane.failures.saturating_add(1);
        let rest = pause(failure, self.lane.failures, mix(self.next_call));
        self.lane.pause_until = now + rest;
        if failure.class == FailureClass::Throttled {
            self.lane.pace.throttled(rest);
        }
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

    fn listed(&mut self, now: Moment, table: &VpcRouteTableId, listing: Vec<RouteEntry>) {
        self.lane.listing_due.remove(table);
        if !self.lane.lists(table) {
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
        if self.lane.second_look == SecondLook::Unset && self.has_observed() {
            self.lane.second_look = SecondLook::Due(now + self.settings.second_look);
        }
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
        let there = |key: &EntryKey| {
            views.get(&key.table).is_some_and(|view| view.good(key.destination, &key.instance).is_some())
        };
        if !self.lane.adopted.iter().all(there) {
            Arc::make_mut(&mut self.lane.adopted).retain(there);
        }
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
                Expect::Repointed => {
                    let good =
                        open.instance.as_ref().is_some_and(|instance| view.carries(*destination, instance));
                    good || (!moving && age > LOST)
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
        let mut names = Vec::with_capacity(destinations.len());
        for destination in destinations {
            match self.lane.desired.entries.get(destination) {
                Some(wanted) => names.push(wanted.node.clone()),
                // Planned for nobody, or read back before the first plan: whom it concerns is not known.
                None => return self.all_dirty(now),
            }
        }
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
                Step::Repoint { to, .. } => (Expect::Repointed, Some(to.instance.clone())),
                Step::RemoveConflict { .. } | Step::Collect { .. } => (Expect::Absent, None),
            };
            if matches!(step, Step::Create { .. }) && refused.is_empty() {
                self.lane.full.remove(&place.0);
            }
            let entry_id = step.removes().map(|entry| entry.id.clone()).unwrap_or_default();
            self.lane.open.insert(place, Open { expect, instance, entry_id, since: now, next: first_look });
            self.count_removal(now, &step);
            self.tell_removed(&step);
        }
        let accepted = self.lane.open.values().filter(|open| open.expect == Expect::Present).count();
        for (refusal, step) in refused {
            let Some(failure) = refusal.map(|refusal| refusal.failure.clone()) else { continue };
            let class = failure.class;
            if class == FailureClass::Server {
                self.count_removal(now, &step);
            }
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

    fn tell_removed(&mut self, step: &Step) {
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
                if let Some(key) = EntryKey::of(entry) {
                    // The node was seen leaving, for every table that still has its entry.
                    let elsewhere = self.lane.views.iter().any(|(table, view)| {
                        *table != key.table && view.good(key.destination, &key.instance).is_some()
                    });
                    if !elsewhere {
                        self.lane.departed.remove(&(key.destination, key.instance.clone()));
                    }
                    if self.lane.is_adopted(&key) {
                        Arc::make_mut(&mut self.lane.adopted).remove(&key);
                    }
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
            Step::Repoint { entry, to, node } => self.notices.tell(
                About::Node(node.clone()),
                Severity::Normal,
                "RouteRepointed",
                format!(
                    "route entry {} in route table {} points to {} now, where the node runs, and no longer to {}",
                    entry.destination,
                    entry.table,
                    to.instance,
                    entry.via()
                ),
            ),
            Step::Create { .. } => {}
        }
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
