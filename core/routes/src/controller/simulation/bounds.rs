//! How much is taken away at once, and who lifts that.

use super::*;

/// A cluster of 60 nodes that has all its entries; 20 % of it are 12.
fn cluster() -> World {
    let mut world = World::with_nodes(Duration::ZERO, 60);
    world.run(30 * SECOND);
    world.assert_right();
    world
}

/// Another cluster takes every node's pod CIDR, under this name, which may be ours: a name is derived from VPC and pod CIDRs where none is given.
fn taken_over(world: &mut World, name: &str) {
    for index in 0..60 {
        world.vpc.put_named("vtb-1", &format!("172.20.{index}.0/24"), "i-theirs", name);
        world.meddled.insert(format!("n{index}"));
    }
    world.controller.on_event(world.now, Event::LookAgain);
}

fn theirs(world: &mut World) -> usize {
    world.table().iter().filter(|line| line.ends_with("via i-theirs")).count()
}

#[test]
fn a_second_cluster_on_the_same_pod_cidrs_loses_a_few_entries_and_people_are_told() {
    for name in ["", "loden-c2", "loden-c1"] {
        let mut world = cluster();
        taken_over(&mut world, name);
        world.run(50 * SECOND);
        assert_eq!(theirs(&mut world), 48, "12 go at once: {name:?}");
        assert_eq!(world.available().len(), 12);
        let told: Vec<_> = world.notices.iter().filter(|n| n.reason == "ConflictsBounded").collect();
        assert_eq!((told.len(), &told[0].about), (1, &About::Controller));
        assert!(told[0].message.starts_with("48 entries of route table vtb-1 "), "{}", told[0].message);
        assert!(told[0].message.contains(name) && told[0].message.contains("no more than 12"));
        assert_eq!(world.condition("n59").reason, "RouteConflict");
        assert!(world.condition("n59").message.contains("172.20.59.0/24 via i-theirs"));
        assert_eq!(world.controller.figures().tables[&"vtb-1".into()].conflicting, 48);
        assert_eq!(world.last_wait.unwrap().1, Why::Grace);
        let listings = world.vpc.listings;
        world.run(20 * SECOND);
        assert_eq!(theirs(&mut world), 36, "as many again after a minute");
        assert_eq!(world.vpc.listings, listings, "waiting lists nothing");

        world.run(240 * SECOND);
        world.assert_right();
        assert_eq!(world.reasons().iter().filter(|reason| **reason == "ConflictsBounded").count(), 1);
        assert_eq!(world.controller.figures().tables[&"vtb-1".into()].conflicting, 0);
    }
}

#[test]
fn consent_lifts_the_bound_on_conflicts() {
    let mut world = cluster();
    world.settings.conflict_percent = 100;
    world.start();
    world.run(30 * SECOND);
    taken_over(&mut world, "");
    world.run(20 * SECOND);
    assert_eq!(theirs(&mut world), 0);
    world.assert_right();
    assert!(!world.reasons().contains(&"ConflictsBounded"));
}

#[test]
fn removals_whose_answer_was_lost_count() {
    for seed in 1..=20 {
        let mut world = cluster();
        world.random = seed;
        world.faults.lost_answers = 400;
        taken_over(&mut world, "");
        let begun = world.now;
        let mut left = 60;
        while world.now - begun < 50 * SECOND {
            world.run(SECOND);
            left = left.min(theirs(&mut world));
        }
        assert!((48..60).contains(&left), "seed {seed}: {left}");
    }
}

#[test]
fn nodes_that_were_seen_moving_to_other_instances_have_their_entries_at_once() {
    let mut world = cluster();
    for index in 0..60 {
        let mut moved = world.nodes[&format!("n{index}")].clone();
        moved.provider_id = format!("cn-hangzhou.i-new{index}");
        moved.network_unavailable = None;
        world.vpc.add_instance(&format!("i-new{index}"), "vsw-1");
        world.put_node(moved);
    }
    world.run(20 * SECOND);
    assert_eq!(world.available().len(), 60);
    assert!(!world.reasons().contains(&"ConflictsBounded"));
}

#[test]
fn consent_lifts_the_bound_on_collections_and_nothing_else_does() {
    let left_after = |percent: usize, nodes: usize, wait: Duration| {
        let mut world = cluster();
        world.settings.collect_percent = percent;
        world.nodes.retain(|name, _| name.trim_start_matches('n').parse::<usize>().unwrap() < nodes);
        world.start();
        world.run(wait);
        (world.table().len(), world.reasons().contains(&"CollectionBounded"))
    };
    let (early, late) = (50 * SECOND, 80 * SECOND);
    assert_eq!(left_after(100, 0, early), (60, false), "the grace period is not lifted");
    assert_eq!(left_after(100, 0, late), (0, false));
    assert_eq!(left_after(20, 0, late), (50, true));
    assert_eq!(left_after(99, 0, late), (50, true));
    assert_eq!(left_after(50, 30, late), (45, true), "half of thirty nodes");
    assert_eq!(left_after(100, 30, late), (30, false));
}
