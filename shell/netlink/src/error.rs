//! What can go wrong in a conversation with the kernel, in words a person can act on.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An operation that failed: what was attempted on which object, and why the kernel or the system refused.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed before the kernel looked at the request.
    #[error("cannot {operation}: {source}")]
    Io {
        /// The operation with its object.
        operation: String,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel answered a request with an error.
    #[error("cannot {operation}: {refusal}")]
    Refused {
        /// The operation with its object.
        operation: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// The kernel lacks what the request needs.
    #[error("cannot {operation}: this kernel has no {feature} ({refusal}); {advice}")]
    MissingFeature {
        /// The operation with its object.
        operation: String,
        /// What is missing.
        feature: String,
        /// What to do about it.
        advice: String,
        /// The kernel's answer.
        refusal: Refusal,
    },
    /// Every attempt to list something was overtaken by a change, so no complete listing exists.
    #[error(
        "cannot {operation}: the kernel's state changed during each of {attempts} attempts; something is changing it without pause, try again when it is quiet"
    )]
    Interrupted {
        /// The operation with its object.
        operation: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The kernel's answer does not follow the protocol as this crate knows it.
    #[error("cannot {operation}: the kernel's answer makes no sense: {detail}")]
    Malformed {
        /// The operation with its object.
        operation: String,
        /// What was wrong with it.
        detail: String,
    },
    /// The kernel did not answer in time, or its answer was lost; whether the request took effect is unknown.
    #[error(
        "cannot {operation}: no answer from the kernel, the request may or may not have taken effect; observe before retrying"
    )]
    NoAnswer {
        /// The operation with its object.
        operation: String,
    },
    /// A network namespace could not be opened, made, entered or removed.
    #[error("cannot {operation} network namespace {}: {source}", path.display())]
    Namespace {
        /// `open`, `create`, `enter`, `delete`.
        operation: &'static str,
        /// Its file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A kernel parameter could not be read or written.
    #[error("cannot {operation} kernel parameter {}: {source}", path.display())]
    Sysctl {
        /// `read` or `write "value" to`.
        operation: String,
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The desired table cannot be written.
    #[error(transparent)]
    InvalidTable(#[from] loden_firewall::Invalid),
}

/// The kernel's negative answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number, positive (`ENOENT` is 2).
    pub errno: i32,
    /// The kernel's own explanation (extended acknowledgement), if it gave one.
    pub message: Option<String>,
    /// Where in the request the offending attribute starts, in bytes from the message's header, if the kernel said so.
    pub offset: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        if let Some(message) = &self.message {
            write!(f, ", the kernel says: {message}")?;
        }
        if self.errno == libc::EPERM {
            f.write_str(", it takes CAP_NET_ADMIN in this network namespace")?;
        }
        Ok(())
    }
}

impl Error {
    /// The error number behind it, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { refusal, .. } | Self::MissingFeature { refusal, .. } => Some(refusal.errno),
            Self::Io { source, .. } | Self::Namespace { source, .. } | Self::Sysctl { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    /// Whether the object does not exist (`ENODEV`, `ENOENT`, `ESRCH`, `EADDRNOTAVAIL`).
    pub fn is_not_found(&self) -> bool {
        !matches!(self, Self::MissingFeature { .. })
            && matches!(
                self.errno(),
                Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
            )
    }

    /// Whether the object exists already (`EEXIST`).
    pub fn is_already_there(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    pub(crate) fn io(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { operation: operation.into(), source: source.into() }
    }

    pub(crate) fn malformed(operation: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Malformed { operation: operation.into(), detail: detail.into() }
    }
}
