//! A place where a plugin can do what it likes: namespaces of its own for users, mounts, processes and networks, and a file system that
//! exists only there.
//!
//! Nothing of the machine can be reached from inside, whatever a plugin is talked into: its root is a tmpfs with nothing of the machine's on
//! it but the directories that were asked for, kernel parameters outside of its own networks are read-only, and other processes are not
//! there. That is also why every file that it touches can be found.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use loden_netlink::NetNs;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};

/// Set inside, so that the program knows that it was started again.
const INSIDE: &str = "LODEN_HOSTILE_SANDBOX";
/// The directory that becomes the root. Every system has it.
const ROOT: &str = "/tmp";

/// Where a sandbox has its plugins: files that are this very program.
pub const PLUGINS: &str = "/cni";
/// The container's network namespace.
pub const POD: &str = "/run/netns/pod";

/// Whether this process was started by [`start_again`].
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The command that starts a program in namespaces of its own, where it must call [`enter`].
#[must_use]
pub fn command(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
    command.arg(program).env(INSIDE, "1");
    command
}

/// Replaces this process by the same program in namespaces of its own.
///
/// # Errors
/// `unshare` of Debian's `util-linux` cannot be started.
pub fn start_again() -> io::Result<Infallible> {
    let mut command = command(&std::env::current_exe()?);
    command.args(std::env::args_os().skip(1));
    Err(command.exec())
}

/// Makes the sandbox's file system this process's root, with the directories `open` of the machine in it.
///
/// # Errors
/// The process has no namespaces of its own, or a step failed; the text says which.
pub fn enter(open: &[PathBuf]) -> Result<(), String> {
    if !is_inside() {
        return Err("only a process that was started in namespaces of its own may change its root".to_owned());
    }
    let step = |what: &'static str| move |error: io::Error| format!("cannot {what} for the sandbox: {error}");
    let root = Path::new(ROOT);
    // Opened before anything is covered; each is then reached by its descriptor.
    let kept: Vec<(PathBuf, File)> = open
        .iter()
        .map(|path| Ok((path.clone(), File::open(path)?)))
        .collect::<io::Result<_>>()
        .map_err(step("open a directory"))?;
    let mounted = || -> io::Result<()> {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("tmpfs", root, "tmpfs", MountFlags::empty(), None)?;
        processes(root)?;
        plugins(root)?;
        for (path, file) in &kept {
            let inside = root.join(path.strip_prefix("/").unwrap_or(path));
            fs::create_dir_all(&inside)?;
            mount_bind(format!("/proc/self/fd/{}", file.as_raw_fd()), &inside)?;
        }
        rustix::process::chroot(root)?;
        rustix::process::chdir("/")?;
        Ok(())
    };
    mounted().map_err(step("mount what is needed"))?;
    NetNs::create_named("pod").map(drop).map_err(|error| format!("no namespace for the container: {error}"))
}

/// `/proc` with this sandbox's processes; of the kernel's parameters, only those of its own networks can be written.
fn processes(root: &Path) -> io::Result<()> {
    let proc = root.join("proc");
    fs::create_dir(&proc)?;
    mount("proc", &proc, "proc", MountFlags::empty(), None)?;
    let parameters = proc.join("sys");
    mount_bind(&parameters, &parameters)?;
    mount_remount(&parameters, MountFlags::BIND | MountFlags::RDONLY, "")?;
    Ok(mount_bind("/proc/sys/net", parameters.join("net"))?)
}

/// Every plugin, as a file that is this program, so that one that calls another does so in this process.
fn plugins(root: &Path) -> io::Result<()> {
    let directory = root.join(PLUGINS.trim_start_matches('/'));
    fs::create_dir(&directory)?;
    for name in loden_cni_plugins::names() {
        let path = directory.join(name);
        File::create(&path)?;
        mount_bind("/proc/self/exe", &path)?;
    }
    Ok(())
}
