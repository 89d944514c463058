//! `net-conf.json`: the network's configuration, shared by every node.
//!
//! Keys are matched without regard to case and unknown keys are ignored, as Go's JSON decoder does; the last of two
//! equal keys wins. Subnet ranges are only computed (and only validated) when somebody asks, because with Kubernetes
//! as lease store the API server divides the network and the range keys have no meaning.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;
use thiserror::Error;

/// What is wrong with a net-conf, in terms of the file and key a person can edit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("network configuration {source_name}: {}{cause}; {remedy}", .key.as_deref().map(|key| format!("key {key}: ")).unwrap_or_default())]
pub struct NetConfError {
    /// The file or etcd key the text came from.
    pub source_name: String,
    /// The offending key as flannel documents it; absent when the text is no JSON object at all.
    pub key: Option<String>,
    /// What is wrong.
    pub cause: String,
    /// What to do about it.
    pub remedy: String,
}

/// The parsed configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConf {
    /// Where the text came from; error texts name it.
    pub source_name: String,
    /// `EnableIPv4`, default true.
    pub enable_ipv4: bool,
    /// `EnableIPv6`, default false.
    pub enable_ipv6: bool,
    /// `EnableNFTables`, default false.
    pub enable_nftables: bool,
    /// `Network`, host bits cleared.
    pub network: Option<Ipv4Net>,
    /// `IPv6Network`, host bits cleared.
    pub ipv6_network: Option<Ipv6Net>,
    /// `SubnetLen` as given; 0 and absent are the same.
    pub subnet_len: u8,
    /// `SubnetMin` as given; the zero address and absent are the same.
    pub subnet_min: Option<Ipv4Addr>,
    /// `SubnetMax` as given.
    pub subnet_max: Option<Ipv4Addr>,
    /// `IPv6SubnetLen` as given; 0 and absent are the same.
    pub ipv6_subnet_len: u8,
    /// `IPv6SubnetMin` as given.
    pub ipv6_subnet_min: Option<Ipv6Addr>,
    /// `IPv6SubnetMax` as given.
    pub ipv6_subnet_max: Option<Ipv6Addr>,
    /// `Backend`.
    pub backend: BackendConf,
}

/// The `Backend` object: its type in lower case and the remaining keys untouched.
#[derive(Debug, Clone, PartialEq)]
pub struct BackendConf {
    /// `Type` in lower case; `udp` when the whole object is absent (flannel's rule), empty when only `Type` is.
    pub kind: String,
    /// The other keys in order, for the backend to read with [`BackendConf::get`].
    pub settings: Vec<(String, Value)>,
}

impl BackendConf {
    /// A setting by name, without regard to case; the last of equal keys wins; JSON null counts as absent.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        find(&self.settings, name)
    }
}

/// The subnets a lease store may hand out: addresses of the first and last subnet and their prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange<A> {
    /// Prefix length of one subnet.
    pub len: u8,
    /// Base address of the first subnet.
    pub min: A,
    /// Base address of the last subnet.
    pub max: A,
}

/// A JSON object with its keys in document order, duplicates kept.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Object, M::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Object(pairs))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

fn find<'a>(pairs: &'a [(String, Value)], name: &str) -> Option<&'a Value> {
    pairs
        .iter()
        .rev()
        .find(|(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null())
        .map(|(_, value)| value)
}

/// The pairs of one text, with the means to complain about them.
struct Reader<'a> {
    source_name: &'a str,
    pairs: Vec<(String, Value)>,
}

impl Reader<'_> {
    fn broken(&self, key: &str, cause: impl Into<String>, remedy: impl Into<String>) -> NetConfError {
        NetConfError {
            source_name: self.source_name.to_owned(),
            key: Some(key.to_owned()),
            cause: cause.into(),
            remedy: remedy.into(),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, NetConfError> {
        match find(&self.pairs, key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.broken(
                key,
                format!("{other} is not a boolean"),
                "write true or false without quotes",
            )),
        }
    }

    fn length(&self, key: &str, limit: u8) -> Result<u8, NetConfError> {
        match find(&self.pairs, key) {
            None => Ok(0),
            Some(value) => {
                value.as_u64().and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= limit).ok_or_else(|| {
                    self.broken(
                        key,
                        format!("{value} is not a prefix length"),
                        format!("write a number from 0 to {limit} without quotes"),
                    )
                })
            }
        }
    }

    fn text(&self, key: &str, example: &str) -> Result<Option<&str>, NetConfError> {
        match find(&self.pairs, key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.broken(
                key,
                format!("{other} is not a string"),
                format!("write it in quotes, for example {example:?}"),
            )),
        }
    }

    fn parsed<T: std::str::FromStr>(
        &self,
        key: &str,
        what: &str,
        example: &str,
    ) -> Result<Option<T>, NetConfError> {
        let Some(text) = self.text(key, example)? else { return Ok(None) };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.broken(
                key,
                format!("{text:?} is not an {what}"),
                format!("write for example {example:?}"),
            )),
        }
    }
}

impl NetConf {
    /// Parses the text. `source_name` is the file or key it came from and appears in errors.
    ///
    /// # Errors
    /// When the text is no JSON object or a known key has a value of the wrong shape. Ranges and the presence of
    /// networks are not checked here, as flannel does not check them in Kubernetes mode either.
    pub fn parse(source_name: &str, text: &str) -> Result<Self, NetConfError> {
        let Object(pairs) = serde_json::from_str(text).map_err(|error| NetConfError {
            source_name: source_name.to_owned(),
            key: None,
            cause: if text.trim().is_empty() { "the text is empty".to_owned() } else { format!("not a JSON object: {error}") },
            remedy: "write at least {\"Network\": \"10.244.0.0/16\", \"EnableNFTables\": true, \"Backend\": {\"Type\": \"alloc\"}}"
                .to_owned(),
        })?;
        let reader = Reader { source_name, pairs };
        let nonzero4 = |a: Option<Ipv4Addr>| a.filter(|a| !a.is_unspecified());
        let nonzero6 = |a: Option<Ipv6Addr>| a.filter(|a| !a.is_unspecified());
        Ok(Self {
            source_name: source_name.to_owned(),
            enable_ipv4: reader.flag("EnableIPv4", true)?,
            enable_ipv6: reader.flag("EnableIPv6", false)?,
            enable_nftables: reader.flag("EnableNFTables", false)?,
            network: reader.parsed::<Ipv4Net>("Network", "IPv4 network", "10.244.0.0/16")?.map(|n| n.trunc()),
            ipv6_network: reader
                .parsed::<Ipv6Net>("IPv6Network", "IPv6 network", "fd00:10:244::/56")?
                .map(|n| n.trunc()),
            subnet_len: reader.length("SubnetLen", 32)?,
            subnet_min: nonzero4(reader.parsed("SubnetMin", "IPv4 address", "10.244.1.0")?),
            subnet_max: nonzero4(reader.parsed("SubnetMax", "IPv4 address", "10.244.255.0")?),
            ipv6_subnet_len: reader.length("IPv6SubnetLen", 128)?,
            ipv6_subnet_min: nonzero6(reader.parsed("IPv6SubnetMin", "IPv6 address", "fd00:10:244:1::")?),
            ipv6_subnet_max: nonzero6(reader.parsed("IPv6SubnetMax", "IPv6 address", "fd00:10:244:ff::")?),
            backend: Self::backend(&reader)?,
        })
    }

    fn backend(reader: &Reader<'_>) -> Result<BackendConf, NetConfError> {
        let Some(value) = find(&reader.pairs, "Backend") else {
            return Ok(BackendConf { kind: "udp".to_owned(), settings: Vec::new() });
        };
        let remedy = "write for example {\"Type\": \"alloc\"}";
        let Value::Object(map) = value else {
            return Err(reader.broken("Backend", format!("{value} is not an object"), remedy));
        };
        let mut kind = String::new();
        let mut settings = Vec::new();
        for (key, value) in map {
            if !key.eq_ignore_ascii_case("Type") {
                settings.push((key.clone(), value.clone()));
            } else if let Value::String(name) = value {
                kind = name.to_ascii_lowercase();
            } else if !value.is_null() {
                return Err(reader.broken("Backend.Type", format!("{value} is not a string"), remedy));
            }
        }
        Ok(BackendConf { kind, settings })
    }

    /// The IPv4 subnets to hand out, with flannel's defaults and checks (etcd mode only).
    ///
    /// # Errors
    /// When the network is missing or too small, or a bound lies outside it or off a subnet boundary.
    pub fn ipv4_subnets(&self) -> Result<SubnetRange<Ipv4Addr>, NetConfError> {
        let network = self.network.ok_or_else(|| self.missing("Network", "10.244.0.0/16"))?;
        let family = Family { prefix: "", small: (22, 24, 28), limit: 30, bits: 32 };
        let number = |a: Ipv4Addr| u128::from(u32::from(a));
        let range = self.range(
            &family,
            (number(network.network()), network.prefix_len()),
            self.subnet_len,
            self.subnet_min.map(number),
            self.subnet_max.map(number),
            |n| IpAddr::V4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX))),
        )?;
        let address = |n: u128| Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX));
        Ok(SubnetRange { len: range.len, min: address(range.min), max: address(range.max) })
    }

    /// The IPv6 subnets to hand out, with flannel's defaults and checks (etcd mode only).
    ///
    /// # Errors
    /// As [`NetConf::ipv4_subnets`].
    pub fn ipv6_subnets(&self) -> Result<SubnetRange<Ipv6Addr>, NetConfError> {
        let network = self.ipv6_network.ok_or_else(|| self.missing("IPv6Network", "fd00:10:244::/56"))?;
        let family = Family { prefix: "IPv6", small: (62, 64, 124), limit: 126, bits: 128 };
        let range = self.range(
            &family,
            (u128::from(network.network()), network.prefix_len()),
            self.ipv6_subnet_len,
            self.ipv6_subnet_min.map(u128::from),
            self.ipv6_subnet_max.map(u128::from),
            |n| IpAddr::V6(Ipv6Addr::from(n)),
        )?;
        Ok(SubnetRange { len: range.len, min: range.min.into(), max: range.max.into() })
    }

    /// The error for a network key that is required and absent.
    #[must_use]
    pub fn missing(&self, key: &str, example: &str) -> NetConfError {
        self.broken(
            key,
            "is required and absent".to_owned(),
            format!("add for example \"{key}\": \"{example}\""),
        )
    }

    fn broken(&self, key: &str, cause: String, remedy: String) -> NetConfError {
        NetConfError { source_name: self.source_name.clone(), key: Some(key.to_owned()), cause, remedy }
    }

    fn range(
        &self,
        family: &Family,
        (base, prefix): (u128, u8),
        given_len: u8,
        given_min: Option<u128>,
        given_max: Option<u128>,
        show: impl Fn(u128) -> IpAddr,
    ) -> Result<SubnetRange<u128>, NetConfError> {
        let key = |name: &str| format!("{}{name}", family.prefix);
        let (roomy, usual, tight) = family.small;
        let len = match given_len {
            0 if prefix <= roomy => usual,
            0 if prefix <= tight => prefix + 2,
            0 => {
                return Err(self.broken(
                    &key("Network"),
                    format!("a /{prefix} is too small to divide"),
                    format!("give a network of /{tight} or larger"),
                ));
            }
            len if len > family.limit => {
                return Err(self.broken(
                    &key("SubnetLen"),
                    format!("{len} is more than {}", family.limit),
                    "give a shorter prefix".to_owned(),
                ));
            }
            len if len < prefix.saturating_add(2) => {
                return Err(self.broken(
                    &key("SubnetLen"),
                    format!("{len} leaves fewer than four subnets in a /{prefix}"),
                    format!("give at least {}", prefix.saturating_add(2)),
                ));
            }
            len => len,
        };
        let size = 1_u128.checked_shl(u32::from(family.bits - len)).unwrap_or(1);
        let span = 1_u128.checked_shl(u32::from(family.bits - prefix));
        let last =
            span.and_then(|span| base.checked_add(span)).map_or(u128::MAX - (size - 1), |end| end - size);
        let bound = |name: &str, given: Option<u128>, default: u128| {
            let Some(address) = given else { return Ok(default) };
            if address < base || address > last + (size - 1) {
                return Err(self.broken(
                    &key(name),
                    format!("{} lies outside the network", show(address)),
                    "give an address inside it".to_owned(),
                ));
            }
            if address % size != 0 {
                return Err(self.broken(
                    &key(name),
                    format!("{} is not on a /{len} boundary", show(address)),
                    "give the first address of a subnet".to_owned(),
                ));
            }
            Ok(address)
        };
        Ok(SubnetRange {
            len,
            min: bound("SubnetMin", given_min, base + size)?,
            max: bound("SubnetMax", given_max, last)?,
        })
    }
}

/// What differs between the two address families in the range rules.
struct Family {
    prefix: &'static str,
    /// Up to the first prefix the usual length applies, up to the third it is prefix + 2.
    small: (u8, u8, u8),
    limit: u8,
    bits: u8,
}

#[cfg(test)]
mod tests {
    use super::{NetConf, SubnetRange};

    fn parse(text: &str) -> NetConf {
        NetConf::parse("test", text).unwrap()
    }

    #[test]
    fn defaults_of_a_bare_network() {
        let conf = parse(r#"{"network":"10.3.0.0/16"}"#);
        assert!(conf.enable_ipv4 && !conf.enable_ipv6 && !conf.enable_nftables);
        assert_eq!(conf.backend.kind, "udp");
        let expected =
            SubnetRange { len: 24, min: "10.3.1.0".parse().unwrap(), max: "10.3.255.0".parse().unwrap() };
        assert_eq!(conf.ipv4_subnets().unwrap(), expected);
    }

    #[test]
    fn defaults_of_a_bare_ipv6_network() {
        let conf = parse(r#"{"enableIPv6":true,"ipv6Network":"fc00::/48","enableIPv4":false}"#);
        assert!(!conf.enable_ipv4 && conf.enable_ipv6);
        let expected = SubnetRange {
            len: 64,
            min: "fc00:0:0:1::".parse().unwrap(),
            max: "fc00:0:0:ffff::".parse().unwrap(),
        };
        assert_eq!(conf.ipv6_subnets().unwrap(), expected);
    }

    #[test]
    fn given_ranges_are_kept() {
        let conf = parse(
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28}"#,
        );
        let range = conf.ipv4_subnets().unwrap();
        assert_eq!(
            (range.len, range.min.to_string(), range.max.to_string()),
            (28, "10.3.5.0".into(), "10.3.8.0".into())
        );
        let conf = parse(
            r#"{"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:f::","IPv6SubnetLen":124}"#,
        );
        let range = conf.ipv6_subnets().unwrap();
        assert_eq!(
            (range.len, range.min.to_string(), range.max.to_string()),
            (124, "fc00:0:0:1::".into(), "fc00:0:0:f::".into())
        );
    }

    #[test]
    fn keys_have_no_case_and_the_last_wins() {
        let conf = parse(
            r#"{"NETWORK":"10.1.0.0/16","network":"10.2.3.4/16","enablenftables":true,"Unknown":[1],"backend":{"TYPE":"AllOc","vni":7}}"#,
        );
        assert_eq!(conf.network.unwrap().to_string(), "10.2.0.0/16");
        assert!(conf.enable_nftables);
        assert_eq!(conf.backend.kind, "alloc");
        assert_eq!(conf.backend.get("VNI").unwrap(), 7);
    }

    #[test]
    fn a_backend_without_type_has_no_name() {
        assert_eq!(parse(r#"{"Network":"10.1.0.0/16","Backend":{"VNI":1}}"#).backend.kind, "");
    }

    #[test]
    fn errors_name_source_key_cause_and_remedy() {
        for (text, key) in [
            ("", ""),
            ("[]", ""),
            ("{\"Network\": \"10.0.0.0/8\"", ""),
            (r#"{"Network":10}"#, "Network"),
            (r#"{"Network":"fd00::/48"}"#, "Network"),
            (r#"{"IPv6Network":"10.0.0.0/8"}"#, "IPv6Network"),
            (r#"{"EnableNFTables":"true"}"#, "EnableNFTables"),
            (r#"{"SubnetLen":-1}"#, "SubnetLen"),
            (r#"{"SubnetMin":"x"}"#, "SubnetMin"),
            (r#"{"Backend":"vxlan"}"#, "Backend"),
            (r#"{"Backend":{"Type":3}}"#, "Backend.Type"),
        ] {
            let error = NetConf::parse("/etc/kube-flannel/net-conf.json", text).unwrap_err();
            let shown = error.to_string();
            assert!(
                shown.contains("/etc/kube-flannel/net-conf.json") && shown.contains("; write"),
                "{shown}"
            );
            assert_eq!(error.key.unwrap_or_default(), key, "{text}");
        }
    }

    #[test]
    fn broken_ranges_are_refused() {
        for text in [
            r#"{"Backend":{}}"#,
            r#"{"Network":"10.3.0.0/29"}"#,
            r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#,
            r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#,
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.4.0.0"}"#,
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.0.7"}"#,
        ] {
            assert!(parse(text).ipv4_subnets().is_err(), "{text}");
        }
        assert_eq!(parse(r#"{"Network":"10.3.0.0/26"}"#).ipv4_subnets().unwrap().len, 28);
        assert!(parse(r#"{"Network":"0.0.0.0/0"}"#).ipv4_subnets().is_ok());
        assert!(parse(r#"{"IPv6Network":"::/0"}"#).ipv6_subnets().is_ok());
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,200}") {
            if let Ok(conf) = NetConf::parse("t", &text) {
                let _ = (conf.ipv4_subnets(), conf.ipv6_subnets());
            }
        }

        #[test]
        fn ranges_never_panic(prefix in 0_u8..=128, len in 0_u8..=128, min in proptest::num::u128::ANY) {
            let min = std::net::Ipv6Addr::from(min);
            let text = format!(r#"{{"IPv6Network":"fd00::/{prefix}","IPv6SubnetLen":{len},"IPv6SubnetMin":"{min}"}}"#);
            let _ = NetConf::parse("t", &text).unwrap().ipv6_subnets();
        }
    }
}
