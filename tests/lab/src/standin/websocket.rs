//! The client's side of one WebSocket, with the errors and the order of events of the library in the stock plugin:
//! pings are answered while reading, a close is answered at once, and any failed write makes all later ones fail alike.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

use super::dial::{self, Link};

/// Text, for the first message.
pub const TEXT: u8 = 1;
/// Binary, for all others.
pub const BINARY: u8 = 2;
/// A ping.
pub const PING: u8 = 9;
const CLOSE: u8 = 8;
const PONG: u8 = 10;
/// How long the answer to a ping or a close may wait for its turn and for the network.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);
const READ_SIZE: usize = 4096;
/// How an end without a close frame is told.
const ABNORMAL: &str = "websocket: close 1006 (abnormal closure): unexpected EOF";
/// More than any message of a data channel.
const MAX_MESSAGE: u64 = 16 << 20;

type Io = TokioIo<hyper::upgrade::Upgraded>;

/// The sending side.
pub struct Connection {
    writer: Mutex<Writer>,
    closed: CancellationToken,
    addresses: String,
}

struct Writer {
    half: WriteHalf<Io>,
    /// The first error; all later writes get it too.
    failure: Option<String>,
}

/// The reading side.
pub struct Reader {
    half: ReadHalf<Io>,
    buffer: BytesMut,
    /// Reading goes on failing in the same way.
    failure: Option<String>,
}

/// A frame's first two fields and its payload.
struct Frame {
    last: bool,
    opcode: u8,
    payload: Bytes,
}

/// Upgrades a connection to `uri`; `request` brings path and signature.
///
/// # Errors
/// `websocket: bad handshake` if the server does not agree, else the network's error.
pub async fn open(link: Link, uri: &Uri, mut request: Request<()>) -> Result<(Connection, Reader), String> {
    let key = generate_key();
    for (name, value) in [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-key", &key),
        ("sec-websocket-version", "13"),
    ] {
        let value = http::HeaderValue::from_str(value).map_err(|error| error.to_string())?;
        request.headers_mut().insert(name, value);
    }
    let addresses = link.addresses.clone();
    let answer = dial::exchange(link, uri, request.map(|()| Full::new(Bytes::new()))).await?;
    let accepted = answer
        .headers()
        .get("sec-websocket-accept")
        .is_some_and(|value| value.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS || !accepted {
        return Err("websocket: bad handshake".into());
    }
    let io = hyper::upgrade::on(answer).await.map_err(|error| error.to_string())?;
    let (read, write) = tokio::io::split(TokioIo::new(io));
    let writer = Mutex::new(Writer { half: write, failure: None });
    let reader = Reader { half: read, buffer: BytesMut::with_capacity(READ_SIZE), failure: None };
    Ok((Connection { writer, closed: CancellationToken::new(), addresses }, reader))
}

impl Connection {
    /// Sends one message and waits until the system has taken it.
    ///
    /// # Errors
    /// `websocket: close sent` after a close of the other side was answered; `write tcp …: broken pipe` and the like.
    pub async fn send(&self, opcode: u8, payload: &[u8]) -> Result<(), String> {
        self.write(&mut *self.writer.lock().await, opcode, payload).await
    }

    /// Closes the connection without a word to the other side, as the stock plugin does before it opens a new one.
    pub async fn close(&self) {
        self.closed.cancel();
        let mut writer = self.writer.lock().await;
        writer.failure.get_or_insert_with(|| self.closed_error());
        // The other side may be gone already.
        drop(writer.half.shutdown().await);
    }

    /// Whether [`Connection::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// The answer to a ping or a close: given up where other writes do not let it through in time.
    async fn send_control(&self, opcode: u8, payload: &[u8]) {
        let Ok(mut writer) = timeout(CONTROL_PATIENCE, self.writer.lock()).await else {
            return;
        };
        if timeout(CONTROL_PATIENCE, self.write(&mut writer, opcode, payload)).await.is_err() {
            writer.failure = Some(format!("write tcp {}: i/o timeout", self.addresses));
        }
    }

    async fn write(&self, writer: &mut Writer, opcode: u8, payload: &[u8]) -> Result<(), String> {
        if let Some(failure) = &writer.failure {
            return Err(failure.clone());
        }
        let frame = encode(opcode, payload, rand::random());
        let sent = async {
            writer.half.write_all(&frame).await?;
            writer.half.flush().await
        };
        let result = tokio::select! {
            // A write that the network does not take ends with the connection.
            () = self.closed.cancelled() => Err(self.closed_error()),
            sent = sent => sent.map_err(|error| {
                format!("write tcp {}: write: {}", self.addresses, dial::words(&error))
            }),
        };
        writer.failure = match &result {
            Ok(()) => (opcode == CLOSE).then(|| "websocket: close sent".into()),
            Err(error) => Some(error.clone()),
        };
        result
    }

    fn closed_error(&self) -> String {
        format!("write tcp {}: use of closed network connection", self.addresses)
    }
}

impl Reader {
    /// The next message. Pings are answered and closes acknowledged on the way.
    ///
    /// # Errors
    /// `websocket: close CODE (NAME): REASON`, or the network's error; the same again on every later call.
    pub async fn next(&mut self, connection: &Connection) -> Result<Bytes, String> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let read = tokio::select! {
            () = connection.closed.cancelled() => Err("use of closed network connection".into()),
            read = self.message(connection) => read,
        };
        if let Err(failure) = &read {
            self.failure = Some(failure.clone());
        }
        read
    }

    async fn message(&mut self, connection: &Connection) -> Result<Bytes, String> {
        let mut message = BytesMut::new();
        loop {
            let frame = self.frame(connection).await?;
            match frame.opcode {
                PING => connection.send_control(PONG, &frame.payload).await,
                PONG => {}
                CLOSE => {
                    connection.send_control(CLOSE, frame.payload.get(..2).unwrap_or_default()).await;
                    return Err(close_words(&frame.payload));
                }
                _ if frame.last && message.is_empty() => return Ok(frame.payload),
                _ => {
                    message.extend_from_slice(&frame.payload);
                    if frame.last {
                        return Ok(message.freeze());
                    }
                }
            }
        }
    }

    async fn frame(&mut self, connection: &Connection) -> Result<Frame, String> {
        loop {
            if let Some(frame) = decode(&mut self.buffer)? {
                return Ok(frame);
            }
            self.buffer.reserve(READ_SIZE);
            match self.half.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                // With TLS, an end without TLS's own word for it is an error of its own.
                Ok(0) => return Err(ABNORMAL.into()),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(ABNORMAL.into()),
                Err(error) => {
                    return Err(format!("read tcp {}: read: {}", connection.addresses, dial::words(&error)));
                }
            }
        }
    }
}

/// A client's frame: one for a whole message, masked.
fn encode(opcode: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 14);
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => out.push(0x80 | length as u8),
        length @ 126..65536 => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// Takes a server's frame from the front of `buffer`, `None` if it is not complete yet.
fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, String> {
    let [first, second, rest @ ..] = &buffer[..] else {
        return Ok(None);
    };
    let (header, length) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (4, u64::from(u16::from_be_bytes([*a, *b]))),
        (127, [a, b, c, d, e, f, g, h, ..]) => (10, u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h])),
        (126 | 127, _) => return Ok(None),
        (length, _) => (2, u64::from(length)),
    };
    if second & 0x80 != 0 || length > MAX_MESSAGE {
        return Err("websocket: bad frame".into());
    }
    let (last, opcode, length) = (first & 0x80 != 0, first & 0x0f, length as usize);
    if buffer.len() < header + length {
        return Ok(None);
    }
    buffer.advance(header);
    Ok(Some(Frame { last, opcode, payload: buffer.split_to(length).freeze() }))
}

/// A close frame's payload in the library's words.
fn close_words(payload: &[u8]) -> String {
    let [high, low, reason @ ..] = payload else {
        return "websocket: close 1005 (no status)".into();
    };
    let code = u16::from_be_bytes([*high, *low]);
    let name = match code {
        1000 => " (normal)",
        1001 => " (going away)",
        1002 => " (protocol error)",
        1003 => " (unsupported data)",
        1007 => " (invalid payload data)",
        1008 => " (policy violation)",
        1009 => " (message too big)",
        1010 => " (mandatory extension missing)",
        1011 => " (internal server error)",
        _ => "",
    };
    let reason = String::from_utf8_lossy(reason);
    let colon = if reason.is_empty() { "" } else { ": " };
    format!("websocket: close {code}{name}{colon}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_are_masked_and_read() {
        for length in [0, 1, 125, 126, 1144, 65535, 65536, 70000] {
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let sent = encode(BINARY, &payload, [1, 2, 3, 4]);
            let header = sent.len() - length;
            assert_eq!(&sent[header - 4..header], [1, 2, 3, 4]);
            assert!(
                sent[header..].iter().zip(&payload).enumerate().all(|(n, (a, b))| a ^ b == n as u8 % 4 + 1)
            );
            // The same as a server sends it: no mask.
            let mut buffer = BytesMut::from(&sent[..header - 4]);
            buffer[1] &= 0x7f;
            buffer.extend_from_slice(&payload);
            let whole = buffer.clone();
            for cut in [0, 1, header - 5, whole.len() - 1] {
                assert!(cut == whole.len() || decode(&mut BytesMut::from(&whole[..cut])).unwrap().is_none());
            }
            let frame = decode(&mut buffer).unwrap().unwrap();
            assert!(frame.last && frame.opcode == BINARY && frame.payload == payload && buffer.is_empty());
        }
    }

    #[test]
    fn closes_are_told_in_the_librarys_words() {
        assert_eq!(close_words(b"\x03\xe8Bye"), "websocket: close 1000 (normal): Bye");
        assert_eq!(close_words(b"\x03\xe9"), "websocket: close 1001 (going away)");
        assert_eq!(close_words(b"\x0f\xa1x"), "websocket: close 4001: x");
        assert_eq!(close_words(b""), "websocket: close 1005 (no status)");
    }
}
