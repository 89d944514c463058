//! Which addresses are on a layer 2 that this node shares.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{MAIN_TABLE, Object, Objects, ROUTE_PROTOCOL, RouteKind};

/// What the main table says about the world around, our own routes left out: networks by the length of their prefix,
/// with the link they are on, or `None` where a router or nobody leads to them.
///
/// Rules that choose another table for some packets are not looked at.
#[derive(Debug, Default)]
pub(crate) struct Around<'a> {
    by_length: BTreeMap<Reverse<u8>, BTreeMap<IpNet, Towards<'a>>>,
}

#[derive(Debug)]
struct Towards<'a> {
    metric: u32,
    link: Option<&'a str>,
}

impl<'a> Around<'a> {
    /// From everything observed. A network that a link has an address in is on that link while it is up.
    pub(crate) fn new(objects: &'a Objects) -> Self {
        let mut around = Self::default();
        for object in objects.iter() {
            match object {
                Object::Address(address) if objects.link(&address.link).is_some_and(|link| link.up) => {
                    // An address without a network around it makes nobody a neighbour.
                    let alone = address.address.prefix_len() == address.address.max_prefix_len();
                    around.put(address.address.trunc(), 0, (!alone).then_some(address.link.as_str()));
                }
                Object::Route(route) if route.table == MAIN_TABLE && route.protocol != ROUTE_PROTOCOL => {
                    let direct = route.kind == RouteKind::Unicast && route.via.is_none();
                    let link = route.link.as_deref().filter(|_| direct);
                    around.put(route.destination, route.metric, link);
                }
                _ => {}
            }
        }
        around
    }

    fn put(&mut self, net: IpNet, metric: u32, link: Option<&'a str>) {
        let of_length = self.by_length.entry(Reverse(net.prefix_len())).or_default();
        if of_length.get(&net).is_none_or(|known| metric < known.metric) {
            of_length.insert(net, Towards { metric, link });
        }
    }

    /// The link on which this address is a neighbour; `None` where it is behind a router or nowhere.
    pub(crate) fn link_to(&self, address: IpAddr) -> Option<&'a str> {
        self.by_length.iter().find_map(|(Reverse(length), nets)| {
            let net = IpNet::new(address, *length).ok()?.trunc();
            nets.get(&net).map(|towards| towards.link)
        })?
    }
}
