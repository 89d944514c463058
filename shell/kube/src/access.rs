//! How to reach the API server, and the one place through which every request goes.

use std::path::PathBuf;
use std::time::Duration;

use http::{Method, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// How long one request may take before it counts as failed. Watches are bounded separately.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Characters that stand for themselves in one segment of a path or one value of a query (RFC 3986 "unreserved").
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where the API server is and how to prove who we are.
///
/// With neither field set the service account of the pod is used. With both set, the URL replaces the server named in
/// the file, as Go's `BuildConfigFromFlags` does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// Path of a kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, such as `https://10.0.0.1:6443`.
    pub server: Option<String>,
}

/// A connection to one cluster's API server. Cheap to clone; all clones share the connection pool.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    server: String,
    namespace: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Builds a client for the cluster that `access` names. Nothing is sent yet: use [`Cluster::version`] to find out at
/// start whether the server answers.
///
/// Must be called inside a tokio runtime; a current-thread one is enough.
///
/// # Errors
/// [`Error::Kubeconfig`], [`Error::InCluster`], [`Error::ServerUrl`] or [`Error::Client`], each naming the file or URL.
pub async fn connect(access: &Access) -> Result<Cluster> {
    // Without a provider named for the process, rustls refuses to guess and panics in the first handshake. An error here
    // means that the program has chosen one already.
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    let mut config = match (&access.kubeconfig, &access.server) {
        (Some(path), _) => from_file(path).await?,
        (None, Some(server)) => kube::Config::new(server_url(server)?),
        (None, None) => kube::Config::incluster().map_err(|source| Error::InCluster { source })?,
    };
    if let Some(server) = &access.server {
        config.cluster_url = server_url(server)?;
    }
    config.connect_timeout = Some(Duration::from_secs(10));
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let namespace = config.default_namespace.clone();
    let client = kube::Client::try_from(config)
        .map_err(|source| Error::Client { server: server.clone(), source: Box::new(source) })?;
    Ok(Cluster { client, server, namespace })
}

async fn from_file(path: &PathBuf) -> Result<kube::Config> {
    let wrap = |source| Error::Kubeconfig { path: path.clone(), source };
    let file = kube::config::Kubeconfig::read_from(path).map_err(wrap)?;
    let proxied = file
        .clusters
        .iter()
        .filter_map(|named| named.cluster.as_ref())
        .any(|cluster| cluster.proxy_url.as_ref().is_some_and(|url| !url.is_empty()));
    let mut config = kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(wrap)?;
    if !proxied {
        // The loader also takes HTTPS_PROXY from the environment, which is meant for the world outside: the network
        // daemon must not depend on a proxy that may itself be a pod.
        config.proxy_url = None;
    }
    Ok(config)
}

fn server_url(text: &str) -> Result<http::Uri> {
    let refuse = |reason: String| Error::ServerUrl { url: text.to_owned(), reason };
    let url: http::Uri = text.parse().map_err(|error: http::uri::InvalidUri| refuse(error.to_string()))?;
    match url.scheme_str() {
        Some("http" | "https") if url.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        Some("http" | "https") => Err(refuse("it names no host".to_owned())),
        _ => Err(refuse("it does not begin with http:// or https://".to_owned())),
    }
}

/// Kubernetes' own merge, in which lists of objects merge by key.
const STRATEGIC_MERGE: &str = "application/strategic-merge-patch+json";

impl Cluster {
    /// The API server's URL, for messages.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The namespace of the credentials: of the service account or of the kubeconfig's context.
    #[must_use]
    pub fn default_namespace(&self) -> &str {
        &self.namespace
    }

    /// Asks the server for its version (`v1.34.1`); the cheapest way to learn whether it answers.
    ///
    /// # Errors
    /// As for every request: unreachable, refused, malformed.
    pub async fn version(&self) -> Result<String> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            git_version: String,
        }
        let version: Version = self.get("read the server's version", "/version").await?;
        Ok(version.git_version)
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, operation: &str, path: &str) -> Result<T> {
        self.request(operation, Method::GET, path, None, Vec::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        operation: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T> {
        self.request(operation, Method::POST, path, Some("application/json"), body.to_string().into_bytes())
            .await
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        operation: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T> {
        self.request(operation, Method::PUT, path, Some("application/json"), body.to_string().into_bytes())
            .await
    }

    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        operation: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T> {
        self.request(operation, Method::PATCH, path, Some(STRATEGIC_MERGE), body.to_string().into_bytes())
            .await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        operation: &str,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T> {
        self.request(operation, Method::DELETE, path, Some("application/json"), body.to_string().into_bytes())
            .await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        operation: &str,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> Result<T> {
        let request = self.build(operation, method, path, content_type, body)?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|source| Error::from_kube(operation, &self.server, source)),
            Err(_elapsed) => Err(Error::Timeout {
                operation: operation.to_owned(),
                server: self.server.clone(),
                seconds: REQUEST_TIMEOUT.as_secs(),
            }),
        }
    }

    pub(crate) fn build(
        &self,
        operation: &str,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Request<Vec<u8>>> {
        let mut request =
            Request::builder().method(method).uri(path).header(http::header::ACCEPT, "application/json");
        if let Some(content_type) = content_type {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        request
            .body(body)
            .map_err(|source| Error::from_kube(operation, &self.server, kube::Error::HttpError(source)))
    }

    pub(crate) fn client(&self) -> &kube::Client {
        &self.client
    }
}

/// One segment of a path, or one value of a query, whatever the name in it contains.
pub(crate) fn segment(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, SEGMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_needs_a_scheme_and_a_host() {
        assert!(server_url("https://10.0.0.1:6443").is_ok());
        for bad in ["", "10.0.0.1:6443", "ftp://host", "https://", "http:// host"] {
            let error = server_url(bad).unwrap_err().to_string();
            assert!(error.contains("API server URL"), "{error}");
        }
    }

    #[test]
    fn names_cannot_leave_their_segment() {
        assert_eq!(segment("../pods?x=1").to_string(), "..%2Fpods%3Fx%3D1");
        assert_eq!(segment("cn-hangzhou.192.168.0.1").to_string(), "cn-hangzhou.192.168.0.1");
    }

    #[tokio::test]
    async fn a_bad_kubeconfig_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let missing =
            connect(&Access { kubeconfig: Some(path.clone()), server: None }).await.unwrap_err().to_string();
        assert!(missing.contains(path.to_str().unwrap()) && missing.contains("No such file"), "{missing}");
        for text in
            ["", "not: [yaml", "apiVersion: v1\nkind: Config\nclusters: []\n", "current-context: nowhere\n"]
        {
            std::fs::write(&path, text).unwrap();
            let error = connect(&Access { kubeconfig: Some(path.clone()), server: None }).await.unwrap_err();
            assert!(matches!(error, Error::Kubeconfig { .. }), "{text:?}: {error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
