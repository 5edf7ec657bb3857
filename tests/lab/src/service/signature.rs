//! PURE. Whether a request looks signed as Signature Version 4 wants it. The lab knows no secret keys, so it looks at
//! the form: every part that a client could forget.

use http::HeaderMap;
use http::header::{AUTHORIZATION, HOST};

/// Whether the headers carry a plausible signature for `service`.
pub(crate) fn is_signed(headers: &HeaderMap, service: &str) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(rest) = text(AUTHORIZATION.as_str()).strip_prefix("AWS4-HMAC-SHA256 ") else {
        return false;
    };
    let part = |name: &str| {
        rest.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    let scope: Vec<&str> = part("Credential").split('/').collect();
    let signed: Vec<&str> = part("SignedHeaders").split(';').collect();
    let signature = part("Signature");
    let date = text("x-amz-date");
    let [key, day, region, scope_service, "aws4_request"] = scope[..] else {
        return false;
    };
    // A session token that is not signed would be refused by the service.
    let token_signed =
        !headers.contains_key("x-amz-security-token") || signed.contains(&"x-amz-security-token");
    !key.is_empty()
        && day.len() == 8
        && date.starts_with(day)
        && date.len() == "20260101T000000Z".len()
        && !region.is_empty()
        && scope_service == service
        && signed.contains(&HOST.as_str())
        && signed.contains(&"x-amz-date")
        && token_signed
        && signature.len() == 64
        && signature.bytes().all(|byte| byte.is_ascii_hexdigit())
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
        assert!(is_signed(&headers(&good), "ssm"));
        assert!(!is_signed(&headers(&good), "ssmmessages"));
        assert!(!is_signed(&HeaderMap::new(), "ssm"));
        for (part, other) in [
            ("20260102", "20260103"),
            ("host;", ""),
            (";x-amz-date", ""),
            ("aws4_request", "aws4"),
            (&signature[..], "abc"),
            ("AWS4-HMAC-SHA256 ", "Basic "),
        ] {
            assert!(!is_signed(&headers(&good.replace(part, other)), "ssm"), "{part}");
        }
        let mut with_token = headers(&good);
        with_token.insert("x-amz-security-token", "secret".parse().unwrap());
        assert!(!is_signed(&with_token, "ssm"));
    }
}
