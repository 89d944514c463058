//! Route tables made, bound and taken away, and how full they are.

use serde::{Deserialize, Serialize};

use super::TagFilter;
use crate::request::request;

/// Custom tables in one VPC unless the account has another quota.
pub const DEFAULT_TABLE_QUOTA: u32 = 9;

request! {
    /// Makes a custom route table.
    CreateRouteTable in Vpc -> CreateRouteTableAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The VPC. The API wants it, and has a code of its own for its absence.
        vpc_id: Option<String> = "VpcId",
        /// Name, 128 characters at most.
        route_table_name: Option<String> = "RouteTableName",
        /// Description, 256 characters at most.
        description: Option<String> = "Description",
        /// `VSwitch` (unless said) or `Gateway`.
        associate_type: Option<String> = "AssociateType",
        /// Makes a repeated call return the first call's table.
        client_token: Option<String> = "ClientToken",
        /// Tags of the new table, 20 at most.
        tags: Vec<TagFilter> = "Tag",
    }
}

/// Answer of [`CreateRouteTable`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateRouteTableAnswer {
    /// Request.
    pub request_id: String,
    /// `vtb-…` of the new table, which is Pending.
    pub route_table_id: String,
}

request! {
    /// Takes a custom route table away that no vSwitch uses and that holds no custom entry.
    DeleteRouteTable in Vpc -> DeleteRouteTableAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The table.
        route_table_id: String = "RouteTableId",
    }
}

/// Answer of [`DeleteRouteTable`]; the table is Deleting until it is no longer listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteRouteTableAnswer {
    /// Request.
    pub request_id: String,
}

request! {
    /// Binds a vSwitch to a custom table of its VPC. The vSwitch is Pending until that is done.
    AssociateRouteTable in Vpc -> AssociateRouteTableAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The table.
        route_table_id: String = "RouteTableId",
        /// The vSwitch.
        vswitch_id: String = "VSwitchId",
        /// Makes a repeated call one change.
        client_token: Option<String> = "ClientToken",
    }
}

/// Answer of [`AssociateRouteTable`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AssociateRouteTableAnswer {
    /// Request.
    pub request_id: String,
}

request! {
    /// Unbinds a vSwitch from its custom table, so that it uses the system table again.
    UnassociateRouteTable in Vpc -> UnassociateRouteTableAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The table.
        route_table_id: String = "RouteTableId",
        /// The vSwitch.
        vswitch_id: String = "VSwitchId",
        /// Makes a repeated call one change.
        client_token: Option<String> = "ClientToken",
    }
}

/// Answer of [`UnassociateRouteTable`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UnassociateRouteTableAnswer {
    /// Request.
    pub request_id: String,
}

request! {
    /// Counts the entries of a VPC's tables, which is cheaper than listing them.
    GetVpcRouteEntrySummary in Vpc -> GetVpcRouteEntrySummaryAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The VPC.
        vpc_id: String = "VpcId",
        /// Only this table.
        route_table_id: Option<String> = "RouteTableId",
        /// Only entries of this type; see [`EntryCount::route_entry_type`].
        route_entry_type: Option<String> = "RouteEntryType",
    }
}

/// Answer of [`GetVpcRouteEntrySummary`]. Its lists have no wrapper objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct GetVpcRouteEntrySummaryAnswer {
    /// Request.
    pub request_id: String,
    /// One per table.
    pub route_entry_summarys: Vec<EntrySummary>,
}

/// The counts of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EntrySummary {
    /// The table.
    pub route_table_id: String,
    /// One per type of entry.
    pub entry_summarys: Vec<EntryCount>,
}

/// How many entries of a type a table has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct EntryCount {
    /// `all`, `custom`, `system`, `bgp`, `cen` or `ECR`.
    pub route_entry_type: String,
    /// Entries.
    pub count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Request};

    #[test]
    fn requests_survive_the_wire() {
        let request = CreateRouteTable {
            vpc_id: Some("vpc-1".into()),
            associate_type: Some("VSwitch".into()),
            client_token: Some("once".into()),
            tags: vec![TagFilter { key: Some("k".into()), value: None }],
            ..CreateRouteTable::default()
        };
        let params = request.to_params();
        assert_eq!(params.get("Tag.1.Key"), Some("k"));
        assert_eq!(CreateRouteTable::from_params(&params).unwrap(), request);
        let missed = AssociateRouteTable::from_params(&Params::new()).unwrap_err();
        assert_eq!(missed.code, "MissingParameter");
    }

    #[test]
    fn counts_are_read_as_the_vendors_model_spells_them() {
        let answer: GetVpcRouteEntrySummaryAnswer = serde_json::from_str(
            r#"{"RequestId":"R","RouteEntrySummarys":[{"RouteTableId":"vtb-1","EntrySummarys":[{"RouteEntryType":"custom","Count":3}]}]}"#,
        )
        .unwrap();
        assert_eq!(answer.route_entry_summarys[0].entry_summarys[0].count, 3);
        assert!(serde_json::from_str::<GetVpcRouteEntrySummaryAnswer>(r#"{"RequestId":"R"}"#).is_err());
    }
}
