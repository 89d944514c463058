//! One error type for the lab: what was attempted, on what, why it failed, what to do.

use std::error::Error as StdError;
use std::path::PathBuf;

/// Result with the lab's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the lab failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be carried out as asked; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// The files or sockets of the lab did not do what was asked.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// A step of building or changing the lab failed.
    #[error("cannot {action}: {source}")]
    Step {
        /// What was attempted, with its object.
        action: String,
        /// The cause.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// A CNI plugin refused, with its own words.
    #[error("CNI {command} of pod {pod} failed in plugin {plugin}: {message}")]
    Plugin {
        /// ADD, CHECK or DEL.
        command: String,
        /// Which pod.
        pod: String,
        /// Which plugin of the list.
        plugin: String,
        /// Code, message and details of the plugin's error.
        message: String,
    },
    /// A condition did not come about in time.
    #[error("{what} did not happen within {seconds} s: {last}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// The state when the wait ended, and where to look.
        last: String,
    },
    /// The supervisor answered with an error.
    #[error("{0}")]
    Remote(String),
}

impl Error {
    /// Wraps a cause with the step that failed.
    pub fn step(action: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Step { action: action.into(), source: source.into() }
    }

    /// Wraps an I/O cause with the path it concerned.
    pub fn io(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }
}

/// Adds the step that failed to an error on its way up.
pub trait Context<T> {
    /// Names the step.
    ///
    /// # Errors
    /// The same failure, with the step.
    fn during(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn StdError + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::step(action(), source))
    }
}
