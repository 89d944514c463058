//! A node that fills up: 250 pods, sixteen at a time, beside ten thousand rules of somebody else's.
//!
//! All programs fill and empty the same node in turns. Its pods' namespaces are made before and used by all. What counts is how many pods
//! a second have their network, how long the slowest wait, and that every pod has an address that no other has.

use super::Programs;
use super::plugins::{self, DEBIAN, LINK};
use super::ports::fed;
use super::report::Who;
use super::stage::{Directory, Namespace, cpu_of_children, program};
use super::statistics::{ms, quantile};
use anyhow::{Context, Result, ensure};
use cargo_metadata::camino::{Utf8Path, Utf8PathBuf};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PODS: usize = 250;
const AT_ONCE: usize = 16;
const RULES: usize = 10_000;
/// What the reference plugins v1.9.1 reached with flannel elsewhere.
const REFERENCE: &str = "61–80";

/// How a program attaches.
enum Way {
    Plugin { folder: Utf8PathBuf, name: &'static str, config: Utf8PathBuf },
    Floor { program: Utf8PathBuf },
}

/// One program and what it has done so far.
struct Subject {
    who: Who,
    what: &'static str,
    way: Way,
    /// Whole fillings and emptyings.
    filled: Vec<Duration>,
    emptied: Vec<Duration>,
    /// Single pods.
    waits: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Subject {
    fn new(who: Who, what: &'static str, way: Way) -> Self {
        Self { who, what, way, filled: vec![], emptied: vec![], waits: vec![], cpu: vec![] }
    }

    fn command(&self, verb: &str, number: usize, pod: &Namespace) -> (Command, Option<&Utf8Path>) {
        match &self.way {
            Way::Plugin { folder, name, config } => {
                let command = plugins::call(folder, name, verb, &format!("pod-{number}"), &pod.path());
                (command, Some(config))
            }
            Way::Floor { program: floor } => {
                let mut command = program(floor);
                let (port, address) = (format!("vethf{number}"), floor_address(number));
                let address = format!("{address}/20");
                if verb == "ADD" {
                    command.args(["attach", &pod.path(), "br-floor", &port, LINK, &address, "10.94.0.1"]);
                } else {
                    command.args(["detach", &pod.path(), LINK]);
                }
                (command, None)
            }
        }
    }

    /// One command for every pod, [`AT_ONCE`] at a time; answers how long it took, and how long each.
    fn storm(&self, verb: &str, pods: &[Namespace]) -> Result<(Duration, Vec<Duration>)> {
        let next = AtomicUsize::new(0);
        let waits = Mutex::new(Vec::with_capacity(pods.len()));
        let failure = Mutex::new(None);
        let work = || -> Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some(pod) = pods.get(number) else { return Ok(()) };
                let (mut command, config) = self.command(verb, number, pod);
                let input = match config {
                    Some(path) => std::fs::File::open(path)?.into(),
                    None => Stdio::null(),
                };
                command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
                let begun = Instant::now();
                let output = command.spawn()?.wait_with_output()?;
                let wait = begun.elapsed();
                ensure!(
                    output.status.success(),
                    "{verb} of pod {number} failed: {} {}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                if let Ok(mut waits) = waits.lock() {
                    waits.push(wait);
                }
            }
        };
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    if let Err(error) = work()
                        && let Ok(mut failure) = failure.lock()
                    {
                        failure.get_or_insert(error);
                    }
                });
            }
        });
        let took = begun.elapsed();
        if let Some(error) = failure.into_inner().ok().flatten() {
            return Err(error.context(format!("{}", self.who)));
        }
        Ok((took, waits.into_inner().unwrap_or_default()))
    }

    fn round(&mut self, node: &Namespace, pods: &[Namespace], counts: bool) -> Result<()> {
        let before = cpu_of_children()?;
        let (filled, waits) = node.run(|| self.storm("ADD", pods))?;
        let cpu = cpu_of_children()?.saturating_sub(before);
        let addresses: BTreeSet<String> = pods.iter().map(address_of).collect::<Result<_>>()?;
        ensure!(addresses.len() == PODS, "{}: {PODS} pods have {} addresses", self.who, addresses.len());
        let (emptied, _) = node.run(|| self.storm("DEL", pods))?;
        let left = node.ip("-o link show type veth")?.lines().count();
        ensure!(left == 0, "{}: {left} links are left of {PODS} pods", self.who);
        if counts {
            self.filled.push(filled);
            self.emptied.push(emptied);
            self.waits.extend(waits);
            self.cpu.push(cpu);
        }
        Ok(())
    }

    fn line(&self, ours: Option<(f64, Duration)>, out: &mut String) -> Option<(f64, Duration)> {
        let sorted = |times: &[Duration]| {
            let mut times = times.to_vec();
            times.sort();
            times
        };
        let (filled, emptied) = (sorted(&self.filled), sorted(&self.emptied));
        let (waits, cpu) = (sorted(&self.waits), sorted(&self.cpu));
        let pods = f64::from(u32::try_from(PODS).unwrap_or(u32::MAX));
        let rate = |took: Duration| pods / took.as_secs_f64();
        let (add, delete) = (rate(quantile(&filled, 50)?), rate(quantile(&emptied, 50)?));
        let (p50, p99) = (quantile(&waits, 50)?, quantile(&waits, 99)?);
        let each = Duration::from_secs_f64(quantile(&cpu, 50)?.as_secs_f64() / pods);
        let times = ours.map_or_else(
            || "1.00 | 1.00".to_owned(),
            |(rate, slowest)| format!("{:.2} | {:.2}", add / rate, p99.as_secs_f64() / slowest.as_secs_f64()),
        );
        let _infallible = writeln!(
            out,
            "| {} | {} | {add:.0} | {} | {} | {} | {delete:.0} | {times} | {} |",
            self.who,
            self.what,
            ms(p50),
            ms(p99),
            ms(each),
            filled.len()
        );
        Some((add, p99))
    }
}

fn floor_address(number: usize) -> String {
    format!("10.94.{}.{}", number / 200, 2 + number % 200)
}

fn address_of(pod: &Namespace) -> Result<String> {
    let shown = pod.ip(&format!("-o -4 address show dev {LINK}"))?;
    let word = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    Ok(word.context("a pod has no address")?.to_owned())
}

/// The table, ready to print.
pub(crate) fn measure(programs: &Programs, rounds: usize) -> Result<String> {
    let node = Namespace::new("crowd")?;
    let pods: Vec<Namespace> = (0..PODS).map(|n| Namespace::new(&format!("c{n}"))).collect::<Result<_>>()?;
    node.run(rules_of_somebody_else)?;
    let directory = Directory::new()?;
    let folder = plugins::install(programs, &directory)?;
    let state = &directory.path;
    node.ip("link add br-floor type bridge")?;
    node.ip("link set br-floor up")?;
    node.ip("address add 10.94.0.1/20 dev br-floor")?;
    let subnet_file = directory.write(
        "crowd.env",
        "FLANNEL_NETWORK=10.92.0.0/15\nFLANNEL_SUBNET=10.92.0.1/20\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
    )?;
    let flannel = directory.write(
        "crowd-flannel.json",
        &format!(
            r#"{{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","subnetFile":"{subnet_file}","dataDir":"{state}/crowd-flannel",
            "delegate":{{"bridge":"br-ours","isDefaultGateway":true,"hairpinMode":true}},"ipam":{{"dataDir":"{state}/crowd-ours"}}}}"#
        ),
    )?;
    let bridge = |who: &str, subnet: u8| {
        directory.write(
            &format!("crowd-{who}.json"),
            &format!(
                r#"{{"cniVersion":"1.0.0","name":"{who}","type":"bridge","bridge":"br-{who}","isDefaultGateway":true,"hairpinMode":true,"mtu":1450,
                "ipam":{{"type":"host-local","dataDir":"{state}/crowd-{who}","ranges":[[{{"subnet":"10.9{subnet}.0.0/20"}}]]}}}}"#
            ),
        )
    };
    let plugin = |folder: &Utf8Path, name, config| Way::Plugin { folder: folder.to_owned(), name, config };
    let peer = plugin(Utf8Path::new(DEBIAN), "bridge", bridge("peer", 3)?);
    let mut subjects = [
        Subject::new(Who::Ours, "flannel → bridge → host-local", plugin(&folder, "flannel", flannel)),
        Subject::new(Who::Debian, "bridge → host-local", peer),
        Subject::new(Who::Floor, "links, address, route", Way::Floor { program: programs.floor.clone() }),
    ];
    for round in 0..=rounds {
        for subject in &mut subjects {
            subject.round(&node, &pods, round > 0)?;
        }
    }
    let mut out = format!(
        "{PODS} pods on one node, {AT_ONCE} at a time, beside {RULES} rules of somebody else's; every pod has its own address and none is left \
         behind. The reference plugins v1.9.1 reached {REFERENCE} pods a second with flannel elsewhere.\n\n\
         | by | what | pods a second | median ms | p99 ms | CPU ms a pod | DELs a second | rate ÷ Loden's | p99 ÷ Loden's | rounds |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    );
    let mut ours = None;
    for subject in &subjects {
        let told = subject.line(ours, &mut out);
        ours = ours.or(told);
    }
    Ok(out)
}

/// A table that no plugin knows.
fn rules_of_somebody_else() -> Result<()> {
    let mut text = String::from("table inet somebody {\n chain services {\n");
    for n in 0..RULES {
        let _infallible = writeln!(
            text,
            "  ip daddr 10.{}.{}.{} tcp dport {} counter accept",
            100 + n / 65_536,
            n / 256 % 256,
            n % 256,
            1024 + n % 60_000
        );
    }
    text.push_str(" }\n}\n");
    fed(&["nft", "-f", "-"], &text).map(|_| ())
}
