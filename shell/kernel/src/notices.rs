//! The watches of a daemon that waits for several things at once.

use std::os::fd::OwnedFd;
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

/// Hears of changes to the entries of one directory.
#[derive(Debug)]
pub struct DirectoryNotices {
    inotify: AsyncFd<OwnedFd>,
}

impl DirectoryNotices {
    /// Registers with the running runtime.
    ///
    /// # Errors
    /// When the directory is not there or the system has no watch to spare.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    #[expect(unsafe_code, reason = "tokio cannot see from the type that the descriptor stays the same")]
    pub fn new(directory: &Path) -> std::io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVE
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::ATTRIB;
        inotify::add_watch(&inotify, directory, events)?;
        // SAFETY: an `OwnedFd` keeps one descriptor open from creation to drop; the `AsyncFd` owns it and gives it out by
        // reference only.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) };
        Ok(Self { inotify: inotify.map_err(std::io::Error::from)? })
    }

    /// Waits until an entry came, went, was written or renamed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn changed(&mut self) -> std::io::Result<()> {
        let mut ready = self.inotify.readable_mut().await?;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(ready.get_inner(), &mut buffer);
        while events.next().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}
