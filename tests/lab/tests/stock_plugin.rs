//! The stock plugin against the lab: what it takes for the real service is the proof of the lab.
//!
//! Runs where `AUTOSSM_TEST_PLUGIN` names a stock `session-manager-plugin`. It is led to the lab by a CONNECT proxy and
//! by trust in the lab's authority, under the service's real names.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod client;

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use autossm_lab::Lab;
use autossm_lab::fault::{Fault, Loss};
use autossm_lab::options::Options;
use client::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// A CONNECT proxy that leads every name to the lab. Returns its address.
async fn proxy_to(lab: &Lab) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, service) = (listener.local_addr().unwrap(), lab.addresses().tls);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(from.read_u8().await?);
                }
                assert!(head.starts_with(b"CONNECT "), "{}", String::from_utf8_lossy(&head));
                from.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                let mut to = TcpStream::connect(service).await?;
                from.set_nodelay(true)?;
                to.set_nodelay(true)?;
                copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    address
}

struct Plugin {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    _directory: TempDir,
}

impl Plugin {
    async fn start(lab: &Lab, program: &PathBuf, session: &Value) -> Self {
        let directory = TempDir::new().unwrap();
        let proxy = proxy_to(lab).await;
        let mut child = Command::new(program)
            .args(["AWS_SSM_START_SESSION_RESPONSE", "us-west-2", "StartSession", ""])
            .arg(json!({ "Target": client::TARGET }).to_string())
            .arg("https://ssm.us-west-2.amazonaws.com")
            .env_clear()
            .env("AWS_SSM_START_SESSION_RESPONSE", session.to_string())
            .env("HTTPS_PROXY", format!("http://lab:secret@{proxy}"))
            .env("SSL_CERT_DIR", lab.ca_directory())
            .env("AWS_ACCESS_KEY_ID", "AKIDLAB")
            .env("AWS_SECRET_ACCESS_KEY", "lab")
            .env("AWS_REGION", "us-west-2")
            .env("TMPDIR", directory.path())
            .env("HOME", directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let opened = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the plugin has ended");
                if let Some(rest) = line.split("Port ").nth(1) {
                    return rest.split(' ').next().unwrap().parse().unwrap();
                }
            }
        };
        let port = timeout(PATIENCE, opened).await.expect("the plugin opened no port");
        Self { child, lines, port, _directory: directory }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// Interrupts it and returns what it still says.
    async fn interrupt(mut self) -> String {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed());
        kill(pid, Signal::SIGINT).unwrap();
        let rest = async {
            let mut said = String::new();
            while let Ok(Some(line)) = self.lines.next_line().await {
                said.push_str(&line);
                said.push('\n');
            }
            self.child.wait().await.unwrap();
            said
        };
        timeout(PATIENCE, rest).await.expect("the plugin does not end")
    }
}

/// Echoes bytes without line feeds: a lone one is changed by the plugin.
async fn echo(tcp: &mut TcpStream, length: usize) {
    let sent: Vec<u8> = (0..length).map(|at| b'a' + (at % 26) as u8).collect();
    let mut received = vec![0; length];
    let (mut from, mut to) = tcp.split();
    let both = async { tokio::try_join!(to.write_all(&sent), from.read_exact(&mut received)).map(|_| ()) };
    timeout(PATIENCE, both).await.expect("no echo").unwrap();
    assert!(sent == received, "the echo differs");
}

fn plugin() -> Option<PathBuf> {
    let path = std::env::var_os("AUTOSSM_TEST_PLUGIN").map(PathBuf::from);
    if path.is_none() {
        println!("skipped: AUTOSSM_TEST_PLUGIN names no plugin");
    }
    path
}

#[tokio::test]
async fn the_stock_plugin_takes_the_lab_for_the_service() {
    let Some(program) = plugin() else { return };
    let lab = Lab::start(Options::default()).await.unwrap();
    let session = client::start(&lab, lab.echo_addr().port()).await;
    let plugin = Plugin::start(&lab, &program, &session).await;

    let mut long_lived = plugin.connect().await;
    for length in [1, 32, 1016, 1017, 5000, 200_000] {
        echo(&mut long_lived, length).await;
        echo(&mut plugin.connect().await, length).await;
    }
    lab.wait_for("closed streams", PATIENCE, |status| {
        status.sessions.values().all(|session| session.streams == 1)
    })
    .await
    .unwrap();

    // The hourly close while nothing is under way: the plugin resumes by itself and the stream lives on.
    for round in 2..5 {
        assert_eq!(lab.close_all(1000, "Bye"), 1);
        lab.wait_for("resumption", PATIENCE, |status| status.opened == round && status.ready_sessions() == 1)
            .await
            .unwrap();
        echo(&mut long_lived, 3000).await;
        echo(&mut plugin.connect().await, 3000).await;
    }

    // Interrupted while it sends, the plugin may give its last word a number that it has just used.
    lab.wait_for("quiet", PATIENCE, |status| status.sessions.values().all(|session| session.streams == 1))
        .await
        .unwrap();
    let said = plugin.interrupt().await;
    assert!(said.contains("Terminate signal received, exiting."), "{said}");
    let status = lab.wait_for("end", PATIENCE, |status| status.sessions.is_empty()).await.unwrap();
    assert!(status.ended[0].by_client);
    assert_eq!((status.start.processed, status.resume.succeeded, status.opened), (1, 3, 4));
    assert_eq!((status.unsigned_calls, status.bad_tokens, status.wrong_hosts), (0, 0, 0));
    assert_eq!(status.violations, Vec::<String>::new());
}

#[tokio::test]
async fn the_stock_plugin_hears_why_its_session_ended() {
    let Some(program) = plugin() else { return };
    let lab = Lab::start(Options::default()).await.unwrap();
    let session = client::start(&lab, lab.echo_addr().port()).await;
    let mut plugin = Plugin::start(&lab, &program, &session).await;
    echo(&mut plugin.connect().await, 100).await;
    assert_eq!(lab.terminate_all("Session is already terminated"), 1);
    let ended = async {
        while let Some(line) = plugin.lines.next_line().await.unwrap() {
            if line.contains("Session is already terminated") {
                return line;
            }
        }
        panic!("the plugin ended without a word");
    };
    let line = timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(
        line,
        format!("SessionId: {} : Session is already terminated", session["SessionId"].as_str().unwrap())
    );
    timeout(PATIENCE, plugin.child.wait()).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_stock_plugin_says_that_the_destination_failed() {
    let Some(program) = plugin() else { return };
    let lab = Lab::start(Options::default()).await.unwrap();
    let session = client::start(&lab, lab.echo_addr().port()).await;
    let mut plugin = Plugin::start(&lab, &program, &session).await;
    lab.set(Fault::DestinationRefused);
    let mut tcp = plugin.connect().await;
    let closed = timeout(PATIENCE, tcp.read(&mut [0; 1])).await.expect("the connection stays open");
    assert!(matches!(closed, Ok(0) | Err(_)));
    let said = async {
        while let Ok(Some(line)) = plugin.lines.next_line().await {
            if line.contains("Connection to destination port failed") {
                return;
            }
        }
        panic!("not a word of it");
    };
    timeout(PATIENCE, said).await.unwrap();
    lab.clear_all();
    echo(&mut plugin.connect().await, 100).await;
    tokio::time::timeout(Duration::from_secs(5), plugin.interrupt()).await.unwrap();
}

/// Two faults that meet: the plugin does not acknowledge a duplicate, and the agent sends again only the oldest message.
/// So after one lost acknowledgement nothing that is lost later ever comes again. Whoever stands between them has to
/// acknowledge duplicates in the plugin's place.
#[tokio::test]
async fn a_lost_acknowledgement_and_a_lost_message_stall_the_stock_plugin() {
    let Some(program) = plugin() else { return };
    let lab = Lab::start(Options::default()).await.unwrap();
    let session = client::start(&lab, lab.echo_addr().port()).await;
    let plugin = Plugin::start(&lab, &program, &session).await;
    let mut tcp = plugin.connect().await;
    echo(&mut tcp, 100).await;
    lab.wait_for("quiet", PATIENCE, |status| {
        status.sessions.values().all(|session| session.unacknowledged == 0)
    })
    .await
    .unwrap();
    lab.set(Fault::LostMessages(Loss { acknowledgements_in: 1.0, ..Loss::default() }));
    echo(&mut tcp, 100).await;
    let status = lab.wait_for("lost acknowledgement", PATIENCE, |status| status.lost >= 1).await.unwrap();
    lab.set(Fault::LostMessages(Loss { output: 1.0, ..Loss::default() }));
    tcp.write_all(b"lost on its way back").await.unwrap();
    lab.wait_for("lost message", PATIENCE, |now| now.lost > status.lost).await.unwrap();
    lab.clear_all();
    tcp.write_all(b"not lost").await.unwrap();
    lab.wait_for("hopeless message", PATIENCE, |status| status.never_acknowledged == 1).await.unwrap();
    let nothing = timeout(Duration::from_secs(1), tcp.read(&mut [0; 100])).await;
    assert!(nothing.is_err(), "{nothing:?}");
}
