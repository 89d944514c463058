//! Names and places of one lab: its network namespaces, its directories, its control socket.
//!
//! Everything a lab leaves on the machine carries the lab's name, so that it can be found and removed without the process that made it.
//! Two labs must never share a prefix: that is why a lab's name has no dash (`loden-a-…` could otherwise be a part of lab `a-b`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use loden_netlink::netns::NETNS_DIR;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where labs keep their state, one directory each.
pub const LABS_DIR: &str = "/run/loden/labs";

/// Environment variable that every process of a lab carries; its value is the lab's name.
pub const MEMBER_VARIABLE: &str = "LODEN_LAB_MEMBER";

/// Longest name of a node, pod or instance: it is also the name of a link, and the kernel allows 15 bytes.
pub const MAX_MEMBER_NAME: usize = 15;

/// A lab's name: 1 to 20 lower-case letters and digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The prefix that all namespaces of this lab share.
    #[must_use]
    pub fn namespace_prefix(&self) -> String {
        format!("loden-{}-", self.0)
    }

    /// Name of the namespace of `what` (`vrouter`, `services`, an instance's name, `pod-<name>`).
    #[must_use]
    pub fn namespace(&self, what: &str) -> String {
        format!("loden-{}-{what}", self.0)
    }

    /// Path of the namespace of `what`, as a runtime hands it to a CNI plugin.
    #[must_use]
    pub fn namespace_path(&self, what: &str) -> PathBuf {
        Path::new(NETNS_DIR).join(self.namespace(what))
    }

    /// Directory with everything this lab writes.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        Path::new(LABS_DIR).join(&self.0)
    }

    /// Unix socket on which the lab's supervisor answers.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.directory().join("control.sock")
    }

    /// Log of the supervisor and of everything it starts itself.
    #[must_use]
    pub fn supervisor_log(&self) -> PathBuf {
        self.directory().join("supervisor.log")
    }

    /// A kubeconfig of a cluster for whoever is outside of the lab, on this machine.
    #[must_use]
    pub fn kubeconfig(&self, cluster: &str) -> PathBuf {
        self.directory().join("kubeconfigs").join(cluster)
    }

    /// Directory of one node: its CNI directories, its flanneld's files and log.
    #[must_use]
    pub fn node_directory(&self, node: &str) -> PathBuf {
        self.directory().join("nodes").join(node)
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let legal = (1..=20).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::Refused(format!(
                "{text:?} cannot be a lab's name: it takes 1 to 20 lower-case letters and digits (no dash, so that no lab's name begins another's)"
            )))
        }
    }
}

impl TryFrom<String> for LabName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

/// Checks the name of a node, pod or instance: a DNS label of at most 15 bytes.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_member_name(kind: &str, name: &str) -> Result<()> {
    let legal = (1..=MAX_MEMBER_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if !legal {
        return Err(Error::Refused(format!(
            "{name:?} cannot be the name of a {kind}: it takes 1 to {MAX_MEMBER_NAME} lower-case letters, digits and inner dashes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_name_never_begins_another_labs_namespace() {
        assert!("a-b".parse::<LabName>().is_err());
        assert!("".parse::<LabName>().is_err());
        assert!("Lab".parse::<LabName>().is_err());
        assert!("x".repeat(21).parse::<LabName>().is_err());
        let a: LabName = "a".parse().unwrap();
        let ab: LabName = "ab".parse().unwrap();
        assert!(!ab.namespace("node-1").starts_with(&a.namespace_prefix()));
        assert_eq!(a.namespace_path("node-1"), Path::new("/run/netns/loden-a-node-1"));
    }

    #[test]
    fn member_names_fit_a_link() {
        assert!(check_member_name("node", "node-12").is_ok());
        assert!(check_member_name("node", "a-name-that-is-too-long").is_err());
        assert!(check_member_name("node", "-x").is_err());
        assert!(check_member_name("node", "").is_err());
        assert!(check_member_name("node", "a/b").is_err());
    }
}
