//! Security Token Service, version 2015-04-01: a RAM role for a pod that shows the token of its service account (RRSA).
//!
//! The call is anonymous: the token is what proves who calls, so it carries no signature and travels in the body, where no proxy logs it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request::request;
use crate::session::SessionCredentials;
use crate::{ApiError, Field, Params};

/// Shortest life of the credentials that can be asked for, in seconds.
pub const SHORTEST_LIFE: u32 = 900;

/// A text that is not for logs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Field for Secret {
    fn write(&self, name: &str, params: &mut Params) {
        params.set(name, self.0.as_str());
    }

    fn read(name: &str, params: &Params) -> Result<Self, ApiError> {
        String::read(name, params).map(Self)
    }
}

request! {
    /// Credentials of a role for whoever shows a token that the OIDC provider issued.
    AssumeRoleWithOIDC in Sts -> AssumeRoleWithOidcAnswer {
        /// The role, `acs:ram::<account>:role/<name>`.
        role_arn: String = "RoleArn",
        /// The cluster's OIDC provider, `acs:ram::<account>:oidc-provider/<name>`.
        oidc_provider_arn: String = "OIDCProviderArn",
        /// The service account's token.
        oidc_token: Secret = "OIDCToken",
        /// What the session is called in audit logs: 2 to 64 of letters, digits and `.@-_`.
        role_session_name: String = "RoleSessionName",
        /// Life of the credentials in seconds, [`SHORTEST_LIFE`] to the role's longest; 3600 when it is not said.
        duration_seconds: Option<u32> = "DurationSeconds",
    }
}

/// Answer of [`AssumeRoleWithOIDC`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AssumeRoleWithOidcAnswer {
    /// Request.
    pub request_id: String,
    /// The credentials.
    pub credentials: SessionCredentials,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    #[test]
    fn a_request_reads_as_it_was_written_and_hides_its_token() {
        let request = AssumeRoleWithOIDC {
            role_arn: "acs:ram::1:role/loden".to_owned(),
            oidc_provider_arn: "acs:ram::1:oidc-provider/ack".to_owned(),
            oidc_token: Secret("hunter2".to_owned()),
            role_session_name: "loden".to_owned(),
            duration_seconds: None,
        };
        assert_eq!(AssumeRoleWithOIDC::from_params(&request.to_params()).unwrap(), request);
        assert!(!format!("{request:?}").contains("hunter2"));
    }
}
