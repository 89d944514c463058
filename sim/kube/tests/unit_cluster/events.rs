//! Recorded events as a person would find them.

use loden_kube::{EventKind, Regarding};
use loden_sim_kube::{Failure, Resource, Verb};
use serde_json::{Value, json};

use crate::common::{Server, view};

fn events(server: &Server) -> Vec<Value> {
    server.handle().list(Resource::Events, None)
}

#[tokio::test]
async fn an_event_is_found_at_its_node() {
    let server = Server::start().await;
    let uid = server.add_node("a")["metadata"]["uid"].clone();
    let cluster = server.client().await;
    let recorder = cluster.events("loden-controller", "controller-0");
    let node = Regarding::node(&view(&cluster, "a").await);
    recorder.record(node, EventKind::Warning, "RouteQuotaExceeded", "table vtb-1 holds 200 of 200 entries");
    recorder.flush().await;
    let found = events(&server);
    let [event] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(event["metadata"]["namespace"], "default");
    assert_eq!(event["involvedObject"], json!({"apiVersion": "v1", "kind": "Node", "name": "a", "uid": uid}));
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("RouteQuotaExceeded")));
    assert_eq!(event["source"], json!({"component": "loden-controller", "host": "controller-0"}));
    assert_eq!((&event["count"], &event["firstTimestamp"]), (&json!(1), &event["lastTimestamp"]));
    // The query that `kubectl describe node` makes.
    let selector = format!(
        "involvedObject.name=a,involvedObject.kind=Node,involvedObject.uid={}",
        uid.as_str().unwrap()
    );
    assert_eq!(server.handle().select(Resource::Events, "", &selector).unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_event_is_counted_and_another_is_not() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let recorder = cluster.events("flanneld", "a");
    let node = Regarding::node(&view(&cluster, "a").await);
    for _ in 0..3 {
        recorder.record(node.clone(), EventKind::Warning, "PodCidrMissing", "spec.podCIDR is empty");
    }
    recorder.record(node.clone(), EventKind::Normal, "LeaseAcquired", "172.16.0.0/24");
    recorder.flush().await;
    let mut counts: Vec<(String, i64)> = events(&server)
        .iter()
        .map(|event| (event["reason"].as_str().unwrap().to_owned(), event["count"].as_i64().unwrap()))
        .collect();
    counts.sort();
    assert_eq!(counts, [("LeaseAcquired".to_owned(), 1), ("PodCidrMissing".to_owned(), 3)]);
    // The API server forgets events after a while; counting then starts anew.
    for event in events(&server) {
        server
            .handle()
            .delete(Resource::Events, "default", event["metadata"]["name"].as_str().unwrap())
            .unwrap();
    }
    recorder.record(node, EventKind::Warning, "PodCidrMissing", "spec.podCIDR is empty");
    recorder.flush().await;
    assert_eq!(events(&server)[0]["count"], 1);
}

#[tokio::test]
async fn one_noisy_object_has_a_budget_and_does_not_use_up_the_others() {
    let server = Server::start().await;
    server.add_node("noisy");
    server.add_node("quiet");
    let cluster = server.client().await;
    let recorder = cluster.events("flanneld", "noisy");
    let noisy = Regarding::node(&view(&cluster, "noisy").await);
    let quiet = Regarding::node(&view(&cluster, "quiet").await);
    for number in 0..200 {
        recorder.record(noisy.clone(), EventKind::Warning, "Trouble", format!("number {number}"));
    }
    recorder.record(quiet, EventKind::Normal, "Fine", "once");
    recorder.flush().await;
    let of =
        |name: &str| events(&server).iter().filter(|event| event["involvedObject"]["name"] == name).count();
    assert_eq!((of("noisy"), of("quiet")), (25, 1));
}

#[tokio::test]
async fn a_hiccup_of_the_server_costs_no_event_and_a_refusal_stops_nothing() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let recorder = cluster.events("flanneld", "a");
    let node = Regarding::node(&view(&cluster, "a").await);
    server.fail(Verb::Create, Resource::Events, Failure::new(500, "InternalError", "etcd is away"), 2);
    recorder.record(node.clone(), EventKind::Normal, "First", "m");
    recorder.flush().await;
    server.fail(Verb::Create, Resource::Events, Failure::new(403, "Forbidden", "no"), 1);
    recorder.record(node.clone(), EventKind::Normal, "Second", "m");
    recorder.record(node, EventKind::Normal, "Third", "é".repeat(2000));
    recorder.flush().await;
    let found = events(&server);
    let mut reasons: Vec<&str> = found.iter().map(|event| event["reason"].as_str().unwrap()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, ["First", "Third"]);
}
