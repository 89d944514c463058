//! How nodes come, go and break.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};
use loden_aliyun::vpc::EntryStatus;
use loden_netlink::netns::NetNs;
use loden_netlink::{IpFamily, RouteFilter, RouteSocket};
use loden_sim_cloud::Snapshot;

use super::overview::natural;
use super::{Cluster, NodeMember, free_name};
use crate::control::Applied;
use crate::error::{Context, Error, Result};
use crate::kubernetes::KubeNode;
use crate::node_files::NodeFiles;
use crate::process::Supervised;
use crate::runtime::Runtime;
use crate::status::Condition;
use crate::topology::{self, ProviderIdSpelling};

/// Reasons of the condition `NetworkUnavailable`, as the controller writes them, that only somebody else can end: a full route table, and a
/// vSwitch whose route table the controller was not told to serve.
const WAITS_FOR_OTHERS: [&str; 2] = ["RouteQuotaExceeded", "RouteTableNotServed"];

impl Cluster {
    /// Starts an instance that joins the cluster and waits until it is usable; or, with `patient` false, only until it has joined.
    ///
    /// # Errors
    /// It cannot be started, or does not become usable in time.
    pub fn add_node(
        &self,
        cluster: usize,
        name: Option<String>,
        provider_id: ProviderIdSpelling,
        patient: bool,
        progress: &dyn Fn(&str),
    ) -> Result<Applied> {
        let kube = self.kube(cluster)?;
        let prefix = node_prefix(cluster);
        let name =
            name.unwrap_or_else(|| free_name(&prefix, |name| self.members().instances.contains_key(name)));
        if name.starts_with("pod-") {
            return Err(Error::Refused(
                "a node's name cannot begin with pod-: pods' namespaces do".to_owned(),
            ));
        }
        progress(&format!("starting {name}"));
        let namespace = self.add_instance(&name)?;
        let files = NodeFiles { root: self.lab.node_directory(&name) };
        files.write(kube.pod_cidr, self.inputs.backend, &self.programs)?;
        kube.write_kubeconfig(&files.kubeconfig(), kube.address)?;
        let runtime = Runtime {
            plugins: files.cni_plugins(),
            configuration: files.cni_configuration(),
            cache: files.cni_state(),
            namespace: namespace.clone(),
        };
        let address =
            self.members().instances.get(&name).map_or(Ipv4Addr::UNSPECIFIED, |member| member.address);
        let joined = Instant::now();
        let instance = self.instance_id(&name)?;
        kube.add_node(&name, &topology::provider_id(&instance, provider_id), address, None)?;
        let flanneld =
            Supervised::start(&self.lab, topology::flanneld_recipe(self, &name, &files, namespace))?;
        let node =
            NodeMember { cluster, flanneld: Some(flanneld), runtime: Arc::new(runtime), crashed: false };
        if let Some(member) = self.members().instances.get_mut(&name) {
            member.node = Some(node);
        }
        if !patient || !self.controller_wanted(cluster) {
            return Ok(Applied::new(format!("{name} joined the cluster; it is not waited for"), Some(name)));
        }
        if !self.inputs.backend.needs_entries() {
            progress(&format!("waiting for {name} to be usable"));
            self.wait(
                &format!("{name} becoming usable"),
                || self.settled(&name),
                || self.why_not_usable(&name),
            )?;
            let after = joined.elapsed().as_millis();
            let mut applied = Applied::new(format!("{name} joined: usable after {after} ms"), Some(name));
            applied.usable_ms = u64::try_from(after).ok();
            return Ok(applied);
        }
        progress(&format!("waiting for the route entry of {name}"));
        let entry = self.wait(
            &format!("a route entry for {name}"),
            || self.entry_available(&name) || self.waits_for_others(&name).is_some(),
            || self.why_not_usable(&name),
        );
        let entry_after = joined.elapsed();
        entry?;
        progress(&format!("waiting for {name} to be usable"));
        self.wait(&format!("{name} becoming usable"), || self.settled(&name), || self.why_not_usable(&name))?;
        if let Some(why) = self.waits_for_others(&name) {
            return Ok(Applied::new(format!("{name} joined, and takes no pods yet: {why}"), Some(name)));
        }
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

    fn subnet(&self, name: &str) -> Option<Ipv4Net> {
        self.node_object(name).and_then(|node| node.subnet)
    }

    fn entry_available(&self, name: &str) -> bool {
        let Some(subnet) = self.subnet(name) else { return false };
        self.entry(&self.cloud.snapshot(), subnet).is_some_and(|status| status == EntryStatus::Available)
    }

    /// What the node waits for, if only somebody else can bring it about.
    fn waits_for_others(&self, name: &str) -> Option<String> {
        let condition = self.node_object(name)?.network_unavailable?;
        let waits = condition.status == "True" && WAITS_FOR_OTHERS.contains(&condition.reason.as_str());
        waits.then_some(condition.message)
    }

    /// Whether waiting brings nothing new by itself.
    fn settled(&self, name: &str) -> bool {
        let reached = || self.inputs.backend.needs_entries() || self.peers_without_route(name).is_empty();
        (self.usable(name) && reached()) || self.waits_for_others(name).is_some()
    }

    /// Nodes that have no route to this one's subnet yet: where nodes find each other by themselves, one that is ready itself may still be unknown
    /// to the others, and what they send to its pods is lost.
    fn peers_without_route(&self, name: &str) -> Vec<String> {
        let Some(subnet) = self.subnet(name) else { return Vec::new() };
        let peers: Vec<(String, NetNs)> = self
            .members()
            .instances
            .iter()
            .filter(|(peer, _)| *peer != name)
            .filter_map(|(peer, member)| Some((peer.clone(), member.node.as_ref().filter(|n| !n.crashed)?)))
            .map(|(peer, node)| (peer, node.runtime.namespace.clone()))
            .collect();
        let knows = |namespace: &NetNs| {
            let routes = RouteSocket::open_in(namespace)
                .and_then(|mut socket| socket.routes(IpFamily::V4, RouteFilter::default()));
            routes.is_ok_and(|routes| routes.iter().any(|route| route.destination == IpNet::V4(subnet)))
        };
        peers.into_iter().filter(|(_, namespace)| !knows(namespace)).map(|(peer, _)| peer).collect()
    }

    fn entry(&self, snapshot: &Snapshot, destination: Ipv4Net) -> Option<EntryStatus> {
        let table = snapshot.table(&topology::table_id(&self.lab))?;
        table
            .entries
            .iter()
            .find(|entry| entry.destination == IpNet::V4(destination))
            .map(|entry| entry.status)
    }

    fn in_any_table(&self, snapshot: &Snapshot, destination: Ipv4Net) -> bool {
        let mut tables = snapshot.vpcs.iter().filter(|vpc| vpc.id == self.vpc()).flat_map(|vpc| &vpc.tables);
        tables.any(|table| table.entries.iter().any(|entry| entry.destination == IpNet::V4(destination)))
    }

    pub(super) fn usable(&self, name: &str) -> bool {
        let files = NodeFiles { root: self.lab.node_directory(name) };
        let condition = self.node_object(name).and_then(|node| node.network_unavailable);
        condition.is_some_and(|condition| condition.status == "False") && files.subnet_env().is_file()
    }

    pub(super) fn why_not_usable(&self, name: &str) -> String {
        let files = NodeFiles { root: self.lab.node_directory(name) };
        let node = self.node_object(name);
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
        if !self.inputs.backend.needs_entries() {
            let unaware = self.peers_without_route(name);
            why.extend((!unaware.is_empty()).then(|| format!("no route to it on {}", unaware.join(", "))));
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
        let cluster = members.instances.get(name).and_then(|member| Some(member.node.as_ref()?.cluster));
        let controller = cluster.and_then(|cluster| members.controllers.get(&cluster));
        why.extend(controller.map(Supervised::last_words));
        why.join("; ")
    }

    /// Waits until every node is usable, or says that it waits for something that does not come by itself.
    ///
    /// # Errors
    /// They did not settle in time.
    pub fn wait_settled(&self) -> Result<()> {
        let names = self.node_names();
        let settled = || names.iter().all(|name| self.settled(name));
        let why_not = || {
            let waiting = names.iter().filter(|name| !self.settled(name));
            waiting
                .map(|name| format!("{name}: {}", self.why_not_usable(name)))
                .collect::<Vec<_>>()
                .join("\n")
        };
        self.wait("the nodes becoming usable", settled, why_not)
    }

    /// Names of the nodes, as people count.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        let members = self.members();
        let nodes = members.instances.iter().filter(|(_, member)| member.node.is_some());
        let mut names: Vec<String> = nodes.map(|(name, _)| name.clone()).collect();
        names.sort_by_key(|name| natural(name));
        names
    }

    /// Names of the nodes that may have pods.
    #[must_use]
    pub fn usable_nodes(&self) -> Vec<String> {
        self.node_names().into_iter().filter(|name| self.usable(name) && !self.crashed(name)).collect()
    }

    pub(super) fn crashed(&self, name: &str) -> bool {
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
        self.kube_of(name)?.remove_node(name)?;
        let flanneld =
            self.members().instances.get_mut(name).and_then(|member| member.node.as_mut()?.flanneld.take());
        if let Some(mut flanneld) = flanneld {
            flanneld.stop();
        }
        // Nobody takes the entry away while the controller is stopped: that one stays is then what there is to see.
        let at = self.members().instances.get(name).and_then(|member| Some(member.node.as_ref()?.cluster));
        let served = at.is_none_or(|at| self.controller_wanted(at));
        let gone =
            || !served || subnet.is_none_or(|subnet| !self.in_any_table(&self.cloud.snapshot(), subnet));
        let entry = self.wait(&format!("the route entry of {name} going away"), gone, || {
            let members = self.members();
            members.controllers.values().map(Supervised::last_words).collect::<Vec<_>>().join("\n")
        });
        let gone_after = left.elapsed();
        let id = self.instance_id(name)?;
        self.fabric.detach(name)?;
        self.cloud.remove_instance(&id).during(|| format!("release instance {id}"))?;
        self.members().instances.remove(name);
        self.ring();
        let root = self.lab.node_directory(name);
        std::fs::remove_dir_all(&root).map_err(|e| Error::io("remove", root, e))?;
        entry?;
        if !served {
            let text = format!("{name} is gone; its route entry stays while the controller is stopped");
            return Ok(Applied::new(text, Some(name.to_owned())));
        }
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
        self.kube_of(name)?.set_ready(
            name,
            "Unknown",
            "NodeStatusUnknown",
            "Kubelet stopped posting node status.",
        )?;
        Ok(Applied::new(
            format!("{name} is cut off; its node object and its route entry stay"),
            Some(name.to_owned()),
        ))
    }

    pub(super) fn require_node(&self, name: &str) -> Result<()> {
        let names = self.node_names();
        if names.iter().any(|candidate| candidate == name) {
            return Ok(());
        }
        Err(Error::Refused(format!("lab {} has no node {name}; it has {}", self.lab, names.join(", "))))
    }

    /// Lets another instance take the place of a node's, with its name, address, disks and so with its pods. Its node object is made anew, since no
    /// node object may change its instance, and keeps its pod CIDR.
    ///
    /// # Errors
    /// There is no such node, or the cloud or the cluster refused.
    pub fn replace_node(&self, name: &str, progress: &dyn Fn(&str)) -> Result<Applied> {
        self.require_node(name)?;
        let kube = self.kube_of(name)?;
        let (old, address, vswitch, times) = {
            let members = self.members();
            let member = members.instances.get(name).ok_or_else(|| self.unknown_instance(name))?;
            (member.id.clone(), member.address, member.vswitch.clone(), member.replaced + 1)
        };
        let subnet = self.subnet(name);
        let new = format!("{}-{times}", topology::instance_id(name));
        let at = (0..self.inputs.vswitches.len())
            .find(|at| topology::vswitch_id(&self.lab, *at) == vswitch)
            .unwrap_or_default();
        let spec = topology::instance(&self.lab, name, at, address);
        let flat = self.inputs.backend.is_flat();
        let spec = if flat { topology::on_a_plain_network(spec) } else { spec };
        progress(&format!("{new} takes the place of {old}"));
        let begun = Instant::now();
        self.cloud.remove_instance(&old).during(|| format!("release instance {old}"))?;
        self.cloud
            .add_instance(&topology::replaced(spec, &new))
            .during(|| format!("start instance {new}"))?;
        if let Some(member) = self.members().instances.get_mut(name) {
            member.id.clone_from(&new);
            member.replaced = times;
        }
        self.ring();
        kube.remove_node(name)?;
        kube.add_node(name, &topology::provider_id(&new, ProviderIdSpelling::Plain), address, subnet)?;
        // The machine starts anew, and its daemon with it.
        self.restart_flanneld(name)?;
        let done = format!("{new} is {name} now, with address {address}");
        let served = self.kubes.iter().position(|each| each.name == kube.name);
        if !served.is_some_and(|at| self.controller_wanted(at)) {
            return Ok(Applied::new(
                format!("{done}; its route entry leads to {old} while the controller is stopped"),
                Some(name.to_owned()),
            ));
        }
        let follows = || self.leads_to(name, &new) && self.settled(name);
        self.wait(&format!("the route entry of {name} leading to {new}"), follows, || {
            self.why_not_usable(name)
        })?;
        let after = begun.elapsed().as_millis();
        let mut applied =
            Applied::new(format!("{done}; its route entry followed after {after} ms"), Some(name.to_owned()));
        applied.entry_ms = u64::try_from(after).ok();
        Ok(applied)
    }

    /// Whether a node's entry in the system table leads to that instance. Without entries there is nothing to lead.
    fn leads_to(&self, name: &str, instance: &str) -> bool {
        let Some(subnet) = self.subnet(name) else { return false };
        let snapshot = self.cloud.snapshot();
        let Some(table) = snapshot.table(&topology::table_id(&self.lab)) else { return false };
        !self.inputs.backend.needs_entries()
            || table.entries.iter().any(|entry| {
                entry.destination == IpNet::V4(subnet)
                    && entry.status == EntryStatus::Available
                    && entry.next_hops.first().is_some_and(|hop| hop.id == instance)
            })
    }
}

/// How the names of a cluster's nodes begin.
#[must_use]
pub fn node_prefix(cluster: usize) -> String {
    if cluster == 0 { "node-".to_owned() } else { format!("c{}-node-", cluster + 1) }
}
