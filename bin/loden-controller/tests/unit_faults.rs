//! The real controller while the emulated cloud is in trouble: whatever the trouble was, when it ends the cluster gets what it should have.

mod support;

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
