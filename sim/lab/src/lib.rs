//! A VPC out of network namespaces, with the production binaries inside.
//!
//! A lab is a virtual router that forwards by the cloud emulator's route tables, instances on point-to-point ports of it, a NAT gateway
//! with an internet host behind it, the emulated cloud and Kubernetes APIs in 100.64.0.0/10, and on every node a real `flanneld` and
//! the real CNI plugins. Nothing is linked in specially and no packet is imagined: what passes here passes because routes and rules let it.
//!
//! Everything of a lab carries its name ([`names`]); [`teardown`] removes it all without asking the process that made it.

pub mod capture;
pub mod check;
pub mod cluster;
pub mod control;
pub mod error;
pub mod fabric;
pub mod forwarding;
pub mod kubernetes;
pub mod names;
pub mod node_files;
pub mod picture;
pub mod probe;
pub mod process;
pub mod runtime;
pub mod spec;
pub mod status;
pub mod supervisor;
pub mod teardown;
pub mod topology;
mod up;
pub mod vrouter;
mod wire;

pub use error::{Error, Result};
pub use names::LabName;
pub use spec::Inputs;
pub use status::Status;
pub use up::{reserve, up};

/// Name of the instance on which the first cluster's controller runs; the next clusters' have a number behind it.
pub const CONTROL_INSTANCE: &str = "control";

/// Name of the instance that is no Kubernetes node.
pub const PLAIN_INSTANCE: &str = "ecs-1";
