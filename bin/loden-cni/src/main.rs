//! The CNI plugins in one binary, chosen by the name it is called by.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

/// The name of the binary itself, under which it explains itself.
const OWN_NAME: &str = "loden-cni";

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    if name == OWN_NAME {
        return help();
    }
    let lookup = |name: &str| -> String {
        std::env::var_os(name)
            .map(|value: OsString| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    };
    let outcome = loden_cni_plugins::run(&name, lookup, io::stdin().lock());
    let told = io::stderr().write_all(outcome.stderr.as_bytes());
    let printed = io::stdout().write_all(outcome.stdout.as_bytes()).and_then(|()| io::stdout().flush());
    // Without the result the runtime does not know the container's addresses, so a lost one is a failure.
    if outcome.success && printed.and(told).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn help() -> ExitCode {
    let names = loden_cni_plugins::names().join(" ");
    let text = format!(
        "{OWN_NAME} {version}: the CNI plugins of Loden in one binary, chosen by the name it is called by.\n\
         \n\
         Plugins in this build: {names}\n\
         Commands: ADD, DEL, CHECK, STATUS, GC, VERSION.\n\
         \n\
         Install it as hard links, symbolic links or copies; a plugin that calls another one does so in the same process:\n\
         \n\
         \x20 install -m 755 {OWN_NAME} /opt/cni/bin/{OWN_NAME}\n\
         \x20 for name in {names}; do ln -f /opt/cni/bin/{OWN_NAME} /opt/cni/bin/$name; done\n\
         \n\
         Container runtimes call it with CNI_COMMAND and a configuration on standard input, see https://www.cni.dev/docs/spec/.\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    if io::stdout().write_all(text.as_bytes()).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
