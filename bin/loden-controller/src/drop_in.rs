//! Command lines written for the vendor's cloud-controller-manager.
//!
//! Owns the list of flags that a manifest of it may carry and that mean nothing here. They are taken out with a warning each, so that exchanging the image is
//! enough; a flag that nobody knows stays in and is an error. A flag that *means* something must never be listed: it would be lost without effect.

/// How a flag is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// A value follows, after `=` or as the next word.
    Always,
    /// As Go's booleans: alone, or with `=true` or `=false`.
    Boolean,
}

use Value::{Always, Boolean};

const KLOG: &str = "logging is set by --v and --logging-format";
const SERVICES: &str = "load balancers are not served here";
const BATCHES: &str = "changes are batched by what the API takes at once";
const TLS: &str = "nothing is served over TLS";
const WEBHOOKS: &str = "there are no webhooks";
const NODES: &str = "instances are asked about by what the API takes at once";
const UNUSED: &str = "it has no effect in the vendor's controller either";
const SERVING: &str = "only /healthz and /readyz are served, without TLS, at --health-probe-bind-addr";

/// Name, how it is written, and why it means nothing.
const PASSED_OVER: &[(&str, Value, &str)] = &[
    ("cloud-provider", Always, "there is one cloud"),
    ("cidr-allocator-type", Always, "subnets are cut from --cluster-cidr"),
    ("route-reconcile-batch-size", Always, BATCHES),
    ("node-reconcile-batch-size", Always, NODES),
    ("node-event-aggregation-wait-seconds", Always, BATCHES),
    ("route-max-concurrent-reconciles", Always, "the VPC takes one change at a time"),
    ("node-max-concurrent-reconciles", Always, NODES),
    ("node-status-update-frequency", Always, UNUSED),
    ("enable-imdsv2", Boolean, "the metadata service is always asked with a token"),
    ("max-throttling-retry-times", Always, SERVICES),
    ("max-concurrent-actions", Always, SERVICES),
    ("concurrent-service-syncs", Always, SERVICES),
    ("service-max-concurrent-reconciles", Always, SERVICES),
    ("pprof-bind-addr", Always, "there is no profiler"),
    ("profiling", Boolean, "there is no profiler"),
    ("contention-profiling", Boolean, "there is no profiler"),
    ("kube-api-qps", Always, "writes to the API server are bounded by their number at a time"),
    ("kube-api-burst", Always, "writes to the API server are bounded by their number at a time"),
    ("kube-api-content-type", Always, "the API server is spoken to in JSON"),
    (
        "min-resync-period",
        Always,
        "nodes are watched, and everything is listed each --route-reconciliation-period",
    ),
    ("leader-elect-resource-lock", Always, "leadership is always held by a Lease"),
    ("use-service-account-credentials", Boolean, "there is one service account"),
    ("feature-gates", Always, "there are no feature gates"),
    ("external-cloud-volume-plugin", Always, UNUSED),
    ("address", Always, SERVING),
    ("bind-address", Always, SERVING),
    ("port", Always, SERVING),
    ("secure-port", Always, SERVING),
    ("cert-dir", Always, SERVING),
    ("authentication-kubeconfig", Always, SERVING),
    ("authorization-kubeconfig", Always, SERVING),
    ("authentication-skip-lookup", Boolean, SERVING),
    ("requestheader-client-ca-file", Always, SERVING),
    ("authentication-tolerate-lookup-failure", Boolean, SERVING),
    ("authentication-token-webhook-cache-ttl", Always, SERVING),
    ("authorization-always-allow-paths", Always, SERVING),
    ("authorization-webhook-cache-authorized-ttl", Always, SERVING),
    ("authorization-webhook-cache-unauthorized-ttl", Always, SERVING),
    ("client-ca-file", Always, SERVING),
    ("http2-max-streams-per-connection", Always, SERVING),
    ("permit-address-sharing", Boolean, SERVING),
    ("permit-port-sharing", Boolean, SERVING),
    ("requestheader-allowed-names", Always, SERVING),
    ("requestheader-extra-headers-prefix", Always, SERVING),
    ("requestheader-group-headers", Always, SERVING),
    ("requestheader-username-headers", Always, SERVING),
    ("tls-cert-file", Always, TLS),
    ("tls-cipher-suites", Always, TLS),
    ("tls-min-version", Always, TLS),
    ("tls-private-key-file", Always, TLS),
    ("tls-sni-cert-key", Always, TLS),
    ("webhooks", Always, WEBHOOKS),
    ("webhook-bind-address", Always, WEBHOOKS),
    ("webhook-secure-port", Always, WEBHOOKS),
    ("allow-untagged-cloud", Boolean, "clusters are told apart by the mark on route entries"),
    ("controller-start-interval", Always, "there is one loop"),
    ("enable-leader-migration", Boolean, "the Lease is given by --leader-elect-resource-name"),
    ("leader-migration-config", Always, "the Lease is given by --leader-elect-resource-name"),
    ("disabled-metrics", Always, "all metrics are served, at --metrics-bind-addr"),
    ("show-hidden-metrics-for-version", Always, "all metrics are served, at --metrics-bind-addr"),
    ("add-dir-header", Boolean, KLOG),
    ("log-backtrace-at", Always, KLOG),
    ("log-file-max-size", Always, KLOG),
    ("one-output", Boolean, KLOG),
    ("skip-headers", Boolean, KLOG),
    ("skip-log-headers", Boolean, KLOG),
    ("logtostderr", Boolean, KLOG),
    ("alsologtostderr", Boolean, KLOG),
    ("stderrthreshold", Always, KLOG),
    ("log-dir", Always, KLOG),
    ("log-file", Always, KLOG),
    ("log-flush-frequency", Always, KLOG),
    ("vmodule", Always, KLOG),
];

/// A flag that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PassedOver {
    /// The flag, as `--name`.
    pub(crate) flag: String,
    /// Why it means nothing here.
    pub(crate) why: &'static str,
}

/// Parts a command line (without the program's name) into what is to be read and what means nothing.
pub(crate) fn part(arguments: impl IntoIterator<Item = String>) -> (Vec<String>, Vec<PassedOver>) {
    let (mut kept, mut passed_over) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(written) = argument.strip_prefix("--") else {
            kept.push(argument);
            continue;
        };
        let (name, given) = match written.split_once('=') {
            Some((name, _)) => (name, true),
            None => (written, false),
        };
        let Some((name, value, why)) = PASSED_OVER.iter().find(|(known, _, _)| *known == name) else {
            kept.push(argument);
            continue;
        };
        if !given && *value == Always {
            arguments.next_if(|next| !next.starts_with("--"));
        }
        passed_over.push(PassedOver { flag: format!("--{name}"), why });
    }
    (kept, passed_over)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::flags::Flags;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_vendors_command_line_is_taken() {
        let vendors = "--cloud-config=/etc/kubernetes/config/cloud-config.conf --controllers=node,route,service,nlb \
             --configure-cloud-routes=true --cluster-cidr=172.20.0.0/16 --allocate-node-cidrs=false \
             --route-reconciliation-period=3m --node-monitor-period=5m --route-reconcile-batch-size=50 \
             --node-reconcile-batch-size=100 --node-event-aggregation-wait-seconds=1 --skip-disable-source-dest-check=false \
             --enable-imdsv2=true --network=vpc --dry-run=false --max-throttling-retry-times=10 \
             --max-concurrent-actions 10 --cluster-name=c1 --cloud-provider=alibabacloud --metrics-bind-addr :8080 \
             --health-probe-bind-addr=:10258 --pprof-bind-addr=:6060 --kube-api-qps=20 --kube-api-burst=30 \
             --leader-elect=true --leader-elect-resource-lock=leases --leader-elect-resource-name=ccm \
             --leader-elect-resource-namespace=kube-system --leader-elect-lease-duration=15s \
             --leader-elect-renew-deadline=10s --leader-elect-retry-period=2s \
             --use-service-account-credentials=true --feature-gates=IPv6DualStack=true --v=2";
        let (kept, passed_over) = part(words(vendors));
        let flags =
            Flags::try_parse_from(std::iter::once("loden-controller".to_owned()).chain(kept)).unwrap();
        assert!(flags.routes_wanted() && flags.nodes_wanted() && !flags.ipam_wanted() && !flags.dry_run);
        assert!(!flags.skip_disable_source_dest_check);
        assert_eq!(flags.leader_elect_resource_name, "ccm");
        assert_eq!(flags.cluster_name.as_deref(), Some("c1"));
        let names: Vec<&str> = passed_over.iter().map(|flag| flag.flag.as_str()).collect();
        assert_eq!(names.len(), 13, "{names:?}");
        assert!(names.contains(&"--max-concurrent-actions") && !names.contains(&"--metrics-bind-addr"));
    }

    #[test]
    fn values_go_with_their_flags_and_nothing_else_does() {
        let (kept, passed_over) =
            part(words("--port 10 --v=2 --profiling --dry-run --vmodule --leader-elect"));
        assert_eq!(kept, ["--v=2", "--dry-run", "--leader-elect"]);
        assert_eq!(passed_over.len(), 3);
        let (kept, _) = part(words("--nonsense=1 --cluster-cidrs x"));
        assert_eq!(kept, ["--nonsense=1", "--cluster-cidrs", "x"], "what nobody knows is left to be refused");
    }

    #[test]
    fn no_flag_that_means_something_is_passed_over() {
        let command = Flags::command();
        for argument in command.get_arguments() {
            let names =
                argument.get_long().into_iter().chain(argument.get_all_aliases().into_iter().flatten());
            for name in names {
                assert!(!PASSED_OVER.iter().any(|(known, _, _)| *known == name), "--{name}");
            }
        }
    }
}
