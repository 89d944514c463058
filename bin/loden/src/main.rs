//! The command line for people: plan, lab and emulators.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod emulators;
mod ipam;
mod lab;
mod plan;
mod render;

/// Flannel for Kubernetes on a VPC: plan a cluster, try one out, look at what is there.
#[derive(Debug, Parser)]
#[command(
    name = "loden",
    version,
    after_help = "See it work: `loden lab demo` (as root) builds a VPC of network namespaces, runs a cluster in it and checks it.\n\
                  Not there yet: status, doctor, check, routes, sysdump, manifests, console for real clusters.",
    max_term_width = 110
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a cluster of given address ranges can be, and which limit binds
    Plan(plan::PlanArgs),
    /// A VPC with a cluster in it, on this machine, out of network namespaces
    Lab(lab::LabArgs),
    /// Whose this node's pod addresses are, and freeing those that leaked
    Ipam(ipam::IpamArgs),
    /// The Alibaba Cloud API that Loden uses, and the metadata service, for your own client
    CloudEmulator(emulators::CloudArgs),
    /// The part of the Kubernetes API that Loden uses
    KubeEmulator(emulators::KubeArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Plan(args) => plan::run(&args),
        Command::Lab(args) => lab::run(args),
        Command::Ipam(args) => ipam::run(args),
        Command::CloudEmulator(args) => emulators::cloud(&args),
        Command::KubeEmulator(args) => emulators::kube(&args),
    };
    result.unwrap_or_else(|error| {
        render::failure(&error);
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    /// What stands after the options is laid out by hand where a line is indented, and a terminal of 100 columns has to show it as it was written.
    fn broken_lines(command: &clap::Command, found: &mut Vec<String>) {
        for text in [command.get_after_help(), command.get_after_long_help()].into_iter().flatten() {
            let text = text.to_string();
            let wide = text.lines().filter(|line| line.starts_with("  ") && line.chars().count() > 100);
            found.extend(wide.map(|line| format!("{}: {line}", command.get_name())));
        }
        command.get_subcommands().for_each(|command| broken_lines(command, found));
    }

    #[test]
    fn tables_and_examples_of_the_help_fit_a_terminal() {
        Cli::command().debug_assert();
        let mut found = Vec::new();
        broken_lines(&Cli::command(), &mut found);
        assert_eq!(found, Vec::<String>::new());
    }
}
