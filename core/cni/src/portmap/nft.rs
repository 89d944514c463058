//! The nftables backend: tables, chains and rules as values.
//!
//! Every mapping is one rule in chains that all containers share; whose it is says its comment, which is the container's ID and nothing
//! else. What the comment cannot say, which network and which of the container's links, stands in the rule's note, which the Go plugin
//! does not see. A rule without a note is told apart by where it leads.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_firewall::{
    Action, Base, Chain, ChainKind, Family, Hook, L4, MAX_COMMENT, Match, Rule, Table, TableName, priority,
};

use super::conditions;
use super::config::{Container, LOCALHOST, PortmapConfig, everything};
use crate::attachments::ValidAttachments;
use crate::error::Error;
use crate::masquerade::{instance_hash, network_hash};

/// The table, in the families `ip` and `ip6`.
pub const TABLE: &str = "cni_hostport";
/// One rule per mapping.
pub const HOSTPORTS: &str = "hostports";
/// Where Go releases before 1.9 put the mappings of single addresses.
pub const HOSTIP_HOSTPORTS: &str = "hostip_hostports";
/// What packets to the node are led to.
pub const HOSTPORTS_ALL: &str = "hostports_all";
/// Packets from elsewhere.
pub const PREROUTING: &str = "prerouting";
/// Packets of the node itself.
pub const OUTPUT: &str = "output";
/// One or two rules per container.
pub const MASQUERADING: &str = "masquerading";

/// The chains with containers' rules.
pub const OF_CONTAINERS: [&str; 3] = [HOSTPORTS, HOSTIP_HOSTPORTS, MASQUERADING];

/// The family's table.
pub fn table_name(v4: bool) -> TableName {
    TableName { family: family(v4), name: TABLE.to_owned() }
}

fn family(v4: bool) -> Family {
    if v4 { Family::Ip } else { Family::Ip6 }
}

/// The table with the rules that lead packets to the containers' rules, and without any of these.
///
/// # Errors
/// Conditions that cannot be read.
pub fn layout(config: &PortmapConfig, v4: bool) -> Result<Table, Error> {
    let key = if v4 { "conditionsV4" } else { "conditionsV6" };
    let jump = |to: &str| Action::Jump(to.to_owned());
    let entries: Vec<Rule> = conditions::parse(key, config.conditions(v4), v4)?
        .into_iter()
        .map(|mut row| {
            row.push(Match::DestinationLocal);
            Rule::new(row, jump(HOSTPORTS_ALL))
        })
        .collect();
    let nat = |hook, at, rules| Chain::hooked(Base::accepting(ChainKind::Nat, hook, at), rules);
    let all = vec![Rule::new([], jump(HOSTIP_HOSTPORTS)), Rule::new([], jump(HOSTPORTS))];
    let mut table = Table::new(family(v4), TABLE)
        .with_comment("CNI portmap plugin")
        .with_chain(HOSTPORTS, Chain::default())
        .with_chain(HOSTIP_HOSTPORTS, Chain::default())
        .with_chain(HOSTPORTS_ALL, Chain::regular(all))
        .with_chain(PREROUTING, nat(Hook::Prerouting, priority::DSTNAT, entries.clone()))
        .with_chain(OUTPUT, nat(Hook::Output, priority::DSTNAT, entries));
    if config.snat {
        table = table.with_chain(MASQUERADING, nat(Hook::Postrouting, priority::SRCNAT, Vec::new()));
    }
    Ok(table)
}

/// The rules of one container for one address, each with the chain it belongs into.
///
/// # Errors
/// A protocol without ports, or a container whose ID is too long for a comment.
pub fn rules(
    config: &PortmapConfig,
    address: IpNet,
    mark: &OwnMark,
) -> Result<Vec<(&'static str, Rule)>, Error> {
    if mark.container_id.len() > MAX_COMMENT {
        return Err(Error::internal(format!(
            "the container's ID is {} bytes long, and the comment of an nftables rule takes {MAX_COMMENT}; use the iptables backend",
            mark.container_id.len()
        )));
    }
    let target = address.addr();
    let v4 = target.is_ipv4();
    let mut rules = Vec::new();
    for mapping in config.mappings.iter().filter(|mapping| mapping.is_for(v4)) {
        let proto = match mapping.protocol.as_str() {
            "tcp" => L4::Tcp,
            "udp" => L4::Udp,
            "sctp" => L4::Sctp,
            other => {
                return Err(Error::internal(format!(
                    "protocol {other:?} of host port {}: the nftables backend maps tcp, udp and sctp",
                    mapping.host_port
                )));
            }
        };
        let mut matches: Vec<Match> =
            mapping.only_at().map(|ip| Match::destination(IpNet::from(ip))).into_iter().collect();
        matches.push(Match::DestinationPort { proto, port: mapping.host_port });
        let action = Action::DestinationNat { addr: target, port: Some(mapping.container_port) };
        rules.push((HOSTPORTS, mark.on(Rule::new(matches, action))));
    }
    if config.snat {
        let sources = match (config.masquerade_all, v4) {
            (true, _) => vec![everything(v4)],
            (false, true) => vec![IpNet::from(target), IpNet::from(LOCALHOST)],
            (false, false) => vec![IpNet::from(target)],
        };
        for source in sources {
            let matches = [Match::source(source), Match::destination(IpNet::from(target))];
            let rule = Rule::new(matches, Action::Masquerade { fully_random: false });
            rules.push((MASQUERADING, mark.on(rule)));
        }
    }
    Ok(rules)
}

/// What tells one attachment's rules from others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnMark {
    container_id: String,
    note: String,
}

impl OwnMark {
    /// The mark of an attachment.
    pub fn new(network: &str, ifname: &str, container_id: &str) -> Self {
        Self { container_id: container_id.to_owned(), note: instance_hash(network, ifname, container_id) }
    }

    /// The comment: the container's ID.
    pub fn comment(&self) -> &str {
        &self.container_id
    }

    fn on(&self, rule: Rule) -> Rule {
        rule.with_comment(&self.container_id).with_note(&self.note)
    }

    /// Whether a rule is this attachment's. One with a note says so itself. One without is of the Go plugin, or was written again from its
    /// text: it is ours if it bears the container's ID and leads to the container's addresses, or if these are not known.
    pub fn is_on(&self, rule: &Rule, container: &Container) -> bool {
        if rule.comment.as_deref() != Some(&self.container_id) {
            return false;
        }
        match &rule.note {
            Some(note) => *note == self.note,
            None => {
                container.is_empty()
                    || target_of(rule)
                        .is_none_or(|target| container.addresses().any(|address| address.addr() == target))
            }
        }
    }
}

/// The container's address that a rule is about.
pub fn target_of(rule: &Rule) -> Option<IpAddr> {
    match &rule.action {
        Action::DestinationNat { addr, .. } => Some(*addr),
        _ => rule.matches.iter().find_map(|m| match m {
            Match::Destination { net, negated: false } if net.prefix_len() == net.max_prefix_len() => {
                Some(net.addr())
            }
            _ => None,
        }),
    }
}

/// What a GC of one network may take: rules whose note names the network and none of its valid attachments.
///
/// A rule without a note can belong to any network of the node, so no list of one network's attachments says that it is stale; it stays
/// until its container's DEL.
#[derive(Clone, Debug)]
pub struct Stale {
    prefix: String,
    valid: Vec<String>,
}

impl Stale {
    /// What is stale in `network`.
    pub fn new(network: &str, valid: &ValidAttachments) -> Self {
        let mut notes: Vec<String> = valid
            .iter()
            .map(|attachment| instance_hash(network, &attachment.ifname, &attachment.container_id))
            .collect();
        notes.sort_unstable();
        Self { prefix: format!("{}-", network_hash(network)), valid: notes }
    }

    /// Whether the rule may go.
    pub fn is(&self, rule: &Rule) -> bool {
        rule.note
            .as_ref()
            .is_some_and(|note| note.starts_with(&self.prefix) && self.valid.binary_search(note).is_err())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attachments::Attachment;
    use crate::conf::Config;

    fn config(keys: &str) -> PortmapConfig {
        let text = format!(
            r#"{{"name":"net","cniVersion":"1.0.0","prevResult":{{"ips":[{{"address":"10.1.0.5/24"}},{{"address":"fd00::5/64"}}]}},
            "runtimeConfig":{{"portMappings":[
                {{"hostPort":8080,"containerPort":80,"protocol":"tcp"}},
                {{"hostPort":53,"containerPort":5353,"protocol":"UDP","hostIP":"192.0.2.1"}},
                {{"hostPort":99,"containerPort":9,"protocol":"sctp","hostIP":"::"}}]}}{keys}}}"#
        );
        PortmapConfig::parse(&Config::parse(text.as_bytes()).unwrap(), "eth0").unwrap()
    }

    fn mark() -> OwnMark {
        OwnMark::new("net", "eth0", "c1")
    }

    /// The family's table with one container, as nft lists it.
    fn listing(config: &PortmapConfig, v4: bool) -> String {
        let mut table = layout(config, v4).unwrap();
        let address = config.container.addresses().find(|net| net.addr().is_ipv4() == v4).unwrap();
        for (chain, rule) in rules(config, address, &mark()).unwrap() {
            table.chains.get_mut(chain).unwrap().rules.push(rule);
        }
        table.check().unwrap();
        table.to_string()
    }

    #[test]
    fn the_tables_are_gos() {
        let config = config("");
        assert_eq!(
            listing(&config, true),
            r#"table ip cni_hostport {
	comment "CNI portmap plugin"
	chain hostip_hostports {
	}

	chain hostports {
		tcp dport 8080 dnat to 10.1.0.5:80 comment "c1"
		ip daddr 192.0.2.1 udp dport 53 dnat to 10.1.0.5:5353 comment "c1"
	}

	chain hostports_all {
		jump hostip_hostports
		jump hostports
	}

	chain masquerading {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.1.0.5 ip daddr 10.1.0.5 masquerade comment "c1"
		ip saddr 127.0.0.1 ip daddr 10.1.0.5 masquerade comment "c1"
	}

	chain output {
		type nat hook output priority -100; policy accept;
		fib daddr type local jump hostports_all
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump hostports_all
	}
}"#
        );
        let v6 = listing(&config, false);
        assert!(v6.contains("\t\ttcp dport 8080 dnat to [fd00::5]:80 comment \"c1\"\n"), "{v6}");
        assert!(v6.contains("\t\tsctp dport 99 dnat to [fd00::5]:9 comment \"c1\"\n"), "{v6}");
        assert!(v6.contains("\t\tip6 saddr fd00::5 ip6 daddr fd00::5 masquerade comment \"c1\"\n"), "{v6}");
        assert!(!v6.contains("127.0.0.1") && !v6.contains("udp"), "{v6}");
    }

    #[test]
    fn every_source_takes_the_place_of_localhost_and_the_container() {
        let config = config(r#","masqAll":true"#);
        let v4 = listing(&config, true);
        assert!(v4.contains("ip saddr 0.0.0.0/0 ip daddr 10.1.0.5 masquerade comment"), "{v4}");
        assert!(!v4.contains("127.0.0.1") && v4.matches("masquerade").count() == 1);
        assert!(listing(&config, false).contains("ip6 saddr ::/0 ip6 daddr fd00::5 masquerade comment"));
    }

    #[test]
    fn without_source_translation_there_is_no_chain_for_it() {
        assert!(!listing(&config(r#","snat":false"#), true).contains("masquerad"));
    }

    #[test]
    fn conditions_stand_before_the_jump() {
        let config =
            config(r#","backend":"nftables","conditionsV4":["ip","saddr","{","10.0.0.1,","10.0.0.2","}"]"#);
        let v4 = listing(&config, true);
        for source in ["10.0.0.1", "10.0.0.2"] {
            let entry = format!("\t\tip saddr {source} fib daddr type local jump hostports_all\n");
            assert_eq!(v4.matches(&entry).count(), 2, "{v4}");
        }
        assert!(listing(&config, false).contains("\t\tfib daddr type local jump hostports_all\n"));
    }

    #[test]
    fn what_no_rule_can_say_is_refused() {
        let mut config = config("");
        config.mappings[0].protocol = "icmp".to_owned();
        let address = config.container.v4.unwrap().into();
        assert!(rules(&config, address, &mark()).unwrap_err().message.contains("maps tcp, udp and sctp"));
        let long = OwnMark::new("net", "eth0", &"c".repeat(129));
        assert!(rules(&config, address, &long).unwrap_err().message.contains("129 bytes"));
    }

    #[test]
    fn rules_of_another_network_or_link_of_the_container_are_told_apart() {
        let config = config("");
        let address = config.container.v4.unwrap().into();
        let ours = rules(&config, address, &mark()).unwrap();
        let elsewhere = Container { v4: Some("10.9.0.1/24".parse().unwrap()), v6: None };
        for (_, rule) in &ours {
            // By its note, wherever the container is said to be.
            for container in [&config.container, &elsewhere, &Container::default()] {
                assert!(mark().is_on(rule, container));
                assert!(!OwnMark::new("other", "eth0", "c1").is_on(rule, container));
                assert!(!OwnMark::new("net", "net1", "c1").is_on(rule, container));
                assert!(!OwnMark::new("net", "eth0", "c2").is_on(rule, container));
            }
            // As the Go plugin writes it: by where it leads.
            let bare = Rule { note: None, ..rule.clone() };
            assert!(mark().is_on(&bare, &config.container) && mark().is_on(&bare, &Container::default()));
            assert!(!mark().is_on(&bare, &elsewhere));
            assert!(!OwnMark::new("net", "eth0", "c2").is_on(&bare, &config.container));
        }
    }

    #[test]
    fn only_rules_that_name_the_network_can_be_stale() {
        let config = config("");
        let address = config.container.v4.unwrap().into();
        let stay = |ifname: &str| Attachment { container_id: "c1".to_owned(), ifname: ifname.to_owned() };
        let none = ValidAttachments::default();
        for (_, rule) in rules(&config, address, &mark()).unwrap() {
            assert!(Stale::new("net", &none).is(&rule));
            assert!(Stale::new("net", &[stay("net1")].into_iter().collect()).is(&rule));
            assert!(!Stale::new("net", &[stay("eth0"), stay("a")].into_iter().collect()).is(&rule));
            assert!(!Stale::new("other", &none).is(&rule));
            assert!(!Stale::new("net", &none).is(&Rule { note: None, ..rule }));
        }
    }
}
