//! States that nothing in the emulated cloud brings about by itself, given from outside: a VPC that is Pending, an entry that a cloud product
//! keeps, destinations of a prefix list.

use ipnet::IpNet;
use loden_aliyun::vpc::EntryStatus;
use time::OffsetDateTime;

use super::Cloud;
use super::admin::{AdminError, unknown};

impl Cloud {
    /// Gives a VPC, vSwitch, route table, instance or gateway a status that its API actions then answer to, e.g. `Pending`; none ends it.
    ///
    /// # Errors
    /// Nothing has that ID.
    pub fn set_status(&mut self, id: &str, status: Option<String>) -> Result<(), AdminError> {
        let known = self.vpcs.contains_key(id)
            || self.tables.contains_key(id)
            || self.instances.contains_key(id)
            || self.vpcs.values().any(|vpc| {
                vpc.vswitches.contains_key(id) || vpc.gateways.iter().any(|gateway| gateway.id == id)
            });
        if !known {
            return Err(unknown("VPC, vSwitch, route table, instance or gateway", id));
        }
        match status {
            Some(status) => self.statuses.insert(id.to_owned(), status),
            None => self.statuses.remove(id),
        };
        self.revision += 1;
        Ok(())
    }

    /// Says that an entry is being modified, which nothing but another call of this ends, or that it is kept by a cloud product.
    ///
    /// # Errors
    /// No such table or entry, or the entry is Pending or Deleting.
    pub fn mark_entry(
        &mut self,
        table_id: &str,
        destination: IpNet,
        modifying: bool,
        managed: bool,
        now: OffsetDateTime,
    ) -> Result<(), AdminError> {
        self.remember(table_id, now);
        let table = self.tables.get_mut(table_id).ok_or_else(|| unknown("route table", table_id))?;
        let entry = table
            .by_destination
            .get(&destination.trunc())
            .and_then(|sequence| table.entries.get_mut(sequence))
            .ok_or_else(|| unknown("route entry", destination))?;
        entry.status = match (entry.status, modifying) {
            (EntryStatus::Available | EntryStatus::Modifying, true) => EntryStatus::Modifying,
            (EntryStatus::Available | EntryStatus::Modifying, false) => EntryStatus::Available,
            (under_way, _) => {
                let refusal = format!("route entry {destination} is {}", under_way.as_str());
                return Err(AdminError::Refused(refusal));
            }
        };
        entry.managed = managed;
        self.revision += 1;
        Ok(())
    }

    /// Sets the destinations of a prefix list in a table; none takes the list away.
    ///
    /// # Errors
    /// No such table.
    pub fn set_prefix_list(
        &mut self,
        table_id: &str,
        list: &str,
        destinations: Vec<IpNet>,
    ) -> Result<(), AdminError> {
        let table = self.tables.get_mut(table_id).ok_or_else(|| unknown("route table", table_id))?;
        if destinations.is_empty() {
            table.prefix_lists.remove(list);
        } else {
            table.prefix_lists.insert(list.to_owned(), destinations);
        }
        Ok(())
    }
}
