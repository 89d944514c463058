//! The `tuning` plugin's pure half: which kernel parameters and link attributes are wanted, which are allowed, and the file that keeps
//! what a link was like before.
//!
//! Keys, their precedence, refusals and the file's format are those of the Go plugin, since either may undo what the other did.

use regex_lite::Regex;

use crate::args::Args;
use crate::conf::{Config, load_error};
use crate::error::Error;
use crate::json::{Fields, Json, Mismatch};
use crate::link::{format_mac, parse_mac};

/// Where the files with former attributes are, unless `dataDir` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/run/cni/tuning";
/// The only part of the kernel's parameters that belongs to a network namespace.
const TREE: &str = "/proc/sys/net/";
/// Stands for the container's link in a parameter's name.
const IFNAME: &str = "IFNAME";

/// A hardware address.
pub type MacAddress = [u8; 6];

/// Attributes of a link; `None` is "not said".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Hardware address.
    pub mac: Option<MacAddress>,
    /// Takes in frames for anybody.
    pub promiscuous: Option<bool>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Takes in every multicast frame.
    pub all_multicast: Option<bool>,
    /// Packets that may wait to be sent.
    pub tx_queue_length: Option<u32>,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TuningConfig {
    /// Where the files with former attributes are.
    pub data_dir: String,
    /// Parameters in the order in which they are written: as configured, then what only `args.cni.sysctl` has.
    pub sysctls: Vec<(String, String)>,
    /// What the link is to be like. `promiscuous` is either wanted or not said.
    pub attributes: Attributes,
}

impl TuningConfig {
    /// Reads and checks a configuration; `args` is `CNI_ARGS`.
    ///
    /// # Errors
    /// Keys of the wrong type, a parameter named twice in one object, values that no link can have.
    pub fn parse(config: &Config, args: &str) -> Result<Self, Error> {
        let fields = config.fields()?;
        let args = Args::parse(args, &["MAC"])?;
        let convention = fields.object("args").map_err(load_error)?;
        let convention = convention.map(|args| args.object("cni")).transpose().map_err(load_error)?.flatten();
        let runtime = fields.object("runtimeConfig").map_err(load_error)?;

        let text = |from: Option<&Fields<'_>>| -> Result<Option<String>, Error> {
            let mac = from.map(|fields| fields.string("mac")).transpose().map_err(load_error)?.flatten();
            Ok(mac.map(str::to_owned))
        };
        let given = |mac: Option<String>| mac.filter(|mac| !mac.is_empty());
        let mut mac = given(text(Some(&fields))?);
        mac = args.get("MAC").map(str::to_owned).or(mac);
        mac = given(text(runtime.as_ref())?).or(mac);
        // Even an empty one here outweighs the others: it leaves the address alone.
        mac = text(convention.as_ref())?.or(mac);

        let mut sysctls = Vec::new();
        let mut attributes = Attributes::default();
        for source in [Some(&fields), convention.as_ref()].into_iter().flatten() {
            read_sysctls(source, &mut sysctls)?;
            let later = read_attributes(source).map_err(load_error)?;
            attributes = Attributes {
                mac: None,
                promiscuous: later.promiscuous.or(attributes.promiscuous),
                mtu: later.mtu.or(attributes.mtu),
                all_multicast: later.all_multicast.or(attributes.all_multicast),
                tx_queue_length: later.tx_queue_length.or(attributes.tx_queue_length),
            };
        }
        attributes.promiscuous = attributes.promiscuous.filter(|&on| on);
        attributes.mtu = attributes.mtu.filter(|&mtu| mtu != 0);
        attributes.mac = given(mac)
            .map(|mac| {
                parse_mac(&mac).ok_or_else(|| {
                    Error::internal(format!(
                        "invalid args {mac} for MAC addr: expected six octets such as 02:42:ac:11:00:02"
                    ))
                })
            })
            .transpose()?;
        Ok(Self { data_dir: data_dir(config)?, sysctls, attributes })
    }
}

/// `dataDir`, which is all that DEL and GC need to know.
///
/// # Errors
/// The key is of the wrong type.
pub fn data_dir(config: &Config) -> Result<String, Error> {
    let given = config.fields()?.string("dataDir").map_err(load_error)?;
    Ok(given.filter(|directory| !directory.is_empty()).unwrap_or(DEFAULT_DATA_DIR).to_owned())
}

fn read_sysctls(source: &Fields<'_>, sysctls: &mut Vec<(String, String)>) -> Result<(), Error> {
    let path = source.path_of("sysctl");
    let entries = match source.get("sysctl") {
        None => return Ok(()),
        Some(Json::Object(entries)) => entries,
        Some(other) => return Err(load_error(Mismatch::new(path, "an object", other))),
    };
    for (place, (key, value)) in entries.iter().enumerate() {
        if entries.iter().take(place).any(|(earlier, _)| earlier == key) {
            return Err(Error::internal("duplicated sysctl keys are not allowed")
                .with_details(format!("{key:?} is there twice in `{path}`")));
        }
        let value = match value {
            Json::String(text) => text.clone(),
            Json::Null => String::new(),
            other => {
                let path = format!("{path}.{key}");
                return Err(load_error(Mismatch::new(path, "a string", other)));
            }
        };
        match sysctls.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => *known = value,
            None => sysctls.push((key.clone(), value)),
        }
    }
    Ok(())
}

fn read_attributes(source: &Fields<'_>) -> Result<Attributes, Mismatch> {
    let number = |key: &str, expected| -> Result<Option<u32>, Mismatch> {
        let Some(number) = source.integer(key)? else { return Ok(None) };
        let fits = u32::try_from(number)
            .map_err(|_| Mismatch::new(source.path_of(key), expected, &Json::from(number)));
        fits.map(Some)
    };
    Ok(Attributes {
        mac: None,
        promiscuous: source.bool("promisc")?,
        mtu: number("mtu", "an MTU in bytes")?,
        all_multicast: source.bool("allmulti")?,
        tx_queue_length: number("txQLen", "a number of packets")?,
    })
}

/// The file of a parameter, inside the container's namespace.
///
/// # Errors
/// The name leads to none of the namespace's parameters.
pub fn sysctl_path(key: &str, ifname: &str) -> Result<String, Error> {
    let slashed = key.replace('.', "/").replacen(IFNAME, ifname, 1);
    // What the key brings along as dots is slashes by now, so no part can lead upwards.
    let parts: Vec<&str> = slashed.split('/').filter(|part| !part.is_empty()).collect();
    let path = format!("/proc/sys/{}", parts.join("/"));
    if path.starts_with(TREE) && !parts.contains(&"..") && !key.contains('\0') {
        return Ok(path);
    }
    Err(Error::internal(format!("invalid net sysctl key: {key:?}")))
}

/// Refuses parameters that no line of the administrator's list matches; `text` is the list's file, one regular expression a line.
///
/// The name is matched as it is configured, with `IFNAME` in it. A line that is no regular expression lets nothing pass: it may be
/// the one that an administrator meant to forbid by.
///
/// # Errors
/// A parameter that is not allowed, or a line that cannot be read.
pub fn check_allowed(sysctls: &[(String, String)], text: &str) -> Result<(), Error> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let mut patterns = Vec::with_capacity(lines.len());
    for line in &lines {
        patterns.push(Regex::new(line).map_err(|error| {
            Error::internal(format!(
                "the list of allowed sysctls has a line {line:?} that cannot be used: {error}"
            ))
        })?);
    }
    match sysctls.iter().find(|(key, _)| !patterns.iter().any(|pattern| pattern.is_match(key))) {
        None => Ok(()),
        Some((key, _)) => Err(Error::internal(format!(
            "Sysctl {key} is not allowed. Only the following sysctls are allowed: [{}]",
            lines.join(" ")
        ))),
    }
}

/// The name of the file that keeps an attachment's former attributes.
pub fn backup_name(container_id: &str, ifname: &str) -> String {
    format!("{container_id}_{ifname}.json")
}

impl Attributes {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The values of `self` for what `changed` says, to be put back later.
    #[must_use]
    pub fn before(&self, changed: &Self) -> Self {
        Self {
            mac: self.mac.filter(|_| changed.mac.is_some()),
            promiscuous: self.promiscuous.filter(|_| changed.promiscuous.is_some()),
            mtu: self.mtu.filter(|_| changed.mtu.is_some()),
            all_multicast: self.all_multicast.filter(|_| changed.all_multicast.is_some()),
            tx_queue_length: self.tx_queue_length.filter(|_| changed.tx_queue_length.is_some()),
        }
    }

    /// What `self` says, and what `other` says where `self` says nothing.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.or(other.mac),
            promiscuous: self.promiscuous.or(other.promiscuous),
            mtu: self.mtu.or(other.mtu),
            all_multicast: self.all_multicast.or(other.all_multicast),
            tx_queue_length: self.tx_queue_length.or(other.tx_queue_length),
        }
    }

    /// The file's text: indented by one space, no newline at the end.
    pub fn backup(&self) -> String {
        let mut fields = Vec::new();
        let mut push =
            |key: &str, value: Option<Json>| fields.extend(value.map(|value| (key.to_owned(), value)));
        push("mac", self.mac.map(|mac| Json::from(format_mac(&mac))));
        push("promisc", self.promiscuous.map(Json::from));
        push("mtu", self.mtu.map(|mtu| Json::from(u64::from(mtu))));
        push("allmulti", self.all_multicast.map(Json::from));
        push("txQLen", self.tx_queue_length.map(|length| Json::from(u64::from(length))));
        Json::Object(fields).indented(" ")
    }

    /// Reads a file's text; `None` when it is not one.
    pub fn of_backup(text: &[u8]) -> Option<Self> {
        let json = Json::parse(text).ok()?;
        let fields = Fields::of(&json, "").ok()?;
        let mac = fields.string("mac").ok()?;
        Some(Self { mac: mac.and_then(parse_mac), ..read_attributes(&fields).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_with(text: &str, args: &str) -> Result<TuningConfig, Error> {
        TuningConfig::parse(&Config::parse(text.as_bytes()).unwrap(), args)
    }

    fn parse(keys: &str) -> Result<TuningConfig, Error> {
        parse_with(&format!(r#"{{"name":"n",{keys}}}"#), "")
    }

    #[test]
    fn every_key_at_the_top_and_by_convention() {
        let config = parse(
            r#""dataDir":"/d","sysctl":{"net.a":"1","net.b":"2"},"mac":"02:00:00:00:00:01","promisc":true,"mtu":1400,
            "txQLen":7,"allmulti":true,
            "args":{"cni":{"sysctl":{"net.c":"3","net.b":"4"},"mac":"02:00:00:00:00:02","promisc":false,"mtu":1300,
            "txQLen":0,"allmulti":false}}"#,
        )
        .unwrap();
        assert_eq!(config.data_dir, "/d");
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(config.sysctls, [pair("net.a", "1"), pair("net.b", "4"), pair("net.c", "3")]);
        assert_eq!(
            config.attributes,
            Attributes {
                mac: Some([2, 0, 0, 0, 0, 2]),
                promiscuous: None,
                mtu: Some(1300),
                all_multicast: Some(false),
                tx_queue_length: Some(0),
            }
        );
        let empty = parse(r#""mac":"","mtu":0,"promisc":false,"dataDir":"""#).unwrap();
        assert_eq!((empty.data_dir.as_str(), empty.attributes.is_empty()), (DEFAULT_DATA_DIR, true));
        let only = parse(r#""args":{"cni":{"sysctl":{"net.c":"3"}}}"#).unwrap();
        assert_eq!(only.sysctls, [pair("net.c", "3")], "the Go plugin panics here");
    }

    #[test]
    fn mac_precedence() {
        let with = |text: &str, args| parse_with(text, args).unwrap().attributes.mac.map(|mac| mac[5]);
        let args = "IgnoreUnknown=1;MAC=02:00:00:00:00:02;K8S_POD_NAME=x";
        assert_eq!(with(r#"{"name":"n","mac":"02:00:00:00:00:01"}"#, ""), Some(1));
        assert_eq!(with(r#"{"name":"n","mac":"02:00:00:00:00:01"}"#, args), Some(2));
        let runtime = r#"{"name":"n","mac":"02:00:00:00:00:01","runtimeConfig":{"mac":"02:00:00:00:00:03"}}"#;
        assert_eq!(with(runtime, args), Some(3));
        let convention = r#"{"name":"n","runtimeConfig":{"mac":"02:00:00:00:00:03"},"args":{"cni":{"mac":"02:00:00:00:00:04"}}}"#;
        assert_eq!(with(convention, args), Some(4));
        let silenced = r#"{"name":"n","mac":"02:00:00:00:00:01","args":{"cni":{"mac":""}}}"#;
        assert_eq!(with(silenced, args), None);
    }

    #[test]
    fn refusals() {
        let message = |keys: &str| parse(keys).unwrap_err().message;
        assert_eq!(
            message(r#""sysctl":{"net.a":"1","net.a":"1"}"#),
            "duplicated sysctl keys are not allowed"
        );
        assert!(message(r#""mac":"nonsense""#).starts_with("invalid args nonsense for MAC addr: "));
        assert!(message(r#""sysctl":{"net.a":1}"#).contains("`sysctl.net.a`: expected a string, found 1"));
        assert!(message(r#""sysctl":[]"#).contains("`sysctl`"));
        assert!(message(r#""mtu":-1"#).contains("`mtu`"));
        assert!(message(r#""txQLen":4294967296"#).contains("`txQLen`"));
        assert!(message(r#""args":{"cni":{"allmulti":"true"}}"#).contains("`args.cni.allmulti`"));
        assert_eq!(parse_with(r#"{"name":"n"}"#, "FOO").unwrap_err().message, "ARGS: invalid pair \"FOO\"");
    }

    #[test]
    fn parameters_stay_in_their_tree() {
        let path = |key| sysctl_path(key, "eth0.5").map_err(|error| error.message);
        assert_eq!(
            path("net.ipv4.conf.IFNAME.arp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.5/arp_filter"
        );
        assert_eq!(path("net/ipv4/ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net..ipv4.ip_forward").unwrap(), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/../../kernel/x").unwrap(), "/proc/sys/net/ipv4/kernel/x", "no way up");
        for key in ["kernel.hostname", "net", "", "..", "/etc/passwd", "netx.a", "net.a\0"] {
            assert_eq!(path(key).unwrap_err(), format!("invalid net sysctl key: {key:?}"));
        }
        assert_eq!(
            sysctl_path("net.IFNAME.IFNAME", "a").unwrap(),
            "/proc/sys/net/a/IFNAME",
            "only the first one is replaced"
        );
        assert!(sysctl_path("net.IFNAME.x", "..").is_err());
    }

    #[test]
    fn the_list_of_allowed_parameters() {
        let sysctls = |key: &str| vec![(key.to_owned(), "1".to_owned())];
        let list = "^net.ipv4.conf.IFNAME.[a-z_]*$\n\nnet.ipv6\n";
        check_allowed(&sysctls("net.ipv4.conf.IFNAME.arp_filter"), list).unwrap();
        check_allowed(&sysctls("net.core.net.ipv6"), list).unwrap();
        check_allowed(&[], "").unwrap();
        assert_eq!(
            check_allowed(&sysctls("net.ipv4.ip_forward"), list).unwrap_err().message,
            "Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: \
             [^net.ipv4.conf.IFNAME.[a-z_]*$ net.ipv6]"
        );
        assert!(check_allowed(&sysctls("net.a"), "").is_err(), "an empty list allows nothing");
        assert!(check_allowed(&sysctls("net.a"), "net.a\n[").unwrap_err().message.contains("\"[\""));
    }

    #[test]
    fn the_file_is_the_go_plugins() {
        let former = Attributes {
            mac: Some([2, 0, 0, 0, 0, 1]),
            promiscuous: Some(false),
            mtu: Some(1500),
            all_multicast: Some(true),
            tx_queue_length: Some(1000),
        };
        let text = "{\n \"mac\": \"02:00:00:00:00:01\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": true,\n \"txQLen\": 1000\n}";
        assert_eq!(former.backup(), text);
        assert_eq!(Attributes::of_backup(text.as_bytes()), Some(former.clone()));
        let changed = Attributes { mtu: Some(1400), ..Attributes::default() };
        assert_eq!(former.before(&changed).backup(), "{\n \"mtu\": 1500\n}");
        assert_eq!(changed.or(&former).mtu, Some(1400));
        assert_eq!(Attributes::of_backup(b"{}"), Some(Attributes::default()));
        assert_eq!(Attributes::of_backup(b"{\"mtu\":\"x\"}"), None);
        assert_eq!(Attributes::of_backup(b""), None);
    }
}
