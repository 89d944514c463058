//! VPCs, vSwitches, route tables, instances, interfaces; and what the topology refuses.

use crate::bench::{Bench, CUSTOM, GATEWAY, SYSTEM, topology};
use loden_aliyun::{Params, ecs, vpc};
use loden_sim_cloud::AdminError;
use loden_sim_cloud::model::Cloud;
use loden_sim_cloud::topology::{
    EntryKind, EntrySpec, Ingress, InstanceSpec, NextHop, RouteTableSpec, SecurityGroupSpec, Settings,
    TableKind, Topology, VSwitchSpec,
};

#[test]
fn vpcs_and_vswitches() {
    let mut bench = Bench::new();
    let all = bench.call(&vpc::DescribeVpcs::default()).unwrap();
    assert_eq!((all.total_count, all.page_size, all.vpcs.len()), (2, 10, 2));
    let one = vpc::DescribeVpcs { vpc_id: Some("vpc-loden".into()), ..vpc::DescribeVpcs::default() };
    let found = &bench.call(&one).unwrap().vpcs[0];
    assert_eq!((found.cidr_block.as_str(), found.vswitch_ids.len()), ("192.168.0.0/16", 2));
    assert_eq!(found.router_table_ids, [CUSTOM, GATEWAY, SYSTEM]);
    let attribute =
        |id: &str| vpc::DescribeVpcAttribute { vpc_id: id.into(), ..vpc::DescribeVpcAttribute::default() };
    assert_eq!(bench.call(&attribute("vpc-loden")).unwrap().vrouter_id, "vrt-loden");
    assert_eq!(bench.call(&attribute("vpc-none")).unwrap_err().code, "InvalidVpcId.NotFound");
    let by_table =
        vpc::DescribeVSwitches { route_table_id: Some(CUSTOM.into()), ..vpc::DescribeVSwitches::default() };
    let vswitches = bench.call(&by_table).unwrap().vswitches;
    assert_eq!((vswitches.len(), vswitches[0].vswitch_id.as_str()), (1, "vsw-second"));
    assert_eq!(vswitches[0].route_table.route_table_type, "Custom");
    let first =
        vpc::DescribeVSwitches { vswitch_id: Some("vsw-loden".into()), ..vpc::DescribeVSwitches::default() };
    assert_eq!(bench.call(&first).unwrap().vswitches[0].available_ip_address_count, 256 - 4 - 3);
}

#[test]
fn route_tables_by_pages_and_filters() {
    let mut bench = Bench::new();
    let list = |change: &dyn Fn(&mut vpc::DescribeRouteTableList)| {
        let mut request = vpc::DescribeRouteTableList {
            vpc_id: Some("vpc-loden".into()),
            ..vpc::DescribeRouteTableList::default()
        };
        change(&mut request);
        request
    };
    let all = bench.call(&list(&|_| {})).unwrap();
    let ids: Vec<_> = all.tables.iter().map(|table| table.route_table_id.as_str()).collect();
    assert_eq!(ids, [SYSTEM, CUSTOM, GATEWAY]);
    assert_eq!(all.tables[0].vswitch_ids, ["vsw-loden"]);
    assert_eq!(
        (all.tables[1].associate_type.as_str(), all.tables[2].associate_type.as_str()),
        ("VSwitch", "Gateway")
    );
    let second = bench.call(&list(&|r| (r.page_size, r.page_number) = (Some(2), Some(2)))).unwrap();
    assert_eq!((second.total_count, second.tables.len()), (3, 1));
    let system = bench.call(&list(&|r| r.route_table_type = Some("System".into()))).unwrap();
    assert_eq!(system.tables.len(), 1);
    for (wrong, name) in [
        (list(&|r| r.page_size = Some(51)), "PageSize"),
        (list(&|r| r.page_number = Some(0)), "PageNumber"),
        (list(&|r| r.route_table_type = Some("X".into())), "RouteTableType"),
    ] {
        let error = bench.call(&wrong).unwrap_err();
        assert!(error.code == "InvalidParameter" && error.message.contains(name), "{error}");
    }
}

#[test]
fn instances_by_id_token_and_number() {
    let mut bench = Bench::new();
    let some =
        bench.call(&ecs::DescribeInstances::of("cn-hangzhou", &["i-loden1", "i-loden3", "i-none"])).unwrap();
    assert_eq!((some.instances.len(), some.page_size, some.next_token.as_str()), (2, 100, ""));
    let instance = &some.instances[0];
    assert_eq!(instance.vpc_attributes.private_ip_address, ["192.168.0.11"]);
    assert_eq!(instance.network_interfaces[0].kind, "Primary");
    let mut request = ecs::DescribeInstances { max_results: Some(3), ..ecs::DescribeInstances::default() };
    let first = bench.call(&request).unwrap();
    assert_eq!((first.total_count, first.instances.len()), (4, 3));
    request.next_token = Some(first.next_token);
    let rest = bench.call(&request).unwrap();
    assert_eq!((rest.instances.len(), rest.next_token.as_str()), (1, ""));
    let mut malformed = Params::new();
    malformed.set("InstanceIds", "i-loden1");
    let error = bench.raw("DescribeInstances", "2014-05-26", &malformed).unwrap_err();
    assert_eq!(error.code, "InvalidInstanceIds.Malformed");
}

#[test]
fn the_source_destination_check_is_switched() {
    let mut bench = Bench::new();
    let describe = ecs::DescribeNetworkInterfaces {
        network_interface_ids: vec!["eni-loden2".into()],
        ..ecs::DescribeNetworkInterfaces::default()
    };
    assert!(bench.call(&describe).unwrap().network_interface_sets[0].source_dest_check);
    let mut modify = ecs::ModifyNetworkInterfaceAttribute {
        network_interface_id: "eni-loden2".into(),
        source_dest_check: Some(false),
        ..ecs::ModifyNetworkInterfaceAttribute::default()
    };
    bench.call(&modify).unwrap();
    assert!(!bench.call(&describe).unwrap().network_interface_sets[0].source_dest_check);
    assert!(!bench.cloud.snapshot().instance("i-loden2").unwrap().interfaces[0].source_dest_check);
    modify.network_interface_id = "eni-none".into();
    assert_eq!(bench.call(&modify).unwrap_err().code, "InvalidEniId.NotFound");
}

#[test]
fn security_groups_say_who_may_enter() {
    let mut topology = Topology::example();
    topology.vpcs[0].security_groups = vec![SecurityGroupSpec {
        id: "sg-nodes".into(),
        ingress: vec![Ingress::Cidr("172.20.0.0/16".parse().unwrap()), Ingress::Group("sg-nodes".into())],
    }];
    for instance in &mut topology.instances[..2] {
        instance.interfaces[0].security_groups = vec!["sg-nodes".into()];
    }
    let mut cloud =
        Cloud::new(&topology, Settings::default(), 1, time::macros::datetime!(2026-01-01 0:00 UTC)).unwrap();
    let admits = |cloud: &Cloud, instance: &str, source: &str| {
        cloud.snapshot().instance(instance).unwrap().interfaces[0].admits(source.parse().unwrap())
    };
    assert!(admits(&cloud, "i-loden1", "172.20.3.4"));
    assert!(admits(&cloud, "i-loden1", "192.168.0.12"), "a member of the group");
    assert!(!admits(&cloud, "i-loden1", "192.168.0.13"), "no member");
    assert!(admits(&cloud, "i-loden3", "8.8.8.8"), "in no group");
    cloud.set_security_group("vpc-loden", "sg-nodes", Vec::new()).unwrap();
    assert!(!admits(&cloud, "i-loden1", "172.20.3.4"));
}

#[test]
fn a_vswitch_uses_one_table_and_has_its_entry_in_all() {
    let mut bench = Bench::new();
    let spec = VSwitchSpec::new("vsw-third", "z", "192.168.2.0/24".parse().unwrap());
    bench.cloud.add_vswitch("vpc-loden", &spec, bench.now).unwrap();
    for table in [SYSTEM, CUSTOM] {
        assert!(
            bench.list(table).iter().any(|entry| entry.destination_cidr_block == "192.168.2.0/24"),
            "{table}"
        );
    }
    bench.cloud.associate("vsw-third", CUSTOM).unwrap();
    let view = bench.cloud.snapshot();
    assert_eq!(view.table(CUSTOM).unwrap().vswitches, ["vsw-second", "vsw-third"]);
    assert_eq!(view.table(SYSTEM).unwrap().vswitches, ["vsw-loden"]);
    assert!(matches!(bench.cloud.associate("vsw-third", GATEWAY), Err(AdminError::Refused(_))));
    assert!(matches!(bench.cloud.associate("vsw-other", CUSTOM), Err(AdminError::Unknown { .. })));
}

#[test]
fn what_a_topology_may_not_be() {
    type Break = fn(&mut Topology);
    let cases: [(Break, &str); 11] = [
        (|t| t.vpcs[0].vswitches[1].cidr = "192.168.0.128/25".parse().unwrap(), "overlaps 192.168.0.0/24"),
        (|t| t.vpcs[0].vswitches[1].cidr = "10.1.0.0/24".parse().unwrap(), "not inside 192.168.0.0/16"),
        (|t| t.vpcs[0].vswitches[1].id = "vsw-loden".into(), "vSwitch vsw-loden is already there"),
        (|t| t.vpcs[1].id = "vpc-loden".into(), "VPC vpc-loden is already there"),
        (|t| t.vpcs[0].route_tables[0].vswitches = vec!["vsw-none".into()], "no vSwitch vsw-none"),
        (
            |t| {
                t.vpcs[0].route_tables = vec![
                    RouteTableSpec::new("a", TableKind::System),
                    RouteTableSpec::new("b", TableKind::System),
                ]
            },
            "2 system route tables",
        ),
        (
            |t| t.instances[1].interfaces[0].address = "192.168.0.11".parse().unwrap(),
            "address 192.168.0.11 is already",
        ),
        (
            |t| t.instances[1].interfaces[0].address = "192.168.9.9".parse().unwrap(),
            "192.168.9.9 is not inside",
        ),
        (|t| t.instances[1].interfaces.clear(), "no network interface"),
        (|t| t.instances[1].role = Some("Nobody".into()), "no RAM role Nobody"),
        (
            |t| t.instances[1].interfaces[0].security_groups = vec!["sg-none".into()],
            "no security group sg-none",
        ),
    ];
    let now = time::macros::datetime!(2026-01-01 0:00 UTC);
    for (break_it, part) in cases {
        let mut broken = topology();
        break_it(&mut broken);
        let error = Cloud::new(&broken, Settings::default(), 1, now).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn instances_and_entries_come_and_go_from_outside() {
    let mut bench = Bench::new();
    assert_eq!(bench.cloud.free_address("vsw-loden"), Some("192.168.0.1".parse().unwrap()));
    let spec = InstanceSpec::new("i-new", "vsw-loden", "192.168.0.1".parse().unwrap());
    bench.cloud.add_instance(&spec).unwrap();
    assert_eq!(bench.cloud.free_address("vsw-loden"), Some("192.168.0.2".parse().unwrap()));
    assert!(bench.cloud.add_instance(&spec).is_err());
    bench.create("172.20.1.0/24", "i-new").unwrap();
    bench.cloud.remove_instance("i-new").unwrap();
    assert!(bench.cloud.remove_instance("i-new").is_err());
    assert_eq!(bench.custom(SYSTEM).len(), 1, "its entry stays, as in a real VPC");
    let destination = "172.20.1.0/24".parse().unwrap();
    bench.cloud.remove_entry(SYSTEM, destination, bench.now).unwrap();
    assert_eq!(bench.cloud.next_deadline(), None, "an entry that is gone keeps nobody waiting");
    let entry = EntrySpec {
        destination,
        next_hops: vec![NextHop::new("HaVip", "havip-1")],
        kind: EntryKind::Bgp,
        name: String::new(),
        description: String::new(),
    };
    bench.cloud.insert_entry(SYSTEM, &entry, bench.now).unwrap();
    assert!(matches!(bench.cloud.insert_entry(SYSTEM, &entry, bench.now), Err(AdminError::Duplicate { .. })));
    assert_eq!(bench.create("172.20.1.0/24", "i-loden1").unwrap_err().code, "RouteConflict.AlreadyExist");
}
