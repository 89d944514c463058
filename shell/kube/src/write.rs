//! The few things that Loden writes to a Node object.
//!
//! Every write names the UID that the caller saw, and those that depend on what is there also name the version read, so
//! that the server refuses them (409) when somebody else was faster. Then they are read and decided again.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::access::{Cluster, segment};
use crate::backoff::Backoff;
use crate::error::{Error, Result};
use crate::node::{Condition, ConditionStatus, Keep, NodeAddress, NodeView, WireNode};

/// How often a write that lost a race is decided anew before the conflict is reported.
const ATTEMPTS: usize = 6;

/// Annotations to write; `None` removes one.
pub type Annotations = BTreeMap<String, Option<String>>;

/// What became of an attempt to give a node its pod CIDRs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodCidrOutcome {
    /// They were written.
    Written,
    /// The node has exactly these already.
    AlreadySet,
    /// The node has others, which the API server never lets anybody change. They are as the API gave them.
    SetToOthers(Vec<String>),
}

impl Cluster {
    /// Writes annotations of a node through its `status` subresource by strategic merge, which is what the permission
    /// `patch nodes/status` of Flannel's ClusterRole allows. Other annotations stay as they are. Returns the node after
    /// the write.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the node, [`Error::NodeReplaced`] when its UID is another than `node`'s.
    pub async fn annotate_node(&self, node: &NodeView, annotations: &Annotations) -> Result<NodeView> {
        let body = json!({"metadata": {"uid": node.uid, "annotations": annotations}});
        let operation = format!("annotate node {}", node.name);
        self.patch_node(&operation, node, "/status", &body).await
    }

    /// Sets the condition `NetworkUnavailable` of a node, when status, reason or message differ from what the node has.
    /// Returns whether anything was written. `lastTransitionTime` moves only when the status does.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the node, [`Error::NodeReplaced`] when its UID is another than `node`'s,
    /// [`Error::Conflict`] when others kept writing first.
    pub async fn set_network_unavailable(&self, node: &NodeView, wanted: &Condition) -> Result<bool> {
        let operation = format!("set condition NetworkUnavailable of node {}", node.name);
        self.rewrite(&operation, node, "/status", |current| {
            let known = current.network_unavailable.as_ref();
            if known.is_some_and(|known| known.condition == *wanted) {
                return None;
            }
            let now = rfc3339(OffsetDateTime::now_utc());
            let transition = known
                .filter(|known| known.condition.status == wanted.status)
                .and_then(|known| known.last_transition.clone())
                .unwrap_or_else(|| now.clone());
            Some(json!({"status": {"conditions": [{
                "type": "NetworkUnavailable",
                "status": wanted.status.as_str(),
                "reason": wanted.reason,
                "message": wanted.message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": transition,
            }]}}))
        })
        .await
    }

    /// Gives a node its pod CIDRs (`spec.podCIDR` is the first, `spec.podCIDRs` are all), unless it has some: they can
    /// be set once in a node's life.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the node, [`Error::NodeReplaced`] when its UID is another than `node`'s,
    /// [`Error::Invalid`] when the server refuses the CIDRs.
    pub async fn set_pod_cidrs(&self, node: &NodeView, cidrs: &[IpNet]) -> Result<PodCidrOutcome> {
        let operation = format!("set the pod CIDR of node {}", node.name);
        let wanted: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
        let mut others = None;
        let written = self
            .rewrite(&operation, node, "", |current| {
                others = None;
                if current.pod_cidrs.is_empty() {
                    return wanted
                        .first()
                        .map(|first| json!({"spec": {"podCIDR": first, "podCIDRs": wanted}}));
                }
                if current.pod_cidrs != wanted {
                    others = Some(current.pod_cidrs.clone());
                }
                None
            })
            .await?;
        Ok(match others {
            Some(others) => PodCidrOutcome::SetToOthers(others),
            None if written => PodCidrOutcome::Written,
            None => PodCidrOutcome::AlreadySet,
        })
    }

    /// Sets `spec.providerID` where it is empty. Returns whether anything was written.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the node has another one: the API server never lets anybody change it.
    pub async fn set_provider_id(&self, node: &NodeView, provider_id: &str) -> Result<bool> {
        let operation = format!("set the provider ID of node {} to {provider_id}", node.name);
        self.rewrite(&operation, node, "", |current| {
            (current.provider_id.as_deref() != Some(provider_id))
                .then(|| json!({"spec": {"providerID": provider_id}}))
        })
        .await
    }

    /// Writes labels of a node, and its `spec.providerID` where one is given. Other labels stay.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the node, [`Error::NodeReplaced`] when its UID is another than `node`'s, [`Error::Invalid`] when the server
    /// refuses a value, or the node has another provider ID.
    pub async fn describe_node(
        &self,
        node: &NodeView,
        provider_id: Option<&str>,
        labels: &BTreeMap<String, String>,
    ) -> Result<NodeView> {
        let operation = format!("write labels and provider ID of node {}", node.name);
        let mut body = json!({"metadata": {"uid": node.uid, "labels": labels}});
        if let (Some(id), Some(fields)) = (provider_id, body.as_object_mut()) {
            fields.insert("spec".to_owned(), json!({"providerID": id}));
        }
        self.patch_node(&operation, node, "", &body).await
    }

    /// Replaces all of a node's `status.addresses`.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the node, [`Error::NodeReplaced`] when its UID is another than `node`'s.
    pub async fn set_node_addresses(&self, node: &NodeView, addresses: &[NodeAddress]) -> Result<NodeView> {
        let operation = format!("write the addresses of node {}", node.name);
        // The API merges this list by `type`, of which a node may have several; only replacing it whole says what is meant.
        let mut list: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": address.kind, "address": address.address}))
            .collect();
        list.push(json!({"$patch": "replace"}));
        let body = json!({"metadata": {"uid": node.uid}, "status": {"addresses": list}});
        self.patch_node(&operation, node, "/status", &body).await
    }

    /// Deletes a node whose kubelet is silent (`Ready` is `Unknown`) at this very moment. Returns whether the node is gone; `false`: its kubelet
    /// speaks again.
    ///
    /// # Errors
    /// [`Error::NodeReplaced`] when its UID is another than `node`'s, [`Error::Conflict`] when it was written to meanwhile.
    pub async fn delete_silent_node(&self, node: &NodeView) -> Result<bool> {
        let operation = format!("delete node {}", node.name);
        let Some(current) = self.node(&node.name).await? else { return Ok(true) };
        same_node(&operation, node, &current)?;
        if current.ready != Some(ConditionStatus::Unknown) {
            return Ok(false);
        }
        let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions":
            {"uid": current.uid, "resourceVersion": current.resource_version}});
        let path = format!("/api/v1/nodes/{}", segment(&node.name));
        match self.delete::<Ignored>(&operation, &path, &body).await {
            Ok(Ignored {}) | Err(Error::NotFound { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Removes every taint with this key from a node, keeping the others. Returns whether there was one.
    ///
    /// # Errors
    /// [`Error::NotFound`] without the node, [`Error::NodeReplaced`] when its UID is another than `node`'s,
    /// [`Error::Conflict`] when others kept writing first.
    pub async fn remove_taint(&self, node: &NodeView, key: &str) -> Result<bool> {
        let operation = format!("remove taint {key} from node {}", node.name);
        self.rewrite(&operation, node, "", |current| {
            // The list has no merge key in the API, so it is replaced whole; the version read guards it.
            let rest: Vec<_> = current
                .taints
                .iter()
                .filter(|taint| taint.key != key)
                .map(|taint| {
                    let mut object = json!({"key": taint.key, "effect": taint.effect});
                    if let Some(fields) = object.as_object_mut() {
                        fields.extend(taint.value.clone().map(|value| ("value".to_owned(), value.into())));
                        fields.extend(
                            taint.time_added.clone().map(|time| ("timeAdded".to_owned(), time.into())),
                        );
                    }
                    object
                })
                .collect();
            (rest.len() != current.taints.len()).then(|| json!({"spec": {"taints": rest}}))
        })
        .await
    }

    /// Reads the node, asks `decide` for a patch, and sends it guarded by UID and version; again from the start when
    /// somebody else wrote in between.
    async fn rewrite(
        &self,
        operation: &str,
        node: &NodeView,
        subresource: &str,
        mut decide: impl FnMut(&NodeView) -> Option<serde_json::Value>,
    ) -> Result<bool> {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let path = format!("/api/v1/nodes/{}", segment(&node.name));
            let current = self.get::<WireNode>(operation, &path).await?.into_view(&Keep::default());
            same_node(operation, node, &current)?;
            let Some(mut body) = decide(&current) else { return Ok(false) };
            if let Some(fields) = body.as_object_mut() {
                fields.insert(
                    "metadata".to_owned(),
                    json!({"uid": current.uid, "resourceVersion": current.resource_version}),
                );
            }
            match self.patch_node(operation, &current, subresource, &body).await {
                Ok(_) => return Ok(true),
                Err(Error::Conflict { .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn patch_node(
        &self,
        operation: &str,
        node: &NodeView,
        subresource: &str,
        body: &serde_json::Value,
    ) -> Result<NodeView> {
        let path = format!("/api/v1/nodes/{}{subresource}", segment(&node.name));
        match self.patch::<WireNode>(operation, &path, body).await {
            Ok(wire) => Ok(wire.into_view(&Keep::default())),
            Err(Error::Conflict { operation, server, message }) => {
                // The server answers both a lost race and a foreign UID with 409; only a look tells them apart.
                if let Some(current) = self.node(&node.name).await? {
                    same_node(&operation, node, &current)?;
                }
                Err(Error::Conflict { operation, server, message })
            }
            Err(error) => Err(error),
        }
    }
}

/// An answer of which only matters that it came.
#[derive(Deserialize)]
struct Ignored {}

fn same_node(operation: &str, expected: &NodeView, actual: &NodeView) -> Result<()> {
    if expected.uid == actual.uid {
        return Ok(());
    }
    Err(Error::NodeReplaced {
        operation: operation.to_owned(),
        node: expected.name.clone(),
        expected: expected.uid.clone(),
        actual: actual.uid.clone(),
    })
}

/// `metav1.Time`: whole seconds, UTC, `Z`.
pub(crate) fn rfc3339(moment: OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        moment.year(),
        u8::from(moment.month()),
        moment.day(),
        moment.hour(),
        moment.minute(),
        moment.second()
    )
}

/// `metav1.MicroTime`: always six digits after the point, UTC, `Z`.
pub(crate) fn rfc3339_micro(moment: OffsetDateTime) -> String {
    let whole = rfc3339(moment);
    format!("{}.{:06}Z", whole.trim_end_matches('Z'), moment.microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_api_wants_them() {
        let moment = OffsetDateTime::from_unix_timestamp_nanos(1_767_225_600_012_345_678).unwrap();
        assert_eq!(rfc3339(moment), "2026-01-01T00:00:00Z");
        assert_eq!(rfc3339_micro(moment), "2026-01-01T00:00:00.012345Z");
    }
}
