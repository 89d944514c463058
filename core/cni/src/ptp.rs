//! Configuration of the `ptp` plugin.
//!
//! Keys are those of the Go plugin, and `enabledad`, as in `bridge`: the Go plugin always waits for IPv6 duplicate address detection, which
//! keeps a dual-stack container from starting for more than a second; on a link with two ends there is nobody to find.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::conf::Config;
use crate::error::Error;
use crate::link::ContainerLink;
use crate::result::{CniResult, IpConfig};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PtpConfig {
    /// What is said about the container's link.
    pub link: ContainerLink,
    /// Name of the address plugin; empty when the configuration names none, which no address plugin is found by.
    pub ipam: String,
}

impl PtpConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Keys of the wrong type or out of range.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        let link = ContainerLink::parse(&config.fields()?)?;
        Ok(Self { link, ipam: config.ipam_type()?.unwrap_or_default() })
    }

    /// Completes what the address plugin said: every address belongs to the container's link (index 1 of the result).
    ///
    /// # Errors
    /// An address without a gateway: there is nothing that the container could send its packets to.
    pub fn complete(&self, result: &mut CniResult) -> Result<Vec<Path>, Error> {
        let mut paths = Vec::new();
        for ip in &mut result.ips {
            ip.interface = Some(1);
            paths.push(Path::of(ip)?);
        }
        Ok(paths)
    }
}

/// How packets go between the container's address and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The container's address with its subnet.
    pub address: IpNet,
    /// The container's address alone.
    pub host: IpNet,
    /// The host's address on its end of the pair, alone.
    pub gateway: IpNet,
}

impl Path {
    fn of(ip: &IpConfig) -> Result<Self, Error> {
        let alone = |address: IpAddr| IpNet::from(address);
        let gateway = ip.gateway.ok_or_else(|| {
            Error::internal(format!(
                "the address plugin gave {} without a gateway, which ptp routes everything through; set the range's `gateway`",
                ip.address
            ))
        })?;
        Ok(Self { address: ip.address, host: alone(ip.address.addr()), gateway: alone(gateway) })
    }

    /// The address whose hop leads to the network.
    pub fn next_hop(&self) -> IpAddr {
        self.gateway.addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_through_the_gateway() {
        let config = Config::parse(br#"{"name":"n","mtu":1400,"ipam":{"type":"host-local"}}"#).unwrap();
        let config = PtpConfig::parse(&config).unwrap();
        assert_eq!((config.link.mtu(), config.ipam.as_str()), (Some(1400), "host-local"));
        let ip = IpConfig {
            interface: None,
            address: "fd00::5/64".parse().unwrap(),
            gateway: "fd00::1".parse().ok(),
        };
        let mut result = CniResult { ips: vec![ip], ..CniResult::default() };
        let paths = config.complete(&mut result).unwrap();
        assert_eq!(result.ips[0].interface, Some(1));
        assert_eq!(paths[0].host, "fd00::5/128".parse().unwrap());
        assert_eq!(paths[0].gateway, "fd00::1/128".parse().unwrap());
        assert_eq!(paths[0].next_hop(), "fd00::1".parse::<IpAddr>().unwrap());
        result.ips[0].gateway = None;
        assert!(config.complete(&mut result).unwrap_err().message.contains("fd00::5/64 without a gateway"));
    }

    #[test]
    fn no_address_plugin_is_left_to_the_search_for_it() {
        let config = Config::parse(br#"{"name":"n"}"#).unwrap();
        assert_eq!(PtpConfig::parse(&config).unwrap().ipam, "");
    }
}
