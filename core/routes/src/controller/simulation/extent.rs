//! Behaviours beyond one table and one family: discovery, dual stack, instances that change, quotas that are read, and the pace.

use super::*;

fn dual(world: &mut World, index: usize) {
    world.settings.pod_cidrs.push("fd00:20::/48".parse().unwrap());
    let name = format!("n{index}");
    let mut node = node(&name, &format!("172.20.{index}.0/24"));
    node.pod_cidrs.push(format!("fd00:20:0:{index}::/64"));
    world.vpc.add_instance(&format!("i-{name}"), "vsw-1");
    world.put_node(node);
}

#[test]
fn a_dual_stack_node_is_available_when_both_its_entries_are() {
    let mut world = World::new(SECOND);
    dual(&mut world, 1);
    world.start();
    world.run(5 * SECOND);
    assert_eq!(world.table(), ["172.20.1.0/24 via i-n1", "fd00:20:0:1::/64 via i-n1"]);
    assert_eq!(world.available(), ["n1"]);
    assert!(
        world.condition("n1").message.starts_with("route entry 172.20.1.0/24 and fd00:20:0:1::/64 via i-n1"),
        "{}",
        world.condition("n1").message
    );
    world.vpc.take("vtb-1", "fd00:20:0:1::/64".parse().unwrap());
    world.vpc.delay = 20 * SECOND;
    world.controller.on_event(world.now, Event::LookAgain);
    world.run(SECOND);
    assert!(world.condition("n1").message.contains("fd00:20:0:1::/64"));
    world.run(60 * SECOND);
    assert_eq!(world.available(), ["n1"]);
}

#[test]
fn a_vpc_without_ipv6_routes_ipv4_and_says_so() {
    let mut world = World::new(Duration::ZERO);
    world.vpc.ipv6 = false;
    dual(&mut world, 1);
    world.start();
    world.run(5 * SECOND);
    assert_eq!(world.table(), ["172.20.1.0/24 via i-n1"]);
    assert_eq!(world.available(), ["n1"]);
    assert!(world.reasons().contains(&"Ipv6NotRouted"));
}

#[test]
fn a_table_that_takes_no_ipv6_is_served_with_ipv4() {
    let mut world = World::new(Duration::ZERO);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.vpc.ipv4_only.insert("vtb-2".into());
    world.settings.tables = TableChoice::Listed(vec!["vtb-2".into()]);
    dual(&mut world, 1);
    world.start();
    world.run(20 * SECOND);
    assert_eq!(world.table().len(), 2);
    assert_eq!(world.vpc.table(world.now, "vtb-2"), ["172.20.1.0/24 via i-n1"]);
    assert_eq!(world.available(), ["n1"]);
    assert!(world.condition("n1").message.contains("vtb-2 (which takes IPv4 only)"));
    let writes = world.vpc.writes;
    world.run(600 * SECOND);
    assert_eq!(world.vpc.writes, writes, "what a table does not take is not tried again and again");
}

#[test]
fn discovery_serves_the_tables_of_nodes_vswitches_and_follows_them() {
    let mut world = World::new(SECOND);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.vpc.add_table("vtb-3", "vsw-3");
    world.settings.tables = TableChoice::Discover;
    world.settings.source_dest_check_off = false;
    world.join(0);
    world.join(1);
    world.vpc.add_instance("i-n1", "vsw-2");
    world.start();
    world.run(10 * SECOND);
    assert_eq!(world.available(), ["n0", "n1"]);
    assert_eq!(world.vpc.table(world.now, "vtb-2").len(), 2, "every node is in every served table");
    assert!(world.vpc.table(world.now, "vtb-3").is_empty());

    world.join(2);
    world.vpc.add_instance("i-n2", "vsw-3");
    world.run(10 * SECOND);
    assert_eq!(world.vpc.table(world.now, "vtb-3").len(), 3);
    assert_eq!(world.available(), ["n0", "n1", "n2"]);

    // The last node of vsw-3 goes: its table gets nothing new, and loses what no node has.
    world.leave("n2");
    world.run(10 * SECOND);
    world.join(4);
    world.run(10 * SECOND);
    assert_eq!(world.vpc.table(world.now, "vtb-3"), ["172.20.0.0/24 via i-n0", "172.20.1.0/24 via i-n1"]);
    assert_eq!(world.available(), ["n0", "n1", "n4"]);
}

#[test]
fn what_is_known_of_an_instance_outlives_changes_of_its_node() {
    let mut world = World::new(Duration::ZERO);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.settings.tables = TableChoice::Discover;
    world.join(0);
    world.join(1);
    world.vpc.add_instance("i-n1", "vsw-2");
    world.start();
    world.run(10 * SECOND);
    assert_eq!(world.available(), ["n0", "n1"]);
    // Kubelet falls silent and speaks again while the API tells nothing of instances.
    world.vpc.instances.remove(&"i-n1".into());
    world.meddled.insert("n0".to_owned());
    for readiness in [crate::model::Readiness::Unknown, crate::model::Readiness::Ready] {
        let mut node = world.nodes["n1"].clone();
        node.readiness = readiness;
        world.put_node(node);
        world.run(10 * SECOND);
        world.vpc.take("vtb-2", "172.20.0.0/24".parse().unwrap());
        world.controller.on_event(world.now, Event::LookAgain);
        world.run(10 * SECOND);
        assert_eq!(world.vpc.table(world.now, "vtb-2").len(), 2, "the table of its vSwitch is served");
        assert_eq!(world.available(), ["n0", "n1"]);
    }
    // It came back in another vSwitch.
    world.vpc.add_table("vtb-3", "vsw-3");
    world.vpc.add_instance("i-n1", "vsw-3");
    let mut node = world.nodes["n1"].clone();
    node.readiness = crate::model::Readiness::NotReady;
    world.put_node(node);
    world.run(10 * SECOND);
    assert_eq!(world.vpc.table(world.now, "vtb-3").len(), 2);
    assert_eq!(world.available(), ["n0", "n1"]);
}

#[test]
fn a_nat_firewall_that_moves_a_vswitch_is_noticed_and_followed() {
    let mut world = World::with_nodes(SECOND, 2);
    world.settings.tables = TableChoice::Discover;
    world.start();
    world.run(10 * SECOND);
    world.vpc.add_table("vtb-fw", "vsw-1");
    world.vpc.tables[0].vswitches.clear();
    world.controller.on_event(world.now, Event::LookAgain);
    world.run(10 * SECOND);
    assert!(world.reasons().contains(&"VSwitchMoved"));
    assert_eq!(world.vpc.table(world.now, "vtb-fw").len(), 2);
    assert_eq!(world.table().len(), 2, "the system table keeps its entries");
    world.assert_right();
}

#[test]
fn a_vswitch_that_moved_is_noticed_with_the_next_change_of_a_node() {
    for choice in [TableChoice::Discover, TableChoice::default()] {
        let mut world = World::with_nodes(SECOND, 2);
        world.settings.tables = choice.clone();
        world.start();
        world.run(60 * SECOND);
        let kinds = world.kinds.clone();
        world.vpc.add_table("vtb-fw", "vsw-1");
        world.vpc.tables[0].vswitches.clear();
        world.join(5);
        world.run(10 * SECOND);
        assert!(world.reasons().contains(&"VSwitchMoved"));
        let more = |kind| world.kinds[kind] - kinds[kind];
        assert_eq!(more("DescribeRouteTableList"), 1);
        if choice == TableChoice::Discover {
            assert_eq!(more("full listing"), 1, "of the new table");
            assert_eq!(world.vpc.table(world.now, "vtb-fw").len(), 3);
            world.assert_right();
        } else {
            assert_eq!(more("full listing"), 0);
            assert!(world.available().is_empty());
            assert_eq!(world.condition("n0").reason, "RouteTableNotServed");
        }
        // More changes soon after cost nothing.
        let lists = world.kinds["DescribeRouteTableList"];
        for index in 6..9 {
            world.join(index);
            world.run(2 * SECOND);
        }
        assert_eq!(world.kinds["DescribeRouteTableList"], lists);
    }
}

#[test]
fn the_choice_of_tables_can_change_while_the_controller_runs() {
    let mut world = World::with_nodes(SECOND, 2);
    world.vpc.add_table("vtb-2", "vsw-2");
    world.run(10 * SECOND);
    let choice = TableChoice::Listed(vec!["vtb-2".into()]);
    world.settings.tables = choice.clone();
    world.controller.on_event(world.now, Event::Tables(choice));
    world.run(10 * SECOND);
    assert_eq!(world.vpc.table(world.now, "vtb-2").len(), 2);
    world.assert_right();
}

#[test]
fn packets_never_go_nowhere_while_a_nodes_instance_changes() {
    let mut world = World::with_nodes(SECOND, 3);
    world.run(10 * SECOND);
    let mut renewed = world.nodes["n1"].clone();
    renewed.provider_id = "cn-hangzhou.i-new".to_owned();
    world.vpc.add_instance("i-new", "vsw-1");
    world.put_node(renewed);
    let changed = world.now;
    loop {
        world.run(10 * MS);
        let now = world.now;
        let held = world.vpc.entries_at("vtb-1", "172.20.1.0/24");
        assert_eq!(held.len(), 1, "there is always an entry");
        if world.vpc.carries(now, "vtb-1", "172.20.1.0/24", "i-new") {
            break;
        }
        assert!(now - changed < 5 * SECOND);
    }
    assert!(world.reasons().contains(&"RouteRepointed"));

    // Without the permission the entry is replaced.
    world.vpc.refuse_repoint = true;
    let mut again = world.nodes["n1"].clone();
    again.provider_id = "cn-hangzhou.i-newer".to_owned();
    world.vpc.add_instance("i-newer", "vsw-1");
    world.put_node(again);
    world.run(20 * SECOND);
    assert!(world.vpc.carries(world.now, "vtb-1", "172.20.1.0/24", "i-newer"));
    assert!(world.reasons().contains(&"RepointDenied"));
}

#[test]
fn a_quota_that_the_api_tells_is_planned_within_and_warned_of_in_time() {
    let mut world = World::new(Duration::ZERO);
    world.settings.read_quota = true;
    (world.vpc.quota, world.vpc.told_quota) = (5, Some(5));
    for index in 0..4 {
        world.join(index);
    }
    world.start();
    world.run(10 * SECOND);
    let told: Vec<_> = world.notices.iter().filter(|n| n.reason == "RouteQuotaNearlyUsed").collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].message.contains("holds 4 custom route entries of a quota of 5, more than 80 %"));
    for index in 4..7 {
        world.join(index);
    }
    let writes = world.vpc.writes;
    world.run(10 * SECOND);
    assert_eq!(world.available().len(), 5);
    assert_eq!(
        world.vpc.writes,
        writes + 1 + 3,
        "one batch and three source/destination checks; none in vain"
    );
    let figures = world.controller.figures();
    let table = &figures.tables[&"vtb-1".into()];
    assert_eq!((table.desired, table.installed, table.waiting), (7, 5, 2));
    assert_eq!((table.used, table.limit, table.foreign), (5, Some(5), 0));

    (world.vpc.quota, world.vpc.told_quota) = (200, Some(200));
    world.run(310 * SECOND);
    world.assert_right();
}

#[test]
fn throttling_slows_calls_down_and_success_speeds_them_up_again() {
    let mut world = World::with_nodes(Duration::ZERO, 3);
    world.faults.throttled = 500;
    world.run(60 * SECOND);
    assert!(world.controller.figures().throttled > SECOND);
    world.faults.throttled = 0;
    world.run(120 * SECOND);
    world.assert_right();
    world.controller.take_routed();
    for index in 10..60 {
        world.join(index);
    }
    world.run(30 * SECOND);
    world.assert_right();
    assert_eq!(world.controller.take_routed().len(), 50, "the time to a route is told once for each node");
}

#[test]
fn nodes_that_pods_wait_for_get_their_entries_first() {
    let mut world = World::new(SECOND);
    world.vpc.quota = 500;
    world.start();
    world.run(5 * SECOND);
    for index in 0..120 {
        world.join(index);
    }
    world.controller.on_event(world.now, Event::PodsWait(["n117".to_owned()].into()));
    while !world.available().contains(&"n117") {
        world.run(10 * MS);
    }
    assert!(world.available().len() <= 51, "{} were served before", world.available().len());
}
