//! From configuration to a client: which region, which VPC, which tables, whose credentials.

use std::path::{Path, PathBuf};

use loden_aliyun::addon;
use loden_aliyun::sign::AccessKey;

use crate::client::Client;
use crate::config::{CloudConfig, CloudConfigError};
use crate::credentials::{AddonFile, Credentials, OidcRole};
use crate::endpoint::{EndpointError, Endpoints, Network};
use crate::environment::Environment;
use crate::http::Http;
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

impl Options {
    /// What the cloud-config file says now; nothing when there is none.
    pub(crate) fn read_config(&self) -> Result<CloudConfig, CloudConfigError> {
        Ok(self.cloud_config.as_deref().map(CloudConfig::read).transpose()?.unwrap_or_default())
    }
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
    /// What the client signs with; exchanged here when it changed at its source.
    pub credentials: Credentials,
    /// What in the cloud-config file has no effect, as sentences.
    pub remarks: Vec<String>,
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
    /// Only a part of what a role by OIDC needs is in the environment.
    #[error(
        "ALIBABA_CLOUD_ROLE_ARN, ALIBABA_CLOUD_OIDC_PROVIDER_ARN and ALIBABA_CLOUD_OIDC_TOKEN_FILE have to be set together; {0} is missing"
    )]
    HalfRole(&'static str),
    /// This machine has no certificates to trust.
    #[error("cannot use HTTPS: {0}; install ca-certificates, or set ALICLOUD_CLIENT_SCHEME=HTTP")]
    Tls(std::io::Error),
}

/// Gathers what a controller needs. Temporary credentials are fetched with the first call.
///
/// Whose they are: of a managed cluster's token file where there is one; else the access key of the cloud-config file; else that of the environment, with its
/// `SECURITY_TOKEN` where it is temporary; else those of the role that the pod's service account may have; else those of the instance's RAM role. The order is
/// the vendor's, with the pod's role before the instance's.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(options: &Options) -> Result<Connection, ConnectError> {
    let environment = &options.environment;
    let config = options.read_config()?;
    let metadata = Metadata::from_environment(environment).map_err(ConnectError::Metadata)?;
    let unknown = |what| move |source| ConnectError::Unknown { what, source };
    let region = match options.region.clone().or_else(|| config.region.clone()) {
        Some(region) => region,
        None => metadata.region_id().await.map_err(unknown("region"))?,
    };
    let vpc_id = match options.vpc_id.clone().or_else(|| config.vpc_id.clone()) {
        Some(vpc_id) => vpc_id,
        None => metadata.vpc_id().await.map_err(unknown("VPC"))?,
    };
    let endpoints = Endpoints::of(&region, options.network, environment)?;
    let credentials = choose_credentials(&config, environment, &metadata, &endpoints)?;
    let client = Client::new(&region, endpoints, credentials.clone()).map_err(ConnectError::Tls)?;
    tracing::info!(origin = credentials.origin(), "credentials");
    Ok(Connection {
        client,
        metadata,
        region,
        vpc_id,
        route_table_ids: config.route_table_ids,
        cluster_id: config.cluster_id,
        credentials,
        remarks: config.remarks,
    })
}

/// Whose credentials are used, in the order that [`connect`] gives.
pub(crate) fn choose_credentials(
    config: &CloudConfig,
    environment: &Environment,
    metadata: &Metadata,
    endpoints: &Endpoints,
) -> Result<Credentials, ConnectError> {
    let addon = AddonFile::new(Path::new(environment.addon_token_file.as_deref().unwrap_or(addon::PATH)));
    if environment.addon_token_file.is_some() || addon.exists() {
        return Ok(Credentials::addon(addon));
    }
    if let Some(key) = &config.access_key {
        return Ok(Credentials::fixed(key.clone(), "the cloud config"));
    }
    match (&environment.access_key_id, &environment.access_key_secret) {
        (Some(id), Some(secret)) => {
            let token = environment.security_token.as_deref().map(|token| token.trim().to_owned());
            let key = AccessKey { id: id.trim().to_owned(), secret: secret.trim().to_owned(), token };
            Ok(Credentials::fixed(key, "ACCESS_KEY_ID and ACCESS_KEY_SECRET"))
        }
        (None, Some(_)) => Err(ConnectError::HalfKey("ACCESS_KEY_ID")),
        (Some(_), None) => Err(ConnectError::HalfKey("ACCESS_KEY_SECRET")),
        (None, None) => match oidc_role(environment, endpoints)? {
            Some(role) => Ok(Credentials::oidc(role)),
            None => Ok(Credentials::role(metadata.clone())),
        },
    }
}

fn oidc_role(environment: &Environment, endpoints: &Endpoints) -> Result<Option<OidcRole>, ConnectError> {
    let Environment { role_arn, oidc_provider_arn, oidc_token_file, role_session_name, .. } = environment;
    if role_arn.is_none() && oidc_provider_arn.is_none() && oidc_token_file.is_none() {
        return Ok(None);
    }
    let needed = |value: &Option<String>, name| match value {
        Some(value) => Ok(value.trim().to_owned()),
        None => Err(ConnectError::HalfRole(name)),
    };
    Ok(Some(OidcRole {
        role_arn: needed(role_arn, "ALIBABA_CLOUD_ROLE_ARN")?,
        provider_arn: needed(oidc_provider_arn, "ALIBABA_CLOUD_OIDC_PROVIDER_ARN")?,
        token_file: needed(oidc_token_file, "ALIBABA_CLOUD_OIDC_TOKEN_FILE")?.into(),
        session_name: role_session_name.clone().unwrap_or_else(|| "loden-controller".to_owned()),
        endpoint: endpoints.sts.clone(),
        http: Http::for_endpoints(endpoints).map_err(ConnectError::Tls)?,
    }))
}
