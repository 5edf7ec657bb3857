//! What systemd is told of the tunnels: when they are up, how they are, and that none of them is stuck.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tracing::error;

use super::Command;
use super::line::{self, line};
use super::snapshot::Snapshot;
use super::usage;
use crate::proxy::Stats;
use crate::systemd::notify;

/// The line is looked at this often, and sent when it has changed.
const LOOK: Duration = Duration::from_secs(1);

/// What is known of a running tunnel from outside.
#[derive(Clone)]
pub struct View {
    /// Its name.
    pub name: String,
    /// How long the start of the service waits for it.
    pub start_timeout: Duration,
    /// What it is doing.
    pub snapshot: watch::Receiver<Snapshot>,
    /// What its clients meet.
    pub stats: Arc<Stats>,
    /// Where it takes commands.
    pub commands: mpsc::Sender<Command>,
}

/// Tells systemd, in tasks that end with this. Where there is none, it does nothing.
pub struct Service {
    ready: Arc<AtomicBool>,
    refusal: watch::Sender<Option<String>>,
    tasks: JoinSet<()>,
}

impl Service {
    /// Begins to tell of the tunnels that `views` has at the time.
    pub fn start(views: watch::Receiver<Vec<View>>) -> Self {
        let (refusal, refused) = watch::channel(None);
        let mut service = Self { ready: Arc::default(), refusal, tasks: JoinSet::new() };
        if usage::is_wanted() {
            service.tasks.spawn(usage::tell());
        }
        if notify::is_wanted() {
            let ready = service.ready.clone();
            let (starting, mut stopping, at_ready) = (views.borrow().clone(), views.clone(), views.clone());
            service.tasks.spawn(async move {
                tokio::select! {
                    () = first_sessions(starting) => {
                        ready.store(true, Relaxed);
                        // The first line that is looked at once the unit is up should say so.
                        notify::status(&status(&at_ready.borrow(), None));
                        notify::ready();
                    }
                    _ = stopping.wait_for(Vec::is_empty) => {}
                }
            });
            service.tasks.spawn(tell_status(views.clone(), refused));
            if let Some(interval) = notify::watchdog_interval() {
                service.tasks.spawn(feed(views, interval, notify::watchdog));
            }
        }
        service
    }

    /// The configuration is being read again. Before the start is over there is nothing to reload for systemd, and the
    /// end of a reload would count as the end of the start.
    pub fn reloading(&self) {
        if self.ready.load(Relaxed) {
            notify::reloading();
        }
    }

    /// It was taken on, or refused because of this. The line says so until one is taken on.
    pub fn reloaded(&self, refusal: Option<&str>) {
        self.refusal.send_replace(refusal.map(|error| format!("reload refused: {}", line::cut(error))));
        if self.ready.load(Relaxed) {
            notify::ready();
        }
    }
}

/// Until every tunnel has had a session, or its time for it is over.
async fn first_sessions(views: Vec<View>) {
    let began = Instant::now();
    for mut view in views {
        // An error means that it has been stopped.
        let _ = timeout_at(began + view.start_timeout, view.snapshot.wait_for(Snapshot::is_up)).await;
    }
}

async fn tell_status(views: watch::Receiver<Vec<View>>, mut refused: watch::Receiver<Option<String>>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = String::new();
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            // At once: `systemctl status` is what one types after a reload.
            Ok(()) = refused.changed() => {}
        }
        let now = status(&views.borrow(), refused.borrow_and_update().as_deref());
        if now != told {
            notify::status(&now);
            told = now;
        }
    }
}

fn status(views: &[View], refusal: Option<&str>) -> String {
    let snapshots: Vec<_> = views.iter().map(|view| view.snapshot.borrow().clone()).collect();
    let views: Vec<_> = views
        .iter()
        .zip(&snapshots)
        .map(|(view, tunnel)| line::View { name: &view.name, tunnel, clients: view.stats.snapshot() })
        .collect();
    let line = line(&views, Instant::now());
    match refusal {
        Some(refusal) => format!("{refusal} · {line}"),
        None => line,
    }
}

/// Feeds the watchdog as long as every tunnel answers.
async fn feed(views: watch::Receiver<Vec<View>>, every: Duration, tell: impl Fn()) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Half of the time that is left: an answer that comes still counts.
        let asked = views.borrow().clone();
        let answers = join_all(asked.iter().map(|view| answers(&view.commands, every / 2))).await;
        let mut well = true;
        for (view, _) in asked.iter().zip(answers).filter(|(_, answered)| !answered) {
            // One that was taken out in the meantime has every right to be silent.
            if views.borrow().iter().any(|now| now.commands.same_channel(&view.commands)) {
                well = false;
                error!(tunnel = view.name, event = "stuck", "does not answer: the watchdog is not fed");
            }
        }
        if well {
            tell();
        }
    }
}

/// Whether a driver goes round its loop: it takes the question in its turn, and answers.
async fn answers(commands: &mpsc::Sender<Command>, within: Duration) -> bool {
    let (sender, answer) = oneshot::channel();
    let asked = async { commands.send(Command::Beat(sender)).await.is_ok() && answer.await.is_ok() };
    timeout(within, asked).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::tunnel::status::{State, Status};

    fn snapshot(state: State) -> Snapshot {
        let status =
            Status { state, sessions: Vec::new(), next_attempt: None, failure: None, degraded: None };
        Snapshot::new(status, Instant::now())
    }

    /// A tunnel that others play.
    fn view(name: &str) -> (View, watch::Sender<Snapshot>, mpsc::Receiver<Command>) {
        let (sender, snapshot) = watch::channel(snapshot(State::Starting));
        let (commands, receiver) = mpsc::channel(1);
        let start_timeout = Duration::from_secs(30);
        let stats = Arc::default();
        (View { name: name.to_owned(), start_timeout, snapshot, stats, commands }, sender, receiver)
    }

    async fn answer(mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            if let Command::Beat(answer) = command {
                let _ = answer.send(());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_all_answer_and_no_longer() {
        let (one, _one, one_commands) = view("one");
        let (two, _two, two_commands) = view("two");
        let answering = tokio::spawn(answer(one_commands));
        let well = tokio::spawn(answer(two_commands));
        let (views, receiver) = watch::channel(vec![one.clone(), two.clone()]);
        let fed = Arc::new(AtomicUsize::new(0));
        let counted = fed.clone();
        let feeding = tokio::spawn(feed(receiver, Duration::from_secs(10), move || {
            counted.fetch_add(1, Relaxed);
        }));
        tokio::time::sleep(Duration::from_secs(35)).await;
        assert_eq!(fed.load(Relaxed), 4, "at once and every 10 s");

        // One ends without having been told to.
        answering.abort();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fed.load(Relaxed), 4);

        // It is taken out: the other one is well.
        views.send_replace(vec![two]);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(fed.load(Relaxed), 6);

        // One that is there and does nothing.
        let (three, _three, _three_commands) = view("three");
        views.send_modify(|views| views.push(three));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fed.load(Relaxed), 6);
        feeding.abort();
        well.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_is_over_with_the_last_first_session() {
        let (one, one_now, _one) = view("one");
        let (two, two_now, _two) = view("two");
        let start = tokio::spawn(first_sessions(vec![one, two]));
        two_now.send_replace(snapshot(State::Up));
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!start.is_finished());
        one_now.send_replace(snapshot(State::Up));
        start.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_start_waits_no_longer_than_each_tunnel_says() {
        let (one, _one_now, _one) = view("one");
        let (two, _two_now, _two) = view("two");
        let began = Instant::now();
        let two = View { start_timeout: Duration::from_secs(40), ..two };
        first_sessions(vec![one, two]).await;
        assert_eq!(began.elapsed().as_secs(), 40);
    }

    #[tokio::test]
    async fn a_refused_reload_is_said_first() {
        let (one, one_now, _one) = view("one");
        one_now.send_replace(snapshot(State::Up));
        assert_eq!(
            status(&[one], Some("reload refused: line 3")),
            "reload refused: line 3 · up 0 s · 0 open, 0 served"
        );
    }
}
