//! The cluster's API as the lab uses it from inside the supervisor: what a kubelet and a cluster's installer would write there, and what a
//! scheduler would read.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use loden_sim_kube::{Config, Emulator, Handle, PatchType, Resource, Token};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::control::Event;
use crate::error::{Context, Result};
use crate::spec::Inputs;
use crate::status::Condition;

/// The emulated API server of a lab.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    emulator: Emulator,
    handle: Handle,
    token: String,
}

/// A node object, reduced to what the lab looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KubeNode {
    /// `spec.podCIDR`.
    pub subnet: Option<Ipv4Net>,
    /// Condition `NetworkUnavailable`.
    pub network_unavailable: Option<Condition>,
}

impl Kubernetes {
    /// An empty cluster whose clients have one token, drawn anew for each lab.
    ///
    /// # Errors
    /// No randomness is to be had, or the first objects are refused.
    pub fn new(inputs: &Inputs) -> Result<Self> {
        let token = crate::cluster::random_hex()?;
        let emulator = Emulator::new(Config { tokens: vec![Token::admin(&token)], ..Config::default() });
        let handle = emulator.handle();
        // Where kubeadm and the flannel manifest keep the cluster's ranges, for whoever looks for them.
        let net_conf =
            json!({ "Network": inputs.pod_cidr, "EnableNFTables": true, "Backend": { "Type": "alloc" } });
        let configuration = json!({
            "metadata": { "name": "kube-flannel-cfg" },
            "data": { "net-conf.json": net_conf.to_string() },
        });
        handle
            .create(Resource::ConfigMaps, "kube-system", configuration)
            .during(|| "store the network's configuration".to_owned())?;
        Ok(Self { emulator, handle, token })
    }

    /// The clients' bearer token.
    #[must_use]
    pub fn token(&self) -> String {
        self.token.clone()
    }

    /// Serves the API until dropped.
    pub async fn serve(&self, listener: TcpListener) {
        self.emulator.serve(listener).await;
    }

    /// What a kubelet writes when it starts.
    ///
    /// # Errors
    /// There is a node of that name.
    pub fn add_node(&self, name: &str, provider_id: &str, address: Ipv4Addr) -> Result<()> {
        let node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
            "spec": { "providerID": provider_id },
            "status": {
                "addresses": [{ "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name }],
                "conditions": [ready("True", "KubeletReady", "kubelet is posting ready status")],
            },
        });
        self.handle.create(Resource::Nodes, "", node).during(|| format!("add node {name}"))?;
        Ok(())
    }

    /// Sets the condition `Ready`, as a kubelet or, when that is silent, the node lifecycle controller does.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_ready(&self, name: &str, status: &str, reason: &str, message: &str) -> Result<()> {
        let change = json!({ "status": { "conditions": [ready(status, reason, message)] } });
        self.handle
            .patch_status(Resource::Nodes, "", name, PatchType::Strategic, &change)
            .during(|| format!("set the condition Ready of node {name}"))?;
        Ok(())
    }

    /// Deletes a node object.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_node(&self, name: &str) -> Result<()> {
        self.handle.delete(Resource::Nodes, "", name).during(|| format!("delete node {name}"))
    }

    /// A node object as it is now.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<KubeNode> {
        let node = self.handle.get(Resource::Nodes, "", name)?;
        let subnet = node.pointer("/spec/podCIDR").and_then(Value::as_str).and_then(|text| text.parse().ok());
        let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
        let condition = conditions
            .into_iter()
            .flatten()
            .find(|condition| text(condition, "type") == "NetworkUnavailable")
            .map(|condition| Condition {
                status: text(condition, "status"),
                reason: text(condition, "reason"),
                message: text(condition, "message"),
            });
        Some(KubeNode { subnet, network_unavailable: condition })
    }

    /// All events, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.handle.list(Resource::Events, None);
        events.sort_by_key(|event| {
            event
                .pointer("/metadata/resourceVersion")
                .and_then(Value::as_str)
                .and_then(|version| version.parse::<u64>().ok())
        });
        events
            .iter()
            .map(|event| {
                let object = event
                    .get("involvedObject")
                    .or_else(|| event.get("regarding"))
                    .cloned()
                    .unwrap_or_default();
                let message =
                    if event.get("message").is_some() { text(event, "message") } else { text(event, "note") };
                Event {
                    kind: text(event, "type"),
                    object: format!("{} {}", text(&object, "kind"), text(&object, "name")),
                    reason: text(event, "reason"),
                    message,
                    count: event.get("count").and_then(Value::as_u64).unwrap_or(1),
                }
            })
            .collect()
    }
}

fn ready(status: &str, reason: &str, message: &str) -> Value {
    json!({ "type": "Ready", "status": status, "reason": reason, "message": message })
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}
