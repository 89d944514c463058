//! Versions of the specification: which exist, which shape of result each has, and what each allows.
//!
//! A configuration names its version as text and is compared by exact text against the supported list, as the Go library does; order
//! matters only for the commands that a version does not have yet.

use crate::error::{Error, code};
use crate::json::Json;

/// Every version that the plugins speak, oldest first.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The newest version, also the shape that plugins work with inside.
pub const CURRENT: &str = "1.1.0";

/// Versions that share the shape of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// 0.1.0, 0.2.0 and an absent version: `ip4` and `ip6`.
    V02,
    /// 0.3.0, 0.3.1, 0.4.0: `interfaces` and `ips` with a `version` each.
    V04,
    /// 1.0.0, 1.1.0.
    V1,
}

impl Family {
    /// The family of a supported version; `None` for any other text.
    pub fn of(version: &str) -> Option<Self> {
        match version {
            "" | "0.1.0" | "0.2.0" => Some(Self::V02),
            "0.3.0" | "0.3.1" | "0.4.0" => Some(Self::V04),
            "1.0.0" | "1.1.0" => Some(Self::V1),
            _ => None,
        }
    }

    /// The members as the Go library prints them in its errors.
    pub fn members(self) -> &'static str {
        match self {
            Self::V02 => "[ 0.1.0 0.2.0]",
            Self::V04 => "[0.3.0 0.3.1 0.4.0]",
            Self::V1 => "[1.0.0 1.1.0]",
        }
    }
}

/// The version as numbers, one to three of them; missing ones are zero.
fn numbers(version: &str) -> Result<[u64; 3], Error> {
    let parts: Vec<&str> = version.split('.').collect();
    if version.is_empty() || parts.len() > 3 {
        return Err(Error::new(
            code::DECODING_FAILURE,
            format!("invalid version {version:?}: expected one to three dotted numbers"),
        ));
    }
    let mut numbers = [0; 3];
    for (slot, part) in numbers.iter_mut().zip(parts) {
        *slot = part.parse().map_err(|_| {
            Error::new(
                code::DECODING_FAILURE,
                format!("invalid version {version:?}: {part:?} is not a number"),
            )
        })?;
    }
    Ok(numbers)
}

/// Whether `version` is `other` or later.
///
/// # Errors
/// [`code::DECODING_FAILURE`] when either is not one to three dotted numbers.
pub fn at_least(version: &str, other: &str) -> Result<bool, Error> {
    Ok(numbers(version)? >= numbers(other)?)
}

/// The version that a configuration asks for; absent or empty is 0.1.0.
///
/// # Errors
/// [`code::DECODING_FAILURE`] when `cniVersion` is not a string.
pub fn of_config(config: &Json) -> Result<String, Error> {
    let version = crate::json::Fields::of(config, "")
        .and_then(|fields| fields.string("cniVersion"))
        .map_err(|error| {
            Error::new(code::DECODING_FAILURE, format!("decoding version from network config: {error}"))
        })?;
    Ok(match version {
        None | Some("") => "0.1.0".to_owned(),
        Some(version) => version.to_owned(),
    })
}

/// Refuses a version that is not on the plugin's list.
///
/// # Errors
/// [`code::INCOMPATIBLE_VERSION`] with both sides in the details.
pub fn check_supported(version: &str, supported: &[&str]) -> Result<(), Error> {
    if supported.contains(&version) {
        return Ok(());
    }
    let list: Vec<String> = supported.iter().map(|version| format!("{version:?}")).collect();
    Err(Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
        .with_details(format!("config is {version:?}, plugin supports [{}]", list.join(" "))))
}

/// Refuses a command that the configuration's version does not have: CHECK before 0.4.0, GC and STATUS before 1.1.0.
///
/// # Errors
/// [`code::INCOMPATIBLE_VERSION`], or [`code::DECODING_FAILURE`] for a version that is not a version.
pub fn check_allows(version: &str, supported: &[&str], command: &str, since: &str) -> Result<(), Error> {
    if !at_least(version, since)? {
        return Err(Error::new(
            code::INCOMPATIBLE_VERSION,
            format!("config version does not allow {command}"),
        ));
    }
    for ours in supported {
        if at_least(ours, version)? {
            return check_supported(version, supported);
        }
    }
    Err(Error::new(code::INCOMPATIBLE_VERSION, format!("plugin version does not allow {command}")))
}

/// The line that VERSION prints, newline included.
pub fn report(supported: &[&str]) -> String {
    let list: Vec<String> = supported.iter().map(|version| format!("{version:?}")).collect();
    format!("{{\"cniVersion\":{CURRENT:?},\"supportedVersions\":[{}]}}\n", list.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_numeric() {
        assert!(at_least("0.10.0", "0.4.0").unwrap());
        assert!(at_least("1", "0.4.0").unwrap());
        assert!(!at_least("0.3.1", "0.4.0").unwrap());
        assert!(at_least("1.x", "0.4.0").is_err());
        assert!(at_least("1.2.3.4", "0.4.0").is_err());
    }

    #[test]
    fn refusals_have_the_texts_people_search_for() {
        let error = check_supported("1.2.0", &["0.1.0", "0.2.0"]).unwrap_err();
        assert_eq!(error.details, r#"config is "1.2.0", plugin supports ["0.1.0" "0.2.0"]"#);
        let error = check_allows("0.3.1", &SUPPORTED, "CHECK", "0.4.0").unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (1, "config version does not allow CHECK"));
        let error = check_allows("1.2.0", &SUPPORTED, "CHECK", "0.4.0").unwrap_err();
        assert_eq!(error.message, "plugin version does not allow CHECK");
        assert!(check_allows("1.0.0", &SUPPORTED, "CHECK", "0.4.0").is_ok());
        assert!(check_allows("1.0.0", &SUPPORTED, "STATUS", "1.1.0").is_err());
    }

    #[test]
    fn version_line() {
        assert_eq!(
            report(&["0.1.0", "1.1.0"]),
            "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"1.1.0\"]}\n"
        );
    }
}
