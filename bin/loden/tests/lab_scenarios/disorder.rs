//! Somebody meddles, something dies.

use std::process::Stdio;
use std::time::Duration;

use crate::support::{Lab, string, text, wait_until};

#[test]
fn conflicting_entries_go_with_an_event_and_foreign_ones_stay() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    let subnet = string(&lab.status()["nodes"][0]["subnet"]);
    let inside = subnet.replace("/26", "/28");
    assert_ne!(subnet, inside);
    let foreign = ("172.19.0.0/24".to_owned(), "i-ecs-1".to_owned());
    let wide = ("172.20.0.0/20".to_owned(), "i-ecs-1".to_owned());
    lab.json(&["route", "add", &foreign.0, "ecs-1"]);
    lab.json(&["route", "add", &wide.0, "ecs-1"]);

    lab.json(&["route", "add", &subnet, "ecs-1", "--replace"]);
    lab.json(&["route", "add", &inside, "node-2"]);
    let right = |entries: &std::collections::BTreeSet<(String, String)>| {
        entries.contains(&(subnet.clone(), "i-node-1".to_owned()))
            && !entries.iter().any(|(net, _)| *net == inside)
    };
    wait_until("both conflicting entries replaced", || lab.entries(), right);
    let told = |events: &Vec<(String, String)>| {
        let about = |net: &str, hop: &str| {
            events.iter().any(|(reason, message)| {
                reason == "ConflictingRouteRemoved" && message.contains(net) && message.contains(hop)
            })
        };
        about(&subnet, "i-ecs-1") && about(&inside, "i-node-2")
    };
    wait_until("events about both", || lab.events(), told);

    lab.json(&["node", "add"]);
    lab.json(&["node", "remove", "node-2"]);
    lab.json(&["restart", "controller"]);
    lab.json(&["node", "add", "node-9"]);
    let entries = lab.entries();
    assert!(entries.contains(&foreign) && entries.contains(&wide), "{entries:?}");
    lab.assert_green();
}

#[test]
fn restarts_of_controller_and_flanneld_drop_no_packet() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    let status = lab.status();
    let target = string(&status["pods"][1]["address"]);
    let ping = |target: &str| {
        lab.command(&["pod", "exec", "pod-1", "--", "ping", "-i", "0.02", "-c", "400", "-W", "5", target])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    // Beside the pod, a host beyond the masquerade, whose rules the restarted flanneld must leave alone.
    let pings = [ping(&target), ping("203.0.113.80")];
    for round in 0..2 {
        lab.json(&["restart", "controller"]);
        lab.json(&["restart", "flanneld", "node-1"]);
        lab.json(&["restart", "flanneld", "node-2"]);
        let settled = || {
            let ready = |name: &str| {
                let path = format!("{}/nodes/{name}/flanneld.log", string(&status["directory"]));
                let log = std::fs::read_to_string(path).unwrap();
                log.matches("ready node=").count() >= round + 2
            };
            ready("node-1") && ready("node-2")
        };
        wait_until("both flannelds ready again", settled, |ready| *ready);
    }
    for ping in pings {
        let said = text(&ping.wait_with_output().unwrap());
        assert!(said.contains("400 packets transmitted, 400 received, 0% packet loss"), "{said}");
    }
    lab.assert_green();
}

#[test]
fn a_flanneld_that_dies_is_started_again_and_heals_what_was_broken_meanwhile() {
    let lab = Lab::up(&["--nodes", "2", "--pods", "1"]);
    let flanneld = || lab.status()["nodes"][0]["flanneld"].clone();
    let before = flanneld()["pid"].as_u64().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let namespace = format!("loden-{}-node-1", lab.name);
    let inside = |arguments: &[&str]| {
        let all = [&["netns", "exec", &namespace][..], arguments].concat();
        std::process::Command::new("ip").args(all).output().unwrap()
    };
    assert!(inside(&["nft", "delete", "table", "ip", "flannel-ipv4"]).status.success());
    assert!(inside(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]).status.success());
    wait_until("another flanneld", flanneld, |process| {
        process["pid"].as_u64().is_some_and(|pid| pid != before) && process["restarts"] == 1
    });
    let healed = || {
        let rules = text(&inside(&["nft", "list", "tables"]));
        let forward = text(&inside(&["sysctl", "-n", "net.ipv4.ip_forward"]));
        (rules.contains("flannel-ipv4"), forward.trim() == "1")
    };
    wait_until("rules and forwarding back", healed, |healed| *healed == (true, true));
    lab.assert_green();
}

#[test]
fn a_lab_killed_while_it_comes_up_leaves_nothing_that_down_does_not_remove() {
    for milliseconds in [0, 15, 40, 80, 150, 250, 400, 700] {
        let lab = Lab::named();
        let mut up = lab
            .command(&["up", "--nodes", "2", "--pods", "2"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment is the point here, not a condition.
        std::thread::sleep(Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        // Half of the rounds kill everything, the other half the supervisor only, which orphans what it started.
        let members = lab.processes();
        let victims = if milliseconds % 2 == 0 { &members[..] } else { &members[..members.len().min(1)] };
        for pid in victims {
            let pid = rustix::process::Pid::from_raw(*pid).unwrap();
            // It may have ended by itself since it was listed.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let output = lab.loden(&["down"]);
        assert!(output.status.success(), "after {milliseconds} ms: {}", text(&output));
        assert_eq!(lab.remains(), Vec::<String>::new(), "after {milliseconds} ms");
    }
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let lab = Lab::named();
    let demo = lab.command(&["demo"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let directory = format!("/run/loden/labs/{}", lab.name);
    wait_until("the lab's supervisor", || lab.processes().len(), |count| *count > 0);
    assert!(std::path::Path::new(&directory).exists());
    let pid = rustix::process::Pid::from_raw(i32::try_from(demo.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = demo.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output));
    assert_eq!(lab.remains(), Vec::<String>::new());
}
