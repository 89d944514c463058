//! The `bandwidth` plugin's pure half: limits, the name of the link that shapes what a container sends, and the token buckets.
//!
//! Keys, refusals and arithmetic are those of the Go plugin. Its CHECK compares buckets bit by bit, so a node on which both plugins
//! run must compute the same ones.

use sha2::{Digest, Sha512};

use crate::conf::Config;
use crate::error::Error;
use crate::json::Fields;

/// What the names of shaping links begin with.
pub const IFB_PREFIX: &str = "bwp";
/// A shaping link's name is as long as a name can be.
const IFB_NAME_LENGTH: usize = 15;
/// The longest alias that the kernel keeps, in bytes.
const ALIAS_LENGTH: usize = 255;
const ALIAS_PREFIX: &str = "loden bandwidth ";

/// How long a packet may wait for tokens, in microseconds.
const LATENCY_MICROS: f64 = 25_000.0;
const MICROS_PER_SECOND: f64 = 1_000_000.0;
/// The packet scheduler's ticks are 64 ns long since Linux 2.6.31.
const TICKS_PER_MICRO: f64 = 15.625;
/// A bucket of four seconds' traffic lets every packet pass, and any burst that a pod can tell from an unlimited one.
const DEEP_ENOUGH: u32 = 4 * 15_625_000;

/// One direction's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits a second.
    pub rate: u64,
    /// Bits that may be sent at once.
    pub burst: u64,
}

/// Both directions' limits, seen from the container; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the container receives.
    pub ingress: Option<Limit>,
    /// What the container sends.
    pub egress: Option<Limit>,
}

impl Limits {
    /// Reads the limits. A key at the top outweighs everything that the runtime says in `runtimeConfig.bandwidth`.
    ///
    /// # Errors
    /// Keys of the wrong type, a rate without burst or a burst without rate, bursts of 4 GB and more, rates below one byte a second.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        let fields = config.fields()?;
        if KEYS.iter().any(|key| fields.get(key).is_some()) {
            return Self::read(&fields);
        }
        let runtime = fields.object("runtimeConfig").map_err(failed)?;
        let given = match &runtime {
            Some(runtime) => runtime.object("bandwidth").map_err(failed)?,
            None => None,
        };
        given.map_or(Ok(Self::default()), |given| Self::read(&given))
    }

    fn read(fields: &Fields<'_>) -> Result<Self, Error> {
        let number = |key| fields.unsigned(key).map(Option::unwrap_or_default).map_err(failed);
        let [ingress_rate, ingress_burst, egress_rate, egress_burst] = KEYS;
        Ok(Self {
            ingress: limit(number(ingress_rate)?, number(ingress_burst)?)?,
            egress: limit(number(egress_rate)?, number(egress_burst)?)?,
        })
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

fn failed(error: crate::json::Mismatch) -> Error {
    Error::internal(format!("failed to parse network configuration: {error}"))
}

fn limit(rate: u64, burst: u64) -> Result<Option<Limit>, Error> {
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => Err(Error::internal("if rate is set, burst must also be set")),
        (0, _) => Err(Error::internal("if burst is set, rate must also be set")),
        (_, burst) if burst / 8 >= u64::from(u32::MAX) => {
            Err(Error::internal("burst cannot be more than 4GB"))
        }
        // Not a byte would ever pass.
        (1..8, _) => {
            Err(Error::internal(format!("invalid rate: {rate}; it is in bits a second, at least 8")))
        }
        (_, 1..8) => Err(Error::internal(format!("invalid burst: {burst}; it is in bits, at least 8"))),
        (rate, burst) => Ok(Some(Limit { rate, burst })),
    }
}

/// A token bucket as the kernel takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// Depth in ticks of 64 ns at `rate`.
    pub buffer: u32,
}

impl Limit {
    /// The bucket that ADD makes: the Go plugin's own, unless that is broken.
    ///
    /// With the burst that runtimes set when a pod only names a rate (2³²−1 bits), the Go plugin's arithmetic overflows. Mostly what is left of
    /// the buffer is still seconds deep; where it is not, it may be too small for a single packet, and the deepest bucket is made instead.
    pub fn bucket(self) -> Bucket {
        let go = self.bucket_by(go_u32);
        let meant = self.bucket_by(saturating_u32);
        Bucket {
            buffer: if go.buffer >= meant.buffer.min(DEEP_ENOUGH) { go.buffer } else { meant.buffer },
            ..meant
        }
    }

    /// Whether `present` is the bucket of this limit, whichever plugin made it.
    ///
    /// # Errors
    /// What differs.
    pub fn check(self, present: Bucket) -> Result<(), Error> {
        let made = [self.bucket(), self.bucket_by(go_u32)];
        let differs = |what: &str| Err(Error::internal(format!("{what} doesn't match")));
        if made.iter().all(|bucket| bucket.rate != present.rate) {
            return differs("Rate");
        }
        if made.iter().all(|bucket| bucket.limit != present.limit) {
            return differs("Limit");
        }
        if made.iter().all(|bucket| bucket.buffer != present.buffer) {
            return differs("Buffer");
        }
        Ok(())
    }

    /// The Go plugin's arithmetic: floats, cut to 32 bits after each step by `cut`.
    #[expect(
        clippy::cast_precision_loss,
        reason = "the Go plugin computes with the same floats, and the results must be equal"
    )]
    fn bucket_by(self, cut: fn(f64) -> u32) -> Bucket {
        let (rate, burst) = (self.rate / 8, u32::try_from(self.burst / 8).unwrap_or(u32::MAX));
        let micros = cut(f64::from(burst) * MICROS_PER_SECOND / rate as f64);
        let waiting = cut(rate as f64 * LATENCY_MICROS / MICROS_PER_SECOND);
        Bucket {
            rate,
            limit: waiting.saturating_add(burst),
            buffer: cut(f64::from(micros) * TICKS_PER_MICRO),
        }
    }
}

/// What Go's `uint32(float)` gives: the low half of a 64 bit integer on x86, the nearest number on ARM.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the conversion is the point, and the numbers are not negative"
)]
fn go_u32(value: f64) -> u32 {
    if cfg!(target_arch = "x86_64") { value as i64 as u32 } else { value as u32 }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number that does not fit becomes the nearest one that does"
)]
fn saturating_u32(value: f64) -> u32 {
    value as u32
}

/// The name of the link that shapes what the container sends.
pub fn ifb_name(network: &str, container_id: &str) -> String {
    hashed(IFB_PREFIX, IFB_NAME_LENGTH, &format!("{network}{container_id}"))
}

/// The mark that a shaping link of ours carries as its alias; links of the Go plugin have none, and do not tell their network.
pub fn ifb_mark(network: &str) -> String {
    let mark = format!("{ALIAS_PREFIX}{network}");
    if mark.len() <= ALIAS_LENGTH { mark } else { hashed(ALIAS_PREFIX, ALIAS_PREFIX.len() + 128, network) }
}

/// `prefix` and as much of the text's SHA-512 as fits.
fn hashed(prefix: &str, length: usize, text: &str) -> String {
    let mut name = prefix.to_owned();
    for byte in Sha512::digest(text.as_bytes()) {
        name.push_str(&format!("{byte:02x}"));
    }
    name.truncate(length);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Limits, Error> {
        Limits::parse(&Config::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn the_top_outweighs_the_runtime_as_a_whole() {
        let both = r#"{"name":"n","ingressRate":80,"INGRESSBURST":160,
            "runtimeConfig":{"bandwidth":{"egressRate":8,"egressBurst":8}}}"#;
        let limits = parse(both).unwrap();
        assert_eq!(limits, Limits { ingress: Some(Limit { rate: 80, burst: 160 }), egress: None });
        let runtime = r#"{"name":"n","runtimeConfig":{"bandwidth":{"egressRate":8,"egressBurst":8}}}"#;
        assert_eq!(parse(runtime).unwrap().egress, Some(Limit { rate: 8, burst: 8 }));
        let zero =
            r#"{"name":"n","ingressRate":0,"runtimeConfig":{"bandwidth":{"egressRate":8,"egressBurst":8}}}"#;
        assert!(parse(zero).unwrap().is_unlimited());
        assert!(parse(r#"{"name":"n","runtimeConfig":{"bandwidth":null}}"#).unwrap().is_unlimited());
    }

    #[test]
    fn refusals() {
        let message = |keys: &str| parse(&format!(r#"{{"name":"n",{keys}}}"#)).unwrap_err().message;
        assert_eq!(message(r#""ingressRate":8"#), "if rate is set, burst must also be set");
        assert_eq!(message(r#""egressBurst":8"#), "if burst is set, rate must also be set");
        assert_eq!(message(r#""egressRate":8,"egressBurst":34359738360"#), "burst cannot be more than 4GB");
        assert!(message(r#""egressRate":7,"egressBurst":8"#).starts_with("invalid rate: 7"));
        assert!(message(r#""egressRate":8,"egressBurst":7"#).starts_with("invalid burst: 7"));
        assert!(
            message(r#""egressRate":-8,"egressBurst":8"#).contains("`egressRate`: expected a whole number")
        );
        assert!(message(r#""egressRate":"8""#).contains("egressRate"));
        assert!(parse(r#"{"name":"n","egressRate":18446744073709551615,"egressBurst":34359738352}"#).is_ok());
    }

    #[test]
    fn buckets_are_the_go_plugins() {
        let bucket = |rate, burst| Limit { rate, burst }.bucket();
        assert_eq!(bucket(1_000_000, 80_000), Bucket { rate: 125_000, limit: 13_125, buffer: 1_250_000 });
        assert_eq!(bucket(8, 16), Bucket { rate: 1, limit: 2, buffer: 31_250_000 });
        // What runtimes set as burst when a pod names a rate only: 343 s at 10 Mbit/s, cut to 32 bits of ticks.
        let unlimited = Limit { rate: 10_000_000, burst: u64::from(u32::MAX) };
        let made = unlimited.bucket();
        assert!(made.buffer >= DEEP_ENOUGH, "{made:?}");
        assert!(unlimited.check(made).is_ok());
        assert_eq!(made.limit, 31_250 + u32::MAX / 8);
    }

    #[test]
    fn an_overflow_never_leaves_a_shallow_bucket() {
        for rate in (0..40).map(|n| 8 + n * 7_654_321) {
            for burst in [8, 1 << 20, u64::from(u32::MAX), (u64::from(u32::MAX) - 1) * 8] {
                let limit = Limit { rate, burst };
                let (made, meant) = (limit.bucket(), limit.bucket_by(saturating_u32));
                assert!(made.buffer >= meant.buffer.min(DEEP_ENOUGH), "{limit:?} {made:?} {meant:?}");
                limit.check(made).unwrap();
                limit.check(limit.bucket_by(go_u32)).unwrap();
            }
        }
    }

    #[test]
    fn check_says_what_differs() {
        let limit = Limit { rate: 1_000_000, burst: 80_000 };
        let made = limit.bucket();
        let message = |bucket| limit.check(bucket).unwrap_err().message;
        assert_eq!(message(Bucket { rate: 1, ..made }), "Rate doesn't match");
        assert_eq!(message(Bucket { limit: 1, ..made }), "Limit doesn't match");
        assert_eq!(message(Bucket { buffer: 1, ..made }), "Buffer doesn't match");
    }

    #[test]
    fn names_and_marks_fit() {
        // printf nc | sha512sum
        assert_eq!(ifb_name("n", "c"), "bwpc97b5d9d7737");
        assert_eq!(ifb_mark("cbr0"), "loden bandwidth cbr0");
        let long = "n".repeat(300);
        assert!(ifb_mark(&long).len() <= ALIAS_LENGTH);
        assert_ne!(ifb_mark(&long), ifb_mark(&"m".repeat(300)));
    }
}
