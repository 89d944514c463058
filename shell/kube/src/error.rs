//! What can go wrong in a conversation with the API server, in words that name the operation, the server and the remedy.

use std::path::PathBuf;

/// The result of a conversation with the API server.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation against Kubernetes.
///
/// Each text says what was being done, on which server (or file), why it failed and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kubeconfig file is missing, unreadable, malformed or incomplete.
    #[error("cannot use kubeconfig {}: {}; give a readable kubeconfig with a current context, a server and credentials", path.display(), Chain(source))]
    Kubeconfig {
        /// The file that was given.
        path: PathBuf,
        /// What the loader said.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// No file and no URL were given, and this process does not run in a pod with a service account.
    #[error(
        "cannot use the in-cluster configuration (KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT and the files under /var/run/secrets/kubernetes.io/serviceaccount): {}; run in a pod with a service account, or give a kubeconfig file or an API server URL",
        Chain(source)
    )]
    InCluster {
        /// What is missing.
        #[source]
        source: kube::config::InClusterError,
    },
    /// The API server URL given by hand is not a URL.
    #[error("API server URL {url:?} is malformed: {reason}; write it as https://host:port")]
    ServerUrl {
        /// The text given.
        url: String,
        /// Why it is refused.
        reason: String,
    },
    /// The client could not be built from a configuration that could be read (certificates, keys, proxy).
    #[error(
        "cannot build a client for {server}: {}; check the certificates, keys and proxy of the configuration",
        Chain(source)
    )]
    Client {
        /// The server of the configuration.
        server: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The server could not be reached, or the connection broke before it answered.
    #[error(
        "cannot {operation}: no answer from API server {server}: {}; check that it runs, that this host can reach it and, for https, that its certificate authority is the one configured",
        Transport(source)
    )]
    Unreachable {
        /// What was being done, for example `get node n1`.
        operation: String,
        /// The server's URL.
        server: String,
        /// The transport's error.
        #[source]
        source: Box<kube::Error>,
    },
    /// The server did not answer in time.
    #[error(
        "cannot {operation}: API server {server} did not answer within {seconds} s; check its load and the network to it"
    )]
    Timeout {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// How long was waited.
        seconds: u64,
    },
    /// HTTP 401: the server does not know the credentials.
    #[error(
        "cannot {operation}: API server {server} refused the credentials (401 {message}); check the token or client certificate of the kubeconfig or service account"
    )]
    Unauthorized {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The server's words.
        message: String,
    },
    /// HTTP 403: the credentials are known, the permission is missing.
    #[error(
        "cannot {operation}: API server {server} forbids it: {message}; grant the verb to this account in its ClusterRole or Role"
    )]
    Forbidden {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The server's words, which name the account, the verb and the resource.
        message: String,
    },
    /// HTTP 404: the object does not exist.
    #[error("cannot {operation}: not found on API server {server}: {message}")]
    NotFound {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The server's words.
        message: String,
    },
    /// HTTP 409: somebody else changed or created the object first.
    #[error("cannot {operation}: it changed meanwhile on API server {server}: {message}")]
    Conflict {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The server's words.
        message: String,
    },
    /// HTTP 410: the asked-for version of the data is no longer kept; a new list is needed.
    #[error("cannot {operation}: API server {server} no longer keeps that version: {message}")]
    Gone {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The server's words.
        message: String,
    },
    /// HTTP 422 or 400: the server understood and refuses the content.
    #[error("cannot {operation}: API server {server} refuses it as invalid ({code}): {message}")]
    Invalid {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The HTTP status.
        code: u16,
        /// The server's words.
        message: String,
    },
    /// Any other refusal by the server.
    #[error("cannot {operation}: API server {server} answered {code} {reason}: {message}")]
    Api {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// The HTTP status.
        code: u16,
        /// The machine-readable reason.
        reason: String,
        /// The server's words.
        message: String,
    },
    /// The answer was not what the API promises.
    #[error(
        "cannot {operation}: the answer of {server} is not what the Kubernetes API promises: {reason}; check that the URL is a Kubernetes API server"
    )]
    Malformed {
        /// What was being done.
        operation: String,
        /// The server's URL.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The node under this name is another one than the one the caller saw: it was deleted and registered again.
    #[error(
        "cannot {operation}: node {node} was replaced (its UID is {actual}, expected {expected}); look at the new node first"
    )]
    NodeReplaced {
        /// What was being done.
        operation: String,
        /// The node's name.
        node: String,
        /// The UID the caller saw.
        expected: String,
        /// The UID found.
        actual: String,
    },
}

impl Error {
    /// Whether trying again later, unchanged, can help: the server was away, slow or overloaded.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Conflict { .. } | Self::Gone { .. } => {
                true
            }
            Self::Api { code, .. } => *code == 429 || *code >= 500,
            _ => false,
        }
    }

    /// Whether the object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether somebody else wrote first.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether the version asked for was compacted away.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }

    pub(crate) fn from_kube(operation: &str, server: &str, source: kube::Error) -> Self {
        let operation = operation.to_owned();
        let server = server.to_owned();
        match source {
            kube::Error::Api(status) => Self::from_status(operation, server, &status),
            kube::Error::SerdeError(source) => {
                Self::Malformed { operation, server, reason: source.to_string() }
            }
            kube::Error::FromUtf8(source) => {
                Self::Malformed { operation, server, reason: source.to_string() }
            }
            source => Self::Unreachable { operation, server, source: Box::new(source) },
        }
    }

    pub(crate) fn from_status(operation: String, server: String, status: &kube::core::Status) -> Self {
        let message = status.message.trim().to_owned();
        match status.code {
            401 => Self::Unauthorized { operation, server, message },
            403 => Self::Forbidden { operation, server, message },
            404 => Self::NotFound { operation, server, message },
            409 => Self::Conflict { operation, server, message },
            410 => Self::Gone { operation, server, message },
            code @ (400 | 422) => Self::Invalid { operation, server, code, message },
            code => Self::Api { operation, server, code, reason: status.reason.clone(), message },
        }
    }
}

/// An error with all its sources on one line; layers that repeat the text of the layer below are named once.
///
/// Of each text only the first line is shown: a YAML parser appends the lines around the fault, and in a kubeconfig those
/// may hold a token.
pub(crate) struct Chain<'a, E: std::error::Error + ?Sized>(pub(crate) &'a E);

impl<E: std::error::Error + ?Sized> std::fmt::Display for Chain<'_, E> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        let mut last = first_line(self.0.to_string());
        write!(out, "{last}")?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = first_line(error.to_string());
            if !last.contains(&text) {
                write!(out, ": {text}")?;
            }
            last = text;
            source = error.source();
        }
        Ok(())
    }
}

/// Why a server gave no answer, without the client library's names for its own layers.
struct Transport<'a>(&'a kube::Error);

impl std::fmt::Display for Transport<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match std::error::Error::source(self.0) {
            Some(source) => Chain(source).fmt(out),
            None => Chain(self.0).fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn layers_are_named_once_and_by_their_first_line() {
        let inner = Layer { text: "refused\n| token: secret", source: None };
        let middle = Layer { text: "connect: refused", source: Some(Box::new(inner)) };
        let outer = Layer { text: "client error", source: Some(Box::new(middle)) };
        assert_eq!(Chain(&outer).to_string(), "client error: connect: refused");
    }
}
