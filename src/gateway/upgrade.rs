//! The upgrade of a connection to a WebSocket, from the client's side (RFC 6455, section 4.1).
//!
//! An HTTP library reads the answer: proxies and load balancers rewrite its headers, and what is valid has many forms.

use std::fmt;

use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Request, Uri, Version};
use http_body_util::Empty;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::breach::plain;
use super::link::{self, Connection};
use crate::network::{Answer, NoAnswer, Switched, switch};

/// A WebSocket whose other end is the service.
pub type Socket = WebSocketStream<Box<dyn Connection>>;

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum NotUpgraded {
    /// The server has something else to say.
    #[error("{0}")]
    Answered(Answer),
    /// The server agrees, but not to what was asked for.
    #[error("HTTP 101 Switching Protocols, but {0}")]
    Wrong(Fault),
    /// The connection was cut, or what came is not HTTP.
    #[error("{0}")]
    NoAnswer(#[from] NoAnswer),
}

/// What is wrong with an answer that agrees.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// HTTP before 1.1 knows no upgrades.
    Version(Version),
    /// This header does not have this token; it has that instead.
    Token(HeaderName, &'static str, Option<String>),
    /// It is the answer to another request, such as a cache's.
    Accept(Option<String>),
    /// This header names what was not asked for.
    Unrequested(HeaderName, String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let canonical = |name: &HeaderName| match *name {
            UPGRADE => "Upgrade",
            CONNECTION => "Connection",
            SEC_WEBSOCKET_EXTENSIONS => "Sec-WebSocket-Extensions",
            _ => "Sec-WebSocket-Protocol",
        };
        match self {
            Self::Version(version) => write!(f, "in {version:?}"),
            Self::Token(name, token, None) => write!(f, "without `{}: {token}`", canonical(name)),
            Self::Token(name, token, Some(found)) => {
                let name = canonical(name);
                write!(f, "with `{name}: {found}` instead of `{name}: {token}`")
            }
            Self::Accept(None) => f.write_str("without `Sec-WebSocket-Accept`"),
            Self::Accept(Some(found)) => {
                write!(f, "with `Sec-WebSocket-Accept: {found}`, which does not belong to the request's key")
            }
            Self::Unrequested(name, found) => {
                write!(f, "with `{}: {found}`, which was not asked for", canonical(name))
            }
        }
    }
}

/// Makes a request for a WebSocket into one, and nothing but that: who it is for and whatever signs it is the caller's.
pub fn request(uri: &Uri) -> Result<Request<()>, http::Error> {
    Request::builder()
        .uri(uri)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, generate_key())
        .body(())
}

/// Sends what [`request()`] made and makes a WebSocket of the connection. Frames that come with the answer are kept.
///
/// # Errors
/// The server does not agree, or not to this.
pub async fn upgrade(connection: Box<dyn Connection>, request: Request<()>) -> Result<Socket, NotUpgraded> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    let accept = derive_accept_key(key);
    let mut request = request.map(|()| Empty::<Bytes>::new());
    // A server is asked for a path; for the whole address only a proxy.
    let path = request.uri().path_and_query().map(|path| Uri::from(path.clone()));
    *request.uri_mut() = path.unwrap_or_default();
    let (head, stream, read) = match switch(connection, request).await? {
        Switched::Yes { head, stream, read } => (head, stream, read),
        Switched::No(answer) => return Err(NotUpgraded::Answered(answer)),
    };
    verify(&head, &accept).map_err(NotUpgraded::Wrong)?;
    Ok(WebSocketStream::from_partially_read(stream, read.to_vec(), Role::Client, Some(link::config())).await)
}

fn verify(head: &Parts, accept: &str) -> Result<(), Fault> {
    if head.version < Version::HTTP_11 {
        return Err(Fault::Version(head.version));
    }
    for (name, token) in [(UPGRADE, "websocket"), (CONNECTION, "upgrade")] {
        if !values(&head.headers, &name).any(|found| found.eq_ignore_ascii_case(token.as_bytes())) {
            let found = found(&head.headers, &name);
            return Err(Fault::Token(name, token, found));
        }
    }
    // The key is one of base64, with no commas to split it at.
    let mut accepts = head.headers.get_all(SEC_WEBSOCKET_ACCEPT).iter().peekable();
    let answers = |found: &HeaderValue| found.as_bytes().trim_ascii() == accept.as_bytes();
    if accepts.peek().is_none() || !accepts.all(answers) {
        return Err(Fault::Accept(found(&head.headers, &SEC_WEBSOCKET_ACCEPT)));
    }
    for name in [SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_PROTOCOL] {
        if values(&head.headers, &name).next().is_some() {
            let found = found(&head.headers, &name).unwrap_or_default();
            return Err(Fault::Unrequested(name, found));
        }
    }
    Ok(())
}

/// The elements of a header that is a list, over all of its instances; empty ones mean nothing (RFC 9110, section 5.6.1).
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lists =
        headers.get_all(name).into_iter().flat_map(|list| list.as_bytes().split(|byte| *byte == b','));
    lists.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// A header as it came, to be repeated.
fn found(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let all: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!all.is_empty()).then(|| plain(&all.join(", ")))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    /// Of a server, unmasked: `hello`.
    const FRAME: &[u8] = b"\x81\x05hello";

    /// What becomes of an upgrade with this answer, `{accept}` being the right key, sent in pieces of `piece` bytes; and what
    /// was asked.
    async fn answered(answer: &str, frame: &[u8], piece: usize) -> (Result<Socket, NotUpgraded>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let key = head.lines().find_map(|line| line.strip_prefix("Sec-Websocket-Key: ")).unwrap();
            let mut answer = answer.replace("{accept}", &derive_accept_key(key.as_bytes())).into_bytes();
            answer.extend_from_slice(frame);
            for piece in answer.chunks(piece) {
                // Who does not like the beginning does not wait for the end.
                let _ = stream.write_all(piece).await;
            }
            // A client that has got what it wanted reads on; the others are not to wait.
            (head, (!frame.is_empty()).then_some(stream))
        };
        let client = async {
            let stream: Box<dyn Connection> = Box::new(TcpStream::connect(address).await.unwrap());
            let request =
                request(&"wss://service.example/v1/data-channel/s?role=x".parse().unwrap()).unwrap();
            let result = upgrade(stream, request).await;
            match result {
                Ok(mut socket) if !frame.is_empty() => {
                    let hello = socket.next().await.unwrap().unwrap();
                    assert_eq!(hello, Message::text("hello"), "{answer}");
                    Ok(socket)
                }
                result => result,
            }
        };
        let (result, (head, _stream)) = tokio::join!(client, server);
        (result, head)
    }

    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                        Sec-WebSocket-Accept: {accept}\r\n\r\n";

    /// What proxies, load balancers and servers make of it.
    #[tokio::test]
    async fn answers_that_are_odd_but_valid_are_taken() {
        let good = |from: &str, to: &str| {
            assert!(GOOD.contains(from));
            GOOD.replace(from, to)
        };
        for answer in [
            GOOD.to_owned(),
            good("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
            good("Connection: Upgrade", "Connection: Upgrade,keep-alive"),
            good("Connection: Upgrade", "Connection:\tkeep-alive \t,\t UPGRADE \t"),
            good("Connection: Upgrade", "Connection: ,, upgrade,"),
            good("Connection: Upgrade", "Connection: keep-alive\r\nConnection: upgrade"),
            good("Connection: Upgrade", "Connection: close, upgrade"),
            good("Connection: Upgrade", "Connection:Upgrade"),
            good("Connection: Upgrade", "Connection : Upgrade"),
            good("Connection: Upgrade", "Connection: keep-alive,\r\n Upgrade"),
            good("Upgrade: websocket", "Upgrade: WebSocket"),
            good("Upgrade: websocket", "upgrade:   WEBSOCKET"),
            good("Upgrade: websocket", "Upgrade: h2c, websocket"),
            good("Upgrade: websocket", "Upgrade: websocket\r\nUpgrade: websocket"),
            good("Sec-WebSocket-Accept: {accept}", "SEC-WEBSOCKET-ACCEPT:{accept}  "),
            good(
                "Sec-WebSocket-Accept: {accept}",
                "sec-websocket-accept: {accept}\r\nsec-websocket-accept: {accept}",
            ),
            good("\r\n\r\n", "\r\nSec-WebSocket-Extensions:\r\nSec-WebSocket-Protocol: \r\n\r\n"),
            good(" Switching Protocols", " Web Socket Protocol Handshake"),
            good(" Switching Protocols", ""),
            good(" Switching Protocols", " "),
            good("HTTP/1.1 101", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101"),
            good("HTTP/1.1 101", "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 101"),
            good("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"),
            good("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\nContent-Type: text/html\r\n\r\n"),
            good(
                "\r\n\r\n",
                "\r\nDate: Thu, 01 Oct 2026 00:00:00 GMT\r\nVia: 1.1 proxy\r\nX-Odd: \u{e9}\r\n\r\n",
            ),
            good("\r\n\r\n", &format!("\r\nSet-Cookie: {}\r\n\r\n", "c".repeat(8000))),
            good("\r\n\r\n", &format!("\r\n{}\r\n", "X-Header: value\r\n".repeat(60))),
            "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {accept}\r\nconnection: upgrade\r\n\
             server: nginx\r\nupgrade: websocket\r\n\r\n"
                .to_owned(),
            GOOD.replace("\r\n", "\n"),
        ] {
            for (frame, piece) in [(FRAME, usize::MAX), (FRAME, 1), (&b""[..], usize::MAX)] {
                let result = answered(&answer, frame, piece).await.0;
                if let Err(error) = result {
                    panic!("{answer}{error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn answers_that_are_no_agreement_are_refused_with_a_word() {
        let good = |from: &str, to: &str| {
            assert!(GOOD.contains(from));
            GOOD.replace(from, to)
        };
        let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 34\r\n\r\n\
                    <html><title>Sign in</title></html>";
        for (answer, words) in [
            (good("Connection: Upgrade\r\n", ""), "but without `Connection: upgrade`"),
            (
                good("Connection: Upgrade", "Connection: keep-alive"),
                "but with `Connection: keep-alive` instead of `Connection: upgrade`",
            ),
            (good("Connection: Upgrade", "Connection: upgraded, not-upgrade"), "with `Connection: upgraded, not-up"),
            (good("Connection: Upgrade", "Connection: \"Upgrade\""), "instead of `Connection: upgrade`"),
            (good("Upgrade: websocket\r\n", ""), "but without `Upgrade: websocket`"),
            (good("Upgrade: websocket", "Upgrade: h2c"), "but with `Upgrade: h2c` instead of `Upgrade: websocket`"),
            (good("Upgrade: websocket", "Upgrade: websockets"), "but with `Upgrade: websockets` instead of"),
            (good("Sec-WebSocket-Accept: {accept}\r\n", ""), "but without `Sec-WebSocket-Accept`"),
            (good("{accept}", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "which does not belong to the request's key"),
            (good("{accept}", "\"{accept}\""), "which does not belong to the request's key"),
            (
                good("Sec-WebSocket-Accept", "Sec-WebSocket-Accept: other\r\nSec-WebSocket-Accept"),
                "with `Sec-WebSocket-Accept: other, ",
            ),
            (
                good("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
                "but with `Sec-WebSocket-Extensions: permessage-deflate`, which was not asked for",
            ),
            (
                good("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\n\r\n"),
                "but with `Sec-WebSocket-Protocol: chat`, which was not asked for",
            ),
            (good("HTTP/1.1", "HTTP/1.0"), "but in HTTP/1.0"),
            (page.to_owned(), "HTTP 200 OK, a page (text/html) “Sign in”"),
            (
                "HTTP/1.1 302 Found\r\nLocation: http://portal.example/?t=hunter2\r\nContent-Length: 0\r\n\r\n".into(),
                "HTTP 302 Found, which leads to http://portal.example",
            ),
            ("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n".into(), "HTTP 426 Upgrade Required"),
            (
                "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\nno WebSockets here".into(),
                "HTTP 403 Forbidden, text/plain: “no WebSockets here”",
            ),
            ("SSH-2.0-OpenSSH_9.2\r\n".into(), "invalid HTTP version"),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: web".into(), "the connection was cut"),
            (String::new(), "the connection was cut"),
        ] {
            let (result, _) = answered(&answer, b"", usize::MAX).await;
            let text = result.err().unwrap_or_else(|| panic!("{answer}")).to_string();
            assert!(text.contains(words) && !text.contains("hunter2"), "{answer}: {text}");
        }
    }

    /// Not all servers know that the case of headers means nothing.
    #[tokio::test]
    async fn the_request_is_an_ordinary_one() {
        let (_, head) = answered(GOOD, b"", usize::MAX).await;
        let mut lines: Vec<_> = head.trim_end().lines().collect();
        assert_eq!(lines.remove(0), "GET /v1/data-channel/s?role=x HTTP/1.1");
        lines.retain(|line| !line.starts_with("Sec-Websocket-Key: "));
        assert_eq!(lines, ["Connection: Upgrade", "Upgrade: websocket", "Sec-Websocket-Version: 13"]);
    }
}
