//! `loden lab`: build, look at, change, check and remove a VPC with a cluster in it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command as Program, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use loden_lab::check::Report;
use loden_lab::control::{Applied, Event, ProcessName, Request, ask};
use loden_lab::process::Programs;
use loden_lab::teardown::{Removed, labs, teardown};
use loden_lab::{Inputs, LabName, Status, picture};
use loden_netlink::netns::NetNs;
use serde::de::DeserializeOwned;

use crate::render::{self, Colour, Progress};

const GUIDE: &str = "\
A lab is a VPC made of network namespaces on this machine: a virtual router that forwards by the route tables of an emulated \
Alibaba Cloud, instances on ports of it, and a Kubernetes cluster whose nodes run the real flanneld, the real CNI plugins and, beside \
them, the real loden-controller. Packets are real. It needs root, and leaves nothing behind after `loden lab down`.

Try:
  loden lab demo                       everything once: up, check, picture, down (about 30 s)
  loden lab up && loden lab status     a lab to play with
  loden lab pod exec pod-1 -- ip addr  look around inside a pod
  loden lab node add                   watch the cluster grow
  loden lab up --nodes 8 --quota 5     what happens when the route table is full
  loden lab down

Not there yet: portmap and other chained plugins, tunnel backends, a tunnel past the quota, IPv6, several VPC route tables.";

/// The lab that is meant when none is named.
const DEFAULT_NAME: &str = "demo";

/// A VPC with a cluster in it, on this machine.
#[derive(Debug, Args)]
#[command(after_help = GUIDE)]
pub(crate) struct LabArgs {
    /// Which lab; several can run side by side
    #[arg(long, global = true, default_value = DEFAULT_NAME, value_name = "NAME")]
    name: String,
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// Forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a lab and leave it running
    Up(UpArgs),
    /// What the lab is made of: picture, nodes, pods, route tables
    Status,
    /// Add, remove or crash a node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Add or remove a pod, or run a command in one
    #[command(subcommand)]
    Pod(PodCommand),
    /// Look at the system route table, or meddle with it by hand as somebody at the console would
    #[command(subcommand)]
    Route(RouteCommand),
    /// Kill the controller or a node's flanneld, and start it again at once
    #[command(subcommand)]
    Restart(RestartCommand),
    /// Try everything a working cluster must do, with real packets
    Check,
    /// Change how many custom entries each route table takes
    Quota {
        /// The new quota
        entries: u32,
    },
    /// The cluster's events, oldest first
    Events,
    /// Remove a lab and everything it left, in whatever state it is
    Down {
        /// Every lab on this machine
        #[arg(long)]
        all: bool,
    },
    /// Up, check, picture, down
    Demo(UpArgs),
    /// The lab's own process; `up` starts it
    #[command(hide = true)]
    Supervise,
}

#[derive(Debug, Clone, Args)]
struct UpArgs {
    /// Kubernetes nodes
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().nodes)]
    nodes: u32,
    /// Pods to start on each node
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().pods)]
    pods: u32,
    /// Addresses in each node's subnet: 16, 32, 64, 128 or 256
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().pods_per_node)]
    pods_per_node: u32,
    /// Range that is cut into one subnet per node; outside the VPC's range
    #[arg(long, value_name = "CIDR", default_value_t = Inputs::default().pod_cidr)]
    pod_cidr: Ipv4Net,
    /// Range of service addresses
    #[arg(long, value_name = "CIDR", default_value_t = Inputs::default().service_cidr)]
    service_cidr: Ipv4Net,
    /// Range of the VPC
    #[arg(long, value_name = "CIDR", default_value_t = Inputs::default().vpc_cidr)]
    vpc_cidr: Ipv4Net,
    /// Range of a vSwitch; repeat it for several, nodes are spread over them
    #[arg(long = "vswitch", value_name = "CIDR", value_delimiter = ',', default_values_t = Inputs::default().vswitches)]
    vswitches: Vec<Ipv4Net>,
    /// Custom entries that each route table takes
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().quota)]
    quota: u32,
    /// Milliseconds until a changed route entry is effective
    #[arg(long, value_name = "MS", default_value_t = Inputs::default().entry_delay_ms)]
    entry_delay: u64,
}

impl UpArgs {
    fn inputs(&self) -> Inputs {
        Inputs {
            nodes: self.nodes,
            pods: self.pods,
            pods_per_node: self.pods_per_node,
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            vpc_cidr: self.vpc_cidr,
            vswitches: self.vswitches.clone(),
            quota: self.quota,
            entry_delay_ms: self.entry_delay,
        }
    }
}

#[derive(Debug, Subcommand)]
enum NodeCommand {
    /// Start an instance that joins the cluster
    Add {
        /// Its name; node-<n> if not given
        node: Option<String>,
    },
    /// Take a node out in order: its pods, flanneld, the node object, the instance
    Remove {
        /// Which
        node: String,
    },
    /// Stop an instance from one moment to the next; its node object stays
    Crash {
        /// Which
        node: String,
    },
}

#[derive(Debug, Subcommand)]
enum PodCommand {
    /// Start a pod by the CNI protocol
    Add {
        /// Its name; pod-<n> if not given
        pod: Option<String>,
        /// On this node; the one with the fewest pods if not given
        #[arg(long)]
        node: Option<String>,
    },
    /// Stop a pod
    Remove {
        /// Which
        pod: String,
    },
    /// Run a command in a pod's network namespace
    Exec {
        /// Which
        pod: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum RouteCommand {
    /// Entries of the system table
    List,
    /// Make an entry
    Add {
        /// Destination
        destination: Ipv4Net,
        /// Name of the instance that is its next hop
        instance: String,
    },
    /// Delete an entry
    Remove {
        /// Destination
        destination: Ipv4Net,
    },
}

#[derive(Debug, Subcommand)]
enum RestartCommand {
    /// loden-controller
    Controller,
    /// The flanneld of a node
    Flanneld {
        /// Which node
        node: String,
    },
}

/// Set by the thread that cleans up after an interruption, before it begins.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Carries the command out.
pub(crate) fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    let result = dispatch(args);
    while INTERRUPTED.load(Ordering::SeqCst) {
        // What failed here failed because the lab is being removed; whoever removes it ends the process and says so.
        std::thread::park();
    }
    result
}

fn dispatch(args: LabArgs) -> anyhow::Result<ExitCode> {
    let lab: LabName = args.name.parse()?;
    if !rustix::process::geteuid().is_root() {
        bail!("a lab is made of network namespaces, which only root may make; run this as root");
    }
    match args.command {
        Command::Up(up) => return start(&lab, &up.inputs(), args.output),
        Command::Demo(up) => return demo(&lab, &up.inputs(), args.output),
        Command::Down { all } => return down(&lab, all, args.output),
        Command::Check => return check(&lab, args.output),
        Command::Supervise => return supervise(&lab),
        Command::Pod(PodCommand::Exec { pod, command }) => return exec(&lab, &pod, &command),
        Command::Status => {
            let status: Status = ask(&lab, &Request::Status, |_| {})?;
            match args.output {
                Output::Json => render::json(&status)?,
                Output::Text => show(&status),
            }
        }
        Command::Events => {
            let events: Vec<Event> = ask(&lab, &Request::Events, |_| {})?;
            match args.output {
                Output::Json => render::json(&events)?,
                Output::Text => show_events(&events),
            }
        }
        Command::Route(RouteCommand::List) => {
            let status: Status = ask(&lab, &Request::Status, |_| {})?;
            match args.output {
                Output::Json => render::json(&status.system_table())?,
                Output::Text => show_routes(&status),
            }
        }
        command => {
            let applied: Applied = ask_visibly(&lab, &request(command)?)?;
            match args.output {
                Output::Json => render::json(&applied)?,
                Output::Text => render::print(&applied.text),
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The request of a command that the supervisor carries out.
fn request(command: Command) -> anyhow::Result<Request> {
    Ok(match command {
        Command::Node(NodeCommand::Add { node }) => Request::NodeAdd { name: node },
        Command::Node(NodeCommand::Remove { node }) => Request::NodeRemove { name: node },
        Command::Node(NodeCommand::Crash { node }) => Request::NodeCrash { name: node },
        Command::Pod(PodCommand::Add { pod, node }) => Request::PodAdd { node, name: pod },
        Command::Pod(PodCommand::Remove { pod }) => Request::PodRemove { name: pod },
        Command::Route(RouteCommand::Add { destination, instance }) => {
            Request::RouteAdd { destination, instance }
        }
        Command::Route(RouteCommand::Remove { destination }) => Request::RouteRemove { destination },
        Command::Restart(RestartCommand::Controller) => Request::Restart { process: ProcessName::Controller },
        Command::Restart(RestartCommand::Flanneld { node }) => {
            Request::Restart { process: ProcessName::Flanneld(node) }
        }
        Command::Quota { entries } => Request::Quota { entries },
        other => bail!("{other:?} is not carried out by the supervisor"),
    })
}

fn ask_visibly<T: DeserializeOwned>(lab: &LabName, request: &Request) -> anyhow::Result<T> {
    let mut progress = Progress::start();
    let answer = ask(lab, request, |text| progress.step(text));
    progress.finish();
    Ok(answer?)
}

fn programs() -> anyhow::Result<Programs> {
    let own = std::env::current_exe().context("cannot find the running program")?;
    Ok(Programs::beside(&own)?)
}

/// From here on Ctrl-C removes the lab before the command ends: a lab that is half built, or built for a demo, is of no use to anybody.
fn clean_up_when_interrupted(lab: &LabName) {
    let lab = lab.clone();
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        let interrupted = runtime.block_on(async {
            let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| 130),
                _ = terminated.recv() => Ok(143),
            }
        });
        if let Ok(code) = interrupted {
            INTERRUPTED.store(true, Ordering::SeqCst);
            leave(&lab, code);
        }
    });
}

#[expect(
    clippy::exit,
    reason = "main waits for a supervisor that is gone, or for probes that nobody answers any more"
)]
fn leave(lab: &LabName, code: i32) {
    match teardown(lab) {
        Ok(removed) => render::note(&format!("interrupted; {}", describe(lab, removed))),
        Err(error) => render::failure(
            &anyhow::Error::from(error).context("interrupted, and the lab could not be removed"),
        ),
    }
    std::process::exit(code);
}

fn build(lab: &LabName, inputs: &Inputs) -> anyhow::Result<(Status, Duration)> {
    let programs = programs()?;
    loden_lab::reserve(lab, inputs)?;
    clean_up_when_interrupted(lab);
    let mut progress = Progress::start();
    let built = loden_lab::up(lab, inputs, &programs, |text| progress.step(text));
    let took = progress.finish();
    Ok((built?, took))
}

fn start(lab: &LabName, inputs: &Inputs, output: Output) -> anyhow::Result<ExitCode> {
    let (status, took) = build(lab, inputs)?;
    if output == Output::Json {
        render::json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    show(&status);
    let option = if lab.as_str() == DEFAULT_NAME { String::new() } else { format!(" --name {lab}") };
    render::print("");
    render::print(&format!(
        "Lab {lab} is up after {:.1} s. Next: `loden lab{option} check`, `loden lab{option} pod exec pod-1 -- ping -c 3 {}`, `loden lab{option} down`",
        took.as_secs_f32(),
        status.pods.last().map_or(status.internet.host, |pod| pod.address),
    ));
    Ok(ExitCode::SUCCESS)
}

fn check(lab: &LabName, output: Output) -> anyhow::Result<ExitCode> {
    let report = probe(lab)?;
    match output {
        Output::Json => render::json(&report)?,
        Output::Text => render::report(&report),
    }
    Ok(if report.green() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn probe(lab: &LabName) -> anyhow::Result<Report> {
    let mut progress = Progress::start();
    let report = loden_lab::check::check(lab, |text| progress.step(text));
    progress.finish();
    Ok(report?)
}

/// Whatever happens after `up`, the lab is taken down again; the first failure is the one reported.
fn demo(lab: &LabName, inputs: &Inputs, output: Output) -> anyhow::Result<ExitCode> {
    let text = output == Output::Text;
    if text {
        render::print(&render::coloured(
            "A VPC out of network namespaces, and a Flannel cluster in it",
            Colour::Bold,
        ));
    }
    let (status, took) = build(lab, inputs)?;
    if text {
        render::print(&format!(
            "  up after {:.1} s: {} nodes, {} pods",
            took.as_secs_f32(),
            status.nodes.len(),
            status.pods.len()
        ));
        render::print("");
    }
    let checked = probe(lab);
    if let (Ok(report), true) = (&checked, text) {
        for line in picture::draw(&status) {
            render::print(&line);
        }
        render::print("");
        render::report(report);
    }
    let removed = remove(lab)?;
    let report = checked?;
    if text {
        render::print(&format!("  {}", describe(lab, removed)));
    } else {
        render::json(&serde_json::json!({ "status": status, "report": report, "removed": removed }))?;
    }
    Ok(if report.green() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn remove(lab: &LabName) -> anyhow::Result<Removed> {
    let mut progress = Progress::start();
    progress.step(&format!("removing lab {lab}"));
    let removed = teardown(lab);
    progress.finish();
    Ok(removed?)
}

fn describe(lab: &LabName, removed: Removed) -> String {
    if removed.nothing() {
        return format!("there was nothing of lab {lab}");
    }
    format!("lab {lab} is gone: {} processes, {} namespaces", removed.processes, removed.namespaces)
}

fn down(lab: &LabName, all: bool, output: Output) -> anyhow::Result<ExitCode> {
    let chosen: Vec<LabName> = if all { labs()?.into_iter().collect() } else { vec![lab.clone()] };
    for lab in &chosen {
        let removed = remove(lab)?;
        match output {
            Output::Json => render::json(&removed)?,
            Output::Text => render::print(&describe(lab, removed)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn supervise(lab: &LabName) -> anyhow::Result<ExitCode> {
    loden_telemetry::init_log(&loden_telemetry::LogOptions::default())?;
    loden_lab::supervisor::run(lab, programs()?)?;
    Ok(ExitCode::SUCCESS)
}

fn exec(lab: &LabName, pod: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let status: Status = ask(lab, &Request::Status, |_| {})?;
    let Some(pod) = status.pods.iter().find(|candidate| candidate.name == pod) else {
        let names: Vec<&str> = status.pods.iter().map(|pod| pod.name.as_str()).collect();
        bail!("lab {lab} has no pod {pod}; it has {}", names.join(", "));
    };
    let Some((program, arguments)) = command.split_first() else { bail!("no command given") };
    let namespace = NetNs::open_named(&pod.namespace)?;
    let mut child = namespace
        .run(|| Program::new(program).args(arguments).spawn())?
        .with_context(|| format!("cannot start {program} in pod {}", pod.name))?;
    let ended = child.wait().with_context(|| format!("cannot wait for {program}"))?;
    // A shell's way to tell an exit code from a signal.
    let code = ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
}

fn show(status: &Status) {
    for line in picture::draw(status) {
        render::print(&line);
    }
    render::print("");
    let nodes: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|node| {
            let condition = node.network_unavailable.as_ref();
            vec![
                node.name().to_owned(),
                node.instance.id.clone(),
                node.instance.address.to_string(),
                node.subnet.map_or_else(|| "-".to_owned(), |subnet| subnet.to_string()),
                condition.map_or("-", |condition| condition.status.as_str()).to_owned(),
                condition.map_or(String::new(), |condition| {
                    format!("{}: {}", condition.reason, condition.message)
                }),
            ]
        })
        .collect();
    render::table(&["NODE", "INSTANCE", "ADDRESS", "SUBNET", "NETWORK UNAVAILABLE", "REASON"], &nodes);
    // The picture shows who is not available; why is told in full, since it says what to do.
    for node in &status.nodes {
        if let Some(condition) =
            node.network_unavailable.as_ref().filter(|condition| condition.status != "False")
        {
            render::print(&format!("{}: {}", node.name(), condition.message));
        }
    }
    render::print("");
    render::print(&format!("files and logs: {}", status.directory));
}

fn show_routes(status: &Status) {
    let Some(table) = status.system_table() else { return };
    let used = table.entries.iter().filter(|entry| entry.custom).count();
    render::print(&format!("system route table {}, {used} of {} custom entries", table.id, table.quota));
    let rows: Vec<Vec<String>> = table
        .entries
        .iter()
        .map(|entry| {
            let kind = if entry.custom { "Custom" } else { "System" };
            [
                entry.destination.to_string(),
                entry.next_hop_type.clone(),
                entry.next_hop.clone(),
                entry.status.clone(),
            ]
            .into_iter()
            .chain([kind.to_owned(), entry.name.clone()])
            .collect()
        })
        .collect();
    render::table(&["DESTINATION", "TYPE", "NEXT HOP", "STATUS", "KIND", "NAME"], &rows);
}

fn show_events(events: &[Event]) {
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            vec![
                event.kind.clone(),
                event.object.clone(),
                event.reason.clone(),
                event.count.to_string(),
                event.message.clone(),
            ]
        })
        .collect();
    render::table(&["TYPE", "OBJECT", "REASON", "COUNT", "MESSAGE"], &rows);
}
