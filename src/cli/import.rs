//! `autossm import`: the command line that a team uses today, as a tunnel to paste.

mod command;
mod parameters;
mod shell;
mod tunnel;

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;

use clap::Args;

use super::ConfigArg;
use crate::config;
use command::{Environment, StartSession};
use tunnel::Taken;

/// Nobody has a longer script than that.
const MAX_INPUT: u64 = 1 << 20;

/// What `autossm import` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct ImportArgs {
    /// What to call the tunnel [default: made from the destination's host and port]
    #[arg(long)]
    pub name: Option<String>,

    /// Where it shall listen [default: 127.0.0.1 and the command's local port]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,

    /// Whose names and addresses are taken already, if it can be read.
    #[command(flatten)]
    pub config: ConfigArg,

    /// The command: its words, or all of it in one quoted word; without it, standard input is read
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  autossm import -- aws ssm start-session --target i-0123456789abcdef0 \\
      --document-name AWS-StartPortForwardingSessionToRemoteHost \\
      --parameters host=billing.internal,portNumber=5432,localPortNumber=15432
  autossm import < tunnels.sh                     Every start-session of a script
  autossm import --name db 'AWS_PROFILE=ops aws ssm start-session …'
  autossm import < tunnels.sh | sudo tee -a /etc/autossm/config.toml && autossm check

Exit status:
  0   the tunnels were printed
  2   there is nothing that can be made a tunnel; nothing was printed";

/// Prints a `[[tunnel]]` for each command.
///
/// # Errors
/// Standard input cannot be read, or standard output or standard error not be written to.
pub fn run(args: &ImportArgs) -> io::Result<ExitCode> {
    let imported = match &args.command[..] {
        [] => {
            if io::stdin().is_terminal() {
                writeln!(io::stderr(), "paste the command, then press Ctrl-D:")?;
            }
            let mut text = String::new();
            io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text)?;
            shell(args, &text)
        }
        [text] if text.contains(char::is_whitespace) => shell(args, text),
        words => tunnels(args, std::slice::from_ref(&words.to_vec())),
    };
    match imported {
        Ok(text) => match io::stdout().lock().write_all(text.as_bytes()) {
            // Whoever reads has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(ExitCode::SUCCESS),
        },
        Err(what) => {
            writeln!(io::stderr(), "error: {what}")?;
            Ok(ExitCode::from(super::EXIT_USAGE))
        }
    }
}

fn shell(args: &ImportArgs, text: &str) -> Result<String, String> {
    tunnels(args, &shell::commands(text).map_err(|error| error.to_string())?)
}

/// All of them, or what is wrong with the first that is wrong.
fn tunnels(args: &ImportArgs, commands: &[shell::Words]) -> Result<String, String> {
    let mut taken = taken(args);
    let (mut environment, mut texts) = (Environment::new(), Vec::new());
    for words in commands {
        if command::assigns(words, &mut environment) {
            continue;
        }
        let numbered = |what: String| {
            if texts.is_empty() { what } else { format!("command {}: {what}", texts.len() + 1) }
        };
        let Some(call) = StartSession::read(words, &environment).map_err(numbered)? else { continue };
        // A name or an address that was given is that of one tunnel.
        let [name, listen] =
            [&args.name, &args.listen].map(|given| given.as_deref().filter(|_| texts.is_empty()));
        texts.push(tunnel::render(&call, name, listen, &mut taken).map_err(numbered)?);
    }
    if texts.is_empty() {
        return Err("there is no `aws ssm start-session` in this".to_owned());
    }
    Ok(texts.join("\n"))
}

/// Whatever stands in a script: it is refused, or what is printed is a configuration.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Nothing on this host's disk is a part of it.
    if text.contains("file:") {
        return;
    }
    let config = ConfigArg { path: "/nonexistent/config.toml".into() };
    let args = ImportArgs { name: None, listen: None, config, command: Vec::new() };
    if let Ok(printed) = shell(&args, text) {
        let read = config::parse("printed", &printed);
        // Two commands may ask for the same address, which is said in a comment and for people to settle.
        assert!(read.is_ok() || printed.contains(" is taken by another tunnel"), "{printed}");
    }
}

fn taken(args: &ImportArgs) -> Taken {
    let mut taken = Taken::default();
    for tunnel in config::load(&args.config.path).into_iter().flat_map(|config| config.tunnels) {
        taken.names.insert(tunnel.name);
        taken.listens.extend(tunnel.listen);
    }
    taken
}
