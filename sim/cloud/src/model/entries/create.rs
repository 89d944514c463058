//! `CreateRouteEntry` and `CreateRouteEntries`.

use std::collections::BTreeSet;

use loden_aliyun::vpc::{self, EntryStatus};
use loden_aliyun::{ApiError, Request, codes};
use time::OffsetDateTime;

use super::super::api::Answers;
use super::super::{AVAILABLE, Cloud, Entry, Table, Unsettled};
use super::destination::Destination;
use super::{Refusal, read_destination};
use crate::topology::{EntryKind, NextHop, TableKind};

/// Next hop types of the API.
const NEXT_HOP_TYPES: &[&str] = &[
    "Instance",
    "HaVip",
    "RouterInterface",
    "NetworkInterface",
    "VpnGateway",
    "IPv6Gateway",
    "NatGateway",
    "Attachment",
    "VpcPeer",
    "Ipv4Gateway",
    "GatewayEndpoint",
    "Ecr",
    "GatewayLoadBalancerEndpoint",
    "RouteTargetGroup",
];

/// An entry that may be created once it is known that nothing is in its way.
struct Wanted<'a> {
    table: &'a str,
    destination: Destination,
    next_hops: Vec<NextHop>,
    name: String,
    description: String,
}

impl Cloud {
    /// The checks that depend on nothing but the request and what is rarely changed.
    fn check_new<'a>(
        &self,
        table: &'a str,
        destination: &str,
        next_hops: Vec<NextHop>,
        name: Option<&String>,
        description: Option<&String>,
        batch: bool,
    ) -> Result<Wanted<'a>, Refusal> {
        let found = self.table(table)?;
        if found.kind == TableKind::Gateway {
            return Err(if next_hops.len() > 1 {
                Refusal::new(
                    400,
                    "OperationDenied.RouteTableTypeNotPermitted",
                    "The operation is not allowed because the type of route table is not permitted.",
                )
            } else {
                Refusal::new(
                    400,
                    "OperationDenied.GatewayRouteTableNotPermitted",
                    "The operation is not allowed to create a route pointing to this nextHop type on gateway route table.",
                )
            });
        }
        let destination = read_destination(destination)?;
        let destination = self.check_destination(found, destination, batch)?;
        check_distinct(&next_hops)?;
        for hop in &next_hops {
            self.check_next_hop(&found.vpc, hop)?;
        }
        self.check_ipv6(found, destination, &next_hops)?;
        check_text(name, 128, "InvalidRouteEntryName.Malformed")?;
        check_text(description, 256, "InvalidDescription.Malformed")?;
        self.check_states(table, found, &next_hops)?;
        Ok(Wanted {
            table,
            destination,
            next_hops,
            name: name.cloned().unwrap_or_default(),
            description: description.cloned().unwrap_or_default(),
        })
    }

    /// The states of everything that the entry is about.
    fn check_states(&self, id: &str, table: &Table, next_hops: &[NextHop]) -> Result<(), Refusal> {
        self.check_vpc(&table.vpc)?;
        if self.status(id) != AVAILABLE {
            return Err(Refusal::new(
                400,
                "IncorrectStatus.RouteTableStatus",
                "The status of the specified RouteTable is incorrect.",
            ));
        }
        let vswitches = self.vpcs.get(&table.vpc).into_iter().flat_map(|vpc| vpc.vswitches.keys());
        // One that is being bound is a change under way, and told as such.
        if vswitches.into_iter().any(|id| self.statuses.contains_key(id)) {
            return Err(Refusal::new(
                400,
                "IncorrectVSwitchStatus",
                "The current virtual switch status does not support this operation.",
            ));
        }
        next_hops.iter().try_for_each(|hop| self.check_next_hop_state(hop))
    }

    fn check_next_hop_state(&self, hop: &NextHop) -> Result<(), Refusal> {
        let Some(status) = self.statuses.get(&hop.id) else { return Ok(()) };
        match (hop.kind.as_str(), status.as_str()) {
            ("Instance", "Running" | "Stopped") | ("HaVip", "Available" | "InUse") => Ok(()),
            ("Instance", "Locked") => Err(Refusal::new(
                403,
                "IncorrectInstanceStatus",
                "The current status of the resource does not support this operation.",
            )),
            ("HaVip", _) => Err(Refusal::new(
                400,
                "IncorrectHaVipStatus",
                "This operation is denied because satus of the specified HaVip is neither Available nor InUse.",
            )),
            _ => Err(Refusal::new(
                400,
                "IncorrectInstanceStatus",
                "Current instance status does not support this operation.",
            )),
        }
    }

    /// Checks a next hop that an entry of the table is to get.
    pub(super) fn check_new_hop(&self, table: &str, hop: &NextHop) -> Result<(), Refusal> {
        self.check_next_hop(&self.table(table)?.vpc, hop)?;
        self.check_next_hop_state(hop)
    }

    fn check_next_hop(&self, vpc: &str, hop: &NextHop) -> Result<(), Refusal> {
        if !NEXT_HOP_TYPES.contains(&hop.kind.as_str()) {
            return Err(Refusal::new(
                400,
                "InvalidNextHopType",
                "Specified parameter \"NextHopType\" is not valid.",
            ));
        }
        let home = match hop.kind.as_str() {
            "Instance" => {
                if !hop.id.starts_with("i-") {
                    return Err(Refusal::new(
                        400,
                        "IllegalParam.NextHopId",
                        "Instance not exists or not vpc vm.",
                    ));
                }
                let instance = self.instances.get(&hop.id).ok_or_else(|| {
                    Refusal::new(404, codes::INSTANCE_NOT_FOUND, "Specified instance does not exist.")
                })?;
                &instance.vpc
            }
            "NetworkInterface" => {
                let (instance, _) = self.interface(&hop.id).ok_or_else(|| {
                    Refusal::new(404, codes::NEXT_HOP_NOT_FOUND, "Specified next hop does not exist.")
                })?;
                &instance.vpc
            }
            _ => self
                .vpcs
                .iter()
                .find(|(_, vpc)| {
                    vpc.gateways.iter().any(|known| known.kind == hop.kind && known.id == hop.id)
                })
                .map(|(id, _)| id)
                .ok_or_else(|| {
                    Refusal::new(400, "InvalidNextHop.NotFound", "Specified next hop does not exist.")
                })?,
        };
        if home == vpc {
            Ok(())
        } else {
            Err(Refusal::new(
                404,
                "OperationFailed.InstanceDismatchCurrentVpc",
                "The specified instance does not exist in current vpc.",
            ))
        }
    }

    /// The checks against what the table holds now.
    fn check_room(&self, wanted: &Wanted<'_>) -> Result<(), Refusal> {
        let table = self.table(wanted.table)?;
        let destination = wanted.destination.net();
        if let Some(existing) =
            table.by_destination.get(&destination).and_then(|sequence| table.entries.get(sequence))
        {
            return Err(match existing.kind {
                // One on its way out will make room; one on its way in will not.
                EntryKind::Custom if existing.status == EntryStatus::Deleting => Refusal::unstable(),
                EntryKind::Custom => Refusal::duplicate(),
                EntryKind::System => {
                    Refusal::new(400, codes::ENTRY_DUPLICATE, "The route entry already exist.")
                }
                EntryKind::Bgp | EntryKind::Cen | EntryKind::Ecr => {
                    Refusal::new(400, codes::ROUTE_CONFLICT, "Route conflict exists in routing table.")
                }
            });
        }
        if table.prefix_lists.values().flatten().any(|listed| *listed == destination) {
            return Err(Refusal::new(
                400,
                "OperationFailed.CidrConflictWithPrefixList",
                "The specified CIDR block already exists in a prefixList route entry.",
            ));
        }
        self.check_quotas(table, &wanted.next_hops)
    }

    fn check_quotas(&self, table: &Table, next_hops: &[NextHop]) -> Result<(), Refusal> {
        if self.used(table) >= table.quota {
            return Err(Refusal::quota());
        }
        for (kind, quota, code, message) in [
            (
                "HaVip",
                self.settings.ha_vip_quota,
                "QuotaExceeded.HaVipRouteEntry",
                "Vpc havip route entry quota exceed.",
            ),
            (
                "VpnGateway",
                self.settings.vpn_quota,
                "QuotaExceeded.VpnRouteEntry",
                "Vpn route entry quota exceeded.",
            ),
        ] {
            let wanted = next_hops.iter().any(|hop| hop.kind == kind);
            let used = || self.used_by(table, |entry| entry.next_hops.iter().any(|hop| hop.kind == kind));
            if wanted && used() >= quota {
                return Err(Refusal::new(400, code, message));
            }
        }
        Ok(())
    }

    fn begin_creation(&mut self, wanted: Wanted<'_>, now: OffsetDateTime) -> Result<String, Refusal> {
        self.remember(wanted.table, now);
        let id = self.draw_id("rte");
        let sequence = self.drawn;
        let table = self.tables.get_mut(wanted.table).ok_or_else(Refusal::no_table)?;
        let destination = wanted.destination.net();
        table.by_destination.insert(destination, sequence);
        table.entries.insert(
            sequence,
            Entry {
                id: id.clone(),
                destination,
                next_hops: wanted.next_hops,
                kind: EntryKind::Custom,
                status: EntryStatus::Pending,
                modified: now,
                name: wanted.name,
                description: wanted.description,
                managed: false,
                becomes: None,
            },
        );
        self.begin(Unsettled::Entry { table: wanted.table.to_owned(), sequence }, now);
        Ok(id)
    }
}

/// Refuses a list that names a next hop twice.
fn check_distinct(next_hops: &[NextHop]) -> Result<(), Refusal> {
    let distinct: BTreeSet<&str> = next_hops.iter().map(|hop| hop.id.as_str()).collect();
    if distinct.len() == next_hops.len() {
        Ok(())
    } else {
        Err(Refusal::new(400, "Duplicated.VpcNextHop", "Route entry nexthop duplicate."))
    }
}

/// Refuses a name or a description that is too long or looks like an address on the web.
pub(in super::super) fn check_text(
    text: Option<&String>,
    longest: usize,
    code: &'static str,
) -> Result<(), Refusal> {
    let valid = text.is_none_or(|text| {
        text.chars().count() <= longest && !text.starts_with("http://") && !text.starts_with("https://")
    });
    if valid {
        Ok(())
    } else {
        Err(Refusal::new(
            400,
            code,
            format!(
                "At most {longest} characters are allowed, and none that start with http:// or https://."
            ),
        ))
    }
}

/// The next hops of a single creation: one, or a list of 2 to 16.
fn read_next_hops(request: &vpc::CreateRouteEntry) -> Result<Vec<NextHop>, Refusal> {
    let kind = |given: Option<&String>| given.cloned().unwrap_or_else(|| "Instance".to_owned());
    match (&request.next_hop_id, request.next_hop_list.as_slice()) {
        (Some(_), [_, ..]) => Err(Refusal::new(
            400,
            "InvalidNexthopTypeAndList.BothNotNull",
            "both nexthopType and nextHopList are not null.",
        )),
        (None, []) => Err(Refusal::new(
            400,
            "InvalidNexthopTypeAndList.BothNull",
            "both nexthopType and nextHopList are null.",
        )),
        (Some(id), []) => Ok(vec![NextHop::new(kind(request.next_hop_type.as_ref()), id)]),
        (None, list) if (2..=16).contains(&list.len()) => list
            .iter()
            .map(|hop| {
                let id = hop.next_hop_id.as_ref().ok_or_else(|| {
                    Refusal::new(400, "IllegalParam.NextHopId", "The specified NextHopId is not valid.")
                })?;
                Ok(NextHop {
                    kind: kind(hop.next_hop_type.as_ref()),
                    id: id.clone(),
                    weight: hop.weight.unwrap_or(0).min(255),
                })
            })
            .collect(),
        (None, _) => Err(Refusal::new(
            400,
            "InvalidNexthopListSize",
            "nexthop size is illegal. Must be between 2 and 16.",
        )),
    }
}

fn dry_run() -> ApiError {
    ApiError::new(400, codes::DRY_RUN, "Request validation has been passed with DryRun flag set.")
}

impl Answers for vpc::CreateRouteEntry {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let next_hops = read_next_hops(&self)?;
        let wanted = cloud.check_new(
            &self.route_table_id,
            &self.destination_cidr_block,
            next_hops,
            self.route_entry_name.as_ref(),
            self.description.as_ref(),
            false,
        )?;
        if cloud.modifying(&self.route_table_id) {
            return Err(Refusal::unstable().into());
        }
        if let Some(refusal) = cloud.busy(&self.route_table_id) {
            return Err(refusal.into());
        }
        cloud.check_room(&wanted)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let id = cloud.begin_creation(wanted, now)?;
        Ok(vpc::CreateRouteEntryAnswer { request_id: request_id.to_owned(), route_entry_id: id })
    }
}

/// Refuses a batch that is empty, too large, or has an item without a table.
pub(super) fn check_batch<'a>(
    tables: impl ExactSizeIterator<Item = Option<&'a String>>,
) -> Result<(), ApiError> {
    match tables.len() {
        0 => return Err(ApiError::missing_parameter()),
        n if n > vpc::BATCH_LIMIT => {
            return Err(ApiError::new(
                400,
                "IllegalParam.RouteEntries",
                format!("The number of RouteEntries is {n}; at most {} are allowed.", vpc::BATCH_LIMIT),
            ));
        }
        _ => {}
    }
    for table in tables {
        if table.is_none() {
            return Err(ApiError::new(
                400,
                "MissingParam.RouteTableId",
                "The parameter RouteTableId is mandatory.",
            ));
        }
    }
    Ok(())
}

impl Answers for vpc::CreateRouteEntries {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        check_batch(self.route_entries.iter().map(|item| item.route_table_id.as_ref()))?;
        for item in &self.route_entries {
            if item.dst_cidr_block.is_none() || item.next_hop.is_none() || item.next_hop_type.is_none() {
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
        let mut answer = vpc::CreateRouteEntriesAnswer {
            request_id: request_id.to_owned(),
            success_count: 0,
            failed_count: 0,
            route_entry_ids: Vec::new(),
            failed_route_entries: Vec::new(),
        };
        for item in &self.route_entries {
            match create_item(cloud, item, now) {
                Ok(id) => {
                    answer.success_count += 1;
                    answer.route_entry_ids.push(id);
                }
                Err(failure) => {
                    answer.failed_count += 1;
                    answer.failed_route_entries.push(failure);
                }
            }
        }
        Ok(answer)
    }
}

fn create_item(
    cloud: &mut Cloud,
    item: &vpc::NewRouteEntry,
    now: OffsetDateTime,
) -> Result<String, vpc::FailedRouteEntry> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (table, destination, next_hop) =
        (text(&item.route_table_id), text(&item.dst_cidr_block), text(&item.next_hop));
    if let Some((failed_code, failed_message)) =
        cloud.take_item_failure(<vpc::CreateRouteEntries as Request>::ACTION, destination.parse().ok())
    {
        return Err(vpc::FailedRouteEntry {
            dst_cidr_block: destination,
            next_hop,
            failed_code,
            failed_message,
            ..vpc::FailedRouteEntry::default()
        });
    }
    let hops = vec![NextHop::new(text(&item.next_hop_type), next_hop.clone())];
    let created = check_version(item.ip_version.as_deref(), &destination)
        .and_then(|()| {
            cloud.check_new(&table, &destination, hops, item.name.as_ref(), item.description.as_ref(), true)
        })
        .and_then(|wanted| cloud.check_room(&wanted).map(|()| wanted))
        .and_then(|wanted| cloud.begin_creation(wanted, now));
    created.map_err(|refusal| refusal.item(&cloud.settings.batch_quota_code, "", &destination, &next_hop))
}

/// Refuses a destination of another family than the item says.
fn check_version(version: Option<&str>, destination: &str) -> Result<(), Refusal> {
    let fits = match version {
        None => true,
        Some("4") => !destination.contains(':'),
        Some("6") => destination.contains(':'),
        Some(_) => {
            return Err(Refusal::new(400, "IllegalParam.IpVersion", "Param IpVersion illegal."));
        }
    };
    if fits {
        Ok(())
    } else {
        Err(Refusal::new(400, "IllegalParam.CidrBlock", "The specified CidrBlock is illegal."))
    }
}
