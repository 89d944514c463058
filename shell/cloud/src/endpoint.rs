//! Where the API is: the vendor's rule for host names, and overrides.

use std::fmt;

use loden_aliyun::Product;

use crate::environment::Environment;

/// Which of the vendor's endpoints to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Reachable from inside a VPC without an address on the internet.
    #[default]
    Vpc,
    /// Reachable from the internet.
    Public,
}

/// Scheme and authority of an API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether to use TLS.
    pub tls: bool,
    /// Host with port, as it goes into the `host` header.
    pub authority: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// An endpoint that was set and makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?} is not valid: {problem}")]
pub struct EndpointError {
    name: &'static str,
    value: String,
    problem: &'static str,
}

/// The endpoints of the APIs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// VPC.
    pub vpc: Endpoint,
    /// ECS.
    pub ecs: Endpoint,
    /// Quota Center.
    pub quotas: Endpoint,
    /// Security Token Service.
    pub sts: Endpoint,
}

impl Endpoints {
    /// The vendor's endpoints of `region`, unless the environment says otherwise.
    ///
    /// # Errors
    /// The environment holds an endpoint or a scheme that makes no sense.
    pub fn of(region: &str, network: Network, environment: &Environment) -> Result<Self, EndpointError> {
        let scheme = environment.client_scheme.as_deref().map(read_scheme).transpose()?;
        let choose = |product, name, override_: Option<&String>| match override_ {
            Some(text) => read_override(name, text, scheme),
            None => Ok(Endpoint {
                tls: scheme.unwrap_or(true),
                authority: default_authority(product, region, network),
            }),
        };
        Ok(Self {
            vpc: choose(Product::Vpc, "VPC_ENDPOINT", environment.vpc_endpoint.as_ref())?,
            ecs: choose(Product::Ecs, "ECS_ENDPOINT", environment.ecs_endpoint.as_ref())?,
            quotas: choose(Product::Quotas, "QUOTAS_ENDPOINT", environment.quotas_endpoint.as_ref())?,
            sts: choose(Product::Sts, "STS_ENDPOINT", environment.sts_endpoint.as_ref())?,
        })
    }

    /// One server for all of them, as an emulator is.
    #[must_use]
    pub fn all_at(endpoint: Endpoint) -> Self {
        Self { vpc: endpoint.clone(), ecs: endpoint.clone(), quotas: endpoint.clone(), sts: endpoint }
    }

    /// The endpoint of a product.
    #[must_use]
    pub fn get(&self, product: Product) -> &Endpoint {
        match product {
            Product::Vpc => &self.vpc,
            Product::Ecs => &self.ecs,
            Product::Quotas => &self.quotas,
            Product::Sts => &self.sts,
        }
    }
}

/// cn-hangzhou's public endpoints of VPC and ECS have no region in their names; the internal ones always do. Quota Center has one endpoint, on the internet.
fn default_authority(product: Product, region: &str, network: Network) -> String {
    let label = product.label();
    if product == Product::Quotas {
        return format!("{label}.aliyuncs.com");
    }
    match (network, region) {
        (Network::Vpc, _) => format!("{label}-vpc.{region}.aliyuncs.com"),
        (Network::Public, "cn-hangzhou") if product != Product::Sts => format!("{label}.aliyuncs.com"),
        (Network::Public, _) => format!("{label}.{region}.aliyuncs.com"),
    }
}

fn read_scheme(text: &str) -> Result<bool, EndpointError> {
    if text.eq_ignore_ascii_case("http") {
        Ok(false)
    } else if text.eq_ignore_ascii_case("https") {
        Ok(true)
    } else {
        Err(EndpointError {
            name: "ALICLOUD_CLIENT_SCHEME",
            value: text.to_owned(),
            problem: "it has to be HTTP or HTTPS",
        })
    }
}

/// Host with port, or a URL of which scheme and host are taken. A scheme set for all wins over a URL's own.
fn read_override(name: &'static str, text: &str, scheme: Option<bool>) -> Result<Endpoint, EndpointError> {
    let wrong = |problem| EndpointError { name, value: text.to_owned(), problem };
    let (own, rest) = match text.trim().split_once("://") {
        Some((own, rest)) => {
            (Some(read_scheme(own).map_err(|_| wrong("its scheme has to be http or https"))?), rest)
        }
        None => (None, text.trim()),
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let parsed: http::uri::Authority =
        authority.parse().map_err(|_| wrong("it has to be host[:port] or a URL"))?;
    if parsed.host().is_empty() || authority.contains('@') {
        return Err(wrong("it has to be host[:port] or a URL"));
    }
    Ok(Endpoint { tls: scheme.or(own).unwrap_or(true), authority: authority.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(region: &str, network: Network, environment: &Environment) -> (String, String) {
        let endpoints = Endpoints::of(region, network, environment).unwrap();
        (endpoints.vpc.to_string(), endpoints.ecs.to_string())
    }

    #[test]
    fn the_vendors_rule() {
        let none = Environment::default();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            of("cn-hangzhou", Network::Vpc, &none),
            pair("https://vpc-vpc.cn-hangzhou.aliyuncs.com", "https://ecs-vpc.cn-hangzhou.aliyuncs.com")
        );
        assert_eq!(
            of("cn-hangzhou", Network::Public, &none),
            pair("https://vpc.aliyuncs.com", "https://ecs.aliyuncs.com")
        );
        assert_eq!(
            of("eu-central-1", Network::Public, &none),
            pair("https://vpc.eu-central-1.aliyuncs.com", "https://ecs.eu-central-1.aliyuncs.com")
        );
    }

    #[test]
    fn the_environment_overrides_host_and_scheme() {
        let environment = Environment {
            vpc_endpoint: Some("127.0.0.1:8790".into()),
            ecs_endpoint: Some("https://ecs.example:443/ignored".into()),
            client_scheme: Some("HTTP".into()),
            ..Environment::default()
        };
        assert_eq!(
            of("x", Network::Vpc, &environment),
            ("http://127.0.0.1:8790".to_owned(), "http://ecs.example:443".to_owned())
        );
        let own = Environment { client_scheme: None, vpc_endpoint: Some("http://h".into()), ..environment };
        assert_eq!(of("x", Network::Vpc, &own).0, "http://h");
    }

    #[test]
    fn nonsense_is_named() {
        for (environment, name) in [
            (
                Environment { client_scheme: Some("ftp".into()), ..Environment::default() },
                "ALICLOUD_CLIENT_SCHEME",
            ),
            (Environment { vpc_endpoint: Some("a b".into()), ..Environment::default() }, "VPC_ENDPOINT"),
            (
                Environment { ecs_endpoint: Some("gopher://x".into()), ..Environment::default() },
                "ECS_ENDPOINT",
            ),
            (Environment { ecs_endpoint: Some("http://".into()), ..Environment::default() }, "ECS_ENDPOINT"),
        ] {
            let error = Endpoints::of("r", Network::Vpc, &environment).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
