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
        ],
        Resource::Pods => &[
            ("Name", "name", 0),
            ("Ready", "", 0),
            ("Status", "", 0),
            ("Restarts", "", 0),
            ("Age", "", 0),
            ("IP", "", 1),
            ("Node", "", 1),
            ("Nominated Node", "", 1),
            ("Readiness Gates", "", 1),
        ],
        Resource::Events => &[
            ("Last Seen", "", 0),
            ("Type", "", 0),
            ("Reason", "", 0),
            ("Object", "", 0),
            ("Subobject", "", 1),
            ("Source", "", 1),
            ("Message", "", 0),
            ("First Seen", "", 1),
            ("Count", "", 1),
            ("Name", "name", 1),
        ],
        Resource::ConfigMaps => &[("Name", "name", 0), ("Data", "", 0), ("Age", "", 0)],
        Resource::Namespaces => &[("Name", "name", 0), ("Status", "", 0), ("Age", "", 0)],
        Resource::Leases => &[("Name", "name", 0), ("Holder", "", 0), ("Age", "", 0)],
        Resource::Secrets => &[("Name", "name", 0), ("Type", "", 0), ("Data", "", 0), ("Age", "", 0)],
        Resource::ServiceAccounts => &[("Name", "name", 0), ("Secrets", "", 0), ("Age", "", 0)],
        Resource::DaemonSets => &[
            ("Name", "name", 0),
            ("Desired", "", 0),
            ("Current", "", 0),
            ("Ready", "", 0),
            ("Up-to-date", "", 0),
            ("Available", "", 0),
            ("Node Selector", "", 0),
            ("Age", "", 0),
            ("Containers", "", 1),
            ("Images", "", 1),
            ("Selector", "", 1),
        ],
        Resource::Deployments => &[
            ("Name", "name", 0),
            ("Ready", "", 0),
            ("Up-to-date", "", 0),
            ("Available", "", 0),
            ("Age", "", 0),
            ("Containers", "", 1),
            ("Images", "", 1),
            ("Selector", "", 1),
        ],
        Resource::Roles | Resource::ClusterRoles => &[("Name", "name", 0), ("Created At", "date", 0)],
        Resource::RoleBindings | Resource::ClusterRoleBindings => &[
            ("Name", "name", 0),
            ("Role", "", 0),
            ("Age", "", 0),
            ("Users", "", 1),
            ("Groups", "", 1),
            ("ServiceAccounts", "", 1),
        ],
    }
}

/// How much of the object goes along with its row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Include {
    Nothing,
    #[default]
    Metadata,
    Whole,
}

/// Objects as a `Table` object. `metadata` is that of the list.
pub(crate) fn table<'a>(
    resource: Resource,
    objects: impl Iterator<Item = &'a Value>,
    include: Include,
    with_columns: bool,
    metadata: &Value,
) -> Value {
    let now = OffsetDateTime::now_utc();
    let rows: Vec<Value> = objects
        .map(|object| {
            let shown = match include {
                Include::Nothing => Value::Null,
                Include::Metadata => metadata_only(object),
                Include::Whole => object.clone(),
            };
            json!({"cells": cells(resource, object, now), "object": shown})
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

/// An object without all that its kind adds to any object.
pub(crate) fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_default()})
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
            vec![
                name,
                format!("{ready}/{containers}"),
                pod_status(object),
                restarts.to_string(),
                age,
                or_none(text(object, "/status/podIP")),
                or_none(text(object, "/spec/nodeName")),
                or_none(text(object, "/status/nominatedNodeName")),
                readiness_gates(object),
            ]
        }
        Resource::Events => {
            let moment = |pointers: [&str; 3]| {
                let found =
                    pointers.into_iter().map(|pointer| text(object, pointer)).find(|time| !time.is_empty());
                self::age(&found.unwrap_or_default(), now)
            };
            let kind = text(object, "/involvedObject/kind").to_ascii_lowercase();
            let source = [text(object, "/source/component"), text(object, "/source/host")];
            let source: Vec<String> = source.into_iter().filter(|part| !part.is_empty()).collect();
            let series = object.pointer("/series/count").or_else(|| object.get("count"));
            vec![
                moment(["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]),
                text(object, "/type"),
                text(object, "/reason"),
                format!("{kind}/{}", text(object, "/involvedObject/name")),
                text(object, "/involvedObject/fieldPath"),
                if source.is_empty() { text(object, "/reportingComponent") } else { source.join(", ") },
                text(object, "/message").trim().to_owned(),
                moment(["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"]),
                series.and_then(Value::as_i64).unwrap_or(1).to_string(),
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
        Resource::Secrets => {
            let count = object.get("data").and_then(Value::as_object).map_or(0, serde_json::Map::len);
            vec![name, text(object, "/type"), count.to_string(), age]
        }
        Resource::ServiceAccounts => vec![name, items(object, "/secrets").count().to_string(), age],
        Resource::DaemonSets => {
            let count = |field: &str| number(object, &format!("/status/{field}")).to_string();
            vec![
                name,
                count("desiredNumberScheduled"),
                count("currentNumberScheduled"),
                count("numberReady"),
                count("updatedNumberScheduled"),
                count("numberAvailable"),
                labels(object.pointer("/spec/template/spec/nodeSelector")),
                age,
                of_containers(object, "name"),
                of_containers(object, "image"),
                selector(object),
            ]
        }
        Resource::Deployments => {
            let count = |field: &str| number(object, field).to_string();
            vec![
                name,
                format!("{}/{}", count("/status/readyReplicas"), count("/spec/replicas")),
                count("/status/updatedReplicas"),
                count("/status/availableReplicas"),
                age,
                of_containers(object, "name"),
                of_containers(object, "image"),
                selector(object),
            ]
        }
        Resource::Roles | Resource::ClusterRoles => vec![name, text(object, "/metadata/creationTimestamp")],
        Resource::RoleBindings | Resource::ClusterRoleBindings => {
            let role = format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name"));
            let subjects = |kind: &str| {
                let chosen = items(object, "/subjects").filter(|one| text(one, "/kind") == kind);
                let names: Vec<String> = chosen
                    .map(|one| match text(one, "/namespace").as_str() {
                        "" => text(one, "/name"),
                        namespace => format!("{namespace}/{}", text(one, "/name")),
                    })
                    .collect();
                names.join(", ")
            };
            vec![name, role, age, subjects("User"), subjects("Group"), subjects("ServiceAccount")]
        }
    };
    cells.into_iter().map(Value::from).collect()
}

fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// Labels as a selector would have them.
fn labels(map: Option<&Value>) -> String {
    let map = map.and_then(Value::as_object).into_iter().flatten();
    let pairs: Vec<String> =
        map.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    or_none(pairs.join(","))
}

fn selector(object: &Value) -> String {
    labels(object.pointer("/spec/selector/matchLabels"))
}

fn of_containers(object: &Value, field: &str) -> String {
    let containers = items(object, "/spec/template/spec/containers");
    let texts: Vec<&str> = containers.filter_map(|one| one.get(field)?.as_str()).collect();
    texts.join(",")
}

/// The phase, or what keeps a container from running.
fn pod_status(object: &Value) -> String {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return "Terminating".to_owned();
    }
    let troubles = items(object, "/status/containerStatuses").filter_map(|one| {
        let reason = |state: &str| one.pointer(&format!("/state/{state}/reason")).and_then(Value::as_str);
        reason("waiting").or_else(|| reason("terminated"))
    });
    let own = [text(object, "/status/reason"), text(object, "/status/phase")];
    match troubles.last() {
        Some(trouble) => trouble.to_owned(),
        None => own.into_iter().find(|one| !one.is_empty()).unwrap_or_default(),
    }
}

fn readiness_gates(object: &Value) -> String {
    let mut passed = 0;
    let mut all = 0;
    for gate in items(object, "/spec/readinessGates") {
        all += 1;
        let kind = text(gate, "/conditionType");
        let met = |one: &Value| text(one, "/type") == kind && text(one, "/status") == "True";
        passed += usize::from(items(object, "/status/conditions").any(met));
    }
    if all == 0 { "<none>".to_owned() } else { format!("{passed}/{all}") }
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
            let object = json!({"metadata": {"name": "x"}});
            let table = table(resource, [&object].into_iter(), Include::Metadata, true, &json!({}));
            let cells = table["rows"][0]["cells"].as_array().unwrap().len();
            assert_eq!(cells, table["columnDefinitions"].as_array().unwrap().len(), "{resource}");
        }
    }
}
