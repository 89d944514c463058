//! What the API tells about itself: versions, groups, resources, health.

use serde_json::{Value, json};

use crate::resource::Resource;

/// A document that is no object of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Document {
    /// A JSON document.
    Json(Value),
    /// A word for probes.
    Text(&'static str),
}

pub(crate) fn document(segments: &[&str], version: &str) -> Option<Document> {
    let document = match segments {
        ["healthz" | "livez" | "readyz", ..] => return Some(Document::Text("ok")),
        ["version"] => version_document(version),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group("coordination.k8s.io")]})
        }
        ["apis", name @ "coordination.k8s.io"] => {
            let mut group = group(name);
            if let Some(fields) = group.as_object_mut() {
                fields.insert("kind".to_owned(), "APIGroup".into());
                fields.insert("apiVersion".to_owned(), "v1".into());
            }
            group
        }
        ["api", "v1"] => resources("", "v1"),
        ["apis", name @ "coordination.k8s.io", "v1"] => resources(name, "coordination.k8s.io/v1"),
        ["openapi", "v3"] => json!({"paths": {
            "api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"},
            "apis/coordination.k8s.io/v1": {"serverRelativeURL": "/openapi/v3/apis/coordination.k8s.io/v1"}}}),
        ["openapi", "v3", "api", "v1"] => open_api(""),
        ["openapi", "v3", "apis", name @ "coordination.k8s.io", "v1"] => open_api(name),
        _ => return None,
    };
    Some(Document::Json(document))
}

fn version_document(version: &str) -> Value {
    let mut numbers = version.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next().unwrap_or_default(), "minor": numbers.next().unwrap_or_default(),
        "gitVersion": version, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn group(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn of_group(group: &str) -> impl Iterator<Item = Resource> {
    Resource::ALL.into_iter().filter(move |resource| resource.group() == group)
}

fn resources(group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for resource in of_group(group) {
        list.push(json!({
            "name": resource.plural(), "singularName": resource.singular(), "namespaced": resource.namespaced(),
            "kind": resource.kind(), "shortNames": resource.short_names(),
            "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }));
        if resource.has_status() {
            list.push(json!({
                "name": format!("{}/status", resource.plural()), "singularName": "",
                "namespaced": resource.namespaced(), "kind": resource.kind(), "verbs": ["get", "patch", "update"],
            }));
        }
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list})
}

/// As much of OpenAPI as kubectl looks for before it creates: that the server checks fields by itself.
fn open_api(group: &str) -> Value {
    let mut paths = serde_json::Map::new();
    for resource in of_group(group) {
        let root = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/v1") };
        let namespace = if resource.namespaced() { "/namespaces/{namespace}" } else { "" };
        let operation = json!({
            "responses": {"200": {"description": "OK"}},
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
            "x-kubernetes-group-version-kind": {"group": group, "version": resource.version(), "kind": resource.kind()},
        });
        let path = format!("{root}{namespace}/{}/{{name}}", resource.plural());
        paths.insert(path, json!({"patch": operation, "put": operation}));
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths, "components": {}})
}
