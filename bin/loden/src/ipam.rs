//! `loden ipam`: whose the addresses of this node are, and giving back those that nobody has any more.

mod node;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use loden_cni_plugins::host_local::inventory::{self, Reservation};
use loden_cni_protocol::host_local::Holder;
use serde::Serialize;

use crate::render;
use node::Node;

#[derive(Debug, Args)]
#[command(after_help = "How a reservation is judged, the first that holds:\n\
    \x20 torn     its file is empty: a crash left it, no plugin counts it as taken\n\
    \x20 unknown  its file says something that no plugin writes; it is left alone\n\
    \x20 live     a network namespace of this node has the address\n\
    \x20 known    the runtime still has the container (libcni's cache, containerd's, CRI-O's, podman's or Docker's files)\n\
    \x20 new      it is younger than --grace: a pod may just be starting\n\
    \x20 leaked   nobody has it\n\
    Only what is torn or leaked is ever freed. Run as root on the node, in the host's process and mount namespaces, or running pods cannot be seen.\n\n\
    loden ipam list                 every address and whose it is\n\
    loden ipam check                exit code 1 when something is leaked\n\
    loden ipam gc                   what would be freed\n\
    loden ipam gc --apply           free it")]
pub(crate) struct IpamArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every reserved address, by network
    List(Options),
    /// Only what is wrong; exit code 1 when there is any
    Check(Options),
    /// Frees leaked addresses; says only what it would do unless --apply is given
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
    /// Only this network
    #[arg(long)]
    network: Option<String>,
    /// Seconds during which a reservation may have no owner yet
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

/// What became of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Torn,
    Unknown,
    Live,
    Known,
    New,
    Leaked,
}

impl State {
    fn is_wrong(self) -> bool {
        matches!(self, Self::Torn | Self::Leaked)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Unknown => "unknown",
            Self::Live => "live",
            Self::Known => "known",
            Self::New => "new",
            Self::Leaked => "leaked",
        }
    }
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Line {
    network: String,
    address: String,
    container: Option<String>,
    interface: Option<String>,
    age_seconds: u64,
    state: State,
    why: String,
    #[serde(skip)]
    reservation: Reservation,
}

pub(crate) fn run(args: IpamArgs) -> Result<ExitCode> {
    let (options, wrong_only, apply) = match args.command {
        Command::List(options) => (options, false, None),
        Command::Check(options) => (options, true, None),
        Command::Gc { options, apply } => (options, true, Some(apply)),
    };
    let found = reservations(&options)?;
    let node = Node::observe(&options.cache_dir)?;
    let grace = Duration::from_secs(options.grace);
    let lines: Vec<Line> =
        found.into_iter().map(|(network, reservation)| judge(&node, grace, network, reservation)).collect();
    let total = lines.len();
    let shown: Vec<Line> = lines.into_iter().filter(|line| !wrong_only || line.state.is_wrong()).collect();
    let wrong = shown.iter().filter(|line| line.state.is_wrong()).count();
    match options.output {
        Output::Json => render::json(&shown)?,
        Output::Table if !shown.is_empty() => render::print(&table(&shown)),
        Output::Table => {}
    }
    match apply {
        None if wrong_only => {
            render::note(&format!("{wrong} of {total} reservations are nobody's"));
            Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        None => Ok(ExitCode::SUCCESS),
        Some(false) => {
            render::note(&format!("would free {wrong} of {total} reservations; --apply does it"));
            Ok(ExitCode::SUCCESS)
        }
        Some(true) => {
            let freed = free(&options, shown)?;
            render::note(&format!("freed {freed} of {total} reservations"));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn reservations(options: &Options) -> Result<Vec<(String, Reservation)>> {
    let cannot_list = || format!("cannot list the networks in {}", options.data_dir.display());
    let mut networks = inventory::networks(&options.data_dir).with_context(cannot_list)?;
    if let Some(wanted) = &options.network {
        networks.retain(|name| name == wanted);
        if networks.is_empty() {
            bail!("no network {wanted} has reservations in {}", options.data_dir.display());
        }
    }
    let mut all = Vec::new();
    for network in networks {
        let found = inventory::reservations(&options.data_dir, &network)?;
        all.extend(found.into_iter().map(|reservation| (network.clone(), reservation)));
    }
    Ok(all)
}

fn judge(node: &Node, grace: Duration, network: String, reservation: Reservation) -> Line {
    // A clock that was set back makes files of the future, which are as good as new.
    let age = SystemTime::now().duration_since(reservation.modified).unwrap_or_default();
    let (container, interface) = match &reservation.holder {
        Holder::Attachment { container_id, ifname } => (Some(container_id.clone()), Some(ifname.clone())),
        Holder::Container { container_id } => (Some(container_id.clone()), None),
        Holder::Nobody | Holder::Unknown => (None, None),
    };
    let (state, why) = match (&reservation.holder, &container) {
        (Holder::Nobody, _) => (State::Torn, "the file has no content".to_owned()),
        (_, None) => (State::Unknown, "the file says something that no plugin writes".to_owned()),
        (_, Some(container)) => {
            if let Some(place) = node.place_of(reservation.address) {
                (State::Live, place.to_owned())
            } else if let Some(place) = node.knows(&network, container) {
                (State::Known, place)
            } else if age < grace {
                (State::New, format!("younger than {} s", grace.as_secs()))
            } else {
                (State::Leaked, "no namespace has it, no runtime knows the container".to_owned())
            }
        }
    };
    Line {
        network,
        address: reservation.address.to_string(),
        container,
        interface,
        age_seconds: age.as_secs(),
        state,
        why,
        reservation,
    }
}

fn free(options: &Options, lines: Vec<Line>) -> Result<usize> {
    let mut by_network: BTreeMap<String, Vec<Reservation>> = BTreeMap::new();
    for line in lines {
        by_network.entry(line.network).or_default().push(line.reservation);
    }
    let mut freed = 0;
    for (network, reservations) in by_network {
        freed += inventory::free(&options.data_dir, &network, &reservations)?;
    }
    Ok(freed)
}

fn table(lines: &[Line]) -> String {
    let header = ["NETWORK", "ADDRESS", "CONTAINER", "IF", "AGE", "STATE", "WHY"].map(str::to_owned);
    let mut rows = vec![header];
    rows.extend(lines.iter().map(|line| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        // Runtimes show as much of an ID.
        let container: String = or_dash(&line.container).chars().take(13).collect();
        let state = line.state.name().to_owned();
        let (network, address) = (line.network.clone(), line.address.clone());
        [
            network,
            address,
            container,
            or_dash(&line.interface),
            age(line.age_seconds),
            state,
            line.why.clone(),
        ]
    }));
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    let show = |row: &[String; 7]| {
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
