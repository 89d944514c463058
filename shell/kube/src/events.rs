//! Events: what happened to an object, where a person looks for it (`kubectl describe node`).
//!
//! Owns the recorder: callers hand over an event and go on; a task writes it. The same event again raises the count of
//! the first instead of making a second, and each object has a budget, so that a fault which repeats every second
//! neither fills etcd nor slows the caller. What does not fit is dropped and counted in the log: an event is a hint,
//! never the only record of anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::access::{Cluster, segment};
use crate::backoff::Backoff;
use crate::error::{Error, Result};
use crate::node::NodeView;
use crate::write::rfc3339;

/// Events waiting to be written; a burst beyond it is dropped.
const QUEUE: usize = 512;
/// Distinct events remembered for counting; the API server itself forgets events after an hour.
const REMEMBERED: usize = 1024;
/// Writes one object may cause at once.
const BURST: f64 = 25.0;
/// Seconds until one more write is allowed for an object whose burst is used up (as in Go's client library).
const REFILL_SECONDS: f64 = 300.0;
/// Attempts at one event while the server is away.
const ATTEMPTS: usize = 6;
/// The API server refuses messages longer than this.
const MESSAGE_LIMIT: usize = 1024;

/// Whether an event tells of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// Things went as they should.
    Normal,
    /// Somebody should look.
    Warning,
}

impl EventKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object an event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    /// Such as `v1`.
    pub api_version: String,
    /// Such as `Node`.
    pub kind: String,
    /// Empty for objects of the whole cluster.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The object's UID, by which `kubectl describe` finds the event.
    pub uid: String,
}

impl Regarding {
    /// A node, by its real UID.
    #[must_use]
    pub fn node(node: &NodeView) -> Self {
        Self {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            namespace: String::new(),
            name: node.name.clone(),
            uid: node.uid.clone(),
        }
    }

    /// A namespaced object.
    #[must_use]
    pub fn object(api_version: &str, kind: &str, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    /// Where the event object lives: with its object, and in `default` for objects of the whole cluster.
    fn event_namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}

enum Order {
    Record(Entry),
    Flush(oneshot::Sender<()>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    regarding: Regarding,
    kind: EventKind,
    reason: String,
    message: String,
}

/// Writes events in the background. Cheap to clone. The writer ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Events {
    orders: mpsc::Sender<Order>,
}

impl Cluster {
    /// Starts a recorder whose events name `component` (such as `flanneld`) and `instance` (such as the node or pod it
    /// runs on) as their source. Must be called inside a tokio runtime.
    #[must_use]
    pub fn events(&self, component: &str, instance: &str) -> Events {
        let (orders, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            cluster: self.clone(),
            component: component.to_owned(),
            instance: instance.to_owned(),
            known: BTreeMap::new(),
            order: VecDeque::new(),
            budgets: BTreeMap::new(),
        };
        tokio::spawn(writer.run(receiver));
        Events { orders }
    }
}

impl Events {
    /// Hands an event over and returns at once. `reason` is one CamelCase word; `message` is for people and cut at 1024
    /// bytes, the API server's limit.
    pub fn record(&self, regarding: Regarding, kind: EventKind, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MESSAGE_LIMIT {
            let mut end = MESSAGE_LIMIT;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        let entry = Entry { regarding, kind, reason: reason.to_owned(), message };
        if let Err(refused) = self.orders.try_send(Order::Record(entry))
            && let Order::Record(entry) = refused.into_inner()
        {
            tracing::debug!(
                reason = entry.reason,
                message = entry.message,
                "event dropped: too many are waiting"
            );
        }
    }

    /// Waits until everything recorded before was written or given up, at most five seconds. For an orderly end.
    pub async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        let flushing = async {
            if self.orders.send(Order::Flush(done)).await.is_ok() {
                let _writer_gone = wait.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), flushing).await.is_err() {
            tracing::debug!("events were still waiting to be written at the end");
        }
    }
}

/// The event object in the API that counts an entry.
#[derive(Debug, Clone)]
struct Counted {
    name: String,
    count: u64,
}

#[derive(Debug)]
struct Budget {
    tokens: f64,
    at: Instant,
}

struct Writer {
    cluster: Cluster,
    component: String,
    instance: String,
    known: BTreeMap<Entry, Counted>,
    order: VecDeque<Entry>,
    budgets: BTreeMap<Regarding, Budget>,
}

/// The answer's body is not needed; it must only be an object.
#[derive(Deserialize)]
struct Ignored {}

impl Writer {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        while let Some(order) = orders.recv().await {
            match order {
                Order::Record(entry) => self.write(entry).await,
                Order::Flush(done) => {
                    let _caller_gone = done.send(());
                }
            }
        }
    }

    async fn write(&mut self, entry: Entry) {
        if !self.within_budget(&entry.regarding, Instant::now()) {
            tracing::debug!(
                object = entry.regarding.name,
                reason = entry.reason,
                "event dropped: too many about this object"
            );
            return;
        }
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        for _ in 0..ATTEMPTS {
            match self.try_write(&entry).await {
                Ok(()) => return,
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "event not written yet");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(error) => {
                    tracing::warn!(%error, reason = entry.reason, message = entry.message, "event not written");
                    return;
                }
            }
        }
        tracing::warn!(
            reason = entry.reason,
            message = entry.message,
            "event not written: the API server is away"
        );
    }

    fn within_budget(&mut self, regarding: &Regarding, now: Instant) -> bool {
        if self.budgets.len() >= REMEMBERED && !self.budgets.contains_key(regarding) {
            // Full budgets say nothing that a new one would not; if all are in use, forgetting them is the lesser harm.
            self.budgets.retain(|_, budget| {
                budget.tokens + now.duration_since(budget.at).as_secs_f64() / REFILL_SECONDS < BURST
            });
            if self.budgets.len() >= REMEMBERED {
                self.budgets.clear();
            }
        }
        let budget = self.budgets.entry(regarding.clone()).or_insert(Budget { tokens: BURST, at: now });
        budget.tokens =
            (budget.tokens + now.duration_since(budget.at).as_secs_f64() / REFILL_SECONDS).min(BURST);
        budget.at = now;
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    async fn try_write(&mut self, entry: &Entry) -> Result<()> {
        let namespace = entry.regarding.event_namespace();
        let collection = format!("/api/v1/namespaces/{}/events", segment(namespace));
        let operation =
            format!("record event {} of {} {}", entry.reason, entry.regarding.kind, entry.regarding.name);
        let now = OffsetDateTime::now_utc();
        if let Some(counted) = self.known.get_mut(entry) {
            let count = counted.count + 1;
            let path = format!("{collection}/{}", segment(&counted.name));
            let body = json!({"count": count, "lastTimestamp": rfc3339(now)});
            match self.cluster.patch::<Ignored>(&operation, &path, &body).await {
                Ok(Ignored {}) => {
                    counted.count = count;
                    return Ok(());
                }
                // The API server keeps events for an hour only.
                Err(Error::NotFound { .. }) => self.forget(entry),
                Err(error) => return Err(error),
            }
        }
        let name = event_name(&entry.regarding.name, now);
        let body = self.object(entry, &name, now);
        match self.cluster.post::<Ignored>(&operation, &collection, &body).await {
            // A conflict is our own earlier attempt, whose answer was lost.
            Ok(Ignored {}) | Err(Error::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
        self.remember(entry.clone(), Counted { name, count: 1 });
        Ok(())
    }

    /// In the older of the two forms of an event (no `eventTime`), the one in which `count` counts.
    fn object(&self, entry: &Entry, name: &str, now: OffsetDateTime) -> serde_json::Value {
        let namespace = entry.regarding.event_namespace();
        let regarding = &entry.regarding;
        let mut involved = json!({
            "apiVersion": regarding.api_version,
            "kind": regarding.kind,
            "name": regarding.name,
            "uid": regarding.uid,
        });
        if !regarding.namespace.is_empty()
            && let Some(fields) = involved.as_object_mut()
        {
            fields.insert("namespace".to_owned(), regarding.namespace.clone().into());
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "type": entry.kind.as_str(),
            "reason": entry.reason,
            "message": entry.message,
            "source": {"component": self.component, "host": self.instance},
            "reportingComponent": self.component,
            "reportingInstance": self.instance,
            "firstTimestamp": rfc3339(now),
            "lastTimestamp": rfc3339(now),
            "count": 1,
        })
    }

    fn remember(&mut self, entry: Entry, counted: Counted) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.order.push_back(entry.clone());
        self.known.insert(entry, counted);
    }

    fn forget(&mut self, entry: &Entry) {
        self.known.remove(entry);
        self.order.retain(|known| known != entry);
    }
}

/// The object's name and the time, within the 253 characters that a name may have.
fn event_name(object: &str, now: OffsetDateTime) -> String {
    let prefix: String = object.chars().take(220).collect();
    format!("{}.{:x}", prefix.trim_end_matches(['.', '-']), now.unix_timestamp_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_events_fit() {
        let now = OffsetDateTime::from_unix_timestamp(1_767_225_600).unwrap();
        assert_eq!(event_name("n1", now), "n1.18867251edfa0000");
        let long = event_name(&format!("{}.{}", "a".repeat(219), "b".repeat(33)), now);
        assert_eq!(long, format!("{}.18867251edfa0000", "a".repeat(219)));
    }
}
