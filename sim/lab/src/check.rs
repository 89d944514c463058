//! The checks: what a working cluster on a VPC must do, tried with real packets, summed up as a table.
//!
//! Runs in the caller's process and looks only at what can be observed: sockets inside the namespaces of pods and instances, the frames on the
//! vRouter, the route table the emulated cloud answers. If a check passed without its packets, everything built on the lab would rest on
//! nothing; so each row counts the probes it really made, and a row without any is not green.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loden_netlink::netns::NetNs;
use serde::Serialize;

use crate::capture::{Capture, Flow, Flows};
use crate::control::{Request, ask};
use crate::error::{Error, Result};
use crate::names::LabName;
use crate::probe::{ECHO_PORT, EchoServer, Protocol, Size, probe_seen_as};
use crate::spec::Backend;
use crate::status::{Pod, Status};
use crate::wire;

/// How long one probe may take. Generous: a slow machine is no broken network.
const PATIENCE: Duration = Duration::from_secs(5);
/// Probes at the same time.
const WORKERS: usize = 4;
/// Up to this many pairs of nodes get a row each; more are one row together.
const ROWS_OF_PAIRS: usize = 6;
/// Up to this many pods, every pair of pods is probed; beyond, one pod of each node stands for its node.
const PODS_PAIRED: usize = 16;
/// Up to this many nodes, every pair of nodes is probed; beyond, each node and those that follow it in the list (the number of all pairs grows
/// with the square, and the row says how many were probed).
const NODES_PAIRED: usize = 64;
/// How many of those that follow.
const FOLLOWERS: usize = 16;
/// A row with this many failures makes no more probes: what is broken stays broken, and waiting for each of them takes minutes.
const FAILURES_ENOUGH: usize = 4;

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every probe passed.
    Passed,
    /// At least one did not.
    Failed,
    /// The lab has nothing to try it on; the detail says what is missing.
    Skipped,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// What was tried.
    pub title: String,
    /// With what, or what came out.
    pub detail: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Probes that passed.
    pub passed: usize,
    /// Probes made.
    pub total: usize,
    /// Time of the median probe in microseconds, where there were timed ones.
    pub median_us: Option<u64>,
    /// What went wrong, a few of each row.
    pub failures: Vec<String>,
}

/// All rows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// In the order tried.
    pub rows: Vec<Row>,
    /// Milliseconds it took.
    pub took_ms: u64,
}

impl Report {
    /// Whether nothing failed and something was tried.
    #[must_use]
    pub fn green(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Verdict::Failed)
            && self.rows.iter().any(|row| row.verdict == Verdict::Passed)
    }
}

/// One probe to make.
struct Probe {
    from: String,
    namespace: NetNs,
    seen_as: Ipv4Addr,
    target: SocketAddrV4,
    protocol: Protocol,
    size: Size,
}

/// Runs every check against a running lab.
///
/// # Errors
/// The lab does not answer, or has no pods to check with. A failed check is no error but a row.
pub fn check(lab: &LabName, mut progress: impl FnMut(&str)) -> Result<Report> {
    let begun = Instant::now();
    let status: Status = ask(lab, &Request::Status, |_| {})?;
    if status.pods.is_empty() {
        return Err(Error::Refused(format!(
            "lab {lab} has no pods to check with; `loden lab pod add --name {lab}` starts one"
        )));
    }
    let bench = Bench::open(&status)?;
    let capture = Capture::start(
        &NetNs::open(lab.namespace_path("vrouter")).map_err(|e| Error::step("look at the vRouter", e))?,
    )?;
    let mut rows = Vec::new();

    progress("pods on one node");
    rows.push(run("pod to pod on one node", SIZES, bench.same_node()?));
    progress("pods across nodes");
    rows.extend(across(bench.across_nodes()?));
    progress("pods and the ECS instance");
    let routed = status.inputs.backend.needs_entries();
    let seen = if routed { "its own source address seen" } else { "its node's source address seen" };
    rows.push(run("pod to ECS instance", seen, bench.to_plain_instance()?));
    if routed {
        rows.push(run("ECS instance to pod", "its own source address seen", bench.of_plain_instance()?));
    }
    progress("pods to the internet");
    let internet = run("pod to internet", "leaves with its node's address", bench.to_internet()?);
    progress("pods to a service address");
    rows.push(run("pod to service address", "backend on another node", bench.to_service()?));
    let flows = capture.finish()?;
    let homes: BTreeSet<&str> = status.pods.iter().map(|pod| pod.node.as_str()).collect();
    let nodes = status
        .nodes
        .iter()
        .filter(|node| homes.contains(node.name()))
        .map(|node| node.instance.address)
        .collect();
    rows.push(left_as_node(internet, status.internet.host, &nodes, &flows));

    progress("route entries, CNI CHECK and the wire");
    rows.push(cni_check(lab, &status));
    rows.push(if routed { route_entries(&status) } else { no_route_entries(&status) });
    rows.push(if status.inputs.backend == Backend::Vxlan {
        wire::in_vxlan(&wire::homes(&status), &flows)
    } else {
        let pods = status.pods.iter().map(|pod| pod.address).collect();
        wire::nothing_encapsulated(&pods, homes.len() > 1, &flows)
    });
    Ok(Report { rows, took_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX) })
}

/// The largest datagram of IPv4 is a little less than 64 KiB: see [`Size::Large`].
const SIZES: &str = "TCP 64 KiB, ICMP UDP 65507 B, small";

/// The namespaces with their echo servers running.
struct Bench<'a> {
    status: &'a Status,
    _servers: Vec<EchoServer>,
}

impl<'a> Bench<'a> {
    fn open(status: &'a Status) -> Result<Self> {
        let mut servers = Vec::new();
        for pod in &status.pods {
            servers.push(EchoServer::start(&namespace(&pod.namespace)?, pod.address, ECHO_PORT)?);
        }
        for instance in status.instances.iter().filter(|instance| instance.name == crate::PLAIN_INSTANCE) {
            servers.push(EchoServer::start(&namespace(&instance.namespace)?, instance.address, ECHO_PORT)?);
        }
        let internet = namespace(&status.lab.namespace("internet"))?;
        servers.push(EchoServer::start(&internet, status.internet.host, ECHO_PORT)?);
        Ok(Self { status, _servers: servers })
    }

    /// Name of a node's cluster. Pods of different clusters are none of each other's network: they are masqueraded.
    fn cluster(&self, node: &str) -> Option<&str> {
        self.status.nodes.iter().find(|each| each.name() == node).map(|each| each.cluster.as_str())
    }

    fn same_node(&self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for from in &self.status.pods {
            for to in self.status.pods.iter().filter(|to| to.node == from.node && to.name != from.name) {
                probes.extend(every_way(from, from.address, to.address)?);
            }
        }
        Ok(probes)
    }

    /// By pair of nodes, the lower name first; both directions belong to the pair.
    fn across_nodes(&self) -> Result<BTreeMap<(String, String), Vec<Probe>>> {
        let mut chosen: Vec<&Pod> = self.status.pods.iter().collect();
        if chosen.len() > PODS_PAIRED {
            let mut nodes = BTreeSet::new();
            chosen.retain(|pod| nodes.insert(&pod.node));
        }
        let mut pairs: BTreeMap<(String, String), Vec<Probe>> = BTreeMap::new();
        let near = |one: usize, other: usize| {
            let distance = one.abs_diff(other);
            chosen.len() <= NODES_PAIRED || distance.min(chosen.len() - distance) <= FOLLOWERS
        };
        for (at, from) in chosen.iter().enumerate() {
            let others =
                chosen.iter().enumerate().filter(|(other, to)| to.node != from.node && near(at, *other));
            let others = others.filter(|(_, to)| self.cluster(&to.node) == self.cluster(&from.node));
            for (_, to) in others {
                let pair = if from.node < to.node { (&from.node, &to.node) } else { (&to.node, &from.node) };
                let probes = every_way(from, from.address, to.address)?;
                pairs.entry((pair.0.clone(), pair.1.clone())).or_default().extend(probes);
            }
        }
        Ok(pairs)
    }

    fn node_address(&self, node: &str) -> Option<Ipv4Addr> {
        self.status.instance(node).map(|instance| instance.address)
    }

    /// A VPC that routes to pods sees them as they are; elsewhere their nodes speak for them.
    fn to_plain_instance(&self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        let routed = self.status.inputs.backend.needs_entries();
        for instance in self.status.instances.iter().filter(|instance| instance.name == crate::PLAIN_INSTANCE)
        {
            for pod in &self.status.pods {
                let seen_as = if routed { Some(pod.address) } else { self.node_address(&pod.node) };
                probes.extend(every_way(pod, seen_as.unwrap_or(pod.address), instance.address)?);
            }
        }
        Ok(probes)
    }

    fn of_plain_instance(&self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for instance in self.status.instances.iter().filter(|instance| instance.name == crate::PLAIN_INSTANCE)
        {
            for pod in &self.status.pods {
                probes.extend(all_probes(
                    &instance.name,
                    &instance.namespace,
                    instance.address,
                    pod.address,
                )?);
            }
        }
        Ok(probes)
    }

    /// The host outside sees the elastic address; that the packets left as the node's is read from the capture.
    fn to_internet(&self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for pod in &self.status.pods {
            probes.extend(every_way(pod, self.status.internet.elastic_ip, self.status.internet.host)?);
        }
        Ok(probes)
    }

    /// The backend must see the pod itself: a service address translates the destination only.
    fn to_service(&self) -> Result<Vec<Probe>> {
        let mut probes = Vec::new();
        for service in &self.status.cluster_services {
            let home = self.status.pods.iter().find(|pod| pod.name == service.backend).map(|pod| &pod.node);
            let near = |pod: &&Pod| home.is_some_and(|home| self.cluster(home) == self.cluster(&pod.node));
            for pod in self.status.pods.iter().filter(near).filter(|pod| Some(&pod.node) != home) {
                let all = every_way(pod, pod.address, service.address)?;
                probes.extend(all.into_iter().filter(|probe| probe.protocol != Protocol::Icmp));
            }
        }
        Ok(probes)
    }
}

fn namespace(name: &str) -> Result<NetNs> {
    NetNs::open_named(name).map_err(|error| Error::step(format!("look into namespace {name}"), error))
}

fn every_way(from: &Pod, seen_as: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<Probe>> {
    all_probes(&from.name, &from.namespace, seen_as, to)
}

fn all_probes(from: &str, from_namespace: &str, seen_as: Ipv4Addr, to: Ipv4Addr) -> Result<Vec<Probe>> {
    let namespace = namespace(from_namespace)?;
    let mut probes = Vec::new();
    for size in [Size::Small, Size::Large] {
        for protocol in Protocol::ALL {
            let target = SocketAddrV4::new(to, ECHO_PORT);
            probes.push(Probe {
                from: from.to_owned(),
                namespace: namespace.clone(),
                seen_as,
                target,
                protocol,
                size,
            });
        }
    }
    Ok(probes)
}

fn across(pairs: BTreeMap<(String, String), Vec<Probe>>) -> Vec<Row> {
    if pairs.is_empty() {
        return vec![run("pod to pod across nodes", SIZES, Vec::new())];
    }
    if pairs.len() <= ROWS_OF_PAIRS {
        return pairs
            .into_iter()
            .map(|((one, other), probes)| run(&format!("pod to pod, {one} and {other}"), SIZES, probes))
            .collect();
    }
    let title = format!("pod to pod, {} pairs of nodes", pairs.len());
    vec![run(&title, SIZES, pairs.into_values().flatten().collect())]
}

/// Makes the probes, a few at a time, and sums them up.
fn run(title: &str, detail: &str, probes: Vec<Probe>) -> Row {
    if probes.is_empty() {
        let detail = "nothing to try it on in this lab".to_owned();
        return Row {
            title: title.to_owned(),
            detail,
            verdict: Verdict::Skipped,
            passed: 0,
            total: 0,
            median_us: None,
            failures: vec![],
        };
    }
    let next = AtomicUsize::new(0);
    let outcomes: Mutex<(Vec<Duration>, Vec<String>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS.min(probes.len()) {
            scope.spawn(|| {
                let hopeless = || outcomes.lock().is_ok_and(|outcomes| outcomes.1.len() >= FAILURES_ENOUGH);
                while let (false, Some(probe)) =
                    (hopeless(), probes.get(next.fetch_add(1, Ordering::Relaxed)))
                {
                    let answer = probe_seen_as(
                        &probe.namespace,
                        probe.seen_as,
                        probe.target,
                        probe.protocol,
                        probe.size,
                        PATIENCE,
                    );
                    let Ok(mut outcomes) = outcomes.lock() else { return };
                    match answer {
                        Ok(answer) => outcomes.0.push(answer.took),
                        Err(error) => outcomes.1.push(format!("from {}: {error}", probe.from)),
                    }
                }
            });
        }
    });
    let (mut took, mut failures) = outcomes.into_inner().unwrap_or_default();
    took.sort_unstable();
    failures.sort();
    let total = probes.len();
    // A worker that died leaves probes without an outcome; they count as made and not passed.
    let verdict = if took.len() == total { Verdict::Passed } else { Verdict::Failed };
    let untried = total.saturating_sub(took.len() + failures.len());
    if untried > 0 {
        failures.push(format!("… the other {untried} probes were not made"));
    }
    Row {
        title: title.to_owned(),
        detail: detail.to_owned(),
        verdict,
        passed: took.len(),
        total,
        median_us: took
            .get(took.len() / 2)
            .map(|median| u64::try_from(median.as_micros()).unwrap_or(u64::MAX)),
        failures,
    }
}

pub(crate) fn observed(title: &str, detail: String, passed: usize, failures: Vec<String>) -> Row {
    let verdict = if failures.is_empty() && passed > 0 { Verdict::Passed } else { Verdict::Failed };
    let total = passed + failures.len();
    Row { title: title.to_owned(), detail, verdict, passed, total, median_us: None, failures }
}

/// The probes to the internet must have passed the vRouter with their nodes' addresses and no other.
fn left_as_node(mut row: Row, outside: Ipv4Addr, nodes: &BTreeSet<Ipv4Addr>, flows: &Flows) -> Row {
    let mut sources = BTreeSet::new();
    for flow in flows.keys() {
        if let Flow::Ipv4 { source, destination, later_fragment: false, .. } = flow
            && *destination == outside
        {
            sources.insert(*source);
        }
    }
    for source in sources.difference(nodes) {
        row.failures.push(format!(
            "packets to {outside} passed the vRouter with source {source}, which is no node's address"
        ));
    }
    for node in nodes.difference(&sources) {
        row.failures.push(format!("no packet to {outside} passed the vRouter with source {node}"));
    }
    if row.verdict == Verdict::Passed && !row.failures.is_empty() {
        row.verdict = Verdict::Failed;
    }
    row
}

fn cni_check(lab: &LabName, status: &Status) -> Row {
    let failures = match ask::<Vec<String>>(lab, &Request::CniCheck, |_| {}) {
        Ok(failures) => failures,
        Err(error) => vec![error.to_string()],
    };
    let passed = status.pods.len().saturating_sub(failures.len());
    observed("CNI CHECK of every pod", "as ADD left it".to_owned(), passed, failures)
}

/// Every available node has exactly one entry with its own subnet and instance; no instance has another below the pod CIDR.
fn route_entries(status: &Status) -> Row {
    let mut failures = Vec::new();
    let mut passed = 0;
    let Some(table) = status.system_table() else {
        return observed(
            "route entries",
            "system table".to_owned(),
            0,
            vec!["the VPC has no system route table".to_owned()],
        );
    };
    for node in &status.nodes {
        let Some(subnet) = node.subnet else {
            failures.push(format!("{} has no subnet", node.name()));
            continue;
        };
        let own: Vec<_> = table
            .entries
            .iter()
            .filter(|entry| {
                let among_pods =
                    loden_addr::contains(status.inputs.pod_cidr.into(), entry.destination.into());
                let to_it = among_pods && entry.next_hop == node.instance.id;
                entry.custom && (entry.destination == subnet || to_it)
            })
            .collect();
        match own.as_slice() {
            [entry]
                if entry.destination == subnet
                    && entry.next_hop == node.instance.id
                    && entry.next_hop_type == "Instance"
                    && entry.status == "Available" =>
            {
                passed += 1;
            }
            [] if !node.available() => failures.push(format!(
                "{} waits for its entry: {}",
                node.name(),
                node.network_unavailable.as_ref().map_or("no condition yet", |condition| &condition.message)
            )),
            found => failures.push(format!(
                "{} should have the one entry {subnet} to {}, and has {:?}",
                node.name(),
                node.instance.id,
                found
                    .iter()
                    .map(|entry| format!("{} to {} {}", entry.destination, entry.next_hop, entry.status))
                    .collect::<Vec<_>>()
            )),
        }
    }
    observed("one route entry per node", format!("in system table {}", table.id), passed, failures)
}

/// Where the nodes find each other by themselves, nobody may have written to the VPC's tables.
fn no_route_entries(status: &Status) -> Row {
    let entries = status.route_tables.iter().flat_map(|table| &table.entries).filter(|entry| entry.custom);
    let failures =
        entries.map(|entry| format!("there is {} to {}", entry.destination, entry.next_hop)).collect();
    let tables = status.route_tables.len();
    observed("no route entries needed", "in the VPC's route table".to_owned(), tables, failures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::flow;

    const NODE: [u8; 4] = [192, 168, 0, 11];
    const POD: [u8; 4] = [172, 20, 0, 2];

    #[test]
    fn leaving_by_another_address_than_the_nodes_is_a_failure() {
        let outside = [203, 0, 113, 80];
        let nodes: BTreeSet<Ipv4Addr> = [Ipv4Addr::from(NODE)].into();
        let probed = Row {
            title: String::new(),
            detail: String::new(),
            verdict: Verdict::Passed,
            passed: 1,
            total: 1,
            median_us: None,
            failures: Vec::new(),
        };
        let judge = |flows: Flows| left_as_node(probed.clone(), outside.into(), &nodes, &flows).verdict;
        assert_eq!(judge(Flows::from([(flow(NODE, outside, 6, 7007), 1)])), Verdict::Passed);
        assert_eq!(
            judge(Flows::from([(flow(NODE, outside, 6, 7007), 1), (flow(POD, outside, 6, 7007), 1)])),
            Verdict::Failed
        );
        assert_eq!(judge(Flows::new()), Verdict::Failed);
    }

    #[test]
    fn a_report_without_probes_is_not_green() {
        let skipped = run("x", "y", Vec::new());
        assert_eq!(skipped.verdict, Verdict::Skipped);
        assert!(!Report { rows: vec![skipped], took_ms: 0 }.green());
        assert_eq!(observed("x", String::new(), 0, Vec::new()).verdict, Verdict::Failed);
    }
}
