//! SigV4 for the requests that the SDK has no call for: the data channel's upgrade, and the plugin's own API calls.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Request, Uri};

use crate::tunnel::failure::{Class, Failure};

/// The data channel's name among the services that signatures are made for.
const DATA_CHANNEL: &str = "ssmmessages";
/// What a signature adds; a new one must not cover an old one's.
const SIGNATURE: [&str; 4] = ["authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"];

/// Signs the request that upgrades the data channel's connection to a WebSocket. Only `host` is covered beside the
/// signature's own headers, so the WebSocket's may be added before or after. A URL that is presigned already (it has
/// `X-Amz-…` parameters) is returned as it is.
///
/// Fails if the URL has no host.
pub fn sign_upgrade(
    mut request: Request<()>,
    credentials: &Credentials,
    region: &str,
    now: SystemTime,
) -> Result<Request<()>, Failure> {
    if is_presigned(request.uri()) {
        return Ok(request);
    }
    remove_signature(request.headers_mut());
    let scope = Scope { region, service: DATA_CHANNEL };
    sign(request, &[], &["host"], &scope, credentials, now)
}

/// Signs a request of the plugin with other credentials, for the service and region that it was signed for, and
/// covering the headers that it covered.
///
/// Fails if the request is not signed, or has no host.
pub fn sign_forwarded(
    mut request: Request<Bytes>,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Request<Bytes>, Failure> {
    let authorization = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| failed("the plugin's request is not signed"))?
        .to_owned();
    let (scope, covered) =
        parse(&authorization).ok_or_else(|| failed("the plugin's signature cannot be read"))?;
    remove_signature(request.headers_mut());
    let body = request.body().clone();
    sign(request, &body, &covered, &scope, credentials, now)
}

/// What a signature is good for.
struct Scope<'a> {
    region: &'a str,
    service: &'a str,
}

fn sign<B>(
    mut request: Request<B>,
    body: &[u8],
    covered: &[&str],
    scope: &Scope<'_>,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Request<B>, Failure> {
    let host = host(&request)?;
    let uri = request.uri().to_string();
    let method = request.method().clone();
    let mut headers = vec![("host", host.as_str())];
    for (name, value) in request.headers() {
        let name = name.as_str();
        if name != "host" && covered.contains(&name) && !SIGNATURE.contains(&name) {
            let value = value.to_str().map_err(|_| failed(format!("header {name} is not text")))?;
            headers.push((name, value));
        }
    }
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(scope.region)
        .name(scope.service)
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|e| failed(e.to_string()))?
        .into();
    let signable = SignableRequest::new(method.as_str(), uri, headers.into_iter(), SignableBody::Bytes(body))
        .map_err(|e| failed(e.to_string()))?;
    let signed = aws_sigv4::http_request::sign(signable, &params);
    signed.map_err(|e| failed(e.to_string()))?.into_parts().0.apply_to_request_http1x(&mut request);
    Ok(request)
}

/// The `Host` header that goes with the request, or would: without the scheme's own port.
fn host<B>(request: &Request<B>) -> Result<String, Failure> {
    if let Some(host) = request.headers().get(HOST).and_then(|value| value.to_str().ok()) {
        return Ok(host.to_owned());
    }
    let uri = request.uri();
    let host = uri.host().ok_or_else(|| failed("the request has no host"))?;
    let usual = match uri.scheme_str() {
        Some("http" | "ws") => 80,
        _ => 443,
    };
    Ok(match uri.port_u16() {
        Some(port) if port != usual => format!("{host}:{port}"),
        _ => host.to_owned(),
    })
}

fn is_presigned(uri: &Uri) -> bool {
    let is_signature = |pair: &str| pair.get(..6).is_some_and(|name| name.eq_ignore_ascii_case("x-amz-"));
    uri.query().is_some_and(|query| query.split('&').any(is_signature))
}

fn remove_signature(headers: &mut HeaderMap) {
    for name in SIGNATURE {
        headers.remove(name);
    }
}

/// Takes `AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/SERVICE/aws4_request, SignedHeaders=a;b, Signature=…` apart.
fn parse(authorization: &str) -> Option<(Scope<'_>, Vec<&str>)> {
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256")?;
    let field =
        |name: &str| fields.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
    let mut scope = field("Credential")?.rsplit('/');
    let (end, service, region) = (scope.next()?, scope.next()?, scope.next()?);
    if end != "aws4_request" || service.is_empty() || region.is_empty() {
        return None;
    }
    Some((Scope { region, service }, field("SignedHeaders")?.split(';').collect()))
}

fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::new(Class::NeedsChange, format!("a request could not be signed: {what}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// 2015-08-30T12:36:00Z, as in AWS's published test suite.
    fn then() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160)
    }

    fn suite(token: Option<&str>) -> Credentials {
        let token = token.map(str::to_owned);
        Credentials::new("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token, None, "test")
    }

    fn header<'a, B>(request: &'a Request<B>, name: &str) -> &'a str {
        request.headers()[name].to_str().unwrap()
    }

    fn plugins(method: &str, uri: &str, signed_headers: &str) -> http::request::Builder {
        let scope = "PLUGIN/20150101/us-east-1/service/aws4_request";
        Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "example.amazonaws.com")
            .header("x-amz-date", "20150101T000000Z")
            .header("x-amz-security-token", "the plugin's")
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={signed_headers}, Signature=00"),
            )
    }

    #[test]
    fn signs_as_the_published_suite_does() {
        let get_vanilla = plugins("GET", "/", "host;x-amz-date").body(Bytes::new()).unwrap();
        let signed = sign_forwarded(get_vanilla, &suite(None), then()).unwrap();
        assert_eq!(
            header(&signed, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(header(&signed, "x-amz-date"), "20150830T123600Z");
        assert!(!signed.headers().contains_key("x-amz-security-token"));

        let form = plugins("POST", "/", "content-type;host;x-amz-date")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Bytes::from_static(b"Param1=value1"))
            .unwrap();
        let signed = sign_forwarded(form, &suite(None), then()).unwrap();
        assert_eq!(
            header(&signed, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        );
        assert_eq!(signed.body(), &Bytes::from_static(b"Param1=value1"));
    }

    const CHANNEL: &str = "wss://ssmmessages.us-east-1.amazonaws.com/v1/data-channel/ops-0123456789abcdef0";

    #[test]
    fn signs_the_data_channel() {
        let request = Request::builder()
            .uri(format!("{CHANNEL}?role=publish_subscribe&cell-number=AAEAA%2Bx%3D"))
            .header("upgrade", "websocket")
            .body(())
            .unwrap();
        let signed = sign_upgrade(request, &suite(Some("a-session-token")), "us-east-1", then()).unwrap();
        assert_eq!(
            header(&signed, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/ssmmessages/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-security-token, \
             Signature=66d1825746ac488fedbdd29bb9fbfdbb03741903039f40f9c60d80a3d9147511"
        );
        assert_eq!(header(&signed, "x-amz-security-token"), "a-session-token");
        assert_eq!(header(&signed, "upgrade"), "websocket");
    }

    #[test]
    fn a_presigned_url_is_left_alone() {
        for parameter in ["X-Amz-Signature=abc", "x-amz-algorithm=AWS4-HMAC-SHA256"] {
            let uri = format!("{CHANNEL}?role=publish_subscribe&{parameter}");
            let request = Request::builder().uri(&uri).body(()).unwrap();
            let signed = sign_upgrade(request, &suite(None), "us-east-1", then()).unwrap();
            assert!(signed.headers().is_empty());
            assert_eq!(signed.uri().to_string(), uri);
        }
    }

    #[test]
    fn the_host_is_signed_as_it_is_sent() {
        for (uri, expected) in [
            ("wss://h.example:443/x", "h.example"),
            ("ws://h.example:80/x", "h.example"),
            ("wss://h.example:8443/x", "h.example:8443"),
            ("ws://[::1]:443/x", "[::1]:443"),
        ] {
            assert_eq!(host(&Request::builder().uri(uri).body(()).unwrap()).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_signed_is_refused() {
        let unsigned = Request::builder().uri("/").header("host", "h").body(Bytes::new()).unwrap();
        assert!(sign_forwarded(unsigned, &suite(None), then()).unwrap_err().text.contains("is not signed"));
        for wrong in ["Basic abc", "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host", "AWS4-HMAC-SHA256"]
        {
            let request =
                Request::builder().uri("/").header("authorization", wrong).body(Bytes::new()).unwrap();
            assert!(sign_forwarded(request, &suite(None), then()).is_err(), "{wrong}");
        }
        let nowhere = Request::builder().uri("/v1").body(()).unwrap();
        assert!(
            sign_upgrade(nowhere, &suite(None), "us-east-1", then()).unwrap_err().text.contains("no host")
        );
    }
}
