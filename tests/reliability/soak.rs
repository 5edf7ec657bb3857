//! A day of a tunnel's life, compressed: an hourly close every 24th part of the time, a fault in each of these hours, an account that
//! ends sessions after three of them, credentials that expire, two hours in which nobody connects. What the daemon holds must not grow.
//!
//! Two daemons live it side by side, each with a service of its own: one as the defaults have it, one with two sessions, a probe and a
//! rotation of the operator's. Waits for a lost session, or between two tries, cannot be compressed: an hour ends when its clients are
//! served again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use autossm_lab::Lab;
use autossm_lab::bulk::{Bulk, Directions, End};
use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, Report, UpgradeFault};
use autossm_lab::load::{Load, Manner, Seen};
use autossm_lab::options::Options;
use nix::sys::signal::{Signal, kill};
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

use crate::daemon::{Daemon, Line};
use crate::document;
use crate::run::{self, Mode, Usage, at_rest, says_refused, settled, words};
use crate::step::{Done, Step};

const HOURS: u32 = 24;
/// Nobody connects in these.
const IDLE: std::ops::Range<u32> = 12..14;
/// Each opens so many new connections a second, and has one that stays open.
const RATE: u32 = 4;
const LOADS: usize = 5;
/// Behind transfers a new connection takes half a second.
const WAITING: usize = RATE as usize;
/// Of one of them, one after the other in each direction.
const BULK: Bulk = Bulk {
    bytes: 1 << 20,
    directions: Directions::Both,
    line_feeds: true,
    patience: Duration::from_secs(180),
};
/// Hours until everything has been used once.
const WARM_UP: u32 = 3;
/// From then on to the end, in kB: resident memory may grow by no more.
const GROWTH: u64 = 1536;
/// The agent's messages of it are repaired in half a minute.
const ALL_LOST: Duration = Duration::from_millis(300);
/// No agent gives up in it to reconnect.
const AGENT_REFUSED: Duration = Duration::from_secs(2);
/// Clients are held for 30 s and the clock of network failures ends at 10 s: within this nobody is sent away.
const LONGEST_FAULT: Duration = Duration::from_secs(15);
/// They are renewed when a third of their life is left.
const SHORTEST_CREDENTIALS: Duration = Duration::from_secs(15);
/// The account's idle timeout goes on while a data channel is down: a fault's time, the gateway's next attempt after it, which is 5 s
/// away at the most, and as much again.
const IDLE_BEYOND_FAULT: Duration = Duration::from_secs(15);
/// Longer than that of the shortest day, and ten keep-alives.
const SHORTEST_IDLE: Duration = Duration::from_secs(20);
/// The account's maximum session duration, in hours: faults end sessions every three to five hours.
const MAXIMUM_LIFE: u32 = 3;
/// Less than 10 s is not believed.
const SHORTEST_LIFE: Duration = Duration::from_secs(12);
/// Until the day begins, and when it is over.
const NO_ROTATION: &str = "rotate = \"off\"";

/// Of the two daemons.
struct Form {
    name: &'static str,
    sessions: u64,
    /// For hours of this length.
    rotate: fn(Duration) -> String,
    keys: fn(Duration) -> String,
}

const FORMS: [Form; 2] = [
    Form {
        name: "one session",
        sessions: 1,
        rotate: |_| "rotate = \"auto\"".into(),
        keys: |_| String::new(),
    },
    Form {
        name: "two sessions, rotated every two hours, and a probe",
        sessions: 2,
        rotate: |hour| format!("rotate = \"{}ms\"", (hour * 2).as_millis()),
        keys: |hour| {
            let interval = (hour / 4).max(Duration::from_secs(1));
            format!("probe = {{ kind = \"tcp\", interval = \"{}ms\" }}\n", interval.as_millis())
        },
    },
];

/// The daemon at the end of an hour.
pub struct Sample {
    pub hour: u32,
    /// Resident memory in kB.
    pub resident: u64,
    pub usage: Usage,
    pub connections: usize,
}

/// What came of one daemon's day.
struct Day {
    form: &'static Form,
    samples: Vec<Sample>,
    summary: String,
    /// What was not as it has to be.
    breaches: Vec<String>,
    log: Vec<Arc<Line>>,
}

/// Lives a day in so many seconds. Returns whether every invariant has held.
pub async fn run(program: &Path, seconds: u64, agents: bool, write: bool) -> bool {
    let hour = Duration::from_secs(seconds) / HOURS;
    let [one, two] = &FORMS;
    let (one, two) = tokio::join!(day(program, hour, one, agents), day(program, hour, two, agents));
    let days = [one, two];
    // What matters most comes last: of a long output people keep the end.
    for day in days.iter().filter(|day| !day.breaches.is_empty()) {
        println!("---- {}\n{}", day.form.name, run::told(&day.log));
    }
    for day in &days {
        println!("\n{}: {}", day.form.name, day.summary);
    }
    for day in &days {
        day.breaches.iter().for_each(|breach| println!("BREACH, {}: {breach}", day.form.name));
    }
    let well = days.iter().all(|day| day.breaches.is_empty());
    if write && well {
        let texts = days.iter().map(|day| document::soak(day.form.name, &day.summary, &day.samples));
        document::write(&format!("soak, {}", crate::called()), &texts.collect::<Vec<_>>().join("\n"));
    }
    well
}

/// Does what the configuration says of rotation from now on.
async fn reload(daemon: &Daemon, times: usize, from: &str, to: &str) {
    let file = daemon.folder.path().join("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&file, text.replace(from, to)).unwrap();
    kill(daemon.pid(), Signal::SIGHUP).unwrap();
    daemon.event_times("reloaded", times).await;
}

async fn day(program: &Path, hour: Duration, form: &'static Form, agents: bool) -> Day {
    let fault_lasts = (hour / 5).min(LONGEST_FAULT);
    // Preferences have whole minutes: of a shorter maximum they would say that there is none. It is learned then from the first end.
    let documents_are_readable = hour * MAXIMUM_LIFE >= Duration::from_secs(60);
    let lab = Arc::new(Lab::start(Options { documents_are_readable, ..Options::default() }).await.unwrap());
    let keys = format!("profile = \"soak\"\n{NO_ROTATION}\n{}", (form.keys)(hour));
    let daemon = run::daemon(program, &lab, Mode::Hold, form.sessions, &keys, |command, folder| {
        credentials(command, folder, SHORTEST_CREDENTIALS.max(hour / 4));
    })
    .await;
    let base = at_rest(&daemon).await;
    lab.set(Fault::IdleTimeout(SHORTEST_IDLE.max(fault_lasts + IDLE_BEYOND_FAULT).max(hour / 3)));
    lab.set(Fault::MaximumLife((hour * MAXIMUM_LIFE).max(SHORTEST_LIFE)));
    let rotate = (form.rotate)(hour);
    reload(&daemon, 1, NO_ROTATION, &rotate).await;

    let (mut samples, mut seen, mut breaches) = (Vec::new(), Vec::<Seen>::new(), Vec::new());
    let (mut done, mut entitled) = (Done::default(), 0);
    let mut loads = Vec::new();
    let began = Instant::now();
    for number in 0..HOURS {
        let begins = Instant::now();
        if number == IDLE.start {
            for load in loads.drain(..) {
                seen.push(Load::finish(load).await);
            }
        } else if loads.is_empty() && !IDLE.contains(&number) {
            loads.extend((0..LOADS).map(|number| {
                // One of them has transfers, too.
                let bulk = (agents && number == 0).then_some(BULK);
                Load::with(daemon.address, Manner { bulk, ..Manner::small(RATE) })
            }));
        }
        Step::Close.perform(&lab, &daemon, &mut done).await;
        sleep_until(begins + hour * 2 / 5).await;
        for step in fault(number, fault_lasts, agents) {
            entitled += usize::from(cuts(&step) && !loads.is_empty());
            step.perform(&lab, &daemon, &mut done).await;
        }
        sleep_until(begins + hour).await;
        Step::Over.perform(&lab, &daemon, &mut done).await;
        let before: Vec<_> = loads.iter().map(|load: &Load| load.seen().long_lived.messages).collect();
        let again = run::wait(run::SERVED_AGAIN, || {
            let answered = |(load, before): (&Load, &u64)| {
                let seen = load.seen();
                seen.waiting <= WAITING && seen.long_lived.messages > before + 5
            };
            let well = lab.status().ready_sessions() > 0 && loads.iter().zip(&before).all(answered);
            well.then_some(())
        });
        if again.await.is_none() {
            breaches.push(format!("clients are not served again in hour {number}"));
        }
        let usage = Usage::of(&daemon, SystemTime::now() - Duration::from_secs(5)).unwrap_or_default();
        let made = |seen: &Seen| seen.attempts.len();
        let connections = seen.iter().map(made).sum::<usize>()
            + loads.iter().map(|load: &Load| made(&load.seen())).sum::<usize>();
        let sample = Sample { hour: number + 1, resident: resident(&daemon), usage, connections };
        println!("{}, {}", sample.line(), form.name);
        samples.push(sample);
    }
    let lived = began.elapsed();
    for load in loads {
        seen.push(load.finish().await);
    }
    lab.clear_all();
    reload(&daemon, 2, &rotate, NO_ROTATION).await;
    let rest = settled(&lab, &daemon, form.sessions, base).await;
    let at_end = resident(&daemon);
    let fetched = std::fs::read_to_string(daemon.folder.path().join("fetched")).unwrap_or_default();
    let fetched = fetched.lines().count();
    let log = daemon.end().await;

    let service = lab.status();
    let ends = run::ends(&log);
    // One that comes back while the destination refuses is turned away again and again.
    let cuts = seen.iter().flat_map(|seen| &seen.long_lived.cuts);
    let cut = cuts.filter(|(at, _)| !done.is_without_destination(*at, *at)).count();
    let transfers: Vec<_> = seen.iter_mut().flat_map(|seen| std::mem::take(&mut seen.transfers)).collect();
    let complete = transfers.iter().filter(|transfer| transfer.end == End::Complete).count();
    let wrong = transfers.iter().filter(|transfer| match transfer.end {
        End::Complete | End::Reset(_) => false,
        End::Empty => !done.is_without_destination(transfer.at, transfer.at + transfer.took),
        End::Wrong(_) | End::Stuck => true,
    });
    let wrong: Vec<_> = wrong.map(ToString::to_string).collect();
    let reset = transfers.len() - complete - wrong.len();
    let all = Seen { attempts: seen.into_iter().flat_map(|seen| seen.attempts).collect(), ..Seen::default() };
    let connections = all.attempts.len();
    let refused = all.failures().filter(|attempt| says_refused(attempt)).count();
    // Those that the destination turned away are not among those that the daemon says it has cut.
    let mut others = all.clone();
    others.attempts.retain(|attempt| !done.without_destination(attempt));
    let failed = others.failed(&ends);
    let longest = all.longest_wait();
    let warm = samples.iter().find(|sample| sample.hour == WARM_UP).map_or(0, |sample| sample.resident);
    let aged = service.ended.iter().filter(|end| end.output.contains("maximum session")).count();
    let rotated = log.iter().filter(|line| line.field("event") == "retired").count();
    let mut breach = |wrong: bool, text: String| {
        if wrong {
            breaches.push(text);
        }
    };
    breach(refused > 0, format!("{refused} connections refused"));
    let some: Vec<_> = failed.iter().take(5).map(|attempt| words(attempt)).collect();
    breach(!failed.is_empty(), format!("{} connections failed: {}", failed.len(), some.join("; ")));
    // A session's end takes each of them once.
    breach(
        cut > LOADS * (entitled + aged),
        format!(
            "long-lived connections cut {cut}×, sessions ended {entitled}× by faults, {aged}× by the account"
        ),
    );
    breach(!wrong.is_empty(), format!("transfers: {}", wrong.join("; ")));
    breach(agents && complete == 0, "no transfer has completed".into());
    breach(aged == 0, "no session ever reached the account's maximum".into());
    // One is the refused destination's.
    breach(rotated < 2, format!("{rotated} sessions were replaced before their time"));
    breach(at_end > warm + GROWTH, format!("{at_end} kB resident, {warm} kB after {WARM_UP} h"));
    let rest_text = rest.as_ref().err().cloned().unwrap_or_default();
    breach(rest.is_err(), format!("not given back: {rest_text}"));
    breach(fetched < 2, format!("credentials fetched {fetched}×"));
    breach(service.expired_keys > 0, format!("{} calls with expired credentials", service.expired_keys));
    // What was asked for in a freeze may be begun when the one who has asked is gone.
    let left = service.sessions.values().filter(|session| session.met).count();
    breach(left > 0, format!("left at the service: {:?}", service.sessions));
    breach(!service.violations.is_empty(), format!("{:?}", service.violations));

    let rest = rest.unwrap_or_default();
    let summary = format!(
        "24 h in {:.0} s with the {}: {connections} connections, {refused} refused, {} failed; longest wait {:.1} s; \
         {complete} transfers of 1 MiB complete, {reset} reset; {} data channels opened, {} resumed, {} sessions started, {rotated} replaced before their time; {LOADS} long-lived \
         connections were cut {cut}×, in sessions that were ended {entitled}× by a fault and {aged}× by the account's maximum; \
         credentials fetched {fetched}×, {} calls with expired ones; {warm} kB resident after {WARM_UP} h, {at_end} kB at the \
         end; tasks {} → {}, descriptors {} → {}.",
        lived.as_secs_f64(),
        crate::called(),
        failed.len(),
        longest.as_secs_f64(),
        service.opened,
        service.resume.succeeded,
        service.start.succeeded,
        service.expired_keys,
        base.tasks,
        rest.tasks,
        base.descriptors,
        rest.descriptors,
    );
    Day { form, samples, summary, breaches, log }
}

/// Of the daemon, in kB.
fn resident(daemon: &Daemon) -> u64 {
    let status = procfs::process::Process::new(daemon.pid().as_raw()).unwrap().status().unwrap();
    status.vmrss.unwrap()
}

impl Sample {
    fn line(&self) -> String {
        let Self { hour, resident, usage, connections } = self;
        format!(
            "{hour:2} h: {resident} kB resident, {} descriptors, {} tasks, {connections} connections so far",
            usage.descriptors, usage.tasks
        )
    }
}

/// What goes wrong in this hour, for at most this time.
fn fault(hour: u32, time: Duration, agents: bool) -> Vec<Step> {
    let begin = |fault| Step::Begin(fault, time);
    // The second half of the day is the first one's, but for what happens to agents, and to bytes under way.
    if !agents {
        return first_half(hour % 12, time);
    }
    match hour {
        14 => vec![begin(Fault::Freeze)],
        15 => vec![Step::CloseAgents],
        16 => vec![Step::Begin(Fault::LostMessages(Loss::of(1.0)), time.min(ALL_LOST))],
        17 => vec![Step::KillWorker(Report::AtOnce)],
        18 => vec![Step::CloseBoth],
        19 => vec![Step::Begin(Fault::AgentRefuse, time.min(AGENT_REFUSED))],
        _ => first_half(hour % 12, time),
    }
}

fn first_half(hour: u32, time: Duration) -> Vec<Step> {
    let begin = |fault| Step::Begin(fault, time);
    let link = Link { latency: Duration::from_millis(100), bandwidth: 100_000 };
    let loss = Loss::of(0.02);
    match hour {
        0 => vec![begin(Fault::Api(Call::Resume, ApiFault::Forbidden)), Step::Close],
        1 => vec![Step::Plugin(Signal::SIGKILL)],
        2 => vec![begin(Fault::Refuse)],
        3 => vec![begin(Fault::Upgrades(UpgradeFault::Refused(403))), Step::Abort],
        4 => vec![begin(Fault::LostMessages(loss))],
        5 => vec![Step::Terminate],
        6 => vec![begin(Fault::BlackHole)],
        7 => vec![begin(Fault::SlowLink(link))],
        8 => vec![begin(Fault::Api(Call::Start, ApiFault::Throttled)), Step::Plugin(Signal::SIGSTOP)],
        9 => vec![begin(Fault::DestinationRefused)],
        10 => vec![begin(Fault::AgentAway)],
        _ => vec![begin(Fault::Upgrades(UpgradeFault::Stalled)), Step::Abort, Step::HangAgent(time)],
    }
}

/// Whether connections are lost with the session that ends by it.
fn cuts(step: &Step) -> bool {
    matches!(step, Step::Terminate | Step::Plugin(_) | Step::KillWorker(_))
}

/// Credentials that expire, as those of a role: the lab refuses them when their time is over.
fn credentials(command: &mut Command, folder: &Path, lives: Duration) {
    let (program, fetched) = (folder.join("credentials"), folder.join("fetched"));
    let script = format!(
        "#!/bin/sh\nuntil=$(($(date +%s) + {}))\necho $until >> {}\n\
         printf '{{\"Version\":1,\"AccessKeyId\":\"AKIDUNTIL%s\",\"SecretAccessKey\":\"of-no-account\",\
         \"SessionToken\":\"of-no-account\",\"Expiration\":\"%s\"}}' $until \
         $(date -u -d @$until +%Y-%m-%dT%H:%M:%SZ)\n",
        lives.as_secs(),
        fetched.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.join("aws-config");
    std::fs::write(&file, format!("[profile soak]\ncredential_process = {}\n", program.display())).unwrap();
    command.env("AWS_CONFIG_FILE", file);
}
