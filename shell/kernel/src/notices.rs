//! The watches of a daemon that waits for several things at once.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::inotify;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Error, Kernel, Watch};

/// A [`Watch`] in a tokio runtime (a current-thread one is enough).
#[derive(Debug)]
pub struct Notices {
    watch: AsyncFd<Watch>,
}

impl Notices {
    /// Registers the watch with the running runtime.
    ///
    /// # Errors
    /// When the runtime cannot take its descriptor.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    #[expect(unsafe_code, reason = "tokio cannot see from the type that the descriptor stays the same")]
    pub fn new(watch: Watch) -> std::io::Result<Self> {
        // SAFETY: a `Watch` owns its epoll descriptor from creation to drop and always answers `as_raw_fd` with it; the
        // `AsyncFd` owns the `Watch` and gives it out by reference only.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) };
        Ok(Self { watch: watch.map_err(std::io::Error::from)? })
    }

    /// Waits until something changed that an observation of `kernel` would show. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When listening failed for good.
    pub async fn changed(&mut self, kernel: &Kernel) -> Result<(), Error> {
        loop {
            let mut ready = self.watch.readable_mut().await.map_err(Error::Listen)?;
            ready.clear_ready();
            if !ready.get_inner_mut().changes(kernel)?.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Hears of changes to one file: it came, went, was written or renamed, or its directory went.
///
/// Other entries of the directory come and go without a word, above all the temporary file that a failing write makes and
/// removes, which would otherwise wake the writer to try again at once, for ever.
#[derive(Debug)]
pub struct FileNotices {
    inotify: AsyncFd<OwnedFd>,
    name: OsString,
}

impl FileNotices {
    /// Registers with the running runtime. The file need not be there, its directory must.
    ///
    /// # Errors
    /// When the directory is not there or the system has no watch to spare.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    #[expect(unsafe_code, reason = "tokio cannot see from the type that the descriptor stays the same")]
    pub fn new(file: &Path) -> std::io::Result<Self> {
        let name = file.file_name().unwrap_or_default().to_owned();
        let directory =
            file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF
            | inotify::WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, directory, events)?;
        // SAFETY: an `OwnedFd` keeps one descriptor open from creation to drop; the `AsyncFd` owns it and gives it out by
        // reference only.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
        Ok(Self { inotify: inotify.map_err(std::io::Error::from)?, name })
    }

    /// Waits until something happened to the file. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn changed(&mut self) -> std::io::Result<()> {
        loop {
            let mut ready = self.inotify.readable_mut().await?;
            ready.clear_ready();
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(ready.get_inner(), &mut buffer);
            let mut concerned = false;
            while let Ok(event) = events.next() {
                // An event without a name is about the directory itself, or says that events were lost.
                concerned |= event.file_name().is_none_or(|name| name.to_bytes() == self.name.as_bytes());
            }
            if concerned {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::FileNotices;

    /// Whether a notice waits. What inotify has to say is there when the system call that caused it returns.
    fn told(runtime: &tokio::runtime::Runtime, notices: &mut FileNotices) -> bool {
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(50), notices.changed()).await.is_ok()
        })
    }

    #[test]
    fn one_file_is_heard_of_and_its_neighbours_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("run");
        fs::create_dir(&inner).unwrap();
        let (file, temporary) = (inner.join("subnet.env"), inner.join(".subnet.env.loden"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut notices = runtime.block_on(async { FileNotices::new(&file).unwrap() });
        fs::write(&temporary, "new").unwrap();
        fs::remove_file(&temporary).unwrap();
        assert!(!told(&runtime, &mut notices), "a temporary file came and went");
        fs::write(&temporary, "new").unwrap();
        fs::rename(&temporary, &file).unwrap();
        assert!(told(&runtime, &mut notices), "renamed to");
        assert!(!told(&runtime, &mut notices), "told once");
        fs::write(&file, "other").unwrap();
        assert!(told(&runtime, &mut notices), "written");
        fs::remove_file(&file).unwrap();
        assert!(told(&runtime, &mut notices), "removed");
        fs::remove_dir(&inner).unwrap();
        assert!(told(&runtime, &mut notices), "its directory is gone");
    }
}
