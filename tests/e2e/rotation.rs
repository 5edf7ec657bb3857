//! Sessions that are replaced before their time is over.

use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::fault::Fault;
use autossm_lab::options::Options;

use crate::daemon::Daemon;
use crate::faults::{KEYS, loaded};

/// Rotates every 5 s, or up to a tenth of that earlier, under load.
async fn every_5_s(time: Duration) {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, &format!("rotate = \"5s\"\n{KEYS}")).await;
    let row = format!("rotation every 5 s for {} s", time.as_secs());
    let outcome = loaded(&row, lab, daemon, async |_, daemon| {
        tokio::time::sleep(time).await;
        let rotations = daemon.events("retired").len();
        println!("{rotations} rotations");
        assert!(rotations as u64 >= time.as_secs() / 8, "only {rotations}");
    })
    .await;
    // Its session is kept for it, as long as `drain` says.
    outcome.none_failed().long_lived_survives();
    assert_eq!(outcome.seen.failures().count(), 0, "not even one that was cut with its session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_every_5_s_is_not_noticed() {
    every_5_s(Duration::from_secs(25)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes; run with --ignored"]
async fn rotation_every_5_s_for_2_minutes_is_not_noticed() {
    every_5_s(Duration::from_secs(120)).await;
}

/// The account's preferences say one minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accounts_maximum_is_asked_for_and_met_by_nobody_new() {
    const LIMIT: Duration = Duration::from_secs(60);
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::MaximumLife(LIMIT));
    let daemon = Daemon::echo(&lab, KEYS).await;
    let learned = daemon.event("limit_learned").await;
    assert_eq!(learned.number("duration_ms"), 60_000, "{}", learned.text);
    let outcome = loaded("maximum session duration 60 s, rotate = auto", lab, daemon, async |_, daemon| {
        let ready = daemon.event("ready").await.at;
        let retired = daemon.event("retired").await;
        let age = retired.at.duration_since(ready).unwrap();
        println!("rotated at the age of {:.1} s", age.as_secs_f64());
        assert!(age >= LIMIT.mul_f64(0.8) && age < LIMIT.mul_f64(0.97), "{age:?}");
        // The one connection that is open on it has the rest of the minute.
        let lost = daemon.event("lost").await;
        assert!(lost.number("duration_ms") >= 60_000, "{}", lost.text);
    })
    .await;
    outcome.none_failed().starts(3);
    assert_eq!(outcome.seen.long_lived.cuts.len(), 1, "{}", outcome.story());
    assert_eq!(outcome.service.other.processed, 1, "the account was asked once");
}

/// Nobody may read the preferences: the first session that is ended shows how long the others have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_maximum_that_cannot_be_asked_for_is_learned() {
    const LIMIT: Duration = Duration::from_secs(12);
    let options = Options { documents_are_readable: false, ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    lab.set(Fault::MaximumLife(LIMIT));
    let daemon = Daemon::echo(&lab, "").await;
    let learned = daemon.event("limit_learned").await;
    assert!(learned.number("duration_ms").abs_diff(12_000) < 2_000, "{}", learned.text);
    daemon.event_times("retired", 2).await;
    let lost = daemon.events("lost");
    assert_eq!(lost.len(), 1, "only the first was met by its limit");
    assert!(lost[0].field("reason").contains("maximum session duration"), "{}", lost[0].text);
    let denied: Vec<_> =
        daemon.log().into_iter().filter(|line| line.field("reason").contains("ssm:GetDocument")).collect();
    assert_eq!(denied.len(), 1, "said once: {denied:?}");
    assert_eq!(denied[0].fields["level"], "INFO", "and no error");
    assert_eq!(lab.status().other.processed, 1);
    daemon.stop(&lab).await;
}
