//! Whole plugins, with everything that they read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use loden_cni_plugins::Outcome;
use loden_cni_protocol::{Error, Json};
use loden_netlink::nft::NftSocket;
use loden_netlink::{NetNs, RouteSocket};

use crate::case::Case;
use crate::{Verdict, promise, sandbox};

/// Where a case may put files: where plugins look by default, and a directory for everything else.
const PLACES: [&str; 5] = ["/etc/cni", "/etc/resolv.conf", "/run", "/state", "/var/lib/cni"];
/// Directories that belong to plugins whatever a configuration says.
const DEFAULTS: [&str; 3] = ["/run/cni", "/run/xtables.lock", "/var/lib/cni"];
/// What makes up the sandbox itself.
const FIXTURES: [&str; 4] = ["/proc", sandbox::PLUGINS, "/run/netns", sandbox::POD];
/// A case that asks for more than this many commands gets only these.
const MOST_COMMANDS: usize = 4;

/// Runs a [`Case`] in the sandbox that this process has entered; `CNI_COMMAND` may be a list separated by commas.
///
/// Promised: there is an answer that a runtime can read, a success or one error object, and no file outside of the plugin's directories
/// was made, changed or removed. Its directories are those that a `dataDir` names, and the defaults.
///
/// # Errors
/// What was promised and does not hold, or that the process is in no sandbox.
pub fn plugin(data: &[u8]) -> Verdict {
    if !sandbox::is_inside() {
        return Err("whole plugins run in a sandbox only".to_owned());
    }
    let case = Case::parse(data);
    if !loden_cni_plugins::names().contains(&case.program.as_str()) {
        return Ok(());
    }
    for (path, content) in &case.files {
        plant(Path::new(path), content);
    }
    let before = tree().map_err(|error| format!("cannot look around: {error}"))?;
    let judged = run(&case).and_then(|()| {
        let after = tree().map_err(|error| format!("cannot look around: {error}"))?;
        stays_inside(&case, &before, &after)
    });
    let swept = sweep();
    judged.and(swept)
}

fn run(case: &Case) -> Verdict {
    for command in case.variable("CNI_COMMAND").split(',').take(MOST_COMMANDS) {
        let lookup = |name: &str| match name {
            "CNI_COMMAND" => command.to_owned(),
            other => case.variable(other).to_owned(),
        };
        let outcome = loden_cni_plugins::run(&case.program, lookup, case.stdin.as_slice());
        can_be_read(&outcome)?;
    }
    Ok(())
}

fn can_be_read(outcome: &Outcome) -> Verdict {
    let text = outcome.stdout.as_bytes();
    let readable = if outcome.success {
        text.is_empty() || Json::parse(text).is_ok_and(|json| json.entries().is_some())
    } else {
        Error::parse(text).is_some_and(|error| !error.message.is_empty())
    };
    promise(readable, || format!("no runtime can read {outcome:?}"))
}

/// Every path with what tells whether it was touched: `None` for a directory, or a file's content.
type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

fn tree() -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut waiting = vec![PathBuf::from("/")];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let path = entry.path();
            if is_fixture(&path) {
                continue;
            }
            let kind = entry.file_type()?;
            if kind.is_dir() {
                waiting.push(path.clone());
                tree.insert(path, None);
            } else if kind.is_file() {
                let content = fs::read(&path)?;
                tree.insert(path, Some(content));
            } else {
                tree.insert(path, Some(Vec::new()));
            }
        }
    }
    Ok(tree)
}

/// Whether a path is the sandbox's own or one of the machine's directories in it, which are mounts.
fn is_fixture(path: &Path) -> bool {
    FIXTURES.iter().any(|fixture| path == Path::new(fixture)) || is_mount(path)
}

fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| rustix::fs::lstat(path).ok().map(|stat| stat.st_dev);
    device(path) != device(Path::new("/"))
}

fn stays_inside(case: &Case, before: &Tree, after: &Tree) -> Verdict {
    let allowed = Directories::of(case);
    let paths: BTreeSet<&PathBuf> = before.keys().chain(after.keys()).collect();
    for path in paths {
        let (old, new) = (before.get(path), after.get(path));
        if old == new {
            continue;
        }
        let made_directory = old.is_none() && new == Some(&None);
        promise(allowed.has(path) || made_directory && allowed.leads_through(path), || {
            format!(
                "{} was touched, which is in none of the plugin's directories {:?}",
                path.display(),
                allowed.named
            )
        })?;
    }
    Ok(())
}

/// The directories that a case gives to the plugin.
struct Directories {
    named: BTreeSet<PathBuf>,
    /// Every directory on the way to them, as the words are written.
    ways: BTreeSet<PathBuf>,
}

impl Directories {
    fn of(case: &Case) -> Self {
        let mut words: Vec<String> = DEFAULTS.iter().map(|word| (*word).to_owned()).collect();
        for text in case.files.iter().map(|(_, content)| content).chain([&case.stdin]) {
            if let Ok(json) = Json::parse(text) {
                data_dirs(&json, &mut words);
            }
        }
        let (mut named, mut ways) = (BTreeSet::new(), BTreeSet::new());
        for word in &words {
            named.insert(plain(Path::new(word)));
            ways.extend(Path::new(word).ancestors().map(plain));
        }
        Self { named, ways }
    }

    fn has(&self, path: &Path) -> bool {
        self.named.iter().any(|directory| path.starts_with(directory))
    }

    fn leads_through(&self, path: &Path) -> bool {
        self.ways.contains(path)
    }
}

/// The values of every `dataDir` anywhere: which of them counts is for the plugin to know.
fn data_dirs(json: &Json, found: &mut Vec<String>) {
    match json {
        Json::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Json::String(text) if key.eq_ignore_ascii_case("dataDir") => found.push(text.clone()),
                    other => data_dirs(other, found),
                }
            }
        }
        Json::Array(items) => items.iter().for_each(|item| data_dirs(item, found)),
        _ => {}
    }
}

/// The absolute path without `.` and `..`; there are no symbolic links in the sandbox.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    plain
}

/// Puts a file where plugins look. One that cannot be there is left out.
fn plant(path: &Path, content: &[u8]) {
    let path = plain(path);
    let placed = PLACES.iter().any(|place| path.starts_with(place));
    if !placed || path.starts_with("/run/netns") {
        return;
    }
    if let Some(parent) = path.parent() {
        let _ = fs::create_dir_all(parent);
    }
    let _ = fs::write(path, content);
}

/// Takes away what a case left, so that the next one starts like the first.
fn sweep() -> Verdict {
    let told = |error: loden_netlink::Error| format!("cannot sweep: {error}");
    let left = tree().map_err(|error| format!("cannot look around: {error}"))?;
    // Children come after their directories.
    for (path, content) in left.iter().rev() {
        // The way to a fixture cannot be removed and need not be.
        let _ = if content.is_some() { fs::remove_file(path) } else { fs::remove_dir(path) };
    }
    let pod = NetNs::open(sandbox::POD).map_err(told)?;
    for mut socket in [RouteSocket::open().map_err(told)?, RouteSocket::open_in(&pod).map_err(told)?] {
        for link in socket.links().map_err(told)? {
            // One end of a pair takes the other with it.
            if link.name != "lo" {
                let _ = socket.delete_link(link.index);
            }
        }
    }
    let mut rules = NftSocket::open().map_err(told)?;
    for table in rules.tables().map_err(told)? {
        rules.delete_table(&table).map_err(told)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(stdin: &str, touched: &[(&str, bool)]) -> Verdict {
        let case = Case { stdin: stdin.as_bytes().to_vec(), ..Case::default() };
        let after = touched.iter().map(|(path, file)| (PathBuf::from(path), file.then(Vec::new))).collect();
        stays_inside(&case, &Tree::new(), &after)
    }

    #[test]
    fn a_file_outside_is_found() {
        let stdin = r#"{"ipam":{"DATADIR":"/state/x/../d"}}"#;
        judge(
            stdin,
            &[("/state", false), ("/state/x", false), ("/state/d/n", false), ("/state/d/n/10.0.0.2", true)],
        )
        .unwrap();
        for outside in ["/state/x/f", "/state/e", "/etc/passwd", "/state/dd"] {
            judge(stdin, &[(outside, true)]).unwrap_err();
        }
        judge(stdin, &[("/state/e", false)]).unwrap_err();
        judge("{}", &[("/var/lib/cni/networks/n/lock", true)]).unwrap();
    }

    #[test]
    fn outside_of_a_sandbox_nothing_runs() {
        plugin(b"bridge\n").unwrap_err();
        sandbox::enter(&[]).unwrap_err();
    }
}
