//! The SDK against a server on loopback that plays canned answers.

mod canned;
mod clients;

use std::time::SystemTime;

use aws_credential_types::credential_fn::provide_credentials_fn;
use aws_credential_types::provider::error::CredentialsError;
use secrecy::ExposeSecret;
use tokio::net::TcpListener;

use super::*;
use canned::{Service, identity};

fn request() -> StartRequest {
    StartRequest {
        target: "i-0123456789abcdef0".to_owned(),
        document: "AWS-StartPortForwardingSession".to_owned(),
        parameters: [("portNumber".to_owned(), vec!["5432".to_owned()])].into(),
        reason: "autossm web-1 billing-db".to_owned(),
    }
}

fn refuse(code: &str, message: &str) -> String {
    serde_json::json!({ "__type": code, "message": message }).to_string()
}

const SESSION: &str = r#"{"SessionId":"s-1","TokenValue":"TOKEN-1","StreamUrl":"wss://stream/1"}"#;

#[tokio::test]
async fn starts_a_session_and_says_who_it_is() {
    let service = Service::new(|_, _| (200, SESSION.to_owned())).await;
    let session = service.api().start_session(&request()).await.unwrap();
    assert_eq!((&*session.session_id, &*session.stream_url), ("s-1", "wss://stream/1"));
    assert_eq!(session.token.expose_secret(), "TOKEN-1");
    assert!(!format!("{session:?}").contains("TOKEN-1"));

    let seen = service.seen.lock().unwrap();
    let (parts, body) = &seen[0];
    let expected = serde_json::json!({
        "Target": "i-0123456789abcdef0",
        "DocumentName": "AWS-StartPortForwardingSession",
        "Parameters": { "portNumber": ["5432"] },
        "Reason": "autossm web-1 billing-db",
    });
    assert_eq!(body, &expected);
    assert!(parts.headers["x-amz-user-agent"].to_str().unwrap().contains("app/autossm"));
    let authorization = parts.headers["authorization"].to_str().unwrap();
    assert!(authorization.contains("AKIDEXAMPLE/") && authorization.contains("/eu-west-1/ssm/aws4_request"));
}

#[tokio::test]
async fn every_refusal_has_its_class_and_the_services_words() {
    let garbage = r#"{"SessionId":"s-1","TokenValue":"TOKEN-1","StreamUrl"#;
    let table = [
        (
            400,
            refuse("TargetNotConnected", "i-1 is not connected."),
            Class::TargetNotConnected,
            "i-1 is not connected.",
        ),
        (
            400,
            refuse("ThrottlingException", "Rate exceeded"),
            Class::Throttled,
            "ThrottlingException: Rate exceeded",
        ),
        (400, refuse("TooManyUpdates", "too many"), Class::Throttled, "TooManyUpdates: too many"),
        (400, refuse("RequestLimitExceeded", "slow down"), Class::Throttled, "slow down"),
        (429, String::new(), Class::Throttled, "HTTP 429"),
        (
            400,
            refuse("AccessDeniedException", "User: x is not authorized"),
            Class::Access,
            "User: x is not authorized",
        ),
        (
            400,
            refuse("ExpiredTokenException", "The security token has expired"),
            Class::Access,
            "have to be renewed",
        ),
        (
            400,
            refuse("UnrecognizedClientException", "invalid"),
            Class::Access,
            "UnrecognizedClientException: invalid",
        ),
        (
            400,
            refuse("InvalidSignatureException", "Signature expired"),
            Class::Access,
            "is this host's clock right?",
        ),
        (403, refuse("MissingAuthenticationToken", "Missing"), Class::Access, "MissingAuthenticationToken"),
        (
            403,
            "<html><title>No</title>".to_owned(),
            Class::Access,
            "HTTP 403 Forbidden, a page (application/x-amz-json-1.1) “No”",
        ),
        (
            400,
            refuse("InvalidDocument", "no such document"),
            Class::NeedsChange,
            "InvalidDocument: no such document",
        ),
        (400, refuse("InvalidParameters", "portNumber"), Class::NeedsChange, "InvalidParameters: portNumber"),
        (400, refuse("InvalidInstanceId", "i-1"), Class::NeedsChange, "InvalidInstanceId"),
        (400, refuse("ValidationException", "1 validation error"), Class::NeedsChange, "1 validation error"),
        (500, refuse("InternalServerError", "sorry"), Class::Network, "InternalServerError: sorry"),
        (503, String::new(), Class::Network, "HTTP 503"),
        (502, "<html>bad gateway</html>".to_owned(), Class::Network, "HTTP 502"),
        (
            200,
            garbage.to_owned(),
            Class::Network,
            "HTTP 200 OK, application/x-amz-json-1.1, which cannot be read: ",
        ),
        (200, "{}".to_owned(), Class::Network, "lacks a session id"),
    ];
    for (status, answer, class, words) in table {
        let shown = answer.clone();
        let service = Service::new(move |_, _| (status, answer.clone())).await;
        let failure = service.api().start_session(&request()).await.unwrap_err();
        assert_eq!(failure.class, class, "{status} {shown}: {failure}");
        assert!(failure.text.contains(words), "{status} {shown}: {failure}");
        assert!(!format!("{failure:?}").contains("TOKEN-1"), "{failure:?}");
        assert_eq!(service.requests(), 1, "retrying is not done here");
    }
}

/// A captive portal, an inspecting proxy, another server at the endpoint's address.
#[tokio::test]
async fn what_answers_in_the_services_place_is_told_with_what_to_do() {
    const HTML: canned::Headers = &[("content-type", "text/html; charset=utf-8")];
    const ELSEWHERE: canned::Headers = &[("location", "http://portal.example/?id=TOKEN-1")];
    const PAGE: &str = "<!DOCTYPE html><html><head><title>Guest Wi-Fi</title></head></html>";
    for (headers, status, body, class, words) in [
        (
            HTML,
            200,
            PAGE,
            Class::Network,
            "HTTP 200 OK, a page (text/html) “Guest Wi-Fi” instead of the API's answer; ",
        ),
        (HTML, 403, PAGE, Class::Access, "HTTP 403 Forbidden, a page (text/html) “Guest Wi-Fi”"),
        (HTML, 503, PAGE, Class::Network, "HTTP 503 Service Unavailable, a page (text/html) “Guest Wi-Fi”"),
        (
            ELSEWHERE,
            302,
            "",
            Class::Network,
            "HTTP 302 Found, which leads to http://portal.example instead of",
        ),
        (
            &[("content-type", "text/plain")],
            200,
            "blocked by policy",
            Class::Network,
            "HTTP 200 OK, text/plain: “blocked by policy” instead of the API's answer; ",
        ),
        (&[], 200, PAGE, Class::Network, "HTTP 200 OK, a page “Guest Wi-Fi”"),
        (&[], 407, "", Class::Network, "HTTP 407 Proxy Authentication Required instead of the API's answer"),
    ] {
        let service = Service::in_its_place(headers, move |_, _| (status, body.to_owned())).await;
        let failure = service.api().start_session(&request()).await.unwrap_err();
        let host = service.url.strip_prefix("https://").unwrap();
        assert_eq!(failure.class, class, "{failure}");
        assert!(failure.text.starts_with(&format!("StartSession: {host} has answered with ")), "{failure}");
        assert!(failure.text.contains(words) && !failure.text.contains("TOKEN-1"), "{failure}");
        assert_eq!(failure.text.contains("captive portal"), status < 500, "{failure}");
        // Nor are there credentials with such a security token service.
        let role = Identity { role_arn: Some("arn:aws:iam::111122223333:role/r".into()), ..identity() };
        let keys = Credentials::new("AKIDEXAMPLE", "secret-key", None, None, "test");
        let failure = service.api_of(role, keys).credentials().await.unwrap_err();
        let suspect = |(name, value): &(&str, &str)| *name == "location" || value.starts_with("text/html");
        if headers.iter().any(suspect) {
            assert!(
                failure.text.starts_with(&format!("credentials: {host} has answered with ")),
                "{failure}"
            );
            assert!(failure.text.contains(words), "{failure}");
        }
    }
}

#[tokio::test]
async fn nobody_there_is_the_network() {
    let mut service = Service::new(|_, _| (200, SESSION.to_owned())).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    service.url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failure = service.api().start_session(&request()).await.unwrap_err();
    assert_eq!(failure.class, Class::Network, "{failure}");
    assert!(failure.text.contains("refused"), "{failure}");

    // Accepts, and answers nothing at all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    service.url = format!("http://{}", listener.local_addr().unwrap());
    let api = Sdk { patience: Duration::from_millis(300), ..service.api() };
    let failure = api.resume_session("s-1").await.unwrap_err();
    assert_eq!(failure, Failure::new(Class::Network, "ResumeSession: no answer within 0 s"));
}

/// An answer that does not end is given up long before it fills the memory.
#[tokio::test]
async fn an_answer_without_an_end_is_given_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut service = Service::new(|_, _| (200, SESSION.to_owned())).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    service.url = format!("http://{}", listener.local_addr().unwrap());
    let endless = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\n\r\n{\"SessionId\":\"";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut written = 0;
        while written < 256 << 20 && stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {
            written += 64 << 10;
        }
        written
    });
    let failure = service.api().start_session(&request()).await.unwrap_err();
    assert_eq!(failure.class, Class::Network, "{failure}");
    assert!(failure.text.starts_with("StartSession: ") && failure.text.contains("limit"), "{failure}");
    let written = endless.await.unwrap();
    assert!(written < 16 << 20, "{written} bytes were taken");
}

#[tokio::test]
async fn a_session_without_a_token_is_ended_again() {
    let service = Service::new(|operation, _| match operation {
        "StartSession" => (200, r#"{"SessionId":"s-1"}"#.to_owned()),
        _ => (200, r#"{"SessionId":"s-1"}"#.to_owned()),
    })
    .await;
    assert_eq!(service.api().start_session(&request()).await.unwrap_err().class, Class::Network);
    let seen = service.seen.lock().unwrap();
    assert_eq!(seen[1].0.headers["x-amz-target"], "AmazonSSM.TerminateSession");
    assert_eq!(seen[1].1["SessionId"], "s-1");
}

#[tokio::test]
async fn resumes_or_learns_that_the_session_is_gone() {
    let gone = refuse("DoesNotExistException", "Session s-1 does not exist");
    let answers = [
        (200, r#"{"SessionId":"s-1","TokenValue":"T2","StreamUrl":"wss://stream/2"}"#.to_owned()),
        (200, r#"{"SessionId":"s-1","StreamUrl":"wss://stream/2"}"#.to_owned()),
        (200, r#"{"SessionId":"s-1","TokenValue":"","StreamUrl":"wss://stream/2"}"#.to_owned()),
        (400, gone),
        (200, r#"{"SessionId":"s-1","TokenValue":"T3"}"#.to_owned()),
    ];
    let service = Service::new(move |_, number| answers[number - 1].clone()).await;
    let api = service.api();
    let Resumption::Resumed { token, stream_url } = api.resume_session("s-1").await.unwrap() else {
        panic!("the session lives")
    };
    assert_eq!((token.expose_secret(), &*stream_url), ("T2", "wss://stream/2"));
    for _ in 0..3 {
        assert!(matches!(api.resume_session("s-1").await, Ok(Resumption::Gone)));
    }
    assert_eq!(api.resume_session("s-1").await.unwrap_err().class, Class::Network);
}

#[tokio::test]
async fn ending_an_ended_session_is_a_success() {
    let answers = [
        (200, r#"{"SessionId":"s-1"}"#.to_owned()),
        (400, refuse("DoesNotExistException", "no such session")),
        (400, refuse("AccessDeniedException", "no")),
    ];
    let service = Service::new(move |_, number| answers[number - 1].clone()).await;
    let api = service.api();
    assert_eq!(api.terminate_session("s-1").await, Ok(()));
    assert_eq!(api.terminate_session("s-1").await, Ok(()));
    assert_eq!(api.terminate_session("s-1").await.unwrap_err().class, Class::Access);
}

#[tokio::test]
async fn lists_the_online_nodes_of_all_pages_in_a_fixed_order() {
    let node = |id: &str, status: &str| serde_json::json!({ "InstanceId": id, "PingStatus": status, "AgentVersion": "3.3.1.0" });
    let first = serde_json::json!({
        "InstanceInformationList": [node("mi-2", "Online"), node("i-9", "ConnectionLost")], "NextToken": "more",
    });
    let second = serde_json::json!({ "InstanceInformationList": [node("i-1", "Online")] });
    let pages = [first.to_string(), second.to_string()];
    let service = Service::new(move |_, number| (200, pages[number - 1].clone())).await;
    let api = service.api();
    for _ in 0..2 {
        let nodes = api.online_nodes("Role", "bastion", Duration::from_secs(30)).await.unwrap();
        let expected =
            ["i-1", "mi-2"].map(|id| Node { id: id.into(), agent_version: Some("3.3.1.0".into()) });
        assert_eq!(nodes, expected);
    }
    assert_eq!(service.requests(), 2, "the second answer is remembered");
    let seen = service.seen.lock().unwrap();
    let filters = serde_json::json!([
        { "Key": "tag:Role", "Values": ["bastion"] },
        { "Key": "PingStatus", "Values": ["Online"] },
    ]);
    assert_eq!(seen[0].1["Filters"], filters);
    assert_eq!(seen[1].1["NextToken"], "more");
}

/// The account's limits are no reason to be without a target that is there.
#[tokio::test]
async fn nodes_that_cannot_be_listed_now_are_those_of_the_last_list() {
    let node = serde_json::json!({ "InstanceId": "i-1", "PingStatus": "Online" });
    let list = serde_json::json!({ "InstanceInformationList": [node] }).to_string();
    let service = Service::new(move |_, number| match number {
        1 | 3 => (400, refuse("ThrottlingException", "Rate exceeded")),
        2 => (200, list.clone()),
        4 => (503, String::new()),
        _ => (400, refuse("AccessDeniedException", "no")),
    })
    .await;
    let api = service.api();
    let tag = crate::config::Target::Tag { key: "Role".to_owned(), value: "bastion".to_owned() };
    let mut found = Vec::new();
    for _ in 0..5 {
        let nodes = crate::aws::target::candidates(&api, &tag, Duration::ZERO).await;
        found.push(nodes.map(|nodes| nodes.len()).map_err(|failure| failure.class));
    }
    let expected = [Err(Class::Throttled), Ok(1), Ok(1), Ok(1), Err(Class::Access)];
    assert_eq!(found, expected);
}

/// No credentials: the call is not made, and the failure is about them.
#[tokio::test]
async fn without_credentials_nothing_is_sent() {
    let service = Service::new(|_, _| (200, SESSION.to_owned())).await;
    let api = service
        .api_with(provide_credentials_fn(|| async { Err(CredentialsError::not_loaded("nothing set")) }));
    let from_call = api.start_session(&request()).await.unwrap_err();
    let direct = api.credentials().await.unwrap_err();
    assert_eq!(from_call.class, Class::Access);
    assert!(
        from_call.text.contains("nothing set") && from_call.text.contains("attach a role"),
        "{from_call}"
    );
    assert_eq!(from_call, direct);
    assert_eq!(service.requests(), 0);
}

fn role() -> Identity {
    Identity {
        role_arn: Some("arn:aws:iam::123456789012:role/tunnels".to_owned()),
        external_id: Some("ext-1".to_owned()),
        ..identity()
    }
}

#[tokio::test]
async fn assumes_a_role_and_calls_with_it() {
    let service = Service::new(|operation, _| match operation {
        "AssumeRole" => (
            200,
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
             <AccessKeyId>ROLEKEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>2199-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
                .to_owned(),
        ),
        _ => (200, SESSION.to_owned()),
    })
    .await;
    let api = service.api_of(role(), Credentials::new("AKIDEXAMPLE", "secret-key", None, None, "test"));
    for _ in 0..2 {
        api.start_session(&request()).await.unwrap();
    }
    let seen = service.seen.lock().unwrap();
    let form = seen[0].1.as_str().unwrap();
    assert!(form.contains("ExternalId=ext-1") && form.contains("RoleSessionName=autossm-"), "{form}");
    let keys: Vec<_> = seen.iter().map(|(parts, _)| key(parts)).collect();
    assert_eq!(keys, ["AKIDEXAMPLE", "ROLEKEY", "ROLEKEY"]);
}

#[tokio::test]
async fn a_role_that_may_not_be_assumed_is_access() {
    let service = Service::new(|_, number| match number {
        1 => (
            403,
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>AccessDenied</Code><Message>x may not assume it</Message></Error></ErrorResponse>"
                .to_owned(),
        ),
        _ => (
            503,
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Receiver</Type>\
             <Code>ServiceUnavailable</Code><Message>later</Message></Error></ErrorResponse>"
                .to_owned(),
        ),
    })
    .await;
    let api = service.api_of(role(), Credentials::new("AKIDEXAMPLE", "secret-key", None, None, "test"));
    let denied = api.start_session(&request()).await.unwrap_err();
    assert_eq!(denied, Failure::new(Class::Access, "credentials: AccessDenied: x may not assume it"));
    let down = api.start_session(&request()).await.unwrap_err();
    assert_eq!(down.class, Class::Network, "{down}");
}

/// The access key that a request was signed with.
fn key(parts: &http::request::Parts) -> String {
    parts.headers["authorization"].to_str().unwrap().split(['=', '/']).nth(1).unwrap().to_owned()
}

/// Credentials that are refused are exchanged for newer ones within the same call, if there are any.
#[tokio::test]
async fn a_call_that_is_refused_is_made_again_with_newer_credentials() {
    let service = Service::new(|_, number| match number {
        1 | 4.. => (400, refuse("ExpiredTokenException", "expired")),
        _ => (200, SESSION.to_owned()),
    })
    .await;
    let made = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let api = service.api_with(provide_credentials_fn(move || {
        let number = made.fetch_add(1, std::sync::atomic::Ordering::Relaxed).min(2);
        let later = SystemTime::now() + Duration::from_secs(3600);
        async move { Ok(Credentials::new(format!("AKID{number}"), "secret", None, Some(later), "test")) }
    }));
    for _ in 0..2 {
        api.start_session(&request()).await.unwrap();
    }
    // Once more with AKID2, and then there are no others.
    for _ in 0..2 {
        assert_eq!(api.start_session(&request()).await.unwrap_err().class, Class::Access);
    }
    let seen = service.seen.lock().unwrap();
    let keys: Vec<_> = seen.iter().map(|(parts, _)| key(parts)).collect();
    assert_eq!(keys, ["AKID0", "AKID1", "AKID1", "AKID1", "AKID2", "AKID2"]);
}

/// A call that the policy does not allow says nothing of the credentials: the next one is made with them, whatever their
/// source says meanwhile.
#[tokio::test]
async fn a_call_that_is_denied_costs_no_credentials() {
    let service = Service::new(|operation, _| match operation {
        "GetDocument" => (400, refuse("AccessDeniedException", "not authorized to perform: ssm:GetDocument")),
        "ResumeSession" => (403, "<html>the firewall says no</html>".to_owned()),
        "TerminateSession" => (400, refuse("ExpiredTokenException", "expired")),
        _ => (200, SESSION.to_owned()),
    })
    .await;
    let made = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let asked = made.clone();
    let api = service.api_with(provide_credentials_fn(move || {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        async move {
            match number {
                0 => Ok(Credentials::new("AKID", "secret", None, None, "test")),
                _ => Err(CredentialsError::not_loaded("the metadata service is busy")),
            }
        }
    }));
    api.start_session(&request()).await.unwrap();
    assert_eq!(api.maximum_session_duration().await, Limit::Unknown);
    assert_eq!(api.resume_session("s-1").await.unwrap_err().class, Class::Access);
    api.start_session(&request()).await.unwrap();
    assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), 1, "nobody was asked for others");
    // Where others are looked for in vain, the refused ones are kept: there is nothing better.
    let failure = api.terminate_session("s-1").await.unwrap_err();
    assert!(failure.text.contains("ExpiredTokenException"), "{failure}");
    assert_eq!(made.load(std::sync::atomic::Ordering::Relaxed), 2);
    api.start_session(&request()).await.unwrap();
    assert_eq!(service.requests(), 6);
}

/// Each line of the log, whatever its level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_token_or_key_is_logged_at_trace_level() {
    // With one dispatcher in the process, `tracing` would ask only the thread that passes a line first whether it is
    // wanted, which may be another test's.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let service = Service::new(|_, _| (200, SESSION.to_owned())).await;
    let api = service.api();
    api.start_session(&request()).await.unwrap();
    api.resume_session("s-1").await.unwrap();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        text.contains("StartSession") && text.contains("ResumeSession"),
        "our own lines are there: {text}"
    );
    assert!(!text.contains("TOKEN-1") && !text.contains("secret-key"), "{text}");
}

/// AWS's own names, as its partitions have them.
#[tokio::test]
async fn every_partition_has_its_own_endpoint() {
    for (region, fips, dual_stack, expected) in [
        ("us-west-2", false, false, "ssm.us-west-2.amazonaws.com"),
        ("us-west-2", true, false, "ssm-fips.us-west-2.amazonaws.com"),
        ("us-west-2", false, true, "ssm.us-west-2.api.aws"),
        ("us-west-2", true, true, "ssm-fips.us-west-2.api.aws"),
        ("ca-central-1", true, false, "ssm-fips.ca-central-1.amazonaws.com"),
        ("us-gov-west-1", false, false, "ssm.us-gov-west-1.amazonaws.com"),
        ("us-gov-east-1", true, false, "ssm.us-gov-east-1.amazonaws.com"),
        ("cn-north-1", false, false, "ssm.cn-north-1.amazonaws.com.cn"),
        ("cn-northwest-1", false, true, "ssm.cn-northwest-1.api.amazonwebservices.com.cn"),
        ("eusc-de-east-1", false, false, "ssm.eusc-de-east-1.amazonaws.eu"),
        ("us-iso-east-1", false, false, "ssm.us-iso-east-1.c2s.ic.gov"),
    ] {
        let config = SdkConfig::builder().use_fips(fips).use_dual_stack(dual_stack).build();
        let found = endpoint::own(&config, region).await.unwrap();
        assert_eq!(found, format!("https://{expected}"), "{region}, FIPS {fips}, dual stack {dual_stack}");
    }
}

/// They would be refused by the SDK at each call, as if the network had failed.
#[tokio::test]
async fn an_address_that_is_given_excludes_other_names() {
    for (fips, dual_stack, words) in [
        (true, false, "`endpoint_url` and FIPS names (use_fips_endpoint in the profile)"),
        (false, true, "`endpoint_url` and dual-stack names (use_dualstack_endpoint in the profile)"),
    ] {
        let config = || {
            SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .region(Region::new("us-west-2"))
                .use_fips(fips)
                .use_dual_stack(dual_stack)
        };
        let sdk = async |config: &SdkConfig, endpoint_url| {
            let source = Source::new(identity(), config.clone());
            Sdk::new(config, endpoint_url, source, Arc::default()).await
        };
        let own = config().build();
        assert!(sdk(&own, None).await.is_ok());
        let failure = sdk(&own, Some("https://ssm.internal")).await.err().unwrap();
        assert_eq!(failure.class, Class::NeedsChange);
        assert!(failure.text.starts_with(words) && failure.text.contains("leave out"), "{failure}");
        let given = config().endpoint_url("https://ssm.internal").build();
        let failure = sdk(&given, None).await.err().unwrap();
        assert_eq!(failure.class, Class::NeedsChange);
        assert!(failure.text.contains("AWS_ENDPOINT_URL"), "{failure}");
    }
}
