//! `autossm rotate`, `restart`, `drain` and `resume`: what a running tunnel can be asked for.

use std::io;
use std::process::ExitCode;

use clap::Args;

use super::EXIT_OS;
use super::paint::print;
use super::reach::{Reach, block_on};
use crate::control::client::Client;
use crate::control::protocol::{Reply, Request};

/// What each of them takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = STATUS)]
pub struct CommandArgs {
    /// The tunnels
    #[arg(value_name = "TUNNEL", required = true)]
    pub tunnels: Vec<String>,

    /// Where the tunnels are.
    #[command(flatten)]
    pub reach: Reach,

    /// Write a JSON object for each tunnel
    #[arg(long)]
    pub json: bool,
}

const STATUS: &str = "\
Exit status:
  0   taken on; `autossm wait TUNNEL` waits until it is up again, `autossm events -f TUNNEL` shows how it goes
  69  a tunnel does not run, does not answer, or is being stopped
  71  the daemon's reply is not understood
  77  not permitted: ask as root, or as a member of the group autossm
  78  there is no such tunnel";

/// Asks each tunnel. One that cannot be asked does not keep the others from it.
///
/// # Errors
/// Standard output cannot be written to.
pub fn run(args: &CommandArgs, request: &Request) -> io::Result<ExitCode> {
    block_on(async {
        let mut code = 0;
        for tunnel in &args.tunnels {
            let asked = async {
                let mut client = Client::connect(&args.reach.socket(tunnel)).await?;
                client.ask(request.clone()).await
            };
            let (done, message) = match asked.await {
                Ok(Reply::Done { message }) => (true, message),
                Ok(other) => {
                    code = code.max(EXIT_OS);
                    (
                        false,
                        format!(
                            "{tunnel}: not understood: {other:?}; is another version of autossm running?"
                        ),
                    )
                }
                Err(error) => {
                    let (message, failed) = args.reach.explain(tunnel, &error);
                    code = code.max(failed);
                    (false, message)
                }
            };
            if args.json {
                print(
                    &(serde_json::json!({ "name": tunnel, "done": done, "message": message }).to_string()
                        + "\n"),
                )?;
            } else if done {
                print(&format!("{tunnel}: {message}\n"))?;
            } else {
                eprintln!("autossm: {message}");
            }
        }
        Ok(ExitCode::from(code))
    })?
}
