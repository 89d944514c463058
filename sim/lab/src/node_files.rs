//! The files that a node has before its pods come: what a kubelet, a DaemonSet's init container and a cluster's installer put there.
//!
//! All of them below one directory per node, since the nodes of a lab share one file system: the paths that a real node has in `/etc`, `/opt`, `/run` and
//! `/var` are given to the programs as flags and configuration keys.

use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use serde_json::json;

use crate::error::{Context, Error, Result};
use crate::process::Programs;
use crate::spec::Backend;

/// The plugins that the node's list names or delegates to.
const PLUGINS: [&str; 4] = ["flannel", "bridge", "host-local", "loopback"];

/// Where a node's files are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFiles {
    /// The node's directory.
    pub root: PathBuf,
}

impl NodeFiles {
    /// `/run/flannel/subnet.env` of a real node.
    #[must_use]
    pub fn subnet_env(&self) -> PathBuf {
        self.root.join("run/flannel/subnet.env")
    }

    /// `/etc/kube-flannel/net-conf.json`.
    #[must_use]
    pub fn net_conf(&self) -> PathBuf {
        self.root.join("etc/kube-flannel/net-conf.json")
    }

    /// The kubeconfig of flanneld.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.root.join("etc/kube-flannel/kubeconfig")
    }

    /// `/etc/cni/net.d`.
    #[must_use]
    pub fn cni_configuration(&self) -> PathBuf {
        self.root.join("etc/cni/net.d")
    }

    /// `/opt/cni/bin`.
    #[must_use]
    pub fn cni_plugins(&self) -> PathBuf {
        self.root.join("opt/cni/bin")
    }

    /// `/var/lib/cni`: libcni's results, host-local's networks, flannel's delegate configurations.
    #[must_use]
    pub fn cni_state(&self) -> PathBuf {
        self.root.join("var/lib/cni")
    }

    /// flanneld's log.
    #[must_use]
    pub fn flanneld_log(&self) -> PathBuf {
        self.root.join("flanneld.log")
    }

    /// Writes them all.
    ///
    /// # Errors
    /// A directory, file or link could not be made.
    pub fn write(&self, pod_cidr: Ipv4Net, backend: Backend, programs: &Programs) -> Result<()> {
        for directory in [self.cni_configuration(), self.cni_plugins(), self.cni_state()] {
            make(&directory)?;
        }
        for file in [self.subnet_env(), self.net_conf()] {
            make(file.parent().unwrap_or(&self.root))?;
        }
        for plugin in PLUGINS {
            let link = self.cni_plugins().join(plugin);
            std::os::unix::fs::symlink(&programs.cni, &link).map_err(|e| Error::io("link", &link, e))?;
        }
        let net_conf = json!({
            "Network": pod_cidr,
            "EnableNFTables": true,
            "Backend": { "Type": backend },
        });
        write_json(&self.net_conf(), &net_conf)?;
        // The list of upstream's manifest with the paths of this node, in a version that has CHECK.
        let list = json!({
            "name": "cbr0",
            "cniVersion": "1.0.0",
            "plugins": [{
                "type": "flannel",
                "subnetFile": self.subnet_env(),
                "dataDir": self.cni_state().join("flannel"),
                "ipam": { "dataDir": self.cni_state().join("networks") },
                "delegate": { "hairpinMode": true, "isDefaultGateway": true },
            }],
        });
        write_json(&self.cni_configuration().join("10-flannel.conflist"), &list)
    }
}

fn make(directory: &Path) -> Result<()> {
    std::fs::create_dir_all(directory).map_err(|e| Error::io("create", directory, e))
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).during(|| format!("encode {}", path.display()))?;
    std::fs::write(path, text + "\n").map_err(|e| Error::io("write", path, e))
}
