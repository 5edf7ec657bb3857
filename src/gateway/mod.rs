//! The plugin's way to the service: a local proxy that ends the plugin's TLS and holds its WebSocket open while
//! the service's is closed, resumed and opened again.

mod input;
pub mod ledger;
mod message;
mod mux;
mod output;
mod relay;
mod repair;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;

use crate::aws::api::{Api, StartedSession};
use crate::config::{GatewayMode, StreamEndpoint};
use crate::tunnel::failure::Failure;
use ledger::Ledger;

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
    /// The API's address, where it is not the usual one; the plugin may reach its host.
    pub endpoint_url: Option<String>,
    /// Certificate authorities trusted beside the system's.
    pub ca_file: Option<PathBuf>,
    /// Resumes the session and signs the upgrade of its WebSocket.
    pub api: Arc<dyn Api>,
    /// What the proxy has handed to the plugin.
    pub ledger: Arc<Ledger>,
}

/// What the gateway tells of its session. In `observe` mode only `Attached`, `ChannelOpened` and `ChannelClosed`
/// are seen.
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
    },
    /// The data channel to the service was closed; the gateway has begun to resume it.
    ChannelClosed {
        /// The WebSocket close code, if there was a close frame.
        code: Option<u16>,
        /// The close frame's reason, or the error.
        reason: String,
    },
    /// An attempt to resume failed; the gateway goes on trying.
    ResumeFailed(Failure),
    /// The data channel is open again and what was lost has been sent again.
    ChannelResumed {
        /// Since it was closed.
        after: Duration,
        /// Attempts made, the successful one included.
        attempts: u32,
    },
    /// The service ended the session (`channel_closed`), or ResumeSession gave no token.
    SessionEnded {
        /// In the service's own words.
        reason: String,
    },
    /// The plugin does nothing any more; it has to be replaced.
    PluginHung {
        /// What was seen.
        reason: String,
    },
    /// The agent could not reach the destination for a new connection; the session is fine.
    DestinationFailed,
    /// Something other than the proxy has connected to the plugin's port, so that connections can no longer be
    /// matched to mux streams and lone line feeds not be repaired.
    ForeignConnection,
}

/// What the plugin's process needs in order to go through a gateway.
pub struct PluginAccess {
    /// Environment variables, the secret ones among them.
    pub environment: Vec<(&'static str, SecretString)>,
    /// The StartSession response for the plugin. In `hold` mode its token is a stand-in: the real one stays here.
    pub session: StartedSession,
    /// The API address handed to the plugin.
    pub api_endpoint: String,
    /// Where the gateway listens (loopback).
    pub address: SocketAddr,
}
