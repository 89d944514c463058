//! The nodes of a cluster as a value that is always whole, and a signal to look at it again.
//!
//! Owns the list-and-watch conversation: a paged list, then a watch from the list's version with bookmarks, resumed
//! after every break and started over when the server has forgotten that version (410).
//!
//! What must hold: a snapshot is never a part of a list. A list that fails on its third page changes nothing, and while
//! the server is away the last whole snapshot stands. If that broke, live peers would look deleted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http::Method;
use kube::core::WatchEvent;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::{Cluster, segment};
use crate::backoff::{Backoff, spread};
use crate::error::{Error, Result};
use crate::node::{Keep, NodeView, WireNode};

/// Nodes by name.
pub type Nodes = BTreeMap<String, Arc<NodeView>>;

/// Nodes asked for per page of a list: a page of full nodes is a few megabytes of JSON, and no more than one is held.
const PAGE: usize = 500;
/// The server sends a bookmark about every minute; a connection silent for longer than two is taken for dead.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that has lasted this long was healthy, whatever ended it.
const HEALTHY: Duration = Duration::from_secs(10);

/// Which nodes to watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NodeSelection {
    /// Every node of the cluster.
    #[default]
    All,
    /// The node of this name, whether it exists yet or not.
    One(String),
}

/// What to watch and what to keep of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchOptions {
    /// Which nodes.
    pub selection: NodeSelection,
    /// Keep only labels that begin with one of these; `None` keeps all.
    pub label_prefixes: Option<Vec<String>>,
    /// Keep only annotations that begin with one of these; `None` keeps all.
    pub annotation_prefixes: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default)]
struct State {
    nodes: Option<Arc<Nodes>>,
    trouble: Option<Arc<Error>>,
}

/// A running watch of nodes. Level-triggered: it holds the present state and wakes whoever waits when that differs.
/// Dropping it ends the watch.
#[derive(Debug)]
pub struct NodeWatch {
    state: watch::Receiver<State>,
    task: tokio::task::JoinHandle<()>,
}

impl Cluster {
    /// Starts watching nodes. Returns at once; the first list is read in the background, retried until it succeeds.
    /// Must be called inside a tokio runtime; a current-thread one is enough.
    #[must_use]
    pub fn watch_nodes(&self, options: WatchOptions) -> NodeWatch {
        let (sender, state) = watch::channel(State::default());
        let conversation = Conversation::new(self.clone(), options, sender);
        NodeWatch { state, task: tokio::spawn(conversation.run()) }
    }
}

impl Drop for NodeWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl NodeWatch {
    /// All selected nodes as last known; `None` until one complete list was read. Cheap: a reference count.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Nodes>> {
        self.state.borrow().nodes.clone()
    }

    /// Why the server cannot be followed at present; `None` while all is well.
    #[must_use]
    pub fn trouble(&self) -> Option<Arc<Error>> {
        self.state.borrow().trouble.clone()
    }

    /// Waits until the nodes or the trouble differ from when this was last called (or, the first time, from the start).
    /// Many changes in between are one wake-up. Heartbeats that change nothing in a [`NodeView`] do not wake anybody.
    pub async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            // Only at shutdown of the runtime does the sender go before we do.
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the first complete list and returns it; at once when there is one already.
    pub async fn ready(&mut self) -> Arc<Nodes> {
        match self.state.wait_for(|state| state.nodes.is_some()).await {
            Ok(state) => state.nodes.clone().unwrap_or_default(),
            Err(_closed) => std::future::pending().await,
        }
    }
}

#[derive(Deserialize)]
struct Page {
    metadata: PageMeta,
    items: Option<Vec<WireNode>>,
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

struct Conversation {
    cluster: Cluster,
    selector: String,
    what: String,
    keep: Keep,
    sender: watch::Sender<State>,
}

impl Conversation {
    fn new(cluster: Cluster, options: WatchOptions, sender: watch::Sender<State>) -> Self {
        let (selector, what) = match options.selection {
            NodeSelection::All => (String::new(), "nodes".to_owned()),
            NodeSelection::One(name) => {
                let selector = format!("metadata.name={name}");
                (format!("&fieldSelector={}", segment(&selector)), format!("node {name}"))
            }
        };
        let keep = Keep { labels: options.label_prefixes, annotations: options.annotation_prefixes };
        Self { cluster, selector, what, keep, sender }
    }

    async fn run(self) {
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
                    tracing::debug!(what = %self.what, "the server has forgotten our version; listing again");
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
        let operation = format!("list {}", self.what);
        let mut nodes = Nodes::new();
        let mut token: Option<String> = None;
        let version = loop {
            let continued =
                token.as_ref().map(|token| format!("&continue={}", segment(token))).unwrap_or_default();
            let path = format!("/api/v1/nodes?limit={PAGE}{}{continued}", self.selector);
            let page: Page = self.cluster.get(&operation, &path).await?;
            for wire in page.items.unwrap_or_default() {
                let view = wire.into_view(&self.keep);
                nodes.insert(view.name.clone(), Arc::new(view));
            }
            token = page.metadata.r#continue.filter(|token| !token.is_empty());
            if token.is_none() {
                break page.metadata.resource_version;
            }
        };
        self.sender.send_if_modified(|state| {
            let old = state.nodes.take();
            let (merged, changed) = merge(old.as_deref(), nodes);
            let first = old.is_none();
            state.nodes =
                Some(if changed { Arc::new(merged) } else { old.unwrap_or_else(|| Arc::new(merged)) });
            changed || first
        });
        Ok(version)
    }

    /// Follows changes after `version` until the stream ends, keeping `version` at the last one seen.
    /// `progress` tells whether anything came at all.
    async fn follow(&self, version: &mut String, progress: &mut bool) -> Result<End> {
        let operation = format!("watch {}", self.what);
        let limit = spread(Duration::from_secs(240), Duration::from_secs(360));
        let path = format!(
            "/api/v1/nodes?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}{}",
            limit.as_secs(),
            segment(version),
            self.selector,
        );
        let request = self.cluster.build(&operation, Method::GET, &path, None, Vec::new())?;
        let fail = |source| Error::from_kube(&operation, self.cluster.server(), source);
        let silent = || Error::Timeout {
            operation: operation.clone(),
            server: self.cluster.server().to_owned(),
            seconds: SILENCE.as_secs(),
        };
        let opening = self.cluster.client().request_events::<WireNode>(request);
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
                    tracing::debug!(what = %self.what, "no event and no bookmark in a long time; watching anew");
                    return Ok(End::Closed);
                }
            };
            *progress |= !matches!(event, WatchEvent::Error(_));
            match event {
                WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                    version.replace_range(.., node.resource_version());
                    self.put(node.into_view(&self.keep));
                }
                WatchEvent::Deleted(node) => {
                    version.replace_range(.., node.resource_version());
                    self.remove(node.name());
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

    fn put(&self, view: NodeView) {
        self.sender.send_if_modified(|state| {
            let Some(nodes) = state.nodes.as_mut() else { return false };
            if nodes.get(&view.name).is_some_and(|known| known.same_content(&view)) {
                return false;
            }
            // Copies the map (of references) only while somebody still reads the last snapshot.
            Arc::make_mut(nodes).insert(view.name.clone(), Arc::new(view));
            true
        });
    }

    fn remove(&self, name: &str) {
        self.sender.send_if_modified(|state| {
            let Some(nodes) = state.nodes.as_mut() else { return false };
            nodes.contains_key(name) && Arc::make_mut(nodes).remove(name).is_some()
        });
    }

    fn report_trouble(&self, error: Error) {
        self.sender.send_if_modified(|state| {
            let news = state.trouble.as_ref().is_none_or(|known| known.to_string() != error.to_string());
            if news {
                tracing::warn!(%error, "cannot follow {}; the last known state stands, trying again", self.what);
                state.trouble = Some(Arc::new(error));
            }
            news
        });
    }

    fn report_recovery(&self) {
        self.sender.send_if_modified(|state| {
            let healed = state.trouble.take().is_some();
            if healed {
                tracing::info!(server = self.cluster.server(), "following {} again", self.what);
            }
            healed
        });
    }
}

/// The new list, with the views that did not change taken over from the old one, and whether anything differs.
fn merge(old: Option<&Nodes>, mut new: Nodes) -> (Nodes, bool) {
    let Some(old) = old else { return (new, true) };
    let mut changed = old.len() != new.len();
    for (name, view) in &mut new {
        match old.get(name) {
            Some(known) if known.same_content(view) => *view = Arc::clone(known),
            _ => changed = true,
        }
    }
    (new, changed)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (merged, changed) = merge(Some(&old), nodes(&[("a", "1"), ("b", "2")]));
        assert!(!changed);
        assert!(Arc::ptr_eq(&merged["a"], &old["a"]));
    }

    #[test]
    fn a_replaced_a_removed_and_an_added_node_are_changes() {
        let old = nodes(&[("a", "1"), ("b", "2")]);
        assert!(merge(Some(&old), nodes(&[("a", "1"), ("b", "3")])).1);
        assert!(merge(Some(&old), nodes(&[("a", "1")])).1);
        assert!(merge(Some(&old), nodes(&[("a", "1"), ("c", "2")])).1);
        assert!(merge(None, nodes(&[])).1, "the first list is news even when it is empty");
    }
}
