//! The node's network in the kernel: observe it, apply a plan to it, hear when it changes.
//!
//! Owns the translation between [`loden_node`]'s objects, which name links by name, and the kernel's, which number
//! them. Invariants: [`Kernel::observe`] is complete within its scope or an error, never partial; [`Kernel::apply`] does
//! exactly what its step says and makes no choice. Were an observation partial, the diff would add what exists and delete what
//! it mistakes for a leftover.

mod apply;
mod error;
mod legacy;
mod notices;
mod observe;
mod subnet_file;
mod surroundings;
mod watch;

use std::collections::BTreeSet;
use std::net::IpAddr;

use loden_netlink::nft::NftSocket;
use loden_netlink::{NetNs, RouteSocket};
use loden_node::external::Surroundings;
use loden_node::{Observed, Port, Scope, Step};

pub use error::Error;
pub use notices::{FileNotices, Notices};
pub use subnet_file::{Staged, SubnetFile, SubnetFileError};
pub use watch::Watch;

/// The network of one namespace.
#[derive(Debug)]
pub struct Kernel {
    netns: Option<NetNs>,
    route: RouteSocket,
    nft: NftSocket,
    /// Indices of the links whose neighbours the last observation included.
    watched: BTreeSet<u32>,
}

impl Kernel {
    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When the system gives no netlink sockets.
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            netns: None,
            route: RouteSocket::open()?,
            nft: NftSocket::open()?,
            watched: BTreeSet::new(),
        })
    }

    /// Another namespace; the caller stays where it is.
    ///
    /// # Errors
    /// As [`Kernel::open`], or when the namespace cannot be entered.
    pub fn open_in(netns: &NetNs) -> Result<Self, Error> {
        Ok(Self {
            netns: Some(netns.clone()),
            route: RouteSocket::open_in(netns)?,
            nft: NftSocket::open_in(netns)?,
            watched: BTreeSet::new(),
        })
    }

    /// Everything the scope looks at.
    ///
    /// # Errors
    /// Whenever it would be incomplete.
    pub fn observe(&mut self, scope: &Scope) -> Result<Observed, Error> {
        observe::observe(self, scope)
    }

    /// Applies one step. Deleting what is gone already succeeds.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn apply(&mut self, step: &Step) -> Result<(), Error> {
        apply::apply(self, step)
    }

    /// Applies steps in order, going on after one that is refused; one outcome each. Cheaper than one by one.
    pub fn apply_all(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
        apply::apply_all(self, steps)
    }

    /// What the choice of the external interface depends on; with `can_reach`, also the way to that address.
    ///
    /// # Errors
    /// When a listing is not complete. A destination without a route is no error; it is simply not reached.
    pub fn surroundings(&mut self, can_reach: Option<IpAddr>) -> Result<Surroundings, Error> {
        Ok(surroundings::surroundings(&mut self.route, can_reach)?)
    }

    /// Commands that show whether Go's flanneld left rules in the older iptables, which keeps them outside nf_tables, where
    /// nothing here can see or remove them. Empty when there is nothing to look for.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn legacy_iptables(&self) -> Result<Vec<String>, Error> {
        self.inside(legacy::look_with)
    }

    /// Starts to listen for changes in this namespace.
    ///
    /// # Errors
    /// When the system gives no netlink sockets.
    pub fn watch(&self) -> Result<Watch, Error> {
        Watch::open(self.netns.as_ref())
    }

    /// Runs work that means the calling thread's namespace, such as reading `/proc/sys/net`.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        match &self.netns {
            None => Ok(work()),
            Some(netns) => Ok(netns.run(work)?),
        }
    }
}

impl Port for Kernel {
    type Error = Error;

    fn observe(&mut self, scope: &Scope) -> Result<Observed, Error> {
        Self::observe(self, scope)
    }

    fn apply(&mut self, step: &Step) -> Result<(), Error> {
        Self::apply(self, step)
    }

    fn apply_all(&mut self, steps: &[Step]) -> Vec<Result<(), Error>> {
        Self::apply_all(self, steps)
    }
}
