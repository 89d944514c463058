//! `DeleteRouteEntry` and `DeleteRouteEntries`.

use loden_aliyun::vpc::{self, EntryStatus};
use loden_aliyun::{ApiError, Request, codes};
use time::OffsetDateTime;

use super::super::api::Answers;
use super::super::{Cloud, Entry, Unsettled};
use super::create::check_batch;
use super::{Refusal, check_stable, read_destination, same_hops};
use crate::topology::{EntryKind, TableKind};

/// An entry's place.
pub(super) struct Found {
    pub(super) table: String,
    pub(super) sequence: u64,
}

impl Cloud {
    pub(super) fn find_by_id(&self, table: Option<&str>, id: &str) -> Result<Found, Refusal> {
        if !id.starts_with("rte-") {
            return Err(Refusal::new(400, "InvalidRouteEntry", "Specified routeEntry not exist."));
        }
        self.tables
            .iter()
            .filter(|(name, _)| table.is_none_or(|table| table == name.as_str()))
            .find_map(|(name, table)| {
                let (sequence, _) = table.entries.iter().find(|(_, entry)| entry.id == id)?;
                Some(Found { table: name.clone(), sequence: *sequence })
            })
            .ok_or_else(|| {
                Refusal::new(400, "InvalidRouteEntryId.NotFound", "Specified RouteEntryId does not exist.")
            })
    }

    /// The entry of a table with that destination.
    pub(super) fn find_at(&self, table: &str, destination: &str) -> Result<Found, Refusal> {
        let found = self.table(table)?;
        let destination = read_destination(destination)?;
        let sequence = found.by_destination.get(&destination).ok_or_else(Refusal::no_entry)?;
        Ok(Found { table: table.to_owned(), sequence: *sequence })
    }

    fn find_by_destination(&self, table: &str, destination: &str, hops: &[String]) -> Result<Found, Refusal> {
        let found = self.find_at(table, destination)?;
        let entry = self.entry(&found)?;
        if entry.kind == EntryKind::Custom && !same_hops(&entry.next_hops, hops) {
            return Err(Refusal::no_entry());
        }
        Ok(found)
    }

    /// Refuses a change of an entry that is not a user's, or while something else of the VPC changes.
    pub(super) fn check_changeable(&self, found: &Found) -> Result<(), Refusal> {
        self.check_deletable(found)?;
        self.check_surroundings(found)
    }

    fn entry(&self, found: &Found) -> Result<&Entry, Refusal> {
        self.table(&found.table)?.entries.get(&found.sequence).ok_or_else(Refusal::no_entry)
    }

    fn check_deletable(&self, found: &Found) -> Result<(), Refusal> {
        let table = self.table(&found.table)?;
        if table.kind == TableKind::Gateway {
            return Err(Refusal::new(
                400,
                "OperationDenied.RouteTableTypeNotPermitted",
                "The operation is not allowed because the type of route table is not permitted.",
            ));
        }
        let entry = self.entry(found)?;
        match entry.kind {
            EntryKind::Custom if entry.managed => Err(Refusal::new(
                400,
                "OperationDenied.DeleteManagedRouteEntry",
                "The operation is not allowed because of route entry is managed.",
            )),
            EntryKind::Custom => check_stable(entry.status),
            EntryKind::System => Err(Refusal::new(
                400,
                "OperationDenied",
                "Specified operation is denied as route entry type is system.",
            )),
            EntryKind::Bgp | EntryKind::Cen | EntryKind::Ecr => {
                Err(Refusal::new(400, "Forbbiden", "Specified RouteEntry cannot allowed delete by openApi."))
            }
        }
    }

    /// What else in the VPC is in the way of a deletion.
    fn check_surroundings(&self, found: &Found) -> Result<(), Refusal> {
        self.check_vpc(&self.table(&found.table)?.vpc)?;
        if self.modifying(&found.table) {
            // The vendor's page has this spelling for a deletion beside the right one.
            return Err(Refusal::new(
                400,
                "IncorrcetRouteEntryStatus",
                "Some route entry status blocked this operation.",
            ));
        }
        self.busy(&found.table).map_or(Ok(()), Err)
    }

    fn begin_deletion(&mut self, found: &Found, now: OffsetDateTime) {
        self.remember(&found.table, now);
        if let Some(entry) =
            self.tables.get_mut(&found.table).and_then(|table| table.entries.get_mut(&found.sequence))
        {
            entry.status = EntryStatus::Deleting;
            entry.modified = now;
            self.begin(Unsettled::Entry { table: found.table.clone(), sequence: found.sequence }, now);
        }
    }
}

impl Answers for vpc::DeleteRouteEntry {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let found = match (&self.route_entry_id, &self.route_table_id, &self.destination_cidr_block) {
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
                return Err(ApiError::new(
                    400,
                    "ParamExclusive.RouteEntryIdAndRouteTableIdOrDestCidrBlock",
                    "RouteEntryId cannot be specified together with RouteTableId or DestinationCidrBlock.",
                ));
            }
            (Some(id), None, None) => cloud.find_by_id(None, id)?,
            (None, Some(table), Some(destination)) => {
                let hops: Vec<String> = match (&self.next_hop_id, self.next_hop_list.as_slice()) {
                    (Some(_), [_, ..]) => {
                        return Err(ApiError::new(
                            400,
                            "ParamExclusive.NextHopIdAndList",
                            "NextHopId and NextHopList cannot both be not null.",
                        ));
                    }
                    (Some(id), []) => vec![id.clone()],
                    (None, []) => {
                        cloud.table(table)?;
                        return Err(ApiError::new(
                            400,
                            "InvalidNextHop",
                            "Specified nexthop and nexthop list cannot both null.",
                        ));
                    }
                    (None, list) if !(2..=16).contains(&list.len()) => {
                        return Err(ApiError::new(
                            400,
                            "InvalidNextHopList.Size",
                            "Nexthop list size should be between 2 and 16",
                        ));
                    }
                    (None, list) => list.iter().filter_map(|hop| hop.next_hop_id.clone()).collect(),
                };
                cloud.find_by_destination(table, destination, &hops)?
            }
            (None, ..) => return Err(ApiError::missing_parameter()),
        };
        cloud.check_deletable(&found)?;
        cloud.check_surroundings(&found)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        cloud.begin_deletion(&found, now);
        Ok(vpc::DeleteRouteEntryAnswer { request_id: request_id.to_owned() })
    }
}

fn dry_run() -> ApiError {
    ApiError::new(400, codes::DRY_RUN, "Request validation has been passed with DryRun flag set.")
}

impl Answers for vpc::DeleteRouteEntries {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        check_batch(self.route_entries.iter().map(|item| item.route_table_id.as_ref()))?;
        for item in &self.route_entries {
            let by_destination = item.dst_cidr_block.is_some() && item.next_hop.is_some();
            if item.route_entry_id.is_none() && !by_destination {
                return Err(ApiError::missing_parameter());
            }
            let table = item.route_table_id.as_deref().unwrap_or_default();
            cloud.table(table)?;
            if let Some(refusal) = cloud.batch_busy(table) {
                return Err(refusal.into());
            }
        }
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let mut answer = vpc::DeleteRouteEntriesAnswer {
            request_id: request_id.to_owned(),
            success_count: 0,
            failed_count: 0,
            failed_route_entries: Vec::new(),
        };
        for item in &self.route_entries {
            match delete_item(cloud, item, now) {
                Ok(()) => answer.success_count += 1,
                Err(failure) => {
                    answer.failed_count += 1;
                    answer.failed_route_entries.push(failure);
                }
            }
        }
        Ok(answer)
    }
}

fn delete_item(
    cloud: &mut Cloud,
    item: &vpc::OldRouteEntry,
    now: OffsetDateTime,
) -> Result<(), vpc::FailedRouteEntry> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (id, destination, next_hop) =
        (text(&item.route_entry_id), text(&item.dst_cidr_block), text(&item.next_hop));
    if let Some((failed_code, failed_message)) =
        cloud.take_item_failure(<vpc::DeleteRouteEntries as Request>::ACTION, destination.parse().ok())
    {
        return Err(vpc::FailedRouteEntry {
            route_entry_id: id,
            dst_cidr_block: destination,
            next_hop,
            failed_code,
            failed_message,
        });
    }
    let table = text(&item.route_table_id);
    let found = if id.is_empty() {
        cloud.find_by_destination(&table, &destination, std::slice::from_ref(&next_hop))
    } else {
        cloud.find_by_id(Some(&table), &id)
    };
    let checked = found.and_then(|found| cloud.check_deletable(&found).map(|()| found));
    match checked {
        Ok(found) => {
            cloud.begin_deletion(&found, now);
            Ok(())
        }
        Err(refusal) => Err(refusal.item(&cloud.settings.batch_quota_code, &id, &destination, &next_hop)),
    }
}
