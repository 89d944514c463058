//! The namespaces and the cables between them: vRouter, emulators, NAT gateway, internet host, instances.
//!
//! Each instance hangs on a point-to-point port of the vRouter that answers ARP for everybody, so that packets between instances always pass
//! the vRouter, even inside one vSwitch. On a flat network they hang on a bridge instead and reach each other by themselves. Both ends of a cable are made in their namespaces at once: the machine's own namespace never
//! sees a link, and a lab killed half-way leaves nothing there.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use loden_firewall::{
    Action, Base, Chain, ChainKind, Family, Hook, Match, Policy, Rule, Table, ct_state, priority,
};
use loden_netlink::netns::NetNs;
use loden_netlink::nft::NftSocket;
use loden_netlink::{
    Address, BridgeConfig, LinkSettings, MacAddress, NewLink, NewLinkKind, Route, RouteSocket, VethPeer,
    sysctl,
};

use crate::error::{Context, Result};
use crate::forwarding::{NAT_PORT, SERVICES_PORT};
use crate::names::LabName;

/// Address of the metadata service, fixed by the vendor.
pub const METADATA_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
/// Address of the cloud and the Kubernetes API.
pub const API_ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 100, 0, 10);
/// The vRouter's address towards the services.
pub const SERVICES_GATEWAY: Ipv4Addr = Ipv4Addr::new(100, 100, 0, 1);
/// The elastic address of the NAT gateway (TEST-NET-3 of RFC 5737, as the internet in examples is).
pub const ELASTIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// A host on the internet.
pub const INTERNET_HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const INTERNET_PREFIX: u8 = 24;

/// An instance's link towards the vRouter.
pub const INSTANCE_LINK: &str = "eth0";
const INTERNET_LINK: &str = "inet0";
/// MTU inside a VPC.
const MTU: u32 = 1500;

/// The bridge of a flat network, in the vRouter's namespace: a switch with the router on it.
const SWITCH: &str = "loden-switch";

/// The router's own address on it, locally administered. Without one, a bridge takes that of a port, and another when that port goes.
const ROUTER_MAC: MacAddress = MacAddress([0x02, 0x4c, 0x4f, 0x44, 0x4e, 0x01]);

/// The fixed parts of a lab's network.
#[derive(Clone, Debug)]
pub struct Fabric {
    lab: LabName,
    /// The virtual router.
    pub vrouter: NetNs,
    /// Where the emulators listen.
    pub services: NetNs,
    flat: bool,
}

impl Fabric {
    /// Makes the vRouter, the services' namespace, the NAT gateway (in the first vSwitch) and the internet host; on a flat network also the
    /// instances' switch.
    ///
    /// # Errors
    /// A namespace, link, address or rule could not be made.
    pub fn build(lab: &LabName, vswitches: &[Ipv4Net], nat: Ipv4Addr, flat: bool) -> Result<Self> {
        let vrouter = member(lab, "vrouter")?;
        settle(
            &vrouter,
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv4/conf/all/rp_filter", "0"),
                ("net/ipv4/conf/default/rp_filter", "0"),
            ],
        )?;
        let fabric = Self { lab: lab.clone(), vrouter, services: member(lab, "services")?, flat };
        if flat {
            let bridge = NewLinkKind::Bridge(BridgeConfig::default());
            let switch = NewLink {
                mtu: Some(MTU),
                address: Some(ROUTER_MAC),
                up: true,
                ..NewLink::new(SWITCH, bridge)
            };
            let action = || "make the switch".to_owned();
            RouteSocket::open_in(&fabric.vrouter).during(action)?.create_link(&switch).during(action)?;
        }
        fabric.cable(SERVICES_PORT, &fabric.services)?;
        dress(&fabric.services, INSTANCE_LINK, host_net(API_ADDRESS), Some(SERVICES_GATEWAY))?;
        add_address(&fabric.services, "lo", host_net(METADATA_ADDRESS))?;
        fabric.build_internet(vswitches, nat)?;
        Ok(fabric)
    }

    fn build_internet(&self, vswitches: &[Ipv4Net], nat: Ipv4Addr) -> Result<()> {
        let nat_vswitch = vswitches.first().copied().unwrap_or_default();
        let gateway = member(&self.lab, "nat")?;
        let internet = member(&self.lab, "internet")?;
        self.cable(NAT_PORT, &gateway)?;
        let address =
            Ipv4Net::new(nat, nat_vswitch.prefix_len()).during(|| format!("give the NAT gateway {nat}"))?;
        dress(&gateway, INSTANCE_LINK, address, Some(crate::spec::gateway(nat_vswitch)))?;
        let outer = |address| {
            Ipv4Net::new(address, INTERNET_PREFIX).during(|| format!("give the internet {address}"))
        };
        veth(&gateway, INTERNET_LINK, &internet, INSTANCE_LINK)?;
        add_address(&gateway, INTERNET_LINK, outer(ELASTIC_ADDRESS)?)?;
        add_address(&internet, INSTANCE_LINK, outer(INTERNET_HOST)?)?;
        settle(&gateway, &[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")])?;
        install(&gateway, &nat_rules(vswitches))
    }

    /// Makes an instance: its namespace, its port, its address and default route.
    ///
    /// # Errors
    /// A namespace, link or address could not be made.
    pub fn attach(&self, name: &str, address: Ipv4Addr, vswitch: Ipv4Net) -> Result<NetNs> {
        let namespace = member(&self.lab, name)?;
        // Forwarding is whose business it is: flanneld's on a node, nobody's elsewhere.
        settle(&namespace, &[("net/ipv4/ip_forward", "0")])?;
        if self.flat {
            self.switch(name, &namespace)?;
        } else {
            self.cable(name, &namespace)?;
        }
        let net = Ipv4Net::new(address, vswitch.prefix_len())
            .during(|| format!("give {name} the address {address}"))?;
        dress(&namespace, INSTANCE_LINK, net, Some(crate::spec::gateway(vswitch)))?;
        Ok(namespace)
    }

    /// Unplugs an instance and removes its namespace.
    ///
    /// # Errors
    /// The port or the namespace could not be removed.
    pub fn detach(&self, name: &str) -> Result<()> {
        let action = || format!("unplug {name} from the vRouter");
        let mut socket = RouteSocket::open_in(&self.vrouter).during(action)?;
        if let Some(port) = socket.link_by_name(name).during(action)? {
            socket.delete_link(port.index).during(action)?;
        }
        NetNs::delete_named(&self.lab.namespace(name)).during(action)
    }

    /// Cuts the power of an instance: its link goes down and nothing in it answers any more.
    ///
    /// # Errors
    /// The link could not be changed.
    pub fn cut(&self, name: &str) -> Result<()> {
        let action = || format!("cut off {name}");
        let namespace = NetNs::open_named(&self.lab.namespace(name)).during(action)?;
        let mut socket = RouteSocket::open_in(&namespace).during(action)?;
        if let Some(link) = socket.link_by_name(INSTANCE_LINK).during(action)? {
            let down = LinkSettings { up: Some(false), ..LinkSettings::default() };
            socket.set_link(link.index, down).during(action)?;
        }
        Ok(())
    }

    /// The vRouter's link by which it reaches an instance.
    #[must_use]
    pub fn port(&self, instance: &str) -> String {
        if self.flat { SWITCH.to_owned() } else { instance.to_owned() }
    }

    /// Plugs an instance into the switch.
    fn switch(&self, port: &str, to: &NetNs) -> Result<()> {
        veth(&self.vrouter, port, to, INSTANCE_LINK)?;
        let action = || format!("plug {port} into the switch");
        let mut socket = RouteSocket::open_in(&self.vrouter).during(action)?;
        let index = |link: Option<loden_netlink::Link>| link.map_or(0, |link| link.index);
        let switch = index(socket.link_by_name(SWITCH).during(action)?);
        let port = index(socket.link_by_name(port).during(action)?);
        let enslaved = LinkSettings { master: Some(switch), ..LinkSettings::default() };
        socket.set_link(port, enslaved).during(action)
    }

    fn cable(&self, port: &str, to: &NetNs) -> Result<()> {
        veth(&self.vrouter, port, to, INSTANCE_LINK)?;
        let conf = |key: &str| format!("net/ipv4/conf/{port}/{key}");
        for (key, value) in [
            (conf("proxy_arp"), "1"),
            (conf("rp_filter"), "0"),
            (format!("net/ipv4/neigh/{port}/proxy_delay"), "0"),
        ] {
            sysctl::write_in(&self.vrouter, &key, value)
                .during(|| format!("prepare port {port} of the vRouter"))?;
        }
        Ok(())
    }
}

/// Makes one of the lab's namespaces: loopback up, IPv6 off (the VPC has none).
///
/// # Errors
/// The namespace exists or cannot be made.
pub fn member(lab: &LabName, what: &str) -> Result<NetNs> {
    let namespace =
        NetNs::create_named(&lab.namespace(what)).during(|| format!("make {what} of lab {lab}"))?;
    settle(
        &namespace,
        &[("net/ipv6/conf/all/disable_ipv6", "1"), ("net/ipv6/conf/default/disable_ipv6", "1")],
    )?;
    let mut socket = RouteSocket::open_in(&namespace).during(|| format!("configure {what}"))?;
    if let Some(loopback) = socket.link_by_name("lo").during(|| format!("configure {what}"))? {
        socket
            .set_link(loopback.index, LinkSettings::up())
            .during(|| format!("bring up loopback of {what}"))?;
    }
    Ok(namespace)
}

fn settle(namespace: &NetNs, parameters: &[(&str, &str)]) -> Result<()> {
    let action = || format!("set kernel parameters of {}", namespace.path().display());
    namespace
        .run(|| {
            parameters.iter().try_for_each(|(name, value)| match sysctl::read(name)? {
                // A kernel without IPv6 has nothing to switch off.
                None if name.starts_with("net/ipv6/") => Ok(()),
                _ => sysctl::write(name, value),
            })
        })
        .during(action)?
        .during(action)
}

fn veth(near: &NetNs, name: &str, far: &NetNs, far_name: &str) -> Result<()> {
    let peer = VethPeer {
        name: far_name.to_owned(),
        mtu: Some(MTU),
        netns: Some(far.clone()),
        ..VethPeer::default()
    };
    let link = NewLink { mtu: Some(MTU), up: true, ..NewLink::new(name, NewLinkKind::Veth(peer)) };
    let action = || format!("plug in {name}");
    RouteSocket::open_in(near).during(action)?.create_link(&link).during(action)?;
    let mut socket = RouteSocket::open_in(far).during(action)?;
    let index = socket.link_by_name(far_name).during(action)?.map_or(0, |link| link.index);
    socket.set_link(index, LinkSettings::up()).during(action)
}

/// Address and default route of a link.
fn dress(namespace: &NetNs, link: &str, address: Ipv4Net, gateway: Option<Ipv4Addr>) -> Result<()> {
    let action = || format!("configure {link} with {address}");
    add_address(namespace, link, address)?;
    let Some(gateway) = gateway else { return Ok(()) };
    let mut socket = RouteSocket::open_in(namespace).during(action)?;
    let index = socket.link_by_name(link).during(action)?.map_or(0, |link| link.index);
    let default = Route::new(IpNet::V4(Ipv4Net::default())).via(IpAddr::V4(gateway)).dev(index).onlink();
    socket.replace_route(default).during(action)
}

fn add_address(namespace: &NetNs, link: &str, address: Ipv4Net) -> Result<()> {
    let action = || format!("give {link} the address {address}");
    let mut socket = RouteSocket::open_in(namespace).during(action)?;
    let index = socket.link_by_name(link).during(action)?.map_or(0, |link| link.index);
    socket.add_address(Address::new(index, IpNet::V4(address))).during(action)
}

fn host_net(address: Ipv4Addr) -> Ipv4Net {
    Ipv4Net::from(address)
}

/// The NAT gateway's rules: only the VPC's own addresses are translated and let out, so a pod that was not masqueraded by its node gets
/// nowhere, as on the real thing.
fn nat_rules(vswitches: &[Ipv4Net]) -> Table {
    let out = || Match::OutputLink(INTERNET_LINK.to_owned());
    let mut forward =
        vec![Rule::new([Match::CtState(ct_state::ESTABLISHED | ct_state::RELATED)], Action::Accept)];
    let mut translate = Vec::new();
    for vswitch in vswitches {
        let inside = || Match::source(IpNet::V4(*vswitch));
        forward.push(Rule::new([out(), inside()], Action::Accept));
        translate.push(Rule::new(
            [out(), inside()],
            Action::SourceNat { addr: IpAddr::V4(ELASTIC_ADDRESS), port: None },
        ));
    }
    let closed = Base {
        kind: ChainKind::Filter,
        hook: Hook::Forward,
        priority: priority::FILTER,
        policy: Policy::Drop,
    };
    let after = Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT);
    Table::new(Family::Ip, "loden-nat")
        .with_comment("the VPC's NAT gateway")
        .with_chain("forward", Chain::hooked(closed, forward))
        .with_chain("postrouting", Chain::hooked(after, translate))
}

/// What a node has instead of kube-proxy: service addresses translated to one pod each.
#[must_use]
pub fn service_rules(services: &[(Ipv4Addr, Ipv4Addr)]) -> Table {
    let rules = || -> Vec<Rule> {
        let to_backend = |(address, backend): &(Ipv4Addr, Ipv4Addr)| {
            let translate = Action::DestinationNat { addr: IpAddr::V4(*backend), port: None };
            Rule::new([Match::destination(IpNet::V4(host_net(*address)))], translate)
        };
        services.iter().map(to_backend).collect()
    };
    let at = |hook| Base::accepting(ChainKind::Nat, hook, priority::DSTNAT);
    Table::new(Family::Ip, "loden-lab-services")
        .with_comment("stand-in for kube-proxy")
        .with_chain("prerouting", Chain::hooked(at(Hook::Prerouting), rules()))
        .with_chain("output", Chain::hooked(at(Hook::Output), rules()))
}

/// Makes one nf_tables table of a namespace equal to `table`, in one transaction.
///
/// # Errors
/// The kernel refused.
pub fn install(namespace: &NetNs, table: &Table) -> Result<()> {
    let action = || format!("install nf_tables table {}", table.name);
    NftSocket::open_in(namespace).during(action)?.set_table(table).during(action)?;
    Ok(())
}
