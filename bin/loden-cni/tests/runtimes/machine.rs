//! A machine of its own: namespaces for everything, so that the runtimes may use their defaults and nothing outlives a test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use loden_netlink::NetNs;
use loden_residue::{Section, Snapshot};

use crate::{image, network};

const INSIDE: &str = "LODEN_INSIDE_A_MACHINE";
/// What takes longer does not come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const DONE: &str = "the machine's test came to its end";

/// Where `ctr` looks for plugins and nowhere else, and where Kubernetes has them.
pub(crate) const PLUGINS: &str = "/opt/cni/bin";
/// Where a runtime looks for networks.
pub(crate) const NETWORKS: &str = "/etc/cni/net.d";
/// The machine's addresses on the wire to the outside, and those of who is there.
pub(crate) const HERE: [&str; 2] = ["192.0.2.1", "2001:db8:77::1"];
pub(crate) const THERE: [&str; 2] = ["192.0.2.2", "2001:db8:77::2"];

/// What the plugins, and nobody else, write to.
const STATE: [&str; 4] = ["/var/lib/cni", "/run/cni", "/run/flannel", "/run/xtables.lock"];

/// Whose plugins are installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plugins {
    /// The binary under test, under each of its names.
    Ours,
    /// The Go plugins of Debian: what holds for them proves the test, not the plugins.
    Debian,
}

/// The machine that a test is alone on.
#[derive(Debug)]
pub(crate) struct Machine {
    /// Another machine on the same wire.
    pub(crate) outside: NetNs,
    pub(crate) plugins: Plugins,
    started: Instant,
}

/// Runs the calling test's `body` on a machine of its own: this very program again, with that one test, inside new namespaces.
#[track_caller]
pub(crate) fn alone<F: FnOnce(&Machine)>(plugins: Plugins, body: F) {
    if std::env::var_os(INSIDE).is_some() {
        let machine = Machine::set_up(plugins);
        body(&machine);
        println!("{DONE} after {:.1?}", machine.started.elapsed());
        return;
    }
    let test = test_name::<F>();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", include_str!("machine.sh"), "machine"])
        .arg(std::env::current_exe().unwrap())
        .args([test.as_str(), "--exact", "--nocapture", "--test-threads=1"])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/run/home")
        .env("TMPDIR", "/run/tmp")
        .env("RUST_BACKTRACE", "1")
        .env("SCRIPT", include_str!("machine.sh"))
        .env(INSIDE, "1")
        .output()
        .expect("util-linux is needed: unshare");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // A test that was not found is a success of libtest's.
    assert!(
        output.status.success() && stdout.contains(DONE),
        "{test} (needs root): {}\n{stdout}\n{stderr}",
        output.status
    );
    println!("{stdout}");
}

/// The path of the test function that a closure was written in.
fn test_name<F>() -> String {
    let name = std::any::type_name::<F>();
    let name = name.strip_suffix("::{{closure}}").expect("the body is a closure in the test function");
    name.split_once("::").expect("a path begins with the crate").1.to_owned()
}

impl Machine {
    fn set_up(plugins: Plugins) -> Self {
        for (program, package) in [
            ("/bin/busybox", "busybox-static"),
            ("/usr/bin/podman", "podman"),
            ("/usr/bin/containerd", "containerd"),
            ("/usr/sbin/runc", "runc"),
            ("/usr/lib/cni/bridge", "containernetworking-plugins"),
        ] {
            assert!(Path::new(program).exists(), "apt-get install {package}: {program} is missing");
        }
        let machine = Self { outside: wire(), plugins, started: Instant::now() };
        install(plugins);
        let _ = fs::remove_dir_all(NETWORKS);
        fs::create_dir_all(NETWORKS).unwrap();
        image::make();
        machine
    }

    /// What the machine holds when no container is left: the kernel takes a removed namespace apart at its leisure.
    #[track_caller]
    pub(crate) fn at_rest(&self) -> Held {
        let ports = || run("ip", &["-o", "link", "show", "master", network::BRIDGE]);
        assert!(wait_until(PATIENCE, || ports().is_empty()), "ports left: {}", ports());
        Held::by(self)
    }

    /// What the machine holds of what plugins make. Connections come and go with whoever asks; the kernel's own routes to this machine's
    /// IPv6 addresses come when a link first has a carrier for long enough, and the addresses are in the picture anyway.
    fn snapshot(&self) -> Snapshot {
        Snapshot::here(&STATE)
            .unwrap()
            .without(Section::Connections, |_| true)
            .without(Section::Routes, |route| route.contains(':') && route.contains("table local"))
    }

    /// The machine comes to hold what it held at rest, and no more.
    #[track_caller]
    pub(crate) fn assert_holds(&self, before: &Held, when: &str) {
        let mut difference = None;
        let same = wait_until(PATIENCE, || {
            let now = Held::by(self);
            difference = (now != *before).then(|| {
                format!("{}\n{:?} was {:?}", before.state.diff(&now.state), now.names, before.names)
            });
            difference.is_none()
        });
        assert!(same, "{when}, the machine holds something else:\n{}", difference.unwrap_or_default());
    }

    /// Says how far the test is.
    pub(crate) fn tell(&self, what: &str) {
        println!("{:6.1?}  {what}", self.started.elapsed());
    }
}

/// What a machine holds: what plugins make, and what runtimes leave lying about for them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held {
    state: Snapshot,
    /// Named network namespaces.
    names: BTreeSet<String>,
}

impl Held {
    fn by(machine: &Machine) -> Self {
        Self { state: machine.snapshot(), names: names_in("/run/netns").collect() }
    }
}

pub(crate) fn names_in(directory: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap())
}

/// A wire to the outside, with both families on it.
fn wire() -> NetNs {
    let outside = NetNs::create_named("outside").unwrap();
    run("ip", &["link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", "outside"]);
    for (inside, address) in [(true, HERE), (false, THERE)] {
        let end: &[&str] = if inside { &["dev", "out0"] } else { &["dev", "eth0"] };
        let namespace: &[&str] = if inside { &[] } else { &["-n", "outside"] };
        let ip = |words: &[&str]| run("ip", &[namespace, words, end].concat());
        ip(&["addr", "add", &format!("{}/24", address[0])]);
        ip(&["addr", "add", "nodad", &format!("{}/64", address[1])]);
        ip(&["link", "set", "up"]);
    }
    outside
}

fn install(plugins: Plugins) {
    // A file system of its own, as the files of one binary must be hard links of one another.
    fs::create_dir_all(PLUGINS).unwrap();
    run("mount", &["-t", "tmpfs", "tmpfs", PLUGINS]);
    match plugins {
        Plugins::Debian => {
            for name in names_in("/usr/lib/cni") {
                fs::copy(format!("/usr/lib/cni/{name}"), format!("{PLUGINS}/{name}")).unwrap();
            }
        }
        Plugins::Ours => {
            let binary = format!("{PLUGINS}/loden-cni");
            fs::copy(env!("CARGO_BIN_EXE_loden-cni"), &binary).unwrap();
            for name in loden_cni_plugins::names() {
                fs::hard_link(&binary, format!("{PLUGINS}/{name}")).unwrap();
            }
        }
    }
}

/// Runs a program that must succeed; what it printed.
#[track_caller]
pub(crate) fn run(program: &str, words: &[&str]) -> String {
    match attempt(program, words) {
        Ok(printed) => printed,
        Err(told) => panic!("{program} {}: {told}", words.join(" ")),
    }
}

/// Runs a program; what it printed, or what it said when it failed. One that hangs is ended after two minutes.
pub(crate) fn attempt(program: &str, words: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout").args(["-k", "5", "120", program]).args(words).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        Ok(stdout.trim().to_owned())
    } else {
        Err(format!("{}: {} {}", output.status, stdout.trim(), stderr.trim()))
    }
}

/// Whether the condition comes true in time.
pub(crate) fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
