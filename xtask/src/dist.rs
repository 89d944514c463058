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
/// The build fails, a binary needs shared libraries or does not start, or the CNI binary is too large.
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
    if name == "loden-cni" {
        ensure!(
            has_build_id(&file),
            "{path} carries no build ID, so copies of it would not know each other and start a process for every delegate; \
             see bin/loden-cni/build.rs"
        );
        delegates_to_a_copy(&path)?;
    }
    starts(&path)?;
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

/// Whether the file is loaded by an interpreter, with its libraries: whether a program header names one. `None` for what is no 64-bit ELF
/// file.
fn needs(file: &[u8]) -> Option<Needs> {
    const INTERPRETER: u32 = 3;
    let headers = program_headers(file)?;
    let is_loaded = headers.iter().any(|(kind, _)| *kind == INTERPRETER);
    Some(if is_loaded { Needs::Loader } else { Needs::Nothing })
}

/// Whether a note has the ID that linkers hash over all they write (`NT_GNU_BUILD_ID`).
fn has_build_id(file: &[u8]) -> bool {
    const NOTES: u32 = 4;
    // Length of the name, type, name; the length of the ID between them is the linker's choice, and at least that of a UUID.
    let is_id = |note: &[u8]| {
        let word = |at: usize| note.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (name, id, kind) = (word(0)?, word(4)?, word(8)?);
        Some(name == 4 && id >= 16 && kind == 3 && note.get(12..16)? == b"GNU\0")
    };
    let headers = program_headers(file).unwrap_or_default();
    let notes = headers.iter().filter(|(kind, _)| *kind == NOTES).filter_map(|(_, at)| file.get(at.clone()));
    // Every note begins at a multiple of four bytes.
    notes.into_iter().any(|notes| {
        (0..notes.len()).step_by(4).any(|at| notes.get(at..).and_then(is_id).unwrap_or_default())
    })
}

/// The program headers' types and where in the file what they describe is. `None` for what is no such file.
fn program_headers(file: &[u8]) -> Option<Vec<(u32, std::ops::Range<usize>)>> {
    let at = |offset: usize, len: usize| file.get(offset..offset.checked_add(len)?);
    if at(0, 5)? != b"\x7fELF\x02" {
        return None;
    }
    let half = |offset| at(offset, 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let place = |offset| {
        at(offset, 8)
            .and_then(|b| b.try_into().ok())
            .and_then(|b| usize::try_from(u64::from_ne_bytes(b)).ok())
    };
    let (table, size, count) = (place(32)?, usize::from(half(54)?), usize::from(half(56)?));
    let header = |index: usize| {
        let entry = table.checked_add(size.checked_mul(index)?)?;
        let kind = u32::from_ne_bytes(at(entry, 4)?.try_into().ok()?);
        let begin = place(entry + 8)?;
        Some((kind, begin..begin.checked_add(place(entry + 32)?)?))
    };
    (0..count).map(header).collect()
}

/// Runs it with nothing around it: that no loader is asked for does not say that it gets as far as its own code.
fn starts(binary: &Utf8Path) -> Result<()> {
    let output = Command::new(binary).arg("--version").env_clear().output();
    let output = output.with_context(|| format!("cannot start {binary}"))?;
    ensure!(
        output.status.success(),
        "{binary} --version failed: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Installs two copies and has one ask the other, which may not be run: only a plugin that takes a copy for itself can answer.
fn delegates_to_a_copy(binary: &Utf8Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Utf8PathBuf::from(format!("{binary}.copies"));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder}"))?;
    let (asks, answers) = (folder.join("bridge"), folder.join("host-local"));
    for copy in [&asks, &answers] {
        std::fs::copy(binary, copy).with_context(|| format!("cannot write {copy}"))?;
    }
    std::fs::set_permissions(&answers, std::fs::Permissions::from_mode(0o644))
        .with_context(|| format!("cannot change {answers}"))?;
    let config = folder.join("config.json");
    let text = format!(
        r#"{{"cniVersion":"1.1.0","name":"copies","type":"bridge","ipam":{{"type":"host-local","dataDir":"{folder}/data","subnet":"192.0.2.0/24"}}}}"#
    );
    std::fs::write(&config, text).with_context(|| format!("cannot write {config}"))?;
    let output = Command::new(&asks)
        .env_clear()
        .envs([("CNI_COMMAND", "STATUS"), ("CNI_PATH", folder.as_str())])
        .stdin(std::fs::File::open(&config).with_context(|| format!("cannot open {config}"))?)
        .output()
        .with_context(|| format!("cannot start {asks}"))?;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {folder}"))?;
    ensure!(
        output.status.success(),
        "a copy of {binary} does not take another copy for itself: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
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
    fn a_build_id_is_found_among_other_notes() {
        let note = |name: &[u8; 4], kind: u32, id: usize| {
            let id_length = u32::try_from(id).unwrap();
            let mut note = [4_u32.to_ne_bytes(), id_length.to_ne_bytes(), kind.to_ne_bytes(), *name].concat();
            note.resize(note.len() + id, 7);
            note
        };
        let with = |notes: &[u8]| {
            let mut file = elf(&[1, 4]);
            let (entry, end) = (64 + 56, u64::try_from(file.len()).unwrap());
            file[entry + 8..entry + 16].copy_from_slice(&end.to_ne_bytes());
            file[entry + 32..entry + 40].copy_from_slice(&u64::try_from(notes.len()).unwrap().to_ne_bytes());
            file.extend(notes);
            file
        };
        let other = note(b"GNU\0", 1, 16);
        assert!(has_build_id(&with(&[other.clone(), note(b"GNU\0", 3, 20)].concat())));
        assert!(!has_build_id(&with(&other)));
        assert!(!has_build_id(&with(&note(b"GNU\0", 3, 8))), "so short an ID says little");
        assert!(!has_build_id(&elf(&[1])) && !has_build_id(b"#!/bin/sh\n"));
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
