//! podman with its CNI backend.

use std::fs;

use loden_netlink::{NetNs, sysctl};

use crate::machine::{HERE, Machine, NETWORKS, PLUGINS, Plugins, THERE, alone, run};
use crate::network::{self, Backend, GATEWAY, Limits, Network, TUNED, TUNED_TO};
use crate::probe::{Echo, ask, ask_from, ask_udp, assert_silent};
use crate::{image, probe};

const CYCLES: usize = 50;

#[test]
fn fifty_cycles_with_iptables_leave_what_one_leaves() {
    alone(Plugins::Ours, |machine| cycles(machine, Backend::Iptables, CYCLES));
}

#[test]
fn fifty_cycles_with_nftables_leave_what_one_leaves() {
    alone(Plugins::Ours, |machine| cycles(machine, Backend::Nftables, CYCLES));
}

#[test]
fn the_same_holds_for_the_go_plugins() {
    alone(Plugins::Debian, |machine| cycles(machine, Backend::Iptables, 3));
}

fn cycles(machine: &Machine, backend: Backend, count: usize) {
    Network::configure(machine, backend, Limits::Network);
    let podman = Podman::set_up();
    let mut first = None;
    for n in 1..=count {
        cycle(machine, &podman, n);
        match &first {
            None => first = Some(machine.at_rest()),
            Some(first) if n % 10 == 0 || n == count => {
                machine.assert_holds(first, &format!("after cycle {n}"))
            }
            Some(_) => {}
        }
    }
    machine.tell(&format!("{count} cycles"));
}

/// Two containers start, reach each other and are reached, one stops and starts, both go.
fn cycle(machine: &Machine, podman: &Podman, n: usize) {
    let (web, other) = (format!("web{n}"), format!("other{n}"));
    std::thread::scope(|scope| {
        scope.spawn(|| podman.start(&web, &["--publish", "8080:80", "--publish", "5353:53/udp"]));
        scope.spawn(|| podman.start(&other, &[]));
    });
    let [seen_web, seen_other] = podman.look([&web, &other]);
    reach(machine, &seen_web, &seen_other);
    if n % 10 == 1 {
        // As people would look.
        let told =
            podman.run(&["exec", &other, "wget", "-qO-", &format!("http://{}/cgi-bin/who", seen_web.ip)]);
        assert_eq!(told, format!("[::ffff:{}] {web}", seen_other.ip));
        podman.run(&["stop", "--time", "0", &web]);
        assert_silent(&machine.outside, HERE[0], 8080);
        podman.run(&["start", &web]);
        let [seen_web] = podman.look([&web]);
        reach(machine, &seen_web, &seen_other);
        // Ports and addresses are made anew, for the running container.
        podman.run(&["network", "reload", &web]);
        let [seen_web] = podman.look([&web]);
        reach(machine, &seen_web, &seen_other);
    }
    podman.run(&["rm", "--force", "--time", "0", &web, &other]);
    assert_silent(&machine.outside, HERE[0], 8080);
}

fn reach(machine: &Machine, web: &Seen, other: &Seen) {
    let from_web = |answer: &probe::Answer| assert_eq!(answer.from, web.name, "{answer:?}");
    // Each other, and nobody in between.
    let told = ask_from(&other.namespace, &web.ip, 80);
    from_web(&told);
    assert_eq!(told.to.to_string(), other.ip);
    assert_eq!(ask_from(&web.namespace, &other.ip, 80).from, other.name);
    assert_eq!(sysctl::read_in(&web.namespace, TUNED).unwrap().as_deref(), Some(TUNED_TO));
    // The published port: from outside with the asker's own address,
    for family in [0, 1] {
        let told = ask_from(&machine.outside, HERE[family], 8080);
        from_web(&told);
        assert_eq!(told.to.to_string(), THERE[family]);
    }
    // from this machine itself,
    let told = ask("127.0.0.1", 8080);
    from_web(&told);
    assert_eq!(told.to.to_string(), GATEWAY[0]);
    from_web(&ask(HERE[0], 8080));
    // and from the containers, the one that publishes it included.
    from_web(&ask_from(&other.namespace, HERE[0], 8080));
    from_web(&ask_from(&web.namespace, HERE[0], 8080));
    let echo = Echo::on(&web.namespace, 53);
    assert_eq!(ask_udp(&machine.outside, HERE[0], 5353).to_string(), THERE[0]);
    drop(echo);
    if machine.plugins == Plugins::Ours {
        // The other way: masqueraded.
        let echo = Echo::on(&machine.outside, 53);
        assert_eq!(ask_udp(&other.namespace, THERE[0], 53).to_string(), HERE[0]);
        drop(echo);
    }
}

/// podman with files of its own.
#[derive(Debug)]
struct Podman;

/// A running container.
#[derive(Debug)]
struct Seen {
    name: String,
    ip: String,
    namespace: NetNs,
}

impl Podman {
    fn set_up() -> Self {
        // `pids.max` needs a controller that the machine may have given away to its old hierarchies.
        let containers = format!(
            "[containers]\ncgroups = \"no-conmon\"\npids_limit = 0\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{PLUGINS}\"]\nnetwork_config_dir = \"{NETWORKS}\"\n\
             default_network = \"{}\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n",
            network::NAME
        );
        let storage = "[storage]\ndriver = \"overlay\"\nrunroot = \"/run/podman/run\"\ngraphroot = \"/run/podman/graph\"\n";
        fs::create_dir_all("/etc/containers").unwrap();
        fs::write("/etc/containers/containers.conf", containers).unwrap();
        fs::write("/etc/containers/storage.conf", storage).unwrap();
        let podman = Self;
        podman.run(&["load", "--quiet", "--input", image::ARCHIVE]);
        podman
    }

    #[track_caller]
    fn run(&self, words: &[&str]) -> String {
        run("podman", words)
    }

    #[track_caller]
    fn start(&self, name: &str, options: &[&str]) {
        let words = ["run", "--detach", "--pull=never", "--name", name, "--hostname", name];
        self.run(&[&words, options, &[image::NAME]].concat());
    }

    /// What podman knows of running containers.
    #[track_caller]
    fn look<const N: usize>(&self, names: [&str; N]) -> [Seen; N] {
        let format = "{{.Name}} {{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let told = self.run(&[&["inspect", "--format", format], names.as_slice()].concat());
        let seen: Vec<Seen> = told
            .lines()
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let namespace = NetNs::open(format!("/proc/{}/ns/net", words[1])).unwrap();
                Seen { name: words[0].to_owned(), ip: words[2].to_owned(), namespace }
            })
            .collect();
        seen.try_into().unwrap()
    }
}
