//! Route tables made, bound, unbound and deleted; counts; IPv6; states given from outside.

use loden_aliyun::ApiError;
use loden_aliyun::vpc::{self, EntryStatus};
use loden_sim_cloud::topology::{EntryKind, EntrySpec, NextHop, Settings};

use super::bench::{Bench, CUSTOM, GATEWAY, SYSTEM, single};

fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>) -> (u16, String) {
    let error = result.unwrap_err();
    (error.http_status, error.code)
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn make(vpc: &str) -> vpc::CreateRouteTable {
    vpc::CreateRouteTable { vpc_id: Some(vpc.into()), ..vpc::CreateRouteTable::default() }
}

fn bind(table: &str, vswitch: &str) -> vpc::AssociateRouteTable {
    vpc::AssociateRouteTable {
        route_table_id: table.into(),
        vswitch_id: vswitch.into(),
        ..vpc::AssociateRouteTable::default()
    }
}

fn unbind(table: &str, vswitch: &str) -> vpc::UnassociateRouteTable {
    vpc::UnassociateRouteTable {
        route_table_id: table.into(),
        vswitch_id: vswitch.into(),
        ..vpc::UnassociateRouteTable::default()
    }
}

fn delete(table: &str) -> vpc::DeleteRouteTable {
    vpc::DeleteRouteTable { region_id: None, route_table_id: table.into() }
}

impl Bench {
    fn table_status(&mut self, table: &str) -> Option<String> {
        let request = vpc::DescribeRouteTableList {
            route_table_id: Some(table.into()),
            ..vpc::DescribeRouteTableList::default()
        };
        self.call(&request).unwrap().tables.pop().map(|table| table.status)
    }

    fn vswitch(&mut self, id: &str) -> (String, String) {
        let request =
            vpc::DescribeVSwitches { vswitch_id: Some(id.into()), ..vpc::DescribeVSwitches::default() };
        let found = self.call(&request).unwrap().vswitches.pop().unwrap();
        (found.status, found.route_table.route_table_id)
    }
}

#[test]
fn a_table_lives_from_pending_to_gone() {
    let mut bench = Bench::new();
    let made = vpc::CreateRouteTable {
        route_table_name: Some("second".into()),
        tags: vec![vpc::TagFilter { key: Some("team".into()), value: Some("net".into()) }],
        ..make("vpc-loden")
    };
    let table = bench.call(&made).unwrap().route_table_id;
    assert_eq!(bench.table_status(&table).as_deref(), Some("Pending"));
    assert_eq!(refused(bench.call(&bind(&table, "vsw-loden"))), is(400, "IncorrectStatus.RouteTableStatus"));
    assert_eq!(refused(bench.create("172.20.1.0/24", "i-loden1")), is(400, "TaskConflict"));
    bench.wait(2);
    assert_eq!(bench.table_status(&table).as_deref(), Some("Available"));
    let local = bench.list(&table).into_iter().filter(|entry| entry.kind == "System").count();
    assert_eq!(local, 3, "two vSwitches and the vendor's services");

    bench.call(&bind(&table, "vsw-loden")).unwrap();
    assert_eq!(bench.vswitch("vsw-loden"), ("Pending".to_owned(), SYSTEM.to_owned()));
    assert_eq!(refused(bench.call(&delete(&table))), is(400, "TaskConflict"));
    bench.wait(2);
    assert_eq!(bench.vswitch("vsw-loden"), ("Available".to_owned(), table.clone()));
    assert_eq!(refused(bench.call(&delete(&table))), is(400, "DependencyViolation.VSwitch"));
    assert_eq!(
        refused(bench.call(&bind(CUSTOM, "vsw-loden"))),
        is(400, "OperationDenied.VSwitchAlreadyBound")
    );
    bench.call(&unbind(&table, "vsw-loden")).unwrap();
    bench.wait(2);
    assert_eq!(bench.vswitch("vsw-loden").1, SYSTEM);

    bench.call(&single(&table, "172.20.1.0/24", "i-loden1")).unwrap();
    bench.wait(2);
    assert_eq!(refused(bench.call(&delete(&table))), is(400, "DependencyViolation.RouteEntry"));
    bench.cloud.remove_entry(&table, "172.20.1.0/24".parse().unwrap(), bench.now).unwrap();
    bench.call(&delete(&table)).unwrap();
    assert_eq!(bench.table_status(&table).as_deref(), Some("Deleting"));
    assert_eq!(
        refused(bench.call(&single(&table, "172.20.1.0/24", "i-loden1"))),
        is(400, "IncorrectStatus.RouteTableStatus")
    );
    // Somebody outside binds it while it goes: the vSwitch is not left without a table.
    bench.cloud.associate("vsw-loden", &table).unwrap();
    bench.wait(2);
    assert_eq!(bench.table_status(&table), None);
    assert_eq!(bench.vswitch("vsw-loden"), ("Available".to_owned(), SYSTEM.to_owned()));
}

#[test]
fn what_tables_refuse() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    assert_eq!(refused(bench.call(&delete(SYSTEM))), is(400, "OperationDenied.SystemRouteTable"));
    assert_eq!(refused(bench.call(&delete("vtb-none"))), is(404, "InvalidRouteTableId.NotFound"));
    assert_eq!(
        refused(bench.call(&bind(GATEWAY, "vsw-loden"))),
        is(400, "OperationDenied.RouteTableTypeNotPermitted")
    );
    assert_eq!(refused(bench.call(&bind(CUSTOM, "vsw-none"))), is(404, "InvalidVSwitchId.NotFound"));
    assert_eq!(refused(bench.call(&bind(CUSTOM, "vsw-other"))), is(400, "InvalidVSwitchId.VpcMismatch"));
    assert_eq!(refused(bench.call(&unbind(CUSTOM, "vsw-loden"))), is(400, "OperationDenied.VSwitchNotBound"));
    assert_eq!(refused(bench.call(&make("vpc-none"))), is(404, "InvalidVpcId.NotFound"));
    assert_eq!(
        refused(
            bench.call(&vpc::CreateRouteTable { associate_type: Some("Pod".into()), ..make("vpc-loden") })
        ),
        is(400, "InvalidParameter")
    );
    for _ in 0..9 {
        bench.call(&make("vpc-other")).unwrap();
    }
    assert_eq!(refused(bench.call(&make("vpc-other"))), is(400, "QuotaExceeded.RouteTable"));
}

#[test]
fn a_client_token_makes_one_table_and_knows_its_action() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    let once = vpc::CreateRouteTable { client_token: Some("once".into()), ..make("vpc-loden") };
    let first = bench.call(&once).unwrap().route_table_id;
    assert_eq!(bench.call(&once).unwrap().route_table_id, first);
    assert_eq!(
        refused(bench.call(&vpc::AssociateRouteTable {
            client_token: Some("once".into()),
            ..bind(&first, "vsw-loden")
        })),
        is(400, "IdempotentParameterMismatch")
    );
    // A refusal is not remembered: the same call succeeds when its time has come.
    let early = vpc::CreateRouteEntry {
        client_token: Some("later".into()),
        ..single(SYSTEM, "172.20.1.0/24", "i-loden1")
    };
    bench.cloud.set_quota(SYSTEM, 0).unwrap();
    assert_eq!(refused(bench.call(&early)), is(400, "QuotaExceeded"));
    bench.cloud.set_quota(SYSTEM, 1).unwrap();
    bench.call(&early).unwrap();
    // And a token is forgotten after a day.
    bench.wait(25 * 3600);
    bench.call(&vpc::CreateRouteTable { client_token: Some("other".into()), ..make("vpc-loden") }).unwrap();
    assert_ne!(bench.call(&once).unwrap().route_table_id, first);
}

#[test]
fn the_summary_counts_what_the_list_shows() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    let ask = vpc::GetVpcRouteEntrySummary {
        vpc_id: "vpc-loden".into(),
        ..vpc::GetVpcRouteEntrySummary::default()
    };
    let answer = bench.call(&ask).unwrap();
    assert_eq!(answer.route_entry_summarys[0].route_table_id, SYSTEM);
    for summary in answer.route_entry_summarys {
        if summary.route_table_id == GATEWAY {
            continue;
        }
        let listed = bench.list(&summary.route_table_id);
        for count in summary.entry_summarys {
            let kind = count.route_entry_type.as_str();
            let expected =
                listed.iter().filter(|entry| kind == "all" || entry.kind.eq_ignore_ascii_case(kind)).count();
            assert_eq!(count.count as usize, expected, "{kind}");
        }
    }
    let one = vpc::GetVpcRouteEntrySummary {
        route_table_id: Some(CUSTOM.into()),
        route_entry_type: Some("cen".into()),
        ..ask.clone()
    };
    let counts = bench.call(&one).unwrap().route_entry_summarys;
    assert_eq!((counts.len(), counts[0].entry_summarys.len(), counts[0].entry_summarys[0].count), (1, 1, 1));
    for (wrong, code) in [
        (vpc::GetVpcRouteEntrySummary { vpc_id: "vpc-none".into(), ..ask.clone() }, "InvalidVpcId.NotFound"),
        (
            vpc::GetVpcRouteEntrySummary { route_table_id: Some("vtb-none".into()), ..ask.clone() },
            "InvalidRouteTableId.NotFound",
        ),
        (
            vpc::GetVpcRouteEntrySummary { route_entry_type: Some("odd".into()), ..ask },
            "IllegalParam.RouteEntryType",
        ),
    ] {
        assert_eq!(bench.call(&wrong).unwrap_err().code, code);
    }
}

#[test]
fn ipv6_entries_where_the_vpc_has_ipv6() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    let wide = "2001:db8:1::/64";
    assert_eq!(refused(bench.create(wide, "i-loden1")), is(400, "OperationDenied.VpcIpv6NotEnabled"));
    let mut topology = super::bench::topology();
    topology.vpcs[0].ipv6_cidr = Some("2408:4005:100::/56".parse().unwrap());
    topology.vpcs[0].vswitches[0].ipv6_cidr = Some("2408:4005:100:1::/64".parse().unwrap());
    bench.cloud =
        loden_sim_cloud::model::Cloud::new(&topology, bench.cloud.settings().clone(), 7, bench.now).unwrap();
    bench.create(wide, "i-loden1").unwrap();
    bench.create("::/0", "i-loden1").unwrap();
    let listed = bench.list(SYSTEM);
    let of_version = |version: &str| listed.iter().filter(|entry| entry.ip_version == version).count();
    assert_eq!((of_version("IPv6"), of_version("IPv4")), (3, 3), "{listed:?}");
    for (destination, code) in [
        ("2408:4005:100:1::/80", "OperationUnsupported.DestinationCidrBlockOverlapWithVSwitch"),
        ("2408:4005:100::/56", "OperationUnsupported.DestinationCidrBlockOverlapWithVSwitch"),
        ("fe80::/64", "IllegalParam.CidrBlock"),
        ("2001:db8:1::1/64", "InvalidCidrBlock"),
        (wide, "InvalidCIDRBlock.Duplicate"),
    ] {
        assert_eq!(refused(bench.create(destination, "i-loden1")), is(400, code), "{destination}");
    }
    let mut outside = topology.vpcs[0].vswitches[0].clone();
    outside.id = "vsw-x".into();
    outside.cidr = "192.168.7.0/24".parse().unwrap();
    outside.ipv6_cidr = Some("2001:db8::/64".parse().unwrap());
    let error = bench.cloud.add_vswitch("vpc-loden", &outside, bench.now).unwrap_err().to_string();
    assert!(error.contains("2001:db8::/64 is not inside 2408:4005:100::/56"), "{error}");
}

#[test]
fn states_given_from_outside_are_shown_and_end() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.cloud.set_status("vpc-loden", Some("Pending".into())).unwrap();
    let vpc = bench.call(&vpc::DescribeVpcAttribute { region_id: None, vpc_id: "vpc-loden".into() }).unwrap();
    assert_eq!(vpc.status, "Pending");
    assert_eq!(refused(bench.create("172.20.1.0/24", "i-loden1")), is(400, "IncorrectVpcStatus"));
    assert_eq!(refused(bench.call(&make("vpc-loden"))), is(400, "IncorrectVpcStatus"));
    bench.cloud.set_status("vpc-loden", None).unwrap();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    assert!(bench.cloud.set_status("vpc-none", None).is_err());

    let destination = "172.20.1.0/24".parse().unwrap();
    bench.cloud.mark_entry(SYSTEM, destination, true, false, bench.now).unwrap();
    assert_eq!(bench.custom(SYSTEM), [("172.20.1.0/24".to_owned(), EntryStatus::Modifying)]);
    assert_eq!(refused(bench.create("172.20.2.0/24", "i-loden1")), is(400, "IncorrectRouteEntryStatus"));
    bench.cloud.mark_entry(SYSTEM, destination, false, false, bench.now).unwrap();
    bench.create("172.20.2.0/24", "i-loden1").unwrap();
    assert!(
        bench.cloud.mark_entry(SYSTEM, "172.20.9.0/24".parse().unwrap(), true, false, bench.now).is_err()
    );
}

#[test]
fn quotas_of_next_hops_of_a_kind() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ha_vip_quota: 1, ..Settings::default() });
    let mut topology = super::bench::topology();
    topology.vpcs[0].gateways.push(NextHop::new("HaVip", "havip-1"));
    bench.cloud =
        loden_sim_cloud::model::Cloud::new(&topology, bench.cloud.settings().clone(), 7, bench.now).unwrap();
    let through = |destination: &str| vpc::CreateRouteEntry {
        next_hop_type: Some("HaVip".into()),
        ..single(SYSTEM, destination, "havip-1")
    };
    bench.call(&through("172.20.1.0/24")).unwrap();
    assert_eq!(refused(bench.call(&through("172.20.2.0/24"))), is(400, "QuotaExceeded.HaVipRouteEntry"));
    bench.create("172.20.2.0/24", "i-loden1").unwrap();
    bench.cloud.set_prefix_list(SYSTEM, "pl-1", vec!["172.20.3.0/24".parse().unwrap()]).unwrap();
    assert_eq!(
        refused(bench.create("172.20.3.0/24", "i-loden1")),
        is(400, "OperationFailed.CidrConflictWithPrefixList")
    );
    bench.cloud.set_prefix_list(SYSTEM, "pl-1", Vec::new()).unwrap();
    bench.create("172.20.3.0/24", "i-loden1").unwrap();
    let managed = EntrySpec {
        destination: "172.20.4.0/24".parse().unwrap(),
        next_hops: vec![NextHop::new("Instance", "i-loden1")],
        kind: EntryKind::Custom,
        name: String::new(),
        description: String::new(),
    };
    bench.cloud.insert_entry(SYSTEM, &managed, bench.now).unwrap();
    bench.cloud.mark_entry(SYSTEM, managed.destination, false, true, bench.now).unwrap();
    let batch = super::bench::batch_delete(SYSTEM, &[("172.20.4.0/24", "i-loden1")]);
    let failed = bench.call(&batch).unwrap().failed_route_entries;
    assert_eq!(failed[0].failed_code, "OperationDenied.DeleteManagedRouteEntry");
}
