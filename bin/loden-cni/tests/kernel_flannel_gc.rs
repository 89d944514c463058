//! GC of `flannel`: what it kept of containers that are gone, and what its delegate gave them.

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

use serde_json::{Value, json};
use support::{Attachment, GO, Namespace, Node};

const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

fn config(node: &Node) -> Value {
    let mut config = node.flannel_config(SUBNET_ENV);
    config["cniVersion"] = json!("1.1.0");
    config
}

fn gc(node: &Node, path: &str, config: &Value, valid: &Value) -> support::Answer {
    let mut config = config.clone();
    config["cni.dev/valid-attachments"] = valid.clone();
    let nobody = Attachment { container: "", ifname: "", netns: String::new() };
    node.call(path, "flannel", "GC", &nobody, &config)
}

/// A delegate in the place of `bridge` that asks `host-local` for addresses and notes what it is told.
fn delegate(node: &Node, name: &str, host_local: &str) -> String {
    let directory = node.path(name);
    fs::create_dir(&directory).unwrap();
    let log = node.path("log");
    fs::hard_link(node.path("bin/loden-cni"), format!("{directory}/flannel")).unwrap();
    fs::write(
        format!("{directory}/bridge"),
        format!(
            "#!/bin/sh\necho \"$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS\" >> {log}\n[ -e {0}/broken ] && exit 1\nexec {host_local}\n",
            node.root.path().display()
        ),
    )
    .unwrap();
    fs::set_permissions(format!("{directory}/bridge"), fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

#[test]
fn what_is_kept_of_dead_containers_goes_with_their_addresses() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node);
    let path = delegate(&node, "told", &format!("{}/host-local", node.ours()));
    let add = |container, ifname, config: &Value| {
        let attachment = Attachment { container, ifname, netns: pod.path() };
        node.call(&path, "flannel", "ADD", &attachment, config).result();
    };
    add("alive", "eth0", &config);
    add("dead", "net1", &config);
    let mut other = config.clone();
    other["name"] = json!("other");
    add("elsewhere", "eth0", &other);
    fs::write(node.path("state/flannel/torn"), "").unwrap();
    fs::write(node.path("state/flannel/.0123.new"), "{").unwrap();
    fs::remove_file(node.path("log")).unwrap();
    let valid = json!([{"containerID": "alive", "ifname": "eth0"}]);

    // What cannot be done is said, and what is needed to do it stays.
    fs::write(node.path("broken"), "").unwrap();
    assert!(!gc(&node, &path, &config, &valid).success);
    assert!(fs::exists(node.path("state/flannel/dead")).unwrap());
    fs::remove_file(node.path("broken")).unwrap();
    fs::remove_file(node.path("log")).unwrap();

    gc(&node, &path, &config, &valid).silent();
    let log = fs::read_to_string(node.path("log")).unwrap();
    assert_eq!(log, "DEL dead net1 \nGC   \n", "the dead one is detached, then the delegate looks for more");
    let names = |directory: &str| {
        let mut names: Vec<String> = fs::read_dir(node.path(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok() || directory.ends_with("flannel"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("state/flannel"), ["alive", "elsewhere", "torn"]);
    assert_eq!(names("state/networks/cbr0"), ["10.244.1.2"]);
    assert_eq!(names("state/networks/other").len(), 1);

    // Before flanneld has said anything, and with nothing kept, the addresses are still found.
    fs::remove_file(node.path("subnet.env")).unwrap();
    fs::remove_file(node.path("state/flannel/alive")).unwrap();
    gc(&node, &path, &config, &json!([])).silent();
    assert!(names("state/networks/cbr0").is_empty());
    assert_eq!(names("state/networks/other").len(), 1);
}

#[test]
fn delegates_that_know_no_gc_are_told_to_detach() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let mut config = config(&node);
    let path = delegate(&node, "told", &format!("{GO}/host-local"));
    // Debian's are from before 1.1.0.
    config["cniVersion"] = json!("1.0.0");
    let attachment = Attachment::new("dead", &pod);
    node.call(&path, "flannel", "ADD", &attachment, &config).result();
    config["cniVersion"] = json!("1.1.0");
    gc(&node, &path, &config, &json!([])).silent();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[test]
fn without_a_list_nothing_goes() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node);
    let attachment = Attachment::new("c1", &pod);
    node.call(&node.ours(), "flannel", "ADD", &attachment, &config).result();
    let before = node.residue();
    let (code, text) = node.call(&node.ours(), "flannel", "GC", &attachment, &config).error();
    assert!(code == 7 && text.contains("nothing was removed"), "{text}");
    assert_eq!(node.residue(), before);
    node.call(&node.ours(), "flannel", "DEL", &attachment, &config).silent();
    node.assert_clean();
}
