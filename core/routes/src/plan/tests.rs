//! The decision table, row by row, and what else a plan must do.

use super::*;
use crate::desired::desired;
use crate::mark::ClusterId;
use crate::model::{EntryStatus, Node};
use crate::observed::{Observed, TableView};
use crate::testing::{TABLE, entry, net, node};

pub(crate) fn policy() -> Policy {
    let mark = Mark::new(ClusterId::parse("c1").unwrap());
    Policy::new(mark, vec![net("172.20.0.0/16")], vec![TABLE.into()])
}

fn marked(mut entry: RouteEntry) -> RouteEntry {
    entry.name = "loden-c1".to_owned();
    entry
}

fn observed(entries: Vec<RouteEntry>) -> Observed {
    BTreeMap::from([(TABLE.into(), TableView::new(entries))])
}

fn two() -> Vec<Node> {
    vec![node("a", "172.20.1.0/24"), node("b", "172.20.2.0/24")]
}

fn planned(nodes: &[Node], entries: Vec<RouteEntry>, policy: &Policy) -> Plan {
    let observed = observed(entries);
    let view = &observed[&TABLE.into()];
    let desired = desired(nodes, &policy.cluster, |d, i| view.good(d, i).is_some());
    diff(&desired, &observed, policy, |_| true)
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.to_string().lines().map(str::to_owned).collect()
}

/// Both nodes have their entries; what does one more entry lead to?
fn verdict(extra: RouteEntry) -> Vec<String> {
    let mut entries = vec![marked(entry("172.20.1.0/24", "i-a")), marked(entry("172.20.2.0/24", "i-b"))];
    entries.retain(|known| known.destination != extra.destination);
    entries.push(extra);
    lines(&planned(&two(), entries, &policy()))
}

fn with_hops(destination: &str, hops: &[(&str, &str)]) -> RouteEntry {
    let hop = |(kind, id): &(&str, &str)| NextHop { kind: (*kind).to_owned(), id: (*id).to_owned() };
    RouteEntry { next_hops: hops.iter().map(hop).collect(), ..entry(destination, "i-x") }
}

const RECREATE_A: &str = "vtb-1 + 172.20.1.0/24 via i-a  # node a";

#[test]
fn its_own_entry_is_kept() {
    assert!(verdict(entry("172.20.1.0/24", "i-a")).is_empty(), "unmarked but equal: adopted");
    let mut spelt = node("a", "172.20.1.0/24");
    spelt.provider_id = "alicloud://cn-hangzhou.i-a".to_owned();
    assert!(lines(&planned(&[spelt], vec![entry("172.20.1.0/24", "i-a")], &policy())).is_empty());
}

#[test]
fn equal_to_a_live_nodes_and_elsewhere_is_removed_and_replaced() {
    assert_eq!(
        verdict(entry("172.20.1.0/24", "i-b")),
        ["vtb-1 - 172.20.1.0/24 via i-b  # conflict: it is the pod CIDR of node a, which is i-a", RECREATE_A]
    );
    assert_eq!(
        verdict(entry("172.20.1.0/24", "i-gone")),
        [
            "vtb-1 - 172.20.1.0/24 via i-gone  # conflict: it is the pod CIDR of node a, which is i-a",
            RECREATE_A
        ]
    );
}

#[test]
fn an_entry_of_ours_follows_its_nodes_instance_in_place_while_it_is_one_of_few() {
    let stale = |i: usize| marked(entry(&format!("172.20.{i}.0/24"), &format!("i-old{i}")));
    let renewed = |i: usize| node(&format!("n{i}"), &format!("172.20.{i}.0/24"));
    let few: Vec<usize> = (0..REPOINT_LIMIT).collect();
    let nodes: Vec<Node> = few.iter().map(|i| renewed(*i)).collect();
    let entries: Vec<RouteEntry> = few.iter().map(|i| stale(*i)).collect();
    let plan = planned(&nodes, entries.clone(), &policy());
    assert_eq!(plan.steps.len(), REPOINT_LIMIT);
    assert_eq!(plan.steps[3].to_string(), "vtb-1 ~ 172.20.3.0/24 via i-old3 -> i-n3  # node n3");

    let mut denied = policy();
    denied.replace = None;
    let replaced = planned(&nodes[..1], entries[..1].to_vec(), &denied);
    assert!(matches!(replaced.steps.as_slice(), [Step::RemoveConflict { .. }, Step::Create { .. }]));

    let many: Vec<usize> = (0..=REPOINT_LIMIT).collect();
    let nodes: Vec<Node> = many.iter().map(|i| renewed(*i)).collect();
    let plan = planned(&nodes, many.iter().map(|i| stale(*i)).collect(), &policy());
    let removed = plan.steps.iter().filter(|step| step.removes().is_some()).count();
    assert_eq!((removed, plan.steps.len()), (many.len(), 2 * many.len()), "{plan}");
}

#[test]
fn a_kept_table_gets_nothing_and_loses_only_what_is_stale() {
    let mut policy = policy();
    policy.kept = std::mem::take(&mut policy.tables);
    let entries = vec![
        marked(entry("172.20.1.0/24", "i-a")),
        entry("172.20.2.0/24", "i-x"),
        marked(entry("172.20.9.0/24", "i-gone")),
    ];
    assert_eq!(
        lines(&planned(&two(), entries, &policy)),
        ["vtb-1 - 172.20.9.0/24 via i-gone  # ours, and no node has it"]
    );
}

#[test]
fn nodes_that_pods_wait_for_go_first_and_age_decides_who_gets_room() {
    let mut nodes: Vec<Node> = (0..4).map(|i| node(&format!("n{i}"), &format!("172.20.{i}.0/24"))).collect();
    for (age, node) in nodes.iter_mut().enumerate() {
        node.created = i64::try_from(age).unwrap();
    }
    let mut policy = policy();
    policy.limits.insert(TABLE.into(), 3);
    policy.urgent = Arc::new(["n2", "n3"].map(str::to_owned).into());
    let plan = planned(&nodes, Vec::new(), &policy);
    let created: Vec<IpNet> = plan.steps.iter().map(Step::destination).collect();
    assert_eq!(created, ["172.20.2.0/24", "172.20.0.0/24", "172.20.1.0/24"].map(net));
    assert_eq!(plan.waiting[0].node, "n3");
}

#[test]
fn a_dual_stack_node_has_an_entry_of_each_family_where_the_table_takes_it() {
    let mut dual = node("a", "172.20.1.0/24");
    dual.pod_cidrs.push("fd00:20:0:1::/64".to_owned());
    let mut policy = policy();
    policy.cluster.push(net("fd00:20::/48"));
    assert_eq!(
        lines(&planned(std::slice::from_ref(&dual), Vec::new(), &policy)),
        ["vtb-1 + 172.20.1.0/24 via i-a  # node a", "vtb-1 + fd00:20:0:1::/64 via i-a  # node a"]
    );
    policy.left_out.insert(TABLE.into());
    assert_eq!(lines(&planned(&[dual], Vec::new(), &policy)), [RECREATE_A]);
}

#[test]
fn strictly_inside_a_live_nodes_is_removed_wherever_it_points() {
    for (destination, instance) in [("172.20.1.128/25", "i-a"), ("172.20.1.5/32", "i-x")] {
        assert_eq!(
            verdict(entry(destination, instance)),
            [format!(
                "vtb-1 - {destination} via {instance}  # conflict: it lies inside pod CIDR 172.20.1.0/24 of node a"
            )]
        );
    }
}

#[test]
fn what_takes_nothing_from_a_live_node_is_kept() {
    for (destination, instance) in [
        ("172.20.0.0/22", "i-x"),
        ("172.20.0.0/16", "i-x"),
        ("172.20.9.0/24", "i-gone"),
        ("0.0.0.0/0", "i-nat"),
        ("10.9.0.0/24", "i-x"),
    ] {
        assert!(verdict(entry(destination, instance)).is_empty(), "{destination}");
    }
}

#[test]
fn stale_is_ours_only_by_mark_or_adoption() {
    assert_eq!(
        verdict(marked(entry("172.20.9.0/24", "i-gone"))),
        ["vtb-1 - 172.20.9.0/24 via i-gone  # ours, and no node has it"]
    );
    let mut other = entry("172.20.9.0/24", "i-gone");
    other.name = "loden-c2".to_owned();
    assert!(verdict(other).is_empty(), "another cluster's");
    assert!(verdict(marked(entry("10.9.0.0/24", "i-gone"))).is_empty(), "outside the cluster's pod CIDR");
    let mut adopting = policy();
    let key = EntryKey::of(&entry("172.20.9.0/24", "i-gone")).unwrap();
    adopting.adopted = Arc::new([key].into());
    assert_eq!(planned(&[], vec![entry("172.20.9.0/24", "i-gone")], &adopting).steps.len(), 1);
}

/// Upstream does not see these and marks the node available; here the node waits and a person is told.
#[test]
fn entries_to_no_single_instance_are_reported_and_never_removed() {
    for extra in [
        with_hops("172.20.1.0/24", &[("NetworkInterface", "eni-1")]),
        with_hops("172.20.1.0/24", &[("Instance", "i-a"), ("Instance", "i-b")]),
        RouteEntry { kind: EntryType::Dynamic("CEN".to_owned()), ..entry("172.20.1.0/24", "i-a") },
        RouteEntry { kind: EntryType::System, ..entry("172.20.1.0/24", "i-a") },
    ] {
        let plan = planned(&two(), vec![marked(entry("172.20.2.0/24", "i-b")), extra.clone()], &policy());
        assert!(plan.steps.is_empty(), "{:?}", plan.steps);
        assert_eq!(plan.obstructions.len(), 1);
        assert!(plan.obstructions[0].whole());
        assert!(plan.obstructions[0].to_string().contains(&extra.via()));
    }
    let inside = planned(&two(), vec![with_hops("172.20.1.7/32", &[("HaVip", "havip-1")])], &policy());
    assert!(!inside.obstructions[0].whole());
    assert_eq!(inside.steps.len(), 2, "the nodes' own entries are created all the same");
}

#[test]
fn nothing_is_created_beside_what_stays_at_a_destination() {
    let learned = RouteEntry {
        id: "rte-cen".to_owned(),
        kind: EntryType::Dynamic("CEN".to_owned()),
        ..entry("172.20.1.0/24", "i-x")
    };
    let going = RouteEntry { status: EntryStatus::Deleting, ..entry("172.20.1.0/24", "i-y") };
    let conflict = entry("172.20.1.0/24", "i-x");
    let own = RouteEntry { id: "rte-own".to_owned(), ..marked(entry("172.20.1.0/24", "i-a")) };
    for stays in [learned, going, own] {
        for entries in [vec![stays.clone(), conflict.clone()], vec![conflict.clone(), stays.clone()]] {
            let plan = planned(&two()[..1], entries, &policy());
            assert!(matches!(plan.steps.as_slice(), [Step::RemoveConflict { .. }]), "{stays:?}: {plan}");
        }
    }
}

#[test]
fn a_conflict_that_may_not_go_yet_waits_and_nothing_else_happens_to_it() {
    let listed = vec![marked(entry("172.20.1.0/24", "i-gone")), marked(entry("172.20.2.128/25", "i-gone"))];
    let (policy, observed) = (policy(), observed(listed));
    let desired = desired(&two(), &policy.cluster, |_, _| false);
    let plan = diff(&desired, &observed, &policy, |removal| matches!(removal, Removal::Stale(_)));
    assert_eq!(lines(&plan)[0], "vtb-1 + 172.20.2.0/24 via i-b  # node b");
    assert_eq!((plan.steps.len(), plan.stale.len()), (1, 0), "what is in the way is not collected either");
    let waits: Vec<_> = plan.deferred.iter().map(|found| (found.node.as_str(), found.whole())).collect();
    assert_eq!(waits, [("a", true), ("b", false)]);
}

#[test]
fn an_entry_of_a_live_node_that_collides_is_no_conflict() {
    let nodes = [node("wide", "172.20.1.0/24"), node("narrow", "172.20.1.0/25")];
    let entries = vec![entry("172.20.1.0/24", "i-wide"), entry("172.20.1.0/25", "i-narrow")];
    assert!(planned(&nodes, entries, &policy()).steps.is_empty());
}

#[test]
fn entries_of_excluded_nodes_are_left_alone() {
    let mut excluded = node("x", "172.20.5.0/24");
    excluded.excluded = true;
    assert!(planned(&[excluded], vec![marked(entry("172.20.5.0/24", "i-x"))], &policy()).steps.is_empty());
}

#[test]
fn the_oldest_nodes_get_the_room_that_there_is() {
    let mut nodes: Vec<Node> = (0..8).map(|i| node(&format!("n{i}"), &format!("172.20.{i}.0/24"))).collect();
    for (age, node) in nodes.iter_mut().enumerate() {
        node.created = 100 - i64::try_from(age).unwrap();
    }
    let mut policy = policy();
    policy.limits.insert(TABLE.into(), 5);
    let foreign = entry("10.0.0.0/8", "i-vpn");
    let plan = planned(&nodes, vec![foreign], &policy);
    let created: Vec<IpNet> = plan.steps.iter().map(Step::destination).collect();
    assert_eq!(created, ["172.20.7.0/24", "172.20.6.0/24", "172.20.5.0/24", "172.20.4.0/24"].map(net));
    let waiting: Vec<&str> = plan.waiting.iter().map(|w| w.node.as_str()).collect();
    assert_eq!(waiting, ["n3", "n2", "n1", "n0"]);
    assert_eq!((plan.waiting[0].limit, plan.waiting[0].count), (5, 1));
}

#[test]
fn collection_goes_first_only_when_room_is_needed() {
    let mut policy = policy();
    let entries = vec![marked(entry("172.20.9.0/24", "i-gone"))];
    let relaxed = planned(&[node("a", "172.20.1.0/24")], entries.clone(), &policy);
    assert!(matches!(relaxed.steps.as_slice(), [Step::Create { .. }, Step::Collect { .. }]));
    policy.limits.insert(TABLE.into(), 1);
    let tight = planned(&[node("a", "172.20.1.0/24")], entries, &policy);
    assert!(matches!(tight.steps.as_slice(), [Step::Collect { .. }, Step::Create { .. }]));
}

#[test]
fn what_is_on_hold_is_not_planned() {
    let mut policy = policy();
    policy.on_hold.insert((TABLE.into(), net("172.20.1.0/24")));
    assert_eq!(lines(&planned(&two(), Vec::new(), &policy)), ["vtb-1 + 172.20.2.0/24 via i-b  # node b"]);
}

#[test]
fn a_table_that_was_not_listed_gets_no_steps() {
    let policy = policy();
    let desired = desired(&two(), &policy.cluster, |_, _| false);
    assert_eq!(diff(&desired, &Observed::new(), &policy, |_| true), Plan::default());
}
