//! What happens in a history: nodes, people, processes and faults, in an order and at moments that the seed decides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::model::{EntryRef, NextHop, Readiness, RouteEntry};
use crate::tables::TableChoice;
use crate::testing::node;

/// Pod CIDRs that nodes have; a small number, so that they collide with what was there.
const SLOTS: u64 = 32;

pub(super) fn begin(seed: u64, trace: bool) -> History {
    let settings = Settings::new(
        "vpc-1".into(),
        ClusterId::parse("c1").unwrap(),
        vec!["172.20.0.0/16".parse().unwrap()],
    );
    let mut history = History {
        random: loden_reconcile::mix(seed ^ 0x5eed),
        now: SECOND,
        vpc: Vpc::new(SECOND),
        past: VecDeque::new(),
        delay: SECOND,
        controller: Controller::new(settings.clone()),
        settings,
        epoch: 0,
        nodes: BTreeMap::new(),
        jobs: BTreeMap::new(),
        turn: 0,
        faults: Faults::default(),
        denied_until: Moment::ZERO,
        kinds: BTreeSet::new(),
        calls: 0,
        writes: 0,
        condition_writes: 0,
        most_nodes: 0,
        described: BTreeSet::new(),
        touched: true,
        judge: Judge::default(),
        trace: trace.then(Vec::new),
    };
    surroundings(&mut history);
    history.judge.audit = history.settings.audit;
    history.judge.second_look = history.settings.second_look;
    if history.roll(4) == 0 {
        history.settings.pod_cidrs.push("fd00:20::/48".parse().unwrap());
    }
    let nodes = 18 + history.roll(8);
    for slot in 0..nodes {
        join(&mut history, slot);
    }
    history.jobs.clear();
    history.look();
    history.remember();
    history.restart();
    history
}

/// The VPC before anything happens: its tables, its quota, and what belongs to others.
fn surroundings(history: &mut History) {
    history.settings.audit = SECOND * u32::try_from(30 + history.roll(60)).unwrap();
    history.settings.stale_grace = 20 * SECOND;
    history.delay = [Duration::ZERO, 300 * MS, SECOND, 3 * SECOND][usize::try_from(history.roll(4)).unwrap()];
    history.vpc.delay = history.delay;
    let shape = history.roll(8);
    if shape > 1 {
        history.vpc.add_table("vtb-2", "vsw-2");
        history.settings.tables =
            if shape > 5 { TableChoice::Discover } else { TableChoice::Listed(vec!["vtb-2".into()]) };
    }
    if history.roll(3) == 0 {
        history.vpc.quota = usize::try_from(24 + history.roll(10)).unwrap();
    }
    if history.roll(8) == 0 {
        history.vpc.refuse_repoint = true;
    }
    let rate = |history: &mut History, most: u64| if history.roll(3) == 0 { 0 } else { history.roll(most) };
    history.faults = Faults {
        lost_request: rate(history, 80),
        lost_answer: rate(history, 80),
        repeated_request: rate(history, 60),
        repeated_answer: rate(history, 60),
        throttled: rate(history, 120),
        server_error: rate(history, 60),
        slow: rate(history, 80),
        stale: rate(history, 120),
        slow_state: rate(history, 120),
        failed_condition: rate(history, 120),
        lost_condition_answer: rate(history, 60),
    };
    for (destination, instance, name) in [
        ("10.0.0.0/8", "i-vpn", ""),
        ("172.20.0.0/17", "i-wide", "by hand"),
        ("172.20.200.0/24", "i-other", "loden-c2"),
        ("172.20.201.0/24", "i-other", ""),
        ("0.0.0.0/0", "i-nat", ""),
    ] {
        foreign(history, "vtb-1", destination, instance, name);
    }
}

fn foreign(history: &mut History, table: &str, destination: &str, instance: &str, name: &str) {
    history.vpc.put_named(table, destination, instance, name);
    history.judge.foreign.insert((table.to_owned(), destination.to_owned(), instance.to_owned()));
}

fn cidr(slot: u64) -> String {
    format!("172.20.{slot}.0/24")
}

/// The pod CIDRs of the slot, one of each family that the cluster has.
fn cidrs(history: &History, slot: u64) -> Vec<String> {
    let dual = history.settings.pod_cidrs.len() > 1;
    std::iter::once(cidr(slot)).chain(dual.then(|| format!("fd00:20:0:{slot}::/64"))).collect()
}

/// A node joins under the slot's name, on an instance of its own.
fn join(history: &mut History, slot: u64) {
    let name = format!("n{slot}");
    let instance = format!("i-{slot}-{}", history.roll(3));
    let vswitch = if history.vpc.tables.len() > 1 && history.roll(2) == 0 { "vsw-2" } else { "vsw-1" };
    if !history.vpc.instances.contains_key(&instance.as_str().into()) {
        history.vpc.add_instance(&instance, vswitch);
    }
    let mut fresh = node(&name, "");
    fresh.pod_cidrs = cidrs(history, slot);
    fresh.uid = format!("uid-{}", history.random);
    fresh.created = i64::try_from(history.now.as_secs()).unwrap();
    let prefix = if history.roll(3) == 0 { "alicloud://" } else { "" };
    fresh.provider_id = format!("{prefix}cn-hangzhou.{instance}");
    fresh.readiness = Readiness::Ready;
    history.note(|| format!("{name} joins on {instance} in {vswitch}"));
    history.put_node(fresh);
}

fn some_node(history: &mut History) -> Option<String> {
    let count = history.nodes.len() as u64;
    if count == 0 {
        return None;
    }
    let index = usize::try_from(history.roll(count)).unwrap();
    history.nodes.keys().nth(index).cloned()
}

fn leave(history: &mut History, name: &str) {
    history.note(|| format!("{name} leaves"));
    history.nodes.remove(name);
    history.nodes_changed();
    history.show(name);
}

fn change(history: &mut History, name: &str, change: impl FnOnce(&mut Node)) {
    if let Some(mut node) = history.nodes.get(name).cloned() {
        change(&mut node);
        history
            .note(|| format!("{name} is now {} {:?} {:?}", node.provider_id, node.pod_cidrs, node.readiness));
        history.put_node(node);
    }
}

/// A slot that no node has.
fn free_slot(history: &mut History) -> Option<u64> {
    let start = history.roll(SLOTS);
    (0..SLOTS)
        .map(|offset| (start + offset) % SLOTS)
        .find(|slot| history.nodes.values().all(|node| !node.pod_cidrs.contains(&cidr(*slot))))
}

fn nodes_move(history: &mut History) {
    let Some(name) = some_node(history) else { return };
    match history.roll(9) {
        0 | 1 => {
            if let Some(slot) = free_slot(history)
                && !history.nodes.contains_key(&format!("n{slot}"))
            {
                join(history, slot);
            }
        }
        2 => leave(history, &name),
        // It registers anew, on the same instance or another, with its pod CIDR or another.
        3 => {
            let old = history.nodes[&name].clone();
            leave(history, &name);
            let slot = old.pod_cidrs[0].split('.').nth(2).and_then(|text| text.parse().ok()).unwrap_or(0);
            let slot = if history.roll(2) == 0 { slot } else { free_slot(history).unwrap_or(slot) };
            if !history.nodes.contains_key(&format!("n{slot}")) {
                join(history, slot);
            }
        }
        // The same machine under another name.
        4 => {
            let old = history.nodes[&name].clone();
            leave(history, &name);
            let mut renamed = old;
            renamed.name = format!("{}x", renamed.name.chars().take(8).collect::<String>());
            renamed.uid = format!("uid-{}", history.random);
            renamed.network_unavailable = None;
            history.put_node(renamed);
        }
        5 => {
            if let Some(slot) = free_slot(history) {
                let cidrs = cidrs(history, slot);
                change(history, &name, |node| node.pod_cidrs = cidrs);
            }
        }
        6 => {
            let instance = format!("i-new-{}", history.roll(1000));
            history.vpc.add_instance(&instance, "vsw-1");
            change(history, &name, |node| node.provider_id = format!("cn-hangzhou.{instance}"));
        }
        7 => change(history, &name, |node| {
            node.readiness =
                if node.readiness == Readiness::Ready { Readiness::Unknown } else { Readiness::Ready };
        }),
        _ => change(history, &name, |node| {
            let bare = node.provider_id.trim_start_matches("alicloud://").to_owned();
            node.provider_id = if bare == node.provider_id { format!("alicloud://{bare}") } else { bare };
        }),
    }
}

/// Somebody gives another cluster the pod CIDRs of this one, and its controller points them at its nodes.
fn another_cluster(history: &mut History, table: &str) {
    history.kinds.insert("another cluster");
    let name = ["", "loden-c1", "loden-c2"][usize::try_from(history.roll(3)).unwrap()];
    history.note(|| {
        format!("another cluster, whose entries are named {name:?}, takes the pod CIDRs in {table}")
    });
    let taken: Vec<String> = history.nodes.values().map(|node| node.pod_cidrs[0].clone()).collect();
    for destination in taken {
        history.judge.meddled(history.now, table, destination.parse().unwrap());
        history.vpc.put_named(table, &destination, "i-other-cluster", name);
    }
}

fn people_meddle(history: &mut History) {
    history.kinds.insert("human edit");
    let tables: Vec<String> = history.vpc.tables.iter().map(|table| table.id.to_string()).collect();
    let table = tables[usize::try_from(history.roll(tables.len() as u64)).unwrap()].clone();
    let slot = history.roll(SLOTS);
    let other = history.roll(SLOTS);
    history.judge.meddled(history.now, &table, cidr(slot).parse().unwrap());
    history.touched = true;
    let edit = if history.roll(40) == 0 { 5 } else { history.roll(5) };
    match edit {
        5 => another_cluster(history, &table),
        0 => {
            history.note(|| format!("a person points {} at i-{other}-0 in {table}", cidr(slot)));
            history.vpc.put(&table, &cidr(slot), &format!("i-{other}-0"));
            // Where no node is it is somebody's own, and a node that comes has the better claim: nobody's to judge.
        }
        1 => {
            history.note(|| format!("a person puts a part of {} to i-x in {table}", cidr(slot)));
            history.vpc.put(&table, &format!("172.20.{slot}.128/25"), "i-x");
        }
        2 | 3 => {
            history.note(|| format!("a person deletes {} from {table}", cidr(slot)));
            history.vpc.take(&table, cidr(slot).parse().unwrap());
        }
        _ => {
            let number = history.roll(20);
            let destination = format!("10.{number}.0.0/16");
            if !history
                .vpc
                .entries_of(&table.as_str().into())
                .any(|entry: &RouteEntry| entry.destination.to_string() == destination)
                && history.vpc.has_room(&table)
            {
                foreign(history, &table, &destination, "i-person", "");
            }
        }
    }
    history.remember();
    history.look();
}

fn something_else_writes_the_condition(history: &mut History) {
    history.kinds.insert("other writer");
    let Some(name) = some_node(history) else { return };
    let unavailable = history.roll(2) == 0;
    change(history, &name, |node| {
        node.network_unavailable = Some(NetworkUnavailable {
            unavailable,
            reason: "Other".to_owned(),
            message: "somebody else's".to_owned(),
        });
    });
}

/// The eventful part.
pub(super) fn play(history: &mut History) {
    let first = history.roll(20);
    history.run(SECOND * u32::try_from(first).unwrap());
    for _ in 0..60 {
        match history.roll(16) {
            0..=8 => nodes_move(history),
            9..=11 => people_meddle(history),
            12 => something_else_writes_the_condition(history),
            13 => {
                history.kinds.insert("crash");
                history.restart();
            }
            14 => {
                history.kinds.insert("denied");
                let seconds = history.roll(15);
                history.denied_until = history.now + SECOND * u32::try_from(seconds).unwrap();
            }
            _ => {
                history.kinds.insert("people look");
                history.controller.on_event(history.now, Event::LookAgain);
            }
        }
        let pause = history.roll(2500);
        history.run(MS * u32::try_from(pause).unwrap());
    }
}

/// The faults end, and all has to become right and stay so.
pub(super) fn calm(history: &mut History) {
    history.faults = Faults::default();
    history.denied_until = Moment::ZERO;
    history.vpc.quota = 500;
    history.note(|| "calm".to_owned());
    history.run(1500 * SECOND);
    expect(history, "after a long calm");
    promptly(history);
    leave(history, "lost");
    history.run(300 * SECOND);
    let before = (history.writes, history.condition_writes);
    history.run(600 * SECOND);
    let after = (history.writes, history.condition_writes);
    if before != after {
        let told = format!("it does not come to rest: {before:?} writes became {after:?}");
        history.judge.blame(told);
    }
}

/// An entry as a deletion names it.
fn entry_at(table: &str, destination: IpNet) -> EntryRef {
    let next_hop = NextHop::instance(&"i-any".into());
    EntryRef { table: table.into(), id: String::new(), destination, next_hop }
}

fn expect(history: &mut History, when: &str) {
    if !history.judge.found() {
        let (now, settings) = (history.now, history.settings.clone());
        history.judge.settled(now, when, &history.vpc, &history.nodes, &settings);
    }
}

/// Where nothing fails, what nodes do is followed at once and not at the next audit, whatever else is broken.
fn promptly(history: &mut History) {
    history.settings.audit = 3600 * SECOND;
    history.restart();
    // A call of the controller before arrives when the first reading is over.
    history.run(5 * SECOND);
    if let Some(node) = history.nodes.values().next() {
        let destination = node.pod_cidrs[0].parse().unwrap();
        history.judge.late(history.now, &Call::Delete(vec![entry_at("vtb-1", destination)]));
        history.vpc.take("vtb-1", destination);
        history.touched = true;
    }
    history.run(55 * SECOND);
    expect(history, "soon after the start");
    // One machine that is not in the VPC can never have an entry, and must hold up nobody.
    if let Some(slot) = free_slot(history) {
        let mut lost = node("lost", "");
        lost.pod_cidrs = cidrs(history, slot);
        lost.provider_id = "cn-hangzhou.i-lost".to_owned();
        lost.readiness = Readiness::Ready;
        history.put_node(lost);
    }
    history.run(20 * SECOND);
    for act in 0..4 {
        let Some(name) = history.nodes.keys().find(|name| *name != "lost").cloned() else { return };
        let Some(slot) = free_slot(history) else { return };
        match act {
            0 if !history.nodes.contains_key(&format!("n{slot}")) => join(history, slot),
            1 => {
                let cidrs = cidrs(history, slot);
                change(history, &name, |node| {
                    node.pod_cidrs = cidrs;
                    node.readiness = Readiness::Ready;
                });
            }
            // It registers anew as it was, so that its entries are there before it is.
            2 => {
                let mut again = history.nodes[&name].clone();
                again.uid = "uid-again".to_owned();
                again.network_unavailable = None;
                again.readiness = Readiness::Ready;
                history.put_node(again);
            }
            _ => leave(history, &name),
        }
        let patience = 20 * SECOND + 12 * history.delay;
        history.run(patience);
        expect(history, "soon after a node did something");
    }
}
