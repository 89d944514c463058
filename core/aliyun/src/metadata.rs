//! The instance metadata service: paths, header names, and the answer that carries a RAM role's credentials.

use serde::{Deserialize, Serialize};

use crate::session::SessionCredentials;

/// Where the service is, seen from an instance.
pub const DEFAULT_ENDPOINT: &str = "http://100.100.100.200";
/// Path that a `PUT` turns into a token.
pub const TOKEN_PATH: &str = "/latest/api/token";
/// Path under which the items are.
pub const ITEM_PATH: &str = "/latest/meta-data/";
/// Header with the lifetime of the token asked for, in seconds.
pub const TOKEN_TTL_HEADER: &str = "x-aliyun-ecs-metadata-token-ttl-seconds";
/// Header with the token.
pub const TOKEN_HEADER: &str = "x-aliyun-ecs-metadata-token";
/// Longest lifetime of a token, in seconds; the shortest is 1.
pub const MAX_TOKEN_TTL: u32 = 21_600;
/// Item that lists the role's name, and under which its credentials are.
pub const ROLE_ITEM: &str = "ram/security-credentials/";

/// Credentials of a RAM role, as the item `ram/security-credentials/<role>` answers them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RoleCredentials {
    /// What to sign with, and for how long.
    #[serde(flatten)]
    pub session: SessionCredentials,
    /// When they were issued, UTC.
    #[serde(default)]
    pub last_updated: String,
    /// `Success`, or why there are none.
    pub code: String,
}
