//! Every fault that the lab has, under load, in every mode: `cargo test --test reliability -- table`. Random schedules of
//! them (`-- random`), and a day in little time (`-- soak`). `docs/reliability.md` says what is looked at, and is written
//! by `--write`. `AUTOSSM_TEST_PLUGIN`, `AUTOSSM_TEST_PLUGIN_LINE` and `AUTOSSM_TEST_AGENT` as for the end-to-end tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where something is wrong"
)]

#[allow(dead_code, reason = "the end-to-end tests use more of it")]
#[path = "../e2e/daemon.rs"]
mod daemon;
mod document;
mod random;
mod run;
mod soak;
mod step;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo test --test reliability --")]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Write the figures into docs/reliability.md
    #[arg(long, global = true)]
    write: bool,
    /// Another build of the program, such as the one that ships
    #[arg(long, global = true, value_name = "PATH", default_value = daemon::PROGRAM)]
    program: PathBuf,
    /// Tunnels under test at the same time
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: Option<u16>,
}

#[derive(Subcommand)]
enum What {
    /// Every fault, in each mode of the gateway, with one session and with two
    Table {
        /// Only faults whose name has this in it
        #[arg(long, default_value = "")]
        only: String,
        /// The rows that take minutes too
        #[arg(long)]
        long: bool,
        /// Rows with bulk transfers, or those without: the former need a machine of their own
        #[arg(long, value_name = "WITH")]
        transfers: Option<bool>,
    },
    /// Random faults, one after another and at once
    Random {
        /// Repeat this one; otherwise a new one is drawn, and printed
        #[arg(long)]
        seed: Option<u64>,
        /// So many schedules, from SEED on
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// With transfers, and with faults of the agents' side and frozen links among them
        #[arg(long)]
        agents: bool,
    },
    /// 24 hours of a tunnel's life, compressed
    Soak {
        /// Into this time
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// With transfers, and with faults of the agents' side and a frozen link in its second half
        #[arg(long)]
        agents: bool,
    },
}

fn main() -> ExitCode {
    let Arguments { what, write, program, jobs } = Arguments::parse();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    // Most of a tunnel's time under test is waiting.
    let jobs = jobs.map_or(6 * cores, usize::from);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let well = runtime.block_on(async {
        match what {
            What::Table { only, long, transfers } => {
                let chosen = table::Chosen { only, long, transfers };
                table::run(&program, &chosen, jobs, write).await
            }
            What::Random { seed, count, agents } => {
                random::run(
                    &program,
                    seed.unwrap_or_else(|| rand::random::<u32>().into()),
                    count,
                    agents,
                    jobs,
                )
                .await
            }
            What::Soak { seconds, agents } => soak::run(&program, seconds, agents, write).await,
        }
    });
    // A client that is still waiting must not keep the process.
    runtime.shutdown_background();
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the plugin is called.
fn called() -> &'static str {
    if std::env::var_os("AUTOSSM_TEST_PLUGIN").is_some() { "stock plugin" } else { "stand-in" }
}
