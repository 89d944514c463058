//! Configuration of the `portmap` plugin.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::conf::Config;
use crate::error::Error;
use crate::json::{Fields, Mismatch};
use crate::result::CniResult;

/// The bit of the packet mark that asks for masquerading, when the configuration names none.
const DEFAULT_MARK_BIT: i64 = 13;

/// What carries the mappings out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Chains of iptables' `nat` table.
    Iptables,
    /// The nf_tables tables `ip cni_hostport` and `ip6 cni_hostport`.
    Nftables,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// One entry of `runtimeConfig.portMappings`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The port on the node.
    pub host_port: u16,
    /// The port in the container.
    pub container_port: u16,
    /// `tcp`, `udp`, `sctp`, in lower case.
    pub protocol: String,
    /// The address of the node that is mapped; absent or unspecified means all of its family.
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Whether the mapping applies to addresses of this family: one with an address of the node only to that address's family.
    pub fn is_for(&self, v4: bool) -> bool {
        self.host_ip.is_none_or(|ip| ip.is_ipv4() == v4)
    }

    /// The address of the node that packets must be sent to, if it matters which.
    pub fn only_at(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

/// Where the mappings lead: the container's first address of each family, with the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// IPv4
    pub v4: Option<Ipv4Net>,
    /// IPv6
    pub v6: Option<Ipv6Net>,
}

impl Container {
    /// The container's addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::from).into_iter().chain(self.v6.map(IpNet::from))
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// Takes the addresses of the result that lie on the container's link `ifname`, or on no link that the result lists.
    fn of(result: &CniResult, ifname: &str) -> Self {
        let mut container = Self::default();
        for ip in &result.ips {
            let listed = ip
                .interface
                .and_then(|index| usize::try_from(index).ok())
                .and_then(|index| result.interfaces.get(index));
            if listed.is_some_and(|link| link.name != ifname || link.sandbox.is_empty()) {
                continue;
            }
            match canonical(ip.address) {
                IpNet::V4(net) => container.v4 = container.v4.or(Some(net)),
                IpNet::V6(net) => container.v6 = container.v6.or(Some(net)),
            }
        }
        container
    }
}

/// An IPv4 address written as an IPv6 one is one, as it is to Go.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(addr, len)| Ipv4Net::new(addr, len).ok()).map_or(net, IpNet::from)
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortmapConfig {
    /// The network's name, part of the iptables chains' names.
    pub network: String,
    /// `backend`; `None` leaves the choice to [`PortmapConfig::backend`].
    pub requested: Option<Backend>,
    /// Connections of the container to itself, and of the node over 127.0.0.1, take an address of the node.
    pub snat: bool,
    /// Every connection through a mapping takes an address of the node.
    pub masquerade_all: bool,
    /// The packet mark that asks for masquerading: one bit.
    pub mark: u32,
    /// A chain of somebody else's that sets a mark for masquerading, instead of ours.
    pub external_mark_chain: Option<String>,
    /// Further words for the rules that lead to the IPv4 mappings.
    pub conditions_v4: Vec<String>,
    /// The same for IPv6.
    pub conditions_v6: Vec<String>,
    /// The mappings; empty means that there is nothing to do.
    pub mappings: Vec<PortMapping>,
    /// The result of the plugins before this one.
    pub previous: Option<CniResult>,
    /// The container's addresses, by that result.
    pub container: Container,
}

impl PortmapConfig {
    /// Reads and checks a configuration; `ifname` is `CNI_IFNAME`.
    ///
    /// # Errors
    /// Keys of the wrong type, combinations that exclude each other, and ports that cannot be.
    pub fn parse(config: &Config, ifname: &str) -> Result<Self, Error> {
        let parsed = Self::read(config, ifname, Purpose::Use)?;
        // Keys of the wrong backend are refused even where nothing is mapped.
        parsed.backend(|| Backend::Iptables)?;
        for mapping in &parsed.mappings {
            let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
            if mapping.protocol.is_empty() || !mapping.protocol.bytes().all(is_word) {
                return Err(Error::internal(format!(
                    "invalid protocol {:?} of host port {}: use \"tcp\", \"udp\" or \"sctp\"",
                    mapping.protocol, mapping.host_port
                )));
            }
        }
        Ok(parsed)
    }

    /// Reads a configuration for DEL, which passes over mappings that no ADD can have made.
    ///
    /// # Errors
    /// As [`PortmapConfig::parse`], but of the mappings only what the Go plugin refuses on every command.
    pub fn parse_for_removal(config: &Config, ifname: &str) -> Result<Self, Error> {
        Self::read(config, ifname, Purpose::Removal)
    }

    fn read(config: &Config, ifname: &str, purpose: Purpose) -> Result<Self, Error> {
        let fields = config.fields()?;
        let previous = config.previous()?;
        let requested = match fields.string("backend").map_err(wrong_type)? {
            None => None,
            Some("iptables") => Some(Backend::Iptables),
            Some("nftables") => Some(Backend::Nftables),
            Some(other) => return Err(Error::internal(format!("unrecognized backend {other:?}"))),
        };
        let external_mark_chain = fields.string("externalSetMarkChain").map_err(wrong_type)?;
        let bit = fields.integer("markMasqBit").map_err(wrong_type)?;
        if bit.is_some() && external_mark_chain.is_some() {
            return Err(Error::internal("Cannot specify externalSetMarkChain and markMasqBit"));
        }
        let bit = u32::try_from(bit.unwrap_or(DEFAULT_MARK_BIT)).ok().filter(|&bit| bit < 32);
        let bit = bit.ok_or_else(|| Error::internal("MasqMarkBit must be between 0 and 31"))?;
        let mappings = mappings(&fields, purpose)?;
        let container = previous.as_ref().map(|result| Container::of(result, ifname)).unwrap_or_default();
        Ok(Self {
            network: config.name.clone(),
            requested,
            snat: fields.bool("snat").map_err(wrong_type)?.unwrap_or(true),
            masquerade_all: fields.bool("masqAll").map_err(wrong_type)?.unwrap_or_default(),
            mark: 1 << bit,
            external_mark_chain: external_mark_chain.map(str::to_owned),
            conditions_v4: fields.strings("conditionsV4").map_err(wrong_type)?,
            conditions_v6: fields.strings("conditionsV6").map_err(wrong_type)?,
            mappings,
            previous,
            container,
        })
    }

    /// The extra words for one family.
    pub fn conditions(&self, v4: bool) -> &[String] {
        if v4 { &self.conditions_v4 } else { &self.conditions_v6 }
    }

    /// What carries the mappings out. `available` is asked when the configuration does not say and none of its keys tells.
    ///
    /// # Errors
    /// Keys of one backend in a configuration for the other.
    pub fn backend(&self, available: impl FnOnce() -> Backend) -> Result<Backend, Error> {
        let (mut iptables, mut nftables) = (Vec::new(), Vec::new());
        if self.external_mark_chain.is_some() {
            iptables.push("externalSetMarkChain");
        }
        for (key, words) in [("conditionsV4", &self.conditions_v4), ("conditionsV6", &self.conditions_v6)] {
            match words.first().map(String::as_str) {
                None | Some("") => {}
                Some(word) if word.starts_with(['-', '!']) => iptables.push(key),
                Some(_) => nftables.push(key),
            }
        }
        let backend = self.requested.unwrap_or_else(|| match (iptables.is_empty(), nftables.is_empty()) {
            (false, true) => Backend::Iptables,
            (true, false) => Backend::Nftables,
            _ => available(),
        });
        let (other, strangers) = match backend {
            Backend::Iptables => (Backend::Nftables, nftables),
            Backend::Nftables => (Backend::Iptables, iptables),
        };
        if strangers.is_empty() {
            return Ok(backend);
        }
        Err(Error::internal(format!(
            "{backend} backend was requested but configuration contains {other}-specific options [{}]",
            strangers.join(" ")
        )))
    }
}

fn wrong_type(error: Mismatch) -> Error {
    Error::internal(format!("failed to parse network configuration: {error}"))
}

/// Whether rules are made of the mappings or only taken away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Use,
    Removal,
}

fn mappings(fields: &Fields<'_>, purpose: Purpose) -> Result<Vec<PortMapping>, Error> {
    let Some(runtime) = fields.object("runtimeConfig").map_err(wrong_type)? else { return Ok(Vec::new()) };
    let entries = runtime.objects("portMappings").map_err(wrong_type)?;
    let mut mappings = Vec::with_capacity(entries.len());
    for entry in &entries {
        let number = |key: &str| entry.integer(key).map_err(wrong_type).map(Option::unwrap_or_default);
        let (container, host) = (number("containerPort")?, number("hostPort")?);
        for (what, number) in [("container", container), ("host", host)] {
            if number <= 0 {
                return Err(Error::internal(format!("Invalid {what} port number: {number}")));
            }
        }
        match mapping(entry, container, host) {
            Err(_) if purpose == Purpose::Removal => {}
            mapping => mappings.push(mapping?),
        }
    }
    Ok(mappings)
}

fn mapping(entry: &Fields<'_>, container: i64, host: i64) -> Result<PortMapping, Error> {
    let port = |what: &str, number: i64| {
        u16::try_from(number).map_err(|_| Error::internal(format!("Invalid {what} port number: {number}")))
    };
    let text = |key: &str| entry.string(key).map_err(wrong_type).map(Option::unwrap_or_default);
    let (container_port, host_port) = (port("container", container)?, port("host", host)?);
    let host_ip = match text("hostIP")? {
        "" => None,
        address => {
            let parsed = address.parse::<IpAddr>().map_err(|_| {
                Error::internal(format!("invalid host IP {address:?} of host port {host_port}"))
            });
            Some(parsed?.to_canonical())
        }
    };
    Ok(PortMapping { host_port, container_port, protocol: text("protocol")?.to_ascii_lowercase(), host_ip })
}

/// `127.0.0.1`, from where the node reaches its own mappings.
pub(super) const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Every address of a family.
pub(super) fn everything(v4: bool) -> IpNet {
    if v4 {
        IpNet::from(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0))
    } else {
        IpNet::from(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(keys: &str) -> Result<PortmapConfig, Error> {
        let text = format!(r#"{{"name":"net","cniVersion":"1.0.0"{keys}}}"#);
        PortmapConfig::parse(&Config::parse(text.as_bytes()).unwrap(), "eth0")
    }

    fn refused(keys: &str) -> String {
        parse(keys).unwrap_err().message
    }

    fn with_port(entry: &str) -> String {
        format!(r#","runtimeConfig":{{"portMappings":[{entry}]}}"#)
    }

    #[test]
    fn defaults() {
        let config = parse("").unwrap();
        assert!(config.snat && !config.masquerade_all && config.mappings.is_empty());
        assert_eq!((config.mark, config.requested, config.container), (0x2000, None, Container::default()));
        assert_eq!(parse(r#","snat":null,"markMasqBit":null"#).unwrap(), config);
        assert!(!parse(r#","SNAT":false"#).unwrap().snat);
        assert_eq!(parse(r#","markmasqbit":0"#).unwrap().mark, 1);
        assert_eq!(parse(r#","markMasqBit":31"#).unwrap().mark, 0x8000_0000);
    }

    #[test]
    fn refusals_have_gos_words() {
        assert_eq!(refused(r#","backend":"x""#), r#"unrecognized backend "x""#);
        let both = r#","markMasqBit":13,"externalSetMarkChain":"X""#;
        assert_eq!(refused(both), "Cannot specify externalSetMarkChain and markMasqBit");
        for bit in ["-1", "32"] {
            let keys = format!(r#","markMasqBit":{bit}"#);
            assert_eq!(refused(&keys), "MasqMarkBit must be between 0 and 31");
        }
        assert_eq!(refused(&with_port("{}")), "Invalid container port number: 0");
        assert_eq!(refused(&with_port(r#"{"containerPort":80}"#)), "Invalid host port number: 0");
        let beyond = r#"{"containerPort":80,"hostPort":65536,"protocol":"tcp"}"#;
        assert_eq!(refused(&with_port(beyond)), "Invalid host port number: 65536");
        assert!(
            refused(&with_port(r#"{"containerPort":"80"}"#))
                .contains("runtimeConfig.portMappings[0].containerPort")
        );
        assert!(refused(r#","conditionsV4":"-p""#).starts_with("failed to parse network configuration: "));
    }

    #[test]
    fn mappings_are_checked_for_what_would_become_another_rule() {
        let refuse = |protocol: &str, ip: &str| {
            let entry =
                format!(r#"{{"containerPort":80,"hostPort":8080,"protocol":"{protocol}","hostIP":"{ip}"}}"#);
            refused(&with_port(&entry))
        };
        assert!(refuse("", "").contains("invalid protocol"));
        assert!(refuse("tcp -j ACCEPT", "").contains("invalid protocol"));
        assert!(refuse("tcp", "localhost").contains("invalid host IP"));
        let config = parse(&with_port(
            r#"{"ContainerPort":80,"hostport":8080,"protocol":"TCP","hostIP":"::ffff:1.2.3.4"}"#,
        ))
        .unwrap();
        let mapping = &config.mappings[0];
        assert_eq!((mapping.protocol.as_str(), mapping.host_ip), ("tcp", Some("1.2.3.4".parse().unwrap())));
        assert!(mapping.is_for(true) && !mapping.is_for(false));
    }

    #[test]
    fn removal_passes_over_what_cannot_have_been_added() {
        let removal = |entry: &str| {
            let text = format!(r#"{{"name":"net"{}}}"#, with_port(entry));
            PortmapConfig::parse_for_removal(&Config::parse(text.as_bytes()).unwrap(), "eth0")
        };
        let strange = r#"{"containerPort":80,"hostPort":70000},{"containerPort":80,"hostPort":80,"hostIP":"x"},{"containerPort":80,"hostPort":80}"#;
        assert_eq!(removal(strange).unwrap().mappings.len(), 1);
        assert!(removal(r#"{"containerPort":80}"#).is_err());
    }

    #[test]
    fn the_backend_is_told_by_keys_that_only_one_has() {
        let backend = |keys: &str, available| parse(keys)?.backend(|| available);
        let (iptables, nftables) = (Backend::Iptables, Backend::Nftables);
        assert_eq!(backend("", iptables).unwrap(), iptables);
        assert_eq!(backend("", nftables).unwrap(), nftables);
        assert_eq!(backend(r#","backend":"nftables""#, iptables).unwrap(), nftables);
        assert_eq!(backend(r#","conditionsV4":["ip","saddr","1.2.3.4"]"#, iptables).unwrap(), nftables);
        assert_eq!(backend(r#","conditionsV6":["!","-s","::1"]"#, nftables).unwrap(), iptables);
        assert_eq!(backend(r#","externalSetMarkChain":"KUBE-MARK-MASQ""#, nftables).unwrap(), iptables);
        assert_eq!(backend(r#","conditionsV4":[""],"conditionsV6":[]"#, iptables).unwrap(), iptables);
        let error = |keys, available| backend(keys, available).unwrap_err().message;
        assert_eq!(
            error(r#","backend":"iptables","conditionsV4":["aaa","bbbb"],"conditionsV6":["ccc"]"#, nftables),
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV4 conditionsV6]"
        );
        assert_eq!(
            error(
                r#","backend":"nftables","externalSetMarkChain":"K","conditionsV4":["-a"],"conditionsV6":["-c"]"#,
                iptables
            ),
            "nftables backend was requested but configuration contains iptables-specific options [externalSetMarkChain conditionsV4 conditionsV6]"
        );
        assert_eq!(
            error(r#","conditionsV4":["-a"],"conditionsV6":["ip6"]"#, iptables),
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]"
        );
    }

    #[test]
    fn the_containers_address_is_the_first_on_its_own_link() {
        let result = r#","prevResult":{"interfaces":[{"name":"cni0"},{"name":"eth0"},{"name":"eth0","sandbox":"/n"}],"ips":[
            {"interface":0,"address":"10.0.0.1/24"},{"interface":1,"address":"10.0.0.2/24"},
            {"interface":2,"address":"10.0.0.3/24"},{"interface":2,"address":"10.0.0.4/24"},
            {"interface":7,"address":"fd00::7/64"},{"address":"fd00::8/64"}]}"#;
        let container = parse(result).unwrap().container;
        assert_eq!(container.v4, Some("10.0.0.3/24".parse().unwrap()));
        assert_eq!(container.v6, Some("fd00::7/64".parse().unwrap()));
        let old =
            Config::parse(br#"{"name":"n","cniVersion":"0.2.0","prevResult":{"ip4":{"ip":"10.1.2.3/16"}}}"#);
        let container = PortmapConfig::parse(&old.unwrap(), "eth0").unwrap().container;
        assert_eq!(container.addresses().collect::<Vec<_>>(), ["10.1.2.3/16".parse::<IpNet>().unwrap()]);
    }
}
