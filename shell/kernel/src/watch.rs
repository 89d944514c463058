//! Hearing that the network changed.
//!
//! A wake-up only says "look again". Notices about neighbours on links that nobody looks at are passed over: on a node
//! with many pods the kernel learns and forgets them all the time. Most sysctls are changed without any notice, so a
//! slow audit must back this up.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use loden_netlink::NetNs;
use loden_netlink::monitor::{Monitor, Notice, Subject};

use crate::{Error, Kernel};

/// Listens for changes in one namespace. Its descriptor is readable when there may be some.
#[derive(Debug)]
pub struct Watch {
    monitor: Monitor,
}

impl Watch {
    pub(crate) fn open(netns: Option<&NetNs>) -> Result<Self, Error> {
        let monitor = match netns {
            None => Monitor::open()?,
            Some(netns) => Monitor::open_in(netns)?,
        };
        Ok(Self { monitor })
    }

    /// What has changed since the last call, without waiting; empty when nothing did that concerns an observation. With
    /// [`Subject::Overrun`] anything may have.
    ///
    /// # Errors
    /// When listening failed for good; start anew and look at everything.
    pub fn changes(&mut self, kernel: &Kernel) -> Result<BTreeSet<Subject>, Error> {
        Ok(concerning(self.monitor.drain()?, kernel))
    }

    /// As [`Watch::changes`], waiting up to `timeout` for something to happen. It may return early and empty.
    ///
    /// # Errors
    /// As [`Watch::changes`].
    pub fn wait(&mut self, kernel: &Kernel, timeout: Duration) -> Result<BTreeSet<Subject>, Error> {
        Ok(concerning(self.monitor.wait(timeout)?, kernel))
    }
}

fn concerning(notices: BTreeSet<Notice>, kernel: &Kernel) -> BTreeSet<Subject> {
    let concerns = |notice: &Notice| match (notice.subject, notice.link) {
        (Subject::Neighbour, Some(index)) => kernel.watched.contains(&index),
        _ => true,
    };
    notices.into_iter().filter(concerns).map(|notice| notice.subject).collect()
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.monitor.as_raw_fd()
    }
}
