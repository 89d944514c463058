//! A pod's attachment and its removal: Loden's plugins, Debian's, and the floor, in turns.
//!
//! Every program has a bridge of its own on one node and gets the same namespaces: fresh, with nothing but `lo`. What is timed is what
//! a runtime waits for, from the start of the process to its end. After each run it is checked, untimed, that the work was done: a DEL
//! that returns before the kernel has removed the link would look fast.

use super::Programs;
use super::report::{Row, Who};
use super::stage::{Directory, Namespace, program, timed};
use super::statistics::Sample;
use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::process::Command;

const LINK: &str = "eth0";
/// Where Debian keeps the reference plugins.
const DEBIAN: &str = "/usr/lib/cni";

/// One program on one node: how it attaches and detaches a pod.
struct Subject {
    who: Who,
    bridge: String,
    way: Way,
    add: Vec<Sample>,
    delete: Vec<Sample>,
}

enum Way {
    /// A CNI plugin, its configuration, and the folder its delegates are found in.
    Plugin { folder: Utf8PathBuf, name: &'static str, config: Utf8PathBuf },
    /// The floor, with this as the third octet of its addresses.
    Floor { program: Utf8PathBuf, subnet: u8 },
}

impl Subject {
    fn new(who: Who, bridge: &str, way: Way) -> Self {
        Self { who, bridge: bridge.to_owned(), way, add: Vec::new(), delete: Vec::new() }
    }

    fn call(&self, verb: &str, pod: &Namespace, number: usize) -> Result<(Sample, String)> {
        match &self.way {
            Way::Plugin { folder, name, config } => {
                let mut command = program(&folder.join(name));
                command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", format!("pod-{number}"));
                command.env("CNI_NETNS", pod.path()).env("CNI_IFNAME", LINK).env("CNI_PATH", folder);
                timed(&mut command, Some(config))
            }
            Way::Floor { program: floor, subnet } => {
                let mut command = program(floor);
                let address = format!("10.99.{subnet}.{}/24", 2 + number % 250);
                let port = format!("vethf{number}");
                match verb {
                    "ADD" => command.args(["attach", &pod.path(), &self.bridge, &port, LINK, &address]),
                    _ => command.args(["detach", &pod.path(), LINK]),
                };
                if verb == "ADD" {
                    command.arg(format!("10.99.{subnet}.1"));
                }
                timed(&mut command, None)
            }
        }
    }

    /// One pod comes and goes; the times count unless this is the first, which also makes the bridge.
    fn round(&mut self, node: &Namespace, pod: &Namespace, number: usize, counts: bool) -> Result<()> {
        let (add, _) = self.call("ADD", pod, number)?;
        ensure!(self.ports(node)? == 1, "{} after ADD: the bridge {} has no port", self.who, self.bridge);
        ensure!(
            pod.ip(&format!("-o -4 address show dev {LINK}"))?.contains("inet "),
            "{} after ADD: the pod has no address",
            self.who
        );
        let (delete, _) = self.call("DEL", pod, number)?;
        ensure!(self.ports(node)? == 0, "{} after DEL: the pod's link is still there", self.who);
        if counts {
            self.add.push(add);
            self.delete.push(delete);
        }
        Ok(())
    }

    fn ports(&self, node: &Namespace) -> Result<usize> {
        Ok(node.ip(&format!("-o link show master {}", self.bridge))?.lines().count())
    }
}

/// bridge -> host-local, and flannel -> bridge -> host-local, ADD and DEL of each.
pub(crate) fn measure(programs: &Programs, runs: usize, floor_only: bool) -> Result<Vec<Row>> {
    let node = Namespace::new("node")?;
    let directory = Directory::new()?;
    let plugins = directory.path.join("bin");
    std::fs::create_dir_all(&plugins)?;
    for name in ["flannel", "bridge", "host-local"] {
        // Hard links, as people install it: then a delegate runs in the same process.
        let copy = plugins.join("loden-cni");
        if !copy.exists() {
            std::fs::copy(&programs.cni, &copy).with_context(|| format!("cannot copy {}", programs.cni))?;
        }
        std::fs::hard_link(&copy, plugins.join(name)).context("cannot link a plugin's name")?;
    }
    let bridge = |who: &str, subnet: u8| {
        let state = directory.path.join(format!("state-{who}"));
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"{who}","type":"bridge","bridge":"br-{who}","isDefaultGateway":true,"hairpinMode":true,
            "ipam":{{"type":"host-local","dataDir":"{state}","ranges":[[{{"subnet":"10.99.{subnet}.0/24"}}]]}}}}"#
        );
        directory.write(&format!("{who}.json"), &text)
    };
    let plugin = |folder: &Utf8Path, name, config| Way::Plugin { folder: folder.to_owned(), name, config };
    let floor = |bridge: &str, subnet: u8| -> Result<Subject> {
        node.ip(&format!("link add {bridge} type bridge"))?;
        node.ip(&format!("link set {bridge} up"))?;
        node.ip(&format!("address add 10.99.{subnet}.1/24 dev {bridge}"))?;
        Ok(Subject::new(Who::Floor, bridge, Way::Floor { program: programs.floor.clone(), subnet }))
    };

    let mut direct = vec![floor("br-floor", 3)?];
    if !floor_only {
        let ours = plugin(&plugins, "bridge", bridge("ours", 1)?);
        let peer = plugin(Utf8Path::new(DEBIAN), "bridge", bridge("peer", 2)?);
        direct.insert(0, Subject::new(Who::Ours, "br-ours", ours));
        direct.insert(1, Subject::new(Who::Debian, "br-peer", peer));
    }
    let mut rows = alternate("bridge → host-local", &node, direct, runs)?;
    if floor_only {
        return Ok(rows);
    }

    let subnet_file = directory.write(
        "subnet.env",
        "FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.4.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    let state = &directory.path;
    let config = directory.write(
        "flannel.json",
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"{subnet_file}","dataDir":"{state}/flannel",
            "delegate":{{"bridge":"br-flannel","isDefaultGateway":true,"hairpinMode":true}},"ipam":{{"dataDir":"{state}/state-flannel"}}}}"#
        ),
    )?;
    let ours = Subject::new(Who::Ours, "br-flannel", plugin(&plugins, "flannel", config));
    rows.extend(alternate("flannel → bridge → host-local", &node, vec![ours, floor("br-floor2", 5)?], runs)?);
    Ok(rows)
}

/// A B C A B C …, a fresh namespace for each.
fn alternate(what: &str, node: &Namespace, mut subjects: Vec<Subject>, runs: usize) -> Result<Vec<Row>> {
    for number in 0..=runs {
        for (place, subject) in subjects.iter_mut().enumerate() {
            let pod = Namespace::new(&format!("pod{place}"))?;
            node.run(|| subject.round(node, &pod, number, number > 0))?;
        }
    }
    let row = |verb: &str, pick: fn(&Subject) -> &Vec<Sample>| {
        let mut row = Row::new(format!("{what} {verb}"));
        for subject in &subjects {
            row.add(subject.who, pick(subject));
        }
        row
    };
    Ok(vec![row("ADD", |subject| &subject.add), row("DEL", |subject| &subject.delete)])
}

/// What starting the process alone costs: a plugin that only says its version, and a floor that does nothing.
pub(crate) fn measure_start(programs: &Programs, runs: usize) -> Result<Row> {
    let directory = Directory::new()?;
    let ours = directory.path.join("host-local");
    std::fs::copy(&programs.cni, &ours).with_context(|| format!("cannot copy {}", programs.cni))?;
    let version = directory.write("version.json", r#"{"cniVersion":"1.0.0"}"#)?;
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..runs {
        let mut commands: [Command; 3] =
            [program(&ours), program(&Utf8Path::new(DEBIAN).join("host-local")), program(&programs.floor)];
        for (command, samples) in commands.iter_mut().zip(&mut samples) {
            command.env("CNI_COMMAND", "VERSION").arg("nothing");
            samples.push(timed(command, Some(&version))?.0);
        }
    }
    let mut row = Row::new("process start (VERSION)".to_owned());
    for (who, samples) in [Who::Ours, Who::Debian, Who::Floor].into_iter().zip(&samples) {
        row.add(who, samples);
    }
    Ok(row)
}
