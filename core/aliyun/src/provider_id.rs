//! Kubernetes provider IDs of ECS instances.
//!
//! A node names its instance as `cn-hangzhou.i-x` or `alicloud://cn-hangzhou.i-x`; the two are the same instance. Comparing the raw
//! texts makes an entry look foreign and get deleted and recreated for ever, so everything past this module compares [`ProviderId`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Region and instance of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderId {
    /// Region, e.g. `cn-hangzhou`.
    pub region: String,
    /// ECS instance, e.g. `i-bp1x`.
    pub instance: String,
}

/// Why a provider ID names no ECS instance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderIdError {
    /// A machine outside the VPC that no route entry can point at.
    #[error("provider ID {0:?} is a hybrid node's: it has no ECS instance, so the VPC cannot route to it")]
    Hybrid(String),
    /// Not of the form `<region>.<instance>`.
    #[error("provider ID {0:?} is not <region>.<instance> (with or without alicloud:// before it)")]
    Malformed(String),
}

impl FromStr for ProviderId {
    type Err = ProviderIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ProviderIdError::Malformed(text.to_owned());
        let bare = match text.split_once("://") {
            Some(("ack-hybrid", _)) => return Err(ProviderIdError::Hybrid(text.to_owned())),
            Some((_, bare)) => bare,
            None => text,
        };
        let (region, instance) = bare.split_once('.').ok_or_else(malformed)?;
        if region.is_empty()
            || instance.is_empty()
            || bare.bytes().any(|byte| matches!(byte, b'/' | b' '))
            || instance.contains('.')
        {
            return Err(malformed());
        }
        Ok(Self { region: region.to_owned(), instance: instance.to_owned() })
    }
}

impl fmt::Display for ProviderId {
    /// The normal form, without a scheme.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.region, self.instance)
    }
}

impl TryFrom<String> for ProviderId {
    type Error = ProviderIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProviderId> for String {
    fn from(id: ProviderId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_one_instance() {
        let bare: ProviderId = "cn-hangzhou.i-x".parse().unwrap();
        assert_eq!("alicloud://cn-hangzhou.i-x".parse::<ProviderId>().unwrap(), bare);
        assert_eq!(bare.to_string(), "cn-hangzhou.i-x");
    }

    #[test]
    fn what_is_no_instance_is_refused_with_the_text() {
        assert!(matches!("ack-hybrid://a.b".parse::<ProviderId>(), Err(ProviderIdError::Hybrid(_))));
        for text in ["", ".", "i-x", "cn-hangzhou.", ".i-x", "alicloud://", "a.b.c", "kind://docker/a/b.c"] {
            let error = text.parse::<ProviderId>().unwrap_err();
            assert_eq!(error, ProviderIdError::Malformed(text.to_owned()));
        }
    }
}
