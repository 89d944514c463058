//! The port to the cloud: what the controller asks of a VPC, in its own words.
//!
//! The invariant: an answer is complete or it is an error. A listing of which one page failed, or was cut short, must never come back as a
//! shorter listing: the controller would take the missing entries for removed ones.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use ipnet::IpNet;
pub use loden_aliyun::ErrorClass as FailureClass;
use loden_aliyun::classify;

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
    /// Whether the VPC has an IPv6 range, without which it takes no IPv6 entries.
    fn has_ipv6(&self, vpc: &VpcId) -> impl Future<Output = Result<bool, Failure>> + Send;

    /// How many custom entries each of the account's route tables takes, where the API tells; `None` where it does not.
    fn quota(&self) -> impl Future<Output = Result<Option<usize>, Failure>> + Send;

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

    /// The instances among `ids` (at most [`INSTANCES_LIMIT`]) that exist and are on a vSwitch.
    fn describe_instances(
        &self,
        ids: &[InstanceId],
    ) -> impl Future<Output = Result<Vec<Instance>, Failure>> + Send;

    /// The network interfaces among `enis` (at most [`INSTANCES_LIMIT`]) whose source/destination check is not seen to be off.
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

    /// Lets an entry point to another instance, without a moment in which it points nowhere. Like creation it has only *begun* when this
    /// answers.
    fn repoint(&self, entry: &EntryRef, to: &NewEntry) -> impl Future<Output = Result<(), Failure>> + Send;

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
        let class = if retry_after.is_some() { FailureClass::Throttled } else { classify(code, http_status) };
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
        Self::api(0, code, message, "", None)
    }

    /// A failure below the API: no connection, no answer, an answer that cannot be read. Whether the request was carried out is unknown.
    #[must_use]
    pub fn transport(message: impl Into<String>) -> Self {
        Self {
            class: FailureClass::Server,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_says_when_to_come_back_is_throttling() {
        let asked = Failure::api(400, "Whatever", "m", "R", Some(Duration::from_secs(3)));
        assert_eq!(asked.class, FailureClass::Throttled);
        assert_eq!(asked.to_string(), "Whatever: m (request R)");
        assert_eq!(Failure::item("VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE", "x").class, FailureClass::Duplicate);
        assert_eq!(Failure::transport("connection refused").class, FailureClass::Server);
    }
}
