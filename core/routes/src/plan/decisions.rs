//! The decision table: what becomes of one entry beside those that are right, held against the vendor's verdict and against `docs/route-decisions.md`.

use super::*;
use crate::desired::desired;
use crate::mark::ClusterId;
use crate::model::Node;
use crate::observed::{Observed, TableView};
use crate::testing::{TABLE, entry, net, node};

const DOCUMENT: &str = include_str!("../../../../docs/route-decisions.md");

const KEEP: &str = "keep";
const DELETE: &str = "delete";
const INVISIBLE: &str = "invisible";

const KEPT: &str = "kept";
const ADOPTED: &str = "kept, and ours from now on";
const REMOVED: &str = "removed";
const REPLACED: &str = "removed, and the node's own created";
const REPOINTED: &str = "changed in place";
const COLLECTED: &str = "removed after the grace period";
const REPORTED: &str = "reported and left; the node is unavailable until it is gone";
const REPORTED_INSIDE: &str = "reported and left; the node has its own beside it";

/// One row. Nodes a (`i-a`, 172.20.1.0/24) and b (`i-b`, 172.20.2.0/24) are there, and the pod CIDR is 172.20.0.0/16.
struct Row {
    destination: &'static str,
    /// Type and ID of each next hop; without a type, an instance.
    hops: &'static [(&'static str, &'static str)],
    kinds: &'static [&'static str],
    /// The entry's name.
    name: &'static str,
    /// How node a spells its provider ID.
    spelling: &'static str,
    vendor: &'static str,
    ours: &'static str,
    why: &'static str,
}

/// An unmarked custom entry to one instance.
const fn row(
    destination: &'static str,
    hops: &'static [(&'static str, &'static str)],
    vendor: &'static str,
    ours: &'static str,
    why: &'static str,
) -> Row {
    Row { destination, hops, kinds: &["Custom"], name: "", spelling: PLAIN, vendor, ours, why }
}

const PLAIN: &str = "cn-hangzhou.i-a";
const SAME: &str = "";

const ROWS: &[Row] = &[
    row("172.20.1.0/24", &[("", "i-a")], KEEP, ADOPTED, "it goes with its node when that is seen leaving"),
    row("172.20.1.0/24", &[("", "i-b")], DELETE, REPLACED, SAME),
    row("172.20.1.0/24", &[("", "i-gone")], DELETE, REPLACED, SAME),
    Row {
        name: "loden-c1",
        ..row(
            "172.20.1.0/24",
            &[("", "i-gone")],
            DELETE,
            REPOINTED,
            "the node runs on another instance: no moment without an entry",
        )
    },
    row("172.20.1.128/25", &[("", "i-a")], DELETE, REMOVED, SAME),
    row("172.20.1.5/32", &[("", "i-x")], DELETE, REMOVED, SAME),
    row("172.20.0.0/22", &[("", "i-x")], KEEP, KEPT, SAME),
    row("172.20.0.0/16", &[("", "i-x")], KEEP, KEPT, SAME),
    row("172.20.9.0/24", &[("", "i-gone")], KEEP, KEPT, SAME),
    Row {
        name: "loden-c1",
        ..row(
            "172.20.9.0/24",
            &[("", "i-gone")],
            KEEP,
            COLLECTED,
            "the mark says that it is ours: otherwise it takes a place for ever",
        )
    },
    Row { name: "loden-c2", ..row("172.20.9.0/24", &[("", "i-gone")], KEEP, KEPT, SAME) },
    row(
        "172.20.1.0/24",
        &[("NetworkInterface", "eni-1")],
        INVISIBLE,
        REPORTED,
        "called available, the node would be a black hole; removed, somebody's route would be gone",
    ),
    row("172.20.1.0/24", &[("", "i-a"), ("", "i-b")], INVISIBLE, REPORTED, "as above"),
    row(
        "172.20.1.7/32",
        &[("HaVip", "havip-1")],
        INVISIBLE,
        REPORTED_INSIDE,
        "a person is told who takes the address",
    ),
    row("0.0.0.0/0", &[("", "i-nat")], KEEP, KEPT, SAME),
    row("10.9.0.0/24", &[("", "i-x")], KEEP, KEPT, SAME),
    Row {
        name: "loden-c1",
        ..row(
            "10.9.0.0/24",
            &[("", "i-gone")],
            KEEP,
            KEPT,
            "outside the pod CIDR nothing is removed, not even what is marked as ours",
        )
    },
    Row {
        spelling: "alicloud://cn-hangzhou.i-a",
        ..row(
            "172.20.1.0/24",
            &[("", "i-a")],
            "delete, then recreate, each period",
            ADOPTED,
            "both spellings name one instance",
        )
    },
    Row {
        kinds: &["System", "BGP", "CEN", "ECR"],
        ..row("172.20.1.0/24", &[("", "i-a")], INVISIBLE, REPORTED, "such an entry comes and goes without us")
    },
];

impl Row {
    fn entry(&self, kind: &str) -> RouteEntry {
        let hop = |(kind, id): &(&str, &str)| NextHop {
            kind: if kind.is_empty() { "Instance" } else { kind }.to_owned(),
            id: (*id).to_owned(),
        };
        RouteEntry {
            next_hops: self.hops.iter().map(hop).collect(),
            kind: match kind {
                "Custom" => EntryType::Custom,
                "System" => EntryType::System,
                other => EntryType::Dynamic(other.to_owned()),
            },
            name: self.name.to_owned(),
            ..entry(self.destination, "i-x")
        }
    }

    fn decide(&self, kind: &str) -> &'static str {
        let mut first = node("a", "172.20.1.0/24");
        self.spelling.clone_into(&mut first.provider_id);
        let nodes: Vec<Node> = vec![first, node("b", "172.20.2.0/24")];
        let extra = self.entry(kind);
        let own = |destination, instance| RouteEntry {
            name: "loden-c1".to_owned(),
            ..entry(destination, instance)
        };
        let mut entries = vec![own("172.20.1.0/24", "i-a"), own("172.20.2.0/24", "i-b")];
        entries.retain(|known| known.destination != extra.destination);
        entries.push(extra.clone());
        let mark = Mark::new(ClusterId::parse("c1").unwrap());
        let policy = Policy::new(mark, vec![net("172.20.0.0/16")], vec![TABLE.into()]);
        let observed: Observed = [(TABLE.into(), TableView::new(entries))].into();
        let view = &observed[&TABLE.into()];
        let desired = desired(&nodes, &policy.cluster, |d, i| view.good(d, i).is_some());
        verdict(&diff(&desired, &observed, &policy, |_| true), &extra)
    }

    fn line(&self) -> String {
        let hops: Vec<String> = self
            .hops
            .iter()
            .map(|(kind, id)| if kind.is_empty() { (*id).to_owned() } else { format!("{kind} {id}") })
            .collect();
        let mut notes = self.kinds.join(", ");
        if !self.name.is_empty() {
            notes.push_str(&format!(", named {}", self.name));
        }
        if self.spelling != PLAIN {
            notes.push_str(&format!(", node a is `{}`", self.spelling));
        }
        let why = if self.why.is_empty() { "same" } else { self.why };
        let (destination, hops) = (self.destination, hops.join(" and "));
        format!("| {destination} | {hops} | {notes} | {} | {} | {why} |", self.vendor, self.ours)
    }
}

/// What a plan does about one entry; the plan may do nothing else.
fn verdict(plan: &Plan, extra: &RouteEntry) -> &'static str {
    match (plan.steps.as_slice(), plan.obstructions.as_slice()) {
        ([], []) if plan.adopt.is_empty() => KEPT,
        ([], []) => {
            assert_eq!(plan.adopt, [EntryKey::of(extra).unwrap()]);
            ADOPTED
        }
        ([], [found]) if found.entry == *extra && found.whole() => REPORTED,
        ([], [found]) if found.entry == *extra => REPORTED_INSIDE,
        ([Step::RemoveConflict { entry, .. }], []) if entry == extra => REMOVED,
        ([Step::RemoveConflict { entry, .. }, Step::Create { entry: new, .. }], []) if entry == extra => {
            assert_eq!(new.destination, extra.destination);
            REPLACED
        }
        ([Step::Repoint { entry, .. }], []) if entry == extra => REPOINTED,
        ([Step::Collect { entry }], []) if entry == extra => COLLECTED,
        _ => panic!("{extra:?} leads to\n{plan}"),
    }
}

#[test]
fn every_row_is_decided_as_it_says() {
    for row in ROWS {
        for kind in row.kinds {
            assert_eq!(row.decide(kind), row.ours, "{}", row.line());
        }
    }
}

#[test]
fn the_document_has_these_rows() {
    let header = "| destination | next hop | kind | the vendor's controller | Loden | where they differ |\n|---|---|---|---|---|---|\n";
    let table: String = ROWS.iter().map(|row| row.line() + "\n").collect();
    let table = format!("{header}{table}");
    assert!(DOCUMENT.contains(&table), "docs/route-decisions.md should hold this table:\n{table}");
}

#[test]
fn where_the_two_differ_a_reason_is_given() {
    for row in ROWS {
        let agree = matches!((row.vendor, row.ours), (KEEP, KEPT) | (DELETE, REMOVED | REPLACED));
        assert!(agree || !row.why.is_empty(), "{}", row.line());
    }
}
