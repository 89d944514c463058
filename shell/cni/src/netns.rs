//! The container's network namespace, and the errors people know when it is not there.

use std::io;
use std::path::Path;

use loden_cni_protocol::error::Error;
use loden_netlink::NetNs;

/// Opens `CNI_NETNS`.
pub(crate) fn open(path: &str) -> Result<NetNs, Error> {
    NetNs::open(path).map_err(|error| {
        let cause = if is_absent(path) {
            format!("failed to Statfs {path:?}: no such file or directory")
        } else {
            error.to_string()
        };
        Error::internal(format!("failed to open netns {path:?}: {cause}"))
    })
}

/// Opens `CNI_NETNS` for DEL: `None` when none was given or it is gone, with everything that was in it.
pub(crate) fn open_if_present(path: &str) -> Result<Option<NetNs>, Error> {
    if path.is_empty() || is_absent(path) {
        return Ok(None);
    }
    match NetNs::open(path) {
        Ok(netns) => Ok(Some(netns)),
        // The file is still there but the namespace is not: an unmounted leftover of a removed container.
        Err(loden_netlink::Error::Namespace { source, .. })
            if source.kind() == io::ErrorKind::InvalidInput =>
        {
            Ok(None)
        }
        Err(_) if is_absent(path) => Ok(None),
        Err(error) => Err(Error::internal(format!("failed to open netns {path:?}: {error}"))),
    }
}

/// Whether the path opens and is this process's own namespace.
pub(crate) fn is_own(path: &str) -> bool {
    let identity = |netns: NetNs| netns.identity().ok();
    let given = (!path.is_empty()).then(|| NetNs::open(path).ok().and_then(identity)).flatten();
    given.is_some() && given == NetNs::current().ok().and_then(identity)
}

fn is_absent(path: &str) -> bool {
    matches!(Path::new(path).metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
