//! What every plugin reads from its configuration: name, version, and the result of the plugin before it.

use crate::error::{Error, code};
use crate::json::{Fields, Json};
use crate::result::CniResult;
use crate::{env, version};

/// A configuration whose network name and version have been checked for form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Everything that was on standard input.
    pub json: Json,
    /// `name`: the network's name.
    pub name: String,
    /// The version that results are printed in; 0.1.0 when the configuration names none.
    pub version: String,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`code::DECODING_FAILURE`] for what is not a JSON object, [`code::INVALID_NETWORK_CONFIG`] for a missing or malformed name.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let decoding = |error: &dyn std::fmt::Display| {
            Error::new(code::DECODING_FAILURE, format!("error unmarshall network config: {error}"))
        };
        let json = Json::parse(text).map_err(|error| decoding(&error))?;
        let name = Fields::of(&json, "")
            .and_then(|fields| fields.string("name"))
            .map_err(|error| decoding(&error))?
            .unwrap_or_default()
            .to_owned();
        env::validate_network_name(&name)?;
        let version = version::of_config(&json)?;
        Ok(Self { json, name, version })
    }

    /// The configuration as a structure.
    ///
    /// # Errors
    /// The configuration is not an object.
    pub fn fields(&self) -> Result<Fields<'_>, Error> {
        Fields::of(&self.json, "")
            .map_err(|error| Error::internal(format!("failed to load netconf: {error}")))
    }

    /// `ipam.type`; `None` when absent or empty, which means that the plugin gives no addresses.
    ///
    /// # Errors
    /// A key of the wrong type.
    pub fn ipam_type(&self) -> Result<Option<String>, Error> {
        let ipam = self.fields()?.object("ipam").map_err(load_error)?;
        let kind = match ipam {
            Some(ipam) => ipam.string("type").map_err(load_error)?,
            None => None,
        };
        Ok(kind.filter(|kind| !kind.is_empty()).map(str::to_owned))
    }

    /// `prevResult`, when given.
    ///
    /// # Errors
    /// It is of another family than the configuration, or malformed.
    pub fn previous(&self) -> Result<Option<CniResult>, Error> {
        let Some(json) = self.fields()?.get("prevResult") else { return Ok(None) };
        CniResult::parse(json, &self.version)
            .map(Some)
            .map_err(|error| Error::internal(format!("could not parse prevResult: {error}")))
    }
}

/// A key of the wrong type in a configuration.
pub(crate) fn load_error(error: crate::json::Mismatch) -> Error {
    Error::internal(format!("failed to load netconf: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_versions() {
        let error = Config::parse(b"").unwrap_err();
        assert_eq!(error.code, code::DECODING_FAILURE);
        assert!(error.message.starts_with("error unmarshall network config: "));
        assert_eq!(Config::parse(b"{\"cniVersion\":1}").unwrap_err().message, "missing network name");
        assert_eq!(
            Config::parse(b"{\"name\":\"x\",\"cniVersion\":1}").unwrap_err().code,
            code::DECODING_FAILURE
        );
        assert_eq!(Config::parse(b"{\"NAME\":\"x\"}").unwrap().version, "0.1.0");
    }

    #[test]
    fn previous_results_inherit_the_version() {
        let config = Config::parse(
            br#"{"name":"x","cniVersion":"0.4.0","prevResult":{"ips":[{"address":"10.0.0.2/24"}]}}"#,
        )
        .unwrap();
        assert_eq!(config.previous().unwrap().unwrap().ips.len(), 1);
        let config =
            Config::parse(br#"{"name":"x","cniVersion":"0.4.0","prevResult":{"cniVersion":"0.2.0"}}"#)
                .unwrap();
        assert_eq!(
            config.previous().unwrap_err().message,
            r#"could not parse prevResult: result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is "0.2.0""#
        );
    }
}
