//! A stand-alone emulator: listeners, and the text that tells a person how to use it.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::emulator::{Emulator, Handle};
use crate::keep::{KeepError, Keeper};
use crate::model::AdminError;
use crate::settings::SettingsError;
use crate::topology::Config;

/// How long changes are gathered before the state is written.
const GATHER: Duration = Duration::from_millis(200);

/// Why a stand-alone emulator does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configured contents contradict themselves.
    #[error("the emulator's topology is refused: {0}")]
    Topology(#[from] AdminError),
    /// The file with the state cannot be used.
    #[error(transparent)]
    State(#[from] KeepError),
    /// The configured behaviour is none.
    #[error("the emulator's settings are refused: {0}")]
    Settings(#[from] SettingsError),
    /// The metadata service is to speak for an instance that is not there.
    #[error("settings.metadataInstance names {0}, which is not among the topology's instances")]
    NoSuchInstance(String),
    /// An address cannot be listened on.
    #[error(
        "cannot listen on {address} for {purpose}: {cause}; choose another address or stop whoever has it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// Why.
        cause: std::io::Error,
    },
    /// A listener failed while it ran.
    #[error("the emulator stopped: {0}")]
    Serve(std::io::Error),
}

/// A stand-alone emulator with its listeners open but nobody served yet.
#[derive(Debug)]
pub struct Bound {
    handle: Handle,
    keeper: Option<Keeper>,
    api: TcpListener,
    metadata: TcpListener,
    control: TcpListener,
    endpoints: Endpoints,
}

/// Where a stand-alone emulator listens, and what to call it with. Prints as instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints {
    /// VPC and ECS API.
    pub api: SocketAddr,
    /// Metadata service.
    pub metadata: SocketAddr,
    /// Control path.
    pub control: SocketAddr,
    /// Region.
    pub region: String,
    /// ID and secret of the first access key.
    pub access_key: Option<(String, String)>,
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Alibaba Cloud emulator: VPC and ECS API, region {}", self.region)?;
        writeln!(f, "export VPC_ENDPOINT={} ECS_ENDPOINT={}", self.api, self.api)?;
        writeln!(f, "export ALICLOUD_CLIENT_SCHEME=HTTP")?;
        writeln!(f, "export METADATA_ENDPOINT=http://{}", self.metadata)?;
        if let Some((id, secret)) = &self.access_key {
            writeln!(f, "export ACCESS_KEY_ID={id} ACCESS_KEY_SECRET={secret}")?;
        }
        write!(f, "# control: http://{}/snapshot", self.control)
    }
}

/// Opens the listeners of a stand-alone emulator.
///
/// # Errors
/// The contents are refused, or an address cannot be listened on. Nothing is left open then.
pub async fn bind(config: Config) -> Result<Bound, RunError> {
    let keeper = config.state.clone().map(Keeper::new);
    let kept = keeper.as_ref().map(Keeper::read).transpose()?.flatten();
    let emulator = match kept {
        Some(emulator) => emulator,
        None => make(&config)?,
    };
    let handle = emulator.handle();
    for fault in config.faults {
        handle.inject(fault);
    }
    if let Some(keeper) = &keeper {
        // A place that cannot be written is found out now and not when there is something to lose.
        keeper.write(&handle)?;
    }
    let (api, api_address) = listen(config.api, "the API").await?;
    let (metadata, metadata_address) = listen(config.metadata, "the metadata service").await?;
    let (control, control_address) = listen(config.control, "the control path").await?;
    let endpoints = Endpoints {
        api: api_address,
        metadata: metadata_address,
        control: control_address,
        region: handle.region(),
        access_key: handle.access_key(),
    };
    Ok(Bound { handle, keeper, api, metadata, control, endpoints })
}

/// An emulator with the configured contents.
fn make(config: &Config) -> Result<Emulator, RunError> {
    let instances = &config.topology.instances;
    let mut settings = config.settings.clone();
    settings.check()?;
    match &settings.metadata_instance {
        Some(id) if !instances.iter().any(|instance| instance.id == *id) => {
            return Err(RunError::NoSuchInstance(id.clone()));
        }
        None if config.metadata.ip().is_loopback() => {
            settings.metadata_instance = instances.first().map(|instance| instance.id.clone());
        }
        _ => {}
    }
    Ok(Emulator::new(&config.topology, settings)?)
}

async fn listen(address: SocketAddr, purpose: &'static str) -> Result<(TcpListener, SocketAddr), RunError> {
    let refused = |cause| RunError::Listen { address, purpose, cause };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

impl Bound {
    /// Where it listens; ports that were asked for as 0 are the real ones here.
    #[must_use]
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// A handle to the emulator.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until the future is dropped. A state that is kept is written whenever it changed, and when the future is dropped.
    ///
    /// # Errors
    /// A listener failed, or the state cannot be written.
    pub async fn serve(self) -> Result<(), RunError> {
        let Self { handle, keeper, api, metadata, control, .. } = self;
        let last = keeper.map(|keeper| Last { keeper, handle: handle.clone() });
        let serving = async {
            tokio::try_join!(
                handle.serve_api(api),
                handle.serve_metadata(metadata),
                handle.serve_control(control)
            )
            .map(drop)
            .map_err(RunError::Serve)
        };
        let Some(last) = last else { return serving.await };
        tokio::select! {
            served = serving => served,
            failed = last.follow() => Err(RunError::State(failed)),
        }
    }
}

/// Writes the state of an emulator whenever it changes, and when it goes.
struct Last {
    keeper: Keeper,
    handle: Handle,
}

impl Last {
    async fn follow(&self) -> KeepError {
        let mut changes = self.handle.subscribe();
        loop {
            // The handle keeps the sender, so this ends with a change.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(GATHER).await;
            changes.mark_unchanged();
            if let Err(error) = self.keeper.write(&self.handle) {
                return error;
            }
        }
    }
}

impl Drop for Last {
    /// What is no change of contents (nonces, tokens, what is left of the faults) is kept now at the latest.
    fn drop(&mut self) {
        if let Err(error) = self.keeper.write(&self.handle) {
            tracing::warn!(%error, "the emulator's last state is not kept");
        }
    }
}

/// Runs a stand-alone emulator until the future is dropped. `announce` gets the endpoints as soon as they are open.
///
/// # Errors
/// See [`bind`] and [`Bound::serve`].
pub async fn run(config: Config, announce: impl FnOnce(&Endpoints)) -> Result<(), RunError> {
    let bound = bind(config).await?;
    announce(bound.endpoints());
    bound.serve().await
}
