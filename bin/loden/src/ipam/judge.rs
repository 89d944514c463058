//! What became of each thing that a plugin made: whether somebody has it.
//!
//! Wrongly called leaked, a running pod loses its address or its rules; so everything that speaks for a container speaks for all that is its, and
//! what does not say beyond doubt whose it is stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use loden_cni_plugins::host_local::inventory::Reservation;
use loden_cni_plugins::leftovers::{Kind, Owner, Trace};
use loden_cni_protocol::bandwidth::ifb_name;
use loden_cni_protocol::host_local::Holder;
use loden_cni_protocol::masquerade::instance_hash;
use serde::Serialize;

use super::node::Node;

/// What became of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Torn,
    Unknown,
    Live,
    Known,
    New,
    Leaked,
}

impl State {
    pub(crate) fn is_wrong(self) -> bool {
        matches!(self, Self::Torn | Self::Leaked)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Unknown => "unknown",
            Self::Live => "live",
            Self::Known => "known",
            Self::New => "new",
            Self::Leaked => "leaked",
        }
    }
}

/// By what a thing is removed.
#[derive(Debug)]
pub(crate) enum Thing {
    /// Of this network.
    Reservation(String, Reservation),
    Trace(Trace),
}

/// One line of the answer.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) kind: &'static str,
    pub(crate) what: String,
    pub(crate) network: Option<String>,
    pub(crate) container: Option<String>,
    pub(crate) interface: Option<String>,
    pub(crate) age_seconds: Option<u64>,
    pub(crate) state: State,
    pub(crate) why: String,
    #[serde(skip)]
    pub(crate) thing: Thing,
}

/// Judges everything.
pub(crate) fn all(
    node: &Node,
    grace: Duration,
    reservations: Vec<(String, Reservation)>,
    traces: Vec<Trace>,
) -> Vec<Line> {
    let mut lines: Vec<Line> = reservations
        .into_iter()
        .map(|(network, reservation)| of_reservation(node, grace, network, reservation))
        .collect();
    let traces = named(node, &lines, traces);
    let living = Living::of(node, &lines, &traces);
    lines.extend(traces.into_iter().map(|trace| of_trace(node, grace, &living, trace)));
    if !node.unseen.is_empty() {
        for line in lines.iter_mut().filter(|line| line.state == State::Leaked) {
            line.state = State::Unknown;
            "not everything could be looked at".clone_into(&mut line.why);
        }
    }
    lines
}

/// Finds the containers of things that only say their hash, among all whose IDs are anywhere.
fn named(node: &Node, lines: &[Line], mut traces: Vec<Trace>) -> Vec<Trace> {
    let mut ids: BTreeSet<String> = lines.iter().filter_map(|line| line.container.clone()).collect();
    ids.extend(traces.iter().filter_map(|trace| trace.owner.container_id.clone()));
    for trace in &mut traces {
        let network = trace.owner.network.clone().unwrap_or_default();
        let mut all = ids.iter().map(String::as_str).chain(node.candidates(&network));
        let _ = all.any(|id| trace.owner.name_if(id));
    }
    traces
}

/// How long ago a file was written; a clock that was set back makes files of the future, which are as good as new.
fn age(modified: SystemTime) -> Duration {
    SystemTime::now().duration_since(modified).unwrap_or_default()
}

fn of_reservation(node: &Node, grace: Duration, network: String, reservation: Reservation) -> Line {
    let age = age(reservation.modified);
    let (container, interface) = match &reservation.holder {
        Holder::Attachment { container_id, ifname } => (Some(container_id.clone()), Some(ifname.clone())),
        Holder::Container { container_id } => (Some(container_id.clone()), None),
        Holder::Nobody | Holder::Unknown => (None, None),
    };
    let (state, why) = match (&reservation.holder, &container) {
        (Holder::Nobody, _) => (State::Torn, "the file has no content".to_owned()),
        (_, None) => (State::Unknown, "the file says something that no plugin writes".to_owned()),
        (_, Some(container)) => {
            if let Some(place) = node.place_of(reservation.address) {
                (State::Live, place.to_owned())
            } else if let Some(place) = node.knows(Some(&network), container) {
                (State::Known, place)
            } else if age < grace {
                (State::New, format!("younger than {} s", grace.as_secs()))
            } else {
                (State::Leaked, "no namespace has it, no runtime knows the container".to_owned())
            }
        }
    };
    Line {
        kind: "address",
        what: reservation.address.to_string(),
        network: Some(network.clone()),
        container,
        interface,
        age_seconds: Some(age.as_secs()),
        state,
        why,
        thing: Thing::Reservation(network, reservation),
    }
}

/// Who is known to be alive besides those that runtimes know.
#[derive(Debug, Default)]
struct Living {
    /// What speaks for a container.
    containers: BTreeMap<String, (State, String)>,
    /// Whose reservation an address is.
    reserved: BTreeMap<IpAddr, BTreeSet<String>>,
    /// Attachments with a port whose other end is somewhere, by their hashes: network, interface, and where.
    instances: BTreeMap<String, (String, String, String)>,
    /// Networks of which something lives that does not say whose it is; `None` is any.
    nameless: BTreeSet<Option<String>>,
}

impl Living {
    fn of(node: &Node, lines: &[Line], traces: &[Trace]) -> Self {
        let mut living = Self::default();
        for line in lines {
            let (Thing::Reservation(_, reservation), Some(container)) = (&line.thing, &line.container) else {
                continue;
            };
            living.reserved.entry(reservation.address).or_default().insert(container.clone());
            if matches!(line.state, State::Live | State::Known | State::New) {
                let why = format!("its address {}: {}", line.what, line.why);
                living.containers.entry(container.clone()).or_insert((line.state, why));
            }
        }
        for trace in traces {
            let Some(place) = trace.ends.and_then(|(port, other)| node.place_of_end(port, other)) else {
                continue;
            };
            let owner = &trace.owner;
            if let (Some(instance), Some(network), Some(ifname)) =
                (&owner.instance, &owner.network, &owner.ifname)
            {
                let why = format!("its link {}: {place}", trace.name);
                living.instances.insert(instance.clone(), (network.clone(), ifname.clone(), why));
            }
            match &owner.container_id {
                Some(container) => {
                    let why = format!("its link {}: {place}", trace.name);
                    living.containers.entry(container.clone()).or_insert((State::Live, why));
                }
                None => {
                    living.nameless.insert(trace.owner.network.clone());
                }
            }
        }
        living
    }

    /// What speaks for the owner of a thing.
    fn speaks_for(&self, owner: &Owner) -> Option<(State, String)> {
        let by_instance = owner.instance.as_ref().and_then(|instance| self.instances.get(instance));
        if let Some((_, _, why)) = by_instance {
            return Some((State::Live, why.clone()));
        }
        let container = owner.container_id.as_ref()?;
        if let Some(found) = self.containers.get(container) {
            return Some(found.clone());
        }
        let is_of = |(instance, (network, ifname, _)): &(&String, &(String, String, String))| {
            instance_hash(network, ifname, container) == **instance
        };
        self.instances.iter().find(is_of).map(|(_, (_, _, why))| (State::Live, why.clone()))
    }
}

fn of_trace(node: &Node, grace: Duration, living: &Living, trace: Trace) -> Line {
    let age = trace.modified.map(age);
    let (state, why) = if trace.kind == Kind::Shaper {
        of_shaper(node, living, &trace)
    } else {
        verdict(node, grace, living, &trace, age)
    };
    Line {
        kind: name(trace.kind),
        what: trace.name.clone(),
        network: trace.owner.network.clone(),
        container: trace.owner.container_id.clone(),
        interface: trace.owner.ifname.clone(),
        age_seconds: age.map(|age| age.as_secs()),
        state,
        why,
        thing: Thing::Trace(trace),
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Port => "port",
        Kind::Shaper => "shaper",
        Kind::Masquerade => "masq",
        Kind::PortMapping => "portmap",
        Kind::SpoofCheck => "spoof",
        Kind::Backup => "backup",
        Kind::Kept => "stash",
    }
}

fn verdict(
    node: &Node,
    grace: Duration,
    living: &Living,
    trace: &Trace,
    age: Option<Duration>,
) -> (State, String) {
    if let Some(place) = trace.ends.and_then(|(port, other)| node.place_of_end(port, other)) {
        return (State::Live, format!("its other end is {place}"));
    }
    let (owner, container) = (&trace.owner, trace.owner.container_id.as_ref());
    if let Some(found) = living.speaks_for(owner) {
        return found;
    }
    if let Some(place) = container.and_then(|id| node.knows(owner.network.as_deref(), id)) {
        return (State::Known, place);
    }
    // An address that is reserved for another container speaks for that one: the thing leads astray.
    let has_it = |address: &&IpAddr| {
        let is_for = |holders: &BTreeSet<String>| container.is_some_and(|id| holders.contains(id));
        node.place_of(**address).is_some() && living.reserved.get(*address).is_none_or(is_for)
    };
    if let Some(address) = trace.addresses.iter().find(has_it) {
        let place = node.place_of(*address).unwrap_or_default();
        return (State::Live, format!("{address} is {place}"));
    }
    if (container.is_none() && owner.instance.is_none()) || living.nameless.contains(&None) {
        return (State::Unknown, "it does not say beyond doubt whose it is".to_owned());
    }
    if let Some(doubt) = &trace.doubt {
        return (State::Unknown, doubt.clone());
    }
    if age.is_some_and(|age| age < grace) {
        return (State::New, format!("younger than {} s", grace.as_secs()));
    }
    (State::Leaked, "no namespace and no runtime has the container".to_owned())
}

/// A shaping link's name is a hash: whose it is says only who would have one of this name.
fn of_shaper(node: &Node, living: &Living, trace: &Trace) -> (State, String) {
    let Some(network) = trace.owner.network.as_deref() else {
        return (State::Unknown, "it does not say beyond doubt whose it is".to_owned());
    };
    let is_named_by = |container: &str| ifb_name(network, container) == trace.name;
    if let Some((container, (state, why))) =
        living.containers.iter().find(|(container, _)| is_named_by(container))
    {
        return (*state, format!("of container {container}, {why}"));
    }
    if let Some(container) = node.candidates(network).find(|container| is_named_by(container)) {
        return (State::Known, format!("of container {container}, which a runtime knows"));
    }
    if living.nameless.contains(&None) || living.nameless.contains(&Some(network.to_owned())) {
        return (State::Unknown, "there are pods whose names are too long to compare".to_owned());
    }
    (State::Leaked, "no container of the node would have a link of this name".to_owned())
}
