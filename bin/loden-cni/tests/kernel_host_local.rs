//! `host-local` at scale, beside Go's plugin in one directory, after crashes, and cleaning up.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use support::{Answer, Attachment, GO, Namespace, Node};

fn config(node: &Node, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "any",
        "ipam": {"type": "host-local", "dataDir": node.path("state/networks"), "ranges": [[{"subnet": subnet}]]},
    })
}

fn attachment<'a>(container: &'a str, pod: &Namespace) -> Attachment<'a> {
    Attachment::new(container, pod)
}

#[track_caller]
fn address(answer: &Answer) -> String {
    answer.result()["ips"][0]["address"].as_str().unwrap().to_owned()
}

/// Debian's plugin is from before 1.1.0.
fn older(config: &Value) -> Value {
    let mut config = config.clone();
    config["cniVersion"] = json!("1.0.0");
    config
}

/// System calls of one command, by `strace`.
fn system_calls(node: &Node, pod: &Namespace, command: &str, container: &str, config: &Value) -> usize {
    let log = node.path("calls");
    let stdin = node.write("stdin", &config.to_string());
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", &log, &format!("{}/host-local", node.ours())])
        .env_clear()
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", container)
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", node.ours())
        .stdin(fs::File::open(stdin).unwrap())
        .stdout(std::process::Stdio::null())
        .status()
        .expect("apt-get install strace");
    assert!(status.success(), "{command} {container}");
    fs::read_to_string(log).unwrap().lines().count()
}

#[test]
fn the_cost_does_not_grow_with_the_reservations() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node, "10.244.0.0/16");
    let directory = node.path("state/networks/cbr0");
    fs::create_dir_all(&directory).unwrap();
    let mut calls = Vec::new();
    let mut present = 0;
    for wanted in [10, 4000] {
        // As many containers' reservations as another plugin would have left; reading them is the first command's.
        for number in present..wanted {
            let file = format!("{directory}/10.244.{}.{}", 16 + number / 200, number % 200);
            fs::write(file, format!("other{number}\r\neth0")).unwrap();
        }
        present = wanted;
        node.call(&node.ours(), "host-local", "ADD", &attachment("first", &pod), &config).result();
        let of = |command, container| system_calls(&node, &pod, command, container, &config);
        calls.push([
            of("ADD", "a"),
            of("CHECK", "a"),
            of("ADD", "b"),
            of("DEL", "a"),
            of("DEL", "a"),
            of("DEL", "nobody"),
            // One that somebody else made before.
            of("DEL", "other3"),
            of("DEL", "b"),
        ]);
        fs::write(format!("{directory}/10.244.16.3"), "other3\r\neth0").unwrap();
        node.call(&node.ours(), "host-local", "DEL", &attachment("first", &pod), &config).silent();
    }
    assert_eq!(calls[0], calls[1]);
    assert!(calls[0].iter().all(|calls| *calls < 120), "{calls:?}");
    println!("system calls, process start included: {:?}", calls[0]);
}

#[test]
fn a_long_row_of_taken_addresses_is_read_once() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node, "10.244.0.0/20");
    let directory = node.path("state/networks/cbr0");
    fs::create_dir_all(&directory).unwrap();
    for number in 2..3000_u32 {
        let file = format!("{directory}/10.244.{}.{}", number / 256, number % 256);
        fs::write(file, format!("other{number}\r\neth0")).unwrap();
    }
    // The index is there and sealed before the row is met.
    node.call(&node.ours(), "host-local", "DEL", &attachment("x", &pod), &config).silent();
    fs::write(format!("{directory}/last_reserved_ip.0"), "10.244.0.1").unwrap();
    let first = node.call(&node.ours(), "host-local", "ADD", &attachment("a", &pod), &config);
    assert_eq!(address(&first), "10.244.11.184/20");
    let next = node.call(&node.ours(), "host-local", "ADD", &attachment("b", &pod), &config);
    assert_eq!(address(&next), "10.244.11.185/20");
}

/// Both kinds at once, each releasing what either made, in one directory with an index.
#[test]
fn both_kinds_hammer_one_directory() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node, "10.244.1.0/26");
    let (ours, old) = (node.ours(), older(&config));
    let held: BTreeSet<String> = thread::scope(|scope| {
        let running: Vec<_> = (0..8_usize)
            .map(|worker| {
                let (node, pod, config, old, ours) = (&node, &pod, &config, &old, &ours);
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for round in 0..8 {
                        let container = format!("w{worker}r{round}");
                        let kind = |number: usize| {
                            if number.is_multiple_of(2) { (GO, old) } else { (ours.as_str(), config) }
                        };
                        let (path, config) = kind(worker + round);
                        let answer =
                            node.call(path, "host-local", "ADD", &attachment(&container, pod), config);
                        let given = address(&answer);
                        let file = given.split('/').next().unwrap();
                        let file = node.path(&format!("state/networks/cbr0/{file}"));
                        let content = format!("{container}\r\neth0");
                        assert_eq!(fs::read_to_string(&file).unwrap(), content, "nobody else took it");
                        if round % 4 == 3 {
                            held.push(given);
                            continue;
                        }
                        let (path, config) = kind(worker + round / 2);
                        node.call(path, "host-local", "DEL", &attachment(&container, pod), config).silent();
                        assert_ne!(fs::read_to_string(&file).ok(), Some(content), "it is free again");
                    }
                    held
                })
            })
            .collect();
        running.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(held.len(), 16, "no address twice");
    // 62 addresses, one of them the gateway's: what is held and what is free are all of them.
    for number in 16..61 {
        let container = format!("c{number}");
        node.call(&ours, "host-local", "ADD", &attachment(&container, &pod), &config).result();
    }
    for (path, config) in [(ours.as_str(), &config), (GO, &old)] {
        let full = node.call(path, "host-local", "ADD", &attachment("more", &pod), config);
        assert!(full.error().1.contains("no IP addresses available"), "{full:?}");
    }
    let mut gc = config;
    gc["cni.dev/valid-attachments"] = json!([]);
    node.call(&ours, "host-local", "GC", &attachment("", &pod), &gc).silent();
    assert_eq!(node.residue(), Vec::<String>::new());
}

#[test]
fn status_says_which_range_is_full() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let mut config = config(&node, "10.244.1.0/29");
    config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/29"}], [{"subnet": "fd00::/64"}]]);
    let status = || node.call(&node.ours(), "host-local", "STATUS", &attachment("", &pod), &config);
    status().silent();
    for container in ["a", "b", "c", "d", "e"] {
        status().silent();
        node.call(&node.ours(), "host-local", "ADD", &attachment(container, &pod), &config).result();
    }
    let (code, text) = status().error();
    assert_eq!(code, 50);
    assert!(
        text.starts_with(
            "host-local: network cbr0 has no address left: all 5 of range set 0 (10.244.1.1-10.244.1.6) are reserved"
        ),
        "{text}"
    );
    // What a crash left empty is as good as free, and so it is used.
    fs::write(node.path("state/networks/cbr0/10.244.1.4"), "").unwrap();
    status().silent();
    let answer = node.call(&node.ours(), "host-local", "ADD", &attachment("f", &pod), &config);
    assert_eq!(address(&answer), "10.244.1.4/29");
    assert_eq!(status().error().0, 50);
}

#[test]
fn gc_frees_what_is_not_valid_and_nothing_else() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let config = config(&node, "10.244.1.0/24");
    let directory = node.path("state/networks/cbr0");
    let old = older(&config);
    for (path, container, config) in [
        (GO, "go1", &old),
        (&node.ours(), "ours1", &config),
        (GO, "go2", &old),
        (&node.ours(), "ours2", &config),
    ] {
        node.call(path, "host-local", "ADD", &attachment(container, &pod), config).result();
    }
    let write = |name: &str, content: &str| fs::write(format!("{directory}/{name}"), content).unwrap();
    write("10.9.0.1", "gone\r\neth0");
    write("10.9.0.2", "go2");
    write("10.9.0.3", "gone");
    write("10.9.0.4", "the printer");
    write("10.9.0.5", "");
    write("10.9.0.6", "ours2\r\neth1");
    let last = fs::read_to_string(format!("{directory}/last_reserved_ip.0")).unwrap();
    let gc = |list: Option<Value>| {
        let mut config = config.clone();
        // Whatever the ranges are by now.
        config["ipam"]["ranges"] = json!([[{"subnet": "10.77.0.0/32"}]]);
        if let Some(list) = list {
            config["cni.dev/valid-attachments"] = list;
        }
        node.call(&node.ours(), "host-local", "GC", &attachment("", &pod), &config)
    };
    let everything = node.residue();
    assert!(gc(None).error().1.contains("nothing was removed"));
    assert_eq!(node.residue(), everything);
    gc(Some(json!([{"containerID": "ours2", "ifname": "eth0"}, {"containerID": "go2", "ifname": "eth0"}])))
        .silent();
    let mut left: Vec<String> =
        node.residue().iter().map(|path| path.rsplit('/').next().unwrap().to_owned()).collect();
    left.sort();
    assert_eq!(left, ["10.244.1.4", "10.244.1.5", "10.9.0.2", "10.9.0.4"]);
    assert_eq!(fs::read_to_string(format!("{directory}/last_reserved_ip.0")).unwrap(), last);
    fs::remove_file(format!("{directory}/10.9.0.4")).unwrap();
    gc(Some(json!([]))).silent();
    assert_eq!(node.residue(), Vec::<String>::new());
    // Where nothing was ever reserved there is nothing to make.
    fs::remove_dir_all(&directory).unwrap();
    gc(Some(json!([]))).silent();
    assert!(!fs::exists(&directory).unwrap());
}

#[test]
fn a_killed_command_leaves_nothing_that_the_next_does_not_find() {
    let node = Node::new();
    let pod = Namespace::new("pod");
    let mut config = config(&node, "10.244.1.0/28");
    config["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/28"}], [{"subnet": "fd00::/124"}]]);
    node.call(&node.ours(), "host-local", "ADD", &attachment("stays", &pod), &config).result();
    let mut killed = 0;
    for command in ["ADD", "DEL"] {
        for number in 1..60 {
            if command == "DEL" {
                node.call(&node.ours(), "host-local", "ADD", &attachment("c", &pod), &config).result();
            }
            // Killed when it enters its n-th system call that changes or opens a file.
            let stdin = node.write("stdin", &config.to_string());
            let status = Command::new("strace")
                .args(["-f", "-qq", "-o", "/dev/null", "-e"])
                .arg(format!("inject=openat,write,renameat2,rename,renameat,symlinkat,unlinkat,utimensat,mkdirat:signal=KILL:when={number}"))
                .arg(format!("{}/host-local", node.ours()))
                .env_clear()
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", "c")
                .env("CNI_NETNS", pod.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", node.ours())
                .stdin(fs::File::open(stdin).unwrap())
                .stdout(std::process::Stdio::null())
                .status()
                .expect("apt-get install strace");
            killed += usize::from(status.code().is_none_or(|code| code > 1));
            node.call(&node.ours(), "host-local", "DEL", &attachment("c", &pod), &config).silent();
            let left: Vec<String> = node.residue();
            assert_eq!(left.len(), 2, "{command} killed at {number}: {left:?}");
            if status.success() {
                break;
            }
        }
    }
    assert!(killed > 20, "{killed} kills");
    println!("{killed} kills");
    // Every address is still there to be had.
    for number in 0..12 {
        let container = format!("n{number}");
        node.call(&node.ours(), "host-local", "ADD", &attachment(&container, &pod), &config).result();
    }
    let full = node.call(&node.ours(), "host-local", "ADD", &attachment("more", &pod), &config);
    assert!(full.error().1.contains("no IP addresses available in range set: 10.244.1.1-10.244.1.14"));
}
