//! What must hold of every history, whatever happens in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use loden_reconcile::Moment;

use super::super::super::{Call, MIN_REMOVED, Settings};
use super::STALENESS;
use crate::fake::Vpc;
use crate::model::{EntryStatus, InstanceId, Node, Readiness, RouteEntry, VpcRouteTableId};
use crate::tables::Served;

/// How old the knowledge may be on which the controller acts: a read that lags, the way there and back, and a state that changes meanwhile.
const KNOWLEDGE: Duration = Duration::from_secs(15);

/// How long a write of a condition is on its way, and a node that changes on its way to the controller.
const ON_ITS_WAY: Duration = Duration::from_millis(500);

/// Removals are counted over this long.
const MINUTE: Duration = Duration::from_secs(60);

type Pair = (IpNet, InstanceId);

/// A change that the controller cannot know of.
struct Hidden {
    since: Moment,
    /// By then it must have read the place.
    bound: Moment,
    /// When it did.
    read: Option<Moment>,
}

impl Hidden {
    fn excuses(&self, now: Moment) -> bool {
        now < self.bound && self.read.is_none_or(|read| now < read + KNOWLEDGE)
    }
}

/// Watches a history.
#[derive(Default)]
pub(super) struct Judge {
    wrong: Option<String>,
    /// Since when a live node has called for an entry.
    wanted_since: BTreeMap<Pair, Moment>,
    /// When a live node last called for an entry that none calls for any more.
    wanted_until: BTreeMap<Pair, Moment>,
    /// The entries that the tables carry.
    carried: BTreeSet<(VpcRouteTableId, Pair)>,
    /// When a table last carried an entry that it no longer does.
    carried_until: BTreeMap<(VpcRouteTableId, Pair), Moment>,
    /// Places that somebody else changed. The API tells nobody of it: the controller knows when it next reads them.
    hidden: BTreeMap<(VpcRouteTableId, IpNet), Hidden>,
    pub(super) audit: Duration,
    pub(super) second_look: Duration,
    /// When a controller last wrote to a place.
    written: BTreeMap<(VpcRouteTableId, IpNet), Moment>,
    /// What the controller that works now took away though no node was ever seen to have it: when, where, and the entry's ID.
    taken: Vec<(Moment, VpcRouteTableId, String)>,
    /// Entries of others, which nobody but people may touch.
    pub(super) foreign: BTreeSet<(String, String, String)>,
}

/// The instances that nodes run on.
pub(super) fn instances(nodes: &BTreeMap<String, Node>) -> BTreeSet<InstanceId> {
    nodes.values().flat_map(pairs).map(|(_, instance)| instance).collect()
}

/// The tables that should be served while nodes run on `instances`.
pub(super) fn served(
    settings: &Settings,
    vpc: &Vpc,
    instances: &BTreeSet<InstanceId>,
) -> Vec<VpcRouteTableId> {
    let in_use = instances
        .iter()
        .filter_map(|instance| vpc.instances.get(instance))
        .map(|instance| instance.vswitch.clone())
        .collect();
    Served::choose(&vpc.tables, &settings.tables, &in_use, &settings.vpc)
        .map(|served| served.tables)
        .unwrap_or_default()
}

/// What a node calls for, found out by other code than the controller's.
fn pairs(node: &Node) -> Vec<Pair> {
    let Some((_, instance)) = node.provider_id.rsplit_once('.') else { return Vec::new() };
    node.pod_cidrs.iter().map(|net| (net.parse().expect("a pod CIDR"), instance.into())).collect()
}

/// The places that a call writes to.
fn places(call: &Call) -> Vec<(VpcRouteTableId, IpNet)> {
    match call {
        Call::Create(entries) => entries.iter().map(|new| (new.table.clone(), new.destination)).collect(),
        Call::Delete(entries) => entries.iter().map(|old| (old.table.clone(), old.destination)).collect(),
        Call::Repoint(old, _) => vec![(old.table.clone(), old.destination)],
        _ => Vec::new(),
    }
}

/// The entries that a call names to be deleted or pointed elsewhere.
pub(super) fn taken_by(call: &Call, vpc: &Vpc) -> Vec<RouteEntry> {
    let refs = match call {
        Call::Delete(entries) => entries.as_slice(),
        Call::Repoint(entry, _) => std::slice::from_ref(entry),
        _ => &[],
    };
    let held = |gone: &crate::model::EntryRef| {
        let named = |held: &&RouteEntry| {
            held.destination == gone.destination && held.next_hops.first() == Some(&gone.next_hop)
        };
        vpc.entries_of(&gone.table).find(named).cloned()
    };
    // What is going already goes by somebody else's call.
    refs.iter().filter_map(held).filter(|entry| entry.status != EntryStatus::Deleting).collect()
}

impl Judge {
    /// A call of the controller that works now was carried out, and named these entries. Of those on nodes' pod CIDRs that never were a node's own, it may
    /// take away a few within a minute.
    pub(super) fn took(&mut self, now: Moment, named: &[RouteEntry], vpc: &Vpc) {
        self.taken.retain(|(at, _, _)| *at + MINUTE > now);
        for entry in named {
            let Some(instance) = entry.instance() else { continue };
            let pair = (entry.destination, instance);
            let was_a_nodes = self.wanted_since.contains_key(&pair) || self.wanted_until.contains_key(&pair);
            let in_the_way =
                self.wanted_since.keys().any(|(range, _)| loden_addr::contains(*range, entry.destination));
            let stays = vpc.entries_of(&entry.table).any(|held| {
                held.id == entry.id && held.status != EntryStatus::Deleting && held.via() == entry.via()
            });
            let counted = self.taken.iter().any(|(_, table, id)| (table, id) == (&entry.table, &entry.id));
            if was_a_nodes || !in_the_way || stays || counted {
                continue;
            }
            self.taken.push((now, entry.table.clone(), entry.id.clone()));
            let count = self.taken.iter().filter(|(_, table, _)| *table == entry.table).count();
            if count > MIN_REMOVED {
                self.blame(format!(
                    "{now:?}: {count} entries of others go from {} within a minute",
                    entry.table
                ));
            }
        }
    }

    /// A call of a controller that is no more arrives. The one that works now sees what it did when it looks a second time.
    pub(super) fn late(&mut self, now: Moment, call: &Call) {
        for place in places(call) {
            self.hide(place, now, self.second_look);
        }
    }

    /// A new controller starts. Its first reading may lag behind what the last one wrote, of which it knows nothing.
    pub(super) fn restarted(&mut self, now: Moment) {
        self.taken.clear();
        let recent = self.written.iter().filter(|(_, at)| **at + STALENESS >= now);
        for place in recent.map(|(place, _)| place.clone()).collect::<Vec<_>>() {
            self.hide(place, now, self.second_look);
        }
    }

    /// A person changes what is at a place or inside.
    pub(super) fn meddled(&mut self, now: Moment, table: &str, destination: IpNet) {
        self.hide((table.into(), destination), now, self.audit);
    }

    /// The next reading comes after `period`, or, where calls fail, some time later.
    fn hide(&mut self, place: (VpcRouteTableId, IpNet), now: Moment, period: Duration) {
        let bound = now + period + 4 * KNOWLEDGE;
        let before = self.hidden.get(&place).map_or(Moment::ZERO, |hidden| hidden.bound);
        self.hidden.insert(place, Hidden { since: now, bound: bound.max(before), read: None });
    }

    /// The controller that works now was told what is in a table.
    pub(super) fn read(&mut self, now: Moment, call: &Call) {
        for ((table, destination), hidden) in &mut self.hidden {
            let covered = match call {
                Call::ListEntries(listed) => listed == table,
                Call::ReadBack(listed, destinations) => listed == table && destinations.contains(destination),
                _ => false,
            };
            if covered && hidden.since + STALENESS <= now {
                hidden.read.get_or_insert(now);
            }
        }
    }

    pub(super) fn found(&self) -> bool {
        self.wrong.is_some()
    }

    pub(super) fn verdict(&self) -> Option<&String> {
        self.wrong.as_ref()
    }

    pub(super) fn blame(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    /// The nodes are no longer as they were.
    pub(super) fn look_at_nodes(&mut self, now: Moment, nodes: &BTreeMap<String, Node>) {
        let live: BTreeSet<Pair> = nodes.values().flat_map(pairs).collect();
        for pair in self.wanted_since.keys().filter(|pair| !live.contains(pair)) {
            self.wanted_until.insert(pair.clone(), now);
        }
        self.wanted_since.retain(|pair, _| live.contains(pair));
        for pair in live {
            self.wanted_since.entry(pair).or_insert(now);
        }
    }

    /// The cloud is no longer as it was.
    pub(super) fn look_at_cloud(&mut self, now: Moment, vpc: &Vpc) {
        let mut carried = BTreeSet::new();
        for table in &vpc.tables {
            let in_force = vpc.entries_of(&table.id).filter(|entry| entry.status == EntryStatus::Available);
            for entry in in_force {
                if let Some(instance) = entry.instance() {
                    carried.insert((table.id.clone(), (entry.destination, instance)));
                }
            }
        }
        for gone in self.carried.difference(&carried) {
            self.carried_until.insert(gone.clone(), now);
        }
        self.carried = carried;
        let lost = self.foreign.iter().find(|(table, destination, via)| {
            !vpc.entries_at(table, destination).iter().any(|entry| entry.via() == *via)
        });
        if let Some((table, destination, via)) = lost.cloned() {
            self.blame(format!("{now:?}: the foreign entry {destination} via {via} of {table} is gone"));
        }
    }

    /// A write reaches the cloud.
    pub(super) fn write(&mut self, now: Moment, call: &Call, vpc: &Vpc) {
        self.written.extend(places(call).into_iter().map(|place| (place, now)));
        match call {
            Call::Create(entries) => {
                for entry in entries {
                    self.creates(now, &(entry.destination, entry.instance.clone()));
                }
            }
            Call::Repoint(_, to) => self.creates(now, &(to.destination, to.instance.clone())),
            Call::Delete(entries) => {
                for gone in entries {
                    let named = |held: &&RouteEntry| {
                        held.destination == gone.destination && held.next_hops.first() == Some(&gone.next_hop)
                    };
                    let held = vpc.entries_of(&gone.table).find(named).cloned();
                    let Some(held) = held else { continue };
                    let Some(instance) = held.instance() else {
                        self.blame(format!("{now:?}: {} via {} is deleted", held.destination, held.via()));
                        continue;
                    };
                    let pair = (held.destination, instance);
                    let rival =
                        self.wanted_since.keys().any(|(net, other)| *net == pair.0 && *other != pair.1);
                    let long = self.wanted_since.get(&pair).is_some_and(|since| *since + KNOWLEDGE < now);
                    if long && !rival {
                        self.blame(format!(
                            "{now:?}: {} via {} of {} is deleted, a live node's good entry",
                            pair.0, pair.1, gone.table
                        ));
                    }
                }
            }
            _ => {}
        }
    }

    fn creates(&mut self, now: Moment, pair: &Pair) {
        let until = self.wanted_until.get(pair);
        if !self.wanted_since.contains_key(pair) && until.is_none_or(|at| *at + KNOWLEDGE < now) {
            self.blame(format!("{now:?}: {} via {} is written, which no node calls for", pair.0, pair.1));
        }
    }

    /// A node is called available.
    pub(super) fn claimed(&mut self, now: Moment, node: &Node, tables: &[VpcRouteTableId]) {
        let message = node.network_unavailable.as_ref().map_or("", |condition| condition.message.as_str());
        for pair in pairs(node) {
            // Of a node that changed while the claim was on its way nobody could know: the claim is about what it was before.
            let about_it =
                message.contains(&pair.0.to_string()) && message.contains(&format!("via {} ", pair.1));
            let known = self.wanted_since.get(&pair).is_some_and(|since| *since + ON_ITS_WAY < now);
            if !about_it && !known {
                continue;
            }
            for table in tables {
                let place = (table.clone(), pair.clone());
                if self.carried.contains(&place) {
                    continue;
                }
                // An entry that never was is claimed in vain; one that was may be gone for as long as nobody can know it.
                let hidden = self.hidden.get(&(table.clone(), pair.0));
                let patience =
                    if hidden.is_some_and(|hidden| hidden.excuses(now)) { self.audit * 4 } else { KNOWLEDGE };
                if self.carried_until.get(&place).is_none_or(|at| *at + patience < now) {
                    self.blame(format!(
                        "{now:?}: {} is called available without {} via {} in {table}",
                        node.name, pair.0, pair.1
                    ));
                }
            }
        }
    }

    /// What should be is, and nothing else is said.
    pub(super) fn settled(
        &mut self,
        now: Moment,
        when: &str,
        vpc: &Vpc,
        nodes: &BTreeMap<String, Node>,
        settings: &Settings,
    ) {
        let tables = served(settings, vpc, &instances(nodes));
        let mut wrong = Vec::new();
        for node in nodes.values().filter(|node| !is_lost(vpc, node)) {
            let told = node.network_unavailable.as_ref();
            let mut right = true;
            for (net, instance) in pairs(node) {
                let lacking = tables.iter().filter(|table| {
                    !vpc.entries_of(table).any(|entry| {
                        entry.destination == net
                            && entry.instance().as_ref() == Some(&instance)
                            && entry.status == EntryStatus::Available
                    })
                });
                for table in lacking {
                    right = false;
                    if node.readiness != Readiness::Unknown {
                        wrong.push(format!("{} has no entry {net} via {instance} in {table}", node.name));
                    }
                }
            }
            if right == told.is_none_or(|condition| condition.unavailable) {
                wrong.push(format!("{} is told {told:?}, and its entries are there: {right}", node.name));
            }
        }
        let live: BTreeSet<Pair> = nodes.values().flat_map(pairs).collect();
        for table in &tables {
            for entry in vpc.entries_of(table) {
                let Some(instance) = entry.instance() else { continue };
                let inside = live.iter().any(|(range, _)| loden_addr::contains(*range, entry.destination));
                let stale = entry.name == "loden-c1";
                if (inside || stale) && !live.contains(&(entry.destination, instance)) {
                    wrong.push(format!("{} via {} stays in {table}", entry.destination, entry.via()));
                }
            }
        }
        if !wrong.is_empty() {
            wrong.truncate(6);
            self.blame(format!("{now:?}: {when}: {}", wrong.join("; ")));
        }
    }
}

/// Whether the node's instance is not in the VPC: it can have no entry.
fn is_lost(vpc: &Vpc, node: &Node) -> bool {
    pairs(node).iter().any(|(_, instance)| !vpc.instances.contains_key(instance))
}
