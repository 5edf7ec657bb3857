//! The commands, a file each.

pub mod check;
pub mod command;
mod detail;
pub mod doctor;
pub mod drill;
pub mod environment;
pub mod events;
pub mod import;
pub mod paint;
pub mod policy;
pub mod reach;
pub mod recorded;
pub mod run;
pub mod status;
mod table;
pub mod units;
pub mod wait;
pub mod web;
pub mod why;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::filter::Targets;

use crate::telemetry::Format;

/// Exit status: a tunnel is not up.
pub const EXIT_NOT_UP: u8 = 1;
/// Exit status: the command line is wrong, or what it asks for cannot be made.
pub const EXIT_USAGE: u8 = 2;
/// Exit status: a port or a socket file cannot be bound, or a tunnel does not run (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Exit status: the operating system refused something (`EX_OSERR`).
pub const EXIT_OS: u8 = 71;
/// Exit status: whoever asks is not allowed to (`EX_NOPERM`).
pub const EXIT_NO_PERMISSION: u8 = 77;
/// Exit status: the configuration is wrong, or does not have this tunnel (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;

/// Where the configuration is unless `--config` says otherwise.
pub const CONFIG: &str = "/etc/autossm/config.toml";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Keeps AWS SSM Session Manager port-forwarding tunnels up for months.
///
/// autossm listens on the local port of each tunnel, starts an SSM session for it, and runs and watches AWS's
/// session-manager-plugin behind it. Sessions, plugins and networks come and go; the port stays, clients that connect
/// in between wait, and open connections survive the service's hourly close.
#[derive(Debug, Parser)]
#[command(name = "autossm", version, styles = STYLES, max_term_width = 100, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = true, after_long_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  autossm check                           Is /etc/autossm/config.toml right?
  autossm run                             Run every enabled tunnel, in the foreground
  autossm run billing-db                  Run one
  autossm import < tunnels.sh             Turn `aws ssm start-session` commands into tunnels
  autossm policy                          What the tunnels need of IAM
  systemctl start autossm@billing-db      Run one as a service
  autossm status                          What is every tunnel doing?
  autossm events -f billing-db            What happens to one?
  autossm why billing-db                  Why is it down, or was it?
  autossm doctor billing-db               What is wrong with it?

Exit status:
  0   all is well                         71  the operating system refused something
  1   a tunnel is not up                  77  not permitted
  2   wrong command line                  78  the configuration is wrong, or has no such tunnel
  69  a port is taken, or a tunnel does not run";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run tunnels in the foreground until SIGTERM or SIGINT
    ///
    /// Every local port is bound before anything else. SIGHUP reads the configuration again: tunnels that are unchanged
    /// are not touched, and a file with errors is refused as a whole. SIGTERM and SIGINT stop accepting, give open
    /// connections `stop_grace`, terminate the sessions and end within 15 seconds; a second one ends at once.
    Run(RunArgs),

    /// Check the configuration and list its tunnels
    ///
    /// Prints one line for each tunnel: its name, where it listens, its target, the destination, the number of sessions
    /// and how the plugin reaches the service. If anything is wrong, prints all of it instead, each with line, column
    /// and what would be right, and exits with status 78. Calls nobody and needs no credentials.
    Check(check::CheckArgs),

    /// Show what every tunnel is doing, or everything about one
    ///
    /// Reads the control socket of each tunnel that runs, whoever has started it; tunnels of the configuration that do
    /// not run are shown as such. On a terminal that is too narrow the less important columns are left out.
    Status(status::StatusArgs),

    /// Show what has happened, and what happens
    ///
    /// The events are the log's lines about a tunnel, kept in the state directory over restarts: the last 2 MB of them,
    /// which are some 6000.
    Events(events::EventsArgs),

    /// Say why a tunnel is down, or was last down
    ///
    /// The first line is the answer; below it stands what can be done, what became of the clients, what autossm did about it,
    /// and which session to look up in CloudTrail. Works for a tunnel that does not run, too, from its record of events.
    Why(why::WhyArgs),

    /// Replace a tunnel's sessions without cutting a connection
    ///
    /// Each session gets a replacement and takes connections until that is ready; connections that are open then go on,
    /// for up to `drain`. A tunnel that waits for its next attempt makes it at once.
    Rotate(command::CommandArgs),

    /// End a tunnel's sessions and begin anew, without giving up its port
    ///
    /// Open connections are cut; clients that come meanwhile wait until the new session is ready.
    Restart(command::CommandArgs),

    /// Let a tunnel take no new connections, for a maintenance of the destination
    ///
    /// New clients are not refused: they wait for up to `hold`, so that they do not notice a maintenance that is
    /// shorter. Open connections go on, and the sessions are kept up. This lasts until `autossm resume`, or until the
    /// daemon is started anew.
    Drain(command::CommandArgs),

    /// Let a drained tunnel take connections again
    Resume(command::CommandArgs),

    /// Look for what is wrong, and say what to do about it
    ///
    /// Looks at everything that the tunnels need: the plugin, the configuration, credentials and permissions, the way to AWS,
    /// this host's clock, targets, documents and the account's timeouts, local addresses, file limits, systemd. Prints a line
    /// for each, with a remedy where there is something to mend. Changes nothing, neither here nor at the service, and starts
    /// no session.
    Doctor(doctor::DoctorArgs),

    /// Kill a plugin on purpose, and measure how the tunnel comes back
    ///
    /// An exercise, for a quiet hour: the daemon kills the plugin of one session, and everything that follows is what follows
    /// when a plugin dies by itself. The connections that are open on that session are cut; how many, it says before, and asks.
    /// Where the tunnel has a probe, it is made through the tunnel's own address, as a client would connect.
    Drill(drill::DrillArgs),

    /// Wait until a tunnel is up
    Wait(wait::WaitArgs),

    /// Turn an `aws ssm start-session` command into a tunnel to paste
    ///
    /// Takes the command's words, a whole shell line in one word, or a script on standard input, with environment variables in
    /// front and quotes and continued lines as a shell has them. Prints a `[[tunnel]]` for each; what could not be known, and
    /// what was left out, stands in comments. Reads the files that the command names (`file://`), and calls nobody.
    Import(import::ImportArgs),

    /// Print the least IAM policy for the tunnels
    ///
    /// As JSON, for each principal: whoever autossm runs with, each profile, and each role that is assumed; on a terminal all
    /// of them, else the one that --for chooses. Sessions with these
    /// targets and documents can be started, and one's own sessions be resumed and terminated; nothing else. Whose policy it is,
    /// what is not known and what else may be needed is said on standard error. Calls nobody and needs no credentials.
    Policy(policy::PolicyArgs),

    /// Serve metrics, health and a page of all tunnels
    ///
    /// Reads the tunnels' control sockets and changes nothing. / is the page, /metrics is for Prometheus, /readyz/NAME
    /// for a load balancer (200 or 503), /livez and /readyz for this process, /api/tunnels and /api/events are the same
    /// as JSON; /api/events is a stream of server-sent events for those who accept text/event-stream.
    Web(web::WebArgs),

    /// Link the unit of each enabled tunnel (called by autossm-generator)
    #[command(hide = true)]
    Units(units::UnitsArgs),
}

/// What `autossm run` takes.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Tunnels to run, disabled ones too [default: every enabled one]
    #[arg(value_name = "TUNNEL")]
    pub tunnels: Vec<String>,

    /// The configuration file.
    #[command(flatten)]
    pub config: ConfigArg,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Auto)]
    pub log_format: Format,

    /// What is logged: a level, or a filter by module
    ///
    /// A level is one of error, warn, info, debug and trace; a filter is what RUST_LOG takes in other programs:
    /// `info,autossm::gateway=debug`. No level logs a secret.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info", value_parser = log_filter)]
    pub log_level: String,

    /// For the control sockets and the plugins' temporary files
    ///
    /// [default: $RUNTIME_DIRECTORY, else /run/autossm for root, else $XDG_RUNTIME_DIR/autossm]
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,

    /// For the record of events, and of sessions that are yet to be terminated
    ///
    /// [default: that of --runtime-dir if it is given, else $STATE_DIRECTORY, else /var/lib/autossm for root, else
    /// $XDG_STATE_HOME/autossm or ~/.local/state/autossm]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

const RUN_EXAMPLES: &str = "\
Examples:
  autossm run                                             Every enabled tunnel
  autossm run billing-db search                           Two of them
  autossm run --config ./config.toml --log-level debug    Another file, more to read
  autossm run --log-level info,autossm::gateway=debug     More of one part
  kill -HUP PID                                           Read the configuration again";

/// `--config`, the same for every command.
#[derive(Clone, Debug, Args)]
pub struct ConfigArg {
    /// The configuration file
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "AUTOSSM_CONFIG", default_value = CONFIG)]
    pub path: PathBuf,
}

fn log_filter(text: &str) -> Result<String, String> {
    match text.parse::<Targets>() {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        Ok(_) => Err("write a level, such as info".to_owned()),
        Err(error) => Err(format!("{error}; write a level, such as info, or MODULE=LEVEL,…")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_names_and_options() {
        let arguments = [
            "autossm",
            "run",
            "a",
            "--log-level",
            "info,autossm::gateway=debug",
            "b",
            "--log-format",
            "json",
        ];
        let Command::Run(run) = Cli::try_parse_from(arguments).unwrap().command else { panic!("not run") };
        assert_eq!(run.tunnels, ["a", "b"]);
        assert_eq!((run.log_format, run.log_level.as_str()), (Format::Json, "info,autossm::gateway=debug"));
        assert_eq!(run.runtime_dir, None);
    }

    #[test]
    fn a_filter_that_filters_nothing_is_refused() {
        assert!(log_filter("debug").is_ok() && log_filter("autossm::proxy=trace,warn").is_ok());
        assert!(log_filter("autossm=loud").is_err() && log_filter(" ").is_err());
    }
}
