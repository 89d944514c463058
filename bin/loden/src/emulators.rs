//! `loden cloud-emulator` and `loden kube-emulator`: what the lab uses inside, for somebody else's client.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use loden_sim_kube::Token;

use crate::render;

/// The Alibaba Cloud API that Loden uses, and the metadata service.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Signatures (version 1 and 3) are verified, entries are Pending before they are Available, a route table has its quota, and an action \
that is not there is answered as the real service answers an unknown one. The VPC API is at 2016-04-28, ECS at 2014-05-26.

Example:
  loden cloud-emulator
  curl -X PUT -H 'X-aliyun-ecs-metadata-token-ttl-seconds: 60' \\
      http://127.0.0.1:8791/latest/api/token

Configuration (JSON, every key optional): api, metadata, control (addresses), settings (entryDelayMs, latencyMs, oneChangePerVpc, \
readLagMs, tableReadLagMs, rateLimits, metadataInstance, hardenedMetadata, …), faults, state, topology (region, vpcs, instances, accessKeys, roles). `--print-config` shows one that \
works.

Settings that a client has to live with, all of them off unless set:
  \"readLagMs\": 2000                         lists of route entries show what was there 2 s ago
  \"tableReadLagMs\": {\"vtb-loden\": 500}     the same for single tables
  \"rateLimits\": [{\"action\": \"CreateRouteEntries\", \"per\": \"user\", \"burst\": 5,
                  \"perMinute\": 60, \"status\": 400, \"tellRetryAfter\": true}]
A limit without an action holds for each action by itself. `per` is `user` (each access key or RAM role; Throttling.User) or `api` \
(everybody; Throttling.Api). The vendor tells its own numbers only in each account's Quota Center. While it runs, `GET` and `PUT /settings` \
at the control path read and change them, and `GET /throttled` counts what was refused.

Answers are JSON or XML as the call says (`Format`, or the header `accept`); a call whose action is a parameter and that says nothing is \
answered in XML, as by the vendor.

Faults (JSON list; `action` may be left out, `times` 4294967295 goes on until it is taken back):
  [{\"action\": \"CreateRouteEntries\", \"times\": 2, \"kind\": {\"answer\":
      {\"status\": 429, \"code\": \"Throttling.User\", \"retryAfterS\": 3}}},
   {\"times\": 1, \"kind\": \"loseCall\"},
   {\"times\": 1, \"kind\": \"loseAnswer\"},
   {\"times\": 1, \"kind\": \"stale\"},
   {\"times\": 5, \"kind\": {\"delay\": {\"milliseconds\": 800}}},
   {\"times\": 1, \"kind\": {\"item\": {\"code\": \"SystemBusy\"}}}]
While it runs:
  curl -X PUT -H 'content-type: application/json' -d @faults.json http://127.0.0.1:8792/faults")]
pub(crate) struct CloudArgs {
    /// File with addresses, settings and topology; a small example cloud if not given
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the VPC and ECS API listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    api: Option<SocketAddr>,
    /// Where the metadata service listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    metadata: Option<SocketAddr>,
    /// Where the control path listens; nothing there is authenticated
    #[arg(long, value_name = "ADDRESS:PORT")]
    control: Option<SocketAddr>,
    /// Script of trouble (a JSON list of faults) that the calls run into, from the start; `PUT /faults` changes it later
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// Keep the cloud's state in this file: it is what the emulator starts with when it is there, and is written when something changes
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Print the configuration that would be used, and end
    #[arg(long)]
    print_config: bool,
}

/// The part of the Kubernetes API that a cluster's network needs.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Nodes with their status, pods, events, configmaps, secrets, namespaces, service accounts, leases, daemonsets, deployments, roles and their \
bindings; lists in pages, watches with bookmarks and 410 Gone, all four patches with server-side apply, validation, OpenAPI, conflicts, bearer \
tokens. kubectl works with it unchanged. With a token it speaks TLS, as kubectl demands. There is no scheduler, no kubelet and no controller in it.

Example:
  loden kube-emulator --token secret --kubeconfig /tmp/kubeconfig
  kubectl --kubeconfig /tmp/kubeconfig get nodes")]
pub(crate) struct KubeArgs {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8793")]
    listen: SocketAddr,
    /// Bearer token that may do everything; without one nobody needs a token
    #[arg(long, value_name = "TOKEN", env = "LODEN_KUBE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Write a kubeconfig for it here
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// Serves until interrupted.
pub(crate) fn cloud(args: &CloudArgs) -> anyhow::Result<ExitCode> {
    let mut config = match &args.config {
        Some(path) => loden_sim_cloud::Config::read(path)?,
        None => loden_sim_cloud::Config::default(),
    };
    config.api = args.api.unwrap_or(config.api);
    config.metadata = args.metadata.unwrap_or(config.metadata);
    config.control = args.control.unwrap_or(config.control);
    if let Some(path) = &args.faults {
        config.faults = loden_sim_cloud::topology::read_faults(path)?;
    }
    if args.state.is_some() {
        config.state.clone_from(&args.state);
    }
    if args.print_config {
        render::json(&config)?;
        return Ok(ExitCode::SUCCESS);
    }
    until_interrupted(loden_sim_cloud::run(config, |endpoints| render::print(&endpoints.to_string())))
}

/// Serves until interrupted.
pub(crate) fn kube(args: &KubeArgs) -> anyhow::Result<ExitCode> {
    let tokens = args.token.iter().map(|token| Token::admin(token)).collect();
    let config = loden_sim_kube::Config { tokens, ..loden_sim_kube::Config::default() };
    let path = args.kubeconfig.as_deref();
    let ready = |url: &str| {
        render::print(&format!("# Kubernetes API emulator at {url}"));
        if let Some(path) = path {
            render::print(&format!("export KUBECONFIG={}", path.display()));
        }
    };
    until_interrupted(loden_sim_kube::run(config, args.listen, path, ready))
}

fn until_interrupted<E: std::error::Error + Send + Sync + 'static>(
    serving: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .context("cannot wait for SIGTERM")?;
        tokio::select! {
            served = serving => served?,
            interrupted = tokio::signal::ctrl_c() => interrupted.context("cannot wait for SIGINT")?,
            _ = terminated.recv() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
