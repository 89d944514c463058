//! Bridges whose gateway address we keep.
//!
//! The bridge plugin gives a bridge its gateway address once, when the first pod arrives. It leaves the
//! [note](loden_lease::gateway_mark) of it in the link's alias, so that the daemon can tell such a bridge from any other and
//! put the address back when somebody removes it.

use ipnet::IpNet;
use loden_lease::parse_gateway_mark;

use crate::{Address, LinkKind, Object, Objects};

/// The addresses that bridges carrying our note must have, as far as they lie in `subnets`. What else a note says
/// (another daemon's subnet) is left alone.
#[must_use]
pub fn gateways(observed: &Objects, subnets: &[IpNet]) -> Vec<Address> {
    let mut found = Vec::new();
    for object in observed.iter() {
        let Object::Link(link) = object else { continue };
        if link.kind != LinkKind::Bridge {
            continue;
        }
        let noted = link.alias.as_deref().and_then(parse_gateway_mark).unwrap_or_default();
        for address in noted {
            if subnets.iter().any(|subnet| subnet.contains(&address)) {
                found.push(Address { link: link.name.clone(), address });
            }
        }
    }
    found
}
