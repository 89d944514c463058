//! The external interface: the link, and its addresses, by which peers reach this node.
//!
//! The rules are flannel's: each name or address given, then each pattern, then a route lookup; without any of
//! these the public address selects the link, and without that the default route does. Choosing the wrong one publishes an
//! address peers cannot reach, so whatever was asked for and not found is said with what there is instead.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use regex::Regex;
use thiserror::Error;

/// A link of this machine and what the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The link's name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its addresses in the kernel's order.
    pub addresses: Vec<CandidateAddress>,
}

/// An address of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateAddress {
    /// The address with its prefix length.
    pub net: IpNet,
    /// About to go away (`deprecated`).
    pub deprecated: bool,
    /// Configured for good rather than leased (`permanent`).
    pub permanent: bool,
    /// A privacy address (`temporary`).
    pub temporary: bool,
}

/// What the machine looks like, links in the kernel's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// All links.
    pub candidates: Vec<Candidate>,
    /// The link of the first IPv4 default route in the main table.
    pub default_v4: Option<String>,
    /// The link of the first IPv6 default route in the main table.
    pub default_v6: Option<String>,
    /// For `--iface-can-reach`: the link and source address the kernel would use.
    pub reach: Option<(String, Option<IpAddr>)>,
}

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// IPv4 is on.
    pub ipv4: bool,
    /// IPv6 is on.
    pub ipv6: bool,
    /// `--iface`: names or addresses, tried in order.
    pub interfaces: Vec<String>,
    /// `--iface-regex`, tried after those.
    pub patterns: Vec<Regex>,
    /// `--iface-can-reach`, tried last.
    pub can_reach: Option<IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// The chosen link and addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// The link's name.
    pub link: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its own IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its own IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// The IPv4 address peers use: the one asked for, else its own.
    pub public_ipv4: Option<Ipv4Addr>,
    /// The IPv6 address peers use.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// No usable external interface.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no external interface: {}; this machine has {have}; name one with --iface, or add a default route", .tried.join("; "))]
pub struct NoExternal {
    /// Why each attempt failed, in order.
    pub tried: Vec<String>,
    /// Links and addresses there are.
    pub have: String,
}

/// Chooses the external interface.
///
/// # Errors
/// When no attempt finds a link with an MTU and an address of each family in use.
pub fn choose(wanted: &Wanted, around: &Surroundings) -> Result<External, NoExternal> {
    let mut tried = Vec::new();
    let mut attempt = |found: Result<External, String>| found.map_err(|why| tried.push(why)).ok();
    let asked = !wanted.interfaces.is_empty() || !wanted.patterns.is_empty() || wanted.can_reach.is_some();
    let found = if asked {
        let by_name = wanted.interfaces.iter().find_map(|text| attempt(by_argument(wanted, around, text)));
        let by_pattern = by_name.or_else(|| {
            wanted.patterns.iter().find_map(|pattern| attempt(by_pattern(wanted, around, pattern)))
        });
        by_pattern.or_else(|| wanted.can_reach.and_then(|target| attempt(by_reach(wanted, around, target))))
    } else if let Some(address) = wanted.public_ip.filter(|_| wanted.ipv4) {
        attempt(by_argument(wanted, around, &address.to_string()))
    } else if let Some(address) = wanted.public_ipv6 {
        attempt(by_argument(wanted, around, &address.to_string()))
    } else {
        attempt(by_default_route(wanted, around))
    };
    found.ok_or_else(|| NoExternal { tried, have: inventory(around) })
}

/// By address if the text is one, else by name.
fn by_argument(wanted: &Wanted, around: &Surroundings, text: &str) -> Result<External, String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        let candidate = around.candidates.iter().find(|candidate| candidate.name == text);
        return finish(wanted, candidate.ok_or_else(|| format!("there is no link {text}"))?, None);
    };
    let owner = |address: IpAddr| {
        around
            .candidates
            .iter()
            .find(|candidate| candidate.addresses.iter().any(|own| own.net.addr() == address))
            .ok_or_else(|| format!("no link has the address {address}"))
    };
    let candidate = owner(address)?;
    if let (true, true, Some(v6)) = (wanted.ipv4, wanted.ipv6, wanted.public_ipv6) {
        let other = owner(IpAddr::V6(v6))?;
        if other.name != candidate.name {
            return Err(format!("{address} is on {} but {v6} is on {}", candidate.name, other.name));
        }
    }
    finish(wanted, candidate, Some(address))
}

/// Addresses are matched first, over all links; names only if no address did.
fn by_pattern(wanted: &Wanted, around: &Surroundings, pattern: &Regex) -> Result<External, String> {
    let matching = |candidate: &Candidate, v6: bool| {
        candidate
            .addresses
            .iter()
            .map(|own| own.net.addr())
            .find(|a| a.is_ipv6() == v6 && pattern.is_match(&a.to_string()))
    };
    for candidate in &around.candidates {
        let (v4, v6) = (matching(candidate, false), matching(candidate, true));
        let hit = match (wanted.ipv4, wanted.ipv6) {
            (true, true) => v4.filter(|_| v6.is_some()),
            (true, false) => v4,
            (false, _) => v6,
        };
        if let Some(address) = hit {
            return finish(wanted, candidate, Some(address));
        }
    }
    let by_name = around.candidates.iter().find(|candidate| pattern.is_match(&candidate.name));
    finish(wanted, by_name.ok_or_else(|| format!("neither an address nor a name matches {pattern}"))?, None)
}

fn by_reach(wanted: &Wanted, around: &Surroundings, target: IpAddr) -> Result<External, String> {
    let (link, source) = around.reach.as_ref().ok_or_else(|| format!("there is no route to {target}"))?;
    let candidate = around.candidates.iter().find(|candidate| candidate.name == *link);
    finish(
        wanted,
        candidate.ok_or_else(|| format!("the route to {target} leaves by {link}, which is gone"))?,
        *source,
    )
}

fn by_default_route(wanted: &Wanted, around: &Surroundings) -> Result<External, String> {
    let v4 = || around.default_v4.as_ref().ok_or_else(|| "there is no IPv4 default route".to_owned());
    let v6 = || around.default_v6.as_ref().ok_or_else(|| "there is no IPv6 default route".to_owned());
    let link = match (wanted.ipv4, wanted.ipv6) {
        (true, true) if v4()? != v6()? => {
            return Err(format!("the IPv4 default route leaves by {}, the IPv6 one by {}", v4()?, v6()?));
        }
        (true, _) => v4()?,
        (false, _) => v6()?,
    };
    let candidate = around.candidates.iter().find(|candidate| candidate.name == *link);
    finish(
        wanted,
        candidate.ok_or_else(|| format!("the default route leaves by {link}, which is gone"))?,
        None,
    )
}

/// Completes a chosen link: its best address per family unless one was chosen with it.
fn finish(wanted: &Wanted, candidate: &Candidate, chosen: Option<IpAddr>) -> Result<External, String> {
    let name = &candidate.name;
    if candidate.mtu == 0 {
        return Err(format!("the MTU of {name} is 0"));
    }
    let ipv4 = match chosen {
        Some(IpAddr::V4(address)) => Some(address),
        _ => best(candidate, false)
            .and_then(|address| if let IpAddr::V4(a) = address { Some(a) } else { None }),
    };
    let ipv6 = match chosen {
        Some(IpAddr::V6(address)) => Some(address),
        _ => {
            best(candidate, true).and_then(|address| if let IpAddr::V6(a) = address { Some(a) } else { None })
        }
    };
    if wanted.ipv4 && ipv4.is_none() {
        return Err(format!("{name} has no usable IPv4 address"));
    }
    if wanted.ipv6 && ipv6.is_none() {
        return Err(format!("{name} has no usable IPv6 address"));
    }
    let (ipv4, ipv6) = (ipv4.filter(|_| wanted.ipv4), ipv6.filter(|_| wanted.ipv6));
    Ok(External {
        link: name.clone(),
        mtu: candidate.mtu,
        ipv4,
        ipv6,
        public_ipv4: wanted.public_ip.or(ipv4),
        public_ipv6: wanted.public_ipv6.filter(|_| wanted.ipv6).or(ipv6),
    })
}

/// Global before link-local, permanent before leased, lasting before temporary; deprecated never.
fn best(candidate: &Candidate, v6: bool) -> Option<IpAddr> {
    let link_local = |address: IpAddr| match address {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    let usable = |address: IpAddr| {
        !address.is_loopback()
            && !address.is_multicast()
            && !address.is_unspecified()
            && address.is_ipv6() == v6
    };
    candidate
        .addresses
        .iter()
        .filter(|own| usable(own.net.addr()) && !own.deprecated)
        .min_by_key(|own| (link_local(own.net.addr()), !own.permanent, own.temporary))
        .map(|own| own.net.addr())
}

fn inventory(around: &Surroundings) -> String {
    let links: Vec<String> = around
        .candidates
        .iter()
        .map(|candidate| {
            let addresses: Vec<String> =
                candidate.addresses.iter().map(|own| own.net.addr().to_string()).collect();
            format!("{} ({})", candidate.name, addresses.join(", "))
        })
        .collect();
    if links.is_empty() { "no links".to_owned() } else { links.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{Candidate, CandidateAddress, External, Surroundings, Wanted, choose};
    use regex::Regex;

    fn own(net: &str) -> CandidateAddress {
        CandidateAddress { net: net.parse().unwrap(), deprecated: false, permanent: true, temporary: false }
    }

    fn machine() -> Surroundings {
        let nets = [
            "1.10.100.1/24",
            "192.168.200.128/24",
            "172.16.30.18/24",
            "172.16.31.200/24",
            "172.16.32.100/24",
            "2001:db8::1/64",
        ];
        Surroundings {
            candidates: vec![
                Candidate {
                    name: "lo".into(),
                    mtu: 65536,
                    addresses: vec![own("127.0.0.1/8"), own("::1/128")],
                },
                Candidate {
                    name: "eth0".into(),
                    mtu: 1500,
                    addresses: vec![own("10.0.0.5/24"), own("fe80::1/64")],
                },
                Candidate { name: "dummy0".into(), mtu: 1450, addresses: nets.map(own).to_vec() },
            ],
            default_v4: Some("eth0".into()),
            default_v6: None,
            reach: None,
        }
    }

    fn v4() -> Wanted {
        Wanted { ipv4: true, ..Default::default() }
    }

    fn chosen(wanted: &Wanted) -> External {
        choose(wanted, &machine()).unwrap()
    }

    #[test]
    fn the_default_route_decides_when_nothing_is_asked_for() {
        let external = chosen(&v4());
        assert_eq!(
            (external.link.as_str(), external.public_ipv4.unwrap().to_string()),
            ("eth0", "10.0.0.5".into())
        );
        let error = choose(&Wanted { ipv6: true, ..v4() }, &machine()).unwrap_err().to_string();
        assert!(error.contains("no IPv6 default route") && error.contains("dummy0 (1.10.100.1,"), "{error}");
    }

    #[test]
    fn flannels_vectors() {
        let pattern = |text: &str| Wanted { patterns: vec![Regex::new(text).unwrap()], ..v4() };
        let address = |wanted: &Wanted| chosen(wanted).ipv4.unwrap().to_string();
        assert_eq!(address(&pattern(r"192\.168\.200\.\d+")), "192.168.200.128");
        assert_eq!(address(&pattern(r"dummy\d+")), "1.10.100.1");
        assert_eq!(address(&Wanted { interfaces: vec!["172.16.30.18".into()], ..v4() }), "172.16.30.18");
        assert_eq!(address(&Wanted { interfaces: vec!["dummy0".into()], ..v4() }), "1.10.100.1");
        let public =
            Wanted { interfaces: vec!["dummy0".into()], public_ip: Some("8.8.8.8".parse().unwrap()), ..v4() };
        assert_eq!(chosen(&public).public_ipv4.unwrap().to_string(), "8.8.8.8");
        let reach = Wanted { can_reach: Some("172.16.32.254".parse().unwrap()), ..v4() };
        let around = Surroundings {
            reach: Some(("dummy0".into(), Some("172.16.32.100".parse().unwrap()))),
            ..machine()
        };
        assert_eq!(choose(&reach, &around).unwrap().ipv4.unwrap().to_string(), "172.16.32.100");
    }

    #[test]
    fn names_come_before_patterns_and_misses_are_skipped() {
        let wanted = Wanted {
            interfaces: vec!["nope".into(), "9.9.9.9".into(), "dummy0".into()],
            patterns: vec![Regex::new("eth").unwrap()],
            ..v4()
        };
        assert_eq!(chosen(&wanted).link, "dummy0");
        let hopeless =
            Wanted { interfaces: vec!["nope".into()], patterns: vec![Regex::new("wlan").unwrap()], ..v4() };
        assert_eq!(choose(&hopeless, &machine()).unwrap_err().tried.len(), 2);
    }

    #[test]
    fn a_public_address_selects_its_link_and_must_be_local() {
        let wanted = Wanted { public_ip: Some("172.16.31.200".parse().unwrap()), ..v4() };
        assert_eq!(chosen(&wanted).link, "dummy0");
        let elsewhere = Wanted { public_ip: Some("8.8.8.8".parse().unwrap()), ..v4() };
        assert!(choose(&elsewhere, &machine()).is_err());
    }

    #[test]
    fn the_best_address_is_global_permanent_and_lasting() {
        let mut around = machine();
        let poor = |net| CandidateAddress { permanent: false, ..own(net) };
        around.candidates[1].addresses = vec![
            CandidateAddress { deprecated: true, ..own("2001:db8::1/64") },
            own("fe80::1/64"),
            poor("2001:db8::2/64"),
            CandidateAddress { temporary: true, ..own("2001:db8::3/64") },
            own("2001:db8::4/64"),
        ];
        let wanted = Wanted { ipv6: true, interfaces: vec!["eth0".into()], ..Default::default() };
        assert_eq!(choose(&wanted, &around).unwrap().ipv6.unwrap().to_string(), "2001:db8::4");
    }

    #[test]
    fn both_families_must_be_on_one_link() {
        let wanted =
            Wanted { ipv4: true, ipv6: true, interfaces: vec!["dummy0".into()], ..Default::default() };
        let external = chosen(&wanted);
        assert_eq!(external.public_ipv6.unwrap().to_string(), "2001:db8::1");
        let split = Surroundings { default_v6: Some("dummy0".into()), ..machine() };
        let wanted = Wanted { ipv4: true, ipv6: true, ..Default::default() };
        assert!(
            choose(&wanted, &split)
                .unwrap_err()
                .to_string()
                .contains("leaves by eth0, the IPv6 one by dummy0")
        );
    }

    #[test]
    fn a_link_without_mtu_is_refused() {
        let mut around = machine();
        around.candidates[1].mtu = 0;
        assert!(choose(&v4(), &around).unwrap_err().to_string().contains("MTU of eth0 is 0"));
    }
}
