//! The control path.

use loden_sim_cloud::control::{self, ControlError};
use loden_sim_cloud::topology::{EntryKind, EntrySpec, InstanceSpec, NextHop as Hop};
use loden_sim_cloud::{Fault, FaultKind};

use loden_routes::port::{FailureClass, ReadRouteTables};

use crate::surroundings::{TABLE, quick, raw, start, table};

#[tokio::test]
async fn the_control_path_does_what_the_handle_does() {
    let running = start(quick()).await;
    let control = control::Client::new(&format!("http://{}", running.control));
    let before = control.snapshot().await.unwrap();
    assert_eq!(before, running.handle.snapshot());
    let waiting = {
        let control = control.clone();
        tokio::spawn(async move { control.changed(before.revision).await })
    };
    control.set_quota(TABLE, 5).await.unwrap();
    assert!(waiting.await.unwrap().unwrap() > before.revision);
    let address = control.free_address("vsw-loden").await.unwrap();
    control.add_instance(&InstanceSpec::new("i-new", "vsw-loden", address)).await.unwrap();
    let entry = EntrySpec {
        destination: "172.20.7.0/24".parse().unwrap(),
        next_hops: vec![Hop::new("Instance", "i-new")],
        kind: EntryKind::Custom,
        name: "by hand".into(),
        description: String::new(),
    };
    assert!(control.insert_entry(TABLE, &entry).await.unwrap().starts_with("rte-"));
    control.associate("vsw-loden", "vtb-custom").await.unwrap();
    let view = control.snapshot().await.unwrap();
    assert_eq!((view.table(TABLE).unwrap().quota, view.table(TABLE).unwrap().used), (5, 1));
    assert_eq!(view.table("vtb-custom").unwrap().vswitches, ["vsw-loden"]);
    control.remove_entry(TABLE, entry.destination).await.unwrap();
    control.remove_instance("i-new").await.unwrap();
    let error = control.remove_instance("i-new").await.unwrap_err();
    assert!(matches!(&error, ControlError::Refused { status: 404, .. }), "{error}");
    assert_eq!(error.to_string(), "there is no instance i-new");
    let mut settings = control.settings().await.unwrap();
    settings.entry_delay_ms = 77;
    control.set_settings(&settings).await.unwrap();
    assert_eq!(running.handle.settings().entry_delay_ms, 77);
    control
        .inject(&Fault { action: None, times: 1, kind: FaultKind::Delay { milliseconds: 1 } })
        .await
        .unwrap();
    control.clear_faults().await.unwrap();
    control.expire_role_credentials().await.unwrap();
    assert!(control.calls().await.unwrap().is_empty());
    let nobody = control::Client::new("http://127.0.0.1:1").snapshot().await.unwrap_err().to_string();
    assert!(nobody.contains("is the emulator running there?"), "{nobody}");
}

#[tokio::test]
async fn lag_and_rates_are_read_and_changed_while_it_runs() {
    let running = start(quick()).await;
    let at = running.control;
    let put = async |body: &str| {
        let head = format!(
            "PUT /settings HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        raw(at, format!("{head}{body}").as_bytes()).await
    };
    let get = async |path: &str| {
        let answer = raw(at, format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes()).await;
        serde_json::from_str::<serde_json::Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let lag = r#"{"readLagMs":1500,"tableReadLagMs":{"vtb-custom":9000},"rateLimits":[{"per":"api","burst":2,"perMinute":30}]}"#;
    assert!(put(lag).await.starts_with("HTTP/1.1 204"));
    let settings = get("/settings").await;
    assert_eq!(settings["readLagMs"], 1500);
    assert_eq!(settings["tableReadLagMs"]["vtb-custom"], 9000);
    let limit = serde_json::json!({"per": "api", "burst": 2, "perMinute": 30, "status": 400, "tellRetryAfter": false});
    assert_eq!(settings["rateLimits"], serde_json::json!([limit]));
    for _ in 0..2 {
        running.client().list_entries(&table()).await.unwrap();
    }
    let failure = running.client().list_entries(&table()).await.unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Throttled, "Throttling.Api"));
    assert_eq!(get("/throttled").await, serde_json::json!({"DescribeRouteEntryList": 1}));
    for wrong in [
        r#"{"rateLimits":[{"burst":0,"perMinute":1}]}"#,
        r#"{"rateLimits":[{"burst":1}]}"#,
        r#"{"readLag":1}"#,
        r#"{"readLagMs":-1}"#,
        "[]",
    ] {
        let answer = put(wrong).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("settings: "), "{wrong}: {answer}");
    }
    assert_eq!(get("/settings").await, settings, "what is refused changes nothing");
}
