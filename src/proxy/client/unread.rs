//! How a client on a Unix socket is told that its connection was reset.
//!
//! There is no reset on a Unix socket, but the kernel tells of one (`ECONNRESET`) to whoever has sent bytes that lay unread when
//! the other end was closed, by whatever it was: also where this process is killed. So the last byte that a client has sent is
//! passed on, but left where it lies until the answer is complete. To a client that has sent nothing, every end looks the same.

use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use futures_util::FutureExt as _;
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::proxy::buffer::CHUNK;

/// Whether the first byte that can be read from a socket has been read before.
#[derive(Debug, Default)]
pub struct Unread(AtomicBool);

impl Unread {
    /// Reads what has not been read before, and leaves the last byte unread.
    pub(super) fn try_read(&self, socket: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
        socket.try_io(Interest::READABLE, || self.read(socket, buffer))
    }

    /// Leaves nothing unread of what was passed on.
    pub(super) fn forget(&self, socket: &UnixStream) -> io::Result<()> {
        take(socket, &mut [0], usize::from(self.0.swap(false, Relaxed)))
    }

    fn read(&self, socket: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
        // Asked before: what comes between the two questions is not to be missed.
        let at_its_end = has_ended(socket);
        let before = usize::from(self.0.load(Relaxed));
        let mut piece = [0; 1 + CHUNK];
        let wanted = piece.get_mut(..before + buffer.len().min(CHUNK)).unwrap_or_default();
        let there = recv(socket.as_raw_fd(), wanted, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?;
        let new = wanted.get(before..there).unwrap_or_default();
        if new.is_empty() {
            return if at_its_end || there == 0 { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let read = new.len();
        buffer.get_mut(..read).unwrap_or_default().copy_from_slice(new);
        take(socket, &mut piece, there - 1)?;
        self.0.store(true, Relaxed);
        Ok(read)
    }
}

/// Takes so many bytes, which are there.
fn take(socket: &UnixStream, piece: &mut [u8], mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let wanted = piece.get_mut(..bytes).unwrap_or_default();
        match recv(socket.as_raw_fd(), wanted, MsgFlags::MSG_DONTWAIT)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            taken => bytes = bytes.saturating_sub(taken),
        }
    }
    Ok(())
}

/// Whether the runtime has heard that the client sends nothing more. If it hears of that later, it says so.
fn has_ended(socket: &UnixStream) -> bool {
    matches!(socket.ready(Interest::READABLE).now_or_never(), Some(Ok(ready)) if ready.is_read_closed())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Reads when there is something, as the proxy does.
    async fn read(unread: &Unread, socket: &UnixStream) -> Vec<u8> {
        let mut buffer = vec![0; CHUNK];
        loop {
            socket.readable().await.unwrap();
            match unread.try_read(socket, &mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return buffer[..read.unwrap()].to_vec(),
            }
        }
    }

    #[tokio::test]
    async fn every_byte_is_read_once_and_the_last_one_is_left() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let unread = Unread::default();
        for length in [1, 1, 2, 10_000, 1] {
            let sent: Vec<u8> = (0..length).map(|n: usize| n as u8).collect();
            client.write_all(&sent).await.unwrap();
            assert_eq!(read(&unread, &ours).await, sent);
            let nothing = unread.try_read(&ours, &mut [0; 8]).unwrap_err();
            assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
            let mut lies = [0; 8];
            assert_eq!(recv(ours.as_raw_fd(), &mut lies, MsgFlags::MSG_PEEK), Ok(1));
        }
        // In pieces that are smaller than what there is.
        client.write_all(b"abcdef").await.unwrap();
        ours.readable().await.unwrap();
        let mut piece = [0; 4];
        assert_eq!((unread.try_read(&ours, &mut piece).unwrap(), &piece), (4, b"abcd"));
        assert_eq!((unread.try_read(&ours, &mut piece).unwrap(), &piece[..2]), (2, &b"ef"[..]));
        client.shutdown().await.unwrap();
        assert_eq!(read(&unread, &ours).await, b"");
        drop(ours);
        assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn nothing_is_left_at_an_end() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        let unread = Unread::default();
        client.write_all(b"request").await.unwrap();
        assert_eq!(read(&unread, &ours).await, b"request");
        unread.forget(&ours).unwrap();
        unread.forget(&ours).unwrap();
        drop(ours);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn the_end_of_one_that_has_sent_nothing_is_seen() {
        let (client, ours) = UnixStream::pair().unwrap();
        drop(client);
        assert_eq!(read(&Unread::default(), &ours).await, b"");
    }
}
