//! Which nodes pods wait for: placed there, or about to be, and not running.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

use crate::access::Cluster;
use crate::conversation::{Conversation, Kind, State};

/// A running watch of the pods in phase `Pending` that have a node, or one nominated, and need its pod network. Of each only names are
/// decoded. Dropping it ends the watch.
#[derive(Debug)]
pub struct WaitingPods {
    state: watch::Receiver<State<Arc<str>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Cluster {
    /// Starts watching waiting pods; needs `list` and `watch` of pods. Without that permission nobody ever waits, and the log says so.
    /// Must be called inside a tokio runtime.
    #[must_use]
    pub fn watch_waiting_pods(&self) -> WaitingPods {
        let (sender, state) = watch::channel(State::default());
        let conversation = Conversation::new(self.clone(), PodKind, sender);
        WaitingPods { state, task: tokio::spawn(conversation.run()) }
    }
}

impl Drop for WaitingPods {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WaitingPods {
    /// The names of the nodes that pods wait for.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<String> {
        let state = self.state.borrow();
        state
            .objects
            .as_deref()
            .map(BTreeMap::values)
            .into_iter()
            .flatten()
            .map(|node| node.to_string())
            .collect()
    }

    /// Waits until the pods differ from when this was last called.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct PodKind;

#[derive(Debug, Clone, Deserialize)]
struct WirePod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    resource_version: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    #[serde(default)]
    host_network: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    nominated_node_name: Option<String>,
}

impl Kind for PodKind {
    type Wire = WirePod;
    type View = Arc<str>;

    fn path(&self) -> &'static str {
        "/api/v1/pods"
    }

    fn fields(&self) -> &str {
        "status.phase=Pending"
    }

    fn what(&self) -> &str {
        "pods that wait"
    }

    fn key(wire: &WirePod) -> String {
        format!("{}/{}", wire.metadata.namespace, wire.metadata.name)
    }

    fn version(wire: &WirePod) -> &str {
        &wire.metadata.resource_version
    }

    fn view(&self, wire: WirePod) -> Option<Arc<str>> {
        let named = wire.spec.node_name.filter(|name| !name.is_empty());
        let node = named.or(wire.status.nominated_node_name).filter(|name| !name.is_empty());
        node.filter(|_| !wire.spec.host_network).map(Arc::from)
    }

    fn same(old: &Arc<str>, new: &Arc<str>) -> bool {
        old == new
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_waits_for_the_node_that_it_has_or_shall_have_unless_it_uses_the_nodes_own_network() {
        let node = |spec: serde_json::Value, status: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec, "status": status});
            let wire: WirePod = serde_json::from_value(pod).unwrap();
            assert_eq!(PodKind::key(&wire), "d/p");
            PodKind.view(wire).map(|name| name.to_string())
        };
        assert_eq!(
            node(json!({"nodeName": "n1"}), json!({"nominatedNodeName": "n2"})).as_deref(),
            Some("n1")
        );
        assert_eq!(node(json!({"nodeName": ""}), json!({"nominatedNodeName": "n2"})).as_deref(), Some("n2"));
        assert_eq!(node(json!({"nodeName": "n1", "hostNetwork": true}), json!({})), None);
        assert_eq!(node(json!({}), json!({"phase": "Pending"})), None);
    }
}
