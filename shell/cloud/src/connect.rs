//! From configuration to a client: which region, which VPC, which tables, whose credentials.

use std::path::PathBuf;

use loden_aliyun::sign::AccessKey;

use crate::client::Client;
use crate::config::{CloudConfig, CloudConfigError};
use crate::credentials::Credentials;
use crate::endpoint::{EndpointError, Endpoints, Network};
use crate::environment::Environment;
use crate::metadata::{Metadata, MetadataError};

/// What is known before the cloud is asked. Options win over the cloud-config file, which wins over the metadata service.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The cloud-config file.
    pub cloud_config: Option<PathBuf>,
    /// Region.
    pub region: Option<String>,
    /// VPC.
    pub vpc_id: Option<String>,
    /// Which of the vendor's endpoints to use.
    pub network: Network,
    /// The environment.
    pub environment: Environment,
}

/// A client and what it is for.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The client.
    pub client: Client,
    /// The metadata service.
    pub metadata: Metadata,
    /// Region.
    pub region: String,
    /// VPC.
    pub vpc_id: String,
    /// Route tables that the cloud-config file names; empty when it names none.
    pub route_table_ids: Vec<String>,
    /// The cluster's ID in the cloud-config file.
    pub cluster_id: Option<String>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The cloud-config file cannot be used.
    #[error(transparent)]
    Config(#[from] CloudConfigError),
    /// An endpoint cannot be used.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Region or VPC is configured nowhere and the metadata service does not tell.
    #[error("the {what} is not known: {source}; set it in the cloud config, or run on an ECS instance")]
    Unknown {
        /// What is missing.
        what: &'static str,
        /// Why the metadata service does not tell.
        source: MetadataError,
    },
    /// The metadata service's address cannot be used.
    #[error(transparent)]
    Metadata(MetadataError),
    /// Only half an access key is in the environment.
    #[error("ACCESS_KEY_ID and ACCESS_KEY_SECRET have to be set together; {0} is missing")]
    HalfKey(&'static str),
    /// This machine has no certificates to trust.
    #[error("cannot use HTTPS: {0}; install ca-certificates, or set ALICLOUD_CLIENT_SCHEME=HTTP")]
    Tls(std::io::Error),
}

/// Gathers what a controller needs. Credentials are taken from the cloud-config file, else from the environment, else from the RAM role of
/// this instance; those of a role are fetched with the first call.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(options: &Options) -> Result<Connection, ConnectError> {
    let environment = &options.environment;
    let config = options.cloud_config.as_deref().map(CloudConfig::read).transpose()?.unwrap_or_default();
    let metadata = Metadata::from_environment(environment).map_err(ConnectError::Metadata)?;
    let credentials = choose_credentials(config.access_key, environment, &metadata)?;
    let unknown = |what| move |source| ConnectError::Unknown { what, source };
    let region = match options.region.clone().or(config.region) {
        Some(region) => region,
        None => metadata.region_id().await.map_err(unknown("region"))?,
    };
    let vpc_id = match options.vpc_id.clone().or(config.vpc_id) {
        Some(vpc_id) => vpc_id,
        None => metadata.vpc_id().await.map_err(unknown("VPC"))?,
    };
    let endpoints = Endpoints::of(&region, options.network, environment)?;
    let client = Client::new(&region, endpoints, credentials).map_err(ConnectError::Tls)?;
    Ok(Connection {
        client,
        metadata,
        region,
        vpc_id,
        route_table_ids: config.route_table_ids,
        cluster_id: config.cluster_id,
    })
}

fn choose_credentials(
    configured: Option<AccessKey>,
    environment: &Environment,
    metadata: &Metadata,
) -> Result<Credentials, ConnectError> {
    if let Some(key) = configured {
        return Ok(Credentials::fixed(key, "the cloud config"));
    }
    match (&environment.access_key_id, &environment.access_key_secret) {
        (Some(id), Some(secret)) => {
            let key = AccessKey { id: id.trim().to_owned(), secret: secret.trim().to_owned(), token: None };
            Ok(Credentials::fixed(key, "ACCESS_KEY_ID and ACCESS_KEY_SECRET"))
        }
        (None, None) => Ok(Credentials::role(metadata.clone())),
        (None, Some(_)) => Err(ConnectError::HalfKey("ACCESS_KEY_ID")),
        (Some(_), None) => Err(ConnectError::HalfKey("ACCESS_KEY_SECRET")),
    }
}
