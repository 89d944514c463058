//! What somebody with the cloud's console does behind everybody's back: quotas, entries, route tables, access keys.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use base64::Engine;
use ipnet::{IpNet, Ipv4Net};
use loden_sim_cloud::Snapshot;
use loden_sim_cloud::topology::{AccessKeySpec, EntryKind, EntrySpec, NextHop};
use serde_json::{Value, json};

use super::{Cluster, free_name, random_hex};
use crate::control::{ActionCalls, Applied, Behaviour};
use crate::error::{Context, Error, Result};
use crate::forwarding::{INSTANCE, INTERFACE};
use crate::kubernetes::Kubernetes;
use crate::topology;

impl Cluster {
    /// ID of the instance of that name.
    pub(super) fn instance_id(&self, name: &str) -> Result<String> {
        let members = self.members();
        let member = members.instances.get(name).ok_or_else(|| self.unknown_instance(name))?;
        Ok(member.id.clone())
    }

    pub(super) fn unknown_instance(&self, name: &str) -> Error {
        Error::Refused(format!("lab {} has no instance {name}", self.lab))
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

    /// Puts an entry into a table, the system table if none is named, in the place of another one if `replace`. Several instances share the traffic.
    ///
    /// # Errors
    /// An instance is unknown, or the destination is taken.
    pub fn add_route(
        &self,
        destination: Ipv4Net,
        instances: &[String],
        interface: bool,
        replace: bool,
        table: Option<&str>,
    ) -> Result<Applied> {
        let hop = |name: &String| {
            let id = self.instance_id(name)?;
            Ok(if interface {
                NextHop::new(INTERFACE, topology::interface_id(&id))
            } else {
                NextHop::new(INSTANCE, id)
            })
        };
        let next_hops = instances.iter().map(hop).collect::<Result<Vec<_>>>()?;
        let via = next_hops.iter().map(|hop| hop.id.as_str()).collect::<Vec<_>>().join(" and ");
        let entry = EntrySpec {
            destination: IpNet::V4(destination),
            next_hops,
            kind: EntryKind::Custom,
            name: "by-hand".to_owned(),
            description: String::new(),
        };
        let table = table.map_or_else(|| topology::table_id(&self.lab), str::to_owned);
        let there = |snapshot: &Snapshot| {
            let table = snapshot.table(&table)?;
            table.entries.iter().find(|known| known.destination == entry.destination).map(drop)
        };
        if replace && there(&self.cloud.snapshot()).is_some() {
            self.cloud
                .remove_entry(&table, entry.destination)
                .during(|| format!("remove {destination} from {table}"))?;
        }
        self.cloud.insert_entry(&table, &entry).during(|| format!("add {destination} to {table}"))?;
        Ok(Applied::new(format!("{table} has {destination} to {via}"), None))
    }

    /// Takes an entry out of a table, the system table if none is named.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_route(&self, destination: Ipv4Net, table: Option<&str>) -> Result<Applied> {
        let table = table.map_or_else(|| topology::table_id(&self.lab), str::to_owned);
        self.cloud
            .remove_entry(&table, IpNet::V4(destination))
            .during(|| format!("remove {destination} from {table}"))?;
        Ok(Applied::new(format!("{table} has no {destination} any more"), None))
    }

    /// Makes a custom route table, with the custom entries of `copy_of` if that is given. No vSwitch uses it yet.
    ///
    /// # Errors
    /// There is a table of that ID, or none to copy.
    pub fn add_table(&self, id: Option<String>, copy_of: Option<&str>) -> Result<Applied> {
        let snapshot = self.cloud.snapshot();
        let taken = |name: &str| snapshot.table(name).is_some();
        let id = id.unwrap_or_else(|| free_name(&format!("{}-", topology::table_id(&self.lab)), taken));
        let copied = match copy_of {
            None => Vec::new(),
            Some(other) => {
                let other = snapshot
                    .table(other)
                    .ok_or_else(|| Error::Refused(format!("lab {} has no route table {other}", self.lab)))?;
                let custom = other.entries.iter().filter(|entry| entry.kind == EntryKind::Custom);
                custom
                    .map(|entry| EntrySpec {
                        destination: entry.destination,
                        next_hops: entry.next_hops.clone(),
                        kind: EntryKind::Custom,
                        name: entry.name.clone(),
                        description: entry.description.clone(),
                    })
                    .collect()
            }
        };
        let quota =
            snapshot.table(&topology::table_id(&self.lab)).map_or(self.inputs.quota, |table| table.quota);
        self.cloud
            .add_table(&self.vpc(), &topology::further_table(&self.lab, &id, quota, copied))
            .during(|| format!("make route table {id}"))?;
        Ok(Applied::new(format!("{id} is there; `loden lab table use` lets a vSwitch route by it"), Some(id)))
    }

    /// How often each action of the API was called, and how often that was too often.
    pub fn calls(&self) -> BTreeMap<String, ActionCalls> {
        let refused = self.cloud.throttled();
        let counted = |(action, calls)| {
            let refused = refused.get(&action).copied().unwrap_or_default();
            (action, ActionCalls { calls, refused })
        };
        self.cloud.calls().into_iter().map(counted).collect()
    }

    /// Changes how the cloud behaves: back to the lab's beginning if `reset`, and then these keys.
    ///
    /// # Errors
    /// A key or a value that there is not, or a name of something that the lab has not; nothing is changed then.
    pub fn behave(&self, change: Option<Value>, reset: bool) -> Result<Behaviour> {
        let before = self.cloud.settings();
        let at_start = topology::settings(&self.inputs);
        let mut now = if reset { at_start.clone() } else { before.clone() };
        if let Some(change) = change {
            let refused = |error| Error::Refused(format!("the cloud's settings stay as they are: {error}"));
            now = now.with(change).map_err(refused)?;
        }
        let snapshot = self.cloud.snapshot();
        let tables = || snapshot.vpcs.iter().flat_map(|vpc| &vpc.tables).map(|table| table.id.as_str());
        if let Some(table) = now.table_read_lag_ms.keys().find(|id| !tables().any(|known| known == *id)) {
            let all = tables().collect::<Vec<_>>().join(", ");
            return Err(Error::Refused(format!(
                "tableReadLagMs names the route table {table}, which lab {} has not; it has {all}",
                self.lab
            )));
        }
        if let Some(instance) = now.metadata_instance.as_deref().filter(|id| snapshot.instance(id).is_none())
        {
            let all = snapshot.instances.iter().map(|known| known.id.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Error::Refused(format!(
                "metadataInstance names {instance}, which lab {} has not; it has {all}",
                self.lab
            )));
        }
        self.cloud.change_settings(|settings| settings.clone_from(&now));
        Ok(Behaviour { now, before, at_start })
    }

    /// Lets a vSwitch, named by its ID or its range, route by another table.
    ///
    /// # Errors
    /// Either is unknown.
    pub fn use_table(&self, vswitch: &str, table: &str) -> Result<Applied> {
        let ids = (0..self.inputs.vswitches.len()).map(|at| topology::vswitch_id(&self.lab, at));
        let known = || ids.clone().zip(self.inputs.vswitches.iter().map(ToString::to_string));
        let Some((id, range)) = known().find(|(id, range)| id == vswitch || range == vswitch) else {
            let all = known().map(|(id, range)| format!("{id} ({range})")).collect::<Vec<_>>().join(", ");
            return Err(Error::Refused(format!("lab {} has no vSwitch {vswitch}; it has {all}", self.lab)));
        };
        self.cloud.associate(&id, table).during(|| format!("let {id} route by {table}"))?;
        Ok(Applied::new(format!("vSwitch {id} ({range}) routes by {table} now"), None))
    }

    /// Lets a cluster's controller serve these tables besides the system table, by a change of its cloud-config file.
    ///
    /// # Errors
    /// The tables were given on its command line, which wins; or the file cannot be written.
    pub fn serve_tables(&self, at: usize, tables: Vec<String>) -> Result<Applied> {
        let kube = self.kube(at)?;
        let fixed = self.members().controllers.get(&at).is_some_and(|controller| {
            controller.recipe().arguments.iter().any(|argument| argument.starts_with(topology::TABLES_FLAG))
        });
        if fixed {
            return Err(Error::Refused(format!(
                "the controller of {} was started with {}, which wins over its cloud-config file; `loden lab restart controller --route-table-ids` without IDs takes that away",
                kube.name,
                topology::TABLES_FLAG
            )));
        }
        let text =
            format!("the cloud-config file of {} names these tables now: [{}]", kube.name, tables.join(", "));
        self.configure(at, kube, |config| config.tables = tables)?;
        Ok(Applied::new(text, None))
    }

    /// Renews what the controllers sign with, and revokes what they signed with before.
    ///
    /// # Errors
    /// A new key cannot be written down.
    pub fn rotate_credentials(&self) -> Result<Applied> {
        if !self.inputs.access_key {
            self.cloud.expire_role_credentials();
            let text = "the RAM role's credentials given out so far are over; the metadata service gives out new ones";
            return Ok(Applied::new(text.to_owned(), None));
        }
        for (at, kube) in self.kubes.iter().enumerate() {
            let fresh = self.new_access_key(kube)?;
            let mut before = None;
            self.configure(at, kube, |config| before = config.key.replace(fresh))?;
            if let Some(AccessKeySpec { id, .. }) = before {
                self.cloud.remove_access_key(&id).during(|| format!("revoke access key {id}"))?;
            }
        }
        let text = "the controllers' cloud-config files hold new access keys; the ones before are revoked";
        Ok(Applied::new(text.to_owned(), None))
    }

    /// Draws an access key that the cloud takes from now on.
    pub(super) fn new_access_key(&self, kube: &Kubernetes) -> Result<AccessKeySpec> {
        let key = AccessKeySpec::new(format!("LTAI{:.20}", random_hex()?), format!("{:.30}", random_hex()?));
        self.cloud.add_access_key(key.clone()).during(|| format!("give {} an access key", kube.name))?;
        Ok(key)
    }

    /// Changes what a controller's cloud-config file says. Readers see the file before or after, and never a part of it.
    pub(super) fn configure(
        &self,
        at: usize,
        kube: &Kubernetes,
        change: impl FnOnce(&mut CloudConfig),
    ) -> Result<()> {
        let path = topology::controller_directory(self, kube)?.join(topology::CLOUD_CONFIG);
        let fresh = path.with_extension("new");
        // Held until the file is there: of two changes the later one is in it.
        let mut members = self.members();
        let config = members.configs.entry(at).or_default();
        change(config);
        let mut options = std::fs::OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut file| file.write_all(config.text().as_bytes()))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|e| Error::io("write", &path, e))
    }
}

/// What a controller's cloud-config file says.
#[derive(Clone, Default, Debug)]
pub(super) struct CloudConfig {
    /// Without one, the instance's RAM role signs.
    pub(super) key: Option<AccessKeySpec>,
    /// Tables to serve besides the system table.
    pub(super) tables: Vec<String>,
}

impl CloudConfig {
    /// The file, as the vendor's controller reads it.
    fn text(&self) -> String {
        let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let mut global = serde_json::Map::new();
        if let Some(key) = &self.key {
            global.insert("accessKeyID".to_owned(), encoded(&key.id).into());
            global.insert("accessKeySecret".to_owned(), encoded(&key.secret).into());
        }
        if !self.tables.is_empty() {
            global.insert("routeTableIDs".to_owned(), self.tables.join(",").into());
        }
        json!({ "Global": global }).to_string()
    }
}
