//! Host ports: `portmap` beside its peers, alone and on a node that has two thousand other containers' rules.
//!
//! The plugin is chained, so no pod is needed: an address is all that it is told. The rules of other containers are written in the layout
//! that the reference plugins have for both backends.

use super::Programs;
use super::contest::{Contender, Verb, contest};
use super::plugins::{self, DEBIAN};
use super::report::{Reference, Row, Who};
use super::stage::{Directory, Namespace, program};
use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::Utf8Path;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// Containers that are on the node already, in one of the rows.
const OTHERS: u16 = 2000;
const ADDRESS: &str = "10.98.0.5";

/// Which of the two the rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Nftables,
    Iptables,
}

impl Backend {
    fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// What the reference plugins took with no other container and beside [`OTHERS`]: ADD and DEL.
    fn reference(self, crowded: bool) -> Option<[Reference; 2]> {
        let of = |min, cpu, processes| Reference { min, cpu, processes };
        match (self, crowded) {
            (Self::Nftables, false) => Some([of(29.0, Some(20.0), Some(4)), of(57.0, Some(46.0), Some(13))]),
            (Self::Nftables, true) => None,
            (Self::Iptables, false) => Some([of(37.0, Some(45.0), Some(21)), of(70.0, Some(43.0), None)]),
            (Self::Iptables, true) => Some([of(172.0, Some(121.0), Some(21)), of(122.0, None, None)]),
        }
    }
}

/// One mapping by either backend, without and with other containers; and no mapping.
pub(crate) fn measure(programs: &Programs, runs: usize, floor_only: bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for backend in [Backend::Nftables, Backend::Iptables] {
        for crowded in [false, true] {
            rows.extend(one_mapping(programs, runs, backend, crowded, floor_only)?);
        }
    }
    if !floor_only {
        rows.extend(no_mapping(programs, runs)?);
    }
    Ok(rows)
}

fn configuration(
    directory: &Directory,
    name: &str,
    keys: &str,
) -> Result<cargo_metadata::camino::Utf8PathBuf> {
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"ports","type":"portmap"{keys},
        "prevResult":{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"/run/netns/none"}}],
        "ips":[{{"interface":0,"address":"{ADDRESS}/24","gateway":"10.98.0.1"}}]}}}}"#
    );
    directory.write(&format!("{name}.json"), &text)
}

/// A node with the link that the container's address is behind, so that the plugins find it.
fn node_with_link() -> Result<Namespace> {
    let node = Namespace::new("ports")?;
    for line in [
        "link add cni9 type bridge",
        "address add 10.98.0.1/24 dev cni9",
        "link set cni9 up",
        "link set lo up",
    ] {
        node.ip(line)?;
    }
    Ok(node)
}

fn one_mapping(
    programs: &Programs,
    runs: usize,
    backend: Backend,
    crowded: bool,
    floor_only: bool,
) -> Result<Vec<Row>> {
    let (node, pod) = (node_with_link()?, Namespace::new("pod")?);
    let directory = Directory::new()?;
    let folder = plugins::install(programs, &directory)?;
    let mapping =
        r#""runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
    let config =
        configuration(&directory, "portmap", &format!(r#","backend":"{}",{mapping}"#, backend.as_str()))?;
    // Debian's version knows one backend and no key to choose it by.
    let plain = configuration(&directory, "portmap-debian", &format!(",{mapping}"))?;

    if crowded {
        node.run(|| others(backend))?;
    }
    let (node_ref, netns) = (&node, pod.path());
    let plugin = |who, folder: &Utf8Path, config: &Utf8Path| {
        let (folder, netns) = (folder.to_owned(), netns.clone());
        Contender::new(
            who,
            move |verb: Verb, number| {
                plugins::call(&folder, "portmap", verb.as_str(), &format!("container-{number}"), &netns)
            },
            Some(config),
            move |verb, _| {
                let rules = node_ref.run(|| listed(backend))?;
                let present = rules.contains(&format!("{ADDRESS}:80"));
                ensure!(present == (verb == Verb::Add), "a rule for {ADDRESS}:80 is there: {present}");
                Ok(())
            },
        )
    };
    let mut contenders = Vec::new();
    if !floor_only {
        contenders.push(plugin(Who::Ours, &folder, &config));
        if backend == Backend::Iptables {
            contenders.push(plugin(Who::Debian, Utf8Path::new(DEBIAN), &plain));
        }
    }
    if backend == Backend::Nftables {
        contenders.push(floor(programs, &node)?);
    }
    if contenders.is_empty() {
        return Ok(Vec::new());
    }
    let what = match (backend, crowded) {
        (backend, false) => format!("portmap, one port, {}", backend.as_str()),
        (backend, true) => format!("portmap, one port beside {OTHERS} containers', {}", backend.as_str()),
    };
    let rows = contest(&what, &node, contenders, runs)?;
    Ok(match backend.reference(crowded).filter(|_| !floor_only) {
        Some(references) => {
            rows.into_iter().zip(references).map(|(row, reference)| row.beside(reference)).collect()
        }
        None => Vec::from(rows),
    })
}

/// One transaction that appends two rules to a chain, and one that deletes them.
fn floor<'a>(programs: &'a Programs, node: &Namespace) -> Result<Contender<'a>> {
    node.run(|| {
        super::stage::timed(program(&programs.floor).arg("nft-add"), None)?;
        Ok(())
    })?;
    let make = |verb, _| {
        let mut command = program(&programs.floor);
        command.arg(if verb == Verb::Add { "nft-rules-add" } else { "nft-rules-delete" });
        command
    };
    Ok(Contender::new(Who::Floor, make, None, |_, _| Ok(())))
}

fn no_mapping(programs: &Programs, runs: usize) -> Result<Vec<Row>> {
    let (node, pod) = (node_with_link()?, Namespace::new("pod")?);
    let directory = Directory::new()?;
    let folder = plugins::install(programs, &directory)?;
    let config = configuration(&directory, "no-ports", "")?;
    let netns = pod.path();
    let plugin = |who, folder: &Utf8Path| {
        let (folder, netns) = (folder.to_owned(), netns.clone());
        let make = move |verb: Verb, number| {
            plugins::call(&folder, "portmap", verb.as_str(), &format!("container-{number}"), &netns)
        };
        Contender::new(who, make, Some(config.as_path()), |_, _| Ok(()))
    };
    let nothing = |_, _| {
        let mut command = program(&programs.floor);
        command.arg("nothing");
        command
    };
    let contenders = vec![
        plugin(Who::Ours, &folder),
        plugin(Who::Debian, Utf8Path::new(DEBIAN)),
        Contender::new(Who::Floor, nothing, None, |_, _| Ok(())),
    ];
    let [add, delete] = contest("portmap without host ports", &node, contenders, runs)?;
    Ok(vec![add.beside(Reference { min: 7.4, cpu: Some(10.0), processes: Some(3) }), delete])
}

/// Runs a program of the machine's in the namespace of the calling thread, with this on its standard input; answers what it prints.
pub(super) fn fed(words: &[&str], text: &str) -> Result<String> {
    let Some((name, arguments)) = words.split_first() else { return Ok(String::new()) };
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    child.stdin.take().context("a pipe was asked for")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{} failed: {}", words.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn listed(backend: Backend) -> Result<String> {
    match backend {
        Backend::Nftables => fed(&["nft", "list", "ruleset"], ""),
        Backend::Iptables => fed(&["iptables-save", "-t", "nat"], ""),
    }
}

/// The rules of [`OTHERS`] containers with one port each.
fn others(backend: Backend) -> Result<()> {
    let mut text = String::new();
    let each = || (1..=OTHERS).map(|n| (n, 20_000 + n, format!("10.97.{}.{}", n / 250, 2 + n % 250)));
    match backend {
        Backend::Nftables => {
            text.push_str("table ip cni_hostport {\n chain hostports {\n");
            for (n, port, address) in each() {
                let _infallible =
                    writeln!(text, "  tcp dport {port} dnat to {address}:80 comment \"other-{n}\"");
            }
            text.push_str(
                " }\n chain masquerading {\n  type nat hook postrouting priority srcnat; policy accept;\n",
            );
            for (n, _, address) in each() {
                let _infallible = writeln!(
                    text,
                    "  ip saddr {address} ip daddr {address} masquerade comment \"other-{n}\""
                );
                let _infallible = writeln!(
                    text,
                    "  ip saddr 127.0.0.1 ip daddr {address} masquerade comment \"other-{n}\""
                );
            }
            text.push_str(" }\n}\n");
            fed(&["nft", "-f", "-"], &text)?;
        }
        Backend::Iptables => {
            text.push_str("*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n");
            for (n, ..) in each() {
                let _infallible = writeln!(text, ":CNI-DN-{n:021x} - [0:0]");
            }
            text.push_str("-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000\n");
            for (n, port, address) in each() {
                let _infallible = writeln!(
                    text,
                    "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"others\\\" id: \\\"other-{n}\\\"\" -m multiport --dports {port} -j CNI-DN-{n:021x}\n\
                     -A CNI-DN-{n:021x} -s {address}/24 -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK\n\
                     -A CNI-DN-{n:021x} -s 127.0.0.1/32 -p tcp -m tcp --dport {port} -j CNI-HOSTPORT-SETMARK\n\
                     -A CNI-DN-{n:021x} -p tcp -m tcp --dport {port} -j DNAT --to-destination {address}:80"
                );
            }
            text.push_str("COMMIT\n");
            fed(&["iptables-restore", "--noflush"], &text)?;
        }
    }
    Ok(())
}
