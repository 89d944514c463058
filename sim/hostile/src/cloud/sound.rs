//! What holds of a cloud whatever its users do.

use std::collections::BTreeSet;

use ipnet::IpNet;
use loden_aliyun::vpc::EntryStatus;
use loden_sim_cloud::snapshot::{EntryView, TableView, VpcView};
use loden_sim_cloud::topology::EntryKind;
use loden_sim_cloud::{Snapshot, Topology};

use crate::{Verdict, promise};

/// What users cannot change, and what entries may lead to.
#[derive(Debug)]
pub struct Sound {
    /// Entries that are not users' own, by table.
    given: Vec<(String, Vec<EntryView>)>,
    /// VPC, kind and ID of everything that an entry may lead to.
    hops: BTreeSet<(String, String, String)>,
}

impl Sound {
    /// Of a cloud that nobody has called yet.
    #[must_use]
    pub fn of(topology: &Topology, snapshot: &Snapshot) -> Self {
        let mut hops = BTreeSet::new();
        for instance in &snapshot.instances {
            let mut hop = |kind: &str, id: &str| {
                hops.insert((instance.vpc.clone(), kind.to_owned(), id.to_owned()));
            };
            hop("Instance", &instance.id);
            instance.interfaces.iter().for_each(|interface| hop("NetworkInterface", &interface.id));
        }
        for vpc in &topology.vpcs {
            hops.extend(
                vpc.gateways.iter().map(|gateway| (vpc.id.clone(), gateway.kind.clone(), gateway.id.clone())),
            );
        }
        let tables = snapshot.vpcs.iter().flat_map(|vpc| &vpc.tables);
        Self { given: tables.map(|table| (table.id.clone(), given(table))).collect(), hops }
    }

    /// Whether a cloud is still what it has to be.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, snapshot: &Snapshot) -> Verdict {
        for vpc in &snapshot.vpcs {
            for vswitch in &vpc.vswitches {
                let known = vpc.tables.iter().any(|table| table.id == vswitch.table);
                promise(known, || format!("vSwitch {} has no table", vswitch.id))?;
            }
            for table in &vpc.tables {
                self.check_table(vpc, table)?;
            }
        }
        for (id, entries) in &self.given {
            // Tables themselves may be deleted, which users may do to those that are theirs.
            if let Some(table) = snapshot.table(id) {
                promise(given(table) == *entries, || {
                    format!("entries of {id} changed that nobody may change")
                })?;
            }
        }
        Ok(())
    }

    fn check_table(&self, vpc: &VpcView, table: &TableView) -> Verdict {
        let mut destinations = BTreeSet::new();
        let mut lasting = 0;
        for entry in &table.entries {
            let here = || format!("{} of {}: {entry:?}", entry.destination, table.id);
            promise(destinations.insert(entry.destination), || format!("a second entry for {}", here()))?;
            if entry.kind != EntryKind::Custom {
                continue;
            }
            lasting += u32::from(entry.status != EntryStatus::Deleting);
            let leads = |hop: &loden_sim_cloud::topology::NextHop| {
                self.hops.contains(&(vpc.id.clone(), hop.kind.clone(), hop.id.clone()))
            };
            promise(!entry.next_hops.is_empty() && entry.next_hops.iter().all(leads), || {
                format!("a next hop that is not in the VPC, {}", here())
            })?;
            let inside =
                vpc.vswitches.iter().any(|vswitch| IpNet::V4(vswitch.cidr).contains(&entry.destination));
            promise(!inside, || format!("a destination inside a vSwitch, {}", here()))?;
        }
        promise(lasting <= table.quota, || {
            format!("{} has {lasting} entries, its quota is {}", table.id, table.quota)
        })
    }
}

fn given(table: &TableView) -> Vec<EntryView> {
    table.entries.iter().filter(|entry| entry.kind != EntryKind::Custom).cloned().collect()
}
