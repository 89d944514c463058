//! Behaviours, one by one.

use super::*;

#[test]
fn nodes_get_entries_and_are_told_and_then_all_is_quiet() {
    let mut world = World::with_nodes(SECOND, 3);
    world.run(5 * SECOND);
    world.assert_right();
    assert_eq!(world.table().len(), 3);
    assert!(world.controller.is_settled());
    assert!(world.vpc.checks_on.is_empty());
    assert_eq!(world.last_wait.unwrap().1, Why::SecondLook);
    let calls = world.calls;
    world.run(20 * SECOND);
    assert_eq!((world.calls, world.vpc.listings), (calls + 1, 2), "the second look is one listing");
    assert_eq!(world.last_wait.unwrap().1, Why::Audit);
    let (calls, writes) = (world.calls, world.condition_writes);
    world.run(270 * SECOND);
    assert_eq!((world.calls, world.condition_writes), (calls, writes), "an idle controller does nothing");
    world.run(30 * SECOND);
    assert!(world.calls > calls, "the audit looks");
    assert_eq!(world.vpc.listings, 3);
}

#[test]
fn what_a_predecessors_late_call_did_is_seen_long_before_the_audit() {
    let mut world = World::with_nodes(SECOND, 3);
    world.run(10 * SECOND);
    world.start();
    world.run(4 * SECOND);
    assert!(world.controller.is_settled());
    world.vpc.take("vtb-1", "172.20.1.0/24".parse().unwrap());
    world.meddled.insert("n1".to_owned());
    world.run(20 * SECOND);
    assert_eq!(world.table().len(), 3);
    world.assert_right();
}

#[test]
fn entries_of_departed_nodes_go_though_nodes_keep_joining() {
    let mut world = World::with_nodes(SECOND, 3);
    world.run(10 * SECOND);
    world.leave("n1");
    // One joins during each second that the cloud takes for the one before, so there is always something to create.
    for index in 10..20 {
        world.join(index);
        world.run(600 * MS);
    }
    assert!(!world.table().iter().any(|line| line.ends_with("via i-n1")), "{:?}", world.table());
    world.run(5 * SECOND);
    world.assert_right();
}

#[test]
fn a_restart_writes_nothing() {
    let mut world = World::with_nodes(SECOND, 5);
    world.run(10 * SECOND);
    let (writes, conditions) = (world.vpc.writes, world.condition_writes);
    world.start();
    world.run(600 * SECOND);
    assert_eq!((world.vpc.writes, world.condition_writes), (writes, conditions));
}

#[test]
fn a_node_that_joins_is_reachable_after_little_more_than_the_clouds_own_delay() {
    for (delay, bound) in [(Duration::ZERO, 100 * MS), (SECOND, 1250 * MS)] {
        let mut world = World::with_nodes(delay, 2);
        world.run(10 * SECOND);
        world.join(7);
        let joined = world.now;
        while !world.available().contains(&"n7") {
            world.run(5 * MS);
            assert!(world.now - joined < bound, "after {delay:?}");
        }
    }
}

#[test]
fn a_leaving_nodes_entry_goes_at_once_and_others_stay() {
    let mut world = World::with_nodes(SECOND, 3);
    world.run(10 * SECOND);
    world.leave("n1");
    world.run(2 * SECOND);
    assert_eq!(world.table(), ["172.20.0.0/24 via i-n0", "172.20.2.0/24 via i-n2"]);
    assert!(world.reasons().contains(&"StaleRouteRemoved"));
}

#[test]
fn a_leaving_nodes_entries_go_at_once_from_every_table() {
    let mut world = World::with_nodes(SECOND, 2);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.settings.tables = TableChoice::Listed(vec!["vtb-2".into()]);
    world.start();
    world.run(10 * SECOND);
    assert_eq!(world.vpc.table(world.now, "vtb-2").len(), 2);
    world.leave("n1");
    world.run(5 * SECOND);
    assert_eq!(world.table(), ["172.20.0.0/24 via i-n0"]);
    assert_eq!(world.vpc.table(world.now, "vtb-2").len(), 1);
}

#[test]
fn entries_of_nodes_that_left_while_nobody_watched_go_after_the_grace() {
    let mut world = World::with_nodes(Duration::ZERO, 3);
    world.run(10 * SECOND);
    world.nodes.remove("n1");
    world.start();
    world.run(50 * SECOND);
    assert_eq!(world.table().len(), 3, "grace");
    world.run(20 * SECOND);
    assert_eq!(world.table().len(), 2);
}

#[test]
fn a_list_of_nodes_that_is_wrong_does_not_empty_the_tables() {
    let mut world = World::with_nodes(Duration::ZERO, 100);
    world.run(10 * SECOND);
    assert_eq!(world.table().len(), 100);
    world.nodes.clear();
    world.start();
    world.run(80 * SECOND);
    assert_eq!(world.table().len(), 100 - MIN_REMOVED);
    assert!(world.reasons().contains(&"CollectionBounded"));
    world.run(1200 * SECOND);
    assert!(world.table().is_empty(), "what is meant happens in the end");
}

#[test]
fn conflicts_are_removed_and_reported_and_foreign_entries_survive() {
    let mut world = World::with_nodes(SECOND, 2);
    world.run(10 * SECOND);
    world.vpc.put("vtb-1", "172.20.0.0/24", "i-n1");
    world.vpc.put("vtb-1", "172.20.1.64/26", "i-n1");
    let foreign =
        [("10.1.0.0/16", "i-x"), ("172.20.0.0/16", "i-x"), ("172.20.99.0/24", "i-x"), ("0.0.0.0/0", "i-x")];
    for (destination, instance) in foreign {
        world.vpc.put("vtb-1", destination, instance);
    }
    world.controller.on_event(world.now, Event::LookAgain);
    world.meddled.insert("n0".to_owned());
    world.run(10 * SECOND);
    world.assert_right();
    for (destination, instance) in foreign {
        assert!(world.vpc.carries(world.now, "vtb-1", destination, instance), "{destination}");
    }
    assert_eq!(world.table().len(), 2 + foreign.len());
    let told: Vec<_> = world.notices.iter().filter(|n| n.reason == "ConflictingRouteRemoved").collect();
    assert_eq!(told.len(), 2);
    assert!(
        told.iter()
            .any(|n| n.about == About::Node("n0".to_owned()) && n.message.contains("172.20.0.0/24 via i-n1"))
    );
}

#[test]
fn an_entry_deleted_by_hand_comes_back_and_the_node_knows_in_between() {
    let mut world = World::with_nodes(5 * SECOND, 2);
    world.run(20 * SECOND);
    world.vpc.take("vtb-1", "172.20.0.0/24".parse().unwrap());
    world.controller.on_event(world.now, Event::LookAgain);
    world.run(2 * SECOND);
    assert!(world.condition("n0").unavailable);
    world.run(10 * SECOND);
    world.assert_right();
}

#[test]
fn beyond_the_quota_nodes_wait_and_a_raised_quota_lets_them_in() {
    let mut world = World::new(SECOND);
    world.vpc.quota = 5;
    for index in 0..8 {
        world.join(index);
    }
    world.start();
    world.run(30 * SECOND);
    assert_eq!(world.available(), ["n0", "n1", "n2", "n3", "n4"], "the oldest");
    for name in ["n5", "n6", "n7"] {
        let condition = world.condition(name);
        assert_eq!(condition.reason, "RouteQuotaExceeded");
        assert!(condition.message.contains("route table vtb-1"), "{}", condition.message);
        assert!(
            condition.message.contains("holds 5 custom route entries of a quota of 5"),
            "{}",
            condition.message
        );
    }
    let told = world.reasons().iter().filter(|reason| **reason == "RouteQuotaExceeded").count();
    assert_eq!(told, 4, "once for each node and once for the table");
    let before = (world.vpc.listings, world.condition_writes);
    world.run(200 * SECOND);
    assert_eq!(
        (world.vpc.listings, world.condition_writes),
        before,
        "waiting lists nothing and writes nothing"
    );
    let told = world.reasons().iter().filter(|reason| **reason == "RouteQuotaExceeded").count();
    assert_eq!(told, 4, "once for each node and once for the table, however often room is looked for");
    world.vpc.quota = 200;
    world.run(62 * SECOND);
    world.assert_right();
}

#[test]
fn room_in_a_full_table_is_used_at_once() {
    let mut world = World::new(Duration::ZERO);
    world.vpc.quota = 2;
    for index in 0..3 {
        world.join(index);
    }
    world.start();
    world.run(120 * SECOND);
    assert_eq!(world.available(), ["n0", "n1"]);
    world.leave("n0");
    world.run(SECOND);
    assert_eq!(world.available(), ["n1", "n2"]);
}

#[test]
fn a_configured_quota_is_planned_within() {
    let mut world = World::new(Duration::ZERO);
    world.settings.quota = Some(2);
    for index in 0..3 {
        world.join(index);
    }
    world.start();
    world.run(20 * SECOND);
    assert_eq!(world.available(), ["n0", "n1"]);
    assert!(world.condition("n2").message.contains("holds 2 custom route entries of a quota of 2"));
}

#[test]
fn several_tables_without_configuration_serve_the_system_table_and_say_what_to_do() {
    let mut world = World::new(Duration::ZERO);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.join(0);
    world.join(1);
    world.vpc.add_instance("i-n1", "vsw-2");
    world.start();
    world.run(10 * SECOND);
    assert_eq!(world.available(), ["n0"]);
    assert_eq!(world.condition("n1").reason, "RouteTableNotServed");
    assert_eq!(world.table().len(), 2, "the system table is served for every node");
    let told = world.notices.iter().find(|notice| notice.reason == "MultipleRouteTables").unwrap();
    assert!(told.message.contains("multiple route tables found by vpc id[vpc-1], length(tables)=2"));
    assert!(told.message.contains("--route-table-ids=vtb-1,vtb-2"));

    world.settings.tables = TableChoice::Listed(vec!["vtb-2".into()]);
    world.start();
    world.run(10 * SECOND);
    assert_eq!(world.available(), ["n0", "n1"]);
    assert_eq!(world.vpc.table(world.now, "vtb-2").len(), 2);
}

#[test]
fn a_node_is_available_only_when_every_configured_table_has_its_entry() {
    let mut world = World::new(Duration::ZERO);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.settings.tables = TableChoice::Listed(vec!["vtb-2".into()]);
    world.join(0);
    world.start();
    world.run(10 * SECOND);
    world.assert_right();
    world.vpc.take("vtb-2", "172.20.0.0/24".parse().unwrap());
    world.vpc.delay = 20 * SECOND;
    world.controller.on_event(world.now, Event::LookAgain);
    world.run(SECOND);
    let condition = world.condition("n0");
    assert!(condition.unavailable && condition.message.contains("vtb-2"), "{}", condition.message);
    world.run(60 * SECOND);
    world.assert_right();
}

#[test]
fn a_configured_table_that_does_not_exist_is_named() {
    let mut world = World::with_nodes(Duration::ZERO, 1);
    world.settings.tables = TableChoice::Listed(vec!["vtb-typo".into()]);
    world.start();
    world.run(10 * SECOND);
    assert_eq!(world.condition("n0").reason, "RouteTableNotFound");
    assert!(world.reasons().contains(&"RouteTableNotFound"));
    assert_eq!(world.table().len(), 1, "the system table is served all the same");
}

#[test]
fn one_instance_that_does_not_exist_holds_up_nobody_else() {
    let mut world = World::with_nodes(Duration::ZERO, 3);
    world.vpc.instances.remove(&"i-n1".into());
    world.run(30 * SECOND);
    assert_eq!(world.available(), ["n0", "n2"]);
    assert_eq!(world.condition("n1").reason, "RouteRefused");
    assert!(world.condition("n1").message.contains("InvalidNextHop.NotFound"));
    assert!(world.reasons().contains(&"CreateRouteFailed"));
    world.vpc.add_instance("i-n1", "vsw-1");
    world.run(300 * SECOND);
    world.assert_right();
}

/// Another writer changes the node's condition.
fn contest(world: &mut World, name: &str) {
    let mut node = world.nodes[name].clone();
    node.network_unavailable = Some(NetworkUnavailable {
        unavailable: true,
        reason: "Other".to_owned(),
        message: "another writer".to_owned(),
    });
    world.put_node(node);
}

#[test]
fn a_condition_that_another_writer_changes_is_repaired_and_the_fight_is_told() {
    let mut world = World::with_nodes(Duration::ZERO, 1);
    world.run(10 * SECOND);
    for _ in 0..4 {
        contest(&mut world, "n0");
        world.run(30 * SECOND);
        assert!(!world.condition("n0").unavailable);
    }
    assert_eq!(world.reasons(), ["ConditionContested"]);
}

#[test]
fn a_fight_over_a_condition_is_over_after_a_quiet_time_and_told_again_when_it_begins_anew() {
    let mut world = World::with_nodes(Duration::ZERO, 1);
    world.run(10 * SECOND);
    let told =
        |world: &World| world.reasons().iter().filter(|reason| **reason == "ConditionContested").count();
    let change = |world: &mut World, pause: Duration| {
        contest(world, "n0");
        world.run(pause);
        assert!(!world.condition("n0").unavailable);
    };
    // Now and then is no fight, however often in all.
    for _ in 0..5 {
        change(&mut world, 700 * SECOND);
    }
    assert_eq!(told(&world), 0);
    for _ in 0..6 {
        change(&mut world, 500 * SECOND);
    }
    assert_eq!(told(&world), 1, "once while it lasts");
    world.run(300 * SECOND);
    change(&mut world, 100 * SECOND);
    change(&mut world, 100 * SECOND);
    assert_eq!(told(&world), 1, "it begins anew");
    change(&mut world, 100 * SECOND);
    assert_eq!(told(&world), 2);
}

#[test]
fn its_own_words_seen_before_their_answer_are_no_fight() {
    let mut world = World::with_nodes(SECOND, 1);
    world.watch_first = true;
    world.meddled.insert("n0".to_owned());
    world.run(10 * SECOND);
    for _ in 0..4 {
        world.vpc.take("vtb-1", "172.20.0.0/24".parse().unwrap());
        world.controller.on_event(world.now, Event::LookAgain);
        world.run(30 * SECOND);
        assert!(!world.condition("n0").unavailable);
    }
    assert!(world.condition_writes >= 8, "{}", world.condition_writes);
    assert!(!world.reasons().contains(&"ConditionContested"), "{:?}", world.reasons());
}

#[test]
fn an_adopted_entry_goes_with_its_node() {
    let mut world = World::new(Duration::ZERO);
    world.join(0);
    world.vpc.put("vtb-1", "172.20.0.0/24", "i-n0");
    world.start();
    world.run(10 * SECOND);
    world.assert_right();
    assert_eq!(world.vpc.writes, 1, "only the source/destination check");
    world.leave("n0");
    world.run(10 * SECOND);
    assert!(world.table().is_empty());
}

#[test]
fn a_nodes_route_follows_it_to_another_instance() {
    let mut world = World::with_nodes(SECOND, 2);
    world.run(10 * SECOND);
    let mut moved = world.nodes["n0"].clone();
    moved.uid = "uid-again".to_owned();
    moved.provider_id = "cn-hangzhou.i-spare".to_owned();
    moved.network_unavailable = None;
    world.vpc.add_instance("i-spare", "vsw-1");
    world.put_node(moved);
    world.meddled.insert("n0".to_owned());
    world.run(10 * SECOND);
    assert!(world.vpc.carries(world.now, "vtb-1", "172.20.0.0/24", "i-spare"));
    assert!(!world.condition("n0").unavailable);
}

#[test]
fn refused_credentials_are_told_once_and_tried_rarely() {
    let mut world = World::with_nodes(Duration::ZERO, 1);
    let refused = Failure::api(400, "SignatureDoesNotMatch", "Specified signature is not matched", "R", None);
    let mut calls = 0;
    let begin = world.now;
    while world.now - begin < 600 * SECOND {
        match world.controller.poll(world.now) {
            Poll::Act(Action::Cloud { id, call }) => {
                calls += usize::from(call == Call::ListTables);
                let answer = match call {
                    Call::ListTables => Answer::Tables(Err(refused.clone())),
                    _ => Answer::Instances(Err(refused.clone())),
                };
                world.controller.on_event(world.now, Event::Answered { id, answer });
            }
            Poll::Act(Action::Notice(notice)) => world.notices.push(notice),
            Poll::Act(Action::Condition { .. }) => {}
            Poll::Wait { until, .. } => world.now = until.unwrap(),
        }
    }
    assert!((3..20).contains(&calls), "{calls}");
    let denied: Vec<_> = world.notices.iter().filter(|n| n.reason == "CloudAccessDenied").collect();
    assert_eq!(denied.len(), 2, "once for each API");
    assert!(denied[0].message.contains("SignatureDoesNotMatch"));
    assert_eq!(world.controller.trouble(), Some(&refused));
    assert!(!world.controller.has_observed());
}
