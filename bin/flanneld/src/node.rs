//! The daemon's loop: look at everything, put it right, sleep until something may have changed.
//!
//! Whatever wakes it (a kernel notice, a change of our Node object, news of the VPC, the audit's clock) only says "look
//! again"; each round derives everything anew from what is there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use ipnet::IpNet;
use loden_kernel::{DirectoryNotices, Kernel, Notices, SubnetFile};
use loden_kube::{Cluster, EventKind, Events, NodeView, NodeWatch, Regarding};
use loden_lease::{
    AssignmentError, LeaseAttributes, NetConf, PreviousSubnets, PublicIp, SubnetEnv, assigned_subnets,
    gateway_of,
};
use loden_node::external::{External, Wanted, choose};
use loden_node::{BackendKind, Network, Step};
use loden_telemetry::Readiness;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::publish::{Publication, missing_annotations, publish};
use crate::run::own_node;
use crate::vpc;

/// The safety net for what sends no notice.
const AUDIT: Duration = Duration::from_secs(30);
/// A burst of kernel notices is one look.
const BURST: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long the first round waits for the metadata service and the API server.
const PATIENCE: Duration = Duration::from_secs(3);
/// An unchanged complaint is repeated this often.
const REMIND: Duration = Duration::from_secs(300);

pub(crate) struct Daemon {
    config: Config,
    conf: NetConf,
    backend: BackendKind,
    kernel: Kernel,
    cluster: Cluster,
    events: Events,
    name: String,
    watch: NodeWatch,
    readiness: Readiness,
    file: SubnetFile,
    previous: PreviousSubnets,
    vpc: watch::Receiver<Option<Vec<IpNet>>>,
    publication: watch::Sender<Option<Publication>>,
    external: Option<External>,
    subnets: Vec<IpNet>,
    complaint: Option<(String, Instant)>,
    reported: BTreeSet<String>,
    was_ready: bool,
}

impl Daemon {
    #[expect(clippy::too_many_arguments, reason = "the composition root hands over everything it made, once")]
    pub(crate) fn new(
        config: Config,
        conf: NetConf,
        backend: BackendKind,
        kernel: Kernel,
        cluster: Cluster,
        name: String,
        watch: NodeWatch,
        readiness: Readiness,
    ) -> Result<Self> {
        let file = SubnetFile::new(&config.subnet_file);
        let previous = file.read()?.map(|text| PreviousSubnets::read(&text)).unwrap_or_default();
        let (publication, wanted) = watch::channel(None);
        if !config.dry_run {
            let keys = config.annotation_keys.clone();
            tokio::spawn(publish(cluster.clone(), keys, config.set_network_unavailable, wanted));
        }
        Ok(Self {
            events: cluster.events("flanneld", &name),
            vpc: vpc::follow(&config.vpc_cidrs),
            config,
            conf,
            backend,
            kernel,
            cluster,
            name,
            watch,
            readiness,
            file,
            previous,
            publication,
            external: None,
            subnets: Vec::new(),
            complaint: None,
            reported: BTreeSet::new(),
            was_ready: false,
        })
    }

    /// Runs for ever; ends only with an error that waiting cannot mend.
    pub(crate) async fn run(&mut self) -> Result<()> {
        let mut notices = Notices::new(self.kernel.watch()?).context("listen for changes in the kernel")?;
        self.gather().await;
        let mut retry = FIRST_RETRY;
        let mut directory = None;
        loop {
            // Listened to before the round looks, so that no removal falls between. Without the directory there is nothing
            // to listen to until the round has made it.
            if directory.is_none() {
                directory = self.file.path().parent().and_then(|parent| DirectoryNotices::new(parent).ok());
            }
            let outcome = self.round().await?;
            self.settle_readiness(&outcome);
            let pause = match outcome {
                Outcome::Right => {
                    retry = FIRST_RETRY;
                    AUDIT
                }
                Outcome::Waiting(_) => AUDIT,
                Outcome::Wrong(_) => {
                    let now = retry;
                    retry = (retry * 2).min(LONGEST_RETRY);
                    now
                }
            };
            let (watch, vpc) = (&mut self.watch, &mut self.vpc);
            let audit = tokio::time::sleep(pause);
            tokio::select! {
                woken = notices.changed(&self.kernel) => {
                    woken?;
                    tokio::time::sleep(BURST).await;
                }
                () = file_changed(&mut directory) => {
                    directory = None;
                    tokio::time::sleep(BURST).await;
                }
                () = watch.changed() => {}
                Ok(()) = vpc.changed() => {}
                () = audit => {}
            }
        }
    }

    /// Prints what a round would do.
    pub(crate) async fn dry_run(&mut self, patience: Duration) -> Result<()> {
        let waited = tokio::time::timeout(patience, self.watch.ready()).await;
        if waited.is_err() {
            let why =
                self.watch.trouble().map_or_else(|| "no answer".to_owned(), |trouble| trouble.to_string());
            return Err(anyhow!("cannot read node {}: {why}", self.name));
        }
        self.gather().await;
        let node = self.own_node().map_err(|why| anyhow!(why))?;
        self.subnets = self.assigned(&node)?;
        let external = self.external(&node)?.clone();
        let network = self.network(&external);
        let plan =
            loden_node::plan(&mut self.kernel, &network.scope(), |observed| network.desired(observed))?;
        let text = self.subnet_env(&external).render();
        let publication = self.publication_of(node, &external, false);
        let mut out = plan.to_string();
        if self.file.read()?.as_deref() != Some(text.as_str()) {
            out.push_str(&format!("# write {}\n", self.file.path().display()));
            out.extend(text.lines().map(|line| format!("#   {line}\n")));
        }
        for (key, value) in missing_annotations(&self.config.annotation_keys, &publication) {
            out.push_str(&format!("# annotate node {} {key}={}\n", self.name, value.unwrap_or_default()));
        }
        if out.is_empty() {
            out.push_str("# nothing to do\n");
        }
        std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes()).context("print the plan")
    }

    /// Waits a moment for the first answers, so that the first round has them. What comes late is taken up then.
    async fn gather(&mut self) {
        let known = self.vpc.wait_for(Option::is_some);
        let (vpc, node) = tokio::join!(
            tokio::time::timeout(PATIENCE, known),
            tokio::time::timeout(PATIENCE, self.watch.ready()),
        );
        if vpc.is_err() || node.is_err() {
            tracing::debug!(vpc_known = vpc.is_ok(), node_known = node.is_ok(), "going on without");
        }
    }

    /// One look at everything and what follows from it.
    async fn round(&mut self) -> Result<Outcome> {
        let node = match self.own_node() {
            Ok(node) => Some(node),
            Err(why) if self.subnets.is_empty() => return Ok(Outcome::Waiting(why)),
            // The lease we have stands; a node is not unmade because its record is out of sight.
            Err(why) => {
                tracing::debug!("{why}");
                None
            }
        };
        let mut trouble = None;
        if let Some(node) = &node {
            match self.assigned(node) {
                Ok(subnets) if subnets != self.subnets => {
                    if self.subnets.is_empty() {
                        tracing::info!(node = self.name, ?subnets, "subnet leased");
                    } else {
                        tracing::warn!(node = self.name, before = ?self.subnets, now = ?subnets,
                            "this node was given another subnet; pods of the old one lose their connections");
                    }
                    self.subnets = subnets;
                }
                Ok(_) => {}
                Err(error) => {
                    self.tell(node, &error);
                    match error {
                        AssignmentError::NotYet if self.subnets.is_empty() => {
                            return Ok(Outcome::Waiting(format!("node {}: {error}", self.name)));
                        }
                        _ if self.subnets.is_empty() => {
                            self.events.flush().await;
                            return Err(anyhow::Error::new(error).context(format!("node {}", self.name)));
                        }
                        _ => {
                            trouble =
                                Some(format!("node {}: {error}; the subnet leased before stays", self.name))
                        }
                    }
                }
            }
            self.external(node)?;
        }
        let Some(external) = self.external.clone() else {
            return Ok(Outcome::Waiting("the external interface is not chosen yet".to_owned()));
        };
        let trouble = self.mend(&external).or(trouble);
        let ready = trouble.is_none();
        if let Some(node) = node {
            let publication = self.publication_of(node, &external, ready);
            self.publication.send_replace(Some(publication));
        }
        Ok(trouble.map_or(Outcome::Right, Outcome::Wrong))
    }

    /// Puts kernel and subnet file right; says what is still wrong.
    fn mend(&mut self, external: &External) -> Option<String> {
        let network = self.network(external);
        let round = match loden_node::settle(&mut self.kernel, &network.scope(), |observed| {
            network.desired(observed)
        }) {
            Ok(round) => round,
            Err(error) => return Some(error.to_string()),
        };
        for step in &round.applied {
            self.log_step(step);
        }
        let mut wrong: Vec<String> =
            round.failed.iter().map(|(step, error)| format!("`{}`: {error}", first_line(step))).collect();
        wrong.extend(round.blocked.iter().map(ToString::to_string));
        if round.unsettled && wrong.is_empty() {
            wrong.push("somebody changes the network back as fast as it is mended".to_owned());
        }
        if !wrong.is_empty() {
            return Some(wrong.join("; "));
        }
        match self.file.write(&self.subnet_env(external).render()) {
            Ok(true) => {
                tracing::info!(path = %self.file.path().display(), "subnet file written");
                None
            }
            Ok(false) => None,
            Err(error) => Some(error.to_string()),
        }
    }

    /// At start mending is the work; later it means that somebody removed what we need.
    fn log_step(&self, step: &Step) {
        if self.was_ready {
            tracing::warn!(step = %first_line(step), "mended");
        } else {
            tracing::info!(step = %first_line(step), "applied");
        }
        tracing::debug!("{step}");
    }

    fn own_node(&self) -> Result<Arc<NodeView>, String> {
        match own_node(&self.watch, &self.name) {
            (_, Some(node)) => Ok(node),
            (Some(_), None) => Err(format!(
                "node {} does not exist in the API; it is made by its kubelet (check that NODE_NAME is the node's name there)",
                self.name
            )),
            (None, None) => Err(match self.watch.trouble() {
                Some(trouble) => trouble.to_string(),
                None => format!("waiting for API server {}", self.cluster.server()),
            }),
        }
    }

    fn assigned(&self, node: &NodeView) -> Result<Vec<IpNet>, AssignmentError> {
        let cidrs: Vec<IpNet> = match node.parsed_pod_cidrs() {
            Ok(cidrs) => cidrs,
            Err(error) => {
                tracing::warn!("{error}");
                Vec::new()
            }
        };
        assigned_subnets(&self.conf, &cidrs)
    }

    /// The external interface, chosen once: peers are told of it, so it does not wander.
    fn external(&mut self, node: &NodeView) -> Result<&External> {
        if self.external.is_none() {
            let keys = &self.config.annotation_keys;
            let mut wanted = Wanted {
                ipv4: self.conf.enable_ipv4,
                ipv6: self.conf.enable_ipv6,
                ..self.config.external.clone()
            };
            let annotated = |key: &str| node.annotations.get(key).filter(|text| !text.is_empty());
            if let Some(text) = annotated(&keys.node_public_ip) {
                wanted.public_ip = Some(text.parse().with_context(|| {
                    format!("node annotation {}: {text:?} is no IPv4 address", keys.node_public_ip)
                })?);
            }
            if let Some(text) = annotated(&keys.node_public_ipv6) {
                wanted.public_ipv6 = Some(text.parse().with_context(|| {
                    format!("node annotation {}: {text:?} is no IPv6 address", keys.node_public_ipv6)
                })?);
            }
            let around = self.kernel.surroundings(wanted.can_reach)?;
            let external = choose(&wanted, &around)?;
            tracing::info!(
                link = external.link,
                mtu = external.mtu,
                ipv4 = external.public_ipv4.map(tracing::field::display),
                ipv6 = external.public_ipv6.map(tracing::field::display),
                "external interface chosen"
            );
            self.external = Some(external);
        }
        self.external.as_ref().ok_or_else(|| anyhow!("the external interface is not chosen"))
    }

    fn networks(&self) -> Vec<IpNet> {
        let v4 = self.conf.network.filter(|_| self.conf.enable_ipv4).map(IpNet::V4);
        let v6 = self.conf.ipv6_network.filter(|_| self.conf.enable_ipv6).map(IpNet::V6);
        v4.into_iter().chain(v6).collect()
    }

    fn network(&self, external: &External) -> Network {
        Network {
            networks: self.networks(),
            subnets: self.subnets.clone(),
            masquerade: self.config.masquerade,
            exempt: self.vpc.borrow().clone(),
            forward_rules: self.config.forward_rules,
            blackhole: self.config.blackhole,
            previous_networks: self.previous.networks.clone(),
            external_link: Some(external.link.clone()),
        }
    }

    fn subnet_env(&self, external: &External) -> SubnetEnv {
        SubnetEnv {
            networks: self.networks(),
            subnets: self.subnets.iter().copied().map(gateway_of).collect(),
            mtu: external.mtu.saturating_sub(self.backend.overhead()),
            ip_masq: self.config.masquerade.is_some(),
        }
    }

    fn publication_of(&self, node: Arc<NodeView>, external: &External, ready: bool) -> Publication {
        let attributes = LeaseAttributes {
            public_ip: PublicIp { ipv4: external.public_ipv4, ipv6: external.public_ipv6 },
            backend_type: self.backend.lease_type().to_owned(),
            ..LeaseAttributes::default()
        };
        Publication { node, attributes, ready }
    }

    /// An Event on our node for an assignment that cannot be used, once for each wording.
    fn tell(&mut self, node: &NodeView, error: &AssignmentError) {
        let reason = match error {
            AssignmentError::NotYet => "PodCIDRNotAssigned",
            _ => "PodCIDRNotUsable",
        };
        let message = error.to_string();
        if self.reported.insert(format!("{}{message}", node.uid)) {
            self.events.record(Regarding::node(node), EventKind::Warning, reason, message);
        }
    }

    fn settle_readiness(&mut self, outcome: &Outcome) {
        let ready = matches!(outcome, Outcome::Right);
        match outcome {
            Outcome::Right => self.complaint = None,
            Outcome::Waiting(why) | Outcome::Wrong(why) => {
                let now = Instant::now();
                let news =
                    self.complaint.as_ref().is_none_or(|(told, at)| told != why || now - *at >= REMIND);
                if news {
                    match outcome {
                        Outcome::Wrong(_) => tracing::error!("not ready: {why}"),
                        _ => tracing::warn!("not ready: {why}"),
                    }
                    self.complaint = Some((why.clone(), now));
                }
            }
        }
        if self.readiness.set(ready) {
            if ready {
                tracing::info!(node = self.name, "ready");
            } else {
                tracing::warn!(node = self.name, "no longer ready");
            }
        }
        if ready && !self.was_ready {
            self.was_ready = true;
            if let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty())
                && let Err(error) = loden_telemetry::notify_ready(&socket)
            {
                tracing::warn!(%error, "cannot tell the service manager");
            }
        }
    }
}

/// Where a round left the node.
enum Outcome {
    /// Everything was seen to be as desired.
    Right,
    /// Something outside must happen first.
    Waiting(String),
    /// Something failed; it is tried again.
    Wrong(String),
}

/// Waits until something happened where the subnet file lies; for ever if nobody listens there.
async fn file_changed(directory: &mut Option<DirectoryNotices>) {
    if let Some(notices) = directory
        && notices.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn first_line(step: &Step) -> String {
    let text = step.to_string();
    let first = text.lines().next().unwrap_or_default();
    if text.lines().count() > 1 { format!("{first} …") } else { first.to_owned() }
}
