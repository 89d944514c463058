//! The binaries as they are installed: release builds without shared libraries, each looked at before it is called done.
//!
//! What must hold: nothing of `<target>/dist` needs a library or a loader of the machine it is copied to. A CNI binary that does works on
//! the machine that built it and fails in the first minimal image.

use crate::command::step;
use crate::layers;
use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::process::Command;

/// What people install.
pub(crate) const PRODUCTION: &[&str] = &["flanneld", "loden-cni", "loden-controller", "loden"];

/// The CNI binary is copied to every node once per plugin name, and read at every pod's start.
const CNI_MOST_BYTES: u64 = 4 * 1024 * 1024;

/// One finished binary.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) name: &'static str,
    pub(crate) path: Utf8PathBuf,
    pub(crate) bytes: u64,
}

/// Builds what people install, checks it, and leaves it in `<target>/dist`.
///
/// # Errors
/// The build fails, a binary needs shared libraries, or the CNI binary is too large.
pub(crate) fn run() -> Result<()> {
    let folder = layers::target_directory()?.join("dist");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder}"))?;
    for binary in build(PRODUCTION)? {
        let copy = folder.join(binary.name);
        // By rename: a binary that is running keeps its file.
        let fresh = folder.join(format!(".{}.new", binary.name));
        std::fs::copy(&binary.path, &fresh)
            .and_then(|_| std::fs::rename(&fresh, &copy))
            .with_context(|| format!("cannot write {copy}"))?;
        println!("{copy}  {} bytes, static", binary.bytes);
    }
    Ok(())
}

/// Builds these binaries of the workspace, static and stripped, and checks them.
///
/// # Errors
/// As [`run`].
pub(crate) fn build(names: &[&'static str]) -> Result<Vec<Binary>> {
    let triple = host_triple()?;
    step(&format!("building for release, static: {}", names.join(" ")));
    // With --target the flags do not reach build scripts and procedural macros, which cannot be static.
    let inherited = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(["build", "--release", "--locked", "--workspace", "--target", &triple]);
    command.args(names.iter().flat_map(|name| ["--bin", name]));
    command.env("RUSTFLAGS", format!("{inherited} -C target-feature=+crt-static").trim());
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the release build failed: {status}");
    let folder = layers::target_directory()?.join(&triple).join("release");
    names.iter().map(|name| finished(&folder, name)).collect()
}

fn finished(folder: &Utf8Path, name: &'static str) -> Result<Binary> {
    let path = folder.join(name);
    let file = std::fs::read(&path).with_context(|| format!("cannot read {path}"))?;
    match needs(&file) {
        Some(Needs::Nothing) => {}
        Some(Needs::Loader) => bail!("{path} needs a loader and shared libraries; it must be static"),
        None => bail!("{path} is no 64-bit ELF file of this machine's byte order"),
    }
    let bytes = u64::try_from(file.len()).unwrap_or(u64::MAX);
    ensure!(
        name != "loden-cni" || bytes <= CNI_MOST_BYTES,
        "{path} has {bytes} bytes, more than the {CNI_MOST_BYTES} a CNI binary may have"
    );
    Ok(Binary { name, path, bytes })
}

/// `x86_64-unknown-linux-gnu` and the like, of the compiler that builds this.
fn host_triple() -> Result<String> {
    let output = Command::new(std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()))
        .arg("-vV")
        .output()
        .context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` does not name its host")?.to_owned())
}

/// What an executable needs besides the kernel.
#[derive(Debug, PartialEq, Eq)]
enum Needs {
    Nothing,
    Loader,
}

/// Reads an ELF file's program headers: one that names an interpreter is loaded by it, with its libraries. `None` for what is
/// no such file.
fn needs(file: &[u8]) -> Option<Needs> {
    const INTERPRETER: u32 = 3;
    let at = |offset: usize, len: usize| file.get(offset..offset.checked_add(len)?);
    if at(0, 5)? != b"\x7fELF\x02" {
        return None;
    }
    let half = |offset| at(offset, 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let table = usize::try_from(u64::from_ne_bytes(at(32, 8)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(half(54)?), usize::from(half(56)?));
    for index in 0..count {
        let entry = table.checked_add(size.checked_mul(index)?)?;
        if u32::from_ne_bytes(at(entry, 4)?.try_into().ok()?) == INTERPRETER {
            return Some(Needs::Loader);
        }
    }
    Some(Needs::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..5].copy_from_slice(b"\x7fELF\x02");
        file[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        file[54..56].copy_from_slice(&56_u16.to_ne_bytes());
        file[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_ne_bytes());
        for kind in kinds {
            file.extend(kind.to_ne_bytes());
            file.extend([0; 52]);
        }
        file
    }

    #[test]
    fn an_interpreter_is_found_wherever_it_stands() {
        assert_eq!(needs(&elf(&[1, 2, 7])), Some(Needs::Nothing));
        assert_eq!(needs(&elf(&[6, 1, 3, 2])), Some(Needs::Loader));
        assert_eq!(needs(&elf(&[6, 1, 3])[..64 + 56 * 2]), None, "a cut-off table is not read as harmless");
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(needs(&own), Some(Needs::Loader), "tests are linked as the platform does it");
    }
}
