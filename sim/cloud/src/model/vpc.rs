//! Lists of VPCs, vSwitches and route tables.

use ipnet::Ipv6Net;
use loden_aliyun::sign::format_date;
use loden_aliyun::{ApiError, vpc};
use time::OffsetDateTime;

use super::api::Answers;
use super::pages::page;
use super::{Cloud, Table, Vpc, count};
use crate::topology::TableKind;

/// Whether `id` is in a list separated by commas; an absent list holds everything.
fn listed(list: Option<&String>, id: &str) -> bool {
    list.is_none_or(|list| list.split(',').any(|item| item.trim() == id))
}

fn equal(filter: Option<&String>, value: &str) -> bool {
    filter.is_none_or(|filter| filter == value)
}

fn text(net: Option<Ipv6Net>) -> String {
    net.map(|net| net.to_string()).unwrap_or_default()
}

/// Whether an object has the tag; a filter without a value takes any.
fn tagged(filter: &vpc::TagFilter, tags: &[vpc::Tag]) -> bool {
    tags.iter().any(|tag| {
        filter.key.as_ref() == Some(&tag.key) && filter.value.as_ref().is_none_or(|value| *value == tag.value)
    })
}

impl Cloud {
    fn describe_vpc(&self, id: &str, vpc: &Vpc) -> vpc::Vpc {
        vpc::Vpc {
            vpc_id: id.to_owned(),
            region_id: self.region.clone(),
            status: self.status(id).to_owned(),
            vpc_name: vpc.name.clone(),
            creation_time: format_date(self.created),
            cidr_block: vpc.cidr.to_string(),
            ipv6_cidr_block: text(vpc.ipv6_cidr),
            vrouter_id: vpc.router.clone(),
            description: String::new(),
            is_default: false,
            vswitch_ids: vpc.vswitches.keys().cloned().collect(),
            secondary_cidr_blocks: vpc.secondary_cidrs.iter().map(ToString::to_string).collect(),
            user_cidrs: Vec::new(),
            router_table_ids: self
                .tables
                .iter()
                .filter(|(_, table)| table.vpc == id)
                .map(|(id, _)| id.clone())
                .collect(),
        }
    }

    fn describe_table(&self, id: &str, table: &Table) -> vpc::RouteTable {
        let vpc = self.vpcs.get(&table.vpc);
        let gateway = table.kind == TableKind::Gateway;
        vpc::RouteTable {
            route_table_id: id.to_owned(),
            vpc_id: table.vpc.clone(),
            route_table_name: table.name.clone(),
            route_table_type: table_type(table.kind).to_owned(),
            associate_type: if gateway { "Gateway" } else { "VSwitch" }.to_owned(),
            status: self.status(id).to_owned(),
            router_id: vpc.map(|vpc| vpc.router.clone()).unwrap_or_default(),
            router_type: "VRouter".to_owned(),
            creation_time: format_date(self.created),
            owner_id: self.account,
            description: table.description.clone(),
            resource_group_id: String::new(),
            route_propagation_enable: true,
            vswitch_ids: self.vswitches_of(id, table),
            gateway_ids: if gateway {
                vpc.into_iter().flat_map(|vpc| &vpc.gateways).map(|gateway| gateway.id.clone()).collect()
            } else {
                Vec::new()
            },
            tags: table
                .tags
                .iter()
                .map(|(key, value)| vpc::Tag { key: key.clone(), value: value.clone() })
                .collect(),
        }
    }
}

const fn table_type(kind: TableKind) -> &'static str {
    match kind {
        TableKind::System => "System",
        TableKind::Custom | TableKind::Gateway => "Custom",
    }
}

impl Answers for vpc::DescribeVpcs {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        _now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let matching: Vec<vpc::Vpc> = cloud
            .vpcs
            .iter()
            .filter(|(id, vpc)| {
                listed(self.vpc_id.as_ref(), id)
                    && equal(self.vpc_name.as_ref(), &vpc.name)
                    && self.is_default != Some(true)
            })
            .map(|(id, vpc)| cloud.describe_vpc(id, vpc))
            .collect();
        let total_count = count(&matching);
        let (vpcs, page_number, page_size) =
            page(matching, self.page_number, self.page_size, vpc::MAX_PAGE_SIZE)?;
        Ok(vpc::DescribeVpcsAnswer {
            request_id: request_id.to_owned(),
            total_count,
            page_number,
            page_size,
            vpcs,
        })
    }
}

impl Answers for vpc::DescribeVpcAttribute {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        _now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let found = cloud.vpcs.get(&self.vpc_id).ok_or_else(|| {
            ApiError::new(
                404,
                "InvalidVpcId.NotFound",
                "Specified value of VpcId is not found in our record.",
            )
        })?;
        let vpc = cloud.describe_vpc(&self.vpc_id, found);
        Ok(vpc::DescribeVpcAttributeAnswer {
            request_id: request_id.to_owned(),
            vpc_id: vpc.vpc_id,
            region_id: vpc.region_id,
            status: vpc.status,
            vpc_name: vpc.vpc_name,
            creation_time: vpc.creation_time,
            cidr_block: vpc.cidr_block,
            ipv6_cidr_block: vpc.ipv6_cidr_block,
            vrouter_id: vpc.vrouter_id,
            description: vpc.description,
            is_default: vpc.is_default,
            vswitch_ids: vpc.vswitch_ids,
            secondary_cidr_blocks: vpc.secondary_cidr_blocks,
            user_cidrs: vpc.user_cidrs,
        })
    }
}

impl Answers for vpc::DescribeVSwitches {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        _now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let mut matching = Vec::new();
        for (vpc_id, vpc) in cloud.vpcs.iter().filter(|(id, _)| equal(self.vpc_id.as_ref(), id)) {
            for (id, vswitch) in &vpc.vswitches {
                let wanted = listed(self.vswitch_id.as_ref(), id)
                    && equal(self.zone_id.as_ref(), &vswitch.spec.zone)
                    && equal(self.vswitch_name.as_ref(), &vswitch.spec.name)
                    && equal(self.route_table_id.as_ref(), &vswitch.table);
                if wanted {
                    matching.push(vpc::VSwitch {
                        vswitch_id: id.clone(),
                        vpc_id: vpc_id.clone(),
                        status: cloud.status(id).to_owned(),
                        cidr_block: vswitch.spec.cidr.to_string(),
                        ipv6_cidr_block: text(vswitch.spec.ipv6_cidr),
                        zone_id: vswitch.spec.zone.clone(),
                        available_ip_address_count: cloud.free_addresses(id, vswitch.spec.cidr.prefix_len()),
                        vswitch_name: vswitch.spec.name.clone(),
                        description: String::new(),
                        creation_time: format_date(cloud.created),
                        is_default: false,
                        route_table: vpc::VSwitchRouteTable {
                            route_table_id: vswitch.table.clone(),
                            route_table_type: if vswitch.table == vpc.system_table {
                                "System"
                            } else {
                                "Custom"
                            }
                            .to_owned(),
                        },
                    });
                }
            }
        }
        let total_count = count(&matching);
        let (vswitches, page_number, page_size) =
            page(matching, self.page_number, self.page_size, vpc::MAX_PAGE_SIZE)?;
        Ok(vpc::DescribeVSwitchesAnswer {
            request_id: request_id.to_owned(),
            total_count,
            page_number,
            page_size,
            vswitches,
        })
    }
}

impl Cloud {
    /// The vendor keeps the first address and the last three of a vSwitch to itself.
    fn free_addresses(&self, vswitch: &str, prefix_length: u8) -> u64 {
        let all = 1_u64 << (32 - u32::from(prefix_length.min(32)));
        let taken = self
            .instances
            .values()
            .flat_map(|instance| &instance.interfaces)
            .filter(|interface| interface.vswitch == vswitch)
            .count();
        all.saturating_sub(4).saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX))
    }
}

impl Answers for vpc::DescribeRouteTableList {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        _now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        if self.route_table_type.as_deref().is_some_and(|kind| !matches!(kind, "System" | "Custom")) {
            return Err(ApiError::invalid_parameter("RouteTableType"));
        }
        if self.router_type.as_deref().is_some_and(|kind| !matches!(kind, "VRouter" | "VBR")) {
            return Err(ApiError::invalid_parameter("RouterType"));
        }
        let mut matching: Vec<vpc::RouteTable> = cloud
            .tables
            .iter()
            .filter(|(id, table)| {
                equal(self.vpc_id.as_ref(), &table.vpc)
                    && equal(self.route_table_id.as_ref(), id)
                    && equal(self.route_table_name.as_ref(), &table.name)
                    && equal(self.route_table_type.as_ref(), table_type(table.kind))
            })
            .map(|(id, table)| cloud.describe_table(id, table))
            .filter(|table| {
                equal(self.router_type.as_ref(), &table.router_type)
                    && equal(self.router_id.as_ref(), &table.router_id)
                    && equal(self.resource_group_id.as_ref(), &table.resource_group_id)
                    && self.tags.iter().all(|filter| tagged(filter, &table.tags))
            })
            .collect();
        matching.sort_by_key(|table| table.route_table_type != "System");
        let total_count = count(&matching);
        let (tables, page_number, page_size) =
            page(matching, self.page_number, self.page_size, vpc::MAX_PAGE_SIZE)?;
        Ok(vpc::DescribeRouteTableListAnswer {
            request_id: request_id.to_owned(),
            page_size,
            page_number,
            total_count,
            tables,
        })
    }
}
