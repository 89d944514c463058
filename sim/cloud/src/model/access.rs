//! Who may call: access keys, temporary credentials of RAM roles, signatures, nonces.

use std::collections::{BTreeMap, BTreeSet};

use loden_aliyun::metadata::RoleCredentials;
use loden_aliyun::session::SessionCredentials;
use loden_aliyun::sign::{self, Authorization, Canonical};
use loden_aliyun::{ApiError, Params, codes};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use super::{Cloud, state};

/// Expired credentials are remembered this long, so that their use is answered as expired rather than unknown.
const MEMORY_OF_EXPIRED: Duration = Duration::hours(24);

/// Credentials and nonces given out or seen so far.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Access {
    /// Temporary credentials by access key ID.
    temporary: BTreeMap<String, Temporary>,
    /// Nonces with the access key that they came with and the moment of their use, oldest first, so that old ones can be forgotten without
    /// a search.
    nonces: BTreeSet<Nonce>,
    /// The same without the moment.
    #[serde(skip)]
    used: BTreeSet<(String, String)>,
    /// Tokens of the metadata service: for which instance, until when.
    pub(super) metadata_tokens: BTreeMap<String, MetadataToken>,
}

impl Access {
    /// Makes the index of nonces again.
    pub(super) fn index(&mut self) {
        self.used = self.nonces.iter().map(|used| (used.id.clone(), used.nonce.clone())).collect();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Nonce {
    #[serde(with = "state::moment")]
    at: OffsetDateTime,
    id: String,
    nonce: String,
}

/// A token of the metadata service.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct MetadataToken {
    pub(super) instance: String,
    #[serde(with = "state::moment")]
    pub(super) until: OffsetDateTime,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Temporary {
    instance: String,
    role: String,
    secret: String,
    token: String,
    #[serde(with = "state::moment")]
    issued: OffsetDateTime,
    #[serde(with = "state::moment")]
    expires: OffsetDateTime,
}

impl std::fmt::Debug for Temporary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Temporary")
            .field("role", &self.role)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A call as it arrived, as far as its signature is concerned.
#[derive(Debug, Clone)]
pub struct SignedCall<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path.
    pub path: &'a str,
    /// Parameters of the query alone.
    pub query: &'a Params,
    /// Parameters of query and form together.
    pub params: &'a Params,
    /// Headers with lower-case names, repeated ones joined by commas.
    pub headers: &'a BTreeMap<String, String>,
    /// Body.
    pub body: &'a [u8],
}

struct Claim<'a> {
    access_key_id: &'a str,
    token: Option<&'a str>,
    date: OffsetDateTime,
    nonce: &'a str,
}

impl Cloud {
    /// Who signed the call: the ID of an access key, or `role/` and the name of a RAM role.
    ///
    /// # Errors
    /// What is wrong with the signature, its key, its date or its nonce.
    pub(super) fn authenticate(
        &mut self,
        call: &SignedCall<'_>,
        now: OffsetDateTime,
    ) -> Result<String, ApiError> {
        let (id, nonce) = if let Some(text) = call.headers.get("authorization") {
            let authorization = Authorization::parse(text).ok_or_else(incomplete)?;
            let claim = claim_v3(call, &authorization)?;
            self.verify(&claim, now, |secret| verify_v3(call, &authorization, secret))?;
            (claim.access_key_id.to_owned(), claim.nonce.to_owned())
        } else {
            let claim = claim_v1(call)?;
            let signature = call.params.get("Signature").ok_or_else(|| missing("Signature"))?;
            self.verify(&claim, now, |secret| {
                if sign::v1_verifies(call.method, call.params, secret, signature) {
                    Ok(())
                } else {
                    Err(mismatch(&sign::v1_string_to_sign(call.method, call.params)))
                }
            })?;
            (claim.access_key_id.to_owned(), claim.nonce.to_owned())
        };
        let role = self.access.temporary.get(&id).map(|temporary| format!("role/{}", temporary.role));
        let caller = role.unwrap_or_else(|| id.clone());
        self.use_nonce(id, nonce, now)?;
        Ok(caller)
    }

    fn verify(
        &self,
        claim: &Claim<'_>,
        now: OffsetDateTime,
        check: impl FnOnce(&str) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let window = Duration::seconds(i64::try_from(self.settings.clock_window_s).unwrap_or(i64::MAX));
        if (now - claim.date).abs() > window {
            return Err(ApiError::new(
                400,
                codes::TIMESTAMP_EXPIRED,
                "Specified time stamp or date value is expired.",
            ));
        }
        if let Some(temporary) = self.access.temporary.get(claim.access_key_id) {
            check(&temporary.secret)?;
            return match claim.token {
                None => Err(ApiError::new(
                    400,
                    codes::TOKEN_MISSING,
                    "SecurityToken is mandatory for this action.",
                )),
                Some(token) if token != temporary.token => Err(ApiError::new(
                    400,
                    codes::TOKEN_MISMATCH,
                    "Specified SecurityToken mismatch with the AccessKey.",
                )),
                Some(_) if temporary.expires <= now => {
                    Err(ApiError::new(400, codes::TOKEN_EXPIRED, "Specified SecurityToken is expired."))
                }
                Some(_) => Ok(()),
            };
        }
        let key = self.access_keys.get(claim.access_key_id).ok_or_else(|| {
            ApiError::new(404, codes::ACCESS_KEY_NOT_FOUND, "Specified access key is not found.")
        })?;
        check(&key.secret)?;
        if key.disabled {
            return Err(ApiError::new(400, codes::ACCESS_KEY_INACTIVE, "Specified access key is disabled."));
        }
        if claim.token.is_some() {
            return Err(ApiError::new(
                400,
                codes::TOKEN_MISMATCH,
                "Specified SecurityToken mismatch with the AccessKey.",
            ));
        }
        Ok(())
    }

    /// Only calls with a right signature get here, so nobody else can fill the memory of nonces.
    fn use_nonce(&mut self, id: String, nonce: String, now: OffsetDateTime) -> Result<(), ApiError> {
        // A date may lie a window ahead of the clock, so a nonce is told apart for two windows.
        let window = i64::try_from(self.settings.clock_window_s).unwrap_or(i64::MAX).saturating_mul(2);
        let Access { nonces, used, .. } = &mut self.access;
        while let Some(oldest) = nonces.first() {
            if (now - oldest.at).whole_seconds() <= window {
                break;
            }
            if let Some(Nonce { id, nonce, .. }) = nonces.pop_first() {
                used.remove(&(id, nonce));
            }
        }
        if !used.insert((id.clone(), nonce.clone())) {
            return Err(ApiError::new(
                400,
                codes::SIGNATURE_NONCE_USED,
                "Specified signature nonce was used already.",
            ));
        }
        nonces.insert(Nonce { at: now, id, nonce });
        Ok(())
    }

    /// The credentials of an instance's role as the metadata service gives them out now: the last ones until half their life is over.
    pub(super) fn role_credentials(
        &mut self,
        instance: &str,
        role: &str,
        now: OffsetDateTime,
    ) -> Option<RoleCredentials> {
        let lifetime = self.role_lifetime(role)?;
        self.access.temporary.retain(|_, temporary| now - temporary.expires < MEMORY_OF_EXPIRED);
        let current = self.access.temporary.iter().find(|(_, temporary)| {
            temporary.instance == instance && temporary.role == role && temporary.expires - now > lifetime / 2
        });
        if let Some((id, temporary)) = current {
            return Some(describe(id, temporary));
        }
        Some(self.issue(instance, role, lifetime, now))
    }

    /// Fresh credentials of a role for a session that is no instance's, no longer than the role's lifetime.
    pub(super) fn session_credentials(
        &mut self,
        role: &str,
        seconds: Option<u32>,
        now: OffsetDateTime,
    ) -> Option<SessionCredentials> {
        let longest = self.role_lifetime(role)?;
        self.access.temporary.retain(|_, temporary| now - temporary.expires < MEMORY_OF_EXPIRED);
        let asked = Duration::seconds(i64::from(seconds.unwrap_or(3600)));
        Some(self.issue("", role, asked.min(longest), now).session)
    }

    fn role_lifetime(&self, role: &str) -> Option<Duration> {
        let seconds = i64::try_from(self.roles.get(role)?.lifetime_s).unwrap_or(i64::MAX).max(1);
        Some(Duration::seconds(seconds))
    }

    fn issue(
        &mut self,
        instance: &str,
        role: &str,
        lifetime: Duration,
        now: OffsetDateTime,
    ) -> RoleCredentials {
        let temporary = Temporary {
            instance: instance.to_owned(),
            role: role.to_owned(),
            secret: self.draw("secret"),
            token: self.draw("token"),
            issued: now,
            expires: now.saturating_add(lifetime),
        };
        let id = format!("STS.{}", self.draw("key").get(..24).unwrap_or_default());
        let answer = describe(&id, &temporary);
        self.access.temporary.insert(id, temporary);
        answer
    }

    /// ID and secret of the first access key that is enabled.
    pub(crate) fn access_key(&self) -> Option<(String, String)> {
        self.access_keys.values().find(|key| !key.disabled).map(|key| (key.id.clone(), key.secret.clone()))
    }

    /// Ends the validity of all temporary credentials given out so far.
    pub fn expire_role_credentials(&mut self, now: OffsetDateTime) {
        for temporary in self.access.temporary.values_mut() {
            temporary.expires = temporary.expires.min(now);
        }
    }
}

fn describe(id: &str, temporary: &Temporary) -> RoleCredentials {
    RoleCredentials {
        session: SessionCredentials {
            access_key_id: id.to_owned(),
            access_key_secret: temporary.secret.clone(),
            security_token: temporary.token.clone(),
            expiration: sign::format_date(temporary.expires),
        },
        last_updated: sign::format_date(temporary.issued),
        code: "Success".to_owned(),
    }
}

fn claim_v3<'a>(call: &SignedCall<'a>, authorization: &'a Authorization) -> Result<Claim<'a>, ApiError> {
    let header =
        |name: &'static str| call.headers.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let signed = |name: &str| authorization.signed_headers.iter().any(|signed| signed == name);
    // What the server acts on must be what was signed.
    let loose =
        call.headers.keys().any(|name| (name.starts_with("x-acs-") || name == "host") && !signed(name));
    if loose || authorization.signed_headers.iter().any(|name| !call.headers.contains_key(name)) {
        return Err(incomplete());
    }
    Ok(Claim {
        access_key_id: &authorization.access_key_id,
        token: header("x-acs-security-token"),
        date: read_date(header("x-acs-date").ok_or_else(|| missing("Timestamp"))?)?,
        nonce: header("x-acs-signature-nonce").ok_or_else(|| missing("SignatureNonce"))?,
    })
}

fn verify_v3(call: &SignedCall<'_>, authorization: &Authorization, secret: &str) -> Result<(), ApiError> {
    let mut names = authorization.signed_headers.clone();
    names.sort();
    let headers: Vec<(String, String)> = names
        .into_iter()
        .map(|name| {
            let value = call.headers.get(&name).cloned().unwrap_or_default();
            (name, value)
        })
        .collect();
    let body_sha256 = sign::body_sha256(call.body);
    let canonical = Canonical {
        method: call.method,
        path: call.path,
        params: call.query,
        headers: &headers,
        body_sha256: &body_sha256,
    };
    let claimed = call.headers.get("x-acs-content-sha256").map_or("", String::as_str);
    if claimed.eq_ignore_ascii_case(&body_sha256) && canonical.verifies(secret, &authorization.signature) {
        Ok(())
    } else {
        Err(mismatch(&canonical.string_to_sign()))
    }
}

fn claim_v1<'a>(call: &SignedCall<'a>) -> Result<Claim<'a>, ApiError> {
    let param = |name: &'static str| call.params.get(name).ok_or_else(|| missing(name));
    let access_key_id = param("AccessKeyId")?;
    if call.params.get("SignatureMethod").is_some_and(|method| method != "HMAC-SHA1")
        || call.params.get("SignatureVersion").is_some_and(|version| version != "1.0")
    {
        return Err(incomplete());
    }
    Ok(Claim {
        access_key_id,
        token: call.params.get("SecurityToken"),
        date: read_date(param("Timestamp")?)?,
        nonce: param("SignatureNonce")?,
    })
}

fn read_date(text: &str) -> Result<OffsetDateTime, ApiError> {
    sign::parse_date(text).ok_or_else(|| {
        ApiError::new(
            400,
            codes::TIMESTAMP_FORMAT,
            "Specified time stamp or date value is not well formatted.",
        )
    })
}

fn missing(name: &str) -> ApiError {
    ApiError::new(400, format!("Missing{name}"), format!("{name} is mandatory for this action."))
}

fn incomplete() -> ApiError {
    ApiError::new(400, "IncompleteSignature", "The request signature does not conform to Aliyun standards.")
}

fn mismatch(string_to_sign: &str) -> ApiError {
    ApiError::new(
        400,
        codes::SIGNATURE_DOES_NOT_MATCH,
        format!(
            "Specified signature is not matched with our calculation. server string to sign is:{string_to_sign}"
        ),
    )
}
