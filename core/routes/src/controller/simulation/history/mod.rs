//! Whole histories of a cluster, each out of one seed: the real controller and its queue against a model of the cloud and of Kubernetes, in
//! virtual time, under a script of faults, people and nodes.
//!
//! A call is carried out some time after it was made and answered some time after that, whether or not the controller that made it still lives. What must
//! hold is in [`judge`]; what happens is in [`script`]. `LODEN_SEED=<seed>` runs a single history and prints it.

mod judge;
mod script;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::super::*;
use crate::fake::Vpc;
use crate::model::Node;
use judge::Judge;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// The oldest picture that a read may show.
const STALENESS: Duration = Duration::from_secs(2);

/// What is under way in the world.
enum Job {
    /// A call arrives at the cloud.
    Execute { epoch: u32, id: CallId, call: Call },
    /// A condition arrives at the API server.
    Write { epoch: u32, node: String, uid: String, wanted: NetworkUnavailable },
    /// Something reaches the controller of that epoch.
    Tell { epoch: u32, event: Event },
}

/// How often each fault strikes, in thousandths.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    lost_request: u64,
    lost_answer: u64,
    repeated_request: u64,
    repeated_answer: u64,
    throttled: u64,
    server_error: u64,
    slow: u64,
    stale: u64,
    slow_state: u64,
    failed_condition: u64,
    lost_condition_answer: u64,
}

pub(super) struct History {
    random: u64,
    now: Moment,
    vpc: Vpc,
    /// Earlier pictures of the cloud, for reads that lag.
    past: VecDeque<(Moment, Vpc)>,
    delay: Duration,
    controller: Controller,
    settings: Settings,
    epoch: u32,
    nodes: BTreeMap<String, Node>,
    jobs: BTreeMap<(Moment, u64), Job>,
    turn: u64,
    faults: Faults,
    /// Until when the cloud refuses the credentials.
    denied_until: Moment,
    kinds: BTreeSet<&'static str>,
    calls: usize,
    writes: usize,
    condition_writes: usize,
    most_nodes: usize,
    /// Nodes' instances whose vSwitch the controller that works now was told.
    described: BTreeSet<InstanceId>,
    /// The cloud was changed and the judge has not seen it.
    touched: bool,
    judge: Judge,
    trace: Option<Vec<String>>,
}

/// What a history was like.
pub(super) struct Measure {
    pub(super) nodes: usize,
    pub(super) tables: usize,
    pub(super) calls: usize,
    pub(super) kinds: usize,
}

/// Runs the history of a seed; what went wrong is the error.
pub(super) fn run(seed: u64, trace: bool) -> Result<Measure, String> {
    let mut history = script::begin(seed, trace);
    script::play(&mut history);
    script::calm(&mut history);
    let told = history.trace.take().map(|lines| lines.join("\n")).unwrap_or_default();
    if trace {
        println!("{told}");
    }
    match history.judge.verdict() {
        Some(wrong) => Err(format!("seed {seed}: {wrong}")),
        None => Ok(Measure {
            nodes: history.most_nodes,
            tables: history.vpc.tables.len(),
            calls: history.calls,
            kinds: history.kinds.len(),
        }),
    }
}

impl History {
    fn roll(&mut self, sides: u64) -> u64 {
        self.random = loden_reconcile::mix(self.random);
        self.random % sides
    }

    /// Whether a fault strikes.
    fn strikes(&mut self, kind: &'static str, thousandths: u64) -> bool {
        let strikes = thousandths > 0 && self.roll(1000) < thousandths;
        if strikes {
            self.kinds.insert(kind);
        }
        strikes
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3} {}", now.as_secs_f64(), line()));
        }
    }

    fn send(&mut self, after: Duration, job: Job) {
        self.turn += 1;
        self.jobs.insert((self.now + after, self.turn), job);
    }

    fn latency(&mut self) -> Duration {
        let usual = MS * u32::try_from(5 + self.roll(40)).unwrap();
        let slow = self.faults.slow;
        if self.strikes("slow", slow) { usual + MS * u32::try_from(self.roll(4000)).unwrap() } else { usual }
    }

    /// Starts a controller, or the next one: what was on its way to the last one is lost, what was on its way to the cloud is not.
    fn restart(&mut self) {
        self.epoch += 1;
        self.judge.restarted(self.now);
        self.described.clear();
        self.note(|| "a new controller".to_owned());
        self.controller = Controller::new(self.settings.clone());
        for node in self.nodes.values().cloned().collect::<Vec<_>>() {
            self.controller.on_event(self.now, Event::Node(Box::new(node)));
        }
        self.controller.on_event(self.now, Event::NodesComplete);
    }

    /// The watch shows a node, after what it showed before.
    fn show(&mut self, name: &str) {
        let event = match self.nodes.get(name) {
            Some(node) => Event::Node(Box::new(node.clone())),
            None => Event::NodeGone(name.to_owned()),
        };
        self.send(3 * MS, Job::Tell { epoch: self.epoch, event });
    }

    fn put_node(&mut self, node: Node) {
        let name = node.name.clone();
        self.nodes.insert(name.clone(), node);
        self.nodes_changed();
        self.most_nodes = self.most_nodes.max(self.nodes.len());
        self.show(&name);
    }

    fn nodes_changed(&mut self) {
        self.judge.look_at_nodes(self.now, &self.nodes);
        let instances = judge::instances(&self.nodes);
        self.described.retain(|instance| instances.contains(instance));
    }

    fn perform(&mut self, action: Action) {
        let epoch = self.epoch;
        match action {
            Action::Notice(notice) => {
                self.note(|| format!("notice {} {}", notice.reason, notice.message));
                if notice.reason == "UnsafePlan" {
                    self.judge.blame(format!("{:?}: {}", self.now, notice.message));
                }
            }
            Action::Condition { node, uid, wanted } => {
                self.send(4 * MS, Job::Write { epoch, node, uid, wanted });
            }
            Action::Cloud { id, call } => {
                self.calls += 1;
                self.note(|| format!("call {id:?} {call:?}"));
                let after = self.latency();
                self.send(after, Job::Execute { epoch, id, call });
            }
        }
    }

    fn execute(&mut self, epoch: u32, id: CallId, call: &Call) {
        // What has ended by now is seen to have ended before the call can see it.
        self.look();
        if epoch != self.epoch {
            self.judge.late(self.now, call);
        }
        let faults = self.faults;
        let outcome = if self.denied_until > self.now {
            Err(Failure::api(403, "Forbidden.RAM", "not authorized", "R", None))
        } else if self.strikes("lost request", faults.lost_request) {
            Err(Failure::transport("connection refused"))
        } else if self.strikes("throttled", faults.throttled) {
            let retry = (self.roll(2) == 0).then(|| SECOND * u32::try_from(1 + self.roll(3)).unwrap());
            Err(Failure::api(429, "Throttling.User", "flow control", "R", retry))
        } else {
            let current = epoch == self.epoch;
            let answer = self.carry_out(current, call);
            if call.writes() && self.strikes("repeated request", faults.repeated_request) {
                self.carry_out(current, call);
            }
            if self.strikes("server error", faults.server_error) {
                Err(Failure::api(500, "InternalError", "try later", "R", None))
            } else if self.strikes("lost answer", faults.lost_answer) {
                Err(Failure::transport("connection reset"))
            } else {
                Ok(answer)
            }
        };
        if outcome.is_ok() && epoch == self.epoch {
            self.judge.read(self.now, call);
            if let Call::DescribeInstances(instances) = call {
                self.described.extend(instances.iter().cloned());
            }
        }
        let answer = outcome.unwrap_or_else(|failure| failed(call, failure));
        self.note(|| format!("answer {id:?} {answer:?}"));
        let after = self.latency();
        if self.strikes("repeated answer", faults.repeated_answer) {
            let again = Event::Answered { id, answer: answer.clone() };
            self.send(after * 2, Job::Tell { epoch, event: again });
        }
        self.send(after, Job::Tell { epoch, event: Event::Answered { id, answer } });
    }

    fn carry_out(&mut self, current: bool, call: &Call) -> Answer {
        if !call.writes() {
            let stale = self.faults.stale;
            if self.strikes("stale read", stale) {
                let back = MS * u32::try_from(self.roll(2000)).unwrap();
                let at = self.now.saturating_sub(back);
                if let Some((_, seen)) = self.past.iter_mut().rev().find(|(taken, _)| *taken <= at) {
                    return seen.call(at, call);
                }
            }
            return self.vpc.call(self.now, call);
        }
        self.writes += 1;
        let slow_state = self.faults.slow_state;
        self.vpc.delay = if self.strikes("slow state", slow_state) {
            SECOND * u32::try_from(1 + self.roll(12)).unwrap()
        } else {
            self.delay
        };
        self.touched = true;
        self.judge.write(self.now, call, &self.vpc);
        let named = judge::taken_by(call, &self.vpc);
        let answer = self.vpc.call(self.now, call);
        if current {
            self.judge.took(self.now, &named, &self.vpc);
        }
        self.remember();
        answer
    }

    /// Keeps a picture of the cloud after a change.
    fn remember(&mut self) {
        self.past.push_back((self.now, self.vpc.clone()));
        while self.past.len() > 1 && self.past.get(1).is_some_and(|(at, _)| *at + STALENESS < self.now) {
            self.past.pop_front();
        }
    }

    fn write(&mut self, epoch: u32, node: String, uid: &str, wanted: NetworkUnavailable) {
        let faults = self.faults;
        let known = self.nodes.get(&node).is_some_and(|known| known.uid == uid);
        let result = if !known {
            Err("not found".to_owned())
        } else if self.strikes("failed condition", faults.failed_condition) {
            Err("the API server is away".to_owned())
        } else {
            self.note(|| format!("condition of {node}: {} {}", wanted.reason, wanted.message));
            self.condition_writes += 1;
            if let Some(known) = self.nodes.get_mut(&node) {
                known.network_unavailable = Some(wanted.clone());
                if !wanted.unavailable {
                    // Where a node is of which nothing was told yet, nobody can know.
                    let tables = judge::served(&self.settings, &self.vpc, &self.described);
                    self.judge.claimed(self.now, &self.nodes[&node], &tables);
                }
            }
            self.show(&node);
            if self.strikes("lost condition answer", faults.lost_condition_answer) {
                Err("timed out".to_owned())
            } else {
                Ok(wanted)
            }
        };
        let after = 2 * MS + MS * u32::try_from(self.roll(4)).unwrap();
        self.send(after, Job::Tell { epoch, event: Event::ConditionWritten { node, result } });
    }

    /// Runs for a while.
    fn run(&mut self, duration: Duration) {
        let until = self.now + duration;
        loop {
            if self.judge.found() {
                return;
            }
            let mut polls = 0;
            let wake = loop {
                polls += 1;
                if polls > 20_000 {
                    self.judge.blame("the controller never rests".to_owned());
                    return;
                }
                match self.controller.poll(self.now) {
                    Poll::Act(action) => self.perform(action),
                    Poll::Wait { until, why } => {
                        if until.is_some_and(|until| until <= self.now) {
                            self.judge.blame(format!("it waits for the past: {why}"));
                            return;
                        }
                        break until;
                    }
                }
            };
            let job = self.jobs.keys().next().map(|(at, _)| *at);
            let settles = self.vpc.next_change(self.now);
            match [wake, job, settles].into_iter().flatten().min() {
                Some(next) if next <= until => self.now = next.max(self.now),
                _ => {
                    self.now = until;
                    self.look();
                    return;
                }
            }
            while let Some(entry) = self.jobs.first_entry().filter(|entry| entry.key().0 <= self.now) {
                match entry.remove() {
                    Job::Execute { epoch, id, call } => self.execute(epoch, id, &call),
                    Job::Write { epoch, node, uid, wanted } => self.write(epoch, node, &uid, wanted),
                    Job::Tell { epoch, event } if epoch == self.epoch => {
                        self.controller.on_event(self.now, event);
                    }
                    Job::Tell { .. } => {}
                }
            }
            self.look();
        }
    }

    /// Lets what is under way in the cloud end, and shows the judge what changed.
    fn look(&mut self) {
        if self.vpc.settle(self.now) || std::mem::take(&mut self.touched) {
            self.judge.look_at_cloud(self.now, &self.vpc);
        }
    }
}

/// A call's failure as its kind of answer.
fn failed(call: &Call, failure: Failure) -> Answer {
    match call {
        Call::HasIpv6 => Answer::Ipv6(Err(failure)),
        Call::Quota => Answer::Quota(Err(failure)),
        Call::ListTables => Answer::Tables(Err(failure)),
        Call::ListEntries(_) | Call::ReadBack(..) => Answer::Entries(Err(failure)),
        Call::Create(_) | Call::Delete(_) | Call::Repoint(..) => Answer::Batch(Err(failure)),
        Call::DescribeInstances(_) => Answer::Instances(Err(failure)),
        Call::ReadSourceDestChecks(_) => Answer::ChecksOn(Err(failure)),
        Call::SourceDestCheckOff(_) => Answer::CheckOff(Err(failure)),
    }
}

/// A number that a person or CI gave.
#[expect(clippy::disallowed_methods, reason = "a test takes its size from whoever runs it")]
fn given(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Histories that a run tries where nobody says how many: enough to notice a change that breaks something.
const SEEDS: u64 = 300;
/// So many that went wrong say as much as all.
const ENOUGH: usize = 5;

#[test]
fn histories_end_well() {
    if let Some(seed) = given("LODEN_SEED") {
        run(seed, true).unwrap_or_else(|wrong| panic!("{wrong}"));
        return;
    }
    let count = given("LODEN_SEEDS").unwrap_or(SEEDS);
    let wrong = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let measures: Vec<Result<Measure, String>> = std::thread::scope(|scope| {
        let wrong = &wrong;
        let part = |number: u64| {
            move || {
                let mut measures = Vec::new();
                for seed in (0..count).filter(|seed| seed % threads == number) {
                    if wrong.load(Ordering::Relaxed) >= ENOUGH {
                        break;
                    }
                    let measure = run(seed, false);
                    wrong.fetch_add(usize::from(measure.is_err()), Ordering::Relaxed);
                    measures.push(measure);
                }
                measures
            }
        };
        let running: Vec<_> = (0..threads).map(|number| scope.spawn(part(number))).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("a history panicked")).collect()
    });
    let tried = measures.len();
    let (good, bad): (Vec<_>, Vec<_>) = measures.into_iter().partition(Result::is_ok);
    let wrong: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    assert!(
        wrong.is_empty(),
        "{} of {tried} histories went wrong; LODEN_SEED=<seed> shows one:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let good: Vec<Measure> = good.into_iter().filter_map(Result::ok).collect();
    let median = |of: fn(&Measure) -> usize| {
        let mut all: Vec<usize> = good.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    let medians = (median(|m| m.nodes), median(|m| m.tables), median(|m| m.calls), median(|m| m.kinds));
    println!(
        "{count} histories; medians: {} nodes, {} tables, {} calls, {} kinds of faults",
        medians.0, medians.1, medians.2, medians.3
    );
    assert!(
        medians.0 >= 20 && medians.1 >= 2 && medians.2 >= 200 && medians.3 >= 5,
        "the median history is too small: {medians:?}"
    );
}
