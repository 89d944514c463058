//! What the plugins made for containers and is still on the node, for whoever cleans up by hand.
//!
//! [`traces`] lists it with whose it is, as far as that is beyond doubt; [`remove`] takes one thing away. Who is alive, the caller knows. There is
//! no list of all attachments here as a GC has one: a pod that starts meanwhile would not be on it, so things are only ever removed one by
//! one, each told by its mark again at that moment.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{fs, io};

use loden_cni_protocol::bandwidth::{IFB_PREFIX, ifb_mark};
use loden_cni_protocol::error::Error;
use loden_cni_protocol::flannel::{delegate_of_kept, network_of_kept};
use loden_cni_protocol::mark::{Marks, Noted};
use loden_cni_protocol::masquerade::instance_hash;
use loden_cni_protocol::portmap::nft::target_of;
use loden_firewall::{Match, Rule};
use loden_netlink::{Link, LinkKind, RouteSocket};

use crate::flannel::{Kept, kept_containers};
use crate::pair::{kernel, port_note};
use crate::{bandwidth, masquerade, pair, portmap, spoof, tuning};

/// Delegates of flannel's that leave nothing but what has a mark of its own.
const MARKING_DELEGATES: [&str; 2] = ["bridge", "ptp"];

/// As long is what stands in a shaping link's alias for a network's name that does not fit.
const SHORTEST_HASHED: usize = 128;

/// Sorts of things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The host's end of a pair of links.
    Port,
    /// The `ifb` link that shapes what a container sends.
    Shaper,
    /// Rules that masquerade a container's address.
    Masquerade,
    /// Rules for a container's mapped ports.
    PortMapping,
    /// The filter on what hardware address a container sends from.
    SpoofCheck,
    /// The file with a link's former attributes.
    Backup,
    /// The delegate's configuration that `flannel` keeps.
    Kept,
}

/// Whose a thing is, as far as it says so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Name of the network.
    pub network: Option<String>,
    /// `CNI_CONTAINERID`
    pub container_id: Option<String>,
    /// `CNI_IFNAME`
    pub ifname: Option<String>,
    /// The hashes of network and attachment, as of [`Marks::instance`].
    pub instance: Option<String>,
}

/// One thing that a plugin made for a container.
#[derive(Clone, Debug)]
pub struct Trace {
    /// What it is.
    pub kind: Kind,
    /// What it is called.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// The container's addresses that it names.
    pub addresses: BTreeSet<IpAddr>,
    /// When it was written, of files.
    pub modified: Option<SystemTime>,
    /// Of a port: its index and that of its other end.
    pub ends: Option<(u32, u32)>,
    /// Why it must stay whoever its owner is.
    pub doubt: Option<String>,
    target: Target,
}

/// By what it is found again.
#[derive(Clone, Debug)]
enum Target {
    Port { index: u32, alias: String },
    Shaper { name: String, alias: String },
    MasqueradeRules { comment: String },
    MasqueradeChain { network: String, container_id: String },
    MappingRules { container_id: String, note: String },
    MappingChain { network: String, container_id: String },
    SpoofCheck { network: String, container_id: String, ifname: String },
    Backup { path: PathBuf, network: String },
    Kept { data_dir: String, container_id: String, text: Vec<u8> },
    Nothing,
}

impl Owner {
    fn of(note: &str) -> Self {
        let Some(noted) = Noted::read(note) else { return Self::default() };
        let id = Some(noted.container_start).filter(|id| noted.is_of(id));
        Self {
            network: Some(noted.network.to_owned()),
            container_id: id.map(str::to_owned),
            ifname: Some(noted.ifname.to_owned()),
            instance: Some(noted.instance.to_owned()),
        }
    }

    /// Names the container, where only its hash is known, if `container_id` is the one.
    pub fn name_if(&mut self, container_id: &str) -> bool {
        let (None, Some(network), Some(ifname), Some(instance)) =
            (&self.container_id, &self.network, &self.ifname, &self.instance)
        else {
            return false;
        };
        let is_it = instance_hash(network, ifname, container_id) == *instance;
        if is_it {
            self.container_id = Some(container_id.to_owned());
        }
        is_it
    }

    fn container(network: &str, container_id: &str) -> Self {
        Self {
            network: Some(network.to_owned()),
            container_id: Some(container_id.to_owned()),
            ..Self::default()
        }
    }
}

impl Trace {
    fn new(kind: Kind, name: String, owner: Owner, target: Target) -> Self {
        Self {
            kind,
            name,
            owner,
            addresses: BTreeSet::new(),
            modified: None,
            ends: None,
            doubt: None,
            target,
        }
    }

    /// Something that is not removed whoever its owner is.
    fn doubtful(mut self, why: &str) -> Self {
        self.doubt = Some(why.to_owned());
        self.target = Target::Nothing;
        self
    }
}

/// Everything that bears a mark of the plugins: links and rules of the calling thread's network namespace, flannel's files in `flannel_dir` and those
/// of `tuning` in `tuning_dir`.
///
/// # Errors
/// Something cannot be listed: the list is complete or it is an error.
pub fn traces(flannel_dir: &Path, tuning_dir: &Path) -> Result<Vec<Trace>, Error> {
    let links = RouteSocket::open().and_then(|mut host| host.links()).map_err(kernel)?;
    let mut all: Vec<Trace> = links.iter().filter_map(of_link).collect();
    all.extend(of_rules()?);
    all.extend(of_iptables(Kind::Masquerade)?);
    all.extend(of_iptables(Kind::PortMapping)?);
    all.extend(spoof::comments()?.iter().filter_map(|(chain, comment)| of_spoof_check(chain, comment)));
    all.extend(backups(tuning_dir)?);
    all.extend(kept(flannel_dir)?);
    Ok(all)
}

fn of_link(link: &Link) -> Option<Trace> {
    let alias = link.alias.as_deref()?;
    if let Some(note) = port_note(link) {
        let target = Target::Port { index: link.index, alias: link.alias.clone()? };
        let trace = Trace::new(Kind::Port, link.name.clone(), Owner::of(note), target);
        return Some(Trace { ends: link.lower.map(|other| (link.index, other)), ..trace });
    }
    let network = alias.strip_prefix(&ifb_mark(""))?;
    if link.kind != LinkKind::Other(bandwidth::IFB.to_owned()) || !link.name.starts_with(IFB_PREFIX) {
        return None;
    }
    // A name too long for an alias is there as a hash.
    let is_whole = ifb_mark(network) == alias && network.len() < SHORTEST_HASHED;
    let owner = Owner { network: is_whole.then(|| network.to_owned()), ..Owner::default() };
    let target = Target::Shaper { name: link.name.clone(), alias: alias.to_owned() };
    Some(Trace::new(Kind::Shaper, link.name.clone(), owner, target))
}

/// Rules of nf_tables, one thing for all that say the same of whose they are.
fn of_rules() -> Result<Vec<Trace>, Error> {
    let mut traces: BTreeMap<(Kind, String, Option<String>), Trace> = BTreeMap::new();
    for rule in masquerade::rules()? {
        let Some(comment) = rule.comment.clone() else { continue };
        let trace = traces.entry((Kind::Masquerade, comment.clone(), None)).or_insert_with(|| {
            let target = Target::MasqueradeRules { comment: comment.clone() };
            Trace::new(Kind::Masquerade, "nftables".to_owned(), Owner::of(&comment), target)
        });
        trace.addresses.extend(source_of(&rule));
    }
    for rule in portmap::nft::of_containers()? {
        let Some(container_id) = rule.comment.clone() else { continue };
        let key = (Kind::PortMapping, container_id.clone(), rule.note.clone());
        let trace = traces.entry(key).or_insert_with(|| {
            let container = Some(container_id.clone());
            let owner = Owner { container_id: container, instance: rule.note.clone(), ..Owner::default() };
            let name = "nftables".to_owned();
            match rule.note.clone() {
                Some(note) => {
                    Trace::new(Kind::PortMapping, name, owner, Target::MappingRules { container_id, note })
                }
                None => Trace::new(Kind::PortMapping, name, owner, Target::Nothing)
                    .doubtful("it bears no mark of ours; the plugin that made it removes it"),
            }
        });
        trace.addresses.extend(target_of(&rule));
    }
    Ok(traces.into_values().collect())
}

fn source_of(rule: &Rule) -> Option<IpAddr> {
    rule.matches.iter().find_map(|m| match m {
        Match::Source { net, negated: false } => Some(net.addr()),
        _ => None,
    })
}

fn of_iptables(kind: Kind) -> Result<Vec<Trace>, Error> {
    let owners = if kind == Kind::Masquerade {
        masquerade::iptables::owners().map_err(|error| {
            Error::internal(format!("could not list masquerade rules: {}", Error::from_chain(&error).message))
        })?
    } else {
        portmap::iptables::owners()?
    };
    let trace = |((network, container_id), addresses): ((String, String), BTreeSet<IpAddr>)| {
        let owner = Owner::container(&network, &container_id);
        let target = if kind == Kind::Masquerade {
            Target::MasqueradeChain { network, container_id }
        } else {
            Target::MappingChain { network, container_id }
        };
        Trace { addresses, ..Trace::new(kind, "iptables".to_owned(), owner, target) }
    };
    Ok(owners.into_iter().map(trace).collect())
}

/// The chain's name has the container's whole ID, and its comment says where it ends.
fn of_spoof_check(chain: &str, comment: &str) -> Option<Trace> {
    let mut owner = Owner::of(comment);
    let (network, ifname) = (owner.network.clone()?, owner.ifname.clone()?);
    let container_id = chain.strip_suffix(&format!("-{ifname}"))?.to_owned();
    if owner.container_id.as_ref() != Some(&container_id) && !owner.name_if(&container_id) {
        return None;
    }
    let target = Target::SpoofCheck { network, container_id, ifname };
    Some(Trace::new(Kind::SpoofCheck, "nftables".to_owned(), owner, target))
}

/// Names and times of the regular files in a directory; none where there is no directory.
fn files(directory: &Path) -> Result<Vec<(String, SystemTime)>, Error> {
    let list = || -> io::Result<Vec<(String, SystemTime)>> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let meta = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            if meta.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                files.push((name, meta.modified()?));
            }
        }
        files.sort();
        Ok(files)
    };
    list().map_err(|error| Error::internal(format!("could not list {}: {error}", directory.display())))
}

fn backups(directory: &Path) -> Result<Vec<Trace>, Error> {
    let mut traces = Vec::new();
    for (name, modified) in files(directory)? {
        let path = directory.join(&name);
        let Some(stem) = name.strip_suffix(".json") else { continue };
        // Without our mark it may be anybody's file.
        let Some(network) = tuning::network_of(&path) else { continue };
        // Both halves may have the character that stands between them.
        let halves = stem.split_once('_').filter(|(_, ifname)| !ifname.contains('_'));
        let owner = Owner {
            network: Some(network.clone()),
            container_id: halves.map(|(container_id, _)| container_id.to_owned()),
            ifname: halves.map(|(_, ifname)| ifname.to_owned()),
            ..Owner::default()
        };
        let target = Target::Backup { path: path.clone(), network };
        let trace = Trace::new(Kind::Backup, path.display().to_string(), owner, target);
        traces.push(Trace { modified: Some(modified), ..trace });
    }
    Ok(traces)
}

fn kept(directory: &Path) -> Result<Vec<Trace>, Error> {
    let data_dir = directory.to_str().unwrap_or_default();
    let containers: BTreeSet<String> = kept_containers(data_dir)?.into_iter().collect();
    let mut traces = Vec::new();
    for (container_id, modified) in files(directory)? {
        if !containers.contains(&container_id) {
            continue;
        }
        let file = Kept::new(data_dir, &container_id);
        let Some(text) = file.read()? else { continue };
        let owner = Owner {
            network: network_of_kept(&text),
            container_id: Some(container_id.clone()),
            ..Owner::default()
        };
        let kind = delegate_of_kept(&text);
        let target = Target::Kept { data_dir: data_dir.to_owned(), container_id, text };
        let trace = Trace::new(Kind::Kept, file.path.display().to_string(), owner, target);
        let trace = Trace { modified: Some(modified), ..trace };
        traces.push(match kind {
            Some(kind) if MARKING_DELEGATES.contains(&kind.as_str()) => trace,
            Some(kind) => trace.doubtful(&format!("what its delegate {kind} made, only that plugin removes")),
            None => trace.doubtful("it is not a delegate's configuration"),
        });
    }
    Ok(traces)
}

/// Takes one thing away, if it still bears the mark that it had when it was listed. Nothing to take away is fine.
///
/// # Errors
/// It is there and cannot be removed, or must not be.
pub fn remove(trace: &Trace) -> Result<(), Error> {
    match &trace.target {
        Target::Port { index, alias } => {
            let mut host = RouteSocket::open().map_err(kernel)?;
            match host.link_by_index(*index).map_err(kernel)? {
                Some(link) if link.alias.as_ref() == Some(alias) => pair::delete(&mut host, *index),
                _ => Ok(()),
            }
        }
        Target::Shaper { name, alias } => {
            let mut host = RouteSocket::open().map_err(kernel)?;
            match host.link_by_name(name).map_err(kernel)? {
                Some(link) if link.alias.as_ref() == Some(alias) => bandwidth::delete(&mut host, &link),
                _ => Ok(()),
            }
        }
        Target::MasqueradeRules { comment } => masquerade::remove_commented(comment),
        Target::MasqueradeChain { network, container_id } => {
            masquerade::iptables::remove(network, container_id).map_err(|error| {
                Error::internal(format!(
                    "could not remove masquerade rules: {}",
                    Error::from_chain(&error).message
                ))
            })
        }
        Target::MappingRules { container_id, note } => portmap::remove_noted(container_id, note),
        Target::MappingChain { network, container_id } => portmap::iptables::remove(network, container_id),
        Target::SpoofCheck { network, container_id, ifname } => {
            spoof::remove(&Marks { network, ifname, container_id })
        }
        Target::Backup { path, network } if tuning::network_of(path).as_ref() == Some(network) => {
            tuning::remove_backup(path)
        }
        Target::Backup { .. } => Ok(()),
        Target::Kept { data_dir, container_id, text } => {
            let file = Kept::new(data_dir, container_id);
            if file.read()?.as_ref() == Some(text) { file.remove() } else { Ok(()) }
        }
        Target::Nothing => Err(Error::internal(format!(
            "{} must not be removed: {}",
            trace.name,
            trace.doubt.as_deref().unwrap_or("whose it is cannot be told")
        ))),
    }
}
