//! Error answers, and what a code means for whoever made the call.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Error codes, spelled as the API spells them (misspellings included).
pub mod codes {
    /// The signature is not the one the server computes: wrong secret, or a request changed on the way.
    pub const SIGNATURE_DOES_NOT_MATCH: &str = "SignatureDoesNotMatch";
    /// The nonce was seen before within the clock window.
    pub const SIGNATURE_NONCE_USED: &str = "SignatureNonceUsed";
    /// The request's date is too far from the server's clock.
    pub const TIMESTAMP_EXPIRED: &str = "InvalidTimeStamp.Expired";
    /// The request's date is no UTC date of the form `2006-01-02T15:04:05Z`.
    pub const TIMESTAMP_FORMAT: &str = "InvalidTimeStamp.Format";
    /// No such access key.
    pub const ACCESS_KEY_NOT_FOUND: &str = "InvalidAccessKeyId.NotFound";
    /// The access key is disabled.
    pub const ACCESS_KEY_INACTIVE: &str = "InvalidAccessKeyId.Inactive";
    /// Temporary credentials used past their expiry.
    pub const TOKEN_EXPIRED: &str = "InvalidSecurityToken.Expired";
    /// A token that belongs to other credentials.
    pub const TOKEN_MISMATCH: &str = "InvalidSecurityToken.MismatchWithAccessKey";
    /// Temporary credentials used without their token.
    pub const TOKEN_MISSING: &str = "MissingSecurityToken";
    /// The quota of custom entries in a table is used up.
    pub const QUOTA_EXCEEDED: &str = "QuotaExceeded";
    /// The destination exists already in the table.
    pub const CIDR_DUPLICATE: &str = "InvalidCIDRBlock.Duplicate";
    /// The same, per item of a batch.
    pub const BATCH_CIDR_DUPLICATE: &str = "VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE";
    /// An entry in a state that forbids the change, per item of a batch.
    pub const BATCH_STATUS_ERROR: &str = "VPC_ROUTE_ENTRY_STATUS_ERROR";
    /// The entry to delete is not there, per item of a batch.
    pub const BATCH_NOT_EXIST: &str = "VPC_ROUTER_ENTRY_NOT_EXIST";
    /// Some entry of the table is still Pending, Modifying or Deleting.
    pub const INCORRECT_ENTRY_STATUS: &str = "IncorrectRouteEntryStatus";
    /// Another change of the same VPC is under way.
    pub const TASK_CONFLICT: &str = "TaskConflict";
    /// The entry to delete is not there.
    pub const ENTRY_NOT_FOUND: &str = "InvalidRouteEntry.NotFound";
    /// No such route table, for a change.
    pub const TABLE_ID_NOT_FOUND: &str = "InvalidRouteTableId.NotFound";
    /// No such route table, for a list of entries.
    pub const TABLE_NOT_FOUND: &str = "InvalidRouteTable.NotFound";
    /// No such instance for a next hop; the vendor's spelling.
    pub const INSTANCE_NOT_FOUND: &str = "InvalidInstanId.NotFound";
    /// The destination is one that the VPC learned by itself.
    pub const ROUTE_CONFLICT: &str = "RouteConflict.AlreadyExist";
    /// The destination is one of the system's own.
    pub const ENTRY_DUPLICATE: &str = "InvalidRouteEntry.Duplicate";
    /// The entry itself is in a state that forbids its deletion.
    pub const ENTRY_STATUS: &str = "IncorrectStatus.VpcRouteEntry";
    /// A client token that came with other parameters before.
    pub const TOKEN_MISUSED: &str = "IdempotentParameterMismatch";
    /// No such next hop.
    pub const NEXT_HOP_NOT_FOUND: &str = "InvalidNextHopId.NotFound";
    /// A dry run that would have succeeded.
    pub const DRY_RUN: &str = "DryRunOperation";
    /// A mandatory parameter is absent.
    pub const MISSING_PARAMETER: &str = "MissingParameter";
    /// The flow control of one account.
    pub const THROTTLING_USER: &str = "Throttling.User";
}

/// What the server answers instead of a result: `{"RequestId", "HostId", "Code", "Message"}` with a 4xx or 5xx status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code} (HTTP {http_status}): {message} [request {request_id}]")]
#[serde(rename_all = "PascalCase")]
pub struct ApiError {
    /// The machine-readable code; see [`codes`].
    pub code: String,
    /// The sentence for people.
    #[serde(default)]
    pub message: String,
    /// HTTP status of the answer; not part of the body.
    #[serde(skip)]
    pub http_status: u16,
    /// Names the call in the vendor's support.
    #[serde(default)]
    pub request_id: String,
    /// The endpoint that answered.
    #[serde(default)]
    pub host_id: String,
    /// From the header `x-acs-retry-after`, in seconds there; not part of the body.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

impl ApiError {
    /// An error without request ID and host, which the server's outer layer fills in.
    #[must_use]
    pub fn new(http_status: u16, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            http_status,
            request_id: String::new(),
            host_id: String::new(),
            retry_after: None,
        }
    }

    /// A mandatory parameter is absent.
    #[must_use]
    pub fn missing_parameter() -> Self {
        Self::new(400, codes::MISSING_PARAMETER, "Miss mandatory parameter.")
    }

    /// A parameter that cannot be read.
    #[must_use]
    pub fn invalid_parameter(name: &str) -> Self {
        Self::new(400, "InvalidParameter", format!("The specified parameter {name} is not valid."))
    }

    /// What the error means for the caller.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        classify(&self.code, self.http_status)
    }
}

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ErrorClass {
    /// Another change is under way, or an entry is not stable yet: the same call succeeds in some seconds.
    Busy,
    /// Too many calls: wait noticeably longer, or for as long as the answer says.
    Throttled,
    /// The server's own trouble: repeat with growing pauses.
    Server,
    /// The credentials expired: fetch new ones and repeat at once, once.
    StaleCredentials,
    /// Wrong credentials or missing permission, or a wrong clock: only a person helps. Repeat rarely.
    Denied,
    /// The table is full: repeat when an entry went away or the quota was raised.
    Quota,
    /// The object exists already. Look at it before calling this a success: it may point elsewhere.
    Duplicate,
    /// The object is not there. A success for a deletion.
    NotFound,
    /// The request itself is wrong; repeating it changes nothing.
    Invalid,
}

/// The class of `code` (an answer's code, or a batch item's `FailedCode`) with `http_status`, 0 if it had none.
#[must_use]
pub fn classify(code: &str, http_status: u16) -> ErrorClass {
    match code {
        codes::TASK_CONFLICT
        | codes::INCORRECT_ENTRY_STATUS
        | codes::BATCH_STATUS_ERROR
        | "IncorrcetRouteEntryStatus"
        | "IncorrectStatus.VpcRouteEntry"
        | "IncorrectStatus.RouteTableStatus"
        | "IncorrectVpcStatus"
        | "IncorrectVSwitchStatus"
        | "IncorrectHaVipStatus"
        | "OperationFailed.OperationLocked"
        | "IncorrectInstanceStatus"
        | "OperationConflict"
        | "InvalidOperation.Conflict"
        | "OperationFailed.DistibuteLock"
        | "LastTokenProcessing"
        | codes::SIGNATURE_NONCE_USED
        | "Forbbiden" => ErrorClass::Busy,
        "SystemBusy" | "UnknownError" | "InternalError" | "Internal.Error" | "VPC.ERROR" | "Vpc.Error" => {
            ErrorClass::Server
        }
        codes::TOKEN_MISSING => ErrorClass::StaleCredentials,
        codes::CIDR_DUPLICATE
        | codes::BATCH_CIDR_DUPLICATE
        | "InvalidRouteEntry.Duplicate"
        | "RouteConflict.AlreadyExist"
        | "OperationFailed.CidrConflictWithPrefixList"
        | "RouterEntryConflict.Duplicated" => ErrorClass::Duplicate,
        codes::SIGNATURE_DOES_NOT_MATCH | "IncompleteSignature" | "NoPermission" => ErrorClass::Denied,
        codes::BATCH_NOT_EXIST => ErrorClass::NotFound,
        // Within the request itself, not between it and what the table holds.
        "Duplicated.VpcNextHop" => ErrorClass::Invalid,
        // The call itself is wrong, not what it names: taking this for an entry that is gone would make every failed deletion a success.
        "InvalidAction.NotFound" | "InvalidRegionId.NotFound" => ErrorClass::Invalid,
        _ => classify_by_shape(code, http_status),
    }
}

fn classify_by_shape(code: &str, http_status: u16) -> ErrorClass {
    let starts = |prefix: &str| code.starts_with(prefix);
    if starts("Throttling")
        || starts("Rejected.Throttling")
        || starts("ServiceUnavailable")
        || http_status == 429
    {
        ErrorClass::Throttled
    } else if starts("InvalidSecurityToken") {
        ErrorClass::StaleCredentials
    } else if starts("InvalidAccessKeyId")
        || starts("InvalidTimeStamp")
        || starts("Forbidden")
        || http_status == 403
    {
        ErrorClass::Denied
    } else if starts("QuotaExceeded") || code.contains("QUOTA") {
        ErrorClass::Quota
    } else if code.ends_with(".NotFound") {
        ErrorClass::NotFound
    } else if http_status >= 500 {
        ErrorClass::Server
    } else {
        ErrorClass::Invalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_class_its_remedy_asks_for() {
        for (code, status, class) in [
            ("TaskConflict", 400, ErrorClass::Busy),
            ("IncorrectRouteEntryStatus", 400, ErrorClass::Busy),
            ("IncorrectInstanceStatus", 403, ErrorClass::Busy),
            ("VPC_ROUTE_ENTRY_STATUS_ERROR", 0, ErrorClass::Busy),
            ("Forbbiden", 400, ErrorClass::Busy),
            ("Throttling.User", 400, ErrorClass::Throttled),
            ("Rejected.Throttling", 503, ErrorClass::Throttled),
            ("ServiceUnavailable", 503, ErrorClass::Throttled),
            ("Whatever", 429, ErrorClass::Throttled),
            ("InternalError", 500, ErrorClass::Server),
            ("Whatever", 502, ErrorClass::Server),
            ("InvalidSecurityToken.Expired", 400, ErrorClass::StaleCredentials),
            ("SignatureDoesNotMatch", 400, ErrorClass::Denied),
            ("InvalidAccessKeyId.NotFound", 404, ErrorClass::Denied),
            ("InvalidTimeStamp.Expired", 400, ErrorClass::Denied),
            ("Forbidden.RAM", 403, ErrorClass::Denied),
            ("QuotaExceeded", 400, ErrorClass::Quota),
            ("VPC_ROUTE_ENTRY_QUOTA_LIMIT", 0, ErrorClass::Quota),
            ("InvalidCIDRBlock.Duplicate", 400, ErrorClass::Duplicate),
            ("VPC_ROUTE_ENTRY_CIDR_BLOCK_DUPLICATE", 0, ErrorClass::Duplicate),
            ("InvalidRouteEntry.NotFound", 400, ErrorClass::NotFound),
            ("VPC_ROUTER_ENTRY_NOT_EXIST", 0, ErrorClass::NotFound),
            ("InvalidRouteTableId.NotFound", 404, ErrorClass::NotFound),
            ("InvalidCidrBlock.Malformed", 400, ErrorClass::Invalid),
            ("Duplicated.VpcNextHop", 400, ErrorClass::Invalid),
            ("OperationFailed.CidrConflictWithPrefixList", 400, ErrorClass::Duplicate),
            ("RouteConflict.AlreadyExist", 400, ErrorClass::Duplicate),
            ("QuotaExceeded.HaVipRouteEntry", 400, ErrorClass::Quota),
            ("IncorrectHaVipStatus", 400, ErrorClass::Busy),
            ("IncorrectStatus.VpcRouteEntry", 400, ErrorClass::Busy),
            ("IncorrcetRouteEntryStatus", 400, ErrorClass::Busy),
            ("LastTokenProcessing", 400, ErrorClass::Busy),
            ("SystemBusy", 503, ErrorClass::Server),
            ("Vpc.Error", 500, ErrorClass::Server),
            ("InvalidAction.NotFound", 404, ErrorClass::Invalid),
            ("HTTP.404", 404, ErrorClass::Invalid),
        ] {
            assert_eq!(classify(code, status), class, "{code} {status}");
        }
    }

    #[test]
    fn body_is_read_as_the_gateway_writes_it() {
        let error: ApiError = serde_json::from_str(
            r#"{"RequestId":"R-ERR","HostId":"127.0.0.1","Code":"InvalidCIDRBlock.Duplicate","Message":"dup msg"}"#,
        )
        .unwrap();
        assert_eq!((error.code.as_str(), error.request_id.as_str()), ("InvalidCIDRBlock.Duplicate", "R-ERR"));
    }
}
