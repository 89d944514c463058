//! A pod's attachment with nothing around it: a veth pair, one end a port of the bridge, the other with an address and a default
//! route; and its removal.
//!
//! Three round trips make it: the pair with its far end, the address and route in the pod's namespace, the near end on
//! the bridge. Formats: `linux/if_link.h`, `linux/rtnetlink.h`.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use ipnet::Ipv4Net;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Error;
use crate::netlink::{Batch, Socket, flags};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const NEWROUTE: u16 = 24;

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;

const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const AF_INET: u8 = 2;
const MAIN_TABLE: u8 = 254;
const PROTO_BOOT: u8 = 3;
const UNICAST: u8 = 1;

/// Index of the pod's link. A fresh namespace has only `lo`, which is 1.
const POD_INDEX: u32 = 2;

/// What a pod is attached to and with.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// File of the pod's namespace, which has no link but `lo`.
    pub netns: String,
    /// Name of the bridge, which is up.
    pub bridge: String,
    /// Name of the bridge's end of the pair.
    pub port: String,
    /// Name of the pod's end.
    pub link: String,
    /// The pod's address.
    pub address: Ipv4Net,
    /// Its default gateway.
    pub gateway: Ipv4Addr,
}

impl Attachment {
    /// Makes it. Leaves the calling thread in the pod's namespace: a program does this once and ends.
    ///
    /// # Errors
    /// When the kernel refuses a part; what was made before stays.
    pub fn add(&self) -> Result<(), Error> {
        let own = open("/proc/self/ns/net")?;
        let mut outside = Socket::route()?;
        let bridge = index_of(&self.bridge)?;
        enter(&self.netns)?;
        let mut inside = Socket::route()?;

        let mut batch = Batch::new();
        let up = link_header(POD_INDEX, IFF_UP);
        let peer_netns = u32::try_from(own.as_raw_fd()).unwrap_or(u32::MAX);
        batch.message(NEWLINK, flags::CREATE | flags::EXCL, &up).text(IFLA_IFNAME, &self.link);
        batch.nest(IFLA_LINKINFO, |b| {
            b.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |b| {
                b.nest(VETH_INFO_PEER, |b| {
                    b.raw(&link_header(0, 0)).text(IFLA_IFNAME, &self.port).u32(IFLA_NET_NS_FD, peer_netns);
                });
            });
        });
        let prefix = self.address.prefix_len();
        let [a, b, c, d] = POD_INDEX.to_ne_bytes();
        batch
            .message(NEWADDR, flags::CREATE | flags::EXCL, &[AF_INET, prefix, 0, 0, a, b, c, d])
            .ip(IFA_LOCAL, self.address.addr())
            .ip(IFA_ADDRESS, self.address.addr())
            .ip(IFA_BROADCAST, self.address.broadcast());
        batch
            .message(
                NEWROUTE,
                flags::CREATE | flags::EXCL,
                &[AF_INET, 0, 0, 0, MAIN_TABLE, PROTO_BOOT, 0, UNICAST, 0, 0, 0, 0],
            )
            .ip(RTA_GATEWAY, self.gateway)
            .u32(RTA_OIF, POD_INDEX)
            .acknowledged();
        inside.run("make the pair, its address and its route", batch)?;

        let mut batch = Batch::new();
        batch.message(SETLINK, 0, &link_header(0, IFF_UP));
        batch.text(IFLA_IFNAME, &self.port).u32(IFLA_MASTER, bridge).acknowledged();
        outside.run("put the near end on the bridge", batch)
    }
}

/// Removes a link of another namespace by its name; a pair goes as a whole. Leaves the calling thread there.
///
/// # Errors
/// When there is no such link.
pub fn delete(netns: &str, link: &str) -> Result<(), Error> {
    enter(netns)?;
    let mut socket = Socket::route()?;
    let mut batch = Batch::new();
    batch.message(DELLINK, 0, &link_header(0, 0)).text(IFLA_IFNAME, link).acknowledged();
    socket.run("delete the link", batch)
}

/// `struct ifinfomsg`.
pub(crate) fn link_header(index: u32, up: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&up.to_ne_bytes());
    fixed[12..16].copy_from_slice(&up.to_ne_bytes());
    fixed
}

pub(crate) fn index_of(name: &str) -> Result<u32, Error> {
    let look = || {
        let any = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::netdevice::name_to_index(&any, name)
    };
    look().map_err(|e| Error::system(format!("find link {name}"), e))
}

fn open(path: &str) -> Result<File, Error> {
    File::open(path).map_err(|e| Error::system(format!("open {path}"), e))
}

fn enter(netns: &str) -> Result<(), Error> {
    use std::os::fd::AsFd as _;
    let file = open(netns)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| Error::system(format!("enter {netns}"), e))
}
