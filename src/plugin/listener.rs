//! Hears what the plugin says, and writes it down without what is secret.

use std::borrow::Cow;
use std::time::Instant;

use secrecy::{ExposeSecret, SecretString};

use super::output::{Output, OutputParser};
use super::thinning::{Thinning, Verdict};
use crate::gateway::PluginAccess;

/// Both streams of one plugin: reads them, logs each line, and remembers the reason of its end.
pub(super) struct Listener {
    tunnel: String,
    session: String,
    secrets: Vec<SecretString>,
    thinning: Thinning,
    last_line: Option<String>,
    /// The line with the last word in it.
    reason: Option<String>,
}

impl Listener {
    pub(super) fn new(tunnel: String, access: &PluginAccess) -> Self {
        Self {
            tunnel,
            session: access.session.session_id.clone(),
            secrets: secrets(access),
            thinning: Thinning::new(Instant::now()),
            last_line: None,
            reason: None,
        }
    }

    pub(super) fn tunnel(&self) -> &str {
        &self.tunnel
    }

    pub(super) fn hear(&mut self, parser: &mut OutputParser, bytes: &[u8]) -> Vec<Output> {
        let outputs = parser.push_through(bytes, |line| self.line(line));
        self.remember(&outputs);
        outputs
    }

    pub(super) fn finish(&mut self, parser: &mut OutputParser) -> Vec<Output> {
        let outputs = parser.finish_through(|line| self.line(line));
        self.remember(&outputs);
        outputs
    }

    fn remember(&mut self, outputs: &[Output]) {
        if let Some(word) = outputs.iter().rfind(|output| output.is_last_word()) {
            let reason = match word {
                Output::SessionClosed { reason } if reason.is_empty() => None,
                Output::SessionClosed { reason } => Some(reason.clone()),
                Output::CannotStart { error } => Some(format!("cannot perform start session: {error}")),
                Output::TimedOut => Some("the session timed out".to_owned()),
                _ => Some("terminate signal received".to_owned()),
            };
            self.reason = reason.or(self.reason.take());
        }
    }

    fn line<'a>(&mut self, line: Cow<'a, str>) -> Cow<'a, str> {
        let mut line = line;
        for secret in &self.secrets {
            if line.contains(secret.expose_secret()) {
                line = line.replace(secret.expose_secret(), "[secret]").into();
            }
        }
        let said = line.trim();
        if said.is_empty() {
            return line;
        }
        self.last_line = Some(said.chars().take(300).collect());
        let verdict = self.thinning.line(Instant::now());
        if let Verdict::LogAfter(count) = verdict {
            self.left_out(count);
        }
        if verdict != Verdict::LeaveOut {
            tracing::debug!(tunnel = self.tunnel, session = self.session, event = "plugin_says", "{said}");
        }
        line
    }

    /// Nothing more comes. Returns why the plugin ended: the last line that gives a reason, else the last line.
    pub(super) fn ended(&mut self) -> Option<String> {
        let count = self.thinning.finish(Instant::now());
        if count > 0 {
            self.left_out(count);
        }
        self.reason.take().or(self.last_line.take())
    }

    fn left_out(&self, count: usize) {
        tracing::debug!(
            tunnel = self.tunnel,
            session = self.session,
            event = "plugin_says",
            "{count} lines left out"
        );
    }
}

/// What must not be seen in the plugin's output: the token, and the values of its environment with the passwords in them.
fn secrets(access: &PluginAccess) -> Vec<SecretString> {
    let values = access.environment.iter().map(|(_, value)| value.expose_secret());
    let mut all: Vec<&str> = values.chain([access.session.token.expose_secret()]).collect();
    let password = |url: &&str| Some(url.split_once("://")?.1.rsplit_once('@')?.0.split_once(':')?.1.len());
    for url in all.clone() {
        if let Some(length) = password(&url)
            && let Some(at) = url.rfind('@')
            && let Some(password) = url.get(at - length..at)
        {
            all.push(password);
        }
    }
    // A longer one first, lest a part of it be left; short ones are everyday words.
    all.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    all.into_iter().filter(|secret| secret.len() >= 8).map(SecretString::from).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::aws::api::StartedSession;

    const TOKEN: &str = "TOKEN-0123456789";
    const PROXY: &str = "http://user:PROXY-PASSWORD@127.0.0.1:4711";

    fn access() -> PluginAccess {
        PluginAccess {
            environment: vec![("HTTPS_PROXY", PROXY.into()), ("AWS_EC2_METADATA_DISABLED", "true".into())],
            session: StartedSession {
                session_id: "s-1".to_owned(),
                token: TOKEN.into(),
                stream_url: "wss://stream/1".to_owned(),
            },
            api_endpoint: String::new(),
            address: ([127, 0, 0, 1], 4711).into(),
        }
    }

    #[test]
    fn secrets_are_the_token_the_values_and_the_passwords_in_them() {
        let found: Vec<_> =
            secrets(&access()).iter().map(|secret| secret.expose_secret().to_owned()).collect();
        assert_eq!(found, [PROXY, TOKEN, "PROXY-PASSWORD"]);
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_logged_without_secrets_and_a_flood_is_thinned() {
        // With one dispatcher in the process, `tracing` would ask only the thread that passes a line first whether it is
        // wanted, which may be another test's.
        let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        let subscriber = subscriber.with_writer(move || writer.clone()).finish();
        let mut listener = Listener::new("billing-db".to_owned(), &access());
        let mut parser = OutputParser::new();
        tracing::subscriber::with_default(subscriber, || {
            let outputs = listener.hear(&mut parser, format!("it says {TOKEN}\n").as_bytes());
            assert_eq!(outputs, [Output::Unknown("it says [secret]".to_owned())]);
            listener.hear(&mut parser, "flood\n".repeat(100).as_bytes());
            assert_eq!(listener.ended().as_deref(), Some("flood"));
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("tunnel=\"billing-db\" session=\"s-1\" event=\"plugin_says\""), "{text}");
        assert!(text.contains("it says [secret]"), "{text}");
        assert_eq!(text.matches("flood").count(), 49, "{text}");
        assert!(text.contains("51 lines left out"), "{text}");
        assert!(!text.contains(TOKEN));
    }
}
