//! Node control's hands: its calls to the cloud and its writes to nodes.

use loden_kube::{Cluster, NodeAddress, NodeView};
use loden_nodes::controller::Call;
use loden_nodes::port::{Failure, ReadInstances};
use loden_nodes::{Instance, Plan, Step, UNINITIALIZED};
use loden_routes::model::VpcId;

/// Node control and where it works.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// What it is to do.
    pub control: loden_nodes::controller::Settings,
    /// The VPC in which instances are looked for by their addresses.
    pub vpc: VpcId,
}

pub(crate) async fn ask<C: ReadInstances>(
    cloud: &C,
    vpc: &VpcId,
    call: &Call,
) -> Result<Vec<Instance>, Failure> {
    let answer = match call {
        Call::Describe(ids) => {
            tracing::debug!(instances = ids.len(), "asking about nodes' instances");
            cloud.describe_nodes(ids).await
        }
        Call::Find(addresses) => {
            tracing::debug!(addresses = addresses.len(), "looking for instances by their addresses");
            cloud.find_by_address(vpc, addresses).await
        }
    };
    if let Err(failure) = &answer {
        tracing::warn!(%failure, class = ?failure.class, "a call to the cloud about instances failed");
    }
    answer
}

/// Carries out a plan step by step. The first step that fails ends it.
pub(crate) async fn apply(cluster: &Cluster, view: &NodeView, plan: &Plan) -> Result<(), String> {
    for line in plan.to_string().lines() {
        tracing::info!("{line}");
    }
    for step in &plan.steps {
        let done = match step {
            Step::Describe { provider_id, labels } => {
                cluster.describe_node(view, provider_id.as_deref(), labels).await.map(|_node| true)
            }
            Step::Addresses(addresses) => {
                let addresses: Vec<NodeAddress> = addresses
                    .iter()
                    .map(|address| NodeAddress {
                        kind: address.kind.clone(),
                        address: address.address.clone(),
                    })
                    .collect();
                cluster.set_node_addresses(view, &addresses).await.map(|_node| true)
            }
            Step::RemoveTaint => cluster.remove_taint(view, UNINITIALIZED).await.map(|_was_there| true),
            Step::Delete { .. } => cluster.delete_silent_node(view).await,
        };
        match done {
            Ok(true) => {}
            Ok(false) => return Err("its kubelet speaks again".to_owned()),
            Err(error) => {
                tracing::warn!(node = %view.name, %error, "cannot write what the cloud says of the node; trying again");
                return Err(error.to_string());
            }
        }
    }
    Ok(())
}
