//! The Debian packages that the demo and the tests run against: named here once, installed when missing.

use crate::command::{require_root, run, step};
use anyhow::{Context, Result};
use std::path::Path;

/// A package, and a file that is there when it is installed.
pub(crate) struct Package {
    name: &'static str,
    proof: &'static str,
}

const fn package(name: &'static str, proof: &'static str) -> Package {
    Package { name, proof }
}

/// What the lab is looked at with. Loden itself needs none of them.
pub(crate) const LAB: &[Package] =
    &[package("iproute2", "/usr/sbin/ip"), package("iputils-ping", "/usr/bin/ping")];

/// What the tests hold against Loden: the kernel's own tools, and the reference CNI plugins.
pub(crate) const TESTS: &[Package] = &[
    package("iproute2", "/usr/sbin/ip"),
    package("iputils-ping", "/usr/bin/ping"),
    package("nftables", "/usr/sbin/nft"),
    package("iptables", "/usr/sbin/iptables"),
    package("tcpdump", "/usr/bin/tcpdump"),
    package("containernetworking-plugins", "/usr/lib/cni/bridge"),
];

/// Installs those of `packages` that are missing.
///
/// # Errors
/// Something is missing and this is not root, or apt-get fails.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|p| !Path::new(p.proof).exists()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    require_root(&format!(
        "these Debian packages are missing and apt-get installs them: {}",
        missing.join(" ")
    ))?;
    step(&format!("installing Debian packages: {}", missing.join(" ")));
    run("apt-get", &["update", "-qq"])?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&missing);
    run("apt-get", &words).with_context(|| format!("cannot install {}", missing.join(" ")))
}
