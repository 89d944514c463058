//! What ends the daemon, because waiting would not mend it.

use loden_lease::AssignmentError;
use loden_node::SettleError;
use loden_node::external::NoExternal;
use thiserror::Error;

/// What ends the daemon, because waiting would not mend it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The node's pod CIDR cannot be used, and there is no lease to go on with.
    #[error("node {node}: {source}")]
    Assignment {
        /// The node's name.
        node: String,
        /// Why not.
        source: AssignmentError,
    },
    /// The operator's annotation is no address.
    #[error("node annotation {key}: {text:?} is no {family} address; correct or remove it")]
    Annotation {
        /// The annotation's key.
        key: String,
        /// Its value.
        text: String,
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// No external interface fits.
    #[error(transparent)]
    External(#[from] NoExternal),
    /// Peers would send to an address that the external interface does not have.
    #[error(
        "backend host-gw: the public IP {public_ip} is no address of external interface {link}, so that peers' routes would lead nowhere; leave --public-ip out or give one of its addresses"
    )]
    PublicIpElsewhere {
        /// The address peers would be told.
        public_ip: String,
        /// The external interface.
        link: String,
    },
    /// The subnet file cannot be read, or cannot be written before the node was ever ready: pods of this node could not be
    /// set up, and whoever started the daemon is told at once.
    #[error(transparent)]
    SubnetFile(#[from] loden_kernel::SubnetFileError),
    /// The kernel cannot be listened to or looked at.
    #[error(transparent)]
    Kernel(#[from] loden_kernel::Error),
    /// A dry run found no plan.
    #[error(transparent)]
    Plan(#[from] SettleError<loden_kernel::Error>),
    /// A dry run could not read what it plans for.
    #[error("{0}")]
    Unknown(String),
}
