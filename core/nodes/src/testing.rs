//! Nodes and instances for tests.

use loden_routes::model::{InstanceId, Readiness};

use crate::desired::desired;
use crate::model::{Instance, Node};

pub(crate) fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        provider_id: format!("cn-hangzhou.i-{name}"),
        readiness: Readiness::Ready,
        ..Node::default()
    }
}

/// The last digits of the name make the address.
pub(crate) fn instance(name: &str) -> Instance {
    let number: String = name.chars().filter(char::is_ascii_digit).collect();
    Instance {
        id: InstanceId::from(format!("i-{name}")),
        region: "cn-hangzhou".to_owned(),
        zone: "cn-hangzhou-h".to_owned(),
        instance_type: "ecs.g7.large".to_owned(),
        charge_type: "PostPaid".to_owned(),
        spot_strategy: "NoSpot".to_owned(),
        nodepool: None,
        external: Vec::new(),
        internal: vec![format!("192.168.0.{number}")],
        ipv6: Vec::new(),
    }
}

/// A node that says all that it should.
pub(crate) fn complete(name: &str) -> Node {
    let mut node = node(name);
    let wants = desired(&node, &instance(name), false).unwrap();
    node.labels = wants.labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    node.addresses = wants.addresses;
    node
}
