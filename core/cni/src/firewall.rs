//! Configuration and rules of the `firewall` plugin: a container's traffic is let through the host's own filter.
//!
//! Chains, rules and comments are those of the Go plugin, which reads and deletes them as well. The rules of single addresses carry no
//! comment there, so they say nothing about whose they are: DEL finds them by the addresses, and there is nothing that GC could find.

use std::net::IpAddr;

use ipnet::IpNet;
use loden_firewall::iptables::{Change, Observed, Place, Rule};

use crate::conf::{Config, load_error};
use crate::error::Error;
use crate::result::CniResult;

/// The versions of the protocol that the plugin speaks: those that hand results on, also to DEL.
pub const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// The chain that every forwarded packet passes.
pub const FORWARD: &str = "FORWARD";
/// The chain with the rules of single addresses.
pub const PRIVATE: &str = "CNI-FORWARD";
/// Where packets from one bridge to elsewhere are told.
pub const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
/// Where packets from one bridge to another are dropped.
pub const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

const ADMIN: &str = "CNI-ADMIN";
const ZONE: &str = "trusted";

/// What lets traffic through: `backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Rules by the host's iptables.
    Iptables,
    /// A zone of firewalld.
    Firewalld,
    /// firewalld where it runs, else iptables.
    Either,
}

/// From where a container can be reached: `ingressPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingress {
    /// From everywhere.
    Open,
    /// Not from other bridges.
    SameBridge,
    /// Neither from other bridges nor from its own.
    Isolated,
}

impl Ingress {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::SameBridge => "same-bridge",
            Self::Isolated => "isolated",
        }
    }
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// What lets traffic through.
    pub backend: Backend,
    /// The chain for an operator's own rules, which is asked first.
    pub admin_chain: String,
    /// firewalld's zone that the addresses belong to.
    pub zone: String,
    /// From where a container can be reached.
    pub ingress: Ingress,
}

impl FirewallConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Keys of the wrong type, and an ingress policy that there is none of.
    pub fn parse(config: &Config) -> Result<Self, Error> {
        let (read, policy) = Self::read(config)?;
        let ingress = match policy.as_deref() {
            None | Some("" | "open") => Ingress::Open,
            Some("same-bridge") => Ingress::SameBridge,
            Some("isolated") => Ingress::Isolated,
            Some(other) => return Err(Error::internal(format!("unknown ingress policy: {other:?}"))),
        };
        Ok(Self { ingress, ..read })
    }

    /// Reads a configuration for DEL, to which the ingress policy does not matter: what it makes is per bridge and stays.
    ///
    /// # Errors
    /// Keys of the wrong type.
    pub fn parse_for_removal(config: &Config) -> Result<Self, Error> {
        Ok(Self::read(config)?.0)
    }

    fn read(config: &Config) -> Result<(Self, Option<String>), Error> {
        let fields = config.fields()?;
        let text =
            |name| fields.string(name).map(|text| text.filter(|text| !text.is_empty())).map_err(load_error);
        let backend = match text("backend")? {
            Some("iptables") => Backend::Iptables,
            Some("firewalld") => Backend::Firewalld,
            _ => Backend::Either,
        };
        let read = Self {
            backend,
            admin_chain: text("iptablesAdminChainName")?.unwrap_or(ADMIN).to_owned(),
            zone: text("firewalldZone")?.unwrap_or(ZONE).to_owned(),
            ingress: Ingress::Open,
        };
        Ok((read, text("ingressPolicy")?.map(str::to_owned)))
    }

    /// The bridge that the ingress policy is about; `None` when it is open.
    ///
    /// # Errors
    /// The plugin before this one has made no bridge.
    pub fn bridge<'a>(&self, previous: &'a CniResult) -> Result<Option<&'a str>, Error> {
        if self.ingress == Ingress::Open {
            return Ok(None);
        }
        match previous.interfaces.first() {
            None => Err(Error::internal(format!(
                "interface needs to be set for ingress policy {:?}, make sure to chain \"firewall\" plugin with \"bridge\"",
                self.ingress.name()
            ))),
            Some(bridge) if bridge.name.is_empty() => Err(Error::internal("got empty bridge name")),
            Some(bridge) => Ok(Some(&bridge.name)),
        }
    }

    /// The chains that [`FirewallConfig::let_through`] and [`FirewallConfig::check`] look at.
    pub fn chains(&self) -> [&str; 3] {
        [FORWARD, PRIVATE, &self.admin_chain]
    }

    fn admin_jump(&self) -> Rule {
        commented("CNI firewall plugin admin overrides", &[], &self.admin_chain)
    }

    /// What the filter lacks to let traffic of these addresses through.
    pub fn let_through(&self, observed: &Observed, addresses: &[IpAddr]) -> Vec<Change> {
        let mut changes: Vec<Change> =
            [PRIVATE, &self.admin_chain].iter().filter_map(|chain| observed.with_chain(chain)).collect();
        let jump = private_jump();
        let was_there = observed.has_rule(FORWARD, &jump);
        changes.extend(observed.with_rule(FORWARD, &jump, Place::First));
        // Before everything stands what keeps bridges apart: what the chain behind it accepts is not looked at again.
        if !was_there && let Some(isolation) = stage_1_jump_in(observed) {
            changes.push(Change::Insert { chain: FORWARD.to_owned(), rule: isolation.clone() });
        }
        changes.extend(observed.with_rule(PRIVATE, &self.admin_jump(), Place::First));
        for rule in addresses.iter().flat_map(|address| address_rules(*address)) {
            changes.extend(observed.with_rule(PRIVATE, &rule, Place::Last));
        }
        changes
    }

    /// The first rule of the filter that should let traffic of these addresses through and is not there, as an error.
    ///
    /// # Errors
    /// Names the rule.
    pub fn check(&self, observed: &Observed, addresses: &[IpAddr]) -> Result<(), Error> {
        let shown = |rule: &Rule| format!("[{}]", rule.words().join(" "));
        for (chain, rule) in [(FORWARD, private_jump()), (PRIVATE, self.admin_jump())] {
            if !observed.has_rule(chain, &rule) {
                return Err(Error::internal(format!("expected {chain} rule {} not found", shown(&rule))));
            }
        }
        for rule in addresses.iter().flat_map(|address| address_rules(*address)) {
            if !observed.has_rule(PRIVATE, &rule) {
                return Err(Error::internal(format!("expected rule {} not found", shown(&rule))));
            }
        }
        Ok(())
    }
}

/// What takes the rules of these addresses away, every copy.
pub fn removal(observed: &Observed, addresses: &[IpAddr]) -> Vec<Change> {
    let rules: Vec<Rule> = addresses.iter().flat_map(|address| address_rules(*address)).collect();
    observed.without(PRIVATE, |found| rules.iter().any(|rule| found.is(rule)))
}

/// The chains that [`keep_apart`] looks at.
pub const ISOLATION_CHAINS: [&str; 4] = [FORWARD, PRIVATE, STAGE_1, STAGE_2];

/// What the filter lacks to keep a bridge apart from the others, and with [`Ingress::Isolated`] its containers from each other.
///
/// Rules that differ in nothing but the comment count as there: the comments have changed from version to version of the Go plugin.
pub fn keep_apart(observed: &Observed, bridge: &str, ingress: Ingress) -> Vec<Change> {
    if ingress == Ingress::Open {
        return Vec::new();
    }
    let all = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";
    let own = format!("CNI firewall plugin rules (ingressPolicy: {})", ingress.name());
    let mut changes: Vec<Change> =
        [STAGE_1, STAGE_2].iter().filter_map(|chain| observed.with_chain(chain)).collect();
    // Behind the jump to the addresses' rules it would keep nothing apart.
    let at = |target| observed.rules(FORWARD).iter().position(|found| found.rule.target() == Some(target));
    let is_first = match (at(STAGE_1), at(PRIVATE)) {
        (Some(stage_1), Some(private)) => stage_1 < private,
        (stage_1, _) => stage_1.is_some(),
    };
    if !is_first || stage_1_jump_in(observed).is_none() {
        let rule = commented(all, &[], STAGE_1);
        changes.push(Change::Insert { chain: FORWARD.to_owned(), rule });
    }
    let mut put = |chain: &str, rule: Rule, place: Place| {
        let alike = |one: &Rule| one.without_comment() == rule.without_comment();
        if !observed.rules(chain).iter().any(|found| found.is_whole && alike(&found.rule)) {
            let chain = chain.to_owned();
            changes.push(match place {
                Place::First => Change::Insert { chain, rule },
                Place::Last => Change::Append { chain, rule },
            });
        }
    };
    put(STAGE_1, commented(&own, &["-i", bridge, "!", "-o", bridge], STAGE_2), Place::First);
    if ingress == Ingress::Isolated {
        put(STAGE_1, commented(&own, &["-i", bridge, "-o", bridge], "DROP"), Place::First);
    }
    put(STAGE_1, commented(all, &[], "RETURN"), Place::Last);
    put(STAGE_2, commented(all, &["-o", bridge], "DROP"), Place::First);
    put(STAGE_2, commented(all, &[], "RETURN"), Place::Last);
    changes
}

fn stage_1_jump_in(observed: &Observed) -> Option<&Rule> {
    let bare = Rule::new(["-j", STAGE_1]);
    let rules = observed.rules(FORWARD).iter();
    rules.filter(|found| found.is_whole).map(|found| &found.rule).find(|rule| rule.without_comment() == bare)
}

fn private_jump() -> Rule {
    commented("CNI firewall plugin rules", &[], PRIVATE)
}

fn commented(comment: &str, matches: &[&str], target: &str) -> Rule {
    Rule::new(matches.iter().copied().chain(["-m", "comment", "--comment", comment, "-j", target]))
}

/// Answers to the address are let through, and everything from it.
fn address_rules(address: IpAddr) -> [Rule; 2] {
    let address = IpNet::from(address).to_string();
    let state = ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"];
    [Rule::new(["-d", &address].into_iter().chain(state)), Rule::new(["-s", &address, "-j", "ACCEPT"])]
}

#[cfg(test)]
mod tests {
    use loden_firewall::iptables::{Table, parse_save};

    use super::*;

    fn parse(text: &str) -> Result<FirewallConfig, Error> {
        FirewallConfig::parse(&Config::parse(text.as_bytes()).unwrap())
    }

    fn lines(changes: &[Change]) -> Vec<String> {
        changes.iter().map(ToString::to_string).collect()
    }

    fn filter(rules: &str) -> Observed {
        let chains = [FORWARD, PRIVATE, ADMIN, STAGE_1, STAGE_2];
        let chains: String = chains.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect();
        parse_save(Table::Filter, &format!("*filter\n{chains}{rules}COMMIT\n")).unwrap()
    }

    #[test]
    fn keys_and_their_defaults() {
        let config = parse(r#"{"name":"n"}"#).unwrap();
        assert_eq!((config.backend, config.ingress), (Backend::Either, Ingress::Open));
        assert_eq!((config.admin_chain.as_str(), config.zone.as_str()), ("CNI-ADMIN", "trusted"));
        let config = parse(
            r#"{"name":"n","backend":"iptables","iptablesAdminChainName":"A","firewalldZone":"z","ingressPolicy":"isolated"}"#,
        )
        .unwrap();
        assert_eq!((config.backend, config.ingress), (Backend::Iptables, Ingress::Isolated));
        assert_eq!((config.admin_chain.as_str(), config.zone.as_str()), ("A", "z"));
        let wrong = r#"{"name":"n","ingressPolicy":"shut"}"#;
        assert_eq!(parse(wrong).unwrap_err().message, "unknown ingress policy: \"shut\"");
        assert!(FirewallConfig::parse_for_removal(&Config::parse(wrong.as_bytes()).unwrap()).is_ok());
        assert!(parse(r#"{"name":"n","backend":1}"#).unwrap_err().message.contains("`backend`"));
    }

    #[test]
    fn the_rules_are_those_of_the_go_plugin() {
        let config = parse(r#"{"name":"n"}"#).unwrap();
        let changes = config.let_through(&Observed::untouched(Table::Filter), &["10.1.0.5".parse().unwrap()]);
        assert_eq!(
            lines(&changes),
            [
                "-N CNI-FORWARD",
                "-N CNI-ADMIN",
                r#"-I FORWARD 1 -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD"#,
                r#"-I CNI-FORWARD 1 -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN"#,
                "-A CNI-FORWARD -d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A CNI-FORWARD -s 10.1.0.5/32 -j ACCEPT",
            ]
        );
        let v6 = config.let_through(&Observed::untouched(Table::Filter), &["fd00::5".parse().unwrap()]);
        assert_eq!(lines(&v6)[5], "-A CNI-FORWARD -s fd00::5/128 -j ACCEPT");
    }

    #[test]
    fn a_bridge_is_kept_apart_as_the_go_plugin_does() {
        let changes = keep_apart(&Observed::untouched(Table::Filter), "cni0", Ingress::Isolated);
        let own = r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)""#;
        let all = r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)""#;
        assert_eq!(
            lines(&changes),
            [
                "-N CNI-ISOLATION-STAGE-1".to_owned(),
                "-N CNI-ISOLATION-STAGE-2".to_owned(),
                format!("-I FORWARD 1 {all} -j CNI-ISOLATION-STAGE-1"),
                format!("-I CNI-ISOLATION-STAGE-1 1 -i cni0 ! -o cni0 {own} -j CNI-ISOLATION-STAGE-2"),
                format!("-I CNI-ISOLATION-STAGE-1 1 -i cni0 -o cni0 {own} -j DROP"),
                format!("-A CNI-ISOLATION-STAGE-1 {all} -j RETURN"),
                format!("-I CNI-ISOLATION-STAGE-2 1 -o cni0 {all} -j DROP"),
                format!("-A CNI-ISOLATION-STAGE-2 {all} -j RETURN"),
            ]
        );
        assert!(keep_apart(&Observed::untouched(Table::Filter), "cni0", Ingress::Open).is_empty());
    }

    /// Older Go plugins wrote the same comment on every rule.
    #[test]
    fn rules_of_older_comments_are_not_doubled() {
        let old = r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge)" -j"#;
        let observed = filter(&format!(
            "-A FORWARD {old} CNI-ISOLATION-STAGE-1\n-A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 {old} CNI-ISOLATION-STAGE-2\n\
             -A CNI-ISOLATION-STAGE-1 {old} RETURN\n-A CNI-ISOLATION-STAGE-2 -o cni0 {old} DROP\n-A CNI-ISOLATION-STAGE-2 {old} RETURN\n"
        ));
        assert!(keep_apart(&observed, "cni0", Ingress::SameBridge).is_empty());
        assert_eq!(keep_apart(&observed, "cni0", Ingress::Isolated).len(), 1);
        assert_eq!(keep_apart(&observed, "cni1", Ingress::SameBridge).len(), 2);
    }

    /// What the addresses' chain accepts is never asked about its bridge again, so it must come second, whatever was lost.
    #[test]
    fn isolation_stands_before_the_addresses() {
        let config = parse(r#"{"name":"n"}"#).unwrap();
        let isolation = r#"-m comment --comment "x" -j CNI-ISOLATION-STAGE-1"#;
        let private = r#"-m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD"#;
        let lost = filter(&format!("-A FORWARD {isolation}\n"));
        let changes = lines(&config.let_through(&lost, &[]));
        assert_eq!(changes[0], format!("-I FORWARD 1 {private}"));
        assert!(changes[1].starts_with("-I FORWARD 1 ") && changes[1].ends_with("STAGE-1"), "{changes:?}");
        let swapped = filter(&format!("-A FORWARD {private}\n-A FORWARD {isolation}\n"));
        assert!(lines(&keep_apart(&swapped, "cni0", Ingress::SameBridge))[0].starts_with("-I FORWARD 1 "));
        let right = filter(&format!("-A FORWARD {isolation}\n-A FORWARD {private}\n"));
        assert!(!lines(&keep_apart(&right, "cni0", Ingress::SameBridge))[0].contains(" FORWARD "));
    }

    #[test]
    fn a_missing_rule_is_named_and_a_present_one_goes() {
        let config = parse(r#"{"name":"n"}"#).unwrap();
        let address: IpAddr = "10.1.0.5".parse().unwrap();
        let rules = r#"-A FORWARD -m comment --comment "CNI firewall plugin rules" -j CNI-FORWARD
-A CNI-FORWARD -m comment --comment "CNI firewall plugin admin overrides" -j CNI-ADMIN
-A CNI-FORWARD -s 10.1.0.5/32 -j ACCEPT
-A CNI-FORWARD -s 10.1.0.5/32 -j ACCEPT
-A CNI-FORWARD -s 10.1.0.50/32 -j ACCEPT
"#;
        assert_eq!(
            config.check(&filter(rules), &[address]).unwrap_err().message,
            "expected rule [-d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT] not found"
        );
        assert!(config.check(&filter(rules), &[]).is_ok());
        assert_eq!(
            config.check(&filter(""), &[]).unwrap_err().message,
            "expected FORWARD rule [-m comment --comment CNI firewall plugin rules -j CNI-FORWARD] not found"
        );
        assert_eq!(removal(&filter(rules), &[address]).len(), 2);
    }
}
