//! Nodes as the API server gives them, turned into what the state machines know.

use std::sync::Arc;

use loden_kube::{ConditionStatus, NodeView, Nodes, WatchOptions};
use loden_routes::model::{EXCLUDE_LABELS, NetworkUnavailable, Node, Readiness};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What the controller needs of every node; the rest is not kept.
#[must_use]
pub fn watch_options() -> WatchOptions {
    WatchOptions {
        label_prefixes: Some(EXCLUDE_LABELS.iter().map(|label| (*label).to_owned()).collect()),
        annotation_prefixes: Some(Vec::new()),
        ..WatchOptions::default()
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
        excluded: EXCLUDE_LABELS.iter().any(|label| view.labels.contains_key(*label)),
        deleting: view.deleting,
        readiness: match view.ready {
            Some(ConditionStatus::True) => Readiness::Ready,
            Some(ConditionStatus::False) => Readiness::NotReady,
            Some(ConditionStatus::Unknown) => Readiness::Unknown,
            None => Readiness::Absent,
        },
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
