//! `conditionsV4` and `conditionsV6` in nft's words, read into matches.
//!
//! The Go plugin pastes these words into what it gives to the `nft` program. No program runs here, so the words that make sense for a
//! mapping are read into values, and any other is refused by name: a condition that was dropped would open ports that an operator
//! wanted closed.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_firewall::{L4, Match, ct_state};

use crate::error::Error;

/// What the words may say, for messages.
const KNOWN: &str = "ip|ip6 saddr|daddr [!=] ADDRESS, iifname|oifname [!=] LINK, tcp|udp|sctp sport|dport PORT, \
                     meta l4proto PROTOCOL, ct state STATE, meta mark NUMBER, fib daddr type local; { A, B } for several values";

/// The most rules that sets may multiply into.
const MOST_ROWS: usize = 64;

/// Reads the words given under `key`. The result is one row of matches per rule: any of several values (`{ A, B }`) takes a rule each.
///
/// # Errors
/// A word that has no meaning here; the message names it and what is known.
pub fn parse(key: &str, words: &[String], v4: bool) -> Result<Vec<Vec<Match>>, Error> {
    let tokens = tokens(&words.join(" "));
    let mut reader = Reader { tokens: &tokens, at: 0, v4 };
    let mut rows = vec![Vec::new()];
    while reader.at < reader.tokens.len() {
        let start = reader.at;
        let choices = reader.condition().map_err(|reason| {
            let read = tokens.get(start..reader.at.max(start + 1)).unwrap_or_default().join(" ");
            Error::internal(format!("`{key}`: {read:?}: {reason}; the nftables backend understands {KNOWN}"))
        })?;
        rows = rows.iter().flat_map(|row| choices.iter().map(|choice| joined(row, choice))).collect();
        if rows.len() > MOST_ROWS {
            return Err(Error::internal(format!(
                "`{key}`: the sets multiply into more than {MOST_ROWS} rules; use one prefix in place of many addresses"
            )));
        }
    }
    Ok(rows)
}

/// nft writes a port's protocol test once, so a test for it right before goes without saying.
fn joined(row: &[Match], choice: &[Match]) -> Vec<Match> {
    let mut row = row.to_vec();
    for m in choice {
        if let (
            Some(Match::L4 { proto }),
            Match::SourcePort { proto: again, .. } | Match::DestinationPort { proto: again, .. },
        ) = (row.last(), m)
            && proto == again
        {
            row.pop();
        }
        row.push(m.clone());
    }
    row
}

/// Words; braces and commas stand for themselves, quotes go.
fn tokens(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for character in text.chars() {
        match character {
            '{' | '}' | ',' => spaced.extend([' ', character, ' ']),
            other => spaced.push(other),
        }
    }
    spaced.split_whitespace().map(str::to_owned).collect()
}

struct Reader<'a> {
    tokens: &'a [String],
    at: usize,
    v4: bool,
}

/// Alternatives, each a row of matches.
type Choices = Vec<Vec<Match>>;

impl Reader<'_> {
    fn next(&mut self) -> Result<&str, String> {
        let token = self.tokens.get(self.at).ok_or("it ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.tokens.get(self.at).is_some_and(|token| token == word);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        if self.take(word) { Ok(()) } else { Err(format!("{word:?} is missing")) }
    }

    fn condition(&mut self) -> Result<Choices, String> {
        let v4 = self.v4;
        match self.next()? {
            "ip" if v4 => self.address(),
            "ip6" if !v4 => self.address(),
            "ip" | "ip6" => Err("it is of the other address family".to_owned()),
            "iifname" => self.link(true),
            "oifname" => self.link(false),
            "mark" => self.mark(),
            "meta" => match self.next()? {
                "iifname" => self.link(true),
                "oifname" => self.link(false),
                "mark" => self.mark(),
                "l4proto" => self.protocol(),
                _ => Err("this key of meta is not known".to_owned()),
            },
            word @ ("tcp" | "udp" | "sctp") => {
                let proto = transport(word)?;
                self.port(proto)
            }
            "ct" => {
                self.expect("state")?;
                self.states()
            }
            "fib" => {
                for word in ["daddr", "type", "local"] {
                    self.expect(word)?;
                }
                Ok(vec![vec![Match::DestinationLocal]])
            }
            _ => Err("it is not known".to_owned()),
        }
    }

    /// `[==|!=] VALUE` or `[==|!=] { VALUE, … }`; whether it is negated, and the values.
    fn values(&mut self) -> Result<(bool, Vec<String>), String> {
        let negated = self.take("!=");
        if !negated {
            self.take("==");
        }
        if !self.take("{") {
            return Ok((negated, vec![self.next()?.to_owned()]));
        }
        let mut values = Vec::new();
        loop {
            values.push(self.next()?.to_owned());
            if self.take("}") {
                return Ok((negated, values));
            }
            self.expect(",")?;
        }
    }

    /// Alternatives of a positive test; one row with every test of a negative one.
    fn tests(&mut self, test: impl Fn(&str, bool) -> Result<Match, String>) -> Result<Choices, String> {
        let (negated, values) = self.values()?;
        let tests = values.iter().map(|value| test(value, negated)).collect::<Result<Vec<_>, _>>()?;
        Ok(if negated { vec![tests] } else { tests.into_iter().map(|test| vec![test]).collect() })
    }

    fn address(&mut self) -> Result<Choices, String> {
        let v4 = self.v4;
        let source = match self.next()? {
            "saddr" => true,
            "daddr" => false,
            _ => return Err("only saddr and daddr are known".to_owned()),
        };
        self.tests(|value, negated| {
            let net = value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
            let net = net.ok().filter(|net| net.addr().is_ipv4() == v4);
            let net = net
                .ok_or_else(|| format!("{value:?} is no IPv{} address or prefix", if v4 { 4 } else { 6 }))?;
            Ok(match (source, negated) {
                (true, false) => Match::source(net),
                (true, true) => Match::not_source(net),
                (false, false) => Match::destination(net),
                (false, true) => Match::not_destination(net),
            })
        })
    }

    fn link(&mut self, input: bool) -> Result<Choices, String> {
        self.tests(|value, negated| {
            let name = value.trim_matches('"');
            if name.is_empty() || name == "*" || name.len() > 15 || name.contains(['"', '/', '\0']) {
                return Err(format!("{value:?} is no link's name"));
            }
            let name = name.to_owned();
            Ok(match (input, negated) {
                (true, false) => Match::InputLink(name),
                (true, true) => Match::NotInputLink(name),
                (false, false) => Match::OutputLink(name),
                (false, true) => Match::NotOutputLink(name),
            })
        })
    }

    fn port(&mut self, proto: L4) -> Result<Choices, String> {
        let source = match self.next()? {
            "sport" => true,
            "dport" => false,
            _ => return Err("only sport and dport are known".to_owned()),
        };
        self.tests(|value, negated| match value.parse::<u16>() {
            _ if negated => Err("a port cannot be negated".to_owned()),
            Ok(port) if source => Ok(Match::SourcePort { proto, port }),
            Ok(port) => Ok(Match::DestinationPort { proto, port }),
            Err(_) => Err(format!("{value:?} is no port number")),
        })
    }

    fn protocol(&mut self) -> Result<Choices, String> {
        self.tests(|value, negated| match negated {
            true => Err("a protocol cannot be negated".to_owned()),
            false => Ok(Match::L4 { proto: transport(value)? }),
        })
    }

    fn mark(&mut self) -> Result<Choices, String> {
        self.tests(|value, negated| {
            let number = match value.strip_prefix("0x") {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => value.parse(),
            };
            match number {
                _ if negated => Err("a mark cannot be negated".to_owned()),
                Ok(number) => Ok(Match::mark(number)),
                Err(_) => Err(format!("{value:?} is no mark")),
            }
        })
    }

    /// States are bits, so several of them are one test.
    fn states(&mut self) -> Result<Choices, String> {
        let (negated, mut values) = self.values()?;
        while !negated && self.take(",") {
            values.push(self.next()?.to_owned());
        }
        let mut bits = 0;
        for value in values {
            bits |= match value.as_str() {
                _ if negated => return Err("a state cannot be negated".to_owned()),
                "invalid" => ct_state::INVALID,
                "established" => ct_state::ESTABLISHED,
                "related" => ct_state::RELATED,
                "new" => ct_state::NEW,
                "untracked" => ct_state::UNTRACKED,
                _ => return Err(format!("{value:?} is no state of a connection")),
            };
        }
        Ok(vec![vec![Match::CtState(bits)]])
    }
}

fn transport(word: &str) -> Result<L4, String> {
    match word {
        "tcp" | "6" => Ok(L4::Tcp),
        "udp" | "17" => Ok(L4::Udp),
        "sctp" | "132" => Ok(L4::Sctp),
        _ => Err(format!("{word:?} is no protocol that is known")),
    }
}

#[cfg(test)]
mod tests {
    use loden_firewall::{Action, Family, Rule};
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    /// The rules that the words become, as nft lists them.
    fn read(text: &str, v4: bool) -> Vec<String> {
        let family = if v4 { Family::Ip } else { Family::Ip6 };
        let rows = parse("conditionsV4", &words(text), v4).unwrap();
        rows.into_iter()
            .map(|row| {
                let rule = Rule::new(row, Action::Return);
                rule.check(family).unwrap();
                rule.text(family).to_string()
            })
            .collect()
    }

    #[test]
    fn one_value_is_one_rule() {
        for same in [
            "ip saddr 10.0.0.0/8",
            "ip daddr != 192.168.1.1",
            "iifname \"eth0\"",
            "oifname != \"veth*\"",
            "tcp dport 80",
            "meta l4proto udp",
            "ct state established,new",
            "meta mark 0x00000010",
            "fib daddr type local",
            "ip saddr 10.0.0.0/8 ip daddr 10.1.1.1 iifname \"eth0\"",
        ] {
            assert_eq!(read(same, true), [format!("{same} return")]);
        }
        assert_eq!(read("ip saddr == 10.1.2.3/8", true), ["ip saddr 10.0.0.0/8 return"]);
        assert_eq!(read("meta iifname eth0 mark 1", true), ["iifname \"eth0\" meta mark 0x00000001 return"]);
        assert_eq!(read("meta l4proto tcp tcp sport 5", true), ["tcp sport 5 return"]);
        assert_eq!(read("ip6 saddr fd00::/8", false), ["ip6 saddr fd00::/8 return"]);
        assert_eq!(parse("conditionsV4", &[], true).unwrap(), [[]]);
    }

    #[test]
    fn several_values_are_several_rules_and_none_of_them_is_one() {
        assert_eq!(
            read("ip saddr {10.0.0.1,10.0.0.2} tcp dport { 80, 443 }", true),
            [
                "ip saddr 10.0.0.1 tcp dport 80 return",
                "ip saddr 10.0.0.1 tcp dport 443 return",
                "ip saddr 10.0.0.2 tcp dport 80 return",
                "ip saddr 10.0.0.2 tcp dport 443 return",
            ]
        );
        assert_eq!(read("iifname != { a, b }", true), ["iifname != \"a\" iifname != \"b\" return"]);
    }

    #[test]
    fn what_is_not_known_is_refused_with_what_is() {
        let refused = |text: &str| parse("conditionsV4", &words(text), true).unwrap_err().message;
        for text in [
            "aaa bbbb",
            "ip6 saddr ::1",
            "ip saddr fd00::/8",
            "ip saddr",
            "ip saddr @set",
            "ip saddr { 10.0.0.1",
            "ip ttl 5",
            "tcp dport http",
            "tcp dport 80-90",
            "tcp dport != 80",
            "iif eth0",
            "meta skuid 0",
            "ct state gone",
            "jump x",
            "iifname *",
        ] {
            let message = refused(text);
            assert!(
                message.contains("`conditionsV4`") && message.contains("understands ip|ip6"),
                "{message}"
            );
        }
        assert!(refused("tcp dport http").contains("\"http\" is no port number"));
        let many =
            format!("tcp sport {{ {} }}", (1..100).map(|n| n.to_string()).collect::<Vec<_>>().join(", "));
        assert!(refused(&many).contains("more than 64 rules"));
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(
            text in prop::collection::vec(
                prop_oneof![
                    "[a-z0-9.:/{},!=\"*]{0,12}",
                    prop::sample::select(vec!["ip", "saddr", "daddr", "!=", "{", "}", ",", "10.0.0.0/8", "iifname", "meta", "mark", "ct", "state", "tcp", "dport", "80"]).prop_map(str::to_owned),
                ],
                0..8,
            ),
            v4 in any::<bool>(),
        ) {
            if let Ok(rows) = parse("k", &text, v4) {
                for row in rows {
                    let family = if v4 { Family::Ip } else { Family::Ip6 };
                    prop_assert!(Rule::new(row, Action::Return).check(family).is_ok());
                }
            }
        }
    }
}
