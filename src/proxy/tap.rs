//! A connection through a session that is nobody's: for probes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::route::hang_up;
use crate::gateway::ledger::{AgentEnd, Ledger};

/// A connection to the plugin. What is written to it is put down in the ledger, like clients' bytes.
#[derive(Debug)]
pub struct Tap {
    plugin: Option<TcpStream>,
    stream: u32,
    ledger: Arc<Ledger>,
    /// The session is over.
    ended: CancellationToken,
    /// The agent's end of the stream will be told.
    told: bool,
    /// Put down in the ledger and not yet written.
    backlog: Vec<u8>,
}

impl Tap {
    pub(super) fn new(
        plugin: TcpStream,
        stream: u32,
        ledger: Arc<Ledger>,
        ended: CancellationToken,
        told: bool,
    ) -> Self {
        Self { plugin: Some(plugin), stream, ledger, ended, told, backlog: Vec::new() }
    }

    /// Whether [`Self::close`] will have an answer.
    pub fn end_is_told(&self) -> bool {
        self.told
    }

    /// Closes it and waits until the agent has tried to connect to the destination, and ended its side. `None` where
    /// that cannot be known.
    pub async fn close(mut self) -> Option<AgentEnd> {
        self.hang_up();
        if self.told { self.ledger.until_agent_ended(self.stream).await } else { None }
    }

    fn hang_up(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            hang_up(&plugin, &self.ledger, &self.ended);
        }
    }

    fn plugin(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.plugin.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.hang_up();
        self.ledger.leave(self.stream, false);
        self.ledger.forget_agent_end(self.stream);
        self.ledger.forget_answer(self.stream);
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(self.plugin()?.poll_read(cx, buffer));
        if read.is_err() || buffer.filled().len() == before {
            self.ledger.leave(self.stream, true);
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Tap {
    /// Takes all of it: what is in the ledger has to reach the plugin.
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.ledger.write(self.stream, bytes);
        self.backlog.extend_from_slice(bytes);
        match self.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.backlog.is_empty() {
            let Self { plugin, backlog, ledger, stream, .. } = &mut *self;
            let plugin = plugin.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            let turn = ready!(ledger.poll_turn(cx, *stream, backlog.len()));
            let written = Pin::new(plugin).poll_write(cx, backlog.get(..turn).unwrap_or(backlog));
            if !matches!(written, Poll::Ready(Ok(1..))) {
                ledger.pass_turn(*stream);
            }
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(backlog.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Its bytes are written; the plugin cannot half-close.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
