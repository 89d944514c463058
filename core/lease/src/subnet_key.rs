//! The name of a lease in etcd: `10.12.13.0-24`, or `10.12.13.0-24&fd00:12:13::-56` for a node with both families.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;

/// A lease's subnets as its etcd key spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubnetKey {
    /// The IPv4 subnet. Flannel's keys always carry one.
    pub ipv4: Ipv4Net,
    /// The IPv6 subnet, if the network has that family.
    pub ipv6: Option<Ipv6Net>,
}

/// A key that is no subnet key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a subnet key such as 10.12.13.0-24 or 10.12.13.0-24&fd00:12:13::-56")]
pub struct SubnetKeyError(pub String);

impl fmt::Display for SubnetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ipv4.network(), self.ipv4.prefix_len())?;
        match self.ipv6 {
            Some(net) => write!(f, "&{}-{}", net.network(), net.prefix_len()),
            None => Ok(()),
        }
    }
}

impl std::str::FromStr for SubnetKey {
    type Err = SubnetKeyError;

    fn from_str(text: &str) -> Result<Self, SubnetKeyError> {
        let broken = || SubnetKeyError(text.to_owned());
        let (v4, v6) = text.split_once('&').map_or((text, None), |(v4, v6)| (v4, Some(v6)));
        let (address, len) = v4.split_once('-').ok_or_else(broken)?;
        let address: Ipv4Addr = address.parse().map_err(|_| broken())?;
        let ipv4 = Ipv4Net::new(address, digits(len).ok_or_else(broken)?).map_err(|_| broken())?;
        let ipv6 = match v6 {
            None => None,
            Some(v6) => {
                let (address, len) = v6.rsplit_once('-').ok_or_else(broken)?;
                let address: Ipv6Addr = address.parse().map_err(|_| broken())?;
                Some(Ipv6Net::new(address, digits(len).ok_or_else(broken)?).map_err(|_| broken())?)
            }
        };
        Ok(Self { ipv4, ipv6 })
    }
}

/// A prefix length in plain digits; `+24` is no key Flannel writes.
fn digits(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::SubnetKey;

    #[test]
    fn keys_round_trip() {
        for text in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "10.12.13.4-32"] {
            assert_eq!(text.parse::<SubnetKey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "10",
            "10.12.13.0",
            "10.12.13-24",
            "10.12.13.300-24",
            "10.12.13.0-24hi",
            "&2001::-56",
            "10.12.13.0-24&:12:13:-56",
            "10.12.13.0-24&20011::-56",
            "10.12.13.0-24&2001-56",
            "10.12.13.0-24&2001::",
            "10.12.13.0-24&2001::-56hi",
            "10.12.13.0-+24",
        ] {
            assert!(text.parse::<SubnetKey>().is_err(), "{text}");
        }
    }
}
