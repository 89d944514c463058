//! The cloud as its data plane sees it.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Cloud, Instance, Table, Vpc};
use crate::snapshot::{EntryView, InstanceView, InterfaceView, Snapshot, TableView, VSwitchView, VpcView};
use crate::topology::Ingress;

impl Cloud {
    /// What the data plane forwards by.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            vpcs: self.vpcs.iter().map(|(id, vpc)| self.view_vpc(id, vpc)).collect(),
            instances: self.instances.values().map(|instance| self.view_instance(instance)).collect(),
        }
    }

    fn view_vpc(&self, id: &str, vpc: &Vpc) -> VpcView {
        let mut tables: Vec<TableView> = self
            .tables
            .iter()
            .filter(|(_, table)| table.vpc == id)
            .map(|(table_id, table)| self.view_table(table_id, table))
            .collect();
        tables.sort_by(|a, b| (a.kind, &a.id).cmp(&(b.kind, &b.id)));
        VpcView {
            id: id.to_owned(),
            cidrs: vpc.cidrs().collect(),
            vswitches: vpc
                .vswitches
                .values()
                .map(|vswitch| VSwitchView {
                    id: vswitch.spec.id.clone(),
                    zone: vswitch.spec.zone.clone(),
                    cidr: vswitch.spec.cidr,
                    table: vswitch.table.clone(),
                })
                .collect(),
            tables,
        }
    }

    fn view_table(&self, id: &str, table: &Table) -> TableView {
        TableView {
            id: id.to_owned(),
            kind: table.kind,
            vswitches: self.vswitches_of(id, table),
            quota: table.quota,
            used: self.used(table),
            entries: table
                .entries
                .values()
                .map(|entry| EntryView {
                    id: entry.id.clone(),
                    destination: entry.destination,
                    next_hops: entry.next_hops.clone(),
                    status: entry.status,
                    kind: entry.kind,
                    name: entry.name.clone(),
                    description: entry.description.clone(),
                })
                .collect(),
        }
    }

    fn view_instance(&self, instance: &Instance) -> InstanceView {
        InstanceView {
            id: instance.spec.id.clone(),
            vpc: instance.vpc.clone(),
            interfaces: instance
                .interfaces
                .iter()
                .map(|interface| InterfaceView {
                    id: interface.id.clone(),
                    vswitch: interface.vswitch.clone(),
                    address: interface.address,
                    mac: interface.mac.clone(),
                    source_dest_check: interface.source_dest_check,
                    ingress: self.ingress(&instance.vpc, &interface.security_groups),
                })
                .collect(),
        }
    }

    fn ingress(&self, vpc: &str, groups: &[String]) -> Option<Vec<IpNet>> {
        if groups.is_empty() {
            return None;
        }
        let rules = self
            .vpcs
            .get(vpc)
            .into_iter()
            .flat_map(|vpc| groups.iter().filter_map(|group| vpc.security_groups.get(group)).flatten());
        let mut nets = BTreeSet::new();
        for rule in rules {
            match rule {
                Ingress::Cidr(net) => {
                    nets.insert(net.trunc());
                }
                Ingress::Group(group) => nets.extend(
                    self.instances
                        .values()
                        .flat_map(|instance| &instance.interfaces)
                        .filter(|member| member.security_groups.contains(group))
                        .map(|member| IpNet::from(std::net::IpAddr::from(member.address))),
                ),
            }
        }
        Some(nets.into_iter().collect())
    }
}
