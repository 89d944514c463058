//! Sets of fields, in the notation of `fieldsV1`: `f:name` for a field, `k:{…}` for a list item by its keys, `v:…` for a
//! plain value of a set, `.` for the thing itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{self, Merge, Type};

/// A set of fields as a tree. What has no members is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// Whether the field at this place is in the set, apart from what is below it.
    pub(crate) member: bool,
    pub(crate) below: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    fn leaf() -> Self {
        Self { member: true, below: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// Reads `fieldsV1`; `None` when it is none.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let fields = value.as_object()?;
        if fields.is_empty() {
            return Some(Self::leaf());
        }
        let mut set = Self::default();
        for (step, value) in fields {
            if step == "." {
                set.member = true;
                continue;
            }
            let (kind, rest) = step.split_once(':')?;
            let step = match kind {
                "f" | "i" => step.clone(),
                // Whatever the order and the spacing that the client chose, there is one spelling here.
                "k" | "v" => format!("{kind}:{}", serde_json::from_str::<Value>(rest).ok()?),
                _ => return None,
            };
            let below = Self::from_json(value)?;
            set.below.insert(step, below);
        }
        Some(set)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut fields = Map::new();
        if self.member && !self.below.is_empty() {
            fields.insert(".".to_owned(), Map::new().into());
        }
        for (step, below) in &self.below {
            fields.insert(step.clone(), below.to_json());
        }
        Value::Object(fields)
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, below) in &other.below {
            self.below.entry(step.clone()).or_default().union(below);
        }
    }

    /// Takes the members of another set out of this one.
    pub(crate) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (step, below) in &other.below {
            if let Some(mine) = self.below.get_mut(step) {
                mine.subtract(below);
                if mine.is_empty() {
                    self.below.remove(step);
                }
            }
        }
    }

    /// The members of both sets.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { member: self.member && other.member, below: BTreeMap::new() };
        for (step, mine) in &self.below {
            if let Some(theirs) = other.below.get(step) {
                let below = mine.intersection(theirs);
                if !below.is_empty() {
                    both.below.insert(step.clone(), below);
                }
            }
        }
        both
    }

    /// Removes fields with all that is below them.
    pub(crate) fn cut(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => drop(self.below.remove(*last)),
            [first, rest @ ..] => {
                if let Some(below) = self.below.get_mut(*first) {
                    below.cut(rest);
                    if below.is_empty() {
                        self.below.remove(*first);
                    }
                }
            }
        }
    }

    /// Where its members are, as conflicts print it: `.spec.containers[name="a"].image`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect("", &mut found);
        found
    }

    fn collect(&self, at: &str, found: &mut Vec<String>) {
        if self.member {
            found.push(at.to_owned());
        }
        for (step, below) in &self.below {
            let shown = match step.split_once(':') {
                Some(("f", name)) => format!(".{name}"),
                Some(("k", keys)) => match serde_json::from_str::<Map<String, Value>>(keys) {
                    Ok(keys) => {
                        let keys: Vec<String> =
                            keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                        format!("[{}]", keys.join(","))
                    }
                    Err(_) => format!("[{keys}]"),
                },
                Some(("v", value)) => format!("[={value}]"),
                _ => step.clone(),
            };
            below.collect(&format!("{at}{shown}"), found);
        }
    }

    /// The fields that a value sets.
    pub(crate) fn of(of: &Type, value: &Value) -> Self {
        if of.is_leaf() {
            return Self::leaf();
        }
        let mut set = Self::default();
        for (step, child_type, child) in children(of, value) {
            let mut below = Self::of(child_type, child);
            let item = !matches!(of, Type::Record(_));
            let hollow = child.is_null() || child.as_object().is_some_and(Map::is_empty);
            below.member |= item || hollow;
            if !below.is_empty() {
                set.below.insert(step, below);
            }
        }
        set
    }
}

/// What a value that is no leaf consists of: the step to each part, its type, and the part. Fields that nobody knows are
/// no parts.
pub(crate) fn children<'a>(of: &'a Type, value: &'a Value) -> Vec<(String, &'a Type, &'a Value)> {
    match (of, value) {
        (Type::Record(_) | Type::Map { .. }, Value::Object(fields)) => fields
            .iter()
            .filter_map(|(name, value)| Some((format!("f:{name}"), of.field(name)?, value)))
            .collect(),
        (Type::List { of, merge }, Value::Array(items)) => {
            items.iter().filter_map(|item| Some((item_step(merge, of, item)?, of.as_ref(), item))).collect()
        }
        _ => Vec::new(),
    }
}

/// The step to an item of a list that merges.
pub(crate) fn item_step(merge: &Merge, of: &Type, item: &Value) -> Option<String> {
    match merge {
        Merge::Atomic => None,
        Merge::Set => Some(format!("v:{item}")),
        Merge::Keyed(keys) => {
            let mut identity = Map::new();
            for key in keys {
                // The one key field with a default.
                let absent = (*key == "protocol").then(|| Value::from("TCP"));
                if let Some(value) = item.get(key).cloned().or(absent) {
                    identity.insert((*key).to_owned(), value);
                }
            }
            debug_assert!(matches!(of, Type::Record(_)), "lists with keys have records for items");
            Some(format!("k:{}", Value::Object(identity)))
        }
    }
}

/// How one object differs from another.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    /// What is new or has another value.
    pub(crate) changed: FieldSet,
    pub(crate) removed: FieldSet,
}

impl Comparison {
    pub(crate) fn of(of: &Type, before: &Value, after: &Value) -> Self {
        let mut comparison = Self::default();
        compare(of, before, after, &mut comparison.changed);
        removed(of, before, after, &mut comparison.removed);
        comparison
    }
}

fn compare(of: &Type, before: &Value, after: &Value, changed: &mut FieldSet) {
    if of.is_leaf() {
        changed.member |= before != after;
        return;
    }
    let known: BTreeMap<String, &Value> =
        children(of, before).into_iter().map(|(step, _, value)| (step, value)).collect();
    for (step, child_type, child) in children(of, after) {
        let mut below = FieldSet::default();
        match known.get(&step) {
            Some(value) => compare(child_type, value, child, &mut below),
            None => {
                below = FieldSet::of(child_type, child);
                // These are there even when they are empty, so that nobody is the one who put them there.
                let always = matches!(step.as_str(), "f:metadata" | "f:spec" | "f:status" | "f:template");
                below.member |= !always;
            }
        }
        if !below.is_empty() {
            changed.below.insert(step, below);
        }
    }
}

fn removed(of: &Type, before: &Value, after: &Value, gone: &mut FieldSet) {
    if of.is_leaf() {
        return;
    }
    let kept: BTreeMap<String, &Value> =
        children(of, after).into_iter().map(|(step, _, value)| (step, value)).collect();
    for (step, child_type, child) in children(of, before) {
        let mut below = FieldSet::default();
        match kept.get(&step) {
            Some(value) => removed(child_type, child, value, &mut below),
            None => {
                below = FieldSet::of(child_type, child);
                below.member = true;
            }
        }
        if !below.is_empty() {
            gone.below.insert(step, below);
        }
    }
}

/// The fields that the server itself keeps, which nobody owns.
pub(crate) fn without_servers_own(set: &mut FieldSet) {
    for path in [
        &["f:apiVersion"][..],
        &["f:kind"],
        &["f:metadata", "f:name"],
        &["f:metadata", "f:namespace"],
        &["f:metadata", "f:uid"],
        &["f:metadata", "f:creationTimestamp"],
        &["f:metadata", "f:deletionTimestamp"],
        &["f:metadata", "f:deletionGracePeriodSeconds"],
        &["f:metadata", "f:generation"],
        &["f:metadata", "f:selfLink"],
        &["f:metadata", "f:managedFields"],
        &["f:metadata", "f:resourceVersion"],
    ] {
        set.cut(path);
    }
    if let Some(metadata) = set.below.get_mut("f:metadata") {
        metadata.member = false;
        if metadata.is_empty() {
            set.below.remove("f:metadata");
        }
    }
}

/// The type of a served kind's objects.
pub(crate) fn root(resource: crate::resource::Resource) -> Type {
    schema::of(resource)
}
