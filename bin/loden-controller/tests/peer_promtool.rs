//! The alert rules as Prometheus reads them: they are well-formed, they fire when they should, and they are silent when all is well.

#![expect(clippy::expect_used, reason = "a failing test says where")]

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::operations::{alert_file, alerts};

fn promtool(directory: &std::path::Path, arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("promtool, of Debian's package prometheus, is not installed");
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}

/// What each alert is given for an hour, a value a minute.
fn trouble(alert: &str) -> Vec<(&'static str, &'static str)> {
    let entries = |state| match state {
        "desired" => r#"loden_route_entries{table="vtb-1",state="desired"}"#,
        "installed" => r#"loden_route_entries{table="vtb-1",state="installed"}"#,
        "waiting" => r#"loden_route_entries{table="vtb-1",state="waiting"}"#,
        _ => r#"loden_route_entries{table="vtb-1",state="conflicting"}"#,
    };
    match alert {
        "LodenControllerAbsent" => vec![("loden_leader", "0x60")],
        "LodenTwoLeaders" => {
            vec![(r#"loden_leader{instance="a"}"#, "1x60"), (r#"loden_leader{instance="b"}"#, "1x60")]
        }
        "LodenControllerNotReady" => vec![("loden_leader", "1x60"), ("loden_ready", "0x60")],
        "LodenRoutesMissing" => vec![(entries("desired"), "3x60"), (entries("installed"), "2x60")],
        "LodenRouteQuotaNearlyUsed" => vec![
            (r#"loden_route_quota_used{table="vtb-1"}"#, "170x60"),
            (r#"loden_route_quota_limit{table="vtb-1"}"#, "200x60"),
        ],
        "LodenRouteQuotaExceeded" => vec![(entries("waiting"), "1x60")],
        "LodenConflictingRoutes" => vec![(entries("conflicting"), "1x60")],
        "LodenCloudAccessDenied" | "LodenCloudCallsFailing" => {
            vec![(r#"loden_cloud_calls_total{action="CreateRouteEntries",code="Forbidden.RAM"}"#, "0+6x60")]
        }
        "LodenCloudThrottled" => vec![("loden_cloud_throttled_seconds_total", "0+40x60")],
        "LodenSlowRoutes" => vec![
            (r#"loden_time_to_route_seconds_bucket{le="51.2"}"#, "0x60"),
            (r#"loden_time_to_route_seconds_bucket{le="102.4"}"#, "0+2x60"),
            (r#"loden_time_to_route_seconds_bucket{le="+Inf"}"#, "0+2x60"),
        ],
        "LodenPodCIDRNearlyUsed" => vec![
            (r#"loden_ipam_subnets{cidr="172.20.0.0/16",family="ipv4",state="free"}"#, "10x60"),
            (r#"loden_ipam_subnets{cidr="172.20.0.0/16",family="ipv4",state="held"}"#, "246x60"),
        ],
        "LodenNodesWithoutSubnet" => vec![("loden_ipam_nodes_without_subnet", "1x60")],
        "LodenCredentialsNotRenewed" => vec![("loden_cloud_credentials_fetch_fails", "1x60")],
        "LodenNodesUnserved" => vec![("loden_nodes_unserved", "1x60")],
        "LodenCloudConfigBroken" => {
            vec![(r#"loden_config_reloads_total{outcome="broken"}"#, "0x50 1x10")]
        }
        "LodenUnsafePlan" => {
            vec![(r#"loden_events_total{reason="UnsafePlan",type="Warning"}"#, "1x60")]
        }
        _ => Vec::new(),
    }
}

fn series(input: &[(&str, &str)]) -> Value {
    input.iter().map(|(series, values)| json!({"series": series, "values": values})).collect()
}

/// All is well: one leader, everything in force, calls succeed.
const WELL: &[(&str, &str)] = &[
    (r#"loden_leader{instance="a"}"#, "1x60"),
    (r#"loden_leader{instance="b"}"#, "0x60"),
    (r#"loden_ready{instance="a"}"#, "1x60"),
    (r#"loden_ready{instance="b"}"#, "0x60"),
    (r#"loden_route_entries{table="vtb-1",state="desired"}"#, "3x60"),
    (r#"loden_route_entries{table="vtb-1",state="installed"}"#, "3x60"),
    (r#"loden_route_entries{table="vtb-1",state="waiting"}"#, "0x60"),
    (r#"loden_route_entries{table="vtb-1",state="conflicting"}"#, "0x60"),
    (r#"loden_route_quota_used{table="vtb-1"}"#, "3x60"),
    (r#"loden_route_quota_limit{table="vtb-1"}"#, "200x60"),
    (r#"loden_cloud_calls_total{action="DescribeRouteEntryList",code="OK"}"#, "0+6x60"),
    ("loden_cloud_throttled_seconds_total", "0x60"),
    (r#"loden_time_to_route_seconds_bucket{le="51.2"}"#, "0+2x60"),
    (r#"loden_time_to_route_seconds_bucket{le="+Inf"}"#, "0+2x60"),
    ("loden_nodes_unserved", "0x60"),
    (r#"loden_ipam_subnets{cidr="172.20.0.0/16",family="ipv4",state="free"}"#, "250x60"),
    (r#"loden_ipam_subnets{cidr="172.20.0.0/16",family="ipv4",state="held"}"#, "6x60"),
    ("loden_ipam_nodes_without_subnet", "0x60"),
    ("loden_cloud_credentials_fetch_fails", "0x60"),
    (r#"loden_config_reloads_total{outcome="broken"}"#, "0x60"),
];

#[test]
fn alerts_fire_in_trouble_and_only_then() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("rules.yaml"), alert_file()["spec"].to_string()).unwrap();
    promtool(directory.path(), &["check", "rules", "rules.yaml"]);

    let names: Vec<String> = alerts().iter().map(|rule| rule["alert"].as_str().unwrap().to_owned()).collect();
    let count = |name: &String| json!({"expr": format!("count(ALERTS{{alertname=\"{name}\",alertstate=\"firing\"}})"), "eval_time": "58m", "exp_samples": [{"labels": "{}", "value": 1}]});
    let mut tests: Vec<Value> = Vec::new();
    for name in &names {
        let input = trouble(name);
        assert!(!input.is_empty(), "nothing here makes {name} fire");
        tests.push(
            json!({"interval": "1m", "input_series": series(&input), "promql_expr_test": [count(name)]}),
        );
    }
    let silent = json!({"expr": "count(ALERTS)", "eval_time": "58m", "exp_samples": []});
    tests.push(json!({"interval": "1m", "input_series": series(WELL), "promql_expr_test": [silent]}));
    let file = json!({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests});
    std::fs::write(directory.path().join("test.yaml"), file.to_string()).unwrap();
    promtool(directory.path(), &["test", "rules", "test.yaml"]);
}
