//! How fast the cloud may be called.
//!
//! Nobody publishes how many calls an account may make, and others share it. So calls go as they come until the API says that they are too
//! many; then the rate is halved, and grows again by a little with every call that goes through: additive increase, multiplicative
//! decrease, which lets several callers share a limit that none of them knows.

use std::time::Duration;

use loden_reconcile::Moment;

/// The rate after the first refusal, and the one above which calls are not held up at all; in calls per 1000 seconds.
const FULL_RATE: u64 = 20_000;
/// The slowest: one call in ten seconds.
const LEAST_RATE: u64 = 100;
/// What a call that goes through adds.
const GAIN: u64 = 200;

/// The pace of one kind of calls.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Calls per 1000 seconds; `None`: not held up.
    rate: Option<u64>,
    next: Moment,
    throttled: Duration,
}

impl Pace {
    /// When the next call may go; earlier than `now` when it may go at once.
    pub(super) fn next(&self) -> Moment {
        self.next
    }

    /// A call goes out.
    pub(super) fn called(&mut self, now: Moment) {
        if let Some(rate) = self.rate {
            self.next = now + Duration::from_secs(1000) / u32::try_from(rate.max(1)).unwrap_or(u32::MAX);
        }
    }

    /// A call went through.
    pub(super) fn succeeded(&mut self) {
        self.rate = self.rate.map(|rate| rate + GAIN).filter(|rate| *rate < FULL_RATE);
    }

    /// The API says that calls are too many, and is left alone for `pause`.
    pub(super) fn throttled(&mut self, pause: Duration) {
        let rate = self.rate.unwrap_or(FULL_RATE);
        self.rate = Some((rate / 2).max(LEAST_RATE));
        self.throttled += pause;
    }

    /// For how long calls were held up since the start because the API had said that they are too many.
    pub(super) fn throttled_for(&self) -> Duration {
        self.throttled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_halves_with_each_refusal_and_grows_back_call_by_call() {
        let mut pace = Pace::default();
        let gap = |pace: &mut Pace| {
            pace.called(Moment::ZERO);
            pace.next()
        };
        assert_eq!(gap(&mut pace), Moment::ZERO, "nothing holds calls up before the first refusal");
        pace.throttled(Duration::from_secs(1));
        assert_eq!(gap(&mut pace), Duration::from_millis(100));
        pace.throttled(Duration::from_secs(1));
        assert_eq!(gap(&mut pace), Duration::from_millis(200));
        for _ in 0..20 {
            pace.throttled(Duration::from_secs(1));
        }
        assert_eq!(gap(&mut pace), Duration::from_secs(10));
        assert_eq!(pace.throttled_for(), Duration::from_secs(22));
        let mut calls = 0;
        while pace.rate.is_some() {
            pace.succeeded();
            calls += 1;
        }
        assert_eq!(calls, 100, "(20 - 0.1) calls per second in steps of 0.2");
    }
}
