//! Server-side apply: merging what an author wants into the object, dropping what it no longer wants, and refusing what
//! belongs to others.

use serde_json::{Map, Value, json};

use super::entries::{Author, Owners};
use super::fields::{Comparison, FieldSet, children, item_step, root, without_servers_own};
use crate::failure::Failure;
use crate::resource::Resource;
use crate::schema::Type;

/// The object after an apply of `wanted` to `live` (an almost empty object when there is none), with the new owners.
pub(crate) fn applied(
    resource: Resource,
    author: Author<'_>,
    live: &Value,
    wanted: &Value,
    force: bool,
    now: &str,
) -> Result<(Value, Owners), Failure> {
    let of = root(resource);
    let mut owners = Owners::read(live).unwrap_or_default();
    let last = owners.of(author).cloned().unwrap_or_default();
    let mut mine = FieldSet::of(&of, wanted);
    without_servers_own(&mut mine);
    let mut after = live.clone();
    merge_applied(&of, &mut after, wanted);
    owners.set(author, resource, mine, now);
    prune(&of, &mut after, &last, &owners.all());
    let mut comparison = Comparison::of(&of, live, &after);
    without_servers_own(&mut comparison.changed);
    without_servers_own(&mut comparison.removed);
    let conflicts = owners.conflicts(author, &comparison.changed);
    if !conflicts.is_empty() && !force {
        return Err(refusal(
            &conflicts.iter().map(|(owner, fields)| (owner.describe(), fields.paths())).collect::<Vec<_>>(),
        ));
    }
    owners.take_from_others(author, &comparison);
    Ok((after, owners))
}

fn refusal(conflicts: &[(String, Vec<String>)]) -> Failure {
    let count: usize = conflicts.iter().map(|(_, paths)| paths.len()).sum();
    let text = match conflicts {
        [(owner, paths)] if paths.len() == 1 => format!("conflict with {owner}: {}", paths.join("")),
        many => {
            let lines: Vec<String> = many
                .iter()
                .map(|(owner, paths)| {
                    let list: Vec<String> = paths.iter().map(|path| format!("- {path}")).collect();
                    format!("conflicts with {owner}:\n{}", list.join("\n"))
                })
                .collect();
            lines.join("\n")
        }
    };
    let plural = if count == 1 { "" } else { "s" };
    let mut failure =
        Failure::new(409, "Conflict", format!("Apply failed with {count} conflict{plural}: {text}"));
    let causes: Vec<Value> = conflicts
        .iter()
        .flat_map(|(owner, paths)| {
            paths.iter().map(move |path| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {owner}"), "field": path})
            })
        })
        .collect();
    failure.details = Some(json!({"causes": causes}));
    failure
}

/// Lays `wanted` over `target`: records, maps and lists that merge do so, everything else is replaced.
pub(crate) fn merge_applied(of: &Type, target: &mut Value, wanted: &Value) {
    if of.is_leaf() {
        *target = wanted.clone();
        return;
    }
    match (of, wanted) {
        (Type::Record(_) | Type::Map { .. }, Value::Object(fields)) => {
            if !target.is_object() {
                *target = Map::new().into();
            }
            let Some(known) = target.as_object_mut() else { return };
            for (name, value) in fields {
                let Some(field_type) = of.field(name) else { continue };
                merge_applied(field_type, known.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Type::List { of, merge }, Value::Array(items)) => {
            if !target.is_array() {
                *target = Vec::<Value>::new().into();
            }
            let Some(known) = target.as_array_mut() else { return };
            for item in items {
                let step = item_step(merge, of, item);
                match known.iter_mut().find(|one| item_step(merge, of, one) == step) {
                    Some(one) => merge_applied(of, one, item),
                    None => {
                        let mut one = Value::Null;
                        merge_applied(of, &mut one, item);
                        known.push(one);
                    }
                }
            }
        }
        _ => *target = wanted.clone(),
    }
}

/// Removes what the author owned before and nobody owns now.
fn prune(of: &Type, value: &mut Value, last: &FieldSet, owned: &FieldSet) {
    if of.is_leaf() {
        return;
    }
    let nobody = FieldSet::default();
    let mut steps: Vec<(String, Type)> = Vec::new();
    for (step, child_type, _) in children(of, value) {
        steps.push((step, child_type.clone()));
    }
    for (step, child_type) in steps {
        let Some(was) = last.below.get(&step) else { continue };
        let is = owned.below.get(&step).unwrap_or(&nobody);
        let Some(child) = child_mut(of, value, &step) else { continue };
        let whole = was.member && is.is_empty();
        if !whole {
            prune(&child_type, child, was, is);
        }
        let hollow = match child {
            Value::Object(fields) => fields.is_empty(),
            Value::Array(items) => items.is_empty(),
            _ => false,
        };
        if whole || (hollow && is.is_empty()) {
            remove_child(of, value, &step);
        }
    }
}

fn child_mut<'a>(of: &Type, value: &'a mut Value, step: &str) -> Option<&'a mut Value> {
    match (of, value) {
        (Type::List { of, merge }, Value::Array(items)) => {
            items.iter_mut().find(|item| item_step(merge, of, item).as_deref() == Some(step))
        }
        (_, Value::Object(fields)) => fields.get_mut(step.strip_prefix("f:")?),
        _ => None,
    }
}

fn remove_child(of: &Type, value: &mut Value, step: &str) {
    match (of, value) {
        (Type::List { of, merge }, Value::Array(items)) => {
            items.retain(|item| item_step(merge, of, item).as_deref() != Some(step));
        }
        (_, Value::Object(fields)) => {
            if let Some(name) = step.strip_prefix("f:") {
                fields.remove(name);
            }
        }
        _ => {}
    }
}
