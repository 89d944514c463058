//! The OpenAPI documents: what fields there are, for clients that validate, explain or merge by themselves.
//!
//! All are made from the one table of types ([`crate::schema`]) that the server itself decodes by, so a document cannot
//! promise what the server refuses.

mod paths;
mod protobuf;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::resource::Resource;
use crate::schema::{self, Merge, Record, Type};

/// The media type of version 2 in protobuf. Clients also ask for it with an `@` before its version, which no answer may
/// carry: Go refuses it as no media type.
pub(crate) const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Which version of OpenAPI, and with it where references lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        let place = match self {
            Self::V2 => "definitions",
            Self::V3 => "components/schemas",
        };
        json!({"$ref": format!("#/{place}/{name}")})
    }
}

/// `/openapi/v2`, all groups in one document.
pub(crate) fn version_2(version: &str) -> Value {
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths::version_2(),
        "definitions": schemas(Dialect::V2, &Resource::ALL),
    })
}

/// `/openapi/v2` in protobuf.
pub(crate) fn version_2_protobuf(version: &str) -> Vec<u8> {
    protobuf::encode(&version_2(version))
}

/// `/openapi/v3`: where the documents of each group are.
pub(crate) fn version_3_index() -> Value {
    let mut paths = Map::new();
    let groups = Resource::GROUPS.iter().map(|group| format!("apis/{group}/v1"));
    for place in groups.chain(["api/v1".to_owned()]) {
        let url = format!("/openapi/v3/{place}");
        paths.insert(place, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `/openapi/v3/…`: one group; empty for the core group.
pub(crate) fn version_3(group: &str, version: &str) -> Value {
    let kinds: Vec<Resource> = Resource::ALL.into_iter().filter(|one| one.group() == group).collect();
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": paths::version_3(&kinds),
        "components": {"schemas": schemas(Dialect::V3, &kinds)},
    })
}

/// The name of a kind's definition.
fn definition(resource: Resource) -> String {
    schema::record(resource.kind()).map(Record::full_name).unwrap_or_default()
}

fn kind_mark(resource: Resource) -> Value {
    json!({"group": resource.group(), "version": resource.version(), "kind": resource.kind()})
}

/// The definitions of some kinds and of all that they refer to.
fn schemas(dialect: Dialect, kinds: &[Resource]) -> Value {
    let mut wanted: BTreeSet<&'static str> = BTreeSet::new();
    for kind in kinds {
        gather(kind.kind(), &mut wanted);
    }
    // What a server of any group answers and accepts.
    for common in ["Status", "DeleteOptions"] {
        gather(common, &mut wanted);
    }
    let mut schemas = Map::new();
    for record in wanted.iter().filter_map(|name| schema::record(name)) {
        schemas.insert(record.full_name(), of_record(dialect, record));
    }
    for (name, form) in plain_types(dialect) {
        schemas.insert(name.to_owned(), form);
    }
    for kind in kinds {
        let mark = json!([kind_mark(*kind)]);
        if let Some(schema) = schemas.get_mut(&definition(*kind)).and_then(Value::as_object_mut) {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), mark);
        }
        schemas.insert(format!("{}List", definition(*kind)), of_list(dialect, *kind));
    }
    Value::Object(schemas)
}

fn gather(name: &str, found: &mut BTreeSet<&'static str>) {
    let Some(record) = schema::record(name) else { return };
    if found.insert(record.name) {
        for field in record.fields.values() {
            let mut of = &field.of;
            while let Type::Map { of: inner, .. } | Type::List { of: inner, .. } = of {
                of = inner;
            }
            if let Type::Record(name) = of {
                gather(name, found);
            }
        }
    }
    if name == "ObjectMeta" {
        gather("ListMeta", found);
    }
}

const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// Types with a name of their own that are no records.
fn plain_types(dialect: Dialect) -> [(&'static str, Value); 4] {
    let number_or_text = match dialect {
        Dialect::V2 => json!({"type": "string"}),
        Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
    };
    let int_or_text = match dialect {
        Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
        Dialect::V3 => json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"}),
    };
    [
        (TIME, json!({"type": "string", "format": "date-time"})),
        (MICRO_TIME, json!({"type": "string", "format": "date-time"})),
        (QUANTITY, number_or_text),
        (INT_OR_STRING, int_or_text),
    ]
}

fn of_record(dialect: Dialect, record: &Record) -> Value {
    let mut properties = Map::new();
    for (name, field) in &record.fields {
        let mut property = of_type(dialect, &field.of);
        if let Some(property) = property.as_object_mut() {
            mark_merging(property, name, &field.of);
        }
        properties.insert((*name).to_owned(), property);
    }
    let mut form = json!({"type": "object", "properties": properties});
    let required: Vec<&str> =
        record.fields.iter().filter(|(_, field)| field.required).map(|(name, _)| *name).collect();
    if let Some(form) = form.as_object_mut() {
        if !required.is_empty() {
            form.insert("required".to_owned(), json!(required));
        }
        if record.atomic {
            form.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
    }
    form
}

fn of_type(dialect: Dialect, of: &Type) -> Value {
    match of {
        Type::Text => json!({"type": "string"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Time => dialect.reference(TIME),
        Type::MicroTime => dialect.reference(MICRO_TIME),
        Type::Quantity => dialect.reference(QUANTITY),
        Type::IntOrText => dialect.reference(INT_OR_STRING),
        Type::Any => json!({"type": "object"}),
        Type::Record(name) => match schema::record(name) {
            Some(record) => dialect.reference(&record.full_name()),
            None => json!({"type": "object"}),
        },
        Type::Map { of, .. } => json!({"type": "object", "additionalProperties": of_type(dialect, of)}),
        Type::List { of, .. } => json!({"type": "array", "items": of_type(dialect, of)}),
    }
}

/// What clients that merge by themselves have to know of a field.
fn mark_merging(property: &mut Map<String, Value>, name: &str, of: &Type) {
    let mut mark = |key: &str, value: Value| {
        property.insert(format!("x-kubernetes-{key}"), value);
    };
    // One-of-many types: a patch names what is to stay of the old choice.
    let retains = matches!(name, "volumes" | "resourceClaims" | "strategy");
    match of {
        Type::Map { atomic: true, .. } => mark("map-type", "atomic".into()),
        Type::List { merge: Merge::Atomic, .. } => mark("list-type", "atomic".into()),
        Type::List { merge: Merge::Set, .. } => {
            mark("list-type", "set".into());
            mark("patch-strategy", "merge".into());
        }
        Type::List { merge: Merge::Keyed(keys), .. } => {
            mark("list-type", "map".into());
            mark("list-map-keys", json!(keys));
            mark("patch-strategy", if retains { "merge,retainKeys" } else { "merge" }.into());
            mark("patch-merge-key", keys.first().copied().unwrap_or_default().into());
        }
        Type::Record(_) if retains => mark("patch-strategy", "retainKeys".into()),
        _ => {}
    }
}

fn of_list(dialect: Dialect, kind: Resource) -> Value {
    let metadata = schema::record("ListMeta").map(Record::full_name).unwrap_or_default();
    let mark =
        json!({"group": kind.group(), "version": kind.version(), "kind": format!("{}List", kind.kind())});
    json!({
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": dialect.reference(&metadata),
            "items": {"type": "array", "items": dialect.reference(&definition(kind))},
        },
        "x-kubernetes-group-version-kind": [mark],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                    found.push(reference.to_owned());
                }
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn no_reference_leads_nowhere() {
        let groups = Resource::GROUPS.iter().chain(&[""]).map(|group| version_3(group, "v1.34.1"));
        for document in groups.chain([version_2("v1.34.1")]) {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() > 20);
            for reference in found {
                let pointer = reference.trim_start_matches('#');
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
        }
    }

    #[test]
    fn kinds_and_merge_keys_are_marked() {
        let definitions = &version_2("v1")["definitions"];
        let set = &definitions["io.k8s.api.apps.v1.DaemonSet"];
        let mark = json!([{"group": "apps", "version": "v1", "kind": "DaemonSet"}]);
        assert_eq!(set["x-kubernetes-group-version-kind"], mark);
        assert!(set["properties"]["apiVersion"].is_object());
        let pod = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(pod["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(pod["volumes"]["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(pod["nodeSelector"]["x-kubernetes-map-type"], "atomic");
        assert_eq!(definitions["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
    }
}
