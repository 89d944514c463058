//! Programs for the virtual machine: those cargo builds, and the machine's own, each with the libraries it is linked to.

use super::archive::Archive;
use crate::command::Cargo;
use anyhow::{Context, Result, bail};
use cargo_metadata::Message;
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::fs;
use std::io::BufReader;
use std::process::Command;

/// A program cargo has built.
pub(super) struct Program {
    pub(super) name: String,
    pub(super) path: Utf8PathBuf,
}

/// Runs a cargo build and tells which programs it made.
///
/// # Errors
/// The build fails.
pub(super) fn built(cargo: Cargo) -> Result<Vec<Program>> {
    let output = cargo.args(["--message-format", "json-render-diagnostics"]).output()?;
    let mut programs = Vec::new();
    for message in Message::parse_stream(BufReader::new(output.as_slice())) {
        if let Message::CompilerArtifact(artifact) = message.context("cannot read what cargo says")?
            && let Some(path) = artifact.executable
        {
            programs.push(Program { name: artifact.target.name, path });
        }
    }
    Ok(programs)
}

/// Adds a program as `path`, and the libraries it is linked to where it looks for them.
///
/// # Errors
/// The program or a library is missing or cannot be read.
pub(super) fn add(archive: &mut Archive, path: &str, program: &Utf8Path) -> Result<()> {
    let read = |path: &Utf8Path| fs::read(path).with_context(|| format!("cannot read {path}"));
    archive.file(path, 0o755, read(program)?);
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let told = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = told.lines().find(|line| line.contains("not found")) {
        bail!("{program} lacks a library: {}", missing.trim());
    }
    for library in told.lines().filter_map(library) {
        if !archive.has(library) {
            archive.file(library, 0o755, read(Utf8Path::new(library))?);
        }
    }
    Ok(())
}

/// The file in a line of ldd's: `libc.so.6 => /lib/x/libc.so.6 (0x7f..)` or `/lib64/ld-linux-x86-64.so.2 (0x7f..)`.
fn library(line: &str) -> Option<&str> {
    let (file, _) = line.rsplit_once(" (0x")?;
    let file = file.rsplit_once("=> ").map_or(file, |(_, file)| file).trim();
    file.starts_with('/').then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_says() {
        assert_eq!(
            library("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)"),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f1c)"),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd)"), None);
        assert_eq!(library("\tstatically linked"), None);
    }
}
