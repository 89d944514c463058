//! The rules flannel installs, as one table per address family.
//!
//! Order, comments and priorities are flannel's: operators compare `nft list` with its documentation, and Go's flanneld
//! taking over must find what it would have written. The one addition are exempt networks, which are only there when asked for.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::{Action, Base, Chain, ChainKind, Family, Hook, Match, Rule, Table, priority};

/// The mark kube-proxy puts on packets it wants masqueraded itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// How pods' packets to the world get the node's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// Choose source ports fully at random, which avoids races between parallel connections.
    pub fully_random: bool,
}

/// What the rules of one family depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The cluster's network.
    pub network: IpNet,
    /// This node's subnet.
    pub subnet: IpNet,
    /// Networks outside the cluster that see pods' own addresses. Those of the other family are ignored.
    pub exempt: Vec<IpNet>,
    /// `None` leaves the masquerading chain out.
    pub masquerade: Option<Masquerade>,
    /// Whether to accept forwarded pod traffic explicitly.
    pub forward: bool,
}

/// The table of one family. Without rules (a family the cluster does not use) it is empty, as flannel's is.
pub fn table(family: Family, name: &str, rules: Option<&Rules>) -> Table {
    let mut table = Table::new(family, name).with_comment(format!("rules for {name}"));
    let Some(rules) = rules else { return table };
    if let Some(masquerade) = rules.masquerade {
        table = table.with_chain("postrtg", postrouting(rules, masquerade));
    }
    if rules.forward {
        table = table.with_chain("forward", forward(rules.network));
    }
    table
}

/// The exempt networks of a table that [`table`] made for this network, in their order.
pub fn exempt_networks(table: &Table, network: IpNet) -> Vec<IpNet> {
    let rules = table.chains.get("postrtg").map(|chain| chain.rules.as_slice()).unwrap_or_default();
    rules
        .iter()
        .filter(|rule| rule.action == Action::Return)
        .filter_map(|rule| match rule.matches.as_slice() {
            [Match::Source { net: source, negated: false }, Match::Destination { net, negated: false }]
                if *source == network && !network.contains(net) =>
            {
                Some(*net)
            }
            _ => None,
        })
        .collect()
}

fn postrouting(rules: &Rules, masquerade: Masquerade) -> Chain {
    let Rules { network, subnet, .. } = *rules;
    let masquerade = Action::Masquerade { fully_random: masquerade.fully_random };
    let mut row = vec![
        Rule::new([Match::mark(KUBE_PROXY_MARK)], Action::Return),
        Rule::new([Match::source(subnet), Match::destination(network)], Action::Return),
        Rule::new([Match::source(network), Match::destination(subnet)], Action::Return),
        Rule::new([Match::not_source(subnet), Match::destination(network)], Action::Return),
    ];
    let same_family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == matches!(network, IpNet::V4(_));
    row.extend(
        rules
            .exempt
            .iter()
            .filter(same_family)
            .map(|net| Rule::new([Match::source(network), Match::destination(*net)], Action::Return)),
    );
    row.push(Rule::new(
        [Match::source(network), Match::not_destination(multicast(network))],
        masquerade.clone(),
    ));
    row.push(Rule::new([Match::not_source(network), Match::destination(network)], masquerade));
    Chain::hooked(Base::accepting(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT), row)
        .with_comment("chain to manage traffic masquerading by flannel")
}

fn forward(network: IpNet) -> Chain {
    let row = vec![
        Rule::new([Match::source(network)], Action::Accept),
        Rule::new([Match::destination(network)], Action::Accept),
    ];
    Chain::hooked(Base::accepting(ChainKind::Filter, Hook::Forward, priority::FILTER), row)
        .with_comment("chain to accept flannel traffic")
}

/// Every multicast address of the network's family.
fn multicast(network: IpNet) -> IpNet {
    match network {
        IpNet::V4(_) => IpNet::V4(Ipv4Net::new_assert([224, 0, 0, 0].into(), 4)),
        IpNet::V6(_) => IpNet::V6(Ipv6Net::new_assert([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Masquerade, Rules, exempt_networks, table};
    use crate::Family;

    fn rules() -> Rules {
        Rules {
            network: "10.244.0.0/16".parse().unwrap(),
            subnet: "10.244.3.0/24".parse().unwrap(),
            exempt: vec!["192.168.0.0/16".parse().unwrap(), "fd01::/64".parse().unwrap()],
            masquerade: Some(Masquerade { fully_random: true }),
            forward: true,
        }
    }

    #[test]
    fn prints_as_nft_lists_flannels_table() {
        let table = table(Family::Ip, "flannel-ipv4", Some(&rules()));
        table.check().unwrap();
        assert_eq!(
            table.to_string(),
            "table ip flannel-ipv4 {\n\
             \tcomment \"rules for flannel-ipv4\"\n\
             \tchain forward {\n\
             \t\tcomment \"chain to accept flannel traffic\"\n\
             \t\ttype filter hook forward priority filter; policy accept;\n\
             \t\tip saddr 10.244.0.0/16 accept\n\
             \t\tip daddr 10.244.0.0/16 accept\n\
             \t}\n\n\
             \tchain postrtg {\n\
             \t\tcomment \"chain to manage traffic masquerading by flannel\"\n\
             \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
             \t\tmeta mark 0x00004000 return\n\
             \t\tip saddr 10.244.3.0/24 ip daddr 10.244.0.0/16 return\n\
             \t\tip saddr 10.244.0.0/16 ip daddr 10.244.3.0/24 return\n\
             \t\tip saddr != 10.244.3.0/24 ip daddr 10.244.0.0/16 return\n\
             \t\tip saddr 10.244.0.0/16 ip daddr 192.168.0.0/16 return\n\
             \t\tip saddr 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random\n\
             \t\tip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 masquerade fully-random\n\
             \t}\n}"
        );
    }

    #[test]
    fn ipv6_uses_its_own_words_and_no_family_means_an_empty_table() {
        let v6 = Rules {
            network: "fd00:10:244::/56".parse().unwrap(),
            subnet: "fd00:10:244:1::/64".parse().unwrap(),
            masquerade: Some(Masquerade { fully_random: false }),
            ..rules()
        };
        let shown = table(Family::Ip6, "flannel-ipv6", Some(&v6)).to_string();
        assert!(shown.contains("ip6 saddr fd00:10:244::/56 ip6 daddr != ff00::/8 masquerade\n"), "{shown}");
        assert!(shown.contains("ip6 daddr fd01::/64 return") && !shown.contains("192.168"), "{shown}");
        assert_eq!(
            exempt_networks(&table(Family::Ip6, "flannel-ipv6", Some(&v6)), v6.network),
            ["fd01::/64".parse().unwrap()]
        );
        assert!(table(Family::Ip6, "flannel-ipv6", None).chains.is_empty());
    }

    #[test]
    fn chains_are_left_out_when_not_asked_for() {
        let none = Rules { masquerade: None, forward: false, ..rules() };
        assert!(table(Family::Ip, "flannel-ipv4", Some(&none)).chains.is_empty());
    }
}
