//! The queue itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Backoff, Moment};

/// What to look at next, and when: each key at most once, the earliest first, failed ones later and later.
///
/// The invariant: a key that was added comes out, and comes out once for all additions before it does. Were one lost, whatever it
/// stands for would stay wrong until the next audit; were it doubled, a burst of events would be a burst of work.
#[derive(Debug, Clone)]
pub struct Queue<K> {
    backoff: Backoff,
    due: BTreeSet<(Moment, u64, K)>,
    places: BTreeMap<K, (Moment, u64)>,
    failures: BTreeMap<K, u32>,
    turn: u64,
}

impl<K: Ord + Clone> Queue<K> {
    /// An empty queue whose failed keys wait as `backoff` says.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Self { backoff, due: BTreeSet::new(), places: BTreeMap::new(), failures: BTreeMap::new(), turn: 0 }
    }

    /// Asks to look at `key` now. A key that waits already comes out at the earlier of the two times.
    pub fn add(&mut self, key: K, now: Moment) {
        self.add_at(key, now);
    }

    /// Asks to look at `key` at `due`, or earlier if that was asked before.
    pub fn add_at(&mut self, key: K, due: Moment) {
        match self.places.get(&key) {
            Some((placed, _)) if *placed <= due => return,
            Some((placed, turn)) => {
                self.due.remove(&(*placed, *turn, key.clone()));
            }
            None => {}
        }
        self.turn += 1;
        self.places.insert(key.clone(), (due, self.turn));
        self.due.insert((due, self.turn, key));
    }

    /// Takes the key that is due the longest; `None` when none is due at `now`.
    pub fn pop(&mut self, now: Moment) -> Option<K> {
        if self.due.first().is_none_or(|(due, _, _)| *due > now) {
            return None;
        }
        let (_, _, key) = self.due.pop_first()?;
        self.places.remove(&key);
        Some(key)
    }

    /// Puts a key back whose work failed, and says when it comes out. The wait grows with each failure until [`Queue::succeeded`].
    pub fn failed(&mut self, key: K, now: Moment, jitter: u64) -> Moment {
        let failures = self.failures.entry(key.clone()).or_default();
        *failures = failures.saturating_add(1);
        let due = now + self.backoff.delay(*failures, jitter);
        self.add_at(key, due);
        due
    }

    /// Forgets the failures of a key whose work succeeded.
    pub fn succeeded(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// How often a key's work failed since it last succeeded.
    #[must_use]
    pub fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or_default()
    }

    /// Drops a key and all that is known of it.
    pub fn remove(&mut self, key: &K) {
        if let Some((due, turn)) = self.places.remove(key) {
            self.due.remove(&(due, turn, key.clone()));
        }
        self.failures.remove(key);
    }

    /// When the next key is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Moment> {
        self.due.first().map(|(due, _, _)| *due)
    }

    /// How many keys wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no key waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    const SECOND: Moment = Duration::from_secs(1);

    fn queue() -> Queue<&'static str> {
        Queue::new(Backoff::new(SECOND, 60 * SECOND))
    }

    #[test]
    fn additions_before_the_work_are_one_piece_of_work() {
        let mut queue = queue();
        queue.add("b", SECOND);
        queue.add("a", 2 * SECOND);
        queue.add("b", 3 * SECOND);
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.pop(Moment::ZERO), None);
        assert_eq!(queue.pop(3 * SECOND), Some("b"), "the one that waits the longest");
        assert_eq!(queue.pop(3 * SECOND), Some("a"));
        assert_eq!(queue.pop(3 * SECOND), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn what_fails_waits_longer_each_time_until_it_succeeds() {
        let mut queue = queue();
        let first = queue.failed("a", Moment::ZERO, 7);
        assert!(first >= SECOND / 2 && first <= SECOND);
        assert_eq!(queue.next_due(), Some(first));
        assert_eq!(queue.pop(first), Some("a"));
        let second = queue.failed("a", Moment::ZERO, 7);
        assert!(second >= SECOND && second <= 2 * SECOND);
        assert_eq!(queue.failures(&"a"), 2);
        queue.succeeded(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[test]
    fn news_about_a_waiting_key_brings_it_forward() {
        let mut queue = queue();
        queue.failed("a", 10 * SECOND, 0);
        queue.add("a", 10 * SECOND);
        assert_eq!(queue.pop(10 * SECOND), Some("a"));
        assert_eq!(queue.pop(100 * SECOND), None);
    }

    #[test]
    fn a_removed_key_never_comes_out() {
        let mut queue = queue();
        queue.failed("a", Moment::ZERO, 0);
        queue.remove(&"a");
        assert_eq!((queue.next_due(), queue.failures(&"a")), (None, 0));
    }

    proptest! {
        #[test]
        fn everything_added_comes_out_once_in_order(adds in proptest::collection::vec((0u8..8, 0u64..20), 0..50)) {
            let mut queue = Queue::new(Backoff::new(SECOND, SECOND));
            let mut earliest: BTreeMap<u8, u64> = BTreeMap::new();
            for (key, due) in adds {
                queue.add_at(key, SECOND * u32::try_from(due).unwrap());
                earliest.entry(key).and_modify(|d| *d = (*d).min(due)).or_insert(due);
            }
            let mut last = 0;
            let mut seen = BTreeSet::new();
            while let Some(due) = queue.next_due() {
                let key = queue.pop(due).unwrap();
                prop_assert_eq!(due.as_secs(), earliest[&key]);
                prop_assert!(due.as_secs() >= last);
                last = due.as_secs();
                prop_assert!(seen.insert(key));
            }
            prop_assert_eq!(seen.len(), earliest.len());
        }
    }
}
