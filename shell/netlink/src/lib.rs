//! Netlink sockets and network namespaces, synchronous and without a runtime.
//!
//! Owns every word spoken to the kernel about networking: [`RouteSocket`] for links, addresses, routes, rules,
//! neighbours and forwarding entries; [`nft::NftSocket`] for nf_tables; [`conntrack::ConntrackSocket`] for tracked
//! connections; [`monitor::Monitor`] for the kernel's
//! notices that something changed; [`NetNs`] for network namespaces; [`sysctl`] for kernel parameters.
//!
//! Invariant: a listing is complete or it is an error, and an error carries the operation, the object and the kernel's own
//! explanation. The wire formats are the kernel's uapi headers `linux/rtnetlink.h`, `linux/if_link.h`,
//! `linux/neighbour.h`, `linux/fib_rules.h`, `linux/netfilter/nf_tables.h` and `linux/netfilter/nfnetlink_conntrack.h`.

pub mod conntrack;
mod error;
pub mod monitor;
pub mod netns;
pub mod nft;
mod route;
mod socket;
pub mod sysctl;
mod wire;

pub use error::{Error, Refusal, Result};
pub use netns::NetNs;
pub use route::*;
