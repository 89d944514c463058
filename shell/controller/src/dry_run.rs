//! What the controller would do, without doing it.
//!
//! The cloud comes in through the reading half of its port and the API server only as a list of nodes, so nothing here could write if it wanted to.

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;
use loden_addr::{Adoption, DivisionError, NodeIpam};
use loden_kube::Nodes;
use loden_routes::check::{Violation, check};
use loden_routes::controller::Settings;
use loden_routes::desired::{Desired, desired};
use loden_routes::mark::Mark;
use loden_routes::model::{InstanceId, Node, VSwitchId, is_ipv6};
use loden_routes::observed::{Observed, TableView};
use loden_routes::plan::{Plan, Policy, diff};
use loden_routes::port::{Failure, INSTANCES_LIMIT, ReadRouteTables};
use loden_routes::tables::{NoSystemTable, Served, TableChoice};

use crate::ipam::IpamSettings;
use crate::nodes::node;

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
    pub pod_cidrs: Vec<(String, IpNet)>,
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
        for (node, pod_cidr) in &self.pod_cidrs {
            writeln!(f, "node {node} + podCIDR {pod_cidr}")?;
        }
        write!(f, "{}", self.plan)?;
        for eni in &self.checks_off {
            writeln!(f, "{eni} - source/destination check")?;
        }
        for remark in &self.remarks {
            writeln!(f, "! {remark}")?;
        }
        let changes = self.pod_cidrs.len() + self.plan.steps.len() + self.checks_off.len();
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
pub async fn dry_run<C: ReadRouteTables>(
    nodes: &Nodes,
    routes: Option<(&Settings, &C)>,
    ipam: Option<&IpamSettings>,
) -> Result<Preview, DryRunError> {
    let mut preview = Preview { nodes: nodes.len(), ..Preview::default() };
    let mut known: Vec<_> = nodes.values().map(|view| node(view)).collect();

    if let Some(settings) = ipam {
        let mut pool = NodeIpam::new(settings.pod_cidr, settings.node_mask, settings.reserved.clone())?;
        for node in &known {
            let subnet = node.destinations().into_iter().find(|net| !is_ipv6(*net));
            if let Some(subnet) = subnet
                && let Adoption::Irregular(irregularity) = pool.adopt(&node.name, subnet)
            {
                preview.remarks.push(format!("node {}: {irregularity}", node.name));
            }
        }
        for node in known.iter_mut().filter(|node| node.pod_cidrs.is_empty() && !node.deleting) {
            match pool.assign(&node.name) {
                Ok(pod_cidr) => {
                    node.pod_cidrs = vec![pod_cidr.to_string()];
                    preview.pod_cidrs.push((node.name.clone(), pod_cidr));
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
    check(&preview.plan, &desired, &policy, usize::MAX).map_err(DryRunError::Unsafe)?;
    for (node, unserved) in &desired.unserved {
        preview.remarks.push(format!("node {node}: {unserved}"));
    }
    if settings.source_dest_check_off {
        preview.checks_off = checks_on(cloud, &desired).await?;
    }
    Ok(preview)
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
