//! Which files a container's reservations are, found without reading everybody's.
//!
//! Owns the folder `.loden-index` inside a network's directory: one symbolic link per reservation, named by a hash of the reservation's
//! content and a running number, leading to the reservation's file. And it owns the *seal*: both directories' modification time, set to an
//! instant that no clock shows. Whoever makes, renames or removes a file there, or in the index, breaks the seal without knowing of it,
//! because the kernel then writes the time of the change. So the invariant is: while both seals stand, the index lists every
//! reservation. With a broken seal the index says nothing, and the next one who holds the lock reads all files and makes it anew.
//!
//! The Go plugin, working in the same directory, adds files that the index does not list, and so breaks the seal. Its DEL reads through the links and
//! removes those of the container with the container's files. If a seal stood where the index lacked something, a DEL would leave an address
//! reserved; what the index lists too much does no harm, since every file is read before it is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use loden_cni_protocol::host_local::index_name;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

/// Starts with what no network's reservation does, so that no reader takes it for an address.
pub(crate) const FOLDER: &str = ".loden-index";

/// 1987-01-01: no node's clock runs there, not even one that starts with the epoch for lack of a battery. Whole seconds, which every file system can keep.
const SEAL: i64 = 536_457_600;

/// The links' targets lead out of the folder.
const UP: &str = "../";

/// The index of one network's directory, which must be locked.
#[derive(Debug)]
pub(crate) struct Index {
    folder: Option<File>,
}

impl Index {
    /// Opens the index, and says whether it is complete.
    pub(crate) fn open(directory: &File) -> (Self, bool) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(directory, FOLDER, flags, Mode::empty()).ok().map(File::from);
        let complete = folder.as_ref().is_some_and(|folder| is_sealed(directory) && is_sealed(folder));
        (Self { folder }, complete)
    }

    /// Says that the index is complete; the last thing to do before the lock is let go.
    pub(crate) fn seal(&self, directory: &File) -> io::Result<()> {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: SEAL, tv_nsec: 0 },
        };
        rustix::fs::futimens(folder, &times)?;
        Ok(rustix::fs::futimens(directory, &times)?)
    }

    /// Names of the files listed for this content. They must be read before they are believed.
    pub(crate) fn files(&self, content: &[u8]) -> Vec<String> {
        let Some(folder) = &self.folder else { return Vec::new() };
        entries(content).map_while(|entry| target(folder, &entry)).collect()
    }

    /// Lists one more file of this content.
    pub(crate) fn add(&self, content: &[u8], file: &str) -> io::Result<()> {
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        for entry in entries(content) {
            match rustix::fs::symlinkat(format!("{UP}{file}"), folder, entry.as_str()) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Lists no file of this content any more.
    pub(crate) fn remove(&self, content: &[u8]) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        for entry in entries(content) {
            match rustix::fs::unlinkat(folder, entry.as_str(), AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Makes the index list exactly these files, by content; writes only what differs.
    pub(crate) fn rebuild(
        &mut self,
        directory: &File,
        files: &BTreeMap<Vec<u8>, Vec<String>>,
    ) -> io::Result<()> {
        if self.folder.is_none() {
            match rustix::fs::mkdirat(directory, FOLDER, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            *self = Self::open(directory).0;
        }
        let folder = self.folder.as_ref().ok_or(io::ErrorKind::NotADirectory)?;
        let mut wanted: BTreeMap<String, &str> = BTreeMap::new();
        for (content, names) in files {
            wanted.extend(entries(content).zip(names.iter().map(String::as_str)));
        }
        let mut there = BTreeSet::new();
        for entry in Dir::read_from(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if matches!(name.as_str(), "." | "..") {
                continue;
            }
            match wanted.get(&name) {
                Some(file) if target(folder, &name).as_deref() == Some(*file) => {
                    there.insert(name);
                }
                _ => rustix::fs::unlinkat(folder, entry.file_name(), AtFlags::empty())?,
            }
        }
        for (entry, file) in &wanted {
            if !there.contains(entry) {
                rustix::fs::symlinkat(format!("{UP}{file}"), folder, entry.as_str())?;
            }
        }
        Ok(())
    }
}

fn entries(content: &[u8]) -> impl Iterator<Item = String> {
    let name = index_name(content);
    (0_u32..).map(move |number| format!("{name}.{number}"))
}

fn target(folder: &File, entry: &str) -> Option<String> {
    let target = rustix::fs::readlinkat(folder, entry, Vec::with_capacity(64)).ok()?;
    let target = OsStr::from_bytes(target.as_bytes()).to_str()?;
    target.strip_prefix(UP).filter(|file| !file.contains('/')).map(str::to_owned)
}

fn is_sealed(directory: &File) -> bool {
    rustix::fs::fstat(directory).is_ok_and(|stat| stat.st_mtime == SEAL && stat.st_mtime_nsec == 0)
}
