//! The list-and-watch conversation: a paged list, then a watch from the list's version with bookmarks, resumed after every break
//! and started over when the server has forgotten that version (410).
//!
//! What must hold: a snapshot is never a part of a list. A list that fails on its third page changes nothing, and while
//! the server is away the last whole snapshot stands. If that broke, live peers would look deleted.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use kube::core::WatchEvent;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::{Cluster, segment};
use crate::backoff::{Backoff, spread};
use crate::error::{Error, Result};

/// Objects asked for per page of a list: a full node is a dozen kilobytes of JSON, and a page is held as it came and once more as text.
const PAGE: usize = 100;
/// The server sends a bookmark about every minute; a connection silent for longer than two is taken for dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that has lasted this long was healthy, whatever ended it.
const HEALTHY: Duration = Duration::from_secs(10);

/// A kind of object to follow, and what to keep of each.
pub(crate) trait Kind: Send + Sync + 'static {
    /// An object as far as it is decoded.
    type Wire: DeserializeOwned + Clone + Debug + Send + 'static;
    /// What is kept; cheap to clone.
    type View: Clone + Send + Sync + 'static;

    /// The collection, such as `/api/v1/nodes`.
    fn path(&self) -> &'static str;
    /// The field selector; empty for all.
    fn fields(&self) -> &str;
    /// What is followed, for people.
    fn what(&self) -> &str;
    /// What tells objects apart.
    fn key(wire: &Self::Wire) -> String;
    /// The object's version.
    fn version(wire: &Self::Wire) -> &str;
    /// What is kept of an object; `None` for one that is of no interest.
    fn view(&self, wire: Self::Wire) -> Option<Self::View>;
    /// Whether two views say the same.
    fn same(old: &Self::View, new: &Self::View) -> bool;
}

/// What is known of the objects.
#[derive(Debug, Clone)]
pub(crate) struct State<V> {
    pub(crate) objects: Option<Arc<BTreeMap<String, V>>>,
    pub(crate) trouble: Option<Arc<Error>>,
}

impl<V> Default for State<V> {
    fn default() -> Self {
        Self { objects: None, trouble: None }
    }
}

#[derive(Deserialize)]
struct Page<W> {
    metadata: PageMeta,
    items: Option<Vec<W>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    r#continue: Option<String>,
}

/// Why a watch ended.
enum End {
    /// The stream closed or went silent: watch again from where it stopped.
    Closed,
    /// The server no longer has the changes after our version: list again.
    Forgotten,
}

pub(crate) struct Conversation<K: Kind> {
    cluster: Cluster,
    kind: K,
    sender: watch::Sender<State<K::View>>,
}

impl<K: Kind> Conversation<K> {
    pub(crate) fn new(cluster: Cluster, kind: K, sender: watch::Sender<State<K::View>>) -> Self {
        Self { cluster, kind, sender }
    }

    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let mut version: Option<String> = None;
        loop {
            let started = Instant::now();
            let outcome = match version.take() {
                None => match self.list().await {
                    Ok(listed) => {
                        version = Some(listed);
                        self.report_recovery();
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Some(mut at) => {
                    let mut progress = false;
                    let outcome = self.follow(&mut at, &mut progress).await;
                    // A list alone is no progress: a server that forgets every version at once must not be listed
                    // without end.
                    if progress || started.elapsed() >= HEALTHY {
                        backoff.reset();
                    }
                    if !matches!(outcome, Ok(End::Forgotten)) {
                        version = Some(at);
                    }
                    outcome
                }
            };
            match outcome {
                // A watch that ends by its own time limit is the normal case and resumed at once; the delay matters for
                // a server that closes each one immediately.
                Ok(End::Closed) if started.elapsed() >= HEALTHY => continue,
                Ok(End::Closed) => {}
                Ok(End::Forgotten) => {
                    tracing::debug!(
                        what = self.kind.what(),
                        "the server has forgotten our version; listing again"
                    );
                    version = None;
                }
                Err(error) if error.is_gone() => version = None,
                Err(error) => self.report_trouble(error),
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Reads all pages and only then shows them. Returns the version to watch from.
    async fn list(&self) -> Result<String> {
        let operation = format!("list {}", self.kind.what());
        let mut objects = BTreeMap::new();
        let mut token: Option<String> = None;
        let version = loop {
            let continued =
                token.as_ref().map(|token| format!("&continue={}", segment(token))).unwrap_or_default();
            let path = format!("{}?limit={PAGE}{}{continued}", self.kind.path(), self.selector());
            let page: Page<K::Wire> = self.cluster.get(&operation, &path).await?;
            for wire in page.items.unwrap_or_default() {
                let key = K::key(&wire);
                if let Some(view) = self.kind.view(wire) {
                    objects.insert(key, view);
                }
            }
            token = page.metadata.r#continue.filter(|token| !token.is_empty());
            if token.is_none() {
                break page.metadata.resource_version;
            }
        };
        self.sender.send_if_modified(|state| {
            let old = state.objects.take();
            let (merged, changed) = merge::<K>(old.as_deref(), objects);
            let first = old.is_none();
            state.objects =
                Some(if changed { Arc::new(merged) } else { old.unwrap_or_else(|| Arc::new(merged)) });
            changed || first
        });
        Ok(version)
    }

    /// Follows changes after `version` until the stream ends, keeping `version` at the last one seen.
    /// `progress` tells whether anything came at all.
    async fn follow(&self, version: &mut String, progress: &mut bool) -> Result<End> {
        let operation = format!("watch {}", self.kind.what());
        let limit = spread(Duration::from_secs(240), Duration::from_secs(360));
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}{}",
            self.kind.path(),
            limit.as_secs(),
            segment(version),
            self.selector(),
        );
        let request = self.cluster.build(&operation, Method::GET, &path, None, Vec::new())?;
        let fail = |source| Error::from_kube(&operation, self.cluster.server(), source);
        let silent = || Error::Timeout {
            operation: operation.clone(),
            server: self.cluster.server().to_owned(),
            seconds: SILENCE.as_secs(),
        };
        let opening = self.cluster.client().request_events::<K::Wire>(request);
        let stream = match tokio::time::timeout(Duration::from_secs(30), opening).await {
            Ok(opened) => opened.map_err(fail)?,
            Err(_elapsed) => return Err(silent()),
        };
        let mut stream = std::pin::pin!(stream);
        self.report_recovery();
        loop {
            let event = match tokio::time::timeout(SILENCE, stream.next()).await {
                Ok(Some(event)) => event.map_err(fail)?,
                Ok(None) => return Ok(End::Closed),
                Err(_elapsed) => {
                    tracing::debug!(
                        what = self.kind.what(),
                        "no event and no bookmark in a long time; watching anew"
                    );
                    return Ok(End::Closed);
                }
            };
            *progress |= !matches!(event, WatchEvent::Error(_));
            match event {
                WatchEvent::Added(wire) | WatchEvent::Modified(wire) => {
                    version.replace_range(.., K::version(&wire));
                    let key = K::key(&wire);
                    match self.kind.view(wire) {
                        Some(view) => self.put(key, view),
                        None => self.remove(&key),
                    }
                }
                WatchEvent::Deleted(wire) => {
                    version.replace_range(.., K::version(&wire));
                    self.remove(&K::key(&wire));
                }
                WatchEvent::Bookmark(bookmark) => {
                    version.replace_range(.., &bookmark.metadata.resource_version)
                }
                WatchEvent::Error(status) if status.code == 410 => return Ok(End::Forgotten),
                WatchEvent::Error(status) => {
                    return Err(Error::from_status(operation, self.cluster.server().to_owned(), &status));
                }
            }
        }
    }

    fn put(&self, key: String, view: K::View) {
        self.sender.send_if_modified(|state| {
            let Some(objects) = state.objects.as_mut() else { return false };
            if objects.get(&key).is_some_and(|known| K::same(known, &view)) {
                return false;
            }
            // Copies the map (of references) only while somebody still reads the last snapshot.
            Arc::make_mut(objects).insert(key, view);
            true
        });
    }

    fn remove(&self, key: &str) {
        self.sender.send_if_modified(|state| {
            let Some(objects) = state.objects.as_mut() else { return false };
            objects.contains_key(key) && Arc::make_mut(objects).remove(key).is_some()
        });
    }

    fn selector(&self) -> String {
        match self.kind.fields() {
            "" => String::new(),
            fields => format!("&fieldSelector={}", segment(fields)),
        }
    }

    fn report_trouble(&self, error: Error) {
        self.sender.send_if_modified(|state| {
            let news = state.trouble.as_ref().is_none_or(|known| known.to_string() != error.to_string());
            if news {
                tracing::warn!(%error, "cannot follow {}; the last known state stands, trying again", self.kind.what());
                state.trouble = Some(Arc::new(error));
            }
            news
        });
    }

    fn report_recovery(&self) {
        self.sender.send_if_modified(|state| {
            let healed = state.trouble.take().is_some();
            if healed {
                tracing::info!(server = self.cluster.server(), "following {} again", self.kind.what());
            }
            healed
        });
    }
}

/// The new list, with the views that did not change taken over from the old one, and whether anything differs.
fn merge<K: Kind>(
    old: Option<&BTreeMap<String, K::View>>,
    mut new: BTreeMap<String, K::View>,
) -> (BTreeMap<String, K::View>, bool) {
    let Some(old) = old else { return (new, true) };
    let mut changed = old.len() != new.len();
    for (key, view) in &mut new {
        match old.get(key) {
            Some(known) if K::same(known, view) => *view = known.clone(),
            _ => changed = true,
        }
    }
    (new, changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Keep, WireNode};
    use crate::watch::{NodeKind, Nodes};

    fn nodes(names: &[(&str, &str)]) -> Nodes {
        names
            .iter()
            .map(|(name, uid)| {
                let wire: WireNode =
                    serde_json::from_value(serde_json::json!({"metadata": {"name": name, "uid": uid}}))
                        .unwrap();
                ((*name).to_owned(), Arc::new(wire.into_view(&Keep::default())))
            })
            .collect()
    }

    #[test]
    fn a_repeated_list_is_no_change_and_keeps_the_old_views() {
        let old = nodes(&[("a", "1"), ("b", "2")]);
        let (merged, changed) = merge::<NodeKind>(Some(&old), nodes(&[("a", "1"), ("b", "2")]));
        assert!(!changed);
        assert!(Arc::ptr_eq(&merged["a"], &old["a"]));
    }

    #[test]
    fn a_replaced_a_removed_and_an_added_node_are_changes() {
        let old = nodes(&[("a", "1"), ("b", "2")]);
        assert!(merge::<NodeKind>(Some(&old), nodes(&[("a", "1"), ("b", "3")])).1);
        assert!(merge::<NodeKind>(Some(&old), nodes(&[("a", "1")])).1);
        assert!(merge::<NodeKind>(Some(&old), nodes(&[("a", "1"), ("c", "2")])).1);
        assert!(merge::<NodeKind>(None, nodes(&[])).1, "the first list is news even when it is empty");
    }
}
