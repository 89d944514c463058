//! `subnet.env`: what flanneld tells the CNI plugin (and scripts) about this node.
//!
//! Written as a whole, read as a whole. A file cut short must never read as a valid one: pods would get addresses of
//! the wrong subnet or a wrong MTU.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

/// The content of a subnet file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's networks; a reader tolerates several per family, flanneld writes one.
    pub networks: Vec<IpNet>,
    /// This node's subnets, at most one per family. flanneld writes the gateway's address with the subnet's prefix
    /// length (`10.5.72.1/24`); use [`IpNet::trunc`] for the subnet itself.
    pub subnets: Vec<IpNet>,
    /// Workload MTU in bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades (then the bridge plugin must not).
    pub ip_masq: bool,
}

/// Why a subnet file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubnetEnvError {
    /// Keys are absent. The text is the CNI plugin's, which people search for.
    #[error("{file} is missing {}", .keys.join(", "))]
    Missing {
        /// The file.
        file: String,
        /// The absent keys, in the order flannel lists them.
        keys: Vec<&'static str>,
    },
    /// A key has an unusable value.
    #[error("{file}: key {key}: {cause}; flanneld writes this file, restart it to have it written anew")]
    Invalid {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        cause: String,
    },
}

/// The first usable address of a subnet, which the bridge takes: base address + 1, with the subnet's prefix length.
#[must_use]
pub fn gateway_of(subnet: IpNet) -> IpNet {
    match subnet {
        IpNet::V4(net) => {
            let address = Ipv4Addr::from(u32::from(net.network()).wrapping_add(1));
            Ipv4Net::new(address, net.prefix_len()).map_or(subnet, IpNet::V4)
        }
        IpNet::V6(net) => {
            let address = Ipv6Addr::from(u128::from(net.network()).wrapping_add(1));
            Ipv6Net::new(address, net.prefix_len()).map_or(subnet, IpNet::V6)
        }
    }
}

impl SubnetEnv {
    /// The file's text, exactly as flannel writes it: IPv4 pair, IPv6 pair, MTU, IPMASQ, each line ended by LF.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (is_ours, network_key, subnet_key) in [
            (is_v4 as fn(&&IpNet) -> bool, "FLANNEL_NETWORK", "FLANNEL_SUBNET"),
            (is_v6, "FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
        ] {
            let networks: Vec<String> =
                self.networks.iter().filter(is_ours).map(ToString::to_string).collect();
            if !networks.is_empty() {
                let _ = writeln!(text, "{network_key}={}", networks.join(","));
            }
            if let Some(subnet) = self.subnets.iter().find(is_ours) {
                let _ = writeln!(text, "{subnet_key}={subnet}");
            }
        }
        let _ = writeln!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={}", self.mtu, self.ip_masq);
        text
    }

    /// Reads a subnet file strictly, as the CNI plugin does. `file` is named in errors.
    ///
    /// Networks may be comma lists (duplicates dropped); networks are masked, subnets keep their host bits.
    ///
    /// # Errors
    /// [`SubnetEnvError::Missing`] when a family, the MTU or IPMASQ is absent; [`SubnetEnvError::Invalid`] when a value
    /// cannot be read or the file ends in the middle of a line.
    pub fn parse(file: &str, text: &str) -> Result<Self, SubnetEnvError> {
        let invalid = |key: &str, cause: String| SubnetEnvError::Invalid {
            file: file.to_owned(),
            key: key.to_owned(),
            cause,
        };
        let mut networks: Vec<IpNet> = Vec::new();
        let mut subnets: [Option<IpNet>; 2] = [None, None];
        let (mut mtu, mut ip_masq) = (None, None);
        for line in text.split_inclusive('\n') {
            let whole = line.ends_with('\n');
            let line = line.trim_end_matches(['\n', '\r']);
            let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value)));
            if !matches!(
                key,
                "FLANNEL_NETWORK"
                    | "FLANNEL_IPV6_NETWORK"
                    | "FLANNEL_SUBNET"
                    | "FLANNEL_IPV6_SUBNET"
                    | "FLANNEL_MTU"
                    | "FLANNEL_IPMASQ"
            ) {
                continue;
            }
            let value = value.ok_or_else(|| invalid(key, "has no value".to_owned()))?;
            let cut = || {
                invalid(key, format!("{value:?} ends the file without a line end, so it may be cut short"))
            };
            match key {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    for element in value.split(',') {
                        let network = cidr(key, element).map_err(|cause| invalid(key, cause))?.trunc();
                        if !networks.contains(&network) {
                            networks.push(network);
                        }
                    }
                }
                "FLANNEL_SUBNET" => subnets[0] = Some(cidr(key, value).map_err(|cause| invalid(key, cause))?),
                "FLANNEL_IPV6_SUBNET" => {
                    subnets[1] = Some(cidr(key, value).map_err(|cause| invalid(key, cause))?)
                }
                "FLANNEL_MTU" => {
                    mtu = Some(
                        value
                            .parse::<u32>()
                            .map_err(|_| invalid(key, format!("{value:?} is not a number of bytes")))?,
                    );
                }
                _ if !whole && !matches!(value, "true" | "false") => return Err(cut()),
                _ => ip_masq = Some(value == "true"),
            }
        }
        let mut missing = Vec::new();
        if networks.is_empty() {
            missing.extend(["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]);
        }
        if subnets.iter().all(Option::is_none) {
            missing.extend(["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]);
        }
        if mtu.is_none() {
            missing.push("FLANNEL_MTU");
        }
        if ip_masq.is_none() {
            missing.push("FLANNEL_IPMASQ");
        }
        match (mtu, ip_masq) {
            (Some(mtu), Some(ip_masq)) if missing.is_empty() => {
                Ok(Self { networks, subnets: subnets.into_iter().flatten().collect(), mtu, ip_masq })
            }
            _ => Err(SubnetEnvError::Missing { file: file.to_owned(), keys: missing }),
        }
    }
}

fn is_v4(net: &&IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

fn is_v6(net: &&IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn cidr(key: &str, text: &str) -> Result<IpNet, String> {
    let net: IpNet =
        text.trim().parse().map_err(|_| format!("{text:?} is not a network in CIDR notation"))?;
    let wants_v6 = key.contains("IPV6");
    if wants_v6 == matches!(net.addr(), IpAddr::V6(_)) {
        Ok(net)
    } else {
        Err(format!("{text:?} is of the other address family"))
    }
}

/// What a former run left in the subnet file, as far as it can be read. flanneld uses it to recognise its own
/// leftovers; nothing in it is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreviousSubnets {
    /// Every network that could be read.
    pub networks: Vec<IpNet>,
    /// Every subnet that could be read, masked.
    pub subnets: Vec<IpNet>,
}

impl PreviousSubnets {
    /// Reads leniently: bad elements and unknown keys are skipped, never an error.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut previous = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            let list = match key.trim() {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => &mut previous.networks,
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => &mut previous.subnets,
                _ => continue,
            };
            list.extend(
                value.split(',').filter_map(|element| cidr(key.trim(), element).ok()).map(|net| net.trunc()),
            );
        }
        previous
    }
}

#[cfg(test)]
mod tests {
    use super::{PreviousSubnets, SubnetEnv, SubnetEnvError, gateway_of};

    const DUAL: &str = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/56\n\
                        FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    #[test]
    fn renders_flannels_bytes_and_reads_them_back() {
        let env = SubnetEnv {
            networks: vec!["10.5.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            subnets: vec![
                gateway_of("10.5.72.0/24".parse().unwrap()),
                gateway_of("fd00:10:244:1::/64".parse().unwrap()),
            ],
            mtu: 1450,
            ip_masq: true,
        };
        assert_eq!(env.render(), DUAL);
        assert_eq!(SubnetEnv::parse("f", DUAL).unwrap(), env);
    }

    #[test]
    fn a_single_family_writes_only_its_pair() {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n";
        assert_eq!(SubnetEnv::parse("f", text).unwrap().render(), text);
    }

    #[test]
    fn every_truncation_is_an_error() {
        for end in 0..DUAL.len() - 1 {
            assert!(SubnetEnv::parse("f", &DUAL[..end]).is_err(), "{:?}", &DUAL[..end]);
        }
        assert!(SubnetEnv::parse("f", DUAL.trim_end()).is_ok(), "only the last line end may be absent");
    }

    #[test]
    fn all_missing_keys_are_listed_in_flannels_order() {
        let error = SubnetEnv::parse("/run/flannel/subnet.env", "foo=bar\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "/run/flannel/subnet.env is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, \
             FLANNEL_MTU, FLANNEL_IPMASQ"
        );
    }

    #[test]
    fn bad_values_name_their_key() {
        for (line, key) in [
            ("FLANNEL_NETWORK", "FLANNEL_NETWORK"),
            ("FLANNEL_SUBNET=10.5.72.1", "FLANNEL_SUBNET"),
            ("FLANNEL_SUBNET=fd00::1/64", "FLANNEL_SUBNET"),
            ("FLANNEL_MTU=big", "FLANNEL_MTU"),
            ("FLANNEL_MTU=-1", "FLANNEL_MTU"),
        ] {
            match SubnetEnv::parse("f", &format!("{DUAL}{line}\n")).unwrap_err() {
                SubnetEnvError::Invalid { key: named, .. } => assert_eq!(named, key),
                other => panic!("{line}: {other}"),
            }
        }
    }

    #[test]
    fn comma_lists_lose_duplicates_when_strict_and_bad_elements_when_lenient() {
        let text = DUAL.replace("10.5.0.0/16", "10.5.0.0/16,192.168.0.0/16,10.5.9.9/16");
        assert_eq!(SubnetEnv::parse("f", &text).unwrap().networks.len(), 3);
        let nets = |text: &str| PreviousSubnets::read(text).subnets;
        assert_eq!(nets("FLANNEL_SUBNET=10.244.1.0/24,not-a-cidr,10.244.2.0/24").len(), 2);
        assert_eq!(nets("FLANNEL_IPV6_SUBNET=fd00::/64,not-a-cidr,fd01::/64").len(), 2);
        assert!(nets("FLANNEL_SUBNET=not-a-cidr").is_empty());
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in "(FLANNEL_(NETWORK|SUBNET|MTU|IPMASQ)=?[0-9./a-z,]{0,12}\n?){0,6}") {
            let _ = (SubnetEnv::parse("f", &text), PreviousSubnets::read(&text));
        }
    }
}
