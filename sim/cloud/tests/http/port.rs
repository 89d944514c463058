//! What the route controller asks of the cloud, over loopback.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use loden_aliyun::vpc::{self, EntryStatus};
use loden_aliyun::{ErrorClass, codes, ecs};
use loden_cloud::{AccessKey, CallCause, Client, Credentials, Endpoint, Endpoints};
use loden_routes::model::{self as routes, EntryRef, InstanceId, NewEntry, NextHop, VpcId};
use loden_routes::port::{FailureClass, ReadRouteTables, WriteRouteTables};
use loden_sim_cloud::topology::Settings;
use loden_sim_cloud::{Fault, FaultKind};

use crate::surroundings::{TABLE, api_code, new_entry, quick, start, table};

#[tokio::test]
async fn the_port_changes_an_entry_in_place_and_reads_the_quota() {
    let running = start(Settings { entry_delay_ms: 300, ..Settings::default() }).await;
    let client = running.client();
    let one = new_entry("172.20.1.0/24", "i-loden1");
    assert!(client.create_batch(std::slice::from_ref(&one)).await.unwrap().refused.is_empty());
    let only = async || client.read_back(&table(), &[one.destination]).await.unwrap().remove(0);
    let settled = async || {
        let begun = Instant::now();
        loop {
            let entry = only().await;
            if entry.status == routes::EntryStatus::Available {
                return entry;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{entry:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let entry = settled().await;
    let old = loden_routes::plan::entry_ref(&entry);
    let moved = new_entry("172.20.1.0/24", "i-loden2");
    client.repoint(&old, &moved).await.unwrap();
    let during = only().await;
    assert_eq!(during.status, routes::EntryStatus::Modifying);
    assert_eq!(during.instance(), Some("i-loden1".into()), "packets go the old way until it has settled");
    let refused = client.repoint(&old, &moved).await.unwrap_err();
    assert_eq!(refused.class, FailureClass::Busy, "{refused}");
    let after = settled().await;
    assert_eq!((&after.id, after.instance()), (&entry.id, Some("i-loden2".into())));

    let nobody = new_entry("172.20.1.0/24", "i-nobody");
    assert_eq!(client.repoint(&old, &nobody).await.unwrap_err().class, FailureClass::NotFound);
    assert_eq!(client.quota().await.unwrap(), Some(200));
    assert!(!client.has_ipv6(&VpcId::from("vpc-loden")).await.unwrap());
}

#[tokio::test]
async fn the_port_lists_creates_reads_back_and_deletes() {
    let running = start(quick()).await;
    let client = running.client();
    let tables = client.list_tables(&VpcId::from("vpc-loden")).await.unwrap();
    assert_eq!(tables.len(), 2);
    let wanted = [new_entry("172.20.1.0/24", "i-loden1"), new_entry("172.20.2.0/24", "i-loden2")];
    assert!(client.create_batch(&wanted).await.unwrap().refused.is_empty());
    let one: IpNet = "172.20.2.0/24".parse().unwrap();
    let back = client.read_back(&table(), &[one]).await.unwrap();
    assert_eq!(back.len(), 1);
    assert_eq!(back[0].instance(), Some(InstanceId::from("i-loden2")));
    assert_eq!(back[0].description, "a + b & c = 100 % ~ ü");
    assert_eq!(client.read_back(&table(), &[]).await.unwrap(), []);
    let old = [
        EntryRef {
            table: table(),
            id: back[0].id.clone(),
            destination: one,
            next_hop: back[0].next_hops[0].clone(),
        },
        EntryRef {
            table: table(),
            id: String::new(),
            destination: "172.20.1.0/24".parse().unwrap(),
            next_hop: NextHop::instance(&"i-loden1".into()),
        },
    ];
    assert!(client.delete_batch(&old).await.unwrap().refused.is_empty());
    let left = client.list_entries(&table()).await.unwrap();
    assert!(left.iter().all(|entry| entry.instance().is_none()), "{left:?}");
    let again = client.delete_batch(&old).await.unwrap().refused;
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|refusal| refusal.failure.class == FailureClass::NotFound), "{again:?}");
    // A batch of nothing asks nobody.
    assert!(client.create_batch(&[]).await.unwrap().refused.is_empty());
}

#[tokio::test]
async fn a_list_of_several_pages_is_whole() {
    let running = start(quick()).await;
    running.handle.set_quota(TABLE, 500).unwrap();
    let entries: Vec<NewEntry> =
        (0..250).map(|n| new_entry(&format!("172.20.{n}.0/24"), "i-loden1")).collect();
    let client = running.client();
    for batch in entries.chunks(50) {
        assert!(client.create_batch(batch).await.unwrap().refused.is_empty());
    }
    let listed = client.list_entries(&table()).await.unwrap();
    assert_eq!(listed.iter().filter(|entry| entry.instance().is_some()).count(), 250);
    assert_eq!(running.handle.calls().get("DescribeRouteEntryList"), Some(&3));
    // A page that fails makes the whole list fail.
    running.handle.inject(Fault {
        action: Some("DescribeRouteEntryList".into()),
        times: 1,
        kind: FaultKind::LoseAnswer,
    });
    let failure = client.list_entries(&table()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Server, "{failure}");
}

#[tokio::test]
async fn refused_items_come_back_with_code_and_class() {
    let running = start(quick()).await;
    running.handle.set_quota(TABLE, 2).unwrap();
    let client = running.client();
    client.create_batch(&[new_entry("172.20.1.0/24", "i-loden1")]).await.unwrap();
    let refused = client
        .create_batch(&[
            new_entry("172.20.1.0/24", "i-loden2"),
            new_entry("172.20.2.0/24", "i-loden2"),
            new_entry("172.20.3.0/24", "i-loden3"),
        ])
        .await
        .unwrap()
        .refused;
    let seen: Vec<_> =
        refused.iter().map(|item| (item.failure.class, item.destination.unwrap().to_string())).collect();
    assert_eq!(
        seen,
        [
            (FailureClass::Duplicate, "172.20.1.0/24".to_owned()),
            (FailureClass::Quota, "172.20.3.0/24".to_owned())
        ]
    );
}

#[tokio::test]
async fn a_busy_vpc_is_told_and_settles_by_itself() {
    let settings = Settings { entry_delay_ms: 150, ..quick() };
    let running = start(settings).await;
    let client = running.client();
    let mut changes = running.handle.subscribe();
    client.create_batch(&[new_entry("172.20.1.0/24", "i-loden1")]).await.unwrap();
    let failure = client.create_batch(&[new_entry("172.20.2.0/24", "i-loden2")]).await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Busy, "TaskConflict"));
    // Nobody calls; the emulator's own clock settles the entry and tells subscribers.
    let settled = async {
        loop {
            changes.changed().await.unwrap();
            let view = running.handle.snapshot();
            let entries = &view.table(TABLE).unwrap().entries;
            if entries.iter().any(|entry| entry.name == "loden" && entry.status == EntryStatus::Available) {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
    client.create_batch(&[new_entry("172.20.2.0/24", "i-loden2")]).await.unwrap();
}

#[tokio::test]
async fn errors_name_the_call_the_object_the_cause_and_the_remedy() {
    let running = start(quick()).await;
    let request = vpc::DescribeRouteEntryList { route_table_id: TABLE.into(), ..Default::default() };
    let error = running.client_with("hunter2").call(&request, TABLE).await.unwrap_err();
    assert_eq!(api_code(&error), codes::SIGNATURE_DOES_NOT_MATCH);
    let text = error.to_string();
    for part in [
        "DescribeRouteEntryList",
        TABLE,
        &running.api.to_string(),
        "SignatureDoesNotMatch",
        "HTTP 400",
        "secret is wrong",
        "this test",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(!text.contains("hunter2") && !format!("{error:?}").contains("hunter2"));
    assert!(!format!("{:?}", running.client_with("hunter2")).contains("hunter2"));

    let failure = running.client_with("hunter2").list_entries(&table()).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Denied);
    assert!(failure.to_string().contains("secret is wrong"), "{failure}");

    let nowhere = Endpoint { tls: false, authority: "127.0.0.1:1".into() };
    let key = AccessKey { id: "testid".into(), secret: "s".into(), token: None };
    let client =
        Client::new("cn-hangzhou", Endpoints::all_at(nowhere), Credentials::fixed(key, "x")).unwrap();
    let text = client.call(&request, TABLE).await.unwrap_err().to_string();
    assert!(text.contains("127.0.0.1:1") && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn throttling_says_when_to_come_back() {
    let running = start(quick()).await;
    running.handle.inject(Fault {
        action: None,
        times: 1,
        kind: FaultKind::Answer {
            status: 503,
            code: codes::THROTTLING_USER.into(),
            message: "Request was denied due to user flow control.".into(),
            retry_after_s: Some(7),
        },
    });
    let failure = running.client().list_tables(&VpcId::from("vpc-loden")).await.unwrap_err();
    assert_eq!((failure.class, failure.retry_after), (FailureClass::Throttled, Some(Duration::from_secs(7))));
    assert!(!failure.request_id.is_empty());
}

#[tokio::test]
async fn a_lost_answer_leaves_the_change_made() {
    let running = start(quick()).await;
    running.handle.inject(Fault {
        action: Some("CreateRouteEntries".into()),
        times: 1,
        kind: FaultKind::LoseAnswer,
    });
    let client = running.client();
    let entry = [new_entry("172.20.1.0/24", "i-loden1")];
    assert_eq!(client.create_batch(&entry).await.unwrap_err().class, FailureClass::Server);
    let refused = client.create_batch(&entry).await.unwrap().refused;
    assert_eq!(refused[0].failure.class, FailureClass::Duplicate);
}

#[tokio::test]
async fn instances_and_their_checks() {
    let running = start(quick()).await;
    let client = running.client();
    let ids: Vec<InstanceId> = ["i-loden1", "i-none", "i-loden3"].map(InstanceId::from).to_vec();
    let found = client.describe_instances(&ids).await.unwrap();
    assert_eq!(found.len(), 2);
    let enis: Vec<String> = found.iter().map(|instance| instance.primary_eni.clone()).collect();
    assert_eq!(enis, ["eni-loden1", "eni-loden3"]);
    client.source_dest_check_off("eni-loden1").await.unwrap();
    assert_eq!(client.source_dest_check_on(&enis).await.unwrap(), ["eni-loden3"]);
    let failure = client.source_dest_check_off("eni-none").await.unwrap_err();
    assert_eq!(failure.class, FailureClass::NotFound);
    let many = ecs::DescribeInstances { max_results: Some(1_000), ..Default::default() };
    let error = client.call(&many, "").await.unwrap_err();
    assert!(matches!(&*error.cause, CallCause::Api(api) if api.class() == ErrorClass::Invalid), "{error}");
}
