//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum};
use ipnet::IpNet;

const EXAMPLES: &str = "\
Examples:
  In a cluster on ECS, with the credentials of the instance's RAM role:
    loden-controller --cluster-cidr=172.20.0.0/16 --service-cluster-ip-range=172.21.0.0/20

  See what it would do, without doing it:
    loden-controller --kubeconfig=admin.conf --cluster-cidr=172.20.0.0/16 --dry-run

  Pod CIDRs come from kube-controller-manager; a VPC with two route tables:
    loden-controller --cluster-cidr=172.20.0.0/16 --allocate-node-cidrs=false \\
        --route-table-ids=vtb-sys,vtb-2

Credentials are taken from /var/addon/token-config where a managed cluster has put it, else from the cloud-config file, else from ACCESS_KEY_ID and \
ACCESS_KEY_SECRET (with SECURITY_TOKEN where they are temporary), else from the role that the pod's service account may have (RRSA: \
ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE), else from the instance's RAM role. The endpoints of the \
cloud can be set by METADATA_ENDPOINT, VPC_ENDPOINT, ECS_ENDPOINT, QUOTAS_ENDPOINT, STS_ENDPOINT and ALICLOUD_CLIENT_SCHEME.

What it changes: spec.podCIDRs and spec.providerID of nodes that have none; addresses of nodes, and those of their labels that tell of the instance; the \
taint node.cloudprovider.kubernetes.io/uninitialized, which it takes away last; route entries inside --cluster-cidr; the NetworkUnavailable condition \
of nodes; the source/destination check of nodes' primary network interfaces. It deletes Node objects whose kubelet is silent and whose instance is \
gone; it removes route entries that it made, and entries of others only when they equal a live node's pod CIDR and point elsewhere, or lie inside \
one. With it, flanneld runs with --set-node-network-unavailable=false.

In place of the vendor's cloud-controller-manager it takes that one's command line: flags that mean nothing here are passed over with a warning.

Exit codes: 0 stopped by a signal, or the dry run was printed; 1 a failure, explained on standard error; 2 the command line cannot be read.";

/// The route, node and node-IPAM controller: gives each node a subnet of the pod CIDR, and keeps one route entry per node in the VPC.
#[derive(Debug, Clone, Parser)]
#[command(name = "loden-controller", version, after_long_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Flags {
    /// Path of a kubeconfig; without it the service account of the pod is used
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// URL of the API server; replaces the one in the kubeconfig
    #[arg(long, alias = "kube-api-url", value_name = "URL")]
    pub(crate) master: Option<String>,

    /// The pod CIDRs: nodes' subnets are cut from them, one of each family, and route entries outside are never touched
    #[arg(long, value_name = "CIDR", value_delimiter = ',', required = true)]
    pub(crate) cluster_cidr: Vec<IpNet>,
    /// Give subnets to each node that has none; `false` where kube-controller-manager does it. Without the flag: where --controllers names `ipam`, or is
    /// not given
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) allocate_node_cidrs: Option<bool>,
    /// Mask of a node's subnet in a cluster of one family (24, or 64 with IPv6)
    #[arg(long, value_name = "BITS")]
    pub(crate) node_cidr_mask_size: Option<u8>,
    /// Mask of a node's IPv4 subnet (24)
    #[arg(long, value_name = "BITS")]
    pub(crate) node_cidr_mask_size_ipv4: Option<u8>,
    /// Mask of a node's IPv6 subnet (64)
    #[arg(long, value_name = "BITS")]
    pub(crate) node_cidr_mask_size_ipv6: Option<u8>,
    /// The service CIDRs: no node gets a subnet that overlaps it
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub(crate) service_cluster_ip_range: Vec<IpNet>,

    /// Keep route entries; `false` leaves the VPC and the nodes' conditions alone
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) configure_cloud_routes: bool,
    /// Controllers to run: `route`, `node`, `ipam`, or `*` for all that are not named with a `-` before them; all where it is not given. Others of the
    /// vendor's cloud-controller-manager are not here
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) controllers: Vec<String>,
    /// How often the cloud is asked about nodes' instances though nothing happened
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(crate) node_monitor_period: Duration,
    /// How often everything is listed though nothing happened (`5m`, `30s`)
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub(crate) route_reconciliation_period: Duration,
    /// Route tables to serve besides the VPC's system table, which always is; `discover` serves those that nodes' vSwitches route by
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(crate) route_table_ids: Vec<String>,
    /// Custom route entries that a table takes; learned from the API's refusals where it is not given
    #[arg(long, value_name = "COUNT")]
    pub(crate) route_quota: Option<usize>,
    /// Ask Quota Center for the quota (needs quotas:GetProductQuota, and a way to quotas.aliyuncs.com)
    #[arg(long)]
    pub(crate) read_route_quota: bool,
    /// How long an entry of ours must have been without a node before it is removed, when the node was not seen leaving
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub(crate) stale_route_grace_period: Duration,
    /// Entries of departed nodes that may be removed within a minute, in percent of the nodes (ten at least); 100: all at once
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) max_stale_routes_percent: u16,
    /// Entries of others on nodes' pod CIDRs that may be removed from a table within a minute, in percent of the nodes (ten at least); 100: all at once
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) max_conflicting_routes_percent: u16,
    /// Leave the source/destination check of nodes' network interfaces as it is
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) skip_disable_source_dest_check: bool,

    /// Marks our route entries; derived from VPC and pod CIDR where it is not given
    #[arg(long, value_name = "ID")]
    pub(crate) cluster_id: Option<String>,
    /// Taken as --cluster-id where that is not given
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster_name: Option<String>,
    /// The vendor's cloud-config file (JSON or YAML); what changes in it takes effect without a restart
    #[arg(long, value_name = "FILE")]
    pub(crate) cloud_config: Option<PathBuf>,
    /// Region; from the metadata service where it is not given
    #[arg(long, value_name = "ID")]
    pub(crate) region: Option<String>,
    /// VPC; from the metadata service where it is not given
    #[arg(long, value_name = "ID")]
    pub(crate) vpc_id: Option<String>,
    /// Which of the vendor's endpoints to use
    #[arg(long, value_enum, default_value_t = Network::Vpc)]
    pub(crate) network: Network,

    /// Print what would be done and exit; nothing is written anywhere
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) dry_run: bool,

    /// Wait for leadership before doing anything
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub(crate) leader_elect: bool,
    /// Namespace of the Lease
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub(crate) leader_elect_resource_namespace: String,
    /// Name of the Lease
    #[arg(long, value_name = "NAME", default_value = "loden-controller")]
    pub(crate) leader_elect_resource_name: String,
    /// How long a silent leader keeps its place
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub(crate) leader_elect_lease_duration: Duration,
    /// How long the leader tries to renew before it gives up
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) leader_elect_renew_deadline: Duration,
    /// The pause between attempts
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub(crate) leader_elect_retry_period: Duration,

    /// Address of /healthz and /readyz; `0` switches them off
    #[arg(long, value_name = "ADDRESS", default_value = ":10258", value_parser = address)]
    pub(crate) health_probe_bind_addr: Address,
    /// Address of /metrics; `0` switches it off. Without the flag it is 127.0.0.1:8080 where that is free, as on a node's own network it is for those on the node
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) metrics_bind_addr: Option<Address>,
    /// Log more: 1 to 4 what the controller decides, 5 and more also what its libraries do
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0)]
    pub(crate) v: i32,
    /// How a log line looks
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) logging_format: LogFormat,
}

impl Flags {
    /// Whether route entries are to be kept.
    pub(crate) fn routes_wanted(&self) -> bool {
        self.configure_cloud_routes && self.lists("route")
    }

    /// Whether nodes are to be told of their instances.
    pub(crate) fn nodes_wanted(&self) -> bool {
        self.lists("node")
    }

    /// Whether nodes are to be given subnets. The vendor's list of controllers knows no such thing, and its clusters have another allocator.
    pub(crate) fn ipam_wanted(&self) -> bool {
        self.allocate_node_cidrs.unwrap_or_else(|| self.lists("ipam"))
    }

    fn lists(&self, name: &str) -> bool {
        let named = |wanted: &str| self.controllers.iter().any(|controller| controller.trim() == wanted);
        self.controllers.is_empty() || named(name) || (named("*") && !named(&format!("-{name}")))
    }
}

/// The vendor's networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// Reachable from inside a VPC.
    Vpc,
    /// Reachable from the internet.
    Public,
}

/// Forms of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// One line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where to listen, if anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) Option<SocketAddr>);

/// Reads `0`, `:port` and `address:port`.
fn address(text: &str) -> Result<Address, String> {
    if text == "0" {
        return Ok(Address(None));
    }
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse()
        .map(|address| Address(Some(address)))
        .map_err(|_| "write `address:port`, `:port`, or `0`".to_owned())
}

/// Reads durations as Go prints them: `5m`, `1m30s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a duration as `5m`, `1m30s` or `500ms`".to_owned();
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, unit) = rest.split_at(digits);
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, next) = unit.split_at(length);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = next;
    }
    if total.is_zero() { Err("it must be longer than nothing".to_owned()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Flags::command().debug_assert();
    }

    #[test]
    fn booleans_are_written_as_upstream_does() {
        let base = ["loden-controller", "--cluster-cidr=172.20.0.0/16"];
        let flags = Flags::parse_from(base);
        assert!(flags.ipam_wanted() && flags.configure_cloud_routes && flags.leader_elect);
        let flags =
            Flags::parse_from(base.into_iter().chain(["--allocate-node-cidrs=false", "--leader-elect"]));
        assert!(!flags.ipam_wanted() && flags.leader_elect);
        let flags = Flags::parse_from(base.into_iter().chain(["--allocate-node-cidrs"]));
        assert_eq!(flags.allocate_node_cidrs, Some(true));
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        for (arguments, wanted) in [
            ("", [true, true, true]),
            ("--controllers=*", [true, true, true]),
            ("--controllers=*,-node", [true, false, true]),
            ("--controllers=node,route,service,nlb", [true, true, false]),
            ("--controllers=node,route --allocate-node-cidrs", [true, true, true]),
            ("--controllers=ipam", [false, false, true]),
            ("--controllers=ipam --allocate-node-cidrs=false", [false, false, false]),
            ("--configure-cloud-routes=false", [false, true, true]),
        ] {
            let base = ["loden-controller", "--cluster-cidr=172.20.0.0/16"];
            let flags = Flags::parse_from(base.into_iter().chain(arguments.split_whitespace()));
            let found = [flags.routes_wanted(), flags.nodes_wanted(), flags.ipam_wanted()];
            assert_eq!(found, wanted, "{arguments}");
        }
    }

    #[test]
    fn routes_are_switched_off_as_upstream_does() {
        for (arguments, wanted) in [
            ("", true),
            ("--controllers=node,route,service,nlb", true),
            ("--controllers=*", true),
            ("--controllers=*,-route", false),
            ("--controllers=node,service", false),
            ("--configure-cloud-routes=false", false),
            ("--controllers=route --configure-cloud-routes=false", false),
        ] {
            let base = ["loden-controller", "--cluster-cidr=172.20.0.0/16"];
            let flags = Flags::parse_from(base.into_iter().chain(arguments.split_whitespace()));
            assert_eq!(flags.routes_wanted(), wanted, "{arguments}");
        }
    }

    #[test]
    fn durations_and_addresses_read_as_in_go() {
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "5", "m", "5x", "0s", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(address("0"), Ok(Address(None)));
        assert_eq!(address(":10258").unwrap().0.unwrap().port(), 10258);
        assert!(address("nowhere").is_err());
    }
}
