//! How long to wait before trying again.

use std::time::Duration;

/// Delays that double from `base` to `cap`, each shortened by up to a half so that many who failed together do not come back
/// together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first delay.
    pub base: Duration,
    /// The longest delay.
    pub cap: Duration,
}

impl Backoff {
    /// Delays from `base` to `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// The delay after failure number `failures` (from 1). `jitter` decides how much of the second half is left out: any number does, equal numbers
    /// give equal delays.
    #[must_use]
    pub fn delay(&self, failures: u32, jitter: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.base.saturating_mul(1u32 << doublings).min(self.cap);
        let half = full / 2;
        let thousandth = u32::try_from(mix(jitter ^ u64::from(failures)) % 1000).unwrap_or_default();
        full - half * thousandth / 1000
    }
}

/// A number that differs in all bits when `value` differs in one (the finaliser of splitmix64).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_lie_in_the_upper_half_of_the_doubling(failures in 1u32..100, jitter: u64) {
            let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
            let full = Duration::from_millis(100).saturating_mul(1 << (failures - 1).min(31)).min(Duration::from_secs(30));
            let delay = backoff.delay(failures, jitter);
            prop_assert!(delay <= full && delay >= full / 2, "{delay:?} of {full:?}");
            prop_assert_eq!(delay, backoff.delay(failures, jitter));
        }
    }
}
