//! The plugins as they are installed, and how a runtime calls them.

use super::Programs;
use super::stage::{Directory, program};
use anyhow::{Context, Result};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::process::Command;

/// Where Debian keeps the reference plugins.
pub(crate) const DEBIAN: &str = "/usr/lib/cni";
/// The container's link.
pub(crate) const LINK: &str = "eth0";

/// Every plugin that is measured.
const NAMES: [&str; 5] = ["bridge", "flannel", "host-local", "portmap", "ptp"];

/// Ours as people install them: hard links, so that a delegate runs in the same process.
pub(crate) fn install(programs: &Programs, directory: &Directory) -> Result<Utf8PathBuf> {
    let folder = directory.path.join("bin");
    let copy = folder.join("loden-cni");
    if !copy.exists() {
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder}"))?;
        std::fs::copy(&programs.cni, &copy).with_context(|| format!("cannot copy {}", programs.cni))?;
        for name in NAMES {
            std::fs::hard_link(&copy, folder.join(name)).context("cannot link a plugin's name")?;
        }
    }
    Ok(folder)
}

/// A plugin's command as a runtime gives it.
pub(crate) fn call(folder: &Utf8Path, name: &str, verb: &str, container: &str, netns: &str) -> Command {
    let mut command = program(&folder.join(name));
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", container);
    command.env("CNI_NETNS", netns).env("CNI_IFNAME", LINK).env("CNI_PATH", folder);
    command
}
