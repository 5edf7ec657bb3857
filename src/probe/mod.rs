//! Probes of the destination: what is asked over a connection, and what is a good answer. How long an answer may take, and
//! what follows from it, is decided elsewhere.

mod http;
mod tls;

use std::fmt;
use std::io;
use std::path::Path;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::config::{ProbeKind, problem_text};

/// No answer that is worth waiting for is longer.
const LONGEST: usize = 64 << 10;
/// PostgreSQL's SSLRequest: its length, and the number that stands for it
/// (<https://www.postgresql.org/docs/current/protocol-message-formats.html>). It is answered before anybody has said who
/// they are. A server takes the connection's end after it for a client that did not like the answer, which is no error
/// and stands in no log (`ProcessStartupPacket`, `backend_startup.c`); an unfinished StartupMessage would.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Whom a probe asks.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Its name or address; none where it is the target itself.
    pub host: Option<&'a str>,
    /// Its port.
    pub port: u16,
    /// Certificate authorities trusted beside the system's (PEM).
    pub ca_file: Option<&'a Path>,
}

/// Why an answer is no good one.
#[derive(Debug, PartialEq, Eq)]
pub enum Bad {
    /// The connection was closed, by the destination or on the way, before the answer was complete.
    Closed,
    /// It is another one than expected, in these words.
    Answer(String),
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it closes the connection without a good answer"),
            Self::Answer(words) => f.write_str(words),
        }
    }
}

impl From<io::Error> for Bad {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// Asks, and waits for a good answer. A `tcp` probe asks nothing and waits for ever: a connection that is refused is
/// closed.
///
/// # Errors
/// The answer is not a good one.
pub async fn ask<S>(kind: &ProbeKind, destination: Destination<'_>, mut stream: S) -> Result<(), Bad>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match kind {
        ProbeKind::Tcp => expect(&mut stream, |bytes| (!bytes.is_empty()).then_some(Ok(()))).await,
        ProbeKind::Banner { expect } => contains(&mut stream, expect).await,
        ProbeKind::Tls(verification) => tls::connect(*verification, destination, stream).await.map(drop),
        ProbeKind::Http { tls: None, path, status } => http::get(stream, destination, path, *status).await,
        ProbeKind::Http { tls: Some(verification), path, status } => {
            let stream = tls::connect(*verification, destination, stream).await?;
            http::get(stream, destination, path, *status).await
        }
        ProbeKind::Postgres => {
            send(&mut stream, &SSL_REQUEST).await?;
            expect(&mut stream, |bytes| match bytes {
                [] => None,
                [b'S' | b'N', ..] => Some(Ok(())),
                [b'E', ..] => Some(wrong("refuses", bytes)),
                _ => Some(wrong("does not speak PostgreSQL's protocol", bytes)),
            })
            .await
        }
        ProbeKind::Redis => {
            send(&mut stream, b"PING\r\n").await?;
            expect(&mut stream, redis).await
        }
        ProbeKind::Custom { send: bytes, expect } => {
            send(&mut stream, bytes).await?;
            contains(&mut stream, expect).await
        }
    }
}

/// The first line of the answer.
fn redis(bytes: &[u8]) -> Option<Result<(), Bad>> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n");
    if bytes.starts_with(b"+PONG\r\n") || bytes.starts_with(b"-NOAUTH") && end.is_some() {
        return Some(Ok(()));
    }
    (end.is_some() || bytes.len() > 512 || !matches!(bytes.first(), None | Some(b'+' | b'-')))
        .then(|| wrong("does not answer PING as a Redis that works", bytes))
}

async fn contains<S: AsyncRead + Unpin>(stream: &mut S, wanted: &[u8]) -> Result<(), Bad> {
    let wanted = |bytes: &[u8]| {
        let found = if wanted.is_empty() {
            !bytes.is_empty()
        } else {
            bytes.windows(wanted.len()).any(|window| window == wanted)
        };
        found.then_some(Ok(()))
    };
    expect(stream, wanted).await
}

/// Reads until `judge` has come to a conclusion about all that was read. One that ends before that is not what was
/// expected if it has said something.
async fn expect<S: AsyncRead + Unpin>(
    stream: &mut S,
    judge: impl Fn(&[u8]) -> Option<Result<(), Bad>>,
) -> Result<(), Bad> {
    let mut bytes = Vec::new();
    loop {
        if let Some(verdict) = judge(&bytes) {
            return verdict;
        }
        if bytes.len() >= LONGEST {
            return wrong("does not say what is expected", &bytes);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await? {
            0 if bytes.is_empty() => return Err(Bad::Closed),
            0 => return wrong("does not say what is expected", &bytes),
            read => bytes.extend_from_slice(chunk.get(..read).unwrap_or_default()),
        }
    }
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), Bad> {
    stream.write_all(bytes).await?;
    Ok(stream.flush().await?)
}

/// What is wrong, and how the answer begins: enough to see what it is, too little for a secret to be in it.
fn wrong(what: &str, bytes: &[u8]) -> Result<(), Bad> {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let line = line.get(..line.len().min(40)).unwrap_or_default();
    Err(Bad::Answer(format!("it {what}: {}", problem_text(&String::from_utf8_lossy(line)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tls;

    const DESTINATION: Destination<'_> = Destination { host: Some("db.internal"), port: 80, ca_file: None };

    /// Lets a server read so many bytes and answer with these; what it has read, and what came of it.
    async fn asked(kind: ProbeKind, reads: usize, answer: &[u8]) -> (Vec<u8>, Result<(), Bad>) {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let serve = async {
            let mut read = vec![0; reads];
            far.read_exact(&mut read).await.unwrap();
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
            // Whoever has its answer need not hear more.
            let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            read
        };
        let ask = async { ask(&kind, DESTINATION, near).await };
        tokio::join!(serve, ask)
    }

    fn words(result: Result<(), Bad>) -> String {
        result.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn postgres_is_asked_for_tls_and_nothing_more() {
        for answer in [b"S", b"N"] {
            assert_eq!(asked(ProbeKind::Postgres, 8, answer).await, (SSL_REQUEST.to_vec(), Ok(())));
        }
        let refused = words(asked(ProbeKind::Postgres, 8, b"E\0\0\0\x20SFATAL").await.1);
        assert!(refused.starts_with("it refuses"), "{refused}");
        assert!(words(asked(ProbeKind::Postgres, 8, b"HTTP/1.1 400").await.1).contains("`HTTP/1.1 400`"));
        assert_eq!(asked(ProbeKind::Postgres, 8, b"").await.1, Err(Bad::Closed));
    }

    #[tokio::test]
    async fn redis_may_ask_for_a_password() {
        for answer in ["+PONG\r\n", "-NOAUTH Authentication required.\r\n"] {
            let (sent, result) = asked(ProbeKind::Redis, 6, answer.as_bytes()).await;
            assert_eq!((&sent[..], result), (&b"PING\r\n"[..], Ok(())), "{answer}");
        }
        for answer in
            ["-LOADING Redis is loading\r\n", "-ERR unknown\r\n", "HTTP/1.1 400\r\n", "+PONGO\r\n", "+"]
        {
            assert!(
                matches!(asked(ProbeKind::Redis, 6, answer.as_bytes()).await.1, Err(Bad::Answer(_))),
                "{answer}"
            );
        }
    }

    #[tokio::test]
    async fn banners_and_custom_answers_contain_what_is_expected() {
        let banner = |expect: &str| ProbeKind::Banner { expect: expect.into() };
        assert_eq!(asked(banner(""), 0, b"x").await.1, Ok(()));
        assert_eq!(asked(banner("SSH-2.0"), 0, b"warning\r\nSSH-2.0-OpenSSH\r\n").await.1, Ok(()));
        assert_eq!(asked(banner("SSH-2.0"), 0, b"").await.1, Err(Bad::Closed));
        let other = words(asked(banner("SSH-2.0"), 0, b"220 smtp\r\n").await.1);
        assert_eq!(other, "it does not say what is expected: `220 smtp`");
        let custom = |expect: &[u8]| ProbeKind::Custom { send: b"\0\xff".to_vec(), expect: expect.to_vec() };
        assert_eq!(asked(custom(b"\0\x01"), 2, b"x\0\x01").await, (b"\0\xff".to_vec(), Ok(())));
        assert!(asked(custom(b"y"), 2, b"x").await.1.is_err());
        let flood = vec![b'x'; 2 * LONGEST];
        assert!(matches!(asked(custom(b"y"), 2, &flood).await.1, Err(Bad::Answer(_))), "it reads no further");
    }

    #[tokio::test]
    async fn http_is_judged_by_its_status() {
        let http = |status| ProbeKind::Http { tls: None, path: "/health?x".into(), status };
        let request = "GET /health?x HTTP/1.1\r\nHost: db.internal\r\n";
        for (status, answer, good) in [
            (None, "HTTP/1.1 200 OK\r\n", true),
            (None, "HTTP/1.0 401 \r\n", true),
            (None, "HTTP/1.1 302\r\n", true),
            (None, "HTTP/1.1 500 Oops\r\n", false),
            (None, "HTTP/1.1 503\r\n", false),
            (Some(204), "HTTP/1.1 204 No Content\r\n", true),
            (Some(204), "HTTP/1.1 200 OK\r\n", false),
            (None, "SSH-2.0-OpenSSH\r\n", false),
            (None, "HTTP/1.1 abc\r\n", false),
            (None, "HTTP/1.1", false),
        ] {
            let (sent, result) = asked(http(status), request.len(), answer.as_bytes()).await;
            assert_eq!(String::from_utf8_lossy(&sent), request);
            assert_eq!(result.is_ok(), good, "{answer}: {result:?}");
        }
    }

    #[tokio::test]
    async fn tls_wants_a_handshake_and_looks_at_the_certificate_only_if_asked() {
        let authority = crate::gateway::Authority::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        authority.write_certificate(folder.path()).unwrap();
        let ca_file = folder.path().join("autossm-ca.pem");
        for (verification, host, ca_file, good) in [
            (Tls::Unverified, Some("db.internal"), None, true),
            (Tls::Unverified, Some("10.0.0.7"), None, true),
            (Tls::Unverified, Some("my_db"), None, true),
            (Tls::Unverified, None, None, true),
            (Tls::Verified, Some("db.internal"), Some(&*ca_file), true),
            (Tls::Verified, Some("db.internal"), None, false),
            (Tls::Verified, Some("other.internal"), Some(&*ca_file), false),
        ] {
            let (near, far) = tokio::io::duplex(1 << 16);
            let acceptor = authority.acceptor("db.internal");
            let kind = ProbeKind::Tls(verification);
            let destination = Destination { host, port: 443, ca_file };
            let (_, result) = tokio::join!(acceptor.accept(far), ask(&kind, destination, near));
            assert_eq!(result.is_ok(), good, "{verification:?} {host:?}: {result:?}");
        }
        let result = asked(ProbeKind::Tls(Tls::Unverified), 1, b"220 smtp ready\r\n").await.1;
        assert!(words(result).contains("TLS"));
    }
}
