//! The controller's hands: feeds its state machines with the cluster's nodes and performs what they decide.
//!
//! Owns the loop between three parties: the API server (nodes in, conditions, pod CIDRs and events out), the cloud (calls out, answers in) and the clock.
//! It decides nothing: which entry goes where is [`loden_routes::controller::Controller`]'s to say, which node gets which subnet
//! [`loden_addr::ClusterIpam`]'s, and what a node says of its instance [`loden_nodes::controller::Controller`]'s. What must hold: it runs only while its process leads, and an action that was begun is reported back, however it ended; a state
//! machine that never hears of its own call would wait for ever.

mod calls;
mod control;
mod driver;
mod dry_run;
mod ipam;
mod metrics;
mod nodes;
mod process;

pub use control::NodeSettings;
pub use driver::{Driver, Instruction, Parts, Place};
pub use dry_run::{DryRunError, Preview, dry_run};
pub use ipam::IpamSettings;
pub use metrics::{CredentialFigures, METRICS_CONTENT_TYPE, Metrics};
pub use nodes::watch_options;
