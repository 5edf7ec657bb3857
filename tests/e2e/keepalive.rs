//! Tunnels that nobody uses, and agents that are gone behind a service that answers.

use std::time::{Duration, Instant, SystemTime};

use autossm_lab::Lab;
use autossm_lab::fault::{Fault, Link, Loss};
use autossm_lab::options::Options;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, PATIENCE, own_address, plugin_from_source, tunnel_by, until};
use crate::faults::{KEYS, Outcome, loaded};

const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// What the agent has for an acknowledgement.
const SILENCE: Duration = Duration::from_secs(15);
/// No new connection waits longer, but for those that were given to a session that is dead.
const LONG: Duration = Duration::from_secs(2);
/// For a busy machine, beyond what is promised.
const SLACK: Duration = Duration::from_millis(1500);

async fn lab_with_idle_timeout() -> Lab {
    let lab = Lab::start(Options::default()).await.unwrap();
    lab.set(Fault::IdleTimeout(IDLE_TIMEOUT));
    lab
}

/// Runs `fault` under load, with these keys.
async fn under_load(row: &str, keys: &str, fault: impl AsyncFnOnce(&Lab, &Daemon)) -> Outcome {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, &format!("{KEYS}{keys}")).await;
    loaded(row, lab, daemon, fault).await
}

async fn echoes(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(message).await.unwrap();
    let mut back = vec![0; message.len()];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await;
    read.expect("an echo").unwrap();
    assert!(back == message, "the echo differs from what was sent");
}

/// Nobody connects; and one connection is open but says nothing.
async fn idle_for(time: Duration) {
    let lab = lab_with_idle_timeout().await;
    let daemon = Daemon::echo(&lab, "keepalive = \"2s\"").await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut open, b"before").await;
    let ended = lab.wait_for("end", time, |status| !status.ended.is_empty()).await;
    assert!(ended.is_err(), "{:?}\n{}", ended, daemon.tail());
    echoes(&mut open, b"after").await;
    let status = lab.status();
    let (sent, round_trips) = (daemon.events("keep_alive").len(), daemon.events("round_trip"));
    let longest = round_trips.iter().map(|line| line.number("duration_us")).max().unwrap_or_default();
    println!(
        "idle for {} s under an idle timeout of 10 s: StartSession {}×, {sent} keep-alives, longest round trip {:.1} ms",
        time.as_secs(),
        status.start.processed,
        longest as f64 / 1000.0,
    );
    assert_eq!(status.start.processed, 1);
    let expected = time.as_secs() / 2;
    assert!((expected / 2..=expected + 1).contains(&(sent as u64)), "{sent}");
    assert!(round_trips.len() + 1 >= sent, "{} acknowledged", round_trips.len());
    assert!(daemon.events("interrupted").is_empty());
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_tunnel_stays_up() {
    idle_for(Duration::from_secs(30)).await;
}

/// The agent of a plugin that was built from source ends a session in which for 30 to 60 s nothing has come from the client's
/// side, its own keep-alives notwithstanding.
async fn idle_by_a_plugin_from_source(options: Options, time: Duration) {
    let keep_alives = async |keys: &str| {
        let lab = Lab::start(options.clone()).await.unwrap();
        let address = own_address();
        let plugin = plugin_from_source();
        let config = tunnel_by(&plugin, &lab, "echo", address, lab.echo_addr(), keys);
        let daemon = Daemon::start(address, &config);
        daemon.event("ready").await;
        let mut open = TcpStream::connect(address).await.unwrap();
        echoes(&mut open, b"before").await;
        let ended = lab.wait_for("end", time, |status| !status.ended.is_empty()).await;
        assert!(ended.is_err(), "{keys}: {ended:?}\n{}", daemon.tail());
        echoes(&mut open, b"after").await;
        let sent = daemon.events("keep_alive").len();
        println!("{keys}, idle for {} s by {}: {sent} keep-alives", time.as_secs(), plugin.display());
        assert!(sent >= usize::try_from(time.as_secs()).unwrap() / 12, "{keys}: {sent}");
        daemon.stop(&lab).await;
    };
    let keys = ["keepalive = \"off\"", "keepalive = \"10s\"", "keepalive = \"1m\""];
    futures_util::future::join_all(keys.map(keep_alives)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_of_a_plugin_from_source_lives_on() {
    let seconds = Duration::from_secs;
    let options =
        Options { mux_keep_alive: seconds(2), mux_keep_alive_timeout: seconds(12), ..Options::default() };
    idle_by_a_plugin_from_source(options, seconds(26)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes; run with --ignored"]
async fn an_idle_session_of_a_plugin_from_source_lives_on_for_two_minutes() {
    idle_by_a_plugin_from_source(Options::default(), Duration::from_secs(120)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes; run with --ignored"]
async fn an_idle_tunnel_stays_up_for_two_minutes() {
    idle_for(Duration::from_secs(120)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keep_alive_the_idle_timeout_is_obeyed() {
    let lab = lab_with_idle_timeout().await;
    let daemon = Daemon::echo(&lab, "keepalive = \"off\"").await;
    let lost = daemon.event("lost").await;
    assert!(lost.field("reason").contains("inactivity"), "{}", lost.text);
    assert!(lost.number("duration_ms") >= 10_000, "{}", lost.text);
    daemon.event_times("ready", 2).await;
    echoes(&mut TcpStream::connect(daemon.address).await.unwrap(), b"hello").await;
    assert_eq!(daemon.events("keep_alive").len(), 0);
    daemon.stop(&lab).await;
}

/// Keep-alives between traffic, hourly closes and lost messages; every second one is on its way when the data channel is
/// closed. The lab's agent judges the numbering.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_arrives_with_keep_alives_between() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "keepalive = \"1s\"").await;
    lab.set(Fault::SlowLink(Link { latency: Duration::from_millis(100), bandwidth: 0 }));
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(TcpStream::connect(daemon.address).await.unwrap());
    }
    let (mut bytes, rounds) = (0, 12);
    for round in 0..rounds {
        for (number, client) in clients.iter_mut().enumerate() {
            let mut message = vec![b'a' + number as u8; 1017 * (round + 1)];
            message.extend_from_slice(b"\n");
            echoes(client, &message).await;
            bytes += message.len();
        }
        if round == rounds / 2 {
            let (lost, none) = (0.2, 0.0);
            let loss =
                Loss { input: lost, output: none, acknowledgements_in: none, acknowledgements_out: lost };
            lab.set(Fault::LostMessages(loss));
        }
        let keep_alives = daemon.events("keep_alive").len();
        daemon.event_times("keep_alive", keep_alives + 1).await;
        if round % 2 == 0 {
            let resumed = daemon.events("resumed").len();
            assert_eq!(lab.close_all(1000, "Bye"), 1);
            // Traffic while it is down and while the keep-alive is missing.
            echoes(&mut clients[round % 3], b"meanwhile").await;
            daemon.event_times("resumed", resumed + 1).await;
        }
    }
    lab.clear_all();
    let status = lab.wait_for("rest", PATIENCE, |status| {
        status.sessions.values().all(|session| session.connected && session.unacknowledged == 0)
    });
    let status = status.await.unwrap();
    println!(
        "keep-alives between traffic: {} keep-alives, {bytes} bytes echoed, {} messages lost on purpose, {} duplicates, \
         StartSession {}×",
        daemon.events("keep_alive").len(),
        status.lost,
        status.duplicates,
        status.start.processed,
    );
    assert_eq!(status.start.processed, 1);
    assert!(status.lost > 0, "nothing was lost");
    daemon.stop(&lab).await;
}

/// The agent of one of two sessions does nothing any more, and the service answers every ping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_agent_is_noticed_and_failed_over() {
    let mut noticed = Duration::ZERO;
    let keys = "sessions = 2\nkeepalive = \"2s\"\n";
    let outcome = under_load("agent of one of two sessions hangs", keys, async |lab, daemon| {
        daemon.event_times("ready", 2).await;
        let session = lab.sessions().remove(0);
        let began = SystemTime::now();
        assert!(lab.hang_agent(&session, true));
        let interrupted = daemon.event("interrupted").await;
        noticed = interrupted.at.duration_since(began).unwrap();
        assert_eq!(interrupted.field("session"), session);
        assert!(
            interrupted.field("reason").contains("the agent acknowledges nothing"),
            "{}",
            interrupted.text
        );
        daemon.event_times("ready", 3).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(lab.hang_agent(&session, false));
        daemon.event("resumed").await;
    })
    .await;
    println!("from the agent's hanging to its being noticed: {:.1} s", noticed.as_secs_f64());
    assert!(noticed <= Duration::from_secs(2) + SILENCE + SLACK, "{noticed:?}");
    given_to_it(&outcome);
    outcome.none_failed().long_lived_survives().starts(3);
}

/// New connections that went to the session whose agent hangs, which nobody knows before it is noticed. They make it the
/// fuller one of the two, so that they are few.
fn given_to_it(outcome: &Outcome) -> usize {
    let noticed = outcome.log.iter().find(|line| line.field("event") == "interrupted").unwrap().at;
    let given: Vec<_> = outcome.seen.attempts.iter().filter(|attempt| attempt.took > LONG).collect();
    let longest = given.iter().map(|attempt| attempt.took).max().unwrap_or_default();
    println!(
        "of {} connections {} were given to the session with the hanging agent, and waited up to {:.1} s",
        outcome.seen.attempts.len(),
        given.len(),
        longest.as_secs_f64()
    );
    assert!(given.iter().all(|attempt| attempt.at <= noticed + SLACK), "{given:?}\n{}", outcome.story());
    assert!(given.len() <= 10, "{given:?}");
    given.len()
}

/// It does not come back: what was given to it is cut when `resume_for` is over, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_agent_that_stays_so_cuts_only_what_it_was_given() {
    let resume_for = Duration::from_secs(10);
    let keys = "sessions = 2\nkeepalive = \"2s\"\nresume_for = \"10s\"\n";
    let outcome = under_load("agent of one of two sessions hangs for good", keys, async |lab, daemon| {
        daemon.event_times("ready", 2).await;
        let session = lab.sessions().remove(0);
        assert!(lab.hang_agent(&session, true));
        let interrupted = daemon.event("interrupted").await;
        daemon.event_times("ready", 3).await;
        let lost = daemon.event("lost").await;
        assert_eq!(lost.field("session"), session);
        let after = lost.at.duration_since(interrupted.at).unwrap();
        assert!(after >= resume_for - SLACK && after <= resume_for + SLACK, "{after:?}");
    })
    .await;
    let lost: Vec<_> = outcome.log.iter().filter(|line| line.field("event") == "lost").collect();
    assert_eq!(lost.len(), 1, "{}", outcome.story());
    let given = given_to_it(&outcome);
    let cut = outcome.seen.failures().count() + outcome.seen.long_lived.cuts.len();
    println!(
        "{} connections were open on it, {given} new ones among them; {cut} were cut",
        lost[0].number("cut")
    );
    assert!(cut as u64 <= lost[0].number("cut"), "{}", outcome.story());
    outcome.none_failed().starts(3);
}

/// Without a client only the keep-alive can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_agent_of_an_idle_tunnel_is_noticed() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "keepalive = \"2s\"").await;
    let mut open = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut open, b"before").await;
    daemon.event("round_trip").await;
    let session = lab.sessions().remove(0);
    let began = Instant::now();
    assert!(lab.hang_agent(&session, true));
    daemon.event("interrupted").await;
    let noticed = began.elapsed();
    println!("idle, from the agent's hanging to its being noticed: {:.1} s", noticed.as_secs_f64());
    assert!(noticed <= Duration::from_secs(2) + SILENCE + SLACK, "{noticed:?}");
    daemon.event_times("ready", 2).await;
    let mut new = TcpStream::connect(daemon.address).await.unwrap();
    echoes(&mut new, b"on the second session").await;
    assert!(lab.hang_agent(&session, false));
    assert_eq!(daemon.event("resumed").await.number("attempts"), 0, "nothing was closed");
    echoes(&mut open, b"after").await;
    drop(open);
    let ended = daemon.event("ended").await;
    assert_eq!((ended.field("session"), ended.field("reason")), (&*session, "replaced"));
    echoes(&mut new, b"still there").await;
    assert_eq!(lab.status().start.processed, 2);
    daemon.stop(&lab).await;
}

/// The agent's host is rebooted, say, and the data channel closed in the midst of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_away_for_45_s() {
    let keys = "keepalive = \"2s\"\n";
    let outcome = under_load("agent away for 45 s", keys, async |lab, daemon| {
        let away = lab.set_for(Fault::AgentAway, Duration::from_secs(45));
        let interrupted = daemon.event("interrupted").await;
        assert_eq!(interrupted.field("cause"), "agent_away");
        let session = interrupted.field("session").to_owned();
        assert!(lab.close(&session, 1000, "Bye"));
        until("the data channel open again", || lab.status().sessions[&session].connected.then_some(()))
            .await;
        assert!(daemon.events("resumed").is_empty(), "resumed without an agent");
        away.await.unwrap();
        let resumed = daemon.event("resumed").await;
        assert_eq!(resumed.field("session"), session);
    })
    .await;
    outcome.only_those_that_waited_failed().long_lived_survives();
}
