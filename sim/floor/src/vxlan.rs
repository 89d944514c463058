//! The peers of a VXLAN node with nothing around them: the device, then routes, neighbours and FDB entries in long batches.
//!
//! Formats: `linux/if_link.h`, `linux/neighbour.h`, `linux/rtnetlink.h`.

use crate::attach::{index_of, link_header};
use crate::netlink::{Batch, Socket, flags};
use crate::{Error, peers};

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;
const NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFF_UP: u32 = 1;

const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTNH_F_ONLINK: u32 = 4;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;

/// As much as goes to the kernel at once; well inside a socket's usual send buffer.
const BATCH_BYTES: usize = 64 * 1024;

/// Makes the device and `count` peers; returns how many objects the peers are.
///
/// # Errors
/// When the kernel refuses one; what was made before stays.
pub fn program(count: u16) -> Result<usize, Error> {
    let mut socket = Socket::route()?;
    let mut batch = Batch::new();
    batch.message(NEWLINK, flags::CREATE | flags::EXCL, &link_header(0, IFF_UP));
    batch.text(IFLA_IFNAME, peers::DEVICE).attr(IFLA_ADDRESS, &peers::MAC);
    batch.nest(IFLA_LINKINFO, |b| {
        b.text(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, |b| {
            b.u32(IFLA_VXLAN_ID, peers::VNI).attr(IFLA_VXLAN_LEARNING, &[0]);
            b.attr(IFLA_VXLAN_PORT, &peers::PORT.to_be_bytes());
        });
    });
    batch.acknowledged();
    socket.run("make the device", batch)?;
    let index = index_of(peers::DEVICE)?;
    let [a, b, c, d] = index.to_ne_bytes();

    let mut batch = Batch::new();
    batch
        .message(NEWADDR, flags::CREATE | flags::EXCL, &[AF_INET, 32, 0, 0, a, b, c, d])
        .ip(IFA_LOCAL, peers::ADDRESS);
    let mut objects = 0;
    for peer in peers::peers(count) {
        let [s, t] = NUD_PERMANENT.to_ne_bytes();
        let replace = flags::CREATE | flags::REPLACE;
        batch
            .message(NEWNEIGH, replace, &[AF_INET, 0, 0, 0, a, b, c, d, s, t, 0, UNICAST])
            .ip(NDA_DST, peer.vtep)
            .attr(NDA_LLADDR, &peer.mac);
        batch
            .message(NEWNEIGH, replace, &[AF_BRIDGE, 0, 0, 0, a, b, c, d, s, t, NTF_SELF, 0])
            .attr(NDA_LLADDR, &peer.mac)
            .ip(NDA_DST, peer.public_ip);
        let [f, g, h, i] = RTNH_F_ONLINK.to_ne_bytes();
        let prefix = peer.subnet.prefix_len();
        let fixed = [AF_INET, prefix, 0, 0, MAIN_TABLE, loden_node::ROUTE_PROTOCOL, 0, UNICAST, f, g, h, i];
        batch
            .message(NEWROUTE, flags::CREATE | flags::EXCL, &fixed)
            .ip(RTA_DST, peer.subnet.network())
            .ip(RTA_GATEWAY, peer.vtep)
            .u32(RTA_OIF, index);
        objects += peers::OBJECTS_PER_PEER;
        if batch.len() > BATCH_BYTES {
            batch.acknowledged();
            socket.run("program peers", std::mem::take(&mut batch))?;
        }
    }
    if !batch.is_empty() {
        batch.acknowledged();
        socket.run("program peers", batch)?;
    }
    Ok(objects)
}
