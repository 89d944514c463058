//! `ctr run --cni`: containerd's own tool, which sets the network up after the container is made, and tears it down when its namespace is
//! gone already.

use std::process::{Child, Command, Stdio};

use crate::containerd::Containerd;
use crate::image;
use crate::machine::{Machine, PATIENCE, Plugins, alone, attempt, run, wait_until};
use crate::network::{Backend, GATEWAY, Limits, Network};
use crate::probe::ask;

#[test]
fn containers_of_ctr_come_and_go() {
    alone(Plugins::Ours, |machine| cycles(machine, 20));
}

#[test]
fn the_same_holds_for_the_go_plugins() {
    alone(Plugins::Debian, |machine| cycles(machine, 2));
}

fn cycles(machine: &Machine, count: usize) {
    Network::configure(machine, Backend::Iptables, Limits::Network);
    let _containerd = Containerd::set_up();
    let mut first = None;
    for n in 1..=count {
        cycle(n);
        match &first {
            None => first = Some(machine.at_rest()),
            Some(first) => machine.assert_holds(first, &format!("after cycle {n}")),
        }
    }
    machine.tell(&format!("{count} cycles"));
}

/// One container runs until it is killed; others run meanwhile, look at it, and end by themselves.
fn cycle(n: usize) {
    let server = format!("server{n}");
    let mut running = start(&server);
    let mut ip = String::new();
    let look = ["tasks", "exec", "--exec-id", "look", &server, "ip", "-4", "-o", "addr", "show", "eth0"];
    let there = wait_until(PATIENCE, || {
        assert!(running.try_wait().unwrap().is_none(), "{server} ended");
        let told = attempt("ctr", &look).unwrap_or_default();
        let address = told.split_whitespace().find_map(|word| word.split_once('/'));
        ip = address.map(|(ip, _)| ip.to_owned()).unwrap_or_default();
        !ip.is_empty()
    });
    assert!(there, "{server} has no address");
    assert_eq!(ask(&ip, 80).to.to_string(), GATEWAY[0]);
    let told = run(
        "ctr",
        &[
            "run",
            "--rm",
            "--cni",
            "--cpu-shares",
            "0",
            image::NAME,
            &format!("client{n}"),
            "wget",
            "-qO-",
            &format!("http://{ip}/cgi-bin/who"),
        ],
    );
    assert!(told.starts_with("[::ffff:10.244.1.") && !told.contains(&ip), "{told:?}");
    run("ctr", &["tasks", "kill", "--signal", "KILL", &server]);
    running.wait().unwrap();
}

/// `ctr` in the foreground: it removes the network when the container ends.
fn start(name: &str) -> Child {
    Command::new("ctr")
        .args(["run", "--rm", "--cni", "--cpu-shares", "0", image::NAME, name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
