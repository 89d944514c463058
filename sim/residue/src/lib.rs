//! What a node holds, as lines of text, and what two pictures of it differ in.
//!
//! A plugin that cleans up leaves the node as it found it. [`Snapshot::of`] takes the picture with the kernel's own tools (`ip`, `tc`,
//! `nft`, `iptables-save`), never with code of ours, so that a mistake in our netlink cannot hide from it; [`Snapshot::diff`] says
//! what came and what went. Some things stay on purpose: the bridge, base chains, lock files. So the usual judgement is a warm-up
//! cycle, a picture, another cycle *with another container*, another picture, and an empty difference: whatever a cycle leaks
//! carries its container's name, address or random link name and shows.
//!
//! ```no_run
//! # fn cycle(container: &str) {}
//! # fn main() -> Result<(), loden_residue::Error> {
//! use loden_residue::Snapshot;
//! let node = loden_netlink::NetNs::open_named("node")?;
//! let take = || Snapshot::of(&node, &["/tmp/x/state"]);
//! cycle("first");
//! let before = take()?;
//! cycle("second");
//! let difference = before.diff(&take()?);
//! assert!(difference.is_empty(), "{difference}");
//! # Ok(()) }
//! ```
//!
//! What must hold: everything that does not change by itself is in the picture, and nothing that does (counters, timers, operational
//! state, link-local addresses). A program that fails is an error, never an empty section.

mod diff;
mod files;
mod rules;
mod sections;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use loden_netlink::NetNs;
use thiserror::Error;

pub use crate::diff::Diff;

/// Why there is no picture.
#[derive(Debug, Error)]
pub enum Error {
    /// A program is missing or could not be started.
    #[error("cannot start `{command}`: {source}; the packages iproute2, nftables and iptables are needed")]
    Start {
        /// The command line.
        command: String,
        /// What the system says.
        source: io::Error,
    },
    /// A program answered with an error.
    #[error("`{command}` failed: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// What it wrote to standard error.
        stderr: String,
    },
    /// A program's answer has another form than expected.
    #[error("`{command}` answered what cannot be read: {reason}")]
    Unreadable {
        /// The command line.
        command: String,
        /// What is wrong.
        reason: String,
    },
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] loden_netlink::Error),
}

/// A kind of thing that a node holds, and the heading it is printed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Devices: name, kind, MTU, master, flags an administrator sets, alias.
    Links,
    /// Addresses but for link-local ones, which come and go with a link's carrier.
    Addresses,
    /// Routes of every table, with the same exception.
    Routes,
    /// Policy rules of both families.
    PolicyRules,
    /// VLANs of bridge ports.
    Vlans,
    /// The whole nf_tables rule set, what `iptables-nft` wrote included; without counters.
    Nft,
    /// The tables of both variants of iptables, where this namespace has any: `nft` does not show all that is in a rule of theirs.
    Iptables,
    /// Queueing disciplines but for the kernel's own defaults, and the filters on them.
    Queues,
    /// Tracked connections, without timers.
    Connections,
    /// Files below the given directories: mode and content.
    Files,
}

/// A picture of a network namespace and some directories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    sections: BTreeMap<Section, Vec<String>>,
}

impl Snapshot {
    /// The picture of `namespace` and of everything below `directories`; a directory that does not exist holds nothing.
    ///
    /// # Errors
    /// When anything could not be read; a picture is whole or there is none.
    pub fn of<P: AsRef<Path> + Sync>(namespace: &NetNs, directories: &[P]) -> Result<Self, Error> {
        namespace.run(|| Self::here(directories))?
    }

    /// The picture of the calling thread's own network namespace.
    ///
    /// # Errors
    /// As [`Snapshot::of`].
    pub fn here<P: AsRef<Path>>(directories: &[P]) -> Result<Self, Error> {
        let mut sections = sections::all()?;
        sections.insert(Section::Files, files::below(directories)?);
        for lines in sections.values_mut() {
            lines.sort();
        }
        Ok(Self { sections })
    }

    /// The lines of a section, sorted.
    #[must_use]
    pub fn section(&self, section: Section) -> &[String] {
        self.sections.get(&section).map(Vec::as_slice).unwrap_or_default()
    }

    /// The same picture without the lines of a section that `unwanted` names: what a test knows to change by itself.
    #[must_use]
    pub fn without(mut self, section: Section, unwanted: impl Fn(&str) -> bool) -> Self {
        if let Some(lines) = self.sections.get_mut(&section) {
            lines.retain(|line| !unwanted(line));
        }
        self
    }

    /// What is in `after` and not here, and the other way round.
    #[must_use]
    pub fn diff(&self, after: &Self) -> Diff {
        Diff::between(&self.sections, &after.sections)
    }
}
