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

/// The error with its causes, each said once: many errors carry their cause's text already. Of each cause only the first line is shown, since a
/// parser may append the lines around the fault, and those of a kubeconfig may hold a token.
fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        let cause = cause.lines().next().unwrap_or_default();
        if !text.contains(cause) {
            text.push_str(": ");
            text.push_str(cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn an_error_is_told_once_and_without_the_lines_around_a_fault() {
        let fault = anyhow!("unclosed quote\n --> 7:13\n7 | token: s3cret");
        let told = super::explain(&fault.context("cannot use kubeconfig x: unclosed quote; give another"));
        assert_eq!(told, "cannot use kubeconfig x: unclosed quote; give another");
        let told = super::explain(&anyhow!("no space left\nmore").context("cannot write"));
        assert_eq!(told, "cannot write: no space left");
    }
}
