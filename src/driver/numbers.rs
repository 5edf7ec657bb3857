//! A tunnel's counters and histograms: what `/metrics` is made of.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::describe;
use super::seen::Seen;
use crate::control::protocol::{Metrics, words};
use crate::gateway;
use crate::plugin::output::Output;
use crate::plugin::process;
use crate::proxy::Stats;
use crate::telemetry::histogram::{Counter, Histogram, RESUME, ROUND_TRIP};
use crate::tunnel::command::RESTARTED;
use crate::tunnel::failure::{Class, Failure};
use crate::tunnel::{InterruptionCause, Report};

/// Close codes come from outside: of so many different ones each is counted by itself.
const CODES: usize = 16;

/// What is counted where it is decided or seen. What the proxy counts is in its [`Stats`].
#[derive(Debug)]
pub(super) struct Numbers {
    starts: Counter,
    ends: Counter,
    closes: BTreeMap<String, u64>,
    resumes: Counter,
    resume_seconds: Histogram,
    round_trips: Histogram,
    plugin_ends: Counter,
    /// The last failed attempt to have a session.
    pub failure: Option<(Instant, Failure)>,
    /// When a data channel was opened again last.
    pub resumed: Option<Instant>,
}

impl Default for Numbers {
    fn default() -> Self {
        Self {
            starts: Counter::new(words::START_OUTCOMES),
            ends: Counter::new(words::END_REASONS),
            closes: BTreeMap::new(),
            resumes: Counter::new(words::RESUME_OUTCOMES),
            resume_seconds: Histogram::new(RESUME),
            round_trips: Histogram::new(ROUND_TRIP),
            plugin_ends: Counter::new(words::PLUGIN_ENDS),
            failure: None,
            resumed: None,
        }
    }
}

impl Numbers {
    /// Takes in what a session's gateway saw. `told_before`: the interruption that it is in already.
    pub(super) fn gateway(&mut self, event: &gateway::Event, told_before: Option<InterruptionCause>) {
        match event {
            gateway::Event::ChannelClosed { code, .. } => self.closed(*code),
            // Counted among them: the data channel is open, and nothing comes of it.
            gateway::Event::Interrupted(interruption) if told_before != Some(interruption.cause()) => {
                self.count_close(describe::cause(interruption.cause()).word().to_owned());
            }
            gateway::Event::RoundTrip(took) => self.round_trips.observe(*took),
            _ => {}
        }
    }

    /// Takes in what a session's plugin said, where nobody knows better.
    pub(super) fn plugin(&mut self, event: &process::Event, observed: bool) {
        if let process::Event::Output(Output::ChannelClosed { code, .. }) = event
            && observed
        {
            self.closed(Some(*code));
        }
    }

    fn closed(&mut self, code: Option<u16>) {
        self.count_close(code.map_or_else(|| "none".to_owned(), |code| code.to_string()));
    }

    fn count_close(&mut self, mut word: String) {
        if !self.closes.contains_key(&word) && self.closes.len() >= CODES {
            "other".clone_into(&mut word);
        }
        *self.closes.entry(word).or_default() += 1;
    }

    /// Takes in what was decided about a session.
    pub(super) fn report(&mut self, report: &Report, seen: Option<&Seen>) {
        let lost_by = seen.and_then(|seen| seen.lost_by);
        match report {
            Report::Ready(..) => self.starts.count("ok"),
            // Nothing was closed.
            Report::Resumed(_, _, 0) => {}
            Report::Resumed(_, after, _) => {
                self.resumes.count("ok");
                self.resume_seconds.observe(*after);
                self.resumed = Some(Instant::now());
            }
            Report::Failed(_, failure, _) => {
                self.starts.count(class_word(failure.class));
                self.failure = Some((Instant::now(), failure.clone()));
            }
            Report::Ended { reason, expected, .. } => {
                let word = match (expected, lost_by) {
                    (false, Some(by)) => by.end_reason(),
                    (false, None) if seen.is_some_and(|seen| seen.down.is_some()) => "not_resumed",
                    (true, _) if reason == "stopped" => "stopped",
                    (true, _) if reason == RESTARTED => "requested",
                    (true, _) if reason.starts_with("replaced") => "replaced",
                    _ => "other",
                };
                self.ends.count(word);
                if let Some(word) = lost_by.filter(|_| !expected).and_then(super::seen::LostBy::plugin_end) {
                    self.plugin_ends.count(word);
                }
                if seen.is_some_and(Seen::is_closed) {
                    self.resumes.count("lost");
                }
            }
            _ => {}
        }
    }

    /// As it goes over the socket.
    pub(super) fn read(&self, clients: &Stats) -> Metrics {
        let counts = clients.snapshot();
        let outcomes = [
            ("completed", counts.completed),
            ("cut", counts.cut),
            ("stalled", counts.stalled_closed),
            ("timed_out", counts.timed_out),
            ("gone", counts.gone),
            ("refused", counts.over_limit),
            ("stopped", counts.stopped),
            ("accept_failed", counts.accept_errors),
        ];
        let bytes = [("up", counts.bytes_up), ("down", counts.bytes_down)];
        let named =
            |pairs: &[(&str, u64)]| pairs.iter().map(|(word, count)| ((*word).to_owned(), *count)).collect();
        Metrics {
            session_starts: self.starts.read(),
            session_ends: self.ends.read(),
            stream_closes: self.closes.clone(),
            resumes: self.resumes.read(),
            resume_seconds: self.resume_seconds.read(),
            hold_seconds: clients.hold_seconds(),
            connections: named(&outcomes),
            bytes: named(&bytes),
            agent_rtt_seconds: self.round_trips.read(),
            plugin_restarts: self.plugin_ends.read(),
        }
    }
}

/// A word of [`words::FAILURE_CLASSES`].
pub(super) fn class_word(class: Class) -> &'static str {
    match class {
        Class::NeedsChange => "needs_change",
        Class::Access => "access",
        Class::TargetNotConnected => "target_not_connected",
        Class::Throttled => "throttled",
        Class::Network => "network",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::driver::seen::LostBy;
    use crate::tunnel::Generation;

    fn ended(reason: &str, expected: bool) -> Report {
        let (generation, age) = (Generation(1), Duration::from_secs(60));
        Report::Ended { generation, reason: reason.to_owned(), age, cut: 0, expected }
    }

    #[test]
    fn every_word_is_one_of_the_fixed_ones_and_there_from_the_beginning() {
        let metrics = Numbers::default().read(&Stats::default());
        for (counters, words) in [
            (&metrics.session_starts, words::START_OUTCOMES),
            (&metrics.session_ends, words::END_REASONS),
            (&metrics.resumes, words::RESUME_OUTCOMES),
            (&metrics.connections, words::CONNECTION_OUTCOMES),
            (&metrics.bytes, words::DIRECTIONS),
            (&metrics.plugin_restarts, words::PLUGIN_ENDS),
        ] {
            let mut words = words.to_vec();
            words.sort_unstable();
            assert_eq!(counters.keys().collect::<Vec<_>>(), words);
            assert!(counters.values().all(|count| *count == 0));
        }
        let classes =
            [Class::NeedsChange, Class::Access, Class::TargetNotConnected, Class::Throttled, Class::Network];
        assert_eq!(classes.map(class_word), words::FAILURE_CLASSES);
    }

    #[test]
    fn an_end_has_one_reason_and_a_plugin_s_end_is_counted_too() {
        let mut numbers = Numbers::default();
        let lost = |by| Seen { lost_by: Some(by), ..Seen::default() };
        numbers.report(&ended("the plugin exited: killed", false), Some(&lost(LostBy::PluginKilled)));
        numbers.report(&ended("terminated by ops", false), Some(&lost(LostBy::Service)));
        let mut down = Seen::default();
        down.gateway(&gateway::Event::ChannelClosed { code: None, reason: "reset".into() });
        numbers.report(&ended("the data channel could not be resumed for 600 s", false), Some(&down));
        // Its plugin was told to go, and went.
        numbers.report(&ended("replaced", true), Some(&lost(LostBy::PluginExited)));
        numbers.report(&ended(RESTARTED, true), None);
        numbers.report(&ended("stopped", true), None);
        let metrics = numbers.read(&Stats::default());
        let counted: Vec<_> = metrics
            .session_ends
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(word, _)| word.as_str())
            .collect();
        assert_eq!(counted, ["not_resumed", "plugin_exited", "replaced", "requested", "service", "stopped"]);
        assert_eq!(metrics.plugin_restarts["killed"], 1);
        assert_eq!(metrics.plugin_restarts["exited"], 0);
        assert_eq!(metrics.resumes["lost"], 1);
    }

    #[test]
    fn an_agents_silence_has_a_word_of_its_own_and_its_end_is_no_resume() {
        let (mut numbers, mut seen) = (Numbers::default(), Seen::default());
        let silent = gateway::Event::Interrupted(gateway::Interruption::AgentSilent);
        numbers.gateway(&silent, None);
        numbers.gateway(&silent, Some(InterruptionCause::AgentSilent));
        seen.gateway(&silent);
        numbers.report(&Report::Resumed(Generation(1), Duration::from_secs(40), 0), Some(&seen));
        numbers.report(&ended("the data channel could not be resumed for 600 s", false), Some(&seen));
        let metrics = numbers.read(&Stats::default());
        assert_eq!(metrics.stream_closes, BTreeMap::from([("agent_silent".to_owned(), 1)]));
        assert!(metrics.resumes.values().all(|count| *count == 0), "{:?}", metrics.resumes);
        assert_eq!((metrics.resume_seconds.count(), numbers.resumed), (0, None));
        assert_eq!(metrics.session_ends["not_resumed"], 1);
    }

    #[test]
    fn close_codes_do_not_grow_without_end() {
        let mut numbers = Numbers::default();
        for code in 1000..3000 {
            numbers.gateway(&gateway::Event::ChannelClosed { code: Some(code), reason: String::new() }, None);
        }
        let closes = numbers.read(&Stats::default()).stream_closes;
        assert_eq!((closes.len(), closes["1000"], closes["other"]), (CODES + 1, 1, 2000 - CODES as u64));
    }
}
