//! The CNI plugins: what each does to the kernel and to the disk.
//!
//! [`run`] is a whole plugin: environment and standard input in, one [`Outcome`] out. Which plugin runs is decided by the name the program
//! was called by, so that one binary serves under many names.
//!
//! Invariants: nothing but the result or the error object goes to standard output. A failed ADD leaves nothing behind. DEL succeeds when
//! things are gone already and repeats until everything is. If these were broken, a node would leak addresses until no pod starts.

mod bandwidth;
mod bridge;
mod build_id;
mod call;
mod delegate;
mod firewall;
mod flannel;
pub mod host_local;
pub mod leftovers;
mod loopback;
mod masquerade;
mod netns;
mod pair;
mod portmap;
mod ptp;
mod spoof;
mod static_addresses;
mod tuning;

use std::io::Read;

pub use loden_cni_protocol::error::Error;
use loden_cni_protocol::error::code;
use loden_cni_protocol::{CniResult, Command, Config, Environment, version};

use crate::call::Call;

/// One plugin: its name, and what it does for each command.
#[derive(Clone, Copy, Debug)]
struct Plugin {
    name: &'static str,
    /// The versions that it speaks.
    versions: &'static [&'static str],
    add: fn(&Call) -> Result<CniResult, Error>,
    del: Act,
    check: Act,
    status: Act,
    gc: Act,
}

/// A command without a result.
type Act = fn(&Call) -> Result<(), Error>;

/// Every plugin, by name.
const PLUGINS: [Plugin; 10] = [
    bandwidth::PLUGIN,
    bridge::PLUGIN,
    firewall::PLUGIN,
    flannel::PLUGIN,
    host_local::PLUGIN,
    loopback::PLUGIN,
    portmap::PLUGIN,
    ptp::PLUGIN,
    static_addresses::PLUGIN,
    tuning::PLUGIN,
];

/// The names of the plugins in this build.
pub fn names() -> Vec<&'static str> {
    PLUGINS.iter().map(|plugin| plugin.name).collect()
}

/// What a plugin has to say in the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For standard output: a result, an error object, or nothing.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
    /// Whether the exit code is zero.
    pub success: bool,
}

impl Outcome {
    fn said(stdout: String) -> Self {
        Self { stdout, success: true, ..Self::default() }
    }

    fn failed(error: &Error) -> Self {
        Self { stdout: error.render(), ..Self::default() }
    }
}

/// Runs the plugin called `name`. `lookup` gives a variable of the environment, empty when unset; `stdin` is read to its end unless the
/// command is VERSION.
pub fn run(name: &str, lookup: impl Fn(&str) -> String, stdin: impl Read) -> Outcome {
    let plugin = match find(name) {
        Ok(plugin) => plugin,
        Err(error) => return Outcome::failed(&error),
    };
    if lookup("CNI_COMMAND").is_empty() {
        return Outcome { stderr: about(plugin), success: true, ..Outcome::default() };
    }
    match run_command(plugin, lookup, stdin) {
        Ok(stdout) => Outcome::said(stdout),
        Err(error) => Outcome::failed(&error),
    }
}

fn find(name: &str) -> Result<&'static Plugin, Error> {
    PLUGINS.iter().find(|plugin| plugin.name == name).ok_or_else(|| {
        Error::new(
            code::COMMAND_NOT_BUILT,
            format!(
                "plugin {name:?} is not in this build, which has {}; install another plugin under this name",
                names().join(", ")
            ),
        )
    })
}

/// What a person sees who calls a plugin without `CNI_COMMAND`.
fn about(plugin: &Plugin) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let title = if plugin.name == "flannel" {
        format!("CNI Plugin flannel version {version} (linux/{}) loden", std::env::consts::ARCH)
    } else {
        format!("CNI {} plugin version {version} loden", plugin.name)
    };
    format!("{title}\nCNI protocol versions supported: {}\n", plugin.versions.join(", "))
}

fn run_command(
    plugin: &Plugin,
    lookup: impl Fn(&str) -> String,
    mut stdin: impl Read,
) -> Result<String, Error> {
    let environment = Environment::read(lookup)?;
    if environment.command == Ok(Command::Version) {
        return Ok(version::report(plugin.versions));
    }
    let mut text = Vec::new();
    stdin
        .read_to_end(&mut text)
        .map_err(|error| Error::new(code::IO_FAILURE, format!("error reading from stdin: {error}")))?;
    let config = Config::parse(&text)?;
    let command = environment.command()?;
    let call = Call { command, environment, text, config };
    check_version(plugin, &call)?;
    execute(plugin, call)
}

fn check_version(plugin: &Plugin, call: &Call) -> Result<(), Error> {
    let version = &call.config.version;
    match call.command {
        Command::Check => version::check_allows(version, plugin.versions, "CHECK", "0.4.0"),
        Command::Gc => version::check_allows(version, plugin.versions, "GC", "1.1.0"),
        Command::Status => version::check_allows(version, plugin.versions, "STATUS", "1.1.0"),
        Command::Add | Command::Del | Command::Version => version::check_supported(version, plugin.versions),
    }
}

/// Runs a command from outside. A container whose namespace is the plugin's own is refused before anything is touched: ADD would rename and
/// DEL would remove links of the host. DEL still gives the address back.
fn execute(plugin: &Plugin, mut call: Call) -> Result<String, Error> {
    let own = matches!(call.command, Command::Add | Command::Del)
        && !call.environment.netns_override
        && netns::is_own(&call.environment.netns);
    if own {
        if call.command == Command::Del {
            call.environment.netns.clear();
            perform(plugin, &call)?;
        }
        return Err(Error::new(
            code::INVALID_NETNS,
            "plugin's netns and netns from CNI_NETNS should not be the same",
        ));
    }
    match perform(plugin, &call)? {
        Some(result) => result.render(&call.config.version),
        None => Ok(String::new()),
    }
}

/// Runs a command, from outside or as a delegate in this process.
fn perform(plugin: &Plugin, call: &Call) -> Result<Option<CniResult>, Error> {
    match call.command {
        Command::Add => return (plugin.add)(call).map(Some),
        Command::Del => (plugin.del)(call)?,
        Command::Check => (plugin.check)(call)?,
        Command::Status => (plugin.status)(call)?,
        Command::Gc => (plugin.gc)(call)?,
        Command::Version => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_with(name: &str, variables: &[(&str, &str)], stdin: &str) -> Outcome {
        let lookup = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
                .unwrap_or_default()
        };
        run(name, lookup, stdin.as_bytes())
    }

    #[test]
    fn every_plugin_tells_its_versions() {
        for name in names() {
            let outcome = run_with(name, &[("CNI_COMMAND", "VERSION")], "not read");
            assert!(outcome.success);
            let versions = find(name).unwrap().versions;
            assert_eq!(outcome.stdout, version::report(versions));
            let outcome = run_with(name, &[], "");
            assert!(outcome.success && outcome.stdout.is_empty());
            assert!(outcome.stderr.ends_with(&format!("supported: {}\n", versions.join(", "))));
            assert!(version::SUPPORTED.ends_with(versions), "{name}");
        }
    }

    #[test]
    fn what_is_not_built_is_refused() {
        let outcome = run_with("dhcp", &[("CNI_COMMAND", "VERSION")], "");
        assert!(!outcome.success && outcome.stdout.contains(&names().join(", ")));
        let gc = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/nowhere")];
        let outcome = run_with("host-local", &gc, r#"{"name":"n","cniVersion":"1.1.0"}"#);
        assert!(!outcome.success && outcome.stdout.contains("nothing was removed"));
        let outcome = run_with("host-local", &gc, r#"{"name":"n","cniVersion":"1.0.0"}"#);
        assert!(outcome.stdout.contains("config version does not allow GC"));
    }

    #[test]
    fn unknown_commands_are_refused_after_the_configuration_was_read() {
        let outcome = run_with("bridge", &[("CNI_COMMAND", "JUMP")], r#"{"name":"n"}"#);
        assert!(outcome.stdout.contains("unknown CNI_COMMAND: JUMP"));
        let outcome = run_with("bridge", &[("CNI_COMMAND", "JUMP")], "");
        assert!(outcome.stdout.contains("\"code\": 6"));
    }
}
