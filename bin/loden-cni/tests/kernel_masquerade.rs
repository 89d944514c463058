//! `ipMasq` by the programs of iptables, both variants, beside the Go plugins of Debian and beside other people's chains.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::host::Host;
use support::{Answer, Attachment, GO, Namespace, with_result};

/// `bridge` with addresses of both families, masqueraded by iptables.
fn config_of(host: &Host, changes: Value) -> Value {
    let mut config = host.node.bridge_config(json!({
        "ipMasq": true, "ipMasqBackend": "iptables",
        "ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]},
    }));
    support::merge(&mut config, changes);
    config
}

fn rules(host: &Host) -> Vec<String> {
    host.rules("nat")
}

#[track_caller]
fn assert_clean(host: &Host, what: &str) {
    assert!(rules(host).is_empty(), "{} {what}: {:#?}", host.variant, rules(host));
    host.node.assert_clean();
}

#[test]
fn the_rules_are_those_of_the_go_plugin_in_every_pairing() {
    for host in ["nft", "legacy"].map(Host::new) {
        let config = config_of(&host, json!({}));
        let ours = host.node.ours();
        let mut seen: Option<Vec<String>> = None;
        for (adds, deletes) in
            [(GO, GO), (ours.as_str(), ours.as_str()), (ours.as_str(), GO), (GO, ours.as_str())]
        {
            let pod = Namespace::new("pod");
            let attachment = Attachment::new("c1", &pod);
            // The address of the first round again, so that the rules can be compared.
            let _ = fs::remove_dir_all(host.node.path("state/networks"));
            let result = host.call(adds, "bridge", "ADD", &attachment, &config).result();
            let rules = rules(&host);
            assert_eq!(rules.len(), 8, "{rules:#?}");
            assert_eq!(rules, *seen.get_or_insert_with(|| rules.clone()), "{} {adds}", host.variant);
            let config = with_result(&config, &result);
            host.call(deletes, "bridge", "DEL", &attachment, &config).silent();
            assert_clean(&host, deletes);
            host.call(deletes, "bridge", "DEL", &attachment, &config).silent();
        }
    }
}

#[test]
fn rules_go_without_the_namespace_and_whatever_the_backend_is_now() {
    for host in ["nft", "legacy"].map(Host::new) {
        let ours = host.node.ours();
        for (adds, then) in [("iptables", "nftables"), ("nftables", "iptables"), ("iptables", "iptables")] {
            for vanishes in [true, false] {
                let pod = Namespace::new("pod");
                let config = config_of(&host, json!({"ipMasqBackend": adds}));
                host.call(&ours, "bridge", "ADD", &Attachment::new("c1", &pod), &config).result();
                let mut attachment = Attachment::new("c1", &pod);
                if !vanishes {
                    attachment.netns = String::new();
                }
                drop(pod);
                let config = config_of(&host, json!({"ipMasqBackend": then}));
                host.call(&ours, "bridge", "DEL", &attachment, &config).silent();
                assert_clean(&host, adds);
            }
        }
    }
}

/// A rule in the form of old Go plugins, which matched the whole subnet, and an ADD that was repeated by hand.
#[test]
fn old_and_repeated_rules_go_as_well() {
    for host in ["nft", "legacy"].map(Host::new) {
        let ours = host.node.ours();
        let pod = Namespace::new("pod");
        let attachment = Attachment::new("c1", &pod);
        let config = config_of(&host, json!({}));
        host.call(&ours, "bridge", "ADD", &attachment, &config).result();
        let made = rules(&host);
        let jump = made.iter().find(|rule| rule.starts_with("-A POSTROUTING -s 10.")).unwrap();
        let old = jump.replace("-s 10.244.1.2/32", "-s 10.244.1.0/24");
        host.program("iptables-restore", &["--noflush"], &format!("*nat\n{jump}\n{old}\nCOMMIT\n"));
        host.program("iptables", &["-t", "nat", "-A", "POSTROUTING", "-s", "192.0.2.1", "-j", "ACCEPT"], "");
        host.call(&ours, "bridge", "DEL", &attachment, &config).silent();
        assert_eq!(rules(&host), ["-A POSTROUTING -s 192.0.2.1/32 -j ACCEPT"], "{}", host.variant);
    }
}

#[test]
fn eight_at_once_beside_two_thousand_chains() {
    for host in ["nft", "legacy"].map(Host::new) {
        let mut others = String::from("*nat\n");
        for number in 0..2000 {
            writeln!(others, ":OTHER-{number} - [0:0]").unwrap();
        }
        for number in 0..2000 {
            writeln!(others, "-A OTHER-{number} -d 192.0.2.1/32 -j ACCEPT").unwrap();
            writeln!(others, "-A PREROUTING -s 192.0.2.1/32 -j OTHER-{number}").unwrap();
        }
        others.push_str("COMMIT\n");
        host.program("iptables-restore", &["--noflush"], &others);
        let before = rules(&host);
        let ours = host.node.ours();
        let config = config_of(&host, json!({}));
        let pods: Vec<_> = (0..8).map(|number| (format!("c{number}"), Namespace::new("pod"))).collect();
        let all = |command: &'static str| {
            let started = Instant::now();
            let answers: Vec<Answer> = thread::scope(|scope| {
                let running: Vec<_> = pods
                    .iter()
                    .map(|(id, pod)| {
                        let (host, ours, config) = (&host, &ours, &config);
                        scope.spawn(move || {
                            host.call(ours, "bridge", command, &Attachment::new(id, pod), config)
                        })
                    })
                    .collect();
                running.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(started.elapsed() < Duration::from_secs(240), "{} {command} hangs", host.variant);
            answers
        };
        for answer in all("ADD") {
            answer.result();
        }
        assert_eq!(rules(&host).len(), before.len() + 8 * 8, "{}", host.variant);
        for answer in all("DEL") {
            answer.silent();
        }
        assert_eq!(rules(&host), before, "{}", host.variant);
    }
}

/// GC finds what the runtime forgot in both backends, and nothing of another network or of a valid attachment.
#[test]
fn forgotten_rules_are_collected() {
    for host in ["nft", "legacy"].map(Host::new) {
        let ours = host.node.ours();
        let pods: Vec<_> = (0..5).map(|_| Namespace::new("pod")).collect();
        let made = [
            ("gone1", "net1", "iptables"),
            ("gone2", "net1", "nftables"),
            ("kept1", "net1", "iptables"),
            ("kept2", "net1", "nftables"),
            ("gone1", "net2", "iptables"),
        ];
        for ((container, network, backend), pod) in made.into_iter().zip(&pods) {
            let config = config_of(&host, json!({"name": network, "ipMasqBackend": backend}));
            host.call(&ours, "bridge", "ADD", &Attachment::new(container, pod), &config).result();
        }
        let theirs =
            "*nat\n-N CNI-0123456789abcdef01234567\n-A CNI-0123456789abcdef01234567 -j RETURN\nCOMMIT\n";
        host.program("iptables-restore", &["--noflush"], theirs);
        let before = rules(&host);
        let valid =
            json!([{"containerID": "kept1", "ifname": "eth0"}, {"containerID": "kept2", "ifname": "eth0"}]);
        let config = config_of(
            &host,
            json!({"name": "net1", "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}),
        );
        host.call(&ours, "bridge", "GC", &Attachment::new("", &pods[0]), &config).silent();
        let expected: Vec<String> =
            before.iter().filter(|rule| !rule.contains(r#"\"net1\" id: \"gone1\""#)).cloned().collect();
        let expected: Vec<String> = expected
            .iter()
            .filter(|rule| {
                !rule.starts_with("-N ")
                    || expected.iter().any(|other| other.starts_with(&rule.replace("-N", "-A")))
            })
            .cloned()
            .collect();
        assert_eq!(rules(&host), expected, "{}", host.variant);
        assert_eq!(before.len() - expected.len(), 8, "{}", host.variant);
        let native = host.node.home.sh("nft", &["list", "ruleset"]);
        assert!(!native.contains("id: gone2") && native.matches("id: kept2").count() == 2, "{native}");
        // Nothing is valid any more.
        let config =
            config_of(&host, json!({"name": "net1", "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
        host.call(&ours, "bridge", "GC", &Attachment::new("", &pods[0]), &config).silent();
        assert!(!rules(&host).iter().any(|rule| rule.contains(r#"\"net1\""#)), "{}", host.variant);
        assert_eq!(rules(&host).iter().filter(|rule| rule.contains(r#"\"net2\""#)).count(), 6);
    }
}

/// One process for each family that is written, none for taking away from nf_tables.
#[test]
fn programs_are_run_once_per_change() {
    for (variant, expected) in [("nft", [2, 0]), ("legacy", [4, 4])] {
        let host = Host::new(variant);
        let log = host.node.path("log");
        for program in ["iptables", "ip6tables"] {
            for suffix in ["-restore", "-save"] {
                let path = host.node.path(&format!("sbin/{program}{suffix}"));
                fs::rename(&path, format!("{path}.real")).unwrap();
                let script = format!(
                    "#!/bin/sh\necho {program}{suffix} >> {log}\nexec -a {program}{suffix} {path}.real \"$@\"\n"
                );
                let script = script.replace("/bin/sh", "/bin/bash");
                fs::write(&path, script).unwrap();
                let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
                fs::set_permissions(&path, mode).unwrap();
            }
        }
        let ours = host.node.ours();
        let pods = [Namespace::new("pod"), Namespace::new("pod")];
        let config = config_of(&host, json!({}));
        // The first makes the tables, which the older iptables would otherwise not have to be asked about.
        host.call(&ours, "bridge", "ADD", &Attachment::new("c0", &pods[0]), &config).result();
        for (command, expected) in ["ADD", "DEL"].into_iter().zip(expected) {
            let _ = fs::remove_file(&log);
            let answer = host.call(&ours, "bridge", command, &Attachment::new("c1", &pods[1]), &config);
            assert!(answer.success, "{answer:?}");
            let runs = fs::read_to_string(&log).unwrap_or_default();
            assert_eq!(runs.lines().count(), expected, "{variant} {command}: {runs}");
        }
    }
}

#[test]
fn without_programs_it_is_said_what_to_do() {
    let host = Host::new("nft");
    let ours = host.node.ours();
    let pod = Namespace::new("pod");
    fs::create_dir(host.node.path("empty")).unwrap();
    let add = |config: &Value| {
        let path = host.node.path("empty");
        let environment = [("PATH", path.as_str())];
        let attachment = Attachment::new("c1", &pod);
        host.node.call_with(&ours, "bridge", "ADD", &attachment, &config.to_string(), &environment)
    };
    let (_, message) = add(&config_of(&host, json!({}))).error();
    assert!(message.contains("no usable iptables in PATH"), "{message}");
    assert_clean(&host, "refused ADD");
    let (_, message) = add(&config_of(&host, json!({"ipMasqBackend": "pf"}))).error();
    assert_eq!(message, "unknown ipmasq backend \"pf\"");
    // Left to itself it needs no program.
    add(&config_of(&host, json!({"ipMasqBackend": null}))).result();
    host.call(&ours, "bridge", "DEL", &Attachment::new("c1", &pod), &config_of(&host, json!({}))).silent();
    assert_clean(&host, "nftables by default");
}
