//! Fuzzing, on the stable toolchain: cargo-fuzz builds the targets, two at a time run.

use crate::command::{self, Cargo, step};
use crate::{layers, tools};
use anyhow::{Context, Result, bail};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

/// The version that builds on the stable toolchain without a sanitizer.
const CARGO_FUZZ: &str = "0.13.2";
/// How many run at once.
const AT_ONCE: usize = 2;
/// Seconds that one input may take; a bridge port may take a few to come up.
const SECONDS_PER_INPUT: u32 = 20;

/// A target and the folders of the corpus that it starts from.
struct Target {
    name: &'static str,
    corpus: &'static [&'static str],
}

const TARGETS: [Target; 4] = [
    Target { name: "plugin", corpus: &["plugin"] },
    Target { name: "configuration", corpus: &["configuration", "plugin"] },
    Target { name: "files", corpus: &["files"] },
    Target { name: "cloud", corpus: &["cloud"] },
];

/// Checks that the fuzz targets, which are no part of the workspace, keep its rules.
///
/// # Errors
/// A check fails.
pub(crate) fn check(deny: &Utf8Path) -> Result<()> {
    Cargo::new("fmt").args(["--manifest-path", "fuzz/Cargo.toml", "--check"]).run()?;
    let words = ["--log-level", "error", "--manifest-path", "fuzz/Cargo.toml", "--config", "deny.toml"];
    command::run(deny.as_str(), &[&words[..], &["check", "bans", "licenses", "sources"]].concat())
}

/// Runs `wanted` targets, or all, for `seconds` each.
///
/// # Errors
/// A name is no target's, the targets do not build, or an input breaks a promise; that input is kept and named.
pub(crate) fn run(seconds: u32, wanted: &[String]) -> Result<()> {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    if let Some(unknown) = wanted.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no fuzz target {unknown:?}; there are {}", names.join(", "));
    }
    let directory = layers::target_directory()?.join("fuzz");
    let programs = build(&directory)?;
    let chosen =
        TARGETS.iter().filter(|target| wanted.is_empty() || wanted.iter().any(|name| name == target.name));
    let chosen: Vec<&Target> = chosen.collect();
    let mut failures = Vec::new();
    for pair in chosen.chunks(AT_ONCE) {
        let running: Vec<Running> = pair
            .iter()
            .map(|target| Running::start(target, &programs, &directory, seconds))
            .collect::<Result<_>>()?;
        for run in running {
            failures.extend(run.finish()?);
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

/// Builds every target; answers the folder of the programs.
fn build(directory: &Utf8Path) -> Result<Utf8PathBuf> {
    let tools = tools::directory()?;
    let program = tools.join("bin/cargo-fuzz");
    if !program.exists() {
        step(&format!("building cargo-fuzz {CARGO_FUZZ}, once"));
        Cargo::new("install")
            .args(["cargo-fuzz", "--locked", "--quiet", "--version", CARGO_FUZZ, "--root", tools.as_str()])
            .run()?;
    }
    step("fuzz: building the targets");
    let root = layers::workspace_root()?;
    let built = Command::new(&program)
        .args(["fuzz", "build", "--sanitizer", "none"])
        .current_dir(&root)
        .env("CARGO_TARGET_DIR", directory)
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    if !built.success() {
        bail!("`cargo fuzz build --sanitizer none` failed: {built}");
    }
    Ok(directory.join(format!("{}-unknown-linux-gnu/release", std::env::consts::ARCH)))
}

/// A target at work.
struct Running {
    name: &'static str,
    child: Child,
    log: Utf8PathBuf,
}

impl Running {
    fn start(target: &Target, programs: &Utf8Path, directory: &Utf8Path, seconds: u32) -> Result<Self> {
        let name = target.name;
        step(&format!("fuzz: {name} for {seconds} s"));
        let fresh = |what: &str| -> Result<Utf8PathBuf> {
            let folder = directory.join(what).join(name);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {folder}"))?;
            Ok(folder)
        };
        // What this machine has found before is built on; the seeds in the repository are only read.
        let (found, findings) = (fresh("corpus")?, fresh("findings")?);
        let corpus = layers::workspace_root()?.join("fuzz/corpus");
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {log}"))?;
        let child = Command::new(programs.join(name))
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-timeout={SECONDS_PER_INPUT}"))
            .args(["-print_final_stats=1", "-max_len=8192"])
            .arg(format!("-artifact_prefix={findings}/"))
            .arg(&found)
            .args(target.corpus.iter().map(|folder| corpus.join(folder)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start the fuzz target {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Waits for its end; says what it found.
    fn finish(mut self) -> Result<Option<String>> {
        let status = self.child.wait().context("cannot wait for a fuzz target")?;
        let log = fs::read(&self.log).with_context(|| format!("cannot read {}", self.log))?;
        let log = String::from_utf8_lossy(&log);
        let name = self.name;
        if status.success() {
            let figure = |key: &str| {
                let line = log.lines().rev().find_map(|line| line.strip_prefix(key));
                line.map(str::trim).unwrap_or("?").to_owned()
            };
            step(&format!(
                "fuzz: {name}: {} inputs, none breaks a promise",
                figure("stat::number_of_executed_units:")
            ));
            return Ok(None);
        }
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n");
        Ok(Some(format!("fuzz target {name}: {status}; its log is {}, which ends:\n{tail}", self.log)))
    }
}
