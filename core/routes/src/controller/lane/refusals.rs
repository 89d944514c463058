//! What the cloud refuses, item by item or as a whole, and what follows from it.

use loden_reconcile::{Moment, mix};

use super::super::Controller;
use super::super::notices::{About, Severity};
use super::{Blocked, DUPLICATE, Expect, Full, OTHER, Open, PROBE};
use crate::model::VpcRouteTableId;
use crate::plan::{Place, Step};
use crate::port::{Failure, FailureClass};

impl Controller {
    /// One item was refused.
    pub(super) fn refused(&mut self, now: Moment, step: &Step, failure: &Failure, accepted: usize) {
        let place = (step.table().clone(), step.destination());
        if failure.code == "OperationDenied.Ipv6EntryOnCustomTable" {
            self.table_leaves_out(now, step.table(), failure);
            return;
        }
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

    /// The table takes no IPv6 entries: none is wanted there any more.
    fn table_leaves_out(&mut self, now: Moment, table: &VpcRouteTableId, failure: &Failure) {
        self.lane.left_out.insert(table.clone());
        self.all_dirty(now);
        self.notices.stand(About::Controller, "Ipv6NotRouted", table.as_str(), || {
            format!("route table {table} takes no IPv6 entries ({failure}): nodes whose vSwitch routes by it reach pods by IPv4 only")
        });
    }

    /// An entry could not be changed in place: it is replaced, which needs no further permission and leaves a moment without it.
    fn repoint_failed(&mut self, place: Place, failure: &Failure) {
        if failure.class == FailureClass::Denied {
            self.lane.replace = None;
            self.notices.stand(About::Controller, "RepointDenied", "", || {
                format!("entries of nodes whose instance changed are deleted and created anew, since they may not be changed in place: {failure}; allow vpc:ModifyRouteEntry")
            });
        } else if let Some(replace) = &mut self.lane.replace {
            replace.insert(place);
        }
        self.lane.look = true;
    }

    fn tell_refused(&mut self, now: Moment, step: &Step, failure: &Failure) {
        let failures =
            self.lane.blocked.get(&(step.table().clone(), step.destination())).map_or(0, |b| b.failures);
        let node = match step {
            Step::Create { node, .. } | Step::Repoint { node, .. } | Step::RemoveConflict { node, .. } => {
                Some(node.clone())
            }
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
    pub(super) fn change_failed(&mut self, now: Moment, steps: &[Step], failure: &Failure) {
        if let [step @ Step::Repoint { .. }] = steps
            && matches!(
                failure.class,
                FailureClass::Denied
                    | FailureClass::Invalid
                    | FailureClass::NotFound
                    | FailureClass::Duplicate
                    | FailureClass::Quota
            )
        {
            self.lane.listing_due.insert(step.table().clone());
            self.repoint_failed((step.table().clone(), step.destination()), failure);
            return;
        }
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
                    self.count_removal(now, step);
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
