//! Whatever a configuration holds, reading it ends in a value or in an error, and errors can be printed and read back.

use loden_cni_protocol::bridge::BridgeConfig;
use loden_cni_protocol::flannel::{FlannelConfig, delegate_of_kept};
use loden_cni_protocol::host_local::HostLocalConfig;
use loden_cni_protocol::{CniResult, Config, Error, Json, args::Args};
use loden_lease::SubnetEnv;
use proptest::prelude::*;

/// Words that mean something somewhere, so that random configurations get past the first check.
fn word() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "name",
        "cniVersion",
        "type",
        "ipam",
        "ranges",
        "subnet",
        "rangeStart",
        "rangeEnd",
        "gateway",
        "routes",
        "dst",
        "gw",
        "dataDir",
        "delegate",
        "runtimeConfig",
        "ips",
        "ipRanges",
        "mac",
        "args",
        "cni",
        "prevResult",
        "interfaces",
        "address",
        "interface",
        "dns",
        "mtu",
        "bridge",
        "vlan",
        "vlanTrunk",
        "ipMasq",
        "ipMasqBackend",
        "isGateway",
        "SUBNET",
        "Name",
        "10.0.0.0/24",
        "10.0.0.1",
        "10.0.0.255",
        "0.0.0.0/0",
        "fd00::/64",
        "fd00::1",
        "::/0",
        "255.255.255.255/30",
        "1.0.0",
        "0.2.0",
        "1.1.0",
        "02:00:00:00:00:01",
        "nftables",
        "host-local",
        "",
        "é",
    ])
    .prop_map(str::to_owned)
}

fn json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        4 => word().prop_map(Json::String),
        1 => Just(Json::Null),
        1 => any::<bool>().prop_map(Json::Bool),
        1 => any::<i64>().prop_map(Json::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..4).prop_map(Json::Array),
            2 => prop::collection::vec((word(), inner), 0..6).prop_map(Json::Object),
        ]
    })
}

fn object() -> impl Strategy<Value = Json> {
    prop::collection::vec((word(), json()), 0..10).prop_map(|mut entries| {
        entries.push(("name".to_owned(), Json::from("net")));
        Json::Object(entries)
    })
}

proptest! {
    #[test]
    fn configurations_are_read_or_refused(json in object(), args in "(IP|MAC|IgnoreUnknown|X)?=?[a-z0-9.:;=]{0,20}") {
        let mut errors: Vec<Error> = Vec::new();
        match Config::parse(json.compact().as_bytes()) {
            Err(error) => errors.push(error),
            Ok(config) => {
                errors.extend(BridgeConfig::parse(&config, &args).err());
                errors.extend(BridgeConfig::parse_for_removal(&config, &args).err());
                errors.extend(config.previous().err());
                match HostLocalConfig::parse(&config, &args) {
                    Err(error) => errors.push(error),
                    Ok(parsed) => {
                        for set in &parsed.range_sets {
                            prop_assert!(set.candidates(None).take(3).all(|choice| set.contains(choice.address.addr())));
                        }
                    }
                }
                let env = SubnetEnv {
                    networks: vec!["10.244.0.0/16".parse().unwrap()],
                    subnets: vec!["10.244.1.1/24".parse().unwrap()],
                    mtu: 1450,
                    ip_masq: true,
                };
                match FlannelConfig::parse(&config).and_then(|parsed| parsed.delegate(&env)) {
                    Err(error) => errors.push(error),
                    Ok(delegate) => {
                        prop_assert_eq!(delegate_of_kept(delegate.text.as_bytes()), Some(delegate.kind));
                        prop_assert!(Config::parse(delegate.text.as_bytes()).is_ok());
                    }
                }
            }
        }
        for error in errors {
            prop_assert_eq!(Error::parse(error.render().as_bytes()), Some(error));
        }
    }

    #[test]
    fn results_are_read_or_refused(json in json()) {
        for version in ["0.1.0", "0.4.0", "1.1.0"] {
            if let Ok(result) = CniResult::parse(&json, version) {
                let _ = result.render(version);
            }
        }
    }

    #[test]
    fn arguments_are_read_or_refused(text in "[A-Za-z0-9=;. ]{0,40}") {
        let _ = Args::parse(&text, &["IP"]).map(|args| args.get("IP").map(str::len));
    }
}
