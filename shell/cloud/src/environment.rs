//! The environment variables that this crate obeys, read once.

use std::fmt;

/// Variables as they were found; absent and empty ones are `None`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `METADATA_ENDPOINT`: base of the metadata service.
    pub metadata_endpoint: Option<String>,
    /// `VPC_ENDPOINT`: host with port, or a URL.
    pub vpc_endpoint: Option<String>,
    /// `ECS_ENDPOINT`: host with port, or a URL.
    pub ecs_endpoint: Option<String>,
    /// `QUOTAS_ENDPOINT`: where Quota Center is.
    pub quotas_endpoint: Option<String>,
    /// `STS_ENDPOINT`: where the Security Token Service is.
    pub sts_endpoint: Option<String>,
    /// `ALICLOUD_CLIENT_SCHEME`: `HTTP` or `HTTPS`.
    pub client_scheme: Option<String>,
    /// `ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// `ACCESS_KEY_SECRET`.
    pub access_key_secret: Option<String>,
    /// `SECURITY_TOKEN`: belongs to a temporary access key.
    pub security_token: Option<String>,
    /// `ALIBABA_CLOUD_ROLE_ARN`: the role that the pod's service account may have.
    pub role_arn: Option<String>,
    /// `ALIBABA_CLOUD_OIDC_PROVIDER_ARN`.
    pub oidc_provider_arn: Option<String>,
    /// `ALIBABA_CLOUD_OIDC_TOKEN_FILE`.
    pub oidc_token_file: Option<String>,
    /// `ALIBABA_CLOUD_ROLE_SESSION_NAME`.
    pub role_session_name: Option<String>,
    /// `ADDON_TOKEN_FILE`: in place of the vendor's path of a managed cluster's token file.
    pub addon_token_file: Option<String>,
}

impl Environment {
    /// Reads the environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let read = |name| std::env::var(name).ok().filter(|value: &String| !value.trim().is_empty());
        Self {
            metadata_endpoint: read("METADATA_ENDPOINT"),
            vpc_endpoint: read("VPC_ENDPOINT"),
            ecs_endpoint: read("ECS_ENDPOINT"),
            quotas_endpoint: read("QUOTAS_ENDPOINT"),
            sts_endpoint: read("STS_ENDPOINT"),
            client_scheme: read("ALICLOUD_CLIENT_SCHEME"),
            access_key_id: read("ACCESS_KEY_ID"),
            access_key_secret: read("ACCESS_KEY_SECRET"),
            security_token: read("SECURITY_TOKEN"),
            role_arn: read("ALIBABA_CLOUD_ROLE_ARN"),
            oidc_provider_arn: read("ALIBABA_CLOUD_OIDC_PROVIDER_ARN"),
            oidc_token_file: read("ALIBABA_CLOUD_OIDC_TOKEN_FILE"),
            role_session_name: read("ALIBABA_CLOUD_ROLE_SESSION_NAME"),
            addon_token_file: read("ADDON_TOKEN_FILE"),
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("metadata_endpoint", &self.metadata_endpoint)
            .field("vpc_endpoint", &self.vpc_endpoint)
            .field("ecs_endpoint", &self.ecs_endpoint)
            .field("quotas_endpoint", &self.quotas_endpoint)
            .field("sts_endpoint", &self.sts_endpoint)
            .field("client_scheme", &self.client_scheme)
            .field("access_key_id", &self.access_key_id)
            .field("role_arn", &self.role_arn)
            .field("oidc_provider_arn", &self.oidc_provider_arn)
            .field("oidc_token_file", &self.oidc_token_file)
            .field("role_session_name", &self.role_session_name)
            .field("addon_token_file", &self.addon_token_file)
            .finish_non_exhaustive()
    }
}
