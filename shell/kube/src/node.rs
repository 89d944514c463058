//! A node as Loden needs it: a dozen fields out of an object of tens of kilobytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use crate::labels::{Labels, Texts};

/// The status of a node condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// Nobody knows; for `Ready` it means that the kubelet stopped reporting.
    Unknown,
}

impl ConditionStatus {
    /// The text in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "True" => Self::True,
            "False" => Self::False,
            _ => Self::Unknown,
        }
    }
}

/// The content of a condition, without its times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Whether it holds.
    pub status: ConditionStatus,
    /// One CamelCase word for programs, such as `RouteCreated`.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// The `NetworkUnavailable` condition as observed on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkUnavailable {
    /// Status, reason and message.
    pub condition: Condition,
    /// When the status last changed, RFC 3339, as the API gave it.
    pub last_transition: Option<String>,
}

/// One address of a node's `status.addresses`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, `InternalDNS` or `ExternalDNS`.
    pub kind: String,
    /// The address or name.
    pub address: String,
}

/// One taint of a node's `spec.taints`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    /// The key, for example `node.cloudprovider.kubernetes.io/uninitialized`.
    pub key: String,
    /// The value, if it has one.
    pub value: Option<String>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
    /// When a `NoExecute` taint was added, as the API gave it.
    pub time_added: Option<String>,
}

/// What Loden keeps of a Node object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`: the same name with another UID is another node.
    pub uid: String,
    /// `metadata.resourceVersion` at which this view last changed. Heartbeats raise the object's version without
    /// changing the view, so in a snapshot of a watch it may be behind the server's.
    pub resource_version: String,
    /// `metadata.creationTimestamp`, RFC 3339 in UTC with whole seconds, so that text order is time order.
    pub created: Option<String>,
    /// `metadata.labels`, those that the watch was asked to keep.
    pub labels: Labels,
    /// `metadata.annotations`, those that the watch was asked to keep.
    pub annotations: BTreeMap<String, String>,
    /// `spec.providerID`, when it is not empty.
    pub provider_id: Option<String>,
    /// `spec.podCIDRs`, or `spec.podCIDR` alone where the list is empty; empty when neither is set. As the API gave it:
    /// see [`NodeView::parsed_pod_cidrs`].
    pub pod_cidrs: Vec<String>,
    /// `status.addresses` in the API's order.
    pub addresses: Vec<NodeAddress>,
    /// `spec.taints` in the API's order.
    pub taints: Vec<Taint>,
    /// Status of the `Ready` condition; `None` when the node has not reported yet.
    pub ready: Option<ConditionStatus>,
    /// The `NetworkUnavailable` condition; `None` when nobody has set it.
    pub network_unavailable: Option<NetworkUnavailable>,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}

/// A pod CIDR of a node that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node {node}: pod CIDR {text:?} is malformed; it must be an address and a prefix length such as 172.16.1.0/24"
)]
pub struct InvalidPodCidr {
    /// The node's name.
    pub node: String,
    /// The text in `spec.podCIDRs` or `spec.podCIDR`.
    pub text: String,
}

impl NodeView {
    /// The pod CIDRs as networks, host bits cleared, in the API's order.
    ///
    /// # Errors
    /// The first one that is malformed.
    pub fn parsed_pod_cidrs(&self) -> Result<Vec<IpNet>, InvalidPodCidr> {
        self.pod_cidrs
            .iter()
            .map(|text| {
                text.parse::<IpNet>()
                    .map(|net| net.trunc())
                    .map_err(|_| InvalidPodCidr { node: self.name.clone(), text: text.clone() })
            })
            .collect()
    }

    /// The first address of a kind such as `InternalIP`.
    #[must_use]
    pub fn address(&self, kind: &str) -> Option<&str> {
        self.addresses.iter().find(|address| address.kind == kind).map(|address| address.address.as_str())
    }

    /// Whether the two views say the same, whatever version each was read at.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.name == other.name
            && self.uid == other.uid
            && self.created == other.created
            && self.labels == other.labels
            && self.annotations == other.annotations
            && self.provider_id == other.provider_id
            && self.pod_cidrs == other.pod_cidrs
            && self.addresses == other.addresses
            && self.taints == other.taints
            && self.ready == other.ready
            && self.network_unavailable == other.network_unavailable
            && self.deleting == other.deleting
    }
}

/// The parts of a Node object that are decoded at all. The decoder skips everything else without building it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct WireNode {
    metadata: WireMeta,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMeta {
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    creation_timestamp: Option<String>,
    deletion_timestamp: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSpec {
    #[serde(rename = "providerID")]
    provider_id: Option<String>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<WireTaint>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireTaint {
    key: String,
    value: Option<String>,
    #[serde(default)]
    effect: String,
    time_added: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct WireStatus {
    addresses: Option<Vec<WireAddress>>,
    conditions: Option<Vec<WireCondition>>,
}

#[derive(Debug, Clone, Deserialize)]
struct WireAddress {
    r#type: String,
    #[serde(default)]
    address: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireCondition {
    r#type: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
    last_transition_time: Option<String>,
}

/// Which labels and annotations are worth keeping: those that begin with one of the prefixes, or all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keep {
    pub(crate) labels: Option<Vec<String>>,
    pub(crate) annotations: Option<Vec<String>>,
    /// Shared by all objects that are kept.
    pub(crate) texts: Arc<Texts>,
}

fn retain(map: Option<BTreeMap<String, String>>, prefixes: Option<&[String]>) -> BTreeMap<String, String> {
    let mut map = map.unwrap_or_default();
    if let Some(prefixes) = prefixes {
        map.retain(|key, _| prefixes.iter().any(|prefix| key.starts_with(prefix.as_str())));
    }
    // A map that was emptied keeps the room of its first eleven entries.
    if map.is_empty() { BTreeMap::new() } else { map }
}

/// A list with no room for more: what is read out of JSON has room for four at least, and there are thousands of nodes.
fn exact<T, U>(list: Option<Vec<T>>, item: impl FnMut(T) -> U) -> Vec<U> {
    list.unwrap_or_default().into_iter().map(item).collect::<Box<[U]>>().into_vec()
}

impl WireNode {
    pub(crate) fn name(&self) -> &str {
        &self.metadata.name
    }

    pub(crate) fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }

    pub(crate) fn into_view(self, keep: &Keep) -> NodeView {
        let Self { metadata, spec, status } = self;
        let mut ready = None;
        let mut network_unavailable = None;
        for condition in status.conditions.unwrap_or_default() {
            let status = ConditionStatus::parse(&condition.status);
            match condition.r#type.as_str() {
                "Ready" => ready = Some(status),
                "NetworkUnavailable" => {
                    network_unavailable = Some(NetworkUnavailable {
                        condition: Condition {
                            status,
                            reason: condition.reason.unwrap_or_default(),
                            message: condition.message.unwrap_or_default(),
                        },
                        last_transition: condition.last_transition_time,
                    });
                }
                _ => {}
            }
        }
        let listed = spec.pod_cidrs.filter(|list| !list.is_empty());
        NodeView {
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            created: metadata.creation_timestamp,
            labels: keep.texts.labels(retain(metadata.labels, keep.labels.as_deref()).into_iter()),
            annotations: retain(metadata.annotations, keep.annotations.as_deref()),
            provider_id: spec.provider_id.filter(|id| !id.is_empty()),
            pod_cidrs: exact(
                listed.or_else(|| spec.pod_cidr.filter(|one| !one.is_empty()).map(|one| vec![one])),
                |text| text,
            ),
            addresses: exact(status.addresses, |wire| NodeAddress {
                kind: wire.r#type,
                address: wire.address,
            }),
            taints: exact(spec.taints, |wire| Taint {
                key: wire.key,
                value: wire.value,
                effect: wire.effect,
                time_added: wire.time_added,
            }),
            ready,
            network_unavailable,
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(json: serde_json::Value) -> NodeView {
        serde_json::from_value::<WireNode>(json).unwrap().into_view(&Keep::default())
    }

    #[test]
    fn a_bare_node_is_a_view() {
        let node = view(serde_json::json!({"metadata": {"name": "n1"}}));
        assert_eq!(node.name, "n1");
        assert_eq!(node.pod_cidrs, Vec::<String>::new());
        assert_eq!((node.ready, node.provider_id.as_deref(), node.deleting), (None, None, false));
    }

    #[test]
    fn the_list_of_cidrs_wins_over_the_single_one() {
        let node = view(serde_json::json!({"metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.9/24", "fd00::/64"], "providerID": ""}}));
        assert_eq!(node.pod_cidrs, ["10.0.0.9/24", "fd00::/64"]);
        let parsed: Vec<String> = node.parsed_pod_cidrs().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(parsed, ["10.0.0.0/24", "fd00::/64"]);
        let single = view(
            serde_json::json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": []}}),
        );
        assert_eq!(single.pod_cidrs, ["10.0.0.0/24"]);
    }

    #[test]
    fn a_malformed_cidr_is_an_error_that_names_the_node() {
        let node =
            view(serde_json::json!({"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.0.0.0/33"]}}));
        let error = node.parsed_pod_cidrs().unwrap_err().to_string();
        assert!(error.contains("n1") && error.contains("10.0.0.0/33"), "{error}");
    }

    #[test]
    fn conditions_taints_and_addresses_are_read() {
        let node = view(serde_json::json!({
            "metadata": {"name": "n1", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"taints": [{"key": "a", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]},
            "status": {
                "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.168.0.1"}],
                "conditions": [
                    {"type": "Ready", "status": "Unknown"},
                    {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "m",
                     "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}));
        assert!(node.deleting);
        assert_eq!(node.ready, Some(ConditionStatus::Unknown));
        assert_eq!(node.address("InternalIP"), Some("192.168.0.1"));
        assert_eq!(node.taints[0].time_added.as_deref(), Some("2026-01-01T00:00:00Z"));
        let condition = node.network_unavailable.unwrap().condition;
        assert_eq!((condition.status, condition.reason.as_str()), (ConditionStatus::True, "NoRouteCreated"));
    }

    #[test]
    fn unwanted_labels_and_annotations_are_dropped() {
        let wire: WireNode = serde_json::from_value(serde_json::json!({"metadata": {"name": "n1",
            "labels": {"a/x": "1", "b/y": "2"}, "annotations": {"flannel.alpha.coreos.com/public-ip": "1.2.3.4", "z": "9"}}}))
        .unwrap();
        let keep = Keep {
            labels: Some(vec![]),
            annotations: Some(vec!["flannel.alpha.coreos.com/".to_owned()]),
            ..Keep::default()
        };
        let node = wire.into_view(&keep);
        assert!(node.labels.is_empty());
        assert_eq!(node.annotations.keys().collect::<Vec<_>>(), ["flannel.alpha.coreos.com/public-ip"]);
    }
}
