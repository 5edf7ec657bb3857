//! The account's Session Manager preferences, as far as a tunnel goes by them.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::tunnel::failure::{Class, Failure};
use crate::tunnel::rotation::Limit;

/// The document that holds them.
pub const DOCUMENT: &str = "SSM-SessionManagerRunShell";
/// Their name for the maximum.
const MAXIMUM: &str = "maxSessionDuration";
/// How long an answer is good for. Tunnels ask a little less often.
const KEEP: Duration = Duration::from_secs(50 * 60);
/// How long one that was not allowed to ask does not ask again: each attempt stands in the account's CloudTrail.
const KEEP_DENIED: Duration = Duration::from_secs(6 * 3600);
/// How long it is not tried again after another failure.
const KEEP_FAILED: Duration = Duration::from_secs(5 * 60);

/// What one identity knows of them. Whoever asks while somebody else asks gets the same answer.
#[derive(Default)]
pub(super) struct Preferences {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    maximum: Limit,
    good_until: Option<Instant>,
    /// It was said that it cannot be known.
    said: bool,
}

impl Preferences {
    /// The maximum session duration, asked for with `ask` if what is known is too old. After a failure what was known
    /// before holds on.
    pub async fn maximum_session_duration<F>(&self, ask: impl FnOnce() -> F) -> Limit
    where
        F: Future<Output = Result<Option<String>, Failure>>,
    {
        let mut known = self.known.lock().await;
        if known.good_until.is_some_and(|until| Instant::now() < until) {
            return known.maximum;
        }
        let keep = match Box::pin(ask()).await {
            Ok(content) => {
                known.maximum = content.as_deref().map_or(Limit::None, limit);
                KEEP
            }
            Err(failure) => {
                if !std::mem::replace(&mut known.said, true) {
                    tracing::info!(
                        reason = failure.text,
                        "the account's maximum session duration is not known ({failure}); `rotate = \"auto\"` \
                         learns it from the sessions that the service ends"
                    );
                }
                if failure.class == Class::Access { KEEP_DENIED } else { KEEP_FAILED }
            }
        };
        known.good_until = Some(Instant::now() + keep);
        known.maximum
    }
}

/// What the document's content says of the maximum: that there is none only where it can be read and names none.
fn limit(content: &str) -> Limit {
    match maximum(content) {
        Some(maximum) => Limit::At(maximum),
        None => {
            match serde_json::from_str(content).map(|content: Value| content["inputs"][MAXIMUM].clone()) {
                Ok(Value::Null) => Limit::None,
                Ok(Value::String(text)) if text.trim().is_empty() => Limit::None,
                _ => Limit::Unknown,
            }
        }
    }
}

/// `inputs.maxSessionDuration`, in minutes, of the document's content. An empty text means that there is none.
pub(super) fn maximum(content: &str) -> Option<Duration> {
    minutes(content, MAXIMUM, 1440)
}

/// `inputs.idleSessionTimeout`, 1 to 60 minutes; `None` where the account says nothing of it.
///
/// <https://docs.aws.amazon.com/systems-manager/latest/userguide/session-preferences-timeout.html>
pub(super) fn idle(content: &str) -> Option<Duration> {
    minutes(content, "idleSessionTimeout", 60)
}

fn minutes(content: &str, input: &str, most: u64) -> Option<Duration> {
    let content: Value = serde_json::from_str(content).ok()?;
    let minutes = match &content["inputs"][input] {
        Value::String(text) => text.trim().parse::<u64>().ok()?,
        other => other.as_u64()?,
    };
    (1..=most).contains(&minutes).then(|| Duration::from_secs(60 * minutes))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn minutes_are_read_and_anything_else_is_none() {
        let inputs = |text: &str| maximum(&format!("{{\"inputs\":{{\"maxSessionDuration\":{text}}}}}"));
        assert_eq!(inputs("\"60\""), Some(MINUTE * 60));
        assert_eq!(inputs("1440"), Some(MINUTE * 1440));
        for none in ["\"\"", "\"0\"", "\"1441\"", "\"x\"", "null", "[]", "-1", "18446744073709551616"] {
            assert_eq!(inputs(none), None, "{none}");
        }
        for none in ["", "[]", "{}", "{\"inputs\":3}"] {
            assert_eq!(maximum(none), None, "{none}");
        }
    }

    #[test]
    fn only_a_document_that_can_be_read_says_that_there_is_none() {
        let inputs = |text: &str| limit(&format!("{{\"inputs\":{{{text}}}}}"));
        assert_eq!(inputs("\"maxSessionDuration\":\"60\""), Limit::At(MINUTE * 60));
        for none in ["", "\"maxSessionDuration\":\"\"", "\"maxSessionDuration\":null"] {
            assert_eq!(inputs(none), Limit::None, "{none}");
        }
        for unknown in ["\"maxSessionDuration\":\"soon\"", "\"maxSessionDuration\":9999", "nonsense"] {
            assert_eq!(inputs(unknown), Limit::Unknown, "{unknown}");
        }
        assert_eq!(limit("{}"), Limit::None);
    }

    #[tokio::test(start_paused = true)]
    async fn two_hundred_tunnels_ask_once_an_hour() {
        let (preferences, asked) = (Preferences::default(), Cell::new(0));
        let ask = async || {
            asked.set(asked.get() + 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Some("{\"inputs\":{\"maxSessionDuration\":\"60\"}}".to_owned()))
        };
        let all = (0..200).map(|_| preferences.maximum_session_duration(ask));
        let answers = futures_util::future::join_all(all).await;
        assert!(answers.iter().all(|answer| *answer == Limit::At(MINUTE * 60)));
        assert_eq!(asked.get(), 1);
        tokio::time::advance(MINUTE * 51).await;
        preferences.maximum_session_duration(ask).await;
        assert_eq!(asked.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_leaves_what_was_known_and_is_not_asked_for_again_soon() {
        let (preferences, asked) = (Preferences::default(), Cell::new(0));
        let known = async || Ok(Some("{\"inputs\":{\"maxSessionDuration\":\"60\"}}".to_owned()));
        let denied = async || {
            asked.set(asked.get() + 1);
            Err(Failure::new(Class::Access, "AccessDeniedException"))
        };
        assert_eq!(preferences.maximum_session_duration(known).await, Limit::At(MINUTE * 60));
        for _ in 0..5 {
            tokio::time::advance(MINUTE * 60).await;
            assert_eq!(preferences.maximum_session_duration(denied).await, Limit::At(MINUTE * 60));
        }
        assert_eq!(asked.get(), 1);
    }
}
