//! containerd as a daemon of the test's own.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::cri::Runtime;
use crate::machine::{NETWORKS, PLUGINS, names_in, run, wait_until};
use crate::{image, network};

const SOCKET: &str = "/run/containerd/containerd.sock";
const CONFIG: &str = "/etc/containerd/config.toml";
const LOG: &str = "/run/containerd.log";

/// A running containerd. Its shims and containers outlive it, as they do on a node.
#[derive(Debug)]
pub(crate) struct Containerd {
    child: Child,
}

impl Containerd {
    /// Configures and starts it, and gives it the image.
    pub(crate) fn set_up() -> Self {
        // Nothing is limited, and nothing needs more than a root who may not raise limits: in a virtual machine of somebody else's, say.
        let config = format!(
            "version = 2\nroot = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
             [grpc]\naddress = \"{SOCKET}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"{}\"\ndisable_tcp_service = true\ndisable_cgroup = true\ndisable_apparmor = true\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"runc\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{PLUGINS}\"\nconf_dir = \"{NETWORKS}\"\n",
            image::NAME
        );
        fs::create_dir_all("/etc/containerd").unwrap();
        fs::write(CONFIG, config).unwrap();
        // Layers lie on an overlay themselves, where the file system below is one: there they may not lie on another.
        fs::create_dir_all("/var/lib/containerd").unwrap();
        run("mount", &["-t", "tmpfs", "tmpfs", "/var/lib/containerd"]);
        let containerd = Self::start();
        import();
        containerd
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start() -> Self {
        let log = fs::File::options().create(true).append(true).open(LOG).unwrap();
        let child = Command::new("containerd")
            .args(["--config", CONFIG])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let containerd = Self { child };
        let answers = || containerd.runtime().version().is_ok();
        assert!(wait_until(Duration::from_secs(30), answers), "containerd does not answer:\n{}", log_text());
        containerd
    }

    /// Kills it where it stands, and starts it again.
    pub(crate) fn killed_and_started(mut self) -> Self {
        self.kill();
        Self::start()
    }

    /// The machine goes down and comes up: no process, no namespace, no file of `/run` and nothing in the kernel is left, the disk is as
    /// it was.
    pub(crate) fn rebooted(mut self) -> Self {
        self.end_everything();
        run("ip", &["link", "delete", network::BRIDGE]);
        run("nft", &["flush", "ruleset"]);
        Self::start()
    }

    /// The runtime's disk is lost, and every container with it: nobody will ever ask a plugin to detach them.
    pub(crate) fn lost(mut self) -> Self {
        self.end_everything();
        run("umount", &["/var/lib/containerd"]);
        run("mount", &["-t", "tmpfs", "tmpfs", "/var/lib/containerd"]);
        for note in names_in("/var/lib/cni/results") {
            fs::remove_file(format!("/var/lib/cni/results/{note}")).unwrap();
        }
        let containerd = Self::start();
        import();
        containerd
    }

    fn end_everything(&mut self) {
        self.kill();
        for entry in names_in("/proc") {
            let Some(process) = entry.parse().ok().and_then(Pid::from_raw) else { continue };
            let name = fs::read_to_string(format!("/proc/{entry}/comm")).unwrap_or_default();
            if ["containerd-shim", "httpd"].contains(&name.trim()) {
                let _ = kill_process(process, Signal::KILL);
            }
        }
        for namespace in names_in("/run/netns").filter(|name| name.starts_with("cni-")) {
            remove_namespace(&namespace);
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for point in points.filter(|point| point.starts_with("/run/containerd/")) {
            run("umount", &["--lazy", point]);
        }
        fs::remove_dir_all("/run/containerd").unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime { socket: SOCKET.to_owned() }
    }
}

/// Gives the image to the kubelet's half and to `ctr`'s.
fn import() {
    for namespace in ["k8s.io", "default"] {
        run("ctr", &["--namespace", namespace, "images", "import", image::ARCHIVE]);
    }
}

/// Removes a named network namespace from under whoever uses it.
pub(crate) fn remove_namespace(name: &str) {
    let path = format!("/run/netns/{name}");
    // Who was killed in between has made the file and not the mount.
    if fs::read_to_string("/proc/self/mounts").unwrap().contains(&path) {
        run("umount", &["--lazy", &path]);
    }
    fs::remove_file(&path).unwrap();
}

/// What containerd wrote, for a failure's sake.
pub(crate) fn log_text() -> String {
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let last = text.lines().rev().take(40).collect::<Vec<_>>();
    last.into_iter().rev().collect::<Vec<_>>().join("\n")
}
