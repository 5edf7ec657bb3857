//! Finds the control sockets of the host's tunnels and keeps the board up to date: one connection of each follows its
//! events, another asks for its status when something has happened, or somebody looks.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::board::{Board, SAMPLE_EVERY};
use super::timeline;
use crate::control::client::{Client, Error};
use crate::control::place;
use crate::control::protocol::{Reply, Request, Status};
use crate::control::time::Timestamp;

/// How often the runtime directories are read: a new tunnel is to be seen within a second.
const SEARCH: Duration = Duration::from_secs(1);
/// How often a tunnel is asked while somebody looks at the page. What matters comes as an event, at once.
const WATCHED: Duration = Duration::from_millis(1500);
/// How long a tunnel may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a daemon may be away before that is news: a restart takes less.
const AWAY: Duration = Duration::from_secs(5);
/// Between attempts to reach one that is away.
const RETRY: Duration = Duration::from_millis(500);

/// Watches the tunnels below these directories, for ever.
pub async fn watch(board: Arc<Board>, directories: Vec<PathBuf>) {
    let mut watchers: HashMap<String, JoinHandle<()>> = HashMap::new();
    loop {
        watchers.retain(|_, watcher| !watcher.is_finished());
        for (name, socket) in place::sockets(&directories) {
            watchers.entry(name).or_insert_with_key(|name| {
                let watcher =
                    Watcher { board: board.clone(), name: name.clone(), socket, news: Notify::new() };
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
    socket: PathBuf,
    /// Something has happened: its status is another one.
    news: Notify,
}

impl Watcher {
    /// Until the tunnel is gone for good.
    async fn run(self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.ask() => self.board.forget(&self.name),
        }
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
        let mut client = Client::connect(&self.socket).await?;
        // By time and not by number: a daemon that has lost its record counts anew.
        let last = self.board.last_event(&self.name);
        let since = Some(last.unwrap_or_else(|| Timestamp::now().before(timeline::LENGTH)));
        client.send(Request::Events { since, after: None, last: None, follow: true }).await?;
        while let Some(reply) = client.next().await {
            if let Reply::Event(event) = reply? {
                self.board.event(&self.name, *event);
                self.news.notify_one();
            }
        }
        Ok(())
    }

    /// Asks for its status again and again; ends when it was stopped by somebody.
    async fn ask(&self) {
        let mut wanted = self.board.wanted();
        let mut client = None;
        let mut away: Option<Instant> = None;
        loop {
            let round = *wanted.borrow_and_update();
            match timeout(PATIENCE, self.ask_once(&mut client)).await.unwrap_or(Err(Error::TimedOut)) {
                Ok(status) => {
                    away = None;
                    self.board.status(&self.name, *status, round);
                }
                Err(error) => {
                    client = None;
                    let since = *away.get_or_insert_with(Instant::now);
                    if matches!(error, Error::NotRunning) && self.board.was_stopped(&self.name) {
                        return;
                    }
                    // A restart is no news.
                    if since.elapsed() >= AWAY {
                        self.board.lost(&self.name, &error.to_string(), round);
                    } else {
                        self.board.away(&self.name, round);
                    }
                }
            }
            self.pause(&mut wanted, away.is_some()).await;
        }
    }

    async fn ask_once(&self, client: &mut Option<Client>) -> Result<Box<Status>, Error> {
        let client = match client {
            Some(client) => client,
            None => client.insert(Client::connect(&self.socket).await?),
        };
        client.status().await
    }

    async fn pause(&self, wanted: &mut watch::Receiver<u64>, away: bool) {
        if away {
            // Not more often because somebody wants to know.
            return sleep(RETRY).await;
        }
        let pause = if self.board.is_watched() { WATCHED } else { SAMPLE_EVERY };
        tokio::select! {
            () = sleep(pause) => {}
            () = self.news.notified() => {}
            _ = wanted.changed() => {}
        }
    }
}
