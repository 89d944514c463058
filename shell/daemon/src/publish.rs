//! What this node tells the cluster about itself: its lease's annotations and, if asked, the network condition.
//!
//! Runs beside the reconciler, so that a slow API server never delays the mending of the data plane.

use std::sync::Arc;
use std::time::Duration;

use loden_kube::{Annotations, Cluster, Condition, ConditionStatus, NodeView};
use loden_lease::{AnnotationKeys, LeaseAttributes};
use tokio::sync::watch;

/// flannel's interval between attempts at the annotations.
const RETRY: Duration = Duration::from_secs(3);

/// What is to be published.
#[derive(Debug, Clone)]
pub(crate) struct Publication {
    /// The node as last seen.
    pub(crate) node: Arc<NodeView>,
    pub(crate) attributes: LeaseAttributes,
    /// The data plane stands.
    pub(crate) ready: bool,
}

/// Publishes whatever is current, for ever.
pub(crate) async fn publish(
    cluster: Cluster,
    keys: AnnotationKeys,
    set_condition: bool,
    mut wanted: watch::Receiver<Option<Publication>>,
) {
    // The condition is set once for each Node object and then left to whoever owns it, as flannel does.
    let mut condition_set_for: Option<String> = None;
    loop {
        let Some(publication) = wanted.borrow_and_update().clone() else {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        };
        let node = &publication.node;
        let mut failed = None;
        let missing = missing_annotations(&keys, &publication);
        if !missing.is_empty() {
            match cluster.annotate_node(node, &missing).await {
                Ok(_) => {
                    let public_ip = publication.attributes.public_ip.ipv4.map(tracing::field::display);
                    tracing::info!(node = node.name, public_ip, "lease published");
                    tracing::debug!(annotations = ?missing, "annotated");
                }
                Err(error) => failed = Some(error),
            }
        }
        if set_condition && publication.ready && condition_set_for.as_ref() != Some(&node.uid) {
            match cluster.set_network_unavailable(node, &flannel_is_up()).await {
                Ok(_) => condition_set_for = Some(node.uid.clone()),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            tracing::warn!(
                node = node.name,
                "cannot publish: {error}; trying again in {} s",
                RETRY.as_secs()
            );
            tokio::time::sleep(RETRY).await;
        } else if wanted.changed().await.is_err() {
            return;
        }
    }
}

/// The annotations that differ from what the node has.
pub(crate) fn missing_annotations(keys: &AnnotationKeys, publication: &Publication) -> Annotations {
    let current = &publication.node.annotations;
    let written = publication.attributes.to_annotations(keys, current);
    written
        .into_iter()
        .filter(|(key, value)| current.get(key) != Some(value))
        .map(|(key, value)| (key, Some(value)))
        .collect()
}

fn flannel_is_up() -> Condition {
    Condition {
        status: ConditionStatus::False,
        reason: "FlannelIsUp".to_owned(),
        message: "Flannel is running on this node".to_owned(),
    }
}
