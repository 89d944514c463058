//! `flannel`: turns what flanneld says about this node into a configuration for another plugin, usually `bridge`.
//!
//! Owns one file per container, the delegate's configuration as it was at ADD. DEL needs nothing else: the subnet may have changed or the
//! subnet file may be gone by then. The file is written before the delegate runs and removed only after the delegate's DEL
//! succeeded; if it went earlier, a failed DEL could never be repeated and the address would leak.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::flannel::{FlannelConfig, delegate_of_kept};
use loden_cni_protocol::{CniResult, Command, Json, flannel, version};
use loden_lease::SubnetEnv;
use loden_netlink::NetNs;

use crate::Plugin;
use crate::call::Call;
use crate::delegate::Delegate;

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "flannel", versions: &version::SUPPORTED, add, del, check, status, gc: None };

fn add(call: &Call) -> Result<CniResult, Error> {
    let config = FlannelConfig::parse(&call.config)?;
    let delegate = delegate_config(&config)?;
    let program = find(&delegate.kind, call)?;
    let inner = call.with_text(Command::Add, delegate.text.into_bytes())?;
    let home = home()?;
    let kept = Kept::new(&config.data_dir, &call.environment.container_id);
    let before = kept.read()?;
    kept.write(&inner.text)?;
    match program.run(&inner, &home) {
        Ok(Some(result)) => Ok(result),
        Ok(None) => Err(Error::internal(format!("plugin {:?} printed no result", delegate.kind))),
        Err(error) => {
            let cleanup = take_back(&kept, before, &program, &inner, &home);
            Err(error.and_cleanup(&cleanup))
        }
    }
}

/// Puts the kept configuration back to what it was before a failed ADD. An attachment that was there before keeps its file, so that its DEL
/// works. A delegate in this process has undone its work; another program may not have, so it is told to, and where that fails the file
/// stays for the runtime's DEL.
fn take_back(
    kept: &Kept,
    before: Option<Vec<u8>>,
    program: &Delegate,
    inner: &Call,
    home: &NetNs,
) -> Vec<String> {
    let outcome = match before {
        Some(before) => kept.write(&before),
        None if program.is_in_process() => kept.remove(),
        None => program.run(&inner.with_command(Command::Del), home).and_then(|_| kept.remove()),
    };
    outcome.err().map(|error| error.to_string()).into_iter().collect()
}

fn del(call: &Call) -> Result<(), Error> {
    let config = FlannelConfig::parse(&call.config)?;
    let kept = Kept::new(&config.data_dir, &call.environment.container_id);
    let Some(text) = kept.read()? else { return kept.remove() };
    let parsed = delegate_of_kept(&text).map(|kind| Ok((kind, call.with_text(Command::Del, text)?)));
    let (kind, inner) = match parsed.transpose() {
        Ok(Some(parsed)) => parsed,
        // Whatever it was, it names no delegate that could be told; the file stays for a person to look at.
        Ok(None) | Err(Error { .. }) => {
            let _ = writeln!(
                io::stderr(),
                "flannel: {} is not a delegate's configuration; nothing to detach by it, remove it once the container's address is free",
                kept.path.display()
            );
            return Ok(());
        }
    };
    find(&kind, call)?.run(&inner, &home()?)?;
    kept.remove()
}

/// Forwards to the delegate with the result that is to be checked.
fn check(call: &Call) -> Result<(), Error> {
    let config = FlannelConfig::parse(&call.config)?;
    let kept = Kept::new(&config.data_dir, &call.environment.container_id);
    let text = kept.read()?.ok_or_else(|| {
        Error::internal(format!(
            "{} does not exist, so container {} is not attached by flannel; recreate the container",
            kept.path.display(),
            call.environment.container_id
        ))
    })?;
    let kind = delegate_of_kept(&text).ok_or_else(|| {
        Error::internal(format!("{} is not a delegate's configuration", kept.path.display()))
    })?;
    let mut json =
        Json::parse(&text).map_err(|error| Error::internal(format!("{}: {error}", kept.path.display())))?;
    if let Some(previous) = call.config.fields()?.get("prevResult") {
        json.set("prevResult", previous.clone());
    }
    let inner = call.with_text(Command::Check, json.sorted().compact().into_bytes())?;
    find(&kind, call)?.run(&inner, &home()?)?;
    Ok(())
}

/// Ready once flanneld has said which subnet this node has, and if the delegate is.
fn status(call: &Call) -> Result<(), Error> {
    let config = FlannelConfig::parse(&call.config)?;
    let delegate = delegate_config(&config).map_err(|error| Error { code: code::NOT_AVAILABLE, ..error })?;
    let inner = call.with_text(Command::Status, delegate.text.into_bytes())?;
    find(&delegate.kind, call)?.run(&inner, &home()?)?;
    Ok(())
}

fn delegate_config(config: &FlannelConfig) -> Result<flannel::Delegate, Error> {
    let file = &config.subnet_file;
    let failed = |cause: String| {
        Error::internal(format!(
            "failed to load flannel 'subnet.env' file: {cause}. Check the flannel pod log for this node."
        ))
    };
    let text = fs::read_to_string(file).map_err(|error| {
        failed(match error.kind() {
            io::ErrorKind::NotFound => format!("open {file}: no such file or directory"),
            _ => format!("read {file}: {error}"),
        })
    })?;
    config.delegate(&SubnetEnv::parse(file, &text).map_err(|error| failed(error.to_string()))?)
}

fn find(kind: &str, call: &Call) -> Result<Delegate, Error> {
    Delegate::find(kind, &call.environment.path).map_err(|error| {
        let verb = call.command.as_str().to_lowercase();
        Error::internal(format!("failed to delegate {verb}: {error}"))
    })
}

fn home() -> Result<NetNs, Error> {
    NetNs::current().map_err(|error| Error::from_chain(&error))
}

/// The kept configuration of one container.
#[derive(Debug)]
struct Kept {
    path: PathBuf,
    /// Container IDs start with a letter or digit, so this name is nobody's file.
    temporary: PathBuf,
}

impl Kept {
    fn new(data_dir: &str, container_id: &str) -> Self {
        let directory = Path::new(data_dir);
        Self { path: directory.join(container_id), temporary: directory.join(format!(".{container_id}.new")) }
    }

    fn error(&self, verb: &str, error: &io::Error) -> Error {
        Error::internal(format!(
            "could not {verb} the delegate's configuration {}: {error}; is the disk writable and not full?",
            self.path.display()
        ))
    }

    fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(self.error("read", &error)),
        }
    }

    /// Whole or not at all, and on the disk before the delegate does anything that needs it.
    fn write(&self, text: &[u8]) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            if let Some(directory) = self.path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            }
            let mut file: File = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&self.temporary)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&self.temporary);
            self.error("keep", &error)
        })
    }

    /// Removes the file, and what a killed ADD may have left of it.
    fn remove(&self) -> Result<(), Error> {
        for path in [&self.temporary, &self.path] {
            match fs::remove_file(path) {
                Err(error)
                    if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    return Err(self.error("remove", &error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn kept_files_are_private_and_whole() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("a/b");
        let kept = Kept::new(directory.to_str().unwrap(), "c1");
        assert_eq!(kept.read().unwrap(), None);
        kept.write(b"{}").unwrap();
        kept.write(b"[]").unwrap();
        assert_eq!(kept.read().unwrap().as_deref(), Some(&b"[]"[..]));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&kept.path)), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        kept.remove().unwrap();
        kept.remove().unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    }
}
