//! The cluster's API as the lab uses it from inside the supervisor: what a kubelet and a cluster's installer would write there, and what a
//! scheduler would read.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ipnet::Ipv4Net;
use loden_sim_kube::{Config, Emulator, Handle, PatchType, Resource, Tls, Token};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::control::Event;
use crate::error::{Context, Error, Result};
use crate::fabric::API_ADDRESS;
use crate::names::LabName;
use crate::spec::Backend;
use crate::status::Condition;

/// Port of the first cluster's API on [`API_ADDRESS`]; the next cluster's is the next one.
const FIRST_PORT: u16 = 6443;

/// The emulated API server of one cluster of a lab.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// The cluster's name, by which its controller marks its route entries.
    pub name: String,
    /// The range that is cut into its nodes' subnets.
    pub pod_cidr: Ipv4Net,
    /// Where its members reach it.
    pub address: SocketAddr,
    emulator: Emulator,
    handle: Handle,
    token: String,
    tls: Tls,
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
    /// An empty cluster, the lab's first or a later one, whose clients have one token, drawn anew for each cluster.
    ///
    /// # Errors
    /// No randomness is to be had, or the first objects are refused.
    pub fn new(lab: &LabName, at: u16, pod_cidr: Ipv4Net, backend: Backend) -> Result<Self> {
        let token = crate::cluster::random_hex()?;
        let emulator = Emulator::new(Config { tokens: vec![Token::admin(&token)], ..Config::default() });
        let handle = emulator.handle();
        // Where kubeadm and the flannel manifest keep the cluster's ranges, for whoever looks for them.
        let net_conf = json!({ "Network": pod_cidr, "EnableNFTables": true, "Backend": { "Type": backend } });
        let configuration = json!({
            "metadata": { "name": "kube-flannel-cfg" },
            "data": { "net-conf.json": net_conf.to_string() },
        });
        handle
            .create(Resource::ConfigMaps, "kube-system", configuration)
            .during(|| "store the network's configuration".to_owned())?;
        let names = ["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string(), API_ADDRESS.to_string()];
        let name = if at == 0 { lab.to_string() } else { format!("{lab}-{}", at + 1) };
        let tls = Tls::new(&names).during(|| format!("make certificates for cluster {name}"))?;
        let address = SocketAddr::from((API_ADDRESS, FIRST_PORT.saturating_add(at)));
        Ok(Self { name, pod_cidr, address, emulator, handle, token, tls })
    }

    /// Serves the API over TLS until dropped; also on several listeners at once.
    pub async fn serve(&self, listener: TcpListener) {
        self.emulator.serve_tls(listener, &self.tls).await;
    }

    /// Writes a kubeconfig for clients that reach the API at `server`, readable by its owner only: it holds the token.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, server: SocketAddr) -> Result<()> {
        let text = loden_sim_kube::tls_kubeconfig(&format!("https://{server}"), &self.token, &self.tls);
        let mut options = std::fs::OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|e| Error::io("write", path, e))
    }

    /// What a kubelet writes when it starts; with `subnet`, a node object that is put back and keeps its pod CIDR.
    ///
    /// # Errors
    /// There is a node of that name.
    pub fn add_node(
        &self,
        name: &str,
        provider_id: &str,
        address: Ipv4Addr,
        subnet: Option<Ipv4Net>,
    ) -> Result<()> {
        let mut spec = json!({ "providerID": provider_id });
        if let (Some(spec), Some(subnet)) = (spec.as_object_mut(), subnet) {
            spec.insert("podCIDR".to_owned(), json!(subnet));
            spec.insert("podCIDRs".to_owned(), json!([subnet]));
        }
        let node = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
            "spec": spec,
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

    /// Number of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.handle.revision()
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
