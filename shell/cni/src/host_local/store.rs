//! The directory of one network's reservations.
//!
//! Owns the files below `<dataDir>/<network>`: one per reserved address, named by it, plus `last_reserved_ip.<n>`, the `lock` and the index.
//! Every change happens under the `lock` file's lock, which Go's plugin takes as well. A reservation appears whole, by renaming
//! a finished file to its name where no file is, so a crash leaves no reservation that belongs to nobody. Names that are no address are not ours to
//! touch. If a reservation were lost, two pods would share an address; if one were kept too long, the node would run out of them.
//!
//! Finding a container's reservations and a free address costs the same however many there are: see [`super::index`]. Only after somebody else
//! changed the directory is everything read, once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use loden_cni_protocol::host_local::Holder;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::index::Index;

/// An operation on the directory that failed.
#[derive(Debug, thiserror::Error)]
#[error("host-local: could not {verb} {}; is the disk writable and not full?", path.display())]
pub(crate) struct StoreError {
    verb: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(verb: &'static str, path: &Path) -> impl FnOnce(E) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { verb, path, source: source.into() }
}

const LOCK: &str = "lock";
const LAST_RESERVED: &str = "last_reserved_ip.";
/// Under the lock there is one writer, so one name is enough; it parses as no address.
const TEMPORARY: &str = ".loden-new";
/// Container IDs and link names are shorter; a longer file is no reservation.
const LONGEST: usize = 4096;

/// The directory with its lock held; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    handle: File,
    index: Index,
    /// The index lists every reservation, so that it can be sealed when we are done.
    complete: bool,
    changed: bool,
    /// Reserved by this process and not in the index yet.
    unlisted: Vec<IpAddr>,
    /// Everything that is there, once it had to be read.
    contents: Option<Contents>,
    _lock: File,
}

/// What a look at every file found.
#[derive(Debug, Default)]
struct Contents {
    /// Names of files by their content, white space around it left out.
    files: BTreeMap<Vec<u8>, Vec<String>>,
    /// The addresses that files are named by.
    taken: BTreeSet<IpAddr>,
}

impl Store {
    /// Opens the network's directory, making it if need be, and waits for the lock.
    pub(crate) fn open(data_dir: &str, network: &str) -> Result<Self, StoreError> {
        let directory = Path::new(data_dir).join(network);
        if let Some(handle) = open_directory(&directory)? {
            return Self::locked(directory, handle);
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&directory)
            .map_err(failed("make the directory", &directory))?;
        let handle = File::open(&directory).map_err(failed("open", &directory))?;
        Self::locked(directory, handle)
    }

    /// Opens the network's directory unless nothing was ever reserved in it.
    pub(crate) fn open_existing(data_dir: &str, network: &str) -> Result<Option<Self>, StoreError> {
        let directory = Path::new(data_dir).join(network);
        match open_directory(&directory)? {
            Some(handle) => Self::locked(directory, handle).map(Some),
            None => Ok(None),
        }
    }

    fn locked(directory: PathBuf, handle: File) -> Result<Self, StoreError> {
        let flags = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&handle, LOCK, flags, Mode::from_raw_mode(0o750))
            .map_err(failed("open the lock", &directory.join(LOCK)))?;
        let lock = File::from(lock);
        loop {
            match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("take the lock", &directory.join(LOCK))(error)),
            }
        }
        let (index, complete) = Index::open(&handle);
        Ok(Self {
            directory,
            handle,
            index,
            complete,
            changed: false,
            unlisted: Vec::new(),
            contents: None,
            _lock: lock,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Names of the files with this content, in order.
    fn files(&mut self, content: &[u8]) -> Result<Vec<String>, StoreError> {
        if self.complete && self.contents.is_none() {
            let mut files = self.index.files(content);
            if self.all_hold(&files, content)? {
                files.sort();
                return Ok(files);
            }
            // A file was written in place, or a machine that lost power kept its name and not its content.
            self.complete = false;
        }
        self.read_all()?;
        Ok(self.contents.as_ref().and_then(|all| all.files.get(content).cloned()).unwrap_or_default())
    }

    fn all_hold(&self, files: &[String], content: &[u8]) -> Result<bool, StoreError> {
        for name in files {
            if self.content(name)?.is_none_or(|found| found.trim_ascii() != content) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The addresses reserved by files of these contents.
    pub(crate) fn addresses(&mut self, contents: &[&[u8]]) -> Result<Vec<IpAddr>, StoreError> {
        let mut found = Vec::new();
        for content in contents {
            found.extend(self.files(content)?.iter().filter_map(|name| name.parse::<IpAddr>().ok()));
        }
        found.sort();
        Ok(found)
    }

    /// Reads every reservation, removes those that belong to nobody, and brings the index in line.
    pub(crate) fn read_all(&mut self) -> Result<(), StoreError> {
        if self.contents.is_some() {
            return Ok(());
        }
        let mut contents = Contents::default();
        for (name, address) in names(&self.directory, &self.handle)? {
            let Some(content) = self.content(&name)? else { continue };
            if Holder::of(&content) == Holder::Nobody {
                self.unlink(&name)?;
                continue;
            }
            contents.taken.insert(address);
            if Holder::of(&content) != Holder::Unknown {
                contents.files.entry(content.trim_ascii().to_owned()).or_default().push(name);
            }
        }
        // Whoever wrote it was killed, or would hold the lock.
        self.unlink(TEMPORARY)?;
        contents.files.values_mut().for_each(|names| names.sort());
        // An index that cannot be written costs time and nothing else; whatever is wrong with the disk shows where it matters.
        self.changed = true;
        self.complete = self.index.rebuild(&self.handle, &contents.files).is_ok();
        self.contents = Some(contents);
        Ok(())
    }

    /// A file's content; `None` when it has just vanished. What is no file has a content that is nobody's to free.
    fn content(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        read(&self.handle, name).map_err(failed("read the reservation", &self.path(name)))
    }

    /// Writes a reservation that [`Self::publish`] then gives its name.
    pub(crate) fn draft(&mut self, content: &str) -> Result<(), StoreError> {
        self.changed = true;
        self.write_temporary(content).map_err(failed("write the reservation", &self.path(TEMPORARY)))
    }

    /// Reserves the address with the draft; `false` when somebody has it, and the draft can be used for another.
    pub(crate) fn publish(&mut self, address: IpAddr) -> Result<bool, StoreError> {
        let name = address.to_string();
        loop {
            match self.rename_new(&name) {
                Ok(()) => {
                    self.unlisted.push(address);
                    return Ok(true);
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("write the reservation", &self.path(&name))(error)),
            }
            // Whoever writes a reservation holds the lock until it is whole, so an empty one is what a crash left.
            match rustix::fs::statat(&self.handle, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if stat.st_size == 0 && FileType::from_raw_mode(stat.st_mode).is_file() => {
                    self.unlink(&name)?;
                }
                Err(Errno::NOENT) => {}
                _ => return Ok(false),
            }
        }
    }

    fn rename_new(&self, name: &str) -> Result<(), Errno> {
        let handle = &self.handle;
        match rustix::fs::renameat_with(handle, TEMPORARY, handle, name, RenameFlags::NOREPLACE) {
            // Not every file system can; a second name and the removal of the first are the same in two steps.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(handle, TEMPORARY, handle, name, AtFlags::empty())?;
                rustix::fs::unlinkat(handle, TEMPORARY, AtFlags::empty())
            }
            other => other,
        }
    }

    /// Whether the address is known to be taken, which it is only after everything was read.
    pub(crate) fn is_taken(&self, address: IpAddr) -> bool {
        self.contents.as_ref().is_some_and(|contents| contents.taken.contains(&address))
    }

    /// Removes a draft that got no name.
    pub(crate) fn discard_draft(&mut self) -> Result<(), StoreError> {
        self.unlink(TEMPORARY)
    }

    /// Lists the reservations just made, which are all of this content.
    pub(crate) fn list(&mut self, content: &str) {
        let made = std::mem::take(&mut self.unlisted);
        self.complete = self.complete
            && made.iter().all(|address| self.index.add(content.as_bytes(), &address.to_string()).is_ok());
    }

    /// Frees the reservations just made.
    pub(crate) fn take_back(&mut self) -> Vec<StoreError> {
        let made = std::mem::take(&mut self.unlisted);
        let (left, failures): (Vec<_>, Vec<_>) = made
            .into_iter()
            .filter_map(|address| Some((address, self.unlink(&address.to_string()).err()?)))
            .unzip();
        self.unlisted = left;
        failures
    }

    fn write_temporary(&self, content: &str) -> io::Result<()> {
        let write = || -> io::Result<()> {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.handle, TEMPORARY, flags, Mode::from_raw_mode(0o600))?;
            File::from(file).write_all(content.as_bytes())
        };
        write().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&self.handle, TEMPORARY, AtFlags::empty());
        })
    }

    /// The address given out last from range set `index`; `None` when unknown, which only loses the round robin once.
    pub(crate) fn last_reserved(&self, index: usize) -> Option<IpAddr> {
        let content = read(&self.handle, &format!("{LAST_RESERVED}{index}")).ok()??;
        std::str::from_utf8(&content).ok()?.trim().parse().ok()
    }

    /// Notes the address given out last from range set `index`.
    pub(crate) fn set_last_reserved(&mut self, index: usize, address: IpAddr) -> Result<(), StoreError> {
        let name = format!("{LAST_RESERVED}{index}");
        self.changed = true;
        self.write_temporary(&address.to_string()).map_err(failed("write", &self.path(&name)))?;
        rustix::fs::renameat(&self.handle, TEMPORARY, &self.handle, name.as_str())
            .map_err(failed("write", &self.path(&name)))
    }

    fn unlink(&mut self, name: &str) -> Result<(), StoreError> {
        match rustix::fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) => self.changed = true,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("free the reservation", &self.path(name))(error)),
        }
        Ok(())
    }

    /// Frees everything of the first of these contents that there is anything of.
    pub(crate) fn release(&mut self, contents: &[&[u8]]) -> Result<(), StoreError> {
        for content in contents {
            let files = self.files(content)?;
            self.free(content, &files)?;
            if !files.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn free(&mut self, content: &[u8], files: &[String]) -> Result<(), StoreError> {
        for name in files {
            self.unlink(name)?;
        }
        if self.complete && self.index.remove(content).is_err() {
            self.complete = false;
        }
        Ok(())
    }

    /// Frees an address whose file has just this content. The index is made anew by the next one who needs it.
    pub(crate) fn free_one(&mut self, address: IpAddr, content: &[u8]) -> Result<bool, StoreError> {
        let name = address.to_string();
        if self.content(&name)?.is_none_or(|found| found != content) {
            return Ok(false);
        }
        self.complete = false;
        self.unlink(&name)?;
        Ok(true)
    }

    /// Frees every reservation but those that `spares` wants kept; goes on after a failure.
    pub(crate) fn collect(&mut self, spares: impl Fn(&Holder) -> bool) -> Vec<StoreError> {
        if let Err(error) = self.read_all() {
            return vec![error];
        }
        let all = self.contents.as_ref().map(|contents| contents.files.clone()).unwrap_or_default();
        let mut failures = Vec::new();
        for (content, files) in all {
            if !spares(&Holder::of(&content))
                && let Err(error) = self.free(&content, &files)
            {
                failures.push(error);
            }
        }
        failures
    }
}

impl Drop for Store {
    /// Without the seal everything is read next time, so nobody needs to hear of a failure.
    fn drop(&mut self) {
        if self.complete && self.changed && self.unlisted.is_empty() {
            let _ = self.index.seal(&self.handle);
        }
    }
}

pub(super) fn open_directory(directory: &Path) -> Result<Option<File>, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::empty()) {
        Ok(handle) => Ok(Some(handle.into())),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(failed("open", directory)(error)),
    }
}

/// The addresses reserved in a network's directory, without its lock: what a moment's look shows. Empty files count as reserved if
/// `with_empty`, which spares looking at each.
pub(crate) fn taken(directory: &Path, with_empty: bool) -> Result<BTreeSet<IpAddr>, StoreError> {
    let Some(handle) = open_directory(directory)? else { return Ok(BTreeSet::new()) };
    let counts = |name: &str| {
        with_empty
            || rustix::fs::statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_size > 0)
    };
    let names = names(directory, &handle)?;
    Ok(names.into_iter().filter(|(name, _)| counts(name)).map(|(_, address)| address).collect())
}

/// The files that are named by an address.
pub(super) fn names(path: &Path, directory: &File) -> Result<Vec<(String, IpAddr)>, StoreError> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        if let Ok(name) = entry.file_name().to_str()
            && let Ok(address) = name.parse()
        {
            names.push((name.to_owned(), address));
        }
    }
    Ok(names)
}

/// The content of a file, as much as a reservation can have; `None` when there is none.
pub(super) fn read(directory: &File, name: &str) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut content = vec![0; LONGEST];
    let mut length = 0;
    loop {
        match file.read(content.get_mut(length..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // In the way, but nobody's reservation.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(Some(b"/".to_vec())),
            Err(error) => return Err(error),
        }
    }
    content.truncate(length);
    Ok(Some(content))
}

#[cfg(test)]
mod tests;
