//! Links on the wire: `linux/if_link.h`.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use super::link::{
    BridgeConfig, BridgePort, IpipConfig, Link, LinkKind, LinkSettings, MacAddress, NewLink, NewLinkKind,
    OperState, VxlanConfig,
};
use super::{AF_BRIDGE, AF_UNSPEC};
use crate::NetNs;
use crate::wire::{Attr, F_CREATE, F_EXCL, Message, attrs, attrs_after, find};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
pub(super) const IFLA_EXT_MASK: u16 = 29;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_LINK_NETNSID: u16 = 37;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;

const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_VLAN_FILTERING: u16 = 7;

const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP: u16 = 2;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_TTL: u16 = 5;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PROXY: u16 = 11;
const IFLA_VXLAN_RSC: u16 = 12;
const IFLA_VXLAN_L2MISS: u16 = 13;
const IFLA_VXLAN_L3MISS: u16 = 14;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_GBP: u16 = 23;

const IFLA_IPTUN_LINK: u16 = 1;
const IFLA_IPTUN_LOCAL: u16 = 2;
const IFLA_IPTUN_REMOTE: u16 = 3;

const IFF_UP: u32 = 1;
const IFF_PROMISC: u32 = 0x100;
const IFF_ALLMULTI: u32 = 0x200;
const IFF_LOWER_UP: u32 = 0x1_0000;
/// Leave the statistics out of answers: they are most of the bytes and never asked for.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

pub(super) fn header(family: u8, index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[0] = family;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&mask.to_ne_bytes());
    fixed
}

fn flag_if(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

fn basics(m: &mut Message, name: &str, mtu: Option<u32>, mac: Option<MacAddress>, netns: Option<&NetNs>) {
    m.text(IFLA_IFNAME, name);
    if let Some(mtu) = mtu {
        m.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = mac {
        m.bytes(IFLA_ADDRESS, &mac.0);
    }
    if let Some(netns) = netns {
        m.u32(IFLA_NET_NS_FD, raw(netns));
    }
}

fn raw(netns: &NetNs) -> u32 {
    u32::try_from(netns.as_fd().as_raw_fd()).unwrap_or(u32::MAX)
}

pub(super) fn create(link: &NewLink) -> Message {
    let flags = flag_if(link.up, IFF_UP);
    let mut m = Message::new(RTM_NEWLINK, F_CREATE | F_EXCL, &header(AF_UNSPEC, 0, flags, flags));
    basics(&mut m, &link.name, link.mtu, link.address, link.netns.as_ref());
    if let Some(master) = link.master {
        m.u32(IFLA_MASTER, master);
    }
    m.nest(IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, link.kind.name());
        match &link.kind {
            NewLinkKind::Veth(peer) => m.nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.fixed(&header(AF_UNSPEC, 0, 0, 0));
                    basics(m, &peer.name, peer.mtu, peer.address, peer.netns.as_ref());
                });
            }),
            NewLinkKind::Bridge(config) => m.nest(IFLA_INFO_DATA, |m| {
                if config.vlan_filtering {
                    m.u8(IFLA_BR_VLAN_FILTERING, 1);
                }
            }),
            NewLinkKind::Vxlan(config) => m.nest(IFLA_INFO_DATA, |m| vxlan_data(m, config)),
            NewLinkKind::Ipip(config) => m.nest(IFLA_INFO_DATA, |m| ipip_data(m, config)),
            NewLinkKind::Other(_) => {}
        }
    });
    if matches!(&link.kind, NewLinkKind::Vxlan(_)) || link.kind.name() == "ifb" {
        // Go's flanneld and Go's bandwidth plugin leave these devices without a queue.
        m.u32(IFLA_TXQLEN, 0);
    }
    m
}

fn vxlan_data(m: &mut Message, config: &VxlanConfig) {
    m.u32(IFLA_VXLAN_ID, config.vni);
    if let Some(lower) = config.lower {
        m.u32(IFLA_VXLAN_LINK, lower);
    }
    if let Some(local) = config.local {
        m.ip(if local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 }, local);
    }
    if let Some(group) = config.group {
        m.ip(if group.is_ipv4() { IFLA_VXLAN_GROUP } else { IFLA_VXLAN_GROUP6 }, group);
    }
    m.u8(IFLA_VXLAN_TTL, 0);
    m.u8(IFLA_VXLAN_LEARNING, u8::from(config.learning));
    for off in [IFLA_VXLAN_PROXY, IFLA_VXLAN_RSC, IFLA_VXLAN_L2MISS, IFLA_VXLAN_L3MISS] {
        m.u8(off, 0);
    }
    if let Some(port) = config.port {
        m.bytes(IFLA_VXLAN_PORT, &port.to_be_bytes());
    }
    if config.gbp {
        m.bytes(IFLA_VXLAN_GBP, &[]);
    }
}

fn ipip_data(m: &mut Message, config: &IpipConfig) {
    if let Some(lower) = config.lower {
        m.u32(IFLA_IPTUN_LINK, lower);
    }
    for (kind, addr) in [(IFLA_IPTUN_LOCAL, config.local), (IFLA_IPTUN_REMOTE, config.remote)] {
        if let Some(addr) = addr {
            m.ip(kind, addr.into());
        }
    }
}

/// A link's own settings are changed with the message that makes one; it must not make one.
pub(super) fn set_bridge(index: u32, config: BridgeConfig) -> Message {
    let mut m = Message::new(RTM_NEWLINK, 0, &header(AF_UNSPEC, index, 0, 0));
    m.nest(IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, "bridge");
        m.nest(IFLA_INFO_DATA, |m| m.u8(IFLA_BR_VLAN_FILTERING, u8::from(config.vlan_filtering)));
    });
    m
}

pub(super) fn set(index: u32, settings: &LinkSettings) -> Message {
    let mut flags = 0;
    let mut mask = 0;
    for (wanted, flag) in
        [(settings.up, IFF_UP), (settings.promiscuous, IFF_PROMISC), (settings.all_multicast, IFF_ALLMULTI)]
    {
        if let Some(on) = wanted {
            flags |= flag_if(on, flag);
            mask |= flag;
        }
    }
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_UNSPEC, index, flags, mask));
    if let Some(name) = &settings.name {
        m.text(IFLA_IFNAME, name);
    }
    if let Some(mtu) = settings.mtu {
        m.u32(IFLA_MTU, mtu);
    }
    if let Some(mac) = settings.address {
        m.bytes(IFLA_ADDRESS, &mac.0);
    }
    if let Some(master) = settings.master {
        m.u32(IFLA_MASTER, master);
    }
    if let Some(alias) = &settings.alias {
        m.bytes(IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(length) = settings.tx_queue_length {
        m.u32(IFLA_TXQLEN, length);
    }
    if let Some(netns) = &settings.netns {
        m.u32(IFLA_NET_NS_FD, raw(netns));
    }
    m
}

/// Settings of a kind go into the message that makes links, without the flag that makes one.
pub(super) fn set_vxlan(index: u32, learning: bool) -> Message {
    let mut m = Message::new(RTM_NEWLINK, 0, &header(AF_UNSPEC, index, 0, 0));
    m.nest(IFLA_LINKINFO, |m| {
        m.text(IFLA_INFO_KIND, "vxlan");
        m.nest(IFLA_INFO_DATA, |m| m.u8(IFLA_VXLAN_LEARNING, u8::from(learning)));
    });
    m
}

/// An alias cannot be given at creation; it is set by name right after.
pub(super) fn set_alias(name: &str, alias: &str) -> Message {
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_UNSPEC, 0, 0, 0));
    m.text(IFLA_IFNAME, name);
    m.bytes(IFLA_IFALIAS, alias.as_bytes());
    m
}

pub(super) fn set_port(
    index: u32,
    hairpin: Option<bool>,
    isolated: Option<bool>,
    learning: Option<bool>,
) -> Message {
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_BRIDGE, index, 0, 0));
    m.nest(IFLA_PROTINFO, |m| {
        for (wanted, attr) in
            [(hairpin, IFLA_BRPORT_MODE), (isolated, IFLA_BRPORT_ISOLATED), (learning, IFLA_BRPORT_LEARNING)]
        {
            if let Some(on) = wanted {
                m.u8(attr, u8::from(on));
            }
        }
    });
    m
}

pub(super) fn delete(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &header(AF_UNSPEC, index, 0, 0))
}

pub(super) fn get(index: u32, name: Option<&str>) -> Message {
    let mut m = Message::new(RTM_GETLINK, 0, &header(AF_UNSPEC, index, 0, 0));
    if let Some(name) = name {
        m.text(IFLA_IFNAME, name);
    }
    m.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    m
}

pub(super) fn read(payload: &[u8]) -> Option<Link> {
    let index = payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    let flags = payload.get(8..12)?.try_into().ok().map(u32::from_ne_bytes)?;
    let mut link = Link {
        index,
        name: String::new(),
        kind: LinkKind::Device,
        mtu: 0,
        address: None,
        up: flags & IFF_UP != 0,
        lower_up: flags & IFF_LOWER_UP != 0,
        oper_state: OperState::Unknown,
        master: None,
        lower: None,
        peer_netns_id: None,
        alias: None,
        promiscuous: flags & IFF_PROMISC != 0,
        all_multicast: flags & IFF_ALLMULTI != 0,
        tx_queue_length: 0,
        port: None,
    };
    for attr in attrs_after(payload, 16) {
        match attr.kind {
            IFLA_IFNAME => link.name = attr.text(),
            IFLA_MTU => link.mtu = attr.u32()?,
            IFLA_TXQLEN => link.tx_queue_length = attr.u32()?,
            IFLA_ADDRESS => link.address = attr.value.try_into().ok().map(MacAddress),
            IFLA_OPERSTATE => link.oper_state = oper_state(attr.u8()?),
            IFLA_MASTER => link.master = attr.u32(),
            IFLA_LINK => link.lower = attr.u32().filter(|i| *i != 0),
            IFLA_LINK_NETNSID => link.peer_netns_id = attr.i32(),
            IFLA_IFALIAS => link.alias = Some(attr.text()).filter(|a| !a.is_empty()),
            IFLA_PROMISCUITY => link.promiscuous |= flags & IFF_PROMISC != 0,
            IFLA_LINKINFO => (link.kind, link.port) = link_info(attr),
            _ => {}
        }
    }
    Some(link)
}

fn oper_state(number: u8) -> OperState {
    match number {
        1 => OperState::NotPresent,
        2 => OperState::Down,
        3 => OperState::LowerLayerDown,
        4 => OperState::Testing,
        5 => OperState::Dormant,
        6 => OperState::Up,
        _ => OperState::Unknown,
    }
}

fn link_info(info: Attr<'_>) -> (LinkKind, Option<BridgePort>) {
    let data = find(info.value, IFLA_INFO_DATA).map_or(&[][..], |a| a.value);
    let kind = match find(info.value, IFLA_INFO_KIND).map(|a| a.text()).as_deref() {
        None => LinkKind::Device,
        Some("bridge") => LinkKind::Bridge(BridgeConfig {
            vlan_filtering: find(data, IFLA_BR_VLAN_FILTERING).and_then(|a| a.u8()).unwrap_or(0) != 0,
        }),
        Some("veth") => LinkKind::Veth,
        Some("vxlan") => LinkKind::Vxlan(read_vxlan(data)),
        Some("ipip") => LinkKind::Ipip(read_ipip(data)),
        Some(other) => LinkKind::Other(other.to_owned()),
    };
    let is_port = find(info.value, IFLA_INFO_SLAVE_KIND).is_some_and(|a| a.text() == "bridge");
    let port = is_port.then(|| {
        let data = find(info.value, IFLA_INFO_SLAVE_DATA).map_or(&[][..], |a| a.value);
        let byte = |kind| find(data, kind).and_then(|a| a.u8()).unwrap_or(0);
        BridgePort {
            hairpin: byte(IFLA_BRPORT_MODE) != 0,
            isolated: byte(IFLA_BRPORT_ISOLATED) != 0,
            learning: byte(IFLA_BRPORT_LEARNING) != 0,
            state: byte(IFLA_BRPORT_STATE),
        }
    });
    (kind, port)
}

fn read_vxlan(data: &[u8]) -> VxlanConfig {
    let mut config = VxlanConfig::default();
    for attr in attrs(data) {
        match attr.kind {
            IFLA_VXLAN_ID => config.vni = attr.u32().unwrap_or(0),
            IFLA_VXLAN_LINK => config.lower = attr.u32().filter(|i| *i != 0),
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => config.local = attr.ip(),
            IFLA_VXLAN_GROUP | IFLA_VXLAN_GROUP6 => config.group = attr.ip(),
            IFLA_VXLAN_PORT => config.port = attr.be16(),
            IFLA_VXLAN_LEARNING => config.learning = attr.u8().unwrap_or(0) != 0,
            IFLA_VXLAN_GBP => config.gbp = true,
            _ => {}
        }
    }
    config
}

fn read_ipip(data: &[u8]) -> IpipConfig {
    let address = |kind| match find(data, kind)?.ip()? {
        IpAddr::V4(addr) if !addr.is_unspecified() => Some(addr),
        _ => None,
    };
    IpipConfig {
        local: address(IFLA_IPTUN_LOCAL),
        remote: address(IFLA_IPTUN_REMOTE),
        lower: find(data, IFLA_IPTUN_LINK).and_then(|a| a.u32()).filter(|index| *index != 0),
    }
}
