//! A machine of a case's own: a network namespace, and directories that nobody else sees.
//!
//! [`Room::enter`] runs in a process that `unshare --net --mount` started, before any other thread exists. Afterwards `/run`, `/var/lib` and
//! `/etc/cni` are empty, the plugins lie in [`PLUGINS`] and the peer's in [`PEER`], and pods are named network namespaces as `ip netns` makes
//! them. Everything goes with the process.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount, mount_bind_recursive};

use crate::Failure;

/// Where the plugins under test lie.
pub const PLUGINS: &str = "/mnt/plugins";
/// Where the peer's plugins lie, if there are any.
pub const PEER: &str = "/mnt/peer";
/// Where plugins find programs.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

const ETC: &str = "/mnt/etc";

/// The machine a case has for itself.
#[derive(Debug)]
pub struct Room(());

impl Room {
    /// Makes the calling process's namespaces into a machine of its own.
    ///
    /// # Errors
    /// When a mount is refused: the process is not root, or not in a mount namespace of its own.
    pub fn enter(plugins: &Path, peer: Option<&Path>, iptables: Option<&str>) -> Result<Self, Failure> {
        own_mounts(plugins, peer).map_err(|error| {
            Failure::new(format!(
                "cannot make a machine of the case's own: {error}; this needs root and `unshare --net --mount`"
            ))
        })?;
        own_etc(iptables.unwrap_or("nft"))
            .map_err(|error| Failure::new(format!("cannot make an /etc of the case's own: {error}")))?;
        let room = Self(());
        // A new namespace has the machine's own settings; the cases start from the kernel's.
        room.shell(
            None,
            "ip link set lo up; sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
        )?;
        Ok(room)
    }

    /// The namespace file of a pod, which is made when it is not there.
    ///
    /// # Errors
    /// When `ip netns` fails.
    pub fn pod(&self, name: &str) -> Result<String, Failure> {
        let path = format!("/run/netns/{name}");
        if !Path::new(&path).exists() {
            self.shell(None, &format!("ip netns add {name}"))?;
        }
        Ok(path)
    }

    /// What a line for the shell prints, on the node or in a pod.
    ///
    /// # Errors
    /// When it fails, with what it wrote to standard error.
    pub fn shell(&self, pod: Option<&str>, line: &str) -> Result<String, Failure> {
        let mut command = match pod {
            None => Command::new("sh"),
            Some(pod) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", self.pod(pod)?)).arg("sh");
                command
            }
        };
        let output = command
            .args(["-ec", line])
            .env("PATH", PATH)
            .output()
            .map_err(|error| Failure::new(format!("cannot start a shell for `{line}`: {error}")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if !output.status.success() {
            return Err(Failure::new(format!(
                "`{line}`: {}: {}",
                output.status,
                text(&output.stderr).trim()
            )));
        }
        Ok(text(&output.stdout))
    }
}

fn tmpfs(path: &str) -> io::Result<()> {
    Ok(mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(c"mode=0755"))?)
}

fn own_mounts(plugins: &Path, peer: Option<&Path>) -> io::Result<()> {
    // What lies below a directory that becomes the case's own must stay reachable.
    let plugins = fs::canonicalize(plugins)?;
    let peer = peer.map(fs::canonicalize).transpose()?;
    tmpfs("/mnt")?;
    for (from, to) in [(Some(plugins), PLUGINS), (peer, PEER), (Some("/etc".into()), ETC)] {
        if let Some(from) = from {
            fs::create_dir(to)?;
            mount_bind_recursive(&from, to)?;
        }
    }
    for path in ["/run", "/var/lib", "/etc"] {
        tmpfs(path)?;
    }
    Ok(())
}

/// The machine's `/etc` by links, but for `cni`, and for which iptables is meant.
fn own_etc(iptables: &str) -> io::Result<()> {
    for entry in fs::read_dir(ETC)? {
        let name = entry?.file_name();
        if name != "cni" && name != "alternatives" {
            symlink(Path::new(ETC).join(&name), Path::new("/etc").join(&name))?;
        }
    }
    fs::create_dir("/etc/alternatives")?;
    for entry in fs::read_dir(format!("{ETC}/alternatives"))? {
        let entry = entry?;
        let name = entry.file_name();
        // A README lies among the links.
        let Ok(mut target) = fs::read_link(entry.path()) else { continue };
        for family in ["iptables", "ip6tables"] {
            for verb in ["", "-save", "-restore"] {
                if name == *format!("{family}{verb}") {
                    target = format!("/usr/sbin/{family}-{iptables}{verb}").into();
                }
            }
        }
        symlink(target, Path::new("/etc/alternatives").join(&name))?;
    }
    Ok(())
}
