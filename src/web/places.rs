//! Who is connected, and who has to go when every place is taken: who waits longest for nothing.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// Clients connected at once.
const MOST: usize = 256;
/// A client that takes longer than this for an answer that has an end is let go.
const ANSWER: Duration = Duration::from_secs(60);
/// One that takes longer than this goes when its place is needed.
const SLOW: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Debug, Default)]
pub struct Places {
    inner: Mutex<Inner>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    taken: BTreeMap<u64, Arc<Seat>>,
}

/// A client's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    seat: Arc<Seat>,
}

#[derive(Debug)]
struct Seat {
    standing: Mutex<(Standing, Instant)>,
    leave: Notify,
}

/// What a client is at, since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its next request is waited for, or has begun and goes on and on.
    Asking,
    /// Its answer is being made.
    Waiting,
    /// Its answer is on its way.
    Taking,
    /// It has an answer without an end; those have places of their own.
    Streaming,
}

impl Places {
    /// A place, as soon as there is one. A client that has not asked yet makes room for one that may.
    pub async fn take(self: &Arc<Self>) -> Place {
        loop {
            let freed = self.freed.notified();
            if let Some(place) = self.try_take() {
                return place;
            }
            // Somebody leaves, or becomes slow.
            tokio::select! {
                () = freed => {}
                () = sleep(SLOW / 10) => {}
            }
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let mut inner = self.inner();
        if inner.taken.len() >= MOST {
            let candidates = inner.taken.iter().filter_map(|(number, seat)| Some((seat.may_go()?, *number)));
            let (_, number) = candidates.min()?;
            let seat = inner.taken.remove(&number)?;
            seat.leave.notify_one();
        }
        let number = inner.next;
        inner.next += 1;
        let standing = Mutex::new((Standing::Asking, Instant::now()));
        let seat = Arc::new(Seat { standing, leave: Notify::new() });
        inner.taken.insert(number, seat.clone());
        Some(Place { places: self.clone(), number, seat })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    fn standing(&self) -> MutexGuard<'_, (Standing, Instant)> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who may be sent away, those first who ask nothing and have the longest.
    fn may_go(&self) -> Option<(bool, Instant)> {
        match *self.standing() {
            (Standing::Asking, since) => Some((false, since)),
            (Standing::Taking, since) if since.elapsed() > SLOW => Some((true, since)),
            _ => None,
        }
    }
}

impl Place {
    fn now(&self, standing: Standing) {
        *self.seat.standing() = (standing, Instant::now());
    }

    /// A request has come.
    pub fn asked(&self) {
        self.now(Standing::Waiting);
    }

    /// Its answer goes out from now on; if it is a `stream` it has no end.
    pub fn answered(&self, stream: bool) {
        self.now(if stream { Standing::Streaming } else { Standing::Taking });
    }

    /// Everything has gone out that there was.
    fn flushed(&self) {
        let is_taking = self.seat.standing().0 == Standing::Taking;
        if is_taking {
            self.now(Standing::Asking);
        }
    }

    /// Comes to its end when the client has to go.
    pub async fn over(&self) {
        let late = async {
            loop {
                sleep(ANSWER / 12).await;
                if matches!(*self.seat.standing(), (Standing::Taking, since) if since.elapsed() > ANSWER) {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.seat.leave.notified() => {}
            () = late => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.inner().taken.remove(&self.number);
        self.places.freed.notify_waiters();
    }
}

/// A client's connection that tells its place when an answer has gone out.
pub struct Watched<T> {
    /// The connection.
    pub stream: T,
    /// Whose it is.
    pub place: Arc<Place>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has written all that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.place.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_goes_first_and_nobody_who_waits_for_an_answer() {
        let places = Arc::new(Places::default());
        let mut taken = Vec::new();
        for _ in 0..MOST {
            taken.push(places.take().await);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        taken[0].asked();
        taken[1].asked();
        taken[1].answered(true);
        taken[2].asked();
        taken[2].answered(false);
        let began = Instant::now();
        let _one = places.take().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
        taken[3].over().await;
        // Its answer has gone out: it may ask again, and has begun to wait just now.
        taken[2].flushed();
        let _two = places.take().await;
        taken[4].over().await;
        for place in &taken {
            place.asked();
        }
        _one.asked();
        _two.asked();
        let waiting = tokio::time::timeout(10 * SLOW, places.take()).await;
        assert!(waiting.is_err(), "all of them are being answered");
        // Somebody takes its answer slowly.
        taken[9].answered(false);
        let began = Instant::now();
        let _three = places.take().await;
        assert!(began.elapsed() <= 2 * SLOW, "{:?}", began.elapsed());
        taken[9].over().await;
        assert_eq!(places.inner().taken.len(), MOST);
        drop(taken);
        assert_eq!(places.inner().taken.len(), 3);
    }
}
