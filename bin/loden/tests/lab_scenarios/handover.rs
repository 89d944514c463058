//! A controller that was away: what it adopts, collects, would do, and leaves alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::pings::Pings;
use crate::support::{Lab, string, text, wait_until};

/// What the lab gives its controllers as grace period for entries without a node.
const GRACE: Duration = Duration::from_secs(5);

#[test]
fn what_happened_while_the_controller_was_down_is_adopted_collected_or_made_up_for() {
    let lab = Lab::up(&["--nodes", "3", "--pods", "1"]);
    lab.json(&["node", "add", "node-4", "--provider-id", "alicloud"]);
    lab.json(&["pod", "add", "pod-4", "--node", "node-4"]);
    let subnet = |node: &str| string(&lab.node(node)["subnet"]);
    let [first, second, third, fourth] = ["node-1", "node-2", "node-3", "node-4"].map(subnet);
    let pings = [
        Pings::start(&lab, "pod-1", &lab.address_of("pod-2")),
        Pings::start(&lab, "pod-2", &lab.address_of("pod-4")),
    ];

    // However the node spells its instance, its entry is right and stays.
    let (ids, writes) = (lab.entry_ids(), lab.writes());
    lab.wait_audit();
    assert_eq!((lab.entry_ids(), lab.writes()), (ids, writes), "an entry flaps");

    // Entries as the vendor's controller leaves them: right, and without a mark. A node leaves, and an entry is gone.
    lab.json(&["stop", "controller"]);
    for (destination, node) in [(&first, "node-1"), (&second, "node-2"), (&fourth, "node-4")] {
        lab.json(&["route", "add", destination, node, "--replace"]);
    }
    lab.json(&["route", "add", "172.20.9.0/26", "ecs-1"]);
    lab.json(&["node", "remove", "node-3"]);
    let unmarked = lab.entry_ids();
    assert!(unmarked.contains_key(&third), "its entry is left behind: {unmarked:?}");

    // A dry run tells of it, and writes nothing anywhere.
    let quiet = || {
        let status = lab.status();
        (lab.writes(), status["clusters"][0]["revision"].clone(), status["routeTables"].clone())
    };
    let before = settled(&quiet);
    let said = string(&lab.json(&["dry-run"])["text"]);
    assert!(said.contains(&third) && said.contains("i-node-3"), "{said}");
    assert!(!said.contains(&first) && !said.contains("172.20.9.0"), "{said}");
    assert_eq!(quiet(), before, "a dry run wrote something");

    // It comes back: equal entries are the very same ones, what no node has goes after the grace period, what is foreign stays.
    let begun = Instant::now();
    lab.json(&["start", "controller"]);
    wait_until("the orphan collected", || lab.entry_ids(), |ids| !ids.contains_key(&third));
    assert!(begun.elapsed() >= GRACE, "collected after {:?}", begun.elapsed());
    lab.wait_event("StaleRouteRemoved", &[&third, "i-node-3"]);
    let mut wanted = unmarked;
    wanted.remove(&third);
    assert_eq!(lab.entry_ids(), wanted, "adopted entries were made anew");
    for pings in pings {
        pings.assert_none_lost();
    }

    // What was adopted is ours: it goes with its node.
    lab.json(&["pod", "remove", "pod-4"]);
    lab.json(&["node", "remove", "node-4"]);
    assert!(!lab.entry_ids().contains_key(&fourth));
    assert!(lab.entry_ids().contains_key("172.20.9.0/26"));
    lab.json(&["route", "remove", "172.20.9.0/26"]);
    wait_until("the desired entries", || (lab.entries(), lab.desired()), |(found, wanted)| found == wanted);
    lab.assert_green();
}

#[test]
fn killed_at_random_moments_while_nodes_come_and_go_it_loses_no_packet() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    let (one, other) = (lab.address_of("pod-1"), lab.address_of("pod-2"));
    let pings = [Pings::start(&lab, "pod-1", &other), Pings::start(&lab, "pod-2", &one)];
    let ids = lab.entry_ids();
    for (round, change) in [["add", "node-3"], ["remove", "node-3"], ["add", "node-3"]].iter().enumerate() {
        let changing = lab
            .command(&[&["node"][..], change].concat())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let moment = random(400);
        println!("round {round}: controller killed after {moment} ms");
        // The moment is the point here, not a condition.
        std::thread::sleep(Duration::from_millis(moment));
        kill(&lab.status()["clusters"][0]["controller"]["pid"]);
        kill(&lab.node("node-1")["flanneld"]["pid"]);
        let output = changing.wait_with_output().unwrap();
        assert!(output.status.success(), "round {round} after {moment} ms: {}", text(&output));
    }
    for pings in pings {
        pings.assert_none_lost();
    }
    wait_until("the desired entries", || (lab.entries(), lab.desired()), |(found, wanted)| found == wanted);
    let after = lab.entry_ids();
    let same: BTreeMap<_, _> = ids.iter().filter(|(net, id)| after.get(*net) == Some(id)).collect();
    assert_eq!(same.len(), 2, "the entries of those who stayed are the very same: {ids:?} became {after:?}");
    lab.assert_green();
}

/// As found twice in a row, a while apart: what was under way when the controller stopped is over.
fn settled<T: PartialEq + std::fmt::Debug>(look: &impl Fn() -> T) -> T {
    let last = std::cell::RefCell::new(look());
    wait_until("quiet", look, |found| *found == last.replace(look()));
    last.into_inner()
}

fn kill(pid: &Value) {
    // Between its end and its next start there is none.
    if let Some(pid) = pid.as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).unwrap())) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Below `limit`.
fn random(limit: u64) -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    u64::from_str_radix(&text[..8], 16).unwrap() % limit
}
