//! The subnet file on disk.
//!
//! A reader sees the old file or the new one, never a part: the text goes to a temporary file beside it, is flushed, and is
//! renamed over. When that fails (a full disk), the old file stands and nothing is left lying about. Broken here, pods
//! would be set up with half a configuration.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What flannel gives the file and its directory.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;
/// No subnet file is longer; whatever else is at that path is not read into memory.
const LIMIT: u64 = 64 * 1024;

/// The subnet file cannot be read or written.
#[derive(Debug, Error)]
#[error("{operation} subnet file {path}: {source}; {remedy}", path = .path.display())]
pub struct SubnetFileError {
    operation: &'static str,
    path: PathBuf,
    remedy: &'static str,
    #[source]
    source: io::Error,
}

/// A subnet file by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetFile {
    path: PathBuf,
}

impl SubnetFile {
    /// The file at this path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its text; `None` if there is no such file. Bytes that are no UTF-8 are replaced.
    ///
    /// # Errors
    /// When it exists and cannot be read.
    pub fn read(&self) -> Result<Option<String>, SubnetFileError> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SubnetFileError {
                operation: "read",
                path: self.path.clone(),
                remedy: "check its permissions, or remove it so that it is written anew",
                source,
            }),
        }
    }

    /// Puts the text on the disk beside the file, flushed, so that only a rename is missing; `None` if the file says just
    /// that already.
    ///
    /// # Errors
    /// When the directory cannot be made or the text cannot be written. The old file stands, and nothing else is left.
    pub fn stage(&self, text: &str) -> Result<Option<Staged>, SubnetFileError> {
        if let Ok(Some(current)) = self.read()
            && current == text
        {
            return Ok(None);
        }
        self.beside(text).map(Some).map_err(|source| self.not_written(source))
    }

    /// Writes the text unless the file says just that already; returns whether it wrote.
    ///
    /// # Errors
    /// As [`SubnetFile::stage`] and [`Staged::commit`].
    pub fn write(&self, text: &str) -> Result<bool, SubnetFileError> {
        match self.stage(text)? {
            Some(staged) => staged.commit().map(|()| true),
            None => Ok(false),
        }
    }

    fn not_written(&self, source: io::Error) -> SubnetFileError {
        SubnetFileError {
            operation: "write",
            path: self.path.clone(),
            remedy: match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free space on that file system; an older file, if any, is as it was"
                }
                io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                    "make its directory writable, or give another path with -subnet-file"
                }
                _ => "see that its directory can be made and written; an older file, if any, is as it was",
            },
            source,
        }
    }

    fn directory(&self) -> &Path {
        self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn beside(&self, text: &str) -> io::Result<Staged> {
        let directory = self.directory();
        let name = self.path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
        if !directory.is_dir() {
            let mut builder = fs::DirBuilder::new();
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, DIRECTORY_MODE);
            builder.recursive(true).create(directory)?;
        }
        // One writer per subnet file, so a fixed name will do; what a crash left there is overwritten by the next run.
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".loden");
        let staged = Staged { file: self.clone(), temporary: directory.join(hidden) };
        let mode = match fs::symlink_metadata(&self.path) {
            Ok(existing) if existing.is_file() => existing.permissions().mode() & 0o7777,
            _ => FILE_MODE,
        };
        fill(&staged.temporary, text, mode)?;
        Ok(staged)
    }
}

/// A new subnet file that only waits to take the old one's place; dropped, it is gone.
#[derive(Debug)]
#[must_use = "dropped, the new file is gone"]
pub struct Staged {
    file: SubnetFile,
    temporary: PathBuf,
}

impl Staged {
    /// Lets the new file take the old one's place.
    ///
    /// # Errors
    /// When it cannot be renamed or the directory cannot be flushed.
    pub fn commit(self) -> Result<(), SubnetFileError> {
        let renamed = fs::rename(&self.temporary, &self.file.path)
            .and_then(|()| File::open(self.file.directory())?.sync_all());
        renamed.map_err(|source| self.file.not_written(source))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _renamed_already = fs::remove_file(&self.temporary);
    }
}

fn fill(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let flags = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::SubnetFile;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn mode(path: &std::path::Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn writes_once_with_flannels_modes_and_leaves_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = SubnetFile::new(directory.path().join("run/flannel/subnet.env"));
        assert_eq!(file.read().unwrap(), None);
        assert!(file.write("FLANNEL_MTU=1500\n").unwrap());
        assert!(!file.write("FLANNEL_MTU=1500\n").unwrap(), "equal text is not written again");
        assert_eq!(mode(file.path()), 0o644);
        assert_eq!(file.read().unwrap().unwrap(), "FLANNEL_MTU=1500\n");
        assert_eq!(fs::read_dir(file.path().parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn an_existing_files_mode_is_kept_and_a_symlink_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let file = SubnetFile::new(directory.path().join("subnet.env"));
        file.write("a\n").unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
        file.write("b\n").unwrap();
        assert_eq!(mode(file.path()), 0o600);
        let target = directory.path().join("elsewhere");
        fs::write(&target, "theirs\n").unwrap();
        fs::remove_file(file.path()).unwrap();
        std::os::unix::fs::symlink(&target, file.path()).unwrap();
        file.write("c\n").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs\n");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "c\n");
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = SubnetFile::new(directory.path().join("subnet.env"));
        file.write("old\n").unwrap();
        fs::create_dir(directory.path().join(".subnet.env.loden")).unwrap();
        let error = file.write("new\n").unwrap_err().to_string();
        assert!(error.starts_with("write subnet file ") && error.contains("subnet.env"), "{error}");
        assert_eq!(file.read().unwrap().unwrap(), "old\n");
    }

    #[test]
    fn what_is_staged_counts_once_committed_and_is_gone_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let file = SubnetFile::new(directory.path().join("subnet.env"));
        file.write("old\n").unwrap();
        let entries = || fs::read_dir(directory.path()).unwrap().count();
        let staged = file.stage("new\n").unwrap().unwrap();
        assert_eq!((file.read().unwrap().unwrap().as_str(), entries()), ("old\n", 2));
        drop(staged);
        assert_eq!((file.read().unwrap().unwrap().as_str(), entries()), ("old\n", 1));
        file.stage("new\n").unwrap().unwrap().commit().unwrap();
        assert_eq!((file.read().unwrap().unwrap().as_str(), entries()), ("new\n", 1));
        assert!(file.stage("new\n").unwrap().is_none());
    }
}
