//! `autossm units`: what `autossm-generator` calls, at boot and at each `systemctl daemon-reload`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::CONFIG;
use crate::systemd::generator::{self, Host};

/// What systemd gives to a generator.
#[derive(Clone, Debug, Args)]
pub struct UnitsArgs {
    /// For units that have less to say than those of `/etc`
    pub normal: PathBuf,
    /// Before those of `/etc`: not used
    pub early: Option<PathBuf>,
    /// After all others: not used
    pub late: Option<PathBuf>,
    /// The configuration file
    #[arg(short = 'c', long = "config", value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
}

/// Makes the links.
///
/// # Errors
/// The folder cannot be written to.
pub fn run(args: &UnitsArgs) -> io::Result<ExitCode> {
    generator::generate(&args.config, &args.normal, Host::this())?;
    Ok(ExitCode::SUCCESS)
}
