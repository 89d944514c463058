//! What all connections and handles of one emulator share.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use tokio::sync::watch;

use crate::config::Config;
use crate::failure::Failure;
use crate::handle::Fault;
use crate::model::{self, Stamp, Validation, Write};
use crate::request::Verb;
use crate::resource::Resource;
use crate::store::Store;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    store: Mutex<Store>,
    /// The present revision; wakes watches and subscribers.
    pub(crate) revision: watch::Sender<u64>,
    /// Raised to cut all watches.
    pub(crate) cut: watch::Sender<u64>,
    faults: Mutex<Vec<Fault>>,
    served: Mutex<BTreeMap<(Verb, Resource), u64>>,
    pub(crate) bookmarks: AtomicU64,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        let mut store = Store::new(config.first_revision, config.history);
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let body = json!({"metadata": {"name": name}});
            let mut write = Write {
                stamp: stamp(),
                dry_run: false,
                manager: "kube-apiserver".to_owned(),
                validation: Validation::Ignore,
                warnings: Vec::new(),
            };
            let made = model::create(&mut store, Resource::Namespaces, "", body, &mut write);
            debug_assert!(made.is_ok(), "the namespaces of every cluster are valid");
        }
        let (revision, _) = watch::channel(store.revision());
        let (cut, _) = watch::channel(0);
        Self {
            config,
            store: Mutex::new(store),
            revision,
            cut,
            faults: Mutex::new(Vec::new()),
            served: Mutex::new(BTreeMap::new()),
            bookmarks: AtomicU64::new(0),
        }
    }

    /// The store, for reading. Never held across an await.
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        // The store's own operations do not panic half-way; a panic elsewhere must not take the cluster along.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the store and wakes whoever waits for changes.
    pub(crate) fn change<T>(&self, operation: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let outcome = operation(&mut store);
        let revision = store.revision();
        drop(store);
        self.revision.send_if_modified(|known| {
            let news = revision > *known;
            *known = revision.max(*known);
            news
        });
        outcome
    }

    pub(crate) fn add_fault(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    /// Counts a request that was allowed.
    pub(crate) fn count(&self, verb: Verb, resource: Resource) {
        *self.served.lock().unwrap_or_else(PoisonError::into_inner).entry((verb, resource)).or_default() += 1;
    }

    pub(crate) fn served(&self, verb: Verb, resource: Resource) -> u64 {
        self.served
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(verb, resource))
            .copied()
            .unwrap_or_default()
    }

    /// The failure that this request was chosen to meet, if any.
    pub(crate) fn fault(&self, verb: Verb, resource: Resource) -> Option<Failure> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let at = faults.iter().position(|fault| fault.verb == verb && fault.resource == resource)?;
        let fault = faults.get_mut(at)?;
        fault.times = fault.times.saturating_sub(1);
        let (failure, spent) = (fault.failure.clone(), fault.times == 0);
        if spent {
            faults.remove(at);
        }
        Some(failure)
    }
}

/// Now, a fresh UID and a fresh suffix.
pub(crate) fn stamp() -> Stamp {
    let (high, low) = (random(), random());
    let uid = format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        ((low >> 48) & 0x3fff) | 0x8000,
        low & 0xffff_ffff_ffff,
    );
    // Without vowels, so that no suffix spells a word.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut draw = random();
    let mut suffix = String::new();
    for _ in 0..5 {
        let at = usize::try_from(draw % LETTERS.len() as u64).unwrap_or_default();
        suffix.extend(LETTERS.get(at).map(|letter| char::from(*letter)));
        draw /= LETTERS.len() as u64;
    }
    Stamp { now: now(), uid, suffix }
}

fn random() -> u64 {
    // Keys fresh from the system; good for identities, and nothing here is a secret.
    RandomState::new().build_hasher().finish()
}

/// `metav1.Time`: whole seconds, UTC.
pub(crate) fn now() -> String {
    rfc3339(time::OffsetDateTime::now_utc())
}

/// A moment in UTC, in whole seconds.
pub(crate) fn rfc3339(moment: time::OffsetDateTime) -> String {
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        moment.year(),
        u8::from(moment.month()),
        moment.day(),
        moment.hour(),
        moment.minute(),
        moment.second()
    )
}
