//! `flannel`: turns what flanneld says about this node into a configuration for another plugin, usually `bridge`.
//!
//! Owns one file per container, the delegate's configuration as it was at ADD. DEL needs nothing else: the subnet may have changed or the
//! subnet file may be gone by then. The file is written before the delegate runs and removed only after the delegate's DEL
//! succeeded; if it went earlier, a failed DEL could never be repeated and the address would leak.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use loden_cni_protocol::error::{Error, code};
use loden_cni_protocol::flannel::{FlannelConfig, delegate_of_kept, for_gc, network_of_kept};
use loden_cni_protocol::host_local::{Holder, index_name};
use loden_cni_protocol::{CniResult, Command, Json, ValidAttachments, flannel, version};
use loden_lease::{SubnetEnv, read_waiting, waiting_file};
use loden_netlink::NetNs;
use rustix::fs::FlockOperation;

use crate::call::Call;
use crate::delegate::Delegate;
use crate::host_local::inventory;
use crate::{Plugin, host_local};

/// How names of files that are being written end; they begin with a dot.
const UNFINISHED: &str = ".new";
/// What runtimes call the first link.
const USUAL_INTERFACE: &str = "eth0";
const LONGEST_NOTE: u64 = 4096;

pub(crate) const PLUGIN: Plugin =
    Plugin { name: "flannel", versions: &version::SUPPORTED, add, del, check, status, gc };

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
    match parsed.transpose() {
        Ok(Some((kind, inner))) => {
            find(&kind, call)?.run(&inner, &home()?)?;
        }
        Ok(None) | Err(Error { .. }) => detach_unread(&config, call, &kept)?,
    }
    kept.remove()
}

/// Detaches a container whose kept configuration is no configuration: a machine lost power before it reached the disk. What the delegate
/// would be told now is told instead; before flanneld has said which subnets there are, at least the container's addresses are freed.
fn detach_unread(config: &FlannelConfig, call: &Call, kept: &Kept) -> Result<(), Error> {
    // Nobody is left to tell when the log cannot be written.
    let _ = writeln!(
        io::stderr(),
        "flannel: {} is not a delegate's configuration; detaching by the network's own",
        kept.path.display()
    );
    let environment = &call.environment;
    if let Ok(delegate) = delegate_config(config) {
        let inner = call.with_text(Command::Del, delegate.text.into_bytes())?;
        find(&delegate.kind, call)?.run(&inner, &home()?)?;
    } else if let Some(data_dir) = config.host_local_data_dir() {
        let network = &call.config.name;
        host_local::release(data_dir, network, &environment.container_id, &environment.ifname)?;
    }
    Ok(())
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
    let delegate = delegate_config(&config).map_err(|error| {
        let error = Error { code: code::NOT_AVAILABLE, ..error };
        match waits_for(&config.subnet_file) {
            Some(reason) => error.with_details(reason),
            None => error,
        }
    })?;
    let inner = call.with_text(Command::Status, delegate.text.into_bytes())?;
    find(&delegate.kind, call)?.run(&inner, &home()?)?;
    Ok(())
}

/// What flanneld says it waits for, and for how long it has said so.
fn waits_for(subnet_file: &str) -> Option<String> {
    let file = File::open(waiting_file(Path::new(subnet_file))).ok()?;
    let said = file.metadata().ok()?.modified().ok()?.elapsed().unwrap_or_default().as_secs();
    let mut text = Vec::new();
    file.take(LONGEST_NOTE).read_to_end(&mut text).ok()?;
    let reason = read_waiting(&String::from_utf8_lossy(&text))?;
    Some(format!("flanneld said {said} s ago what it waits for: {reason}"))
}

/// Detaches what was attached for containers that have no valid attachment any more, and has the delegate do the same with what it knows
/// of. Goes on after a failure; a kept configuration stays until what it describes is gone.
fn gc(call: &Call) -> Result<(), Error> {
    let valid = ValidAttachments::of(&call.config)?;
    let config = FlannelConfig::parse(&call.config)?;
    let mut failures: Vec<Error> = Vec::new();
    // By the text, so that many containers attached in the same way are one GC of the delegate.
    let mut delegates = BTreeSet::new();
    let current = match delegate_config(&config) {
        Ok(delegate) => delegate,
        Err(_) => config.delegate_without_subnets()?,
    };
    delegates.extend(for_gc(current.text.as_bytes(), &call.config).map(|text| (current.kind, text)));
    let stale = stale(&config, call, &valid)?;
    if !stale.is_empty() {
        let names = interfaces(&config, &call.config.name)?;
        for (container_id, kept, text) in stale {
            let Some(kind) = delegate_of_kept(&text) else { continue };
            let ifnames =
                names.get(&container_id).cloned().unwrap_or_else(|| vec![USUAL_INTERFACE.to_owned()]);
            let detached = ifnames
                .iter()
                .try_for_each(|ifname| detach_stale(call, &kind, &text, &container_id, ifname))
                .and_then(|()| kept.remove());
            failures.extend(detached.err());
            delegates.extend(for_gc(&text, &call.config).map(|text| (kind, text)));
        }
    }
    let home = home()?;
    for (kind, text) in delegates {
        let forwarded = find(&kind, call).and_then(|program| {
            program.run(&call.with_text(Command::Gc, text.into_bytes())?, &home).map(|_| ())
        });
        failures.extend(forwarded.err());
    }
    failures.extend(remove_unfinished(&config.data_dir).err());
    let mut failures = failures.into_iter();
    match failures.next() {
        None => Ok(()),
        Some(first) => Err(first.and_also(failures)),
    }
}

/// The kept configurations of this network whose container has no valid attachment.
fn stale(
    config: &FlannelConfig,
    call: &Call,
    valid: &ValidAttachments,
) -> Result<Vec<(String, Kept, Vec<u8>)>, Error> {
    let mut stale = Vec::new();
    for container_id in kept_containers(&config.data_dir)? {
        if valid.has_container(&container_id) {
            continue;
        }
        let kept = Kept::new(&config.data_dir, &container_id);
        // One that cannot be read as a configuration may be another network's.
        if let Some(text) = kept.read()?
            && network_of_kept(&text).as_deref() == Some(call.config.name.as_str())
        {
            stale.push((container_id, kept, text));
        }
    }
    Ok(stale)
}

/// Names of the files that can be containers' kept configurations, in order.
pub(crate) fn kept_containers(data_dir: &str) -> Result<Vec<String>, Error> {
    let failed = |error: io::Error| {
        Error::internal(format!("could not list the delegates' configurations in {data_dir}: {error}"))
    };
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && entry.file_type().is_ok_and(|kind| kind.is_file())
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The links that `host-local` has reserved addresses for, by container: nothing else on the disk names them.
fn interfaces(config: &FlannelConfig, network: &str) -> Result<BTreeMap<String, Vec<String>>, Error> {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let Some(data_dir) = config.host_local_data_dir() else { return Ok(names) };
    for reservation in inventory::reservations(Path::new(data_dir), network)? {
        if let Holder::Attachment { container_id, ifname } = reservation.holder {
            names.entry(container_id).or_default().push(ifname);
        }
    }
    Ok(names)
}

/// DEL for a container that is gone, and its namespace with it.
fn detach_stale(call: &Call, kind: &str, text: &[u8], container_id: &str, ifname: &str) -> Result<(), Error> {
    let mut inner = call.with_text(Command::Del, text.to_owned())?;
    inner.environment.container_id = container_id.to_owned();
    inner.environment.ifname = ifname.to_owned();
    inner.environment.netns.clear();
    find(kind, call)?.run(&inner, &home()?).map(|_| ())
}

/// Removes what killed ADDs left of files they were writing. Whoever writes one holds the lock.
fn remove_unfinished(data_dir: &str) -> Result<(), Error> {
    let directory = Path::new(data_dir);
    let remove = || -> io::Result<()> {
        let _lock = lock(directory)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(UNFINISHED)) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    match remove() {
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Err(Error::internal(format!("could not remove unfinished files in {data_dir}: {error}")))
        }
        _ => Ok(()),
    }
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

/// Takes the lock that writers of a directory's files hold.
fn lock(directory: &Path) -> io::Result<File> {
    let handle = File::open(directory)?;
    loop {
        match rustix::fs::flock(&handle, FlockOperation::LockExclusive) {
            Ok(()) => return Ok(handle),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The kept configuration of one container.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) path: PathBuf,
    /// Container IDs start with a letter or digit, so this name is nobody's file. It is short whatever the ID is.
    temporary: PathBuf,
}

impl Kept {
    pub(crate) fn new(data_dir: &str, container_id: &str) -> Self {
        let directory = Path::new(data_dir);
        let temporary = format!(".{}{UNFINISHED}", index_name(container_id.as_bytes()));
        Self { path: directory.join(container_id), temporary: directory.join(temporary) }
    }

    fn error(&self, verb: &str, error: &io::Error) -> Error {
        Error::internal(format!(
            "could not {verb} the delegate's configuration {}: {error}; is the disk writable and not full?",
            self.path.display()
        ))
    }

    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(self.error("read", &error)),
        }
    }

    /// Whole or not at all, whenever this process is killed. It is not flushed to the disk, which would cost more than all the rest: a
    /// machine that loses power loses its containers as well, and [`detach_unread`] frees their addresses without it.
    fn write(&self, text: &[u8]) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            let directory = self.path.parent().unwrap_or(Path::new("."));
            let _lock = match lock(directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
                    lock(directory)?
                }
                other => other?,
            };
            let mut file: File = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&self.temporary)?;
            file.write_all(text)?;
            fs::rename(&self.temporary, &self.path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&self.temporary);
            self.error("keep", &error)
        })
    }

    /// Removes the file, and what a killed ADD may have left of it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
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
