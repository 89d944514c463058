//! The directory of one network's reservations: a file per address, shared with the Go plugin.
//!
//! Invariants: everything happens under the `lock` file's lock, which Go's plugin takes as well. A reservation appears whole, by linking
//! a finished file to its name, so a crash leaves no reservation that belongs to nobody. Names that are no address are not ours to touch.
//! If a reservation were lost, two pods would share an address; if one were kept too long, the node would run out of them.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use loden_cni_protocol::host_local::Owner;
use rustix::fs::{FlockOperation, Mode, OFlags};

/// An operation on the directory that failed.
#[derive(Debug, thiserror::Error)]
#[error("host-local: could not {verb} {}; is the disk writable and not full?", path.display())]
pub(crate) struct StoreError {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { verb, path, source }
}

const LOCK: &str = "lock";
const LAST_RESERVED: &str = "last_reserved_ip.";
/// Under the lock there is one writer, so one name is enough; it parses as no address.
const TEMPORARY: &str = ".loden-new";
/// Go walks subdirectories on DEL; nothing makes any, so a few levels are plenty.
const DEPTH: u32 = 4;
/// Container IDs and link names are shorter; a longer file is no reservation.
const LONGEST: usize = 4096;

/// The directory with its lock held; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    handle: File,
    _lock: File,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    /// Addresses that have an owner.
    pub(crate) taken: BTreeSet<IpAddr>,
    /// Those of them that belong to the attachment asked about.
    pub(crate) ours: Vec<IpAddr>,
}

impl Store {
    /// Opens the network's directory, making it if need be, and waits for the lock.
    pub(crate) fn open(data_dir: &str, network: &str) -> Result<Self, StoreError> {
        let directory = Path::new(data_dir).join(network);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .map_err(failed("make the directory", &directory))?;
        Self::locked(directory)
    }

    /// Opens the network's directory unless nothing was ever reserved in it.
    pub(crate) fn open_existing(data_dir: &str, network: &str) -> Result<Option<Self>, StoreError> {
        let directory = Path::new(data_dir).join(network);
        match directory.metadata() {
            Ok(_) => Self::locked(directory).map(Some),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(failed("look at", &directory)(error)),
        }
    }

    fn locked(directory: PathBuf) -> Result<Self, StoreError> {
        let handle = File::open(&directory).map_err(failed("open", &directory))?;
        let path = directory.join(LOCK);
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        let lock = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o750))
            .map_err(|error| failed("open the lock", &path)(error.into()))?;
        let lock = File::from(lock);
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed("take the lock", &path)(error.into())),
            }
        }
        Ok(Self { directory, handle, _lock: lock })
    }

    /// Reads the reservations of the addresses that `wanted` names. Files left empty by a crash are removed.
    pub(crate) fn scan(
        &self,
        container_id: &str,
        ifname: &str,
        wanted: impl Fn(IpAddr) -> bool,
    ) -> Result<Reservations, StoreError> {
        let mut found = Reservations::default();
        for entry in fs::read_dir(&self.directory).map_err(failed("list", &self.directory))? {
            let name = entry.map_err(failed("list", &self.directory))?.file_name();
            let Some((name, address)) = name.to_str().and_then(|name| Some((name, name.parse().ok()?)))
            else {
                continue;
            };
            if !wanted(address) {
                continue;
            }
            match self.owner(name, container_id, ifname)? {
                Some(Owner::Nobody) => self.unlink(name)?,
                Some(owner) => {
                    found.taken.insert(address);
                    if owner != Owner::Other {
                        found.ours.push(address);
                    }
                }
                None => {}
            }
        }
        found.ours.sort();
        Ok(found)
    }

    /// Whose the file is; `None` when it has just vanished.
    fn owner(&self, name: &str, container_id: &str, ifname: &str) -> Result<Option<Owner>, StoreError> {
        let error = |error: io::Error| failed("read the reservation", &self.directory.join(name))(error);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut file = match rustix::fs::openat(&self.handle, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(error(errno.into())),
        };
        let mut content = [0; LONGEST];
        let mut length = 0;
        loop {
            match file.read(content.get_mut(length..).unwrap_or_default()) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                // A directory of that name is in the way but nobody's reservation.
                Err(cause) if cause.kind() == io::ErrorKind::IsADirectory => return Ok(Some(Owner::Other)),
                Err(cause) => return Err(error(cause)),
            }
        }
        Ok(Some(Owner::of(content.get(..length).unwrap_or_default(), container_id, ifname)))
    }

    /// Reserves the address; `false` when somebody has it.
    pub(crate) fn reserve(&self, address: IpAddr, content: &str) -> Result<bool, StoreError> {
        let path = self.directory.join(address.to_string());
        let temporary = self.write_temporary(content).map_err(failed("write the reservation", &path))?;
        let linked = fs::hard_link(&temporary, &path);
        let removed = fs::remove_file(&temporary);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(failed("write the reservation", &path)(error)),
        }
        removed.map_err(failed("remove", &temporary))?;
        Ok(true)
    }

    fn write_temporary(&self, content: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(TEMPORARY);
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(content.as_bytes())
        };
        match write() {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// The address given out last from range set `index`; `None` when unknown, which only loses the round robin once.
    pub(crate) fn last_reserved(&self, index: usize) -> Option<IpAddr> {
        let text = fs::read_to_string(self.directory.join(format!("{LAST_RESERVED}{index}"))).ok()?;
        text.trim().parse().ok()
    }

    /// Notes the address given out last from range set `index`.
    pub(crate) fn set_last_reserved(&self, index: usize, address: IpAddr) -> Result<(), StoreError> {
        let path = self.directory.join(format!("{LAST_RESERVED}{index}"));
        let temporary = self.write_temporary(&address.to_string()).map_err(failed("write", &path))?;
        fs::rename(temporary, &path).map_err(failed("write", &path))
    }

    /// Frees the address, whoever has it.
    pub(crate) fn remove(&self, address: IpAddr) -> Result<(), StoreError> {
        self.unlink(&address.to_string())
    }

    fn unlink(&self, name: &str) -> Result<(), StoreError> {
        unlink(&self.directory.join(name))
    }

    /// Frees everything that belongs to the attachment; when nothing does, what an old file without a link's name says belongs to it.
    pub(crate) fn release(&self, container_id: &str, ifname: &str) -> Result<(), StoreError> {
        let (mut ours, mut without_link) = (Vec::new(), Vec::new());
        self.visit(container_id, ifname, &mut |path, owner| match owner {
            Owner::Ours => ours.push(path),
            Owner::OursWithoutLink => without_link.push(path),
            Owner::Nobody | Owner::Other => {}
        })?;
        let free = if ours.is_empty() { without_link } else { ours };
        free.iter().try_for_each(|path| unlink(path))?;
        // Whoever wrote it was killed, or would hold the lock.
        self.unlink(TEMPORARY)
    }

    /// Whether anything belongs to the attachment.
    pub(crate) fn has(&self, container_id: &str, ifname: &str) -> Result<bool, StoreError> {
        let mut found = false;
        self.visit(container_id, ifname, &mut |_, owner| {
            found |= matches!(owner, Owner::Ours | Owner::OursWithoutLink);
        })?;
        Ok(found)
    }

    fn visit(
        &self,
        container_id: &str,
        ifname: &str,
        see: &mut impl FnMut(PathBuf, Owner),
    ) -> Result<(), StoreError> {
        let mut waiting = vec![(PathBuf::new(), 0)];
        while let Some((relative, depth)) = waiting.pop() {
            let directory = self.directory.join(&relative);
            for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
                let entry = entry.map_err(failed("list", &directory))?;
                let name = relative.join(entry.file_name());
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() && depth < DEPTH {
                    waiting.push((name, depth + 1));
                    continue;
                }
                let Some(text) =
                    name.to_str().filter(|text| *text != LOCK && !text.starts_with(LAST_RESERVED))
                else {
                    continue;
                };
                if kind.is_file()
                    && let Some(owner) = self.owner(text, container_id, ifname)?
                {
                    see(self.directory.join(text), owner);
                }
            }
        }
        Ok(())
    }
}

fn unlink(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("free the reservation", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn store(root: &Path) -> Store {
        Store::open(root.to_str().unwrap(), "net").unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(root.join("net"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_those_of_the_go_plugin() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        assert!(store.reserve(ip("10.0.0.2"), "c1\r\neth0").unwrap());
        assert!(!store.reserve(ip("10.0.0.2"), "c2\r\neth0").unwrap());
        store.set_last_reserved(0, ip("10.0.0.2")).unwrap();
        assert_eq!(names(root.path()), ["10.0.0.2", "last_reserved_ip.0", "lock"]);
        let read = |name: &str| fs::read_to_string(root.path().join("net").join(name)).unwrap();
        assert_eq!(read("10.0.0.2"), "c1\r\neth0");
        assert_eq!(read("last_reserved_ip.0"), "10.0.0.2");
        assert_eq!(store.last_reserved(0), Some(ip("10.0.0.2")));
        assert_eq!(store.last_reserved(1), None);
        let mode = |name: &str| root.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("net"), mode("net/10.0.0.2"), mode("net/last_reserved_ip.0"), mode("net/lock")),
            (0o755, 0o600, 0o600, 0o750)
        );
    }

    #[test]
    fn scans_reclaim_empty_files_and_see_old_ones() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let write =
            |name: &str, content: &str| fs::write(root.path().join("net").join(name), content).unwrap();
        write("10.0.0.2", "");
        write("10.0.0.3", "c1");
        write("10.0.0.4", "c1\r\neth0\n");
        write("10.0.0.5", "c2\r\neth0");
        write("10.9.0.5", "");
        write("notes", "c1");
        fs::create_dir(root.path().join("net/10.0.0.6")).unwrap();
        let found = store.scan("c1", "eth0", |address| address.to_string().starts_with("10.0.")).unwrap();
        assert_eq!(found.ours, [ip("10.0.0.3"), ip("10.0.0.4")]);
        assert_eq!(found.taken.len(), 4);
        assert!(!names(root.path()).contains(&"10.0.0.2".to_owned()));
        assert!(names(root.path()).contains(&"10.9.0.5".to_owned()), "another range's file is not looked at");
    }

    #[test]
    fn release_prefers_the_exact_owner() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let write =
            |name: &str, content: &str| fs::write(root.path().join("net").join(name), content).unwrap();
        write("10.0.0.2", "c1\r\neth0");
        write("10.0.0.3", "c1\r\neth1");
        write("10.0.0.4", "c1");
        store.release("c1", "eth0").unwrap();
        assert_eq!(names(root.path()), ["10.0.0.3", "10.0.0.4", "lock"]);
        store.release("c1", "eth0").unwrap();
        assert_eq!(names(root.path()), ["10.0.0.3", "lock"]);
        assert!(store.has("c1", "eth1").unwrap() && !store.has("c1", "eth0").unwrap());
        store.release("c1", "eth0").unwrap();
    }

    #[test]
    fn nothing_is_made_where_nothing_was_reserved() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_str().unwrap();
        assert!(Store::open_existing(path, "net").unwrap().is_none());
        assert!(!root.path().join("net").exists());
        fs::write(root.path().join("file"), "").unwrap();
        let error = Store::open(&format!("{path}/file"), "net").unwrap_err();
        assert!(error.to_string().contains("could not make the directory"), "{error}");
    }
}
