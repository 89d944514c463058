//! Removing a lab, whatever state it is in.
//!
//! Works from what the kernel knows and not from what some process remembers: processes that carry the lab's name in their environment or
//! live in one of its namespaces, namespaces by their names, one directory. So a supervisor killed at any moment, or one that never
//! came to write anything down, makes no difference. Nothing outside the lab carries its name, hence nothing else can be hit.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use loden_netlink::netns::{NETNS_DIR, NetNs};
use rustix::process::{Pid, Signal};

use crate::error::{Error, Result};
use crate::names::{LABS_DIR, LabName, MEMBER_VARIABLE};

/// How long killed processes may take to go.
const PATIENCE: Duration = Duration::from_secs(15);

/// What was there and is gone now.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Removed {
    /// Processes ended.
    pub processes: usize,
    /// Network namespaces removed.
    pub namespaces: usize,
    /// Whether the directory was there.
    pub directory: bool,
}

impl Removed {
    /// Whether there was nothing of the lab.
    #[must_use]
    pub fn nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Ends every process of `lab`, removes its namespaces and its directory.
///
/// # Errors
/// Something of the lab could not be removed; the rest was tried all the same, and a repetition goes on from there.
pub fn teardown(lab: &LabName) -> Result<Removed> {
    let mut removed = Removed { processes: end_processes(lab)?, ..Removed::default() };
    let mut failure = None;
    for name in namespace_names(lab)? {
        match NetNs::delete_named(&name) {
            Ok(()) => removed.namespaces += 1,
            Err(error) => failure = Some(Error::step(format!("remove lab {lab}"), error)),
        }
    }
    // A process that was just being started may have been missed by the first look; its namespace is gone now and it cannot start another.
    removed.processes += end_processes(lab)?;
    let directory = lab.directory();
    match std::fs::remove_dir_all(&directory) {
        Ok(()) => removed.directory = true,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => failure = Some(Error::io("remove", directory, error)),
    }
    // Last lab out: leave no empty directories. Not empty means that another lab lives there.
    for parent in [Path::new(LABS_DIR), Path::new("/run/loden")] {
        let _ = std::fs::remove_dir(parent);
    }
    failure.map_or(Ok(removed), Err)
}

/// Names of all labs that left something on this machine: a directory or a namespace.
///
/// # Errors
/// The directories cannot be read.
pub fn labs() -> Result<BTreeSet<LabName>> {
    let directories = entries(Path::new(LABS_DIR))?.into_iter();
    let namespaces = entries(Path::new(NETNS_DIR))?.into_iter();
    let of_namespace = |name: String| {
        name.strip_suffix("-vrouter").and_then(|rest| rest.strip_prefix("loden-")).map(str::to_owned)
    };
    Ok(directories.chain(namespaces.filter_map(of_namespace)).filter_map(|name| name.parse().ok()).collect())
}

/// Names of the lab's network namespaces.
///
/// # Errors
/// The directory of namespaces cannot be read.
pub fn namespace_names(lab: &LabName) -> Result<Vec<String>> {
    let prefix = lab.namespace_prefix();
    Ok(entries(Path::new(NETNS_DIR))?.into_iter().filter(|name| name.starts_with(&prefix)).collect())
}

/// Process IDs of the lab, without the caller's own.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes(lab: &LabName) -> Result<Vec<i32>> {
    let homes: BTreeSet<(u64, u64)> = namespace_names(lab)?
        .iter()
        .filter_map(|name| std::fs::metadata(Path::new(NETNS_DIR).join(name)).ok())
        .map(|meta| (meta.dev(), meta.ino()))
        .collect();
    let mark = format!("{MEMBER_VARIABLE}={lab}");
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mut found = Vec::new();
    for pid in entries(Path::new("/proc"))?
        .iter()
        .filter_map(|name| name.parse::<i32>().ok())
        .filter(|pid| *pid != own)
    {
        // A process that ends while it is looked at is no member any more.
        let marked = std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        });
        let inside = || {
            std::fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|meta| homes.contains(&(meta.dev(), meta.ino())))
        };
        if marked || inside() {
            found.push(pid);
        }
    }
    Ok(found)
}

fn end_processes(lab: &LabName) -> Result<usize> {
    let begun = Instant::now();
    let mut ended = BTreeSet::new();
    loop {
        let alive: Vec<i32> = processes(lab)?.into_iter().filter(|pid| !is_zombie(*pid)).collect();
        if alive.is_empty() {
            return Ok(ended.len());
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::Timeout {
                what: format!("the end of the processes of lab {lab}"),
                seconds: PATIENCE.as_secs(),
                last: format!("still there after SIGKILL: {alive:?}"),
            });
        }
        for pid in alive {
            ended.insert(pid);
            if let Some(pid) = Pid::from_raw(pid) {
                // Gone already is as good as killed; anything else shows in the next look.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that is dead and only waits for its parent to notice.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| rest.starts_with('Z')))
        .unwrap_or(true)
}

fn entries(directory: &Path) -> Result<Vec<String>> {
    let listed = match std::fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", directory, error)),
    };
    let mut names = Vec::new();
    for entry in listed {
        let entry = entry.map_err(|error| Error::io("read", directory, error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
