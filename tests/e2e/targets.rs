//! Targets that come and go: lists in order of preference, tags, pools, instances that are replaced.

use std::time::{Duration, Instant};

use autossm_lab::Lab;
use autossm_lab::fault::{ApiFault, Call, Fault};
use autossm_lab::options::{Node, Options};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Daemon, PATIENCE, own_address, tunnel, until};

const A: &str = "i-00000000000000aaa";
const B: &str = "i-00000000000000bbb";
const C: &str = "i-00000000000000ccc";
const TAG: &str = "{ tag = \"Role=bastion\" }";

async fn lab(online: &[&str]) -> Lab {
    let nodes = online.iter().map(|id| Node::tagged(id, "Role", "bastion")).collect();
    Lab::start(Options { nodes, ..Options::default() }).await.unwrap()
}

fn offline(id: &str) -> Node {
    Node { online: false, ..Node::tagged(id, "Role", "bastion") }
}

/// A daemon whose tunnel has this `target`.
fn start(lab: &Lab, target: &str, keys: &str) -> Daemon {
    let address = own_address();
    let config = tunnel(lab, "echo", address, lab.echo_addr(), keys);
    let fixed = "target = \"i-0123456789abcdef0\"";
    assert!(config.contains(fixed));
    Daemon::start(address, &config.replace(fixed, &format!("target = {target}")))
}

async fn echo(daemon: &Daemon) {
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.expect("an echo").unwrap();
    assert_eq!(&back, b"ping");
}

/// Whom the sessions were started with, in their order.
fn started(daemon: &Daemon) -> Vec<String> {
    daemon.events("started").iter().map(|line| line.field("target").to_owned()).collect()
}

/// The instance is gone, and the service ends its sessions.
fn terminate(lab: &Lab, id: &str) {
    lab.set_node(offline(id));
    let status = lab.status();
    for (session, _) in status.sessions.iter().filter(|(_, session)| session.target == id) {
        lab.terminate(session, "Session terminated: the instance is gone");
    }
}

/// An Auto Scaling group replaces the instance: nothing is online for a while, however long, and then another one is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_instance_is_found_within_five_seconds_of_its_ping() {
    let lab = lab(&[A]).await;
    let daemon = start(&lab, TAG, "hold = \"60s\"");
    daemon.event("ready").await;
    echo(&daemon).await;
    let (mut longest, mut ups) = (Duration::ZERO, 1);
    // Long enough for a clock that doubles from 2 s to have reached 16 s at least.
    for (before, after, pause) in [(A, B, 25_000), (B, C, 7_300), (C, A, 11_900)] {
        let listed = lab.status().nodes_listed;
        terminate(&lab, before);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let failed = daemon.events("failed").pop().expect("it has no target");
        assert_eq!(failed.field("class"), "target not connected", "{}", failed.text);
        assert!(failed.text.contains("no managed node with tag Role=bastion is online"), "{}", failed.text);
        let listed = lab.status().nodes_listed - listed;
        let ping = Instant::now();
        lab.set_node(Node::tagged(after, "Role", "bastion"));
        ups += 1;
        daemon.event_times("ready", ups).await;
        echo(&daemon).await;
        let took = ping.elapsed();
        println!(
            "instance replaced after {:.1} s with none online: back {:.1} s after the new one's ping; \
             DescribeInstanceInformation {listed}×",
            pause as f64 / 1000.0,
            took.as_secs_f64()
        );
        assert!(listed <= 2 + pause / 1600, "{listed} calls in {pause} ms");
        assert_eq!(started(&daemon).last().unwrap(), after);
        longest = longest.max(took);
    }
    assert!(longest < Duration::from_secs(5), "{longest:?}\n{}", daemon.tail());
    let starts = lab.status().start;
    println!("StartSession {}×, {} of them refused", starts.processed, starts.processed - starts.succeeded);
    assert_eq!(starts.succeeded, 4);
    assert!(starts.processed <= 4 + 2 * 3, "what is listed nowhere is not asked: {starts:?}");
    daemon.stop(&lab).await;
}

/// The service still lists the instance as online, which it does for minutes, when the session is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_listed_but_not_connected_is_passed_over_at_once() {
    let lab = lab(&[A, B]).await;
    let daemon = start(&lab, TAG, "");
    daemon.event("ready").await;
    assert_eq!(started(&daemon), [A]);
    // A session that is lost within its first second would be a failed attempt.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let began = Instant::now();
    lab.refuse_target(A, true);
    lab.terminate_all("Session terminated: the instance is gone");
    daemon.event_times("ready", 2).await;
    echo(&daemon).await;
    println!(
        "terminated, another online under the same tag: back after {:.2} s",
        began.elapsed().as_secs_f64()
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(started(&daemon), [A, B]);
    daemon.event("target_passed_over").await;
    daemon.stop(&lab).await;
}

/// Nobody tells: the agent acknowledges nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_falls_silent_is_replaced_by_another_target() {
    let lab = lab(&[]).await;
    let list = format!("[\"{A}\", \"{B}\"]");
    let daemon = start(&lab, &list, "keepalive = \"1s\"\nfailover_after = \"1s\"");
    daemon.event("ready").await;
    let session = lab.sessions().remove(0);
    let began = Instant::now();
    assert!(lab.hang_agent(&session, true));
    daemon.event_times("ready", 2).await;
    println!("agent silent: served by another target after {:.1} s", began.elapsed().as_secs_f64());
    assert!(began.elapsed() < Duration::from_secs(1 + 15 + 1 + 3));
    assert_eq!(started(&daemon), [A, B]);
    echo(&daemon).await;
    lab.hang_agent(&session, false);
    daemon.stop(&lab).await;
}

/// One of two may not be used. When the other one is gone too, both reasons are told, and the shorter clock counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_denied_is_passed_over() {
    let lab = lab(&[]).await;
    lab.deny_target(A, true);
    let daemon = start(&lab, &format!("[\"{A}\", \"{B}\"]"), "");
    daemon.event("ready").await;
    assert_eq!(started(&daemon), [B]);
    let passed = daemon.event("target_passed_over").await;
    assert!(
        passed.field("target") == A && passed.field("reason").contains("AccessDenied"),
        "{}",
        passed.text
    );
    echo(&daemon).await;
    // A session that is lost within its first second would be a failed attempt.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    lab.refuse_target(B, true);
    lab.terminate_all("Session terminated: the instance is gone");
    let failed = daemon.event("failed").await;
    assert_eq!(failed.field("class"), "target not connected", "{}", failed.text);
    let reason = failed.field("reason");
    assert!(reason.contains(&format!("{B} is not connected")), "{reason}");
    assert!(reason.contains(&format!("; {A}: StartSession: AccessDenied")), "{reason}");
    lab.refuse_target(B, false);
    daemon.event_times("ready", 2).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_session_is_back_on_the_preferred_target() {
    let lab = lab(&[]).await;
    lab.set_node(offline(A));
    let daemon = start(&lab, &format!("[\"{A}\", \"{B}\"]"), "rotate = \"5s\"");
    let began = Instant::now();
    daemon.event("ready").await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(started(&daemon), [B]);
    lab.set_node(Node::tagged(A, "Role", "bastion"));
    daemon.event_times("ready", 2).await;
    assert_eq!(started(&daemon), [B, A]);
    echo(&daemon).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_is_spread_over_the_targets_and_asks_for_them_once() {
    let lab = lab(&[A, B, C]).await;
    let daemon = start(&lab, TAG, "sessions = 3");
    daemon.event_times("ready", 3).await;
    let mut targets = started(&daemon);
    targets.sort();
    assert_eq!(targets, [A, B, C]);
    assert_eq!(lab.status().nodes_listed, 1, "one DescribeInstanceInformation for all slots");
    // One of them goes: its slot moves in with another one.
    terminate(&lab, B);
    daemon.event_times("ready", 4).await;
    assert_ne!(started(&daemon).pop().unwrap(), B);
    daemon.stop(&lab).await;
}

/// The tag has nobody. The file names another target, which may not be used: nobody looks for the old one any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_of_a_tag_are_not_listed_once_another_target_is_configured() {
    let lab = lab(&[]).await;
    let daemon = start(&lab, TAG, "");
    until("a second look for nodes", || (lab.status().nodes_listed >= 2).then_some(())).await;
    lab.set(Fault::Api(Call::Start, ApiFault::Denied));
    let file = daemon.folder.path().join("config.toml");
    let config = std::fs::read_to_string(&file).unwrap().replace(TAG, &format!("\"{A}\""));
    std::fs::write(&file, config).unwrap();
    daemon.signal(Signal::SIGHUP);
    until("a refusal", || (lab.status().start.processed >= 1).then_some(())).await;
    let listed = lab.status().nodes_listed;
    // More than the time between two looks.
    until("the next attempt", || (lab.status().start.processed >= 2).then_some(())).await;
    assert_eq!(lab.status().nodes_listed, listed);
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_a_target() {
    const CONTAINER: &str =
        "ecs:prod_0123456789abcdef0123456789abcdef_0123456789abcdef0123456789abcdef-1234567890";
    let lab = lab(&[]).await;
    let daemon = start(&lab, &format!("\"{CONTAINER}\""), "");
    daemon.event("ready").await;
    let targets: Vec<_> = lab.status().sessions.into_values().map(|session| session.target).collect();
    assert_eq!(targets, [CONTAINER]);
    echo(&daemon).await;
    daemon.stop(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_too_old_is_told_of() {
    let nodes = vec![Node::tagged(A, "Role", "bastion")];
    let options = Options { nodes, agent_version: "3.1.1200.0".into(), ..Options::default() };
    let lab = Lab::start(options).await.unwrap();
    let daemon = start(&lab, TAG, "");
    daemon.event("ready").await;
    let told = until("a warning", || daemon.events("agent_too_old").pop()).await;
    assert!(told.text.contains("3.1.1200.0") && told.text.contains("remote host"), "{}", told.text);
    let log = daemon.stop(&lab).await;
    assert_eq!(log.iter().filter(|line| line.field("event") == "agent_too_old").count(), 1);
}
