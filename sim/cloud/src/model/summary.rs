//! `GetVpcRouteEntrySummary`: how many entries of each type the tables of a VPC have.

use std::collections::BTreeMap;

use loden_aliyun::{ApiError, codes, vpc};
use time::OffsetDateTime;

use super::api::Answers;
use super::tables::no_vpc;
use super::{Cloud, Entry};
use crate::topology::EntryKind;

/// The types on the wire, which are spelled differently here than in lists.
const TYPES: &[(&str, Option<EntryKind>)] = &[
    ("all", None),
    ("custom", Some(EntryKind::Custom)),
    ("system", Some(EntryKind::System)),
    ("bgp", Some(EntryKind::Bgp)),
    ("cen", Some(EntryKind::Cen)),
    ("ECR", Some(EntryKind::Ecr)),
];

fn counts(entries: &BTreeMap<u64, Entry>, asked: Option<&str>) -> Vec<vpc::EntryCount> {
    TYPES
        .iter()
        .filter(|(name, _)| asked.is_none_or(|asked| asked.eq_ignore_ascii_case(name)))
        .map(|(name, kind)| {
            let entries = entries.values().filter(|entry| kind.is_none_or(|kind| entry.kind == kind));
            vpc::EntryCount {
                route_entry_type: (*name).to_owned(),
                count: u32::try_from(entries.count()).unwrap_or(u32::MAX),
            }
        })
        .collect()
}

impl Answers for vpc::GetVpcRouteEntrySummary {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        if !cloud.vpcs.contains_key(&self.vpc_id) {
            return Err(no_vpc());
        }
        let asked = self.route_entry_type.as_deref();
        if asked.is_some_and(|asked| !TYPES.iter().any(|(name, _)| asked.eq_ignore_ascii_case(name))) {
            return Err(ApiError::new(
                400,
                "IllegalParam.RouteEntryType",
                "The parameter of RouteEntryType is illegal.",
            ));
        }
        let mut summaries: Vec<vpc::EntrySummary> = cloud
            .tables
            .iter()
            .filter(|(id, table)| {
                table.vpc == self.vpc_id && self.route_table_id.as_ref().is_none_or(|asked| asked == *id)
            })
            .map(|(id, table)| vpc::EntrySummary {
                route_table_id: id.clone(),
                entry_summarys: counts(cloud.shown(id, table, now), asked),
            })
            .collect();
        if summaries.is_empty() {
            return Err(ApiError::new(
                404,
                codes::TABLE_ID_NOT_FOUND,
                "Specified route table does not exist.",
            ));
        }
        let system = cloud.vpcs.get(&self.vpc_id).map(|vpc| vpc.system_table.as_str());
        summaries.sort_by_key(|summary| Some(summary.route_table_id.as_str()) != system);
        Ok(vpc::GetVpcRouteEntrySummaryAnswer {
            request_id: request_id.to_owned(),
            route_entry_summarys: summaries,
        })
    }
}
