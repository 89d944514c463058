//! Division of a network by a mask into subnets of one size, counted from its start.
//!
//! The invariant: subnet `i` is the same network for everybody who divides the same network by the same mask. Were it not, two
//! components would give one subnet to two nodes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A network divided by a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnets {
    network: IpNet,
    prefix: u8,
}

/// Why a network cannot be divided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DivisionError {
    /// The mask is shorter than the network's own: not even one subnet fits.
    #[error("{network} has no room for a /{prefix}: the mask must be between /{} and /{}", .network.prefix_len(), .network.max_prefix_len())]
    NoRoom {
        /// The network.
        network: IpNet,
        /// The subnets' mask.
        prefix: u8,
    },
    /// The mask is longer than an address.
    #[error("/{prefix} is no mask for {network}: an address has {} bits", .network.max_prefix_len())]
    MaskTooLong {
        /// The network.
        network: IpNet,
        /// The subnets' mask.
        prefix: u8,
    },
}

impl Subnets {
    /// Divides `network` into subnets with the mask `prefix`. Host bits of `network` are dropped.
    ///
    /// # Errors
    /// The mask is shorter than the network's, or longer than an address.
    pub fn new(network: IpNet, prefix: u8) -> Result<Self, DivisionError> {
        let network = network.trunc();
        if prefix > network.max_prefix_len() {
            return Err(DivisionError::MaskTooLong { network, prefix });
        }
        if prefix < network.prefix_len() {
            return Err(DivisionError::NoRoom { network, prefix });
        }
        Ok(Self { network, prefix })
    }

    /// The network that is divided.
    #[must_use]
    pub fn network(&self) -> IpNet {
        self.network
    }

    /// The subnets' mask.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many subnets there are; `u128::MAX` stands for the one case that does not fit (`::/0` by 128).
    #[must_use]
    pub fn count(&self) -> u128 {
        1u128.checked_shl(u32::from(self.prefix - self.network.prefix_len())).unwrap_or(u128::MAX)
    }

    /// Subnet `index`, counted from the network's start; `None` past the end.
    #[must_use]
    pub fn nth(&self, index: u128) -> Option<IpNet> {
        if index >= self.count() {
            return None;
        }
        let shift = u32::from(self.network.max_prefix_len() - self.prefix);
        let offset = index.checked_shl(shift).unwrap_or(0);
        match self.network {
            IpNet::V4(net) => {
                let address = u32::from(net.network()).checked_add(u32::try_from(offset).ok()?)?;
                Ipv4Net::new(Ipv4Addr::from(address), self.prefix).ok().map(IpNet::V4)
            }
            IpNet::V6(net) => {
                let address = u128::from(net.network()).checked_add(offset)?;
                Ipv6Net::new(Ipv6Addr::from(address), self.prefix).ok().map(IpNet::V6)
            }
        }
    }

    /// The first and the last subnet that `other` touches; `None` when it lies outside.
    #[must_use]
    pub fn touched_by(&self, other: IpNet) -> Option<(u128, u128)> {
        if !overlap(self.network, other) {
            return None;
        }
        let base = bits(self.network.network());
        let first = bits(other.network()).max(base) - base;
        let last = last_bits(other).min(last_bits(self.network)) - base;
        let shift = u32::from(self.network.max_prefix_len() - self.prefix);
        Some((first.checked_shr(shift).unwrap_or(0), last.checked_shr(shift).unwrap_or(0)))
    }

    /// The subnets in order.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        let this = *self;
        (0..this.count()).map_while(move |index| this.nth(index))
    }
}

/// Whether two networks share an address. Networks of different families never do.
#[must_use]
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    contains(a, b) || contains(b, a)
}

/// Whether every address of `inner` is in `outer` (equal networks contain each other).
#[must_use]
pub fn contains(outer: IpNet, inner: IpNet) -> bool {
    match (outer, inner) {
        (IpNet::V4(outer), IpNet::V4(inner)) => outer.contains(&inner),
        (IpNet::V6(outer), IpNet::V6(inner)) => outer.contains(&inner),
        _ => false,
    }
}

/// Whether `inner` lies in `outer` and is smaller.
#[must_use]
pub fn strictly_inside(inner: IpNet, outer: IpNet) -> bool {
    contains(outer, inner) && inner.prefix_len() > outer.prefix_len()
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn last_bits(net: IpNet) -> u128 {
    bits(net.broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_twenty_cut_by_24_is_sixteen_subnets_in_order() {
        let subnets = Subnets::new(net("172.16.0.0/20"), 24).unwrap();
        let all: Vec<String> = subnets.iter().map(|s| s.to_string()).collect();
        assert_eq!(subnets.count(), 16);
        assert_eq!(all.len(), 16);
        assert_eq!((all[0].as_str(), all[15].as_str()), ("172.16.0.0/24", "172.16.15.0/24"));
        assert_eq!(subnets.nth(16), None);
    }

    #[test]
    fn whole_families_divide() {
        let four = Subnets::new(net("0.0.0.0/0"), 32).unwrap();
        assert_eq!(four.count(), 1 << 32);
        assert_eq!(four.nth((1 << 32) - 1), Some(net("255.255.255.255/32")));
        let six = Subnets::new(net("::/0"), 128).unwrap();
        assert_eq!(six.nth(1), Some(net("::1/128")));
        assert_eq!(Subnets::new(net("::/0"), 0).unwrap().nth(0), Some(net("::/0")));
    }

    #[test]
    fn a_mask_that_leaves_no_subnet_is_refused_by_name() {
        let error = Subnets::new(net("172.16.0.0/26"), 24).unwrap_err();
        assert_eq!(
            error.to_string(),
            "172.16.0.0/26 has no room for a /24: the mask must be between /26 and /32"
        );
        assert!(matches!(Subnets::new(net("172.16.0.0/26"), 33), Err(DivisionError::MaskTooLong { .. })));
    }

    #[test]
    fn families_never_overlap() {
        assert!(!overlap(net("0.0.0.0/0"), net("::/0")));
        assert!(overlap(net("172.16.0.0/12"), net("172.20.0.0/16")));
        assert!(!overlap(net("172.16.0.0/16"), net("172.17.0.0/16")));
        assert!(strictly_inside(net("172.20.1.5/32"), net("172.20.1.0/24")));
        assert!(!strictly_inside(net("172.20.1.0/24"), net("172.20.1.0/24")));
    }

    proptest! {
        #[test]
        fn subnets_are_disjoint_and_inside(address: u32, prefix in 0u8..=32, more in 0u8..=8, a: u128, b: u128) {
            let network = IpNet::V4(Ipv4Net::new(Ipv4Addr::from(address), prefix).unwrap()).trunc();
            let subnets = Subnets::new(network, (prefix + more).min(32)).unwrap();
            let (a, b) = (a % subnets.count(), b % subnets.count());
            let (first, second) = (subnets.nth(a).unwrap(), subnets.nth(b).unwrap());
            prop_assert!(contains(network, first));
            prop_assert_eq!(overlap(first, second), a == b);
            prop_assert_eq!(subnets.touched_by(first), Some((a, a)));
        }

        #[test]
        fn what_a_network_touches_is_what_overlaps(other: u32, prefix in 8u8..=32) {
            let subnets = Subnets::new("172.16.0.0/20".parse().unwrap(), 24).unwrap();
            let other = IpNet::V4(Ipv4Net::new(Ipv4Addr::from(0xAC10_0000 | (other & 0x1FFF)), prefix).unwrap()).trunc();
            let expected: Vec<u128> = (0..16).filter(|i| overlap(subnets.nth(*i).unwrap(), other)).collect();
            let found = subnets.touched_by(other).map(|(a, b)| (a..=b).collect::<Vec<_>>()).unwrap_or_default();
            prop_assert_eq!(found, expected);
        }
    }
}
