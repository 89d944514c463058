//! The lab while it runs: its members and everything that can be done to them.
//!
//! Owns the order in which a node or a pod comes and goes. The cloud's and the cluster's state live in the emulators; here is only what they cannot know:
//! namespaces, processes, sandboxes. One operation at a time changes the lab ([`Cluster::operate`]); looking at it never waits for one.

mod console;
mod nodes;
mod overview;
mod pods;
mod processes;

pub use nodes::node_prefix;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use loden_netlink::netns::NetNs;
use loden_sim_cloud::Handle as Cloud;

use crate::control::Event;
use crate::error::{Context, Error, Result};
use crate::fabric::{self, Fabric};
use crate::forwarding::Ports;
use crate::kubernetes::{KubeNode, Kubernetes};
use crate::names::{LabName, check_member_name};
use crate::process::{Programs, Supervised};
use crate::runtime::{Runtime, Sandbox};
use crate::spec::{self, Inputs};
use crate::status::ClusterService;
use crate::topology;

/// How long a node may take to become usable, or anything else to settle. Generous: a slow machine is no broken cluster.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often a condition is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(20);

/// A running lab.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) lab: LabName,
    pub(crate) inputs: Inputs,
    pub(crate) programs: Programs,
    pub(crate) cloud: Cloud,
    pub(crate) kubes: Vec<Kubernetes>,
    pub(crate) fabric: Fabric,
    nat: Ipv4Addr,
    members: Mutex<Members>,
    operation: Mutex<()>,
    /// Rung when ports changed, so that the vRouter is programmed at once.
    bell: (Mutex<u64>, Condvar),
}

#[derive(Debug, Default)]
struct Members {
    instances: BTreeMap<String, Member>,
    pods: BTreeMap<String, PodMember>,
    /// By place of their cluster.
    controllers: BTreeMap<usize, Supervised>,
    /// What the controllers' cloud-config files say, by place of their cluster.
    configs: BTreeMap<usize, console::CloudConfig>,
    services: Vec<ClusterService>,
}

#[derive(Debug)]
struct Member {
    id: String,
    address: Ipv4Addr,
    vswitch: String,
    node: Option<NodeMember>,
    /// How often another instance took its place.
    replaced: u32,
}

impl Member {
    /// Whether it is a node of the cluster at this place.
    fn is_node_of(&self, cluster: usize) -> bool {
        self.node.as_ref().is_some_and(|node| node.cluster == cluster)
    }
}

#[derive(Debug)]
struct NodeMember {
    /// Place of the cluster it belongs to.
    cluster: usize,
    flanneld: Option<Supervised>,
    runtime: Arc<Runtime>,
    crashed: bool,
}

#[derive(Clone, Debug)]
struct PodMember {
    sandbox: Sandbox,
    node: String,
    address: Ipv4Addr,
}

impl Cluster {
    /// A lab whose fabric is made, with nobody in it yet.
    #[must_use]
    pub fn new(
        lab: LabName,
        inputs: Inputs,
        programs: Programs,
        cloud: Cloud,
        kubes: Vec<Kubernetes>,
        fabric: Fabric,
        nat: Ipv4Addr,
    ) -> Self {
        Self {
            lab,
            inputs,
            programs,
            cloud,
            kubes,
            fabric,
            nat,
            members: Mutex::default(),
            operation: Mutex::default(),
            bell: (Mutex::default(), Condvar::new()),
        }
    }

    /// Runs a changing operation while no other one runs.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn operate<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let _turn = self.operation.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports of the vRouter as they are now.
    #[must_use]
    pub fn ports(&self) -> Ports {
        let members = self.members();
        Ports {
            instances: members
                .instances
                .iter()
                .map(|(name, member)| (member.id.clone(), self.fabric.port(name)))
                .collect(),
            services: Some(fabric::API_ADDRESS),
            nat: Some(self.nat),
        }
    }

    /// Name of the VPC.
    #[must_use]
    pub fn vpc(&self) -> String {
        topology::vpc_id(&self.lab)
    }

    /// Says that ports or the cloud changed.
    pub fn ring(&self) {
        *self.bell.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.bell.1.notify_all();
    }

    /// Waits until [`Cluster::ring`] was called more than `heard` times or `at_most` is over; returns how often it was.
    #[must_use]
    pub fn listen(&self, heard: u64, at_most: Duration) -> u64 {
        let rung = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.bell.1.wait_timeout_while(rung, at_most, |rung| *rung <= heard);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Looks after all processes.
    pub fn tend(&self) {
        let mut members = self.members();
        for controller in members.controllers.values_mut() {
            controller.tend();
        }
        for member in members.instances.values_mut() {
            if let Some(flanneld) = member.node.as_mut().and_then(|node| node.flanneld.as_mut()) {
                flanneld.tend();
            }
        }
    }

    /// Starts an instance that is no node.
    ///
    /// # Errors
    /// No address is left, or the instance cannot be made.
    pub fn add_instance(&self, name: &str) -> Result<NetNs> {
        check_member_name("instance", name)?;
        if self.members().instances.contains_key(name) {
            return Err(Error::Refused(format!("lab {} has an instance {name} already", self.lab)));
        }
        let used: BTreeSet<Ipv4Addr> =
            self.members().instances.values().map(|member| member.address).chain([self.nat]).collect();
        let (at, address) = spec::next_address(&self.inputs.vswitches, &used).ok_or_else(|| {
            Error::Refused("the vSwitches have no address left for another instance".to_owned())
        })?;
        let range = self.inputs.vswitches.get(at).copied().unwrap_or(self.inputs.vpc_cidr);
        let id = topology::instance_id(name);
        let vswitch = topology::vswitch_id(&self.lab, at);
        let spec = topology::instance(&self.lab, name, at, address);
        let flat = self.inputs.backend.is_flat();
        let spec = if flat { topology::on_a_plain_network(spec) } else { spec };
        self.cloud.add_instance(&spec).during(|| format!("start instance {name}"))?;
        let namespace = self.fabric.attach(name, address, range)?;
        self.members()
            .instances
            .insert(name.to_owned(), Member { id, address, vswitch, node: None, replaced: 0 });
        self.ring();
        Ok(namespace)
    }

    /// Starts each cluster's controller on an instance of its own.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start_controllers(&self) -> Result<()> {
        for (at, kube) in self.kubes.iter().enumerate() {
            let namespace = self.add_instance(&control_instance(at))?;
            let key = self.inputs.access_key.then(|| self.new_access_key(kube)).transpose()?;
            let tables = self.inputs.route_table_ids.clone();
            self.configure(at, kube, |config| *config = console::CloudConfig { key, tables })?;
            let recipe = topology::controller_recipe(self, kube, namespace, &[])?;
            let controller = Supervised::start(&self.lab, recipe)?;
            self.members().controllers.insert(at, controller);
        }
        Ok(())
    }

    /// The cluster at this place.
    fn kube(&self, at: usize) -> Result<&Kubernetes> {
        self.kubes.get(at).ok_or_else(|| {
            let count = self.kubes.len();
            Error::Refused(format!("lab {} has no cluster {}; it has {count}", self.lab, at + 1))
        })
    }

    /// The cluster of a node.
    fn kube_of(&self, node: &str) -> Result<&Kubernetes> {
        let at = self.members().instances.get(node).and_then(|member| Some(member.node.as_ref()?.cluster));
        self.kube(at.ok_or_else(|| Error::Refused(format!("lab {} has no node {node}", self.lab)))?)
    }

    /// A node's object, whichever cluster has it: names are the lab's, so no two clusters have the same.
    fn node_object(&self, node: &str) -> Option<KubeNode> {
        self.kubes.iter().find_map(|kube| kube.node(node))
    }

    /// Events of all clusters, each cluster's oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.kubes.iter().flat_map(Kubernetes::events).collect()
    }

    /// Waits until `done`; otherwise says what `why_not` finds when the time is up.
    fn wait(&self, what: &str, done: impl Fn() -> bool, why_not: impl Fn() -> String) -> Result<()> {
        let begun = Instant::now();
        while !done() {
            if begun.elapsed() > PATIENCE {
                return Err(Error::Timeout {
                    what: what.to_owned(),
                    seconds: PATIENCE.as_secs(),
                    last: why_not(),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Name of the instance of a cluster's controller.
fn control_instance(at: usize) -> String {
    if at == 0 {
        crate::CONTROL_INSTANCE.to_owned()
    } else {
        format!("{}-{}", crate::CONTROL_INSTANCE, at + 1)
    }
}

fn free_name(prefix: &str, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (1_u32..).map(|number| format!("{prefix}{number}"));
    numbered.take(100_000).find(|name| !taken(name)).unwrap_or_else(|| format!("{prefix}x"))
}

/// 64 random hexadecimal digits, as container runtimes name their containers.
///
/// # Errors
/// The system's source of randomness cannot be read.
pub fn random_hex() -> Result<String> {
    let path = "/dev/urandom";
    let mut bytes = [0_u8; 32];
    let mut source = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
    source.read_exact(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_number_is_taken() {
        assert_eq!(free_name("node-", |name| name == "node-1"), "node-2");
    }

    #[test]
    fn container_ids_are_long_and_differ() {
        let one = random_hex().unwrap();
        assert_eq!(one.len(), 64);
        assert_ne!(one, random_hex().unwrap());
    }
}
