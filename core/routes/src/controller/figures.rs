//! The controller in numbers, for whoever watches it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Controller;
use crate::mark::Owner;
use crate::model::{EntryType, VpcRouteTableId};
use crate::plan::EntryKey;

/// How things stand now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Figures {
    /// Every table that is looked at.
    pub tables: BTreeMap<VpcRouteTableId, TableFigures>,
    /// Nodes that there are.
    pub nodes: usize,
    /// Of these, the ones whose condition says that their network is available.
    pub available: usize,
    /// Nodes that get no entry for a reason of their own.
    pub unserved: usize,
    /// Nodes, instances and entries that wait to be looked at or written.
    pub queued: usize,
    /// For how long calls were held up since the start because the API said that they are too many.
    pub throttled: Duration,
}

/// How one table stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TableFigures {
    /// Entries that there should be.
    pub desired: usize,
    /// Of these, the ones in force.
    pub installed: usize,
    /// Entries that conflicted with a node's pod CIDR when last looked at.
    pub conflicting: usize,
    /// Custom entries that are not ours.
    pub foreign: usize,
    /// Custom entries: what the quota counts.
    pub used: usize,
    /// Custom entries that the table takes, where known.
    pub limit: Option<usize>,
    /// Entries that wait for room.
    pub waiting: usize,
}

impl Controller {
    /// How things stand.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let conditions = self.nodes.values().map(|state| state.node.network_unavailable.as_ref());
        Figures {
            tables: self.lane.views.keys().map(|id| (id.clone(), self.table_figures(id))).collect(),
            nodes: self.nodes.len(),
            available: conditions.flatten().filter(|condition| !condition.unavailable).count(),
            unserved: self.lane.desired.unserved.len(),
            queued: self.conditions.queue.len() + self.instances.queued() + self.lane.queued(),
            throttled: self.lane.pace.throttled_for() + self.instances.throttled_for(),
        }
    }

    /// The nodes that were called available for the first time since this was last asked, with the time since they were first told of.
    pub fn take_routed(&mut self) -> Vec<(String, Duration)> {
        std::mem::take(&mut self.routed)
    }

    fn table_figures(&self, table: &VpcRouteTableId) -> TableFigures {
        let Some(view) = self.lane.views.get(table) else { return TableFigures::default() };
        let served = self.lane.served.as_ref().is_some_and(|served| served.tables.contains(table));
        let wanted: Vec<_> = self
            .lane
            .desired
            .entries
            .iter()
            .filter(|(destination, _)| served && !self.lane.leaves_out(table, **destination))
            .collect();
        let ours = |entry: &crate::model::RouteEntry| match self.mark.owner(entry) {
            Owner::Ours => true,
            Owner::OtherCluster(_) => false,
            Owner::Unmarked => EntryKey::of(entry).is_some_and(|key| self.lane.is_adopted(&key)),
        };
        TableFigures {
            desired: wanted.len(),
            installed: wanted
                .iter()
                .filter(|(destination, wanted)| view.carries(**destination, &wanted.instance))
                .count(),
            conflicting: self.lane.conflicting.get(table).copied().unwrap_or_default(),
            foreign: view.iter().filter(|entry| entry.kind == EntryType::Custom && !ours(entry)).count(),
            used: view.custom_count(),
            limit: self.limit(table),
            waiting: self.lane.waiting.keys().filter(|(of, _)| of == table).count(),
        }
    }
}
