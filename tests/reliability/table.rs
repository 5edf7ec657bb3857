//! The table: a row for each fault, and what clients may see of it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use autossm_lab::bulk::{Direction, Directions};
use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, Report, UpgradeFault};
use clap::ValueEnum as _;
use futures_util::{StreamExt as _, stream};
use nix::sys::signal::Signal;

use crate::document;
use crate::run::{self, Bound, Figures, Mode, Plan};
use crate::step::{self, Step, words};

/// New connections a second.
const RATE: u32 = 10;
/// Under transfers: beside an upload the plugin opens no more than a dozen streams a second.
const RATE_UNDER_TRANSFERS: u32 = 2;
/// The four tunnels that each row is run on.
pub const TUNNELS: [(Mode, u64); 4] =
    [(Mode::Hold, 1), (Mode::Hold, 2), (Mode::Observe, 1), (Mode::Observe, 2)];

/// A tunnel with transfers is as much work as so many without.
const HEAVY: usize = 3;

/// A fault, and what clients may see of it.
pub struct Row {
    pub name: String,
    steps: Vec<Step>,
    hold: Bound,
    /// Or why that cannot be asked of this mode.
    observe: Result<Bound, &'static str>,
    /// Takes minutes.
    long: bool,
    /// Of an account that has its sessions encrypted.
    encrypted: bool,
    /// Bytes of each of the transfers that run beside the new connections, and their directions.
    bulk: Option<(usize, Directions)>,
}

/// Which rows to run.
pub struct Chosen {
    /// With this in their names.
    pub only: String,
    /// Those that take minutes, too.
    pub long: bool,
    /// With transfers, without, or both.
    pub transfers: Option<bool>,
}

impl Chosen {
    fn has(&self, row: &Row) -> bool {
        row.name.contains(&self.only)
            && (self.long || !row.long)
            && self.transfers.is_none_or(|with| with == row.has_transfers())
    }
}

/// One row's figures on the four tunnels.
pub type Results = [Option<Figures>; TUNNELS.len()];

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// StartSession, plugin and handshake, beside many other tunnels on a busy machine.
const A_LITTLE: u64 = 4;
/// An interrupted session is replaced after `failover_after`.
const FAILOVER: u64 = 5 + A_LITTLE;

/// When a fault is over that has lost nothing; beside many other tunnels on a busy machine.
const SOON: u64 = 2 + 1;
/// A gap is one when it is so old.
const GAP: u64 = 2;
/// An agent that is away can no longer come back.
const GONE: u64 = 100;
/// The agent's in a second.
const MESSAGES: u64 = 900;

/// In observe mode nothing is known of the agent. When it is back the plugin sends again what was lost, a message every 100 ms:
/// of each connection that was opened meanwhile about three.
const fn catching_up(lasted: u64) -> u64 {
    lasted * RATE as u64 * 3 / 10 + A_LITTLE
}

/// At most this wait and, when the fault is over, no longer than that until all is as before.
fn bound(wait: u64, recovery: u64) -> Bound {
    Bound {
        wait: seconds(wait),
        recovery: seconds(recovery),
        cuts: 0,
        starts: 0,
        times_out: false,
        late: seconds(recovery),
        resets: 0,
        repair: Duration::ZERO,
    }
}

impl Bound {
    /// With what is open the transfers are cut, too.
    fn cuts(self, cuts: usize) -> Self {
        Self { cuts, resets: 2 * cuts, ..self }
    }

    /// So long afterwards what is open on a session with a gap is served again, or was cut.
    fn repaired_after(self, repair: u64) -> Self {
        Self { repair: seconds(repair), ..self }
    }

    fn starts(self, starts: u64) -> Self {
        Self { starts, ..self }
    }

    fn times_out(self) -> Self {
        Self { times_out: true, ..self }
    }
}

fn row<const N: usize>(name: impl Into<String>, steps: [Step; N], hold: Bound, observe: Bound) -> Row {
    let (name, steps) = (name.into(), steps.into());
    Row { name, steps, hold, observe: Ok(observe), long: false, encrypted: false, bulk: None }
}

impl Row {
    fn repeated(self, times: usize) -> Self {
        let steps = std::iter::repeat_n(self.steps, times).flatten().collect();
        Self { steps, ..self }
    }

    fn long(self) -> Self {
        Self { long: true, ..self }
    }

    /// With a download and an upload of so many megabytes at any time.
    fn with_transfers(self, megabytes: usize) -> Self {
        Self { bulk: Some((megabytes << 20, Directions::Both)), ..self }
    }

    /// With one of them alone, of 12 MB.
    fn with(self, direction: Direction) -> Self {
        let name = format!("{}, under {direction}s", self.name);
        Self { name, bulk: Some((12 << 20, Directions::Only(direction))), ..self }
    }

    /// Whether there are transfers.
    pub fn has_transfers(&self) -> bool {
        self.bulk.is_some()
    }

    fn not_in_observe(self, why: &'static str) -> Self {
        Self { observe: Err(why), ..self }
    }

    fn bound(&self, mode: Mode) -> Result<Bound, &'static str> {
        match mode {
            Mode::Hold => Ok(self.hold),
            Mode::Observe => self.observe,
        }
    }
}

/// All of them.
pub fn rows() -> Vec<Row> {
    let mut rows = life();
    rows.extend(outages());
    rows.extend(transfers());
    rows.extend(agents());
    rows.extend(step::CALLS.iter().flat_map(|call| {
        let kinds = ApiFault::value_variants().iter();
        // It has no meaning on the other calls.
        let kinds = kinds.filter(|kind| **kind != ApiFault::NoToken || *call == Call::Resume);
        kinds.map(|kind| api(*call, *kind))
    }));
    rows
}

/// What ends sessions, data channels and plugins.
fn life() -> Vec<Row> {
    let pause = |milliseconds| Step::Pause(Duration::from_millis(milliseconds));
    vec![
        // In observe mode the plugin resumes by itself, and dies of what it was just about to send: it is chance whether. Data channels
        // that last for less than 2.5 s would be followed by pauses.
        row(
            "data channels closed ten times, 3 s apart",
            [Step::Close, pause(3000)],
            bound(2, 2),
            bound(FAILOVER, FAILOVER).cuts(10).starts(10),
        )
        .repeated(10),
        row(
            "data channels reset five times, 2 s apart",
            [Step::Abort, pause(2000)],
            bound(2, 2),
            bound(FAILOVER, FAILOVER).cuts(5).starts(5),
        )
        .repeated(5),
        row(
            "sessions terminated by the service",
            [Step::Terminate],
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
        ),
        row(
            "a plugin killed (SIGKILL)",
            [Step::Plugin(Signal::SIGKILL)],
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
        ),
        row(
            "a plugin killed ten times, 3 s apart",
            [Step::Plugin(Signal::SIGKILL), pause(3000)],
            bound(A_LITTLE, A_LITTLE).cuts(10).starts(10),
            bound(A_LITTLE, A_LITTLE).cuts(10).starts(10),
        )
        .repeated(10),
        // Seen in its process state after 3 s.
        row(
            "a plugin stopped (SIGSTOP)",
            [Step::Plugin(Signal::SIGSTOP)],
            bound(A_LITTLE, 3 + A_LITTLE).cuts(1).starts(1),
            bound(A_LITTLE, 3 + A_LITTLE).cuts(1).starts(1),
        ),
        // It ends the session, unless nobody but the plugin reads it.
        row(
            "garbage on one data channel",
            [Step::Garbage],
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
            bound(FAILOVER, FAILOVER).cuts(1).starts(1),
        ),
        // Noticed after 15 s; whoever was given to it before waits until the agent is back.
        row(
            "an agent hangs for 20 s",
            [Step::HangAgent(seconds(20))],
            bound(20 + A_LITTLE, A_LITTLE).starts(1),
            bound(20 + catching_up(20), catching_up(20)),
        ),
    ]
}

/// What happens to the way there.
fn outages() -> Vec<Row> {
    let lasts = |fault: Fault, time| [Step::Begin(fault, seconds(time)), Step::Over];
    let closed = |fault: Fault, time| [Step::Begin(fault, seconds(time)), Step::Close, Step::Over];
    let loss = Loss { input: 0.02, output: 0.02, acknowledgements_in: 0.02, acknowledgements_out: 0.02 };
    let link = Link { latency: Duration::from_millis(200), bandwidth: 64_000 };
    // The clock of network failures ends at 10 s.
    let next_attempt = 10 + A_LITTLE;
    // A session that was started just before the end is given up after 20 s, and not resumed by its plugin.
    let opening = 16 + A_LITTLE;
    vec![
        row(
            "everything refused for 20 s",
            lasts(Fault::Refuse, 20),
            bound(20 + next_attempt, next_attempt).starts(1).times_out(),
            bound(20 + next_attempt, next_attempt).cuts(1).starts(1).times_out(),
        ),
        // In observe mode the long-lived connection is cut, opened again, held and sent away like all others.
        row(
            "everything refused for 90 s",
            lasts(Fault::Refuse, 90),
            bound(30 + A_LITTLE, next_attempt).starts(1).times_out(),
            bound(30 + A_LITTLE, next_attempt).cuts(1 + 90 / 30).starts(1).times_out(),
        )
        .long(),
        // Longer than the plugin goes on resending: it asks to terminate the session after five minutes.
        row(
            "everything refused for 6 min",
            lasts(Fault::Refuse, 360),
            bound(30 + A_LITTLE, next_attempt).starts(1).times_out(),
            bound(30 + A_LITTLE, next_attempt).cuts(1 + 360 / 30).starts(1).times_out(),
        )
        .long(),
        // Whoever was given to the session before it is noticed waits until it is over.
        row(
            "black hole for 40 s",
            lasts(Fault::BlackHole, 40),
            bound(40 + next_attempt, next_attempt).starts(2).times_out(),
            bound(40 + next_attempt, next_attempt).cuts(2).starts(2).times_out(),
        ),
        row(
            "upgrades refused with 403 for 10 s, and data channels closed",
            closed(Fault::Upgrades(UpgradeFault::Refused(403)), 10),
            bound(10 + next_attempt, next_attempt).starts(2),
            bound(10 + opening, opening).cuts(2).starts(3),
        ),
        row(
            "upgrades not answered for 10 s, and data channels closed",
            closed(Fault::Upgrades(UpgradeFault::Stalled), 10),
            bound(10 + next_attempt, next_attempt).starts(2),
            bound(10 + opening, opening).cuts(2).starts(3),
        ),
        row(
            "way slow (200 ms, 64 kB/s) for 15 s",
            lasts(Fault::SlowLink(link), 15),
            bound(A_LITTLE, 2 * A_LITTLE),
            bound(A_LITTLE, 2 * A_LITTLE),
        ),
        row(
            "2 % of messages lost for 10 s",
            lasts(Fault::LostMessages(loss), 10),
            bound(10 + A_LITTLE, A_LITTLE),
            bound(10 + A_LITTLE, A_LITTLE),
        )
        .not_in_observe(
            "the plugin acknowledges nothing twice: one lost acknowledgement and one lost message stall it",
        ),
        row(
            "agent away for 25 s",
            lasts(Fault::AgentAway, 25),
            bound(25 + next_attempt, next_attempt).starts(2).times_out(),
            bound(25 + catching_up(25), catching_up(25)),
        ),
        row(
            "destination refuses for 10 s",
            lasts(Fault::DestinationRefused, 10),
            bound(A_LITTLE, A_LITTLE).starts(1),
            bound(A_LITTLE, A_LITTLE).starts(1),
        ),
        row(
            "the service's clock ten minutes ahead for 5 s, and sessions terminated",
            [Step::Begin(Fault::Clock(600), seconds(5)), Step::Terminate, Step::Over],
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
        ),
        row(
            "idle timeout of 10 s for 15 s",
            lasts(Fault::IdleTimeout(seconds(10)), 15),
            bound(1, 2),
            bound(1, 2),
        ),
        row(
            "sessions live 8 s, for 20 s",
            lasts(Fault::MaximumLife(seconds(8)), 20),
            bound(A_LITTLE, A_LITTLE).cuts(6).starts(3),
            bound(A_LITTLE, A_LITTLE).cuts(6).starts(3),
        ),
    ]
}

/// What happens to the clients' way, under downloads and under uploads.
fn transfers() -> Vec<Row> {
    [Direction::Download, Direction::Upload].into_iter().flat_map(transfers_of).collect()
}

fn transfers_of(direction: Direction) -> Vec<Row> {
    const ACKNOWLEDGES_ONCE: &str =
        "the plugin acknowledges nothing twice: one lost acknowledgement stalls it";
    let lasts = |fault: Fault, time| [Step::Begin(fault, seconds(time)), Step::Over];
    // Nothing is lost: all goes on where it was. Those that waited out `hold` are sent away.
    let frozen = |time: u64| {
        let hold = bound(time + SOON, SOON).starts(3);
        let hold = if time >= 30 { hold.times_out() } else { hold };
        row(format!("link frozen for {time} s"), lasts(Fault::Freeze, time), hold, hold).with(direction)
    };
    // The agent's messages of that time are sent again one at a time, ten in a second.
    let lost = |time: u64| {
        let repair = MESSAGES * time / 10 + 60;
        let hold = bound(GAP + FAILOVER, GAP + FAILOVER).cuts(1).starts(1).repaired_after(repair);
        let fault = Fault::LostMessages(Loss::of(1.0));
        row(format!("everything lost for {time} s"), lasts(fault, time), hold, hold)
            .with(direction)
            .not_in_observe(ACKNOWLEDGES_ONCE)
    };
    vec![
        row(
            "data channels closed ten times, 3 s apart",
            [Step::Close, Step::Pause(seconds(3))],
            bound(SOON + A_LITTLE, SOON).repaired_after(30),
            bound(FAILOVER + A_LITTLE, FAILOVER + A_LITTLE).cuts(10).starts(10).repaired_after(60),
        )
        .repeated(10)
        .with(direction)
        .not_in_observe(ACKNOWLEDGES_ONCE),
        frozen(20),
        frozen(30),
        frozen(40),
        frozen(90).long(),
        lost(1).long(),
        lost(5).long(),
    ]
}

/// What happens to agents, under transfers.
fn agents() -> Vec<Row> {
    const NOTHING_IS_KNOWN: &str = "nothing is known of the agent there";
    let lasts = |fault: Fault, time| [Step::Begin(fault, seconds(time)), Step::Over];
    // It is back at once; what was under way is sent again.
    let back = bound(SOON + A_LITTLE, SOON).repaired_after(30);
    let caught_up = bound(catching_up(3), catching_up(3)).repaired_after(60);
    let next_attempt = 10 + A_LITTLE;
    // What it holds is cut when it can no longer come back.
    let gone = bound(FAILOVER, FAILOVER).cuts(1).starts(1).repaired_after(GONE + 30);
    vec![
        row("agents' data channels closed", [Step::CloseAgents], back, caught_up).with_transfers(4),
        row("agents' data channels reset", [Step::AbortAgents], back, caught_up).with_transfers(4),
        row("both sides' data channels closed", [Step::CloseBoth], back, caught_up).with_transfers(4),
        // It sends into nothing until it is back after 3 to 6 s, and all of that again, one at a time.
        row(
            "agents refused for 3 s",
            lasts(Fault::AgentRefuse, 3),
            bound(FAILOVER, FAILOVER).cuts(1).starts(1).repaired_after(4 * MESSAGES / 10 + 60),
            caught_up,
        )
        .with_transfers(4)
        .not_in_observe(NOTHING_IS_KNOWN)
        .long(),
        // It has given up by then, and the agents of new sessions cannot come either.
        row(
            "agents refused for 20 s",
            lasts(Fault::AgentRefuse, 20),
            bound(20 + next_attempt, next_attempt).cuts(1).starts(4).times_out().repaired_after(GONE + 30),
            caught_up,
        )
        .with_transfers(4)
        .not_in_observe(NOTHING_IS_KNOWN),
        row(
            "the agents' link frozen for 20 s",
            lasts(Fault::AgentFreeze, 20),
            bound(20 + next_attempt, SOON).starts(2).times_out(),
            caught_up,
        )
        .with_transfers(12)
        .not_in_observe(NOTHING_IS_KNOWN),
        row(
            "an agent's worker killed, reported at once",
            [Step::KillWorker(Report::AtOnce)],
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
            bound(A_LITTLE, A_LITTLE).cuts(1).starts(1),
        )
        .with_transfers(4),
        row(
            "an agent's worker killed, reported after 60 s",
            [Step::KillWorker(Report::After(seconds(60)))],
            gone,
            gone,
        )
        .with_transfers(4)
        .not_in_observe(NOTHING_IS_KNOWN)
        .long(),
        row("an agent's worker killed, never reported", [Step::KillWorker(Report::Never)], gone, gone)
            .with_transfers(4)
            .not_in_observe(NOTHING_IS_KNOWN)
            .long(),
    ]
}

/// A call of the API fails for 10 s, just when it is needed.
fn api(call: Call, kind: ApiFault) -> Row {
    const TIME: u64 = 10;
    let fault = Fault::Api(call, kind);
    let begin = Step::Begin(fault, seconds(TIME));
    let (needed, why) = match call {
        Call::Start => (Step::Terminate, "sessions terminated"),
        Call::Resume => (Step::Close, "data channels closed"),
        Call::Terminate => (Step::Plugin(Signal::SIGKILL), "a plugin killed"),
        Call::DataKey => (Step::Terminate, "encrypted sessions terminated"),
        Call::DescribeNodes | Call::GetDocument | Call::CallerIdentity => {
            unreachable!("no session needs {call:?}")
        }
    };
    // Until the clock of the failure's class runs out, all with jitter.
    let (hold, observe) = match (call, kind) {
        // 8 to 15 s, and the next time 15 to 30 s: somebody has to do something, most of the time.
        (Call::Start, ApiFault::Denied | ApiFault::Forbidden | ApiFault::Expired) | (Call::DataKey, _) => {
            let one = bound(30 + A_LITTLE, 30 + A_LITTLE).cuts(2).starts(14).times_out();
            (one, one)
        }
        // Up to 2, 4, 8 and 16 s, or up to 0.5, 1, 2, 4, 8 and 10 s. No client waits for as long as `hold`.
        (Call::Start, _) => {
            let one = bound(28, 18 + A_LITTLE).cuts(1).starts(14);
            (one, one)
        }
        // Without a token the session is over, and so are its connections.
        (Call::Resume, ApiFault::NoToken) => {
            let one = bound(FAILOVER, A_LITTLE).cuts(1).starts(1);
            (one, one.starts(3))
        }
        // Whoever was given to the session before the close was known waits until it is resumed.
        (Call::Resume, _) => {
            let next_attempt = 10 + A_LITTLE;
            (bound(TIME + next_attempt, next_attempt).starts(1), bound(FAILOVER, A_LITTLE).cuts(2).starts(2))
        }
        (Call::Terminate | Call::DescribeNodes | Call::GetDocument | Call::CallerIdentity, _) => {
            let one = bound(A_LITTLE, A_LITTLE).cuts(1).starts(1);
            (one, one)
        }
    };
    let name = format!("{} for {TIME} s, and {why}", words(&fault));
    let row = row(name, [begin, needed, Step::Over], hold, observe);
    match call {
        Call::DataKey => {
            Row { encrypted: true, ..row }.not_in_observe("the plugin calls KMS itself, where the lab is not")
        }
        _ => row,
    }
}

/// Runs the rows that are chosen. Returns whether every invariant has held.
pub async fn run(program: &Path, chosen: &Chosen, jobs: usize, write: bool) -> bool {
    let began = Instant::now();
    let rows = rows();
    let missing = step::missing(rows.iter().flat_map(|row| &row.steps));
    assert!(missing.is_empty(), "faults of the lab without a row: {missing:?}");
    let rows: Vec<Row> = rows.into_iter().filter(|row| chosen.has(row)).collect();
    let mut plans = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        for (column, (mode, sessions)) in TUNNELS.into_iter().enumerate() {
            if let Ok(bound) = row.bound(mode) {
                let (name, steps) = (row.name.clone(), row.steps.clone());
                let (encrypted, bulk) = (row.encrypted, row.bulk);
                let plan = Plan {
                    program: program.to_owned(),
                    name,
                    mode,
                    sessions,
                    rate: if bulk.is_some() { RATE_UNDER_TRANSFERS } else { RATE },
                    encrypted,
                    bulk,
                    steps,
                    bound,
                };
                plans.push((number, column, row.long, Arc::new(plan)));
            }
        }
    }
    // What takes longest begins first.
    plans.sort_by_key(|(.., long, _)| !long);
    let count = plans.len();
    println!("{count} tunnels under test, {jobs} at a time");
    let mut results: Vec<Results> = rows.iter().map(|_| Results::default()).collect();
    // Transfers take a good part of a core each.
    let (heavy, light): (Vec<_>, Vec<_>) = plans.into_iter().partition(|(.., plan)| plan.bulk.is_some());
    for (plans, jobs) in [(light, jobs), (heavy, jobs.div_ceil(HEAVY))] {
        let mut runs = stream::iter(plans)
            .map(|(number, column, _, plan)| async move { (number, column, run::run(plan).await) })
            .buffer_unordered(jobs);
        while let Some((number, column, figures)) = runs.next().await {
            results[number][column] = Some(figures);
        }
    }
    let tables = [false, true].map(|transfers| document::table(&rows, &results, transfers));
    println!("\n{}\n{}\nin {:.0} s", tables[0], tables[1], began.elapsed().as_secs_f64());
    let all: Vec<_> = results.iter().flatten().flatten().collect();
    run::tell_breaches(&all);
    let well = all.iter().all(|figures| figures.breaches.is_empty());
    if write && well {
        document::write("table", &tables[0]);
        document::write("table of transfers", &tables[1]);
    }
    well
}
