//! Hooks: commands of the operator's, run when something happens ([`config::Hook`]).
//!
//! Events come from the [`Recorder`], in the middle of whatever has written the log line: there each hook's queue takes
//! them, which is bounded and waits for nobody. A task for each hook runs its command, one at a time. So a hook that
//! hangs, fails or is flooded costs itself something, and no tunnel.

mod process;
mod queue;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{debug, info, warn};

use crate::config;
use crate::control::protocol::{Event, VERSION};
use crate::telemetry::recorder::Recorder;
use queue::{Next, Queue};

/// Between two log lines of the same kind about one hook.
const QUIET: Duration = Duration::from_secs(60);
/// For a command that was killed to be gone.
const GONE: Duration = Duration::from_millis(200);

/// What a hook's task is told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    Run,
    /// The configuration has changed: the command that runs has its time, and that is all.
    Retire,
    /// The daemon stops: what waits and may be run now is run, until then.
    Stop(Instant),
}

/// The hooks of the process.
pub struct Hooks {
    entrances: Entrances,
    orders: Vec<watch::Sender<Order>>,
    tasks: JoinSet<()>,
}

/// Where events come in.
type Entrances = Arc<Mutex<Vec<Arc<Entrance>>>>;

struct Entrance {
    hook: config::Hook,
    queue: Mutex<Queue>,
    /// Events that were left out since the log said so.
    left_out: AtomicU64,
    arrived: Notify,
}

impl Hooks {
    /// None yet, but whatever the recorder takes from now on comes here.
    pub fn new(recorder: &Recorder) -> Self {
        let entrances = Entrances::default();
        let taken = entrances.clone();
        recorder.listen(move |event| {
            for entrance in lock(&taken).iter().filter(|entrance| entrance.takes(event)) {
                entrance.take(event);
            }
        });
        Self { entrances, orders: Vec::new(), tasks: JoinSet::new() }
    }

    /// Makes the hooks those of a configuration. One that is the same goes on with what it has. Must be called within a
    /// runtime.
    pub fn configure(&mut self, wanted: Vec<config::Hook>) {
        let mut now = Vec::new();
        let (mut before, orders) =
            (std::mem::take(&mut *lock(&self.entrances)), std::mem::take(&mut self.orders));
        let mut before: Vec<_> = before.drain(..).zip(orders).collect();
        for hook in wanted {
            match before.iter().position(|(entrance, _)| entrance.hook == hook) {
                Some(same) => now.push(before.swap_remove(same)),
                None => {
                    let entrance = Arc::new(Entrance::new(hook));
                    let (order, orders) = watch::channel(Order::Run);
                    self.tasks.spawn(entrance.clone().work(orders));
                    now.push((entrance, order));
                }
            }
        }
        for (_, order) in before {
            // Its task has taken the order when it looks next.
            let _ = order.send(Order::Retire);
        }
        let (entrances, orders) = now.into_iter().unzip();
        *lock(&self.entrances) = entrances;
        self.orders = orders;
        while self.tasks.try_join_next().is_some() {}
    }

    /// Lets the hooks be run for what has happened so far, and kills those that still run at `until`.
    pub async fn stop(mut self, until: Instant) {
        lock(&self.entrances).clear();
        for order in &self.orders {
            order.send_replace(Order::Stop(until));
        }
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout_at(until + GONE, all).await;
    }
}

impl Entrance {
    fn new(hook: config::Hook) -> Self {
        let queue = Mutex::new(Queue::new(hook.burst, hook.min_interval));
        Self { hook, queue, left_out: AtomicU64::new(0), arrived: Notify::new() }
    }

    fn takes(&self, event: &Event) -> bool {
        let tunnels = self.hook.tunnels.as_ref();
        self.hook.events.contains(&event.event)
            && (event.tunnel.is_empty() || tunnels.is_none_or(|tunnels| tunnels.contains(&event.tunnel)))
    }

    /// Called while a log line is written: nothing here may write one.
    fn take(&self, event: &Arc<Event>) {
        if !lock(&self.queue).offer(event.clone()) {
            self.left_out.fetch_add(1, Relaxed);
        }
        self.arrived.notify_one();
    }

    async fn work(self: Arc<Self>, mut orders: watch::Receiver<Order>) {
        let mut log = Log::default();
        loop {
            let order = *orders.borrow_and_update();
            match order {
                Order::Run => {}
                Order::Stop(until) if Instant::now() < until => {}
                Order::Stop(_) | Order::Retire => return,
            }
            let next = lock(&self.queue).next(Instant::now());
            match next {
                Next::Call(event, left_out) => {
                    log.left_out(&self.hook, &event, &self.left_out);
                    self.call(&event, left_out, &mut orders, &mut log).await;
                }
                Next::At(_) | Next::Nothing if order != Order::Run => return,
                Next::At(time) => {
                    tokio::select! {
                        () = sleep_until(time) => {}
                        changed = orders.changed() => if changed.is_err() { return },
                    }
                }
                Next::Nothing => {
                    tokio::select! {
                        () = self.arrived.notified() => {}
                        changed = orders.changed() => if changed.is_err() { return },
                    }
                }
            }
        }
    }

    async fn call(&self, event: &Event, left_out: u64, orders: &mut watch::Receiver<Order>, log: &mut Log) {
        let began = Instant::now();
        let call = Call { v: VERSION, hook: &self.hook.name, left_out, event };
        let run = match serde_json::to_vec(&call) {
            Ok(mut line) => {
                line.push(b'\n');
                process::run(&self.hook, event, line, orders).await
            }
            Err(error) => Err(error.to_string()),
        };
        match run {
            Ok(()) => {
                let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                debug!(
                    hook = self.hook.name,
                    tunnel = event.tunnel,
                    duration_ms,
                    "hook {} is done",
                    self.hook.name
                );
            }
            Err(reason) => {
                lock(&self.queue).failed(left_out);
                log.failed(&self.hook, event, &reason);
            }
        }
    }
}

/// What a hook reads: the event, and what it has to know beside it.
#[derive(Serialize)]
struct Call<'a> {
    v: u32,
    hook: &'a str,
    /// Events that it was not run for, or in vain, since it was last run well.
    left_out: u64,
    #[serde(flatten)]
    event: &'a Event,
}

/// What the log was told about a hook, so that one that always fails does not fill it.
#[derive(Default)]
struct Log {
    failure: Option<Instant>,
    failures: u64,
    left_out: Option<Instant>,
}

impl Log {
    fn failed(&mut self, hook: &config::Hook, event: &Event, reason: &str) {
        self.failures += 1;
        if !passes(&mut self.failure) {
            return;
        }
        let (hook, failures) = (hook.name.as_str(), std::mem::take(&mut self.failures));
        warn!(
            tunnel = tunnel(event),
            event = "hook_failed",
            hook,
            of = event.event,
            failures,
            reason,
            "hook {hook} failed for {}: {reason}",
            event.event
        );
    }

    fn left_out(&mut self, hook: &config::Hook, event: &Event, count: &AtomicU64) {
        if count.load(Relaxed) == 0 || !passes(&mut self.left_out) {
            return;
        }
        let (hook, left_out) = (hook.name.as_str(), count.swap(0, Relaxed));
        info!(
            tunnel = tunnel(event),
            event = "hook_behind",
            hook,
            left_out,
            "hook {hook} was not run for {left_out} events: too many at once"
        );
    }
}

/// Whether it is time for another line.
fn passes(last: &mut Option<Instant>) -> bool {
    let passes = last.is_none_or(|last| last.elapsed() >= QUIET);
    if passes {
        *last = Some(Instant::now());
    }
    passes
}

fn tunnel(event: &Event) -> Option<&str> {
    (!event.tunnel.is_empty()).then_some(event.tunnel.as_str())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
