//! Steps as the lines a person would type.

use std::fmt;

use ipnet::IpNet;
use loden_firewall::{Chain, Table, changes};

use crate::{Key, Link, LinkKind, MAIN_TABLE, Object, Route, RouteKind, Step, Sysctl};

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(Object::Link(link)) => add_link(f, link),
            Self::Change { from: Object::Link(from), to: Object::Link(to) } => change_link(f, from, to),
            Self::Delete(Object::Link(link)) => write!(f, "ip link delete {}", link.name),

            Self::Add(Object::Address(a)) | Self::Change { to: Object::Address(a), .. } => {
                write!(f, "ip address add {} dev {}", a.address, a.link)
            }
            Self::Delete(Object::Address(a)) => write!(f, "ip address delete {} dev {}", a.address, a.link),

            Self::Add(Object::Route(route)) => write!(f, "ip route add {}", RouteText(route)),
            Self::Change { to: Object::Route(route), .. } => {
                write!(f, "ip route replace {}", RouteText(route))
            }
            Self::Delete(Object::Route(route)) => write!(f, "ip route delete {}", RouteText(route)),

            Self::Add(Object::Neighbour(n)) | Self::Change { to: Object::Neighbour(n), .. } => {
                write!(f, "ip neighbour replace {} lladdr {} dev {} nud permanent", n.address, n.mac, n.link)
            }
            Self::Delete(Object::Neighbour(n)) => {
                write!(f, "ip neighbour delete {} dev {}", n.address, n.link)
            }

            Self::Add(Object::Fdb(e)) | Self::Change { to: Object::Fdb(e), .. } => {
                write!(f, "bridge fdb replace {} dev {} dst {} self permanent", e.mac, e.link, e.destination)
            }
            Self::Delete(Object::Fdb(e)) => {
                write!(f, "bridge fdb delete {} dev {} dst {} self", e.mac, e.link, e.destination)
            }

            Self::Add(Object::Sysctl(s)) | Self::Change { to: Object::Sysctl(s), .. } => {
                write!(f, "sysctl -w {}={}", dotted(&s.path), s.value)
            }
            Self::Delete(Object::Sysctl(Sysctl { path, .. })) => {
                write!(f, "# forget sysctl {}", dotted(path))
            }

            Self::Add(Object::Table(table)) => nft_lines(f, changes(None, table).iter()),
            Self::Change { from: Object::Table(from), to: Object::Table(to) } => change_table(f, from, to),
            Self::Delete(Object::Chain(chain)) => write!(f, "{chain}"),
            Self::Add(Object::Chain(chain)) => {
                write!(f, "# iptables makes chain {} {}", chain.table(), chain.name())
            }

            Self::Delete(Object::Table(table)) => write!(f, "nft delete table {}", table.key()),

            Self::Change { from, to } => write!(f, "# {} cannot become {}", from.key(), to.key()),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(name) => write!(f, "link {name}"),
            Self::Sysctl(path) => write!(f, "sysctl {}", dotted(path)),
            Self::Table(table) => write!(f, "nft table {table}"),
            Self::Chain { table, chain } => write!(f, "nft chain {table} {chain}"),
            Self::Address { link, address } => write!(f, "address {address} on {link}"),
            Self::Neighbour { link, address } => write!(f, "neighbour {address} on {link}"),
            Self::Fdb { link, mac } => write!(f, "FDB entry {mac} on {link}"),
            Self::Route { table: MAIN_TABLE, destination, metric: 0 } => write!(f, "route {destination}"),
            Self::Route { table: MAIN_TABLE, destination, metric } => {
                write!(f, "route {destination} metric {metric}")
            }
            Self::Route { table, destination, metric } => {
                write!(f, "route {destination} metric {metric} in table {table}")
            }
        }
    }
}

/// A path below `/proc/sys` in sysctl's spelling, where a dot in a link's name becomes a slash.
fn dotted(path: &str) -> String {
    path.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            other => other,
        })
        .collect()
}

fn add_link(f: &mut fmt::Formatter<'_>, link: &Link) -> fmt::Result {
    write!(f, "ip link add {}", link.name)?;
    if let Some(mac) = link.mac {
        write!(f, " address {mac}")?;
    }
    if let Some(mtu) = link.mtu {
        write!(f, " mtu {mtu}")?;
    }
    match &link.kind {
        LinkKind::Bridge => write!(f, " type bridge")?,
        LinkKind::Other(kind) => write!(f, " type {kind}")?,
        LinkKind::Vxlan(vxlan) => {
            write!(f, " type vxlan id {}", vxlan.vni)?;
            if let Some(local) = vxlan.local {
                write!(f, " local {local}")?;
            }
            if let Some(group) = vxlan.group {
                write!(f, " {} {group}", if group.is_multicast() { "group" } else { "remote" })?;
            }
            if let Some(parent) = &vxlan.parent {
                write!(f, " dev {parent}")?;
            }
            write!(f, " dstport {}{}", vxlan.port, if vxlan.learning { "" } else { " nolearning" })?;
            if vxlan.gbp {
                write!(f, " gbp")?;
            }
        }
    }
    if let Some(alias) = &link.alias {
        write!(f, "\nip link set {} alias \"{alias}\"", link.name)?;
    }
    if link.up {
        write!(f, "\nip link set {} up", link.name)?;
    }
    Ok(())
}

fn change_link(f: &mut fmt::Formatter<'_>, from: &Link, to: &Link) -> fmt::Result {
    write!(f, "ip link set {}", to.name)?;
    if let Some(mtu) = to.mtu.filter(|_| from.mtu != to.mtu) {
        write!(f, " mtu {mtu}")?;
    }
    if let Some(mac) = to.mac.filter(|_| from.mac != to.mac) {
        write!(f, " address {mac}")?;
    }
    if let Some(alias) = to.alias.as_ref().filter(|_| from.alias != to.alias) {
        write!(f, " alias \"{alias}\"")?;
    }
    match (from.up, to.up) {
        (false, true) => write!(f, " up")?,
        (true, false) => write!(f, " down")?,
        _ => {}
    }
    match (&from.kind, &to.kind) {
        (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) if have.learning != want.learning => {
            write!(f, " type vxlan {}", if want.learning { "learning" } else { "nolearning" })
        }
        _ => Ok(()),
    }
}

struct RouteText<'a>(&'a Route);

impl fmt::Display for RouteText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = self.0;
        match route.kind {
            RouteKind::Blackhole => write!(f, "blackhole ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
            RouteKind::Unicast | RouteKind::Multipath => {}
        }
        write!(f, "{}", route.destination)?;
        if let Some(via) = route.via {
            let other_family = via.is_ipv6() != matches!(route.destination, IpNet::V6(_));
            write!(f, " via {}{via}", if other_family { "inet6 " } else { "" })?;
        }
        if let Some(link) = &route.link {
            write!(f, " dev {link}")?;
        }
        if route.kind == RouteKind::Multipath {
            write!(f, " nexthop …")?;
        }
        write!(f, " proto {}", route.protocol)?;
        if let Some(source) = route.source {
            write!(f, " src {source}")?;
        }
        if route.metric != 0 {
            write!(f, " metric {}", route.metric)?;
        }
        if route.table != MAIN_TABLE {
            write!(f, " table {}", route.table)?;
        }
        if route.onlink {
            write!(f, " onlink")?;
        }
        Ok(())
    }
}

fn nft_lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, lines: impl Iterator<Item = T>) -> fmt::Result {
    for (i, line) in lines.enumerate() {
        write!(f, "{}nft {line}", if i == 0 { "" } else { "\n" })?;
    }
    Ok(())
}

/// The edit by whole chains. The kernel gets the smaller edit of single rules, whose handles mean nothing to a reader.
fn change_table(f: &mut fmt::Formatter<'_>, from: &Table, to: &Table) -> fmt::Result {
    let name = to.key();
    let mut lines = Vec::new();
    if from.comment != to.comment {
        lines.push(format!("delete table {name}"));
        lines.extend(changes(None, to).iter().map(ToString::to_string));
        return nft_lines(f, lines.into_iter());
    }
    if from.dormant {
        lines.push(format!("add table {name}"));
    }
    let whole = |chain: &str| {
        let mut only = Table::new(to.family, to.name.clone());
        if let Some(chain_value) = to.chains.get(chain) {
            only.chains.insert(chain.to_owned(), chain_value.clone());
        }
        let mut lines: Vec<String> = changes(None, &only).iter().map(ToString::to_string).collect();
        lines.remove(0);
        lines
    };
    for (chain, want) in &to.chains {
        match from.chains.get(chain) {
            Some(have) if have == want => {}
            Some(Chain { base, comment, .. }) if (base, comment) == (&want.base, &want.comment) => {
                lines.push(format!("flush chain {name} {chain}"));
                lines.extend(whole(chain).into_iter().skip(1));
            }
            Some(_) => {
                lines.push(format!("delete chain {name} {chain}"));
                lines.extend(whole(chain));
            }
            None => lines.extend(whole(chain)),
        }
    }
    let surplus = from.chains.keys().filter(|chain| !to.chains.contains_key(*chain));
    lines.extend(surplus.map(|chain| format!("delete chain {name} {chain}")));
    nft_lines(f, lines.into_iter())
}
