//! Rules that `iptables` wrote into nf_tables, in its own words.
//!
//! iptables writes what it can as nf_tables expressions and the rest as extensions of its own, whose settings the kernel hands back as
//! the structures of `linux/netfilter/xt_*.h`. A rule is told whole or said not to be: were an unknown setting passed over, a rule that
//! does something else would be taken for the wanted one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use loden_firewall::iptables::Rule;
use loden_firewall::{Action, Family, Match};

/// One extension as iptables-save prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extension {
    words: Vec<String>,
    /// Whether the words say everything.
    pub(super) is_whole: bool,
}

impl Extension {
    pub(super) fn read(family: Family, is_target: bool, name: &str, revision: u32, info: &[u8]) -> Self {
        let info = Info(info);
        let settings = if is_target {
            match (name, revision) {
                ("MASQUERADE", 0) => masquerade(family, info),
                ("MARK", 2) => set_mark(info),
                ("DNAT", _) => destination_nat(family, revision, info),
                _ => None,
            }
        } else {
            match (name, revision) {
                ("comment", 0) => info.text(0, 256).map(|comment| vec!["--comment".to_owned(), comment]),
                ("conntrack", 2 | 3) => connection_state(info),
                ("addrtype", 1) => destination_type(info),
                ("multiport", 1) => multiport(info),
                ("tcp", 0) => destination_port(info, 4),
                ("udp", 0) => destination_port(info, 1),
                ("sctp", 0) => sctp_destination_port(info),
                ("mark", 1) => mark(info),
                _ => None,
            }
        };
        let option = if is_target { "-j" } else { "-m" };
        let mut words = vec![option.to_owned(), name.to_owned()];
        let is_whole = settings.is_some();
        words.extend(settings.into_iter().flatten());
        Self { words, is_whole }
    }
}

/// A rule's words, and whether they say everything that the matches and the action do.
pub(super) fn words(
    family: Family,
    matches: &[Match],
    extensions: &[(usize, Extension)],
    action: Option<&Action>,
) -> (Rule, bool) {
    // iptables-save prints its own five options first, whatever the order of the expressions.
    let mut own: [Vec<String>; 5] = Default::default();
    let mut rest = Vec::new();
    let mut target = Vec::new();
    let mut is_whole = true;
    let mut extensions = extensions.iter().peekable();
    for (at, one) in matches.iter().enumerate() {
        while let Some((_, extension)) = extensions.next_if(|(before, _)| *before <= at) {
            rest.extend_from_slice(&extension.words);
        }
        let [source, destination, input, output, protocol] = &mut own;
        match one {
            Match::Source { net, negated } => option(source, "-s", *negated, net),
            Match::Destination { net, negated } => option(destination, "-d", *negated, net),
            Match::InputLink(name) => option(input, "-i", false, &link(name)),
            Match::NotInputLink(name) => option(input, "-i", true, &link(name)),
            Match::OutputLink(name) => option(output, "-o", false, &link(name)),
            Match::NotOutputLink(name) => option(output, "-o", true, &link(name)),
            Match::L4 { proto } => option(protocol, "-p", false, proto),
            Match::SourcePort { proto, port } | Match::DestinationPort { proto, port } => {
                if protocol.is_empty() {
                    option(protocol, "-p", false, proto);
                }
                let end = if matches!(one, Match::SourcePort { .. }) { "--sport" } else { "--dport" };
                rest.extend(["-m".to_owned(), proto.to_string(), end.to_owned(), port.to_string()]);
            }
            Match::Mark { value, mask } => {
                rest.extend(["-m", "mark", "--mark"].map(str::to_owned));
                rest.push(masked(*value, *mask));
            }
            Match::Counter => {}
            _ => is_whole = false,
        }
    }
    for (_, extension) in extensions {
        if extension.words.first().is_some_and(|word| word == "-j") {
            target.extend_from_slice(&extension.words);
        } else {
            rest.extend_from_slice(&extension.words);
        }
    }
    let mut jump = |option: &str, to: &str| target.extend([option.to_owned(), to.to_owned()]);
    match action {
        None | Some(Action::Opaque | Action::Continue) => {}
        Some(Action::Accept) => jump("-j", "ACCEPT"),
        Some(Action::Drop) => jump("-j", "DROP"),
        Some(Action::Return) => jump("-j", "RETURN"),
        Some(Action::Jump(chain)) => jump("-j", chain),
        Some(Action::Goto(chain)) => jump("-g", chain),
        Some(Action::Masquerade { fully_random }) => {
            jump("-j", "MASQUERADE");
            if *fully_random {
                target.push("--random-fully".to_owned());
            }
        }
        Some(Action::DestinationNat { addr, port }) => {
            jump("-j", "DNAT");
            target.extend(["--to-destination".to_owned(), to_destination(*addr, *port)]);
        }
        Some(_) => is_whole = false,
    }
    // Extensions whose words do not tell the family would read alike in both.
    is_whole &= matches!(family, Family::Ip | Family::Ip6);
    (Rule::new(own.into_iter().flatten().chain(rest).chain(target)), is_whole)
}

fn option(words: &mut Vec<String>, name: &str, is_negated: bool, value: &dyn std::fmt::Display) {
    words.extend(is_negated.then(|| "!".to_owned()));
    words.extend([name.to_owned(), value.to_string()]);
}

fn link(name: &str) -> String {
    name.strip_suffix('*').map_or_else(|| name.to_owned(), |prefix| format!("{prefix}+"))
}

fn masked(value: u32, mask: u32) -> String {
    if mask == u32::MAX { format!("{value:#x}") } else { format!("{value:#x}/{mask:#x}") }
}

fn to_destination(addr: IpAddr, port: Option<u16>) -> String {
    match (addr, port) {
        (addr, None) => addr.to_string(),
        (IpAddr::V4(addr), Some(port)) => format!("{addr}:{port}"),
        (IpAddr::V6(addr), Some(port)) => format!("[{addr}]:{port}"),
    }
}

/// An extension's settings: a structure of the kernel's, in the machine's byte order.
#[derive(Debug, Clone, Copy)]
struct Info<'a>(&'a [u8]);

impl<'a> Info<'a> {
    fn at(self, start: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(start..start.checked_add(len)?)
    }

    fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.at(at, 2)?.try_into().ok()?))
    }

    fn be16(self, at: usize) -> Option<u16> {
        self.u16(at).map(u16::from_be)
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.at(at, 4)?.try_into().ok()?))
    }

    fn text(self, start: usize, len: usize) -> Option<String> {
        let bytes = self.at(start, len)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        String::from_utf8(bytes.get(..end)?.to_vec()).ok()
    }

    fn is_zero(self, start: usize, len: usize) -> Option<bool> {
        Some(self.at(start, len)?.iter().all(|byte| *byte == 0))
    }
}

/// `struct xt_conntrack_mtinfo2` and `…3`, as far as only the state is asked for.
fn connection_state(info: Info<'_>) -> Option<Vec<String>> {
    const MATCH_FLAGS: usize = 146;
    const STATE: u16 = 1;
    // The order in which iptables-save prints them.
    const NAMES: [(u16, &str); 7] = [
        (1, "INVALID"),
        (8, "NEW"),
        (4, "RELATED"),
        (2, "ESTABLISHED"),
        (256, "UNTRACKED"),
        (64, "SNAT"),
        (128, "DNAT"),
    ];
    if info.u16(MATCH_FLAGS)? != STATE || info.u16(MATCH_FLAGS + 2)? != 0 {
        return None;
    }
    let states = info.u16(MATCH_FLAGS + 4)?;
    let names: Vec<&str> = NAMES.iter().filter(|(bit, _)| states & bit != 0).map(|(_, name)| *name).collect();
    let is_whole = NAMES.iter().fold(states, |left, (bit, _)| left & !bit) == 0;
    is_whole.then(|| vec!["--ctstate".to_owned(), names.join(",")])
}

/// `struct xt_addrtype_info_v1`, as far as only the destination's type is asked for.
fn destination_type(info: Info<'_>) -> Option<Vec<String>> {
    const LOCAL: u16 = 1 << 2;
    let is_plain = info.u16(0)? == 0 && info.u32(4)? == 0;
    (is_plain && info.u16(2)? == LOCAL).then(|| vec!["--dst-type".to_owned(), "LOCAL".to_owned()])
}

/// `struct xt_multiport_v1`.
fn multiport(info: Info<'_>) -> Option<Vec<String>> {
    let option = match info.u8(0)? {
        0 => "--sports",
        1 => "--dports",
        2 => "--ports",
        _ => return None,
    };
    let count = usize::from(info.u8(1)?);
    let (ports, ends, invert) = (2, 32, 47);
    if count > 15 || info.u8(invert)? != 0 {
        return None;
    }
    let mut text = String::new();
    let mut is_range_end = false;
    for at in 0..count {
        if at > 0 {
            text.push(if is_range_end { ':' } else { ',' });
        }
        text.push_str(&info.u16(ports + 2 * at)?.to_string());
        is_range_end = info.u8(ends + at)? != 0;
    }
    Some(vec![option.to_owned(), text])
}

/// `struct xt_tcp` and `struct xt_udp`, as far as they ask for one destination port; `rest` bytes of other conditions follow.
fn destination_port(info: Info<'_>, rest: usize) -> Option<Vec<String>> {
    let any_source = info.u16(0)? == 0 && info.u16(2)? == u16::MAX;
    let (first, last) = (info.u16(4)?, info.u16(6)?);
    (any_source && first == last && info.is_zero(8, rest)?)
        .then(|| vec!["--dport".to_owned(), first.to_string()])
}

/// `struct xt_sctp_info`, as far as it asks for one destination port.
fn sctp_destination_port(info: Info<'_>) -> Option<Vec<String>> {
    const FLAGS: usize = 284;
    const DESTINATION_PORTS: u32 = 2;
    let (first, last) = (info.u16(0)?, info.u16(2)?);
    let is_plain = info.u32(FLAGS)? == DESTINATION_PORTS && info.u32(FLAGS + 4)? == 0;
    (is_plain && first == last).then(|| vec!["--dport".to_owned(), first.to_string()])
}

/// `struct xt_mark_mtinfo1`.
fn mark(info: Info<'_>) -> Option<Vec<String>> {
    (info.u8(8)? == 0).then_some(())?;
    Some(vec!["--mark".to_owned(), masked(info.u32(0)?, info.u32(4)?)])
}

/// `struct xt_mark_tginfo2`.
fn set_mark(info: Info<'_>) -> Option<Vec<String>> {
    Some(vec!["--set-xmark".to_owned(), format!("{:#x}/{:#x}", info.u32(0)?, info.u32(4)?)])
}

const MAP_ADDRESS: u32 = 1;
const MAP_PORT: u32 = 2;
const FULLY_RANDOM: u32 = 0x10;

/// `struct nf_nat_ipv4_multi_range_compat` and `struct nf_nat_range`.
fn masquerade(family: Family, info: Info<'_>) -> Option<Vec<String>> {
    match info.u32(if family == Family::Ip { 4 } else { 0 })? {
        0 => Some(Vec::new()),
        FULLY_RANDOM => Some(vec!["--random-fully".to_owned()]),
        _ => None,
    }
}

/// The same two, and `struct nf_nat_range2` from revision 2 on; both of them begin alike.
fn destination_nat(family: Family, revision: u32, info: Info<'_>) -> Option<Vec<String>> {
    let is_old = family == Family::Ip && revision == 0;
    let (flags, addresses, length) = if is_old { (4, 8, 4) } else { (0, 4, 16) };
    let flags = info.u32(flags)?;
    if flags & !(MAP_ADDRESS | MAP_PORT) != 0 || flags & MAP_ADDRESS == 0 {
        return None;
    }
    let first = info.at(addresses, length)?;
    let ports = addresses + 2 * length;
    if info.at(addresses + length, length)? != first || info.be16(ports)? != info.be16(ports + 2)? {
        return None;
    }
    let addr = match family {
        Family::Ip => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(first.get(..4)?).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(first).ok()?)),
    };
    let port = (flags & MAP_PORT != 0).then(|| info.be16(ports)).flatten();
    Some(vec!["--to-destination".to_owned(), to_destination(addr, port)])
}

#[cfg(test)]
mod tests {
    use loden_firewall::L4;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn settings_of_any_length_never_panic(
            name in prop::sample::select(&["comment", "conntrack", "addrtype", "multiport", "tcp", "udp", "sctp", "mark", "MASQUERADE", "MARK", "DNAT"][..]),
            is_target in any::<bool>(), revision in 0..4_u32, info in prop::collection::vec(any::<u8>(), 0..280),
        ) {
            for family in [Family::Ip, Family::Ip6] {
                let extension = Extension::read(family, is_target, name, revision, &info);
                prop_assert_eq!(extension.words.get(1).map(String::as_str), Some(name));
            }
        }
    }

    #[test]
    fn the_own_options_come_first() {
        let comment = Extension { words: vec!["-m".to_owned(), "comment".to_owned()], is_whole: true };
        let matches = [
            Match::Counter,
            Match::InputLink("cni*".to_owned()),
            Match::not_source("10.1.0.0/16".parse().unwrap()),
            Match::DestinationPort { proto: L4::Tcp, port: 80 },
        ];
        let (rule, is_whole) =
            words(Family::Ip, &matches, &[(1, comment)], Some(&Action::Goto("X".to_owned())));
        assert!(is_whole);
        assert_eq!(rule.to_string(), "! -s 10.1.0.0/16 -i cni+ -p tcp -m comment -m tcp --dport 80 -g X");
    }
}
