//! The bare kernel work of Loden's operations, over raw netlink.
//!
//! A time means little by itself on a shared machine. Beside the same kernel work done with nothing around it, it says
//! how much of it is Loden's. `loden-floor` is that program: fixed messages, as few system calls as the kernel allows, no reading back, no
//! checks of what was there before. `loden-measured` does the two pieces of work that no production binary does by
//! itself (programming peers, writing a table) through Loden's own crates.
//!
//! What must hold: both make the same objects, those of [`peers`] and [`nft`]; a test looks. If the floor made less, Loden would
//! look slow for nothing; if it made more, fast.

pub mod attach;
pub mod netlink;
pub mod nft;
pub mod peers;
pub mod reserve;
pub mod vxlan;

use std::io;

use thiserror::Error;

/// Why a piece of work was not done.
#[derive(Debug, Error)]
pub enum Error {
    /// The command line says nothing that can be done.
    #[error("{0}")]
    Usage(String),
    /// A system call failed, or the kernel refused a message.
    #[error("cannot {operation}: {source}")]
    System {
        /// What was to be done.
        operation: String,
        /// What the system says.
        source: io::Error,
    },
    /// Loden's own crates could not do it.
    #[error("{0}")]
    Measured(String),
}

impl Error {
    pub(crate) fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { operation: operation.into(), source: source.into() }
    }
}

/// What went on inside a program, told by the program itself in one line: the time from its first system call about the work
/// to the last answer, without the start of the process.
#[must_use]
pub fn report(objects: usize, took: std::time::Duration) -> String {
    format!("objects={objects} us={}\n", took.as_micros())
}
