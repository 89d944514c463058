//! What the flags mean: checked once, then typed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, bail};
use ipnet::IpNet;
use loden_daemon::{Settings, VpcCidrs};
use loden_firewall::flannel::Masquerade;
use loden_kube::Access;
use loden_lease::{AnnotationKeys, NetConf};
use loden_node::external::Wanted;
use loden_node::{BackendKind, VxlanSettings, find_backend};
use loden_telemetry::{LogFormat, LogOptions};

use crate::go_flags::Values;

/// Everything the flags say.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) access: Access,
    pub(crate) annotation_prefix: String,
    pub(crate) annotation_keys: AnnotationKeys,
    pub(crate) net_config_path: PathBuf,
    pub(crate) set_network_unavailable: bool,
    pub(crate) external: Wanted,
    pub(crate) masquerade: Option<Masquerade>,
    pub(crate) forward_rules: bool,
    pub(crate) blackhole: bool,
    pub(crate) vpc_cidrs: VpcCidrs,
    pub(crate) subnet_file: PathBuf,
    pub(crate) health: Option<SocketAddr>,
    pub(crate) dry_run: bool,
}

/// How to log, which is needed before anything else can be said.
pub(crate) fn log_options(values: &Values) -> Result<LogOptions> {
    let format = match values.text("log-format") {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        other => bail!("-log-format {other:?} is unknown; write text or json"),
    };
    let verbosity = i32::try_from(values.int("v")).unwrap_or(i32::MAX);
    Ok(LogOptions { verbosity, format, filter: values.optional("log-filter") })
}

impl Config {
    pub(crate) fn new(values: &Values) -> Result<Self> {
        if !(1..=1439).contains(&values.int("subnet-lease-renew-margin")) {
            bail!(
                "-subnet-lease-renew-margin {} is out of range; give 1 to 1439 minutes",
                values.text("subnet-lease-renew-margin")
            );
        }
        for name in ["vmodule", "log_backtrace_at"] {
            if values.is_changed(name) {
                bail!("-{name} is not built yet; leave it out (see -log-filter for levels by module)");
            }
        }
        if !values.flag("kube-subnet-mgr") {
            bail!(
                "the etcd lease store is not built yet; give -kube-subnet-mgr to take the node's subnet from Kubernetes, or run \
                 Go's flanneld with etcd"
            );
        }
        let prefix = values.text("kube-annotation-prefix");
        Ok(Self {
            access: Access {
                kubeconfig: values.optional("kubeconfig-file").map(PathBuf::from),
                server: values.optional("kube-api-url"),
            },
            annotation_keys: AnnotationKeys::new(prefix).context("-kube-annotation-prefix")?,
            annotation_prefix: prefix.to_owned(),
            net_config_path: values.text("net-config-path").into(),
            set_network_unavailable: values.flag("set-node-network-unavailable"),
            external: external(values)?,
            masquerade: values
                .flag("ip-masq")
                .then(|| Masquerade { fully_random: !values.flag("ip-masq-fully-random-disable") }),
            forward_rules: values.flag("iptables-forward-rules"),
            blackhole: values.flag("ip-blackhole-route"),
            vpc_cidrs: vpc_cidrs(values.text("vpc-cidrs"))?,
            subnet_file: values.text("subnet-file").into(),
            health: health(values)?,
            dry_run: values.flag("dry-run"),
        })
    }
}

impl Config {
    /// What the daemon is to do on this node.
    pub(crate) fn settings(
        self,
        conf: NetConf,
        backend: BackendKind,
        vxlan: Option<VxlanSettings>,
        node_name: String,
    ) -> Settings {
        // Where no cloud routes pods' addresses, its networks do not see them.
        let vpc_cidrs = match self.vpc_cidrs {
            VpcCidrs::Auto if backend != BackendKind::Alloc => VpcCidrs::Fixed(Vec::new()),
            given => given,
        };
        Settings {
            conf,
            backend,
            vxlan,
            node_name,
            annotation_keys: self.annotation_keys,
            external: self.external,
            masquerade: self.masquerade,
            forward_rules: self.forward_rules,
            blackhole: self.blackhole,
            vpc_cidrs,
            subnet_file: self.subnet_file,
            set_network_unavailable: self.set_network_unavailable,
        }
    }
}

fn external(values: &Values) -> Result<Wanted> {
    let patterns = values.list("iface-regex").iter().map(|text| {
        regex::Regex::new(text)
            .with_context(|| format!("-iface-regex {text:?} is no regular expression; escape dots as \\."))
    });
    Ok(Wanted {
        ipv4: true,
        ipv6: false,
        interfaces: values.list("iface").to_vec(),
        patterns: patterns.collect::<Result<_>>()?,
        can_reach: address::<IpAddr>(values, "iface-can-reach")?,
        public_ip: address::<Ipv4Addr>(values, "public-ip")?,
        public_ipv6: address::<Ipv6Addr>(values, "public-ipv6")?,
    })
}

fn address<A: std::str::FromStr>(values: &Values, name: &str) -> Result<Option<A>> {
    let Some(text) = values.optional(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| anyhow!("-{name} {text:?} is not an address of the family it takes"))
}

fn vpc_cidrs(text: &str) -> Result<VpcCidrs> {
    match text {
        "auto" => Ok(VpcCidrs::Auto),
        "none" | "" => Ok(VpcCidrs::Fixed(Vec::new())),
        list => {
            let parse = |element: &str| {
                element.trim().parse::<IpNet>().map(|net| net.trunc()).map_err(|_| {
                    anyhow!("-vpc-cidrs: {element:?} is not a network in CIDR notation; write auto, none, or for example 192.168.0.0/16,172.16.0.0/12")
                })
            };
            Ok(VpcCidrs::Fixed(list.split(',').map(parse).collect::<Result<_>>()?))
        }
    }
}

fn health(values: &Values) -> Result<Option<SocketAddr>> {
    let port = values.int("healthz-port");
    if port <= 0 {
        return Ok(None);
    }
    let port = u16::try_from(port)
        .map_err(|_| anyhow!("-healthz-port {port} is no port; give 1 to 65535, or 0 for none"))?;
    let ip = values.text("healthz-ip");
    let ip: IpAddr = ip.parse().map_err(|_| anyhow!("-healthz-ip {ip:?} is not an address"))?;
    Ok(Some(SocketAddr::new(ip, port)))
}

/// Checks that this build can do what the network configuration asks for.
pub(crate) fn check_net_conf(conf: &NetConf) -> Result<(BackendKind, Option<VxlanSettings>)> {
    let name = &conf.source_name;
    if !conf.enable_ipv4 && !conf.enable_ipv6 {
        bail!("network configuration {name}: EnableIPv4 and EnableIPv6 are both false; enable one");
    }
    if conf.enable_ipv4 && conf.network.is_none() {
        return Err(conf.missing("Network", "10.244.0.0/16").into());
    }
    if conf.enable_ipv6 && conf.ipv6_network.is_none() {
        return Err(conf.missing("IPv6Network", "fd00:10:244::/56").into());
    }
    let backend = find_backend(&conf.backend.kind)
        .with_context(|| format!("network configuration {name}: key Backend.Type"))?;
    if !conf.enable_nftables {
        bail!(
            "network configuration {name}: key EnableNFTables is absent or false, which asks for the iptables mode, and that is not \
             built yet; set \"EnableNFTables\": true"
        );
    }
    if backend != BackendKind::Alloc && conf.enable_ipv6 {
        bail!(
            "network configuration {name}: backend {backend} is not built yet for IPv6; set \"EnableIPv6\": false, or use backend alloc"
        );
    }
    let vxlan = (backend == BackendKind::Vxlan).then(|| VxlanSettings::read(conf)).transpose()?;
    Ok((backend, vxlan))
}

#[cfg(test)]
mod tests {
    use super::{Config, check_net_conf, log_options};
    use crate::flags;
    use crate::go_flags::{Parsed, Values, parse};
    use loden_daemon::VpcCidrs;
    use loden_lease::NetConf;

    fn values(args: &[&str]) -> Values {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        match parse(&flags::all(), &args, |_| None).unwrap() {
            Parsed::Values(values) => values,
            Parsed::Help => panic!("help"),
        }
    }

    fn refused(args: &[&str]) -> String {
        let all: Vec<&str> = ["-kube-subnet-mgr"].iter().chain(args).copied().collect();
        format!("{:#}", Config::new(&values(&all)).unwrap_err())
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let error =
            format!("{:#}", Config::new(&values(&["-etcd-endpoints=http://10.0.0.1:2379"])).unwrap_err());
        assert!(
            error.contains("etcd lease store is not built yet") && error.contains("-kube-subnet-mgr"),
            "{error}"
        );
        assert!(refused(&["-vmodule=a=3"]).contains("-vmodule is not built yet"));
    }

    #[test]
    fn broken_values_name_their_flag() {
        for (args, word) in [
            (["-subnet-lease-renew-margin=0"], "-subnet-lease-renew-margin"),
            (["-subnet-lease-renew-margin=1440"], "-subnet-lease-renew-margin"),
            (["-public-ip=fd00::1"], "-public-ip"),
            (["-public-ipv6=10.0.0.1"], "-public-ipv6"),
            (["-iface-can-reach=there"], "-iface-can-reach"),
            (["-iface-regex=("], "-iface-regex"),
            (["-healthz-port=70000"], "-healthz-port"),
            (["-vpc-cidrs=192.168.0.0"], "-vpc-cidrs"),
            (["-kube-annotation-prefix=org"], "-kube-annotation-prefix"),
        ] {
            let error = refused(&args);
            assert!(error.contains(word), "{error}");
        }
        assert!(log_options(&values(&["-log-format=xml"])).is_err());
    }

    #[test]
    fn vpc_cidrs_are_auto_none_or_a_list() {
        let cidrs =
            |text: &str| Config::new(&values(&["-kube-subnet-mgr", "-vpc-cidrs", text])).unwrap().vpc_cidrs;
        assert_eq!(cidrs("auto"), VpcCidrs::Auto);
        assert_eq!(cidrs("none"), VpcCidrs::Fixed(Vec::new()));
        let VpcCidrs::Fixed(list) = cidrs("192.168.7.1/16, fd01::/64") else { panic!("a list") };
        assert_eq!(list.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.168.0.0/16", "fd01::/64"]);
    }

    #[test]
    fn a_network_configuration_that_asks_for_more_is_refused() {
        let refusal = |text: &str| {
            format!("{:#}", check_net_conf(&NetConf::parse("net-conf.json", text).unwrap()).unwrap_err())
        };
        for (text, word) in [
            (r#"{"Network":"10.1.0.0/16","Backend":{"Type":"alloc"}}"#, "EnableNFTables"),
            (
                r#"{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"wireguard"}}"#,
                "wireguard is not built yet",
            ),
            (
                r#"{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan","VNI":"1"}}"#,
                "key Backend.VNI",
            ),
            (
                r#"{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#,
                "host-gw is not built yet for IPv6",
            ),
            (r#"{"Network":"10.1.0.0/16","EnableNFTables":true}"#, "udp is not built yet"),
            (r#"{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"ali-vpc"}}"#, "unknown"),
            (r#"{"EnableNFTables":true,"Backend":{"Type":"alloc"}}"#, "key Network: is required"),
            (r#"{"EnableIPv4":false,"EnableNFTables":true,"Backend":{"Type":"alloc"}}"#, "both false"),
            (
                r#"{"EnableIPv4":false,"EnableIPv6":true,"EnableNFTables":true,"Backend":{"Type":"alloc"}}"#,
                "IPv6Network",
            ),
        ] {
            let error = refusal(text);
            assert!(error.contains(word) && error.contains("net-conf.json"), "{error}");
        }
    }
}
