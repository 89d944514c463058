//! Temporary credentials, as the token service and the metadata service both give them out.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::sign::{self, AccessKey};

/// Temporary credentials.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SessionCredentials {
    /// Access key.
    pub access_key_id: String,
    /// Secret.
    pub access_key_secret: String,
    /// Token without which the key is refused.
    pub security_token: String,
    /// End of validity, UTC.
    pub expiration: String,
}

impl SessionCredentials {
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

impl fmt::Debug for SessionCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionCredentials")
            .field("access_key_id", &self.access_key_id)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}
