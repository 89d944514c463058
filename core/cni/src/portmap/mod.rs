//! The pure half of `portmap`: a container's ports reachable through the node's addresses.
//!
//! Owns the plugin's keys with Go's defaults, refusals and texts ([`PortmapConfig`]), and the two sets of rules that carry the mappings
//! out: [`nft`] and [`iptables`]. Chains, comments and hashes are those of the Go plugin, which reads and deletes them on the same node; a
//! rule under another name would outlive its container there, and lead strangers to whoever gets the address next.

pub mod conditions;
mod config;
pub mod iptables;
pub mod listed;
pub mod nft;

pub use config::{Backend, Container, PortMapping, PortmapConfig};
