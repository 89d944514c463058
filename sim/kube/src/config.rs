//! How the emulator is set up, and how clients are told about it.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use tokio::net::TcpListener;

use crate::{Emulator, Tls, TlsError, Verb};

/// A bearer token and whom it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The secret that clients send.
    pub token: String,
    /// The account's name in refusals.
    pub user: String,
    /// What the account may do; `None` is everything.
    pub permissions: Option<Vec<Permission>>,
}

impl Token {
    /// A token that may do everything.
    #[must_use]
    pub fn admin(token: &str) -> Self {
        Self { token: token.to_owned(), user: "admin".to_owned(), permissions: None }
    }
}

/// One line of a role: these verbs on these resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// The resources, such as `nodes` or `nodes/status`; `*` is all of them.
    pub resources: Vec<String>,
    /// The verbs; empty is all of them.
    pub verbs: Vec<Verb>,
}

/// How a watch from a forgotten version is refused. Servers have done both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpiredWatch {
    /// HTTP 200 and an `ERROR` event with code 410, as today's API server does.
    #[default]
    Event,
    /// HTTP 410.
    Http,
}

/// The emulator's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Accepted tokens. With none, everybody may do everything without a token.
    pub tokens: Vec<Token>,
    /// The revision before the first change. Must be higher than any revision that a client of an earlier run may
    /// remember; the default is the time in milliseconds, which outruns any real rate of changes.
    pub first_revision: u64,
    /// How many changes are remembered for watches and pages.
    pub history: usize,
    /// How often a quiet watch gets a bookmark, when it asked for them.
    pub bookmark_interval: Duration,
    /// How a watch from a forgotten version is refused.
    pub expired_watch: ExpiredWatch,
    /// The version of Kubernetes that `/version` tells.
    pub version: String,
}

impl Default for Config {
    fn default() -> Self {
        let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        Self {
            tokens: Vec::new(),
            first_revision: u64::try_from(milliseconds).unwrap_or_default(),
            history: 10_000,
            bookmark_interval: Duration::from_secs(60),
            expired_watch: ExpiredWatch::default(),
            version: "v1.34.1".to_owned(),
        }
    }
}

/// A kubeconfig for clients of an emulator without TLS: one cluster, one user, one context named `loden`. Mind that
/// kubectl sends no token without TLS; other clients do.
#[must_use]
pub fn kubeconfig(server_url: &str, token: &str) -> String {
    render(server_url, token, "")
}

/// A kubeconfig for clients of an emulator with TLS.
#[must_use]
pub fn tls_kubeconfig(server_url: &str, token: &str, tls: &Tls) -> String {
    let authority = base64::engine::general_purpose::STANDARD.encode(tls.authority_pem());
    render(server_url, token, &format!("    certificate-authority-data: {authority}\n"))
}

fn render(server_url: &str, token: &str, authority: &str) -> String {
    // A JSON string is a YAML string, with all the quoting that an odd token may need.
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: loden\nclusters:\n- name: loden\n  cluster:\n    server: {}\n{authority}contexts:\n- name: loden\n  context:\n    cluster: loden\n    user: loden\nusers:\n- name: loden\n  user:\n    token: {}\n",
        quote(server_url),
        quote(token),
    )
}

/// Writes the [`kubeconfig`] of an emulator without TLS to a file that only its owner can read, whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn write_kubeconfig(path: &Path, server_url: &str, token: &str) -> std::io::Result<()> {
    write_private(path, &kubeconfig(server_url, token))
}

fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = PathBuf::from(draft);
    let written = (|| {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    })();
    if written.is_err() {
        let _nothing_more_to_do = std::fs::remove_file(&draft);
    }
    written
}

/// Why the emulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose a free port and an address of this host")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The kubeconfig cannot be written.
    #[error("cannot write kubeconfig {}: {source}; give a path in a writable directory", path.display())]
    Kubeconfig {
        /// The path asked for.
        path: PathBuf,
        /// What the file system said.
        source: std::io::Error,
    },
    /// No certificate could be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Listens on an address, writes a kubeconfig where asked for, tells `ready` the URL (the kernel may have chosen the
/// port), and serves until dropped. With tokens it speaks TLS, since a token must not travel in the clear and kubectl
/// would not send it; without, plain HTTP.
///
/// # Errors
/// When the address cannot be had or the file not be written; never once `ready` was called.
pub async fn run(
    config: Config,
    address: SocketAddr,
    kubeconfig_path: Option<&Path>,
    ready: impl FnOnce(&str),
) -> Result<(), RunError> {
    let listen = |source| RunError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let token = config.tokens.first().map(|token| token.token.clone());
    let tls = match &token {
        Some(_) => Some(Tls::new(&["localhost".to_owned(), address.ip().to_string()])?),
        None => None,
    };
    // An address that stands for all is none to connect to.
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{host}:{}", address.port());
    if let Some(path) = kubeconfig_path {
        let token = token.unwrap_or_default();
        let content = match &tls {
            Some(tls) => tls_kubeconfig(&url, &token, tls),
            None => kubeconfig(&url, &token),
        };
        write_private(path, &content)
            .map_err(|source| RunError::Kubeconfig { path: path.to_owned(), source })?;
    }
    let emulator = Emulator::new(config);
    ready(&url);
    match &tls {
        Some(tls) => emulator.serve_tls(listener, tls).await,
        None => emulator.serve(listener).await,
    }
    Ok(())
}
