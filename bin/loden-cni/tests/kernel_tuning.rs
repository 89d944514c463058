//! `tuning` on real links: every attribute and parameter there and back, beside Debian's Go plugin.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, with_result};

/// A container with a link that some plugin before has made: a pair whose other end is on the node.
struct Container {
    pod: Namespace,
    id: &'static str,
}

impl Container {
    fn new(id: &'static str) -> Self {
        let pod = Namespace::new("pod");
        pod.sh("ip", &["link", "add", "eth0", "address", MAC, "type", "veth", "peer", "name", "far"]);
        pod.sh("ip", &["link", "set", "eth0", "up"]);
        Self { pod, id }
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::new(self.id, &self.pod)
    }

    fn link(&self) -> Value {
        self.pod.ip_json(&["link", "show", "eth0"])[0].clone()
    }

    /// What tuning can change about the link.
    fn attributes(&self) -> Value {
        let link = self.link();
        let flags = link["flags"].as_array().unwrap();
        let has = |flag: &str| flags.iter().any(|present| present == flag);
        json!([link["address"], link["mtu"], has("PROMISC"), has("ALLMULTI"), link["txqlen"]])
    }
}

const MAC: &str = "02:00:00:00:00:01";

fn previous(container: &Container) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "far"}, {"name": "eth0", "mac": MAC, "sandbox": container.pod.path()}],
        "ips": [{"interface": 1, "address": "10.9.0.2/24"}],
        "dns": {"nameservers": ["10.9.0.1"]},
    })
}

fn config(node: &Node, container: &Container, keys: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "tuning", "dataDir": node.path("state/tuning"),
        "prevResult": previous(container),
    });
    support::merge(&mut config, keys);
    config
}

#[test]
fn attributes_come_and_go_and_the_rest_of_the_result_stays() {
    let node = Node::new();
    let container = Container::new("c1");
    let before = container.attributes();
    let config = config(
        &node,
        &container,
        json!({"mac": "02:00:00:00:00:0A", "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 7,
            "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1", "net.core.somaxconn": "99"},
            "args": {"cni": {"sysctl": {"net.core.somaxconn": "100"}}}}),
    );
    let result = node.call(&node.ours(), "tuning", "ADD", &container.attachment(), &config).result();
    let mut expected = previous(&container);
    expected["interfaces"][1]["mac"] = json!("02:00:00:00:00:0a");
    assert_eq!(result, expected);
    assert_eq!(container.attributes(), json!(["02:00:00:00:00:0a", 1400, true, true, 7]));
    assert_eq!(container.pod.sysctl("net/ipv4/conf/eth0/log_martians"), "1");
    assert_eq!(container.pod.sysctl("net/core/somaxconn"), "100");
    assert_ne!(node.home.sysctl("net/core/somaxconn"), "100", "the node's own parameter is another one");

    let file = node.path("state/tuning/c1_eth0.json");
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        format!(
            "{{\n \"mac\": \"{MAC}\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": false,\n \"txQLen\": 1000\n}}"
        )
    );
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&file), mode(&node.path("state/tuning"))), (0o600, 0o600));

    let checked = with_result(&config, &result);
    node.call(&node.ours(), "tuning", "CHECK", &container.attachment(), &checked).silent();
    for _ in 0..2 {
        node.call(&node.ours(), "tuning", "DEL", &container.attachment(), &checked).silent();
        assert_eq!(container.attributes(), before);
        assert!(node.residue().is_empty());
    }
}

#[test]
fn check_names_every_difference() {
    let node = Node::new();
    let container = Container::new("c1");
    let wanted = json!({"mac": "02:00:00:00:00:0a", "mtu": 1400, "allmulti": true, "txQLen": 7,
        "sysctl": {"net.ipv4.ip_local_port_range": "20000 30000"}});
    let config = config(&node, &container, wanted);
    let result = node.call(&node.ours(), "tuning", "ADD", &container.attachment(), &config).result();
    let checked = with_result(&config, &result);
    node.call(&node.ours(), "tuning", "CHECK", &container.attachment(), &checked).silent();
    let ip = |words: &[&str]| container.pod.sh("ip", words);
    let cases: [(&[&str], &[&str], &str); 5] = [
        (
            &["mtu", "1300"],
            &["mtu", "1400"],
            "Error: Tuning configured MTU of eth0 is 1400, current value is 1300",
        ),
        (
            &["address", MAC],
            &["address", "02:00:00:00:00:0a"],
            "Error: Tuning configured Ethernet of eth0 is 02:00:00:00:00:0a, current value is 02:00:00:00:00:01",
        ),
        (
            &["promisc", "on"],
            &["promisc", "off"],
            "Error: Tuning link eth0 configured promisc is false, current value is 1",
        ),
        (
            &["allmulticast", "off"],
            &["allmulticast", "on"],
            "Error: Tuning configured all-multicast mode of eth0 is true, current value is false",
        ),
        (
            &["txqueuelen", "8"],
            &["txqueuelen", "7"],
            "Error: Tuning configured Transmit Queue Length of eth0 is 7, current value is 8",
        ),
    ];
    for (change, back, text) in cases {
        ip(&[&["link", "set", "eth0"], change].concat());
        let answer = node.call(&node.ours(), "tuning", "CHECK", &container.attachment(), &checked);
        assert_eq!(answer.error(), (999, text.to_owned()));
        ip(&[&["link", "set", "eth0"], back].concat());
    }
    container.pod.sh("sysctl", &["-qw", "net.ipv4.ip_local_port_range=20000 30001"]);
    let (_, text) = node.call(&node.ours(), "tuning", "CHECK", &container.attachment(), &checked).error();
    assert_eq!(
        text,
        "Error: Tuning configured value of /proc/sys/net/ipv4/ip_local_port_range is 20000 30000, current value is 20000\t30001"
    );
    ip(&["link", "delete", "eth0"]);
    container.pod.sh("sysctl", &["-qw", "net.ipv4.ip_local_port_range=20000 30000"]);
    let (_, text) = node.call(&node.ours(), "tuning", "CHECK", &container.attachment(), &checked).error();
    assert_eq!(text, "Cannot find container link eth0");
    node.call(&node.ours(), "tuning", "DEL", &container.attachment(), &checked).silent();
    assert!(node.residue().is_empty());
}

#[test]
fn a_failed_add_takes_everything_back() {
    let node = Node::new();
    let container = Container::new("c1");
    let before = container.attributes();
    let somaxconn = container.pod.sysctl("net/core/somaxconn");
    let add = |keys: Value| {
        let config = config(&node, &container, keys);
        node.call(&node.ours(), "tuning", "ADD", &container.attachment(), &config).error().1
    };
    let sysctls = |last: Value| {
        let mut keys = json!({"sysctl": {"net.core.somaxconn": "77"}});
        support::merge(&mut keys, last);
        keys
    };
    let text = add(sysctls(json!({"sysctl": {"net.ipv4.no_such_thing": "1"}})));
    assert!(text.contains("/proc/sys/net/ipv4/no_such_thing"), "{text}");
    let text = add(sysctls(json!({"sysctl": {"net.ipv4.ip_forward": "maybe"}})));
    assert!(text.contains("write \"maybe\"") && text.contains("ip_forward"), "{text}");
    assert_eq!(
        add(json!({"sysctl": {"kernel.hostname": "x"}})),
        "invalid net sysctl key: \"kernel.hostname\""
    );
    // The address is set, then the MTU is refused.
    let text = add(sysctls(json!({"mac": "02:00:00:00:00:0a", "promisc": true, "mtu": 70000})));
    assert!(text.contains("mtu 70000") && !text.contains("undoing"), "{text}");
    assert_eq!(container.attributes(), before);
    assert_eq!(container.pod.sysctl("net/core/somaxconn"), somaxconn);
    assert!(node.residue().is_empty());

    let mut other = container.attachment();
    other.ifname = "eth9";
    let config = config(&node, &container, json!({"mtu": 1400}));
    let (_, text) = node.call(&node.ours(), "tuning", "ADD", &other, &config).error();
    assert!(text.starts_with("failed to get \"eth9\": "), "{text}");
    let alone = json!({"cniVersion": "1.0.0", "name": "net", "type": "tuning"});
    let answer = node.call(&node.ours(), "tuning", "ADD", &container.attachment(), &alone);
    assert_eq!(answer.error(), (999, "Required prevResult missing".to_owned()));
}

#[test]
fn del_succeeds_and_leaves_no_file_whatever_is_gone() {
    let node = Node::new();
    for broken in ["gone", "link", "file", "config"] {
        let container = Container::new("c1");
        let config = config(&node, &container, json!({"mtu": 1400}));
        node.call(&node.ours(), "tuning", "ADD", &container.attachment(), &config).result();
        let mut attachment = container.attachment();
        let mut config = config;
        match broken {
            "gone" => attachment.netns = String::new(),
            "link" => {
                container.pod.sh("ip", &["link", "delete", "eth0"]);
            }
            "file" => fs::write(node.path("state/tuning/c1_eth0.json"), "{torn").unwrap(),
            _ => config["mtu"] = json!("wrong"),
        }
        node.call(&node.ours(), "tuning", "DEL", &attachment, &config).silent();
        assert!(node.residue().is_empty(), "{broken}");
    }
}

#[test]
fn two_instances_in_one_chain_restore_what_the_first_found() {
    let node = Node::new();
    let container = Container::new("c1");
    let before = container.attributes();
    let first = config(&node, &container, json!({"mtu": 1400, "mac": "02:00:00:00:00:0a"}));
    let second = config(&node, &container, json!({"mtu": 1300, "txQLen": 5}));
    for config in [&first, &second] {
        node.call(&node.ours(), "tuning", "ADD", &container.attachment(), config).result();
    }
    for config in [&second, &first] {
        node.call(&node.ours(), "tuning", "DEL", &container.attachment(), config).silent();
    }
    assert_eq!(container.attributes(), before);
    assert!(node.residue().is_empty());
}

#[test]
fn gc_takes_the_files_of_its_network_only() {
    let node = Node::new();
    let containers = [Container::new("c1"), Container::new("c2")];
    for container in &containers {
        let config = config(&node, container, json!({"mtu": 1400}));
        node.call(&node.ours(), "tuning", "ADD", &container.attachment(), &config).result();
    }
    let other = Container::new("other");
    let mut elsewhere = config(&node, &other, json!({"mtu": 1400}));
    elsewhere["name"] = json!("elsewhere");
    node.call(&node.ours(), "tuning", "ADD", &other.attachment(), &elsewhere).result();
    let go = Container::new("go");
    node.call(GO, "tuning", "ADD", &go.attachment(), &config(&node, &go, json!({"mtu": 1400}))).result();

    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let gc = json!({"cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": node.path("state/tuning"),
        "cni.dev/valid-attachments": valid});
    for _ in 0..2 {
        node.call(&node.ours(), "tuning", "GC", &Attachment::new("", &go.pod), &gc).silent();
        let mut left: Vec<_> =
            node.residue().iter().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
        left.sort();
        assert_eq!(left, ["c1_eth0.json", "go_eth0.json", "other_eth0.json"]);
    }
    let mut without = gc;
    without.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    let (code, text) =
        node.call(&node.ours(), "tuning", "GC", &Attachment::new("", &go.pod), &without).error();
    assert!(code == 7 && text.contains("nothing was removed"), "{text}");
}

/// In a mount namespace of its own, the machine's `/etc` is not touched.
#[test]
fn the_administrators_list_decides() {
    let node = Node::new();
    let container = Container::new("c1");
    let run = |list: &str, key: &str| {
        let script = format!(
            "mount -t tmpfs tmpfs /etc && mkdir -p /etc/cni/tuning && printf '%s' \"$LIST\" >/etc/cni/tuning/allowlist.conf && exec {}/tuning",
            node.ours()
        );
        let stdin =
            node.write("stdin.json", &config(&node, &container, json!({"sysctl": {key: "1"}})).to_string());
        let output = node.home.ns.run(|| {
            Command::new("unshare")
                .args(["-m", "sh", "-c", &script])
                .env("LIST", list)
                .env("CNI_COMMAND", "ADD")
                .env("CNI_CONTAINERID", "c1")
                .env("CNI_NETNS", container.pod.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", node.ours())
                .stdin(fs::File::open(stdin).unwrap())
                .output()
        });
        let output = output.unwrap().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let list = "^net.ipv4.conf.IFNAME.(log_martians|arp_filter)$\nnet.core\n";
    let (success, text) = run(list, "net.ipv4.conf.IFNAME.log_martians");
    assert!(success, "{text}");
    assert_eq!(container.pod.sysctl("net/ipv4/conf/eth0/log_martians"), "1");
    let (success, text) = run(list, "net.ipv4.ip_forward");
    assert!(
        !success
            && text.contains(
                "Sysctl net.ipv4.ip_forward is not allowed. Only the following sysctls are allowed: \
                 [^net.ipv4.conf.IFNAME.(log_martians|arp_filter)$ net.core]"
            ),
        "{text}"
    );
    assert_eq!(container.pod.sysctl("net/ipv4/ip_forward"), "0");
    let (success, text) = run("(", "net.ipv4.ip_forward");
    assert!(!success && text.contains("line \\\"(\\\""), "{text}");
}

#[test]
fn go_and_ours_undo_and_check_each_other() {
    let node = Node::new();
    let ours = node.ours();
    let mut files = Vec::new();
    for (maker, other) in [(ours.as_str(), GO), (GO, ours.as_str())] {
        let container = Container::new("c1");
        let before = container.attributes();
        let config = config(
            &node,
            &container,
            json!({"mac": "02:00:00:00:00:0a", "mtu": 1400, "promisc": true, "allmulti": true,
                "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}}),
        );
        let result = node.call(maker, "tuning", "ADD", &container.attachment(), &config).result();
        assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:0a");
        assert_eq!(container.attributes(), json!(["02:00:00:00:00:0a", 1400, true, true, 1000]));
        files.push(fs::read_to_string(node.path("state/tuning/c1_eth0.json")).unwrap());
        let checked = with_result(&config, &result);
        node.call(other, "tuning", "CHECK", &container.attachment(), &checked).silent();
        node.call(other, "tuning", "DEL", &container.attachment(), &checked).silent();
        assert_eq!(container.attributes(), before, "ADD by {maker}, DEL by {other}");
        assert!(node.residue().is_empty());
        assert!(Path::new(&node.path("state/tuning")).exists());
    }
    assert_eq!(files[0], files[1]);
}
