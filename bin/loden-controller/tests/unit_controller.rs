//! The real controller between an emulated cloud and an emulated API server, over real HTTP.

mod support;

use std::time::Duration;

use loden_sim_cloud::topology::{RouteTableSpec, TableKind, VSwitchSpec};
use loden_sim_cloud::{Fault, FaultKind, Topology};
use serde_json::json;
use support::{VPC, World, until};

#[tokio::test]
async fn nodes_join_and_leave() {
    let world = World::new(100).await;
    for name in ["n1", "n2", "n3"] {
        world.join(name);
    }
    let controller = world.start(&[]);
    until(&controller, "all nodes are available", || {
        ["n1", "n2", "n3"].iter().all(|n| world.is_available(n))
    })
    .await;
    assert_eq!(
        world.entries(),
        ["172.20.0.0/24 via i-n1", "172.20.1.0/24 via i-n2", "172.20.2.0/24 via i-n3"]
    );
    assert_eq!(world.pod_cidr("n2").as_deref(), Some("172.20.1.0/24"));
    assert!(!world.check_is_on("i-n1"));
    let entry = world
        .cloud
        .snapshot()
        .table(&world.table)
        .unwrap()
        .entries
        .iter()
        .find(|e| e.name == "loden-c1")
        .cloned();
    assert!(entry.expect("the mark").description.starts_with("loden route, cluster c1, node n"));

    world.join("n4");
    let took = until(&controller, "the new node is available", || world.is_available("n4")).await;
    println!("available {took:?} after the node object appeared; an entry takes 100 ms");
    assert!(world.entries().contains(&"172.20.3.0/24 via i-n4".to_owned()));

    world.leave("n2");
    until(&controller, "its entry is gone", || world.entries().len() == 3).await;
    assert!(!world.entries().iter().any(|line| line.contains("i-n2")));

    world.join("n5");
    until(&controller, "the freed subnet serves the next node", || world.is_available("n5")).await;
    assert_eq!(world.pod_cidr("n5").as_deref(), Some("172.20.1.0/24"));
    assert!(world.entries().contains(&"172.20.1.0/24 via i-n5".to_owned()));
    assert!(controller.stop().await);
}

#[tokio::test]
async fn conflicts_go_with_an_event_and_foreign_entries_stay() {
    let world = World::new(50).await;
    world.join("n1");
    world.join("n2");
    world.add_instance("x");
    let foreign = ["10.9.0.0/24", "172.20.0.0/22", "172.20.99.0/24"];
    for destination in foreign {
        world.put_entry(destination, "i-x");
    }
    let controller = world.start(&["--route-reconciliation-period=1s"]);
    until(&controller, "nodes are available", || world.is_available("n1") && world.is_available("n2")).await;

    world.cloud.remove_entry(&world.table, "172.20.0.0/24".parse().unwrap()).unwrap();
    world.put_entry("172.20.0.0/24", "i-x");
    world.put_entry("172.20.1.64/26", "i-x");
    until(&controller, "the tables are right again", || {
        let entries = world.entries();
        entries.contains(&"172.20.0.0/24 via i-n1".to_owned())
            && !entries.iter().any(|e| e.starts_with("172.20.1.64/26"))
    })
    .await;
    until(&controller, "both are told", || {
        world.has_event("ConflictingRouteRemoved", "n1", "172.20.0.0/24 via i-x")
            && world.has_event("ConflictingRouteRemoved", "n2", "172.20.1.64/26 via i-x")
    })
    .await;
    for destination in foreign {
        assert!(world.entries().contains(&format!("{destination} via i-x")), "{destination}");
    }
    until(&controller, "nodes are available again", || world.is_available("n1") && world.is_available("n2"))
        .await;
    assert_eq!(world.entries().len(), 2 + foreign.len());
}

#[tokio::test]
async fn a_restart_writes_nothing() {
    let world = World::new(20).await;
    for name in ["n1", "n2", "n3"] {
        world.join(name);
    }
    let controller = world.start(&[]);
    until(&controller, "nodes are available", || ["n1", "n2", "n3"].iter().all(|n| world.is_available(n)))
        .await;
    assert!(controller.stop().await);

    let (writes, nodes) = (world.cloud_writes(), world.kube.list(loden_sim_kube::Resource::Nodes, None));
    let listings = || world.cloud.calls().get("DescribeRouteEntryList").copied().unwrap_or_default();
    let checks = || world.cloud.calls().get("DescribeNetworkInterfaces").copied().unwrap_or_default();
    let (listed, checked) = (listings(), checks());
    let controller = world.start(&["-v4", "--route-reconciliation-period=1s"]);
    until(&controller, "it has looked at everything twice", || {
        listings() >= listed + 2 && checks() > checked
    })
    .await;
    assert_eq!(world.cloud_writes(), writes);
    assert_eq!(world.kube.list(loden_sim_kube::Resource::Nodes, None), nodes);
    assert!(controller.stop().await);
}

#[tokio::test]
async fn wrong_credentials_end_with_one_clear_error() {
    let mut world = World::new(0).await;
    world.secret = "wrong";
    let output = world.run(&[]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("SignatureDoesNotMatch"), "{text}");
    assert!(text.contains("list the route tables of vpc-loden"), "{text}");
    assert!(!text.contains("wrong\""), "no secret in the log: {text}");
}

#[tokio::test]
async fn bad_input_is_refused_with_what_to_do() {
    let world = World::new(0).await;
    let stranger = format!("--kubeconfig={}", world.stranger());
    for (arguments, code, part) in [
        (&["--kubeconfig=/nonexistent/kubeconfig"][..], 1, "/nonexistent/kubeconfig"),
        (&[stranger.as_str()][..], 1, "nauthorized"),
        (&["--cluster-cidr=172.20.0.0"][..], 2, "--cluster-cidr"),
        (&["--cluster-cidr=172.20.0.0/99"][..], 2, "--cluster-cidr"),
        (&["--node-cidr-mask-size=12"][..], 1, "172.20.0.0/16 has no room for a /12"),
        (&["--node-cidr-mask-size=40"][..], 1, "/40 is no mask"),
        (&["--service-cluster-ip-range=172.20.128.0/20"][..], 1, "overlap"),
        (&["--cluster-cidr=172.20.4.0/24"][..], 1, "172.20.0.0/16 and 172.20.4.0/24, which overlap"),
        (&["--cluster-cidr=fd00::/56", "--node-cidr-mask-size=24"][..], 1, "--node-cidr-mask-size-ipv6"),
        (&["--cluster-cidr=fd00::/56", "--node-cidr-mask-size-ipv6=48"][..], 1, "--node-cidr-mask-size-ipv6"),
        (&["--cluster-cidr=100.64.0.0/16", "--allocate-node-cidrs=false"][..], 1, "takes no route entry"),
        (
            &["--service-cluster-ip-range=172.21.0.1/20"][..],
            1,
            "write 172.21.0.0/20 if that network is meant",
        ),
        (&["--route-reconciliation-period=5"][..], 2, "write a duration as"),
        (&["--cloud-config=/nonexistent/cloud.conf"][..], 1, "/nonexistent/cloud.conf"),
    ] {
        let output = world.run(arguments).await;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
    assert_eq!(world.cloud_writes(), 0);
}

#[tokio::test]
async fn a_pod_cidr_inside_the_vpc_is_refused() {
    let mut topology = Topology::example();
    topology.vpcs[0].cidr = "172.16.0.0/12".parse().unwrap();
    for (index, vswitch) in topology.vpcs[0].vswitches.iter_mut().enumerate() {
        vswitch.cidr = format!("172.31.{index}.0/24").parse().unwrap();
    }
    topology.instances.clear();
    let world = World::with_topology(&topology, 0).await;
    world.join("n1");
    let output = world.run(&["--leader-elect=false"]).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("--cluster-cidr=172.20.0.0/16 lies in the VPC's own range 172.16.0.0/12"),
        "{text}"
    );
    assert!(text.contains("--allocate-node-cidrs=false"), "{text}");
    assert_eq!((world.cloud_writes(), world.pod_cidr("n1")), (0, None));
}

#[tokio::test]
async fn a_vpc_inside_the_pod_cidr_is_told_and_left_out() {
    let mut topology = Topology::example();
    topology.vpcs[0].cidr = "172.20.0.0/17".parse().unwrap();
    for (index, vswitch) in topology.vpcs[0].vswitches.iter_mut().enumerate() {
        vswitch.cidr = format!("172.20.{index}.0/24").parse().unwrap();
    }
    topology.instances.clear();
    let world = World::with_topology(&topology, 0).await;
    world.join("n1");
    let controller = world.start(&[]);
    until(&controller, "the node is available", || world.is_available("n1")).await;
    assert_eq!(world.pod_cidr("n1").as_deref(), Some("172.20.128.0/24"), "outside the VPC's range");
    until(&controller, "the overlap is told", || {
        world.has_event("CIDROverlap", "loden-controller", "172.20.0.0/17")
    })
    .await;
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let world = World::new(0).await;
    world.join("n1");
    world.join("n2");
    world.add_instance("x");
    world.put_entry("172.20.1.7/32", "i-x");
    let before = world.kube.revision();
    let output = world.run(&["--dry-run"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = &world.table;
    for line in [
        "node n1 + podCIDR 172.20.0.0/24".to_owned(),
        "node n2 + podCIDR 172.20.1.0/24".to_owned(),
        format!(
            "{table} - 172.20.1.7/32 via i-x  # conflict: it lies inside pod CIDR 172.20.1.0/24 of node n2"
        ),
        format!("{table} + 172.20.0.0/24 via i-n1  # node n1"),
        format!("{table} + 172.20.1.0/24 via i-n2  # node n2"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in:\n{text}");
    }
    assert!(text.contains("nothing was written"));
    assert_eq!(world.cloud_writes(), 0);
    assert_eq!(world.kube.revision(), before);
}

#[tokio::test]
async fn pod_cidrs_of_another_allocator_are_used_as_they_are() {
    let world = World::new(0).await;
    world.add_instance("n1");
    world.add_node(
        "n1",
        json!({"providerID": "alicloud://cn-hangzhou.i-n1", "podCIDR": "172.20.7.0/25", "podCIDRs": ["172.20.7.0/25"]}),
    );
    world.join("n2");
    let controller = world.start(&["--allocate-node-cidrs=false"]);
    until(&controller, "the node is available", || world.is_available("n1")).await;
    until(&controller, "the other is told", || world.condition("n2").is_some_and(|c| c.1 == "NoPodCIDR"))
        .await;
    assert_eq!(world.entries(), ["172.20.7.0/25 via i-n1"]);
    assert_eq!(world.pod_cidr("n2"), None);
}

#[tokio::test]
async fn a_cluster_without_room_for_a_node_says_so_on_the_node() {
    let world = World::new(0).await;
    for name in ["n1", "n2", "n3"] {
        world.join(name);
    }
    let controller = world.start(&["--node-cidr-mask-size=17"]);
    until(&controller, "two fit", || world.is_available("n1") && world.is_available("n2")).await;
    until(&controller, "the third is told why", || {
        world.has_event("CIDRNotAvailable", "n3", "no free /17 left")
    })
    .await;
    world.leave("n1");
    until(&controller, "it takes the freed room", || world.is_available("n3")).await;
}

#[tokio::test]
async fn several_tables_want_to_be_named() {
    let mut topology = Topology::example();
    topology.instances.clear();
    let vpc = &mut topology.vpcs[0];
    vpc.vswitches.push(VSwitchSpec::new("vsw-two", "cn-hangzhou-i", "192.168.1.0/24".parse().unwrap()));
    let mut second = RouteTableSpec::new("vtb-two", TableKind::Custom);
    second.vswitches.push("vsw-two".to_owned());
    vpc.route_tables.push(second);
    let world = World::with_topology(&topology, 0).await;
    world.join("n1");
    let address = world.cloud.free_address("vsw-two").unwrap();
    world
        .cloud
        .add_instance(&loden_sim_cloud::topology::InstanceSpec::new("i-n2", "vsw-two", address))
        .unwrap();
    world.add_node("n2", json!({"providerID": "cn-hangzhou.i-n2"}));

    let controller = world.start(&[]);
    until(&controller, "the node in the system table's vSwitch is available", || world.is_available("n1"))
        .await;
    until(&controller, "the other knows why it is not", || {
        world
            .condition("n2")
            .is_some_and(|(status, reason, _)| status == "True" && reason == "RouteTableNotServed")
    })
    .await;
    let remedy = format!("--route-table-ids={},vtb-two", world.table);
    until(&controller, "the remedy is told", || {
        world.has_event("MultipleRouteTables", "loden-controller", &remedy)
    })
    .await;
    assert!(world.has_event("MultipleRouteTables", "loden-controller", &format!("vpc id[{VPC}]")));
    assert_eq!(world.entries().len(), 2, "the system table is served for all");
    assert!(world.entries_of("vtb-two").is_empty());
    assert!(controller.stop().await);

    let controller = world.start(&["--route-table-ids=vtb-two"]);
    until(&controller, "both are available", || world.is_available("n1") && world.is_available("n2")).await;
    assert_eq!(world.entries_of("vtb-two").len(), 2);
}

#[tokio::test]
async fn without_cloud_routes_the_cloud_is_not_needed() {
    let mut world = World::new(0).await;
    world.secret = "wrong";
    world.join("n1");
    let controller = world.start(&["--controllers=ipam"]);
    until(&controller, "the node has its subnet", || world.pod_cidr("n1").is_some()).await;
    assert_eq!(world.condition("n1"), None, "the condition belongs to somebody else");
    assert!(world.cloud.calls().is_empty());
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_condition_set_by_hand_is_repaired() {
    let world = World::new(0).await;
    world.join("n1");
    let controller = world.start(&[]);
    until(&controller, "the node is available", || world.is_available("n1")).await;
    world.put_condition(
        "n1",
        json!({"type": "NetworkUnavailable", "status": "True", "reason": "ByHand", "message": "x"}),
    );
    until(&controller, "it is repaired", || world.is_available("n1")).await;
}

#[tokio::test]
async fn the_next_candidate_takes_over_and_only_one_works() {
    let world = World::new(20).await;
    world.join("n1");
    let first = world.start(&[]);
    until(&first, "the first works", || world.is_available("n1")).await;
    let second = world.start(&[]);
    until(&second, "the second waits", || second.log().contains("waiting for leadership")).await;
    assert!(first.stop().await);
    world.join("n2");
    until(&second, "the second works", || world.is_available("n2")).await;
}

#[tokio::test]
async fn throttling_and_lost_answers_only_delay() {
    let world = World::new(20).await;
    for name in ["n1", "n2"] {
        world.join(name);
    }
    let trouble = |action: &str, times, kind| {
        world.cloud.inject(Fault { action: Some(action.to_owned()), times, kind })
    };
    let throttled = FaultKind::Answer {
        status: 400,
        code: "Throttling.User".to_owned(),
        message: "Request was denied due to user flow control.".to_owned(),
        retry_after_s: None,
    };
    trouble("CreateRouteEntries", 1, throttled);
    trouble("CreateRouteEntries", 1, FaultKind::LoseAnswer);
    let controller = world.start(&[]);
    until(&controller, "nodes are available", || world.is_available("n1") && world.is_available("n2")).await;
    assert!(controller.log().contains("Throttling.User"));
    world.kube_cut();
    world.join("n3");
    let taken = until(&controller, "the new node is available", || world.is_available("n3")).await;
    assert!(taken < Duration::from_secs(20));
}
