//! The `autossm` command.

use std::process::ExitCode;

use autossm::cli::{self, Cli, Command};
use clap::Parser;

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Check(args) => Ok(cli::check::run(&args)?),
        Command::Run(args) => Ok(cli::run::run(&args)),
        Command::Units(args) => Ok(cli::units::run(&args)?),
    }
}
