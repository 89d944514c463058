//! The command line for people: plan, lab and emulators.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod plan;

#[derive(Debug, Parser)]
#[command(name = "loden", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What a cluster of given address ranges can be, and which limit binds
    Plan(plan::PlanArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Plan(args) => plan::run(&args),
    }
}
