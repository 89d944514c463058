//! Masquerading by iptables: one chain per container and network in the table `nat`.
//!
//! The chain's name and the comments are those of the Go plugins, whose DEL finds them by these. The interface's name is in neither: two
//! attachments of one container to one network share the chain.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use loden_firewall::iptables::{Change, Observed, Place, Rule};

use super::hash;
use crate::attachments::ValidAttachments;

/// The chain that leads to the containers' chains.
pub const POSTROUTING: &str = "POSTROUTING";

const PREFIX: &str = "CNI-";
const HASH_LENGTH: usize = 24;

/// The chain of a container in a network.
pub fn chain(network: &str, container_id: &str) -> String {
    format!("{PREFIX}{}", hash(&format!("{network}{container_id}"), HASH_LENGTH))
}

/// Whether a chain of this name can be a container's. Other plugins' chains begin alike, but do not go on in hexadecimal digits.
pub fn is_chain(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| {
        rest.len() == HASH_LENGTH && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// The comment of every rule of a container in a network.
pub fn comment(network: &str, container_id: &str) -> String {
    format!("name: \"{network}\" id: \"{container_id}\"")
}

/// The network and the container that a comment names.
fn owner_in(comment: &str) -> Option<(&str, &str)> {
    comment.strip_prefix("name: \"")?.strip_suffix('"')?.split_once("\" id: \"")
}

/// What a container's chain and the way to it lack, for addresses of one family.
pub fn desired(observed: &Observed, network: &str, container_id: &str, addresses: &[IpNet]) -> Vec<Change> {
    let chain = chain(network, container_id);
    let comment = comment(network, container_id);
    let rule = |matches: &[&str], target: &str| {
        let matches = matches.iter().copied();
        Rule::new(matches.chain(["-m", "comment", "--comment", &comment, "-j", target]))
    };
    let mut changes: Vec<Change> = observed.with_chain(&chain).into_iter().collect();
    // What stays inside an own subnet is decided before anything is masqueraded, also beside an older attachment's rules.
    let place = if observed.rules(&chain).is_empty() { Place::Last } else { Place::First };
    let mut subnets: Vec<IpNet> = addresses.iter().map(IpNet::trunc).collect();
    subnets.dedup();
    for subnet in subnets {
        changes.extend(observed.with_rule(&chain, &rule(&["-d", &subnet.to_string()], "ACCEPT"), place));
    }
    for is_ipv4 in [true, false] {
        if addresses.iter().any(|address| address.addr().is_ipv4() == is_ipv4) {
            let multicast = if is_ipv4 { "224.0.0.0/4" } else { "ff00::/8" };
            let masquerade = rule(&["!", "-d", multicast], "MASQUERADE");
            changes.extend(observed.with_rule(&chain, &masquerade, Place::Last));
        }
    }
    for address in addresses {
        let jump = rule(&["-s", &IpNet::from(address.addr()).to_string()], &chain);
        changes.extend(observed.with_rule(POSTROUTING, &jump, Place::Last));
    }
    changes
}

/// What takes a container's chain away, with every way to it, also the older form that matches the whole subnet.
pub fn removal(observed: &Observed, network: &str, container_id: &str) -> Vec<Change> {
    observed.without_chain(&chain(network, container_id), &[POSTROUTING])
}

/// What takes away the chains of this network's containers that none of the valid attachments belongs to.
///
/// Whose a chain is, is said by the comments of its rules and of the rules that lead to it, and proved by its name; a chain without any
/// of them belongs to nobody that can be named and stays.
pub fn stale(observed: &Observed, network: &str, valid: &ValidAttachments) -> Vec<Change> {
    let mut containers: Vec<&str> = observed
        .chains()
        .filter(|(name, _)| is_chain(name) || *name == POSTROUTING)
        .flat_map(|(_, rules)| rules)
        .filter_map(|found| owner_in(found.rule.comment()?))
        .filter(|(name, container)| *name == network && !valid.has_container(container))
        .map(|(_, container)| container)
        .collect();
    containers.sort_unstable();
    containers.dedup();
    containers.into_iter().flat_map(|container| removal(observed, network, container)).collect()
}

/// The containers whose chains something leads to, with the addresses that do. Only those whose chain's name proves what a comment says.
pub fn owners(observed: &Observed) -> BTreeMap<(String, String), BTreeSet<IpAddr>> {
    let mut owners: BTreeMap<(String, String), BTreeSet<IpAddr>> = BTreeMap::new();
    for found in observed.chains().flat_map(|(_, rules)| rules) {
        let Some((network, container)) = found.rule.comment().and_then(owner_in) else { continue };
        if found.rule.target() != Some(chain(network, container).as_str()) {
            continue;
        }
        let addresses = owners.entry((network.to_owned(), container.to_owned())).or_default();
        addresses.extend(found.rule.source().map(|net| net.addr()));
    }
    owners
}

#[cfg(test)]
mod tests {
    use loden_firewall::iptables::{Table, parse_save};

    use super::*;
    use crate::attachments::Attachment;

    fn lines(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// The table after these changes, all of which make something.
    fn after(changes: &[Change]) -> Observed {
        let mut text = String::from("*nat\n:POSTROUTING ACCEPT [0:0]\n");
        let rest = lines(changes);
        for line in &rest {
            if let Some(chain) = line.strip_prefix("-N ") {
                text.push_str(&format!(":{chain} - [0:0]\n"));
            }
        }
        for line in rest.iter().filter(|line| !line.starts_with("-N ")) {
            text.push_str(&format!("{line}\n"));
        }
        parse_save(Table::Nat, &format!("{text}COMMIT\n")).unwrap()
    }

    #[test]
    fn the_rules_are_those_of_the_go_plugins() {
        let nothing = Observed::untouched(Table::Nat);
        let changes = desired(&nothing, "net", "c1", &nets(&["10.1.0.5/24"]));
        let chain = chain("net", "c1");
        let comment = r#"-m comment --comment "name: \"net\" id: \"c1\"" -j"#;
        assert_eq!(
            lines(&changes),
            [
                format!("-N {chain}"),
                format!("-A {chain} -d 10.1.0.0/24 {comment} ACCEPT"),
                format!("-A {chain} ! -d 224.0.0.0/4 {comment} MASQUERADE"),
                format!("-A POSTROUTING -s 10.1.0.5/32 {comment} {chain}"),
            ]
        );
        assert!(chain.len() == 28 && is_chain(&chain));
        assert!(!is_chain("CNI-HOSTPORT-MASQ") && !is_chain(&format!("CNI-DN-{}", "a".repeat(21))));
        let v6 = lines(&desired(&nothing, "net", "c1", &nets(&["fd00::5/64"])));
        assert!(v6[2].contains("! -d ff00::/8") && v6[3].contains("-s fd00::5/128"), "{v6:?}");
        assert!(desired(&after(&changes), "net", "c1", &nets(&["10.1.0.5/24"])).is_empty());
    }

    #[test]
    fn a_second_attachment_of_the_container_shares_the_chain() {
        let first = after(&desired(&Observed::untouched(Table::Nat), "net", "c1", &nets(&["10.1.0.5/24"])));
        let changes = lines(&desired(&first, "net", "c1", &nets(&["10.2.0.5/24"])));
        assert_eq!(changes.len(), 2);
        assert!(
            changes[0].starts_with("-I CNI-") && changes[0].contains(" 1 -d 10.2.0.0/24 "),
            "{changes:?}"
        );
        assert!(changes[1].starts_with("-A POSTROUTING -s 10.2.0.5/32"), "{changes:?}");
    }

    #[test]
    fn what_is_stale_is_this_networks_and_nobody_elses() {
        let chains = [("net", "c1"), ("net", "c2"), ("other", "c1"), ("other", "c3")];
        let changes: Vec<Change> = chains
            .iter()
            .flat_map(|(network, container)| {
                desired(&Observed::untouched(Table::Nat), network, container, &nets(&["10.1.0.5/24"]))
            })
            .collect();
        let observed = after(&changes);
        let keep = Attachment { container_id: "c2".to_owned(), ifname: "eth7".to_owned() };
        let valid: ValidAttachments = [keep].into_iter().collect();
        let changes = stale(&observed, "net", &valid);
        assert_eq!(changes, removal(&observed, "net", "c1"));
        assert_eq!(changes.len(), 3);
        assert!(stale(&observed, "ne", &valid).is_empty());
        let owners = owners(&observed);
        assert_eq!(owners.len(), 4);
        let address: IpAddr = "10.1.0.5".parse().unwrap();
        assert!(owners[&("other".to_owned(), "c3".to_owned())].iter().eq([&address]));
    }

    #[test]
    fn old_rules_that_match_the_subnet_go_as_well() {
        let chain = chain("net", "c1");
        let text = format!(
            "*nat\n:POSTROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n-A POSTROUTING -s 10.1.0.0/24 -j {chain}\nCOMMIT\n"
        );
        let observed = parse_save(Table::Nat, &text).unwrap();
        assert_eq!(
            lines(&removal(&observed, "net", "c1")),
            [format!("-D POSTROUTING -s 10.1.0.0/24 -j {chain}"), format!("-X {chain}")]
        );
    }
}
