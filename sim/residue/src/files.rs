//! Files below directories.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::Error;

/// How much of a file's content is told; what differs behind it shows by the length.
const TOLD: usize = 400;

pub(crate) fn below<P: AsRef<Path>>(directories: &[P]) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    for directory in directories {
        walk(directory.as_ref(), &mut lines)?;
    }
    Ok(lines)
}

fn walk(path: &Path, lines: &mut Vec<String>) -> Result<(), Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // Something else may be at work in the directory; what is gone is not there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    let name = path.display();
    if metadata.is_dir() {
        lines.push(format!("{name}/ {mode:04o}"));
        for entry in fs::read_dir(path).map_err(failed)? {
            walk(&entry.map_err(failed)?.path(), lines)?;
        }
    } else if metadata.is_symlink() {
        lines.push(format!("{name} -> {}", fs::read_link(path).map_err(failed)?.display()));
    } else if metadata.is_file() {
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        lines.push(told(path, mode, &content));
    } else {
        lines.push(format!("{name} {mode:04o} (no regular file)"));
    }
    Ok(())
}

/// Mode and content; but which address was given last, and who wrote it, says nothing about what is left.
fn told(path: &Path, mode: u32, content: &[u8]) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("last_reserved_ip.") {
        return format!("{} (the address given last)", path.display());
    }
    let shown = content.get(..TOLD).unwrap_or(content).escape_ascii();
    format!("{} {mode:04o} {} bytes \"{shown}\"", path.display(), content.len())
}
