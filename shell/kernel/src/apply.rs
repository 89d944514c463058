//! From a step to the kernel's words.

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
    Apply { kernel, step }.run()
}

struct Apply<'a> {
    kernel: &'a mut Kernel,
    step: &'a Step,
}

impl Apply<'_> {
    fn run(&mut self) -> Result<(), Error> {
        match self.step {
            Step::Add(object) => match object {
                Object::Link(link) => self.add_link(link),
                Object::Sysctl(setting) => self.set(setting),
                Object::Table(table) => self.write_table(table),
                Object::Chain(_) => Err(Error::OnlyObserved { step: line(self.step) }),
                Object::Address(address) => {
                    let address = self.address(address)?;
                    self.change(&Change::AddAddress(address))
                }
                Object::Neighbour(neighbour) => self.write_neighbour(neighbour),
                Object::Fdb(entry) => self.write_fdb(entry),
                Object::Route(route) => {
                    let route = self.route(route)?;
                    self.change(&Change::AddRoute(route))
                }
            },
            Step::Change { from, to } => match (from, to) {
                (Object::Link(from), Object::Link(to)) => self.change_link(from, to),
                (_, Object::Link(_)) => Err(self.replaced()),
                (_, Object::Sysctl(setting)) => self.set(setting),
                (_, Object::Table(table)) => self.write_table(table),
                (_, Object::Chain(_)) => Err(Error::OnlyObserved { step: line(self.step) }),
                (_, Object::Address(address)) => {
                    let address = self.address(address)?;
                    self.change(&Change::ReplaceAddress(address))
                }
                (_, Object::Neighbour(neighbour)) => self.write_neighbour(neighbour),
                (_, Object::Fdb(entry)) => self.write_fdb(entry),
                (_, Object::Route(route)) => {
                    let route = self.route(route)?;
                    self.change(&Change::ReplaceRoute(route))
                }
            },
            Step::Delete(object) => match self.delete(object) {
                // What is gone already, or lived on a link that is gone, is as good as deleted.
                Err(Error::Step { source, .. }) if source.is_not_found() => Ok(()),
                Err(Error::NoLink { .. }) => Ok(()),
                done => done,
            },
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
            // A setting cannot be absent.
            Object::Sysctl(_) => Err(Error::OnlyObserved { step: line(self.step) }),
            Object::Table(table) => {
                let deleted = self.kernel.nft.delete_table(&table.key());
                deleted.map(|_| ()).map_err(|source| self.refused(source))
            }
            // If a rule went meanwhile nothing of this was done, and the next look finds what is left.
            Object::Chain(chain) => {
                self.kernel.nft.apply(&chain.removal()).map_err(|source| self.refused(source))
            }
            Object::Address(address) => {
                let address = self.address(address)?;
                self.change(&Change::DeleteAddress(address))
            }
            Object::Neighbour(neighbour) => {
                let index = self.index(&neighbour.link)?;
                let mac = MacAddress(neighbour.mac.0);
                self.change(&Change::DeleteNeighbour(netlink::Neighbour::permanent(
                    index,
                    neighbour.address,
                    mac,
                )))
            }
            Object::Fdb(entry) => {
                let index = self.index(&entry.link)?;
                self.change(&Change::DeleteFdb(fdb_entry(index, entry)))
            }
            Object::Route(route) => {
                let route = self.route(route)?;
                self.change(&Change::DeleteRoute(route))
            }
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
        match self.look_up(name)? {
            Some(link) => Ok(link.index),
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
        let settings = LinkSettings {
            up: Some(to.up),
            mtu: to.mtu.filter(|_| to.mtu != from.mtu),
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

    fn write_neighbour(&mut self, neighbour: &Neighbour) -> Result<(), Error> {
        let index = self.index(&neighbour.link)?;
        let mac = MacAddress(neighbour.mac.0);
        self.change(&Change::ReplaceNeighbour(netlink::Neighbour::permanent(index, neighbour.address, mac)))
    }

    fn write_fdb(&mut self, entry: &FdbEntry) -> Result<(), Error> {
        let index = self.index(&entry.link)?;
        self.change(&Change::ReplaceFdb(fdb_entry(index, entry)))
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

fn fdb_entry(index: u32, entry: &FdbEntry) -> netlink::FdbEntry {
    netlink::FdbEntry::tunnel(index, MacAddress(entry.mac.0), entry.destination)
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
