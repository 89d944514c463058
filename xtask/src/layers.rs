//! The layer check: what a folder may depend on, read from `cargo metadata`.
//!
//! The layers are what keeps the pure half pure and the CNI binary small. A dependency in the wrong direction compiles, works, and is
//! expensive to take out later; so it is an error here, on the day it is made.

use anyhow::{Context, Result, bail};
use cargo_metadata::camino::Utf8PathBuf;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use std::collections::{BTreeMap, BTreeSet};

/// The folders, and the folders that each may depend on.
const LAYERS: &[(&str, &[&str])] = &[
    ("core", &["core"]),
    ("shell", &["core", "shell"]),
    ("sim", &["core", "shell", "sim"]),
    ("bin", &["core", "shell", "sim", "bin"]),
    ("xtask", &[]),
];

/// A binary that people run in production links nothing of `sim/`; `loden` carries the lab and the emulators on purpose.
const PRODUCTION: &[&str] = &["flanneld", "loden-cni", "loden-controller"];

/// What `core/` may use from outside: formats, arithmetic, patterns and hashes. Nothing that opens a socket.
const CORE_MAY_USE: &[&str] = &[
    "aes",
    "base64",
    "cbc",
    "hmac",
    "ipnet",
    "percent-encoding",
    "regex",
    "regex-lite",
    "serde",
    "serde_json",
    "sha1",
    "sha2",
    "thiserror",
    "time",
];

/// Crates that only some of ours may name.
const ONLY: &[(&str, &[&str])] = &[
    ("anyhow", &["flanneld", "loden", "loden-cni", "loden-controller", "xtask"]),
    ("netlink-sys", &["loden-netlink"]),
    ("kube", &["loden-kube", "loden-sim-kube"]),
    // flanneld, loden-cni: tests of theirs filter system calls or stop at them.
    ("libc", &["loden-netlink", "loden-lab", "flanneld", "loden-cni"]),
];

/// A pod waits for this binary to start: nothing below may be in its tree.
const CNI_WITHOUT: &[&str] = &["tokio", "kube", "rustls", "hyper", "clap", "tracing-subscriber"];

/// Checks every rule; prints the number of packages looked at.
///
/// # Errors
/// Names every broken rule, one a line.
pub(crate) fn check() -> Result<()> {
    let metadata = metadata()?;
    let broken = broken_rules(&metadata)?;
    if !broken.is_empty() {
        bail!("the layers are broken:\n  {}", broken.join("\n  "));
    }
    println!("layers: {} packages, every dependency points inwards", metadata.workspace_members.len());
    Ok(())
}

/// Where cargo builds to.
pub(crate) fn target_directory() -> Result<Utf8PathBuf> {
    Ok(metadata()?.target_directory)
}

/// Where the workspace lies.
pub(crate) fn workspace_root() -> Result<Utf8PathBuf> {
    Ok(metadata()?.workspace_root)
}

fn metadata() -> Result<Metadata> {
    MetadataCommand::new().other_options(vec!["--locked".to_owned()]).exec().context("cargo metadata failed")
}

fn broken_rules(metadata: &Metadata) -> Result<Vec<String>> {
    let mut folders = BTreeMap::new();
    for package in metadata.workspace_packages() {
        folders.insert(package.name.to_string(), folder(metadata, package)?);
    }
    let mut broken = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let layer = folders.get(name).map_or("", String::as_str);
        let Some((_, allowed)) = LAYERS.iter().find(|(folder, _)| *folder == layer) else {
            broken.push(format!("{name} lies in {layer}/, which is no layer"));
            continue;
        };
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            match folders.get(to) {
                // Tests of a binary may bring up the outside world; nothing below a binary may.
                Some(below) if !allowed.contains(&below.as_str()) => {
                    broken.push(format!("{name} ({layer}/) depends on {to} ({below}/)"));
                }
                Some(below)
                    if below == "sim"
                        && PRODUCTION.contains(&name)
                        && dependency.kind != DependencyKind::Development =>
                {
                    broken.push(format!("{name} is for production and links {to} (sim/)"));
                }
                None if layer == "core"
                    && dependency.kind != DependencyKind::Development
                    && !CORE_MAY_USE.contains(&to) =>
                {
                    broken.push(format!("{name} (core/) uses {to}, which is not among what core may use"));
                }
                _ => {}
            }
            if let Some((_, users)) = ONLY.iter().find(|(only, _)| *only == to)
                && !users.contains(&name)
            {
                broken.push(format!("{name} uses {to}, which is for {} alone", users.join(", ")));
            }
        }
    }
    let tree = tree_of(metadata, "loden-cni")?;
    broken.extend(
        CNI_WITHOUT
            .iter()
            .filter(|name| tree.contains(**name))
            .map(|name| format!("loden-cni has {name} in its tree; its start-up time is its product")),
    );
    Ok(broken)
}

/// The first folder of a package's path inside the workspace.
fn folder(metadata: &Metadata, package: &Package) -> Result<String> {
    let path = package
        .manifest_path
        .strip_prefix(&metadata.workspace_root)
        .with_context(|| format!("{} lies outside the workspace", package.name))?;
    Ok(path.components().next().map(|first| first.as_str().to_owned()).unwrap_or_default())
}

/// The names of all packages that `root` links, itself included.
fn tree_of(metadata: &Metadata, root: &str) -> Result<BTreeSet<String>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata came without a dependency graph")?;
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let start = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == root)
        .with_context(|| format!("there is no package {root}"))?;
    let (mut seen, mut queue) = (BTreeSet::new(), vec![&start.id]);
    while let Some(id) = queue.pop() {
        if !seen.insert(id) {
            continue;
        }
        let Some(node) = nodes.get(id) else { continue };
        let linked = |dependency: &&cargo_metadata::NodeDep| {
            dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
        };
        queue.extend(node.deps.iter().filter(linked).map(|dependency| &dependency.pkg));
    }
    Ok(metadata.packages.iter().filter(|p| seen.contains(&p.id)).map(|p| p.name.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check must be able to fail: with an empty allow-list it finds what is certainly there.
    #[test]
    fn the_tree_of_a_binary_is_found() {
        let metadata = metadata().unwrap();
        let tree = tree_of(&metadata, "loden-controller").unwrap();
        assert!(tree.contains("tokio"), "{tree:?}");
        assert!(tree_of(&metadata, "no-such-package").is_err());
    }

    #[test]
    fn a_wrong_direction_is_named() {
        let mut metadata = metadata().unwrap();
        // Put a core crate's manifest into bin/: whatever in core/ depends on it is now wrong.
        let firewall = metadata.packages.iter_mut().find(|p| p.name.as_str() == "loden-firewall").unwrap();
        firewall.manifest_path = metadata.workspace_root.join("bin/firewall/Cargo.toml");
        let broken = broken_rules(&metadata).unwrap();
        assert!(
            broken.iter().any(|rule| rule == "loden-netlink (shell/) depends on loden-firewall (bin/)"),
            "{broken:?}"
        );
    }
}
