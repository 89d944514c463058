//! Leadership among candidates.

use std::time::Duration;

use loden_kube::{Campaign, Cluster, Error, Leadership, Lost};
use loden_sim_kube::{Config, Failure, PatchType, Permission, Resource, Token, Verb};
use serde_json::{Value, json};

use crate::common::{PATIENCE, Server, TOKEN, wait_until};

/// Times so long that no test could pass by waiting for them.
fn campaign(identity: &str) -> Campaign {
    Campaign {
        lease_duration: PATIENCE * 10,
        renew_deadline: PATIENCE * 5,
        retry_period: Duration::from_millis(20),
        ..Campaign::new("kube-system", "loden-controller", identity)
    }
}

/// A leader that is given up soon after it falls silent.
fn short_campaign(identity: &str) -> Campaign {
    Campaign {
        lease_duration: Duration::from_secs(2),
        renew_deadline: Duration::from_millis(500),
        ..campaign(identity)
    }
}

fn spec(server: &Server) -> Value {
    server.handle().get(Resource::Leases, "kube-system", "loden-controller").unwrap()["spec"].clone()
}

async fn lead(cluster: &Cluster, identity: &str) -> Leadership {
    lead_by(cluster, campaign(identity)).await
}

async fn lead_by(cluster: &Cluster, campaign: Campaign) -> Leadership {
    tokio::time::timeout(PATIENCE, cluster.lead(campaign)).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_customary_times_are_the_default() {
    let default = Campaign::new("kube-system", "x", "me");
    let seconds =
        [default.lease_duration, default.renew_deadline, default.retry_period].map(|time| time.as_secs());
    assert_eq!(seconds, [15, 10, 2]);
}

#[tokio::test]
async fn a_released_lease_is_taken_over_at_once() {
    let server = Server::start().await;
    let cluster = server.client().await;
    let first = lead(&cluster, "first").await;
    assert_eq!(
        (&spec(&server)["holderIdentity"], &spec(&server)["leaseTransitions"]),
        (&json!("first"), &json!(0))
    );
    let second = tokio::spawn({
        let cluster = cluster.clone();
        async move { lead(&cluster, "second").await }
    });
    // The second has looked at least twice and still waits.
    let looked = server.handle().served(Verb::Get, Resource::Leases);
    wait_until("the candidate looks", || server.handle().served(Verb::Get, Resource::Leases) > looked + 40)
        .await;
    assert!(!second.is_finished());
    assert_eq!(spec(&server)["holderIdentity"], "first");
    first.release().await;
    let _second = tokio::time::timeout(PATIENCE, second).await.unwrap().unwrap();
    assert_eq!(
        (&spec(&server)["holderIdentity"], &spec(&server)["leaseTransitions"]),
        (&json!("second"), &json!(1))
    );
}

#[tokio::test]
async fn a_dead_leader_is_followed_after_its_time_and_not_before() {
    let server = Server::start().await;
    let cluster = server.client().await;
    let first = lead_by(&cluster, short_campaign("first")).await;
    let renewed = spec(&server)["renewTime"].clone();
    wait_until("a renewal", || spec(&server)["renewTime"] != renewed).await;
    drop(first);
    let dead = tokio::time::Instant::now();
    let _second = lead_by(&cluster, short_campaign("second")).await;
    assert!(dead.elapsed() >= Duration::from_secs(2), "after {:?}", dead.elapsed());
}

#[tokio::test]
async fn a_lease_taken_by_somebody_else_is_lost() {
    let server = Server::start().await;
    let cluster = server.client().await;
    let mut first = lead(&cluster, "first").await;
    let change = json!({"spec": {"holderIdentity": "thief"}});
    server
        .handle()
        .patch(Resource::Leases, "kube-system", "loden-controller", PatchType::Merge, &change)
        .unwrap();
    let lost = tokio::time::timeout(PATIENCE, first.lost()).await.unwrap();
    assert!(matches!(&lost, Lost::Taken { holder, .. } if holder == "thief"), "{lost}");
}

#[tokio::test]
async fn a_leader_without_a_server_stops_before_another_could_start() {
    let mut server = Server::start().await;
    let cluster = server.client().await;
    let patient = Campaign { lease_duration: PATIENCE, ..short_campaign("first") };
    let mut first = lead_by(&cluster, patient).await;
    server.stop().await;
    let lost = tokio::time::timeout(PATIENCE / 2, first.lost()).await.unwrap();
    assert!(matches!(lost, Lost::Expired { .. }), "{lost}");
    assert!(lost.to_string().contains("kube-system/loden-controller"), "{lost}");
}

#[tokio::test]
async fn short_trouble_costs_no_leadership() {
    let server = Server::start().await;
    let cluster = server.client().await;
    let mut first = lead(&cluster, "first").await;
    let renewed = spec(&server)["renewTime"].clone();
    let failures = [
        Failure::new(500, "InternalError", "etcd is away"),
        Failure::conflict(Resource::Leases, "loden-controller", "the object has been modified"),
    ];
    for failure in failures {
        server.fail(Verb::Update, Resource::Leases, failure, 2);
    }
    wait_until("a renewal", || spec(&server)["renewTime"] != renewed).await;
    let still = tokio::time::timeout(Duration::from_millis(1), first.lost()).await;
    assert!(still.is_err(), "leadership was lost");
}

#[tokio::test]
async fn what_waiting_does_not_cure_is_an_error() {
    let viewer = Token {
        token: TOKEN.to_owned(),
        user: "viewer".to_owned(),
        permissions: Some(vec![Permission { resources: vec!["nodes".to_owned()], verbs: vec![] }]),
    };
    let server = Server::start_with(Config { tokens: vec![viewer], ..Config::default() }).await;
    let error = server.client().await.lead(campaign("me")).await.unwrap_err();
    assert!(matches!(error, Error::Forbidden { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("kube-system/loden-controller") && text.contains("resource \"leases\""), "{text}");
}

#[tokio::test]
async fn among_many_candidates_one_leads_at_a_time() {
    let server = Server::start().await;
    let leading = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let candidates = (0..5).map(|number| {
        let leading = std::sync::Arc::clone(&leading);
        let server = &server;
        async move {
            let cluster = server.client().await;
            let leadership = lead(&cluster, &format!("candidate-{number}")).await;
            let others = leading.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(others, 0, "two lead");
            tokio::task::yield_now().await;
            leading.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            leadership.release().await;
        }
    });
    futures::future::join_all(candidates).await;
    assert_eq!(spec(&server)["leaseTransitions"], 4, "each has led once");
}
