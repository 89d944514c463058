//! What an object of each kind must look like: decoding, defaults, validation, and what may not change.
//!
//! Only rules that a client of ours can run into are here, worded as the API server words them; fields that nobody
//! reads are stored as they come.

use serde_json::{Value, json};

use crate::failure::{Broken, Failure};
use crate::resource::Resource;

/// Checks the shape that the API's types demand of any object and fills in kind and version.
pub(crate) fn decode(resource: Resource, mut object: Value) -> Result<Value, Failure> {
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
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    let undecodable = |field: &str, wanted: &str| {
        let kind = resource.kind();
        let version = resource.version();
        let why = format!("json: cannot unmarshal into Go struct field .{field} of type {wanted}");
        Failure::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
    };
    let Some(metadata) = metadata.as_object_mut() else {
        return Err(undecodable("metadata", "v1.ObjectMeta"));
    };
    metadata.retain(|_, value| !value.is_null());
    for field in [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "deletionTimestamp",
        "creationTimestamp",
    ] {
        if metadata.get(field).is_some_and(|value| !value.is_string()) {
            return Err(undecodable(&format!("metadata.{field}"), "string"));
        }
    }
    for field in ["labels", "annotations"] {
        let Some(value) = metadata.get_mut(field) else { continue };
        let Some(map) = value.as_object_mut() else {
            return Err(undecodable(&format!("metadata.{field}"), "map[string]string"));
        };
        // Go's decoder reads null as the empty string.
        for value in map.values_mut().filter(|value| value.is_null()) {
            *value = "".into();
        }
        if !map.values().all(Value::is_string) {
            return Err(undecodable(&format!("metadata.{field}"), "string"));
        }
    }
    let finalizers = metadata.get("finalizers");
    if !finalizers.is_none_or(|list| list.as_array().is_some_and(|list| list.iter().all(Value::is_string))) {
        return Err(undecodable("metadata.finalizers", "[]string"));
    }
    for (pointer, wanted) in shapes(resource) {
        let Some(value) = object.pointer(pointer).filter(|value| !value.is_null()) else { continue };
        let fits = match *wanted {
            Shape::Object => value.is_object(),
            Shape::Text => value.is_string(),
            Shape::Count => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            Shape::Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            Shape::TextMap => value.as_object().is_some_and(|map| map.values().all(Value::is_string)),
            Shape::Objects => value.as_array().is_some_and(|list| list.iter().all(Value::is_object)),
        };
        if !fits {
            let field = pointer.trim_start_matches('/').replace('/', ".");
            return Err(undecodable(&field, wanted.name()));
        }
    }
    Ok(object)
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Object,
    Text,
    Count,
    Texts,
    TextMap,
    Objects,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Text => "string",
            Self::Count => "int32",
            Self::Texts => "[]string",
            Self::TextMap => "map[string]string",
            Self::Objects => "[]object",
        }
    }
}

fn shapes(resource: Resource) -> &'static [(&'static str, Shape)] {
    match resource {
        Resource::Nodes => &[
            ("/spec", Shape::Object),
            ("/spec/podCIDR", Shape::Text),
            ("/spec/podCIDRs", Shape::Texts),
            ("/spec/providerID", Shape::Text),
            ("/spec/taints", Shape::Objects),
            ("/status", Shape::Object),
            ("/status/conditions", Shape::Objects),
            ("/status/addresses", Shape::Objects),
        ],
        Resource::Pods => &[
            ("/spec", Shape::Object),
            ("/spec/nodeName", Shape::Text),
            ("/spec/containers", Shape::Objects),
            ("/status", Shape::Object),
            ("/status/phase", Shape::Text),
            ("/status/podIP", Shape::Text),
            ("/status/conditions", Shape::Objects),
            ("/status/podIPs", Shape::Objects),
        ],
        Resource::Events => &[
            ("/involvedObject", Shape::Object),
            ("/involvedObject/namespace", Shape::Text),
            ("/source", Shape::Object),
            ("/reason", Shape::Text),
            ("/message", Shape::Text),
            ("/type", Shape::Text),
            ("/count", Shape::Count),
        ],
        Resource::ConfigMaps => &[("/data", Shape::TextMap), ("/binaryData", Shape::TextMap)],
        Resource::Namespaces => &[("/spec", Shape::Object), ("/status", Shape::Object)],
        Resource::Leases => &[
            ("/spec", Shape::Object),
            ("/spec/holderIdentity", Shape::Text),
            ("/spec/leaseDurationSeconds", Shape::Count),
            ("/spec/leaseTransitions", Shape::Count),
            ("/spec/acquireTime", Shape::Text),
            ("/spec/renewTime", Shape::Text),
        ],
    }
}

/// Fills in what the API server fills in.
pub(crate) fn complete(resource: Resource, object: &mut Value) {
    match resource {
        Resource::Nodes => {
            // The two spellings of the pod CIDR are one field inside the API server: the single one is the first of the
            // list, and wins where they contradict.
            let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
            let single = spec
                .get("podCIDR")
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .map(str::to_owned);
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
        Resource::Namespaces => {
            let name =
                object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
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
        Resource::Pods => {
            if let Some(fields) = object.as_object_mut() {
                let status = fields.entry("status").or_insert_with(|| json!({}));
                if let Some(status) = status.as_object_mut() {
                    status.entry("phase").or_insert_with(|| "Pending".into());
                }
            }
        }
        Resource::Events | Resource::ConfigMaps | Resource::Leases => {}
    }
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
        Resource::Pods | Resource::ConfigMaps | Resource::Namespaces => {}
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
    for field in ["acquireTime", "renewTime"] {
        if let Some(text) = object.pointer(&format!("/spec/{field}")).and_then(Value::as_str)
            && time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).is_err()
        {
            broken.push(Broken::value(
                &format!("spec.{field}"),
                &text.into(),
                "must be a time in RFC 3339 form",
            ));
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
        Resource::Events | Resource::Namespaces | Resource::Leases => {}
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
