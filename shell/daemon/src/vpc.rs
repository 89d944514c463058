//! The VPC's own networks, which see pods' addresses as they are.

use std::time::Duration;

use ipnet::IpNet;
use loden_cloud::{Environment, Metadata, MetadataError};
use tokio::sync::watch;

use crate::VpcCidrs;

/// A VPC gets another network rarely; a look every few minutes costs nothing.
const REFRESH: Duration = Duration::from_secs(300);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Follows the VPC's networks: `None` until they are known. Without a metadata service it stays so, which is a warning
/// and never an end.
pub(crate) fn follow(wanted: &VpcCidrs) -> watch::Receiver<Option<Vec<IpNet>>> {
    match wanted {
        VpcCidrs::Fixed(list) => watch::channel(Some(list.clone())).1,
        VpcCidrs::Auto => {
            let (sender, receiver) = watch::channel(None);
            tokio::spawn(ask(sender));
            receiver
        }
    }
}

async fn ask(sender: watch::Sender<Option<Vec<IpNet>>>) {
    let mut retry = FIRST_RETRY;
    let mut warned = false;
    let mut service = None;
    while !sender.is_closed() {
        match vpc_cidrs(&mut service).await {
            Ok(cidrs) => {
                retry = FIRST_RETRY;
                warned = false;
                sender.send_if_modified(|known| {
                    let changed = known.as_ref() != Some(&cidrs);
                    if changed {
                        tracing::info!(?cidrs, "the VPC's networks see pods' own addresses");
                        *known = Some(cidrs);
                    }
                    changed
                });
                tokio::time::sleep(REFRESH).await;
            }
            Err(error) => {
                if warned {
                    tracing::debug!("{error:#}");
                } else {
                    tracing::warn!(
                        "cannot learn the VPC's networks: {error:#}; until then what pods send into the VPC is masqueraded like the \
                         rest of the world (unless an earlier run knew better); give -vpc-cidrs to do without the metadata service"
                    );
                    warned = true;
                }
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LONGEST_RETRY);
            }
        }
    }
}

/// The VPC's networks as the metadata service tells them.
async fn vpc_cidrs(service: &mut Option<Metadata>) -> Result<Vec<IpNet>, MetadataError> {
    let metadata = match service {
        Some(metadata) => metadata,
        none => none.insert(Metadata::from_environment(&Environment::of_process())?),
    };
    Ok(vec![IpNet::V4(metadata.vpc_cidr_block().await?)])
}
