//! The node daemon, a drop-in for flannel-io/flannel's flanneld.

mod config;
mod flags;
mod go_flags;
mod run;

use std::io::Write as _;
use std::process::ExitCode;

use go_flags::{Parsed, Values};

const FAILED: u8 = 1;
const WRONG_FLAGS: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let values = match go_flags::parse(&flags::all(), &args, |name| std::env::var(name).ok()) {
        Ok(Parsed::Values(values)) => values,
        Ok(Parsed::Help) => {
            let _reader_gone = std::io::stdout().write_all(flags::usage().as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            say(&format!("flanneld: {error}\nrun flanneld --help for the flags there are\n"));
            return ExitCode::from(WRONG_FLAGS);
        }
    };
    if values.flag("version") {
        say(&format!("v{} (loden)\n", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    match start(&values) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!("{}", loden_telemetry::explain(error.as_ref()));
            } else {
                say(&format!("flanneld: {}\n", loden_telemetry::explain(error.as_ref())));
            }
            ExitCode::from(FAILED)
        }
    }
}

fn start(values: &Values) -> anyhow::Result<()> {
    loden_telemetry::init_log(&config::log_options(values)?)?;
    for ignored in &values.ignored {
        tracing::warn!("environment variable passed over: {ignored}");
    }
    let config = config::Config::new(values)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "flanneld starts");
    tracing::debug!(?config, "configuration");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(config))
}

/// Standard error as it is, for what must be readable before there is a log.
fn say(text: &str) {
    let _reader_gone = std::io::stderr().write_all(text.as_bytes());
}
