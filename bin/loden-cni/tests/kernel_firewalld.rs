//! `firewall` with Debian's firewalld, which runs in the node's namespace on a bus of its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::host::Host;
use support::{Answer, Attachment, GO, merge, wait_until};

/// A node with a bus, and with firewalld where it was started.
struct Node {
    host: Host,
    bus: Child,
    daemon: Option<Child>,
}

impl Node {
    fn new() -> Self {
        for (program, package) in [("/usr/bin/dbus-daemon", "dbus"), ("/usr/sbin/firewalld", "firewalld")] {
            assert!(Path::new(program).exists(), "apt-get install {package}: {program} is missing");
        }
        let host = Host::new("nft");
        let everybody =
            r#"<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>"#;
        let text = format!(
            "<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">{everybody}</policy></busconfig>",
            host.node.path("bus")
        );
        let config = host.node.write("bus.conf", &text);
        let bus = Command::new("dbus-daemon")
            .args(["--nofork", "--nopidfile", &format!("--config-file={config}")])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self { host, bus, daemon: None };
        let answers = || UnixStream::connect(node.host.node.path("bus")).is_ok();
        assert!(wait_until(answers), "the bus does not start");
        node
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.host.node.path("bus"))
    }

    fn start_firewalld(&mut self) {
        fs::create_dir_all(self.host.node.path("etc")).unwrap();
        let start = || {
            Command::new("firewalld")
                .args(["--nofork", "--nopid", "--system-config", &self.host.node.path("etc")])
                .args(["--log-file", &self.host.node.path("firewalld.log")])
                .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        };
        self.daemon = Some(self.host.node.home.ns.run(start).unwrap().unwrap());
        let log = || fs::read_to_string(self.host.node.path("firewalld.log")).unwrap_or_default();
        assert!(
            wait_until(|| !self.ask("getSources", &["trusted"]).is_empty()),
            "firewalld does not start: {}",
            log()
        );
    }

    fn stop_firewalld(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let id = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        daemon.wait().unwrap();
    }

    /// Calls a method of firewalld's zones; the words of its answer.
    fn ask(&self, method: &str, arguments: &[&str]) -> String {
        let output = Command::new("dbus-send")
            .args(["--system", "--print-reply=literal", "--dest=org.fedoraproject.FirewallD1"])
            .args(["/org/fedoraproject/FirewallD1", &format!("org.fedoraproject.FirewallD1.zone.{method}")])
            .args(arguments.iter().map(|argument| format!("string:{argument}")))
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn sources(&self, zone: &str) -> String {
        let answer = self.ask("getSources", &[zone]);
        answer.strip_prefix("array [").unwrap().strip_suffix(']').unwrap().trim().to_owned()
    }

    fn call(&self, path: &str, command: &str, config: &Value) -> Answer {
        let programs = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.host.node.path("sbin"));
        let address = self.address();
        let environment = [("PATH", programs.as_str()), ("DBUS_SYSTEM_BUS_ADDRESS", &address)];
        let netns = "/run/netns/there-is-no-such-namespace".to_owned();
        let attachment = Attachment { container: "c1", ifname: "eth0", netns };
        self.host.node.call_with(path, "firewall", command, &attachment, &config.to_string(), &environment)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for child in self.daemon.iter_mut().chain([&mut self.bus]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn config(changes: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "firewall",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.244.1.5/24", "interface": 2}, {"address": "fd00:10:244:1::5/64", "interface": 2}],
        },
    });
    merge(&mut config, changes);
    config
}

const SOURCES: &str = "10.244.1.5/32 fd00:10:244:1::5/128";

#[test]
fn addresses_join_and_leave_the_zone_in_every_pairing_with_the_go_plugin() {
    let mut node = Node::new();
    node.start_firewalld();
    let ours = node.host.node.ours();
    for changes in [json!({"backend": "firewalld"}), json!({"firewalldZone": "internal"})] {
        let zone = changes["firewalldZone"].as_str().unwrap_or("trusted").to_owned();
        let config = config(changes);
        for (adds, deletes) in
            [(GO, GO), (ours.as_str(), ours.as_str()), (ours.as_str(), GO), (GO, ours.as_str())]
        {
            node.call(adds, "ADD", &config).result();
            assert_eq!(node.sources(&zone), SOURCES);
            node.call(&ours, "ADD", &config).result();
            node.call(&ours, "CHECK", &config).silent();
            node.call(GO, "CHECK", &config).silent();
            node.call(deletes, "DEL", &config).silent();
            assert_eq!(node.sources(&zone), "");
            node.call(&ours, "DEL", &config).silent();
            // The Go plugin asks, and does not listen to the answer.
            let (_, message) = node.call(&ours, "CHECK", &config).error();
            assert_eq!(message, format!("failed to find the address 10.244.1.5/32 in {zone} zone"));
        }
    }
    assert!(node.host.rules("filter").is_empty(), "{:#?}", node.host.rules("filter"));
}

#[test]
fn a_refusal_of_firewalld_is_told_and_leaves_nothing() {
    let mut node = Node::new();
    node.start_firewalld();
    let ours = node.host.node.ours();
    let (code, message) = node.call(&ours, "ADD", &config(json!({"firewalldZone": "nowhere"}))).error();
    assert_eq!(code, 999);
    assert!(
        message.contains("failed to add the address 10.244.1.5/32 to nowhere zone")
            && message.contains("INVALID_ZONE"),
        "{message}"
    );
    node.call(&ours, "DEL", &config(json!({"firewalldZone": "nowhere"}))).silent();
    // An address of another zone stays there.
    node.ask("addSource", &["internal", "fd00:10:244:1::5/128"]);
    let (_, message) = node.call(&ours, "ADD", &config(json!({}))).error();
    assert!(message.contains("ZONE_CONFLICT"), "{message}");
    assert_eq!(
        (node.sources("trusted").as_str(), node.sources("internal").as_str()),
        ("", "fd00:10:244:1::5/128")
    );
}

/// What decides the backend is whether firewalld runs, at each command anew; DEL finds what the other one made.
#[test]
fn without_a_choice_it_is_firewalld_where_that_runs() {
    let mut node = Node::new();
    let ours = node.host.node.ours();
    let config = config(json!({"ingressPolicy": "same-bridge"}));
    let addresses =
        |node: &Node| node.host.rules("filter").iter().filter(|rule| rule.contains("10.244.1.5/32")).count();
    node.call(&ours, "ADD", &config).result();
    assert_eq!(addresses(&node), 2);
    node.start_firewalld();
    node.call(&ours, "DEL", &config).silent();
    assert_eq!((addresses(&node), node.sources("trusted").as_str()), (0, ""));

    node.call(&ours, "ADD", &config).result();
    assert_eq!((addresses(&node), node.sources("trusted").as_str()), (0, SOURCES));
    // Bridges are kept apart by iptables whatever the backend.
    let isolation = node.host.rules("filter");
    assert!(
        isolation.iter().any(|rule| rule.starts_with("-A CNI-ISOLATION-STAGE-2 -o cni0")),
        "{isolation:#?}"
    );
    node.stop_firewalld();
    node.call(&ours, "DEL", &config).silent();
}

#[test]
fn a_firewalld_that_was_asked_for_and_does_not_run_is_told() {
    let node = Node::new();
    let ours = node.host.node.ours();
    let wanted =
        config(json!({"backend": "firewalld", "cniVersion": "1.1.0", "prevResult": {"cniVersion": "1.1.0"}}));
    let (code, message) = node.call(&ours, "ADD", &wanted).error();
    assert_eq!(code, 999);
    assert!(message.contains("cannot reach firewalld") && message.contains("it is not running"), "{message}");
    let (code, message) = node.call(&ours, "STATUS", &wanted).error();
    assert_eq!(code, 50);
    assert!(message.contains("it is not running"), "{message}");
    node.call(&ours, "DEL", &wanted).silent();
    let mut either = wanted;
    either.as_object_mut().unwrap().remove("backend");
    node.call(&ours, "STATUS", &either).silent();
    assert!(node.host.rules("filter").is_empty(), "{:#?}", node.host.rules("filter"));
}
