//! Days as they are drawn: calm ones, outages, stops and crashes, and one that flaps.

use super::*;
use serde_json::json;

fn draw<'a>(
    events: impl IntoIterator<Item = &'a Event>,
    present: Option<&Present>,
    now: Timestamp,
) -> Timeline {
    let mut past = Past::default();
    events.into_iter().for_each(|event| past.take(event));
    past.draw(present, now)
}

const HOUR: u64 = 3_600_000;
/// Some afternoon.
const NOW: u64 = 1_790_000_000_000;

fn at(hours_ago: u64) -> Timestamp {
    Timestamp::from_millis(NOW - hours_ago * HOUR)
}

fn event(at: Timestamp, event: &str) -> Event {
    Event { at, event: event.into(), message: format!("it says {event}"), ..Event::default() }
}

fn turned(at: Timestamp, was: &str, state: &str, after_ms: u64) -> Event {
    let fields = [("state".to_owned(), json!(state)), ("was".to_owned(), json!(was))].into();
    Event { fields, duration_ms: Some(after_ms), ..event(at, "state") }
}

fn present(state: State, since: Timestamp) -> Present {
    Present { state: Some(state), since }
}

fn kinds(timeline: &Timeline) -> Vec<(Kind, u64)> {
    timeline.spans.iter().map(|span| (span.kind, (NOW - span.at.millis()) / HOUR)).collect()
}

fn now() -> Timestamp {
    Timestamp::from_millis(NOW)
}

#[test]
fn a_tunnel_without_a_record_is_as_it_is_now() {
    assert_eq!(kinds(&draw([], None, now())), [(Kind::Unknown, 24)]);
    let up = draw([], Some(&present(State::Up, at(200))), now());
    assert_eq!(kinds(&up), [(Kind::Up, 24)]);
    let young = draw([], Some(&present(State::Up, at(3))), now());
    assert_eq!(kinds(&young), [(Kind::Unknown, 24), (Kind::Up, 3)]);
}

#[test]
fn an_hourly_close_is_a_mark_with_its_cause_and_length() {
    let session = Some("s-1".to_owned());
    let close = at(5);
    let open = close.after(Duration::from_millis(1240));
    let events = [
        Event { session: session.clone(), reason: Some("1000 Bye".into()), ..event(close, "interrupted") },
        turned(close, "up", "interrupted", 900 * HOUR),
        Event { session, duration_ms: Some(1240), ..event(open, "resumed") },
        turned(open, "interrupted", "up", 1240),
    ];
    let drawn = draw(&events, Some(&present(State::Up, open)), now());
    assert_eq!(kinds(&drawn), [(Kind::Up, 24)], "an hourly close is no outage");
    let [mark] = &drawn.marks[..] else { panic!("{:?}", drawn.marks) };
    assert_eq!((mark.at, mark.lasted_ms, mark.sort), (close, 1240, Sort::Resumed));
    assert_eq!(mark.text, "Data channel closed (1000 Bye), open again after 1.2 s");
    assert_eq!(serde_json::to_value(mark).unwrap(), json!([close.millis(), 1240, "resumed", mark.text]));
    assert_eq!(serde_json::to_value(&drawn.spans[0]).unwrap(), json!([NOW - 24 * HOUR, "up", ""]));
}

#[test]
fn an_interruption_that_lasts_is_a_span() {
    let long = Duration::from_secs(40);
    let events =
        [turned(at(5), "up", "interrupted", HOUR), turned(at(5).after(long), "interrupted", "up", 40_000)];
    let drawn = draw(&events, None, now());
    let kinds: Vec<_> = drawn.spans.iter().map(|span| span.kind).collect();
    assert_eq!(kinds, [Kind::Unknown, Kind::Up, Kind::Interrupted, Kind::Up]);
    // One that has just begun is to be seen at once.
    let begun = draw(&events[..1], Some(&present(State::Interrupted, at(5))), at(5).after(CALM / 5));
    assert_eq!(begun.spans.last().unwrap().kind, Kind::Interrupted);
}

#[test]
fn attempts_and_pauses_are_one_outage() {
    let mut events = vec![turned(at(10), "up", "starting", HOUR)];
    for n in 0..10 {
        let then = at(10).after(Duration::from_secs(1 + 4 * n));
        events.push(turned(then, "starting", "waiting", 1000));
        events.push(turned(then.after(Duration::from_secs(2)), "waiting", "starting", 2000));
    }
    events.push(turned(at(9), "starting", "up", 1000));
    let drawn = draw(&events, None, now());
    let kinds: Vec<_> = drawn.spans.iter().map(|span| span.kind).collect();
    // The hour before the first event is known from it.
    assert_eq!(kinds, [Kind::Unknown, Kind::Up, Kind::Interrupted, Kind::Down, Kind::Up]);
}

#[test]
fn a_stop_and_a_start_are_told_and_a_crash_is_told_as_one() {
    let orderly = [
        turned(at(8), "up", "stopping", 900 * HOUR),
        turned(at(8).after(Duration::from_secs(1)), "stopping", "stopped", 1000),
        event(at(6), "begun"),
        turned(at(6).after(Duration::from_secs(2)), "starting", "up", 2000),
    ];
    let drawn = draw(&orderly, None, now());
    let told: Vec<_> = drawn.spans.iter().map(|span| (span.kind, span.text.as_str())).collect();
    assert_eq!(told, [(Kind::Up, ""), (Kind::Down, "stopped"), (Kind::Up, "")]);
    assert_eq!(drawn.marks[0].sort, Sort::Changed);

    let first = [event(at(6), "begun"), turned(at(6).after(CALM / 5), "starting", "up", 1000)];
    assert_eq!(kinds(&draw(&first, None, now())), [(Kind::Unknown, 24), (Kind::Up, 6)]);

    let crash = [turned(at(9), "starting", "up", 1000), event(at(6), "begun")];
    assert_eq!(draw(&crash, None, now()).marks[0].sort, Sort::Lost);
}

#[test]
fn a_daemon_that_does_not_answer_is_down_since_then() {
    let events = [turned(at(9), "starting", "up", 1000)];
    let gone = Present { state: None, since: at(1) };
    let drawn = draw(&events, Some(&gone), now());
    assert_eq!(drawn.spans.last().map(|span| (span.kind, span.at)), Some((Kind::Down, at(1))));
}

#[test]
fn what_an_event_has_told_is_not_told_twice() {
    let turn = at(2);
    let events = [turned(turn, "up", "waiting", HOUR)];
    // The status is a millisecond older or younger than the event.
    for since in [turn, turn.before(Duration::from_millis(1)), turn.after(Duration::from_millis(1))] {
        let drawn = draw(&events, Some(&present(State::Waiting, since)), now());
        assert_eq!(drawn.spans.iter().filter(|span| span.kind == Kind::Down).count(), 1);
    }
}

#[test]
fn a_tunnel_that_flaps_all_day_stays_small_and_its_worst_is_seen() {
    let mut events = Vec::new();
    for n in 0..20_000 {
        let then = at(23).after(Duration::from_secs(4 * n));
        events.push(turned(then, "up", "waiting", 2000));
        events.push(turned(then.after(Duration::from_secs(2)), "waiting", "up", 2000));
        events.push(event(then, "lost"));
    }
    // Then it was well.
    let drawn = draw(&events, None, now());
    assert!(drawn.spans.len() <= 2 * 290 && drawn.marks.len() <= MOST, "{}", drawn.spans.len());
    let down = drawn.spans.iter().filter(|span| span.kind == Kind::Down);
    assert!(down.count() > 250);
    assert!(drawn.marks.last().unwrap().at > at(1));
    let last = drawn.spans.last().unwrap();
    assert_eq!((last.kind, last.at), (Kind::Up, events[events.len() - 2].at), "not its worst until now");
}

#[test]
fn what_has_been_drawn_stays_small_for_ever() {
    let mut past = Past::default();
    for n in 0..200_000 {
        let then = at(9000).after(Duration::from_secs(120 * n));
        past.take(&turned(then, "up", "waiting", 2000));
        past.take(&turned(then.after(Duration::from_secs(60)), "waiting", "up", 2000));
        past.take(&event(then, "lost"));
        past.take(&Event { session: Some(format!("s-{n}")), ..event(then, "interrupted") });
    }
    assert!(past.spans.len() <= 2 * MOST && past.marks.len() <= 2 * MOST && past.closed.len() <= MOST);
    assert!(past.spans.iter().any(|span| span.kind == Kind::Down));
}

#[test]
fn what_is_older_than_a_day_only_tells_the_beginning() {
    let old = at(30);
    let events = [turned(old, "starting", "up", 1000), event(old, "lost")];
    let drawn = draw(&events, None, now());
    assert_eq!(kinds(&drawn), [(Kind::Up, 24)]);
    assert_eq!(drawn.marks, []);
}
