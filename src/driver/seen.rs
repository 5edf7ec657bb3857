//! What was seen of one session, for those who look at it over the control socket.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::gateway::{self, Gap, Interruption};
use crate::plugin::output::Output;
use crate::plugin::process;
use crate::tunnel::InterruptionCause;
use crate::tunnel::failure::Failure;

/// One session's facts, each as new as the last event about it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub agent_version: Option<String>,
    pub encrypted: Option<bool>,
    /// Why no keep-alives can be sent, where that is known; nothing is known before the handshake.
    pub no_keepalive: Option<&'static str>,
    /// The last round trip to its agent, and when it was measured.
    pub round_trip: Option<(Instant, Duration)>,
    /// How often its data channel was opened again.
    pub resumes: u64,
    /// Why its data channel could not be opened the first time, until it is, and since when that is known.
    pub obstacle: Option<(Instant, Failure)>,
    /// Its data channel is down.
    pub down: Option<Down>,
    /// Its plugin is gone.
    pub exited: bool,
    /// What it was lost by, if anything.
    pub lost_by: Option<LostBy>,
}

/// A data channel that is down, or as good as that because the agent is silent.
#[derive(Debug)]
pub(super) struct Down {
    /// What keeps the session from serving at the moment.
    pub cause: InterruptionCause,
    pub reason: String,
    /// What is missing, where that is the cause.
    pub gap: Gap,
    /// It was closed: it has to be resumed.
    pub closed: bool,
    pub failed_attempts: u64,
    /// When the next attempt is made, or the last one was begun.
    pub next_attempt: Option<Instant>,
    pub failure: Option<(Instant, Failure)>,
}

/// What ends sessions without anybody's having wanted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LostBy {
    PluginExited,
    PluginKilled,
    PluginHung,
    Service,
}

impl LostBy {
    /// A word of `END_REASONS` of the protocol.
    pub(super) fn end_reason(self) -> &'static str {
        match self {
            Self::PluginExited | Self::PluginKilled => "plugin_exited",
            Self::PluginHung => "plugin_hung",
            Self::Service => "service",
        }
    }

    /// A word of its `PLUGIN_ENDS`, where the plugin is to blame.
    pub(super) fn plugin_end(self) -> Option<&'static str> {
        match self {
            Self::PluginExited => Some("exited"),
            Self::PluginKilled => Some("killed"),
            Self::PluginHung => Some("hung"),
            Self::Service => None,
        }
    }
}

impl Seen {
    /// Takes in what the gateway saw.
    pub(super) fn gateway(&mut self, event: &gateway::Event) {
        match event {
            gateway::Event::Handshake { agent_version, encrypted, multiplexed, .. } => {
                self.agent_version = Some(agent_version.clone());
                self.encrypted = Some(*encrypted);
                self.no_keepalive = match (encrypted, multiplexed) {
                    (true, _) => Some("the session is encrypted"),
                    (false, false) => Some("the session is not multiplexed"),
                    (false, true) => None,
                };
            }
            gateway::Event::LostTrack => {
                self.no_keepalive = Some("the plugin's data is not multiplexed");
            }
            gateway::Event::ForeignConnection => {
                self.no_keepalive = Some("another process has connected to the plugin's port");
            }
            gateway::Event::ChannelClosed { reason, .. } => self.closed(reason),
            gateway::Event::Interrupted(interruption) => {
                let down = self.interrupted(interruption.cause(), &interruption.to_string());
                if let Interruption::Gap { missing, .. } = interruption {
                    down.gap = *missing;
                }
            }
            // In `observe` mode every opening looks like the first.
            gateway::Event::ChannelOpened | gateway::Event::ChannelResumed { .. } => self.resumed(),
            gateway::Event::ResumeFailed(failure) => match &mut self.down {
                Some(down) => {
                    down.failed_attempts += 1;
                    down.failure = Some((Instant::now(), failure.clone()));
                }
                None => self.obstacle = Some((Instant::now(), failure.clone())),
            },
            gateway::Event::KmsFailed(failure) => self.obstacle = Some((Instant::now(), failure.clone())),
            gateway::Event::RetryIn(delay) => {
                if let Some(down) = &mut self.down {
                    down.next_attempt = Some(Instant::now() + *delay);
                }
            }
            gateway::Event::RoundTrip(took) => self.round_trip = Some((Instant::now(), *took)),
            gateway::Event::PluginHung { .. } => self.lost(LostBy::PluginHung),
            gateway::Event::SessionEnded { .. } => self.lost(LostBy::Service),
            _ => {}
        }
    }

    /// Takes in what the plugin said or did. Of the data channel only where nobody knows better: in `observe` mode.
    pub(super) fn plugin(&mut self, event: &process::Event, observed: bool) {
        match event {
            process::Event::Exited { status, .. } => {
                self.exited = true;
                let killed = status.is_some_and(|status| status.signal().is_some());
                self.lost(if killed { LostBy::PluginKilled } else { LostBy::PluginExited });
            }
            process::Event::Stopped => self.lost(LostBy::PluginHung),
            process::Event::Output(Output::SessionClosed { .. }) => self.lost(LostBy::Service),
            process::Event::Output(Output::ChannelClosed { reason, .. }) if observed => self.closed(reason),
            process::Event::Output(Output::Reconnected) if observed => self.resumed(),
            process::Event::Output(Output::DataTimeout) if observed => self.lost(LostBy::PluginHung),
            process::Event::Output(_) => {}
        }
    }

    fn closed(&mut self, reason: &str) {
        // One that is closed again while it is being resumed is so as a consequence.
        if !self.is_closed() || self.cause() != Some(InterruptionCause::Closed) {
            self.interrupted(InterruptionCause::Closed, reason).closed = true;
        }
    }

    fn interrupted(&mut self, cause: InterruptionCause, reason: &str) -> &mut Down {
        let down = self.down.get_or_insert_with(|| Down {
            cause,
            reason: String::new(),
            gap: Gap::default(),
            closed: false,
            failed_attempts: 0,
            next_attempt: None,
            failure: None,
        });
        down.cause = cause;
        reason.clone_into(&mut down.reason);
        down.gap = Gap::default();
        down
    }

    /// What keeps the session from serving, if anything.
    pub(super) fn cause(&self) -> Option<InterruptionCause> {
        self.down.as_ref().map(|down| down.cause)
    }

    fn resumed(&mut self) {
        self.obstacle = None;
        if self.down.take().is_some_and(|down| down.closed) {
            self.resumes += 1;
        }
    }

    /// The last round trip, if that is no older than `age`.
    pub(super) fn round_trip_within(&self, age: Duration) -> Option<(Instant, Duration)> {
        self.round_trip.filter(|(at, _)| at.elapsed() <= age)
    }

    /// Whether its data channel is closed, which is not yet said of one whose agent alone is silent.
    pub(super) fn is_closed(&self) -> bool {
        self.down.as_ref().is_some_and(|down| down.closed)
    }

    /// The first cause is the cause: what follows from it comes later.
    fn lost(&mut self, by: LostBy) {
        self.lost_by.get_or_insert(by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::words;
    use crate::tunnel::failure::Class;

    #[test]
    fn an_interruption_is_counted_once_however_it_is_told() {
        let mut seen = Seen::default();
        seen.gateway(&gateway::Event::ChannelOpened);
        assert_eq!(seen.resumes, 0);
        let closed = |reason: &str| gateway::Event::ChannelClosed { code: Some(1000), reason: reason.into() };
        seen.gateway(&closed("Bye"));
        seen.gateway(&gateway::Event::ResumeFailed(Failure::new(Class::Network, "500")));
        seen.gateway(&closed("again"));
        let down = seen.down.as_ref().unwrap();
        assert_eq!((down.reason.as_str(), down.failed_attempts, down.next_attempt), ("Bye", 1, None));
        seen.gateway(&gateway::Event::RetryIn(Duration::from_secs(5)));
        assert!(seen.down.as_ref().is_some_and(|down| down.next_attempt > Some(Instant::now())));
        seen.gateway(&gateway::Event::ChannelResumed { after: Duration::ZERO, attempts: 2 });
        assert_eq!((seen.resumes, seen.down.is_none()), (1, true));
    }

    #[test]
    fn what_is_in_the_way_of_the_first_opening_is_known_until_it_is_gone() {
        let mut seen = Seen::default();
        seen.gateway(&gateway::Event::ResumeFailed(Failure::new(Class::Network, "no WebSocket")));
        assert!(
            seen.down.is_none() && seen.obstacle.as_ref().is_some_and(|(_, why)| why.text == "no WebSocket")
        );
        seen.gateway(&gateway::Event::ChannelOpened);
        assert!(seen.obstacle.is_none());
    }

    #[test]
    fn an_agents_silence_is_an_interruption_and_no_close() {
        let (mut seen, after) = (Seen::default(), Duration::ZERO);
        let silent = gateway::Event::Interrupted(Interruption::AgentSilent);
        seen.gateway(&silent);
        assert_eq!((seen.down.is_some(), seen.is_closed()), (true, false));
        seen.gateway(&gateway::Event::ChannelResumed { after, attempts: 0 });
        assert_eq!((seen.resumes, seen.down.is_none()), (0, true));
        // And the service closes the data channel before the agent is back.
        seen.gateway(&silent);
        seen.gateway(&gateway::Event::ChannelClosed { code: Some(1000), reason: "Bye".into() });
        assert!(seen.is_closed());
        seen.gateway(&gateway::Event::ChannelResumed { after, attempts: 1 });
        assert_eq!(seen.resumes, 1);
    }

    #[test]
    fn what_stands_in_the_way_of_keep_alives_is_known() {
        let handshake = |encrypted, multiplexed| gateway::Event::Handshake {
            agent_version: "3.3.1.0".into(),
            session_type: "Port".into(),
            encrypted,
            multiplexed,
        };
        let mut seen = Seen::default();
        for (event, words) in [
            (handshake(true, true), Some("encrypted")),
            (handshake(false, false), Some("not multiplexed")),
            (handshake(false, true), None),
            (gateway::Event::LostTrack, Some("the plugin's data")),
            (gateway::Event::ForeignConnection, Some("another process")),
        ] {
            seen.gateway(&event);
            let found = seen.no_keepalive;
            assert_eq!(found.is_some(), words.is_some(), "{event:?}");
            assert!(words.is_none_or(|words| found.unwrap_or_default().contains(words)), "{found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_trip_is_shown_while_it_is_new() {
        let (mut seen, minute) = (Seen::default(), Duration::from_secs(60));
        assert_eq!(seen.round_trip_within(minute), None);
        seen.gateway(&gateway::Event::RoundTrip(Duration::from_millis(30)));
        tokio::time::advance(minute).await;
        assert_eq!(seen.round_trip_within(minute).map(|(_, took)| took), Some(Duration::from_millis(30)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(seen.round_trip_within(minute), None);
    }

    #[test]
    fn the_first_cause_of_a_loss_is_kept_and_its_words_are_known() {
        let mut seen = Seen::default();
        seen.gateway(&gateway::Event::PluginHung { reason: "silent".into() });
        seen.plugin(&process::Event::Exited { words: None, status: None }, false);
        assert_eq!(seen.lost_by, Some(LostBy::PluginHung));
        for by in [LostBy::PluginExited, LostBy::PluginKilled, LostBy::PluginHung, LostBy::Service] {
            assert!(words::END_REASONS.contains(&by.end_reason()));
            assert!(by.plugin_end().is_none_or(|word| words::PLUGIN_ENDS.contains(&word)));
        }
    }
}
