//! The programs: where they are, which variant, and running them.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use loden_firewall::iptables::Table;

use crate::{Error, Family, Result, Variant};

/// Where to look when the environment does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The directories to look in.
pub(crate) fn search_path() -> OsString {
    env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| USUAL_PATH.into())
}

/// The programs of one family.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// `iptables`.
    main: PathBuf,
    /// `iptables-restore`.
    restore: PathBuf,
    /// `iptables-save`; its absence matters only where it is needed.
    save: Option<PathBuf>,
}

impl Programs {
    /// Finds the programs in the directories of `path`, and which variant they are.
    pub(crate) fn find_in(family: Family, path: &OsStr) -> Result<Option<(Self, Variant)>> {
        let Some(main) = program_in(path, family.program()) else { return Ok(None) };
        let restore = companion(&main, path, "-restore").ok_or_else(|| incomplete(&main, "-restore"))?;
        let save = companion(&main, path, "-save");
        // A link to the program that is all of them says which family of programs it is.
        let variant = match [&restore, &main].into_iter().find_map(|program| variant_of(program)) {
            Some(variant) => variant,
            None => ask_variant(&main)?,
        };
        Ok(Some((Self { main, restore, save }, variant)))
    }

    /// Runs `iptables-restore --noflush`. It waits for the older iptables' lock.
    pub(crate) fn restore(&self, table: Table, input: &str) -> Result<()> {
        let output = run(&self.restore, &["--noflush", "--wait", "--table", table.name()], input)?;
        accepted(&self.restore, output, input).map(|_| ())
    }

    /// Runs `iptables-save`.
    pub(crate) fn save(&self, table: Table) -> Result<String> {
        let program = self.save.as_ref().ok_or_else(|| incomplete(&self.main, "-save"))?;
        let output = run(program, &["--table", table.name()], "")?;
        accepted(program, output, "")
    }
}

/// The first executable file of this name. A relative directory in `PATH` would let whoever owns the working directory choose.
fn program_in(path: &OsStr, name: &str) -> Option<PathBuf> {
    env::split_paths(path).filter(|folder| folder.is_absolute()).map(|folder| folder.join(name)).find(
        |file| file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0),
    )
}

/// The program that comes with `main`: beside it, so that it is of the same variant, or else in `path`.
fn companion(main: &Path, path: &OsStr, suffix: &str) -> Option<PathBuf> {
    let name = companion_name(main, suffix);
    let beside = main.parent().and_then(|folder| program_in(folder.as_os_str(), &name));
    beside.or_else(|| program_in(path, &name))
}

fn companion_name(main: &Path, suffix: &str) -> String {
    format!("{}{suffix}", main.file_name().unwrap_or_default().to_string_lossy())
}

fn incomplete(main: &Path, suffix: &str) -> Error {
    Error::Incomplete { program: main.to_owned(), missing: companion_name(main, suffix) }
}

fn variant_of(program: &Path) -> Option<Variant> {
    let target = fs::canonicalize(program).ok()?;
    let name = target.file_name()?.to_str()?;
    if name.contains("nft") {
        Some(Variant::Nft)
    } else if name.contains("legacy") || name == "xtables-multi" {
        Some(Variant::Legacy)
    } else {
        None
    }
}

/// A wrapper hides what it runs; the program behind it says so in its version.
fn ask_variant(program: &Path) -> Result<Variant> {
    let output = run(program, &["--version"], "")?;
    let text = accepted(program, output, "")?;
    Ok(if text.contains("nf_tables") { Variant::Nft } else { Variant::Legacy })
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<Output> {
    let failed = |source| Error::Run { program: program.to_owned(), source };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why on standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(failed)
}

fn accepted(program: &Path, output: Output, input: &str) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(Error::Refused {
        program: program.to_owned(),
        status: output.status.to_string(),
        said: if said.is_empty() { "it said nothing".to_owned() } else { said },
        input: input.trim().replace('\n', "; "),
    })
}

/// Whether this kernel has a module of that name, loaded or not, or the like built in.
pub(crate) fn has_module(name: &str) -> bool {
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    let folder = Path::new("/lib/modules").join(release.trim());
    let file = format!("/{name}.ko");
    let is_listed = |list: &str| fs::read_to_string(folder.join(list)).is_ok_and(|text| text.contains(&file));
    is_listed("modules.builtin") || is_listed("modules.dep")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn executable(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_variant_is_told_by_where_the_link_leads() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (target, expected) in [
            ("xtables-nft-multi", Variant::Nft),
            ("xtables-legacy-multi", Variant::Legacy),
            ("xtables-multi", Variant::Legacy),
        ] {
            executable(&at(target), "");
            for name in ["iptables", "iptables-restore"] {
                let _ = fs::remove_file(at(name));
                symlink(target, at(name)).unwrap();
            }
            let (programs, variant) =
                Programs::find_in(Family::V4, folder.path().as_os_str()).unwrap().unwrap();
            assert_eq!((variant, programs.restore), (expected, at("iptables-restore")), "{target}");
        }
        assert!(Programs::find_in(Family::V6, folder.path().as_os_str()).unwrap().is_none());
        assert!(Programs::find_in(Family::V4, OsStr::new("relative:")).unwrap().is_none());
        fs::remove_file(at("iptables-restore")).unwrap();
        let error = Programs::find_in(Family::V4, folder.path().as_os_str()).unwrap_err();
        assert!(error.to_string().contains("iptables-restore is neither beside it"), "{error}");
    }

    #[test]
    fn a_wrapper_is_asked_and_what_a_program_says_reaches_the_user() {
        let folder = tempfile::tempdir().unwrap();
        let find = || Programs::find_in(Family::V4, folder.path().as_os_str()).unwrap().unwrap();
        for (said, expected) in
            [("iptables v1.8.9 (nf_tables)", Variant::Nft), ("iptables v1.6.1", Variant::Legacy)]
        {
            for name in ["iptables", "iptables-restore"] {
                executable(&folder.path().join(name), &format!("#!/bin/sh\necho '{said}'\n"));
            }
            assert_eq!(find().1, expected);
        }
        executable(&folder.path().join("iptables-restore"), "#!/bin/sh\necho 'line 2 failed' >&2\nexit 1\n");
        let (programs, _) = find();
        let error = programs.restore(Table::Nat, "*nat\n-N X\nCOMMIT\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 2 failed") && text.contains("*nat; -N X; COMMIT"), "{text}");
        assert!(error.is_refusal());
        let error = programs.save(Table::Nat).unwrap_err();
        assert!(error.to_string().contains("iptables-save is neither beside it"), "{error}");
    }
}
