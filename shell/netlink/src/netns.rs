//! Network namespaces: open, make, enter for the length of a closure, remove.
//!
//! Invariant: no thread of the caller's ever changes its namespace. Work inside a namespace happens on a thread made for
//! it, which ends with the work; if entering fails, nothing has run. A thread left in a foreign namespace would write
//! routes and kernel parameters of the wrong machine.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::{Error, Result};

/// Where named namespaces live, shared with iproute2.
pub const NETNS_DIR: &str = "/run/netns";

const OWN: &str = "/proc/thread-self/ns/net";

/// A network namespace held open. It lives at least as long as this value; copies share the descriptor.
#[derive(Debug, Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl NetNs {
    /// Opens the namespace a file stands for, such as `/run/netns/x` or `/proc/1/ns/net`.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a network namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed =
            |source: io::Error| Error::Namespace { operation: "open", path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        // A plain file opens as well as a namespace does; only the latter lies on nsfs.
        let magic = rustix::fs::fstatfs(&file).map_err(|e| failed(e.into()))?.f_type;
        if magic != libc::NSFS_MAGIC {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a namespace file")));
        }
        Ok(Self { fd: Arc::new(file.into()), path: path.to_owned() })
    }

    /// Opens `/run/netns/<name>`.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn open_named(name: &str) -> Result<Self> {
        Self::open(Path::new(NETNS_DIR).join(name))
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// As [`NetNs::open`].
    pub fn current() -> Result<Self> {
        Self::open(OWN)
    }

    /// Makes a namespace that vanishes with the last value and socket that refer to it.
    ///
    /// # Errors
    /// When the caller may not make namespaces (`CAP_SYS_ADMIN`).
    pub fn anonymous() -> Result<Self> {
        on_new_thread(|| {
            detach()?;
            Ok(Self { path: PathBuf::from("(anonymous)"), ..Self::open(OWN)? })
        })?
    }

    /// Makes `/run/netns/<name>`, visible to `ip netns`. It stays until [`NetNs::delete_named`].
    ///
    /// # Errors
    /// When it exists already or the caller may not make namespaces; nothing is left behind then.
    pub fn create_named(name: &str) -> Result<Self> {
        let path = Path::new(NETNS_DIR).join(name);
        let failed = |source: io::Error| Error::Namespace { operation: "create", path: path.clone(), source };
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "the name is no file name")));
        }
        shared_directory().map_err(failed)?;
        File::options().write(true).create_new(true).open(&path).map_err(failed)?;
        let mounted = on_new_thread(|| {
            detach()?;
            rustix::mount::mount_bind(OWN, &path).map_err(|e| failed(e.into()))
        });
        if let Err(e) = mounted.and_then(|inner| inner) {
            let _ = fs::remove_file(&path);
            return Err(e);
        }
        Self::open(&path)
    }

    /// Removes `/run/netns/<name>`. The namespace itself goes when nothing uses it any more. Absent is fine.
    ///
    /// # Errors
    /// When it cannot be unmounted or its file not removed.
    pub fn delete_named(name: &str) -> Result<()> {
        let path = Path::new(NETNS_DIR).join(name);
        let failed = |source: io::Error| Error::Namespace { operation: "delete", path: path.clone(), source };
        match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(failed(e.into())),
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// The file it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells namespaces apart: device and inode of the namespace file.
    ///
    /// # Errors
    /// When the descriptor cannot be examined.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|e| Error::Namespace {
            operation: "examine",
            path: self.path.clone(),
            source: e.into(),
        })?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Runs a closure on a thread inside the namespace and waits for it. Sockets opened there stay there;
    /// `/proc/sys/net` means the namespace's own. A panic of the closure continues in the caller.
    ///
    /// # Errors
    /// When the thread cannot be made or may not enter; the closure has not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_new_thread(|| {
            rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|e| Error::Namespace {
                    operation: "enter",
                    path: self.path.clone(),
                    source: e.into(),
                })?;
            Ok(work())
        })?
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PartialEq for NetNs {
    /// The same open namespace value; two files of one namespace compare by [`NetNs::identity`].
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fd, &other.fd)
    }
}

impl Eq for NetNs {}

fn on_new_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|e| Error::io("start a thread for work in a network namespace", e))?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Puts the calling thread, which must end soon, into a namespace of its own.
#[expect(unsafe_code, reason = "unshare is unsafe for some of its flags")]
fn detach() -> Result<()> {
    // SAFETY: only CLONE_FILES can break the safety of descriptors, and it is not among the flags.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|e| Error::Namespace {
        operation: "create",
        path: PathBuf::from("(anonymous)"),
        source: e.into(),
    })
}

/// `/run/netns` as iproute2 makes it: a mount of its own that propagates, so that namespaces made here are seen, and
/// can be removed, in other mount namespaces.
fn shared_directory() -> io::Result<()> {
    fs::create_dir_all(NETNS_DIR)?;
    let share =
        || rustix::mount::mount_change(NETNS_DIR, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(NETNS_DIR, NETNS_DIR)?;
            Ok(share()?)
        }
        Err(e) => Err(e.into()),
    }
}
