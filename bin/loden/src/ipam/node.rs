//! What exists on this node: addresses in network namespaces, and containers that a runtime still knows.
//!
//! An observation that misses a running pod would have its address given to another one. So whatever cannot be looked at is an error,
//! save what went away while we looked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use loden_netlink::{NetNs, RouteSocket};

/// Directories with one named namespace a file.
const NAMED: [&str; 3] = ["/run/netns", "/run/docker/netns", "/var/run/netns"];
/// Directories with one entry a container, named by its ID.
const CONTAINERS: [&str; 6] = [
    "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containers/storage/overlay-containers",
    "/var/lib/containers/storage/overlay-containers",
    "/var/lib/docker/containers",
    "/run/runc",
    "/run/crun",
];
/// Directories with one directory a namespace of containerd's, of such directories.
const TASKS: [&str; 2] =
    ["/run/containerd/io.containerd.runtime.v2.task", "/run/containerd/io.containerd.grpc.v1.cri/sandboxes"];

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Node {
    held: BTreeMap<IpAddr, String>,
    /// Names of libcni's files, `<network>-<container>-<interface>`.
    cached: BTreeSet<String>,
    cache_dir: PathBuf,
}

impl Node {
    /// Looks at every namespace that a name or a process holds.
    ///
    /// # Errors
    /// Something is there and cannot be looked at.
    pub(crate) fn observe(cache_dir: &Path) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root sees what every container has: run `loden ipam` as root on the node"
        );
        let mut node = Self { cache_dir: cache_dir.to_owned(), ..Self::default() };
        node.cached = names(cache_dir)?.into_iter().collect();
        let mut seen = BTreeSet::new();
        for path in namespaces()? {
            let mut look = || -> Result<()> {
                let meta = match fs::metadata(&path) {
                    Err(error) if is_gone(&error) => return Ok(()),
                    other => other?,
                };
                if !seen.insert((meta.dev(), meta.ino())) {
                    return Ok(());
                }
                let netns = match NetNs::open(&path) {
                    // A process that ended, or a name that its namespace was taken from.
                    Err(loden_netlink::Error::Namespace { source, .. })
                        if is_gone(&source) || source.kind() == io::ErrorKind::InvalidInput =>
                    {
                        return Ok(());
                    }
                    other => other?,
                };
                for address in RouteSocket::open_in(&netns)?.addresses(None)? {
                    let place = format!("in {}", path.display());
                    node.held.entry(address.net.addr()).or_insert(place);
                }
                Ok(())
            };
            look().with_context(|| {
                format!("cannot look into the network namespace {}; nothing was judged", path.display())
            })?;
        }
        Ok(node)
    }

    /// Where the address is configured.
    pub(crate) fn place_of(&self, address: IpAddr) -> Option<&str> {
        self.held.get(&address).map(String::as_str)
    }

    /// Which file says that a runtime still has the container.
    pub(crate) fn knows(&self, network: &str, container: &str) -> Option<String> {
        let prefix = format!("{network}-{container}-");
        if let Some(name) = self.cached.iter().find(|name| name.starts_with(&prefix)) {
            return Some(format!("{}", self.cache_dir.join(name).display()));
        }
        let tasks = TASKS.iter().flat_map(|root| {
            names(Path::new(root)).unwrap_or_default().into_iter().map(move |name| Path::new(root).join(name))
        });
        let mut places = CONTAINERS.iter().map(PathBuf::from).chain(tasks).map(|place| place.join(container));
        places.find(|place| place.symlink_metadata().is_ok()).map(|place| place.display().to_string())
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

fn namespaces() -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for directory in NAMED {
        let directory = Path::new(directory);
        paths.extend(names(directory)?.into_iter().map(|name| directory.join(name)));
    }
    let processes = names(Path::new("/proc"))?.into_iter();
    let processes = processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    paths.extend(processes.map(|process| PathBuf::from(format!("/proc/{process}/ns/net"))));
    Ok(paths)
}

/// The names in a directory; none where there is no directory.
fn names(directory: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    };
    list().with_context(|| format!("cannot list {}", directory.display()))
}
