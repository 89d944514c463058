//! Configuration of `static`: addresses that somebody else has chosen.
//!
//! The plugin keeps nothing, so what the configuration and the runtime say is all there is. Which source wins, and that a gateway of
//! `CNI_ARGS` is given to addresses of `CNI_ARGS` alone, is as in the Go plugin: the same pod must get the same address from both.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::args::Args;
use crate::conf::{Config, load_error};
use crate::error::Error;
use crate::json::Fields;
use crate::result::{Dns, IpConfig, Route, optional_address};
use crate::{CniResult, version};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticConfig {
    /// The addresses with their gateways, in the order of the result.
    pub addresses: Vec<IpConfig>,
    /// Copied into the result.
    pub routes: Vec<Route>,
    /// Copied into the result.
    pub dns: Dns,
}

impl StaticConfig {
    /// Reads and checks the configuration; `args` is `CNI_ARGS`.
    ///
    /// # Errors
    /// The first rule that is broken, in the words of the Go plugin.
    pub fn parse(config: &Config, args: &str) -> Result<Self, Error> {
        let fields = config.fields()?;
        let args = Args::parse(args, &["IP", "GATEWAY"])?;
        let ipam = fields
            .object("ipam")
            .map_err(load_error)?
            .ok_or_else(|| Error::internal("IPAM config missing 'ipam' key"))?;
        let mut given = from_args(&args)?;
        // The rest of the runtime's sources replace everything; they are read before the configuration's own, which need not be right then.
        let convention = fields.object("args").map_err(load_error)?;
        let convention = convention.map(|args| args.object("cni")).transpose().map_err(load_error)?.flatten();
        let runtime = fields.object("runtimeConfig").map_err(load_error)?;
        let mut replaced = None;
        for source in [&convention, &runtime].into_iter().flatten() {
            let list = source.strings("ips").map_err(load_error)?;
            if !list.is_empty() {
                replaced = Some(
                    list.iter()
                        .map(|text| in_cidr("an entry in the 'ips' field is NOT in CIDR notation", text))
                        .collect::<Result<Vec<_>, _>>()?,
                );
            }
        }
        let addresses = match replaced {
            Some(addresses) => addresses,
            None => {
                let mut addresses = configured(&ipam)?;
                addresses.append(&mut given);
                addresses
            }
        };
        check_families(&addresses, &config.version)?;
        let routes = ipam.objects("routes").map_err(load_error)?;
        let dns = ipam.object("dns").map_err(load_error)?;
        Ok(Self {
            addresses,
            routes: routes.iter().map(Route::parse).collect::<Result<_, _>>().map_err(load_error)?,
            dns: dns.map(|dns| Dns::parse(&dns)).transpose().map_err(load_error)?.unwrap_or_default(),
        })
    }

    /// The result of ADD.
    pub fn result(&self) -> CniResult {
        CniResult {
            interfaces: Vec::new(),
            ips: self.addresses.clone(),
            routes: self.routes.clone(),
            dns: self.dns.clone(),
        }
    }

    /// The first address whose gateway is another one in the result that is to be checked.
    pub fn mismatch(&self, result: &CniResult) -> Option<IpAddr> {
        let differs = |wanted: &IpConfig, found: &IpConfig| {
            wanted.address.addr() == found.address.addr()
                && wanted.gateway.is_some()
                && wanted.gateway != found.gateway
        };
        self.addresses.iter().find_map(|wanted| {
            let same = result.ips.iter().find(|found| found.address.addr() == wanted.address.addr())?;
            differs(wanted, same).then(|| same.address.addr())
        })
    }
}

fn from_args(args: &Args) -> Result<Vec<IpConfig>, Error> {
    let items = |key| args.get(key).into_iter().flat_map(|list| list.split(',')).map(str::trim);
    let mut addresses = items("IP")
        .map(|text| in_cidr("the 'ip' field is expected to be in CIDR notation", text))
        .collect::<Result<Vec<_>, _>>()?;
    for text in items("GATEWAY") {
        let gateway: IpAddr =
            text.parse().map_err(|_| Error::internal(format!("invalid gateway address: {text}")))?;
        let gateway = gateway.to_canonical();
        for address in addresses.iter_mut().filter(|address| address.address.contains(&gateway)) {
            address.gateway = Some(gateway);
        }
    }
    Ok(addresses)
}

fn configured(ipam: &Fields<'_>) -> Result<Vec<IpConfig>, Error> {
    let entries = ipam.objects("addresses").map_err(load_error)?;
    entries
        .iter()
        .map(|entry| {
            let gateway = optional_address(entry, "gateway").map_err(load_error)?;
            let text = entry.string("address").map_err(load_error)?.unwrap_or_default();
            let address = in_cidr("the 'address' field is expected to be in CIDR notation", text)?;
            Ok(IpConfig { gateway, ..address })
        })
        .collect()
}

fn in_cidr(complaint: &str, text: &str) -> Result<IpConfig, Error> {
    let address: IpNet = text.parse().map_err(|_| Error::internal(format!("{complaint}, got: '{text}'")))?;
    Ok(IpConfig { interface: None, address, gateway: None })
}

fn check_families(addresses: &[IpConfig], config_version: &str) -> Result<(), Error> {
    let v4 = addresses.iter().filter(|ip| ip.address.addr().is_ipv4()).count();
    if (v4 > 1 || addresses.len() - v4 > 1) && !version::at_least(config_version, "0.3.0")? {
        return Err(Error::internal(format!(
            "CNI version {config_version} does not support more than 1 address per family"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, args: &str) -> Result<Vec<String>, String> {
        let config = StaticConfig::parse(&Config::parse(text.as_bytes()).unwrap(), args);
        let show = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => format!("{} via {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        config.map(|config| config.addresses.iter().map(show).collect()).map_err(|error| error.message)
    }

    #[test]
    fn sources_add_up_or_replace() {
        let own = r#""ipam":{"addresses":[{"address":"10.9.0.2/24","gateway":"10.9.0.9"},{"ADDRESS":"fd00::2/64"}]}"#;
        let with = |more: &str| format!(r#"{{"name":"n","cniVersion":"1.0.0",{own}{more}}}"#);
        let args = "IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.0.0.5/24, 10.1.0.5/24;GATEWAY=10.0.0.1,10.9.0.1";
        assert_eq!(parse(&with(""), "").unwrap(), ["10.9.0.2/24 via 10.9.0.9", "fd00::2/64"]);
        assert_eq!(
            parse(&with(""), args).unwrap(),
            ["10.9.0.2/24 via 10.9.0.9", "fd00::2/64", "10.0.0.5/24 via 10.0.0.1", "10.1.0.5/24"]
        );
        let convention = r#","args":{"cni":{"ips":["10.2.0.5/24"]}}"#;
        assert_eq!(parse(&with(convention), args).unwrap(), ["10.2.0.5/24"]);
        let both = r#","args":{"cni":{"ips":["10.2.0.5/24"]}},"runtimeConfig":{"ips":["10.3.0.5/24"]}"#;
        assert_eq!(parse(&with(both), args).unwrap(), ["10.3.0.5/24"]);
        let empty = r#","runtimeConfig":{"ips":[]}"#;
        assert_eq!(parse(&with(empty), "").unwrap().len(), 2);
    }

    #[test]
    fn refusals_have_the_texts_of_the_go_plugin() {
        let refused = |text: &str, args: &str| parse(text, args).unwrap_err();
        let none = r#"{"name":"n","cniVersion":"1.0.0","ipam":{}}"#;
        assert_eq!(refused(r#"{"name":"n"}"#, ""), "IPAM config missing 'ipam' key");
        assert_eq!(
            refused(none, "IP=10.0.0.1"),
            "the 'ip' field is expected to be in CIDR notation, got: '10.0.0.1'"
        );
        assert_eq!(refused(none, "GATEWAY=10.0.0"), "invalid gateway address: 10.0.0");
        assert_eq!(refused(none, "FOO=1"), "ARGS: unknown args [\"FOO=1\"]");
        assert_eq!(
            refused(r#"{"name":"n","ipam":{"addresses":[{}]}}"#, ""),
            "the 'address' field is expected to be in CIDR notation, got: ''"
        );
        assert_eq!(
            refused(r#"{"name":"n","ipam":{},"runtimeConfig":{"ips":["10.0.0.1"]}}"#, ""),
            "an entry in the 'ips' field is NOT in CIDR notation, got: '10.0.0.1'"
        );
        let two = r#"{"name":"n","cniVersion":"0.2.0","ipam":{"addresses":[{"address":"10.0.0.1/8"},{"address":"10.0.0.2/8"}]}}"#;
        assert_eq!(refused(two, ""), "CNI version 0.2.0 does not support more than 1 address per family");
    }

    #[test]
    fn a_check_compares_gateways_of_equal_addresses() {
        let text = r#"{"name":"n","cniVersion":"1.0.0","ipam":{"addresses":[{"address":"10.0.0.1/8","gateway":"10.0.0.9"}]}}"#;
        let config = StaticConfig::parse(&Config::parse(text.as_bytes()).unwrap(), "").unwrap();
        let mut result = config.result();
        assert_eq!(config.mismatch(&result), None);
        result.ips[0].gateway = None;
        assert_eq!(config.mismatch(&result), Some("10.0.0.1".parse().unwrap()));
        result.ips.clear();
        assert_eq!(config.mismatch(&result), None);
    }
}
