//! The other nodes, from the watch of the cluster to who is a peer.
//!
//! What a node says is read once for each version of its Node object: in a cluster of thousands, where conditions and
//! addresses change all the time, a wake-up costs a comparison of pointers and most end there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use loden_kube::{EventKind, Events, NodeView, Nodes, Regarding};
use loden_lease::{AnnotationKeys, LeaseAttributes};
use loden_node::{Admission, Claim, Flaw, Oneself, Unreached, admit};

/// So many complaints are told one by one; a cluster that is wrong as a whole gives one line more.
const TOLD: usize = 10;

/// What the other nodes say about themselves, and what was last complained about.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    read: BTreeMap<String, (Arc<NodeView>, Option<Claim>)>,
    complaints: BTreeSet<(String, String)>,
}

impl Peers {
    /// Reads what is new; says whether any claim differs from before.
    pub(crate) fn update(&mut self, keys: &AnnotationKeys, nodes: &Nodes, own: &str) -> bool {
        let mut known = std::mem::take(&mut self.read);
        let mut changed = false;
        for (name, node) in nodes.iter().filter(|(name, _)| *name != own) {
            let entry = match known.remove(name) {
                Some(entry) if Arc::ptr_eq(&entry.0, node) => entry,
                other => {
                    let claim = claim(keys, node);
                    changed |= other.and_then(|(_, before)| before) != claim;
                    (Arc::clone(node), claim)
                }
            };
            self.read.insert(name.clone(), entry);
        }
        changed || known.values().any(|(_, claim)| claim.is_some())
    }

    /// Who is a peer.
    pub(crate) fn admit(&self, oneself: &Oneself) -> Admission {
        admit(oneself, self.read.values().filter_map(|(_, claim)| claim.as_ref()))
    }

    /// Says what is wrong with which node, once for as long as it lasts; a quarrel with this very node becomes an Event
    /// as well.
    pub(crate) fn complain(
        &mut self,
        flaws: &[(String, Flaw)],
        unreached: &[Unreached],
        events: &Events,
        own: Option<&NodeView>,
    ) {
        let mut complaints = BTreeSet::new();
        for (node, flaw) in flaws {
            let complaint = (node.clone(), flaw.to_string());
            if let Some(own) = own
                && flaw.concerns_us()
                && !self.complaints.contains(&complaint)
            {
                let message = format!("node {node}: {flaw}");
                events.record(Regarding::node(own), EventKind::Warning, "PeerConflict", message);
            }
            complaints.insert(complaint);
        }
        complaints.extend(unreached.iter().map(|peer| (peer.node.clone(), peer.to_string())));
        let news: Vec<_> = complaints.difference(&self.complaints).collect();
        for (node, text) in news.iter().take(TOLD) {
            tracing::warn!(peer = node, "{text}");
        }
        if news.len() > TOLD {
            tracing::warn!("{} more nodes have such flaws", news.len() - TOLD);
        }
        self.complaints = complaints;
    }
}

/// What a node says; `None` when it does not run flannel.
fn claim(keys: &AnnotationKeys, node: &NodeView) -> Option<Claim> {
    let lease = LeaseAttributes::from_annotations(keys, &node.annotations).transpose()?;
    Some(Claim {
        node: node.name.clone(),
        since: node.created.clone(),
        pod_cidrs: node.parsed_pod_cidrs().unwrap_or_default(),
        lease,
    })
}
