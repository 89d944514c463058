//! Kubernetes as Loden needs it: nodes, conditions, events, leases and leadership.
//!
//! This crate owns every conversation with the API server. It speaks in compact values ([`NodeView`]) rather than whole
//! objects, so that a daemon on each of thousands of nodes neither holds nor copies what it never reads.
//!
//! What must hold: a view of the cluster is complete or absent ([`NodeWatch::snapshot`] is `None` until one whole list
//! was read), and every write names the node's UID, so that a node which was replaced under its own name is never
//! written to by mistake. If the first breaks, live peers lose their routes; if the second breaks, a fresh node inherits
//! the condition or the pod CIDR of a dead one.

mod access;
mod backoff;
mod conversation;
mod error;
mod events;
mod labels;
mod leader;
mod node;
mod objects;
mod pods;
mod watch;
mod write;

pub use access::{Access, Cluster, connect};
pub use error::{Error, Result};
pub use events::{EventKind, Events, Regarding};
pub use labels::Labels;
pub use leader::{Campaign, Leadership, Lost};
pub use node::{
    Condition, ConditionStatus, InvalidPodCidr, NetworkUnavailable, NodeAddress, NodeView, Taint,
};
pub use pods::WaitingPods;
pub use watch::{NodeSelection, NodeWatch, Nodes, WatchOptions};
pub use write::{Annotations, PodCidrOutcome};
