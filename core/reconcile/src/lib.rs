//! The reconcile queue: what to look at next, and when.
//!
//! Keys, not events, are queued: an event only says that something about a key is worth a look. Time is an argument, counted from any start that the
//! caller likes.

mod backoff;
mod queue;

pub use backoff::{Backoff, mix};
pub use queue::Queue;

/// A point in time, as the time since the caller's start.
pub type Moment = std::time::Duration;
