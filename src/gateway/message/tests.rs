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
    assert_eq!(acknowledgement.bytes[DIGEST..PAYLOAD_TYPE], Sha256::digest(acknowledgement.payload())[..]);
}

/// The id of a message that the stock plugin sent, against the id that it named for it.
#[test]
fn an_id_lies_with_its_last_half_first() {
    let mut bytes = data(b"output_stream_data", 0, b"").to_vec();
    bytes[ID..ID + 16].copy_from_slice(&[8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(View::new(&bytes).unwrap().id().to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
}

#[test]
fn a_replaced_byte_has_a_fitting_digest_and_nothing_but_the_number_changes() {
    let before = data(b"input_stream_data", 3, b"\r");
    let after = View::new(&before).unwrap().with_only_byte(4, b'\n');
    let mut expected = before.to_vec();
    expected[NUMBER..FLAGS].copy_from_slice(&4i64.to_be_bytes());
    expected[DIGEST..PAYLOAD_TYPE].copy_from_slice(&Sha256::digest(b"\n"));
    expected[120] = b'\n';
    assert_eq!(after, expected);
}

#[test]
fn handshakes() {
    let plain = br#"{"AgentVersion":"3.3.1.0","RequestedClientActions":[{"ActionType":"SessionType",
        "ActionParameters":{"SessionType":"Port","Properties":{"portNumber":"5432"}}}]}"#;
    let expected = Handshake {
        agent_version: "3.3.1.0".into(),
        session_type: "Port".into(),
        encrypted: false,
        multiplexed: false,
    };
    assert_eq!(Handshake::parse(plain), Some(expected));
    for (version, multiplexed) in [
        ("3.0.196.0", false),
        ("3.0.196.1", true),
        ("3.1.0.0", true),
        ("10.0.0.0", true),
        ("2.9.9.9", false),
        ("", false),
    ] {
        let usual = format!(
            r#"{{"AgentVersion":"{version}","RequestedClientActions":[{{"ActionType":"SessionType",
            "ActionParameters":{{"SessionType":"Port","Properties":{{"type":"LocalPortForwarding"}}}}}}]}}"#
        );
        assert_eq!(Handshake::parse(usual.as_bytes()).unwrap().multiplexed, multiplexed, "{version}");
    }
    let encrypted = br#"{"AgentVersion":"3.3.1.0","RequestedClientActions":[
        {"ActionType":"KMSEncryption","ActionParameters":{"KMSKeyId":"k"}}]}"#;
    assert!(Handshake::parse(encrypted).unwrap().encrypted);
    assert_eq!(Handshake::parse(b"not json"), None);
}

/// The headers of such messages have 112 bytes, and their lengths are sometimes nonsense.
#[test]
fn messages_that_the_service_makes_itself_are_read_as_they_come() {
    let made_by_service = |kind: &[u8], length: u32, payload: &[u8]| {
        let mut bytes = data(kind, 0, b"")[..112].to_vec();
        bytes[..4].copy_from_slice(&112u32.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    };
    let closed = made_by_service(b"channel_closed", 31, br#"{"SessionId":"s","Output":"over"}"#);
    let view = View::new(&closed).unwrap();
    assert_eq!((view.kind(), closing_reason(view.payload()).as_str()), (Kind::ChannelClosed, "over"));
    for length in [0, 0x7400_0000, u32::MAX] {
        let start = made_by_service(b"start_publication", length, b"");
        assert_eq!(View::new(&start).unwrap().kind(), Kind::Start, "a payload of {length}");
        let mut pause = made_by_service(b"pause_publication", 0, b"{}");
        pause[..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(View::new(&pause).unwrap().kind(), Kind::Pause, "a header of {length}");
    }
}

#[test]
fn reasons_for_closing() {
    assert_eq!(closing_reason(br#"{"SessionId":"s","Output":"timed out"}"#), "timed out");
    let failed = br#"{"Output":"\n----------ERROR-------\nHandshake timed out."}"#;
    assert_eq!(closing_reason(failed), "Handshake timed out.");
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
            bytes[TYPE..TYPE + 11].copy_from_slice(b"acknowledge");
            bytes[TYPE + 11..36].fill(0);
            prop_assert!(View::new(&bytes).is_ok());
            prop_assert!(View::new(&bytes[..cut.min(bytes.len() - 1)]).is_err());
        }
        if let Ok(view) = View::new(&bytes) {
            let _ = (view.kind(), view.acknowledged(), view.acknowledgement(), view.with_only_byte(0, 10));
            let _ = (Handshake::parse(view.payload()), closing_reason(view.payload()));
        }
    }
}

#[test]
fn another_number_is_all_that_changes() {
    let before = data(b"input_stream_data", 3, b"payload");
    let after = View::new(&before).unwrap().numbered(i64::MAX);
    let mut expected = before.to_vec();
    expected[NUMBER..FLAGS].copy_from_slice(&i64::MAX.to_be_bytes());
    assert_eq!(after, expected);
}

#[test]
fn an_acknowledgement_of_another_number_is_the_same_but_for_that() {
    let bytes = data(b"input_stream_data", 9, b"x");
    let before = View::new(&bytes).unwrap().acknowledgement();
    let after = View::new(&before).unwrap().acknowledging(12345).unwrap();
    let (before, after) = (View::new(&before).unwrap(), View::new(&after).unwrap());
    assert_eq!(after.acknowledged(), Some(12345));
    assert_eq!(after.bytes[..DIGEST], before.bytes[..DIGEST]);
    assert_eq!(after.bytes[DIGEST..PAYLOAD_TYPE], Sha256::digest(after.payload())[..]);
    let content = |view: View<'_>| -> serde_json::Value { serde_json::from_slice(view.payload()).unwrap() };
    let mut expected = content(before);
    expected["AcknowledgedMessageSequenceNumber"] = 12345.into();
    assert_eq!(content(after), expected);
}

#[test]
fn a_keep_alive_is_stream_data_without_content() {
    let bytes = keep_alive(77, 5);
    let view = View::new(&bytes).unwrap();
    assert_eq!((view.kind(), view.number(), view.payload_type()), (Kind::Input, 5, DATA));
    assert_eq!((view.created(), view.payload()), (77, &[1, 3, 0, 0, 0, 0, 0, 0][..]));
}

#[test]
fn frames_are_expected_of_old_plugins_and_of_those_built_from_source() {
    for (version, expected) in [
        ("1.2.0.0", true),
        ("1.2.331.0", true),
        ("1.2.332.0", false),
        ("1.2.835.0", false),
        ("1.3", false),
        ("", true),
        ("mine", true),
    ] {
        let response = format!(r#"{{"ClientVersion":"{version}","ProcessedClientActions":[]}}"#);
        assert_eq!(is_expected(response.as_bytes()), expected, "{version}");
    }
    assert!(is_expected(b"{}"), "none is named");
    assert!(!is_expected(b"no JSON"));
}
