//! The token file of a managed cluster. It is small and local, so it is read whenever credentials are wanted anew.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use loden_aliyun::addon;
use loden_aliyun::sign::format_date;

use super::{CredentialsError, Fresh};

/// The file, which need not be there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddonFile(PathBuf);

impl AddonFile {
    /// The file at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether there is one.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    pub(super) fn fetch(&self) -> Result<Fresh, CredentialsError> {
        let wrong = |problem: String| CredentialsError::Addon { path: self.0.display().to_string(), problem };
        let text = std::fs::read_to_string(&self.0).map_err(|error| wrong(error.to_string()))?;
        let token = addon::read(&text).map_err(|error| wrong(error.to_string()))?;
        Ok(Fresh {
            key: token.key,
            expires_at: SystemTime::from(token.expires_at),
            written: format_date(token.expires_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credentials;
    use crate::credentials::Standing;

    /// A file as the control plane writes it, encrypted by openssl under the keyring.
    fn write(path: &Path, expiration: &str) {
        let text = format!(
            r#"{{"access.key.id":"AAECAwQFBgcICQoLDA0OD16DlGhyya87MF0RXmiRbeg=","access.key.secret":"AAECAwQFBgcICQoLDA0OD6B58KpDb0n3ANzr7p25CYY=","security.token":"AAECAwQFBgcICQoLDA0OD6CUGCdExFf2WDG03vhHGRLpr2cdsAI0a6RKtY+nZwzT","expiration":"{expiration}","keyring":"0123456789abcdef0123456789abcdef"}}"#
        );
        std::fs::write(path, text).unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_file_is_read_again_when_it_is_over_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token-config");
        let credentials = Credentials::addon(AddonFile::new(&path));
        assert_eq!(credentials.standing(), Standing::default());
        let error = credentials.key().await.unwrap_err().to_string();
        assert!(error.contains("token-config"), "{error}");
        assert_eq!(credentials.standing(), Standing { expires_at: None, fetching_fails: true });
        write(&path, "2001-02-03T04:05:06Z");
        let error = credentials.key().await.unwrap_err().to_string();
        assert!(error.contains("expired at 2001-02-03T04:05:06Z"), "{error}");
        write(&path, "2999-02-03T04:05:06Z");
        let key = credentials.key().await.unwrap();
        assert_eq!((key.id.as_str(), key.secret.as_str()), ("STS.testid", "testsecret"));
        let standing = credentials.standing();
        assert!(standing.expires_at.is_some() && !standing.fetching_fails, "{standing:?}");
        // What was fetched is used while it holds; a refusal looks at the file again.
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(credentials.key().await.unwrap(), key);
        assert!(!credentials.renew(&key).await);
        let error = credentials.key().await.unwrap_err().to_string();
        assert!(error.contains("not JSON with the keys") && !error.contains("testsecret"), "{error}");
        assert_eq!(credentials.standing(), Standing { fetching_fails: true, ..standing });
    }
}
