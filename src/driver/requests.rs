//! What is asked over the control socket, and what is told there and nowhere else.

use tokio::time::Instant;
use tracing::{debug, info};

use super::describe::state;
use super::{Driver, HISTORY};
use crate::control::protocol::{self, ErrorCode, Reply, Request};
use crate::control::server::Ask;
use crate::gateway;
use crate::tunnel::command::Command;
use crate::tunnel::status::State;
use crate::tunnel::{Event, Generation};

/// The state that the record was told of last.
#[derive(Debug)]
pub(super) struct Told {
    pub state: protocol::State,
    pub since: Instant,
}

impl Driver {
    /// Answers, and says what it means to the core, if anything.
    pub(super) fn asked(&mut self, ask: Ask) -> Option<Event> {
        let (reply, event) = match ask.request {
            Request::Rotate => self.commanded(&ask, Command::Rotate),
            Request::Restart => self.commanded(&ask, Command::Restart),
            Request::Drain => self.commanded(&ask, Command::Drain),
            Request::Resume => self.commanded(&ask, Command::Resume),
            Request::Drill { ref session } => (self.drill(&ask.by, session), None),
            // The server answers the one for events by itself.
            Request::Status | Request::Events { .. } => (Reply::Status(Box::new(self.describe())), None),
        };
        // Whoever asked may have lost patience; a command counts all the same.
        let _ = ask.answer.send(reply);
        event
    }

    /// Kills a plugin behind the core's back: it hears of it as of any other plugin's end.
    fn drill(&self, by: &str, id: &str) -> Reply {
        let serves = self.snapshot.borrow().serving.iter().any(|serving| serving == id);
        let session = self.sessions.values().find(|session| serves && session.id() == id);
        let Some(plugin) = session.and_then(|session| session.plugin.as_ref()) else {
            let message = format!("no session {id} serves; look again: autossm status {}", self.config.name);
            return Reply::Error { code: ErrorCode::NotThere, message };
        };
        let message = format!("the plugin of session {id} (pid {}) is killed", plugin.pid());
        info!(
            tunnel = self.config.name,
            session = id,
            event = "requested",
            command = "drill",
            by,
            "drill, asked for by {by}: {message}"
        );
        plugin.kill();
        Reply::Done { message }
    }

    fn commanded(&self, ask: &Ask, command: Command) -> (Reply, Option<Event>) {
        let snapshot = self.snapshot.borrow();
        if matches!(snapshot.status.state, State::Stopping | State::Stopped) {
            let message = "the tunnel is being stopped".to_owned();
            return (Reply::Error { code: ErrorCode::Stopping, message }, None);
        }
        let drained = self.core.is_drained();
        let hold = humantime::format_duration(self.config.hold);
        let serving = match snapshot.serving.len() {
            1 => "the session".to_owned(),
            count => format!("{count} sessions"),
        };
        let (word, message) = match command {
            Command::Rotate if snapshot.serving.is_empty() => {
                ("rotate", "no session serves: one is started at once".to_owned())
            }
            Command::Rotate => ("rotate", format!("replacing {serving}; open connections go on")),
            Command::Restart => ("restart", "ending every session and beginning anew".to_owned()),
            Command::Drain if drained => ("drain", format!("drained already; new clients wait up to {hold}")),
            Command::Drain => ("drain", format!("new clients wait up to {hold}; open connections go on")),
            Command::Resume if !drained => ("resume", "was not drained; nothing has changed".to_owned()),
            Command::Resume => ("resume", "new clients are served again".to_owned()),
        };
        info!(
            tunnel = self.config.name,
            event = "requested",
            command = word,
            by = ask.by,
            "{word}, asked for by {}: {message}",
            ask.by
        );
        (Reply::Done { message }, Some(Event::Command(command)))
    }

    /// Notes what a session's gateway saw.
    pub(super) fn saw(&mut self, generation: Generation, event: &gateway::Event) {
        let session = self.sessions.get_mut(&generation);
        self.numbers.gateway(event, session.as_ref().and_then(|session| session.seen.cause()));
        if let Some(session) = session {
            session.seen.gateway(event);
        }
    }

    /// The record has to know that what came before is over, said or not.
    pub(super) fn tell_begin(&self) {
        debug!(
            target: HISTORY,
            tunnel = self.config.name,
            event = "begun",
            pid = std::process::id(),
            version = env!("CARGO_PKG_VERSION"),
            "the daemon runs the tunnel"
        );
        let word = self.told.state.word();
        debug!(target: HISTORY, tunnel = self.config.name, event = "state", state = word, "{word}");
    }

    /// Tells the record of every change of state: the past is drawn from that. While no session can be had, `starting` and
    /// `waiting` take turns: that is one outage, which is not to fill the record.
    pub(super) fn tell_state(&mut self) {
        let now = self.snapshot.borrow();
        let (state, was) = (state(&now.status), self.told.state);
        if state == was || (was == protocol::State::Waiting && state == protocol::State::Starting) {
            return;
        }
        let before = std::mem::replace(&mut self.told, Told { state, since: Instant::now() });
        let lasted = before.since.elapsed();
        let (word, was) = (state.word(), was.word());
        debug!(
            target: HISTORY,
            tunnel = self.config.name,
            event = "state",
            state = word,
            was,
            reason = now.status.failure.as_ref().map(|failure| failure.text.as_str()),
            duration_ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            "{was} → {word}"
        );
    }
}
