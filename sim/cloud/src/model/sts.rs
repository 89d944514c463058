//! `AssumeRoleWithOIDC`: credentials of a role for a service account's token.
//!
//! The emulator has no keys to check a token's signature with. It holds a token to its form and its end, and the role to being there.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use loden_aliyun::{ApiError, sts};
use serde_json::Value;
use time::OffsetDateTime;

use super::Cloud;
use super::api::Answers;

impl Answers for sts::AssumeRoleWithOIDC {
    fn answer(
        self,
        cloud: &mut Cloud,
        request_id: &str,
        now: OffsetDateTime,
    ) -> Result<Self::Answer, ApiError> {
        let invalid = |name: &str| {
            ApiError::new(
                400,
                format!("InvalidParameter.{name}"),
                format!("The parameter {name} is invalid."),
            )
        };
        let role = self
            .role_arn
            .strip_prefix("acs:ram::")
            .and_then(|rest| rest.split_once(":role/"))
            .map(|(_, name)| name)
            .ok_or_else(|| invalid("RoleArn"))?;
        if !self.oidc_provider_arn.contains(":oidc-provider/") {
            return Err(invalid("OIDCProviderArn"));
        }
        if !(2..=64).contains(&self.role_session_name.len()) {
            return Err(invalid("RoleSessionName"));
        }
        if self.duration_seconds.is_some_and(|seconds| seconds < sts::SHORTEST_LIFE) {
            return Err(invalid("DurationSeconds"));
        }
        let end = end_of(&self.oidc_token.0).ok_or_else(|| {
            ApiError::new(400, "AuthenticationFail.OIDCToken.Invalid", "The OIDC token is invalid.")
        })?;
        if end <= now.unix_timestamp() {
            return Err(ApiError::new(
                400,
                "AuthenticationFail.OIDCToken.Expired",
                "The OIDC token is expired.",
            ));
        }
        let credentials = cloud.session_credentials(role, self.duration_seconds, now).ok_or_else(|| {
            ApiError::new(404, "EntityNotExist.Role", format!("The role not exists: {role}."))
        })?;
        Ok(sts::AssumeRoleWithOidcAnswer { request_id: request_id.to_owned(), credentials })
    }
}

/// When a token ends, in seconds since 1970: its claim `exp`.
fn end_of(token: &str) -> Option<i64> {
    let mut parts = token.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    claims.get("exp")?.as_i64().filter(|_| parts.next().is_none())
}
