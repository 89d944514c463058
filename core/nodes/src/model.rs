//! Nodes and instances as node control sees them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_aliyun::{ProviderId, ProviderIdError};
use loden_routes::model::{InstanceId, Readiness};

/// The taint that a kubelet with `--cloud-provider=external` registers with: no pod is placed until it is gone.
pub const UNINITIALIZED: &str = "node.cloudprovider.kubernetes.io/uninitialized";
/// The annotation in which kubelet says what `--node-ip` it was started with.
pub const PROVIDED_IP: &str = "alpha.kubernetes.io/provided-node-ip";
/// The tag of an instance that names its node pool.
pub const NODEPOOL_TAG: &str = "ack.alibabacloud.com/nodepool-id";

/// Every label that node control writes.
pub const LABEL_KEYS: [&str; 9] = [
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "topology.kubernetes.io/region",
    "node.alibabacloud.com/nodepool-id",
    "node.alibabacloud.com/instance-charge-type",
    "node.alibabacloud.com/spot-strategy",
];

/// One address of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    pub kind: String,
    /// The address or name.
    pub address: String,
}

impl Address {
    /// An address of this kind.
    #[must_use]
    pub fn new(kind: &str, address: &str) -> Self {
        Self { kind: kind.to_owned(), address: address.to_owned() }
    }

    /// Whether kubelet, not the cloud, is the one to know it.
    #[must_use]
    pub fn is_kubelets(&self) -> bool {
        self.kind == "Hostname"
    }
}

/// A Node object, as far as node control reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.providerID`, as it stands.
    pub provider_id: String,
    /// It carries the taint [`UNINITIALIZED`].
    pub uninitialized: bool,
    /// A label takes it out of cloud control.
    pub excluded: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// The `Ready` condition.
    pub readiness: Readiness,
    /// Somebody has said whether its network is available.
    pub has_network_condition: bool,
    /// `status.addresses`.
    pub addresses: Vec<Address>,
    /// Of its labels those in [`LABEL_KEYS`].
    pub labels: BTreeMap<String, String>,
    /// The annotation [`PROVIDED_IP`].
    pub provided_ip: Option<String>,
}

impl Node {
    /// The node's region and instance.
    ///
    /// # Errors
    /// The provider ID names no ECS instance.
    pub fn provider(&self) -> Result<ProviderId, ProviderIdError> {
        self.provider_id.trim().parse()
    }

    /// Whether the node is under cloud control at all: no hybrid machine, not excluded, not on its way out.
    #[must_use]
    pub fn concerns(&self) -> bool {
        !self.excluded && !self.deleting && !matches!(self.provider(), Err(ProviderIdError::Hybrid(_)))
    }

    /// The private address by which the node's instance can be found when it names none: what kubelet was told, what it says of itself, or what its
    /// name ends in (`cn-hangzhou.192.168.0.1`).
    #[must_use]
    pub fn private_address(&self) -> Option<IpAddr> {
        let provided = self.provided_ip.iter().flat_map(|text| text.split(',')).map(str::trim);
        let own = self.addresses.iter().filter(|address| address.kind == "InternalIP");
        let named = self.name.split_once('.').map(|(_, rest)| rest).into_iter();
        let texts = provided.chain(own.map(|address| address.address.as_str())).chain(named);
        texts.filter_map(|text| text.parse().ok()).find(IpAddr::is_ipv4)
    }
}

/// An ECS instance as node control sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its ID.
    pub id: InstanceId,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// `InstanceType`.
    pub instance_type: String,
    /// `InstanceChargeType`.
    pub charge_type: String,
    /// `SpotStrategy`.
    pub spot_strategy: String,
    /// The tag [`NODEPOOL_TAG`].
    pub nodepool: Option<String>,
    /// Public and elastic addresses.
    pub external: Vec<String>,
    /// Private addresses.
    pub internal: Vec<String>,
    /// IPv6 addresses of the primary network interface.
    pub ipv6: Vec<String>,
}
