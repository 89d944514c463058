//! From the kernel's lists to one picture.
//!
//! The lists are read one after the other. If one mentions a link that an earlier list did not have, links have come
//! since, and the whole picture is taken again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use loden_firewall::{Family, SharedChain, Table, TableName};
use loden_netlink::{self as netlink, IpFamily, RouteFilter, neighbour_flags, neighbour_state, sysctl};
use loden_node::{
    Address, FdbEntry, IPTABLES_CHAINS, Key, Link, LinkKind, Mac, Neighbour, Object, Objects, Observed,
    Route, RouteKind, Scope, Sysctl, Vxlan,
};

use crate::{Error, Kernel};

const ATTEMPTS: u32 = 5;
/// The metric the kernel gives IPv6 routes that name none.
const IPV6_METRIC: u32 = 1024;

pub(crate) fn observe(kernel: &mut Kernel, scope: &Scope) -> Result<Observed, Error> {
    for _ in 0..ATTEMPTS {
        if let Some(objects) = attempt(kernel, scope)? {
            return Ok(Observed { objects });
        }
    }
    Err(Error::Restless { attempts: ATTEMPTS })
}

/// `None` when links came or went meanwhile.
fn attempt(kernel: &mut Kernel, scope: &Scope) -> Result<Option<Objects>, Error> {
    let mut objects = Objects::default();
    let mut put = |object: Object| {
        // Of several with one key the kernel uses the first it lists.
        if scope.looks_at(&object) && objects.get(&object.key()).is_none() {
            objects.insert(object);
        }
    };

    let links = kernel.route.links()?;
    let names: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    for found in &links {
        let Some(found) = link(found, &names) else { return Ok(None) };
        put(Object::Link(found));
    }

    for found in kernel.route.addresses(None)? {
        let Some(name) = names.get(&found.index) else { return Ok(None) };
        put(Object::Address(Address { link: (*name).to_owned(), address: found.net }));
    }

    let mut watched = BTreeSet::new();
    for (index, name) in &names {
        let sample = Neighbour {
            link: (*name).to_owned(),
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            mac: Mac([0; 6]),
        };
        if !scope.looks_at(&Object::Neighbour(sample)) {
            continue;
        }
        watched.insert(*index);
        for family in [IpFamily::V4, IpFamily::V6] {
            for found in kernel.route.neighbours(family, Some(*index))? {
                if let Some(neighbour) = neighbour(&found, name) {
                    put(Object::Neighbour(neighbour));
                }
            }
        }
        for found in kernel.route.fdb(Some(*index))? {
            if let Some(entry) = fdb_entry(&found, name) {
                put(Object::Fdb(entry));
            }
        }
    }

    for family in [IpFamily::V4, IpFamily::V6] {
        for found in kernel.route.routes(family, RouteFilter::default())? {
            // One for a single type of service lives beside ours without touching it.
            if found.tos == 0 {
                let Some(route) = route(&found, &names) else { return Ok(None) };
                put(Object::Route(route));
            }
        }
    }

    for name in kernel.nft.tables()? {
        if scope.looks_at(&Object::Table(Table::new(name.family, name.name.clone())))
            && let Some(listed) = kernel.nft.table(&name)?
        {
            put(Object::Table(listed.table));
        }
    }

    for (table, chain, from) in IPTABLES_CHAINS {
        for family in [Family::Ip, Family::Ip6] {
            let name = TableName { family, name: table.to_owned() };
            // Such a table may hold all of a node's services; it is read only if there is something to find.
            if kernel.nft.has_chain(&name, chain)?
                && let Some(listed) = kernel.nft.table(&name)?
                && let Some(found) = SharedChain::find(&listed, chain, from)
            {
                put(Object::Chain(found));
            }
        }
    }

    let values = kernel.inside(|| {
        scope.sysctls.iter().map(|path| Ok((path, sysctl::read(path)?))).collect::<netlink::Result<Vec<_>>>()
    })??;
    for (path, value) in values {
        if let Some(value) = value {
            put(Object::Sysctl(Sysctl { path: path.clone(), value }));
        }
    }
    // A link's own objects may only be there if the link is.
    let whole = objects.iter().all(|object| match object {
        Object::Link(_) | Object::Sysctl(_) => true,
        other => other.link().is_none_or(|name| objects.get(&Key::Link(name.to_owned())).is_some()),
    });
    kernel.watched = watched;
    Ok(whole.then_some(objects))
}

/// `None` when the link below a tunnel is not among those listed.
fn link(found: &netlink::Link, names: &BTreeMap<u32, &str>) -> Option<Link> {
    let kind = match &found.kind {
        netlink::LinkKind::Bridge(_) => LinkKind::Bridge,
        netlink::LinkKind::Vxlan(config) => LinkKind::Vxlan(Vxlan {
            vni: config.vni,
            port: config.port.unwrap_or(0),
            local: config.local,
            group: config.group,
            parent: match config.lower {
                None => None,
                Some(lower) => Some((*names.get(&lower)?).to_owned()),
            },
            learning: config.learning,
            gbp: config.gbp,
        }),
        netlink::LinkKind::Veth => LinkKind::Other("veth".to_owned()),
        netlink::LinkKind::Ipip(_) => LinkKind::Other("ipip".to_owned()),
        netlink::LinkKind::Other(kind) => LinkKind::Other(kind.clone()),
        _ => LinkKind::Other(String::new()),
    };
    Some(Link {
        name: found.name.clone(),
        kind,
        mtu: Some(found.mtu),
        mac: found.address.map(|mac| Mac(mac.0)),
        alias: found.alias.clone(),
        up: found.up,
    })
}

/// Only what was entered by hand is an object; what the kernel learnt comes and goes by itself.
fn neighbour(found: &netlink::Neighbour, link: &str) -> Option<Neighbour> {
    let mac = Mac(found.mac?.0);
    (found.state & neighbour_state::PERMANENT != 0).then(|| Neighbour {
        link: link.to_owned(),
        address: found.addr,
        mac,
    })
}

fn fdb_entry(found: &netlink::FdbEntry, link: &str) -> Option<FdbEntry> {
    let by_hand = found.state & neighbour_state::PERMANENT != 0 && found.flags & neighbour_flags::SELF != 0;
    let destination = found.destination?;
    (by_hand && found.mac.0 != [0; 6]).then(|| FdbEntry {
        link: link.to_owned(),
        mac: Mac(found.mac.0),
        destination,
    })
}

/// `None` when it leaves by a link that is not among those listed.
fn route(found: &netlink::Route, names: &BTreeMap<u32, &str>) -> Option<Route> {
    let named = |index: u32| names.get(&index).map(|name| (*name).to_owned());
    let several = !found.hops.is_empty() || found.next_hop_object.is_some();
    Some(Route {
        table: found.table,
        destination: found.destination,
        metric: found.metric.unwrap_or(match IpFamily::of(found.destination.addr()) {
            IpFamily::V4 => 0,
            IpFamily::V6 => IPV6_METRIC,
        }),
        protocol: found.protocol,
        kind: match found.kind {
            netlink::RouteKind::Unicast if several => RouteKind::Multipath,
            netlink::RouteKind::Unicast => RouteKind::Unicast,
            netlink::RouteKind::Blackhole => RouteKind::Blackhole,
            other => RouteKind::Other(other.number()),
        },
        via: found.next_hop,
        link: match (found.link, found.kind) {
            // IPv6 hangs routes without a link on the loopback; that is the kernel's affair.
            (Some(_), netlink::RouteKind::Blackhole) | (None, _) => None,
            (Some(index), _) => Some(named(index)?),
        },
        onlink: found.onlink,
        source: found.source,
    })
}
