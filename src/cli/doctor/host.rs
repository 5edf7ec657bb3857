//! This host: systemd and its units, the daemons that run, and their limits.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{Uid, User, geteuid};
use procfs::process::{LimitValue, Process};
use tokio::process::Command;
use tokio::time::timeout;

use super::finding::Finding;
use super::{PATIENCE, Running, status};
use crate::cli::EXIT_UNAVAILABLE;
use crate::cli::paint::age;
use crate::cli::why::{Cause, hindrance};
use crate::config::Tunnel;
use crate::control::client::Error;
use crate::control::protocol::{State, Status};
use crate::control::time::Timestamp;

/// The oldest that the units are made for.
const SYSTEMD: u32 = 252;
/// There where systemd has started the host (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// Descriptors of a connection: the client's, and the one to the plugin.
const PER_CONNECTION: u64 = 2;
/// Descriptors of a session: the gateway's connections, the plugin's pipes, the listener, and as much again while a
/// successor takes over.
const PER_SESSION: u64 = 32;
/// Descriptors of the process itself: the control socket and its clients, logs, the API's connections.
const OWN: u64 = 64;

/// A data channel that was closed is back sooner, as a rule.
const EVERYDAY: Duration = Duration::from_secs(10);

/// What is the same for all tunnels.
pub(super) async fn checks() -> Vec<Finding> {
    const CHECK: &str = "systemd";
    if !Path::new(BOOTED).exists() {
        return vec![Finding::skipped(CHECK, "does not run on this host")];
    }
    let Some(said) = ask(&["--version"]).await else {
        return vec![Finding::skipped(CHECK, "runs, but systemctl does not answer")];
    };
    vec![version(&said)]
}

/// From what `systemctl --version` says: `systemd 257 (257.9-1~deb13u1)`.
fn version(said: &str) -> Finding {
    const CHECK: &str = "systemd";
    match said.split_whitespace().nth(1).and_then(|version| version.parse::<u32>().ok()) {
        None => Finding::skipped(CHECK, "its version cannot be told"),
        Some(version) if version < SYSTEMD => Finding::warning(
            CHECK,
            format!("version {version}; the units are made for {SYSTEMD} and newer"),
            "run autossm on a newer release of the distribution, or in the foreground: autossm run",
        ),
        Some(version) => Finding::ok(CHECK, format!("version {version}")),
    }
}

/// The tunnel's unit, where there is systemd. The tunnel may `run` without it.
pub(super) async fn unit(tunnel: &str, runs: bool) -> Option<Finding> {
    if !Path::new(BOOTED).exists() {
        return None;
    }
    let unit = format!("autossm@{tunnel}.service");
    let properties = "--property=LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,WantedBy";
    let Some(said) = ask(&["show", properties, &unit]).await else {
        return Some(Finding::skipped("unit", format!("systemctl says nothing of {unit}")));
    };
    Some(state(&unit, &said, runs))
}

/// From the unit's properties, a line each.
fn state(unit: &str, said: &str, runs: bool) -> Finding {
    const CHECK: &str = "unit";
    let get = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_default()
    };
    let restarts = match get("NRestarts") {
        "" | "0" => String::new(),
        restarts => format!(", restarted {restarts} times"),
    };
    let message = format!("{unit}: {} ({}){restarts}", get("ActiveState"), get("SubState"));
    match (get("LoadState"), get("ActiveState")) {
        ("not-found", _) => Finding::skipped(CHECK, format!("{unit} is not installed")),
        ("masked", _) => {
            Finding::warning(CHECK, format!("{unit} is masked"), format!("systemctl unmask {unit}"))
        }
        (_, "failed") => Finding::failure(
            CHECK,
            format!("{message}: {}", get("Result")),
            format!(
                "journalctl -u {unit} says why; then systemctl reset-failed {unit} && systemctl start {unit}"
            ),
        ),
        (_, "active") => Finding::ok(CHECK, message),
        // Between two attempts of a service that ends again and again.
        (_, "activating") if get("SubState").starts_with("auto-restart") => {
            let status = get("ExecMainStatus");
            let because: &[&str] = if status == EXIT_UNAVAILABLE.to_string() { &["listen"] } else { &[] };
            Finding::failure(
                CHECK,
                format!(
                    "{message}: it ends as soon as it is started, with status {status} ({})",
                    get("Result")
                ),
                format!("journalctl -u {unit} -n 50 says why"),
            )
            .because(because)
        }
        (_, "inactive") if !runs && !get("WantedBy").is_empty() => Finding::warning(
            CHECK,
            format!("{message}, although {} wants it", get("WantedBy")),
            format!("systemctl start {unit}; journalctl -u {unit} says who has stopped it"),
        ),
        _ => Finding::skipped(CHECK, message),
    }
}

async fn ask(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The daemon that runs the tunnel: what it says itself.
pub(super) fn daemon(tunnel: &Tunnel, running: &Running) -> Finding {
    const CHECK: &str = "daemon";
    let name = &tunnel.name;
    let status = match running.get(name) {
        Some(Err(Error::Denied(socket))) => {
            return Finding::skipped(
                CHECK,
                format!("{} may not be asked by this user: ask as root", socket.display()),
            );
        }
        Some(Err(Error::TimedOut)) => {
            let remedy = format!("look at its log; systemctl restart autossm@{name}");
            return Finding::failure(CHECK, "runs, but does not answer", remedy);
        }
        Some(Err(Error::NotRunning | Error::Dead(_))) | None => {
            return Finding::skipped(CHECK, "does not run");
        }
        Some(Err(error)) => return Finding::skipped(CHECK, error.to_string()),
        Some(Ok(status)) if status.daemon.pid == 0 => return Finding::skipped(CHECK, "does not run"),
        Some(Ok(status)) => status,
    };
    let pid = status.daemon.pid;
    let since = Timestamp::now().since(status.since);
    let mut message = format!("pid {pid}, {} for {}", status.state.word(), age(since));
    let user = user_of(pid);
    if let Some(user) = user.filter(|user| *user != geteuid()) {
        // Its environment and its ~/.aws are not those that were looked at.
        let name = User::from_uid(user).ok().flatten().map_or_else(|| user.to_string(), |user| user.name);
        let _ = write!(message, "; it runs as {name}, whose environment and ~/.aws may differ from yours");
    }
    if let Some(destination) = status.destination.as_ref().filter(|destination| destination.state == "down") {
        let reason = destination.reason.as_deref().unwrap_or("it does not answer");
        return Finding::failure(
            CHECK,
            format!("{message}; the destination is down: {reason}"),
            "look at the destination, and whether its security group lets the target in",
        );
    }
    serves(status, message)
}

/// Whether it does what it is there for: a tunnel that does not is a failure, as `autossm why` tells it.
fn serves(status: &Status, message: String) -> Finding {
    const CHECK: &str = "daemon";
    let name = &status.name;
    match (status.state, hindrance(status)) {
        (State::Up, None) => Finding::ok(CHECK, message),
        (State::Up, Some((cause, clause))) => Finding::warning(
            CHECK,
            format!("{message}, but another session cannot be had: {clause}"),
            cause.remedy(name),
        ),
        (State::Draining, _) => Finding::failure(
            CHECK,
            format!("{message}: somebody has drained it, and its clients are held"),
            format!("autossm resume {name}; autossm why {name} says who it was"),
        ),
        (State::Stopping | State::Stopped, _) => {
            Finding::warning(CHECK, format!("{message}: it is being stopped"), format!("autossm why {name}"))
        }
        (_, None) => Finding::warning(
            CHECK,
            format!("{message}: nothing has failed yet"),
            format!("autossm wait {name} waits for it"),
        ),
        // The service does so every hour.
        (_, Some((Cause::ChannelClosed, clause))) if status.now.since(status.since) < EVERYDAY => {
            Finding::warning(
                CHECK,
                format!("{message}: {clause}, and it is being resumed"),
                format!("autossm wait {name} waits for it"),
            )
        }
        (_, Some((cause, clause))) => {
            Finding::failure(CHECK, format!("{message}: {clause}"), cause.remedy(name))
                .because(shown_by(cause))
        }
    }
}

/// The checks that find the same cause, where they can.
fn shown_by(cause: Cause) -> &'static [&'static str] {
    match cause {
        Cause::Denied => &["permission"],
        Cause::Credentials | Cause::Expired => &["credentials", "identity"],
        Cause::Clock => &["clock"],
        Cause::Document => &["document"],
        Cause::Plugin => &["plugin"],
        Cause::TargetNotConnected | Cause::Agent => &["target", "agent"],
        Cause::Unreachable => &["api", "data-channel"],
        _ => &[],
    }
}

fn user_of(pid: u32) -> Option<Uid> {
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    // The folder's owner would be root, for a process that is not dumpable.
    process.status().ok().map(|status| Uid::from_raw(status.euid))
}

/// Descriptors that these tunnels may need in one process.
fn needed(tunnels: &[&Tunnel]) -> u64 {
    let of = |tunnel: &&Tunnel| {
        PER_CONNECTION * tunnel.max_connections as u64 + PER_SESSION * u64::from(tunnel.sessions)
    };
    OWN + tunnels.iter().map(of).sum::<u64>()
}

/// The file limit of each daemon that runs, or else of this shell, for the tunnels that it runs or would run.
pub(super) fn shell_limit(tunnels: &[&Tunnel], running: &Running) -> Finding {
    let mut daemons: Vec<(Option<u32>, Vec<&Tunnel>)> = Vec::new();
    for tunnel in tunnels {
        let pid = status(running, &tunnel.name).map(|status| status.daemon.pid);
        match daemons.iter_mut().find(|(known, _)| *known == pid) {
            Some((_, tunnels)) => tunnels.push(tunnel),
            None => daemons.push((pid, vec![tunnel])),
        }
    }
    let mut findings: Vec<_> = daemons.iter().map(|(pid, tunnels)| limit(*pid, tunnels)).collect();
    findings.sort_by_key(|finding| finding.verdict);
    findings.pop().unwrap_or_else(|| Finding::skipped("limits", "no tunnel is enabled"))
}

fn limit(pid: Option<u32>, tunnels: &[&Tunnel]) -> Finding {
    const CHECK: &str = "limits";
    let (whose, limit) = match pid {
        Some(pid) => {
            let limit = i32::try_from(pid).ok().and_then(|pid| Process::new(pid).ok()?.limits().ok());
            let limit = limit.map(|limits| match limits.max_open_files.soft_limit {
                LimitValue::Value(limit) => limit,
                LimitValue::Unlimited => u64::MAX,
            });
            (format!("the daemon with pid {pid}"), limit)
        }
        None => (
            "a daemon of this shell".to_owned(),
            getrlimit(Resource::RLIMIT_NOFILE).ok().map(|limit| limit.0),
        ),
    };
    let needed = needed(tunnels);
    let Some(limit) = limit else {
        return Finding::skipped(CHECK, format!("the file limit of {whose} cannot be read by this user"));
    };
    let message = format!("{whose} may open {limit} files; with every connection in use it needs {needed}");
    if limit >= needed {
        return Finding::ok(CHECK, message);
    }
    let remedy = "raise LimitNOFILE= in a drop-in of autossm@.service (or `ulimit -n` in the shell), or lower \
                  `max_connections`";
    Finding::warning(CHECK, message, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn units_and_versions_are_judged_by_what_systemctl_says() {
        assert_eq!(version("systemd 257 (257.9-1~deb13u1)\n+PAM +AUDIT").verdict, Verdict::Ok);
        assert_eq!(version("systemd 249 (249.11-0ubuntu3)").verdict, Verdict::Warning);
        assert_eq!(version("").verdict, Verdict::Skipped);
        let of = |load: &str, active: &str| {
            let (active, sub) = active.split_once('/').unwrap_or((active, "sub"));
            let wanted = if sub == "dead" { "autossm.target" } else { "" };
            let said = format!(
                "Result=exit-code\nNRestarts=3\nExecMainStatus=69\nLoadState={load}\nActiveState={active}\n\
                 SubState={sub}\nWantedBy={wanted}\n"
            );
            state("autossm@db.service", &said, false)
        };
        for (load, active, verdict, words) in [
            ("not-found", "inactive", Verdict::Skipped, "is not installed"),
            ("masked", "inactive", Verdict::Warning, "is masked"),
            ("loaded", "failed", Verdict::Failure, "failed (sub), restarted 3 times: exit-code"),
            ("loaded", "active", Verdict::Ok, "autossm@db.service: active (sub), restarted 3 times"),
            ("loaded", "inactive", Verdict::Skipped, "inactive"),
            ("loaded", "inactive/dead", Verdict::Warning, "although autossm.target wants it"),
            ("loaded", "activating/auto-restart", Verdict::Failure, "restarted 3 times: it ends as soon as"),
            ("loaded", "activating", Verdict::Skipped, "activating"),
        ] {
            let found = of(load, active);
            assert_eq!(found.verdict, verdict, "{load} {active}");
            assert!(found.message.contains(words), "{}", found.message);
        }
    }
}
