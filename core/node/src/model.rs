//! What a step does to the kernel beyond the object it names.
//!
//! Removing a link takes everything on it along; taking it down flushes its routes, neighbours and IPv6 addresses; removing
//! its last IPv4 address flushes its IPv4 routes and neighbours; a new MAC address flushes its neighbours. The diff
//! plays its own steps through this model so that a plan reaches its goal in one go, and the fake kernel is this
//! model. It is compared with the real kernel by random plans; where the two part, plans would need a second round.

use std::net::IpAddr;

use ipnet::IpNet;
use thiserror::Error;

use crate::{Key, Link, LinkKind, Object, Objects, Route, RouteKind, Step};

/// Why the kernel would not take a step.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// Something of that name is there already (`EEXIST`).
    #[error("{0} exists already")]
    Exists(Key),
    /// There is nothing of that name (`ENOENT`).
    #[error("{0} does not exist")]
    Missing(Key),
    /// The link it lives on is not there (`ENODEV`).
    #[error("link {0} does not exist")]
    NoLink(String),
    /// The link it lives on is down (`ENETDOWN`).
    #[error("link {0} is down")]
    LinkDown(String),
    /// No link leads to the next hop (`ENETUNREACH`).
    #[error("next hop {0} is on no network of the link")]
    NextHop(IpAddr),
    /// The kernel can only show such an object, not make it from outside.
    #[error("{0} is of a kind that is only observed, never made")]
    OnlyObserved(Key),
    /// A change of what cannot change.
    #[error("{0} cannot be changed in place")]
    Immutable(Key),
}

/// Plays one step on a picture of the kernel.
///
/// # Errors
/// As the kernel would refuse it; the picture is then unchanged.
pub(crate) fn apply(state: &mut Objects, step: &Step) -> Result<(), Refused> {
    match step {
        Step::Add(object) => {
            if state.get(&object.key()).is_some() && !matches!(object, Object::Sysctl(_)) {
                return Err(Refused::Exists(object.key()));
            }
            possible(state, object)?;
            state.insert(object.clone());
        }
        Step::Change { from, to } => {
            let key = to.key();
            let Some(have) = state.get(&key) else { return Err(Refused::Missing(key)) };
            if from.key() != key {
                return Err(Refused::Immutable(key));
            }
            match (have.clone(), to) {
                (Object::Link(have), Object::Link(want)) => change_link(state, &have, want)?,
                _ => {
                    possible(state, to)?;
                    state.insert(to.clone());
                }
            }
        }
        Step::Delete(object) => {
            if state.remove(&object.key()).is_some() {
                consequences_of_removal(state, object);
            }
        }
    }
    Ok(())
}

/// Whether the kernel would make this object now.
fn possible(state: &Objects, object: &Object) -> Result<(), Refused> {
    match object {
        Object::Chain(_)
        | Object::Link(Link { kind: LinkKind::Other(_), .. })
        | Object::Route(Route { kind: RouteKind::Multipath | RouteKind::Other(_), .. }) => {
            return Err(Refused::OnlyObserved(object.key()));
        }
        _ => {}
    }
    let Some(name) = object.link() else { return Ok(()) };
    let Some(link) = state.link(name) else { return Err(Refused::NoLink(name.to_owned())) };
    if matches!(object, Object::Route(_)) && !link.up {
        return Err(Refused::LinkDown(name.to_owned()));
    }
    match object {
        Object::Route(Route { via: Some(via), onlink: false, .. }) if !is_on(state, name, *via) => {
            Err(Refused::NextHop(*via))
        }
        _ => Ok(()),
    }
}

/// Whether a next hop is on a network of the link, by the link's addresses or by somebody's route.
fn is_on(state: &Objects, link: &str, next_hop: IpAddr) -> bool {
    state.addresses_on(link).any(|net| net.contains(&next_hop))
        || state.iter().any(|object| {
            matches!(object, Object::Route(route) if route.via.is_none()
                && route.link.as_deref() == Some(link)
                && route.destination.contains(&next_hop))
        })
        // Every link with IPv6 has such an address, which is not looked at.
        || matches!(next_hop, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn change_link(state: &mut Objects, have: &Link, want: &Link) -> Result<(), Refused> {
    if !have.is_kind_of(want) {
        return Err(Refused::Immutable(Key::Link(want.name.clone())));
    }
    let name = want.name.as_str();
    if want.mac.is_some() && want.mac != have.mac {
        state.retain(|object| !matches!(object, Object::Neighbour(n) if n.link == name));
    }
    if have.up && !want.up {
        state.retain(|object| match object {
            Object::Route(_) | Object::Neighbour(_) => object.link() != Some(name),
            Object::Address(address) => address.link != name || matches!(address.address, IpNet::V4(_)),
            _ => true,
        });
    }
    state.insert(Object::Link(Link {
        mtu: want.mtu.or(have.mtu),
        mac: want.mac.or(have.mac),
        alias: want.alias.clone().or_else(|| have.alias.clone()),
        ..want.clone()
    }));
    Ok(())
}

fn consequences_of_removal(state: &mut Objects, removed: &Object) {
    match removed {
        Object::Link(link) => {
            let name = link.name.as_str();
            // A tunnel goes down with the link its packets leave by.
            let tunnels: Vec<Object> = state
                .iter()
                .filter(|o| matches!(o, Object::Link(_)) && o.link() == Some(name))
                .cloned()
                .collect();
            state.retain(|object| object.link() != Some(name));
            for tunnel in tunnels {
                consequences_of_removal(state, &tunnel);
            }
        }
        Object::Address(gone) if matches!(gone.address, IpNet::V4(_)) => {
            let name = gone.link.as_str();
            let is_v4 = |object: &Object| matches!(object, Object::Address(a) if a.link == name && matches!(a.address, IpNet::V4(_)));
            let last = !state.iter().any(is_v4);
            let elsewhere = state
                .iter()
                .any(|o| matches!(o, Object::Address(a) if a.address.addr() == gone.address.addr()));
            state.retain(|object| match object {
                Object::Route(route) if matches!(route.destination, IpNet::V4(_)) => {
                    let flushed = last && route.link.as_deref() == Some(name);
                    let orphaned = !elsewhere && route.source == Some(gone.address.addr());
                    !flushed && !orphaned
                }
                Object::Neighbour(n) => !(last && n.link == name && matches!(n.address, IpAddr::V4(_))),
                _ => true,
            });
        }
        _ => {}
    }
}
