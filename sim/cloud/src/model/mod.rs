//! The emulated cloud as a state machine: no sockets, no clock, no randomness; `now` and the seed are arguments.
//!
//! Owns all state. The invariant: every table's destinations are unique, every vSwitch has exactly one table, and an entry that is not
//! settled has a moment at which it will be ([`Cloud::next_deadline`]). If the last breaks, a VPC stays busy for ever and every client
//! retries in vain.

mod access;
mod admin;
mod api;
mod conditions;
mod ecs;
mod entries;
mod faults;
mod lag;
mod metadata;
mod pages;
mod quotas;
mod rates;
mod state;
mod sts;
mod summary;
mod tables;
mod views;
mod vpc;

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden_aliyun::ApiError;
use loden_aliyun::vpc::EntryStatus;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::topology::{
    AccessKeySpec, EntryKind, Ingress, InstanceSpec, NextHop, RoleSpec, SecurityGroupSpec, Settings,
    TableKind, Topology, VSwitchSpec,
};

pub use access::SignedCall;
pub use admin::AdminError;
pub use api::{ACTIONS, Call};
pub use faults::{Fault, FaultKind};
pub use metadata::{MetadataAnswer, MetadataCall};
pub use state::StateError;

/// The range from which the vendor serves cloud services; every table has a system entry for it.
pub(crate) const SHARED_RANGE: &str = "100.64.0.0/10";

/// What an object's status is unless it is said or under way.
const AVAILABLE: &str = "Available";

/// One region of one account.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cloud {
    region: String,
    account: u64,
    settings: Settings,
    revision: u64,
    seed: u64,
    drawn: u64,
    #[serde(with = "state::moment")]
    created: OffsetDateTime,
    vpcs: BTreeMap<String, Vpc>,
    tables: BTreeMap<String, Table>,
    instances: BTreeMap<String, Instance>,
    access_keys: BTreeMap<String, AccessKeySpec>,
    roles: BTreeMap<String, RoleSpec>,
    access: access::Access,
    client_tokens: BTreeMap<String, api::Remembered>,
    /// What is under way, by the moment at which it will be done and a number that nothing else has.
    #[serde(with = "state::by_moment")]
    unsettled: BTreeMap<(OffsetDateTime, u64), Unsettled>,
    /// Statuses given from outside, by the ID of whatever has one; everything else is Available, or Running if it is an instance.
    statuses: BTreeMap<String, String>,
    faults: Vec<Fault>,
    /// What lists show while a fault makes them stale.
    #[serde(skip)]
    frozen: Option<faults::Frozen>,
    calls: BTreeMap<String, u64>,
    #[serde(default)]
    rates: rates::Rates,
}

/// A change that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Unsettled {
    /// The entry of that number comes into force, or goes.
    Entry { table: String, sequence: u64 },
    /// A new table becomes Available.
    NewTable { table: String },
    /// A table goes.
    OldTable { table: String },
    /// A vSwitch starts to use a table.
    Binding { vswitch: String, table: String },
}

impl Unsettled {
    /// The table that it is about.
    fn table(&self) -> &str {
        match self {
            Self::Entry { table, .. }
            | Self::NewTable { table }
            | Self::OldTable { table }
            | Self::Binding { table, .. } => table,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Vpc {
    name: String,
    cidr: Ipv4Net,
    secondary_cidrs: Vec<Ipv4Net>,
    ipv6_cidr: Option<Ipv6Net>,
    table_quota: u32,
    router: String,
    system_table: String,
    vswitches: BTreeMap<String, VSwitch>,
    security_groups: BTreeMap<String, Vec<Ingress>>,
    gateways: Vec<NextHop>,
}

impl Vpc {
    fn cidrs(&self) -> impl Iterator<Item = Ipv4Net> {
        std::iter::once(self.cidr).chain(self.secondary_cidrs.iter().copied())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VSwitch {
    spec: VSwitchSpec,
    table: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Table {
    vpc: String,
    name: String,
    description: String,
    tags: BTreeMap<String, String>,
    kind: TableKind,
    quota: u32,
    /// Destinations that come from prefix lists, by list.
    prefix_lists: BTreeMap<String, Vec<IpNet>>,
    entries: BTreeMap<u64, Entry>,
    /// What the entries were, oldest first, as long as reads may still show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    past: Vec<lag::Past>,
    /// An index of the entries.
    #[serde(skip)]
    by_destination: BTreeMap<IpNet, u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    id: String,
    destination: IpNet,
    next_hops: Vec<NextHop>,
    kind: EntryKind,
    status: EntryStatus,
    #[serde(with = "state::moment")]
    modified: OffsetDateTime,
    name: String,
    description: String,
    /// Kept by a cloud product, which alone may delete it.
    managed: bool,
    /// What it is when the change under way has settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    becomes: Option<Becoming>,
}

/// A change of an entry that is under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Becoming {
    next_hop: Option<NextHop>,
    name: Option<String>,
    description: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Instance {
    spec: InstanceSpec,
    vpc: String,
    interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Interface {
    id: String,
    mac: String,
    vswitch: String,
    address: std::net::Ipv4Addr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ipv6: Vec<std::net::Ipv6Addr>,
    security_groups: Vec<String>,
    source_dest_check: bool,
}

impl Cloud {
    /// A cloud with these contents. `seed` makes the IDs and secrets it draws.
    ///
    /// # Errors
    /// Something is named twice, is named but not there, or lies outside the range it has to be in.
    pub fn new(
        topology: &Topology,
        settings: Settings,
        seed: u64,
        now: OffsetDateTime,
    ) -> Result<Self, AdminError> {
        let mut cloud = Self {
            region: topology.region.clone(),
            account: topology.account,
            settings,
            revision: 0,
            seed,
            drawn: 0,
            created: now,
            vpcs: BTreeMap::new(),
            tables: BTreeMap::new(),
            instances: BTreeMap::new(),
            access_keys: BTreeMap::new(),
            roles: BTreeMap::new(),
            access: access::Access::default(),
            client_tokens: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            statuses: BTreeMap::new(),
            faults: Vec::new(),
            frozen: None,
            calls: BTreeMap::new(),
            rates: rates::Rates::default(),
        };
        for role in &topology.roles {
            cloud.roles.insert(role.name.clone(), role.clone());
        }
        for key in &topology.access_keys {
            cloud.add_access_key(key.clone())?;
        }
        for vpc in &topology.vpcs {
            cloud.add_vpc(vpc, now)?;
        }
        for instance in &topology.instances {
            cloud.add_instance(instance)?;
        }
        // What is there from the start was always there.
        cloud.tables.values_mut().for_each(|table| table.past.clear());
        Ok(cloud)
    }

    /// Grows with every change of what [`Cloud::snapshot`] shows.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region
    }

    /// How often each action was called, wrong calls included.
    #[must_use]
    pub fn calls(&self) -> &BTreeMap<String, u64> {
        &self.calls
    }

    /// Behaviour as it is set now.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes behaviour. Entries already on their way keep their moment.
    pub fn set_settings(&mut self, settings: Settings) {
        if settings.rate_limits != self.settings.rate_limits {
            self.rates.forget();
        }
        self.settings = settings;
    }

    /// When the next change under way is done, if any is.
    #[must_use]
    pub fn next_deadline(&self) -> Option<OffsetDateTime> {
        self.unsettled.keys().next().map(|(at, _)| *at)
    }

    /// Settles what is due: Pending becomes Available, Deleting becomes gone, a vSwitch gets its table.
    pub fn advance(&mut self, now: OffsetDateTime) {
        while let Some(first) = self.unsettled.first_entry() {
            let (at, _) = *first.key();
            if at > now {
                break;
            }
            let change = first.remove();
            self.settle(change, at);
            self.revision += 1;
        }
    }

    fn settle(&mut self, change: Unsettled, at: OffsetDateTime) {
        match change {
            Unsettled::Entry { table, sequence } => self.settle_entry(&table, sequence, at),
            // It was Pending only for as long as it was among the unsettled.
            Unsettled::NewTable { .. } => {}
            Unsettled::OldTable { table } => {
                self.tables.remove(&table);
                self.statuses.remove(&table);
                // Bound from outside after its deletion began.
                for vpc in self.vpcs.values_mut() {
                    let system = &vpc.system_table;
                    for vswitch in vpc.vswitches.values_mut().filter(|vswitch| vswitch.table == table) {
                        vswitch.table.clone_from(system);
                    }
                }
            }
            Unsettled::Binding { vswitch, table } => {
                let vswitch = self.vpcs.values_mut().find_map(|vpc| vpc.vswitches.get_mut(&vswitch));
                if let Some(vswitch) = vswitch.filter(|_| self.tables.contains_key(&table)) {
                    vswitch.table = table;
                }
            }
        }
    }

    fn settle_entry(&mut self, table: &str, sequence: u64, at: OffsetDateTime) {
        self.remember(table, at);
        let Some(table) = self.tables.get_mut(table) else { return };
        let Some(entry) = table.entries.get_mut(&sequence) else { return };
        if entry.status == EntryStatus::Deleting {
            table.by_destination.remove(&entry.destination);
            table.entries.remove(&sequence);
        } else {
            entry.status = EntryStatus::Available;
            entry.modified = at;
            if let Some(becoming) = entry.becomes.take() {
                entry.next_hops = becoming.next_hop.map_or_else(|| entry.next_hops.clone(), |hop| vec![hop]);
                entry.name = becoming.name.unwrap_or_else(|| entry.name.clone());
                entry.description = becoming.description.unwrap_or_else(|| entry.description.clone());
            }
        }
    }

    /// Starts a change that is done after the delay, which may be none.
    fn begin(&mut self, change: Unsettled, now: OffsetDateTime) {
        let number = match &change {
            Unsettled::Entry { sequence, .. } => *sequence,
            _ => {
                self.drawn += 1;
                self.drawn
            }
        };
        self.unsettled.insert((now.saturating_add(self.entry_delay()), number), change);
        self.revision += 1;
        // Without a delay it is done before the answer is out.
        self.advance(now);
    }

    /// The status of an object that has no state of its own here.
    fn status(&self, id: &str) -> &str {
        if let Some(status) = self.statuses.get(id) {
            return status;
        }
        let under_way = self.unsettled.values().find_map(|change| match change {
            Unsettled::NewTable { table } if table == id => Some("Pending"),
            Unsettled::OldTable { table } if table == id => Some("Deleting"),
            Unsettled::Binding { vswitch, .. } if vswitch == id => Some("Pending"),
            _ => None,
        });
        under_way.unwrap_or(AVAILABLE)
    }

    /// The instance that has an interface, and the interface's place in it.
    fn interface(&self, id: &str) -> Option<(&Instance, usize)> {
        self.instances.values().find_map(|instance| {
            let index = instance.interfaces.iter().position(|interface| interface.id == id)?;
            Some((instance, index))
        })
    }

    /// vSwitches that use a table.
    fn vswitches_of(&self, id: &str, table: &Table) -> Vec<String> {
        self.vpcs
            .get(&table.vpc)
            .into_iter()
            .flat_map(|vpc| vpc.vswitches.values())
            .filter(|vswitch| vswitch.table == id)
            .map(|vswitch| vswitch.spec.id.clone())
            .collect()
    }

    /// Custom entries that count towards the quota.
    fn used(&self, table: &Table) -> u32 {
        self.used_by(table, |_| true)
    }

    /// Those of them that `pick` picks.
    fn used_by(&self, table: &Table, pick: impl Fn(&Entry) -> bool) -> u32 {
        let counts = |entry: &&Entry| {
            entry.kind == EntryKind::Custom
                && (self.settings.deleting_holds_quota || entry.status != EntryStatus::Deleting)
                && pick(entry)
        };
        u32::try_from(table.entries.values().filter(counts).count()).unwrap_or(u32::MAX)
    }

    fn entry_delay(&self) -> Duration {
        milliseconds(self.settings.entry_delay_ms)
    }

    /// Hexadecimal text that no other draw of this cloud gives.
    fn draw(&mut self, purpose: &str) -> String {
        self.drawn += 1;
        let digest = Sha256::digest(format!("{}/{}/{purpose}", self.seed, self.drawn));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn draw_id(&mut self, prefix: &str) -> String {
        let text = self.draw(prefix);
        format!("{prefix}-{}", text.get(..20).unwrap_or(&text))
    }

    /// An ID for the next answer, of the form the vendor uses.
    pub fn draw_request_id(&mut self) -> String {
        let text = self.draw("request").to_ascii_uppercase();
        let part = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
        format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
    }
}

/// A setting as a span of time; what no clock can count is as long as one can.
fn milliseconds(count: u64) -> Duration {
    Duration::milliseconds(i64::try_from(count).unwrap_or(i64::MAX))
}

/// The error for a region that is not this cloud's.
fn check_region(cloud: &Cloud, region: Option<&str>) -> Result<(), ApiError> {
    match region {
        Some(region) if region != cloud.region => {
            Err(ApiError::new(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist."))
        }
        _ => Ok(()),
    }
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

impl From<&SecurityGroupSpec> for (String, Vec<Ingress>) {
    fn from(group: &SecurityGroupSpec) -> Self {
        (group.id.clone(), group.ingress.clone())
    }
}
