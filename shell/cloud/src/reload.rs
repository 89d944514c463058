//! The cloud-config file while the controller runs: what changed in it takes effect without a restart.
//!
//! The file is looked at every few seconds (one `stat`), which also sees a mounted ConfigMap whose links were exchanged. What must hold: a file that cannot be used
//! changes nothing, and is told of once, not at every look; a file that is seen half-written is not told of at all.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::CloudConfig;
use crate::connect::{ConnectError, Connection, Options, choose_credentials};
use crate::credentials::Credentials;
use crate::endpoint::Endpoints;
use crate::metadata::Metadata;

/// Between two looks.
const LOOKS: Duration = Duration::from_secs(2);

/// What a changed file led to.
#[derive(Debug)]
pub enum Reload {
    /// It was taken.
    Taken {
        /// The tables that it names.
        route_table_ids: Vec<String>,
        /// Whether other credentials are used now.
        credentials: bool,
        /// Keys that changed and take effect with a restart only.
        after_restart: Vec<&'static str>,
        /// What in it has no effect, as sentences.
        remarks: Vec<String>,
    },
    /// It cannot be used; everything stays as it was.
    Broken(ConnectError),
}

/// Looks at the file.
#[derive(Debug)]
pub struct ConfigWatch {
    path: PathBuf,
    options: Options,
    endpoints: Endpoints,
    metadata: Metadata,
    credentials: Credentials,
    config: CloudConfig,
    seen: Option<Stamp>,
}

/// What tells a file from a later one without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl ConfigWatch {
    /// A watch of the file that `connection` was made with; `None` when there is no file.
    ///
    /// # Errors
    /// The file or the endpoints can no longer be read.
    pub fn new(options: &Options, connection: &Connection) -> Result<Option<Self>, ConnectError> {
        let Some(path) = options.cloud_config.clone() else { return Ok(None) };
        let seen = stamp(&path);
        Ok(Some(Self {
            config: options.read_config()?,
            endpoints: Endpoints::of(&connection.region, options.network, &options.environment)?,
            metadata: connection.metadata.clone(),
            credentials: connection.credentials.clone(),
            options: options.clone(),
            path,
            seen,
        }))
    }

    /// Waits until the file changed, and takes it. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Reload {
        let mut broken: Option<Option<Stamp>> = None;
        loop {
            tokio::time::sleep(LOOKS).await;
            let now = stamp(&self.path);
            if now == self.seen {
                broken = None;
                continue;
            }
            match self.take() {
                Ok(taken) => {
                    self.seen = now;
                    return taken;
                }
                // Seen for the second time as it is: nobody is about to finish it.
                Err(error) if broken == Some(now) => {
                    self.seen = now;
                    return Reload::Broken(error);
                }
                Err(_) => broken = Some(now),
            }
        }
    }

    fn take(&mut self) -> Result<Reload, ConnectError> {
        let config = self.options.read_config()?;
        let chosen = choose_credentials(&config, &self.options.environment, &self.metadata, &self.endpoints)?;
        let credentials = self.credentials.exchange(&chosen);
        let after_restart = [
            ("region", config.region != self.config.region && self.options.region.is_none()),
            ("vpcid", config.vpc_id != self.config.vpc_id && self.options.vpc_id.is_none()),
            ("clusterID", config.cluster_id != self.config.cluster_id),
        ];
        let taken = Reload::Taken {
            route_table_ids: config.route_table_ids.clone(),
            credentials,
            after_restart: after_restart.into_iter().filter_map(|(key, is)| is.then_some(key)).collect(),
            remarks: config.remarks.clone(),
        };
        self.config = config;
        Ok(taken)
    }
}

/// The file's stamp; `None` while there is none.
fn stamp(path: &std::path::Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: file.dev(),
        inode: file.ino(),
        size: file.size(),
        modified: (file.mtime(), file.mtime_nsec()),
        changed: (file.ctime(), file.ctime_nsec()),
    })
}
