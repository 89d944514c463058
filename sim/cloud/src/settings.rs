//! Behaviour of the emulator, most of it where the vendor's documents are silent or say that it varies.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Behaviour of the emulator that may be changed while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// How long an entry is Pending or Deleting, in milliseconds.
    pub entry_delay_ms: u64,
    /// How long every answer of the API is held back, in milliseconds.
    pub latency_ms: u64,
    /// Whether a second change of a VPC is refused while one is under way, as the vendor does.
    pub one_change_per_vpc: bool,
    /// Whether an entry in state Deleting still counts towards the quota. The vendor does not say.
    pub deleting_holds_quota: bool,
    /// `FailedCode` of a batch item that the quota refuses. The vendor does not say.
    pub batch_quota_code: String,
    /// Larger values of `MaxResult` are taken as this one. Documented is 100.
    pub max_result: u32,
    /// Lifetime of a `NextToken`, in seconds.
    pub next_token_lifetime_s: u64,
    /// How far lists and counts of route entries lag behind what there is, in milliseconds.
    pub read_lag_ms: u64,
    /// The same for single tables, by ID; these do not follow the value for all.
    pub table_read_lag_ms: BTreeMap<String, u64>,
    /// How many calls are taken. The vendor tells its numbers only in each account's Quota Center, so there are none unless set.
    pub rate_limits: Vec<RateLimit>,
    /// Whether destinations strictly inside 100.64.0.0/10 are allowed. The vendor's pages disagree.
    pub allow_inside_shared_range: bool,
    /// Whether custom tables take IPv6 entries, which the vendor refuses.
    pub ipv6_in_custom_tables: bool,
    /// Custom entries of one table that may lead to HaVips.
    pub ha_vip_quota: u32,
    /// Custom entries of one table that may lead to VPN gateways.
    pub vpn_quota: u32,
    /// How far a request's date may be from the emulator's clock, in seconds.
    pub clock_window_s: u64,
    /// Whether the metadata service demands a token for every item ("hardened mode").
    pub hardened_metadata: bool,
    /// The instance that the metadata service speaks for, whoever asks. Absent: the one with the asker's address; a stand-alone emulator
    /// whose metadata service listens on loopback, where no instance can ask, then takes the first instance.
    pub metadata_instance: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            entry_delay_ms: 300,
            latency_ms: 0,
            one_change_per_vpc: true,
            deleting_holds_quota: true,
            batch_quota_code: "QuotaExceeded".to_owned(),
            max_result: 100,
            next_token_lifetime_s: 600,
            read_lag_ms: 0,
            table_read_lag_ms: BTreeMap::new(),
            rate_limits: Vec::new(),
            allow_inside_shared_range: false,
            ipv6_in_custom_tables: false,
            ha_vip_quota: 5,
            vpn_quota: 50,
            clock_window_s: 900,
            hardened_metadata: false,
            metadata_instance: None,
        }
    }
}

impl Settings {
    /// These settings with the keys that `given`, a JSON object, has.
    ///
    /// # Errors
    /// `given` is no object, or has a key or a value that settings do not have.
    pub fn with(&self, given: Value) -> Result<Self, serde_json::Error> {
        use serde::de::Error as _;
        let mut merged = serde_json::to_value(self)?;
        match (merged.as_object_mut(), given) {
            (Some(all), Value::Object(given)) => all.extend(given),
            _ => return Err(serde_json::Error::custom("settings are a JSON object")),
        }
        serde_json::from_value(merged)
    }
}

/// A limit of the rate of calls. Every action has a bucket of its own, which a call that is taken empties by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Only calls of this action; of every action, each by itself, unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Whose calls come out of one bucket.
    #[serde(default)]
    pub per: Per,
    /// Calls that a full bucket takes at once.
    pub burst: NonZeroU32,
    /// Calls that flow in per minute.
    pub per_minute: NonZeroU32,
    /// HTTP status of the refusal. The vendor's own is not documented.
    #[serde(default = "default_status")]
    pub status: u16,
    /// Whether the refusal says with `x-acs-retry-after` when the next call will be taken, in whole seconds.
    #[serde(default)]
    pub tell_retry_after: bool,
}

fn default_status() -> u16 {
    400
}

/// Whose calls come out of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Per {
    /// Those of one caller: of an access key, or of a RAM role. Refused with `Throttling.User`.
    #[default]
    User,
    /// Everybody's. Refused with `Throttling.Api`.
    Api,
}
