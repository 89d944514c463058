//! What to sign with, and when to fetch it anew.
//!
//! What must hold: a key that the API still takes is never dropped before another is there, and no secret leaves this module but inside an [`AccessKey`].
//! The source can be exchanged while calls are under way; each call signs with one whole key, old or new.

mod addon;
mod oidc;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use loden_aliyun::sign::AccessKey;
use tokio::sync::Mutex;

use crate::metadata::{Metadata, MetadataError};

pub use addon::AddonFile;
pub use oidc::OidcRole;

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
    /// The source gives out credentials that are over.
    #[error("{origin} gives out credentials that expired at {at}; is this machine's clock right?")]
    Expired {
        /// Where they come from.
        origin: String,
        /// When they ended.
        at: String,
    },
    /// The token file of the managed cluster cannot be used.
    #[error("cannot use the token file {path}: {problem}; the cluster's control plane writes it")]
    Addon {
        /// The file.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The service account's token did not become credentials.
    #[error("cannot assume the role {role} with the token in {file}: {problem}")]
    Oidc {
        /// The role.
        role: String,
        /// The token's file.
        file: String,
        /// What is wrong.
        problem: String,
    },
}

/// Where to take an access key from. Clones share the source and what was fetched.
#[derive(Debug, Clone)]
pub struct Credentials {
    source: Arc<RwLock<Arc<Source>>>,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one, behind an Arc")]
enum Source {
    Fixed { key: AccessKey, origin: String },
    Fetched { from: Fetcher, cached: Mutex<Option<Cached>>, standing: std::sync::Mutex<Standing> },
}

/// How temporary credentials stand. Of a key that does not end there is nothing to say: no end, no failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// The end of those that were fetched last.
    pub expires_at: Option<SystemTime>,
    /// Whether the last attempt at fetching failed.
    pub fetching_fails: bool,
}

#[derive(Debug)]
enum Fetcher {
    Role(Metadata),
    Addon(AddonFile),
    Oidc(Box<OidcRole>),
}

/// A key and its end.
#[derive(Debug)]
struct Fresh {
    key: AccessKey,
    expires_at: SystemTime,
    /// The end as the source wrote it.
    written: String,
}

#[derive(Debug)]
struct Cached {
    key: AccessKey,
    renew_at: SystemTime,
    expires_at: SystemTime,
}

impl Credentials {
    fn of(source: Source) -> Self {
        Self { source: Arc::new(RwLock::new(Arc::new(source))) }
    }

    fn fetched(from: Fetcher) -> Self {
        Self::of(Source::Fetched { from, cached: Mutex::default(), standing: std::sync::Mutex::default() })
    }

    /// An access key that does not change. `origin` says in errors where it was set.
    #[must_use]
    pub fn fixed(key: AccessKey, origin: &str) -> Self {
        Self::of(Source::Fixed { key, origin: origin.to_owned() })
    }

    /// The RAM role of this instance.
    #[must_use]
    pub fn role(metadata: Metadata) -> Self {
        Self::fetched(Fetcher::Role(metadata))
    }

    /// The token file that a managed cluster's control plane renews.
    #[must_use]
    pub fn addon(file: AddonFile) -> Self {
        Self::fetched(Fetcher::Addon(file))
    }

    /// A RAM role for the service account of this pod.
    #[must_use]
    pub fn oidc(role: OidcRole) -> Self {
        Self::fetched(Fetcher::Oidc(Box::new(role)))
    }

    fn source(&self) -> Arc<Source> {
        // A writer only stores a pointer, so a poisoned lock still guards a whole one.
        Arc::clone(&self.source.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the source of `other` from now on, in all clones. Calls under way end with the key that they were signed with. Answers whether anything
    /// changed; the same access key again, or the same kind of fetching, is no change and keeps what was fetched.
    pub fn exchange(&self, other: &Self) -> bool {
        let (old, new) = (self.source(), other.source());
        if old.is_same(&new) {
            return false;
        }
        *self.source.write().unwrap_or_else(PoisonError::into_inner) = new;
        true
    }

    /// Where they come from, for people.
    #[must_use]
    pub fn origin(&self) -> String {
        self.source().origin()
    }

    /// How they stand, without fetching anything or waiting for anybody.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &*self.source() {
            Source::Fixed { .. } => Standing::default(),
            Source::Fetched { standing, .. } => *standing.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// The key to sign with now. One that ends is fetched anew well before; while that fails, the old one is used up.
    ///
    /// # Errors
    /// There is no key that could be valid.
    pub async fn key(&self) -> Result<AccessKey, CredentialsError> {
        self.source().key().await
    }

    /// Looks for another key because the API refused `stale`. Answers whether there is one now.
    pub(crate) async fn renew(&self, stale: &AccessKey) -> bool {
        let source = self.source();
        if let Source::Fetched { cached, .. } = &*source {
            let mut cached = cached.lock().await;
            if cached.as_ref().is_some_and(|current| current.key == *stale) {
                *cached = None;
            }
        }
        // An exchange during the call counts as well.
        self.key().await.is_ok_and(|key| key != *stale)
    }
}

impl Source {
    fn origin(&self) -> String {
        match self {
            Self::Fixed { origin, .. } => origin.clone(),
            Self::Fetched { from, .. } => from.origin(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Fixed { key, origin }, Self::Fixed { key: other_key, origin: other_origin }) => {
                key == other_key && origin == other_origin
            }
            (Self::Fetched { from, .. }, Self::Fetched { from: other, .. }) => {
                from.origin() == other.origin()
            }
            _ => false,
        }
    }

    async fn key(&self) -> Result<AccessKey, CredentialsError> {
        let (from, cached, standing) = match self {
            Self::Fixed { key, .. } => return Ok(key.clone()),
            Self::Fetched { from, cached, standing } => (from, cached, standing),
        };
        let standing = || standing.lock().unwrap_or_else(PoisonError::into_inner);
        // The lock is held while fetching, so that many callers make one fetch.
        let mut cached = cached.lock().await;
        let now = SystemTime::now();
        if let Some(current) = cached.as_ref().filter(|current| now < current.renew_at) {
            return Ok(current.key.clone());
        }
        let error = match from.fetch(now).await {
            Ok(fresh) => {
                *standing() = Standing { expires_at: Some(fresh.expires_at), fetching_fails: false };
                let renew_at = renewal(now, fresh.expires_at);
                let fresh = Cached { key: fresh.key, renew_at, expires_at: fresh.expires_at };
                return Ok(cached.insert(fresh).key.clone());
            }
            Err(error) => error,
        };
        standing().fetching_fails = true;
        match cached.as_mut().filter(|current| now < current.expires_at) {
            Some(current) => {
                tracing::warn!(%error, origin = from.origin(), "using credentials further, as fetching new ones failed");
                current.renew_at = renewal(now, current.expires_at);
                Ok(current.key.clone())
            }
            None => Err(error),
        }
    }
}

impl Fetcher {
    fn origin(&self) -> String {
        match self {
            Self::Role(_) => "the RAM role of this instance".to_owned(),
            Self::Addon(file) => format!("the token file {}", file.path().display()),
            Self::Oidc(role) => format!("the role {} by the pod's service account", role.role_arn),
        }
    }

    async fn fetch(&self, now: SystemTime) -> Result<Fresh, CredentialsError> {
        let fresh = match self {
            Self::Role(metadata) => of_instance(metadata).await?,
            Self::Addon(file) => file.fetch()?,
            Self::Oidc(role) => role.fetch().await?,
        };
        if fresh.expires_at <= now {
            return Err(CredentialsError::Expired { origin: self.origin(), at: fresh.written });
        }
        Ok(fresh)
    }
}

async fn of_instance(metadata: &Metadata) -> Result<Fresh, CredentialsError> {
    let role = metadata.role_credentials().await.map_err(|error| {
        if error.is_absent() { CredentialsError::NoRole(error) } else { CredentialsError::Metadata(error) }
    })?;
    // The metadata client refuses an end that is no date; the beginning of time is over in any case.
    let expires_at = role.session.expires_at().map_or(SystemTime::UNIX_EPOCH, SystemTime::from);
    Ok(Fresh { key: role.session.access_key(), expires_at, written: role.session.expiration })
}

/// Two thirds into the life that is left; near its end no more often than [`PAUSE`], but never past it.
fn renewal(now: SystemTime, expires_at: SystemTime) -> SystemTime {
    let left = expires_at.duration_since(now).unwrap_or_default();
    now + (left * 2 / 3).max(PAUSE).min(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &str) -> AccessKey {
        AccessKey { id: "id".to_owned(), secret: secret.to_owned(), token: None }
    }

    #[test]
    fn keys_are_renewed_before_they_expire() {
        let now = SystemTime::UNIX_EPOCH;
        let after = |left| renewal(now, now + Duration::from_millis(left)).duration_since(now).unwrap();
        assert_eq!(after(21_600_000), Duration::from_secs(14_400));
        assert_eq!(after(1_200), Duration::from_secs(1));
        assert_eq!(after(400), Duration::from_millis(400));
        assert_eq!(renewal(now + Duration::from_secs(9), now), now + Duration::from_secs(9));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_exchange_reaches_every_clone_and_the_same_again_is_none() {
        let credentials = Credentials::fixed(key("old"), "a test");
        let clone = credentials.clone();
        assert!(!credentials.exchange(&Credentials::fixed(key("old"), "a test")));
        assert!(credentials.exchange(&Credentials::fixed(key("new"), "a test")));
        assert_eq!(clone.key().await.unwrap(), key("new"));
        assert!(clone.renew(&key("old")).await, "a call signed with the old key has another to try");
        assert!(!clone.renew(&key("new")).await);
        assert!(!format!("{clone:?}").contains("\"new\""));
    }
}
