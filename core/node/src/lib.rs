//! A node's network as a value: what it should be, what the kernel shows, and the plan between the two.
//!
//! The way is always the same: [`Desired`] says what must exist and which objects are ours ([`Scope`]); an [`Observed`]
//! is a complete picture of the kernel or does not exist at all; [`diff`] walks the union of both and yields a
//! [`Plan`] of [`Step`]s, each complete in itself; [`check`] refuses a plan that would touch what is not ours or that
//! cannot be carried out in its order; the shell applies the steps one by one without any choice left. A step prints as the
//! `ip`, `bridge`, `sysctl` or `nft` line that does the same.
//!
//! If ownership errs towards "ours", a stranger's route disappears; if it errs towards "foreign", leftovers stay and
//! swallow traffic. So ownership is one function, [`Scope::owns`], and only it allows a delete.

mod backend;
mod check;
mod diff;
pub mod external;
pub mod fake;
mod gateway;
mod model;
mod network;
mod object;
mod plan;
mod scope;
mod settle;
mod text;

pub use backend::{
    Admission, BackendError, BackendKind, Claim, Fabric, Flaw, Oneself, OwnEnd, Peer, Tunnel, Unreached,
    VxlanSettings, Way, admit, find_backend,
};
pub use check::{Unsafe, check};
pub use diff::diff;
pub use gateway::gateways;
pub use model::Refused;
pub use network::{BLACKHOLE_METRIC, Network};
pub use object::{
    Address, FdbEntry, Key, Link, LinkKind, Mac, Neighbour, Object, Objects, ParseMacError, Route, RouteKind,
    Sysctl, Vxlan,
};
pub use plan::{Blocked, Plan, Reason, Step};
pub use scope::{FLANNEL_TABLES, IPTABLES_CHAINS, Scope};
pub use settle::{Port, Round, SettleError, plan, settle};

use std::collections::BTreeSet;

/// The route protocol number that marks our routes in the kernel (`ip route` shows `proto 77`).
pub const ROUTE_PROTOCOL: u8 = 77;

/// The protocol number of routes Go's flanneld installs (`proto boot`), which it shares with everybody who types
/// `ip route add`.
pub const BOOT_PROTOCOL: u8 = 3;

/// The kernel's main routing table.
pub const MAIN_TABLE: u32 = 254;

/// What a node's network must be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Which objects are ours, so that surplus ones may go.
    pub scope: Scope,
    /// What must exist.
    pub objects: Objects,
    /// Those of the objects without which the network is right, too: each is attempted, none is waited for.
    pub dispensable: BTreeSet<Key>,
}

/// What the kernel shows, complete within [`Scope::looks_at`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// What exists, ours or not.
    pub objects: Objects,
}
