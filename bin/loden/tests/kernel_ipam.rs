//! `loden ipam` beside namespaces, caches and files made for the purpose.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use loden_netlink::NetNs;
use serde_json::{Value, json};

/// Goes with its namespace.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = NetNs::delete_named(&self.0);
    }
}

/// Where `loden ipam` looks for files.
fn directories(root: &Path) -> Vec<String> {
    let options = [
        ("data-dir", "networks"),
        ("cache-dir", "results"),
        ("flannel-dir", "flannel"),
        ("tuning-dir", "tuning"),
    ];
    options.iter().map(|(option, name)| format!("--{option}={}", root.join(name).display())).collect()
}

#[test]
fn only_what_nobody_has_is_freed() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("networks/cbr0")).unwrap();
    fs::create_dir_all(at("results")).unwrap();
    let old = SystemTime::now() - Duration::from_hours(1);
    let reserve = |address: &str, content: &str, modified: SystemTime| {
        let path = at("networks/cbr0").join(address);
        fs::write(&path, content).unwrap();
        fs::File::open(&path).unwrap().set_modified(modified).unwrap();
    };
    // Addresses of a documentation network, so that nothing else on this machine has them.
    reserve("203.0.113.2", "alive\r\neth0", old);
    reserve("203.0.113.3", "cached\r\neth0", old);
    reserve("203.0.113.4", "young\r\neth0", SystemTime::now());
    reserve("203.0.113.5", "dead\r\neth0", old);
    reserve("203.0.113.6", "dead", old);
    reserve("203.0.113.7", "", old);
    reserve("203.0.113.8", "the printer", old);
    fs::write(at("networks/cbr0/last_reserved_ip.0"), "203.0.113.8").unwrap();
    fs::write(at("results/cbr0-cached-eth0"), "{}").unwrap();

    let namespace = Namespace(format!("lipam-{}", std::process::id()));
    NetNs::create_named(&namespace.0).unwrap();
    let ip = |args: &[&str]| {
        assert!(Command::new("ip").args(["-n", &namespace.0]).args(args).status().unwrap().success())
    };
    ip(&["addr", "add", "203.0.113.2/24", "dev", "lo"]);

    let run = |words: &[&str]| -> Output {
        // In a process namespace of its own: of this machine's other processes it may not be allowed to see everything.
        // The links and rules of a node of its own, which are none.
        Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--mount-proc"])
            .args([env!("CARGO_BIN_EXE_loden"), "ipam"])
            .args(words)
            .args(directories(root.path()))
            .output()
            .unwrap()
    };
    let files = || fs::read_dir(at("networks/cbr0")).unwrap().count();
    let before = files();
    let listed = run(&["list", "-o", "json"]);
    assert!(listed.status.success(), "{listed:?}");
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let states: BTreeMap<&str, &str> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|line| (line["what"].as_str().unwrap(), line["state"].as_str().unwrap()))
        .collect();
    let wanted = ["live", "known", "new", "leaked", "leaked", "torn", "unknown"];
    assert_eq!(states.values().copied().collect::<Vec<_>>(), wanted, "{listed}");

    let check = run(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&check.stdout).lines().count(), 4, "{check:?}");
    let dry = run(&["gc"]);
    assert!(
        dry.status.success() && String::from_utf8_lossy(&dry.stderr).contains("would remove 3 of 7"),
        "{dry:?}"
    );
    assert_eq!(files(), before, "nothing was touched so far");

    let done = run(&["gc", "--apply"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("removed 3 of 7"), "{done:?}");
    for (address, stays) in
        [("2", true), ("3", true), ("4", true), ("5", false), ("6", false), ("7", false), ("8", true)]
    {
        assert_eq!(at(&format!("networks/cbr0/203.0.113.{address}")).exists(), stays, "{address}");
    }
    assert_eq!(run(&["check"]).status.code(), Some(0));
    // Without its namespace and its grace the rest is nobody's, save what the runtime knows and what no plugin wrote.
    drop(namespace);
    let late = run(&["gc", "--apply", "--grace", "0"]);
    assert!(String::from_utf8_lossy(&late.stderr).contains("removed 2 of 4"), "{late:?}");
    assert!(!run(&["list", "--network", "absent"]).status.success());
}

/// A node of its own with the plugins, whose files are all in one directory.
struct Node {
    root: tempfile::TempDir,
    name: Namespace,
    home: NetNs,
}

impl Node {
    fn new() -> Self {
        let name = Namespace(format!("lipam-{}-node", std::process::id()));
        let home = NetNs::create_named(&name.0).unwrap();
        let root = tempfile::tempdir().unwrap();
        let binary = Path::new(env!("CARGO_BIN_EXE_loden")).with_file_name("loden-cni");
        assert!(binary.exists(), "cargo build -p loden-cni: {} is missing", binary.display());
        fs::create_dir(root.path().join("bin")).unwrap();
        for plugin in ["flannel", "bridge", "host-local", "portmap", "bandwidth", "tuning"] {
            symlink(&binary, root.path().join("bin").join(plugin)).unwrap();
        }
        let subnets = "FLANNEL_NETWORK=198.51.100.0/24\nFLANNEL_SUBNET=198.51.100.1/25\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        fs::write(root.path().join("subnet.env"), subnets).unwrap();
        Self { root, name, home }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn add(&self, plugin: &str, container: &str, namespace: &str, ifname: &str, config: &Value) -> Value {
        let run = || -> Output {
            let mut child = Command::new(self.at("bin").join(plugin))
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", format!("/run/netns/{namespace}"))
                .env("CNI_IFNAME", ifname)
                .env("CNI_PATH", self.at("bin"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let output = self.home.run(run).unwrap();
        assert!(output.status.success(), "{plugin}: {}", String::from_utf8_lossy(&output.stdout));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One thing of each kind for a container.
    fn attach(&self, container: &str, namespace: &str, port: u16) {
        let chained = |plugin: &str, previous: &Value, keys: Value| {
            let mut config = json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": plugin});
            let object = config.as_object_mut().unwrap();
            object.extend(keys.as_object().unwrap().clone());
            object.insert("prevResult".to_owned(), previous.clone());
            self.add(plugin, container, namespace, "eth0", &config)
        };
        let flannel = json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "flannel",
            "subnetFile": self.at("subnet.env"), "dataDir": self.at("flannel"),
            "ipam": {"dataDir": self.at("networks")},
            "delegate": {"bridge": "br-one", "macspoofchk": true, "ipMasq": true, "ipMasqBackend": "nftables"}});
        let result = self.add("flannel", container, namespace, "eth0", &flannel);
        let mapping =
            |port: u16| json!({"portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "udp"}]});
        chained("portmap", &result, json!({"backend": "nftables", "runtimeConfig": mapping(port)}));
        chained("portmap", &result, json!({"backend": "iptables", "runtimeConfig": mapping(port + 1)}));
        chained("bandwidth", &result, json!({"egressRate": 1_000_000, "egressBurst": 1_000_000}));
        chained("tuning", &result, json!({"dataDir": self.at("tuning"), "mtu": 1400}));
        let second = json!({"cniVersion": "1.0.0", "name": "second", "type": "bridge", "bridge": "br-two",
            "ipMasq": true, "ipMasqBackend": "iptables",
            "ipam": {"type": "host-local", "subnet": "198.51.100.128/25", "dataDir": self.at("networks")}});
        self.add("bridge", container, namespace, "eth1", &second);
    }

    fn ipam(&self, words: &[&str]) -> Output {
        let run = || {
            Command::new("unshare")
                .args(["--pid", "--fork", "--mount-proc"])
                .args([env!("CARGO_BIN_EXE_loden"), "ipam"])
                .args(words)
                .args(["--grace", "0"])
                .args(directories(self.root.path()))
                .output()
                .unwrap()
        };
        self.home.run(run).unwrap()
    }

    /// Kind, name, container and state of everything, in order.
    fn listed(&self) -> Vec<[String; 4]> {
        let output = self.ipam(&["list", "-o", "json"]);
        assert!(output.status.success(), "{output:?}");
        let lines: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let row = |line: &Value| ["kind", "what", "container", "state"].map(|key| text(&line[key]));
        let mut rows: Vec<_> = lines.as_array().unwrap().iter().map(row).collect();
        rows.sort();
        rows
    }
}

/// How many things of each kind a container has in [`Node::attach`].
const EACH: [(&str, usize); 8] = [
    ("address", 2),
    ("backup", 1),
    ("masq", 2),
    ("port", 2),
    ("portmap", 2),
    ("shaper", 1),
    ("spoof", 1),
    ("stash", 1),
];

#[test]
fn whatever_a_forgotten_container_had_is_found_and_goes() {
    let node = Node::new();
    let (alive, dead) = ("a".repeat(64), "d".repeat(64));
    let names = ["alive", "dead"].map(|what| Namespace(format!("lipam-{}-{what}", std::process::id())));
    // A handle keeps a namespace, and the pairs with an end in it, when its name is gone.
    let [_alive_netns, dead_netns] = names.each_ref().map(|name| NetNs::create_named(&name.0).unwrap());
    let [alive_name, dead_name] = names;
    node.attach(&alive, &alive_name.0, 4000);
    node.attach(&dead, &dead_name.0, 5000);

    let kinds = |rows: &[[String; 4]], container: &str| -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for row in rows.iter().filter(|row| row[2] == container || (container == alive && row[2] == "-")) {
            *kinds.entry(row[0].clone()).or_default() += 1;
        }
        kinds
    };
    let before = node.listed();
    assert!(before.iter().all(|row| row[3] == "live"), "{before:#?}");
    drop(dead_name);
    let forgotten = node.listed();
    let is_dead = |row: &&[String; 4]| row[3] == "leaked";
    let leaked: Vec<[String; 4]> = forgotten.iter().filter(is_dead).cloned().collect();
    let each: BTreeMap<String, usize> =
        EACH.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
    let mut of_dead = kinds(&leaked, &dead);
    // A shaping link does not tell its container.
    *of_dead.entry("shaper".to_owned()).or_default() +=
        leaked.iter().filter(|row| row[0] == "shaper" && row[2] == "-").count();
    assert_eq!(of_dead, each, "{forgotten:#?}");
    assert_eq!(leaked.len(), 12);
    let rest: Vec<[String; 4]> = forgotten.iter().filter(|row| !is_dead(row)).cloned().collect();
    assert_eq!(kinds(&rest, &alive), each, "{forgotten:#?}");

    let dry = node.ipam(&["gc"]);
    assert!(String::from_utf8_lossy(&dry.stderr).contains("would remove 12 of 24 things"), "{dry:?}");
    assert_eq!(node.listed(), forgotten, "a dry run changes nothing");
    assert_eq!(node.ipam(&["check"]).status.code(), Some(1));
    let done = node.ipam(&["gc", "--apply"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("removed 12 of 24 things"), "{done:?}");
    assert_eq!(node.listed(), rest);
    assert_eq!(node.ipam(&["check"]).status.code(), Some(0));
    let ping = Command::new("ip")
        .args(["netns", "exec", &alive_name.0, "ping", "-c", "1", "-W", "5", "198.51.100.1"])
        .output()
        .unwrap();
    assert!(ping.status.success(), "the living one is not touched: {ping:?}");
    drop((dead_netns, node.name));
}

#[test]
fn what_cannot_be_looked_at_makes_nobody_dead() {
    let root = tempfile::tempdir().unwrap();
    let network = root.path().join("networks/cbr0");
    fs::create_dir_all(&network).unwrap();
    fs::write(network.join("203.0.113.70"), "dead\r\neth0").unwrap();
    // Listing this cache fails as for want of a right.
    fs::write(root.path().join("results"), "no directory").unwrap();
    let run = |words: &[&str]| {
        Command::new("unshare")
            .args(["--net", "--pid", "--fork", "--mount-proc"])
            .args([env!("CARGO_BIN_EXE_loden"), "ipam"])
            .args(words)
            .args(["--grace", "0"])
            .args(directories(root.path()))
            .output()
            .unwrap()
    };
    let said = |output: &Output, text: &str| String::from_utf8_lossy(&output.stderr).contains(text);
    let listed = run(&["list"]);
    assert!(listed.status.success() && said(&listed, "could not be looked at: cannot list"), "{listed:?}");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("unknown"), "{listed:?}");
    assert_eq!(run(&["check"]).status.code(), Some(2));
    for words in [&["gc"][..], &["gc", "--apply"]] {
        let refused = run(words);
        assert!(!refused.status.success() && said(&refused, "nothing was removed"), "{refused:?}");
    }
    assert!(network.join("203.0.113.70").exists());
    fs::remove_file(root.path().join("results")).unwrap();
    assert!(run(&["gc", "--apply"]).status.success());
    assert!(!network.join("203.0.113.70").exists());
}
