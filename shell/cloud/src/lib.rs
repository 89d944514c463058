//! The Alibaba Cloud API over HTTP: transport, credentials, metadata service, and the route-table port.
//!
//! Owns every conversation with the cloud. What must hold: an answer is complete or it is an error (a page that failed or a list cut short
//! is never a shorter list), and no secret reaches a log, an error or a debug text.
//!
//! - [`connect`]: everything a controller needs, from a configuration file, the environment and the metadata service.
//! - [`Client`]: typed calls; also the [`loden_routes::port`] of the route controller.
//! - [`Credentials`]: a fixed access key, or temporary ones of a managed cluster's token file, of the pod's service account or of the instance's RAM
//!   role, renewed before they expire.
//! - [`ConfigWatch`]: tells when the configuration file changed.
//! - [`Metadata`]: what the instance knows about itself; useful alone.

mod client;
mod config;
mod connect;
mod credentials;
mod endpoint;
mod environment;
mod http;
mod instances;
mod metadata;
mod reload;
mod tables;

pub use client::{CallCause, CallError, Client, Observe};
pub use config::{CloudConfig, CloudConfigError};
pub use connect::{ConnectError, Connection, Options, connect};
pub use credentials::{AddonFile, Credentials, CredentialsError, OidcRole, Standing};
pub use endpoint::{Endpoint, EndpointError, Endpoints, Network};
pub use environment::Environment;
pub use loden_aliyun::sign::AccessKey;
pub use metadata::{Metadata, MetadataError};
pub use reload::{ConfigWatch, Reload};
