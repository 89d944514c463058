//! From the configuration to a running daemon, and how it ends.

use std::future::pending;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use loden_daemon::Daemon;
use loden_kernel::Kernel;
use loden_kube::{Cluster, NodeSelection, WatchOptions};
use loden_lease::NetConf;
use loden_node::{BackendKind, Scope};
use loden_telemetry::{HealthServer, Readiness};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, check_net_conf};

const NEEDS: &str =
    "look at the node's network, for which flanneld needs CAP_NET_ADMIN and a kernel with nf_tables";

/// How long a dry run waits for the API server and the metadata service.
const DRY_RUN_PATIENCE: Duration = Duration::from_secs(15);

/// How long the start waits to hear whether the API server lets us in.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Runs until SIGINT or SIGTERM, or until something makes it pointless to go on. Nothing is torn down at the end.
pub(crate) async fn run(config: Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        ended = serve(config) => ended,
        _ = terminate.recv() => {
            tracing::info!(signal = "SIGTERM", "flanneld stops; the network stays as it is");
            Ok(())
        }
        _ = interrupt.recv() => {
            tracing::info!(signal = "SIGINT", "flanneld stops; the network stays as it is");
            Ok(())
        }
    }
}

async fn serve(config: Config) -> Result<()> {
    let readiness = Readiness::new();
    let health = match config.health.filter(|_| !config.dry_run) {
        Some(address) => Some(HealthServer::bind(address, "flanneld", readiness.clone()).await?),
        None => None,
    };
    let answering = async {
        match health {
            Some(server) => server.run(pending()).await,
            None => pending().await,
        }
    };
    tokio::select! {
        ended = work(config, readiness) => ended,
        () = answering => bail!("the health server ended by itself"),
    }
}

async fn work(config: Config, readiness: Readiness) -> Result<()> {
    let conf = read_net_conf(&config)?;
    let (backend, vxlan) = check_net_conf(&conf)?;
    if backend == BackendKind::Alloc && config.set_network_unavailable {
        tracing::warn!(
            "backend alloc with -set-node-network-unavailable=true: the node is marked available before its route entry exists; \
             give -set-node-network-unavailable=false, so that loden-controller decides"
        );
    }
    let mut kernel = Kernel::open().context(NEEDS)?;
    kernel.observe(&Scope::default()).context(NEEDS)?;
    let cluster = loden_kube::connect(&config.access).await?;
    let name = node_name(&cluster).await?;
    refused_at_once(&cluster, &name).await?;
    let (dry_run, annotation_prefix) = (config.dry_run, config.annotation_prefix.clone());
    let settings = config.settings(conf, backend, vxlan, name.clone());
    let watch = cluster.watch_nodes(WatchOptions {
        selection: if settings.has_peers() { NodeSelection::All } else { NodeSelection::One(name) },
        label_prefixes: Some(Vec::new()),
        annotation_prefixes: Some(vec![annotation_prefix]),
    });
    let mut daemon = Daemon::new(settings, kernel, cluster, watch, readiness)?;
    if dry_run {
        let text = daemon.dry_run(DRY_RUN_PATIENCE).await?;
        return std::io::stdout().write_all(text.as_bytes()).context("print the plan");
    }
    Ok(daemon.run().await?)
}

/// Ends the start where the API server answers and does not let us in: waiting mends no token and no role. A server that is silent or
/// busy is another matter; the network is kept as it must be while it is waited for.
async fn refused_at_once(cluster: &Cluster, node: &str) -> Result<()> {
    match tokio::time::timeout(FIRST_ANSWER, cluster.node(node)).await {
        Ok(Err(error)) if !error.is_transient() => Err(error.into()),
        _ => Ok(()),
    }
}

fn read_net_conf(config: &Config) -> Result<NetConf> {
    let path = &config.net_config_path;
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("read network configuration {shown}; mount it there, or name it with -net-config-path")
    })?;
    Ok(NetConf::parse(&shown, &text)?)
}

/// This node's name: `NODE_NAME`, else that of the node our pod runs on.
async fn node_name(cluster: &Cluster) -> Result<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if let Some(name) = variable("NODE_NAME") {
        return Ok(name);
    }
    let (Some(pod), Some(namespace)) = (variable("POD_NAME"), variable("POD_NAMESPACE")) else {
        bail!(
            "which node is this? set NODE_NAME, or both POD_NAME and POD_NAMESPACE (the manifest takes them from the pod's fields)"
        );
    };
    let mut retry = Duration::from_secs(1);
    loop {
        match cluster.node_of_pod(&namespace, &pod).await {
            Ok(Some(name)) => return Ok(name),
            Ok(None) => {
                bail!("pod {namespace}/{pod} does not exist or has no node; check POD_NAME and POD_NAMESPACE")
            }
            Err(error) if error.is_transient() => {
                tracing::warn!("{error}; trying again in {} s", retry.as_secs());
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(Duration::from_secs(30));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
