//! Everything that ends a tunnel today, one test a row: 20 new connections a second and one that stays open, and what
//! they see of it.

use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::load::{Attempt, Load, Seen, SessionEnd};
use autossm_lab::options::Options;
use autossm_lab::status::Status;
use nix::sys::signal::{Signal, kill};

use crate::daemon::{Daemon, Line, until};

/// The default, which the rows below go by.
const HOLD: Duration = Duration::from_secs(30);
/// 20 clients a second for as long as the longest wait must find a place.
pub const KEYS: &str = "max_held = 2000\nmax_connections = 4000\n";

/// What came of one row.
pub struct Outcome {
    pub seen: Seen,
    pub service: Status,
    pub log: Vec<std::sync::Arc<Line>>,
}

/// Runs `fault` against a tunnel under load, waits until clients are served again as before, and stops everything.
async fn under_load(row: &str, fault: impl AsyncFnOnce(&Lab, &Daemon)) -> Outcome {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, KEYS).await;
    loaded(row, lab, daemon, fault).await
}

/// The same with a daemon that is configured in another way, and up.
pub async fn loaded(row: &str, lab: Lab, daemon: Daemon, fault: impl AsyncFnOnce(&Lab, &Daemon)) -> Outcome {
    let load = Load::start(daemon.address, 20);
    until("load", || {
        (load.seen().attempts.len() >= 20 && load.seen().long_lived.messages >= 5).then_some(())
    })
    .await;
    fault(&lab, &daemon).await;
    let served = |seen: &Seen| seen.attempts.iter().filter(|attempt| attempt.failure.is_none()).count();
    let (before, messages) = (served(&load.seen()), load.seen().long_lived.messages);
    until("clients served again", || {
        let seen = load.seen();
        (served(&seen) >= before + 40 && seen.long_lived.messages >= messages + 10 && seen.waiting <= 2)
            .then_some(())
    })
    .await;
    let seen = load.finish().await;
    let service = lab.status();
    let log = daemon.stop(&lab).await;
    let outcome = Outcome { seen, service, log };
    println!(
        "{row}: {} connections, {} failed ({} cut with their session), longest wait {:.1} s, long-lived cut {}×, \
         longest gap {:.1} s, StartSession {}×",
        outcome.seen.attempts.len(),
        outcome.failures().len(),
        outcome.seen.failures().count() - outcome.failures().len(),
        outcome.seen.longest_wait().as_secs_f64(),
        outcome.seen.long_lived.cuts.len(),
        outcome.seen.long_lived.longest.as_secs_f64(),
        outcome.service.start.processed,
    );
    outcome
}

impl Outcome {
    /// Failed connections, but for those that were cut together with their session.
    pub fn failures(&self) -> Vec<&Attempt> {
        let ended = self.log.iter().filter(|line| matches!(line.field("event"), "lost" | "ended"));
        let ends: Vec<_> = ended.map(|line| SessionEnd { at: line.at, cut: line.number("cut") }).collect();
        self.seen.failed(&ends)
    }

    pub fn none_failed(&self) -> &Self {
        assert!(self.failures().is_empty(), "{:?}\n{}", self.failures(), self.story());
        self
    }

    /// Nobody was turned away who had not been held for the whole of `hold`.
    pub fn only_those_that_waited_failed(&self) -> &Self {
        let early = |attempt: &&&Attempt| attempt.took < HOLD - Duration::from_millis(100);
        let early: Vec<_> = self.failures().iter().filter(early).map(|a| format!("{a:?}")).collect();
        assert!(early.is_empty(), "{early:?}\n{}", self.story());
        self
    }

    pub fn long_lived_survives(&self) -> &Self {
        assert_eq!(self.seen.long_lived.cuts.len(), 0, "{:?}\n{}", self.seen.long_lived.cuts, self.story());
        self
    }

    pub fn long_lived_is_cut(&self, times: usize) -> &Self {
        assert_eq!(
            self.seen.long_lived.cuts.len(),
            times,
            "{:?}\n{}",
            self.seen.long_lived.cuts,
            self.story()
        );
        self
    }

    pub fn starts(&self, most: u64) -> &Self {
        assert!(self.service.start.processed <= most, "{:?}\n{}", self.service.start, self.story());
        self
    }

    /// The log as an operator reads it.
    pub fn story(&self) -> String {
        let told = self
            .log
            .iter()
            .filter(|line| matches!(line.fields["level"].as_str(), Some("INFO" | "WARN" | "ERROR")));
        told.map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }
}

async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_closes_with_code_1000() {
    let outcome = under_load("10 closes with code 1000, 1.5 s apart", async |lab, daemon| {
        for close in 1..=10 {
            assert_eq!(lab.close_all(1000, "Bye"), 1);
            daemon.event_times("resumed", close).await;
            pause(Duration::from_millis(1500)).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_aborted_websockets() {
    let outcome = under_load("5 aborted WebSockets, 2 s apart", async |lab, daemon| {
        for abort in 1..=5 {
            assert_eq!(lab.abort_all(), 1);
            daemon.event_times("resumed", abort).await;
            pause(Duration::from_secs(2)).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_refused_for_15_s() {
    let outcome = under_load("ResumeSession refused (403) for 15 s", async |lab, daemon| {
        let refused = lab.set_for(Fault::Api(Call::Resume, ApiFault::Forbidden), Duration::from_secs(15));
        lab.close_all(1000, "Bye");
        refused.await.unwrap();
        daemon.event("resumed").await;
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_refused_for_20_s() {
    let outcome = under_load("service refuses everything for 20 s", async |lab, daemon| {
        lab.set_for(Fault::Refuse, Duration::from_secs(20)).await.unwrap();
        daemon.event("resumed").await;
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_refused_for_90_s() {
    let outcome = under_load("service refuses everything for 90 s", async |lab, daemon| {
        lab.set_for(Fault::Refuse, Duration::from_secs(90)).await.unwrap();
        daemon.event("resumed").await;
    })
    .await;
    outcome.only_those_that_waited_failed().long_lived_survives().starts(4);
}

/// Longer than the plugin goes on resending: it asks to terminate the session after five minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seven minutes; run with --ignored"]
async fn everything_refused_for_6_minutes() {
    let outcome = under_load("service refuses everything for 6 min", async |lab, daemon| {
        lab.set_for(Fault::Refuse, Duration::from_secs(360)).await.unwrap();
        daemon.event("resumed").await;
    })
    .await;
    outcome.only_those_that_waited_failed().long_lived_survives().starts(4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_by_the_service() {
    let outcome = under_load("session terminated by the service", async |lab, daemon| {
        assert_eq!(lab.terminate_all("Session terminated by an administrator"), 1);
        let lost = daemon.event("lost").await;
        assert!(lost.field("reason").contains("administrator"), "{}", lost.text);
    })
    .await;
    outcome.none_failed().long_lived_is_cut(1).starts(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_killed() {
    let mut recovery = Duration::ZERO;
    let outcome = under_load("plugin killed with SIGKILL", async |_, daemon| {
        let began = Instant::now();
        kill(daemon.plugin().await, Signal::SIGKILL).unwrap();
        daemon.event_times("ready", 2).await;
        recovery = began.elapsed();
    })
    .await;
    println!("from SIGKILL to the next Ready: {} ms", recovery.as_millis());
    outcome.none_failed().long_lived_is_cut(1).starts(2);
    assert!(recovery < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_killed_ten_times() {
    let outcome = under_load("plugin killed ten times, 3 s apart", async |_, daemon| {
        for round in 1..=10 {
            kill(daemon.plugin().await, Signal::SIGKILL).unwrap();
            daemon.event_times("ready", round + 1).await;
            pause(Duration::from_secs(3)).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_is_cut(10).starts(11);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugin_stopped() {
    let mut replaced = Duration::ZERO;
    let outcome = under_load("plugin SIGSTOPped", async |_, daemon| {
        let began = Instant::now();
        kill(daemon.plugin().await, Signal::SIGSTOP).unwrap();
        daemon.event_times("ready", 2).await;
        replaced = began.elapsed();
    })
    .await;
    println!("from SIGSTOP to the next Ready: {:.1} s", replaced.as_secs_f64());
    assert!(replaced < Duration::from_secs(25));
    outcome.none_failed().long_lived_is_cut(1).starts(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn black_hole_for_40_s() {
    let outcome = under_load("black hole for 40 s", async |lab, daemon| {
        lab.set_for(Fault::BlackHole, Duration::from_secs(40)).await.unwrap();
        daemon.event("resumed").await;
    })
    .await;
    outcome.only_those_that_waited_failed().long_lived_survives().starts(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_throttled_while_the_session_is_terminated() {
    let outcome =
        under_load("StartSession throttled 10 s while the session is terminated", async |lab, daemon| {
            let throttled =
                lab.set_for(Fault::Api(Call::Start, ApiFault::Throttled), Duration::from_secs(10));
            lab.terminate_all("Session is terminated");
            throttled.await.unwrap();
            daemon.event_times("ready", 2).await;
        })
        .await;
    // Ceilings of 2, 4, 8 and 16 s, each drawn from its upper half: at most four attempts fall into ten seconds.
    outcome.none_failed().long_lived_is_cut(1).starts(1 + 4 + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resume_without_token() {
    let outcome = under_load("ResumeSession without token", async |lab, daemon| {
        lab.set(Fault::Api(Call::Resume, ApiFault::NoToken));
        lab.close_all(1000, "Bye");
        daemon.event_times("ready", 2).await;
        lab.clear(Fault::Api(Call::Resume, ApiFault::NoToken));
    })
    .await;
    outcome.none_failed().long_lived_is_cut(1).starts(2);
}
