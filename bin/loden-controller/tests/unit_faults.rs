//! The real controller while the emulated cloud is in trouble: whatever the trouble was, when it ends the cluster gets what it should have.

mod support;

use std::num::NonZeroU32;

use loden_sim_cloud::topology::{Per, RateLimit};
use loden_sim_cloud::{Fault, FaultKind};
use support::{World, until};

fn answer(status: u16, code: &str, retry_after_s: Option<u64>) -> FaultKind {
    FaultKind::Answer { status, code: code.to_owned(), message: "trouble".to_owned(), retry_after_s }
}

/// Lets a node join and another leave while every matching call runs into `kind`, ends the trouble, and waits for the desired state.
async fn endure(action: Option<&str>, kind: FaultKind) {
    let world = World::new(20).await;
    world.join("n1");
    world.join("n2");
    let controller = world.start(&[]);
    until(&controller, "both are available", || world.is_available("n1") && world.is_available("n2")).await;
    let calls = || world.cloud.calls().values().sum::<u64>();
    let before = calls();
    world.cloud.set_faults(vec![Fault { action: action.map(str::to_owned), times: u32::MAX, kind }]);
    world.leave("n1");
    world.join("n3");
    // The controller works during the trouble, and does not give up. A call that is lost is one that the cloud never counted.
    let failures = || controller.log().matches("a call to the cloud failed").count();
    until(&controller, "it is in trouble", || calls() >= before + 2 || failures() >= 2).await;
    world.cloud.clear_faults();
    until(&controller, "the new node is available", || world.is_available("n3")).await;
    until(&controller, "one entry per node, as desired", || {
        let entries = world.entries();
        entries.len() == 2
            && entries.iter().any(|line| line.ends_with("via i-n2"))
            && entries.iter().any(|line| line.ends_with("via i-n3"))
    })
    .await;
    assert!(world.is_available("n2"));
    assert!(controller.stop().await);
}

#[tokio::test]
async fn throttled() {
    endure(None, answer(400, "Throttling.User", None)).await;
}

#[tokio::test]
async fn throttled_with_a_time_to_come_back() {
    endure(None, answer(429, "Throttling.Api", Some(1))).await;
}

#[tokio::test]
async fn server_errors() {
    endure(None, answer(503, "ServiceUnavailable", None)).await;
}

#[tokio::test]
async fn slow() {
    endure(None, FaultKind::Delay { milliseconds: 700 }).await;
}

#[tokio::test]
async fn calls_lost() {
    endure(None, FaultKind::LoseCall).await;
}

#[tokio::test]
async fn answers_lost() {
    endure(None, FaultKind::LoseAnswer).await;
}

#[tokio::test]
async fn batches_refused_in_part() {
    let kind = FaultKind::Item { destination: None, code: "SystemBusy".to_owned(), message: String::new() };
    endure(None, kind).await;
}

#[tokio::test]
async fn lists_that_lag_behind() {
    endure(Some("DescribeRouteEntryList"), FaultKind::Stale).await;
}

/// Whether every node from the first to the last, and nobody else, has an entry and knows it.
fn all_have_entries(world: &World, nodes: std::ops::RangeInclusive<u32>) -> bool {
    let mut hops: Vec<String> =
        world.entries().iter().filter_map(|line| Some(line.split_once(" via ")?.1.to_owned())).collect();
    hops.sort();
    let mut expected: Vec<String> = nodes.clone().map(|n| format!("i-n{n}")).collect();
    expected.sort();
    hops == expected && nodes.into_iter().all(|n| world.is_available(&format!("n{n}")))
}

#[tokio::test]
async fn lists_that_always_lag() {
    let world = World::new(20).await;
    world.cloud.change_settings(|settings| settings.read_lag_ms = 600);
    world.join("n1");
    world.join("n2");
    let controller = world.start(&[]);
    until(&controller, "the first nodes have entries", || all_have_entries(&world, 1..=2)).await;
    world.leave("n1");
    for n in 3..=6 {
        world.join(&format!("n{n}"));
    }
    until(&controller, "the others have entries, the one that left has none", || {
        all_have_entries(&world, 2..=6)
    })
    .await;
    // What was written and does not show yet is not written again.
    let tried = |action: &str| world.cloud.calls().get(action).copied().unwrap_or_default();
    assert!(tried("CreateRouteEntries") <= 8, "{:?}\n{}", world.cloud.calls(), controller.log());
    assert!(tried("DeleteRouteEntries") <= 4, "{:?}\n{}", world.cloud.calls(), controller.log());
    assert!(controller.stop().await);
}

/// Lets nodes join one by one while each action takes only so many calls. Every one of them gets its entry, and the controller slows down.
async fn rationed(tell_retry_after: bool) {
    const BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(2);
    const PER_MINUTE: NonZeroU32 = NonZeroU32::MIN.saturating_add(119);
    let world = World::new(20).await;
    let limit = RateLimit {
        action: None,
        per: Per::User,
        burst: BURST,
        per_minute: PER_MINUTE,
        status: 400,
        tell_retry_after,
    };
    world.cloud.change_settings(|settings| settings.rate_limits = vec![limit]);
    world.join("n1");
    let controller = world.start(&[]);
    until(&controller, "the first node has an entry", || all_have_entries(&world, 1..=1)).await;
    for n in 2..=10 {
        world.join(&format!("n{n}"));
        let entries = world.entries().len();
        // The next joins as soon as something happened, so that there is always something to do.
        let calls = || world.cloud.calls().values().sum::<u64>();
        let before = calls();
        until(&controller, "something happens", || calls() > before || world.entries().len() > entries).await;
    }
    until(&controller, "every node has an entry", || all_have_entries(&world, 1..=10)).await;
    let refused = world.cloud.throttled().values().sum::<u64>();
    let taken = world.cloud.calls().values().sum::<u64>() - refused;
    // Whoever calls on at full speed is refused far more often than not.
    assert!(refused > 0 && refused <= taken / 2, "{refused} refused, {taken} taken\n{}", controller.log());
    assert!(controller.stop().await);
}

#[tokio::test]
async fn a_cloud_that_takes_few_calls() {
    rationed(false).await;
}

#[tokio::test]
async fn a_cloud_that_takes_few_calls_and_says_when_the_next() {
    rationed(true).await;
}
