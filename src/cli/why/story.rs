//! Why a tunnel is down, or was, from its status and its events. It asks nobody, and knows no time but theirs.

use std::time::Duration;

use serde::Serialize;

use super::cause::Cause;
use super::incident::{Incident, Obstacle, field, incidents, number};
use crate::cli::events::is_told;
use crate::cli::paint::{age, took};
use crate::cli::table::next_step;
use crate::control::protocol::{Event, Phase, State, Status};
use crate::control::time::Timestamp;

/// Events shown from an incident's beginning, and from its end.
pub const SHOWN: (usize, usize) = (4, 8);
/// CloudTrail is searched so long before and after.
const AROUND: Duration = Duration::from_secs(5 * 60);

/// The answer, and what it rests on.
#[derive(Debug, Default, Serialize)]
pub struct Story {
    /// The tunnel.
    pub name: String,
    /// What clients meet now.
    pub state: State,
    /// The answer in one sentence.
    pub headline: String,
    /// Why; none: it was never down.
    pub cause: Option<Cause>,
    /// In the words of whoever refused, in full.
    pub words: Option<String>,
    /// Since when it was or is down.
    pub since: Option<Timestamp>,
    /// Until when.
    pub until: Option<Timestamp>,
    /// What it had begun with, where that was something else.
    pub began_with: Option<String>,
    /// The plugin's last words.
    pub plugin_said: Option<String>,
    /// What became of the clients.
    pub clients: Clients,
    /// What autossm did about it.
    pub did: Vec<String>,
    /// What happens next.
    pub next: Option<String>,
    /// What the operator can do.
    pub remedy: Option<String>,
    /// The session that it is about, as the console and CloudTrail show it.
    pub session: Option<String>,
    /// How to ask CloudTrail about it.
    pub lookup: Option<String>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// The first and the last of the incident's events.
    pub events: Vec<Event>,
    /// So many between them are left out.
    pub events_left_out: usize,
}

/// What became of an incident's clients.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Clients {
    /// Wait now.
    pub held: u64,
    /// Have waited and were served.
    pub released: u64,
    /// The longest wait of one of those.
    pub longest_wait_ms: u64,
    /// Have waited for `hold` and were closed.
    pub timed_out: u64,
    /// Were cut in the middle.
    pub cut: u64,
}

/// Tells it. `status`: of a tunnel that runs, or one of state [`State::Stopped`] for one that does not.
pub fn tell(status: &Status, events: &[Event]) -> Story {
    let (incidents, everyday) = incidents(events);
    let runs = status.daemon.pid != 0;
    let mut story = Story { name: status.name.clone(), state: status.state, ..Story::default() };
    match incidents.last() {
        Some(incident) if !runs => not_running(&mut story, status, incident, events),
        None if !runs => unrecorded(&mut story, status, events),
        _ if status.state == State::Up || runs && status.state == State::Unknown => {
            up(&mut story, status, incidents.last(), events);
        }
        last => down(&mut story, status, last),
    }
    if everyday > 0 {
        let times = if everyday == 1 { "once".to_owned() } else { format!("{everyday} times") };
        story.notes.push(format!(
            "since then its data channel was closed {times}, as the service does every hour, and was back within \
             seconds; no connection was lost by that"
        ));
    }
    story
}

/// It serves. What was the last time that it did not?
fn up(story: &mut Story, status: &Status, last: Option<&Incident<'_>>, events: &[Event]) {
    let name = &status.name;
    let ready = status.sessions.iter().filter(|session| session.phase == Phase::Ready).count() as u64;
    let wanted = status.sessions_wanted;
    if let Some(missing) = now(status).filter(|_| ready < wanted) {
        describe(story, status, Some(&missing), missing.at, None);
        story.next = next_step(status);
        let next = story.next.as_ref().map(|next| format!("; {next}")).unwrap_or_default();
        let why = clause(&missing, false);
        story.headline = format!("{name} is up, with {ready} of {wanted} sessions: {why}{next}");
        if status.failed_attempts > 1 {
            let at = clock(missing.at, status.now);
            let count = status.failed_attempts;
            story.did.push(format!("{count} attempts to have another one failed, the last at {at}"));
        }
        if let Some(incident) = last.filter(|incident| !incident.served) {
            story.notes.push(format!("it was last down at {}", clock(incident.began, status.now)));
        }
        return;
    }
    let Some(incident) = last else {
        let record = events.first().map_or_else(String::new, |first| {
            format!(", as far as its record goes back ({})", clock(first.at, status.now))
        });
        story.headline =
            format!("{name} is up for {} and was never down{record}", age(status.now.since(status.since)));
        story.notes.extend(refused(events));
        return;
    };
    let main = tell_incident(story, status, incident, incident.main().cloned());
    let why = main.map_or_else(|| Cause::Unknown.clause("", "", true), |main| clause(&main, true));
    let (from, until) = (incident.began, incident.ended.unwrap_or(status.now));
    let when = clock(from, status.now);
    let lasted = took(u64::try_from(until.since(from).as_millis()).unwrap_or(u64::MAX));
    story.headline = match incident.served {
        true if until == from => format!("{name} is up and stayed up; at {when} it lost a session: {why}"),
        true => format!("{name} is up; its destination was last down at {when}, for {lasted}: {why}"),
        false => format!("{name} is up; it was last down at {when}, for {lasted}: {why}"),
    };
    let after = events.iter().filter(|event| event.at > until).cloned().collect::<Vec<_>>();
    story.notes.extend(refused(&after));
}

/// Connections that the destination did not take, too few to call it down.
fn refused(events: &[Event]) -> Option<String> {
    let refused = || events.iter().filter(|event| event.event == "destination_failed");
    let last = refused().next_back()?;
    let count: u64 = refused().map(|event| 1 + number(event, "repeated")).sum();
    Some(format!(
        "the target's agent could not reach the destination for {count} connections of clients, the last at {}",
        last.at
    ))
}

/// It runs and does not serve, or its destination is down.
fn down(story: &mut Story, status: &Status, last: Option<&Incident<'_>>) {
    let name = &status.name;
    let lasting = last.filter(|incident| incident.ended.is_none());
    let main = now(status).or_else(|| lasting?.main().cloned());
    let since = lasting.map_or(status.since, |incident| incident.began);
    let main = match lasting {
        Some(incident) => tell_incident(story, status, incident, main),
        None => {
            describe(story, status, main.as_ref(), since, None);
            main
        }
    };
    story.since = Some(since);
    let lasts = format!("since {} ({})", clock(since, status.now), age(status.now.since(since)));
    let why = main.as_ref().map(|main| clause(main, false));
    let next = next_step(status).map(|next| format!("; {next}")).unwrap_or_default();
    story.next = next_step(status);
    story.clients.held = status.connections.held;
    story.headline = match (status.state, why) {
        (State::Degraded, Some(why)) => {
            format!("{name} is up, but its destination is down {lasts}: {why}")
        }
        (State::Draining, why) => format!(
            "{name} holds its clients {lasts}: {}; until: autossm resume {name}",
            why.unwrap_or_else(|| "it was drained".to_owned())
        ),
        (State::Stopping, _) => format!("{name} is being stopped {lasts}"),
        (State::Starting, None) => format!("{name} is starting {lasts}; nothing has failed yet"),
        (_, why) => {
            let why = why.unwrap_or_else(|| Cause::Unknown.clause("", "", false));
            format!("{name} is down {lasts}: {why}{next}")
        }
    };
}

/// What keeps a tunnel that runs from serving, and that in a clause.
pub fn hindrance(status: &Status) -> Option<(Cause, String)> {
    now(status).map(|obstacle| (obstacle.cause, clause(&obstacle, false)))
}

/// What stands in the way at this moment, as the daemon has it.
fn now(status: &Status) -> Option<Obstacle> {
    let interruption = status.sessions.iter().find(|session| session.interruption.is_some());
    let session = interruption.and_then(|session| session.id.clone());
    let interruption = interruption.and_then(|session| session.interruption.as_ref());
    let obstacle = |at, cause, words: &str| {
        let (words, by, session) = (words.to_owned(), String::new(), session.clone());
        Some(Obstacle { at, cause, words, by, session })
    };
    match status.state {
        State::Degraded => {
            let found = status.destination.as_ref()?;
            obstacle(found.since, Cause::Destination, found.reason.as_deref().unwrap_or_default())
        }
        State::Starting | State::Waiting | State::Interrupted => {
            let failure = interruption.and_then(|down| down.failure.as_ref());
            let failure = status.failure.as_ref().or(failure);
            if let Some(failure) = failure {
                return obstacle(failure.at, Cause::of_failure(&failure.class, &failure.text), &failure.text);
            }
            let down = interruption?;
            obstacle(down.since, Cause::of_interruption(down.cause, &down.reason), &down.reason)
        }
        // Others serve in its place.
        State::Up => {
            let failure = status.failure.as_ref()?;
            obstacle(failure.at, Cause::of_failure(&failure.class, &failure.text), &failure.text)
        }
        _ => None,
    }
}

/// No daemon runs it: the record says what was last.
fn not_running(story: &mut Story, status: &Status, last: &Incident<'_>, events: &[Event]) {
    let name = &status.name;
    let stopped = last.obstacles.iter().rfind(|obstacle| obstacle.cause == Cause::Stopped);
    let refused = |obstacle: &&Obstacle| matches!(obstacle.cause, Cause::Address | Cause::Invalid);
    if last.ended.is_none()
        && let Some(refused) = last.obstacles.last().filter(refused)
    {
        // The first of those that follow one another.
        let first = last.obstacles.iter().rev().take_while(|obstacle| obstacle.cause == refused.cause).last();
        let since = stopped.or(first).unwrap_or(refused).at;
        tell_incident(story, status, last, Some(refused.clone()));
        story.since = Some(since);
        story.headline = format!(
            "{name} is not running since {} ({}), and cannot be started: {}",
            clock(since, status.now),
            age(status.now.since(since)),
            clause(refused, false)
        );
        return;
    }
    if last.ended.is_none()
        && let Some(stopped) = stopped
    {
        let at = stopped.at;
        tell_incident(story, status, last, Some(stopped.clone()));
        let lasts = format!("since {} ({})", clock(at, status.now), age(status.now.since(at)));
        story.since = Some(at);
        story.headline = format!("{name} is not running {lasts}: it was stopped");
        return;
    }
    let main = last.main().filter(|_| last.ended.is_none()).cloned();
    let before = main.map(|main| clause(&main, true));
    unrecorded(story, status, events);
    if let Some(before) = before {
        story
            .notes
            .push(format!("it was down before that, since {}: {before}", clock(last.began, status.now)));
    }
}

/// Nobody has said that it ends.
fn unrecorded(story: &mut Story, status: &Status, events: &[Event]) {
    let name = &status.name;
    let Some(last) = events.last() else {
        story.headline = format!("{name} is not running, and there is no record that it ever was");
        return;
    };
    story.cause = Some(Cause::Killed);
    story.since = Some(last.at);
    story.remedy = Some(Cause::Killed.remedy(name));
    story.events = vec![last.clone()];
    story.headline = format!(
        "{name} is not running: {}, some time after {}",
        Cause::Killed.clause("", "", true),
        clock(last.at, status.now)
    );
}

fn clause(obstacle: &Obstacle, past: bool) -> String {
    obstacle.cause.clause(&obstacle.words, &obstacle.by, past)
}

/// All but the headline; and what it is about.
fn tell_incident(
    story: &mut Story,
    status: &Status,
    incident: &Incident<'_>,
    main: Option<Obstacle>,
) -> Option<Obstacle> {
    story.since = Some(incident.began);
    story.until = incident.ended;
    describe(story, status, main.as_ref(), incident.began, incident.ended);
    let first = incident.obstacles.first();
    story.began_with = first
        .filter(|first| main.as_ref().is_some_and(|main| main.cause != first.cause))
        .map(|first| format!("{}: {}", clock(first.at, status.now), clause(first, true)));
    let events = incident.events;
    if story.session.is_none() {
        let about = ["lost", "interrupted", "degraded", "destination_failed", "plugin_ended"];
        let about = events.iter().rfind(|event| about.contains(&event.event.as_str()));
        story.session = about.and_then(|event| event.session.clone());
    }
    let of_session = |event: &&Event| event.event == "plugin_ended" && event.session == story.session;
    story.plugin_said = events.iter().rfind(of_session).and_then(|event| event.reason.clone());
    for event in events {
        let number = |name: &str| number(event, name);
        let clients = &mut story.clients;
        match event.event.as_str() {
            "held_released" => {
                clients.released += number("clients");
                clients.longest_wait_ms = clients.longest_wait_ms.max(event.duration_ms.unwrap_or(0));
            }
            "held_timed_out" => clients.timed_out += number("clients"),
            "lost" | "ended" => clients.cut += number("cut"),
            _ => {}
        }
    }
    story.did = did(incident, status);
    let told: Vec<_> = events.iter().filter(|event| is_told(event)).collect();
    let (head, tail) = SHOWN;
    story.events_left_out = told.len().saturating_sub(head + tail);
    let shown = |at: usize| at < head || at + tail >= told.len();
    story.events =
        told.iter().enumerate().filter(|(at, _)| shown(*at)).map(|(_, event)| (*event).clone()).collect();
    main
}

/// What follows from the cause alone.
fn describe(
    story: &mut Story,
    status: &Status,
    main: Option<&Obstacle>,
    began: Timestamp,
    ended: Option<Timestamp>,
) {
    let Some(main) = main else { return };
    story.cause = Some(main.cause);
    story.words = Some(main.words.clone()).filter(|words| !words.is_empty());
    story.remedy = Some(main.cause.remedy(&status.name));
    story.session.clone_from(&main.session);
    let until = ended.unwrap_or(status.now);
    story.lookup = main.cause.looked_up(&main.words).map(|call| {
        // By the call's name, because CloudTrail knows a session only inside its records.
        let wanted = match (&main.session, call) {
            (Some(session), "TerminateSession") => session.as_str(),
            _ => "errorCode",
        };
        let region = status.region.as_ref().map(|region| format!(" --region {region}")).unwrap_or_default();
        format!(
            "aws cloudtrail lookup-events{region} --lookup-attributes \
             AttributeKey=EventName,AttributeValue={call} --start-time {} --end-time {} --query \
             \"Events[?contains(CloudTrailEvent, '{wanted}')].[EventTime,Username,CloudTrailEvent]\"",
            seconds(began.before(AROUND)),
            seconds(until.after(AROUND)),
        )
    });
}

/// What autossm has done, each in a few words.
fn did(incident: &Incident<'_>, status: &Status) -> Vec<String> {
    let (events, now) = (incident.events, status.now);
    let all = |word: &str| events.iter().filter(|event| event.event == word).collect::<Vec<_>>();
    let mut did = Vec::new();
    let mut resumed = all("resumed");
    // Where the agent was silent nothing was opened.
    resumed.retain(|event| event.fields.get("attempts").is_none_or(|attempts| *attempts != 0));
    if let Some(last) = resumed.last() {
        did.push(format!("opened the data channel again after {}", took(last.duration_ms.unwrap_or(0))));
    }
    if !all("failover").is_empty() {
        did.push("started a second session beside the one that was interrupted".to_owned());
    }
    // A session that was lost as soon as it was ready counts as a failure, too.
    let mut failed = all("failed");
    failed.retain(|event| !all("lost").iter().any(|lost| lost.session == event.session));
    // Of those that were the same, and of none that a line tells of.
    let untold = events.iter().filter(|event| ["failed", "ready"].contains(&event.event.as_str()));
    let untold: u64 = untold.map(|event| number(event, "repeated")).sum();
    // The latest of an outage that lasts are not told yet.
    let lasts = incident.ended.is_none();
    let count = (failed.len() as u64 + untold).max(if lasts { status.failed_attempts } else { 0 });
    let last = failed.last().map(|event| event.at);
    let last = status.failure.as_ref().filter(|_| lasts).map(|failure| failure.at).max(last);
    // When the last of those was of which no line tells is not known afterwards.
    let last = last.filter(|_| lasts || untold == 0).map(|at| format!(", the last at {}", clock(at, now)));
    match failed.first() {
        Some(first) if count > 1 => did.push(format!(
            "{count} attempts to have a session failed, the first at {}{}",
            clock(first.at, now),
            last.unwrap_or_default()
        )),
        Some(one) => did.push(format!("an attempt to have a session failed, at {}", clock(one.at, now))),
        None => {}
    }
    if let Some(started) = events.iter().rfind(|event| event.event == "ready") {
        let session = started.session.as_deref().unwrap_or("a session");
        let target = events.iter().find(|e| e.event == "started" && e.session == started.session);
        // A repeated attempt's own line is not recorded.
        let target = field(target.unwrap_or(started), "target");
        let target = if target.is_empty() { String::new() } else { format!(" on {target}") };
        let after = took(started.duration_ms.unwrap_or(0));
        did.push(format!("started session {session}{target}, which was ready after {after}"));
    }
    did
}

/// `03:12:07 UTC`, with the date where it is another day's.
pub fn clock(at: Timestamp, now: Timestamp) -> String {
    let (at, now) = (at.to_string(), now.to_string());
    let part = |text: &str, range: std::ops::Range<usize>| text.get(range).unwrap_or_default().to_owned();
    let time = part(&at, 11..19);
    if part(&at, 0..10) == part(&now, 0..10) {
        format!("{time} UTC")
    } else {
        format!("{} {time} UTC", part(&at, 0..10))
    }
}

/// RFC 3339 without fractions, as the AWS CLI takes it.
fn seconds(at: Timestamp) -> String {
    let text = at.to_string();
    format!("{}Z", text.get(..19).unwrap_or(&text))
}
