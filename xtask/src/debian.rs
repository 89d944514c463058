//! The Debian packages that the demo and the tests run against: named here once, installed when missing.

use crate::command::{require_root, run, step};
use anyhow::{Context, Result, bail};
use cargo_metadata::camino::Utf8Path;
use std::path::Path;
use std::process::Command;

/// A package, and a file that is there when it is installed.
pub(crate) struct Package {
    name: &'static str,
    proof: &'static str,
    /// A service that would start with the installation and change the machine.
    service: Option<&'static str>,
}

const fn package(name: &'static str, proof: &'static str) -> Package {
    Package { name, proof, service: None }
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
    package("strace", "/usr/bin/strace"),
    package("containernetworking-plugins", "/usr/lib/cni/bridge"),
    package("dbus", "/usr/bin/dbus-daemon"),
    Package { service: Some("prometheus.service"), ..package("prometheus", "/usr/bin/promtool") },
    Package { service: Some("firewalld.service"), ..package("firewalld", "/usr/sbin/firewalld") },
];

/// The container runtimes that call the plugins, and what their containers run.
pub(crate) const RUNTIMES: &[Package] = &[
    package("busybox-static", "/bin/busybox"),
    package("containerd", "/usr/bin/containerd"),
    package("podman", "/usr/bin/podman"),
    package("runc", "/usr/sbin/runc"),
];

/// What a benchmark counts instructions with.
pub(crate) const BENCH: &[Package] = &[package("valgrind", "/usr/bin/valgrind")];

/// A Python that can make virtual environments, where the machine's own cannot.
pub(crate) const PYTHON: &[Package] =
    &[package("python3", "/usr/bin/python3"), package("python3-venv", "/usr/share/doc/python3-venv")];

/// The emulator of the virtual machine, and the machine's own programs that run inside.
pub(crate) const VM: &[Package] = &[
    package("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
    package("iproute2", "/usr/sbin/ip"),
    package("iputils-ping", "/usr/bin/ping"),
    package("nftables", "/usr/sbin/nft"),
    package("procps", "/usr/sbin/sysctl"),
    package("containernetworking-plugins", "/usr/lib/cni/bridge"),
];

/// Installs those of `packages` that are missing.
///
/// # Errors
/// Something is missing and this is not root, or apt-get fails.
pub(crate) fn install(packages: &[Package]) -> Result<()> {
    let absent: Vec<_> = packages.iter().filter(|p| !Path::new(p.proof).exists()).collect();
    let missing: Vec<_> = absent.iter().map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    require_root(&format!(
        "these Debian packages are missing and apt-get installs them: {}",
        missing.join(" ")
    ))?;
    step(&format!("installing Debian packages: {}", missing.join(" ")));
    absent.iter().filter_map(|p| p.service).try_for_each(mask)?;
    run("apt-get", &["update", "-qq"])?;
    let mut words = vec!["install", "-y", "-qq", "--no-install-recommends"];
    words.extend(&missing);
    run("apt-get", &words).with_context(|| format!("cannot install {}", missing.join(" ")))
}

/// Keeps a service that is about to be installed from being started by systemd, now and at the next boot, as `systemctl mask` does.
fn mask(service: &str) -> Result<()> {
    let units = Path::new("/etc/systemd/system");
    let unit = units.join(service);
    if unit.symlink_metadata().is_ok() {
        return Ok(());
    }
    step(&format!("masking {service}, so that it does not start (undo: systemctl unmask {service})"));
    std::fs::create_dir_all(units)
        .and_then(|()| std::os::unix::fs::symlink("/dev/null", &unit))
        .with_context(|| format!("cannot mask {service} by {}", unit.display()))
}

/// The one package that `package` depends on and whose name begins with `prefix`.
///
/// # Errors
/// The archive knows no such package.
pub(crate) fn dependency(package: &str, prefix: &str) -> Result<String> {
    let ask = || -> Result<Option<String>> {
        let output = Command::new("apt-cache")
            .args(["depends", "--important", "--no-recommends", package])
            .output()
            .context("cannot start apt-cache")?;
        let told = String::from_utf8_lossy(&output.stdout);
        let names = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(names.map(str::to_owned).find(|name| name.starts_with(prefix)))
    };
    if let Some(found) = ask()? {
        return Ok(found);
    }
    // The usual reason: the machine has never asked for the lists.
    run("apt-get", &["update", "-qq"])?;
    ask()?
        .with_context(|| format!("the machine's package archive has no {package} that depends on {prefix}…"))
}

/// Takes a package from the archive and unpacks it into `folder`, without installing it.
///
/// # Errors
/// The package cannot be had or unpacked; `folder` is then as it was.
pub(crate) fn unpack(package: &str, folder: &Utf8Path) -> Result<()> {
    let fetched = folder.with_extension("fetched");
    let unpacked = folder.with_extension("unpacked");
    for scratch in [&fetched, &unpacked] {
        if scratch.exists() {
            std::fs::remove_dir_all(scratch).with_context(|| format!("cannot remove {scratch}"))?;
        }
        std::fs::create_dir_all(scratch).with_context(|| format!("cannot make {scratch}"))?;
    }
    let status = |words: &[&str]| {
        // apt-get leaves its download where it is started, and drops privileges it cannot use there.
        Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root"])
            .args(words)
            .current_dir(&fetched)
            .status()
    };
    if !status(&["download", package]).context("cannot start apt-get")?.success() {
        // The usual reason: the machine has never asked for the lists, or they are old.
        run("apt-get", &["update", "-qq"])?;
        if !status(&["download", package]).context("cannot start apt-get")?.success() {
            bail!("apt-get cannot download {package}; is the machine's package archive reachable?");
        }
    }
    let archive = std::fs::read_dir(&fetched)
        .with_context(|| format!("cannot list {fetched}"))?
        .filter_map(|entry| entry.ok()?.path().into_os_string().into_string().ok())
        .find(|path| path.ends_with(".deb"))
        .with_context(|| format!("apt-get download {package} left no .deb in {fetched}"))?;
    run("dpkg", &["-x", &archive, unpacked.as_str()])?;
    std::fs::rename(&unpacked, folder).with_context(|| format!("cannot move {unpacked} to {folder}"))?;
    std::fs::remove_dir_all(&fetched).with_context(|| format!("cannot remove {fetched}"))
}
