//! The VPC route-table plan: desired entries, conflicts, quota, batches, and the controller's state machine.
//!
//! A node whose pods are to be reached through the VPC needs one route entry, in every served table: destination its pod
//! CIDR, next hop its instance. This crate decides which entries there should be ([`desired`](mod@desired)), what lies between that and the listed tables
//! ([`plan`]), what no plan may do ([`check`](mod@check)), and when to do what ([`controller`]). It never talks to anybody itself: time, nodes and the
//! cloud's answers are arguments; [`port`] is what it asks of the cloud.

pub mod check;
pub mod controller;
pub mod desired;
pub mod mark;
pub mod model;
pub mod observed;
pub mod plan;
pub mod port;
pub mod tables;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod testing;
