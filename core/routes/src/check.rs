//! What no plan may ever do, checked before the first step.
//!
//! The planner is written so that these hold; the check derives them anew from the same inputs, by other code, so that a mistake in one is caught by the
//! other before it reaches a table.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use crate::desired::Desired;
use crate::mark::Owner;
use crate::model::{RouteEntry, VpcRouteTableId};
use crate::plan::{EntryKey, Plan, Policy, Step};

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

/// Checks every step of a plan.
///
/// # Errors
/// The steps that break a rule; none of the plan may be executed then.
pub fn check(
    plan: &Plan,
    desired: &Desired,
    policy: &Policy,
    collect_bound: usize,
) -> Result<(), Vec<Violation>> {
    let mut violations = Vec::new();
    let mut created: BTreeSet<(&VpcRouteTableId, IpNet)> = BTreeSet::new();
    let mut removed: BTreeSet<(&VpcRouteTableId, IpNet)> = BTreeSet::new();
    let mut collected = 0;
    for step in &plan.steps {
        let mut refuse = |rule| violations.push(Violation { step: step.to_string(), rule });
        if !policy.cluster.iter().any(|range| loden_addr::contains(*range, step.destination())) {
            refuse("reaches outside the cluster's pod CIDR");
        }
        let tidied = matches!(step, Step::Collect { .. }) && policy.kept.contains(step.table());
        if !policy.tables.contains(step.table()) && !tidied {
            refuse("changes a table that is not served");
        }
        match step {
            Step::Create { entry, .. } => {
                if !created.insert((&entry.table, entry.destination)) {
                    refuse("creates two entries for one destination");
                }
                if desired
                    .entries
                    .get(&entry.destination)
                    .is_none_or(|wanted| wanted.instance != entry.instance)
                {
                    refuse("creates an entry that no node wants");
                }
            }
            Step::Repoint { entry, to, .. } => {
                if !created.insert((&entry.table, entry.destination))
                    || !removed.insert((&entry.table, entry.destination))
                {
                    refuse("changes one entry twice");
                }
                if (&to.table, to.destination) != (&entry.table, entry.destination) {
                    refuse("moves an entry to another place");
                }
                if policy.mark.owner(entry) != Owner::Ours {
                    refuse("changes an entry that is not ours");
                }
                if desired.entries.get(&to.destination).is_none_or(|wanted| wanted.instance != to.instance) {
                    refuse("creates an entry that no node wants");
                }
                if is_live(desired, entry) {
                    refuse("takes a live node's good entry away");
                }
            }
            Step::RemoveConflict { entry, .. } => {
                removed.insert((&entry.table, entry.destination));
                if created.contains(&(&entry.table, entry.destination)) {
                    refuse("removes what it has just created");
                }
                if is_live(desired, entry) {
                    refuse("takes a live node's good entry away");
                }
                if !conflicts(desired, entry) {
                    refuse("removes an entry that conflicts with no live node");
                }
            }
            Step::Collect { entry } => {
                collected += 1;
                if !removed.insert((&entry.table, entry.destination)) {
                    refuse("removes one entry twice");
                }
                let adopted = EntryKey::of(entry).is_some_and(|key| policy.adopted.contains(&key));
                match policy.mark.owner(entry) {
                    Owner::Ours => {}
                    Owner::Unmarked if adopted => {}
                    Owner::Unmarked | Owner::OtherCluster(_) => refuse("removes an entry that is not ours"),
                }
                if is_live(desired, entry) {
                    refuse("takes a live node's good entry away");
                }
            }
        }
        if collected > collect_bound {
            violations.push(Violation {
                step: step.to_string(),
                rule: "collects more entries at once than is allowed without somebody's consent",
            });
        }
    }
    if violations.is_empty() { Ok(()) } else { Err(violations) }
}

fn is_live(desired: &Desired, entry: &RouteEntry) -> bool {
    // Written out here, and not asked of the planner's own function, so that the two can disagree.
    let Some(instance) = entry.instance() else { return false };
    let live = desired.live.get(&entry.destination).is_some_and(|live| live.contains(&instance));
    let another_has_it =
        desired.entries.get(&entry.destination).is_some_and(|wanted| wanted.instance != instance);
    live && !another_has_it
}

fn conflicts(desired: &Desired, entry: &RouteEntry) -> bool {
    // The only networks that can contain the destination are its own supernets.
    let own = entry.destination;
    let mut outer = Some(own);
    while let Some(net) = outer {
        if desired.entries.contains_key(&net) {
            return entry.instance().is_some();
        }
        outer = net.supernet();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::desired;
    use crate::mark::{ClusterId, Mark};
    use crate::model::RouteEntry;
    use crate::plan::Conflict;
    use crate::testing::{TABLE, entry, net, node};

    fn inputs() -> (Desired, Policy) {
        let mark = Mark::new(ClusterId::parse("c1").unwrap());
        let policy = Policy::new(mark, vec![net("172.20.0.0/16")], vec![TABLE.into()]);
        let nodes = [node("a", "172.20.1.0/24"), node("b", "172.20.2.0/24")];
        (desired(&nodes, &policy.cluster, |_, _| false), policy)
    }

    fn remove(entry: RouteEntry) -> Step {
        Step::RemoveConflict {
            entry,
            conflict: Conflict::PointsElsewhere,
            node: "a".to_owned(),
            pod_cidr: net("172.20.1.0/24"),
            instance: "i-a".into(),
        }
    }

    fn ours(destination: &str, instance: &str) -> RouteEntry {
        RouteEntry { name: "loden-c1".to_owned(), ..entry(destination, instance) }
    }

    fn rule(steps: Vec<Step>) -> Option<&'static str> {
        let (desired, policy) = inputs();
        let plan = Plan { steps, ..Plan::default() };
        check(&plan, &desired, &policy, 1)
            .err()
            .and_then(|found| found.first().map(|violation| violation.rule))
    }

    #[test]
    fn every_rule_is_enforced() {
        let (_, policy) = inputs();
        let create = |destination: &str, instance: &str| Step::Create {
            entry: policy.mark.entry(&TABLE.into(), net(destination), &instance.into(), "a"),
            node: "a".to_owned(),
        };
        assert_eq!(rule(vec![create("172.20.1.0/24", "i-a")]), None);
        assert_eq!(rule(vec![remove(entry("172.20.1.0/24", "i-b")), create("172.20.1.0/24", "i-a")]), None);
        assert_eq!(rule(vec![remove(entry("172.20.1.9/32", "i-a"))]), None);
        assert_eq!(rule(vec![Step::Collect { entry: ours("172.20.9.0/24", "i-gone") }]), None);

        assert_eq!(rule(vec![create("10.0.0.0/24", "i-a")]), Some("reaches outside the cluster's pod CIDR"));
        assert_eq!(
            rule(vec![create("172.20.1.0/24", "i-a"), create("172.20.1.0/24", "i-a")]),
            Some("creates two entries for one destination")
        );
        assert_eq!(rule(vec![create("172.20.1.0/24", "i-b")]), Some("creates an entry that no node wants"));
        assert_eq!(
            rule(vec![remove(entry("172.20.1.0/24", "i-a"))]),
            Some("takes a live node's good entry away")
        );
        assert_eq!(
            rule(vec![remove(entry("172.20.9.0/24", "i-x"))]),
            Some("removes an entry that conflicts with no live node")
        );
        assert_eq!(
            rule(vec![Step::Collect { entry: entry("172.20.9.0/24", "i-x") }]),
            Some("removes an entry that is not ours")
        );
        assert_eq!(
            rule(vec![Step::Collect { entry: ours("172.20.1.0/24", "i-a") }]),
            Some("takes a live node's good entry away")
        );
        assert_eq!(
            rule(vec![
                Step::Collect { entry: ours("172.20.8.0/24", "i-x") },
                Step::Collect { entry: ours("172.20.9.0/24", "i-x") }
            ]),
            Some("collects more entries at once than is allowed without somebody's consent")
        );
        let elsewhere = RouteEntry { table: "vtb-2".into(), ..ours("172.20.9.0/24", "i-x") };
        assert_eq!(
            rule(vec![Step::Collect { entry: elsewhere }]),
            Some("changes a table that is not served")
        );
    }
}
