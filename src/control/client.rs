//! A tunnel's control socket, from the side of those who ask.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tokio_util::codec::{Framed, LinesCodec};

use super::access::{self, GROUP};
use super::protocol::{ErrorCode, Line, MAX_REPLY, Reply, Request, Status, VERSION};

/// A daemon that has not answered after this does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing was learnt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("not running")]
    NotRunning,
    /// There is one that nobody listens on.
    #[error("not running; {} was left by a daemon that was killed, or that is just being restarted", .0.display())]
    Dead(PathBuf),
    /// The socket belongs to others.
    #[error("{} is not for you: ask as root, or as a member of the group {GROUP}", .0.display())]
    Denied(PathBuf),
    /// The daemon said so.
    #[error("{message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// For people.
        message: String,
    },
    /// Nothing came.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    TimedOut,
    /// What came is no reply.
    #[error("not understood: {0}; is another version of autossm running?")]
    Strange(String),
    /// The connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connection to one tunnel.
#[derive(Debug)]
pub struct Client {
    lines: Framed<UnixStream, LinesCodec>,
}

impl Client {
    /// Connects to the control socket at this path.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Dead`], [`Error::Denied`], or the kernel's.
    pub async fn connect(socket: &Path) -> Result<Self, Error> {
        let connected = timeout(PATIENCE, UnixStream::connect(socket)).await.map_err(|_| Error::TimedOut)?;
        let stream = connected.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotRunning,
            io::ErrorKind::ConnectionRefused => Error::Dead(socket.to_owned()),
            io::ErrorKind::PermissionDenied => Error::Denied(socket.to_owned()),
            _ => Error::Io(error),
        })?;
        Ok(Self { lines: Framed::new(stream, LinesCodec::new_with_max_length(MAX_REPLY)) })
    }

    /// Sends a request. Several may be sent one after the other; their replies come in the same order.
    ///
    /// # Errors
    /// The connection has broken.
    pub async fn send(&mut self, request: Request) -> Result<(), Error> {
        let by = match request {
            Request::Status | Request::Events { .. } => None,
            // Commands are logged with whoever has given them.
            _ => access::own_name().await,
        };
        let line = serde_json::to_string(&Line { by, ..Line::new(request) }).map_err(io::Error::from)?;
        match timeout(PATIENCE, self.lines.send(line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                // A daemon that refuses says why before it closes.
                match self.next().await {
                    Some(Err(refusal @ Error::Refused { .. })) => Err(refusal),
                    _ => Err(Error::Io(io::Error::other(error))),
                }
            }
            Err(_) => Err(Error::TimedOut),
        }
    }

    /// The next reply, however long it takes; `None` at the connection's end. A refusal is an error.
    pub async fn next(&mut self) -> Option<Result<Reply, Error>> {
        let line = match self.lines.next().await? {
            Ok(line) => line,
            Err(error) => return Some(Err(Error::Io(io::Error::other(error)))),
        };
        Some(match serde_json::from_str::<Line<Reply>>(&line) {
            Ok(Line { body: Reply::Error { code, message }, .. }) => Err(Error::Refused { code, message }),
            Ok(Line { v, .. }) if v > VERSION => Err(Error::Strange(format!("version {v}"))),
            Ok(Line { body, .. }) => Ok(body),
            Err(error) => Err(Error::Strange(error.to_string())),
        })
    }

    /// Asks and waits for one reply.
    ///
    /// # Errors
    /// The refusal, or that nothing came.
    pub async fn ask(&mut self, request: Request) -> Result<Reply, Error> {
        self.send(request).await?;
        self.reply().await
    }

    /// One more reply to what was asked.
    ///
    /// # Errors
    /// The refusal, or that nothing came.
    pub async fn reply(&mut self) -> Result<Reply, Error> {
        match timeout(PATIENCE, self.next()).await {
            Ok(Some(reply)) => reply,
            Ok(None) => Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
            Err(_) => Err(Error::TimedOut),
        }
    }

    /// The tunnel at this moment.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn status(&mut self) -> Result<Box<Status>, Error> {
        match self.ask(Request::Status).await? {
            Reply::Status(status) => Ok(status),
            _ => Err(Error::Strange("not a status".to_owned())),
        }
    }
}

/// The status behind one socket.
///
/// # Errors
/// As [`Client::connect`] and [`Client::status`].
pub async fn status(socket: &Path) -> Result<Box<Status>, Error> {
    Client::connect(socket).await?.status().await
}
