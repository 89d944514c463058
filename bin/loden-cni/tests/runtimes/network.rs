//! The network that the runtimes attach to, as flannel's own manifest configures it.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::machine::{Machine, NETWORKS, PLUGINS, Plugins, names_in, run};

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

/// Where the limits of bandwidth come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limits {
    /// The network's configuration: every container has them.
    Network,
    /// The runtime, container by container.
    Runtime,
}

/// A network that runtimes find.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    backend: Backend,
    plugins: Vec<Value>,
}

impl Network {
    /// Writes its file, and flannel's subnet file. The masquerade is our plugins' own, so that there is more to clean up.
    pub(crate) fn configure(machine: &Machine, backend: Backend, limits: Limits) -> Self {
        fs::create_dir_all("/run/flannel").unwrap();
        fs::write(
            "/run/flannel/subnet.env",
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/56\n\
             FLANNEL_IPV6_SUBNET=fd00:10:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n",
        )
        .unwrap();
        let network = Self { backend, plugins: plugins(machine.plugins, backend, limits) };
        network.write();
        network
    }

    /// The same network without one of its plugins.
    pub(crate) fn without(mut self, plugin: &str) -> Self {
        self.plugins.retain(|config| config["type"] != plugin);
        self.write();
        self
    }

    fn write(&self) {
        // The newest version that these runtimes know.
        let list = json!({"cniVersion": "1.0.0", "name": NAME, "plugins": self.plugins});
        fs::write(format!("{NETWORKS}/10-flannel.conflist"), list.to_string()).unwrap();
    }

    /// Calls every plugin to collect what belongs to no container of `valid`, as a runtime would that knows how.
    pub(crate) fn collect_garbage(&self, valid: &[&str]) {
        let valid: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        for plugin in &self.plugins {
            let mut config = plugin.clone();
            config["cniVersion"] = json!("1.1.0");
            config["name"] = json!(NAME);
            config["cni.dev/valid-attachments"] = json!(valid);
            let name = plugin["type"].as_str().unwrap();
            let mut child = Command::new(format!("{PLUGINS}/{name}"))
                .env("CNI_COMMAND", "GC")
                .env("CNI_PATH", PLUGINS)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{name} GC: {}", String::from_utf8_lossy(&output.stdout));
        }
    }

    /// Port mappings are where they were asked for, and nowhere else.
    #[track_caller]
    pub(crate) fn assert_backend(&self) {
        let rules = run("nft", &["list", "ruleset"]);
        let there = ["jump CNI-DN-", "table ip cni_hostport"].map(|part| rules.contains(part));
        assert_eq!(there, [self.backend == Backend::Iptables, self.backend == Backend::Nftables], "{rules}");
    }
}

/// Whether any plugin is at work.
pub(crate) fn plugin_runs() -> bool {
    names_in("/proc").any(|process| {
        fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|program| program.starts_with(PLUGINS))
    })
}

/// The value that `tuning` gives to [`TUNED`].
pub(crate) const TUNED_TO: &str = "2";
/// A setting of the container's link whose default is another.
pub(crate) const TUNED: &str = "net/ipv4/conf/eth0/arp_announce";

fn plugins(plugins: Plugins, backend: Backend, limits: Limits) -> Vec<Value> {
    let mut all = vec![
        json!({
            "type": "flannel",
            "delegate": {"hairpinMode": true, "isDefaultGateway": true, "ipMasqBackend": backend.word()},
        }),
        json!({"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_announce": TUNED_TO}, "txQLen": 500}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "backend": backend.word()}),
        json!({"type": "firewall", "backend": "iptables"}),
    ];
    if limits == Limits::Network {
        let rate = 800_000_000;
        all[2] = json!({
            "type": "bandwidth",
            "ingressRate": rate, "ingressBurst": rate, "egressRate": rate, "egressBurst": rate,
        });
    }
    if plugins == Plugins::Debian {
        // Debian has no flannel: this is what it would make of it. What the Go plugins leave of a container whose namespace went first,
        // its masquerade and its backup of the link, is left out.
        all[0] = json!({
            "type": "bridge", "mtu": 1450, "isGateway": true, "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:10:244::/56"}],
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
            },
        });
        all[1].as_object_mut().unwrap().remove("txQLen");
    }
    all
}
