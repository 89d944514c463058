//! The protocol itself, byte by byte: what a client of somebody else's sees.

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::common::{PATIENCE, Server, TOKEN};
use loden_sim_kube::{Config, PatchType, Resource};

struct Answer {
    code: u16,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

async fn send(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may answer and close before it has read a body that it refuses.
    let _refused_early = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _cut = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { code, body: body.to_owned() }
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}\r\n")
}

async fn get(server: &Server, path: &str) -> Answer {
    send(server, "GET", path, &bearer(), b"").await
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let server = Server::start().await;
    for headers in
        ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic YTpi\r\n", "Authorization: Bearer\r\n"]
    {
        let answer = send(&server, "GET", "/api/v1/nodes", headers, b"").await;
        assert_eq!(answer.code, 401);
        let wanted = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "Unauthorized", "reason": "Unauthorized", "code": 401});
        assert_eq!(answer.json(), wanted);
    }
    assert_eq!(get(&server, "/api/v1/nodes").await.code, 200);
}

#[tokio::test]
async fn an_emulator_without_tokens_asks_for_none() {
    let server = Server::start_with(Config::default()).await;
    assert_eq!(send(&server, "GET", "/api/v1/nodes", "", b"").await.code, 200);
}

#[tokio::test]
async fn discovery_tells_what_is_served() {
    let server = Server::start().await;
    assert_eq!(get(&server, "/healthz").await.body, "ok");
    assert_eq!(get(&server, "/version").await.json()["gitVersion"], "v1.34.1");
    assert_eq!(get(&server, "/api").await.json()["versions"], json!(["v1"]));
    assert_eq!(get(&server, "/apis").await.json()["groups"][1]["name"], "coordination.k8s.io");
    let core = get(&server, "/api/v1").await.json();
    let names: Vec<&str> =
        core["resources"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(
        names.contains(&"nodes") && names.contains(&"nodes/status") && names.contains(&"events"),
        "{names:?}"
    );
}

#[tokio::test]
async fn refusals_are_status_objects() {
    let server = Server::start().await;
    server.add_node("a");
    let json = "Content-Type: application/json\r\n";
    let big = vec![b' '; 4 * 1024 * 1024];
    type Case<'a> = (&'a str, &'a str, &'a str, &'a [u8], u16, &'a str);
    let cases: &[Case] = &[
        ("GET", "/api/v1/nodes/none", "", b"", 404, "NotFound"),
        ("GET", "/api/v1/services", "", b"", 404, "NotFound"),
        ("GET", "/nonsense", "", b"", 404, "NotFound"),
        ("GET", "/api/v1/nodes/%ff", "", b"", 400, "BadRequest"),
        ("GET", "/api/v1/nodes?fieldSelector=spec.x%3D1", "", b"", 400, "BadRequest"),
        ("GET", "/api/v1/nodes?resourceVersion=x", "", b"", 400, "BadRequest"),
        ("GET", "/api/v1/nodes?limit=x", "", b"", 400, "BadRequest"),
        ("GET", "/api/v1/nodes?continue=x", "", b"", 400, "BadRequest"),
        ("GET", "/api/v1/nodes?resourceVersion=9999999999999999", "", b"", 504, "Timeout"),
        (
            "GET",
            "/api/v1/nodes",
            "Accept: application/vnd.kubernetes.protobuf\r\n",
            b"",
            406,
            "NotAcceptable",
        ),
        ("POST", "/api/v1/nodes", json, b"{", 400, "BadRequest"),
        ("POST", "/api/v1/nodes", json, b"[]", 400, "BadRequest"),
        (
            "POST",
            "/api/v1/nodes",
            "Content-Type: application/vnd.kubernetes.protobuf\r\n",
            b"k8s",
            415,
            "UnsupportedMediaType",
        ),
        (
            "POST",
            "/api/v1/namespaces",
            "Content-Type: application/vnd.kubernetes.protobuf\r\n",
            b"k8s",
            400,
            "BadRequest",
        ),
        ("POST", "/api/v1/nodes", json, b"{\"metadata\":{\"name\":\"a\"}}", 409, "AlreadyExists"),
        ("POST", "/api/v1/nodes", json, b"{\"metadata\":{\"name\":\"B!\"}}", 422, "Invalid"),
        ("POST", "/api/v1/nodes", json, &big, 413, "RequestEntityTooLarge"),
        ("POST", "/api/v1/nodes/a", json, b"{}", 405, "MethodNotAllowed"),
        ("POST", "/api/v1/pods", json, b"{}", 405, "MethodNotAllowed"),
        ("BREW", "/api/v1/nodes", "", b"", 405, "MethodNotAllowed"),
        ("POST", "/version", "", b"", 405, "MethodNotAllowed"),
        (
            "PATCH",
            "/api/v1/nodes/a",
            "Content-Type: application/apply-patch+yaml\r\n",
            b"a: b",
            422,
            "Invalid",
        ),
        (
            "PATCH",
            "/api/v1/nodes/a?fieldManager=m",
            "Content-Type: application/apply-patch+yaml\r\n",
            b"a: b",
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            "/api/v1/nodes/a",
            "Content-Type: application/cbor\r\n",
            b"{}",
            415,
            "UnsupportedMediaType",
        ),
        (
            "PATCH",
            "/api/v1/nodes/a",
            "Content-Type: application/merge-patch+json\r\n",
            b"nonsense",
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            "/api/v1/nodes/a",
            "Content-Type: application/merge-patch+json\r\n",
            b"{\"metadata\":{\"name\":\"b\"}}",
            422,
            "Invalid",
        ),
        ("PUT", "/api/v1/nodes/a?dryRun=Some", json, b"{}", 422, "Invalid"),
        ("DELETE", "/api/v1/nodes/a", json, b"{\"preconditions\":{\"uid\":\"x\"}}", 409, "Conflict"),
    ];
    for (method, path, headers, body, code, reason) in cases {
        let answer = send(&server, method, path, &format!("{}{headers}", bearer()), body).await;
        let status = answer.json();
        assert_eq!((answer.code, &status["kind"]), (*code, &json!("Status")), "{method} {path}: {status}");
        assert_eq!(
            (&status["code"], &status["reason"]),
            (&json!(code), &json!(reason)),
            "{method} {path}: {status}"
        );
    }
    assert_eq!(server.handle().list(Resource::Nodes, None).len(), 1, "nothing of this changed anything");
}

#[tokio::test]
async fn the_words_of_the_real_server() {
    let server = Server::start().await;
    server.add_node("a");
    assert_eq!(get(&server, "/api/v1/nodes/x").await.json()["message"], "nodes \"x\" not found");
    let lease = get(&server, "/apis/coordination.k8s.io/v1/namespaces/default/leases/x").await.json();
    assert_eq!(lease["message"], "leases.coordination.k8s.io \"x\" not found");
    assert_eq!(lease["details"], json!({"name": "x", "group": "coordination.k8s.io", "kind": "leases"}));
    let body = b"{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"1\"}}";
    let stale = send(&server, "PUT", "/api/v1/nodes/a", &bearer(), body).await.json();
    assert_eq!(
        stale["message"],
        "Operation cannot be fulfilled on nodes \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let deleted = send(&server, "DELETE", "/api/v1/nodes/a", &bearer(), b"").await.json();
    assert_eq!((&deleted["status"], &deleted["details"]["name"]), (&json!("Success"), &json!("a")));
}

#[tokio::test]
async fn lists_come_in_pages() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.add_node(name);
    }
    let first = get(&server, "/api/v1/nodes?limit=2").await.json();
    assert_eq!(
        (first["items"].as_array().unwrap().len(), &first["metadata"]["remainingItemCount"]),
        (2, &json!(1))
    );
    assert_eq!(first["kind"], "NodeList");
    let token = first["metadata"]["continue"].as_str().unwrap();
    server.handle().delete(Resource::Nodes, "", "c").unwrap();
    let path = format!("/api/v1/nodes?limit=2&continue={token}");
    let second = get(&server, &path).await.json();
    assert_eq!(second["items"][0]["metadata"]["name"], "c", "the second page is of the first page's moment");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    server.handle().compact();
    let expired = get(&server, &path).await;
    assert_eq!((expired.code, &expired.json()["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn other_shapes_are_served() {
    let server = Server::start().await;
    server.add_node("a");
    let headers =
        format!("{}Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json\r\n", bearer());
    let table = send(&server, "GET", "/api/v1/nodes", &headers, b"").await.json();
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    let headers =
        format!("{}Accept: application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1\r\n", bearer());
    let list = send(&server, "GET", "/api/v1/nodes", &headers, b"").await.json();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(
        list["items"][0].as_object().unwrap().keys().collect::<Vec<_>>(),
        ["apiVersion", "kind", "metadata"]
    );
}

/// A watch, line by line.
struct Lines(BufReader<TcpStream>);

impl Lines {
    async fn open(server: &Server, query: &str) -> Self {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("GET /api/v1/nodes?watch=1{query} HTTP/1.1\r\nHost: x\r\n{}\r\n", bearer());
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = Self(BufReader::new(stream));
        assert!(lines.line().await.unwrap().starts_with("HTTP/1.1 200"));
        while lines.line().await.is_some_and(|line| !line.is_empty()) {}
        lines
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await.unwrap();
        matches!(read, Ok(length) if length > 0).then(|| line.trim_end().to_owned())
    }

    /// The next event; `None` at the end of the stream.
    async fn event(&mut self) -> Option<(String, Value)> {
        loop {
            // Between the events are the sizes of the chunks.
            let line = self.line().await?;
            if line == "0" {
                return None;
            }
            if let Ok(Value::Object(event)) = serde_json::from_str(&line) {
                let kind = event["type"].as_str().unwrap().to_owned();
                return Some((kind, event["object"].clone()));
            }
        }
    }

    async fn name(&mut self) -> (String, String) {
        let (kind, object) = self.event().await.unwrap();
        (kind, object["metadata"]["name"].as_str().unwrap_or_default().to_owned())
    }
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    let server = Server::start().await;
    server.add_node("a");
    let mut lines = Lines::open(
        &server,
        "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=1",
    )
    .await;
    assert_eq!(lines.name().await, pair("ADDED", "a"));
    let (kind, mark) = lines.event().await.unwrap();
    assert_eq!(
        (kind.as_str(), &mark["metadata"]["annotations"]["k8s.io/initial-events-end"]),
        ("BOOKMARK", &json!("true"))
    );
    server.add_node("b");
    assert_eq!(lines.name().await, pair("ADDED", "b"));
}

#[tokio::test]
async fn a_watch_from_a_version_shows_what_came_after() {
    let server = Server::start().await;
    server.add_node("a");
    let version = server.handle().revision();
    server.add_node("b");
    server.handle().delete(Resource::Nodes, "", "a").unwrap();
    let mut lines = Lines::open(&server, &format!("&resourceVersion={version}")).await;
    assert_eq!(lines.name().await, pair("ADDED", "b"));
    let (kind, object) = lines.event().await.unwrap();
    assert_eq!((kind.as_str(), &object["metadata"]["name"]), ("DELETED", &json!("a")));
    assert_eq!(object["metadata"]["resourceVersion"], server.handle().revision().to_string());
}

#[tokio::test]
async fn an_object_that_leaves_the_selection_is_deleted_for_the_watch() {
    let server = Server::start().await;
    let mut lines = Lines::open(&server, "&labelSelector=zone%3Da").await;
    server
        .handle()
        .create(Resource::Nodes, "", json!({"metadata": {"name": "n", "labels": {"zone": "a"}}}))
        .unwrap();
    assert_eq!(lines.name().await, pair("ADDED", "n"));
    let set = |zone: &str| {
        let change = json!({"metadata": {"labels": {"zone": zone}}});
        server.handle().patch(Resource::Nodes, "", "n", PatchType::Merge, &change).unwrap();
    };
    set("b");
    let (kind, object) = lines.event().await.unwrap();
    assert_eq!((kind.as_str(), &object["metadata"]["labels"]["zone"]), ("DELETED", &json!("a")));
    set("a");
    assert_eq!(lines.name().await, pair("ADDED", "n"));
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_ends_with_an_error_event() {
    let server = Server::start().await;
    let version = server.handle().revision();
    server.add_node("a");
    server.handle().compact();
    let mut lines = Lines::open(&server, &format!("&resourceVersion={version}")).await;
    let (kind, status) = lines.event().await.unwrap();
    assert_eq!(
        (kind.as_str(), &status["code"], &status["reason"]),
        ("ERROR", &json!(410), &json!("Expired"))
    );
    assert!(status["message"].as_str().unwrap().starts_with("too old resource version"));
    assert!(lines.event().await.is_none());
}

#[tokio::test]
async fn a_watch_ends_at_its_time_with_a_last_bookmark() {
    let server = Server::start().await;
    let mut lines = Lines::open(&server, "&timeoutSeconds=1&allowWatchBookmarks=true").await;
    let (kind, mark) = lines.event().await.unwrap();
    assert_eq!((kind.as_str(), &mark["kind"]), ("BOOKMARK", &json!("Node")));
    assert!(lines.event().await.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is sent, a well-formed answer comes, and the emulator lives on.
    #[test]
    fn garbage_gets_a_status(
        requests in prop::collection::vec((
            prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
            prop::sample::select(vec!["/api/v1/nodes", "/api/v1/nodes/a", "/api/v1/nodes/a/status", "/api/v1/namespaces/default/events",
                "/apis/apps/v1/namespaces/default/daemonsets", "/apis/apps/v1/namespaces/default/deployments/d?fieldManager=m",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles", "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
                "/api/v1/namespaces/default/configmaps/c?fieldManager=m&fieldValidation=Strict", "/api/v1/nodes/a?fieldManager=m&force=true",
                "/api/v1/namespaces/default/secrets", "/openapi/v2", "/openapi/v3", "/apis", ""]),
            "[!-~&&[^#\"<>`{}]]{0,12}",
            prop::sample::select(vec!["", "application/json", "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml",
                "application/vnd.kubernetes.protobuf"]),
            prop_oneof![
                "[ -~]{0,40}",
                Just("{\"metadata\":{\"labels\":{\"a\":{\"$patch\":[]}}},\"spec\":{\"taints\":{}}}".to_owned()),
                Just("{\"metadata\":null,\"status\":{\"conditions\":[{\"type\":{}}]},\"spec\":{\"podCIDRs\":[\"/\"]}}".to_owned()),
                Just("[{\"op\":\"remove\",\"path\":\"/metadata\"}]".to_owned()),
                Just("{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"finalizers\":[{}]},\"spec\":{\"taints\":[null]}}".to_owned()),
                Just("{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"data\":{\"a\":null},\"x\":[]}".to_owned()),
                Just("{\"metadata\":{\"name\":\"r\",\"managedFields\":[{\"fieldsV1\":{\"k:\":{}}}]},\"rules\":[null],\"subjects\":[null],\"roleRef\":{}}".to_owned()),
                Just("{\"metadata\":{\"name\":\"d\"},\"spec\":{\"selector\":{},\"template\":{\"spec\":{\"containers\":[null,{\"ports\":[{}],\"env\":[{}]}]}}}}".to_owned()),
                Just("k8s\u{0}\u{12}\u{7f}".to_owned()),
            ],
        ), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::start().await;
            server.add_node("a");
            for (method, path, tail, media_type, body) in requests {
                if tail.contains("watch") { continue }
                let headers = format!("{}Content-Type: {media_type}\r\n", bearer());
                let joint = if path.contains('?') { "&" } else { "/" };
                let path = format!("{path}{joint}{}", tail.trim_start_matches('/'));
                let path = path.trim_end_matches('/');
                let path = if path.is_empty() { "/" } else { path };
                let answer = send(&server, method, path, &headers, body.as_bytes()).await;
                if answer.code >= 400 && !answer.body.is_empty() {
                    let status = answer.json();
                    assert_eq!((&status["kind"], &status["code"]), (&json!("Status"), &json!(answer.code)));
                }
                assert!(answer.code < 500 || answer.code == 504, "{method} {path}: {} {}", answer.code, answer.body);
            }
            assert_eq!(get(&server, "/healthz").await.code, 200);
        });
    }
}
