//! Tables for people: what `kubectl get` shows.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::resource::Resource;

type Column = (&'static str, &'static str, u8);

fn columns(resource: Resource) -> &'static [Column] {
    match resource {
        Resource::Nodes => &[
            ("Name", "name", 0),
            ("Status", "", 0),
            ("Roles", "", 0),
            ("Age", "", 0),
            ("Version", "", 0),
            ("Internal-IP", "", 1),
            ("External-IP", "", 1),
            ("OS-Image", "", 1),
            ("Kernel-Version", "", 1),
            ("Container-Runtime", "", 1),
            ("Pod-CIDR", "", 1),
        ],
        Resource::Pods => &[
            ("Name", "name", 0),
            ("Ready", "", 0),
            ("Status", "", 0),
            ("Restarts", "", 0),
            ("Age", "", 0),
            ("IP", "", 1),
            ("Node", "", 1),
        ],
        Resource::Events => &[
            ("Last Seen", "", 0),
            ("Type", "", 0),
            ("Reason", "", 0),
            ("Object", "", 0),
            ("Message", "", 0),
            ("Source", "", 1),
            ("Count", "", 1),
            ("Name", "name", 1),
        ],
        Resource::ConfigMaps => &[("Name", "name", 0), ("Data", "", 0), ("Age", "", 0)],
        Resource::Namespaces => &[("Name", "name", 0), ("Status", "", 0), ("Age", "", 0)],
        Resource::Leases => &[("Name", "name", 0), ("Holder", "", 0), ("Age", "", 0)],
    }
}

/// Objects as a `Table` object. `metadata` is that of the list.
pub(crate) fn table<'a>(
    resource: Resource,
    objects: impl Iterator<Item = &'a Value>,
    with_columns: bool,
    metadata: &Value,
) -> Value {
    let now = OffsetDateTime::now_utc();
    let rows: Vec<Value> = objects
        .map(|object| {
            json!({
                "cells": cells(resource, object, now),
                "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": object.get("metadata").cloned().unwrap_or_default()},
            })
        })
        .collect();
    let definitions: Vec<Value> = columns(resource)
        .iter()
        .map(|(name, format, priority)| {
            json!({"name": name, "type": "string", "format": format, "description": "", "priority": priority})
        })
        .collect();
    let definitions = if with_columns { Value::Array(definitions) } else { Value::Null };
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows})
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn cells(resource: Resource, object: &Value, now: OffsetDateTime) -> Vec<Value> {
    let name = text(object, "/metadata/name");
    let age = age(&text(object, "/metadata/creationTimestamp"), now);
    let cells: Vec<String> = match resource {
        Resource::Nodes => {
            let address = |kind: &str| {
                let found = items(object, "/status/addresses").find(|one| text(one, "/type") == kind);
                or_none(found.map(|one| text(one, "/address")).unwrap_or_default())
            };
            let info = |field: &str| {
                let value = text(object, &format!("/status/nodeInfo/{field}"));
                if value.is_empty() { "<unknown>".to_owned() } else { value }
            };
            let cidrs: Vec<&str> = items(object, "/spec/podCIDRs").filter_map(Value::as_str).collect();
            vec![
                name,
                node_status(object),
                node_roles(object),
                age,
                text(object, "/status/nodeInfo/kubeletVersion"),
                address("InternalIP"),
                address("ExternalIP"),
                info("osImage"),
                info("kernelVersion"),
                info("containerRuntimeVersion"),
                or_none(cidrs.join(",")),
            ]
        }
        Resource::Pods => {
            let containers = items(object, "/spec/containers").count();
            let ready = items(object, "/status/containerStatuses")
                .filter(|one| one.get("ready") == Some(&Value::Bool(true)))
                .count();
            let restarts: i64 = items(object, "/status/containerStatuses")
                .filter_map(|one| one.get("restartCount").and_then(Value::as_i64))
                .sum();
            let deleting = object.pointer("/metadata/deletionTimestamp").is_some();
            let phase = if deleting { "Terminating".to_owned() } else { text(object, "/status/phase") };
            vec![
                name,
                format!("{ready}/{containers}"),
                phase,
                restarts.to_string(),
                age,
                or_none(text(object, "/status/podIP")),
                or_none(text(object, "/spec/nodeName")),
            ]
        }
        Resource::Events => {
            let last = ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
                .into_iter()
                .map(|pointer| text(object, pointer))
                .find(|time| !time.is_empty())
                .unwrap_or_default();
            let kind = text(object, "/involvedObject/kind").to_ascii_lowercase();
            vec![
                self::age(&last, now),
                text(object, "/type"),
                text(object, "/reason"),
                format!("{kind}/{}", text(object, "/involvedObject/name")),
                text(object, "/message").trim().to_owned(),
                [text(object, "/source/component"), text(object, "/source/host")].join(", "),
                object.get("count").and_then(Value::as_i64).unwrap_or(1).to_string(),
                name,
            ]
        }
        Resource::ConfigMaps => {
            let count =
                |field: &str| object.get(field).and_then(Value::as_object).map_or(0, serde_json::Map::len);
            vec![name, (count("data") + count("binaryData")).to_string(), age]
        }
        Resource::Namespaces => vec![name, text(object, "/status/phase"), age],
        Resource::Leases => vec![name, text(object, "/spec/holderIdentity"), age],
    };
    cells.into_iter().map(Value::from).collect()
}

fn node_status(object: &Value) -> String {
    let ready = items(object, "/status/conditions").find(|one| text(one, "/type") == "Ready");
    let mut status = match ready.map(|one| text(one, "/status")).as_deref() {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if object.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

fn node_roles(object: &Value) -> String {
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
    let roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .filter(|role| !role.is_empty())
        .collect();
    or_none(roles.join(","))
}

/// How long ago, in one or two units, as kubectl users read it.
fn age(time: &str, now: OffsetDateTime) -> String {
    let Ok(then) = OffsetDateTime::parse(time, &Rfc3339) else { return "<unknown>".to_owned() };
    let seconds = (now - then).whole_seconds().max(0);
    let two = |large: i64, large_unit: char, small: i64, small_unit: char| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_kubectls() {
        let now = OffsetDateTime::parse("2026-01-10T00:00:00Z", &Rfc3339).unwrap();
        for (time, wanted) in [
            ("2026-01-09T23:59:30Z", "30s"),
            ("2026-01-09T23:58:01Z", "119s"),
            ("2026-01-09T23:55:30Z", "4m30s"),
            ("2026-01-09T23:00:00Z", "60m"),
            ("2026-01-09T20:30:00Z", "3h30m"),
            ("2026-01-09T12:00:00Z", "12h"),
            ("2026-01-07T00:00:00Z", "3d"),
            ("2025-12-01T00:00:00Z", "40d"),
            ("2027-01-01T00:00:00Z", "0s"),
            ("", "<unknown>"),
        ] {
            assert_eq!(age(time, now), wanted, "{time}");
        }
    }

    #[test]
    fn every_row_has_a_cell_per_column() {
        for resource in Resource::ALL {
            let table = table(resource, [&json!({"metadata": {"name": "x"}})].into_iter(), true, &json!({}));
            let cells = table["rows"][0]["cells"].as_array().unwrap().len();
            assert_eq!(cells, table["columnDefinitions"].as_array().unwrap().len(), "{resource}");
        }
    }
}
