//! What can go wrong, in words a person can act on.

use std::io;
use std::path::PathBuf;

use loden_firewall::iptables::{Invalid, Malformed, Table};
use thiserror::Error;

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An edit of iptables' rules that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no program to make rules with.
    #[error("there is no usable {program} in PATH; install iptables, or choose the nftables backend")]
    NoProgram {
        /// `iptables` or `ip6tables`.
        program: &'static str,
    },
    /// `iptables` is there, a program that comes with it is not.
    #[error("{} is there, but {missing} is neither beside it nor in PATH; install iptables completely", program.display())]
    Incomplete {
        /// The program that was found.
        program: PathBuf,
        /// The name of what was not.
        missing: String,
    },
    /// A program could not be run.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A program did not do what it was told to.
    #[error("{} failed ({status}): {said}; its input was: {input}", program.display())]
    Refused {
        /// The program.
        program: PathBuf,
        /// Exit code or signal.
        status: String,
        /// What it printed on standard error.
        said: String,
        /// What it was told, line by line.
        input: String,
    },
    /// What `iptables-save` printed is not understood.
    #[error("cannot read what {program} lists")]
    Listing {
        /// The program.
        program: String,
        /// The line.
        source: Malformed,
    },
    /// A change that cannot be told to iptables.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] loden_netlink::Error),
    /// Others changed the same chains each time.
    #[error(
        "cannot change {program}' table {table}: others changed the same chains during each of {attempts} attempts; try again when it is quiet"
    )]
    Busy {
        /// `iptables` or `ip6tables`.
        program: &'static str,
        /// The table.
        table: Table,
        /// How often it was tried.
        attempts: u32,
    },
}

impl Error {
    /// Whether the changes were looked at and refused, which another writer may have caused.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Kernel(loden_netlink::Error::Refused { .. }))
    }
}
