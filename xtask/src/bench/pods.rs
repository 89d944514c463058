//! A pod's attachment and its removal: Loden's plugins, Debian's, and the floor, in turns.
//!
//! Every program has a bridge and a pod of its own on one node; between the runs the pod has nothing but `lo`. What is timed is what
//! a runtime waits for, from the start of the process to its end. After each run it is checked, untimed, that the work was done: a DEL
//! that returns before the kernel has removed the link would look fast.

use super::Programs;
use super::contest::{Contender, Verb, contest};
use super::plugins::{self, DEBIAN, LINK};
use super::report::{Reference, Row, Who};
use super::stage::{Directory, Namespace, program, timed};
use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::process::Command;

/// What `bridge` with `host-local`, alone and under `flannel`, took elsewhere: ADD and DEL.
const FLANNEL: [Reference; 2] = [
    Reference { min: 15.8, cpu: Some(22.0), processes: Some(3) },
    Reference { min: 21.5, cpu: Some(20.0), processes: Some(3) },
];

/// One program on one node: how it attaches and detaches a pod.
struct Subject<'a> {
    who: Who,
    bridge: &'a str,
    way: Way,
}

enum Way {
    /// A CNI plugin, its configuration, and the folder its delegates are found in.
    Plugin { folder: Utf8PathBuf, name: &'static str, config: Utf8PathBuf },
    /// The floor, with this as the third octet of its addresses.
    Floor { program: Utf8PathBuf, subnet: u8 },
}

impl<'a> Subject<'a> {
    /// The program on `node`, with a pod of its own that is clean between the runs.
    fn contender(self, node: &'a Namespace, pod: &'a Namespace) -> Contender<'a> {
        let Self { who, bridge, way } = self;
        let stdin = match &way {
            Way::Plugin { config, .. } => Some(config.clone()),
            Way::Floor { .. } => None,
        };
        let make = move |verb: Verb, number: usize| match &way {
            Way::Plugin { folder, name, .. } => {
                plugins::call(folder, name, verb.as_str(), &format!("pod-{number}"), &pod.path())
            }
            Way::Floor { program: floor, subnet } => {
                let mut command = program(floor);
                let address = format!("10.99.{subnet}.{}/24", 2 + number % 250);
                let (port, gateway) = (format!("vethf{number}"), format!("10.99.{subnet}.1"));
                match verb {
                    Verb::Add => {
                        command.args(["attach", &pod.path(), bridge, &port, LINK, &address, &gateway])
                    }
                    Verb::Delete => command.args(["detach", &pod.path(), LINK]),
                };
                command
            }
        };
        let verify = move |verb: Verb, _: usize| {
            let ports = node.ip(&format!("-o link show master {bridge}"))?.lines().count();
            match verb {
                Verb::Add => {
                    ensure!(ports == 1, "the bridge {bridge} has {ports} ports");
                    let shown = pod.ip(&format!("-o -4 address show dev {LINK}"))?;
                    ensure!(shown.contains("inet "), "the pod has no address");
                }
                Verb::Delete => ensure!(ports == 0, "the pod's link is still there"),
            }
            Ok(())
        };
        Contender::new(who, make, stdin.as_deref(), verify)
    }
}

/// bridge -> host-local, and flannel -> bridge -> host-local, ADD and DEL of each.
pub(crate) fn measure(programs: &Programs, runs: usize, floor_only: bool) -> Result<Vec<Row>> {
    let node = Namespace::new("node")?;
    let pods = [Namespace::new("pod0")?, Namespace::new("pod1")?, Namespace::new("pod2")?];
    let [pod, second, third] = &pods;
    let directory = Directory::new()?;
    let folder = plugins::install(programs, &directory)?;
    let bridge = |who: &str, subnet: u8| {
        let state = directory.path.join(format!("state-{who}"));
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"{who}","type":"bridge","bridge":"br-{who}","isDefaultGateway":true,"hairpinMode":true,
            "ipam":{{"type":"host-local","dataDir":"{state}","ranges":[[{{"subnet":"10.99.{subnet}.0/24"}}]]}}}}"#
        );
        directory.write(&format!("{who}.json"), &text)
    };
    let plugin = |folder: &Utf8Path, name, config| Way::Plugin { folder: folder.to_owned(), name, config };
    let floor = |bridge: &'static str, subnet: u8| -> Result<Subject<'_>> {
        node.ip(&format!("link add {bridge} type bridge"))?;
        node.ip(&format!("link set {bridge} up"))?;
        node.ip(&format!("address add 10.99.{subnet}.1/24 dev {bridge}"))?;
        let way = Way::Floor { program: programs.floor.clone(), subnet };
        Ok(Subject { who: Who::Floor, bridge, way })
    };

    let mut direct = Vec::new();
    if !floor_only {
        let ours = plugin(&folder, "bridge", bridge("ours", 1)?);
        let peer = plugin(Utf8Path::new(DEBIAN), "bridge", bridge("peer", 2)?);
        direct.push(Subject { who: Who::Ours, bridge: "br-ours", way: ours }.contender(&node, pod));
        direct.push(Subject { who: Who::Debian, bridge: "br-peer", way: peer }.contender(&node, second));
    }
    direct.push(floor("br-floor", 3)?.contender(&node, third));
    let mut rows = Vec::from(contest("bridge → host-local", &node, direct, runs)?);
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
    let ours = Subject { who: Who::Ours, bridge: "br-flannel", way: plugin(&folder, "flannel", config) };
    let contenders = vec![ours.contender(&node, pod), floor("br-floor2", 5)?.contender(&node, second)];
    let [add, delete] = contest("flannel → bridge → host-local", &node, contenders, runs)?;
    let [of_add, of_delete] = FLANNEL;
    rows.extend([add.beside(of_add), delete.beside(of_delete)]);
    Ok(rows)
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
