//! What `bridge` and `ptp` read and do alike about the container's link.

use std::net::IpAddr;

use crate::conf::load_error;
use crate::error::Error;
use crate::json::Fields;
use crate::masquerade::Backend;
use crate::result::{CniResult, Dns, Route};

/// A hardware address.
pub type MacAddress = [u8; 6];

/// What a configuration says about the container's link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerLink {
    /// MTU of both ends, in bytes; zero leaves the kernel's.
    pub mtu: u32,
    /// Traffic of the container to other networks takes the node's address.
    pub masquerade: bool,
    /// What does that; `None` leaves it to what the node has.
    pub masquerade_backend: Option<Backend>,
    /// `enabledad`: IPv6 duplicate address detection runs on the container's link, and ADD waits for it.
    pub duplicate_detection: bool,
    /// Replaces the address plugin's name resolution when it says anything.
    pub dns: Dns,
}

impl ContainerLink {
    /// Reads `mtu`, `ipMasq`, `ipMasqBackend`, `enabledad` and `dns`.
    ///
    /// # Errors
    /// A key of the wrong type or out of range.
    pub(crate) fn parse(fields: &Fields<'_>) -> Result<Self, Error> {
        let flag = |name| fields.bool(name).map(Option::unwrap_or_default).map_err(load_error);
        let mtu = fields.integer("mtu").map_err(load_error)?.unwrap_or_default();
        let mtu = u32::try_from(mtu)
            .ok()
            .filter(|&mtu| mtu <= 65_535)
            .ok_or_else(|| Error::internal(format!("invalid MTU {mtu} (must be between 0 and 65535)")))?;
        let dns = fields.object("dns").map_err(load_error)?.map(|dns| Dns::parse(&dns)).transpose();
        Ok(Self {
            mtu,
            masquerade: flag("ipMasq")?,
            masquerade_backend: Backend::of(fields)?,
            duplicate_detection: flag("enabledad")?,
            dns: dns.map_err(load_error)?.unwrap_or_default(),
        })
    }

    /// The MTU, if one is said.
    pub fn mtu(&self) -> Option<u32> {
        (self.mtu != 0).then_some(self.mtu)
    }

    /// Name resolution of the configuration goes before the address plugin's.
    pub fn complete(&self, result: &mut CniResult) {
        if !self.dns.is_empty() {
            result.dns = self.dns.clone();
        }
    }
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
    use crate::json::Json;

    fn parse(text: &str) -> Result<ContainerLink, Error> {
        let json = Json::parse(text.as_bytes()).unwrap();
        ContainerLink::parse(&Fields::of(&json, "").unwrap())
    }

    #[test]
    fn keys_and_their_limits() {
        let link = parse(r#"{"mtu":1450,"ipMasq":true,"enableDAD":true,"dns":{"domain":"d"}}"#).unwrap();
        assert_eq!((link.mtu(), link.masquerade, link.duplicate_detection), (Some(1450), true, true));
        assert_eq!(parse("{}").unwrap(), ContainerLink::default());
        assert_eq!(parse("{}").unwrap().mtu(), None);
        let message = |text| parse(text).unwrap_err().message;
        assert_eq!(message(r#"{"ipMasqBackend":"x"}"#), "unknown ipmasq backend \"x\"");
        assert!(message(r#"{"mtu":65536}"#).starts_with("invalid MTU 65536"));
        assert!(message(r#"{"mtu":"1500"}"#).starts_with("failed to load netconf: `mtu`"));
    }

    #[test]
    fn name_resolution_of_the_configuration_goes_first() {
        let mut result =
            CniResult { dns: Dns { domain: "ipam".to_owned(), ..Dns::default() }, ..CniResult::default() };
        parse("{}").unwrap().complete(&mut result);
        assert_eq!(result.dns.domain, "ipam");
        parse(r#"{"dns":{"search":["s"]}}"#).unwrap().complete(&mut result);
        assert_eq!((result.dns.domain.as_str(), result.dns.search.len()), ("", 1));
    }
}
