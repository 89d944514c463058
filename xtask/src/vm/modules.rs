//! Kernel modules and what they depend on, read from the modules themselves: nothing has run `depmod` over an unpacked package.

use anyhow::{Context, Result, bail};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

/// A module's name and its uncompressed file.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules `wanted` and all they depend on, each after those it depends on. One that this kernel has built in is left out.
///
/// # Errors
/// A module is neither a file nor built in, or cannot be read.
pub(super) fn in_order(folder: &Utf8Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(&folder.join("kernel"), &mut files)?;
    let list = folder.join("modules.builtin");
    let list = fs::read_to_string(&list).with_context(|| format!("cannot read {list}"))?;
    let built_in = list.lines().filter_map(|path| name(Utf8Path::new(path))).collect();
    let mut choice = Choice { files, built_in, chosen: Vec::new(), seen: BTreeSet::new() };
    for wanted in wanted {
        choice.take(wanted)?;
    }
    Ok(choice.chosen)
}

struct Choice {
    files: BTreeMap<String, Utf8PathBuf>,
    built_in: BTreeSet<String>,
    chosen: Vec<Module>,
    seen: BTreeSet<String>,
}

impl Choice {
    fn take(&mut self, module: &str) -> Result<()> {
        if self.built_in.contains(module) || !self.seen.insert(module.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(module) else {
            bail!("this kernel package has no module {module}");
        };
        let content = read(path)?;
        for dependency in dependencies(&content) {
            self.take(&dependency).with_context(|| format!("{module} needs {dependency}"))?;
        }
        self.chosen.push(Module { name: module.to_owned(), content });
        Ok(())
    }
}

fn find(folder: &Utf8Path, found: &mut BTreeMap<String, Utf8PathBuf>) -> Result<()> {
    for entry in folder.read_dir_utf8().with_context(|| format!("cannot list {folder}"))? {
        let path = entry.with_context(|| format!("cannot list {folder}"))?.into_path();
        if path.is_dir() {
            find(&path, found)?;
        } else if let Some(name) = name(&path) {
            found.insert(name, path);
        }
    }
    Ok(())
}

/// A module's name as the kernel has it, from its file's; `None` if that is no module's.
fn name(path: &Utf8Path) -> Option<String> {
    let (stem, kind) = path.file_name()?.split_once(".ko")?;
    matches!(kind, "" | ".xz").then(|| stem.replace('-', "_"))
}

/// The kernel takes only uncompressed modules from a program that does not ask it to decompress.
fn read(path: &Utf8Path) -> Result<Vec<u8>> {
    if path.extension() != Some("xz") {
        return fs::read(path).with_context(|| format!("cannot read {path}"));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout", path.as_str()])
        .output()
        .with_context(|| format!("cannot start xz to decompress {path}"))?;
    if !output.status.success() {
        bail!("xz cannot decompress {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// What a module says it depends on: the text `depends=a,b` among the NUL-separated texts of its `.modinfo` section.
fn dependencies(content: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = content.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = content.iter().skip(start + KEY.len()).take_while(|byte| **byte != 0).copied().collect();
    let value = String::from_utf8(value).unwrap_or_default();
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_says_what_it_depends_on() {
        assert_eq!(
            dependencies(b"\x7fELF..license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0retpoline=Y\0"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(dependencies(b"license=GPL\0depends=\0name=tunnel4\0").is_empty());
        assert!(dependencies(b"no module").is_empty());
    }

    #[test]
    fn a_module_is_named_as_the_kernel_names_it() {
        let name = |path| name(Utf8Path::new(path));
        assert_eq!(name("kernel/net/nf-tables.ko").as_deref(), Some("nf_tables"));
        assert_eq!(name("kernel/net/dummy.ko.xz").as_deref(), Some("dummy"));
        assert_eq!(name("kernel/net/dummy.ko.zst"), None);
        assert_eq!(name("modules.order"), None);
    }
}
