//! Edits between tables: what a kernel that takes them one by one ends up with.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use loden_firewall::*;
use proptest::prelude::*;

/// nf_tables in a few lines: tables with handles, refusing what the kernel refuses.
#[derive(Debug, Clone, Default)]
struct Tables {
    tables: BTreeMap<TableName, Listed>,
    next: u64,
}

impl Tables {
    fn apply(&mut self, change: &Change) {
        let name = change.table().clone();
        if let Change::AddTable { comment, .. } = change {
            let fresh = || {
                let mut table = Table::new(name.family, name.name.clone());
                table.comment.clone_from(comment);
                Listed { table, handles: BTreeMap::new() }
            };
            self.tables.entry(name.clone()).or_insert_with(fresh).table.dormant = false;
            return;
        }
        if let Change::DeleteTable(_) = change {
            assert!(self.tables.remove(&name).is_some(), "{change}: no such table");
            return;
        }
        self.next += 1;
        let handle = self.next;
        let Listed { table, handles } =
            self.tables.get_mut(&name).unwrap_or_else(|| panic!("{change}: no table"));
        match change {
            Change::AddChain { chain, base, comment, .. } => match table.chains.get_mut(chain) {
                None => {
                    let new = Chain { base: *base, comment: comment.clone(), rules: Vec::new() };
                    table.chains.insert(chain.clone(), new);
                    handles.insert(chain.clone(), Vec::new());
                }
                Some(have) => match (&mut have.base, base) {
                    (Some(have), Some(want)) => {
                        assert_eq!(
                            Base { policy: want.policy, ..*have },
                            *want,
                            "{change}: the hook is fixed"
                        );
                        have.policy = want.policy;
                    }
                    (have, want) => assert_eq!(have.as_ref(), want.as_ref(), "{change}"),
                },
            },
            Change::FlushChain { chain, .. } => {
                table.chains.get_mut(chain).expect("the chain to flush exists").rules.clear();
                handles.insert(chain.clone(), Vec::new());
            }
            Change::DeleteChain { chain, .. } => {
                let gone = table.chains.remove(chain).expect("the chain to delete exists");
                assert!(gone.rules.is_empty(), "{change}: it still has rules");
                assert!(!is_called(table, chain), "{change}: a rule still calls it");
                handles.remove(chain);
            }
            Change::AddRule { chain, before, rule, .. } => {
                if let Action::Jump(to) | Action::Goto(to) = &rule.action {
                    assert!(
                        table.chains.contains_key(to),
                        "{change}: it calls a chain that is not there yet"
                    );
                }
                let rules = &mut table.chains.get_mut(chain).expect("the rule's chain exists").rules;
                let handles = handles.get_mut(chain).unwrap();
                let at = match before {
                    None => rules.len(),
                    Some(next) => handles.iter().position(|h| h == next).expect("the rule to precede exists"),
                };
                rules.insert(at, rule.clone());
                handles.insert(at, handle);
            }
            Change::DeleteRule { chain, handle, .. } => {
                let handles = handles.get_mut(chain).unwrap();
                let at = handles.iter().position(|h| h == handle).expect("the rule to delete exists");
                handles.remove(at);
                table.chains.get_mut(chain).unwrap().rules.remove(at);
            }
            Change::AddTable { .. } | Change::DeleteTable(_) => unreachable!("dealt with above"),
        }
    }
}

fn is_called(table: &Table, chain: &str) -> bool {
    let calls = |rule: &Rule| matches!(&rule.action, Action::Jump(to) | Action::Goto(to) if to == chain);
    table.chains.values().flat_map(|c| &c.rules).any(calls)
}

/// A small domain, so that rules repeat and tables share most of what they hold.
fn any_rule() -> impl Strategy<Value = Rule> {
    let action = prop_oneof![
        Just(Action::Accept),
        Just(Action::Drop),
        Just(Action::Jump("a".to_owned())),
        Just(Action::Goto("b".to_owned())),
    ];
    (0..4_u32, action).prop_map(|(mark, action)| Rule::new(vec![Match::mark(mark)], action))
}

fn any_chain() -> impl Strategy<Value = Chain> {
    (prop::collection::vec(any_rule(), 0..6), prop::option::weighted(0.1, Just("note".to_owned())))
        .prop_map(|(rules, comment)| Chain { base: None, comment, rules })
}

fn any_table() -> impl Strategy<Value = Table> {
    let base = (any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(drop, early)| Base {
        policy: if drop { Policy::Drop } else { Policy::Accept },
        ..Base::accepting(ChainKind::Filter, Hook::Forward, if early { -5 } else { 0 })
    });
    let hooked = (base, any_chain()).prop_map(|(base, chain)| Chain { base: Some(base), ..chain });
    let extra = prop::option::of(any_chain());
    (hooked, any_chain(), any_chain(), extra, prop::bool::weighted(0.1)).prop_map(
        |(f, a, b, extra, noted)| {
            let mut table =
                Table::new(Family::Ip, "t").with_chain("f", f).with_chain("a", a).with_chain("b", b);
            if let Some(extra) = extra {
                table = table.with_chain("extra", extra);
            }
            if noted { table.with_comment("note") } else { table }
        },
    )
}

fn installed(table: &Table) -> Tables {
    let mut kernel = Tables::default();
    for change in changes(None, table) {
        kernel.apply(&change);
    }
    kernel
}

proptest! {
    #[test]
    fn a_table_made_from_nothing_is_the_desired_one(table in any_table()) {
        let kernel = installed(&table);
        prop_assert_eq!(&kernel.tables[&table.key()].table, &table);
        prop_assert_eq!(changes(Some(&kernel.tables[&table.key()]), &table), vec![]);
    }

    #[test]
    fn edits_reach_the_desired_table(from in any_table(), to in any_table(), asleep in any::<bool>()) {
        let mut kernel = installed(&from);
        kernel.tables.get_mut(&from.key()).unwrap().table.dormant = asleep;
        for change in changes(Some(&kernel.tables[&from.key()]), &to) {
            kernel.apply(&change);
        }
        prop_assert_eq!(&kernel.tables[&to.key()].table, &to);
    }

    #[test]
    fn a_rule_on_both_sides_of_an_edit_keeps_its_handle(
        table in any_table(), at in any::<prop::sample::Index>(), rule in any_rule(), remove in any::<bool>(),
    ) {
        let mut kernel = installed(&table);
        let before = kernel.tables[&table.key()].clone();
        let mut desired = table;
        let rules = &mut desired.chains.get_mut("f").unwrap().rules;
        if remove && !rules.is_empty() {
            rules.remove(at.index(rules.len()));
        } else {
            rules.insert(at.index(rules.len() + 1), rule);
        }
        let edits = changes(Some(&before), &desired);
        prop_assert!(edits.len() <= 1, "{:?}", edits);
        for change in &edits {
            kernel.apply(change);
        }
        let after = &kernel.tables[&desired.key()];
        prop_assert_eq!(&after.table, &desired);
        let lost = before.handles["f"].iter().filter(|h| !after.handles["f"].contains(h)).count();
        prop_assert!(lost <= usize::from(remove));
    }
}

#[test]
fn a_rule_nobody_can_read_is_replaced_alone() {
    let chain = |rules| Chain::hooked(Base::accepting(ChainKind::Filter, Hook::Forward, 0), rules);
    let accept = |mark| Rule::new(vec![Match::mark(mark)], Action::Accept);
    let opaque = Rule::new(vec![Match::Opaque("meta range immediate".to_owned())], Action::Opaque);
    let desired = Table::new(Family::Ip, "t").with_chain("f", chain(vec![accept(1), accept(2)]));
    let seen = Table::new(Family::Ip, "t").with_chain("f", chain(vec![accept(1), opaque, accept(2)]));
    let listed = Listed { table: seen, handles: [("f".to_owned(), vec![4, 5, 6])].into() };
    let edits: Vec<String> = changes(Some(&listed), &desired).iter().map(Change::to_string).collect();
    assert_eq!(edits, ["delete rule ip t f handle 5"]);
}

#[test]
fn edits_print_as_nft_commands() {
    let table = TableName { family: Family::Inet, name: "t".to_owned() };
    let rule = Rule::new(
        vec![Match::DestinationPort { proto: L4::Tcp, port: 80 }],
        Action::DestinationNat { addr: "fd00::9".parse().unwrap(), port: Some(8080) },
    )
    .with_comment("web");
    let base = Base::accepting(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT + 5);
    let (t, c) = (table.clone(), "pre".to_owned());
    let lines = [
        Change::AddTable { table: t.clone(), comment: Some("mine".to_owned()) },
        Change::AddChain { table: t.clone(), chain: c.clone(), base: Some(base), comment: None },
        Change::AddChain {
            table: t.clone(),
            chain: "x".to_owned(),
            base: None,
            comment: Some("called".to_owned()),
        },
        Change::AddRule { table: t.clone(), chain: c.clone(), before: None, rule: rule.clone() },
        Change::AddRule { table: t.clone(), chain: c.clone(), before: Some(7), rule },
        Change::DeleteRule { table: t.clone(), chain: c.clone(), handle: 9 },
        Change::FlushChain { table: t.clone(), chain: c.clone() },
        Change::DeleteChain { table: t, chain: c },
        Change::DeleteTable(table),
    ]
    .map(|change| change.to_string());
    assert_eq!(
        lines,
        [
            "add table inet t { comment \"mine\"; }",
            "add chain inet t pre { type nat hook prerouting priority dstnat + 5; policy accept; }",
            "add chain inet t x { comment \"called\"; }",
            "add rule inet t pre tcp dport 80 dnat ip6 to [fd00::9]:8080 comment \"web\"",
            "insert rule inet t pre handle 7 tcp dport 80 dnat ip6 to [fd00::9]:8080 comment \"web\"",
            "delete rule inet t pre handle 9",
            "flush chain inet t pre",
            "delete chain inet t pre",
            "delete table inet t",
        ]
    );
}

#[test]
fn what_the_kernel_would_refuse_is_refused_with_its_place() {
    let table = |rule: Rule| Table::new(Family::Ip, "t").with_chain("c", Chain::regular(vec![rule]));
    let one = |m: Match| Rule::new(vec![m], Action::Accept);
    let to = |action| Rule::new(vec![], action);
    for (bad, why) in [
        (table(one(Match::source("fd00::/8".parse().unwrap()))), "another address family"),
        (table(one(Match::DestinationPort { proto: L4::Icmp, port: 1 })), "icmp has no ports"),
        (table(one(Match::Mark { value: 0x10, mask: 0x0f })), "can never match"),
        (table(one(Match::InputLink("a-name-beyond-fifteen".to_owned()))), "is no link name"),
        (
            table(one(Match::Source { net: "10.0.0.1/8".parse().unwrap(), negated: false })),
            "beyond its prefix",
        ),
        (
            table(Rule::new(
                vec![Match::L4 { proto: L4::Tcp }, Match::DestinationPort { proto: L4::Tcp, port: 80 }],
                Action::Accept,
            )),
            "leave it out",
        ),
        (table(one(Match::CtState(0))), "no set of connection states"),
        (table(one(Match::Opaque("x".to_owned()))), "cannot be written"),
        (table(to(Action::Jump("nowhere".to_owned()))), "there is no chain nowhere"),
        (
            table(to(Action::DestinationNat { addr: "fd00::1".parse().unwrap(), port: None })),
            "another address family",
        ),
        (table(to(Action::SetMark { value: 2, mask: 1 })), "outside its mask"),
        (table(to(Action::Accept).with_comment("a \" b")), "without quotes"),
        (table(to(Action::Accept).with_comment("x".repeat(129))), "at most 128 bytes"),
        (Table::new(Family::Ip, "9 lives"), "the name must be"),
        (
            Table::new(Family::Ip, "t")
                .with_chain("c", Chain::hooked(Base::accepting(ChainKind::Nat, Hook::Forward, 0), vec![])),
            "cannot hook forward",
        ),
    ] {
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(table(to(Action::Goto("c".to_owned()))).check().is_ok());
}

#[test]
fn priorities_print_by_name_within_ten() {
    let printed = |family, hook, priority| {
        let chain = Chain::hooked(Base::accepting(ChainKind::Filter, hook, priority), vec![]);
        let text = Table::new(family, "t").with_chain("c", chain).to_string();
        text.lines().nth(2).unwrap().trim().to_owned()
    };
    assert_eq!(
        printed(Family::Ip, Hook::Forward, 0),
        "type filter hook forward priority filter; policy accept;"
    );
    for (family, hook, priority, word) in [
        (Family::Ip, Hook::Forward, 10, "filter + 10"),
        (Family::Ip, Hook::Forward, 11, "11"),
        (Family::Ip, Hook::Forward, 100, "100"),
        (Family::Ip6, Hook::Postrouting, 95, "srcnat - 5"),
        (Family::Inet, Hook::Prerouting, -300, "raw"),
        (Family::Inet, Hook::Input, 50, "security"),
        (Family::Bridge, Hook::Prerouting, -300, "dstnat"),
        (Family::Bridge, Hook::Forward, -195, "filter + 5"),
        (Family::Bridge, Hook::Forward, 0, "0"),
        (Family::Bridge, Hook::Output, 100, "out"),
        (Family::Bridge, Hook::Postrouting, 300, "srcnat"),
    ] {
        let line = printed(family, hook, priority);
        assert!(line.contains(&format!("priority {word};")), "{line}");
    }
}
