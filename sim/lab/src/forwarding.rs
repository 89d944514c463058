//! How the vRouter forwards, as a value that follows from the cloud's state: which kernel table a packet from a port is looked up in, what each
//! table holds, which packets are dropped.
//!
//! Pure. The invariant is the vendor's: a packet that comes from an instance is routed by the table of *its* vSwitch, whatever route its
//! sender had in mind; the longest prefix wins; an instance's port lets only the instance's own address in and out while the source/destination
//! check of its interface is on, and lets in only what its security groups admit. If this were looser than the real thing, a cluster that works
//! here would fail on a VPC.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use loden_firewall::{Action, Base, Chain, ChainKind, Family, Hook, Match, Rule, Table, ct_state, priority};
use loden_sim_cloud::Snapshot;
use loden_sim_cloud::topology::TableKind;

/// The vRouter's port towards the emulators' namespace.
pub const SERVICES_PORT: &str = "services";
/// The vRouter's port towards the NAT gateway.
pub const NAT_PORT: &str = "nat";
/// Next hop type of the way to the internet.
pub const NAT_GATEWAY: &str = "NatGateway";
/// Next hop type of an instance.
pub const INSTANCE: &str = "Instance";
/// Next hop type of a network interface.
pub const INTERFACE: &str = "NetworkInterface";
/// Name of the vRouter's own nf_tables table.
pub const FIREWALL: &str = "loden-vpc";
/// The vRouter's link that holds the vSwitches' gateway addresses.
pub const GATEWAYS: &str = "lo";

/// Number of the first kernel table; each VPC route table gets the next free one.
const FIRST_TABLE: u32 = 1000;
/// Cloud services of the vendor live here, as a system entry of every table.
const SHARED_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// The ports of the vRouter.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Ports {
    /// Link name by instance ID.
    pub instances: BTreeMap<String, String>,
    /// Address of the emulators' namespace on its port.
    pub services: Option<Ipv4Addr>,
    /// Address of the NAT gateway on its port.
    pub nat: Option<Ipv4Addr>,
}

/// Where a kernel route leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    /// The destination is the neighbour on this port itself.
    Port(String),
    /// Over the neighbour on this port.
    Via(Ipv4Addr, String),
    /// Dropped: an address of the VPC that nobody has, or an entry whose next hop is gone.
    Nowhere,
}

/// What the vRouter should have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forwarding {
    /// Kernel table by the link that a packet came in by.
    pub lookups: BTreeMap<String, u32>,
    /// Way by kernel table and destination.
    pub routes: BTreeMap<(u32, Ipv4Net), Way>,
    /// Gateway addresses of the vSwitches.
    pub gateways: BTreeSet<Ipv4Addr>,
    /// What is dropped.
    pub firewall: Table,
}

/// Numbers for VPC route tables: once given, a number stays with its table.
#[derive(Clone, Default, Debug)]
pub struct TableNumbers(BTreeMap<String, u32>);

impl TableNumbers {
    fn number(&mut self, table: &str) -> u32 {
        let next = self.0.values().max().map_or(FIRST_TABLE, |highest| highest + 1);
        *self.0.entry(table.to_owned()).or_insert(next)
    }
}

/// Works out what the vRouter should have for this state of the cloud.
#[must_use]
pub fn desired(cloud: &Snapshot, vpc: &str, ports: &Ports, numbers: &mut TableNumbers) -> Forwarding {
    let mut forwarding = Forwarding {
        lookups: BTreeMap::new(),
        routes: BTreeMap::new(),
        gateways: BTreeSet::new(),
        firewall: firewall(cloud, ports),
    };
    let Some(vpc) = cloud.vpcs.iter().find(|candidate| candidate.id == vpc) else { return forwarding };
    let addresses = attached(cloud, ports);
    forwarding.gateways.extend(vpc.vswitches.iter().map(|vswitch| crate::spec::gateway(vswitch.cidr)));

    for table in &vpc.tables {
        let number = numbers.number(&table.id);
        if table.kind == TableKind::System {
            forwarding.lookups.insert(SERVICES_PORT.to_owned(), number);
            forwarding.lookups.insert(NAT_PORT.to_owned(), number);
            // What the vRouter says itself: answers to pings of a gateway, "fragmentation needed".
            forwarding.lookups.insert(GATEWAYS.to_owned(), number);
        }
        for vswitch in &vpc.vswitches {
            forwarding.routes.insert((number, vswitch.cidr), Way::Nowhere);
        }
        forwarding.routes.insert((number, SHARED_RANGE), to_services(ports));
        for entry in table.entries.iter().filter(|entry| entry.forwards()) {
            let (IpNet::V4(destination), Some(hop)) = (entry.destination, entry.next_hops.first()) else {
                continue;
            };
            let way = match hop.kind.as_str() {
                INSTANCE => addresses
                    .get(hop.id.as_str())
                    .map(|(address, port)| Way::Via(*address, (*port).to_owned())),
                INTERFACE => owner(cloud, &hop.id)
                    .and_then(|instance| addresses.get(instance))
                    .map(|(address, port)| Way::Via(*address, (*port).to_owned())),
                NAT_GATEWAY => ports.nat.map(|address| Way::Via(address, NAT_PORT.to_owned())),
                // Local and service entries are the routes above; other kinds of next hops do not exist in a lab.
                _ => continue,
            };
            forwarding.routes.insert((number, destination), way.unwrap_or(Way::Nowhere));
        }
        for (address, port) in addresses.values() {
            forwarding.routes.insert((number, Ipv4Net::from(*address)), Way::Port((*port).to_owned()));
        }
        if let Some(nat) = ports.nat {
            forwarding.routes.insert((number, Ipv4Net::from(nat)), Way::Port(NAT_PORT.to_owned()));
        }
    }
    for instance in &cloud.instances {
        let Some(port) = ports.instances.get(&instance.id) else { continue };
        let vswitch = instance.interfaces.first().map(|interface| &interface.vswitch);
        let table = vpc
            .vswitches
            .iter()
            .find(|candidate| Some(&candidate.id) == vswitch)
            .map(|vswitch| &vswitch.table);
        if let Some(table) = table {
            forwarding.lookups.insert(port.clone(), numbers.number(table));
        }
    }
    forwarding
}

/// The instance that has an interface.
fn owner<'a>(cloud: &'a Snapshot, interface: &str) -> Option<&'a str> {
    let has = |id: &str| id == interface;
    let instance = cloud.instances.iter().find(|one| one.interfaces.iter().any(|each| has(&each.id)))?;
    Some(&instance.id)
}

fn to_services(ports: &Ports) -> Way {
    ports.services.map_or(Way::Nowhere, |address| Way::Via(address, SERVICES_PORT.to_owned()))
}

/// Address and port of every instance that is attached, by ID.
fn attached<'a>(cloud: &'a Snapshot, ports: &'a Ports) -> BTreeMap<&'a str, (Ipv4Addr, &'a str)> {
    let mut attached = BTreeMap::new();
    for instance in &cloud.instances {
        if let (Some(port), Some(interface)) =
            (ports.instances.get(&instance.id), instance.interfaces.first())
        {
            attached.insert(instance.id.as_str(), (interface.address, port.as_str()));
        }
    }
    attached
}

/// Source/destination check and security groups.
fn firewall(cloud: &Snapshot, ports: &Ports) -> Table {
    let mut rules = Vec::new();
    let interfaces = || {
        cloud
            .instances
            .iter()
            .filter_map(|instance| Some((ports.instances.get(&instance.id)?, instance.interfaces.first()?)))
    };
    for (port, interface) in interfaces().filter(|(_, interface)| interface.source_dest_check) {
        let own = IpNet::V4(Ipv4Net::from(interface.address));
        let comment = format!("source/destination check of {}", interface.id);
        let foreign_source = [Match::InputLink(port.clone()), Match::not_source(own)];
        let foreign_destination = [Match::OutputLink(port.clone()), Match::not_destination(own)];
        rules.push(Rule::new(foreign_source, Action::Drop).with_comment(comment.clone()));
        rules.push(Rule::new(foreign_destination, Action::Drop).with_comment(comment));
    }
    // Security groups judge who may begin; answers always return.
    rules.push(Rule::new([Match::CtState(ct_state::ESTABLISHED | ct_state::RELATED)], Action::Accept));
    for (port, interface) in interfaces() {
        let Some(admitted) = &interface.ingress else { continue };
        for net in admitted {
            rules.push(Rule::new([Match::OutputLink(port.clone()), Match::source(*net)], Action::Accept));
        }
        let comment = format!("not admitted by the security groups of {}", interface.id);
        rules.push(Rule::new([Match::OutputLink(port.clone())], Action::Drop).with_comment(comment));
    }
    let base = Base::accepting(ChainKind::Filter, Hook::Forward, priority::FILTER);
    Table::new(Family::Ip, FIREWALL)
        .with_comment("what the VPC drops")
        .with_chain("forward", Chain::hooked(base, rules))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use loden_sim_cloud::topology::{EntryKind, EntrySpec, NextHop};
    use loden_sim_cloud::{Emulator, Handle};

    use super::*;
    use crate::spec::Inputs;
    use crate::{LabName, topology};

    const ONE: &str = "192.168.0.11";
    const OTHER: &str = "192.168.1.11";

    /// Two instances, one in each vSwitch.
    fn cloud() -> (LabName, Handle, Ports) {
        let lab: LabName = "x".parse().unwrap();
        let inputs = Inputs::default();
        let emulator = Emulator::new(&topology::cloud(&lab, &inputs), topology::settings(&inputs)).unwrap();
        let handle = emulator.handle();
        handle.set_entry_delay(Duration::from_secs(3600));
        for (at, (name, address)) in [("one", ONE), ("other", OTHER)].into_iter().enumerate() {
            handle.add_instance(&topology::instance(&lab, name, at, address.parse().unwrap())).unwrap();
        }
        let ports = Ports {
            instances: ["one", "other"].map(|name| (topology::instance_id(name), name.to_owned())).into(),
            services: Some("100.100.0.10".parse().unwrap()),
            nat: Some("192.168.0.1".parse().unwrap()),
        };
        (lab, handle, ports)
    }

    fn look(lab: &LabName, cloud: &Handle, ports: &Ports) -> Forwarding {
        desired(&cloud.snapshot(), &topology::vpc_id(lab), ports, &mut TableNumbers::default())
    }

    fn way(forwarding: &Forwarding, net: &str) -> Option<Way> {
        forwarding.routes.get(&(FIRST_TABLE, net.parse().unwrap())).cloned()
    }

    fn entry(net: &str, instance: &str) -> EntrySpec {
        EntrySpec {
            destination: net.parse().unwrap(),
            next_hops: vec![NextHop::new(INSTANCE, topology::instance_id(instance))],
            kind: EntryKind::Custom,
            name: String::new(),
            description: String::new(),
        }
    }

    #[test]
    fn instances_are_reached_by_their_ports_and_nobody_else_is_there() {
        let (lab, cloud, ports) = cloud();
        let forwarding = look(&lab, &cloud, &ports);
        assert_eq!(way(&forwarding, "192.168.0.11/32"), Some(Way::Port("one".to_owned())));
        assert_eq!(way(&forwarding, "192.168.0.0/24"), Some(Way::Nowhere));
        assert_eq!(
            way(&forwarding, "100.64.0.0/10"),
            Some(Way::Via([100, 100, 0, 10].into(), SERVICES_PORT.to_owned()))
        );
        assert_eq!(
            way(&forwarding, "0.0.0.0/0"),
            Some(Way::Via([192, 168, 0, 1].into(), NAT_PORT.to_owned()))
        );
        for port in ["one", "other", SERVICES_PORT, NAT_PORT, GATEWAYS] {
            assert_eq!(forwarding.lookups.get(port), Some(&FIRST_TABLE), "{port}");
        }
    }

    #[test]
    fn an_entry_leads_to_its_instance_until_that_is_gone() {
        let (lab, cloud, ports) = cloud();
        cloud.insert_entry(&topology::table_id(&lab), &entry("172.20.0.0/26", "one")).unwrap();
        let to_one = Some(Way::Via(ONE.parse().unwrap(), "one".to_owned()));
        assert_eq!(way(&look(&lab, &cloud, &ports), "172.20.0.0/26"), to_one);
        cloud.remove_instance(&topology::instance_id("one")).unwrap();
        assert_eq!(way(&look(&lab, &cloud, &ports), "172.20.0.0/26"), Some(Way::Nowhere));
    }

    #[test]
    fn each_vswitch_is_routed_by_its_own_table() {
        let (lab, cloud, ports) = cloud();
        let spec = loden_sim_cloud::topology::RouteTableSpec::new("vtb-second", TableKind::Custom);
        cloud.add_table(&topology::vpc_id(&lab), &spec).unwrap();
        cloud.associate(&topology::vswitch_id(&lab, 1), "vtb-second").unwrap();
        cloud.insert_entry("vtb-second", &entry("172.20.0.0/26", "one")).unwrap();
        let forwarding = look(&lab, &cloud, &ports);
        let second = forwarding.lookups["other"];
        assert_ne!(second, forwarding.lookups["one"]);
        assert_eq!(way(&forwarding, "172.20.0.0/26"), None, "the system table has no such entry");
        assert!(forwarding.routes.contains_key(&(second, "172.20.0.0/26".parse().unwrap())));
    }

    #[test]
    fn numbers_stay_with_their_tables() {
        let mut numbers = TableNumbers::default();
        let first = numbers.number("vtb-a");
        let second = numbers.number("vtb-b");
        assert_ne!(first, second);
        assert_eq!((numbers.number("vtb-b"), numbers.number("vtb-a")), (second, first));
    }

    #[test]
    fn the_check_and_the_security_group_become_rules_in_that_order() {
        let (lab, cloud, ports) = cloud();
        let text = look(&lab, &cloud, &ports).firewall.to_string();
        let order = [
            "iifname \"one\" ip saddr != 192.168.0.11 drop",
            "oifname \"one\" ip daddr != 192.168.0.11 drop",
            "ct state established,related accept",
            "oifname \"one\" ip saddr 172.20.0.0/16 accept",
            "oifname \"one\" drop",
        ];
        let places: Vec<Option<usize>> = order.iter().map(|rule| text.find(rule)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{text}");
    }
}
