//! One binary message of the data channel: a header of 116 bytes, the payload's length, the payload.
//!
//! | offset | size | field, big-endian |
//! |---|---|---|
//! | 0 | 4 | header length, 116: from offset 0 up to and without the payload's length |
//! | 4 | 32 | message type, padded with spaces (NULs are accepted) |
//! | 36 | 4 | schema version, 1 |
//! | 40 | 8 | created, ms since 1970 |
//! | 48 | 8 | sequence number, signed |
//! | 56 | 8 | flags |
//! | 64 | 16 | message id: a UUID, its last 8 bytes first |
//! | 80 | 32 | SHA-256 of the payload |
//! | 112 | 4 | payload type |
//! | 116 | 4 | payload length |
//! | 120 | n | payload |
//!
//! What the service makes itself (`channel_closed`, `start_publication`, `pause_publication`) has a header of 112 bytes, which is one without
//! a payload type; its name is padded with NULs, and of the latter two neither length nor digest are to be relied on.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What the header says of its own length.
pub const HEADER_LENGTH: usize = 116;
/// Offset of the payload: the header and the payload's length.
pub const PAYLOAD_OFFSET: usize = HEADER_LENGTH + 4;
/// The same of messages that the service makes itself.
const SERVICE_HEADER_LENGTH: usize = 112;
/// Flags of messages outside the numbered streams (acknowledgements and the service's own).
pub const FLAGS_UNNUMBERED: u64 = 3;
/// Flag of an agent's first stream message.
pub const FLAGS_FIRST: u64 = 1;

/// The message types of a data channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Numbered data to the agent.
    InputStreamData,
    /// Numbered data from the agent.
    OutputStreamData,
    /// Takes note of one numbered message.
    Acknowledge,
    /// The session has ended.
    ChannelClosed,
    /// The other side is there again.
    StartPublication,
    /// The other side is away.
    PausePublication,
}

impl MessageType {
    const ALL: [Self; 6] = [
        Self::InputStreamData,
        Self::OutputStreamData,
        Self::Acknowledge,
        Self::ChannelClosed,
        Self::StartPublication,
        Self::PausePublication,
    ];

    /// Those that the service makes itself.
    const OF_SERVICE: [Self; 3] = [Self::ChannelClosed, Self::StartPublication, Self::PausePublication];

    /// As written in the header and in acknowledgements.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InputStreamData => "input_stream_data",
            Self::OutputStreamData => "output_stream_data",
            Self::Acknowledge => "acknowledge",
            Self::ChannelClosed => "channel_closed",
            Self::StartPublication => "start_publication",
            Self::PausePublication => "pause_publication",
        }
    }

    /// The type of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// What a numbered message's payload is.
pub mod payload {
    /// Bytes of the session; smux frames in a port session.
    pub const DATA: u32 = 1;
    /// The agent's handshake request, JSON.
    pub const HANDSHAKE_REQUEST: u32 = 5;
    /// The client's answer, JSON.
    pub const HANDSHAKE_RESPONSE: u32 = 6;
    /// The agent's word that the handshake is over, JSON.
    pub const HANDSHAKE_COMPLETE: u32 = 7;
    /// The agent asks whether the client can decrypt and encrypt, JSON.
    pub const CHALLENGE: u32 = 8;
    /// The client's answer, JSON.
    pub const CHALLENGE_RESPONSE: u32 = 9;
    /// A big-endian `u32` out of [`super::flag`].
    pub const FLAG: u32 = 10;
}

/// Values of a payload of type [`payload::FLAG`].
pub mod flag {
    /// The client's connection to the port has closed (sessions without mux).
    pub const DISCONNECT_TO_PORT: u32 = 1;
    /// The client asks the agent to end the session.
    pub const TERMINATE_SESSION: u32 = 2;
    /// The agent could not reach the destination.
    pub const CONNECT_TO_PORT_ERROR: u32 = 3;
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type.
    pub kind: MessageType,
    /// Always 1 so far.
    pub schema_version: u32,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Counts from 0 in each direction for stream data; 0 otherwise.
    pub sequence: i64,
    /// See [`FLAGS_FIRST`] and [`FLAGS_UNNUMBERED`].
    pub flags: u64,
    /// Named again in the acknowledgement.
    pub id: Uuid,
    /// One of [`payload`]; 0 for messages that are not stream data.
    pub payload_type: u32,
    /// The payload.
    pub payload: Bytes,
}

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than a header.
    #[error("{0} bytes are too short for a message")]
    Short(usize),
    /// The header says another length than 116.
    #[error("header length {0} instead of 116")]
    HeaderLength(u32),
    /// No message type of this protocol.
    #[error("unknown message type {0:?}")]
    Type(String),
    /// The payload's length does not match what follows it.
    #[error("payload length {said} but {found} bytes follow")]
    PayloadLength {
        /// What the message says.
        said: u32,
        /// What is there.
        found: usize,
    },
    /// The payload's SHA-256 is another one.
    #[error("the payload does not match its digest")]
    Digest,
}

impl Message {
    /// A numbered message of data, made now, with a new id.
    pub fn stream(kind: MessageType, sequence: i64, payload_type: u32, payload: impl Into<Bytes>) -> Self {
        // Only the agent flags its first message; the plugin never does.
        let first = kind == MessageType::OutputStreamData && sequence == 0;
        let flags = if first { FLAGS_FIRST } else { 0 };
        Self { sequence, flags, payload_type, ..Self::unnumbered(kind, payload) }
    }

    /// A message outside the numbered streams, made now, with a new id.
    pub fn unnumbered(kind: MessageType, payload: impl Into<Bytes>) -> Self {
        Self {
            kind,
            schema_version: 1,
            created: now_ms(),
            sequence: 0,
            flags: FLAGS_UNNUMBERED,
            id: Uuid::new_v4(),
            payload_type: 0,
            payload: payload.into(),
        }
    }

    /// The acknowledgement of this message.
    pub fn acknowledgement(&self) -> Self {
        let content = Acknowledgement {
            kind: self.kind.as_str().into(),
            id: self.id.to_string(),
            sequence: self.sequence,
            sequential: true,
        };
        // Strings and numbers: serialization cannot fail.
        Self::unnumbered(MessageType::Acknowledge, serde_json::to_vec(&content).unwrap_or_default())
    }

    /// What an acknowledgement acknowledges; an error if it is not one.
    pub fn acknowledged(&self) -> serde_json::Result<Acknowledgement> {
        serde_json::from_slice(&self.payload)
    }

    /// The value of a payload of type [`payload::FLAG`].
    pub fn flag(&self) -> Option<u32> {
        (self.payload_type == payload::FLAG).then_some(())?;
        self.payload.as_ref().try_into().ok().map(u32::from_be_bytes)
    }

    /// The message as it travels. The digest is made here.
    pub fn encode(&self) -> Bytes {
        self.encode_as(self.kind.as_str())
    }

    /// A message outside the numbered streams of a type that no data channel's client ever sees.
    pub fn encode_named(name: &str, payload: impl Into<Bytes>) -> Bytes {
        Self::unnumbered(MessageType::Acknowledge, payload).encode_as(name)
    }

    /// The message as it travels when the service makes it.
    pub fn encode_of_service(&self) -> Bytes {
        let sender = self.encode();
        let mut out = BytesMut::with_capacity(sender.len());
        out.put_u32(SERVICE_HEADER_LENGTH as u32);
        let mut name = [0; 32];
        let kind = self.kind.as_str().as_bytes();
        name[..kind.len()].copy_from_slice(kind);
        out.put_slice(&name);
        out.put_slice(&sender[36..SERVICE_HEADER_LENGTH]);
        if self.kind == MessageType::ChannelClosed {
            out.put_u32(self.payload.len() as u32);
        } else {
            // The length of all of it, in the other order; and a digest of something else.
            out.put_u32_le((SERVICE_HEADER_LENGTH + 4 + self.payload.len()) as u32);
            out[80..SERVICE_HEADER_LENGTH].fill(0x5a);
        }
        out.put_slice(&self.payload);
        out.freeze()
    }

    /// A message that the service has made: its payload is all that follows.
    fn decode_of_service(bytes: &Bytes, kind: MessageType) -> Self {
        Self {
            kind,
            schema_version: u32_at(bytes, 36),
            created: u64_at(bytes, 40),
            sequence: u64_at(bytes, 48).cast_signed(),
            flags: u64_at(bytes, 56),
            id: Uuid::from_u64_pair(u64_at(bytes, 72), u64_at(bytes, 64)),
            payload_type: 0,
            payload: bytes.slice(SERVICE_HEADER_LENGTH + 4..),
        }
    }

    fn encode_as(&self, kind: &str) -> Bytes {
        let mut out = BytesMut::with_capacity(PAYLOAD_OFFSET + self.payload.len());
        out.put_u32(HEADER_LENGTH as u32);
        let mut name = [b' '; 32];
        name[..kind.len()].copy_from_slice(kind.as_bytes());
        out.put_slice(&name);
        out.put_u32(self.schema_version);
        out.put_u64(self.created);
        out.put_i64(self.sequence);
        out.put_u64(self.flags);
        let (most, least) = self.id.as_u64_pair();
        out.put_u64(least);
        out.put_u64(most);
        out.put_slice(&Sha256::digest(&self.payload));
        out.put_u32(self.payload_type);
        out.put_u32(self.payload.len() as u32);
        out.put_slice(&self.payload);
        out.freeze()
    }

    /// The message in `bytes`, all of them; its digest is checked.
    ///
    /// # Errors
    /// Whatever differs from the table above.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        if bytes.len() < SERVICE_HEADER_LENGTH + 4 {
            return Err(DecodeError::Short(bytes.len()));
        }
        let header_length = u32_at(bytes, 0);
        let name = String::from_utf8_lossy(&bytes[4..36]);
        let name = name.trim_matches([' ', '\0']);
        let of_service = MessageType::from_name(name).filter(|kind| MessageType::OF_SERVICE.contains(kind));
        if let Some(kind) = of_service
            && header_length as usize == SERVICE_HEADER_LENGTH
        {
            return Ok(Self::decode_of_service(bytes, kind));
        }
        if bytes.len() < PAYLOAD_OFFSET {
            return Err(DecodeError::Short(bytes.len()));
        }
        if header_length as usize != HEADER_LENGTH {
            return Err(DecodeError::HeaderLength(header_length));
        }
        let kind = MessageType::from_name(name).ok_or_else(|| DecodeError::Type(name.into()))?;
        let said = u32_at(bytes, HEADER_LENGTH);
        let payload = bytes.slice(PAYLOAD_OFFSET..);
        if payload.len() != said as usize {
            return Err(DecodeError::PayloadLength { said, found: payload.len() });
        }
        if Sha256::digest(&payload).as_slice() != &bytes[80..112] {
            return Err(DecodeError::Digest);
        }
        Ok(Self {
            kind,
            schema_version: u32_at(bytes, 36),
            created: u64_at(bytes, 40),
            sequence: u64_at(bytes, 48).cast_signed(),
            flags: u64_at(bytes, 56),
            id: Uuid::from_u64_pair(u64_at(bytes, 72), u64_at(bytes, 64)),
            payload_type: u32_at(bytes, 112),
            payload,
        })
    }
}

/// What can be seen of a message without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its type as written.
    pub name: String,
    /// Its type, if a data channel has it.
    pub kind: Option<MessageType>,
    /// One of [`payload`].
    pub payload_type: u32,
}

impl Header {
    /// The header of an encoded message; `None` if it is too short for one.
    pub fn of(bytes: &Bytes) -> Option<Self> {
        let name = String::from_utf8_lossy(bytes.get(4..36)?).trim_matches([' ', '\0']).to_owned();
        let payload_type = (bytes.len() >= PAYLOAD_OFFSET).then(|| u32_at(bytes, 112))?;
        Some(Self { kind: MessageType::from_name(&name), name, payload_type })
    }
}

/// The payload of an acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// The acknowledged message's type.
    #[serde(rename = "AcknowledgedMessageType")]
    pub kind: String,
    /// Its id.
    #[serde(rename = "AcknowledgedMessageId")]
    pub id: String,
    /// Its sequence number.
    #[serde(rename = "AcknowledgedMessageSequenceNumber")]
    pub sequence: i64,
    /// Always true.
    #[serde(rename = "IsSequentialMessage")]
    pub sequential: bool,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let kind = proptest::sample::select(MessageType::ALL.to_vec());
        let numbers = (any::<u32>(), any::<u64>(), any::<i64>(), any::<u64>(), any::<u128>(), any::<u32>());
        let payload = proptest::collection::vec(any::<u8>(), 0..2000);
        (kind, numbers, payload).prop_map(|(kind, numbers, payload)| {
            let (schema_version, created, sequence, flags, id, payload_type) = numbers;
            let (id, payload) = (Uuid::from_u128(id), payload.into());
            Message { kind, schema_version, created, sequence, flags, id, payload_type, payload }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(message in any_message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        /// A changed byte of the payload never goes unseen; cut messages are refused.
        #[test]
        fn damage_is_seen(message in any_message(), at in any::<proptest::sample::Index>()) {
            let whole = message.encode();
            let at = at.index(whole.len());
            prop_assert!(Message::decode(&whole.slice(..at)).is_err());
            if at >= PAYLOAD_OFFSET {
                let mut damaged = whole.to_vec();
                damaged[at] ^= 0x20;
                prop_assert_eq!(Message::decode(&damaged.into()), Err(DecodeError::Digest));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes.into());
        }
    }

    /// A message written out by hand, so that encoder and decoder cannot agree on the same mistake.
    #[test]
    fn the_layout_is_the_documented_one() {
        let mut bytes = vec![0, 0, 0, 116];
        bytes.extend(b"input_stream_data               ");
        bytes.extend([0, 0, 0, 1]);
        bytes.extend([0, 0, 0, 0, 0, 0, 1, 2]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 7]);
        bytes.extend([0; 8]);
        bytes.extend([8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]);
        // SHA-256 of "abc", FIPS 180-2's example.
        bytes.extend([
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
            0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
        ]);
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 3]);
        bytes.extend(b"abc");
        let message = Message {
            kind: MessageType::InputStreamData,
            schema_version: 1,
            created: 0x102,
            sequence: 7,
            flags: 0,
            id: Uuid::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
            payload_type: payload::DATA,
            payload: Bytes::from_static(b"abc"),
        };
        assert_eq!(message.encode(), bytes);
        assert_eq!(Message::decode(&bytes.into()), Ok(message));
    }

    /// As third parties have seen it on the wire.
    #[test]
    fn what_the_service_makes_has_a_header_of_its_own() {
        for kind in MessageType::OF_SERVICE {
            let message = Message::unnumbered(kind, "{\"Output\":\"bye\"}");
            let bytes = message.encode_of_service();
            assert_eq!(bytes[..4], [0, 0, 0, 112]);
            assert!(bytes[4..36].ends_with(&[0; 14]) && !bytes[4..36].contains(&b' '));
            assert_eq!(&bytes[116..], &message.payload);
            let right_length = bytes[112..116] == 16_u32.to_be_bytes();
            assert_eq!(right_length, kind == MessageType::ChannelClosed);
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
        let other = Message::unnumbered(MessageType::Acknowledge, "").encode_of_service();
        assert_eq!(Message::decode(&other), Err(DecodeError::Short(116)));
    }

    #[test]
    fn an_acknowledgement_names_its_message() {
        let message = Message::stream(MessageType::OutputStreamData, 41, payload::DATA, "x");
        let acknowledgement = message.acknowledgement();
        assert_eq!((acknowledgement.flags, acknowledgement.sequence), (FLAGS_UNNUMBERED, 0));
        let content = acknowledgement.acknowledged().unwrap();
        assert_eq!(content.id, message.id.to_string());
        assert_eq!((content.kind.as_str(), content.sequence), ("output_stream_data", 41));
    }
}
