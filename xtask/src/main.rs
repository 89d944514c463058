//! The repository's own commands, run as `cargo xtask <command>`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line speaks to people")]

mod bench;
mod command;
mod debian;
mod dist;
mod fuzz;
mod layers;
mod mutations;
mod test;
mod tools;
mod vm;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use command::{Cargo, step};
use std::process::ExitCode;

/// Loden's own commands: see it run, test it, check it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a whole cluster up on an emulated VPC, check that packets cross, draw it, take it down.
    ///
    /// Needs root: the cluster is made of network namespaces. Installs the Debian packages it needs when run as root.
    Demo {
        /// Given to `loden lab demo` as they are, e.g. `--nodes 5`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the tests: every tier, or the ones named.
    Test {
        /// Which tiers; all of them when none is named.
        tiers: Vec<test::Tier>,
    },
    /// Run chosen tests inside a Debian kernel under qemu (emulated, at most a few minutes), for what this machine's kernel may lack.
    ///
    /// The kernel is fetched once and kept beside the build; nothing but qemu is installed. The console's log is `<target>/vm/console.log`.
    VmTest,
    /// Build the binaries as they are installed, without shared libraries, into the target folder's `dist`.
    Dist,
    /// Measure Loden beside its peers and the kernel's floor. Needs root.
    Bench(bench::BenchArgs),
    /// Measure the kernel's floor alone. Needs root.
    Floor {
        /// Few runs: to see that it works, not to believe the figures
        #[arg(long)]
        quick: bool,
    },
    /// Give the CNI plugins and the cloud emulator input that nobody should send, and see that they keep their promises. Builds cargo-fuzz once.
    Fuzz {
        /// How long each target runs, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Which targets; all of them when none is named.
        targets: Vec<String>,
    },
    /// Write `docs/cni-coverage.md`: which cases of the CNI suite cover which configuration key, by command.
    CniCoverage,
    /// Plant known defects in the route controller, one by one, and see that the simulation finds each.
    Mutations {
        /// Only these; all when none is named.
        names: Vec<String>,
    },
    /// Check that every crate depends only on layers below its own.
    Layers,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo { arguments } => demo(&arguments),
        Command::Test { tiers } => test::run(&tiers),
        Command::VmTest => vm::run(),
        Command::Dist => dist::run(),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Floor { quick } => bench::floor(quick),
        Command::Fuzz { seconds, targets } => fuzz::run(seconds, &targets),
        Command::CniCoverage => cni_coverage(),
        Command::Layers => layers::check(),
        Command::Mutations { names } => mutations::run(&names),
    }
}

/// Written before it is judged, so that an empty cell can be looked at.
fn cni_coverage() -> Result<()> {
    let table =
        Cargo::new("run").args(["--quiet", "--package", "loden-cni-suite", "--", "coverage"]).output()?;
    let path = layers::workspace_root()?.join("docs/cni-coverage.md");
    std::fs::write(&path, table).with_context(|| format!("cannot write {path}"))?;
    Cargo::new("test").args(["--quiet", "--package", "loden-cni-suite", "--test", "unit_coverage"]).run()
}

fn demo(arguments: &[String]) -> Result<()> {
    command::require_root("the demo makes network namespaces")?;
    debian::install(debian::LAB)?;
    step("building flanneld, loden-cni, loden-controller and loden");
    Cargo::new("build").args(["--workspace", "--bins", "--exclude", "xtask"]).run()?;
    step("loden lab demo");
    let loden = layers::target_directory()?.join("debug/loden");
    let mut words = vec!["lab".to_owned(), "demo".to_owned()];
    words.extend_from_slice(arguments);
    command::run(loden.as_str(), &words)
}
