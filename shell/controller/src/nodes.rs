//! Nodes as the API server gives them, turned into what the state machines know.

use std::sync::Arc;

use loden_kube::{ConditionStatus, NodeView, Nodes, WatchOptions};
use loden_nodes::{LABEL_KEYS, PROVIDED_IP, UNINITIALIZED};
use loden_routes::model::{EXCLUDE_LABELS, NetworkUnavailable, Node, Readiness};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What the controller needs of every node, and node control besides; the rest is not kept.
#[must_use]
pub fn watch_options(node_control: bool) -> WatchOptions {
    let (labels, annotations): (&[&str], &[&str]) =
        if node_control { (&LABEL_KEYS, &[PROVIDED_IP]) } else { (&[], &[]) };
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    WatchOptions {
        label_prefixes: Some(owned(&[&EXCLUDE_LABELS[..], labels].concat())),
        annotation_prefixes: Some(owned(annotations)),
        ..WatchOptions::default()
    }
}

/// The nodes of a snapshot, for node control.
#[derive(Debug)]
pub(crate) struct Snapshot<'a>(pub(crate) &'a Nodes);

impl loden_nodes::controller::Nodes for Snapshot<'_> {
    fn node(&self, name: &str) -> Option<loden_nodes::Node> {
        self.0.get(name).map(|view| controlled(view))
    }
}

/// A node for node control.
pub(crate) fn controlled(view: &NodeView) -> loden_nodes::Node {
    loden_nodes::Node {
        name: view.name.clone(),
        uid: view.uid.clone(),
        provider_id: view.provider_id.clone().unwrap_or_default(),
        uninitialized: view.taints.iter().any(|taint| taint.key == UNINITIALIZED),
        excluded: is_excluded(view),
        deleting: view.deleting,
        readiness: readiness(view),
        has_network_condition: view.network_unavailable.is_some(),
        addresses: view
            .addresses
            .iter()
            .map(|address| loden_nodes::Address::new(&address.kind, &address.address))
            .collect(),
        labels: view
            .labels
            .iter()
            .filter(|(key, _)| LABEL_KEYS.contains(key))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        provided_ip: view.annotations.get(PROVIDED_IP).cloned(),
    }
}

fn is_excluded(view: &NodeView) -> bool {
    EXCLUDE_LABELS.iter().any(|label| view.labels.contains_key(label))
}

fn readiness(view: &NodeView) -> Readiness {
    match view.ready {
        Some(ConditionStatus::True) => Readiness::Ready,
        Some(ConditionStatus::False) => Readiness::NotReady,
        Some(ConditionStatus::Unknown) => Readiness::Unknown,
        None => Readiness::Absent,
    }
}

/// A node for the route controller.
pub(crate) fn node(view: &NodeView) -> Node {
    let created = view.created.as_deref().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    Node {
        name: view.name.clone(),
        uid: view.uid.clone(),
        created: created.map_or(i64::MAX, OffsetDateTime::unix_timestamp),
        provider_id: view.provider_id.clone().unwrap_or_default(),
        pod_cidrs: view.pod_cidrs.clone(),
        excluded: is_excluded(view),
        deleting: view.deleting,
        readiness: readiness(view),
        network_unavailable: view.network_unavailable.as_ref().map(|held| NetworkUnavailable {
            unavailable: held.condition.status != ConditionStatus::False,
            reason: held.condition.reason.clone(),
            message: held.condition.message.clone(),
        }),
    }
}

/// What differs between two snapshots.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) gone: Vec<String>,
    pub(crate) changed: Vec<Arc<NodeView>>,
}

/// Compares two snapshots. Views that did not change are shared between them, so most comparisons are of pointers.
pub(crate) fn difference(old: &Nodes, new: &Nodes) -> Difference {
    let mut difference = Difference::default();
    difference.gone.extend(old.keys().filter(|name| !new.contains_key(*name)).cloned());
    for (name, view) in new {
        if old.get(name).is_none_or(|known| !Arc::ptr_eq(known, view)) {
            difference.changed.push(Arc::clone(view));
        }
    }
    difference
}
