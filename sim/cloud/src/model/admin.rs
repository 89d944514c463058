//! Changes that no API call makes: contents put in or taken out from outside, as a console or a lab does.

use std::collections::BTreeMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use loden_aliyun::vpc::{DEFAULT_ENTRY_QUOTA, DEFAULT_TABLE_QUOTA, EntryStatus};
use time::OffsetDateTime;

use super::{Cloud, Entry, Instance, Interface, SHARED_RANGE, Table, Unsettled, VSwitch, Vpc};
use crate::topology::{
    AccessKeySpec, EntryKind, EntrySpec, Ingress, InstanceSpec, InterfaceSpec, NextHop, RouteTableSpec,
    TableKind, VSwitchSpec, VpcSpec,
};

/// Why contents were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// An ID, address or destination that is in use.
    #[error("{what} {id} is already there; choose another")]
    Duplicate {
        /// Kind of object.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// An ID that nothing has.
    #[error("there is no {what} {id}")]
    Unknown {
        /// Kind of object.
        what: &'static str,
        /// Its name.
        id: String,
    },
    /// A range or address that is not where it has to be.
    #[error("{what} {inner} is not inside {outer}")]
    Outside {
        /// Kind of object.
        what: &'static str,
        /// What was given.
        inner: String,
        /// Where it has to be.
        outer: String,
    },
    /// Two ranges that must be disjoint.
    #[error("{what} {a} overlaps {b}")]
    Overlap {
        /// Kind of object.
        what: &'static str,
        /// One.
        a: String,
        /// The other.
        b: String,
    },
    /// Something that the object must have or must not have.
    #[error("{0}")]
    Refused(String),
}

fn duplicate(what: &'static str, id: impl ToString) -> AdminError {
    AdminError::Duplicate { what, id: id.to_string() }
}

pub(super) fn unknown(what: &'static str, id: impl ToString) -> AdminError {
    AdminError::Unknown { what, id: id.to_string() }
}

impl Cloud {
    /// Adds a VPC with everything in it.
    ///
    /// # Errors
    /// See [`AdminError`]; on an error nothing of it stays.
    pub fn add_vpc(&mut self, spec: &VpcSpec, now: OffsetDateTime) -> Result<(), AdminError> {
        if self.vpcs.contains_key(&spec.id) {
            return Err(duplicate("VPC", &spec.id));
        }
        let result = self.fill_vpc(spec, now);
        if result.is_err() {
            self.vpcs.remove(&spec.id);
            self.tables.retain(|_, table| table.vpc != spec.id);
        }
        self.revision += 1;
        result
    }

    fn fill_vpc(&mut self, spec: &VpcSpec, now: OffsetDateTime) -> Result<(), AdminError> {
        let suffix = spec.id.strip_prefix("vpc-").unwrap_or(&spec.id);
        let system: Vec<_> =
            spec.route_tables.iter().filter(|table| table.kind == TableKind::System).collect();
        let system_table = match system.as_slice() {
            [] => RouteTableSpec::new(format!("vtb-{suffix}"), TableKind::System),
            [table] => (*table).clone(),
            _ => {
                return Err(AdminError::Refused(format!(
                    "VPC {} has {} system route tables; it can have one",
                    spec.id,
                    system.len()
                )));
            }
        };
        let router = format!("vrt-{suffix}");
        self.vpcs.insert(
            spec.id.clone(),
            Vpc {
                name: spec.name.clone(),
                cidr: spec.cidr.trunc(),
                secondary_cidrs: spec.secondary_cidrs.iter().map(Ipv4Net::trunc).collect(),
                ipv6_cidr: spec.ipv6_cidr.map(|net| net.trunc()),
                table_quota: spec.table_quota.unwrap_or(DEFAULT_TABLE_QUOTA),
                router,
                system_table: system_table.id.clone(),
                vswitches: BTreeMap::new(),
                security_groups: spec.security_groups.iter().map(Into::into).collect(),
                gateways: spec.gateways.clone(),
            },
        );
        self.add_table(
            &spec.id,
            &RouteTableSpec { entries: Vec::new(), vswitches: Vec::new(), ..system_table.clone() },
            now,
        )?;
        for vswitch in &spec.vswitches {
            self.add_vswitch(&spec.id, vswitch, now)?;
        }
        for entry in &system_table.entries {
            self.insert_entry(&system_table.id, entry, now)?;
        }
        for table in spec.route_tables.iter().filter(|table| table.kind != TableKind::System) {
            self.add_table(&spec.id, table, now)?;
        }
        Ok(())
    }

    /// Adds a vSwitch, which uses the system table, and its system entry to every table of the VPC.
    ///
    /// # Errors
    /// See [`AdminError`]; also when a custom entry has that destination or one inside it, as the vendor refuses such a vSwitch.
    pub fn add_vswitch(
        &mut self,
        vpc_id: &str,
        spec: &VSwitchSpec,
        now: OffsetDateTime,
    ) -> Result<(), AdminError> {
        let vpc = self.vpcs.get(vpc_id).ok_or_else(|| unknown("VPC", vpc_id))?;
        let cidr = spec.cidr.trunc();
        if self.vpcs.values().any(|vpc| vpc.vswitches.contains_key(&spec.id)) {
            return Err(duplicate("vSwitch", &spec.id));
        }
        if !vpc.cidrs().any(|outer| outer.contains(&cidr)) {
            let outer: Vec<String> = vpc.cidrs().map(|net| net.to_string()).collect();
            return Err(AdminError::Outside {
                what: "vSwitch range",
                inner: cidr.to_string(),
                outer: outer.join(", "),
            });
        }
        let overlaps = |other: &&VSwitch| other.spec.cidr.contains(&cidr) || cidr.contains(&other.spec.cidr);
        if let Some(other) = vpc.vswitches.values().find(overlaps) {
            return Err(AdminError::Overlap {
                what: "vSwitch range",
                a: cidr.to_string(),
                b: format!("{} of {}", other.spec.cidr, other.spec.id),
            });
        }
        let ipv6 = spec.ipv6_cidr.map(|net| net.trunc());
        if let Some(ipv6) = ipv6 {
            check_ipv6_vswitch(vpc, vpc_id, ipv6)?;
        }
        let within = IpNet::V4(cidr);
        let covered = self.tables.values().filter(|table| table.vpc == vpc_id).flat_map(|table| {
            table.by_destination.keys().filter(|destination| within.contains(*destination))
        });
        if let Some(destination) = covered.into_iter().next() {
            return Err(AdminError::Overlap {
                what: "vSwitch range",
                a: cidr.to_string(),
                b: format!("route entry {destination}"),
            });
        }
        let table = vpc.system_table.clone();
        let spec = VSwitchSpec { cidr, ipv6_cidr: ipv6, ..spec.clone() };
        if let Some(vpc) = self.vpcs.get_mut(vpc_id) {
            vpc.vswitches.insert(spec.id.clone(), VSwitch { spec, table });
        }
        let tables: Vec<String> =
            self.tables.iter().filter(|(_, table)| table.vpc == vpc_id).map(|(id, _)| id.clone()).collect();
        for table in tables {
            self.insert_entry(&table, &local(within), now)?;
            if let Some(ipv6) = ipv6 {
                self.insert_entry(&table, &local(IpNet::V6(ipv6)), now)?;
            }
        }
        Ok(())
    }

    /// Adds a route table with its system entries.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn add_table(
        &mut self,
        vpc_id: &str,
        spec: &RouteTableSpec,
        now: OffsetDateTime,
    ) -> Result<(), AdminError> {
        let vpc = self.vpcs.get(vpc_id).ok_or_else(|| unknown("VPC", vpc_id))?;
        if self.tables.contains_key(&spec.id) {
            return Err(duplicate("route table", &spec.id));
        }
        if spec.kind == TableKind::System && spec.id != vpc.system_table {
            return Err(AdminError::Refused(format!("VPC {vpc_id} has a system route table already")));
        }
        if let Some(id) = spec.vswitches.iter().find(|id| !vpc.vswitches.contains_key(*id)) {
            return Err(unknown("vSwitch", id));
        }
        let table = Table {
            vpc: vpc_id.to_owned(),
            name: spec.name.clone(),
            description: String::new(),
            tags: BTreeMap::new(),
            kind: spec.kind,
            quota: spec.quota.unwrap_or(DEFAULT_ENTRY_QUOTA),
            prefix_lists: spec.prefix_lists.clone(),
            entries: BTreeMap::new(),
            past: Vec::new(),
            by_destination: BTreeMap::new(),
        };
        self.insert_table(&spec.id, table, now)?;
        for entry in &spec.entries {
            self.insert_entry(&spec.id, entry, now)?;
        }
        for vswitch in &spec.vswitches {
            self.associate(vswitch, &spec.id)?;
        }
        self.revision += 1;
        Ok(())
    }

    /// Puts a table in and fills it with the system's entries: those of its VPC's vSwitches, and that of the vendor's own services.
    pub(super) fn insert_table(
        &mut self,
        id: &str,
        table: Table,
        now: OffsetDateTime,
    ) -> Result<(), AdminError> {
        let vpc = self.vpcs.get(&table.vpc).ok_or_else(|| unknown("VPC", &table.vpc))?;
        let mut entries: Vec<EntrySpec> = Vec::new();
        for vswitch in vpc.vswitches.values() {
            entries.push(local(IpNet::V4(vswitch.spec.cidr)));
            entries.extend(vswitch.spec.ipv6_cidr.map(|net| local(IpNet::V6(net))));
        }
        entries.extend(SHARED_RANGE.parse().ok().map(|destination| EntrySpec {
            next_hops: vec![NextHop::new("service", "")],
            ..local(destination)
        }));
        self.tables.insert(id.to_owned(), table);
        for entry in &entries {
            self.insert_entry(id, entry, now)?;
        }
        Ok(())
    }

    /// Makes a vSwitch use a table of its VPC.
    ///
    /// # Errors
    /// Either is not there, they are not of one VPC, or it is a gateway's table.
    pub fn associate(&mut self, vswitch_id: &str, table_id: &str) -> Result<(), AdminError> {
        let table = self.tables.get(table_id).ok_or_else(|| unknown("route table", table_id))?;
        if table.kind == TableKind::Gateway {
            return Err(AdminError::Refused(format!(
                "route table {table_id} is a gateway's; vSwitches cannot use it"
            )));
        }
        let vswitch = self
            .vpcs
            .get_mut(&table.vpc)
            .and_then(|vpc| vpc.vswitches.get_mut(vswitch_id))
            .ok_or_else(|| unknown("vSwitch of the table's VPC", vswitch_id))?;
        table_id.clone_into(&mut vswitch.table);
        self.revision += 1;
        Ok(())
    }

    /// Puts an entry into a table, Available at once, past the API's checks (but destinations stay unique).
    ///
    /// # Errors
    /// No such table, or the destination is taken.
    pub fn insert_entry(
        &mut self,
        table_id: &str,
        spec: &EntrySpec,
        now: OffsetDateTime,
    ) -> Result<String, AdminError> {
        self.remember(table_id, now);
        let id = self.draw_id("rte");
        let sequence = self.drawn;
        let table = self.tables.get_mut(table_id).ok_or_else(|| unknown("route table", table_id))?;
        let destination = spec.destination.trunc();
        if table.by_destination.contains_key(&destination) {
            return Err(duplicate("route entry", destination));
        }
        table.by_destination.insert(destination, sequence);
        table.entries.insert(
            sequence,
            Entry {
                id: id.clone(),
                destination,
                next_hops: spec.next_hops.clone(),
                kind: spec.kind,
                status: EntryStatus::Available,
                modified: now,
                name: spec.name.clone(),
                description: spec.description.clone(),
                managed: false,
                becomes: None,
            },
        );
        self.revision += 1;
        Ok(id)
    }

    /// Takes an entry out of a table at once, whatever its kind and state.
    ///
    /// # Errors
    /// No such table or entry.
    pub fn remove_entry(
        &mut self,
        table_id: &str,
        destination: IpNet,
        now: OffsetDateTime,
    ) -> Result<(), AdminError> {
        self.remember(table_id, now);
        let table = self.tables.get_mut(table_id).ok_or_else(|| unknown("route table", table_id))?;
        let sequence = table
            .by_destination
            .remove(&destination.trunc())
            .ok_or_else(|| unknown("route entry", destination))?;
        table.entries.remove(&sequence);
        self.unsettled.retain(
            |_, change| !matches!(change, Unsettled::Entry { sequence: other, .. } if *other == sequence),
        );
        self.revision += 1;
        Ok(())
    }

    /// Sets how many custom entries fit into a table. Entries beyond it stay.
    ///
    /// # Errors
    /// No such table.
    pub fn set_quota(&mut self, table_id: &str, quota: u32) -> Result<(), AdminError> {
        let table = self.tables.get_mut(table_id).ok_or_else(|| unknown("route table", table_id))?;
        table.quota = quota;
        self.revision += 1;
        Ok(())
    }

    /// Sets who may reach the members of a security group, making the group when it is not there.
    ///
    /// # Errors
    /// No such VPC.
    pub fn set_security_group(
        &mut self,
        vpc: &str,
        group: &str,
        ingress: Vec<Ingress>,
    ) -> Result<(), AdminError> {
        let vpc = self.vpcs.get_mut(vpc).ok_or_else(|| unknown("VPC", vpc))?;
        vpc.security_groups.insert(group.to_owned(), ingress);
        self.revision += 1;
        Ok(())
    }

    /// Adds an instance.
    ///
    /// # Errors
    /// See [`AdminError`].
    pub fn add_instance(&mut self, spec: &InstanceSpec) -> Result<(), AdminError> {
        if self.instances.contains_key(&spec.id) {
            return Err(duplicate("instance", &spec.id));
        }
        if let Some(role) = spec.role.as_ref().filter(|role| !self.roles.contains_key(*role)) {
            return Err(unknown("RAM role", role));
        }
        let mut interfaces: Vec<Interface> = Vec::new();
        let mut vpc_id: Option<&str> = None;
        for (index, interface) in spec.interfaces.iter().enumerate() {
            let vpc = self.check_interface(interface)?;
            if *vpc_id.get_or_insert(vpc) != vpc {
                return Err(AdminError::Refused(format!("instance {} has interfaces in two VPCs", spec.id)));
            }
            let made = make_interface(&spec.id, index, interface);
            if interfaces.iter().any(|other| other.address == made.address) {
                return Err(duplicate("private address", made.address));
            }
            let same_id = |other: &Interface| other.id == made.id;
            if interfaces.iter().any(same_id)
                || self.instances.values().any(|instance| instance.interfaces.iter().any(same_id))
            {
                return Err(duplicate("network interface", made.id));
            }
            interfaces.push(made);
        }
        let Some(vpc) = vpc_id.map(str::to_owned) else {
            return Err(AdminError::Refused(format!("instance {} has no network interface", spec.id)));
        };
        self.instances.insert(spec.id.clone(), Instance { spec: spec.clone(), vpc, interfaces });
        self.revision += 1;
        Ok(())
    }

    /// The VPC that an interface would be in.
    fn check_interface(&self, spec: &InterfaceSpec) -> Result<&str, AdminError> {
        let (vpc_id, vpc, vswitch) = self
            .vpcs
            .iter()
            .find_map(|(id, vpc)| Some((id, vpc, vpc.vswitches.get(&spec.vswitch)?)))
            .ok_or_else(|| unknown("vSwitch", &spec.vswitch))?;
        if !vswitch.spec.cidr.contains(&spec.address) {
            return Err(AdminError::Outside {
                what: "private address",
                inner: spec.address.to_string(),
                outer: format!("{} of {}", vswitch.spec.cidr, spec.vswitch),
            });
        }
        if let Some(group) =
            spec.security_groups.iter().find(|group| !vpc.security_groups.contains_key(*group))
        {
            return Err(unknown("security group", group));
        }
        let taken =
            self.instances.values().filter(|instance| instance.vpc == *vpc_id).any(|instance| {
                instance.interfaces.iter().any(|interface| interface.address == spec.address)
            });
        if taken { Err(duplicate("private address", spec.address)) } else { Ok(vpc_id) }
    }

    /// Gives an instance an elastic address, or takes it away.
    ///
    /// # Errors
    /// No such instance.
    pub fn set_elastic_address(
        &mut self,
        id: &str,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<(), AdminError> {
        let instance = self.instances.get_mut(id).ok_or_else(|| unknown("instance", id))?;
        instance.spec.elastic_address = address;
        self.revision += 1;
        Ok(())
    }

    /// Takes an instance away. Entries that point at it stay, and lead nowhere.
    ///
    /// # Errors
    /// No such instance.
    pub fn remove_instance(&mut self, id: &str) -> Result<(), AdminError> {
        self.instances.remove(id).ok_or_else(|| unknown("instance", id))?;
        self.statuses.remove(id);
        self.revision += 1;
        Ok(())
    }

    /// The lowest address of a vSwitch that no interface has and that the vendor does not keep (the first and the last three).
    #[must_use]
    pub fn free_address(&self, vswitch: &str) -> Option<std::net::Ipv4Addr> {
        let (vpc_id, cidr) =
            self.vpcs.iter().find_map(|(id, vpc)| Some((id, vpc.vswitches.get(vswitch)?.spec.cidr)))?;
        let (first, last) =
            (u32::from(cidr.network()).checked_add(1)?, u32::from(cidr.broadcast()).checked_sub(3)?);
        let taken: std::collections::BTreeSet<u32> = self
            .instances
            .values()
            .filter(|instance| instance.vpc == *vpc_id)
            .flat_map(|instance| &instance.interfaces)
            .map(|interface| u32::from(interface.address))
            .collect();
        (first..=last).find(|address| !taken.contains(address)).map(std::net::Ipv4Addr::from)
    }

    /// Adds an access key that does not expire.
    ///
    /// # Errors
    /// There is one of that ID.
    pub fn add_access_key(&mut self, key: AccessKeySpec) -> Result<(), AdminError> {
        if self.access_keys.contains_key(&key.id) {
            return Err(duplicate("access key", key.id));
        }
        self.access_keys.insert(key.id.clone(), key);
        Ok(())
    }

    /// Takes an access key away: what is signed with it is refused from now on.
    ///
    /// # Errors
    /// There is none of that ID.
    pub fn remove_access_key(&mut self, id: &str) -> Result<(), AdminError> {
        self.access_keys.remove(id).map(drop).ok_or_else(|| unknown("access key", id))
    }
}

fn check_ipv6_vswitch(vpc: &Vpc, vpc_id: &str, net: Ipv6Net) -> Result<(), AdminError> {
    if !vpc.ipv6_cidr.is_some_and(|outer| outer.contains(&net)) {
        return Err(AdminError::Outside {
            what: "vSwitch range",
            inner: net.to_string(),
            outer: vpc
                .ipv6_cidr
                .map_or_else(|| format!("{vpc_id}, which has no IPv6"), |net| net.to_string()),
        });
    }
    let others = vpc.vswitches.values().filter_map(|vswitch| Some((vswitch.spec.ipv6_cidr?, vswitch)));
    for (other, vswitch) in others {
        if other.contains(&net) || net.contains(&other) {
            return Err(AdminError::Overlap {
                what: "vSwitch range",
                a: net.to_string(),
                b: format!("{other} of {}", vswitch.spec.id),
            });
        }
    }
    Ok(())
}

fn local(destination: IpNet) -> EntrySpec {
    EntrySpec {
        destination,
        next_hops: vec![NextHop::new("local", "")],
        kind: EntryKind::System,
        name: String::new(),
        description: String::new(),
    }
}

fn make_interface(instance: &str, index: usize, spec: &InterfaceSpec) -> Interface {
    let suffix = instance.strip_prefix("i-").unwrap_or(instance);
    let id = spec.id.clone().unwrap_or_else(|| match index {
        0 => format!("eni-{suffix}"),
        _ => format!("eni-{suffix}-{index}"),
    });
    let [a, b, c, d] = spec.address.octets();
    // Locally administered, so that it collides with no real card.
    let mac = spec.mac.clone().unwrap_or_else(|| format!("02:16:{a:02x}:{b:02x}:{c:02x}:{d:02x}"));
    Interface {
        id,
        mac: mac.to_ascii_lowercase(),
        vswitch: spec.vswitch.clone(),
        address: spec.address,
        ipv6: spec.ipv6.clone(),
        security_groups: spec.security_groups.clone(),
        source_dest_check: spec.source_dest_check,
    }
}
