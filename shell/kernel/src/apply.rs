//! From a step to the kernel's words.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use loden_netlink::{
    self as netlink, BridgeConfig, Change, LinkSettings, MacAddress, NewLink, NewLinkKind, RouteSocket,
    VxlanConfig, address_flags, sysctl,
};
use loden_node::{Address, FdbEntry, Link, LinkKind, Neighbour, Object, Route, RouteKind, Step, Sysctl};

use crate::error::line;
use crate::{Error, Kernel};

pub(crate) fn apply(kernel: &mut Kernel, step: &Step) -> Result<(), Error> {
    apply_all(kernel, std::slice::from_ref(step)).pop().unwrap_or(Ok(()))
}

/// Applies steps in order, one outcome each. Those about objects that lie on a link travel together: thousands of peers are
/// a few dozen round trips, and each link's name is looked up once.
pub(crate) fn apply_all(kernel: &mut Kernel, steps: &[Step]) -> Vec<Result<(), Error>> {
    let mut outcomes = Vec::with_capacity(steps.len());
    let mut waiting = Vec::new();
    let mut indices = BTreeMap::new();
    for step in steps {
        let mut apply = Apply { kernel, step, indices: &mut indices };
        if let Some(change) = apply.change_on_link() {
            waiting.push((step, change));
            continue;
        }
        send(kernel, &mut waiting, &mut outcomes);
        outcomes.push(forgive(step, Apply { kernel, step, indices: &mut indices }.run()));
        // Links may have come, gone or been made anew.
        indices.clear();
    }
    send(kernel, &mut waiting, &mut outcomes);
    outcomes
}

/// Sends the changes that wait, in one go, and adds their outcomes in order.
fn send(
    kernel: &mut Kernel,
    waiting: &mut Vec<(&Step, Result<Change, Error>)>,
    outcomes: &mut Vec<Result<(), Error>>,
) {
    let changes: Vec<Change> =
        waiting.iter().filter_map(|(_, change)| change.as_ref().ok().cloned()).collect();
    // Without an answer nobody knows which took effect; what did is seen at the next look.
    let (answers, mut cause) = match kernel.route.apply_each(&changes) {
        Ok(answers) => (answers, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut answers = answers.into_iter();
    for (step, change) in waiting.drain(..) {
        let outcome = change.and_then(|change| {
            let unanswered = || netlink::Error::NoAnswer { operation: change.to_string() };
            let answer = answers.next().unwrap_or_else(|| Err(cause.take().unwrap_or_else(unanswered)));
            answer.map_err(|source| Error::Step { step: line(step), source: Box::new(source) })
        });
        outcomes.push(forgive(step, outcome));
    }
}

/// What is gone already, or lived on a link that is gone, is as good as deleted.
fn forgive(step: &Step, outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(Error::Step { source, .. }) if matches!(step, Step::Delete(_)) && source.is_not_found() => Ok(()),
        Err(Error::NoLink { .. }) if matches!(step, Step::Delete(_)) => Ok(()),
        outcome => outcome,
    }
}

struct Apply<'a> {
    kernel: &'a mut Kernel,
    step: &'a Step,
    /// Indices of links by name, as far as they were looked up.
    indices: &'a mut BTreeMap<String, u32>,
}

impl Apply<'_> {
    /// The change that a step about an object on a link means; `None` for other steps.
    fn change_on_link(&mut self) -> Option<Result<Change, Error>> {
        let (Step::Add(object) | Step::Change { to: object, .. } | Step::Delete(object)) = self.step;
        let change = match object {
            Object::Address(address) => self.address(address).map(|address| match self.step {
                Step::Add(_) => Change::AddAddress(address),
                Step::Change { .. } => Change::ReplaceAddress(address),
                Step::Delete(_) => Change::DeleteAddress(address),
            }),
            Object::Neighbour(neighbour) => self.neighbour(neighbour).map(|neighbour| match self.step {
                Step::Add(_) | Step::Change { .. } => Change::ReplaceNeighbour(neighbour),
                Step::Delete(_) => Change::DeleteNeighbour(neighbour),
            }),
            Object::Fdb(entry) => self.fdb_entry(entry).map(|entry| match self.step {
                Step::Add(_) | Step::Change { .. } => Change::ReplaceFdb(entry),
                Step::Delete(_) => Change::DeleteFdb(entry),
            }),
            Object::Route(route) => self.route(route).map(|route| match self.step {
                Step::Add(_) => Change::AddRoute(route),
                Step::Change { .. } => Change::ReplaceRoute(route),
                Step::Delete(_) => Change::DeleteRoute(route),
            }),
            Object::Link(_) | Object::Sysctl(_) | Object::Table(_) | Object::Chain(_) => return None,
        };
        Some(change)
    }

    /// Applies a step of any other kind.
    fn run(&mut self) -> Result<(), Error> {
        match self.step {
            Step::Add(Object::Link(link)) => self.add_link(link),
            Step::Change { from: Object::Link(from), to: Object::Link(to) } => self.change_link(from, to),
            Step::Change { to: Object::Link(_), .. } => Err(self.replaced()),
            Step::Add(Object::Sysctl(setting)) | Step::Change { to: Object::Sysctl(setting), .. } => {
                self.set(setting)
            }
            Step::Add(Object::Table(table)) | Step::Change { to: Object::Table(table), .. } => {
                self.write_table(table)
            }
            Step::Delete(object) => self.delete(object),
            Step::Add(_) | Step::Change { .. } => Err(Error::OnlyObserved { step: line(self.step) }),
        }
    }

    fn delete(&mut self, object: &Object) -> Result<(), Error> {
        match object {
            Object::Link(link) => {
                let Some(found) = self.look_up(&link.name)? else { return Ok(()) };
                if !is_same_kind(&found, &link.kind) {
                    return Err(self.replaced());
                }
                self.change(&Change::DeleteLink { index: found.index, name: found.name })
            }
            Object::Table(table) => {
                let deleted = self.kernel.nft.delete_table(&table.key());
                deleted.map(|_| ()).map_err(|source| self.refused(source))
            }
            // If a rule went meanwhile nothing of this was done, and the next look finds what is left.
            Object::Chain(chain) => {
                self.kernel.nft.apply(&chain.removal()).map_err(|source| self.refused(source))
            }
            // A setting cannot be absent; the others never come here.
            _ => Err(Error::OnlyObserved { step: line(self.step) }),
        }
    }

    fn refused(&self, source: netlink::Error) -> Error {
        Error::Step { step: line(self.step), source: Box::new(source) }
    }

    fn replaced(&self) -> Error {
        Error::Replaced { step: line(self.step), key: self.step.key() }
    }

    fn change(&mut self, change: &Change) -> Result<(), Error> {
        self.kernel.route.apply(change).map_err(|source| self.refused(source))
    }

    fn look_up(&mut self, name: &str) -> Result<Option<netlink::Link>, Error> {
        RouteSocket::link_by_name(&mut self.kernel.route, name).map_err(|source| self.refused(source))
    }

    fn index(&mut self, name: &str) -> Result<u32, Error> {
        if let Some(index) = self.indices.get(name) {
            return Ok(*index);
        }
        match self.look_up(name)? {
            Some(link) => {
                self.indices.insert(name.to_owned(), link.index);
                Ok(link.index)
            }
            None => Err(Error::NoLink { step: line(self.step), link: name.to_owned() }),
        }
    }

    fn add_link(&mut self, link: &Link) -> Result<(), Error> {
        let kind = match &link.kind {
            LinkKind::Bridge => NewLinkKind::Bridge(BridgeConfig::default()),
            LinkKind::Vxlan(vxlan) => NewLinkKind::Vxlan(VxlanConfig {
                vni: vxlan.vni,
                lower: match &vxlan.parent {
                    None => None,
                    Some(parent) => Some(self.index(parent)?),
                },
                local: vxlan.local,
                group: None,
                port: Some(vxlan.port),
                learning: vxlan.learning,
                gbp: vxlan.gbp,
            }),
            LinkKind::Other(_) => return Err(Error::OnlyObserved { step: line(self.step) }),
        };
        let new = NewLink {
            mtu: link.mtu,
            address: link.mac.map(|mac| MacAddress(mac.0)),
            alias: link.alias.clone(),
            up: link.up,
            ..NewLink::new(link.name.clone(), kind)
        };
        self.kernel.route.create_link(&new).map(|_| ()).map_err(|source| self.refused(source))
    }

    fn change_link(&mut self, from: &Link, to: &Link) -> Result<(), Error> {
        let Some(found) = self.look_up(&to.name)? else {
            return Err(Error::NoLink { step: line(self.step), link: to.name.clone() });
        };
        if !is_same_kind(&found, &from.kind) {
            return Err(self.replaced());
        }
        let mut mtu = to.mtu.filter(|_| to.mtu != from.mtu);
        if let (LinkKind::Vxlan(have), LinkKind::Vxlan(want)) = (&from.kind, &to.kind)
            && have.learning != want.learning
        {
            self.change(&Change::SetVxlan { index: found.index, learning: want.learning })?;
            // Which set the MTU back.
            mtu = Some(to.mtu.unwrap_or(found.mtu));
        }
        let settings = LinkSettings {
            up: Some(to.up),
            mtu,
            address: to.mac.filter(|_| to.mac != from.mac).map(|mac| MacAddress(mac.0)),
            alias: to.alias.clone().filter(|_| to.alias != from.alias),
            ..LinkSettings::default()
        };
        self.change(&Change::SetLink { index: found.index, settings })
    }

    fn set(&mut self, setting: &Sysctl) -> Result<(), Error> {
        let written = self.kernel.inside(|| sysctl::write(&setting.path, &setting.value))?;
        written.map_err(|source| self.refused(source))
    }

    fn write_table(&mut self, table: &loden_firewall::Table) -> Result<(), Error> {
        self.kernel.nft.set_table(table).map(|_| ()).map_err(|source| self.refused(source))
    }

    fn neighbour(&mut self, neighbour: &Neighbour) -> Result<netlink::Neighbour, Error> {
        let index = self.index(&neighbour.link)?;
        Ok(netlink::Neighbour::permanent(index, neighbour.address, MacAddress(neighbour.mac.0)))
    }

    fn fdb_entry(&mut self, entry: &FdbEntry) -> Result<netlink::FdbEntry, Error> {
        let index = self.index(&entry.link)?;
        Ok(netlink::FdbEntry::tunnel(index, MacAddress(entry.mac.0), entry.destination))
    }

    fn address(&mut self, address: &Address) -> Result<netlink::Address, Error> {
        let index = self.index(&address.link)?;
        let mut new = netlink::Address::new(index, address.address);
        match address.address {
            // The broadcast address that goes with the prefix, as the CNI plugins and `ip … brd +` set it.
            IpNet::V4(net) if net.prefix_len() < 31 => new.broadcast = Some(net.broadcast()),
            // Nobody else has the address we were given; without this it is unusable for a second or two.
            IpNet::V6(_) => new.flags = address_flags::NODAD,
            IpNet::V4(_) => {}
        }
        Ok(new)
    }

    fn route(&mut self, route: &Route) -> Result<netlink::Route, Error> {
        let mut new = netlink::Route::new(route.destination).in_table(route.table).by(route.protocol);
        new.kind = match route.kind {
            RouteKind::Unicast => netlink::RouteKind::Unicast,
            RouteKind::Blackhole => netlink::RouteKind::Blackhole,
            RouteKind::Multipath | RouteKind::Other(_) => {
                return Err(Error::OnlyObserved { step: line(self.step) });
            }
        };
        if let Some(via) = route.via {
            new = new.via(via);
        }
        if let Some(link) = &route.link {
            new = new.dev(self.index(link)?);
        }
        new.onlink = route.onlink;
        new.source = route.source.filter(|source| *source != IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        // 0 is the kernel's way to say none; for IPv6 it would be turned into 1024.
        new.metric = Some(route.metric).filter(|metric| *metric != 0);
        Ok(new)
    }
}

fn is_same_kind(found: &netlink::Link, kind: &LinkKind) -> bool {
    match (&found.kind, kind) {
        (netlink::LinkKind::Bridge(_), LinkKind::Bridge) => true,
        (netlink::LinkKind::Vxlan(have), LinkKind::Vxlan(want)) => have.vni == want.vni,
        (netlink::LinkKind::Veth, LinkKind::Other(kind)) => kind == "veth",
        (netlink::LinkKind::Ipip(_), LinkKind::Other(kind)) => kind == "ipip",
        (netlink::LinkKind::Device, LinkKind::Other(kind)) => kind.is_empty(),
        (netlink::LinkKind::Other(have), LinkKind::Other(want)) => have == want,
        _ => false,
    }
}
