//! Where a run takes place: a namespace with an emulated cloud and an emulated API server, both as release builds, and nodes as large as kubelets make them.

use super::super::idle::images;
use super::super::process::{Running, request, wait};
use super::super::stage::{Directory, Namespace};
use super::Programs;
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::process::{Command, Stdio};

const API: &str = "127.0.0.1:8790";
const METADATA: &str = "127.0.0.1:8791";
const CONTROL: &str = "127.0.0.1:8792";
const KUBE: &str = "127.0.0.1:8793";
const VPC: &str = "vpc-scale";
const TABLE: &str = "vtb-scale";
/// Room for every node: what happens at a full table is another question.
const QUOTA: u32 = 20_000;

/// What the cloud allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limits {
    /// Entries are in force as soon as they are there.
    ZeroDelay,
    /// An entry takes a second, and a VPC takes one change at a time.
    Vendor,
}

impl Limits {
    /// Milliseconds until an entry is in force, or gone.
    pub(crate) fn entry_delay(self) -> u32 {
        match self {
            Self::ZeroDelay => 0,
            Self::Vendor => 1000,
        }
    }
}

/// Both emulators, running. They end with the value.
pub(crate) struct World {
    _emulators: [Running; 2],
    directory: Directory,
}

/// An entry of the route table: where to, by which instance, and in which state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) destination: String,
    pub(crate) instance: String,
    pub(crate) status: String,
}

impl World {
    /// A namespace for one run. Everything else happens on a thread in it.
    pub(crate) fn stage() -> Result<Namespace> {
        let stage = Namespace::new("scale")?;
        stage.ip("link set lo up")?;
        Ok(stage)
    }

    /// Starts the emulators and puts the instances of `nodes` nodes there. To be called inside the namespace.
    pub(crate) fn new(programs: &Programs, nodes: u32, limits: Limits) -> Result<Self> {
        let directory = Directory::new()?;

        let config = directory.write("cloud.json", &cloud(nodes, limits).to_string())?;
        let emulate = |arguments: &[&str]| -> Result<Running> {
            let mut command = Command::new(&programs.loden);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            command
                .spawn()
                .map(Running)
                .with_context(|| format!("cannot start loden {}", arguments.join(" ")))
        };
        let emulators = [
            emulate(&["cloud-emulator", "--config", config.as_str()])?,
            emulate(&["kube-emulator", "--listen", KUBE])?,
        ];
        for address in [API, CONTROL, KUBE] {
            wait(address, || TcpStream::connect(address).is_ok(), String::new)?;
        }
        Ok(Self { _emulators: emulators, directory })
    }

    /// The controller with its usual flags. Pod CIDRs come from kube-controller-manager here, as they did where the vendor's controller was measured.
    pub(crate) fn controller(&self, programs: &Programs) -> Result<Command> {
        let mut command = Command::new(&programs.controller);
        command
            .arg(format!("--master=http://{KUBE}"))
            .args(["--cluster-cidr=10.64.0.0/10", "--allocate-node-cidrs=false", "--cluster-id=scale"])
            .args(["--region=cn-hangzhou", &format!("--vpc-id={VPC}"), &format!("--route-quota={QUOTA}")])
            .env_clear()
            .envs([("VPC_ENDPOINT", API), ("ECS_ENDPOINT", API), ("STS_ENDPOINT", API)])
            .env("METADATA_ENDPOINT", format!("http://{METADATA}"))
            .envs([("ALICLOUD_CLIENT_SCHEME", "HTTP"), ("ACCESS_KEY_ID", "testid")])
            .env("ACCESS_KEY_SECRET", "testsecret")
            // As without it, and each call to the cloud besides.
            .env("RUST_LOG", "info,loden_controller_driver=debug")
            .current_dir(&self.directory.path)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(command)
    }

    /// A node joins: its instance is there, and kube-controller-manager has given it a subnet.
    pub(crate) fn join(&self, number: u32) -> Result<()> {
        let (code, answer) =
            request(KUBE, "POST", "/api/v1/nodes", "application/json", &described(number).to_string())?;
        ensure!(code == 201, "the API server does not take node {number}: {code} {answer}");
        Ok(())
    }

    /// A node leaves.
    pub(crate) fn leave(&self, number: u32) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", name(number));
        let (code, answer) = request(KUBE, "DELETE", &path, "application/json", "")?;
        ensure!(code == 200, "the API server does not delete node {number}: {code} {answer}");
        Ok(())
    }

    /// How often each action of the cloud was called.
    pub(crate) fn calls(&self) -> Result<BTreeMap<String, u64>> {
        get(CONTROL, "/calls")
    }

    /// The custom entries of the table.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>> {
        #[derive(Deserialize)]
        struct Snapshot {
            vpcs: Vec<Vpc>,
        }
        #[derive(Deserialize)]
        struct Vpc {
            tables: Vec<Table>,
        }
        #[derive(Deserialize)]
        struct Table {
            entries: Vec<Row>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Row {
            destination: String,
            next_hops: Vec<NextHop>,
            status: String,
            kind: String,
        }
        #[derive(Deserialize)]
        struct NextHop {
            id: String,
        }
        let snapshot: Snapshot = get(CONTROL, "/snapshot")?;
        let rows = snapshot.vpcs.into_iter().flat_map(|vpc| vpc.tables).flat_map(|table| table.entries);
        Ok(rows
            .filter(|row| row.kind == "Custom")
            .map(|row| Entry {
                destination: row.destination,
                instance: row.next_hops.into_iter().map(|hop| hop.id).collect::<Vec<_>>().join(" + "),
                status: row.status,
            })
            .collect())
    }

    /// Looks at everything once more, past what the controller says: exactly these nodes are there, each has one entry in force that leads to its
    /// instance and is told that its network is available, and nothing else is in the table.
    ///
    /// # Errors
    /// What is not so.
    pub(crate) fn verify(&self, nodes: impl IntoIterator<Item = u32>) -> Result<()> {
        let mut expected: BTreeMap<String, u32> =
            nodes.into_iter().map(|number| (name(number), number)).collect();
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for entry in self.entries()? {
            if let Some(twice) = entries.insert(entry.destination.clone(), entry) {
                bail!("{} has two entries", twice.destination);
            }
        }
        ensure!(entries.len() == expected.len(), "{} entries for {} nodes", entries.len(), expected.len());
        let mut token = String::new();
        loop {
            let page: Page = get(KUBE, &format!("/api/v1/nodes?limit=200{token}"))?;
            for node in page.items {
                let number = expected.remove(&node.metadata.name);
                let number = number.with_context(|| format!("{} should not be there", node.metadata.name))?;
                let told =
                    node.status.conditions.iter().find(|condition| condition.r#type == "NetworkUnavailable");
                ensure!(
                    told.is_some_and(|condition| condition.status == "False"),
                    "{} is not told that its network is available",
                    node.metadata.name
                );
                let entry =
                    entries.get(&subnet(number)).with_context(|| format!("node {number} has no entry"))?;
                ensure!(
                    entry.instance == instance(number) && entry.status == "Available",
                    "node {number} has another entry than it should: {entry:?}"
                );
            }
            match page.metadata.r#continue.filter(|token| !token.is_empty()) {
                Some(next) => token = format!("&continue={next}"),
                None => break,
            }
        }
        ensure!(expected.is_empty(), "{} nodes are missing", expected.len());
        Ok(())
    }
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct PageMeta {
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct Node {
    metadata: Metadata,
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
}

fn get<T: serde::de::DeserializeOwned>(from: &str, path: &str) -> Result<T> {
    let (code, answer) = request(from, "GET", path, "application/json", "")?;
    ensure!(code == 200, "GET {from}{path}: {code} {answer}");
    let body = answer.split_once("\r\n\r\n").map(|(_head, body)| body).unwrap_or_default();
    serde_json::from_str(body).with_context(|| format!("GET {from}{path} does not answer as expected"))
}

pub(super) fn name(number: u32) -> String {
    format!("cn-hangzhou.{}", address(number))
}

fn instance(number: u32) -> String {
    format!("i-bp1scale{number:012}")
}

fn address(number: u32) -> String {
    format!("172.16.{}.{}", 1 + number / 250, 1 + number % 250)
}

fn subnet(number: u32) -> String {
    format!("10.{}.{}.0/24", 64 + number / 256, number % 256)
}

fn cloud(nodes: u32, limits: Limits) -> serde_json::Value {
    let instances: Vec<_> = (0..nodes)
        .map(|number| {
            json!({"id": instance(number), "interfaces": [{"vswitch": "vsw-scale", "address": address(number)}]})
        })
        .collect();
    json!({
        "api": API, "metadata": METADATA, "control": CONTROL,
        "settings": {"entryDelayMs": limits.entry_delay(), "oneChangePerVpc": true},
        "topology": {
            "region": "cn-hangzhou", "account": 1_234_567_890_123_456_u64,
            "vpcs": [{"id": VPC, "cidr": "172.16.0.0/12",
                "vswitches": [{"id": "vsw-scale", "zone": "cn-hangzhou-h", "cidr": "172.16.0.0/16"}],
                "routeTables": [{"id": TABLE, "kind": "System", "quota": QUOTA}]}],
            "instances": instances,
            "accessKeys": [{"id": "testid", "secret": "testsecret"}], "roles": [],
        },
    })
}

/// A node as a kubelet, node control and others of a running cluster describe it.
fn described(number: u32) -> serde_json::Value {
    let (name, address, subnet) = (name(number), address(number), subnet(number));
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": format!("KubeletHas{kind}"), "message": format!("kubelet has looked at {kind} of the node"),
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let images: serde_json::Value = serde_json::from_str(&format!("[{}]", images())).unwrap_or_default();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name,
            "labels": {
                "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/instance-type": "ecs.g7.large",
                "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": name,
                "node.kubernetes.io/instance-type": "ecs.g7.large", "node.csi.alibabacloud.com/disktype.cloud_essd": "available",
                "failure-domain.beta.kubernetes.io/region": "cn-hangzhou", "failure-domain.beta.kubernetes.io/zone": "cn-hangzhou-h",
                "topology.kubernetes.io/region": "cn-hangzhou", "topology.kubernetes.io/zone": "cn-hangzhou-h",
                "topology.diskplugin.csi.alibabacloud.com/zone": "cn-hangzhou-h", "alibabacloud.com/nodepool-id": "np0123456789abcdef0123456789abcdef",
                "ack.aliyun.com": "c0123456789abcdef0123456789abcdef",
                "node.alibabacloud.com/instance-charge-type": "PostPaid", "node.alibabacloud.com/spot-strategy": "NoSpot"},
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0", "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "csi.volume.kubernetes.io/nodeid": format!("{{\"diskplugin.csi.alibabacloud.com\":\"{}\"}}", instance(number)),
                "flannel.alpha.coreos.com/backend-data": "null", "flannel.alpha.coreos.com/backend-type": "Alloc",
                "flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/public-ip": address}},
        "spec": {"podCIDR": subnet, "podCIDRs": [subnet], "providerID": format!("cn-hangzhou.{}", instance(number))},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "capacity": {"cpu": "8", "ephemeral-storage": "123460788Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0", "memory": "31965984Ki", "pods": "110"},
            "allocatable": {"cpu": "7910m", "ephemeral-storage": "113781462033", "hugepages-1Gi": "0", "hugepages-2Mi": "0", "memory": "29246240Ki", "pods": "110"},
            "conditions": [
                condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False"),
                condition("KernelDeadlock", "False"), condition("NTPProblem", "False"), condition("Ready", "True")],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {"architecture": "amd64", "bootID": "00000000-0000-4000-8000-000000000000", "containerRuntimeVersion": "containerd://1.6.28",
                "kernelVersion": "5.10.134-16.3.al8.x86_64", "kubeProxyVersion": "v1.34.1", "kubeletVersion": "v1.34.1",
                "machineID": "00000000000000000000000000000000", "operatingSystem": "linux", "osImage": "Alibaba Cloud Linux 3", "systemUUID": "00000000-0000-4000-8000-000000000000"},
            "images": images,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn nodes_are_told_apart_and_as_large_as_real_ones() {
        let all: BTreeSet<_> =
            (0..6000).map(|number| (name(number), subnet(number), instance(number))).collect();
        assert_eq!(all.len(), 6000);
        assert_eq!(subnet(5999), "10.87.111.0/24");
        let node = described(7);
        assert_eq!(node["status"]["images"].as_array().map(Vec::len), Some(50));
        assert!(node.to_string().len() > 12_000, "{}", node.to_string().len());
        assert_eq!(cloud(3, Limits::Vendor)["settings"]["entryDelayMs"], 1000);
    }
}
