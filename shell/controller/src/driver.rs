//! The loop.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use loden_addr::DivisionError;
use loden_kube::{
    Cluster, Condition, ConditionStatus, EventKind, Events, NodeView, NodeWatch, Nodes, PodCidrOutcome,
    Regarding, WaitingPods,
};
use loden_nodes::controller as node_control;
use loden_nodes::port::ReadInstances;
use loden_nodes::{Instance, Plan};
use loden_reconcile::Moment;
use loden_routes::controller::{
    About, Action, Answer, CallId, Controller, Event, Notice, Poll, Settings, Severity, Why,
};
use loden_routes::model::{NetworkUnavailable, VpcId};
use loden_routes::port::{Failure, WriteRouteTables};
use loden_routes::tables::TableChoice;
use loden_telemetry::Readiness;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::calls::{carry_out, log_answer, log_call};
use crate::control::{NodeSettings, apply, ask};
use crate::ipam::{Grant, Ipam, IpamSettings};
use crate::metrics::Metrics;
use crate::nodes::{Snapshot, controlled, difference, node, watch_options};

/// Pod CIDRs under way to the API server at once. Of conditions the route controller has no more at once than it says.
const POD_CIDR_WRITES: usize = 16;
/// Node control's writes under way at once: what it corrects never keeps a condition or a pod CIDR waiting.
const NODE_WRITES: usize = 4;
/// For more nodes that change. To look at a snapshot costs a walk over all nodes, and to keep one costs the watch a copy of its map.
const GATHER_NODES: Duration = Duration::from_millis(20);
/// For more pods that begin or cease to wait.
const GATHER_PODS: Duration = Duration::from_millis(50);
/// How long calls that were begun may take to end when the controller is to stop.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// Between two publications of the figures.
const PUBLICATIONS: Duration = Duration::from_secs(1);

/// Where people look for events that are about no node: the object that stands for the controller.
#[derive(Debug, Clone)]
pub struct Place {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The name of the Lease.
    pub name: String,
}

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts<C> {
    /// The API server.
    pub cluster: Cluster,
    /// Route control and the cloud that it works on; `None` switches it off.
    pub routes: Option<(Settings, C)>,
    /// Node control and the cloud that it asks; `None` switches it off.
    pub node_control: Option<(NodeSettings, C)>,
    /// Node IPAM; `None` leaves pod CIDRs to somebody else.
    pub ipam: Option<IpamSettings>,
    /// Events.
    pub events: Events,
    /// What events that are about no node are about.
    pub place: Place,
    /// Set while the picture of tables is complete and the cloud answers.
    pub readiness: Readiness,
    /// Where the figures go.
    pub metrics: Metrics,
    /// What somebody outside the loop wants of it. Those that were sent before the loop runs wait for it.
    pub instructions: mpsc::UnboundedReceiver<Instruction>,
}

/// Something that somebody outside the loop wants of it.
#[derive(Debug, Clone)]
pub enum Instruction {
    /// Serve these tables from now on.
    Tables(TableChoice),
    /// Tell people.
    Tell(Notice),
}

/// The controller at work, for as long as its process leads.
#[derive(Debug)]
pub struct Driver<C> {
    cluster: Cluster,
    routes: Option<Routes<C>>,
    node_control: Option<NodeControl<C>>,
    ipam: Option<Ipam>,
    events: Events,
    place: Place,
    readiness: Readiness,
    nodes: Arc<Nodes>,
    started: Instant,
    sender: mpsc::UnboundedSender<Done>,
    inbox: mpsc::UnboundedReceiver<Done>,
    cloud_calls: JoinSet<()>,
    kube_calls: JoinSet<()>,
    /// Plans of node control that are being carried out, at most [`NODE_WRITES`].
    plans: usize,
    /// Pod CIDRs that are being written, at most [`POD_CIDR_WRITES`].
    grants: usize,
    /// What the route controller was last seen waiting for, so that the log tells of changes only.
    waiting_for: Option<Why>,
    metrics: Metrics,
    instructions: mpsc::UnboundedReceiver<Instruction>,
    /// Whether something happened since the figures were published.
    unpublished: bool,
    publish_at: Instant,
}

#[derive(Debug)]
struct Routes<C> {
    controller: Controller,
    cloud: Arc<C>,
}

#[derive(Debug)]
struct NodeControl<C> {
    controller: node_control::Controller,
    vpc: VpcId,
    cloud: Arc<C>,
}

/// The end of something that was begun.
#[derive(Debug)]
enum Done {
    Answered(CallId, Answer),
    Condition { node: String, result: Result<NetworkUnavailable, String> },
    PodCidrs { node: Arc<NodeView>, pod_cidrs: Vec<IpNet>, result: loden_kube::Result<PodCidrOutcome> },
    Instances { id: u64, result: Result<Vec<Instance>, Failure> },
    Applied { node: String, uid: String, result: Result<(), String> },
}

impl<C: WriteRouteTables + ReadInstances + Send + Sync + 'static> Driver<C> {
    /// Prepares the loop; nothing is called before [`Driver::run`].
    ///
    /// # Errors
    /// The node mask does not divide the pod CIDR.
    pub fn new(parts: Parts<C>) -> Result<Self, DivisionError> {
        let (sender, inbox) = mpsc::unbounded_channel();
        Ok(Self {
            cluster: parts.cluster,
            routes: parts.routes.map(|(settings, cloud)| Routes {
                controller: Controller::new(settings),
                cloud: Arc::new(cloud),
            }),
            node_control: parts.node_control.map(|(settings, cloud)| NodeControl {
                controller: node_control::Controller::new(settings.control),
                vpc: settings.vpc,
                cloud: Arc::new(cloud),
            }),
            ipam: parts.ipam.as_ref().map(Ipam::new).transpose()?,
            events: parts.events,
            place: parts.place,
            readiness: parts.readiness,
            nodes: Arc::default(),
            started: Instant::now(),
            sender,
            inbox,
            cloud_calls: JoinSet::new(),
            kube_calls: JoinSet::new(),
            waiting_for: None,
            metrics: parts.metrics,
            instructions: parts.instructions,
            unpublished: true,
            publish_at: Instant::now(),
            plans: 0,
            grants: 0,
        })
    }

    /// Works until `stop` resolves. Calls to the cloud that were begun are waited for a moment, so that the next leader does not meet them.
    /// Dropping the future stops at once.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut watch = self.cluster.watch_nodes(watch_options(self.node_control.is_some()));
        let mut pods = self.routes.is_some().then(|| self.cluster.watch_waiting_pods());
        let mut pods_due: Option<Instant> = None;
        let mut complete = false;
        let mut nodes_due = Some(self.started);
        let mut nodes_seen = self.started;
        loop {
            if nodes_due.take_if(|due| *due <= Instant::now()).is_some() {
                complete |= self.take_snapshot(&watch, complete);
                nodes_seen = Instant::now();
            }
            let wake = self.act();
            self.publish();
            let timer = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(self.started + at).await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep_until(self.publish_at), if self.unpublished => continue,
                Some(instruction) = self.instructions.recv() => {
                    self.obey(instruction);
                    None
                }
                () = watch.changed(), if nodes_due.is_none() => {
                    nodes_due = Some(nodes_seen + GATHER_NODES);
                    None
                }
                () = due(nodes_due) => None,
                () = changed(&mut pods), if pods_due.is_none() => {
                    pods_due = Some(Instant::now() + GATHER_PODS);
                    None
                }
                () = due(pods_due) => {
                    pods_due = None;
                    self.pods_wait(pods.as_ref());
                    None
                }
                done = self.inbox.recv() => done,
                () = timer => None,
                Some(_) = self.cloud_calls.join_next(), if !self.cloud_calls.is_empty() => None,
                Some(_) = self.kube_calls.join_next(), if !self.kube_calls.is_empty() => None,
            };
            self.unpublished = true;
            let mut next = done;
            while let Some(done) = next {
                self.note(done);
                next = self.inbox.try_recv().ok();
            }
        }
        self.readiness.set(false);
        self.metrics.set_ready(false);
        let last = async { while self.cloud_calls.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_CALLS, last).await.is_err() {
            tracing::warn!(
                "a call to the cloud is still under way at the end; its outcome is left to the next leader"
            );
        }
        self.events.flush().await;
    }

    fn pods_wait(&mut self, pods: Option<&WaitingPods>) {
        let (now, nodes) = (self.now(), pods.map(WaitingPods::nodes).unwrap_or_default());
        if let Some(Routes { controller, .. }) = &mut self.routes {
            tracing::debug!(nodes = nodes.len(), "nodes that pods wait for");
            controller.on_event(now, Event::PodsWait(nodes));
        }
    }

    fn now(&self) -> Moment {
        self.started.elapsed()
    }

    /// Tells the state machines of nodes that changed. Returns whether all nodes are known.
    fn take_snapshot(&mut self, watch: &NodeWatch, was_complete: bool) -> bool {
        let Some(snapshot) = watch.snapshot() else { return false };
        let now = self.now();
        if !Arc::ptr_eq(&snapshot, &self.nodes) {
            let difference = difference(&self.nodes, &snapshot);
            for name in &difference.gone {
                tracing::info!(node = %name, "node is gone");
                if let Some(ipam) = &mut self.ipam {
                    ipam.gone(now, name);
                }
                if let Some(Routes { controller, .. }) = &mut self.routes {
                    controller.on_event(now, Event::NodeGone(name.clone()));
                }
                if let Some(control) = &mut self.node_control {
                    control.controller.on_event(now, node_control::Event::NodeGone(name.clone()));
                }
            }
            for view in difference.changed {
                if let Some(Routes { controller, .. }) = &mut self.routes {
                    controller.on_event(now, Event::Node(Box::new(node(&view))));
                }
                if let Some(control) = &mut self.node_control {
                    control.controller.on_event(now, node_control::Event::Node(Box::new(controlled(&view))));
                }
                if let Some(ipam) = &mut self.ipam {
                    ipam.seen(now, view);
                }
            }
            self.nodes = snapshot;
        }
        if !was_complete {
            tracing::info!(nodes = self.nodes.len(), "all nodes are known");
            if let Some(Routes { controller, .. }) = &mut self.routes {
                controller.on_event(now, Event::NodesComplete);
            }
            if let Some(control) = &mut self.node_control {
                control.controller.on_event(now, node_control::Event::NodesComplete);
            }
            if let Some(ipam) = &mut self.ipam {
                ipam.complete();
            }
        }
        true
    }

    /// Begins all that is to be done now; returns when to come back without an event.
    fn act(&mut self) -> Option<Moment> {
        let now = self.now();
        let mut wake: Option<Moment> = None;
        while self.grants < POD_CIDR_WRITES
            && let Some(grant) = self.ipam.as_mut().and_then(|ipam| ipam.next(now))
        {
            self.grant(grant);
        }
        if let Some(ipam) = &mut self.ipam {
            for report in ipam.reports() {
                tracing::warn!(node = %report.node.name, reason = report.reason, "{}", report.message);
                let about = Regarding::node(&report.node);
                self.metrics.told(report.reason, Severity::Warning);
                self.events.record(about, EventKind::Warning, report.reason, report.message);
            }
            wake = ipam.next_due().filter(|_| self.grants < POD_CIDR_WRITES);
        }
        while let Some(Routes { controller, .. }) = &mut self.routes {
            match controller.poll(now) {
                Poll::Act(action) => self.perform(action),
                Poll::Wait { until, why } => {
                    self.note_wait(why);
                    wake = [wake, until].into_iter().flatten().min();
                    break;
                }
            }
        }
        wake = [wake, self.control_nodes(now)].into_iter().flatten().min();
        let controller = self.routes.as_ref().map(|routes| &routes.controller);
        let ready =
            controller.is_none_or(|controller| controller.has_observed() && controller.trouble().is_none());
        self.metrics.set_ready(ready);
        if self.readiness.set(ready) {
            match controller.and_then(Controller::trouble).filter(|_| !ready) {
                Some(trouble) => tracing::warn!(%trouble, "not ready"),
                None => tracing::info!(ready, "readiness changed"),
            }
        }
        wake
    }

    /// Begins all that node control wants now; returns when it wants to be asked again.
    fn control_nodes(&mut self, now: Moment) -> Option<Moment> {
        let checks = self.routes.as_mut().map(|routes| routes.controller.take_checks()).unwrap_or_default();
        let control = self.node_control.as_mut()?;
        for (instance, off) in checks {
            control.controller.on_event(now, node_control::Event::Check { instance, off });
        }
        // What waits, waits as a name: a plan is made when it can be carried out, and its end brings us back here.
        while self.plans < NODE_WRITES {
            let nodes = Arc::clone(&self.nodes);
            let control = self.node_control.as_mut()?;
            match control.controller.poll(now, &Snapshot(&nodes)) {
                node_control::Poll::Act(node_control::Action::Cloud { id, call }) => {
                    let (cloud, vpc) = (Arc::clone(&control.cloud), control.vpc.clone());
                    let sender = self.sender.clone();
                    self.cloud_calls.spawn(async move {
                        let result = ask(&*cloud, &vpc, &call).await;
                        let _loop_ended = sender.send(Done::Instances { id, result });
                    });
                }
                node_control::Poll::Act(node_control::Action::Apply(plan)) => self.apply(plan),
                node_control::Poll::Act(node_control::Action::Notice(notice)) => self.tell(notice),
                node_control::Poll::Wait(until) => return until,
            }
        }
        None
    }

    fn apply(&mut self, plan: Plan) {
        let view = self.nodes.get(&plan.node).filter(|view| view.uid == plan.uid).cloned();
        let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
        self.plans += 1;
        self.kube_calls.spawn(async move {
            let result = match view {
                None => Err("the node is gone".to_owned()),
                Some(view) => apply(&cluster, &view, &plan).await,
            };
            let _loop_ended = sender.send(Done::Applied { node: plan.node, uid: plan.uid, result });
        });
    }

    fn note_wait(&mut self, why: Why) {
        if self.waiting_for.replace(why) != Some(why) {
            tracing::debug!("{why}");
            self.metrics.set_waiting(why);
        }
    }

    /// Publishes the figures when it is time to.
    fn publish(&mut self) {
        let now = Instant::now();
        if !self.unpublished || now < self.publish_at {
            return;
        }
        self.unpublished = false;
        self.publish_at = now + PUBLICATIONS;
        if let Some(Routes { controller, .. }) = &mut self.routes {
            self.metrics.publish(&controller.figures());
            for (_node, took) in controller.take_routed() {
                self.metrics.routed(took);
            }
        }
        if let Some(ipam) = &self.ipam {
            self.metrics.publish_ipam(&ipam.figures());
        }
    }

    fn obey(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Tables(choice) => {
                let now = self.now();
                if let Some(Routes { controller, .. }) = &mut self.routes {
                    controller.on_event(now, Event::Tables(choice));
                }
            }
            Instruction::Tell(notice) => self.tell(notice),
        }
    }

    fn grant(&mut self, grant: Grant) {
        let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
        self.grants += 1;
        self.kube_calls.spawn(async move {
            let Grant { node, pod_cidrs } = grant;
            let result = cluster.set_pod_cidrs(&node, &pod_cidrs).await;
            let _loop_ended = sender.send(Done::PodCidrs { node, pod_cidrs, result });
        });
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Cloud { id, call } => {
                let Some(Routes { controller, cloud }) = &self.routes else { return };
                log_call(&call);
                let (vpc, cloud, sender) = (controller.vpc().clone(), Arc::clone(cloud), self.sender.clone());
                self.cloud_calls.spawn(async move {
                    let answer = carry_out(&*cloud, &vpc, call).await;
                    let _loop_ended = sender.send(Done::Answered(id, answer));
                });
            }
            Action::Condition { node, uid, wanted } => self.write_condition(node, &uid, wanted),
            Action::Notice(notice) => self.tell(notice),
        }
    }

    fn write_condition(&mut self, node: String, uid: &str, wanted: NetworkUnavailable) {
        let view = self.nodes.get(&node).filter(|view| view.uid == uid).cloned();
        let (cluster, sender) = (self.cluster.clone(), self.sender.clone());
        self.kube_calls.spawn(async move {
            let result = match view {
                None => Err("the node is gone".to_owned()),
                Some(view) => {
                    let status = if wanted.unavailable { ConditionStatus::True } else { ConditionStatus::False };
                    let condition =
                        Condition { status, reason: wanted.reason.clone(), message: wanted.message.clone() };
                    match cluster.set_network_unavailable(&view, &condition).await {
                        Ok(_written) => Ok(wanted),
                        Err(error) if error.is_not_found() => Err(error.to_string()),
                        Err(error) => {
                            tracing::warn!(node = %view.name, %error, "cannot write NetworkUnavailable; trying again");
                            Err(error.to_string())
                        }
                    }
                }
            };
            let _loop_ended = sender.send(Done::Condition { node, result });
        });
    }

    fn tell(&self, notice: Notice) {
        let kind = match notice.severity {
            Severity::Normal => EventKind::Normal,
            Severity::Warning => EventKind::Warning,
        };
        let regarding = match &notice.about {
            About::Controller => {
                let Place { namespace, name } = &self.place;
                Regarding::object("coordination.k8s.io/v1", "Lease", namespace, name, "")
            }
            About::Node(name) => {
                let Some(view) = self.nodes.get(name) else { return };
                Regarding::node(view)
            }
        };
        match notice.severity {
            Severity::Normal => {
                tracing::info!(object = %regarding.name, reason = notice.reason, "{}", notice.message)
            }
            Severity::Warning => {
                tracing::warn!(object = %regarding.name, reason = notice.reason, "{}", notice.message)
            }
        }
        self.metrics.told(notice.reason, notice.severity);
        self.events.record(regarding, kind, notice.reason, notice.message);
    }

    fn note(&mut self, done: Done) {
        let now = self.now();
        match done {
            Done::Answered(id, answer) => {
                log_answer(&answer);
                if let Some(Routes { controller, .. }) = &mut self.routes {
                    controller.on_event(now, Event::Answered { id, answer });
                }
            }
            Done::Condition { node, result } => {
                if let Ok(written) = &result {
                    tracing::info!(
                        node = %node,
                        unavailable = written.unavailable,
                        reason = %written.reason,
                        "NetworkUnavailable written"
                    );
                }
                if let Some(Routes { controller, .. }) = &mut self.routes {
                    controller.on_event(now, Event::ConditionWritten { node, result });
                }
            }
            Done::Instances { id, result } => {
                if let Some(control) = &mut self.node_control {
                    control.controller.on_event(now, node_control::Event::Answered { id, result });
                }
            }
            Done::Applied { node, uid, result } => {
                self.plans = self.plans.saturating_sub(1);
                if let Some(control) = &mut self.node_control {
                    control.controller.on_event(now, node_control::Event::Applied { node, uid, result });
                }
            }
            Done::PodCidrs { node, pod_cidrs, result } => {
                self.grants = self.grants.saturating_sub(1);
                if matches!(result, Ok(PodCidrOutcome::Written)) {
                    let pod_cidrs: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
                    tracing::info!(node = %node.name, pod_cidrs = pod_cidrs.join(","), "pod CIDR given");
                }
                if let Some(ipam) = &mut self.ipam {
                    ipam.written(now, &node, &result);
                }
            }
        }
    }
}

/// Waits for a change of the pods that wait; for ever when nobody looks at them.
async fn changed(pods: &mut Option<WaitingPods>) {
    match pods {
        Some(pods) => pods.changed().await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
