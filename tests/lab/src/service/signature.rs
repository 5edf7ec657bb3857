//! PURE. Whether a request looks signed as Signature Version 4 wants it. The lab knows no secret keys, so it looks at
//! the form: every part that a client could forget.

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST};

/// The access key that signed these headers, if they carry a plausible signature for `service` in `region`.
pub(crate) fn signer(headers: &HeaderMap, service: &str, region: &str) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let rest = text(AUTHORIZATION.as_str()).strip_prefix("AWS4-HMAC-SHA256 ")?;
    let part = |name: &str| {
        rest.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let scope: Vec<&str> = part("Credential").split('/').collect();
    let signed: Vec<&str> = part("SignedHeaders").split(';').collect();
    let signature = part("Signature");
    let date = text("x-amz-date");
    let [key, day, scope_region, scope_service, "aws4_request"] = scope[..] else {
        return None;
    };
    // A session token that is not signed would be refused by the service.
    let token_signed =
        !headers.contains_key("x-amz-security-token") || signed.contains(&"x-amz-security-token");
    let plausible = !key.is_empty()
        && day.len() == 8
        && date.starts_with(day)
        && date.len() == "20260101T000000Z".len()
        && scope_region == region
        && scope_service == service
        && signed.contains(&HOST.as_str())
        && signed.contains(&"x-amz-date")
        && token_signed
        && signature.len() == 64
        && signature.bytes().all(|byte| byte.is_ascii_hexdigit());
    plausible.then(|| key.to_owned())
}

/// Whether the request is signed with a key whose time is over: a key that ends in `UNTIL` and a time in seconds since 1970
/// says so itself, others live for ever.
pub(crate) fn has_expired(headers: &HeaderMap, now: u64) -> bool {
    let text = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let key = text.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default();
    let until = key.split_once("UNTIL").and_then(|(_, until)| until.parse::<u64>().ok());
    until.is_some_and(|until| until < now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-date", "20260102T030405Z".parse().unwrap());
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    #[test]
    fn only_whole_signatures_count() {
        let signature = "0123456789abcdef".repeat(4);
        let good = format!(
            "AWS4-HMAC-SHA256 Credential=AKID/20260102/us-west-2/ssm/aws4_request, SignedHeaders=host;x-amz-date, Signature={signature}"
        );
        let signed = |headers: &HeaderMap| signer(headers, "ssm", "us-west-2").is_some();
        assert_eq!(signer(&headers(&good), "ssm", "us-west-2").as_deref(), Some("AKID"));
        assert_eq!(signer(&headers(&good), "ssmmessages", "us-west-2"), None);
        assert_eq!(signer(&headers(&good), "ssm", "eu-west-1"), None);
        assert!(!signed(&HeaderMap::new()));
        for (part, other) in [
            ("20260102", "20260103"),
            ("host;", ""),
            (";x-amz-date", ""),
            ("aws4_request", "aws4"),
            (&signature[..], "abc"),
            ("AWS4-HMAC-SHA256 ", "Basic "),
        ] {
            assert!(!signed(&headers(&good.replace(part, other))), "{part}");
        }
        let mut with_token = headers(&good);
        with_token.insert("x-amz-security-token", "secret".parse().unwrap());
        assert!(!signed(&with_token));
    }

    #[test]
    fn keys_that_say_so_expire() {
        let signed = |key: &str| {
            headers(&format!("AWS4-HMAC-SHA256 Credential={key}/20260102/us-west-2/ssm/aws4_request"))
        };
        assert!(has_expired(&signed("AKIDUNTIL1000"), 1001));
        assert!(!has_expired(&signed("AKIDUNTIL1000"), 1000));
        assert!(!has_expired(&signed("AKID"), 1000));
        assert!(!has_expired(&HeaderMap::new(), 1000));
    }
}
