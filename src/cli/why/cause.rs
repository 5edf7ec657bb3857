//! What keeps a tunnel from serving, told from the words in which it was refused, lost or interrupted.

use serde::Serialize;

use crate::control::protocol::InterruptionCause;
use crate::telemetry::catalog;

/// A reason that is longer than this, in characters, loses its end in a sentence; below it stands the whole of it.
const WORDS: usize = 160;

/// Why clients do not get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A permission is missing.
    Denied,
    /// There are no credentials, or AWS does not know them.
    Credentials,
    /// The credentials have expired.
    Expired,
    /// AWS does not accept the time or the signature of calls.
    Clock,
    /// KMS gives no data key.
    Key,
    /// Something on the way refuses, not the API.
    Forbidden,
    /// The session document or its parameters are wrong.
    Document,
    /// The session-manager-plugin is missing or too old.
    Plugin,
    /// This host, which is too slow or too full to run the plugin.
    Host,
    /// Something else has to be changed.
    Configuration,
    /// The target's agent is not online.
    TargetNotConnected,
    /// Too many calls.
    Throttled,
    /// AWS answers with errors of its own.
    Service,
    /// AWS cannot be reached.
    Unreachable,
    /// The target's agent does not answer in the session.
    Agent,
    /// A signal ended the plugin.
    PluginKilled,
    /// The plugin ended by itself.
    PluginExited,
    /// The plugin stood still.
    PluginHung,
    /// Somebody has ended the session.
    Terminated,
    /// Nothing has flowed for too long.
    IdleTimeout,
    /// The session was too old.
    MaximumDuration,
    /// The service has ended the session, in other words.
    EndedByService,
    /// The data channel is down, and nothing more is known.
    ChannelClosed,
    /// Messages are missing in the session, and what comes behind them waits.
    Gap,
    /// The destination is down; the tunnel is not.
    Destination,
    /// Somebody has asked for that.
    Drained,
    /// Somebody has asked for that.
    Restarted,
    /// Somebody has had the plugin killed to see what happens.
    Drill,
    /// A local address cannot be bound.
    Address,
    /// The daemon could not read its configuration.
    Invalid,
    /// The daemon was told to end.
    Stopped,
    /// The daemon ended without a word.
    Killed,
    /// The record does not say.
    Unknown,
}

impl Cause {
    /// Of an attempt that failed, by its class (a word of the protocol, or as the log has it) and its text.
    pub fn of_failure(class: &str, text: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        // Where an attempt came to nothing because of something else, that follows.
        if let Some((_, obstacle)) = text.strip_prefix(NOT_OPENED).and_then(|rest| rest.split_once("; ")) {
            return Self::of_failure(class, obstacle);
        }
        let key = text.starts_with("kms:");
        match class {
            "access" | "needs_change" | "needs a change" if key => Self::Key,
            "access" if text.starts_with("no AWS credentials") => Self::Credentials,
            "access" if has(&["ExpiredToken"]) => Self::Expired,
            "access"
                if has(&[
                    "RequestExpired",
                    "RequestTimeTooSkewed",
                    "InvalidSig",
                    "SignatureDoesNotMatch",
                ]) =>
            {
                Self::Clock
            }
            "access" if has(&["AccessDenied", "Unauthorized", "NotAuthorized"]) => Self::Denied,
            "access" if has(&["HTTP 4"]) => Self::Forbidden,
            "access" => Self::Credentials,
            "needs_change" | "needs a change" if has(&["Document", "document", "InvalidParameters"]) => {
                Self::Document
            }
            "needs_change" | "needs a change" if has(&["plugin"]) => Self::Plugin,
            "needs_change" | "needs a change" => Self::Configuration,
            "target_not_connected" | "target not connected" => Self::TargetNotConnected,
            "throttled" => Self::Throttled,
            _ if has(&["does not answer --version", "cannot be started: ", "no folder can be made in "]) => {
                Self::Host
            }
            // The second is what the agent says of a plugin that it hears nothing of.
            _ if text.starts_with(NOT_OPENED) || has(&["Handshake timed out"]) => Self::Agent,
            _ if text.starts_with("the plugin ") => Self::of_loss(text),
            _ if has(&[
                "HTTP 5",
                "InternalServer",
                "InternalFailure",
                "InternalError",
                "ServiceUnavailable",
            ]) =>
            {
                Self::Service
            }
            _ => match Self::of_loss(text) {
                Self::EndedByService => Self::Unreachable,
                ended => ended,
            },
        }
    }

    /// Of a session that was lost.
    pub fn of_loss(reason: &str) -> Self {
        let lower = reason.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        match reason {
            _ if reason.starts_with("the plugin exited: killed by signal") => Self::PluginKilled,
            _ if reason.starts_with("the plugin exited") => Self::PluginExited,
            _ if reason.starts_with("the plugin hangs") => Self::PluginHung,
            _ if reason.starts_with(NOT_RESUMED) => Self::Unreachable,
            // In the order of `tunnel::rotation`, which goes by the same words.
            _ if has(&["inactiv", "idle"]) => Self::IdleTimeout,
            _ if has(&["duration"]) => Self::MaximumDuration,
            _ if has(&["terminat"]) => Self::Terminated,
            _ => Self::EndedByService,
        }
    }

    /// Of an interruption. Daemons before 0.2 told of it in words alone.
    pub fn of_interruption(cause: InterruptionCause, reason: &str) -> Self {
        match cause {
            InterruptionCause::Closed | InterruptionCause::Unanswered => Self::ChannelClosed,
            InterruptionCause::AgentAway | InterruptionCause::AgentSilent => Self::Agent,
            InterruptionCause::Gap => Self::Gap,
            InterruptionCause::Unknown if reason.contains("the agent") => Self::Agent,
            InterruptionCause::Unknown => Self::ChannelClosed,
        }
    }

    /// The event of the catalog that says what is to be done, and which of its causes this is.
    fn entry(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Denied => ("failed", Some("denied")),
            Self::Credentials => ("failed", Some("credentials")),
            Self::Expired => ("failed", Some("expired")),
            Self::Clock => ("failed", Some("clock")),
            Self::Key => ("failed", Some("key")),
            Self::Forbidden => ("failed", Some("forbidden")),
            Self::Document => ("failed", Some("document")),
            Self::Plugin => ("failed", Some("plugin")),
            Self::Host => ("failed", Some("host")),
            Self::Configuration => ("failed", Some("needs a change")),
            Self::TargetNotConnected => ("failed", Some("target not connected")),
            Self::Throttled => ("failed", Some("throttled")),
            Self::Service => ("failed", Some("service")),
            Self::Unreachable => ("failed", Some("unreachable")),
            Self::Agent => ("failed", Some("agent")),
            Self::PluginKilled => ("lost", Some("plugin killed")),
            Self::PluginExited => ("lost", Some("plugin exited")),
            Self::PluginHung => ("lost", Some("plugin hangs")),
            Self::Terminated => ("lost", Some("terminated")),
            Self::IdleTimeout => ("lost", Some("idle timeout")),
            Self::MaximumDuration => ("lost", Some("maximum duration")),
            Self::EndedByService => ("lost", Some("ended")),
            Self::ChannelClosed => ("interrupted", Some("closed")),
            Self::Gap => ("interrupted", Some("gap")),
            Self::Destination => ("degraded", None),
            Self::Drained => ("requested", Some("drain")),
            Self::Drill => ("requested", Some("drill")),
            Self::Restarted => ("requested", Some("rotate, restart, resume")),
            Self::Address => ("bind_failed", None),
            Self::Invalid => ("config_invalid", None),
            Self::Stopped => ("stopped", None),
            Self::Killed => ("begun", None),
            Self::Unknown => ("state", None),
        }
    }

    /// What the operator of tunnel `name` can do about it: the catalog's words.
    pub fn remedy(self, name: &str) -> String {
        let (event, cause) = self.entry();
        let text = catalog::remedy(event, cause).unwrap_or_default();
        let text = text.replace("autossm@NAME", &format!("autossm@{name}"));
        capital(&text.replace("resume NAME", &format!("resume {name}")))
    }

    /// The cause in a clause, of the words in which it showed; `past` where it is over. `by`: who has asked for it.
    pub fn clause(self, words: &str, by: &str, past: bool) -> String {
        let tense = |now: &'static str, then: &'static str| if past { then } else { now };
        let call = call(words);
        let short = short(words);
        match self {
            Self::Denied if words.starts_with("credentials") && denied(words).is_none() => {
                format!("AWS {} the role: {short}", tense("denies", "denied"))
            }
            Self::Denied => {
                let (action, resource) = denied(words).unwrap_or((format!("ssm:{call}"), String::new()));
                let resource =
                    if resource.is_empty() { String::new() } else { format!(" on {}", tail(&resource)) };
                format!("AWS {} {action}{resource}", tense("denies", "denied"))
            }
            Self::Credentials if words.starts_with("no AWS credentials") => {
                format!("there {} no AWS credentials", tense("are", "were"))
            }
            Self::Credentials => format!("AWS {} not accept the credentials: {short}", tense("does", "did")),
            Self::Expired => format!("the AWS credentials {} expired", tense("have", "had")),
            Self::Clock => {
                format!("AWS {} not accept the signature or its time: {short}", tense("does", "did"))
            }
            Self::Key => {
                let why = denied(words).map(|(action, key)| format!("{action} on {} is denied", tail(&key)));
                let why = why.unwrap_or(short);
                format!("KMS {} no data key for the session: {why}", tense("gives", "gave"))
            }
            Self::Forbidden => {
                format!("something on the way to AWS {} {short}", tense("refuses", "refused"))
            }
            Self::Document => {
                format!("AWS {} not start a session with this document: {short}", tense("does", "did"))
            }
            Self::Plugin => format!("the session-manager-plugin {} not run: {short}", tense("does", "did")),
            Self::Host => format!("this host {} not run the plugin: {short}", tense("does", "did")),
            Self::Configuration => format!("something {} to be changed: {short}", tense("has", "had")),
            Self::TargetNotConnected => {
                let target = words.split_whitespace().find(|word| is_node(word));
                let target = target.map_or("the target", |word| word.trim_end_matches(['.', ',', ';']));
                format!("{target} {} not connected to Session Manager", tense("is", "was"))
            }
            Self::Throttled => format!("AWS {} {call} (too many calls)", tense("throttles", "throttled")),
            Self::Service => {
                format!("AWS {} with an error of its own: {short}", tense("answers", "answered"))
            }
            Self::Unreachable => {
                // Of a chain of causes the last one is the cause.
                let last = short.rsplit(": ").next().unwrap_or_default();
                format!("AWS {} be reached: {last}", tense("cannot", "could not"))
            }
            Self::Agent => {
                format!("the target's SSM agent {} not answer in the session: {short}", tense("does", "did"))
            }
            Self::PluginKilled => {
                let signal = words.rsplit(' ').next().unwrap_or_default();
                format!("its plugin was killed by signal {signal}")
            }
            Self::PluginExited => format!("its plugin exited: {}", after(&short, "the plugin exited: ")),
            Self::PluginHung => format!("its plugin hung: {}", after(&short, "the plugin hangs: ")),
            Self::Terminated => format!("its session was terminated at the service: {short}"),
            Self::IdleTimeout => format!("its session ran into the account's idle timeout: {short}"),
            Self::MaximumDuration => {
                format!("its session reached the account's maximum session duration: {short}")
            }
            Self::EndedByService => format!("the service ended its session: {short}"),
            Self::ChannelClosed => format!("the data channel was closed: {short}"),
            Self::Gap => format!("messages of the session {} lost on the way: {short}", tense("are", "were")),
            Self::Destination => short,
            Self::Drained => format!("{by} drained it"),
            Self::Restarted => format!("{by} restarted it"),
            Self::Drill => format!("a drill, asked for by {by}, killed its plugin on purpose"),
            Self::Address => short,
            Self::Invalid => format!("its configuration {} be used: {short}", tense("cannot", "could not")),
            Self::Stopped => "it was stopped".to_owned(),
            Self::Killed => "its daemon was killed, or the host went down".to_owned(),
            Self::Unknown => "the record does not say why".to_owned(),
        }
    }

    /// The API call that CloudTrail has something to tell of.
    pub fn looked_up(self, words: &str) -> Option<&'static str> {
        match self {
            Self::Terminated | Self::EndedByService => Some("TerminateSession"),
            Self::Key => Some("GenerateDataKey"),
            Self::Denied if words.starts_with("credentials") => Some("AssumeRole"),
            Self::Denied | Self::Throttled | Self::TargetNotConnected | Self::Document => {
                let calls = ["ResumeSession", "TerminateSession"];
                Some(calls.into_iter().find(|name| call(words) == *name).unwrap_or("StartSession"))
            }
            _ => None,
        }
    }
}

/// How the failure of a session begins whose plugin never listened.
const NOT_OPENED: &str = "the plugin's port was not open";
/// How the loss of a session begins whose data channel stayed away.
pub const NOT_RESUMED: &str = "the data channel could not be resumed";

/// The call that was refused: `StartSession: AccessDeniedException: …`.
fn call(words: &str) -> &str {
    let first = words.split([':', ' ']).next().unwrap_or_default();
    if first.is_empty() || !first.chars().all(char::is_alphanumeric) { "the call" } else { first }
}

/// What is denied, and on what, of IAM's sentence.
fn denied(words: &str) -> Option<(String, String)> {
    let (_, rest) = words.split_once("not authorized to perform: ")?;
    let action: String = rest.split_whitespace().next()?.to_owned();
    let resource = rest.split_once("on resource: ").and_then(|(_, rest)| rest.split_whitespace().next());
    Some((action, resource.unwrap_or_default().to_owned()))
}

/// `i-0abc` of `arn:aws:ec2:us-west-2:111122223333:instance/i-0abc`.
fn tail(resource: &str) -> &str {
    let name = resource.rsplit('/').next().unwrap_or(resource);
    if name.is_empty() || name == "*" { resource } else { name }
}

fn is_node(word: &str) -> bool {
    word.starts_with("i-") || word.starts_with("mi-") || word.starts_with("ecs:")
}

fn after<'a>(text: &'a str, start: &str) -> &'a str {
    text.strip_prefix(start).unwrap_or(text)
}

/// The first sentence of it, without the hint that may follow.
fn short(words: &str) -> String {
    let words = words.split("; ").next().unwrap_or(words);
    let words = words.split(". ").next().unwrap_or(words);
    let mut text: String = words.chars().take(WORDS).collect();
    if text.len() < words.len() {
        text.push('…');
    }
    text.trim_end_matches(['.', ' ']).to_owned()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let denied = "StartSession: AccessDeniedException: User: arn:aws:sts::1:assumed-role/r/s is not authorized to \
                      perform: ssm:StartSession on resource: arn:aws:ec2:us-west-2:1:instance/i-0abc because no \
                      identity-based policy allows it";
        let table = [
            ("access", denied, Cause::Denied, "AWS denies ssm:StartSession on i-0abc"),
            ("access", "credentials: AccessDenied: no", Cause::Denied, "AWS denies the role: "),
            ("access", "no AWS credentials: x; y", Cause::Credentials, "there are no AWS credentials"),
            (
                "access",
                "StartSession: ExpiredTokenException: x",
                Cause::Expired,
                "the AWS credentials have expired",
            ),
            ("access", "kms:GenerateDataKey: AccessDeniedException: no", Cause::Key, "KMS gives no data key"),
            (
                "needs_change",
                "kms:GenerateDataKey: NotFoundException: no",
                Cause::Key,
                "KMS gives no data key",
            ),
            (
                "access",
                "StartSession: HTTP 403, and",
                Cause::Forbidden,
                "something on the way to AWS refuses",
            ),
            (
                "needs a change",
                "StartSession: InvalidDocument: x",
                Cause::Document,
                "AWS does not start a session",
            ),
            (
                "network",
                "/opt/smp does not answer --version within 5 s",
                Cause::Host,
                "this host does not run the plugin: /opt/smp does not answer",
            ),
            (
                "network",
                "no folder can be made in /run/autossm/db/_x1y2: No space left on device (os error 28)",
                Cause::Host,
                "this host does not run the plugin: no folder can be made",
            ),
            (
                "target not connected",
                "StartSession: TargetNotConnected: i-0abc is not connected.; is its agent running",
                Cause::TargetNotConnected,
                "i-0abc is not connected to Session Manager",
            ),
            (
                "throttled",
                "StartSession: ThrottlingException: x",
                Cause::Throttled,
                "AWS throttles StartSession",
            ),
            ("network", "StartSession: InternalServerError: x", Cause::Service, "AWS answers with an error"),
            (
                "network",
                "StartSession: dispatch failure: refused",
                Cause::Unreachable,
                "AWS cannot be reached",
            ),
            ("network", "the plugin's port was not open after 20 s", Cause::Agent, "the target's SSM agent"),
            (
                "network",
                "----------ERROR------- Encountered error while initiating handshake. Handshake timed out. Please ensure",
                Cause::Agent,
                "the target's SSM agent",
            ),
            ("network", "Session was terminated by x", Cause::Terminated, "its session was terminated"),
            (
                "network",
                "the plugin's port was not open after 20 s; connection refused",
                Cause::Unreachable,
                "AWS cannot be reached",
            ),
            (
                "network or service",
                "the plugin exited: killed by signal 9",
                Cause::PluginKilled,
                "its plugin was killed by signal 9",
            ),
        ];
        for (class, text, cause, clause) in table {
            assert_eq!(Cause::of_failure(class, text), cause, "{text}");
            let said = cause.clause(text, "", false);
            assert!(said.starts_with(clause), "{said}");
        }
    }

    #[test]
    fn losses_are_told_apart() {
        for (reason, cause) in [
            ("the plugin exited: killed by signal 9", Cause::PluginKilled),
            ("the plugin exited: without a word", Cause::PluginExited),
            ("the plugin hangs: its process is stopped", Cause::PluginHung),
            ("Session timed out due to inactivity", Cause::IdleTimeout),
            ("maximum session duration reached, terminated", Cause::MaximumDuration),
            ("Session is terminated by an operator", Cause::Terminated),
            ("gone", Cause::EndedByService),
        ] {
            assert_eq!(Cause::of_loss(reason), cause, "{reason}");
        }
    }

    #[test]
    fn every_cause_has_its_remedy_in_the_catalog() {
        let causes = [
            Cause::Denied,
            Cause::Credentials,
            Cause::Expired,
            Cause::Clock,
            Cause::Key,
            Cause::Forbidden,
            Cause::Document,
            Cause::Plugin,
            Cause::Host,
            Cause::Configuration,
            Cause::TargetNotConnected,
            Cause::Throttled,
            Cause::Service,
            Cause::Unreachable,
            Cause::Agent,
            Cause::PluginKilled,
            Cause::PluginExited,
            Cause::PluginHung,
            Cause::Terminated,
            Cause::IdleTimeout,
            Cause::MaximumDuration,
            Cause::EndedByService,
            Cause::ChannelClosed,
            Cause::Gap,
            Cause::Destination,
            Cause::Drained,
            Cause::Restarted,
            Cause::Drill,
            Cause::Address,
            Cause::Invalid,
            Cause::Stopped,
            Cause::Killed,
            Cause::Unknown,
        ];
        for cause in causes {
            let remedy = cause.remedy("db");
            // No placeholder of the catalog's, but for units.
            assert!(remedy.len() > 20 && !remedy.replace("autossm@", "").contains('@'), "{cause:?}");
            assert!(!remedy.contains("@NAME"), "{cause:?}");
        }
        assert!(Cause::Drained.remedy("db").contains("autossm resume db"));
    }
}
