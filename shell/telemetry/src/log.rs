//! The log on standard error.

use std::io::IsTerminal as _;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One line per event, in colour on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What to log and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// klog's `-v`: 0 logs INFO and above, 1 to 4 DEBUG of our own code, 5 and more TRACE of our own and DEBUG of the
    /// libraries, 10 and more everything.
    pub verbosity: i32,
    /// How a line looks.
    pub format: LogFormat,
    /// Per-module levels such as `info,loden_kube=trace`, which replace the verbosity.
    pub filter: Option<String>,
}

/// The log cannot be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("log filter {filter:?}: {cause}; write levels such as `info` or `info,loden_kube=debug`")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong.
        cause: tracing_subscriber::filter::ParseError,
    },
    /// The process has a log already.
    #[error("the log is set up twice in one process: {0}")]
    Twice(Box<dyn std::error::Error + Send + Sync>),
}

/// Starts logging to standard error, for the rest of the process.
///
/// # Errors
/// When the filter cannot be read, or the log was started before.
pub fn init_log(options: &LogOptions) -> Result<(), LogError> {
    let colour =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = subscriber(options, colour, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|error| LogError::Twice(error.into()))
}

fn subscriber<W>(
    options: &LogOptions,
    colour: bool,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = match &options.filter {
        Some(text) => {
            EnvFilter::try_new(text).map_err(|cause| LogError::Filter { filter: text.clone(), cause })?
        }
        None => EnvFilter::new(levels(options.verbosity)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colour)
        .with_target(options.verbosity > 0);
    Ok(match options.format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

/// Our crates all begin with one of two names; the HTTP and TLS libraries beneath are loud and rarely the question. The
/// Kubernetes client warns of every watch that ends, which each does now and then; what matters of it we say ourselves.
fn levels(verbosity: i32) -> &'static str {
    match verbosity {
        ..=0 => "warn,kube_client=error,loden=info,flanneld=info",
        1..=4 => "info,loden=debug,flanneld=debug",
        5..=9 => "debug,loden=trace,flanneld=trace",
        10.. => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::{LogFormat, LogOptions, subscriber};
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(options: &LogOptions, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = subscriber(options, false, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, events);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn events() {
        tracing::info!(target: "loden_node", node = "n1", "info of ours");
        tracing::debug!(target: "flanneld", "debug of ours");
        tracing::info!(target: "hyper", "info of a library");
        tracing::trace!(target: "hyper", "trace of a library");
        tracing::warn!(target: "kube_client::client", "eof in poll");
    }

    #[test]
    fn verbosity_opens_our_own_code_first() {
        for (verbosity, lines) in [(0, 1), (1, 4), (4, 4), (5, 4), (10, 5)] {
            let text = logged(&LogOptions { verbosity, ..Default::default() }, events);
            assert_eq!(text.lines().count(), lines, "-v {verbosity}:\n{text}");
        }
    }

    #[test]
    fn text_has_no_colour_off_a_terminal_and_json_is_one_object_per_line() {
        let text = logged(&LogOptions::default(), events);
        assert!(!text.contains('\u{1b}') && text.contains("node=\"n1\""), "{text}");
        let json = logged(&LogOptions { format: LogFormat::Json, ..Default::default() }, events);
        assert!(
            json.starts_with('{') && json.contains("\"node\":\"n1\"") && json.trim_end().ends_with('}'),
            "{json}"
        );
    }

    #[test]
    fn a_broken_filter_is_named() {
        let options = LogOptions { filter: Some("loden=loud".to_owned()), ..Default::default() };
        let Err(error) = subscriber(&options, false, std::io::sink) else { panic!("accepted") };
        assert!(error.to_string().contains("loden=loud"), "{error}");
    }
}
