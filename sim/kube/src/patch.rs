//! Three ways to patch an object: JSON patch (RFC 6902), JSON merge patch (RFC 7386), strategic merge patch.
//!
//! Strategic merge is Kubernetes' own: lists of objects merge item by item where the API type names a merge key, and
//! directives (`$patch`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`, `$retainKeys`) say what merging cannot.

use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::resource::Resource;
use crate::schema::{self, Merge, Type};

/// A kind of patch, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// `application/json-patch+json`
    Json,
    /// `application/merge-patch+json`
    Merge,
    /// `application/strategic-merge-patch+json`
    Strategic,
}

impl PatchType {
    pub(crate) const ACCEPTED: &'static str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

    pub(crate) fn from_media_type(text: &str) -> Option<Self> {
        match text.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            _ => None,
        }
    }
}

/// The object after the patch.
pub(crate) fn apply(
    resource: Resource,
    kind: PatchType,
    object: &Value,
    patch: &Value,
) -> Result<Value, Failure> {
    if kind != PatchType::Json && !patch.is_object() {
        return Err(Failure::bad_request("the patch must be a JSON object"));
    }
    match kind {
        PatchType::Json => json_patch(object, patch),
        PatchType::Merge => Ok(merge(object.clone(), patch)),
        PatchType::Strategic => {
            let (Value::Object(target), Value::Object(patch)) = (object.clone(), patch) else {
                return Err(Failure::bad_request("the patch must be a JSON object"));
            };
            strategic_map(Some(&schema::of(resource)), target, patch).map(Value::Object)
        }
    }
}

fn merge(target: Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut fields = match target {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            let before = fields.remove(name).unwrap_or(Value::Null);
            fields.insert(name.clone(), merge(before, change));
        }
    }
    Value::Object(fields)
}

/// How a list merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListRule {
    /// The patch's list takes the place of the old one.
    Replace,
    /// A set of plain values: the patch adds to it.
    Union,
    /// Objects that are the same when this field is the same.
    Key(&'static str),
}

/// The `patchStrategy` and `patchMergeKey` of a field. They agree with what server-side apply knows of it, but for that a
/// strategic merge knows one key only.
fn list_rule(of: Option<&Type>) -> ListRule {
    match of {
        Some(Type::List { merge: Merge::Set, .. }) => ListRule::Union,
        Some(Type::List { merge: Merge::Keyed(keys), .. }) => {
            keys.first().map_or(ListRule::Replace, |key| ListRule::Key(key))
        }
        _ => ListRule::Replace,
    }
}

const ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

fn strategic_map(
    of: Option<&Type>,
    mut target: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, Failure> {
    match patch.get("$patch") {
        None => {}
        Some(Value::String(directive)) if directive == "merge" => {}
        Some(Value::String(directive)) if directive == "replace" => {
            return Ok(patch.iter().filter(|(name, _)| *name != "$patch").map(owned).collect());
        }
        Some(Value::String(directive)) if directive == "delete" => return Ok(Map::new()),
        Some(other) => return Err(Failure::bad_request(format!("unknown patch type: {other}"))),
    }
    if let Some(retained) = patch.get("$retainKeys") {
        let Some(retained) = retained.as_array() else {
            return Err(Failure::bad_request("invalid patch format of $retainKeys: must be a list"));
        };
        target.retain(|name, _| retained.iter().any(|one| one.as_str() == Some(name)));
    }
    // Removals from sets come before additions, and orders after both, whatever the order of the fields.
    for (name, values) in patch {
        let Some(field) = name.strip_prefix(DELETE_FROM) else { continue };
        let Some(values) = values.as_array() else {
            return Err(Failure::bad_request(format!("invalid patch format of {name}: must be a list")));
        };
        if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
            list.retain(|one| !values.contains(one));
        }
    }
    for (name, change) in patch {
        if name.starts_with('$') {
            if name == "$patch"
                || name == "$retainKeys"
                || name.starts_with(DELETE_FROM)
                || name.starts_with(ORDER)
            {
                continue;
            }
            return Err(Failure::bad_request(format!("unknown patch directive {name}")));
        }
        if change.is_null() {
            target.remove(name);
            continue;
        }
        let field = of.and_then(|of| of.field(name));
        let before = target.remove(name);
        let after = match change {
            Value::Object(change) => {
                let before = match before {
                    Some(Value::Object(before)) => before,
                    _ => Map::new(),
                };
                strategic_map(field, before, change).map(Value::Object)
            }
            Value::Array(change) => {
                let before = match before {
                    Some(Value::Array(before)) => before,
                    _ => Vec::new(),
                };
                strategic_list(field, name, before, change).map(Value::Array)
            }
            plain => Ok(plain.clone()),
        };
        target.insert(name.clone(), after?);
    }
    for (name, order) in patch {
        let Some(field) = name.strip_prefix(ORDER) else { continue };
        let Some(order) = order.as_array() else {
            return Err(Failure::bad_request(format!("invalid patch format of {name}: must be a list")));
        };
        let how = list_rule(of.and_then(|of| of.field(field)));
        if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
            reorder(how, list, order);
        }
    }
    Ok(target)
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

fn strategic_list(
    of: Option<&Type>,
    name: &str,
    mut target: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, Failure> {
    let item_type = match of {
        Some(Type::List { of, .. }) => Some(of.as_ref()),
        _ => None,
    };
    match list_rule(of) {
        ListRule::Replace => Ok(patch.iter().map(without_nulls).collect()),
        ListRule::Union => {
            for value in patch {
                if !target.contains(value) {
                    target.push(value.clone());
                }
            }
            Ok(target)
        }
        ListRule::Key(key) => {
            let directive = |item: &Value| item.get("$patch").and_then(Value::as_str).map(str::to_owned);
            if patch.iter().any(|item| directive(item).as_deref() == Some("replace")) {
                let rest = patch.iter().filter(|item| directive(item).is_none());
                return Ok(rest.map(without_nulls).collect());
            }
            for item in patch {
                let Value::Object(change) = item else {
                    return Err(Failure::bad_request(format!("{name}: items must be objects")));
                };
                let Some(identity) = change.get(key) else {
                    return Err(Failure::bad_request(format!(
                        "map: {item} does not contain declared merge key: {key}"
                    )));
                };
                let place = target.iter().position(|one| one.get(key) == Some(identity));
                if directive(item).as_deref() == Some("delete") {
                    target.retain(|one| one.get(key) != Some(identity));
                    continue;
                }
                let before = match place.and_then(|at| target.get(at)) {
                    Some(Value::Object(before)) => before.clone(),
                    _ => Map::new(),
                };
                let after = Value::Object(strategic_map(item_type, before, change)?);
                match place.and_then(|at| target.get_mut(at)) {
                    Some(slot) => *slot = after,
                    None => target.push(after),
                }
            }
            Ok(target)
        }
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name.clone(), without_nulls(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        plain => plain.clone(),
    }
}

fn reorder(how: ListRule, list: &mut [Value], order: &[Value]) {
    let rank = |item: &Value| {
        order
            .iter()
            .position(|one| match how {
                ListRule::Key(key) => one.get(key).is_some() && one.get(key) == item.get(key),
                ListRule::Union | ListRule::Replace => one == item,
            })
            .unwrap_or(usize::MAX)
    };
    if how != ListRule::Replace {
        list.sort_by_key(rank);
    }
}

fn json_patch(object: &Value, patch: &Value) -> Result<Value, Failure> {
    let refuse =
        |why: String| Failure::new(422, "Invalid", format!("the server rejected our request: {why}"));
    let Some(operations) = patch.as_array() else {
        return Err(Failure::bad_request("a JSON patch must be a list of operations"));
    };
    if operations.len() > 10_000 {
        return Err(Failure::too_large());
    }
    let mut result = object.clone();
    let mut copied_values = 0usize;
    for operation in operations {
        let text = |field: &str| operation.get(field).and_then(Value::as_str).map(str::to_owned);
        let path = text("path").ok_or_else(|| Failure::bad_request("operation without a path"))?;
        let value = || {
            operation.get("value").cloned().ok_or_else(|| Failure::bad_request("operation without a value"))
        };
        let from = || text("from").ok_or_else(|| Failure::bad_request("operation without from"));
        let missing = |path: &str| refuse(format!("path {path:?} does not exist"));
        match text("op").as_deref() {
            Some("add") => {
                let value = value()?;
                within_depth(&path, &value)?;
                insert_at(&mut result, &path, value).ok_or_else(|| missing(&path))?;
            }
            Some("remove") => drop(remove_at(&mut result, &path).ok_or_else(|| missing(&path))?),
            Some("replace") => {
                let value = value()?;
                within_depth(&path, &value)?;
                *result.pointer_mut(&path).ok_or_else(|| missing(&path))? = value;
            }
            Some("move") => {
                let from = from()?;
                let moved = remove_at(&mut result, &from).ok_or_else(|| missing(&from))?;
                within_depth(&path, &moved)?;
                insert_at(&mut result, &path, moved).ok_or_else(|| missing(&path))?;
            }
            Some("copy") => {
                let from = from()?;
                let copied = result.pointer(&from).cloned().ok_or_else(|| missing(&from))?;
                within_depth(&path, &copied)?;
                copied_values += weight(&copied);
                if copied_values > 100_000 {
                    return Err(Failure::too_large());
                }
                insert_at(&mut result, &path, copied).ok_or_else(|| missing(&path))?;
            }
            Some("test") => {
                if result.pointer(&path) != Some(&value()?) {
                    return Err(refuse(format!("testing value {path} failed")));
                }
            }
            other => return Err(Failure::bad_request(format!("unexpected operation kind {other:?}"))),
        }
    }
    Ok(result)
}

/// Few small operations could otherwise nest a document so deeply that walking it overruns the stack, or copy it into
/// itself until memory ends.
fn within_depth(path: &str, value: &Value) -> Result<(), Failure> {
    if path.matches('/').count() + depth(value) > 100 {
        return Err(Failure::bad_request("the patched object would be nested too deeply"));
    }
    Ok(())
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or_default(),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fn weight(value: &Value) -> usize {
    1 + match value {
        Value::Object(fields) => fields.values().map(weight).sum(),
        Value::Array(items) => items.iter().map(weight).sum(),
        _ => 0,
    }
}

fn split_pointer(path: &str) -> Option<(&str, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((parent, last.replace("~1", "/").replace("~0", "~")))
}

fn insert_at(object: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *object = value;
        return Some(());
    }
    let (parent, last) = split_pointer(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(fields) => {
            fields.insert(last, value);
        }
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let at: usize = last.parse().ok()?;
            if at > items.len() {
                return None;
            }
            items.insert(at, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove_at(object: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split_pointer(path)?;
    match object.pointer_mut(parent)? {
        Value::Object(fields) => fields.remove(&last),
        Value::Array(items) => {
            let at: usize = last.parse().ok()?;
            (at < items.len()).then(|| items.remove(at))
        }
        _ => None,
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
