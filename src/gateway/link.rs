//! One WebSocket of the data channel, to the plugin or to the service, driven by polling: so that one task can carry
//! both directions without either waiting for the other.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::breach::{Breach, plain};
use crate::network;
pub use crate::network::Connection;

/// The ends' messages are about 1.1 KB; this is far beyond anything that they send.
pub const MAX_MESSAGE: usize = 64 << 10;
const BUFFER: usize = 8 << 10;

/// Either end of the data channel.
pub struct Link {
    socket: WebSocketStream<Box<dyn Connection>>,
    ping_wanted: bool,
    unflushed: bool,
    /// The other side does not read.
    blocked: bool,
}

/// What came over a link.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// The message that opens the data channel.
    Text(String),
    /// Everything after it.
    Binary(Bytes),
    /// A sign of life only.
    Alive,
}

/// A link is of no more use.
#[derive(Debug, PartialEq, Eq)]
pub struct Lost {
    /// The close frame's code, if there was one.
    pub code: Option<u16>,
    /// The close frame's reason, or the error.
    pub reason: String,
    /// What came is no WebSocket's, and would be none the next time.
    pub breach: Option<Breach>,
}

/// Small buffers: the messages are small, and an idle tunnel has two links.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_write_buffer_size(2 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

impl Link {
    /// A link whose upgrade has been made.
    pub fn new(socket: WebSocketStream<Box<dyn Connection>>) -> Self {
        Self { socket, ping_wanted: false, unflushed: false, blocked: false }
    }

    /// The server's end of a connection that was upgraded by other means.
    pub async fn serve(connection: Box<dyn Connection>) -> Self {
        Self::new(WebSocketStream::from_raw_socket(connection, Role::Server, Some(config())).await)
    }

    /// Sends a ping with the next write.
    pub fn ping(&mut self) {
        self.ping_wanted = true;
    }

    /// Whether something waits to be written because the other side does not read.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Writes what `next` gives until the other side takes no more. Does not flush.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        mut next: impl FnMut() -> Option<Bytes>,
    ) -> Result<(), Lost> {
        loop {
            self.blocked = match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Ready(result) => result.map(|()| false).map_err(lost)?,
                Poll::Pending => true,
            };
            if self.blocked {
                return Ok(());
            }
            let message = if std::mem::take(&mut self.ping_wanted) {
                Message::Ping(Bytes::new())
            } else {
                match next() {
                    Some(bytes) => Message::Binary(bytes),
                    None => return Ok(()),
                }
            };
            self.unflushed = true;
            Pin::new(&mut self.socket).start_send(message).map_err(lost)?;
        }
    }

    /// Writes out what has been buffered; for when there is nothing more to read.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<(), Lost> {
        if self.unflushed
            && let Poll::Ready(result) = Pin::new(&mut self.socket).poll_flush(cx)
        {
            result.map_err(lost)?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// The next thing from the other side.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Received, Lost>> {
        let message = std::task::ready!(Pin::new(&mut self.socket).poll_next(cx));
        if matches!(message, Some(Ok(Message::Close(_)))) {
            // The answer to it has been put into the buffer; whether it can be sent makes no difference here.
            let _ = Pin::new(&mut self.socket).poll_flush(cx);
        }
        Poll::Ready(match message {
            Some(Ok(Message::Binary(bytes))) => Ok(Received::Binary(bytes)),
            Some(Ok(Message::Text(text))) => Ok(Received::Text(text.to_string())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Received::Alive),
            Some(Ok(Message::Close(frame))) => Err(Lost {
                code: frame.as_ref().map(|frame| frame.code.into()),
                reason: frame.map(|frame| plain(&frame.reason)).unwrap_or_default(),
                breach: None,
            }),
            Some(Err(error)) => Err(lost(error)),
            None => Err(lost(Error::ConnectionClosed)),
        })
    }
}

/// What became of a WebSocket, for people.
pub fn words(error: &Error) -> String {
    match error {
        Error::Io(error) => network::words(error),
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake
            | ProtocolError::SendAfterClosing
            | ProtocolError::ReceivedAfterClosing
            | ProtocolError::HandshakeIncomplete,
        ) => network::CUT.to_owned(),
        error => error.to_string(),
    }
}

fn lost(error: Error) -> Lost {
    let reason = words(&error);
    let breach = match error {
        // The connection was cut, on either side: nothing wrong was said.
        Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake
            | ProtocolError::SendAfterClosing
            | ProtocolError::ReceivedAfterClosing,
        ) => None,
        Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_) => Some(Breach::WebSocket(plain(&reason))),
        _ => None,
    };
    Lost { code: None, reason, breach }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_connection_that_is_cut_is_told_in_our_own_words() {
        let long = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/manual#unexpected-eof";
        for error in [
            Error::Io(io::Error::new(io::ErrorKind::UnexpectedEof, long)),
            Error::Io(io::Error::from_raw_os_error(104)),
            Error::ConnectionClosed,
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake),
        ] {
            let expected = Lost { code: None, reason: "the connection was cut".to_owned(), breach: None };
            assert_eq!(lost(error), expected);
        }
        let breach = lost(Error::Protocol(ProtocolError::NonZeroReservedBits));
        assert!(breach.breach.is_some() && breach.reason.contains("eserved"), "{}", breach.reason);
    }
}
