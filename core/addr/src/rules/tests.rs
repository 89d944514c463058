//! Each rule broken by itself, and the documented examples.

use super::*;
use crate::plan::{Limit, plan};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn good() -> ClusterInputs {
    ClusterInputs {
        vpc_cidrs: vec![net("192.168.0.0/16")],
        vswitches: vec![net("192.168.0.0/24")],
        pods_per_node: 256,
        pod_cidr: net("172.16.0.0/20"),
        service_cidr: net("172.21.0.0/20"),
        route_quota: 200,
        existing_entries: 0,
        public_vpc_ranges: false,
    }
}

#[test]
fn the_documented_examples_come_out() {
    let twenty = plan(&good()).unwrap();
    assert_eq!((twenty.nodes, twenty.node_mask), (16, 24));
    assert_eq!((twenty.usable_pod_addresses_per_node, twenty.max_pods, twenty.pods), (253, 253, 4048));
    assert_eq!(twenty.limit, Limit::PodCidr);
    assert_eq!(twenty.last_node_subnet, net("172.16.15.0/24"));
    assert_eq!(twenty.services, 4095);

    let sixteen = plan(&ClusterInputs { pod_cidr: net("172.20.0.0/16"), ..good() }).unwrap();
    assert_eq!((sixteen.nodes_by_cidr, sixteen.nodes_by_quota, sixteen.nodes), (256, 200, 200));
    assert_eq!(sixteen.limit, Limit::RouteQuota);
    assert_eq!(sixteen.notes.len(), 1);

    let occupied = plan(&ClusterInputs { existing_entries: 190, ..good() }).unwrap();
    assert_eq!((occupied.nodes, occupied.limit), (10, Limit::RouteQuota));
}

#[test]
fn every_size_of_node_has_its_mask() {
    for (pods, mask, nodes) in [(16, 28, 256), (32, 27, 128), (64, 26, 64), (128, 25, 32), (256, 24, 16)] {
        let plan = plan(&ClusterInputs { pods_per_node: pods, route_quota: 1000, ..good() }).unwrap();
        assert_eq!((plan.node_mask, plan.nodes), (mask, nodes));
        assert_eq!(plan.usable_pod_addresses_per_node, pods - 3);
    }
}

/// Breaks one rule; the text must name both of `pair`.
fn breaks(rule: Rule, change: impl FnOnce(&mut ClusterInputs), pair: [&str; 2]) {
    let mut inputs = good();
    change(&mut inputs);
    let broken = plan(&inputs).expect_err("must be refused");
    let found =
        broken.iter().find(|b| b.rule == rule).unwrap_or_else(|| panic!("{rule:?} not in {broken:?}"));
    let text = found.to_string();
    for side in pair {
        assert!(text.contains(side), "{side:?} is not named in: {text}");
    }
    assert!(!found.remedy.is_empty());
}

#[test]
fn a_malformed_range_hides_no_wrong_size() {
    let mut inputs = good();
    inputs.service_cidr = net("172.21.0.1/20");
    inputs.pods_per_node = 100;
    let rules: Vec<Rule> = broken(&inputs).iter().map(|broken| broken.rule).collect();
    assert_eq!(rules, [Rule::HostBits, Rule::PodsPerNode]);
}

#[test]
fn each_rule_broken_once_names_the_pair() {
    breaks(
        Rule::HostBits,
        |i| i.pod_cidr = net("172.16.0.1/20"),
        ["pod CIDR 172.16.0.1/20", "172.16.0.0/20"],
    );
    breaks(Rule::Ipv6, |i| i.pod_cidr = net("fd00::/64"), ["pod CIDR fd00::/64", "IPv4"]);
    breaks(Rule::Ipv6, |i| i.service_cidr = net("fd00::/112"), ["service CIDR fd00::/112", "IPv4"]);
    breaks(Rule::Missing, |i| i.vpc_cidrs.clear(), ["VPC CIDR", "none"]);
    breaks(Rule::Missing, |i| i.vswitches.clear(), ["vSwitch", "none"]);
    breaks(
        Rule::VpcRange,
        |i| i.vpc_cidrs = vec![net("8.0.0.0/16")],
        ["VPC CIDR 8.0.0.0/16", "192.168.0.0/16"],
    );
    breaks(Rule::VpcMask, |i| i.vpc_cidrs = vec![net("192.168.0.0/29")], ["VPC CIDR 192.168.0.0/29", "/28"]);
    breaks(
        Rule::VpcOverlap,
        |i| i.vpc_cidrs.push(net("192.168.128.0/17")),
        ["VPC CIDR 192.168.0.0/16", "VPC CIDR 192.168.128.0/17"],
    );
    breaks(
        Rule::VswitchOutsideVpc,
        |i| i.vswitches.push(net("10.0.0.0/24")),
        ["vSwitch 10.0.0.0/24", "VPC CIDR 192.168.0.0/16"],
    );
    breaks(
        Rule::VswitchOutsideVpc,
        |i| i.vswitches = vec![net("192.168.0.0/15").trunc()],
        ["vSwitch 192.168.0.0/15", "VPC CIDR 192.168.0.0/16"],
    );
    breaks(
        Rule::VswitchOverlap,
        |i| i.vswitches.push(net("192.168.0.128/25")),
        ["vSwitch 192.168.0.0/24", "vSwitch 192.168.0.128/25"],
    );
    breaks(Rule::PodRange, |i| i.pod_cidr = net("11.0.0.0/16"), ["pod CIDR 11.0.0.0/16", "10.0.0.0/8"]);
    breaks(
        Rule::PodVpcOverlap,
        |i| i.pod_cidr = net("192.168.64.0/20"),
        ["pod CIDR 192.168.64.0/20", "VPC CIDR 192.168.0.0/16"],
    );
    breaks(
        Rule::PodVpcOverlap,
        |i| {
            i.vpc_cidrs = vec![net("172.16.0.0/12")];
            i.vswitches = vec![net("172.31.0.0/24")];
            i.pod_cidr = net("172.17.0.0/16");
        },
        ["pod CIDR 172.17.0.0/16", "VPC CIDR 172.16.0.0/12"],
    );
    breaks(
        Rule::PodVswitchOverlap,
        |i| i.pod_cidr = net("192.168.0.0/20"),
        ["pod CIDR 192.168.0.0/20", "vSwitch 192.168.0.0/24"],
    );
    breaks(
        Rule::PodServiceOverlap,
        |i| i.service_cidr = net("172.16.8.0/21"),
        ["pod CIDR 172.16.0.0/20", "service CIDR 172.16.8.0/21"],
    );
    breaks(
        Rule::PodCarrierRange,
        |i| i.pod_cidr = net("100.64.0.0/16"),
        ["pod CIDR 100.64.0.0/16", "100.64.0.0/10"],
    );
    breaks(
        Rule::ServiceRange,
        |i| i.service_cidr = net("100.64.0.0/20"),
        ["service CIDR 100.64.0.0/20", "172.16.0.0/12"],
    );
    breaks(
        Rule::ServiceMask,
        |i| i.service_cidr = net("172.21.0.0/25"),
        ["service CIDR 172.21.0.0/25", "/24"],
    );
    breaks(
        Rule::ServiceMask,
        |i| i.service_cidr = net("10.128.0.0/12"),
        ["service CIDR 10.128.0.0/12", "/16"],
    );
    breaks(
        Rule::ServiceVswitchOverlap,
        |i| i.service_cidr = net("192.168.0.0/20"),
        ["service CIDR 192.168.0.0/20", "vSwitch 192.168.0.0/24"],
    );
    breaks(Rule::PodsPerNode, |i| i.pods_per_node = 100, ["pods per node 100", "64 or 128"]);
    breaks(Rule::PodsPerNode, |i| i.pods_per_node = 0, ["pods per node 0", "16"]);
    breaks(Rule::PodsPerNode, |i| i.pods_per_node = 512, ["pods per node 512", "256"]);
    breaks(
        Rule::NoNodeFits,
        |i| i.pod_cidr = net("172.16.0.0/25"),
        ["pod CIDR 172.16.0.0/25", "pods per node 256"],
    );
    breaks(
        Rule::NoRouteEntryLeft,
        |i| i.existing_entries = 200,
        ["route quota 200", "existing route entries 200"],
    );
}

#[test]
fn all_broken_rules_come_at_once() {
    let inputs = ClusterInputs {
        pod_cidr: net("192.168.0.0/20"),
        service_cidr: net("192.168.0.0/24"),
        pods_per_node: 100,
        ..good()
    };
    let rules: Vec<Rule> = plan(&inputs).unwrap_err().into_iter().map(|b| b.rule).collect();
    assert_eq!(
        rules,
        [
            Rule::PodVpcOverlap,
            Rule::PodVswitchOverlap,
            Rule::PodServiceOverlap,
            Rule::ServiceVswitchOverlap,
            Rule::PodsPerNode
        ]
    );
}

#[test]
fn the_remedy_proposes_a_range_that_works() {
    let inputs = ClusterInputs { pod_cidr: net("192.168.64.0/20"), ..good() };
    let broken = plan(&inputs).unwrap_err();
    let proposed = broken[0].remedy.rsplit(' ').next().unwrap();
    assert!(plan(&ClusterInputs { pod_cidr: net(proposed), ..good() }).is_ok(), "{proposed}");
}

#[test]
fn a_public_vpc_needs_the_allow_list_and_gets_it() {
    let inputs = ClusterInputs {
        vpc_cidrs: vec![net("8.0.0.0/16")],
        vswitches: vec![net("8.0.0.0/24")],
        public_vpc_ranges: true,
        ..good()
    };
    assert!(plan(&inputs).is_ok());
}

#[test]
fn a_service_range_in_the_vpc_is_a_note() {
    let plan = plan(&ClusterInputs { service_cidr: net("192.168.240.0/20"), ..good() }).unwrap();
    assert!(plan.notes[0].contains("service CIDR 192.168.240.0/20 overlaps VPC CIDR 192.168.0.0/16"));
}

#[test]
fn the_json_has_the_names_that_scripts_read() {
    let json = serde_json::to_value(plan(&good()).unwrap()).unwrap();
    assert_eq!(json["nodes"], 16);
    assert_eq!(json["nodeMask"], 24);
    assert_eq!(json["usablePodAddressesPerNode"], 253);
    assert_eq!(json["maxPods"], 253);
    assert_eq!(json["limit"], "pod-cidr");
}
