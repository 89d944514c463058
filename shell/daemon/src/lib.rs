//! The node daemon: looks at everything, puts it right, sleeps until something may have changed.
//!
//! Owns what lies between the parts: which Node is ours and which subnet it was given, the external interface, the kernel's
//! network, the subnet file, readiness, and what the cluster is told. Invariants: whatever wakes the [`Daemon`] (a kernel
//! notice, a change of our Node object, news of the VPC, the audit's clock) only says "look again", and each round
//! derives everything anew from what is there; it is ready only after a round that saw everything right. If it took an
//! event for the state, whatever happened while it was away would stay wrong for ever.

mod complaint;
mod daemon;
mod dry_run;
mod error;
mod peers;
mod publish;
mod settings;
mod vpc;

pub use daemon::Daemon;
pub use error::Error;
pub use settings::{Settings, VpcCidrs};
