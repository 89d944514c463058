//! What a complete listing said, in an order that answers the controller's questions quickly.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{EntryStatus, EntryType, InstanceId, RouteEntry, VpcRouteTableId};

/// The entries of one table. Only a complete listing makes one: what is not in here was not in the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableView {
    entries: BTreeMap<IpNet, Vec<RouteEntry>>,
    custom: usize,
}

/// The tables that were listed.
pub type Observed = BTreeMap<VpcRouteTableId, TableView>;

impl TableView {
    /// Takes a complete listing.
    #[must_use]
    pub fn new(listing: Vec<RouteEntry>) -> Self {
        let mut view = Self::default();
        for entry in listing {
            view.put(entry);
        }
        view
    }

    fn put(&mut self, entry: RouteEntry) {
        self.custom += usize::from(entry.kind == EntryType::Custom);
        // One entry for a destination is the rule, and there are thousands: room for one, not for the four that a vector begins with.
        self.entries.entry(entry.destination).or_insert_with(|| Vec::with_capacity(1)).push(entry);
    }

    /// Replaces what is known of `destinations` by what a filtered listing for exactly these said.
    pub fn replace(&mut self, destinations: &[IpNet], listing: Vec<RouteEntry>) {
        for destination in destinations {
            for entry in self.entries.remove(destination).unwrap_or_default() {
                self.custom -= usize::from(entry.kind == EntryType::Custom);
            }
        }
        for entry in listing.into_iter().filter(|entry| destinations.contains(&entry.destination)) {
            self.put(entry);
        }
    }

    /// Entries with exactly this destination.
    #[must_use]
    pub fn at(&self, destination: IpNet) -> &[RouteEntry] {
        self.entries.get(&destination).map_or(&[], Vec::as_slice)
    }

    /// Entries strictly inside `outer`.
    pub fn strictly_inside(&self, outer: IpNet) -> impl Iterator<Item = &RouteEntry> {
        // The order is by first address, then by length: all that lies in `outer` stands between its first address and the host
        // route of its last.
        let (first, last) = (outer.trunc(), host(outer.broadcast()));
        self.entries
            .range(first..=last)
            .filter(move |(destination, _)| loden_addr::strictly_inside(**destination, outer))
            .flat_map(|(_, entries)| entries)
    }

    /// The good entry for a destination: custom, to this instance and nothing else.
    #[must_use]
    pub fn good(&self, destination: IpNet, instance: &InstanceId) -> Option<&RouteEntry> {
        self.at(destination).iter().find(|entry| entry.instance().as_ref() == Some(instance))
    }

    /// Whether packets for `destination` go to `instance` by an entry that is in force.
    #[must_use]
    pub fn carries(&self, destination: IpNet, instance: &InstanceId) -> bool {
        self.good(destination, instance).is_some_and(|entry| entry.status == EntryStatus::Available)
    }

    /// Custom entries: what the quota counts.
    #[must_use]
    pub fn custom_count(&self) -> usize {
        self.custom
    }

    /// Every entry, in order of destination.
    pub fn iter(&self) -> impl Iterator<Item = &RouteEntry> {
        self.entries.values().flatten()
    }
}

fn host(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(address) => ipnet::Ipv4Net::from(address).into(),
        IpAddr::V6(address) => ipnet::Ipv6Net::from(address).into(),
    }
}

/// The first and the last address of a network as one number, families kept apart.
#[must_use]
pub(crate) fn span(net: IpNet) -> (u128, u128) {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    (number(net.network()), number(net.broadcast()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{entry, net};
    use proptest::prelude::*;

    #[test]
    fn replacing_keeps_the_rest_and_the_count() {
        let mut view = TableView::new(vec![entry("172.20.1.0/24", "i-a"), entry("172.20.2.0/24", "i-b")]);
        view.replace(&[net("172.20.1.0/24"), net("172.20.3.0/24")], vec![entry("172.20.3.0/24", "i-c")]);
        assert_eq!(view.custom_count(), 2);
        assert!(view.at(net("172.20.1.0/24")).is_empty());
        assert!(view.good(net("172.20.2.0/24"), &"i-b".into()).is_some());
        assert!(view.carries(net("172.20.3.0/24"), &"i-c".into()));
    }

    proptest! {
        #[test]
        fn strictly_inside_is_what_comparing_all_gives(
            nets in proptest::collection::btree_set((0u8..8, 24u8..=32), 0..20), outer in (0u8..8, 20u8..=32)
        ) {
            let build = |(index, prefix): (u8, u8)| -> IpNet {
                IpNet::new(IpAddr::from([10, 0, 0, index * 32]), prefix).unwrap().trunc()
            };
            let entries: Vec<RouteEntry> = nets.into_iter().map(|n| entry(&build(n).to_string(), "i-a")).collect();
            let outer = build(outer);
            let mut expected: Vec<IpNet> = entries.iter().map(|e| e.destination)
                .filter(|d| loden_addr::strictly_inside(*d, outer)).collect();
            expected.sort();
            let view = TableView::new(entries);
            let found: Vec<IpNet> = view.strictly_inside(outer).map(|e| e.destination).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
