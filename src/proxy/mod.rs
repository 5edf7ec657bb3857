//! The clients' side: owns the local ports, holds connections while there is no session, and carries their bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::gateway::ledger::Ledger;
use crate::tunnel::Generation;

/// One session as the proxy sees it: somewhere to connect to. The driver publishes those that take new connections in
/// a `watch` channel, as `Vec<Arc<Route>>`.
#[derive(Debug)]
pub struct Route {
    /// The session's number in its tunnel.
    pub generation: Generation,
    /// For log lines.
    pub session_id: String,
    /// The plugin's port.
    pub address: SocketAddr,
    /// Where the bytes given to the plugin are written down.
    pub ledger: Arc<Ledger>,
    /// Cancelled when the session is over: what is still open on it is cut, or moved if it carried nothing yet.
    pub ended: CancellationToken,
    /// Connections open on it; the driver waits here for a draining session to become empty.
    pub open: watch::Sender<usize>,
    /// One connection at a time: their order is how they are matched to mux streams.
    connecting: Mutex<()>,
}

impl Route {
    /// A route to the plugin that listens on `address`.
    pub fn new(generation: Generation, session_id: String, address: SocketAddr, ledger: Arc<Ledger>) -> Self {
        Self {
            generation,
            session_id,
            address,
            ledger,
            ended: CancellationToken::new(),
            open: watch::Sender::new(0),
            connecting: Mutex::new(()),
        }
    }
}
