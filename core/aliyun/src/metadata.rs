//! The instance metadata service: paths, header names, and the answer that carries a RAM role's credentials.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::sign::{self, AccessKey};

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
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RoleCredentials {
    /// Access key.
    pub access_key_id: String,
    /// Secret.
    pub access_key_secret: String,
    /// Token without which the key is refused.
    pub security_token: String,
    /// End of validity, UTC.
    pub expiration: String,
    /// When they were issued, UTC.
    #[serde(default)]
    pub last_updated: String,
    /// `Success`, or why there are none.
    pub code: String,
}

impl RoleCredentials {
    /// The end of validity; `None` when the text is no date.
    #[must_use]
    pub fn expires_at(&self) -> Option<OffsetDateTime> {
        sign::parse_date(&self.expiration)
    }

    /// The key to sign with.
    #[must_use]
    pub fn access_key(&self) -> AccessKey {
        AccessKey {
            id: self.access_key_id.clone(),
            secret: self.access_key_secret.clone(),
            token: Some(self.security_token.clone()),
        }
    }
}

impl fmt::Debug for RoleCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoleCredentials")
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}
