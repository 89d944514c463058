//! A node's subnets when somebody else assigns them: the pod CIDRs of its Node object.

use ipnet::IpNet;
use thiserror::Error;

use crate::NetConf;

/// Pod CIDRs that cannot be this node's subnets.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AssignmentError {
    /// None yet; the only one that time may mend.
    #[error(
        "no pod CIDR is assigned yet; something must set spec.podCIDR: loden-controller, or kube-controller-manager with \
         --allocate-node-cidrs and a cluster CIDR that has room"
    )]
    NotYet,
    /// A CIDR that lies in none of the configured networks.
    #[error(
        "pod CIDR {cidr} lies outside {key} {network} of {source_name}; make the allocator's cluster CIDR and {key} the same network"
    )]
    Outside {
        /// The pod CIDR.
        cidr: IpNet,
        /// `Network` or `IPv6Network`.
        key: &'static str,
        /// Its value.
        network: IpNet,
        /// Where it is configured.
        source_name: String,
    },
    /// An enabled family has no CIDR although the other has.
    #[error(
        "the pod CIDRs have no {family} subnet, but {source_name} enables {family}; assign one or set {key} to false"
    )]
    NoFamily {
        /// `IPv4` or `IPv6`.
        family: &'static str,
        /// `EnableIPv4` or `EnableIPv6`.
        key: &'static str,
        /// Where it is configured.
        source_name: String,
    },
    /// More CIDRs than a node can have.
    #[error("{0} pod CIDRs are assigned; a node has one per address family")]
    TooMany(usize),
}

/// The subnets of this node out of its pod CIDRs, IPv4 first, one for each enabled family.
///
/// # Errors
/// [`AssignmentError::NotYet`] while there are none; the others when the assignment and the configuration disagree.
pub fn assigned_subnets(conf: &NetConf, pod_cidrs: &[IpNet]) -> Result<Vec<IpNet>, AssignmentError> {
    if pod_cidrs.is_empty() {
        return Err(AssignmentError::NotYet);
    }
    if pod_cidrs.len() > 2 {
        return Err(AssignmentError::TooMany(pod_cidrs.len()));
    }
    let mut subnets = Vec::new();
    for (enabled, family, enable_key, network_key, network) in [
        (conf.enable_ipv4, "IPv4", "EnableIPv4", "Network", conf.network.map(IpNet::V4)),
        (conf.enable_ipv6, "IPv6", "EnableIPv6", "IPv6Network", conf.ipv6_network.map(IpNet::V6)),
    ] {
        if !enabled {
            continue;
        }
        let source_name = conf.source_name.clone();
        let is_v4 = family == "IPv4";
        let Some(cidr) = pod_cidrs.iter().find(|cidr| matches!(cidr, IpNet::V4(_)) == is_v4) else {
            return Err(AssignmentError::NoFamily { family, key: enable_key, source_name });
        };
        let cidr = cidr.trunc();
        match network {
            Some(network) if !network.contains(&cidr) => {
                return Err(AssignmentError::Outside { cidr, key: network_key, network, source_name });
            }
            _ => subnets.push(cidr),
        }
    }
    Ok(subnets)
}

#[cfg(test)]
mod tests {
    use super::{AssignmentError, assigned_subnets};
    use crate::NetConf;
    use ipnet::IpNet;

    fn assigned(conf: &str, cidrs: &[&str]) -> Result<Vec<String>, AssignmentError> {
        let cidrs: Vec<IpNet> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let subnets = assigned_subnets(&NetConf::parse("net-conf.json", conf).unwrap(), &cidrs)?;
        Ok(subnets.iter().map(ToString::to_string).collect())
    }

    const V4: &str = r#"{"Network":"10.244.0.0/16"}"#;
    const V6: &str = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"2001:db8:1234::/48"}"#;

    #[test]
    fn containment_follows_flannels_vectors() {
        for cidr in ["10.244.0.0/16", "10.244.0.0/24", "10.244.255.0/24"] {
            assert_eq!(assigned(V4, &[cidr]).unwrap(), [cidr]);
        }
        for cidr in ["10.244.0.0/15", "192.168.0.0/24"] {
            assert!(matches!(assigned(V4, &[cidr]), Err(AssignmentError::Outside { .. })), "{cidr}");
        }
        for cidr in ["2001:db8:1234::/48", "2001:db8:1234::/64", "2001:db8:1234:ffff::/64"] {
            assert_eq!(assigned(V6, &[cidr]).unwrap(), [cidr]);
        }
        for cidr in ["2001:db8:1234::/47", "fe02::/32"] {
            assert!(matches!(assigned(V6, &[cidr]), Err(AssignmentError::Outside { .. })), "{cidr}");
        }
    }

    #[test]
    fn families_are_told_apart_and_must_all_be_there() {
        let dual = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#;
        assert_eq!(
            assigned(dual, &["fd00:0:0:1::/64", "10.244.1.7/24"]).unwrap(),
            ["10.244.1.0/24", "fd00:0:0:1::/64"]
        );
        let error = assigned(dual, &["10.244.1.0/24"]).unwrap_err().to_string();
        assert!(error.contains("no IPv6 subnet") && error.contains("EnableIPv6"), "{error}");
        assert_eq!(assigned(V4, &["10.244.1.0/24", "fd00::/64"]).unwrap(), ["10.244.1.0/24"]);
        assert_eq!(assigned(V4, &[]), Err(AssignmentError::NotYet));
        assert_eq!(assigned(V4, &["10.244.1.0/24"; 3]), Err(AssignmentError::TooMany(3)));
    }

    #[test]
    fn what_lies_outside_is_named_with_its_remedy() {
        let error = assigned(V4, &["10.99.1.0/24"]).unwrap_err().to_string();
        for word in ["10.99.1.0/24", "Network 10.244.0.0/16", "net-conf.json", "cluster CIDR"] {
            assert!(error.contains(word), "{error}");
        }
    }
}
