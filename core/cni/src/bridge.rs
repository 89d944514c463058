//! Configuration of the `bridge` plugin.
//!
//! Keys, defaults and refusals are those of the Go plugin. A key that is read wrongly gives a bridge without the VLAN or the filter that an
//! operator asked for: it would look alike and be open.

use ipnet::IpNet;

use crate::args::Args;
use crate::conf::{Config, load_error};
use crate::error::Error;
use crate::json::Fields;
use crate::link::{ContainerLink, MacAddress, parse_mac};
use crate::range::next;
use crate::result::{CniResult, Route};
use crate::version::Family;
use crate::vlan::PortVlans;

/// The longest name of a link, in bytes.
const NAME_LIMIT: usize = 15;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Name of the bridge.
    pub bridge: String,
    /// The bridge gets the gateway address and the node forwards.
    pub is_gateway: bool,
    /// The container's default route leads to the bridge.
    pub is_default_gateway: bool,
    /// A conflicting address of the bridge is replaced rather than refused.
    pub force_address: bool,
    /// What is said about the container's link; its MTU is also that of a bridge that is made.
    pub link: ContainerLink,
    /// The bridge may send a packet back by the port it came in.
    pub hairpin: bool,
    /// The bridge accepts every frame.
    pub promiscuous: bool,
    /// Ports with this flag do not see each other.
    pub isolated: bool,
    /// The VLANs of the container's port.
    pub vlans: PortVlans,
    /// The container may send only from its own hardware address.
    pub spoof_check: bool,
    /// The container's link stays down.
    pub link_disabled: bool,
    /// Hardware address for the container's link.
    pub mac: Option<MacAddress>,
    /// Name of the address plugin; `None` makes a link without addresses.
    pub ipam: Option<String>,
}

impl BridgeConfig {
    /// Reads and checks a configuration; `args` is `CNI_ARGS`.
    ///
    /// # Errors
    /// Keys of the wrong type, values out of range, combinations that exclude each other, and a result that the configuration's version
    /// cannot say.
    pub fn parse(config: &Config, args: &str) -> Result<Self, Error> {
        let read = Self::read(config, &config.fields()?, args)?;
        if read.ipam.is_none() && Family::of(&config.version) == Some(Family::V02) {
            return Err(Error::internal("cannot convert: no valid IP addresses").with_details(format!(
                "results of version {} have addresses and nothing else; set `ipam`, or a `cniVersion` from 0.3.0 on",
                config.version
            )));
        }
        Ok(read)
    }

    /// Reads a configuration for DEL and GC, which need no result.
    ///
    /// # Errors
    /// As [`BridgeConfig::parse`], whatever the version.
    pub fn parse_for_removal(config: &Config, args: &str) -> Result<Self, Error> {
        Self::read(config, &config.fields()?, args)
    }

    fn read(config: &Config, fields: &Fields<'_>, args: &str) -> Result<Self, Error> {
        let flag = |name| fields.bool(name).map(Option::unwrap_or_default).map_err(load_error);
        let link = ContainerLink::parse(fields)?;
        let vlans = PortVlans::parse(fields)?;
        let (hairpin, promiscuous) = (flag("hairpinMode")?, flag("promiscMode")?);
        if hairpin && promiscuous {
            return Err(Error::internal("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        let ipam = config.ipam_type()?;
        let link_disabled = flag("disableContainerInterface")?;
        if link_disabled && ipam.is_some() {
            return Err(Error::internal("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        let is_default_gateway = flag("isDefaultGateway")?;
        let read = Self {
            bridge: bridge_name(fields)?,
            is_gateway: flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: flag("forceAddress")?,
            link,
            hairpin,
            promiscuous,
            isolated: flag("portIsolation")?,
            vlans,
            spoof_check: flag("macspoofchk")?,
            link_disabled,
            mac: requested_mac(fields, args)?,
            ipam,
        };
        if let Some(name) = read.vlan_gateway().filter(|name| name.len() > NAME_LIMIT) {
            return Err(Error::internal(format!(
                "the gateway of VLAN {} would be link {name:?}, which is longer than {NAME_LIMIT} bytes; give `bridge` a shorter name",
                read.vlans.access.unwrap_or_default()
            )));
        }
        Ok(read)
    }

    /// The link that carries the gateway address instead of the bridge: in a VLAN, a port of its own.
    pub fn vlan_gateway(&self) -> Option<String> {
        self.vlans.access.filter(|_| self.is_gateway).map(|vlan| format!("{}.{vlan}", self.bridge))
    }

    /// Completes what the address plugin said: every address belongs to the container's link (index 2 of the result), gateways that are
    /// missing become the subnet's first address, and the default routes are added unless one with a next hop is there.
    pub fn complete(&self, result: &mut CniResult) {
        for ip in &mut result.ips {
            ip.interface = Some(2);
            if self.is_gateway && ip.gateway.is_none() {
                ip.gateway = Some(next(ip.address.network()));
            }
        }
        if !self.is_default_gateway {
            return;
        }
        for is_ipv4 in [true, false] {
            let Some(gateway) = result
                .ips
                .iter()
                .filter(|ip| ip.address.addr().is_ipv4() == is_ipv4)
                .find_map(|ip| ip.gateway)
            else {
                continue;
            };
            let default = |route: &Route| {
                route.dst.addr().is_ipv4() == is_ipv4
                    && route.dst.prefix_len() == 0
                    && route.next_hop.is_some()
            };
            if !result.routes.iter().any(default) {
                result.routes.push(Route { next_hop: Some(gateway), ..Route::to(everything(is_ipv4)) });
            }
        }
    }

    /// The addresses that the bridge must have: each gateway with its subnet's prefix length, once.
    pub fn gateway_addresses(&self, result: &CniResult) -> Vec<IpNet> {
        let mut addresses = Vec::new();
        if self.is_gateway {
            for ip in &result.ips {
                let address =
                    ip.gateway.and_then(|gateway| IpNet::new(gateway, ip.address.prefix_len()).ok());
                if let Some(address) = address.filter(|address| !addresses.contains(address)) {
                    addresses.push(address);
                }
            }
        }
        addresses
    }
}

/// `0.0.0.0/0` or `::/0`.
fn everything(is_ipv4: bool) -> IpNet {
    if is_ipv4 { IpNet::V4(ipnet::Ipv4Net::default()) } else { IpNet::V6(ipnet::Ipv6Net::default()) }
}

fn bridge_name(fields: &Fields<'_>) -> Result<String, Error> {
    match fields.string("bridge").map_err(load_error)? {
        None | Some("") => Ok("cni0".to_owned()),
        Some(name) if name.len() > NAME_LIMIT || name.contains('/') => Err(Error::internal(format!(
            "`bridge`: {name:?} cannot be a link's name (at most {NAME_LIMIT} bytes, no slash)"
        ))),
        Some(name) => Ok(name.to_owned()),
    }
}

/// The container link's hardware address: `CNI_ARGS`, overruled by `args.cni.mac`, overruled by `runtimeConfig.mac`.
fn requested_mac(fields: &Fields<'_>, args: &str) -> Result<Option<MacAddress>, Error> {
    let args = Args::parse(args, &["MAC"])?;
    let mut text = args.get("MAC");
    let convention = fields.object("args").map_err(load_error)?;
    let convention = convention.map(|args| args.object("cni")).transpose().map_err(load_error)?.flatten();
    let runtime = fields.object("runtimeConfig").map_err(load_error)?;
    for source in [&convention, &runtime].into_iter().flatten() {
        if let Some(mac) = source.string("mac").map_err(load_error)?.filter(|mac| !mac.is_empty()) {
            text = Some(mac);
        }
    }
    text.map(|text| parse_mac(text).ok_or_else(|| Error::internal(format!("invalid MAC address {text:?}"))))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{format_mac, next_hop_of};
    use crate::result::IpConfig;

    fn parse(text: &str) -> Result<BridgeConfig, Error> {
        BridgeConfig::parse_for_removal(&Config::parse(text.as_bytes()).unwrap(), "")
    }

    #[test]
    fn defaults() {
        let config = parse(r#"{"name":"n"}"#).unwrap();
        assert_eq!(config.bridge, "cni0");
        assert!(!config.is_gateway && !config.link.masquerade && !config.hairpin && config.ipam.is_none());
        assert!(parse(r#"{"name":"n","isDefaultGateway":true}"#).unwrap().is_gateway);
    }

    #[test]
    fn refusals() {
        let message = |text| parse(text).unwrap_err().message;
        assert_eq!(
            message(r#"{"name":"n","hairpinMode":true,"promiscMode":true}"#),
            "cannot set hairpin mode and promiscuous mode at the same time"
        );
        assert_eq!(
            message(r#"{"name":"n","disableContainerInterface":true,"ipam":{"type":"x"}}"#),
            "cannot use IPAM when DisableContainerInterface flag is set"
        );
        assert!(message(r#"{"name":"n","vlan":4095}"#).starts_with("invalid VLAN ID 4095"));
        assert!(message(r#"{"name":"n","bridge":"abcdefghijklmnop"}"#).contains("abcdefghijklmnop"));
        assert!(
            message(r#"{"name":"n","bridge":"abcdefghijklm","vlan":17,"isGateway":true}"#)
                .contains("\"abcdefghijklm.17\", which is longer than 15 bytes")
        );
    }

    #[test]
    fn a_result_that_the_version_cannot_say_is_refused_first() {
        for version in ["", "0.1.0", "0.2.0"] {
            let text = format!(r#"{{"name":"n","cniVersion":"{version}"}}"#);
            let config = Config::parse(text.as_bytes()).unwrap();
            let error = BridgeConfig::parse(&config, "").unwrap_err();
            assert_eq!(error.message, "cannot convert: no valid IP addresses");
            assert!(BridgeConfig::parse_for_removal(&config, "").is_ok());
        }
    }

    #[test]
    fn a_gateway_in_a_vlan_is_a_link_of_its_own() {
        let gateway = |text| parse(text).unwrap().vlan_gateway();
        assert_eq!(
            gateway(r#"{"name":"n","cniVersion":"1.0.0","bridge":"br1","vlan":17,"isGateway":true}"#)
                .as_deref(),
            Some("br1.17")
        );
        assert_eq!(gateway(r#"{"name":"n","cniVersion":"1.0.0","vlan":17}"#), None);
        assert_eq!(gateway(r#"{"name":"n","cniVersion":"1.0.0","isGateway":true}"#), None);
    }

    #[test]
    fn mac_precedence() {
        let config = Config::parse(
            br#"{"name":"n","args":{"cni":{"mac":"02:00:00:00:00:02"}},"runtimeConfig":{"mac":"02-00-00-00-00-03"}}"#,
        )
        .unwrap();
        let mac = |config: &Config, args| BridgeConfig::parse_for_removal(config, args).unwrap().mac;
        assert_eq!(mac(&config, "MAC=02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 3]));
        let config = Config::parse(br#"{"name":"n","args":{"cni":{"mac":"02:00:00:00:00:02"}}}"#).unwrap();
        assert_eq!(mac(&config, "MAC=02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 2]));
        let config = Config::parse(br#"{"name":"n"}"#).unwrap();
        assert_eq!(mac(&config, "MAC=02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 1]));
        assert!(BridgeConfig::parse_for_removal(&config, "MAC=xx").unwrap_err().message.contains("\"xx\""));
        assert_eq!(format_mac(&[2, 0, 0, 0, 0, 0xab]), "02:00:00:00:00:ab");
    }

    #[test]
    fn completion_adds_gateways_and_default_routes() {
        let config = parse(r#"{"name":"n","isDefaultGateway":true}"#).unwrap();
        let mut result = CniResult {
            ips: vec![
                IpConfig { interface: None, address: "10.1.0.5/24".parse().unwrap(), gateway: None },
                IpConfig {
                    interface: None,
                    address: "fd00::5/64".parse().unwrap(),
                    gateway: "fd00::9".parse().ok(),
                },
            ],
            routes: vec![
                Route::to("0.0.0.0/0".parse().unwrap()),
                Route { next_hop: "fd00::7".parse().ok(), ..Route::to("::/0".parse().unwrap()) },
            ],
            ..CniResult::default()
        };
        config.complete(&mut result);
        assert_eq!(result.routes.len(), 3, "a default route without next hop does not count, one with does");
        assert_eq!(next_hop_of(&result.routes[0], &result), "10.1.0.1".parse().ok());
        let gateways = config.gateway_addresses(&result);
        assert_eq!(gateways, ["10.1.0.1/24".parse().unwrap(), "fd00::9/64".parse().unwrap()]);
    }
}
