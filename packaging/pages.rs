//! Writes the man pages and the completions into a folder: `cargo run --example pages -- FOLDER`.
//!
//! They come from the definitions of the command line and from the table of keys, so that they say what the program
//! does. `autossm@.service(8)` is written by hand, beside the unit.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::{env, fs};

use autossm::cli::Cli;
use autossm::config;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

fn main() -> io::Result<()> {
    let folder: PathBuf = env::args_os().nth(1).unwrap_or_else(|| OsString::from("packaging/out")).into();
    fs::create_dir_all(&folder)?;
    let command = Cli::command();
    man(&command, "autossm", &folder)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        man(subcommand, &format!("autossm-{}", subcommand.get_name()), &folder)?;
    }
    fs::write(folder.join("autossm.toml.5"), config::manual(env!("CARGO_PKG_VERSION")))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut visible(&command), "autossm", &folder)?;
    }
    Ok(())
}

fn man(command: &Command, name: &str, folder: &Path) -> io::Result<()> {
    // Made to live as long as the program: clap's names do.
    let name: &'static str = name.to_owned().leak();
    let command =
        command.clone().name(name).bin_name(name.replacen('-', " ", 1)).version(env!("CARGO_PKG_VERSION"));
    let page = clap_mangen::Man::new(command).title(name.to_uppercase()).manual("autossm");
    page.generate_to(folder).map(drop)
}

/// Without what is hidden: completions offer that too.
fn visible(command: &Command) -> Command {
    let mut visible = Command::new("autossm").args(command.get_arguments().cloned());
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        visible = visible.subcommand(subcommand.clone());
    }
    visible
}
