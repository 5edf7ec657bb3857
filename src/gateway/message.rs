//! PURE. The binary messages of the data channel: a view on one as it came, and the two things that the gateway makes
//! itself: an acknowledgement, and a message whose one byte was put right.
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

/// Stream data.
pub const DATA: u32 = 1;
/// The agent names itself and the kind of session.
pub const HANDSHAKE_REQUEST: u32 = 5;
/// The agent has what it needs; the plugin opens its port.
pub const HANDSHAKE_COMPLETE: u32 = 7;
/// A big-endian `u32` that says something about a connection or the session.
pub const FLAG: u32 = 10;
/// The flag by which the agent says that it could not reach the destination.
pub const CONNECT_TO_PORT_ERROR: [u8; 4] = 3u32.to_be_bytes();

const HEADER: usize = 116;
const TYPE: usize = 4;
const CREATED: usize = 40;
const NUMBER: usize = 48;
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
    /// Anything else, for example `pause_publication`.
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
    /// Checks that the header and the payload that it announces are there.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or(Malformed::Truncated)?;
        let length = be_u32(header, 0);
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
            _ => Kind::Other,
        }
    }

    /// The place of a stream message in its direction, from 0.
    pub fn number(&self) -> i64 {
        i64::from_be_bytes(array(self.bytes, NUMBER))
    }

    /// What the payload is.
    pub fn payload_type(&self) -> u32 {
        be_u32(self.bytes, PAYLOAD_TYPE)
    }

    /// The payload, whose digest is not checked here: the two ends do that.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// A copy that shares nothing with the buffer it was read into.
    pub fn detached(self) -> Bytes {
        Bytes::copy_from_slice(self.bytes)
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
            // Nobody measures by it, but the agent refuses a zero; the message's own time needs no clock here.
            created: u64::from_be_bytes(array(self.bytes, CREATED)).max(1),
            number: 0,
            flags: ACKNOWLEDGEMENT_FLAGS,
            payload_type: 0,
        };
        header.with_payload(content.as_bytes())
    }

    /// This message with its payload replaced by `byte`, and the digest made to fit.
    pub fn with_only_byte(&self, byte: u8) -> Bytes {
        let mut bytes = BytesMut::from(self.bytes);
        bytes.truncate(HEADER);
        bytes[DIGEST..PAYLOAD_TYPE].copy_from_slice(&Sha256::digest([byte]));
        bytes.put_u32(1);
        bytes.put_u8(byte);
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

/// What a handshake request says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    /// For example `3.3.2299.0`.
    pub agent_version: String,
    /// `Port`, `Standard_Stream`, …; empty if it is not named.
    pub session_type: String,
    /// Payloads will be encrypted with a key that only the two ends have.
    pub encrypted: bool,
}

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
        let session_type = action("SessionType").and_then(|a| a.action_parameters["SessionType"].as_str());
        Some(Self {
            session_type: session_type.unwrap_or_default().to_owned(),
            encrypted: action("KMSEncryption").is_some(),
            agent_version: request.agent_version,
        })
    }
}

/// The reason in the payload of `channel_closed`, in the service's words.
pub fn closing_reason(payload: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Closed {
        #[serde(rename = "Output", default)]
        output: String,
    }
    match serde_json::from_slice::<Closed>(payload) {
        Ok(closed) if !closed.output.is_empty() => closed.output,
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(kind: &[u8], number: i64, payload: &[u8]) -> Bytes {
        Header { kind, created: 7, number, flags: 0, payload_type: DATA }.with_payload(payload)
    }

    #[test]
    fn reads_what_was_made() {
        let bytes = data(b"input_stream_data", 42, b"hello");
        let view = View::new(&bytes).unwrap();
        assert_eq!(
            (view.kind(), view.number(), view.payload_type(), view.payload()),
            (Kind::Input, 42, DATA, &b"hello"[..])
        );
    }

    #[test]
    fn the_type_may_be_padded_with_nuls() {
        let mut bytes = data(b"output_stream_data", 0, b"").to_vec();
        for byte in &mut bytes[TYPE..36] {
            if *byte == b' ' {
                *byte = 0;
            }
        }
        assert_eq!(View::new(&bytes).unwrap().kind(), Kind::Output);
    }

    #[test]
    fn an_acknowledgement_names_its_message() {
        let bytes = data(b"output_stream_data", 9, b"x");
        let view = View::new(&bytes).unwrap();
        let acknowledgement = view.acknowledgement();
        let acknowledgement = View::new(&acknowledgement).unwrap();
        assert_eq!((acknowledgement.kind(), acknowledgement.acknowledged()), (Kind::Acknowledge, Some(9)));
        let content: serde_json::Value = serde_json::from_slice(acknowledgement.payload()).unwrap();
        assert_eq!(content["AcknowledgedMessageType"], "output_stream_data");
        assert_eq!(content["AcknowledgedMessageId"], view.id().to_string());
        assert_eq!(
            acknowledgement.bytes[DIGEST..PAYLOAD_TYPE],
            Sha256::digest(acknowledgement.payload())[..]
        );
    }

    /// The id of a message that the stock plugin sent, against the id that it named for it.
    #[test]
    fn an_id_lies_with_its_last_half_first() {
        let mut bytes = data(b"output_stream_data", 0, b"").to_vec();
        bytes[ID..ID + 16].copy_from_slice(&[8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(View::new(&bytes).unwrap().id().to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
    }

    #[test]
    fn a_replaced_byte_has_a_fitting_digest_and_nothing_else_changes() {
        let before = data(b"input_stream_data", 3, b"\r");
        let after = View::new(&before).unwrap().with_only_byte(b'\n');
        let mut expected = before.to_vec();
        expected[DIGEST..PAYLOAD_TYPE].copy_from_slice(&Sha256::digest(b"\n"));
        expected[120] = b'\n';
        assert_eq!(after, expected);
    }

    #[test]
    fn handshakes() {
        let plain = br#"{"AgentVersion":"3.3.1.0","RequestedClientActions":[{"ActionType":"SessionType",
            "ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"5432"}}}]}"#;
        let expected =
            Handshake { agent_version: "3.3.1.0".into(), session_type: "Port".into(), encrypted: false };
        assert_eq!(Handshake::parse(plain), Some(expected));
        let encrypted = br#"{"AgentVersion":"3.3.1.0","RequestedClientActions":[
            {"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"k"}}]}"#;
        assert!(Handshake::parse(encrypted).unwrap().encrypted);
        assert_eq!(Handshake::parse(b"not json"), None);
    }

    #[test]
    fn reasons_for_closing() {
        assert_eq!(closing_reason(br#"{"SessionId":"s","Output":"timed out"}"#), "timed out");
        for nothing in [&br#"{"Output":""}"#[..], b"{}", b"garbage"] {
            assert_eq!(closing_reason(nothing), "closed by the service without a reason");
        }
    }

    proptest! {
        /// Nothing that can come over the network makes any of it panic.
        #[test]
        fn survives_anything(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..300),
            with_length in any::<bool>(),
            cut in 0usize..300,
        ) {
            if with_length && bytes.len() >= 120 {
                bytes[..4].copy_from_slice(&(HEADER as u32).to_be_bytes());
                let payload = (bytes.len() - 120) as u32;
                bytes[116..120].copy_from_slice(&payload.to_be_bytes());
                prop_assert!(View::new(&bytes).is_ok());
                prop_assert!(View::new(&bytes[..cut.min(bytes.len() - 1)]).is_err());
            }
            if let Ok(view) = View::new(&bytes) {
                let _ = (view.kind(), view.acknowledged(), view.acknowledgement(), view.with_only_byte(10));
                let _ = (Handshake::parse(view.payload()), closing_reason(view.payload()));
            }
        }
    }
}
