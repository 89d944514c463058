//! The error object that a plugin prints on standard output, and its codes.
//!
//! Runtimes read this object and nothing else from a failed plugin, so it must be the only thing on standard output, and the code must be
//! the one the specification (section "Error") gives. A failure without a code of its own carries [`code::INTERNAL`], as every plugin
//! built on the Go library does.

use std::fmt;

use crate::json::{Fields, Json};

/// Codes of the CNI specification and of its Go library.
pub mod code {
    /// The configuration's version is not one that the plugin speaks, or forbids the command.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A field of the configuration is understood but not supported; the message names key and value.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container is unknown or its ID is missing.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_*` variable is missing or malformed.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// Reading the configuration from standard input failed.
    pub const IO_FAILURE: u32 = 5;
    /// The configuration is not JSON of the expected shape.
    pub const DECODING_FAILURE: u32 = 6;
    /// The configuration's network name is missing or malformed.
    pub const INVALID_NETWORK_CONFIG: u32 = 7;
    /// `CNI_NETNS` is the plugin's own network namespace.
    pub const INVALID_NETNS: u32 = 8;
    /// The runtime should repeat the command later.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// STATUS: the plugin cannot serve ADD now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// First of the plugin specific codes; used for a command that this build does not have yet.
    pub const COMMAND_NOT_BUILT: u32 = 100;
    /// Everything else.
    pub const INTERNAL: u32 = 999;
}

/// What a failed plugin tells its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// One of [`code`], or a delegate's own code.
    pub code: u32,
    /// One line that names the operation, the object and the cause.
    pub message: String,
    /// More for people; omitted from the object when empty.
    pub details: String,
}

impl Error {
    /// An error with a code and a message.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// An error without a code of its own ([`code::INTERNAL`]).
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(code::INTERNAL, message)
    }

    /// The same error with `details`.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The message of `error` and of everything that caused it, joined by `: `, without a code of its own.
    pub fn from_chain(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = inner.source();
        }
        Self::internal(message)
    }

    /// Adds that undoing the failed work failed as well, so that neither error is lost.
    #[must_use]
    pub fn and_cleanup(mut self, failures: &[String]) -> Self {
        if !failures.is_empty() {
            if !self.details.is_empty() {
                self.details.push_str("; ");
            }
            self.details.push_str("undoing the failed command left something behind: ");
            self.details.push_str(&failures.join("; "));
        }
        self
    }

    /// Adds what else failed, so that no failure hides another.
    #[must_use]
    pub fn and_also(mut self, others: impl IntoIterator<Item = Self>) -> Self {
        let others: Vec<String> = others.into_iter().map(|other| other.to_string()).collect();
        if !others.is_empty() {
            if !self.details.is_empty() {
                self.details.push_str("; ");
            }
            self.details.push_str("what failed besides: ");
            self.details.push_str(&others.join("; "));
        }
        self
    }

    /// The object as a plugin prints it: indented by four spaces, no `details` when empty, no newline at the end.
    pub fn render(&self) -> String {
        let mut fields = vec![
            ("code".to_owned(), Json::from(u64::from(self.code))),
            ("msg".to_owned(), Json::from(self.message.as_str())),
        ];
        if !self.details.is_empty() {
            fields.push(("details".to_owned(), Json::from(self.details.as_str())));
        }
        Json::Object(fields).pretty()
    }

    /// Reads an error object that a delegate printed; `None` when the text is not one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let json = Json::parse(text).ok()?;
        let fields = Fields::of(&json, "error").ok()?;
        let code = fields.integer("code").ok()?.and_then(|code| u32::try_from(code).ok())?;
        let message = fields.string("msg").ok()?.unwrap_or_default().to_owned();
        let details = fields.string("details").ok()?.unwrap_or_default().to_owned();
        Some(Self { code, message, details })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_the_go_library_prints() {
        let error = Error::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
            .with_details("config is \"9\"");
        assert_eq!(
            error.render(),
            "{\n    \"code\": 1,\n    \"msg\": \"incompatible CNI versions\",\n    \"details\": \"config is \\\"9\\\"\"\n}"
        );
        assert_eq!(Error::parse(error.render().as_bytes()), Some(error));
        assert_eq!(Error::internal("x").render(), "{\n    \"code\": 999,\n    \"msg\": \"x\"\n}");
        assert_eq!(Error::parse(b"panic: boom"), None);
    }

    #[test]
    fn a_chain_is_one_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("could not open the lock")]
        struct Outer(#[source] fmt::Error);
        assert_eq!(
            Error::from_chain(&Outer(fmt::Error)).message,
            format!("could not open the lock: {}", fmt::Error)
        );
    }
}
