//! `loden plan` as a person and a script run it.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test, where a surprise is to fail loudly"
)]

use std::process::{Command, Output};

use serde_json::Value;

fn plan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loden")).arg("plan").args(arguments).output().unwrap()
}

const GOOD: [&str; 10] = [
    "--vpc-cidr",
    "192.168.0.0/16",
    "--vswitch",
    "192.168.0.0/24",
    "--pods-per-node",
    "256",
    "--pod-cidr",
    "172.16.0.0/20",
    "--service-cidr",
    "172.21.0.0/20",
];

fn with(change: &[(&str, &str)]) -> Vec<String> {
    let mut arguments: Vec<String> = GOOD.iter().map(|part| (*part).to_owned()).collect();
    for (flag, value) in change {
        match arguments.iter().position(|part| part == flag) {
            Some(place) => arguments[place + 1] = (*value).to_owned(),
            None => arguments.extend([(*flag).to_owned(), (*value).to_owned()]),
        }
    }
    arguments
}

#[test]
fn the_documented_example_is_sixteen_nodes() {
    let output = plan(&[&GOOD[..], &["-o", "json"]].concat());
    assert!(output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["nodes"], 16);
    assert_eq!(answer["nodeMask"], 24);
    assert_eq!(answer["usablePodAddressesPerNode"], 253);
    assert_eq!(answer["maxPods"], 253);
    let text = String::from_utf8(plan(&GOOD).stdout).unwrap();
    assert!(text.contains("16  (the pod CIDR is the limit; the route table has room for 200)"), "{text}");
    assert!(text.contains("kubelet maxPods"), "{text}");
}

#[test]
fn broken_rules_name_the_pair_in_both_forms() {
    for (change, pair) in [
        (("--pod-cidr", "192.168.64.0/20"), ["pod CIDR 192.168.64.0/20", "VPC CIDR 192.168.0.0/16"]),
        (("--service-cidr", "172.16.0.0/20"), ["pod CIDR 172.16.0.0/20", "service CIDR 172.16.0.0/20"]),
        (("--vswitch", "10.0.0.0/24"), ["vSwitch 10.0.0.0/24", "VPC CIDR 192.168.0.0/16"]),
        (("--pod-cidr", "172.16.0.0/26"), ["pod CIDR 172.16.0.0/26", "pods per node 256"]),
        (("--pods-per-node", "100"), ["pods per node 100", "64 or 128"]),
        (("--existing-entries", "200"), ["route quota 200", "existing route entries 200"]),
    ] {
        let arguments = with(&[change]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let text = plan(&arguments);
        assert_eq!(text.status.code(), Some(1), "{change:?}");
        let shown = String::from_utf8(text.stderr).unwrap();
        let json = plan(&[&arguments[..], &["-o", "json"]].concat());
        assert_eq!(json.status.code(), Some(1), "{change:?}");
        let broken: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert!(broken["broken"][0]["rule"].is_string());
        for side in pair {
            assert!(shown.contains(side), "{side:?} is not in: {shown}");
            assert!(broken.to_string().contains(side), "{side:?} is not in: {broken}");
        }
    }
}

#[test]
fn what_is_no_network_is_a_usage_error() {
    for bad in ["172.16.0.0", "172.16.0.0/40", "pods"] {
        let arguments = with(&[("--pod-cidr", bad)]);
        let output = plan(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8(output.stderr).unwrap().contains(bad));
    }
}
