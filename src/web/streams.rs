//! Answers that do not end: server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::answers::{Answer, Site, plain};
use super::board::{Arrived, Followed, View, message};
use crate::control::time::Timestamp;

/// A stream says something at least so often: that it is alive, and what time it is.
const ALIVE: Duration = Duration::from_secs(5);
/// A client that comes without a number gets what happens from now on; clocks and queues are given this much.
const NOW: Duration = Duration::from_secs(2);

/// Marks an answer without an end.
#[derive(Clone, Copy, Debug)]
pub struct Endless;

/// `/api/live`: the page's own. First everything, then what changes.
pub fn live(site: &Arc<Site>) -> Response<Answer> {
    struct Live {
        site: Arc<Site>,
        view: View,
        alive: Interval,
        _place: OwnedSemaphorePermit,
    }
    let Ok(place) = site.streams.clone().try_acquire_owned() else { return busy() };
    let view = site.board.view(&site.about);
    let live = Live { site: site.clone(), view, alive: alive(), _place: place };
    answer(stream::unfold(live, async |mut live| {
        loop {
            let next = tokio::select! {
                biased;
                // First of all what time it is.
                _ = live.alive.tick() => message("alive", &json!({ "now": Timestamp::now().millis() })),
                change = live.view.next() => match change {
                    Ok(change) => change,
                    Err(RecvError::Lagged(_)) => {
                        // It reads too slowly: everything, as it is now.
                        live.view = live.site.board.view(&live.site.about);
                        continue;
                    }
                    Err(RecvError::Closed) => return None,
                },
            };
            return Some((next, live));
        }
    }))
}

/// `/api/events` as a stream: events as they come, of one tunnel or of all. A client that comes back with the number of
/// the last one that it has seen gets what came after it.
pub fn events(site: &Arc<Site>, tunnel: Option<String>, back: &str) -> Response<Answer> {
    struct Following {
        tunnel: Option<String>,
        followed: Followed,
        instance: Timestamp,
        alive: Interval,
        _place: OwnedSemaphorePermit,
    }
    let Ok(place) = site.streams.clone().try_acquire_owned() else { return busy() };
    let instance = site.instance;
    let from = From::new(back, instance);
    let followed = site.board.follow(tunnel.as_deref(), |arrived| from.admits(arrived));
    let following = Following { tunnel, followed, instance, alive: alive(), _place: place };
    let messages = stream::unfold(following, async |mut following| {
        loop {
            if std::mem::take(&mut following.followed.missed) {
                return Some((message("missed", &json!({ "events": null })), following));
            }
            let arrived = match following.followed.here.pop_front() {
                Some(arrived) => arrived,
                None => tokio::select! {
                    arrived = following.followed.coming.recv() => match arrived {
                        Ok(arrived) => arrived,
                        Err(RecvError::Lagged(events)) => {
                            return Some((message("missed", &json!({ "events": events })), following));
                        }
                        Err(RecvError::Closed) => return None,
                    },
                    _ = following.alive.tick() => return Some((Bytes::from_static(b": alive\n\n"), following)),
                },
            };
            let wanted = following.tunnel.as_ref().is_none_or(|name| *name == arrived.event.tunnel);
            if wanted {
                let id = format!(
                    "id: {}-{}-{}\n",
                    following.instance.millis(),
                    arrived.number,
                    arrived.event.at.millis()
                );
                let text = [id.as_bytes(), &message("event", &*arrived.event)].concat();
                return Some((text.into(), following));
            }
        }
    });
    answer(messages)
}

/// Where a client's stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// After the event of this number.
    Number(u64),
    /// From this moment on: numbers of another process say nothing here. Events of that very moment come twice.
    Moment(Timestamp),
}

impl From {
    fn new(last_event_id: &str, instance: Timestamp) -> Self {
        let mut numbers = last_event_id.split('-').map(|number| number.parse::<u64>().ok());
        match (numbers.next().flatten(), numbers.next().flatten(), numbers.next().flatten(), numbers.next()) {
            (Some(of), Some(number), Some(_), None) if of == instance.millis() => Self::Number(number),
            (Some(_), Some(_), Some(at), None) => Self::Moment(Timestamp::from_millis(at)),
            _ => Self::Moment(Timestamp::now().before(NOW)),
        }
    }

    fn admits(self, arrived: &Arrived) -> bool {
        match self {
            Self::Number(number) => arrived.number > number,
            Self::Moment(moment) => arrived.event.at >= moment,
        }
    }
}

fn alive() -> Interval {
    let mut interval = interval(ALIVE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

fn answer(messages: impl stream::Stream<Item = Bytes> + Send + 'static) -> Response<Answer> {
    let frames = futures_util::StreamExt::map(messages, |bytes| Ok(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.extensions_mut().insert(Endless);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // nginx would collect it first.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

fn busy() -> Response<Answer> {
    let text = "Too many streams are open: close a page that nobody looks at.\n";
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Event;

    #[test]
    fn a_client_goes_on_where_it_was() {
        let instance = Timestamp::from_millis(5000);
        let arrived = |number, at| {
            let event = Event { at: Timestamp::from_millis(at), ..Event::default() };
            Arrived { number, event: Arc::new(event) }
        };
        let same = From::new("5000-7-99", instance);
        assert!(!same.admits(&arrived(7, 100)) && same.admits(&arrived(8, 98)));
        let other = From::new("4000-7-99", instance);
        assert!(!other.admits(&arrived(9, 98)) && other.admits(&arrived(0, 99)));
        let now = Timestamp::now().millis();
        for nonsense in ["", "x", "5000-7", "5000-7-99-1", "-1--"] {
            let new = From::new(nonsense, instance);
            assert!(!new.admits(&arrived(9, now - 60_000)) && new.admits(&arrived(9, now)), "{nonsense}");
        }
    }
}
