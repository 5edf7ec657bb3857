//! Tunnels that are not there, behind real control sockets: for what a lab cannot have in a test, hundreds of them and a
//! day that has passed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use autossm::control::access::Access;
use autossm::control::protocol::{
    Connections, Daemon, Event, Failure, Histogram, Level, Line, Metrics, Next, Phase, Reply, Request,
    Resumes, Session, State, Status, Step, words,
};
use autossm::control::server::{Ask, Server};
use autossm::control::time::Timestamp;
use autossm::telemetry::history::History;
use serde_json::json;
use tokio::sync::mpsc;

/// Sockets in a folder of their own.
pub struct Sample {
    folder: tempfile::TempDir,
    statuses: Arc<Mutex<BTreeMap<String, Status>>>,
    servers: BTreeMap<String, Server>,
    /// Since they were asked first.
    hanging: Arc<Mutex<BTreeMap<String, Option<Instant>>>>,
    asked: Arc<AtomicUsize>,
}

impl Sample {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap();
        Self {
            folder,
            statuses: Arc::default(),
            servers: BTreeMap::new(),
            hanging: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// So many whose day was quiet.
    pub fn of(count: usize) -> Self {
        let mut sample = Self::new();
        for n in 0..count {
            let name = format!("tunnel-{n:03}");
            sample.add(up(&name, n), &quiet_day(&name, n));
        }
        sample
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// One more, with this behind it.
    pub fn add(&mut self, status: Status, events: &[Event]) {
        let name = status.name.clone();
        let record = self.path().join("record").join(&name);
        std::fs::create_dir_all(&record).unwrap();
        let lines: String = (1..)
            .zip(events)
            .map(|(seq, event)| {
                serde_json::to_string(&Line::new(Event { seq, ..event.clone() })).unwrap() + "\n"
            })
            .collect();
        std::fs::write(record.join("events.jsonl"), lines).unwrap();
        let history = History::open(&name, &record).unwrap();
        let (asks, mut asked) = mpsc::channel::<Ask>(16);
        let server = Server::open(&self.path().join(&name), &Access::of_host(), asks, history).unwrap();
        self.statuses.lock().unwrap().insert(name.clone(), status);
        let (statuses, hanging, count) = (self.statuses.clone(), self.hanging.clone(), self.asked.clone());
        self.servers.insert(name.clone(), server);
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            while let Some(Ask { request, answer, .. }) = asked.recv().await {
                assert_eq!(request, Request::Status, "autossm web changes nothing");
                count.fetch_add(1, Relaxed);
                if let Some(since) = hanging.lock().unwrap().get_mut(&name) {
                    since.get_or_insert_with(Instant::now);
                    unanswered.push(answer);
                    continue;
                }
                let mut status = statuses.lock().unwrap()[&name].clone();
                status.now = Timestamp::now();
                // Whoever asked may have gone.
                let _ = answer.send(Reply::Status(Box::new(status)));
            }
        });
    }

    /// Changes what a tunnel says of itself.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Status)) {
        change(self.statuses.lock().unwrap().get_mut(name).unwrap());
    }

    /// How often tunnels were asked for their status.
    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    /// As if its daemon had stopped in the middle of something: connections are accepted, and nothing is answered.
    pub fn hang(&self, name: &str) {
        self.hanging.lock().unwrap().insert(name.to_owned(), None);
    }

    /// Since when a question to one that hangs has had no answer.
    pub fn unanswered_since(&self, name: &str) -> Option<Instant> {
        self.hanging.lock().unwrap().get(name).copied().flatten()
    }

    /// As if its daemon had been stopped: it has said so, and the socket is gone.
    pub fn stop(&mut self, name: &str) {
        self.servers.remove(name);
    }

    /// Links as systemd's generator makes them, for tunnels that are to run; returns the folder.
    pub fn expects(&self, names: &[&str]) -> PathBuf {
        let units = self.path().join("_units");
        let unit = "/usr/lib/systemd/system";
        let mut links =
            vec![("multi-user.target.wants", "autossm.target".to_owned(), format!("{unit}/autossm.target"))];
        for name in names {
            links.push((
                "autossm.target.wants",
                format!("autossm@{name}.service"),
                format!("{unit}/autossm@.service"),
            ));
        }
        for (folder, link, to) in links {
            std::fs::create_dir_all(units.join(folder)).unwrap();
            std::os::unix::fs::symlink(to, units.join(folder).join(link)).unwrap();
        }
        units
    }

    /// As if its daemon had been killed: the socket stays, and nobody listens.
    pub fn kill(&mut self, name: &str) {
        let path = self.path().join(name).join("control.sock");
        self.servers.remove(name);
        // The server has removed its socket, which a killed daemon cannot.
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    }
}

pub fn ago(seconds: u64) -> Timestamp {
    Timestamp::now().before(Duration::from_secs(seconds))
}

/// One that is well: the number varies it.
pub fn up(name: &str, number: usize) -> Status {
    let n = number as u64;
    let all = |words: &[&str], some: u64| words.iter().map(|word| ((*word).to_owned(), some)).collect();
    let histogram =
        || Histogram { le: vec![0.1, 0.5, 1.0, 5.0, 30.0], counts: vec![20, 3, 1, 0, 0, 0], sum: 4.2 };
    let started = ago(3600 * (25 + 37 * n % 211) + 61 * n);
    // Since the last hourly close, as in `quiet_day`.
    let since = ago(60 * (7 * n % 55) + 60);
    let target = format!("mi-0{:016x}", 0x0123_4567_89ab_cdef_u64.wrapping_mul(n + 1) >> 4);
    Status {
        name: name.into(),
        daemon: Daemon { pid: 4200 + number as u32, version: env!("CARGO_PKG_VERSION").into(), started },
        state: State::Up,
        since,
        listen: vec![format!("127.0.0.1:{}", 15432 + number)],
        targets: vec![target.clone()],
        remote_host: Some(format!("{name}.internal")),
        remote_port: [5432, 3306, 6379, 443][number % 4],
        gateway: "hold".into(),
        sessions_wanted: 1,
        sessions: vec![Session {
            generation: 1,
            id: Some(format!("autossm-{:017x}", 0x0fed_cba9_8765_4321_u64.wrapping_mul(n + 3) >> 2)),
            phase: Phase::Ready,
            began: started,
            target: Some(target),
            open: 3 + 7 * n % 23,
            resumes: 20 + n % 5,
            agent_rtt_ms: Some(31.0 + (13 * n % 17) as f64),
            ..Session::default()
        }],
        connections: Connections {
            open: 3 + 7 * n % 23,
            served: 1000 + 977 * n,
            longest_hold_ms: 640,
            ..Connections::default()
        },
        up_bytes: 1_000_000 * (n + 1),
        down_bytes: 90_000_000 * (n + 1),
        resumes: Resumes { last_day: 23, total: 40, last_at: Some(ago(700)), last_ms: Some(412) },
        agent_rtt_ms: Some(31.0 + (13 * n % 17) as f64),
        metrics: Metrics {
            session_starts: all(words::START_OUTCOMES, n),
            session_ends: all(words::END_REASONS, n),
            stream_closes: [("1000".to_owned(), 24)].into(),
            resumes: all(words::RESUME_OUTCOMES, 24),
            resume_seconds: histogram(),
            hold_seconds: histogram(),
            connections: all(words::CONNECTION_OUTCOMES, n),
            bytes: all(words::DIRECTIONS, 1000 * n),
            agent_rtt_seconds: histogram(),
            plugin_restarts: all(words::PLUGIN_ENDS, 0),
        },
        ..Status::default()
    }
}

/// One that has had no session for so many seconds, and waits for its next attempt.
pub fn down(name: &str, number: usize, seconds: u64) -> Status {
    let text = "TargetNotConnected: mi-0123456789abcdef0 is not connected";
    let failure = Failure { at: ago(2), class: "target_not_connected".into(), text: text.into() };
    Status {
        state: State::Waiting,
        since: ago(seconds),
        sessions: Vec::new(),
        next: Some(Next {
            at: Timestamp::now().after(Duration::from_secs(28)),
            what: Step::Start,
            reason: Some(format!("target not connected: {text}")),
        }),
        failure: Some(failure.clone()),
        last_failure: Some(failure),
        connections: Connections { held: 3, served: 977, ..Connections::default() },
        ..up(name, number)
    }
}

/// An event as the daemon records it.
pub fn event(name: &str, at: Timestamp, event: &str, message: &str) -> Event {
    Event {
        at,
        tunnel: name.into(),
        event: event.into(),
        session: Some("autossm-0fedcba987654321".into()),
        message: message.into(),
        ..Event::default()
    }
}

/// The tunnel's state is another one.
pub fn turned(name: &str, at: Timestamp, was: &str, state: &str, after_ms: u64) -> Event {
    let fields = [("state".to_owned(), json!(state)), ("was".to_owned(), json!(was))].into();
    Event { level: Level::Debug, duration_ms: Some(after_ms), fields, ..event(name, at, "state", "") }
}

/// 24 hours with nothing but what the service does every hour.
pub fn quiet_day(name: &str, number: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for hour in (0..24).rev() {
        let close = ago(3600 * hour + 60 * (7 * number as u64 % 55) + 61);
        let took = 180 + 37 * ((hour + number as u64) % 11);
        let open = close.after(Duration::from_millis(took));
        let reason = Some("1000 Bye".to_owned());
        events.push(Event {
            reason: reason.clone(),
            ..event(name, close, "interrupted", "the data channel was closed: 1000 Bye")
        });
        events.push(turned(name, close, "up", "interrupted", 3_600_000));
        let message = format!("the data channel is open again after {took} ms");
        events.push(Event { duration_ms: Some(took), ..event(name, open, "resumed", &message) });
        events.push(turned(name, open, "interrupted", "up", took));
    }
    events
}
