//! What people who run the controller see and change while it runs: metrics, and the cloud-config file.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must say where")]

mod support;

use std::path::Path;

use loden_sim_cloud::Topology;
use loden_sim_cloud::topology::{AccessKeySpec, InstanceSpec, RouteTableSpec, TableKind, VSwitchSpec};
use serde_json::json;
use support::{Controller, World, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Where the controller says that it serves its metrics.
fn metrics_address(controller: &Controller) -> Option<String> {
    let log = controller.log();
    let line = log.lines().find(|line| line.contains("serving /metrics"))?;
    let at = line.find("127.0.0.1:")?;
    line.get(at..)?.split_whitespace().next().map(str::to_owned)
}

async fn scrape(address: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("# EOF\n"), "{answer}");
    answer
}

/// The value of one series.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

async fn until_value(controller: &Controller, address: &str, series: &str, wanted: f64) {
    let begun = std::time::Instant::now();
    loop {
        let text = scrape(address).await;
        if value(&text, series).is_some_and(|value| (value - wanted).abs() < f64::EPSILON) {
            return;
        }
        assert!(
            begun.elapsed() < support::DEADLINE,
            "never: {series} {wanted}\n{text}\n{}",
            controller.log()
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_metrics_tell_how_things_stand() {
    let world = World::new(20).await;
    world.join("n1");
    world.add_instance("x");
    world.put_entry("10.9.0.0/24", "i-x");
    world.cloud.set_quota(&world.table, 3).unwrap();
    let controller = world.start(&["--metrics-bind-addr=127.0.0.1:0", "--route-quota=3"]);
    until(&controller, "metrics are served", || metrics_address(&controller).is_some()).await;
    let address = metrics_address(&controller).unwrap();
    let table = &world.table;
    let entries = |state: &str| format!("loden_route_entries{{table=\"{table}\",state=\"{state}\"}}");
    until_value(&controller, &address, "loden_nodes_available", 1.0).await;
    // What was there before has waited for longer than the controller knows; only who joins is timed.
    world.join("n2");
    until_value(&controller, &address, &entries("installed"), 2.0).await;
    world.join("n3");
    until_value(&controller, &address, &entries("waiting"), 1.0).await;
    until_value(&controller, &address, "loden_nodes_available", 2.0).await;
    until_value(&controller, &address, "loden_time_to_route_seconds_count", 1.0).await;
    let text = scrape(&address).await;
    for (series, wanted) in [
        (entries("desired").as_str(), 3.0),
        (entries("foreign").as_str(), 1.0),
        (format!("loden_route_quota_used{{table=\"{table}\"}}").as_str(), 3.0),
        (format!("loden_route_quota_limit{{table=\"{table}\"}}").as_str(), 3.0),
        ("loden_nodes", 3.0),
        ("loden_leader", 1.0),
        ("loden_cloud_credentials_fetch_fails", 0.0),
        ("loden_ipam_nodes_without_subnet", 0.0),
        ("loden_ipam_subnets{cidr=\"172.20.0.0/16\",family=\"ipv4\",state=\"held\"}", 3.0),
        ("loden_ready", 1.0),
        (concat!("loden_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ] {
        assert_eq!(value(&text, series), Some(wanted), "{series}\n{text}");
    }
    for series in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
        assert!(value(&text, series).is_some_and(|value| value > 0.0), "{series}\n{text}");
    }
    let calls = value(&text, "loden_cloud_calls_total{action=\"CreateRouteEntries\",code=\"OK\"}");
    assert!(calls.is_some_and(|calls| calls >= 1.0), "{text}");
    let told = value(&text, "loden_events_total{reason=\"RouteQuotaExceeded\",type=\"Warning\"}");
    assert!(told.is_some_and(|told| told >= 1.0), "{text}");
    assert!(controller.stop().await);
}

fn write_config(path: &Path, id: &str, secret: &str, tables: &str) {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let config = json!({"Global": {"accessKeyID": encode(id), "accessKeySecret": encode(secret), "routeTableIDs": tables}});
    let next = path.with_extension("next");
    std::fs::write(&next, config.to_string()).unwrap();
    std::fs::rename(&next, path).unwrap();
}

#[tokio::test]
async fn the_cloud_config_is_reloaded_while_it_works() {
    let mut topology = Topology::example();
    topology.instances.clear();
    let vpc = topology.vpcs.first_mut().expect("a VPC");
    vpc.vswitches.push(VSwitchSpec::new("vsw-two", "cn-hangzhou-i", "192.168.1.0/24".parse().unwrap()));
    let mut second = RouteTableSpec::new("vtb-two", TableKind::Custom);
    second.vswitches.push("vsw-two".to_owned());
    vpc.route_tables.push(second);
    let mut world = World::with_topology(&topology, 20).await;
    // What the environment holds is of no use: the file's key comes first.
    world.secret = "wrong";
    world.join("n1");
    let address = world.cloud.free_address("vsw-two").unwrap();
    world.cloud.add_instance(&InstanceSpec::new("i-n2", "vsw-two", address)).unwrap();
    world.add_node("n2", json!({"providerID": "cn-hangzhou.i-n2"}));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cloud-config.conf");
    write_config(&file, "testid", "testsecret", &world.table);
    let flag = format!("--cloud-config={}", file.display());
    let controller = world.start(&[&flag, "--metrics-bind-addr=127.0.0.1:0"]);
    until(&controller, "the node of the served table is available", || world.is_available("n1")).await;
    until(&controller, "the other waits for its table", || {
        world.condition("n2").is_some_and(|(_, reason, _)| reason == "RouteTableNotServed")
    })
    .await;

    world.cloud.add_access_key(AccessKeySpec::new("second", "another")).unwrap();
    write_config(&file, "second", "another", &format!("{},vtb-two", world.table));
    until(&controller, "both are available without a restart", || world.is_available("n2")).await;
    assert_eq!(world.entries_of("vtb-two").len(), 2);
    until(&controller, "it is told", || {
        world.has_event("CloudConfigReloaded", "loden-controller", "other credentials are used")
    })
    .await;

    std::fs::write(&file, "{\"Global\": {\"accessKeySecret\": \"hunter2").unwrap();
    until(&controller, "the broken file is told", || {
        world.has_event("CloudConfigInvalid", "loden-controller", "stays in force")
    })
    .await;
    world.join("n3");
    until(&controller, "it works on", || world.is_available("n3")).await;
    let metrics = metrics_address(&controller).expect("metrics are served");
    until_value(&controller, &metrics, "loden_config_reloads_total{outcome=\"broken\"}", 1.0).await;
    let log = controller.log();
    for secret in ["hunter2", "another", "testsecret"] {
        assert!(!log.contains(secret), "a secret is in the log:\n{log}");
        assert!(world.events().iter().all(|(_, _, message)| !message.contains(secret)));
    }
    assert!(controller.stop().await);
}
