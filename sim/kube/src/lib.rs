//! An emulator of the part of the Kubernetes API that Loden needs, speaking the real protocol: `kubectl` and anybody's
//! client library work against it.
//!
//! Served are nodes, pods, events, configmaps, secrets, namespaces, service accounts, leases, daemonsets, deployments, roles
//! and their bindings, with discovery, OpenAPI, lists in pages, tables, watches with bookmarks, all four kinds of patch,
//! optimistic concurrency, ownership of fields, strict validation, bearer tokens with permissions, and the `Status` object
//! that explains each refusal. There is no scheduler, no kubelet and no controller: an object changes when a client
//! changes it, and roles grant nothing ([`Permission`] does). Answers are JSON; bodies in protobuf are read for the small
//! kinds and else answered with 415.
//!
//! The model (versions, log, rules) knows nothing of HTTP; [`Handle`] reaches it from inside the process.
//!
//! What must hold: revisions only grow, also over a restart of the program (see [`Config::first_revision`]), and
//! whoever asks for a past that is no longer kept is told so and never gets a part of it. If that broke, clients would
//! believe in nodes that are gone.

mod config;
mod defaults;
mod discovery;
mod failure;
mod handle;
mod http;
mod listing;
mod model;
mod openapi;
mod ownership;
mod patch;
mod protobuf;
mod representation;
mod request;
mod resource;
mod rules;
mod schema;
mod selector;
mod shared;
mod store;
mod table;
mod tls;
mod watch;

pub use config::{
    Config, ExpiredWatch, Permission, RunError, Token, kubeconfig, run, tls_kubeconfig, write_kubeconfig,
};
pub use failure::Failure;
pub use handle::{Fault, Handle};
pub use patch::PatchType;
pub use request::Verb;
pub use resource::Resource;
pub use tls::{Tls, TlsError};

use std::sync::Arc;

use tokio::net::TcpListener;

/// The emulated API server. Cheap to clone; all clones are the same cluster.
#[derive(Debug, Clone)]
pub struct Emulator {
    shared: Arc<shared::Shared>,
}

impl Emulator {
    /// A cluster with the four namespaces that every cluster has and nothing else.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { shared: Arc::new(shared::Shared::new(config)) }
    }

    /// A door into the cluster that needs no HTTP.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// Serves the API on a listener until the future is dropped, which cuts every connection. May run on several
    /// listeners at once, and again after it was dropped: the cluster's state stays.
    pub async fn serve(&self, listener: TcpListener) {
        http::serve(&self.shared, listener, None).await;
    }

    /// As [`Emulator::serve`], over TLS.
    pub async fn serve_tls(&self, listener: TcpListener, tls: &Tls) {
        http::serve(&self.shared, listener, Some(tls)).await;
    }
}
