//! An emulator of the Alibaba Cloud API: VPC routes, ECS, and the instance metadata service.
//!
//! For everybody who has no Alibaba Cloud account at hand. It speaks the real protocol, so any client of the vendor's can talk to
//! it: RPC calls with verified signatures of version 1 and 3, asynchronous route entries, quotas, the vendor's error codes, the
//! metadata service with its tokens and rotating role credentials.
//!
//! - [`topology`]: what is in the cloud, as a value and as JSON.
//! - [`model`]: the cloud as a state machine without I/O.
//! - [`Emulator`] and [`Handle`]: the model with a clock and listeners.
//! - [`snapshot`]: the cloud as a router that forwards its packets sees it.
//! - [`control`]: the same from another process.
//! - [`mod@run`]: a stand-alone emulator.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use loden_sim_cloud::{Emulator, topology::{Settings, Topology}};
//!
//! let emulator = Emulator::new(&Topology::example(), Settings::default())?;
//! let handle = emulator.handle();
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8790").await?;
//! tokio::spawn(async move { handle.serve_api(listener).await });
//! # Ok(())
//! # }
//! ```

pub mod control;
mod emulator;
mod http;
mod keep;
pub mod model;
pub mod run;
pub mod settings;
pub mod snapshot;
pub mod topology;

pub use emulator::{Emulator, Handle};
pub use keep::KeepError;
pub use model::{ACTIONS, AdminError, Fault, FaultKind, StateError};
pub use run::run;
pub use snapshot::Snapshot;
pub use topology::{Config, Settings, Topology};
