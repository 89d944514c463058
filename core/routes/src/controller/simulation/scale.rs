//! Large clusters under the vendor's limits: 50 entries a batch, one change of a VPC at a time, a second until an entry is in force.

use super::*;

/// The time until an entry is in force, or gone.
const DELAY: Duration = SECOND;
/// Runs are looked at this often.
const STEP: Duration = Duration::from_millis(50);

/// A cluster of this many nodes that all join at the same moment.
fn cluster(count: u32) -> World {
    let mut world = World::new(DELAY);
    world.vpc.quota = 20_000;
    world.settings.pod_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
    for number in 0..count {
        world.grow(number);
    }
    world.start();
    world
}

impl World {
    fn grow(&mut self, number: u32) {
        let name = format!("n{number}");
        let mut node = node(&name, &format!("10.{}.{}.0/24", number / 250, number % 250));
        node.created = i64::from(number);
        self.vpc.add_instance(&format!("i-{name}"), "vsw-1");
        self.put_node(node);
    }

    fn count_of(&self, kind: &str) -> usize {
        self.kinds.get(kind).copied().unwrap_or_default()
    }

    fn available_count(&self) -> usize {
        self.nodes.values().filter(|node| is_available(node)).count()
    }

    /// Runs until every node is called available; how long that took.
    fn until_all_available(&mut self, bound: Duration) -> Duration {
        let begin = self.now;
        while self.available_count() < self.nodes.len() {
            self.run(STEP);
            let (took, count) = (self.now - begin, self.available_count());
            assert!(took < bound, "{count} of {} nodes after {took:?}: {:?}", self.nodes.len(), self.kinds);
        }
        self.now - begin
    }
}

fn is_available(node: &Node) -> bool {
    node.network_unavailable.as_ref().is_some_and(|told| !told.unavailable)
}

/// What batches and delay alone dictate.
fn floor(entries: u32) -> Duration {
    DELAY * entries.div_ceil(u32::try_from(crate::port::BATCH_LIMIT).unwrap())
}

fn join_at_once(count: u32) -> World {
    let mut world = cluster(count);
    let took = world.until_all_available(floor(count) * 12 / 10);
    println!("{count} nodes at once: {took:?}, {:?} dictated; {:?}", floor(count), world.kinds);
    let batches = usize::try_from(count.div_ceil(50)).unwrap();
    assert_eq!(world.count_of("CreateRouteEntries"), batches);
    // The second is the one that follows every start after a while.
    assert!(world.count_of("full listing") <= 2, "{:?}", world.kinds);
    // What a batch wrote is read back by 20 at a time; now and then a first look comes a moment too early.
    assert!(world.count_of("filtered read-back") <= batches * 5, "{:?}", world.kinds);
    assert_eq!(world.count_of("DeleteRouteEntries"), 0);
    world.run(10 * SECOND);
    world.assert_right();
    assert!(world.controller.is_settled());
    world
}

#[test]
fn a_thousand_nodes_take_little_more_than_what_batches_and_delay_dictate() {
    let mut world = join_at_once(1000);
    // A restart finds everything in place: one listing, and nothing to write.
    let (kinds, conditions) = (world.kinds.clone(), world.condition_writes);
    world.start();
    world.run(15 * SECOND);
    assert!(world.controller.is_settled());
    assert_eq!(world.count_of("full listing"), kinds["full listing"] + 1);
    assert_eq!(world.count_of("CreateRouteEntries"), kinds["CreateRouteEntries"]);
    assert_eq!(world.condition_writes, conditions);
}

#[test]
fn five_thousand_nodes_take_little_more_than_what_batches_and_delay_dictate() {
    join_at_once(5000);
}

#[test]
fn a_restart_in_the_middle_of_a_thousand_joins_costs_one_listing_and_no_entry_twice() {
    let mut world = cluster(1000);
    world.run(10 * SECOND + 300 * MS);
    let (before, entries) = (world.kinds.clone(), world.table().len());
    assert!((400..600).contains(&entries), "{entries}");
    world.start();
    let took = world.until_all_available(floor(1000) * 12 / 10);
    println!("restarted after 10.3 s with {entries} entries: {took:?} more; {:?}", world.kinds);
    // The batch under way when it stopped is found by the listing, or, in force too late for that, by its refusal as busy.
    assert!(took <= floor(1000 - u32::try_from(entries).unwrap()) * 12 / 10 + DELAY, "{took:?}");
    assert!(world.count_of("CreateRouteEntries") <= 22, "{:?}", world.kinds);
    assert_eq!(world.count_of("full listing"), before["full listing"] + 1);
    world.run(5 * SECOND);
    world.assert_right();
    assert_eq!(world.table().len(), 1000);
}

/// A tenth of the nodes leaves within each of three minutes, evenly, and as many others join; in the middle the controller is restarted.
fn churn(count: u32) {
    let mut world = cluster(count);
    world.until_all_available(floor(count) * 12 / 10);
    world.run(30 * SECOND);
    let before = world.kinds.clone();
    let (pause, turns) = (600 * SECOND / count, 3 * count / 10);
    let mut waiting: BTreeMap<String, Moment> = BTreeMap::new();
    let (mut slowest, mut told) = (Duration::ZERO, 0);
    for turn in 0..turns {
        world.leave(&format!("n{turn}"));
        world.grow(count + turn);
        waiting.insert(format!("n{}", count + turn), world.now);
        if turn == turns / 2 {
            world.start();
        }
        let next = world.now + pause;
        while world.now < next || (turn + 1 == turns && !waiting.is_empty()) {
            world.run(STEP.min(pause));
            waiting.retain(|name, since| {
                let waits = !is_available(&world.nodes[name]);
                if !waits {
                    (slowest, told) = (slowest.max(world.now - *since), told + 1);
                }
                waits
            });
        }
    }
    println!("{told} of {count} joined one by one, each within {slowest:?}; {:?}", world.kinds);
    assert_eq!(told, turns);
    // The batch under way, its own, and the delays of both.
    assert!(slowest <= 5 * SECOND, "{slowest:?}");
    let more =
        |world: &World, kind: &str| world.count_of(kind) - before.get(kind).copied().unwrap_or_default();
    // Of the new controller one, and the one that follows every start after a while.
    assert_eq!(more(&world, "full listing"), 2, "{:?}", world.kinds);
    // No more batches than there are seconds.
    assert!(more(&world, "CreateRouteEntries") <= 200, "{:?}", world.kinds);
    // Whose leaving was missed by the restart is collected by its mark.
    world.run(world.settings.stale_grace + 120 * SECOND);
    world.assert_right();
    assert_eq!(world.table().len(), usize::try_from(count).unwrap());
}

#[test]
fn a_tenth_of_a_thousand_nodes_changes_every_minute() {
    churn(1000);
}

#[test]
fn a_tenth_of_five_thousand_nodes_changes_every_minute() {
    churn(5000);
}

#[test]
fn five_thousand_nodes_far_beyond_the_quota_wait_without_being_asked_for() {
    let mut world = cluster(5000);
    world.vpc.quota = 1000;
    world.run(60 * SECOND);
    assert_eq!(world.available_count(), 1000);
    let told = world.reasons().iter().filter(|reason| **reason == "RouteQuotaExceeded").count();
    assert_eq!(told, 4001, "each of those that wait, and the table");
    let (kinds, conditions) = (world.kinds.clone(), world.condition_writes);
    world.run(240 * SECOND);
    let more = |kind: &str| world.count_of(kind) - kinds.get(kind).copied().unwrap_or_default();
    assert!(more("CreateRouteEntries") <= 10, "{:?}", world.kinds);
    assert_eq!((more("full listing"), world.condition_writes), (0, conditions));
}
