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
mod tests;
