//! Makes the vRouter's kernel agree with [`crate::forwarding`]: look, compare, change what differs.
//!
//! Level-triggered: called after every change of the cloud, it reads what is there and repairs it, so a call that was missed costs nothing but time. Only
//! what differs is touched; a packet that crosses meanwhile meets the old route or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use loden_netlink::netns::NetNs;
use loden_netlink::{Address, Change, IpFamily, Route, RouteFilter, RouteKind, RouteSocket, Rule, protocol};
use loden_sim_cloud::Snapshot;

use crate::error::{Context, Result};
use crate::fabric::{SERVICES_GATEWAY, install};
use crate::forwarding::{Forwarding, GATEWAYS, Ports, TableNumbers, Way, desired};

/// Rules of the vRouter have this priority: after the kernel's own table, before its main table.
const RULE_PRIORITY: u32 = 1000;

/// The vRouter's programmer.
#[derive(Debug)]
pub struct VRouter {
    namespace: NetNs,
    numbers: TableNumbers,
}

impl VRouter {
    /// For the vRouter in `namespace`.
    #[must_use]
    pub fn new(namespace: NetNs) -> Self {
        Self { namespace, numbers: TableNumbers::default() }
    }

    /// Makes it forward as the cloud says.
    ///
    /// # Errors
    /// The kernel could not be read or refused a change; what was changed before stays, and a repetition goes on from there.
    pub fn reconcile(&mut self, cloud: &Snapshot, vpc: &str, ports: &Ports) -> Result<()> {
        let wanted = desired(cloud, vpc, ports, &mut self.numbers);
        let action = || "program the vRouter".to_owned();
        // What must not pass is closed before ways open.
        install(&self.namespace, &wanted.firewall)?;
        let mut socket = RouteSocket::open_in(&self.namespace).during(action)?;
        let links: BTreeMap<String, u32> =
            socket.links().during(action)?.into_iter().map(|link| (link.name, link.index)).collect();
        let mut changes = self.addresses(&mut socket, &wanted, &links)?;
        changes.extend(routes(&mut socket, &wanted, &links)?);
        changes.extend(rules(&mut socket, &wanted)?);
        for (outcome, change) in socket.apply_each(&changes).during(action)?.into_iter().zip(&changes) {
            match outcome {
                // A port that went away took its routes along.
                Err(error)
                    if error.is_not_found()
                        && matches!(change, Change::DeleteRoute(_) | Change::DeleteRule(_)) => {}
                outcome => outcome.during(action)?,
            }
        }
        Ok(())
    }

    fn addresses(
        &self,
        socket: &mut RouteSocket,
        wanted: &Forwarding,
        links: &BTreeMap<String, u32>,
    ) -> Result<Vec<Change>> {
        let Some(index) = links.get(GATEWAYS).copied() else { return Ok(Vec::new()) };
        let listed = socket.addresses(Some(index)).during(|| "list the vRouter's addresses".to_owned())?;
        let present: BTreeSet<IpAddr> = listed.iter().map(|address| address.net.addr()).collect();
        let gateways = wanted.gateways.iter().copied().chain([SERVICES_GATEWAY]);
        Ok(gateways
            .filter(|gateway| !present.contains(&IpAddr::V4(*gateway)))
            .map(|gateway| Change::AddAddress(Address::new(index, IpNet::V4(Ipv4Net::from(gateway)))))
            .collect())
    }
}

fn routes(
    socket: &mut RouteSocket,
    wanted: &Forwarding,
    links: &BTreeMap<String, u32>,
) -> Result<Vec<Change>> {
    let filter = RouteFilter { protocol: Some(protocol::STATIC), ..RouteFilter::default() };
    let observed = socket.routes(IpFamily::V4, filter).during(|| "list the vRouter's routes".to_owned())?;
    let mut present: BTreeMap<(u32, IpNet), Route> =
        observed.into_iter().map(|route| ((route.table, route.destination), route)).collect();
    let mut changes = Vec::new();
    for ((table, destination), way) in &wanted.routes {
        let net = IpNet::V4(*destination);
        let Some(route) = kernel_route(*table, net, way, links) else { continue };
        let was = present.remove(&(*table, net));
        if was.as_ref().is_none_or(|was| !same(was, &route)) {
            changes.push(Change::ReplaceRoute(route));
        }
    }
    changes.extend(present.into_values().map(Change::DeleteRoute));
    Ok(changes)
}

/// `None` while the port is not plugged in.
fn kernel_route(table: u32, destination: IpNet, way: &Way, links: &BTreeMap<String, u32>) -> Option<Route> {
    let route = Route::new(destination).in_table(table).by(protocol::STATIC);
    Some(match way {
        Way::Port(port) => route.dev(*links.get(port)?),
        Way::Via(next_hop, port) => route.via(IpAddr::V4(*next_hop)).dev(*links.get(port)?).onlink(),
        Way::Nowhere => Route { kind: RouteKind::Unreachable, ..route },
    })
}

/// Compares what this module sets; the kernel fills in the rest.
fn same(observed: &Route, wanted: &Route) -> bool {
    observed.kind == wanted.kind
        && observed.next_hop == wanted.next_hop
        && (observed.link == wanted.link || wanted.kind == RouteKind::Unreachable)
}

fn rules(socket: &mut RouteSocket, wanted: &Forwarding) -> Result<Vec<Change>> {
    let observed = socket.rules(IpFamily::V4).during(|| "list the vRouter's rules".to_owned())?;
    let mut missing = wanted.lookups.clone();
    let mut stale = Vec::new();
    for rule in observed.into_iter().filter(|rule| rule.priority == Some(RULE_PRIORITY)) {
        let right = rule.input_link.as_ref().is_some_and(|link| missing.get(link) == Some(&rule.table));
        match &rule.input_link {
            Some(link) if right => {
                missing.remove(link);
            }
            _ => stale.push(Change::DeleteRule(rule)),
        }
    }
    let mut changes: Vec<Change> = missing
        .into_iter()
        .map(|(link, table)| {
            let rule = Rule::lookup(IpFamily::V4, table);
            Change::AddRule(Rule { priority: Some(RULE_PRIORITY), input_link: Some(link), ..rule })
        })
        .collect();
    changes.extend(stale);
    Ok(changes)
}
