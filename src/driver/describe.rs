//! The tunnel as `autossm status` shows it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use super::numbers::class_word;
use super::session::Session;
use crate::aws::api::{Expires, HeldCredentials};
use crate::config::{self, Target};
use crate::control::protocol::{
    self, Connections, Credentials, Daemon, Destination, Expiry, Failure, Interruption, Next, Phase, Resumes,
    State, Status,
};
use crate::control::time::Timestamp;
use crate::tunnel::status::{self, SessionStatus};
use crate::tunnel::step::Step;
use crate::tunnel::{self, InterruptionCause, Time};

/// A round trip is shown for so long, beyond the time until the next keep-alive.
const ROUND_TRIP_AGE: Duration = Duration::from_secs(60);
/// The host's clock may differ by this much from what was reckoned before it is believed again.
const DRIFT: Duration = Duration::from_secs(1);

/// Tells moments of the tunnel's own time by the host's clock, always the same for the same moment, so that two looks
/// at one state are alike. Where the host's clock was set, or the host slept, it is reckoned anew.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    wall: Timestamp,
}

impl Clock {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, wall: Timestamp::now().before(began.elapsed()) }
    }

    fn adjust(&mut self) {
        let began = Timestamp::now().before(self.began.elapsed());
        if began.since(self.wall).max(self.wall.since(began)) > DRIFT {
            self.wall = began;
        }
    }

    fn at(&self, time: Time) -> Timestamp {
        self.wall.after(time)
    }

    fn instant(&self, instant: Instant) -> Timestamp {
        self.at(instant.saturating_duration_since(self.began))
    }
}

impl Driver {
    /// The tunnel at this moment.
    pub(super) fn describe(&mut self) -> Status {
        self.clock.adjust();
        let clock = &self.clock;
        let snapshot = self.snapshot.borrow().clone();
        let core = &snapshot.status;
        let clients = self.stats.snapshot();
        let held = clients.held as u64;
        let failure = |(at, failure): &(Instant, tunnel::failure::Failure)| Failure {
            at: clock.instant(*at),
            class: class_word(failure.class).to_owned(),
            text: failure.text.clone(),
        };
        let last_failure = self.numbers.failure.as_ref().map(failure);
        let obstacle = self.sessions.values().find_map(|session| session.seen.obstacle.as_ref()).map(failure);
        let api = self.shared.clients.known(&self.config.identity);
        let sessions: Vec<_> = core.sessions.iter().map(|session| self.session(session)).collect();
        Status {
            name: self.config.name.clone(),
            now: Timestamp::now(),
            daemon: Daemon {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                started: clock.at(Time::ZERO),
            },
            state: state(core),
            since: match &core.degraded {
                Some(degraded) if state(core) == State::Degraded => clock.at(degraded.since),
                _ => clock.instant(snapshot.since),
            },
            draining: self.core.is_drained(),
            listen: self.config.listen.iter().map(ToString::to_string).collect(),
            targets: targets(&self.config.target),
            remote_host: self.config.remote_host.clone(),
            remote_port: self.config.remote_port,
            region: api
                .as_ref()
                .map(|api| api.region().to_owned())
                .or_else(|| self.config.identity.region.clone()),
            gateway: self.config.gateway.to_string(),
            sessions_wanted: u64::from(self.config.sessions),
            agent_rtt_ms: self.round_trip(),
            sessions,
            next: self.core.next_step().map(|(at, step)| Next {
                at: clock.at(at),
                what: named(step),
                reason: core
                    .failure
                    .as_ref()
                    .filter(|_| step == Step::Start)
                    .map(|f| format!("{}: {}", f.class, f.text)),
            }),
            failure: if core.failure.is_some() { last_failure.clone() } else { obstacle },
            last_failure,
            failed_attempts: self.failed_in_a_row,
            destination: self.destination(core),
            credentials: Some(credentials(api.and_then(|api| api.held_credentials()))),
            connections: Connections {
                open: (clients.open as u64).saturating_sub(held),
                held,
                accepted: clients.accepted,
                served: clients.connected,
                failed: clients.timed_out
                    + clients.over_limit
                    + clients.accept_errors
                    + clients.cut
                    + clients.stalled_closed,
                released: clients.released,
                timed_out: clients.timed_out,
                gone: clients.gone,
                refused: clients.over_limit,
                accept_errors: clients.accept_errors,
                moved: clients.moved,
                cut: clients.cut,
                stalled_closed: clients.stalled_closed,
                longest_hold_ms: u64::try_from(clients.longest_hold.as_millis()).unwrap_or(u64::MAX),
            },
            up_bytes: clients.bytes_up,
            down_bytes: clients.bytes_down,
            resumes: Resumes {
                last_day: self.history.resumed_last_day(),
                total: snapshot.resumed,
                last_at: self.numbers.resumed.map(|at| clock.instant(at)),
                last_ms: snapshot
                    .last_resumed
                    .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            },
            metrics: self.numbers.read(&self.stats),
        }
    }

    /// The newest of all sessions that there are.
    fn round_trip(&self) -> Option<f64> {
        let age = self.round_trip_age();
        let measured = self.sessions.values().filter_map(|session| session.seen.round_trip_within(age));
        measured.max_by_key(|(at, _)| *at).map(|(_, took)| millis(took))
    }

    /// How old a round trip may be that is shown: an idle session has a keep-alive before that.
    fn round_trip_age(&self) -> Duration {
        ROUND_TRIP_AGE + self.config.keepalive.unwrap_or_default()
    }

    /// Known of one that is down, or that is probed through a session that serves.
    fn destination(&self, core: &status::Status) -> Option<Destination> {
        let clock = &self.clock;
        let last = self.probed.last.as_ref();
        let good_since = self.probed.good_since.filter(|_| core.state == status::State::Up);
        let (state, since, reason) = match (&core.degraded, good_since) {
            (Some(degraded), _) => ("down", clock.at(degraded.since), Some(degraded.reason.clone())),
            (None, Some(since)) => ("up", clock.instant(since), last.and_then(|last| last.bad.clone())),
            (None, None) => return None,
        };
        Some(Destination {
            state: state.to_owned(),
            since,
            reason,
            checked: last.map(|last| clock.instant(last.at)),
            took_ms: last.map(|last| millis(last.took)),
        })
    }

    fn session(&self, core: &SessionStatus) -> protocol::Session {
        let clock = &self.clock;
        let nothing = Session::default();
        let session = self.sessions.get(&core.generation).unwrap_or(&nothing);
        let (seen, begun) = (&session.seen, session.begun.as_ref());
        let no_keepalive = match (self.config.gateway, self.config.keepalive) {
            (config::GatewayMode::Observe, _) => Some("gateway = \"observe\""),
            (_, None) => Some("keepalive = \"off\""),
            (_, Some(_)) => seen.no_keepalive,
        };
        let interruption = core.down_since.map(|since| Interruption {
            since: clock.at(since),
            cause: seen.cause().map(cause).unwrap_or_default(),
            reason: seen.down.as_ref().map(|down| down.reason.clone()).unwrap_or_default(),
            missing_messages: seen.down.as_ref().map_or(0, |down| down.gap.from_agent + down.gap.from_plugin),
            repair_ms: seen
                .down
                .as_ref()
                .map_or(0, |down| u64::try_from(down.gap.repair_time().as_millis()).unwrap_or(u64::MAX)),
            failed_attempts: seen.down.as_ref().map_or(0, |down| down.failed_attempts),
            failure: seen.down.as_ref().and_then(|down| down.failure.as_ref()).map(|(at, failure)| Failure {
                at: clock.instant(*at),
                class: class_word(failure.class).to_owned(),
                text: failure.text.clone(),
            }),
            // One that is being made has no time.
            next_attempt: (seen.down.as_ref())
                .and_then(|down| down.next_attempt)
                .filter(|at| *at > Instant::now())
                .map(|at| clock.instant(at)),
            gives_up: Some(clock.at(since + self.config.resume_for)),
        });
        protocol::Session {
            generation: core.generation.0,
            id: Some(session.id().to_owned()).filter(|id| !id.is_empty()),
            phase: Phase::ALL.into_iter().find(|phase| phase.word() == core.phase).unwrap_or_default(),
            began: clock.at(core.began),
            ready_at: core.ready_at.map(|at| clock.at(at)),
            target: begun.map(|begun| begun.target.clone()),
            agent_version: seen.agent_version.clone(),
            encrypted: seen.encrypted,
            keepalive: no_keepalive.is_some().then_some(false).or(seen.encrypted.map(|_| true)),
            no_keepalive: no_keepalive.map(str::to_owned),
            plugin_pid: session.plugin.as_ref().filter(|_| !seen.exited).map(super::Running::pid),
            open: core.open as u64,
            up_bytes: session.route.as_ref().map_or(0, |route| route.up_bytes.load(Relaxed)),
            down_bytes: session.route.as_ref().map_or(0, |route| route.down_bytes.load(Relaxed)),
            resumes: seen.resumes,
            agent_rtt_ms: seen.round_trip_within(self.round_trip_age()).map(|(_, took)| millis(took)),
            interruption,
            until: core.until.map(|at| clock.at(at)),
        }
    }
}

/// What clients meet, in the protocol's terms.
pub(super) fn state(status: &status::Status) -> State {
    match status.state {
        status::State::Up if status.degraded.is_some() => State::Degraded,
        status::State::Up => State::Up,
        status::State::Interrupted => State::Interrupted,
        status::State::Starting => State::Starting,
        status::State::Waiting => State::Waiting,
        status::State::Draining => State::Draining,
        status::State::Stopping => State::Stopping,
        status::State::Stopped => State::Stopped,
    }
}

/// What keeps a session from serving, in the protocol's terms.
pub(super) fn cause(cause: InterruptionCause) -> protocol::InterruptionCause {
    match cause {
        InterruptionCause::Closed => protocol::InterruptionCause::Closed,
        InterruptionCause::Unanswered => protocol::InterruptionCause::Unanswered,
        InterruptionCause::AgentAway => protocol::InterruptionCause::AgentAway,
        InterruptionCause::AgentSilent => protocol::InterruptionCause::AgentSilent,
        InterruptionCause::Gap => protocol::InterruptionCause::Gap,
    }
}

fn credentials(held: Option<HeldCredentials>) -> Credentials {
    let Some(held) = held else { return Credentials { expiry: Expiry::None, ..Credentials::default() } };
    let (expiry, expires) = match held.expires {
        Expires::Never => (Expiry::Never, None),
        Expires::Unknown => (Expiry::Unknown, None),
        Expires::At(at) => (Expiry::At, Some(Timestamp::from(at))),
    };
    let source = held.source.map(str::to_owned);
    Credentials { access_key_id: Some(held.access_key_id), source, expiry, expires }
}

fn named(step: Step) -> protocol::Step {
    match step {
        Step::Start => protocol::Step::Start,
        Step::Failover => protocol::Step::Failover,
        Step::OpeningOver => protocol::Step::OpeningOver,
        Step::ResumingOver => protocol::Step::ResumingOver,
        Step::Rotation => protocol::Step::Rotation,
        Step::DrainOver => protocol::Step::DrainOver,
        Step::StoppingOver => protocol::Step::StoppingOver,
    }
}

fn targets(target: &Target) -> Vec<String> {
    match target {
        Target::Ids(ids) => ids.clone(),
        tag @ Target::Tag { .. } => vec![tag.to_string()],
    }
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_told_alike_each_time_until_the_clock_was_set() {
        let began = Instant::now();
        let mut clock = Clock { began, wall: Timestamp::now() };
        let told = clock.at(Duration::from_secs(5));
        clock.adjust();
        assert_eq!(clock.at(Duration::from_secs(5)), told);
        // The host slept, or its clock was wrong: the paused runtime's clock has gone ahead.
        tokio::time::advance(Duration::from_secs(3600)).await;
        clock.adjust();
        assert!(told.since(clock.at(Duration::from_secs(5))) >= Duration::from_secs(3590));
    }
}
