//! What is to be written to one node, as a value.
//!
//! The invariant: the taint goes in the last step, after everything that pods and their scheduler read from the node, and nothing else
//! is done to a node that is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use loden_routes::model::InstanceId;

use crate::desired::Desired;
use crate::model::{Address, Node, UNINITIALIZED};

/// Changes of one node, to be made one after the other; the first that fails ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The node's name.
    pub node: String,
    /// Its UID: the node that takes over the name is another.
    pub uid: String,
    /// The changes.
    pub steps: Vec<Step>,
}

/// One change of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write `metadata.labels` and, once in a node's life, `spec.providerID`.
    Describe {
        /// The provider ID, for a node that has none.
        provider_id: Option<String>,
        /// Labels to set; others stay.
        labels: BTreeMap<String, String>,
    },
    /// Replace `status.addresses`.
    Addresses(Vec<Address>),
    /// Take the taint [`UNINITIALIZED`] away.
    RemoveTaint,
    /// Delete the Node object.
    Delete {
        /// The instance that is gone.
        instance: InstanceId,
    },
}

/// Whether a node may lose its taint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open,
    /// Something else has to be done first.
    Closed,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = &self.node;
        for step in &self.steps {
            match step {
                Step::Describe { provider_id, labels } => {
                    if let Some(id) = provider_id {
                        writeln!(f, "node {node} + providerID {id}")?;
                    }
                    for (key, value) in labels {
                        writeln!(f, "node {node} + label {key}={value}")?;
                    }
                }
                Step::Addresses(addresses) => {
                    let list: Vec<String> = addresses
                        .iter()
                        .map(|address| format!("{} {}", address.kind, address.address))
                        .collect();
                    writeln!(f, "node {node} ~ addresses {}", list.join(", "))?;
                }
                Step::RemoveTaint => writeln!(f, "node {node} - taint {UNINITIALIZED}")?,
                Step::Delete { instance } => {
                    writeln!(
                        f,
                        "node {node} - deleted  # its kubelet is silent and instance {instance} is gone"
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// What makes `node` say what it should; without steps when it does already.
#[must_use]
pub fn diff(node: &Node, desired: &Desired, gate: Gate) -> Plan {
    let mut steps = Vec::new();
    let provider_id = Some(desired.provider_id.clone()).filter(|_| node.provider_id.trim().is_empty());
    let labels: BTreeMap<String, String> = desired
        .labels
        .iter()
        .filter(|(key, value)| node.labels.get(**key) != Some(*value))
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    if provider_id.is_some() || !labels.is_empty() {
        steps.push(Step::Describe { provider_id, labels });
    }
    // The order is nobody's business but kubelet's, which has its own.
    let (has, wants): (BTreeSet<&Address>, BTreeSet<&Address>) =
        (node.addresses.iter().collect(), desired.addresses.iter().collect());
    if has != wants {
        steps.push(Step::Addresses(desired.addresses.clone()));
    }
    if node.uninitialized && gate == Gate::Open {
        steps.push(Step::RemoveTaint);
    }
    Plan { node: node.name.clone(), uid: node.uid.clone(), steps }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::desired;
    use crate::testing::{complete, instance, node};

    #[test]
    fn a_fresh_node_is_told_everything_and_loses_the_taint_last() {
        let mut node = node("n1");
        node.provider_id = String::new();
        node.uninitialized = true;
        let wants = desired(&node, &instance("n1"), false).unwrap();
        assert_eq!(
            diff(&node, &wants, Gate::Open).to_string(),
            "node n1 + providerID cn-hangzhou.i-n1\n\
             node n1 + label beta.kubernetes.io/instance-type=ecs.g7.large\n\
             node n1 + label failure-domain.beta.kubernetes.io/region=cn-hangzhou\n\
             node n1 + label failure-domain.beta.kubernetes.io/zone=cn-hangzhou-h\n\
             node n1 + label node.alibabacloud.com/instance-charge-type=PostPaid\n\
             node n1 + label node.alibabacloud.com/spot-strategy=NoSpot\n\
             node n1 + label node.kubernetes.io/instance-type=ecs.g7.large\n\
             node n1 + label topology.kubernetes.io/region=cn-hangzhou\n\
             node n1 + label topology.kubernetes.io/zone=cn-hangzhou-h\n\
             node n1 ~ addresses InternalIP 192.168.0.1\n\
             node n1 - taint node.cloudprovider.kubernetes.io/uninitialized\n"
        );
        let closed = diff(&node, &wants, Gate::Closed);
        assert!(!closed.steps.contains(&Step::RemoveTaint));
        assert_eq!(closed.steps.len(), 2);
    }

    #[test]
    fn a_node_that_says_it_all_is_left_alone_whatever_the_order() {
        let mut node = complete("n1");
        node.addresses.push(Address::new("Hostname", "n1"));
        node.addresses.reverse();
        node.provider_id = "alicloud://cn-hangzhou.i-n1".to_owned();
        let wants = desired(&node, &instance("n1"), false).unwrap();
        assert_eq!(diff(&node, &wants, Gate::Open).steps, []);
    }
}
