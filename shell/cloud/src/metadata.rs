//! The instance metadata service, always with a token (IMDSv2).
//!
//! A token is fetched once and used until shortly before it expires; where the service refuses it, a new one is fetched once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use ipnet::Ipv4Net;
use loden_aliyun::metadata::{
    DEFAULT_ENDPOINT, ITEM_PATH, MAX_TOKEN_TTL, ROLE_ITEM, RoleCredentials, TOKEN_HEADER, TOKEN_PATH,
    TOKEN_TTL_HEADER,
};
use tokio::sync::Mutex;

use crate::environment::Environment;
use crate::http::{Http, Reply};

/// One attempt.
const ATTEMPT: Duration = Duration::from_secs(2);
/// All attempts for one item.
const TOTAL: Duration = Duration::from_secs(5);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);
/// A token is no longer used this long before its end.
const MARGIN: Duration = Duration::from_secs(60);

/// Why an item could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MetadataError {
    /// The service cannot be reached.
    #[error(
        "cannot reach the metadata service at {endpoint} for {item}: {cause}; is this an ECS instance, and is METADATA_ENDPOINT right?"
    )]
    Unreachable {
        /// Base address.
        endpoint: String,
        /// What was asked for.
        item: String,
        /// Why, at the bottom.
        cause: String,
    },
    /// The service refused.
    #[error("the metadata service at {endpoint} refuses {item}: HTTP {status}: {body}")]
    Refused {
        /// Base address.
        endpoint: String,
        /// What was asked for.
        item: String,
        /// HTTP status.
        status: u16,
        /// What it said, shortened.
        body: String,
    },
    /// The service answered something that cannot be used.
    #[error("the metadata service at {endpoint} answers no usable {item}: {problem}")]
    Malformed {
        /// Base address.
        endpoint: String,
        /// What was asked for.
        item: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The address of the service is no address.
    #[error("METADATA_ENDPOINT={0:?} is not valid: it has to be http://host[:port]")]
    Endpoint(String),
    /// The HTTP client cannot be made.
    #[error("cannot make an HTTP client: {0}")]
    Client(String),
}

impl MetadataError {
    /// Whether the service is there and has no such item.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// Reads items. Clones share the token.
#[derive(Debug, Clone)]
pub struct Metadata {
    endpoint: Arc<str>,
    http: Http,
    token: Arc<Mutex<Option<Token>>>,
}

struct Token {
    text: String,
    usable_until: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl Metadata {
    /// The service at `endpoint`, e.g. `http://100.100.100.200`; a bare host gets `http://` before it.
    ///
    /// # Errors
    /// `endpoint` is no plain HTTP address.
    pub fn new(endpoint: &str) -> Result<Self, MetadataError> {
        let wrong = || MetadataError::Endpoint(endpoint.to_owned());
        let text = endpoint.trim().trim_end_matches('/');
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: http::Uri = text.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty) || uri.path() != "/" {
            return Err(wrong());
        }
        let http = Http::plain().map_err(|error| MetadataError::Client(error.to_string()))?;
        Ok(Self { endpoint: text.into(), http, token: Arc::default() })
    }

    /// The service at `METADATA_ENDPOINT`, or where every instance finds it.
    ///
    /// # Errors
    /// The variable holds no plain HTTP address.
    pub fn from_environment(environment: &Environment) -> Result<Self, MetadataError> {
        Self::new(environment.metadata_endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT))
    }

    /// Base address of the service.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// One item, e.g. `region-id`, without the white space around it. Transport failures are repeated for up to five seconds.
    ///
    /// # Errors
    /// See [`MetadataError`].
    pub async fn item(&self, item: &str) -> Result<String, MetadataError> {
        let started = Instant::now();
        loop {
            let error = match self.item_once(item).await {
                Err(error @ MetadataError::Unreachable { .. }) => error,
                settled => return settled,
            };
            if started.elapsed() + PAUSE >= TOTAL {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn item_once(&self, item: &str) -> Result<String, MetadataError> {
        let token = self.token(item).await?;
        let mut reply = self.get(item, &token).await?;
        if reply.status == StatusCode::UNAUTHORIZED {
            self.forget(&token).await;
            let token = self.token(item).await?;
            reply = self.get(item, &token).await?;
        }
        self.text(item, &reply)
    }

    async fn get(&self, item: &str, token: &str) -> Result<Reply, MetadataError> {
        self.send(Method::GET, &format!("{ITEM_PATH}{item}"), (TOKEN_HEADER, token), item).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        (name, value): (&str, &str),
        item: &str,
    ) -> Result<Reply, MetadataError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.endpoint))
            .header(name, value)
            .body(Full::new(Bytes::new()))
            .map_err(|error| self.malformed(item, &error.to_string()))?;
        self.http.send(request, ATTEMPT).await.map_err(|cause| MetadataError::Unreachable {
            endpoint: self.endpoint.to_string(),
            item: item.to_owned(),
            cause,
        })
    }

    fn malformed(&self, item: &str, problem: &str) -> MetadataError {
        MetadataError::Malformed {
            endpoint: self.endpoint.to_string(),
            item: item.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn text(&self, item: &str, reply: &Reply) -> Result<String, MetadataError> {
        if reply.status != StatusCode::OK {
            return Err(MetadataError::Refused {
                endpoint: self.endpoint.to_string(),
                item: item.to_owned(),
                status: reply.status.as_u16(),
                body: String::from_utf8_lossy(&reply.body).trim().chars().take(200).collect(),
            });
        }
        let text =
            std::str::from_utf8(&reply.body).map_err(|_| self.malformed(item, "it is not UTF-8"))?.trim();
        if text.is_empty() { Err(self.malformed(item, "it is empty")) } else { Ok(text.to_owned()) }
    }

    async fn token(&self, item: &str) -> Result<String, MetadataError> {
        let mut cached = self.token.lock().await;
        if let Some(token) = cached.as_ref().filter(|token| Instant::now() < token.usable_until) {
            return Ok(token.text.clone());
        }
        let asked = Instant::now();
        let ttl = MAX_TOKEN_TTL.to_string();
        let what = format!("a token (for {item})");
        let reply = self.send(Method::PUT, TOKEN_PATH, (TOKEN_TTL_HEADER, &ttl), &what).await?;
        let text = self.text(&what, &reply)?;
        let usable_until = asked + Duration::from_secs(MAX_TOKEN_TTL.into()).saturating_sub(MARGIN);
        *cached = Some(Token { text: text.clone(), usable_until });
        Ok(text)
    }

    async fn forget(&self, refused: &str) {
        let mut cached = self.token.lock().await;
        if cached.as_ref().is_some_and(|token| token.text == refused) {
            *cached = None;
        }
    }

    /// Region of this instance.
    ///
    /// # Errors
    /// See [`MetadataError`].
    pub async fn region_id(&self) -> Result<String, MetadataError> {
        self.item("region-id").await
    }

    /// ID of this instance.
    ///
    /// # Errors
    /// See [`MetadataError`].
    pub async fn instance_id(&self) -> Result<String, MetadataError> {
        self.item("instance-id").await
    }

    /// VPC of this instance.
    ///
    /// # Errors
    /// See [`MetadataError`].
    pub async fn vpc_id(&self) -> Result<String, MetadataError> {
        self.item("vpc-id").await
    }

    /// Primary IPv4 range of this instance's VPC.
    ///
    /// # Errors
    /// See [`MetadataError`].
    pub async fn vpc_cidr_block(&self) -> Result<Ipv4Net, MetadataError> {
        let item = "vpc-cidr-block";
        let text = self.item(item).await?;
        let net: Ipv4Net =
            text.parse().map_err(|_| self.malformed(item, &format!("{text:?} is no IPv4 range")))?;
        Ok(net.trunc())
    }

    /// Credentials of the RAM role attached to this instance.
    ///
    /// # Errors
    /// See [`MetadataError`]; [`MetadataError::is_absent`] when no role is attached.
    pub async fn role_credentials(&self) -> Result<RoleCredentials, MetadataError> {
        let listed = self.item(ROLE_ITEM).await?;
        let role = listed.lines().next().unwrap_or_default().trim().trim_end_matches('/');
        let item = format!("{ROLE_ITEM}{role}");
        let text = self.item(&item).await?;
        // The answer holds secrets, so an error about it must not quote it.
        let credentials: RoleCredentials = serde_json::from_str(&text).map_err(|error| {
            self.malformed(&item, &format!("line {}: not the expected JSON", error.line()))
        })?;
        if credentials.code != "Success" {
            return Err(self.malformed(&item, &format!("its Code is {:?}", credentials.code)));
        }
        if credentials.session.expires_at().is_none() {
            return Err(self.malformed(&item, "its Expiration is no date"));
        }
        Ok(credentials)
    }
}
