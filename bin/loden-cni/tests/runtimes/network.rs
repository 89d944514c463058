//! The network that the runtimes attach to, as flannel's own manifest configures it.

use std::fs;

use serde_json::{Value, json};

use crate::machine::{Machine, NETWORKS, Plugins};

/// The network's name.
pub(crate) const NAME: &str = "cbr0";
/// The bridge, by its default name.
pub(crate) const BRIDGE: &str = "cni0";
/// The bridge's addresses.
pub(crate) const GATEWAY: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];

/// Whose rules the port mappings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    Iptables,
    Nftables,
}

impl Backend {
    fn word(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

/// flannel's subnet file, and the network's one file. The masquerade is our plugins' own, so that there is more to clean up.
pub(crate) fn configure(machine: &Machine, backend: Backend) {
    fs::create_dir_all("/run/flannel").unwrap();
    fs::write(
        "/run/flannel/subnet.env",
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/56\n\
         FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": NAME, "plugins": plugins(machine.plugins, backend)});
    fs::write(format!("{NETWORKS}/10-flannel.conflist"), list.to_string()).unwrap();
}

fn plugins(plugins: Plugins, backend: Backend) -> Vec<Value> {
    let first = match plugins {
        Plugins::Ours => json!({
            "type": "flannel",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true, "ipMasqBackend": if backend == Backend::Nftables {"nftables".into()} else {Value::Null}},
        }),
        // Debian has no flannel: this is what it would make of it. Its masquerade outlives a container whose namespace went first.
        Plugins::Debian => json!({
            "type": "bridge", "mtu": 1450, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:10:244::/56"}],
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
            },
        }),
    };
    let mut ports = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    if plugins == Plugins::Ours {
        ports["backend"] = json!(backend.word());
    }
    vec![first, ports]
}
