//! `loden ipam`: whose the addresses of this node are and what else the plugins made for containers, and giving back what nobody has any
//! more.

mod judge;
mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use loden_cni_plugins::host_local::inventory::{self, Reservation};
use loden_cni_plugins::leftovers;

use crate::render;
use judge::{Line, Thing};
use node::Node;

/// `check`'s exit code when it could not look at everything.
const PARTIAL: u8 = 2;

#[derive(Debug, Args)]
#[command(after_help = "What is looked at:\n\
    \x20 address   a reservation of host-local\n\
    \x20 port      the host's end of a container's pair of links\n\
    \x20 shaper    the ifb link by which bandwidth limits what a container sends\n\
    \x20 masq      masquerade rules of a container (nftables, iptables)\n\
    \x20 portmap   rules of a container's mapped ports (nftables, iptables)\n\
    \x20 spoof     the filter on a container's hardware address (macspoofchk)\n\
    \x20 backup    a link's former attributes, kept by tuning\n\
    \x20 stash     the delegate's configuration, kept by flannel\n\
    How each is judged, the first that holds:\n\
    \x20 torn      the reservation's file is empty: a crash left it, no plugin counts it as taken\n\
    \x20 unknown   its owner is in doubt, or not everything could be looked at: it stays\n\
    \x20 live      a network namespace of this node has the address or the other end of the link\n\
    \x20 known     a runtime has the container (libcni, containerd, CRI-O, podman, Docker)\n\
    \x20 new       it is younger than --grace: a pod may just be starting\n\
    \x20 leaked    nobody has it\n\
    Only what is torn or leaked is ever removed. Run as root on the node, in the host's network, process and mount namespaces, or running pods \
    cannot be seen: gc then refuses, and list and check say what they could not look at.\n\n\
    loden ipam list                 everything and whose it is\n\
    loden ipam check                exit code 1: something leaked; 2: not everything was seen\n\
    loden ipam gc                   what would be removed\n\
    loden ipam gc --apply           remove it")]
pub(crate) struct IpamArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every reserved address, and everything else that was made for a container
    List(Options),
    /// Only what is wrong; exit code 1 when there is any
    Check(Options),
    /// Frees leaked addresses and removes what else is nobody's; says only what it would do unless --apply is given
    Gc {
        #[command(flatten)]
        options: Options,
        /// Do it
        #[arg(long, visible_alias = "yes")]
        apply: bool,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// Where host-local keeps its reservations (`ipam.dataDir`)
    #[arg(long, default_value = "/var/lib/cni/networks")]
    data_dir: PathBuf,
    /// Where libcni keeps the results of its ADDs
    #[arg(long, default_value = "/var/lib/cni/results")]
    cache_dir: PathBuf,
    /// Where flannel keeps its delegates' configurations (`dataDir`)
    #[arg(long, default_value = loden_cni_protocol::flannel::DEFAULT_DATA_DIR)]
    flannel_dir: PathBuf,
    /// Where tuning keeps links' former attributes (`dataDir`)
    #[arg(long, default_value = loden_cni_protocol::tuning::DEFAULT_DATA_DIR)]
    tuning_dir: PathBuf,
    /// Only this network
    #[arg(long)]
    network: Option<String>,
    /// Seconds during which a file may have no owner yet
    #[arg(long, default_value_t = 300)]
    grace: u64,
    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

pub(crate) fn run(args: IpamArgs) -> Result<ExitCode> {
    let (options, wrong_only, apply) = match args.command {
        Command::List(options) => (options, false, None),
        Command::Check(options) => (options, true, None),
        Command::Gc { options, apply } => (options, true, Some(apply)),
    };
    let node = Node::observe(&options.cache_dir)?;
    let found = reservations(&options)?;
    let traces = leftovers::traces(&options.flannel_dir, &options.tuning_dir)?;
    let mut lines = judge::all(&node, Duration::from_secs(options.grace), found, traces);
    if let Some(wanted) = &options.network {
        lines.retain(|line| line.network.as_ref() == Some(wanted));
        if lines.is_empty() {
            bail!("nothing on this node is of network {wanted}");
        }
    }
    let total = lines.len();
    let shown: Vec<Line> = lines.into_iter().filter(|line| !wrong_only || line.state.is_wrong()).collect();
    let wrong = shown.iter().filter(|line| line.state.is_wrong()).count();
    match options.output {
        Output::Json => render::json(&shown)?,
        Output::Table if !shown.is_empty() => render::print(&table(&shown)),
        Output::Table => {}
    }
    for unseen in &node.unseen {
        render::note(&format!("could not be looked at: {unseen}"));
    }
    let is_partial = !node.unseen.is_empty();
    if is_partial {
        render::note("so nothing is called leaked: whoever has it may be there");
    }
    match apply {
        Some(_) if is_partial => bail!("nothing was removed: not everything on this node could be looked at"),
        None if wrong_only => {
            render::note(&format!("{wrong} of {total} things are nobody's"));
            Ok(match (wrong, is_partial) {
                (_, true) => ExitCode::from(PARTIAL),
                (0, false) => ExitCode::SUCCESS,
                (_, false) => ExitCode::FAILURE,
            })
        }
        None => Ok(ExitCode::SUCCESS),
        Some(false) => {
            render::note(&format!("would remove {wrong} of {total} things; --apply does it"));
            Ok(ExitCode::SUCCESS)
        }
        Some(true) => {
            let freed = free(&options, shown)?;
            render::note(&format!("removed {freed} of {total} things"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn reservations(options: &Options) -> Result<Vec<(String, Reservation)>> {
    let cannot_list = || format!("cannot list the networks in {}", options.data_dir.display());
    let networks = inventory::networks(&options.data_dir).with_context(cannot_list)?;
    let mut all = Vec::new();
    for network in networks {
        let found = inventory::reservations(&options.data_dir, &network)?;
        all.extend(found.into_iter().map(|reservation| (network.clone(), reservation)));
    }
    Ok(all)
}

fn free(options: &Options, lines: Vec<Line>) -> Result<usize> {
    let mut by_network: BTreeMap<String, Vec<Reservation>> = BTreeMap::new();
    let mut traces = Vec::new();
    for line in lines.into_iter().filter(|line| line.state.is_wrong()) {
        match line.thing {
            Thing::Reservation(network, reservation) => {
                by_network.entry(network).or_default().push(reservation);
            }
            Thing::Trace(trace) => traces.push(trace),
        }
    }
    // What leads to an address goes before the address can be somebody else's. One failure must not keep the rest.
    let mut failures = Vec::new();
    let mut freed = 0;
    for trace in &traces {
        match leftovers::remove(trace) {
            Ok(()) => freed += 1,
            Err(error) => failures.push(format!("{}: {error}", trace.name)),
        }
    }
    for (network, reservations) in by_network {
        match inventory::free(&options.data_dir, &network, &reservations) {
            Ok(count) => freed += count,
            Err(error) => failures.push(error.to_string()),
        }
    }
    ensure!(
        failures.is_empty(),
        "{freed} things were removed, and {} could not be: {}",
        failures.len(),
        failures.join("; ")
    );
    Ok(freed)
}

fn table(lines: &[Line]) -> String {
    let header = ["KIND", "WHAT", "NETWORK", "CONTAINER", "IF", "AGE", "STATE", "WHY"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(lines.iter().map(|line| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        [
            line.kind.to_owned(),
            line.what.clone(),
            or_dash(&line.network),
            // Runtimes show as much of an ID.
            or_dash(&line.container).chars().take(13).collect(),
            or_dash(&line.interface),
            line.age_seconds.map_or_else(|| "-".to_owned(), age),
            line.state.name().to_owned(),
            line.why.clone(),
        ]
    }));
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let show = |row: &[String; 8]| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(show).collect::<Vec<_>>().join("\n")
}

fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
