//! Configuration of `host-local`, and what its files hold.
//!
//! The formats on disk are shared with the Go plugin, which may serve the same directory during an upgrade: a reservation is a file named
//! by the address, its content says whose it is. A rule of validation that breaks makes DEL and CHECK fail as well as ADD, as upstream.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::args::Args;
use crate::attachments::ValidAttachments;
use crate::conf::{Config, load_error};
use crate::env;
use crate::error::Error;
use crate::json::{Fields, Json, Mismatch};
use crate::range::{RangeSet, RangeSpec};
use crate::result::{Route, network, optional_address};
use crate::version;

/// Where reservations are kept unless `dataDir` says otherwise; one directory per network below it.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLocalConfig {
    /// `dataDir`
    pub data_dir: String,
    /// The pools; a result has one address of each, in this order.
    pub range_sets: Vec<RangeSet>,
    /// Addresses that the runtime or the configuration asks for.
    pub requested: Vec<IpAddr>,
    /// Copied into the result.
    pub routes: Vec<Route>,
    /// Path of a `resolv.conf` to read into the result.
    pub resolv_conf: Option<String>,
}

impl HostLocalConfig {
    /// Reads and checks the configuration; `args` is `CNI_ARGS`.
    ///
    /// # Errors
    /// The first rule that is broken, in the words of the Go plugin.
    pub fn parse(config: &Config, args: &str) -> Result<Self, Error> {
        let fields = config.fields()?;
        let ipam = fields
            .object("ipam")
            .map_err(load_error)?
            .ok_or_else(|| Error::internal("IPAM config missing 'ipam' key"))?;
        let mut requested: Vec<IpAddr> = Vec::new();
        if let Some(text) = Args::parse(args, &["IP"])?.get("IP") {
            requested.push(address_of(text).ok_or_else(|| {
                Error::internal(format!(
                    "ARGS: error parsing value of pair \"IP={text}\": invalid IP address {text}"
                ))
            })?);
        }
        let runtime = fields.object("runtimeConfig").map_err(load_error)?;
        let convention = fields.object("args").map_err(load_error)?;
        let convention = convention.map(|args| args.object("cni")).transpose().map_err(load_error)?.flatten();
        for source in [&convention, &runtime].into_iter().flatten() {
            for text in source.strings("ips").map_err(load_error)? {
                requested.push(
                    address_of(&text)
                        .ok_or_else(|| Error::internal(format!("invalid IP address {text:?} in `ips`")))?,
                );
            }
        }
        let range_sets = range_sets(&ipam, runtime.as_ref())?;
        check_families(&range_sets, &config.version)?;
        let mut routes = Vec::new();
        for route in ipam.objects("routes").map_err(load_error)? {
            routes.push(Route::parse(&route).map_err(load_error)?);
        }
        Ok(Self {
            data_dir: data_dir(&ipam)?,
            range_sets,
            requested,
            routes,
            resolv_conf: non_empty(&ipam, "resolvConf")?.map(str::to_owned),
        })
    }

    /// `ipam.dataDir` alone, for what concerns all of a network's reservations whatever its ranges are by now.
    ///
    /// # Errors
    /// There is no `ipam`, or a key of the wrong type.
    pub fn data_dir_of(config: &Config) -> Result<String, Error> {
        let fields = config.fields()?;
        let ipam = fields.object("ipam").map_err(load_error)?;
        data_dir(&ipam.ok_or_else(|| Error::internal("IPAM config missing 'ipam' key"))?)
    }

    /// Which requested address each pool has to serve, and which of them no pool can.
    pub fn assign_requested(&self) -> (Vec<Option<IpAddr>>, Vec<IpAddr>) {
        let mut left: Vec<IpAddr> = Vec::new();
        for address in &self.requested {
            if !left.contains(address) {
                left.push(*address);
            }
        }
        let assigned = self
            .range_sets
            .iter()
            .map(|set| left.iter().position(|address| set.contains(*address)).map(|index| left.remove(index)))
            .collect();
        (assigned, left)
    }
}

fn non_empty<'a>(fields: &Fields<'a>, name: &str) -> Result<Option<&'a str>, Error> {
    fields.string(name).map(|text| text.filter(|text| !text.is_empty())).map_err(load_error)
}

fn data_dir(ipam: &Fields<'_>) -> Result<String, Error> {
    Ok(non_empty(ipam, "dataDir")?.unwrap_or(DEFAULT_DATA_DIR).to_owned())
}

/// An address given as such or with a prefix length.
fn address_of(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<IpNet>().ok().map(|net| net.addr()))
        .map(|ip| ip.to_canonical())
}

fn range_spec(fields: &Fields<'_>) -> Result<Option<RangeSpec>, Mismatch> {
    let Some(subnet) = fields.get("subnet") else { return Ok(None) };
    Ok(Some(RangeSpec {
        subnet: network(subnet, &fields.path_of("subnet"))?,
        start: optional_address(fields, "rangeStart")?,
        end: optional_address(fields, "rangeEnd")?,
        gateway: optional_address(fields, "gateway")?,
    }))
}

fn pool(value: &Json, path: &str) -> Result<Vec<RangeSpec>, Mismatch> {
    let Json::Array(ranges) = value else { return Err(Mismatch::new(path, "a list of ranges", value)) };
    ranges
        .iter()
        .enumerate()
        .map(|(index, range)| {
            let path = format!("{path}[{index}]");
            let fields = Fields::of(range, &path)?;
            range_spec(&fields)?.ok_or_else(|| Mismatch::new(path, "a range with a `subnet`", range))
        })
        .collect()
}

/// All pools in the order that fixes their numbers: the runtime's, the old single range, the list.
fn range_sets(ipam: &Fields<'_>, runtime: Option<&Fields<'_>>) -> Result<Vec<RangeSet>, Error> {
    let mut pools = Vec::new();
    let lists = [runtime.map(|runtime| (runtime, "ipRanges")), Some((ipam, "ranges"))];
    for (place, (fields, key)) in
        lists.into_iter().enumerate().filter_map(|(place, list)| Some((place, list?)))
    {
        if place == 1
            && let Some(single) = range_spec(ipam).map_err(load_error)?
        {
            pools.push(vec![single]);
        }
        for (index, value) in fields.array(key).map_err(load_error)?.iter().enumerate() {
            pools.push(pool(value, &format!("{}[{index}]", fields.path_of(key))).map_err(load_error)?);
        }
    }
    if pools.is_empty() {
        return Err(Error::internal("no IP ranges specified"));
    }
    pools
        .iter()
        .enumerate()
        .map(|(index, specs)| {
            RangeSet::new(specs)
                .map_err(|error| Error::internal(format!("invalid range set {index}: {error}")))
        })
        .collect()
}

fn check_families(sets: &[RangeSet], config_version: &str) -> Result<(), Error> {
    let v4 = sets.iter().filter(|set| set.is_ipv4()).count();
    if (v4 > 1 || sets.len() - v4 > 1) && !version::at_least(config_version, "0.3.0")? {
        return Err(Error::internal(format!(
            "CNI version {config_version} does not support more than 1 address per family"
        )));
    }
    for (index, one) in sets.iter().enumerate() {
        for (offset, other) in sets.iter().skip(index + 1).enumerate() {
            if one.overlaps(other) {
                return Err(Error::internal(format!(
                    "range set {index} overlaps with {}",
                    index + offset + 1
                )));
            }
        }
    }
    Ok(())
}

/// The content of a reservation's file: container ID, CR LF, link name, nothing after it.
pub fn reservation(container_id: &str, ifname: &str) -> String {
    format!("{}\r\n{ifname}", container_id.trim())
}

/// Whose a reservation is, as its file's content says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Nobody's: a file that a crash left empty or without its content. Such a file can be removed.
    Nobody,
    /// A container's link.
    Attachment {
        /// `CNI_CONTAINERID` of the ADD that made it.
        container_id: String,
        /// `CNI_IFNAME` of that ADD.
        ifname: String,
    },
    /// A container's, by a file so old that it names no link.
    Container {
        /// `CNI_CONTAINERID` of the ADD that made it.
        container_id: String,
    },
    /// Something that no plugin writes, so a person may have: the address is taken, and nobody's to free.
    Unknown,
}

impl Holder {
    /// Reads a file's content; white space around it does not count. Nothing but white space, or a zero byte, is what file systems make of
    /// content that did not reach the disk.
    pub fn of(content: &[u8]) -> Self {
        let content = content.trim_ascii();
        if content.is_empty() || content.contains(&0) {
            return Self::Nobody;
        }
        let Ok(text) = std::str::from_utf8(content) else { return Self::Unknown };
        let (container_id, ifname) =
            text.split_once("\r\n").map_or((text, None), |(id, ifname)| (id, Some(ifname)));
        if env::validate_container_id(container_id).is_err() {
            return Self::Unknown;
        }
        let container_id = container_id.to_owned();
        match ifname {
            None => Self::Container { container_id },
            Some(ifname) if ifname.is_empty() || env::validate_ifname(ifname).is_err() => Self::Unknown,
            Some(ifname) => Self::Attachment { container_id, ifname: ifname.to_owned() },
        }
    }

    /// Whether a GC must leave the reservation alone.
    pub fn is_spared_by(&self, valid: &ValidAttachments) -> bool {
        match self {
            Self::Nobody => false,
            Self::Attachment { container_id, ifname } => valid.has(container_id, ifname),
            Self::Container { container_id } => valid.has_container(container_id),
            Self::Unknown => true,
        }
    }
}

/// The name under which an index lists files of this content: letters and digits that no reader takes for an address.
pub fn index_name(content: &[u8]) -> String {
    let digest = Sha256::digest(content.trim_ascii());
    let mut name = String::with_capacity(32);
    for byte in digest.iter().take(16) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<HostLocalConfig, Error> {
        HostLocalConfig::parse(&Config::parse(text.as_bytes()).unwrap(), "")
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().message
    }

    #[test]
    fn old_and_new_ranges_and_the_runtimes_come_in_order() {
        let config = parse(
            r#"{"name":"n","cniVersion":"0.3.1","runtimeConfig":{"ipRanges":[[{"subnet":"10.3.0.0/24"}]]},
               "ipam":{"SUBNET":"10.1.0.0/24","rangestart":"10.1.0.9","datadir":"/d","ranges":[[{"subnet":"10.2.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}"#,
        )
        .unwrap();
        let names: Vec<String> = config.range_sets.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["10.3.0.1-10.3.0.254", "10.1.0.9-10.1.0.254", "10.2.0.1-10.2.0.254"]);
        assert_eq!((config.data_dir.as_str(), config.routes.len()), ("/d", 1));
    }

    #[test]
    fn refusals_have_the_texts_people_search_for() {
        assert_eq!(message(r#"{"name":"n"}"#), "IPAM config missing 'ipam' key");
        assert_eq!(message(r#"{"name":"n","ipam":{}}"#), "no IP ranges specified");
        assert_eq!(message(r#"{"name":"n","ipam":{"ranges":[[]]}}"#), "invalid range set 0: empty range set");
        assert_eq!(
            message(r#"{"name":"n","ipam":{"subnet":"10.0.0.0/32"}}"#),
            "invalid range set 0: Network 10.0.0.0/32 too small to allocate from"
        );
        assert_eq!(
            message(
                r#"{"name":"n","cniVersion":"0.2.0","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.1.0/24"}]]}}"#
            ),
            "CNI version 0.2.0 does not support more than 1 address per family"
        );
        assert_eq!(
            message(
                r#"{"name":"n","cniVersion":"0.3.0","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/24"}]]}}"#
            ),
            "range set 0 overlaps with 1"
        );
        assert!(message(r#"{"name":"n","ipam":{"subnet":"10.0.0.0"}}"#).contains("`ipam.subnet`"));
        assert!(message(r#"{"name":"n","ipam":{"ranges":[[{}]]}}"#).contains("ipam.ranges[0][0]"));
    }

    #[test]
    fn requests_from_three_sources_find_their_pools() {
        let config = Config::parse(
            br#"{"name":"n","cniVersion":"1.0.0","args":{"cni":{"ips":["fd00::9/64"]}},"runtimeConfig":{"ips":["10.0.0.9","192.168.0.1"]},
               "ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"fd00::/64"}]]}}"#,
        )
        .unwrap();
        let parsed = HostLocalConfig::parse(&config, "IgnoreUnknown=1;IP=10.0.0.8;K8S_POD_NAME=a").unwrap();
        let (assigned, left) = parsed.assign_requested();
        assert_eq!(assigned, ["10.0.0.8".parse().ok(), "fd00::9".parse().ok()]);
        assert_eq!(left, ["10.0.0.9".parse::<IpAddr>().unwrap(), "192.168.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            HostLocalConfig::parse(&config, "IP=zzz").unwrap_err().message,
            "ARGS: error parsing value of pair \"IP=zzz\": invalid IP address zzz"
        );
    }

    #[test]
    fn holders() {
        assert_eq!(reservation("abc", "eth0"), "abc\r\neth0");
        let link = Holder::Attachment { container_id: "abc".to_owned(), ifname: "eth0".to_owned() };
        let whole = Holder::Container { container_id: "abc".to_owned() };
        assert_eq!(Holder::of(b"abc\r\neth0"), link);
        assert_eq!(Holder::of(b"abc\r\neth0\n"), link);
        assert_eq!(Holder::of(b" abc "), whole);
        for torn in [&b""[..], b"\r\n", b"\0\0\0", b"abc\0\0"] {
            assert_eq!(Holder::of(torn), Holder::Nobody);
        }
        for other in [&b"the printer"[..], b"abc\neth0", b"abc\r\na b", b"../x", b"\xff"] {
            assert_eq!(Holder::of(other), Holder::Unknown);
        }
        let attachment =
            |id: &str| crate::Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() };
        let valid = ValidAttachments::from_iter([attachment("abc")]);
        assert!(
            link.is_spared_by(&valid) && whole.is_spared_by(&valid) && Holder::Unknown.is_spared_by(&valid)
        );
        assert!(!Holder::Nobody.is_spared_by(&valid));
        let none = ValidAttachments::default();
        assert!(
            !link.is_spared_by(&none) && !whole.is_spared_by(&none) && Holder::Unknown.is_spared_by(&none)
        );
    }

    #[test]
    fn index_names_are_of_the_content_and_no_address() {
        let name = index_name(b"abc\r\neth0");
        assert_eq!(name, index_name(b"abc\r\neth0\n"));
        assert_ne!(name, index_name(b"abc"));
        assert_eq!(name.len(), 32);
        assert!(name.parse::<IpAddr>().is_err());
    }

    #[test]
    fn the_directory_is_known_whatever_the_ranges_are() {
        let of = |text: &str| HostLocalConfig::data_dir_of(&Config::parse(text.as_bytes()).unwrap());
        assert_eq!(of(r#"{"name":"n","ipam":{"DataDir":"/d","ranges":[[]]}}"#).unwrap(), "/d");
        assert_eq!(of(r#"{"name":"n","ipam":{"dataDir":""}}"#).unwrap(), DEFAULT_DATA_DIR);
        assert!(of(r#"{"name":"n"}"#).is_err());
    }

    #[test]
    fn addresses_are_written_as_go_writes_them() {
        for text in ["10.0.0.1", "fd00::1", "fd00:0:0:1::", "::1", "2001:db8::1:0:0:1", "1:0:0:2::3"] {
            assert_eq!(text.parse::<IpAddr>().unwrap().to_string(), text);
        }
        assert_eq!("::102:304".parse::<IpAddr>().unwrap().to_string(), "::102:304");
    }
}
