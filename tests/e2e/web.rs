//! What `autossm web` tells those who ask: Prometheus, load balancers, programs.

use std::time::{Duration, Instant};

use autossm::control::protocol::{Event, Line, Reply, Request, State};
use autossm::control::time::Timestamp;
use autossm_lab::Lab;
use autossm_lab::fault::Fault;
use autossm_lab::load::Load;
use autossm_lab::options::Options;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::time::timeout;

use crate::daemon::{Daemon, PATIENCE};
use crate::packaged::promtool;
use crate::sample::{Sample, ago, event, quiet_day, up};
use crate::site::Web;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// The value of one series.
fn series(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_follow_what_happens_to_a_tunnel() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "keepalive = \"2s\"").await;
    let web = Web::start(&daemon.folder.path().join("run")).await;
    web.knows(1).await;
    let load = Load::start(daemon.address, 20);
    lab.close_all(1000, "Bye");
    daemon.event("resumed").await;
    load.finish().await;
    // A client that has gone counts when the proxy has waited for what might still come for it.
    let completed = r#"autossm_connections_total{tunnel="echo",outcome="completed"}"#;
    let began = Instant::now();
    while series(&web.get("/metrics").await.body, completed).is_none_or(|count| count < 1.0) {
        assert!(began.elapsed() < PATIENCE, "no connection is over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let text = web.get_as("/metrics", "text/plain").await;
    assert!(text.head.contains("content-type: text/plain; version=0.0.4"), "{}", text.head);
    promtool(&["check", "metrics"], &text.body).await;
    let text = text.body;
    for (name, wanted) in [
        (r#"autossm_tunnel_up{tunnel="echo"}"#, 1.0),
        (r#"autossm_tunnel_reachable{tunnel="echo"}"#, 1.0),
        (r#"autossm_sessions{tunnel="echo",state="ready"}"#, 1.0),
        (r#"autossm_session_starts_total{tunnel="echo",outcome="ok"}"#, 1.0),
        (r#"autossm_session_ends_total{tunnel="echo",reason="service"}"#, 0.0),
        (r#"autossm_stream_closes_total{tunnel="echo",code="1000"}"#, 1.0),
        (r#"autossm_resumes_total{tunnel="echo",outcome="ok"}"#, 1.0),
        (r#"autossm_resume_seconds_count{tunnel="echo"}"#, 1.0),
        (r#"autossm_plugin_restarts_total{tunnel="echo",reason="killed"}"#, 0.0),
    ] {
        assert_eq!(series(&text, name), Some(wanted), "{name}\n{text}");
    }
    for name in [
        completed,
        r#"autossm_bytes_total{tunnel="echo",direction="up"}"#,
        r#"autossm_bytes_total{tunnel="echo",direction="down"}"#,
        r#"autossm_session_age_seconds{tunnel="echo"}"#,
    ] {
        assert!(series(&text, name).is_some_and(|value| value > 0.0), "{name}\n{text}");
    }

    // Once the load has gone the agent is asked by keep-alives.
    let began = Instant::now();
    while series(&web.get("/metrics").await.body, r#"autossm_agent_rtt_seconds{tunnel="echo"}"#).is_none() {
        assert!(began.elapsed() < PATIENCE, "no round trip");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let ready = web.get("/readyz/echo").await;
    assert_eq!((ready.status, ready.json()["state"].as_str()), (200, Some("up")));
    lab.set(Fault::Refuse);
    lab.abort_all();
    let began = Instant::now();
    let down = loop {
        let answer = web.get("/readyz/echo").await;
        if answer.status == 503 {
            break answer.json();
        }
        assert!(began.elapsed() < PATIENCE);
    };
    assert_eq!(down["ready"], false);
    assert_eq!(series(&web.get("/metrics").await.body, r#"autossm_tunnel_up{tunnel="echo"}"#), Some(0.0));
    lab.clear_all();
    daemon.event_times("resumed", 2).await;
    let began = Instant::now();
    while web.get("/readyz/echo").await.status != 200 {
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", web.get("/readyz/echo").await);
    }

    // What was stopped by its operator goes; nothing is said of it any more.
    daemon.stop(&lab).await;
    let began = Instant::now();
    while web.get("/readyz/echo").await.status != 404 {
        assert!(began.elapsed() < PATIENCE, "{:?}", web.get("/readyz/echo").await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!web.get("/metrics").await.body.contains("tunnel="));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_was_killed_is_told_and_one_that_hangs_too() {
    let mut sample = Sample::of(3);
    let web = Web::start(sample.path()).await;
    web.knows(3).await;
    sample.kill("tunnel-001");
    let began = Instant::now();
    let text = loop {
        let text = web.get("/metrics").await.body;
        if series(&text, r#"autossm_tunnel_reachable{tunnel="tunnel-001"}"#) == Some(0.0) {
            break text;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // A restart takes up to 5 s, and is no news.
    assert!(began.elapsed() > Duration::from_secs(4), "told after {:?}", began.elapsed());
    assert_eq!(series(&text, r#"autossm_tunnel_up{tunnel="tunnel-001"}"#), Some(0.0));
    assert_eq!(series(&text, r#"autossm_connections_open{tunnel="tunnel-001"}"#), None);
    assert_eq!(series(&text, r#"autossm_tunnel_up{tunnel="tunnel-002"}"#), Some(1.0));
    let answer = web.get("/readyz/tunnel-001").await;
    assert_eq!((answer.status, answer.json()["state"].as_str()), (503, Some("unreachable")));
    sample.hang("tunnel-002");
    let began = Instant::now();
    while web.get("/readyz/tunnel-002").await.json()["state"] != "unreachable" {
        assert!(began.elapsed() < PATIENCE);
    }
    let text = loop {
        let text = web.get("/metrics").await.body;
        if series(&text, r#"autossm_tunnel_up{tunnel="tunnel-002"}"#) == Some(0.0) {
            break text;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(
        series(&text, r#"autossm_tunnel_up{tunnel="tunnel-000"}"#),
        Some(1.0),
        "the others are told of"
    );
    // Back, as if started again.
    sample.add(up("tunnel-001", 1), &quiet_day("tunnel-001", 1));
    let began = Instant::now();
    while web.get("/readyz/tunnel-001").await.status != 200 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Two load balancers, each with a check for each tunnel; then one daemon hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_balancer_s_check_asks_one_tunnel_and_not_more_often_than_it_helps() {
    const TUNNELS: usize = 50;
    let sample = Sample::of(TUNNELS);
    let web = Web::start(sample.path()).await;
    web.knows(TUNNELS).await;
    let (asked, began) = (sample.asked(), Instant::now());
    for round in 0..300 {
        assert_eq!(web.get("/readyz/tunnel-007").await.status, 200, "{round}");
    }
    let took = began.elapsed();
    let asked = sample.asked() - asked;
    println!("300 checks of one of {TUNNELS} tunnels in {took:?}: {asked} questions");
    // Beside these, each tunnel is asked every 10 s.
    let most = 2 + took.as_millis() as usize / 500 + TUNNELS * (1 + took.as_secs() as usize / 10);
    assert!(asked <= most, "{asked} questions in {took:?}");

    let mut slowest = Duration::ZERO;
    sample.hang("tunnel-001");
    for n in 2..TUNNELS {
        let began = Instant::now();
        assert_eq!(web.get(&format!("/readyz/tunnel-{n:03}")).await.status, 200);
        slowest = slowest.max(began.elapsed());
    }
    // What it has said is good for half a second.
    let hung = Instant::now();
    let told = loop {
        let began = Instant::now();
        let answer = web.get("/readyz/tunnel-001").await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        if answer.status == 503 {
            break answer.json();
        }
        assert!(hung.elapsed() < Duration::from_secs(2), "it is still said to be ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    println!(
        "while one hangs: the others are answered within {slowest:?}, it is told after {:?}",
        hung.elapsed()
    );
    assert_eq!(told["state"], "unreachable", "{told}");
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
}

/// Whatever keeps a daemon from coming back, and whether or not it was ever seen: its tunnel is told to be down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_to_run_and_does_not_is_told() {
    let mut sample = Sample::of(4);
    let units = sample.expects(&["tunnel-000", "tunnel-001", "taken"]);
    // It hung already when autossm web was started.
    sample.hang("tunnel-003");
    let web = Web::start_with(sample.path(), &["--units-dir".as_ref(), units.as_os_str()]).await;
    // As after an upgrade that the configuration does not survive; and one that nobody wants any more.
    for name in ["tunnel-001", "tunnel-002"] {
        sample.change(name, |status| status.state = State::Stopping);
        let began = Instant::now();
        while web.get(&format!("/readyz/{name}")).await.json()["state"] != "stopping" {
            assert!(began.elapsed() < PATIENCE, "{name}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        sample.stop(name);
    }
    let began = Instant::now();
    loop {
        assert_eq!(web.get("/readyz/tunnel-001").await.status, 503);
        let text = web.get("/metrics").await.body;
        let up = ["tunnel-000", "tunnel-001", "tunnel-002", "tunnel-003", "taken"].map(|name| {
            let of = |metric: &str| series(&text, &format!("{metric}{{tunnel=\"{name}\"}}"));
            (of("autossm_tunnel_up"), of("autossm_tunnel_reachable"))
        });
        let down = (Some(0.0), Some(0.0));
        if up == [(Some(1.0), Some(1.0)), down, (None, None), down, down] {
            promtool(&["check", "metrics"], &text).await;
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{up:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("told after {:?}", began.elapsed());
    let taken = web.get("/readyz/taken").await;
    assert_eq!((taken.status, taken.json()["state"].as_str()), (503, Some("unreachable")));
    assert_eq!(
        web.get("/readyz/tunnel-002").await.status,
        404,
        "it was stopped, and is none of those that are to run"
    );
    // Who stops one for good masks it, or takes it out of the configuration.
    std::os::unix::fs::symlink("/dev/null", units.join("autossm@tunnel-001.service")).unwrap();
    std::fs::remove_file(units.join("autossm.target.wants/autossm@taken.service")).unwrap();
    for name in ["tunnel-001", "taken"] {
        let began = Instant::now();
        while web.get(&format!("/readyz/{name}")).await.status != 404 {
            assert!(began.elapsed() < PATIENCE, "{name}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_leaves_the_row_where_it_is() {
    let mut sample = Sample::of(1);
    let web = Web::start(sample.path()).await;
    web.knows(1).await;
    sample.change("tunnel-000", |status| status.state = State::Stopping);
    let began = Instant::now();
    while web.get("/readyz/tunnel-000").await.status != 503 {
        assert!(began.elapsed() < PATIENCE);
    }
    sample.stop("tunnel-000");
    let began = Instant::now();
    let mut answers = Vec::new();
    while began.elapsed() < Duration::from_secs(3) {
        let metrics = web.get("/metrics").await.body;
        let there = series(&metrics, r#"autossm_tunnel_reachable{tunnel="tunnel-000"}"#);
        answers.push((web.get("/readyz/tunnel-000").await.status, there));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(answers.iter().all(|answer| *answer == (503, Some(1.0))), "{answers:?}");
    sample.add(up("tunnel-000", 1), &quiet_day("tunnel-000", 1));
    let began = Instant::now();
    loop {
        match web.get("/readyz/tunnel-000").await.status {
            200 => break,
            status => assert_eq!(status, 503),
        }
        assert!(began.elapsed() < PATIENCE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_and_methods_and_names_are_looked_at() {
    let sample = Sample::of(2);
    let web = Web::start(sample.path()).await;
    web.knows(2).await;
    let ask = async |head: &str| web.ask(&format!("{head}\r\nConnection: close\r\n\r\n")).await;

    for (path, status) in [
        ("/", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/readyz/tunnel-000", 200),
        ("/readyz/nobody", 404),
        ("/api/events?tunnel=nobody", 404),
        ("/api/events?last=x", 400),
        ("/api/events?lst=3", 400),
        ("/api/events?last=1000000000", 200),
        ("/nothing", 404),
        ("/../etc/passwd", 404),
        ("/page.js.map", 404),
    ] {
        assert_eq!(web.get(path).await.status, status, "{path}");
    }
    // A site whose name suddenly leads here.
    let rebound = ask("GET /api/tunnels HTTP/1.1\r\nHost: evil.example:9464").await;
    assert_eq!(rebound.status, 421);
    assert!(!rebound.body.contains("tunnel-000") && rebound.body.contains("--host"), "{}", rebound.body);
    assert_eq!(ask("GET /livez HTTP/1.0").await.status, 200, "a load balancer need not name a host");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let refused =
            ask(&format!("{method} /api/tunnels HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0")).await;
        assert_eq!(refused.status, 405, "{method}");
        assert!(refused.head.contains("allow: get, head"), "{}", refused.head);
    }
    for path in ["/", "/metrics", "/api/live", "/api/events"] {
        let head =
            ask(&format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream")).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
    let page = web.get("/").await;
    assert!(
        page.head.contains("content-security-policy: default-src 'none'; script-src 'self'"),
        "{}",
        page.head
    );
    assert!(!page.head.contains("unsafe-") && page.head.contains("x-content-type-options: nosniff"));

    let events = web.get("/api/events?tunnel=tunnel-001&last=5").await.json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 5);
    assert!(events.iter().all(|event| event["tunnel"] == "tunnel-001"), "{events:?}");
    let tunnels = web.get("/api/tunnels").await.json();
    assert_eq!(tunnels["tunnels"][1]["status"]["name"], "tunnel-001");
    assert_eq!(tunnels["tunnels"][1]["reachable"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_come_slowly_or_in_masses_shut_nobody_out() {
    let sample = Sample::of(1);
    let web = Web::start(sample.path()).await;
    web.knows(1).await;
    let mut idle = Vec::new();
    // More than there is room for, each with a head that never ends, and those who come back to ask more and do not.
    for _ in 0..256 {
        let mut stream = web.open("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        let mut answer = [0; 15];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        idle.push(stream);
    }
    let mut slow = Vec::new();
    for _ in 0..300 {
        slow.push(web.open("GET / HTTP/1.1\r\nHost: localhost\r\n").await);
    }
    let began = Instant::now();
    assert_eq!(timeout(PATIENCE, web.get("/livez")).await.expect("an answer").status, 200);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop((idle, slow));
    // A head that is too large ends its connection, and only that.
    let huge = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = web.open(&huge[..60_000]).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("its end");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));

    let stream = "GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut streams = Vec::new();
    for _ in 0..128 {
        let mut stream = BufReader::new(web.open(stream).await);
        let mut first = String::new();
        stream.read_line(&mut first).await.unwrap();
        assert!(first.contains("200"), "{first}");
        streams.push(stream);
    }
    let refused = web.get("/api/live").await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(web.get("/metrics").await.status, 200, "Prometheus has its place");
    drop(streams);
    let began = Instant::now();
    while web.ask("HEAD /api/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.status
        != 200
    {
        assert!(began.elapsed() < PATIENCE, "places are not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The next event of a stream: its id and data.
async fn next_event(stream: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> (String, Value) {
    let mut id = String::new();
    loop {
        let mut line = String::new();
        let read = timeout(PATIENCE, stream.read_line(&mut line)).await.expect("an event").unwrap();
        assert!(read > 0, "the stream has ended");
        if let Some(text) = line.strip_prefix("id: ") {
            text.trim().clone_into(&mut id);
        } else if let Some(data) = line.strip_prefix("data: ") {
            return (id, serde_json::from_str(data).unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_events_goes_on_where_it_was_cut() {
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let run = daemon.folder.path().join("run");
    let web = Web::start(&run).await;
    web.knows(1).await;
    let follow = async |web: &Web, id: &str| {
        let request = format!(
            "GET /api/events?tunnel=echo HTTP/1.0\r\nAccept: text/event-stream\r\nLast-Event-ID: {id}\r\n\r\n"
        );
        BufReader::new(web.open(&request).await)
    };
    let until = async |stream: &mut _, wanted: &str| loop {
        let (id, event) = next_event(stream).await;
        if event["event"] == wanted {
            return (id, event["seq"].as_u64().unwrap());
        }
    };
    let mut stream = follow(&web, "").await;
    lab.close_all(1000, "Bye");
    let (id, seq) = until(&mut stream, "interrupted").await;
    drop(stream);
    // Nobody listens while this happens.
    daemon.event("resumed").await;
    let mut stream = follow(&web, &id).await;
    let (again, event) = next_event(&mut stream).await;
    assert_eq!(event["seq"], seq + 1, "{again}: {event}");
    let (id, seq) = until(&mut stream, "resumed").await;
    drop(stream);

    // Another process of autossm web, which counts anew, knows the moment.
    drop(web);
    let web = Web::start(&run).await;
    lab.close_all(1000, "Bye");
    daemon.event_times("resumed", 2).await;
    let mut stream = follow(&web, &id).await;
    let mut seen = Vec::new();
    while seen.iter().max() != Some(&(seq + 4)) {
        seen.push(next_event(&mut stream).await.1["seq"].as_u64().unwrap());
    }
    assert!(((seq + 1)..=(seq + 4)).all(|seq| seen.contains(&seq)), "{seq}: {seen:?}");
    drop(stream);
    daemon.stop(&lab).await;
}

/// A daemon of which we are too slow a follower says so once; what it has left out is on its record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_follower_has_missed_is_asked_for_again_and_who_was_away_too_long_is_told() {
    let event_of = |seq: u64, at: Timestamp| Event { seq, ..event("busy", at, "failed", "no session") };
    let mut sample = Sample::new();
    let day: Vec<_> = (1..=2500).map(|seq| event_of(seq, ago(82_500 - 30 * seq))).collect();
    sample.add(up("busy", 1), &day);
    let folder = sample.path().join("burst");
    std::fs::create_dir(&folder).unwrap();
    let listener = tokio::net::UnixListener::bind(folder.join("control.sock")).unwrap();
    let began = Timestamp::now();
    let daemon = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut lines = BufReader::new(&mut stream).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let Line { body: request, .. }: Line<Request> = serde_json::from_str(&line).unwrap();
                    let at = |seq| began.before(Duration::from_secs(100 - seq));
                    let tell = |seq| Reply::Event(Box::new(event_of(seq, at(seq))));
                    let replies: Vec<_> = match request {
                        Request::Events { since: Some(since), .. } if since < at(1) => {
                            vec![tell(1), tell(2), Reply::Missed { events: 3 }, tell(6)]
                        }
                        Request::Events { since: Some(since), .. } => {
                            (1..=6).filter(|seq| at(*seq) >= since).map(tell).collect()
                        }
                        _ => vec![Reply::Status(Box::new(up("burst", 2)))],
                    };
                    for reply in replies {
                        let text = serde_json::to_string(&Line::new(reply)).unwrap() + "\n";
                        lines.get_mut().get_mut().write_all(text.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    let web = Web::start(sample.path()).await;
    web.knows(2).await;
    let began = Instant::now();
    loop {
        let answer = web.get("/api/events?tunnel=burst").await.json();
        let seen: Vec<_> =
            answer["events"].as_array().unwrap().iter().map(|one| one["seq"].clone()).collect();
        if seen == [1, 2, 3, 4, 5, 6] {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let all = web.get("/api/events?last=1000000000").await.json();
    assert_eq!(all["events"].as_array().unwrap().len(), 2000, "of 2006 that are kept");

    let first = async |at: Timestamp| {
        // An id of another process of autossm web, which has left off there.
        let request = format!(
            "GET /api/events?tunnel=busy HTTP/1.0\r\nAccept: text/event-stream\r\nLast-Event-ID: 1-1-{}\r\n\r\n",
            at.millis()
        );
        let mut lines = BufReader::new(web.open(&request).await).lines();
        loop {
            let line = timeout(PATIENCE, lines.next_line()).await.expect("an event").unwrap().unwrap();
            if let Some(kind) = line.strip_prefix("event: ") {
                break kind.to_owned();
            }
        }
    };
    assert_eq!(first(ago(82_000)).await, "missed", "2000 events are kept of a tunnel");
    assert_eq!(first(ago(30_000)).await, "event");
    daemon.abort();
}

/// 200 tunnels, each asked anew for every scrape.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_tunnels_are_scraped_quickly() {
    let sample = Sample::of(200);
    let web = Web::start(sample.path()).await;
    web.knows(200).await;
    let mut times = Vec::new();
    let mut size = 0;
    for _ in 0..20 {
        let began = Instant::now();
        let answer = web.get_as("/metrics", OPEN_METRICS).await;
        times.push(began.elapsed());
        size = answer.body.len();
        assert!(answer.body.ends_with("# EOF\n"));
        assert_eq!(answer.body.matches("\nautossm_tunnel_up{").count(), 200);
    }
    promtool(&["check", "metrics"], &web.get("/metrics").await.body).await;
    times.sort_unstable();
    println!("a scrape of 200 tunnels: median {:?}, slowest {:?}, {} kB", times[10], times[19], size / 1000);
    // Prometheus gives up after 10 s. This build is not optimised, and the tunnels answer in this test's own process.
    assert!(times[10] < Duration::from_secs(1), "{times:?}");
}

/// The same round trips through one daemon, by turns with and without a scrape twice a second and a page that looks on.
/// Other work on the host falls on one side or the other: neighbours are compared, and the median of them counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scraping_every_second_does_not_slow_the_data_path() {
    /// A tenth at this pace is less than a twentieth at Prometheus' fastest.
    const LEAST: f64 = 0.9;
    const PAIRS: usize = 21;
    /// On a host with much else to do.
    const AT_MOST: usize = 3 * PAIRS;
    let lab = Lab::start(Options::default()).await.unwrap();
    let daemon = Daemon::echo(&lab, "").await;
    let web = Web::start(&daemon.folder.path().join("run")).await;
    web.knows(1).await;
    round_trips(daemon.address).await;
    let watched = async || {
        let page = web.open("GET /api/live HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
        let scrape = async { assert_eq!(web.get("/metrics").await.status, 200) };
        let (rate, ()) = tokio::join!(round_trips(daemon.address), scrape);
        drop(page);
        rate
    };
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    let median = loop {
        // Whatever gets faster or slower in the course of it does so for both.
        let (quiet, watched) = if ratios.len() % 2 == 0 {
            let quiet = round_trips(daemon.address).await;
            (quiet, watched().await)
        } else {
            let watched = watched().await;
            (round_trips(daemon.address).await, watched)
        };
        ratios.push(watched / quiet);
        rates.push(quiet);
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        if ratios.len() >= AT_MOST || (ratios.len() >= PAIRS && ratios.len() % 2 == 1 && median > LEAST) {
            break median;
        }
    };
    rates.sort_by(f64::total_cmp);
    println!(
        "round trips a second: {:.0}; while scraped twice a second and watched: {median:.3} of that (median of {} pairs, \
         half of them within {:.3} and {:.3})",
        rates[rates.len() / 2],
        ratios.len(),
        ratios[ratios.len() / 4],
        ratios[ratios.len() * 3 / 4],
    );
    assert!(median > LEAST, "{ratios:?}");
    daemon.stop(&lab).await;
}

/// Round trips a second on one connection, over half a second.
async fn round_trips(address: std::net::SocketAddr) -> f64 {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (began, mut count) = (Instant::now(), 0_u32);
    let mut back = [0; 512];
    while began.elapsed() < Duration::from_millis(500) {
        stream.write_all(&[b'x'; 512]).await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_that_are_no_outage_and_words_of_others_are_told_as_they_are() {
    let mut sample = Sample::of(1);
    sample.add(up("draining", 1), &[event("draining", ago(5), "draining", "new clients are held")]);
    sample.change("draining", |status| status.state = State::Draining);
    sample.add(up("degraded", 2), &[]);
    sample.change("degraded", |status| status.state = State::Degraded);
    let mut hostile = up("hostile", 3);
    hostile.daemon.version = "1\"}\\\n# <script>".into();
    sample.add(hostile, &[]);
    let web = Web::start(sample.path()).await;
    web.knows(4).await;
    assert_eq!(web.get("/readyz/draining").await.status, 503);
    assert_eq!(web.get("/readyz/degraded").await.status, 200);
    let text = web.get("/metrics").await.body;
    promtool(&["check", "metrics"], &text).await;
    assert_eq!(series(&text, r#"autossm_tunnel_up{tunnel="hostile"}"#), Some(1.0));
    assert_eq!(series(&text, r#"autossm_tunnel_state{tunnel="draining",state="draining"}"#), Some(1.0));
}
