//! One log line for each thing that an operator would want to know, at the right level.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use super::describe;
use crate::tunnel::failure::Class;
use crate::tunnel::{Generation, InterruptionCause, Reason, Report};

/// Writes one report of the core to the log. `session` is the id, as the console and CloudTrail show it; `target` whom it
/// is with. `repeated`: so many attempts have failed of which no line tells; none: no line is to tell of this one either.
pub(super) fn write(tunnel: &str, session: &str, target: &str, report: &Report, repeated: Option<u64>) {
    match report {
        Report::FailingOver(..) | Report::Replacing(..) if repeated.is_none() => {
            debug!(tunnel, session, "another try: {report:?}");
        }
        Report::Ready(_, took) => {
            info!(
                tunnel,
                session,
                event = "ready",
                duration_ms = millis(*took),
                target,
                repeated,
                "ready after {}{}",
                span(*took),
                more(repeated.unwrap_or_default(), "failed attempts"),
            );
        }
        Report::Interrupted(_, cause, reason) => {
            let next = match cause {
                InterruptionCause::Closed | InterruptionCause::Unanswered => "resuming",
                InterruptionCause::AgentAway | InterruptionCause::AgentSilent => "waiting for the agent",
                InterruptionCause::Gap => "new connections wait",
            };
            let cause = describe::cause(*cause).word();
            info!(tunnel, session, event = "interrupted", cause, reason, "interrupted ({reason}); {next}");
        }
        Report::Resumed(_, after, 0) => {
            info!(
                tunnel,
                session,
                event = "resumed",
                duration_ms = millis(*after),
                attempts = 0,
                "serves again, after {}",
                span(*after)
            );
        }
        Report::Resumed(_, after, attempts) => {
            let tries = if *attempts == 1 { "1 try".to_owned() } else { format!("{attempts} tries") };
            info!(
                tunnel,
                session,
                event = "resumed",
                duration_ms = millis(*after),
                attempts,
                "resumed after {}, {tries}",
                span(*after)
            );
        }
        Report::FailingOver(_, after) => {
            warn!(
                tunnel,
                session,
                event = "failover",
                "not resumed for {}: starting a second session for new connections",
                span(*after)
            );
        }
        Report::Replacing(_, reason) => {
            let reason = match reason {
                Reason::Age => "it has reached its age",
                Reason::Configuration => "the configuration has changed",
                Reason::Destination => "the destination cannot be reached; its name is resolved anew",
                Reason::ForeignConnection => "another process has connected to the plugin's port",
                Reason::Unheeded => "its plugin does not acknowledge what the agent sends again",
                Reason::Requested => "somebody has asked for it",
                Reason::Stalled => "a client that does not read holds it up",
                Reason::Unanswered => {
                    "its probes are not answered, and nothing shows that its agent is there"
                }
            };
            info!(tunnel, session, event = "replacing", reason, "starting a replacement: {reason}");
        }
        Report::Retired(_, open) => {
            info!(tunnel, session, event = "retired", open, "takes no new connections; {open} still open");
        }
        Report::ServesAgain(_) => {
            info!(tunnel, session, event = "serves_again", "takes new connections again");
        }
        Report::Stalled(_, open, replaceable) => {
            let next = if *replaceable {
                "new connections go to another session"
            } else {
                "too many are: no other session is started, and new connections wait or hang with the others"
            };
            warn!(
                tunnel,
                session,
                event = "stalled",
                open,
                "stalled by a client that does not read, with {open} connections open; {next}"
            );
        }
        Report::Flows(_, after) => {
            info!(
                tunnel,
                session,
                event = "flows",
                duration_ms = millis(*after),
                "stalled no more, after {}",
                span(*after)
            );
        }
        Report::Ended { reason, age, cut, expected, .. } => {
            let duration_ms = millis(*age);
            let age = span(*age);
            if *expected {
                info!(
                    tunnel,
                    session,
                    event = "ended",
                    reason,
                    duration_ms,
                    cut,
                    "session ended at the age of {age}: {reason}; {cut} connections cut"
                );
            } else {
                warn!(
                    tunnel,
                    session,
                    event = "lost",
                    reason,
                    duration_ms,
                    cut,
                    "session lost at the age of {age}: {reason}; {cut} connections cut"
                );
            }
        }
        Report::Failed(_, failure, delay) => {
            let (class, text) = (failure.class.to_string(), &failure.text);
            let next = if delay.is_zero() { "now".to_owned() } else { format!("in {}", span(*delay)) };
            let Some(repeated) = repeated else {
                debug!(
                    tunnel,
                    session,
                    event = "failed",
                    class,
                    reason = text,
                    "no session again: {text}; next try {next}"
                );
                return;
            };
            let more = more(repeated, "failed attempts");
            match failure.class {
                Class::NeedsChange | Class::Access => error!(
                    tunnel,
                    session,
                    event = "failed",
                    class,
                    reason = text,
                    repeated,
                    "no session: {text}; next try {next}{more}"
                ),
                _ => warn!(
                    tunnel,
                    session,
                    event = "failed",
                    class,
                    reason = text,
                    repeated,
                    "no session: {text}; next try {next}{more}"
                ),
            }
        }
        Report::Degraded(_, reason) => {
            error!(
                tunnel,
                session,
                event = "degraded",
                reason,
                "the destination is down: {reason}; the tunnel stays up"
            );
        }
        Report::Recovered(_, after) => {
            info!(
                tunnel,
                session,
                event = "recovered",
                duration_ms = millis(*after),
                "the destination can be reached again, after {}",
                span(*after)
            );
        }
        Report::Limit(limit) => {
            info!(
                tunnel,
                event = "limit_learned",
                duration_ms = millis(*limit),
                "the account ends sessions at the age of {}: each is replaced before that",
                span(*limit)
            );
        }
        Report::NoLimit(limit) => {
            info!(
                tunnel,
                event = "limit_dropped",
                duration_ms = millis(*limit),
                "the account does not end sessions at the age of {}: they are not replaced for that any more",
                span(*limit)
            );
        }
        Report::NotTerminated(_, reason) => {
            warn!(
                tunnel,
                session,
                event = "not_terminated",
                reason,
                "could not be terminated ({reason}); tried again when the next session is ready"
            );
        }
    }
}

/// Whom a report is about, if it is about one session.
pub(super) fn generation(report: &Report) -> Option<Generation> {
    Some(match report {
        Report::Limit(_) | Report::NoLimit(_) => return None,
        Report::Ready(generation, _)
        | Report::Interrupted(generation, ..)
        | Report::Resumed(generation, ..)
        | Report::FailingOver(generation, _)
        | Report::Replacing(generation, _)
        | Report::Retired(generation, _)
        | Report::ServesAgain(generation)
        | Report::Stalled(generation, ..)
        | Report::Flows(generation, _)
        | Report::Degraded(generation, _)
        | Report::Recovered(generation, _)
        | Report::Ended { generation, .. }
        | Report::Failed(generation, ..)
        | Report::NotTerminated(generation, _) => *generation,
    })
}

/// What the lines before have left out.
pub(super) fn more(repeated: u64, what: &str) -> String {
    if repeated == 0 { String::new() } else { format!(" ({repeated} more {what} since the last such line)") }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// `0.4 s`, `12 s`, `3h 12m`: as much as a person wants to read.
pub(super) fn span(duration: Duration) -> String {
    if duration < Duration::from_secs(10) {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    match duration.as_secs() {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        seconds @ 3600..86_400 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
        seconds => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well() {
        let said =
            [400, 9_900, 12_000, 75_000, 11_520_000, 190_000_000].map(|ms| span(Duration::from_millis(ms)));
        assert_eq!(said, ["0.4 s", "9.9 s", "12 s", "1m 15s", "3h 12m", "2d 4h"]);
    }
}
