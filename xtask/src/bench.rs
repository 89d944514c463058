//! `cargo xtask bench` and `cargo xtask floor`: how fast Loden is, beside its peers and beside the kernel's own floor.
//!
//! A figure of a shared machine means something only next to others of the same minute. So whatever is compared runs in turns (A B C
//! A B C …), each line says median, minimum and 90th percentile with the processor time of the whole process tree, and the time that the hypervisor
//! took away is printed with them. Everything happens in network namespaces and a directory in memory that are gone afterwards.

mod addresses;
mod contest;
mod crowd;
mod idle;
mod kernel;
mod plugins;
mod pods;
mod ports;
mod process;
mod profile;
mod report;
mod scale;
mod stage;
mod statistics;

use crate::command::{require_root, step};
use crate::dist::{self, Binary};
use crate::{debian, layers};
use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::Utf8PathBuf;
use clap::{Args, ValueEnum};
use report::Row;
use std::fmt::Write as _;
use std::time::Duration;

/// Where the results are kept.
const PAGE: &str = "docs/benchmarks.md";

/// What to measure and how long.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Few runs and short watches: to see that it works, not to believe the figures
    #[arg(long)]
    quick: bool,
    /// Write the results into docs/benchmarks.md
    #[arg(long, conflicts_with = "quick")]
    record: bool,
    /// Only these parts
    #[arg(value_enum)]
    parts: Vec<Part>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What starting a process costs
    Start,
    /// A pod's ADD and DEL
    Pods,
    /// host-local among few and many reservations, and ptp
    Addresses,
    /// portmap, alone and among many containers' rules
    Ports,
    /// 250 pods, sixteen at a time
    Crowd,
    /// 5,000 VXLAN peers
    Peers,
    /// One nf_tables transaction
    Table,
    /// flanneld with nothing to do
    Idle,
    /// The binaries' sizes
    Size,
    /// System calls and instructions of a pod's ADD and DEL
    Profile,
    /// The route controller with 1,000 and 5,000 nodes
    Scale,
}

impl Part {
    /// Parts whose results have a place of their own on the page.
    const APART: [Self; 2] = [Self::Profile, Self::Scale];
}

/// What is measured, as built.
pub(crate) struct Programs {
    cni: Utf8PathBuf,
    floor: Utf8PathBuf,
    measured: Utf8PathBuf,
    all: Vec<Binary>,
}

impl Programs {
    /// Builds what these parts need; the daemons take minutes and only two parts look at them.
    fn build(parts: &[Part]) -> Result<Self> {
        let small = ["loden-cni", "loden-floor", "loden-measured"];
        let daemons = parts.is_empty() || parts.iter().any(|part| matches!(part, Part::Idle | Part::Size));
        let names = match daemons {
            true => [dist::PRODUCTION, &["loden-floor", "loden-measured"]].concat(),
            false => small.to_vec(),
        };
        let all = dist::build(&names)?;
        let [cni, floor, measured] = small.map(|name| found(&all, name));
        Ok(Self { cni: cni?, floor: floor?, measured: measured?, all })
    }

    /// A binary of which only some parts have need.
    pub(crate) fn path(&self, name: &str) -> Result<Utf8PathBuf> {
        found(&self.all, name)
    }
}

fn found(all: &[Binary], name: &str) -> Result<Utf8PathBuf> {
    let found = all.iter().find(|binary| binary.name == name);
    found.map(|binary| binary.path.clone()).with_context(|| format!("{name} was not built"))
}

/// Everything, ours beside peers and floor.
pub(crate) fn run(arguments: &BenchArgs) -> Result<()> {
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);
    let mut together = Part::value_variants().iter().filter(|part| !Part::APART.contains(part));
    let some = together.clone().any(|part| wanted(*part));
    ensure!(
        !arguments.record || !some || together.all(|part| wanted(*part)),
        "--record would leave the page with a part of its results; name no parts, or only those with tables of their own: profile, scale"
    );
    let mut told = Vec::new();
    if some {
        told.push(("results", measure(arguments, false)?));
    }
    if wanted(Part::Profile) {
        let programs = prepared(&[Part::Profile])?;
        step("counting: system calls and instructions");
        told.push(("profile", profile::measure(&programs)?));
    }
    let scale = if wanted(Part::Scale) { Some(measure_scale(arguments.quick)?) } else { None };
    if let Some(scale) = &scale {
        told.push(("scale", scale.text.clone()));
    }
    for (_, text) in &told {
        println!("{text}");
    }
    if let Some(scale) = &scale {
        scale.judge()?;
    }
    if arguments.record {
        let page = layers::workspace_root()?.join(PAGE);
        let mut text = std::fs::read_to_string(&page).with_context(|| format!("cannot read {page}"))?;
        for (name, part) in &told {
            text = report::replace_between_marks(&text, name, part)
                .with_context(|| format!("{page} has no marks for {name}"))?;
        }
        std::fs::write(&page, text).with_context(|| format!("cannot write {page}"))?;
        if let Some(scale) = &scale {
            scale.keep_picture()?;
        }
    }
    Ok(())
}

fn measure_scale(quick: bool) -> Result<scale::Outcome> {
    require_root("measuring makes network namespaces")?;
    let programs = scale::Programs::build()?;
    let before = stage::ticks()?;
    let mut outcome = scale::measure(&programs, quick)?;
    outcome.text.insert_str(0, &format!("{}\n", machine(stage::ticks()?.stolen_since(before))));
    Ok(outcome)
}

/// The floor alone: what the kernel's part of each operation costs on this machine.
pub(crate) fn floor(quick: bool) -> Result<()> {
    let parts = vec![Part::Pods, Part::Addresses, Part::Ports, Part::Peers, Part::Table];
    println!("{}", measure(&BenchArgs { quick, record: false, parts }, true)?);
    Ok(())
}

fn prepared(parts: &[Part]) -> Result<Programs> {
    require_root("measuring makes network namespaces")?;
    debian::install(debian::TESTS)?;
    debian::install(debian::BENCH)?;
    Programs::build(parts)
}

fn measure(arguments: &BenchArgs, floor_only: bool) -> Result<String> {
    let programs = prepared(&arguments.parts)?;
    let runs = if arguments.quick { 5 } else { 40 };
    let watch = Duration::from_secs(if arguments.quick { 6 } else { 60 });
    let wanted = |part| arguments.parts.is_empty() || arguments.parts.contains(&part);

    let before = stage::ticks()?;
    let mut rows: Vec<Row> = Vec::new();
    if wanted(Part::Start) {
        step("measuring: process start");
        rows.push(pods::measure_start(&programs, runs)?);
    }
    if wanted(Part::Pods) {
        step("measuring: pods");
        rows.extend(pods::measure(&programs, runs, floor_only)?);
    }
    if wanted(Part::Addresses) {
        step("measuring: reservations");
        rows.extend(addresses::measure_reservations(&programs, runs, floor_only)?);
        if !floor_only {
            step("measuring: ptp");
            rows.extend(addresses::measure_ptp(&programs, runs)?);
        }
    }
    if wanted(Part::Ports) {
        step("measuring: host ports");
        rows.extend(ports::measure(&programs, runs, floor_only)?);
    }
    if wanted(Part::Peers) {
        step("measuring: 5,000 vxlan peers");
        rows.extend(kernel::measure_peers(&programs, runs, floor_only)?);
    }
    if wanted(Part::Table) {
        step("measuring: nf_tables");
        rows.extend(kernel::measure_table(&programs, runs, floor_only)?);
    }
    let mut out = String::new();
    if !rows.is_empty() {
        let _infallible =
            writeln!(out, "{}\n{}", machine(stage::ticks()?.stolen_since(before)), report::table(&rows));
    }
    if wanted(Part::Crowd) {
        step("measuring: 250 pods at once");
        let before = stage::ticks()?;
        let table = crowd::measure(&programs, if arguments.quick { 1 } else { 5 })?;
        let stolen = stage::ticks()?.stolen_since(before);
        let _infallible = writeln!(out, "{table}\nStolen by the hypervisor meanwhile: {stolen:.1} %.\n");
    }
    if wanted(Part::Idle) {
        step("measuring: flanneld with nothing to do");
        let before = stage::ticks()?;
        let all = idle::measure(&programs, watch)?;
        let stolen = stage::ticks()?.stolen_since(before);
        let _infallible = writeln!(
            out,
            "flanneld with nothing to do (stolen meanwhile: {stolen:.1} %):\n\n{}",
            idle::table(&all)
        );
    }
    if wanted(Part::Size) {
        let _infallible = writeln!(out, "{}", sizes(&programs.all)?);
    }
    Ok(out)
}

/// What a figure is worth: the machine, how busy it was, and what was taken away from it.
fn machine(stolen: f64) -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    // What a distributor adds after the version names his build, not the kernel.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "Virtual machine with {processors} processors, Linux {kernel}; load average at the end {load}; stolen by the hypervisor meanwhile: \
         {stolen:.1} %.\n"
    )
}

/// The binaries, beside the folder of Debian's plugins.
fn sizes(all: &[Binary]) -> Result<String> {
    let mut out = String::from("| binary | bytes | MiB | shared libraries |\n|---|---:|---:|---|\n");
    let mut line = |name: &str, bytes: u64, libraries: &str| {
        let hundredths = bytes.saturating_mul(100) / (1024 * 1024);
        let _infallible = writeln!(
            out,
            "| {name} | {bytes} | {}.{:02} | {libraries} |",
            hundredths / 100,
            hundredths % 100
        );
    };
    for binary in all.iter().filter(|binary| dist::PRODUCTION.contains(&binary.name)) {
        line(binary.name, binary.bytes, "none");
    }
    let mut debian = (0, 0);
    for entry in std::fs::read_dir("/usr/lib/cni").context("cannot read /usr/lib/cni")? {
        let metadata = entry?.metadata()?;
        debian = (debian.0 + 1, debian.1 + metadata.len());
    }
    line(&format!("Debian's plugins, {} files", debian.0), debian.1, "libc");
    Ok(out)
}
