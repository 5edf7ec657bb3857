//! Random faults, one after another and at once. The seed decides the schedule, so that it can be had again; what the
//! machine makes of it may differ.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use autossm_lab::bulk::Directions;
use autossm_lab::fault::{ApiFault, Call, Fault, Link, Loss, Report, UpgradeFault};
use clap::ValueEnum as _;
use futures_util::{StreamExt as _, stream};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::run::{self, Bound, HOLD, Mode, Plan};
use crate::step::{CALLS, Step};

/// The longest of the faults that last.
const LONGEST: Duration = Duration::from_secs(8);
/// No client waits longer than it is held, once a session had it in the midst of the faults.
const WAIT: Duration = Duration::from_secs(60);
/// The slowest clock, that of access, and what comes after.
const RECOVERY: Duration = Duration::from_secs(45);

/// Of each of the transfers, where there are some.
const TRANSFER: usize = 2 << 20;
/// A tenth of 8 s of the agent's messages, one every 100 ms, and what else is lost.
const REPAIR: Duration = Duration::from_secs(150);
/// No agent gives up in it to reconnect.
const AGENT_REFUSED: Duration = Duration::from_secs(3);
/// In this time the agent sends no more than what is repaired in 90 s.
const ALL_LOST: Duration = Duration::from_secs(1);

/// Runs `count` schedules, from that of `seed` on. Returns whether every invariant has held.
pub async fn run(program: &Path, seed: u64, count: u64, agents: bool, jobs: usize) -> bool {
    let runs = stream::iter(seed..seed + count).map(async |seed| {
        let plan = Arc::new(plan(program, seed, agents));
        let schedule: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
        let encrypted = if plan.encrypted { " encrypted" } else { "" };
        println!(
            "--seed {seed} [{} {}{encrypted}]: {}",
            plan.mode.word(),
            plan.sessions,
            schedule.join(", ")
        );
        run::run(plan).await
    });
    let results: Vec<_> = runs.buffer_unordered(jobs).collect().await;
    run::tell_breaches(&results.iter().collect::<Vec<_>>());
    results.iter().all(|figures| figures.breaches.is_empty())
}

fn plan(program: &Path, seed: u64, agents: bool) -> Plan {
    let mut dice = StdRng::seed_from_u64(seed);
    let mode = *[Mode::Hold, Mode::Hold, Mode::Observe].choose(&mut dice).unwrap();
    let mut steps = Vec::new();
    for _ in 0..dice.random_range(4..=9) {
        steps.push(step(&mut dice, mode, agents));
        // Mostly shorter than what was begun, so that faults overlap.
        steps.push(Step::Pause(Duration::from_millis(dice.random_range(0..4000))));
    }
    let (cuts, starts) = steps.iter().map(costs).fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    Plan {
        program: program.to_owned(),
        name: format!("random --seed {seed}"),
        mode,
        sessions: dice.random_range(1..=3),
        rate: dice.random_range(5..=20),
        // In observe mode the plugin calls KMS itself, where the lab is not.
        encrypted: mode == Mode::Hold && dice.random_bool(0.3),
        bulk: (agents && dice.random_bool(0.4)).then_some((TRANSFER, Directions::Both)),
        bound: Bound {
            wait: HOLD + WAIT,
            recovery: RECOVERY,
            late: HOLD + WAIT,
            cuts,
            resets: usize::MAX,
            repair: REPAIR,
            starts,
            times_out: true,
        },
        steps,
    }
}

/// What a step may cost at the most: cuts of the long-lived connection, and StartSession for each of the tunnel's sessions.
fn costs(step: &Step) -> (usize, u64) {
    match step {
        Step::Over | Step::Pause(_) => (0, 0),
        // Those that are old when it begins, and then one after the other; in the 10 s of the table no more than 14 attempts fail.
        Step::Begin(Fault::MaximumLife(life), time) => {
            let lives = 1 + time.as_secs() / life.as_secs().max(1);
            (lives as usize, lives)
        }
        Step::Begin(Fault::Api(Call::Start | Call::DataKey, _) | Fault::Upgrades(_), _) => (1, 14),
        Step::Begin(..) => (1, 4),
        _ => (1, 2),
    }
}

fn step(dice: &mut StdRng, mode: Mode, agents: bool) -> Step {
    let time = Duration::from_millis(dice.random_range(300..LONGEST.as_millis() as u64));
    let begin = |fault| Step::Begin(fault, time);
    let share = dice.random_range(0.0..0.1);
    match dice.random_range(0..if agents { 31 } else { 24 }) {
        0..=3 => Step::Close,
        4 | 5 => Step::Abort,
        6 => Step::Terminate,
        7 => Step::Plugin(Signal::SIGKILL),
        8 => Step::Plugin(Signal::SIGSTOP),
        9 => Step::HangAgent(time),
        10 => begin(Fault::Refuse),
        11 => begin(Fault::BlackHole),
        12 => begin(Fault::Upgrades(UpgradeFault::Refused(dice.random_range(400..600)))),
        13 => begin(Fault::Upgrades(UpgradeFault::Stalled)),
        14 => begin(Fault::SlowLink(Link {
            latency: Duration::from_millis(dice.random_range(1..500)),
            bandwidth: dice.random_range(20_000..1_000_000),
        })),
        // The plugin alone does not survive it.
        15 if mode == Mode::Hold => begin(Fault::LostMessages(Loss {
            input: share,
            output: share,
            acknowledgements_in: share,
            acknowledgements_out: share,
        })),
        16 => begin(Fault::AgentAway),
        17 => begin(Fault::MaximumLife(Duration::from_secs(dice.random_range(2..10)))),
        18 => Step::Garbage,
        // It has the session replaced.
        19 => begin(Fault::DestinationRefused),
        // Longer than what is between two keep-alives, or clients; not than what keeps both from coming through.
        20 => begin(Fault::IdleTimeout(Duration::from_secs(dice.random_range(5..20)))),
        24 => begin(Fault::Freeze),
        25 if mode == Mode::Hold => Step::Begin(Fault::LostMessages(Loss::of(1.0)), time.min(ALL_LOST)),
        26 => Step::CloseAgents,
        27 => Step::AbortAgents,
        28 if mode == Mode::Hold => Step::Begin(Fault::AgentRefuse, time.min(AGENT_REFUSED)),
        29 => Step::CloseBoth,
        30 => Step::KillWorker(Report::AtOnce),
        21 => begin(Fault::Clock(dice.random_range(-900..900))),
        _ => {
            let call = *CALLS.choose(dice).unwrap();
            begin(Fault::Api(call, *ApiFault::value_variants().choose(dice).unwrap()))
        }
    }
}
