//! What an object of each kind must look like: decoding, validation, and what may not change.
//!
//! The types of all fields are checked; of the rules beyond types only those are here that a client can run into who
//! works with a cluster's network, worded as the API server words them.

use serde_json::{Value, json};

use crate::failure::{Broken, Failure};
use crate::resource::Resource;
use crate::schema;

/// Brings an object into the shape that the API's types demand and fills in kind and version. Returns the paths of the
/// fields that the API does not know, which are gone.
pub(crate) fn decode(resource: Resource, mut object: Value) -> Result<(Value, Vec<String>), Failure> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Failure::bad_request("the object provided is unrecognized (must be of type object)"));
    };
    for (field, wanted) in [("kind", resource.kind()), ("apiVersion", resource.api_version())] {
        match fields.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::String(found)) if found == wanted || found.is_empty() => {}
            Some(found) => {
                let text = format!(
                    "the {field} of the object ({}) does not match the expected {field} ({wanted})",
                    found.as_str().unwrap_or("not a string"),
                );
                return Err(Failure::bad_request(text));
            }
        }
        fields.insert(field.to_owned(), wanted.into());
    }
    let unknown = schema::decode(&schema::of(resource), &mut object)
        .map_err(|misfit| undecodable(resource, &misfit.message))?;
    if let Some(fields) = object.as_object_mut() {
        fields.entry("metadata").or_insert_with(|| json!({}));
    }
    Ok((object, unknown))
}

/// 400: the body is no such object.
pub(crate) fn undecodable(resource: Resource, why: &str) -> Failure {
    let (kind, version) = (resource.kind(), resource.version());
    Failure::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// Checks an object as it would be stored.
pub(crate) fn validate(
    resource: Resource,
    name: &str,
    namespace: &str,
    object: &Value,
) -> Result<(), Failure> {
    let mut broken = Vec::new();
    if resource == Resource::Namespaces {
        if !is_label(name) {
            broken.push(Broken::value("metadata.name", &name.into(), LABEL_RULE));
        }
    } else if is_rbac(resource) {
        if matches!(name, "." | "..") || name.contains(['/', '%']) {
            broken.push(Broken::value(
                "metadata.name",
                &name.into(),
                "may not be '.' or '..' or contain '/' or '%'",
            ));
        }
    } else if !is_subdomain(name) {
        broken.push(Broken::value("metadata.name", &name.into(), SUBDOMAIN_RULE));
    }
    for (key, value) in object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten() {
        if !is_qualified(key) {
            broken.push(Broken::value("metadata.labels", &key.as_str().into(), QUALIFIED_RULE));
        }
        if !is_label_value(value.as_str().unwrap_or_default()) {
            broken.push(Broken::value("metadata.labels", value, LABEL_VALUE_RULE));
        }
    }
    let annotations = object.pointer("/metadata/annotations").and_then(Value::as_object);
    let mut annotation_bytes = 0;
    for (key, value) in annotations.into_iter().flatten() {
        // Unlike a label's, an annotation's key is compared in lower case.
        if !is_qualified(&key.to_ascii_lowercase()) {
            broken.push(Broken::value("metadata.annotations", &key.as_str().into(), QUALIFIED_RULE));
        }
        annotation_bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if annotation_bytes > 256 * 1024 {
        broken.push(Broken::forbidden("metadata.annotations", "Too long: may not be more than 262144 bytes"));
    }
    match resource {
        Resource::Nodes => validate_node(object, &mut broken),
        Resource::Events => validate_event(namespace, object, &mut broken),
        Resource::Leases => validate_lease(object, &mut broken),
        Resource::Pods => {
            let spec = object.get("spec").unwrap_or(&Value::Null);
            validate_containers("spec", spec, &mut broken);
        }
        Resource::DaemonSets | Resource::Deployments => validate_workload(object, &mut broken),
        Resource::ClusterRoleBindings | Resource::RoleBindings => validate_binding(object, &mut broken),
        Resource::Roles | Resource::ClusterRoles => validate_role(object, &mut broken),
        Resource::ConfigMaps => validate_config(object, &mut broken),
        Resource::Namespaces | Resource::Secrets | Resource::ServiceAccounts => {}
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::invalid(resource, name, &broken)) }
}

fn validate_node(object: &Value, broken: &mut Vec<Broken>) {
    let cidrs: Vec<&str> = object
        .pointer("/spec/podCIDRs")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (index, cidr) in cidrs.iter().enumerate() {
        if family(cidr).is_none() {
            let rule = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            broken.push(Broken::value(&format!("spec.podCIDRs[{index}]"), &(*cidr).into(), rule));
        }
    }
    if let [first, second, ..] = cidrs.as_slice() {
        let one_of_each = family(first).is_some() && family(first) != family(second);
        if cidrs.len() > 2 || !one_of_each {
            let rule = "may specify no more than one CIDR for each IP family";
            broken.push(Broken::value("spec.podCIDRs", &json!(cidrs), rule));
        }
    }
    let taints = object.pointer("/spec/taints").and_then(Value::as_array).into_iter().flatten();
    let mut known: Vec<(&str, &str)> = Vec::new();
    for (index, taint) in taints.enumerate() {
        let text = |field: &str| taint.get(field).and_then(Value::as_str).unwrap_or_default();
        let field = format!("spec.taints[{index}]");
        if !is_qualified(text("key")) {
            broken.push(Broken::value(&format!("{field}.key"), &text("key").into(), QUALIFIED_RULE));
        }
        if !matches!(text("effect"), "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            let rule = "supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"";
            broken.push(Broken::value(&format!("{field}.effect"), &text("effect").into(), rule));
        }
        if known.contains(&(text("key"), text("effect"))) {
            broken.push(Broken::value(&field, taint, "taints must be unique by key and effect pair"));
        }
        known.push((text("key"), text("effect")));
    }
    let addresses = object.pointer("/status/addresses").and_then(Value::as_array).into_iter().flatten();
    let addresses: Vec<&Value> = addresses.collect();
    for (index, address) in addresses.iter().enumerate() {
        if addresses.iter().take(index).any(|other| other == address) {
            broken.push(Broken::value(&format!("status.addresses[{index}]"), address, "Duplicate value"));
        }
    }
}

fn is_rbac(resource: Resource) -> bool {
    matches!(
        resource,
        Resource::Roles | Resource::RoleBindings | Resource::ClusterRoles | Resource::ClusterRoleBindings
    )
}

fn validate_config(object: &Value, broken: &mut Vec<Broken>) {
    for field in ["data", "binaryData"] {
        for key in object.get(field).and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key) {
            let known = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
            if key.is_empty()
                || key.len() > 253
                || !key.chars().all(known)
                || matches!(key.as_str(), "." | "..")
            {
                let rule = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
                broken.push(Broken::value(&format!("{field}[{key}]"), &key.as_str().into(), rule));
            }
        }
    }
}

fn validate_containers(at: &str, spec: &Value, broken: &mut Vec<Broken>) {
    let containers = spec.get("containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut known: Vec<&str> = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let field = format!("{at}.containers[{index}].name");
        if name.is_empty() {
            broken.push(Broken::required(&field, ""));
        } else if !is_label(name) {
            broken.push(Broken::value(&field, &name.into(), LABEL_RULE));
        } else if known.contains(&name) {
            broken.push(Broken::value(&field, &name.into(), "Duplicate value"));
        }
        known.push(name);
    }
}

fn validate_workload(object: &Value, broken: &mut Vec<Broken>) {
    let spec = object.get("spec").unwrap_or(&Value::Null);
    let labels = spec.pointer("/template/metadata/labels");
    let wanted = spec.pointer("/selector/matchLabels").and_then(Value::as_object);
    let expressions = spec.pointer("/selector/matchExpressions").and_then(Value::as_array);
    if wanted.is_none_or(serde_json::Map::is_empty) && expressions.is_none_or(Vec::is_empty) {
        broken.push(Broken::required("spec.selector", ""));
    }
    let matches = |(key, value): (&String, &Value)| labels.and_then(|labels| labels.get(key)) == Some(value);
    if !wanted.into_iter().flatten().all(matches) {
        let shown = labels.cloned().unwrap_or_else(|| json!({}));
        let rule = "`selector` does not match template `labels`";
        broken.push(Broken::value("spec.template.metadata.labels", &shown, rule));
    }
    let pod = spec.pointer("/template/spec").unwrap_or(&Value::Null);
    let containers = pod.get("containers").and_then(Value::as_array);
    if containers.is_none_or(Vec::is_empty) {
        broken.push(Broken::required("spec.template.spec.containers", ""));
    }
    for (index, container) in containers.into_iter().flatten().enumerate() {
        if container.get("image").and_then(Value::as_str).is_none_or(str::is_empty) {
            broken.push(Broken::required(&format!("spec.template.spec.containers[{index}].image"), ""));
        }
    }
    validate_containers("spec.template.spec", pod, broken);
}

fn validate_binding(object: &Value, broken: &mut Vec<Broken>) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let cluster_wide = object.pointer("/metadata/namespace").is_none();
    match text("/roleRef/kind") {
        "ClusterRole" => {}
        "Role" if !cluster_wide => {}
        kind => broken.push(Broken::value(
            "roleRef.kind",
            &kind.into(),
            "supported values: \"ClusterRole\", \"Role\"",
        )),
    }
    if text("/roleRef/name").is_empty() {
        broken.push(Broken::required("roleRef.name", ""));
    }
    for (index, subject) in object.get("subjects").and_then(Value::as_array).into_iter().flatten().enumerate()
    {
        let text = |field: &str| subject.get(field).and_then(Value::as_str).unwrap_or_default();
        if text("name").is_empty() {
            broken.push(Broken::required(&format!("subjects[{index}].name"), ""));
        }
        match text("kind") {
            "ServiceAccount" if text("namespace").is_empty() => {
                broken.push(Broken::required(&format!("subjects[{index}].namespace"), ""));
            }
            "ServiceAccount" | "User" | "Group" => {}
            kind => {
                let rule = "supported values: \"Group\", \"ServiceAccount\", \"User\"";
                broken.push(Broken::value(&format!("subjects[{index}].kind"), &kind.into(), rule));
            }
        }
    }
}

fn validate_role(object: &Value, broken: &mut Vec<Broken>) {
    for (index, rule) in object.get("rules").and_then(Value::as_array).into_iter().flatten().enumerate() {
        if rule.get("verbs").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            broken.push(Broken::required(
                &format!("rules[{index}].verbs"),
                "verbs must contain at least one value",
            ));
        }
    }
}

/// The rules differ for the older form of an event and the newer one, which has an `eventTime`.
fn validate_event(namespace: &str, object: &Value, broken: &mut Vec<Broken>) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let involved = text("/involvedObject/namespace");
    let newer = !text("/eventTime").is_empty();
    let agrees = match (involved, newer) {
        ("", false) => namespace == "default",
        ("", true) => matches!(namespace, "default" | "kube-system"),
        (_, false) => involved == namespace,
        (_, true) => true,
    };
    if !agrees {
        broken.push(Broken::value(
            "involvedObject.namespace",
            &involved.into(),
            "does not match event.namespace",
        ));
    }
    if !newer {
        return;
    }
    for field in ["reportingComponent", "reportingInstance", "action", "reason"] {
        let value = text(&format!("/{field}"));
        if value.is_empty() {
            broken.push(Broken::required(field, ""));
        } else if value.len() > 128 {
            broken.push(Broken::value(field, &"".into(), "can have at most 128 characters"));
        }
    }
    if text("/message").len() > 1024 {
        broken.push(Broken::value("message", &"".into(), "can have at most 1024 characters"));
    }
}

fn validate_lease(object: &Value, broken: &mut Vec<Broken>) {
    for (field, least, rule) in [
        ("leaseDurationSeconds", 1, "must be greater than 0"),
        ("leaseTransitions", 0, "must be greater than or equal to 0"),
    ] {
        if let Some(number) = object.pointer(&format!("/spec/{field}")).and_then(Value::as_i64)
            && number < least
        {
            broken.push(Broken::value(&format!("spec.{field}"), &number.into(), rule));
        }
    }
}

/// Checks what may not change once it is set.
pub(crate) fn validate_update(
    resource: Resource,
    name: &str,
    before: &Value,
    after: &Value,
) -> Result<(), Failure> {
    let mut broken = Vec::new();
    match resource {
        Resource::Nodes => {
            let cidrs = |object: &Value| {
                object.pointer("/spec/podCIDRs").and_then(Value::as_array).cloned().unwrap_or_default()
            };
            if !cidrs(before).is_empty() && cidrs(before) != cidrs(after) {
                let rule = "node updates may not change podCIDR except from \"\" to valid";
                broken.push(Broken::forbidden("spec.podCIDRs", rule));
            }
            let provider = |object: &Value| {
                object.pointer("/spec/providerID").and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            if !provider(before).is_empty() && provider(before) != provider(after) {
                let rule = "node updates may not change providerID except from \"\" to valid";
                broken.push(Broken::forbidden("spec.providerID", rule));
            }
        }
        Resource::ConfigMaps => {
            let immutable = before.get("immutable") == Some(&Value::Bool(true));
            if immutable && before.get("data") != after.get("data") {
                broken.push(Broken::forbidden("data", "field is immutable when `immutable` is set"));
            }
        }
        Resource::Pods => {
            let node = |object: &Value| {
                object.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            if !node(before).is_empty() && node(before) != node(after) {
                broken.push(Broken::forbidden("spec.nodeName", "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to existing tolerations)"));
            }
        }
        Resource::ClusterRoleBindings | Resource::RoleBindings => {
            let role = |object: &Value| object.get("roleRef").cloned().unwrap_or_default();
            if role(before) != role(after) {
                broken.push(Broken::value("roleRef", &role(after), "cannot change roleRef"));
            }
        }
        Resource::DaemonSets | Resource::Deployments => {
            let selector = |object: &Value| object.pointer("/spec/selector").cloned().unwrap_or_default();
            if selector(before) != selector(after) {
                broken.push(Broken::value("spec.selector", &selector(after), "field is immutable"));
            }
        }
        Resource::Events
        | Resource::Namespaces
        | Resource::Leases
        | Resource::Secrets
        | Resource::ServiceAccounts
        | Resource::Roles
        | Resource::ClusterRoles => {}
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::invalid(resource, name, &broken)) }
}

const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const QUALIFIED_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

fn is_label(text: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|letter| inner(letter) || letter == '-')
        && text.starts_with(inner)
        && text.ends_with(inner)
}

fn is_subdomain(text: &str) -> bool {
    let inner = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    let part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|letter| inner(letter) || letter == '-')
            && part.starts_with(inner)
            && part.ends_with(inner)
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name_part(text)
}

fn is_name_part(text: &str) -> bool {
    text.len() <= 63
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
        && text.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && text.ends_with(|letter: char| letter.is_ascii_alphanumeric())
}

fn is_qualified(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name_part(text),
        Some((prefix, name)) => is_subdomain(prefix) && is_name_part(name),
    }
}

/// 4 or 6 for a well-formed CIDR.
fn family(text: &str) -> Option<u8> {
    let (address, length) = text.split_once('/')?;
    let length: u8 = length.parse().ok()?;
    match address.parse::<std::net::IpAddr>().ok()? {
        std::net::IpAddr::V4(_) if length <= 32 => Some(4),
        std::net::IpAddr::V6(_) if length <= 128 => Some(6),
        _ => None,
    }
}
