//! The lab as others see it: one consistent [`Status`] out of members, cloud and cluster.

use ipnet::IpNet;
use loden_sim_cloud::snapshot::TableView;
use loden_sim_cloud::topology::{EntryKind, TableKind};

use super::pods::pod_namespace;
use super::{Cluster, Member};
use crate::fabric;
use crate::process::Supervised;
use crate::spec;
use crate::status::{self, Instance, Internet, Pod, RouteEntry, Status};
use crate::topology;

impl Cluster {
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
            let object = self.node_object(name);
            nodes.push(status::Node {
                instance: instance(name, member),
                cluster: self.kubes.get(node.cluster).map_or(String::new(), |kube| kube.name.clone()),
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
            clusters: self
                .kubes
                .iter()
                .enumerate()
                .map(|(at, kube)| status::KubeCluster {
                    name: kube.name.clone(),
                    pod_cidr: kube.pod_cidr,
                    kube_api: format!("https://{}", kube.address),
                    kubeconfig: self.lab.kubeconfig(&kube.name).display().to_string(),
                    revision: kube.revision(),
                    controller: members.controllers.get(&at).map(Supervised::status).unwrap_or_default(),
                })
                .collect(),
        }
    }
}

fn route_table(table: &TableView) -> status::RouteTable {
    let entries = table.entries.iter().filter_map(|entry| {
        let IpNet::V4(destination) = entry.destination else { return None };
        let hop = entry.next_hops.first();
        Some(RouteEntry {
            id: entry.id.clone(),
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

/// Sorts `node-2` before `node-10`.
pub(super) fn natural(name: &str) -> (String, u64) {
    let digits = name.chars().rev().take_while(char::is_ascii_digit).count();
    let (stem, number) = name.split_at(name.len().saturating_sub(digits));
    (stem.to_owned(), number.parse().unwrap_or(0))
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
}
