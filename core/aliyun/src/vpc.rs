//! VPC actions, version 2016-04-28: VPCs, vSwitches, route tables and their entries.
//!
//! Field names and the odd wrapper objects (`RouterTableList.RouterTableListType[]`) are the vendor's. In answers, whatever a decision
//! rests on is mandatory: an answer that lacks it is malformed and never read as "none".

mod entries;
mod tables;

use serde::{Deserialize, Serialize};

use crate::request::{item, list_in, request};

pub use entries::*;
pub use tables::*;

/// Entries in one `CreateRouteEntries` or `DeleteRouteEntries` call, at most.
pub const BATCH_LIMIT: usize = 50;
/// `MaxResult` of `DescribeRouteEntryList`, at most.
pub const MAX_RESULT: u32 = 100;
/// `PageSize` of the paged lists, at most.
pub const MAX_PAGE_SIZE: u32 = 50;
/// Custom entries per table unless the account has another quota.
pub const DEFAULT_ENTRY_QUOTA: u32 = 200;

list_in!(in_vpc, "Vpc");
list_in!(in_vswitch, "VSwitch");
list_in!(in_vswitch_id, "VSwitchId");
list_in!(in_secondary_cidr_block, "SecondaryCidrBlock");
list_in!(in_user_cidr, "UserCidr");
list_in!(in_router_table_ids, "RouterTableIds");
list_in!(in_router_table_list_type, "RouterTableListType");
list_in!(in_gateway_ids, "GatewayIds");
list_in!(in_tag, "Tag");

item! {
    /// A tag in a request.
    TagFilter {
        /// Key.
        key: Option<String> = "Key",
        /// Value.
        value: Option<String> = "Value",
    }
}

/// A tag of a VPC object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Tag {
    /// Key.
    pub key: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

request! {
    /// Lists VPCs.
    DescribeVpcs in Vpc -> DescribeVpcsAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// Only these VPCs, separated by commas.
        vpc_id: Option<String> = "VpcId",
        /// Only VPCs of this name.
        vpc_name: Option<String> = "VpcName",
        /// Only default VPCs, or only others.
        is_default: Option<bool> = "IsDefault",
        /// Page, from 1.
        page_number: Option<u32> = "PageNumber",
        /// VPCs per page, 10 unless said, 50 at most.
        page_size: Option<u32> = "PageSize",
    }
}

/// Answer of [`DescribeVpcs`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeVpcsAnswer {
    /// Request.
    pub request_id: String,
    /// All VPCs that match, on all pages.
    pub total_count: u32,
    /// This page.
    pub page_number: u32,
    /// Size of a page.
    pub page_size: u32,
    /// VPCs of this page.
    #[serde(with = "in_vpc")]
    pub vpcs: Vec<Vpc>,
}

/// A VPC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Vpc {
    /// `vpc-…`.
    pub vpc_id: String,
    /// Region.
    pub region_id: String,
    /// `Pending` or `Available`.
    pub status: String,
    /// Name.
    #[serde(default)]
    pub vpc_name: String,
    /// Creation, UTC.
    #[serde(default)]
    pub creation_time: String,
    /// Primary IPv4 range.
    pub cidr_block: String,
    /// IPv6 range, empty if none.
    #[serde(default)]
    pub ipv6_cidr_block: String,
    /// `vrt-…`.
    #[serde(rename = "VRouterId", default)]
    pub vrouter_id: String,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// Whether it is the region's default VPC.
    #[serde(default)]
    pub is_default: bool,
    /// Its vSwitches.
    #[serde(rename = "VSwitchIds", with = "in_vswitch_id", default)]
    pub vswitch_ids: Vec<String>,
    /// Further IPv4 ranges.
    #[serde(with = "in_secondary_cidr_block", default)]
    pub secondary_cidr_blocks: Vec<String>,
    /// Ranges that users declare as theirs.
    #[serde(with = "in_user_cidr", default)]
    pub user_cidrs: Vec<String>,
    /// Its route tables.
    #[serde(with = "in_router_table_ids", default)]
    pub router_table_ids: Vec<String>,
}

request! {
    /// One VPC in full.
    DescribeVpcAttribute in Vpc -> DescribeVpcAttributeAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The VPC.
        vpc_id: String = "VpcId",
    }
}

/// Answer of [`DescribeVpcAttribute`]: the fields of the VPC itself, beside the request ID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeVpcAttributeAnswer {
    /// Request.
    pub request_id: String,
    /// `vpc-…`.
    pub vpc_id: String,
    /// Region.
    pub region_id: String,
    /// `Pending` or `Available`.
    pub status: String,
    /// Name.
    #[serde(default)]
    pub vpc_name: String,
    /// Creation, UTC.
    #[serde(default)]
    pub creation_time: String,
    /// Primary IPv4 range.
    pub cidr_block: String,
    /// IPv6 range, empty if none.
    #[serde(default)]
    pub ipv6_cidr_block: String,
    /// `vrt-…`.
    #[serde(rename = "VRouterId", default)]
    pub vrouter_id: String,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// Whether it is the region's default VPC.
    #[serde(default)]
    pub is_default: bool,
    /// Its vSwitches.
    #[serde(rename = "VSwitchIds", with = "in_vswitch_id", default)]
    pub vswitch_ids: Vec<String>,
    /// Further IPv4 ranges.
    #[serde(with = "in_secondary_cidr_block", default)]
    pub secondary_cidr_blocks: Vec<String>,
    /// Ranges that users declare as theirs.
    #[serde(with = "in_user_cidr", default)]
    pub user_cidrs: Vec<String>,
}

request! {
    /// Lists vSwitches.
    DescribeVSwitches in Vpc -> DescribeVSwitchesAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// Only vSwitches of this VPC.
        vpc_id: Option<String> = "VpcId",
        /// Only these vSwitches, separated by commas.
        vswitch_id: Option<String> = "VSwitchId",
        /// Only vSwitches in this zone.
        zone_id: Option<String> = "ZoneId",
        /// Only vSwitches of this name.
        vswitch_name: Option<String> = "VSwitchName",
        /// Only vSwitches that use this table.
        route_table_id: Option<String> = "RouteTableId",
        /// Page, from 1.
        page_number: Option<u32> = "PageNumber",
        /// vSwitches per page, 10 unless said, 50 at most.
        page_size: Option<u32> = "PageSize",
    }
}

/// Answer of [`DescribeVSwitches`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeVSwitchesAnswer {
    /// Request.
    pub request_id: String,
    /// All vSwitches that match, on all pages.
    pub total_count: u32,
    /// This page.
    pub page_number: u32,
    /// Size of a page.
    pub page_size: u32,
    /// vSwitches of this page.
    #[serde(rename = "VSwitches", with = "in_vswitch")]
    pub vswitches: Vec<VSwitch>,
}

/// A vSwitch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VSwitch {
    /// `vsw-…`.
    #[serde(rename = "VSwitchId")]
    pub vswitch_id: String,
    /// Its VPC.
    pub vpc_id: String,
    /// `Pending` or `Available`.
    pub status: String,
    /// IPv4 range.
    pub cidr_block: String,
    /// IPv6 range, empty if none.
    #[serde(default)]
    pub ipv6_cidr_block: String,
    /// Zone.
    pub zone_id: String,
    /// Addresses that are still free.
    #[serde(default)]
    pub available_ip_address_count: u64,
    /// Name.
    #[serde(rename = "VSwitchName", default)]
    pub vswitch_name: String,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// Creation, UTC.
    #[serde(default)]
    pub creation_time: String,
    /// Whether it is the zone's default vSwitch.
    #[serde(default)]
    pub is_default: bool,
    /// The table by which its packets are routed.
    #[serde(default)]
    pub route_table: VSwitchRouteTable,
}

/// The table of a vSwitch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VSwitchRouteTable {
    /// `vtb-…`.
    pub route_table_id: String,
    /// `System` or `Custom`.
    pub route_table_type: String,
}

request! {
    /// Lists route tables.
    DescribeRouteTableList in Vpc -> DescribeRouteTableListAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// Only tables of this VPC.
        vpc_id: Option<String> = "VpcId",
        /// Only this table.
        route_table_id: Option<String> = "RouteTableId",
        /// Only tables of this name.
        route_table_name: Option<String> = "RouteTableName",
        /// Only `System` or only `Custom` tables.
        route_table_type: Option<String> = "RouteTableType",
        /// `VRouter` or `VBR`.
        router_type: Option<String> = "RouterType",
        /// Only tables of this router.
        router_id: Option<String> = "RouterId",
        /// Only tables of this resource group.
        resource_group_id: Option<String> = "ResourceGroupId",
        /// Page, from 1.
        page_number: Option<u32> = "PageNumber",
        /// Tables per page, 10 unless said, 50 at most.
        page_size: Option<u32> = "PageSize",
        /// Only tables with these tags.
        tags: Vec<TagFilter> = "Tag",
    }
}

/// Answer of [`DescribeRouteTableList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeRouteTableListAnswer {
    /// Request.
    pub request_id: String,
    /// Size of a page.
    pub page_size: u32,
    /// This page.
    pub page_number: u32,
    /// All tables that match, on all pages.
    pub total_count: u32,
    /// Tables of this page.
    #[serde(rename = "RouterTableList", with = "in_router_table_list_type")]
    pub tables: Vec<RouteTable>,
}

/// A route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RouteTable {
    /// `vtb-…`.
    pub route_table_id: String,
    /// Its VPC.
    pub vpc_id: String,
    /// Name.
    #[serde(default)]
    pub route_table_name: String,
    /// `System` or `Custom`.
    pub route_table_type: String,
    /// `VSwitch` or `Gateway`.
    #[serde(default)]
    pub associate_type: String,
    /// `Pending`, `Available` or `Deleting`.
    #[serde(default)]
    pub status: String,
    /// `vrt-…`.
    #[serde(default)]
    pub router_id: String,
    /// `VRouter` or `VBR`.
    #[serde(default)]
    pub router_type: String,
    /// Creation, UTC.
    #[serde(default)]
    pub creation_time: String,
    /// Account.
    #[serde(default)]
    pub owner_id: u64,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// Resource group.
    #[serde(default)]
    pub resource_group_id: String,
    /// Whether dynamic routes enter the table.
    #[serde(default)]
    pub route_propagation_enable: bool,
    /// vSwitches that use the table. An answer without this list is malformed: what it leaves open decides how nodes are routed.
    #[serde(rename = "VSwitchIds", with = "in_vswitch_id")]
    pub vswitch_ids: Vec<String>,
    /// Gateways that use the table.
    #[serde(with = "in_gateway_ids", default)]
    pub gateway_ids: Vec<String>,
    /// Tags.
    #[serde(with = "in_tag", default)]
    pub tags: Vec<Tag>,
}
