//! What `loden lab` can be told.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use loden_lab::Inputs;
use loden_lab::control::ProcessName;
use loden_lab::spec::{Backend, usual_vswitches};
use loden_lab::topology::ProviderIdSpelling;
use loden_sim_cloud::ACTIONS;

const GUIDE: &str = "\
A lab is a VPC made of network namespaces on this machine: a virtual router that forwards by the route tables of an emulated \
Alibaba Cloud, instances on ports of it, and a Kubernetes cluster whose nodes run the real flanneld, the real CNI plugins and, beside \
them, the real loden-controller. Packets are real. It needs root, and leaves nothing behind after `loden lab down`.

Try:
  loden lab demo                       everything once: up, check, picture, down
  loden lab up && loden lab status     a lab to play with
  loden lab pod exec pod-1 -- ip addr  look around inside a pod
  loden lab node add                   watch the cluster grow
  loden lab up --backend vxlan         pods behind tunnels, no route entries
  loden lab up --nodes 8 --quota 5     what happens when the route table is full
  loden lab up --custom-table 192.168.1.0/24   a vSwitch with a route table of its own
  loden lab up --second-cluster 172.22.0.0/16  two clusters, two controllers, one route table
  loden lab fault add throttled        how the controller lives with a cloud that has trouble
  loden lab cloud readLagMs=2000       lists that lag behind what was written
  loden lab node replace node-2        another instance takes a node's place
  loden lab stop controller            what happens without it; `loden lab start controller`
  loden lab dry-run                    what the controller would do now
  loden lab table add                  a further route table, for `loden lab table use`
  loden lab credentials rotate         the controller's credentials are revoked for others
  loden lab down

Not there yet: portmap and other chained plugins, further tunnel backends, a tunnel past the quota, IPv6.";

const CLOUD_GUIDE: &str = "\
Without arguments it lists every setting, its value and what it means. For example:
  loden lab cloud readLagMs=2000          lists of route entries show what was there 2 s ago
  loden lab cloud latencyMs=300 entryDelayMs=5000
  loden lab cloud 'rateLimits=[{\"burst\": 1, \"perMinute\": 10}]'
                                          of each action, one call every 6 s
  loden lab cloud --reset                 all as it was when the lab began

What comes of it: `loden lab calls` counts what the rate limits refused; the controller's log (under `files and logs` of `loden lab status`) \
says what it waits for; its metrics: `ip netns exec loden-<lab>-control curl -s 127.0.0.1:8080/metrics`. A limit may also have `action`, \
`per`, `status` and `tellRetryAfter`; see `loden cloud-emulator --help`. For errors and lost answers there is `loden lab fault`, for the quota `loden lab quota`.";

/// The lab that is meant when none is named.
pub(super) const DEFAULT_NAME: &str = "demo";

/// A VPC with a cluster in it, on this machine.
#[derive(Debug, Args)]
#[command(after_help = GUIDE)]
pub(crate) struct LabArgs {
    /// Which lab; several can run side by side
    #[arg(long, global = true, default_value = DEFAULT_NAME, value_name = "NAME")]
    pub(super) name: String,
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// For programs
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
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
    /// Look at the system route table, or meddle with entries by hand as somebody at the console would
    #[command(subcommand)]
    Route(RouteCommand),
    /// Look at all route tables, make a further one, or let a vSwitch route by another
    #[command(subcommand)]
    Table(TableCommand),
    /// Renew what the controllers sign their calls with
    #[command(subcommand)]
    Credentials(CredentialsCommand),
    /// Kill the controller or a node's flanneld, and start it again at once
    #[command(subcommand)]
    Restart(RestartCommand),
    /// Stop the controller or a node's flanneld, which then stays down
    #[command(subcommand)]
    Stop(ProcessCommand),
    /// Start what `stop` stopped
    #[command(subcommand)]
    Start(ProcessCommand),
    /// What the controller would do now, as its own `--dry-run` says; nothing is written
    DryRun {
        /// Whose, in a lab with two clusters
        #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        cluster: u8,
    },
    /// How often each action of the cloud's API was called, and refused by a rate limit
    Calls,
    /// Let the cloud's API be slow, throttled or broken
    #[command(subcommand)]
    Fault(FaultCommand),
    /// How the emulated cloud behaves: delays, lag, rate limits; with arguments, change it while it runs
    #[command(after_help = CLOUD_GUIDE)]
    Cloud {
        /// What to change, the value as JSON or plain text; or one JSON object of several. What is not named stays
        #[arg(value_name = "SETTING=VALUE")]
        changes: Vec<String>,
        /// Put everything back as it was when the lab began, before the other changes
        #[arg(long)]
        reset: bool,
    },
    /// Try everything a working cluster must do, with real packets
    Check,
    /// Change how many custom entries each route table takes
    Quota {
        /// The new quota
        entries: u32,
    },
    /// The cluster's events, oldest first
    Events,
    /// All labs on this machine, and what is left of any
    List,
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
pub(super) struct UpArgs {
    /// How pods of different nodes reach each other: by the VPC's route tables, in VXLAN, or by routes on nodes that share one layer 2
    #[arg(long, value_name = "BACKEND", default_value_t = Backend::default(),
        value_parser = PossibleValuesParser::new(Backend::NAMES).try_map(|name| name.parse::<Backend>()))]
    pub(super) backend: Backend,
    /// Kubernetes nodes
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().nodes)]
    pub(super) nodes: u32,
    /// Pods to start on each node
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().pods)]
    pub(super) pods: u32,
    /// Addresses in each node's subnet: 16, 32, 64, 128 or 256
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().pods_per_node)]
    pub(super) pods_per_node: u32,
    /// Range that is cut into one subnet per node; outside the VPC's range
    #[arg(long, value_name = "CIDR", default_value_t = Inputs::default().pod_cidr)]
    pub(super) pod_cidr: Ipv4Net,
    /// Range of service addresses
    #[arg(long, value_name = "CIDR", default_value_t = Inputs::default().service_cidr)]
    pub(super) service_cidr: Ipv4Net,
    /// Range of the VPC
    #[arg(long, value_name = "CIDR", default_value_t = Inputs::default().vpc_cidr)]
    pub(super) vpc_cidr: Ipv4Net,
    /// Range of a vSwitch; repeat it for several, nodes are spread over them; two at the VPC's beginning if not given
    #[arg(long = "vswitch", value_name = "CIDR", value_delimiter = ',')]
    pub(super) vswitches: Vec<Ipv4Net>,
    /// Custom entries that each route table takes
    #[arg(long, value_name = "COUNT", default_value_t = Inputs::default().quota)]
    pub(super) quota: u32,
    /// Milliseconds until a changed route entry is effective
    #[arg(long, value_name = "MS", default_value_t = Inputs::default().entry_delay_ms)]
    pub(super) entry_delay: u64,
    /// Give the vSwitch of this range a route table of its own; the others use the system table
    #[arg(long, value_name = "CIDR")]
    pub(super) custom_table: Option<Ipv4Net>,
    /// Route tables that the controller serves besides the system table; the custom one of lab demo is `vtb-demo-custom`
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub(super) route_table_ids: Vec<String>,
    /// Pod CIDR of a second cluster in the same VPC, with as many nodes and pods, and a controller of its own
    #[arg(long, value_name = "CIDR")]
    pub(super) second_cluster: Option<Ipv4Net>,
    /// Let the controllers sign with an access key of a cloud-config file instead of their instance's RAM role
    #[arg(long)]
    pub(super) access_key: bool,
}

impl UpArgs {
    pub(super) fn inputs(&self) -> Inputs {
        let mut usual = usual_vswitches(self.vpc_cidr);
        if self.backend.is_flat() {
            usual.truncate(1);
        }
        Inputs {
            backend: self.backend,
            nodes: self.nodes,
            pods: self.pods,
            pods_per_node: self.pods_per_node,
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            vpc_cidr: self.vpc_cidr,
            vswitches: if self.vswitches.is_empty() { usual } else { self.vswitches.clone() },
            quota: self.quota,
            entry_delay_ms: self.entry_delay,
            custom_table: self.custom_table,
            route_table_ids: self.route_table_ids.clone(),
            second_cluster: self.second_cluster,
            access_key: self.access_key,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// Start an instance that joins the cluster
    Add {
        /// Its name; node-1, node-2, … if not given
        node: Option<String>,
        /// Which cluster it joins, in a lab with two
        #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        cluster: u8,
        /// How its spec.providerID names the instance
        #[arg(long, value_enum, value_name = "SPELLING", default_value_t = Spelling::Plain)]
        provider_id: Spelling,
    },
    /// Let another instance, with another ID, take the place of a node's: name, address, pods and pod CIDR stay
    Replace {
        /// Which
        node: String,
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

/// Spellings of a provider ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Spelling {
    /// `<region>.<instance>`
    Plain,
    /// `alicloud://<region>.<instance>`
    Alicloud,
}

impl From<Spelling> for ProviderIdSpelling {
    fn from(spelling: Spelling) -> Self {
        match spelling {
            Spelling::Plain => Self::Plain,
            Spelling::Alicloud => Self::Alicloud,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum PodCommand {
    /// Start a pod by the CNI protocol
    Add {
        /// Its name; pod-1, pod-2, … if not given
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
pub(super) enum RouteCommand {
    /// Entries of the system table
    List,
    /// Make an entry
    Add {
        /// Destination
        destination: Ipv4Net,
        /// Name of the instance that is its next hop; several share the traffic
        #[arg(required = true)]
        instance: Vec<String>,
        /// Lead to the instance's network interface, not to the instance
        #[arg(long)]
        interface: bool,
        /// In place of the entry of that destination, if there is one
        #[arg(long)]
        replace: bool,
        /// Into this table; the system table if not given
        #[arg(long, value_name = "ID")]
        table: Option<String>,
    },
    /// Delete an entry
    Remove {
        /// Destination
        destination: Ipv4Net,
        /// From this table; the system table if not given
        #[arg(long, value_name = "ID")]
        table: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TableCommand {
    /// All route tables with their entries, and which vSwitches use them
    List,
    /// Make a custom table that no vSwitch uses yet; the way to the internet is in it
    Add {
        /// Its ID; `vtb-<lab>-1`, `vtb-<lab>-2`, … if not given
        id: Option<String>,
        /// With the custom entries of this table
        #[arg(long, value_name = "ID")]
        copy_of: Option<String>,
    },
    /// Let the controller serve these tables besides the system table, by its cloud-config file and without a restart
    Serve {
        /// IDs, or `discover`; none: the system table only
        #[arg(value_name = "ID")]
        tables: Vec<String>,
        /// Whose controller, in a lab with two clusters
        #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        cluster: u8,
    },
    /// Let a vSwitch route by a table, as the creation of a NAT firewall does
    Use {
        /// The vSwitch, by its ID or its range
        vswitch: String,
        /// The table's ID
        table: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum CredentialsCommand {
    /// Revoke what the controllers sign with now, and give them new: RAM role credentials, or access keys in a lab with --access-key
    Rotate,
}

#[derive(Debug, Subcommand)]
pub(super) enum ProcessCommand {
    /// loden-controller
    Controller {
        /// Whose, in a lab with two clusters
        #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        cluster: u8,
    },
    /// The flanneld of a node
    Flanneld {
        /// Which node
        node: String,
    },
}

impl From<ProcessCommand> for ProcessName {
    fn from(command: ProcessCommand) -> Self {
        match command {
            ProcessCommand::Controller { cluster } => {
                Self::Controller { cluster: usize::from(cluster) - 1, route_table_ids: None }
            }
            ProcessCommand::Flanneld { node } => Self::Flanneld(node),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum RestartCommand {
    /// loden-controller
    Controller {
        /// Whose, in a lab with two clusters
        #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        cluster: u8,
        /// From now on serve these route tables besides the system table
        #[arg(long, value_name = "IDS", value_delimiter = ',', num_args = 0..)]
        route_table_ids: Option<Vec<String>>,
    },
    /// The flanneld of a node
    Flanneld {
        /// Which node
        node: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum FaultCommand {
    /// Begin with a kind of trouble; several can be at work together
    Add(FaultArgs),
    /// What is still to come, as JSON
    List,
    /// End all of it
    Clear,
}

#[derive(Debug, Args)]
pub(super) struct FaultArgs {
    /// What happens to calls
    #[arg(value_enum)]
    pub(super) kind: Trouble,
    /// Only to calls of this action, such as CreateRouteEntries
    #[arg(long, value_name = "ACTION", value_parser = PossibleValuesParser::new(ACTIONS), hide_possible_values = true)]
    pub(super) action: Option<String>,
    /// To so many calls (batch items with `partial`); until it is ended if not given
    #[arg(long, value_name = "COUNT", default_value_t = u32::MAX, hide_default_value = true)]
    pub(super) times: u32,
    /// With `throttled`: seconds after which the API says to come back
    #[arg(long, value_name = "SECONDS")]
    pub(super) retry_after: Option<u64>,
    /// With `slow`: by how much
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub(super) delay: u64,
    /// With `partial`: only the batch item of this destination
    #[arg(long, value_name = "CIDR")]
    pub(super) destination: Option<IpNet>,
}

/// Kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Trouble {
    /// Refused: too many calls
    Throttled,
    /// Answered with an internal error, status 500
    Error,
    /// Held back before they are carried out
    Slow,
    /// Cut off before they are carried out
    LoseCall,
    /// Carried out, then cut off before the answer
    LoseAnswer,
    /// Batches of which items are refused
    Partial,
    /// Lists that show what was there when the trouble began
    Stale,
}
