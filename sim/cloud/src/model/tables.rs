//! Route tables made, bound to vSwitches, unbound and deleted.
//!
//! All of it is asynchronous and one change per VPC, as with entries. The vendor documents few of the codes with which these actions refuse;
//! those that are not documented are in the style of the documented ones.

use std::collections::BTreeMap;

use loden_aliyun::vpc::{self, DEFAULT_ENTRY_QUOTA};
use loden_aliyun::{ApiError, codes};
use time::OffsetDateTime;

use super::api::Answers;
use super::entries::{check_text, task_conflict};
use super::{AVAILABLE, Cloud, Table, Unsettled, Vpc};
use crate::topology::{EntryKind, TableKind};

pub(super) fn no_vpc() -> ApiError {
    ApiError::new(404, "InvalidVpcId.NotFound", "Specified VPC does not exist.")
}

fn no_table() -> ApiError {
    ApiError::new(404, codes::TABLE_ID_NOT_FOUND, "Specified route table does not exist.")
}

fn no_vswitch() -> ApiError {
    ApiError::new(404, "InvalidVSwitchId.NotFound", "Specified virtual switch does not exist.")
}

impl Cloud {
    /// Refuses a change of a VPC that is not in a state for one, or in which one is under way.
    fn check_idle(&self, vpc: &str) -> Result<(), ApiError> {
        if self.status(vpc) != AVAILABLE {
            return Err(ApiError::new(
                400,
                "IncorrectVpcStatus",
                "Current VPC status does not support this operation.",
            ));
        }
        let under_way = self
            .unsettled
            .values()
            .any(|change| self.tables.get(change.table()).is_some_and(|table| table.vpc == vpc));
        if self.settings.one_change_per_vpc && under_way { Err(task_conflict().into()) } else { Ok(()) }
    }

    fn table_of_users(&self, id: &str) -> Result<&Table, ApiError> {
        let table = self.tables.get(id).ok_or_else(no_table)?;
        if table.kind == TableKind::System {
            return Err(ApiError::new(
                400,
                "OperationDenied.SystemRouteTable",
                "The system route table cannot be bound, unbound or deleted.",
            ));
        }
        if self.status(id) != AVAILABLE {
            return Err(ApiError::new(
                400,
                "IncorrectStatus.RouteTableStatus",
                "The status of the specified RouteTable is incorrect.",
            ));
        }
        Ok(table)
    }

    /// The VPC of a vSwitch that is in a state for a change.
    fn vswitch_at_rest(&self, id: &str) -> Result<(&str, &Vpc), ApiError> {
        let (vpc_id, vpc) =
            self.vpcs.iter().find(|(_, vpc)| vpc.vswitches.contains_key(id)).ok_or_else(no_vswitch)?;
        if self.status(id) == AVAILABLE {
            Ok((vpc_id, vpc))
        } else {
            Err(ApiError::new(
                400,
                "IncorrectVSwitchStatus",
                "The current virtual switch status does not support this operation.",
            ))
        }
    }
}

fn read_tags(filters: &[vpc::TagFilter]) -> Result<BTreeMap<String, String>, ApiError> {
    if filters.len() > 20 {
        return Err(ApiError::new(400, "QuotaExceeded.TagPerResource", "At most 20 tags are allowed."));
    }
    filters
        .iter()
        .map(|tag| match &tag.key {
            Some(key) if key.chars().count() <= 128 => {
                Ok((key.clone(), tag.value.clone().unwrap_or_default()))
            }
            _ => Err(ApiError::new(400, "InvalidTagKey", "The tag key is empty or too long.")),
        })
        .collect()
}

impl Answers for vpc::CreateRouteTable {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let vpc_id = self
            .vpc_id
            .ok_or_else(|| ApiError::new(400, "MissingParam.vpcId", "The parameter vpcId is mandatory."))?;
        let vpc = cloud.vpcs.get(&vpc_id).ok_or_else(no_vpc)?;
        let kind = match self.associate_type.as_deref() {
            None | Some("VSwitch") => TableKind::Custom,
            Some("Gateway") => TableKind::Gateway,
            Some(_) => return Err(ApiError::invalid_parameter("AssociateType")),
        };
        check_text(self.route_table_name.as_ref(), 128, "InvalidParameter.RouteTableName.Malformed")?;
        check_text(self.description.as_ref(), 256, "InvalidParameter.Description.Malformed")?;
        let tags = read_tags(&self.tags)?;
        cloud.check_idle(&vpc_id)?;
        let same = cloud.tables.values().filter(|table| table.vpc == vpc_id && table.kind == kind).count();
        let gateways = vpc.gateways.iter().filter(|gateway| gateway.kind.ends_with("v4Gateway")).count();
        match kind {
            TableKind::Gateway if same >= gateways.max(1) => {
                return Err(ApiError::new(
                    400,
                    "QuotaExceeded.GatewayRouteTable",
                    "The quota of Gateway Route Table is exceeded.",
                ));
            }
            TableKind::Custom if u32::try_from(same).unwrap_or(u32::MAX) >= vpc.table_quota => {
                return Err(ApiError::new(400, "QuotaExceeded.RouteTable", "VPC RouteTable quota exceeded."));
            }
            _ => {}
        }
        let id = cloud.draw_id("vtb");
        let table = Table {
            vpc: vpc_id,
            name: self.route_table_name.unwrap_or_default(),
            description: self.description.unwrap_or_default(),
            tags,
            kind,
            quota: DEFAULT_ENTRY_QUOTA,
            prefix_lists: BTreeMap::new(),
            entries: BTreeMap::new(),
            past: Vec::new(),
            by_destination: BTreeMap::new(),
        };
        cloud.insert_table(&id, table, now).map_err(|error| {
            // Its ID is new and its entries are the system's, so nothing can be in the way.
            ApiError::new(500, "InternalError", error.to_string())
        })?;
        cloud.begin(Unsettled::NewTable { table: id.clone() }, now);
        Ok(vpc::CreateRouteTableAnswer { request_id: request_id.to_owned(), route_table_id: id })
    }
}

impl Answers for vpc::DeleteRouteTable {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let id = self.route_table_id;
        let table = cloud.table_of_users(&id)?;
        let vpc = table.vpc.clone();
        if !cloud.vswitches_of(&id, table).is_empty() {
            return Err(ApiError::new(
                400,
                "DependencyViolation.VSwitch",
                "The route table is bound to a virtual switch.",
            ));
        }
        if table.entries.values().any(|entry| entry.kind == EntryKind::Custom) {
            return Err(ApiError::new(
                400,
                "DependencyViolation.RouteEntry",
                "The route table has custom route entries.",
            ));
        }
        cloud.check_idle(&vpc)?;
        cloud.begin(Unsettled::OldTable { table: id }, now);
        Ok(vpc::DeleteRouteTableAnswer { request_id: request_id.to_owned() })
    }
}

impl Answers for vpc::AssociateRouteTable {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let table = cloud.table_of_users(&self.route_table_id)?;
        if table.kind == TableKind::Gateway {
            return Err(ApiError::new(
                400,
                "OperationDenied.RouteTableTypeNotPermitted",
                "The operation is not allowed because the type of route table is not permitted.",
            ));
        }
        let home = table.vpc.clone();
        cloud.check_idle(&home)?;
        let (vpc_id, vpc) = cloud.vswitch_at_rest(&self.vswitch_id)?;
        if vpc_id != home {
            return Err(ApiError::new(
                400,
                "InvalidVSwitchId.VpcMismatch",
                "The virtual switch and the route table are not of one VPC.",
            ));
        }
        let bound = vpc.vswitches.get(&self.vswitch_id).map(|vswitch| vswitch.table.as_str());
        if bound != Some(vpc.system_table.as_str()) {
            return Err(ApiError::new(
                400,
                "OperationDenied.VSwitchAlreadyBound",
                "The virtual switch is bound to a custom route table; unbind it first.",
            ));
        }
        cloud.begin(Unsettled::Binding { vswitch: self.vswitch_id, table: self.route_table_id }, now);
        Ok(vpc::AssociateRouteTableAnswer { request_id: request_id.to_owned() })
    }
}

impl Answers for vpc::UnassociateRouteTable {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let home = cloud.table_of_users(&self.route_table_id)?.vpc.clone();
        cloud.check_idle(&home)?;
        let (_, vpc) = cloud.vswitch_at_rest(&self.vswitch_id)?;
        let bound = vpc.vswitches.get(&self.vswitch_id).map(|vswitch| vswitch.table.as_str());
        if bound != Some(self.route_table_id.as_str()) {
            return Err(ApiError::new(
                400,
                "OperationDenied.VSwitchNotBound",
                "The virtual switch is not bound to the route table.",
            ));
        }
        let table = vpc.system_table.clone();
        cloud.begin(Unsettled::Binding { vswitch: self.vswitch_id, table }, now);
        Ok(vpc::UnassociateRouteTableAnswer { request_id: request_id.to_owned() })
    }
}
