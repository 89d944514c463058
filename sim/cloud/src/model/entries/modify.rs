//! `ModifyRouteEntry`: an entry gets another next hop, name or description.
//!
//! Packets follow the old next hop until the change has settled. The vendor does not say when they turn; this way a client that takes
//! the change for done too early is found out.

use loden_aliyun::vpc::{self, EntryStatus};
use loden_aliyun::{ApiError, codes};
use time::OffsetDateTime;

use super::super::api::Answers;
use super::super::{Becoming, Cloud, Unsettled};
use super::check_text;
use super::delete::Found;
use crate::topology::NextHop;

impl Answers for vpc::ModifyRouteEntry {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let found = match (&self.route_entry_id, &self.route_table_id, &self.destination_cidr_block) {
            (Some(id), table, _) => cloud.find_by_id(table.as_deref(), id)?,
            (None, Some(table), Some(destination)) => cloud.find_at(table, destination)?,
            (None, ..) => return Err(ApiError::missing_parameter()),
        };
        cloud.check_changeable(&found)?;
        let next_hop = match (self.new_next_hop_id, self.new_next_hop_type) {
            (None, None) => None,
            (Some(id), kind) => {
                let hop = NextHop { kind: kind.unwrap_or_else(|| "Instance".to_owned()), id, weight: 0 };
                cloud.check_new_hop(&found.table, &hop)?;
                Some(hop)
            }
            (None, Some(_)) => return Err(ApiError::missing_parameter()),
        };
        check_text(self.route_entry_name.as_ref(), 128, "InvalidRouteEntryName.Malformed")?;
        check_text(self.description.as_ref(), 256, "InvalidDescription.Malformed")?;
        if self.dry_run == Some(true) {
            return Err(ApiError::new(
                400,
                codes::DRY_RUN,
                "Request validation has been passed with DryRun flag set.",
            ));
        }
        let becoming = Becoming { next_hop, name: self.route_entry_name, description: self.description };
        cloud.begin_change(&found, becoming, now);
        Ok(vpc::ModifyRouteEntryAnswer { request_id: request_id.to_owned() })
    }
}

impl Cloud {
    fn begin_change(&mut self, found: &Found, becoming: Becoming, now: OffsetDateTime) {
        self.remember(&found.table, now);
        let table = self.tables.get_mut(&found.table);
        if let Some(entry) = table.and_then(|table| table.entries.get_mut(&found.sequence)) {
            entry.status = EntryStatus::Modifying;
            entry.becomes = Some(becoming);
            entry.modified = now;
            self.begin(Unsettled::Entry { table: found.table.clone(), sequence: found.sequence }, now);
        }
    }
}
