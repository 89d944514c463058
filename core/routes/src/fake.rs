//! An in-process VPC with the rules that matter to the controller: entries come and go with a delay, one change at a time, a quota, unique
//! destinations. Tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use loden_reconcile::Moment;

use crate::controller::{Answer, Call};
use crate::model::{
    EntryStatus, EntryType, Instance, InstanceId, NextHop, RouteEntry, RouteTable, TableKind, VpcRouteTableId,
};
use crate::port::{BatchAnswer, Failure, Refusal};

#[derive(Debug, Clone)]
struct Held {
    entry: RouteEntry,
    /// When what is under way ends.
    until: Moment,
}

#[derive(Debug, Clone)]
pub(crate) struct Vpc {
    pub(crate) tables: Vec<RouteTable>,
    entries: BTreeMap<VpcRouteTableId, Vec<Held>>,
    pub(crate) delay: Duration,
    pub(crate) quota: usize,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) checks_on: BTreeSet<String>,
    pub(crate) writes: usize,
    pub(crate) listings: usize,
    pub(crate) ipv6: bool,
    /// Tables that take no IPv6 entries.
    pub(crate) ipv4_only: BTreeSet<VpcRouteTableId>,
    pub(crate) refuse_repoint: bool,
    /// What the quota API says.
    pub(crate) told_quota: Option<usize>,
    next_id: u64,
    /// When the first of what is under way ends.
    next_end: Option<Moment>,
}

impl Vpc {
    pub(crate) fn new(delay: Duration) -> Self {
        let system = RouteTable {
            id: "vtb-1".into(),
            kind: TableKind::System,
            gateway: false,
            vswitches: vec!["vsw-1".into()],
        };
        Self {
            tables: vec![system],
            entries: BTreeMap::from([("vtb-1".into(), Vec::new())]),
            delay,
            quota: 200,
            instances: BTreeMap::new(),
            checks_on: BTreeSet::new(),
            writes: 0,
            listings: 0,
            ipv6: true,
            ipv4_only: BTreeSet::new(),
            refuse_repoint: false,
            told_quota: None,
            next_id: 0,
            next_end: None,
        }
    }

    pub(crate) fn add_table(&mut self, id: &str, vswitch: &str) {
        self.tables.push(RouteTable {
            id: id.into(),
            kind: TableKind::Custom,
            gateway: false,
            vswitches: vec![vswitch.into()],
        });
        self.entries.insert(id.into(), Vec::new());
    }

    pub(crate) fn add_instance(&mut self, id: &str, vswitch: &str) {
        let eni = format!("eni-{id}");
        self.checks_on.insert(eni.clone());
        self.instances
            .insert(id.into(), Instance { id: id.into(), vswitch: vswitch.into(), primary_eni: eni });
    }

    /// A person's entry, in force at once; replaces what has the destination.
    pub(crate) fn put(&mut self, table: &str, destination: &str, instance: &str) {
        self.put_named(table, destination, instance, "");
    }

    pub(crate) fn put_named(&mut self, table: &str, destination: &str, instance: &str, name: &str) {
        let destination: IpNet = destination.parse().unwrap();
        let id = self.new_id();
        let held = self.entries.get_mut(&table.into()).unwrap();
        held.retain(|held| held.entry.destination != destination);
        held.push(Held {
            entry: RouteEntry {
                table: table.into(),
                id,
                destination,
                next_hops: vec![NextHop::instance(&instance.into())],
                status: EntryStatus::Available,
                kind: EntryType::Custom,
                name: name.to_owned(),
                description: String::new(),
            },
            until: Moment::ZERO,
        });
    }

    /// A person's deletion.
    pub(crate) fn take(&mut self, table: &str, destination: IpNet) {
        self.entries.get_mut(&table.into()).unwrap().retain(|held| held.entry.destination != destination);
    }

    /// Entries in force: `destination via instance`.
    pub(crate) fn table(&mut self, now: Moment, table: &str) -> Vec<String> {
        self.advance(now);
        let mut lines: Vec<(IpNet, String)> = self.entries[&table.into()]
            .iter()
            .filter(|held| held.entry.status == EntryStatus::Available)
            .map(|held| {
                (held.entry.destination, format!("{} via {}", held.entry.destination, held.entry.via()))
            })
            .collect();
        lines.sort();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// Everything in a table, whatever its state.
    pub(crate) fn entries_of(&self, table: &VpcRouteTableId) -> impl Iterator<Item = &RouteEntry> {
        self.entries.get(table).into_iter().flatten().map(|held| &held.entry)
    }

    pub(crate) fn has_room(&self, table: &str) -> bool {
        self.entries[&table.into()].len() < self.quota
    }

    /// When something that is under way ends.
    pub(crate) fn next_change(&self, now: Moment) -> Option<Moment> {
        let under_way = |held: &&Held| held.entry.status != EntryStatus::Available && held.until > now;
        self.entries.values().flatten().filter(under_way).map(|held| held.until).min()
    }

    /// Lets what is under way end; whether anything did.
    pub(crate) fn settle(&mut self, now: Moment) -> bool {
        let ends = |held: &Held| held.entry.status != EntryStatus::Available && held.until <= now;
        let any = self.entries.values().flatten().any(ends);
        if any {
            self.advance(now);
        }
        any
    }

    /// What there is for a destination, whatever its state.
    pub(crate) fn entries_at(&self, table: &str, destination: &str) -> Vec<RouteEntry> {
        let destination: IpNet = destination.parse().unwrap();
        let held = self.entries[&table.into()].iter().map(|held| &held.entry);
        held.filter(|entry| entry.destination == destination).cloned().collect()
    }

    pub(crate) fn carries(&mut self, now: Moment, table: &str, destination: &str, instance: &str) -> bool {
        self.advance(now);
        let (destination, hop): (IpNet, _) =
            (destination.parse().unwrap(), NextHop::instance(&instance.into()));
        self.entries[&table.into()].iter().any(|held| {
            held.entry.destination == destination
                && held.entry.status == EntryStatus::Available
                && held.entry.next_hops == [hop.clone()]
        })
    }

    fn new_id(&mut self) -> String {
        self.next_id += 1;
        format!("rte-{}", self.next_id)
    }

    fn advance(&mut self, now: Moment) {
        if self.next_end.is_none_or(|end| end > now) {
            return;
        }
        for held in self.entries.values_mut() {
            held.retain(|held| held.entry.status != EntryStatus::Deleting || held.until > now);
            for held in held.iter_mut().filter(|held| held.until <= now) {
                held.entry.status = EntryStatus::Available;
            }
        }
        let ends = self.entries.values().flatten().map(|held| held.until).filter(|until| *until > now);
        self.next_end = ends.min();
    }

    /// Something is under way from now on.
    fn begins(&mut self, now: Moment) {
        let end = now + self.delay;
        self.next_end = Some(self.next_end.map_or(end, |next| next.min(end)));
        self.advance(now);
    }

    fn busy(&self) -> bool {
        self.entries.values().flatten().any(|held| held.entry.status != EntryStatus::Available)
    }

    pub(crate) fn call(&mut self, now: Moment, call: &Call) -> Answer {
        self.advance(now);
        if call.writes() {
            self.writes += 1;
        }
        let conflict = || Failure::api(400, "TaskConflict", "The operation is too frequent", "R", None);
        match call {
            Call::HasIpv6 => Answer::Ipv6(Ok(self.ipv6)),
            Call::Quota => Answer::Quota(Ok(self.told_quota)),
            Call::Repoint(..) if self.refuse_repoint => {
                Answer::Batch(Err(Failure::api(403, "Forbidden.RAM", "not authorized", "R", None)))
            }
            Call::Repoint(..) if self.busy() => Answer::Batch(Err(conflict())),
            Call::Repoint(old, new) => {
                let until = now + self.delay;
                let held = self.entries.get_mut(&old.table).unwrap();
                let found = held.iter_mut().find(|held| held.entry.id == old.id);
                let answer = match found {
                    None => Err(Failure::api(
                        400,
                        "InvalidRouteEntry.NotFound",
                        "Route entry not exists.",
                        "R",
                        None,
                    )),
                    Some(_) if !self.instances.contains_key(&new.instance) => {
                        Err(Failure::api(404, "InvalidNextHopId.NotFound", "no such instance", "R", None))
                    }
                    Some(held) => {
                        held.entry.next_hops = vec![NextHop::instance(&new.instance)];
                        held.entry.status = EntryStatus::Modifying;
                        held.until = until;
                        Ok(BatchAnswer::default())
                    }
                };
                self.begins(now);
                Answer::Batch(answer)
            }
            Call::ListTables => Answer::Tables(Ok(self.tables.clone())),
            Call::ListEntries(table) => {
                self.listings += 1;
                Answer::Entries(Ok(self.entries[table].iter().map(|held| held.entry.clone()).collect()))
            }
            Call::ReadBack(table, destinations) => {
                assert!(destinations.len() <= crate::port::FILTER_LIMIT);
                let listed =
                    self.entries[table].iter().filter(|held| destinations.contains(&held.entry.destination));
                Answer::Entries(Ok(listed.map(|held| held.entry.clone()).collect()))
            }
            Call::Create(_) | Call::Delete(_) if self.busy() => Answer::Batch(Err(conflict())),
            Call::Create(entries) => {
                assert!(entries.len() <= crate::port::BATCH_LIMIT);
                let mut refused = Vec::new();
                for new in entries {
                    let refusal = if self.entries[&new.table]
                        .iter()
                        .any(|h| h.entry.destination == new.destination)
                    {
                        Some(Failure::item("VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE", "exists"))
                    } else if self.ipv4_only.contains(&new.table) && crate::model::is_ipv6(new.destination) {
                        Some(Failure::item("OperationDenied.Ipv6EntryOnCustomTable", "not supported"))
                    } else if !self.instances.contains_key(&new.instance) {
                        Some(Failure::item("InvalidNextHop.NotFound", "no such instance"))
                    } else if self.entries[&new.table].len() >= self.quota {
                        Some(Failure::item(
                            "QuotaExceeded",
                            "Route entry quota exceeded in this route table.",
                        ))
                    } else {
                        None
                    };
                    if let Some(failure) = refusal {
                        refused.push(Refusal {
                            destination: Some(new.destination),
                            entry_id: String::new(),
                            next_hop: new.instance.to_string(),
                            failure,
                        });
                        continue;
                    }
                    let entry = RouteEntry {
                        table: new.table.clone(),
                        id: self.new_id(),
                        destination: new.destination,
                        next_hops: vec![NextHop::instance(&new.instance)],
                        status: EntryStatus::Pending,
                        kind: EntryType::Custom,
                        name: new.name.clone(),
                        description: new.description.clone(),
                    };
                    let until = now + self.delay;
                    self.entries.get_mut(&new.table).unwrap().push(Held { entry, until });
                }
                self.begins(now);
                Answer::Batch(Ok(BatchAnswer { refused }))
            }
            Call::Delete(entries) => {
                assert!(entries.len() <= crate::port::BATCH_LIMIT);
                let mut refused = Vec::new();
                for gone in entries {
                    let until = now + self.delay;
                    let held = self.entries.get_mut(&gone.table).unwrap();
                    let named = |held: &&mut Held| {
                        held.entry.destination == gone.destination
                            && held.entry.next_hops.first() == Some(&gone.next_hop)
                    };
                    match held.iter_mut().find(named) {
                        Some(held) => {
                            held.entry.status = EntryStatus::Deleting;
                            held.until = until;
                        }
                        None => refused.push(Refusal {
                            destination: None,
                            entry_id: gone.id.clone(),
                            next_hop: String::new(),
                            failure: Failure::item("VPC_ROUTER_ENTRY_NOT_EXIST", "vRouterEntry not exists"),
                        }),
                    }
                }
                self.begins(now);
                Answer::Batch(Ok(BatchAnswer { refused }))
            }
            Call::DescribeInstances(ids) => {
                Answer::Instances(Ok(ids.iter().filter_map(|id| self.instances.get(id)).cloned().collect()))
            }
            Call::ReadSourceDestChecks(enis) => Answer::ChecksOn(Ok(enis
                .iter()
                .filter(|eni| self.checks_on.contains(*eni))
                .cloned()
                .collect())),
            Call::SourceDestCheckOff(eni) => {
                self.checks_on.remove(eni);
                Answer::CheckOff(Ok(()))
            }
        }
    }
}
