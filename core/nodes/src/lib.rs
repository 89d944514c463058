//! Node control: a Node object says of its ECS instance what the cloud knows, and goes when the instance is gone.
//!
//! [`desired`] derives addresses, labels and provider ID from an instance, [`diff`] compares them with the node, and [`controller::Controller`] decides
//! when: it asks the cloud about instances, corrects what others changed, takes the taint of a fresh node away last, and deletes nodes whose
//! instances no longer exist. All of it works on values; whoever drives it holds the clock, the cloud and the API server.

pub mod controller;
mod desired;
mod model;
mod plan;
pub mod port;

pub use desired::{Desired, Problem, desired};
pub use model::{Address, Instance, LABEL_KEYS, NODEPOOL_TAG, Node, PROVIDED_IP, UNINITIALIZED};
pub use plan::{Gate, Plan, Step, diff};

#[cfg(test)]
mod testing;
