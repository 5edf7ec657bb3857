//! The plugin's way to the service: a local proxy that ends the plugin's TLS and holds its WebSocket open while
//! the service's is closed, resumed and opened again.
//!
//! ```text
//! plugin ──► proxy ──► tls ──► local_api ──► channel ◄──► upstream ──► service
//!            CONNECT           │              └ relay: input, output, repair, answers, numbering, agent_clock, gap (pure)
//!                              └► other AWS calls, signed anew
//! ```
//! In `observe` mode the proxy passes the plugin's TLS on untouched.

mod acknowledgements;
mod agent_clock;
mod agent_side;
mod answers;
mod breach;
mod channel;
mod early;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gap;
mod handover;
mod held;
mod input;
pub mod ledger;
mod link;
mod liveness;
mod local_api;
mod message;
mod mux;
mod numbering;
mod observe;
mod output;
mod pacer;
mod proxy;
mod relay;
mod repair;
mod tls;
mod turns;
mod upgrade;
mod upstream;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tracing::{Instrument, info_span};

use crate::aws::api::{Api, Names, StartedSession};
use crate::config::{GatewayMode, StreamEndpoint};
use crate::network::Network;
use crate::tunnel::InterruptionCause;
use crate::tunnel::failure::Failure;
use channel::Channel;
pub use gap::Gap;
use ledger::Ledger;
use local_api::LocalApi;
use proxy::{Endpoint, Mode, Proxy};
use relay::Relay;
pub use tls::Authority;
use upstream::{Dialler, Ticket};

/// What one session's gateway is opened for.
pub struct Spec {
    /// Names the tunnel in log lines.
    pub tunnel: String,
    /// The session as StartSession returned it.
    pub session: StartedSession,
    /// Hold the plugin's WebSocket, or only watch it.
    pub mode: GatewayMode,
    /// Where the data channel is dialled, where that is not the stream URL's own host.
    pub stream_endpoint: Option<StreamEndpoint>,
    /// Where KMS is called, where that is not its own host.
    pub kms_endpoint: Option<StreamEndpoint>,
    /// The API's address, where it is not the usual one; the plugin may reach its host.
    pub endpoint_url: Option<String>,
    /// The way to the service.
    pub network: Network,
    /// Certificate authorities that a plugin in `observe` mode has to trust beside the system's; `network` does already.
    pub ca_file: Option<PathBuf>,
    /// In `hold` mode: a keep-alive goes to the agent when no stream data has flowed for so long; `None` for never.
    pub keepalive: Option<Duration>,
    /// Resumes the session and signs the upgrade of its WebSocket.
    pub api: Arc<dyn Api>,
    /// What the proxy has handed to the plugin.
    pub ledger: Arc<Ledger>,
}

/// What the gateway tells of its session. In `observe` mode only `ChannelOpened` and `ChannelClosed` are seen, each
/// time that the plugin has opened and closed its data channel, and `PluginHung` and `Unheeded`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The data channel to the service is open for the first time.
    ChannelOpened,
    /// The agent has named itself and the kind of session (`Port` for port forwarding).
    Handshake {
        /// For example `3.3.2299.0`.
        agent_version: String,
        /// `Port`, or another kind if the document is a wrong one.
        session_type: String,
        /// The session is encrypted with a KMS key: its payloads cannot be read here.
        encrypted: bool,
        /// Its data is mux frames.
        multiplexed: bool,
    },
    /// The plugin's data is not the frames that it should be: no keep-alives can be put between them any more, nor line
    /// feeds be repaired.
    LostTrack,
    /// The data channel to the service was closed, and the gateway has begun to resume it.
    ChannelClosed {
        /// The WebSocket close code, if there was a close frame.
        code: Option<u16>,
        /// The close frame's reason, or the error.
        reason: String,
    },
    /// An attempt to resume, or to open the data channel for the first time, failed; the gateway goes on trying.
    ResumeFailed(Failure),
    /// The next attempt is made after this; before one that is made at once nothing is told.
    RetryIn(Duration),
    /// KMS has refused the plugin's call for an encrypted session, or could not be asked.
    KmsFailed(Failure),
    /// The data channel is open and nothing can be had through it, or something else than before keeps it from serving.
    /// `ChannelResumed` follows when it serves again.
    Interrupted(Interruption),
    /// The data channel serves again: it is open, its agent answers, and nothing is missing.
    ChannelResumed {
        /// Since it was closed, or interrupted otherwise.
        after: Duration,
        /// Attempts made to open it, the successful one included; 0 where it was open all along.
        attempts: u32,
    },
    /// The session is over at the service.
    SessionEnded {
        /// In the service's own words, if it has any.
        reason: String,
        /// The service has said so (`channel_closed`); otherwise ResumeSession gave no token, or what the service sends cannot
        /// be read.
        declared: bool,
    },
    /// How long the agent took to acknowledge a message that was sent once: each keep-alive, and of other messages one
    /// every 5 s.
    RoundTrip(Duration),
    /// The plugin does nothing any more; it has to be replaced.
    PluginHung {
        /// What was seen.
        reason: String,
    },
    /// The agent could not reach the destination for a new connection; the session is fine.
    DestinationFailed,
    /// Something other than the proxy has connected to the plugin's port, so that connections can no longer be
    /// matched to mux streams and lone line feeds not be repaired, nor keep-alives be sent.
    ForeignConnection,
    /// In `observe` mode: the agent sends something again and again, and the plugin does not acknowledge it any more.
    Unheeded,
}

/// Why a data channel that is not closed does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// The service answers no ping. The data channel stays open, and another one is being opened.
    Unanswered,
    /// The service says that the agent has lost its connection.
    AgentAway,
    /// The agent acknowledges nothing for too long.
    AgentSilent,
    /// Messages are missing, and what comes behind them waits.
    Gap {
        /// How many.
        missing: Gap,
        /// How long there has been a gap.
        lasted: Duration,
    },
}

impl Interruption {
    /// Without the figures.
    pub fn cause(self) -> InterruptionCause {
        match self {
            Self::Unanswered => InterruptionCause::Unanswered,
            Self::AgentAway => InterruptionCause::AgentAway,
            Self::AgentSilent => InterruptionCause::AgentSilent,
            Self::Gap { .. } => InterruptionCause::Gap,
        }
    }

    /// How long it had lasted when it was noticed, as far as that matters to clients: what was held back by a gap since.
    pub fn lasted(self) -> Duration {
        match self {
            Self::Gap { lasted, .. } => lasted,
            Self::Unanswered | Self::AgentAway | Self::AgentSilent => Duration::ZERO,
        }
    }
}

impl fmt::Display for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered => write!(f, "no answer to a ping for {} s", channel::PATIENCE.as_secs()),
            Self::AgentAway => f.write_str("the agent has lost its connection to the service"),
            Self::AgentSilent => {
                write!(f, "the agent acknowledges nothing for {} s", agent_clock::PATIENCE.as_secs())
            }
            Self::Gap { missing, .. } => missing.fmt(f),
        }
    }
}

/// What the plugin's process needs in order to go through a gateway.
#[derive(Clone)]
pub struct PluginAccess {
    /// Environment variables, the secret ones among them.
    pub environment: Vec<(&'static str, SecretString)>,
    /// The StartSession response for the plugin. In `hold` mode its token is a stand-in: the real one stays here.
    pub session: StartedSession,
    /// The API address handed to the plugin; empty where it makes one itself.
    pub api_endpoint: String,
    /// Where the gateway listens (loopback).
    pub address: SocketAddr,
}

/// One session's gateway. Dropping it ends everything that it does.
pub struct Gateway {
    access: PluginAccess,
    plugin_listens: Arc<Notify>,
    tasks: JoinSet<()>,
}

impl Gateway {
    /// Listens on a port of loopback, with a secret of its own. `certificate_dir` is where `authority` has written its
    /// certificate; what the gateway sees goes to `events`.
    ///
    /// Fails if no port can be had, or `ca_file` cannot be used.
    pub fn open(
        spec: Spec,
        authority: Arc<Authority>,
        certificate_dir: &Path,
        events: mpsc::Sender<Event>,
    ) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let secret = random();
        let span = info_span!("gateway", tunnel = spec.tunnel, session = spec.session.session_id);
        let access = PluginAccess::new(&spec, address, &secret, certificate_dir)?;
        let plugin_listens = Arc::<Notify>::default();
        let mut tasks = JoinSet::new();
        let endpoints = endpoints(&spec);
        let mode = match spec.mode {
            GatewayMode::Hold => {
                let (attach, attached) = mpsc::channel(1);
                let local_api = LocalApi {
                    session_id: spec.session.session_id.clone(),
                    stream_url: spec.session.stream_url.clone(),
                    stand_in: access.session.token.clone(),
                    api: spec.api.clone(),
                    kms_endpoint: spec.kms_endpoint,
                    events: events.clone(),
                    network: spec.network.clone(),
                    attach,
                };
                let dialler = Dialler {
                    session_id: spec.session.session_id,
                    api: spec.api,
                    endpoint: spec.stream_endpoint,
                    network: spec.network,
                };
                let ticket = Ticket { stream_url: spec.session.stream_url, token: spec.session.token };
                let channel = Channel::new(
                    Arc::new(dialler),
                    ticket,
                    Relay::new(spec.ledger.clone(), spec.keepalive),
                    spec.ledger,
                    events,
                );
                tasks.spawn(channel.run(attached, plugin_listens.clone()).instrument(span.clone()));
                Mode::Hold { authority, local_api }
            }
            GatewayMode::Observe => {
                spec.ledger.observe();
                Mode::Observe {
                    stream_host: Endpoint::of_url(&spec.session.stream_url)
                        .map(|e| e.host)
                        .unwrap_or_default(),
                    stream_endpoint: spec.stream_endpoint,
                    kms_endpoint: spec.kms_endpoint,
                    network: spec.network,
                    api: spec.api,
                    channels: observe::Channels::new(events, spec.ledger),
                }
            }
        };
        tasks.spawn(Proxy { secret, endpoints, mode }.run(listener).instrument(span));
        Ok(Self { access, plugin_listens, tasks })
    }

    /// What the plugin is to be started with.
    pub fn access(&self) -> &PluginAccess {
        &self.access
    }

    /// Tells that the plugin has opened its port. Until then it is given nothing that follows the handshake: the next message
    /// may find it half initialized, which ends its reading for good without a word (public source; seen in one of six starts
    /// where one followed at once).
    pub fn plugin_listens(&self) {
        self.plugin_listens.notify_one();
    }

    /// Ends it, and returns when it has ended.
    pub async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

impl PluginAccess {
    fn new(
        spec: &Spec,
        address: SocketAddr,
        secret: &SecretString,
        certificate_dir: &Path,
    ) -> io::Result<Self> {
        let proxy = format!("http://autossm:{}@{address}", secret.expose_secret());
        let mut environment =
            vec![("HTTPS_PROXY", proxy.into()), ("AWS_EC2_METADATA_DISABLED", "true".to_owned().into())];
        let mut set = |name, value: String| environment.push((name, value.into()));
        // The plugin reaches no proxy for a loopback address, and in hold mode none of its calls must pass us by: there
        // it gets the API's real name, whatever `endpoint_url` says.
        let mut api_endpoint = spec.api.endpoint().to_owned();
        // Where other names than the usual ones are asked for, the plugin makes them itself, KMS's among them: its SDK (version 2,
        // since 1.2.804.0) refuses them together with an address that it is given, and then it can neither resume its session
        // nor end it.
        let names = spec.api.names();
        if names.fips {
            set("AWS_USE_FIPS_ENDPOINT", "true".to_owned());
        }
        if names.dual_stack {
            set("AWS_USE_DUALSTACK_ENDPOINT", "true".to_owned());
        }
        if names != Names::default() {
            api_endpoint.clear();
        }
        let mut session = spec.session.clone();
        match spec.mode {
            GatewayMode::Hold => {
                session.token = random();
                set("SSL_CERT_DIR", certificate_dir.display().to_string());
                // Its calls are answered here, or signed again.
                set("AWS_ACCESS_KEY_ID", "AKIAAUTOSSMSTANDIN00".to_owned());
                set("AWS_SECRET_ACCESS_KEY", "stand-in".to_owned());
            }
            GatewayMode::Observe => {
                if let Some(ca_file) = &spec.ca_file {
                    set("SSL_CERT_DIR", directory_with(ca_file, certificate_dir)?);
                }
                set("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("http://{address}/credentials"));
                set("AWS_CONTAINER_AUTHORIZATION_TOKEN", secret.expose_secret().to_owned());
                if let Some(url) = &spec.endpoint_url {
                    api_endpoint.clone_from(url);
                }
            }
        }
        Ok(Self { environment, session, api_endpoint, address })
    }
}

/// A value for Go's `SSL_CERT_DIR` that adds the certificates of `ca_file` to the system's.
///
/// Go reads the first bundle file that it finds (`SSL_CERT_FILE` would replace that), and then every directory (which
/// `SSL_CERT_DIR` replaces): so the bundle stays, and the usual directories are named again. The file is copied into a
/// directory of its own under `dir`, because everything in a directory is trusted.
fn directory_with(ca_file: &Path, dir: &Path) -> io::Result<String> {
    let in_context = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", ca_file.display()));
    let pem = std::fs::read(ca_file).map_err(in_context)?;
    let digest = Sha256::digest(&pem);
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let dir = dir.join(format!("ca-{name}"));
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("ca.pem"), pem)?;
    Ok(format!("{}:/etc/ssl/certs:/etc/pki/tls/certs", dir.display()))
}

/// Hosts that the plugin may reach beside those of AWS.
fn endpoints(spec: &Spec) -> Vec<Endpoint> {
    let api = spec.endpoint_url.as_deref().and_then(Endpoint::of_url);
    let stream = spec.stream_endpoint.as_ref().map(|e| Endpoint { host: e.host.clone(), port: e.port });
    api.into_iter().chain(stream).collect()
}

/// 256 bits, in hexadecimal.
fn random() -> SecretString {
    rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests;
