//! `CNI_ARGS`: extra arguments of the runtime, `K=V;K=V`.

use crate::error::Error;

/// The arguments, with the keys that a plugin does not know refused or ignored as the runtime wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(Vec<(String, String)>);

impl Args {
    /// Reads the arguments; `known` are the keys of the plugin, matched exactly.
    ///
    /// # Errors
    /// A pair that is not one `K=V`, a bad `IgnoreUnknown`, or unknown keys without `IgnoreUnknown=1`.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        if text.is_empty() {
            return Ok(Self::default());
        }
        for pair in text.split(';') {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) if !value.contains('=') => (key, value),
                _ => return Err(Error::internal(format!("ARGS: invalid pair {pair:?}"))),
            };
            if key == "IgnoreUnknown" {
                ignore_unknown = match value.to_ascii_lowercase().as_str() {
                    "1" | "true" => true,
                    "0" | "false" => false,
                    _ => {
                        return Err(Error::internal(format!(
                            "ARGS: error parsing value of pair {pair:?}: boolean unmarshal error: invalid input {value}"
                        )));
                    }
                };
            } else if known.contains(&key) {
                pairs.push((key.to_owned(), value.to_owned()));
            } else {
                unknown.push(format!("{pair:?}"));
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(Error::internal(format!("ARGS: unknown args [{}]", unknown.join(" "))));
        }
        Ok(Self(pairs))
    }

    /// The value of `key`, the last one if given several times; an empty value counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_arguments_pass() {
        let args =
            Args::parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;IP=10.0.0.9", &["IP"])
                .unwrap();
        assert_eq!(args.get("IP"), Some("10.0.0.9"));
        assert_eq!(args.get("K8S_POD_NAME"), None);
    }

    #[test]
    fn refusals() {
        let message = |text| Args::parse(text, &["IP"]).unwrap_err().message;
        assert_eq!(message("FOO"), "ARGS: invalid pair \"FOO\"");
        assert_eq!(message("IP=a=b"), "ARGS: invalid pair \"IP=a=b\"");
        assert_eq!(message("FOO=1;BAR=2"), "ARGS: unknown args [\"FOO=1\" \"BAR=2\"]");
        assert!(message("IgnoreUnknown=maybe").starts_with("ARGS: error parsing value"));
        assert_eq!(Args::parse("", &[]).unwrap(), Args::default());
    }
}
