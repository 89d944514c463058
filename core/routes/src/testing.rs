//! Small things that the tests of this crate build from.

use ipnet::IpNet;

use crate::model::{EntryStatus, EntryType, NextHop, Node, RouteEntry};

pub(crate) const TABLE: &str = "vtb-1";

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A custom entry in [`TABLE`] to one instance, in force and unmarked.
pub(crate) fn entry(destination: &str, instance: &str) -> RouteEntry {
    RouteEntry {
        table: TABLE.into(),
        id: format!("rte-{destination}-{instance}"),
        destination: net(destination),
        next_hops: vec![NextHop::instance(&instance.into())],
        status: EntryStatus::Available,
        kind: EntryType::Custom,
        name: String::new(),
        description: String::new(),
    }
}

/// A node on the instance `i-<name>`.
pub(crate) fn node(name: &str, pod_cidr: &str) -> Node {
    Node {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        provider_id: format!("cn-hangzhou.i-{name}"),
        pod_cidrs: if pod_cidr.is_empty() { Vec::new() } else { vec![pod_cidr.to_owned()] },
        ..Node::default()
    }
}
