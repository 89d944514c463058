//! The tests by tier, cheapest first, so that a mistake is told early.

use crate::command::{self, Cargo, require_root, step};
use crate::{debian, fuzz, layers, mutations, tools, vm};
use anyhow::Result;
use clap::ValueEnum;

/// The version whose verdict CI goes by; another would judge other things.
const CARGO_DENY: &str = "0.20.2";

/// How long each fuzz target runs.
const FUZZ_SECONDS: u32 = 45;

/// How many seeded histories the route controller goes through.
const HISTORIES: u32 = 10_000;

/// A tier of tests; `ARCHITECTURE.md` says what belongs in which.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Formatting, layers, lints, dependencies.
    Checks,
    /// No root, no network but loopback.
    Unit,
    /// Ten thousand seeded histories of the route controller, and planted defects that they must find.
    Simulation,
    /// The emulators under real clients: the vendor's SDKs and kubectl, fetched and kept beside the build.
    Peers,
    /// Every fuzz target for a while, in namespaces where what it does harms nobody.
    Fuzz,
    /// The real kernel, as root, in network namespaces of the tests' own.
    Kernel,
    /// Debian's podman and containerd call the plugins, as root, each test on a machine of its own.
    Runtimes,
    /// Whole clusters in network namespaces.
    Lab,
    /// Chosen tests inside a Debian kernel under qemu, for what this machine's kernel may lack.
    Vm,
}

/// Runs `tiers`, or every tier when none is named.
pub(crate) fn run(tiers: &[Tier]) -> Result<()> {
    let wanted = if tiers.is_empty() { Tier::value_variants() } else { tiers };
    if wanted.iter().any(|tier| matches!(tier, Tier::Kernel | Tier::Runtimes | Tier::Lab)) {
        require_root(
            "the kernel, runtimes and lab tiers make network namespaces (`cargo xtask test checks unit` does without)",
        )?;
        debian::install(debian::TESTS)?;
    }
    for tier in Tier::value_variants().iter().filter(|tier| wanted.contains(tier)) {
        match tier {
            Tier::Checks => checks()?,
            Tier::Unit => unit()?,
            Tier::Simulation => simulation()?,
            Tier::Peers => peers()?,
            Tier::Fuzz => fuzz::run(FUZZ_SECONDS, &[])?,
            Tier::Kernel => targets("kernel", "kernel_*")?,
            Tier::Runtimes => {
                debian::install(debian::RUNTIMES)?;
                targets("runtimes", "runtimes")?;
            }
            Tier::Lab => targets("lab", "lab_*")?,
            Tier::Vm => vm::run()?,
        }
    }
    Ok(())
}

fn checks() -> Result<()> {
    step("checks: formatting");
    Cargo::new("fmt").args(["--all", "--check"]).run()?;
    step("checks: layers");
    layers::check()?;
    step("checks: lints");
    Cargo::new("clippy").args(["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]).run()?;
    step("checks: documentation");
    Cargo::new("doc")
        .args(["--workspace", "--no-deps", "--locked", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()?;
    step("checks: dependencies");
    deny()
}

/// `cargo deny`, built once into the target directory where the machine has none of this version.
fn deny() -> Result<()> {
    let tools = tools::directory()?;
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        step(&format!("building cargo-deny {CARGO_DENY}, once"));
        Cargo::new("install")
            .args(["cargo-deny", "--locked", "--quiet", "--version", CARGO_DENY, "--root", tools.as_str()])
            .run()?;
    }
    command::run(program.as_str(), &["--log-level", "error", "check", "bans", "licenses", "sources"])?;
    step("checks: fuzz targets");
    fuzz::check(&program)
}

fn unit() -> Result<()> {
    step("unit tests");
    // The dice are the same in every run, so that a red one judges the change; `PROPTEST_RNG_SEED` throws others.
    let seed = std::env::var("PROPTEST_RNG_SEED").unwrap_or_else(|_| "77".to_owned());
    Cargo::new("test")
        .args(["--workspace", "--locked", "--lib", "--bins", "--test", "unit_*"])
        .env("PROPTEST_RNG_SEED", seed)
        .run()
}

fn simulation() -> Result<()> {
    step(&format!("simulation: {HISTORIES} histories of the route controller"));
    Cargo::new("test")
        .args(["--package", "loden-routes", "--locked", "--lib", "histories_end_well", "--", "--nocapture"])
        .env("LODEN_SEEDS", HISTORIES.to_string())
        .run()?;
    mutations::run(&[])
}

fn peers() -> Result<()> {
    let tools = tools::peers()?;
    step("peer tests");
    Cargo::new("test").args(["--workspace", "--locked", "--test", "peer_*"]).env("LODEN_TOOLS", tools).run()
}

fn targets(tier: &str, pattern: &str) -> Result<()> {
    // The tests run the real binaries, wherever in the workspace these come from.
    step(&format!("{tier} tests: building the binaries"));
    Cargo::new("build").args(["--workspace", "--locked", "--bins"]).run()?;
    step(&format!("{tier} tests"));
    Cargo::new("test").args(["--workspace", "--locked", "--test", pattern]).run()
}
