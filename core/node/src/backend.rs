//! The backends: which there are, and how those that are built reach a peer's subnet.
//!
//! How a subnet is reached is a property of each [`Peer`], not of the backend: some may be neighbours while others are
//! behind the [`Tunnel`].

mod around;
mod fabric;
mod peer;
mod settings;

use std::fmt;

use thiserror::Error;

pub(crate) use around::Around;
pub use fabric::{Fabric, Tunnel, Unreached};
pub use peer::{Admission, Claim, Flaw, Oneself, OwnEnd, Peer, Way, admit};
pub use settings::VxlanSettings;

/// A backend: how a peer's subnet is reached from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackendKind {
    /// Gets a subnet and leaves reaching the peers to the cloud's route tables.
    Alloc,
    /// Runs commands of the operator's choice.
    Extension,
    /// Routes by the peers' addresses on a shared layer 2.
    HostGw,
    /// IP in IP.
    Ipip,
    /// ESP tunnels.
    Ipsec,
    /// Tencent Cloud's route tables.
    TencentVpc,
    /// IPv4 packets in UDP through user space.
    Udp,
    /// VXLAN.
    Vxlan,
    /// WireGuard.
    Wireguard,
}

/// A backend that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BackendError {
    /// No flannel knows it.
    #[error("backend {0:?} is unknown; set Backend.Type to one of {names}", names = names(|_| true))]
    Unknown(String),
    /// Flannel knows it and this build does not have it yet.
    #[error(
        "backend {0} is not built yet; set Backend.Type to one that is ({names}), or run Go's flanneld for this one",
        names = names(BackendKind::is_built)
    )]
    NotBuilt(BackendKind),
}

impl BackendKind {
    /// All of them, by name.
    pub const ALL: [Self; 9] = [
        Self::Alloc,
        Self::Extension,
        Self::HostGw,
        Self::Ipip,
        Self::Ipsec,
        Self::TencentVpc,
        Self::Udp,
        Self::Vxlan,
        Self::Wireguard,
    ];

    /// The name in `Backend.Type`, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alloc => "alloc",
            Self::Extension => "extension",
            Self::HostGw => "host-gw",
            Self::Ipip => "ipip",
            Self::Ipsec => "ipsec",
            Self::TencentVpc => "tencent-vpc",
            Self::Udp => "udp",
            Self::Vxlan => "vxlan",
            Self::Wireguard => "wireguard",
        }
    }

    /// What a lease of this backend calls itself; `udp`, `alloc` and `tencent-vpc` leave it empty.
    #[must_use]
    pub fn lease_type(self) -> &'static str {
        match self {
            Self::Alloc | Self::TencentVpc | Self::Udp => "",
            other => other.name(),
        }
    }

    /// Bytes of the external interface's MTU that encapsulation takes from the workloads.
    #[must_use]
    pub fn overhead(self) -> u32 {
        match self {
            Self::Alloc | Self::Extension | Self::HostGw | Self::TencentVpc => 0,
            Self::Ipip => 20,
            Self::Udp => 28,
            Self::Vxlan => 50,
            Self::Ipsec => 77,
            Self::Wireguard => 80,
        }
    }

    /// Whether this build has it.
    #[must_use]
    pub fn is_built(self) -> bool {
        matches!(self, Self::Alloc | Self::HostGw | Self::Vxlan)
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

fn names(keep: fn(BackendKind) -> bool) -> String {
    let names: Vec<&str> =
        BackendKind::ALL.into_iter().filter(|kind| keep(*kind)).map(BackendKind::name).collect();
    names.join(", ")
}

/// The built backend of this name, without regard to case.
///
/// # Errors
/// [`BackendError::Unknown`] for a name no flannel has, [`BackendError::NotBuilt`] for one this build has not.
pub fn find_backend(name: &str) -> Result<BackendKind, BackendError> {
    let wanted = name.to_ascii_lowercase();
    let kind = BackendKind::ALL
        .into_iter()
        .find(|kind| kind.name() == wanted)
        .ok_or_else(|| BackendError::Unknown(name.to_owned()))?;
    if kind.is_built() { Ok(kind) } else { Err(BackendError::NotBuilt(kind)) }
}

#[cfg(test)]
mod tests {
    use super::{BackendError, BackendKind, find_backend};

    #[test]
    fn every_flannel_name_is_known_and_the_missing_are_refused_by_name() {
        assert_eq!(find_backend("AllOc"), Ok(BackendKind::Alloc));
        for kind in BackendKind::ALL.into_iter().filter(|kind| !kind.is_built()) {
            let error = find_backend(kind.name()).unwrap_err();
            assert_eq!(error, BackendError::NotBuilt(kind));
            assert!(
                error.to_string().contains(kind.name())
                    && error.to_string().contains("(alloc, host-gw, vxlan)"),
                "{error}"
            );
        }
        for name in ["", "ali-vpc", "vxlan "] {
            assert!(matches!(find_backend(name), Err(BackendError::Unknown(_))), "{name:?}");
        }
    }
}
