//! An initial file system in the one format every kernel unpacks: cpio "newc" (the kernel's `initramfs/buffer-format`).

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// Entries in the order they were added; everything belongs to root and is as old as the epoch, so equal input gives equal bytes.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// Whether `path` is there already.
    pub(super) fn has(&self, path: &str) -> bool {
        self.names.contains(path.trim_start_matches('/'))
    }

    /// Adds a directory, and those above it. One that is there stays.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.has(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    /// Adds a file, and the directories above it. One that is there stays as it is.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: impl AsRef<[u8]>) {
        let path = path.trim_start_matches('/');
        if self.has(path) {
            return;
        }
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directory(above);
        }
        self.entry(path, FILE | permissions, content.as_ref());
    }

    /// The archive's bytes.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.names.insert(path.to_owned());
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        // A file of 4 GiB has no place in memory either; cut off, it would fail to unpack.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, time, size, device (major, minor), its own device (major, minor), length of the name, checksum
        for field in [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_format_says() {
        let mut archive = Archive::default();
        archive.file("/a/b", 0o755, b"hello");
        archive.file("a/b", 0o755, b"not again");
        assert!(archive.has("/a/b") && archive.has("a") && !archive.has("b"));
        let bytes = archive.finish();
        let text = String::from_utf8(bytes).unwrap();
        let entry = |inode, mode, size, name: &str| {
            let zeros = |n: usize| "0".repeat(8 * n);
            let length = name.len() + 1;
            let head = format!(
                "070701{inode:08x}{mode:08x}{}{:08x}{}{size:08x}{}{length:08x}{}{name}\0",
                zeros(2),
                1,
                zeros(1),
                zeros(4),
                zeros(1)
            );
            let padding = "\0".repeat(head.len().next_multiple_of(4) - head.len());
            head + &padding
        };
        let wanted = entry(1, 0o040_755, 0, "a")
            + &entry(2, 0o100_755, 5, "a/b")
            + "hello\0\0\0"
            + &entry(3, 0, 0, "TRAILER!!!");
        assert_eq!(text, wanted);
    }
}
