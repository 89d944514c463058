//! What the API tells about itself: versions, groups, resources, health.

use serde_json::{Value, json};

use crate::openapi;
use crate::resource::Resource;

/// A document that is no object of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Document {
    /// A JSON document.
    Json(Value),
    /// A word for probes.
    Text(&'static str),
    /// An OpenAPI document in protobuf.
    Protobuf(Vec<u8>),
}

/// The document at a path. `accept` is what the client can read; most documents come in one form only.
pub(crate) fn document(segments: &[&str], accept: &str, version: &str) -> Option<Document> {
    let document = match segments {
        ["healthz" | "livez" | "readyz", ..] => return Some(Document::Text("ok")),
        ["version"] => version_document(version),
        ["api"] => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        ["apis"] => {
            let groups: Vec<Value> = Resource::GROUPS.into_iter().map(group).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", name] if Resource::GROUPS.contains(name) => {
            let mut group = group(name);
            if let Some(fields) = group.as_object_mut() {
                fields.insert("kind".to_owned(), "APIGroup".into());
                fields.insert("apiVersion".to_owned(), "v1".into());
            }
            group
        }
        ["api", "v1"] => resources("", "v1"),
        ["apis", name, "v1"] if Resource::GROUPS.contains(name) => resources(name, &format!("{name}/v1")),
        ["openapi", "v2"] if accept.contains("spec.v2") => {
            return Some(Document::Protobuf(openapi::version_2_protobuf(version)));
        }
        ["openapi", "v2"] => openapi::version_2(version),
        ["openapi", "v3"] => openapi::version_3_index(),
        ["openapi", "v3", "api", "v1"] => openapi::version_3("", version),
        ["openapi", "v3", "apis", name, "v1"] if Resource::GROUPS.contains(name) => {
            openapi::version_3(name, version)
        }
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
        let categories: &[&str] = if resource.in_all() { &["all"] } else { &[] };
        list.push(json!({
            "name": resource.plural(), "singularName": resource.singular(), "namespaced": resource.namespaced(),
            "kind": resource.kind(), "shortNames": resource.short_names(), "categories": categories,
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
