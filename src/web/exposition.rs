//! What `/metrics` says, in OpenMetrics and in the text format that came before it.
//!
//! The two differ in little: in OpenMetrics a counter's family has no `_total` in its name, there is a type `info`, and
//! the end is marked (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::fmt::{Display, Write as _};

use crate::control::protocol::{Histogram, Phase, State, Status};
use crate::control::time::Timestamp;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/openmetrics-text; version=1.0.0`
    OpenMetrics,
    /// `text/plain; version=0.0.4`
    Text,
}

impl Format {
    /// The one that a client asks for with `Accept`: OpenMetrics only where it is named, as Prometheus does.
    pub fn wanted(accept: &str) -> Self {
        let named = accept.split(',').any(|one| {
            let mut words = one.split(';').map(str::trim);
            words.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"))
                && !words.any(|word| word == "q=0")
        });
        if named { Self::OpenMetrics } else { Self::Text }
    }

    /// For `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// A tunnel as it is told to Prometheus.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Its last status.
    pub status: &'a Status,
    /// Whether its daemon answers. If it does not, nothing but that and `up` is told: old figures would look like new
    /// ones.
    pub answers: bool,
}

/// The states that `autossm_tunnel_state` has.
pub const STATES: [State; 8] = [
    State::Up,
    State::Degraded,
    State::Interrupted,
    State::Starting,
    State::Waiting,
    State::Draining,
    State::Stopping,
    State::Stopped,
];

/// The whole answer.
pub fn expose(tunnels: &[Told<'_>], version: &str, now: Timestamp, format: Format) -> String {
    let mut page = Page { text: String::with_capacity(4096 + tunnels.len() * 8192), format };
    page.info("autossm_build", "The version of autossm web", &[("version", version)]);
    of_tunnels(&mut page, tunnels);
    let told: Vec<&Status> = tunnels.iter().filter(|one| one.answers).map(|one| one.status).collect();
    of_sessions(&mut page, &told, now);
    of_clients(&mut page, &told);
    if format == Format::OpenMetrics {
        page.text.push_str("# EOF\n");
    }
    page.text
}

fn of_tunnels(page: &mut Page, tunnels: &[Told<'_>]) {
    page.family("autossm_tunnel_up", "gauge", "Whether new connections get through (1), or not (0)");
    for Told { status, answers } in tunnels {
        page.value(
            "autossm_tunnel_up",
            &[("tunnel", &status.name)],
            u8::from(*answers && status.state.serves()),
        );
    }
    page.family("autossm_tunnel_reachable", "gauge", "Whether the daemon answers on its control socket");
    for Told { status, answers } in tunnels {
        page.value("autossm_tunnel_reachable", &[("tunnel", &status.name)], u8::from(*answers));
    }
    let told = || tunnels.iter().filter(|one| one.answers).map(|one| one.status);
    page.family("autossm_tunnel_state", "gauge", "1 for the state that the tunnel is in");
    for status in told() {
        for state in STATES {
            let labels = [("tunnel", status.name.as_str()), ("state", state.word())];
            page.value("autossm_tunnel_state", &labels, u8::from(status.state == state));
        }
    }
    page.family("autossm_tunnel_daemon_info", "gauge", "The version of the daemon that runs the tunnel");
    for status in told() {
        let labels = [("tunnel", status.name.as_str()), ("version", &status.daemon.version)];
        page.value("autossm_tunnel_daemon_info", &labels, 1);
    }
    page.family(
        "autossm_tunnel_start_time_seconds",
        "gauge",
        "When the daemon began to run the tunnel, since 1970",
    );
    for status in told() {
        let started = seconds(status.daemon.started.millis());
        page.value("autossm_tunnel_start_time_seconds", &[("tunnel", &status.name)], started);
    }
}

fn of_sessions(page: &mut Page, tunnels: &[&Status], now: Timestamp) {
    page.family("autossm_sessions", "gauge", "Sessions that there are, by what they do");
    for status in tunnels {
        for phase in Phase::ALL {
            let count = status.sessions.iter().filter(|session| session.phase == phase).count();
            let labels = [("tunnel", status.name.as_str()), ("state", phase.word())];
            page.value("autossm_sessions", &labels, count);
        }
    }
    page.family(
        "autossm_session_age_seconds",
        "gauge",
        "Age of the oldest session that takes new connections",
    );
    for status in tunnels {
        let serving = status.sessions.iter().filter(|session| session.phase == Phase::Ready);
        if let Some(began) = serving.map(|session| session.began).min() {
            let age = now.since(began).as_secs_f64();
            page.value("autossm_session_age_seconds", &[("tunnel", &status.name)], age);
        }
    }
    page.family(
        "autossm_missing_messages",
        "gauge",
        "Messages that are missing in sessions while later ones have arrived",
    );
    for status in tunnels {
        let interruptions = status.sessions.iter().filter_map(|session| session.interruption.as_ref());
        let missing: u64 = interruptions.map(|interruption| interruption.missing_messages).sum();
        page.value("autossm_missing_messages", &[("tunnel", &status.name)], missing);
    }
    page.counters("autossm_session_starts", "outcome", "Attempts to start a session", tunnels, |status| {
        &status.metrics.session_starts
    });
    page.counters("autossm_session_ends", "reason", "Sessions that have ended", tunnels, |status| {
        &status.metrics.session_ends
    });
    let help = "Data channels that were closed, by WebSocket close code";
    page.counters("autossm_stream_closes", "code", help, tunnels, |status| &status.metrics.stream_closes);
    page.counters("autossm_resumes", "outcome", "Interruptions that are over", tunnels, |status| {
        &status.metrics.resumes
    });
    let help = "How long data channels were down that were opened again";
    page.histogram("autossm_resume_seconds", help, tunnels, |status| &status.metrics.resume_seconds);
    page.family("autossm_agent_rtt_seconds", "gauge", "The last round trip to the agent");
    for status in tunnels {
        if let Some(millis) = status.agent_rtt_ms {
            page.value("autossm_agent_rtt_seconds", &[("tunnel", &status.name)], millis / 1000.0);
        }
    }
    let help = "Plugins that were lost and replaced";
    page.counters("autossm_plugin_restarts", "reason", help, tunnels, |status| {
        &status.metrics.plugin_restarts
    });
    let help = "Time until the credentials expire; absent where they do not";
    page.family("autossm_credentials_expiry_seconds", "gauge", help);
    for status in tunnels {
        if let Some(expires) = status.credentials.as_ref().and_then(|credentials| credentials.expires) {
            let left = seconds(expires.millis()) - seconds(now.millis());
            page.value("autossm_credentials_expiry_seconds", &[("tunnel", &status.name)], left);
        }
    }
}

fn of_clients(page: &mut Page, tunnels: &[&Status]) {
    page.family("autossm_connections_open", "gauge", "Connections of clients that have a session");
    for status in tunnels {
        page.value("autossm_connections_open", &[("tunnel", &status.name)], status.connections.open);
    }
    page.family("autossm_connections_held", "gauge", "Clients that wait for a session");
    for status in tunnels {
        page.value("autossm_connections_held", &[("tunnel", &status.name)], status.connections.held);
    }
    let help = "Connections of clients that are over, by what has become of them";
    page.counters("autossm_connections", "outcome", help, tunnels, |status| &status.metrics.connections);
    let help = "How long clients were held that got a session";
    page.histogram("autossm_hold_seconds", help, tunnels, |status| &status.metrics.hold_seconds);
    page.counters(
        "autossm_bytes",
        "direction",
        "Bytes carried; up is to the destination",
        tunnels,
        |status| &status.metrics.bytes,
    );
}

/// Milliseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a moment of this millennium has fewer than 53 bits")]
fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (n, (label, text)) in labels.iter().enumerate() {
            self.text.push_str(if n == 0 { "{" } else { "," });
            self.text.push_str(label);
            self.text.push_str("=\"");
            for character in text.chars() {
                match character {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        match self.format {
            Format::OpenMetrics => self.family(name, "info", help),
            Format::Text => self.family(&format!("{name}_info"), "gauge", help),
        }
        self.value(&format!("{name}_info"), labels, 1);
    }

    /// One counter for each word of a map, which has all of them from the beginning.
    fn counters<'a>(
        &mut self,
        name: &str,
        label: &str,
        help: &str,
        tunnels: &[&'a Status],
        of: impl Fn(&'a Status) -> &'a std::collections::BTreeMap<String, u64>,
    ) {
        let total = format!("{name}_total");
        match self.format {
            Format::OpenMetrics => self.family(name, "counter", help),
            Format::Text => self.family(&total, "counter", help),
        }
        for status in tunnels {
            for (word, count) in of(status) {
                self.value(&total, &[("tunnel", &status.name), (label, word)], count);
            }
        }
    }

    fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        tunnels: &[&'a Status],
        of: impl Fn(&'a Status) -> &'a Histogram,
    ) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for status in tunnels {
            let tunnel = ("tunnel", status.name.as_str());
            let histogram = of(status);
            let mut below = 0;
            for (bound, count) in histogram.le.iter().zip(&histogram.counts) {
                below += count;
                // As Prometheus writes it in both formats, so that the series is the same whichever was asked for.
                self.value(&bucket, &[tunnel, ("le", &format!("{bound:?}"))], below);
            }
            self.value(&bucket, &[tunnel, ("le", "+Inf")], histogram.count());
            self.value(&format!("{name}_sum"), &[tunnel], histogram.sum);
            self.value(&format!("{name}_count"), &[tunnel], histogram.count());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Connections, Credentials, Metrics, Session, words};

    /// The names that dashboards and rules are built on: none of them may go away.
    pub const NAMES: [&str; 23] = [
        "autossm_build_info",
        "autossm_tunnel_up",
        "autossm_tunnel_reachable",
        "autossm_tunnel_state",
        "autossm_tunnel_daemon_info",
        "autossm_tunnel_start_time_seconds",
        "autossm_sessions",
        "autossm_session_age_seconds",
        "autossm_missing_messages",
        "autossm_session_starts_total",
        "autossm_session_ends_total",
        "autossm_stream_closes_total",
        "autossm_resumes_total",
        "autossm_resume_seconds_bucket",
        "autossm_agent_rtt_seconds",
        "autossm_plugin_restarts_total",
        "autossm_credentials_expiry_seconds",
        "autossm_connections_open",
        "autossm_connections_held",
        "autossm_connections_total",
        "autossm_hold_seconds_sum",
        "autossm_hold_seconds_count",
        "autossm_bytes_total",
    ];

    fn now() -> Timestamp {
        Timestamp::from_millis(1_790_000_000_000)
    }

    fn status() -> Status {
        let one = |word: &str| [(word.to_owned(), 7)].into();
        let histogram = Histogram { le: vec![0.5, 1.0], counts: vec![3, 2, 1], sum: 4.25 };
        Status {
            name: "db".into(),
            state: State::Up,
            sessions: vec![Session {
                phase: Phase::Ready,
                began: now().before(std::time::Duration::from_secs(90)),
                ..Session::default()
            }],
            credentials: Some(Credentials {
                expires: Some(now().after(std::time::Duration::from_secs(600))),
                ..Credentials::default()
            }),
            connections: Connections { open: 3, held: 1, ..Connections::default() },
            agent_rtt_ms: Some(34.5),
            metrics: Metrics {
                session_starts: one("ok"),
                session_ends: one("service"),
                stream_closes: one("1000"),
                resumes: one("ok"),
                resume_seconds: histogram.clone(),
                hold_seconds: histogram,
                connections: one("completed"),
                bytes: one("up"),
                plugin_restarts: one("killed"),
                ..Metrics::default()
            },
            ..Status::default()
        }
    }

    fn lines(format: Format, answers: bool) -> Vec<String> {
        let status = status();
        let text = expose(&[Told { status: &status, answers }], "1.2.3", now(), format);
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_metric_is_there_with_its_value() {
        let lines = lines(Format::Text, true);
        for name in NAMES {
            let found = lines.iter().any(|line| line.split(['{', ' ']).next() == Some(name));
            assert!(found, "{name} is missing:\n{}", lines.join("\n"));
        }
        for line in [
            r#"autossm_build_info{version="1.2.3"} 1"#,
            r#"autossm_tunnel_up{tunnel="db"} 1"#,
            r#"autossm_tunnel_state{tunnel="db",state="up"} 1"#,
            r#"autossm_tunnel_state{tunnel="db",state="waiting"} 0"#,
            r#"autossm_sessions{tunnel="db",state="ready"} 1"#,
            r#"autossm_session_age_seconds{tunnel="db"} 90"#,
            r#"autossm_stream_closes_total{tunnel="db",code="1000"} 7"#,
            r#"autossm_resume_seconds_bucket{tunnel="db",le="0.5"} 3"#,
            r#"autossm_resume_seconds_bucket{tunnel="db",le="1.0"} 5"#,
            r#"autossm_resume_seconds_bucket{tunnel="db",le="+Inf"} 6"#,
            r#"autossm_resume_seconds_sum{tunnel="db"} 4.25"#,
            r#"autossm_agent_rtt_seconds{tunnel="db"} 0.0345"#,
            r#"autossm_credentials_expiry_seconds{tunnel="db"} 600"#,
        ] {
            assert!(lines.iter().any(|there| there == line), "{line} is missing:\n{}", lines.join("\n"));
        }
    }

    #[test]
    fn the_manual_has_every_metric_and_every_word() {
        let manual = include_str!("../../docs/monitoring.md");
        for name in NAMES {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = family.unwrap_or(name);
            assert!(manual.contains(&format!("`{family}")), "{family}");
        }
        let words = [
            words::START_OUTCOMES,
            words::END_REASONS,
            words::RESUME_OUTCOMES,
            words::CONNECTION_OUTCOMES,
            words::DIRECTIONS,
            words::PLUGIN_ENDS,
        ];
        let states = STATES.map(State::word).into_iter().chain(Phase::ALL.map(Phase::word));
        for word in words.concat().into_iter().chain(states) {
            assert!(manual.contains(&format!("`{word}`")), "{word}");
        }
    }

    #[test]
    fn the_two_formats_have_the_same_series() {
        let series = |format| -> Vec<String> {
            lines(format, true).into_iter().filter(|line| !line.starts_with('#')).collect()
        };
        assert_eq!(series(Format::Text), series(Format::OpenMetrics));
        let open = lines(Format::OpenMetrics, true);
        assert_eq!(open.last().unwrap(), "# EOF");
        assert!(open.iter().any(|line| line == "# TYPE autossm_session_starts counter"));
        assert!(open.iter().any(|line| line == "# TYPE autossm_build info"));
        assert!(!lines(Format::Text, true).iter().any(|line| line == "# EOF"));
    }

    #[test]
    fn of_a_daemon_that_does_not_answer_nothing_old_is_told() {
        let samples: Vec<_> =
            lines(Format::Text, false).into_iter().filter(|line| line.contains("tunnel=")).collect();
        assert_eq!(
            samples,
            [r#"autossm_tunnel_up{tunnel="db"} 0"#, r#"autossm_tunnel_reachable{tunnel="db"} 0"#]
        );
    }

    #[test]
    fn hostile_words_stay_within_their_quotes() {
        let mut page = Page { text: String::new(), format: Format::Text };
        page.value("m", &[("l", "a\"b\\c\nd")], 1);
        assert_eq!(page.text, "m{l=\"a\\\"b\\\\c\\nd\"} 1\n");
    }

    #[test]
    fn open_metrics_only_for_who_asks_for_it() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::wanted(prometheus), Format::OpenMetrics);
        for accept in
            ["", "*/*", "text/plain;version=0.0.4;q=1,*/*;q=0.1", "application/openmetrics-text;q=0"]
        {
            assert_eq!(Format::wanted(accept), Format::Text, "{accept}");
        }
    }
}
