//! PURE. The binary messages of the data channel: a view on one as it came, and what the gateway makes itself: an
//! acknowledgement, a keep-alive, and a message that was given another number or whose one byte was put right.
//!
//! All numbers are big-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | header length: 116, up to and without the payload length |
//! | 4 | 32 | message type, padded with spaces or NULs |
//! | 36 | 4 | schema version |
//! | 40 | 8 | created, ms since 1970 |
//! | 48 | 8 | sequence number |
//! | 56 | 8 | flags |
//! | 64 | 16 | message id: a UUID, its last 8 bytes first |
//! | 80 | 32 | SHA-256 of the payload |
//! | 112 | 4 | payload type |
//! | 116 | 4 | payload length |
//! | 120 | n | payload |

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::breach::plain;
use super::mux::NOP;

/// Stream data.
pub const DATA: u32 = 1;
/// The agent names itself and the kind of session.
pub const HANDSHAKE_REQUEST: u32 = 5;
/// The plugin's answer, in which it names itself.
pub const HANDSHAKE_RESPONSE: u32 = 6;
/// The agent has what it needs; the plugin opens its port.
pub const HANDSHAKE_COMPLETE: u32 = 7;
/// A big-endian `u32` that says something about a connection or the session.
pub const FLAG: u32 = 10;
/// The flag by which the agent says that it could not reach the destination.
pub const CONNECT_TO_PORT_ERROR: [u8; 4] = 3u32.to_be_bytes();

const HEADER: usize = 116;
/// Of messages that the service makes itself.
const SHORTEST_HEADER: usize = 112;
const TYPE: usize = 4;
const CREATED: usize = 40;
const NUMBER: usize = 48;
const FLAGS: usize = 56;
const ID: usize = 64;
const DIGEST: usize = 80;
const PAYLOAD_TYPE: usize = 112;
const ACKNOWLEDGEMENT_FLAGS: u64 = 3;

/// What a message is, by its type field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stream data towards the agent.
    Input,
    /// Stream data from the agent.
    Output,
    /// The other side has taken a stream message.
    Acknowledge,
    /// The service ends the session.
    ChannelClosed,
    /// The agent has gone away.
    Pause,
    /// The agent is back.
    Start,
    /// Anything else.
    Other,
}

/// Why some bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer bytes than the header says.
    #[error("truncated")]
    Truncated,
    /// A header length that no known version has.
    #[error("unknown header length {0}")]
    HeaderLength(u32),
}

/// A whole message, read where it lies.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks that a stream message or an acknowledgement has its whole header, and the payload that it announces.
    ///
    /// Messages that the service makes itself (`channel_closed`, `start_publication`, `pause_publication`) have other
    /// headers: of 112 bytes, without a payload type, and with lengths that cannot be relied upon. So the plugin and other
    /// clients were found to read them: what follows the length that the header says, and 4 bytes, is the payload.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() < SHORTEST_HEADER {
            return Err(Malformed::Truncated);
        }
        let length = be_u32(bytes, 0);
        let whole = Self { bytes, payload: &[] };
        if !matches!(whole.kind(), Kind::Input | Kind::Output | Kind::Acknowledge) {
            let begin = usize::try_from(length).ok().filter(|length| *length >= SHORTEST_HEADER);
            let payload = begin.and_then(|begin| bytes.get(begin.checked_add(4)?..)).unwrap_or_default();
            return Ok(Self { bytes, payload });
        }
        let (_, rest) = bytes.split_at_checked(HEADER).ok_or(Malformed::Truncated)?;
        if length as usize != HEADER {
            return Err(Malformed::HeaderLength(length));
        }
        let (announced, payload) = rest.split_at_checked(4).ok_or(Malformed::Truncated)?;
        // Both ends take all that follows for the payload, and so does this; less than announced is a cut message.
        if payload.len() < be_u32(announced, 0) as usize {
            return Err(Malformed::Truncated);
        }
        Ok(Self { bytes, payload })
    }

    /// By the type field.
    pub fn kind(&self) -> Kind {
        match self.type_name() {
            b"input_stream_data" => Kind::Input,
            b"output_stream_data" => Kind::Output,
            b"acknowledge" => Kind::Acknowledge,
            b"channel_closed" => Kind::ChannelClosed,
            b"pause_publication" => Kind::Pause,
            b"start_publication" => Kind::Start,
            _ => Kind::Other,
        }
    }

    /// The place of a stream message in its direction, from 0.
    pub fn number(&self) -> i64 {
        i64::from_be_bytes(array(self.bytes, NUMBER))
    }

    /// What the payload is; 0 where the header has no room for that.
    pub fn payload_type(&self) -> u32 {
        self.bytes.get(PAYLOAD_TYPE..HEADER).map_or(0, |field| be_u32(field, 0))
    }

    /// Whether it is the last one of the handshake.
    pub fn completes_handshake(&self) -> bool {
        self.kind() == Kind::Output && self.payload_type() == HANDSHAKE_COMPLETE
    }

    /// The payload, whose digest is not checked here: the two ends do that.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// When it was made, as its sender tells the time, in ms since 1970; never zero, which the agent refuses.
    pub fn created(&self) -> u64 {
        u64::from_be_bytes(array(self.bytes, CREATED)).max(1)
    }

    /// A copy, which shares nothing with the buffer that the message was read into: what waits keeps no more than itself.
    pub fn copied(&self) -> Bytes {
        Bytes::copy_from_slice(self.bytes)
    }

    /// A copy under this number, which shares nothing with the buffer that the message was read into.
    pub fn numbered(&self, number: i64) -> Bytes {
        let mut bytes = BytesMut::from(self.bytes);
        bytes[NUMBER..FLAGS].copy_from_slice(&number.to_be_bytes());
        bytes.freeze()
    }

    /// For an acknowledgement: the number that it acknowledges.
    pub fn acknowledged(&self) -> Option<i64> {
        #[derive(Deserialize)]
        struct Content {
            #[serde(rename = "AcknowledgedMessageSequenceNumber")]
            number: i64,
        }
        serde_json::from_slice::<Content>(self.payload).ok().map(|content| content.number)
    }

    /// This acknowledgement, made to name `number`; `None` if it cannot be read.
    pub fn acknowledging(&self, number: i64) -> Option<Bytes> {
        let mut content: serde_json::Map<_, _> = serde_json::from_slice(self.payload).ok()?;
        content.insert("AcknowledgedMessageSequenceNumber".to_owned(), number.into());
        let content = serde_json::Value::Object(content).to_string();
        Some(self.with_payload(self.number(), content.as_bytes()))
    }

    /// A fresh acknowledgement of this message, as its receiver would send it.
    pub fn acknowledgement(&self) -> Bytes {
        let content = serde_json::json!({
            "AcknowledgedMessageType": String::from_utf8_lossy(self.type_name()),
            "AcknowledgedMessageId": self.id().to_string(),
            "AcknowledgedMessageSequenceNumber": self.number(),
            "IsSequentialMessage": true,
        })
        .to_string();
        let header = Header {
            kind: b"acknowledge",
            // Nobody measures by it; the message's own time needs no clock here.
            created: self.created(),
            number: 0,
            flags: ACKNOWLEDGEMENT_FLAGS,
            payload_type: 0,
        };
        header.with_payload(content.as_bytes())
    }

    /// This message under this number with its payload replaced by `byte`.
    pub fn with_only_byte(&self, number: i64, byte: u8) -> Bytes {
        self.with_payload(number, &[byte])
    }

    /// This message with another payload, and the digest made to fit.
    fn with_payload(&self, number: i64, payload: &[u8]) -> Bytes {
        let mut bytes = BytesMut::with_capacity(HEADER + 4 + payload.len());
        bytes.put_slice(&self.bytes[..PAYLOAD_TYPE]);
        bytes.put_u32(self.payload_type());
        bytes[NUMBER..FLAGS].copy_from_slice(&number.to_be_bytes());
        bytes[DIGEST..PAYLOAD_TYPE].copy_from_slice(&Sha256::digest(payload));
        bytes.put_u32(payload.len() as u32);
        bytes.put_slice(payload);
        bytes.freeze()
    }

    fn type_name(&self) -> &'a [u8] {
        let field = &self.bytes[TYPE..36];
        let end = field.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
        let start = field[..end].iter().position(|byte| !matches!(byte, 0 | b' ')).unwrap_or(end);
        &field[start..end]
    }

    fn id(&self) -> Uuid {
        let [last, first]: [[u8; 8]; 2] = [array(self.bytes, ID), array(self.bytes, ID + 8)];
        Uuid::from_u64_pair(u64::from_be_bytes(first), u64::from_be_bytes(last))
    }
}

/// The fields of a message to be made.
pub(super) struct Header<'a> {
    pub kind: &'a [u8],
    pub created: u64,
    pub number: i64,
    pub flags: u64,
    pub payload_type: u32,
}

impl Header<'_> {
    /// The whole message, with a fresh id.
    pub fn with_payload(&self, payload: &[u8]) -> Bytes {
        let mut kind = [b' '; 32];
        kind[..self.kind.len()].copy_from_slice(self.kind);
        let (first, last) = Uuid::new_v4().as_u64_pair();
        let mut bytes = BytesMut::with_capacity(HEADER + 4 + payload.len());
        bytes.put_u32(HEADER as u32);
        bytes.put_slice(&kind);
        bytes.put_u32(1);
        bytes.put_u64(self.created);
        bytes.put_i64(self.number);
        bytes.put_u64(self.flags);
        bytes.put_u64(last);
        bytes.put_u64(first);
        bytes.put_slice(&Sha256::digest(payload));
        bytes.put_u32(self.payload_type);
        bytes.put_u32(payload.len() as u32);
        bytes.put_slice(payload);
        bytes.freeze()
    }
}

/// A message of stream data in which nothing is said. `created` as in [`View::created`].
pub fn keep_alive(created: u64, number: i64) -> Bytes {
    Header { kind: b"input_stream_data", created, number, flags: 0, payload_type: DATA }.with_payload(&NOP)
}

/// What a handshake request says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    /// For example `3.3.2299.0`.
    pub agent_version: String,
    /// `Port`, `Standard_Stream`, …; empty if it is not named.
    pub session_type: String,
    /// Payloads will be encrypted with a key that only the two ends have.
    pub encrypted: bool,
    /// The data of its stream is mux frames.
    pub multiplexed: bool,
}

/// Agents up to this one carry one connection at a time, as it is.
const LAST_WITHOUT_MUX: [u32; 4] = [3, 0, 196, 0];

impl Handshake {
    /// Reads the payload of a handshake request.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Request {
            agent_version: String,
            #[serde(default)]
            requested_client_actions: Vec<Action>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Action {
            action_type: String,
            #[serde(default)]
            action_parameters: serde_json::Value,
        }
        let request: Request = serde_json::from_slice(payload).ok()?;
        let action = |name| request.requested_client_actions.iter().find(move |a| a.action_type == name);
        let parameters = action("SessionType").map(|action| &action.action_parameters);
        let session_type = parameters.and_then(|parameters| parameters["SessionType"].as_str());
        let kind = parameters.and_then(|parameters| parameters["Properties"]["type"].as_str());
        Some(Self {
            session_type: plain(session_type.unwrap_or_default()),
            // Both ends multiplex under these conditions and no others.
            multiplexed: session_type == Some("Port")
                && kind == Some("LocalPortForwarding")
                && version(&request.agent_version).is_some_and(|version| version > LAST_WITHOUT_MUX.to_vec()),
            encrypted: action("KMSEncryption").is_some(),
            agent_version: plain(&request.agent_version),
        })
    }
}

/// Plugins up to this one have the agent end a multiplexed session from whose client no frame has come for 30 to 60 s
/// (`agent/session/plugins/port/port_mux.go`, public source). What is built from source says 1.2.0.0.
const LAST_EXPECTED: [u32; 4] = [1, 2, 331, 0];

/// Whether the agent expects frames of this client, by the payload of its handshake response. So it does of one whose version
/// it cannot read.
pub fn is_expected(payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Response {
        #[serde(default)]
        client_version: String,
    }
    let response = serde_json::from_slice::<Response>(payload);
    response.is_ok_and(|response| {
        version(&response.client_version).is_none_or(|version| version <= LAST_EXPECTED.to_vec())
    })
}

fn version(text: &str) -> Option<Vec<u32>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

/// The reason in the payload of `channel_closed`, in the service's words, as far as they can be repeated.
pub fn closing_reason(payload: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Closed {
        #[serde(rename = "Output", default)]
        output: String,
    }
    match serde_json::from_slice::<Closed>(payload) {
        Ok(closed) if !closed.output.is_empty() => {
            // The agent puts a headline before its own errors.
            let output = closed.output.trim_start();
            plain(output.strip_prefix("----------ERROR-------").unwrap_or(output).trim_start())
        }
        _ => "closed by the service without a reason".to_owned(),
    }
}

/// `N` bytes at `offset`, which a checked view has.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

fn be_u32(bytes: &[u8], offset: usize) -> u32 {
    u32::from_be_bytes(array(bytes, offset))
}

#[cfg(test)]
mod tests;
