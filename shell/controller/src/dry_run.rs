//! What the controller would do, without doing it.
//!
//! The cloud comes in through the reading half of its port and the API server only as a list of nodes, so nothing here could write if it wanted to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use loden_addr::{ClusterIpam, DivisionError};
use loden_kube::Nodes;
use loden_nodes::controller::preview as preview_node;
use loden_nodes::port::ReadInstances;
use loden_nodes::{Instance, Plan as NodePlan};
use loden_routes::check::{Bounds, Violation, check};
use loden_routes::controller::Settings;
use loden_routes::desired::{Desired, desired};
use loden_routes::mark::Mark;
use loden_routes::model::{InstanceId, Node, VSwitchId, is_ipv6};
use loden_routes::observed::{Observed, TableView};
use loden_routes::plan::{Plan, Policy, diff};
use loden_routes::port::{Failure, INSTANCES_LIMIT, ReadRouteTables};
use loden_routes::tables::{NoSystemTable, Served, TableChoice};

use crate::control::NodeSettings;
use crate::ipam::IpamSettings;
use crate::nodes::{controlled, node};

/// Why there is no preview.
#[derive(Debug, thiserror::Error)]
pub enum DryRunError {
    /// The node mask does not divide the pod CIDR.
    #[error(transparent)]
    Division(#[from] DivisionError),
    /// The cloud did not tell.
    #[error("cannot {operation}: {failure}")]
    Cloud {
        /// What was asked.
        operation: String,
        /// Why there is no answer.
        failure: Failure,
    },
    /// The VPC has no tables.
    #[error(transparent)]
    NoSystemTable(#[from] NoSystemTable),
    /// The plan breaks a rule that no plan may break.
    #[error("the plan is unsafe and would not be executed: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unsafe(Vec<Violation>),
}

/// What the controller would do. Prints as one line per change, and one per thing that a person should know.
#[derive(Debug, Default)]
pub struct Preview {
    /// Pod CIDRs that nodes would get.
    pub pod_cidrs: Vec<(String, Vec<IpNet>)>,
    /// What nodes would be told of their instances, and nodes that would be deleted.
    pub nodes_told: Vec<NodePlan>,
    /// Changes of route tables.
    pub plan: Plan,
    /// Network interfaces whose source/destination check would be switched off.
    pub checks_off: Vec<String>,
    /// What a person should know.
    pub remarks: Vec<String>,
    tables: Vec<String>,
    nodes: usize,
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (node, pod_cidrs) in &self.pod_cidrs {
            let pod_cidrs: Vec<String> = pod_cidrs.iter().map(ToString::to_string).collect();
            writeln!(f, "node {node} + podCIDR {}", pod_cidrs.join(","))?;
        }
        for plan in &self.nodes_told {
            write!(f, "{plan}")?;
        }
        write!(f, "{}", self.plan)?;
        for eni in &self.checks_off {
            writeln!(f, "{eni} - source/destination check")?;
        }
        for remark in &self.remarks {
            writeln!(f, "! {remark}")?;
        }
        let told: usize = self.nodes_told.iter().map(|plan| plan.steps.len()).sum();
        let changes = self.pod_cidrs.len() + told + self.plan.steps.len() + self.checks_off.len();
        writeln!(
            f,
            "# {changes} changes for {} nodes in {}; nothing was written",
            self.nodes,
            if self.tables.is_empty() { "no route table".to_owned() } else { self.tables.join(", ") }
        )
    }
}

/// Works out what a controller with these settings would do, in its first round and once every grace period is over.
///
/// # Errors
/// Something could not be read, or the plan is unsafe.
pub async fn dry_run<C: ReadRouteTables + ReadInstances>(
    nodes: &Nodes,
    routes: Option<(&Settings, &C)>,
    node_control: Option<(&NodeSettings, &C)>,
    ipam: Option<&IpamSettings>,
) -> Result<Preview, DryRunError> {
    let mut preview = Preview { nodes: nodes.len(), ..Preview::default() };
    let mut known: Vec<_> = nodes.values().map(|view| node(view)).collect();
    if let Some((settings, cloud)) = node_control {
        tell_nodes(nodes, settings, cloud, &mut preview).await?;
        // Route entries come after provider IDs.
        for node in &mut known {
            let plan = preview.nodes_told.iter().find(|plan| plan.node == node.name);
            for step in plan.into_iter().flat_map(|plan| &plan.steps) {
                if let loden_nodes::Step::Describe { provider_id: Some(id), .. } = step {
                    node.provider_id.clone_from(id);
                }
            }
        }
    }

    if let Some(settings) = ipam {
        let mut pool = ClusterIpam::new(&settings.ranges, &settings.reserved)?;
        for node in known.iter().filter(|node| !node.pod_cidrs.is_empty()) {
            for irregularity in pool.adopt(&node.name, &node.destinations()) {
                preview.remarks.push(format!("node {}: {irregularity}", node.name));
            }
        }
        for node in known.iter_mut().filter(|node| node.pod_cidrs.is_empty() && !node.deleting) {
            match pool.assign(&node.name) {
                Ok(pod_cidrs) => {
                    node.pod_cidrs = pod_cidrs.iter().map(ToString::to_string).collect();
                    preview.pod_cidrs.push((node.name.clone(), pod_cidrs));
                }
                Err(exhausted) => preview.remarks.push(exhausted.to_string()),
            }
        }
    }

    let Some((settings, cloud)) = routes else { return Ok(preview) };
    let cloud_error = |operation: String| move |failure| DryRunError::Cloud { operation, failure };
    let tables = cloud
        .list_tables(&settings.vpc)
        .await
        .map_err(cloud_error(format!("list the route tables of {}", settings.vpc)))?;
    let in_use = vswitches(cloud, &known, settings).await?;
    let served = Served::choose(&tables, &settings.tables, &in_use, &settings.vpc)?;
    preview.tables = served.tables.iter().map(ToString::to_string).collect();
    for table in &served.unusable {
        preview.remarks.push(format!(
            "route table {table} is configured, but the VPC has no such table that takes entries"
        ));
    }
    if !served.is_complete() {
        preview.remarks.push(format!(
            "multiple route tables found by vpc id[{}], and not all are served; {}",
            settings.vpc,
            served.remedy()
        ));
    }
    let mut observed = Observed::new();
    for table in served.listed() {
        let entries = cloud
            .list_entries(table)
            .await
            .map_err(cloud_error(format!("list the entries of route table {table}")))?;
        observed.insert(table.clone(), TableView::new(entries));
    }

    let installed = |destination, instance: &InstanceId| {
        observed.values().any(|view| view.good(destination, instance).is_some())
    };
    let mut ranges = settings.pod_cidrs.clone();
    if ranges.iter().any(|net| is_ipv6(*net)) {
        let read = cloud_error(format!("look whether {} has IPv6", settings.vpc));
        if !cloud.has_ipv6(&settings.vpc).await.map_err(read)? {
            ranges.retain(|net| !is_ipv6(*net));
            preview
                .remarks
                .push(format!("{} has no IPv6 range: IPv6 pod CIDRs get no entries", settings.vpc));
        }
    }
    let desired = desired(&known, &ranges, installed);
    let mark = Mark::new(settings.cluster.clone());
    let mut policy = Policy::new(mark, settings.pod_cidrs.clone(), served.tables.clone());
    if let Some(quota) = settings.quota {
        policy.limits = served.tables.iter().map(|table| (table.clone(), quota)).collect();
    }
    policy.kept.clone_from(&served.kept);
    preview.plan = diff(&desired, &observed, &policy, |_| true);
    check(&preview.plan, &desired, &observed, &policy, &Bounds::lifted()).map_err(DryRunError::Unsafe)?;
    for (node, unserved) in &desired.unserved {
        preview.remarks.push(format!("node {node}: {unserved}"));
    }
    if settings.source_dest_check_off {
        preview.checks_off = checks_on(cloud, &desired).await?;
    }
    Ok(preview)
}

/// What node control would do.
async fn tell_nodes(
    nodes: &Nodes,
    settings: &NodeSettings,
    cloud: &impl ReadInstances,
    preview: &mut Preview,
) -> Result<(), DryRunError> {
    let failed = |operation: &str| {
        let operation = operation.to_owned();
        move |failure| DryRunError::Cloud { operation, failure }
    };
    let all: Vec<loden_nodes::Node> =
        nodes.values().map(|view| controlled(view)).filter(loden_nodes::Node::concerns).collect();
    let mut ids: BTreeSet<InstanceId> = BTreeSet::new();
    let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
    for node in &all {
        match node.provider() {
            Ok(provider) if provider.region == settings.control.region => {
                ids.insert(InstanceId::from(provider.instance));
            }
            Ok(_) => {}
            Err(_) if node.uninitialized && node.provider_id.trim().is_empty() => {
                addresses.extend(node.private_address());
            }
            Err(_) => {}
        }
    }
    let (ids, addresses): (Vec<_>, Vec<_>) = (ids.into_iter().collect(), addresses.into_iter().collect());
    let mut described: BTreeMap<InstanceId, Instance> = BTreeMap::new();
    for some in ids.chunks(INSTANCES_LIMIT) {
        let found = cloud.describe_nodes(some).await.map_err(failed("look at the nodes' instances"))?;
        described.extend(found.into_iter().map(|instance| (instance.id.clone(), instance)));
    }
    let mut found: Vec<Instance> = Vec::new();
    for some in addresses.chunks(INSTANCES_LIMIT) {
        found.extend(
            cloud
                .find_by_address(&settings.vpc, some)
                .await
                .map_err(failed("look for the nodes' instances by their addresses"))?,
        );
    }
    for node in &all {
        let instance = match node.provider() {
            Ok(provider) if provider.region == settings.control.region => {
                described.get(&InstanceId::from(provider.instance))
            }
            Ok(_) => continue,
            Err(_) => {
                let address = node.private_address();
                let own = |text: &String| address.is_some_and(|address| text.parse() == Ok(address));
                let mut matching = found.iter().filter(|instance| instance.internal.iter().any(own));
                // Two with one address: neither is it.
                matching.next().filter(|_| matching.next().is_none())
            }
        };
        match preview_node(node, instance, settings.control.dual_stack) {
            Ok(plan) if plan.steps.is_empty() => {}
            Ok(plan) => preview.nodes_told.push(plan),
            Err(problem) => preview.remarks.push(format!("node {}: {problem}", node.name)),
        }
    }
    Ok(())
}

/// The vSwitches that the nodes are in, where the choice of tables depends on them.
async fn vswitches(
    cloud: &impl ReadRouteTables,
    nodes: &[Node],
    settings: &Settings,
) -> Result<BTreeSet<VSwitchId>, DryRunError> {
    let mut found = BTreeSet::new();
    if settings.tables == TableChoice::Discover {
        let ids: Vec<InstanceId> = nodes.iter().filter_map(|node| node.instance().ok()).collect();
        for some in ids.chunks(INSTANCES_LIMIT) {
            let operation = "look at the nodes' instances".to_owned();
            let failed = |failure| DryRunError::Cloud { operation, failure };
            let instances = cloud.describe_instances(some).await.map_err(failed)?;
            found.extend(instances.into_iter().map(|instance| instance.vswitch));
        }
    }
    Ok(found)
}

async fn checks_on(cloud: &impl ReadRouteTables, desired: &Desired) -> Result<Vec<String>, DryRunError> {
    let ids: Vec<InstanceId> = desired.live.values().flatten().cloned().collect();
    let mut on = Vec::new();
    for some in ids.chunks(INSTANCES_LIMIT) {
        let read = |operation: &str| {
            let operation = operation.to_owned();
            move |failure| DryRunError::Cloud { operation, failure }
        };
        let instances = cloud.describe_instances(some).await.map_err(read("look at the nodes' instances"))?;
        let enis: Vec<String> = instances.into_iter().map(|instance| instance.primary_eni).collect();
        if !enis.is_empty() {
            on.extend(
                cloud.source_dest_check_on(&enis).await.map_err(read("read source/destination checks"))?,
            );
        }
    }
    Ok(on)
}
