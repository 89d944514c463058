//! The flat name/value parameters of an RPC-style request.
//!
//! Lists are flattened as `Name.1`, `Name.2`, … and lists of structures as `Name.1.Field`. Parameters arrive in the query string,
//! in a form body, or in both. An empty value counts as absent, as the SDKs send empty strings for unset fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986 is escaped, which both signature versions require.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Percent-encodes `text` as the signatures want it: `A-Za-z0-9-_.~` stay, a space is `%20`, an asterisk `%2A`.
#[must_use]
pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// Parameters by name, in byte order of the names (the order in which they are signed).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// No parameters.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the pairs of a query string or of a form body. Later pairs win over earlier ones of the same name; bytes that are not
    /// UTF-8 become replacement characters, which then fail the signature instead of the parser.
    pub fn read_encoded(&mut self, encoded: &str) {
        for pair in encoded.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.0.insert(unescape(name), unescape(value));
        }
    }

    /// The value of `name`, unless it is absent or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Sets `name`, replacing an earlier value.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    /// Removes `name` and gives back what it held.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// All pairs in byte order of their names, empty values included.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The numbers N for which `name.N` or `name.N.…` is present, ascending. Numbering need not start at 1 nor be dense.
    #[must_use]
    pub fn indices(&self, name: &str) -> BTreeSet<u32> {
        let prefix = format!("{name}.");
        self.0
            .range(prefix.clone()..)
            .take_while(|(key, _)| key.starts_with(&prefix))
            .filter_map(|(key, _)| key.get(prefix.len()..)?.split('.').next()?.parse().ok())
            .collect()
    }

    /// The canonical query string: sorted, percent-encoded, `name=value` joined by `&`.
    #[must_use]
    pub fn encoded(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.iter() {
            let separator = if text.is_empty() { "" } else { "&" };
            // Writing to a String cannot fail.
            let _ = write!(text, "{separator}{}={}", escape(name), escape(value));
        }
        text
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Params {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn unescape(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_numbered_and_may_have_gaps() {
        let params: Params = [
            ("Tag.1.Key", "a"),
            ("Tag.10.Key", "b"),
            ("Tag.2.Key", "c"),
            ("Tagged", "x"),
            ("Tag.x.Key", "-"),
        ]
        .into_iter()
        .collect();
        assert_eq!(params.indices("Tag").into_iter().collect::<Vec<_>>(), [1, 2, 10]);
        assert!(params.indices("Ta").is_empty());
    }

    #[test]
    fn plus_is_a_space_and_an_empty_value_is_absent() {
        let mut params = Params::new();
        params.read_encoded("Description=a+b%20c%2B&&SignatureType=&Bare");
        assert_eq!(params.get("Description"), Some("a b c+"));
        assert_eq!(params.get("SignatureType"), None);
        assert_eq!(params.get("Bare"), None);
        assert_eq!(params.encoded(), "Bare=&Description=a%20b%20c%2B&SignatureType=");
    }

    proptest! {
        #[test]
        fn encoding_round_trips(pairs in proptest::collection::btree_map(".{1,8}", ".{0,8}", 0..6)) {
            let params: Params = pairs.into_iter().collect();
            let mut read = Params::new();
            read.read_encoded(&params.encoded());
            prop_assert_eq!(read, params);
        }

        #[test]
        fn garbage_never_panics(text in ".*") {
            let mut params = Params::new();
            params.read_encoded(&text);
            let _ = params.indices("A");
        }
    }
}
