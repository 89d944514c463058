//! How pods come and go, and the service address in front of one of them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use loden_netlink::netns::NetNs;

use super::{Cluster, PodMember, free_name, random_hex};
use crate::control::Applied;
use crate::error::{Context, Error, Result};
use crate::fabric;
use crate::names::check_member_name;
use crate::runtime::Sandbox;
use crate::status::ClusterService;

impl Cluster {
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

    pub(super) fn forget_pod(&self, name: &str) -> Result<()> {
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

    /// Makes the last pod of the first cluster a service, on every node of that cluster.
    ///
    /// # Errors
    /// The rules could not be installed.
    pub fn offer_service(&self) -> Result<()> {
        // Ten beyond the network's address: the first ones are the cluster's own by custom.
        let address = Ipv4Addr::from_bits(self.inputs.service_cidr.network().to_bits().saturating_add(10));
        let backend = {
            let members = self.members();
            let first = |node: &str| members.instances.get(node).is_some_and(|member| member.is_node_of(0));
            members
                .pods
                .iter()
                .rfind(|(_, pod)| first(&pod.node))
                .map(|(name, pod)| (name.clone(), pod.address))
        };
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
                .filter(|member| member.is_node_of(0))
                .filter_map(|member| member.node.as_ref())
                .map(|node| node.runtime.namespace.clone())
                .collect();
            (services, nodes)
        };
        nodes.iter().try_for_each(|node| fabric::install(node, &fabric::service_rules(&services)))
    }
}

/// Namespace part of a pod's name; nodes and instances have none of this form.
pub(super) fn pod_namespace(pod: &str) -> String {
    if pod.starts_with("pod-") { pod.to_owned() } else { format!("pod-{pod}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_namespace_never_has_a_nodes_name() {
        assert_eq!(pod_namespace("pod-1"), "pod-1");
        assert_eq!(pod_namespace("web"), "pod-web");
    }
}
