//! The route, node and node-IPAM controller: composition root.

mod flags;
mod run;

use std::process::ExitCode;

use clap::Parser;
use loden_telemetry::{LogFormat, LogOptions, init_log};

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    let log = LogOptions {
        verbosity: flags.v,
        format: match flags.logging_format {
            flags::LogFormat::Text => LogFormat::Text,
            flags::LogFormat::Json => LogFormat::Json,
        },
        filter: std::env::var("RUST_LOG").ok(),
    };
    let result = init_log(&log).map_err(anyhow::Error::from).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(run::run(flags))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error with its causes, each said once: many errors carry their cause's text already.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}
