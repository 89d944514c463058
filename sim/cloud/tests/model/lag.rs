//! Reads that lag behind writes, by the emulator's clock.

use crate::bench::{Bench, CUSTOM, SYSTEM, batch, batch_delete, single};
use loden_aliyun::vpc::{self, EntryStatus};
use loden_sim_cloud::model::Cloud;
use loden_sim_cloud::topology::{EntryKind, EntrySpec, NextHop, Settings};

/// Entries take 2 s, lists of the system table lag 5 s, those of the custom table do not.
fn lagging() -> Bench {
    Bench::with(Settings {
        entry_delay_ms: 2_000,
        read_lag_ms: 5_000,
        table_read_lag_ms: [(CUSTOM.to_owned(), 0)].into(),
        ..Settings::default()
    })
}

fn status(bench: &mut Bench, table: &str) -> Vec<EntryStatus> {
    let listed = bench.custom(table).into_iter().filter(|(net, _)| net.starts_with("172.20."));
    listed.map(|(_, status)| status).collect()
}

fn counted(bench: &mut Bench) -> u32 {
    let request = vpc::GetVpcRouteEntrySummary {
        vpc_id: "vpc-loden".into(),
        route_table_id: Some(SYSTEM.into()),
        route_entry_type: Some("custom".into()),
        ..vpc::GetVpcRouteEntrySummary::default()
    };
    bench.call(&request).unwrap().route_entry_summarys[0].entry_summarys[0].count
}

#[test]
fn lists_and_counts_show_each_state_that_much_later() {
    let mut bench = lagging();
    let entries = [("172.20.1.0/24", "i-loden1"), ("172.20.2.0/24", "i-loden2")];
    bench.call(&batch(SYSTEM, &entries)).unwrap();
    // Written at 0, Pending until 2, shown from 5, Available in what is shown from 7.
    for (second, expected, count) in [
        (0, &[][..], 0),
        (4, &[], 0),
        (5, &[EntryStatus::Pending; 2], 2),
        (6, &[EntryStatus::Pending; 2], 2),
        (7, &[EntryStatus::Available; 2], 2),
    ] {
        let passed = (bench.now - Bench::new().now).whole_seconds();
        bench.wait(second - passed);
        assert_eq!(status(&mut bench, SYSTEM), expected, "after {second} s");
        assert_eq!(counted(&mut bench), count, "after {second} s");
    }
    bench.call(&batch_delete(SYSTEM, &entries[..1])).unwrap();
    bench.wait(4);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Available; 2], "gone 2 s ago, still shown");
    assert_eq!(bench.cloud.snapshot().table(SYSTEM).unwrap().used, 1, "the data plane knows");
    bench.wait(2);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Deleting, EntryStatus::Available]);
    bench.wait(1);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Available]);
}

#[test]
fn each_table_has_its_own_lag() {
    let mut bench = lagging();
    bench.call(&single(CUSTOM, "172.20.1.0/24", "i-loden1")).unwrap();
    assert_eq!(status(&mut bench, CUSTOM), [EntryStatus::Pending]);
    bench.wait(2);
    assert_eq!(status(&mut bench, CUSTOM), [EntryStatus::Available]);
}

#[test]
fn changes_are_judged_by_what_there_is() {
    let mut bench = lagging();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.wait(2);
    assert_eq!(bench.custom(SYSTEM), []);
    assert_eq!(bench.create("172.20.1.0/24", "i-loden2").unwrap_err().code, "InvalidCIDRBlock.Duplicate");
    let change = vpc::ModifyRouteEntry {
        route_table_id: Some(SYSTEM.into()),
        destination_cidr_block: Some("172.20.1.0/24".into()),
        new_next_hop_id: Some("i-loden2".into()),
        ..vpc::ModifyRouteEntry::default()
    };
    bench.call(&change).unwrap();
    bench.wait(3);
    let hop = |bench: &mut Bench| {
        let entry = bench.list(SYSTEM).into_iter().find(|entry| entry.kind == "Custom").unwrap();
        entry.next_hops[0].next_hop_id.clone()
    };
    assert_eq!(hop(&mut bench), "i-loden1", "it leads elsewhere since a second, and lists do not know");
    assert_eq!(
        bench.cloud.snapshot().table(SYSTEM).unwrap().entries.last().unwrap().next_hops[0].id,
        "i-loden2"
    );
    bench.wait(4);
    assert_eq!(hop(&mut bench), "i-loden2");
}

#[test]
fn what_the_console_does_lags_too() {
    let mut bench = lagging();
    let destination = "172.20.9.0/24".parse().unwrap();
    let entry = EntrySpec {
        destination,
        next_hops: vec![NextHop::new("Instance", "i-loden1")],
        kind: EntryKind::Custom,
        name: String::new(),
        description: String::new(),
    };
    bench.cloud.insert_entry(SYSTEM, &entry, bench.now).unwrap();
    assert_eq!(bench.custom(SYSTEM), []);
    bench.wait(5);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Available]);
    bench.cloud.mark_entry(SYSTEM, destination, true, false, bench.now).unwrap();
    bench.wait(1);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Available]);
    bench.cloud.remove_entry(SYSTEM, destination, bench.now).unwrap();
    bench.wait(4);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Modifying]);
    bench.wait(1);
    assert_eq!(bench.custom(SYSTEM), []);
}

#[test]
fn a_kept_state_lags_on_and_a_lag_that_ends_shows_what_there_is() {
    let mut bench = lagging();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.wait(3);
    bench.cloud = Cloud::restore(bench.cloud.save().unwrap()).unwrap();
    assert_eq!(bench.custom(SYSTEM), []);
    bench.wait(2);
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Pending]);
    bench.cloud.set_settings(Settings::default());
    assert_eq!(status(&mut bench, SYSTEM), [EntryStatus::Available]);
    // Nothing of the past is kept for ever.
    bench.create("172.20.2.0/24", "i-loden1").unwrap();
    bench.wait(2);
    assert!(!bench.cloud.save().unwrap().to_string().contains("\"past\""));
}
