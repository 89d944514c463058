//! VLANs on a bridge that filters by them: which ports, and whether the bridge itself, take part in which.
//!
//! The wire format is `linux/if_bridge.h`: attributes of the bridge family inside `IFLA_AF_SPEC` of a link message.

use std::fmt;

use super::link_message::{
    IFLA_EXT_MASK, IFLA_MASTER, RTM_DELLINK, RTM_GETLINK, RTM_NEWLINK, RTM_SETLINK, header,
};
use super::{AF_BRIDGE, RouteSocket};
use crate::Result;
use crate::wire::{Message, attrs, attrs_after, read_u16, read_u32};

const IFLA_AF_SPEC: u16 = 26;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
/// The request is for the link itself; without it, for the bridge above.
const BRIDGE_FLAGS_SELF: u16 = 2;
const BRIDGE_VLAN_INFO_PVID: u16 = 2;
const BRIDGE_VLAN_INFO_UNTAGGED: u16 = 4;
const BRIDGE_VLAN_INFO_RANGE_BEGIN: u16 = 8;
const BRIDGE_VLAN_INFO_RANGE_END: u16 = 16;
/// Listings leave VLANs out unless asked for them.
const RTEXT_FILTER_BRVLAN: u32 = 2;

/// That a link takes part in a VLAN of a bridge. Prints as `VLAN 10 pvid untagged on link 5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortVlan {
    /// The port, or the bridge itself.
    pub index: u32,
    /// VLAN identifier, 1 to 4094.
    pub vlan: u16,
    /// Frames that come in without a tag belong to it. A port has at most one such VLAN; adding another replaces it.
    pub pvid: bool,
    /// Its frames leave without a tag.
    pub untagged: bool,
    /// The link is the bridge itself: whether the machine behind it hears this VLAN.
    pub on_bridge: bool,
}

impl PortVlan {
    /// Frames in and out carry the tag.
    pub fn tagged(port: u32, vlan: u16) -> Self {
        Self { index: port, vlan, pvid: false, untagged: false, on_bridge: false }
    }

    /// What is behind the port knows nothing of VLANs and is in this one.
    pub fn access(port: u32, vlan: u16) -> Self {
        Self { pvid: true, untagged: true, ..Self::tagged(port, vlan) }
    }
}

impl fmt::Display for PortVlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VLAN {}", self.vlan)?;
        for (word, on) in [(" pvid", self.pvid), (" untagged", self.untagged)] {
            f.write_str(if on { word } else { "" })?;
        }
        write!(f, " on {} {}", if self.on_bridge { "bridge" } else { "link" }, self.index)
    }
}

pub(super) fn write(vlan: &PortVlan, add: bool) -> Message {
    let kind = if add { RTM_SETLINK } else { RTM_DELLINK };
    let mut m = Message::new(kind, 0, &header(AF_BRIDGE, vlan.index, 0, 0));
    m.nest(IFLA_AF_SPEC, |m| {
        if vlan.on_bridge {
            m.bytes(IFLA_BRIDGE_FLAGS, &BRIDGE_FLAGS_SELF.to_ne_bytes());
        }
        let mut flags = 0;
        for (on, flag) in [(vlan.pvid, BRIDGE_VLAN_INFO_PVID), (vlan.untagged, BRIDGE_VLAN_INFO_UNTAGGED)] {
            flags |= if on { flag } else { 0 };
        }
        m.bytes(IFLA_BRIDGE_VLAN_INFO, &[flags.to_ne_bytes(), vlan.vlan.to_ne_bytes()].concat());
    });
    m
}

/// A tagged range on a port, first and last included.
pub(super) fn write_range(index: u32, first: u16, last: u16) -> Message {
    let mut m = Message::new(RTM_SETLINK, 0, &header(AF_BRIDGE, index, 0, 0));
    m.nest(IFLA_AF_SPEC, |m| {
        let ends = [(BRIDGE_VLAN_INFO_RANGE_BEGIN, first), (BRIDGE_VLAN_INFO_RANGE_END, last)];
        for (flags, vlan) in ends {
            m.bytes(IFLA_BRIDGE_VLAN_INFO, &[flags.to_ne_bytes(), vlan.to_ne_bytes()].concat());
        }
    });
    m
}

/// The VLANs in one link's part of a listing.
pub(super) fn read(payload: &[u8]) -> Option<Vec<PortVlan>> {
    if *payload.first()? != AF_BRIDGE {
        return None;
    }
    let index = read_u32(payload, 4)?;
    let master = attrs_after(payload, 16).find(|a| a.kind == IFLA_MASTER).and_then(|a| a.u32());
    let vlans = attrs_after(payload, 16)
        .filter(|a| a.kind == IFLA_AF_SPEC)
        .flat_map(|spec| attrs(spec.value))
        .filter(|a| a.kind == IFLA_BRIDGE_VLAN_INFO)
        .filter_map(|info| {
            let flags = read_u16(info.value, 0)?;
            Some(PortVlan {
                index,
                vlan: read_u16(info.value, 2)?,
                pvid: flags & BRIDGE_VLAN_INFO_PVID != 0,
                untagged: flags & BRIDGE_VLAN_INFO_UNTAGGED != 0,
                // A bridge is shown as its own master here.
                on_bridge: master == Some(index),
            })
        });
    Some(vlans.collect())
}

impl RouteSocket {
    /// The VLANs of every bridge and bridge port, or of one.
    ///
    /// # Errors
    /// When the listing is not complete.
    pub fn vlans(&mut self, index: Option<u32>) -> Result<Vec<PortVlan>> {
        let mut request = Message::new(RTM_GETLINK, 0, &header(AF_BRIDGE, 0, 0, 0));
        request.u32(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
        let all = self.list("list VLANs of bridges", &request, RTM_NEWLINK, read)?;
        Ok(all.into_iter().flatten().filter(|vlan| index.is_none_or(|index| vlan.index == index)).collect())
    }
}
