//! The kernel's notices that something changed.
//!
//! A notice only says "look again": what is the case is read afterwards, by a listing. So a lost notice is no
//! harm as long as it is known to be lost, and the kernel says so: [`Subject::Overrun`] means everything may have changed.
//! Were an overrun ignored, a change would stay unseen until the next audit.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, epoll};

use crate::socket::NetlinkSocket;
use crate::wire;
use crate::{Error, NetNs, Result};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const NFNLGRP_NFTABLES: u32 = 7;

/// Room for a burst of notices before the kernel has to drop some.
const RECEIVE_BUFFER: usize = 1 << 20;

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Subject {
    /// A link came, went or changed.
    Link,
    /// An address came, went or changed.
    Address,
    /// A route came or went.
    Route,
    /// A routing rule came or went.
    Rule,
    /// A neighbour or forwarding entry came, went or changed.
    Neighbour,
    /// One of the kernel parameters `forwarding`, `rp_filter`, `mc_forwarding`, `proxy_neigh` or
    /// `ignore_routes_with_linkdown` changed; the kernel tells of no others.
    Netconf,
    /// Something in nf_tables changed.
    NfTables,
    /// Notices were lost: anything may have changed.
    Overrun,
}

/// A notice. Equal notices waiting together are told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// What it is about.
    pub subject: Subject,
    /// Index of the link concerned, where the notice names one.
    pub link: Option<u32>,
}

/// Listens in one network namespace for changes to links, addresses, routes, rules, neighbours, forwarding parameters
/// and nf_tables. Its descriptor is readable when notices wait.
#[derive(Debug)]
pub struct Monitor {
    sockets: Vec<NetlinkSocket>,
    epoll: OwnedFd,
}

impl Monitor {
    /// Listens in the calling thread's namespace.
    ///
    /// # Errors
    /// When the system gives no sockets or the groups cannot be joined.
    pub fn open() -> Result<Self> {
        Self::listen(None)
    }

    /// Listens in another namespace; the caller stays where it is.
    ///
    /// # Errors
    /// As [`Monitor::open`], or when the namespace cannot be entered.
    pub fn open_in(netns: &NetNs) -> Result<Self> {
        Self::listen(Some(netns))
    }

    fn listen(netns: Option<&NetNs>) -> Result<Self> {
        let what = "listen for kernel changes";
        let route = NetlinkSocket::open(libc::NETLINK_ROUTE, "rtnetlink", netns)?;
        for (name, group) in [
            ("link", RTNLGRP_LINK),
            ("neighbour", RTNLGRP_NEIGH),
            ("IPv4 address", RTNLGRP_IPV4_IFADDR),
            ("IPv4 route", RTNLGRP_IPV4_ROUTE),
            ("IPv4 rule", RTNLGRP_IPV4_RULE),
            ("IPv6 address", RTNLGRP_IPV6_IFADDR),
            ("IPv6 route", RTNLGRP_IPV6_ROUTE),
            ("IPv6 rule", RTNLGRP_IPV6_RULE),
            ("IPv4 parameter", RTNLGRP_IPV4_NETCONF),
            ("IPv6 parameter", RTNLGRP_IPV6_NETCONF),
        ] {
            route.join(name, group)?;
        }
        let nft = NetlinkSocket::open(libc::NETLINK_NETFILTER, "netfilter", netns)?;
        nft.join("nf_tables", NFNLGRP_NFTABLES)?;

        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| Error::io(what, e))?;
        let sockets = vec![route, nft];
        for (i, socket) in (0..).zip(&sockets) {
            socket.widen_receive(what, RECEIVE_BUFFER)?;
            epoll::add(&epoll, socket, epoll::EventData::new_u64(i), epoll::EventFlags::IN)
                .map_err(|e| Error::io(what, e))?;
        }
        Ok(Self { sockets, epoll })
    }

    /// Takes every notice that waits, without waiting.
    ///
    /// # Errors
    /// When a socket fails for good; open a new monitor and look at everything again.
    pub fn drain(&mut self) -> Result<BTreeSet<Notice>> {
        let mut notices = BTreeSet::new();
        for socket in &mut self.sockets {
            loop {
                match socket.receive("receive notices of kernel changes", libc::MSG_DONTWAIT) {
                    Ok(None) => break,
                    Ok(Some(())) => {
                        for received in wire::messages(socket.datagram()) {
                            notices.extend(received.map_or(Some(OVERRUN), |r| notice(&r)));
                        }
                    }
                    Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::ENOBUFS) => {
                        notices.insert(OVERRUN);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(notices)
    }

    /// Waits until there are notices and takes them; none when `timeout` passes first.
    ///
    /// # Errors
    /// As [`Monitor::drain`].
    pub fn wait(&mut self, timeout: Duration) -> Result<BTreeSet<Notice>> {
        let limit = Timespec::try_from(timeout).map_err(|e| {
            Error::io("wait for kernel changes", io::Error::new(io::ErrorKind::InvalidInput, e))
        })?;
        let mut fds = [PollFd::new(&self.epoll, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => self.drain(),
            Err(e) => Err(Error::io("wait for kernel changes", e)),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

const OVERRUN: Notice = Notice { subject: Subject::Overrun, link: None };

fn notice(received: &wire::Received<'_>) -> Option<Notice> {
    let subject = match received.kind {
        16 | 17 => Subject::Link,
        20 | 21 => Subject::Address,
        24 | 25 => Subject::Route,
        28 | 29 => Subject::Neighbour,
        32 | 33 => Subject::Rule,
        80 | 81 => Subject::Netconf,
        kind if kind >> 8 == 10 => Subject::NfTables,
        wire::NLMSG_OVERRUN => Subject::Overrun,
        _ => return None,
    };
    let link = match subject {
        // The headers of these three all have the index at the same place.
        Subject::Link | Subject::Address | Subject::Neighbour => wire::read_u32(received.payload, 4),
        _ => None,
    };
    Some(Notice { subject, link })
}
