//! Masquerading of single containers: names and rules shared with the Go plugins.
//!
//! The table is read and written by Go's `bridge` and `ptp` as well; who added a rule is said only by its comment, so comment and layout
//! are theirs to the byte. A rule that DEL does not recognise stays for ever and masquerades whoever gets the address next.

use std::fmt::Write as _;

use ipnet::IpNet;
use loden_firewall::{Action, Base, Chain, ChainKind, Family, Hook, Match, Rule, Table, priority};
use sha2::{Digest, Sha512};

/// The table, in the family `inet`.
pub const TABLE: &str = "cni_plugins_masquerade";
/// The chain with one rule per address.
pub const CHECKS: &str = "masq_checks";
/// The base chain.
pub const POSTROUTING: &str = "postrouting";

/// Longest comment that the Go plugins write, in bytes.
const COMMENT_LIMIT: usize = 128;

fn hash(text: &str, length: usize) -> String {
    let mut hex = String::new();
    for byte in Sha512::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(length);
    hex
}

/// What the comment of every rule of this attachment starts with.
pub fn instance_hash(network: &str, ifname: &str, container_id: &str) -> String {
    format!("{}-{}", hash(network, 16), hash(&format!("{ifname}:{container_id}"), 16))
}

/// The comment of this attachment's rules.
pub fn comment(network: &str, ifname: &str, container_id: &str) -> String {
    let mut comment = format!(
        "{}, net: {network}, if: {ifname}, id: {container_id}",
        instance_hash(network, ifname, container_id)
    )
    .replace('"', "");
    let cut = (0..=COMMENT_LIMIT.min(comment.len())).rev().find(|&at| comment.is_char_boundary(at));
    comment.truncate(cut.unwrap_or_default());
    comment
}

/// The chain of the `nat` table that the Go plugins' iptables backend makes for a container.
pub fn iptables_chain(network: &str, container_id: &str) -> String {
    format!("CNI-{}", hash(&format!("{network}{container_id}"), 24))
}

/// The table with its base chain and an empty chain of checks.
pub fn table() -> Table {
    let multicast = ["224.0.0.0/4", "ff00::/8"].into_iter().filter_map(|net| net.parse::<IpNet>().ok());
    let mut rules: Vec<Rule> =
        multicast.map(|net| Rule::new([Match::destination(net)], Action::Return)).collect();
    rules.push(Rule::new([], Action::Goto(CHECKS.to_owned())));
    Table::new(Family::Inet, TABLE)
        .with_comment("Masquerading for plugins from github.com/containernetworking/plugins")
        .with_chain(
            CHECKS,
            Chain::regular(Vec::new()).with_comment(
                "Masquerade traffic from certain IPs to any (non-multicast) IP outside their subnet",
            ),
        )
        .with_chain(
            POSTROUTING,
            Chain::hooked(Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT), rules),
        )
}

/// The rule for one address of a container: masquerade what it sends outside its own subnet.
pub fn rule(address: IpNet, comment: &str) -> Rule {
    Rule::new(
        [Match::source(IpNet::from(address.addr())), Match::not_destination(address.trunc())],
        Action::Masquerade { fully_random: false },
    )
    .with_comment(comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_follow_the_formulas() {
        assert_eq!(hash("", 16), "cf83e1357eefb8bd");
        let id = "a".repeat(64);
        let text = comment("cbr0", "eth0", &id);
        assert!(text.starts_with(&format!(
            "{}-{}, net: cbr0, if: eth0, id: aaaa",
            hash("cbr0", 16),
            hash(&format!("eth0:{id}"), 16)
        )));
        assert!(text.len() <= 128);
        assert_eq!(comment(&"n".repeat(200), "eth0", "c").len(), 128);
        assert_eq!(iptables_chain("net", "id").len(), 28);
    }

    #[test]
    fn the_rule_reads_as_go_writes_it() {
        let rule = rule("10.1.0.5/24".parse().unwrap(), "c");
        assert_eq!(rule.matches.len(), 2);
        assert_eq!(rule.matches[0], Match::source("10.1.0.5/32".parse().unwrap()));
        assert_eq!(rule.matches[1], Match::not_destination("10.1.0.0/24".parse().unwrap()));
    }
}
