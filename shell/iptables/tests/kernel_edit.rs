//! Edits of iptables' tables, made and read with the real programs of both variants. Needs root and Debian's iptables.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test bed that does not work is a failed test"
)]

use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use loden_firewall::iptables::{Change, Observed, Place, Rule, Table};
use loden_iptables::{Family, Iptables, Variant};
use loden_netlink::NetNs;
use tempfile::TempDir;

/// A namespace, and a directory with the programs of one variant.
struct Host {
    ns: NetNs,
    bin: TempDir,
    variant: Variant,
}

impl Host {
    fn both() -> [Self; 2] {
        [Self::new(Variant::Nft), Self::new(Variant::Legacy)]
    }

    fn new(variant: Variant) -> Self {
        let ns = NetNs::anonymous().expect("kernel tests need root and network namespaces: run them as root");
        let bin = tempfile::tempdir().unwrap();
        let multi = match variant {
            Variant::Nft => "/usr/sbin/xtables-nft-multi",
            Variant::Legacy => "/usr/sbin/xtables-legacy-multi",
        };
        assert!(Path::new(multi).exists(), "apt-get install iptables: {multi} is missing");
        for family in Family::ALL {
            for suffix in ["", "-restore", "-save"] {
                symlink(multi, bin.path().join(format!("{}{suffix}", family.program()))).unwrap();
            }
        }
        Self { ns, bin, variant }
    }

    fn edit(&self, family: Family, chains: &[&str], plan: impl Fn(&Observed) -> Vec<Change> + Sync) -> usize {
        let run = || {
            let mut tables = Iptables::find_in(family, self.bin.path().as_os_str()).unwrap().unwrap();
            assert_eq!(tables.variant(), self.variant);
            tables.edit(Table::Nat, chains, |observed| plan(observed)).unwrap().len()
        };
        self.ns.run(run).unwrap()
    }

    fn remove(&self, family: Family, chains: &[&str], plan: impl Fn(&Observed) -> Vec<Change> + Sync) {
        let run = || {
            for mut place in Iptables::for_removal_in(family, self.bin.path().as_os_str()).unwrap() {
                place.edit(Table::Nat, chains, |observed| plan(observed)).unwrap();
            }
        };
        self.ns.run(run).unwrap();
    }

    /// Runs one of the programs; what it prints.
    fn program(&self, name: &str, args: &[&str], input: &str) -> String {
        let run = || {
            let mut child = Command::new(self.bin.path().join(name))
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{name} {args:?} {input}");
            String::from_utf8(output.stdout).unwrap()
        };
        self.ns.run(run).unwrap()
    }

    /// The rules and chains of the table, without its policies.
    fn seen(&self, family: Family) -> Vec<String> {
        let text = self.program(family.program(), &["-t", "nat", "-S"], "");
        text.lines().filter(|line| !line.starts_with("-P ")).map(str::to_owned).collect()
    }
}

const COMMENT: &str = r#"name: "a b\" id: "c$(1)`'""#;

fn rule(words: &str) -> Rule {
    let words = words.split(' ').map(|word| if word == "COMMENT" { COMMENT } else { word });
    Rule::new(words)
}

/// A container's chain as ipMasq has it, reached once from POSTROUTING.
fn plan(observed: &Observed, source: &str, net: &str, multicast: &str) -> Vec<Change> {
    let content = [
        rule(&format!("-d {net} -m comment --comment COMMENT -j ACCEPT")),
        rule(&format!("! -d {multicast} -m comment --comment COMMENT -j MASQUERADE")),
    ];
    let jump = rule(&format!("-s {source} -m comment --comment COMMENT -j CNI-a"));
    let mut changes = observed.with_content("CNI-a", &content);
    changes.extend(observed.with_rule("POSTROUTING", &jump, Place::Last));
    changes
}

const CHAINS: [&str; 2] = ["CNI-a", "POSTROUTING"];

#[test]
fn an_edit_is_made_once_recognised_and_taken_back() {
    for host in Host::both() {
        for (family, source, net, multicast) in [
            (Family::V4, "10.1.0.5/32", "10.1.0.0/20", "224.0.0.0/4"),
            (Family::V6, "fd00::5/128", "fd00::/64", "ff00::/8"),
        ] {
            let desired = |observed: &Observed| plan(observed, source, net, multicast);
            assert_eq!(host.edit(family, &CHAINS, desired), 4, "{:?}", host.variant);
            let quoted = rule("COMMENT").to_string();
            let expected = [
                "-N CNI-a".to_owned(),
                format!("-A POSTROUTING -s {source} -m comment --comment {quoted} -j CNI-a"),
                format!("-A CNI-a -d {net} -m comment --comment {quoted} -j ACCEPT"),
                format!("-A CNI-a ! -d {multicast} -m comment --comment {quoted} -j MASQUERADE"),
            ];
            assert_eq!(host.seen(family), expected);
            assert_eq!(
                host.edit(family, &CHAINS, desired),
                0,
                "{:?} did not recognise its own",
                host.variant
            );

            // A rule more in the chain, and a second jump.
            host.program(family.program(), &["-t", "nat", "-A", "CNI-a", "-j", "RETURN"], "");
            let again = format!("*nat\n{}\nCOMMIT\n", expected[1]);
            host.program(&format!("{}-restore", family.program()), &["--noflush"], &again);
            assert_eq!(host.edit(family, &CHAINS, desired), 4);
            assert_eq!(host.seen(family), expected);

            host.remove(family, &CHAINS, |observed| observed.without_chain("CNI-a", &["POSTROUTING"]));
            assert!(host.seen(family).is_empty());
            host.remove(family, &CHAINS, |observed| observed.without_chain("CNI-a", &["POSTROUTING"]));
        }
    }
}

/// Every kind of rule that the Go plugins write: iptables is the judge of how it reads.
#[test]
fn rules_read_as_iptables_prints_them() {
    let lines = [
        "-s 10.1.0.0/16 -j RETURN",
        "! -s 10.1.128.0/17 ! -d 10.0.0.0/9 -j ACCEPT",
        "-i br0 ! -o br0 -m comment --comment \"a b\" -j CNI-x",
        "! -i veth+ -j CNI-x",
        "-d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-m conntrack --ctstate INVALID,NEW,UNTRACKED -j CNI-x",
        "-m addrtype --dst-type LOCAL -j CNI-x",
        "-p tcp -m comment --comment \"dnat name: \\\"n\\\" id: \\\"c\\\"\" -m multiport --dports 80,443,8000:8010 -j CNI-x",
        "-s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-x",
        "-s 10.1.0.0/24 -d 10.9.9.9/32 -p udp -m udp --dport 53 -j CNI-x",
        "-p sctp -m sctp --dport 9 -j CNI-x",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.1.0.5:8080",
        "-m mark --mark 0x2000/0x2000 -j MASQUERADE",
        "-m mark --mark 0x7 -j MASQUERADE --random-fully",
        "-m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000",
        "-g CNI-x",
        "-p icmp -j CNI-x",
    ];
    let input = |lines: &[&str]| -> String {
        let rules: String = lines.iter().map(|line| format!("-A CNI-y {line}\n")).collect();
        format!("*nat\n-N CNI-x\n-N CNI-y\n{rules}COMMIT\n")
    };
    for host in Host::both() {
        host.program("iptables-restore", &["--noflush"], &input(&lines));
        let read = |family| {
            let run = || {
                let mut tables = Iptables::find_in(family, host.bin.path().as_os_str()).unwrap().unwrap();
                tables.observe(Table::Nat, &["CNI-y"]).unwrap()
            };
            host.ns.run(run).unwrap()
        };
        let observed = read(Family::V4);
        let rules = observed.rules("CNI-y");
        assert_eq!(rules.len(), lines.len());
        let saved = host.program("iptables", &["-t", "nat", "-S", "CNI-y"], "");
        for ((found, line), saved) in rules.iter().zip(lines).zip(saved.lines().skip(1)) {
            assert_eq!(format!("-A CNI-y {}", found.rule), saved, "{:?}: {line}", host.variant);
            assert_eq!(found.rule.to_string(), line, "{:?}", host.variant);
            assert!(found.is_whole, "{:?}: {line}", host.variant);
        }
        let lines = [
            "-s fd00::5/128 -p tcp -m tcp --dport 80 -j CNI-x",
            "-d fd00::/60 -j CNI-x",
            "-p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::5]:8080",
            "! -d ff00::/8 -j MASQUERADE",
            "-p ipv6-icmp -j CNI-x",
        ];
        host.program("ip6tables-restore", &["--noflush"], &input(&lines));
        let observed = read(Family::V6);
        let texts: Vec<String> = observed.rules("CNI-y").iter().map(|found| found.rule.to_string()).collect();
        assert_eq!(texts, lines, "{:?}", host.variant);
        assert!(observed.rules("CNI-y").iter().all(|found| found.is_whole));
    }
}

/// A rule that has something nobody here knows is told by what is known, and equals nothing.
#[test]
fn an_unknown_setting_is_never_passed_over() {
    let host = Host::new(Variant::Nft);
    let lines = [
        "-s 10.1.0.5/32 -m statistic --mode random --probability 0.5 -m comment --comment k -j CNI-x",
        "-s 10.1.0.5/32 -m conntrack --ctstate NEW --ctstatus ASSURED -m comment --comment k -j CNI-x",
        "-s 10.1.0.5/32 -m comment --comment k -m mac --mac-source 02:00:00:00:00:01 -j CNI-x",
        "-s 10.1.0.5/32 -m addrtype --src-type LOCAL --dst-type LOCAL -m comment --comment k -j CNI-x",
        "-s 10.1.0.5/32 -m limit --limit 1/sec -m comment --comment k -j CNI-x",
        "-s 10.1.0.5/32 -f -m comment --comment k -j CNI-x",
        "-s 10.1.0.5/32 -p gre -m comment --comment k -j CNI-x",
    ];
    let rules: String = lines.iter().map(|line| format!("-A CNI-y {line}\n")).collect();
    host.program("iptables-restore", &["-n"], &format!("*nat\n-N CNI-x\n-N CNI-y\n{rules}COMMIT\n"));
    let read = || {
        let mut tables = Iptables::find_in(Family::V4, host.bin.path().as_os_str()).unwrap().unwrap();
        tables.observe(Table::Nat, &["CNI-y"]).unwrap()
    };
    let observed = host.ns.run(read).unwrap();
    for (found, line) in observed.rules("CNI-y").iter().zip(lines) {
        assert!(!found.is_whole, "{line} was read as {}", found.rule);
        assert_eq!((found.rule.comment(), found.rule.target()), (Some("k"), Some("CNI-x")), "{line}");
    }
    assert_eq!(observed.rules("CNI-y").len(), lines.len());
}
