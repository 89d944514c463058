//! Label and field selectors.

use serde_json::Value;

use crate::failure::Failure;
use crate::resource::Resource;

/// What a list or a watch is restricted to. The empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<LabelTerm>,
    fields: Vec<FieldTerm>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    negated: bool,
}

impl Selector {
    pub(crate) fn parse(resource: Resource, labels: &str, fields: &str) -> Result<Self, Failure> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(resource, fields)? })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|term| term.matches(object))
            && self.fields.iter().all(|term| term.matches(object))
    }
}

impl LabelTerm {
    fn matches(&self, object: &Value) -> bool {
        let label =
            |key: &str| object.pointer("/metadata/labels").and_then(|labels| labels.get(key)?.as_str());
        match self {
            Self::In(key, values) => label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            // An absent label is in no set.
            Self::NotIn(key, values) => label(key).is_none_or(|value| values.iter().all(|one| one != value)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
        }
    }
}

impl FieldTerm {
    fn matches(&self, object: &Value) -> bool {
        let found = self.path.split('.').try_fold(object, |value, step| value.get(step));
        let text = match found {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            _ if self.path == "spec.unschedulable" => "false".to_owned(),
            _ => String::new(),
        };
        (text == self.value) != self.negated
    }
}

/// The fields that the API server indexes for each kind; others are refused.
fn selectable(resource: Resource, path: &str) -> bool {
    match path {
        "metadata.name" => true,
        "metadata.namespace" => resource.namespaced(),
        _ => match resource {
            Resource::Nodes => path == "spec.unschedulable",
            Resource::Pods => matches!(
                path,
                "spec.nodeName"
                    | "spec.restartPolicy"
                    | "spec.schedulerName"
                    | "spec.serviceAccountName"
                    | "spec.hostNetwork"
                    | "status.phase"
                    | "status.podIP"
                    | "status.nominatedNodeName"
            ),
            Resource::Events => matches!(
                path,
                "involvedObject.kind"
                    | "involvedObject.namespace"
                    | "involvedObject.name"
                    | "involvedObject.uid"
                    | "involvedObject.apiVersion"
                    | "involvedObject.resourceVersion"
                    | "involvedObject.fieldPath"
                    | "reason"
                    | "reportingComponent"
                    | "source"
                    | "type"
            ),
            Resource::Namespaces => path == "status.phase",
            Resource::Secrets => path == "type",
            _ => false,
        },
    }
}

fn parse_fields(resource: Resource, text: &str) -> Result<Vec<FieldTerm>, Failure> {
    text.split(',').filter(|part| !part.is_empty()).map(|part| parse_field(resource, part)).collect()
}

fn parse_field(resource: Resource, part: &str) -> Result<FieldTerm, Failure> {
    let (path, value, negated) = if let Some((path, value)) = part.split_once("!=") {
        (path, value, true)
    } else if let Some((path, value)) = part.split_once("==") {
        (path, value, false)
    } else if let Some((path, value)) = part.split_once('=') {
        (path, value, false)
    } else {
        return Err(Failure::bad_request(format!("invalid selector: '{part}'; can't understand '{part}'")));
    };
    let path = path.trim();
    if !selectable(resource, path) {
        return Err(Failure::bad_request(format!("field label not supported: {path}")));
    }
    Ok(FieldTerm { path: path.to_owned(), value: value.trim().to_owned(), negated })
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, Failure> {
    split_outside_parentheses(text)
        .into_iter()
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            parse_label(part).ok_or_else(|| {
                Failure::bad_request(format!(
                    "unable to parse requirement: found '{part}', expected a label requirement"
                ))
            })
        })
        .collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    text.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .collect()
}

fn parse_label(part: &str) -> Option<LabelTerm> {
    if let Some(key) = part.strip_prefix('!') {
        return Some(LabelTerm::Absent(label_key(key)?));
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Some(LabelTerm::NotIn(label_key(key)?, vec![label_value(value)?]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Some(LabelTerm::In(label_key(key)?, vec![label_value(value)?]));
    }
    let Some(open) = part.find('(') else { return Some(LabelTerm::Exists(label_key(part)?)) };
    let (head, rest) = part.split_at_checked(open)?;
    let inside = rest.strip_prefix('(')?.strip_suffix(')')?;
    let values = inside.split(',').map(label_value).collect::<Option<Vec<_>>>()?;
    let mut words = head.split_whitespace();
    let (key, operator) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    match operator {
        "in" => Some(LabelTerm::In(label_key(key)?, values)),
        "notin" => Some(LabelTerm::NotIn(label_key(key)?, values)),
        _ => None,
    }
}

fn label_key(text: &str) -> Option<String> {
    let text = text.trim();
    let name = text.rsplit('/').next()?;
    let well_formed = !name.is_empty()
        && text.matches('/').count() <= 1
        && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "-_./".contains(letter));
    well_formed.then(|| text.to_owned())
}

fn label_value(text: &str) -> Option<String> {
    let text = text.trim();
    text.chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "-_.".contains(letter))
        .then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(labels: &str, fields: &str) -> bool {
        let object = json!({"metadata": {"name": "p", "namespace": "d", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"}});
        Selector::parse(Resource::Pods, labels, fields).unwrap().matches(&object)
    }

    #[test]
    fn labels_select() {
        for (text, wanted) in [
            ("", true),
            ("app=web", true),
            ("app == web , tier=front", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("!app", false),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db,x),tier", true),
            ("other notin (a)", true),
            ("app=", false),
        ] {
            assert_eq!(selects(text, ""), wanted, "{text}");
        }
    }

    #[test]
    fn fields_select() {
        for (text, wanted) in [
            ("metadata.name=p", true),
            ("metadata.name==p,metadata.namespace=d", true),
            ("spec.nodeName=n2", false),
            ("spec.nodeName!=n2", true),
            ("spec.nodeName=", false),
            ("status.phase=", true),
        ] {
            assert_eq!(selects("", text), wanted, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_400() {
        for labels in ["=x", "a in", "a in (", "a in b", "a b", "a(b)", "!", "a=b c", "a b in (c)", "é=1"] {
            assert_eq!(Selector::parse(Resource::Pods, labels, "").unwrap_err().code, 400, "{labels}");
        }
        for fields in ["x", "spec.image=1", "spec.nodeName"] {
            assert_eq!(Selector::parse(Resource::Pods, "", fields).unwrap_err().code, 400, "{fields}");
        }
        assert!(Selector::parse(Resource::Nodes, "", "spec.nodeName=n1").is_err(), "not a field of nodes");
    }
}
