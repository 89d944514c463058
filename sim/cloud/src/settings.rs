//! Behaviour of the emulator, most of it where the vendor's documents are silent or say that it varies.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::ACTIONS;

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

/// A key of [`Settings`], for people.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// What it does, in a few words.
    pub meaning: &'static str,
    /// A value, as JSON.
    pub example: &'static str,
}

const fn key(name: &'static str, meaning: &'static str, example: &'static str) -> Key {
    Key { name, meaning, example }
}

/// Every key of [`Settings`].
pub const KEYS: &[Key] = &[
    key("entryDelayMs", "how long a changed route entry is Pending or Deleting", "5000"),
    key("latencyMs", "how long every answer is held back", "300"),
    key("readLagMs", "how far lists of route entries lag behind what there is", "2000"),
    key("tableReadLagMs", "the same for single tables", r#"{"vtb-demo": 500}"#),
    key("rateLimits", "how many calls are taken", r#"[{"burst": 1, "perMinute": 10}]"#),
    key("oneChangePerVpc", "a second change of a VPC is refused while one is under way", "false"),
    key("deletingHoldsQuota", "an entry that is Deleting counts towards the quota", "false"),
    key("batchQuotaCode", "FailedCode of a batch item beyond the quota", r#""QuotaExceeded""#),
    key("haVipQuota", "entries of one table that may lead to HaVips", "5"),
    key("vpnQuota", "entries of one table that may lead to VPN gateways", "50"),
    key("maxResult", "larger values of MaxResult are taken as this one", "10"),
    key("nextTokenLifetimeS", "lifetime of a NextToken", "1"),
    key("allowInsideSharedRange", "destinations strictly inside 100.64.0.0/10 are taken", "true"),
    key("ipv6InCustomTables", "custom tables take IPv6 entries", "true"),
    key("clockWindowS", "how far a request's date may be off", "60"),
    key("hardenedMetadata", "the metadata service demands a token", "true"),
    key("metadataInstance", "instance that the metadata service speaks for, whoever asks", "null"),
];

/// Why settings are refused. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// Not an object.
    #[error("they are a JSON object, such as {{\"readLagMs\": 2000}}; this is {0}")]
    NoObject(Value),
    /// A key that is not there.
    #[error("there is no {0}; there are {all}", all = KEYS.iter().map(|key| key.name).collect::<Vec<_>>().join(", "))]
    NoSuchKey(String),
    /// A value that the key does not take.
    #[error("{key} cannot be {given}: {cause}; a value that it takes is {example}")]
    NoSuchValue {
        /// Which.
        key: &'static str,
        /// Its value.
        given: Value,
        /// Why.
        cause: serde_json::Error,
        /// One that it takes, as JSON.
        example: &'static str,
    },
    /// A rate limit of an action that the emulator does not carry out.
    #[error("rateLimits names the action {0}, which is not emulated; emulated are {all}", all = ACTIONS.join(", "))]
    NoSuchAction(String),
    /// A rate limit whose refusals would look like success.
    #[error("a limit in rateLimits has status {0}; a refusal's HTTP status is from 400 to 599")]
    NoRefusal(u16),
}

impl Settings {
    /// These settings with the keys that `given`, a JSON object, has.
    ///
    /// # Errors
    /// `given` is no object, or has a key or a value that settings do not have.
    pub fn with(&self, given: Value) -> Result<Self, SettingsError> {
        let Value::Object(given) = given else { return Err(SettingsError::NoObject(given)) };
        let mut settings = self.clone();
        // One by one, so that a refusal can say which.
        for (name, value) in given {
            let key = KEYS.iter().find(|key| key.name == name).ok_or(SettingsError::NoSuchKey(name))?;
            let refused = |given, cause| SettingsError::NoSuchValue {
                key: key.name,
                given,
                cause,
                example: key.example,
            };
            let mut all = serde_json::to_value(&settings).map_err(|cause| refused(value.clone(), cause))?;
            if let Some(all) = all.as_object_mut() {
                all.insert(key.name.to_owned(), value.clone());
            }
            settings = serde_json::from_value(all).map_err(|cause| refused(value, cause))?;
        }
        settings.check()?;
        Ok(settings)
    }

    /// Whether the emulator can behave like this.
    ///
    /// # Errors
    /// A rate limit that nothing would ever meet, or that would not refuse.
    pub fn check(&self) -> Result<(), SettingsError> {
        for limit in &self.rate_limits {
            if let Some(action) = limit.action.as_deref().filter(|action| !ACTIONS.contains(action)) {
                return Err(SettingsError::NoSuchAction(action.to_owned()));
            }
            if !(400..600).contains(&limit.status) {
                return Err(SettingsError::NoRefusal(limit.status));
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_told_and_takes_its_example() {
        let Value::Object(all) = serde_json::to_value(Settings::default()).unwrap() else { unreachable!() };
        let mut known: Vec<&str> = all.keys().map(String::as_str).collect();
        let mut told: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        known.sort_unstable();
        told.sort_unstable();
        assert_eq!(known, told);
        for key in KEYS {
            let value: Value = serde_json::from_str(key.example).unwrap();
            let given = Value::Object([(key.name.to_owned(), value)].into_iter().collect());
            Settings::default().with(given).unwrap();
        }
    }

    #[test]
    fn a_refusal_names_the_key_and_says_what_it_takes() {
        for (given, words) in [
            (r#"{"readLagMs": "long"}"#, "readLagMs cannot be \"long\""),
            (
                r#"{"rateLimits": [{"burst": 0, "perMinute": 1}]}"#,
                "takes is [{\"burst\": 1, \"perMinute\": 10}]",
            ),
            (r#"{"readLag": 1}"#, "no readLag; there are entryDelayMs, latencyMs, readLagMs"),
            ("[]", "such as {\"readLagMs\": 2000}; this is []"),
            (
                r#"{"rateLimits": [{"action": "CreateRoute", "burst": 1, "perMinute": 1}]}"#,
                "CreateRoute, which is not emulated",
            ),
            (r#"{"rateLimits": [{"burst": 1, "perMinute": 1, "status": 200}]}"#, "status 200"),
        ] {
            let error =
                Settings::default().with(serde_json::from_str(given).unwrap()).unwrap_err().to_string();
            assert!(error.contains(words), "{given}: {error}");
        }
    }
}
