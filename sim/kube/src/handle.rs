//! The door into the cluster from inside the process, for labs and tests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::sync::watch;

use crate::failure::Failure;
use crate::listing::{self, At, ListOptions};
use crate::model::{self, DeleteOptions, Deleted, Part, Validation, Write};
use crate::patch::PatchType;
use crate::request::Verb;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::shared::{Shared, stamp};
use crate::store::Key;

/// A failure that coming HTTP requests shall meet. Requests through a [`Handle`] meet none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which verb.
    pub verb: Verb,
    /// On which kind of object.
    pub resource: Resource,
    /// What they are answered.
    pub failure: Failure,
    /// How many of them.
    pub times: u32,
}

/// A write in the name of whoever holds the handle. Unknown fields are refused: nobody would see a warning.
fn write() -> Write {
    Write {
        stamp: stamp(),
        dry_run: false,
        manager: "loden-emulator".to_owned(),
        validation: Validation::Strict,
        warnings: Vec::new(),
    }
}

/// Creates, changes and reads objects by the same rules as over HTTP, without asking for a token. For kinds without a
/// namespace the namespace is the empty string.
#[derive(Debug, Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Creates an object and returns it as stored.
    ///
    /// # Errors
    /// The refusal that a client would get: 409 when it exists, 422 when it is invalid.
    pub fn create(&self, resource: Resource, namespace: &str, object: Value) -> Result<Value, Failure> {
        let made =
            self.shared.change(|store| model::create(store, resource, namespace, object, &mut write()));
        made.map(|object| Value::clone(&object))
    }

    /// Reads an object.
    #[must_use]
    pub fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Value> {
        self.shared.store().get(&Key::new(resource, namespace, name)).map(|object| Value::clone(object))
    }

    /// All objects of a kind, in one namespace or in all (`None`), in the order of their names.
    #[must_use]
    pub fn list(&self, resource: Resource, namespace: Option<&str>) -> Vec<Value> {
        self.shared.store().list(resource, namespace).map(|(_, object)| Value::clone(object)).collect()
    }

    /// All objects of a kind that a label selector and a field selector choose, each in the API's notation and either
    /// possibly empty.
    ///
    /// # Errors
    /// 400 for a malformed selector.
    pub fn select(&self, resource: Resource, labels: &str, fields: &str) -> Result<Vec<Value>, Failure> {
        let selector = Selector::parse(resource, labels, fields)?;
        let options = ListOptions { at: At::Latest, limit: None, from: None };
        let page =
            listing::list(&self.shared.store(), resource, None, |object| selector.matches(object), &options)?;
        Ok(page.items.iter().map(|object| Value::clone(object)).collect())
    }

    /// Replaces an object, all but its status.
    ///
    /// # Errors
    /// The refusal that a client would get.
    pub fn update(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        object: Value,
    ) -> Result<Value, Failure> {
        let key = Key::new(resource, namespace, name);
        let made = self.shared.change(|store| model::update(store, &key, Part::Main, object, &mut write()));
        made.map(|object| Value::clone(&object))
    }

    /// Patches an object, all but its status.
    ///
    /// # Errors
    /// The refusal that a client would get.
    pub fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        kind: PatchType,
        change: &Value,
    ) -> Result<Value, Failure> {
        self.patch_part(&Key::new(resource, namespace, name), Part::Main, kind, change)
    }

    /// Patches the status of an object, and its labels and annotations.
    ///
    /// # Errors
    /// The refusal that a client would get.
    pub fn patch_status(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        kind: PatchType,
        change: &Value,
    ) -> Result<Value, Failure> {
        self.patch_part(&Key::new(resource, namespace, name), Part::Status, kind, change)
    }

    fn patch_part(&self, key: &Key, part: Part, kind: PatchType, change: &Value) -> Result<Value, Failure> {
        let made = self.shared.change(|store| model::patch(store, key, part, kind, change, &mut write()));
        made.map(|object| Value::clone(&object))
    }

    /// Deletes an object; finalizers can hold it back, as always.
    ///
    /// # Errors
    /// 404 when there is none.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Failure> {
        let key = Key::new(resource, namespace, name);
        let options = DeleteOptions::default();
        match self.shared.change(|store| model::delete(store, &key, &options, &write()))? {
            Deleted::Gone(_) | Deleted::Held(_) => Ok(()),
        }
    }

    /// The revision of the last change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.store().revision()
    }

    /// A value that follows the revision: wait for its change, then look again.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// Forgets all past changes: watches and pages from an older version are answered 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Cuts every running watch in the middle, as a dying server or proxy does.
    pub fn cut_watches(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// How many watches are running.
    #[must_use]
    pub fn running_watches(&self) -> usize {
        self.shared.cut.receiver_count()
    }

    /// How many bookmarks watches were sent so far.
    #[must_use]
    pub fn bookmarks_sent(&self) -> u64 {
        self.shared.bookmarks.load(Ordering::Relaxed)
    }

    /// How many HTTP requests of this verb on this kind were let in so far; a paged list counts each page.
    #[must_use]
    pub fn served(&self, verb: Verb, resource: Resource) -> u64 {
        self.shared.served(verb, resource)
    }

    /// Lets the next matching HTTP requests fail.
    pub fn add_fault(&self, fault: Fault) {
        self.shared.add_fault(fault);
    }
}
