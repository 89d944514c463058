//! Waiting between attempts: doubling, bounded, and spread so that a thousand daemons do not return at once.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Delays between attempts at one thing.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(first: Duration, ceiling: Duration) -> Self {
        Self { first, ceiling, failures: 0 }
    }

    /// The delay before the next attempt: uniformly between half and all of the doubled delay.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full = self.first.saturating_mul(2u32.saturating_pow(self.failures)).min(self.ceiling);
        self.failures = self.failures.saturating_add(1).min(30);
        spread(full / 2, full)
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A duration between `low` and `high`, uniformly.
pub(crate) fn spread(low: Duration, high: Duration) -> Duration {
    // Every RandomState has fresh keys from the system; that is all the randomness that spreading load needs.
    let draw = RandomState::new().build_hasher().finish();
    #[expect(clippy::cast_precision_loss, reason = "a fraction needs no more than 53 bits")]
    let fraction = draw as f64 / u64::MAX as f64;
    low + high.saturating_sub(low).mul_f64(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_ceiling_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
        let mut full = Duration::from_millis(800);
        for _ in 0..40 {
            let delay = backoff.next_delay();
            assert!(delay >= full / 2 && delay <= full, "{delay:?} outside of {full:?}");
            full = (full * 2).min(Duration::from_secs(30));
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(800));
    }
}
