//! `DescribeRouteEntryList`: filters and pages.

use std::collections::BTreeMap;

use ipnet::IpNet;
use loden_aliyun::vpc::{self, RouteEntry};
use loden_aliyun::{ApiError, codes, sign};
use time::OffsetDateTime;

use super::super::api::Answers;
use super::super::pages::{self, BadToken};
use super::super::{Cloud, Entry};
use super::read_destination;
use crate::topology::{EntryKind, TableKind};

const DEFAULT_MAX_RESULT: u32 = 10;

fn illegal(code: &'static str, message: &str) -> ApiError {
    ApiError::new(400, code, message)
}

/// The position after which a page starts.
fn read_position(token: &str, filters: &str, lifetime: u64, now: OffsetDateTime) -> Result<u64, ApiError> {
    let wrong = || illegal("IllegalParam.NextToken", "User nextToken is illegal.");
    match pages::read_token(token, filters, lifetime, now) {
        Ok(position) => position.parse().map_err(|_| wrong()),
        Err(BadToken::Wrong) => Err(wrong()),
        Err(BadToken::Expired) => {
            Err(illegal("IllegalParam.NextTokenExpired", "The parameter of NextTokenExpired is illegal."))
        }
    }
}

struct Filter<'a> {
    request: &'a vpc::DescribeRouteEntryList,
    destinations: Vec<IpNet>,
}

impl Filter<'_> {
    fn admits(&self, entry: &Entry) -> bool {
        let request = self.request;
        let is = |filter: &Option<String>, value: &str| filter.as_ref().is_none_or(|filter| filter == value);
        let version = if matches!(entry.destination, IpNet::V4(_)) { "IPv4" } else { "IPv6" };
        is(&request.route_entry_id, &entry.id)
            && is(&request.route_entry_name, &entry.name)
            && is(&request.route_entry_type, entry.kind.as_str())
            && request.ip_version.as_ref().is_none_or(|asked| asked.eq_ignore_ascii_case(version))
            && request.next_hop_id.as_ref().is_none_or(|id| entry.next_hops.iter().any(|hop| hop.id == *id))
            && request
                .next_hop_type
                .as_ref()
                .is_none_or(|kind| entry.next_hops.iter().any(|hop| hop.kind.eq_ignore_ascii_case(kind)))
            && (self.destinations.is_empty() || self.destinations.contains(&entry.destination))
            // No transit router is emulated, so nothing is of its service.
            && request.service_type.is_none()
    }
}

impl Cloud {
    fn check_filters(
        &self,
        request: &vpc::DescribeRouteEntryList,
        entries: &BTreeMap<u64, Entry>,
    ) -> Result<(), ApiError> {
        let kind = request.route_entry_type.as_deref();
        if kind.is_some_and(|kind| !matches!(kind, "Custom" | "System" | "BGP" | "CEN" | "ECR")) {
            return Err(illegal(
                "IllegalParam.RouteEntryType",
                "The parameter of RouteEntryType is illegal.",
            ));
        }
        if request.ip_version.as_deref().is_some_and(|version| {
            !version.eq_ignore_ascii_case("IPv4") && !version.eq_ignore_ascii_case("IPv6")
        }) {
            return Err(illegal("IllegalParam.IpVersion", "Param IpVersion illegal."));
        }
        let of_custom = request.route_entry_name.is_some() || request.route_entry_id.is_some();
        if of_custom && kind.is_some_and(|kind| kind != "Custom") {
            return Err(illegal(
                "OperationFailed.FilterParamUnderWrongRouteType",
                "Operation failed because only custom type support filter by routeEntryId or routeEntryName",
            ));
        }
        if request.dest_cidr_block_list.len() > 20 {
            return Err(illegal(
                "IllegalParam.DestCidrBlockList",
                "At most 20 destinations can be given in DestCidrBlockList.",
            ));
        }
        if let Some(id) = &request.next_hop_id {
            let exists = self.instances.contains_key(id)
                || self
                    .instances
                    .values()
                    .any(|instance| instance.interfaces.iter().any(|eni| eni.id == *id))
                || self.vpcs.values().any(|vpc| vpc.gateways.iter().any(|gateway| gateway.id == *id))
                || entries.values().any(|entry| entry.next_hops.iter().any(|hop| hop.id == *id));
            if !exists {
                return Err(illegal(
                    "InvalidNextHop.NotFound",
                    "The specified route entry nexthop does not exist in our records.",
                ));
            }
        }
        Ok(())
    }
}

impl Answers for vpc::DescribeRouteEntryList {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let table = cloud
            .tables
            .get(&self.route_table_id)
            .ok_or_else(|| illegal(codes::TABLE_NOT_FOUND, "The specified RouteTable was not found."))?;
        if table.kind == TableKind::Gateway {
            return Err(illegal(
                "OperationDenied.UseGatewayRouteEntryQueryInterface",
                "Use listGatewayRouteTableEntries to describe gateway route entries.",
            ));
        }
        let shown = cloud.shown(&self.route_table_id, table, now);
        cloud.check_filters(&self, shown)?;
        let max_result = match self.max_result {
            Some(0) => return Err(ApiError::invalid_parameter("MaxResult")),
            asked => asked.unwrap_or(DEFAULT_MAX_RESULT).min(cloud.settings.max_result),
        };
        let filters = pages::digest(&self);
        let after = match &self.next_token {
            Some(token) => read_position(token, &filters, cloud.settings.next_token_lifetime_s, now)?,
            None => 0,
        };
        let destinations = self
            .dest_cidr_block_list
            .iter()
            .chain(&self.destination_cidr_block)
            .map(|text| read_destination(text))
            .collect::<Result<Vec<_>, _>>()?;
        let filter = Filter { request: &self, destinations };
        let matching: Vec<(u64, &Entry)> = shown
            .iter()
            .filter(|(_, entry)| filter.admits(entry))
            .map(|(sequence, entry)| (*sequence, entry))
            .collect();
        let total_count = u32::try_from(matching.len()).ok();
        let mut rest = matching.into_iter().filter(|(sequence, _)| *sequence > after).peekable();
        let mut entries = Vec::new();
        let mut last = after;
        for (sequence, entry) in rest.by_ref().take(usize::try_from(max_result).unwrap_or(usize::MAX)) {
            last = sequence;
            entries.push(describe(&self.route_table_id, entry));
        }
        let next_token = match rest.peek() {
            Some(_) => pages::write_token(&last.to_string(), &filters, now),
            None => String::new(),
        };
        Ok(vpc::DescribeRouteEntryListAnswer {
            request_id: request_id.to_owned(),
            next_token,
            total_count,
            entries,
        })
    }
}

fn describe(table: &str, entry: &Entry) -> RouteEntry {
    RouteEntry {
        route_entry_id: entry.id.clone(),
        route_entry_name: entry.name.clone(),
        route_table_id: table.to_owned(),
        destination_cidr_block: entry.destination.to_string(),
        description: entry.description.clone(),
        status: entry.status,
        kind: entry.kind.as_str().to_owned(),
        ip_version: if matches!(entry.destination, IpNet::V4(_)) { "IPv4" } else { "IPv6" }.to_owned(),
        gmt_modified: sign::format_date(entry.modified),
        origin: match entry.kind {
            EntryKind::Custom => "CustomCreate",
            EntryKind::System => "SystemCreate",
            EntryKind::Bgp | EntryKind::Cen | EntryKind::Ecr => "RoutePropagation",
        }
        .to_owned(),
        service_type: String::new(),
        next_hops: entry
            .next_hops
            .iter()
            .map(|hop| vpc::NextHop {
                next_hop_id: hop.id.clone(),
                next_hop_type: hop.kind.clone(),
                next_hop_region_id: String::new(),
                enabled: 1,
                weight: hop.weight,
            })
            .collect(),
    }
}
