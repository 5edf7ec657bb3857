//! Random faults, one after another and at once. The seed decides the schedule, so that it can be had again; what the
//! machine makes of it may differ.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use autossm_lab::fault::{ApiFault, Fault, Link, Loss, UpgradeFault};
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

/// Runs `count` schedules, from that of `seed` on. Returns whether every invariant has held.
pub async fn run(program: &Path, seed: u64, count: u64, jobs: usize) -> bool {
    let runs = stream::iter(seed..seed + count).map(async |seed| {
        let plan = Arc::new(plan(program, seed));
        let schedule: Vec<_> = plan.steps.iter().map(ToString::to_string).collect();
        println!("--seed {seed} [{} {}]: {}", plan.mode.word(), plan.sessions, schedule.join(", "));
        (seed, run::run(plan).await)
    });
    let results: Vec<_> = runs.buffer_unordered(jobs).collect().await;
    let broken: Vec<_> =
        results.iter().filter(|(_, figures)| !figures.breaches.is_empty()).map(|(seed, _)| seed).collect();
    println!("{count} schedules, {} with a breach", broken.len());
    for seed in &broken {
        println!("again: cargo test --test reliability -- random --seed {seed}");
    }
    broken.is_empty()
}

fn plan(program: &Path, seed: u64) -> Plan {
    let mut dice = StdRng::seed_from_u64(seed);
    let mode = *[Mode::Hold, Mode::Hold, Mode::Observe].choose(&mut dice).unwrap();
    let mut steps = Vec::new();
    for _ in 0..dice.random_range(4..=9) {
        steps.push(step(&mut dice, mode));
        // Mostly shorter than what was begun, so that faults overlap.
        steps.push(Step::Pause(Duration::from_millis(dice.random_range(0..4000))));
    }
    // Each step may cost every session and the long-lived connection.
    let most = steps.len();
    Plan {
        program: program.to_owned(),
        name: format!("--seed {seed}"),
        mode,
        sessions: dice.random_range(1..=3),
        rate: dice.random_range(5..=20),
        encrypted: false,
        bound: Bound {
            wait: HOLD + WAIT,
            recovery: RECOVERY,
            cuts: most,
            starts: 4 * most as u64,
            times_out: true,
        },
        steps,
    }
}

fn step(dice: &mut StdRng, mode: Mode) -> Step {
    let time = Duration::from_millis(dice.random_range(300..LONGEST.as_millis() as u64));
    let begin = |fault| Step::Begin(fault, time);
    let share = dice.random_range(0.0..0.1);
    match dice.random_range(0..21) {
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
        18 => Step::Garbage,
        17 => begin(Fault::MaximumLife(Duration::from_secs(dice.random_range(2..10)))),
        _ => {
            let call = *CALLS.choose(dice).unwrap();
            begin(Fault::Api(call, *ApiFault::value_variants().choose(dice).unwrap()))
        }
    }
}
