//! What `deploy/` says, held against the programs that it is for.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot read the manifest must say where it failed"
)]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use loden_addr::ClusterInputs;
use loden_cni_protocol::conf::Config;
use loden_cni_protocol::flannel::FlannelConfig;
use loden_lease::{NetConf, SubnetEnv};
use loden_sim_kube::{Permission, Resource, Verb};
use serde_json::{Value, json};
use support::{World, until};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name)
}

fn manifest() -> Vec<Value> {
    let text = std::fs::read_to_string(deploy("loden.yaml")).unwrap();
    serde_saphyr::from_multiple(&text).unwrap()
}

fn object(kind: &str, name: &str) -> Value {
    let mut found = manifest();
    found.retain(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    assert_eq!(found.len(), 1, "{kind} {name}");
    found.remove(0)
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn controller_arguments() -> Vec<String> {
    let pod = &object("Deployment", "loden-controller")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(texts(&container["command"]), ["/opt/bin/loden-controller"]);
    texts(&container["args"])
}

fn argument<'a>(arguments: &'a [String], name: &str) -> &'a str {
    let value = |argument: &'a String| argument.strip_prefix(name)?.strip_prefix('=');
    arguments.iter().find_map(value).unwrap_or_else(|| panic!("no {name} in {arguments:?}"))
}

fn permissions(role: &Value) -> Vec<Permission> {
    let verb = |text: &String| match text.as_str() {
        "get" => Verb::Get,
        "list" => Verb::List,
        "watch" => Verb::Watch,
        "create" => Verb::Create,
        "update" => Verb::Update,
        "patch" => Verb::Patch,
        "delete" => Verb::Delete,
        other => panic!("verb {other}"),
    };
    let rules = role["rules"].as_array().unwrap();
    rules
        .iter()
        .map(|rule| Permission {
            resources: texts(&rule["resources"]),
            verbs: texts(&rule["verbs"]).iter().map(verb).collect(),
        })
        .collect()
}

#[test]
fn the_embedded_configurations_are_read_by_the_programs_they_are_for() {
    let data = object("ConfigMap", "kube-flannel-cfg")["data"].clone();
    let net_conf = NetConf::parse("net-conf.json", data["net-conf.json"].as_str().unwrap()).unwrap();
    assert!(net_conf.enable_nftables, "there is no iptables mode yet");
    assert_eq!(net_conf.backend.kind, "alloc");
    let arguments = controller_arguments();
    assert_eq!(net_conf.network.unwrap().to_string(), argument(&arguments, "--cluster-cidr"));

    let list: Value = serde_json::from_str(data["cni-conf.json"].as_str().unwrap()).unwrap();
    let plugins = list["plugins"].as_array().unwrap();
    let kinds: Vec<&str> = plugins.iter().map(|plugin| plugin["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["flannel", "portmap"]);
    let mut plugin = plugins[0].clone();
    plugin["name"] = list["name"].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    let config = Config::parse(plugin.to_string().as_bytes()).unwrap();
    let env = "FLANNEL_NETWORK=172.20.0.0/16\nFLANNEL_SUBNET=172.20.1.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=true\n";
    let env = SubnetEnv::parse("subnet.env", env).unwrap();
    let delegate = FlannelConfig::parse(&config).unwrap().delegate(&env).unwrap();
    assert_eq!(delegate.kind, "bridge");
}

#[test]
fn the_ranges_are_a_cluster_that_can_be_built() {
    let arguments = controller_arguments();
    let mask: u32 = argument(&arguments, "--node-cidr-mask-size").parse().unwrap();
    let plan = loden_addr::plan(&ClusterInputs {
        vpc_cidrs: vec!["192.168.0.0/16".parse().unwrap()],
        vswitches: vec!["192.168.0.0/24".parse().unwrap()],
        pods_per_node: 1 << (32 - mask),
        pod_cidr: argument(&arguments, "--cluster-cidr").parse().unwrap(),
        service_cidr: argument(&arguments, "--service-cluster-ip-range").parse().unwrap(),
        route_quota: loden_addr::DEFAULT_ROUTE_QUOTA,
        existing_entries: 0,
        public_vpc_ranges: false,
    });
    assert_eq!(plan.map(|plan| plan.node_mask.into()), Ok(mask));
}

/// Node IPAM, routes, conditions, events, leadership, a conflict and a changed instance: all that the controller ever asks for.
#[tokio::test]
async fn the_roles_are_enough_and_the_policy_is_what_is_called() {
    let mut granted = permissions(&object("ClusterRole", "loden-controller"));
    granted.extend(permissions(&object("Role", "loden-controller")));
    let world = World::with_permissions(granted).await;
    world.kube.create(Resource::Namespaces, "", object("Namespace", "kube-flannel")).unwrap();
    world.join("n1");
    world.join("n2");
    world.put_entry("172.20.1.7/32", "i-n1");
    world.add_instance("before");
    world.add_instance("renewed");
    world.put_named_entry("loden-c1", "172.20.9.0/24", "i-before");
    world.add_node("n9", json!({"providerID": "cn-hangzhou.i-renewed", "podCIDR": "172.20.9.0/24"}));
    // A node to initialise, and one to delete.
    world.add_instance("fresh");
    world.add_node(
        "fresh",
        json!({"providerID": "cn-hangzhou.i-fresh", "podCIDR": "172.20.8.0/24", "taints": [
        {"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"}]}),
    );
    world.add_node("lost", json!({"providerID": "cn-hangzhou.i-lost", "podCIDR": "172.20.7.0/24"}));
    world.put_condition("lost", json!({"type": "Ready", "status": "Unknown"}));
    let arguments = controller_arguments();
    let arguments: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        // The test's own surroundings give these.
        .filter(|argument| {
            !argument.starts_with("--cluster-cidr")
                && !argument.starts_with("--health-probe")
                && !argument.starts_with("--metrics-bind")
        })
        .collect();
    let controller = world.start(&arguments);
    until(&controller, "the nodes are available", || world.is_available("n1") && world.is_available("n2"))
        .await;
    world.leave("n1");
    until(&controller, "the conflict is told", || {
        world.events().iter().any(|(reason, _, _)| reason == "ConflictingRouteRemoved")
    })
    .await;
    until(&controller, "the fresh node is initialised", || world.taints("fresh").is_empty()).await;
    until(&controller, "the node without an instance is gone", || world.node("lost").is_none()).await;
    until(&controller, "the entry of the node that left is gone", || world.entries().len() == 3).await;
    until(&controller, "the node's new instance is told", || {
        world.events().iter().any(|(reason, _, _)| reason == "RouteRepointed")
    })
    .await;
    assert!(world.entries().contains(&"172.20.9.0/24 via i-renewed".to_owned()), "{:?}", world.entries());
    let log = controller.log();
    assert!(!log.contains("forbidden"), "{log}");
    assert!(controller.stop().await);

    let policy: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("ram-policy.json")).unwrap()).unwrap();
    let allowed: BTreeSet<String> = texts(&policy["Statement"][0]["Action"])
        .iter()
        .map(|action| action.split_once(':').expect("product:Action").1.to_owned())
        .collect();
    let called: BTreeSet<String> = world.cloud.calls().into_keys().collect();
    assert_eq!(allowed, called);
}

#[test]
fn the_plugins_are_installed_beside_those_of_others() {
    let pod = object("DaemonSet", "kube-flannel-ds")["spec"]["template"]["spec"].clone();
    let script = pod["initContainers"][0]["args"][0].as_str().unwrap().to_owned();
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(root.path().join("loden-cni"), "ours").unwrap();
    std::fs::write(bin.join("bridge"), "theirs").unwrap();
    std::fs::write(bin.join("flannel"), "Go's").unwrap();
    let script = script
        .replace("/opt/cni/bin", &bin.display().to_string())
        .replace("/opt/loden", &root.path().display().to_string());
    for _ in 0..2 {
        let status = Command::new("/bin/sh").args(["-euc", &script]).status().unwrap();
        assert!(status.success());
        for (name, content) in
            [("flannel", "ours"), ("host-local", "ours"), ("portmap", "ours"), ("bridge", "theirs")]
        {
            assert_eq!(std::fs::read_to_string(bin.join(name)).unwrap(), content, "{name}");
        }
        assert_eq!(
            std::fs::read_dir(&bin).unwrap().count(),
            11,
            "ten names, the program, and nothing half-done"
        );
    }
}
