//! The CNI protocol without its side effects.
//!
//! Owns what a plugin reads and prints: the environment ([`mod@env`]), configurations with Go's rules for keys ([`json`], [`conf`], [`args`]),
//! versions and results of every version ([`version`], [`result`]), errors ([`error`]), what a GC spares ([`attachments`]); and the pure half of each plugin:
//! [`bridge`] and [`ptp`] with what they share ([`link`], [`vlan`], [`spoof`], [`mark`]), [`host_local`] with its address ranges ([`range`]),
//! [`flannel`], [`static_addresses`], [`bandwidth`], [`portmap`], [`tuning`], [`firewall`], and masquerading ([`masquerade`]). Formats, names and texts
//! are those of the specification and of the Go plugins, since runtimes, operators and Go plugins on the same node read them.

pub mod args;
pub mod attachments;
pub mod bandwidth;
pub mod bridge;
pub mod conf;
pub mod env;
pub mod error;
pub mod firewall;
pub mod flannel;
pub mod host_local;
pub mod json;
pub mod link;
pub mod mark;
pub mod masquerade;
pub mod portmap;
pub mod ptp;
pub mod range;
pub mod result;
pub mod spoof;
pub mod static_addresses;
pub mod tuning;
pub mod version;
pub mod vlan;

pub use attachments::{Attachment, ValidAttachments};
pub use conf::Config;
pub use env::{Command, Environment};
pub use error::{Error, code};
pub use json::Json;
pub use result::{CniResult, Interface, IpConfig, Route};
