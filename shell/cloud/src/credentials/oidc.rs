//! RRSA: the token of the pod's service account for temporary credentials of a RAM role. kubelet renews the token, so its file is read for each exchange.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::Request as HttpRequest;
use http_body_util::Full;
use loden_aliyun::sign::format_date;
use loden_aliyun::sts::{AssumeRoleWithOIDC, AssumeRoleWithOidcAnswer, Secret};
use loden_aliyun::{Params, Request as _};
use time::OffsetDateTime;

use super::{CredentialsError, Fresh};
use crate::client::{nonce, read_error};
use crate::endpoint::Endpoint;
use crate::http::Http;

/// One exchange, sending and reading included.
const DEADLINE: Duration = Duration::from_secs(10);

/// A role, and what proves that the pod may have it.
#[derive(Debug, Clone)]
pub struct OidcRole {
    /// The role, `acs:ram::<account>:role/<name>`.
    pub role_arn: String,
    /// The cluster's OIDC provider.
    pub provider_arn: String,
    /// The file with the service account's token.
    pub token_file: PathBuf,
    /// What the session is called in audit logs.
    pub session_name: String,
    /// The Security Token Service.
    pub endpoint: Endpoint,
    /// Sends.
    pub(crate) http: Http,
}

impl OidcRole {
    pub(super) async fn fetch(&self) -> Result<Fresh, CredentialsError> {
        let wrong = |problem: String| CredentialsError::Oidc {
            role: self.role_arn.clone(),
            file: self.token_file.display().to_string(),
            problem,
        };
        let token = std::fs::read_to_string(&self.token_file)
            .map_err(|error| wrong(format!("{error}; check the pod's projected volume")))?;
        let request = AssumeRoleWithOIDC {
            role_arn: self.role_arn.clone(),
            oidc_provider_arn: self.provider_arn.clone(),
            oidc_token: Secret(token.trim().to_owned()),
            role_session_name: self.session_name.clone(),
            duration_seconds: None,
        };
        let mut query = Params::new();
        query.set("Action", AssumeRoleWithOIDC::ACTION);
        query.set("Version", AssumeRoleWithOIDC::PRODUCT.version());
        query.set("Format", "JSON");
        query.set("Timestamp", format_date(OffsetDateTime::now_utc()).as_str());
        query.set("SignatureNonce", nonce().map_err(|cause| wrong(cause.to_string()))?.as_str());
        let call = HttpRequest::post(format!("{}/?{}", self.endpoint, query.encoded()))
            .header("accept", "application/json")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(request.to_params().encoded())))
            .map_err(|error| wrong(error.to_string()))?;
        let reply = self
            .http
            .send(call, DEADLINE)
            .await
            .map_err(|cause| wrong(format!("{cause}; is {} reachable from here?", self.endpoint)))?;
        if !reply.status.is_success() {
            let error = read_error(&reply);
            return Err(wrong(format!("{error}; check the role's trust policy and the provider's ARN")));
        }
        // The answer holds secrets, so an error about it must not quote it.
        let answer: AssumeRoleWithOidcAnswer =
            serde_json::from_slice(&reply.body).map_err(|_| wrong("the answer cannot be read".to_owned()))?;
        let expires_at = answer
            .credentials
            .expires_at()
            .ok_or_else(|| wrong("the end of the credentials is no date".to_owned()))?;
        Ok(Fresh {
            key: answer.credentials.access_key(),
            expires_at: SystemTime::from(expires_at),
            written: answer.credentials.expiration,
        })
    }
}
