//! One tunnel under test: a lab, a daemon, clients, what is done to them, and what came of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use autossm_lab::Lab;
use autossm_lab::bulk::{Bulk, Direction, Directions, End};
use autossm_lab::fault::Fault;
use autossm_lab::load::{Attempt, Load, Manner, Seen, SessionEnd};
use autossm_lab::options::Options;
use tokio::process::Command;

use crate::daemon::{Daemon, Line, folder, own_address, tunnel};
use crate::step::{Done, Step};

/// The default, which the bounds go by.
pub const HOLD: Duration = Duration::from_secs(30);
/// A connection to the API is kept for the next call for 5 s; whether it is too old is looked at every 5 s.
const AT_REST: Duration = Duration::from_secs(11);
/// From the last client's end until all that its connections and the faults have cost is given back, and the last session is
/// back: the clock of access may be at 30 s.
const SETTLED: Duration = Duration::from_secs(40);
/// From a connection's beginning to the news that its session is interrupted. Under transfers a gap may be the news, which is
/// none before 2 s.
const GIVEN_BEFORE: Duration = Duration::from_secs(1);
const GIVEN_BEFORE_A_GAP: Duration = Duration::from_secs(3);
/// The agent's messages and the client's that are under way before a fault may hit the transfers.
const UNDER_WAY: (i64, i64) = (1000, 500);
/// No connection waits longer, however long its session is repaired.
const PATIENCE: Duration = Duration::from_secs(120);
/// A transfer's own time, on a busy machine and beside others.
const TRANSFER: Duration = Duration::from_secs(120);
const NOT_SERVED: &str = "clients are not served again";
/// Beyond every bound for being served again: the figure is printed then, too.
pub const SERVED_AGAIN: Duration = Duration::from_secs(90);

/// How a tunnel is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `gateway = "hold"`.
    Hold,
    /// `gateway = "observe"`.
    Observe,
}

impl Mode {
    /// As the configuration has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hold => "hold",
            Self::Observe => "observe",
        }
    }
}

/// What no client, and no count, may exceed.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// The wait of a new connection that is served.
    pub wait: Duration,
    /// From the end of the fault until every new connection is served at once and the long-lived one answers.
    pub recovery: Duration,
    /// How often the long-lived connection is cut.
    pub cuts: usize,
    /// StartSession beyond the tunnel's first sessions, for each of these.
    pub starts: u64,
    /// Connections that were held for the whole of `hold` may be sent away. No other new connection ever fails.
    pub times_out: bool,
    /// The wait of a new connection that comes when the fault is over.
    pub late: Duration,
    /// Transfers that are reset. All others complete, with every byte.
    pub resets: usize,
    /// From the end of the fault until what was open on a session with a gap is served again, or was cut.
    pub repair: Duration,
}

/// What is to be run.
pub struct Plan {
    /// The build under test.
    pub program: PathBuf,
    pub name: String,
    pub mode: Mode,
    pub sessions: u64,
    /// New connections a second.
    pub rate: u32,
    /// The account has its sessions encrypted.
    pub encrypted: bool,
    /// Bytes of each transfer, one at any time in each of these directions.
    pub bulk: Option<(usize, Directions)>,
    pub steps: Vec<Step>,
    pub bound: Bound,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub connections: usize,
    pub refused: usize,
    pub failed: usize,
    /// Cut together with their session, which is no failure.
    pub cut: usize,
    pub longest_wait: Duration,
    pub recovery: Duration,
    /// The longest wait of one that came when the fault was over.
    pub late: Duration,
    /// Transfers that completed, and that were reset.
    pub transfers: [usize; 2],
    /// Of the long-lived connection.
    pub cuts: usize,
    pub starts: u64,
    /// Messages of the agent that the plugin takes for acknowledged and the agent does not: with one more that is lost, nothing
    /// comes back on that session any more. The gateway repairs it; in observe mode the session is replaced when the plugin is quiet.
    pub stalls: u64,
    /// Tasks and descriptors at rest, before and after.
    pub usage: [Usage; 2],
    /// What was not as it has to be.
    pub breaches: Vec<String>,
    /// Of what.
    pub name: String,
}

/// What the daemon has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub tasks: u64,
    pub descriptors: u64,
}

impl Usage {
    /// As it said last, after `since`.
    pub fn of(daemon: &Daemon, since: SystemTime) -> Option<Self> {
        let log = daemon.log();
        let told = log.iter().rev().take_while(|line| line.at > since);
        let line = told.into_iter().find(|line| line.field("event") == "usage")?;
        Some(Self { tasks: line.number("tasks"), descriptors: line.number("descriptors") })
    }

    fn within(self, other: Self) -> bool {
        self.tasks <= other.tasks && self.descriptors <= other.descriptors
    }
}

/// A daemon whose tunnel reaches the lab's bulk server over TLS, which echoes what asks for no transfer; up.
pub async fn daemon(
    program: &Path,
    lab: &Lab,
    mode: Mode,
    sessions: u64,
    keys: &str,
    prepare: impl FnOnce(&mut Command, &Path),
) -> Daemon {
    let address = own_address();
    let keys = format!(
        "ca_file = \"{}\"\ngateway = \"{}\"\nsessions = {sessions}\nkeepalive = \"2s\"\n\
         max_held = 2000\nmax_connections = 4000\n{keys}",
        lab.ca_file().display(),
        mode.word(),
    );
    let config = tunnel(lab, "echo", address, lab.addresses().destinations.bulk, &keys)
        .replace(&lab.stream_endpoint_ws(), &lab.stream_endpoint_wss());
    let folder = folder();
    let mut command = Command::new(program);
    command.env_clear();
    prepare(&mut command, folder.path());
    let daemon = Daemon::spawn(command, folder, "info,autossm::driver::usage=trace", address, &config);
    daemon.event_times("ready", usize::try_from(sessions).unwrap()).await;
    daemon
}

/// What it has open when nothing happens.
pub async fn at_rest(daemon: &Daemon) -> Usage {
    tokio::time::sleep(AT_REST).await;
    let since = SystemTime::now();
    wait(SETTLED, || Usage::of(daemon, since))
        .await
        .unwrap_or_else(|| panic!("says nothing\n{}", daemon.tail()))
        .0
}

/// Waits until all is as it was at rest. The complaint says what is not.
pub async fn settled(lab: &Lab, daemon: &Daemon, sessions: u64, base: Usage) -> Result<Usage, String> {
    let mut since = SystemTime::now();
    let mut last = String::new();
    let settled = wait(SETTLED, || {
        let (plugins, live) = (daemon.plugins().len() as u64, lab.status().ready_sessions() as u64);
        if plugins != sessions || live != sessions {
            last = format!("{plugins} plugins, {live} sessions at the service");
            since = SystemTime::now();
            return None;
        }
        let usage = Usage::of(daemon, since)?;
        last = format!("{usage:?} where it was {base:?}");
        usage.within(base).then_some(usage)
    });
    let settled = settled.await;
    settled.map(|(usage, _)| usage).ok_or(last)
}

/// Runs it. What goes wrong is in the figures; nothing is thrown.
pub async fn run(plan: Arc<Plan>) -> Figures {
    let run = tokio::spawn(attempt(plan.clone()));
    let figures = match run.await {
        Ok(figures) => figures,
        Err(panic) => {
            let text = panic.try_into_panic().ok().and_then(|payload| {
                payload
                    .downcast_ref::<String>()
                    .cloned()
                    .or(payload.downcast_ref::<&str>().map(|s| (*s).into()))
            });
            Figures {
                breaches: vec![text.unwrap_or_else(|| "it was cancelled".into())],
                ..Figures::default()
            }
        }
    };
    let name = format!("{} [{} {}]", plan.name, plan.mode.word(), plan.sessions);
    println!("{} {name}: {}", if figures.breaches.is_empty() { "ok  " } else { "FAIL" }, figures.line());
    Figures { name, ..figures }
}

/// Says again what was not as it has to be, so that it stands at the end.
pub fn tell_breaches(figures: &[&Figures]) {
    let broken: Vec<_> = figures.iter().filter(|figures| !figures.breaches.is_empty()).collect();
    println!("{} tunnels under test, {} with a breach", figures.len(), broken.len());
    for figures in broken {
        println!("FAIL {}: {}", figures.name, figures.breaches.join("\n     "));
    }
}

async fn attempt(plan: Arc<Plan>) -> Figures {
    let kms_key = plan.encrypted.then(|| "arn:aws:kms:us-west-2:111122223333:key/01234567".to_owned());
    let lab = Arc::new(Lab::start(Options { kms_key, ..Options::default() }).await.unwrap());
    let kms = lab.stream_endpoint_wss().replace("wss://", "https://");
    let mut keys = if plan.encrypted { format!("kms_endpoint = \"{kms}\"\n") } else { String::new() };
    // Where the account ends sessions early the bounds are those of clients that are met by it, not of rotation, which has its
    // own tests and the soak.
    if plan.steps.iter().any(|step| matches!(step.fault(), Some(Fault::MaximumLife(_)))) {
        keys += "rotate = \"off\"\n";
    }
    let daemon = daemon(&plan.program, &lab, plan.mode, plan.sessions, &keys, |_, _| ()).await;
    let base = at_rest(&daemon).await;

    let repair = plan.bound.repair;
    let bulk = plan.bulk.map(|(bytes, directions)| Bulk {
        bytes,
        directions,
        line_feeds: plan.mode == Mode::Hold,
        patience: TRANSFER + plan.steps.iter().map(Step::lasts).sum::<Duration>() + repair,
    });
    let patience = PATIENCE.max(TRANSFER + repair);
    let load = Load::with(daemon.address, Manner { rate: plan.rate, bulk, patience });
    let directions = plan.bulk.map_or(&[][..], |(_, directions)| directions.all());
    let flows = wait(SETTLED, || {
        let seen = load.seen();
        let status = lab.status();
        let under_way = |direction| {
            status.sessions.values().any(|session| match direction {
                Direction::Download => session.sent > UNDER_WAY.0,
                Direction::Upload => session.received > UNDER_WAY.1,
            })
        };
        let bulky = directions.iter().all(|direction| under_way(*direction));
        (served(&seen) >= plan.rate.min(10) as usize && seen.long_lived.messages >= 5 && bulky).then_some(())
    });
    assert!(flows.await.is_some(), "nothing flows\n{}", daemon.tail());
    let mut done = Done::default();
    for step in &plan.steps {
        step.perform(&lab, &daemon, &mut done).await;
    }
    Step::Over.perform(&lab, &daemon, &mut done).await;
    lab.clear_all();
    let over = SystemTime::now();

    let seen = load.seen();
    let (before, messages) = (served(&seen), seen.long_lived.messages);
    let again = wait(SERVED_AGAIN, || {
        let seen = load.seen();
        let all = served(&seen) >= before + plan.rate as usize;
        // Behind transfers everything takes longer; and what is open may be on a session that is being repaired.
        let well = match plan.bulk {
            None => seen.long_lived.messages >= messages + 10 && seen.waiting <= 2,
            Some(_) => newest_served(&seen, 2),
        };
        (all && well).then_some(())
    });
    let again = again.await;
    let mut figures = Figures::default();
    if again.is_none() {
        figures.breaches.push(NOT_SERVED.into());
    }
    figures.recovery = again.map_or(SERVED_AGAIN, |((), took)| took);
    if plan.bulk.is_some() {
        let goes_on = || (load.seen().long_lived.messages >= messages + 5).then_some(());
        if wait(SERVED_AGAIN.max(repair), goes_on).await.is_none() {
            figures.breaches.push("the connection that stays open is neither served nor cut".into());
        }
    }
    let seen = load.finish().await;
    let rest = settled(&lab, &daemon, plan.sessions, base).await;
    figures.usage = [base, rest.clone().unwrap_or_default()];
    figures.breaches.extend(rest.err().map(|text| format!("not given back: {text}")));
    let log = daemon.end().await;
    figures.judge(&plan, &lab, &done, over, &seen, &log);
    figures
}

impl Figures {
    fn judge(
        &mut self,
        plan: &Plan,
        lab: &Lab,
        done: &Done,
        over: SystemTime,
        seen: &Seen,
        log: &[Arc<Line>],
    ) {
        let Bound { wait, recovery, cuts, starts, times_out, late, resets, repair } = plan.bound;
        let service = lab.status();
        let ends: Vec<_> = ends(log);
        // Those that the destination turned away are not among those that the daemon says it has cut.
        let (no_destination, others): (Vec<_>, Vec<_>) =
            seen.attempts.iter().cloned().partition(|attempt| done.without_destination(attempt));
        let no_destination: Vec<_> =
            no_destination.iter().filter(|attempt| attempt.failure.is_some()).collect();
        let others = Seen { attempts: others, ..Seen::default() };
        let failed = others.failed(&ends);
        self.connections = seen.attempts.len();
        self.refused = seen.failures().filter(|attempt| says_refused(attempt)).count();
        self.failed = failed.len();
        self.cut = seen.failures().count() - failed.len() - no_destination.len();
        self.longest_wait = seen.longest_wait();
        // One that comes back while the destination refuses is turned away again and again.
        let turned_away = |at| done.is_without_destination(at, at);
        self.cuts = seen.long_lived.cuts.iter().filter(|(at, _)| !turned_away(*at)).count();
        self.starts = service.start.processed;
        self.stalls = service.never_acknowledged;
        // The plugin's own fault, of which clients are not spared.
        let stalled = plan.mode == Mode::Observe && self.stalls > 0;
        if stalled {
            self.breaches.retain(|text| text != NOT_SERVED);
        }

        let mut breach = |wrong: bool, text: String| {
            if wrong {
                self.breaches.push(text);
            }
        };
        breach(self.refused > 0, format!("{} connections refused", self.refused));
        let early = |attempt: &&&Attempt| !times_out || attempt.took < HOLD - Duration::from_millis(100);
        let early: Vec<_> = failed.iter().filter(early).map(|attempt| words(attempt)).collect();
        let some = early.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        breach(
            !early.is_empty() && !stalled,
            format!("{} connections failed, among them {some}", early.len()),
        );
        // Whoever was given to a session just before it was known to be interrupted waits for that session, like its other
        // open connections: until the fault is over and they are served again.
        let interrupted: Vec<_> = log.iter().filter(|line| line.field("event") == "interrupted").collect();
        let given_before = |attempt: &Attempt| {
            interrupted
                .iter()
                .filter_map(|line| line.at.duration_since(attempt.at).ok())
                .any(|later| later < if plan.bulk.is_some() { GIVEN_BEFORE_A_GAP } else { GIVEN_BEFORE })
        };
        let lasted: Duration = plan.steps.iter().map(Step::lasts).sum();
        for (given, wait) in [(false, wait), (true, wait.max(lasted + recovery.max(repair)))] {
            let served = seen.attempts.iter().filter(|attempt| attempt.failure.is_none());
            let held =
                served.filter(|attempt| given_before(attempt) == given).map(|attempt| attempt.took).max();
            let held = held.unwrap_or_default();
            let session = if given { " with its session" } else { "" };
            breach(
                held > wait && !stalled,
                format!("a connection waited{session} {held:.1?} of at most {wait:?}"),
            );
        }
        let after = seen.attempts.iter().filter(|attempt| attempt.failure.is_none() && attempt.at >= over);
        self.late =
            after.filter(|attempt| !given_before(attempt)).map(|one| one.took).max().unwrap_or_default();
        breach(
            plan.bulk.is_some() && self.late > late && !stalled,
            format!("one that came when it was over waited {:.1?} of at most {late:?}", self.late),
        );
        let ended =
            |wanted: fn(&End) -> bool| seen.transfers.iter().filter(move |one| wanted(&one.end)).count();
        self.transfers =
            [ended(|end| *end == End::Complete), ended(|end| matches!(end, End::Reset(_) | End::Empty))];
        for transfer in &seen.transfers {
            let wrong = match transfer.end {
                End::Complete | End::Reset(_) => false,
                // Sent away, or its destination refused.
                End::Empty => {
                    let held = times_out && transfer.took >= HOLD - Duration::from_millis(100);
                    !held && !done.is_without_destination(transfer.at, transfer.at + transfer.took)
                }
                End::Wrong(_) => true,
                End::Stuck => !stalled,
            };
            breach(wrong, transfer.to_string());
        }
        breach(self.transfers[1] > resets, format!("{} transfers reset, of {resets}", self.transfers[1]));
        for direction in plan.bulk.map_or(&[][..], |(_, directions)| directions.all()) {
            let mut of_it = seen.transfers.iter().filter(|one| one.direction == *direction);
            let none = !of_it.any(|one| one.end == End::Complete);
            breach(none && !stalled, format!("no {direction} has completed"));
        }
        breach(
            self.recovery > recovery && !stalled,
            format!("served again after {:.1?} of {recovery:?}", self.recovery),
        );
        breach(
            self.cuts > cuts,
            format!("the long-lived connection was cut {}× of {cuts}: {:?}", self.cuts, seen.long_lived.cuts),
        );
        let most = plan.sessions * (1 + starts);
        breach(self.starts > most, format!("StartSession {}× of {most}", self.starts));
        // What was asked for in a freeze may be begun when the one who has asked is gone.
        let frozen = plan.steps.iter().any(|step| step.fault() == Some(Fault::Freeze));
        let left = service.sessions.values().filter(|session| !frozen || session.met).count();
        breach(left > 0, format!("left at the service: {:?}", service.sessions));
        breach(!service.violations.is_empty(), format!("{:?}", service.violations));
        if !self.breaches.is_empty() {
            println!("---- {} [{} {}]\n{}", plan.name, plan.mode.word(), plan.sessions, told(log));
        }
    }

    /// In one line.
    pub fn line(&self) -> String {
        let [before, after] = self.usage;
        let mut line = format!(
            "{} connections, {} refused, {} failed, {} cut with their session, longest wait {:.1} s, served again after \
             {:.1} s, long-lived cut {}×, StartSession {}×, tasks {} → {}, descriptors {} → {}",
            self.connections,
            self.refused,
            self.failed,
            self.cut,
            self.longest_wait.as_secs_f64(),
            self.recovery.as_secs_f64(),
            self.cuts,
            self.starts,
            before.tasks,
            after.tasks,
            before.descriptors,
            after.descriptors,
        );
        if self.transfers != [0, 0] {
            let [complete, reset] = self.transfers;
            let late = self.late.as_secs_f64();
            line += &format!(
                ", transfers {complete} complete, {reset} reset; longest wait afterwards {late:.1} s"
            );
        }
        if self.stalls > 0 {
            line += &format!(", {} messages never acknowledged by the plugin", self.stalls);
        }
        for breach in &self.breaches {
            line += &format!("\n     {breach}");
        }
        line
    }
}

/// The sessions that have ended, with the connections that were cut.
pub fn ends(log: &[Arc<Line>]) -> Vec<SessionEnd> {
    let ended = log.iter().filter(|line| matches!(line.field("event"), "lost" | "ended"));
    ended.map(|line| SessionEnd::told(line.at, line.number("cut"), line.field("reason"))).collect()
}

/// The log as people read it.
pub fn told(log: &[Arc<Line>]) -> String {
    let lines = log.iter().filter(|line| line.fields["level"] != "TRACE").map(|line| {
        let session = line.field("session");
        // The time of day, and as much of the session's id as tells it from others.
        let (time, id) =
            (line.field("timestamp").get(11..23), session.get(session.len().saturating_sub(5)..));
        format!("{} {} {}", time.unwrap_or_default(), id.unwrap_or_default(), line.field("message"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A client's fate.
pub fn words(attempt: &Attempt) -> String {
    let (at, took) = (humantime::format_rfc3339_millis(attempt.at), attempt.took.as_secs_f64());
    format!("at {at}, after {took:.1} s: {}", attempt.failure.as_deref().unwrap_or("served"))
}

/// The kernel or the daemon has sent it away at once: nobody listens.
pub fn says_refused(attempt: &Attempt) -> bool {
    attempt.failure.as_deref().is_some_and(|text| text.contains("refused"))
}

/// Whether the newest ones that have ended were served, each within a second or so.
fn newest_served(seen: &Seen, count: usize) -> bool {
    let newest: Vec<_> = seen.attempts.iter().rev().take(count).collect();
    newest.len() == count
        && newest.iter().all(|one| one.failure.is_none() && one.took < Duration::from_secs(2))
}

/// Connections that were served.
pub fn served(seen: &Seen) -> usize {
    seen.attempts.iter().filter(|attempt| attempt.failure.is_none()).count()
}

/// Waits for something that nothing announces; says how long that took.
pub async fn wait<T>(within: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<(T, Duration)> {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some((value, began.elapsed()));
        }
        if began.elapsed() > within {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
