//! The rules by which route entries come and go, each broken once.

use crate::bench::{Bench, CUSTOM, GATEWAY, SYSTEM, batch, batch_delete, single};
use loden_aliyun::vpc::{self, EntryStatus};
use loden_aliyun::{ApiError, Params};
use loden_sim_cloud::model::{Fault, FaultKind};
use loden_sim_cloud::topology::Settings;

fn code<T: std::fmt::Debug>(result: Result<T, ApiError>) -> (u16, String) {
    let error = result.unwrap_err();
    (error.http_status, error.code)
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[test]
fn an_entry_is_pending_then_available_then_deleting_then_gone() {
    let mut bench = Bench::new();
    let id = bench.create("172.20.1.0/24", "i-loden1").unwrap();
    assert!(id.starts_with("rte-"));
    assert_eq!(bench.custom(SYSTEM), [("172.20.1.0/24".to_owned(), EntryStatus::Pending)]);
    assert!(!bench.cloud.snapshot().table(SYSTEM).unwrap().entries.last().unwrap().forwards());
    bench.wait(2);
    assert_eq!(bench.custom(SYSTEM), [("172.20.1.0/24".to_owned(), EntryStatus::Available)]);
    let revision = bench.cloud.revision();
    bench.call(&batch_delete(SYSTEM, &[("172.20.1.0/24", "i-loden1")])).unwrap();
    assert_eq!(bench.custom(SYSTEM), [("172.20.1.0/24".to_owned(), EntryStatus::Deleting)]);
    assert!(bench.cloud.next_deadline().is_some());
    bench.wait(2);
    assert_eq!(bench.custom(SYSTEM), []);
    assert_eq!(bench.cloud.next_deadline(), None);
    assert!(bench.cloud.revision() >= revision + 2);
}

#[test]
fn without_a_delay_an_entry_is_in_force_at_once() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    assert_eq!(bench.custom(SYSTEM), [("172.20.1.0/24".to_owned(), EntryStatus::Available)]);
    bench.create("172.20.2.0/24", "i-loden1").unwrap();
}

#[test]
fn one_change_per_vpc_at_a_time() {
    let mut bench = Bench::new();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    assert_eq!(code(bench.create("172.20.2.0/24", "i-loden2")), is(400, "IncorrectRouteEntryStatus"));
    let other_table = single(CUSTOM, "172.20.2.0/24", "i-loden2");
    let error = bench.call(&other_table).unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("TaskConflict", "The operation is too frequent, please wait a moment and try again.")
    );
    assert_eq!(code(bench.call(&batch(SYSTEM, &[("172.20.3.0/24", "i-loden1")]))), is(400, "TaskConflict"));
    assert_eq!(
        code(bench.call(&batch_delete(SYSTEM, &[("172.20.1.0/24", "i-loden1")]))),
        is(400, "TaskConflict")
    );
    // Another VPC is free to change.
    bench.call(&single("vtb-other", "172.20.2.0/24", "i-other")).unwrap();
    bench.wait(2);
    bench.call(&other_table).unwrap();
}

#[test]
fn many_changes_at_once_where_that_is_switched_on() {
    let mut bench =
        Bench::with(Settings { one_change_per_vpc: false, entry_delay_ms: 2_000, ..Settings::default() });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.create("172.20.2.0/24", "i-loden1").unwrap();
    let delete = batch_delete(SYSTEM, &[("172.20.1.0/24", "i-loden1")]);
    let code = |answer: Vec<vpc::FailedRouteEntry>| answer[0].failed_code.clone();
    assert_eq!(code(bench.call(&delete).unwrap().failed_route_entries), "VPC_ROUTE_ENTRY_STATUS_ERROR");
    let again = batch(SYSTEM, &[("172.20.1.0/24", "i-loden2")]);
    assert_eq!(
        code(bench.call(&again).unwrap().failed_route_entries),
        "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE"
    );
    bench.wait(2);
    bench.call(&delete).unwrap();
    assert_eq!(code(bench.call(&again).unwrap().failed_route_entries), "VPC_ROUTE_ENTRY_STATUS_ERROR");
    bench.wait(2);
    assert_eq!(bench.call(&again).unwrap().success_count, 1);
}

#[test]
fn what_a_single_creation_refuses() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    for (destination, hop, status, expected) in [
        ("172.20.1.0/24", "i-loden2", 400, "InvalidCIDRBlock.Duplicate"),
        ("172.20.1.7/24", "i-loden1", 400, "InvalidCidrBlock"),
        ("172.20.1.0/33", "i-loden1", 400, "InvalidCidrBlock.Malformed"),
        ("pods", "i-loden1", 400, "InvalidCidrBlock.Malformed"),
        ("100.64.0.0/10", "i-loden1", 400, "InvalidDestinationCidrBlock"),
        ("100.100.0.0/16", "i-loden1", 400, "InvalidDestinationCidrBlock"),
        ("192.168.0.0/24", "i-loden1", 400, "InvalidDestinationCidrBlock"),
        ("192.168.1.128/25", "i-loden1", 400, "InvalidDestinationCidrBlock"),
        ("fd00::/64", "i-loden1", 400, "OperationDenied.VpcIpv6NotEnabled"),
        ("172.20.2.0/24", "i-gone", 404, "InvalidInstanId.NotFound"),
        ("172.20.2.0/24", "i-other", 404, "OperationFailed.InstanceDismatchCurrentVpc"),
    ] {
        assert_eq!(code(bench.create(destination, hop)), is(status, expected), "{destination} {hop}");
    }
    let table = |table| single(table, "172.20.2.0/24", "i-loden1");
    assert_eq!(code(bench.call(&table("vtb-none"))), is(404, "InvalidRouteTableId.NotFound"));
    assert_eq!(code(bench.call(&table(GATEWAY))), is(400, "OperationDenied.GatewayRouteTableNotPermitted"));
    let hop_type = vpc::CreateRouteEntry { next_hop_type: Some("Carrier".into()), ..table(SYSTEM) };
    assert_eq!(code(bench.call(&hop_type)), is(400, "InvalidNextHopType"));
    let no_hop = vpc::CreateRouteEntry { next_hop_id: None, ..table(SYSTEM) };
    assert_eq!(code(bench.call(&no_hop)), is(400, "InvalidNexthopTypeAndList.BothNull"));
    let hop = |id: &str| vpc::NextHopSpec { next_hop_id: Some(id.into()), ..vpc::NextHopSpec::default() };
    let both = vpc::CreateRouteEntry { next_hop_list: vec![hop("i-loden1")], ..table(SYSTEM) };
    assert_eq!(code(bench.call(&both)), is(400, "InvalidNexthopTypeAndList.BothNotNull"));
    let short = vpc::CreateRouteEntry { next_hop_list: vec![hop("i-loden1")], ..no_hop };
    assert_eq!(code(bench.call(&short)), is(400, "InvalidNexthopListSize"));
    let name = vpc::CreateRouteEntry { route_entry_name: Some("https://x".into()), ..table(SYSTEM) };
    assert_eq!(code(bench.call(&name)), is(400, "InvalidRouteEntryName.Malformed"));
    assert_eq!(
        code(bench.raw("CreateRouteEntry", "2016-04-28", &Params::new())),
        is(400, "MissingParameter")
    );
    let elsewhere = vpc::CreateRouteEntry { region_id: Some("cn-beijing".into()), ..table(SYSTEM) };
    assert_eq!(code(bench.call(&elsewhere)), is(404, "InvalidRegionId.NotFound"));
    assert_eq!(bench.custom(SYSTEM).len(), 1, "a refused creation leaves nothing behind");
}

#[test]
fn what_a_single_creation_allows() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.create("172.20.9.9", "i-loden1").unwrap();
    bench.create("0.0.0.0/0", "i-loden1").unwrap();
    // May contain a vSwitch; the batch may not.
    bench.create("192.168.0.0/16", "i-loden1").unwrap();
    let mut nat = single(CUSTOM, "0.0.0.0/0", "ngw-1");
    nat.next_hop_type = Some("NatGateway".into());
    bench.call(&nat).unwrap();
    let destinations: Vec<String> = bench.custom(SYSTEM).into_iter().map(|(text, _)| text).collect();
    assert_eq!(destinations, ["172.20.9.9/32", "0.0.0.0/0", "192.168.0.0/16"]);
    bench.cloud.set_settings(Settings {
        allow_inside_shared_range: true,
        entry_delay_ms: 0,
        ..Settings::default()
    });
    bench.create("100.100.0.0/16", "i-loden1").unwrap();
    assert_eq!(code(bench.create("100.64.0.0/10", "i-loden1")), is(400, "InvalidDestinationCidrBlock"));
}

#[test]
fn a_dry_run_answers_an_error_and_changes_nothing() {
    let mut bench = Bench::new();
    let create = vpc::CreateRouteEntry { dry_run: Some(true), ..single(SYSTEM, "172.20.1.0/24", "i-loden1") };
    assert_eq!(code(bench.call(&create)), is(400, "DryRunOperation"));
    let batch =
        vpc::CreateRouteEntries { dry_run: Some(true), ..batch(SYSTEM, &[("172.20.1.0/24", "i-loden1")]) };
    assert_eq!(code(bench.call(&batch)), is(400, "DryRunOperation"));
    assert_eq!(bench.custom(SYSTEM), []);
}

#[test]
fn a_client_token_makes_a_repeated_creation_one_entry() {
    let mut bench = Bench::new();
    let create = vpc::CreateRouteEntry {
        client_token: Some("t".into()),
        ..single(SYSTEM, "172.20.1.0/24", "i-loden1")
    };
    let first = bench.call(&create).unwrap().route_entry_id;
    assert_eq!(bench.call(&create).unwrap().route_entry_id, first);
    let other = vpc::CreateRouteEntry { destination_cidr_block: "172.20.2.0/24".into(), ..create };
    assert_eq!(code(bench.call(&other)), is(400, "IdempotentParameterMismatch"));
}

#[test]
fn the_quota_counts_custom_entries_of_one_table() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.cloud.set_quota(SYSTEM, 2).unwrap();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    let answer =
        bench.call(&batch(SYSTEM, &[("172.20.2.0/24", "i-loden2"), ("172.20.3.0/24", "i-loden3")])).unwrap();
    assert_eq!((answer.success_count, answer.failed_count), (1, 1));
    let failed = &answer.failed_route_entries[0];
    assert_eq!(
        (failed.failed_code.as_str(), failed.failed_message.as_str(), failed.dst_cidr_block.as_str()),
        ("QuotaExceeded", "Route entry quota exceeded in this route table.", "172.20.3.0/24")
    );
    let error = bench.create("172.20.4.0/24", "i-loden1").unwrap_err();
    assert_eq!(error.message, "Route entry quota exceeded in this route table.");
    // The other table has its own, and a larger quota lets the next one in.
    bench.call(&single(CUSTOM, "172.20.3.0/24", "i-loden3")).unwrap();
    bench.cloud.set_quota(SYSTEM, 3).unwrap();
    bench.create("172.20.4.0/24", "i-loden1").unwrap();
    let view = bench.cloud.snapshot();
    assert_eq!((view.table(SYSTEM).unwrap().used, view.table(SYSTEM).unwrap().quota), (3, 3));
}

#[test]
fn whether_deleting_entries_hold_quota_is_a_setting() {
    for (holds, expected) in [(true, 1), (false, 0)] {
        let mut bench = Bench::with(Settings { deleting_holds_quota: holds, ..Settings::default() });
        bench.create("172.20.1.0/24", "i-loden1").unwrap();
        bench.wait(2);
        bench.call(&batch_delete(SYSTEM, &[("172.20.1.0/24", "i-loden1")])).unwrap();
        assert_eq!(bench.cloud.snapshot().table(SYSTEM).unwrap().used, expected);
    }
}

#[test]
fn a_batch_applies_what_it_can() {
    let mut bench = Bench::new();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.wait(2);
    let answer = bench
        .call(&batch(
            SYSTEM,
            &[
                ("172.20.1.0/24", "i-loden2"),
                ("172.20.2.0/24", "i-loden2"),
                ("172.20.2.0/24", "i-loden3"),
                ("172.20.3.0/24", "i-gone"),
                ("192.168.0.0/16", "i-loden1"),
                ("172.20.4.0/24", "i-loden3"),
            ],
        ))
        .unwrap();
    assert_eq!((answer.success_count, answer.failed_count, answer.route_entry_ids.len()), (2, 4, 2));
    let codes: Vec<_> = answer
        .failed_route_entries
        .iter()
        .map(|failed| (failed.dst_cidr_block.as_str(), failed.next_hop.as_str(), failed.failed_code.as_str()))
        .collect();
    assert_eq!(
        codes,
        [
            ("172.20.1.0/24", "i-loden2", "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE"),
            ("172.20.2.0/24", "i-loden3", "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE"),
            ("172.20.3.0/24", "i-gone", "InvalidInstanId.NotFound"),
            ("192.168.0.0/16", "i-loden1", "InvalidDestinationCidrBlock"),
        ]
    );
    assert_eq!(
        answer.failed_route_entries[0].failed_message,
        "Specified CIDR block is already exists, entry.cidrBlock=172.20.1.0/24"
    );
}

#[test]
fn a_batch_has_1_to_50_entries_each_with_its_table() {
    let mut bench = Bench::new();
    let destinations: Vec<String> = (0..51).map(|n| format!("172.20.{n}.0/24")).collect();
    let entries: Vec<(&str, &str)> = destinations.iter().map(|text| (text.as_str(), "i-loden1")).collect();
    assert_eq!(code(bench.call(&batch(SYSTEM, &entries))), is(400, "IllegalParam.RouteEntries"));
    assert_eq!(code(bench.call(&batch(SYSTEM, &[]))), is(400, "MissingParameter"));
    let mut nameless = batch(SYSTEM, &entries[..2]);
    nameless.route_entries[1].route_table_id = None;
    assert_eq!(code(bench.call(&nameless)), is(400, "MissingParam.RouteTableId"));
    assert_eq!(code(bench.call(&batch("vtb-none", &entries[..1]))), is(404, "InvalidRouteTableId.NotFound"));
    assert_eq!(bench.custom(SYSTEM), []);
    let answer = bench.call(&batch(SYSTEM, &entries[..50])).unwrap();
    assert_eq!((answer.success_count, answer.failed_count), (50, 0));
    assert!(bench.custom(SYSTEM).iter().all(|(_, status)| *status == EntryStatus::Pending));
}

#[test]
fn deletion_by_id_by_destination_and_what_it_refuses() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    let by_destination = |table: &str, destination: &str, hop: &str| vpc::DeleteRouteEntry {
        route_table_id: Some(table.into()),
        destination_cidr_block: Some(destination.into()),
        next_hop_id: Some(hop.into()),
        ..vpc::DeleteRouteEntry::default()
    };
    let by_id =
        |id: String| vpc::DeleteRouteEntry { route_entry_id: Some(id), ..vpc::DeleteRouteEntry::default() };
    let id = bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.create("172.20.2.0/24", "i-loden2").unwrap();
    let system = bench.list(SYSTEM).into_iter().find(|entry| entry.kind == "System").unwrap();
    let learned = bench.list(CUSTOM).into_iter().find(|entry| entry.kind == "CEN").unwrap();
    for (request, status, expected) in [
        (by_destination(SYSTEM, "172.20.1.0/24", "i-loden2"), 400, "InvalidRouteEntry.NotFound"),
        (by_destination(SYSTEM, "172.20.9.0/24", "i-loden1"), 400, "InvalidRouteEntry.NotFound"),
        (by_destination("vtb-none", "172.20.1.0/24", "i-loden1"), 404, "InvalidRouteTableId.NotFound"),
        (by_destination(SYSTEM, "100.64.0.0/10", ""), 400, "InvalidNextHop"),
        (by_id("rte-none".into()), 400, "InvalidRouteEntryId.NotFound"),
        (by_id(system.route_entry_id), 400, "OperationDenied"),
        (by_id(learned.route_entry_id), 400, "Forbbiden"),
        (
            vpc::DeleteRouteEntry {
                route_entry_id: Some(id.clone()),
                ..by_destination(SYSTEM, "172.20.1.0/24", "i-loden1")
            },
            400,
            "ParamExclusive.RouteEntryIdAndRouteTableIdOrDestCidrBlock",
        ),
        (vpc::DeleteRouteEntry::default(), 400, "MissingParameter"),
    ] {
        assert_eq!(code(bench.call(&request)), is(status, expected), "{request:?}");
    }
    bench.call(&by_id(id)).unwrap();
    bench.call(&by_destination(SYSTEM, "172.20.2.0/24", "i-loden2")).unwrap();
    assert_eq!(bench.custom(SYSTEM), []);
    // Several next hops are named together.
    assert_eq!(
        code(bench.call(&by_destination(CUSTOM, "10.9.0.0/16", "i-loden1"))),
        is(400, "InvalidRouteEntry.NotFound")
    );
    let hop = |id: &str| vpc::NextHopSpec { next_hop_id: Some(id.into()), ..vpc::NextHopSpec::default() };
    let several = vpc::DeleteRouteEntry {
        next_hop_id: None,
        next_hop_list: vec![hop("i-loden2"), hop("i-loden1")],
        ..by_destination(CUSTOM, "10.9.0.0/16", "")
    };
    bench.call(&several).unwrap();
    assert_eq!(bench.custom(CUSTOM), []);
}

#[test]
fn a_batch_deletion_names_what_is_not_there() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    let answer = bench
        .call(&batch_delete(SYSTEM, &[("172.20.1.0/24", "i-loden1"), ("172.20.2.0/24", "i-loden1")]))
        .unwrap();
    assert_eq!((answer.success_count, answer.failed_count), (1, 1));
    let failed = &answer.failed_route_entries[0];
    assert_eq!(
        (failed.failed_code.as_str(), failed.failed_message.as_str(), failed.dst_cidr_block.as_str()),
        ("VPC_ROUTER_ENTRY_NOT_EXIST", "vRouterEntry not exists", "172.20.2.0/24")
    );
}

#[test]
fn lists_are_filtered() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench
        .call(&vpc::CreateRouteEntry {
            route_entry_name: Some("named".into()),
            ..single(SYSTEM, "172.20.1.0/24", "i-loden1")
        })
        .unwrap();
    let id = bench.create("172.20.2.0/24", "i-loden2").unwrap();
    let list = |bench: &mut Bench, change: &dyn Fn(&mut vpc::DescribeRouteEntryList)| {
        let mut request = vpc::DescribeRouteEntryList {
            route_table_id: SYSTEM.into(),
            ..vpc::DescribeRouteEntryList::default()
        };
        change(&mut request);
        bench.call(&request).map(|answer| {
            answer.entries.into_iter().map(|entry| entry.destination_cidr_block).collect::<Vec<_>>()
        })
    };
    let both = ["172.20.1.0/24", "172.20.2.0/24"];
    let system = ["192.168.0.0/24", "192.168.1.0/24", "100.64.0.0/10"];
    let mut all = list(&mut bench, &|_| {}).unwrap();
    all.sort();
    let mut expected = [both.as_slice(), system.as_slice()].concat();
    expected.sort_unstable();
    assert_eq!(all, expected);
    assert_eq!(list(&mut bench, &|r| r.route_entry_type = Some("Custom".into())).unwrap(), both);
    assert_eq!(list(&mut bench, &|r| r.route_entry_type = Some("System".into())).unwrap().len(), 3);
    assert_eq!(list(&mut bench, &|r| r.next_hop_type = Some("instance".into())).unwrap(), both);
    assert_eq!(list(&mut bench, &|r| r.next_hop_id = Some("i-loden2".into())).unwrap(), both[1..]);
    assert_eq!(list(&mut bench, &|r| r.route_entry_id = Some(id.clone())).unwrap(), both[1..]);
    assert_eq!(list(&mut bench, &|r| r.route_entry_name = Some("named".into())).unwrap(), both[..1]);
    assert_eq!(
        list(&mut bench, &|r| r.destination_cidr_block = Some("172.20.2.0/24".into())).unwrap(),
        both[1..]
    );
    assert_eq!(
        list(&mut bench, &|r| r.dest_cidr_block_list = vec!["172.20.1.0/24".into(), "172.20.9.0/24".into()])
            .unwrap(),
        both[..1]
    );
    assert_eq!(list(&mut bench, &|r| r.ip_version = Some("IPv6".into())).unwrap(), Vec::<String>::new());

    type Change = fn(&mut vpc::DescribeRouteEntryList);
    let wrong: [(Change, &str); 8] = [
        (|r| r.route_table_id = "vtb-none".into(), "InvalidRouteTable.NotFound"),
        (|r| r.route_table_id = GATEWAY.into(), "OperationDenied.UseGatewayRouteEntryQueryInterface"),
        (|r| r.route_entry_type = Some("Magic".into()), "IllegalParam.RouteEntryType"),
        (|r| r.ip_version = Some("IPv5".into()), "IllegalParam.IpVersion"),
        (|r| r.next_hop_id = Some("i-none".into()), "InvalidNextHop.NotFound"),
        (|r| r.next_token = Some("garbage".into()), "IllegalParam.NextToken"),
        (|r| r.dest_cidr_block_list = vec!["172.20.1.0/24".into(); 21], "IllegalParam.DestCidrBlockList"),
        (
            |r| {
                r.route_entry_type = Some("System".into());
                r.route_entry_name = Some("named".into());
            },
            "OperationFailed.FilterParamUnderWrongRouteType",
        ),
    ];
    for (change, expected) in wrong {
        assert_eq!(code(list(&mut bench, &change)), is(400, expected));
    }
}

#[test]
fn pages_neither_hide_nor_repeat_what_stays() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, max_result: 100, ..Settings::default() });
    for n in 0..30 {
        bench.create(&format!("172.20.{n}.0/24"), "i-loden1").unwrap();
    }
    let mut request = vpc::DescribeRouteEntryList {
        route_table_id: SYSTEM.into(),
        route_entry_type: Some("Custom".into()),
        ..vpc::DescribeRouteEntryList::default()
    };
    let first = bench.call(&request).unwrap();
    assert_eq!((first.entries.len(), first.total_count), (10, Some(30)));
    // One before and one after the page boundary go away in between.
    bench
        .call(&batch_delete(SYSTEM, &[("172.20.3.0/24", "i-loden1"), ("172.20.12.0/24", "i-loden1")]))
        .unwrap();
    let mut seen: Vec<String> =
        first.entries.iter().map(|entry| entry.destination_cidr_block.clone()).collect();
    request.next_token = Some(first.next_token.clone());
    loop {
        let answer = bench.call(&request).unwrap();
        seen.extend(answer.entries.into_iter().map(|entry| entry.destination_cidr_block));
        if answer.next_token.is_empty() {
            break;
        }
        request.next_token = Some(answer.next_token);
    }
    let expected: Vec<String> = (0..30).filter(|n| *n != 12).map(|n| format!("172.20.{n}.0/24")).collect();
    assert_eq!(seen, expected);
    // A token belongs to its filters, and grows old.
    let other = vpc::DescribeRouteEntryList {
        route_entry_type: None,
        next_token: Some(first.next_token.clone()),
        ..request.clone()
    };
    assert_eq!(code(bench.call(&other)), is(400, "IllegalParam.NextToken"));
    bench.wait(601);
    request.next_token = Some(first.next_token);
    assert_eq!(code(bench.call(&request)), is(400, "IllegalParam.NextTokenExpired"));
    // A larger page than the vendor documents is taken as the largest.
    request.next_token = None;
    request.max_result = Some(500);
    assert_eq!(bench.call(&request).unwrap().entries.len(), 28);
}

#[test]
fn trouble_on_demand_is_used_up() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.cloud.inject(Fault {
        action: Some("CreateRouteEntry".into()),
        times: 1,
        kind: FaultKind::Answer {
            status: 429,
            code: "Throttling.User".into(),
            message: "Request was denied due to user flow control.".into(),
            retry_after_s: Some(3),
        },
    });
    let error = bench.create("172.20.1.0/24", "i-loden1").unwrap_err();
    assert_eq!(
        (error.http_status, error.code.as_str(), error.retry_after),
        (429, "Throttling.User", Some(std::time::Duration::from_secs(3)))
    );
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.cloud.inject(Fault {
        action: None,
        times: 1,
        kind: FaultKind::Item {
            destination: Some("172.20.3.0/24".parse().unwrap()),
            code: "SystemBusy".into(),
            message: "m".into(),
        },
    });
    let answer =
        bench.call(&batch(SYSTEM, &[("172.20.2.0/24", "i-loden1"), ("172.20.3.0/24", "i-loden1")])).unwrap();
    assert_eq!(
        (answer.success_count, answer.failed_route_entries[0].failed_code.as_str()),
        (1, "SystemBusy")
    );
    bench.call(&batch(SYSTEM, &[("172.20.3.0/24", "i-loden1")])).unwrap();
}
