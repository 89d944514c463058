//! Route entries: listed, created and deleted, one by one and in batches.

use serde::{Deserialize, Serialize};

use crate::request::{item, list_in, request};

list_in!(in_route_entry, "RouteEntry");
list_in!(in_next_hop, "NextHop");

request! {
    /// Lists the entries of one table.
    DescribeRouteEntryList in Vpc -> DescribeRouteEntryListAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The table.
        route_table_id: String = "RouteTableId",
        /// Only this entry.
        route_entry_id: Option<String> = "RouteEntryId",
        /// Only entries of this name.
        route_entry_name: Option<String> = "RouteEntryName",
        /// Only this destination.
        destination_cidr_block: Option<String> = "DestinationCidrBlock",
        /// Only these destinations, 20 at most.
        dest_cidr_block_list: Vec<String> = "DestCidrBlockList",
        /// `IPv4` or `IPv6`.
        ip_version: Option<String> = "IpVersion",
        /// `Custom`, `System`, `BGP`, `CEN` or `ECR`.
        route_entry_type: Option<String> = "RouteEntryType",
        /// Only entries through this next hop.
        next_hop_id: Option<String> = "NextHopId",
        /// Only entries through this type of next hop.
        next_hop_type: Option<String> = "NextHopType",
        /// Entries per page, 10 unless said; see [`MAX_RESULT`](super::MAX_RESULT).
        max_result: Option<u32> = "MaxResult",
        /// From the page before.
        next_token: Option<String> = "NextToken",
        /// `TR` for entries of a transit router.
        service_type: Option<String> = "ServiceType",
    }
}

/// Answer of [`DescribeRouteEntryList`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeRouteEntryListAnswer {
    /// Request.
    pub request_id: String,
    /// Asks for the next page; empty on the last.
    #[serde(default)]
    pub next_token: String,
    /// All entries that match, on all pages. Older answers lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_count: Option<u32>,
    /// Entries of this page.
    #[serde(rename = "RouteEntrys", with = "in_route_entry")]
    pub entries: Vec<RouteEntry>,
}

/// One row of a route table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RouteEntry {
    /// `rte-…`.
    #[serde(default)]
    pub route_entry_id: String,
    /// Name.
    #[serde(default)]
    pub route_entry_name: String,
    /// Its table.
    pub route_table_id: String,
    /// Destination.
    pub destination_cidr_block: String,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// State.
    pub status: EntryStatus,
    /// `Custom`, `System`, `BGP`, `CEN` or `ECR`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// `IPv4` or `IPv6`.
    #[serde(default)]
    pub ip_version: String,
    /// Last change, UTC.
    #[serde(default)]
    pub gmt_modified: String,
    /// `RoutePropagation`, `SystemCreate` or `CustomCreate`.
    #[serde(default)]
    pub origin: String,
    /// `TR` for entries of a transit router.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_type: String,
    /// Where packets go: one next hop, or several with equal cost.
    #[serde(with = "in_next_hop", default)]
    pub next_hops: Vec<NextHop>,
}

/// State of an entry. Create and delete are asynchronous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub enum EntryStatus {
    /// Being created; carries no packet yet. Some pages of the documentation call it Creating.
    Pending,
    /// In force. Some pages call it Created.
    Available,
    /// Being changed.
    Modifying,
    /// Being deleted; it is gone when it is no longer listed.
    Deleting,
    /// A word that this code does not know.
    Unknown,
}

impl EntryStatus {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Available => "Available",
            Self::Modifying => "Modifying",
            Self::Deleting => "Deleting",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<String> for EntryStatus {
    fn from(word: String) -> Self {
        match word.as_str() {
            "Pending" | "Creating" => Self::Pending,
            "Available" | "Created" => Self::Available,
            "Modifying" => Self::Modifying,
            "Deleting" => Self::Deleting,
            _ => Self::Unknown,
        }
    }
}

impl From<EntryStatus> for &'static str {
    fn from(status: EntryStatus) -> Self {
        status.as_str()
    }
}

/// Where an entry sends packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NextHop {
    /// `i-…`, `eni-…`, …; for system entries it may be empty.
    #[serde(default)]
    pub next_hop_id: String,
    /// `Instance`, `NetworkInterface`, `local`, `service`, …
    #[serde(default)]
    pub next_hop_type: String,
    /// Region, when it is another one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next_hop_region_id: String,
    /// 1 when it takes packets.
    #[serde(default)]
    pub enabled: u32,
    /// Share among several, 0..=255.
    #[serde(default)]
    pub weight: u32,
}

item! {
    /// One of several next hops in a request.
    NextHopSpec {
        /// Type.
        next_hop_type: Option<String> = "NextHopType",
        /// ID.
        next_hop_id: Option<String> = "NextHopId",
        /// Share, 0..=255.
        weight: Option<u32> = "Weight",
    }
}

request! {
    /// Creates one entry.
    CreateRouteEntry in Vpc -> CreateRouteEntryAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The table.
        route_table_id: String = "RouteTableId",
        /// Destination; a bare address is a /32.
        destination_cidr_block: String = "DestinationCidrBlock",
        /// Next hop.
        next_hop_id: Option<String> = "NextHopId",
        /// Its type; `Instance` unless said.
        next_hop_type: Option<String> = "NextHopType",
        /// Several next hops instead of one.
        next_hop_list: Vec<NextHopSpec> = "NextHopList",
        /// Makes a repeated call return the first call's entry.
        client_token: Option<String> = "ClientToken",
        /// Name.
        route_entry_name: Option<String> = "RouteEntryName",
        /// Description.
        description: Option<String> = "Description",
        /// Only check; success answers the error `DryRunOperation`.
        dry_run: Option<bool> = "DryRun",
    }
}

/// Answer of [`CreateRouteEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateRouteEntryAnswer {
    /// Request.
    pub request_id: String,
    /// `rte-…` of the new entry, which is Pending.
    pub route_entry_id: String,
}

request! {
    /// Deletes one entry, by its ID or by table, destination and next hop.
    DeleteRouteEntry in Vpc -> DeleteRouteEntryAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The table.
        route_table_id: Option<String> = "RouteTableId",
        /// Destination.
        destination_cidr_block: Option<String> = "DestinationCidrBlock",
        /// Next hop of an entry with one.
        next_hop_id: Option<String> = "NextHopId",
        /// Next hops of an entry with several.
        next_hop_list: Vec<NextHopSpec> = "NextHopList",
        /// The entry, instead of table and destination.
        route_entry_id: Option<String> = "RouteEntryId",
        /// Only check; success answers the error `DryRunOperation`.
        dry_run: Option<bool> = "DryRun",
    }
}

/// Answer of [`DeleteRouteEntry`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteRouteEntryAnswer {
    /// Request.
    pub request_id: String,
}

request! {
    /// Changes an entry's next hop, name or description. The entry is named by its ID, or by table and destination.
    ModifyRouteEntry in Vpc -> ModifyRouteEntryAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The entry.
        route_entry_id: Option<String> = "RouteEntryId",
        /// The table, without an ID.
        route_table_id: Option<String> = "RouteTableId",
        /// Destination, without an ID.
        destination_cidr_block: Option<String> = "DestinationCidrBlock",
        /// The next hop that it gets.
        new_next_hop_id: Option<String> = "NewNextHopId",
        /// Type of the next hop that it gets.
        new_next_hop_type: Option<String> = "NewNextHopType",
        /// The name that it gets.
        route_entry_name: Option<String> = "RouteEntryName",
        /// The description that it gets.
        description: Option<String> = "Description",
        /// Only check; success answers the error `DryRunOperation`.
        dry_run: Option<bool> = "DryRun",
    }
}

/// Answer of [`ModifyRouteEntry`]. The entry is Modifying, and then Available again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifyRouteEntryAnswer {
    /// Request.
    pub request_id: String,
}

item! {
    /// One entry to create. Its fields are named differently from [`CreateRouteEntry`]'s.
    NewRouteEntry {
        /// The table. The API wants it in every item.
        route_table_id: Option<String> = "RouteTableId",
        /// Destination.
        dst_cidr_block: Option<String> = "DstCidrBlock",
        /// Next hop.
        next_hop: Option<String> = "NextHop",
        /// Its type.
        next_hop_type: Option<String> = "NextHopType",
        /// 4 or 6.
        ip_version: Option<String> = "IpVersion",
        /// Name.
        name: Option<String> = "Name",
        /// Description.
        description: Option<String> = "Description",
    }
}

request! {
    /// Creates up to [`BATCH_LIMIT`](super::BATCH_LIMIT) entries. Succeeds as a call even when single entries fail.
    CreateRouteEntries in Vpc -> CreateRouteEntriesAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The entries.
        route_entries: Vec<NewRouteEntry> = "RouteEntries",
        /// Only check; success answers the error `DryRunOperation`.
        dry_run: Option<bool> = "DryRun",
    }
}

/// Answer of [`CreateRouteEntries`]. Its lists have no wrapper objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CreateRouteEntriesAnswer {
    /// Request.
    pub request_id: String,
    /// Entries accepted.
    pub success_count: u32,
    /// Entries refused.
    pub failed_count: u32,
    /// IDs of the accepted ones.
    #[serde(default)]
    pub route_entry_ids: Vec<String>,
    /// The refused ones.
    #[serde(default)]
    pub failed_route_entries: Vec<FailedRouteEntry>,
}

item! {
    /// One entry to delete.
    OldRouteEntry {
        /// The table.
        route_table_id: Option<String> = "RouteTableId",
        /// The entry, or else the next two.
        route_entry_id: Option<String> = "RouteEntryId",
        /// Destination.
        dst_cidr_block: Option<String> = "DstCidrBlock",
        /// Next hop.
        next_hop: Option<String> = "NextHop",
    }
}

request! {
    /// Deletes up to [`BATCH_LIMIT`](super::BATCH_LIMIT) entries. Succeeds as a call even when single entries fail.
    DeleteRouteEntries in Vpc -> DeleteRouteEntriesAnswer {
        /// Region.
        region_id: Option<String> = "RegionId",
        /// The entries.
        route_entries: Vec<OldRouteEntry> = "RouteEntries",
        /// Only check; success answers the error `DryRunOperation`.
        dry_run: Option<bool> = "DryRun",
    }
}

/// Answer of [`DeleteRouteEntries`]. Its list has no wrapper object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DeleteRouteEntriesAnswer {
    /// Request.
    pub request_id: String,
    /// Entries accepted.
    pub success_count: u32,
    /// Entries refused.
    pub failed_count: u32,
    /// The refused ones.
    #[serde(default)]
    pub failed_route_entries: Vec<FailedRouteEntry>,
}

/// An item of a batch that was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct FailedRouteEntry {
    /// The entry, when the request named it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route_entry_id: String,
    /// Destination.
    #[serde(default)]
    pub dst_cidr_block: String,
    /// Next hop.
    #[serde(default)]
    pub next_hop: String,
    /// Code; see [`crate::codes`] and [`crate::classify`].
    pub failed_code: String,
    /// Sentence for people.
    #[serde(default)]
    pub failed_message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Request};

    #[test]
    fn batch_items_are_numbered_structures() {
        let request = CreateRouteEntries {
            region_id: Some("cn-hangzhou".into()),
            route_entries: vec![
                NewRouteEntry {
                    route_table_id: Some("vtb-1".into()),
                    dst_cidr_block: Some("10.0.1.0/24".into()),
                    next_hop: Some("i-1".into()),
                    next_hop_type: Some("Instance".into()),
                    ip_version: Some("4".into()),
                    ..NewRouteEntry::default()
                };
                12
            ],
            dry_run: Some(true),
        };
        let params = request.to_params();
        assert_eq!(params.get("RouteEntries.12.DstCidrBlock"), Some("10.0.1.0/24"));
        assert_eq!(CreateRouteEntries::from_params(&params).unwrap(), request);
    }

    #[test]
    fn booleans_are_read_in_any_case() {
        let mut params = Params::new();
        params.set("DryRun", "True");
        assert_eq!(DeleteRouteEntries::from_params(&params).unwrap().dry_run, Some(true));
        params.set("DryRun", "perhaps");
        assert_eq!(DeleteRouteEntries::from_params(&params).unwrap_err().code, "InvalidParameter");
    }

    #[test]
    fn a_mandatory_parameter_is_missed() {
        let error = DescribeRouteEntryList::from_params(&Params::new()).unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("MissingParameter", "Miss mandatory parameter.")
        );
    }

    #[test]
    fn answers_are_read_as_captured_from_real_clients() {
        let list: DescribeRouteEntryListAnswer = serde_json::from_str(
            r#"{"RequestId":"R","NextToken":"","RouteEntrys":{"RouteEntry":[{"DestinationCidrBlock":"10.0.1.0/24","Type":"Custom","Status":"Available","RouteTableId":"vtb-1","RouteEntryId":"rte-1","IpVersion":"IPv4","NextHops":{"NextHop":[{"NextHopId":"i-1","NextHopType":"Instance","Enabled":1,"Weight":0}]}}]}}"#,
        )
        .unwrap();
        assert_eq!(list.entries[0].next_hops[0].next_hop_id, "i-1");
        let batch: CreateRouteEntriesAnswer = serde_json::from_str(
            r#"{"RequestId":"R","SuccessCount":1,"FailedCount":1,"RouteEntryIds":["rte-1"],"FailedRouteEntries":[{"DstCidrBlock":"10.0.2.0/24","NextHop":"i-2","FailedCode":"VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE","FailedMessage":"x"}]}"#,
        )
        .unwrap();
        assert_eq!(batch.failed_route_entries[0].next_hop, "i-2");
    }

    #[test]
    fn an_answer_without_its_list_is_malformed_not_empty() {
        assert!(serde_json::from_str::<DescribeRouteEntryListAnswer>(r#"{"RequestId":"R"}"#).is_err());
        assert!(
            serde_json::from_str::<DescribeRouteEntryListAnswer>(r#"{"RequestId":"R","RouteEntrys":{}}"#)
                .is_err()
        );
        assert!(
            serde_json::from_str::<super::super::DescribeRouteTableListAnswer>(
                r#"{"RequestId":"R","PageSize":10,"PageNumber":1,"TotalCount":1}"#
            )
            .is_err()
        );
    }
}
