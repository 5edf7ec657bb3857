//! Transfers of many bytes beside new connections, while the link stands still, messages are lost, data channels are closed, an agent is gone.
//! The long forms of it, and both modes of the gateway, are in the table of `tests/reliability`. `cargo test --test e2e bulk:: -- --ignored --test-threads 2`.

use std::time::{Duration, SystemTime};

use autossm_lab::Lab;
use autossm_lab::bulk::{Bulk, Direction, Directions, End, Transfer};
use autossm_lab::fault::{Fault, Loss, Report};
use autossm_lab::load::{Attempt, Load, Manner};
use autossm_lab::options::Options;

use crate::daemon::{Daemon, Line, own_address, tunnel, until};

/// Behind a download a new connection waits for what the mux holds; on a busy machine.
const SOON: Duration = Duration::from_secs(3);
const FAILOVER: Duration = Duration::from_secs(1);
/// A gap is one when it is so old, and a new session begins this much later.
const GAP: Duration = Duration::from_secs(2);
/// What a session has for its beginning.
const BEGINNING: Duration = Duration::from_secs(2);
const MEBIBYTE: usize = 1 << 20;

struct Outcome {
    transfers: Vec<Transfer>,
    attempts: Vec<Attempt>,
    /// When the fault was over.
    over: SystemTime,
    log: Vec<std::sync::Arc<Line>>,
}

/// Runs `fault` when transfers are under way, waits until new connections are served as before, and stops everything. A transfer that
/// has not ended after `patience` is left.
async fn under(row: &str, keys: &str, bulk: Bulk, fault: impl AsyncFnOnce(&Lab, &Daemon)) -> Outcome {
    let lab = Lab::start(Options::default()).await.unwrap();
    let address = own_address();
    let config = tunnel(&lab, "bulk", address, lab.addresses().destinations.bulk, keys);
    let daemon = Daemon::start(address, &config);
    daemon.event("ready").await;
    let load = Load::with(daemon.address, Manner { bulk: Some(bulk), ..Manner::small(4) });
    until("transfers under way", || {
        let status = lab.status();
        let well = bulk.directions.all().iter().all(|direction| {
            status.sessions.values().any(|session| match direction {
                Direction::Download => session.sent > 1000,
                Direction::Upload => session.received > 500,
            })
        });
        (well && load.seen().attempts.len() >= 4).then_some(())
    })
    .await;
    fault(&lab, &daemon).await;
    lab.clear_all();
    let over = SystemTime::now();
    until("clients served again", || {
        let seen = load.seen();
        let after = seen.attempts.iter().filter(|one| one.at > over && one.failure.is_none()).count();
        let newest = seen.attempts.last().is_some_and(|one| one.failure.is_none() && one.took < SOON);
        (after >= 12 && newest && seen.waiting <= 4).then_some(())
    })
    .await;
    let seen = load.finish().await;
    let log = daemon.stop(&lab).await;
    let outcome = Outcome { transfers: seen.transfers, attempts: seen.attempts, over, log };
    let after = outcome.attempts.iter().filter(|one| one.at >= over).map(|one| one.took).max();
    println!(
        "{row}: {} connections, {} failed, the longest wait of one that came afterwards {:.1} s; {}",
        outcome.attempts.len(),
        outcome.attempts.iter().filter(|one| one.failure.is_some()).count(),
        after.unwrap_or_default().as_secs_f64(),
        outcome.transfers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    );
    outcome
}

impl Outcome {
    fn none_failed(&self) -> &Self {
        let failed: Vec<_> = self.attempts.iter().filter(|one| one.failure.is_some()).collect();
        assert!(failed.is_empty(), "{failed:?}\n{}", self.story());
        self
    }

    /// No connection that came so long after the fault's end waited longer than this.
    fn later(&self, after: Duration, wait: Duration) -> &Self {
        let late = |one: &&Attempt| one.at >= self.over + after && one.took > wait;
        let late: Vec<_> = self.attempts.iter().filter(late).collect();
        assert!(late.is_empty(), "{late:?}\n{}", self.story());
        self
    }

    /// All of them, with every byte.
    fn all_complete(&self) -> &Self {
        let complete = self.transfers.iter().filter(|one| one.end == End::Complete).count();
        assert!(complete == self.transfers.len() && complete > 0, "{}", self.story());
        self
    }

    /// Each transfer completed with every byte, or its client saw that it did not.
    fn none_cut_without_a_word(&self) -> &Self {
        let wrong = |one: &&Transfer| matches!(one.end, End::Wrong(_) | End::Empty);
        let wrong: Vec<_> = self.transfers.iter().filter(wrong).map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "{wrong:?}\n{}", self.story());
        self
    }

    fn story(&self) -> String {
        let told = |line: &&std::sync::Arc<Line>| {
            matches!(line.fields["level"].as_str(), Some("INFO" | "WARN" | "ERROR"))
        };
        let told: Vec<_> = self.log.iter().filter(told).map(|line| &*line.text).collect();
        format!(
            "{}\n{}",
            told.join("\n"),
            self.transfers.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        )
    }
}

fn transfers(mebibytes: usize, directions: Directions) -> Bulk {
    Bulk { bytes: mebibytes * MEBIBYTE, directions, line_feeds: true, patience: Duration::from_secs(90) }
}

/// Longer than the pings' patience, so that the data channel is given up for dead. Nothing is lost by that.
async fn after_a_freeze_all_goes_on(direction: Direction) {
    let bulk = transfers(8, Directions::Only(direction));
    let row = format!("link frozen for 27 s under {direction}s");
    let outcome = under(&row, "", bulk, async |lab, daemon| {
        lab.set_for(Fault::Freeze, Duration::from_secs(27)).await.unwrap();
        assert_eq!(daemon.events("lost").len(), 0, "{}", daemon.tail());
    })
    .await;
    outcome.none_failed().all_complete().later(Duration::ZERO, SOON);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn after_a_freeze_a_download_goes_on_and_nobody_waits() {
    after_a_freeze_all_goes_on(Direction::Download).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn after_a_freeze_an_upload_goes_on_and_nobody_waits() {
    after_a_freeze_all_goes_on(Direction::Upload).await;
}

/// A third of a second of the agent's messages, which it sends again for half a minute: beside that nobody waits, and the transfer completes
/// when they are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn beside_a_repair_new_clients_have_another_session() {
    let bulk = transfers(3, Directions::Only(Direction::Download));
    let outcome = under("0.3 s lost under downloads", "failover_after = \"1s\"", bulk, async |lab, _| {
        lab.set_for(Fault::LostMessages(Loss::of(1.0)), Duration::from_millis(300)).await.unwrap();
    })
    .await;
    assert!(outcome.log.iter().any(|line| line.field("event") == "interrupted"), "{}", outcome.story());
    outcome.none_failed().none_cut_without_a_word();
    outcome.later(GAP + Duration::from_millis(500), FAILOVER + BEGINNING + SOON);
}

/// The same of the client's messages, which the daemon has itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn an_upload_is_repaired() {
    let bulk = transfers(3, Directions::Only(Direction::Upload));
    let outcome = under("0.3 s lost under uploads", "failover_after = \"1s\"", bulk, async |lab, _| {
        lab.set_for(Fault::LostMessages(Loss::of(1.0)), Duration::from_millis(300)).await.unwrap();
    })
    .await;
    outcome.none_failed().none_cut_without_a_word();
    outcome.later(GAP + Duration::from_millis(500), FAILOVER + BEGINNING + SOON);
}

/// The hourly close, as often as it may come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn transfers_survive_closes_of_either_side() {
    let bulk = transfers(4, Directions::Both);
    let outcome = under("closes under transfers", "", bulk, async |lab, daemon| {
        for round in 1..=3 {
            assert_eq!(lab.close_all(1000, "Bye"), 1);
            daemon.event_times("resumed", round).await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
        assert_eq!(lab.close_agents(1000, "Bye"), 1);
        lab.wait_for("agent", Duration::from_secs(10), |status| status.agents_opened == 2).await.unwrap();
    })
    .await;
    outcome.none_failed().all_complete();
}

/// Its worker is dead, and nobody will ever say so but for the service, which has lost its connection. The transfers on it are cut when it can no
/// longer come back, which is beyond this test.
async fn an_agent_that_is_gone_takes_no_clients(sessions: u64, wait: Duration) {
    let patience = Duration::from_secs(8);
    let bulk = Bulk { patience, ..transfers(16, Directions::Both) };
    let row = format!("the agent of one of {sessions} sessions gone under transfers");
    let keys = format!("failover_after = \"1s\"\nsessions = {sessions}");
    let outcome = under(&row, &keys, bulk, async |lab, daemon| {
        daemon.event_times("ready", usize::try_from(sessions).unwrap()).await;
        let busy = lab.status().sessions.into_iter().max_by_key(|(_, session)| session.sent).unwrap().0;
        assert!(lab.kill_agent(&busy, Report::Never));
        let interrupted = daemon.event("interrupted").await;
        assert_eq!(interrupted.field("session"), busy);
    })
    .await;
    outcome.later(Duration::ZERO, wait).none_cut_without_a_word();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn an_agent_that_is_gone_is_replaced() {
    an_agent_that_is_gone_takes_no_clients(1, FAILOVER + BEGINNING).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures waits beside transfers: needs the machine for itself"]
async fn of_two_agents_the_other_serves_at_once() {
    an_agent_that_is_gone_takes_no_clients(2, Duration::from_secs(1)).await;
}
