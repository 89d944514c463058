//! Bridges whose gateway address we keep.
//!
//! The bridge plugin gives a bridge its gateway address once, when the first pod arrives. It leaves the note of it in the
//! link's alias, so that the daemon can tell such a bridge from any other and put the address back when somebody removes it.

use ipnet::IpNet;

use crate::{Address, LinkKind, Object, Objects};

/// How the alias of a bridge with a gateway address of ours begins; the addresses follow, separated by spaces.
pub const GATEWAY_ALIAS: &str = "loden gateway";

/// The alias for a bridge that carries these gateway addresses.
#[must_use]
pub fn gateway_alias(addresses: &[IpNet]) -> String {
    addresses.iter().fold(GATEWAY_ALIAS.to_owned(), |text, address| format!("{text} {address}"))
}

/// The addresses that bridges carrying our alias must have, as far as they lie in `subnets`. What else an alias says
/// (another daemon's subnet, text that is no address) is left alone.
#[must_use]
pub fn gateways(observed: &Objects, subnets: &[IpNet]) -> Vec<Address> {
    let mut found = Vec::new();
    for object in observed.iter() {
        let Object::Link(link) = object else { continue };
        if link.kind != LinkKind::Bridge {
            continue;
        }
        let Some(rest) = link.alias.as_deref().and_then(|alias| alias.strip_prefix(GATEWAY_ALIAS)) else {
            continue;
        };
        for address in rest.split_whitespace().filter_map(|word| word.parse::<IpNet>().ok()) {
            if subnets.iter().any(|subnet| subnet.contains(&address)) {
                found.push(Address { link: link.name.clone(), address });
            }
        }
    }
    found
}
