//! Whether a file is this program: the very file, or a copy of it.
//!
//! Installers copy, so the same program lies in `CNI_PATH` under several inodes. A copy is known by the build ID that the linker hashed over
//! everything it wrote (ELF note `NT_GNU_BUILD_ID`) and by its size. What must hold: a file that is not this program is never taken for it, or an
//! operator's own plugin would be passed over. So whatever cannot be read, or carries no proper ID, is another program, and is run as one.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

const OWN: &str = "/proc/self/exe";
/// Linkers write 16 (md5, uuid) or 20 bytes (sha1); an ID set by hand may be shorter, and then says little.
const SHORTEST: usize = 16;
/// More program headers or longer notes are no program of ours.
const MOST_HEADERS: usize = 64;
const LONGEST_NOTES: usize = 4096;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// Whether running the file would be running this program again.
pub(crate) fn is_this_program(path: &Path) -> bool {
    let (Ok(ours), Ok(theirs)) = (Path::new(OWN).metadata(), path.metadata()) else { return false };
    if (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()) {
        return true;
    }
    if ours.len() != theirs.len() || !theirs.is_file() {
        return false;
    }
    let id = |path: &Path| File::open(path).and_then(|file| build_id(&file)).ok().flatten();
    id(path).is_some_and(|theirs| id(Path::new(OWN)) == Some(theirs))
}

/// The build ID of a 64-bit ELF file of this machine's byte order; `None` for anything else.
fn build_id(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let byte_order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if !header.starts_with(&[0x7f, b'E', b'L', b'F', 2, byte_order]) {
        return Ok(None);
    }
    let half = |at| bytes(&header, at).map(|half| usize::from(u16::from_ne_bytes(half)));
    let (Some(table), Some(size), Some(count)) =
        (bytes(&header, 32).map(u64::from_ne_bytes), half(54), half(56))
    else {
        return Ok(None);
    };
    if size != PROGRAM_HEADER || count > MOST_HEADERS {
        return Ok(None);
    }
    let mut headers = vec![0; size * count];
    file.read_exact_at(&mut headers, table)?;
    for entry in headers.chunks_exact(size) {
        let kind = bytes(entry, 0).map(u32::from_ne_bytes);
        let (Some(PT_NOTE), Some(offset), Some(length)) =
            (kind, bytes(entry, 8).map(u64::from_ne_bytes), bytes(entry, 32).map(u64::from_ne_bytes))
        else {
            continue;
        };
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= LONGEST_NOTES) else {
            continue;
        };
        let mut notes = vec![0; length];
        file.read_exact_at(&mut notes, offset)?;
        if let Some(id) = id_among(&notes) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// Notes are a length of name and of content, a type, and both, each filled up to four bytes.
fn id_among(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let length = |at| bytes(notes, at).map(|length| usize::try_from(u32::from_ne_bytes(length)).ok());
        let (name, content) = (length(0)??, length(4)??);
        let kind = u32::from_ne_bytes(bytes(notes, 8)?);
        let start = 12_usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = start.checked_add(content)?;
        let id = notes.get(start..end)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..12 + name)? == b"GNU\0" && id.len() >= SHORTEST {
            return Some(id.to_owned());
        }
        notes = notes.get(start.checked_add(content.checked_next_multiple_of(4)?)?..)?;
    }
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one note.
    fn program(name: &[u8], kind: u32, id: &[u8]) -> Vec<u8> {
        let mut file = vec![0; HEADER];
        file[..6].copy_from_slice(&[
            0x7f,
            b'E',
            b'L',
            b'F',
            2,
            if cfg!(target_endian = "little") { 1 } else { 2 },
        ]);
        file[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        file[54..56].copy_from_slice(&56_u16.to_ne_bytes());
        file[56..58].copy_from_slice(&1_u16.to_ne_bytes());
        let mut note = Vec::new();
        for number in [name.len(), id.len(), kind as usize] {
            note.extend(u32::try_from(number).unwrap().to_ne_bytes());
        }
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(id);
        let mut entry = vec![0; PROGRAM_HEADER];
        entry[..4].copy_from_slice(&PT_NOTE.to_ne_bytes());
        entry[8..16].copy_from_slice(&120_u64.to_ne_bytes());
        entry[32..40].copy_from_slice(&u64::try_from(note.len()).unwrap().to_ne_bytes());
        file.extend(entry);
        file.extend(note);
        file
    }

    fn id_of(content: &[u8]) -> Option<Vec<u8>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        build_id(&File::open(file.path()).unwrap()).ok().flatten()
    }

    #[test]
    fn ids_are_read_and_nothing_else_is() {
        let id = [7; 20];
        let whole = program(b"GNU\0", 3, &id);
        assert_eq!(id_of(&whole).as_deref(), Some(&id[..]));
        assert_eq!(id_of(&program(b"GNU\0", 3, &id[..15])), None, "too short to mean anything");
        assert_eq!(id_of(&program(b"GNU\0", 1, &id)), None, "another kind of note");
        assert_eq!(id_of(&program(b"Go\0\0", 3, &id)), None, "another maker's note");
        for length in 0..whole.len() {
            assert_eq!(id_of(&whole[..length]), None, "cut off at {length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                // Whatever is in it, reading it ends.
                let _ = id_of(&broken);
            }
        }
        assert_eq!(id_of(b"#!/bin/sh\nexec true\n"), None);
    }

    #[test]
    fn this_program_is_recognised_by_any_name() {
        let root = tempfile::tempdir().unwrap();
        let exe = std::env::current_exe().unwrap();
        let at = |name: &str| root.path().join(name);
        std::os::unix::fs::symlink(&exe, at("bridge")).unwrap();
        std::fs::write(at("ptp"), "").unwrap();
        let mut other = std::fs::read(&exe).unwrap();
        // Of the same size, so that only its content tells.
        other[..64].fill(0);
        std::fs::write(at("other"), other).unwrap();
        assert!(is_this_program(&at("bridge")));
        for name in ["ptp", "other", "absent"] {
            assert!(!is_this_program(&at(name)), "{name}");
        }
    }
}
