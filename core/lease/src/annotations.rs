//! The names of flannel's node annotations under a configurable prefix.

use thiserror::Error;

/// Why a `--kube-annotation-prefix` cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "annotation prefix {prefix:?} {cause}; give a lower-case domain name with a dot, optionally followed by one slash \
     and a word (for example flannel.alpha.coreos.com or flannel.alpha.coreos.com/blue)"
)]
pub struct PrefixError {
    /// The prefix as given.
    pub prefix: String,
    cause: &'static str,
}

/// The full annotation names of one prefix.
///
/// A prefix without a slash gets one; a prefix that then ends in neither `/` nor `-` gets a `-`, so that
/// `flannel.alpha.coreos.com/blue` yields `flannel.alpha.coreos.com/blue-backend-type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationKeys {
    /// `"true"` on nodes that run flannel; peers ignore nodes without it.
    pub subnet_manager: String,
    /// The lease's backend type, for example `vxlan`; empty for `alloc`.
    pub backend_type: String,
    /// Backend data as JSON for the IPv4 side.
    pub backend_data: String,
    /// Backend data as JSON for the IPv6 side.
    pub backend_v6_data: String,
    /// The IPv4 address peers use to reach this node.
    pub public_ip: String,
    /// The IPv6 address peers use to reach this node.
    pub public_ipv6: String,
    /// Operator's override of what is published as `public-ip` (address translation in front of the node).
    pub public_ip_overwrite: String,
    /// Operator's override of what is published as `public-ipv6`.
    pub public_ipv6_overwrite: String,
    /// Operator's choice of `--public-ip` for this node, read once at start.
    pub node_public_ip: String,
    /// Operator's choice of `--public-ipv6` for this node, read once at start.
    pub node_public_ipv6: String,
}

impl AnnotationKeys {
    /// The prefix flannel uses when none is configured.
    pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

    /// Builds the names, or says what is wrong with the prefix.
    ///
    /// # Errors
    /// When the normalised prefix is not `domain/` or `domain/word-` in lower case with a dot in the domain.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let broken = |cause| PrefixError { prefix: prefix.to_owned(), cause };
        let mut full = prefix.to_owned();
        if !full.contains('/') {
            full.push('/');
        }
        if !full.ends_with(['/', '-']) {
            full.push('-');
        }
        let (domain, word) = full.split_once('/').ok_or_else(|| broken("has no domain"))?;
        if word.contains('/') {
            return Err(broken("has more than one slash"));
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        let mut labels = 0_usize;
        for label in domain.split('.') {
            labels += 1;
            if label.is_empty() || !label.chars().all(allowed) {
                return Err(broken("has a domain with an empty label or a character other than a-z 0-9 _ -"));
            }
        }
        if labels < 2 {
            return Err(broken("has a domain without a dot"));
        }
        if !word.chars().all(|c| allowed(c) || c == '.') {
            return Err(broken("has a character other than a-z 0-9 _ - . after the slash"));
        }
        let name = |suffix: &str| format!("{full}{suffix}");
        Ok(Self {
            subnet_manager: name("kube-subnet-manager"),
            backend_type: name("backend-type"),
            backend_data: name("backend-data"),
            backend_v6_data: name("backend-v6-data"),
            public_ip: name("public-ip"),
            public_ipv6: name("public-ipv6"),
            public_ip_overwrite: name("public-ip-overwrite"),
            public_ipv6_overwrite: name("public-ipv6-overwrite"),
            node_public_ip: name("node-public-ip"),
            node_public_ipv6: name("node-public-ipv6"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::AnnotationKeys;

    #[test]
    fn prefixes_become_names() {
        for (prefix, expected) in [
            ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/backend-type"),
            ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/backend-type"),
            ("flannel.alpha.coreos.com/prefix", "flannel.alpha.coreos.com/prefix-backend-type"),
            ("flannel.alpha.coreos.com/prefix-", "flannel.alpha.coreos.com/prefix-backend-type"),
            ("org.com", "org.com/backend-type"),
            ("org9.com", "org9.com/backend-type"),
            ("org.com/9", "org.com/9-backend-type"),
        ] {
            assert_eq!(AnnotationKeys::new(prefix).unwrap().backend_type, expected, "{prefix}");
        }
    }

    #[test]
    fn bad_prefixes_are_named() {
        for prefix in
            ["org", "org/", "org/prefix", "org.COM", "org.com/PREFIX", "a.b/c/d", "", ".com", "a..b"]
        {
            let error = AnnotationKeys::new(prefix).unwrap_err();
            assert!(error.to_string().contains(&format!("{prefix:?}")), "{error}");
        }
    }
}
