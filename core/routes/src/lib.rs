//! The VPC route-table plan: desired entries, conflicts, quota, batches, and the controller's state machine.
//!
//! A node whose pods are to be reached through the VPC needs one route entry, in every served table: destination its pod
//! CIDR, next hop its instance. This crate decides which entries there should be ([`model`] has the words, [`port`] what is asked of the cloud)
//! and never talks to anybody itself: time, nodes and answers are arguments.

pub mod model;
pub mod port;
