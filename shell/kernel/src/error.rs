//! Why the kernel could not be observed or changed.

use loden_node::{Key, Step};
use thiserror::Error;

/// Why the kernel could not be observed or changed. The netlink error behind it names operation and object.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The conversation with the kernel failed.
    #[error(transparent)]
    Netlink(#[from] loden_netlink::Error),
    /// A step was refused.
    #[error("`{step}`: {source}")]
    Step {
        /// The step's first line.
        step: String,
        /// The kernel's answer.
        source: Box<loden_netlink::Error>,
    },
    /// The step needs a link that is not there.
    #[error("`{step}`: link {link} does not exist; it will be tried again when the link is there")]
    NoLink {
        /// The step's first line.
        step: String,
        /// The link's name.
        link: String,
    },
    /// The object is of another kind than when it was observed: somebody replaced it.
    #[error(
        "`{step}`: {key} has been replaced by something else since it was observed; it will be looked at again"
    )]
    Replaced {
        /// The step's first line.
        step: String,
        /// The object.
        key: Key,
    },
    /// The step asks for what only the kernel or another program makes.
    #[error("`{step}`: objects of this kind are observed, never made")]
    OnlyObserved {
        /// The step's first line.
        step: String,
    },
    /// The kernel's notices cannot be waited for.
    #[error("listen for changes in the kernel: {0}")]
    Listen(std::io::Error),
    /// Links came and went during every attempt to observe.
    #[error(
        "links came and went during each of {attempts} attempts to observe the node's network; it will be tried again"
    )]
    Restless {
        /// How often it was tried.
        attempts: u32,
    },
}

/// The first line of how a step prints: a table's goes on for pages.
pub(crate) fn line(step: &Step) -> String {
    step.to_string().lines().next().unwrap_or_default().to_owned()
}
