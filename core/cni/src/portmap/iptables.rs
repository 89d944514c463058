//! The iptables backend: chains and rules of the `nat` table, in iptables' words.
//!
//! Names are frozen: every release of the Go plugin looks for the same ones. A container has one chain of its own, which goes with it, and
//! one rule per protocol and 15 ports in a shared chain that leads there. Rules are spelled as `iptables-save` prints them, so that CHECK
//! finds them again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use loden_firewall::iptables::{Change, Observed, Place, Rule};

use super::config::{LOCALHOST, PortmapConfig};
use crate::error::Error;
use crate::masquerade::hash;

/// Gives packets the mark that asks for masquerading.
pub const SETMARK: &str = "CNI-HOSTPORT-SETMARK";
/// Masquerades packets with that mark.
pub const MASQ: &str = "CNI-HOSTPORT-MASQ";
/// Leads to every container's chain.
pub const DNAT: &str = "CNI-HOSTPORT-DNAT";
/// What Go releases before 0.7 had besides.
pub const OLD_SNAT: &str = "CNI-HOSTPORT-SNAT";

/// What containers' chains begin with.
pub const OWN_PREFIX: &str = "CNI-DN-";

/// The most ports that one `multiport` match takes.
const PORTS_AT_ONCE: usize = 15;
/// The longest comment that iptables takes, in bytes.
const COMMENT_LIMIT: usize = 255;

/// The container's own chain.
pub fn dnat_chain(network: &str, container_id: &str) -> String {
    format!("CNI-DN-{}", hash(&format!("{network}{container_id}"), 21))
}

/// The container's second chain in Go releases before 0.7.
pub fn old_snat_chain(network: &str, container_id: &str) -> String {
    format!("CNI-SN-{}", hash(&format!("{network}{container_id}"), 21))
}

/// The one rule of [`SETMARK`] for this mark.
pub fn setmark_rule(mark: u32) -> Rule {
    let mark = format!("{mark:#x}/{mark:#x}");
    Rule::new([
        "-m",
        "comment",
        "--comment",
        "CNI portfwd masquerade mark",
        "-j",
        "MARK",
        "--set-xmark",
        &mark,
    ])
}

/// The one rule of [`MASQ`] for this mark.
pub fn masq_rule(mark: u32) -> Rule {
    let mark = format!("{mark:#x}/{mark:#x}");
    Rule::new(["-m", "mark", "--mark", &mark, "-j", "MASQUERADE"])
}

/// What leads from `POSTROUTING` to [`MASQ`]; it stands first there, since what comes later may end the way.
pub fn masq_entry() -> Rule {
    Rule::new(["-m", "comment", "--comment", "CNI portfwd requiring masquerade", "-j", MASQ])
}

/// What leads from `PREROUTING` and `OUTPUT` to [`DNAT`].
pub fn dnat_entry() -> Rule {
    Rule::new(["-m", "addrtype", "--dst-type", "LOCAL", "-j", DNAT])
}

/// The comment on what leads from [`DNAT`] to a container's chain. The reference plugins end a long one with three dots behind 253 bytes, of
/// which `iptables` keeps two.
pub fn comment(network: &str, container_id: &str) -> String {
    let mut comment = format!("{}{container_id}\"", comment_start(network));
    if comment.len() > COMMENT_LIMIT {
        comment.truncate(COMMENT_LIMIT - 2);
        comment.push_str("..");
    }
    comment
}

/// What [`comment`] starts with for every container of a network.
pub fn comment_start(network: &str) -> String {
    format!("dnat name: \"{network}\" id: \"")
}

/// The rules in [`DNAT`] that lead to the container's chain: by protocol, at most 15 ports each, with the configuration's conditions.
pub fn entries(config: &PortmapConfig, v4: bool, container_id: &str) -> Vec<Rule> {
    let mut ports: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for mapping in &config.mappings {
        ports.entry(&mapping.protocol).or_default().push(mapping.host_port.to_string());
    }
    let (first, last) = conditions(config.conditions(v4));
    let comment = comment(&config.network, container_id);
    let chain = dnat_chain(&config.network, container_id);
    let mut entries = Vec::new();
    for (protocol, ports) in ports {
        for some in ports.chunks(PORTS_AT_ONCE) {
            let ports = some.join(",");
            let own = [
                "-p",
                protocol,
                "-m",
                "comment",
                "--comment",
                &comment,
                "-m",
                "multiport",
                "--dports",
                &ports,
            ];
            let words = first.iter().map(String::as_str).chain(own).chain(last.iter().map(String::as_str));
            entries.push(Rule::new(words.chain(["-j", &chain])));
        }
    }
    entries
}

/// Condition words in the order of `iptables-save`: addresses and links, which come first, and the rest.
fn conditions(words: &[String]) -> (Vec<String>, Vec<String>) {
    let mut own: [Vec<String>; 4] = Default::default();
    let mut rest = Vec::new();
    let mut words = words.iter().filter(|word| !word.is_empty()).peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        let place = match word.as_str() {
            "!" => {
                negated = true;
                continue;
            }
            "-s" | "--source" | "--src" => Some((0, "-s")),
            "-d" | "--destination" | "--dst" => Some((1, "-d")),
            "-i" | "--in-interface" => Some((2, "-i")),
            "-o" | "--out-interface" => Some((3, "-o")),
            _ => None,
        };
        let target = match place {
            Some((at, _)) => own.get_mut(at).unwrap_or(&mut rest),
            None => &mut rest,
        };
        target.extend(std::mem::take(&mut negated).then(|| "!".to_owned()));
        target.push(place.map_or(word.as_str(), |(_, option)| option).to_owned());
        if let Some((at, _)) = place
            && let Some(value) = words.next()
        {
            let net = if at < 2 { as_net(value) } else { None };
            target.push(net.map_or_else(|| value.clone(), |net| net.trunc().to_string()));
        }
    }
    rest.extend(negated.then(|| "!".to_owned()));
    (own.concat(), rest)
}

fn as_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// The rules of the container's chain for one address: per mapping whose connections take the node's address, and where all of them go.
pub fn rules(config: &PortmapConfig, address: IpNet) -> Vec<Rule> {
    let target = address.addr();
    let v4 = target.is_ipv4();
    let setmark = config.external_mark_chain.as_deref().unwrap_or(SETMARK);
    let mut rules = Vec::new();
    for mapping in config.mappings.iter().filter(|mapping| mapping.is_for(v4)) {
        let (protocol, port) = (mapping.protocol.as_str(), mapping.host_port.to_string());
        let destination = mapping.only_at().map(|ip| IpNet::from(ip).to_string());
        let mut push = |source: Option<String>, action: &[&str]| {
            let source = source.iter().flat_map(|net| ["-s", net]);
            let destination = destination.iter().flat_map(|net| ["-d", net]);
            let words = source.chain(destination).chain(["-p", protocol, "-m", protocol, "--dport", &port]);
            rules.push(Rule::new(words.chain(action.iter().copied())));
        };
        let mark = ["-j", setmark];
        match (config.snat, config.masquerade_all) {
            (false, _) => {}
            // Every source, so none is named.
            (true, true) => push(None, &mark),
            (true, false) => {
                push(Some(address.trunc().to_string()), &mark);
                if v4 {
                    push(Some(IpNet::from(LOCALHOST).to_string()), &mark);
                }
            }
        }
        let to = match target {
            IpAddr::V4(ip) => format!("{ip}:{}", mapping.container_port),
            IpAddr::V6(ip) => format!("[{ip}]:{}", mapping.container_port),
        };
        push(None, &["-j", "DNAT", "--to-destination", &to]);
    }
    rules
}

/// The chains that [`addition`] looks at. `entries_too`: with the rules that lead to all containers' chains, of which there may be thousands.
pub fn looked_at<'a>(config: &PortmapConfig, own: &'a str, entries_too: bool) -> Vec<&'a str> {
    let mut chains = vec![own, "PREROUTING", "OUTPUT"];
    if uses_own_marks(config) {
        chains.extend([SETMARK, MASQ, "POSTROUTING"]);
    }
    chains.extend(entries_too.then_some(DNAT));
    chains
}

/// Whether the rules that lead to all containers' chains can stay unread: none of them leads to a chain that is not there, and they have a
/// chain themselves, since something leads to it.
pub fn entries_can_stay_unread(observed: &Observed, own: &str) -> bool {
    !observed.has_chain(own) && observed.has_rule("PREROUTING", &dnat_entry())
}

fn uses_own_marks(config: &PortmapConfig) -> bool {
    config.snat && config.external_mark_chain.is_none()
}

/// What is missing for one address of the container, given the chains of [`looked_at`]. `reads_entries` says whether [`DNAT`] is among them.
pub fn addition(
    config: &PortmapConfig,
    address: IpNet,
    container_id: &str,
    observed: &Observed,
    reads_entries: bool,
) -> Vec<Change> {
    let own = dnat_chain(&config.network, container_id);
    let mut changes = Vec::new();
    if uses_own_marks(config) {
        // Another network may use another mark, so rules are added beside others.
        for (chain, rule) in [(SETMARK, setmark_rule(config.mark)), (MASQ, masq_rule(config.mark))] {
            changes.extend(observed.with_chain(chain));
            changes.extend(observed.with_rule(chain, &rule, Place::Last));
        }
        changes.extend(observed.with_rule("POSTROUTING", &masq_entry(), Place::First));
    }
    if reads_entries {
        changes.extend(observed.with_chain(DNAT));
    }
    for from in ["PREROUTING", "OUTPUT"] {
        changes.extend(observed.with_rule(from, &dnat_entry(), Place::Last));
    }
    changes.extend(observed.with_content(&own, &rules(config, address)));
    let entries = entries(config, address.addr().is_ipv4(), container_id);
    if reads_entries {
        changes.extend(observed.without(DNAT, |found| {
            found.rule.target() == Some(&own) && !entries.iter().any(|entry| found.is(entry))
        }));
        for entry in entries {
            changes.extend(observed.with_rule(DNAT, &entry, Place::Last));
        }
    } else {
        changes.extend(entries.into_iter().map(|rule| Change::Append { chain: DNAT.to_owned(), rule }));
    }
    changes
}

/// Whether everything that [`addition`] made is there, given the chains of [`looked_at`] with [`DNAT`].
///
/// # Errors
/// The first rule that is missing.
pub fn check(
    config: &PortmapConfig,
    address: IpNet,
    container_id: &str,
    observed: &Observed,
) -> Result<(), Error> {
    let v4 = address.addr().is_ipv4();
    let own = dnat_chain(&config.network, container_id);
    let missing = |chain: &str, rule: &dyn std::fmt::Display| {
        let family = if v4 { 4 } else { 6 };
        Err(Error::internal(format!("could not check ipv{family} dnat: chain {chain} has no rule `{rule}`")))
    };
    for rule in rules(config, address) {
        if !observed.has_rule(&own, &rule) {
            return missing(&own, &rule);
        }
    }
    // Conditions may read back in other words than the configuration's.
    let is_conditional = config.conditions(v4).iter().any(|word| !word.is_empty());
    for entry in entries(config, v4, container_id) {
        let is_there = observed.rules(DNAT).iter().any(|found| {
            let alike = |options: &[&str]| found.rule.value_of(options) == entry.value_of(options);
            found.is(&entry)
                || (is_conditional
                    && [&["-p"][..], &["--comment"], &["--dports"], &["-j"]].into_iter().all(alike))
        });
        if !is_there {
            return missing(DNAT, &entry);
        }
    }
    for from in ["PREROUTING", "OUTPUT"] {
        if !observed.has_rule(from, &dnat_entry()) {
            return missing(from, &dnat_entry());
        }
    }
    if uses_own_marks(config) {
        let own_marks = [
            (SETMARK, setmark_rule(config.mark)),
            (MASQ, masq_rule(config.mark)),
            ("POSTROUTING", masq_entry()),
        ];
        if let Some((chain, rule)) = own_marks.iter().find(|(chain, rule)| !observed.has_rule(chain, rule)) {
            return missing(chain, rule);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use loden_firewall::iptables::{Found, Table};

    use super::*;
    use crate::conf::Config;

    fn config(keys: &str, mappings: &str) -> PortmapConfig {
        let text = format!(
            r#"{{"name":"net","cniVersion":"1.0.0","prevResult":{{"ips":[{{"address":"10.1.0.5/24"}},{{"address":"fd00::5/64"}}]}},
            "runtimeConfig":{{"portMappings":[{mappings}]}}{keys}}}"#
        );
        PortmapConfig::parse(&Config::parse(text.as_bytes()).unwrap(), "eth0").unwrap()
    }

    const TWO: &str = r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"},
        {"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"192.0.2.1"}"#;

    fn lines(rules: &[Rule]) -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_follow_the_formula() {
        // sha512("testcontainer")
        assert_eq!(dnat_chain("test", "container").len(), 28);
        assert_eq!(dnat_chain("test", "container"), dnat_chain("testc", "ontainer"));
        assert_eq!(old_snat_chain("a", "b")[7..], dnat_chain("a", "b")[7..]);
    }

    #[test]
    fn the_containers_chain_marks_before_it_sends() {
        let config = config("", TWO);
        assert_eq!(
            lines(&rules(&config, config.container.v4.unwrap().into())),
            [
                "-s 10.1.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80",
                "-s 10.1.0.0/24 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
                "-s 127.0.0.1/32 -d 192.0.2.1/32 -p udp -m udp --dport 53 -j CNI-HOSTPORT-SETMARK",
                "-d 192.0.2.1/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.1.0.5:5353",
            ]
        );
        assert_eq!(
            lines(&rules(&config, config.container.v6.unwrap().into())),
            [
                "-s fd00::/64 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK",
                "-p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00::5]:80",
            ]
        );
    }

    #[test]
    fn masquerading_may_be_off_for_all_or_anothers() {
        let of = |keys: &str| {
            let config = config(keys, r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"}"#);
            lines(&rules(&config, config.container.v4.unwrap().into()))
        };
        let dnat = "-p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80";
        assert_eq!(of(r#","snat":false"#), [dnat]);
        assert_eq!(of(r#","masqAll":true"#), ["-p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK", dnat]);
        assert_eq!(
            of(r#","externalSetMarkChain":"KUBE-MARK-MASQ""#)[0],
            "-s 10.1.0.0/24 -p tcp -m tcp --dport 8080 -j KUBE-MARK-MASQ"
        );
    }

    #[test]
    fn entries_take_fifteen_ports_each_and_the_conditions() {
        let ports = |protocol: &str, range: std::ops::Range<u16>| -> Vec<String> {
            range
                .map(|port| {
                    format!(r#"{{"hostPort":{port},"containerPort":{port},"protocol":"{protocol}"}}"#)
                })
                .collect()
        };
        let mappings = [ports("udp", 1..3), ports("tcp", 10..26)].concat().join(",");
        let config = config(r#","conditionsV4":["-s","192.0.2.0/24"]"#, &mappings);
        let chain = dnat_chain("net", "c1");
        let comment = r#"-m comment --comment "dnat name: \"net\" id: \"c1\"" -m multiport --dports"#;
        assert_eq!(
            lines(&entries(&config, true, "c1")),
            [
                format!(
                    "-s 192.0.2.0/24 -p tcp {comment} 10,11,12,13,14,15,16,17,18,19,20,21,22,23,24 -j {chain}"
                ),
                format!("-s 192.0.2.0/24 -p tcp {comment} 25 -j {chain}"),
                format!("-s 192.0.2.0/24 -p udp {comment} 1,2 -j {chain}"),
            ]
        );
        assert!(!lines(&entries(&config, false, "c1"))[0].contains("192.0.2.0"));
    }

    #[test]
    fn conditions_are_put_in_the_order_in_which_they_read_back() {
        let of = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            let (first, last) = conditions(&words);
            format!("{}|{}", first.join(" "), last.join(" "))
        };
        assert_eq!(of(&["!", "-d", "192.0.2.7", "-s", "10.1.2.3/8"]), "-s 10.0.0.0/8 ! -d 192.0.2.7/32|");
        assert_eq!(
            of(&["-m", "mark", "!", "--mark", "1", "--in-interface", "eth0"]),
            "-i eth0|-m mark ! --mark 1"
        );
        assert_eq!(of(&["-s"]), "-s|");
        assert_eq!(of(&["!"]), "|!");
    }

    fn found(rule: Rule) -> Found {
        Found { rule, handle: Some(1), is_whole: true }
    }

    fn observed(chains: &[(&str, Option<Vec<Rule>>)]) -> Observed {
        let found = |rules: &Vec<Rule>| rules.iter().cloned().map(found).collect();
        Observed::of(
            Table::Nat,
            chains.iter().map(|(name, rules)| ((*name).to_owned(), rules.as_ref().map(found))),
        )
    }

    #[test]
    fn the_first_container_makes_what_is_shared_and_the_next_only_its_own() {
        let config = config("", r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"}"#);
        let address = config.container.v4.unwrap().into();
        let own = dnat_chain("net", "c1");
        let empty: Vec<_> =
            looked_at(&config, &own, true).into_iter().map(|name| (name.to_owned(), None)).collect();
        let empty = Observed::of(Table::Nat, empty);
        assert!(!entries_can_stay_unread(&empty, &own));
        let text =
            |changes: Vec<Change>| changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let own_part = format!(
            r#"-N {own}
-A {own} -s 10.1.0.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A {own} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
-A {own} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.5:80
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"c1\"" -m multiport --dports 8080 -j {own}"#
        );
        assert_eq!(
            text(addition(&config, address, "c1", &empty, true)),
            format!(
                r#"-N CNI-HOSTPORT-SETMARK
-A CNI-HOSTPORT-SETMARK -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000
-N CNI-HOSTPORT-MASQ
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-I POSTROUTING 1 -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
-N CNI-HOSTPORT-DNAT
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
{own_part}"#
            )
        );
        let shared = [
            ("PREROUTING", Some(vec![dnat_entry()])),
            ("OUTPUT", Some(vec![dnat_entry()])),
            ("POSTROUTING", Some(vec![masq_entry()])),
            (SETMARK, Some(vec![setmark_rule(0x2000)])),
            (MASQ, Some(vec![masq_rule(0x2000)])),
            (own.as_str(), None),
        ];
        let later = observed(&shared);
        assert!(entries_can_stay_unread(&later, &own));
        assert_eq!(text(addition(&config, address, "c1", &later, false)), own_part);
    }

    #[test]
    fn what_was_added_passes_the_check_and_each_missing_rule_fails_it() {
        let config = config("", TWO);
        let address = config.container.v4.unwrap().into();
        let own = dnat_chain("net", "c1");
        let whole: Vec<(&str, Vec<Rule>)> = vec![
            ("PREROUTING", vec![dnat_entry()]),
            ("OUTPUT", vec![dnat_entry()]),
            ("POSTROUTING", vec![masq_entry()]),
            (SETMARK, vec![setmark_rule(0x2000)]),
            (MASQ, vec![masq_rule(0x2000)]),
            (DNAT, entries(&config, true, "c1")),
            (&own, rules(&config, address)),
        ];
        let of = |chains: &[(&str, Vec<Rule>)]| {
            let chains: Vec<_> = chains.iter().map(|(name, rules)| (*name, Some(rules.clone()))).collect();
            observed(&chains)
        };
        assert!(addition(&config, address, "c1", &of(&whole), true).is_empty());
        check(&config, address, "c1", &of(&whole)).unwrap();
        for chain in 0..whole.len() {
            for rule in 0..whole[chain].1.len() {
                let mut less = whole.clone();
                let gone = less[chain].1.remove(rule);
                let message = check(&config, address, "c1", &of(&less)).unwrap_err().message;
                assert!(message.contains(&gone.to_string()) && message.contains(whole[chain].0), "{message}");
            }
        }
    }
}
