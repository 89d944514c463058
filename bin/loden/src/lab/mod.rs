//! `loden lab`: build, look at, change, check and remove a VPC with a cluster in it.

mod arguments;
mod cloud;
mod fault;
mod show;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command as Program, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use loden_lab::check::Report;
use loden_lab::control::{ActionCalls, Applied, Behaviour, Event, ProcessName, Request, ask};
use loden_lab::process::Programs;
use loden_lab::teardown::{Removed, labs, teardown};
use loden_lab::{Inputs, LabName, Status, picture};
use loden_netlink::netns::NetNs;
use loden_sim_cloud::Fault;
use serde::de::DeserializeOwned;

pub(crate) use arguments::LabArgs;
use arguments::{
    Command, CredentialsCommand, DEFAULT_NAME, FaultCommand, NodeCommand, Output, PodCommand, RestartCommand,
    RouteCommand, TableCommand,
};

use crate::render::{self, Colour, Progress};

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
        Command::List => return list(args.output),
        Command::Supervise => return supervise(&lab),
        Command::Pod(PodCommand::Exec { pod, command }) => return exec(&lab, &pod, &command),
        Command::Status => {
            let status: Status = ask(&lab, &Request::Status, |_| {})?;
            match args.output {
                Output::Json => render::json(&status)?,
                Output::Text => show::lab(&status),
            }
        }
        Command::Events => {
            let events: Vec<Event> = ask(&lab, &Request::Events, |_| {})?;
            match args.output {
                Output::Json => render::json(&events)?,
                Output::Text => show::events(&events),
            }
        }
        Command::Fault(FaultCommand::List) => {
            render::json(&ask::<Vec<Fault>>(&lab, &Request::FaultList, |_| {})?)?;
        }
        Command::Cloud { changes, reset } => {
            let change = cloud::change(&changes)?;
            let looks = change.is_none() && !reset;
            let behaviour: Behaviour = ask(&lab, &Request::Cloud { change, reset }, |_| {})?;
            match args.output {
                Output::Json => render::json(&behaviour.now)?,
                Output::Text if looks => cloud::all(&behaviour)?,
                Output::Text => cloud::changed(&behaviour)?,
            }
        }
        Command::Calls => {
            let calls: BTreeMap<String, ActionCalls> = ask(&lab, &Request::Calls, |_| {})?;
            match args.output {
                Output::Json => render::json(&calls)?,
                Output::Text => show::calls(&calls),
            }
        }
        Command::Table(TableCommand::List) => {
            let status: Status = ask(&lab, &Request::Status, |_| {})?;
            match args.output {
                Output::Json => render::json(&status.route_tables)?,
                Output::Text => show::tables(&status),
            }
        }
        Command::Route(RouteCommand::List) => {
            let status: Status = ask(&lab, &Request::Status, |_| {})?;
            match args.output {
                Output::Json => render::json(&status.system_table())?,
                Output::Text => show::routes(&status),
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
        Command::Node(NodeCommand::Add { node, cluster, provider_id }) => Request::NodeAdd {
            name: node,
            cluster: usize::from(cluster) - 1,
            provider_id: provider_id.into(),
        },
        Command::Node(NodeCommand::Replace { node }) => Request::NodeReplace { name: node },
        Command::Node(NodeCommand::Remove { node }) => Request::NodeRemove { name: node },
        Command::Node(NodeCommand::Crash { node }) => Request::NodeCrash { name: node },
        Command::Pod(PodCommand::Add { pod, node }) => Request::PodAdd { node, name: pod },
        Command::Pod(PodCommand::Remove { pod }) => Request::PodRemove { name: pod },
        Command::Route(RouteCommand::Add { destination, instance, interface, replace, table }) => {
            Request::RouteAdd { destination, instances: instance, interface, replace, table }
        }
        Command::Route(RouteCommand::Remove { destination, table }) => {
            Request::RouteRemove { destination, table }
        }
        Command::Table(TableCommand::Add { id, copy_of }) => Request::TableAdd { id, copy_of },
        Command::Table(TableCommand::Use { vswitch, table }) => Request::TableUse { vswitch, table },
        Command::Table(TableCommand::Serve { tables, cluster }) => {
            Request::TableServe { tables, cluster: usize::from(cluster) - 1 }
        }
        Command::Credentials(CredentialsCommand::Rotate) => Request::CredentialsRotate,
        Command::DryRun { cluster } => Request::DryRun { cluster: usize::from(cluster) - 1 },
        Command::Stop(process) => Request::Stop { process: process.into() },
        Command::Start(process) => Request::Start { process: process.into() },
        Command::Restart(RestartCommand::Controller { cluster, route_table_ids }) => Request::Restart {
            process: ProcessName::Controller { cluster: usize::from(cluster) - 1, route_table_ids },
        },
        Command::Restart(RestartCommand::Flanneld { node }) => {
            Request::Restart { process: ProcessName::Flanneld(node) }
        }
        Command::Fault(FaultCommand::Add(args)) => Request::FaultAdd { fault: fault::fault(args) },
        Command::Fault(FaultCommand::Clear) => Request::FaultClear,
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
    show::lab(&status);
    let option = if lab.as_str() == DEFAULT_NAME { String::new() } else { format!(" --name {lab}") };
    render::print("");
    render::print(&format!(
        "Lab {lab} is up after {:.1} s. Next: `loden lab{option} check`, `loden lab{option} pod exec pod-1 -- ping -c 3 {}`, `loden lab{option} down`",
        took.as_secs_f32(),
        status.pods.last().map_or(status.internet.host, |pod| pod.address),
    ));
    for cluster in &status.clusters {
        render::print(&format!("kubectl: export KUBECONFIG={}", cluster.kubeconfig));
    }
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

fn list(output: Output) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for lab in labs()? {
        let state = ask::<Status>(&lab, &Request::Status, |_| {});
        found.push((lab, state));
    }
    match output {
        Output::Text => show::labs(&found),
        Output::Json => {
            let described = |(lab, state): &(LabName, loden_lab::Result<Status>)| match state {
                Ok(status) => {
                    serde_json::json!({ "lab": lab, "running": true, "directory": status.directory, "nodes": status.nodes.len(), "pods": status.pods.len() })
                }
                Err(error) => serde_json::json!({ "lab": lab, "running": false, "why": error.to_string() }),
            };
            render::json(&found.iter().map(described).collect::<Vec<_>>())?;
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
