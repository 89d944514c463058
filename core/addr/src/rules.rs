//! The rules between a VPC's, its vSwitches', the pods' and the services' ranges.
//!
//! Every rule is checked, not only up to the first that is broken: a person who mends one should not meet the next one afterwards. Each broken rule
//! names the pair that breaks it.

use std::fmt;

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use crate::plan::{ClusterInputs, PODS_PER_NODE};
use crate::subnets::{contains, overlap};

/// Which rule is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A range is given with host bits.
    HostBits,
    /// A range is IPv6; this network mode is IPv4 only.
    Ipv6,
    /// There is no VPC range, or no vSwitch.
    Missing,
    /// A VPC range is outside 10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16.
    VpcRange,
    /// A VPC range's mask is not between /8 and /28.
    VpcMask,
    /// Two ranges of the VPC overlap.
    VpcOverlap,
    /// A vSwitch is in no range of the VPC.
    VswitchOutsideVpc,
    /// Two vSwitches overlap.
    VswitchOverlap,
    /// The pod CIDR is outside the private ranges.
    PodRange,
    /// The pod CIDR overlaps a range of the VPC.
    PodVpcOverlap,
    /// The pod CIDR overlaps a vSwitch.
    PodVswitchOverlap,
    /// The pod CIDR overlaps the service CIDR.
    PodServiceOverlap,
    /// The pod CIDR overlaps 100.64.0.0/10, where the VPC takes no route entries.
    PodCarrierRange,
    /// The service CIDR is outside the private ranges.
    ServiceRange,
    /// The service CIDR's mask is not between /16 and /24.
    ServiceMask,
    /// The service CIDR overlaps a vSwitch.
    ServiceVswitchOverlap,
    /// Pods per node is not one of 16, 32, 64, 128, 256.
    PodsPerNode,
    /// The pod CIDR is smaller than one node's subnet.
    NoNodeFits,
    /// The route table has no room for a single node.
    NoRouteEntryLeft,
}

/// One broken rule, with who breaks it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct BrokenRule {
    /// The rule.
    pub rule: Rule,
    /// One side, by name and value (`pod CIDR 172.16.0.0/16`).
    pub offender: String,
    /// The other side, where there is one.
    pub against: Option<String>,
    /// Why it cannot be.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for BrokenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.offender)?;
        if let Some(against) = &self.against {
            write!(f, " and {against}")?;
        }
        write!(f, ": {}; {}", self.why, self.remedy)
    }
}

/// The node mask that gives this many addresses per node, if it is one of /24 to /28.
#[must_use]
pub fn node_mask(pods_per_node: u32) -> Option<u8> {
    PODS_PER_NODE
        .contains(&pods_per_node)
        .then(|| u8::try_from(32 - pods_per_node.trailing_zeros()).unwrap_or_default())
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), prefix))
}

const PRIVATE: [IpNet; 3] = [v4(10, 0, 0, 0, 8), v4(172, 16, 0, 0, 12), v4(192, 168, 0, 0, 16)];

/// The range that the cloud keeps for its own services: the VPC takes no route entry for a destination there.
pub const CLOUD_SERVICES: IpNet = v4(100, 64, 0, 0, 10);

const PRIVATE_TEXT: &str = "10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16";

fn private(net: IpNet) -> bool {
    PRIVATE.iter().any(|range| contains(*range, net))
}

struct Findings(Vec<BrokenRule>);

impl Findings {
    fn add(
        &mut self,
        rule: Rule,
        offender: String,
        against: Option<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.0.push(BrokenRule { rule, offender, against, why: why.into(), remedy: remedy.into() });
    }
}

/// The pod CIDR that holds not even one node.
pub(crate) fn no_node_fits(inputs: &ClusterInputs) -> BrokenRule {
    let mask = node_mask(inputs.pods_per_node).unwrap_or(24);
    BrokenRule {
        rule: Rule::NoNodeFits,
        offender: format!("pod CIDR {}", inputs.pod_cidr),
        against: Some(format!("pods per node {}", inputs.pods_per_node)),
        why: format!(
            "a node's subnet is a /{mask}, larger than the whole pod CIDR, so there is no room for even one node"
        ),
        remedy: format!("choose a pod CIDR with a mask of /{mask} or shorter, or fewer pods per node"),
    }
}

pub(crate) fn broken(inputs: &ClusterInputs) -> Vec<BrokenRule> {
    let mut findings = Findings(Vec::new());
    well_formed(inputs, &mut findings);
    if !findings.0.is_empty() {
        // Comparing ranges that are not what was meant would only add noise; sizes are what they are.
        if matches!(inputs.pod_cidr, IpNet::V4(_)) {
            sizes(inputs, &mut findings);
        }
        return findings.0;
    }
    vpc(inputs, &mut findings);
    pods(inputs, &mut findings);
    services(inputs, &mut findings);
    sizes(inputs, &mut findings);
    findings.0
}

fn named(inputs: &ClusterInputs) -> Vec<(&'static str, IpNet)> {
    let mut all: Vec<(&'static str, IpNet)> = Vec::new();
    all.extend(inputs.vpc_cidrs.iter().map(|net| ("VPC CIDR", *net)));
    all.extend(inputs.vswitches.iter().map(|net| ("vSwitch", *net)));
    all.push(("pod CIDR", inputs.pod_cidr));
    all.push(("service CIDR", inputs.service_cidr));
    all
}

fn well_formed(inputs: &ClusterInputs, findings: &mut Findings) {
    for (name, net) in named(inputs) {
        if matches!(net, IpNet::V6(_)) {
            findings.add(
                Rule::Ipv6,
                format!("{name} {net}"),
                None,
                "pods reached through VPC route entries have IPv4 addresses only",
                "give an IPv4 range",
            );
        } else if net != net.trunc() {
            findings.add(
                Rule::HostBits,
                format!("{name} {net}"),
                None,
                format!("{} is not the first address of a /{}", net.addr(), net.prefix_len()),
                format!("write {} if that network is meant", net.trunc()),
            );
        }
    }
    if inputs.vpc_cidrs.is_empty() {
        findings.add(Rule::Missing, "VPC CIDR".to_owned(), None, "none is given", "give the VPC's range");
    }
    if inputs.vswitches.is_empty() {
        findings.add(
            Rule::Missing,
            "vSwitch".to_owned(),
            None,
            "none is given",
            "give the range of at least one vSwitch for the nodes",
        );
    }
}

fn vpc(inputs: &ClusterInputs, findings: &mut Findings) {
    for vpc in &inputs.vpc_cidrs {
        if !inputs.public_vpc_ranges && !private(*vpc) {
            findings.add(
                Rule::VpcRange,
                format!("VPC CIDR {vpc}"),
                None,
                format!("it is not inside one of {PRIVATE_TEXT}"),
                "choose a private range, or say that the account may use public ones (quota ack.white_list/supportVPCWithPublicIPRanges)",
            );
        }
        if !(8..=28).contains(&vpc.prefix_len()) {
            findings.add(
                Rule::VpcMask,
                format!("VPC CIDR {vpc}"),
                None,
                format!("its mask /{} is not between /8 and /28", vpc.prefix_len()),
                "choose a mask in between",
            );
        }
    }
    for (first, second) in overlapping_pairs(&inputs.vpc_cidrs) {
        findings.add(
            Rule::VpcOverlap,
            format!("VPC CIDR {first}"),
            Some(format!("VPC CIDR {second}")),
            "ranges of one VPC must not overlap",
            "change one of the two",
        );
    }
    for vswitch in &inputs.vswitches {
        if !inputs.vpc_cidrs.iter().any(|vpc| contains(*vpc, *vswitch)) {
            let ranges: Vec<String> = inputs.vpc_cidrs.iter().map(ToString::to_string).collect();
            findings.add(
                Rule::VswitchOutsideVpc,
                format!("vSwitch {vswitch}"),
                Some(format!("VPC CIDR {}", ranges.join(", "))),
                "a vSwitch is a part of its VPC's range",
                "choose a range inside the VPC's",
            );
        }
    }
    for (first, second) in overlapping_pairs(&inputs.vswitches) {
        findings.add(
            Rule::VswitchOverlap,
            format!("vSwitch {first}"),
            Some(format!("vSwitch {second}")),
            "vSwitches of one VPC must not overlap",
            "change one of the two",
        );
    }
}

fn pods(inputs: &ClusterInputs, findings: &mut Findings) {
    let pod = inputs.pod_cidr;
    let offender = || format!("pod CIDR {pod}");
    let free = free_range(inputs, pod.prefix_len());
    let elsewhere = || {
        free.map_or_else(
            || "choose another range".to_owned(),
            |net| format!("choose another range, for example {net}"),
        )
    };
    if overlap(pod, CLOUD_SERVICES) {
        findings.add(
            Rule::PodCarrierRange,
            offender(),
            Some(format!("cloud service range {CLOUD_SERVICES}")),
            "the VPC takes no route entry for a destination there",
            elsewhere(),
        );
    } else if !private(pod) {
        findings.add(
            Rule::PodRange,
            offender(),
            None,
            format!("it is not inside one of {PRIVATE_TEXT}"),
            elsewhere(),
        );
    }
    for vpc in inputs.vpc_cidrs.iter().filter(|vpc| overlap(**vpc, pod)) {
        findings.add(
            Rule::PodVpcOverlap,
            offender(),
            Some(format!("VPC CIDR {vpc}")),
            "they overlap, and a pod and a machine of the VPC could have the same address",
            elsewhere(),
        );
    }
    for vswitch in inputs.vswitches.iter().filter(|vswitch| overlap(**vswitch, pod)) {
        findings.add(
            Rule::PodVswitchOverlap,
            offender(),
            Some(format!("vSwitch {vswitch}")),
            "they overlap, and the VPC refuses route entries for addresses of a vSwitch",
            elsewhere(),
        );
    }
    if overlap(pod, inputs.service_cidr) {
        findings.add(
            Rule::PodServiceOverlap,
            offender(),
            Some(format!("service CIDR {}", inputs.service_cidr)),
            "they overlap, and a pod and a service could have the same address",
            elsewhere(),
        );
    }
}

fn services(inputs: &ClusterInputs, findings: &mut Findings) {
    let service = inputs.service_cidr;
    let offender = || format!("service CIDR {service}");
    if !private(service) {
        findings.add(
            Rule::ServiceRange,
            offender(),
            None,
            format!("it is not inside one of {PRIVATE_TEXT}"),
            "choose a private range, for example 172.21.0.0/20",
        );
    }
    if !(16..=24).contains(&service.prefix_len()) {
        findings.add(
            Rule::ServiceMask,
            offender(),
            None,
            format!("its mask /{} is not between /16 and /24", service.prefix_len()),
            "choose a mask in between",
        );
    }
    for vswitch in inputs.vswitches.iter().filter(|vswitch| overlap(**vswitch, service)) {
        findings.add(
            Rule::ServiceVswitchOverlap,
            offender(),
            Some(format!("vSwitch {vswitch}")),
            "they overlap, and a service would hide a machine with the same address",
            "choose a service CIDR outside the vSwitches",
        );
    }
}

fn sizes(inputs: &ClusterInputs, findings: &mut Findings) {
    match node_mask(inputs.pods_per_node) {
        None => findings.add(
            Rule::PodsPerNode,
            format!("pods per node {}", inputs.pods_per_node),
            None,
            "a node's subnet has a mask between /24 and /28, so its size is a power of two from 16 to 256",
            format!("choose {}", nearest_sizes(inputs.pods_per_node)),
        ),
        Some(mask) if mask < inputs.pod_cidr.prefix_len() => findings.0.push(no_node_fits(inputs)),
        Some(_) => {}
    }
    if inputs.existing_entries >= inputs.route_quota {
        findings.add(
            Rule::NoRouteEntryLeft,
            format!("route quota {}", inputs.route_quota),
            Some(format!("existing route entries {}", inputs.existing_entries)),
            "every node needs a route entry of its own, and the table has no room for one",
            "raise the quota vpc_quota_route_entrys_num or remove entries",
        );
    }
}

fn nearest_sizes(asked: u32) -> String {
    let below = PODS_PER_NODE.iter().rev().find(|size| **size < asked);
    let above = PODS_PER_NODE.iter().find(|size| **size > asked);
    match (below, above) {
        (Some(below), Some(above)) => format!("{below} or {above}"),
        (Some(only), None) | (None, Some(only)) => only.to_string(),
        (None, None) => "one of 16, 32, 64, 128 and 256".to_owned(),
    }
}

fn overlapping_pairs(nets: &[IpNet]) -> impl Iterator<Item = (IpNet, IpNet)> + '_ {
    nets.iter().enumerate().flat_map(|(number, first)| {
        nets.iter()
            .skip(number + 1)
            .filter(|second| overlap(*first, **second))
            .map(|second| (*first, *second))
    })
}

/// A range of the same size that would do, to put into the remedy.
fn free_range(inputs: &ClusterInputs, prefix: u8) -> Option<IpNet> {
    let prefix = prefix.clamp(12, 28);
    PRIVATE
        .iter()
        .rev()
        .skip(1)
        .filter_map(|range| crate::Subnets::new(*range, prefix).ok())
        .flat_map(|subnets| subnets.iter().take(4096))
        .find(|candidate| {
            !inputs.vpc_cidrs.iter().chain(&inputs.vswitches).any(|net| overlap(*net, *candidate))
                && !overlap(inputs.service_cidr, *candidate)
        })
}

#[cfg(test)]
mod tests {
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
        for (pods, mask, nodes) in [(16, 28, 256), (32, 27, 128), (64, 26, 64), (128, 25, 32), (256, 24, 16)]
        {
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
        breaks(
            Rule::VpcMask,
            |i| i.vpc_cidrs = vec![net("192.168.0.0/29")],
            ["VPC CIDR 192.168.0.0/29", "/28"],
        );
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
}
