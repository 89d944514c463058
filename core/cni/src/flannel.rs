//! The `flannel` plugin's half that is arithmetic: from its configuration and the subnet file to the delegate's configuration.
//!
//! The generated text is kept on disk until DEL and read by whichever flannel plugin is installed then, ours or Go's, so it is the same
//! bytes: compact, keys sorted.

use ipnet::IpNet;
use loden_lease::SubnetEnv;

use crate::conf::{Config, load_error};
use crate::error::Error;
use crate::json::Json;
use crate::{attachments, host_local};

/// Where flanneld says which subnet this node has, unless `subnetFile` says otherwise.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Where delegates' configurations are kept until DEL, unless `dataDir` says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/flannel";

/// A checked configuration of the flannel plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlannelConfig {
    /// `subnetFile`
    pub subnet_file: String,
    /// `dataDir`
    pub data_dir: String,
    name: String,
    cni_version: Option<String>,
    delegate: Json,
    ipam: Json,
    runtime: Option<Json>,
}

/// A delegate's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegate {
    /// The plugin's name.
    pub kind: String,
    /// Its configuration, to be passed and kept byte by byte.
    pub text: String,
}

impl FlannelConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// A key of the wrong type, or a delegate with `name`, `ipam` or a `type` that is no string.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        let fields = config.fields()?;
        let text = |name, default: &str| {
            fields.string(name).map(|text| text.unwrap_or(default).to_owned()).map_err(load_error)
        };
        let map = |name: &str| -> Result<Json, Error> {
            fields.object(name).map_err(load_error)?;
            Ok(fields.get(name).cloned().unwrap_or(Json::Object(Vec::new())))
        };
        let delegate = map("delegate")?;
        if delegate.get_exact("type").is_some_and(|kind| !matches!(kind, Json::String(_))) {
            return Err(Error::internal(
                "'delegate' dictionary, if present, must have (string) 'type' field",
            ));
        }
        for (key, advice) in [("name", "it'll be set by flannel"), ("ipam", "it'll be set by flannel")] {
            if delegate.get_exact(key).is_some() {
                return Err(Error::internal(format!(
                    "'delegate' dictionary must not have '{key}' field, {advice}"
                )));
            }
        }
        let runtime = match fields.object("runtimeConfig").map_err(load_error)? {
            Some(_) => fields.get("runtimeConfig").cloned(),
            None => None,
        };
        let cni_version = fields.string("cniVersion").map_err(load_error)?;
        Ok(Self {
            subnet_file: text("subnetFile", DEFAULT_SUBNET_FILE)?,
            data_dir: text("dataDir", DEFAULT_DATA_DIR)?,
            name: config.name.clone(),
            cni_version: cni_version.filter(|version| !version.is_empty()).map(str::to_owned),
            delegate,
            ipam: map("ipam")?,
            runtime,
        })
    }

    /// The delegate's configuration on a node with these subnets. What the configuration says wins over what the subnet file says, save
    /// for the ranges.
    ///
    /// # Errors
    /// `ipam.type` is no string, or `ipam.routes` no list.
    pub fn delegate(&self, env: &SubnetEnv) -> Result<Delegate, Error> {
        let mut delegate = self.delegate.clone();
        let default = |json: &mut Json, key: &str, value: Json| {
            if json.get_exact(key).is_none() {
                json.set(key, value);
            }
        };
        delegate.set("name", Json::from(self.name.as_str()));
        default(&mut delegate, "type", Json::from("bridge"));
        default(&mut delegate, "ipMasq", Json::from(!env.ip_masq));
        default(&mut delegate, "mtu", Json::from(u64::from(env.mtu)));
        let kind = match delegate.get_exact("type") {
            Some(Json::String(kind)) => kind.clone(),
            _ => "bridge".to_owned(),
        };
        if kind == "bridge" {
            default(&mut delegate, "isGateway", Json::from(true));
        }
        if let Some(version) = &self.cni_version {
            delegate.set("cniVersion", Json::from(version.as_str()));
        }
        if let Some(runtime) = &self.runtime {
            delegate.set("runtimeConfig", runtime.clone());
        }

        let mut ipam = self.ipam.clone();
        match ipam.get_exact("type") {
            None => ipam.set("type", Json::from("host-local")),
            Some(Json::String(_)) => {}
            Some(other) => {
                return Err(Error::internal(format!(
                    "`ipam.type` must be a string, not {}",
                    other.compact()
                )));
            }
        }
        let in_family_order = |nets: &[IpNet]| {
            let (v4, v6): (Vec<IpNet>, Vec<IpNet>) = nets.iter().partition(|net| net.addr().is_ipv4());
            v4.into_iter().chain(v6).map(|net| net.trunc().to_string())
        };
        let object = |key: &str, value: String| Json::Object(vec![(key.to_owned(), Json::String(value))]);
        let ranges =
            in_family_order(&env.subnets).map(|subnet| Json::Array(vec![object("subnet", subnet)])).collect();
        ipam.set("ranges", Json::Array(ranges));
        let mut routes = match ipam.get_exact("routes") {
            None | Some(Json::Null) => Vec::new(),
            Some(Json::Array(routes)) => routes.clone(),
            Some(other) => {
                return Err(Error::internal(format!(
                    "`ipam.routes` must be a list, not {}",
                    other.compact()
                )));
            }
        };
        routes.extend(in_family_order(&env.networks).map(|network| object("dst", network)));
        ipam.set("routes", Json::Array(routes));
        delegate.set("ipam", ipam);
        let text = delegate.sorted().compact();
        // What every plugin reads must be readable before anything is stashed or made: a `delegate` may hold any key.
        Config::parse(text.as_bytes()).map_err(|error| {
            Error::internal(format!("`delegate` does not make a configuration: {}", error.message))
        })?;
        Ok(Delegate { kind, text })
    }
}

impl FlannelConfig {
    /// Where `host-local` keeps the reservations of this network, when that is the address plugin.
    pub fn host_local_data_dir(&self) -> Option<&str> {
        let text = |key| match self.ipam.get_exact(key) {
            Some(Json::String(text)) if !text.is_empty() => Some(text.as_str()),
            _ => None,
        };
        match text("type") {
            None | Some("host-local") => Some(text("dataDir").unwrap_or(host_local::DEFAULT_DATA_DIR)),
            Some(_) => None,
        }
    }

    /// The delegate's configuration where no subnet file says what this node's subnets are: enough to clean up by, not to attach with.
    ///
    /// # Errors
    /// As [`Self::delegate`].
    pub fn delegate_without_subnets(&self) -> Result<Delegate, Error> {
        self.delegate(&SubnetEnv { networks: Vec::new(), subnets: Vec::new(), mtu: 0, ip_masq: false })
    }
}

/// A configuration for a delegate's GC: what it attached by, in the version of the GC and with its list of what must stay.
pub fn for_gc(delegate: &[u8], gc: &Config) -> Option<String> {
    let mut json = Json::parse(delegate).ok()?;
    json.entries()?;
    json.set("cniVersion", Json::from(gc.version.as_str()));
    for key in attachments::KEYS {
        if let Some(list) = gc.json.get_exact(key) {
            json.set(key, list.clone());
        }
    }
    Some(json.sorted().compact())
}

/// The network that a kept configuration is of.
pub fn network_of_kept(text: &[u8]) -> Option<String> {
    match Json::parse(text).ok()?.get_exact("name")? {
        Json::String(name) => Some(name.clone()),
        _ => None,
    }
}

/// The delegate that a kept configuration names; `None` when the text is not a configuration with a `type`.
pub fn delegate_of_kept(text: &[u8]) -> Option<String> {
    let json = Json::parse(text).ok()?;
    match json.get_exact("type") {
        None => {
            Some("bridge".to_owned()).filter(|_| json.entries().is_some_and(|entries| !entries.is_empty()))
        }
        Some(Json::String(kind)) => Some(kind.clone()),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn delegate(config: &str, env: &str) -> Result<Delegate, Error> {
        FlannelConfig::parse(&Config::parse(config.as_bytes())?)?
            .delegate(&SubnetEnv::parse("subnet.env", env).unwrap())
    }

    #[test]
    fn the_bytes_are_those_of_the_go_plugin() {
        let config = r#"{"name":"cbr0","cniVersion":"1.0.0","type":"flannel","delegate":{"hairpinMode":true,"isDefaultGateway":true}}"#;
        let delegate = delegate(config, ENV).unwrap();
        assert_eq!(delegate.kind, "bridge");
        assert_eq!(
            delegate.text,
            r#"{"cniVersion":"1.0.0","hairpinMode":true,"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}],"type":"host-local"},"isDefaultGateway":true,"isGateway":true,"mtu":1450,"name":"cbr0","type":"bridge"}"#
        );
        assert_eq!(delegate_of_kept(delegate.text.as_bytes()).as_deref(), Some("bridge"));
    }

    #[test]
    fn dual_stack_and_what_the_configuration_says_wins() {
        let env = "FLANNEL_NETWORK=10.244.0.0/16,10.245.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let config = r#"{"name":"n","ipam":{"type":"x","routes":[{"dst":"0.0.0.0/0"}],"dataDir":"/d"},"delegate":{"type":"ptp","mtu":9000,"ipMasq":false},"runtimeConfig":{"mac":"a"}}"#;
        assert_eq!(
            delegate(config, env).unwrap().text,
            r#"{"ipMasq":false,"ipam":{"dataDir":"/d","ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:0:0:1::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"10.244.0.0/16"},{"dst":"10.245.0.0/16"},{"dst":"fd00::/48"}],"type":"x"},"mtu":9000,"name":"n","runtimeConfig":{"mac":"a"},"type":"ptp"}"#
        );
    }

    #[test]
    fn delegates_that_are_refused() {
        assert!(delegate(r#"{"name":"n","delegate":{"type":1}}"#, ENV).is_err());
        assert!(
            delegate(r#"{"name":"n","delegate":{"name":"x"}}"#, ENV).unwrap_err().message.contains("'name'")
        );
        assert!(
            delegate(r#"{"name":"n","delegate":{"ipam":{}}}"#, ENV).unwrap_err().message.contains("'ipam'")
        );
        assert!(delegate(r#"{"name":"n","delegate":[]}"#, ENV).is_err());
        assert!(delegate(r#"{"name":"n","delegate":{"cniVersion":[]}}"#, ENV).is_err());
        assert_eq!(delegate_of_kept(b""), None);
        assert_eq!(delegate_of_kept(b"{\"type\":1}"), None);
    }
}
