//! What node control is told, and what it wants.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use loden_reconcile::Moment;
use loden_routes::controller::Notice;
use loden_routes::model::InstanceId;

use crate::model::{Instance, Node};
use crate::plan::Plan;
use crate::port::Failure;

/// What node control is to do; fixed while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The region of the cluster. Nodes of others are left alone: their instances would look gone.
    pub region: String,
    /// Tell IPv6 addresses.
    pub dual_stack: bool,
    /// A route controller is at work: a node keeps its taint until that one has written its condition.
    pub routes: bool,
    /// A node keeps its taint until the source/destination check of its instance is known to be off.
    pub source_dest_check_off: bool,
    /// How often the cloud is asked about every instance though nothing happened.
    pub audit: Duration,
}

/// The nodes as they are now.
pub trait Nodes {
    /// The node of this name.
    fn node(&self, name: &str) -> Option<Node>;
}

impl Nodes for BTreeMap<String, Node> {
    fn node(&self, name: &str) -> Option<Node> {
        self.get(name).cloned()
    }
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A node is there, or is no longer as it was.
    Node(Box<Node>),
    /// A node is gone.
    NodeGone(String),
    /// Every node that there is has been told by now.
    NodesComplete,
    /// A call to the cloud ended.
    Answered {
        /// The call.
        id: u64,
        /// The instances that there are, or why that is not known.
        result: Result<Vec<Instance>, Failure>,
    },
    /// A plan was carried out, or failed at one of its steps.
    Applied {
        /// The node.
        node: String,
        /// Its UID.
        uid: String,
        /// How it ended.
        result: Result<(), String>,
    },
    /// What became known of an instance's source/destination check.
    Check {
        /// The instance.
        instance: InstanceId,
        /// Whether it is off.
        off: bool,
    },
}

/// A call to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// [`crate::port::ReadInstances::describe_nodes`].
    Describe(Vec<InstanceId>),
    /// [`crate::port::ReadInstances::find_by_address`].
    Find(Vec<IpAddr>),
}

/// Something to do. Actions do not wait for each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Call the cloud, then tell [`Event::Answered`].
    Cloud {
        /// To be told with the answer.
        id: u64,
        /// The call.
        call: Call,
    },
    /// Carry out a plan, then tell [`Event::Applied`].
    Apply(Plan),
    /// Tell people.
    Notice(Notice),
}

/// What [`super::Controller::poll`] wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poll {
    /// Do this, and poll again.
    Act(Action),
    /// Nothing to do before this time, unless an event comes; `None`: only after an event.
    Wait(Option<Moment>),
}
