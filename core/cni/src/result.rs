//! What ADD produces, in the shape of every version of the specification.
//!
//! Plugins work with one [`CniResult`] inside; [`CniResult::render`] turns it into the configuration's version at the very end, and
//! [`CniResult::parse`] reads a delegate's result or `prevResult`. Older shapes lose what they cannot say, by the same rules as the
//! Go library: a runtime that upgrades or downgrades must see the same answers from both.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::Error;
use crate::json::{Fields, Json, Mismatch};
use crate::version::Family;

/// The result of ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Links that were made, host side and container side.
    pub interfaces: Vec<Interface>,
    /// Addresses of the container.
    pub ips: Vec<IpConfig>,
    /// Routes of the container.
    pub routes: Vec<Route>,
    /// Name resolution for the container.
    pub dns: Dns,
}

/// One link of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// The link's name.
    pub name: String,
    /// Its hardware address, empty when it has none.
    pub mac: String,
    /// Its MTU in bytes; zero is "not said".
    pub mtu: i64,
    /// Path of its network namespace, empty for the host's.
    pub sandbox: String,
    /// Path of a socket, for links that are one.
    pub socket_path: String,
    /// PCI device behind the link.
    pub pci_id: String,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpConfig {
    /// Index into [`CniResult::interfaces`].
    pub interface: Option<i64>,
    /// The address with its prefix length, host bits kept.
    pub address: IpNet,
    /// The next hop for routes of this family that name none.
    pub gateway: Option<IpAddr>,
}

/// One route of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub dst: IpNet,
    /// Next hop; without one, the gateway of the first address of the same family is meant.
    pub next_hop: Option<IpAddr>,
    /// Path MTU; zero is "not said".
    pub mtu: i64,
    /// Advertised TCP segment size; zero is "not said".
    pub advmss: i64,
    /// Metric; zero is "not said".
    pub priority: i64,
    /// Kernel routing table.
    pub table: Option<i64>,
    /// Kernel scope.
    pub scope: Option<i64>,
}

impl Route {
    /// A route that says only where it leads.
    pub fn to(dst: IpNet) -> Self {
        Self { dst, next_hop: None, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }

    /// Reads one route.
    ///
    /// # Errors
    /// A key of the wrong type; `dst` is required.
    pub fn parse(fields: &Fields<'_>) -> Result<Self, Mismatch> {
        let dst = match fields.get("dst") {
            Some(value) => network(value, &fields.path_of("dst"))?,
            None => {
                return Err(Mismatch::new(fields.path_of("dst"), "a network in CIDR notation", &Json::Null));
            }
        };
        Ok(Self {
            dst,
            next_hop: optional_address(fields, "gw")?,
            mtu: fields.integer("mtu")?.unwrap_or_default(),
            advmss: fields.integer("advmss")?.unwrap_or_default(),
            priority: fields.integer("priority")?.unwrap_or_default(),
            table: fields.integer("table")?,
            scope: fields.integer("scope")?,
        })
    }

    fn render(&self) -> Json {
        let mut object = vec![("dst".to_owned(), Json::from(self.dst.to_string()))];
        push_text(&mut object, "gw", self.next_hop.map(|address| address.to_string()).unwrap_or_default());
        push_number(&mut object, "mtu", Some(self.mtu).filter(|&mtu| mtu != 0));
        push_number(&mut object, "advmss", Some(self.advmss).filter(|&advmss| advmss != 0));
        push_number(&mut object, "priority", Some(self.priority).filter(|&priority| priority != 0));
        push_number(&mut object, "table", self.table);
        push_number(&mut object, "scope", self.scope);
        Json::Object(object)
    }
}

/// Name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers, in order of preference.
    pub nameservers: Vec<String>,
    /// Local domain.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Reads the `dns` object of a configuration or result.
    ///
    /// # Errors
    /// A key of the wrong type.
    pub fn parse(fields: &Fields<'_>) -> Result<Self, Mismatch> {
        Ok(Self {
            nameservers: fields.strings("nameservers")?,
            domain: fields.string("domain")?.unwrap_or_default().to_owned(),
            search: fields.strings("search")?,
            options: fields.strings("options")?,
        })
    }

    /// Reads a `resolv.conf`: the first word after `nameserver`, the last `domain`, all words of `search` and `options`.
    pub fn from_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with(['#', ';']) {
                continue;
            }
            let mut words = line.split_whitespace();
            let Some(keyword) = words.next() else { continue };
            let words = words.map(str::to_owned);
            match keyword {
                "nameserver" => dns.nameservers.extend(words.take(1)),
                "domain" => dns.domain = words.take(1).next().unwrap_or(dns.domain),
                "search" => dns.search.extend(words),
                "options" => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }

    fn render(&self) -> Json {
        let list =
            |items: &[String]| Json::Array(items.iter().map(|item| Json::from(item.as_str())).collect());
        let mut object = Vec::new();
        if !self.nameservers.is_empty() {
            object.push(("nameservers".to_owned(), list(&self.nameservers)));
        }
        push_text(&mut object, "domain", self.domain.clone());
        if !self.search.is_empty() {
            object.push(("search".to_owned(), list(&self.search)));
        }
        if !self.options.is_empty() {
            object.push(("options".to_owned(), list(&self.options)));
        }
        Json::Object(object)
    }
}

impl CniResult {
    /// Reads a result that belongs to a configuration of `config_version`. A result without a version counts as of that version; one
    /// of another family is refused.
    ///
    /// # Errors
    /// The result is of another family, or a key is of the wrong type.
    pub fn parse(json: &Json, config_version: &str) -> Result<Self, Error> {
        let mismatch = |error: Mismatch| Error::internal(error.to_string());
        let fields = Fields::of(json, "").map_err(mismatch)?;
        let version = match fields.string("cniVersion").map_err(mismatch)? {
            None | Some("") => config_version,
            Some(version) => version,
        };
        let family = Family::of(config_version)
            .ok_or_else(|| Error::internal(format!("unsupported CNI result version {config_version:?}")))?;
        if Family::of(version) != Some(family) {
            return Err(Error::internal(format!(
                "result type supports {} but unmarshalled CNIVersion is {version:?}",
                family.members()
            )));
        }
        match family {
            Family::V02 => Self::parse_02(&fields),
            Family::V04 | Family::V1 => Self::parse_1(&fields),
        }
        .map_err(mismatch)
    }

    fn parse_02(fields: &Fields<'_>) -> Result<Self, Mismatch> {
        let mut result = Self::default();
        for family in ["ip4", "ip6"] {
            let Some(config) = fields.object(family)? else { continue };
            let address = match config.get("ip") {
                Some(value) => network(value, &config.path_of("ip"))?,
                None => {
                    return Err(Mismatch::new(
                        config.path_of("ip"),
                        "a network in CIDR notation",
                        &Json::Null,
                    ));
                }
            };
            result.ips.push(IpConfig {
                interface: None,
                address,
                gateway: optional_address(&config, "gateway")?,
            });
            for route in config.objects("routes")? {
                let route = Route::parse(&route)?;
                result.routes.push(Route { next_hop: route.next_hop, ..Route::to(route.dst) });
            }
        }
        if let Some(dns) = fields.object("dns")? {
            result.dns = Dns::parse(&dns)?;
        }
        Ok(result)
    }

    fn parse_1(fields: &Fields<'_>) -> Result<Self, Mismatch> {
        let mut result = Self::default();
        for interface in fields.objects("interfaces")? {
            let text = |name| interface.string(name).map(|text| text.unwrap_or_default().to_owned());
            result.interfaces.push(Interface {
                name: text("name")?,
                mac: text("mac")?,
                mtu: interface.integer("mtu")?.unwrap_or_default(),
                sandbox: text("sandbox")?,
                socket_path: text("socketPath")?,
                pci_id: text("pciID")?,
            });
        }
        for ip in fields.objects("ips")? {
            let address = match ip.get("address") {
                Some(value) => network(value, &ip.path_of("address"))?,
                None => {
                    return Err(Mismatch::new(
                        ip.path_of("address"),
                        "a network in CIDR notation",
                        &Json::Null,
                    ));
                }
            };
            let gateway = optional_address(&ip, "gateway")?;
            result.ips.push(IpConfig { interface: ip.integer("interface")?, address, gateway });
        }
        for route in fields.objects("routes")? {
            result.routes.push(Route::parse(&route)?);
        }
        if let Some(dns) = fields.object("dns")? {
            result.dns = Dns::parse(&dns)?;
        }
        Ok(result)
    }

    /// The result in the shape of `version`, indented by four spaces, without a newline at the end.
    ///
    /// # Errors
    /// `version` is unknown, or it is 0.2.0 or older and the result has no address.
    pub fn render(&self, version: &str) -> Result<String, Error> {
        let family = Family::of(version)
            .ok_or_else(|| Error::internal(format!("cannot convert: unknown CNI version {version:?}")))?;
        let shown = if version.is_empty() { "0.1.0" } else { version };
        let mut object = vec![("cniVersion".to_owned(), Json::from(shown))];
        match family {
            Family::V02 => self.render_02(&mut object)?,
            Family::V04 | Family::V1 => self.render_1(&mut object, family),
        }
        if !self.dns.is_empty() || family < Family::V1 {
            object.push(("dns".to_owned(), self.dns.render()));
        }
        let json = Json::Object(object);
        Ok(if family == Family::V1 { json.sorted().pretty() } else { json.pretty() })
    }

    fn render_02(&self, object: &mut Vec<(String, Json)>) -> Result<(), Error> {
        if self.ips.is_empty() {
            return Err(Error::internal("cannot convert: no valid IP addresses"));
        }
        for (key, is_ours) in [("ip4", is_v4 as fn(&IpNet) -> bool), ("ip6", is_v6)] {
            let Some(ip) = self.ips.iter().find(|ip| is_ours(&ip.address)) else { continue };
            let mut config = vec![("ip".to_owned(), Json::from(ip.address.to_string()))];
            push_text(
                &mut config,
                "gateway",
                ip.gateway.map(|address| address.to_string()).unwrap_or_default(),
            );
            let routes: Vec<Json> = self
                .routes
                .iter()
                .filter(|route| is_ours(&route.dst))
                .map(|route| Route { next_hop: route.next_hop, ..Route::to(route.dst) }.render())
                .collect();
            if !routes.is_empty() {
                config.push(("routes".to_owned(), Json::Array(routes)));
            }
            object.push((key.to_owned(), Json::Object(config)));
        }
        Ok(())
    }

    fn render_1(&self, object: &mut Vec<(String, Json)>, family: Family) {
        let current = family == Family::V1;
        let interfaces: Vec<Json> = self
            .interfaces
            .iter()
            .map(|interface| {
                let mut fields = vec![("name".to_owned(), Json::from(interface.name.as_str()))];
                push_text(&mut fields, "mac", interface.mac.clone());
                if current {
                    push_number(&mut fields, "mtu", Some(interface.mtu).filter(|&mtu| mtu != 0));
                }
                push_text(&mut fields, "sandbox", interface.sandbox.clone());
                if current {
                    push_text(&mut fields, "socketPath", interface.socket_path.clone());
                    push_text(&mut fields, "pciID", interface.pci_id.clone());
                }
                Json::Object(fields)
            })
            .collect();
        let ips: Vec<Json> = self
            .ips
            .iter()
            .map(|ip| {
                let mut fields = Vec::new();
                if !current {
                    fields
                        .push(("version".to_owned(), Json::from(if is_v4(&ip.address) { "4" } else { "6" })));
                }
                push_number(&mut fields, "interface", ip.interface);
                fields.push(("address".to_owned(), Json::from(ip.address.to_string())));
                push_text(
                    &mut fields,
                    "gateway",
                    ip.gateway.map(|address| address.to_string()).unwrap_or_default(),
                );
                Json::Object(fields)
            })
            .collect();
        let routes = self.routes.iter().map(Route::render).collect();
        for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
            if !list.is_empty() {
                object.push((key.to_owned(), Json::Array(list)));
            }
        }
    }
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

fn is_v6(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(_))
}

fn push_text(object: &mut Vec<(String, Json)>, key: &str, text: String) {
    if !text.is_empty() {
        object.push((key.to_owned(), Json::String(text)));
    }
}

fn push_number(object: &mut Vec<(String, Json)>, key: &str, number: Option<i64>) {
    if let Some(number) = number {
        object.push((key.to_owned(), Json::from(number)));
    }
}

/// An address with a prefix length; host bits are kept.
pub(crate) fn network(value: &Json, path: &str) -> Result<IpNet, Mismatch> {
    match value {
        Json::String(text) => text.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| Mismatch::new(path, "a network in CIDR notation", value))
}

/// An address; an empty string counts as absent.
pub(crate) fn optional_address(fields: &Fields<'_>, name: &str) -> Result<Option<IpAddr>, Mismatch> {
    match fields.get(name) {
        None => Ok(None),
        Some(Json::String(text)) if text.is_empty() => Ok(None),
        Some(value @ Json::String(text)) => text
            .parse::<IpAddr>()
            .map(|address| Some(address.to_canonical()))
            .map_err(|_| Mismatch::new(fields.path_of(name), "an IP address", value)),
        Some(other) => Err(Mismatch::new(fields.path_of(name), "an IP address", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "cni0".into(),
                mac: "aa:bb:cc:dd:ee:ff".into(),
                mtu: 1450,
                ..Interface::default()
            }],
            ips: vec![
                IpConfig {
                    interface: Some(0),
                    address: "10.244.1.2/24".parse().unwrap(),
                    gateway: "10.244.1.1".parse().ok(),
                },
                IpConfig { interface: Some(0), address: "fd00::2/64".parse().unwrap(), gateway: None },
                IpConfig { interface: None, address: "10.9.9.9/24".parse().unwrap(), gateway: None },
            ],
            routes: vec![
                Route { priority: 5, table: Some(0), ..Route::to("10.244.0.0/16".parse().unwrap()) },
                Route { next_hop: "fd00::1".parse().ok(), ..Route::to("::/0".parse().unwrap()) },
            ],
            dns: Dns::default(),
        }
    }

    fn compact(result: &CniResult, version: &str) -> String {
        Json::parse(result.render(version).unwrap().as_bytes()).unwrap().compact()
    }

    #[test]
    fn every_family_has_its_shape() {
        assert_eq!(
            compact(&dual(), ""),
            r#"{"cniVersion":"0.1.0","ip4":{"ip":"10.244.1.2/24","gateway":"10.244.1.1","routes":[{"dst":"10.244.0.0/16"}]},"ip6":{"ip":"fd00::2/64","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}}"#
        );
        assert_eq!(
            compact(&dual(), "0.3.1"),
            r#"{"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"aa:bb:cc:dd:ee:ff"}],"ips":[{"version":"4","interface":0,"address":"10.244.1.2/24","gateway":"10.244.1.1"},{"version":"6","interface":0,"address":"fd00::2/64"},{"version":"4","address":"10.9.9.9/24"}],"routes":[{"dst":"10.244.0.0/16","priority":5,"table":0},{"dst":"::/0","gw":"fd00::1"}],"dns":{}}"#
        );
        assert_eq!(
            compact(&dual(), "1.0.0"),
            r#"{"cniVersion":"1.0.0","interfaces":[{"mac":"aa:bb:cc:dd:ee:ff","mtu":1450,"name":"cni0"}],"ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1","interface":0},{"address":"fd00::2/64","interface":0},{"address":"10.9.9.9/24"}],"routes":[{"dst":"10.244.0.0/16","priority":5,"table":0},{"dst":"::/0","gw":"fd00::1"}]}"#
        );
        assert_eq!(compact(&CniResult::default(), "1.1.0"), r#"{"cniVersion":"1.1.0"}"#);
        assert_eq!(
            CniResult::default().render("0.2.0").unwrap_err().message,
            "cannot convert: no valid IP addresses"
        );
    }

    #[test]
    fn reading_back_keeps_what_the_shape_can_say() {
        for version in ["1.0.0", "1.1.0"] {
            let json = Json::parse(dual().render(version).unwrap().as_bytes()).unwrap();
            assert_eq!(CniResult::parse(&json, version).unwrap(), dual());
        }
        let json = Json::parse(dual().render("0.4.0").unwrap().as_bytes()).unwrap();
        let mut expected = dual();
        expected.interfaces[0].mtu = 0;
        assert_eq!(CniResult::parse(&json, "0.3.0").unwrap(), expected);
        let json = Json::parse(dual().render("0.1.0").unwrap().as_bytes()).unwrap();
        let old = CniResult::parse(&json, "0.2.0").unwrap();
        assert_eq!(old.ips.len(), 2);
        assert_eq!(old.render("0.1.0").unwrap(), dual().render("0.1.0").unwrap());
    }

    #[test]
    fn another_family_is_refused() {
        let json = Json::parse(br#"{"cniVersion":"1.0.0"}"#).unwrap();
        assert_eq!(
            CniResult::parse(&json, "0.4.0").unwrap_err().message,
            r#"result type supports [0.3.0 0.3.1 0.4.0] but unmarshalled CNIVersion is "1.0.0""#
        );
        assert!(CniResult::parse(&Json::parse(b"{}").unwrap(), "1.1.0").is_ok());
    }

    #[test]
    fn resolv_conf() {
        let dns = Dns::from_resolv_conf(
            "# x\nnameserver 10.0.0.1 10.0.0.2\n nameserver fd00::1\ndomain a\nsearch b c\noptions ndots:5\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!((dns.domain.as_str(), dns.search.len(), dns.options.len()), ("a", 2, 1));
    }

    use proptest::prelude::*;

    fn any_result() -> impl Strategy<Value = CniResult> {
        let address = prop_oneof![
            (any::<[u8; 4]>(), 0u8..=32)
                .prop_map(|(ip, prefix)| IpNet::new(IpAddr::from(ip), prefix).unwrap()),
            (any::<[u8; 16]>(), 0u8..=128)
                .prop_filter("an IPv4 address in disguise", |(ip, _)| std::net::Ipv6Addr::from(*ip)
                    .to_ipv4_mapped()
                    .is_none())
                .prop_map(|(ip, prefix)| IpNet::new(IpAddr::from(ip), prefix).unwrap()),
        ]
        .boxed();
        let ips = (prop::option::of(0i64..3), address.clone(), prop::option::of(address.clone())).prop_map(
            |(interface, address, gateway)| IpConfig {
                interface,
                address,
                gateway: gateway.map(|net| net.addr()),
            },
        );
        let routes = (address.clone(), prop::option::of(address), 0i64..3, prop::option::of(0i64..300))
            .prop_map(|(dst, gw, priority, table)| Route {
                next_hop: gw.map(|net| net.addr()),
                priority,
                table,
                ..Route::to(dst)
            });
        let interfaces = ("[a-z]{1,4}", "([0-9a-f]{2}:){0,2}", "(/[a-z]{1,3})?")
            .prop_map(|(name, mac, sandbox)| Interface { name, mac, sandbox, ..Interface::default() });
        (
            prop::collection::vec(interfaces, 0..3),
            prop::collection::vec(ips, 0..4),
            prop::collection::vec(routes, 0..4),
            prop::collection::vec("[a-z.]{1,5}", 0..2),
        )
            .prop_map(|(interfaces, ips, routes, search)| CniResult {
                interfaces,
                ips,
                routes,
                dns: Dns { search, ..Dns::default() },
            })
    }

    proptest! {
        #[test]
        fn shapes_since_0_3_lose_nothing_a_plugin_sets(result in any_result()) {
            for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let json = Json::parse(result.render(version).unwrap().as_bytes()).unwrap();
                prop_assert_eq!(&CniResult::parse(&json, version).unwrap(), &result);
            }
        }

        #[test]
        fn the_oldest_shape_is_stable(result in any_result()) {
            let Ok(text) = result.render("0.2.0") else {
                prop_assert!(result.ips.is_empty());
                return Ok(());
            };
            let again = CniResult::parse(&Json::parse(text.as_bytes()).unwrap(), "0.2.0").unwrap();
            prop_assert_eq!(again.render("0.2.0").unwrap(), text);
        }
    }
}
