//! Logs and health: what a process tells the people who run it.
//!
//! Log levels have meanings. ERROR: the process cannot do its work. WARN: somebody should look, soon. INFO: a state
//! changed that an operator would write down. DEBUG and TRACE: for the one who searches a fault. Values are fields, not parts
//! of sentences.

mod explain;
mod health;
mod log;
mod notify;

pub use explain::explain;
pub use health::{BindError, HealthServer, Page, Readiness};
pub use log::{LogError, LogFormat, LogOptions, init_log};
pub use notify::notify_ready;
