//! A node made of a network namespace and a directory, containers that are namespaces, and plugins run on them as a runtime does.
//!
//! Needs root and Debian's `containernetworking-plugins`, `iproute2` and `nftables`; a test that lacks them fails and says so.

#![expect(dead_code, reason = "every test target uses its part of this module")]

pub(crate) mod host;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use loden_netlink::NetNs;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where Debian keeps the Go plugins.
pub(crate) const GO: &str = "/usr/lib/cni";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Where cargo built the binary, or where the virtual machine has it.
fn binary_under_test() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_loden-cni"));
    std::env::var_os("LODEN_CNI").map_or_else(built, PathBuf::from)
}

/// A named namespace that goes with the value.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) ns: NetNs,
}

impl Namespace {
    pub(crate) fn new(what: &str) -> Self {
        let name = format!("lcni-{}-{}-{what}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let ns = NetNs::create_named(&name)
            .expect("kernel tests need root and network namespaces: run them as root");
        Self { name, ns }
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` in the namespace and returns its JSON.
    pub(crate) fn ip_json(&self, args: &[&str]) -> Value {
        let output = Command::new("ip")
            .args(["-n", &self.name, "-j", "-d"])
            .args(args)
            .output()
            .expect("iproute2 is needed");
        assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        if output.stdout.trim_ascii().is_empty() {
            return json!([]);
        }
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs a program in the namespace and returns what it printed.
    pub(crate) fn sh(&self, program: &str, args: &[&str]) -> String {
        let output = self.ns.run(|| Command::new(program).args(args).output()).unwrap().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Whether one packet of a few comes back; the first may be lost to an address still being resolved.
    pub(crate) fn reaches(&self, to: &str) -> bool {
        let ping = || Command::new("ping").args(["-n", "-c", "2", "-i", "0.3", "-W", "1", to]).output();
        self.ns.run(ping).unwrap().expect("iputils-ping is needed").status.success()
    }

    pub(crate) fn sysctl(&self, key: &str) -> String {
        loden_netlink::sysctl::read_in(&self.ns, key).unwrap().unwrap_or_default()
    }

    pub(crate) fn link_names(&self) -> BTreeSet<String> {
        self.ip_json(&["link"])
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = NetNs::delete_named(&self.name);
    }
}

/// What a plugin answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        assert!(self.success, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn silent(&self) {
        assert!(self.success && self.stdout.is_empty(), "{self:?}");
    }

    /// The error object: there must be exactly one, and nothing else.
    #[track_caller]
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.success, "{self:?}");
        let value: Value =
            serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        let details = value["details"].as_str().map(|details| format!("; {details}")).unwrap_or_default();
        (value["code"].as_u64().unwrap(), format!("{}{details}", value["msg"].as_str().unwrap()))
    }
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) home: Namespace,
    pub(crate) root: TempDir,
}

impl Node {
    /// A node whose plugins are hard links to the binary under test.
    pub(crate) fn new() -> Self {
        assert!(
            Path::new(GO).join("bridge").exists(),
            "apt-get install containernetworking-plugins: {GO}/bridge is missing"
        );
        let node = Self { home: Namespace::new("node"), root: tempfile::tempdir().unwrap() };
        fs::create_dir(node.root.path().join("bin")).unwrap();
        let binary = node.root.path().join("bin/loden-cni");
        copy_program(&binary_under_test(), &binary);
        for name in loden_cni_plugins::names() {
            fs::hard_link(&binary, node.root.path().join("bin").join(name)).unwrap();
        }
        node
    }

    pub(crate) fn ours(&self) -> String {
        self.path("bin")
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.root.path().join(name), text).unwrap();
        self.path(name)
    }

    /// Runs a plugin by the directories of `CNI_PATH`; the first one must hold it.
    pub(crate) fn call(
        &self,
        path: &str,
        plugin: &str,
        command: &str,
        attachment: &Attachment<'_>,
        config: &Value,
    ) -> Answer {
        self.call_with(path, plugin, command, attachment, &config.to_string(), &[])
    }

    pub(crate) fn call_with(
        &self,
        path: &str,
        plugin: &str,
        command: &str,
        attachment: &Attachment<'_>,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Answer {
        let output = self
            .home
            .ns
            .run(|| self.spawn(path, plugin, command, attachment, config, environment).wait_with_output());
        let output = output.unwrap().unwrap();
        Answer {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts one of our plugins and kills it after a while; says whether it was still running.
    pub(crate) fn kill_after(
        &self,
        after: Duration,
        plugin: &str,
        command: &str,
        attachment: &Attachment<'_>,
        config: &Value,
    ) -> bool {
        let run = || {
            let mut child = self.spawn(&self.ours(), plugin, command, attachment, &config.to_string(), &[]);
            std::thread::sleep(after);
            child.kill().unwrap();
            child.wait().unwrap()
        };
        self.home.ns.run(run).unwrap().code().is_none()
    }

    /// Starts a plugin in the calling thread's namespace.
    fn spawn(
        &self,
        path: &str,
        plugin: &str,
        command: &str,
        attachment: &Attachment<'_>,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Child {
        let program = path.split(':').map(|dir| Path::new(dir).join(plugin)).find(|path| path.is_file());
        let program = program.unwrap_or_else(|| panic!("no {plugin} in {path}"));
        let mut command_line = Command::new(&program);
        command_line
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", attachment.container)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", attachment.ifname)
            .env("CNI_PATH", path)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = None;
        // Another test's child may for a moment hold the file open that a script was written through.
        let started = wait_until(|| match command_line.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => false,
            spawned => {
                child = Some(spawned.unwrap());
                true
            }
        });
        let mut child = child.filter(|_| started).expect("the plugin's file stays busy");
        // A plugin that refuses its environment does not read its configuration.
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        child
    }

    /// Every file below the node's `state` directory, without what is meant to stay.
    pub(crate) fn residue(&self) -> Vec<String> {
        let mut left = Vec::new();
        walk(&self.root.path().join("state"), &mut left);
        left.retain(|path| {
            let name = Path::new(path).file_name().unwrap().to_str().unwrap();
            // An index entry that leads to a reservation goes with it; one that leads nowhere is left over.
            let leads = path.contains("/.loden-index/") && Path::new(path).exists();
            name != "lock" && !name.starts_with("last_reserved_ip.") && !leads
        });
        left
    }

    /// Nothing of any container is left on the node.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.residue(), Vec::<String>::new());
        // The kernel takes a removed namespace apart at its leisure, and the pairs into it then.
        let links = || -> BTreeSet<String> {
            self.home.link_names().into_iter().filter(|name| name != "lo" && name != "cni0").collect()
        };
        assert!(wait_until(|| links().is_empty()), "links left on the node: {:?}", links());
        let rules = self.home.sh("nft", &["list", "ruleset"]);
        assert!(
            !rules.contains("masquerade comment") && !rules.contains("CNI-"),
            "rules left on the node:\n{rules}"
        );
    }

    /// `bridge` with `host-local` as flannel would configure it, with changes.
    pub(crate) fn bridge_config(&self, changes: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge",
            "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false, "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": self.path("state/networks"),
                "ranges": [[{"subnet": "10.244.1.0/24"}]], "routes": [{"dst": "10.244.0.0/16"}],
            },
        });
        merge(&mut config, changes);
        config
    }

    /// flannel's configuration with the node's own directories, and a subnet file.
    pub(crate) fn flannel_config(&self, subnet_env: &str) -> Value {
        let file = self.write("subnet.env", subnet_env);
        json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
            "subnetFile": file, "dataDir": self.path("state/flannel"),
            "ipam": {"dataDir": self.path("state/networks")},
            "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        })
    }

    /// What the kernel holds for an attachment, without what is random, once its links know that they have a carrier: they are told a
    /// moment after they have it.
    pub(crate) fn picture(&self, pod: &Namespace) -> Value {
        let up = |namespace: &Namespace| {
            let links = namespace.ip_json(&["link"]);
            links
                .as_array()
                .unwrap()
                .iter()
                .filter(|link| link["ifname"] != "lo")
                .all(|link| link["operstate"] == "UP")
        };
        wait_until(|| up(&self.home) && up(pod));
        let links = self.home.ip_json(&["link"]);
        let links = links.as_array().unwrap();
        let bridge = links.iter().find(|link| link["ifname"] == "cni0").expect("there is a bridge");
        let ports: Vec<Value> = links
            .iter()
            .filter(|link| link["linkinfo"]["info_kind"] == "veth")
            .map(|link| {
                let port = &link["linkinfo"]["info_slave_data"];
                json!({
                    "mtu": link["mtu"], "flags": link["flags"], "master": link["master"], "state": link["operstate"],
                    "hairpin": port["hairpin"], "isolated": port["isolated"], "forwarding": port["state"],
                })
            })
            .collect();
        let eth0 = &pod.ip_json(&["link", "show", "eth0"])[0];
        json!({
            "bridge": {
                "kind": bridge["linkinfo"]["info_kind"], "mtu": bridge["mtu"], "flags": bridge["flags"],
                "vlans": bridge["linkinfo"]["info_data"]["vlan_filtering"], "addresses": addresses(&self.home, "cni0"),
            },
            "ports": ports,
            "eth0": {"mtu": eth0["mtu"], "flags": eth0["flags"], "kind": eth0["linkinfo"]["info_kind"], "addresses": addresses(pod, "eth0")},
            "routes": [routes(pod, "-4"), routes(pod, "-6")],
            "sysctls": {
                "forward": self.home.sysctl("net/ipv4/ip_forward"),
                "forward6": self.home.sysctl("net/ipv6/conf/all/forwarding"),
                "accept_ra": self.home.sysctl("net/ipv6/conf/cni0/accept_ra"),
                "arp_notify": pod.sysctl("net/ipv4/conf/eth0/arp_notify"),
                "accept_dad": pod.sysctl("net/ipv6/conf/eth0/accept_dad"),
                "disable_ipv6": pod.sysctl("net/ipv6/conf/eth0/disable_ipv6"),
            },
        })
    }
}

/// Which container's which link.
#[derive(Debug, Clone)]
pub(crate) struct Attachment<'a> {
    pub(crate) container: &'a str,
    pub(crate) ifname: &'a str,
    pub(crate) netns: String,
}

impl<'a> Attachment<'a> {
    pub(crate) fn new(container: &'a str, pod: &Namespace) -> Self {
        Self { container, ifname: "eth0", netns: pod.path() }
    }
}

/// Copies a program that is run next, by a program: a file that this process has open for writing cannot be run as long as another
/// test's child holds it, which inherits it until its own program starts.
pub(crate) fn copy_program(from: &Path, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "copy {} to {}", from.display(), to.display());
}

/// Puts the keys of `changes` into `config`; `null` removes one.
pub(crate) fn merge(config: &mut Value, changes: Value) {
    match changes {
        Value::Object(changes) => {
            for (key, value) in changes {
                if value.is_null() {
                    config.as_object_mut().unwrap().remove(&key);
                } else if value.is_object() && config[&key].is_object() {
                    merge(&mut config[&key], value);
                } else {
                    config[&key] = value;
                }
            }
        }
        other => *config = other,
    }
}

/// The configuration with the result that CHECK and DEL get.
pub(crate) fn with_result(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

/// A result without what is random, in one shape.
pub(crate) fn plain(result: &Value) -> Value {
    let mut result = result.clone();
    for interface in result["interfaces"].as_array_mut().into_iter().flatten() {
        assert_eq!(interface["mac"].as_str().map(str::len), Some(17), "{interface}");
        interface["mac"] = json!("random");
        if interface["name"].as_str().unwrap().starts_with("veth") {
            assert_eq!(interface["name"].as_str().map(str::len), Some(12));
            interface["name"] = json!("veth");
        }
    }
    // The Go plugins of Debian print an empty `dns` in every version.
    if result["dns"] == json!({}) {
        result.as_object_mut().unwrap().remove("dns");
    }
    result
}

fn addresses(namespace: &Namespace, link: &str) -> Vec<Value> {
    let shown = namespace.ip_json(&["addr", "show", link]);
    let mut list: Vec<Value> = shown[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|address| address["scope"] != "link")
        .map(|address| {
            json!({
                "local": address["local"], "prefix": address["prefixlen"], "broadcast": address["broadcast"],
                "scope": address["scope"], "label": address["label"],
            })
        })
        .collect();
    list.sort_by_key(Value::to_string);
    list
}

fn routes(namespace: &Namespace, family: &str) -> Vec<Value> {
    let shown = namespace.ip_json(&[family, "route", "show", "table", "all"]);
    let mut list: Vec<Value> = shown
        .as_array()
        .unwrap()
        .iter()
        .filter(|route| route["dev"] == "eth0" && route["table"] != "local")
        .filter(|route| !route["dst"].as_str().unwrap().starts_with("fe80") && route["dst"] != "ff00::/8")
        .map(|route| {
            json!({
                "dst": route["dst"], "gateway": route["gateway"], "protocol": route["protocol"], "scope": route["scope"],
                "metric": route["metric"], "table": route["table"], "type": route["type"],
            })
        })
        .collect();
    list.sort_by_key(Value::to_string);
    list
}

fn walk(directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path.to_str().unwrap().to_owned());
        }
    }
}

/// Whether the condition comes true before a generous deadline.
pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A tmpfs that goes with the value.
#[derive(Debug)]
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(path: &str, options: &str) -> Self {
        fs::create_dir_all(path).unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs", path]).status().unwrap();
        assert!(status.success(), "cannot mount a tmpfs on {path}: run as root");
        Self(path.into())
    }

    pub(crate) fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    pub(crate) fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}
