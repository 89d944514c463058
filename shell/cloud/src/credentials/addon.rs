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
