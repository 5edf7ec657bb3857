//! A day of a tunnel's life, compressed: an hourly close every 24th part of the time, a fault in each of these hours,
//! credentials that expire, two hours in which nobody connects. What the daemon holds must not grow.
//!
//! Waits for a lost session, or between two tries, cannot be compressed: an hour ends when its clients are served again.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, UpgradeFault};
use autossm_lab::load::{Load, Seen};
use autossm_lab::options::Options;
use nix::sys::signal::Signal;
use tokio::process::Command;
use tokio::time::{Instant, sleep_until};

use crate::document;
use crate::run::{self, Mode, Usage, at_rest, says_refused, settled};
use crate::step::{Done, Step};

const HOURS: u32 = 24;
/// Nobody connects in these.
const IDLE: std::ops::Range<u32> = 12..14;
/// Each opens so many new connections a second, and has one that stays open.
const RATE: u32 = 4;
const LOADS: usize = 5;
/// Hours until everything has been used once.
const WARM_UP: u32 = 3;
/// From then on to the end, in kB: resident memory may grow by no more.
const GROWTH: u64 = 1536;
/// Clients are held for 30 s and the clock of network failures ends at 10 s: within this nobody is sent away.
const LONGEST_FAULT: Duration = Duration::from_secs(15);
/// The SDK fetches credentials anew 10 s before they expire.
const SHORTEST_CREDENTIALS: Duration = Duration::from_secs(15);
/// No idle timeout can be shorter: keep-alives are 2 s apart.
const SHORTEST_IDLE: Duration = Duration::from_secs(6);

/// The daemon at the end of an hour.
pub struct Sample {
    pub hour: u32,
    /// Resident memory in kB.
    pub resident: u64,
    pub usage: Usage,
    pub connections: usize,
}

/// Lives a day in so many seconds. Returns whether every invariant has held.
pub async fn run(program: &Path, seconds: u64, write: bool) -> bool {
    let hour = Duration::from_secs(seconds) / HOURS;
    let lab = Arc::new(Lab::start(Options::default()).await.unwrap());
    let keys = "profile = \"soak\"\n";
    let daemon = run::daemon(program, &lab, Mode::Hold, 1, keys, |command, folder| {
        credentials(command, folder, SHORTEST_CREDENTIALS.max(hour / 4));
    })
    .await;
    let base = at_rest(&daemon).await;
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
            loads.extend((0..LOADS).map(|_| Load::start(daemon.address, RATE)));
        }
        lab.set(Fault::IdleTimeout(SHORTEST_IDLE.max(hour / 3)));
        Step::Close.perform(&lab, &daemon, &mut done).await;
        sleep_until(begins + hour * 2 / 5).await;
        for step in fault(number, (hour / 5).min(LONGEST_FAULT)) {
            entitled += usize::from(cuts(&step) && !loads.is_empty());
            step.perform(&lab, &daemon, &mut done).await;
        }
        sleep_until(begins + hour).await;
        Step::Over.perform(&lab, &daemon, &mut done).await;
        let before: Vec<_> = loads.iter().map(|load: &Load| load.seen().long_lived.messages).collect();
        let again = run::wait(run::SERVED_AGAIN, || {
            let answered = |(load, before): (&Load, &u64)| {
                let seen = load.seen();
                seen.waiting <= 2 && seen.long_lived.messages > before + 5
            };
            let well = lab.status().ready_sessions() > 0 && loads.iter().zip(&before).all(answered);
            well.then_some(())
        });
        if again.await.is_none() {
            breaches.push(format!("clients are not served again in hour {number}"));
        }
        let status = procfs::process::Process::new(daemon.pid().as_raw()).unwrap().status().unwrap();
        let usage = Usage::of(&daemon, SystemTime::now() - Duration::from_secs(5)).unwrap_or_default();
        let made = |seen: &Seen| seen.attempts.len();
        let connections = seen.iter().map(made).sum::<usize>()
            + loads.iter().map(|load: &Load| made(&load.seen())).sum::<usize>();
        let sample = Sample { hour: number + 1, resident: status.vmrss.unwrap(), usage, connections };
        println!("{}", sample.line());
        samples.push(sample);
    }
    let lived = began.elapsed();
    for load in loads {
        seen.push(load.finish().await);
    }
    lab.clear_all();
    let rest = settled(&lab, &daemon, 1, base).await;
    let resident =
        procfs::process::Process::new(daemon.pid().as_raw()).unwrap().status().unwrap().vmrss.unwrap();
    let fetched = std::fs::read_to_string(daemon.folder.path().join("fetched")).unwrap_or_default();
    let fetched = fetched.lines().count();
    let log = daemon.end().await;

    let service = lab.status();
    let ends = run::ends(&log);
    // One that comes back while the destination refuses is turned away again and again.
    let cuts = seen.iter().flat_map(|seen| &seen.long_lived.cuts);
    let cut = cuts.filter(|(at, _)| !done.is_without_destination(*at, *at)).count();
    let all = Seen { attempts: seen.into_iter().flat_map(|seen| seen.attempts).collect(), ..Seen::default() };
    let connections = all.attempts.len();
    let refused = all.failures().filter(|attempt| says_refused(attempt)).count();
    // Those that the destination turned away are not among those that the daemon says it has cut.
    let mut others = all.clone();
    others.attempts.retain(|attempt| !done.without_destination(attempt));
    let failed = others.failed(&ends);
    let longest = all.longest_wait();
    let warm = samples.iter().find(|sample| sample.hour == WARM_UP).map_or(0, |sample| sample.resident);
    let mut breach = |wrong: bool, text: String| {
        if wrong {
            breaches.push(text);
        }
    };
    breach(refused > 0, format!("{refused} connections refused"));
    breach(
        !failed.is_empty(),
        format!("{} connections failed: {:?}", failed.len(), failed.iter().take(5).collect::<Vec<_>>()),
    );
    // Its session's end takes each of them once.
    breach(cut > LOADS * entitled, format!("long-lived connections cut {cut}×, sessions ended {entitled}×"));
    breach(resident > warm + GROWTH, format!("{resident} kB resident, {warm} kB after {WARM_UP} h"));
    let rest_text = rest.as_ref().err().cloned().unwrap_or_default();
    breach(rest.is_err(), format!("not given back: {rest_text}"));
    breach(fetched < 2, format!("credentials fetched {fetched}×"));
    breach(service.expired_keys > 0, format!("{} calls with expired credentials", service.expired_keys));
    breach(!service.sessions.is_empty(), format!("left at the service: {:?}", service.sessions));
    breach(!service.violations.is_empty(), format!("{:?}", service.violations));

    let rest = rest.unwrap_or_default();
    let summary = format!(
        "24 h in {:.0} s with the {}: {connections} connections, {refused} refused, {} failed; longest wait {:.1} s; \
         {} data channels opened, {} resumed, {} sessions started; {} long-lived connections were cut {cut}×, in {entitled} \
         sessions that were ended on purpose; credentials fetched {fetched}×, {} calls with expired ones; {warm} kB resident \
         after {WARM_UP} h, {resident} kB at the end; tasks {} → {}, descriptors {} → {}.",
        lived.as_secs_f64(),
        crate::called(),
        failed.len(),
        longest.as_secs_f64(),
        service.opened,
        service.resume.succeeded,
        service.start.succeeded,
        LOADS,
        service.expired_keys,
        base.tasks,
        rest.tasks,
        base.descriptors,
        rest.descriptors,
    );
    println!("\n{summary}");
    for breach in &breaches {
        println!("BREACH: {breach}");
    }
    if !breaches.is_empty() {
        let told = log.iter().filter(|line| line.fields["level"] != "TRACE").map(|line| &*line.text);
        println!("{}", told.collect::<Vec<_>>().join("\n"));
    }
    if write && breaches.is_empty() {
        document::write(&format!("soak, {}", crate::called()), &document::soak(&summary, &samples));
    }
    breaches.is_empty()
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
fn fault(hour: u32, time: Duration) -> Vec<Step> {
    let begin = |fault| Step::Begin(fault, time);
    let (lost, link) = (0.02, Link { latency: Duration::from_millis(100), bandwidth: 100_000 });
    let loss = Loss { input: lost, output: lost, acknowledgements_in: lost, acknowledgements_out: lost };
    match hour % 12 {
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
    matches!(step, Step::Terminate | Step::Plugin(_))
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
