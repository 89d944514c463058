//! Leadership: at most one controller acts at a time, by a Lease object.
//!
//! Owns the renewal of the Lease. What must hold: a leader that cannot renew within the renew deadline stops acting
//! before the lease duration lets another one in; hence deadline < duration. A candidate measures the duration on its
//! own clock, from the moment it saw the record change, and so needs no agreement between clocks. If that broke, two
//! controllers would write route entries against each other.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::access::{Cluster, segment};
use crate::backoff::spread;
use crate::error::{Error, Result};
use crate::write::rfc3339_micro;

/// What to become the leader of, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Campaign {
    /// Namespace of the Lease object.
    pub namespace: String,
    /// Name of the Lease object.
    pub name: String,
    /// Who we are: unique per process, such as the pod's name and a random suffix.
    pub identity: String,
    /// How long a silent leader keeps its place.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up; less than `lease_duration`.
    pub renew_deadline: Duration,
    /// The pause between attempts, for the leader and for candidates.
    pub retry_period: Duration,
}

impl Campaign {
    /// With the customary times: 15 s, 10 s, 2 s.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Why leadership ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else holds the Lease.
    #[error("leadership of {lease} was taken by {holder:?}")]
    Taken {
        /// Namespace and name of the Lease.
        lease: String,
        /// The new holder's identity.
        holder: String,
    },
    /// The Lease could not be renewed in time, so that somebody else may hold it by now.
    #[error("leadership of {lease} could not be renewed within {seconds} s: {cause}")]
    Expired {
        /// Namespace and name of the Lease.
        lease: String,
        /// The renew deadline.
        seconds: u64,
        /// The last failure.
        cause: String,
    },
}

/// Proof of being the leader, for as long as it is held. Renews in the background. Dropping it stops the renewal
/// without giving the Lease back: others wait for its duration. [`Leadership::release`] hands it over at once.
#[derive(Debug)]
pub struct Leadership {
    lost: oneshot::Receiver<Lost>,
    release: mpsc::Sender<oneshot::Sender<()>>,
    ended: Option<String>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Leadership {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Leadership {
    /// Resolves when leadership is lost; never before. May be called again after having been dropped unresolved.
    /// The caller must stop acting at once.
    pub async fn lost(&mut self) -> Lost {
        match (&mut self.lost).await {
            Ok(lost) => {
                self.ended = Some(lost.to_string());
                lost
            }
            Err(_gone) => Lost::Expired {
                lease: String::new(),
                seconds: 0,
                cause: self.ended.clone().unwrap_or_else(|| "the renewal ended".to_owned()),
            },
        }
    }

    /// Gives the Lease back, so that the next candidate need not wait. Best effort, at most five seconds.
    pub async fn release(self) {
        let (done, wait) = oneshot::channel();
        let releasing = async {
            if self.release.send(done).await.is_ok() {
                let _renewal_gone = wait.await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), releasing).await.is_err() {
            tracing::warn!("the lease could not be given back; the next leader waits for its duration");
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    holder_identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease_duration_seconds: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    acquire_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    renew_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease_transitions: Option<i32>,
}

impl LeaseSpec {
    fn holder(&self) -> &str {
        self.holder_identity.as_deref().unwrap_or_default()
    }
}

/// The Lease object. What is not decided here (labels, owner references) is carried along unread.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    metadata: serde_json::Value,
    #[serde(default)]
    spec: LeaseSpec,
}

/// The last record seen and when, by our own clock.
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

struct Election {
    cluster: Cluster,
    campaign: Campaign,
    seen: Option<Seen>,
}

enum Attempt {
    Held,
    HeldBy(String),
}

impl Cluster {
    /// Waits until we are the leader. Candidates look every `retry_period`; a server that is away only delays them.
    /// Dropping the future withdraws the candidacy.
    ///
    /// # Errors
    /// What waiting does not cure: missing permissions, refused credentials, a malformed Lease.
    pub async fn lead(&self, campaign: Campaign) -> Result<Leadership> {
        let mut election = Election { cluster: self.clone(), campaign, seen: None };
        let mut following: Option<String> = None;
        loop {
            match election.attempt().await {
                Ok(Attempt::Held) => break,
                Ok(Attempt::HeldBy(holder)) => {
                    if following.as_deref() != Some(&holder) {
                        tracing::info!(lease = election.lease(), holder, "waiting for leadership");
                        following = Some(holder);
                    }
                }
                Err(error) if error.is_transient() => tracing::debug!(%error, "cannot look at the lease"),
                Err(error) => return Err(error),
            }
            let period = election.campaign.retry_period;
            tokio::time::sleep(spread(period, period.mul_f64(1.2))).await;
        }
        tracing::info!(lease = election.lease(), identity = election.campaign.identity, "leading");
        let (tell, lost) = oneshot::channel();
        let (release, orders) = mpsc::channel(1);
        let task = tokio::spawn(election.keep(tell, orders));
        Ok(Leadership { lost, release, ended: None, task })
    }
}

impl Election {
    fn lease(&self) -> String {
        format!("{}/{}", self.campaign.namespace, self.campaign.name)
    }

    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", segment(&self.campaign.namespace))
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), segment(&self.campaign.name))
    }

    /// Takes or renews the Lease where the rules allow it.
    async fn attempt(&mut self) -> Result<Attempt> {
        let operation = format!("hold lease {}", self.lease());
        let now = Instant::now();
        let mut lease: Lease = match self.cluster.get(&operation, &self.path()).await {
            Ok(lease) => lease,
            Err(Error::NotFound { .. }) => return self.create(&operation).await,
            Err(error) => return Err(error),
        };
        if self.seen.as_ref().is_none_or(|seen| seen.spec != lease.spec) {
            self.seen = Some(Seen { spec: lease.spec.clone(), at: now });
        }
        let holder = lease.spec.holder().to_owned();
        let ours = holder == self.campaign.identity;
        if !ours && !holder.is_empty() {
            let patience = lease
                .spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(self.campaign.lease_duration, Duration::from_secs);
            if self.seen.as_ref().is_some_and(|seen| now.duration_since(seen.at) < patience) {
                return Ok(Attempt::HeldBy(holder));
            }
        }
        let time = rfc3339_micro(OffsetDateTime::now_utc());
        let transitions = lease.spec.lease_transitions.unwrap_or_default();
        lease.spec = LeaseSpec {
            holder_identity: Some(self.campaign.identity.clone()),
            lease_duration_seconds: Some(self.duration_seconds()),
            acquire_time: if ours { lease.spec.acquire_time.clone() } else { Some(time.clone()) },
            renew_time: Some(time),
            lease_transitions: Some(if ours { transitions } else { transitions.saturating_add(1) }),
        };
        self.update(&operation, &lease).await?;
        Ok(Attempt::Held)
    }

    async fn create(&mut self, operation: &str) -> Result<Attempt> {
        let time = rfc3339_micro(OffsetDateTime::now_utc());
        let lease = Lease {
            api_version: "coordination.k8s.io/v1".to_owned(),
            kind: "Lease".to_owned(),
            metadata: serde_json::json!({"name": self.campaign.name, "namespace": self.campaign.namespace}),
            spec: LeaseSpec {
                holder_identity: Some(self.campaign.identity.clone()),
                lease_duration_seconds: Some(self.duration_seconds()),
                acquire_time: Some(time.clone()),
                renew_time: Some(time),
                lease_transitions: Some(0),
            },
        };
        let body = self.body(operation, &lease)?;
        let created: Lease = self.cluster.post(operation, &self.collection(), &body).await?;
        self.seen = Some(Seen { spec: created.spec, at: Instant::now() });
        Ok(Attempt::Held)
    }

    async fn update(&mut self, operation: &str, lease: &Lease) -> Result<()> {
        let body = self.body(operation, lease)?;
        let updated: Lease = self.cluster.put(operation, &self.path(), &body).await?;
        self.seen = Some(Seen { spec: updated.spec, at: Instant::now() });
        Ok(())
    }

    fn body(&self, operation: &str, lease: &Lease) -> Result<serde_json::Value> {
        serde_json::to_value(lease).map_err(|error| Error::Malformed {
            operation: operation.to_owned(),
            server: self.cluster.server().to_owned(),
            reason: error.to_string(),
        })
    }

    fn duration_seconds(&self) -> i32 {
        i32::try_from(self.campaign.lease_duration.as_secs().max(1)).unwrap_or(i32::MAX)
    }

    /// Renews until it fails for too long, somebody else holds the Lease, or it is given back.
    async fn keep(mut self, tell: oneshot::Sender<Lost>, mut orders: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut renewed = Instant::now();
        let mut cause = "no attempt was answered".to_owned();
        let lost = loop {
            let deadline = renewed + self.campaign.renew_deadline;
            let wake = (Instant::now() + self.campaign.retry_period).min(deadline);
            tokio::select! {
                order = orders.recv() => {
                    if let Some(done) = order {
                        self.give_back().await;
                        let _caller_gone = done.send(());
                    }
                    return;
                }
                () = tokio::time::sleep_until(wake) => {}
            }
            match tokio::time::timeout_at(deadline, self.attempt()).await {
                Ok(Ok(Attempt::Held)) => renewed = Instant::now(),
                Ok(Ok(Attempt::HeldBy(holder))) => break Lost::Taken { lease: self.lease(), holder },
                Ok(Err(error)) => {
                    tracing::debug!(%error, "lease not renewed yet");
                    cause = error.to_string();
                }
                Err(_elapsed) => {}
            }
            if Instant::now() >= renewed + self.campaign.renew_deadline {
                let seconds = self.campaign.renew_deadline.as_secs();
                break Lost::Expired { lease: self.lease(), seconds, cause };
            }
        };
        tracing::warn!(%lost, "no longer leading");
        let _caller_gone = tell.send(lost);
    }

    async fn give_back(&mut self) {
        let operation = format!("give back lease {}", self.lease());
        let outcome = async {
            let mut lease: Lease = self.cluster.get(&operation, &self.path()).await?;
            if lease.spec.holder() != self.campaign.identity {
                return Ok(());
            }
            let time = rfc3339_micro(OffsetDateTime::now_utc());
            lease.spec.holder_identity = Some(String::new());
            lease.spec.lease_duration_seconds = Some(1);
            lease.spec.acquire_time = Some(time.clone());
            lease.spec.renew_time = Some(time);
            self.update(&operation, &lease).await
        };
        if let Err(error) = outcome.await {
            tracing::warn!(%error, "the next leader waits for the lease's duration");
        }
    }
}
