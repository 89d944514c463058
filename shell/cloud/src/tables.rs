//! The route controller's port to the cloud, on top of the client.
//!
//! Lists are paged here, and are complete or an error: a token that does not advance, a page that is empty before the end, or fewer entries
//! than the API counts are failures, never shorter lists.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use loden_aliyun::{ecs, quotas, vpc};
use loden_routes::model::{
    EntryRef, EntryStatus, EntryType, Instance, InstanceId, NewEntry, NextHop, RouteEntry, RouteTable,
    TableKind, VSwitchId, VpcId, VpcRouteTableId,
};
use loden_routes::port::{BatchAnswer, Failure, ReadRouteTables, Refusal, WriteRouteTables};

use crate::client::{CallCause, CallError, Client};

/// A list that changes between its pages is read again, this often in all.
const ATTEMPTS: u32 = 3;

/// More pages than this are no list but a loop.
const MOST_PAGES: u32 = 1_000;

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        match &*error.cause {
            CallCause::Api(api) => {
                let mut message = format!("{} ({error:#})", api.message);
                if let Some(remedy) = error.remedy() {
                    message.push_str("; ");
                    message.push_str(&remedy);
                }
                Self::api(api.http_status, &api.code, &message, &api.request_id, api.retry_after)
            }
            CallCause::Transport(_) | CallCause::Malformed(_) => Self::transport(error.to_string()),
            CallCause::Credentials(_) => Self::credentials(error.to_string()),
        }
    }
}

pub(crate) fn incomplete(what: &str) -> Failure {
    Failure::transport(format!(
        "{what} is incomplete: the API gave fewer than it counts, or the same page twice"
    ))
}

impl Client {
    /// The IPv4 ranges of a VPC: the primary one, then the secondary ones. Every vSwitch lies in one of them.
    ///
    /// # Errors
    /// The call failed, or a range in the answer is none.
    pub async fn vpc_cidrs(&self, vpc: &VpcId) -> Result<Vec<IpNet>, Failure> {
        let request = vpc::DescribeVpcAttribute { region_id: None, vpc_id: vpc.to_string() };
        let answer = self.call(&request, vpc.as_str()).await?;
        let range = |text: &String| {
            text.parse::<IpNet>().map_err(|_| {
                Failure::transport(format!(
                    "{text:?}, which the API calls a range of {vpc}, is not in CIDR notation"
                ))
            })
        };
        std::iter::once(&answer.cidr_block).chain(&answer.secondary_cidr_blocks).map(range).collect()
    }

    /// How many custom entries a table has, counted by the API in one call: what its quota is compared with. Listing them takes a call per
    /// hundred.
    ///
    /// # Errors
    /// The call failed, or the answer lacks the count.
    pub async fn custom_entries(&self, vpc: &VpcId, table: &VpcRouteTableId) -> Result<u32, Failure> {
        let request = vpc::GetVpcRouteEntrySummary {
            region_id: None,
            vpc_id: vpc.to_string(),
            route_table_id: Some(table.to_string()),
            route_entry_type: Some("custom".to_owned()),
        };
        let answer = self.call(&request, table.as_str()).await?;
        answer
            .route_entry_summarys
            .iter()
            .filter(|summary| summary.route_table_id == table.as_str())
            .flat_map(|summary| &summary.entry_summarys)
            .find(|count| count.route_entry_type.eq_ignore_ascii_case("custom"))
            .map(|count| count.count)
            .ok_or_else(|| {
                Failure::transport(format!("the API's count of entries of {table} lacks the custom ones"))
            })
    }

    async fn list_entries_once(
        &self,
        table: &VpcRouteTableId,
        destinations: &[IpNet],
    ) -> Result<Option<Vec<RouteEntry>>, Failure> {
        let mut request = vpc::DescribeRouteEntryList {
            route_table_id: table.to_string(),
            dest_cidr_block_list: destinations.iter().map(ToString::to_string).collect(),
            max_result: Some(vpc::MAX_RESULT),
            ..vpc::DescribeRouteEntryList::default()
        };
        // An entry that moved from one page to another is one entry, and does not make up for one that was passed over.
        let mut entries: BTreeMap<(IpNet, String), RouteEntry> = BTreeMap::new();
        let mut without_range = BTreeSet::new();
        let mut tokens = BTreeSet::new();
        loop {
            let answer = self.call(&request, table.as_str()).await?;
            for listed in answer.entries {
                let (id, destination) =
                    (listed.route_entry_id.clone(), listed.destination_cidr_block.clone());
                match read_entry(table, listed) {
                    Some(entry) => _ = entries.insert((entry.destination, id), entry),
                    None => _ = without_range.insert((destination, id)),
                }
            }
            if answer.next_token.is_empty() {
                let counted = answer.total_count.and_then(|count| usize::try_from(count).ok());
                let is_whole = counted.is_none_or(|counted| entries.len() + without_range.len() >= counted);
                return Ok(is_whole.then(|| entries.into_values().collect()));
            }
            if !tokens.insert(answer.next_token.clone()) {
                return Err(incomplete(&format!("the list of route entries of {table}")));
            }
            request.next_token = Some(answer.next_token);
        }
    }

    async fn list_all(
        &self,
        table: &VpcRouteTableId,
        destinations: &[IpNet],
    ) -> Result<Vec<RouteEntry>, Failure> {
        for _ in 0..ATTEMPTS {
            if let Some(entries) = self.list_entries_once(table, destinations).await? {
                return Ok(entries);
            }
        }
        Err(incomplete(&format!("the list of route entries of {table}")))
    }
}

/// An entry in the controller's words. One whose destination is no range (a prefix list, say) has none; it is nobody's conflict, and
/// foreign.
fn read_entry(table: &VpcRouteTableId, entry: vpc::RouteEntry) -> Option<RouteEntry> {
    let destination: IpNet = match entry.destination_cidr_block.parse() {
        Ok(destination) => destination,
        Err(_) => {
            tracing::debug!(%table, destination = entry.destination_cidr_block, "leaving out an entry without a range");
            return None;
        }
    };
    Some(RouteEntry {
        table: table.clone(),
        id: entry.route_entry_id,
        destination: destination.trunc(),
        // Through a box, or each of thousands of entries keeps the room that the larger answer took.
        next_hops: entry
            .next_hops
            .into_iter()
            .map(|hop| NextHop { kind: hop.next_hop_type, id: hop.next_hop_id })
            .collect::<Box<[_]>>()
            .into_vec(),
        status: match entry.status {
            vpc::EntryStatus::Pending => EntryStatus::Pending,
            vpc::EntryStatus::Available => EntryStatus::Available,
            vpc::EntryStatus::Modifying => EntryStatus::Modifying,
            vpc::EntryStatus::Deleting => EntryStatus::Deleting,
            vpc::EntryStatus::Unknown => EntryStatus::Other,
        },
        kind: EntryType::parse(&entry.kind),
        name: entry.route_entry_name,
        description: entry.description,
    })
}

/// An instance in the controller's words. One that is not yet on a vSwitch, or has no interface there, cannot forward packets and is not there yet.
fn read_instance(instance: ecs::Instance) -> Option<Instance> {
    let vswitch = instance.vpc_attributes.vswitch_id;
    let primary = instance.network_interfaces.into_iter().find(|interface| interface.kind == "Primary")?;
    (!vswitch.is_empty()).then_some(Instance {
        id: InstanceId::from(instance.instance_id),
        vswitch: VSwitchId::from(vswitch),
        primary_eni: primary.network_interface_id,
    })
}

fn read_table(table: vpc::RouteTable) -> RouteTable {
    RouteTable {
        id: VpcRouteTableId::from(table.route_table_id),
        kind: if table.route_table_type == "System" { TableKind::System } else { TableKind::Custom },
        gateway: table.associate_type.eq_ignore_ascii_case("gateway"),
        vswitches: table.vswitch_ids.into_iter().map(VSwitchId::from).collect(),
    }
}

fn refusals(failed: Vec<vpc::FailedRouteEntry>, counted: u32, action: &str) -> Result<BatchAnswer, Failure> {
    if usize::try_from(counted).is_ok_and(|counted| counted != failed.len()) {
        return Err(Failure::transport(format!(
            "{action} counts {counted} failures and names {}: look at the table again",
            failed.len()
        )));
    }
    let refused = failed
        .into_iter()
        .map(|item| Refusal {
            destination: item.dst_cidr_block.parse().ok(),
            entry_id: item.route_entry_id,
            next_hop: item.next_hop,
            failure: Failure::item(&item.failed_code, &item.failed_message),
        })
        .collect();
    Ok(BatchAnswer { refused })
}

impl ReadRouteTables for Client {
    async fn has_ipv6(&self, vpc: &VpcId) -> Result<bool, Failure> {
        let request = vpc::DescribeVpcAttribute { region_id: None, vpc_id: vpc.to_string() };
        let answer = self.call(&request, vpc.as_str()).await?;
        Ok(!answer.ipv6_cidr_block.is_empty())
    }

    async fn quota(&self) -> Result<Option<usize>, Failure> {
        let dimension =
            quotas::Dimension { key: Some("regionId".to_owned()), value: Some(self.region().to_owned()) };
        let request = quotas::GetProductQuota {
            product_code: quotas::VPC.to_owned(),
            quota_action_code: quotas::ROUTE_ENTRIES.to_owned(),
            dimensions: vec![dimension],
        };
        let total = self.call(&request, quotas::ROUTE_ENTRIES).await?.quota.total_quota;
        // A whole number on the wire of a type that could be anything.
        Ok(format!("{total:.0}").parse().ok().filter(|_| total >= 1.0))
    }

    async fn list_tables(&self, vpc_id: &VpcId) -> Result<Vec<RouteTable>, Failure> {
        let mut tables: BTreeMap<String, RouteTable> = BTreeMap::new();
        for page_number in 1..=MOST_PAGES {
            let request = vpc::DescribeRouteTableList {
                vpc_id: Some(vpc_id.to_string()),
                page_number: Some(page_number),
                page_size: Some(vpc::MAX_PAGE_SIZE),
                ..vpc::DescribeRouteTableList::default()
            };
            let answer = self.call(&request, vpc_id.as_str()).await?;
            let last = answer.tables.is_empty();
            let more =
                answer.tables.into_iter().map(|table| (table.route_table_id.clone(), read_table(table)));
            tables.extend(more);
            let total = usize::try_from(answer.total_count).unwrap_or(usize::MAX);
            if tables.len() >= total {
                return Ok(tables.into_values().collect());
            }
            if last {
                break;
            }
        }
        Err(incomplete(&format!("the list of route tables of {vpc_id}")))
    }

    async fn list_entries(&self, table: &VpcRouteTableId) -> Result<Vec<RouteEntry>, Failure> {
        self.list_all(table, &[]).await
    }

    async fn read_back(
        &self,
        table: &VpcRouteTableId,
        destinations: &[IpNet],
    ) -> Result<Vec<RouteEntry>, Failure> {
        // Without a filter the API would answer the whole table.
        if destinations.is_empty() { Ok(Vec::new()) } else { self.list_all(table, destinations).await }
    }

    async fn describe_instances(&self, ids: &[InstanceId]) -> Result<Vec<Instance>, Failure> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = ids.iter().map(InstanceId::as_str).collect();
        let request = ecs::DescribeInstances::of(self.region(), &names);
        let found = self.all_instances(request, &names.join(" ")).await?;
        Ok(found.into_iter().filter_map(read_instance).collect())
    }

    async fn source_dest_check_on(&self, enis: &[String]) -> Result<Vec<String>, Failure> {
        if enis.is_empty() {
            return Ok(Vec::new());
        }
        let mut request = ecs::DescribeNetworkInterfaces {
            network_interface_ids: enis.to_vec(),
            max_results: Some(ecs::MAX_RESULTS),
            ..ecs::DescribeNetworkInterfaces::default()
        };
        let mut on: BTreeSet<&String> = enis.iter().collect();
        let mut tokens = BTreeSet::new();
        loop {
            let answer = self.call(&request, &enis.join(" ")).await?;
            for eni in answer.network_interface_sets.iter().filter(|eni| !eni.source_dest_check) {
                on.remove(&eni.network_interface_id);
            }
            if answer.next_token.is_empty() {
                return Ok(on.into_iter().cloned().collect());
            }
            if !tokens.insert(answer.next_token.clone()) {
                return Err(incomplete("the list of network interfaces"));
            }
            request.next_token = Some(answer.next_token);
        }
    }
}

impl WriteRouteTables for Client {
    async fn repoint(&self, entry: &EntryRef, to: &NewEntry) -> Result<(), Failure> {
        let by_destination = entry.id.is_empty();
        let request = vpc::ModifyRouteEntry {
            route_entry_id: Some(entry.id.clone()).filter(|_| !by_destination),
            route_table_id: Some(entry.table.to_string()).filter(|_| by_destination),
            destination_cidr_block: Some(entry.destination.to_string()).filter(|_| by_destination),
            new_next_hop_id: Some(to.instance.to_string()),
            new_next_hop_type: Some("Instance".to_owned()),
            route_entry_name: Some(to.name.clone()),
            description: Some(to.description.clone()),
            ..vpc::ModifyRouteEntry::default()
        };
        self.call(&request, entry.table.as_str()).await?;
        Ok(())
    }

    async fn create_batch(&self, entries: &[NewEntry]) -> Result<BatchAnswer, Failure> {
        let Some(first) = entries.first() else { return Ok(BatchAnswer::default()) };
        let request = vpc::CreateRouteEntries {
            route_entries: entries
                .iter()
                .map(|entry| vpc::NewRouteEntry {
                    route_table_id: Some(entry.table.to_string()),
                    dst_cidr_block: Some(entry.destination.to_string()),
                    next_hop: Some(entry.instance.to_string()),
                    next_hop_type: Some("Instance".to_owned()),
                    ip_version: Some(if entry.destination.addr().is_ipv4() { "4" } else { "6" }.to_owned()),
                    name: Some(entry.name.clone()).filter(|name| !name.is_empty()),
                    description: Some(entry.description.clone()).filter(|text| !text.is_empty()),
                })
                .collect(),
            ..vpc::CreateRouteEntries::default()
        };
        let answer = self.call(&request, first.table.as_str()).await?;
        refusals(answer.failed_route_entries, answer.failed_count, "CreateRouteEntries")
    }

    async fn delete_batch(&self, entries: &[EntryRef]) -> Result<BatchAnswer, Failure> {
        let Some(first) = entries.first() else { return Ok(BatchAnswer::default()) };
        let request = vpc::DeleteRouteEntries {
            route_entries: entries
                .iter()
                .map(|entry| {
                    let table = Some(entry.table.to_string());
                    if !entry.next_hop.id.is_empty() {
                        vpc::OldRouteEntry {
                            route_table_id: table,
                            dst_cidr_block: Some(entry.destination.to_string()),
                            next_hop: Some(entry.next_hop.id.clone()),
                            route_entry_id: None,
                        }
                    } else {
                        vpc::OldRouteEntry {
                            route_table_id: table,
                            route_entry_id: Some(entry.id.clone()),
                            ..vpc::OldRouteEntry::default()
                        }
                    }
                })
                .collect(),
            ..vpc::DeleteRouteEntries::default()
        };
        let answer = self.call(&request, first.table.as_str()).await?;
        refusals(answer.failed_route_entries, answer.failed_count, "DeleteRouteEntries")
    }

    async fn source_dest_check_off(&self, eni: &str) -> Result<(), Failure> {
        let request = ecs::ModifyNetworkInterfaceAttribute {
            network_interface_id: eni.to_owned(),
            source_dest_check: Some(false),
            ..ecs::ModifyNetworkInterfaceAttribute::default()
        };
        self.call(&request, eni).await?;
        Ok(())
    }
}
