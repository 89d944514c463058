//! What to sign with, and when to fetch it anew.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use loden_aliyun::sign::AccessKey;
use tokio::sync::Mutex;

use crate::metadata::{Metadata, MetadataError};

/// Shortest pause between two fetches that brought nothing new.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is nothing to sign with.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialsError {
    /// The instance has no RAM role.
    #[error(
        "there are no credentials: no access key is configured and no RAM role is attached to this instance; attach one, or set ACCESS_KEY_ID and ACCESS_KEY_SECRET"
    )]
    NoRole(#[source] MetadataError),
    /// The role's credentials cannot be fetched.
    #[error("cannot fetch the RAM role's credentials: {0}")]
    Metadata(#[source] MetadataError),
    /// The metadata service gives out credentials that are over.
    #[error("the metadata service gives out credentials that expired at {0}; is this machine's clock right?")]
    Expired(String),
}

/// Where to take an access key from. Clones share what was fetched.
#[derive(Debug, Clone)]
pub struct Credentials {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Fixed { key: AccessKey, origin: &'static str },
    Role { metadata: Metadata, cached: Arc<Mutex<Option<Cached>>> },
}

#[derive(Debug)]
struct Cached {
    key: AccessKey,
    renew_at: SystemTime,
    expires_at: SystemTime,
}

impl Credentials {
    /// An access key that does not change. `origin` says in errors where it was set.
    #[must_use]
    pub fn fixed(key: AccessKey, origin: &'static str) -> Self {
        Self { source: Source::Fixed { key, origin } }
    }

    /// The RAM role of this instance.
    #[must_use]
    pub fn role(metadata: Metadata) -> Self {
        Self { source: Source::Role { metadata, cached: Arc::default() } }
    }

    /// Where they come from, for people.
    #[must_use]
    pub fn origin(&self) -> &str {
        match &self.source {
            Source::Fixed { origin, .. } => origin,
            Source::Role { .. } => "the RAM role of this instance",
        }
    }

    /// The key to sign with now. A role's key is fetched anew well before it expires; while that fails, the old one is used up.
    ///
    /// # Errors
    /// There is no key that could be valid.
    pub async fn key(&self) -> Result<AccessKey, CredentialsError> {
        let (metadata, cached) = match &self.source {
            Source::Fixed { key, .. } => return Ok(key.clone()),
            Source::Role { metadata, cached } => (metadata, cached),
        };
        // The lock is held while fetching, so that many callers make one fetch.
        let mut cached = cached.lock().await;
        let now = SystemTime::now();
        if let Some(current) = cached.as_ref().filter(|current| now < current.renew_at) {
            return Ok(current.key.clone());
        }
        let error = match fetch(metadata, now).await {
            Ok(fresh) => return Ok(cached.insert(fresh).key.clone()),
            Err(error) => error,
        };
        match cached.as_mut().filter(|current| now < current.expires_at) {
            Some(current) => {
                tracing::warn!(%error, "using the RAM role's credentials further, as fetching new ones failed");
                current.renew_at = renewal(now, current.expires_at);
                Ok(current.key.clone())
            }
            None => Err(error),
        }
    }

    /// Fetches anew because the API refused `stale` as expired. Answers whether there is another key now.
    pub(crate) async fn renew(&self, stale: &AccessKey) -> bool {
        let Source::Role { cached, .. } = &self.source else { return false };
        {
            let mut cached = cached.lock().await;
            if cached.as_ref().is_some_and(|current| current.key == *stale) {
                *cached = None;
            }
        }
        self.key().await.is_ok_and(|key| key != *stale)
    }
}

async fn fetch(metadata: &Metadata, now: SystemTime) -> Result<Cached, CredentialsError> {
    let credentials = metadata.role_credentials().await.map_err(|error| {
        if error.is_absent() { CredentialsError::NoRole(error) } else { CredentialsError::Metadata(error) }
    })?;
    let expired = || CredentialsError::Expired(credentials.expiration.clone());
    let expires_at = credentials.expires_at().map(SystemTime::from).ok_or_else(expired)?;
    if expires_at <= now {
        return Err(expired());
    }
    Ok(Cached { key: credentials.access_key(), renew_at: renewal(now, expires_at), expires_at })
}

/// Two thirds into the life that is left; near its end no more often than [`PAUSE`], but never past it.
fn renewal(now: SystemTime, expires_at: SystemTime) -> SystemTime {
    let left = expires_at.duration_since(now).unwrap_or_default();
    now + (left * 2 / 3).max(PAUSE).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_renewed_before_they_expire() {
        let now = SystemTime::UNIX_EPOCH;
        let after = |left| renewal(now, now + Duration::from_millis(left)).duration_since(now).unwrap();
        assert_eq!(after(21_600_000), Duration::from_secs(14_400));
        assert_eq!(after(1_200), Duration::from_secs(1));
        assert_eq!(after(400), Duration::from_millis(400));
        assert_eq!(renewal(now + Duration::from_secs(9), now), now + Duration::from_secs(9));
    }
}
