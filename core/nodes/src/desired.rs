//! What a node should say of its instance.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::model::{Address, Instance, LABEL_KEYS, Node, PROVIDED_IP};

/// What a node should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// `spec.providerID`, for a node that has none.
    pub provider_id: String,
    /// Labels; others of the node are not looked at.
    pub labels: BTreeMap<&'static str, String>,
    /// All of `status.addresses`.
    pub addresses: Vec<Address>,
}

/// Why a node cannot be told what it should say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Kubelet was given an address that the instance does not have.
    ProvidedAddress {
        /// What kubelet was given.
        provided: String,
        /// What the instance has.
        of_instance: Vec<String>,
    },
    /// The instance has no address.
    NoAddress,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProvidedAddress { provided, of_instance } => write!(
                f,
                "annotation {PROVIDED_IP} says {provided}, and the instance has only {}; start kubelet with another --node-ip, or without",
                of_instance.join(", ")
            ),
            Self::NoAddress => f.write_str(
                "the instance has no address yet; nothing can be said of the node before it is attached to the VPC",
            ),
        }
    }
}

/// Derives what `node` should say from its instance. IPv6 addresses are told in a dual-stack cluster only.
///
/// # Errors
/// The instance has no address, or not the one that kubelet was given.
pub fn desired(node: &Node, instance: &Instance, dual_stack: bool) -> Result<Desired, Problem> {
    Ok(Desired {
        provider_id: format!("{}.{}", instance.region, instance.id),
        labels: labels(instance),
        addresses: addresses(node, instance, dual_stack)?,
    })
}

fn labels(instance: &Instance) -> BTreeMap<&'static str, String> {
    let nodepool = instance.nodepool.as_deref().unwrap_or_default();
    let values = [
        &instance.instance_type,
        &instance.instance_type,
        &instance.zone,
        &instance.zone,
        &instance.region,
        &instance.region,
        nodepool,
        &instance.charge_type,
        &instance.spot_strategy,
    ];
    // What the API leaves empty is not known; a label that says so would only hide one that somebody set.
    let known = LABEL_KEYS.into_iter().zip(values).filter(|(_, value)| !value.is_empty());
    known.map(|(key, value)| (key, value.to_owned())).collect()
}

fn addresses(node: &Node, instance: &Instance, dual_stack: bool) -> Result<Vec<Address>, Problem> {
    let mut all: Vec<Address> = Vec::new();
    let mut add = |kind: &str, texts: &[String]| {
        for text in texts.iter().filter(|text| !text.is_empty()) {
            let address = Address::new(kind, text);
            if !all.contains(&address) {
                all.push(address);
            }
        }
    };
    add("ExternalIP", &instance.external);
    add("InternalIP", &instance.internal);
    if dual_stack {
        add("InternalIP", &instance.ipv6);
    }
    if all.is_empty() {
        return Err(Problem::NoAddress);
    }
    let Some(provided) = node.provided_ip.as_deref().filter(|text| !text.trim().is_empty()) else {
        all.extend(node.addresses.iter().filter(|address| address.is_kubelets()).cloned());
        return Ok(all);
    };
    let mismatch = || Problem::ProvidedAddress {
        provided: provided.to_owned(),
        of_instance: all.iter().map(|address| address.address.clone()).collect(),
    };
    let mut chosen = Vec::new();
    for text in provided.split(',') {
        let wanted: IpAddr = text.trim().parse().map_err(|_| mismatch())?;
        let found = all.iter().find(|address| address.address.parse() == Ok(wanted));
        chosen.push(found.cloned().ok_or_else(mismatch)?);
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{instance, node};

    fn lines(desired: &Desired) -> Vec<String> {
        desired.addresses.iter().map(|address| format!("{} {}", address.kind, address.address)).collect()
    }

    #[test]
    fn addresses_come_from_the_instance_and_the_name_from_kubelet() {
        let mut node = node("n1");
        node.addresses = vec![Address::new("InternalIP", "10.9.9.9"), Address::new("Hostname", "host")];
        let mut instance = instance("n1");
        instance.external = vec!["47.0.0.1".to_owned(), String::new(), "47.0.0.2".to_owned()];
        instance.ipv6 = vec!["2408::1".to_owned()];
        let single = desired(&node, &instance, false).unwrap();
        assert_eq!(
            lines(&single),
            ["ExternalIP 47.0.0.1", "ExternalIP 47.0.0.2", "InternalIP 192.168.0.1", "Hostname host"]
        );
        let dual = desired(&node, &instance, true).unwrap();
        assert!(lines(&dual).contains(&"InternalIP 2408::1".to_owned()));
        assert_eq!(dual.provider_id, "cn-hangzhou.i-n1");
    }

    #[test]
    fn the_address_that_kubelet_was_given_is_the_only_one_and_must_be_the_instances() {
        let mut node = node("n1");
        node.addresses = vec![Address::new("Hostname", "host")];
        let mut instance = instance("n1");
        instance.ipv6 = vec!["2408::1".to_owned()];
        node.provided_ip = Some("192.168.0.1".to_owned());
        assert_eq!(lines(&desired(&node, &instance, true).unwrap()), ["InternalIP 192.168.0.1"]);
        node.provided_ip = Some("192.168.0.1, 2408:0::1".to_owned());
        assert_eq!(
            lines(&desired(&node, &instance, true).unwrap()),
            ["InternalIP 192.168.0.1", "InternalIP 2408::1"]
        );
        for wrong in ["192.168.0.2", "nonsense", "192.168.0.1,2408::2"] {
            node.provided_ip = Some(wrong.to_owned());
            let problem = desired(&node, &instance, true).unwrap_err();
            assert!(problem.to_string().contains(wrong), "{problem}");
        }
    }

    #[test]
    fn labels_say_what_is_known_and_no_more() {
        let mut instance = instance("n1");
        instance.nodepool = Some("np-1".to_owned());
        instance.spot_strategy = String::new();
        let labels = desired(&node("n1"), &instance, false).unwrap().labels;
        assert_eq!(labels.get("topology.kubernetes.io/zone").map(String::as_str), Some("cn-hangzhou-h"));
        assert_eq!(labels.get("node.alibabacloud.com/nodepool-id").map(String::as_str), Some("np-1"));
        assert_eq!(labels.get("node.alibabacloud.com/spot-strategy"), None);
        assert_eq!(labels.len(), 8);
    }

    #[test]
    fn an_instance_without_an_address_is_a_problem() {
        let mut instance = instance("n1");
        instance.internal.clear();
        assert_eq!(desired(&node("n1"), &instance, false), Err(Problem::NoAddress));
    }
}
