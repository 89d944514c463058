//! What no plan may ever do, checked before the first step and again before each call.
//!
//! The planner is written so that these hold; the check derives them anew from the same inputs, by other code, so that a mistake in one is caught by the
//! other before it reaches a table. It follows the steps one after the other through the tables as they were listed: a step is right only where the ones
//! before it leave things as it needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::desired::Desired;
use crate::mark::Owner;
use crate::model::{EntryStatus, InstanceId, NewEntry, RouteEntry, VpcRouteTableId};
use crate::observed::{Observed, TableView};
use crate::plan::{Conflict, EntryKey, Plan, Policy, Step};
use crate::port::BATCH_LIMIT;

/// A step that must not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// The step, as it prints.
    pub step: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused to act on a plan that {}: {}", self.rule, self.step)
    }
}

/// How much may be taken away now.
#[derive(Debug, Clone)]
pub struct Bounds<'a> {
    /// Entries of departed nodes that may be collected, of all tables together; `None`: as many as there are.
    pub collected: Option<usize>,
    /// Entries in the way of live nodes that may be removed or pointed elsewhere, by table, where a table that is not named may lose none; `None`: as many
    /// as there are.
    pub conflicting: Option<BTreeMap<VpcRouteTableId, usize>>,
    /// Where nodes that were seen leaving had their entries. Such an entry in the way of a live node is nobody's any more and counts for nothing.
    pub departed: &'a BTreeSet<(IpNet, InstanceId)>,
}

impl Bounds<'_> {
    /// No bounds: for a plan that nobody executes.
    #[must_use]
    pub fn lifted() -> Self {
        static NONE: BTreeSet<(IpNet, InstanceId)> = BTreeSet::new();
        Self { collected: None, conflicting: None, departed: &NONE }
    }
}

/// Checks every step of a plan.
///
/// # Errors
/// The steps that break a rule; none of the plan may be executed then.
pub fn check(
    plan: &Plan,
    desired: &Desired,
    observed: &Observed,
    policy: &Policy,
    bounds: &Bounds<'_>,
) -> Result<(), Vec<Violation>> {
    Walk::new(desired, observed, policy, bounds).over(&plan.steps)
}

/// Checks the steps that one call is to carry out at once: as a plan, and as what a call can carry.
///
/// # Errors
/// The steps that break a rule; the call must not be made then.
pub fn check_batch(
    steps: &[Step],
    desired: &Desired,
    observed: &Observed,
    policy: &Policy,
    bounds: &Bounds<'_>,
) -> Result<(), Vec<Violation>> {
    let Some(first) = steps.first() else { return Ok(()) };
    let kind = std::mem::discriminant(first);
    let most = if matches!(first, Step::Repoint { .. }) { 1 } else { BATCH_LIMIT };
    let misfit = steps.iter().enumerate().find(|(number, step)| {
        *number >= most || std::mem::discriminant(*step) != kind || step.table() != first.table()
    });
    if let Some((_, step)) = misfit {
        return Err(vec![Violation {
            step: step.to_string(),
            rule: "puts into one call what it cannot carry",
        }]);
    }
    Walk::new(desired, observed, policy, bounds).over(steps)
}

/// The tables as they become, step by step.
struct Walk<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    policy: &'a Policy,
    bounds: &'a Bounds<'a>,
    created: BTreeSet<(&'a VpcRouteTableId, IpNet)>,
    /// With the entry's ID: more than one may have a destination.
    removed: BTreeSet<(&'a VpcRouteTableId, IpNet, &'a str)>,
    /// Custom entries of each table.
    counts: BTreeMap<&'a VpcRouteTableId, usize>,
    collected: usize,
    taken: BTreeMap<&'a VpcRouteTableId, usize>,
}

impl<'a> Walk<'a> {
    fn new(desired: &'a Desired, observed: &'a Observed, policy: &'a Policy, bounds: &'a Bounds<'_>) -> Self {
        Self {
            desired,
            observed,
            policy,
            bounds,
            created: BTreeSet::new(),
            removed: BTreeSet::new(),
            counts: observed.iter().map(|(table, view)| (table, view.custom_count())).collect(),
            collected: 0,
            taken: BTreeMap::new(),
        }
    }

    fn over(mut self, steps: &'a [Step]) -> Result<(), Vec<Violation>> {
        let mut violations = Vec::new();
        for step in steps {
            let rules = self.broken(step);
            violations.extend(rules.into_iter().map(|rule| Violation { step: step.to_string(), rule }));
        }
        if violations.is_empty() { Ok(()) } else { Err(violations) }
    }

    /// The rules that a step breaks.
    fn broken(&mut self, step: &'a Step) -> Vec<&'static str> {
        let mut rules = Vec::new();
        let (table, destination, policy) = (step.table(), step.destination(), self.policy);
        if !policy.cluster.iter().any(|range| loden_addr::contains(*range, destination)) {
            rules.push("reaches outside the cluster's pod CIDR");
        }
        let collects = matches!(step, Step::Collect { .. });
        let tidied = collects && policy.kept.contains(table);
        if !policy.tables.contains(table) && !tidied {
            rules.push("changes a table that is not served");
        }
        let Some(view) = self.observed.get(table) else {
            rules.push("changes a table that was not listed");
            return rules;
        };
        if policy.on_hold.contains(&(table.clone(), destination)) {
            rules.push("changes a place where something else is under way");
        }
        if !collects && policy.leaves_out(table, destination) {
            rules.push("changes entries of a family that the table does not take");
        }
        match step {
            Step::Create { entry, node } => self.create(entry, node, view, &mut rules),
            Step::Repoint { entry, to, node } => {
                self.take(entry, view, &mut rules);
                self.write(to, node, &mut rules);
                if !self.created.insert((table, destination)) {
                    rules.push("changes one entry twice");
                }
                if (&to.table, to.destination) != (table, destination) {
                    rules.push("moves an entry to another place");
                }
                if policy.mark.owner(entry) != Owner::Ours {
                    rules.push("changes an entry that is not ours");
                }
                let fixed = |places: &BTreeSet<_>| places.contains(&(table.clone(), destination));
                if entry.id.is_empty() || policy.replace.as_ref().is_none_or(fixed) {
                    rules.push("changes in place what cannot be changed in place");
                }
                self.count_taken(entry, &mut rules);
            }
            Step::RemoveConflict { entry, conflict, pod_cidr, node, instance } => {
                self.take(entry, view, &mut rules);
                self.leaves(table);
                if self.created.contains(&(table, destination)) {
                    rules.push("removes what it has just created");
                }
                let suffers = self.desired.entries.get(pod_cidr);
                let named =
                    suffers.is_some_and(|wanted| (&wanted.node, &wanted.instance) == (node, instance));
                let conflicts = match conflict {
                    Conflict::PointsElsewhere => {
                        destination == *pod_cidr && entry.instance().as_ref() != Some(instance)
                    }
                    Conflict::MoreSpecific => loden_addr::strictly_inside(destination, *pod_cidr),
                };
                if !named || !conflicts {
                    rules.push("removes an entry that conflicts with no live node");
                }
                self.count_taken(entry, &mut rules);
            }
            Step::Collect { entry } => {
                self.take(entry, view, &mut rules);
                self.leaves(table);
                let adopted = EntryKey::of(entry).is_some_and(|key| policy.adopted.contains(&key));
                match policy.mark.owner(entry) {
                    Owner::Ours => {}
                    Owner::Unmarked if adopted => {}
                    Owner::Unmarked | Owner::OtherCluster(_) => {
                        rules.push("removes an entry that is not ours")
                    }
                }
                let node_has_it = self.desired.live.contains_key(&destination)
                    || self.desired.left_alone.contains_key(&destination);
                if node_has_it {
                    rules.push("collects the entry of a pod CIDR that a node has");
                }
                self.collected += 1;
                if self.bounds.collected.is_some_and(|bound| self.collected > bound) {
                    rules.push("collects more entries at once than is allowed without somebody's consent");
                }
            }
        }
        rules
    }

    fn create(
        &mut self,
        entry: &'a NewEntry,
        node: &str,
        view: &'a TableView,
        rules: &mut Vec<&'static str>,
    ) {
        self.write(entry, node, rules);
        let (table, destination) = (&entry.table, entry.destination);
        if !self.created.insert((table, destination)) {
            rules.push("creates two entries for one destination");
        }
        let gone = |held: &RouteEntry| self.removed.contains(&(table, destination, held.id.as_str()));
        if !view.at(destination).iter().all(gone) {
            rules.push("creates an entry where there is one");
        }
        let count = self.counts.entry(table).or_default();
        *count += 1;
        if self.policy.limits.get(table).is_some_and(|limit| *count > *limit) {
            rules.push("creates more entries than the table takes");
        }
    }

    /// What is written is what a node wants, under our mark.
    fn write(&self, entry: &NewEntry, node: &str, rules: &mut Vec<&'static str>) {
        let wanted = self.desired.entries.get(&entry.destination);
        if !wanted
            .is_some_and(|wanted| wanted.create && wanted.instance == entry.instance && wanted.node == node)
        {
            rules.push("creates an entry that no node wants");
        }
        if entry.name != self.policy.mark.name() {
            rules.push("writes an entry without our mark");
        }
    }

    /// What is taken away is there as the step says, was not taken away before, and is no live node's.
    fn take(&mut self, entry: &'a RouteEntry, view: &TableView, rules: &mut Vec<&'static str>) {
        if !view.at(entry.destination).contains(entry) {
            rules.push("takes away an entry that is not there as the step says");
        }
        if !self.removed.insert((&entry.table, entry.destination, &entry.id)) {
            rules.push("removes one entry twice");
        }
        if entry.instance().is_none() {
            rules.push("takes away an entry that leads to no single instance");
        }
        if entry.status == EntryStatus::Deleting {
            rules.push("takes away what is going already");
        }
        if is_live(self.desired, entry) {
            rules.push("takes a live node's good entry away");
        }
    }

    fn leaves(&mut self, table: &'a VpcRouteTableId) {
        let count = self.counts.entry(table).or_default();
        *count = count.saturating_sub(1);
    }

    fn count_taken(&mut self, entry: &'a RouteEntry, rules: &mut Vec<&'static str>) {
        let seen_leaving = entry
            .instance()
            .is_some_and(|instance| self.bounds.departed.contains(&(entry.destination, instance)));
        if seen_leaving {
            return;
        }
        let taken = self.taken.entry(&entry.table).or_default();
        *taken += 1;
        let bound = self.bounds.conflicting.as_ref().map(|bounds| bounds.get(&entry.table).copied());
        if bound.is_some_and(|bound| *taken > bound.unwrap_or_default()) {
            rules.push("removes more conflicting entries at once than is allowed without somebody's consent");
        }
    }
}

fn is_live(desired: &Desired, entry: &RouteEntry) -> bool {
    // Written out here, and not asked of the planner's own function, so that the two can disagree.
    let Some(instance) = entry.instance() else { return false };
    let live = desired.live.get(&entry.destination).is_some_and(|live| live.contains(&instance));
    let another_has_it =
        desired.entries.get(&entry.destination).is_some_and(|wanted| wanted.instance != instance);
    live && !another_has_it
}

#[cfg(test)]
mod tests;
