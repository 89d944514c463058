//! The operations on each kind: what a client may ask, and with which parameters.

use serde_json::{Map, Value, json};

use super::{Dialect, definition, kind_mark};
use crate::resource::Resource;

/// The parameters of every write.
const WRITING: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];
/// The parameters of a read of many.
const LISTING: [&str; 7] = [
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "watch",
];

pub(super) fn version_2() -> Value {
    let mut paths = Map::new();
    for resource in Resource::ALL {
        add(Dialect::V2, resource, &mut paths);
    }
    Value::Object(paths)
}

pub(super) fn version_3(kinds: &[Resource]) -> Value {
    let mut paths = Map::new();
    for resource in kinds {
        add(Dialect::V3, *resource, &mut paths);
    }
    Value::Object(paths)
}

fn add(dialect: Dialect, resource: Resource, paths: &mut Map<String, Value>) {
    let root = match resource.group() {
        "" => "/api/v1".to_owned(),
        group => format!("/apis/{group}/v1"),
    };
    let home = if resource.namespaced() { format!("{root}/namespaces/{{namespace}}") } else { root };
    let many = format!("{home}/{}", resource.plural());
    let one = format!("{many}/{{name}}");
    let operation = |action: &str, parameters: &[&str]| operation(dialect, resource, action, parameters);
    paths.insert(many, json!({"get": operation("list", &LISTING), "post": operation("post", &WRITING)}));
    let change = || {
        json!({"get": operation("get", &[]), "put": operation("put", &WRITING),
            "patch": operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"])})
    };
    if resource.has_status() {
        paths.insert(format!("{one}/status"), change());
    }
    let mut whole = change();
    if let Some(whole) = whole.as_object_mut() {
        whole.insert("delete".to_owned(), operation("delete", &["dryRun", "propagationPolicy"]));
    }
    paths.insert(one, whole);
}

fn operation(dialect: Dialect, resource: Resource, action: &str, names: &[&str]) -> Value {
    let shown = match action {
        "list" => dialect.reference(&format!("{}List", definition(resource))),
        "delete" => dialect.reference("io.k8s.apimachinery.pkg.apis.meta.v1.Status"),
        _ => dialect.reference(&definition(resource)),
    };
    let parameters: Vec<Value> = names
        .iter()
        .map(|name| match dialect {
            Dialect::V2 => json!({"name": name, "in": "query", "type": "string", "uniqueItems": true}),
            Dialect::V3 => {
                json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}})
            }
        })
        .collect();
    let answer = match dialect {
        Dialect::V2 => json!({"description": "OK", "schema": shown}),
        Dialect::V3 => json!({"description": "OK", "content": {"application/json": {"schema": shown}}}),
    };
    json!({
        "parameters": parameters, "responses": {"200": answer},
        "x-kubernetes-action": action, "x-kubernetes-group-version-kind": kind_mark(resource),
    })
}
