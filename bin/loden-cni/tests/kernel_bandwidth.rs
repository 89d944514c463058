//! `bandwidth` on real pairs: what `tc` shows, what packets meet, and both directions of living beside Debian's Go plugin.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node, wait_until, with_result};

/// A container on a bridge of the node.
struct Container {
    pod: Namespace,
    id: &'static str,
    /// The result of the plugins before.
    result: Value,
    /// The host's end of its pair.
    port: String,
}

impl Container {
    fn new(node: &Node, id: &'static str) -> Self {
        let pod = Namespace::new("pod");
        let bridge = node.bridge_config(json!({}));
        let result = node.call(&node.ours(), "bridge", "ADD", &Attachment::new(id, &pod), &bridge).result();
        let port = result["interfaces"][1]["name"].as_str().unwrap().to_owned();
        Self { pod, id, result, port }
    }

    fn attachment(&self) -> Attachment<'_> {
        Attachment::new(self.id, &self.pod)
    }

    fn address(&self) -> String {
        let address = self.result["ips"][0]["address"].as_str().unwrap();
        address.split('/').next().unwrap().to_owned()
    }

    fn config(&self, keys: Value) -> Value {
        let mut config =
            json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "prevResult": self.result});
        support::merge(&mut config, keys);
        config
    }

    fn remove(&self, node: &Node) {
        let config = with_result(&node.bridge_config(json!({})), &self.result);
        node.call(&node.ours(), "bridge", "DEL", &self.attachment(), &config).silent();
    }
}

fn qdiscs(node: &Node, link: &str) -> Vec<Value> {
    let text = node.home.sh("tc", &["-s", "-j", "qdisc", "show", "dev", link]);
    serde_json::from_str(&text).unwrap()
}

fn token_bucket(node: &Node, link: &str) -> Value {
    let all = qdiscs(node, link);
    all.iter()
        .find(|qdisc| qdisc["kind"] == "tbf")
        .unwrap_or_else(|| panic!("no tbf on {link}: {all:?}"))
        .clone()
}

/// `tc`'s own words about everything on a link, without what counts or is random.
fn shape(node: &Node, link: &str) -> (Vec<String>, Vec<String>) {
    let lines = |words: &[&str]| -> Vec<String> {
        let text = node.home.sh("tc", words).replace(link, "LINK");
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    };
    let mut filters = lines(&["filter", "show", "dev", link, "parent", "ffff:"]);
    // The Go library writes the action twice; the second one never sees a packet.
    if let Some(second) = filters.iter().position(|line| line.starts_with("action order 2")) {
        filters.truncate(second);
    }
    filters.retain(|line| !line.starts_with("index "));
    (lines(&["-d", "qdisc", "show", "dev", link]), filters)
}

const BOTH: [u64; 4] = [1_000_000, 80_000, 2_000_000, 160_000];

fn limits([ingress_rate, ingress_burst, egress_rate, egress_burst]: [u64; 4]) -> Value {
    json!({"ingressRate": ingress_rate, "ingressBurst": ingress_burst,
        "egressRate": egress_rate, "egressBurst": egress_burst})
}

fn ifbs(node: &Node) -> Vec<String> {
    node.home.link_names().into_iter().filter(|name| name.starts_with("bwp")).collect()
}

#[test]
fn tc_shows_what_was_asked_for() {
    let node = Node::new();
    let container = Container::new(&node, "c1");
    let before = shape(&node, &container.port);
    let config = container.config(json!({"runtimeConfig": {"bandwidth": limits(BOTH)}}));
    let result = node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), &config).result();
    let mut interfaces = container.result["interfaces"].as_array().unwrap().clone();
    let ifb = result["interfaces"][3].clone();
    interfaces.push(ifb.clone());
    assert_eq!(result["interfaces"], json!(interfaces));
    assert_eq!(result["ips"], container.result["ips"]);
    let name = ifb["name"].as_str().unwrap();
    assert!(name.starts_with("bwp") && name.len() == 15 && ifb.get("sandbox").is_none(), "{ifb}");
    let shown = &node.home.ip_json(&["link", "show", name])[0];
    assert_eq!((&shown["address"], &shown["mtu"]), (&ifb["mac"], &json!(1450)));
    assert_eq!(
        (&shown["linkinfo"]["info_kind"], &shown["ifalias"]),
        (&json!("ifb"), &json!("loden bandwidth cbr0"))
    );
    assert!(shown["flags"].as_array().unwrap().contains(&json!("UP")), "{shown}");

    let bucket = token_bucket(&node, &container.port);
    assert_eq!((&bucket["handle"], &bucket["root"]), (&json!("1:"), &json!(true)));
    assert_eq!((&bucket["options"]["rate"], &bucket["options"]["burst"]), (&json!(125_000), &json!(10_000)));
    assert_eq!(bucket["options"]["lat"], 25_000);
    let bucket = token_bucket(&node, name);
    assert_eq!((&bucket["options"]["rate"], &bucket["options"]["burst"]), (&json!(250_000), &json!(20_000)));
    let (_, filters) = shape(&node, &container.port);
    let filters = filters.join("\n");
    assert!(filters.contains("pref 1 u32") && filters.contains("flowid 1:1"), "{filters}");
    assert!(filters.contains("match 00000000/00000000 at 0"), "{filters}");
    assert!(filters.contains(&format!("mirred (Egress Redirect to device {name}) stolen")), "{filters}");

    let checked = with_result(&config, &result);
    node.call(&node.ours(), "bandwidth", "CHECK", &container.attachment(), &checked).silent();
    let again = node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), &config);
    assert!(again.error().1.contains("adding link"), "{again:?}");
    assert_eq!(token_bucket(&node, name)["options"]["rate"], 250_000, "a second ADD leaves the first alone");

    for _ in 0..2 {
        node.call(&node.ours(), "bandwidth", "DEL", &container.attachment(), &checked).silent();
        assert!(ifbs(&node).is_empty());
    }
    assert_ne!(shape(&node, &container.port), before, "what is on the pair goes with the pair");
    container.remove(&node);
    node.assert_clean();
}

/// Sends two megabytes at once and gives what the bucket let through, what it dropped, and how long that took.
fn flood(from: &Namespace, to: (&Namespace, &str), stats: impl Fn() -> (u64, u64)) -> (u64, u64, Duration) {
    let receiver = to.0.ns.run(|| UdpSocket::bind((to.1, 0)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let sender = from.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 2000];
    // The neighbours know each other then.
    assert!(wait_until(|| {
        let _ = sender.send(b"hello");
        receiver.recv(&mut buffer).is_ok()
    }));
    let (begun, before) = (Instant::now(), stats());
    for _ in 0..2000 {
        // A full queue may be reported to the sender; the bucket's own count is what matters.
        let _ = sender.send(&buffer[..1000]);
    }
    let after = stats();
    (after.0 - before.0, after.1 - before.1, begun.elapsed())
}

#[test]
fn bursts_are_really_limited_in_both_directions() {
    let node = Node::new();
    let container = Container::new(&node, "c1");
    let config = container.config(limits(BOTH));
    let result = node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), &config).result();
    let ifb = result["interfaces"][3]["name"].as_str().unwrap().to_owned();
    let stats = |link: &str| {
        let bucket = token_bucket(&node, link);
        (bucket["bytes"].as_u64().unwrap(), bucket["drops"].as_u64().unwrap())
    };
    let gateway = "10.244.1.1";
    let address = container.address();
    let (home, pod) = (&node.home, &container.pod);
    for (link, rate, burst, from, to) in [
        (&container.port, 125_000, 10_000, home, (pod, address.as_str())),
        (&ifb, 250_000, 20_000, pod, (home, gateway)),
    ] {
        let (passed, dropped, took) = flood(from, to, || stats(link));
        // A full bucket, what it refills with meanwhile, and what waits at the end; twice that for a clock that is not the kernel's.
        let micros = u64::try_from(took.as_micros()).unwrap();
        let most = 2 * (burst + rate * micros / 1_000_000 + rate / 40);
        assert!(passed <= most, "{link}: {passed} bytes passed in {took:?}, {most} at most");
        assert!(passed >= burst / 2, "{link}: only {passed} bytes passed in {took:?}");
        assert!(dropped > 0, "{link}: nothing was dropped of a burst far beyond the limit, {took:?}");
    }
    node.call(&node.ours(), "bandwidth", "DEL", &container.attachment(), &config).silent();
    container.remove(&node);
    node.assert_clean();
}

#[test]
fn one_direction_alone_and_none() {
    let node = Node::new();
    let container = Container::new(&node, "c1");
    let add = |keys: Value| {
        node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), &container.config(keys))
    };
    assert_eq!(add(json!({})).result(), container.result);
    assert_eq!(add(limits([0; 4])).result(), container.result);
    assert!(qdiscs(&node, &container.port).iter().all(|qdisc| qdisc["kind"] != "tbf"));

    let ingress = limits([1_000_000, 80_000, 0, 0]);
    assert_eq!(add(ingress).result(), container.result, "no link is needed for what the container receives");
    assert!(ifbs(&node).is_empty());
    assert_eq!(token_bucket(&node, &container.port)["options"]["rate"], 125_000);
    let unlimited = container.config(json!({}));
    node.call(&node.ours(), "bandwidth", "CHECK", &container.attachment(), &unlimited).silent();

    let other = Container::new(&node, "c2");
    let egress = other.config(limits([0, 0, 1_000_000, 80_000]));
    let result = node.call(&node.ours(), "bandwidth", "ADD", &other.attachment(), &egress).result();
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 4);
    assert!(qdiscs(&node, &other.port).iter().all(|qdisc| qdisc["kind"] != "tbf"));
    node.call(&node.ours(), "bandwidth", "DEL", &other.attachment(), &egress).silent();
    for container in [&container, &other] {
        container.remove(&node);
    }
    node.assert_clean();
}

#[test]
fn refusals_leave_nothing() {
    let node = Node::new();
    let container = Container::new(&node, "c1");
    let before = shape(&node, &container.port);
    let add = |config: &Value| {
        let answer = node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), config);
        let (_, text) = answer.error();
        assert!(ifbs(&node).is_empty(), "{text}");
        text
    };
    let config = container.config(limits(BOTH));
    assert_eq!(add(&container.config(json!({"ingressRate": 8}))), "if rate is set, burst must also be set");
    let mut alone = config.clone();
    alone.as_object_mut().unwrap().remove("prevResult");
    assert_eq!(add(&alone), "must be called as chained plugin");
    for none in [json!({}), limits([0; 4])] {
        let mut alone = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth"});
        support::merge(&mut alone, none);
        assert_eq!(add(&alone), "must be called as chained plugin", "the Go plugin panics here");
    }
    let mut listed = config.clone();
    listed["prevResult"]["interfaces"] = json!([]);
    assert_eq!(add(&listed), "no interfaces provided");
    listed["prevResult"]["interfaces"] = json!([{"name": "cni0"}]);
    listed["prevResult"]["ips"] = json!([]);
    assert_eq!(add(&listed), "no veth peer of container interface found in host ns");
    let mut lo = container.attachment();
    lo.ifname = "lo";
    let (_, text) = node.call(&node.ours(), "bandwidth", "ADD", &lo, &config).error();
    assert_eq!(text, "container interface lo has no veth peer: it is not a veth");
    let mut old = config.clone();
    old["cniVersion"] = json!("0.2.0");
    let (code, text) = node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), &old).error();
    assert_eq!((code, text.contains(r#"plugin supports ["0.3.0""#)), (1, true), "{text}");

    // Somebody else has taken the place of the discipline for what the link receives: his stays, ours goes.
    node.home.sh("tc", &["qdisc", "add", "dev", &container.port, "clsact"]);
    let occupied = shape(&node, &container.port);
    let text = add(&config);
    assert!(text.starts_with("create ingress qdisc: ") && !text.contains("undoing"), "{text}");
    assert_eq!(shape(&node, &container.port), occupied);
    node.home.sh("tc", &["qdisc", "del", "dev", &container.port, "clsact"]);
    assert_eq!(shape(&node, &container.port), before);
    container.remove(&node);
    node.assert_clean();
}

#[test]
fn check_names_what_changed() {
    let node = Node::new();
    let container = Container::new(&node, "c1");
    let config = container.config(limits(BOTH));
    let result = node.call(&node.ours(), "bandwidth", "ADD", &container.attachment(), &config).result();
    let ifb = result["interfaces"][3]["name"].as_str().unwrap().to_owned();
    let checked = with_result(&config, &result);
    let check = || node.call(&node.ours(), "bandwidth", "CHECK", &container.attachment(), &checked).error().1;
    let bucket = |link: &str, rate: &str, burst: &str, latency: &str| {
        let words = ["qdisc", "replace", "dev", link, "root", "handle", "1:", "tbf"];
        node.home.sh("tc", &[&words[..], &["rate", rate, "burst", burst, "latency", latency]].concat());
    };
    bucket(&container.port, "2mbit", "10000", "25ms");
    assert_eq!(check(), "Rate doesn't match");
    bucket(&container.port, "1mbit", "10000", "50ms");
    assert_eq!(check(), "Limit doesn't match");
    bucket(&container.port, "1mbit", "10000", "25ms");
    node.call(&node.ours(), "bandwidth", "CHECK", &container.attachment(), &checked).silent();
    node.home.sh("tc", &["qdisc", "del", "dev", &ifb, "root"]);
    assert_eq!(check(), "Failed to find qdisc");
    bucket(&ifb, "2mbit", "20000", "25ms");
    node.home.sh("tc", &["qdisc", "del", "dev", &container.port, "ingress"]);
    assert!(check().starts_with("Failed to find qdisc ingress"));
    node.home.sh("ip", &["link", "delete", &ifb]);
    assert_eq!(check(), format!("get ifb device: Link {ifb} not found"));
    let mut alone = config;
    alone.as_object_mut().unwrap().remove("prevResult");
    let (_, text) = node.call(&node.ours(), "bandwidth", "CHECK", &container.attachment(), &alone).error();
    assert_eq!(text, "must be called as a chained plugin");
    container.remove(&node);
    node.assert_clean();
}

#[test]
fn gc_takes_the_links_of_its_network_only() {
    let node = Node::new();
    let containers: Vec<Container> =
        ["c1", "c2", "other", "go"].into_iter().map(|id| Container::new(&node, id)).collect();
    let egress = || limits([0, 0, 1_000_000, 80_000]);
    let mut names = Vec::new();
    for container in &containers {
        let mut config = container.config(egress());
        if container.id == "other" {
            config["name"] = json!("elsewhere");
        }
        let path = if container.id == "go" { GO.to_owned() } else { node.ours() };
        let result = node.call(&path, "bandwidth", "ADD", &container.attachment(), &config).result();
        names.push(result["interfaces"][3]["name"].as_str().unwrap().to_owned());
    }
    // A link by a user who happens to like the name.
    node.home.sh("ip", &["link", "add", "bwp000000000000", "type", "ifb"]);
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let gc = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "bandwidth", "cni.dev/valid-attachments": valid});
    let mut expected =
        vec![names[0].clone(), names[2].clone(), names[3].clone(), "bwp000000000000".to_owned()];
    expected.sort();
    for _ in 0..2 {
        node.call(&node.ours(), "bandwidth", "GC", &Attachment::new("", &containers[0].pod), &gc).silent();
        assert_eq!(ifbs(&node), expected);
    }
    let mut without = gc;
    without.as_object_mut().unwrap().remove("cni.dev/valid-attachments");
    let answer =
        node.call(&node.ours(), "bandwidth", "GC", &Attachment::new("", &containers[0].pod), &without);
    assert!(answer.error().1.contains("nothing was removed"));

    // DEL without namespace, without result, with a configuration that ADD would refuse.
    node.home.sh("ip", &["link", "delete", "bwp000000000000"]);
    for container in &containers {
        let name = if container.id == "other" { "elsewhere" } else { "cbr0" };
        let config = json!({"cniVersion": "1.0.0", "name": name, "type": "bandwidth", "ingressRate": 1});
        let mut attachment = container.attachment();
        attachment.netns = String::new();
        node.call(&node.ours(), "bandwidth", "DEL", &attachment, &config).silent();
        container.remove(&node);
    }
    node.assert_clean();
}

/// With the burst that runtimes set when a pod names only a rate among the limits: the Go plugin's arithmetic overflows there.
#[test]
fn go_and_ours_make_the_same_and_undo_and_check_each_other() {
    let node = Node::new();
    let ours = node.ours();
    for numbers in [
        BOTH,
        [10_000_000, u64::from(u32::MAX), 100_000_000, u64::from(u32::MAX)],
        [8_000_000_000, 8_000_000, 40_000_000_000, 80_000_000],
    ] {
        let mut made = Vec::new();
        for (maker, other) in [(ours.as_str(), GO), (GO, ours.as_str())] {
            let container = Container::new(&node, "c1");
            let config = container.config(limits(numbers));
            let result = node.call(maker, "bandwidth", "ADD", &container.attachment(), &config).result();
            let ifb = result["interfaces"][3]["name"].as_str().unwrap().to_owned();
            made.push((ifb.clone(), shape(&node, &container.port), shape(&node, &ifb).0));
            let checked = with_result(&config, &result);
            node.call(other, "bandwidth", "CHECK", &container.attachment(), &checked).silent();
            node.call(other, "bandwidth", "DEL", &container.attachment(), &checked).silent();
            container.remove(&node);
            node.assert_clean();
        }
        assert_eq!(made[0], made[1], "{numbers:?}");
    }
}
