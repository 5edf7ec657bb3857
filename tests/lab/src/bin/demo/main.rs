//! `cargo demo`: the main job, on the lab, before your eyes. A service, an agent and an echo server on loopback,
//! `autossm run` with one tunnel between clients and them; then everything goes wrong that ends tunnels today.

mod daemon;
mod screen;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::load::Load;
use autossm_lab::options::Options;
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use tokio::signal::unix::{SignalKind, signal};

use daemon::Daemon;
use screen::Screen;

/// Shows what clients of a tunnel see while its sessions, plugins and networks come and go.
#[derive(Parser)]
struct Arguments {
    /// End after so many seconds; the exit status is 0 only if no client failed
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// New connections a second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
}

/// Where the stock plugin's packages put it.
const STOCK: &str = "/usr/local/sessionmanagerplugin/bin/session-manager-plugin";

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let bin = std::env::current_exe()?.parent().context("this program has a folder")?.to_owned();
    build(&bin)?;
    tokio::runtime::Runtime::new()?.block_on(show(&arguments, &bin))
}

/// Under `cargo run` only this program has been built so far.
fn build(bin: &Path) -> anyhow::Result<()> {
    if let Some(cargo) = std::env::var_os("CARGO") {
        eprintln!("building autossm and the stand-in plugin …");
        let mut command = std::process::Command::new(cargo);
        command.args(["build", "--quiet", "--workspace", "--bins"]);
        if bin.ends_with("release") {
            command.arg("--release");
        }
        ensure!(command.status()?.success(), "the build failed");
    }
    for program in ["autossm", "standin-plugin"] {
        ensure!(bin.join(program).exists(), "{} is missing: run `cargo demo`", bin.join(program).display());
    }
    Ok(())
}

/// The stock plugin if one is installed, else the stand-in; and what to call it.
fn plugin(bin: &Path) -> (PathBuf, &'static str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|folder| folder.join("session-manager-plugin"));
    match installed.chain([STOCK.into()]).find(|plugin| plugin.is_file()) {
        Some(plugin) => (plugin, "the stock plugin"),
        None => (bin.join("standin-plugin"), "the stand-in plugin (no stock one is installed)"),
    }
}

async fn show(arguments: &Arguments, bin: &Path) -> anyhow::Result<ExitCode> {
    let lab = Lab::start(Options::default()).await?;
    let (plugin, called) = plugin(bin);
    let mut daemon = Daemon::start(&bin.join("autossm"), &lab, &plugin).await?;
    println!(
        "autossm between clients and a simulated Session Manager, with {called}: {}\n",
        plugin.display()
    );

    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    daemon.listening().await?;
    let end = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let load = Load::start(daemon.address, arguments.rate);
    let mut screen = Screen::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(250));
    let by_itself = {
        let mut story = std::pin::pin!(faults(&lab, &daemon, end));
        loop {
            tokio::select! {
                _ = interrupted.recv() => break false,
                _ = terminated.recv() => break false,
                () = &mut story => break true,
                _ = ticks.tick() => {
                    ensure!(!daemon.has_ended(), "autossm has ended\n{}", daemon.last_words());
                    screen.draw(&load.seen(), &lab.status(), &daemon);
                }
            }
        }
    };
    lab.clear_all();
    let seen = load.finish().await;
    screen.draw(&seen, &lab.status(), &daemon);
    let stopped = daemon.stop().await?;
    screen.draw(&seen, &lab.status(), &daemon);
    let failed = seen.failed(&daemon.ends());
    let (sessions, violations) = (lab.sessions().len(), lab.status().violation_count);
    println!(
        "\n{} connections, {} failed; stopped in {:.1} s, {sessions} sessions left at the service",
        seen.attempts.len(),
        failed.len(),
        stopped.as_secs_f64()
    );
    for attempt in failed.iter().take(5) {
        println!("failed after {:?}: {}", attempt.took, attempt.failure.as_deref().unwrap_or_default());
    }
    let well = failed.is_empty() && sessions == 0 && violations == 0 && !seen.attempts.is_empty();
    // Whoever interrupts a demonstration has seen enough; that is no failure.
    Ok(if well || !by_itself { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What happens to tunnels in a year, in a minute; again and again until `end`.
async fn faults(lab: &Lab, daemon: &Daemon, end: Option<Instant>) {
    let mut round = 0;
    loop {
        let wait = match round % 6 {
            0..3 => {
                daemon.note("the service closes the data channel, as it does every hour");
                lab.close_all(1000, "Bye");
                3
            }
            3 => {
                daemon.note("the same, and ResumeSession is refused for 4 s");
                lab.set_for(Fault::Api(Call::Resume, ApiFault::Forbidden), Duration::from_secs(4));
                lab.close_all(1000, "Bye");
                7
            }
            4 => {
                daemon.note("the network breaks the connection");
                lab.abort_all();
                3
            }
            _ => {
                daemon.note("somebody kills the plugin");
                for plugin in daemon.plugins() {
                    let _ = kill(plugin, Signal::SIGKILL);
                }
                4
            }
        };
        round += 1;
        let until = Instant::now() + Duration::from_secs(wait);
        // The last fault has its time to heal.
        match end {
            Some(end) if until + Duration::from_secs(3) > end => {
                return tokio::time::sleep_until(end.into()).await;
            }
            _ => tokio::time::sleep_until(until.into()).await,
        }
    }
}
