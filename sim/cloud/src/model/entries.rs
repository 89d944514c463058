//! Route entries: listing them, and the rules by which they come and go.
//!
//! The single and the batch actions share one set of checks; the batch translates three of the codes into those that its own
//! documentation names, and keeps the single action's code where there is none.

mod create;
mod delete;
mod destination;
mod list;
mod modify;

use std::net::IpAddr;

use ipnet::IpNet;
use loden_aliyun::vpc::{EntryStatus, FailedRouteEntry};
use loden_aliyun::{ApiError, codes};

use super::{AVAILABLE, Cloud, Table, Unsettled};
use crate::topology::NextHop;

pub(super) use create::check_text;

/// A refusal before it is known whether it answers a call or an item of a batch.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn no_table() -> Self {
        Self::new(404, codes::TABLE_ID_NOT_FOUND, "Specified route table does not exist.")
    }

    fn no_entry() -> Self {
        Self::new(400, codes::ENTRY_NOT_FOUND, "Route entry not exists.")
    }

    fn unstable() -> Self {
        Self::new(400, codes::INCORRECT_ENTRY_STATUS, "Some route entry status blocked this operation.")
    }

    fn duplicate() -> Self {
        Self::new(400, codes::CIDR_DUPLICATE, "Specified CIDR block is already exists.")
    }

    fn quota() -> Self {
        Self::new(400, codes::QUOTA_EXCEEDED, "Route entry quota exceeded in this route table.")
    }

    /// As an item of a batch.
    fn item(
        self,
        batch_quota_code: &str,
        entry_id: &str,
        destination: &str,
        next_hop: &str,
    ) -> FailedRouteEntry {
        let (code, message) = match self.code {
            codes::CIDR_DUPLICATE => (
                codes::BATCH_CIDR_DUPLICATE,
                format!("Specified CIDR block is already exists, entry.cidrBlock={destination}"),
            ),
            codes::INCORRECT_ENTRY_STATUS | codes::ENTRY_STATUS => (codes::BATCH_STATUS_ERROR, self.message),
            codes::ENTRY_NOT_FOUND | "InvalidRouteEntryId.NotFound" => {
                (codes::BATCH_NOT_EXIST, "vRouterEntry not exists".to_owned())
            }
            codes::QUOTA_EXCEEDED => (batch_quota_code, self.message),
            other => (other, self.message),
        };
        FailedRouteEntry {
            route_entry_id: entry_id.to_owned(),
            dst_cidr_block: destination.to_owned(),
            next_hop: next_hop.to_owned(),
            failed_code: code.to_owned(),
            failed_message: message,
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.status, refusal.code, refusal.message)
    }
}

/// Reads a destination: a network without host bits, or a bare address.
fn read_destination(text: &str) -> Result<IpNet, Refusal> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let net: IpNet = text
        .parse()
        .map_err(|_| Refusal::new(400, "InvalidCidrBlock.Malformed", "Specified CIDR block is not valid."))?;
    if net.trunc() == net {
        Ok(net)
    } else {
        Err(Refusal::new(400, "InvalidCidrBlock", "Specified CIDR block is not valid."))
    }
}

impl Cloud {
    fn table(&self, id: &str) -> Result<&Table, Refusal> {
        self.tables.get(id).ok_or_else(Refusal::no_table)
    }

    /// Refuses a change of a table's entries while the VPC is not in a state for one.
    fn check_vpc(&self, vpc: &str) -> Result<(), Refusal> {
        match self.status(vpc) {
            AVAILABLE => Ok(()),
            // It cannot be found by users any more, though its table is still there.
            "Deleting" => {
                Err(Refusal::new(404, "InvalidVpc.NotFound", "Specified vpc is not found in our record."))
            }
            _ => Err(Refusal::new(
                400,
                "IncorrectVpcStatus",
                "Current VPC status does not support this operation.",
            )),
        }
    }

    /// Whether a change of `table` must wait for another one of the same VPC.
    fn busy(&self, table_id: &str) -> Option<Refusal> {
        if !self.settings.one_change_per_vpc {
            return None;
        }
        let vpc = &self.tables.get(table_id)?.vpc;
        let mut unsettled = self
            .unsettled
            .values()
            .filter(|other| self.tables.get(other.table()).is_some_and(|other| other.vpc == *vpc))
            .peekable();
        unsettled.peek()?;
        let same_table =
            |change: &Unsettled| matches!(change, Unsettled::Entry { table, .. } if table == table_id);
        Some(if unsettled.any(same_table) { Refusal::unstable() } else { task_conflict() })
    }

    /// Whether an entry of the table is being modified, which no delay ends.
    fn modifying(&self, table: &str) -> bool {
        self.tables
            .get(table)
            .is_some_and(|table| table.entries.values().any(|entry| entry.status == EntryStatus::Modifying))
    }

    /// Whether any change of the table's VPC is under way; the batch actions answer nothing more precise.
    fn batch_busy(&self, table_id: &str) -> Option<Refusal> {
        self.busy(table_id).map(|_| task_conflict())
    }
}

pub(super) fn task_conflict() -> Refusal {
    Refusal::new(
        400,
        codes::TASK_CONFLICT,
        "The operation is too frequent, please wait a moment and try again.",
    )
}

/// Refuses to touch an entry that is on its way from one state to another.
fn check_stable(status: EntryStatus) -> Result<(), Refusal> {
    match status {
        EntryStatus::Available => Ok(()),
        EntryStatus::Modifying => {
            Err(Refusal::new(400, codes::ENTRY_STATUS, "The status of the specified routeEntry is invalid."))
        }
        _ => Err(Refusal::unstable()),
    }
}

/// Whether two sets of next hops name the same things.
fn same_hops(entry: &[NextHop], asked: &[String]) -> bool {
    let mut have: Vec<&str> = entry.iter().map(|hop| hop.id.as_str()).collect();
    let mut want: Vec<&str> = asked.iter().map(String::as_str).collect();
    have.sort_unstable();
    want.sort_unstable();
    have == want
}
