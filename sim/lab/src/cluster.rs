//! The lab while it runs: its members and everything that can be done to them.
//!
//! Owns the order in which a node or a pod comes and goes. The cloud's and the cluster's state live in the emulators; here is only what they cannot know:
//! namespaces, processes, sandboxes. One operation at a time changes the lab ([`Cluster::operate`]); looking at it never waits for one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::Ipv4Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use loden_aliyun::vpc::EntryStatus;
use loden_netlink::netns::NetNs;
use loden_sim_cloud::snapshot::TableView;
use loden_sim_cloud::topology::{EntryKind, EntrySpec, NextHop, TableKind};
use loden_sim_cloud::{Handle as Cloud, Snapshot};

use crate::control::Applied;
use crate::error::{Context, Error, Result};
use crate::fabric::{self, Fabric};
use crate::forwarding::{INSTANCE, Ports};
use crate::kubernetes::{KubeNode, Kubernetes};
use crate::names::{LabName, check_member_name};
use crate::node_files::NodeFiles;
use crate::process::{Programs, Supervised};
use crate::runtime::{Runtime, Sandbox};
use crate::spec::{self, Inputs};
use crate::status::{self, ClusterService, Condition, Instance, Internet, Pod, RouteEntry, Status};
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
    pub(crate) kube: Kubernetes,
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
    controller: Option<Supervised>,
    services: Vec<ClusterService>,
}

#[derive(Debug)]
struct Member {
    id: String,
    address: Ipv4Addr,
    vswitch: String,
    node: Option<NodeMember>,
}

#[derive(Debug)]
struct NodeMember {
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
        kube: Kubernetes,
        fabric: Fabric,
        nat: Ipv4Addr,
    ) -> Self {
        Self {
            lab,
            inputs,
            programs,
            cloud,
            kube,
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
                .map(|(name, member)| (member.id.clone(), name.clone()))
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
        if let Some(controller) = &mut members.controller {
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
        self.cloud
            .add_instance(&topology::instance(&self.lab, name, at, address))
            .during(|| format!("start instance {name}"))?;
        let namespace = self.fabric.attach(name, address, range)?;
        self.members().instances.insert(name.to_owned(), Member { id, address, vswitch, node: None });
        self.ring();
        Ok(namespace)
    }

    /// Starts the controller on its instance.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_controller(&self, namespace: NetNs) -> Result<()> {
        let recipe = topology::controller_recipe(self, namespace)?;
        let controller = Supervised::start(&self.lab, recipe)?;
        self.members().controller = Some(controller);
        Ok(())
    }

    /// Starts an instance that joins the cluster and waits until it is usable; or, with `patient` false, only until it has joined.
    ///
    /// # Errors
    /// It cannot be started, or does not become usable in time.
    pub fn add_node(&self, name: Option<String>, patient: bool, progress: &dyn Fn(&str)) -> Result<Applied> {
        let name =
            name.unwrap_or_else(|| free_name("node-", |name| self.members().instances.contains_key(name)));
        if name.starts_with("pod-") {
            return Err(Error::Refused(
                "a node's name cannot begin with pod-: pods' namespaces do".to_owned(),
            ));
        }
        progress(&format!("starting {name}"));
        let namespace = self.add_instance(&name)?;
        let files = NodeFiles { root: self.lab.node_directory(&name) };
        files.write(&self.inputs, &self.programs)?;
        let token = self.kube.token();
        topology::write_kubeconfig(&files.kubeconfig(), &token)?;
        let runtime = Runtime {
            plugins: files.cni_plugins(),
            configuration: files.cni_configuration(),
            cache: files.cni_state(),
            namespace: namespace.clone(),
        };
        let address =
            self.members().instances.get(&name).map_or(Ipv4Addr::UNSPECIFIED, |member| member.address);
        let joined = Instant::now();
        self.kube.add_node(&name, &topology::provider_id(&name), address)?;
        let flanneld =
            Supervised::start(&self.lab, topology::flanneld_recipe(self, &name, &files, namespace))?;
        let node = NodeMember { flanneld: Some(flanneld), runtime: Arc::new(runtime), crashed: false };
        if let Some(member) = self.members().instances.get_mut(&name) {
            member.node = Some(node);
        }
        if !patient {
            return Ok(Applied::new(format!("{name} joined the cluster; it is not waited for"), Some(name)));
        }
        progress(&format!("waiting for the route entry of {name}"));
        let entry = self.wait(
            &format!("a route entry for {name}"),
            || self.entry_available(&name),
            || self.why_not_usable(&name),
        );
        let entry_after = joined.elapsed();
        entry?;
        progress(&format!("waiting for {name} to be usable"));
        self.wait_usable(&name)?;
        let usable_after = joined.elapsed();
        let subnet = self.subnet(&name).map_or_else(|| "no subnet".to_owned(), |subnet| subnet.to_string());
        let mut applied = Applied::new(
            format!(
                "{name} joined with subnet {subnet}: route entry available {} ms after the node object, node usable after {} ms",
                entry_after.as_millis(),
                usable_after.as_millis()
            ),
            Some(name),
        );
        applied.entry_ms = u64::try_from(entry_after.as_millis()).ok();
        applied.usable_ms = u64::try_from(usable_after.as_millis()).ok();
        Ok(applied)
    }

    /// Waits until a node's pods can be started.
    ///
    /// # Errors
    /// It did not become usable in time.
    pub fn wait_usable(&self, name: &str) -> Result<()> {
        self.wait(&format!("{name} becoming usable"), || self.usable(name), || self.why_not_usable(name))
    }

    fn subnet(&self, name: &str) -> Option<Ipv4Net> {
        self.kube.node(name).and_then(|node| node.subnet)
    }

    fn entry_available(&self, name: &str) -> bool {
        let Some(subnet) = self.subnet(name) else { return false };
        self.entry(&self.cloud.snapshot(), subnet).is_some_and(|status| status == EntryStatus::Available)
    }

    fn entry(&self, snapshot: &Snapshot, destination: Ipv4Net) -> Option<EntryStatus> {
        let table = snapshot.table(&topology::table_id(&self.lab))?;
        table
            .entries
            .iter()
            .find(|entry| entry.destination == IpNet::V4(destination))
            .map(|entry| entry.status)
    }

    fn usable(&self, name: &str) -> bool {
        let files = NodeFiles { root: self.lab.node_directory(name) };
        let condition = self.kube.node(name).and_then(|node| node.network_unavailable);
        condition.is_some_and(|condition| condition.status == "False") && files.subnet_env().is_file()
    }

    fn why_not_usable(&self, name: &str) -> String {
        let files = NodeFiles { root: self.lab.node_directory(name) };
        let node = self.kube.node(name);
        let mut why = Vec::new();
        match &node {
            None => why.push("there is no node object".to_owned()),
            Some(KubeNode { subnet: None, .. }) => why.push("it has no spec.podCIDR".to_owned()),
            Some(_) => {}
        }
        if let Some(Condition { status, reason, message }) = node.and_then(|node| node.network_unavailable) {
            why.push(format!("NetworkUnavailable={status} {reason}: {message}"));
        } else {
            why.push("it has no condition NetworkUnavailable".to_owned());
        }
        let members = self.members();
        if !files.subnet_env().is_file() {
            let flanneld = members
                .instances
                .get(name)
                .and_then(|member| member.node.as_ref())
                .and_then(|node| node.flanneld.as_ref());
            why.push(format!("no {}", files.subnet_env().display()));
            why.extend(flanneld.map(Supervised::last_words));
        }
        why.extend(members.controller.as_ref().map(Supervised::last_words));
        why.join("; ")
    }

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

    /// Waits until as many nodes are usable as the route table has room for, and the others say why they are not.
    ///
    /// # Errors
    /// They did not settle in time.
    pub fn wait_settled(&self) -> Result<()> {
        let names = self.node_names();
        let room = usize::try_from(self.inputs.quota).unwrap_or(usize::MAX).min(names.len());
        let settled = || {
            let usable = names.iter().filter(|name| self.usable(name)).count();
            let refused = |name: &&String| {
                let node = self.kube.node(name);
                node.and_then(|node| node.network_unavailable)
                    .is_some_and(|condition| condition.status == "True")
            };
            usable >= room && usable + names.iter().filter(refused).count() >= names.len()
        };
        let why_not = || {
            let waiting = names.iter().filter(|name| !self.usable(name));
            waiting
                .map(|name| format!("{name}: {}", self.why_not_usable(name)))
                .collect::<Vec<_>>()
                .join("\n")
        };
        self.wait("the nodes becoming usable", settled, why_not)
    }

    /// Names of the nodes.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.members()
            .instances
            .iter()
            .filter(|(_, member)| member.node.is_some())
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Names of the nodes that may have pods.
    #[must_use]
    pub fn usable_nodes(&self) -> Vec<String> {
        self.node_names().into_iter().filter(|name| self.usable(name) && !self.crashed(name)).collect()
    }

    fn crashed(&self, name: &str) -> bool {
        self.members()
            .instances
            .get(name)
            .and_then(|member| member.node.as_ref())
            .is_some_and(|node| node.crashed)
    }

    /// Takes a node out in order.
    ///
    /// # Errors
    /// There is none of that name, or a part of it could not be removed.
    pub fn remove_node(&self, name: &str, progress: &dyn Fn(&str)) -> Result<Applied> {
        self.require_node(name)?;
        let crashed = self.crashed(name);
        let pods: Vec<String> = self
            .members()
            .pods
            .iter()
            .filter(|(_, pod)| pod.node == name)
            .map(|(name, _)| name.clone())
            .collect();
        for pod in pods {
            progress(&format!("stopping {pod}"));
            if crashed {
                self.forget_pod(&pod)?;
            } else {
                self.remove_pod(&pod)?;
            }
        }
        let subnet = self.subnet(name);
        progress(&format!("removing {name} from the cluster"));
        let left = Instant::now();
        self.kube.remove_node(name)?;
        let flanneld =
            self.members().instances.get_mut(name).and_then(|member| member.node.as_mut()?.flanneld.take());
        if let Some(mut flanneld) = flanneld {
            flanneld.stop();
        }
        let gone = || subnet.is_none_or(|subnet| self.entry(&self.cloud.snapshot(), subnet).is_none());
        let entry = self.wait(&format!("the route entry of {name} going away"), gone, || {
            self.members().controller.as_ref().map(Supervised::last_words).unwrap_or_default()
        });
        let gone_after = left.elapsed();
        let id = topology::instance_id(name);
        self.fabric.detach(name)?;
        self.cloud.remove_instance(&id).during(|| format!("release instance {id}"))?;
        self.members().instances.remove(name);
        self.ring();
        let root = self.lab.node_directory(name);
        std::fs::remove_dir_all(&root).map_err(|e| Error::io("remove", root, e))?;
        entry?;
        let mut applied = Applied::new(
            format!(
                "{name} is gone; its route entry went {} ms after the node object",
                gone_after.as_millis()
            ),
            Some(name.to_owned()),
        );
        applied.entry_ms = u64::try_from(gone_after.as_millis()).ok();
        Ok(applied)
    }

    /// Stops an instance from one moment to the next.
    ///
    /// # Errors
    /// There is no such node.
    pub fn crash_node(&self, name: &str) -> Result<Applied> {
        self.require_node(name)?;
        self.fabric.cut(name)?;
        let flanneld = self.members().instances.get_mut(name).and_then(|member| {
            let node = member.node.as_mut()?;
            node.crashed = true;
            node.flanneld.take()
        });
        if let Some(mut flanneld) = flanneld {
            flanneld.kill();
        }
        self.kube.set_ready(name, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status.")?;
        Ok(Applied::new(
            format!("{name} is cut off; its node object and its route entry stay"),
            Some(name.to_owned()),
        ))
    }

    fn require_node(&self, name: &str) -> Result<()> {
        let names = self.node_names();
        if names.iter().any(|candidate| candidate == name) {
            return Ok(());
        }
        Err(Error::Refused(format!("lab {} has no node {name}; it has {}", self.lab, names.join(", "))))
    }

    /// Starts a pod.
    ///
    /// # Errors
    /// No node can take it, or a plugin refused.
    pub fn add_pod(&self, node: Option<String>, name: Option<String>) -> Result<Applied> {
        let name = name.unwrap_or_else(|| free_name("pod-", |name| self.members().pods.contains_key(name)));
        check_member_name("pod", &name)?;
        if self.members().pods.contains_key(&name) {
            return Err(Error::Refused(format!("lab {} has a pod {name} already", self.lab)));
        }
        let node = match node {
            Some(node) => {
                self.require_node(&node)?;
                if !self.usable(&node) || self.crashed(&node) {
                    return Err(Error::Refused(format!(
                        "{node} takes no pods: {}",
                        self.why_not_usable(&node)
                    )));
                }
                node
            }
            None => self.emptiest_node()?,
        };
        let runtime = self
            .members()
            .instances
            .get(&node)
            .and_then(|member| Some(Arc::clone(&member.node.as_ref()?.runtime)))
            .ok_or_else(|| Error::Refused(format!("{node} is gone")))?;
        let what = pod_namespace(&name);
        fabric::member(&self.lab, &what)?;
        let sandbox =
            Sandbox { pod: name.clone(), container_id: random_hex()?, netns: self.lab.namespace_path(&what) };
        let begun = Instant::now();
        let added = runtime.add(&sandbox, &BTreeMap::new()).and_then(|addresses| {
            addresses
                .first()
                .copied()
                .ok_or_else(|| Error::Refused(format!("the plugins gave pod {name} no IPv4 address")))
        });
        let took = begun.elapsed();
        let address = match added {
            Ok(address) => address,
            Err(failure) => {
                NetNs::delete_named(&self.lab.namespace(&what))
                    .during(|| format!("remove the namespace of pod {name}"))?;
                return Err(failure);
            }
        };
        self.members().pods.insert(name.clone(), PodMember { sandbox, node: node.clone(), address });
        Ok(Applied::new(
            format!("{name} has {address} on {node}; CNI ADD took {} ms", took.as_millis()),
            Some(name),
        ))
    }

    fn emptiest_node(&self) -> Result<String> {
        let usable = self.usable_nodes();
        let members = self.members();
        let load = |node: &String| members.pods.values().filter(|pod| pod.node == *node).count();
        usable
            .into_iter()
            .min_by_key(load)
            .ok_or_else(|| Error::Refused(format!("lab {} has no node that takes pods", self.lab)))
    }

    /// Stops a pod: CNI DEL, then its namespace.
    ///
    /// # Errors
    /// There is none of that name, or a plugin refused; the pod stays known then, and the removal can be repeated.
    pub fn remove_pod(&self, name: &str) -> Result<Applied> {
        let (pod, runtime) = {
            let members = self.members();
            let pod = members.pods.get(name).cloned().ok_or_else(|| {
                let names: Vec<&str> = members.pods.keys().map(String::as_str).collect();
                Error::Refused(format!("lab {} has no pod {name}; it has {}", self.lab, names.join(", ")))
            })?;
            let node = members.instances.get(&pod.node).and_then(|member| member.node.as_ref());
            let runtime = node.map(|node| Arc::clone(&node.runtime));
            (pod, runtime)
        };
        if let Some(runtime) = runtime {
            runtime.delete(&pod.sandbox)?;
        }
        self.forget_pod(name)?;
        Ok(Applied::new(format!("{name} is gone"), Some(name.to_owned())))
    }

    fn forget_pod(&self, name: &str) -> Result<()> {
        NetNs::delete_named(&self.lab.namespace(&pod_namespace(name)))
            .during(|| format!("remove the namespace of pod {name}"))?;
        let orphaned = {
            let mut members = self.members();
            members.pods.remove(name);
            let before = members.services.len();
            members.services.retain(|service| service.backend != name);
            members.services.len() != before
        };
        if orphaned { self.install_services() } else { Ok(()) }
    }

    /// Runs CNI CHECK for every pod; returns what is wrong.
    ///
    /// # Errors
    /// None of its own: what fails is in the answer.
    pub fn cni_check(&self) -> Result<Vec<String>> {
        let pods: Vec<PodMember> = self.members().pods.values().cloned().collect();
        let mut failures = Vec::new();
        for pod in pods {
            let runtime = {
                let members = self.members();
                let node = members.instances.get(&pod.node).and_then(|member| member.node.as_ref());
                node.map(|node| Arc::clone(&node.runtime))
            };
            match runtime.map(|runtime| runtime.check(&pod.sandbox)) {
                Some(Ok(())) => {}
                Some(Err(error)) => failures.push(error.to_string()),
                None => failures.push(format!("pod {} is on {}, which is gone", pod.sandbox.pod, pod.node)),
            }
        }
        Ok(failures)
    }

    /// Makes the last pod a service of the cluster, on every node.
    ///
    /// # Errors
    /// The rules could not be installed.
    pub fn offer_service(&self) -> Result<()> {
        // Ten beyond the network's address: the first ones are the cluster's own by custom.
        let address = Ipv4Addr::from_bits(self.inputs.service_cidr.network().to_bits().saturating_add(10));
        let backend = self.members().pods.iter().next_back().map(|(name, pod)| (name.clone(), pod.address));
        if let Some((backend, backend_address)) = backend {
            self.members().services = vec![ClusterService { address, backend, backend_address }];
        }
        self.install_services()
    }

    /// Installs the services' rules on every node; a node that joined later gets them too.
    ///
    /// # Errors
    /// The rules could not be installed.
    pub fn install_services(&self) -> Result<()> {
        let (services, nodes) = {
            let members = self.members();
            let services: Vec<(Ipv4Addr, Ipv4Addr)> =
                members.services.iter().map(|service| (service.address, service.backend_address)).collect();
            let nodes: Vec<NetNs> = members
                .instances
                .values()
                .filter_map(|member| member.node.as_ref())
                .map(|node| node.runtime.namespace.clone())
                .collect();
            (services, nodes)
        };
        nodes.iter().try_for_each(|node| fabric::install(node, &fabric::service_rules(&services)))
    }

    /// Changes the quota of every route table.
    ///
    /// # Errors
    /// The cloud refused.
    pub fn set_quota(&self, entries: u32) -> Result<Applied> {
        let snapshot = self.cloud.snapshot();
        let tables = snapshot.vpcs.iter().flat_map(|vpc| &vpc.tables);
        for table in tables {
            self.cloud
                .set_quota(&table.id, entries)
                .during(|| format!("change the quota of {}", table.id))?;
        }
        Ok(Applied::new(format!("each route table takes {entries} custom entries now"), None))
    }

    /// Puts an entry into the system table behind everybody's back.
    ///
    /// # Errors
    /// The instance is unknown, or the destination is taken.
    pub fn add_route(&self, destination: Ipv4Net, instance: &str) -> Result<Applied> {
        let id = topology::instance_id(instance);
        if !self.members().instances.contains_key(instance) {
            return Err(Error::Refused(format!("lab {} has no instance {instance}", self.lab)));
        }
        let entry = EntrySpec {
            destination: IpNet::V4(destination),
            next_hops: vec![NextHop::new(INSTANCE, id.clone())],
            kind: EntryKind::Custom,
            name: "by-hand".to_owned(),
            description: String::new(),
        };
        let table = topology::table_id(&self.lab);
        self.cloud.insert_entry(&table, &entry).during(|| format!("add {destination} to {table}"))?;
        Ok(Applied::new(format!("{table} has {destination} to {id}"), None))
    }

    /// Takes an entry out of the system table behind everybody's back.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_route(&self, destination: Ipv4Net) -> Result<Applied> {
        let table = topology::table_id(&self.lab);
        self.cloud
            .remove_entry(&table, IpNet::V4(destination))
            .during(|| format!("remove {destination} from {table}"))?;
        Ok(Applied::new(format!("{table} has no {destination} any more"), None))
    }

    /// Kills a process and starts it again.
    ///
    /// # Errors
    /// It is not there, or cannot be started.
    pub fn restart_controller(&self) -> Result<Applied> {
        match &mut self.members().controller {
            Some(controller) => controller.restart()?,
            None => return Err(Error::Refused("the controller does not run".to_owned())),
        }
        Ok(Applied::new("the controller was killed and started again".to_owned(), None))
    }

    /// Kills a node's flanneld and starts it again.
    ///
    /// # Errors
    /// It is not there, or cannot be started.
    pub fn restart_flanneld(&self, name: &str) -> Result<Applied> {
        self.require_node(name)?;
        let mut members = self.members();
        let flanneld =
            members.instances.get_mut(name).and_then(|member| member.node.as_mut()?.flanneld.as_mut());
        match flanneld {
            Some(flanneld) => flanneld.restart()?,
            None => return Err(Error::Refused(format!("flanneld does not run on {name}"))),
        }
        Ok(Applied::new(format!("flanneld of {name} was killed and started again"), Some(name.to_owned())))
    }

    /// The lab as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        let snapshot = self.cloud.snapshot();
        let vpc = snapshot.vpcs.iter().find(|vpc| vpc.id == self.vpc());
        let members = self.members();
        let instance = |name: &String, member: &Member| Instance {
            name: name.clone(),
            id: member.id.clone(),
            address: member.address,
            vswitch: member.vswitch.clone(),
            namespace: self.lab.namespace(name),
            source_dest_check: snapshot
                .instance(&member.id)
                .and_then(|instance| instance.interfaces.first())
                .is_some_and(|interface| interface.source_dest_check),
        };
        let mut nodes = Vec::new();
        let mut instances = Vec::new();
        for (name, member) in &members.instances {
            let Some(node) = &member.node else {
                instances.push(instance(name, member));
                continue;
            };
            let object = self.kube.node(name);
            nodes.push(status::Node {
                instance: instance(name, member),
                subnet: object.as_ref().and_then(|object| object.subnet),
                network_unavailable: object.and_then(|object| object.network_unavailable),
                flanneld: node.flanneld.as_ref().map(Supervised::status).unwrap_or_default(),
                crashed: node.crashed,
            });
        }
        nodes.sort_by_key(|node| natural(node.name()));
        let mut pods: Vec<Pod> = members
            .pods
            .iter()
            .map(|(name, pod)| Pod {
                name: name.clone(),
                node: pod.node.clone(),
                address: pod.address,
                namespace: self.lab.namespace(&pod_namespace(name)),
            })
            .collect();
        pods.sort_by_key(|pod| natural(&pod.name));
        Status {
            lab: self.lab.clone(),
            inputs: self.inputs.clone(),
            directory: self.lab.directory().display().to_string(),
            vpc: status::Vpc {
                id: self.vpc(),
                cidr: self.inputs.vpc_cidr,
                vswitches: vpc
                    .iter()
                    .flat_map(|vpc| &vpc.vswitches)
                    .map(|vswitch| status::VSwitch {
                        id: vswitch.id.clone(),
                        cidr: vswitch.cidr,
                        gateway: spec::gateway(vswitch.cidr),
                        route_table: vswitch.table.clone(),
                    })
                    .collect(),
            },
            services: topology::service_addresses(),
            internet: Internet {
                nat: self.nat,
                elastic_ip: fabric::ELASTIC_ADDRESS,
                host: fabric::INTERNET_HOST,
            },
            instances,
            nodes,
            pods,
            route_tables: vpc.iter().flat_map(|vpc| &vpc.tables).map(route_table).collect(),
            cluster_services: members.services.clone(),
            controller: members.controller.as_ref().map(Supervised::status).unwrap_or_default(),
        }
    }
}

fn route_table(table: &TableView) -> status::RouteTable {
    let entries = table.entries.iter().filter_map(|entry| {
        let IpNet::V4(destination) = entry.destination else { return None };
        let hop = entry.next_hops.first();
        Some(RouteEntry {
            destination,
            next_hop_type: hop.map_or(String::new(), |hop| hop.kind.clone()),
            next_hop: hop.map_or(String::new(), |hop| hop.id.clone()),
            status: format!("{:?}", entry.status),
            custom: entry.kind == EntryKind::Custom,
            name: entry.name.clone(),
        })
    });
    status::RouteTable {
        id: table.id.clone(),
        system: table.kind == TableKind::System,
        quota: table.quota,
        entries: entries.collect(),
    }
}

/// Namespace part of a pod's name; nodes and instances have none of this form.
fn pod_namespace(pod: &str) -> String {
    if pod.starts_with("pod-") { pod.to_owned() } else { format!("pod-{pod}") }
}

fn free_name(prefix: &str, taken: impl Fn(&str) -> bool) -> String {
    let numbered = (1_u32..).map(|number| format!("{prefix}{number}"));
    numbered.take(100_000).find(|name| !taken(name)).unwrap_or_else(|| format!("{prefix}x"))
}

/// Sorts `node-2` before `node-10`.
fn natural(name: &str) -> (String, u64) {
    let digits = name.chars().rev().take_while(char::is_ascii_digit).count();
    let (stem, number) = name.split_at(name.len().saturating_sub(digits));
    (stem.to_owned(), number.parse().unwrap_or(0))
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
    fn names_sort_as_people_count() {
        let mut names = ["node-10", "node-2", "ecs-1", "node-1"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["ecs-1", "node-1", "node-2", "node-10"]);
    }

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

    #[test]
    fn a_pods_namespace_never_has_a_nodes_name() {
        assert_eq!(pod_namespace("pod-1"), "pod-1");
        assert_eq!(pod_namespace("web"), "pod-web");
    }
}
