//! What a tunnel costs, and how soon it is back: limits that hold for the program as it ships, and are measured on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::load::Load;
use autossm_lab::options::Options;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::{Daemon, own_address, tunnel};

/// Of a process with one tunnel, in kB as `/proc` has them.
const RESIDENT: u64 = 12 * 1024;
/// Of each further tunnel, in kB.
const PER_TUNNEL: u64 = 150;
/// Of the daemon with one idle tunnel, a second.
const WAKE_UPS: u64 = 10;
/// From SIGKILL of the plugin to the next Ready, in ms, the start of the new plugin included.
const RECOVERY: u64 = 500;

/// The program, built with the profile of releases.
pub async fn shipped() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).expect("target/PROFILE/deps/e2e");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = tokio::process::Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--profile", "dist", "--bin", "autossm", "--target-dir"])
        .arg(target)
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .status()
        .await
        .unwrap();
    assert!(built.success(), "{built}");
    target.join("dist/autossm")
}

/// What the kernel has counted for a process.
#[derive(Clone, Copy)]
struct Usage {
    resident: u64,
    own: u64,
    wake_ups: u64,
}

impl Usage {
    fn of(pid: Pid) -> Self {
        let status = procfs::process::Process::new(pid.as_raw()).unwrap().status().unwrap();
        Self {
            resident: status.vmrss.unwrap(),
            own: status.rssanon.unwrap(),
            wake_ups: status.voluntary_ctxt_switches.unwrap(),
        }
    }

    fn print(self, when: &str) {
        println!("{when}: {} kB resident, {} kB of them its own memory", self.resident, self.own);
    }
}

async fn pause(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds the program as it ships, which takes minutes; run with --ignored"]
async fn an_idle_tunnel_is_small_and_sleeps() {
    let program = shipped().await;
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let daemon = Daemon::start_build(&program, address, &tunnel(&lab, "one", address, lab.echo_addr(), ""));
    daemon.event("ready").await;
    pause(10).await;
    let before = Usage::of(daemon.pid());
    pause(30).await;
    let idle = Usage::of(daemon.pid());
    idle.print("one idle tunnel");
    let wake_ups = idle.wake_ups - before.wake_ups;
    println!("one idle tunnel: {:.1} wake-ups a second", wake_ups as f64 / 30.0);
    assert!(idle.resident <= RESIDENT);
    assert!(wake_ups <= WAKE_UPS * 30);

    let load = Load::start(address, 20);
    pause(60).await;
    let seen = load.finish().await;
    assert!(
        seen.attempts.len() > 1000 && seen.failures().count() == 0,
        "{} connections",
        seen.attempts.len()
    );
    let used = Usage::of(daemon.pid());
    used.print("after a minute of 20 connections a second");
    assert!(used.resident <= RESIDENT);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds the program as it ships, which takes minutes; run with --ignored"]
async fn further_tunnels_cost_little() {
    const TUNNELS: u64 = 50;
    let program = shipped().await;
    let lab = Lab::start(Options::default()).await.unwrap();
    let config = |tunnels| -> String {
        let one = |n| tunnel(&lab, &format!("number-{n}"), own_address(), lab.echo_addr(), "");
        (0..tunnels).map(one).collect()
    };
    let mut own = [0, 0];
    for (own, tunnels) in own.iter_mut().zip([1, 1 + TUNNELS]) {
        let daemon = Daemon::start_build(&program, own_address(), &config(tunnels));
        daemon.event_times("ready", usize::try_from(tunnels).unwrap()).await;
        pause(10).await;
        *own = Usage::of(daemon.pid()).own;
        daemon.stop(&lab).await;
    }
    let each = own[1].saturating_sub(own[0]) / TUNNELS;
    println!("each further tunnel: {each} kB");
    assert!(each <= PER_TUNNEL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "builds the program as it ships, which takes minutes; run with --ignored"]
async fn a_killed_plugin_is_replaced_at_once() {
    let program = shipped().await;
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let daemon = Daemon::start_build(&program, address, &tunnel(&lab, "one", address, lab.echo_addr(), ""));
    daemon.event("ready").await;
    let mut times = Vec::new();
    for round in 1..=10 {
        // One that is killed within its first second counts as one that could not be had.
        pause(2).await;
        let began = Instant::now();
        kill(daemon.plugin().await, Signal::SIGKILL).unwrap();
        let ready = daemon.event_times("ready", round + 1).await;
        let took = u64::try_from(began.elapsed().as_millis()).unwrap();
        times.push((took, ready[round].number("duration_ms")));
    }
    times.sort_unstable();
    let (median, start) = times[times.len() / 2];
    println!(
        "from SIGKILL to the next Ready: median {median} ms, of which the new session took {start} ms; all {times:?}"
    );
    assert!(median <= RECOVERY);
    daemon.stop(&lab).await;
}
