//! The planner: one table at a time.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::{Conflict, EntryKey, Obstruction, Plan, Policy, REPOINT_LIMIT, Removal, Stays, Step, Waiting};
use crate::desired::{Desired, Wanted};
use crate::mark::Owner;
use crate::model::{EntryStatus, InstanceId, RouteEntry, VpcRouteTableId};
use crate::observed::{Observed, TableView};

/// What lies between desired and observed. Tables that were not observed get no steps: nothing is known of them. `permit` decides which
/// removals may be now.
#[must_use]
pub fn diff(
    desired: &Desired,
    observed: &Observed,
    policy: &Policy,
    mut permit: impl FnMut(Removal<'_>) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    for table in policy.tables.iter().chain(&policy.kept) {
        if let Some(view) = observed.get(table) {
            TableDiff { desired, policy, table, view }.into_plan(&mut plan, &mut permit);
        }
    }
    plan
}

struct TableDiff<'a> {
    desired: &'a Desired,
    policy: &'a Policy,
    table: &'a VpcRouteTableId,
    view: &'a TableView,
}

impl TableDiff<'_> {
    fn into_plan(self, plan: &mut Plan, permit: &mut impl FnMut(Removal<'_>) -> bool) {
        let deferred_before = plan.deferred.len();
        let mut conflicts: BTreeMap<IpNet, Step> = BTreeMap::new();
        let mut missing: Vec<(i64, &str, IpNet, &InstanceId)> = Vec::new();

        let kept = self.policy.kept.contains(self.table);
        let wanted_here = self
            .desired
            .entries
            .iter()
            .filter(|(destination, _)| !kept && !self.policy.leaves_out(self.table, **destination));
        for (destination, wanted) in wanted_here {
            let mut free = true;
            for entry in self.view.at(*destination) {
                if entry.instance().as_ref() == Some(&wanted.instance) {
                    if self.policy.mark.owner(entry) != Owner::Ours
                        && let Some(key) =
                            EntryKey::of(entry).filter(|key| !self.policy.adopted.contains(key))
                    {
                        plan.adopt.push(key);
                    }
                    free = false;
                } else {
                    let conflict =
                        self.judge(entry, *destination, wanted, Conflict::PointsElsewhere, plan, permit);
                    free &= conflict.as_ref().is_some_and(|step| step.removes().is_some());
                    conflicts.extend(conflict.map(|step| (entry.destination, step)));
                }
            }
            for entry in self.view.strictly_inside(*destination) {
                let conflict = self.judge(entry, *destination, wanted, Conflict::MoreSpecific, plan, permit);
                conflicts.extend(conflict.map(|step| (entry.destination, step)));
            }
            if free && wanted.create && !self.on_hold(*destination) {
                missing.push((wanted.created, &wanted.node, *destination, &wanted.instance));
            }
        }

        let repointed = conflicts.values().filter(|step| matches!(step, Step::Repoint { .. })).count();
        if repointed > REPOINT_LIMIT {
            for step in conflicts.values_mut() {
                if let Some((replacing, wanted)) = self.replacing(step) {
                    if self.view.at(step.destination()).len() > 1 {
                        continue;
                    }
                    missing.push((wanted.created, &wanted.node, step.destination(), &wanted.instance));
                    *step = replacing;
                }
            }
        }

        let mut collected = Vec::new();
        let deferred = plan.deferred.get(deferred_before..).unwrap_or_default();
        let deferred: BTreeSet<IpNet> = deferred.iter().map(|found| found.entry.destination).collect();
        let in_the_way = |net: &IpNet| conflicts.contains_key(net) || deferred.contains(net);
        for entry in self.view.iter().filter(|entry| self.is_stale(entry) && !in_the_way(&entry.destination))
        {
            plan.stale.push(entry.clone());
            let settled = entry.status == EntryStatus::Available && !self.on_hold(entry.destination);
            if settled && permit(Removal::Stale(entry)) {
                collected.push(Step::Collect { entry: entry.clone() });
            }
        }

        missing.sort();
        let count = self.view.custom_count();
        let limit = self.policy.limits.get(self.table).copied();
        let leaving = conflicts.values().filter(|step| step.removes().is_some()).count() + collected.len();
        let room = limit.map_or(usize::MAX, |limit| (limit + leaving).saturating_sub(count));
        // Age decides who gets room, so that nobody who waits for it is overtaken for ever; need decides who goes first.
        let mut first: Vec<_> = missing.iter().take(room).collect();
        first.sort_by_key(|(_, node, _, _)| !self.policy.urgent.contains(*node));
        let creates: Vec<Step> = first
            .into_iter()
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

        let (in_place, conflicts): (Vec<Step>, Vec<Step>) =
            conflicts.into_values().partition(|step| matches!(step, Step::Repoint { .. }));
        plan.steps.extend(conflicts);
        plan.steps.extend(in_place);
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
        wanted: &Wanted,
        conflict: Conflict,
        plan: &mut Plan,
        permit: &mut impl FnMut(Removal<'_>) -> bool,
    ) -> Option<Step> {
        let obstruction =
            |stays| Obstruction { entry: entry.clone(), node: wanted.node.clone(), pod_cidr, stays };
        match entry.instance() {
            None => {
                plan.obstructions.push(obstruction(Stays::Foreign));
                None
            }
            // A live node's own entry, of a node that collides with this one: taking it away would cut that node off.
            Some(instance) if self.desired.keeps(entry.destination, &instance) => None,
            Some(_) if entry.status == EntryStatus::Deleting || self.on_hold(entry.destination) => None,
            Some(_) if !permit(Removal::Conflict(entry)) => {
                plan.deferred.push(obstruction(Stays::Deferred));
                None
            }
            Some(_) if conflict == Conflict::PointsElsewhere && self.can_repoint(entry, wanted) => {
                Some(Step::Repoint {
                    entry: entry.clone(),
                    to: self.policy.mark.entry(self.table, pod_cidr, &wanted.instance, &wanted.node),
                    node: wanted.node.clone(),
                })
            }
            Some(_) => Some(Step::RemoveConflict {
                entry: entry.clone(),
                conflict,
                node: wanted.node.clone(),
                pod_cidr,
                instance: wanted.instance.clone(),
            }),
        }
    }

    /// An entry of ours is changed in place. Somebody else's is removed by a step that says so.
    fn can_repoint(&self, entry: &RouteEntry, wanted: &Wanted) -> bool {
        let replaced = self
            .policy
            .replace
            .as_ref()
            .is_none_or(|replace| replace.contains(&(self.table.clone(), entry.destination)));
        !replaced
            && wanted.create
            && !entry.id.is_empty()
            && entry.status == EntryStatus::Available
            && self.policy.mark.owner(entry) == Owner::Ours
    }

    /// The removal that takes the place of a change in place, with what is to be created after it.
    fn replacing(&self, step: &Step) -> Option<(Step, &Wanted)> {
        let Step::Repoint { entry, node, .. } = step else { return None };
        let wanted = self.desired.entries.get(&entry.destination)?;
        let removal = Step::RemoveConflict {
            entry: entry.clone(),
            conflict: Conflict::PointsElsewhere,
            node: node.clone(),
            pod_cidr: entry.destination,
            instance: wanted.instance.clone(),
        };
        Some((removal, wanted))
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
