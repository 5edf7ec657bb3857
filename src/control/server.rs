//! A tunnel's control socket, from the daemon's side. Whoever is connected can harm nothing: the number of clients, the
//! length of a request, and the time that anything takes are limited, and what a client does not read in time it loses
//! with its connection.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tracing::debug;

use super::access::{Access, GROUP, Refusal};
use super::place;
use super::protocol::{ErrorCode, Line, MAX_REQUEST, Reply, Request, VERSION};
use crate::socket_file::{self, SocketFile};
use crate::telemetry::history::{History, Selection};

/// Clients connected to one tunnel at once.
pub const MAX_CLIENTS: usize = 32;
/// A client that asks nothing for so long is let go.
const IDLE: Duration = Duration::from_secs(60);
/// A client that does not take a reply within this is let go.
const WRITING: Duration = Duration::from_secs(5);
/// The tunnel's task answers at once, or something is wrong with it.
const ANSWERING: Duration = Duration::from_secs(3);
/// After a client could not be accepted: until the next try.
const AGAIN: Duration = Duration::from_secs(1);

/// A question to the tunnel: every request but the one for events.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// The user who asks, for the log.
    pub by: String,
    /// Where the answer goes; whoever asked may have gone.
    pub answer: oneshot::Sender<Reply>,
}

/// A control socket that is being served. Dropping it ends that, with every connection, and removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    _tasks: JoinSet<()>,
    _file: SocketFile,
    _folder: Folder,
}

/// The tunnel's folder, removed if this process has made it and nothing else is in it.
#[derive(Debug)]
struct Folder(Option<PathBuf>);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Something else may be in it.
            let _ = fs::remove_dir(path);
        }
    }
}

impl Server {
    /// Serves the control socket in `folder`. Must be called within a runtime.
    ///
    /// # Errors
    /// The socket cannot be bound; a live daemon may have it.
    pub fn open(
        folder: &Path,
        access: &Access,
        asks: mpsc::Sender<Ask>,
        history: Arc<History>,
    ) -> io::Result<Self> {
        let made = make(folder)?;
        let path = folder.join(place::FILE);
        remove_stale(&path)?;
        let (listener, file) = socket_file::listen(&path, access.group(), 64).or_else(|error| {
            // Somebody who is not in the group cannot give a file to it.
            if error.kind() != io::ErrorKind::PermissionDenied {
                return Err(error);
            }
            debug!(path = %path.display(), %error, "the control socket cannot be given to the group {GROUP}");
            socket_file::listen(&path, None, 64)
        })?;
        let mut tasks = JoinSet::new();
        let shared = Arc::new(Shared { access: access.clone(), asks, history });
        tasks.spawn(shared.accept(listener));
        Ok(Self { path, _tasks: tasks, _file: file, _folder: made })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn make(folder: &Path) -> io::Result<Folder> {
    match fs::DirBuilder::new().mode(0o755).create(folder) {
        Ok(()) => Ok(Folder(Some(folder.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Folder(None)),
        Err(error) => Err(error),
    }
}

/// Clears away what a daemon that was killed has left.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::Error::other("something else has its path")),
        Ok(_) if socket_file::is_stale(path)? => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon serves this tunnel")),
    }
}

struct Shared {
    access: Access,
    asks: mpsc::Sender<Ask>,
    history: Arc<History>,
}

/// The connection is to be closed.
struct Over;

impl Shared {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) if clients.len() >= MAX_CLIENTS => refuse(&socket, &busy()),
                    Ok((socket, _)) => {
                        // Who it is may take a while to find out: the next one does not wait for that.
                        let this = self.clone();
                        clients.spawn(async move {
                            match this.admit(&socket).await {
                                Ok(user) => this.serve(socket, user).await,
                                Err(refusal) => refuse(&socket, &refusal),
                            }
                        });
                    }
                    Err(error) => {
                        debug!(%error, "a client of the control socket could not be accepted");
                        sleep(AGAIN).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }

    /// Lets a client in by its number of user, or says why not.
    async fn admit(&self, socket: &UnixStream) -> Result<u32, Reply> {
        let peer = socket.peer_cred().ok();
        let admitted = match &peer {
            Some(peer) => self.access.admit(peer).await.map(|()| peer.uid()),
            None => Err(Refusal::Stranger),
        };
        admitted.map_err(|refusal| Reply::Error {
            code: ErrorCode::Denied,
            message: match refusal {
                Refusal::Stranger => {
                    format!("only root, the daemon's user and members of the group {GROUP} may ask")
                }
                Refusal::NotKnown => format!(
                    "this host's name service does not say whether you are in the group {GROUP}: ask as root"
                ),
            },
        })
    }

    async fn serve(self: Arc<Self>, socket: UnixStream, user: u32) {
        let (reader, mut writer) = socket.into_split();
        let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(MAX_REQUEST));
        while let Ok(Some(line)) = timeout(IDLE, lines.next()).await {
            let done = match line.map_err(|error| unreadable(&error)).and_then(|line| parse(&line)) {
                Ok((Request::Events { since, after, last, follow }, _)) => {
                    let selection = Selection { since, after, last };
                    self.events(selection, follow, &mut lines, &mut writer).await
                }
                Ok((request, claim)) => {
                    let reply = self.ask(request, user, claim.as_deref()).await;
                    send(&mut writer, &reply).await
                }
                Err(refusal) => {
                    let _ = send(&mut writer, &refusal).await;
                    Err(Over)
                }
            };
            if done.is_err() {
                return;
            }
        }
    }

    /// Passes a question on to the tunnel.
    async fn ask(&self, request: Request, user: u32, claim: Option<&str>) -> Reply {
        let (answer, answered) = oneshot::channel();
        let by = match request {
            Request::Status => String::new(),
            _ => self.access.name(user, claim).await,
        };
        let ask = Ask { request, by, answer };
        let asked = async {
            self.asks.send(ask).await.is_ok().then_some(())?;
            answered.await.ok()
        };
        match timeout(ANSWERING, asked).await {
            Ok(Some(reply)) => reply,
            Ok(None) => {
                Reply::Error { code: ErrorCode::Stopping, message: "the tunnel has been stopped".to_owned() }
            }
            Err(_) => Reply::Error {
                code: ErrorCode::Stuck,
                message: format!(
                    "the tunnel has not answered for {} s; systemd's watchdog restarts it, or restart it by hand",
                    ANSWERING.as_secs()
                ),
            },
        }
    }

    async fn events(
        &self,
        selection: Selection,
        follow: bool,
        lines: &mut FramedRead<OwnedReadHalf, LinesCodec>,
        writer: &mut OwnedWriteHalf,
    ) -> Result<(), Over> {
        let mut latest = self.history.latest();
        let past = self.history.past(selection);
        if let Some(mut read) = past.read {
            while let Some(event) = read.recv().await {
                send(writer, &Reply::Event(Box::new(event))).await?;
            }
        }
        for event in past.recent {
            send_event(writer, &event).await?;
        }
        if !follow {
            return send(writer, &Reply::End).await;
        }
        let mut seen = past.seen;
        loop {
            let (missed, events) = self.history.after(seen);
            if missed > 0 {
                send(writer, &Reply::Missed { events: missed }).await?;
            }
            for event in events {
                send_event(writer, &event).await?;
                seen = event.seq;
            }
            tokio::select! {
                changed = latest.wait_for(|latest| *latest > seen) => if changed.is_err() { return Err(Over) },
                // It has gone, or says something although nobody listens.
                _ = lines.next() => return Err(Over),
            }
        }
    }
}

fn busy() -> Reply {
    Reply::Error {
        code: ErrorCode::Busy,
        message: format!("{MAX_CLIENTS} clients are connected already; close one, or try again later"),
    }
}

/// The request, and who asks by their own word.
fn parse(line: &str) -> Result<(Request, Option<String>), Reply> {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    let refusal = |code, message: String| Err(Reply::Error { code, message });
    match (serde_json::from_str::<Line<Request>>(line), serde_json::from_str::<Version>(line)) {
        (_, Ok(Version { v })) if v > VERSION => refusal(
            ErrorCode::Version,
            format!(
                "this daemon speaks version {VERSION}, not {v}; it is older than the program: restart it"
            ),
        ),
        (Ok(Line { v: VERSION, by, body }), _) => Ok((body, by)),
        (Err(error), Ok(_)) => refusal(ErrorCode::BadRequest, format!("not a request: {error}")),
        _ => refusal(
            ErrorCode::BadRequest,
            format!(
                "not a request: write one JSON object on a line, such as {{\"v\":{VERSION},\"request\":\"status\"}}"
            ),
        ),
    }
}

fn unreadable(error: &LinesCodecError) -> Reply {
    let message = match error {
        LinesCodecError::MaxLineLengthExceeded => format!("a request has at most {MAX_REQUEST} bytes"),
        LinesCodecError::Io(error) => error.to_string(),
    };
    Reply::Error { code: ErrorCode::BadRequest, message }
}

/// Says why, to a client that is not waited for.
fn refuse(socket: &UnixStream, refusal: &Reply) {
    if let Ok(text) = text(refusal) {
        // Nothing is in its way yet: it is taken at once.
        let _ = socket.try_write(&text);
    }
}

async fn send(writer: &mut OwnedWriteHalf, reply: &Reply) -> Result<(), Over> {
    write(writer, text(reply)).await
}

async fn send_event(writer: &mut OwnedWriteHalf, event: &super::protocol::Event) -> Result<(), Over> {
    send(writer, &Reply::Event(Box::new(event.clone()))).await
}

async fn write(writer: &mut OwnedWriteHalf, text: serde_json::Result<Vec<u8>>) -> Result<(), Over> {
    let text = text.map_err(|_| Over)?;
    match timeout(WRITING, writer.write_all(&text)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Over),
    }
}

fn text(reply: &Reply) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(&Line::new(reply))?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests;
