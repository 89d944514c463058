//! Node control, dual-stack subnets and pods that wait: the real controller between an emulated cloud and an emulated API server.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "part of a test, where a surprise is to fail loudly"
)]

mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use loden_sim_cloud::topology::InstanceSpec;
use loden_sim_cloud::{Fault, FaultKind, Topology};
use loden_sim_kube::{PatchType, Resource};
use serde_json::{Value, json};
use support::{World, until};

const TAINT: &str = "node.cloudprovider.kubernetes.io/uninitialized";

fn empty() -> Topology {
    let mut topology = Topology::example();
    topology.instances.clear();
    topology
}

/// The example's VPC with an IPv6 range.
fn dual_stack() -> Topology {
    let mut topology = empty();
    let vpc = &mut topology.vpcs[0];
    vpc.ipv6_cidr = Some("2408:4005::/56".parse().unwrap());
    vpc.vswitches[0].ipv6_cidr = Some("2408:4005::/64".parse().unwrap());
    topology
}

fn taints() -> Value {
    json!([
        {"key": TAINT, "value": "true", "effect": "NoSchedule"},
        {"key": "mine", "effect": "PreferNoSchedule"},
    ])
}

/// A node as kubelet with `--cloud-provider=external` registers it.
fn register(world: &World, name: &str, provider_id: Option<&str>, addresses: Value) {
    let mut spec = json!({"taints": taints()});
    if let Some(id) = provider_id {
        spec["providerID"] = id.into();
    }
    world.add_node(name, spec);
    world.put_status(name, json!({"addresses": addresses}));
}

fn instance(world: &World, id: &str) -> InstanceSpec {
    InstanceSpec::new(id, "vsw-loden", world.cloud.free_address("vsw-loden").unwrap())
}

#[tokio::test]
async fn a_fresh_node_becomes_complete_and_loses_its_taint_last() {
    let world = World::new(200).await;
    let mut spec = instance(&world, "i-n1");
    spec.instance_type = "ecs.c7.xlarge".to_owned();
    spec.charge_type = "PrePaid".to_owned();
    spec.spot_strategy = "SpotAsPriceGo".to_owned();
    spec.tags.insert("ack.alibabacloud.com/nodepool-id".to_owned(), "np-7".to_owned());
    spec.elastic_address = Some(Ipv4Addr::new(47, 1, 2, 3));
    let private = spec.interfaces[0].address;
    world.cloud.add_instance(&spec).unwrap();
    register(&world, "n1", Some("cn-hangzhou.i-n1"), json!([{"type": "Hostname", "address": "n1"}]));
    let controller = world.start(&[]);
    let mut open_too_early = false;
    until(&controller, "the taint is gone", || {
        let open = !world.taints("n1").contains(&TAINT.to_owned());
        open_too_early |= open
            && (world.check_is_on("i-n1")
                || world.condition("n1").is_none()
                || world.addresses("n1").len() < 3);
        open
    })
    .await;
    assert!(!open_too_early, "the taint went before everything was done");
    assert_eq!(world.taints("n1"), ["mine"], "others' taints stay");
    assert_eq!(
        world.addresses("n1"),
        ["ExternalIP 47.1.2.3".to_owned(), format!("InternalIP {private}"), "Hostname n1".to_owned()]
    );
    for (key, value) in [
        ("beta.kubernetes.io/instance-type", "ecs.c7.xlarge"),
        ("node.kubernetes.io/instance-type", "ecs.c7.xlarge"),
        ("failure-domain.beta.kubernetes.io/zone", "cn-hangzhou-h"),
        ("topology.kubernetes.io/zone", "cn-hangzhou-h"),
        ("failure-domain.beta.kubernetes.io/region", "cn-hangzhou"),
        ("topology.kubernetes.io/region", "cn-hangzhou"),
        ("node.alibabacloud.com/nodepool-id", "np-7"),
        ("node.alibabacloud.com/instance-charge-type", "PrePaid"),
        ("node.alibabacloud.com/spot-strategy", "SpotAsPriceGo"),
    ] {
        assert_eq!(world.label("n1", key).as_deref(), Some(value), "{key}");
    }
    until(&controller, "it is told", || world.has_event("NodeInitialized", "n1", "i-n1")).await;
    until(&controller, "the node is available", || world.is_available("n1")).await;
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_node_that_names_no_instance_is_found_by_its_address_or_told() {
    let world = World::new(0).await;
    let spec = instance(&world, "i-n1");
    let address = spec.interfaces[0].address;
    world.cloud.add_instance(&spec).unwrap();
    register(&world, "n1", None, json!([{"type": "InternalIP", "address": address.to_string()}]));
    register(&world, "n2", None, json!([{"type": "InternalIP", "address": "192.168.0.250"}]));
    let controller = world.start(&[]);
    until(&controller, "the node is available", || world.is_available("n1")).await;
    assert_eq!(world.node("n1").unwrap()["spec"]["providerID"], "cn-hangzhou.i-n1");
    until(&controller, "the other is told", || {
        world.has_event(
            "ProviderIDNotFound",
            "n2",
            "no instance of the VPC has the node's address 192.168.0.250",
        )
    })
    .await;
    assert!(world.taints("n2").contains(&TAINT.to_owned()));
    assert!(controller.stop().await);
}

#[tokio::test]
async fn addresses_and_labels_that_others_change_come_back() {
    let world = World::new(0).await;
    world.join("n1");
    let controller = world.start(&["--node-monitor-period=1s"]);
    until(&controller, "the node is told of its instance", || world.addresses("n1").len() == 1).await;
    let right = world.addresses("n1");
    world.put_status(
        "n1",
        json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"$patch": "replace"}]}),
    );
    world.put_metadata("n1", json!({"labels": {"topology.kubernetes.io/zone": "elsewhere", "mine": "kept"}}));
    until(&controller, "both are corrected", || {
        world.addresses("n1") == right
            && world.label("n1", "topology.kubernetes.io/zone").as_deref() == Some("cn-hangzhou-h")
    })
    .await;
    assert_eq!(world.label("n1", "mine").as_deref(), Some("kept"));
    world.cloud.set_elastic_address("i-n1", Some(Ipv4Addr::new(47, 0, 0, 9))).unwrap();
    until(&controller, "a new elastic address is told", || {
        world.addresses("n1").contains(&"ExternalIP 47.0.0.9".to_owned())
    })
    .await;
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_kubelets_own_address_is_the_only_one_and_has_to_be_the_instances() {
    let world = World::new(0).await;
    let mut spec = instance(&world, "i-n1");
    spec.elastic_address = Some(Ipv4Addr::new(47, 1, 2, 3));
    let private = spec.interfaces[0].address;
    world.cloud.add_instance(&spec).unwrap();
    register(&world, "n1", Some("alicloud://cn-hangzhou.i-n1"), json!([]));
    world.put_metadata("n1", json!({"annotations": {"alpha.kubernetes.io/provided-node-ip": "10.0.0.1"}}));
    let controller = world.start(&[]);
    until(&controller, "the mismatch is told", || world.has_event("NodeAddressProblem", "n1", "10.0.0.1"))
        .await;
    assert!(world.taints("n1").contains(&TAINT.to_owned()));
    let annotations = json!({"alpha.kubernetes.io/provided-node-ip": private.to_string()});
    world.put_metadata("n1", json!({"annotations": annotations}));
    until(&controller, "the taint is gone", || world.taints("n1") == ["mine"]).await;
    assert_eq!(world.addresses("n1"), [format!("InternalIP {private}")]);
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_node_goes_with_its_instance_and_only_then() {
    let world = World::new(0).await;
    for name in ["n1", "n2", "n3", "n4"] {
        world.join(name);
    }
    world.put_condition("n4", json!({"type": "Ready", "status": "True"}));
    let controller = world.start(&["--node-monitor-period=1s"]);
    until(&controller, "the nodes are available", || {
        ["n1", "n2", "n3", "n4"].iter().all(|n| world.is_available(n))
    })
    .await;
    // The kubelet of one is silent, the instance of another is gone, and a third lost both.
    world.put_condition("n2", json!({"type": "Ready", "status": "Unknown"}));
    world.cloud.remove_instance("i-n3").unwrap();
    world.cloud.remove_instance("i-n4").unwrap();
    world.put_condition("n3", json!({"type": "Ready", "status": "Unknown"}));
    until(&controller, "the node is deleted", || world.node("n3").is_none()).await;
    until(&controller, "the deletion is told", || world.has_event("DeletingNode", "n3", "i-n3")).await;
    until(&controller, "the contradiction is told", || world.has_event("InstanceNotFound", "n4", "i-n4"))
        .await;
    assert!(world.node("n1").is_some() && world.node("n2").is_some() && world.node("n4").is_some());
    assert!(controller.stop().await);
}

#[tokio::test]
async fn excluded_and_hybrid_nodes_are_not_touched() {
    let world = World::new(0).await;
    world.join("n1");
    register(&world, "hybrid", Some("ack-hybrid://a.b"), json!([]));
    world.add_instance("n2");
    register(&world, "n2", Some("cn-hangzhou.i-n2"), json!([]));
    world.put_metadata("n2", json!({"labels": {"service.alibabacloud.com/exclude-node": "yes"}}));
    let before = [world.node("hybrid"), world.node("n2")];
    let controller = world.start(&["--controllers=node,route"]);
    until(&controller, "the other node is told of its instance", || world.addresses("n1").len() == 1).await;
    assert_eq!([world.node("hybrid"), world.node("n2")], before);
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_dual_stack_node_gets_both_subnets_at_once_and_both_entries() {
    let world = World::with_topology(&dual_stack(), 20).await;
    let mut spec = instance(&world, "i-n1");
    spec.interfaces[0].ipv6 = vec!["2408:4005::7".parse().unwrap()];
    let private = spec.interfaces[0].address;
    world.cloud.add_instance(&spec).unwrap();
    world.add_node("n1", json!({"providerID": "cn-hangzhou.i-n1"}));
    world.join("n2");
    let ranges = [
        "--cluster-cidr=fd00:20::/63",
        "--service-cluster-ip-range=172.21.0.0/20,fd00:21::/112",
        "--node-cidr-mask-size-ipv4=25",
    ];
    let controller = world.start(&ranges);
    until(&controller, "the nodes are available", || world.is_available("n1") && world.is_available("n2"))
        .await;
    assert_eq!(world.pod_cidrs("n1"), ["172.20.0.0/25", "fd00:20::/64"]);
    assert_eq!(world.pod_cidrs("n2"), ["172.20.0.128/25", "fd00:20:0:1::/64"]);
    let entries: BTreeSet<String> = world.entries().into_iter().collect();
    for entry in [
        "172.20.0.0/25 via i-n1",
        "fd00:20::/64 via i-n1",
        "172.20.0.128/25 via i-n2",
        "fd00:20:0:1::/64 via i-n2",
    ] {
        assert!(entries.contains(entry), "{entry} is not in {entries:?}");
    }
    until(&controller, "the IPv6 address is told", || {
        world.addresses("n1") == [format!("InternalIP {private}"), "InternalIP 2408:4005::7".to_owned()]
    })
    .await;
    world.join("n3");
    until(&controller, "who goes without is told why", || {
        world.has_event(
            "CIDRNotAvailable",
            "n3",
            "the pod CIDR fd00:20::/63 has no free /64 left for node n3",
        )
    })
    .await;
    assert!(world.pod_cidrs("n3").is_empty(), "never one family alone");
    world.leave("n1");
    until(&controller, "it takes the freed room", || {
        world.pod_cidrs("n3") == ["172.20.0.0/25", "fd00:20::/64"]
    })
    .await;
    assert!(controller.stop().await);
}

/// Two allocators without leader election: each node's subnet is written once, whoever was first, and the other takes it as it is.
#[tokio::test]
async fn two_controllers_that_allocate_at_once_never_change_what_a_node_has() {
    let world = World::new(0).await;
    let names: Vec<String> = (0..40).map(|number| format!("n{number}")).collect();
    let arguments = ["--leader-elect=false", "--controllers=ipam"];
    for name in &names {
        world.add_node(name, json!({}));
    }
    let first = world.start(&arguments);
    let second = world.start(&arguments);
    let mut seen: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
    until(&first, "every node has its subnet", || {
        for name in &names {
            let cidrs = world.pod_cidrs(name);
            if !cidrs.is_empty() {
                let known = seen.entry(name.clone()).or_insert_with(|| cidrs.clone());
                assert_eq!(*known, cidrs, "{name} was given another subnet");
            }
        }
        seen.len() == names.len()
    })
    .await;
    let different: BTreeSet<&Vec<String>> = seen.values().collect();
    assert_eq!(different.len(), names.len(), "two nodes share a subnet: {seen:?}");
    // Both know it all: the next node gets what is free, from either.
    assert!(first.stop().await);
    world.add_node("next", json!({}));
    until(&second, "the next node has its subnet", || !world.pod_cidrs("next").is_empty()).await;
    assert!(!different.contains(&world.pod_cidrs("next")));
    assert!(second.stop().await);
}

/// A table with room for one entry: the node that a pod waits for gets it.
#[tokio::test]
async fn a_node_that_pods_wait_for_goes_first() {
    let world = World::new(20).await;
    world.cloud.set_quota(&world.table, 1).unwrap();
    for name in ["n1", "n2", "n3"] {
        world.join(name);
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"nodeName": "n3", "containers": [{"name": "c", "image": "i"}]}});
    world.kube.create(Resource::Pods, "default", pod).unwrap();
    let phase = json!({"status": {"phase": "Pending"}});
    world.kube.patch_status(Resource::Pods, "default", "p", PatchType::Strategic, &phase).unwrap();
    // The first listing fails, so that the pods are known when the first entries are planned.
    let kind = FaultKind::Answer {
        status: 400,
        code: "Throttling.User".to_owned(),
        message: "Request was denied due to user flow control.".to_owned(),
        retry_after_s: Some(1),
    };
    world.cloud.inject(Fault { action: Some("DescribeRouteEntryList".to_owned()), times: 1, kind });
    let controller = world.start(&[]);
    until(&controller, "the waiting pod's node has the entry", || world.is_available("n3")).await;
    until(&controller, "the others wait", || {
        let full =
            |name: &str| world.condition(name).is_some_and(|(_, reason, _)| reason == "RouteQuotaExceeded");
        ["n1", "n2"].into_iter().all(full)
    })
    .await;
    assert_eq!(world.entries(), ["172.20.2.0/24 via i-n3"]);
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_dry_run_says_what_node_control_would_do_and_writes_nothing() {
    let world = World::with_topology(&dual_stack(), 0).await;
    let spec = instance(&world, "i-n1");
    let private = spec.interfaces[0].address;
    world.cloud.add_instance(&spec).unwrap();
    register(&world, "n1", None, json!([{"type": "InternalIP", "address": private.to_string()}]));
    world.add_node("n2", json!({"providerID": "cn-hangzhou.i-gone", "podCIDR": "172.20.9.0/24"}));
    world.put_condition("n2", json!({"type": "Ready", "status": "Unknown"}));
    let before = world.kube.revision();
    let output = world.run(&["--dry-run", "--cluster-cidr=fd00:20::/56"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = &world.table;
    for line in [
        "node n1 + podCIDR 172.20.0.0/24,fd00:20::/64".to_owned(),
        "node n1 + providerID cn-hangzhou.i-n1".to_owned(),
        "node n1 + label topology.kubernetes.io/zone=cn-hangzhou-h".to_owned(),
        format!("node n1 - taint {TAINT}"),
        "node n2 - deleted  # its kubelet is silent and instance i-gone is gone".to_owned(),
        format!("{table} + 172.20.0.0/24 via i-n1  # node n1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in:\n{text}");
    }
    assert_eq!((world.cloud_writes(), world.kube.revision()), (0, before));
}
