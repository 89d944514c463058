//! The controller in numbers, as Prometheus reads them.
//!
//! Scrapes read what the loop published last, so they never wait for the loop and the loop never waits for them. What the loop publishes costs one pass over
//! the entries of each table, at most once a second and only after something happened. Every name here is explained in `docs/operations.md`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use loden_addr::Occupancy;
use loden_routes::controller::{Figures, Severity, TableFigures, Why};
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::process::ProcessMetrics;

/// The content type of [`Metrics::text`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// The metrics of one process. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    calls: Family<Labels, Counter>,
    call_seconds: Durations,
    throttled: Counter<f64, AtomicU64>,
    entries: Family<Labels, Gauge>,
    quota_used: Family<Labels, Gauge>,
    quota_limit: Family<Labels, Gauge>,
    nodes: Gauge,
    nodes_available: Gauge,
    nodes_unserved: Gauge,
    queue: Gauge,
    time_to_route: Histogram,
    waiting: Family<Labels, Gauge>,
    leader: Gauge,
    ready: Gauge,
    reloads: Family<Labels, Counter>,
    events: Family<Labels, Counter>,
    subnets: Family<Labels, Gauge>,
    nodes_without_subnet: Gauge,
    /// What has no value when there is nothing to say, for which a family is the only way.
    credentials_end: Family<Labels, Gauge>,
    credentials_fail: Gauge,
    credentials: OnceLock<Credentials>,
    process: ProcessMetrics,
    published: Mutex<Published>,
}

/// How the cloud's credentials stand at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CredentialFigures {
    /// How long they are still good for; nothing for those that do not end.
    pub left: Option<Duration>,
    /// Whether the last attempt at fetching others failed.
    pub fetching_fails: bool,
}

/// Who knows how the credentials stand.
struct Credentials(Box<dyn Fn() -> CredentialFigures + Send + Sync>);

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// What was published last, so that what is gone goes from the metrics too.
#[derive(Debug, Default)]
struct Published {
    tables: BTreeSet<String>,
    throttled: Duration,
    why: Option<Why>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new("unknown")
    }
}

impl Metrics {
    /// Metrics at zero, of a program of this version.
    #[must_use]
    pub fn new(version: &str) -> Self {
        let mut registry = Registry::with_prefix("loden");
        let call_seconds: Durations = Family::new_with_constructor(call_buckets);
        let mut shared = Shared {
            registry: Registry::default(),
            calls: Family::default(),
            call_seconds,
            throttled: Counter::default(),
            entries: Family::default(),
            quota_used: Family::default(),
            quota_limit: Family::default(),
            nodes: Gauge::default(),
            nodes_available: Gauge::default(),
            nodes_unserved: Gauge::default(),
            queue: Gauge::default(),
            // 50 ms to 27 minutes.
            time_to_route: Histogram::new(exponential_buckets(0.05, 2.0, 16)),
            waiting: Family::default(),
            leader: Gauge::default(),
            ready: Gauge::default(),
            reloads: Family::default(),
            events: Family::default(),
            subnets: Family::default(),
            nodes_without_subnet: Gauge::default(),
            credentials_end: Family::default(),
            credentials_fail: Gauge::default(),
            credentials: OnceLock::new(),
            process: ProcessMetrics::new(),
            published: Mutex::default(),
        };
        let build = Info::new(vec![("version", version.to_owned())]);
        registry.register("build", "The program", build);
        let s = &shared;
        registry.register("cloud_calls", "Calls to the cloud by action and code", s.calls.clone());
        registry.register(
            "cloud_call_duration_seconds",
            "How long calls to the cloud took, by action",
            s.call_seconds.clone(),
        );
        registry.register(
            "cloud_throttled_seconds",
            "How long calls were held back after the API said that they are too many",
            s.throttled.clone(),
        );
        registry.register("route_entries", "Route entries by table and state", s.entries.clone());
        registry.register(
            "route_quota_used",
            "Custom entries of a table, which its quota counts",
            s.quota_used.clone(),
        );
        registry.register(
            "route_quota_limit",
            "Custom entries that a table takes; absent where not known",
            s.quota_limit.clone(),
        );
        registry.register("nodes", "Nodes of the cluster", s.nodes.clone());
        registry.register(
            "nodes_available",
            "Nodes whose NetworkUnavailable is False",
            s.nodes_available.clone(),
        );
        registry.register(
            "nodes_unserved",
            "Nodes that get no entry for a reason of their own",
            s.nodes_unserved.clone(),
        );
        registry.register("queue_depth", "Nodes, instances and entries that wait", s.queue.clone());
        registry.register(
            "time_to_route_seconds",
            "From a node's joining to its being available, one observation per node",
            s.time_to_route.clone(),
        );
        registry.register("waiting", "1 for what the controller waits for now", s.waiting.clone());
        registry.register("leader", "1 while this process leads", s.leader.clone());
        registry.register("ready", "1 while this process is ready", s.ready.clone());
        registry.register("config_reloads", "Changes of the cloud-config file by outcome", s.reloads.clone());
        registry.register("events", "Events told, by reason and type", s.events.clone());
        registry.register(
            "ipam_subnets",
            "Node subnets of each pod CIDR: held by nodes, and free",
            s.subnets.clone(),
        );
        registry.register(
            "ipam_nodes_without_subnet",
            "Nodes for which no subnet is left",
            s.nodes_without_subnet.clone(),
        );
        registry.register(
            "cloud_credentials_left_seconds",
            "How long the temporary credentials fetched last are still good for; absent for a key that does not end",
            s.credentials_end.clone(),
        );
        registry.register(
            "cloud_credentials_fetch_fails",
            "1 while the last attempt at fetching temporary credentials failed",
            s.credentials_fail.clone(),
        );
        shared.registry = registry;
        // Known from the start, so that a rate over them is right from the first one on.
        for outcome in ["taken", "broken"] {
            shared.reloads.get_or_create(&vec![("outcome", outcome.to_owned())]).inc_by(0);
        }
        Self { shared: Arc::new(shared) }
    }

    /// All of them in the text format of OpenMetrics.
    #[must_use]
    pub fn text(&self) -> String {
        if let Some(Credentials(ask)) = self.shared.credentials.get() {
            let figures = ask();
            match figures.left {
                Some(left) => {
                    let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
                    self.shared.credentials_end.get_or_create(&Labels::new()).set(seconds);
                }
                None => {
                    self.shared.credentials_end.remove(&Labels::new());
                }
            }
            self.shared.credentials_fail.set(i64::from(figures.fetching_fails));
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut text, &self.shared.registry);
        let _ = encode_registry(&mut text, self.shared.process.now());
        let _ = encode_eof(&mut text);
        text
    }

    /// Asks `how` about the cloud's credentials at each scrape from now on. It must not wait for anything. Only the first one given is asked.
    pub fn ask_of_credentials(&self, how: impl Fn() -> CredentialFigures + Send + Sync + 'static) {
        let _asked_already = self.shared.credentials.set(Credentials(Box::new(how)));
    }

    /// A call to the cloud ended.
    pub fn call_ended(&self, action: &'static str, code: &str, took: Duration) {
        let action = ("action", action.to_owned());
        self.shared.calls.get_or_create(&vec![action.clone(), ("code", code.to_owned())]).inc();
        self.shared.call_seconds.get_or_create(&vec![action]).observe(took.as_secs_f64());
    }

    /// Whether this process leads.
    pub fn set_leading(&self, leading: bool) {
        self.shared.leader.set(i64::from(leading));
    }

    /// The cloud-config file changed; whether it could be taken.
    pub fn reloaded(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "broken" };
        self.shared.reloads.get_or_create(&vec![("outcome", outcome.to_owned())]).inc();
    }

    /// People were told.
    pub(crate) fn told(&self, reason: &str, severity: Severity) {
        let kind = match severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        let labels = vec![("reason", reason.to_owned()), ("type", kind.to_owned())];
        self.shared.events.get_or_create(&labels).inc();
    }

    pub(crate) fn set_ready(&self, ready: bool) {
        self.shared.ready.set(i64::from(ready));
    }

    pub(crate) fn set_waiting(&self, why: Why) {
        let old = self.published().why.replace(why);
        if old == Some(why) {
            return;
        }
        if let Some(old) = old {
            self.shared.waiting.remove(&vec![("why", word(old).to_owned())]);
        }
        self.shared.waiting.get_or_create(&vec![("why", word(why).to_owned())]).set(1);
    }

    pub(crate) fn routed(&self, took: Duration) {
        self.shared.time_to_route.observe(took.as_secs_f64());
    }

    pub(crate) fn publish(&self, figures: &Figures) {
        let mut published = self.published();
        let tables: BTreeSet<String> = figures.tables.keys().map(|id| id.as_str().to_owned()).collect();
        for gone in published.tables.difference(&tables) {
            for (state, _) in states(&TableFigures::default()) {
                self.shared.entries.remove(&entry_labels(gone, state));
            }
            let labels = vec![("table", gone.clone())];
            self.shared.quota_used.remove(&labels);
            self.shared.quota_limit.remove(&labels);
        }
        for (id, table) in &figures.tables {
            for (state, count) in states(table) {
                self.shared.entries.get_or_create(&entry_labels(id.as_str(), state)).set(whole(count));
            }
            let labels = vec![("table", id.as_str().to_owned())];
            self.shared.quota_used.get_or_create(&labels).set(whole(table.used));
            match table.limit {
                Some(limit) => {
                    self.shared.quota_limit.get_or_create(&labels).set(whole(limit));
                }
                None => {
                    self.shared.quota_limit.remove(&labels);
                }
            }
        }
        published.tables = tables;
        self.shared.nodes.set(whole(figures.nodes));
        self.shared.nodes_available.set(whole(figures.available));
        self.shared.nodes_unserved.set(whole(figures.unserved));
        self.shared.queue.set(whole(figures.queued));
        let more = figures.throttled.saturating_sub(published.throttled);
        self.shared.throttled.inc_by(more.as_secs_f64());
        published.throttled += more;
    }

    pub(crate) fn publish_ipam(&self, (ranges, without): &(Vec<Occupancy>, usize)) {
        for range in ranges {
            let family = if matches!(range.pod_cidr, IpNet::V4(_)) { "ipv4" } else { "ipv6" };
            let free = i64::try_from(range.free).unwrap_or(i64::MAX);
            for (state, count) in [("held", whole(range.held)), ("free", free)] {
                let labels = vec![
                    ("cidr", range.pod_cidr.to_string()),
                    ("family", family.to_owned()),
                    ("state", state.to_owned()),
                ];
                self.shared.subnets.get_or_create(&labels).set(count);
            }
        }
        self.shared.nodes_without_subnet.set(whole(*without));
    }

    fn published(&self) -> MutexGuard<'_, Published> {
        // Held by the loop alone; what a panic left there is at worst published again.
        self.shared.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// 5 ms to 20 s, the client's deadline.
fn call_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 2.0, 13))
}

fn states(table: &TableFigures) -> [(&'static str, usize); 5] {
    [
        ("desired", table.desired),
        ("installed", table.installed),
        ("conflicting", table.conflicting),
        ("foreign", table.foreign),
        ("waiting", table.waiting),
    ]
}

fn entry_labels(table: &str, state: &str) -> Labels {
    vec![("table", table.to_owned()), ("state", state.to_owned())]
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn word(why: Why) -> &'static str {
    match why {
        Why::Nodes => "nodes",
        Why::Answer => "answer",
        Why::Pause => "pause",
        Why::Pace => "pace",
        Why::Burst => "burst",
        Why::Settling => "settling",
        Why::Retry => "retry",
        Why::QuotaProbe => "quota_probe",
        Why::Grace => "grace",
        Why::SecondLook => "second_look",
        Why::Audit => "audit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(table: &str, limit: Option<usize>, throttled: u64) -> Figures {
        let row = TableFigures { desired: 3, installed: 2, used: 7, limit, ..TableFigures::default() };
        Figures {
            tables: [(table.into(), row)].into(),
            nodes: 3,
            throttled: Duration::from_secs(throttled),
            ..Figures::default()
        }
    }

    #[test]
    fn what_is_gone_is_no_longer_told() {
        let metrics = Metrics::new("1.2.3");
        metrics.publish(&figures("vtb-a", Some(200), 4));
        metrics.publish(&figures("vtb-b", None, 6));
        metrics.set_waiting(Why::Answer);
        metrics.set_waiting(Why::Audit);
        let text = metrics.text();
        for line in [
            "loden_build_info{version=\"1.2.3\"} 1",
            "loden_route_entries{table=\"vtb-b\",state=\"installed\"} 2",
            "loden_route_quota_used{table=\"vtb-b\"} 7",
            "loden_cloud_throttled_seconds_total 6.0",
            "loden_waiting{why=\"audit\"} 1",
            "loden_nodes 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(!text.contains("vtb-a") && !text.contains("why=\"answer\""), "{text}");
        assert!(!text.contains("loden_route_quota_limit{"), "{text}");
    }

    #[test]
    fn credentials_and_the_process_are_looked_at_when_somebody_asks() {
        let metrics = Metrics::new("1");
        assert!(!metrics.text().contains("\nloden_cloud_credentials_left_seconds"));
        let left = Arc::new(Mutex::new(Some(Duration::from_millis(90_500))));
        let asked = Arc::clone(&left);
        metrics.ask_of_credentials(move || {
            let left = *asked.lock().unwrap();
            CredentialFigures { left, fetching_fails: left.is_some() }
        });
        let text = metrics.text();
        assert!(text.contains("loden_cloud_credentials_left_seconds{} 90\n"), "{text}");
        assert!(text.contains("loden_cloud_credentials_fetch_fails 1\n"), "{text}");
        assert!(text.contains("process_resident_memory_bytes ") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
        *left.lock().unwrap() = None;
        assert!(!metrics.text().contains("\nloden_cloud_credentials_left_seconds"));
    }

    #[test]
    fn pod_cidrs_are_told_by_family() {
        let metrics = Metrics::new("1");
        let range = |net: &str, free| Occupancy { pod_cidr: net.parse().unwrap(), held: 3, free };
        metrics.publish_ipam(&(vec![range("172.20.0.0/16", 253), range("fd00::/16", u128::MAX)], 2));
        let text = metrics.text();
        for line in [
            "loden_ipam_subnets{cidr=\"172.20.0.0/16\",family=\"ipv4\",state=\"free\"} 253",
            "loden_ipam_subnets{cidr=\"172.20.0.0/16\",family=\"ipv4\",state=\"held\"} 3",
            "loden_ipam_subnets{cidr=\"fd00::/16\",family=\"ipv6\",state=\"free\"} 9223372036854775807",
            "loden_ipam_nodes_without_subnet 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
