//! Typed calls: signed, with a deadline, with errors that say what to do.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request as HttpRequest;
use http_body_util::Full;
use loden_aliyun::sign::{self, AccessKey, Unsigned};
use loden_aliyun::{ApiError, ErrorClass, Request, codes};
use rustls::crypto::ring;
use time::OffsetDateTime;

use crate::credentials::{Credentials, CredentialsError};
use crate::endpoint::{Endpoint, Endpoints};
use crate::http::{Http, Reply};

/// One call, sending and reading included.
const DEADLINE: Duration = Duration::from_secs(20);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub struct CallError {
    /// The action, e.g. `CreateRouteEntries`.
    pub action: &'static str,
    /// What it was about, e.g. a route table; empty if nothing in particular.
    pub object: String,
    /// Where it was sent.
    pub endpoint: String,
    /// Where the credentials came from.
    origin: String,
    /// What went wrong.
    #[source]
    pub cause: Box<CallCause>,
}

/// What went wrong with a call.
#[derive(Debug, thiserror::Error)]
pub enum CallCause {
    /// The API answered an error.
    #[error("{0}")]
    Api(ApiError),
    /// There was no whole answer. Whether the call was carried out is not known.
    #[error("{0}")]
    Transport(String),
    /// The answer is not what the API documents.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    /// There is nothing to sign with; the call was not sent.
    #[error("{0}")]
    Credentials(CredentialsError),
}

impl fmt::Display for CallError {
    /// The alternate form (`{:#}`) names the call alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        if !self.object.is_empty() {
            write!(f, " on {}", self.object)?;
        }
        write!(f, " at {}", self.endpoint)?;
        if f.alternate() {
            return Ok(());
        }
        write!(f, " failed: {}", self.cause)?;
        if let Some(remedy) = self.remedy() {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl CallError {
    /// What a person can do, if anything.
    pub(crate) fn remedy(&self) -> Option<String> {
        let origin = &self.origin;
        let error = match &*self.cause {
            CallCause::Api(error) => error,
            CallCause::Transport(_) => {
                return Some("check that the endpoint is reachable from here".to_owned());
            }
            CallCause::Malformed(_) => return Some("check that the endpoint is the API's".to_owned()),
            CallCause::Credentials(_) => return None,
        };
        match (error.code.as_str(), error.class()) {
            (codes::SIGNATURE_DOES_NOT_MATCH, _) => {
                Some(format!("the access key's secret is wrong: correct it in {origin}"))
            }
            (codes::TIMESTAMP_EXPIRED, _) => {
                Some("this machine's clock is off: synchronise it with NTP".to_owned())
            }
            (code, _) if code.starts_with("InvalidAccessKeyId") => {
                Some(format!("the access key does not exist or is disabled: correct it in {origin}"))
            }
            (_, ErrorClass::Denied) => Some(format!("allow the action to {origin} in a RAM policy")),
            (_, ErrorClass::StaleCredentials) => Some(format!("renew the credentials of {origin}")),
            (_, ErrorClass::Quota) => Some(
                "remove custom entries or ask the vendor for more (vpc_quota_route_entrys_num)".to_owned(),
            ),
            _ => None,
        }
    }
}

/// Hears of every call that ended. It is called on the way of the answer, so it must not wait.
pub trait Observe: fmt::Debug + Send + Sync {
    /// A call of `action` ended after `took` with this code: `OK`, the API's error code, or `Transport`, `Malformed` or `Credentials`.
    fn call_ended(&self, action: &'static str, code: &str, took: Duration);
}

/// The code that a call's end is counted under.
fn code_of<T>(result: &Result<T, CallCause>) -> &str {
    match result {
        Ok(_) => "OK",
        Err(CallCause::Api(error)) => &error.code,
        Err(CallCause::Transport(_)) => "Transport",
        Err(CallCause::Malformed(_)) => "Malformed",
        Err(CallCause::Credentials(_)) => "Credentials",
    }
}

/// Whether another key could help where this one was refused: it ended, or it was exchanged for another at its source.
fn is_about_the_key(cause: &CallCause) -> bool {
    let CallCause::Api(error) = cause else { return false };
    error.class() == ErrorClass::StaleCredentials
        || error.code.starts_with("InvalidAccessKeyId")
        || error.code == codes::SIGNATURE_DOES_NOT_MATCH
}

/// Calls the VPC and ECS APIs. Clones share connections and credentials.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    region: String,
    endpoints: Endpoints,
    credentials: Credentials,
    http: Http,
    observer: Option<Arc<dyn Observe>>,
}

impl Client {
    /// A client for the APIs of `region`.
    ///
    /// # Errors
    /// An endpoint wants TLS and this machine has no certificates to trust.
    pub fn new(region: &str, endpoints: Endpoints, credentials: Credentials) -> std::io::Result<Self> {
        let http = Http::for_endpoints(&endpoints)?;
        let shared = Shared { region: region.to_owned(), endpoints, credentials, http, observer: None };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The same client with somebody who hears of its calls.
    #[must_use]
    pub fn observed_by(self, observer: Arc<dyn Observe>) -> Self {
        let Shared { region, endpoints, credentials, http, observer: _ } = &*self.shared;
        let shared = Shared {
            region: region.clone(),
            endpoints: endpoints.clone(),
            credentials: credentials.clone(),
            http: http.clone(),
            observer: Some(observer),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The region that calls are about.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.shared.region
    }

    /// Makes one call. `object` says in errors what it is about. The call is sent once; only when the API refuses the
    /// credentials and there are others by then, it is repeated once with those.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<R: Request + Sync>(&self, request: &R, object: &str) -> Result<R::Answer, CallError> {
        let Shared { endpoints, credentials, .. } = &*self.shared;
        let endpoint = endpoints.get(R::PRODUCT);
        let failed = |cause: CallCause| CallError {
            action: R::ACTION,
            object: object.to_owned(),
            endpoint: endpoint.to_string(),
            origin: credentials.origin(),
            cause: Box::new(cause),
        };
        let mut key = match credentials.key().await {
            Ok(key) => key,
            Err(error) => {
                self.ended(R::ACTION, "Credentials", Instant::now());
                return Err(failed(CallCause::Credentials(error)));
            }
        };
        let mut result = self.attempt(request, endpoint, &key).await;
        if result.as_ref().is_err_and(is_about_the_key) && credentials.renew(&key).await {
            tracing::info!(action = R::ACTION, "credentials changed, repeating the call with the new ones");
            key = credentials.key().await.map_err(|error| failed(CallCause::Credentials(error)))?;
            result = self.attempt(request, endpoint, &key).await;
        }
        tracing::debug!(action = R::ACTION, object, ok = result.is_ok(), "cloud API call");
        result.map_err(failed)
    }

    fn ended(&self, action: &'static str, code: &str, begun: Instant) {
        if let Some(observer) = &self.shared.observer {
            observer.call_ended(action, code, begun.elapsed());
        }
    }

    async fn attempt<R: Request>(
        &self,
        request: &R,
        endpoint: &Endpoint,
        key: &AccessKey,
    ) -> Result<R::Answer, CallCause> {
        let begun = Instant::now();
        let result = self.send(request, endpoint, key).await;
        self.ended(R::ACTION, code_of(&result), begun);
        result
    }

    async fn send<R: Request>(
        &self,
        request: &R,
        endpoint: &Endpoint,
        key: &AccessKey,
    ) -> Result<R::Answer, CallCause> {
        let mut params = request.to_params();
        params.set("RegionId", self.shared.region.as_str());
        let signed = sign::v3(
            &Unsigned {
                method: "POST",
                host: &endpoint.authority,
                action: R::ACTION,
                version: R::PRODUCT.version(),
                params: &params,
                now: OffsetDateTime::now_utc(),
                nonce: &nonce()?,
                body: b"",
            },
            key,
        );
        let mut builder =
            HttpRequest::post(format!("{endpoint}/?{}", signed.query)).header("accept", "application/json");
        for (name, value) in &signed.headers {
            builder = builder.header(name, value);
        }
        let request = builder
            .body(Full::new(Bytes::new()))
            .map_err(|error| CallCause::Transport(format!("the request cannot be written: {error}")))?;
        let reply = self.shared.http.send(request, DEADLINE).await.map_err(CallCause::Transport)?;
        if reply.status.is_success() {
            serde_json::from_slice(&reply.body).map_err(|error| CallCause::Malformed(error.to_string()))
        } else {
            Err(CallCause::Api(read_error(&reply)))
        }
    }
}

/// 16 random bytes in hexadecimal.
pub(crate) fn nonce() -> Result<String, CallCause> {
    let mut bytes = [0_u8; 16];
    ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| CallCause::Transport("this machine gives no random numbers".to_owned()))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// The API's error, or one made from the status when something else answered (a proxy, say).
pub(crate) fn read_error(reply: &Reply) -> ApiError {
    let status = reply.status.as_u16();
    let mut error = serde_json::from_slice::<ApiError>(&reply.body).unwrap_or_else(|_| {
        let text: String = String::from_utf8_lossy(&reply.body).trim().chars().take(200).collect();
        ApiError::new(status, format!("HTTP.{status}"), text)
    });
    // The gateway shows what it would sign, over several lines; an error is one line.
    error.message = error.message.replace(['\r', '\n'], " ");
    error.http_status = status;
    error.retry_after = reply
        .headers
        .get("x-acs-retry-after")
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs);
    error
}
