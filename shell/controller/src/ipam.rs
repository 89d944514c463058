//! Node IPAM at work: which nodes lack a pod CIDR, and what to write to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use loden_addr::{ClusterIpam, DivisionError, Irregularity, Occupancy, PodRange};
use loden_kube::{NodeView, PodCidrOutcome};
use loden_reconcile::{Backoff, Moment, Queue};

/// What nodes' subnets are cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamSettings {
    /// The cluster's pod CIDRs. A node gets a subnet of each family that is among them, in their order.
    pub ranges: Vec<PodRange>,
    /// Ranges that no node may have: the service CIDRs.
    pub reserved: Vec<IpNet>,
}

/// Pod CIDRs to write, one of each family.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) node: Arc<NodeView>,
    pub(crate) pod_cidrs: Vec<IpNet>,
}

/// Something to tell people about a node.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) node: Arc<NodeView>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The state of IPAM: one per leadership.
#[derive(Debug)]
pub(crate) struct Ipam {
    pool: ClusterIpam,
    nodes: BTreeMap<String, Arc<NodeView>>,
    queue: Queue<String>,
    in_flight: BTreeSet<String>,
    told: BTreeMap<String, String>,
    /// Nodes for which no subnet is left.
    refused: BTreeSet<String>,
    reports: Vec<Report>,
    /// Nodes with a subnet are taken note of before the first node without one is served.
    complete: bool,
}

impl Ipam {
    pub(crate) fn new(settings: &IpamSettings) -> Result<Self, DivisionError> {
        Ok(Self {
            pool: ClusterIpam::new(&settings.ranges, &settings.reserved)?,
            nodes: BTreeMap::new(),
            queue: Queue::new(Backoff::new(Duration::from_millis(200), Duration::from_secs(60))),
            in_flight: BTreeSet::new(),
            told: BTreeMap::new(),
            refused: BTreeSet::new(),
            reports: Vec::new(),
            complete: false,
        })
    }

    pub(crate) fn seen(&mut self, now: Moment, node: Arc<NodeView>) {
        let name = node.name.clone();
        let replaced = self.nodes.get(&name).is_some_and(|known| known.uid != node.uid);
        if replaced {
            self.pool.release(&name);
        }
        if node.pod_cidrs.is_empty() {
            self.queue.add(name.clone(), now);
        } else {
            self.refused.remove(&name);
            self.adopt(&node, &networks(&node.pod_cidrs));
        }
        self.nodes.insert(name, node);
    }

    fn adopt(&mut self, node: &Arc<NodeView>, subnets: &[IpNet]) {
        let found = self.pool.adopt(&node.name, subnets);
        // Another mask wastes addresses and harms nobody: nodes from before a change of the mask keep theirs.
        let told: Vec<String> = found
            .iter()
            .filter(|irregularity| !matches!(irregularity, Irregularity::OtherMask { .. }))
            .map(ToString::to_string)
            .collect();
        if told.is_empty() {
            self.told.remove(&node.name);
        } else {
            self.tell(node, "PodCIDRIrregular", told.join("; "));
        }
    }

    pub(crate) fn gone(&mut self, now: Moment, name: &str) {
        self.nodes.remove(name);
        self.queue.remove(&name.to_owned());
        self.told.remove(name);
        self.refused.remove(name);
        if !self.pool.release(name).is_empty() {
            // Room for those who go without.
            let without: Vec<String> = self
                .nodes
                .values()
                .filter(|node| node.pod_cidrs.is_empty())
                .map(|node| node.name.clone())
                .collect();
            without.into_iter().for_each(|node| self.queue.add(node, now));
        }
    }

    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }

    /// The next pod CIDR to write.
    pub(crate) fn next(&mut self, now: Moment) -> Option<Grant> {
        if !self.complete {
            return None;
        }
        while let Some(name) = self.queue.pop(now) {
            let Some(node) = self.nodes.get(&name).cloned() else { continue };
            if !node.pod_cidrs.is_empty() || node.deleting || self.in_flight.contains(&name) {
                continue;
            }
            match self.pool.assign(&name) {
                Ok(pod_cidrs) => {
                    self.refused.remove(&name);
                    self.in_flight.insert(name);
                    return Some(Grant { node, pod_cidrs });
                }
                Err(exhausted) => {
                    self.refused.insert(name);
                    self.tell(&node, "CIDRNotAvailable", exhausted.to_string());
                }
            }
        }
        None
    }

    /// A write ended.
    pub(crate) fn written(
        &mut self,
        now: Moment,
        node: &Arc<NodeView>,
        result: &loden_kube::Result<PodCidrOutcome>,
    ) {
        let name = &node.name;
        self.in_flight.remove(name);
        if self.nodes.get(name).is_some_and(|current| current.uid != node.uid) {
            // It went to a node that is no more. The one that bears its name now has been passed over meanwhile.
            self.queue.succeeded(name);
            self.queue.add(name.clone(), now);
            return;
        }
        match result {
            Ok(PodCidrOutcome::Written | PodCidrOutcome::AlreadySet) => {
                self.queue.succeeded(name);
                self.told.remove(name);
            }
            // Another allocator was faster. The watch may have shown what the node has before this answer came, and will not show it again.
            Ok(PodCidrOutcome::SetToOthers(cidrs)) => {
                self.queue.succeeded(name);
                match self.nodes.get(name).cloned() {
                    Some(node) => self.adopt(&node, &networks(cidrs)),
                    None => {
                        self.pool.release(name);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(node = %name, %error, "cannot write the pod CIDR; trying again");
                if self.nodes.contains_key(name) {
                    self.queue.failed(name.clone(), now, name.len() as u64);
                } else {
                    self.pool.release(name);
                }
            }
        }
    }

    fn tell(&mut self, node: &Arc<NodeView>, reason: &'static str, message: String) {
        if self.told.get(&node.name) != Some(&message) {
            self.told.insert(node.name.clone(), message.clone());
            self.reports.push(Report { node: Arc::clone(node), reason, message });
        }
    }

    pub(crate) fn reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// How far the pod CIDRs are used up, and for how many nodes nothing is left.
    pub(crate) fn figures(&self) -> (Vec<Occupancy>, usize) {
        (self.pool.occupancy().collect(), self.refused.len())
    }

    pub(crate) fn next_due(&self) -> Option<Moment> {
        self.queue.next_due().filter(|_| self.complete)
    }
}

/// Pod CIDRs as networks. A malformed one is the route controller's to report.
fn networks(cidrs: &[String]) -> Vec<IpNet> {
    cidrs.iter().filter_map(|text| text.trim().parse::<IpNet>().ok()).map(|net| net.trunc()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap as Map;

    use super::*;

    const SECOND: Moment = Duration::from_secs(1);

    fn node(name: &str, uid: &str, pod_cidr: &str) -> Arc<NodeView> {
        Arc::new(NodeView {
            name: name.to_owned(),
            uid: uid.to_owned(),
            resource_version: "1".to_owned(),
            created: None,
            labels: loden_kube::Labels::default(),
            annotations: Map::new(),
            provider_id: None,
            pod_cidrs: if pod_cidr.is_empty() { Vec::new() } else { vec![pod_cidr.to_owned()] },
            addresses: Vec::new(),
            taints: Vec::new(),
            ready: None,
            network_unavailable: None,
            deleting: false,
        })
    }

    fn ipam(pod_cidr: &str) -> Ipam {
        let ranges = vec![PodRange { pod_cidr: pod_cidr.parse().unwrap(), node_mask: 24 }];
        Ipam::new(&IpamSettings { ranges, reserved: Vec::new() }).unwrap()
    }

    fn grants(ipam: &mut Ipam, now: Moment) -> Vec<String> {
        std::iter::from_fn(|| ipam.next(now))
            .map(|grant| {
                let cidrs: Vec<String> = grant.pod_cidrs.iter().map(ToString::to_string).collect();
                format!("{} {}", grant.node.name, cidrs.join(" "))
            })
            .collect()
    }

    #[test]
    fn nobody_is_served_before_all_nodes_are_known() {
        let mut ipam = ipam("172.20.0.0/16");
        ipam.seen(SECOND, node("new", "1", ""));
        assert!(grants(&mut ipam, SECOND).is_empty());
        ipam.seen(SECOND, node("old", "2", "172.20.0.0/24"));
        ipam.complete();
        assert_eq!(grants(&mut ipam, SECOND), ["new 172.20.1.0/24"]);
        assert!(grants(&mut ipam, SECOND).is_empty(), "one write at a time");
    }

    #[test]
    fn a_failed_write_is_tried_again_with_the_same_subnet() {
        let mut ipam = ipam("172.20.0.0/16");
        ipam.complete();
        let a = node("a", "1", "");
        ipam.seen(SECOND, Arc::clone(&a));
        assert_eq!(grants(&mut ipam, SECOND), ["a 172.20.0.0/24"]);
        let failure =
            loden_kube::Error::Timeout { operation: "x".to_owned(), server: "y".to_owned(), seconds: 1 };
        ipam.written(SECOND, &a, &Err(failure));
        assert!(grants(&mut ipam, SECOND).is_empty());
        let due = ipam.next_due().unwrap();
        assert_eq!(grants(&mut ipam, due), ["a 172.20.0.0/24"]);
        ipam.written(due, &a, &Ok(PodCidrOutcome::Written));
        ipam.seen(due, node("a", "1", "172.20.0.0/24"));
        assert_eq!(ipam.next_due(), None);
    }

    #[test]
    fn what_another_allocator_gave_is_adopted_and_the_own_choice_returned() {
        let mut ipam = ipam("172.20.0.0/16");
        ipam.complete();
        let a = node("a", "1", "");
        ipam.seen(SECOND, Arc::clone(&a));
        assert_eq!(grants(&mut ipam, SECOND), ["a 172.20.0.0/24"]);
        ipam.written(SECOND, &a, &Ok(PodCidrOutcome::SetToOthers(vec!["172.20.9.0/24".to_owned()])));
        ipam.seen(SECOND, node("a", "1", "172.20.9.0/24"));
        ipam.seen(SECOND, node("b", "2", ""));
        assert_eq!(grants(&mut ipam, SECOND), ["b 172.20.0.0/24"]);
    }

    #[test]
    fn what_another_allocator_gave_stays_taken_though_the_watch_was_first_to_tell() {
        let mut ipam = ipam("172.20.0.0/23");
        ipam.complete();
        let a = node("a", "1", "");
        ipam.seen(SECOND, Arc::clone(&a));
        assert_eq!(grants(&mut ipam, SECOND), ["a 172.20.0.0/24"]);
        ipam.seen(SECOND, node("a", "1", "172.20.1.0/24"));
        ipam.written(SECOND, &a, &Ok(PodCidrOutcome::SetToOthers(vec!["172.20.1.0/24".to_owned()])));
        ipam.seen(SECOND, node("b", "2", ""));
        ipam.seen(SECOND, node("c", "3", ""));
        assert_eq!(grants(&mut ipam, SECOND), ["b 172.20.0.0/24"]);
        let told = ipam.reports();
        assert_eq!(told.iter().map(|report| report.node.name.as_str()).collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn a_node_reborn_while_its_name_is_being_written_is_served_too() {
        let mut ipam = ipam("172.20.0.0/16");
        ipam.complete();
        let old = node("a", "1", "");
        ipam.seen(SECOND, Arc::clone(&old));
        assert_eq!(grants(&mut ipam, SECOND), ["a 172.20.0.0/24"]);
        ipam.seen(SECOND, node("a", "2", ""));
        assert!(grants(&mut ipam, SECOND).is_empty(), "one write at a time");
        ipam.written(SECOND, &old, &Ok(PodCidrOutcome::Written));
        assert_eq!(grants(&mut ipam, SECOND), ["a 172.20.0.0/24"]);
    }

    #[test]
    fn a_node_reborn_under_its_name_starts_anew() {
        let mut ipam = ipam("172.20.0.0/16");
        ipam.complete();
        ipam.seen(SECOND, node("a", "1", "172.20.5.0/24"));
        ipam.seen(SECOND, node("a", "2", ""));
        assert_eq!(grants(&mut ipam, SECOND), ["a 172.20.0.0/24"]);
    }

    #[test]
    fn who_goes_without_is_told_once_and_served_when_there_is_room() {
        let mut ipam = ipam("172.20.0.0/24");
        ipam.complete();
        ipam.seen(SECOND, node("a", "1", "172.20.0.0/24"));
        ipam.seen(SECOND, node("b", "2", ""));
        assert!(grants(&mut ipam, SECOND).is_empty());
        ipam.seen(SECOND, node("b", "2", ""));
        assert!(grants(&mut ipam, SECOND).is_empty());
        let told = ipam.reports();
        assert_eq!(told.iter().map(|report| report.reason).collect::<Vec<_>>(), ["CIDRNotAvailable"]);
        ipam.gone(SECOND, "a");
        assert_eq!(grants(&mut ipam, SECOND), ["b 172.20.0.0/24"]);
    }

    #[test]
    fn a_dual_stack_node_gets_both_at_once_and_none_when_one_is_lacking() {
        let range = |pod_cidr: &str, node_mask| PodRange { pod_cidr: pod_cidr.parse().unwrap(), node_mask };
        let ranges = vec![range("172.20.0.0/16", 24), range("fd00:20::/63", 64)];
        let mut ipam = Ipam::new(&IpamSettings { ranges, reserved: Vec::new() }).unwrap();
        ipam.complete();
        for (name, uid) in [("a", "1"), ("b", "2"), ("c", "3")] {
            ipam.seen(SECOND, node(name, uid, ""));
        }
        assert_eq!(
            grants(&mut ipam, SECOND),
            ["a 172.20.0.0/24 fd00:20::/64", "b 172.20.1.0/24 fd00:20:0:1::/64"]
        );
        let told = ipam.reports();
        assert!(told[0].node.name == "c" && told[0].message.contains("fd00:20::/63"), "{told:?}");
        ipam.gone(SECOND, "a");
        assert_eq!(grants(&mut ipam, SECOND), ["c 172.20.0.0/24 fd00:20::/64"]);
    }

    #[test]
    fn two_nodes_with_one_subnet_are_reported() {
        let mut ipam = ipam("172.20.0.0/16");
        ipam.seen(SECOND, node("a", "1", "172.20.0.0/24"));
        ipam.seen(SECOND, node("b", "2", "172.20.0.0/24"));
        ipam.seen(SECOND, node("c", "3", "172.20.1.0/25"));
        let told = ipam.reports();
        assert_eq!(told.len(), 1, "another mask alone is no news");
        assert!(told[0].message.contains("which node a holds"), "{}", told[0].message);
    }
}
