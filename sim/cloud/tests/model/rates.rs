//! Token buckets, and what else says no before an action is looked at.

use std::num::NonZeroU32;

use crate::bench::{Bench, SYSTEM, batch, single};
use loden_aliyun::{ApiError, ecs, vpc};
use loden_sim_cloud::model::{Cloud, Fault, FaultKind};
use loden_sim_cloud::topology::{AccessKeySpec, Per, RateLimit, Settings};
use time::Duration;

fn limit(action: Option<&str>, per: Per, burst: u32, per_minute: u32) -> RateLimit {
    RateLimit {
        action: action.map(str::to_owned),
        per,
        burst: NonZeroU32::new(burst).unwrap(),
        per_minute: NonZeroU32::new(per_minute).unwrap(),
        status: 400,
        tell_retry_after: false,
    }
}

fn limited(rate_limits: Vec<RateLimit>) -> Bench {
    Bench::with(Settings { entry_delay_ms: 0, rate_limits, ..Settings::default() })
}

fn list(bench: &mut Bench) -> Result<vpc::DescribeVpcsAnswer, ApiError> {
    bench.call(&vpc::DescribeVpcs::default())
}

fn wait_ms(bench: &mut Bench, milliseconds: i64) {
    bench.now += Duration::milliseconds(milliseconds);
}

#[test]
fn a_bucket_takes_its_burst_and_fills_again() {
    let mut bench = limited(vec![limit(Some("DescribeVpcs"), Per::User, 3, 60)]);
    for _ in 0..3 {
        list(&mut bench).unwrap();
    }
    let error = list(&mut bench).unwrap_err();
    assert_eq!((error.http_status, error.code.as_str()), (400, "Throttling.User"));
    assert_eq!(error.message, "Request was denied due to user flow control.");
    assert_eq!(error.retry_after, None);
    wait_ms(&mut bench, 999);
    assert!(list(&mut bench).is_err(), "a refused call takes nothing, and nothing has flowed in");
    wait_ms(&mut bench, 1);
    list(&mut bench).unwrap();
    assert!(list(&mut bench).is_err());
    // However long nobody calls, a bucket holds no more than its burst.
    wait_ms(&mut bench, 3_600_000);
    for _ in 0..3 {
        list(&mut bench).unwrap();
    }
    assert!(list(&mut bench).is_err());
    assert_eq!(bench.cloud.throttled().get("DescribeVpcs"), Some(&4));
    assert_eq!(bench.cloud.calls().get("DescribeVpcs"), Some(&11));
}

#[test]
fn actions_and_callers_have_their_own_buckets_unless_said() {
    let mut bench = limited(vec![limit(None, Per::User, 1, 1), limit(Some("DescribeVpcs"), Per::Api, 2, 1)]);
    bench.cloud.add_access_key(AccessKeySpec::new("second", "another")).unwrap();
    bench.cloud.add_access_key(AccessKeySpec::new("third", "another")).unwrap();
    list(&mut bench).unwrap();
    assert_eq!(list(&mut bench).unwrap_err().code, "Throttling.User");
    bench.call(&ecs::DescribeInstances::default()).unwrap();
    let first = std::mem::replace(&mut bench.key.id, "second".into());
    bench.key.secret = "another".into();
    list(&mut bench).unwrap();
    bench.key.id = "third".into();
    let error = list(&mut bench).unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("Throttling.Api", "Request was denied due to api flow control.")
    );
    // What one bucket refuses is not taken from the other: once that has filled, the call goes through.
    wait_ms(&mut bench, 60_000);
    list(&mut bench).unwrap();
    assert_ne!(first, bench.key.id);
}

#[test]
fn somebody_who_is_not_known_empties_no_bucket() {
    let mut bench = limited(vec![limit(None, Per::Api, 1, 1)]);
    bench.key.secret = "wrong".into();
    assert_eq!(list(&mut bench).unwrap_err().code, "SignatureDoesNotMatch");
    bench.key.secret = "testsecret".into();
    list(&mut bench).unwrap();
}

#[test]
fn a_refusal_says_when_to_come_back_where_that_is_set() {
    let tell = RateLimit { tell_retry_after: true, status: 503, ..limit(None, Per::User, 1, 6) };
    let mut bench = limited(vec![tell]);
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    wait_ms(&mut bench, 2_500);
    let error = bench.create("172.20.2.0/24", "i-loden1").unwrap_err();
    let seconds = error.retry_after.unwrap();
    assert_eq!((error.http_status, seconds), (503, std::time::Duration::from_secs(8)));
    assert_eq!(bench.cloud.snapshot().table(SYSTEM).unwrap().used, 1);
    wait_ms(&mut bench, i64::try_from(seconds.as_millis()).unwrap());
    bench.create("172.20.2.0/24", "i-loden1").unwrap();
}

#[test]
fn a_batch_is_one_call() {
    let mut bench = limited(vec![limit(None, Per::User, 1, 1)]);
    let answer = bench.call(&batch(SYSTEM, &[("172.20.1.0/24", "i-loden1"), ("172.20.2.0/24", "i-loden1")]));
    assert_eq!(answer.unwrap().success_count, 2);
}

#[test]
fn buckets_are_kept_and_other_limits_fill_them() {
    let limits = vec![limit(None, Per::User, 1, 1)];
    let mut bench = limited(limits.clone());
    list(&mut bench).unwrap();
    bench.cloud = Cloud::restore(bench.cloud.save().unwrap()).unwrap();
    assert!(list(&mut bench).is_err());
    let slower = Settings { rate_limits: limits, entry_delay_ms: 9, ..Settings::default() };
    bench.cloud.set_settings(slower);
    assert!(list(&mut bench).is_err(), "the same limits");
    bench
        .cloud
        .set_settings(Settings { rate_limits: vec![limit(None, Per::Api, 1, 1)], ..Settings::default() });
    list(&mut bench).unwrap();
    bench.cloud.set_settings(Settings::default());
    for _ in 0..20 {
        list(&mut bench).unwrap();
    }
}

#[test]
fn a_throttled_call_uses_no_fault_up() {
    let mut bench = limited(vec![limit(None, Per::User, 1, 60)]);
    list(&mut bench).unwrap();
    let kind = FaultKind::Answer {
        status: 500,
        code: "InternalError".into(),
        message: "m".into(),
        retry_after_s: None,
    };
    bench.cloud.inject(Fault { action: None, times: 1, kind });
    assert_eq!(list(&mut bench).unwrap_err().code, "Throttling.User");
    wait_ms(&mut bench, 1_000);
    assert_eq!(list(&mut bench).unwrap_err().code, "InternalError");
}

#[test]
fn a_client_token_is_short_and_plain() {
    let mut bench = Bench::new();
    for (token, fine) in [("t".repeat(65), false), ("ü".to_owned(), false), ("t".repeat(64), true)] {
        let create = vpc::CreateRouteEntry {
            client_token: Some(token),
            ..single(SYSTEM, "172.20.1.0/24", "i-loden1")
        };
        match bench.call(&create) {
            Ok(_) => assert!(fine),
            Err(error) => assert_eq!((error.code.as_str(), fine), ("IllegalParam.ClientToken", false)),
        }
    }
}

#[test]
fn tokens_of_ecs_grow_old_and_belong_to_their_list() {
    let mut bench = Bench::new();
    let mut request = ecs::DescribeInstances { max_results: Some(2), ..ecs::DescribeInstances::default() };
    let first = bench.call(&request).unwrap();
    let seen = |answer: &ecs::DescribeInstancesAnswer| {
        answer.instances.iter().map(|one| one.instance_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(seen(&first), ["i-loden1", "i-loden2"]);
    // One goes and one comes before the page's end: nothing is hidden, nothing is repeated.
    bench.cloud.remove_instance("i-loden1").unwrap();
    request.next_token = Some(first.next_token);
    assert_eq!(seen(&bench.call(&request).unwrap()), ["i-loden3", "i-other"]);
    let wrong = |bench: &mut Bench, request: &ecs::DescribeInstances| {
        let error = bench.call(request).unwrap_err();
        assert!(error.code == "InvalidParameter" && error.message.contains("NextToken"), "{error}");
    };
    let other = ecs::DescribeInstances { vpc_id: Some("vpc-loden".into()), ..request.clone() };
    wrong(&mut bench, &other);
    wrong(&mut bench, &ecs::DescribeInstances { next_token: Some("garbage".into()), ..request.clone() });
    bench.wait(601);
    wrong(&mut bench, &request);

    let mut interfaces =
        ecs::DescribeNetworkInterfaces { max_results: Some(1), ..ecs::DescribeNetworkInterfaces::default() };
    let mut ids = Vec::new();
    loop {
        let answer = bench.call(&interfaces).unwrap();
        ids.extend(answer.network_interface_sets.into_iter().map(|one| one.network_interface_id));
        if answer.next_token.is_empty() {
            break;
        }
        interfaces.next_token = Some(answer.next_token);
    }
    assert_eq!(ids, ["eni-loden2", "eni-loden3", "eni-other"]);
}

#[test]
fn settings_that_no_clock_can_count_are_no_panic() {
    let mut bench = Bench::with(Settings {
        entry_delay_ms: u64::MAX,
        read_lag_ms: u64::MAX,
        next_token_lifetime_s: u64::MAX,
        clock_window_s: u64::MAX,
        ..Settings::default()
    });
    bench.create("172.20.1.0/24", "i-loden1").unwrap();
    assert_eq!(bench.custom(SYSTEM), []);
    assert!(bench.cloud.next_deadline().is_some());
    bench.cloud = Cloud::restore(bench.cloud.save().unwrap()).unwrap();
    bench.wait(1);
    assert_eq!(bench.create("172.20.2.0/24", "i-loden1").unwrap_err().code, "IncorrectRouteEntryStatus");
}
