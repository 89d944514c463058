//! `metadata.managedFields`: reading it, recording a write, writing it back.

use serde_json::{Map, Value, json};

use super::fields::{Comparison, FieldSet, root, without_servers_own};
use crate::resource::Resource;

/// Who writes, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Author<'a> {
    /// The field manager's name.
    pub(crate) manager: &'a str,
    /// Whether this is a server-side apply.
    pub(crate) applies: bool,
    /// Whether the write goes to the status subresource.
    pub(crate) status: bool,
}

/// What one author owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) manager: String,
    pub(crate) applies: bool,
    pub(crate) subresource: String,
    api_version: String,
    time: String,
    pub(crate) fields: FieldSet,
}

impl Owner {
    fn is(&self, author: Author<'_>) -> bool {
        self.manager == author.manager
            && self.applies == author.applies
            && (self.subresource == "status") == author.status
    }

    fn read(entry: &Value) -> Option<Self> {
        let text = |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let applies = match text("operation").as_str() {
            "Apply" => true,
            "Update" => false,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            applies,
            subresource: text("subresource"),
            api_version: text("apiVersion"),
            time: text("time"),
            fields: FieldSet::from_json(entry.get("fieldsV1")?)?,
        })
    }

    fn write(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": if self.applies { "Apply" } else { "Update" },
            "apiVersion": self.api_version, "time": self.time,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if let (Some(fields), false) = (entry.as_object_mut(), self.subresource.is_empty()) {
            fields.insert("subresource".to_owned(), self.subresource.clone().into());
        }
        entry
    }

    /// As a conflict names it.
    pub(crate) fn describe(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            text.push_str(&format!(" using {} at {}", self.api_version, self.time));
        }
        text
    }
}

/// All owners of an object's fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owners(pub(crate) Vec<Owner>);

impl Owners {
    /// What an object says; `None` when it says nothing or something malformed.
    pub(crate) fn read(object: &Value) -> Option<Self> {
        let entries = object.pointer("/metadata/managedFields")?.as_array()?;
        // The agreed way to say: forget all owners.
        if entries.as_slice() == [json!({})] {
            return Some(Self::default());
        }
        if entries.is_empty() {
            return None;
        }
        entries.iter().map(Owner::read).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Writes it into an object.
    pub(crate) fn write(&self, object: &mut Value) {
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if self.0.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), self.0.iter().map(Owner::write).collect());
        }
    }

    pub(crate) fn of(&self, author: Author<'_>) -> Option<&FieldSet> {
        self.0.iter().find(|owner| owner.is(author)).map(|owner| &owner.fields)
    }

    /// Everything that anybody owns.
    pub(crate) fn all(&self) -> FieldSet {
        let mut all = FieldSet::default();
        self.0.iter().for_each(|owner| all.union(&owner.fields));
        all
    }

    /// The fields of a change that others than the author own.
    pub(crate) fn conflicts(&self, author: Author<'_>, changed: &FieldSet) -> Vec<(&Owner, FieldSet)> {
        self.0
            .iter()
            .filter(|owner| !owner.is(author))
            .map(|owner| (owner, owner.fields.intersection(changed)))
            .filter(|(_, fields)| !fields.is_empty())
            .collect()
    }

    /// Takes what changed or went away from everybody but the author.
    pub(crate) fn take_from_others(&mut self, author: Author<'_>, comparison: &Comparison) {
        for owner in self.0.iter_mut().filter(|owner| !owner.is(author)) {
            owner.fields.subtract(&comparison.changed);
            owner.fields.subtract(&comparison.removed);
        }
        self.0.retain(|owner| !owner.fields.is_empty());
    }

    /// Sets what the author owns. An entry that stays the same keeps its time, so that a write without effect has none.
    pub(crate) fn set(&mut self, author: Author<'_>, resource: Resource, fields: FieldSet, now: &str) {
        if let Some(owner) = self.0.iter_mut().find(|owner| owner.is(author)) {
            if owner.fields != fields {
                owner.fields = fields;
                now.clone_into(&mut owner.time);
            }
        } else {
            self.0.push(Owner {
                manager: author.manager.to_owned(),
                applies: author.applies,
                subresource: if author.status { "status".to_owned() } else { String::new() },
                api_version: resource.api_version().to_owned(),
                time: now.to_owned(),
                fields,
            });
        }
        self.0.retain(|owner| !owner.fields.is_empty());
    }

    /// Records a write that is no apply: its author owns what it changed, beside what it owned.
    pub(crate) fn record(
        &mut self,
        author: Author<'_>,
        resource: Resource,
        before: &Value,
        after: &Value,
        now: &str,
    ) {
        let mut comparison = Comparison::of(&root(resource), before, after);
        without_servers_own(&mut comparison.changed);
        without_servers_own(&mut comparison.removed);
        self.take_from_others(author, &comparison);
        let mut mine = self.of(author).cloned().unwrap_or_default();
        mine.subtract(&comparison.removed);
        mine.union(&comparison.changed);
        self.set(author, resource, mine, now);
    }
}

/// An object of which nothing is known but what it is.
pub(crate) fn blank(resource: Resource) -> Value {
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), resource.api_version().into());
    object.insert("kind".to_owned(), resource.kind().into());
    object.insert("metadata".to_owned(), Map::new().into());
    Value::Object(object)
}
