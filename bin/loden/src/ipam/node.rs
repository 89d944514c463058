//! What exists on this node: addresses in network namespaces, and containers that a runtime still knows.
//!
//! An observation that misses a running pod would have its address given to another one. So whatever cannot be looked at is noted, save what
//! went away while we looked, and with such a note nothing may be removed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use loden_netlink::{LinkKind, NetNs, RouteSocket};

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
    /// Veths by their own index and that of their other end, in the namespaces seen.
    ends: BTreeMap<(u32, u32), String>,
    /// Names of libcni's files, `<network>-<container>-<interface>`.
    cached: BTreeSet<String>,
    cache_dir: PathBuf,
    /// Which directory says that a runtime still has a container, by the container's ID.
    runtimes: BTreeMap<String, PathBuf>,
    /// What could not be looked at, and why. With any of it nobody can be called dead.
    pub(crate) unseen: Vec<String>,
}

impl Node {
    /// Looks at every namespace that a name or a process holds, and at what the runtimes keep on the disk.
    ///
    /// # Errors
    /// Whoever asks is not root, who alone can be told anything.
    pub(crate) fn observe(cache_dir: &Path) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "only root sees what every container has: run `loden ipam` as root on the node"
        );
        let mut node = Self { cache_dir: cache_dir.to_owned(), ..Self::default() };
        let cached = node.listed(cache_dir);
        node.cached = cached.into_iter().collect();
        node.look_at_runtimes();
        let mut seen = BTreeSet::new();
        for path in node.namespaces() {
            if let Err(error) = node.look_into(&path, &mut seen) {
                let advice = advice(&path, &error);
                node.unseen.push(format!("the network namespace {}: {error:#}; {advice}", path.display()));
            }
        }
        Ok(node)
    }

    fn look_into(&mut self, path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> Result<()> {
        let meta = match fs::metadata(path) {
            Err(error) if is_gone(&error) => return Ok(()),
            other => other?,
        };
        if !seen.insert((meta.dev(), meta.ino())) {
            return Ok(());
        }
        let netns = match NetNs::open(path) {
            // A process that ended, or a name that its namespace was taken from.
            Err(loden_netlink::Error::Namespace { source, .. })
                if is_gone(&source) || source.kind() == io::ErrorKind::InvalidInput =>
            {
                return Ok(());
            }
            other => other?,
        };
        let mut socket = RouteSocket::open_in(&netns)?;
        let place = format!("in {}", path.display());
        for address in socket.addresses(None)? {
            self.held.entry(address.net.addr()).or_insert_with(|| place.clone());
        }
        for link in socket.links()? {
            if let (LinkKind::Veth, Some(other)) = (link.kind, link.lower) {
                self.ends.entry((link.index, other)).or_insert_with(|| place.clone());
            }
        }
        Ok(())
    }

    fn look_at_runtimes(&mut self) {
        let mut places: Vec<PathBuf> = CONTAINERS.iter().map(PathBuf::from).collect();
        for root in TASKS {
            let root = Path::new(root);
            let names = self.listed(root);
            places.extend(names.into_iter().map(|name| root.join(name)).filter(|path| path.is_dir()));
        }
        for place in places {
            for name in self.listed(&place) {
                let path = place.join(&name);
                self.runtimes.entry(name).or_insert(path);
            }
        }
    }

    /// The names in a directory; what keeps it from being listed is noted.
    fn listed(&mut self, directory: &Path) -> Vec<String> {
        names(directory).unwrap_or_else(|error| {
            self.unseen.push(format!("{error:#}"));
            Vec::new()
        })
    }

    fn namespaces(&mut self) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for directory in NAMED.map(Path::new) {
            paths.extend(self.listed(directory).into_iter().map(|name| directory.join(name)));
        }
        let processes = self.listed(Path::new("/proc")).into_iter();
        let processes = processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        paths.extend(processes.map(|process| PathBuf::from(format!("/proc/{process}/ns/net"))));
        paths
    }

    /// Where the address is configured.
    pub(crate) fn place_of(&self, address: IpAddr) -> Option<&str> {
        self.held.get(&address).map(String::as_str)
    }

    /// Where the other end of a port is, given the port's index and that of its other end.
    pub(crate) fn place_of_end(&self, port: u32, other: u32) -> Option<&str> {
        self.ends.get(&(other, port)).map(String::as_str)
    }

    /// Which file says that a runtime still has the container. Without a `network`, in whichever.
    pub(crate) fn knows(&self, network: Option<&str>, container: &str) -> Option<String> {
        let is_of = |name: &&String| match network {
            Some(network) => name.starts_with(&format!("{network}-{container}-")),
            None => name.contains(&format!("-{container}-")),
        };
        if let Some(name) = self.cached.iter().find(is_of) {
            return Some(format!("{}", self.cache_dir.join(name).display()));
        }
        self.runtimes.get(container).map(|place| place.display().to_string())
    }

    /// What may be the ID of a container that a runtime still has, where it could be in `network`. There may be others among them: names of
    /// files do not say where the ID ends.
    pub(crate) fn candidates<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a str> {
        let rests = self.cached.iter().filter_map(move |name| name.strip_prefix(network)?.strip_prefix('-'));
        let cached = rests.flat_map(|rest| rest.match_indices('-').filter_map(|(at, _)| rest.get(..at)));
        self.runtimes.keys().map(String::as_str).chain(cached)
    }
}

/// What to do about a namespace that cannot be looked into.
fn advice(path: &Path, error: &anyhow::Error) -> &'static str {
    let is_denied = error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    });
    match (is_denied, path.starts_with("/proc")) {
        (true, true) => {
            "this shell may not look at that process: run it on the node itself, or in a container that is privileged and shares the host's processes"
        }
        (true, false) => "run it on the node itself, or in a privileged container",
        (false, _) => "try again, and see whether the name still leads to a namespace",
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
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
