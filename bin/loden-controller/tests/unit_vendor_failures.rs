//! Four failures of the vendor's cloud-controller-manager, as they were seen when it ran against the emulators, and the real controller in the same situations.

mod support;

use std::time::{Duration, Instant};

use serde_json::json;
use support::{Controller, DEADLINE, World, until};

/// The vendor's controller forgets what it made when it stops: the entries of nodes that leave meanwhile stay for ever, and so do their places in the quota.
#[tokio::test]
async fn ten_nodes_that_leave_while_it_is_down_leave_no_entries_behind() {
    let world = World::new(0).await;
    let names: Vec<String> = (1..=14).map(|number| format!("n{number}")).collect();
    let (leaving, staying) = names.split_at(10);
    names.iter().for_each(|name| world.join(name));
    world.put_entry("172.20.99.0/24", "i-n1");
    let controller = world.start(&[]);
    until(&controller, "all are available", || names.iter().all(|name| world.is_available(name))).await;
    assert!(controller.stop().await);
    leaving.iter().for_each(|name| world.leave(name));

    let grace = Duration::from_millis(700);
    let begun = Instant::now();
    let controller = world.start(&["--stale-route-grace-period=700ms"]);
    until(&controller, "the ten are gone", || {
        let (left, early) = (world.entries().len(), begun.elapsed() < grace);
        assert!(left == names.len() + 1 || !early, "{left} entries before the grace was over");
        left == staying.len() + 1
    })
    .await;
    for name in staying {
        assert!(world.entries().iter().any(|line| line.ends_with(&format!("via i-{name}"))), "{name}");
        assert!(world.is_available(name));
    }
    assert!(world.entries().contains(&"172.20.99.0/24 via i-n1".to_owned()), "somebody else's stays");
    assert!(controller.stop().await);
}

/// The vendor's controller compares provider IDs as texts, so an entry of a node with a scheme before its ID is deleted and recreated every period.
#[tokio::test]
async fn an_entry_stays_untouched_however_its_node_spells_its_provider_id() {
    let world = World::new(0).await;
    let spellings = [
        ("n1", "cn-hangzhou.i-n1"),
        ("n2", "alicloud://cn-hangzhou.i-n2"),
        ("n3", "alibabacloud://cn-hangzhou.i-n3"),
    ];
    for (number, (name, spelling)) in spellings.iter().enumerate() {
        world.add_instance(name);
        let pod_cidr = format!("172.20.{number}.0/24");
        world.add_node(name, json!({"providerID": spelling, "podCIDR": pod_cidr, "podCIDRs": [pod_cidr]}));
    }
    // One is there already, as the vendor's controller made it.
    world.put_entry("172.20.1.0/24", "i-n2");
    let controller = world.start(&["--route-reconciliation-period=500ms"]);
    until(&controller, "all are available", || spellings.iter().all(|(name, _)| world.is_available(name)))
        .await;
    let entries = || {
        let snapshot = world.cloud.snapshot();
        let table = snapshot.table(&world.table).map(|table| table.entries.clone()).unwrap_or_default();
        table.iter().map(|entry| (entry.id.clone(), entry.destination)).collect::<Vec<_>>()
    };
    let listings = || world.cloud.calls().get("DescribeRouteEntryList").copied().unwrap_or_default();
    let (writes, before, listed) = (world.cloud_writes(), entries(), listings());
    until(&controller, "it has looked five times more", || listings() >= listed + 5).await;
    assert_eq!((world.cloud_writes(), entries()), (writes, before));
    assert!(spellings.iter().all(|(name, _)| world.is_available(name)));
    assert!(!world.events().iter().any(|(reason, _, _)| reason == "ConflictingRouteRemoved"));
    assert!(controller.stop().await);
}

/// Watches a node until it is available: it must not be called so before its own entry is in force.
async fn available_with_its_entry(world: &World, controller: &Controller, name: &str, entry: &str) {
    let begun = Instant::now();
    let mut told_why = false;
    // The order matters: what is true of the entry after the claim was read may not have been true before.
    while !world.is_available(name) {
        assert!(begun.elapsed() < DEADLINE, "never available\n{}", controller.log());
        told_why |= world.condition(name).is_some_and(|(status, _, message)| {
            status == "True" && message.contains("not yet known to be Available")
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(world.entries().contains(&entry.to_owned()), "{:?}", world.entries());
    assert!(told_why, "the node was told nothing before");
}

/// The vendor's controller takes the refusal of a duplicate for success wherever the entry leads, and calls the node available at once.
#[tokio::test]
async fn a_node_whose_cidr_points_at_another_instance_is_not_available_before_that_is_mended() {
    let world = World::new(300).await;
    world.add_instance("x");
    for (name, pod_cidr, made_by) in [("n1", "172.20.0.0/24", ""), ("n2", "172.20.1.0/24", "loden-c1")] {
        world.add_instance(name);
        let spec = json!({"providerID": format!("cn-hangzhou.i-{name}"), "podCIDR": pod_cidr, "podCIDRs": [pod_cidr]});
        world.add_node(name, spec);
        world.put_named_entry(made_by, pod_cidr, "i-x");
    }
    let controller = world.start(&[]);
    tokio::join!(
        available_with_its_entry(&world, &controller, "n1", "172.20.0.0/24 via i-n1"),
        available_with_its_entry(&world, &controller, "n2", "172.20.1.0/24 via i-n2"),
    );
    until(&controller, "the removal of somebody's entry is told", || {
        world.has_event("ConflictingRouteRemoved", "n1", "172.20.0.0/24 via i-x")
    })
    .await;
    until(&controller, "the change of our own is told", || {
        world.has_event("RouteRepointed", "n2", "points to i-n2 now")
    })
    .await;
    assert_eq!(world.entries(), ["172.20.0.0/24 via i-n1", "172.20.1.0/24 via i-n2"]);
    assert!(controller.stop().await);
}

/// The vendor's controller tries for ever and says nothing on the node that waits.
#[tokio::test]
async fn nodes_beyond_the_quota_are_told_so_by_condition_and_event_until_it_is_raised() {
    let world = World::new(20).await;
    world.cloud.set_quota(&world.table, 5).unwrap();
    let names: Vec<String> = (1..=8).map(|n| format!("n{n}")).collect();
    for name in &names {
        world.join(name);
    }
    let controller = world.start(&[]);
    let waiting = || {
        let told = |name: &&String| {
            world.condition(name).is_some_and(|(_, reason, _)| reason == "RouteQuotaExceeded")
        };
        names.iter().filter(told).cloned().collect::<Vec<_>>()
    };
    let available = || names.iter().filter(|name| world.is_available(name)).count();
    until(&controller, "five are in and three wait", || available() == 5 && waiting().len() == 3).await;
    let (status, _, message) = world.condition(&waiting()[0]).unwrap();
    assert_eq!(status, "True");
    assert!(message.contains(&format!("route table {} is full", world.table)), "{message}");
    assert!(message.contains("holds 5 custom route entries of a quota of 5"), "{message}");
    until(&controller, "the table is told of", || {
        world.has_event("RouteQuotaExceeded", "loden-controller", &world.table)
    })
    .await;
    until(&controller, "the node is told of", || {
        world.has_event("RouteQuotaExceeded", &waiting()[0], "quota of 5")
    })
    .await;

    world.cloud.set_quota(&world.table, 200).unwrap();
    until(&controller, "all are in without a restart", || available() == 8).await;
    assert_eq!(world.entries().len(), 8);
    assert!(controller.stop().await);
}
