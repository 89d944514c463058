//! A chain of plugins, killed at every system call of every plugin's ADD and DEL; what the runtime does next must leave nothing.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test bed that does not work is a failed test"
)]
#![expect(unsafe_code, reason = "a program can only be traced by asking for it between fork and exec")]

mod bed;
#[path = "../support/mod.rs"]
mod support;
mod tracer;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use bed::{Bed, Member, Operation, Recovery, Scenario};
use serde_json::json;
use support::Node;
use tracer::{Trace, Victim, When};

/// A broken build leaves something everywhere; so many are enough to see what.
const MOST_FAILURES: usize = 12;

/// Each family has a single address for containers.
const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/30\n\
    FLANNEL_IPV6_NETWORK=fd00:10:244::/48\nFLANNEL_IPV6_SUBNET=fd00:10:244:1::1/126\n\
    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";

/// What a cluster's nodes run: flannel, host ports, and a rate, with rules of one backend.
fn chain(node: &Node, backend: &str) -> Vec<Member> {
    let mut flannel = node.flannel_config(SUBNET_ENV);
    flannel["cniVersion"] = json!("1.1.0");
    flannel["delegate"]["ipMasqBackend"] = json!(backend);
    let portmap = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "backend": backend, "snat": true,
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        ]},
    });
    let bandwidth = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "bandwidth",
        "ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000,
    });
    vec![
        Member { plugin: "flannel", config: flannel },
        Member { plugin: "portmap", config: portmap },
        Member { plugin: "bandwidth", config: bandwidth },
    ]
}

#[test]
fn a_chain_with_nftables_killed_anywhere_leaves_nothing() {
    crash_everywhere("nftables", |node| chain(node, "nftables"), Points::EveryCall);
}

#[test]
fn a_chain_with_iptables_killed_anywhere_leaves_nothing() {
    crash_everywhere("iptables", |node| chain(node, "iptables"), Points::EveryEffect);
}

/// A pair without a bridge, settings with a file of what was before, and host ports. `firewall` has no place here: its rules are told by
/// the address alone, which nobody knows after an ADD that was killed.
fn tuned_pair(node: &Node) -> Vec<Member> {
    let ptp = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "ptp", "ipMasq": true,
        "ipam": {
            "type": "host-local", "dataDir": node.path("state/networks"),
            "ranges": [
                [{"subnet": "10.244.1.0/30"}],
                [{"subnet": "fd00:10:244:1::/126", "rangeEnd": "fd00:10:244:1::2"}],
            ],
        },
    });
    let tuning = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "tuning", "dataDir": node.path("state/tuning"),
        "sysctl": {"net.core.somaxconn": "500"}, "mac": "02:00:00:00:00:07", "mtu": 1400, "promisc": true,
    });
    let portmap = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "backend": "nftables", "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    });
    vec![
        Member { plugin: "ptp", config: ptp },
        Member { plugin: "tuning", config: tuning },
        Member { plugin: "portmap", config: portmap },
    ]
}

#[test]
fn a_tuned_pair_killed_anywhere_leaves_nothing() {
    crash_everywhere("ptp and tuning", tuned_pair, Points::EveryEffect);
}

/// Most of a recovery is waiting for the kernel.
fn workers() -> usize {
    3 * thread::available_parallelism().map_or(1, usize::from)
}

/// Which calls are kill points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Points {
    /// Every one.
    EveryCall,
    /// Those after a call that may have an effect: as many as there are states to be left in.
    EveryEffect,
}

/// Work for one worker.
type Point = (Scenario, When);

#[derive(Default)]
struct Found {
    /// By step, operation and whether the node was fresh: calls, calls with an effect, points, runs that were killed.
    counts: BTreeMap<(usize, Operation, bool), [usize; 4]>,
    failures: Vec<String>,
}

fn crash_everywhere(title: &str, chain: fn(&Node) -> Vec<Member>, wanted: Points) {
    let started = Instant::now();
    let (points, names, mut found) = survey(chain, wanted);
    let total = points.len();
    let queue = Mutex::new(VecDeque::from(points));
    let results = Mutex::new(Found::default());
    thread::scope(|scope| {
        for _ in 0..workers() {
            scope.spawn(|| work(chain, &queue, &results));
        }
    });
    let results = results.into_inner().unwrap();
    for (key, [_, _, points, killed]) in &results.counts {
        let counts = found.counts.entry(*key).or_default();
        counts[2] += points;
        counts[3] += killed;
    }
    // Past the test harness, which keeps what passing tests print.
    let mut tell = io::stderr().lock();
    for ((step, operation, fresh), [calls, effects, points, killed]) in &found.counts {
        let node = if *fresh { ", fresh node" } else { "" };
        writeln!(
            tell,
            "crash test, {title}: {operation:?} of {}{node}: {calls} system calls, {effects} with an effect, {points} runs, {killed} killed",
            names[*step]
        )
        .unwrap();
    }
    writeln!(tell, "crash test, {title}: {total} kill points in {:.1?}", started.elapsed()).unwrap();
    drop(tell);
    assert!(
        results.failures.is_empty(),
        "{} failures:\n{}",
        results.failures.len(),
        results.failures.join("\n\n")
    );
    let killed: usize = found.counts.values().map(|counts| counts[3]).sum();
    assert!(
        killed * 10 > total * 9,
        "{killed} of {total} runs were killed: the points are not where they were counted"
    );
}

/// Every kill point of the chain, by running each operation once without a kill.
fn survey(chain: fn(&Node) -> Vec<Member>, wanted: Points) -> (Vec<Point>, Vec<&'static str>, Found) {
    let survey = move || {
        bed::separate_mounts();
        let node = Node::new();
        let run = || {
            let bed = Bed::new(&node, chain(&node));
            let (mut points, mut found) = (Vec::new(), Found::default());
            for (step, _) in bed.chain().iter().enumerate() {
                for (operation, fresh) in
                    [(Operation::Add, false), (Operation::Add, true), (Operation::Del, false)]
                {
                    let plain =
                        Scenario { step, operation, victim: Victim::Family, recovery: Recovery::Del, fresh };
                    let trace = bed.crash(plain, When::Never).unwrap_or_else(|failure| panic!("{failure}"));
                    let counts = [trace.calls, trace.effects].map(|count| usize::try_from(count).unwrap());
                    found.counts.insert((step, operation, fresh), [counts[0], counts[1], 0, 0]);
                    points.extend(points_of(plain, &trace, wanted));
                }
            }
            let names = bed.chain().iter().map(|member| member.plugin).collect();
            (points, names, found)
        };
        node.home.ns.run(run).unwrap()
    };
    thread::spawn(survey).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The kill points of one operation: for the usual recovery those that are wanted, for the others every state that it passes through.
/// What an operation does on a fresh node is judged by one recovery.
fn points_of(plain: Scenario, trace: &Trace, wanted: Points) -> Vec<Point> {
    let recoveries = if plain.fresh { &Recovery::ALL[..1] } else { &Recovery::ALL };
    let victims: &[Victim] =
        if trace.processes > 0 { &[Victim::Family, Victim::Parent] } else { &[Victim::Family] };
    let mut points = Vec::new();
    for recovery in recoveries {
        for victim in victims {
            // Children that outlive the program change what is left, not how it is cleaned up.
            if *victim == Victim::Parent && (plain.fresh || *recovery != Recovery::Del) {
                continue;
            }
            let scenario = Scenario { victim: *victim, recovery: *recovery, ..plain };
            let usual = wanted == Points::EveryCall
                && *recovery == Recovery::Del
                && *victim == Victim::Family
                && !plain.fresh;
            if usual {
                points.extend((0..trace.calls).map(|count| (scenario, When::AfterCalls(count))));
            } else {
                points.extend((0..=trace.effects).map(|count| (scenario, When::AfterEffects(count))));
            }
        }
    }
    points
}

fn work(chain: fn(&Node) -> Vec<Member>, queue: &Mutex<VecDeque<Point>>, found: &Mutex<Found>) {
    bed::separate_mounts();
    // A node on which something was left is of no further use.
    loop {
        let node = Node::new();
        let spoilt = node.home.ns.run(|| {
            let bed = Bed::new(&node, chain(&node));
            loop {
                if found.lock().unwrap().failures.len() >= MOST_FAILURES {
                    return false;
                }
                let Some((scenario, when)) = queue.lock().unwrap().pop_front() else { return false };
                let outcome = bed.crash(scenario, when);
                let mut found = found.lock().unwrap();
                match outcome {
                    Ok(trace) => {
                        let counts = found
                            .counts
                            .entry((scenario.step, scenario.operation, scenario.fresh))
                            .or_default();
                        counts[2] += 1;
                        counts[3] += usize::from(trace.killed);
                    }
                    Err(failure) => {
                        found.failures.push(format!("{scenario:?}, {when:?}: {failure}"));
                        return true;
                    }
                }
            }
        });
        if !spoilt.unwrap() {
            return;
        }
    }
}
