//! A tunnel under load while something goes wrong: 20 new connections a second and one that stays open, and what they see of
//! it. Every fault in every mode is in the table of `tests/reliability`.

use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::load::{Attempt, Load, Seen, SessionEnd};
use autossm_lab::status::Status;

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

/// Runs `fault` against a tunnel that is up and under load, waits until clients are served again as before, and stops
/// everything.
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
        let ends: Vec<_> =
            ended.map(|line| SessionEnd::told(line.at, line.number("cut"), line.field("reason"))).collect();
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
