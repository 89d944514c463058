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
    /// `ALICLOUD_CLIENT_SCHEME`: `HTTP` or `HTTPS`.
    pub client_scheme: Option<String>,
    /// `ACCESS_KEY_ID`.
    pub access_key_id: Option<String>,
    /// `ACCESS_KEY_SECRET`.
    pub access_key_secret: Option<String>,
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
            client_scheme: read("ALICLOUD_CLIENT_SCHEME"),
            access_key_id: read("ACCESS_KEY_ID"),
            access_key_secret: read("ACCESS_KEY_SECRET"),
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
            .field("client_scheme", &self.client_scheme)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}
