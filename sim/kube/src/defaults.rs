//! What the API server fills in where a client left it out.
//!
//! Defaults are what a client sees of its own object right after it wrote it; controllers compare with that, so an
//! absent one would look like somebody's change.

use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// Fills in what is missing.
pub(crate) fn complete(resource: Resource, object: &mut Value) {
    match resource {
        Resource::Nodes => complete_node(object),
        Resource::Namespaces => complete_namespace(object),
        Resource::Pods => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                complete_pod_spec(spec);
            }
            if let Some(fields) = object.as_object_mut() {
                let status = fields.entry("status").or_insert_with(|| json!({}));
                if let Some(status) = status.as_object_mut() {
                    status.entry("phase").or_insert_with(|| "Pending".into());
                }
            }
        }
        Resource::DaemonSets | Resource::Deployments => complete_workload(resource, object),
        Resource::Secrets => complete_secret(object),
        Resource::RoleBindings | Resource::ClusterRoleBindings => {
            for subject in items_mut(object.get_mut("subjects")) {
                if subject.get("kind") != Some(&Value::from("ServiceAccount")) {
                    subject.entry("apiGroup").or_insert_with(|| "rbac.authorization.k8s.io".into());
                }
            }
        }
        Resource::Events
        | Resource::ConfigMaps
        | Resource::Leases
        | Resource::ServiceAccounts
        | Resource::Roles
        | Resource::ClusterRoles => {}
    }
}

/// The two spellings of the pod CIDR are one field inside the API server: the single one is the first of the list, and
/// wins where they contradict.
fn complete_node(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let single =
        spec.get("podCIDR").and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let first = spec.get("podCIDRs").and_then(|list| list.get(0)?.as_str()).map(str::to_owned);
    match (single, first) {
        (Some(single), first) if first.as_ref() != Some(&single) => {
            spec.insert("podCIDRs".to_owned(), json!([single]));
        }
        (None, Some(first)) => {
            spec.insert("podCIDR".to_owned(), first.into());
        }
        (None, None) => {
            spec.remove("podCIDR");
            spec.remove("podCIDRs");
        }
        _ => {}
    }
}

fn complete_namespace(object: &mut Value) {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.entry("spec").or_insert_with(|| json!({"finalizers": ["kubernetes"]}));
        fields.entry("status").or_insert_with(|| json!({"phase": "Active"}));
    }
}

/// `stringData` is a way to write and never read.
fn complete_secret(object: &mut Value) {
    use base64::Engine;
    let Some(fields) = object.as_object_mut() else { return };
    fields.entry("type").or_insert_with(|| "Opaque".into());
    let Some(Value::Object(plain)) = fields.remove("stringData") else { return };
    let data = fields.entry("data").or_insert_with(|| json!({}));
    for (name, value) in plain {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        if let Some(data) = data.as_object_mut() {
            data.insert(name, encoded.into());
        }
    }
}

fn complete_workload(resource: Resource, object: &mut Value) {
    let daemons = resource == Resource::DaemonSets;
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.entry("revisionHistoryLimit").or_insert_with(|| 10.into());
        let (field, rolling) = if daemons {
            ("updateStrategy", json!({"maxSurge": 0, "maxUnavailable": 1}))
        } else {
            spec.entry("replicas").or_insert_with(|| 1.into());
            spec.entry("progressDeadlineSeconds").or_insert_with(|| 600.into());
            ("strategy", json!({"maxSurge": "25%", "maxUnavailable": "25%"}))
        };
        if let Some(strategy) = spec.entry(field).or_insert_with(|| json!({})).as_object_mut() {
            let kind = strategy.entry("type").or_insert_with(|| "RollingUpdate".into()).clone();
            if kind == "RollingUpdate" {
                let update = strategy.entry("rollingUpdate").or_insert_with(|| json!({}));
                for (name, value) in rolling.as_object().into_iter().flatten() {
                    if let Some(update) = update.as_object_mut() {
                        update.entry(name.clone()).or_insert_with(|| value.clone());
                    }
                }
            }
        }
        if let Some(pod) =
            spec.get_mut("template").and_then(|template| template.get_mut("spec")?.as_object_mut())
        {
            complete_pod_spec(pod);
        }
    }
    let Some(fields) = object.as_object_mut() else { return };
    let status = fields.entry("status").or_insert_with(|| json!({}));
    if let (Some(status), true) = (status.as_object_mut(), daemons) {
        for count in ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"]
        {
            status.entry(count).or_insert_with(|| 0.into());
        }
    }
}

fn complete_pod_spec(spec: &mut Map<String, Value>) {
    let mut give = |name: &str, value: Value| {
        spec.entry(name).or_insert(value);
    };
    give("dnsPolicy", "ClusterFirst".into());
    give("restartPolicy", "Always".into());
    give("schedulerName", "default-scheduler".into());
    give("securityContext", json!({}));
    give("terminationGracePeriodSeconds", 30.into());
    // The old name of the account is still told.
    match (spec.get("serviceAccountName").cloned(), spec.get("serviceAccount").cloned()) {
        (Some(name), _) => drop(spec.insert("serviceAccount".to_owned(), name)),
        (None, Some(name)) => drop(spec.insert("serviceAccountName".to_owned(), name)),
        (None, None) => {}
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec.get_mut(list)) {
            complete_container(container, host_network);
        }
    }
    for volume in items_mut(spec.get_mut("volumes")) {
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
                source.entry("defaultMode").or_insert_with(|| 0o644.into());
            }
        }
        if let Some(source) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
            source.entry("type").or_insert_with(|| "".into());
        }
    }
}

fn complete_container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    let newest = !image.contains('@') && name.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest");
    let policy = if newest { "Always" } else { "IfNotPresent" };
    let mut give = |name: &str, value: Value| {
        container.entry(name).or_insert(value);
    };
    give("imagePullPolicy", policy.into());
    give("resources", json!({}));
    give("terminationMessagePath", "/dev/termination-log".into());
    give("terminationMessagePolicy", "File".into());
    for port in items_mut(container.get_mut("ports")) {
        port.entry("protocol").or_insert_with(|| "TCP".into());
        if let (true, Some(number)) = (host_network, port.get("containerPort").cloned()) {
            port.entry("hostPort").or_insert(number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        for (name, value) in
            [("failureThreshold", 3), ("periodSeconds", 10), ("successThreshold", 1), ("timeoutSeconds", 1)]
        {
            probe.entry(name).or_insert_with(|| value.into());
        }
        if let Some(request) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            request.entry("path").or_insert_with(|| "/".into());
            request.entry("scheme").or_insert_with(|| "HTTP".into());
        }
    }
    for variable in items_mut(container.get_mut("env")) {
        let source =
            variable.get_mut("valueFrom").and_then(|source| source.get_mut("fieldRef")?.as_object_mut());
        if let Some(reference) = source {
            reference.entry("apiVersion").or_insert_with(|| "v1".into());
        }
    }
}

fn items_mut(list: Option<&mut Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    list.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}
