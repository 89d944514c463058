//! The controller's surroundings on loopback: an emulated cloud, an emulated API server, and the real binary between them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "part of a test, where a surprise is to fail loudly"
)]
#![expect(dead_code, reason = "each test binary uses its own part of the surroundings")]

pub(crate) mod operations;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use loden_sim_cloud::topology::{EntryKind, EntrySpec, InstanceSpec, NextHop, TableKind};
use loden_sim_cloud::{Emulator as CloudEmulator, Handle as Cloud, Settings, Topology};
use loden_sim_kube::{
    Config, Emulator as KubeEmulator, Handle as Kube, PatchType, Permission, Resource, Token,
    write_kubeconfig,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

/// Far more than anything here takes: reached only when something is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const VPC: &str = "vpc-loden";

pub(crate) struct World {
    pub(crate) cloud: Cloud,
    pub(crate) kube: Kube,
    pub(crate) table: String,
    directory: TempDir,
    cloud_address: String,
    metadata_address: String,
    pub(crate) secret: &'static str,
}

pub(crate) struct Controller {
    child: Child,
    log: PathBuf,
}

impl World {
    /// A VPC 192.168.0.0/16 with one vSwitch, entries that take `entry_delay_ms` to come and go, and an empty cluster.
    pub(crate) async fn new(entry_delay_ms: u64) -> Self {
        let mut topology = Topology::example();
        topology.instances.clear();
        Self::with_topology(&topology, entry_delay_ms).await
    }

    pub(crate) async fn with_topology(topology: &Topology, entry_delay_ms: u64) -> Self {
        Self::build(topology, entry_delay_ms, Token::admin("secret")).await
    }

    /// As [`World::new`], with an API server where the controller may do no more than this.
    pub(crate) async fn with_permissions(permissions: Vec<Permission>) -> Self {
        let mut topology = Topology::example();
        topology.instances.clear();
        let token = Token { permissions: Some(permissions), ..Token::admin("secret") };
        Self::build(&topology, 50, token).await
    }

    async fn build(topology: &Topology, entry_delay_ms: u64, token: Token) -> Self {
        let settings = Settings { entry_delay_ms, ..Settings::default() };
        let cloud = CloudEmulator::new(topology, settings).unwrap().handle();
        let api = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let metadata = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cloud_address = api.local_addr().unwrap().to_string();
        let metadata_address = metadata.local_addr().unwrap().to_string();
        let (api_handle, metadata_handle) = (cloud.clone(), cloud.clone());
        tokio::spawn(async move { api_handle.serve_api(api).await });
        tokio::spawn(async move { metadata_handle.serve_metadata(metadata).await });

        let server = KubeEmulator::new(Config { tokens: vec![token], ..Config::default() });
        let kube = server.handle();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { server.serve(listener).await });
        let directory = tempfile::tempdir().unwrap();
        write_kubeconfig(&directory.path().join("kubeconfig"), &url, "secret").unwrap();

        let snapshot = cloud.snapshot();
        let table =
            snapshot.vpcs[0].tables.iter().find(|table| table.kind == TableKind::System).unwrap().id.clone();
        Self { cloud, kube, table, directory, cloud_address, metadata_address, secret: "testsecret" }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let kubeconfig = self.directory.path().join("kubeconfig");
        let mut command = Command::new(env!("CARGO_BIN_EXE_loden-controller"));
        if !arguments.iter().any(|argument| argument.starts_with("--kubeconfig")) {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        command
            .args([
                "--cluster-cidr=172.20.0.0/16",
                "--cluster-id=c1",
                "--region=cn-hangzhou",
                "--vpc-id=vpc-loden",
            ])
            .args(["--health-probe-bind-addr=0", "--leader-elect-retry-period=200ms"])
            .args(if arguments.iter().any(|argument| argument.starts_with("--metrics-bind-addr")) {
                &[][..]
            } else {
                &["--metrics-bind-addr=0"][..]
            })
            .args(arguments)
            .env_clear()
            .env("VPC_ENDPOINT", &self.cloud_address)
            .env("ECS_ENDPOINT", &self.cloud_address)
            .env("STS_ENDPOINT", &self.cloud_address)
            .env("METADATA_ENDPOINT", format!("http://{}", self.metadata_address))
            .env("ALICLOUD_CLIENT_SCHEME", "HTTP")
            .env("ACCESS_KEY_ID", "testid")
            .env("ACCESS_KEY_SECRET", self.secret)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Controller {
        let log = self.directory.path().join(format!("log-{}", self.kube.revision()));
        let file = std::fs::File::create(&log).unwrap();
        let child = self.command(arguments).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Controller { child, log }
    }

    /// Runs to the end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Output {
        tokio::time::timeout(DEADLINE, self.command(arguments).output())
            .await
            .expect("it does not end")
            .unwrap()
    }

    /// A kubeconfig for the same server with another token.
    pub(crate) fn stranger(&self) -> String {
        let known = std::fs::read_to_string(self.directory.path().join("kubeconfig")).unwrap();
        let path = self.directory.path().join("stranger");
        std::fs::write(&path, known.replace("\"secret\"", "\"another\"")).unwrap();
        path.display().to_string()
    }

    /// A node and its instance.
    pub(crate) fn join(&self, name: &str) {
        self.add_instance(name);
        self.add_node(name, json!({"providerID": format!("cn-hangzhou.i-{name}")}));
    }

    pub(crate) fn add_instance(&self, name: &str) {
        let address: Ipv4Addr = self.cloud.free_address("vsw-loden").unwrap();
        self.cloud.add_instance(&InstanceSpec::new(format!("i-{name}"), "vsw-loden", address)).unwrap();
    }

    pub(crate) fn add_node(&self, name: &str, spec: Value) {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec});
        self.kube.create(Resource::Nodes, "", node).unwrap();
    }

    pub(crate) fn leave(&self, name: &str) {
        self.kube.delete(Resource::Nodes, "", name).unwrap();
    }

    /// Cuts every watch, as a restarting API server does.
    pub(crate) fn kube_cut(&self) {
        self.kube.cut_watches();
    }

    pub(crate) fn put_condition(&self, name: &str, condition: Value) {
        let change = json!({"status": {"conditions": [condition]}});
        self.kube.patch_status(Resource::Nodes, "", name, PatchType::Strategic, &change).unwrap();
    }

    pub(crate) fn put_entry(&self, destination: &str, instance: &str) {
        self.put_named_entry("", destination, instance);
    }

    /// `loden-c1` is the mark of the cluster that controllers here serve.
    pub(crate) fn put_named_entry(&self, name: &str, destination: &str, instance: &str) {
        let spec = EntrySpec {
            destination: destination.parse().unwrap(),
            next_hops: vec![NextHop::new("Instance", instance)],
            kind: EntryKind::Custom,
            name: name.to_owned(),
            description: String::new(),
        };
        self.cloud.insert_entry(&self.table, &spec).unwrap();
    }

    /// Custom entries in force, as `destination via instance`.
    pub(crate) fn entries(&self) -> Vec<String> {
        self.entries_of(&self.table)
    }

    pub(crate) fn entries_of(&self, table: &str) -> Vec<String> {
        let snapshot = self.cloud.snapshot();
        let custom = snapshot
            .table(table)
            .unwrap()
            .entries
            .iter()
            .filter(|e| e.kind.as_str() == "Custom" && e.forwards());
        let mut lines: Vec<(ipnet::IpNet, String)> =
            custom.map(|e| (e.destination, format!("{} via {}", e.destination, e.next_hops[0].id))).collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    pub(crate) fn node(&self, name: &str) -> Option<Value> {
        self.kube.get(Resource::Nodes, "", name)
    }

    /// Keys of a node's taints.
    pub(crate) fn taints(&self, name: &str) -> Vec<String> {
        let node = self.node(name).unwrap_or_default();
        let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
        taints.iter().map(|taint| taint["key"].as_str().unwrap().to_owned()).collect()
    }

    /// A node's addresses, as `type address`.
    pub(crate) fn addresses(&self, name: &str) -> Vec<String> {
        let node = self.node(name).unwrap_or_default();
        let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        addresses.iter().map(|one| format!("{} {}", text(&one["type"]), text(&one["address"]))).collect()
    }

    pub(crate) fn label(&self, name: &str, key: &str) -> Option<String> {
        self.node(name)?["metadata"]["labels"][key].as_str().map(str::to_owned)
    }

    pub(crate) fn put_status(&self, name: &str, status: Value) {
        let change = json!({"status": status});
        self.kube.patch_status(Resource::Nodes, "", name, PatchType::Strategic, &change).unwrap();
    }

    pub(crate) fn put_metadata(&self, name: &str, metadata: Value) {
        let change = json!({"metadata": metadata});
        self.kube.patch(Resource::Nodes, "", name, PatchType::Strategic, &change).unwrap();
    }

    pub(crate) fn pod_cidrs(&self, name: &str) -> Vec<String> {
        let node = self.node(name).unwrap_or_default();
        let cidrs = node["spec"]["podCIDRs"].as_array().cloned().unwrap_or_default();
        cidrs.iter().map(|cidr| cidr.as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn pod_cidr(&self, name: &str) -> Option<String> {
        let node = self.kube.get(Resource::Nodes, "", name)?;
        node["spec"]["podCIDR"].as_str().map(str::to_owned)
    }

    /// `(status, reason, message)` of a node's NetworkUnavailable.
    pub(crate) fn condition(&self, name: &str) -> Option<(String, String, String)> {
        let node = self.kube.get(Resource::Nodes, "", name)?;
        let all = node["status"]["conditions"].as_array()?;
        let held = all.iter().find(|condition| condition["type"] == "NetworkUnavailable")?;
        let text = |key: &str| held[key].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    pub(crate) fn is_available(&self, name: &str) -> bool {
        self.condition(name).is_some_and(|(status, _, _)| status == "False")
    }

    /// `(reason, object, message)` of every event.
    pub(crate) fn events(&self) -> Vec<(String, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.kube
            .list(Resource::Events, None)
            .iter()
            .map(|event| {
                (text(&event["reason"]), text(&event["involvedObject"]["name"]), text(&event["message"]))
            })
            .collect()
    }

    pub(crate) fn has_event(&self, reason: &str, object: &str, part: &str) -> bool {
        self.events().iter().any(|(r, o, message)| r == reason && o == object && message.contains(part))
    }

    /// Calls that change the cloud, so far.
    pub(crate) fn cloud_writes(&self) -> u64 {
        let calls = self.cloud.calls();
        calls
            .iter()
            .filter(|(action, _)| ["Create", "Delete", "Modify"].iter().any(|verb| action.starts_with(verb)))
            .map(|(_, count)| count)
            .sum()
    }

    pub(crate) fn check_is_on(&self, instance: &str) -> bool {
        self.cloud.snapshot().instance(instance).unwrap().interfaces[0].source_dest_check
    }
}

impl Controller {
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks it to stop, and tells whether it ended well.
    pub(crate) async fn stop(mut self) -> bool {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        tokio::time::timeout(DEADLINE, self.child.wait()).await.expect("it does not stop").unwrap().success()
    }
}

/// Waits until `holds`, and shows the controller's log when it never does.
pub(crate) async fn until(controller: &Controller, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < DEADLINE, "never: {what}\n{}", controller.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begin.elapsed()
}
