//! `CreateRouteEntry` and `CreateRouteEntries`.

use ipnet::IpNet;
use loden_aliyun::vpc::{self, EntryStatus};
use loden_aliyun::{ApiError, Params, Request, codes};
use time::OffsetDateTime;

use super::super::api::Answers;
use super::super::{Cloud, Entry, SHARED_RANGE};
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

/// What a client token stands for.
#[derive(Debug)]
pub(in super::super) struct Remembered {
    params: Params,
    entry: String,
}

/// An entry that may be created once it is known that nothing is in its way.
struct Wanted<'a> {
    table: &'a str,
    destination: IpNet,
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
            return Err(Refusal::new(
                400,
                "OperationDenied.GatewayRouteTableNotPermitted",
                "The gateway route table does not support this operation.",
            ));
        }
        let destination = read_destination(destination)?;
        self.check_destination(&found.vpc, destination, batch)?;
        for hop in &next_hops {
            self.check_next_hop(&found.vpc, hop)?;
        }
        check_text(name, 128, "IllegalParam.RouteEntryName")?;
        check_text(description, 256, "IllegalParam.Description")?;
        Ok(Wanted {
            table,
            destination,
            next_hops,
            name: name.cloned().unwrap_or_default(),
            description: description.cloned().unwrap_or_default(),
        })
    }

    /// A destination may not hide what the VPC itself routes. The batch action's page is stricter than the single one's.
    fn check_destination(&self, vpc: &str, destination: IpNet, batch: bool) -> Result<(), Refusal> {
        let refused = |message: String| Err(Refusal::new(400, "InvalidDestinationCidrBlock", message));
        let IpNet::V4(net) = destination else {
            return Err(Refusal::new(
                400,
                "OperationDenied.VpcIpv6NotEnabled",
                "The VPC does not have IPv6 enabled.",
            ));
        };
        if let Ok(shared) = SHARED_RANGE.parse::<IpNet>() {
            let inside = shared.contains(&destination);
            if destination == shared || (inside && !self.settings.allow_inside_shared_range) {
                return refused(format!(
                    "The destination {destination} is in the reserved range {SHARED_RANGE}."
                ));
            }
        }
        let vswitches = self.vpcs.get(vpc).into_iter().flat_map(|vpc| vpc.vswitches.values());
        for vswitch in vswitches {
            let cidr = vswitch.spec.cidr;
            if cidr.contains(&net) {
                return refused(format!(
                    "The destination {destination} is the range of a vSwitch or inside it: {} {cidr}.",
                    vswitch.spec.id
                ));
            }
            if batch && net.contains(&cidr) {
                return refused(format!(
                    "The destination {destination} contains the range of a vSwitch: {} {cidr}.",
                    vswitch.spec.id
                ));
            }
        }
        Ok(())
    }

    fn check_next_hop(&self, vpc: &str, hop: &NextHop) -> Result<(), Refusal> {
        let missing =
            || Refusal::new(404, codes::NEXT_HOP_NOT_FOUND, "The specified next hop id does not exist.");
        if !NEXT_HOP_TYPES.contains(&hop.kind.as_str()) {
            return Err(Refusal::new(400, "InvalidNextHopType", "The specified NextHopType is not valid."));
        }
        let home = match hop.kind.as_str() {
            "Instance" => &self.instances.get(&hop.id).ok_or_else(missing)?.vpc,
            "NetworkInterface" => {
                &self
                    .instances
                    .values()
                    .find(|instance| instance.interfaces.iter().any(|interface| interface.id == hop.id))
                    .ok_or_else(missing)?
                    .vpc
            }
            _ => self
                .vpcs
                .iter()
                .find(|(_, vpc)| {
                    vpc.gateways.iter().any(|known| known.kind == hop.kind && known.id == hop.id)
                })
                .map(|(id, _)| id)
                .ok_or_else(missing)?,
        };
        if home == vpc {
            Ok(())
        } else {
            Err(Refusal::new(
                404,
                "OperationFailed.InstanceDismatchCurrentVpc",
                "The next hop does not belong to the VPC of the route table.",
            ))
        }
    }

    /// The checks against what the table holds now.
    fn check_room(&self, wanted: &Wanted<'_>) -> Result<(), Refusal> {
        let table = self.table(wanted.table)?;
        if let Some(existing) =
            table.by_destination.get(&wanted.destination).and_then(|sequence| table.entries.get(sequence))
        {
            // One on its way out will make room; one on its way in will not.
            return Err(if existing.status == EntryStatus::Deleting {
                Refusal::unstable()
            } else {
                Refusal::duplicate()
            });
        }
        if self.used(table) >= table.quota { Err(Refusal::quota()) } else { Ok(()) }
    }

    fn begin_creation(&mut self, wanted: Wanted<'_>, now: OffsetDateTime) -> Result<String, Refusal> {
        let id = self.draw_id("rte");
        let sequence = self.drawn;
        let delay = self.entry_delay();
        let table = self.tables.get_mut(wanted.table).ok_or_else(Refusal::no_table)?;
        table.by_destination.insert(wanted.destination, sequence);
        table.entries.insert(
            sequence,
            Entry {
                id: id.clone(),
                destination: wanted.destination,
                next_hops: wanted.next_hops,
                kind: EntryKind::Custom,
                status: EntryStatus::Pending,
                modified: now,
                name: wanted.name,
                description: wanted.description,
            },
        );
        self.unsettled.insert((now + delay, sequence), wanted.table.to_owned());
        self.revision += 1;
        // Without a delay the entry is in force before the answer is out.
        self.advance(now);
        Ok(id)
    }
}

fn check_text(text: Option<&String>, longest: usize, code: &'static str) -> Result<(), Refusal> {
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
            "NextHopType and NextHopList cannot be both specified.",
        )),
        (None, []) => Err(Refusal::new(
            400,
            "InvalidNexthopTypeAndList.BothNull",
            "NextHopType and NextHopList cannot be both empty.",
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
        (None, _) => {
            Err(Refusal::new(400, "InvalidNexthopListSize", "The size of NextHopList must be 2 to 16."))
        }
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
        let answer = |id: &str| vpc::CreateRouteEntryAnswer {
            request_id: request_id.to_owned(),
            route_entry_id: id.to_owned(),
        };
        let params = self.to_params();
        if let Some(known) = self.client_token.as_ref().and_then(|token| cloud.client_tokens.get(token)) {
            return if known.params == params {
                Ok(answer(&known.entry))
            } else {
                Err(ApiError::new(
                    400,
                    "IdempotentParameterMismatch",
                    "The specified ClientToken was used with other parameters.",
                ))
            };
        }
        let next_hops = read_next_hops(&self)?;
        let wanted = cloud.check_new(
            &self.route_table_id,
            &self.destination_cidr_block,
            next_hops,
            self.route_entry_name.as_ref(),
            self.description.as_ref(),
            false,
        )?;
        if let Some(refusal) = cloud.busy(&self.route_table_id) {
            return Err(refusal.into());
        }
        cloud.check_room(&wanted)?;
        if self.dry_run == Some(true) {
            return Err(dry_run());
        }
        let id = cloud.begin_creation(wanted, now)?;
        if let Some(token) = self.client_token {
            cloud.client_tokens.insert(token, Remembered { params, entry: id.clone() });
        }
        Ok(answer(&id))
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
    let created = cloud
        .check_new(&table, &destination, hops, item.name.as_ref(), item.description.as_ref(), true)
        .and_then(|wanted| cloud.check_room(&wanted).map(|()| wanted))
        .and_then(|wanted| cloud.begin_creation(wanted, now));
    created.map_err(|refusal| refusal.item(&cloud.settings.batch_quota_code, "", &destination, &next_hop))
}
