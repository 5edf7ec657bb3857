//! A port session: the local port, its clients, and the mux stream on its way into data channel messages.
//!
//! The mux runs over a Unix socket of the program with itself, because the borders of its reads are what is seen on the
//! wire: up to 1024 bytes of whatever frames lie there, so that a single last byte may be left for a message of its own.

use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::channel::{Consumer, DataChannel};
use super::console::{Level, log, print};
use super::mux::{Mux, Stream};
use super::{dial, stdio};
use crate::wire::message::{flag, payload};
use crate::wire::mux::MAX_FRAME;

/// The data of one message to the agent.
const MESSAGE: usize = 1024;
/// The stock plugin sleeps 1 ms after each message. This runtime's timer counts whole milliseconds and rounds up, so
/// that half of one ends at the next count: one message a millisecond.
const PAUSE: Duration = Duration::from_micros(500);

/// Runs the session until it fails.
///
/// # Errors
/// Why it ended; in words.
pub async fn run(channel: &Arc<DataChannel>) -> Result<(), String> {
    let properties = channel.handshake().properties.clone();
    let property = |name: &str| properties.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if property("type") != "LocalPortForwarding" {
        // The destination is not to be reached over a port: stdin and stdout are its ends.
        set_consumer(channel, Consumer::Stdout);
        return match stdio::forward(channel).await {
            Err(error) if error == stdio::END => Ok(()),
            result => result,
        };
    }
    handle_signals(channel)?;
    let file = socket_file(&channel.session, &std::env::temp_dir());
    let opening = |error| format!("listen unix {}: {}", file.display(), dial::words(&error));
    let listener = UnixListener::bind(&file).map_err(opening)?;
    drop(channel.socket_file.set(file.clone()));
    let ours = UnixStream::connect(&file).await.map_err(opening)?;
    let (theirs, _) = listener.accept().await.map_err(opening)?;
    let mux = Mux::start(ours);
    let (from_mux, to_mux) = theirs.into_split();
    set_consumer(channel, Consumer::Mux(Mutex::new(to_mux)));

    let (failed, failure) = watch::channel(None);
    let sending = tokio::spawn(send(channel.clone(), from_mux, failed));
    let error = match listen(&channel.session, &property("localPortNumber")).await {
        Ok(listener) => accept(&channel.session, &mux, &listener, &failure).await,
        Err(error) => error,
    };
    // That the port could not be opened is told only when the sending has ended too: never.
    drop(sending.await);
    Err(error)
}

/// Where the mux socket lies. It is left behind when the plugin is killed.
fn socket_file(session: &str, directory: &Path) -> PathBuf {
    let mut hash = Fnv(0x811c_9dc5);
    hash.write(session.as_bytes());
    directory.join(format!("{}_session_manager_plugin_mux.sock", hash.finish()))
}

/// FNV-1a, 32 bits.
struct Fnv(u32);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }

    fn finish(&self) -> u64 {
        self.0.into()
    }
}

/// The first one stays; there is only one session.
fn set_consumer(channel: &DataChannel, consumer: Consumer) {
    drop(channel.consumer.set(consumer));
}

/// SIGINT, SIGQUIT and SIGTSTP end the session in an orderly way. SIGTERM is left to kill.
fn handle_signals(channel: &Arc<DataChannel>) -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|error| dial::words(&error));
    let stop = SignalKind::from_raw(nix::sys::signal::Signal::SIGTSTP as i32);
    let mut signals = [listen(SignalKind::interrupt())?, listen(SignalKind::quit())?, listen(stop)?];
    let channel = channel.clone();
    tokio::spawn(async move {
        let [interrupt, quit, stop] = signals.each_mut().map(Signal::recv);
        tokio::select! { _ = interrupt => {} _ = quit => {} _ = stop => {} }
        print("Terminate signal received, exiting.\n");
        if let Err(error) = channel.send_flag(flag::TERMINATE_SESSION).await {
            log(Level::Error, &format!("Failed to send TerminateSession flag: {error}"));
        }
        print(&format!("\n\nExiting session with sessionId: {}.\n\n", channel.session));
        channel.stop().await;
    });
    Ok(())
}

/// Cuts what the mux sends into messages. One that cannot be sent ends the sending for good: every client hangs then,
/// and the plugin ends when the next one comes.
async fn send(channel: Arc<DataChannel>, mut mux: OwnedReadHalf, failed: watch::Sender<Option<String>>) {
    let mut data = [0; MESSAGE];
    let error = loop {
        let length = match mux.read(&mut data).await {
            Ok(0) => break "EOF".into(),
            Ok(length) => length,
            Err(error) => break dial::words(&error),
        };
        if let Err(error) = channel.send_input(payload::DATA, Bytes::copy_from_slice(&data[..length])).await {
            log(Level::Error, &format!("Failed to send packet on data channel: {error}"));
            break error;
        }
        tokio::time::sleep(PAUSE).await;
    };
    failed.send_replace(Some(error));
}

/// Opens the local port and tells which.
async fn listen(session: &str, port: &str) -> Result<TcpListener, String> {
    let port = if port.is_empty() { "0" } else { port };
    let opening = |error| format!("listen tcp 127.0.0.1:{port}: bind: {}", dial::words(&error));
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.map_err(opening)?;
    let port = listener.local_addr().map_err(opening)?.port();
    let opened = format!("Port {port} opened for sessionId {session}.");
    log(Level::Info, &opened);
    // No line feed here: a log line that comes next is glued to it.
    print(&opened);
    log(Level::Info, "Waiting for connections...\n");
    print("\nWaiting for connections...\n");
    Ok(listener)
}

/// Accepts clients until one comes after the sending has failed; returns the error that is told then.
async fn accept(
    session: &str,
    mux: &Arc<Mux>,
    listener: &TcpListener,
    failure: &watch::Receiver<Option<String>>,
) -> String {
    let mut first = true;
    while failure.borrow().is_none() {
        let (client, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                log(Level::Error, &format!("Error while accepting connection: {error}"));
                // Tried again at once, as long as it fails.
                tokio::task::yield_now().await;
                continue;
            }
        };
        log(Level::Info, &format!("Connection accepted from {address}\n for session [{session}]"));
        if std::mem::take(&mut first) {
            print(&format!("\nConnection accepted for session [{session}]\n"));
        }
        let stream = mux.open().await;
        tokio::spawn(serve(mux.clone(), stream, client));
    }
    failure.borrow().clone().unwrap_or_default()
}

/// Carries one client's bytes both ways. An end on either side closes both ways: there is no half-closing.
async fn serve(mux: Arc<Mux>, stream: Arc<Stream>, client: TcpStream) {
    // Go's default. A failure only makes it slower.
    drop(client.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let client_closed = CancellationToken::new();
    let upward = async {
        let mut data = vec![0; MAX_FRAME];
        let mut number = 0;
        loop {
            let read = tokio::select! {
                biased;
                () = client_closed.cancelled() => break,
                read = from_client.read(&mut data) => read,
            };
            let Ok(length @ 1..) = read else {
                break;
            };
            mux.send(&stream, &data[..length], number).await;
            number = number.wrapping_add(1);
        }
        // Closed as a whole, before the stream: bytes that lie in it unread are answered with a reset.
        drop(from_client);
        mux.close(&stream).await;
    };
    let downward = async {
        while let Some(data) = mux.receive(&stream).await {
            let written = to_client.write_all(&data).await;
            mux.taken(data.len());
            if written.is_err() {
                break;
            }
        }
        to_client.forget();
        client_closed.cancel();
    };
    tokio::join!(upward, downward);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_named_after_the_sessions_hash() {
        // FNV-1a's published values for the empty text and for "foobar".
        for (session, hash) in [("", 0x811c_9dc5_u32), ("foobar", 0xbf9c_f968)] {
            let file = socket_file(session, Path::new("/private"));
            assert_eq!(file, Path::new(&format!("/private/{hash}_session_manager_plugin_mux.sock")));
        }
    }

    /// Once the sending has failed, the session lives on until one client more has come.
    #[tokio::test]
    async fn the_accepting_ends_with_the_first_client_after_a_failure() {
        let (ours, _agent) = UnixStream::pair().unwrap();
        let mux = Mux::start(ours);
        let listener = listen("s-1", "0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (failed, failure) = watch::channel(None);
        let accepting = tokio::spawn(async move { accept("s-1", &mux, &listener, &failure).await });
        let _first = TcpStream::connect(address).await.unwrap();
        failed.send_replace(Some("broken".to_owned()));
        // Whether the first client was accepted before the failure or after it: the second one ends it.
        let _second = TcpStream::connect(address).await;
        assert_eq!(accepting.await.unwrap(), "broken");
    }
}
