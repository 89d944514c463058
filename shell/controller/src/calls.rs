//! Route control's calls to the cloud: how each is made, and what the log says of it.
//!
//! Every call ends in an answer: a failure is one, and what to do about it is for the controller to say.

use loden_routes::controller::{Answer, Call};
use loden_routes::model::VpcId;
use loden_routes::port::{BatchAnswer, WriteRouteTables};

/// Makes a call that route control wants, and hands back what came of it, failures included.
pub(crate) async fn carry_out<C: WriteRouteTables>(cloud: &C, vpc: &VpcId, call: Call) -> Answer {
    match call {
        Call::HasIpv6 => Answer::Ipv6(cloud.has_ipv6(vpc).await),
        Call::Quota => Answer::Quota(cloud.quota().await),
        Call::Repoint(entry, to) => {
            Answer::Batch(cloud.repoint(&entry, &to).await.map(|()| BatchAnswer::default()))
        }
        Call::ListTables => Answer::Tables(cloud.list_tables(vpc).await),
        Call::ListEntries(table) => Answer::Entries(cloud.list_entries(&table).await),
        Call::ReadBack(table, destinations) => Answer::Entries(cloud.read_back(&table, &destinations).await),
        Call::Create(entries) => Answer::Batch(cloud.create_batch(&entries).await),
        Call::Delete(entries) => Answer::Batch(cloud.delete_batch(&entries).await),
        Call::DescribeInstances(ids) => Answer::Instances(cloud.describe_instances(&ids).await),
        Call::ReadSourceDestChecks(enis) => Answer::ChecksOn(cloud.source_dest_check_on(&enis).await),
        Call::SourceDestCheckOff(eni) => Answer::CheckOff(cloud.source_dest_check_off(&eni).await),
    }
}

/// Tells of a call before it is made: those that change something always, reads to who asks for more.
pub(crate) fn log_call(call: &Call) {
    match call {
        Call::HasIpv6 => tracing::debug!("looking whether the VPC has IPv6"),
        Call::Quota => tracing::debug!("reading the quota of route entries"),
        Call::Repoint(entry, to) => {
            tracing::info!(table = %entry.table, destination = %entry.destination, from = %entry.next_hop, to = %to.instance, "repointing route entry");
        }
        Call::ListTables => tracing::debug!("listing route tables"),
        Call::ListEntries(table) => tracing::debug!(%table, "listing route entries"),
        Call::ReadBack(table, destinations) => {
            tracing::debug!(%table, entries = destinations.len(), "reading route entries back");
        }
        Call::Create(entries) => {
            for entry in entries {
                tracing::info!(table = %entry.table, destination = %entry.destination, instance = %entry.instance, "creating route entry");
            }
        }
        Call::Delete(entries) => {
            for entry in entries {
                tracing::info!(table = %entry.table, destination = %entry.destination, next_hop = %entry.next_hop, id = %entry.id, "deleting route entry");
            }
        }
        Call::DescribeInstances(ids) => tracing::debug!(instances = ids.len(), "looking at instances"),
        Call::ReadSourceDestChecks(enis) => {
            tracing::debug!(interfaces = enis.len(), "reading source/destination checks")
        }
        Call::SourceDestCheckOff(eni) => tracing::info!(%eni, "switching the source/destination check off"),
    }
}

/// Tells of what the cloud refused.
pub(crate) fn log_answer(answer: &Answer) {
    let failure = match answer {
        Answer::Ipv6(result) => result.as_ref().err(),
        Answer::Quota(result) => result.as_ref().err(),
        Answer::Tables(result) => result.as_ref().err(),
        Answer::Entries(result) => result.as_ref().err(),
        Answer::Batch(Ok(batch)) => {
            for refusal in &batch.refused {
                let destination = refusal.destination.map(|net| net.to_string()).unwrap_or_default();
                tracing::warn!(%destination, next_hop = refusal.next_hop, failure = %refusal.failure, "refused");
            }
            None
        }
        Answer::Batch(Err(failure)) | Answer::Instances(Err(failure)) | Answer::ChecksOn(Err(failure)) => {
            Some(failure)
        }
        Answer::Instances(Ok(_)) | Answer::ChecksOn(Ok(_)) => None,
        Answer::CheckOff(result) => result.as_ref().err(),
    };
    if let Some(failure) = failure {
        tracing::warn!(%failure, class = ?failure.class, "a call to the cloud failed");
    }
}
