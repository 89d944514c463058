//! One run from its begin to its end, and what it showed.

use super::Programs;
use super::controller::{Calls, Controller, Used};
use super::world::{Limits, World, name};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What happens to the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// All are there when the controller starts.
    Join,
    /// As [`Course::Join`]; then a tenth of them leaves within each minute, and as many others join.
    Churn {
        /// For so long.
        lasting: Duration,
    },
    /// As [`Course::Join`]; when half of the nodes are available the controller is killed, and started again at once.
    Restart,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) nodes: u32,
    pub(crate) limits: Limits,
    pub(crate) course: Course,
}

/// What a run showed.
#[derive(Debug)]
pub(crate) struct Showed {
    /// Until every node was told that its network is available. Churn: of the nodes that were there first.
    pub(crate) converged: Duration,
    /// Until every entry was seen in force, looked at from outside and therefore a little later than it was.
    pub(crate) last_route: Duration,
    /// When each node was told, in order.
    pub(crate) curve: Vec<Duration>,
    /// Of a restart: from the kill until somebody led again.
    pub(crate) leaderless: Duration,
    /// Of churn: from a node's joining until it was told, in order.
    pub(crate) joins: Vec<Duration>,
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) reads: Calls,
    /// At rest afterwards; of the process that was there last, its processor time of all.
    pub(crate) used: Used,
}

/// Nothing here takes so long, unless it never ends.
const DEADLINE: Duration = Duration::from_secs(400);
/// After the last node was told, until the memory is looked at: what comes later by itself has come by then.
const REST: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(10);
/// Looking at the whole table costs the emulated cloud time that the controller waits for, so it may take this share.
const LOOKING_SHARE: u32 = 20;

/// Does a run in a world of its own.
///
/// # Errors
/// Something does not start, or the end is not as it should be.
pub(crate) fn run(programs: &Programs, run: Run) -> Result<Showed> {
    World::stage()?.run(|| {
        let spare = match run.course {
            Course::Churn { lasting } => churned(run.nodes, lasting),
            Course::Join | Course::Restart => 0,
        };
        let world = World::new(programs, run.nodes + spare, run.limits)?;
        for number in 0..run.nodes {
            world.join(number)?;
        }
        let mut watched = Watched::new(Controller::start(world.controller(programs)?)?);
        let total = usize::try_from(run.nodes)?;
        let mut leaderless = Duration::ZERO;
        let (mut before, mut cpu_before, mut reads_before) = (Vec::new(), Duration::ZERO, Calls::default());
        if run.course == Course::Restart {
            watched.until(&world, total / 2, total)?;
            cpu_before = watched.controller.used()?.cpu;
            watched.controller.kill()?;
            let killed = Instant::now();
            before = watched.controller.available();
            reads_before = watched.controller.calls();
            ensure!(before.len() < total, "the join was over before the controller could be killed");
            watched.controller = Controller::start(world.controller(programs)?)?;
            watched.until_leading()?;
            leaderless = watched.controller.leading().unwrap_or(killed).saturating_duration_since(killed);
            // What was written just before the end may not have been logged: those nodes are not told twice.
            watched.until_rest(&world, total)?;
        } else {
            watched.until(&world, total, total)?;
        }
        let first: Vec<(String, Instant)> =
            before.into_iter().chain(watched.controller.available()).collect();
        let mut curve: Vec<Duration> =
            first.iter().map(|(_, at)| at.saturating_duration_since(watched.begun)).collect();
        curve.sort();
        let converged = curve.last().copied().context("no node was told")?;
        let last_route = watched.last_route(&world, total)?;

        let mut joins = Vec::new();
        let mut alive = 0..run.nodes;
        if let Course::Churn { lasting } = run.course {
            joins = churn(&world, &mut watched, run.nodes, lasting)?;
            alive = spare..run.nodes + spare;
        }
        watched.rest(&world)?;
        world.verify(alive).with_context(|| watched.controller.last_words())?;
        let reads = watched.controller.calls();
        let mut used = watched.controller.used()?;
        used.cpu += cpu_before;
        Ok(Showed {
            converged,
            last_route,
            curve,
            leaderless,
            joins,
            calls: world.calls()?,
            reads: Calls {
                listings: reads.listings + reads_before.listings,
                read_backs: reads.read_backs + reads_before.read_backs,
            },
            used,
        })
    })
}

/// How many nodes leave, and join, in that time.
fn churned(nodes: u32, lasting: Duration) -> u32 {
    let seconds = u32::try_from(lasting.as_secs()).unwrap_or(u32::MAX);
    (nodes / 10).saturating_mul(seconds) / 60
}

/// A controller, and the table as seen from outside.
struct Watched {
    controller: Controller,
    begun: Instant,
    looked: Instant,
    took: Duration,
    /// When all entries were first seen in force.
    complete: Option<Instant>,
}

impl Watched {
    fn new(controller: Controller) -> Self {
        let begun = controller.begun();
        Self { controller, begun, looked: begun, took: Duration::ZERO, complete: None }
    }

    /// Until so many nodes are told that they are available, of `total`.
    fn until(&mut self, world: &World, told: usize, total: usize) -> Result<()> {
        while self.controller.available_count() < told {
            self.pass(world, total)?;
        }
        Ok(())
    }

    /// Until all entries are in force and nobody is told anything any more.
    fn until_rest(&mut self, world: &World, total: usize) -> Result<()> {
        let (mut count, mut since) = (0, Instant::now());
        while self.complete.is_none() || since.elapsed() < REST {
            self.pass(world, total)?;
            let now = self.controller.available_count();
            if now != count {
                (count, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn until_leading(&mut self) -> Result<()> {
        while self.controller.leading().is_none() {
            self.controller.check_alive()?;
            self.check_time()?;
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn check_time(&self) -> Result<()> {
        if self.begun.elapsed() > DEADLINE {
            bail!("no end after {} s: {}", DEADLINE.as_secs(), self.controller.last_words());
        }
        Ok(())
    }

    fn pass(&mut self, world: &World, total: usize) -> Result<()> {
        self.controller.check_alive()?;
        self.check_time()?;
        if self.complete.is_none() && self.looked.elapsed() >= self.took * LOOKING_SHARE {
            self.look(world, total)?;
        }
        std::thread::sleep(LOOK);
        Ok(())
    }

    fn look(&mut self, world: &World, total: usize) -> Result<()> {
        let begun = Instant::now();
        let entries = world.entries()?;
        if entries.iter().filter(|entry| entry.status == "Available").count() == total {
            self.complete = Some(begun);
        }
        (self.looked, self.took) = (Instant::now(), begun.elapsed());
        Ok(())
    }

    fn last_route(&mut self, world: &World, total: usize) -> Result<Duration> {
        if self.complete.is_none() {
            self.look(world, total)?;
        }
        let complete =
            self.complete.context("nodes are told that they are available, and entries are missing")?;
        Ok(complete - self.begun)
    }

    /// Until the cloud has not been called for a while.
    fn rest(&mut self, world: &World) -> Result<()> {
        let (mut calls, mut since) = (world.calls()?, Instant::now());
        while since.elapsed() < REST {
            std::thread::sleep(Duration::from_millis(200));
            self.controller.check_alive()?;
            self.check_time()?;
            let now = world.calls()?;
            if now != calls {
                (calls, since) = (now, Instant::now());
            }
        }
        Ok(())
    }
}

/// Lets a tenth of the nodes leave within a minute, evenly, and as many new ones join; answers how long each of these took to be told.
fn churn(world: &World, watched: &mut Watched, nodes: u32, lasting: Duration) -> Result<Vec<Duration>> {
    let count = churned(nodes, lasting);
    let pause = lasting / count.max(1);
    let mut joined = BTreeMap::new();
    let begun = Instant::now();
    for turn in 0..count {
        std::thread::sleep((pause * turn).saturating_sub(begun.elapsed()));
        world.leave(turn)?;
        joined.insert(name(nodes + turn), Instant::now());
        world.join(nodes + turn)?;
        watched.controller.check_alive()?;
    }
    let told = usize::try_from(nodes + count)?;
    let patience = Instant::now();
    while watched.controller.available_count() < told {
        watched.controller.check_alive()?;
        ensure!(patience.elapsed() < DEADLINE, "nodes wait for ever: {}", watched.controller.last_words());
        std::thread::sleep(LOOK);
    }
    let mut took: Vec<Duration> = watched
        .controller
        .available()
        .into_iter()
        .filter_map(|(node, at)| joined.get(&node).map(|since| at.saturating_duration_since(*since)))
        .collect();
    took.sort();
    Ok(took)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_leaves_within_a_minute() {
        assert_eq!(churned(1000, Duration::from_secs(60)), 100);
        assert_eq!(churned(5000, Duration::from_secs(90)), 750);
        assert_eq!(churned(1000, Duration::from_secs(6)), 10);
    }
}
