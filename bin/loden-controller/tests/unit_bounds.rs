//! How much the real controller takes away at once, by default and with somebody's consent.

mod support;

use serde_json::json;
use support::{Controller, World, until};

const NODES: usize = 25;

/// Nodes on 172.20.0.0/24 and up, whose pod CIDRs lead to an instance of another cluster's.
async fn taken_over() -> World {
    let world = World::new(0).await;
    world.add_instance("theirs");
    for number in 0..NODES {
        let (name, pod_cidr) = (format!("n{number}"), format!("172.20.{number}.0/24"));
        world.add_instance(&name);
        let spec = json!({"providerID": format!("cn-hangzhou.i-{name}"), "podCIDR": pod_cidr, "podCIDRs": [pod_cidr]});
        world.add_node(&name, spec);
        world.put_named_entry("loden-c2", &pod_cidr, "i-theirs");
    }
    world
}

fn theirs(world: &World) -> usize {
    world.entries().iter().filter(|line| line.ends_with("via i-theirs")).count()
}

/// Nothing more goes while it looks again and again.
async fn rests_at(
    world: &World,
    controller: &Controller,
    what: &str,
    count: impl Fn() -> usize,
    left: usize,
) {
    until(controller, what, || count() <= left).await;
    let listings = || world.cloud.calls().get("DescribeRouteEntryList").copied().unwrap_or_default();
    let listed = listings();
    until(controller, "it has looked three times more", || listings() >= listed + 3).await;
    assert_eq!(count(), left, "{what}");
}

#[tokio::test]
async fn of_another_clusters_entries_on_its_pod_cidrs_a_few_go_and_people_are_told() {
    let world = taken_over().await;
    let controller = world.start(&["--route-reconciliation-period=300ms"]);
    rests_at(&world, &controller, "ten are gone", || theirs(&world), NODES - 10).await;
    until(&controller, "it is told", || {
        world.has_event("ConflictsBounded", "loden-controller", "15 entries of route table")
            && world.has_event("ConflictsBounded", "loden-controller", "via i-theirs named loden-c2")
    })
    .await;
    until(&controller, "a node that waits says why", || {
        world.condition("n24").is_some_and(|(status, reason, message)| {
            status == "True" && reason == "RouteConflict" && message.contains("172.20.24.0/24 via i-theirs")
        })
    })
    .await;
    assert!(controller.stop().await);
}

#[tokio::test]
async fn with_consent_all_of_another_clusters_entries_go_at_once() {
    let world = taken_over().await;
    let controller = world.start(&["--max-conflicting-routes-percent=100"]);
    until(&controller, "all nodes have their own", || {
        theirs(&world) == 0 && (0..NODES).all(|number| world.is_available(&format!("n{number}")))
    })
    .await;
    assert!(!world.events().iter().any(|(reason, _, _)| reason == "ConflictsBounded"));
    assert!(controller.stop().await);
}

#[tokio::test]
async fn consent_lifts_the_bound_on_entries_of_departed_nodes() {
    let stale = |world: &World| world.entries().iter().filter(|line| line.ends_with("via i-gone")).count();
    for (consent, left) in [(None, 20), (Some("--max-stale-routes-percent=100"), 0)] {
        let world = World::new(0).await;
        world.add_instance("gone");
        world.join("n1");
        (100..130).for_each(|n| world.put_named_entry("loden-c1", &format!("172.20.{n}.0/24"), "i-gone"));
        let mut flags = vec!["--route-reconciliation-period=300ms", "--stale-route-grace-period=500ms"];
        flags.extend(consent);
        let controller = world.start(&flags);
        rests_at(&world, &controller, "stale entries are gone", || stale(&world), left).await;
        let told = || world.events().iter().any(|(reason, _, _)| reason == "CollectionBounded");
        if consent.is_none() {
            until(&controller, "the rest is told of", told).await;
        }
        assert_eq!(told(), consent.is_none());
        assert!(controller.stop().await);
    }
}

#[tokio::test]
async fn a_percentage_that_is_none_is_refused() {
    let world = World::new(0).await;
    for flag in ["--max-conflicting-routes-percent=0", "--max-stale-routes-percent=101"] {
        let output = world.run(&[flag]).await;
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("1..=100"), "{output:?}");
    }
}
