//! Address ranges of `host-local` and the order in which addresses are given out.
//!
//! A range set is a pool: every ADD takes one address of it. The order is round robin from the address given out last, so that an address
//! just released is not reused at once; it must be the order of the Go plugin, since both may serve one directory during an upgrade.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A range as it is written in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSpec {
    /// The network, host bits not yet checked.
    pub subnet: IpNet,
    /// First address to give out.
    pub start: Option<IpAddr>,
    /// Last address to give out.
    pub end: Option<IpAddr>,
    /// Never given out; the next hop in results.
    pub gateway: Option<IpAddr>,
}

/// Why a range cannot be used. The texts are those of the Go plugin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Fewer than two addresses besides network and broadcast address.
    #[error("Network {0} too small to allocate from")]
    TooSmall(IpNet),
    /// The subnet is not a network address.
    #[error("Network has host bits set. For a subnet mask of length {} the network address is {}", .0.prefix_len(), .0.network())]
    HostBits(IpNet),
    /// `rangeStart` lies outside, or after `rangeEnd`.
    #[error("RangeStart {0} not in network {1}")]
    Start(IpAddr, IpNet),
    /// `rangeEnd` lies outside, or before `rangeStart`.
    #[error("RangeEnd {0} not in network {1}")]
    End(IpAddr, IpNet),
    /// A pool without ranges.
    #[error("empty range set")]
    Empty,
    /// A pool of both families.
    #[error("mixed address families")]
    MixedFamilies,
    /// Two ranges of one pool share addresses.
    #[error("subnets {0} and {1} overlap")]
    Overlap(String, String),
}

/// A usable range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    subnet: IpNet,
    start: IpAddr,
    end: IpAddr,
    gateway: IpAddr,
}

impl Range {
    /// Checks a range and fills in what it leaves out: start is the first address after the network's, end the last before the broadcast
    /// address (IPv4) or the very last (IPv6), gateway the first after the network's.
    ///
    /// # Errors
    /// The first rule that the range breaks.
    pub fn new(spec: &RangeSpec) -> Result<Self, RangeError> {
        let subnet = spec.subnet;
        if subnet.prefix_len() + 2 > subnet.max_prefix_len() {
            return Err(RangeError::TooSmall(subnet));
        }
        if subnet.addr() != subnet.network() {
            return Err(RangeError::HostBits(subnet));
        }
        let first = next(subnet.network());
        let last = match subnet {
            IpNet::V4(net) => IpAddr::V4(Ipv4Addr::from(u32::from(net.broadcast()).saturating_sub(1))),
            IpNet::V6(net) => IpAddr::V6(net.broadcast()),
        };
        if let Some(start) = spec.start
            && (!subnet.contains(&start) || spec.end.is_some_and(|end| start > end))
        {
            return Err(RangeError::Start(start, subnet));
        }
        let start = spec.start.unwrap_or(first);
        if let Some(end) = spec.end
            && (!subnet.contains(&end) || end < start)
        {
            return Err(RangeError::End(end, subnet));
        }
        Ok(Self { subnet, start, end: spec.end.unwrap_or(last), gateway: spec.gateway.unwrap_or(first) })
    }

    /// Whether the address can be given out of this range (or is its gateway).
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) && self.start <= address && address <= self.end
    }

    /// How many addresses it can give out: all but its gateway.
    pub fn capacity(&self) -> u128 {
        let span = number(self.end).saturating_sub(number(self.start));
        span.saturating_add(1).saturating_sub(u128::from(self.contains(self.gateway)))
    }

    /// Whether the address is one to give out, so not the gateway.
    pub fn can_give(&self, address: IpAddr) -> bool {
        self.contains(address) && address != self.gateway
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.start)
            || self.contains(other.end)
            || other.contains(self.start)
            || other.contains(self.end)
    }

    fn choice(&self, address: IpAddr) -> Choice {
        Choice {
            address: IpNet::new(address, self.subnet.prefix_len()).unwrap_or_else(|_| IpNet::from(address)),
            gateway: self.gateway,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

/// An address that a pool offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The address with the prefix length of its subnet.
    pub address: IpNet,
    /// The gateway of its range.
    pub gateway: IpAddr,
}

/// A pool of ranges of one family that share no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet {
    first: Range,
    rest: Vec<Range>,
}

impl RangeSet {
    /// Checks every range and the pool.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn new(specs: &[RangeSpec]) -> Result<Self, RangeError> {
        let Some((first, rest)) = specs.split_first() else { return Err(RangeError::Empty) };
        let first = Range::new(first)?;
        let mut set = Self { first, rest: Vec::new() };
        for spec in rest {
            let range = Range::new(spec)?;
            if range.start.is_ipv4() != first.start.is_ipv4() {
                return Err(RangeError::MixedFamilies);
            }
            set.rest.push(range);
        }
        for (index, one) in set.ranges().enumerate() {
            for other in set.ranges().skip(index + 1) {
                if one.overlaps(other) {
                    return Err(RangeError::Overlap(one.to_string(), other.to_string()));
                }
            }
        }
        Ok(set)
    }

    /// The ranges in their order.
    pub fn ranges(&self) -> impl Iterator<Item = &Range> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Whether the pool is of IPv4 addresses.
    pub fn is_ipv4(&self) -> bool {
        self.first.start.is_ipv4()
    }

    /// Whether the address lies in one of the ranges.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some()
    }

    /// The range that the address lies in.
    pub fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.ranges().find(|range| range.contains(address))
    }

    /// How many addresses the pool can give out.
    pub fn capacity(&self) -> u128 {
        self.ranges().fold(0, |sum, range| sum.saturating_add(range.capacity()))
    }

    /// Whether the address is one to give out, so in the pool and no gateway.
    pub fn can_give(&self, address: IpAddr) -> bool {
        self.range_of(address).is_some_and(|range| range.can_give(address))
    }

    /// Whether the two pools share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.ranges().any(|one| other.ranges().any(|two| one.overlaps(two)))
    }

    /// The offer for exactly this address; `Err` says why it is not to be had, by the rules of the Go plugin.
    ///
    /// # Errors
    /// The address is outside the pool or a gateway.
    pub fn requested(&self, address: IpAddr) -> Result<Choice, String> {
        let range = self.range_of(address).ok_or_else(|| format!("{address} not in range set {self}"))?;
        if address == range.gateway {
            return Err(format!("requested ip {address} is subnet's gateway"));
        }
        Ok(range.choice(address))
    }

    /// The addresses to try, in order: after `last` if that lies in the pool, else from the start; every address once, gateways left out.
    pub fn candidates(&self, last: Option<IpAddr>) -> Candidates<'_> {
        let position = last
            .and_then(|last| self.ranges().position(|range| range.contains(last)).map(|index| (index, last)));
        Candidates { set: self, position, origin: None }
    }

    fn range(&self, index: usize) -> &Range {
        index.checked_sub(1).and_then(|index| self.rest.get(index)).unwrap_or(&self.first)
    }
}

impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

/// The addresses of a pool in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    /// Range and address tried last (or given out last, before the first step).
    position: Option<(usize, IpAddr)>,
    /// The first address tried; reaching it again ends the round.
    origin: Option<IpAddr>,
}

impl Iterator for Candidates<'_> {
    type Item = Choice;

    fn next(&mut self) -> Option<Choice> {
        loop {
            let (index, address) = match self.position {
                None => (0, self.set.first.start),
                Some((index, address)) if address == self.set.range(index).end => {
                    let index = if index < self.set.rest.len() { index + 1 } else { 0 };
                    (index, self.set.range(index).start)
                }
                Some((index, address)) => (index, next(address)),
            };
            if self.origin == Some(address) {
                return None;
            }
            self.origin.get_or_insert(address);
            self.position = Some((index, address));
            let range = self.set.range(index);
            if address != range.gateway {
                return Some(range.choice(address));
            }
        }
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address after `address`; the last of the family is its own successor.
pub fn next(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).saturating_add(1))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).saturating_add(1))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn spec(subnet: &str, start: &str, end: &str, gateway: &str) -> RangeSpec {
        RangeSpec {
            subnet: subnet.parse().unwrap(),
            start: start.parse().ok(),
            end: end.parse().ok(),
            gateway: gateway.parse().ok(),
        }
    }

    fn set(subnets: &[&str]) -> Result<RangeSet, RangeError> {
        RangeSet::new(&subnets.iter().map(|subnet| spec(subnet, "", "", "")).collect::<Vec<_>>())
    }

    #[test]
    fn defaults() {
        assert_eq!(set(&["10.0.0.0/24"]).unwrap().to_string(), "10.0.0.1-10.0.0.254");
        assert_eq!(set(&["fd00::/64"]).unwrap().to_string(), "fd00::1-fd00::ffff:ffff:ffff:ffff");
        assert_eq!(
            set(&["10.0.0.0/24", "10.0.1.0/30"]).unwrap().to_string(),
            "10.0.0.1-10.0.0.254,10.0.1.1-10.0.1.2"
        );
    }

    #[test]
    fn broken_rules_have_the_texts_people_search_for() {
        let text = |specs: &[RangeSpec]| RangeSet::new(specs).unwrap_err().to_string();
        for subnet in ["10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"] {
            assert_eq!(
                text(&[spec(subnet, "", "", "")]),
                format!("Network {subnet} too small to allocate from")
            );
        }
        assert_eq!(
            text(&[spec("10.0.0.7/24", "", "", "")]),
            "Network has host bits set. For a subnet mask of length 24 the network address is 10.0.0.0"
        );
        assert_eq!(
            text(&[spec("10.0.0.0/24", "10.0.1.1", "", "")]),
            "RangeStart 10.0.1.1 not in network 10.0.0.0/24"
        );
        assert_eq!(
            text(&[spec("10.0.0.0/24", "10.0.0.9", "10.0.0.8", "")]),
            "RangeStart 10.0.0.9 not in network 10.0.0.0/24"
        );
        assert_eq!(
            text(&[spec("10.0.0.0/24", "", "fd00::1", "")]),
            "RangeEnd fd00::1 not in network 10.0.0.0/24"
        );
        assert_eq!(text(&[]), "empty range set");
        assert_eq!(
            text(&[spec("10.0.0.0/24", "", "", ""), spec("fd00::/64", "", "", "")]),
            "mixed address families"
        );
        assert_eq!(
            text(&[spec("10.0.0.0/24", "", "", ""), spec("10.0.0.0/25", "", "", "")]),
            "subnets 10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126 overlap"
        );
    }

    #[test]
    fn round_robin_skips_the_gateway_and_wraps() {
        let set = RangeSet::new(&[
            spec("10.0.0.0/29", "", "10.0.0.4", ""),
            spec("10.0.1.0/29", "10.0.1.3", "10.0.1.4", ""),
        ])
        .unwrap();
        let order = |last: Option<&str>| -> Vec<String> {
            set.candidates(last.map(|last| last.parse().unwrap()))
                .map(|choice| choice.address.addr().to_string())
                .collect()
        };
        assert_eq!(order(None), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.3", "10.0.1.4"]);
        assert_eq!(order(Some("10.0.0.4")), ["10.0.1.3", "10.0.1.4", "10.0.0.2", "10.0.0.3", "10.0.0.4"]);
        assert_eq!(order(Some("10.0.1.4")), ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.3", "10.0.1.4"]);
        assert_eq!(order(Some("192.168.0.1")), order(None));
        assert_eq!(
            set.requested("10.0.0.1".parse().unwrap()).unwrap_err(),
            "requested ip 10.0.0.1 is subnet's gateway"
        );
        assert!(
            set.requested("10.0.0.9".parse().unwrap()).unwrap_err().starts_with("10.0.0.9 not in range set ")
        );
    }

    #[test]
    fn the_end_of_the_address_space_ends_the_round() {
        let set = RangeSet::new(&[spec("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff8/125", "", "", "")]).unwrap();
        assert_eq!(set.candidates(None).count(), 6);
        let only_gateway = RangeSet::new(&[spec("10.0.0.0/30", "10.0.0.1", "10.0.0.1", "")]).unwrap();
        assert_eq!(only_gateway.candidates(None).next(), None);
    }

    /// Small domain, so that ranges touch, wrap and meet their gateway.
    fn small_set() -> impl Strategy<Value = RangeSet> {
        let range =
            (0u8..4, 0u8..16, 0u8..16, prop::option::of(0u8..16)).prop_map(|(net, one, two, gateway)| {
                RangeSpec {
                    subnet: format!("10.0.0.{}/28", net * 16).parse().unwrap(),
                    start: Some(IpAddr::from([10, 0, 0, net * 16 + one.min(two)])),
                    end: Some(IpAddr::from([10, 0, 0, net * 16 + one.max(two)])),
                    gateway: gateway.map(|gateway| IpAddr::from([10, 0, 0, net * 16 + gateway])),
                }
            });
        prop::collection::vec(range, 1..4)
            .prop_filter_map("ranges overlap", |specs| RangeSet::new(&specs).ok())
    }

    fn small_address() -> impl Strategy<Value = IpAddr> {
        (0u8..70).prop_map(|host| IpAddr::from([10, 0, 0, host]))
    }

    proptest! {
        #[test]
        fn every_address_is_offered_once_and_no_gateway(set in small_set(), last in prop::option::of(small_address())) {
            let offered: Vec<IpAddr> = set.candidates(last).map(|choice| choice.address.addr()).collect();
            let unique: BTreeSet<IpAddr> = offered.iter().copied().collect();
            prop_assert_eq!(unique.len(), offered.len());
            let model: BTreeSet<IpAddr> = (0..=255u8)
                .map(|host| IpAddr::from([10, 0, 0, host]))
                .filter(|address| set.range_of(*address).is_some_and(|range| range.gateway != *address))
                .collect();
            prop_assert_eq!(unique, model);
        }

        #[test]
        fn the_address_given_last_is_tried_last(set in small_set(), last in small_address()) {
            let offered: Vec<IpAddr> = set.candidates(Some(last)).map(|choice| choice.address.addr()).collect();
            if offered.contains(&last) {
                prop_assert_eq!(offered.last(), Some(&last));
            }
        }

        #[test]
        fn capacity_is_the_number_of_addresses_offered(set in small_set()) {
            prop_assert_eq!(set.capacity(), u128::try_from(set.candidates(None).count()).unwrap());
            for choice in set.candidates(None) {
                prop_assert!(set.can_give(choice.address.addr()));
                prop_assert!(set.requested(choice.address.addr()).is_ok());
            }
        }

        #[test]
        fn overlap_is_symmetric(one in small_set(), two in small_set()) {
            prop_assert_eq!(one.overlaps(&two), two.overlaps(&one));
        }
    }
}
