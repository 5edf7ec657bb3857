//! Why an attempt failed, as far as the next attempt is concerned.

use std::fmt;

/// What has to happen before another attempt can succeed. Each class has its own clock (see [`super::backoff`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody must change something: a bad document or parameter, a plugin that is missing or too old.
    NeedsChange,
    /// Credentials are missing or expired, or a permission is denied.
    Access,
    /// The target's agent is not connected to Session Manager.
    TargetNotConnected,
    /// The service asks for fewer calls.
    Throttled,
    /// The network or the service failed; nobody here has to do anything.
    Network,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeedsChange => "needs a change",
            Self::Access => "access",
            Self::TargetNotConnected => "target not connected",
            Self::Throttled => "throttled",
            Self::Network => "network or service",
        })
    }
}

/// A failed attempt: its class, and the words of whoever refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Decides when the next attempt is made.
    pub class: Class,
    /// What was said, by the service where it said something. Never holds a secret.
    pub text: String,
}

impl Failure {
    /// A failure of `class` in the words `text`.
    pub fn new(class: Class, text: impl Into<String>) -> Self {
        Self { class, text: text.into() }
    }
}
