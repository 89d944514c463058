//! Planning anew, and what a plan says to people.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loden_reconcile::Moment;

use super::super::notices::About;
use super::super::{Controller, Deadline, Why};
use super::window::most;
use crate::check::{check, check_batch};
use crate::desired::{Desired, Unserved, desired};
use crate::model::{InstanceId, VpcRouteTableId};
use crate::plan::{EntryKey, Obstruction, Place, Plan, Policy, Removal, Step, diff};
use crate::port::BATCH_LIMIT;

/// Custom entries that a table takes unless more were asked for (`vpc_quota_route_entrys_num`).
const DEFAULT_QUOTA: usize = 200;
/// The share of a table's quota from which people are warned.
const WARN_PERCENT: usize = 80;

/// Obstructions by table and pod CIDR: of several on one pod CIDR the one that takes all of it is told.
fn by_place(found: &[Obstruction]) -> BTreeMap<Place, Obstruction> {
    let partly = found.iter().filter(|found| !found.whole());
    partly
        .chain(found.iter().filter(|found| found.whole()))
        .map(|found| ((found.entry.table.clone(), found.pod_cidr), found.clone()))
        .collect()
}

impl Controller {
    /// Plans anew, and takes the first steps that one call can carry. `None`: there is nothing to do now, and `look_at` says when there may be.
    pub(super) fn next_batch(&mut self, now: Moment) -> Option<Vec<Step>> {
        let policy = self.policy(now);
        let (plan, held_back) = self.plan(now, &policy);
        let steps = self.first_batch(&plan);
        let (desired, views, bounds) = (&self.lane.desired, &self.lane.views, self.bounds(now));
        let checked = check(&plan, desired, views, &policy, &bounds)
            .and_then(|()| check_batch(&steps, desired, views, &policy, &bounds));
        if let Err(violations) = checked {
            for violation in violations {
                self.notices.stand(About::Controller, "UnsafePlan", &violation.step.clone(), || {
                    violation.to_string()
                });
            }
            self.lane.look = false;
            self.lane.look_at = None;
            return None;
        }
        if steps.is_empty() {
            self.lane.look = false;
            self.lane.look_at = self.next_look(now, &plan, held_back);
            return None;
        }
        Some(steps)
    }

    fn policy(&self, now: Moment) -> Policy {
        let tables = self.lane.served.as_ref().map(|served| served.tables.clone()).unwrap_or_default();
        let mut policy = Policy::new(self.mark.clone(), self.settings.pod_cidrs.clone(), tables);
        if let Some(quota) = self.settings.quota.or(self.lane.quota_read) {
            policy.limits.extend(policy.tables.iter().map(|table| (table.clone(), quota)));
        }
        for (table, full) in &self.lane.full {
            let count = self.lane.views.get(table).map_or(0, |view| view.custom_count());
            // A probe is one more than there is room for.
            let limit = if full.probe_due <= now { full.limit.max(count + 1) } else { full.limit };
            policy.limits.insert(table.clone(), limit);
        }
        let blocked =
            self.lane.blocked.iter().filter(|(_, blocked)| blocked.until > now).map(|(place, _)| place);
        policy.on_hold = blocked.chain(self.lane.open.keys()).cloned().collect();
        policy.adopted = Arc::clone(&self.lane.adopted);
        policy.kept = self.lane.served.as_ref().map(|served| served.kept.clone()).unwrap_or_default();
        policy.left_out.clone_from(&self.lane.left_out);
        policy.replace.clone_from(&self.lane.replace);
        policy.urgent = Arc::clone(&self.lane.urgent);
        policy
    }

    /// Custom entries that a table takes, as far as known.
    pub(in crate::controller) fn limit(&self, table: &VpcRouteTableId) -> Option<usize> {
        let learned = self.lane.full.get(table).map(|full| full.limit);
        learned.or(self.settings.quota).or(self.lane.quota_read)
    }

    /// Derives what there should be from the nodes. Unless nodes collide it depends on nothing else, so it is done once for all batches of a burst.
    fn derive_desired(&mut self) {
        let collided = |unserved: &Unserved| matches!(unserved, Unserved::Collision { .. });
        if !std::mem::take(&mut self.lane.desired_due) && !self.lane.desired.unserved.values().any(collided) {
            return;
        }
        let views = &self.lane.views;
        let installed = |destination, instance: &InstanceId| {
            views.values().any(|view| view.good(destination, instance).is_some())
        };
        // With thousands of nodes each of the two is megabytes: the old one goes first.
        self.lane.desired = Desired::default();
        self.lane.desired =
            desired(self.nodes.values().map(|state| &state.node), &self.lane.ranges, installed);
    }

    /// The plan, and how many entries of departed nodes it holds back since enough are collected.
    fn plan(&mut self, now: Moment, policy: &Policy) -> (Plan, usize) {
        self.derive_desired();
        let mut bounds = self.bounds(now);
        let mut held_back = 0;
        let (departed, stale_since, grace) =
            (&self.lane.departed, &self.lane.stale_since, self.settings.stale_grace);
        let plan = diff(&self.lane.desired, &self.lane.views, policy, |removal| {
            let (Removal::Stale(entry) | Removal::Conflict(entry)) = removal;
            let Some(key) = EntryKey::of(entry) else { return false };
            let seen_leaving = departed.contains(&(key.destination, key.instance.clone()));
            if matches!(removal, Removal::Conflict(_)) {
                // It is nobody's any more, and a live node waits for its place.
                return seen_leaving
                    || bounds
                        .conflicting
                        .as_mut()
                        .is_none_or(|left| left.get_mut(&entry.table).is_some_and(one_of));
            }
            let ripe = seen_leaving || stale_since.get(&key).is_some_and(|since| *since + grace <= now);
            let go = ripe && bounds.collected.as_mut().is_none_or(one_of);
            held_back += usize::from(ripe && !go);
            go
        });
        self.note_plan(now, &plan);
        (plan, held_back)
    }

    /// Remembers what a plan says beyond its steps, and tells people of it.
    fn note_plan(&mut self, now: Moment, plan: &Plan) {
        if !plan.adopt.is_empty() {
            Arc::make_mut(&mut self.lane.adopted).extend(plan.adopt.iter().cloned());
        }
        let stale: BTreeSet<EntryKey> = plan.stale.iter().filter_map(EntryKey::of).collect();
        self.lane.stale_since.retain(|key, _| stale.contains(key));
        for key in stale {
            self.lane.stale_since.entry(key).or_insert(now);
        }

        let mut waiting: BTreeMap<_, _> =
            plan.waiting.iter().map(|wait| ((wait.table.clone(), wait.destination), wait.clone())).collect();
        for (place @ (table, destination), wait) in &self.lane.waiting {
            // A probe for one more entry than there is room for: until it succeeds its node waits like the others.
            if self.lane.full.contains_key(table)
                && plan.steps.iter().any(|step| step.table() == table && step.destination() == *destination)
            {
                waiting.insert(place.clone(), wait.clone());
            }
        }
        for wait in waiting.values_mut() {
            if let Some(full) = self.lane.full.get(&wait.table) {
                wait.limit = full.limit;
            }
        }
        let obstructions = by_place(&plan.obstructions);
        let deferred = by_place(&plan.deferred);
        let mut touched: BTreeSet<String> = self.lane.desired.unserved.keys().cloned().collect();
        touched.extend(self.lane.waiting.values().chain(waiting.values()).map(|wait| wait.node.clone()));
        touched.extend(
            self.lane.obstructions.values().chain(obstructions.values()).map(|found| found.node.clone()),
        );
        touched.extend(self.lane.deferred.values().chain(deferred.values()).map(|found| found.node.clone()));
        self.lane.deferred = deferred;
        self.lane.waiting = waiting;
        self.lane.conflicting.clear();
        let removed = plan.steps.iter().filter(|step| matches!(step, Step::RemoveConflict { .. }));
        for table in removed.map(Step::table).chain(plan.deferred.iter().map(|found| &found.entry.table)) {
            *self.lane.conflicting.entry(table.clone()).or_default() += 1;
        }
        self.tell_deferred(plan);
        self.tell_nearly_full(plan);
        self.lane.obstructions = obstructions;
        self.dirty(now, touched);
        self.tell_plan();
    }

    fn tell_plan(&mut self) {
        let lane = &self.lane;
        for ((table, _), wait) in &lane.waiting {
            let about = About::Node(wait.node.clone());
            self.notices.stand(about, "RouteQuotaExceeded", table.as_str(), || wait.to_string());
            self.notices.stand(About::Controller, "RouteQuotaExceeded", table.as_str(), || {
                let of_table = lane.waiting.values().filter(|other| other.table == *table);
                let nodes: BTreeSet<&str> = of_table.map(|other| other.node.as_str()).collect();
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
        let full: BTreeSet<&str> = lane.waiting.keys().map(|(table, _)| table.as_str()).collect();
        let wait: BTreeSet<(&str, &str)> =
            lane.waiting.values().map(|wait| (wait.node.as_str(), wait.table.as_str())).collect();
        self.notices.keep("RouteQuotaExceeded", |about, table| match about {
            About::Controller => full.contains(table),
            About::Node(node) => wait.contains(&(node.as_str(), table)),
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

    /// Warns while there is still time to ask for a higher quota.
    fn tell_nearly_full(&mut self, plan: &Plan) {
        let mut near: BTreeSet<VpcRouteTableId> = BTreeSet::new();
        for (table, view) in &self.lane.views {
            let steps = plan.steps.iter().filter(|step| step.table() == table);
            let (coming, leaving): (Vec<&Step>, Vec<&Step>) = steps
                .filter(|step| !matches!(step, Step::Repoint { .. }))
                .partition(|s| s.removes().is_none());
            let used = (view.custom_count() + coming.len()).saturating_sub(leaving.len());
            let known = self.limit(table);
            let limit = known.unwrap_or(DEFAULT_QUOTA);
            if used * 100 < limit * WARN_PERCENT {
                continue;
            }
            near.insert(table.clone());
            self.notices.stand(About::Controller, "RouteQuotaNearlyUsed", table.as_str(), || {
                let origin = if known.is_some() { "" } else { " (the default; what applies here is not known)" };
                format!(
                    "route table {table} holds {used} custom route entries of a quota of {limit}{origin}, more than {WARN_PERCENT} %; ask for a higher quota vpc_quota_route_entrys_num before nodes have to wait"
                )
            });
        }
        self.notices.keep("RouteQuotaNearlyUsed", |_, table| near.contains(&table.into()));
    }

    /// Somebody else seems to use the nodes' pod CIDRs: a person decides whose they are while not much is lost.
    fn tell_deferred(&mut self, plan: &Plan) {
        let mut waiting: BTreeMap<&VpcRouteTableId, Vec<&Obstruction>> = BTreeMap::new();
        for found in &plan.deferred {
            waiting.entry(&found.entry.table).or_default().push(found);
        }
        let bound = most(self.nodes.len(), self.settings.conflict_percent).unwrap_or(usize::MAX);
        for (table, found) in &waiting {
            self.notices.stand(About::Controller, "ConflictsBounded", table.as_str(), || {
                let show = |found: &&Obstruction| {
                    let entry = &found.entry;
                    let name = if entry.name.is_empty() { String::new() } else { format!(" named {}", entry.name) };
                    format!("{} via {}{name}", entry.destination, entry.via())
                };
                let shown: Vec<String> = found.iter().take(3).map(show).collect();
                let more = if found.len() > 3 { ", …" } else { "" };
                format!(
                    "{} entries of route table {table} on nodes' pod CIDRs lead elsewhere and wait to be removed ({}{more}), since no more than {bound} are within a minute; look whether another cluster or route controller uses these pod CIDRs; if they should go at once, raise --max-conflicting-routes-percent",
                    found.len(),
                    shown.join(", ")
                )
            });
        }
        self.notices.keep("ConflictsBounded", |_, table| waiting.contains_key(&VpcRouteTableId::from(table)));
    }

    fn first_batch(&mut self, plan: &Plan) -> Vec<Step> {
        let collects = |step: &&Step| matches!(step, Step::Collect { .. });
        let turn = self.lane.collect_next && matches!(plan.steps.first(), Some(Step::Create { .. }));
        let begin = if turn { plan.steps.iter().position(|step| collects(&step)) } else { None };
        let rest = plan.steps.get(begin.unwrap_or_default()..).unwrap_or_default();
        let Some(first) = rest.first() else { return Vec::new() };
        let place = |step: &Step| (step.table().clone(), step.destination());
        if self.lane.alone.contains(&place(first)) {
            return vec![first.clone()];
        }
        if matches!(first, Step::Repoint { .. }) {
            return vec![first.clone()];
        }
        let kind = std::mem::discriminant(first);
        let batch: Vec<Step> = rest
            .iter()
            .take_while(|step| std::mem::discriminant(*step) == kind && step.table() == first.table())
            .filter(|step| !self.lane.alone.contains(&place(step)))
            .take(BATCH_LIMIT)
            .cloned()
            .collect();
        self.lane.collect_next = matches!(first, Step::Create { .. })
            && batch.len() < BATCH_LIMIT
            && plan.steps.iter().any(|step| collects(&step));
        batch
    }

    fn next_look(&mut self, now: Moment, plan: &Plan, held_back: usize) -> Option<(Moment, Why)> {
        let mut deadline = Deadline::default();
        for blocked in self.lane.blocked.values().filter(|blocked| blocked.until > now) {
            deadline.at(blocked.until, Why::Retry);
        }
        for (table, full) in &self.lane.full {
            if plan.waiting.iter().any(|wait| wait.table == *table) {
                deadline.at(full.probe_due, Why::QuotaProbe);
            }
        }
        for key in plan.stale.iter().filter_map(EntryKey::of) {
            let seen_leaving = self.lane.departed.contains(&(key.destination, key.instance.clone()));
            let ripe_at = self.lane.stale_since.get(&key).map(|since| *since + self.settings.stale_grace);
            if let Some(ripe_at) = ripe_at.filter(|at| !seen_leaving && *at > now) {
                deadline.at(ripe_at, Why::Grace);
            }
        }
        let removals = &self.lane.removals;
        for table in self.lane.deferred.keys().map(|(table, _)| table) {
            if let Some(free) = removals.conflicting.get(table).and_then(|window| window.frees(now)) {
                deadline.at(free, Why::Grace);
            }
        }
        if held_back > 0 {
            if let Some(free) = removals.collected.frees(now) {
                deadline.at(free, Why::Grace);
            }
            self.notices.stand(About::Controller, "CollectionBounded", "", || {
                format!(
                    "{held_back} route entries of departed nodes wait: no more than a share of the nodes' entries is removed within a minute; look whether the list of nodes is right; if they should go at once, raise --max-stale-routes-percent"
                )
            });
        } else {
            self.notices.over(&About::Controller, "CollectionBounded", "");
        }
        deadline.0
    }
}

/// Takes one of what is left, where something is.
fn one_of(left: &mut usize) -> bool {
    let some = *left > 0;
    *left -= usize::from(some);
    some
}
