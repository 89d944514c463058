//! The port to the cloud: what the controller asks of a VPC, in its own words.
//!
//! The invariant: an answer is complete or it is an error. A listing of which one page failed, or was cut short, must never come back as a
//! shorter listing: the controller would take the missing entries for removed ones.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::{
    EntryRef, Instance, InstanceId, NewEntry, RouteEntry, RouteTable, VpcId, VpcRouteTableId,
};

/// The most entries that one `CreateRouteEntries` or `DeleteRouteEntries` takes.
pub const BATCH_LIMIT: usize = 50;

/// The most destinations that one filtered `DescribeRouteEntryList` (`DestCidrBlockList`) takes.
pub const FILTER_LIMIT: usize = 20;

/// The most instances that one `DescribeInstances` takes.
pub const INSTANCES_LIMIT: usize = 100;

/// Reading a VPC. A dry run holds nothing more than this.
pub trait ReadRouteTables {
    /// Every route table of the VPC, all pages.
    fn list_tables(&self, vpc: &VpcId) -> impl Future<Output = Result<Vec<RouteTable>, Failure>> + Send;

    /// Every entry of the table, of every type and next-hop type, all pages.
    fn list_entries(
        &self,
        table: &VpcRouteTableId,
    ) -> impl Future<Output = Result<Vec<RouteEntry>, Failure>> + Send;

    /// Every entry of the table that has one of these destinations (at most [`FILTER_LIMIT`]); a destination without an entry is simply
    /// absent from the answer.
    fn read_back(
        &self,
        table: &VpcRouteTableId,
        destinations: &[IpNet],
    ) -> impl Future<Output = Result<Vec<RouteEntry>, Failure>> + Send;

    /// The instances among `ids` (at most [`INSTANCES_LIMIT`]) that exist.
    fn describe_instances(
        &self,
        ids: &[InstanceId],
    ) -> impl Future<Output = Result<Vec<Instance>, Failure>> + Send;

    /// The network interfaces among `enis` (at most [`INSTANCES_LIMIT`]) whose source/destination check is on.
    fn source_dest_check_on(
        &self,
        enis: &[String],
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send;
}

/// Writing a VPC's route tables.
pub trait WriteRouteTables: ReadRouteTables {
    /// Creates up to [`BATCH_LIMIT`] entries, all of one table. The answer lists what was refused, item by item; creation of the others has
    /// *begun*.
    fn create_batch(&self, entries: &[NewEntry])
    -> impl Future<Output = Result<BatchAnswer, Failure>> + Send;

    /// Deletes up to [`BATCH_LIMIT`] entries, all of one table.
    fn delete_batch(&self, entries: &[EntryRef])
    -> impl Future<Output = Result<BatchAnswer, Failure>> + Send;

    /// Switches the source/destination check of a network interface off, so that packets with pods' addresses pass it.
    fn source_dest_check_off(&self, eni: &str) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What a batch call answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchAnswer {
    /// The items that were refused. Empty: all went through.
    pub refused: Vec<Refusal>,
}

/// One refused item of a batch. The API names it by destination and next hop only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `DstCidrBlock`; `None` when the answer does not carry it (a delete by ID).
    pub destination: Option<IpNet>,
    /// `RouteEntryId`, or empty.
    pub entry_id: String,
    /// `NextHop`, or empty.
    pub next_hop: String,
    /// `FailedCode` and `FailedMessage`.
    pub failure: Failure,
}

/// Why a call, or an item of a batch, failed: in the API's words, with our reading of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub class: FailureClass,
    /// The API's code (`TaskConflict`), or a word of our own for a failure below the API (`Transport`).
    pub code: String,
    /// The API's message, or the transport's.
    pub message: String,
    /// `RequestId`, or empty.
    pub request_id: String,
    /// `x-acs-retry-after`, where the answer had it.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if !self.request_id.is_empty() {
            write!(f, " (request {})", self.request_id)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// What a failure asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureClass {
    /// Too many calls: slow down.
    Throttled,
    /// Another change of this VPC is under way: come back in a moment.
    Busy,
    /// The table is full.
    Quota,
    /// The destination is already there, pointing who knows where: look at the table again.
    Duplicate,
    /// What was named does not exist (any more).
    NotFound,
    /// Credentials or permissions are wrong: a person has to act.
    Denied,
    /// This request can never succeed as it stands.
    Invalid,
    /// The network or the service failed; whether the request was carried out is unknown.
    Transient,
}

impl Failure {
    /// A failure that the API answered with.
    #[must_use]
    pub fn api(
        http_status: u16,
        code: &str,
        message: &str,
        request_id: &str,
        retry_after: Option<Duration>,
    ) -> Self {
        let class = if retry_after.is_some() { FailureClass::Throttled } else { classify(http_status, code) };
        Self {
            class,
            code: code.to_owned(),
            message: message.to_owned(),
            request_id: request_id.to_owned(),
            retry_after,
        }
    }

    /// An item's `FailedCode`.
    #[must_use]
    pub fn item(code: &str, message: &str) -> Self {
        Self::api(200, code, message, "", None)
    }

    /// A failure below the API: no connection, no answer, an answer that cannot be read.
    #[must_use]
    pub fn transport(message: impl Into<String>) -> Self {
        Self {
            class: FailureClass::Transient,
            code: "Transport".to_owned(),
            message: message.into(),
            request_id: String::new(),
            retry_after: None,
        }
    }

    /// No credentials to sign with.
    #[must_use]
    pub fn credentials(message: impl Into<String>) -> Self {
        Self { class: FailureClass::Denied, code: "Credentials".to_owned(), ..Self::transport(message) }
    }
}

/// Reads an error code as the VPC and ECS APIs document them, misspellings included.
#[must_use]
pub fn classify(http_status: u16, code: &str) -> FailureClass {
    const BUSY: [&str; 14] = [
        "TaskConflict",
        "OperationConflict",
        "IncorrectRouteEntryStatus",
        "IncorrcetRouteEntryStatus",
        "IncorrectStatus.VpcRouteEntry",
        "IncorrectStatus.RouteTableStatus",
        "IncorrectVpcStatus",
        "IncorrectVSwitchStatus",
        "IncorrectHaVipStatus",
        "IncorrectInstanceStatus",
        "LastTokenProcessing",
        "OperationFailed.DistibuteLock",
        "VPC_ROUTE_ENTRY_STATUS_ERROR",
        "InvalidOperation.Conflict",
    ];
    const DUPLICATE: [&str; 5] = [
        "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE",
        "InvalidCIDRBlock.Duplicate",
        "InvalidRouteEntry.Duplicate",
        "RouteConflict.AlreadyExist",
        "RouterEntryConflict.Duplicated",
    ];
    const GONE: [&str; 3] =
        ["VPC_ROUTER_ENTRY_NOT_EXIST", "InvalidRouteEntry.NotFound", "InvalidRouteEntryId.NotFound"];
    const SYSTEM: [&str; 5] =
        ["ServiceUnavailable", "SystemBusy", "UnknownError", "InternalError", "VPC.ERROR"];
    const DENIED: [&str; 10] = [
        "SignatureDoesNotMatch",
        "IncompleteSignature",
        "SignatureNonceUsed",
        "InvalidTimeStamp",
        "InvalidAccessKeyId",
        "InvalidSecurityToken",
        "MissingSecurityToken",
        "Forbidden",
        "NoPermission",
        "Credentials",
    ];
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| code.starts_with(prefix));

    if code.starts_with("Throttling") || code.ends_with(".Throttling") || http_status == 429 {
        FailureClass::Throttled
    } else if BUSY.contains(&code) {
        FailureClass::Busy
    } else if code.contains("QuotaExceed") || code.contains("QUOTA_EXCEED") || code.contains("QUOTA") {
        FailureClass::Quota
    } else if DUPLICATE.contains(&code) {
        FailureClass::Duplicate
    } else if GONE.contains(&code) {
        FailureClass::NotFound
    } else if starts(&DENIED) {
        FailureClass::Denied
    } else if SYSTEM.contains(&code) || http_status >= 500 {
        FailureClass::Transient
    } else if code.ends_with(".NotFound") || http_status == 404 {
        FailureClass::NotFound
    } else {
        FailureClass::Invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_fall_into_the_class_that_says_what_to_do() {
        let table = [
            (400, "Throttling.User", FailureClass::Throttled),
            (429, "Anything", FailureClass::Throttled),
            (400, "TaskConflict", FailureClass::Busy),
            (400, "IncorrcetRouteEntryStatus", FailureClass::Busy),
            (400, "QuotaExceeded", FailureClass::Quota),
            (200, "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE", FailureClass::Duplicate),
            (200, "VPC_ROUTER_ENTRY_NOT_EXIST", FailureClass::NotFound),
            (404, "InvalidInstanId.NotFound", FailureClass::NotFound),
            (400, "SignatureDoesNotMatch", FailureClass::Denied),
            (404, "InvalidAccessKeyId.NotFound", FailureClass::Denied),
            (403, "Forbidden.RAM", FailureClass::Denied),
            (500, "InternalError", FailureClass::Transient),
            (503, "ServiceUnavailable", FailureClass::Transient),
            (400, "InvalidCidrBlock.Malformed", FailureClass::Invalid),
        ];
        for (status, code, class) in table {
            assert_eq!(classify(status, code), class, "{code}");
        }
        let asked = Failure::api(400, "Whatever", "m", "R", Some(Duration::from_secs(3)));
        assert_eq!(
            asked.class,
            FailureClass::Throttled,
            "an answer that says when to come back is throttling"
        );
    }
}
