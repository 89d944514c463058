//! From flags to a running controller.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use ipnet::IpNet;
use loden_addr::{ClusterIpam, PodRange};
use loden_cloud::{Client, ConfigWatch, Connection, Environment, Observe, Reload};
use loden_controller_driver::{
    CredentialFigures, Driver, Instruction, IpamSettings, METRICS_CONTENT_TYPE, Metrics, NodeSettings, Parts,
    Place, dry_run, watch_options,
};
use loden_kube::{Access, Campaign, Cluster, EventKind, Regarding};
use loden_routes::controller::{About, Notice, Settings, Severity};
use loden_routes::mark::ClusterId;
use loden_routes::model::VpcId;
use loden_routes::port::{FailureClass, ReadRouteTables};
use loden_routes::tables::{Served, TableChoice};
use loden_telemetry::{HealthServer, Page, Readiness};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::flags::{Address, Flags, Network};

/// How long a dry run waits for the list of nodes.
const NODES_PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(flags: Flags) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        prepared = prepare(&flags) => {
            let prepared = prepared?;
            if flags.dry_run {
                return preview(prepared).await;
            }
            let stop = async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("asked to stop");
            };
            lead(&flags, prepared, stop).await
        }
    }
}

struct Prepared {
    cluster: Cluster,
    routes: Option<(Settings, Client)>,
    node_control: Option<(NodeSettings, Client)>,
    ipam: Option<IpamSettings>,
    /// What is wrong with the cluster's ranges and does not keep the controller from working.
    overlaps: Vec<String>,
    metrics: Metrics,
    /// Tells of changes of the cloud-config file, where there is one.
    config: Option<ConfigWatch>,
}

/// Reads and tries everything that can be wrong before anything is done.
async fn prepare(flags: &Flags) -> Result<Prepared> {
    let pod_cidrs = canonical("--cluster-cidr", &flags.cluster_cidr)?;
    let services = canonical("--service-cluster-ip-range", &flags.service_cluster_ip_range)?;
    let mut ipam = ipam_settings(flags, &pod_cidrs, &services)?;

    let access = Access { kubeconfig: flags.kubeconfig.clone(), server: flags.master.clone() };
    let cluster = loden_kube::connect(&access).await?;
    match cluster.version().await {
        Ok(version) => tracing::info!(server = cluster.server(), %version, "Kubernetes"),
        Err(error) if error.is_transient() && !flags.dry_run => tracing::warn!(%error, "going on without"),
        Err(error) => return Err(error.into()),
    }

    let mut overlaps = Vec::new();
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
    let (cloud, config) = if flags.routes_wanted() || flags.nodes_wanted() {
        let (cloud, config) = prepare_cloud(flags, &metrics).await?;
        (Some(cloud), config)
    } else {
        (None, None)
    };
    let node_control = cloud
        .as_ref()
        .filter(|_| flags.nodes_wanted())
        .map(|cloud| (node_settings(flags, cloud, &pod_cidrs), cloud.client.clone()));
    let routes = if let Some(cloud) = cloud.filter(|_| flags.routes_wanted()) {
        let settings = route_settings(flags, &cloud, pod_cidrs.clone())?;
        try_tables(&cloud, &settings).await?;
        let client = cloud.client;
        match client.vpc_cidrs(&settings.vpc).await {
            Ok(vpc) => overlaps = compare_with_vpc(&vpc, &pod_cidrs, &services, ipam.as_mut())?,
            Err(failure) => {
                tracing::warn!(%failure, "whether the cluster's ranges overlap the VPC's is not known");
            }
        }
        for overlap in &overlaps {
            tracing::warn!("{overlap}");
        }
        Some((settings, client))
    } else {
        tracing::info!("no route entries are kept");
        None
    };
    Ok(Prepared { cluster, routes, node_control, ipam, overlaps, metrics, config })
}

/// Holds the cluster's ranges against those of the VPC. Where they overlap no node is given a subnet; what that leaves to be known is returned. A cluster
/// that already lives with an overlap is worse off without a controller than with one, so only what could never work is an error.
fn compare_with_vpc(
    vpc: &[IpNet],
    pods: &[IpNet],
    services: &[IpNet],
    ipam: Option<&mut IpamSettings>,
) -> Result<Vec<String>> {
    let shared = |nets: &[IpNet]| -> Vec<(IpNet, IpNet)> {
        let pairs = nets.iter().flat_map(|net| vpc.iter().map(move |range| (*net, *range)));
        pairs.filter(|(net, range)| loden_addr::overlap(*net, *range)).collect()
    };
    let (pods, services) = (shared(pods), shared(services));
    if let Some(ipam) = ipam {
        ipam.reserved.extend(pods.iter().map(|(_, range)| *range));
        let mut pool = ClusterIpam::new(&ipam.ranges, &ipam.reserved)?;
        if let (Some((pod_cidr, range)), Err(_)) = (pods.first(), pool.assign("a node")) {
            bail!(
                "--cluster-cidr={pod_cidr} lies in the VPC's own range {range}, so a pod and a machine of the VPC could have the same address, and no node can be given a subnet; choose a pod CIDR outside the VPC (see `loden plan`), or --allocate-node-cidrs=false where the cluster lives with that already"
            );
        }
    }
    let pods = pods.iter().map(|(pod_cidr, range)| {
        format!(
            "the pod CIDR {pod_cidr} overlaps the VPC's own range {range}: a pod and a machine of the VPC could have the same address, and the VPC refuses route entries for addresses of a vSwitch; put no vSwitch there, and build the next cluster outside the VPC's ranges"
        )
    });
    let services = services.iter().map(|(service_cidr, range)| {
        format!(
            "the service CIDR {service_cidr} overlaps the VPC's own range {range}: machines in the shared part cannot be reached from pods; put no vSwitch there"
        )
    });
    Ok(pods.chain(services).collect())
}

async fn prepare_cloud(flags: &Flags, metrics: &Metrics) -> Result<(Connection, Option<ConfigWatch>)> {
    let options = loden_cloud::Options {
        cloud_config: flags.cloud_config.clone(),
        region: flags.region.clone(),
        vpc_id: flags.vpc_id.clone(),
        network: match flags.network {
            Network::Vpc => loden_cloud::Network::Vpc,
            Network::Public => loden_cloud::Network::Public,
        },
        environment: Environment::of_process(),
    };
    let mut cloud = loden_cloud::connect(&options).await?;
    for remark in &cloud.remarks {
        tracing::warn!("cloud config: {remark}");
    }
    cloud.client = cloud.client.observed_by(Arc::new(Calls(metrics.clone())));
    let credentials = cloud.credentials.clone();
    metrics.ask_of_credentials(move || {
        let standing = credentials.standing();
        let left = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
        CredentialFigures { left: standing.expires_at.map(left), fetching_fails: standing.fetching_fails }
    });
    let watch = ConfigWatch::new(&options, &cloud)?;
    Ok((cloud, watch))
}

fn node_settings(flags: &Flags, cloud: &Connection, pod_cidrs: &[IpNet]) -> NodeSettings {
    let routes = flags.routes_wanted();
    NodeSettings {
        control: loden_nodes::controller::Settings {
            region: cloud.region.clone(),
            dual_stack: pod_cidrs.iter().any(|net| matches!(net, IpNet::V6(_))),
            routes,
            // Without route entries no packet with a pod's address leaves a node's interface.
            source_dest_check_off: routes && !flags.skip_disable_source_dest_check,
            audit: flags.node_monitor_period,
        },
        vpc: VpcId::from(cloud.vpc_id.clone()),
    }
}

fn canonical(flag: &str, nets: &[IpNet]) -> Result<Vec<IpNet>> {
    for net in nets {
        if *net != net.trunc() {
            bail!("{flag}={net} has host bits: write {} if that network is meant", net.trunc());
        }
    }
    for (index, net) in nets.iter().enumerate() {
        if let Some(other) = nets.iter().take(index).find(|other| loden_addr::overlap(**other, *net)) {
            bail!("{flag} names {other} and {net}, which overlap; name each address once");
        }
    }
    Ok(nets.to_vec())
}

fn ipam_settings(flags: &Flags, pod_cidrs: &[IpNet], services: &[IpNet]) -> Result<Option<IpamSettings>> {
    if let Some(pods) = pod_cidrs
        .iter()
        .find(|pods| flags.routes_wanted() && loden_addr::overlap(**pods, loden_addr::CLOUD_SERVICES))
    {
        bail!(
            "--cluster-cidr={pods} overlaps {}, which the cloud keeps for its own services: the VPC takes no route entry for a destination there; choose another range, see `loden plan`",
            loden_addr::CLOUD_SERVICES
        );
    }
    for (pods, services) in
        pod_cidrs.iter().flat_map(|pods| services.iter().map(move |services| (pods, services)))
    {
        if loden_addr::overlap(*pods, *services) {
            bail!(
                "--cluster-cidr={pods} and --service-cluster-ip-range={services} overlap, and a pod and a service could have the same address; see `loden plan`"
            );
        }
    }
    if !flags.ipam_wanted() {
        return Ok(None);
    }
    let ranges = pod_cidrs
        .iter()
        .map(|pod_cidr| {
            let (flag, node_mask) = node_mask(flags, pod_cidrs, *pod_cidr)?;
            loden_addr::Subnets::new(*pod_cidr, node_mask)
                .with_context(|| format!("{flag} does not divide --cluster-cidr into node subnets"))?;
            Ok(PodRange { pod_cidr: *pod_cidr, node_mask })
        })
        .collect::<Result<Vec<PodRange>>>()?;
    Ok(Some(IpamSettings { ranges, reserved: services.to_vec() }))
}

/// The mask of a node's subnet of a pod CIDR, and the flag that gives it.
fn node_mask(flags: &Flags, pod_cidrs: &[IpNet], pod_cidr: IpNet) -> Result<(&'static str, u8)> {
    let ipv6 = |net: &IpNet| matches!(net, IpNet::V6(_));
    let dual = pod_cidrs.iter().any(ipv6) && !pod_cidrs.iter().all(ipv6);
    let (flag, own, usual) = if ipv6(&pod_cidr) {
        ("--node-cidr-mask-size-ipv6", flags.node_cidr_mask_size_ipv6, 64)
    } else {
        ("--node-cidr-mask-size-ipv4", flags.node_cidr_mask_size_ipv4, 24)
    };
    match (own, flags.node_cidr_mask_size) {
        (Some(_), Some(_)) => bail!("--node-cidr-mask-size and {flag} say the same thing; give one of them"),
        (Some(mask), None) => Ok((flag, mask)),
        (None, Some(mask)) if !dual => Ok(("--node-cidr-mask-size", mask)),
        (None, Some(_)) => bail!(
            "--node-cidr-mask-size is for clusters of one family; in a dual-stack cluster give --node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6"
        ),
        (None, None) => Ok((flag, usual)),
    }
}

fn route_settings(flags: &Flags, cloud: &Connection, pod_cidrs: Vec<IpNet>) -> Result<Settings> {
    let vpc = VpcId::from(cloud.vpc_id.clone());
    let given = flags.cluster_id.as_ref().or(flags.cluster_name.as_ref()).or(cloud.cluster_id.as_ref());
    let cluster = match given {
        Some(id) => ClusterId::parse(id)?,
        None => ClusterId::derived(&vpc, &pod_cidrs),
    };
    let tables =
        if flags.route_table_ids.is_empty() { &cloud.route_table_ids } else { &flags.route_table_ids };
    Ok(Settings {
        tables: TableChoice::of(tables.iter().map(String::as_str)),
        quota: flags.route_quota,
        read_quota: flags.read_route_quota,
        audit: flags.route_reconciliation_period,
        stale_grace: flags.stale_route_grace_period,
        collect_percent: usize::from(flags.max_stale_routes_percent),
        conflict_percent: usize::from(flags.max_conflicting_routes_percent),
        source_dest_check_off: !flags.skip_disable_source_dest_check,
        ..Settings::new(vpc, cluster, pod_cidrs)
    })
}

/// Looks at the VPC's tables once, so that wrong credentials and a wrong VPC are found before anything depends on them.
async fn try_tables(cloud: &Connection, settings: &Settings) -> Result<()> {
    match cloud.client.list_tables(&settings.vpc).await {
        Ok(tables) => {
            let served = Served::choose(&tables, &settings.tables, &BTreeSet::new(), &settings.vpc)?;
            let tables: Vec<&str> = served.tables.iter().map(|table| table.as_str()).collect();
            tracing::info!(region = cloud.region, vpc = %settings.vpc, tables = tables.join(","), cluster = %settings.cluster, "VPC");
            Ok(())
        }
        Err(failure)
            if matches!(
                failure.class,
                FailureClass::Throttled | FailureClass::Busy | FailureClass::Server
            ) =>
        {
            tracing::warn!(%failure, "the VPC API does not answer yet; going on");
            Ok(())
        }
        Err(failure) => Err(anyhow!("cannot list the route tables of {}: {failure}", settings.vpc)),
    }
}

async fn preview(prepared: Prepared) -> Result<()> {
    let mut watch = prepared.cluster.watch_nodes(watch_options(prepared.node_control.is_some()));
    let nodes = match tokio::time::timeout(NODES_PATIENCE, watch.ready()).await {
        Ok(nodes) => nodes,
        Err(_elapsed) => match watch.trouble() {
            Some(trouble) => bail!("cannot list nodes: {trouble}"),
            None => bail!("cannot list nodes within {} s", NODES_PATIENCE.as_secs()),
        },
    };
    let routes = prepared.routes.as_ref().map(|(settings, cloud)| (settings, cloud));
    let control = prepared.node_control.as_ref().map(|(settings, cloud)| (settings, cloud));
    let mut preview = dry_run(&nodes, routes, control, prepared.ipam.as_ref()).await?;
    preview.remarks.extend(prepared.overlaps);
    write!(std::io::stdout().lock(), "{preview}").context("cannot write the plan to standard output")
}

/// Waits for leadership, then works until it is asked to stop or leadership is lost.
async fn lead(flags: &Flags, prepared: Prepared, stop: impl Future<Output = ()>) -> Result<()> {
    let mut stop = std::pin::pin!(stop);
    let readiness = Readiness::new();
    // A candidate is ready too: it could not do more by waiting longer.
    readiness.set(true);
    let health = serve_health(flags.health_probe_bind_addr, &readiness).await?;
    let _metrics = serve_metrics(flags.metrics_bind_addr, &prepared.metrics, &readiness).await?;
    let (sender, instructions) = mpsc::unbounded_channel();
    let _reloads = prepared.config.map(|watch| {
        let fixed = !flags.route_table_ids.is_empty();
        EndsWithUs(tokio::spawn(follow_config(watch, fixed, sender, prepared.metrics.clone())))
    });

    let identity = format!("{}_{}", hostname(), std::process::id());
    let place = Place {
        namespace: flags.leader_elect_resource_namespace.clone(),
        name: flags.leader_elect_resource_name.clone(),
    };
    let mut leadership = None;
    if flags.leader_elect {
        let campaign = Campaign {
            lease_duration: flags.leader_elect_lease_duration,
            renew_deadline: flags.leader_elect_renew_deadline,
            retry_period: flags.leader_elect_retry_period,
            ..Campaign::new(&place.namespace, &place.name, &identity)
        };
        leadership = tokio::select! {
            () = &mut stop => return Ok(()),
            leading = prepared.cluster.lead(campaign) => Some(leading?),
        };
        tracing::info!(%identity, "leading");
    }
    prepared.metrics.set_leading(true);

    readiness.set(prepared.routes.is_none());
    let events = prepared.cluster.events("loden-controller", &identity);
    for overlap in prepared.overlaps {
        let lease = Regarding::object("coordination.k8s.io/v1", "Lease", &place.namespace, &place.name, "");
        events.record(lease, EventKind::Warning, "CIDROverlap", overlap);
    }
    let driver = Driver::new(Parts {
        cluster: prepared.cluster,
        routes: prepared.routes,
        node_control: prepared.node_control,
        ipam: prepared.ipam,
        events,
        place,
        readiness,
        metrics: prepared.metrics.clone(),
        instructions,
    })?;
    let outcome = match leadership {
        None => {
            driver.run(stop).await;
            Ok(())
        }
        Some(mut leadership) => {
            let lost = tokio::select! {
                () = driver.run(stop) => None,
                lost = leadership.lost() => Some(lost),
            };
            match lost {
                None => {
                    prepared.metrics.set_leading(false);
                    leadership.release().await;
                    Ok(())
                }
                // Another may be at work already: nothing may be finished now.
                Some(lost) => Err(lost.into()),
            }
        }
    };
    health.abort();
    outcome
}

/// Hears of the cloud client's calls for the metrics.
#[derive(Debug)]
struct Calls(Metrics);

impl Observe for Calls {
    fn call_ended(&self, action: &'static str, code: &str, took: Duration) {
        self.0.call_ended(action, code, took);
    }
}

/// A task that ends when this is dropped.
struct EndsWithUs(tokio::task::JoinHandle<()>);

impl Drop for EndsWithUs {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes every change of the cloud-config file: credentials at once, tables by way of the loop. `fixed`: the tables were given by flag, which wins.
async fn follow_config(
    mut watch: ConfigWatch,
    fixed: bool,
    sender: mpsc::UnboundedSender<Instruction>,
    metrics: Metrics,
) {
    let tell = |severity, reason, message| {
        let notice = Notice { about: About::Controller, severity, reason, message };
        // Without a loop there is nobody left to tell.
        let _loop_ended = sender.send(Instruction::Tell(notice));
    };
    loop {
        match watch.next().await {
            Reload::Taken { route_table_ids, credentials, after_restart, remarks } => {
                metrics.reloaded(true);
                if !fixed {
                    let choice = TableChoice::of(route_table_ids.iter().map(String::as_str));
                    let _loop_ended = sender.send(Instruction::Tables(choice));
                }
                for remark in remarks {
                    tracing::warn!("cloud config: {remark}");
                }
                let named =
                    if route_table_ids.is_empty() { "none".to_owned() } else { route_table_ids.join(",") };
                let tables = if fixed {
                    "--route-table-ids stays in force".to_owned()
                } else {
                    format!("routeTableIDs: {named}")
                };
                let keys = if credentials { "other credentials are used" } else { "the credentials stay" };
                tell(
                    Severity::Normal,
                    "CloudConfigReloaded",
                    format!("the cloud config was read again; {tables}; {keys}"),
                );
                if !after_restart.is_empty() {
                    let message = format!(
                        "{} changed in the cloud config and takes effect with a restart only: restart the controller",
                        after_restart.join(", ")
                    );
                    tell(Severity::Warning, "CloudConfigNeedsRestart", message);
                }
            }
            Reload::Broken(error) => {
                metrics.reloaded(false);
                let message = format!("{error}; what it said before stays in force: correct the file");
                tell(Severity::Warning, "CloudConfigInvalid", message);
            }
        }
    }
}

/// Where /metrics is without a flag: not for the network, as the controller usually lives in the node's own.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

async fn serve_metrics(
    asked: Option<Address>,
    metrics: &Metrics,
    readiness: &Readiness,
) -> Result<Option<EndsWithUs>> {
    let Address(Some(address)) = asked.unwrap_or(Address(Some(METRICS))) else { return Ok(None) };
    let server = match HealthServer::bind(address, "loden-controller", readiness.clone()).await {
        Ok(server) => server,
        // A port that nobody asked for is nothing to fail for.
        Err(error) if asked.is_none() => {
            tracing::warn!(%error, "no metrics are served; choose another address by --metrics-bind-addr");
            return Ok(None);
        }
        Err(error) => {
            return Err(anyhow::Error::from(error).context("--metrics-bind-addr cannot be served"));
        }
    };
    let metrics = metrics.clone();
    let page = Page {
        path: "/metrics",
        content_type: METRICS_CONTENT_TYPE,
        render: Arc::new(move || metrics.text()),
    };
    let server = server.with_pages(vec![page]);
    tracing::info!(address = %server.local_addr()?, "serving /metrics");
    Ok(Some(EndsWithUs(tokio::spawn(server.run(std::future::pending())))))
}

async fn serve_health(address: Address, readiness: &Readiness) -> Result<tokio::task::JoinHandle<()>> {
    let Some(address) = address.0 else { return Ok(tokio::spawn(async {})) };
    let server = HealthServer::bind(address, "loden-controller", readiness.clone()).await?;
    tracing::info!(address = %server.local_addr()?, "serving /healthz and /readyz");
    Ok(tokio::spawn(server.run(std::future::pending())))
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
