//! Data channels that the service closes much more often than every hour.

use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::options::Options;

use crate::daemon::{Daemon, PATIENCE};
use crate::faults::{KEYS, loaded};

/// A service that closes them normally is resumed at once each time, however young they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_closes_in_a_row_hold_up_no_client() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, KEYS).await;
    let outcome = loaded("10 closes, 1.5 s apart", lab, daemon, async |lab, daemon| {
        for number in 1..=10 {
            lab.wait_for("the data channel", PATIENCE, |status| status.ready_sessions() == 1).await.unwrap();
            assert_eq!(lab.close_all(1000, "Bye"), 1);
            tokio::time::sleep(Duration::from_millis(1500)).await;
            daemon.event_times("resumed", number).await;
        }
    })
    .await;
    outcome.none_failed().long_lived_survives().starts(1);
    assert_eq!(outcome.service.resume.processed, 10, "{}", outcome.story());
    // With a pause after each short life the last ones would take seconds: the rule is tried in virtual time, in `liveness`.
    let resumed = outcome.log.iter().filter(|line| line.field("event") == "resumed");
    let took: Vec<_> = resumed.map(|line| Duration::from_millis(line.number("duration_ms"))).collect();
    println!("10 closes, 1.5 s apart: resumed after {took:?}");
    assert_eq!(took.len(), 10, "{}", outcome.story());
}
