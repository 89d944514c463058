//! How many calls the API takes: token buckets, per action, for each caller or for all together.
//!
//! A bucket is one moment: the one at which it will be full again. A call that finds too little in any of its buckets takes nothing from
//! the others, is answered as throttled, and changes nothing.

use std::collections::BTreeMap;

use loden_aliyun::{ApiError, codes};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::{Cloud, state};
use crate::settings::{Per, RateLimit};

/// What was taken so far.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Rates {
    buckets: Vec<Bucket>,
    /// How often each action was refused.
    throttled: BTreeMap<String, u64>,
}

impl Rates {
    /// Fills every bucket.
    pub(super) fn forget(&mut self) {
        self.buckets.clear();
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bucket {
    /// Place of its limit in the settings.
    limit: usize,
    action: String,
    /// Empty where the bucket is everybody's.
    caller: String,
    #[serde(with = "state::moment")]
    full_at: OffsetDateTime,
}

impl RateLimit {
    /// The time in which one call's worth flows in.
    fn interval(&self) -> Duration {
        Duration::MINUTE / f64::from(self.per_minute.get())
    }

    /// How long a call must wait when the bucket is full again at `full_at`; none if it need not.
    fn wait(&self, full_at: OffsetDateTime, now: OffsetDateTime) -> Duration {
        let room = self.interval() * f64::from(self.burst.get() - 1);
        (full_at - now - room).max(Duration::ZERO)
    }

    fn error(&self, wait: Duration) -> ApiError {
        let (code, flow) = match self.per {
            Per::User => (codes::THROTTLING_USER, "user"),
            Per::Api => ("Throttling.Api", "api"),
        };
        let mut error =
            ApiError::new(self.status, code, format!("Request was denied due to {flow} flow control."));
        if self.tell_retry_after {
            let seconds = u64::try_from(wait.whole_milliseconds()).unwrap_or_default().div_ceil(1_000);
            error.retry_after = Some(std::time::Duration::from_secs(seconds.max(1)));
        }
        error
    }
}

impl Cloud {
    /// How often each action was refused because of too many calls, injected faults not counted.
    #[must_use]
    pub fn throttled(&self) -> &BTreeMap<String, u64> {
        &self.rates.throttled
    }

    /// Takes a call's worth from every bucket that it needs.
    pub(super) fn admit(&mut self, action: &str, caller: &str, now: OffsetDateTime) -> Result<(), ApiError> {
        let Rates { buckets, throttled } = &mut self.rates;
        buckets.retain(|bucket| bucket.full_at > now);
        let mut takes = Vec::new();
        for (place, limit) in self.settings.rate_limits.iter().enumerate() {
            if limit.action.as_ref().is_some_and(|only| only != action) {
                continue;
            }
            let caller = if limit.per == Per::User { caller } else { "" };
            let found = buckets.iter().position(|bucket| {
                bucket.limit == place && bucket.action == action && bucket.caller == caller
            });
            let full_at = found.and_then(|at| buckets.get(at)).map_or(now, |bucket| bucket.full_at);
            let wait = limit.wait(full_at, now);
            if wait.is_positive() {
                *throttled.entry(action.to_owned()).or_default() += 1;
                return Err(limit.error(wait));
            }
            takes.push((place, caller, found, full_at.saturating_add(limit.interval())));
        }
        for (place, caller, found, full_at) in takes {
            match found.and_then(|at| buckets.get_mut(at)) {
                Some(bucket) => bucket.full_at = full_at,
                None => buckets.push(Bucket {
                    limit: place,
                    action: action.to_owned(),
                    caller: caller.to_owned(),
                    full_at,
                }),
            }
        }
        Ok(())
    }
}
