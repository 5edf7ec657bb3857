//! What belongs to one session here: its gateway, its plugin, the route to it; and what they tell of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::Shared;
use super::begin::tell_of_agent;
use super::seen::Seen;
use crate::aws::api::{Api, StartRequest, StartedSession};
use crate::config::{self, GatewayMode};
use crate::gateway::ledger::Ledger;
use crate::gateway::{self, Gateway, Interruption};
use crate::plugin::output::Output;
use crate::plugin::process::{self, Launch, Running};
use crate::proxy::Route;
use crate::telemetry::recorder::HISTORY;
use crate::tunnel::failure::{Class, Failure};
use crate::tunnel::health::Found;
use crate::tunnel::rotation::Limit;
use crate::tunnel::{Generation, InterruptionCause, SessionEvent};

/// Events of one session that wait to be passed on.
const EVENTS: usize = 64;

/// What comes back to the driver.
pub(super) enum Message {
    Begun(Generation, Result<Box<Begun>, Failure>),
    TargetOnline,
    Gateway(Generation, gateway::Event),
    Plugin(Generation, process::Event),
    /// The number of connections of some session has changed.
    Connections,
    /// Whether a client that does not read holds up the session.
    Stalled(Generation, bool),
    Terminated(Generation, Result<(), Failure>),
    Probed(Generation, Found, Duration),
    /// A connection has had an answer, after one had none.
    Answered(Generation),
    /// The account's maximum session duration.
    Limit(Limit),
}

/// A session that the service has started, and all that it takes to go on with it.
pub(super) struct Begun {
    pub api: Arc<dyn Api>,
    /// The plugin's program.
    pub plugin: PathBuf,
    pub target: String,
    /// As the service's list of nodes has it, where that was asked for.
    pub agent_version: Option<String>,
    pub request: StartRequest,
    pub started: StartedSession,
}

/// One generation's resources. Dropping it ends them all.
#[derive(Default)]
pub(super) struct Session {
    pub begun: Option<Begun>,
    pub plugin: Option<Running>,
    pub route: Option<Arc<Route>>,
    pub seen: Seen,
    gateway: Option<Gateway>,
    ledger: Arc<Ledger>,
    /// The data channel was closed and is not open again yet.
    down: bool,
    /// What keeps it from serving, as the core was told.
    interrupted_by: Option<InterruptionCause>,
    /// The number of open connections that was told last.
    told_open: usize,
    /// Why resuming failed last, while the data channel is down.
    resume_failure: Option<Class>,
}

impl Session {
    /// The session's id, empty while there is none.
    pub(super) fn id(&self) -> &str {
        self.begun.as_ref().map_or("", |begun| &begun.started.session_id)
    }

    /// Opens the gateway and starts the plugin that goes through it.
    pub(super) fn launch(
        &mut self,
        generation: Generation,
        config: &config::Tunnel,
        shared: &Shared,
        sender: &mpsc::Sender<Message>,
    ) -> Result<(), Failure> {
        let Some(begun) = &self.begun else { return Ok(()) };
        let spec = gateway::Spec {
            tunnel: config.name.clone(),
            session: begun.started.clone(),
            mode: config.gateway,
            stream_endpoint: config.stream_endpoint.clone(),
            kms_endpoint: config.kms_endpoint.clone(),
            endpoint_url: config.identity.endpoint_url.clone(),
            network: shared.clients.network(config.identity.ca_file.as_deref())?,
            ca_file: shared.clients.ca_file(&config.identity).map(Path::to_owned),
            keepalive: config.keepalive,
            api: begun.api.clone(),
            ledger: self.ledger.clone(),
        };
        let events = forward(sender.clone(), move |event| Message::Gateway(generation, event));
        let gateway = Gateway::open(spec, shared.authority.clone(), &shared.folder.certificates(), events)
            .map_err(|error| {
                Failure::new(Class::Network, format!("the gateway could not be opened: {error}"))
            })?;
        let events = forward(sender.clone(), move |event| Message::Plugin(generation, event));
        let launch = Launch {
            plugin: begun.plugin.clone(),
            tunnel: config.name.clone(),
            region: begun.api.region().to_owned(),
            request: begun.request.clone(),
            access: gateway.access().clone(),
            runtime_dir: shared.folder.path().to_owned(),
        };
        self.plugin = Some(process::launch(launch, events)?);
        self.gateway = Some(gateway);
        Ok(())
    }

    /// What the gateway saw, in the core's terms.
    pub(super) fn gateway_event(
        &mut self,
        config: &config::Tunnel,
        event: gateway::Event,
    ) -> Option<SessionEvent> {
        let (tunnel, session) = (&config.name, self.id().to_owned());
        match event {
            // In `observe` mode every opening looks like the first.
            gateway::Event::ChannelOpened if self.down => Some(self.resumed(1)),
            gateway::Event::ChannelOpened => {
                self.resume_failure = None;
                None
            }
            gateway::Event::Handshake { agent_version, session_type, encrypted, .. } => {
                debug!(tunnel, session, agent_version, session_type, encrypted, "handshake");
                // Once, whoever names it first.
                if self
                    .begun
                    .as_ref()
                    .is_none_or(|begun| begun.agent_version.as_ref() != Some(&agent_version))
                {
                    tell_of_agent(config, &session, &agent_version);
                }
                if encrypted {
                    info!(
                        tunnel,
                        session,
                        event = "encrypted",
                        "the session is encrypted with a KMS key: the account's idle timeout ends it when nobody uses it"
                    );
                }
                Some(SessionEvent::Kind(session_type))
            }
            gateway::Event::ChannelClosed { code, reason } => self.closed(code, reason),
            gateway::Event::Interrupted(interruption) => self.interrupted(interruption),
            gateway::Event::KmsFailed(failure) => {
                debug!(tunnel, session, reason = failure.text, "KMS gives no data key");
                Some(SessionEvent::NotOpened(failure))
            }
            gateway::Event::ResumeFailed(failure) => {
                let opening = self.route.is_none();
                // Such a session is given up, which is told.
                let given_up = opening && matches!(failure.class, Class::NeedsChange | Class::Access);
                // Once for each cause; the attempts go on.
                if !given_up && self.resume_failure.replace(failure.class) != Some(failure.class) {
                    let (class, reason) = (failure.class.to_string(), &failure.text);
                    let what = if opening { "opened" } else { "resumed" };
                    warn!(
                        tunnel,
                        session,
                        event = "resume_failed",
                        class,
                        reason,
                        "not {what} yet: {reason}"
                    );
                }
                opening.then_some(SessionEvent::NotOpened(failure))
            }
            gateway::Event::ChannelResumed { attempts, .. } => Some(self.resumed(attempts)),
            gateway::Event::RoundTrip(took) => {
                let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                debug!(
                    tunnel,
                    session,
                    event = "round_trip",
                    duration_us,
                    "the agent has acknowledged a message"
                );
                None
            }
            gateway::Event::SessionEnded { reason, declared } => {
                Some(SessionEvent::Ended { reason, declared })
            }
            gateway::Event::PluginHung { reason } => Some(SessionEvent::PluginHung { reason }),
            gateway::Event::DestinationFailed => Some(SessionEvent::DestinationFailed),
            gateway::Event::LostTrack | gateway::Event::RetryIn(_) => None,
            gateway::Event::ForeignConnection => Some(SessionEvent::ForeignConnection),
            gateway::Event::Unheeded => Some(SessionEvent::Unheeded),
        }
    }

    /// What the plugin said or did, in the core's terms.
    pub(super) fn plugin_event(
        &mut self,
        config: &config::Tunnel,
        event: process::Event,
        generation: Generation,
        sender: &mpsc::Sender<Message>,
    ) -> Option<SessionEvent> {
        match event {
            process::Event::Output(output) => self.output(config, output, generation, sender),
            process::Event::Stopped => {
                Some(SessionEvent::PluginHung { reason: "its process is stopped".to_owned() })
            }
            process::Event::Exited { words, status } => {
                // A plugin that is killed says nothing of it; what it had said last may tell.
                debug!(
                    target: HISTORY,
                    tunnel = config.name,
                    session = self.id(),
                    event = "plugin_ended",
                    reason = words.as_deref().unwrap_or("none"),
                    "the plugin has ended"
                );
                let signal = status.and_then(|status| status.signal());
                let words = match (words, signal) {
                    (_, Some(signal)) => format!("killed by signal {signal}"),
                    (Some(words), None) => words,
                    (None, None) => "without a word".to_owned(),
                };
                Some(SessionEvent::PluginExited { words, killed: signal.is_some() })
            }
        }
    }

    /// In `hold` mode the gateway knows better what becomes of the data channel, and knows it sooner.
    fn output(
        &mut self,
        config: &config::Tunnel,
        output: Output,
        generation: Generation,
        sender: &mpsc::Sender<Message>,
    ) -> Option<SessionEvent> {
        let observed = config.gateway == GatewayMode::Observe;
        match output {
            // Where its log goes to its output it says so twice.
            Output::PortOpened(port) if self.route.is_none() => {
                if let Some(gateway) = &self.gateway {
                    gateway.plugin_listens();
                }
                self.open_route(port, generation, sender);
                Some(SessionEvent::Opened)
            }
            Output::SocketOpened { path } => Some(SessionEvent::PluginHung {
                reason: format!(
                    "it listens on the socket {path} instead of a port; the document must not say so"
                ),
            }),
            Output::SessionClosed { reason } => Some(SessionEvent::Ended { reason, declared: true }),
            Output::DestinationFailed if observed => Some(SessionEvent::DestinationFailed),
            Output::ChannelClosed { code, reason } if observed => self.closed(Some(code), reason),
            Output::Reconnected if observed && self.down => Some(self.resumed(1)),
            Output::DataTimeout if observed => Some(SessionEvent::PluginHung {
                reason: "nothing that it sent was acknowledged for five minutes".to_owned(),
            }),
            _ => None,
        }
    }

    /// One that is closed again while it is being resumed is so as a consequence.
    fn closed(&mut self, code: Option<u16>, reason: String) -> Option<SessionEvent> {
        self.set_down(true);
        if self.interrupted_by.replace(InterruptionCause::Closed) == Some(InterruptionCause::Closed) {
            return None;
        }
        let reason = match code {
            Some(code) => format!("code {code}: {reason}"),
            None => reason,
        };
        let (cause, lasted) = (InterruptionCause::Closed, Duration::ZERO);
        Some(SessionEvent::Interrupted { cause, reason, lasted })
    }

    /// The figures of an interruption change all the time; the core hears of its beginning, and of another cause.
    fn interrupted(&mut self, interruption: Interruption) -> Option<SessionEvent> {
        self.set_down(true);
        let (cause, lasted) = (interruption.cause(), interruption.lasted());
        let same = self.interrupted_by.replace(cause) == Some(cause);
        let reason = interruption.to_string();
        (!same).then_some(SessionEvent::Interrupted { cause, reason, lasted })
    }

    fn resumed(&mut self, attempts: u32) -> SessionEvent {
        self.set_down(false);
        self.interrupted_by = None;
        self.resume_failure = None;
        SessionEvent::ChannelResumed { attempts }
    }

    /// The proxy has to know too: a destination that cannot be heard is not silent.
    fn set_down(&mut self, down: bool) {
        self.down = down;
        if let Some(route) = &self.route {
            route.interrupted.store(down, Relaxed);
        }
    }

    /// The number of open connections, where it is another one than was told last.
    pub(super) fn recount(&mut self) -> Option<usize> {
        let open = *self.route.as_ref()?.open.borrow();
        (std::mem::replace(&mut self.told_open, open) != open).then_some(open)
    }

    /// The plugin listens: connections can be sent to it, and are counted.
    fn open_route(&mut self, port: u16, generation: Generation, sender: &mpsc::Sender<Message>) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let route = Arc::new(Route::new(generation, self.id().to_owned(), address, self.ledger.clone()));
        route.interrupted.store(self.down, Relaxed);
        let (mut open, mut answered) = (route.open.subscribe(), route.answered.subscribe());
        let mut stalled = route.stalled.subscribe();
        let sender = sender.clone();
        // Ends with the route, which it must not keep therefore.
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    Ok(()) = open.changed() => Message::Connections,
                    Ok(()) = answered.changed() => Message::Answered(generation),
                    Ok(()) = stalled.changed() => Message::Stalled(generation, *stalled.borrow_and_update() > 0),
                    else => return,
                };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        self.route = Some(route);
    }
}

/// A channel whose events reach the driver under their session's generation.
fn forward<E: Send + 'static>(
    sender: mpsc::Sender<Message>,
    tag: impl Fn(E) -> Message + Send + 'static,
) -> mpsc::Sender<E> {
    let (events, mut receiver) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            if sender.send(tag(event)).await.is_err() {
                return;
            }
        }
    });
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(gateway: &str) -> config::Tunnel {
        let text = format!(
            "[[tunnel]]\nname = \"db\"\nlisten = \"127.0.0.1:15432\"\ntarget = \"i-0123456789abcdef0\"\n\
             remote_port = 5432\ngateway = \"{gateway}\"\n"
        );
        config::parse("config.toml", &text).unwrap().tunnels.remove(0)
    }

    /// As long as the proxy believes the data channel to be down, no client that has closed is let go.
    #[tokio::test]
    async fn the_proxy_hears_of_every_close_and_of_every_resume() {
        let (sender, _messages) = mpsc::channel(1);
        let closed = || gateway::Event::ChannelClosed { code: None, reason: "reset".into() };
        let after = std::time::Duration::ZERO;
        for (mode, back) in [
            ("hold", gateway::Event::ChannelResumed { after, attempts: 1 }),
            ("observe", gateway::Event::ChannelOpened),
        ] {
            let (config, mut session) = (tunnel(mode), Session::default());
            session.open_route(1, Generation(1), &sender);
            let route = session.route.clone().unwrap();
            let event = session.gateway_event(&config, closed());
            let (cause, lasted) = (InterruptionCause::Closed, Duration::ZERO);
            assert_eq!(event, Some(SessionEvent::Interrupted { cause, reason: "reset".into(), lasted }));
            assert!(route.interrupted.load(Relaxed), "{mode}");
            assert_eq!(session.gateway_event(&config, closed()), None, "the same interruption");
            let event = session.gateway_event(&config, back);
            assert_eq!(event, Some(SessionEvent::ChannelResumed { attempts: 1 }));
            assert!(!route.interrupted.load(Relaxed), "{mode}");
        }
    }

    #[tokio::test]
    async fn a_route_that_is_opened_while_the_channel_is_down_knows_it() {
        let (sender, _messages) = mpsc::channel(1);
        let mut session = Session::default();
        session.gateway_event(
            &tunnel("hold"),
            gateway::Event::ChannelClosed { code: None, reason: String::new() },
        );
        session.open_route(1, Generation(1), &sender);
        assert!(session.route.unwrap().interrupted.load(Relaxed));
    }

    /// Its task listens to the route and must not keep it: there would be one more for each session of a tunnel's life.
    #[tokio::test]
    async fn nothing_of_a_session_stays_when_it_is_dropped() {
        let (sender, mut messages) = mpsc::channel(1);
        let mut session = Session::default();
        session.open_route(1, Generation(1), &sender);
        drop((session, sender));
        assert!(messages.recv().await.is_none());
    }
}
