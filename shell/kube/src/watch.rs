//! The nodes of a cluster as a value that is always whole, and a signal to look at it again.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::access::Cluster;
use crate::conversation::{Conversation, Kind, State};
use crate::error::Error;
use crate::node::{Keep, NodeView, WireNode};

/// Nodes by name.
pub type Nodes = BTreeMap<String, Arc<NodeView>>;

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

/// A running watch of nodes. Level-triggered: it holds the present state and wakes whoever waits when that differs.
/// Dropping it ends the watch.
#[derive(Debug)]
pub struct NodeWatch {
    state: watch::Receiver<State<Arc<NodeView>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Cluster {
    /// Starts watching nodes. Returns at once; the first list is read in the background, retried until it succeeds.
    /// Must be called inside a tokio runtime; a current-thread one is enough.
    #[must_use]
    pub fn watch_nodes(&self, options: WatchOptions) -> NodeWatch {
        let (sender, state) = watch::channel(State::default());
        let conversation = Conversation::new(self.clone(), NodeKind::new(options), sender);
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
        self.state.borrow().objects.clone()
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
        match self.state.wait_for(|state| state.objects.is_some()).await {
            Ok(state) => state.objects.clone().unwrap_or_default(),
            Err(_closed) => std::future::pending().await,
        }
    }
}

/// Nodes, as a watch asks for them.
pub(crate) struct NodeKind {
    fields: String,
    what: String,
    keep: Keep,
}

impl NodeKind {
    fn new(options: WatchOptions) -> Self {
        let (fields, what) = match options.selection {
            NodeSelection::All => (String::new(), "nodes".to_owned()),
            NodeSelection::One(name) => (format!("metadata.name={name}"), format!("node {name}")),
        };
        let keep = Keep {
            labels: options.label_prefixes,
            annotations: options.annotation_prefixes,
            ..Keep::default()
        };
        Self { fields, what, keep }
    }
}

impl Kind for NodeKind {
    type Wire = WireNode;
    type View = Arc<NodeView>;

    fn path(&self) -> &'static str {
        "/api/v1/nodes"
    }

    fn fields(&self) -> &str {
        &self.fields
    }

    fn what(&self) -> &str {
        &self.what
    }

    fn key(wire: &WireNode) -> String {
        wire.name().to_owned()
    }

    fn version(wire: &WireNode) -> &str {
        wire.resource_version()
    }

    fn view(&self, wire: WireNode) -> Option<Arc<NodeView>> {
        Some(Arc::new(wire.into_view(&self.keep)))
    }

    fn same(old: &Arc<NodeView>, new: &Arc<NodeView>) -> bool {
        old.same_content(new)
    }
}
