//! Writes and reads of single objects against the emulator.

use std::collections::BTreeMap;

use crate::common::{Server, TOKEN, client, view};
use ipnet::IpNet;
use loden_kube::{Condition, ConditionStatus, Error, PodCidrOutcome};
use loden_sim_kube::{Config, Failure, PatchType, Permission, Resource, Token, Verb};
use serde_json::{Value, json};

fn condition(status: ConditionStatus, reason: &str, message: &str) -> Condition {
    Condition { status, reason: reason.to_owned(), message: message.to_owned() }
}

fn stored_condition(server: &Server, name: &str) -> Value {
    let node = server.node(name);
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == "NetworkUnavailable").unwrap_or_default()
}

fn cidrs(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[tokio::test]
async fn annotations_are_written_and_removed_and_others_stay() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "a", "annotations": {"keep": "1", "drop": "2"}}});
    server.handle().create(Resource::Nodes, "", body).unwrap();
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    let written: BTreeMap<String, Option<String>> = [
        ("flannel.alpha.coreos.com/public-ip".to_owned(), Some("192.168.0.1".to_owned())),
        ("drop".to_owned(), None),
    ]
    .into();
    let after = cluster.annotate_node(&node, &written).await.unwrap();
    assert_eq!(after.annotations.keys().collect::<Vec<_>>(), ["flannel.alpha.coreos.com/public-ip", "keep"]);
    assert_eq!(server.node("a")["metadata"]["annotations"]["keep"], "1");
}

/// What Flannel's own ClusterRole grants must be enough for what flanneld does.
#[tokio::test]
async fn flannels_own_permissions_are_enough() {
    let grant = |resource: &str, verbs: &[Verb]| Permission {
        resources: vec![resource.to_owned()],
        verbs: verbs.to_vec(),
    };
    let flannel = Token {
        token: TOKEN.to_owned(),
        user: "flannel".to_owned(),
        permissions: Some(vec![
            grant("pods", &[Verb::Get]),
            grant("nodes", &[Verb::Get, Verb::List, Verb::Watch]),
            grant("nodes/status", &[Verb::Patch]),
        ]),
    };
    let server = Server::start_with(Config { tokens: vec![flannel], ..Config::default() }).await;
    server.add_node("a");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a"}});
    server.handle().create(Resource::Pods, "default", pod).unwrap();
    let cluster = server.client().await;
    assert_eq!(cluster.node_of_pod("default", "p").await.unwrap().as_deref(), Some("a"));
    let node = view(&cluster, "a").await;
    cluster.annotate_node(&node, &[("x".to_owned(), Some("y".to_owned()))].into()).await.unwrap();
    let up = condition(ConditionStatus::False, "FlannelIsUp", "Flannel is running on this node");
    assert!(cluster.set_network_unavailable(&node, &up).await.unwrap());
    let refused = cluster.set_pod_cidrs(&node, &cidrs(&["10.0.0.0/24"])).await.unwrap_err();
    assert!(matches!(refused, Error::Forbidden { .. }), "{refused}");
    assert!(refused.to_string().contains("cannot patch resource \"nodes\""), "{refused}");
}

#[tokio::test]
async fn the_condition_is_written_only_when_it_differs() {
    let server = Server::start().await;
    server.add_node("a");
    let handle = server.handle();
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    handle.patch_status(Resource::Nodes, "", "a", PatchType::Strategic, &ready).unwrap();
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    let down = condition(ConditionStatus::True, "NoRouteCreated", "no route yet");
    assert!(cluster.set_network_unavailable(&node, &down).await.unwrap());
    assert_eq!(stored_condition(&server, "a")["status"], "True");
    // As if it had been so for long: only a change of the status may move this time.
    let long_ago = json!({"status": {"conditions": [{"type": "NetworkUnavailable", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
    handle.patch_status(Resource::Nodes, "", "a", PatchType::Strategic, &long_ago).unwrap();
    let revision = handle.revision();
    assert!(!cluster.set_network_unavailable(&node, &down).await.unwrap());
    assert_eq!(handle.revision(), revision, "nothing was written");
    let full = condition(ConditionStatus::True, "RouteQuotaExceeded", "table vtb-1 is full");
    assert!(cluster.set_network_unavailable(&node, &full).await.unwrap());
    let stored = stored_condition(&server, "a");
    assert_eq!(
        (&stored["reason"], &stored["lastTransitionTime"]),
        (&json!("RouteQuotaExceeded"), &json!("2020-01-01T00:00:00Z"))
    );
    let up = condition(ConditionStatus::False, "RouteCreated", "there is a route");
    assert!(cluster.set_network_unavailable(&node, &up).await.unwrap());
    let stored = stored_condition(&server, "a");
    assert_eq!(stored["status"], "False");
    assert_ne!(stored["lastTransitionTime"], "2020-01-01T00:00:00Z");
    let conditions = server.node("a")["status"]["conditions"].as_array().map(Vec::len);
    assert_eq!(conditions, Some(2), "the kubelet's condition is still there");
}

#[tokio::test]
async fn lost_races_are_decided_again_but_not_for_ever() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    let conflict = || Failure::conflict(Resource::Nodes, "a", "the object has been modified");
    server.fail(Verb::Patch, Resource::Nodes, conflict(), 3);
    let up = condition(ConditionStatus::False, "RouteCreated", "there is a route");
    assert!(cluster.set_network_unavailable(&node, &up).await.unwrap());
    assert_eq!(stored_condition(&server, "a")["status"], "False");
    server.fail(Verb::Patch, Resource::Nodes, conflict(), 100);
    let down = condition(ConditionStatus::True, "NoRouteCreated", "gone");
    let error = cluster.set_network_unavailable(&node, &down).await.unwrap_err();
    assert!(error.is_conflict() && error.is_transient(), "{error}");
}

#[tokio::test]
async fn writers_in_parallel_all_get_through() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    let taints: Vec<Value> =
        (0..5).map(|number| json!({"key": format!("t{number}"), "effect": "NoSchedule"})).collect();
    let change = json!({"spec": {"taints": taints}});
    server.handle().patch(Resource::Nodes, "", "a", PatchType::Strategic, &change).unwrap();
    let removals = (0..5).map(|number| {
        let (cluster, node) = (cluster.clone(), node.clone());
        async move { cluster.remove_taint(&node, &format!("t{number}")).await }
    });
    for outcome in futures::future::join_all(removals).await {
        assert!(outcome.unwrap());
    }
    assert_eq!(server.node("a")["spec"]["taints"], json!([]), "no removal undid another");
}

#[tokio::test]
async fn pod_cidrs_are_given_once() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    let first = cidrs(&["172.16.0.0/24", "fd00::/64"]);
    assert_eq!(cluster.set_pod_cidrs(&node, &first).await.unwrap(), PodCidrOutcome::Written);
    assert_eq!(server.node("a")["spec"]["podCIDR"], "172.16.0.0/24");
    assert_eq!(cluster.set_pod_cidrs(&node, &first).await.unwrap(), PodCidrOutcome::AlreadySet);
    let other = cluster.set_pod_cidrs(&node, &cidrs(&["172.16.1.0/24"])).await.unwrap();
    assert_eq!(other, PodCidrOutcome::SetToOthers(vec!["172.16.0.0/24".to_owned(), "fd00::/64".to_owned()]));
}

#[tokio::test]
async fn a_provider_id_is_set_once() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    assert!(cluster.set_provider_id(&node, "cn-hangzhou.i-1").await.unwrap());
    assert!(!cluster.set_provider_id(&node, "cn-hangzhou.i-1").await.unwrap());
    let error = cluster.set_provider_id(&node, "cn-hangzhou.i-2").await.unwrap_err();
    assert!(matches!(error, Error::Invalid { code: 422, .. }), "{error}");
    assert!(error.to_string().contains("may not change providerID"), "{error}");
}

#[tokio::test]
async fn a_taint_goes_and_the_others_stay_whole() {
    let server = Server::start().await;
    let body = json!({"metadata": {"name": "a"}, "spec": {"taints": [
        {"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"},
        {"key": "other", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]}});
    server.handle().create(Resource::Nodes, "", body).unwrap();
    let cluster = server.client().await;
    let node = view(&cluster, "a").await;
    assert!(cluster.remove_taint(&node, "node.cloudprovider.kubernetes.io/uninitialized").await.unwrap());
    assert!(!cluster.remove_taint(&node, "node.cloudprovider.kubernetes.io/uninitialized").await.unwrap());
    let rest = json!([{"key": "other", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
    assert_eq!(server.node("a")["spec"]["taints"], rest);
}

#[tokio::test]
async fn a_node_that_was_replaced_is_not_written_to() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let old = view(&cluster, "a").await;
    server.handle().delete(Resource::Nodes, "", "a").unwrap();
    let up = condition(ConditionStatus::False, "RouteCreated", "there is a route");
    assert!(cluster.set_network_unavailable(&old, &up).await.unwrap_err().is_not_found());
    server.add_node("a");
    let revision = server.handle().revision();
    for error in [
        cluster.set_network_unavailable(&old, &up).await.unwrap_err(),
        cluster.set_pod_cidrs(&old, &cidrs(&["10.0.0.0/24"])).await.unwrap_err(),
        cluster.annotate_node(&old, &[("x".to_owned(), Some("y".to_owned()))].into()).await.unwrap_err(),
        cluster.remove_taint(&old, "t").await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::NodeReplaced { .. }), "{error}");
    }
    assert_eq!(server.handle().revision(), revision);
}

#[tokio::test]
async fn other_objects_are_read() {
    let server = Server::start().await;
    let handle = server.handle();
    let map = json!({"metadata": {"name": "kube-flannel-cfg"}, "data": {"net-conf.json": "{}"}});
    handle.create(Resource::ConfigMaps, "kube-system", map).unwrap();
    handle.create(Resource::Pods, "default", json!({"metadata": {"name": "pending"}})).unwrap();
    let cluster = server.client().await;
    let data = cluster.config_map("kube-system", "kube-flannel-cfg").await.unwrap().unwrap();
    assert_eq!(data["net-conf.json"], "{}");
    assert_eq!(cluster.config_map("kube-system", "none").await.unwrap(), None);
    assert_eq!(cluster.node_of_pod("default", "pending").await.unwrap(), None);
    assert_eq!(cluster.node_of_pod("default", "none").await.unwrap(), None);
    assert_eq!(cluster.node("none").await.unwrap(), None);
    assert_eq!(cluster.version().await.unwrap(), "v1.34.1");
    assert!(cluster.node("../configmaps?x").await.unwrap().is_none(), "a name cannot become a path");
}

#[tokio::test]
async fn errors_name_the_operation_the_server_and_the_remedy() {
    let mut server = Server::start().await;
    let url = format!("http://{}", server.address);
    let refused = client(server.address, "wrong").await.version().await.unwrap_err();
    assert!(matches!(refused, Error::Unauthorized { .. }), "{refused}");
    let text = refused.to_string();
    assert!(
        text.contains("read the server's version") && text.contains(&url) && text.contains("token"),
        "{text}"
    );
    let cluster = server.client().await;
    server.stop().await;
    let error = cluster.node("a").await.unwrap_err();
    assert!(error.is_transient());
    let text = error.to_string();
    assert!(text.contains("get node a") && text.contains(&url) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn something_that_is_no_api_server_is_called_so() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let web = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 4096];
            let _request = stream.read(&mut buffer).await;
            let _sent = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")
                .await;
        }
    });
    let error = client(address, "t").await.version().await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    web.abort();
}
