//! What a lab is asked to be, and the addresses that follow from it.
//!
//! The planner of `loden plan` judges the inputs before anything is started. The addresses inside a vSwitch follow the vendor's rules: the first
//! address and the last three are reserved, the gateway is the third from the end.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use loden_addr::{ClusterInputs, ClusterPlan};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How pods of different nodes reach each other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backend {
    /// By the VPC's route tables.
    #[default]
    Alloc,
    /// In VXLAN packets between the nodes; the VPC knows nothing of pods.
    Vxlan,
    /// By routes on the nodes, which share one layer 2.
    HostGw,
}

impl Backend {
    /// All of them, by the name in `Backend.Type`.
    pub const NAMES: [&str; 3] = ["alloc", "vxlan", "host-gw"];

    /// The name in `Backend.Type`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alloc => "alloc",
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
        }
    }

    /// Whether the VPC's route tables have an entry for each node.
    #[must_use]
    pub fn needs_entries(self) -> bool {
        self == Self::Alloc
    }

    /// Whether the instances hang on one bridge instead of ports of the vRouter.
    #[must_use]
    pub fn is_flat(self) -> bool {
        self == Self::HostGw
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Alloc, Self::Vxlan, Self::HostGw]
            .into_iter()
            .find(|backend| backend.name() == text)
            .ok_or_else(|| {
                Error::Refused(format!("the lab has no backend {text:?}; it has {}", Self::NAMES.join(", ")))
            })
    }
}

/// The parameters of a lab: those of cluster creation, and those of the emulated cloud.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    /// How pods of different nodes reach each other.
    pub backend: Backend,
    /// Kubernetes nodes to begin with.
    pub nodes: u32,
    /// Pods to start on each of them.
    pub pods: u32,
    /// Addresses per node's subnet: 16, 32, 64, 128 or 256.
    pub pods_per_node: u32,
    /// The range that is cut into one subnet per node.
    pub pod_cidr: Ipv4Net,
    /// The range of service addresses.
    pub service_cidr: Ipv4Net,
    /// The VPC's range.
    pub vpc_cidr: Ipv4Net,
    /// Ranges of its vSwitches; nodes are spread over them.
    pub vswitches: Vec<Ipv4Net>,
    /// Custom entries that each route table takes.
    pub quota: u32,
    /// Milliseconds from the creation or deletion of a route entry until it is effective.
    pub entry_delay_ms: u64,
    /// The vSwitch that routes by a custom table of its own; all others use the system table.
    pub custom_table: Option<Ipv4Net>,
    /// Route tables that the controllers are told to serve besides the system table.
    pub route_table_ids: Vec<String>,
    /// Pod CIDR of a second cluster in the same VPC, with as many nodes and pods as the first.
    pub second_cluster: Option<Ipv4Net>,
    /// Whether the controllers sign with an access key of their cloud-config file instead of their instance's RAM role.
    pub access_key: bool,
}

impl Default for Inputs {
    fn default() -> Self {
        let net = |a, b, c, prefix| Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), prefix);
        Self {
            backend: Backend::default(),
            nodes: 3,
            pods: 2,
            pods_per_node: 64,
            pod_cidr: net(172, 20, 0, 16),
            service_cidr: net(172, 21, 0, 20),
            vpc_cidr: net(192, 168, 0, 16),
            vswitches: usual_vswitches(net(192, 168, 0, 16)),
            quota: loden_addr::DEFAULT_ROUTE_QUOTA,
            entry_delay_ms: 200,
            custom_table: None,
            route_table_ids: Vec::new(),
            second_cluster: None,
            access_key: false,
        }
    }
}

impl Inputs {
    /// Time until a changed route entry is effective.
    #[must_use]
    pub fn entry_delay(&self) -> Duration {
        Duration::from_millis(self.entry_delay_ms)
    }

    /// Prefix length of a node's subnet.
    #[must_use]
    pub fn node_mask(&self) -> u8 {
        loden_addr::node_mask(self.pods_per_node).unwrap_or(24)
    }

    /// Pod CIDR of each cluster.
    #[must_use]
    pub fn pod_cidrs(&self) -> Vec<Ipv4Net> {
        [self.pod_cidr].into_iter().chain(self.second_cluster).collect()
    }

    /// Puts the inputs before the planner.
    ///
    /// # Errors
    /// Every rule that the inputs break, and more nodes or pods than the addresses allow. A quota below the number of nodes is no error: what
    /// happens then is worth seeing.
    pub fn plan(&self) -> Result<ClusterPlan> {
        let plan = self.plan_cluster(self.pod_cidr)?;
        if let Some(second) = self.second_cluster {
            self.plan_cluster(second)?;
            if loden_addr::overlap(IpNet::V4(second), IpNet::V4(self.pod_cidr)) {
                return Err(Error::Refused(format!(
                    "the clusters' pod CIDRs {} and {second} overlap, and in one VPC a destination leads to one place; choose others",
                    self.pod_cidr
                )));
            }
        }
        if self.backend.is_flat() && self.vswitches.len() != 1 {
            return Err(Error::Refused(format!(
                "nodes with backend {} share one layer 2, which is one vSwitch; {} are given",
                self.backend,
                self.vswitches.len()
            )));
        }
        if !self.backend.needs_entries() && (self.custom_table.is_some() || self.second_cluster.is_some()) {
            return Err(Error::Refused(format!(
                "with backend {} there are no route entries to see in a custom table or beside a second cluster's; leave those out",
                self.backend
            )));
        }
        if let Some(custom) = self.custom_table.filter(|custom| !self.vswitches.contains(custom)) {
            let vswitches: Vec<String> = self.vswitches.iter().map(ToString::to_string).collect();
            return Err(Error::Refused(format!(
                "there is no vSwitch {custom} to give a route table of its own; there are {}",
                vswitches.join(", ")
            )));
        }
        let places: usize = self.vswitches.iter().map(|vswitch| usable_addresses(*vswitch).count()).sum();
        let clusters = self.pod_cidrs().len();
        // Each cluster's controller, the plain instance and the NAT gateway need an address too.
        let nodes = usize::try_from(self.nodes).unwrap_or(usize::MAX).saturating_mul(clusters);
        let needed = nodes.saturating_add(clusters + 2);
        if needed > places {
            return Err(Error::Refused(format!(
                "the vSwitches have {places} addresses for instances and the lab needs {needed}; give larger vSwitches or more of them"
            )));
        }
        Ok(plan)
    }

    fn plan_cluster(&self, pod_cidr: Ipv4Net) -> Result<ClusterPlan> {
        let plan = loden_addr::plan(&ClusterInputs {
            vpc_cidrs: vec![IpNet::V4(self.vpc_cidr)],
            vswitches: self.vswitches.iter().copied().map(IpNet::V4).collect(),
            pods_per_node: self.pods_per_node,
            pod_cidr: IpNet::V4(pod_cidr),
            service_cidr: IpNet::V4(self.service_cidr),
            route_quota: self.quota,
            existing_entries: 0,
            public_vpc_ranges: false,
        })
        .map_err(|broken| {
            let rules: Vec<String> = broken.iter().map(|rule| format!("  {rule}")).collect();
            Error::Refused(format!("this cluster cannot be built:\n{}", rules.join("\n")))
        })?;
        if u64::from(self.nodes) > plan.nodes_by_cidr {
            return Err(Error::Refused(format!(
                "{} nodes do not fit: pod CIDR {pod_cidr} has {} subnets of {} addresses; choose a larger pod CIDR or fewer pods per node",
                self.nodes, plan.nodes_by_cidr, self.pods_per_node
            )));
        }
        if self.pods > plan.max_pods {
            return Err(Error::Refused(format!(
                "{} pods on each node do not fit: a subnet of {} addresses has {} for pods",
                self.pods, self.pods_per_node, plan.max_pods
            )));
        }
        Ok(plan)
    }
}

/// The vSwitches of a VPC for which none are given: its first two ranges of 256 addresses, or halves of it if it is smaller.
#[must_use]
pub fn usual_vswitches(vpc: Ipv4Net) -> Vec<Ipv4Net> {
    let prefix = vpc.prefix_len().saturating_add(1).clamp(24, 32);
    vpc.subnets(prefix).map(|subnets| subnets.take(2).collect()).unwrap_or_default()
}

/// The gateway's address in a vSwitch: the third from the end.
#[must_use]
pub fn gateway(vswitch: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(vswitch.broadcast().to_bits().saturating_sub(2))
}

/// Addresses that instances of a vSwitch can have, in order.
pub fn usable_addresses(vswitch: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    let first = vswitch.network().to_bits().saturating_add(1);
    (first..gateway(vswitch).to_bits()).map(Ipv4Addr::from_bits)
}

/// A free address for the next instance, in the vSwitch with the fewest of them, and that vSwitch's place in the list.
///
/// Addresses begin at the eleventh where the vSwitch is large enough, which keeps them easy to tell from gateways.
#[must_use]
pub fn next_address(vswitches: &[Ipv4Net], used: &BTreeSet<Ipv4Addr>) -> Option<(usize, Ipv4Addr)> {
    let taken = |vswitch: &Ipv4Net| used.iter().filter(|address| vswitch.contains(*address)).count();
    let mut by_load: Vec<(usize, usize)> =
        vswitches.iter().map(taken).enumerate().map(|(at, load)| (load, at)).collect();
    by_load.sort_unstable();
    by_load.into_iter().find_map(|(_, at)| {
        let vswitch = *vswitches.get(at)?;
        let skipped = if vswitch.prefix_len() <= 26 { 10 } else { 0 };
        let free = |address: &Ipv4Addr| !used.contains(address);
        usable_addresses(vswitch)
            .skip(skipped)
            .find(free)
            .or_else(|| usable_addresses(vswitch).find(free))
            .map(|address| (at, address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_can_be_built() {
        let plan = Inputs::default().plan().unwrap();
        assert_eq!(plan.node_mask, 26);
        assert!(plan.nodes >= 200);
    }

    #[test]
    fn what_the_planner_refuses_is_refused_with_its_words() {
        let inputs = Inputs { pod_cidr: "192.168.64.0/20".parse().unwrap(), ..Inputs::default() };
        let text = inputs.plan().unwrap_err().to_string();
        assert!(text.contains("pod CIDR 192.168.64.0/20 and VPC CIDR 192.168.0.0/16"), "{text}");
    }

    #[test]
    fn more_nodes_than_subnets_or_addresses_are_refused() {
        let inputs = Inputs { nodes: 17, pod_cidr: "172.20.0.0/22".parse().unwrap(), ..Inputs::default() };
        assert!(inputs.plan().unwrap_err().to_string().contains("17 nodes do not fit"));
        let inputs = Inputs { vswitches: vec!["192.168.0.0/29".parse().unwrap()], ..Inputs::default() };
        let text = inputs.plan().unwrap_err().to_string();
        assert!(text.contains("4 addresses") && text.contains("needs 6"), "{text}");
        assert!(Inputs { pods: 62, ..Inputs::default() }.plan().is_err());
        assert!(Inputs { quota: 2, ..Inputs::default() }.plan().is_ok());
    }

    #[test]
    fn a_second_cluster_has_pods_elsewhere_and_room_for_its_instances() {
        let second = |net: &str| Inputs { second_cluster: Some(net.parse().unwrap()), ..Inputs::default() };
        assert!(second("172.22.0.0/16").plan().is_ok());
        let text = second("172.20.128.0/17").plan().unwrap_err().to_string();
        assert!(text.contains("172.20.0.0/16 and 172.20.128.0/17 overlap"), "{text}");
        let text = second("192.168.0.0/20").plan().unwrap_err().to_string();
        assert!(text.contains("pod CIDR 192.168.0.0/20 and VPC CIDR 192.168.0.0/16"), "{text}");
        let small =
            Inputs { vswitches: vec!["192.168.0.0/28".parse().unwrap()], nodes: 5, ..Inputs::default() };
        assert!(small.plan().is_ok());
        let text = Inputs { vswitches: small.vswitches, nodes: 5, ..second("172.22.0.0/16") }.plan();
        assert!(text.unwrap_err().to_string().contains("needs 14"));
    }

    #[test]
    fn a_backend_gets_the_network_it_needs() {
        let flat = Inputs { backend: Backend::HostGw, ..Inputs::default() };
        assert!(flat.plan().unwrap_err().to_string().contains("one vSwitch; 2 are given"));
        assert!(Inputs { vswitches: flat.vswitches[..1].to_vec(), ..flat }.plan().is_ok());
        let second = Some("172.22.0.0/16".parse().unwrap());
        let overlay = Inputs { backend: Backend::Vxlan, second_cluster: second, ..Inputs::default() };
        assert!(overlay.plan().unwrap_err().to_string().contains("backend vxlan"));
        for name in Backend::NAMES {
            assert_eq!(name.parse::<Backend>().unwrap().name(), name);
        }
        assert!("udp".parse::<Backend>().is_err());
    }

    #[test]
    fn a_custom_table_needs_a_vswitch_that_is_there() {
        let of = |net: &str| Inputs { custom_table: Some(net.parse().unwrap()), ..Inputs::default() }.plan();
        assert!(of("192.168.1.0/24").is_ok());
        let text = of("192.168.2.0/24").unwrap_err().to_string();
        assert!(
            text.contains("no vSwitch 192.168.2.0/24") && text.contains("192.168.0.0/24, 192.168.1.0/24"),
            "{text}"
        );
    }

    #[test]
    fn the_usual_vswitches_lie_in_the_vpc() {
        let usual = |vpc: &str| {
            usual_vswitches(vpc.parse().unwrap()).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(usual("10.0.0.0/8"), ["10.0.0.0/24", "10.0.1.0/24"]);
        assert_eq!(usual("192.168.0.0/24"), ["192.168.0.0/25", "192.168.0.128/25"]);
    }

    #[test]
    fn addresses_spread_over_vswitches_and_keep_clear_of_the_gateway() {
        let vswitches = Inputs::default().vswitches;
        let mut used = BTreeSet::new();
        let mut given = Vec::new();
        for _ in 0..4 {
            let (_, address) = next_address(&vswitches, &used).unwrap();
            used.insert(address);
            given.push(address.to_string());
        }
        assert_eq!(given, ["192.168.0.11", "192.168.1.11", "192.168.0.12", "192.168.1.12"]);
        let small = ["192.168.0.0/28".parse().unwrap()];
        let mut used = BTreeSet::new();
        while let Some((_, address)) = next_address(&small, &used) {
            used.insert(address);
        }
        assert_eq!(used.len(), 12);
        assert!(!used.contains(&gateway(small[0])));
    }
}
