//! `autossm web`: metrics, health, events and a page, of all tunnels of a host.
//!
//! ```text
//! control sockets ──► watcher ──► board ──► answers: /metrics, /readyz/NAME, /api/…
//!  (one task each)                  └─────► streams: /api/events, /api/live (the page's)
//! ```
//! A process of its own: it asks the control sockets, and can fail without harming a tunnel. It only
//! ever shows: there is no request that changes anything.

mod answers;
pub mod board;
mod expected;
pub mod exposition;
mod guard;
mod page;
mod places;
mod streams;
pub mod timeline;
mod watcher;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tracing::{debug, warn};

use self::answers::Site;
use self::board::Board;
pub use self::expected::UNITS;
use self::places::{Place, Places, Watched};
use self::streams::Endless;

/// Streams open at once: they stay, and must leave room for Prometheus.
const MAX_STREAMS: usize = 128;
/// For a request's head, and between two requests.
const HEAD: Duration = Duration::from_secs(15);
/// The largest head.
const MAX_HEAD: usize = 16 * 1024;
/// A client that takes nothing for so long is let go, in milliseconds.
const UNREAD: u32 = 30_000;
/// After a client could not be accepted (no file descriptor left): until the next try.
const AGAIN: Duration = Duration::from_millis(200);

/// What the server is to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where control sockets are looked for.
    pub directories: Vec<PathBuf>,
    /// Where units of systemd's say which tunnels are to run; none: those are watched that are there.
    pub units: Vec<PathBuf>,
    /// Names under which the server may be asked, beside addresses, `localhost` and the host's own name.
    pub hosts: Vec<String>,
    /// What the host is called on the page, if not by its own name.
    pub title: Option<String>,
}

/// Serves until the listener cannot be used any more, which is never.
pub async fn serve(listener: TcpListener, settings: Settings) {
    let board = Arc::new(Board::default());
    let watching = watcher::watch(board.clone(), settings.directories.clone(), settings.units.clone());
    let site = Arc::new(Site::new(board.clone(), settings, MAX_STREAMS));
    tokio::select! {
        () = watching => {}
        () = board.publish() => {}
        () = accept(listener, site) => {}
    }
}

async fn accept(listener: TcpListener, site: Arc<Site>) {
    let places = Arc::new(Places::default());
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                // The next ones wait in the kernel's queue.
                let place = places.take().await;
                tokio::spawn(connection(stream, from, place, site.clone()));
            }
            Err(error) => {
                warn!(event = "accept_failed", reason = %error, "a client could not be accepted: {error}");
                sleep(AGAIN).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, from: SocketAddr, place: Place, site: Arc<Site>) {
    // Small answers at once; and the kernel lets go of those who never read.
    let set = stream.set_nodelay(true).and_then(|()| Ok(setsockopt(&stream, TcpUserTimeout, &UNREAD)?));
    if let Err(error) = set {
        debug!(%from, %error, "a socket option could not be set");
    }
    if let Err(error) = answer(stream, place, &site).await {
        debug!(%from, %error, "a connection has ended");
    }
}

/// Answers a client's requests until it, or its time, is over.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    place: Place,
    site: &Arc<Site>,
) -> hyper::Result<()> {
    let place = Arc::new(place);
    let service = service_fn(async |request| {
        place.asked();
        let response = site.answer(&request).await;
        place.answered(response.extensions().get::<Endless>().is_some());
        Ok::<_, Infallible>(response)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Watched { stream, place: place.clone() }), service);
    tokio::select! {
        served = serving => served,
        () = place.over() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    /// Each byte is progress to the kernel.
    #[tokio::test(start_paused = true)]
    async fn who_takes_an_answer_byte_by_byte_is_let_go() {
        let settings =
            Settings { directories: Vec::new(), units: Vec::new(), hosts: Vec::new(), title: None };
        let site = Arc::new(Site::new(Arc::default(), settings, 1));
        let places = Arc::new(Places::default());
        let (mut client, stream) = tokio::io::duplex(256);
        let place = places.take().await;
        let answering = tokio::spawn(async move { answer(stream, place, &site).await });
        let request = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.write_all(request).await.unwrap();
        let began = Instant::now();
        while client.read_u8().await.is_ok() {
            sleep(Duration::from_secs(1)).await;
            assert!(began.elapsed() < Duration::from_secs(400), "it goes on and on");
        }
        answering.await.unwrap().unwrap();
        assert!(began.elapsed() > Duration::from_secs(60));
    }
}
