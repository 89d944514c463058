//! How much is taken away within a minute.
//!
//! A list of nodes that is wrong, or a second cluster on the same pod CIDRs, looks like many entries that should go. Each of them may well go; all
//! within seconds is an outage before anybody has looked. So removals are counted, and beyond a share of the nodes the rest waits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use loden_reconcile::Moment;

use super::super::{Controller, MIN_REMOVED};
use crate::check::Bounds;
use crate::model::VpcRouteTableId;
use crate::plan::{EntryKey, Step};

/// Removals are counted over this long.
const WINDOW: Duration = Duration::from_secs(60);

/// Removals of one kind, by when they were found to have been, or perhaps to have been, carried out.
#[derive(Debug, Default)]
pub(super) struct Window {
    times: VecDeque<Moment>,
}

impl Window {
    fn add(&mut self, now: Moment) {
        self.times.drain(..self.past(now));
        self.times.push_back(now);
    }

    /// How many count no more.
    fn past(&self, now: Moment) -> usize {
        self.times.partition_point(|at| *at + WINDOW <= now)
    }

    fn recent(&self, now: Moment) -> usize {
        self.times.len() - self.past(now)
    }

    /// When the oldest that counts does so no more.
    pub(super) fn frees(&self, now: Moment) -> Option<Moment> {
        self.times.get(self.past(now)).map(|at| *at + WINDOW)
    }
}

/// What was taken away of late.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Entries of departed nodes, of all tables.
    pub(super) collected: Window,
    /// Entries that were in the way of live nodes, by table.
    pub(super) conflicting: BTreeMap<VpcRouteTableId, Window>,
}

/// The most removals within a window; `None`: as many as there are.
pub(super) fn most(nodes: usize, percent: usize) -> Option<usize> {
    (percent < 100).then(|| (nodes * percent / 100).max(MIN_REMOVED))
}

impl Controller {
    /// What may be taken away now.
    pub(super) fn bounds(&self, now: Moment) -> Bounds<'_> {
        let (nodes, removals) = (self.nodes.len(), &self.lane.removals);
        let left = |most: usize, window: &Window| most.saturating_sub(window.recent(now));
        Bounds {
            collected: most(nodes, self.settings.collect_percent).map(|most| left(most, &removals.collected)),
            conflicting: most(nodes, self.settings.conflict_percent).map(|most| {
                let of = |table| removals.conflicting.get(table).map_or(most, |window| left(most, window));
                self.lane.views.keys().map(|table| (table.clone(), of(table))).collect()
            }),
            departed: &self.lane.departed,
        }
    }

    /// Counts a step that took something away, or that may have: where the answer was lost, the worse is assumed.
    pub(super) fn count_removal(&mut self, now: Moment, step: &Step) {
        match step {
            Step::Collect { .. } => self.lane.removals.collected.add(now),
            Step::RemoveConflict { entry, .. } | Step::Repoint { entry, .. } => {
                let seen_leaving = EntryKey::of(entry)
                    .is_some_and(|key| self.lane.departed.contains(&(key.destination, key.instance)));
                if !seen_leaving {
                    self.lane.removals.conflicting.entry(entry.table.clone()).or_default().add(now);
                }
            }
            Step::Create { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_minute_old_counts_no_more() {
        let at = Duration::from_secs;
        let mut window = Window::default();
        assert_eq!((window.recent(at(5)), window.frees(at(5))), (0, None));
        for second in [10, 10, 40] {
            window.add(at(second));
        }
        assert_eq!((window.recent(at(69)), window.frees(at(69))), (3, Some(at(70))));
        assert_eq!((window.recent(at(70)), window.frees(at(70))), (1, Some(at(100))));
        window.add(at(200));
        assert_eq!((window.recent(at(200)), window.times.len()), (1, 1));
    }

    #[test]
    fn a_bound_is_a_share_of_the_nodes_and_never_less_than_a_few() {
        assert_eq!([3, 50, 1000].map(|nodes| most(nodes, 20)), [Some(10), Some(10), Some(200)]);
        assert_eq!(most(1000, 100), None);
    }
}
