//! Single reads of the few other objects that Loden looks at.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::access::{Cluster, segment};
use crate::error::{Error, Result};
use crate::node::{Keep, NodeView, WireNode};

impl Cluster {
    /// Reads one node from the server, with all its labels and annotations; `None` when there is no such node.
    ///
    /// # Errors
    /// As for every request: unreachable, refused, malformed.
    pub async fn node(&self, name: &str) -> Result<Option<NodeView>> {
        let wire: Option<WireNode> =
            absent(self.get(&format!("get node {name}"), &format!("/api/v1/nodes/{}", segment(name))).await)?;
        Ok(wire.map(|wire| wire.into_view(&Keep::default())))
    }

    /// Reads the `data` of a ConfigMap; `None` when there is no such ConfigMap.
    ///
    /// # Errors
    /// As for every request: unreachable, refused, malformed.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        #[derive(Deserialize)]
        struct ConfigMap {
            data: Option<BTreeMap<String, String>>,
        }
        let path = format!("/api/v1/namespaces/{}/configmaps/{}", segment(namespace), segment(name));
        let map: Option<ConfigMap> =
            absent(self.get(&format!("get configmap {namespace}/{name}"), &path).await)?;
        Ok(map.map(|map| map.data.unwrap_or_default()))
    }

    /// The name of the node that a pod runs on (`spec.nodeName`); `None` when the pod does not exist or is not scheduled.
    /// A daemon that is told its pod's name and namespace finds its own node this way.
    ///
    /// # Errors
    /// As for every request: unreachable, refused, malformed.
    pub async fn node_of_pod(&self, namespace: &str, name: &str) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Pod {
            #[serde(default)]
            spec: Spec,
        }
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            node_name: Option<String>,
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}", segment(namespace), segment(name));
        let pod: Option<Pod> = absent(self.get(&format!("get pod {namespace}/{name}"), &path).await)?;
        Ok(pod.and_then(|pod| pod.spec.node_name).filter(|name| !name.is_empty()))
    }
}

fn absent<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
