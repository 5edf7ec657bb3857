//! The `autossm` command.

use std::process::ExitCode;

use autossm::cli::{self, Cli, Command};
use autossm::control::protocol::Request;
use clap::Parser;

fn main() -> anyhow::Result<ExitCode> {
    if let Err(error) = cli::environment::without_empty() {
        // With them it may yet do.
        eprintln!("autossm: empty environment variables could not be taken away: {error}");
    }
    match Cli::parse().command {
        Command::Check(args) => Ok(cli::check::run(&args)?),
        Command::Import(args) => Ok(cli::import::run(&args)?),
        Command::Policy(args) => Ok(cli::policy::run(&args)?),
        Command::Run(args) => Ok(cli::run::run(&args)),
        Command::Web(args) => Ok(cli::web::run(args)),
        Command::Units(args) => Ok(cli::units::run(&args)?),
        Command::Status(args) => Ok(cli::status::run(&args)?),
        Command::Events(args) => Ok(cli::events::run(&args)?),
        Command::Why(args) => Ok(cli::why::run(&args)?),
        Command::Rotate(args) => Ok(cli::command::run(&args, &Request::Rotate)?),
        Command::Restart(args) => Ok(cli::command::run(&args, &Request::Restart)?),
        Command::Drain(args) => Ok(cli::command::run(&args, &Request::Drain)?),
        Command::Resume(args) => Ok(cli::command::run(&args, &Request::Resume)?),
        Command::Doctor(args) => Ok(cli::doctor::run(&args)?),
        Command::Drill(args) => Ok(cli::drill::run(&args)?),
        Command::Wait(args) => Ok(cli::wait::run(&args)?),
    }
}
