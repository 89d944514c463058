//! Masquerading of single containers: names and rules shared with the Go plugins.
//!
//! The table is read and written by Go's `bridge` and `ptp` as well; who added a rule is said only by its comment, so comment and layout
//! are theirs to the byte. A rule that DEL does not recognise stays for ever and masquerades whoever gets the address next.
//! The same with the programs of iptables is in [`iptables`].

pub mod iptables;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use ipnet::IpNet;
use loden_firewall::{Action, Base, Chain, ChainKind, Family, Hook, Match, Rule, Table, priority};
use sha2::{Digest, Sha512};

use crate::attachments::ValidAttachments;
use crate::conf::load_error;
use crate::error::Error;
use crate::json::Fields;

/// What masquerades: `ipMasqBackend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Rules in the table that this module describes, over netlink.
    Nftables,
    /// Rules by the host's iptables.
    Iptables,
}

impl Backend {
    /// Reads `ipMasqBackend`; `None` leaves it to what the node has.
    ///
    /// # Errors
    /// A backend that there is none of, or a key of the wrong type.
    pub fn of(fields: &Fields<'_>) -> Result<Option<Self>, Error> {
        match fields.string("ipMasqBackend").map_err(load_error)? {
            None => Ok(None),
            Some("nftables") => Ok(Some(Self::Nftables)),
            Some("iptables") => Ok(Some(Self::Iptables)),
            Some(other) => Err(Error::internal(format!("unknown ipmasq backend {other:?}"))),
        }
    }
}

/// The table, in the family `inet`.
pub const TABLE: &str = "cni_plugins_masquerade";
/// The chain with one rule per address.
pub const CHECKS: &str = "masq_checks";
/// The base chain.
pub const POSTROUTING: &str = "postrouting";

/// Longest comment that the Go plugins write, in bytes.
const COMMENT_LIMIT: usize = 128;

/// The first `length` hexadecimal digits of the text's SHA-512.
pub(crate) fn hash(text: &str, length: usize) -> String {
    let mut hex = String::new();
    for byte in Sha512::digest(text.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex.truncate(length);
    hex
}

/// What [`instance_hash`] starts with for every attachment of a network.
pub fn network_hash(network: &str) -> String {
    hash(network, 16)
}

/// What the comment of every rule of this attachment starts with.
pub fn instance_hash(network: &str, ifname: &str, container_id: &str) -> String {
    format!("{}-{}", network_hash(network), hash(&format!("{ifname}:{container_id}"), 16))
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

/// Which rules of a network GC takes away, by their comments.
#[derive(Clone, Debug)]
pub struct Stale {
    prefix: String,
    valid: BTreeSet<String>,
}

impl Stale {
    /// What is left of the network's attachments that are not valid.
    pub fn of(network: &str, valid: &ValidAttachments) -> Self {
        let hashes = valid.iter().map(|one| instance_hash(network, &one.ifname, &one.container_id));
        Self { prefix: format!("{}-", hash(network, 16)), valid: hashes.collect() }
    }

    /// Whether the rule with this comment goes.
    pub fn has(&self, comment: &str) -> bool {
        comment.starts_with(&self.prefix)
            && !comment.split_once(',').is_some_and(|(instance, _)| self.valid.contains(instance))
    }
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
    }

    #[test]
    fn stale_is_what_no_valid_attachment_made() {
        use crate::attachments::Attachment;
        let keep = Attachment { container_id: "c1".to_owned(), ifname: "eth0".to_owned() };
        let stale = Stale::of("net", &[keep].into_iter().collect());
        assert!(!stale.has(&comment("net", "eth0", "c1")) && !stale.has(&comment("other", "eth0", "c2")));
        assert!(stale.has(&comment("net", "eth1", "c1")) && stale.has(&comment("net", "eth0", "c2")));
    }

    #[test]
    fn the_rule_reads_as_go_writes_it() {
        let rule = rule("10.1.0.5/24".parse().unwrap(), "c");
        assert_eq!(rule.matches.len(), 2);
        assert_eq!(rule.matches[0], Match::source("10.1.0.5/32".parse().unwrap()));
        assert_eq!(rule.matches[1], Match::not_destination("10.1.0.0/24".parse().unwrap()));
    }
}
