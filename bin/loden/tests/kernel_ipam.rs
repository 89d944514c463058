//! `loden ipam` beside namespaces, caches and files made for the purpose.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use loden_netlink::NetNs;
use serde_json::Value;

/// Goes with its namespace.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = NetNs::delete_named(&self.0);
    }
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
        Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc"])
            .args([env!("CARGO_BIN_EXE_loden"), "ipam"])
            .args(words)
            .arg("--data-dir")
            .arg(at("networks"))
            .arg("--cache-dir")
            .arg(at("results"))
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
        .map(|line| (line["address"].as_str().unwrap(), line["state"].as_str().unwrap()))
        .collect();
    let wanted = ["live", "known", "new", "leaked", "leaked", "torn", "unknown"];
    assert_eq!(states.values().copied().collect::<Vec<_>>(), wanted, "{listed}");

    let check = run(&["check"]);
    assert_eq!(check.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&check.stdout).lines().count(), 4, "{check:?}");
    let dry = run(&["gc"]);
    assert!(
        dry.status.success() && String::from_utf8_lossy(&dry.stderr).contains("would free 3 of 7"),
        "{dry:?}"
    );
    assert_eq!(files(), before, "nothing was touched so far");

    let done = run(&["gc", "--apply"]);
    assert!(String::from_utf8_lossy(&done.stderr).contains("freed 3 of 7"), "{done:?}");
    for (address, stays) in
        [("2", true), ("3", true), ("4", true), ("5", false), ("6", false), ("7", false), ("8", true)]
    {
        assert_eq!(at(&format!("networks/cbr0/203.0.113.{address}")).exists(), stays, "{address}");
    }
    assert_eq!(run(&["check"]).status.code(), Some(0));
    // Without its namespace and its grace the rest is nobody's, save what the runtime knows and what no plugin wrote.
    drop(namespace);
    let late = run(&["gc", "--apply", "--grace", "0"]);
    assert!(String::from_utf8_lossy(&late.stderr).contains("freed 2 of 4"), "{late:?}");
    assert!(!run(&["list", "--network", "absent"]).status.success());
}
