//! The desired network of this node.

use ipnet::IpNet;
use loden_firewall::flannel::{self, Masquerade};
use loden_firewall::{Family, TableName};

use crate::{
    Desired, FLANNEL_TABLES, Fabric, Key, MAIN_TABLE, Mac, Object, Objects, Observed, ROUTE_PROTOCOL, Route,
    RouteKind, Scope, Sysctl, Tunnel, gateways,
};

/// The metric of the blackhole route over the own subnet. It is large so that the bridge's own route to the same
/// destination wins while the bridge is there.
///
/// Go's flanneld gives none (0), which is the metric of the bridge's own route to the same destination: with the bridge there
/// the blackhole cannot be added, and with the blackhole there first the bridge's route stands behind it and every packet
/// to a pod is dropped. With a metric of its own it stays in place while the bridge comes and goes.
pub const BLACKHOLE_METRIC: u32 = 65_535;

/// Everything the desired network of a node follows from.
///
/// Whatever the backend, a node forwards, masquerades what leaves for the world, and keeps the bridge's gateway address;
/// what leads to the peers is the [`Fabric`]. With backend `alloc` that is empty, since the cloud's route tables do it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// The cluster's networks, at most one per family.
    pub networks: Vec<IpNet>,
    /// This node's subnets, at most one per family.
    pub subnets: Vec<IpNet>,
    /// How to masquerade; `None` without `--ip-masq`.
    pub masquerade: Option<Masquerade>,
    /// Networks outside the cluster that see pods' own addresses: the VPC's. While they are not known (`None`) those that
    /// an earlier run installed stay, so that a restart without the metadata service changes nobody's address.
    pub exempt: Option<Vec<IpNet>>,
    /// Accept forwarded pod traffic explicitly.
    pub forward_rules: bool,
    /// Drop what is sent to an unused address of the own subnet instead of routing it back out.
    pub blackhole: bool,
    /// Networks of the previous run, whose leftovers are ours.
    pub previous_networks: Vec<IpNet>,
    /// The external interface.
    pub external_link: Option<String>,
    /// What leads to the peers.
    pub fabric: Fabric,
    /// This node's name.
    pub node: String,
    /// The MAC address that this node's tunnel device has or would have: published ones outlast the device.
    pub mac: Option<Mac>,
}

impl Network {
    /// Which objects are ours and which are looked at. Needed before anything can be observed.
    #[must_use]
    pub fn scope(&self) -> Scope {
        let mut networks = self.networks.clone();
        networks.extend(self.previous_networks.iter().filter(|network| !self.networks.contains(network)));
        let same_network = self.previous_networks.iter().any(|network| self.networks.contains(network));
        Scope {
            networks,
            legacy_link: self.external_link.clone().filter(|_| same_network),
            sysctls: self
                .sysctls()
                .into_iter()
                .map(|sysctl| sysctl.path)
                .chain(self.fabric.sysctls())
                .collect(),
            tunnel: self.fabric.tunnel.as_ref().map(Tunnel::device),
            node: self.node.clone(),
            macs: self.mac.into_iter().collect(),
        }
    }

    /// The desired network. It depends on the observed one in what is not ours to make: gateway addresses are kept on the
    /// bridges that carry the bridge plugin's note, peers are routed to directly where a link shares their layer 2, and the
    /// tunnel fits the link below it.
    #[must_use]
    pub fn desired(&self, observed: &Observed) -> Desired {
        let mut objects: Objects = self.sysctls().into_iter().map(Object::Sysctl).collect();
        for (family, name) in FLANNEL_TABLES {
            let of_family = |nets: &[IpNet]| {
                nets.iter().copied().find(|net| matches!(net, IpNet::V4(_)) == (family == Family::Ip))
            };
            let rules = of_family(&self.networks).zip(of_family(&self.subnets)).map(|(network, subnet)| {
                flannel::Rules {
                    network,
                    subnet,
                    exempt: self.exempt.clone().unwrap_or_else(|| as_found(observed, family, name, network)),
                    masquerade: self.masquerade,
                    forward: self.forward_rules,
                }
            });
            objects.insert(Object::Table(flannel::table(family, name, rules.as_ref())));
        }
        objects.extend(gateways(&observed.objects, &self.subnets).into_iter().map(Object::Address));
        if self.blackhole {
            objects.extend(self.subnets.iter().map(|subnet| {
                Object::Route(Route {
                    table: MAIN_TABLE,
                    destination: subnet.trunc(),
                    metric: BLACKHOLE_METRIC,
                    protocol: ROUTE_PROTOCOL,
                    kind: RouteKind::Blackhole,
                    via: None,
                    link: None,
                    onlink: false,
                    source: None,
                })
            }));
        }
        objects.extend(self.fabric.objects(observed).iter().cloned());
        Desired { scope: self.scope(), objects, dispensable: self.fabric.dispensable().into_iter().collect() }
    }

    fn sysctls(&self) -> Vec<Sysctl> {
        let mut paths = Vec::new();
        if self.networks.iter().any(|net| matches!(net, IpNet::V4(_))) {
            paths.push("net/ipv4/ip_forward");
        }
        if self.networks.iter().any(|net| matches!(net, IpNet::V6(_))) {
            paths.push("net/ipv6/conf/all/forwarding");
        }
        paths.into_iter().map(|path| Sysctl { path: path.to_owned(), value: "1".to_owned() }).collect()
    }
}

/// The exempt networks of a table as it stands.
fn as_found(observed: &Observed, family: Family, name: &str, network: IpNet) -> Vec<IpNet> {
    let key = Key::Table(TableName { family, name: name.to_owned() });
    match observed.objects.get(&key) {
        Some(Object::Table(table)) => flannel::exempt_networks(table, network),
        _ => Vec::new(),
    }
}
