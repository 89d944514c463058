//! One HTTP exchange with a deadline, plain or over TLS.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::crypto::ring;

use crate::endpoint::Endpoints;

/// A page of 100 entries is about 60 kB; an answer of this size is no answer of the API.
const LARGEST_ANSWER: usize = 16 << 20;

/// How long to wait for a connection. The endpoints are near, or they are not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends requests. Connections are kept and shared between clones.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Http {
    /// What can speak to all of these.
    ///
    /// # Errors
    /// One of them wants TLS and the machine has no certificates to trust.
    pub(crate) fn for_endpoints(endpoints: &Endpoints) -> std::io::Result<Self> {
        let Endpoints { vpc, ecs, quotas, sts } = endpoints;
        if [vpc, ecs, quotas, sts].iter().any(|endpoint| endpoint.tls) {
            Self::tls()
        } else {
            Self::plain().map_err(std::io::Error::other)
        }
    }

    /// For plain HTTP only; needs no certificates on the machine.
    ///
    /// # Errors
    /// The TLS library refuses its own defaults.
    pub(crate) fn plain() -> Result<Self, rustls::Error> {
        let config = rustls::ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Ok(Self::over(|tcp| {
            HttpsConnectorBuilder::new()
                .with_tls_config(config)
                .https_or_http()
                .enable_http1()
                .wrap_connector(tcp)
        }))
    }

    /// For HTTPS, trusting the machine's certificates.
    ///
    /// # Errors
    /// The machine has none.
    pub(crate) fn tls() -> std::io::Result<Self> {
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(ring::default_provider())?;
        Ok(Self::over(|tcp| builder.https_or_http().enable_http1().wrap_connector(tcp)))
    }

    fn over(tls: impl FnOnce(HttpConnector) -> HttpsConnector<HttpConnector>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(tls(tcp));
        Self { client }
    }

    /// Sends `request` and reads the whole answer within `deadline`.
    ///
    /// # Errors
    /// A text for people: what failed at the bottom.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Duration,
    ) -> Result<Reply, String> {
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| root_cause(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LARGEST_ANSWER)
                .collect()
                .await
                .map_err(|error| format!("the answer broke off: {}", root_cause(error.as_ref())))?
                .to_bytes();
            Ok(Reply { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(deadline, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", deadline.as_secs_f32())))
    }
}

/// The innermost cause; the outer ones only say that a client had an error.
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
