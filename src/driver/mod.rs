//! A task per tunnel: events in, actions out. It decides nothing; what it waits for, it waits for in tasks of their
//! own, so that a request to stop is never queued behind slow work.

mod begin;
mod describe;
pub mod folder;
mod leftovers;
mod line;
mod numbers;
mod outage;
mod perform;
mod probing;
mod record;
mod report;
mod requests;
mod seen;
pub mod service;
mod session;
mod settings;
pub mod snapshot;
mod targets;
pub mod tunnels;
mod usage;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use crate::aws::sdk::Clients;
use crate::config::{self, GatewayMode};
use crate::control::access::Access;
use crate::control::place;
use crate::control::server::{Ask, Server};
use crate::gateway::{self, Authority, Interruption};
use crate::plugin::process::Running;
use crate::plugin::version::Versions;
use crate::proxy::{Route, Stats};
use crate::telemetry::history::History;
use crate::telemetry::recorder::{HISTORY, Recorder};
use crate::telemetry::thin::Repeats;
use crate::tunnel::status::State;
use crate::tunnel::{Event, Generation, SessionEvent, Tunnel};
use begin::{SharedTargets, tell_of_agent};
use describe::Clock;
use folder::Folder;
use leftovers::Leftovers;
use numbers::Numbers;
use outage::Outage;
use probing::Probed;
use record::Record;
#[cfg(any(test, fuzzing))]
pub(crate) use record::fuzz as fuzz_record;
use report::more;
use requests::Told;
use session::{Message, Session};
use settings::{same_sessions, settings};
use snapshot::Snapshot;

/// Messages that wait for the driver. It empties this faster than anything fills it; where it does not, the senders
/// wait.
const MESSAGES: usize = 256;
/// While no session can be had, the same failure is told this often.
const FAILED_AGAIN: Duration = Duration::from_secs(300);
/// So many different failures in that time: there may be several targets, and a service that wavers.
const FAILURES: usize = 8;
/// Sessions of which it is told in that time that they are to be replaced: more than a tunnel has.
const REPLACED: usize = 128;
/// While a destination takes some connections and not others, that is told this often.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// What all tunnels of a process share.
#[derive(Clone)]
pub struct Shared {
    /// One API client for each identity.
    pub clients: Arc<Clients>,
    /// The plugins' versions, each asked once.
    pub versions: Arc<Versions>,
    /// Signs the certificates that the plugins see.
    pub authority: Arc<Authority>,
    /// The process's own, with the authority's certificate and the plugins' folders; removed with the last user of it.
    pub folder: Arc<Folder>,
    /// Each tunnel has a folder there ([`place::folder`]), with its control socket.
    pub runtime_dir: PathBuf,
    /// Each tunnel has a folder there, with its record of sessions and its events.
    pub state_dir: PathBuf,
    /// Who may use the control sockets.
    pub access: Access,
    /// Takes the log's events.
    pub recorder: Recorder,
}

/// What a running tunnel is told.
#[derive(Debug)]
pub enum Command {
    /// The configuration has changed.
    Configure(Box<config::Tunnel>),
    /// Stop; open connections may go on for this long.
    Stop(Duration),
    /// Stop at once.
    StopNow,
    /// Answer: the loop goes round.
    Beat(oneshot::Sender<()>),
}

/// Runs one tunnel until it is stopped.
pub struct Driver {
    shared: Shared,
    config: Arc<config::Tunnel>,
    core: Tunnel,
    began: Instant,
    sessions: HashMap<Generation, Session>,
    targets: SharedTargets,
    /// Since when there has been no target, and who looks for one.
    waiting_for_target: Option<(Instant, AbortOnDropHandle<()>)>,
    record: Record,
    leftovers: Leftovers,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    commands: mpsc::Receiver<Command>,
    routes: watch::Sender<Vec<Arc<Route>>>,
    snapshot: watch::Sender<Snapshot>,
    /// What comes over the control socket.
    asks: mpsc::Receiver<Ask>,
    /// What its clients meet.
    stats: Arc<Stats>,
    history: Arc<History>,
    numbers: Numbers,
    probed: Probed,
    told: Told,
    /// Attempts that failed since a session was ready.
    failed: Repeats,
    failed_in_a_row: u64,
    /// Attempts to replace a session. Each is told once.
    replacing: Repeats,
    /// Connections that the agent could not make.
    refused: Repeats,
    clock: Clock,
    outage: Outage,
}

/// The driver's outside: what others hold of a running tunnel.
pub struct Handle {
    /// Where it takes commands.
    pub commands: mpsc::Sender<Command>,
    /// The sessions that take new connections.
    pub routes: watch::Receiver<Vec<Arc<Route>>>,
    /// What the tunnel is doing.
    pub snapshot: watch::Receiver<Snapshot>,
    /// To be filled by whoever serves its clients.
    pub stats: Arc<Stats>,
    /// Its control socket, where one could be had.
    pub control: Option<Server>,
}

impl Driver {
    /// A driver for `config` that has begun nothing yet.
    ///
    /// # Errors
    /// The tunnel's folder in the state directory cannot be made.
    pub fn new(shared: Shared, config: config::Tunnel) -> io::Result<(Self, Handle)> {
        let state_folder = place::folder(&shared.state_dir, &config.name);
        let record = Record::open(&state_folder)?;
        let history = shared.recorder.open(&config.name, &state_folder);
        let stats = Arc::<Stats>::default();
        let (ask_sender, asks) = mpsc::channel(8);
        let control = open_control(&shared, &config.name, ask_sender, history.clone());
        let core = Tunnel::new(settings(&config));
        let (sender, messages) = mpsc::channel(MESSAGES);
        let (command_sender, commands) = mpsc::channel(8);
        let (routes, routes_receiver) = watch::channel(Vec::new());
        let (snapshot, snapshot_receiver) = watch::channel(Snapshot::new(core.status(), Instant::now()));
        let began = Instant::now();
        let told = Told { state: describe::state(&snapshot.borrow().status), since: began };
        let handle = Handle {
            commands: command_sender,
            routes: routes_receiver,
            snapshot: snapshot_receiver,
            stats: stats.clone(),
            control,
        };
        let leftovers = Leftovers::new(record.clone(), shared.clients.clone());
        let driver = Self {
            shared,
            config: Arc::new(config),
            core,
            began,
            sessions: HashMap::new(),
            targets: SharedTargets::default(),
            waiting_for_target: None,
            leftovers,
            record,
            sender,
            messages,
            commands,
            routes,
            snapshot,
            asks,
            stats,
            history,
            numbers: Numbers::default(),
            probed: Probed::default(),
            told,
            failed: Repeats::new(FAILED_AGAIN, FAILURES),
            replacing: Repeats::new(FAILED_AGAIN, REPLACED),
            failed_in_a_row: 0,
            refused: Repeats::new(REFUSED_AGAIN, 1),
            clock: Clock::new(began),
            outage: Outage::default(),
        };
        Ok((driver, handle))
    }

    /// Keeps the tunnel up; returns when it was told to stop and nothing of it is left.
    pub async fn run(mut self) {
        self.tell_begin();
        self.tell_mode();
        self.tell_probe();
        self.handle(Event::Tick);
        while self.snapshot.borrow().status.state != State::Stopped {
            let deadline = self.core.next_deadline().map(|at| self.began + at);
            let deadline = deadline.into_iter().chain(self.outage.deadline()).min();
            let event = tokio::select! {
                Some(command) = self.commands.recv() => self.command(command),
                Some(message) = self.messages.recv() => self.message(message),
                Some(ask) = self.asks.recv() => self.asked(ask),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Some(Event::Tick),
            };
            if let Some(event) = event {
                self.handle(event);
            }
        }
        self.messages.close();
        while let Ok(message) = self.messages.try_recv() {
            if let Message::Begun(_, Ok(begun)) = message {
                self.leftovers.add(begun.started.session_id);
                self.leftovers.terminate(&self.config);
            }
        }
    }

    fn command(&mut self, command: Command) -> Option<Event> {
        Some(match command {
            Command::Configure(config) => {
                let renew = !same_sessions(&self.config, &config);
                let settings = settings(&config);
                let other_mode = self.config.gateway != config.gateway;
                let other_probe = self.config.probe != config.probe;
                self.config = Arc::new(*config);
                if renew {
                    // Whoever looks for a target looks for the old one.
                    self.waiting_for_target = None;
                }
                if other_mode {
                    self.tell_mode();
                }
                if other_probe {
                    self.tell_probe();
                }
                if other_probe || renew {
                    // It was another destination, or asked for something else.
                    self.probed = Probed::default();
                }
                Event::Configure { settings, renew }
            }
            Command::Stop(grace) => Event::Stop { grace },
            Command::StopNow => Event::StopNow,
            Command::Beat(answer) => {
                // Whoever asked may have lost patience.
                let _ = answer.send(());
                return None;
            }
        })
    }

    /// What a message means to the core, if anything.
    fn message(&mut self, message: Message) -> Option<Event> {
        let (generation, event) = match message {
            Message::Begun(generation, Ok(begun)) => {
                let id = begun.started.session_id.clone();
                let Some(session) = self.sessions.get_mut(&generation) else {
                    // It was given up meanwhile.
                    self.leftovers.add(id);
                    self.leftovers.terminate(&self.config);
                    return None;
                };
                let (tunnel, target) = (&self.config.name, &begun.target);
                if self.failed.is_quiet() {
                    debug!(
                        tunnel,
                        session = id,
                        event = "started",
                        target,
                        "session started with {target}, again"
                    );
                } else {
                    info!(tunnel, session = id, event = "started", target, "session started with {target}");
                }
                session.seen.agent_version.clone_from(&begun.agent_version);
                if let Some(version) = &begun.agent_version {
                    tell_of_agent(&self.config, &id, version);
                }
                session.begun = Some(*begun);
                (generation, SessionEvent::Started)
            }
            Message::Begun(generation, Err(failure)) => (generation, SessionEvent::StartFailed(failure)),
            Message::TargetOnline => return Some(Event::TargetOnline),
            Message::Gateway(generation, event) => {
                self.saw(generation, &event);
                let away = match event {
                    gateway::Event::Interrupted(Interruption::AgentAway | Interruption::AgentSilent) => {
                        Some(true)
                    }
                    gateway::Event::Interrupted(_) | gateway::Event::ChannelResumed { .. } => Some(false),
                    _ => None,
                };
                if let Some(away) = away {
                    begin::lock(&self.targets).set_away(generation, away);
                }
                (generation, self.sessions.get_mut(&generation)?.gateway_event(&self.config, event)?)
            }
            Message::Plugin(generation, event) => {
                let observed = self.config.gateway == GatewayMode::Observe;
                self.numbers.plugin(&event, observed);
                let session = self.sessions.get_mut(&generation)?;
                session.seen.plugin(&event, observed);
                (generation, session.plugin_event(&self.config, event, generation, &self.sender)?)
            }
            // They are all counted before anything is decided.
            Message::Connections => return Some(Event::Tick),
            Message::Answered(generation) => (generation, SessionEvent::Answered),
            Message::Probed(generation, found, took) => {
                self.probed.note(&found, took);
                (generation, SessionEvent::Probed(found))
            }
            Message::Stalled(generation, true) => (generation, SessionEvent::Stalled),
            Message::Stalled(generation, false) => (generation, SessionEvent::Flows),
            Message::Terminated(generation, result) => (generation, SessionEvent::Terminated(result)),
            Message::Limit(limit) => return Some(Event::Limit(limit)),
        };
        if event == SessionEvent::DestinationFailed {
            self.tell_refused(generation);
        }
        Some(Event::Session(generation, event))
    }

    /// Once it is known that the destination is down, nobody needs to hear it of each connection.
    fn tell_refused(&mut self, generation: Generation) {
        let Some(session) = self.sessions.get(&generation) else { return };
        if let Some(route) = &session.route {
            route.doubted.store(true, Relaxed);
        }
        let (tunnel, session) = (&self.config.name, session.id());
        let text = "the agent could not reach the destination";
        let known = self.snapshot.borrow().status.degraded.is_some();
        // One of two hosts behind a name may be dead for days: half of all connections.
        let told = if known { None } else { self.refused.pass(Instant::now().into_std(), "") };
        match told {
            None => debug!(tunnel, session, event = "destination_failed", "{text}"),
            Some(repeated) => warn!(
                tunnel,
                session,
                event = "destination_failed",
                repeated,
                "{text}{}",
                more(repeated, "connections")
            ),
        }
    }

    /// Feeds the core until it has nothing more to do at once.
    fn handle(&mut self, event: Event) {
        // What was heard of connections may be older than what was done since: a session that seems empty must be so.
        let counts = self.sessions.iter_mut().filter_map(|(generation, session)| {
            Some(Event::Session(*generation, SessionEvent::Connections(session.recount()?)))
        });
        let mut events: VecDeque<_> = counts.collect();
        events.push_back(event);
        while let Some(event) = events.pop_front() {
            let random = rand::rng().random::<f64>();
            for action in self.core.handle(self.began.elapsed(), event, random) {
                if let Some(event) = self.perform(action) {
                    // Only a launch answers at once, and there is at most one in a list of actions.
                    events.push_front(event);
                }
            }
        }
        let status = self.core.status();
        if status.degraded.is_some() {
            self.probed.good_since = None;
            // Whichever session it comes through, the first answer is to be told.
            let routes = self.sessions.values().filter_map(|session| session.route.as_ref());
            routes.for_each(|route| route.doubted.store(true, Relaxed));
        }
        let serving = status.sessions.iter().filter(|session| session.phase == "ready");
        let serving =
            serving.filter_map(|session| Some(self.sessions.get(&session.generation)?.id().to_owned()));
        let serving = serving.collect();
        if self.snapshot.send_if_modified(|snapshot| snapshot.update(status, serving, self.began)) {
            self.tell_state();
        }
        let status = &self.snapshot.borrow().status;
        let reason = || {
            let downs = self.sessions.values().filter_map(|session| session.seen.down.as_ref());
            let obstacles = self.sessions.values().filter_map(|session| session.seen.obstacle.as_ref());
            let failures = downs.clone().filter_map(|down| down.failure.as_ref());
            let failures = failures.chain(obstacles).map(|(_, failure)| failure.text.clone());
            let failure = status.failure.as_ref().map(|failure| failure.text.clone());
            let mut reasons =
                failure.into_iter().chain(failures).chain(downs.map(|down| down.reason.clone()));
            reasons.next().unwrap_or_else(|| "no session is ready yet".to_owned())
        };
        self.outage.look(&self.config.name, status.state, Instant::now(), reason);
    }
}

/// A tunnel goes on without its control socket: nothing that it does depends on it.
fn open_control(
    shared: &Shared,
    tunnel: &str,
    asks: mpsc::Sender<Ask>,
    history: Arc<History>,
) -> Option<Server> {
    let folder = place::folder(&shared.runtime_dir, tunnel);
    match Server::open(&folder, &shared.access, asks, history) {
        Ok(server) => Some(server),
        Err(error) => {
            let path = folder.join(place::FILE).display().to_string();
            warn!(
                tunnel,
                event = "control_failed",
                path,
                reason = %error,
                "no control socket at {path}: {error}; `autossm status` does not see this tunnel"
            );
            None
        }
    }
}
