//! The pair of links between the host and a container, for every plugin that makes one.
//!
//! Owns the pair from making to removing. Both ends are made in one step, so a killed ADD leaves a whole pair or none; the host's end has a
//! name that can be recomputed and an alias that says whose it is. Were a pair not recognised, it would stay on the node for ever; were a
//! stranger's taken for one, a running container would lose its network.

pub(crate) mod attempt;
pub(crate) mod check;
mod container;
pub(crate) mod host;

pub(crate) use container::{Wanted, bring_up, configure};
use loden_cni_protocol::error::Error;
use loden_cni_protocol::link::{MacAddress, format_mac};
use loden_cni_protocol::mark::{Marks, noted_on_port};
use loden_cni_protocol::masquerade::Stale;
use loden_netlink::{Link, LinkKind, NetNs, NewLink, NewLinkKind, RouteSocket, VethPeer};

use crate::call::Call;
use crate::netns;

/// How often another name is tried for the host's end.
const NAME_ATTEMPTS: u32 = 10;

/// A refusal of the kernel as a plugin's error.
pub(crate) fn kernel(error: loden_netlink::Error) -> Error {
    Error::from_chain(&error)
}

/// A link's hardware address as results say it; empty when it has none.
pub(crate) fn mac_of(link: &Link) -> String {
    link.address.map(|mac| format_mac(&mac.0)).unwrap_or_default()
}

/// The marks of what is made for the call's attachment.
pub(crate) fn marks(call: &Call) -> Marks<'_> {
    Marks {
        network: &call.config.name,
        ifname: &call.environment.ifname,
        container_id: &call.environment.container_id,
    }
}

/// A pair that was made.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// The container's end.
    pub(crate) near: Link,
    /// Index of the host's end.
    pub(crate) port_index: u32,
    /// Name of the host's end.
    pub(crate) port_name: String,
}

/// Makes the pair from within the container's namespace, its far end directly in `home`. The caller gives the far end its alias.
pub(crate) fn create(
    socket: &mut RouteSocket,
    call: &Call,
    mtu: Option<u32>,
    mac: Option<MacAddress>,
    home: &NetNs,
) -> Result<Pair, Error> {
    let ifname = &call.environment.ifname;
    let mut port_name = marks(call).port_name();
    for attempt in 1.. {
        let peer =
            VethPeer { name: port_name.clone(), mtu, netns: Some(home.clone()), ..VethPeer::default() };
        let pair = NewLink {
            mtu,
            address: mac.map(loden_netlink::MacAddress),
            ..NewLink::new(ifname, NewLinkKind::Veth(peer))
        };
        match socket.create_link(&pair) {
            Ok(near) => {
                let port_index = near.lower.ok_or_else(|| {
                    Error::internal(format!(
                        "the kernel does not say which link is the other end of {ifname}"
                    ))
                })?;
                return Ok(Pair { near, port_index, port_name });
            }
            Err(error) if error.is_already_there() => {
                let taken = socket.link_by_name(ifname).map_err(kernel)?.is_some();
                if taken || attempt >= NAME_ATTEMPTS {
                    break;
                }
                // The container's last pair is still being taken apart, or the name is a stranger's.
                port_name = random_name()?;
            }
            Err(error) => {
                return Err(Error::internal(format!("failed to make veth pair: {}", kernel(error))));
            }
        }
    }
    Err(Error::internal(format!(
        "container veth name ({ifname:?}) peer provided ({port_name:?}) already exists"
    )))
}

/// A name for a pair's end on the host that nobody needs to find again.
pub(crate) fn random_name() -> Result<String, Error> {
    let mut bytes = [0; 4];
    random(&mut bytes)?;
    Ok(format!("veth{:08x}", u32::from_ne_bytes(bytes)))
}

/// Fills `bytes` with random bytes from the kernel.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Error> {
    match rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(length) if length == bytes.len() => Ok(()),
        Ok(_) => Err(Error::internal("the kernel gave too few random bytes")),
        Err(error) => Err(Error::internal(format!("could not get random bytes: {error}"))),
    }
}

/// Takes the attachment's pair away, by whichever end is there. Nothing to take away is fine.
pub(crate) fn remove(call: &Call) -> Result<(), Error> {
    if let Some(sandbox) = netns::open_if_present(&call.environment.netns)? {
        let mut inside = RouteSocket::open_in(&sandbox).map_err(kernel)?;
        if let Some(link) = inside.link_by_name(&call.environment.ifname).map_err(kernel)? {
            return delete(&mut inside, link.index);
        }
    }
    // With the container's end out of sight, its namespace may still be alive somewhere and keep the pair.
    let marks = marks(call);
    let (instance, name) = (marks.instance(), marks.port_name());
    remove_ports(&mut RouteSocket::open().map_err(kernel)?, |link| match port_note(link) {
        Some(note) => note.starts_with(&instance),
        None => link.name == name && is_half_made(link),
    })
}

/// GC: takes away the ports of this network's attachments that need not stay.
pub(crate) fn collect(stale: &Stale) -> Result<(), Error> {
    remove_ports(&mut RouteSocket::open().map_err(kernel)?, |link| {
        port_note(link).is_some_and(|note| stale.has(note))
    })
}

pub(crate) fn port_note(link: &Link) -> Option<&str> {
    (link.kind == LinkKind::Veth).then(|| link.alias.as_deref().and_then(noted_on_port)).flatten()
}

/// Whether the link is as a killed ADD leaves it that did not come to mark it.
fn is_half_made(link: &Link) -> bool {
    link.kind == LinkKind::Veth && link.alias.is_none() && link.master.is_none() && !link.up
}

/// Deletes the links that are chosen; reports the first failure after having tried all.
fn remove_ports(socket: &mut RouteSocket, chosen: impl Fn(&Link) -> bool) -> Result<(), Error> {
    let mut outcome = Ok(());
    for link in socket.links().map_err(kernel)?.iter().filter(|link| chosen(link)) {
        outcome = outcome.and(delete(socket, link.index));
    }
    outcome
}

/// Deletes a link; one that is gone is fine.
pub(crate) fn delete(socket: &mut RouteSocket, index: u32) -> Result<(), Error> {
    match socket.delete_link(index) {
        Err(error) if !error.is_not_found() => Err(kernel(error)),
        _ => Ok(()),
    }
}
