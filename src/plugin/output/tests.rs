//! Transcripts, whole and in pieces.

use proptest::prelude::*;

use super::*;
use crate::plugin::lines::LONGEST;

fn outputs(text: &str) -> Vec<Output> {
    let mut parser = OutputParser::new();
    let mut outputs = parser.push(text.as_bytes());
    outputs.extend(parser.finish());
    outputs
}

fn started() -> Output {
    Output::Started { session_id: ID.to_owned() }
}

fn closed(reason: &str) -> Output {
    Output::SessionClosed { reason: reason.to_owned() }
}

fn cannot(error: &str) -> Output {
    Output::CannotStart { error: error.to_owned() }
}

fn channel_closed(code: u16, reason: &str) -> Output {
    Output::ChannelClosed { code, reason: reason.to_owned() }
}

const ID: &str = "ops-0123456789abcdef0";

/// A session as the stock plugin prints it, from its start to its end by SIGINT.
const SESSION: &str = "\nStarting session with SessionId: ops-0123456789abcdef0\n\
    Port 40123 opened for sessionId ops-0123456789abcdef0.\nWaiting for connections...\n\n\
    Connection accepted for session [ops-0123456789abcdef0]\n\
    \nConnection to destination port failed, check SSM Agent logs.\n\
    Terminate signal received, exiting.\n\n\nExiting session with sessionId: ops-0123456789abcdef0.\n\n";

/// The same plugin with its log on the console, losing its WebSocket.
const LOGGED: &str = "2026-11-22 13:02:11 INFO Opening websocket connection to: %!(EXTRA string=wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/ops-0123456789abcdef0)\n\
    \nStarting session with SessionId: ops-0123456789abcdef0\n\
    2026-11-22 13:02:12 INFO Port 40123 opened for sessionId ops-0123456789abcdef0.\n\
    Port 40123 opened for sessionId ops-0123456789abcdef0.2026-11-22 13:02:12 INFO Waiting for connections...\n\n\
    \nWaiting for connections...\n\
    2026-11-22 14:02:12 DEBUG [func2 @ websocketchannel.go.175] An error happened when receiving the message. Retried times: 1, Error: websocket: close 1000 (normal): Bye, Messagetype: -1\n\
    2026-11-22 14:02:12 ERROR [func2 @ websocketchannel.go.171] Reach the retry limit 5 for receive messages.\n\
    2026-11-22 14:02:12 ERROR [func2 @ sessionhandler.go.58] Trying to reconnect the session: wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/ops-0123456789abcdef0 with seq num: 17\n\
    2026-11-22 14:02:12 ERROR [GetResumeSessionParams @ sessionhandler.go.113] Resume Session failed: AccessDeniedException: no\n\
    2026-11-22 14:02:12 ERROR [ResumeSessionHandler @ sessionhandler.go.128] Failed to get token: AccessDeniedException: no\n\
    2026-11-22 14:02:13 INFO Successfully reconnected to data channel: wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/ops-0123456789abcdef0\n\
    2026-11-22 14:03:00 ERROR [1 @ streaming.go.354] Unable to send stream data message: websocket: close sent\n\
    2026-11-22 14:08:00 ERROR [func1 @ session.go.111] Terminating session ops-0123456789abcdef0 as the stream data was not processed before timeout.\n\
    2026-11-22 14:08:01 INFO Exiting session with sessionId: ops-0123456789abcdef0 with output: Your session timed out due to inactivity\n\
    \n\nSessionId: ops-0123456789abcdef0 : Your session timed out due to inactivity\n\n";

#[test]
fn reads_a_whole_session() {
    assert_eq!(
        outputs(SESSION),
        [
            started(),
            Output::PortOpened(40123),
            Output::ConnectionAccepted,
            Output::DestinationFailed,
            Output::Terminating,
            closed(""),
        ]
    );
}

#[test]
fn reads_its_log_on_the_console() {
    let denied = || Output::ResumeFailed { error: "AccessDeniedException: no".to_owned() };
    let seen = outputs(LOGGED);
    assert!(matches!(seen[0], Output::Unknown(_)));
    assert_eq!(
        seen[1..],
        [
            started(),
            Output::PortOpened(40123),
            Output::PortOpened(40123),
            channel_closed(1000, "Bye"),
            Output::RetryLimit,
            Output::Reconnecting,
            denied(),
            denied(),
            Output::Reconnected,
            Output::SendFailed { error: "websocket: close sent".to_owned() },
            Output::DataTimeout,
            closed("Your session timed out due to inactivity"),
            closed("Your session timed out due to inactivity"),
        ]
    );
}

#[test]
fn reads_each_text() {
    let table = [
        ("Session: ops-0123456789abcdef0 timed out.", Output::TimedOut),
        ("SessionId: x-1 : Session is already terminated", closed("Session is already terminated")),
        ("SessionId: x-1 : a : b", closed("a : b")),
        ("ERROR it said: Session is already terminated.", closed("Session is already terminated")),
        ("Cannot perform start session: websocket: close sent", cannot("websocket: close sent")),
        (
            "Cannot perform start session: write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe",
            cannot("write tcp 127.0.0.1:1->127.0.0.1:2: write: broken pipe"),
        ),
        (
            "Cannot perform start session: websocket: close 1006 (abnormal closure): unexpected EOF",
            cannot("websocket: close 1006 (abnormal closure): unexpected EOF"),
        ),
        (
            "Cannot perform start session: unexpected end of JSON input",
            cannot("unexpected end of JSON input"),
        ),
        (
            "Error: websocket: close 1006 (abnormal closure): unexpected EOF",
            channel_closed(1006, "unexpected EOF"),
        ),
        ("Error: websocket: close 1001 (going away)", channel_closed(1001, "going away")),
        ("Error: websocket: close 4001", channel_closed(4001, "")),
        ("Connection accepted for session x-1.", Output::ConnectionAccepted),
        (
            "Unix socket /run/x/db.sock opened for sessionId x-1.",
            Output::SocketOpened { path: "/run/x/db.sock".to_owned() },
        ),
    ];
    for (text, expected) in table {
        assert_eq!(outputs(text), [expected], "{text}");
    }
}

#[test]
fn takes_glued_texts_apart() {
    assert_eq!(
        outputs(
            "Port 1 opened for sessionId a.Connection to destination port failed, check SSM Agent logs.Session: a timed out."
        ),
        [Output::PortOpened(1), Output::DestinationFailed, Output::TimedOut]
    );
    let resume = "Resume Session failed: x: websocket: close 1000 (normal): Bye";
    let failed = Output::ResumeFailed { error: "x: websocket: close 1000 (normal): Bye".to_owned() };
    assert_eq!(outputs(resume), [failed, channel_closed(1000, "Bye")]);
    let glued = "$ Terminate signal received, exiting.Exiting session with sessionId: a.";
    assert_eq!(outputs(glued), [Output::Terminating, closed("")]);
}

#[test]
fn everyday_words_are_not_mistaken() {
    for line in [
        "sh-5.2$ ls",
        "Port 99999 opened for sessionId x",
        "Port of call",
        "Session: over",
        "SessionId: x",
        "websocket: close sent",
        "Terminating session x",
        "Unix socket is fine",
    ] {
        assert_eq!(outputs(line), [Output::Unknown(line.to_owned())]);
    }
    assert!(outputs("\r\n \n\n").is_empty());
}

#[test]
fn tells_last_words() {
    assert!(outputs(SESSION).last().is_some_and(Output::is_last_word));
    assert!(!Output::PortOpened(1).is_last_word() && !Output::Unknown(String::new()).is_last_word());
}

proptest! {
    /// However a transcript is cut into reads, it means the same.
    #[test]
    fn cutting_changes_nothing(
        parts in proptest::collection::vec(prop_oneof![
            Just(SESSION.as_bytes().to_vec()),
            Just(LOGGED.as_bytes().to_vec()),
            Just(vec![b'x'; 9000]),
            proptest::collection::vec(any::<u8>(), 0..50),
        ], 1..4),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let bytes = parts.concat();
        let mut whole = OutputParser::new();
        let mut expected = whole.push(&bytes);
        expected.extend(whole.finish());

        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut parser = OutputParser::new();
        let mut seen = Vec::new();
        for piece in cuts.windows(2) {
            seen.extend(parser.push(&bytes[piece[0]..piece[1]]));
        }
        seen.extend(parser.finish());
        prop_assert_eq!(seen, expected);
    }

    /// Texts in any order, cut short anywhere and mixed with noise, are read without a panic.
    #[test]
    fn anything_can_be_read(
        pieces in proptest::collection::vec((0..TEXTS.len(), 0usize..80, "\\PC{0,12}"), 0..30),
    ) {
        let mut text = String::new();
        for (which, length, noise) in pieces {
            text.extend(TEXTS[which].0.chars().take(length));
            text.push_str(&noise);
        }
        outputs(&text);
    }
}

/// A plugin may print what it likes: a line full of texts must not cost the square of its length. These are eight times
/// as long as a line gets; the square would take ten seconds for each.
#[test]
fn a_line_full_of_texts_is_read_in_a_time_that_grows_with_its_length() {
    let texts = [
        "Port 1 opened for sessionId ",
        "Unix socket ",
        "websocket: close 1 ",
        "Resume Session failed: ",
        "Session: ",
    ];
    for text in texts {
        let line = text.repeat(8 * LONGEST / text.len());
        let (began, mut outputs) = (std::time::Instant::now(), Vec::new());
        read(&line, &mut outputs);
        println!("{text:?}: {:?} for {} bytes", began.elapsed(), line.len());
        assert!(began.elapsed().as_secs() < 3 && !outputs.is_empty(), "{text:?}: {:?}", began.elapsed());
    }
}
