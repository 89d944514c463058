//! The objects and the log of their changes.
//!
//! Owns versions: every change takes the next revision, and one counter serves all kinds, as in etcd. The log lets a
//! watch begin in the past and a paged list go on at the revision of its first page. Compaction forgets the log's
//! beginning; whoever asks for something older is told so ([`Compacted`]) and never gets a part.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::resource::Resource;

/// Where an object is kept. Order is list order: by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) resource: Resource,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        Self { resource, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// One change, with the object before and after it.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) key: Key,
    /// The object before; absent when the change created it.
    pub(crate) before: Option<Arc<Value>>,
    /// The object after; for a deletion its last state, with the revision of the deletion.
    pub(crate) after: Arc<Value>,
    pub(crate) deleted: bool,
}

/// The revision asked for is no longer in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Compacted {
    /// The oldest revision one can still go on from.
    pub(crate) oldest: u64,
}

#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    /// Changes up to and including this revision are forgotten. The log holds exactly the revisions after it.
    compacted: u64,
    history: usize,
    objects: BTreeMap<Key, Arc<Value>>,
    log: VecDeque<Change>,
}

impl Store {
    /// An empty store whose first change will have revision `base + 1` and which remembers `history` changes.
    pub(crate) fn new(base: u64, history: usize) -> Self {
        Self {
            revision: base,
            compacted: base,
            history: history.max(1),
            objects: BTreeMap::new(),
            log: VecDeque::new(),
        }
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Writes an object under the next revision, which it then carries.
    pub(crate) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        let revision = self.revision + 1;
        stamp(&mut object, revision);
        let after = Arc::new(object);
        let before = self.objects.insert(key.clone(), Arc::clone(&after));
        self.append(Change { revision, key, before, after: Arc::clone(&after), deleted: false });
        after
    }

    /// Removes an object; returns its last state carrying the deletion's revision.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        let revision = self.revision + 1;
        let mut last = Value::clone(&before);
        stamp(&mut last, revision);
        let after = Arc::new(last);
        let change = Change {
            revision,
            key: key.clone(),
            before: Some(before),
            after: Arc::clone(&after),
            deleted: true,
        };
        self.append(change);
        Some(after)
    }

    fn append(&mut self, change: Change) {
        self.revision = change.revision;
        self.log.push_back(change);
        while self.log.len() > self.history {
            if let Some(forgotten) = self.log.pop_front() {
                self.compacted = forgotten.revision;
            }
        }
    }

    /// Forgets all changes so far: whoever lags behind has to list again.
    pub(crate) fn compact(&mut self) {
        self.log.clear();
        self.compacted = self.revision;
    }

    /// The present objects of a kind, in one namespace or all.
    pub(crate) fn list<'a>(
        &'a self,
        resource: Resource,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let first = Key::new(resource, namespace.unwrap_or_default(), "");
        self.objects.range(first..).take_while(move |(key, _)| {
            key.resource == resource && namespace.is_none_or(|one| one == key.namespace)
        })
    }

    /// The objects of a kind as they were at a revision.
    pub(crate) fn list_at(
        &self,
        resource: Resource,
        namespace: Option<&str>,
        revision: u64,
    ) -> Result<BTreeMap<Key, Arc<Value>>, Compacted> {
        let mut objects: BTreeMap<Key, Arc<Value>> =
            self.list(resource, namespace).map(|(key, object)| (key.clone(), Arc::clone(object))).collect();
        let later: Vec<&Change> = self.changes_after(revision)?.collect();
        for change in later.into_iter().rev() {
            if change.key.resource != resource || namespace.is_some_and(|one| one != change.key.namespace) {
                continue;
            }
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// The changes after a revision, oldest first; none when it is the present one or lies in the future.
    pub(crate) fn changes_after(&self, revision: u64) -> Result<impl Iterator<Item = &Change>, Compacted> {
        let Some(known) = revision.checked_sub(self.compacted) else {
            return Err(Compacted { oldest: self.compacted });
        };
        Ok(self.log.iter().skip(usize::try_from(known).unwrap_or(usize::MAX)))
    }
}

fn stamp(object: &mut Value, revision: u64) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".to_owned(), revision.to_string().into());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn node(name: &str, mark: u8) -> (Key, Value) {
        (Key::new(Resource::Nodes, "", name), json!({"metadata": {"name": name}, "mark": mark}))
    }

    #[test]
    fn every_change_takes_the_next_revision_and_the_object_carries_it() {
        let mut store = Store::new(100, 10);
        let (key, object) = node("a", 1);
        assert_eq!(store.put(key.clone(), object)["metadata"]["resourceVersion"], "101");
        let removed = store.remove(&key).unwrap();
        assert_eq!((removed["metadata"]["resourceVersion"].as_str(), store.revision()), (Some("102"), 102));
        assert!(store.remove(&key).is_none());
        assert_eq!(store.revision(), 102, "removing nothing is no change");
    }

    #[test]
    fn the_past_is_gone_after_compaction_and_beyond_the_history() {
        let mut store = Store::new(0, 3);
        for mark in 0..5 {
            let (key, object) = node("a", mark);
            store.put(key, object);
        }
        assert_eq!(store.changes_after(1).err(), Some(Compacted { oldest: 2 }));
        assert_eq!(store.changes_after(2).map(Iterator::count), Ok(3));
        assert_eq!(store.changes_after(99).map(Iterator::count), Ok(0));
        store.compact();
        assert!(store.changes_after(4).is_err());
        assert_eq!(store.changes_after(5).map(Iterator::count), Ok(0));
    }

    #[test]
    fn a_list_of_one_namespace_has_no_neighbours() {
        let mut store = Store::new(0, 10);
        for (namespace, name) in [("a", "x"), ("ab", "y"), ("b", "z")] {
            store.put(Key::new(Resource::Pods, namespace, name), json!({"metadata": {}}));
        }
        store.put(Key::new(Resource::Events, "a", "e"), json!({"metadata": {}}));
        let names = |namespace| {
            store.list(Resource::Pods, namespace).map(|(key, _)| key.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(Some("a")), ["x"]);
        assert_eq!(names(None), ["x", "y", "z"]);
    }

    proptest! {
        /// Undoing the log from the present gives what was there, whatever happened in between.
        #[test]
        fn any_past_revision_reads_as_it_was(steps in prop::collection::vec((0u8..4, any::<bool>(), any::<u8>()), 1..40)) {
            let mut store = Store::new(0, 1000);
            let mut past = vec![(0, BTreeMap::new())];
            for (which, delete, mark) in steps {
                let (key, object) = node(&format!("n{which}"), mark);
                if delete { store.remove(&key); } else { store.put(key, object); }
                past.push((store.revision(), store.objects.clone()));
            }
            for (revision, objects) in past {
                prop_assert_eq!(store.list_at(Resource::Nodes, None, revision).unwrap(), objects);
            }
        }
    }
}
