//! The file with a link's former attributes.
//!
//! Its name and text are the Go plugin's and say nothing of the network, while containers of other networks have their files in the same
//! directory. So a file of ours carries its network beside its text, as an extended attribute; GC takes only files with this network's.
//! A file of the Go plugin, or on a file system without extended attributes, waits for its container's DEL, however late that comes.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use loden_cni_protocol::ValidAttachments;
use loden_cni_protocol::error::Error;
use loden_cni_protocol::tuning::backup_name;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

/// The extended attribute that names the network. Of the `trusted` space, which a tmpfs has had for longest.
const NETWORK: &str = "trusted.loden.network";

const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// One attachment's file.
#[derive(Debug)]
pub(super) struct Backup {
    path: PathBuf,
    /// Container IDs start with a letter or digit, so this name is nobody's file.
    temporary: PathBuf,
    network: String,
}

fn temporary_name(name: &str) -> String {
    format!(".{name}.new")
}

impl Backup {
    pub(super) fn new(data_dir: &str, container_id: &str, ifname: &str, network: &str) -> Self {
        let name = backup_name(container_id, ifname);
        let directory = Path::new(data_dir);
        Self {
            path: directory.join(&name),
            temporary: directory.join(temporary_name(&name)),
            network: network.to_owned(),
        }
    }

    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(failed("read", &self.path, &error)),
        }
    }

    /// Whole or not at all, before the link is touched.
    pub(super) fn write(&self, text: &[u8]) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            if let Some(directory) = self.path.parent() {
                DirBuilder::new().recursive(true).mode(0o600).create(directory)?;
            }
            let mut file = self.open()?;
            file.write_all(text)?;
            fs::rename(&self.temporary, &self.path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&self.temporary);
            failed("write", &self.path, &error)
        })
    }

    /// The file to write, under its temporary name. It has its mark before it has a name, where the file system can do that: a file that an
    /// ADD killed in between left without one would be nobody's to collect.
    fn open(&self) -> io::Result<File> {
        let mark = |file: &File| {
            // Not every file system has such attributes.
            let _ = rustix::fs::fsetxattr(file, NETWORK, self.network.as_bytes(), XattrFlags::empty());
        };
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let nameless = rustix::fs::open(directory, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, MODE);
        if let Ok(nameless) = nameless {
            let file = File::from(nameless);
            mark(&file);
            let origin = format!("/proc/self/fd/{}", file.as_raw_fd());
            let name = || rustix::fs::linkat(CWD, &origin, CWD, &self.temporary, AtFlags::SYMLINK_FOLLOW);
            match name() {
                Ok(()) => return Ok(file),
                // Left by an ADD that was killed.
                Err(Errno::EXIST) => {
                    fs::remove_file(&self.temporary)?;
                    name()?;
                    return Ok(file);
                }
                Err(_) => {}
            }
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(MODE.as_raw_mode());
        let file = options.open(&self.temporary)?;
        mark(&file);
        Ok(file)
    }

    /// Removes the file, and what a killed ADD may have left of it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        [&self.temporary, &self.path].into_iter().try_for_each(|path| remove(path))
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::internal(format!(
        "could not {verb} {}, which keeps a link's former attributes: {error}",
        path.display()
    ))
}

pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(failed("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Removes this network's files of attachments that are not valid any more; goes on after a failure.
pub(super) fn remove_stale(data_dir: &str, network: &str, valid: &ValidAttachments) -> Result<(), Error> {
    let names = valid.iter().map(|attachment| backup_name(&attachment.container_id, &attachment.ifname));
    let kept: BTreeSet<String> = names.collect();
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(failed("list", Path::new(data_dir), &error)),
    };
    let mut failures = Vec::new();
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                failures.push(failed("list", Path::new(data_dir), &error).to_string());
                break;
            }
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        let of = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new")).unwrap_or(&name);
        if !of.ends_with(".json")
            || kept.contains(of)
            || network_of(&entry.path()).as_deref() != Some(network)
        {
            continue;
        }
        failures.extend(remove(&entry.path()).err().map(|error| error.to_string()));
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::internal(failures.join("; "))) }
}

pub(crate) fn network_of(path: &Path) -> Option<String> {
    let mut value = [0; 512];
    let length = rustix::fs::lgetxattr(path, NETWORK, &mut value[..]).ok()?;
    String::from_utf8(value.get(..length)?.to_vec()).ok()
}
