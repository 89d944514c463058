//! Whose rules the iptables backend finds: from chains and comments back to networks and containers.
//!
//! A comment may be anybody's; the name of the chain, a hash of network and container, is what proves it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use loden_firewall::iptables::{Found, Observed};

use super::iptables::{DNAT, OWN_PREFIX, comment_start, dnat_chain};
use crate::attachments::ValidAttachments;

/// The containers whose chains [`DNAT`] leads to, with the addresses that these lead on to. Only those whose chain's name proves what a
/// comment says.
pub fn owners(observed: &Observed) -> BTreeMap<(String, String), BTreeSet<IpAddr>> {
    let mut owners: BTreeMap<(String, String), BTreeSet<IpAddr>> = BTreeMap::new();
    let chains: BTreeMap<&str, &[Found]> = observed.chains().collect();
    let content = |chain: &str| chains.get(chain).copied().unwrap_or_default();
    for found in content(DNAT) {
        let named = found.rule.comment().and_then(|comment| {
            let named = comment.strip_prefix("dnat name: \"")?.strip_suffix('"')?;
            named.split_once("\" id: \"")
        });
        let Some((network, container)) = named else { continue };
        let chain = dnat_chain(network, container);
        if found.rule.target() != Some(chain.as_str()) {
            continue;
        }
        let addresses = owners.entry((network.to_owned(), container.to_owned())).or_default();
        let targets = content(&chain).iter().filter_map(|found| found.rule.value_of(&["--to-destination"]));
        addresses
            .extend(targets.filter_map(|target| target.parse::<SocketAddr>().ok()).map(|target| target.ip()));
    }
    owners
}

/// What a GC of one network may take from [`DNAT`].
///
/// A rule's comment names the network; the container's ID may be cut off there, so which container it is says the name of the chain it leads
/// to.
#[derive(Clone, Debug)]
pub struct Stale {
    start: String,
    valid: Vec<String>,
}

impl Stale {
    /// What is stale in `network`.
    pub fn new(network: &str, valid: &ValidAttachments) -> Self {
        let mut chains: Vec<String> =
            valid.iter().map(|attachment| dnat_chain(network, &attachment.container_id)).collect();
        chains.sort_unstable();
        Self { start: comment_start(network), valid: chains }
    }

    /// The containers' chains that may go, with the rules of [`DNAT`] that lead there.
    pub fn chains(&self, observed: &Observed) -> Vec<String> {
        let mut chains: Vec<String> = observed
            .rules(DNAT)
            .iter()
            .filter_map(|found| found.rule.comment().zip(found.rule.target()))
            .filter(|(comment, chain)| self.is(comment, chain))
            .map(|(_, chain)| chain.to_owned())
            .collect();
        chains.sort_unstable();
        chains.dedup();
        chains
    }

    fn is(&self, comment: &str, chain: &str) -> bool {
        comment.starts_with(&self.start)
            && chain.starts_with(OWN_PREFIX)
            && self.valid.binary_search_by(|valid| valid.as_str().cmp(chain)).is_err()
    }
}

#[cfg(test)]
mod tests {
    use loden_firewall::iptables::{Rule, Table};

    use super::*;
    use crate::attachments::Attachment;
    use crate::portmap::iptables::comment;

    fn led(network: &str, container: &str) -> Rule {
        let chain = dnat_chain(network, container);
        Rule::new(["-m", "comment", "--comment", &comment(network, container), "-j", &chain])
    }

    fn observed(chains: &[(&str, &[Rule])]) -> Observed {
        let found = |rule: &Rule| Found { rule: rule.clone(), handle: None, is_whole: true };
        let rows = |rules: &[Rule]| Some(rules.iter().map(found).collect());
        Observed::of(Table::Nat, chains.iter().map(|(name, rules)| ((*name).to_owned(), rows(rules))))
    }

    #[test]
    fn long_comments_are_cut_and_still_name_the_network() {
        let long = "c".repeat(300);
        assert_eq!(comment("net", &long).len(), 255);
        let stale = Stale::new("net", &ValidAttachments::default());
        assert!(stale.is(&comment("net", &long), &dnat_chain("net", &long)));
        assert!(!stale.is(&comment("net2", "c"), &dnat_chain("net2", "c")));
        assert!(!stale.is(&comment("net", "c"), "KUBE-MARK-MASQ"));
        let rules =
            [led("net", "a"), led("net", "a"), led("other", "a"), Rule::new(["-j", "KUBE-MARK-MASQ"])];
        assert_eq!(stale.chains(&observed(&[(DNAT, &rules)])), [dnat_chain("net", "a")]);
        let valid = [Attachment { container_id: long.clone(), ifname: "eth0".to_owned() }];
        let stale = Stale::new("net", &valid.into_iter().collect());
        assert!(!stale.is(&comment("net", &long), &dnat_chain("net", &long)));
        assert!(stale.is(&comment("net", "c"), &dnat_chain("net", "c")));
    }

    #[test]
    fn an_owner_is_whom_the_chain_proves() {
        let chain = dnat_chain("net", "a");
        let forged = Rule::new(["-m", "comment", "--comment", &comment("net", "b"), "-j", chain.as_str()]);
        let to = |target: &str| Rule::new(["-p", "tcp", "-j", "DNAT", "--to-destination", target]);
        let listed = observed(&[
            (DNAT, &[led("net", "a"), forged]),
            (&chain, &[to("10.1.0.5:80"), to("10.1.0.5:443"), to("[fd00::5]:80"), to("nonsense")]),
        ]);
        let addresses = ["10.1.0.5", "fd00::5"].map(|text| text.parse().unwrap());
        assert_eq!(owners(&listed), [(("net".to_owned(), "a".to_owned()), addresses.into())].into());
    }
}
