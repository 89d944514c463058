//! Configuration of the `bridge` plugin.
//!
//! Keys, defaults and refusals are those of the Go plugin. What this build does not have is refused by name: a bridge without the VLAN or
//! the filter that an operator asked for would look alike and be open.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::args::Args;
use crate::conf::{Config, load_error};
use crate::error::{Error, code};
use crate::json::{Fields, Json};
use crate::masquerade;
use crate::range::next;
use crate::result::{CniResult, Dns, Route};

/// A hardware address.
pub type MacAddress = [u8; 6];

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
    /// Traffic of the container to other networks takes the node's address.
    pub masquerade: bool,
    /// What does that; `None` leaves it to what the node has.
    pub masquerade_backend: Option<masquerade::Backend>,
    /// MTU of both ends and of a bridge that is made, in bytes; zero leaves the kernel's.
    pub mtu: u32,
    /// The bridge may send a packet back by the port it came in.
    pub hairpin: bool,
    /// The bridge accepts every frame.
    pub promiscuous: bool,
    /// Ports with this flag do not see each other.
    pub isolated: bool,
    /// IPv6 duplicate address detection runs on the container's link.
    pub duplicate_detection: bool,
    /// The container's link stays down.
    pub link_disabled: bool,
    /// Hardware address for the container's link.
    pub mac: Option<MacAddress>,
    /// Replaces the address plugin's name resolution when it says anything.
    pub dns: Dns,
    /// Name of the address plugin; `None` makes a link without addresses.
    pub ipam: Option<String>,
}

impl BridgeConfig {
    /// Reads and checks a configuration; `args` is `CNI_ARGS`.
    ///
    /// # Errors
    /// Keys of the wrong type, combinations that exclude each other, and ([`code::UNSUPPORTED_FIELD`]) what this build does not have.
    pub fn parse(config: &Config, args: &str) -> Result<Self, Error> {
        let fields = config.fields()?;
        refuse_unbuilt(&fields)?;
        Self::read(config, &fields, args)
    }

    /// Reads a configuration for DEL, which must also undo what another build of the plugin did: VLANs do not matter to it.
    ///
    /// # Errors
    /// As [`BridgeConfig::parse`]; of what this build does not have only `macspoofchk`, whose filter would stay.
    pub fn parse_for_removal(config: &Config, args: &str) -> Result<Self, Error> {
        let fields = config.fields()?;
        refuse_filter(&fields)?;
        Self::read(config, &fields, args)
    }

    fn read(config: &Config, fields: &Fields<'_>, args: &str) -> Result<Self, Error> {
        let flag = |name| fields.bool(name).map(Option::unwrap_or_default).map_err(load_error);
        let mtu = fields.integer("mtu").map_err(load_error)?.unwrap_or_default();
        let mtu = u32::try_from(mtu)
            .ok()
            .filter(|&mtu| mtu <= 65_535)
            .ok_or_else(|| Error::internal(format!("invalid MTU {mtu} (must be between 0 and 65535)")))?;
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
        let bridge = match fields.string("bridge").map_err(load_error)? {
            None | Some("") => "cni0",
            Some(name) if name.len() > 15 || name.contains('/') => {
                return Err(Error::internal(format!(
                    "`bridge`: {name:?} cannot be a link's name (at most 15 bytes, no slash)"
                )));
            }
            Some(name) => name,
        };
        let dns = fields.object("dns").map_err(load_error)?.map(|dns| Dns::parse(&dns)).transpose();
        Ok(Self {
            bridge: bridge.to_owned(),
            is_gateway: flag("isGateway")? || is_default_gateway,
            is_default_gateway,
            force_address: flag("forceAddress")?,
            masquerade: flag("ipMasq")?,
            masquerade_backend: masquerade::Backend::of(fields)?,
            mtu,
            hairpin,
            promiscuous,
            isolated: flag("portIsolation")?,
            duplicate_detection: flag("enabledad")?,
            link_disabled,
            mac: requested_mac(fields, args)?,
            dns: dns.map_err(load_error)?.unwrap_or_default(),
            ipam,
        })
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

/// The next hop that a route of the result means: its own, else the first gateway of the same family.
pub fn next_hop_of(route: &Route, result: &CniResult) -> Option<IpAddr> {
    route.next_hop.or_else(|| {
        result
            .ips
            .iter()
            .filter(|ip| ip.address.addr().is_ipv4() == route.dst.addr().is_ipv4())
            .find_map(|ip| ip.gateway)
    })
}

fn unbuilt(key: &str, value: &Json) -> Error {
    Error::new(
        code::UNSUPPORTED_FIELD,
        format!(
            "bridge: `{key}` = {} is not supported by this build; remove the key or use the Go bridge plugin",
            value.compact()
        ),
    )
}

fn refuse_filter(fields: &Fields<'_>) -> Result<(), Error> {
    if fields.bool("macspoofchk").map_err(load_error)? == Some(true) {
        return Err(unbuilt("macspoofchk", &Json::Bool(true)));
    }
    Ok(())
}

fn refuse_unbuilt(fields: &Fields<'_>) -> Result<(), Error> {
    let vlan = fields.integer("vlan").map_err(load_error)?.unwrap_or_default();
    if !(0..=4094).contains(&vlan) {
        return Err(Error::internal(format!("invalid VLAN ID {vlan} (must be between 0 and 4094)")));
    }
    if vlan != 0 {
        return Err(unbuilt("vlan", &Json::from(vlan)));
    }
    if !fields.array("vlanTrunk").map_err(load_error)?.is_empty()
        && let Some(value) = fields.get("vlanTrunk")
    {
        return Err(unbuilt("vlanTrunk", value));
    }
    refuse_filter(fields)?;
    // Without VLANs it has no effect, so its value does not matter; its type does.
    fields.bool("preserveDefaultVlan").map_err(load_error)?;
    Ok(())
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

/// Six bytes in hexadecimal, separated by `:` or `-`.
pub fn parse_mac(text: &str) -> Option<MacAddress> {
    let separator = if text.contains('-') { '-' } else { ':' };
    let mut mac = MacAddress::default();
    let mut parts = text.split(separator);
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Lower case, separated by `:`.
pub fn format_mac(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::IpConfig;

    fn parse(text: &str) -> Result<BridgeConfig, Error> {
        BridgeConfig::parse(&Config::parse(text.as_bytes()).unwrap(), "")
    }

    #[test]
    fn defaults() {
        let config = parse(r#"{"name":"n"}"#).unwrap();
        assert_eq!(config.bridge, "cni0");
        assert!(!config.is_gateway && !config.masquerade && !config.hairpin && config.ipam.is_none());
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
        assert_eq!(message(r#"{"name":"n","ipMasqBackend":"x"}"#), "unknown ipmasq backend \"x\"");
        assert!(message(r#"{"name":"n","vlan":4095}"#).starts_with("invalid VLAN ID 4095"));
        for text in [
            r#"{"name":"n","vlan":5}"#,
            r#"{"name":"n","vlanTrunk":[{"id":5}]}"#,
            r#"{"name":"n","macspoofchk":true}"#,
        ] {
            assert_eq!(parse(text).unwrap_err().code, code::UNSUPPORTED_FIELD, "{text}");
        }
        assert!(
            parse(r#"{"name":"n","vlan":0,"vlanTrunk":[],"macspoofchk":false,"preserveDefaultVlan":true}"#)
                .is_ok()
        );
        assert!(message(r#"{"name":"n","bridge":"abcdefghijklmnop"}"#).contains("abcdefghijklmnop"));
    }

    #[test]
    fn mac_precedence() {
        let config = Config::parse(
            br#"{"name":"n","args":{"cni":{"mac":"02:00:00:00:00:02"}},"runtimeConfig":{"mac":"02-00-00-00-00-03"}}"#,
        )
        .unwrap();
        let mac = |config: &Config, args| BridgeConfig::parse(config, args).unwrap().mac;
        assert_eq!(mac(&config, "MAC=02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 3]));
        let config = Config::parse(br#"{"name":"n","args":{"cni":{"mac":"02:00:00:00:00:02"}}}"#).unwrap();
        assert_eq!(mac(&config, "MAC=02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 2]));
        let config = Config::parse(br#"{"name":"n"}"#).unwrap();
        assert_eq!(mac(&config, "MAC=02:00:00:00:00:01"), Some([2, 0, 0, 0, 0, 1]));
        assert!(BridgeConfig::parse(&config, "MAC=xx").unwrap_err().message.contains("\"xx\""));
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
