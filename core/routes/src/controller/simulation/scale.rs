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
        let told = |node: &&Node| node.network_unavailable.as_ref().is_some_and(|told| !told.unavailable);
        self.nodes.values().filter(told).count()
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
