//! nf_tables against the running kernel and the real `nft`, in namespaces of the tests' own. Needs root.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Stdio};

use loden_firewall::*;
use loden_netlink::nft::{NftSocket, handles_where};
use loden_netlink::{Error, NetNs};

fn namespace() -> NetNs {
    NetNs::anonymous().expect("kernel tests make network namespaces: run them as root")
}

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap()
}

/// Runs the real nft in the namespace, feeding it `input`.
fn nft(netns: &NetNs, args: &[&str], input: &str) -> Result<String, String> {
    let run = || {
        let mut child = Command::new("nft")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests compare with Debian's nft: install nftables");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        if out.status.success() {
            Ok(String::from_utf8(out.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&out.stderr).into_owned())
        }
    };
    netns.run(run).unwrap()
}

fn load(netns: &NetNs, text: &str) {
    nft(netns, &["-f", "-"], text).unwrap();
}

fn listed(netns: &NetNs, table: &TableName) -> String {
    nft(netns, &["list", "table", &table.family.to_string(), &table.name], "").unwrap()
}

#[test]
fn what_has_no_word_in_a_table_of_ours_does_not_stay() {
    let netns = namespace();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    let ours =
        Table::new(Family::Ip, "ours").with_chain("c", Chain::regular(vec![Rule::new([], Action::Accept)]));
    socket.set_table(&ours).unwrap();
    let right = listed(&netns, &ours.key());
    load(&netns, "table ip theirs {\n\tset s {\n\t\ttype ipv4_addr\n\t}\n}\n");
    assert_eq!(socket.set_table(&ours).unwrap(), [], "another table's set is not ours");
    for (what, strange) in [
        ("set", "set s { type ipv4_addr; elements = { 10.0.0.1 }; }"),
        ("map", "map m { type ipv4_addr : verdict; elements = { 10.0.0.1 : drop }; }"),
        ("counter", "counter n { }"),
    ] {
        load(
            &netns,
            &format!("add {}\n", strange.replacen(&format!("{what} "), &format!("{what} ip ours "), 1)),
        );
        assert_ne!(listed(&netns, &ours.key()), right, "{what}");
        let seen = socket.table(&ours.key()).unwrap().unwrap().table;
        assert_ne!(seen, ours, "{what}");
        assert!(!socket.set_table(&ours).unwrap().is_empty(), "{what}");
        assert_eq!(listed(&netns, &ours.key()), right, "{what}");
    }
    // One that stands in a rule comes and goes with the rule, whose neighbours keep what they have counted.
    load(&netns, "add rule ip ours c ip saddr { 10.0.0.1, 10.0.0.3 } drop\n");
    let changes = socket.set_table(&ours).unwrap();
    assert!(matches!(changes.as_slice(), [Change::DeleteRule { .. }]), "{changes:?}");
    let theirs = TableName { family: Family::Ip, name: "theirs".to_owned() };
    assert!(listed(&netns, &theirs).contains("set s"));
}

/// The table flannel installs for one node, as its own `nft -f` input has it.
const FLANNEL: &str = r#"
table ip flannel-ipv4 {
    comment "rules for flannel-ipv4"
    chain forward {
        comment "chain to accept flannel traffic"
        type filter hook forward priority 0; policy accept;
        ip saddr 10.244.0.0/16 accept
        ip daddr 10.244.0.0/16 accept
    }
    chain postrtg {
        comment "chain to manage traffic masquerading by flannel"
        type nat hook postrouting priority 100; policy accept;
        meta mark 0x4000 return
        ip saddr 10.244.1.0/24 ip daddr 10.244.0.0/16 return
        ip saddr 10.244.0.0/16 ip daddr 10.244.1.0/24 return
        ip saddr != 10.244.1.0/24 ip daddr 10.244.0.0/16 return
        ip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
        ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random
    }
}
"#;

fn flannel() -> Table {
    let (network, subnet) = (net("10.244.0.0/16"), net("10.244.1.0/24"));
    let masquerade = || Action::Masquerade { fully_random: true };
    let forward = [Match::source(network), Match::destination(network)]
        .map(|m| Rule::new(vec![m], Action::Accept))
        .to_vec();
    let postrtg = vec![
        Rule::new(vec![Match::mark(0x4000)], Action::Return),
        Rule::new(vec![Match::source(subnet), Match::destination(network)], Action::Return),
        Rule::new(vec![Match::source(network), Match::destination(subnet)], Action::Return),
        Rule::new(vec![Match::not_source(subnet), Match::destination(network)], Action::Return),
        Rule::new(vec![Match::source(network), Match::not_destination(net("224.0.0.0/4"))], masquerade()),
        Rule::new(vec![Match::not_source(network), Match::destination(network)], masquerade()),
    ];
    Table::new(Family::Ip, "flannel-ipv4")
        .with_comment("rules for flannel-ipv4")
        .with_chain(
            "forward",
            Chain::hooked(Base::accepting(ChainKind::Filter, Hook::Forward, priority::FILTER), forward)
                .with_comment("chain to accept flannel traffic"),
        )
        .with_chain(
            "postrtg",
            Chain::hooked(Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT), postrtg)
                .with_comment("chain to manage traffic masquerading by flannel"),
        )
}

/// Every word of the vocabulary in tables of every family.
fn everything() -> Vec<Table> {
    let v4 = Match::source(net("10.0.0.0/8"));
    let v6 = Match::not_destination(net("fd00:0:0:8000::/49"));
    let tcp = |port| Match::DestinationPort { proto: L4::Tcp, port };
    let dnat = |addr: &str, port| Action::DestinationNat { addr: addr.parse().unwrap(), port };
    let rule = |matches: Vec<Match>, action| Rule::new(matches, action);
    let common = || {
        vec![
            rule(vec![], Action::Accept),
            rule(vec![Match::mark(1)], Action::Drop),
            rule(vec![Match::Mark { value: 4, mask: 0xff }], Action::Return),
            rule(vec![Match::InputLink("eth0".into()), Match::NotOutputLink("veth*".into())], Action::Drop),
            rule(
                vec![Match::NotInputLink("lo".into()), Match::OutputLink("cali*".into())],
                Action::Jump("r".into()),
            ),
            rule(vec![Match::L4 { proto: L4::Udp }], Action::Goto("r".into())).with_comment("a b, c"),
            rule(vec![Match::L4 { proto: L4::Icmp }, Match::Counter], Action::Continue),
            rule(vec![tcp(80), Match::Counter], Action::Drop),
            rule(
                vec![
                    Match::SourcePort { proto: L4::Udp, port: 53 },
                    Match::DestinationPort { proto: L4::Udp, port: 53 },
                ],
                Action::Accept,
            ),
            rule(vec![Match::DestinationPort { proto: L4::Sctp, port: 9 }], Action::Accept),
            rule(vec![], Action::SetMark { value: 0x4000, mask: u32::MAX }),
            rule(vec![], Action::SetMark { value: 0x4000, mask: 0x4000 }),
            rule(vec![], Action::SetMark { value: 0, mask: 0x4000 }),
        ]
    };
    let stateful = || {
        vec![
            rule(vec![Match::CtState(ct_state::ESTABLISHED | ct_state::RELATED)], Action::Accept),
            rule(vec![Match::CtState(ct_state::INVALID)], Action::Drop),
        ]
    };
    let filter = |rules| Chain::hooked(Base::accepting(ChainKind::Filter, Hook::Forward, -5), rules);
    let mut four = [common(), stateful()].concat();
    four.extend([
        rule(vec![v4.clone(), tcp(1)], Action::Accept),
        rule(vec![tcp(1), v4.clone()], Action::Accept),
        rule(vec![Match::source(net("0.0.0.0/0")), Match::destination(net("1.2.3.4/32"))], Action::Accept),
        rule(vec![Match::source(net("10.128.0.0/9"))], Action::Accept),
        rule(vec![Match::source(net("1.2.3.4/32")), Match::destination(net("10.0.0.0/8"))], Action::Accept),
    ]);
    let mut six = [common(), stateful()].concat();
    six.extend([
        rule(vec![v6.clone()], Action::Accept),
        rule(vec![Match::source(net("fd00::1/128")), Match::destination(net("ff00::/8"))], Action::Accept),
    ]);
    let mut inet = [common(), stateful()].concat();
    inet.extend([
        rule(vec![v4.clone(), Match::destination(net("10.1.0.0/16"))], Action::Accept),
        rule(vec![v6.clone()], Action::Accept),
        rule(vec![tcp(1), v4.clone()], Action::Accept),
    ]);
    let bridge = vec![
        rule(vec![Match::InputLink("veth1".into())], Action::Jump("r".into())),
        rule(vec![Match::EtherSource([2, 0, 0, 0, 0, 1])], Action::Return),
        rule(vec![v4.clone()], Action::Drop),
        rule(vec![v6], Action::Drop),
    ];
    let pre = |rules| Chain::hooked(Base::accepting(ChainKind::Nat, Hook::Prerouting, -95), rules);
    let post = |rules| Chain::hooked(Base::accepting(ChainKind::Nat, Hook::Postrouting, 100), rules);
    let snat = |addr: &str, port| Action::SourceNat { addr: addr.parse().unwrap(), port };
    let plain = || Action::Masquerade { fully_random: false };
    vec![
        Table::new(Family::Ip, "four")
            .with_chain("r", Chain::regular(vec![]).with_comment("called"))
            .with_chain("f", filter(four))
            .with_chain(
                "in",
                Chain::hooked(
                    Base { kind: ChainKind::Filter, hook: Hook::Input, priority: 7, policy: Policy::Drop },
                    vec![],
                ),
            )
            .with_chain("odd", Chain::hooked(Base::accepting(ChainKind::Route, Hook::Output, 4321), vec![]))
            .with_chain(
                "pre",
                pre(vec![
                    rule(vec![Match::DestinationLocal, tcp(80)], dnat("10.1.1.1", Some(8080))),
                    rule(vec![Match::destination(net("1.2.3.4/32"))], dnat("10.1.1.1", None)),
                ]),
            )
            .with_chain(
                "post",
                post(vec![
                    rule(vec![v4.clone()], snat("192.0.2.1", None)),
                    rule(vec![tcp(1)], snat("192.0.2.1", Some(99))),
                    rule(vec![], plain()),
                ]),
            ),
        Table::new(Family::Ip6, "six")
            .with_chain("r", Chain::regular(vec![]))
            .with_chain("f", filter(six))
            .with_chain("pre", pre(vec![rule(vec![tcp(80)], dnat("fd00::9", Some(8080)))]))
            .with_chain("post", post(vec![rule(vec![Match::source(net("fd00::/8"))], plain())])),
        Table::new(Family::Inet, "both")
            .with_comment("two families")
            .with_chain("r", Chain::regular(vec![]))
            .with_chain("f", filter(inet))
            .with_chain(
                "pre",
                pre(vec![
                    rule(vec![tcp(80)], dnat("10.1.1.1", Some(80))),
                    rule(vec![tcp(80)], dnat("fd00::9", None)),
                ]),
            )
            .with_chain("post", post(vec![rule(vec![v4], plain())])),
        Table::new(Family::Bridge, "nat").with_chain("r", Chain::regular(vec![])).with_chain(
            "PREROUTING",
            Chain::hooked(Base::accepting(ChainKind::Filter, Hook::Prerouting, -300), bridge),
        ),
    ]
}

#[test]
fn flannels_table_lists_as_if_nft_had_written_it() {
    let (theirs, ours) = (namespace(), namespace());
    load(&theirs, FLANNEL);
    let desired = flannel();
    let mut socket = NftSocket::open_in(&ours).unwrap();
    assert!(!socket.set_table(&desired).unwrap().is_empty());
    assert_eq!(listed(&ours, &desired.key()), listed(&theirs, &desired.key()));
    assert_eq!(listed(&ours, &desired.key()).trim_end(), desired.to_string());

    let read_back = NftSocket::open_in(&theirs).unwrap().table(&desired.key()).unwrap().unwrap();
    assert_eq!(read_back.table, desired, "what nft wrote decodes to the value");
    assert_eq!(socket.set_table(&desired).unwrap(), [], "a table that is right is left alone");
    let mut there = NftSocket::open_in(&theirs).unwrap();
    assert_eq!(there.set_table(&desired).unwrap(), [], "nft's table is right too");
    assert!(socket.delete_table(&desired.key()).unwrap());
    assert!(!socket.delete_table(&desired.key()).unwrap());
    assert_eq!(socket.table(&desired.key()).unwrap(), None);
}

#[test]
fn every_word_means_the_same_to_nft() {
    let (theirs, ours) = (namespace(), namespace());
    let mut socket = NftSocket::open_in(&ours).unwrap();
    let mut there = NftSocket::open_in(&theirs).unwrap();
    for table in everything() {
        socket.set_table(&table).unwrap();
        assert_eq!(socket.table(&table.key()).unwrap().unwrap().table, table);
        load(&theirs, &table.to_string());
        assert_eq!(there.table(&table.key()).unwrap().unwrap().table, table);
        assert_eq!(listed(&ours, &table.key()), listed(&theirs, &table.key()));
        assert_eq!(listed(&ours, &table.key()).trim_end().split("\n\n\t").count(), table.chains.len());
    }
    assert_eq!(socket.tables().unwrap().len(), everything().len());
}

#[test]
fn a_tampered_table_heals_with_the_fewest_edits() {
    let netns = namespace();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    let desired = flannel();
    socket.set_table(&desired).unwrap();
    let before = socket.table(&desired.key()).unwrap().unwrap();
    for (tampering, edits) in [
        ("insert rule ip flannel-ipv4 forward ip saddr 1.2.3.4 drop", 1),
        ("add rule ip flannel-ipv4 forward meta hour \"10:00\"-\"11:00\" drop", 1),
        ("flush chain ip flannel-ipv4 forward", 2),
        ("chain ip flannel-ipv4 forward { policy drop; }", 1),
        (
            "add chain ip flannel-ipv4 extra; add rule ip flannel-ipv4 extra drop; add rule ip flannel-ipv4 postrtg jump extra",
            3,
        ),
        ("add table ip flannel-ipv4 { flags dormant; }", 1),
    ] {
        load(&netns, tampering);
        let changes = socket.set_table(&desired).unwrap();
        assert_eq!(changes.len(), edits, "{tampering}: {changes:?}");
        assert_eq!(socket.table(&desired.key()).unwrap().unwrap().table, desired, "{tampering}");
    }
    let after = socket.table(&desired.key()).unwrap().unwrap();
    assert_eq!(after.handles["postrtg"], before.handles["postrtg"], "right rules keep their identity");
    load(&netns, "delete chain ip flannel-ipv4 forward");
    load(&netns, "add chain ip flannel-ipv4 forward { type filter hook forward priority 5; }");
    assert!(socket.set_table(&desired).unwrap().iter().any(|c| matches!(c, Change::DeleteTable(_))));
    assert_eq!(listed(&netns, &desired.key()).trim_end(), desired.to_string());
}

#[test]
fn what_has_no_word_is_opaque_and_never_equal() {
    let netns = namespace();
    load(
        &netns,
        "table inet t { set s { type ipv4_addr; }\n chain c { ip saddr @s drop\n meta nfproto ipv4 accept\n limit rate 1/second accept\n tcp flags syn drop\n ip saddr { 10.0.0.1, 10.0.0.2 } accept\n ct state new log prefix \"x\" accept\n ip saddr > 10.0.0.0 accept\n}\n}",
    );
    let key = TableName { family: Family::Inet, name: "t".to_owned() };
    let table = NftSocket::open_in(&netns).unwrap().table(&key).unwrap().unwrap().table;
    assert_eq!(table.chains["c"].rules.len(), 7);
    for rule in &table.chains["c"].rules {
        assert!(rule.is_opaque(), "{rule:?}");
    }
    assert!(table.check().is_err(), "an observed table with opaque rules cannot become a desired one");
}

#[test]
fn a_transaction_is_all_or_nothing_and_errors_name_the_edit() {
    let netns = namespace();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    let table = TableName { family: Family::Ip, name: "t".to_owned() };
    let add_table = Change::AddTable { table: table.clone(), comment: None };
    let jump = Change::AddRule {
        table: table.clone(),
        chain: "missing".to_owned(),
        before: None,
        rule: Rule::new(vec![], Action::Accept),
    };
    let error = socket.apply(&[add_table, jump]).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().starts_with("cannot add rule ip t missing accept: "), "{error}");
    assert_eq!(socket.table(&table).unwrap(), None, "the first edit was undone");

    // Masquerading has no place in a filter chain; the kernel points at the expression.
    let bad = Table::new(Family::Ip, "t").with_chain(
        "c",
        Chain::hooked(
            Base::accepting(ChainKind::Filter, Hook::Forward, 0),
            vec![Rule::new(vec![], Action::Masquerade { fully_random: false })],
        ),
    );
    let error = socket.set_table(&bad).unwrap_err();
    assert!(matches!(&error, Error::MissingFeature { feature, .. } if feature.contains("masq")), "{error}");
    assert_eq!(socket.tables().unwrap(), []);
}

#[test]
fn thousands_of_rules_go_in_one_transaction() {
    let netns = namespace();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    let rules = (0..5000_u32)
        .map(|i| {
            let source = std::net::Ipv4Addr::from(0x0a00_0000 + i);
            Rule::new(vec![Match::source(ipnet::IpNet::new(source.into(), 32).unwrap())], Action::Accept)
                .with_comment(format!("pod {i}"))
        })
        .collect();
    let mut table = Table::new(Family::Ip, "big").with_chain("c", Chain::regular(rules));
    socket.set_table(&table).unwrap();
    table.chains.get_mut("c").unwrap().rules.remove(1234);
    assert_eq!(socket.set_table(&table).unwrap().len(), 1);
    let listed = socket.table(&table.key()).unwrap().unwrap();
    assert_eq!(listed.table, table);
    assert_eq!(handles_where(&listed, "c", |r| r.comment.as_deref() == Some("pod 7")).count(), 1);
}

#[test]
fn priorities_are_named_where_nft_names_them() {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    let netns = namespace();
    let mut socket = NftSocket::open_in(&netns).unwrap();
    for family in [Family::Ip, Family::Ip6, Family::Inet, Family::Bridge] {
        let mut table = Table::new(family, "t");
        for hook in [Prerouting, Input, Forward, Output, Postrouting] {
            for named in [-300, -225, -200, -150, -100, 0, 50, 100, 300] {
                for priority in [-11, -10, -1, 0, 1, 10, 11].map(|near| named + near) {
                    let base = Base::accepting(ChainKind::Filter, hook, priority);
                    table = table.with_chain(format!("c{hook}{priority}"), Chain::hooked(base, vec![]));
                }
            }
        }
        socket.set_table(&table).unwrap();
        assert_eq!(listed(&netns, &table.key()).trim_end(), table.to_string());
    }
}
