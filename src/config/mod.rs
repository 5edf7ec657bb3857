//! The configuration as the rest of the program uses it: checked, with defaults filled in.
//!
//! A file is read in three steps, each of which goes on after an error, so that one run shows them all: `syntax` makes
//! a tree of it, `file` reads the tree key by key as the table in `keys` says, and `check` compares the tunnels with
//! one another and fills in the defaults.

mod check;
mod duration;
mod endpoint;
mod file;
mod hook;
mod identity;
mod keys;
mod listen;
mod load;
mod probe;
mod problem;
mod reference;
mod select;
mod size;
mod syntax;
mod target;
mod text;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use hook::{event_names, key_names as hook_key_names};
pub use keys::names as key_names;
pub use load::{has_no_tunnel, load, parse};
pub use probe::{Probe, ProbeKind, Tls, key_names as probe_key_names};
pub(crate) use problem::quoted as problem_text;
pub use problem::{Position, Problem, Problems};
pub use reference::{hook_reference, manual, probe_reference, reference};
pub use select::UnknownTunnel;

/// The whole file, tunnels in its order, disabled ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// At least one in a file that is right; names and listen addresses are unique.
    pub tunnels: Vec<Tunnel>,
    /// Commands that are run when something happens; names are unique.
    pub hooks: Vec<Hook>,
    /// What is right and has no effect, in words.
    pub warnings: Vec<String>,
}

/// One `[[hook]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// For the log.
    pub name: String,
    /// Words of the catalog.
    pub events: Vec<String>,
    /// Whose events; `None` is everybody's.
    pub tunnels: Option<Vec<String>>,
    /// An absolute path.
    pub program: PathBuf,
    /// What it is called with.
    pub arguments: Vec<String>,
    /// It is killed after this.
    pub timeout: Duration,
    /// In the long run it is started once in this time.
    pub min_interval: Duration,
    /// So many may follow one another at once after a quiet time, and wait for their turn.
    pub burst: usize,
    /// Names of the daemon's variables that it gets.
    pub environment: Vec<String>,
}

/// One `[[tunnel]]`, with `[defaults]` applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// `[a-z0-9-]`, 1 to 48 characters: also the name of its folders and of its systemd instance.
    pub name: String,
    /// Not run unless it is named.
    pub enabled: bool,
    /// Where clients connect; at least one.
    pub listen: Vec<Listen>,
    /// Whom the session is started with.
    pub target: Target,
    /// The destination as the agent resolves it; `None` is the target itself.
    pub remote_host: Option<String>,
    /// The destination's port.
    pub remote_port: u16,
    /// Sessions kept at once, 1 to 16.
    pub sessions: u8,
    /// How the plugin reaches the service.
    pub gateway: GatewayMode,
    /// With whose credentials, and where, the API is called.
    pub identity: Identity,
    /// Replaces the stream URL's host when the gateway dials the data channel.
    pub stream_endpoint: Option<StreamEndpoint>,
    /// Replaces the host of KMS when the plugin's calls to it are passed on, for encrypted sessions.
    pub kms_endpoint: Option<StreamEndpoint>,
    /// A session document of the account's own instead of AWS's.
    pub document: Option<String>,
    /// Its parameters; `portNumber`, `host` and `localPortNumber` are filled in where absent.
    pub parameters: BTreeMap<String, Vec<String>>,
    /// Shown in the account's session history; `None` is `autossm HOST TUNNEL`.
    pub reason: Option<String>,
    /// How long a client waits for a session before it is closed.
    pub hold: Duration,
    /// Clients waiting at once; a further one is closed at once.
    pub max_held: usize,
    /// Connections open at once, the waiting ones included; a further one is closed at once.
    pub max_connections: usize,
    /// How long the connections of a replaced session may go on.
    pub drain: Duration,
    /// How long open connections may go on when the daemon stops; at most 10 s.
    pub stop_grace: Duration,
    /// How long the start of the service waits for the first session.
    pub start_timeout: Duration,
    /// After a client has shut down its sending side: how long the destination may be silent before both are closed.
    pub half_close_timeout: Duration,
    /// Bytes kept for one client that takes less than comes for it.
    pub client_buffer: usize,
    /// A client that takes nothing for this long, while something waits for it, is closed; `None` is never.
    pub stalled_client_timeout: Option<Duration>,
    /// When a new session takes the place of one that works, make-before-break.
    pub rotate: Rotate,
    /// When no stream data has flowed for this long, a keep-alive goes to the agent; `None` is never.
    pub keepalive: Option<Duration>,
    /// How the destination is probed; `None` is not at all.
    pub probe: Option<Probe>,
    /// Data channel down for this long: a replacement is started beside it.
    pub failover_after: Duration,
    /// Data channel down for this long: the session is given up, with its open connections.
    pub resume_for: Duration,
    /// The plugin: a path, or a name looked up in `PATH` and then in `/usr/local/sessionmanagerplugin/bin`.
    pub plugin: String,
}

/// What one API client stands for; tunnels with equal ones share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// `None` is the SDK's default chain (environment, profile, instance).
    pub region: Option<String>,
    /// A profile of the shared AWS configuration.
    pub profile: Option<String>,
    /// A role to assume from those credentials.
    pub role_arn: Option<String>,
    /// Handed over when the role is assumed.
    pub external_id: Option<String>,
    /// Replaces the SSM API's address.
    pub endpoint_url: Option<String>,
    /// PEM file of certificate authorities trusted beside the system's, for the API and the data channel.
    pub ca_file: Option<PathBuf>,
}

/// When sessions are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rotate {
    /// Never.
    Off,
    /// At this age, or a little earlier.
    At(Duration),
    /// Before the account's maximum session duration, if it has one.
    Auto,
}

/// Where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    /// `127.0.0.1:15432` or `[::1]:15432`.
    Tcp(SocketAddr),
    /// `unix:/run/autossm/NAME/db.sock`.
    Unix(PathBuf),
}

/// Whom sessions are started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Managed nodes in order of preference.
    Ids(Vec<String>),
    /// Any managed node that carries this tag and is online.
    Tag {
        /// The tag's key.
        key: String,
        /// The tag's value.
        value: String,
    },
}

/// How the plugin reaches the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GatewayMode {
    /// The gateway ends the plugin's TLS and holds its WebSocket: connections survive the hourly close.
    Hold,
    /// The plugin's TLS is passed on untouched and only its connections are watched.
    Observe,
}

/// `wss://host[:port]`, or `ws://host:port` (no TLS; loopback only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEndpoint {
    /// `wss` or `ws`.
    pub tls: bool,
    /// A name or an address (without brackets); TLS is verified against it.
    pub host: String,
    /// 443 where it is left out.
    pub port: u16,
}

impl fmt::Display for GatewayMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hold => "hold",
            Self::Observe => "observe",
        })
    }
}
