//! The plugins against the fake service, byte for byte.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use autossm_lab::wire::message::{Message, MessageType, flag, payload};
use autossm_lab::wire::mux::Command as Mux;

use crate::fake::{API_HOST, Agent, CHANNEL_HOST, Fake, OTHER_API_HOSTS, SOON};
use crate::plugin::{Plugin, plugins};

/// Where the data channel is, in the service's cell of this name.
fn path_in(cell: &str) -> String {
    format!("/v1/data-channel/s-1?role=publish_subscribe&cell-number={cell}")
}

/// What StartSession and ResumeSession return.
fn session(token: &str, cell: &str) -> String {
    let path = path_in(cell);
    format!(r#"{{"SessionId":"s-1","TokenValue":"{token}","StreamUrl":"wss://{CHANNEL_HOST}{path}"}}"#)
}

/// A plugin with a session of the fake service.
fn start(path: &Path, fake: &Fake) -> Plugin {
    Plugin::start(path, fake.port, fake.authorities.path(), &session("first", "A"))
}

/// The same with an open port.
async fn forwarding(path: &Path) -> (Fake, Plugin, Agent, u16) {
    let mut fake = Fake::start().await;
    let mut plugin = start(path, &fake);
    let (mut agent, first, upgrade) = fake.opened().await;
    assert_eq!((first.token_value.as_str(), first.message_schema_version.as_str()), ("first", "1.0"));
    assert_eq!(upgrade.headers.contains_key("authorization"), plugin.version.signs(), "{path:?}");
    assert_eq!((&upgrade.headers["host"], &*upgrade.path), (&CHANNEL_HOST.parse().unwrap(), &*path_in("A")));
    agent.shake_hands("Port").await;
    let port = plugin.port().await;
    (fake, plugin, agent, port)
}

/// Waits for so many calls of the API.
async fn calls(fake: &Fake, count: usize) {
    let used_up = async {
        while fake.calls() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, used_up).await.unwrap();
}

async fn client(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.unwrap()
}

const READY: &str =
    "\nStarting session with SessionId: s-1\nPort N opened for sessionId s-1.\nWaiting for connections...\n";
const ACCEPTED: &str = "\nConnection accepted for session [s-1]\n";

#[tokio::test]
async fn a_client_is_served_and_sigint_ends_the_session() {
    for path in plugins() {
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP] {
            let (_fake, mut plugin, mut agent, port) = forwarding(&path).await;
            let mut client = client(port).await;
            client.write_all(b"hello").await.unwrap();
            assert_eq!(agent.frame().await, (0, 3, "".into()));
            assert_eq!(agent.frame().await, (2, 3, "hello".into()));
            agent.send_frame(Mux::Push, 3, b"world").await;
            let mut answer = [0; 5];
            timeout(SOON, client.read_exact(&mut answer)).await.unwrap().unwrap();
            assert_eq!(&answer, b"world");
            assert_eq!(plugin.socket_files(), 1);
            plugin.until(ACCEPTED).await;
            plugin.signal(signal);
            agent.take().await;
            assert_eq!(agent.flags, [flag::TERMINATE_SESSION]);
            plugin.until("Exiting session").await;
            let (printed, status) = plugin.ended().await;
            let words = "Terminate signal received, exiting.\n\n\nExiting session with sessionId: s-1.\n\n";
            assert_eq!(printed, format!("{READY}{ACCEPTED}{words}"), "{path:?}");
            assert_eq!(status.code(), Some(0));
        }
    }
}

#[tokio::test]
async fn sigterm_kills_and_leaves_the_socket_file() {
    use std::os::unix::process::ExitStatusExt;
    for path in plugins() {
        let (_fake, mut plugin, _agent, _) = forwarding(&path).await;
        plugin.signal(Signal::SIGTERM);
        assert_eq!(timeout(SOON, plugin.child.wait()).await.unwrap().unwrap().signal(), Some(15));
        assert_eq!(plugin.socket_files(), 1, "{path:?}");
        assert_eq!(plugin.ended().await.0, READY);
    }
}

#[tokio::test]
async fn what_the_service_says_is_printed() {
    for path in plugins() {
        for (reason, words) in [
            ("", "\n\nExiting session with sessionId: s-1.\n\n"),
            (
                "Your session timed out due to inactivity",
                "\n\nSessionId: s-1 : Your session timed out due to inactivity\n\n",
            ),
        ] {
            let (_fake, mut plugin, mut agent, _) = forwarding(&path).await;
            agent.send(payload::FLAG, flag::CONNECT_TO_PORT_ERROR.to_be_bytes().to_vec()).await;
            let failed = "\nConnection to destination port failed, check SSM Agent logs.\n";
            plugin.until(failed).await;
            let closed = format!(
                r#"{{"MessageType":"channel_closed","MessageId":"m","DestinationId":"i-1","SessionId":"s-1","SchemaVersion":1,"CreatedDate":"today","Output":"{reason}"}}"#
            );
            agent.send_message(&Message::unnumbered(MessageType::ChannelClosed, closed)).await;
            let (printed, status) = plugin.ended().await;
            assert_eq!(printed, format!("{READY}{failed}{words}"), "{path:?}");
            assert_eq!(status.code(), Some(0));
        }
    }
}

/// At the old address, or from 1.2.835.0 on at the new one.
#[tokio::test]
async fn an_hourly_close_is_resumed_with_the_new_token() {
    for path in plugins() {
        let (mut fake, mut plugin, agent, port) = forwarding(&path).await;
        fake.answer(&[(200, &session("second", "B"))]);
        agent.close().await;
        let (mut agent, first, upgrade) = fake.opened().await;
        assert_eq!(first.token_value, "second");
        let cell = if plugin.version.follows_stream_url() { "B" } else { "A" };
        assert_eq!(upgrade.path, path_in(cell), "{path:?}");
        assert_eq!(upgrade.headers.contains_key("authorization"), plugin.version.signs(), "{path:?}");
        let mut client = client(port).await;
        client.write_all(b"still here").await.unwrap();
        assert_eq!(agent.frame().await, (0, 3, "".into()));
        assert_eq!(agent.frame().await, (2, 3, "still here".into()));
        assert_eq!(fake.api.lock().unwrap().calls, ["AmazonSSM.ResumeSession"]);
        plugin.until(ACCEPTED).await;
        assert!(plugin.is_running());
    }
}

/// The old SDK asks four times for each of the six tries, and so for long enough; the new one does not.
#[tokio::test]
async fn an_error_of_the_service_is_outlived_by_the_old_line_alone() {
    let run = |path: PathBuf| async move {
        let (mut fake, mut plugin, agent, _) = forwarding(&path).await;
        let error = (500, r#"{"__type":"InternalServerError","message":"later"}"#);
        let resumed = session("second", "B");
        fake.answer(&[error, error, error, error, error, error, (200, &resumed)]);
        agent.close().await;
        if plugin.version.has_new_sdk() {
            calls(&fake, 6).await;
            // It does nothing more; the longest wait between two tries was 3.2 s.
            tokio::time::sleep(Duration::from_millis(3500)).await;
            assert_eq!(fake.calls(), 6, "{path:?}");
        } else {
            let (_agent, first, _) = fake.opened().await;
            assert_eq!((first.token_value.as_str(), fake.calls()), ("second", 7), "{path:?}");
        }
        assert!(plugin.is_running());
    };
    futures_util::future::join_all(plugins().into_iter().map(run)).await;
}

/// The names are made by the plugin's SDK, which in version 2 takes no endpoint beside them; without one all lines resume.
#[tokio::test]
async fn an_endpoint_beside_other_names_is_refused_by_the_new_sdk() {
    let run = |path: PathBuf| async move {
        for (variable, host) in [
            ("AWS_USE_FIPS_ENDPOINT", OTHER_API_HOSTS[0]),
            ("AWS_USE_DUALSTACK_ENDPOINT", OTHER_API_HOSTS[1]),
        ] {
            for endpoint in ["", "https://ssm.us-west-2.amazonaws.com"] {
                let mut fake = Fake::start().await;
                let authorities = fake.authorities.path();
                let session = session("first", "A");
                let mut plugin =
                    Plugin::start_for(&path, fake.port, authorities, &session, endpoint, &[variable]);
                let (mut agent, _, _) = fake.opened().await;
                agent.shake_hands("Port").await;
                plugin.port().await;
                fake.answer(&[(200, &self::session("second", "B"))]);
                agent.close().await;
                if !endpoint.is_empty() && plugin.version.has_new_sdk() {
                    // As long as all of its tries can take.
                    tokio::time::sleep(Duration::from_millis(6500)).await;
                    assert_eq!(fake.calls(), 0, "{path:?} {variable}");
                    assert!(plugin.is_running());
                    continue;
                }
                let (_agent, first, _) = fake.opened().await;
                assert_eq!(first.token_value, "second");
                let expected = if endpoint.is_empty() { host } else { API_HOST };
                assert_eq!(fake.api.lock().unwrap().hosts, [expected], "{path:?} {variable} {endpoint}");
            }
        }
    };
    futures_util::future::join_all(plugins().into_iter().map(run)).await;
}

#[tokio::test]
async fn a_session_that_is_gone_is_told_and_ends_the_plugin() {
    for path in plugins() {
        let (fake, plugin, agent, _) = forwarding(&path).await;
        fake.answer(&[(200, r#"{"SessionId":"s-1"}"#)]);
        agent.close().await;
        let (printed, status) = plugin.ended().await;
        assert_eq!(printed, format!("{READY}Session: s-1 timed out.\n"), "{path:?}");
        assert_eq!(status.code(), Some(0));
    }
}

/// The silent zombie, and how a client's byte and the next client end it.
#[tokio::test]
async fn refused_resumes_leave_a_silent_zombie_that_dies_of_traffic() {
    for path in plugins() {
        let (fake, mut plugin, agent, port) = forwarding(&path).await;
        fake.answer(&[(403, r#"{"__type":"AccessDeniedException","message":"no"}"#)]);
        agent.close().await;
        calls(&fake, 6).await;
        // It does nothing more; the longest wait between two tries was 3.2 s.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert_eq!(fake.calls(), 6, "{path:?}");
        assert!(plugin.is_running());
        let _first = client(port).await;
        plugin.until(ACCEPTED).await;
        // The first client's SYN has broken the sending. That is noticed with the next client.
        let broken = async {
            while plugin.is_running() {
                drop(TcpStream::connect(("127.0.0.1", port)).await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, broken).await.unwrap();
        let (printed, status) = plugin.ended().await;
        let words = "Cannot perform start session: websocket: close sent\n";
        assert_eq!(printed, format!("{READY}{ACCEPTED}{words}"), "{path:?}");
        assert_eq!(status.code(), Some(0));
    }
}

/// What a broken connection makes of a client's bytes while it cannot be resumed.
#[tokio::test]
async fn traffic_on_a_broken_connection_ends_the_plugin() {
    for path in plugins() {
        for reset in [true, false] {
            let (fake, mut plugin, agent, port) = forwarding(&path).await;
            fake.answer(&[(403, r#"{"__type":"AccessDeniedException","message":"no"}"#)]);
            agent.abort(reset);
            while fake.calls() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let died = async {
                while plugin.is_running() {
                    drop(TcpStream::connect(("127.0.0.1", port)).await);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(SOON, died).await.unwrap();
            let (printed, _) = plugin.ended().await;
            let words =
                printed.strip_prefix(&format!("{READY}{ACCEPTED}Cannot perform start session: write tcp "));
            let words = words.unwrap_or_else(|| panic!("{printed:?} {path:?}"));
            let (addresses, words) = words.split_once(": write: ").unwrap();
            assert!(addresses.contains(&format!("->127.0.0.1:{}", fake.port)), "{addresses}");
            assert_eq!(words, "broken pipe\n", "{path:?} {reset}");
        }
    }
}

/// A channel that cannot be opened at first: six tries, and then it waits for ever without a word.
#[tokio::test]
async fn a_channel_that_cannot_be_opened_is_not_told() {
    for path in plugins() {
        let fake = Fake::start().await;
        fake.refuse_sockets();
        let mut plugin = start(&path, &fake);
        let tried = async {
            while fake.upgrades() < 7 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, tried).await.unwrap();
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert_eq!(fake.upgrades(), 7, "{path:?}");
        assert!(plugin.is_running());
        plugin.signal(Signal::SIGKILL);
        assert_eq!(plugin.ended().await.0, "\nStarting session with SessionId: s-1\n");
    }
}

/// Five minutes without an acknowledgement: TerminateSession once, two resends more, and the resending is dead.
#[tokio::test]
#[ignore = "takes more than five minutes"]
async fn five_minutes_without_an_acknowledgement() {
    let run = |path: PathBuf| async move {
        let (fake, mut plugin, mut agent, port) = forwarding(&path).await;
        fake.answer(&[(200, "{}")]);
        let _client = client(port).await;
        let mut sendings = 0;
        while let Ok(message) = timeout(Duration::from_secs(10), agent.message()).await {
            sendings += u32::from(message.kind == MessageType::InputStreamData);
        }
        assert_eq!(sendings, 1 + 3000 + 2, "{path:?}");
        assert_eq!(fake.api.lock().unwrap().calls, ["AmazonSSM.TerminateSession"]);
        assert!(plugin.is_running());
    };
    futures_util::future::join_all(plugins().into_iter().map(run)).await;
}

/// 1024 bytes a millisecond at best, as many as the stock plugin.
#[tokio::test]
async fn a_session_sends_at_most_a_megabyte_a_second() {
    for path in plugins() {
        let (_fake, _plugin, mut agent, port) = forwarding(&path).await;
        let mut client = client(port).await;
        let sending = tokio::spawn(async move {
            client.write_all(&vec![0; 1 << 20]).await.unwrap();
            client
        });
        let started = std::time::Instant::now();
        while agent.mux.len() < 1 << 20 {
            agent.take().await;
        }
        let taken = started.elapsed();
        println!("1 MB in {taken:?}: {path:?}");
        assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&taken), "{taken:?} {path:?}");
        drop(sending.await);
    }
}

/// 8 bytes of mux header and 1017 of data leave one byte for a message of its own.
#[tokio::test]
async fn a_lone_line_feed_becomes_a_carriage_return() {
    for path in plugins() {
        let (_fake, _plugin, mut agent, port) = forwarding(&path).await;
        let mut client = client(port).await;
        assert_eq!(agent.frame().await, (0, 3, "".into()));
        for (end, arrives) in [(b'\n', b'\r'), (b'\r', b'\r'), (b'x', b'x')] {
            let mut data = vec![b'a'; 1016];
            data.push(end);
            client.write_all(&data).await.unwrap();
            assert_eq!(agent.take().await.len(), 1024);
            assert_eq!(agent.take().await, vec![arrives], "{path:?}");
            assert_eq!(agent.frame().await.2.len(), 1017);
        }
    }
}

#[tokio::test]
async fn an_end_on_either_side_closes_both_ways() {
    for path in plugins() {
        let (_fake, _plugin, mut agent, port) = forwarding(&path).await;
        let mut first = client(port).await;
        assert_eq!(agent.frame().await, (0, 3, "".into()));
        first.shutdown().await.unwrap();
        assert_eq!(agent.frame().await, (1, 3, "".into()), "{path:?}");
        agent.send_frame(Mux::Push, 3, b"too late").await;
        let mut rest = Vec::new();
        timeout(SOON, first.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, b"");
        let mut second = client(port).await;
        assert_eq!(agent.frame().await, (0, 5, "".into()));
        agent.send_frame(Mux::Push, 5, b"bye").await;
        agent.send_frame(Mux::Fin, 5, b"").await;
        timeout(SOON, second.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, b"bye");
        assert_eq!(agent.frame().await, (1, 5, "".into()));
    }
}

/// One receive budget for all clients; used up, it stops the reading of the WebSocket, and so the pongs.
#[tokio::test]
async fn a_client_that_does_not_read_stalls_the_session_and_its_pongs() {
    for path in plugins() {
        let (_fake, mut plugin, mut agent, port) = forwarding(&path).await;
        let stuck = client(port).await;
        assert_eq!(agent.frame().await, (0, 3, "".into()));
        assert!(agent.ping().await && agent.ponged(SOON).await);
        let data = vec![0; 32000];
        let message = |sequence| {
            let frame = [&autossm_lab::wire::mux::header(Mux::Push, 32000, 3)[..], &data].concat();
            Message::stream(MessageType::OutputStreamData, sequence, payload::DATA, frame)
        };
        let mut sequence = 2;
        // Before its budget is used up a plugin that answers late is only slow.
        let patience = |sequence| if sequence * 32000 > 4 << 20 { Duration::from_secs(1) } else { SOON };
        while agent.ping().await && agent.ponged(patience(sequence)).await {
            for _ in 0..16 {
                agent.send_message(&message(sequence)).await;
                sequence += 1;
            }
            assert!(sequence < 2000, "never stalled: {path:?}");
        }
        // More than the budget and less than budget and buffers of sockets together.
        assert!(sequence * 32000 > 4 << 20, "stalled after {sequence}: {path:?}");
        assert!(plugin.is_running());
        drop(stuck);
    }
}

#[tokio::test]
async fn duplicates_are_not_acknowledged_again_and_gaps_wait() {
    for path in plugins() {
        let (_fake, _plugin, mut agent, port) = forwarding(&path).await;
        let mut client = client(port).await;
        assert_eq!(agent.frame().await, (0, 3, "".into()));
        let part = |sequence, text: &'static str| {
            let frame =
                [&autossm_lab::wire::mux::header(Mux::Push, text.len() as u16, 3)[..], text.as_bytes()];
            Message::stream(MessageType::OutputStreamData, sequence, payload::DATA, frame.concat())
        };
        let messages = [part(3, "b"), part(2, "a"), part(2, "a"), part(3, "b"), part(4, "c")];
        for message in &messages {
            agent.send_message(message).await;
        }
        let mut acknowledged = Vec::new();
        while acknowledged.last() != Some(&4) {
            let message = agent.message().await;
            if message.kind == MessageType::Acknowledge {
                acknowledged.push(message.acknowledged().unwrap().sequence);
            }
        }
        assert!(acknowledged.ends_with(&[3, 2, 4]), "{acknowledged:?} {path:?}");
        let mut data = [0; 3];
        timeout(SOON, client.read_exact(&mut data)).await.unwrap().unwrap();
        assert_eq!(&data, b"abc");
    }
}

#[tokio::test]
async fn an_unacknowledged_message_is_sent_again() {
    for path in plugins() {
        let (_fake, _plugin, mut agent, port) = forwarding(&path).await;
        let _client = client(port).await;
        let mut numbers = Vec::new();
        while numbers.len() < 4 {
            let message = agent.message().await;
            if message.kind == MessageType::InputStreamData {
                numbers.push(message.sequence);
            }
        }
        assert_eq!(numbers, [1; 4], "{path:?}");
    }
}

#[tokio::test]
async fn a_wrong_document_opens_no_port() {
    for path in plugins() {
        for (kind, words) in [("Standard_Stream", "EOF"), ("Nonsense", "unable to determine SessionType")] {
            let mut fake = Fake::start().await;
            let plugin = start(&path, &fake);
            let (mut agent, _, _) = fake.opened().await;
            agent.shake_hands(kind).await;
            let (printed, status) = plugin.ended().await;
            let words =
                format!("\nStarting session with SessionId: s-1\nCannot perform start session: {words}\n");
            assert_eq!(printed, words, "{path:?}");
            assert_eq!(status.code(), Some(0));
        }
    }
}

#[tokio::test]
async fn arguments_that_start_no_session() {
    let target = r#"{"Target":"i-1"}"#;
    for path in plugins() {
        for (arguments, code, words) in [
            (&[][..], 0, autossm_lab::standin::command::INSTALLED),
            (
                &["help"],
                0,
                "\nUnknown operation help. \nUse session-manager-plugin --version to check the version.\n\n",
            ),
            (&["{}", "r", "Other", "", target, "e"], 0, "Invalid Operation"),
            (
                &["AWS_SSM_START_SESSION_RESPONSE", "r", "StartSession", "", target, "e"],
                0,
                "Cannot perform start session: unexpected end of JSON input\n",
            ),
            (
                &["x", "r", "StartSession", "", target, "e"],
                0,
                "Cannot perform start session: invalid character 'x' looking for beginning of value\n",
            ),
            (&["{}", "r", "StartSession", "", "{}", "e"], 2, ""),
            (&["{}", "r", "StartSession", "", target, "e"], 2, ""),
        ] {
            let output = Command::new(&path).args(arguments).env_clear().output().await.unwrap();
            assert_eq!(output.status.code(), Some(code), "{path:?} {arguments:?}");
            assert_eq!(String::from_utf8(output.stdout).unwrap(), words, "{path:?} {arguments:?}");
        }
    }
}
