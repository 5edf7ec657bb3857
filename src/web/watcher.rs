//! Finds the control sockets of the host's tunnels and keeps the board up to date: one connection of each follows its
//! events, another asks for its status when something has happened, or somebody looks.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::board::{Absence, Board, Lost, SAMPLE_EVERY};
use super::{expected, timeline};
use crate::control::client::{Client, Error};
use crate::control::place;
use crate::control::protocol::{Reply, Request, Status};
use crate::control::time::Timestamp;

/// How often the runtime directories are read: a new tunnel is to be seen within a second.
const SEARCH: Duration = Duration::from_secs(1);
/// How often a tunnel is asked while somebody looks at the page. What matters comes as an event, at once; only a daemon that
/// hangs says nothing, and is to be seen within this and [`SOON`].
const WATCHED: Duration = Duration::from_millis(1200);
/// A tunnel that has not answered after this is said to be silent.
const SOON: Duration = Duration::from_millis(600);
/// How long a tunnel may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a daemon may be away, from the first question without an answer, before that is news: a restart takes less.
const AWAY: Duration = Duration::from_secs(5);
/// Between attempts to reach one that is away.
const RETRY: Duration = Duration::from_millis(500);

/// Watches the tunnels below these directories, and those that units of systemd's in `units` are to run, for ever.
pub async fn watch(board: Arc<Board>, directories: Vec<PathBuf>, units: Vec<PathBuf>) {
    let directories: Arc<[PathBuf]> = directories.into();
    let mut watchers: HashMap<String, JoinHandle<()>> = HashMap::new();
    loop {
        watchers.retain(|_, watcher| !watcher.is_finished());
        // While it is not known, those of before are expected.
        if let Some(names) = expected::tunnels(&units) {
            board.expect(names);
        }
        for name in place::sockets(&directories).into_keys().chain(board.expected()) {
            watchers.entry(name).or_insert_with_key(|name| {
                let watcher = Watcher {
                    board: board.clone(),
                    name: name.clone(),
                    directories: directories.clone(),
                    news: board.ask(name),
                };
                tokio::spawn(watcher.run())
            });
        }
        // One that does not exist has no tunnels; one that may not be read hides them.
        let refused = directories.iter().find_map(|directory| match fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Some(format!("{}: {error}", directory.display()))
            }
            _ => None,
        });
        board.searched(refused);
        sleep(SEARCH).await;
    }
}

struct Watcher {
    board: Arc<Board>,
    name: String,
    directories: Arc<[PathBuf]>,
    /// Something has happened, so that its status is another one; or somebody wants to know it.
    news: Arc<Notify>,
}

impl Watcher {
    /// Until the tunnel is gone for good.
    async fn run(self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.ask() => self.board.forget(&self.name),
        }
    }

    async fn connect(&self) -> Result<Client, Error> {
        Client::connect(&place::socket(&self.directories, &self.name)).await
    }

    /// Takes its events, the last day's first.
    async fn follow(&self) {
        loop {
            if let Err(error) = self.follow_once().await {
                debug!(tunnel = self.name, %error, "its events cannot be followed");
            }
            self.news.notify_one();
            sleep(RETRY).await;
        }
    }

    async fn follow_once(&self) -> Result<(), Error> {
        let mut client = self.connect().await?;
        // By time and not by number: a daemon that has lost its record counts anew.
        let last = self.board.last_event(&self.name);
        let since = Some(last.unwrap_or_else(|| Timestamp::now().before(timeline::LENGTH)));
        client.send(Request::Events { since, after: None, last: None, follow: true }).await?;
        while let Some(reply) = client.next().await {
            match reply? {
                Reply::Event(event) => {
                    self.board.event(&self.name, *event);
                    self.news.notify_one();
                }
                // They are on record: asked for anew, from the last one before them.
                Reply::Missed { .. } => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// Asks for its status again and again; ends when it was stopped by somebody.
    async fn ask(&self) {
        let mut client = None;
        // When the first question was put that has had no answer.
        let mut unanswered: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            match self.ask_patiently(&mut client, &mut unanswered).await {
                Ok(status) => {
                    unanswered = None;
                    self.board.status(&self.name, *status, asked);
                }
                Err(Error::NotRunning)
                    if unanswered.is_some_and(|since| since.elapsed() >= AWAY)
                        && self.board.may_go(&self.name) =>
                {
                    return;
                }
                Err(_) => client = None,
            }
            self.pause(unanswered.is_some()).await;
        }
    }

    /// Asks once, and tells the board while nothing comes.
    async fn ask_patiently(
        &self,
        client: &mut Option<Client>,
        unanswered: &mut Option<Instant>,
    ) -> Result<Box<Status>, Error> {
        let asked = Instant::now();
        let mut tell = |error: &Error| self.tell(*unanswered.get_or_insert(asked), error);
        let mut asking = pin!(self.ask_once(client));
        loop {
            match timeout(SOON, &mut asking).await {
                Ok(Ok(status)) => return Ok(status),
                Ok(Err(error)) => {
                    tell(&error);
                    return Err(error);
                }
                Err(_) => tell(&Error::TimedOut),
            }
            if asked.elapsed() >= PATIENCE {
                return Err(Error::TimedOut);
            }
        }
    }

    async fn ask_once(&self, client: &mut Option<Client>) -> Result<Box<Status>, Error> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.connect().await?),
        };
        client.status().await
    }

    fn tell(&self, since: Instant, error: &Error) {
        let lasts = since.elapsed();
        let how = match error {
            _ if lasts < AWAY => Absence::Silent,
            Error::NotRunning | Error::Dead(_) => Absence::Gone,
            _ => Absence::Deaf,
        };
        let why = match error {
            Error::NotRunning => "there is no control socket".to_owned(),
            Error::TimedOut => "nothing comes from its control socket".to_owned(),
            other => other.to_string(),
        };
        self.board.lost(&self.name, Lost { since: Timestamp::now().before(lasts), how, why });
    }

    async fn pause(&self, away: bool) {
        if away {
            // Not more often because somebody wants to know.
            return sleep(RETRY).await;
        }
        let pause = if self.board.is_watched() { WATCHED } else { SAMPLE_EVERY };
        tokio::select! {
            () = sleep(pause) => {}
            () = self.news.notified() => {}
        }
    }
}
