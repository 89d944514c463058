//! Every rule, broken.

use std::sync::Arc;

use super::*;
use crate::desired::desired;
use crate::mark::{ClusterId, Mark};
use crate::model::{EntryType, NextHop};
use crate::testing::{TABLE, entry, net, node};

/// Nodes a (172.20.1.0/24) and b (172.20.2.0/24), the tables as listed, and what may be done to them.
struct Inputs {
    desired: Desired,
    observed: Observed,
    policy: Policy,
    bounds: Bounds<'static>,
}

fn inputs(listed: Vec<RouteEntry>) -> Inputs {
    let mark = Mark::new(ClusterId::parse("c1").unwrap());
    let mut policy = Policy::new(mark, vec![net("172.20.0.0/16")], vec![TABLE.into()]);
    policy.limits.insert(TABLE.into(), 3);
    let mut excluded = node("x", "172.20.5.0/24");
    excluded.excluded = true;
    let mut silent = node("s", "172.20.6.0/24");
    silent.readiness = crate::model::Readiness::Unknown;
    let nodes = [node("a", "172.20.1.0/24"), node("b", "172.20.2.0/24"), excluded, silent];
    Inputs {
        desired: desired(&nodes, &policy.cluster, |_, _| false),
        observed: [(TABLE.into(), TableView::new(listed))].into(),
        policy,
        bounds: Bounds {
            collected: Some(1),
            conflicting: Some([(TABLE.into(), 1)].into()),
            ..Bounds::lifted()
        },
    }
}

impl Inputs {
    /// The rules that the steps break.
    fn rules(&self, steps: &[Step]) -> Vec<&'static str> {
        let plan = Plan { steps: steps.to_vec(), ..Plan::default() };
        let checked = check(&plan, &self.desired, &self.observed, &self.policy, &self.bounds);
        checked.err().unwrap_or_default().iter().map(|violation| violation.rule).collect()
    }

    /// The first of them.
    fn rule(&self, steps: &[Step]) -> Option<&'static str> {
        self.rules(steps).first().copied()
    }
}

/// The same where the table holds just what the steps take away.
fn rule(steps: &[Step]) -> Option<&'static str> {
    let held = |step: &Step| match step {
        Step::Repoint { entry, .. } => Some(entry.clone()),
        other => other.removes().cloned(),
    };
    inputs(steps.iter().filter_map(held).collect()).rule(steps)
}

fn ours(destination: &str, instance: &str) -> RouteEntry {
    RouteEntry { name: "loden-c1".to_owned(), ..entry(destination, instance) }
}

fn new(destination: &str, instance: &str) -> NewEntry {
    let mark = Mark::new(ClusterId::parse("c1").unwrap());
    mark.entry(&TABLE.into(), net(destination), &instance.into(), "a")
}

fn create(destination: &str, node: &str) -> Step {
    Step::Create { entry: new(destination, &format!("i-{node}")), node: node.to_owned() }
}

fn remove(entry: RouteEntry) -> Step {
    let conflict = if entry.destination == net("172.20.1.0/24") {
        Conflict::PointsElsewhere
    } else {
        Conflict::MoreSpecific
    };
    Step::RemoveConflict {
        entry,
        conflict,
        node: "a".to_owned(),
        pod_cidr: net("172.20.1.0/24"),
        instance: "i-a".into(),
    }
}

fn collect(entry: RouteEntry) -> Step {
    Step::Collect { entry }
}

fn repoint(entry: RouteEntry) -> Step {
    let to = new(&entry.destination.to_string(), "i-a");
    Step::Repoint { entry, to, node: "a".to_owned() }
}

#[test]
fn what_the_planner_does_passes() {
    assert_eq!(rule(&[create("172.20.1.0/24", "a"), create("172.20.2.0/24", "b")]), None);
    assert_eq!(rule(&[remove(entry("172.20.1.0/24", "i-b")), create("172.20.1.0/24", "a")]), None);
    assert_eq!(rule(&[remove(entry("172.20.1.9/32", "i-a"))]), None);
    assert_eq!(rule(&[repoint(ours("172.20.1.0/24", "i-old"))]), None);
    assert_eq!(rule(&[collect(ours("172.20.9.0/24", "i-gone"))]), None);
}

#[test]
fn places_are_the_clusters_and_at_rest() {
    assert_eq!(rule(&[create("10.0.0.0/24", "a")]), Some("reaches outside the cluster's pod CIDR"));
    let elsewhere = RouteEntry { table: "vtb-2".into(), ..ours("172.20.9.0/24", "i-x") };
    assert_eq!(rule(&[collect(elsewhere)]), Some("changes a table that is not served"));
    let mut unlisted = inputs(Vec::new());
    unlisted.observed.clear();
    let step = [create("172.20.1.0/24", "a")];
    assert_eq!(unlisted.rule(&step), Some("changes a table that was not listed"));
    let mut held = inputs(Vec::new());
    held.policy.on_hold.insert((TABLE.into(), net("172.20.1.0/24")));
    assert_eq!(held.rule(&step), Some("changes a place where something else is under way"));
    let mut narrow = inputs(Vec::new());
    narrow.policy.cluster.push(net("fd00::/48"));
    narrow.policy.left_out.insert(TABLE.into());
    assert_eq!(
        narrow.rule(&[create("fd00:0:0:1::/64", "a")]),
        Some("changes entries of a family that the table does not take")
    );
}

#[test]
fn what_is_written_is_wanted_marked_and_has_room() {
    let unwanted = Some("creates an entry that no node wants");
    assert_eq!(rule(&[create("172.20.1.0/24", "b")]), unwanted);
    assert_eq!(rule(&[create("172.20.9.0/24", "a")]), unwanted);
    assert_eq!(rule(&[create("172.20.6.0/24", "s")]), unwanted, "a silent node gets nothing new");
    let mut bare = new("172.20.1.0/24", "i-a");
    bare.name.clear();
    assert_eq!(
        rule(&[Step::Create { entry: bare, node: "a".to_owned() }]),
        Some("writes an entry without our mark")
    );
    let twice = [create("172.20.1.0/24", "a"), create("172.20.1.0/24", "a")];
    assert_eq!(rule(&twice), Some("creates two entries for one destination"));

    let taken = inputs(vec![entry("172.20.1.0/24", "i-x")]);
    let step = [create("172.20.1.0/24", "a")];
    assert_eq!(taken.rule(&step), Some("creates an entry where there is one"));
    let learned = RouteEntry {
        id: "rte-cen".to_owned(),
        kind: EntryType::Dynamic("CEN".to_owned()),
        ..entry("172.20.1.0/24", "i-x")
    };
    let beside = inputs(vec![entry("172.20.1.0/24", "i-x"), learned]);
    let steps = [remove(entry("172.20.1.0/24", "i-x")), create("172.20.1.0/24", "a")];
    assert_eq!(beside.rule(&steps), Some("creates an entry where there is one"), "the other one stays");
    let full = inputs(vec![entry("10.0.0.0/8", "i-x"), entry("10.0.0.0/9", "i-x")]);
    let both = [create("172.20.1.0/24", "a"), create("172.20.2.0/24", "b")];
    assert_eq!(full.rule(&both), Some("creates more entries than the table takes"));
}

#[test]
fn what_is_taken_away_is_there_and_nobodys_good_entry() {
    let gone = Some("takes away an entry that is not there as the step says");
    for step in [
        remove(entry("172.20.1.0/24", "i-x")),
        repoint(ours("172.20.1.0/24", "i-x")),
        collect(ours("172.20.9.0/24", "i-x")),
    ] {
        assert_eq!(inputs(Vec::new()).rule(std::slice::from_ref(&step)), gone);
        // It is there, and leads elsewhere by now.
        let destination = step.destination().to_string();
        let other =
            RouteEntry { next_hops: vec![NextHop::instance(&"i-y".into())], ..ours(&destination, "i-x") };
        assert_eq!(inputs(vec![other]).rule(&[step]), gone);
    }
    let live = Some("takes a live node's good entry away");
    assert_eq!(rule(&[remove(entry("172.20.1.0/24", "i-a"))]), live);
    assert_eq!(rule(&[collect(ours("172.20.1.0/24", "i-a"))]), live);
    assert_eq!(rule(&[repoint(ours("172.20.1.0/24", "i-a"))]), live);
    let several = RouteEntry {
        next_hops: ["i-x", "i-y"].map(|id| NextHop::instance(&id.into())).into(),
        ..ours("172.20.9.0/24", "i-x")
    };
    assert_eq!(rule(&[collect(several)]), Some("takes away an entry that leads to no single instance"));
    let going = RouteEntry { status: EntryStatus::Deleting, ..ours("172.20.9.0/24", "i-x") };
    assert_eq!(rule(&[collect(going)]), Some("takes away what is going already"));
    let one = collect(ours("172.20.9.0/24", "i-x"));
    let once = inputs(vec![ours("172.20.9.0/24", "i-x")]);
    assert_eq!(once.rule(&[one.clone(), one]), Some("removes one entry twice"));
}

#[test]
fn a_conflict_is_one_and_a_change_in_place_is_of_ours() {
    let none = Some("removes an entry that conflicts with no live node");
    assert_eq!(rule(&[remove(entry("172.20.9.0/24", "i-x"))]), none);
    assert_eq!(rule(&[remove(entry("172.20.0.0/22", "i-x"))]), none, "it lies around, not inside");
    let mut misnamed = remove(entry("172.20.1.9/32", "i-x"));
    if let Step::RemoveConflict { instance, .. } = &mut misnamed {
        *instance = "i-old".into();
    }
    assert_eq!(rule(&[misnamed]), none);
    assert_eq!(rule(&[repoint(entry("172.20.1.0/24", "i-x"))]), Some("changes an entry that is not ours"));
    let mut moved = repoint(ours("172.20.1.0/24", "i-x"));
    if let Step::Repoint { to, .. } = &mut moved {
        to.table = "vtb-2".into();
    }
    assert_eq!(rule(&[moved]), Some("moves an entry to another place"));
    let known = inputs(vec![ours("172.20.1.0/24", "i-x")]);
    let turned = [create("172.20.1.0/24", "a"), remove(ours("172.20.1.0/24", "i-x"))];
    assert!(known.rules(&turned).contains(&"removes what it has just created"));
    let twice = [create("172.20.1.0/24", "a"), repoint(ours("172.20.1.0/24", "i-x"))];
    assert!(known.rules(&twice).contains(&"changes one entry twice"));
    let mut denied = inputs(vec![ours("172.20.1.0/24", "i-x")]);
    denied.policy.replace = None;
    assert_eq!(
        denied.rule(&[repoint(ours("172.20.1.0/24", "i-x"))]),
        Some("changes in place what cannot be changed in place")
    );
}

#[test]
fn what_is_collected_is_ours_and_no_nodes() {
    let stranger = Some("removes an entry that is not ours");
    let unmarked = collect(entry("172.20.9.0/24", "i-x"));
    assert_eq!(rule(std::slice::from_ref(&unmarked)), stranger);
    let other = RouteEntry { name: "loden-c2".to_owned(), ..entry("172.20.9.0/24", "i-x") };
    assert_eq!(rule(&[collect(other)]), stranger);
    let mut adopting = inputs(vec![entry("172.20.9.0/24", "i-x")]);
    let key = EntryKey::of(&entry("172.20.9.0/24", "i-x")).unwrap();
    adopting.policy.adopted = Arc::new([key].into());
    assert_eq!(adopting.rule(&[unmarked]), None);
    let had = Some("collects the entry of a pod CIDR that a node has");
    assert_eq!(rule(&[collect(ours("172.20.5.0/24", "i-x"))]), had, "of a node that is left alone");
    assert_eq!(rule(&[collect(ours("172.20.1.0/24", "i-old"))]), had);
}

#[test]
fn what_goes_at_once_is_bounded() {
    let stale = ["172.20.8.0/24", "172.20.9.0/24"].map(|net| collect(ours(net, "i-x")));
    let collected = Some("collects more entries at once than is allowed without somebody's consent");
    assert_eq!(rule(&stale), collected);
    let conflicts = [remove(entry("172.20.1.0/24", "i-x")), remove(entry("172.20.1.9/32", "i-x"))];
    let removed = Some("removes more conflicting entries at once than is allowed without somebody's consent");
    assert_eq!(rule(&conflicts), removed);
    let mixed = [remove(entry("172.20.1.9/32", "i-x")), repoint(ours("172.20.1.0/24", "i-x"))];
    assert_eq!(rule(&mixed), removed, "a change in place takes away as well");

    let listed = vec![entry("172.20.1.0/24", "i-x"), entry("172.20.1.9/32", "i-x")];
    let departed: BTreeSet<_> = [(net("172.20.1.0/24"), "i-x".into())].into();
    let known = inputs(listed.clone());
    let bounds = Bounds { departed: &departed, ..known.bounds.clone() };
    let plan = Plan { steps: conflicts.to_vec(), ..Plan::default() };
    let checked = check(&plan, &known.desired, &known.observed, &known.policy, &bounds);
    assert_eq!(checked, Ok(()), "what a departed node left counts for nothing");
    let mut unnamed = inputs(listed);
    unnamed.bounds.conflicting = Some(BTreeMap::new());
    assert_eq!(unnamed.rule(&conflicts[..1]), removed, "a table without a bound may lose none");
}

#[test]
fn a_call_carries_steps_of_one_kind_for_one_table() {
    let known = inputs(vec![entry("172.20.1.0/24", "i-x")]);
    let batch = |steps: &[Step]| {
        let bounds = Bounds::lifted();
        let checked = check_batch(steps, &known.desired, &known.observed, &known.policy, &bounds);
        checked.err().map(|found| found[0].rule)
    };
    let misfit = Some("puts into one call what it cannot carry");
    let both = [remove(entry("172.20.1.0/24", "i-x")), create("172.20.1.0/24", "a")];
    assert_eq!(batch(&both), misfit);
    assert_eq!(batch(&both[..1]), None);
    assert_eq!(batch(&both[1..]), Some("creates an entry where there is one"), "nothing removed it before");
    assert_eq!(batch(&vec![both[0].clone(); BATCH_LIMIT + 1]), misfit);
    let two = [repoint(ours("172.20.1.0/24", "i-x")), repoint(ours("172.20.1.0/24", "i-x"))];
    assert_eq!(batch(&two), misfit);
    assert_eq!(batch(&[]), None);
}
