//! The watch for a daemon that waits for several things at once.

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
