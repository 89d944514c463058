//! The protocol's edges, as a runtime meets them, next to the Go plugins where those behave as the specification says.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::process::Command;

use serde_json::json;
use support::{Attachment, GO, Namespace, Node};

/// Plugin, command, attachment, configuration, more of the environment.
type Case<'a> = (&'a str, &'a str, Attachment<'a>, &'a str, Vec<(&'a str, &'a str)>);

#[test]
fn refusals_are_those_of_the_go_plugins() {
    // Go's plugins leave a pair behind when the address plugin is missing, so they get a node of their own.
    let (node, theirs) = (Node::new(), Node::new());
    let pod = Namespace::new("pod");
    let good = Attachment::new("c1", &pod);
    let text = node.bridge_config(json!({})).to_string();
    let odd_version = node.bridge_config(json!({"cniVersion": "0.3.1"})).to_string();
    let cases: Vec<Case<'_>> = vec![
        ("bridge", "ADD", Attachment { container: "", ifname: "", netns: String::new() }, &text, vec![]),
        (
            "bridge",
            "ADD",
            Attachment { container: "", ifname: "a/b", netns: String::new() },
            &text,
            vec![("CNI_PATH", "")],
        ),
        ("bridge", "DEL", Attachment { container: "-x", ..good.clone() }, &text, vec![]),
        ("bridge", "ADD", Attachment { ifname: "abcdefghijklmnop", ..good.clone() }, &text, vec![]),
        ("bridge", "ADD", Attachment { ifname: "..", ..good.clone() }, &text, vec![]),
        ("bridge", "ADD", Attachment { ifname: "a b", ..good.clone() }, &text, vec![]),
        ("bridge", "ADD", good.clone(), "{}", vec![]),
        ("bridge", "ADD", good.clone(), r#"{"name":"a b"}"#, vec![]),
        (
            "bridge",
            "ADD",
            good.clone(),
            r#"{"name":"n","cniVersion":"1.0.0","hairpinMode":true,"promiscMode":true}"#,
            vec![],
        ),
        ("bridge", "CHECK", good.clone(), &odd_version, vec![]),
        ("bridge", "CHECK", good.clone(), r#"{"name":"n","cniVersion":"9.9.9"}"#, vec![]),
        (
            "bridge",
            "ADD",
            good.clone(),
            r#"{"name":"n","cniVersion":"1.0.0","ipam":{"type":"absent"}}"#,
            vec![("CNI_PATH", "/a:/b")],
        ),
        ("host-local", "ADD", good.clone(), &text, vec![("CNI_ARGS", "FOO=1")]),
        ("host-local", "ADD", good.clone(), &text, vec![("CNI_ARGS", "FOO")]),
        ("host-local", "ADD", good.clone(), &text, vec![("CNI_ARGS", "IP=10.9.9.9")]),
        ("host-local", "ADD", good.clone(), &text, vec![("CNI_ARGS", "IP=10.244.1.1")]),
        ("host-local", "ADD", good.clone(), r#"{"name":"n","ipam":{"type":"host-local"}}"#, vec![]),
        ("host-local", "ADD", good.clone(), r#"{"name":"n"}"#, vec![]),
        ("host-local", "DEL", good.clone(), r#"{"name":"n","ipam":{"subnet":"10.0.0.0/31"}}"#, vec![]),
        (
            "host-local",
            "CHECK",
            good.clone(),
            r#"{"name":"n","cniVersion":"1.0.0","ipam":{"ranges":[[{"subnet":"10.0.0.5/24"}]]}}"#,
            vec![],
        ),
        (
            "host-local",
            "ADD",
            good.clone(),
            r#"{"name":"n","cniVersion":"0.2.0","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/25"}]]}}"#,
            vec![],
        ),
        (
            "host-local",
            "ADD",
            good.clone(),
            r#"{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.2"}]]}}"#,
            vec![],
        ),
        (
            "host-local",
            "ADD",
            good.clone(),
            r#"{"name":"n","ipam":{"ranges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}}"#,
            vec![],
        ),
    ];
    for (plugin, command, attachment, config, environment) in cases {
        let ours = node.call_with(&node.ours(), plugin, command, &attachment, config, &environment);
        let go = theirs.call_with(GO, plugin, command, &attachment, config, &environment);
        let mut expected = go.error();
        // The directories differ where CNI_PATH does.
        expected.1 = expected.1.replace(GO, &node.ours());
        // Debian's plugins are of a time when one text ended in a full stop.
        expected.1 = expected.1.replace("same time.", "same time");
        assert_eq!(ours.error(), expected, "{plugin} {command} {config} {environment:?}");
    }
    node.assert_clean();
}

#[test]
fn addresses_are_chosen_as_the_go_plugin_chooses_them() {
    let (ours, go) = (Node::new(), Node::new());
    let config = |node: &Node, changes| {
        let mut config = node.bridge_config(json!({"ipam": {"ranges": [
            [{"subnet": "10.244.1.0/29"}, {"subnet": "10.244.2.0/29", "rangeStart": "10.244.2.3", "gateway": "10.244.2.4"}],
            [{"subnet": "fd00:0:0:1::/64"}],
        ]}}));
        support::merge(&mut config, changes);
        config
    };
    let pod = Namespace::new("pod");
    // (container, command, requested address)
    let steps = [
        ("a", "ADD", ""),
        ("b", "ADD", ""),
        ("c", "ADD", "10.244.2.5"),
        ("b", "ADD", ""),
        ("a", "DEL", ""),
        ("d", "ADD", ""),
        ("e", "ADD", "10.244.1.2"),
        ("f", "ADD", "fd00:0:0:1::99"),
        ("g", "ADD", "10.244.1.2"),
        ("c", "DEL", ""),
        ("c", "DEL", ""),
        ("h", "ADD", ""),
        ("i", "ADD", ""),
        ("j", "ADD", ""),
        ("k", "ADD", ""),
        ("l", "ADD", ""),
        ("m", "ADD", ""),
        ("d", "CHECK", ""),
        ("z", "CHECK", ""),
        ("d", "DEL", ""),
        ("n", "ADD", ""),
        ("o", "ADD", "10.244.1.1"),
        ("o", "ADD", "10.9.9.9"),
    ];
    for (container, command, requested) in steps {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAME=x{}",
            if requested.is_empty() { String::new() } else { format!(";IP={requested}") }
        );
        let environment = [("CNI_ARGS", args.as_str())];
        let attachment = Attachment::new(container, &pod);
        let one = ours.call_with(
            &ours.ours(),
            "host-local",
            command,
            &attachment,
            &config(&ours, json!({})).to_string(),
            &environment,
        );
        let two = go.call_with(
            GO,
            "host-local",
            command,
            &attachment,
            &config(&go, json!({})).to_string(),
            &environment,
        );
        assert_eq!(one.success, two.success, "{container} {command} {requested}: {one:?} {two:?}");
        if !one.success {
            assert_eq!(one.error(), two.error(), "{container} {command} {requested}");
        } else if command == "ADD" {
            assert_eq!(one.result()["ips"], two.result()["ips"], "{container} {command} {requested}");
        }
        let files = |node: &Node| {
            let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(node.path("state/networks/cbr0"))
                .unwrap()
                .map(|entry| entry.unwrap())
                // The index is ours alone and looked at where it matters.
                .filter(|entry| entry.file_type().unwrap().is_file())
                .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
                .collect();
            files.sort();
            files
        };
        assert_eq!(files(&ours), files(&go), "{container} {command} {requested}");
    }
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let attachment = Attachment::new("c1", &pod);
    let (code, text) = node
        .call(&node.ours(), "bridge", "GC", &attachment, &node.bridge_config(json!({"cniVersion": "1.1.0"})))
        .error();
    assert_eq!(code, 7, "without a list of what must stay");
    assert!(text.contains("nothing was removed"), "{text}");
    node.call(
        &node.ours(),
        "bridge",
        "STATUS",
        &attachment,
        &node.bridge_config(json!({"cniVersion": "1.1.0"})),
    )
    .silent();
    std::fs::hard_link(node.path("bin/loden-cni"), node.path("bin/macvlan")).unwrap();
    let (_, text) =
        node.call(&node.ours(), "macvlan", "ADD", &attachment, &node.bridge_config(json!({}))).error();
    assert!(text.contains("plugin \"macvlan\" is not in this build"), "{text}");
    assert!(node.home.link_names().len() == 1);
}

#[test]
fn a_person_gets_an_answer() {
    let node = Node::new();
    let run = |name: &str, variables: &[(&str, &str)]| {
        Command::new(node.path(&format!("bin/{name}")))
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    };
    let help = run("loden-cni", &[]);
    assert!(help.status.success());
    let text = String::from_utf8(help.stdout).unwrap();
    let names = loden_cni_plugins::names().join(" ");
    assert!(text.contains(&format!("Plugins in this build: {names}\n")), "{text}");
    let about = run("flannel", &[]);
    assert!(about.status.success() && about.stdout.is_empty());
    let text = String::from_utf8(about.stderr).unwrap();
    assert!(text.starts_with("CNI Plugin flannel version "), "{text}");
    assert!(
        text.ends_with("CNI protocol versions supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"),
        "{text}"
    );
    let version = run("host-local", &[("CNI_COMMAND", "VERSION")]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n"
    );
}

#[test]
fn the_binary_carries_no_runtime_and_no_tls() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--package", "loden-cni", "--edges", "normal", "--prefix", "none", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    for heavy in ["tokio", "kube", "rustls", "hyper", "clap", "tracing"] {
        assert!(
            !tree.lines().any(|line| line.starts_with(&format!("{heavy} "))),
            "{heavy} in the tree of loden-cni:\n{tree}"
        );
    }
}
