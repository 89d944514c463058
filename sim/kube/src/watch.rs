//! A watch: the log of changes as a stream of lines.
//!
//! What must hold: a watch that cannot be continued without a gap ends with an `ERROR` event of code 410, also when it
//! was merely too slow to read. A client that missed a deletion without being told would keep a dead node for ever.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::ExpiredWatch;
use crate::failure::Failure;
use crate::http::Body;
use crate::representation::Representation;
use crate::resource::Resource;
use crate::selector::Selector;
use crate::shared::Shared;
use crate::store::{Change, Compacted};

/// Lines prepared at once; bounds what a slow reader can make the emulator hold.
const BATCH: usize = 256;

/// What a watch is asked for.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) resource: Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) selector: Selector,
    /// Begin after this revision; `None` with the present objects.
    pub(crate) after: Option<u64>,
    /// Tell with a bookmark where the present objects end.
    pub(crate) mark_end: bool,
    pub(crate) bookmarks: bool,
    pub(crate) limit: Duration,
    pub(crate) representation: Representation,
}

struct Watch {
    shared: Arc<Shared>,
    order: Order,
    /// All changes up to this revision were prepared.
    at: u64,
    lines: VecDeque<Bytes>,
    columns_told: bool,
    ended: bool,
    deadline: Instant,
    next_bookmark: Instant,
    revision: watch::Receiver<u64>,
    cut: watch::Receiver<u64>,
}

pub(crate) fn stream(shared: Arc<Shared>, order: Order) -> Result<Body, Failure> {
    let now = Instant::now();
    let mut watch = Watch {
        at: 0,
        lines: VecDeque::new(),
        columns_told: false,
        ended: false,
        deadline: now + order.limit,
        next_bookmark: now + shared.config.bookmark_interval,
        revision: shared.revision.subscribe(),
        cut: shared.cut.subscribe(),
        order,
        shared,
    };
    watch.begin()?;
    let lines = stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((line.map(Frame::data), watch))
    });
    Ok(StreamBody::new(lines).boxed_unsync())
}

impl Watch {
    fn begin(&mut self) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let store = shared.store();
        match self.order.after {
            Some(after) => {
                let expired = store.changes_after(after).err().map(|compacted| too_old(after, compacted));
                drop(store);
                match (expired, shared.config.expired_watch) {
                    (Some(failure), ExpiredWatch::Http) => return Err(failure),
                    (Some(failure), ExpiredWatch::Event) => self.end_with(&failure),
                    (None, _) => self.at = after,
                }
            }
            None => {
                let objects: Vec<Arc<Value>> = store
                    .list(self.order.resource, self.order.namespace.as_deref())
                    .map(|(_, object)| Arc::clone(object))
                    .filter(|object| self.order.selector.matches(object))
                    .collect();
                self.at = store.revision();
                drop(store);
                for object in objects {
                    self.push("ADDED", &object);
                }
                if self.order.mark_end {
                    let bookmark = self.order.representation.bookmark(self.at, true);
                    self.lines.push_back(line("BOOKMARK", &bookmark));
                }
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            if self.ended {
                return None;
            }
            // Whatever changes after this look marks the receiver again.
            self.revision.borrow_and_update();
            self.prepare();
            if !self.lines.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.revision.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                }
                cut = self.cut.changed() => {
                    drop(cut);
                    self.ended = true;
                    return Some(Err(std::io::Error::other("the watch was cut")));
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    // The last bookmark spares the client what it has seen already.
                    self.ended = true;
                    self.push_bookmark();
                }
                () = tokio::time::sleep_until(self.next_bookmark), if self.order.bookmarks => self.push_bookmark(),
            }
        }
    }

    /// Turns the next changes into lines.
    fn prepare(&mut self) {
        let shared = Arc::clone(&self.shared);
        let store = shared.store();
        let batch: Result<Vec<Change>, Compacted> =
            store.changes_after(self.at).map(|changes| changes.take(BATCH).cloned().collect());
        drop(store);
        match batch {
            Err(compacted) => self.end_with(&too_old(self.at, compacted)),
            Ok(changes) => {
                for change in changes {
                    // A watch from a future revision sees nothing until that is reached.
                    self.at = self.at.max(change.revision);
                    self.offer(&change);
                }
            }
        }
    }

    fn offer(&mut self, change: &Change) {
        let here = change.key.resource == self.order.resource
            && self.order.namespace.as_ref().is_none_or(|namespace| *namespace == change.key.namespace);
        if !here {
            return;
        }
        let before = change.before.as_ref().is_some_and(|object| self.order.selector.matches(object));
        let after = !change.deleted && self.order.selector.matches(&change.after);
        match (before, after) {
            (false, true) => self.push("ADDED", &change.after),
            (true, true) => self.push("MODIFIED", &change.after),
            (true, false) if change.deleted => self.push("DELETED", &change.after),
            (true, false) => {
                // The object left the selection: it is shown as it was, at the revision at which it left.
                let mut last = change.before.as_ref().map(|object| Value::clone(object)).unwrap_or_default();
                if let Some(version) = last.pointer_mut("/metadata/resourceVersion") {
                    *version = change.revision.to_string().into();
                }
                self.push("DELETED", &last);
            }
            (false, false) => {}
        }
    }

    fn push(&mut self, kind: &str, object: &Value) {
        let shown = self.order.representation.event(object, !self.columns_told);
        self.columns_told = true;
        self.lines.push_back(line(kind, &shown));
    }

    fn push_bookmark(&mut self) {
        self.next_bookmark = Instant::now() + self.shared.config.bookmark_interval;
        if self.order.bookmarks {
            // All changes up to the store's revision were prepared, those of other kinds included.
            let bookmark = self.order.representation.bookmark(self.at, false);
            self.lines.push_back(line("BOOKMARK", &bookmark));
            self.shared.bookmarks.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end_with(&mut self, failure: &Failure) {
        self.lines.push_back(line("ERROR", &failure.to_status()));
        self.ended = true;
    }
}

fn too_old(wanted: u64, compacted: Compacted) -> Failure {
    Failure::expired(format!("too old resource version: {wanted} ({})", compacted.oldest))
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    Bytes::from(text)
}
