//! The port to the cloud: instances, read only.
//!
//! The invariant: an answer is complete or it is an error. An instance that is absent from an answer is taken to be gone.

use std::future::Future;
use std::net::IpAddr;

use loden_routes::model::{InstanceId, VpcId};
pub use loden_routes::port::{Failure, FailureClass, INSTANCES_LIMIT};

use crate::model::Instance;

/// Reading instances.
pub trait ReadInstances {
    /// The instances among `ids` (at most [`INSTANCES_LIMIT`]) that exist.
    fn describe_nodes(
        &self,
        ids: &[InstanceId],
    ) -> impl Future<Output = Result<Vec<Instance>, Failure>> + Send;

    /// The instances of the VPC that have one of these private addresses (at most [`INSTANCES_LIMIT`]).
    fn find_by_address(
        &self,
        vpc: &VpcId,
        addresses: &[IpAddr],
    ) -> impl Future<Output = Result<Vec<Instance>, Failure>> + Send;
}
