//! The watch of nodes against the emulator: it must show the truth after whatever happens to the conversation.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{PATIENCE, Server, TOKEN, client, nodes_where, wait_until};
use loden_kube::{NodeSelection, NodeWatch, Nodes, WatchOptions};
use loden_sim_kube::{Config, ExpiredWatch, Failure, PatchType, Permission, Resource, Token, Verb};
use serde_json::json;

fn names(nodes: &Nodes) -> Vec<&str> {
    nodes.keys().map(String::as_str).collect()
}

fn label(server: &Server, name: &str, value: &str) {
    let change = json!({"metadata": {"labels": {"mark": value}}});
    server.handle().patch(Resource::Nodes, "", name, PatchType::Merge, &change).unwrap();
}

async fn trouble_where(watch: &mut NodeWatch, wish: impl Fn(Option<String>) -> bool) {
    let waiting = async {
        while !wish(watch.trouble().map(|error| error.to_string())) {
            watch.changed().await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("trouble is still {:?}", watch.trouble());
    }
}

#[tokio::test]
async fn the_snapshot_follows_the_cluster() {
    let server = Server::start().await;
    server.add_node("a");
    let cluster = server.client().await;
    let mut watch = cluster.watch_nodes(WatchOptions::default());
    assert!(watch.snapshot().is_none(), "nothing is known before the first list");
    let nodes = watch.ready().await;
    assert_eq!(names(&nodes), ["a"]);
    server.add_node("b");
    nodes_where(&mut watch, |nodes| nodes.len() == 2).await;
    label(&server, "b", "x");
    nodes_where(&mut watch, |nodes| nodes["b"].labels.get("mark") == Some("x")).await;
    server.handle().delete(Resource::Nodes, "", "a").unwrap();
    nodes_where(&mut watch, |nodes| names(nodes) == ["b"]).await;
    assert!(watch.trouble().is_none());
}

#[tokio::test]
async fn an_empty_cluster_is_known_to_be_empty() {
    let server = Server::start().await;
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    assert!(watch.ready().await.is_empty());
}

#[tokio::test]
async fn heartbeats_change_nothing_that_anybody_sees() {
    let server = Server::start().await;
    server.add_node("a");
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    let before = watch.ready().await;
    for beat in 0..10 {
        let change = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:00:{beat:02}Z")}]}});
        server.handle().patch_status(Resource::Nodes, "", "a", PatchType::Strategic, &change).unwrap();
    }
    server.add_node("b");
    let after = nodes_where(&mut watch, |nodes| nodes.len() == 2).await;
    let beaten = nodes_where(&mut watch, |nodes| nodes["a"].ready.is_some()).await;
    assert!(!Arc::ptr_eq(&before["a"], &after["a"]), "becoming ready was a change");
    for beat in 10..20 {
        let change = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:00:{beat:02}Z")}]}});
        server.handle().patch_status(Resource::Nodes, "", "a", PatchType::Strategic, &change).unwrap();
    }
    server.add_node("c");
    let last = nodes_where(&mut watch, |nodes| nodes.len() == 3).await;
    assert!(Arc::ptr_eq(&beaten["a"], &last["a"]), "heartbeats were no change");
}

#[tokio::test]
async fn one_node_is_watched_by_itself() {
    let server = Server::start().await;
    server.add_node("other");
    let options =
        WatchOptions { selection: NodeSelection::One("mine".to_owned()), ..WatchOptions::default() };
    let mut watch = server.client().await.watch_nodes(options);
    assert!(watch.ready().await.is_empty(), "the node may come later");
    server.add_node("mine");
    label(&server, "other", "x");
    let nodes = nodes_where(&mut watch, |nodes| !nodes.is_empty()).await;
    assert_eq!(names(&nodes), ["mine"]);
    server.handle().delete(Resource::Nodes, "", "mine").unwrap();
    nodes_where(&mut watch, Nodes::is_empty).await;
}

#[tokio::test]
async fn a_cut_watch_goes_on_without_a_new_list() {
    let server = Server::start().await;
    server.add_node("a");
    let handle = server.handle();
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    watch.ready().await;
    for round in 0..3 {
        wait_until("a watch runs", || handle.running_watches() == 1).await;
        handle.cut_watches();
        let mark = round.to_string();
        label(&server, "a", &mark);
        nodes_where(&mut watch, |nodes| nodes["a"].labels.get("mark") == Some(mark.as_str())).await;
    }
    assert_eq!(handle.served(Verb::List, Resource::Nodes), 1);
}

async fn survives_forgetting(expired_watch: ExpiredWatch) {
    let config = Config { tokens: vec![Token::admin(TOKEN)], expired_watch, ..Config::default() };
    let mut server = Server::start_with(config).await;
    for name in ["a", "b", "c"] {
        server.add_node(name);
    }
    let handle = server.handle();
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    watch.ready().await;
    wait_until("a watch runs", || handle.running_watches() == 1).await;
    server.stop().await;
    handle.delete(Resource::Nodes, "", "b").unwrap();
    server.add_node("d");
    label(&server, "a", "x");
    handle.compact();
    server.resume().await;
    let nodes = nodes_where(&mut watch, |nodes| nodes.contains_key("d")).await;
    assert_eq!(names(&nodes), ["a", "c", "d"], "what was deleted in the forgotten time is gone");
    assert_eq!(nodes["a"].labels.get("mark"), Some("x"));
    server.add_node("e");
    nodes_where(&mut watch, |nodes| nodes.contains_key("e")).await;
    assert!(handle.served(Verb::List, Resource::Nodes) >= 2);
}

#[tokio::test]
async fn a_forgotten_version_told_as_an_event_leads_to_a_new_list() {
    survives_forgetting(ExpiredWatch::Event).await;
}

#[tokio::test]
async fn a_forgotten_version_told_as_http_410_leads_to_a_new_list() {
    survives_forgetting(ExpiredWatch::Http).await;
}

#[tokio::test]
async fn bookmarks_keep_a_quiet_watch_from_being_forgotten() {
    let config = Config {
        tokens: vec![Token::admin(TOKEN)],
        history: 8,
        bookmark_interval: Duration::from_millis(5),
        ..Config::default()
    };
    let server = Server::start_with(config).await;
    server.add_node("quiet");
    server.add_node("busy");
    let handle = server.handle();
    let options =
        WatchOptions { selection: NodeSelection::One("quiet".to_owned()), ..WatchOptions::default() };
    let mut watch = server.client().await.watch_nodes(options);
    watch.ready().await;
    wait_until("a watch runs", || handle.running_watches() == 1).await;
    // Far more changes than are remembered, none of them of the watched node.
    for round in 0..50 {
        label(&server, "busy", &round.to_string());
        let sent = handle.bookmarks_sent();
        wait_until("a bookmark", || handle.bookmarks_sent() > sent).await;
    }
    handle.cut_watches();
    label(&server, "quiet", "x");
    nodes_where(&mut watch, |nodes| nodes["quiet"].labels.contains_key("mark")).await;
    assert_eq!(handle.served(Verb::List, Resource::Nodes), 1, "the version was kept fresh");
}

#[tokio::test]
async fn a_server_that_lost_everything_is_believed() {
    let mut first = Server::start().await;
    first.add_node("old");
    let mut watch = first.client().await.watch_nodes(WatchOptions::default());
    watch.ready().await;
    first.stop().await;
    trouble_where(&mut watch, |trouble| {
        trouble.is_some_and(|text| text.contains("no answer from API server"))
    })
    .await;
    assert_eq!(
        names(&watch.snapshot().unwrap()),
        ["old"],
        "the last known state stands while the server is away"
    );
    // Begins at the present time, and so above every version of the first.
    first.emulator =
        loden_sim_kube::Emulator::new(Config { tokens: vec![Token::admin(TOKEN)], ..Config::default() });
    first.add_node("new");
    first.resume().await;
    let nodes = nodes_where(&mut watch, |nodes| nodes.contains_key("new")).await;
    assert_eq!(names(&nodes), ["new"]);
    trouble_where(&mut watch, |trouble| trouble.is_none()).await;
}

#[tokio::test]
async fn a_server_that_comes_later_is_waited_for() {
    let mut server = Server::start().await;
    server.add_node("a");
    server.stop().await;
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    trouble_where(&mut watch, |trouble| trouble.is_some()).await;
    assert!(watch.snapshot().is_none());
    server.resume().await;
    assert_eq!(watch.ready().await.len(), 1);
}

#[tokio::test]
async fn failing_lists_are_repeated_and_never_half_shown() {
    let server = Server::start().await;
    for number in 0..240 {
        server.add_node(&format!("n{number:04}"));
    }
    let gone = Failure::new(410, "Expired", "The provided continue parameter is too old");
    server.fail(Verb::List, Resource::Nodes, gone, 1);
    server.fail(Verb::List, Resource::Nodes, Failure::new(500, "InternalError", "etcd is away"), 2);
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    let nodes = tokio::time::timeout(PATIENCE, watch.ready()).await.unwrap();
    assert_eq!(nodes.len(), 240, "the first snapshot is whole");
    assert_eq!(server.handle().served(Verb::List, Resource::Nodes), 6, "three failures, three pages");
}

#[tokio::test]
async fn a_thousand_nodes_are_followed() {
    let server = Server::start().await;
    for number in 0..1000 {
        server.add_node(&format!("n{number:04}"));
    }
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    assert_eq!(watch.ready().await.len(), 1000);
    for number in 0..1000 {
        let change = json!({"spec": {"podCIDR": format!("10.{}.{}.0/24", number / 256, number % 256)}});
        let name = format!("n{number:04}");
        server.handle().patch(Resource::Nodes, "", &name, PatchType::Strategic, &change).unwrap();
    }
    nodes_where(&mut watch, |nodes| nodes.values().all(|node| node.pod_cidrs.len() == 1)).await;
    for number in 0..1000 {
        server.handle().delete(Resource::Nodes, "", &format!("n{number:04}")).unwrap();
    }
    nodes_where(&mut watch, Nodes::is_empty).await;
    assert_eq!(server.handle().served(Verb::List, Resource::Nodes), 10, "ten pages, once");
}

#[tokio::test]
async fn refused_credentials_and_missing_permissions_are_told() {
    let reader = Token {
        token: "reader".to_owned(),
        user: "system:serviceaccount:kube-flannel:flannel".to_owned(),
        permissions: Some(vec![Permission { resources: vec!["nodes".to_owned()], verbs: vec![Verb::Get] }]),
    };
    let server = Server::start_with(Config { tokens: vec![reader], ..Config::default() }).await;
    let mut watch = client(server.address, "wrong").await.watch_nodes(WatchOptions::default());
    let url = format!("http://{}", server.address);
    let told = url.clone();
    trouble_where(&mut watch, |trouble| {
        trouble.is_some_and(|text| {
            text.contains("cannot list nodes") && text.contains(&told) && text.contains("401")
        })
    })
    .await;
    let mut watch = client(server.address, "reader").await.watch_nodes(WatchOptions::default());
    trouble_where(&mut watch, |trouble| {
        trouble.is_some_and(|text| {
            text.contains(
                "User \"system:serviceaccount:kube-flannel:flannel\" cannot list resource \"nodes\"",
            ) && text.contains(&url)
                && text.contains("ClusterRole")
        })
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_watch_ends_the_conversation() {
    let server = Server::start().await;
    let handle = server.handle();
    let mut watch = server.client().await.watch_nodes(WatchOptions::default());
    watch.ready().await;
    wait_until("a watch runs", || handle.running_watches() == 1).await;
    drop(watch);
    wait_until("no watch runs", || handle.running_watches() == 0).await;
}
