//! `loden plan`: what a cluster of given address ranges can be, before anybody builds it.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use loden_addr::{BrokenRule, ClusterInputs, ClusterPlan, DEFAULT_ROUTE_QUOTA};

/// The parameters of cluster creation.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = "\
Example: a /20 for pods, cut into one /24 per node, holds 16 nodes:

  loden plan --vpc-cidr 192.168.0.0/16 --vswitch 192.168.0.0/24 \\
      --pods-per-node 256 --pod-cidr 172.16.0.0/20 --service-cidr 172.21.0.0/20

Pod CIDR, service CIDR and pods per node can never be changed once the cluster exists.

Exit codes: 0 the cluster can be built, 1 a rule is broken (every broken rule is named), 2 the command line cannot be read.")]
pub(crate) struct PlanArgs {
    /// Range of the VPC; repeat it (or use commas) for secondary ranges
    #[arg(long = "vpc-cidr", value_name = "CIDR", required = true, value_delimiter = ',')]
    pub(crate) vpc_cidrs: Vec<IpNet>,
    /// Range of a vSwitch that nodes are put in; repeat it (or use commas) for several
    #[arg(long = "vswitch", value_name = "CIDR", required = true, value_delimiter = ',')]
    pub(crate) vswitches: Vec<IpNet>,
    /// Addresses per node: 16, 32, 64, 128 or 256 (node masks /28 to /24)
    #[arg(long, value_name = "COUNT")]
    pub(crate) pods_per_node: u32,
    /// Range that is cut into one subnet per node; outside the VPC's ranges
    #[arg(long, value_name = "CIDR")]
    pub(crate) pod_cidr: IpNet,
    /// Range of service addresses
    #[arg(long, value_name = "CIDR")]
    pub(crate) service_cidr: IpNet,
    /// Custom route entries that the route table takes (quota `vpc_quota_route_entrys_num`)
    #[arg(long, value_name = "COUNT", default_value_t = DEFAULT_ROUTE_QUOTA)]
    pub(crate) route_quota: u32,
    /// Custom route entries that the table already has
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) existing_entries: u32,
    /// The account may use public ranges in a VPC (quota `ack.white_list/supportVPCWithPublicIPRanges`)
    #[arg(long)]
    pub(crate) allow_public_vpc_ranges: bool,
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// Forms of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs: the plan, or `{"broken": […]}`.
    Json,
}

impl PlanArgs {
    fn inputs(&self) -> ClusterInputs {
        ClusterInputs {
            vpc_cidrs: self.vpc_cidrs.clone(),
            vswitches: self.vswitches.clone(),
            pods_per_node: self.pods_per_node,
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            route_quota: self.route_quota,
            existing_entries: self.existing_entries,
            public_vpc_ranges: self.allow_public_vpc_ranges,
        }
    }
}

/// Plans and prints. Broken rules are an answer, not a failure of the program: they end with exit code 1.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    match loden_addr::plan(&args.inputs()) {
        Ok(plan) => {
            write_plan(&plan, args.output).context("cannot write the plan to standard output")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(broken) => {
            write_broken(&broken, args.output).context("cannot write the broken rules")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn write_plan(plan: &ClusterPlan, output: Output) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Text => write!(out, "{plan}")?,
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(plan)?)?,
    }
    Ok(())
}

fn write_broken(broken: &[BrokenRule], output: Output) -> anyhow::Result<()> {
    match output {
        Output::Text => {
            let mut err = std::io::stderr().lock();
            writeln!(err, "This cluster cannot be built:")?;
            for rule in broken {
                writeln!(err, "  - {rule}")?;
            }
        }
        Output::Json => {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", serde_json::to_string_pretty(&serde_json::json!({ "broken": broken }))?)?;
        }
    }
    Ok(())
}
