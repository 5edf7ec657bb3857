//! Stories from records as daemons have written them, shortened to the fields that matter.

use super::cause::Cause;
use super::story::{Story, tell};
use crate::control::protocol::{Daemon, Event, Failure, Next, Phase, Session, State, Status, Step};
use crate::control::time::Timestamp;

/// `HH:MM:SS event words…`: of `state` the state; of `lost`, `failed` … the reason; `@x` is the session, `name=value` a
/// field.
fn record(lines: &str) -> Vec<Event> {
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    let event = |(seq, line): (usize, &str)| {
        let (at, rest) = line.split_once(' ').unwrap();
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let mut event = Event { seq: seq as u64, at: time(at), event: word.into(), ..Event::default() };
        let mut reason = Vec::new();
        for part in rest.split_whitespace() {
            match (part.strip_prefix('@'), part.split_once('=')) {
                (Some(session), _) => event.session = Some(session.into()),
                (None, Some(("ms", value))) => event.duration_ms = Some(value.parse().unwrap()),
                (None, Some((name, value))) => {
                    let value = value.parse::<u64>().map_or_else(|_| value.into(), Into::into);
                    event.fields.insert(name.into(), value);
                }
                _ if word == "state" => {
                    event.fields.insert("state".into(), part.into());
                }
                _ => reason.push(part),
            }
        }
        event.reason = Some(reason.join(" ")).filter(|reason| !reason.is_empty());
        event
    };
    lines.enumerate().map(event).collect()
}

fn time(text: &str) -> Timestamp {
    format!("2026-02-28T{text}Z").parse().unwrap()
}

fn status(state: State, since: &str) -> Status {
    let daemon = Daemon { pid: 7, ..Daemon::default() };
    let region = Some("eu-central-1".into());
    Status {
        name: "db".into(),
        state,
        since: time(since),
        now: time("04:00:00"),
        daemon,
        region,
        ..Status::default()
    }
}

fn up(record_: &str) -> Story {
    tell(&status(State::Up, "03:00:00"), &record(record_))
}

const BEGIN: &str = "00:00:00 begun\n00:00:00 state starting\n00:00:01 ready @s1\n00:00:01 state up\n";

#[test]
fn what_is_wrong_now_comes_first() {
    let denied = "StartSession: AccessDeniedException: User: x is not authorized to perform: ssm:StartSession on \
                  resource: arn:aws:ec2:r:1:instance/i-0abc because";
    let events = record(&format!(
        "{BEGIN}03:52:59 lost @s1 cut=2 Session was terminated by bob\n03:52:59 state starting\n\
         03:53:00 failed class=access {denied}\n03:53:00 state waiting\n03:54:00 held_timed_out clients=12\n"
    ));
    let mut status = status(State::Waiting, "03:53:00");
    status.failure = Some(Failure { at: time("03:53:00"), class: "access".into(), text: denied.into() });
    status.next = Some(Next { at: time("04:00:12"), what: Step::Start, reason: Some(denied.into()) });
    status.connections.held = 3;
    let story = tell(&status, &events);
    assert_eq!(
        story.headline,
        "db is down since 03:52:59 UTC (7m): AWS denies ssm:StartSession on i-0abc; next try in 12s"
    );
    assert_eq!(
        story.began_with.as_deref(),
        Some("03:52:59 UTC: its session was terminated at the service: Session was terminated by bob")
    );
    let clients = &story.clients;
    assert_eq!((clients.held, clients.timed_out, clients.cut), (3, 12, 2));
    let lookup = story.lookup.unwrap();
    assert!(lookup.contains("AttributeValue=StartSession --start-time 2026-02-28T03:47:59Z"), "{lookup}");
    assert!(lookup.contains("--region eu-central-1"), "{lookup}");
}

#[test]
fn what_took_most_of_the_time_is_the_cause_and_what_it_began_with_is_told() {
    let story = up(&format!(
        "{BEGIN}02:00:00 plugin_ended @s1 out of breath\n02:00:00 lost @s1 cut=4 the plugin exited: killed by signal 9\n\
         02:00:00 state starting\n02:00:01 failed class=throttled StartSession: ThrottlingException: Rate exceeded\n\
         02:00:01 state waiting\n02:03:00 started @s2 target=i-0abc\n02:03:01 ready @s2 ms=900\n02:03:01 state up\n\
         02:03:02 held_released clients=5 ms=29000\n"
    ));
    assert_eq!(
        story.headline,
        "db is up; it was last down at 02:00:00 UTC, for 3m: AWS throttled StartSession (too many calls)"
    );
    assert_eq!(story.began_with.as_deref(), Some("02:00:00 UTC: its plugin was killed by signal 9"));
    let clients = &story.clients;
    assert_eq!((clients.released, clients.longest_wait_ms, clients.cut), (5, 29_000, 4));
    assert_eq!(story.did[1], "started session s2 on i-0abc, which was ready after 900 ms");
}

#[test]
fn a_killed_plugin_s_last_words_are_told() {
    let story = up(&format!(
        "{BEGIN}02:00:00 plugin_ended @s1 out of breath\n02:00:00 lost @s1 cut=4 the plugin exited: killed by signal 9\n\
         02:00:00 state starting\n02:00:00 ready @s2\n02:00:00 state up\n"
    ));
    assert_eq!(story.cause, Some(Cause::PluginKilled));
    assert_eq!((story.plugin_said.as_deref(), story.session.as_deref()), (Some("out of breath"), Some("s1")));
}

#[test]
fn the_hourly_close_is_no_downtime_unless_it_lasts() {
    let closes = "01:00:00 interrupted @s1 code 1000: Bye\n01:00:00 state interrupted\n01:00:01 resumed @s1 ms=400\n\
                  01:00:01 state up\n02:00:00 interrupted @s1 code 1000: Bye\n02:00:00 state interrupted\n\
                  02:00:01 resumed @s1 ms=400\n02:00:01 state up\n";
    let story = up(&format!("{BEGIN}{closes}"));
    assert_eq!(
        story.headline,
        "db is up for 1h0m and was never down, as far as its record goes back (00:00:00 UTC)"
    );
    assert!(story.cause.is_none() && story.notes[0].contains("2 times"), "{:?}", story.notes);

    let long = "00:30:00 interrupted @s1 code 1006: reset\n00:30:00 state interrupted\n\
                00:30:01 resume_failed @s1 class=network ResumeSession: dispatch failure: connection refused\n\
                00:31:00 resumed @s1 ms=60000\n00:31:00 state up\n";
    let story = up(&format!("{BEGIN}{long}{closes}"));
    assert_eq!(
        story.headline,
        "db is up; it was last down at 00:30:00 UTC, for 1m: AWS could not be reached: connection refused"
    );
    assert!(story.notes[0].contains("2 times"), "{:?}", story.notes);
}

#[test]
fn a_session_lost_beside_others_is_no_downtime() {
    let story = up(&format!("{BEGIN}02:00:00 lost @s1 cut=1 the plugin hangs: silent\n02:00:01 ready @s3\n"));
    assert_eq!(
        story.headline,
        "db is up and stayed up; at 02:00:00 UTC it lost a session: its plugin hung: silent"
    );
    assert_eq!(story.clients.cut, 1);
}

#[test]
fn a_pool_that_misses_a_session_says_so_and_why() {
    let events = record(&format!("{BEGIN}03:50:00 lost @s1 cut=1 Session was terminated by bob\n"));
    let text = "StartSession: ThrottlingException: Rate exceeded";
    let mut status = status(State::Up, "00:00:01");
    let ready = Session { phase: Phase::Ready, ..Session::default() };
    (status.sessions, status.sessions_wanted) = (vec![ready.clone()], 2);
    status.failure = Some(Failure { at: time("03:59:58"), class: "throttled".into(), text: text.into() });
    status.next = Some(Next { at: time("04:00:12"), what: Step::Start, reason: None });
    status.failed_attempts = 9;
    let story = tell(&status, &events);
    assert_eq!(
        story.headline,
        "db is up, with 1 of 2 sessions: AWS throttles StartSession (too many calls); next try in 12s"
    );
    assert_eq!(story.did, ["9 attempts to have another one failed, the last at 03:59:58 UTC"]);
    assert_eq!((story.cause, story.words.as_deref()), (Some(Cause::Throttled), Some(text)));
    // All are there, and one of them is to be replaced.
    status.sessions.push(ready);
    assert!(tell(&status, &events).headline.contains("stayed up"));
}

#[test]
fn restarts_and_kills_are_told_apart() {
    let stop = "02:00:00 stopping\n02:00:00 state stopping\n02:00:01 state stopped\n02:00:01 stopped\n";
    let again = "02:00:02 begun\n02:00:02 state starting\n02:00:03 ready @s2\n02:00:03 state up\n";
    let story = up(&format!("{BEGIN}{stop}{again}"));
    assert_eq!(story.headline, "db is up; it was last down at 02:00:00 UTC, for 3.0 s: it was stopped");
    let story = up(&format!("{BEGIN}{again}"));
    assert_eq!((story.cause, story.since), (Some(Cause::Killed), Some(time("02:00:02"))));

    let gone = Status { daemon: Daemon::default(), ..status(State::Stopped, "00:00:00") };
    let story = tell(&gone, &record(&format!("{BEGIN}{stop}")));
    assert_eq!(story.headline, "db is not running since 02:00:00 UTC (2h0m): it was stopped");
    let story = tell(&gone, &record(BEGIN));
    assert!(story.headline.starts_with("db is not running: its daemon was killed"), "{}", story.headline);
    let story = tell(&gone, &[]);
    assert_eq!(story.headline, "db is not running, and there is no record that it ever was");
}

#[test]
fn what_keeps_a_daemon_from_starting_is_told_with_what_came_before() {
    let gone = Status { daemon: Daemon::default(), ..status(State::Stopped, "00:00:00") };
    let stop = "02:00:00 stopping\n02:00:00 state stopping\n02:00:01 state stopped\n02:00:01 stopped\n";
    let taken = "02:05:00 bind_failed 127.0.0.1:15432 is in use by nc (pid 7)\n";
    let says = "and cannot be started: 127.0.0.1:15432 is in use by nc (pid 7)";
    let story = tell(&gone, &record(&format!("{BEGIN}{stop}{taken}")));
    assert_eq!(story.headline, format!("db is not running since 02:00:00 UTC (2h0m), {says}"));
    assert!(story.remedy.unwrap().starts_with("End that process or change `listen`"));
    // Killed, and since then two others had the port.
    let other = "02:04:00 bind_failed 127.0.0.1:15432 is in use by python3 (pid 8)\n";
    let story = tell(&gone, &record(&format!("{BEGIN}{other}{taken}")));
    assert_eq!(story.headline, format!("db is not running since 02:04:00 UTC (1h56m), {says}"));
    let begun = "02:06:00 begun\n02:06:00 state starting\n02:06:01 ready @s2\n02:06:01 state up\n";
    let story = up(&format!("{BEGIN}{stop}{taken}{begun}"));
    assert_eq!(story.headline, "db is up; it was last down at 02:00:00 UTC, for 6m: it was stopped");
    let story = up(&format!("{BEGIN}{taken}{begun}"));
    let was = "for 1m: 127.0.0.1:15432 is in use by nc (pid 7)";
    assert_eq!(story.headline, format!("db is up; it was last down at 02:05:00 UTC, {was}"));
    let wrong = "02:05:00 config_invalid config.toml:3:10: unknown key\n02:05:00 config_invalid\n";
    let story = tell(&gone, &record(&format!("{BEGIN}{stop}{wrong}")));
    assert_eq!(
        story.headline,
        "db is not running since 02:00:00 UTC (2h0m), and cannot be started: its configuration cannot be used: \
         config.toml:3:10: unknown key"
    );
}

#[test]
fn a_drill_is_told_as_what_it_was() {
    let story = up(&format!(
        "{BEGIN}02:00:00 requested @s1 command=drill by=alice\n02:00:00 lost @s1 cut=0 the plugin exited: killed by \
         signal 9\n02:00:00 state starting\n02:00:01 ready @s2\n02:00:01 state up\n"
    ));
    assert_eq!(
        story.headline,
        "db is up; it was last down at 02:00:00 UTC, for 1.0 s: a drill, asked for by alice, killed its plugin on purpose"
    );
}
