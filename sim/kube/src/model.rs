//! What the API server does with an object: the rules of create, update, patch and delete, apart from HTTP.
//!
//! Clock and chance come in as arguments ([`Stamp`]), so that the rules can be tested as functions.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::defaults;
use crate::failure::{Broken, Failure};
use crate::ownership::{self, Author, Owners};
use crate::patch::{self, PatchType};
use crate::resource::Resource;
use crate::rules;
use crate::store::{Key, Store};

/// What the world adds to a write.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// RFC 3339 with whole seconds.
    pub(crate) now: String,
    /// The UID of an object created by this write.
    pub(crate) uid: String,
    /// Five characters that complete a `generateName`.
    pub(crate) suffix: String,
}

/// What becomes of fields that the API does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Validation {
    /// They are dropped.
    Ignore,
    /// They are dropped, and the client is warned.
    #[default]
    Warn,
    /// The write is refused.
    Strict,
}

/// Everything about a write but what is written.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) stamp: Stamp,
    /// Nothing is kept.
    pub(crate) dry_run: bool,
    /// In whose name it is: the field manager.
    pub(crate) manager: String,
    pub(crate) validation: Validation,
    /// What the client should be warned of; filled by the write.
    pub(crate) warnings: Vec<String>,
}

impl Write {
    fn author(&self, part: Part, applies: bool) -> Author<'_> {
        Author { manager: &self.manager, applies, status: part == Part::Status }
    }

    /// Decides about unknown fields; the error is their list.
    fn judge(&mut self, unknown: &[String]) -> Result<(), String> {
        let texts: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
        match self.validation {
            Validation::Strict if !texts.is_empty() => {
                Err(format!("strict decoding error: {}", texts.join(", ")))
            }
            Validation::Warn => {
                self.warnings.extend(texts);
                Ok(())
            }
            Validation::Strict | Validation::Ignore => Ok(()),
        }
    }

    /// Decodes what a client sent whole.
    fn decode(&mut self, resource: Resource, body: Value) -> Result<Value, Failure> {
        let (object, unknown) = rules::decode(resource, body)?;
        self.judge(&unknown).map_err(|why| rules::undecodable(resource, &why))?;
        Ok(object)
    }
}

/// What a delete asks for beyond the object's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
}

/// What a delete did.
#[derive(Debug, Clone)]
pub(crate) enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Arc<Value>),
    /// Finalizers hold it: it stays, marked.
    Held(Arc<Value>),
}

/// Which part of an object a write is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Everything but the status.
    Main,
    /// The status, and the labels and annotations.
    Status,
}

pub(crate) fn get<'a>(store: &'a Store, key: &Key) -> Result<&'a Arc<Value>, Failure> {
    store.get(key).ok_or_else(|| Failure::not_found(key.resource, &key.name))
}

/// Creates an object in `namespace` (empty for kinds without).
pub(crate) fn create(
    store: &mut Store,
    resource: Resource,
    namespace: &str,
    body: Value,
    write: &mut Write,
) -> Result<Arc<Value>, Failure> {
    let object = write.decode(resource, body)?;
    insert(store, resource, namespace, object, None, write)
}

/// Keeps a new object, with the owners of its fields where an apply has found them already.
fn insert(
    store: &mut Store,
    resource: Resource,
    namespace: &str,
    mut object: Value,
    owners: Option<Owners>,
    write: &Write,
) -> Result<Arc<Value>, Failure> {
    let stamp = &write.stamp;
    let metadata = metadata_mut(&mut object)?;
    agree_on_namespace(metadata, resource, namespace)?;
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|version| !version.is_empty()) {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let given = text(metadata, "name");
    let name = match (given.as_str(), text(metadata, "generateName").as_str()) {
        ("", "") => {
            let broken = Broken::required("metadata.name", "name or generateName is required");
            return Err(Failure::invalid(resource, "", &[broken]));
        }
        ("", prefix) => format!("{prefix}{}", stamp.suffix),
        (name, _) => name.to_owned(),
    };
    for managed in
        ["uid", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "generation"]
    {
        metadata.remove(managed);
    }
    metadata.insert("name".to_owned(), name.clone().into());
    metadata.insert("uid".to_owned(), stamp.uid.clone().into());
    metadata.insert("creationTimestamp".to_owned(), stamp.now.clone().into());
    if resource.has_generation() {
        metadata.insert("generation".to_owned(), 1.into());
    }
    if resource.namespaced() {
        let home = Key::new(Resource::Namespaces, "", namespace);
        get(store, &home)?;
    }
    defaults::complete(resource, &mut object);
    rules::validate(resource, &name, namespace, &object)?;
    let key = Key::new(resource, namespace, &name);
    if store.get(&key).is_some() {
        return Err(Failure::already_exists(resource, &name));
    }
    let owners = owners.unwrap_or_else(|| {
        let mut owners = Owners::default();
        let nothing = ownership::blank(resource);
        owners.record(write.author(Part::Main, false), resource, &nothing, &object, &stamp.now);
        owners
    });
    owners.write(&mut object);
    Ok(if write.dry_run { Arc::new(object) } else { store.put(key, object) })
}

/// Replaces an object, or a part of it, by what the caller sent.
pub(crate) fn update(
    store: &mut Store,
    key: &Key,
    part: Part,
    body: Value,
    write: &mut Write,
) -> Result<Arc<Value>, Failure> {
    let mut object = write.decode(key.resource, body)?;
    let metadata = metadata_mut(&mut object)?;
    agree_on_namespace(metadata, key.resource, &key.namespace)?;
    agree_on_name(metadata, key)?;
    let Some(current) = store.get(key).cloned() else {
        if part == Part::Main && key.resource.creates_on_update() {
            return insert(store, key.resource, &key.namespace, object, None, write);
        }
        return Err(Failure::not_found(key.resource, &key.name));
    };
    if text(metadata_mut(&mut object)?, "resourceVersion").is_empty()
        && !key.resource.updates_unconditionally()
    {
        let broken = Broken::value("metadata.resourceVersion", &json!(0), "must be specified for an update");
        return Err(Failure::invalid(key.resource, &key.name, &[broken]));
    }
    replace(store, key, part, &current, object, None, write)
}

/// Patches an object, or a part of it.
pub(crate) fn patch(
    store: &mut Store,
    key: &Key,
    part: Part,
    kind: PatchType,
    change: &Value,
    write: &mut Write,
) -> Result<Arc<Value>, Failure> {
    let current = Arc::clone(get(store, key)?);
    let patched = patch::apply(key.resource, kind, &current, change)?;
    let (mut object, unknown) = rules::decode(key.resource, patched)?;
    write.judge(&unknown).map_err(|why| {
        let value = change.to_string();
        Failure::new(422, "Invalid", format!(" \"\" is invalid: patch: Invalid value: {value:?}: {why}"))
    })?;
    let metadata = metadata_mut(&mut object)?;
    let renamed = text(metadata, "name") != key.name || text(metadata, "namespace") != key.namespace;
    if renamed {
        let broken = Broken::value("metadata.name", &text(metadata, "name").into(), "field is immutable");
        return Err(Failure::invalid(key.resource, &key.name, &[broken]));
    }
    replace(store, key, part, &current, object, None, write)
}

/// Server-side apply: makes the object what the manager wants of it, creating it where it is absent. Returns whether it
/// did. With `force` fields are taken from other managers.
pub(crate) fn apply(
    store: &mut Store,
    key: &Key,
    part: Part,
    body: Value,
    force: bool,
    write: &Write,
) -> Result<(Arc<Value>, bool), Failure> {
    let resource = key.resource;
    for field in ["apiVersion", "kind"] {
        if body.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
            return Err(Failure::bad_request(format!("the patch has no {field}: an apply must name it")));
        }
    }
    let (mut wanted, unknown) = rules::decode(resource, body)?;
    if let Some(path) = unknown.first() {
        let (namespace, name) = (&key.namespace, &key.name);
        return Err(Failure::bad_request(format!(
            "failed to create typed patch object ({namespace}/{name}; {}, Kind={}): .{path}: field not declared in schema",
            resource.api_version(),
            resource.kind(),
        )));
    }
    let metadata = metadata_mut(&mut wanted)?;
    agree_on_namespace(metadata, resource, &key.namespace)?;
    agree_on_name(metadata, key)?;
    if metadata.contains_key("managedFields") {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    if let Some(fields) = wanted.as_object_mut() {
        fields.retain(|name, _| !resource.has_status() || !is_fixed(part, name));
    }
    let author = write.author(part, true);
    let now = &write.stamp.now;
    match store.get(key).cloned() {
        Some(current) => {
            let (after, owners) = ownership::applied(resource, author, &current, &wanted, force, now)?;
            Ok((replace(store, key, part, &current, after, Some(owners), write)?, false))
        }
        None if part == Part::Main => {
            let blank = ownership::blank(resource);
            let (after, owners) = ownership::applied(resource, author, &blank, &wanted, force, now)?;
            Ok((insert(store, resource, &key.namespace, after, Some(owners), write)?, true))
        }
        None => Err(Failure::not_found(resource, &key.name)),
    }
}

fn replace(
    store: &mut Store,
    key: &Key,
    part: Part,
    current: &Arc<Value>,
    mut object: Value,
    owners: Option<Owners>,
    write: &Write,
) -> Result<Arc<Value>, Failure> {
    let applies = owners.is_some();
    let owners = owners.or_else(|| Owners::read(&object)).or_else(|| Owners::read(current));
    let (resource, name) = (key.resource, key.name.as_str());
    let known = current.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let metadata = metadata_mut(&mut object)?;
    let (uid, known_uid) = (text(metadata, "uid"), text(&known, "uid"));
    if !uid.is_empty() && uid != known_uid {
        return Err(Failure::uid_precondition(resource, name, &uid, &known_uid));
    }
    let version = text(metadata, "resourceVersion");
    if !version.is_empty() && version != text(&known, "resourceVersion") {
        if version.parse::<u64>().is_err() {
            let broken =
                Broken::value("metadata.resourceVersion", &version.into(), "must be an unsigned integer");
            return Err(Failure::invalid(resource, name, &[broken]));
        }
        return Err(Failure::modified(resource, name));
    }
    for fixed in [
        "uid",
        "creationTimestamp",
        "resourceVersion",
        "generation",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "namespace",
    ] {
        match known.get(fixed) {
            Some(value) => metadata.insert(fixed.to_owned(), value.clone()),
            None => metadata.remove(fixed),
        };
    }
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    if part == Part::Status {
        // Finalizers and owners are not the business of whoever reports status.
        for field in ["finalizers", "ownerReferences"] {
            match known.get(field) {
                Some(value) => metadata.insert(field.to_owned(), value.clone()),
                None => metadata.remove(field),
            };
        }
    }
    if resource.has_status() {
        keep_other_part(current, &mut object, part);
    }
    defaults::complete(resource, &mut object);
    rules::validate(resource, name, &key.namespace, &object)?;
    rules::validate_update(resource, name, current, &object)?;
    let marked = known.contains_key("deletionTimestamp");
    let held =
        object.pointer("/metadata/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if resource.has_generation() && object.get("spec") != current.get("spec") {
        let generation = known.get("generation").and_then(Value::as_u64).unwrap_or_default() + 1;
        metadata_mut(&mut object)?.insert("generation".to_owned(), generation.into());
    }
    let mut owners = owners.unwrap_or_default();
    if !applies {
        owners.record(write.author(part, false), resource, current, &object, &write.stamp.now);
    }
    owners.write(&mut object);
    if marked && !held {
        if !write.dry_run {
            store.remove(key);
        }
        return Ok(Arc::new(object));
    }
    // As in the real server, a write that changes nothing makes no new version and wakes no watch.
    if object == **current {
        return Ok(Arc::clone(current));
    }
    Ok(if write.dry_run { Arc::new(object) } else { store.put(key.clone(), object) })
}

/// Whether a write to one part leaves a field of the object alone.
fn is_fixed(part: Part, name: &str) -> bool {
    match part {
        Part::Main => name == "status",
        Part::Status => !matches!(name, "status" | "metadata" | "kind" | "apiVersion"),
    }
}

/// A write to the status leaves everything else alone, and the other way round.
fn keep_other_part(current: &Value, object: &mut Value, part: Part) {
    let (Some(before), Some(after)) = (current.as_object(), object.as_object_mut()) else { return };
    after.retain(|name, _| !is_fixed(part, name));
    for (name, value) in before {
        if is_fixed(part, name) {
            after.insert(name.clone(), value.clone());
        }
    }
}

/// Deletes an object, or marks it when finalizers hold it.
pub(crate) fn delete(
    store: &mut Store,
    key: &Key,
    options: &DeleteOptions,
    write: &Write,
) -> Result<Deleted, Failure> {
    let current = Arc::clone(get(store, key)?);
    let known = current.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let uid = text(&known, "uid");
    if let Some(wanted) = options.uid.as_ref().filter(|wanted| **wanted != uid) {
        return Err(Failure::uid_precondition(key.resource, &key.name, wanted, &uid));
    }
    let version = text(&known, "resourceVersion");
    if let Some(wanted) = options.resource_version.as_ref().filter(|wanted| **wanted != version) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {version}"
        );
        return Err(Failure::conflict(key.resource, &key.name, &why));
    }
    if key.resource == Resource::Namespaces
        && matches!(key.name.as_str(), "default" | "kube-system" | "kube-public")
    {
        let text = format!("namespaces {:?} is forbidden: this namespace may not be deleted", key.name);
        return Err(Failure::forbidden(key.resource, &key.name, text));
    }
    let held = known.get("finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if held {
        let mut marked = Value::clone(&current);
        let metadata = metadata_mut(&mut marked)?;
        if metadata.contains_key("deletionTimestamp") {
            return Ok(Deleted::Held(current));
        }
        metadata.insert("deletionTimestamp".to_owned(), write.stamp.now.clone().into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
        return Ok(Deleted::Held(if write.dry_run {
            Arc::new(marked)
        } else {
            store.put(key.clone(), marked)
        }));
    }
    if write.dry_run {
        return Ok(Deleted::Gone(current));
    }
    if key.resource == Resource::Namespaces {
        for resource in Resource::ALL.into_iter().filter(|resource| resource.namespaced()) {
            let inside: Vec<Key> =
                store.list(resource, Some(&key.name)).map(|(key, _)| key.clone()).collect();
            for key in inside {
                store.remove(&key);
            }
        }
    }
    Ok(Deleted::Gone(store.remove(key).unwrap_or(current)))
}

fn metadata_mut(object: &mut Value) -> Result<&mut Map<String, Value>, Failure> {
    object
        .get_mut("metadata")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| Failure::bad_request("the object has no metadata"))
}

fn text(map: &Map<String, Value>, field: &str) -> String {
    map.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The object's name and the one on the URL are the same; a missing one is filled in.
fn agree_on_name(metadata: &mut Map<String, Value>, key: &Key) -> Result<(), Failure> {
    let name = text(metadata, "name");
    if name.is_empty() {
        metadata.insert("name".to_owned(), key.name.clone().into());
    } else if name != key.name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            key.name
        )));
    }
    Ok(())
}

fn agree_on_namespace(
    metadata: &mut Map<String, Value>,
    resource: Resource,
    namespace: &str,
) -> Result<(), Failure> {
    let given = text(metadata, "namespace");
    if !resource.namespaced() {
        if !given.is_empty() {
            return Err(Failure::bad_request("namespace is not allowed on this type"));
        }
        metadata.remove("namespace");
        return Ok(());
    }
    if !given.is_empty() && given != namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata.insert("namespace".to_owned(), namespace.into());
    Ok(())
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
