//! Running another plugin: address plugins for `bridge`, the real plugin for `flannel`.
//!
//! The program is looked up in `CNI_PATH`, so that an operator's own `host-local` is honoured; only when that turns out to be this
//! program, by link or by copy, is it run in this process, which saves a start and changes nothing else. Bytes in and results out are the
//! same either way.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output, Stdio};
use std::time::Duration;

use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::{CniResult, Command, Json};
use loden_netlink::NetNs;

use crate::build_id::is_this_program;
use crate::call::Call;

/// A program that is being overwritten cannot be started for a moment.
const BUSY_ATTEMPTS: u32 = 6;
const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Where a delegate is and whether it is this program.
#[derive(Clone, Debug)]
pub(crate) struct Delegate {
    kind: String,
    path: PathBuf,
    in_process: bool,
}

impl Delegate {
    /// Finds the plugin `kind` in the directories of `CNI_PATH`.
    pub(crate) fn find(kind: &str, search: &str) -> Result<Self, Error> {
        let path = find_in_path(kind, search)?;
        let in_process = is_this_program(&path);
        Ok(Self { kind: kind.to_owned(), path, in_process })
    }

    /// Whether it runs in this process, and so undoes its own failures.
    pub(crate) fn is_in_process(&self) -> bool {
        self.in_process
    }

    /// Runs the command. A program is started in `home`, the namespace that plugins are called in.
    pub(crate) fn run(&self, call: &Call, home: &NetNs) -> Result<Option<CniResult>, Error> {
        if self.in_process {
            let plugin = crate::find(&self.kind)?;
            let result = crate::perform(plugin, call)?;
            // Through the text, so that a result in an old version loses here what it would lose between programs.
            return result
                .map(|result| reread(result.render(&call.config.version)?.as_bytes(), call))
                .transpose();
        }
        let output = home.run(|| start(&self.path, call)).map_err(|error| Error::from_chain(&error))?;
        let output = output.map_err(|error| {
            Error::internal(format!(
                "could not run plugin {}: {error}; is it a program for this machine?",
                self.path.display()
            ))
        })?;
        if !output.status.success() {
            let error = failure(&output);
            if matches!(call.command, Command::Gc | Command::Status) && is_from_before(&error) {
                return Ok(None);
            }
            return Err(error);
        }
        // Nobody is left to tell when the log cannot be written.
        let _ = io::stderr().write_all(&output.stderr);
        if call.command != Command::Add {
            return Ok(None);
        }
        reread(&output.stdout, call).map(Some).map_err(|error| {
            // What it made is of no use to anybody.
            let undone = self.run(&call.with_command(Command::Del), home);
            let failure: Vec<String> = undone.err().map(|error| error.to_string()).into_iter().collect();
            error.and_cleanup(&failure)
        })
    }
}

fn find_in_path(kind: &str, search: &str) -> Result<PathBuf, Error> {
    if kind.is_empty() {
        return Err(Error::internal("no plugin name provided"));
    }
    if kind.contains('/') {
        return Err(Error::internal(format!("invalid plugin name: {kind}")));
    }
    let directories: Vec<PathBuf> = std::env::split_paths(OsStr::new(search)).collect();
    directories
        .iter()
        .map(|directory| directory.join(kind))
        .find(|path| path.metadata().is_ok_and(|meta| meta.is_file()))
        .ok_or_else(|| {
            let list: Vec<String> = directories.iter().map(|path| path.display().to_string()).collect();
            Error::internal(format!("failed to find plugin {kind:?} in path [{}]", list.join(" ")))
        })
}

fn start(path: &Path, call: &Call) -> io::Result<Output> {
    let mut attempts = 1;
    let mut child = loop {
        // The rest of the environment is handed on as it is, tracing and all.
        let spawned = Process::new(path)
            .env("CNI_COMMAND", call.command.as_str())
            .env("CNI_CONTAINERID", &call.environment.container_id)
            .env("CNI_NETNS", &call.environment.netns)
            .env("CNI_IFNAME", &call.environment.ifname)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match spawned {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && attempts < BUSY_ATTEMPTS => {
                attempts += 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            other => break other?,
        }
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that fails before it reads its configuration closes the pipe; its error says more than ours would.
        match stdin.write_all(&call.text) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                drop(stdin);
                let _ = child.wait_with_output();
                return Err(error);
            }
            _ => {}
        }
    }
    child.wait_with_output()
}

/// Whether a plugin refused a command or version because it is older than that. Go's newer ones have no GC either and answer nothing; and
/// the older ones miss the container that a GC is not about before they notice that they do not know GC.
fn is_from_before(error: &Error) -> bool {
    error.code == code::INCOMPATIBLE_VERSION
        || error.message.starts_with("unknown CNI_COMMAND")
        || (error.code == code::UNKNOWN_CONTAINER && error.message == "missing containerID")
}

/// What a failed plugin said, by the rules of the Go library's caller side.
fn failure(output: &Output) -> Error {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.stdout.is_empty() {
        return Error::internal(if output.stderr.is_empty() {
            format!("netplugin failed with no error message: {}", output.status)
        } else {
            format!("netplugin failed: {:?}", text(&output.stderr))
        });
    }
    Error::parse(&output.stdout).unwrap_or_else(|| {
        Error::internal(format!(
            "netplugin failed but error parsing its diagnostic message {:?}",
            text(&output.stdout)
        ))
    })
}

fn reread(text: &[u8], call: &Call) -> Result<CniResult, Error> {
    let json = Json::parse(text)
        .map_err(|error| Error::internal(format!("plugin printed a result that is {error}")))?;
    CniResult::parse(&json, &call.config.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_files_found_in_order() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("one"), root.path().join("two"));
        std::fs::create_dir_all(one.join("x")).unwrap();
        std::fs::create_dir_all(&two).unwrap();
        std::fs::write(two.join("x"), "").unwrap();
        std::os::unix::fs::symlink("x", two.join("y")).unwrap();
        let search = format!("{}:{}", one.display(), two.display());
        assert_eq!(find_in_path("x", &search).unwrap(), two.join("x"), "a directory is no plugin");
        assert_eq!(find_in_path("y", &search).unwrap(), two.join("y"));
        assert_eq!(
            find_in_path("z", &search).unwrap_err().message,
            format!("failed to find plugin \"z\" in path [{} {}]", one.display(), two.display())
        );
        assert_eq!(find_in_path("../x", &search).unwrap_err().message, "invalid plugin name: ../x");
        assert_eq!(find_in_path("", &search).unwrap_err().message, "no plugin name provided");
    }
}
