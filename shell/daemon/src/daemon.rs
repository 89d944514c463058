//! The loop.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use loden_kernel::{FileNotices, Kernel, Notices, SubnetFile};
use loden_kube::{Cluster, EventKind, Events, NodeView, NodeWatch, Regarding};
use loden_lease::{
    AssignmentError, BackendData, PreviousSubnets, assigned_subnets, render_waiting, waiting_file,
};
use loden_node::external::choose;
use loden_node::{Admission, Fabric, Flaw, Network, Object, Step};
use loden_telemetry::Readiness;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::complaint::Complaint;
use crate::peers::Peers;
use crate::publish::{Publication, publish};
use crate::settings::Standpoint;
use crate::{Error, Settings, vpc};

/// The safety net for what sends no notice.
const AUDIT: Duration = Duration::from_secs(30);
/// A burst of kernel notices is one look.
const BURST: Duration = Duration::from_millis(50);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long the first round waits for the metadata service and the API server.
const PATIENCE: Duration = Duration::from_secs(3);
/// So many steps or faults are told one by one.
const TOLD: usize = 10;

/// One node's daemon.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) settings: Settings,
    pub(crate) kernel: Kernel,
    pub(crate) watch: NodeWatch,
    pub(crate) file: SubnetFile,
    pub(crate) subnets: Vec<IpNet>,
    cluster: Cluster,
    events: Events,
    readiness: Readiness,
    /// What the subnet file said at start: what was left behind then stays recognisable.
    previous: PreviousSubnets,
    vpc: watch::Receiver<Option<Vec<IpNet>>>,
    standpoint: Option<Standpoint>,
    pub(crate) peers: Peers,
    /// Our Node object as of the last round.
    seen: Option<Arc<NodeView>>,
    complaint: Complaint,
    reported: BTreeSet<String>,
    was_ready: bool,
}

impl Daemon {
    /// A daemon that has not looked at anything yet but the subnet file. `watch` must include our node, with the
    /// annotations of [`Settings::annotation_keys`].
    ///
    /// # Errors
    /// When there is a subnet file that cannot be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(
        settings: Settings,
        kernel: Kernel,
        cluster: Cluster,
        watch: NodeWatch,
        readiness: Readiness,
    ) -> Result<Self, Error> {
        let file = SubnetFile::new(&settings.subnet_file);
        let previous = file.read()?.map(|text| PreviousSubnets::read(&text)).unwrap_or_default();
        Ok(Self {
            events: cluster.events("flanneld", &settings.node_name),
            vpc: vpc::follow(&settings.vpc_cidrs),
            settings,
            kernel,
            cluster,
            watch,
            readiness,
            file,
            previous,
            standpoint: None,
            peers: Peers::default(),
            seen: None,
            subnets: Vec::new(),
            complaint: Complaint::default(),
            reported: BTreeSet::new(),
            was_ready: false,
        })
    }

    /// Runs for ever; ends only with an error that waiting cannot mend.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(&mut self) -> Result<(), Error> {
        let (publication, wanted) = watch::channel(None);
        let keys = self.settings.annotation_keys.clone();
        let publishing = publish(self.cluster.clone(), keys, self.settings.set_network_unavailable, wanted);
        tokio::select! {
            ended = self.rounds(&publication) => ended,
            // It ends with the sender only.
            () = publishing => Ok(()),
        }
    }

    async fn rounds(&mut self, publication: &watch::Sender<Option<Publication>>) -> Result<(), Error> {
        // Listened to before the first look, so that nothing falls between.
        let mut notices = Notices::new(self.kernel.watch()?).map_err(loden_kernel::Error::Listen)?;
        self.warn_of_legacy_iptables()?;
        self.gather().await;
        let mut retry = FIRST_RETRY;
        let mut file = FileNotices::new(self.file.path()).ok();
        loop {
            let outcome = self.round(publication).await?;
            self.settle_readiness(&outcome);
            self.say_what_we_wait_for(&outcome);
            if file.is_none() {
                file = FileNotices::new(self.file.path()).ok();
                if file.is_some() {
                    // The round has just made the directory; what happened in it before we listened shows by looking.
                    continue;
                }
            }
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
            let audit = Instant::now() + pause;
            loop {
                let (watch, vpc) = (&mut self.watch, &mut self.vpc);
                tokio::select! {
                    woken = notices.changed(&self.kernel) => {
                        woken?;
                        tokio::time::sleep(BURST).await;
                    }
                    () = changed(&mut file) => {
                        // The directory may be another one by now; listen anew, before looking.
                        file = FileNotices::new(self.file.path()).ok();
                    }
                    () = watch.changed() => {
                        tokio::time::sleep(BURST).await;
                        if !self.is_news() {
                            continue;
                        }
                    }
                    Ok(()) = vpc.changed() => {}
                    () = tokio::time::sleep_until(audit) => {}
                }
                break;
            }
        }
    }

    /// Whether the cluster says anything that the last round did not know. Most changes of other nodes are none.
    fn is_news(&mut self) -> bool {
        let peers = self.update_peers();
        let own = self.own_node().ok();
        let same = match (&own, &self.seen) {
            (Some(now), Some(seen)) => Arc::ptr_eq(now, seen),
            (None, None) => true,
            _ => false,
        };
        peers || !same
    }

    /// Takes up what the other nodes say; whether any of it is new.
    pub(crate) fn update_peers(&mut self) -> bool {
        if !self.settings.has_peers() {
            return false;
        }
        let Some(nodes) = self.watch.snapshot() else { return false };
        self.peers.update(&self.settings.annotation_keys, &nodes, &self.settings.node_name)
    }

    /// Without an earlier flanneld (which would have left its subnet file) there are no rules of it either.
    fn warn_of_legacy_iptables(&self) -> Result<(), Error> {
        let commands = self.kernel.legacy_iptables()?;
        if !commands.is_empty() && !self.previous.networks.is_empty() {
            tracing::warn!(
                "rules that Go's flanneld may have left in legacy iptables cannot be seen or removed from here and would masquerade \
                 once more; run `{}`, and where that lists rules delete the chain and the jump to it",
                commands.join("`, `")
            );
        }
        Ok(())
    }

    /// Waits a moment for the first answers, so that the first round has them. What comes late is taken up then.
    pub(crate) async fn gather(&mut self) {
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
    async fn round(&mut self, publication: &watch::Sender<Option<Publication>>) -> Result<Outcome, Error> {
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
                        tracing::info!(node = self.name(), ?subnets, "subnet leased");
                    } else {
                        tracing::warn!(node = self.name(), before = ?self.subnets, now = ?subnets,
                            "this node was given another subnet; pods of the old one lose their connections");
                    }
                    self.subnets = subnets;
                }
                Ok(_) => {}
                Err(error) => {
                    self.tell(node, &error);
                    match error {
                        AssignmentError::NotYet if self.subnets.is_empty() => {
                            return Ok(Outcome::Waiting(format!("node {}: {error}", self.name())));
                        }
                        _ if self.subnets.is_empty() => {
                            self.events.flush().await;
                            return Err(Error::Assignment { node: self.name().to_owned(), source: error });
                        }
                        _ => {
                            trouble =
                                Some(format!("node {}: {error}; the subnet leased before stays", self.name()))
                        }
                    }
                }
            }
            self.standpoint(node)?;
        }
        let Some(standpoint) = self.standpoint.clone() else {
            return Ok(Outcome::Waiting("the external interface is not chosen yet".to_owned()));
        };
        self.update_peers();
        self.seen = node.clone();
        let trouble = self.mend(&standpoint, node.as_deref())?.or(trouble);
        if let Some(node) = node {
            let attributes = self.settings.attributes(&standpoint);
            publication.send_replace(Some(Publication { node, attributes, ready: trouble.is_none() }));
        }
        Ok(trouble.map_or(Outcome::Right, Outcome::Wrong))
    }

    /// Puts kernel and subnet file right; says what is still wrong.
    ///
    /// The subnet file comes first, as far as it can fail: when it cannot be written at start, the kernel is as it was.
    fn mend(&mut self, standpoint: &Standpoint, own: Option<&NodeView>) -> Result<Option<String>, Error> {
        let mut wrong = Vec::new();
        let staged =
            match self.file.stage(&self.settings.subnet_env(&self.subnets, &standpoint.external).render()) {
                Ok(staged) => staged,
                // Whoever starts us can do something about it; a node at work must go on with what it has.
                Err(error) if !self.was_ready => return Err(error.into()),
                Err(error) => {
                    wrong.push(error.to_string());
                    None
                }
            };
        let (network, flaws) = self.network(standpoint);
        let unreached = RefCell::new(Vec::new());
        let settled = loden_node::settle(&mut self.kernel, &network.scope(), |observed| {
            unreached.replace(network.fabric.unreached(observed));
            network.desired(observed)
        });
        self.peers.complain(&flaws, &unreached.into_inner(), &self.events, own);
        let right = match settled {
            Ok(round) => {
                self.log_steps(&round.applied);
                for (step, error) in &round.forgone {
                    tracing::debug!("going on without `{}`: {error}", first_line(step));
                }
                let failed =
                    round.failed.iter().map(|(step, error)| format!("`{}`: {error}", first_line(step)));
                let all = failed.chain(round.blocked.iter().map(ToString::to_string));
                wrong.extend(all.take(TOLD));
                let more = (round.failed.len() + round.blocked.len()).saturating_sub(TOLD);
                wrong.extend((more > 0).then(|| format!("{more} more like these")));
                if round.unsettled && round.failed.is_empty() {
                    wrong.push("somebody changes the network back as fast as it is mended".to_owned());
                }
                round.is_right()
            }
            Err(error) => {
                wrong.push(error.to_string());
                false
            }
        };
        // Pods are set up once the file is there, so it waits until they can be reached.
        if let Some(staged) = staged.filter(|_| right) {
            match staged.commit() {
                Ok(()) => tracing::info!(path = %self.file.path().display(), "subnet file written"),
                Err(error) if !self.was_ready => return Err(error.into()),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        Ok(Some(wrong.join("; ")).filter(|wrong| !wrong.is_empty()))
    }

    /// At start mending is the work; later it means that somebody removed what we need, or that peers came and went.
    fn log_steps(&self, steps: &[Step]) {
        for step in steps.iter().take(TOLD) {
            if self.was_ready && !is_about_peers(step) {
                tracing::warn!(step = %first_line(step), "mended");
            } else {
                tracing::info!(step = %first_line(step), "applied");
            }
        }
        if steps.len() > TOLD {
            tracing::info!("applied {} more steps (-v 1 shows them all)", steps.len() - TOLD);
        }
        for step in steps {
            tracing::debug!("{step}");
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.settings.node_name
    }

    pub(crate) fn own_node(&self) -> Result<Arc<NodeView>, String> {
        let Some(nodes) = self.watch.snapshot() else {
            return Err(match self.watch.trouble() {
                Some(trouble) => trouble.to_string(),
                None => format!("waiting for API server {}", self.cluster.server()),
            });
        };
        nodes.get(self.name()).cloned().ok_or_else(|| {
            format!(
                "node {} does not exist in the API; it is made by its kubelet (check that NODE_NAME is the node's name there)",
                self.name()
            )
        })
    }

    pub(crate) fn assigned(&self, node: &NodeView) -> Result<Vec<IpNet>, AssignmentError> {
        let cidrs: Vec<IpNet> = match node.parsed_pod_cidrs() {
            Ok(cidrs) => cidrs,
            Err(error) => {
                tracing::warn!("{error}");
                Vec::new()
            }
        };
        assigned_subnets(&self.settings.conf, &cidrs)
    }

    /// Where this node stands, chosen once.
    pub(crate) fn standpoint(&mut self, node: &NodeView) -> Result<Standpoint, Error> {
        if let Some(standpoint) = &self.standpoint {
            return Ok(standpoint.clone());
        }
        let keys = &self.settings.annotation_keys;
        let mut wanted = self.settings.wanted();
        wanted.public_ip = annotated(node, &keys.node_public_ip, "IPv4")?.or(wanted.public_ip);
        wanted.public_ipv6 = annotated(node, &keys.node_public_ipv6, "IPv6")?.or(wanted.public_ipv6);
        let around = self.kernel.surroundings(wanted.can_reach)?;
        let external = choose(&wanted, &around)?;
        tracing::info!(
            link = external.link,
            mtu = external.mtu,
            ipv4 = external.public_ipv4.map(tracing::field::display),
            ipv6 = external.public_ipv6.map(tracing::field::display),
            "external interface chosen"
        );
        let chosen = around.candidates.iter().find(|candidate| candidate.name == external.link);
        let addresses: Vec<IpNet> =
            chosen.iter().flat_map(|candidate| candidate.addresses.iter().map(|own| own.net)).collect();
        let published =
            node.annotations.get(&keys.backend_data).map(|text| BackendData::from_json("vxlan", text));
        let published = match published {
            Some(Ok(BackendData::Vxlan { vtep_mac, .. })) => vtep_mac.parse().ok(),
            _ => None,
        };
        let standpoint = Standpoint::new(&self.settings, external, &addresses, published)?;
        Ok(self.standpoint.insert(standpoint).clone())
    }

    /// The network as it is to be, and what is wrong with nodes that are no part of it.
    pub(crate) fn network(&self, standpoint: &Standpoint) -> (Network, Vec<(String, Flaw)>) {
        let exempt = self.vpc.borrow().clone();
        let (fabric, flaws) = match self.settings.oneself(&self.subnets, standpoint) {
            None => (Fabric::default(), Vec::new()),
            Some(oneself) => {
                let Admission { peers, flaws } = self.peers.admit(&oneself);
                (Fabric { tunnel: self.settings.tunnel(&oneself, standpoint), peers }, flaws)
            }
        };
        let previous = &self.previous.networks;
        let network = self.settings.network(&self.subnets, standpoint, exempt, previous, fabric);
        (network, flaws)
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
            Outcome::Right => self.complaint.forget(),
            Outcome::Waiting(why) if self.complaint.is_due(why, Instant::now()) => {
                tracing::warn!("not ready: {why}");
            }
            Outcome::Wrong(why) if self.complaint.is_due(why, Instant::now()) => {
                tracing::error!("not ready: {why}");
            }
            Outcome::Waiting(_) | Outcome::Wrong(_) => {}
        }
        if self.readiness.set(ready) {
            if ready {
                tracing::info!(node = self.name(), "ready");
            } else {
                tracing::warn!(node = self.name(), "no longer ready");
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

impl Daemon {
    /// Leaves a note beside the subnet file for as long as that cannot be relied on, so that whoever asks the node gets an answer.
    fn say_what_we_wait_for(&self, outcome: &Outcome) {
        let path = waiting_file(self.file.path());
        let done = match outcome {
            Outcome::Right => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
                _ => Ok(()),
            },
            // A node that was right once has its subnet file, and pods start by it.
            Outcome::Waiting(_) | Outcome::Wrong(_) if self.was_ready => Ok(()),
            Outcome::Waiting(why) | Outcome::Wrong(why) => SubnetFile::new(path)
                .write(&render_waiting(why))
                .map(|_| ())
                .map_err(|error| error.to_string()),
        };
        if let Err(error) = done {
            tracing::debug!("cannot leave or remove the note about what we wait for: {error}");
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

/// The operator's address in an annotation of our node.
fn annotated<A: std::str::FromStr>(
    node: &NodeView,
    key: &str,
    family: &'static str,
) -> Result<Option<A>, Error> {
    let Some(text) = node.annotations.get(key).filter(|text| !text.is_empty()) else { return Ok(None) };
    let broken = |_| Error::Annotation { key: key.to_owned(), text: text.clone(), family };
    text.parse().map(Some).map_err(broken)
}

/// Waits until something happened to the subnet file; for ever if nobody listens.
async fn changed(file: &mut Option<FileNotices>) {
    if let Some(notices) = file
        && notices.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Whether a step follows from the peers' coming and going just as well as from somebody's meddling.
fn is_about_peers(step: &Step) -> bool {
    let (Step::Add(object) | Step::Change { to: object, .. } | Step::Delete(object)) = step;
    matches!(object, Object::Neighbour(_) | Object::Fdb(_) | Object::Route(_))
}

fn first_line(step: &Step) -> String {
    let text = step.to_string();
    let first = text.lines().next().unwrap_or_default();
    if text.lines().count() > 1 { format!("{first} …") } else { first.to_owned() }
}
