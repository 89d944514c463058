//! The route controller in a large cluster: the real binary between an emulated cloud and an emulated API server, over real connections.
//!
//! Every run has goals, and one that misses a goal fails the whole. What is told of a run comes from outside of it where it can: calls from the
//! cloud's own count, memory and time from the kernel, entries and conditions from where they are kept.

mod chart;
mod controller;
mod course;
mod world;

use super::process::mib;
use crate::command::step;
use crate::{dist, layers};
use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::camino::Utf8PathBuf;
use course::{Course, Run, Showed};
use std::fmt::Write as _;
use std::time::Duration;
use world::Limits;

/// Where the picture is kept.
const CHART: &str = "docs/convergence.svg";
/// Entries that one call creates, at most.
const BATCH: u32 = 50;
/// Full listings of the table in a run, pages not counted.
const LISTINGS: u32 = 5;
/// 1,000 nodes at zero delay, from the start of the controller's process.
const THOUSAND: Duration = Duration::from_secs(3);

/// What takes part, as built for release.
pub(crate) struct Programs {
    controller: Utf8PathBuf,
    loden: Utf8PathBuf,
}

impl Programs {
    /// # Errors
    /// The build fails.
    pub(crate) fn build() -> Result<Self> {
        match dist::build(&["loden-controller", "loden"])?.as_slice() {
            [controller, loden] => {
                Ok(Self { controller: controller.path.clone(), loden: loden.path.clone() })
            }
            others => bail!("{} binaries were built instead of two", others.len()),
        }
    }
}

/// What all runs showed.
pub(crate) struct Outcome {
    /// For the page.
    pub(crate) text: String,
    picture: String,
    missed: Vec<String>,
}

impl Outcome {
    /// Keeps the picture beside the page.
    pub(crate) fn keep_picture(&self) -> Result<()> {
        let path = layers::workspace_root()?.join(CHART);
        std::fs::write(&path, &self.picture).with_context(|| format!("cannot write {path}"))
    }

    /// # Errors
    /// A goal was missed.
    pub(crate) fn judge(&self) -> Result<()> {
        ensure!(self.missed.is_empty(), "missed: {}", self.missed.join("; "));
        Ok(())
    }
}

/// All runs; the short ones only with `quick`.
pub(crate) fn measure(programs: &Programs, quick: bool) -> Result<Outcome> {
    let run = |nodes, limits, course| Run { nodes, limits, course };
    let lasting = Duration::from_secs(if quick { 12 } else { 120 });
    let mut runs = vec![
        run(1000, Limits::ZeroDelay, Course::Join),
        run(1000, Limits::Vendor, Course::Restart),
        run(1000, Limits::Vendor, Course::Churn { lasting }),
    ];
    if !quick {
        runs.insert(1, run(5000, Limits::ZeroDelay, Course::Join));
        runs.insert(2, run(1000, Limits::Vendor, Course::Join));
        runs.insert(3, run(5000, Limits::Vendor, Course::Join));
        runs.push(run(5000, Limits::Vendor, Course::Churn { lasting: lasting / 2 }));
        for nodes in [1000, 5000] {
            runs.push(run(nodes, Limits::ZeroDelay, Course::Restart));
            runs.push(run(nodes, Limits::ZeroDelay, Course::Churn { lasting: lasting / 2 }));
        }
    }
    let mut all = Vec::new();
    for run in runs {
        step(&format!("measuring: {}", title(&run)));
        let showed = course::run(programs, run).with_context(|| title(&run))?;
        println!("{}", lines(&run, &showed).0);
        all.push((run, showed));
    }
    let missed = all
        .iter()
        .flat_map(|(run, showed)| {
            missed(run, showed).into_iter().map(|goal| format!("{}: {goal}", title(run)))
        })
        .collect();
    Ok(Outcome { text: tables(&all), picture: chart::draw(&all)?, missed })
}

fn thousands(nodes: u32) -> String {
    format!("{},{:03}", nodes / 1000, nodes % 1000)
}

fn title(run: &Run) -> String {
    let nodes = thousands(run.nodes);
    let limits = match run.limits {
        Limits::ZeroDelay => "no delay",
        Limits::Vendor => "the vendor's limits",
    };
    match run.course {
        Course::Join => format!("{nodes} nodes at once, {limits}"),
        Course::Churn { lasting } => {
            format!("{nodes} nodes, then 10 % leave and join a minute for {} s, {limits}", lasting.as_secs())
        }
        Course::Restart => format!("{nodes} nodes at once, killed half-way and started again, {limits}"),
    }
}

/// What batches and delay alone dictate.
fn dictated(run: &Run) -> Duration {
    Duration::from_millis(run.limits.entry_delay().into()) * run.nodes.div_ceil(BATCH)
}

/// Most memory in MiB; none is set for other numbers of nodes.
fn most_memory(nodes: u32) -> Option<u64> {
    match nodes {
        1000 => Some(20),
        5000 => Some(40),
        _ => None,
    }
}

fn count(showed: &Showed, action: &str) -> u64 {
    showed.calls.get(action).copied().unwrap_or_default()
}

/// The goals that a run missed, with what it came to.
fn missed(run: &Run, showed: &Showed) -> Vec<String> {
    let mut missed = Vec::new();
    let mut goal = |held: bool, text: String| {
        if !held {
            missed.push(text);
        }
    };
    let creates = count(showed, "CreateRouteEntries");
    let batches = u64::from(run.nodes.div_ceil(BATCH));
    let took = showed.converged.saturating_sub(showed.leaderless);
    match run.course {
        Course::Join => goal(creates <= batches, format!("{creates} creates, not at most {batches}")),
        // The batch that was under way, and the one that was cut off.
        Course::Restart => {
            goal(creates <= batches + 2, format!("{creates} creates, not at most {}", batches + 2))
        }
        Course::Churn { .. } => {}
    }
    goal(
        showed.reads.listings <= LISTINGS,
        format!("{} full listings, not at most {LISTINGS}", showed.reads.listings),
    );
    match run.limits {
        Limits::ZeroDelay if run.nodes == 1000 => {
            goal(took <= THOUSAND, format!("{} s, not at most {}", seconds(took), seconds(THOUSAND)));
        }
        Limits::ZeroDelay => {}
        Limits::Vendor => {
            let most = dictated(run) * 12 / 10;
            goal(took <= most, format!("{} s, not at most {}", seconds(took), seconds(most)));
        }
    }
    if let Some(most) = most_memory(run.nodes) {
        goal(
            showed.used.resident <= most * 1024,
            format!("{} MiB resident, not at most {most}", mib(showed.used.resident)),
        );
    }
    missed
}

fn seconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64())
}

/// A run's line in the table of times and memory, and its line in the table of calls.
fn lines(run: &Run, showed: &Showed) -> (String, String) {
    let missed = missed(run, showed);
    let goals =
        if missed.is_empty() { "held".to_owned() } else { format!("**missed**: {}", missed.join("; ")) };
    let Showed { converged, last_route, leaderless, used, reads, .. } = showed;
    let dictated = match run.limits {
        Limits::ZeroDelay => "–".to_owned(),
        Limits::Vendor => seconds(dictated(run)),
    };
    let leaderless = if leaderless.is_zero() { "–".to_owned() } else { seconds(*leaderless) };
    let of_joins =
        |percent| super::statistics::quantile(&showed.joins, percent).map_or_else(|| "–".to_owned(), seconds);
    let times = format!(
        "| {} | {dictated} | {} | {} | {leaderless} | {} | {} | {:.2} | {} | {} | {} | {goals} |",
        title(run),
        seconds(*last_route),
        seconds(*converged),
        of_joins(50),
        of_joins(99),
        used.cpu.as_secs_f64(),
        mib(used.resident),
        mib(used.own),
        mib(used.peak),
    );
    let mut named = ["CreateRouteEntries", "DeleteRouteEntries", "DescribeRouteEntryList"].to_vec();
    named.extend(["DescribeRouteTableList", "DescribeInstances", "DescribeNetworkInterfaces"]);
    named.push("ModifyNetworkInterfaceAttribute");
    let others: u64 = showed
        .calls
        .iter()
        .filter(|(action, _)| !named.contains(&action.as_str()))
        .map(|(_, count)| count)
        .sum();
    let counts = named.iter().map(|action| count(showed, action).to_string()).collect::<Vec<_>>().join(" | ");
    let calls =
        format!("| {} | {} | {} | {counts} | {others} |", title(run), reads.listings, reads.read_backs);
    (times, calls)
}

fn tables(all: &[(Run, Showed)]) -> String {
    let mut times = String::from(
        "| run | dictated s | last route s | last node told s | of that without a leader s | a join's median s | p99 s | CPU s | resident MiB | of that its own | peak MiB | goals |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n",
    );
    let mut calls = String::from(
        "| run | full listings | read-backs | CreateRouteEntries | DeleteRouteEntries | DescribeRouteEntryList, with pages | DescribeRouteTableList | DescribeInstances | DescribeNetworkInterfaces | ModifyNetworkInterfaceAttribute | others |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for (run, showed) in all {
        let (of_times, of_calls) = lines(run, showed);
        let _infallible = writeln!(times, "{of_times}");
        let _infallible = writeln!(calls, "{of_calls}");
    }
    format!("{times}\n{calls}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller::{Calls, Used};

    fn showed(seconds: u64, resident: u64, creates: u64) -> Showed {
        Showed {
            converged: Duration::from_secs(seconds),
            last_route: Duration::from_secs(seconds),
            curve: vec![Duration::from_secs(seconds)],
            leaderless: Duration::ZERO,
            joins: Vec::new(),
            calls: [("CreateRouteEntries".to_owned(), creates)].into(),
            reads: Calls { listings: 1, read_backs: 60 },
            used: Used { cpu: Duration::from_secs(1), resident, own: resident / 2, peak: resident },
        }
    }

    #[test]
    fn goals_are_missed_by_time_calls_and_memory() {
        let run = Run { nodes: 1000, limits: Limits::Vendor, course: Course::Join };
        assert_eq!(dictated(&run), Duration::from_secs(20));
        assert!(missed(&run, &showed(24, 20 * 1024, 20)).is_empty());
        assert_eq!(missed(&run, &showed(25, 20 * 1024, 20)), ["25.00 s, not at most 24.00"]);
        assert_eq!(missed(&run, &showed(24, 20 * 1024 + 103, 20)), ["20.1 MiB resident, not at most 20"]);
        assert_eq!(missed(&run, &showed(24, 1, 21)), ["21 creates, not at most 20"]);
        let zero = Run { limits: Limits::ZeroDelay, ..run };
        assert_eq!(missed(&zero, &showed(4, 1, 20)), ["4.00 s, not at most 3.00"]);
        assert!(lines(&zero, &showed(4, 1, 20)).0.ends_with("| **missed**: 4.00 s, not at most 3.00 |"));
    }
}
