//! The route, node and node-IPAM controller: composition root.

mod drop_in;
mod flags;
mod run;

use std::process::ExitCode;

use clap::Parser;
use loden_telemetry::{LogFormat, LogOptions, explain, init_log};

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next();
    let (kept, passed_over) = drop_in::part(arguments);
    let flags = flags::Flags::parse_from(program.into_iter().chain(kept));
    let log = LogOptions {
        verbosity: flags.v,
        format: match flags.logging_format {
            flags::LogFormat::Text => LogFormat::Text,
            flags::LogFormat::Json => LogFormat::Json,
        },
        filter: std::env::var("RUST_LOG").ok(),
    };
    let result = init_log(&log).map_err(anyhow::Error::from).and_then(|()| {
        for drop_in::PassedOver { flag, why } in passed_over {
            tracing::warn!(flag, "passed over: {why}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run::run(flags))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
