//! Sessions that were given up while the service terminated nothing, by this process or an earlier one.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::record::Record;
use crate::aws::sdk::Clients;
use crate::config;

/// Calls under way at once. The account's limit of calls is for the sessions that clients wait for.
const AT_ONCE: usize = 4;

/// What one round is about.
type Round = Option<(Arc<config::Tunnel>, Vec<String>)>;

/// One tunnel's. All of them are on record; what is terminated is taken off.
pub(super) struct Leftovers {
    record: Record,
    clients: Arc<Clients>,
    ids: Vec<String>,
    /// The round that is wanted next: one that is under way is not broken off.
    wanted: watch::Sender<Round>,
    rounds: Option<JoinHandle<()>>,
}

impl Leftovers {
    pub(super) fn new(record: Record, clients: Arc<Clients>) -> Self {
        Self { record, clients, ids: Vec::new(), wanted: watch::Sender::new(None), rounds: None }
    }

    /// One of this process's own.
    pub(super) fn add(&mut self, session_id: String) {
        self.ids.push(session_id);
    }

    /// Takes over what an earlier process has left, and tries to terminate it. Not to be called for a tunnel that this
    /// process has run before: it may still be draining, under the same name and with the same record.
    pub(super) fn take_over(&mut self, config: &Arc<config::Tunnel>) {
        match self.record.sessions() {
            Ok(ids) => self.ids = ids,
            Err(error) => warn!(tunnel = config.name, %error, "the record of sessions cannot be read"),
        }
        self.terminate(config);
    }

    /// Tries once for each that is still on record. What fails stays there, and is tried the next time.
    pub(super) fn terminate(&mut self, config: &Arc<config::Tunnel>) {
        // A record that cannot be read now says nothing of what is done.
        if let Ok(recorded) = self.record.sessions() {
            self.ids.retain(|id| recorded.contains(id));
        }
        if self.ids.is_empty() {
            return;
        }
        let wanted = self.wanted.subscribe();
        self.wanted.send_replace(Some((config.clone(), self.ids.clone())));
        if self.rounds.as_ref().is_none_or(JoinHandle::is_finished) {
            self.rounds = Some(tokio::spawn(rounds(wanted, self.record.clone(), self.clients.clone())));
        }
    }
}

/// Ends when no other round is wanted, or with the tunnel, when the one that is under way is over.
async fn rounds(mut wanted: watch::Receiver<Round>, record: Record, clients: Arc<Clients>) {
    while wanted.has_changed().unwrap_or_default() {
        let Some((config, ids)) = wanted.borrow_and_update().clone() else { continue };
        let (config, record, clients) = (&config, &record, &clients);
        let each = async |id: String| terminate(config, record, clients, &id).await;
        stream::iter(ids).for_each_concurrent(AT_ONCE, each).await;
    }
}

/// Tries once.
pub(super) async fn terminate(config: &config::Tunnel, record: &Record, clients: &Clients, session: &str) {
    let result = match clients.get(&config.identity).await {
        Ok(api) => api.terminate_session(session).await,
        Err(failure) => Err(failure),
    };
    let tunnel = &config.name;
    match result {
        Ok(()) => {
            if let Err(error) = record.remove(session) {
                warn!(tunnel, session, %error, "the session's record stays");
            }
            info!(tunnel, session, event = "leftover", "session that was left behind terminated");
        }
        Err(failure) => {
            let reason = failure.text;
            warn!(tunnel, session, reason, "session that was left behind not terminated");
        }
    }
}
