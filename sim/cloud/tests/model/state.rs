//! The state kept and taken up again, and faults that need more than one call to show.

use loden_aliyun::{Request, vpc};
use loden_sim_cloud::model::Cloud;
use loden_sim_cloud::topology::Settings;
use loden_sim_cloud::{Fault, FaultKind, StateError};
use proptest::prelude::*;

use super::bench::{Bench, SYSTEM, single};

#[test]
fn a_cloud_goes_on_where_it_stopped() {
    let mut bench = Bench::new();
    let once = vpc::CreateRouteEntry {
        client_token: Some("once".into()),
        ..single(SYSTEM, "172.20.1.0/24", "i-loden1")
    };
    let made = bench.call(&once).unwrap().route_entry_id;
    bench.cloud.set_status("vsw-second", Some("Pending".into())).unwrap();
    let before = bench.cloud.snapshot();
    let kept = bench.cloud.save().unwrap();
    let text = kept.to_string();
    bench.cloud = Cloud::restore(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(bench.cloud.snapshot(), before);
    assert_eq!(bench.cloud.save().unwrap(), kept, "nothing is lost in a second round");
    // What was under way goes on, what was remembered still is, and what was said still holds.
    assert_eq!(bench.call(&once).unwrap().route_entry_id, made);
    assert_eq!(bench.create("172.20.2.0/24", "i-loden2").unwrap_err().code, "IncorrectVSwitchStatus");
    bench.cloud.set_status("vsw-second", None).unwrap();
    assert_eq!(bench.create("172.20.2.0/24", "i-loden2").unwrap_err().code, "IncorrectRouteEntryStatus");
    bench.wait(2);
    bench.create("172.20.2.0/24", "i-loden2").unwrap();
    bench.wait(2);
    assert_eq!(bench.create("172.20.1.0/24", "i-loden2").unwrap_err().code, "InvalidCIDRBlock.Duplicate");
}

#[test]
fn a_nonce_stays_used() {
    let mut bench = Bench::new();
    let params = vpc::DescribeVpcs::default().to_params();
    bench.send("DescribeVpcs", "2016-04-28", &params, "once", bench.now).unwrap();
    bench.cloud = Cloud::restore(bench.cloud.save().unwrap()).unwrap();
    let again = bench.send("DescribeVpcs", "2016-04-28", &params, "once", bench.now).unwrap_err();
    assert_eq!(again.code, "SignatureNonceUsed");
}

#[test]
fn a_damaged_state_is_refused() {
    let mut bench = Bench::new();
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    let kept = bench.cloud.save().unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut state = kept.clone();
        change(&mut state);
        Cloud::restore(state).map(drop).unwrap_err()
    };
    assert!(matches!(with(&|state| state["form"] = 99.into()), StateError::Form(_)));
    assert!(matches!(with(&|state| *state = 7.into()), StateError::Damaged(_)));
    assert!(matches!(with(&|state| state["cloud"]["tables"] = 7.into()), StateError::Damaged(_)));
    let dangling = with(&|state| {
        state["cloud"]["tables"].as_object_mut().unwrap().remove(SYSTEM);
    });
    assert!(dangling.to_string().contains(SYSTEM), "{dangling}");
    let stuck = with(&|state| state["cloud"]["unsettled"] = serde_json::json!([]));
    assert!(matches!(stuck, StateError::Dangling { what: "route entry", .. }), "{stuck}");
    let twice = with(&|state| {
        let entries = state["cloud"]["tables"][SYSTEM]["entries"].as_object_mut().unwrap();
        let first = entries.values().next().unwrap().clone();
        entries.insert("424242".to_owned(), first);
    });
    assert!(matches!(twice, StateError::Twice { .. }), "{twice}");
}

fn fault(action: &str, times: u32, kind: FaultKind) -> Fault {
    Fault { action: Some(action.to_owned()), times, kind }
}

#[test]
fn a_stale_list_shows_what_was_there_when_the_fault_came() {
    let mut bench = Bench::with(Settings { entry_delay_ms: 0, ..Settings::default() });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.cloud.inject(fault("DescribeRouteEntryList", 2, FaultKind::Stale));
    bench.create("172.20.2.0/24", "i-loden2").unwrap();
    let names = |bench: &mut Bench| bench.custom(SYSTEM).into_iter().map(|entry| entry.0).collect::<Vec<_>>();
    assert_eq!(names(&mut bench), ["172.20.1.0/24"]);
    // Changes are made to what there is.
    bench.create("172.20.3.0/24", "i-loden2").unwrap();
    assert_eq!(names(&mut bench), ["172.20.1.0/24"]);
    assert_eq!(names(&mut bench), ["172.20.1.0/24", "172.20.2.0/24", "172.20.3.0/24"]);
    assert!(bench.cloud.faults().is_empty());
    // Taken back, the lists are right at once.
    bench.cloud.inject(fault("DescribeRouteEntryList", u32::MAX, FaultKind::Stale));
    bench.cloud.remove_entry(SYSTEM, "172.20.1.0/24".parse().unwrap(), bench.now).unwrap();
    assert_eq!(names(&mut bench).len(), 3);
    assert_eq!(names(&mut bench).len(), 3);
    bench.cloud.clear_faults();
    assert_eq!(names(&mut bench).len(), 2);
}

#[test]
fn a_script_is_replaced_while_it_runs() {
    let mut bench = Bench::new();
    let error = |code: &str| FaultKind::Answer {
        status: 503,
        code: code.to_owned(),
        message: String::new(),
        retry_after_s: None,
    };
    bench.cloud.set_faults(vec![fault("CreateRouteEntry", u32::MAX, error("ServiceUnavailable"))]);
    for _ in 0..3 {
        assert_eq!(bench.create("172.20.1.0/24", "i-loden1").unwrap_err().code, "ServiceUnavailable");
    }
    bench.cloud.set_faults(vec![fault("CreateRouteEntry", 1, error("SystemBusy"))]);
    assert_eq!(bench.create("172.20.1.0/24", "i-loden1").unwrap_err().code, "SystemBusy");
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    bench.cloud.inject(fault("DeleteRouteEntry", 1, FaultKind::LoseCall));
    assert!(!bench.cloud.take_lost_call("CreateRouteEntry"));
    assert!(bench.cloud.take_lost_call("DeleteRouteEntry"));
    assert!(!bench.cloud.take_lost_call("DeleteRouteEntry"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Keeping the state at any moment changes nothing about what comes after.
    #[test]
    fn keeping_the_state_changes_nothing(steps in proptest::collection::vec((0..6_u8, 1..6_u8, 1..4_u8), 1..30), at in 0..30_usize) {
        let mut kept = Bench::new();
        let mut plain = Bench::new();
        for (index, (what, net, instance)) in steps.into_iter().enumerate() {
            if index == at {
                kept.cloud = Cloud::restore(kept.cloud.save().unwrap()).unwrap();
            }
            let seen: Vec<String> = [&mut kept, &mut plain]
                .into_iter()
                .map(|bench| step(bench, what, net, instance))
                .collect();
            prop_assert_eq!(&seen[0], &seen[1]);
            prop_assert_eq!(kept.cloud.snapshot(), plain.cloud.snapshot());
        }
    }
}

fn step(bench: &mut Bench, what: u8, net: u8, instance: u8) -> String {
    let destination = format!("172.20.{net}.0/24");
    let instance = format!("i-loden{instance}");
    match what {
        0 | 1 => format!("{:?}", bench.create(&destination, &instance)),
        2 => {
            let batch =
                super::bench::batch(SYSTEM, &[(&destination, &instance), ("172.21.0.0/24", &instance)]);
            format!("{:?}", bench.call(&batch))
        }
        3 => {
            let batch = super::bench::batch_delete(SYSTEM, &[(&destination, &instance)]);
            format!("{:?}", bench.call(&batch))
        }
        4 => format!("{:?}", bench.list(SYSTEM)),
        _ => {
            bench.wait(1);
            String::new()
        }
    }
}
