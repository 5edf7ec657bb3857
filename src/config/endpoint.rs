//! Addresses that replace AWS's own: of the API, and of the data channel.

use std::net::{IpAddr, Ipv6Addr};

use http::Uri;
use http::uri::Authority;

use super::StreamEndpoint;
use super::problem::quoted;
use super::value::Wrong;

/// `https://HOST[:PORT][/PATH]`; `http://` on loopback only, since what is signed could be read and replayed.
pub(super) fn endpoint_url(text: &str) -> Result<String, Wrong> {
    let example = "write a URL such as \"https://vpce-0123-abcd.ssm.us-west-2.vpce.amazonaws.com\"";
    let (scheme, uri, authority) = split(text, example)?;
    if scheme != "https" && scheme != "http" {
        return Err(Wrong::new(format!("{} is not an http or https URL", quoted(text)), example));
    }
    if uri.query().is_some() || text.contains('#') {
        return Err(Wrong::new(
            format!("{} has more than a path", quoted(text)),
            "leave out all from `?` or `#` on",
        ));
    }
    if scheme == "http" && !is_loopback(authority.host()) {
        return Err(Wrong::new(
            format!("{} is without TLS and not on this host", quoted(text)),
            "write https://; http:// is for loopback alone",
        ));
    }
    Ok(text.to_owned())
}

/// `wss://HOST[:PORT]`; `ws://HOST:PORT` on loopback only.
pub(super) fn stream_endpoint(text: &str) -> Result<StreamEndpoint, Wrong> {
    address(text, "wss", "ws", "leave out the path: it comes with each session")
}

/// `https://HOST[:PORT]`; `http://HOST:PORT` on loopback only.
pub(super) fn kms_endpoint(text: &str) -> Result<StreamEndpoint, Wrong> {
    address(text, "https", "http", "leave out the path: it comes with each call")
}

/// A host and a port to be dialled with TLS, under the scheme `secure`, or without it on loopback, under `plain`.
fn address(text: &str, secure: &str, plain: &str, no_path: &'static str) -> Result<StreamEndpoint, Wrong> {
    let example = format!("write \"{secure}://HOST\" or \"{secure}://HOST:PORT\"");
    let (scheme, uri, authority) = split(text, &example)?;
    let tls = scheme == secure;
    if !tls && scheme != plain {
        return Err(Wrong::new(format!("{} is not a {secure} address", quoted(text)), example));
    }
    if text.ends_with('/') || text.contains(['?', '#']) || !matches!(uri.path(), "" | "/") {
        return Err(Wrong::new(format!("{} is more than a host and a port", quoted(text)), no_path));
    }
    if !tls && !is_loopback(authority.host()) {
        return Err(Wrong::new(
            format!("{} is without TLS and not on this host", quoted(text)),
            format!("write {secure}://; {plain}:// is for loopback alone"),
        ));
    }
    let port = match authority.port_u16() {
        Some(port) => port,
        None if tls => 443,
        None => {
            let what = format!("{} has no port", quoted(text));
            let example = format!("{plain}:// needs a port, such as \"{plain}://127.0.0.1:8080\"");
            return Err(Wrong::new(what, example));
        }
    };
    Ok(StreamEndpoint { tls, host: bare(authority.host()).to_owned(), port })
}

/// The scheme, the whole and its host, whatever they are for.
fn split(text: &str, example: &str) -> Result<(String, Uri, Authority), Wrong> {
    // Not repeated: what stands before the @ may be a password.
    if text.contains('@') {
        return Err(Wrong::new(
            "the URL has a user or a password before its host",
            "leave out all up to the `@`",
        ));
    }
    let no_url = || Wrong::new(format!("{} is not a URL", quoted(text)), example);
    let uri: Uri = text.parse().map_err(|_| no_url())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(no_url());
    };
    let (scheme, authority) = (scheme.to_ascii_lowercase(), authority.clone());
    let port = authority.as_str().strip_prefix(authority.host()).and_then(|rest| rest.strip_prefix(':'));
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err(Wrong::new(
            format!("{} has an impossible port", quoted(text)),
            "a port is a number from 1 to 65535",
        ));
    }
    let host = authority.host();
    let address = host.starts_with('[') && bare(host).parse::<Ipv6Addr>().is_ok();
    let name = host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    });
    if !address && !name {
        return Err(Wrong::new(format!("{} is not a host", quoted(host)), example));
    }
    Ok((scheme, uri, authority))
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || bare(host).parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn api_addresses() {
        for text in [
            "https://vpce-1.ssm.us-west-2.vpce.amazonaws.com",
            "https://example.com:8443/ssm",
            "http://127.0.0.1:4566",
            "http://localhost:4566/",
            "http://[::1]:4566",
        ] {
            assert_eq!(endpoint_url(text).unwrap(), text);
        }
        for (text, what) in [
            ("", "`` is not a URL"),
            ("example.com", "`example.com` is not a URL"),
            ("/ssm", "`/ssm` is not a URL"),
            ("ftp://example.com", "`ftp://example.com` is not an http or https URL"),
            ("http://example.com", "`http://example.com` is without TLS and not on this host"),
            ("https://example.com?x=1", "`https://example.com?x=1` has more than a path"),
            ("https://example.com:70000", "`https://example.com:70000` has an impossible port"),
            ("https://me:hunter2@example.com", "the URL has a user or a password before its host"),
            ("https://exa mple.com", "`https://exa mple.com` is not a URL"),
        ] {
            assert_eq!(endpoint_url(text).unwrap_err().what, what, "{text}");
        }
    }

    #[test]
    fn data_channel_addresses() {
        let endpoint = |tls, host: &str, port| StreamEndpoint { tls, host: host.to_owned(), port };
        for (text, expected) in [
            ("wss://stream.internal", endpoint(true, "stream.internal", 443)),
            ("wss://stream.internal:8443", endpoint(true, "stream.internal", 8443)),
            ("wss://[2001:db8::1]", endpoint(true, "2001:db8::1", 443)),
            ("ws://127.0.0.1:9000", endpoint(false, "127.0.0.1", 9000)),
            ("ws://[::1]:9000", endpoint(false, "::1", 9000)),
        ] {
            assert_eq!(stream_endpoint(text).unwrap(), expected);
        }
        for (text, what) in [
            ("https://stream.internal", "`https://stream.internal` is not a wss address"),
            ("ws://stream.internal:80", "`ws://stream.internal:80` is without TLS and not on this host"),
            ("ws://127.0.0.1", "`ws://127.0.0.1` has no port"),
            ("wss://stream.internal/v1", "`wss://stream.internal/v1` is more than a host and a port"),
            ("wss://stream.internal/", "`wss://stream.internal/` is more than a host and a port"),
            ("wss://stream.internal:0", "`wss://stream.internal:0` has an impossible port"),
            ("wss://", "`wss://` is not a URL"),
        ] {
            assert_eq!(stream_endpoint(text).unwrap_err().what, what, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_read_or_refused(text in "(wss?://|https?://)?[\\[\\]:/.@?#%a-z0-9\\PC]{0,30}") {
            let _ = endpoint_url(&text);
            if let Ok(endpoint) = stream_endpoint(&text) {
                prop_assert!(endpoint.port > 0 && !endpoint.host.is_empty() && !endpoint.host.contains('['));
            }
        }
    }
}
